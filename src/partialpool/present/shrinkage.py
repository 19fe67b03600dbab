"""The plot of shrinkage: where each group's own data put it, and where the model does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from partialpool.errors import ModelError, did_you_mean
from partialpool.present import canvas

if TYPE_CHECKING:
    import pandas

MAX_ARROWS = 400
MAX_LABELS = 40
ARROW = {"arrowstyle": "->", "color": "#9A9A9A", "linewidth": 1, "shrinkA": 3, "shrinkB": 3}


def factor_named(fit: Any, factor: str | None) -> str:
    """The grouping factor asked for, or the first of the model."""
    names = [entry.name for entry in fit.model.design.factors]
    if not names:
        raise ModelError("This model has no grouping factor, so that there are no groups to draw.")
    if factor is None:
        return str(names[0])
    if factor not in names:
        raise ModelError(f"There is no grouping factor {factor!r}. {did_you_mean(factor, names)}")
    return factor


def shrinkage(
    fit: Any, factor: str | None, term: str | None, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """See `Plots.shrinkage`."""
    factor = factor_named(fit, factor)
    groups = fit.groups(factor, kind="coefficient")
    terms = list(dict.fromkeys(str(name) for name in groups["term"]))
    if term is not None and term not in terms:
        raise ModelError(f"The groups of {factor!r} have no term {term!r}. {did_you_mean(term, terms)}")
    if term is None and len(terms) >= 2:
        return _arrows(fit, factor, groups, terms[0], terms[1], ax, figsize)
    return _dumbbells(fit, factor, groups, term or terms[0], ax, figsize)


def _dumbbells(
    fit: Any, factor: str, groups: pandas.DataFrame, term: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """One line a group, from its no-pooling to its partial-pooling estimate."""
    rows = groups[groups["term"] == term]
    known = rows[np.isfinite(rows["no_pooling"].to_numpy(dtype=float))].sort_values("no_pooling")
    notes = _left_out(len(rows) - len(known))
    if known.empty:
        raise ModelError(f"No group of {factor!r} has an estimate of {term!r} from its own rows alone.")
    shown = known.iloc[canvas.spread_rows(len(known))]
    if len(shown) < len(known):
        notes.append(f"{len(shown)} of {len(known):,} groups, evenly spaced by rank.")
    places = np.arange(len(shown))
    figure, axes = canvas.one_axes(ax, figsize, (6.4, 1.5 + 0.2 * len(shown)))
    raw, pooled = shown["no_pooling"].to_numpy(dtype=float), shown["mean"].to_numpy(dtype=float)
    segments = np.stack([np.column_stack([raw, places]), np.column_stack([pooled, places])], axis=1)
    axes.add_collection(LineCollection(list(segments), colors="#BDBDBD", linewidths=1.4, zorder=1))
    axes.scatter(raw, places, s=26, facecolors="none", edgecolors=canvas.RAW, label="no pooling (own rows alone)")
    axes.scatter(pooled, places, s=26, color=canvas.POOLED, label="partial pooling", zorder=3)
    population = canvas.population_values(fit).get(term, 0.0)
    axes.axvline(population, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), label="population", zorder=1)
    counts = shown["n"].to_numpy()
    varies = bool((groups["n"] != groups["n"].iloc[0]).any())
    names = [canvas.clip(str(name)) for name in shown["group"]]
    labels = [f"{name} ({n:,})" for name, n in zip(names, counts, strict=True)] if varies else names
    axes.set_yticks(places, labels, fontsize=canvas.SMALL)
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.set_ylabel(f"{factor} (rows)" if varies else factor)
    axes.set_xlabel(canvas.term_axis(fit, term))
    canvas.tidy(axes)
    canvas.legend_above(axes)
    if ax is None:
        canvas.heading(figure, f"Shrinkage of {factor}: {term}")
        canvas.footnote(figure, notes)
    return figure


def _arrows(
    fit: Any, factor: str, groups: pandas.DataFrame, across: str, up: str, ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """Two terms at once: an arrow a group, and the population with its spread."""
    raw, pooled, names = _pairs(groups, across, up)
    known = np.isfinite(raw).all(axis=1)
    notes = _left_out(int((~known).sum()))
    if not known.any():
        raise ModelError(
            f"No group of {factor!r} has estimates of {across!r} and {up!r} from its own rows alone; "
            f"give term={across!r} to look at one."
        )
    raw, pooled, names = raw[known], pooled[known], names[known]
    keep = canvas.spread_rows(len(raw), MAX_ARROWS)
    if len(keep) < len(raw):
        notes.append(f"{len(keep)} of {len(raw):,} groups.")
    raw, pooled, names = raw[keep], pooled[keep], names[keep]
    figure, axes = canvas.one_axes(ax, figsize, (6.8, 5.6))
    values = canvas.population_values(fit)
    centre = np.array([values.get(across, 0.0), values.get(up, 0.0)])
    ellipses = _population(axes, values, factor, across, up, centre)
    span = np.ptp(np.vstack([raw, pooled]), axis=0)
    for start, end in zip(raw, pooled, strict=True):
        if (np.abs(end - start) > 0.015 * span).any():  # else the two marks touch
            axes.annotate("", end, start, arrowprops=ARROW)
    size = 24 if len(raw) <= 100 else 10
    axes.scatter(
        raw[:, 0], raw[:, 1], s=size, facecolors="none", edgecolors=canvas.RAW, label="no pooling (own rows alone)"
    )
    axes.scatter(pooled[:, 0], pooled[:, 1], s=size, color=canvas.POOLED, label="partial pooling", zorder=3)
    axes.set_xlabel(canvas.term_axis(fit, across))
    axes.set_ylabel(canvas.term_axis(fit, up))
    axes.margins(0.08)
    canvas.tidy(axes, grid="both")
    canvas.legend_above(axes, extra=ellipses)
    if ax is None:
        canvas.heading(figure, f"Shrinkage of {factor}: {across} and {up}")
        canvas.footnote(figure, notes)
    if len(raw) <= MAX_LABELS:
        along = np.linspace(0, 1, 8)[:, None, None]
        avoid = np.vstack([(raw + along * (pooled - raw)).reshape(-1, 2), np.tile(centre, (4, 1))])
        canvas.label_points(axes, raw, [canvas.clip(str(name), 14) for name in names], avoid)
    return figure


def _pairs(groups: pandas.DataFrame, across: str, up: str) -> tuple[Any, Any, Any]:
    """(J, 2) no-pooling and partial-pooling estimates of two terms, and the groups' names."""
    first = groups[groups["term"] == across].set_index("group")
    second = groups[groups["term"] == up].set_index("group").reindex(first.index)
    raw = np.column_stack([first["no_pooling"], second["no_pooling"]]).astype(float)
    pooled = np.column_stack([first["mean"], second["mean"]]).astype(float)
    return raw, pooled, first.index.to_numpy()


