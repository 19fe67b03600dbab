"""Convergence of Markov chains: rank-normalised split R-hat, bulk and tail effective sample size.

Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and localization: an improved
R-hat for assessing convergence of MCMC, Bayesian Analysis 16, 667-718. Draws come as (chains, draws) or (chains,
draws, ...); a number, or an array of the trailing shape, goes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import InferenceError
from partialpool.inference.sobol import normal_quantile

FloatArray = NDArray[np.float64]

_MIN_DRAWS = 4
TAIL = (0.05, 0.95)


def rhat(draws: ArrayLike) -> FloatArray:
    """Rank-normalised split R-hat: the larger of that of the ranks and that of the ranks of the distance to the median.

    Chains that agree have R-hat below 1.01. nan for fewer than four draws a chain, values that are not finite, or a
    constant.

    Examples
    --------
    >>> float(rhat(np.random.default_rng(1).normal(size=(4, 1000)))) < 1.01
    True
    """
    return _over_columns(_rhat, draws)


def ess_bulk(draws: ArrayLike) -> FloatArray:
    """Effective sample size of the rank-normalised draws: how well the centre of the distribution is known.

    Examples
    --------
    >>> 3000 < float(ess_bulk(np.random.default_rng(1).normal(size=(4, 1000)))) < 5000
    True
    """
    return _over_columns(lambda chains: _ess(_normal_scores(_split(chains))), draws)


def ess_tail(draws: ArrayLike) -> FloatArray:
    """The smaller effective sample size of the 5% and the 95% quantile.

    Examples
    --------
    >>> 3000 < float(ess_tail(np.random.default_rng(1).normal(size=(4, 1000)))) < 5000
    True
    """
    return _over_columns(_ess_tail, draws)


def _over_columns(statistic: Callable[[FloatArray], float], draws: ArrayLike) -> FloatArray:
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim < 2:
        raise InferenceError(f"Draws must have shape (chains, draws, ...), and have {values.shape}.")
    columns = values.reshape(*values.shape[:2], -1)
    result = np.full(columns.shape[2], np.nan)
    if columns.shape[1] >= _MIN_DRAWS:
        for index in range(columns.shape[2]):
            chains = np.ascontiguousarray(columns[:, :, index])
            if np.isfinite(chains).all():
                result[index] = statistic(chains)
    return result.reshape(values.shape[2:])


def _split(chains: FloatArray) -> FloatArray:
    """Halves of the chains as chains; the middle draw of an odd number is left out."""
    half = chains.shape[1] // 2
    return np.concatenate([chains[:, :half], chains[:, -half:]])


def _normal_scores(chains: FloatArray) -> FloatArray:
    """Normal quantiles of the fractional ranks (Blom's, ties averaged) among all draws."""
    _, inverse, counts = np.unique(chains, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = ends - 0.5 * (counts - 1)
    scores = normal_quantile((ranks - 0.375) / (chains.size + 0.25))
    return scores[inverse].reshape(chains.shape)


def _rhat(chains: FloatArray) -> float:
    halves = _split(chains)
    folded = np.abs(halves - np.median(halves))
    return max(_plain_rhat(_normal_scores(halves)), _plain_rhat(_normal_scores(folded)))


def _plain_rhat(chains: FloatArray) -> float:
    count = chains.shape[1]
    within = float(chains.var(axis=1, ddof=1).mean())
    if within <= 0.0:
        return math.nan
    between = count * float(chains.mean(axis=1).var(ddof=1))
    return math.sqrt((between / within + count - 1) / count)


def _ess_tail(chains: FloatArray) -> float:
    limits = np.quantile(chains, TAIL)
    return min(_ess(_split((chains <= limit).astype(np.float64))) for limit in limits)


def _ess(chains: FloatArray) -> float:
    """Effective sample size of the mean over all chains."""
    chain_count, count = chains.shape
    total = chain_count * count
    if float(np.ptp(chains)) < np.finfo(np.float64).resolution:
        return float(total)
    correlations = _autocorrelations(chains)
    pairs = correlations[: count // 2 * 2].reshape(-1, 2).sum(axis=1)
    # Geyer's initial positive sequence: pairs of autocorrelations up to the first that is not positive. The bound on
    # the lag is Stan's.
    longest = max(0, (count - 3) // 2)
    negative = np.flatnonzero(pairs[:longest] <= 0.0)
    kept = int(negative[0]) if negative.size else longest
    # Geyer's initial monotone sequence: no pair larger than the one before.
    time = -1.0 + 2.0 * float(np.minimum.accumulate(pairs[:kept]).sum())
    following = float(correlations[2 * kept])
    if following > 0.0 or pairs[kept] >= 0.0:
        time += following  # Stan's improved estimate for antithetic chains
    return float(total / max(time, 1.0 / math.log10(total)))


def _autocorrelations(chains: FloatArray) -> FloatArray:
    """Autocorrelation at lags 0 to n - 1 from all chains together (their equation 10)."""
    chain_count, count = chains.shape
    centred = chains - chains.mean(axis=1, keepdims=True)
    size = 1 << (2 * count - 1).bit_length()
    spectrum = np.fft.rfft(centred, size, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    covariance = np.fft.irfft(power.mean(axis=0), size)[:count] / count
    variance = covariance[0] * count / (count - 1.0)
    pooled = float(covariance[0])
    if chain_count > 1:
        pooled += float(chains.mean(axis=1).var(ddof=1))
    correlations = 1.0 - (variance - covariance) / pooled
    correlations[0] = 1.0
    return np.asarray(correlations)
