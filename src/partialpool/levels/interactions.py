r"""Emergence, measured: whether a whole is the sum of its parts.

A whole :math:`M(x_1, \dots, x_N)` is the sum of its parts when :math:`M = \sum_i m_i(x_i)`, and that is so exactly when
every mixed partial derivative is zero,

.. math::
    \frac{\partial^2 M}{\partial x_i \, \partial x_j} = 0 \quad (i \ne j) .

Where one is not, what x_i does depends on x_j: the whole is more, or less, than the sum. The derivatives are numerical
(see `mixed_derivatives`), and so a verdict needs a tolerance. It is set on a number without units: the part of the
change of M over a small square in x_i and x_j that is their interaction,

.. math::
    \mathrm{share}_{ij} = \frac{|M(x + h_i + h_j) - M(x + h_i) - M(x + h_j) + M(x)|}{\Delta_{ij}} ,

with :math:`h` the steps (about a tenth of each coordinate's scale, to either side, and the largest of the four
quarters) and :math:`\Delta_{ij}` the largest change of M over the square; and on its limit, the derivative times
:math:`h_i h_j / \Delta_{ij}`. A pair is additive where both, with the error of the derivative, are within the
tolerance. It interacts where the derivative is above it and more than twice its error, or where it is zero at the point
but the share is not (an edge, as of ``abs(x - z)``, close by). Of all other pairs one cannot tell.

A zero at one point says nothing about other points, and derivatives of opposite signs cancel in a mean: over data, the
verdict is that of the single points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import DataError, ModelError
from partialpool.inference.progress import Progress
from partialpool.levels.mixed_derivatives import EPS, Counted, Derivatives, second_derivatives
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

ADDITIVE, INTERACTS, UNKNOWN = "additive", "interacts", "cannot tell"
#: The scale of a coordinate that is 0, or nearly.
SMALLEST_SCALE = 1e-12
MOST_NAMED = 6


@dataclass(frozen=True, eq=False, repr=False)
class Interactions(Report):
    """Mixed second derivatives of a function; made by :func:`interactions`. ``np.asarray`` gives `matrix`.

    Attributes
    ----------
    names : the coordinates, N of them.
    points : (P, N), where the derivatives were taken.
    matrix : (N, N), the mean over the points of d2M/dx_i dx_j; on the diagonal d2M/dx_i^2, which is no interaction and
        takes no part in the verdict.
    error : (N, N), estimated numerical error of `matrix`.
    mean_absolute, largest : (N, N), mean and maximum of the absolute derivative over the points.
    share : (N, N), the part of the change of M over a small square that is the interaction, the largest over the
        points.
    points_interacting : (N, N), the share of points at which a pair interacts.
    verdicts : (N, N) of "additive", "interacts", "cannot tell", and "" on the diagonal.
    tolerance : largest share that counts as none. calls : how often the function was called.
    unmoved : coordinates along which the function did not change.
    repeatable : whether it gave the same value twice at the same point.
    """

    names: tuple[str, ...]
    points: Array
    matrix: Array
    error: Array
    mean_absolute: Array
    largest: Array
    share: Array
    points_interacting: Array
    verdicts: NDArray[np.object_]
    tolerance: float
    calls: int
    unmoved: tuple[str, ...] = ()
    repeatable: bool = field(default=True)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and (dtype is None or np.dtype(dtype) == self.matrix.dtype):
            return self.matrix
        return np.array(self.matrix, dtype=dtype, copy=True)

    @property
    def verdict(self) -> str:
        """Of all pairs: "interacts" if one does, else "cannot tell" if one is unknown, else "additive"."""
        own = set(self.verdicts[np.triu_indices(len(self.names), 1)])
        return next(verdict for verdict in (INTERACTS, UNKNOWN, ADDITIVE) if verdict in own)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs that interact, the strongest first."""
        return self._with(INTERACTS)

    def _with(self, verdict: str) -> list[tuple[str, str]]:
        table = self.table[self.table["verdict"] == verdict]
        return list(zip(table["first"], table["second"], strict=True))

    def _edge(self, first: str, second: str) -> bool:
        at = self.names.index(first), self.names.index(second)
        return bool(self.largest[at] <= self.error[at])

    @property
    def title(self) -> str:
        """What this is, in one line."""
        where = "at one point" if len(self.points) == 1 else f"over {len(self.points):,} points"
        return f"Interactions of {len(self.names)} coordinates {where}: {self.verdict}"

    @property
    def table(self) -> pandas.DataFrame:
        """A row for each pair, by `share`: first, second, derivative, error, share, verdict.

        Over several points `derivative` is the mean, beside mean_absolute, largest and points_interacting.
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        i, j = np.triu_indices(len(self.names), 1)
        order = np.lexsort((-self.largest[i, j], -np.nan_to_num(self.share[i, j], nan=np.inf)))
        i, j = i[order], j[order]
        names = np.array(self.names, dtype=object)
        columns: dict[str, Any] = {"first": names[i], "second": names[j], "derivative": self.matrix[i, j]}
        if len(self.points) > 1:
            columns |= {"mean_absolute": self.mean_absolute[i, j], "largest": self.largest[i, j]}
        columns |= {"error": self.error[i, j], "share": self.share[i, j]}
        if len(self.points) > 1:
            columns["points_interacting"] = self.points_interacting[i, j]
        return pd.DataFrame(columns | {"verdict": self.verdicts[i, j]})

    @property
    def shown(self) -> pandas.DataFrame:
        """The table with sizes as they are read, the pairs that are not additive first."""
        table = self._table.set_index(["first", "second"])
        for name in {"derivative", "mean_absolute", "largest"} & set(table):
            known = np.abs(table[name]) > table["error"]
            table[name] = [f"{value:.6g}" if seen else "0" for value, seen in zip(table[name], known, strict=True)]
        for name in ("error", "share"):
            table[name] = [f"{value:.1e}" if value > EPS else "0" for value in table[name]]
        return table

    @property
    def sentences(self) -> list[str]:
        """What the numbers say, a sentence a line."""
        count = len(self.names) * (len(self.names) - 1) // 2
        found, unknown = self.pairs, self._with(UNKNOWN)
        one = len(self.points) == 1
        where = "at this point" if one else "at these points"
        lines = []
        if found:
            which = (
                f"{listed(found)} interact"
                if count == 1
                else f"{len(found)} of {count} pairs interact: {listed(found)}"
            )
            lines.append(
                f"{which}. What the one does depends on the other, so that the whole is not the sum of its parts."
            )
            hidden = [pair for pair in found if self._edge(*pair)]
            if hidden:
                lines.append(
                    f"The derivative of {listed(hidden)} is 0 {where}, and the difference over a finite step is not: "
                    "the interaction is close by, as an edge or a jump."
                )
        elif not unknown:
            lines.append(f"The whole is the sum of its parts {where}: no pair interacts.")
        if unknown:
            lines.append(
                f"Of {listed(unknown)} one cannot tell: the differences do not settle as the step shrinks, as at an "
                "edge or a jump (abs, max, rounding) or in a function with noise; or the function has no values around."
            )
        return [*lines, *self._cautions(one), _legend(one, self.tolerance)]

    def _cautions(self, one: bool) -> list[str]:
        lines = []
        if one and self.verdict == ADDITIVE:
            lines.append("Elsewhere it may interact: give data, (points, coordinates), as at=.")
        if self.unmoved:
            lines.append(
                f"Nothing changes along {', '.join(self.unmoved[:MOST_NAMED])}, as in a function that does not use it, "
                "or that rounds it to whole numbers."
            )
        if not self.repeatable:
            lines.append(
                "The function gave two different values at one point: fix its random seed, or nothing here can be "
                "trusted."
            )
        return lines

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The matrix as a map: values, colours by share of the change, and pairs of which one cannot tell marked."""
        from partialpool.present.interactions import Panel, interaction_map

        edges = self.largest <= self.error
        size = self.share * np.where(edges, 1.0, np.sign(self.matrix))
        notes = (
            [*_NOTES, "Coloured with 0: an edge or a jump close by."]
            if (edges & (self.verdicts == INTERACTS)).any()
            else _NOTES
        )
        panel = Panel(self.matrix, size, self.verdicts == UNKNOWN, None, "")
        heading = f"Mixed derivatives of {len(self.names)} coordinates: {self.verdict}"
        return interaction_map([panel], self.names, heading, notes, ax, figsize, _SCALE)


