"""Figures of all units of `pp.pool` together: the funnel plot, and the population against the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.present import canvas
from partialpool.present.units import SIZES, centre, log_axis, measure, names_of, with_data

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: One-sided tails of the control limits, 95% and 99.8%.
TAILS = (0.025, 0.001)
MAX_DOTS = 2000
MAX_NAMES = 15
MAX_RUG = 1000
MAX_SIZES = 60
MAX_EXPECTED = 60


# The funnel -----------------------------------------------------------------------------------------------------------


def funnel(pooled: Any, target: float | None, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """See `UnitPlots.funnel`."""
    units, omitted = with_data(pooled.units)
    value = _checked_target(units, target)
    raw = np.asarray(units.raw, dtype=float)
    precision = _precision_of(units.family, units.size)
    sizes = _size_grid(units)
    solid = [control_limits(units.family, np.array([value]), np.ones(1), sizes, tail) for tail in TAILS]
    places, weights = population_nodes(pooled)
    if target is not None:
        places = moved(units.family, places, _shift_to(pooled, value))
    dashed = [control_limits(units.family, places, weights, sizes, tail) for tail in TAILS]
    beyond = _outside(units, value, TAILS[1])
    low, high = (np.interp(np.log(units.size), np.log(sizes), limit) for limit in dashed[1])
    unusual = beyond & ((raw < low) | (raw > high))
    figure, axes = canvas.one_axes(ax, figsize, (7.2, 5.0))
    shown = _dots(raw, beyond | unusual)
    _funnel_lines(axes, _precision_of(units.family, sizes), value, solid, dashed)
    _funnel_dots(axes, precision, raw, shown, (beyond, unusual))
    usual = np.log(np.median(units.size))
    heights = [float(np.interp(usual, np.log(sizes), limit)) for limit in (*solid[1], *dashed[1])]
    _funnel_axes(axes, units, precision, np.concatenate([raw[shown], heights]))
    notes = [
        *omitted,
        f"Solid: limits around {'complete pooling' if target is None else 'the target'}, {value:.4g}; "
        "dashed: with the spread of the population.",
        f"Outside of the solid 99.8% limits: {int(beyond.sum()):,} of {units.n:,} units; "
        f"of the dashed ones too: {int(unusual.sum()):,}.",
    ]
    if pooled.units.X is not None:
        notes.append("Raw estimates are not adjusted for the covariates; the dashed limits are those at their mean.")
    if len(shown) < units.n:
        notes.append(f"{len(shown):,} units shown, evenly spaced by rank within each kind.")
    _legend(axes)
    if ax is None:
        canvas.heading(figure, "Funnel plot: raw estimates by precision")
        canvas.footnote(figure, notes)
    _name_outside(axes, units, precision, shown, beyond, unusual, value)
    return figure


def _legend(axes: Axes) -> None:
    """In two rows, filled column by column."""
    canvas.legend_above(axes, math.ceil(len(axes.get_legend_handles_labels()[0]) / 2))


def _checked_target(units: Any, target: float | None) -> float:
    if target is None:
        return float(units.complete_pooling)
    value = float(target)
    highest = 1.0 if units.family == "binomial" else math.inf
    lowest = -math.inf if units.family == "normal" else 0.0
    if not lowest < value < highest:
        what = "a probability between 0 and 1" if units.family == "binomial" else "a positive rate"
        raise ModelError(
            f"target={value:g} cannot be a unit's value; give {what if lowest == 0 else 'a finite number'}."
        )
    return value


def _precision_of(family: str, size: Array) -> Array:
    return np.asarray(1 / size**2 if family == "normal" else size)


def _size_grid(units: Any) -> Array:
    """Sizes at which limits are computed: the units' own where they are few, and enough between and beyond."""
    size = np.asarray(units.size, dtype=float)
    own = np.unique(size)
    low, high = float(own[0]), float(own[-1])
    if high < 2 * low:
        low, high = low / 1.5, high * 1.5
    grid = np.geomspace(low / 1.08, high * 1.08, MAX_SIZES)
    if len(own) <= 2 * MAX_SIZES:
        grid = np.concatenate([grid, own])
    return np.unique(np.maximum(1, np.round(grid)) if units.family == "binomial" else grid)


