"""Pictures of a predictive check: replicated statistics, densities, transforms, Q-Q plots, rootogram, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.present import canvas
from partialpool.present.tables import number
from partialpool.present.transforms import pit_heights, verdict

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]

#: Checks up to which each has a panel of its own; above, they stand in one axes.
MOST_PANELS = 4
#: Standard deviations of the replicates shown in one axes.
REACH = 6.0
AGAINST = 0.05


@dataclass(frozen=True, eq=False)
class Panel:
    """A statistic: of the replicates (D,), and of the data (1,) or (D,)."""

    label: str
    replicated: Array
    observed: Array
    p: float
    p_adjusted: float


def draw_statistics(
    panels: Sequence[Panel], table: pandas.DataFrame, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """Histograms of the replicates with the data's own value where these are few; all in one axes where many."""
    if len(table) > MOST_PANELS or not panels or (ax is not None and len(panels) > 1):
        return _in_one(table, ax, figsize)
    if len(panels) == 1:
        figure, own = canvas.one_axes(ax, figsize, (5.6, 3.4))
        axes = [own]
    else:
        columns = 2
        rows = -(-len(panels) // columns)
        figure = canvas.new_figure(figsize or (8.4, 0.8 + 2.5 * rows))
        axes = [figure.add_subplot(rows, columns, k + 1) for k in range(len(panels))]
    for own, panel in zip(axes, panels, strict=True):
        _histogram(own, panel)
    if ax is None:
        canvas.heading(figure, "Replicates (bars) and the data (line)")
    return figure


def _histogram(ax: Axes, panel: Panel) -> None:
    observed = float(panel.observed.mean())
    values = panel.replicated
    distinct = np.unique(values)
    if len(distinct) <= 40:  # a bar a value
        step = float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0
        counts = np.array([(values == value).sum() for value in distinct])
        ax.bar(distinct, counts, width=0.9 * step, color=canvas.MUTED, alpha=0.6, linewidth=0)
    else:
        ax.hist(values, bins=30, color=canvas.MUTED, alpha=0.6, linewidth=0)
    color = canvas.RAW if panel.p_adjusted <= AGAINST else canvas.POOLED
    ax.axvline(observed, color=color, linewidth=2)
    if panel.observed.size > 1:
        low, high = np.quantile(panel.observed, [0.05, 0.95])
        ax.axvspan(low, high, color=color, alpha=0.15, linewidth=0)
    ax.set_title(f"p = {panel.p:.2g}", fontsize=canvas.SMALL + 1, loc="left")
    ax.set_xlabel(canvas.clip(panel.label, 44))
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    canvas.tidy(ax, grid="")


def _in_one(table: pandas.DataFrame, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """A row a check: the replicates' interval and the data's value, in the replicates' standard deviations."""
    shown = table.iloc[: canvas.MAX_GROUPS]
    figure, own = canvas.one_axes(ax, figsize, (8.0, 1.5 + 0.32 * len(shown)))
    columns = {name: shown[name].to_numpy(dtype=float) for name in ("observed", "mean", "sd", "q05", "q95")}
    spread = np.where(np.isfinite(columns["sd"]), columns["sd"], (columns["q95"] - columns["q05"]) / 3.29)
    spread = np.where(spread > 0, spread, 1.0)
    place = (columns["observed"] - columns["mean"]) / spread
    low, high = (columns["q05"] - columns["mean"]) / spread, (columns["q95"] - columns["mean"]) / spread
    at = np.arange(len(shown))[::-1]
    reach = float(np.clip(np.abs(place).max() * 1.15, 3.0, REACH))
    inside = np.clip(place, -reach, reach)
    bad = shown["p_adjusted"].to_numpy(dtype=float) <= AGAINST
    own.hlines(at, low, high, color=canvas.MUTED, linewidth=6, alpha=0.5, label="90% of replicates")
    for flag, color, text in ((False, canvas.POOLED, "the data"), (True, canvas.RAW, "against the model")):
        chosen = bad == flag
        if chosen.any():
            own.scatter(inside[chosen], at[chosen], s=34, color=color, label=text, zorder=3, linewidths=0)
    for k in np.flatnonzero(np.abs(place) > reach).tolist():
        side = np.sign(place[k])
        own.annotate(
            "", (side * reach * 1.045, at[k]), xytext=(side * reach, at[k]), annotation_clip=False,
            arrowprops={"arrowstyle": "-|>", "color": canvas.RAW if bad[k] else canvas.POOLED, "linewidth": 1.2},
        )  # fmt: skip
    own.axvline(0, color=canvas.POPULATION, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)
    own.set_xlim(-reach * 1.06, reach * 1.06)
    own.set_ylim(-0.7, len(shown) - 0.3)
    own.set_yticks(at, [canvas.clip(str(label), 44) for label in shown["check"]])
    own.set_xlabel("distance from the mean of the replicates, in their standard deviations")
    canvas.tidy(own)
    for k, p in enumerate(shown["p"].tolist()):
        text = "p <0.001" if p < 0.001 else f"p {number(float(p), 3)}"
        own.annotate(
            text, (1.0, at[k]), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=canvas.SMALL,
            color=canvas.RAW if bad[k] else "#555555", annotation_clip=False,
        )  # fmt: skip
    canvas.legend_above(own, 3)
    if ax is None:
        canvas.heading(figure, "What the model reproduces of its data")
        if len(shown) < len(table):
            canvas.footnote(figure, [f"{len(shown)} of {len(table)} checks."])
    return figure


def draw_density(
    y: Array, replicated: Array, response: str, discrete: bool, support: tuple[float, float], ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """The distribution of the response over the rows, and that of some replicates (replicates, rows)."""
    figure, own = canvas.one_axes(ax, figsize, (6.4, 3.9))
    low, high = _range(y, replicated)
    for k, values in enumerate([*replicated, y]):
        last = k == len(replicated)
        style: dict[str, Any] = {
            "color": canvas.RAW if last else canvas.POOLED, "linewidth": 2.0 if last else 0.7,
            "alpha": 1.0 if last else 0.35, "label": "the data" if last else "replicates" if k == 0 else None,
        }  # fmt: skip
        if discrete:
            places = np.arange(int(low), int(high) + 1)
            shares = np.array([(values == place).mean() for place in places])
            own.plot(places, shares, **style)
        else:
            inside = values[(values >= low - (high - low)) & (values <= high + (high - low))]
            own.plot(*canvas.density(inside if len(inside) > 1 else values, support), **style)
    own.set_xlim(low, high)
    own.set_ylim(bottom=0)
    own.set_xlabel(response)
    own.set_ylabel("share of rows" if discrete else "density")
    if not discrete:
        own.set_yticks([])
        own.spines["left"].set_visible(False)
    canvas.tidy(own, grid="")
    canvas.legend_above(own, 2)
    if ax is None:
        canvas.heading(figure, f"The data and {len(replicated)} replicates")
    return figure


def _range(y: Array, replicated: Array) -> tuple[float, float]:
    """Where the data and all but the outermost replicated values lie."""
    low = min(float(y.min()), float(np.quantile(replicated, 0.001)))
    high = max(float(y.max()), float(np.quantile(replicated, 0.999)))
    margin = 0.03 * (high - low) or 0.5
    floor = 0.0 if low >= 0 and low - margin < 0 else low - margin
    return floor, high + margin


def draw_transforms(below: Array, at: Array, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """The histogram of the transforms of left-out rows, with where 90% of its bars lie if the model is right."""
    from scipy.special import betaincinv

    count = len(at)
    bars = int(np.clip(count // 10, 5, 20))
    edges = np.linspace(0, 1, bars + 1)
    heights = pit_heights(below, at, edges)
    figure, own = canvas.one_axes(ax, figsize, (6.4, 3.8))
    # Quantiles of a binomial share, between its steps.
    middle = count / bars
    low, high = (float(betaincinv(middle + 0.5, count - middle + 0.5, q)) * bars for q in (0.05, 0.95))
    own.axhspan(low, high, color="#DADADA", linewidth=0, label="90% of bars, where the model is right")
    own.axhline(1, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), zorder=3)
    own.stairs(heights, edges, fill=True, color=canvas.POOLED, alpha=0.45, label="rows, each left out", zorder=2)
    own.stairs(heights, edges, color=canvas.POOLED, linewidth=1.1, zorder=2)
    own.set_xlim(0, 1)
    own.set_ylim(0, 1.12 * max(float(heights.max()), high))
    own.set_xlabel("probability of a lower response, by the other rows")
    own.set_ylabel("relative frequency")
    canvas.tidy(own, grid="")
    canvas.legend_above(own, 2)
    if ax is None:
        canvas.heading(figure, "Left-out rows: are they where the others predict them?")
        said = verdict(below, at).replace("this population says", "the model says").replace("the units", "the rows")
        said = said.replace("the population has", "they have").replace("units show", "rows show")
        canvas.footnote(figure, [said])
    return figure


def draw_quantiles(
    panels: Sequence[tuple[str, pandas.DataFrame, float]], what: str, ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """Normal quantiles of `what` against expected ones, with an envelope; a panel each: title, frame, p."""
    canvas.need_one_axes(ax, len(panels), "The Q-Q plot")
    shown = list(panels)[: canvas.MAX_PANELS]
    if ax is not None or len(shown) == 1:
        figure, own = canvas.one_axes(ax, figsize, (5.0, 4.7))
        axes = [own]
    else:
        columns = min(len(shown), 3)
        rows = -(-len(shown) // columns)
        figure = canvas.new_figure(figsize or (0.5 + 3.6 * columns, 1.0 + 3.5 * rows))
        axes = [figure.add_subplot(rows, columns, k + 1) for k in range(len(shown))]
    for own, (title, frame, p) in zip(axes, shown, strict=True):
        _quantiles(own, frame, f"{title}{' ' * bool(title)}(p = {p:.2g})", f"{what}, normal score")
    if ax is None:
        canvas.heading(figure, f"Q-Q plot of {what}")
        canvas.footnote(
            figure, ["Band: 90% of samples from the model lie inside it everywhere. p: of leaving it so far."]
        )
    return figure


def _quantiles(ax: Axes, frame: pandas.DataFrame, title: str, label: str) -> None:
    x, y, low, high = (frame[name].to_numpy(dtype=float) for name in ("expected", "observed", "low", "high"))
    ax.fill_between(x, low, high, color="#DADADA", linewidth=0)
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, ends, color=canvas.POPULATION, linewidth=0.9, linestyle=(0, (5, 3)))
    out = (y < low) | (y > high)
    ax.scatter(x[~out], y[~out], s=11, color=canvas.POOLED, linewidths=0, zorder=3)
    ax.scatter(x[out], y[out], s=16, color=canvas.RAW, linewidths=0, zorder=4)
    if "group" in frame.columns and out.any():
        chosen = np.flatnonzero(out)[np.argsort(-np.abs(y[out] - x[out]))][:6]
        for k in chosen:
            ax.annotate(
                canvas.clip(str(frame["group"].iloc[k]), 16), (x[k], y[k]), xytext=(-6 if x[k] > 0 else 6, 0),
                textcoords="offset points", ha="right" if x[k] > 0 else "left", va="center", fontsize=canvas.SMALL,
            )  # fmt: skip
    ax.set_title(title, fontsize=canvas.SMALL + 1, loc="left")
    ax.set_xlabel("expected normal score")
    ax.set_ylabel(label)
    canvas.tidy(ax, grid="both")


def draw_rootogram(
    frame: pandas.DataFrame, response: str, ax: Axes | None, figsize: tuple[float, float] | None
) -> Figure:
    """Bars of the observed numbers of rows, the replicates' means and 90% intervals, on a scale of square roots."""
    figure, own = canvas.one_axes(ax, figsize, (6.6, 3.9))
    start, end = frame["count"].to_numpy(dtype=float), frame["to"].to_numpy(dtype=float)
    centre, width = (start + end) / 2, 0.8 * (end - start + 1)
    observed, mean, low, high = (
        np.sqrt(frame[name].to_numpy(dtype=float)) for name in ("observed", "mean", "q05", "q95")
    )
    out = (observed < low) | (observed > high)
    own.bar(
        centre[~out], observed[~out], width=width[~out], color=canvas.POOLED, alpha=0.45, linewidth=0, label="the data"
    )
    if out.any():
        own.bar(centre[out], observed[out], width=width[out], color=canvas.RAW, alpha=0.55, linewidth=0,
                label="the data, outside the interval")  # fmt: skip
    own.vlines(centre, low, high, color=canvas.POPULATION, linewidth=1.6)
    own.plot(
        centre, mean, color=canvas.POPULATION, marker="o", markersize=3, linewidth=0.9, label="replicates: mean and 90%"
    )
    # Whole numbers of rows, about as far apart as the axis would have its own ticks.
    ticks = np.unique((own.get_yticks()[own.get_yticks() >= 0] ** 2).round())
    ticks = ticks[ticks <= own.get_ylim()[1] ** 2]
    own.set_yticks(np.sqrt(ticks), [f"{tick:,.0f}" for tick in ticks])
    own.set_ylim(bottom=0)
    own.set_xlabel(response)
    own.set_ylabel("rows (scale of square roots)")
    canvas.tidy(own, grid="y")
    canvas.legend_above(own, 3)
    if ax is None:
        canvas.heading(figure, "Rootogram: how many rows have each count")
        canvas.footnote(figure, ["The last bar holds all larger counts."])
    return figure


def draw_reliability(frame: pandas.DataFrame, p: float, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """Observed against predicted shares of events, in bins, with where 90% lie if the predictions are right."""
    figure, own = canvas.one_axes(ax, figsize, (5.0, 4.7))
    x, y, low, high = (frame[name].to_numpy(dtype=float) for name in ("predicted", "observed", "q05", "q95"))
    ends = [0.0, max(float(np.max([x.max(), y.max(), high.max()])) * 1.05, 1e-6)]
    ends[1] = min(ends[1], 1.0) if ends[1] > 0.6 else ends[1]
    own.plot(ends, ends, color=canvas.POPULATION, linewidth=0.9, linestyle=(0, (5, 3)))
    own.vlines(x, low, high, color=canvas.MUTED, linewidth=6, alpha=0.5, label="90%, where predictions are right")
    out = (y < low) | (y > high)
    own.scatter(x[~out], y[~out], s=26, color=canvas.POOLED, linewidths=0, zorder=3, label="bins of rows")
    if out.any():
        own.scatter(x[out], y[out], s=26, color=canvas.RAW, linewidths=0, zorder=3, label="outside")
    own.set_xlim(0, ends[1])
    own.set_ylim(0, ends[1])
    own.set_xlabel("predicted share of events, by the other rows")
    own.set_ylabel("observed share")
    canvas.tidy(own, grid="both")
    canvas.legend_above(own, 2)
    if ax is None:
        canvas.heading(figure, "Reliability: do events happen as often as predicted?")
        canvas.footnote(figure, [f"All bins together: p = {p:.2g}."])
    return figure
