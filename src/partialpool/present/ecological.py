"""The picture of an ecological fallacy: lines within groups, and the line through the groups' averages."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas

Array = NDArray[np.float64]

#: Rows, lines within groups, and groups' averages that are drawn at most.
MOST_ROWS, MOST_LINES, MOST_AVERAGES = 4000, 60, 600
#: Groups up to which each has a colour of its own (again and again the same few).
COLOURED = 60
SOFT = ("#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#8C7AA9", "#7A8B3C", "#B07D62", "#5E8C98")
BETWEEN = "#111111"


def ecological_plot(
    x: Array, y: Array, codes: NDArray[Any], slopes: Mapping[str, float], names: tuple[str, str, str],
    ax: Axes | None = None, figsize: tuple[float, float] | None = None,
) -> Figure:  # fmt: skip
    """Rows, lines within groups, the line through the groups' averages, and the one between groups.

    Parameters
    ----------
    x, y, codes : ndarray of shape (n,)
        Rows, and the group of each.
    slopes : mapping
        "averages", "within", "between" and "pooled".
    names : (str, str, str)
        Of x, y and the group.
    """
    figure, axes = canvas.one_axes(ax, figsize, (8.2, 5.4))
    sizes = np.bincount(codes)
    x_mean, y_mean = np.bincount(codes, x) / sizes, np.bincount(codes, y) / sizes
    notes = [] if len(x) <= MOST_ROWS else [f"{MOST_ROWS:,} of {len(x):,} rows, drawn at random."]
    _rows(axes, x, y, codes, len(sizes))
    far, left_out = _within(axes, x, codes, x_mean, y_mean, slopes["within"])
    notes += left_out
    shown = canvas.spread_rows(len(sizes), MOST_AVERAGES)
    order = np.argsort(x_mean)[shown]
    axes.scatter(
        x_mean[order], y_mean[order], s=24 if len(shown) <= 100 else 9, facecolors="white", edgecolors=canvas.RAW,
        linewidths=1.1, zorder=4,
    )  # fmt: skip
    _limits(axes, x, y)
    ends = _lines(axes, x_mean, y_mean, slopes, (float(x.mean()), float(y.mean())))
    _labels(axes, {**ends, "within": far}, slopes)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    canvas.tidy(axes, grid="both")
    if ax is None:
        canvas.heading(figure, f"{names[1]} and {names[0]}: within and between groups of {names[2]}")
        if len(shown) < len(sizes):
            notes.append(f"Averages: {len(shown)} of {len(sizes):,}.")
        marks = f"Dots: rows. Circles: averages of the groups ({names[2]}). Thin lines: the slope within, through each."
        canvas.footnote(figure, [marks, *notes])
    return figure


def _rows(axes: Axes, x: Array, y: Array, codes: NDArray[Any], groups: int) -> None:
    """Rows, faint; the same sample at every call where there are many."""
    keep = np.arange(len(x))
    if len(x) > MOST_ROWS:
        keep = np.sort(np.random.default_rng(0).choice(len(x), MOST_ROWS, replace=False))
    colours: Any = np.array(SOFT)[codes[keep] % len(SOFT)] if groups <= COLOURED else "#9FB4C4"
    alpha = float(np.clip(8 / np.sqrt(len(keep)), 0.22, 0.5))
    axes.scatter(x[keep], y[keep], s=11 if len(keep) <= 500 else 5, c=colours, alpha=alpha, linewidths=0, zorder=1)


def _within(
    axes: Axes, x: Array, codes: NDArray[Any], x_mean: Array, y_mean: Array, slope: float
) -> tuple[tuple[float, float], list[str]]:  # fmt: skip
    """A short line through each group's average, as long as its rows reach; the end of the farthest, and notes."""
    low, high = np.full(len(x_mean), np.inf), np.full(len(x_mean), -np.inf)
    np.minimum.at(low, codes, x)
    np.maximum.at(high, codes, x)
    groups = np.argsort(x_mean)[canvas.spread_rows(len(x_mean), MOST_LINES)]
    starts = np.column_stack([low[groups], y_mean[groups] + slope * (low[groups] - x_mean[groups])])
    ends = np.column_stack([high[groups], y_mean[groups] + slope * (high[groups] - x_mean[groups])])
    few = len(x_mean) <= COLOURED
    colours = [SOFT[g % len(SOFT)] if few else canvas.POOLED for g in groups]
    lines = LineCollection(
        list(np.stack([starts, ends], axis=1)), colors=colours, linewidths=1.0, alpha=0.75 if few else 0.3, zorder=2
    )
    axes.add_collection(lines)
    drawn = high[groups] > low[groups]  # a group of one row has a line without length
    farthest = ends[int(np.argmax(np.where(drawn, ends[:, 0], -np.inf)))]
    notes = [f"Lines within groups: {len(groups)} of {len(x_mean):,} groups, evenly spaced by their average."]
    return (float(farthest[0]), float(farthest[1])), notes if len(groups) < len(x_mean) else []