def control_limits(
    family: str, places: Array, weights: Array, size: Array, tail: float
) -> tuple[Array, Array]:  # fmt: skip
    """The raw estimates that a unit of each size falls below, or above, with probability `tail`.

    Counts are interpolated so that an estimate is below its lower limit exactly where the probability of one as low
    is under `tail`, and above its upper limit exactly where the probability of one as high is (Spiegelhalter 2005,
    appendix, made symmetric).

    Parameters
    ----------
    family : {"normal", "binomial", "poisson"}
    places, weights : ndarray of shape (m,)
        The units' own parameters, on the natural scale, and their probabilities; one place for a target.
    size : ndarray of shape (n,)
        Standard errors, trials or exposures.
    tail : float

    Returns
    -------
    low, high : ndarray of shape (n,)

    Examples
    --------
    >>> low, high = control_limits("binomial", np.array([0.5]), np.ones(1), np.array([100.0]), 0.025)
    >>> bool(0.39 < low[0] <= 0.40 and 0.60 <= high[0] < 0.61)  # P(Y <= 39) = 0.0176, P(Y <= 40) = 0.0284
    True
    """
    size = np.asarray(size, dtype=float)
    if family == "normal":
        return _normal_limits(places, weights, size, tail)
    most = size if family == "binomial" else _most_counts(places, weights, size)
    lower = _mixture_tail(family, places, weights, size, upper=False)
    upper = _mixture_tail(family, places, weights, size, upper=True)
    # The smallest count with P(Y <= y) >= tail, and the largest with P(Y >= y) >= tail.
    first = _search(lambda count: lower(count) >= tail, np.full(len(size), -1.0), most)
    last = _search(lambda count: upper(count) < tail, np.zeros(len(size)), most + 1) - 1
    at, before = lower(first), lower(first - 1)
    low = first - (at - tail) / np.maximum(at - before, 1e-300)
    at, after = upper(last), upper(last + 1)
    high = last + (at - tail) / np.maximum(at - after, 1e-300)
    ceiling = size if family == "binomial" else np.inf
    return np.clip(low, 0, ceiling) / size, np.clip(high, 0, ceiling) / size


def _search(true_from: Callable[[Array], NDArray[np.bool_]], low: Array, high: Array) -> Array:
    """The smallest integer in (low, high] from which on a statement is true, by bisection; each has its own."""
    while bool((high - low > 1).any()):
        middle = np.floor((low + high) / 2)
        yes = true_from(middle)
        low, high = np.where(yes, low, middle), np.where(yes, middle, high)
    return high


def _most_counts(places: Array, weights: Array, size: Array) -> Array:
    """A count that is beyond every limit."""
    largest = size * float(places[weights > 0].max())
    return np.asarray(np.ceil(largest + 12 * np.sqrt(largest) + 40))


def _mixture_tail(
    family: str, places: Array, weights: Array, size: Array, *, upper: bool
) -> Callable[[Array], Array]:  # fmt: skip
    """P(Y <= y), or P(Y >= y), of counts with these sizes, as a function of y (n,)."""
    law = at_least if upper else at_most

    def tail(count: Array) -> Array:
        return np.asarray(law(family, count[:, None], size[:, None], places) @ weights)

    return tail


def at_most(family: str, count: Array, size: Array, place: Any) -> Array:
    """P(Y <= count) of a binomial or Poisson count, by the incomplete beta or gamma function.

    Examples
    --------
    >>> at_most("binomial", np.array([-1.0, 0.0, 1.0, 2.0]), np.array([2.0]), 0.5)
    array([0.  , 0.25, 0.75, 1.  ])
    """
    from scipy.special import betaincc, gammaincc

    if family == "binomial":
        inside = np.clip(count, 0, size - 1)
        value = np.where(count >= size, 1.0, betaincc(inside + 1, np.maximum(size - inside, 1), place))
    else:
        value = gammaincc(np.maximum(count, 0) + 1, size * place)
    return np.where(count < 0, 0.0, value)


