"""Whether the population of `pp.pool` fits: the units' data under its marginal distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas
from partialpool.present.profile import at_most, below_or_at, places_of_units, population_nodes
from partialpool.present.transforms import pit_heights, verdict
from partialpool.present.units import with_data

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_CHECKED = 5000


def pit(pooled: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """See `UnitPlots.pit`."""
    units, notes = with_data(pooled.units)
    chosen = np.arange(units.n)
    if units.n > MAX_CHECKED:
        rng = np.random.default_rng(pooled.seed)
        chosen = np.sort(rng.choice(units.n, MAX_CHECKED, replace=False))
        notes.append(f"{len(chosen):,} of {units.n:,} units, drawn at random.")
    bars = int(np.clip(len(chosen) // 5, 4, 20))
    edges = np.linspace(0, 1, bars + 1)
    below, at = pit_bounds(pooled, units.rows[chosen])
    heights = pit_heights(below, at, edges)
    figure, axes = canvas.one_axes(ax, figsize, (6.4, 3.8))
    total, share = np.array([float(len(chosen))]), 1 / bars
    counts = np.arange(len(chosen) + 1.0)
    quantiles = np.searchsorted(at_most("binomial", counts, total, share), [0.05, 0.95])
    ends = [float(count) * bars / len(chosen) for count in quantiles]
    axes.axhspan(ends[0], ends[1], color="#DADADA", linewidth=0, label="90% of bars, where the population is right")
    axes.axhline(1, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), zorder=3)
    axes.stairs(heights, edges, fill=True, color=canvas.POOLED, alpha=0.45, label="units", zorder=2)
    axes.stairs(heights, edges, color=canvas.POOLED, linewidth=1.1, zorder=2)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.12 * max(float(heights.max()), ends[1]))
    axes.set_xlabel("probability of lower data than the unit's under the population")
    axes.set_ylabel("relative frequency")
    canvas.tidy(axes, grid="")
    canvas.legend_above(axes, 2)
    if ax is None:
        canvas.heading(figure, "Does the population fit? Probability-integral transform")
        canvas.footnote(figure, [verdict(below, at), *notes])
    return figure


def pit_bounds(pooled: Any, chosen: Ints) -> tuple[Array, Array]:
    """The marginal probabilities of lower data than a unit's, and of data as low or lower, (n,) each."""
    family = pooled.family
    y = np.asarray(pooled.units.y, dtype=float)[chosen]
    size = np.asarray(pooled.units.size, dtype=float)[chosen]
    places, weights = population_nodes(pooled)
    own = places_of_units(pooled, places, chosen)
    at = below_or_at(family, y, size, own, weights)
    below = at if family == "normal" else below_or_at(family, y - 1, size, own, weights)
    return np.minimum(below, at), at
