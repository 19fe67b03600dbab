r"""The non-parametric maximum likelihood estimate of a population: no shape is assumed.

The likelihood :math:`\sum_j n_j \log \int f(y_j \mid \theta)\, dG(\theta)` is concave in the mixing distribution G,
and a discrete G with no more points than units maximises it (Kiefer and Wolfowitz, 1956; Laird, 1978; Lindsay, 1983).
G is optimal where its directional derivative

.. math:: D(\theta) - 1, \qquad D(\theta) = \frac1M \sum_j n_j \frac{f(y_j \mid \theta)}{g(y_j)}

is nowhere positive; its maximum over all theta is the gap. Points are added where D has local maxima, the weights are
solved anew and points without weight are dropped, until the gap is small enough (Wang, 2007, Journal of the Royal
Statistical Society B 69, 185-198; Koenker and Mizera, 2014, Journal of the American Statistical Association 109,
674-685, for the convex view).

The maximum is one over the continuum: D and its derivative are evaluated on a grid that is finer than the narrowest
likelihood that matters at each place, and every change of sign of the derivative is followed to its root.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.simplexpass import (
    LARGE,
    log_densities,
    log_mixture_drops,
    mixture_slope,
    prepare_units,
    quick_slope,
)
from partialpool.errors import DataError
from partialpool.inference.optimum import Status
from partialpool.pooling.simplex import WORTH_THREADS, maximise_weights

Array = NDArray[np.float64]

NORMAL, BINOMIAL, POISSON = 0, 1, 2
#: The grid's step is at most this share of the narrowest unit's standard deviation, on the scale that stabilises it.
FINENESS = 0.5
#: A unit's likelihood is resolved within so many of its standard deviations; beyond, it is below exp(-25).
REACH = 10.0
#: At most so many points are added at once.
MOST_NEW = 60
#: Places nearer to each other than this share of the grid's step are one, if the gap allows it.
NEAR = 0.25
MERGES = 8
#: A maximum of D is followed until the step is this share of the grid's.
SMALL = 1e-6
#: The steps of the grid on which the gap is claimed are shorter by this factor than they need be.
SAFETY = 1.5
MOST_PARTS = 100
ROUNDS = 200
START = 20
#: From more units than this, a sample is fitted first, to this gap.
SAMPLE, SAMPLE_TOLERANCE = 40_000, 1e-4


@dataclass(frozen=True, eq=False)
class Support:
    """A discrete population: its places and their weights.

    Attributes
    ----------
    places : (G,), increasing: means, probabilities or rates.
    weights : (G,), positive, of sum 1.
    log_likelihood : sum over the units of the log density of their data, constants included.
    gap : the largest value of D(theta) - 1 over all theta: 0 at the exact optimum. The log likelihood is within the
        number of units times the gap of its maximum.
    status : how the search ended.
    """

    places: Array
    weights: Array
    log_likelihood: float
    gap: float
    status: Status


def npmle(family: int, y: ArrayLike, size: ArrayLike, tolerance: float = 1e-6, threads: int = 1) -> Support:
    """The non-parametric maximum likelihood estimate of the population that units come from.

    Parameters
    ----------
    family : int
        0 for normal, 1 for binomial, 2 for Poisson units.
    y, size : array (J,)
        Estimates and their standard errors; events and trials; or counts and exposures.
    tolerance : float
        The gap at which the search ends.
    threads : int
        Places are spread over threads; no result depends on their number.

    Returns
    -------
    Support

    Raises
    ------
    DataError
        If there are no units, or a value is impossible.

    Examples
    --------
    >>> found = npmle(1, [0, 0, 9, 10], [10, 10, 10, 10])
    >>> found.places.round(3), found.weights.round(3)
    (array([0.  , 0.95]), array([0.5, 0.5]))
    """
    return _Search(_Units.distinct(family, *_checked(family, y, size), threads), tolerance).run()


class _Search:
    """Rounds of solving the weights, looking for better places, and adding them."""

    def __init__(self, units: _Units, tolerance: float) -> None:
        self.units = units
        self.tolerance = tolerance
        self.grid = _grid(units)

    def run(self) -> Support:
        places, weights = self._start()
        best, gap, merges = None, np.inf, 0
        for _ in range(ROUNDS):
            before = gap
            places, weights = self._solve(places, weights, gap)
            log_likelihood, offset = self.units.log_likelihood(places, weights)
            tops, values = _local_maxima(self.units, offset, self.grid)
            gap = float(values.max()) - 1.0
            if gap <= self.tolerance:  # what is claimed is measured on a finer grid
                tops, values = _local_maxima(self.units, offset, self._finer(places))
                gap = float(values.max()) - 1.0
            found = gap <= self.tolerance
            simpler = found and best is not None and places.size <= best.places.size
            if best is None or simpler or gap < best.gap:
                best = Support(places, weights, log_likelihood, gap, Status.CONVERGED if found else Status.LIMIT)
            if found:
                merged = _merged(self.units, self.grid, places, weights)
                if merges == MERGES or merged[0].size == places.size:
                    return best
                merges += 1
                places, weights = merged
                continue
            more = _extended(places, weights, tops, values)
            if more[0].size == places.size and gap >= before:
                return best if best.gap <= self.tolerance else replace(best, status=Status.STALLED)
            places, weights = more
        assert best is not None
        return best

    def _start(self) -> tuple[Array, Array]:
        """Quantiles of the raw estimates; of very many units, the population of a sample besides."""
        places = self.units.starting_places()
        if self.units.y.size <= SAMPLE:
            return places, np.full(places.size, 1.0 / places.size)
        few = _Search(self.units.thinned(SAMPLE // 2), max(self.tolerance, SAMPLE_TOLERANCE)).run()
        places = np.union1d(few.places, places[[0, -1]])
        weights = np.zeros(places.size)
        weights[np.searchsorted(places, few.places)] = few.weights
        return places, weights

    def _finer(self, places: Array) -> Array:
        """The grid with its steps cut so that no maximum of D between its points is overlooked, and the places of the
        support.

        Where D has two maxima and a minimum within a step of h sds, its derivative may have the same sign at both ends.
        D then is flat there: the maxima stand out by about (h / 2)^4 / 24 times the fourth derivative, which is 3 at
        the top of a normal likelihood.
        """
        step = (128.0 * self.tolerance) ** 0.25
        parts = min(max(2, int(np.ceil(SAFETY * FINENESS / step))), MOST_PARTS)
        angles = self.units.to_angle(self.grid)
        steps = np.arange(1, parts) / parts
        between = self.units.to_place((angles[:-1, None] + np.diff(angles)[:, None] * steps).ravel())
        return np.unique(np.concatenate([self.grid, np.clip(between, self.grid[0], self.grid[-1]), places]))

    def _solve(self, places: Array, weights: Array, gap: float) -> tuple[Array, Array]:
        """The best weights of these places, without places of no weight; no more exact than the last gap deserves."""
        exact = min(max(0.1 * self.tolerance, 0.01 * gap), 1e-3)
        densities = self.units.log_densities(places)
        solved = maximise_weights(
            densities, self.units.counts, start=weights, tolerance=exact, threads=self.units.threads, overwrite=True
        )
        kept = solved.weights > 0.0
        return places[kept], solved.weights[kept]


def _checked(family: int, y: ArrayLike, size: ArrayLike) -> tuple[Array, Array]:
    values, sizes = np.atleast_1d(np.asarray(y, dtype=np.float64)), np.atleast_1d(np.asarray(size, dtype=np.float64))
    if values.ndim != 1 or values.shape != sizes.shape or not values.size:
        raise DataError(f"Units need one value and one size each; their shapes are {values.shape} and {sizes.shape}.")
    right = np.isfinite(values) & np.isfinite(sizes) & (sizes > 0.0)
    if family != NORMAL:
        right &= values >= 0.0
    if family == BINOMIAL:
        right &= values <= sizes
    if not right.all():
        unit = int(np.flatnonzero(~right)[0])
        raise DataError(f"Unit {unit} has the value {values[unit]} with size {sizes[unit]}, which cannot be.")
    return values, sizes


class _Units:
    """The distinct units, how often each occurs, and what the kernels say of them."""

    def __init__(self, family: int, y: Array, size: Array, counts: Array, threads: int) -> None:
        self.family, self.threads = family, max(1, int(threads))
        self.y, self.size, self.counts = y, size, counts
        self.prepared = np.empty((3, y.size))
        prepare_units(family, y, size, self.prepared)
        self.raw = self.prepared[0]

    @classmethod
    def distinct(cls, family: int, y: Array, size: Array, threads: int) -> _Units:
        """Equal units counted, in the order of y and size, so that the order given does not matter."""
        order = np.lexsort((size, y))
        y, size = y[order], size[order]
        first = np.flatnonzero(np.r_[True, (np.diff(y) != 0.0) | (np.diff(size) != 0.0)])
        return cls(family, y[first], size[first], np.diff(np.append(first, y.size)).astype(np.float64), threads)

    def thinned(self, count: int) -> _Units:
        """About so many of the units, spread over the range of y."""
        every = slice(None, None, -(-self.y.size // count))
        y, size, counts = (np.ascontiguousarray(values[every]) for values in (self.y, self.size, self.counts))
        return _Units(self.family, y, size, counts, self.threads)

    def starting_places(self) -> Array:
        """Quantiles of the raw estimates, ends included, and a place inside, where every unit is possible."""
        ordered = np.sort(self.raw)
        chosen = ordered[np.linspace(0, ordered.size - 1, START).round().astype(int)]
        return np.unique(np.append(chosen, 0.5 * (ordered[0] + ordered[-1])))

    def angles(self) -> tuple[Array, Array]:
        """Raw estimates and standard deviations on the scale where these hardly depend on the place."""
        if self.family == NORMAL:
            return self.raw, self.size
        return self.to_angle(self.raw), 1.0 / np.sqrt(self.size)

    def to_angle(self, place: Array) -> Array:
        if self.family == NORMAL:
            return place
        root = np.sqrt(place)
        return 2.0 * (np.arctan2(root, np.sqrt(1.0 - place)) if self.family == BINOMIAL else root)

    def to_place(self, angle: Array) -> Array:
        if self.family == NORMAL:
            return angle
        half = 0.5 * angle
        return np.square(np.sin(half) if self.family == BINOMIAL else half)

    def log_densities(self, places: Array) -> Array:
        """(C, J)."""
        out = np.empty((places.size, self.y.size))
        self._spread(
            lambda part: log_densities(self.family, self.y, self.size, self.prepared, places[part], out[part]),
            places.size,
        )
        return out

    def log_likelihood(self, places: Array, weights: Array) -> tuple[float, Array]:
        """The log likelihood of a population, and log(n_j / (M g_j)) with g_j in terms of the unit's peak (J,)."""
        drops = np.empty(self.y.size)
        log_mixture_drops(self.family, self.y, self.size, self.prepared, places, np.log(weights), drops)
        total = float(self.counts @ (drops + self.prepared[1]))
        return total, np.log(self.counts / self.counts.sum()) - drops

    def slope(self, offset: Array, places: Array) -> tuple[Array, Array, Array]:
        """D and its first and second derivative in the place, at each place (T,)."""
        out = np.empty((places.size, 3))
        self._spread(
            lambda part: mixture_slope(self.family, self.y, self.size, self.prepared, offset, places[part], out[part]),
            places.size,
        )
        return out[:, 0], out[:, 1], out[:, 2]

    def slope_on(self, offset: Array, grid: Array) -> tuple[Array, Array]:
        """D and its first derivative at the places of the grid (T,), in a fraction of the time."""
        exact = np.ones(grid.size, dtype=bool)
        if self.family == NORMAL or max(self.y.max(), self.size.max()) < LARGE:
            # the kernel of few digits serves the inside of the range
            exact = (grid <= 0.0) | ((grid >= 1.0) & (self.family == BINOMIAL)) if self.family != NORMAL else ~exact
        value, first = np.empty(grid.size), np.empty(grid.size)
        value[exact], first[exact], _ = self.slope(offset, grid[exact])
        places = grid[~exact]
        out = np.empty((places.size, 2))
        base = offset - self.prepared[2]
        size = 1.0 / self.size if self.family == NORMAL else self.size
        self._spread(lambda part: quick_slope(self.family, self.y, size, base, places[part], out[part]), places.size)
        value[~exact], first[~exact] = out.T
        return value, first

    def _spread(self, work: Callable[[slice], None], count: int) -> None:
        pieces = [slice(low, min(low + 8, count)) for low in range(0, count, 8)]
        if self.threads == 1 or len(pieces) <= 1 or count * self.y.size < WORTH_THREADS:
            for piece in pieces:
                work(piece)
            return
        with ThreadPoolExecutor(min(self.threads, len(pieces))) as pool:
            list(pool.map(work, pieces))