def at_least(family: str, count: Array, size: Array, place: Any) -> Array:
    """P(Y >= count), with the digits of a small tail.

    Examples
    --------
    >>> at_least("binomial", np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0]), 0.5)
    array([1.  , 0.75, 0.25, 0.  ])
    """
    from scipy.special import betainc, gammainc

    if family == "binomial":
        inside = np.clip(count, 1, size)
        value = np.where(count > size, 0.0, betainc(inside, size - inside + 1, place))
    else:
        value = gammainc(np.maximum(count, 1), size * place)
    return np.where(count <= 0, 1.0, value)


def _normal_limits(places: Array, weights: Array, size: Array, tail: float) -> tuple[Array, Array]:
    from scipy.special import ndtr, ndtri

    reach = -float(ndtri(tail))
    if len(places) == 1:
        return places[0] - reach * size, places[0] + reach * size
    found = []
    for probability in (tail, 1 - tail):
        low, high = places.min() - reach * size, places.max() + reach * size
        for _ in range(50):
            middle = (low + high) / 2
            below = ndtr((middle[:, None] - places) / size[:, None]) @ weights < probability
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        found.append((low + high) / 2)
    return found[0], found[1]


def population_nodes(pooled: Any, points: int = 180) -> tuple[Array, Array]:
    """Places of theta and weights that stand for the population in an integral, (m,) each.

    Point masses as they are; between them quantiles whose probabilities are evenly spaced on the logit scale, which
    puts many into the tails that control limits depend on, with the weights of the trapezoidal rule.
    """
    spots, masses = (np.asarray(part, dtype=float) for part in pooled.population.atoms)
    if float(masses.sum()) > 1 - 1e-9:
        return spots, masses / masses.sum()
    logits = np.linspace(-14, 14, points)
    places = _population_quantiles(pooled, logits, spots)
    probabilities = 1 / (1 + np.exp(-logits))
    weights = probabilities * (1 - probabilities)
    if len(spots):
        near = (np.abs(places[:, None] - spots) <= 1e-7 * (np.abs(spots) + float(np.ptp(places)))).any(axis=1)
        places, weights = places[~near], weights[~near]
    weights *= (1 - masses.sum()) / weights.sum()
    return np.concatenate([places, spots]), np.concatenate([weights, masses])


def _population_quantiles(pooled: Any, logits: Array, spots: Array) -> Array:
    """Quantiles by the distribution function on a fine grid, between a few that the population finds itself."""
    family, population = pooled.family, pooled.population
    few = 1 / (1 + np.exp(-np.array([logits[0], -5, 0, 5, logits[-1]])))
    knots = np.unique(_on_link(family, np.asarray(population.quantile(few), dtype=float)))
    grid = [np.linspace(low, high, 120) for low, high in itertools.pairwise(knots)]
    hair = 1e-9 * float(knots[-1] - knots[0])
    sides = [_on_link(family, spots) + side for side in (-hair, hair)]  # the distribution function jumps between them
    link = np.unique(np.concatenate([knots, *grid, *sides]))
    theta = moved(family, np.full(len(link), {"normal": 0.0, "binomial": 0.5, "poisson": 1.0}[family]), link)
    below = np.clip(np.maximum.accumulate(population.cdf(theta)), 1e-300, 1 - 1e-16)
    return np.interp(1 / (1 + np.exp(-logits)), below, theta)


def _on_link(family: str, theta: Array) -> Array:
    """Identity, logit or log, short of the ends."""
    if family == "normal":
        return theta
    inside = np.maximum(theta, 1e-300)
    if family == "poisson":
        return np.log(inside)
    inside = np.minimum(inside, 1 - 1e-16)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def places_of_units(pooled: Any, places: Array, chosen: Ints) -> Array:
    """The population's places (m,), or with covariates those of each unit (n, m), by the means of the slopes."""
    units = pooled.units
    if units.X is None:
        return places
    slopes = pooled.population.summary().loc[list(units.x_names[1:]), "mean"].to_numpy(dtype=float)
    shift = (units.X[chosen, 1:] - units.X[:, 1:].mean(axis=0)) @ slopes
    return moved(units.family, places, shift[:, None])


def moved(family: str, places: Array, shift: Array | float) -> Array:
    """Places of theta after a shift on the link scale: identity, logit or log."""
    if family == "normal":
        return np.asarray(places + shift)
    if family == "poisson":
        return np.asarray(places * np.exp(shift))
    odds = np.exp(shift)
    return np.asarray(places * odds / (1 - places + places * odds))


