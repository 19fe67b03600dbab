"""What all plots share: figures that belong to nobody else, colours, densities, labels that do not collide.

matplotlib is imported at the head: this module is itself imported only when something is drawn. Nothing global is
touched: no pyplot, no rcParams, no style. A user's own rcParams are honoured.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.errors import ModelError

Array = NDArray[np.float64]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
POOLED, RAW, POPULATION, MUTED = "#0072B2", "#D55E00", "#111111", "#8A8A8A"
SMALL = 8  # points
MAX_GROUPS = 60
MAX_PANELS = 24


class Chart(Figure):
    """A matplotlib Figure that shows itself in a notebook, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def new_figure(figsize: tuple[float, float]) -> Figure:
    """An empty figure of this size in inches, laid out so that nothing overlaps."""
    figure = Chart(figsize=figsize, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def one_axes(ax: Axes | None, figsize: tuple[float, float] | None, default: tuple[float, float]) -> tuple[Figure, Axes]:
    """The user's axes and its figure, or new ones."""
    if ax is not None:
        if figsize is not None:
            raise ModelError("Give ax= or figsize=, not both: the axes belong to a figure that has its size.")
        figure = ax.get_figure(root=True)
        if figure is None:
            raise ModelError("The axes given as ax= belong to no figure.")
        return figure, ax
    figure = new_figure(figsize or default)
    return figure, figure.add_subplot()


def need_one_axes(ax: Axes | None, panels: int, what: str) -> None:
    """Refuse the user's axes where several are needed."""
    if ax is not None and panels > 1:
        raise ModelError(f"{what} has {panels} panels and cannot be drawn into one axes; leave out ax=.")


def tidy(ax: Axes, *, grid: str = "x") -> None:
    """Fewer lines: no box, a light grid along one axis."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis="both" if grid == "both" else "x" if grid == "x" else "y", color="#E4E4E4", linewidth=0.7)


def heading(figure: Figure, text: str) -> None:
    """A title over the whole figure, flush left."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11)


def footnote(figure: Figure, notes: Sequence[str]) -> None:
    """Small print under the whole figure."""
    if notes:
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=SMALL, color="#555555")


def legend_above(ax: Axes, columns: int = 3, extra: Sequence[Any] = ()) -> None:
    """A legend over the axes, where it hides nothing."""
    ax.legend(
        handles=[*ax.get_legend_handles_labels()[0], *extra],
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, frameon=False, fontsize=SMALL,
        borderaxespad=0.2, handletextpad=0.5, columnspacing=1.4,
    )  # fmt: skip


def clip(text: str, longest: int = 26) -> str:
    """A label short enough for an axis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def density(draws: Array, support: tuple[float, float], points: int = 400) -> tuple[Array, Array]:
    """A kernel estimate of a density, (points,) places and heights, reflected at finite ends of the support.

    Examples
    --------
    >>> places, heights = density(np.random.default_rng(1).normal(size=4000), (-np.inf, np.inf))
    >>> bool(abs(heights.max() - 0.399) < 0.03)
    True
    """
    draws = np.asarray(draws, dtype=float)
    spread = float(np.std(draws))
    quartiles = np.quantile(draws, [0.25, 0.75])
    robust = float(quartiles[1] - quartiles[0]) / 1.349
    scale = min(spread, robust) if robust > 0 else spread
    width = 1.06 * (scale or abs(float(draws.mean())) * 1e-3 or 1e-3) * draws.size**-0.2
    low = max(support[0], float(np.quantile(draws, 0.001)) - 3 * width)
    high = min(support[1], float(np.quantile(draws, 0.999)) + 3 * width)
    places = np.linspace(low, high, points)
    step = places[1] - places[0]
    reflected = [draws]
    reflected += [2 * end - draws for end in support if math.isfinite(end)]
    reach = math.ceil(4 * width / step)
    edges = low + step * (np.arange(points + 2 * reach + 1) - reach - 0.5)
    counts = np.histogram(np.concatenate(reflected), bins=edges)[0]
    offsets = step * np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    kernel /= kernel.sum()
    return places, np.convolve(counts, kernel, mode="valid") / (draws.size * step)


def label_points(
    ax: Axes, points: Array, texts: Sequence[str], avoid: Array, *, size: float = SMALL, color: str = "#333333"
) -> int:
    """Write a label beside each point where there is room; returns how many found none.

    Parameters
    ----------
    points : ndarray of shape (n, 2)
        In data coordinates.
    texts : sequence of str
    avoid : ndarray of shape (m, 2)
        Other places that labels should not cover, in data coordinates.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, which the places of the labels depend on
    pixel = figure.dpi / 72.0
    at = ax.transData.transform(points) / pixel
    obstacles = ax.transData.transform(np.vstack([points, avoid])) / pixel
    frame = ax.get_window_extent()
    inside = np.array([frame.x0, frame.y0, frame.x1, frame.y1]) / pixel
    taken: list[Array] = []
    omitted = 0
    for point, (x, y), text in zip(points, at, texts, strict=True):
        box, offset = _best_box(x, y, 0.62 * size * len(text), 1.1 * size, obstacles, taken, inside)
        if box is None:
            omitted += 1
            continue
        taken.append(box)
        place = (float(point[0]), float(point[1]))
        ax.annotate(
            text, place, xytext=offset,
            textcoords="offset points", ha="center", va="center", fontsize=size, color=color,
        )  # fmt: skip
    return omitted


