"""``pooled.plot``: the figures of `pp.pool`; here raw -> pooled and the caterpillar; others next door."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.present import canvas

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The pooled estimates stand back behind the studies' own in a forest plot.
LIGHT = "#8DBBD9"
MAX_RIBBON = 800
EXTREMES = 5
SIZES = {"normal": "se", "binomial": "trials", "poisson": "exposure"}


class UnitPlots:
    """The figures of a `Pooled`; each method returns a matplotlib Figure. Called itself, it draws the shrinkage.

    Nothing global is touched: pyplot is not used, and no style is set.

    Parameters
    ----------
    pooled : Pooled

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool([28, 8, -3, 7], se=[15, 10, 16, 11], units=list("ABCD"))
    >>> figure = pooled.plot()
    >>> figure.axes[0].get_xlabel()
    'estimate'
    """

    __slots__ = ("_pooled",)

    def __init__(self, pooled: Any) -> None:
        self._pooled = pooled

    def __call__(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Draw the plot of shrinkage."""
        return self.shrinkage(ax=ax, figsize=figsize)

    def shrinkage(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Where each unit's own data put it, and where partial pooling does, with its 90% interval.

        At most 60 units are shown, evenly spaced by the rank of their raw estimates.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional
        """
        return shrinkage(self._pooled, ax, figsize)

    def caterpillar(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Pooled means and 90% intervals, sorted; those that exclude the population mean in colour.

        Up to 60 units have a labelled row each; more are a ribbon of intervals in which the extremes are named.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional
        """
        return caterpillar(self._pooled, ax, figsize)

    def forest(
        self,
        probability: float = 0.95,
        *,
        exponentiate: bool | None = None,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Forest plot of a meta-analysis: studies, their pooled estimates, the mean, and the prediction interval.

        The area of a square is the study's weight in the mean. Intervals that would shrink all the others end in
        an arrow at the edge.

        Parameters
        ----------
        probability : float
            Of all intervals.
        exponentiate : bool, optional
            Whether the estimates are logarithms of ratios, to be shown as ratios. By default what the name of the
            column of estimates says ("log risk ratio", "log_or").
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional

        Raises
        ------
        ModelError
            If the probability is not between 0 and 1, or proportions or rates are to be exponentiated.
        """
        from partialpool.present.studies import forest

        return forest(self._pooled, probability, exponentiate, ax, figsize)

    def funnel(
        self,
        target: float | None = None,
        *,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Funnel plot for profiling: raw estimates against their precision, with control limits.

        Parameters
        ----------
        target : float, optional
            The value that the control limits surround, on the scale of the raw estimates; complete pooling by default.
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional

        Raises
        ------
        ModelError
            If no unit can have the target.

        Notes
        -----
        Solid limits hold 95% and 99.8% of units that all have the target [1]_: exact binomial, Poisson or normal
        tails, interpolated between counts. Dashed limits add the spread of the population (overdispersion); where a
        target is given, the population is moved to it on the link scale.

        References
        ----------
        .. [1] Spiegelhalter, D. J. (2005). Funnel plots for comparing institutional performance. Statistics in
           Medicine, 24(8), 1185-1202.
        """
        from partialpool.present.profile import funnel

        return funnel(self._pooled, target, ax, figsize)

    def population(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The population's density against a histogram of the raw estimates and a rug of the pooled ones.

        The density is averaged over the hyperparameters; point masses are stems. The orange outline is the
        histogram that the population and the units' own noise lead one to expect.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional
        """
        from partialpool.present.profile import population

        return population(self._pooled, ax, figsize)

    def pit(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Whether the population fits: each unit's data under its marginal distribution should be uniform.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional

        Notes
        -----
        For counts the histogram is the nonrandomised one [1]_. The band holds 90% of each bar where the population
        is right. The verdict is Neyman's smooth test of degree four [2]_; the population was fitted to the same units,
        and counts spread each unit over several bars, which makes it err on the side of "compatible".

        References
        ----------
        .. [1] Czado, C., Gneiting, T. & Held, L. (2009). Predictive model assessment for count data. Biometrics,
           65(4), 1254-1261.
        .. [2] Neyman, J. (1937). "Smooth test" for goodness of fit. Scandinavian Actuarial Journal, 20, 149-199.
        """
        from partialpool.present.pit import pit

        return pit(self._pooled, ax, figsize)

    def __repr__(self) -> str:
        return (
            "UnitPlots: .shrinkage(), .caterpillar(), .forest(probability), .funnel(target), .population(), .pit(); "
            "called itself, it draws .shrinkage()"
        )


@dataclass(frozen=True)
class Shown:
    """The units that have data of their own, with what figures read of `Units`; `rows` are their positions there."""

    family: str
    label: str
    y: Array
    size: Array
    raw: Array
    names: NDArray[Any]
    rows: Ints
    complete_pooling: float

    @property
    def n(self) -> int:
        return len(self.y)


def with_data(units: Any) -> tuple[Shown, list[str]]:
    """Units without those that have no raw estimate (no trials), and a note that these are left out."""
    raw = np.asarray(units.raw, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(raw))
    without = len(raw) - len(rows)
    if not len(rows):
        raise ModelError("No unit has any data of its own, so that there is nothing to draw.")
    y, size = (np.asarray(values, dtype=np.float64)[rows] for values in (units.y, units.size))
    names = np.asarray(units.names)[rows]
    shown = Shown(units.family, units.label, y, size, raw[rows], names, rows, float(units.complete_pooling))
    what = "unit is" if without == 1 else "units are"
    return shown, [f"{without:,} {what} left out: no {SIZES[units.family]}."] if without else []


def measure(units: Any) -> str:
    """What the axis of the estimates measures."""
    if units.family == "normal":
        return str(units.label or "estimate")
    if units.family == "binomial":
        return f"{units.label or 'events'} per trial"
    return f"{units.label or 'counts'} per unit of exposure"


def centre(pooled: Any) -> tuple[float, str]:
    """The population mean and its name; complete pooling where the population has no finite mean."""
    mean = float(pooled.population.mean)
    if math.isfinite(mean):
        return mean, "population mean"
    return float(pooled.units.complete_pooling), "complete pooling (the population mean is infinite)"


def names_of(units: Any, chosen: Ints, longest: int = 26) -> list[str]:
    """The names of units on one line each; long ones lose their ends, or their middles where the ends tell them apart.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> units = SimpleNamespace(names=np.array(["General hospital, ward 1", "General hospital, ward 2"]))
    >>> names_of(units, np.arange(2), 12)
    ['Gener…ward 1', 'Gener…ward 2']
    """
    full = [" ".join(str(units.names[unit]).split()) for unit in chosen]
    short = [canvas.clip(name, longest) for name in full]
    if len(set(short)) == len(set(full)):
        return short
    head = (longest - 1) // 2
    return [name if len(name) <= longest else f"{name[:head]}…{name[head + 1 - longest :]}" for name in full]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, at most eight or so.

    Examples
    --------
    >>> log_ticks(0.08, 4.0)
    [0.1, 0.2, 0.5, 1.0, 2.0]
    """
    if high / low < 6:
        ticks = [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
        return [tick for tick in ticks if low <= tick <= high and tick > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]


def log_axis(ax: Axes, low: float, high: float) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at its ticks."""
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks = log_ticks(low, high)
    ax.set_xticks(ticks, [f"{tick:,.10g}" if tick < 1e6 else f"{tick:.3g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def shrinkage(pooled: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """See `UnitPlots.shrinkage`."""
    units, notes = with_data(pooled.units)
    raw = units.raw
    shown = np.argsort(raw, kind="stable")[canvas.spread_rows(units.n)]
    places = np.arange(len(shown))
    mean = pooled.posterior.moments()[0][units.rows[shown]]
    low, high = pooled.posterior.quantiles(np.array([0.05, 0.95]), units.rows[shown])
    figure, axes = canvas.one_axes(ax, figsize, (6.6, max(2.6, 1.7 + 0.2 * len(shown))))
    axes.hlines(places, low, high, color=canvas.POOLED, linewidth=0.8, alpha=0.6, zorder=1)
    segments = np.stack([np.column_stack([raw[shown], places]), np.column_stack([mean, places])], axis=1)
    axes.add_collection(LineCollection(list(segments), colors="#BDBDBD", linewidths=2.2, zorder=2))
    axes.scatter(
        raw[shown], places, s=26, facecolors="none", edgecolors=canvas.RAW, label="raw (own data alone)", zorder=3
    )
    axes.scatter(mean, places, s=24, color=canvas.POOLED, label="pooled, with 90% interval", zorder=4)
    value, name = centre(pooled)
    if name == "population mean":
        axes.axvline(value, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), label=name, zorder=1)
    complete = float(units.complete_pooling)
    axes.axvline(complete, color=canvas.MUTED, linewidth=1.2, linestyle=":", label="complete pooling", zorder=1)
    _unit_rows(axes, units, shown)
    axes.set_xlabel(measure(units))
    canvas.tidy(axes)
    canvas.legend_above(axes, 2)
    if ax is None:
        canvas.heading(figure, "Shrinkage: raw and pooled estimates")
        if len(shown) < units.n:
            notes.append(f"{len(shown)} of {units.n:,} units, evenly spaced by rank.")
        canvas.footnote(figure, notes)
    return figure


def _unit_rows(axes: Axes, units: Any, shown: Ints) -> None:
    """A labelled row a unit: its name, and its size where they differ."""
    names = names_of(units, shown)
    size = np.asarray(units.size, dtype=float)
    varies = bool((size != size[0]).any())
    if varies:
        names = [f"{name} ({_size(float(size[unit]))})" for name, unit in zip(names, shown, strict=True)]
    axes.set_yticks(np.arange(len(shown)), names, fontsize=canvas.SMALL)
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel(f"unit ({SIZES[units.family]})" if varies else "unit")


def _size(size: float) -> str:
    """Whole numbers in full, others to three digits."""
    return f"{size:,.0f}" if size == round(size) else f"{float(f'{size:.3g}'):,.10g}"


def caterpillar(pooled: Any, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """See `UnitPlots.caterpillar`."""
    units = pooled.units
    mean = np.asarray(pooled.posterior.moments()[0], dtype=float)
    order = np.argsort(mean, kind="stable")
    ranks = canvas.spread_rows(units.n, canvas.MAX_GROUPS if units.n <= canvas.MAX_GROUPS else MAX_RIBBON)
    shown = order[ranks]
    low, high = pooled.posterior.quantiles(np.array([0.05, 0.95]), shown)
    value, name = centre(pooled)
    beyond = (low > value) | (high < value)
    if units.n <= canvas.MAX_GROUPS:
        figure, axes = canvas.one_axes(ax, figsize, (6.6, max(2.6, 1.7 + 0.2 * len(shown))))
        _rows_of_intervals(axes, units, shown, (low, mean[shown], high), beyond)
        axes.axvline(value, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), label=name, zorder=1)
        axes.set_xlabel(measure(units))
        canvas.tidy(axes)
        notes = []
    else:
        figure, axes = canvas.one_axes(ax, figsize, (7.2, 4.4))
        _ribbon(axes, ranks + 1, (low, mean[shown], high), beyond)
        axes.axhline(value, color=canvas.POPULATION, linewidth=1, linestyle=(0, (5, 3)), label=name, zorder=4)
        axes.set_ylabel(measure(units))
        axes.set_xlabel("rank of the pooled mean")
        canvas.tidy(axes, grid="y")
        notes = [f"{int(beyond.sum()):,} of the {len(shown):,} intervals shown exclude the line."]
        if len(shown) < units.n:
            notes.insert(0, f"{len(shown):,} of {units.n:,} units, evenly spaced by rank.")
    canvas.legend_above(axes, 2)
    if ax is None:
        canvas.heading(figure, "Pooled estimates: mean and 90% interval")
        canvas.footnote(figure, notes)
    if units.n > canvas.MAX_GROUPS:
        _name_extremes(axes, units, order, mean)
    return figure


def _rows_of_intervals(
    axes: Axes, units: Any, shown: Ints, triple: tuple[Array, Array, Array], beyond: NDArray[np.bool_]
) -> None:
    low, mean, high = triple
    places = np.arange(len(shown))
    kinds = (
        (~beyond, canvas.MUTED, "interval includes the line"),
        (beyond, canvas.POOLED, "interval excludes the line"),
    )
    for chosen, colour, label in kinds:
        if chosen.any():
            axes.hlines(places[chosen], low[chosen], high[chosen], color=colour, linewidth=1.6)
            axes.scatter(mean[chosen], places[chosen], s=22, color=colour, zorder=3, label=label)
    _unit_rows(axes, units, shown)


def _ribbon(axes: Axes, ranks: Ints, triple: tuple[Array, Array, Array], beyond: NDArray[np.bool_]) -> None:
    """An upright hair a unit, and the means as a line over them."""
    low, mean, high = triple
    width = max(0.5, min(2.5, 300 / len(ranks)))
    kinds = ((~beyond, "#C4C4C4", "interval includes the line"), (beyond, LIGHT, "interval excludes the line"))
    for chosen, colour, label in kinds:
        if chosen.any():
            axes.vlines(ranks[chosen], low[chosen], high[chosen], color=colour, linewidth=width, zorder=2)
            axes.plot([], [], color=colour, linewidth=4, label=label)
    axes.plot(ranks, mean, color=canvas.POOLED, linewidth=1.4, label="mean", zorder=3)
    span = ranks[-1] - ranks[0]
    axes.set_xlim(ranks[0] - 0.28 * span, ranks[-1] + 0.28 * span)  # the names of the extremes stand in the margins
    axes.set_xticks([tick for tick in MaxNLocator(5).tick_values(1, ranks[-1]) if 1 <= tick <= ranks[-1]])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _name_extremes(axes: Axes, units: Any, order: Ints, mean: Array) -> None:
    """The lowest units' names to the left of the ribbon and the highest ones' to its right, each with a line to it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    frame = axes.get_window_extent()
    line = (high - low) * 1.35 * canvas.SMALL * figure.dpi / 72 / frame.height
    left, right = axes.get_xlim()
    margin = 1 - left
    points = frame.width / figure.dpi * 72 * 0.8 * margin / (right - left)
    longest = max(6, int(points / (0.62 * canvas.SMALL)))
    for side, chosen in (("right", order[:EXTREMES]), ("left", order[::-1][:EXTREMES])):
        steps = line * (np.arange(len(chosen)) - (len(chosen) - 1) / 2)
        heights = float(mean[chosen].mean()) + (steps if side == "right" else -steps)
        heights += max(0.0, low + line - heights.min()) - max(0.0, heights.max() - (high - line))
        rank, sign = (1, -1) if side == "right" else (units.n, 1)
        for name, unit, height in zip(names_of(units, chosen, longest), chosen, heights, strict=True):
            axes.annotate(
                name, (rank, float(mean[unit])), xytext=(rank + sign * 0.2 * margin, float(height)),
                ha=side, va="center", fontsize=canvas.SMALL, color="#333333",
                arrowprops={"arrowstyle": "-", "color": "#9A9A9A", "linewidth": 0.6, "shrinkA": 1},
            )  # fmt: skip
