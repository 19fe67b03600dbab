"""Pictures of a study that is yet to be made: errors of pooling against tau, and what each design reaches."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from partialpool.present import canvas

Array = NDArray[np.float64]

MOST_PANELS = 6
#: The highest error shown, as a share of that without pooling.
TOP = 3.0
#: The axis of tau is linear for a few tenths of a standard error, and goes over into a logarithmic one.
LINEAR = 0.5
SHADE = "#F3E3C7"
TICKS = (0, 0.25, 0.5, 0.75, 1, 2, 5, 10, 20, 50, 100)
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#111111")


def error_curves(
    panels: Sequence[Mapping[str, Any]], designs: int, estimated: bool, ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """A panel for each design: the errors of complete, no and partial pooling against tau.

    Parameters
    ----------
    panels : sequence of mappings
        title; fine (F,) and exact (F, 3): tau in standard errors, the exact errors as shares of that without pooling;
        at, partial: the same of partial pooling; grid: the places asked for; crossing: None, or where complete and
        partial pooling cross, its error, and tau there in units of the response.
    designs : int
        How many there are; those that are not drawn are told.
    """
    if len(panels) == 1:
        figure, axes = canvas.one_axes(ax, figsize, (7.2, 4.6))
        every = [axes]
    else:
        columns = min(3, len(panels)) if len(panels) != 4 else 2
        rows = math.ceil(len(panels) / columns)
        figure = canvas.new_figure(figsize or (0.9 + 3.4 * columns, 1.2 + 2.7 * rows))
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        every = list(grid.flat)
        for extra in every[len(panels) :]:
            extra.set_visible(False)
    how = "variances estimated from each data set" if estimated else "variances known"
    low = min(float(min(panel["exact"].min(), panel["partial"].min())) for panel in panels)
    for axes, panel in zip(every, panels, strict=False):
        _errors_panel(axes, panel, low)
        if len(panels) > 1:
            axes.set_title(panel["title"], loc="left", fontsize=9)
    if len(panels) == 1:
        every[0].set_ylabel("mean squared error / that without pooling")
        every[0].set_xlabel("tau / standard error of a group's own mean")
        canvas.legend_above(every[0], 4, extra=_shade_key(panels))
    else:
        figure.supylabel("mean squared error / that without pooling", fontsize=10)
        figure.legend(
            handles=[*every[0].get_legend_handles_labels()[0], *_shade_key(panels)], loc="outside upper left",
            ncols=4, frameon=False, fontsize=canvas.SMALL, title=f"What pooling costs and gains: {how}",
            title_fontsize=11, alignment="left", borderaxespad=0.2,
        )  # fmt: skip
    if ax is None:
        if len(panels) == 1:
            canvas.heading(figure, f"{panels[0]['title']}: {how}")
        notes = ["tau: sd of the groups' true means. The axis is linear where tau is small, then logarithmic."]
        if len(panels) > 1:
            notes.insert(0, "Across: tau / standard error of a group's own mean.")
        if designs > len(panels):
            notes.append(f"The first {len(panels)} of {designs} designs.")
        canvas.footnote(figure, notes)
    return figure


def _shade_key(panels: Sequence[Mapping[str, Any]]) -> list[Patch]:
    shaded = any(panel["crossing"] is not None for panel in panels)
    return [Patch(color=SHADE, label="complete better than partial")] if shaded else []


def _smooth(panel: Mapping[str, Any]) -> Array:
    """Partial pooling's error along the curve: what is simulated says by how much it differs from the exact one."""
    from scipy.interpolate import PchipInterpolator

    known = np.exp(np.interp(panel["at"], panel["fine"], np.log(panel["exact"][:, 2])))
    apart = np.log(panel["partial"] / known)
    across, at = (np.log1p((panel[name] / LINEAR) ** 2) for name in ("fine", "at"))  # errors go with tau²
    smooth = PchipInterpolator(at, apart)(across) if at.size > 2 else np.interp(across, at, apart)
    return np.asarray(panel["exact"][:, 2] * np.exp(smooth))