_SCALE = "share of the change, with its sign"
_NOTES = ["Numbers: d2M/dx dz. Grey: second derivatives, no interactions; ?: one cannot tell."]


def _legend(one: bool, tolerance: float) -> str:
    what = "derivative: d2M/dx dz" + ("" if one else ", the mean over points (signs can cancel)")
    share = "share: the part of the change of M over a small square that is the interaction"
    return f"{what}; {share}{'' if one else ', the largest over points'}, none up to {tolerance:g}."


def listed(pairs: Sequence[tuple[str, str]]) -> str:
    """Pairs in words, the first few of many."""
    shown = ", ".join(f"{a} and {b}" for a, b in pairs[:MOST_NAMED])
    return shown + (f", and {len(pairs) - MOST_NAMED} more pairs" if len(pairs) > MOST_NAMED else "")


def check_tolerance(tolerance: Any) -> None:
    """Refuse what is no number above 0."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < np.inf:
        raise ModelError(f"tolerance = {tolerance!r} is not possible; it is a number above 0, such as 1e-6.")


def interactions(
    f: Any,
    at: Any,
    names: Sequence[str] | None = None,
    *,
    tolerance: float = 1e-6,
    progress: bool | None = None,
) -> Interactions:
    """Whether a function is the sum of what each of its coordinates does: its mixed second derivatives.

    Parameters
    ----------
    f : callable
        Takes one array (N,) and returns one number. It is called with copies, so it may change its argument.
    at : array-like, dict or data frame
        One point (N,), or data (P, N) over which derivatives are averaged. A dict or a data frame names its
        coordinates.
    names : sequence of str, optional
        The coordinates' names; of a dict or a data frame, which of its columns, in the order f takes them.
    tolerance : float
        The largest share of the change of f over a small square (with sides of about a tenth of a coordinate's scale:
        its size at one point, its standard deviation over data) that may be interaction in an additive function.
    progress : bool, optional
        Whether a bar is shown after two seconds; by default on a terminal.

    Returns
    -------
    Interactions
        ``np.asarray(result)`` is the matrix (N, N) of d2f/dx_i dx_j (their mean over data), in units of f over those of
        x_i and x_j; the diagonal holds second derivatives, which are no interactions. With `.table` (pairs, ranked),
        `.verdict`, `.pairs` (those that interact), `.error`, `.mean_absolute`, `.largest` and `.plot()`.

    Raises
    ------
    DataError
        If f is not finite at a point or nowhere around it, or the point is not made of finite numbers.
    ModelError
        If f raises at a point, or does not return one number.

    Notes
    -----
    For N coordinates f is called about 6 N^2 times a point where it is smooth, more where it is not.

    Examples
    --------
    >>> import partialpool as pp
    >>> found = pp.interactions(lambda x: x[0] * x[1] + x[2] ** 2, at=[1.0, 2.0, 3.0], names=["a", "b", "c"])
    >>> found.verdict, found.pairs
    ('interacts', [('a', 'b')])
    >>> np.asarray(found).round(6).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
    """
    if not callable(f):
        kind = type(f).__name__
        mend = "; of a fit ask fit.interactions()" if hasattr(f, "interactions") else ""
        raise ModelError(f"pp.interactions() takes a function of one array, and a {kind} was given{mend}.")
    check_tolerance(tolerance)
    points, labels = _read_points(at, names)
    function = Counted(f, labels)
    repeatable = function.at_point(points[0]) == function.at_point(points[0])
    spread = points.std(axis=0)
    found = []
    with Progress(progress) as bar:
        for number, x in enumerate(points):
            own = np.where(np.abs(x) > SMALLEST_SCALE, np.abs(x), 1.0)
            scale = np.where(spread > 0, spread, own)
            found.append(
                second_derivatives(
                    function, x, scale, enlarge=len(points) == 1, progress=_shown(bar, number, len(points))
                )
            )
    return _judged(function, points, found, tolerance, repeatable)


def _shown(bar: Progress, number: int, count: int) -> Callable[[float], None]:
    """What tells the bar how much of one point of several is done."""
    return lambda share: bar.update((number + share) / count, "differences")


def _judged(
    function: Counted, points: Array, found: Sequence[Derivatives], tolerance: float, repeatable: bool
) -> Interactions:
    """The answer over all points."""
    names = tuple(function.names)
    values, errors = np.stack([own.value for own in found]), np.stack([own.error for own in found])
    step = np.median([own.step for own in found], axis=0)
    change = np.max([own.change for own in found], axis=0)
    known = np.isfinite(values)
    with np.errstate(all="ignore"):
        unit = np.outer(step, step) / change
        shares = np.where(change > 0, np.stack([own.finite for own in found]) / change, 0.0)
    unit = np.where(change > 0, unit, 0.0)
    size = np.abs(values)
    flat = known & ((size + errors) * unit <= tolerance)
    strong = known & (size * unit > tolerance) & (size > 2 * errors) | flat & (shares > tolerance)
    additive = flat & (shares <= tolerance)
    verdicts = np.where(strong.any(axis=0), INTERACTS, np.where(additive.all(axis=0), ADDITIVE, UNKNOWN)).astype(object)
    np.fill_diagonal(verdicts, "")
    alone = np.diagonal(change)
    return Interactions(
        names=names,
        points=points,
        matrix=_over(np.mean, values),
        error=_over(np.mean, np.where(known, errors, np.nan)),
        mean_absolute=_over(np.mean, size),
        largest=_over(np.max, size),
        share=shares.max(axis=0),
        points_interacting=strong.mean(axis=0),
        verdicts=verdicts,
        tolerance=float(tolerance),
        calls=function.calls,
        unmoved=tuple(name for name, moved in zip(names, alone, strict=True) if moved == 0),
        repeatable=repeatable,
    )


def _over(statistic: Callable[..., Any], values: Array) -> Array:
    """A statistic over the points (P, N, N) at which a pair is known; nan where it is at none."""
    masked = np.ma.masked_invalid(values)
    return np.asarray(np.ma.filled(getattr(masked, statistic.__name__)(axis=0), np.nan), dtype=float)


# -- points -----------------------------------------------------------------------------------------------------------


def _read_points(at: Any, names: Sequence[str] | None) -> tuple[Array, tuple[str, ...]]:
    """Points (P, N) and names of the coordinates."""
    if isinstance(names, str):
        raise ModelError(f"names={names!r} is one text; give a list of names, one for each coordinate.")
    if names is not None and not isinstance(names, Iterable):
        raise ModelError(f"names={names!r} is not a list of names, one for each coordinate.")
    names = None if names is None else list(names)
    asked = None if names is None else tuple(str(name) for name in names)
    if getattr(at, "ndim", None) == 1 and hasattr(at, "index") and all(isinstance(name, str) for name in at.index):
        at = dict(at)  # a labelled point, as a row of a data frame
    if isinstance(at, Mapping) or hasattr(at, "columns"):
        points, labels = _from_columns(at, names)
    else:
        points = _numbers(at)
        labels = tuple(f"x{i + 1}" for i in range(points.shape[1])) if asked is None else asked
    if len(labels) != points.shape[1]:
        raise ModelError(f"There are {len(labels)} names for {points.shape[1]} coordinates; give one for each.")
    if len(set(labels)) < len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        raise ModelError(f"Two coordinates are called {twice!r}; give each its own name.")
    if len(labels) < 2:
        raise ModelError("An interaction takes two coordinates, and the point has one.")
    if len(points) == 0:
        raise DataError("There are no points: at= has no rows.")
    bad = np.argwhere(~np.isfinite(points))
    if len(bad):
        row, column = bad[0]
        where = "" if len(points) == 1 else f" in row {row} (counting from 0)"
        raise DataError(
            f"The coordinate {labels[column]!r} is {points[row, column]}{where}; a point has finite numbers."
        )
    return points, labels


def _numbers(at: Any) -> Array:
    try:
        points = np.array(at, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"at= must be an array of numbers, and {at!r:.60} is not.") from None
    if points.ndim not in (1, 2):
        raise DataError(f"at= has {points.ndim} dimensions; give one point (N,) or data (points, N).")
    return np.atleast_2d(points)


def _from_columns(at: Any, names: Sequence[str] | None) -> tuple[Array, tuple[str, ...]]:
    from partialpool.design.frame import numeric_values, read_frame

    labels = tuple(at.keys() if isinstance(at, Mapping) else at.columns) if names is None else tuple(names)
    if isinstance(at, Mapping):
        at = {name: np.atleast_1d(np.asarray(value)) for name, value in at.items()}
    frame = read_frame(at, labels)
    columns = [numeric_values(frame[name], str(name), "The coordinate").astype(float) for name in labels]
    return np.column_stack(columns), tuple(str(name) for name in labels)
