r"""Simultaneous bands of the empirical distribution function of numbers that should be uniform.

Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its applications in goodness-of-fit
evaluation and multiple sample comparison, Statistics and Computing 32, 32. The idea is theirs; the computation is as
follows. Of N independent uniform numbers, the count :math:`X_i` of those up to :math:`z_i` is binomial(N, z_i). A count
is extreme by

.. math:: g_i(c) = 2 \min\{P(X_i \le c),\, P(X_i \ge c)\},

and the whole function by the smallest :math:`g_i(X_i)` over the places :math:`z_1 < \dots < z_m`. The band at a level
is the set of counts with :math:`g_i > \gamma`, and :math:`\gamma` the largest for which the probability
:math:`p(\gamma)` that no count leaves it reaches the level; ``1 - p`` at the smallest :math:`g` seen is an exact
p-value.

:math:`p(\gamma)`: the N numbers fall into the cells between the places as independent Poisson(N (z_{i+1} - z_i)) counts
do, given that these add up to N. So the probabilities of :math:`X_1, X_2, \dots` are convolved with Poisson
probabilities, cut to the band at each place, and the last is divided by the Poisson(N) probability of N: no sum over
paths, m short convolutions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Places at which the function is looked at, at most.
MOST_PLACES = 200
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Band:
    """Where the distribution function of `size` uniform numbers stays, at all `places`, with probability `level`.

    places : (m,) between 0 and 1. low, high : (m,) shares of the numbers up to each place.
    """

    size: int
    level: float
    places: Array
    low: Array
    high: Array


def places_for(size: int) -> Array:
    """Evenly spaced places for `size` numbers: as many as these, 200 at most.

    Examples
    --------
    >>> places_for(4)
    array([0.2, 0.4, 0.6, 0.8])
    """
    count = min(size, MOST_PLACES)
    return np.arange(1, count + 1) / (count + 1)


@lru_cache(maxsize=32)
def simultaneous_band(size: int, level: float = LEVEL) -> Band:
    """The band of `size` uniform numbers.

    Examples
    --------
    >>> band = simultaneous_band(100)
    >>> middle = np.searchsorted(band.places, 0.5)
    >>> float(band.low[middle]), float(band.high[middle])
    (0.36, 0.65)
    """
    places = places_for(size)
    extremes = _extremes(size, places)
    low, high = 0.0, 1.0
    # the probability is a step function of gamma: the search ends between two of its steps, on the side of the level
    for _ in range(40):
        middle = math.sqrt(low * high) if low > 0 else high / 8
        if inside_probability(extremes, middle) >= level:
            low = middle
        else:
            high = middle
        if high < low * (1 + 1e-9):
            break
    first, last = _range(extremes, low)
    return Band(size, level, places, first / size, last / size)


def p_value(values: ArrayLike) -> float:
    """The probability that uniform numbers have a distribution function as far from uniform as these, somewhere.

    Parameters
    ----------
    values : (N,) between 0 and 1.

    Examples
    --------
    >>> even = (np.arange(50) + 0.5) / 50
    >>> p_value(even), round(p_value(even**1.5), 4)
    (1.0, 0.1154)
    """
    own = np.asarray(values, dtype=float)
    places = places_for(own.size)
    extremes = _extremes(own.size, places)
    gamma = float(extremes[np.arange(places.size), counts_at(own, places)].min())
    return float(np.clip(1.0 - inside_probability(extremes, gamma), 0.0, 1.0))


def counts_at(values: Array, places: Array) -> Ints:
    """How many values are at most each place.

    Examples
    --------
    >>> counts_at(np.array([0.1, 0.7]), np.array([0.05, 0.5, 0.7])).tolist()
    [0, 1, 2]
    """
    return np.searchsorted(np.sort(values), places, side="right").astype(np.int64)


@lru_cache(maxsize=8)
def _cached_extremes(size: int, count: int) -> Array:
    from scipy.special import bdtr

    places = np.arange(1, count + 1) / (count + 1)
    counts = np.arange(size + 1.0)
    below = np.asarray(bdtr(counts, size, places[:, None]), dtype=float)
    # P(X >= c) by symmetry: subtracting from 1 would lose the small ones
    above = below[::-1, ::-1]
    return np.asarray(np.minimum(2.0 * np.minimum(below, above), 1.0))


def _extremes(size: int, places: Array) -> Array:
    """g (m, N + 1) of every count at every place; the places are symmetric about 1/2."""
    return _cached_extremes(size, places.size)


def _range(extremes: Array, gamma: float) -> tuple[Ints, Ints]:
    """First and last count (m,) with g above gamma at each place."""
    inside = extremes > gamma
    first = inside.argmax(axis=1)
    last = extremes.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
    return first.astype(np.int64), last.astype(np.int64)


def inside_probability(extremes: Array, gamma: float) -> float:
    """p(gamma): the probability that g stays above gamma at every place; see the module's docstring."""
    if not (extremes > gamma).any(axis=1).all():
        return 0.0
    first, last = _range(extremes, gamma)
    size, count = extremes.shape[1] - 1, extremes.shape[0]
    kernel = _poisson(size / (count + 1), size)  # cells are of one size
    state, start = np.ones(1), 0
    for low, high in zip(first, last, strict=True):
        spread = np.convolve(state, kernel[: high - start + 1])
        at = np.arange(low, high + 1) - start  # counts never fall: what lies below the start has probability 0
        state = np.where((at >= 0) & (at < spread.size), spread[np.clip(at, 0, spread.size - 1)], 0.0)
        start = int(low)
    ways = np.arange(size - start, size - start - state.size, -1)
    whole = _poisson(float(size), size)[size]
    return float(np.clip((state * np.where(ways >= 0, kernel[np.clip(ways, 0, None)], 0.0)).sum() / whole, 0.0, 1.0))


@lru_cache(maxsize=32)
def _poisson(mean: float, most: int) -> Array:
    """Poisson probabilities of 0 to `most`."""
    from scipy.special import gammaln

    counts = np.arange(most + 1.0)
    return np.asarray(np.exp(counts * math.log(mean) - mean - gammaln(counts + 1)))
