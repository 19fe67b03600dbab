"""Figures of where the variance lies: shares by level, and how they change with a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas

Array = NDArray[np.float64]

SCALE_COLOURS = {"response": canvas.POOLED, "link": canvas.RAW}
LEVEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#111111")
#: Places up to which there are points instead of a line.
FEW = 8
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of one scale: names of the parts, and mean, q05, q95 of each (parts, 3)."""

    scale: str
    names: tuple[str, ...]
    values: Array


def shares_plot(
    scales: Sequence[Shares], response: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """A bar a part, which ends at its mean share, and its 90% interval; residual last."""
    names = list(dict.fromkeys(name for scale in scales for name in scale.names))
    names.sort(key=lambda name: name == "residual")
    figure, axes = canvas.one_axes(ax, figsize, (7.0, 1.3 + 0.55 * len(names)))
    height = 0.72 / len(scales)
    for k, scale in enumerate(scales):
        places = np.array([names.index(name) + (k - (len(scales) - 1) / 2) * height for name in scale.names])
        colour = SCALE_COLOURS[scale.scale]
        mean, low, high = np.asarray(scale.values).T
        label = f"{scale.scale} scale"
        axes.barh(places, mean, height=0.86 * height, color=colour, alpha=0.6, label=label)
        axes.hlines(places, low, high, color="#222222", linewidth=1.3)
        for y, share in zip(places, mean, strict=True):
            axes.text(1.012, y, f"{share:.0%}", va="center", fontsize=canvas.SMALL, color=colour, clip_on=False)
    axes.set_yticks(range(len(names)), [canvas.clip(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{x:.0%}" for x in np.linspace(0, 1, 6)])
    axes.set_xlabel(f"Share of the variance of {response} at given predictors")
    canvas.tidy(axes)
    if len(scales) > 1:
        canvas.legend_above(axes)
    if ax is None:
        canvas.heading(figure, "Where the variance lies")
        canvas.footnote(figure, ["Bar and number: posterior mean; line: 90% interval."])
    return figure


@dataclass(frozen=True, eq=False)
class Curve:
    """One line with its band: mean, q05, q95 (points,) of a level."""

    level: str
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class CurvePanel:
    """Curves that share an axis."""

    label: str
    curves: Sequence[Curve]


def along_plot(
    places: Sequence[float] | Sequence[str],
    predictor: str,
    panels: Sequence[CurvePanel],
    ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    """Variance between groups and intraclass correlation along a predictor, a panel each."""
    canvas.need_one_axes(ax, len(panels), "This plot")
    if len(panels) == 1:
        figure, first = canvas.one_axes(ax, figsize, (5.6, 3.8))
        axes = [first]
    else:
        figure = canvas.new_figure(figsize or (4.3 * len(panels), 3.8))
        axes = list(np.atleast_1d(figure.subplots(1, len(panels))))
    for own, panel in zip(axes, panels, strict=True):
        _draw_panel(own, places, panel)
        own.set_xlabel(predictor)
        own.set_ylabel(panel.label)
    if len(panels[0].curves) > 1:
        canvas.legend_above(axes[0], columns=2)
    if ax is None:
        canvas.heading(figure, f"Variance between groups along {predictor}")
        canvas.footnote(figure, ["Line or point: posterior mean; band or bar: 90% interval."])
    return figure


def _draw_panel(axes: Axes, places: Sequence[float] | Sequence[str], panel: CurvePanel) -> None:
    named = any(isinstance(place, str) for place in places)
    x = np.arange(len(places)) if named else np.asarray(places, dtype=float)
    few = named or len(x) <= FEW
    for k, curve in enumerate(panel.curves):
        colour = LEVEL_COLOURS[k % len(LEVEL_COLOURS)]
        if few:
            gap = float(np.diff(x).min()) if len(x) > 1 else 1.0
            moved = x + 0.12 * gap * (k - (len(panel.curves) - 1) / 2)
            axes.vlines(moved, curve.low, curve.high, color=colour, linewidth=1.5)
            axes.plot(moved, curve.mean, "o", color=colour, label=curve.level)
        else:
            axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, curve.mean, LINES[k % len(LINES)], color=colour, linewidth=1.8, label=curve.level)
    if few:
        texts = [place if isinstance(place, str) else f"{place:.4g}" for place in places]
        axes.set_xticks(x, [canvas.clip(str(text), 12) for text in texts])
    axes.set_ylim(bottom=0.0)
    canvas.tidy(axes, grid="y")
