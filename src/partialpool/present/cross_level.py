"""The plot of slopes along group-level predictors: line and band for the population, a point for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas

Array = NDArray[np.float64]

#: Above so many groups their intervals would hide the points.
MOST_BARS = 200
MOST_POINTS = 2000


@dataclass(frozen=True, eq=False)
class SlopePanel:
    """One panel: the slope of `slope_of` along `along`; `at`, `mean`, `low`, `high` of the population, and by group."""

    slope_of: str
    level: str
    along: str
    categories: bool
    at: list[Any]
    mean: Array
    low: Array
    high: Array
    group_at: NDArray[Any]
    group_mean: Array
    group_low: Array
    group_high: Array
    varies: bool
    others: bool


def draw_slopes(
    panels: Sequence[SlopePanel], response: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """A panel for each group-level predictor."""
    canvas.need_one_axes(ax, len(panels), "The plot of interactions across levels")
    notes = ["In black: the population's slope, with its 90% interval."]
    if len(panels) == 1 or ax is not None:
        figure, own = canvas.one_axes(ax, figsize, (6.4, 4.6))
        axes = [own]
    else:
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        figure = canvas.new_figure(figsize or (0.6 + 4.2 * columns, 0.9 + 3.5 * rows))
        axes = [figure.add_subplot(rows, columns, k + 1) for k in range(len(panels))]
    for own, panel in zip(axes, panels, strict=True):
        _draw(own, panel, response)
    if any(panel.varies for panel in panels):
        bars = " with 90% intervals" if all(len(panel.group_mean) <= MOST_BARS for panel in panels) else ""
        notes.append(f"Points: groups' own slopes{bars}.")
    if any(panel.others for panel in panels):
        notes.append("Other group-level predictors at their means, for line and points.")
    if ax is None:
        names = list(dict.fromkeys(panel.slope_of for panel in panels))
        canvas.heading(figure, f"Slope of {', '.join(names)} as the group-level predictors vary")
        canvas.footnote(figure, notes)
    return figure


def _draw(ax: Axes, panel: SlopePanel, response: str) -> None:
    texts = [str(value) for value in panel.at]
    if panel.categories:
        place = {text: k for k, text in enumerate(texts)}
        centre = np.array([place[str(value)] for value in panel.group_at], dtype=float)
        x = centre + _spread(centre)
        across = np.arange(len(texts), dtype=float)
        ax.set_xticks(across, [canvas.clip(text) for text in texts])
        ax.set_xlim(-0.6, len(texts) - 0.4)
    else:
        x, across = panel.group_at.astype(float), np.asarray(panel.at, dtype=float)
    if panel.varies:
        _points(ax, x, panel)
    if panel.categories:
        error = np.array([panel.mean - panel.low, panel.high - panel.mean])
        ax.errorbar(across, panel.mean, error, fmt="D", ms=7, color=canvas.POPULATION, elinewidth=2.5, zorder=4)
    else:
        ax.fill_between(across, panel.low, panel.high, color=canvas.POPULATION, alpha=0.15, linewidth=0, zorder=2)
        ax.plot(across, panel.mean, color=canvas.POPULATION, linewidth=1.8, zorder=3)
    ax.axhline(0, color=canvas.MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    ax.set_xlabel(f"{panel.along} (of {panel.level})")
    ax.set_ylabel(f"Slope of {panel.slope_of} ({response} per unit)")
    canvas.tidy(ax, grid="y")


def _points(ax: Axes, x: Array, panel: SlopePanel) -> None:
    kept = canvas.spread_rows(len(x), MOST_POINTS)
    if len(x) <= MOST_BARS:
        ax.vlines(x, panel.group_low, panel.group_high, color=canvas.POOLED, alpha=0.3, linewidth=0.9, zorder=1)
    ax.scatter(x[kept], panel.group_mean[kept], s=14, color=canvas.POOLED, alpha=0.75, linewidths=0, zorder=2)


def _spread(centre: Array) -> Array:
    """Places within a category, evenly over its width, so that points do not lie on each other."""
    out = np.zeros(len(centre))
    for value in np.unique(centre):
        at = np.flatnonzero(centre == value)
        golden = (np.arange(len(at)) * 0.6180339887498949) % 1.0
        out[at] = 0.5 * (golden - 0.5)
    return out
