"""The spectrum of pooling: arrows from each group's own estimate to the model's, and what predicts held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from partialpool.errors import ModelError
from partialpool.present import canvas

if TYPE_CHECKING:
    import pandas

#: Groups that have a name of their own on the axis, and groups that are drawn at all.
MAX_NAMED, MAX_DRAWN = 60, 300
#: Half of a 90% interval in standard errors.
HALF = 1.6448536269514722
#: Inches.
TALLEST = 11.0


def arrows(
    panels: Mapping[str, pandas.DataFrame], factor: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """Arrows from no pooling to partial pooling, a line a group, sorted by the separate estimates.

    Parameters
    ----------
    panels : by what the axis measures, a data frame with group, n, complete, no_pooling, partial, q05, q95.
    factor : name of the groups.
    ax, figsize : the user's axes, or the size of a new figure.
    """
    canvas.need_one_axes(ax, len(panels), "This plot")
    shown = min(MAX_DRAWN, max(len(rows) for rows in panels.values()))
    height = min(TALLEST, 1.7 + (0.19 if shown <= MAX_NAMED else 0.05) * shown)
    if ax is not None:
        figure, axes = canvas.one_axes(ax, figsize, (6.4, height))[0], [ax]
    else:
        figure = canvas.new_figure(figsize or (2.2 + 4.4 * len(panels), height))
        axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    notes: list[str] = []
    for place, (label, rows) in zip(axes, panels.items(), strict=True):
        notes += _arrow_panel(place, rows, factor, label)
    canvas.legend_above(axes[0], extra=_keys())
    if ax is None:
        canvas.heading(figure, f"From separate to partially pooled estimates of {factor}")
        canvas.footnote(figure, list(dict.fromkeys(notes)))
    return figure


def _arrow_panel(axes: Axes, rows: pandas.DataFrame, factor: str, label: str) -> list[str]:
    """One term; returns what a reader should be told."""
    raw, pooled = rows["no_pooling"].to_numpy(dtype=float), rows["partial"].to_numpy(dtype=float)
    order = np.argsort(np.where(np.isfinite(raw), raw, pooled), kind="stable")
    kept = order[canvas.spread_rows(len(order), MAX_DRAWN)]
    raw, pooled = raw[kept], pooled[kept]
    low, high = (rows[name].to_numpy(dtype=float)[kept] for name in ("q05", "q95"))
    places = np.arange(len(kept))
    dense = len(kept) > MAX_NAMED
    axes.hlines(places, low, high, color=canvas.POOLED, linewidth=1.0 if dense else 2.4, alpha=0.3, zorder=1)
    known = np.isfinite(raw)
    axes.scatter(
        raw[known], places[known], s=9 if dense else 24, facecolors="none", edgecolors=canvas.RAW,
        linewidths=0.7 if dense else 1.1, zorder=3,
    )  # fmt: skip
    axes.scatter(pooled, places, s=6 if dense else 20, color=canvas.POOLED, zorder=4)
    span = float(np.ptp(np.concatenate([raw[known], pooled]))) or 1.0
    far = known & (np.abs(raw - pooled) > (0.012 if dense else 0.025) * span)
    for start, end, place in zip(raw[far], pooled[far], places[far], strict=True):
        style = {
            "arrowstyle": "-|>", "color": "#8A8A8A", "linewidth": 0.6 if dense else 1.0,
            "mutation_scale": 4 if dense else 7, "shrinkA": 1.5 if dense else 2.5, "shrinkB": 1.2 if dense else 2.2,
        }  # fmt: skip
        axes.annotate("", (end, place), (start, place), arrowprops=style, zorder=2)
    complete = float(rows["complete"].iloc[0])
    if np.isfinite(complete):
        axes.axvline(complete, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    _groups_axis(axes, rows, kept, factor, dense)
    axes.set_xlabel(label)
    axes.set_ylim(-0.8, len(kept) - 0.2)
    canvas.tidy(axes)
    notes = []
    lacking = int((~np.isfinite(rows["no_pooling"].to_numpy(dtype=float))).sum())
    if lacking:
        notes.append(f"{lacking:,} group{'s have' if lacking > 1 else ' has'} no separate estimate, and no arrow.")
    if len(kept) < len(order):
        notes.append(f"{len(kept)} of {len(order):,} groups, evenly spaced by rank.")
    return notes


def _groups_axis(axes: Axes, rows: pandas.DataFrame, kept: Any, factor: str, dense: bool) -> None:
    if dense:
        axes.set_yticks([])
        axes.set_ylabel(f"{factor}: {len(kept)} groups by their own estimate")
        return
    counts = rows["n"].to_numpy()
    names = [canvas.clip(str(name)) for name in rows["group"].to_numpy()[kept]]
    varies = bool((counts != counts[0]).any())
    labels = [f"{name} ({n:,})" for name, n in zip(names, counts[kept], strict=True)] if varies else names
    axes.set_yticks(np.arange(len(kept)), labels, fontsize=canvas.SMALL)
    axes.set_ylabel(f"{factor} (rows)" if varies else factor)


def _keys() -> list[Line2D]:
    """What the marks mean."""
    own = {"linestyle": "none", "markersize": 5.5}
    return [
        Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor=canvas.RAW, label="no pooling", **own),  # type: ignore[arg-type]
        Line2D([], [], marker="o", color=canvas.POOLED, label="partial pooling, 90% interval", **own),  # type: ignore[arg-type]
        Line2D([], [], color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), label="complete pooling"),
    ]


def differences(table: pandas.DataFrame, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """What complete and no pooling lose against partial pooling on held-out data, with 90% intervals.

    Parameters
    ----------
    table : data frame
        A row a comparison: held_out, pooling, mse_difference, mse_se, log_density_difference, log_density_se.
    ax : axes for the difference in log density alone; figsize : of a new figure.
    """
    if not len(table):
        raise ModelError("There is nothing to compare.")
    height = 1.9 + 0.36 * len(table)
    if ax is not None:
        figure = canvas.one_axes(ax, figsize, (6.4, height))[0]
        _difference_panel(ax, table, "log_density_difference", "log_density_se", "Log density a row, less partial's")
        return figure
    figure = canvas.new_figure(figsize or (8.6, height))
    left, right = figure.subplots(1, 2, sharey=True)
    _difference_panel(left, table, "log_density_difference", "log_density_se", "Log density a row, less partial's")
    _difference_panel(right, table, "mse_difference", "mse_se", "Squared error a row, less partial's")
    left.set_title("left of 0: partial pooling better", fontsize=canvas.SMALL, color="#555555", loc="left")
    right.set_title("right of 0: partial pooling better", fontsize=canvas.SMALL, color="#555555", loc="left")
    canvas.heading(figure, "Held-out data: complete and no pooling against partial pooling")
    canvas.footnote(figure, ["Differences with 90% intervals."])
    return figure


def _difference_panel(axes: Axes, table: pandas.DataFrame, column: str, error: str, label: str) -> None:
    places = np.arange(len(table))[::-1]
    values, half = table[column].to_numpy(dtype=float), HALF * table[error].to_numpy(dtype=float)
    colours = [canvas.RAW if str(kind).startswith("none") else canvas.POPULATION for kind in table["pooling"]]
    axes.hlines(places, values - half, values + half, colors=colours, linewidth=1.6)
    axes.scatter(values, places, s=26, c=colours, zorder=3)
    axes.axvline(0, color=canvas.POOLED, linewidth=1.2)
    words = {"complete": "complete pooling", "none": "no pooling"}
    labels = [
        f"{what}: {words.get(str(kind), str(kind).replace('none', 'no pooling'))}"
        for what, kind in zip(table["held_out"], table["pooling"], strict=True)
    ]
    axes.set_yticks(places, labels, fontsize=canvas.SMALL)
    axes.set_ylim(-0.7, len(table) - 0.3)
    axes.set_xlabel(label)
    canvas.tidy(axes)
