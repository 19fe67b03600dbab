r"""Quantiles of mixtures of normal distributions: the posterior of an effect over the nodes of the hyperparameters.

.. math:: F_j(x) = \sum_k w_k\, \Phi\!\left(\frac{x - m_{kj}}{s_{kj}}\right)

is inverted by Newton's method within a bracket; the mixtures met here are close to normal, so that two steps do.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.jit import kernel

Array = NDArray[np.float64]

#: The quantile is found to this share of the mixture's standard deviation.
TOLERANCE = 1e-6
#: Newton's last step, as a share of the narrowest component's sd.
LAST_STEP = 1e-3


@kernel("void(float64[:,:], float64[:,:], float64[:,:], float64[::1], float64[::1], float64[:,::1], float64[:,::1])")
def invert_mixtures(
    weights: Array, means: Array, sds: Array, probabilities: Array, normal_scores: Array, moments: Array, out: Array
) -> None:
    """Mean, sd and quantiles of each column's mixture.

    weights, means and sds (K, J), probabilities (Q) and their normal scores. Writes moments (2, J), out (Q, J).
    """
    count = means.shape[0]
    for j in range(means.shape[1]):
        mean = 0.0
        for k in range(count):
            mean += weights[k, j] * means[k, j]
        variance = 0.0
        third = 0.0
        fourth = 0.0
        narrowest = math.inf
        for k in range(count):
            s2 = sds[k, j] * sds[k, j]
            shift = means[k, j] - mean
            variance += weights[k, j] * (shift * shift + s2)
            third += weights[k, j] * shift * (shift * shift + 3.0 * s2)
            fourth += weights[k, j] * (shift * shift * (shift * shift + 6.0 * s2) + 3.0 * s2 * s2)
            if sds[k, j] > 0.0:
                narrowest = min(narrowest, sds[k, j])
        sd = math.sqrt(variance)
        moments[0, j] = mean
        moments[1, j] = sd
        for i in range(probabilities.size):
            if not sd > 0.0:
                out[i, j] = mean
                continue
            p = probabilities[i]
            z = normal_scores[i]
            # Cornish and Fisher's first guess, held back where the mixture is far from normal
            skew = max(-0.5, min(0.5, third / (sd * variance)))
            excess = max(-1.0, min(1.0, fourth / (variance * variance) - 3.0))
            score = z + skew * (z * z - 1.0) / 6.0 + excess * (z * z * z - 3.0 * z) / 24.0
            x = mean + sd * (score - skew * skew * (2.0 * z * z * z - 5.0 * z) / 36.0)
            # Cantelli: beyond these no quantile of a distribution with this mean and sd can lie
            low = mean - sd * math.sqrt((1.0 - p) / p)
            high = mean + sd * math.sqrt(p / (1.0 - p))
            for _ in range(200):
                value = 0.0
                density = 0.0
                for k in range(count):
                    s = sds[k, j]
                    if s > 0.0:
                        t = (x - means[k, j]) / s
                        value += weights[k, j] * 0.5 * math.erfc(-t * 0.7071067811865476)
                        density += weights[k, j] * 0.3989422804014327 * math.exp(-0.5 * t * t) / s
                    elif x >= means[k, j]:
                        value += weights[k, j]
                error = value - p
                if error > 0.0:
                    high = min(high, x)
                else:
                    low = max(low, x)
                step = error / density if density > 0.0 else math.inf
                following = x - step
                newton = low < following < high
                if not newton:
                    following = 0.5 * (low + high)
                x, step = following, abs(following - x)
                # Newton's error is squared by each step: what follows a step of 1e-3 would be about 1e-6.
                last = max(LAST_STEP * min(sd, narrowest), TOLERANCE * sd)
                if (newton and step <= last) or high - low <= TOLERANCE * sd:
                    break
            out[i, j] = x


def mixture_summary(
    weights: ArrayLike, means: Array, sds: Array, probabilities: ArrayLike, threads: int = 1
) -> tuple[Array, Array, Array]:
    """Mean (J,), sd (J,) and quantiles (Q, J) of J mixtures of K normal distributions.

    Parameters
    ----------
    weights : array (K,) or (K, J)
        Not negative; they need not sum to 1. Of the components, for each mixture where they differ.
    means, sds : array (K, J)
        Of the components; an sd of 0 is a point.
    probabilities : array (Q,)
        Between 0 and 1, both excluded.
    threads : int
        Columns are spread over threads; no result depends on their number.

    Examples
    --------
    >>> mean, sd, quantiles = mixture_summary([1, 1], np.zeros((2, 1)), np.ones((2, 1)), [0.95])
    >>> float(quantiles[0, 0].round(4))
    1.6449
    """
    given = np.asarray(weights, dtype=np.float64)
    given = given / given.sum(axis=0)
    share = given if given.ndim == 2 else as_strided(given, means.shape, (given.strides[0], 0))
    levels = np.atleast_1d(np.asarray(probabilities, dtype=np.float64))
    scores = np.array([NormalDist().inv_cdf(float(p)) for p in levels])
    count = means.shape[1]
    pieces = max(1, min(int(threads), count // 256))
    edges = np.linspace(0, count, pieces + 1).astype(int)

    def work(low: int, high: int) -> tuple[Array, Array]:
        moments, quantiles = np.empty((2, high - low)), np.empty((levels.size, high - low))
        invert_mixtures(share[:, low:high], means[:, low:high], sds[:, low:high], levels, scores, moments, quantiles)
        return moments, quantiles

    if pieces == 1:
        parts = [work(0, count)]
    else:
        with ThreadPoolExecutor(pieces) as pool:
            parts = list(pool.map(work, edges[:-1].tolist(), edges[1:].tolist()))
    moments = np.concatenate([part[0] for part in parts], axis=1)
    return moments[0], moments[1], np.concatenate([part[1] for part in parts], axis=1)
