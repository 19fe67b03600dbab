"""Figures of sensitivity: to prior and likelihood, to alternative priors, to single groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present.canvas import (
    MUTED,
    POOLED,
    RAW,
    SMALL,
    clip,
    footnote,
    legend_above,
    need_one_axes,
    new_figure,
    one_axes,
    tidy,
)

Array = NDArray[np.float64]

#: Most parameters that one figure shows.
MOST_LINES = 40


def power_scaling(
    names: Sequence[str], prior: Array, likelihood: Array, diagnosis: Sequence[str], threshold: float,
    ax: Axes | None, figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """Change of each parameter with the weight of prior and likelihood; flagged ones say so beside their line.

    Parameters
    ----------
    names, diagnosis : sequences of str, by parameter; "-" where nothing is to be said.
    prior, likelihood : arrays (parameters,)
    threshold : from where a change counts.
    """
    kept = list(range(len(names)))
    if len(names) > MOST_LINES:
        kept = sorted(np.argsort(-prior, kind="stable")[:MOST_LINES].tolist())
    figure, ax = one_axes(ax, figsize, (7.2, 1.5 + 0.3 * len(kept)))
    at = np.arange(len(kept))[::-1]
    for y, k in zip(at, kept, strict=True):
        ax.plot([prior[k], likelihood[k]], [y, y], color="#D0D0D0", linewidth=1.2, zorder=1)
    ax.plot(likelihood[kept], at, "o", color=POOLED, markersize=6, label="weight of the data", zorder=2)
    ax.plot(prior[kept], at, "D", color=RAW, markersize=6, label="weight of the priors", zorder=3)
    ax.axvline(threshold, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), label=f"counts from {threshold:g}")
    reach = float(max(prior[kept].max(initial=0.0), likelihood[kept].max(initial=0.0), 2 * threshold))
    for y, k in zip(at, kept, strict=True):
        if diagnosis[k] != "-":
            right = max(float(prior[k]), float(likelihood[k])) + 0.025 * reach
            ax.text(right, float(y), diagnosis[k], va="center", fontsize=SMALL, color="#333333")
    ax.set_yticks(at, [clip(names[k], 34) for k in kept])
    ax.set_ylim(-0.7, len(kept) - 0.3)
    ax.set_xlim(-0.02 * reach, reach * (1.35 if any(diagnosis[k] != "-" for k in kept) else 1.06))
    ax.set_xlabel("change of the posterior per doubling of the weight")
    tidy(ax)
    legend_above(ax)
    if len(kept) < len(names):
        footnote(figure, [f"The {len(kept)} of {len(names)} parameters that change most with the priors."])
    return figure


def alternatives(
    names: Sequence[str], priors: Sequence[str], how: Sequence[str], values: Array, ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """Median and 90% interval of parameters (panels) under each set of priors (lines); the first is the fit.

    Parameters
    ----------
    names : by parameter. priors, how : by set of priors.
    values : array (parameters, priors, 3): median, 5% and 95% quantile.
    """
    need_one_axes(ax, len(names), "This figure")
    count = len(names)
    columns = min(count, 3)
    rows = -(-count // columns)
    if ax is not None:
        figure, first = one_axes(ax, figsize, (5.0, 3.0))
        axes = [first]
    else:
        figure = new_figure(figsize or (max(5.6, 1.6 + 3.0 * columns), rows * (1.2 + 0.28 * len(priors))))
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        axes = list(grid.ravel())
    at = np.arange(len(priors))[::-1]
    for panel, name, own in zip(axes, names, values, strict=False):
        panel.axvspan(own[0, 1], own[0, 2], color=POOLED, alpha=0.08, linewidth=0)
        panel.axvline(own[0, 0], color=POOLED, linewidth=0.8, alpha=0.5)
        for y, line, way in zip(at, own, how, strict=True):
            colour = POOLED if way == "as fitted" else RAW if way == "refitted" else "#333333"
            panel.plot(line[1:], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            panel.plot(line[0], y, "o", color=colour, markersize=5)
        panel.set_title(clip(name, 36), fontsize=10, loc="left")
        panel.set_yticks(at, list(priors))
        panel.set_ylim(-0.6, len(priors) - 0.4)
        tidy(panel)
    for panel in axes[count:]:
        panel.set_visible(False)
    note = "Median and 90% interval; the band is the fit as it stands."
    if "refitted" in how:
        note += " Orange: refitted; dark: reweighted."
    footnote(figure, [note])
    return figure


def influence(
    factor: str, groups: Sequence[str], names: Sequence[str], moved: Array, refitted: NDArray[np.bool_], total: int,
    ax: Axes | None, figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """How far each parameter goes when a group is left out, a panel a parameter.

    Parameters
    ----------
    factor : str
    groups : by group, in the order shown. names : by parameter.
    moved : array (groups, parameters), in posterior sds. refitted : (groups,) bool. total : groups of the factor.
    """
    need_one_axes(ax, len(names), "This figure")
    if ax is not None:
        figure, first = one_axes(ax, figsize, (5.0, 3.0))
        axes = [first]
    else:
        size = figsize or (max(5.6, 2.2 + 2.1 * len(names)), 1.3 + 0.24 * len(groups))
        figure = new_figure(size)
        axes = list(figure.subplots(1, len(names), squeeze=False, sharey=True).ravel())
    at = np.arange(len(groups))[::-1]
    reach = 1.15 * max(float(np.abs(moved).max(initial=0.0)), 0.1)  # the same for all: they have the same unit
    for panel, name, own in zip(axes, names, moved.T, strict=True):
        panel.axvline(0.0, color=MUTED, linewidth=1.0)
        panel.hlines(at, 0.0, own, color="#BBBBBB", linewidth=1.4)
        panel.plot(own[~refitted], at[~refitted], "o", color=POOLED, markersize=5, label="by weights")
        if refitted.any():
            panel.plot(own[refitted], at[refitted], "D", color=RAW, markersize=5, label="refitted")
        panel.set_title(clip(name, 30), fontsize=10, loc="left")
        panel.set_yticks(at, [clip(str(group), 22) for group in groups])
        panel.set_ylim(-0.7, len(groups) - 0.3)
        panel.set_xlim(-reach, reach)
        tidy(panel)
    axes[0].set_ylabel(f"left out: {factor}")
    notes = ["Change without the group, in posterior sds of the fit."]
    if refitted.any():
        notes[0] += " Blue: by importance weights; orange: refitted."
    if len(groups) < total:
        notes.append(f"The {len(groups)} most influential of {total:,} groups.")
    footnote(figure, notes)
    return figure
