"""Figures of comparisons: differences between models, evidence under other priors, parameters by level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from partialpool.present import canvas

if TYPE_CHECKING:
    import pandas

#: Half of a 90% interval in standard errors, and the difference that counts as small.
HALF, SMALL = 1.6448536269514722, 4.0
#: Models that are drawn.
MOST = 40
COLOURS = (canvas.RAW, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", canvas.MUTED)


def differences(table: pandas.DataFrame, title: str, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """A line a model: its difference from the best, with a 90% interval; within the band a difference is small.

    Parameters
    ----------
    table : data frame
        A row a model, the best first: difference, difference_se.
    title : what was compared.
    ax, figsize : the user's axes, or the size of a new figure.
    """
    shown = table.iloc[:MOST]
    figure, axes = canvas.one_axes(ax, figsize, (6.6, 1.7 + 0.34 * len(shown)))
    places = np.arange(len(shown))[::-1]
    values = shown["difference"].to_numpy(dtype=float)
    half = HALF * np.nan_to_num(shown["difference_se"].to_numpy(dtype=float))
    known = np.isfinite(values)
    axes.axvspan(-SMALL, 0, color="#F0F0F0", zorder=0, label="small differences, below 4")
    axes.hlines(places[known], (values - half)[known], (values + half)[known], color=canvas.POOLED, linewidth=1.6)
    axes.scatter(values[known], places[known], s=28, color=canvas.POOLED, zorder=3)
    axes.axvline(0, color=canvas.POPULATION, linewidth=1)
    axes.set_yticks(places, [canvas.clip(str(name), 32) for name in shown.index])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("Log predictive density, less the best model's (90% interval)")
    canvas.tidy(axes)
    canvas.legend_above(axes)
    if ax is None:
        canvas.heading(figure, title)
        notes = [] if known.all() else ["A model that gives density 0 to what it has not seen has no place here."]
        if len(shown) < len(table):
            notes.append(f"The best {len(shown)} of {len(table)} models.")
        canvas.footnote(figure, notes)
    return figure


def by_prior(table: pandas.DataFrame, best: str, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """Log Bayes factors against one model as priors become wider.

    Parameters
    ----------
    table : data frame
        Log marginal likelihoods: a row a multiple of the priors' widths, a column a model.
    best : the model that the others are compared with.
    ax, figsize : the user's axes, or the size of a new figure.
    """
    figure, axes = canvas.one_axes(ax, figsize, (6.4, 3.8))
    times = table.index.to_numpy(dtype=float)
    places = np.log2(times)
    for k, name in enumerate(name for name in table.columns if name != best):
        colour = COLOURS[k % len(COLOURS)]
        values = (table[name] - table[best]).to_numpy(dtype=float)
        axes.plot(places, values, "o-", color=colour, markersize=4.5, label=canvas.clip(str(name), 32))
    axes.axhline(0, color=canvas.POOLED, linewidth=1.4, label=canvas.clip(best, 32))
    axes.axvline(0, color="#BBBBBB", linewidth=1, linestyle=(0, (4, 3)))
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter([f"{value:g}" for value in times]))
    axes.set_xlabel("Widths of the priors of slopes and group sds, times those of the fits")
    axes.set_ylabel(f"Log Bayes factor over {canvas.clip(best, 20)}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, 0.05 * (high - low)))
    canvas.tidy(axes, grid="both")
    canvas.legend_above(axes, columns=3)
    if ax is None:
        canvas.heading(figure, "Marginal likelihoods under narrower and wider priors")
    return figure


def parameters(table: pandas.DataFrame, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """Bars by level: how many parameters there are, and how many the data determine.

    Parameters
    ----------
    table : data frame
        Index the level; columns parameters, effective; its last row, the total, is not drawn.
    ax, figsize : the user's axes, or the size of a new figure.
    """
    shown = table.iloc[:-1]
    figure, axes = canvas.one_axes(ax, figsize, (6.2, 1.6 + 0.5 * len(shown)))
    places = np.arange(len(shown))[::-1]
    raw, effective = (shown[name].to_numpy(dtype=float) for name in ("parameters", "effective"))
    axes.barh(places, raw, height=0.62, color="#E4E4E4", label="parameters")
    axes.barh(places, np.maximum(effective, 0.0), height=0.34, color=canvas.POOLED, label="effective")
    largest = float(max(raw.max(), effective.max()))
    for place, count, value in zip(places, raw, effective, strict=True):
        axes.text(
            max(count, value) + 0.012 * largest, place, f"{value:.1f} of {count:,.0f}", va="center",
            fontsize=canvas.SMALL, color="#333333",
        )  # fmt: skip
    axes.set_yticks(places, [canvas.clip(str(name)) for name in shown.index])
    axes.set_xlim(0, 1.16 * largest)
    axes.set_xlabel("Number of parameters")
    canvas.tidy(axes)
    canvas.legend_above(axes)
    if ax is None:
        canvas.heading(figure, "What each level costs")
    return figure
