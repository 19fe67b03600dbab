r"""Populations for which events and counts integrate out in closed form: beta and gamma.

Events are beta-binomial, counts negative binomial. With mean m these are written by what they add to their limits, the
binomial and the Poisson, so that no digit is lost where units hardly differ:

.. math::
   \log p(y \mid m, M) &= \log\binom{n}{y} + y \log m + (n - y) \log(1 - m)
       + r(M m, y) + r(M (1 - m), n - y) - r(M, n) \\
   \log p(y \mid m, a) &= y \log(E m) - \log y! + r(a, y) - (y + a) \log(1 + E m / a)

with M = alpha + beta, a the gamma's shape and :math:`r(a, y) = \log[a (a+1) \cdots (a+y-1) / a^y]`, which is 0 in the
limit (`partialpool.algebra.special.rising`). Without covariates the beta-binomial needs only how often each number of
events, of non-events and of trials occurs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from partialpool.algebra.unitpass import legendre
from partialpool.algebra.unitsums import add_beta_binomial, add_exposed, add_rising, in_pieces
from partialpool.pooling.bounds import from_line, log_slope, to_line
from partialpool.pooling.hyperpriors import HyperPriors, link_scale
from partialpool.pooling.models import PopulationModel, wanted, without_limit
from partialpool.pooling.posteriors import BetaPosterior, GammaPosterior
from partialpool.pooling.shapes import BetaShape, GammaShape, log_binomial, to_natural
from partialpool.pooling.units import Units

Array = NDArray[np.float64]


class _MeanModel(PopulationModel):
    """What beta and gamma models share: coordinates within the bounds of the priors of mean and sd.

    Plain coordinates are the mean on the link scale (or the coefficients) and the log of the spread relative to the
    mean. x is the same, unless a prior has bounds: then it is where the mean and the sd lie between them.
    """

    #: A first guess of the spread relative to the mean.
    guess: float

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1, likelihood_alone: bool = False) -> None:
        super().__init__(units, priors, threads, likelihood_alone)
        p = 1 if units.X is None else units.X.shape[1]
        self.d = p + 1
        self.sd_at = p
        self.start, self.spread = np.zeros(self.d), np.full(self.d, 0.5)
        self.start[0] = link_scale(units)[0]
        self.start[-1] = math.log(self.guess)
        if units.X is not None:  # slopes have the units of one over their covariate
            self.spread[1:-1] /= np.std(units.X[:, 1:], axis=0)
        if self.mean_bounds is not None:
            self._start_within(self.mean_bounds)

    @cached_property
    def mean_bounds(self) -> tuple[float, float] | None:
        """Ends of the support of the mean's prior where they, or the sd's, are narrower than need be; else None."""
        if self.likelihood_alone or self.units.X is not None:
            return None
        whole = (0.0, 1.0) if self.kind == "beta" else (0.0, math.inf)
        ends = whole if self.priors.bda else self.priors["mean"].support
        ends = (max(ends[0], whole[0]), min(ends[1], whole[1]))
        tight = "sd" in self.priors and self.priors["sd"].support != (0.0, math.inf)
        return ends if ends != whole or tight else None

    @abstractmethod
    def largest_sd(self, mean: Array) -> Array:
        """The largest sd that a population of this mean can have."""

    @abstractmethod
    def relative(self, mean: Array, sd: Array) -> tuple[Array, Array]:
        """Plain log spread, and the log of its derivative in the sd."""

    @abstractmethod
    def link_of(self, mean: Array) -> tuple[Array, Array]:
        """The mean on the link scale, and the log of its derivative."""

    def plain(self, x: Array) -> Array:
        """Plain coordinates (K, d)."""
        return self._plain(x)[0]

    def _plain(self, x: Array) -> tuple[Array, Array]:
        """Plain coordinates, and the log of the determinant of their derivatives (K,)."""
        if self.mean_bounds is None:
            return x, np.zeros(len(x))
        mean = from_line(x[:, 0], *self.mean_bounds)
        linked, slope = self.link_of(mean)
        z, total = np.array(x), slope + log_slope(x[:, 0], *self.mean_bounds)
        z[:, 0] = linked
        if "sd" in self.priors:
            low, high = self.priors["sd"].support
            top = np.minimum(high, self.largest_sd(mean))
            sd = from_line(x[:, 1], low, top)
            z[:, 1], own = self.relative(mean, sd)
            total = total + own + log_slope(x[:, 1], low, top)
        return z, np.asarray(total)

    def _start_within(self, bounds: tuple[float, float]) -> None:
        """Move the start, plain so far, to where x lies between bounds."""
        guess = float(to_natural(self.units.family, self.start[0]))
        self.start[0] = to_line(guess, *bounds)
        mean = from_line(self.start[:1], *bounds)
        if "sd" in self.priors:
            low, high = self.priors["sd"].support
            largest = float(self.largest_sd(mean)[0])
            unit = float(mean[0]) if math.isinf(largest) else largest
            self.start[1] = to_line(self.guess * unit, low, min(high, largest))

    def log_likelihood(self, x: Array) -> Array:
        """See `PopulationModel`."""
        return self.plain_likelihood(self.plain(x))

    def log_prior(self, x: Array) -> Array:
        """See `PopulationModel`."""
        z, slope = self._plain(x)
        return np.asarray(self.plain_prior(z) + slope)

    @abstractmethod
    def plain_likelihood(self, z: Array) -> Array:
        """log p(y | plain coordinates), (K,)."""

    @abstractmethod
    def plain_prior(self, z: Array) -> Array:
        """Log prior density of plain coordinates (K,)."""


class BetaModel(_MeanModel):
    """Events in trials around a beta population. Plainly x is (logit m, log s) with s = (alpha + beta)^(-1/2).

    With covariates logit m is a regression and x starts with its coefficients.
    """

    kind = "beta"
    guess = 0.2

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1, likelihood_alone: bool = False) -> None:
        super().__init__(units, priors, threads, likelihood_alone)
        self.constant = float(np.sum(log_binomial(units.size, units.y)))
        self._tables = [_counted(values) for values in (units.y, units.size - units.y, units.size)]
        self.events, self.failures = float(units.y.sum()), float((units.size - units.y).sum())

    def largest_sd(self, mean: Array) -> Array:
        """See `_MeanModel`."""
        return np.sqrt(mean * (1 - mean))

    def link_of(self, mean: Array) -> tuple[Array, Array]:
        """See `_MeanModel`."""
        return np.log(mean) - np.log1p(-mean), -np.log(mean) - np.log1p(-mean)

    def relative(self, mean: Array, sd: Array) -> tuple[Array, Array]:
        """See `_MeanModel`: log s from r = sd / sqrt(m (1 - m)), s = r / sqrt(1 - r^2)."""
        r = np.minimum(sd / self.largest_sd(mean), 1 - 1e-16)
        rest = np.log1p(-r * r)
        return np.log(r) - 0.5 * rest, -np.log(r) - rest - np.log(self.largest_sd(mean))

    def plain_likelihood(self, x: Array) -> Array:
        """See `_MeanModel`."""
        log_size = -2 * x[:, -1]
        if self.units.X is not None:
            eta = np.ascontiguousarray(self.locations(x[:, :-1]))
            out = np.zeros(len(x))
            add_beta_binomial(self.units.y, self.units.size, eta, np.ascontiguousarray(log_size), out)
            return np.asarray(self.constant + out)
        log_p, log_q = -np.logaddexp(0, -x[:, 0]), -np.logaddexp(0, x[:, 0])
        total = self.constant + self.events * log_p + self.failures * log_q
        for sign, own, (values, counts) in zip((1, 1, -1), (log_p, log_q, 0 * log_p), self._tables, strict=True):
            out = np.zeros(len(x))
            log_a = np.ascontiguousarray(log_size + own)
            add_rising(log_a, values, counts, (~(log_a < 300)).astype(float), out)
            total = total + sign * out
        return np.asarray(total)

    def plain_prior(self, x: Array) -> Array:
        """See `_MeanModel`."""
        log_s = x[:, -1]
        # the sd in units of sqrt(m (1 - m)) is r = (alpha + beta + 1)^(-1/2) = s / sqrt(1 + s^2)
        log_r = log_s - 0.5 * np.log1p(np.exp(2 * log_s))
        slope = log_s - 1.5 * np.log1p(np.exp(2 * log_s))  # log dr / d log s
        if self.units.X is not None:
            return self.coefficient_priors(x[:, :-1]) + self._spread_prior(log_r, slope, np.zeros(len(x)))
        log_p, log_q = -np.logaddexp(0, -x[:, 0]), -np.logaddexp(0, x[:, 0])
        jacobian = log_p + log_q
        if self.priors.bda:  # flat in m and in s
            return np.asarray(jacobian + log_s)
        mean = self.priors["mean"].log_density(np.exp(log_p)) + jacobian
        return np.asarray(mean + self._spread_prior(log_r, slope, 0.5 * jacobian) - self._log_share)

    def _spread_prior(self, log_r: Array, slope: Array, log_largest: Array) -> Array:
        if "relative_sd" in self.priors:
            return self.priors["relative_sd"].log_density(np.exp(log_r)) + slope
        return self.priors["sd"].log_density(np.exp(log_r + log_largest)) + slope + log_largest

    @cached_property
    def _log_share(self) -> float:
        """Log of the share of the prior of (mean, sd) that a beta distribution can have: sd^2 < mean (1 - mean)."""
        if "sd" not in self.priors or not self.priors.proper:
            return 0.0
        t, w = legendre(200)
        low, high = max(self.priors["mean"].support[0], 0.0), min(self.priors["mean"].support[1], 1.0)
        mean = from_line(14 * t, low, high)
        heights = np.exp(self.priors["mean"].log_density(mean) + log_slope(14 * t, low, high))
        bottom, top = self.priors["sd"].support
        reach = np.maximum(np.minimum(top, self.largest_sd(mean)) - bottom, 0.0)
        places = bottom + np.outer(0.5 * (t + 1), reach)
        inside = (w / 2) @ np.exp(self.priors["sd"].log_density(places)) * reach
        return float(np.log((w * heights) @ inside / (w @ heights)))

    def parameters(self, x: Array) -> dict[str, Array]:
        """See `PopulationModel`."""
        x = self.plain(x)
        log_s = x[:, -1]
        relative = np.exp(log_s - 0.5 * np.log1p(np.exp(2 * log_s)))
        size = without_limit(-2 * log_s)
        if self.units.X is not None:
            names = {name: x[:, i] for i, name in enumerate(self.units.x_names)}
            return {**names, "relative_sd": relative, "alpha+beta": size}
        mean, rest = to_natural("binomial", x[:, 0]), to_natural("binomial", -x[:, 0])
        return {"mean": mean, "sd": np.sqrt(mean * rest) * relative, "alpha": size * mean, "beta": size * rest}

    def likelihood_of(self, params: Mapping[str, float]) -> float:
        """See `PopulationModel`; by mean and sd, or alpha and beta."""
        if self.units.X is not None:
            values = wanted(params, (*self.units.x_names, "alpha+beta"))
            return float(self.plain_likelihood(np.array([[*values[:-1], -0.5 * math.log(values[-1])]]))[0])
        if "alpha" in params:
            a, b = wanted(params, ("alpha", "beta"))
        else:
            mean, sd = wanted(params, ("mean", "sd"))
            with np.errstate(divide="ignore"):
                size = np.float64(mean * (1 - mean)) / sd**2 - 1
            a, b = mean * size, (1 - mean) * size
            if math.isinf(size):
                return float(self.plain_likelihood(np.array([[math.log(mean / (1 - mean)), -np.inf]]))[0])
        return float(self.plain_likelihood(np.array([[math.log(a / b), -0.5 * math.log(a + b)]]))[0])

    def shape(self, x: Array, weights: Array, row: Array) -> BetaShape:
        """See `PopulationModel`."""
        x = self.plain(x)
        return BetaShape(weights, x[:, 0] if self.units.X is None else x[:, :-1] @ row, -2 * x[:, -1])

    @property
    def cost(self) -> int:
        """See `PopulationModel`."""
        return self.units.n if self.units.X is not None else sum(values.size for values, _ in self._tables)

    def posterior(self, x: Array, weights: Array) -> BetaPosterior:
        """See `PopulationModel`."""
        x = self.plain(x)
        eta = x[:, :1] if self.units.X is None else self.locations(x[:, :-1])
        return BetaPosterior(self.units.y, self.units.size, eta, -2 * x[:, -1], weights, threads=self.threads)


class GammaModel(_MeanModel):
    """Counts over exposures around a gamma population. Plainly x is (log m, log c), c = sd / mean = shape^(-1/2).

    With covariates log m is a regression and x starts with its coefficients.
    """

    kind = "gamma"
    guess = 0.4

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1, likelihood_alone: bool = False) -> None:
        super().__init__(units, priors, threads, likelihood_alone)
        with np.errstate(divide="ignore"):
            logs = np.where(units.y > 0, units.y * np.log(units.size), 0.0)
        self.constant = float(np.sum(logs - gammaln(units.y + 1)))
        self._table = _counted(units.y)
        self.events = float(units.y.sum())

    def largest_sd(self, mean: Array) -> Array:
        """See `_MeanModel`."""
        return np.full_like(mean, np.inf)

    def link_of(self, mean: Array) -> tuple[Array, Array]:
        """See `_MeanModel`."""
        return np.log(mean), -np.log(mean)

    def relative(self, mean: Array, sd: Array) -> tuple[Array, Array]:
        """See `_MeanModel`: the log of sd / mean."""
        return np.log(sd / mean), -np.log(sd)

    def plain_likelihood(self, x: Array) -> Array:
        """See `_MeanModel`."""
        units, log_a = self.units, np.ascontiguousarray(-2 * x[:, -1])
        infinite = ~(log_a < 300)
        inverse = np.where(infinite, 0.0, np.exp(np.minimum(-log_a, 690.0)))
        if units.X is None:
            log_mean = np.ascontiguousarray(x[:, :1])
            linear = self.events * x[:, 0]
        else:
            log_mean = np.ascontiguousarray(self.locations(x[:, :-1]))
            linear = log_mean @ units.y

        def add(piece: slice, out: Array) -> None:
            own = log_mean if units.X is None else np.ascontiguousarray(log_mean[:, piece])
            add_exposed(units.y[piece], units.size[piece], own, inverse, out)

        exposed = in_pieces(units.n, (len(x),), add, self.threads)
        rises = np.zeros(len(x))
        add_rising(log_a, *self._table, infinite.astype(float), rises)
        return np.asarray(self.constant + linear + rises - exposed)

    def plain_prior(self, x: Array) -> Array:
        """See `_MeanModel`."""
        log_c = x[:, -1]
        if self.units.X is not None:
            total, log_mean = self.coefficient_priors(x[:, :-1]), np.zeros(len(x))
        else:
            log_mean = x[:, 0]
            total = self.priors["mean"].log_density(np.exp(log_mean)) + log_mean
        if "relative_sd" in self.priors:
            return np.asarray(total + self.priors["relative_sd"].log_density(np.exp(log_c)) + log_c)
        log_sd = log_c + log_mean
        return np.asarray(total + self.priors["sd"].log_density(np.exp(log_sd)) + log_sd)

    def parameters(self, x: Array) -> dict[str, Array]:
        """See `PopulationModel`."""
        x = self.plain(x)
        relative = np.exp(x[:, -1])
        shape = without_limit(-2 * x[:, -1])
        if self.units.X is not None:
            names = {name: x[:, i] for i, name in enumerate(self.units.x_names)}
            return {**names, "relative_sd": relative, "shape": shape}
        mean = np.exp(x[:, 0])
        return {"mean": mean, "sd": mean * relative, "shape": shape, "rate": shape / mean}

    def likelihood_of(self, params: Mapping[str, float]) -> float:
        """See `PopulationModel`; by mean and sd, or shape and rate."""
        if self.units.X is not None:
            values = wanted(params, (*self.units.x_names, "shape"))
            return float(self.plain_likelihood(np.array([[*values[:-1], -0.5 * math.log(values[-1])]]))[0])
        if "shape" in params:
            shape, rate = wanted(params, ("shape", "rate"))
            return float(self.plain_likelihood(np.array([[math.log(shape / rate), -0.5 * math.log(shape)]]))[0])
        mean, sd = wanted(params, ("mean", "sd"))
        with np.errstate(divide="ignore"):
            return float(self.plain_likelihood(np.array([[math.log(mean), np.log(sd / mean)]]))[0])

    def shape(self, x: Array, weights: Array, row: Array) -> GammaShape:
        """See `PopulationModel`."""
        x = self.plain(x)
        return GammaShape(weights, x[:, 0] if self.units.X is None else x[:, :-1] @ row, -2 * x[:, -1])

    def posterior(self, x: Array, weights: Array) -> GammaPosterior:
        """See `PopulationModel`."""
        x = self.plain(x)
        log_mean = x[:, :1] if self.units.X is None else self.locations(x[:, :-1])
        return GammaPosterior(self.units.y, self.units.size, log_mean, -2 * x[:, -1], weights, threads=self.threads)


def _counted(values: Array) -> tuple[Array, Array]:
    """Distinct values above 1 (others rise to nothing) and how often each occurs."""
    distinct, counts = np.unique(values, return_counts=True)
    keep = distinct > 1
    return np.ascontiguousarray(distinct[keep]), counts[keep].astype(float)
