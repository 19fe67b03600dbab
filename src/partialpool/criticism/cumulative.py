r"""How fast posterior distributions change with a power of the prior or of the likelihood, at the power 1.

With F the distribution function of a parameter and ``dF`` its derivative in the power alpha at 1, which is exact,

.. math:: dF(x) = \sum_k w_k \left[(\ell_k - \bar\ell)\, F_k(x) + dF_k(x)\right]

over the points (weight w_k, slope of the log weight l_k, distribution given the point F_k, its own slope dF_k), three
numbers are read off:

*change*: the cumulative Jensen-Shannon distance between the posteriors at alpha and at 1, per unit of log2 alpha as
alpha goes to 1 (Kallioinen, Paananen, Buerkner and Vehtari, 2023, Detecting and diagnosing prior and likelihood
sensitivity with power-scaling, Statistics and Computing 34, 57). Their distance has, in the limit, the slope

.. math:: \sqrt{\tfrac{\ln 2}{8}\, \int \frac{dF^2}{F} \Big/ \int F},

the larger of that and the same of -x.

*shift* and *narrowing*: where quantiles go as alpha is doubled, on the scale on which the posterior is standard normal:
the p-quantile moves by ``-ln 2 dF(x_p) / phi(z_p)``; the mean of the moves of the median and the 16% and 84% quantiles
is the shift, in posterior sds; half the difference of the outer ones is the relative change of the width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.mixture import mixture_summary
from partialpool.criticism.reweight import Points, Slope

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Points of the grid on which distribution functions are compared, and the share of the posterior left out at each end.
GRID, TAIL = 201, 5e-4
#: Blocks of the jackknife.
BLOCKS = 10
#: Normal scores of the quantiles whose moves are measured.
SCORES = (-1.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Rates:
    """For each of S slopes and each parameter (S, parameters): change, its Monte Carlo error, shift and narrowing."""

    change: Array
    error: Array
    shift: Array
    narrowing: Array


def rates(points: Points, slopes: Sequence[Slope]) -> Rates:
    """Of every parameter, coefficients first, then hyperparameters."""
    columns = [_coefficient_sums(points, slopes, j) for j in range(points.gamma.shape[1])]
    columns += [_step_sums(points, slopes, values) for values in points.hyper.T]
    count = len(slopes)
    out = [_measured(sums, count) for sums in columns]
    if not out:
        return Rates(*(np.empty((count, 0)) for _ in range(4)))
    return Rates(*(np.stack(part, axis=1) for part in zip(*out, strict=True)))


@dataclass(frozen=True, eq=False)
class _Sums:
    """By block of points: sums of w (B,), w l (B, S), w F (B, grid), w (l F + dF) (B, S, grid); and the grid."""

    weight: Array
    slope: Array
    cdf: Array
    both: Array
    grid: Array


def _blocks(points: Points) -> Ints:
    """The block of each point: in turn, or as they stand in chains."""
    count = len(points.theta)
    blocks = min(BLOCKS, count)
    order = np.arange(count)
    return np.asarray(order * blocks // count if points.chains else order % blocks, dtype=np.int64)


def _scalars(points: Points, slopes: Sequence[Slope]) -> tuple[Ints, Array, Array, Array]:
    """Blocks (K,), weights (K,), slopes less their means (K, S), and the sums over blocks of the weights."""
    blocks, weights = _blocks(points), points.weights
    values = np.stack([slope.value for slope in slopes], axis=1)
    values = values - weights @ values
    return blocks, weights, values, np.asarray(np.bincount(blocks, weights), dtype=np.float64)


def _by_block(values: Array, blocks: Ints) -> Array:
    out = np.zeros((int(blocks.max()) + 1, *values.shape[1:]))
    np.add.at(out, blocks, values)
    return out


def _step_sums(points: Points, slopes: Sequence[Slope], values: Array) -> _Sums:
    """Where a point is one value of the parameter."""
    blocks, weights, slope, total = _scalars(points, slopes)
    order = np.argsort(values)
    ordered, mass = values[order], np.cumsum(weights[order])
    low, high = np.interp([TAIL, 1 - TAIL], mass, ordered)
    grid = np.linspace(low, high, GRID)
    cells = np.searchsorted(grid, values)  # the first place of the grid that counts the point
    cdf = np.zeros((len(total), GRID + 1))
    np.add.at(cdf, (blocks, cells), weights)
    both = np.zeros((len(total), GRID + 1, slope.shape[1]))
    np.add.at(both, (blocks, cells), weights[:, None] * slope)
    summed = np.moveaxis(np.cumsum(both, axis=1)[:, :GRID], 2, 1)
    return _Sums(total, _by_block(weights[:, None] * slope, blocks), np.cumsum(cdf, axis=1)[:, :GRID], summed, grid)


def _coefficient_sums(points: Points, slopes: Sequence[Slope], j: int) -> _Sums:
    """Where a coefficient is normal given the point."""
    mean, sd = points.beta[0][:, j], points.beta[1][:, j]
    if not (sd > 0).all():
        return _step_sums(points, slopes, mean)
    from scipy.special import ndtr

    blocks, weights, slope, total = _scalars(points, slopes)
    ends = mixture_summary(weights, mean[:, None], sd[:, None], [TAIL, 1 - TAIL])[2]
    grid = np.linspace(float(ends[0, 0]), float(ends[1, 0]), GRID)
    z = (grid[None, :] - mean[:, None]) / sd[:, None]
    own = ndtr(z) * weights[:, None]
    density = np.exp(-0.5 * z * z) * (weights / (sd * math.sqrt(2 * math.pi)))[:, None]
    stretch = density * z
    count = len(total)
    cdf, both = np.zeros((count, GRID)), np.zeros((count, len(slopes), GRID))
    moved = np.stack([s.mean[:, j] for s in slopes], axis=1)
    wider = np.stack([s.variance[:, j] for s in slopes], axis=1) / (2 * sd)[:, None]
    for block in range(count):
        part = blocks == block
        cdf[block] = own[part].sum(axis=0)
        both[block] = slope[part].T @ own[part] - moved[part].T @ density[part] - wider[part].T @ stretch[part]
    return _Sums(total, _by_block(weights[:, None] * slope, blocks), cdf, both, grid)


def _measured(sums: _Sums, count: int) -> tuple[Array, Array, Array, Array]:
    """change, its jackknife error, shift, narrowing, each (S,)."""
    parts = (sums.weight, sums.slope, sums.cdf, sums.both)
    whole = [part.sum(axis=0) for part in parts]
    cdf, slope = _combined(*whole)
    change = _distance(cdf, slope, sums.grid)
    blocks = len(sums.weight)
    error = np.full(count, math.nan)
    if blocks > 1:
        left = [
            _distance(*_combined(*(total - part[b] for total, part in zip(whole, parts, strict=True))), sums.grid)
            for b in range(blocks)
        ]
        error = np.sqrt((blocks - 1) * np.var(left, axis=0))
    shift, narrowing = _moves(cdf, slope)
    return change, error, shift, narrowing


def _combined(weight: Array, slope: Array, cdf: Array, both: Array) -> tuple[Array, Array]:
    """F (grid,) and dF (S, grid)."""
    whole = cdf / weight
    return whole, both / weight - (slope / weight)[:, None] * whole


def _distance(cdf: Array, slope: Array, grid: Array) -> Array:
    """The rate of the cumulative Jensen-Shannon distance, (S,)."""
    if not grid[-1] > grid[0]:
        return np.zeros(len(slope))
    out = []
    for own in (cdf, 1 - cdf):
        kept = own > 1e-9
        share = (slope[:, kept] ** 2 / own[kept]).sum(axis=1) / own[kept].sum()
        out.append(np.sqrt(math.log(2) / 8 * share))
    return np.asarray(np.maximum(*out))


def _moves(cdf: Array, slope: Array) -> tuple[Array, Array]:
    normal = NormalDist()
    levels = [normal.cdf(z) for z in SCORES]
    increasing = np.maximum.accumulate(cdf)
    moves = []
    for level, z in zip(levels, SCORES, strict=True):
        at = np.interp(level, increasing, np.arange(len(cdf)))
        values = np.array([np.interp(at, np.arange(len(cdf)), own) for own in slope])
        moves.append(-math.log(2) * values / normal.pdf(z))
    low, _, high = moves
    return np.mean(moves, axis=0), (high - low) / 2
