"""Figures of a calibration: places of true values against uniform ones, true values against posterior means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas

Array = NDArray[np.float64]

#: Columns of a figure of several panels, and the inches of one panel.
COLUMNS, WIDE, HIGH = 4, 2.5, 2.1
#: Intervals drawn in one panel; above this the points alone.
MOST_INTERVALS = 300
OFF = canvas.RAW


def ranks(
    names: Sequence[str], verdicts: Sequence[str], places: Array, band: tuple[Array, Array, Array], title: str,
    ax: Axes | None, figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """The distribution function of places (replicates, quantities) less that of uniform ones, with its band.

    band : places, low and high share of values below them.
    """
    figure, panels, shown = _panels(names, ax, figsize, "The plot of ranks")
    at, low, high = (np.concatenate([[0.0], own, [1.0]]) for own in band)
    reach = 1.15 * max(float(np.abs(low - at).max()), float(np.abs(high - at).max()))
    for panel, name, verdict, own in zip(panels, names, verdicts, places.T, strict=False):
        values = np.sort(own)
        x = np.concatenate([[0.0], np.repeat(values, 2), [1.0]])
        y = np.concatenate([np.repeat(np.arange(len(values) + 1.0), 2)]) / len(values)
        good = verdict == "calibrated"
        panel.fill_between(at, low - at, high - at, color="#E2E2E2", linewidth=0)
        panel.axhline(0, color=canvas.MUTED, linewidth=0.8)
        panel.plot(x, y - x, color=canvas.POOLED if good else OFF, linewidth=1.2)
        panel.set_title(canvas.clip(name, 34) + ("" if good else f"\n{verdict}"), fontsize=canvas.SMALL, loc="left")
        panel.set_xlim(0, 1)
        lim = max(reach, 1.1 * float(np.abs(y - x).max()))
        panel.set_ylim(-lim, lim)
        canvas.tidy(panel, grid="")
    if ax is None:
        canvas.heading(figure, f"Places of true values in posteriors\n{title}")
        figure.supylabel("share below - expected", fontsize=canvas.SMALL)
        notes = [
            "Across: place of the true value in its posterior. The grey band holds 95% of calibrated models.",
            "A line above the band on the left and below it on the right: intervals too short; the reverse: too long.",
            "All of it above 0: posterior too high; all of it below 0: too low.",
            *shown,
        ]
        canvas.footnote(figure, notes)
    return figure


def recovery(
    names: Sequence[str], values: Array, title: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """Posterior means with 90% intervals against true values.

    values : (replicates, quantities, 4): truth, mean, q05, q95.
    """
    figure, panels, shown = _panels(names, ax, figsize, "The plot of recovery")
    for panel, name, own in zip(panels, names, np.swapaxes(values, 0, 1), strict=False):
        truth, mean, low, high = own.T
        held = (truth >= low) & (truth <= high)
        if len(truth) <= MOST_INTERVALS:
            for inside, color in ((held, canvas.POOLED), (~held, OFF)):
                panel.vlines(truth[inside], low[inside], high[inside], color=color, linewidth=0.6, alpha=0.45)
        panel.scatter(truth[held], mean[held], s=5, color=canvas.POOLED, linewidths=0, zorder=3)
        panel.scatter(truth[~held], mean[~held], s=7, color=OFF, linewidths=0, zorder=4)
        _limits(panel, np.concatenate([truth, mean]))
        panel.set_title(canvas.clip(name, 34), fontsize=canvas.SMALL, loc="left")
        canvas.tidy(panel, grid="")
    if ax is None:
        canvas.heading(figure, f"Recovery of true values\n{title}")
        figure.supylabel("posterior mean and 90% interval", fontsize=canvas.SMALL)
        notes = ["Across: the true value. Orange: intervals that miss it, one in ten where calibrated.", *shown]
        canvas.footnote(figure, notes)
    return figure


def _limits(panel: Axes, values: Array) -> None:
    """Both axes over the bulk of the values: a heavy-tailed prior draws a few that would hide all others."""
    low, high = np.quantile(values, [0.01, 0.99])
    room = 0.06 * (high - low) or 1.0
    panel.set_xlim(low - room, high + room)
    panel.set_ylim(low - room, high + room)
    panel.axline((low, low), slope=1, color=canvas.POPULATION, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)


def _panels(
    names: Sequence[str], ax: Axes | None, figsize: tuple[float, float] | None, what: str
) -> tuple[Figure, list[Axes], list[str]]:
    """A panel for each name, and what is to be said of those left out."""
    if ax is not None:
        canvas.need_one_axes(ax, len(names), f"{what} of {len(names)} quantities")
        return canvas.one_axes(ax, figsize, (WIDE, HIGH))[0], [ax], []
    count = min(len(names), canvas.MAX_PANELS)
    columns = min(COLUMNS, count)
    lines = math.ceil(count / columns)
    figure = canvas.new_figure(figsize or (max(6.6, WIDE * columns + 0.5), HIGH * lines + 1.3))
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = list(grid.ravel())
    for spare in panels[count:]:
        spare.axis("off")
    for panel in panels[:count]:
        panel.tick_params(labelsize=7)
    left = len(names) - count
    return figure, panels[:count], [f"{left} more quantities: names=[...]"] if left > 0 else []
