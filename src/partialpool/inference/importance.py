"""Importance weights: Pareto smoothing, effective sample sizes, weighted summaries, resampling.

All of it works on plain arrays: K nodes with log weights (K,), known up to a constant, and values (K,) or (K, d).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import InferenceError

FloatArray = NDArray[np.float64]

_MIN_TAIL = 5  # a Pareto tail cannot be fitted to fewer weights


def logsumexp(x: ArrayLike, axis: int | None = None) -> FloatArray:
    """log(sum(exp(x))) along `axis` (over everything where it is None), safe against overflow; -inf of nothing.

    Examples
    --------
    >>> round(float(logsumexp([1000.0, 1000.0])), 4)
    1000.6931
    """
    values = np.asarray(x, dtype=np.float64)
    peak = np.max(values, axis=axis, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        total = np.log(np.sum(np.exp(values - shift), axis=axis, keepdims=True)) + shift
    return np.asarray(np.squeeze(total, axis=axis) if axis is not None else total.reshape(()))


def normalise(log_weights: ArrayLike) -> FloatArray:
    """Weights that sum to 1, from log weights known up to a constant.

    Raises
    ------
    InferenceError
        Where a log weight is nan or +inf, or no weight is positive.

    Examples
    --------
    >>> normalise([0.0, np.log(3.0)]).tolist()
    [0.25, 0.75]
    """
    logs = _checked(log_weights)
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def pareto_smooth(log_weights: ArrayLike, efficiency: float = 1.0) -> tuple[FloatArray, float]:
    """Pareto-smoothed importance weights and the shape k of their tail.

    The largest M = floor(3 sqrt(K)) weights (a fifth of them where K <= 225) are replaced by the expected order
    statistics of a generalised Pareto distribution fitted to them, none larger than the largest raw weight. Below k =
    0.7 the estimates can be trusted (Vehtari, Simpson, Gelman, Yao and Gabry 2024, Journal of Machine Learning
    Research 25(72)).

    Parameters
    ----------
    log_weights : array (K,)
        Known up to a constant.
    efficiency : float
        How many independent draws a draw of chains is worth: the tail is the longer the less that is.

    Returns
    -------
    array (K,) and float
        Smoothed log weights whose exponentials sum to 1, and k. k is -inf where the tail weights are all equal
        (nothing to smooth), and inf where there are too few positive weights to fit a tail to; the weights are then
        only normalised.

    Raises
    ------
    InferenceError
        Where a log weight is nan or +inf, or no weight is positive.

    Examples
    --------
    >>> smoothed, k = pareto_smooth(np.random.default_rng(1).normal(size=1000))
    >>> round(float(np.exp(smoothed).sum()), 12), k < 0.7
    (1.0, True)
    """
    logs = _checked(log_weights)
    logs = logs - logs.max()
    size = len(logs)
    tail_size = math.floor(3.0 * math.sqrt(size / efficiency)) if size * efficiency > 225 else size // 5
    if tail_size < _MIN_TAIL:
        return logs - logsumexp(logs), math.inf
    order = np.argsort(logs)
    tail = order[-tail_size:]
    cutoff = float(np.exp(logs[order[-tail_size - 1]]))
    largest, smallest = logs[tail[-1]], logs[tail[0]]
    if largest - smallest < np.finfo(np.float64).tiny:
        return logs - logsumexp(logs), -math.inf
    k, scale = _fit_pareto(np.exp(logs[tail]) - cutoff)
    if math.isfinite(k) and scale > 0.0:
        probabilities = (np.arange(tail_size) + 0.5) / tail_size
        logs[tail] = np.minimum(np.log(_pareto_quantile(probabilities, k, scale) + cutoff), largest)
    return logs - logsumexp(logs), k


def _fit_pareto(excess: FloatArray) -> tuple[float, float]:
    """Shape k and scale of a generalised Pareto distribution fitted to sorted positive excesses.

    Zhang and Stephens (2009), Technometrics 51, 316-325: with b = -k/scale, the profile likelihood of b is averaged
    over a grid of quantiles of their data-driven prior. k is then shrunk towards 1/2 by ten pseudo-observations
    (Vehtari et al.).
    """
    count = len(excess)
    quartile = excess[int(count / 4 + 0.5) - 1]
    if not quartile > 0.0:  # more than a quarter of the tail is at the cutoff: no continuous tail
        return math.inf, math.nan
    grid_size = 30 + int(math.sqrt(count))
    steps = np.arange(grid_size) + 0.5
    grid = (1.0 - np.sqrt(grid_size / steps)) / (3.0 * quartile) + 1.0 / excess[-1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shapes = np.log1p(-grid[:, None] * excess).mean(axis=1)
        profile = count * (np.log(-grid / shapes) - shapes - 1.0)
        posterior = np.exp(profile - logsumexp(profile))
        kept = posterior >= 10.0 * np.finfo(np.float64).eps
        b = float(np.sum(grid[kept] * posterior[kept]) / np.sum(posterior[kept]))
        shape = float(np.log1p(-b * excess).mean())
        scale = -shape / b if b != 0.0 else math.nan
    k = (count * shape + 10 * 0.5) / (count + 10)
    return (k, scale) if math.isfinite(k) else (math.inf, math.nan)


def _pareto_quantile(probabilities: FloatArray, k: float, scale: float) -> FloatArray:
    """Quantiles of the generalised Pareto distribution with location 0."""
    exponential = -np.log1p(-probabilities)
    return np.asarray(scale * (np.expm1(k * exponential) / k if k != 0.0 else exponential))


def effective_sample_size(log_weights: ArrayLike, values: ArrayLike | None = None) -> FloatArray:
    """Var(f) over the variance of the self-normalised estimate of E f: how many independent draws would do as well.

    Parameters
    ----------
    log_weights : array (K,)
        Known up to a constant; smoothed ones where there are.
    values : array (K,) or (K, d), or None
        f at the nodes. Where it is None: 1/sum(w^2), Kish's size, which knows no f.

    Returns
    -------
    array () or (d,)
        sum w (f - mu)^2 / sum w^2 (f - mu)^2, mu = sum w f. For a constant f, Kish's size.

    Notes
    -----
    The variance is that of independent nodes; with quasi-random nodes the estimate is usually better than this says.

    Examples
    --------
    >>> float(effective_sample_size(np.zeros(100)))
    100.0
    """
    weights = normalise(log_weights)
    squares = weights * weights
    kish = 1.0 / squares.sum()
    if values is None:
        return np.asarray(kish)
    f = np.asarray(values, dtype=np.float64)
    shifted = f - weights @ f
    shifted = np.where((f == f[:1]).all(axis=0), 0.0, shifted)  # rounding of mu must not pass for a spread
    shifted *= shifted
    variance, error = weights @ shifted, squares @ shifted
    spread = error > 0.0
    return np.asarray(np.where(spread, variance / np.where(spread, error, 1.0), kish))


def weighted_moments(values: ArrayLike, weights: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of `values` (K,) or (K, d) under non-negative weights (K,), which need not sum to 1.

    Examples
    --------
    >>> mean, sd = weighted_moments([0.0, 4.0], [3.0, 1.0])
    >>> float(mean), round(float(sd), 6)
    (1.0, 1.732051)
    """
    f = np.asarray(values, dtype=np.float64)
    share = _shares(weights)
    mean = share @ f
    return np.asarray(mean), np.sqrt(share @ (f - mean) ** 2)


