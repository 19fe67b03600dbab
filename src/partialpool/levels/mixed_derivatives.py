r"""Second derivatives of a function of one array by central differences, with an estimate of their error.

For coordinates i and j, steps h_i and h_j, and f with signs for where it is evaluated (``f(+-)`` is
``f(x + h_i e_i - h_j e_j)``, ``f(+0)`` is ``f(x + h_i e_i)``), either diagonal of the square around the point gives the
mixed derivative:

.. math::
    D_1 = \frac{f(++) + f(--) - a}{2 h_i h_j}, \qquad D_2 = -\frac{f(+-) + f(-+) - a}{2 h_i h_j}, \qquad
    a = f(+0) + f(-0) + f(0+) + f(0-) - 2 f(00).

The error of both is a series in h^2, so that three steps h, h/2, h/4 are extrapolated to h = 0 (Richardson 1911;
Ridders, Advances in Engineering Software 4, 1982, 75-76): it is then of order h^6. The estimate is the mean of the two
diagonals; its error is the largest of what the last extrapolation changed, the difference of the diagonals (which where
f has an edge at the point do not agree, however small the step), and the rounding of f itself, ``32 eps max|f| / (h_i
h_j)``.

Differences that more than double from h to h/4 do not settle: the error is then the estimate itself.

A first step of a tenth of the coordinate's scale is best where f is smooth on that scale. Where the error says that it
is not, the steps are divided by 16, and so on, and the estimate is that of the steps whose error is the smallest part
of the change of f over the square. Where no step serves, it says so: the error stays large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import DataError, ModelError

Array = NDArray[np.float64]

#: How often the steps are divided by 16 where the error asks for it.
ROUNDS = 8
#: A first step is enlarged until it changes the function by these parts of its value, and of the largest change that a
#: coordinate makes: a coordinate of 1e-9 that means 0 would not be seen else.
VISIBLE, COMPARABLE = 1e-3, 0.1
#: An estimate is good when its error is this part of the change of the function over the square.
GOOD = 1e-9
EPS = float(np.finfo(float).eps)


@dataclass
class Counted:
    """A user's function of one array (N,), called with copies, its results checked and its calls counted."""

    function: Callable[[Array], Any]
    names: Sequence[str]
    calls: int = 0
    trouble: str = field(default="", repr=False)

    def at_point(self, x: Array) -> float:
        """The value at a point that the user gave.

        Raises
        ------
        DataError
            If it is not finite there.
        ModelError
            If the function raises, or returns no number.
        """
        self.calls += 1
        try:
            with np.errstate(all="ignore"):
                found = self.function(x.copy())
        except Exception as error:  # whatever a user's function raises
            raise ModelError(
                f"The function raised {_named(error)} at the point {self.where(x)}. It is called with one array of "
                f"{len(x)} floating-point numbers, as in f(np.array([...])), and returns one number; a function of "
                f"{len(x)} arguments is given as lambda x: f(*x), and one that needs whole numbers has no derivatives."
            ) from error
        value = _one_number(found)
        if not np.isfinite(value):
            raise DataError(
                f"The function is {value} at the point {self.where(x)}, so that it has no derivatives there; give a "
                "point at which it is finite."
            )
        return value

    def near(self, x: Array) -> float:
        """The value at a point nearby; nan where there is none."""
        self.calls += 1
        try:
            with np.errstate(all="ignore"):
                value = float(np.asarray(self.function(x.copy()), dtype=float).reshape(()))
        except Exception as error:  # outside the function's domain: a smaller step may serve
            self.trouble = f"it raises {_named(error)}"
            return np.nan
        if not np.isfinite(value):
            self.trouble = f"it is {value}"
            return np.nan
        return value

    def where(self, x: Array) -> str:
        """A point in words."""
        shown = [f"{name} = {value:.6g}" for name, value in zip(self.names, x, strict=True)]
        return "(" + ", ".join(shown[:6]) + (f", ... {len(shown) - 6} more" if len(shown) > 6 else "") + ")"


