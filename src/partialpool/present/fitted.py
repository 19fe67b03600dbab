"""The data and the fit, group by group or row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from partialpool.present import canvas
from partialpool.spec.formula import variables_of

Array = NDArray[np.float64]
MAX_POINTS = 20_000
GRID = 40


@dataclass(frozen=True)
class Lines:
    """What a panel a group needs: the numeric predictor, the columns of the factor, and their factor."""

    predictor: str
    variables: tuple[str, ...]
    factor: Any


def fitted(fit: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """See `Plots.fitted`."""
    lines = _lines_of(fit.model.design) if ax is None else None
    return _observed_against_fitted(fit, ax, figsize) if lines is None else _panels(fit, lines, figsize)


def observed_of(design: Any) -> Array:
    """The response on the scale of its expectation: the share of events where there are trials."""
    y = np.asarray(design.y, dtype=float)
    return y if design.trials is None else y / design.trials


def response_label(fit: Any) -> str:
    """What `observed_of` measures."""
    design = fit.model.design
    if design.trials is not None:
        return f"{canvas.response_of(fit)} per trial"
    return canvas.response_of(fit) if design.success is None else f"probability of {design.success}"


def _lines_of(design: Any) -> Lines | None:
    """The predictor and the factor, where the model has exactly one of each and nothing else."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if len(design.factors) != 1 or design.terms.offsets or not len(design.data):
        return None
    texts = [design.terms.common, *(term.effects for term in design.terms.all_groups)]
    texts += [part.common for part in design.terms.predictors.values()]
    used = [name for text in texts for name in variables_of(text)]
    predictors = list(dict.fromkeys(used))
    if len(predictors) != 1 or not len(design.y):
        return None
    column = design.data[predictors[0]]
    if not is_numeric_dtype(column) or is_bool_dtype(column):
        return None
    return Lines(predictors[0], design.factors[0].variables, design.factors[0])


def _panels(fit: Any, lines: Lines, figsize: tuple[float, float] | None) -> Figure:
    """A panel a group, sorted by the fitted value at the middle of the predictor."""
    design = fit.model.design
    chosen = _chosen_groups(fit, lines)
    count = len(chosen)
    across = min(6, max(1, math.ceil(math.sqrt(1.5 * count))))
    down = math.ceil(count / across)
    figure = canvas.new_figure(figsize or (max(4.8, 1.55 * across + 0.6), 1.1 + 1.5 * down))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    x = design.data[lines.predictor].to_numpy(dtype=float)
    observed = observed_of(design)
    places, mean, low, high, common = _curves(fit, lines, chosen)
    for position, (axes, group) in enumerate(zip(grid.flat, chosen, strict=False)):
        own = lines.factor.codes == group
        axes.fill_between(places, low[position], high[position], color=canvas.POOLED, alpha=0.22, linewidth=0)
        axes.plot(places, mean[position], color=canvas.POOLED, linewidth=1.6)
        axes.plot(places, common[position], color=canvas.MUTED, linewidth=1.2, linestyle="--", zorder=1)
        axes.scatter(x[own], observed[own], s=9, color="#333333", zorder=3, linewidths=0)
        axes.set_title(canvas.clip(str(lines.factor.labels[group]), 16), fontsize=canvas.SMALL, pad=2)
        axes.tick_params(labelsize=canvas.SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=design.data[lines.predictor].dtype.kind in "iu"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        canvas.tidy(axes, grid="")
        if position + across >= count:  # nothing below: a ragged last row leaves its columns without ticks otherwise
            axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[count:]:
        axes.set_visible(False)
    note = "" if count == len(lines.factor.labels) else f" ({count} of {len(lines.factor.labels):,} groups)"
    figure.supxlabel(lines.predictor, fontsize=10)
    response = response_label(fit)
    figure.supylabel(response, fontsize=10)
    title = f"{response} by {lines.predictor}, a panel a {lines.factor.name}{note}"
    figure.legend(
        handles=[
            Line2D([], [], color="#333333", marker="o", markersize=3, linestyle="none", label="data"),
            Line2D([], [], color=canvas.POOLED, linewidth=1.6, label="group"),
            Patch(color=canvas.POOLED, alpha=0.22, linewidth=0, label="its 90% interval"),
            Line2D([], [], color=canvas.MUTED, linewidth=1.2, linestyle="--", label="population"),
        ],
        loc="outside upper left", ncols=4, frameon=False, fontsize=canvas.SMALL,
        title=title, title_fontsize=11, alignment="left",  # a suptitle and a legend would stand in the same place
    )  # fmt: skip
    return figure


def _chosen_groups(fit: Any, lines: Lines) -> list[int]:
    """At most 24 groups, evenly spaced in the order of their mean fitted value."""
    codes = lines.factor.codes
    means = np.asarray(fit.predict().mean, dtype=float)
    counts = np.bincount(codes, minlength=len(lines.factor.labels))
    totals = np.bincount(codes, weights=means, minlength=len(lines.factor.labels))
    present = np.flatnonzero(counts)
    order = present[np.argsort(totals[present] / counts[present], kind="stable")]
    return [int(group) for group in order[canvas.spread_rows(len(order), canvas.MAX_PANELS)]]


def _curves(fit: Any, lines: Lines, chosen: list[int]) -> tuple[Array, Array, Array, Array, Array]:
    """Places (GRID,) and the group's mean, 5% and 95% quantile and the population's mean there, (groups, GRID)."""
    import pandas

    design = fit.model.design
    x = design.data[lines.predictor].to_numpy(dtype=float)
    places = np.linspace(x.min(), x.max(), GRID)
    rows = np.array([int(np.flatnonzero(lines.factor.codes == group)[0]) for group in chosen])
    new = pandas.DataFrame({lines.predictor: np.tile(places, len(chosen))})
    for variable in lines.variables:
        new[variable] = design.data[variable].iloc[np.repeat(rows, GRID)].array
    group = fit.predict(new, kind="mean")
    population = fit.predict(new, kind="mean", effects="none")
    values = [group.mean, group.quantile(0.05), group.quantile(0.95), population.mean]
    mean, low, high, common = (np.asarray(value, dtype=float).reshape(len(chosen), GRID) for value in values)
    return places, mean, low, high, common


def _observed_against_fitted(fit: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """A point a row; a good fit lies along the line."""
    fitted_values = np.asarray(fit.predict().mean, dtype=float)
    observed = observed_of(fit.model.design)
    notes = []
    if observed.size > MAX_POINTS:
        keep = np.unique(np.linspace(0, observed.size - 1, MAX_POINTS).astype(int))
        notes.append(f"{keep.size:,} of {observed.size:,} rows.")
        fitted_values, observed = fitted_values[keep], observed[keep]
    figure, axes = canvas.one_axes(ax, figsize, (5.6, 5.4))
    few = observed.size <= 500
    axes.scatter(
        fitted_values, observed, s=16 if few else 7, color=canvas.POOLED, linewidths=0,
        alpha=0.75 if few else max(0.08, min(0.6, 800 / observed.size)), rasterized=not few,
    )  # fmt: skip
    low = float(min(fitted_values.min(), observed.min()))
    high = float(max(fitted_values.max(), observed.max()))
    margin = 0.04 * (high - low)
    axes.plot([low, high], [low, high], color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), zorder=0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.set_box_aspect(1)
    response = response_label(fit)
    axes.set_xlabel(f"Fitted {response} (posterior mean)")
    axes.set_ylabel(f"Observed {response}")
    canvas.tidy(axes, grid="both")
    if ax is None:
        canvas.heading(figure, "Observed against fitted")
        canvas.footnote(figure, notes)
    return figure
