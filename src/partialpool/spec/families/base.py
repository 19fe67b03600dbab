"""What every family of responses answers: its contract with the engines.

A family has up to three linear predictors. eta0 is that of the mean, through the link; eta1 is the log of the family's
first own parameter (`sigma`, `phi`, `shape`), eta2 the log of the second (`nu`). The numbers that engines want inside
their kernels come from helpers (see `partialpool.algebra.jit.helper`), which are made once per family and link; what
is asked once per fit is numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.jit import helper
from partialpool.algebra.special import LARGEST_EXPONENT, clamped
from partialpool.errors import ModelError, did_you_mean
from partialpool.spec import links

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Helper = Callable[..., Any]
#: Value; first derivatives in eta0, eta1, eta2; second in eta0 eta0, eta0 eta1, eta1 eta1.
Seven = tuple[float, float, float, float, float, float, float]

#: Logs of own parameters are held within this: far beyond what data can tell, near enough that nothing overflows.
LARGEST_LOG = 300.0
#: numpy's Poisson generator refuses a larger mean.
LARGEST_POISSON_MEAN = 9e18


class Helpers(NamedTuple):
    """What kernels call; see `Family`."""

    log_density: Helper
    derivatives: Helper
    information: Helper | None = None


@dataclass(frozen=True)
class Family:
    """The distribution of a response given its linear predictors.

    Parameters
    ----------
    link : str
        The link of the mean, one of `links`; the first of them by default.

    Raises
    ------
    ModelError
        If the family has no such link.

    Examples
    --------
    >>> from partialpool.spec.families import Poisson
    >>> family = Poisson()
    >>> family.derivatives(0.0, 0.0, 0.0, 3.0, 1.0)
    (-1.0, 2.0, 0.0, 0.0, -1.0, 0.0, 0.0)
    >>> family.mean([0.0, 1.0]).round(3)
    array([1.   , 2.718])
    >>> str(family)
    'poisson (log link)'
    """

    link: str = ""

    #: The name by which a user asks for it.
    name: ClassVar[str] = ""
    #: Own parameters, in the order of eta1, eta2.
    parameters: ClassVar[tuple[str, ...]] = ()
    #: Those of them that may have a formula.
    modelled: ClassVar[tuple[str, ...]] = ()
    #: The links allowed; the first is the default.
    links: ClassVar[tuple[str, ...]] = ("identity",)
    #: Those with which the log density is concave in eta0, whatever y.
    concave_links: ClassVar[tuple[str, ...]] = ()
    #: Whether the response is a count.
    discrete: ClassVar[bool] = False
    #: Whether `trials()` belongs to the response.
    takes_trials: ClassVar[bool] = False

    def __post_init__(self) -> None:
        link = str(self.link or self.links[0]).strip().lower()
        if link not in self.links:
            raise ModelError(f"The family {self.name} has no link {self.link!r}. {did_you_mean(link, self.links)}")
        object.__setattr__(self, "link", link)

    def __str__(self) -> str:
        return f"{self.name} ({self.link} link)"

    # ---- inside kernels ----------------------------------------------------------------------------------------

    def helpers(self) -> Helpers:
        """The helpers of this family and link: the same objects at every call."""
        raise NotImplementedError

    @property
    def log_density(self) -> Helper:
        """The helper (eta0, eta1, eta2, y, trials) -> log density less `constant`.

        It is -inf where the link gives a mean that the family cannot have.
        """
        return self.helpers().log_density

    @property
    def derivatives(self) -> Helper:
        """The helper (eta0, eta1, eta2, y, trials) -> (l, g0, g1, g2, h00, h01, h11).

        The log density as `log_density` has it, its first derivatives in the three predictors, and its second
        derivatives in eta0 eta0, eta0 eta1 and eta1 eta1. They are 0 for predictors that the family has not.
        """
        return self.helpers().derivatives

    @property
    def information(self) -> Helper | None:
        """The helper (eta0, eta1, eta2, trials) -> E[-h00], for families that are not log-concave; None for others."""
        return self.helpers().information

    @property
    def log_concave(self) -> bool:
        """Whether the log density is concave in eta0 for every y."""
        return self.link in self.concave_links

    # ---- over arrays -------------------------------------------------------------------------------------------

    @property
    def latent_variance(self) -> float | None:
        """The variance of the latent variable behind a binary response; None where there is none."""
        return links.LATENT_VARIANCE.get(self.link)

    def link_function(self, mu: ArrayLike) -> Array:
        """The linear predictor at which the mean is `mu`."""
        return links.link_function(self.link, mu)

    def inverse_link(self, eta: ArrayLike) -> Array:
        """The value of the link's inverse at `eta`."""
        return links.inverse_link(self.link, eta)

    def constant(self, y: ArrayLike, trials: ArrayLike | None = None) -> Array:
        """The part of each row's log density that depends on the response and the trials alone."""
        response = as_array(y)
        with np.errstate(all="ignore"):
            return np.asarray(self._constant(response, trials_of(response, trials)), dtype=np.float64)

    def mean(self, eta0: ArrayLike, eta1: ArrayLike = 0.0, eta2: ArrayLike = 0.0) -> Array:
        """The expected response; of families with trials, the probability of an event."""
        first, second, third = np.broadcast_arrays(as_array(eta0), as_array(eta1), as_array(eta2))
        with np.errstate(all="ignore"):
            return np.asarray(self._mean(first, second, third), dtype=np.float64)

    def variance(
        self, eta0: ArrayLike, eta1: ArrayLike = 0.0, eta2: ArrayLike = 0.0, trials: ArrayLike | None = None
    ) -> Array:
        """The variance of the response; of families with trials, that of the count of events."""
        first, second, third = np.broadcast_arrays(as_array(eta0), as_array(eta1), as_array(eta2))
        with np.errstate(all="ignore"):
            mu = np.asarray(self._mean(first, second, third), dtype=np.float64)
            return np.asarray(self._variance(mu, second, third, trials_of(mu, trials)), dtype=np.float64)

    def simulate(
        self,
        rng: Generator,
        eta0: ArrayLike,
        eta1: ArrayLike = 0.0,
        eta2: ArrayLike = 0.0,
        trials: ArrayLike | None = None,
    ) -> Array:
        """Draw a response for every element of the predictors.

        Raises
        ------
        ModelError
            Where a predictor gives an impossible mean, such as a count below 0.
        """
        number = np.ones(()) if trials is None else as_array(trials)
        first, second, third, number = np.broadcast_arrays(as_array(eta0), as_array(eta1), as_array(eta2), number)
        with np.errstate(all="ignore"):
            mu = np.asarray(self._mean(first, second, third), dtype=np.float64)
            self._refuse_impossible(mu, first)
            return np.asarray(self._simulate(rng, mu, second, third, number), dtype=np.float64)

    def log_density_rows(
        self,
        y: ArrayLike,
        eta0: ArrayLike,
        eta1: ArrayLike = 0.0,
        eta2: ArrayLike = 0.0,
        trials: ArrayLike | None = None,
    ) -> Array:
        """The whole log density of each row, the constant included.

        Examples
        --------
        >>> from partialpool.spec.families import Bernoulli
        >>> Bernoulli().log_density_rows([0.0, 1.0], [0.0, 1.0]).round(6)
        array([-0.693147, -0.313262])
        """
        response, first, second, third = np.broadcast_arrays(*(as_array(v) for v in (y, eta0, eta1, eta2)))
        number = trials_of(response, trials)
        with np.errstate(all="ignore"):
            value = self._log_kernel(response, first, second, third, number) + self._constant(response, number)
            possible = self._possible(np.asarray(self._mean(first, second, third), dtype=np.float64), first)
            return np.where(possible, value, -np.inf)

    def check(self, y: ArrayLike, trials: ArrayLike | None = None) -> tuple[Mask, str] | None:
        """The rows whose response the family cannot produce, and a sentence that says what it can produce.

        None if all rows are well.

        Examples
        --------
        >>> from partialpool.spec.families import Poisson
        >>> Poisson().check([0.0, 1.5, 2.0])
        (array([False,  True, False]), 'counts are whole numbers of at least 0')
        """
        response = as_array(y)
        with np.errstate(all="ignore"):
            for bad, sentence in self._troubles(response, None if trials is None else as_array(trials)):
                if bad.any():
                    return np.broadcast_to(bad, response.shape).copy(), sentence
        return None

    # ---- what a family fills in --------------------------------------------------------------------------------

    def _constant(self, y: Array, trials: Array) -> Array:
        return np.zeros(np.broadcast_shapes(y.shape, trials.shape))

    def _mean(self, eta0: Array, eta1: Array, eta2: Array) -> Array:
        return self.inverse_link(eta0)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        raise NotImplementedError

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        raise NotImplementedError

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        raise NotImplementedError

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        raise NotImplementedError

    def _possible(self, mu: Array, eta0: Array) -> Mask:
        """Where a predictor gives a mean that the family can have."""
        if self.link in ("identity", "inverse") and self.links != ("identity",):
            return np.asarray(eta0 > 0.0)
        return np.ones(mu.shape, dtype=np.bool_)

    def _refuse_impossible(self, mu: Array, eta0: Array) -> None:
        bad = ~self._possible(mu, eta0)
        if bad.any():
            where = int(np.flatnonzero(bad)[0])
            raise ModelError(
                f"The {self.link} link gives an impossible mean: the linear predictor is {eta0.flat[where]:g} at row "
                f"{where} (counting from 0), and the mean of {self.name} is positive. Use link='log'."
            )


