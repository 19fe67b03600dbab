"""The plot of group effects against covariates of the groups."""

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

MOST_BARS = 200
MOST_POINTS = 2000
LABELS = {"size": "log of rows", "order": "order"}


@dataclass(frozen=True, eq=False)
class EffectPanel:
    """One covariate and term: values by group, contrasts (groups, c), effects, and slopes by contrast."""

    covariate: str
    term: str
    categories: bool
    values: NDArray[Any]
    contrasts: Array
    mean: Array
    low: Array
    high: Array
    pulled: Array
    estimate: Array
    p: float
    p_adjusted: float


def draw_effects(
    panels: Sequence[EffectPanel], factor: str, response: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """A panel for each covariate and term."""
    canvas.need_one_axes(ax, len(panels), "The plot of exchangeability")
    shown = list(panels)[: canvas.MAX_PANELS]
    if ax is not None or len(shown) == 1:
        figure, own = canvas.one_axes(ax, figsize, (6.2, 4.4))
        axes = [own]
    else:
        known = len({panel.covariate for panel in shown})
        columns = known if 1 < known <= 4 else min(len(shown), 3)  # a row for each term where that fits
        rows = -(-len(shown) // columns)
        figure = canvas.new_figure(figsize or (0.6 + 3.9 * columns, 1.0 + 3.1 * rows))
        axes = [figure.add_subplot(rows, columns, k + 1) for k in range(len(shown))]
    for own, panel in zip(axes, shown, strict=True):
        _draw(own, panel, response)
    if ax is None:
        canvas.heading(figure, f"Effects of {factor} against what is known of its groups")
        notes = [
            "Points: groups' effects, pulled to 0 where the group has few rows. Solid: their relation as the model "
            "has it;",
            "dashed: without that pull. p: by permutation of the groups (adjusted for all panels).",
        ]
        if len(shown) < len(panels):
            notes.append(f"{len(shown)} of {len(panels)} panels.")
        canvas.footnote(figure, notes)
    return figure


def _draw(ax: Axes, panel: EffectPanel, response: str) -> None:
    if panel.categories:
        kinds = list(dict.fromkeys(sorted(str(value) for value in panel.values)))
        # The first category is the one whose contrasts are all 0.
        kinds.sort(
            key=lambda kind: int(panel.contrasts[_first(panel, kind)] @ np.arange(1, panel.contrasts.shape[1] + 1))
        )
        place = {kind: k for k, kind in enumerate(kinds)}
        centre = np.array([place[str(value)] for value in panel.values], dtype=float)
        golden = (np.arange(len(centre)) * 0.6180339887498949) % 1.0
        x = centre + 0.5 * (golden - 0.5)
        ax.set_xticks(range(len(kinds)), [canvas.clip(kind, 14) for kind in kinds])
    else:
        x = centre = panel.values.astype(float)
    if len(x) <= MOST_BARS:
        ax.vlines(x, panel.low, panel.high, color=canvas.POOLED, alpha=0.25, linewidth=0.9)
    kept = canvas.spread_rows(len(x), MOST_POINTS)
    ax.scatter(x[kept], panel.mean[kept], s=12, color=canvas.POOLED, alpha=0.8, linewidths=0)
    for slopes, style in ((panel.pulled, "-"), (panel.estimate, (0, (5, 3)))):
        line = panel.mean.mean() + (panel.contrasts - panel.contrasts.mean(axis=0)) @ slopes
        _line(ax, centre, line, panel.categories, style)
    ax.axhline(0, color=canvas.MUTED, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)
    ax.set_title(f"p = {panel.p:.3g} ({panel.p_adjusted:.3g})", fontsize=canvas.SMALL + 1, loc="left")
    ax.set_xlabel(LABELS.get(panel.covariate, panel.covariate))
    ax.set_ylabel(
        f"Intercept, deviation ({response})" if panel.term == "Intercept" else f"Slope of {panel.term}, deviation"
    )
    canvas.tidy(ax, grid="y")


def _first(panel: EffectPanel, kind: str) -> int:
    return next(k for k, value in enumerate(panel.values) if str(value) == kind)


def _line(ax: Axes, centre: Array, line: Array, categories: bool, style: Any) -> None:
    if categories:
        for value in np.unique(centre):
            height = float(line[centre == value][0])
            ax.plot([value - 0.35, value + 0.35], [height] * 2, color=canvas.POPULATION, linewidth=1.8, linestyle=style)
        return
    order = np.argsort(centre)[[0, -1]]
    ax.plot(centre[order], line[order], color=canvas.POPULATION, linewidth=1.6, linestyle=style)