def _shift_to(pooled: Any, target: float) -> float:
    """From the population's mean to a target, on the link scale."""
    start = centre(pooled)[0]
    if pooled.family == "normal":
        return target - start
    shift = math.log(target / start)
    return shift if pooled.family == "poisson" else shift - math.log((1 - target) / (1 - start))


def below_or_at(family: str, y: Array, size: Array, places: Array, weights: Array) -> Array:
    """P(data <= y) of units with these sizes, averaged over the population; of the shape of y.

    Parameters
    ----------
    y, size : ndarray of shape (n,)
    places : ndarray of shape (m,) or (n, m)
    weights : ndarray of shape (m,)
    """
    if family == "normal":
        from scipy.special import ndtr

        return np.asarray(ndtr((y[:, None] - places) / size[:, None]) @ weights)
    return np.asarray(at_most(family, y[:, None], size[:, None], places) @ weights)


def support(family: str) -> tuple[float, float]:
    """The values that a unit's own parameter can take."""
    return {"normal": (-math.inf, math.inf), "binomial": (0.0, 1.0), "poisson": (0.0, math.inf)}[family]


def _outside(units: Any, target: float, tail: float) -> NDArray[np.bool_]:
    """Units whose data are in a tail of the exact distribution around the target."""
    from scipy.special import ndtri

    y, size = np.asarray(units.y, dtype=float), np.asarray(units.size, dtype=float)
    if units.family == "normal":
        return np.asarray(np.abs(y - target) > -float(ndtri(tail)) * size)
    lower, upper = at_most(units.family, y, size, target), at_least(units.family, y, size, target)
    return np.asarray((lower < tail) | (upper < tail))


def _dots(raw: Array, beyond: NDArray[np.bool_]) -> Ints:
    """At most so many units of each kind, evenly spaced by the rank of their raw estimates."""
    parts = []
    for kind in (np.flatnonzero(~beyond), np.flatnonzero(beyond)):
        order = kind[np.argsort(raw[kind], kind="stable")]
        parts.append(order[canvas.spread_rows(len(order), MAX_DOTS)] if len(order) else order)
    return np.concatenate(parts)


def _funnel_lines(
    axes: Axes, precision: Array, value: float, solid: list[tuple[Array, Array]], dashed: list[tuple[Array, Array]]
) -> None:
    axes.axhline(value, color=canvas.POPULATION, linewidth=1, zorder=1)
    styles = (("95%", "#6E6E6E", 0.9), ("99.8%", "#222222", 1.3))
    for limits, dashes, what in ((solid, "-", "limits"), (dashed, (0, (4, 3)), "with the population's spread")):
        for (low, high), (share, colour, width) in zip(limits, styles, strict=True):
            for side, line in enumerate((low, high)):
                axes.plot(
                    precision, line, color=canvas.POOLED if dashes != "-" else colour, linewidth=width,
                    linestyle=dashes, label=f"{share} {what}" if side == 0 else None, zorder=2,
                )  # fmt: skip


def _funnel_dots(
    axes: Axes, precision: Array, raw: Array, shown: Ints, kinds: tuple[NDArray[np.bool_], NDArray[np.bool_]]
) -> None:
    beyond, unusual = kinds
    size = 22 if len(shown) <= 200 else 9
    inside = shown[~beyond[shown]]
    spread = shown[beyond[shown] & ~unusual[shown]]
    far = shown[unusual[shown]]
    axes.scatter(precision[inside], raw[inside], s=size, color=canvas.MUTED, alpha=0.7, linewidths=0, zorder=3)
    if len(spread):
        axes.scatter(
            precision[spread], raw[spread], s=size, facecolors="none", edgecolors=canvas.RAW, zorder=4,
            label="outside 99.8%",
        )  # fmt: skip
    if len(far):
        axes.scatter(precision[far], raw[far], s=1.3 * size, color=canvas.RAW, zorder=5, label="outside both")