def _errors_panel(axes: Axes, panel: Mapping[str, Any], low: float) -> None:
    fine, exact = panel["fine"], panel["exact"]
    axes.set_xscale("asinh", linear_width=LINEAR)
    axes.set_yscale("log")
    if panel["crossing"] is not None:
        at, error, tau = panel["crossing"]
        axes.axvspan(0, at, color=SHADE, linewidth=0, zorder=0)
        axes.axvspan(at - 2 * error, at + 2 * error, color="#C9A86A", alpha=0.6, linewidth=0, zorder=1)
        axes.annotate(
            f"tau = {tau:.2g}", (at, 0.8 * low), xytext=(4, 3), textcoords="offset points", fontsize=canvas.SMALL,
            color="#6B5524",
        )  # fmt: skip
    axes.plot(fine, exact[:, 0], color=canvas.MUTED, linewidth=1.5, label="complete pooling")
    axes.plot(fine, exact[:, 1], color=canvas.RAW, linewidth=1.5, label="no pooling")
    axes.plot(fine, _smooth(panel), color=canvas.POOLED, linewidth=2.0, label="partial pooling", zorder=4)
    axes.plot(*panel["grid"], color=canvas.POOLED, marker="o", markersize=3.5, linestyle="none", zorder=5)
    right = max(float(fine.max()), 2.0)
    axes.set_xlim(0, 1.05 * right)
    axes.set_ylim(0.8 * low, TOP)
    ticks = [tick for tick in TICKS if tick <= 1.05 * right]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=canvas.SMALL)
    axes.minorticks_off()
    shares = [share for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2) if 0.8 * low < share < TOP]
    axes.set_yticks(shares, [f"{share:g}" for share in shares], fontsize=canvas.SMALL)
    canvas.tidy(axes, grid="both")


def plan_lines(
    lines: Sequence[tuple[int, Array, Array, Any]], wanted: float, label: str, title: str, ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """What designs reach against rows a group.

    Parameters
    ----------
    lines : sequence of (groups, rows, reached, smallest)
        For each number of groups: rows a group, what they reach, and which is the smallest design that is enough.
    wanted : float
        Drawn as a line across.
    """
    figure, axes = canvas.one_axes(ax, figsize, (6.8, 4.4))
    for k, (groups, rows, reached, smallest) in enumerate(lines):
        color = LINES[k % len(LINES)]
        order = np.argsort(rows)
        axes.plot(rows[order], reached[order], color=color, marker="o", markersize=4, linewidth=1.3, clip_on=False,
                  label=f"{groups} groups")  # fmt: skip
        axes.plot(rows[smallest], reached[smallest], color=color, marker="o", markersize=11, fillstyle="none",
                  linestyle="none", clip_on=False, zorder=4)  # fmt: skip
    axes.axhline(wanted, color=canvas.POPULATION, linewidth=1.0, linestyle=(0, (5, 3)))
    places = sorted({float(row) for _, rows, _, _ in lines for row in rows})
    if len(places) > 1:
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    axes.set_xlabel("rows of each group")
    axes.set_ylabel(label)
    if label == "power":
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    else:
        axes.set_ylim(bottom=0)
    canvas.tidy(axes, grid="y")
    keys = [
        Line2D([], [], color=canvas.POPULATION, linewidth=1.0, linestyle=(0, (5, 3)), label="wanted"),
        Line2D([], [], color="#555555", marker="o", markersize=9, fillstyle="none", linestyle="none",
               label="fewest rows\nthat are enough"),
    ]  # fmt: skip
    handles = axes.get_legend_handles_labels()[0]
    axes.legend(
        handles=[*(handles[::-1] if label == "power" else handles), *keys], loc="center left",
        bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=canvas.SMALL,
    )  # fmt: skip
    if ax is None:
        canvas.heading(figure, textwrap.fill(title, 70))
    return figure
