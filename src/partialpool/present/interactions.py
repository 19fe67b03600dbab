"""A map of interactions: a cell for each pair, its value, and marks on pairs of two levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from partialpool.present import canvas

Array = NDArray[np.float64]

#: Coordinates up to which values are written into the cells.
MOST_WRITTEN = 12
#: Sizes above this have the same colour: a whole standard deviation, or the whole of a change.
MOST_COLOURED = 1.0
_COLOURS = LinearSegmentedColormap.from_list("interactions", [canvas.POOLED, "#FFFFFF", canvas.RAW])


class Panel(NamedTuple):
    """One matrix.

    values : (N, N), written into the cells; nan leaves a cell empty. size : (N, N), signed, the colours.
    unknown : (N, N), where one cannot tell. crossing : (N, N), pairs of two levels, or None. title : above it.
    """

    values: Array
    size: Array
    unknown: NDArray[np.bool_]
    crossing: NDArray[np.bool_] | None
    title: str


def interaction_map(
    panels: Sequence[Panel],
    names: Sequence[str],
    heading: str,
    notes: Sequence[str],
    ax: Axes | None,
    figsize: tuple[float, float] | None,
    scale: str,
) -> Figure:
    """Matrices of pairs side by side, the lower triangle of each; `scale` is what the colours show."""
    canvas.need_one_axes(ax, len(panels), "The map of interactions")
    side = max(1.5, 0.62 * len(names) if len(names) <= MOST_WRITTEN else 0.26 * len(names))
    longest = 0.08 * max(len(canvas.clip(name)) for name in names)
    size = (max((side + longest + 1.0) * len(panels), 5.6), side + longest + 1.4)
    if ax is None:
        figure = canvas.new_figure(figsize or size)
        every = list(figure.subplots(1, len(panels), squeeze=False)[0])
    else:
        figure, only = canvas.one_axes(ax, figsize, size)
        every = [only]
    most = min(max(_largest(panel) for panel in panels), MOST_COLOURED) or 1.0
    for axes, panel in zip(every, panels, strict=True):
        _matrix(axes, panel, names, most)
    clipped = max(_largest(panel) for panel in panels) > most
    map_of_colours = ScalarMappable(_norm(most), _COLOURS)
    bar = figure.colorbar(
        map_of_colours, ax=every, shrink=0.7, pad=0.02, extend="both" if clipped else "neither", ticks=_ticks(most)
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=canvas.SMALL)
    bar.set_label(scale, fontsize=canvas.SMALL)
    if ax is None:
        canvas.heading(figure, heading)
        canvas.footnote(figure, notes)
    return figure


def _norm(most: float) -> FuncNorm:
    """Colours go with the square root, so that weak interactions are seen beside strong ones."""
    return FuncNorm((_root, _square), -most, most, clip=True)


def _root(values: Array) -> Array:
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))


def _square(values: Array) -> Array:
    return np.asarray(np.sign(values) * np.square(values))


def _ticks(most: float) -> list[float]:
    """Numbers of one digit, at or a little below the tenth, the half and the whole of the largest, either side of 0.

    Examples
    --------
    >>> _ticks(0.29)
    [-0.2, -0.1, -0.02, 0.0, 0.02, 0.1, 0.2]
    """
    unit = 10.0 ** np.floor(np.log10(most) + 1e-9)
    parts = [most / 10, most / 2, most]
    units = [unit / 10, unit if most / 2 >= unit else unit / 10, unit]
    ticks = [float(f"{np.floor(part / own + 1e-9) * own:.1g}") for part, own in zip(parts, units, strict=True)]
    if ticks[1] > 0.6 * ticks[2]:  # its label would run into the next
        del ticks[1]
    return [*(-tick for tick in reversed(ticks)), 0.0, *ticks]


def _coloured(panel: Panel) -> Array:
    """What the colours show, below the diagonal; nan where there is none."""
    below = np.tril(np.ones(panel.values.shape, dtype=bool), -1)
    return np.where(below & np.isfinite(panel.values) & ~panel.unknown, panel.size, np.nan)


def _largest(panel: Panel) -> float:
    found = np.abs(_coloured(panel))
    return float(found[np.isfinite(found)].max(initial=0.0))


def _matrix(ax: Axes, panel: Panel, names: Sequence[str], most: float) -> None:
    count = len(names)
    diagonal = bool(np.isfinite(np.diagonal(panel.values)).any())
    below = np.tril(np.ones((count, count), dtype=bool), -1)
    colours = _coloured(panel)
    norm = _norm(most)
    for i in range(count):
        for j in range(i + 1):
            own = np.isfinite(panel.values[i, j])
            face = "#EDEDED" if i == j or not np.isfinite(colours[i, j]) else _COLOURS(norm(colours[i, j]))
            if own or i != j:
                ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face, edgecolor="#E0E0E0", linewidth=0.8))
            _write(ax, panel, i, j, own, abs(colours[i, j]) > 0.6 * most, count)
    if panel.crossing is not None:
        for i, j in np.argwhere(panel.crossing & below):
            ax.add_patch(
                Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=canvas.POPULATION, linewidth=1.3)
            )
    _frame(ax, names, panel.title, diagonal)


def _write(ax: Axes, panel: Panel, i: int, j: int, known: bool, dark: bool, count: int) -> None:
    """The value of a cell, or a question mark."""
    if count > MOST_WRITTEN and not panel.unknown[i, j]:
        return
    text = "?" if panel.unknown[i, j] else short(panel.values[i, j]) if known else ""
    ink = "white" if dark and i != j and not panel.unknown[i, j] else "#777777" if i == j else "#222222"
    ax.text(j, i, text, ha="center", va="center", fontsize=canvas.SMALL - (1 if len(text) > 6 else 0), color=ink)


def _frame(ax: Axes, names: Sequence[str], title: str, diagonal: bool) -> None:
    """Names along the sides; without a diagonal the first row and the last column are empty and left out."""
    count, empty = len(names), 0 if diagonal else 1
    places = np.arange(count)
    labels = [canvas.clip(str(name)) for name in names]
    ax.set_xlim(-0.55, count - 0.45 - empty)
    ax.set_ylim(count - 0.45, empty - 0.55)
    ax.set_aspect("equal")
    ax.set_xticks(
        places[: count - empty],
        labels[: count - empty],
        rotation=45 if count > 2 else 0,
        ha="right" if count > 2 else "center",
        rotation_mode="anchor",
        fontsize=canvas.SMALL,
    )
    ax.set_yticks(places[empty:], labels[empty:], fontsize=canvas.SMALL)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    if title:
        ax.set_title(title, fontsize=canvas.SMALL + 1, loc="left")


def short(value: float) -> str:
    """A number with three significant digits, in as few characters as they take.

    Examples
    --------
    >>> [short(value) for value in (0.0, 1.0, -0.01234, 1.5e-9, 123456.0)]
    ['0', '1', '-0.0123', '1.5e-9', '1.23e5']
    """
    if abs(value) < 1e-12:
        return "0"
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    digits, power = text.split("e")
    return f"{digits}e{int(power)}"