def _funnel_axes(axes: Axes, units: Any, precision: Array, heights: Array) -> None:
    """The precision to the right, logarithmic over a factor of 30; the limits of small units may leave the axes."""
    low, high = float(precision.min()), float(precision.max())
    if high < 2 * low:
        low, high = low / 1.5, high * 1.5
    if high > 30 * low:
        log_axis(axes, low / 1.15, high * 1.15)
    else:
        pad = 0.05 * (high - low)
        axes.set_xlim(max(low - pad, 0), high + pad)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    bottom, top = float(heights.min()), float(heights.max())
    pad = 0.06 * ((top - bottom) or 1.0)
    axes.set_ylim(bottom - pad, top + pad)
    axes.set_ylabel(measure(units))
    axes.set_xlabel("precision, 1/se²" if units.family == "normal" else SIZES[units.family])
    canvas.tidy(axes, grid="")


def _name_outside(
    axes: Axes, units: Any, precision: Array, shown: Ints, beyond: Any, unusual: Any, value: float
) -> None:
    """The names of the units outside: of both limits, or of the solid ones too where these are few; the farthest."""
    chosen = shown[beyond[shown]]
    if len(chosen) > MAX_NAMES and unusual.any():
        chosen = shown[unusual[shown]]
    if not len(chosen):
        return
    raw = np.asarray(units.raw, dtype=float)
    far = np.abs(raw[chosen] - value) * np.sqrt(precision[chosen])
    chosen = chosen[np.lexsort((-far, ~unusual[chosen]))][:MAX_NAMES]
    at = np.column_stack([precision[chosen], raw[chosen]])
    near = shown[canvas.spread_rows(len(shown), 600)]
    avoid = np.column_stack([precision[near], raw[near]])
    others = len(axes.texts)
    canvas.label_points(axes, at, names_of(units, chosen, 22), avoid)
    for text in axes.texts[others:]:
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        text.set_zorder(6)


# The population -------------------------------------------------------------------------------------------------------


