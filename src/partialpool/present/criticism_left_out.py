"""Rows or groups left out: the log predictive density of each, those marked whose importance weights failed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas

Array = NDArray[np.float64]

#: Groups that have a line of their own with a name, and the lowest units that are named otherwise.
MAX_NAMED, LABELLED = 60, 5
#: Pareto k above which importance weights are not trusted.
GOOD_K = 0.7


def by_unit(
    labels: Sequence[str],
    elpd: Array,
    pareto_k: Array,
    refitted: NDArray[np.bool_],
    doubtful: NDArray[np.bool_],
    factor: str | None,
    by_row: bool,
    heading: str,
    ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    """Log predictive densities of units left out.

    Groups up to 60 are lines with names, sorted; rows, and more groups than that, points in the order of the data.

    Parameters
    ----------
    labels, elpd, pareto_k, refitted, doubtful : (U,)
    factor : name of the groups, or None for rows. by_row : whether a group's density is that of a row of it on average.
    heading : over a figure of its own.
    ax, figsize : the user's axes, or the size of a new figure.
    """
    named = factor is not None and len(labels) <= MAX_NAMED
    size = (6.4, 1.4 + 0.2 * len(labels)) if named else (7.2, 4.0)
    figure, axes = canvas.one_axes(ax, figsize, size)
    refitted = refitted & ~doubtful
    why = f" (Pareto k above {GOOD_K} in {(refitted & (pareto_k > GOOD_K)).sum()})" if refitted.any() else ""
    kinds = [
        (~doubtful & ~refitted, canvas.POOLED, "o", "by importance weights"),
        (refitted, canvas.RAW, "D", f"model fitted again without it{why}"),
        (doubtful, canvas.POPULATION, "x", "not to be relied on"),
    ]
    order = np.argsort(-elpd, kind="stable") if named else np.arange(len(labels))
    place = np.empty(len(labels))
    place[order] = np.arange(len(labels))
    finite = np.isfinite(elpd)
    what = "of the row" if factor is None else f"of {factor}"
    what = "of its rows (mean)" if by_row else what
    for which, color, marker, label in kinds:
        own = which & finite
        if not own.any():
            continue
        across, up = (elpd[own], place[own]) if named else (place[own], elpd[own])
        dense = len(labels) > 400
        axes.scatter(
            across, up, s=5 if dense and marker == "o" else 20, color=color, marker=marker, label=label, zorder=3,
            linewidths=1.2 if marker == "x" else 0.0, alpha=0.35 if dense and marker == "o" else 1.0,
        )  # fmt: skip
    if named:
        axes.set_yticks(np.arange(len(labels)), [canvas.clip(labels[at]) for at in order], fontsize=canvas.SMALL)
        axes.set_ylim(-0.8, len(labels) - 0.2)
        axes.set_xlabel(f"log predictive density {what}, left out")
        axes.set_ylabel(factor or "")
        canvas.tidy(axes, grid="both")
    else:
        axes.set_ylabel(f"log predictive density {what}")
        axes.set_xlabel("place in the data" if factor is None else f"{factor}, in order")
        canvas.tidy(axes, grid="y")
    canvas.legend_above(axes)
    if not named and finite.any():
        lowest = np.argsort(np.where(finite, elpd, np.inf))[: min(LABELLED, len(labels))]
        points = np.column_stack([place[finite], elpd[finite]])
        if len(points) > 2000:
            points = points[np.argsort(points[:, 1])[:2000]]
        canvas.label_points(axes, np.column_stack([place[lowest], elpd[lowest]]), [labels[at] for at in lowest], points)
    if ax is None:
        canvas.heading(figure, heading)
    return figure
