"""Whether the population of `pp.pool` fits: the units' data under its marginal distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas
from partialpool.present.profile import at_most, below_or_at, places_of_units, population_nodes
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


def pit_heights(below: Array, at: Array, edges: Array) -> Array:
    """Bars of the nonrandomised histogram (Czado, Gneiting & Held 2009), (bars,), whose mean is 1.

    Each unit's mass is spread evenly between its two probabilities.

    Examples
    --------
    >>> pit_heights(np.array([0.2]), np.array([0.7]), np.array([0.0, 0.5, 1.0]))
    array([1.2, 0.8])
    """
    width = at - below
    spread = width > 1e-12
    ends = np.clip((edges[:, None] - below[spread]) / width[spread], 0, 1).sum(axis=1)
    counts = np.diff(ends) + np.histogram(at[~spread], edges)[0]
    return np.asarray(counts / (len(at) * np.diff(edges)))


def smooth_components(below: Array, at: Array) -> Array:
    """Standardised means of the Legendre polynomials of degrees 1 to 4 of the transforms, (4,).

    Standard normal and independent where the transforms are uniform (Neyman 1937). A count's polynomial is averaged
    between its two probabilities, which makes the components smaller than that, never larger.
    """
    from numpy.polynomial import legendre

    components = []
    for degree in range(1, 5):
        coefficients = np.zeros(degree + 1)
        coefficients[degree] = np.sqrt(2 * degree + 1)
        integral = legendre.legint(coefficients, scl=0.5)  # over the transform, of which the argument is 2 u - 1
        width = at - below
        spread = width > 1e-9
        area = legendre.legval(2 * at[spread] - 1, integral) - legendre.legval(2 * below[spread] - 1, integral)
        points = legendre.legval(2 * at[~spread] - 1, coefficients)
        components.append((float((area / width[spread]).sum()) + float(points.sum())) / math.sqrt(len(at)))
    return np.array(components)


def verdict(below: Array, at: Array) -> str:
    """A sentence on whether the transforms could be uniform, by Neyman's smooth test of degree four.

    Examples
    --------
    >>> even = (np.arange(100) + 0.5) / 100
    >>> verdict(even, even)
    'Compatible with a uniform distribution (p = 1.00).'
    >>> verdict(even**2, even**2)
    'Not uniform (p < 0.01): the units lie lower than this population says.'
    """
    from scipy.special import chdtrc

    components, count = smooth_components(below, at), len(at)
    share = float(chdtrc(len(components), (components**2).sum()))
    text = f"p = {share:.2f}" if share >= 0.01 else "p < 0.01"
    if share >= 0.05:
        few = f"; {count} unit{'s show' if count > 1 else ' shows'} only gross misfits" if count < 30 else ""
        return f"Compatible with a uniform distribution ({text}){few}."
    simple = np.abs(components[:2])  # place and spread explain what they can
    largest = int(np.argmax(simple if simple.max() > 2.6 else np.abs(components)))
    up = components[largest] > 0
    how = {
        0: f"the units lie {'higher' if up else 'lower'} than this population says",
        1: f"the units spread {'more' if up else 'less'} than this population says",
        2: "the population has another skewness",
        3: "the population has other tails",
    }[largest]
    return f"Not uniform ({text}): {how}."
