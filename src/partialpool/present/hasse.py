"""The Hasse diagram of levels, and the sizes of their groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray

from partialpool.present import canvas

Line = tuple[int, int, str, bool]


def hasse(
    names: Sequence[str],
    counts: Sequence[int],
    lines: Sequence[Line],
    crossed: Sequence[str] = (),
    *,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    r"""Levels as boxes, the coarse above the fine, joined where one is nested in the other.

    Parameters
    ----------
    names, counts : of the nodes
        What each is called and how many groups it has.
    lines : sequence of (fine, coarse, words, broken)
        Positions of the two nodes, what is written beside the line, and whether rows break the map (dashed).
    crossed : sequence of str
        Pairs that are crossed, for the small print.
    ax : matplotlib Axes, optional
    figsize : (width, height) in inches, optional

    Examples
    --------
    >>> figure = hasse(["school", "row"], [20, 500], [(1, 0, "", False)])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['school\n20 groups', 'row\n500 rows']
    """
    places = node_places(len(names), [(fine, coarse) for fine, coarse, _, _ in lines])
    width, height = float(np.ptp(places[:, 0])), float(np.ptp(places[:, 1]))
    figure, axes = canvas.one_axes(ax, figsize, (max(4.4, 2.2 * (width + 1)), 1.3 + 1.1 * (height + 1)))
    for fine, coarse, words, broken in lines:
        (x0, y0), (x1, y1) = places[fine], places[coarse]
        bend = 0.6 if y1 - y0 > 1 else 0.0  # so that a long line does not run through the level between
        axes.add_patch(
            FancyArrowPatch(
                (x0, y0), (x1, y1), arrowstyle="-", connectionstyle=f"arc3,rad={bend}", linewidth=1.4, zorder=1,
                shrinkA=0, shrinkB=0, color=canvas.RAW if broken else canvas.MUTED, linestyle="--" if broken else "-",
            )
        )  # fmt: skip
        if words:
            axes.text(
                (x0 + x1) / 2, (y0 + y1) / 2, words, fontsize=canvas.SMALL, color=canvas.RAW,
                ha="center", va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, zorder=2,
            )  # fmt: skip
    for place, name, count in zip(places, names, counts, strict=True):
        last = name == names[-1]
        axes.text(
            float(place[0]), float(place[1]), f"{canvas.clip(name, 34)}\n{count:,} {'rows' if last else 'groups'}",
            ha="center", va="center", fontsize=9, zorder=3,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": "#EAF2F8" if not last else "#F2F2F2",
                  "edgecolor": canvas.POOLED if not last else canvas.MUTED},
        )  # fmt: skip
    axes.set_xlim(places[:, 0].min() - 0.6, places[:, 0].max() + 0.6)
    axes.set_ylim(places[:, 1].min() - 0.45, places[:, 1].max() + 0.45)
    axes.set_axis_off()
    if ax is None:
        canvas.heading(figure, "Levels, the coarse above the fine")
        dashed = "; dashed: but for some rows" if any(broken for *_, broken in lines) else ""
        canvas.footnote(figure, [f"Line: the lower is nested in the upper{dashed}.", *_crossed_words(crossed)])
    return figure


def _crossed_words(crossed: Sequence[str], most: int = 4) -> list[str]:
    if not crossed:
        return []
    more = [f"and {len(crossed) - most} more pairs"] if len(crossed) > most else []
    return [("Crossed: " if place == 0 else "  ") + text for place, text in enumerate([*crossed[:most], *more])]


def node_places(nodes: int, lines: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Where nodes stand, (nodes, 2): height by the longest way up from the bottom, order by the neighbours below.

    Examples
    --------
    >>> node_places(3, [(2, 0), (2, 1)]).tolist()
    [[-0.5, 1.0], [0.5, 1.0], [0.0, 0.0]]
    """
    heights = np.zeros(nodes)
    for _ in range(nodes):
        for fine, coarse in lines:
            heights[coarse] = max(heights[coarse], heights[fine] + 1)
    across = np.zeros(nodes)
    for height in sorted(set(heights.tolist())):
        layer = [node for node in range(nodes) if heights[node] == height]
        below = {
            node: float(np.mean([across[fine] for fine, coarse in lines if coarse == node] or [0.0])) for node in layer
        }
        layer.sort(key=lambda node: (below[node], node))
        for place, node in enumerate(layer):
            across[node] = place - (len(layer) - 1) / 2
    return np.column_stack([across, heights])


def group_sizes(
    names: Sequence[str],
    sizes: Sequence[NDArray[np.int64]],
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Rows per group of each level: a point for each group, or the range and quartiles where there are many.

    Parameters
    ----------
    names : of the levels, the coarsest first.
    sizes : rows in each group of each level.
    ax : matplotlib Axes, optional
    figsize : (width, height) in inches, optional
    """
    figure, axes = canvas.one_axes(ax, figsize, (6.4, 1.6 + 0.55 * len(names)))
    for place, own in enumerate(sizes):
        low, first, middle, third, high = np.quantile(own, [0, 0.25, 0.5, 0.75, 1])
        axes.plot([low, high], [place, place], color=canvas.MUTED, linewidth=1, zorder=1)
        axes.plot([first, third], [place, place], color=canvas.POOLED, linewidth=6, alpha=0.35, zorder=2)
        distinct, count = np.unique(own, return_counts=True)
        if len(distinct) <= canvas.MAX_GROUPS:
            axes.scatter(distinct, np.full(len(distinct), place), s=10 + 40 * count / count.max(), color=canvas.POOLED,
                         alpha=0.7, linewidth=0, zorder=3)  # fmt: skip
        axes.plot([middle], [place], marker="|", markersize=14, color=canvas.POPULATION, zorder=4)
    axes.set_yticks(range(len(names)), [f"{canvas.clip(n)} ({len(s):,})" for n, s in zip(names, sizes, strict=True)])
    axes.set_ylim(len(names) - 0.5, -0.5)
    if max(own.max() for own in sizes) > 20 * max(1, min(own.min() for own in sizes)):
        axes.set_xscale("log")
    axes.set_xlabel("rows in a group")
    canvas.tidy(axes)
    if ax is None:
        canvas.heading(figure, "Rows per group of each level (number of groups)")
        canvas.footnote(figure, ["Line: range. Band: middle half. Tick: median. Points: sizes, larger where shared."])
    return figure