# --------------------------------------------------------------------------------------------------------------------
# Shared by the kinds
# --------------------------------------------------------------------------------------------------------------------


def as_array(values: ArrayLike) -> Array:
    """`values` as float64."""
    return np.asarray(values, dtype=np.float64)


def trials_of(like: Array, trials: ArrayLike | None) -> Array:
    """The trials, one each by default."""
    return np.ones(like.shape) if trials is None else as_array(trials)


def count_troubles(y: Array) -> list[tuple[Mask, str]]:
    """Where a response is not a count."""
    bad = ~(np.isfinite(y) & (y >= 0.0) & (y == np.floor(y)))
    return [(bad, "counts are whole numbers of at least 0")]


def positive_troubles(y: Array, name: str) -> list[tuple[Mask, str]]:
    """Where a response is not positive."""
    return [(~(np.isfinite(y) & (y > 0.0)), f"a response of family {name} is greater than 0")]


def real_troubles(y: Array, name: str) -> list[tuple[Mask, str]]:
    """Where a response is not a finite number."""
    return [(~np.isfinite(y), f"a response of family {name} is a finite number")]


def through_mean(log_mean: Helper, value: Helper, core: Helper) -> Helpers:
    """The helpers of a family with a positive mean, from those in its log.

    Parameters
    ----------
    log_mean : helper
        eta -> (log of the mean, its two derivatives); see `links.log_mean`.
    value, core : helper
        (log of the mean, eta1, y) -> log density; -> (value, g0, g1, h00, h01, h11).
    """

    @helper
    def log_density(e0: float, e1: float, e2: float, y: float, t: float) -> float:
        m, _, _ = log_mean(e0)
        if m == -np.inf:
            return -np.inf
        return float(value(m, e1, y))

    @helper
    def derivatives(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
        m, first, second = log_mean(e0)
        if m == -np.inf:
            return -np.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        v, g0, g1, h00, h01, h11 = core(m, e1, y)
        return v, g0 * first, g1, 0.0, h00 * first * first + g0 * second, h01 * first, h11

    return Helpers(log_density, derivatives)


def through_log(value: Helper, core: Helper) -> Helpers:
    """As `through_mean` under the log link, without the products by 1."""

    @helper
    def log_density(e0: float, e1: float, e2: float, y: float, t: float) -> float:
        return float(value(clamped(e0, LARGEST_EXPONENT), e1, y))

    @helper
    def derivatives(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
        v, g0, g1, h00, h01, h11 = core(clamped(e0, LARGEST_EXPONENT), e1, y)
        return v, g0, g1, 0.0, h00, h01, h11

    return Helpers(log_density, derivatives)


def log_rising_rows(a: Array, log_a: Array, y: Array) -> Array:
    """log(a (a + 1) ... (a + y - 1) / a^y) without cancellation, by Stirling's formula where a is large.

    Examples
    --------
    >>> round(float(np.exp(log_rising_rows(np.array(2.0), np.log(2.0), np.array(3.0)))), 12)
    3.0
    """
    from scipy.special import gammaln

    with np.errstate(all="ignore"):
        top = a + y
        x = y / a
        curved = np.where(np.abs(x) < 1e-5, -0.5 * x * x + x * x * x / 3.0, np.log1p(x) - x)
        far = a * curved + (y - 0.5) * (curved + x)
        far = far + (1.0 / top - 1.0 / a) / 12.0 - (top**-3 - a**-3) / 360.0
        # gamma(a) is gamma(1 + a) / a: so that nothing is lost where a underflows.
        near = gammaln(top) - gammaln(1.0 + a) + log_a - y * log_a
        return np.asarray(np.where(y == 0.0, 0.0, np.where(a > 300.0, far, near)), dtype=np.float64)
