"""Prior and posterior of hyperparameters, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.present import canvas

Array = NDArray[np.float64]

COLUMNS, WIDE, HIGH = 4, 2.4, 1.9


def priors_and_posteriors(
    names: Sequence[str], prior: Array, posterior: Array, supports: Sequence[tuple[float, float]],
    flags: Sequence[str], verdict: str, ax: Axes | None, figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """A panel a hyperparameter.

    Parameters
    ----------
    prior : ndarray of shape (draws, n)
        nan where the prior is flat.
    posterior : ndarray of shape (draws, n)
    supports : where each can be.
    flags : what is told of each, or "".
    """
    if not names:
        raise ModelError("This model has no hyperparameters, so that there is nothing to draw; see .table.")
    shown = min(len(names), canvas.MAX_PANELS)
    if ax is not None:
        canvas.need_one_axes(ax, len(names), "The plot of a diagnosis")
        figure, panels = canvas.one_axes(ax, figsize, (WIDE, HIGH))[0], [ax]
    else:
        columns = min(COLUMNS, shown)
        lines = math.ceil(shown / columns)
        figure = canvas.new_figure(figsize or (max(5.2, WIDE * columns + 0.4), HIGH * lines + 1.1))
        panels = list(figure.subplots(lines, columns, squeeze=False).ravel())
        for spare in panels[shown:]:
            spare.axis("off")
    for k, panel in enumerate(panels[:shown]):
        _panel(panel, names[k], prior[:, k], posterior[:, k], supports[k], flags[k])
    if ax is None:
        canvas.heading(figure, f"What the data said of the hyperparameters: {verdict}")
        left = len(names) - shown
        more = [f"{left} more hyperparameters are not drawn."] if left else []
        canvas.footnote(figure, ["Filled: posterior. Dashed: prior (none where it is flat).", *more])
    return figure


def _panel(panel: Axes, name: str, prior: Array, posterior: Array, support: tuple[float, float], flag: str) -> None:
    places, heights = canvas.density(posterior, support)
    color = canvas.RAW if flag else canvas.POOLED
    panel.fill_between(places, heights, color=color, alpha=0.35, linewidth=0)
    panel.plot(places, heights, color=color, linewidth=1.1)
    low, high = places[0], places[-1]
    if not np.isnan(prior).any():
        # a heavy tail would smooth the prior's density away where it matters
        kept = prior[(prior >= low - (high - low)) & (prior <= high + (high - low))]
        if kept.size > 50:
            at, own = canvas.density(kept, support)
            inside = (at >= low) & (at <= high)
            panel.plot(
                at[inside], own[inside] * kept.size / prior.size, color=canvas.POPULATION, linewidth=0.9,
                linestyle=(0, (4, 3)),
            )  # fmt: skip
    panel.set_xlim(low, high)
    panel.set_ylim(0, 1.12 * float(heights.max()))
    panel.set_yticks([])
    panel.tick_params(labelsize=7)
    panel.set_title(canvas.clip(name, 32) + (f"\n{flag}" if flag else ""), fontsize=canvas.SMALL, loc="left")
    canvas.tidy(panel, grid="")
