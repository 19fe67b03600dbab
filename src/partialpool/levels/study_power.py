r"""The power of ``pp.fit`` to see a difference between groups that are treated and groups that are not.

With J groups of n rows, half of them treated, the rows enter ``pp.fit("y ~ treated + (1 | group)")`` through the
difference of the arms' means, :math:`d \sim N(\delta, 4 T / J)` with :math:`T = \tau^2 + \sigma^2 / n`; the groups'
spread around their arm's mean, :math:`S \sim T \chi^2_{J - 2}`; and the rows' spread within groups,
:math:`W \sim \sigma^2 \chi^2_{N - J}`. Given :math:`\tau` and :math:`\sigma` the posterior of :math:`\delta` under its
normal prior with sd p is normal with precision :math:`J / 4 T + 1 / p^2`. The 95% interval leaves out zero where the
mixture of these over the posterior of both sds, by the trapezoidal rule in their logarithms, has less than 2.5% on the
other side, which is so from some :math:`d^*(S, W)` on. The power is the probability of that d, averaged over S and W.

Where the posterior of :math:`\tau` is wide, this is less than the power of Student's t: t's intervals are narrow where
S happens to be small, which the prior does not take for likely. Groups of unequal sizes are taken as groups of one size
with the same standard error of the difference.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.design.defaults import location_prior, spread_prior

Array = NDArray[np.float64]

#: Places on the scale of probability for S and for W; of the lattice for sigma, in sds; step and ends for log tau.
PLACES_BETWEEN, PLACES_WITHIN = 16, 4
ACROSS_SIGMA = np.linspace(-3.5, 3.5, 8)
STEP, LOWEST, HIGHEST = 0.25, math.log(0.005), math.log(40.0)
#: Degrees of freedom within groups from which on sigma is as good as known.
MANY = 1e5
TAIL = 0.025


def fit_power(effect: float, groups: int, total: float, sigma: float, error: float) -> float:
    """The probability that the 95% interval of a difference between two halves of the groups leaves out zero.

    Parameters
    ----------
    effect : the true difference. groups, total : how many groups and rows. sigma : the sd of the rows of a group.
    error : the standard error of the difference, from the true sds.

    Examples
    --------
    >>> round(fit_power(1.5, groups=6, total=30, sigma=1.0, error=0.5), 2)
    0.49
    """
    from scipy.special import chdtri, ndtr

    within, spread = min(total - groups, MANY), groups * error**2 / 4
    chance, share = _legendre(PLACES_BETWEEN)
    chance_within, share_within = _legendre(PLACES_WITHIN)
    between = np.repeat(spread * chdtri(groups - 2, 1 - chance), PLACES_WITHIN)
    rows = np.tile(sigma**2 * chdtri(within, 1 - chance_within) / within, PLACES_BETWEEN)
    critical = error * _critical(between, rows, groups, total, spread, error)
    seen = ndtr((effect - critical) / error) + ndtr((-effect - critical) / error)
    return float(np.repeat(share, PLACES_WITHIN) * np.tile(share_within, PLACES_BETWEEN) @ seen)


def _legendre(places: int) -> tuple[Array, Array]:
    """Places between 0 and 1, and weights with sum 1."""
    at, weights = np.polynomial.legendre.leggauss(places)
    return (at + 1) / 2, weights / 2


def _critical(between: Array, rows: Array, groups: int, total: float, spread: float, error: float) -> Array:
    """From which difference on, in its standard errors, the interval leaves out zero; (P,) as `between` and `rows`."""
    low, high = np.zeros(between.size), np.full(between.size, 4.0)
    for _ in range(12):  # until zero is left out everywhere
        short = tail_beyond(error * high, between, rows, groups, total, spread) > TAIL
        if not short.any():
            break
        low[short], high[short] = high[short], 2 * high[short]
    for _ in range(14):
        middle = 0.5 * (low + high)
        short = tail_beyond(error * middle, between, rows, groups, total, spread) > TAIL
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.asarray(0.5 * (low + high))


def tail_beyond(difference: Array, between: Array, rows: Array, groups: int, total: float, spread: float) -> Array:
    """The posterior probability (P,) that the effect is below zero where it was seen as `difference` above."""
    from scipy.special import ndtr

    within = min(total - groups, MANY)
    size = total / groups
    sd = np.sqrt(((total - groups) * rows + size * between + total * difference**2 / 4) / (total - 1))[:, None, None]
    unit_location, unit_scale = location_prior(0.0, 1.0).sigma, spread_prior(1.0).sigma
    prior, location, scale = 2 * unit_location * sd, unit_location * sd, unit_scale * sd
    x = (0.5 * math.log(spread) + np.arange(LOWEST, HIGHEST, STEP))[None, :, None]
    z = (ACROSS_SIGMA / math.sqrt(2 * within))[None, None, :]
    tau2, sigma2 = np.exp(2 * x), rows[:, None, None] * np.exp(2 * z)
    own = tau2 + sigma2 / size
    known = 4 * own / groups
    d = difference[:, None, None]
    log = x + z - within * (z + 0.5 * np.expm1(-2 * z)) - 2 * np.log1p(tau2 / (3 * scale**2))
    log = log - 2 * np.log1p(sigma2 / (3 * scale**2)) - 0.5 * (groups - 2) * np.log(own)
    log -= 0.5 * between[:, None, None] / own + 0.5 * np.log(location**2 + own / groups)
    log -= 0.5 * np.log(prior**2 + known) + 0.5 * d**2 / (prior**2 + known)
    weights = np.exp(log - log.max(axis=(1, 2), keepdims=True))
    precision = 1 / known + 1 / prior**2
    below = (weights * ndtr(-d / known / np.sqrt(precision))).sum(axis=(1, 2))
    return np.asarray(below / weights.sum(axis=(1, 2)))