def _grid(units: _Units) -> Array:
    """Places from the smallest to the largest raw estimate, between which no optimal population has any."""
    angles, sds = units.angles()
    low, high = float(angles.min()), float(angles.max())
    points = [np.array([low, high])]
    levels = np.floor(np.log2(sds)).astype(int)
    for level in np.unique(levels):
        # Units of about the same standard deviation: a lattice of their own around each; finer ones contain coarser
        step, reach = FINENESS * 2.0**level, REACH * 2.0 ** (level + 1)
        first = np.ceil((np.maximum(angles[levels == level] - reach, low)) / step)
        last = np.floor((np.minimum(angles[levels == level] + reach, high)) / step)
        points += [step * lattice for lattice in _runs(first, last)]
    places = np.unique(units.to_place(np.unique(np.concatenate(points))))
    bottom, top = float(units.raw.min()), float(units.raw.max())
    return np.concatenate([[bottom], places[(places > bottom) & (places < top)], [top] if top > bottom else []])


def _runs(first: Array, last: Array) -> list[Array]:
    """The whole numbers from first_i to last_i over all i, each once, as runs."""
    order = np.argsort(first)
    first, last = first[order], np.maximum.accumulate(last[order])
    new = np.flatnonzero(first[1:] > last[:-1] + 1.0) + 1
    return [
        np.arange(a, b + 1.0) for a, b in zip(first[np.r_[0, new]], last[np.r_[new - 1, last.size - 1]], strict=True)
    ]