def weighted_quantile(values: ArrayLike, weights: ArrayLike, q: ArrayLike) -> FloatArray:
    """Quantiles of `values` under non-negative weights, which need not sum to 1.

    Parameters
    ----------
    values : array (K,) or (K, d)
        f at the nodes.
    weights : array (K,)
        Their weights.
    q : float or array
        Probabilities.

    Returns
    -------
    array
        Shape of q + shape of values without its first axis, as numpy.quantile(..., axis=0).

    Notes
    -----
    The mid-point rule: a sorted value stands at the probability W - w/2, W the sum of the weights up to it and w its
    own; between values the quantile is linear, and constant beyond the first and last. Equal weights give Hazen's
    quantiles (numpy's method="hazen").

    Examples
    --------
    >>> weighted_quantile([1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [0.25, 0.5]).round(6).tolist()
    [1.5, 2.333333]
    """
    f = np.asarray(values, dtype=np.float64)
    share = _shares(weights)
    positive = share > 0.0
    if not positive.all():
        f, share = f[positive], share[positive]
    probabilities = np.asarray(q, dtype=np.float64)
    columns = f.reshape(len(f), -1)
    order = np.argsort(columns, axis=0)
    sorted_shares = share[order]
    middle = np.cumsum(sorted_shares, axis=0) - 0.5 * sorted_shares
    sorted_values = np.take_along_axis(columns, order, axis=0)
    result = np.empty((probabilities.size, columns.shape[1]))
    for column in range(columns.shape[1]):
        result[:, column] = np.interp(probabilities.ravel(), middle[:, column], sorted_values[:, column])
    return result.reshape(probabilities.shape + f.shape[1:])


def systematic_resample(weights: ArrayLike, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `n` equally weighted draws from the weighted nodes, in random order.

    A node of normalised weight w appears floor(n w) or ceil(n w) times: less noise than independent draws. The order
    is a random permutation, so that any part of the draws is a sample too.

    Examples
    --------
    >>> np.bincount(systematic_resample([0.5, 0.0, 0.25, 0.25], 8, np.random.default_rng(1))).tolist()
    [4, 0, 2, 2]
    """
    share = _shares(weights)
    cumulative = np.cumsum(share)
    points = (np.arange(n) + rng.random()) / n
    indices = np.searchsorted(cumulative, points * cumulative[-1], side="right")
    last = int(np.flatnonzero(share)[-1])  # rounding must not step past the last positive weight
    return np.asarray(rng.permutation(np.minimum(indices, last)), dtype=np.int64)


def _checked(log_weights: ArrayLike) -> FloatArray:
    logs = np.asarray(log_weights, dtype=np.float64)
    if logs.ndim != 1 or logs.size == 0:
        raise InferenceError(f"Log weights must be a vector of at least one, and have shape {logs.shape}.")
    peak = logs.max()
    if not np.isfinite(peak):  # max is nan where any is
        what = "are all -inf" if peak == -np.inf else f"include {peak}"
        raise InferenceError(
            f"The log weights {what}: the log density failed; check the priors and the scale of the data."
        )
    return logs


def _shares(weights: ArrayLike) -> FloatArray:
    values = np.asarray(weights, dtype=np.float64)
    total = values.sum()
    if values.ndim != 1 or not (np.isfinite(total) and total > 0.0) or values.min() < 0.0:
        raise InferenceError("Weights must be a vector of non-negative finite numbers with a positive sum.")
    return np.asarray(values / total)
