r"""Incomplete gamma and beta functions and their inverses for arrays; mixtures of gamma and beta distributions.

The posterior of a probability or a rate under a conjugate population is, at each node of the quadrature over the
hyperparameters, a beta or a gamma distribution; over the nodes it is their mixture

.. math:: F_j(x) = \sum_k w_k F(x; a_{kj}, b_{kj}),

whose moments are sums and whose quantiles are found by inversion. Where the hyperparameters are known so well that the
nodes hardly differ, the single distribution with the mixture's mean and variance has the same quantiles; that is not
assumed but measured. The functions themselves are in `partialpool.algebra.gamma_beta`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.gamma_beta import BETA, GAMMA, evaluate, log_constant, quantile, standard_cumulants, start
from partialpool.algebra.jit import helper, kernel
from partialpool.errors import ModelError

Array = NDArray[np.float64]

#: Above so many pairs of a unit and a node, the single distribution with the mixture's mean and sd may stand for it ...
MANY_PAIRS = 200_000
#: ... if at so many units, evenly spaced, its quantiles are no further from the mixture's than this share of the sd.
MEASURED_UNITS = 256
MATCH_TOLERANCE = 1e-4
#: Units are spread over threads in chunks of this many.
CHUNK = 4096


# --------------------------------------------------------------------------------------------------------------------
# Kernels over units. A unit's component k has parameters first[k, j] + add_first[j], second[k, j] + add_second[j]; a
# last axis of length 1 serves every unit. Each kernel does the units from `low` up to `high`.
# --------------------------------------------------------------------------------------------------------------------

_UNITS = "float64[::1], float64[:, ::1], float64[:, ::1], float64[::1], float64[::1]"


@helper
def components(
    kind: int, j: int, first: Array, second: Array, add_first: Array, add_second: Array, a: Array, b: Array, c: Array
) -> None:
    """Write the parameters of unit j's components into a and b, their `log_constant` into c.

    Examples
    --------
    >>> a, b, c = np.empty((3, 1))
    >>> components(BETA, 0, np.ones((1, 1)), np.ones((1, 1)), np.array([2.0]), np.array([3.0]), a, b, c)
    >>> float(a[0]), float(b[0])
    (3.0, 4.0)
    """
    left = add_first[j if add_first.size > 1 else 0]
    right = add_second[j if add_second.size > 1 else 0]
    for k in range(a.size):
        a[k] = first[k, j if first.shape[1] > 1 else 0] + left
        b[k] = second[k, j if second.shape[1] > 1 else 0] + right
        c[k] = log_constant(kind, a[k], b[k])


@kernel(f"void(int64, {_UNITS}, float64[:, ::1], float64[:, ::1], int64, int64, float64[:, ::1])")
def write_quantiles(
    kind: int,
    weights: Array,
    first: Array,
    second: Array,
    add_first: Array,
    add_second: Array,
    matched: Array,
    levels: Array,
    low: int,
    high: int,
    out: Array,
) -> None:
    """Write the quantiles of u (Q, J); `matched` (2, J) has the single distributions from which to start."""
    count = weights.size
    a, b, constants = np.empty(count), np.empty(count), np.empty(count)
    for j in range(low, high):
        components(kind, j, first, second, add_first, add_second, a, b, constants)
        near_a, near_b = matched[0, j], matched[1, j]
        constant = constants[0] if count == 1 else log_constant(kind, near_a, near_b)
        shape = standard_cumulants(kind, near_a, near_b)
        for i in range(levels.shape[0]):
            guess = start(kind, near_a, near_b, constant, shape, levels[i])
            out[i, j] = quantile(kind, weights, a, b, constants, levels[i], guess)


@kernel(f"void(int64, {_UNITS}, float64[::1], int64, int64, float64[:, ::1])")
def write_tails(
    kind: int,
    weights: Array,
    first: Array,
    second: Array,
    add_first: Array,
    add_second: Array,
    x: Array,
    low: int,
    high: int,
    out: Array,
) -> None:
    """Write the lower and the upper tail at x (2, J)."""
    count = weights.size
    a, b, constants = np.empty(count), np.empty(count), np.empty(count)
    for j in range(low, high):
        place = x[j if x.size > 1 else 0]
        w = place if kind == GAMMA else place / (1.0 - place)
        if place <= 0.0 or w == math.inf or (kind == BETA and place >= 1.0):
            out[0, j] = 0.0 if place <= 0.0 else 1.0
            out[1, j] = 1.0 if place <= 0.0 else 0.0
            continue
        components(kind, j, first, second, add_first, add_second, a, b, constants)
        lower = upper = 0.0
        for k in range(count):
            if weights[k] > 0.0:
                tails = evaluate(kind, a[k], b[k], constants[k], w)
                lower += weights[k] * tails[0]
                upper += weights[k] * tails[1]
        out[0, j] = lower
        out[1, j] = upper


@kernel(f"void(int64, {_UNITS}, int64, int64, float64[:, ::1])")
def write_moments(
    kind: int,
    weights: Array,
    first: Array,
    second: Array,
    add_first: Array,
    add_second: Array,
    low: int,
    high: int,
    out: Array,
) -> None:
    """Write mean, sd, and the two parameters of the single distribution that has them (4, J)."""
    for j in range(low, high):
        left = add_first[j if add_first.size > 1 else 0]
        right = add_second[j if add_second.size > 1 else 0]
        column = j if first.shape[1] > 1 else 0
        other = j if second.shape[1] > 1 else 0
        mean = rest = 0.0
        for k in range(weights.size):
            a = first[k, column] + left
            b = second[k, other] + right
            scale = weights[k] / (b if kind == GAMMA else a + b)
            mean += scale * a
            rest += scale * b
        variance = 0.0
        for k in range(weights.size):
            a = first[k, column] + left
            b = second[k, other] + right
            scale = 1.0 / (b if kind == GAMMA else a + b)
            centre = a * scale
            within = centre * scale if kind == GAMMA else centre * (b * scale) / (a + b + 1.0)
            variance += weights[k] * (within + (centre - mean) * (centre - mean))
        out[0, j] = mean
        out[1, j] = math.sqrt(variance)
        if kind == GAMMA:
            out[2, j] = mean * mean / variance
            out[3, j] = mean / variance
        else:
            total = max(mean * rest / variance - 1.0, 1e-12)
            out[2, j] = total * mean
            out[3, j] = total * rest


# --------------------------------------------------------------------------------------------------------------------
# What Python calls
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mixtures:
    """The arguments of the kernels: J mixtures of K gamma or beta distributions."""

    kind: int
    n_units: int
    threads: int
    weights: Array
    first: Array
    second: Array
    add_first: Array
    add_second: Array

    @property
    def arguments(self) -> tuple[int, Array, Array, Array, Array, Array]:
        return self.kind, self.weights, self.first, self.second, self.add_first, self.add_second

    def spread(self, work: Callable[[int, int], None]) -> None:
        """Call `work` on chunks of the units, which do not depend on the number of threads."""
        starts = range(0, self.n_units, CHUNK)
        ends = [min(start + CHUNK, self.n_units) for start in starts]
        if self.threads <= 1 or len(starts) <= 1:
            for low, high in zip(starts, ends, strict=True):
                work(low, high)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, starts, ends))

    def quantiles(self, matched: Array, levels: Array) -> Array:
        """Quantiles (Q, J), inverted from the distributions in `matched` (2, J)."""
        out = np.empty((len(levels), self.n_units))
        self.spread(lambda low, high: write_quantiles(*self.arguments, matched, levels, low, high, out))
        with np.errstate(over="ignore"):
            return np.exp(out) if self.kind == GAMMA else 1.0 / (1.0 + np.exp(-out))

    def tails(self, x: Array) -> Array:
        """Lower and upper tail at x (2, J)."""
        out = np.empty((2, self.n_units))
        self.spread(lambda low, high: write_tails(*self.arguments, x, low, high, out))
        return out

    def moments(self) -> Array:
        """Mean, sd and matched parameters (4, J)."""
        out = np.empty((4, self.n_units))
        self.spread(lambda low, high: write_moments(*self.arguments, low, high, out))
        return out

    def at(self, units: NDArray[np.int64]) -> _Mixtures:
        """The mixtures of some units."""

        def part(values: Array) -> Array:
            return np.ascontiguousarray(values[..., units]) if values.shape[-1] > 1 else values

        arrays = (self.first, self.second, self.add_first, self.add_second)
        return _Mixtures(self.kind, len(units), self.threads, self.weights, *map(part, arrays))

    def summary(self, levels: Array) -> tuple[Array, Array, Array, float]:
        """Mean, sd, quantiles and the measured error of the quantiles in units of the sd."""
        moments = self.moments()
        matched = np.ascontiguousarray(moments[2:])
        if self.weights.size > 1 and self.n_units * self.weights.size > MANY_PAIRS:
            single = _singles(self.kind, matched[0], matched[1], self.threads)
            quick = single.quantiles(matched, levels)
            chosen = np.unique(np.linspace(0, self.n_units - 1, MEASURED_UNITS).round().astype(np.int64))
            exact = self.at(chosen).quantiles(np.ascontiguousarray(matched[:, chosen]), levels)
            error = float((np.abs(quick[:, chosen] - exact) / moments[1, chosen]).max(initial=0.0))
            if error <= MATCH_TOLERANCE:
                return moments[0], moments[1], quick, error
        return moments[0], moments[1], self.quantiles(matched, levels), 0.0


def _singles(kind: int, first: Array, second: Array, threads: int) -> _Mixtures:
    """One distribution a unit."""
    nothing = np.zeros(1)
    return _Mixtures(kind, first.size, threads, np.ones(1), first[None, :], second[None, :], nothing, nothing)


def _mixtures(
    kind: int,
    weights: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    add_first: ArrayLike,
    add_second: ArrayLike,
    threads: int,
) -> _Mixtures:
    """Check and shape the arguments; parameters of the population are (K,) or (K, J)."""
    share = np.atleast_1d(np.asarray(weights, dtype=np.float64))
    if share.ndim != 1 or not (share >= 0.0).all() or not 0.0 < share.sum() < math.inf:
        raise ModelError("The weights of a mixture are a vector of numbers that are not negative, with a positive sum.")
    added = [np.atleast_1d(np.asarray(values, dtype=np.float64)) for values in (add_first, add_second)]
    own = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    own = [values[:, None] if values.ndim == 1 else np.atleast_2d(values) for values in own]
    n_units = max(values.shape[-1] for values in (*own, *added))
    fits = all(values.shape[-1] in (1, n_units) for values in (*own, *added))
    if not fits or any(values.shape[0] != share.size for values in own):
        raise ModelError("The parameters of a mixture have one row a weight, and one column a unit or a single one.")
    for values, more in zip(own, added, strict=True):
        least = (values.min(axis=0) + more).min(initial=math.inf)
        if not least > 0.0 or not np.isfinite(values).all() or not np.isfinite(more).all():
            raise ModelError("The parameters of gamma and beta distributions are positive and finite.")
    arrays = [np.ascontiguousarray(values) for values in (*own, *added)]
    return _Mixtures(kind, n_units, int(threads), share / share.sum(), *arrays)


def levels_of(probabilities: ArrayLike) -> Array:
    """Each probability p, 1 - p, its normal score and the polynomials of Cornish and Fisher's expansion (Q, 9).

    Examples
    --------
    >>> levels_of(0.5)[0, :3].tolist()
    [0.5, 0.5, 0.0]
    """
    p = np.atleast_1d(np.asarray(probabilities, dtype=np.float64))
    if p.ndim != 1 or not ((p > 0.0) & (p < 1.0)).all():
        raise ModelError("The probabilities of quantiles lie between 0 and 1, both excluded.")
    z = np.array([NormalDist().inv_cdf(float(level)) for level in p])
    z2, z3, z4 = z**2, z**3, z**4
    terms = [(z2 - 1) / 6, (z3 - 3 * z) / 24, (5 * z - 2 * z3) / 36]
    terms += [(z4 - 6 * z2 + 3) / 120, (5 * z2 - 2 - z4) / 24, (12 * z4 - 53 * z2 + 17) / 324]
    return np.column_stack([p, 1.0 - p, z, *terms])


def gamma_quantiles(shape: ArrayLike, rate: ArrayLike, probabilities: ArrayLike, threads: int = 1) -> Array:
    """Quantiles (Q, J) of J gamma distributions, to nine digits.

    Parameters
    ----------
    shape, rate : array (J,)
        Positive; a single number serves every unit.
    probabilities : array (Q,)
        Between 0 and 1, both excluded.
    threads : int
        Units are spread over threads; no result depends on their number.

    Raises
    ------
    ModelError
        If a parameter is not positive and finite, or a probability not between 0 and 1.

    Examples
    --------
    >>> float(gamma_quantiles([1.0], [2.0], [0.5])[0, 0].round(8)) == round(math.log(2.0) / 2.0, 8)
    True
    """
    mixtures = _mixtures(GAMMA, 1.0, np.atleast_2d(shape), np.atleast_2d(rate), 0.0, 0.0, threads)
    return mixtures.quantiles(_single_parameters(mixtures), levels_of(probabilities))


def beta_quantiles(a: ArrayLike, b: ArrayLike, probabilities: ArrayLike, threads: int = 1) -> Array:
    """Quantiles (Q, J) of J beta distributions, to nine digits.

    Parameters and errors as for `gamma_quantiles`, with the beta distribution's two parameters.

    Examples
    --------
    >>> float(beta_quantiles([1.0], [1.0], [0.3])[0, 0].round(10))
    0.3
    """
    mixtures = _mixtures(BETA, 1.0, np.atleast_2d(a), np.atleast_2d(b), 0.0, 0.0, threads)
    return mixtures.quantiles(_single_parameters(mixtures), levels_of(probabilities))


def _single_parameters(mixtures: _Mixtures) -> Array:
    """The parameters (2, J) of distributions that are no mixtures."""
    wide = (1, mixtures.n_units)
    return np.concatenate([np.broadcast_to(mixtures.first, wide), np.broadcast_to(mixtures.second, wide)])


def gamma_cdfs(x: ArrayLike, shape: ArrayLike, rate: ArrayLike, threads: int = 1, *, upper: bool = False) -> Array:
    """P(theta <= x) of J gamma distributions (J,), or P(theta > x) where `upper` is set.

    Parameters
    ----------
    x, shape, rate : array (J,)
        A single number serves every unit.
    threads : int
        Units are spread over threads; no result depends on their number.
    upper : bool
        Ask for the upper tail, which keeps its digits where it is small.

    Raises
    ------
    ModelError
        If a parameter is not positive and finite.

    Examples
    --------
    >>> float(gamma_cdfs([1.0], [1.0], [1.0], upper=True)[0].round(8)) == round(math.exp(-1.0), 8)
    True
    """
    return gamma_mixture_cdfs(1.0, np.atleast_2d(shape), np.atleast_2d(rate), 0.0, 0.0, x, threads, upper=upper)


def beta_cdfs(x: ArrayLike, a: ArrayLike, b: ArrayLike, threads: int = 1, *, upper: bool = False) -> Array:
    """P(theta <= x) of J beta distributions (J,), or P(theta > x) where `upper` is set.

    Parameters and errors as for `gamma_cdfs`, with the beta distribution's two parameters.

    Examples
    --------
    >>> float(beta_cdfs([0.25], [1.0], [1.0])[0].round(10))
    0.25
    """
    return beta_mixture_cdfs(1.0, np.atleast_2d(a), np.atleast_2d(b), 0.0, 0.0, x, threads, upper=upper)


def gamma_mixture_cdfs(
    weights: ArrayLike,
    shape: ArrayLike,
    rate: ArrayLike,
    y: ArrayLike,
    exposure: ArrayLike,
    x: ArrayLike,
    threads: int = 1,
    *,
    upper: bool = False,
) -> Array:
    """P(theta_j <= x_j) (J,) under the mixtures of `gamma_mixture`; P(theta_j > x_j) where `upper` is set.

    Examples
    --------
    >>> float(gamma_mixture_cdfs([1, 1], [1, 1], [1, 1], [0.0], [0.0], 1.0, upper=True)[0].round(6))
    0.367879
    """
    return _cdfs(_mixtures(GAMMA, weights, shape, rate, y, exposure, threads), x, upper)


def beta_mixture_cdfs(
    weights: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    y: ArrayLike,
    n: ArrayLike,
    x: ArrayLike,
    threads: int = 1,
    *,
    upper: bool = False,
) -> Array:
    """P(theta_j <= x_j) (J,) under the mixtures of `beta_mixture`; P(theta_j > x_j) where `upper` is set.

    Examples
    --------
    >>> float(beta_mixture_cdfs([1, 1], [1, 2], [2, 1], [0], [0], 0.5)[0].round(10))
    0.5
    """
    misses = np.asarray(n, dtype=np.float64) - np.asarray(y, dtype=np.float64)
    return _cdfs(_mixtures(BETA, weights, a, b, y, misses, threads), x, upper)


def _cdfs(mixtures: _Mixtures, x: ArrayLike, upper: bool) -> Array:
    """One of the tails at x, a number or one a unit."""
    places = np.ascontiguousarray(np.atleast_1d(np.asarray(x, dtype=np.float64)))
    if places.ndim != 1 or places.size not in (1, mixtures.n_units):
        if mixtures.n_units != 1 or places.ndim != 1:
            raise ModelError(f"x is one number or has one for each of the {mixtures.n_units} units.")
        mixtures = replace(mixtures, n_units=places.size)  # one distribution at many places
    tail: Array = mixtures.tails(places)[1 if upper else 0]
    return tail


def beta_mixture(
    weights: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    y: ArrayLike,
    n: ArrayLike,
    probabilities: ArrayLike,
    threads: int = 1,
) -> tuple[Array, Array, Array, float]:
    """Mean, sd and quantiles of the mixtures over k of Beta(a_k + y_j, b_k + n_j - y_j).

    The quantiles are inverted exactly, unless there are many pairs of a unit and a node and the single distribution
    with the mixture's mean and sd has nearly the same quantiles, which is measured on units spread evenly.

    Parameters
    ----------
    weights : array (K,)
        Not negative; they need not sum to 1.
    a, b : array (K,) or (K, J)
        The population's parameters at each node, where they are (K, J) of each unit.
    y, n : array (J,)
        Events and trials; a single number serves every unit.
    probabilities : array (Q,)
        Between 0 and 1, both excluded.
    threads : int
        Units are spread over threads; no result depends on their number.

    Returns
    -------
    mean, sd : array (J,)
        Exact.
    quantiles : array (Q, J)
    error : float
        The largest error found in a quantile, in units of its posterior sd; 0.0 where all were inverted exactly.

    Raises
    ------
    ModelError
        If the shapes do not fit, a parameter is not positive and finite, or a probability not between 0 and 1.

    Examples
    --------
    >>> mean, sd, quantiles, error = beta_mixture([0.5, 0.5], [1, 2], [2, 1], [0], [0], [0.5])
    >>> float(mean[0].round(10)), float(quantiles[0, 0].round(8)), error
    (0.5, 0.5, 0.0)
    """
    misses = np.asarray(n, dtype=np.float64) - np.asarray(y, dtype=np.float64)
    return _mixtures(BETA, weights, a, b, y, misses, threads).summary(levels_of(probabilities))


def gamma_mixture(
    weights: ArrayLike,
    shape: ArrayLike,
    rate: ArrayLike,
    y: ArrayLike,
    exposure: ArrayLike,
    probabilities: ArrayLike,
    threads: int = 1,
) -> tuple[Array, Array, Array, float]:
    """Mean, sd and quantiles of the mixtures over k of Gamma(shape_k + y_j, rate_k + exposure_j).

    Everything is as for `beta_mixture`, with counts and exposures in the place of events and trials.

    Examples
    --------
    >>> mean, sd, quantiles, error = gamma_mixture([1.0], [1.0], [1.0], [0, 3], [1.0, 1.0], [0.5])
    >>> mean.tolist(), float(quantiles[0, 0].round(8)) == round(math.log(2.0) / 2.0, 8)
    ([0.5, 2.0], True)
    """
    return _mixtures(GAMMA, weights, shape, rate, y, exposure, threads).summary(levels_of(probabilities))