def population(pooled: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """See `UnitPlots.population`."""
    units, notes = with_data(pooled.units)
    raw = np.asarray(units.raw, dtype=float)
    low, high = _range(pooled, raw)
    inside = raw[(raw >= low) & (raw <= high)]
    edges = np.linspace(low, high, _bars(inside, low, high) + 1)
    figure, axes = canvas.one_axes(ax, figsize, (7.0, 4.4))
    width = edges[1] - edges[0]
    heights = np.histogram(inside, edges)[0] / (len(raw) * width)
    axes.stairs(heights, edges, fill=True, color=canvas.RAW, alpha=0.22, label="raw estimates")
    expected = expected_shares(pooled, edges) / width
    axes.stairs(expected, edges, baseline=None, color=canvas.RAW, linewidth=1.2, label="expected raw estimates")
    top = 1.15 * float(max(heights.max(), expected.max()))
    cut, peak = _density(axes, pooled, (low, high), top)
    top = max(top, peak)
    _stems(axes, pooled, (low, high), top)
    mean = np.sort(pooled.posterior.moments()[0])
    rug = mean[canvas.spread_rows(len(mean), MAX_RUG)]
    axes.vlines(
        rug, -0.055 * top, -0.015 * top, color=canvas.POOLED, linewidth=0.6 if len(rug) > 60 else 1.0,
        alpha=0.5 if len(rug) > 60 else 1.0,
    )  # fmt: skip
    axes.plot([], [], color=canvas.POOLED, marker="|", linestyle="none", label="pooled means")
    axes.set_ylim(-0.07 * top, 1.04 * top)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(measure(units))
    canvas.tidy(axes, grid="x")
    _legend(axes)
    if ax is None:
        canvas.heading(figure, "The population and the raw estimates")
        canvas.footnote(figure, notes + _population_notes(pooled, len(raw) - len(inside), cut, len(rug)))
    return figure


def _population_notes(pooled: Any, left_out: int, cut: bool, rug: int) -> list[str]:
    notes = []
    if pooled.units.X is not None:
        notes.append("The population is that at the mean of the covariates.")
    if left_out:
        notes.append(f"{left_out:,} raw estimate{'s lie' if left_out > 1 else ' lies'} beyond the ends of the axis.")
    if cut:
        notes.append("The population's density is cut off at the top.")
    if rug < pooled.units.n:
        notes.append(f"{rug:,} of {pooled.units.n:,} pooled means, evenly spaced by rank.")
    return notes


def _range(pooled: Any, raw: Array) -> tuple[float, float]:
    """The raw estimates, without the last thousandth of many, and nearly all of the population."""
    ends = np.quantile(raw, [0.001, 0.999]) if len(raw) > 2000 else np.array([raw.min(), raw.max()])
    known = [float(end) for end in pooled.population.prediction_interval(0.98)]
    span = float(ends[1] - ends[0])
    if len(raw) < 20 and math.isfinite(known[1] - known[0]):  # so few that they need not reach the population's ends
        span = max(span, 2 * (known[1] - known[0]))
    finite = [end for end in known if math.isfinite(end) and ends[0] - span <= end <= ends[1] + span]
    low, high = min(float(ends[0]), *finite, math.inf), max(float(ends[1]), *finite, -math.inf)
    pad = 0.04 * (high - low) or 0.1 * abs(low) or 1.0
    lowest, highest = support(pooled.family)
    return max(low - pad, lowest), min(high + pad, highest)


def _bars(raw: Array, low: float, high: float) -> int:
    """How many bars: Freedman and Diaconis' rule, between 8 and 60."""
    quartiles = np.quantile(raw, [0.25, 0.75])
    width = 2 * float(quartiles[1] - quartiles[0]) / len(raw) ** (1 / 3)
    return int(np.clip(math.ceil((high - low) / width), 8, 60)) if width > 0 else 20


def expected_shares(pooled: Any, edges: Array) -> Array:
    """The share of units that the population puts into each bar of a histogram of raw estimates, (bars,).

    The units are represented by at most 60 of them, evenly spaced by size.
    """
    units = with_data(pooled.units)[0]
    kept = np.argsort(units.size, kind="stable")[canvas.spread_rows(units.n, MAX_EXPECTED)]
    places, weights = population_nodes(pooled)
    below = np.zeros(len(edges))
    for unit in kept:
        size = np.full(len(edges), units.size[unit])
        y = edges
        if units.family != "normal":
            # A bar holds its left end and not its right one; but the last holds both.
            y = np.ceil(np.round(edges * size, 9)) - 1.0
            y[-1] = np.floor(np.round(edges[-1] * size[-1], 9))
        own = places_of_units(pooled, places, units.rows[unit : unit + 1])
        below += below_or_at(units.family, y, size, own, weights)
    return np.diff(below) / len(kept)


def _density(axes: Axes, pooled: Any, ends: tuple[float, float], top: float) -> tuple[bool, float]:
    """Draw the continuous part of the population; whether it had to be cut off, and its height in the figure."""
    if float(np.sum(pooled.population.atoms[1])) > 1 - 1e-9 or not float(pooled.population.sd) > 0:
        return False, 0.0
    places = np.linspace(*ends, 801)
    heights = np.asarray(pooled.population.density(places), dtype=float)
    known = np.isfinite(heights)
    most = 3 * top
    cut = bool((~known).any() or heights[known].max() > most)
    heights = np.minimum(np.where(known, heights, most), most)
    axes.plot(places, heights, color=canvas.POOLED, linewidth=1.8, label="population", zorder=4)
    return cut, float(heights.max())


def _stems(axes: Axes, pooled: Any, ends: tuple[float, float], top: float) -> None:
    """Point masses: stems with heights in proportion, and their shares where these can be read."""
    places, masses = (np.asarray(part, dtype=float) for part in pooled.population.atoms)
    kept = (masses > 1e-4) & (places >= ends[0]) & (places <= ends[1])
    places, masses = places[kept], masses[kept]
    if not len(places):
        return
    tall = 0.85 * top * masses / masses.max()
    axes.vlines(places, 0, tall, color=canvas.POPULATION, linewidth=1.8, label="point mass", zorder=5)
    axes.scatter(places, tall, s=20, color=canvas.POPULATION, zorder=5)
    if len(places) <= 12:
        for place, height, mass in zip(places, tall, masses, strict=True):
            axes.annotate(
                f"{mass:.0%}" if mass >= 0.01 else "<1%", (float(place), float(height)), xytext=(0, 5),
                textcoords="offset points", ha="center", va="bottom", fontsize=canvas.SMALL,
            )  # fmt: skip
