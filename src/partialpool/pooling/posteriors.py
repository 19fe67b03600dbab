r"""The units' posterior in closed form given each node of the hyperparameters, mixed over the nodes.

Given the hyperparameters units are independent, and for conjugate populations each is of its population's kind:

.. math::
   \theta_j \mid y &\sim N(B_j m_j + (1 - B_j) y_j,\; B_j \tau^2), \quad B_j = s_j^2 / (s_j^2 + \tau^2) \\
   \theta_j \mid y &\sim \mathrm{Beta}(\alpha + y_j, \beta + n_j - y_j) \\
   \theta_j \mid y &\sim \mathrm{Gamma}(a + y_j, b + E_j)

Nothing of size nodes x units is kept: every question works through pieces of units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from partialpool.algebra.incomplete import beta_mixture, beta_mixture_cdfs, gamma_mixture, gamma_mixture_cdfs
from partialpool.algebra.mixture import mixture_summary
from partialpool.algebra.unitsums import normal_moments

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Numbers (nodes x units) held at a time.
BLOCK = 2_000_000
#: The quantiles of the table.
TABLE = np.array([0.05, 0.95])
#: Above so many nodes x units a mixture's quantiles are those of one distribution with its mean and sd, where that has
#: been measured to be as good: on so many units, within so many posterior sds.
LARGE, PROBED, CLOSE = 200_000, 256, 1e-4


class UnitPosterior(Protocol):
    """The posterior of all units' parameters theta, on their natural scale, mixed over nodes of the hyperparameters."""

    @property
    def n_units(self) -> int:
        """How many units there are, J."""
        ...

    @property
    def node_weights(self) -> Array:
        """Weights of the nodes, (K,); they sum to 1."""
        ...

    @property
    def threads(self) -> int:
        """Cores that its methods use."""
        ...

    def moments(self) -> tuple[Array, Array]:
        """Mean and sd, (J,) each."""
        ...

    def quantiles(self, probabilities: Array, units: Ints | None = None) -> Array:
        """(Q, J')."""
        ...

    def cdf(self, x: float | Array, units: Ints | None = None) -> Array:
        """P(theta_j <= x), (J',); x is a number or (J',)."""
        ...

    def atom(self, x: float | None = None, units: Ints | None = None) -> Array:
        """P(theta_j = x), (J',): 0 unless the population has a point mass there; where x is None, at any point."""
        ...

    def draws(self, nodes: Ints, rng: np.random.Generator, units: Ints | None = None) -> Array:
        """One joint draw of the units for each node named, (n, J')."""
        ...

    def shrinkage(self) -> Array:
        """The share of each unit's estimate that comes from the population, (J,), from 0 to 1."""
        ...