def _best_box(
    x: float, y: float, width: float, height: float, obstacles: Array, taken: Sequence[Array], inside: Array
) -> tuple[Array | None, tuple[float, float]]:
    """The place around a point whose box covers least; None where every place runs into another label or the edge."""
    best: tuple[float, Array | None, tuple[float, float]] = (math.inf, None, (0.0, 0.0))
    for gap in (5.0, 9.0):
        for turn in range(8):
            angle = turn * math.pi / 4
            dx = math.cos(angle) * (gap + width / 2)
            dy = math.sin(angle) * (gap + height / 2)
            box = np.array([x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2])
            if (box[:2] < inside[:2]).any() or (box[2:] > inside[2:]).any():
                continue
            if any(_overlap(box, other) for other in taken):
                continue
            covered = ((obstacles > box[:2] - 2) & (obstacles < box[2:] + 2)).all(axis=1).sum()
            cost = float(covered) + 0.05 * gap
            if cost < best[0]:
                best = (cost, box, (dx, dy))
    return best[1], best[2]


def _overlap(a: Array, b: Array) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def spread_rows(count: int, most: int = MAX_GROUPS) -> NDArray[np.int64]:
    """Positions of at most `most` of `count` sorted groups, evenly spaced."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def extreme_rows(count: int, most: int = MAX_GROUPS) -> NDArray[np.int64]:
    """Positions of the lowest and the highest of `count` sorted groups, `most` in all."""
    if count <= most:
        return np.arange(count)
    half = most // 2
    return np.concatenate([np.arange(half), np.arange(count - half, count)])


def population_values(fit: Any) -> dict[str, float]:
    """Posterior means of the parameters by name."""
    frame = fit.summary()
    return {str(name): float(value) for name, value in frame["mean"].items()}


def response_of(fit: Any) -> str:
    """The response as the user wrote it."""
    return str(fit.model.design.terms.response.expression)


def scale_of(fit: Any, term: str = "") -> str:
    """What the linear predictor of a term measures: the response itself, its link, or the log of a parameter."""
    design = fit.model.design
    for prefix in design.prefixes[1:]:
        if term.startswith(prefix):
            return f"log {prefix.rstrip('.')}"
    link = fit.model.family.link
    return response_of(fit) if link == "identity" else f"{link} of {response_of(fit)}"


def term_axis(fit: Any, term: str) -> str:
    """What the axis of a term's coefficient measures, in the linear predictor that it belongs to."""
    prefix = next((own for own in fit.model.design.prefixes[1:] if term.startswith(own)), "")
    return term_label(term.removeprefix(prefix), scale_of(fit, term))


def term_label(term: str, response: str) -> str:
    """What the axis of a term's coefficient measures."""
    return f"Intercept ({response})" if term == "Intercept" else f"Slope of {term} ({response} per unit)"
