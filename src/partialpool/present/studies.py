"""The forest plot of a meta-analysis: studies, what pooling makes of them, the mean, and a new study."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.present import canvas
from partialpool.present.profile import moved
from partialpool.present.units import LIGHT, Shown, centre, log_axis, measure, names_of, with_data

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The names of columns that hold logarithms of ratios.
LOG_RATIO = re.compile(r"^(log|ln)[\s_(.]*.*(ratio|odds|rr|or|hr|irr|rom)\b", re.IGNORECASE)


def forest(
    pooled: Any, probability: float, exponentiate: bool | None, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """See `UnitPlots.forest`."""
    units, notes = with_data(pooled.units)
    if not 0 < probability < 1:
        raise ModelError(f"probability={probability:g} is not between 0 and 1; 0.95 is usual.")
    if exponentiate and units.family != "normal":
        raise ModelError("exponentiate=True is for logarithms of ratios; these are proportions or rates already.")
    ratios = units.family == "normal" and bool(LOG_RATIO.match(units.label) if exponentiate is None else exponentiate)
    shown = _forest_rows(units)
    rows = len(shown)
    tails = np.array([(1 - probability) / 2, (1 + probability) / 2])
    at = units.rows[shown]
    own: Array = np.stack([np.asarray(side, dtype=np.float64)[at] for side in pooled.units.raw_interval(probability)])
    partial = pooled.posterior.quantiles(tails, at)
    predicted = [float(end) for end in pooled.population.prediction_interval(probability)]
    mean = mean_interval(pooled, probability)
    raw = units.raw[shown]
    limits = _forest_limits([raw, partial.ravel(), np.array([*predicted, *mean])], own)
    figure, axes = canvas.one_axes(ax, figsize, (7.6, 2.0 + 0.3 * (rows + 2)))
    scale: Any = np.exp if ratios else np.asarray
    places: Array = np.arange(rows, dtype=np.float64)[::-1] + 3.0
    if rows < units.n:
        places[: rows // 2] += 1.0  # a gap between the highest and the lowest
    _studies(axes, scale, places, (raw, own), _weights(pooled, units)[shown], limits)
    axes.hlines(places - 0.28, *scale(partial), color=LIGHT, linewidth=1.4, zorder=2)
    means = pooled.posterior.moments()[0][at]
    axes.scatter(scale(means), places - 0.28, s=16, color=LIGHT, zorder=3)
    _diamond_and_bar(axes, scale, mean, predicted)
    null = 0.0 if units.family == "normal" else None
    if null is not None and limits[0] < null < limits[1]:
        axes.axvline(float(scale(null)), color="#555555", linewidth=0.9, zorder=1)
    if math.isfinite(mean[1]):
        axes.axvline(
            float(scale(mean[1])), color=canvas.POPULATION, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1, alpha=0.6
        )
    _forest_axis(axes, units, limits, ratios)
    names = [*names_of(units, shown), "Mean", "New study" if units.family == "normal" else "New unit"]
    axes.set_yticks([*places, 1.0, 0.0], names, fontsize=canvas.SMALL)
    axes.set_ylim(-0.7, places[0] + 0.8)
    axes.tick_params(axis="y", length=0)
    triples = [*np.column_stack([own[0], raw, own[1]]), mean, (predicted[0], math.nan, predicted[1])]
    _numbers(axes, scale, [*places, 1.0, 0.0], triples)
    canvas.tidy(axes)
    canvas.legend_above(axes, 3, extra=_forest_key())
    if ax is None:
        _forest_notes(figure, units, probability, rows, notes)
    return figure


def _forest_rows(units: Any) -> Ints:
    """The studies as given; the lowest and the highest where they are too many."""
    if units.n <= canvas.MAX_GROUPS:
        return np.arange(units.n)
    order = np.argsort(units.raw, kind="stable")
    return np.asarray(order[canvas.extreme_rows(units.n)][::-1], dtype=np.int64)


def _forest_notes(figure: Figure, units: Any, probability: float, rows: int, omitted: list[str]) -> None:
    canvas.heading(figure, f"Estimates and {100 * probability:g}% intervals")
    what = "New study" if units.family == "normal" else "New unit"
    notes = [f"{what}: prediction interval. Area of a square: its weight in the mean.", *omitted]
    if rows < units.n:
        notes.append(f"The {rows // 2} lowest and highest of {units.n:,} units.")
    canvas.footnote(figure, notes)


def mean_interval(pooled: Any, probability: float) -> tuple[float, float, float]:
    """The lower end, the mean and the upper end of the population mean; the ends are nan where none are known.

    From the posterior of the parameter `mean`; where only its 5%, 50% and 95% quantiles are known, with half a normal
    to each side of the median. A mean on the link scale is brought back, which makes it the median unit.
    """
    from scipy.special import ndtri

    population = pooled.population
    known = population.summary()
    middle = float(population.mean)
    if "mean" not in known.index or population.kind not in ("normal", "beta", "gamma", "student_t"):
        return math.nan, middle, math.nan  # a mean that is known, or that has no parameter of its own
    low, median, high = (float(known.loc["mean", name]) for name in ("q05", "q50", "q95"))
    if hasattr(population, "interval"):
        low, high = (float(end) for end in population.interval("mean", probability))
    else:
        reach = float(ndtri((1 + probability) / 2) / ndtri(0.95))
        low, high = median - reach * (median - low), median + reach * (high - median)
    if pooled.family != "normal" and population.kind not in ("beta", "gamma"):
        start = 0.5 if pooled.family == "binomial" else 1.0
        low, middle, high = (float(moved(pooled.family, np.array(start), end)) for end in (low, median, high))
    return low, middle, high


def sampling_variance(family: str, mean: float, size: Array) -> Array:
    """The variance of a raw estimate given the unit's own parameter, (J,)."""
    if family == "normal":
        return np.asarray(size, dtype=float) ** 2
    return np.asarray((mean * (1 - mean) if family == "binomial" else mean) / np.asarray(size, dtype=float))