class InPieces:
    """What the posteriors share that work through pieces of units.

    Attributes
    ----------
    quantile_error : the largest error measured in a quantile of the table, in posterior sds; 0 where exact.
    """

    n_units: int
    node_weights: Array
    threads: int = 1
    quantile_error: float = 0.0

    def atom(self, x: float | None = None, units: Ints | None = None) -> Array:
        """See `UnitPosterior`: there are no points."""
        return np.zeros(self.n_units if units is None else len(units))

    def parts(self, units: Ints | None, width: int) -> list[slice]:
        """Positions within `units` (all by default) in parts of about `BLOCK` numbers, each unit taking `width`."""
        count = self.n_units if units is None else len(units)
        size = max(1, BLOCK // max(width, 1))
        return [slice(low, min(low + size, count)) for low in range(0, count, size)]

    def over_parts(self, units: Ints | None, width: int, work: Callable[[slice], Array]) -> Array:
        """The results of `work` on parts, (..., units in the part), side by side."""
        parts = self.parts(units, width)
        if not parts:
            return work(slice(0, 0))
        if self.threads > 1 and len(parts) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                return np.concatenate(list(pool.map(work, parts)), axis=-1)
        return np.concatenate([work(part) for part in parts], axis=-1)

    def gather(self, units: Ints | None, width: int, work: Callable[[Ints | slice], Array]) -> Array:
        """The same where `work` takes the units of a part instead of their positions."""
        return self.over_parts(units, width, lambda part: work(part if units is None else units[part]))

    def probed(self) -> Ints:
        """Units on which an approximation is measured: evenly spaced."""
        return np.unique(np.linspace(0, self.n_units - 1, PROBED).round().astype(np.int64))


class NormalPosterior(InPieces):
    """Normal posteriors around a regression whose coefficients are normal given each node.

    Parameters
    ----------
    y, variance : (J,); X : (J, p), or None for a single mean.
    tau2 : (K,); means : (K, p) and covariance : (K, p, p) of the coefficients given the node; weights : (K,).
    """

    def __init__(
        self, y: Array, variance: Array, X: Array | None, tau2: Array, means: Array, covariance: Array, weights: Array,
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.y, self.variance, self.X = y, variance, X
        self.tau2, self.means, self.covariance = tau2, means, covariance
        self.node_weights, self.threads = weights, threads
        self.n_units = y.size

    def _given(self, piece: Ints | slice) -> tuple[Array, Array, Array]:
        """Mean and variance given each node, (K, J'), and the share B of the population."""
        y, v = self.y[piece], self.variance[piece]
        share = v / (v + self.tau2[:, None])
        if self.X is None:
            location, spread = self.means[:, :1], self.covariance[:, 0]
        else:
            X = self.X[piece]
            location = self.means @ X.T
            spread = np.einsum("jp,kpq,jq->kj", X, self.covariance, X)
        # from the population's side, so that units are exactly alike where it has no spread
        own = self.tau2[:, None] / (v + self.tau2[:, None])
        mean = location + own * (y - location)
        return mean, own * v + share * share * spread, share

    @cached_property
    def _table(self) -> tuple[Array, Array, float]:
        """Mean, sd and shrinkage (3, J), the quantiles of the table (2, J), and their measured error."""
        width = 8 if self.X is None else self.tau2.size
        moments = self.gather(None, width, self._moments)
        if self.tau2.size * self.n_units > LARGE:
            z = np.array([NormalDist().inv_cdf(p) for p in TABLE])[:, None]
            probed = self.probed()
            exact = self._exact(TABLE, probed)
            close = moments[0, probed] + z * moments[1, probed]
            error = float((np.abs(exact - close) / np.maximum(moments[1, probed], 1e-300)).max())
            if error <= CLOSE:
                return moments, moments[0] + z * moments[1], error
        return moments, self._exact(TABLE, None), 0.0

    def _moments(self, piece: Ints | slice) -> Array:
        """Mean, sd and shrinkage, (3, J')."""
        if self.X is None and isinstance(piece, slice):
            out = np.empty((3, self.y[piece].size))
            location, spread = np.ascontiguousarray(self.means[:, 0]), np.ascontiguousarray(self.covariance[:, 0, 0])
            normal_moments(self.y[piece], self.variance[piece], self.tau2, location, spread, self.node_weights, out)
            return out
        mean, variance, share = self._given(piece)
        centre = self.node_weights @ mean
        sd = np.sqrt(self.node_weights @ (variance + (mean - centre) ** 2))
        return np.stack([centre, sd, self.node_weights @ share])

    def _exact(self, probabilities: Array, units: Ints | None) -> Array:
        def work(piece: Ints | slice) -> Array:
            mean, variance, _ = self._given(piece)
            return mixture_summary(self.node_weights, mean, np.sqrt(variance), probabilities)[2]

        return self.gather(units, self.tau2.size, work)

    def moments(self) -> tuple[Array, Array]:
        """See `UnitPosterior`."""
        return self._table[0][0], self._table[0][1]

    @property
    def quantile_error(self) -> float:  # type: ignore[override]
        """See `UnitPosterior`."""
        return self._table[2]

    def quantiles(self, probabilities: Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        if probabilities.shape == TABLE.shape and np.array_equal(probabilities, TABLE):
            return self._table[1] if units is None else self._table[1][:, units]
        return self._exact(probabilities, units)

    def cdf(self, x: float | Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        places = np.broadcast_to(x, (self.n_units if units is None else len(units),))

        def work(part: Ints | slice) -> Array:
            piece = part if units is None else units[part]
            mean, variance, _ = self._given(piece)
            sd = np.sqrt(variance)
            with np.errstate(divide="ignore", invalid="ignore"):
                z = np.where(sd > 0, (places[part] - mean) / sd, np.where(places[part] >= mean, np.inf, -np.inf))
            return np.asarray(self.node_weights @ ndtr(z))

        return self.over_parts(units, self.tau2.size, work)

    def coefficient_draws(self, nodes: Ints, rng: np.random.Generator) -> Array:
        """One draw of the coefficients for each node named, (n, p)."""
        p = self.means.shape[1]
        roots = np.linalg.cholesky(self.covariance + 1e-300 * np.eye(p)) if self.covariance.any() else self.covariance
        return np.asarray(
            self.means[nodes] + np.einsum("npq,nq->np", roots[nodes], rng.standard_normal((len(nodes), p)))
        )

    def draws(
        self, nodes: Ints, rng: np.random.Generator, units: Ints | None = None, coefficients: Array | None = None
    ) -> Array:
        """See `UnitPosterior`; the units of a draw share its coefficients, drawn here unless they are given."""
        if coefficients is None:
            coefficients = self.coefficient_draws(nodes, rng)
        piece: Ints | slice = slice(None) if units is None else units
        y, v = self.y[piece], self.variance[piece]
        location = coefficients[:, :1] if self.X is None else coefficients @ self.X[piece].T
        tau2 = self.tau2[nodes][:, None]
        share = v / (v + tau2)
        out = rng.standard_normal((len(nodes), y.size))
        out *= np.sqrt(share * tau2)
        out += location + tau2 / (v + tau2) * (y - location)
        return out

    def atom(self, x: float | None = None, units: Ints | None = None) -> Array:
        """See `UnitPosterior`: units lie on their mean where neither the population nor its mean has any spread."""
        if (self.tau2 > 0).all():
            return super().atom(x, units)

        def work(part: slice) -> Array:
            mean, variance, _ = self._given(part if units is None else units[part])
            return np.asarray(self.node_weights @ ((variance == 0) & ((mean == x) | (x is None))))

        return self.over_parts(units, self.tau2.size, work)

    def shrinkage(self) -> Array:
        """See `UnitPosterior`."""
        return np.asarray(self._table[0][2])


class _ConjugatePosterior(InPieces, ABC):
    """What beta and gamma posteriors share: two parameters a and b given each node, to which the data are added."""

    y: Array
    size: Array
    location: Array  # (K, 1) or (K, J), on the link scale

    @abstractmethod
    def _prior(self, piece: Ints | slice, nodes: Any = slice(None)) -> tuple[Array, Array]:
        """The population's two parameters given the nodes, (K,) or (K, J') each."""

    @abstractmethod
    def _mixture(self, piece: Ints | slice, probabilities: Array) -> tuple[Array, Array, Array, float]:
        """Means, sds, quantiles and their measured error."""

    @cached_property
    def _table(self) -> tuple[Array, Array, Array, float]:
        return self._mixture(slice(None), TABLE)

    @property
    def quantile_error(self) -> float:  # type: ignore[override]
        """See `UnitPosterior`."""
        return self._table[3]

    def moments(self) -> tuple[Array, Array]:
        """See `UnitPosterior`."""
        return self._table[0], self._table[1]

    def quantiles(self, probabilities: Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        if probabilities.shape == TABLE.shape and np.array_equal(probabilities, TABLE):
            return self._table[2] if units is None else self._table[2][:, units]
        return self._mixture(slice(None) if units is None else units, probabilities)[2]


def _columns(values: Array) -> Array:
    """(K,) as a column."""
    return values[:, None] if values.ndim == 1 else values


class BetaPosterior(_ConjugatePosterior):
    """Beta posteriors of probabilities.

    Parameters
    ----------
    y, n : (J,); eta : (K, 1) or (K, J), logits of the population's mean; log_size : (K,), logs of alpha + beta.
    """

    def __init__(self, y: Array, n: Array, eta: Array, log_size: Array, weights: Array, threads: int = 1) -> None:
        self.y, self.size, self.location = y, n, eta
        self.log_size = log_size
        self.node_weights, self.threads, self.n_units = weights, threads, y.size

    def _prior(self, piece: Ints | slice, nodes: Any = slice(None)) -> tuple[Array, Array]:
        eta = self.location[nodes] if self.location.shape[1] == 1 else self.location[nodes][:, piece]
        # where units do not differ at all, alpha + beta is infinite; 1e14 leaves an sd of 1e-7
        size = np.exp(np.minimum(self.log_size[nodes], np.log(1e14)))[:, None]
        a, b = size / (1 + np.exp(-eta)), size / (1 + np.exp(eta))
        return (a[:, 0], b[:, 0]) if self.location.shape[1] == 1 else (a, b)

    def _mixture(self, piece: Ints | slice, probabilities: Array) -> tuple[Array, Array, Array, float]:
        a, b = self._prior(piece)
        y, n = np.ascontiguousarray(self.y[piece]), np.ascontiguousarray(self.size[piece])
        return beta_mixture(self.node_weights, a, b, y, n, probabilities, threads=self.threads)

    def cdf(self, x: float | Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        piece: Ints | slice = slice(None) if units is None else units
        y, n = np.ascontiguousarray(self.y[piece]), np.ascontiguousarray(self.size[piece])
        a, b = self._prior(piece)
        places = np.clip(np.broadcast_to(np.asarray(x, dtype=float), y.shape), 0.0, 1.0)
        return beta_mixture_cdfs(self.node_weights, a, b, y, n, places, threads=self.threads)

    def draws(self, nodes: Ints, rng: np.random.Generator, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        piece: Ints | slice = slice(None) if units is None else units
        a, b = map(_columns, self._prior(piece, nodes))
        y, n = self.y[piece], self.size[piece]
        return rng.beta(a + y, b + (n - y))

    def shrinkage(self) -> Array:
        """See `UnitPosterior`: (alpha + beta) / (alpha + beta + n)."""
        size = np.exp(np.minimum(self.log_size, 690.0))[:, None]

        def work(piece: Ints | slice) -> Array:
            return np.asarray(self.node_weights @ (size / (size + self.size[piece])))

        return self.gather(None, self.log_size.size, work)


class GammaPosterior(_ConjugatePosterior):
    """Gamma posteriors of rates.

    Parameters
    ----------
    y, exposure : (J,); log_mean : (K, 1) or (K, J), of the population; log_shape : (K,).
    """

    def __init__(
        self, y: Array, exposure: Array, log_mean: Array, log_shape: Array, weights: Array, threads: int = 1
    ) -> None:
        self.y, self.size, self.location = y, exposure, log_mean
        self.log_shape = np.minimum(log_shape, np.log(1e14))
        self.node_weights, self.threads, self.n_units = weights, threads, y.size

    def _prior(self, piece: Ints | slice, nodes: Any = slice(None)) -> tuple[Array, Array]:
        log_mean = self.location[nodes] if self.location.shape[1] == 1 else self.location[nodes][:, piece]
        log_shape = self.log_shape[nodes]
        rate = np.exp(log_shape[:, None] - log_mean)
        if self.location.shape[1] == 1:
            return np.exp(log_shape), rate[:, 0]
        return np.broadcast_to(np.exp(log_shape)[:, None], rate.shape).copy(), rate

    def _mixture(self, piece: Ints | slice, probabilities: Array) -> tuple[Array, Array, Array, float]:
        shape, rate = self._prior(piece)
        y, exposure = np.ascontiguousarray(self.y[piece]), np.ascontiguousarray(self.size[piece])
        return gamma_mixture(self.node_weights, shape, rate, y, exposure, probabilities, threads=self.threads)

    def cdf(self, x: float | Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        piece: Ints | slice = slice(None) if units is None else units
        y, exposure = np.ascontiguousarray(self.y[piece]), np.ascontiguousarray(self.size[piece])
        shape, rate = self._prior(piece)
        places = np.maximum(np.broadcast_to(np.asarray(x, dtype=float), y.shape), 0.0)
        return gamma_mixture_cdfs(self.node_weights, shape, rate, y, exposure, places, threads=self.threads)

    def draws(self, nodes: Ints, rng: np.random.Generator, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        piece: Ints | slice = slice(None) if units is None else units
        shape, rate = map(_columns, self._prior(piece, nodes))
        return rng.standard_gamma(shape + self.y[piece]) / (rate + self.size[piece])

    def shrinkage(self) -> Array:
        """See `UnitPosterior`: b / (b + E)."""

        def work(piece: Ints | slice) -> Array:
            rate = _columns(self._prior(piece)[1])
            return np.asarray(self.node_weights @ (rate / (rate + self.size[piece])))

        return self.gather(None, self.node_weights.size, work)


class DiscretePosterior(InPieces):
    """Posteriors over finitely many places: those of a non-parametric population.

    Parameters
    ----------
    log_likelihood : callable on a piece of units, giving log f(y_j | place), (G, J').
    own_variance : callable on theta (J,), giving the variance of each unit's own estimate of it.
    places : (G,), increasing; masses : (G,), of the population.
    """

    def __init__(
        self, n_units: int, log_likelihood: Callable[[Ints | slice], Array], own_variance: Callable[[Array], Array],
        places: Array, masses: Array, threads: int = 1,
    ) -> None:  # fmt: skip
        self.n_units, self._log_likelihood, self.own_variance = n_units, log_likelihood, own_variance
        self.places, self.masses, self.threads = places, masses, threads
        self.node_weights = np.ones(1)

    def _probabilities(self, piece: Ints | slice) -> Array:
        """(G, J')."""
        logs = self._log_likelihood(piece) + np.log(self.masses)[:, None]
        weights = np.exp(logs - logs.max(axis=0))
        return np.asarray(weights / weights.sum(axis=0))

    def _work(self, units: Ints | None, function: Callable[[Array], Array]) -> Array:
        return self.gather(units, 3 * self.places.size, lambda piece: function(self._probabilities(piece)))

    @cached_property
    def _moments(self) -> Array:
        def work(probabilities: Array) -> Array:
            mean = self.places @ probabilities
            return np.stack([mean, np.sqrt(np.einsum("gj,gj->j", probabilities, (self.places[:, None] - mean) ** 2))])

        return self._work(None, work)

    def moments(self) -> tuple[Array, Array]:
        """See `UnitPosterior`."""
        return self._moments[0], self._moments[1]

    def quantiles(self, probabilities: Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`: the first place at which the distribution function reaches the probability."""

        def work(shares: Array) -> Array:
            below = np.cumsum(shares, axis=0)
            rows = [np.argmax(below >= p * (1 - 1e-12), axis=0) for p in probabilities]
            return np.asarray(self.places[np.stack(rows)])

        return self._work(units, work)

    def cdf(self, x: float | Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        if np.ndim(x) == 0:
            return self._work(units, lambda shares: np.asarray((self.places <= x) @ shares))
        count = self.n_units if units is None else len(units)
        places = np.broadcast_to(x, (count,))

        def work(part: slice) -> Array:
            shares = self._probabilities(part if units is None else units[part])
            return np.asarray((shares * (self.places[:, None] <= places[part])).sum(axis=0))

        return self.over_parts(units, 3 * self.places.size, work)

    def atom(self, x: float | None = None, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        return self._work(units, lambda shares: np.asarray(((self.places == x) | (x is None)) @ shares))

    def draws(self, nodes: Ints, rng: np.random.Generator, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        count = self.n_units if units is None else len(units)
        out = np.empty((len(nodes), count))
        at = 0
        for part in self.parts(units, max(3 * self.places.size, len(nodes))):
            below = np.cumsum(self._probabilities(part if units is None else units[part]), axis=0)
            for column in below.T:
                picked = np.searchsorted(column, rng.random(len(nodes)) * column[-1], side="right")
                out[:, at] = self.places[np.minimum(picked, self.places.size - 1)]
                at += 1
        return out

    def shrinkage(self) -> Array:
        """See `UnitPosterior`: 1 less the posterior variance over that of the unit's own estimate."""
        return np.clip(1.0 - self.moments()[1] ** 2 / self.own_variance(self.moments()[0]), 0.0, 1.0)
