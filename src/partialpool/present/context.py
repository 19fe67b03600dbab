"""Slopes as fitted, within groups and between groups, beside one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from partialpool.present import canvas

STYLES = {
    "fitted": ("as fitted", canvas.MUTED, 0.22),
    "within": ("within groups", canvas.POOLED, 0.0),
    "between": ("between groups", canvas.RAW, -0.22),
}


def context_plot(
    rows: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]], ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """A row a predictor: mean, 5% and 95% quantile of "fitted", "within" and "between", or some of these."""
    figure, axes = canvas.one_axes(ax, figsize, (6.6, 1.5 + 0.62 * len(rows)))
    for name, (label, colour, shift) in STYLES.items():
        first = next((position for position, (_, values) in enumerate(rows) if name in values), None)
        for position, (_, values) in enumerate(rows):
            if name not in values:
                continue
            mean, low, high = values[name]
            place = len(rows) - 1 - position + shift
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([mean], [place], "o", color=colour, markersize=5, label=label if position == first else None)
    axes.axvline(0.0, color=canvas.POPULATION, linewidth=0.8, linestyle=(0, (5, 3)), zorder=0)
    axes.set_yticks(range(len(rows)), [canvas.clip(text) for text, _ in rows][::-1], fontsize=canvas.SMALL)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("slope, with 90% interval")
    canvas.tidy(axes)
    canvas.legend_above(axes)
    if ax is None:
        canvas.heading(figure, "Slopes within and between groups")
    return figure