def _named(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return type(error).__name__ + (f" ({text[0].rstrip('.')})" if text else "")


def _one_number(found: Any) -> float:
    """What a function returned, as a number."""
    if found is None:
        raise ModelError("The function returned nothing (None); does it lack a return statement?")
    try:
        array = np.asarray(found)
        if array.size == 1 and array.dtype.kind in "biuf":
            return float(array.reshape(()))
        shape = array.shape
        if array.size == 1:  # what is a number in another guise, as a Fraction
            return float(found)
    except (TypeError, ValueError):
        raise ModelError(f"The function returned {found!r:.80}; it must return one real number.") from None
    raise ModelError(
        f"The function returned an array of shape {shape}; it must return one number. For one of its elements write "
        "lambda x: f(x)[0], for their sum lambda x: f(x).sum()."
    )


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Second derivatives at a point.

    value : (N, N) mixed derivatives, and second derivatives on the diagonal; nan where f could not be computed around.
    error : (N, N) estimates of their errors. change : (N, N) the largest change of f over the first square of a pair of
    coordinates. finite : (N, N) the largest ``|f(++) - f(+0) - f(0+) + f(00)|`` of the four quarters of that square, 0
    on the diagonal. step : (N,) the first steps.
    """

    value: Array
    error: Array
    change: Array
    finite: Array
    step: Array


def second_derivatives(
    function: Counted, x: Array, scale: Array, *, enlarge: bool, progress: Callable[[float], None] | None = None
) -> Derivatives:
    """All second derivatives at a point x (N,).

    Parameters
    ----------
    scale : (N,), the distance over which each coordinate is expected to matter; the first step is a tenth of it.
    enlarge : whether the first step may grow where it changes nothing.
    progress : called with the share that is done.

    Raises
    ------
    DataError
        If the function is not finite at the point, or nowhere around it.
    ModelError
        If it raises there, or returns no number.

    Examples
    --------
    >>> f = Counted(lambda x: x[0] * x[1] + x[1] ** 2, ("a", "b"))
    >>> found = second_derivatives(f, np.array([1.0, 2.0]), np.ones(2), enlarge=False)
    >>> found.value.round(9).tolist(), bool(found.error.max() < 1e-9)
    ([[0.0, 1.0], [1.0, 2.0]], True)
    """
    cross = _Cross(function, x, scale, enlarge)
    n = len(x)
    value, error, change, finite = found = np.zeros((4, n, n))
    pairs = [(i, j) for i in range(n) for j in range(i, n)]
    for done, (i, j) in enumerate(pairs):
        found[:, i, j] = found[:, j, i] = cross.estimate(i, j)
        if progress is not None:
            progress((done + 1) / len(pairs))
    return Derivatives(value, error, change, finite, cross.step)


class _Square(NamedTuple):
    """An estimate by three steps; `rounding` is what of its error is rounding. For the rest see `Derivatives`."""

    value: float
    error: float
    rounding: float
    change: float
    finite: float


class _Cross:
    """The function along the axes through a point, each value computed once, and squares around it."""

    def __init__(self, function: Counted, x: Array, scale: Array, enlarge: bool) -> None:
        self.function, self.x = function, x
        self.centre = function.at_point(x)
        self._axis: dict[tuple[int, float, int], float] = {}
        self.step = np.array([self._first_step(i, float(scale[i])) for i in range(len(x))])
        if enlarge:
            most = max(self._change(i, float(step)) for i, step in enumerate(self.step))
            visible = max(VISIBLE * abs(self.centre), COMPARABLE * most)
            self.step = np.array([self._enlarged(i, visible) for i in range(len(x))])

    def axis(self, i: int, step: float, sign: int) -> float:
        """f(x +- step e_i)."""
        key = (i, step, sign)
        if key not in self._axis:
            self._axis[key] = self._moved((i, sign * step))
        return self._axis[key]

    def _moved(self, *moves: tuple[int, float]) -> float:
        x = self.x.copy()
        for i, by in moves:
            x[i] += by
        return self.function.near(x)

    def _first_step(self, i: int, scale: float) -> float:
        """A power of 2 near a tenth of the scale, smaller where the function has no values."""
        smallest = 4 * float(np.spacing(abs(self.x[i])))
        step = max(float(2.0 ** np.floor(np.log2(0.1 * scale))), smallest)
        while not np.isfinite(self._change(i, step)):
            step /= 8
            if step < smallest:
                raise DataError(
                    f"The function has no values around the point {self.function.where(self.x)}: "
                    f"{self.function.trouble} as soon as {self.function.names[i]} moves, to one side or to both. "
                    "Derivatives need a point inside the region where it is defined."
                )
        return step

    def _enlarged(self, i: int, visible: float) -> float:
        """The first step of a coordinate, larger where it changes the function by less than `visible`."""
        step = float(self.step[i])
        largest = 0.1 * max(1.0, abs(float(self.x[i])))
        while step < largest and self._change(i, step) < visible and np.isfinite(self._change(i, 8 * step)):
            step *= 8
        return step

    def _change(self, i: int, step: float) -> float:
        """The largest change along an axis; nan where there are no values."""
        return float(np.max([abs(self.axis(i, step, sign) - self.centre) for sign in (1, -1)]))

    def estimate(self, i: int, j: int) -> tuple[float, float, float, float]:
        """Second derivative, its error, the change of f over the first square, and the differences of its quarters."""
        best = (np.inf, np.nan, np.inf)
        first: _Square | None = None
        for number in range(ROUNDS):
            steps = self.step * 16.0**-number
            if any(steps[k] < 64 * np.spacing(abs(self.x[k])) for k in (i, j)):
                break  # the steps can no longer be told from rounding of the point itself
            own = self._richardson(i, j, float(steps[i]), float(steps[j]))
            if own is None:
                continue
            first = first or own
            area = float(steps[i] * steps[j])
            part = own.error * area / own.change if own.change > 0 else 0.0
            if part < best[0]:
                best = (part, own.value, own.error)
            if best[0] <= GOOD or own.error <= 2 * own.rounding:
                break
        return best[1], best[2], first.change if first else 0.0, first.finite if first else 0.0

    def _richardson(self, i: int, j: int, hi: float, hj: float) -> _Square | None:
        """The estimate by three steps; None where the function has no values."""
        tables, seen, finite = [], [self.centre], 0.0
        for level in (0, 1, 2):
            steps = hi / 2**level, hj / 2**level
            estimates, values = self._along(i, steps[0]) if i == j else self._square(i, j, *steps)
            tables.append(estimates)
            seen += values
            if level == 0 and i != j:
                finite = self._quarters(values)
        every = np.array(seen)
        if not np.isfinite(every).all():
            return None
        first = np.array(tables)  # (3 levels, 1 or 2 diagonals)
        second = (4 * first[1:] - first[:-1]) / 3
        third = (16 * second[1] - second[0]) / 15
        rounding = 32 * EPS * float(np.abs(every).max()) / (hi * hj)
        error = max(float(np.abs(third - second[1]).max()), float(np.ptp(third)), rounding)
        if (np.abs(first[2]) > 2 * np.abs(first[0])).any():  # 4 times at an edge, 16 times at a jump
            error = max(error, float(np.abs(third).max()))
        change = float(np.abs(every - self.centre).max())
        return _Square(float(third.mean()), error if change > 0 else 0.0, rounding, change, finite)

    def _quarters(self, values: Sequence[float]) -> float:
        """The largest interaction of a quarter of the square; `values` as `_square` gives them."""
        moved = np.array(values) - self.centre
        along_i, along_j, corners = moved[:2], moved[2:4], moved[4:]
        pairs = ((0, 0), (1, 1), (0, 1), (1, 0))
        return float(max(abs(corners[k] - along_i[a] - along_j[b]) for k, (a, b) in enumerate(pairs)))

    def _along(self, i: int, h: float) -> tuple[list[float], list[float]]:
        ends = [self.axis(i, h, sign) for sign in (1, -1)]
        return [((ends[0] - self.centre) + (ends[1] - self.centre)) / h**2], ends

    def _square(self, i: int, j: int, hi: float, hj: float) -> tuple[list[float], list[float]]:
        """Both diagonals' estimates, and the values they are made of."""
        sides = [self.axis(k, h, sign) for k, h in ((i, hi), (j, hj)) for sign in (1, -1)]
        corners = [self._moved((i, a * hi), (j, b * hj)) for a, b in ((1, 1), (-1, -1), (1, -1), (-1, 1))]
        around = sum(side - self.centre for side in sides)
        at = [corner - self.centre for corner in corners]
        first = (at[0] + at[1] - around) / (2 * hi * hj)
        second = -(at[2] + at[3] - around) / (2 * hi * hj)
        return [first, second], sides + corners