def _local_maxima(units: _Units, offset: Array, grid: Array) -> tuple[Array, Array]:
    """Every local maximum of D over the range of the raw estimates, ends included, and its value."""
    value, first = units.slope_on(offset, grid)
    rising = first > 0.0
    inside = np.flatnonzero(rising[:-1] & ~rising[1:])
    tops, values = _climb(units, offset, grid[inside], grid[inside + 1], first[inside], first[inside + 1])
    ends = np.flatnonzero([not rising[0], bool(rising[-1])])
    at_ends = np.array([0, grid.size - 1])[ends]
    # The grid's own values are what is left should a root not have been found to the last digit
    best = int(np.argmax(value))
    tops = np.concatenate([tops, grid[at_ends], grid[[best]]])
    values = np.concatenate([values, value[at_ends], value[[best]]])
    order = np.argsort(tops)
    return tops[order], values[order]


def _climb(units: _Units, offset: Array, low: Array, high: Array, at_low: Array, at_high: Array) -> tuple[Array, Array]:
    """The maximum of D between each low and high, where its derivative changes sign: Newton within the bracket."""
    if not low.size:
        return low, low
    low, high, span = low.copy(), high.copy(), high - low
    x = low + span * (at_low / np.maximum(at_low - at_high, 1e-300))
    value, open_ = np.zeros(low.size), np.arange(low.size)
    for _ in range(60):
        at = x[open_]
        value[open_], first, second = units.slope(offset, at)
        low[open_], high[open_] = np.where(first > 0.0, at, low[open_]), np.where(first > 0.0, high[open_], at)
        newton = at - first / np.where(second < 0.0, second, np.nan)
        fine = (newton >= low[open_]) & (newton <= high[open_])
        following = np.where(fine, newton, 0.5 * (low[open_] + high[open_]))
        # The error of D is of the order of the square of the step that is not made
        going = np.abs(following - at) > SMALL * span[open_]
        x[open_[going]] = following[going]
        open_ = open_[going]
        if not open_.size:
            break
    return x, value