def _weights(pooled: Any, units: Shown) -> Array:
    """The units' shares in the population mean: one over their marginal variances, (J,) with sum 1."""
    value, spread = centre(pooled)[0], float(pooled.population.sd)
    inverse = 1 / (sampling_variance(units.family, value, units.size) + (spread**2 if spread < np.inf else 0))
    return np.asarray(inverse / inverse.sum())


def _forest_limits(core: Sequence[Array], own: Array) -> tuple[float, float]:
    """The ends of the axis: all estimates, and intervals unless they are so wide as to press the others together."""
    known = np.concatenate([np.ravel(part) for part in core])
    known = known[np.isfinite(known)]
    low, high = float(known.min()), float(known.max())
    span = (high - low) or 1.0
    low, high = max(float(own.min()), low - 0.5 * span), min(float(own.max()), high + 0.5 * span)
    low, high = min(low, float(known.min())), max(high, float(known.max()))
    pad = 0.04 * ((high - low) or 1.0)
    return low - pad, high + pad


def _studies(
    axes: Axes, scale: Any, places: Array, raw: tuple[Array, Array], weights: Array, limits: tuple[float, float]
) -> None:
    """Squares with area by weight, their intervals, and arrows where an interval leaves the axes."""
    value, (low, high) = raw
    pad = 0.012 * (limits[1] - limits[0])
    axes.hlines(
        places, scale(np.maximum(low, limits[0])), scale(np.minimum(high, limits[1])), color=canvas.RAW, linewidth=1.2
    )
    for cut, end, marker in ((low < limits[0], limits[0] + pad, "<"), (high > limits[1], limits[1] - pad, ">")):
        if cut.any():
            axes.scatter(np.full(int(cut.sum()), scale(end)), places[cut], s=20, marker=marker, color=canvas.RAW)
    area = 6 + 90 * weights / weights.max()
    axes.scatter(scale(value), places, s=area, marker="s", color=canvas.RAW, zorder=4, linewidths=0)


def _diamond_and_bar(axes: Axes, scale: Any, mean: tuple[float, float, float], predicted: Sequence[float]) -> None:
    low, middle, high = (float(scale(end)) for end in mean)
    if math.isfinite(low) and math.isfinite(high):
        corners = [(low, 1.0), (middle, 1.3), (high, 1.0), (middle, 0.7)]
        axes.add_patch(Polygon(corners, closed=True, color=canvas.POPULATION, linewidth=0, zorder=4))
    elif math.isfinite(middle):
        axes.scatter([middle], [1.0], s=40, marker="D", color=canvas.POPULATION, zorder=4)
    start, end = (float(scale(value)) for value in predicted)
    if math.isfinite(start) and math.isfinite(end):
        axes.add_patch(Rectangle((start, -0.13), end - start, 0.26, color=canvas.POOLED, linewidth=0, zorder=4))


def _forest_axis(axes: Axes, units: Any, limits: tuple[float, float], ratios: bool) -> None:
    if not ratios:
        axes.set_xlim(*limits)
        axes.set_xlabel(measure(units))
        return
    log_axis(axes, math.exp(limits[0]), math.exp(limits[1]))
    name = re.sub(r"^(log|ln)[\s_(.]*", "", units.label, flags=re.IGNORECASE).strip(" _)")
    axes.set_xlabel(name or "ratio")


def _numbers(axes: Axes, scale: Any, places: Sequence[float], triples: Sequence[Any]) -> None:
    """Estimates and intervals as text to the right of their rows."""
    values = scale(np.array(triples, dtype=float))
    widths = values[:, 2] - values[:, 0]
    usual = float(np.median(widths[np.isfinite(widths)])) if np.isfinite(widths).any() else 1.0
    digits = min(6, max(0, 1 - math.floor(math.log10(usual)))) if usual > 0 else 2
    for place, (low, middle, high) in zip(places, values, strict=True):
        text = f"{middle:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"
        if not math.isfinite(low + high):
            text = f"{middle:,.{digits}f}"
        elif place == 0.0:
            text = f"[{low:,.{digits}f}, {high:,.{digits}f}]"
        axes.text(
            1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=canvas.SMALL, color="#333333"
        )


def _forest_key() -> list[Line2D]:
    return [
        Line2D([], [], color=canvas.RAW, marker="s", markersize=6, linewidth=1.2, label="own data"),
        Line2D([], [], color=LIGHT, marker="o", markersize=4, linewidth=1.4, label="pooled"),
        Line2D([], [], color=canvas.POPULATION, marker="D", markersize=6, linestyle="none", label="mean"),
    ]
