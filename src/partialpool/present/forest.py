"""Forest plots: means and 90% intervals of groups and of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from partialpool.present import canvas
from partialpool.present.density import OWN_PARAMETERS
from partialpool.present.shrinkage import factor_named

if TYPE_CHECKING:
    import pandas

#: Rows share an axis while the widest interval, or their span, is at most so many times the narrowest interval.
MAX_RATIO = 12.0


def group_forest(fit: Any, factor: str, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """The effects of a factor's groups, sorted by the first term; a panel a term."""
    factor = factor_named(fit, factor)
    groups = fit.groups(factor, kind="effect")
    terms = list(dict.fromkeys(str(name) for name in groups["term"]))
    canvas.need_one_axes(ax, len(terms), f"The forest of {factor!r}")
    by_term = {term: groups[groups["term"] == term].set_index("group") for term in terms}
    order = by_term[terms[0]]["mean"].sort_values().index
    rows = canvas.extreme_rows(len(order))
    shown = order[rows]
    gap = 1.5 if len(shown) < len(order) else 0.0
    places = np.arange(len(shown)) + np.where(np.arange(len(shown)) >= len(shown) // 2, gap, 0.0)
    size = (1.8 + 3.4 * len(terms), 1.3 + 0.18 * (len(shown) + gap))
    if ax is None:
        figure = canvas.new_figure(figsize or size)
        panels = list(figure.subplots(1, len(terms), sharey=True, squeeze=False)[0])
    else:
        figure, only = canvas.one_axes(ax, figsize, size)
        panels = [only]
    for axes, term in zip(panels, terms, strict=True):
        _intervals(axes, by_term[term].loc[shown], places)
        axes.axvline(0, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        axes.set_xlabel(canvas.term_axis(fit, term))
        axes.set_ylim(-0.8, places[-1] + 0.8)
    panels[0].set_yticks(places, [canvas.clip(str(name)) for name in shown], fontsize=canvas.SMALL)
    panels[0].set_ylabel(factor)
    if ax is None:
        canvas.heading(figure, f"Effects of {factor}: mean and 90% interval, 0 is the population")
        if len(shown) < len(order):
            canvas.footnote(figure, [f"The {len(shown) // 2} lowest and highest of {len(order):,} groups."])
    return figure


def parameter_forest(fit: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """Every parameter; those whose intervals would be invisible on one axis stand in panels of their own."""
    frame = fit.summary()
    blocks = _blocks(frame)
    canvas.need_one_axes(ax, len(blocks), "The forest of the parameters")
    heights = [len(block) + 0.9 for block in blocks]
    size = (6.8, 0.8 + sum(0.26 * height + 0.28 for height in heights))
    if ax is None:
        figure = canvas.new_figure(figsize or size)
        grid = figure.subplots(len(blocks), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        panels = list(grid[:, 0])
    else:
        figure, only = canvas.one_axes(ax, figsize, size)
        panels = [only]
    for axes, block in zip(panels, blocks, strict=True):
        rows = frame.loc[block]
        places = np.arange(len(block))[::-1]
        _intervals(axes, rows, places)
        axes.set_yticks(places, [canvas.clip(name, 44) for name in block], fontsize=9)
        axes.set_ylim(-0.7, len(block) - 0.3)
        low, high = axes.get_xlim()
        if low < 0 < high:
            axes.axvline(0, color="#555555", linewidth=0.9, zorder=1)
    if ax is None:
        canvas.heading(figure, "Parameters: mean and 90% interval")
        figure.align_ylabels(panels)
    return figure


def _intervals(axes: Axes, rows: pandas.DataFrame, places: Any) -> None:
    low, high = rows["q05"].to_numpy(dtype=float), rows["q95"].to_numpy(dtype=float)
    axes.hlines(places, low, high, color=canvas.POOLED, linewidth=1.6)
    axes.scatter(rows["mean"].to_numpy(dtype=float), places, s=20, color=canvas.POOLED, zorder=3)
    canvas.tidy(axes)
    axes.tick_params(axis="y", length=0)


def _blocks(frame: pandas.DataFrame) -> list[list[str]]:
    """Coefficients, then sds and the family's parameters, then correlations: runs that can share an axis."""
    blocks: list[list[str]] = []
    order = ("coefficient", "sd", "correlation")
    for name in sorted((str(name) for name in frame.index), key=lambda name: order.index(_kind(name))):
        if blocks and _kind(blocks[-1][-1]) == _kind(name) and _shareable(frame, [*blocks[-1], name]):
            blocks[-1].append(name)
        else:
            blocks.append([name])
    return blocks


def _kind(name: str) -> str:
    if name.startswith("cor("):
        return "correlation"
    return "sd" if name.startswith("sd(") or name in OWN_PARAMETERS else "coefficient"


def _shareable(frame: pandas.DataFrame, names: list[str]) -> bool:
    rows = frame.loc[names]
    low, high = rows["q05"].to_numpy(dtype=float), rows["q95"].to_numpy(dtype=float)
    narrowest = float((high - low).min())
    span = float(high.max() - low.min())
    return bool(narrowest > 0 and span / narrowest <= 3 * MAX_RATIO and (high - low).max() / narrowest <= MAX_RATIO)