def _limits(axes: Axes, x: Array, y: Array) -> None:
    """The rows, less the farthest thousandth where there are many, and room for labels on the right."""
    cut = 0.0 if len(x) < 2000 else 0.0005
    (left, right), (low, high) = (np.quantile(values, (cut, 1 - cut)) for values in (x, y))
    axes.set_xlim(left - 0.03 * (right - left), right + 0.03 * (right - left))
    axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def _lines(
    axes: Axes, x_mean: Array, y_mean: Array, slopes: Mapping[str, float], centre: tuple[float, float]
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """The lines over all groups; where the label of each points to: its right end, or within the frame."""
    reach = np.array([x_mean.min(), x_mean.max()])
    reach += 0.08 * np.ptp(reach) * np.array([-1, 1])
    across = np.array(axes.get_xlim())
    through = (float(x_mean.mean()), float(y_mean.mean()))
    styles: dict[str, tuple[Array, tuple[float, float], dict[str, Any]]] = {
        "pooled": (across, centre, {"color": canvas.MUTED, "linewidth": 1.5, "linestyle": (0, (2, 2))}),
        "averages": (reach, through, {"color": canvas.RAW, "linewidth": 3.0}),
        "between": (reach, centre, {"color": BETWEEN, "linewidth": 1.4, "linestyle": (0, (5, 2))}),
    }
    ends = {}
    for name, (places, (x0, y0), style) in styles.items():
        heights = y0 + slopes[name] * (places - x0)
        axes.plot(places, heights, zorder=5, **style)
        ends[name] = (float(places[1]), float(heights[1]))
    return ends


def _labels(axes: Axes, ends: Mapping[str, tuple[float, float]], slopes: Mapping[str, float]) -> None:
    """Labels to the right of the frame, one under another in the order of the lines' ends, with leaders."""
    words = {
        "averages": ("through the averages", canvas.RAW), "between": ("between groups (model)", BETWEEN),
        "within": ("within a group (model)", canvas.POOLED), "pooled": ("groups ignored", "#6B6B6B"),
    }  # fmt: skip
    low, high = axes.get_ylim()
    wanted = {name: float(np.clip((ends[name][1] - low) / (high - low), 0.04, 0.96)) for name in words}
    right = axes.get_xlim()[1]
    ends = {name: _inside(axes, end, slopes[name]) for name, end in ends.items()}
    order = sorted(words, key=lambda name: ends[name][1] + slopes[name] * (right - ends[name][0]))
    for before, name in pairwise(order):
        wanted[name] = max(wanted[name], wanted[before])
    places = _apart([wanted[name] for name in order], 0.085)
    for name, place in zip(order, places, strict=True):
        text, colour = words[name]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            f"{text}\n{slopes[name]:+.3g} per unit", ends[name],
            xytext=(1.03, place), textcoords="axes fraction", va="center", fontsize=canvas.SMALL + 0.5, color=colour,
            annotation_clip=False, arrowprops=arrow,
        )  # fmt: skip


def _inside(axes: Axes, end: tuple[float, float], slope: float) -> tuple[float, float]:
    """The end of a line, or where the line leaves the frame where it goes on beyond."""
    (_, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = end
    if x > right:
        x, y = right, y - slope * (x - right)
    inside = min(max(y, low), high)
    return (x - (y - inside) / slope if inside != y else x), inside


def _apart(places: list[float], gap: float) -> list[float]:
    """Sorted places in (0, 1) moved so that neighbours are a gap apart."""
    out = np.array(places)
    for k in range(1, len(out)):
        out[k] = max(out[k], out[k - 1] + gap)
    out -= max(0.0, float(out[-1]) - 0.97)
    for k in range(len(out) - 2, -1, -1):
        out[k] = min(out[k], out[k + 1] - gap)
    return [float(place) for place in out]
