r"""Adaptive quadrature over the few hyperparameters of a population: no sampling, no tuning.

The density is evaluated on a lattice :math:`x = m + h L i`, :math:`i \in \mathbb{Z}^d`, with m the mode, L a factor of
the inverse curvature there and h a step in standard deviations. On such a lattice the trapezoid rule converges faster
than any power of h for a smooth density that vanishes at both ends (for a normal one the error is
:math:`2 e^{-2 \pi^2 / h^2}`; Trefethen and Weideman, 2014, SIAM Review 56, 385-458). The lattice grows outwards
from the mode, neighbour by neighbour, wherever the density still matters, so that it follows any shape: the long left
tail of the log of a small sd, a banana. Its error is measured: half of the nodes (those with an even sum of indices)
form a coarser lattice; what both say is compared, and the step is halved until they agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import InferenceError
from partialpool.inference.importance import logsumexp
from partialpool.inference.optimum import Optimum, maximise, negative_hessian

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
LogDensity = Callable[[Array], Array]


class Care(NamedTuple):
    """How fine a lattice is.

    step : the first, in standard deviations, halved where the measured error asks for it. drop : the lattice ends where
    the density has fallen to exp(-drop) of its maximum. tolerance : coarse and full lattice may differ by so much.
    """

    step: float
    drop: float
    tolerance: float


#: Where evaluations are cheap: finer and wider than anybody asks for. In three dimensions. Where evaluations are dear:
#: data so large leave a density that is as good as normal.
THOROUGH, USUAL, QUICK = Care(0.8, 23.0, 1e-7), Care(0.8, 16.0, 1e-4), Care(1.0, 11.0, 2e-3)
HALVINGS = 4
#: Curvatures (in units of the spread that was guessed) are taken to be at least this.
FLATTEST = 0.01
#: Rounding of a sum is about this share of it.
ROUNDING = 1e-14
#: More nodes than this are not evaluated: the density then has no finite extent worth the name.
MOST_NODES = 60_000
#: Each cell of a line is cut into so many for quantiles.
FINE = 16
#: The neighbours of a cell from which it is interpolated.
POINTS = np.arange(-2, 4)
#: Nodes by which lines are continued beyond their ends, so that the cells at the ends can be interpolated.
BEYOND = 3
#: Step of the differences that stand for derivatives.
DIFFERENCE = 1e-4


@dataclass(frozen=True, eq=False)
class WeightedNodes:
    """A density on nodes with weights.

    Attributes
    ----------
    nodes : (K, d) points; weights : (K,), they sum to 1.
    log_normaliser : log of the integral of the density.
    error : as measured.
    """

    nodes: Array
    weights: Array
    log_normaliser: float
    error: float

    def significant(self, mass: float = 1e-6) -> tuple[Array, Array]:
        """The nodes and weights that are left when the lightest, `mass` of all together, are dropped."""
        order = np.argsort(self.weights)
        keep = np.sort(order[np.cumsum(self.weights[order]) > mass])
        weights = self.weights[keep]
        return self.nodes[keep], weights / weights.sum()


@dataclass(frozen=True, eq=False)
class Lattice(WeightedNodes):
    """A density on the nodes of a lattice.

    Attributes
    ----------
    error : the largest difference between the full and the coarser lattice: of the log of the integral, of means (in
        sds) and of log sds.
    index : (K, d) whole numbers; log_density : (K,); centre (d,), factor (d, d), step: x = centre + step factor index.
    """

    index: Ints
    log_density: Array
    centre: Array
    factor: Array
    step: float

    def quantiles(self, function: Callable[[Array], Array], probabilities: ArrayLike) -> Array:
        """Quantiles of a function of the hyperparameters, (N, d) -> (N,).

        Along the lines of the lattice on which the function changes most, the log density is interpolated (a normal
        one exactly). The share of a line below a value is then smooth from line to line, so that the sum over lines is
        as exact as the integral.
        """
        moved = [
            abs(float(np.diff(function(self.centre + self.step * np.outer([-1, 1], column)))[0]))
            for column in self.factor.T
        ]
        left, right, weights = self._pieces(int(np.argmax(moved)))
        ends = np.sort(np.stack([function(left), function(right)]), axis=0)
        width = np.maximum(ends[1] - ends[0], 1e-12 * np.maximum(np.abs(ends[1]), 1e-300))
        # each piece spreads its weight evenly between its ends: the sum of ramps is the distribution function
        places = np.concatenate([ends[0], ends[0] + width])
        order = np.argsort(places, kind="stable")
        places = places[order]
        slope = np.cumsum(np.concatenate([weights / width, -weights / width])[order])[:-1]
        below = np.concatenate([[0.0], np.cumsum(np.maximum(slope, 0.0) * np.diff(places))])
        return np.asarray(np.interp(np.atleast_1d(np.asarray(probabilities, dtype=float)), below / below[-1], places))

    def _extend(self, height: Array) -> None:
        """Continue each line (lines, places) by `BEYOND` nodes at both ends, by the polynomial through its last nodes.

        The cells at the ends need neighbours to be interpolated from. A line of one or two nodes takes the curvature
        of a normal density.
        """
        rows = np.arange(len(height))
        lengths = np.isfinite(height).sum(axis=1)
        for ends, inward in zip(_ends(height), (1, -1), strict=True):
            last = [height[rows, np.clip(ends + k * inward, 0, height.shape[1] - 1)] for k in range(POINTS.size)]
            # a parabola of the curvature -step^2, symmetric where there is one node
            slope = np.where(lengths == 1, 0.5 * self.step**2, last[0] - last[1]) - self.step**2
            for k in range(1, BEYOND + 1):
                value = last[0] + slope
                for count in range(3, POINTS.size + 1):  # the differences of this order vanish
                    signs = [(-1.0) ** i * comb(count, i + 1) for i in range(count)]
                    own = sum(sign * node for sign, node in zip(signs, last, strict=False))
                    value = np.where(np.minimum(lengths, POINTS.size) == count, own, value)
                height[rows, ends - k * inward] = value
                last = [value, *last[:-1]]
                slope = slope - self.step**2

    def _pieces(self, axis: int) -> tuple[Array, Array, Array]:
        """Short pieces of the lines along one axis: their ends (N, d) and (N, d), and their weights."""
        others = np.delete(self.index, axis, axis=1)
        lines, line_of = np.unique(others, axis=0, return_inverse=True)
        first = int(self.index[:, axis].min()) - BEYOND
        height = np.full((len(lines), int(self.index[:, axis].max()) + BEYOND + 1 - first), np.nan)
        height[np.ravel(line_of), self.index[:, axis] - first] = self.log_density - self.log_density.max()
        known = np.isfinite(height)
        lone = known.sum(axis=1) == 1  # such a line has no cells of its own: it keeps those on both sides
        self._extend(height)
        t = (np.arange(FINE) + 0.5) / FINE
        windows = np.lib.stride_tricks.sliding_window_view(height, POINTS.size, axis=1)
        # Lagrange's interpolation from the neighbours, between the two in the middle
        shares = np.stack([
            np.prod([(t - other) / (point - other) for other in POINTS if other != point], axis=0) for point in POINTS
        ])  # fmt: skip
        with np.errstate(invalid="ignore", over="ignore"):
            weights = np.exp(np.minimum(windows @ shares, 1.0))  # (lines, cells, FINE)
        left_end, right_end = known[:, -POINTS[0] : -POINTS[-1]], known[:, 1 - POINTS[0] : 1 - POINTS[-1] or None]
        own = (left_end & right_end) | (lone[:, None] & (left_end | right_end))
        weights *= own[:, :, None]
        at, cell, part = np.nonzero(weights > 1e-13)
        middle = np.empty((at.size, self.index.shape[1]))
        middle[:, np.arange(middle.shape[1]) != axis] = lines[at]
        middle[:, axis] = first - POINTS[0] + cell + t[part]
        half = np.zeros(middle.shape[1])
        half[axis] = 0.5 / FINE
        left, right = (self.centre + self.step * (middle + side * half) @ self.factor.T for side in (-1, 1))
        return left, right, weights[at, cell, part]


def _ends(height: Array) -> tuple[Ints, Ints]:
    """Of each line its first node and its last."""
    known = np.isfinite(height)
    return known.argmax(axis=1), height.shape[1] - 1 - known[:, ::-1].argmax(axis=1)


def with_differences(log_density: LogDensity, step: float = DIFFERENCE) -> Callable[[Array], tuple[Array, Array]]:
    """The objective that `maximise` wants: values and gradients, by central differences in one batch."""

    def objective(points: Array) -> tuple[Array, Array]:
        count, d = points.shape
        offsets = step * np.eye(d)
        batch = np.concatenate([points[:, None, :], points[:, None, :] + offsets, points[:, None, :] - offsets], axis=1)
        values = log_density(batch.reshape(-1, d)).reshape(count, 1 + 2 * d)
        with np.errstate(invalid="ignore"):
            slopes = (values[:, 1 : 1 + d] - values[:, 1 + d :]) / (2 * step)
        return values[:, 0], np.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0)

    return objective


def in_units(log_density: LogDensity, spread: Array) -> LogDensity:
    """The same density of x / spread: steps, differences and curvatures then know the units of a coordinate."""
    return lambda z: log_density(z * spread)


def find_mode(log_density: LogDensity, start: Array, spread: Array) -> Optimum:
    """The highest point, from `start`, where one standard deviation is about `spread`."""
    objective = with_differences(in_units(log_density, spread))
    found = maximise(objective, start / spread, np.ones(spread.size), tolerance=1e-11)
    return replace(found, point=found.point * spread, gradient=found.gradient / spread)


@dataclass(frozen=True, eq=False)
class Peak:
    """The highest point of a density (d,), its log density there, the negative Hessian (d, d), and units (d,), or 1."""

    point: Array
    value: float
    curvature: Array
    spread: Array | None = None


def curvature_at(log_density: LogDensity, point: Array, spread: Array, steps: tuple[float, float]) -> Array:
    """Negative Hessian of a log density of x / spread, (d, d), by differences of so many spreads."""
    return negative_hessian(with_differences(in_units(log_density, spread), steps[0]), point / spread, steps[1])


def peak_of(log_density: LogDensity, start: ArrayLike, spread: ArrayLike) -> Peak:
    """Found by BFGS from `start`, where one standard deviation is about `spread`."""
    units = np.asarray(spread, dtype=float)
    found = find_mode(log_density, np.asarray(start, dtype=float), units)
    curvature = curvature_at(log_density, found.point, units, (1e-3, 3e-2)) / np.outer(units, units)
    return Peak(found.point, found.value, curvature, units)


def polished(log_density: LogDensity, guess: Peak) -> Peak | None:
    """The peak of a density of which another, much like it (a sample of its data), is known; None where it is not near.

    Newton's method with the curvature of the guess: a few evaluations, where each is dear.
    """
    if np.linalg.eigvalsh(guess.curvature)[0] <= 0:
        return None
    sds = np.sqrt(np.diag(np.linalg.inv(guess.curvature)))
    objective = with_differences(in_units(log_density, sds), 0.05)
    point = guess.point
    for _ in range(6):
        values, gradients = objective(point[None, :] / sds)
        slope = gradients[0] / sds
        step = np.linalg.solve(guess.curvature, slope)
        gain = 0.5 * float(slope @ step)
        if not np.isfinite(gain) or np.abs(step / sds).max() > 30:
            return None
        if gain < 1e-3:
            return Peak(point, float(values[0]), guess.curvature, guess.spread)
        point = point + step
    return None


def explore(
    log_density: LogDensity,
    peak: Peak,
    *,
    care: Care = THOROUGH,
    budget: int = MOST_NODES,
    others: Sequence[Array] = (),
) -> Lattice:
    """Integrate a density over the whole space, adaptively.

    Parameters
    ----------
    log_density : callable, (K, d) -> (K,)
        Smooth, and falling to 0 in every direction at least exponentially.
    peak : Peak
        Where the lattice starts; it need not be exact.
    care : Care
        How fine the lattice is.
    budget : int
        The step is not halved where that would take more nodes than this; the measured error then says what is left.
    others : sequence of (d,)
        Other peaks, from which the lattice grows too.

    Raises
    ------
    InferenceError
        Where the density does not fall off: its integral is infinite, or nearly so.

    Examples
    --------
    >>> def log_density(x):
    ...     return -0.5 * (x**2).sum(axis=1)
    >>> lattice = explore(log_density, peak_of(log_density, [1.0, -1.0], [1.0, 1.0]))
    >>> bool(abs(lattice.log_normaliser - np.log(2 * np.pi)) < 1e-8)
    True
    """
    spread = np.ones(peak.point.size) if peak.spread is None else peak.spread
    eigenvalues, vectors = np.linalg.eigh(peak.curvature * np.outer(spread, spread))
    eigenvalues = np.where(eigenvalues > FLATTEST, eigenvalues, np.maximum(np.abs(eigenvalues), FLATTEST))
    factor = spread[:, None] * np.linalg.cholesky((vectors / eigenvalues) @ vectors.T)
    step, drop, tolerance = care
    tolerance = max(tolerance, 10 * ROUNDING * abs(peak.value))
    for number in range(HALVINGS + 1):
        lattice = _filled(log_density, peak, factor, step, drop, others)
        if (
            lattice.error <= tolerance
            or 2 ** len(factor) * len(lattice.nodes) > min(budget, MOST_NODES)
            or number == HALVINGS
        ):
            break
        step *= 0.5
    return lattice


def _filled(
    log_density: LogDensity, peak: Peak, factor: Array, step: float, drop: float, others: Sequence[Array] = ()
) -> Lattice:
    """The lattice of one step, grown from its centre and from the nodes nearest to other peaks."""
    centre = peak.point
    d = centre.size
    seeds = {(0,) * d}
    for other in others:
        seeds.add(tuple(np.rint(np.linalg.solve(factor, other - centre) / step).astype(np.int64).tolist()))
    neighbours = np.concatenate([np.eye(d, dtype=np.int64), -np.eye(d, dtype=np.int64)])
    seen: set[tuple[int, ...]] = set(seeds)
    frontier = np.array(sorted(seeds), dtype=np.int64).reshape(-1, d)
    indices, heights = [], []
    count, highest = 0, peak.value
    while len(frontier):
        values = log_density(centre + step * frontier @ factor.T)
        values = np.where(np.isnan(values), -np.inf, values)
        indices.append(frontier)
        heights.append(values)
        count += len(frontier)
        highest = max(highest, float(values.max()))
        if count > MOST_NODES:
            raise InferenceError(
                "The posterior of the population's parameters has no end that could be found: these data and this "
                "prior hardly determine it. Give the sd a prior with a scale, such as pp.HalfNormal(1)."
            )
        alive = frontier[values > highest - drop]
        following = set(itertools.chain.from_iterable(map(tuple, (point + neighbours).tolist()) for point in alive))
        fresh = sorted(following - seen)
        seen.update(fresh)
        frontier = np.array(fresh, dtype=np.int64).reshape(-1, d)
    index, height = np.concatenate(indices), np.concatenate(heights)
    finite = height > highest - 2 * drop
    index, height = index[finite], height[finite]
    nodes = centre + step * index @ factor.T
    volume = d * np.log(step) + float(np.log(np.diag(factor)).sum())
    even = index.sum(axis=1) % 2 == 0
    full = _moments(nodes, height, volume)
    half = _moments(nodes[even], height[even], volume + np.log(2.0))
    sd = full[2]
    error = max(
        float(np.exp(-drop)),  # what the lattice leaves out
        abs(full[0] - half[0]),
        float((np.abs(full[1] - half[1]) / sd).max()),
        float(np.abs(np.log(np.maximum(half[2], 1e-300) / sd)).max()),
    )
    weights = np.exp(height - height.max())
    return Lattice(nodes, weights / weights.sum(), full[0], error, index, height, centre, factor, step)


def _moments(nodes: Array, height: Array, volume: float) -> tuple[float, Array, Array]:
    """Log integral, mean (d,) and sd (d,)."""
    total = float(logsumexp(height))
    weights = np.exp(height - total)
    mean = weights @ nodes
    return total + volume, mean, np.sqrt(np.maximum(weights @ (nodes - mean) ** 2, 1e-300))