def _population(axes: Axes, values: dict[str, float], factor: str, across: str, up: str, centre: Any) -> list[Line2D]:
    """The population's centre, and ellipses that hold half and 90% of its groups (at posterior means); their keys."""
    axes.scatter(centre[0], centre[1], s=90, marker="P", color=canvas.POPULATION, zorder=4, linewidths=0)
    mark = Line2D([], [], marker="P", markersize=8, color=canvas.POPULATION, linestyle="none", label="population")
    handles = [mark]
    sds = np.array([values.get(f"sd({across}|{factor})", 0.0), values.get(f"sd({up}|{factor})", 0.0)])
    if not (sds > 0).all():
        return handles
    correlation = values.get(f"cor({across},{up}|{factor})", 0.0)
    covariance = np.outer(sds, sds) * np.array([[1, correlation], [correlation, 1]])
    lengths, directions = np.linalg.eigh(covariance)
    angle = math.degrees(math.atan2(directions[1, 1], directions[0, 1]))
    for share, dashes in ((0.5, (0.0, ())), (0.9, (0.0, (4, 3)))):
        radius = math.sqrt(-2 * math.log(1 - share))  # chi-square with 2 degrees of freedom
        wide, narrow = 2 * radius * math.sqrt(lengths[1]), 2 * radius * math.sqrt(lengths[0])
        ellipse = Ellipse(
            (float(centre[0]), float(centre[1])), wide, narrow, angle=angle, fill=False, edgecolor="#777777",
            linestyle=dashes, linewidth=0.9, zorder=1,
        )  # fmt: skip
        axes.add_patch(ellipse)
        label = f"holds {share:.0%} of the population"
        handles.append(Line2D([], [], color="#777777", linestyle=dashes, linewidth=0.9, label=label))
    return handles


def _left_out(count: int) -> list[str]:
    if not count:
        return []
    return [f"{count:,} group{'s' if count > 1 else ''} left out: their own rows do not determine an estimate."]