def _extended(places: Array, weights: Array, tops: Array, values: Array) -> tuple[Array, Array]:
    """The places with the best of the maxima between each two neighbours, and weights to start from."""
    better = np.flatnonzero(values > 1.0)
    slots = np.searchsorted(places, tops[better])
    order = np.lexsort((-values[better], slots))
    leading = better[order][np.r_[True, np.diff(slots[order]) > 0]]
    leading = leading[np.argsort(-values[leading])][:MOST_NEW]
    added = np.setdiff1d(tops[leading], places)
    everything = np.concatenate([places, added])
    order = np.argsort(everything)
    return everything[order], np.concatenate([weights, np.zeros(added.size)])[order]


def _merged(units: _Units, grid: Array, places: Array, weights: Array) -> tuple[Array, Array]:
    """The places with those that have collapsed onto each other replaced by their mean."""
    if places.size == 1:
        return places, weights
    angles, steps = units.to_angle(places), np.diff(units.to_angle(grid))
    local = steps[np.clip(np.searchsorted(grid, places[:-1], side="right") - 1, 0, steps.size - 1)]
    starts = np.flatnonzero(np.r_[True, np.diff(angles) > NEAR * local])
    total = np.add.reduceat(weights, starts)
    return np.add.reduceat(weights * places, starts) / total, total
