r"""How the linear predictor moves with the columns of the data.

The linear predictor is ``eta = X(x) beta``, with X's columns functions of the data's columns x (``log(x)``, ``poly(x,
2)``, ``x:z``, an offset whose coefficient is 1). So its derivatives are those of X times beta, whatever beta is: X is
encoded again at shifted rows, and its differences serve every draw. Those of numbers are central differences at steps h
and h/2, extrapolated; two changes differ from one where the columns of X depend on both, which is found first, so that
all other pairs are exactly 0. Columns of categories have differences from their first category, numbers with two values
the difference between these, per unit.

``within(x|g)`` and ``between(x|g)`` are predictors of their own: each is moved while the other stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.context import Contexts
from partialpool.design.design import Design
from partialpool.design.factors import encode_ids
from partialpool.design.frame import numeric_values, read_frame
from partialpool.design.response import read_offset
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.levels.columns import constant_within, level_name
from partialpool.posterior.components import row_shares
from partialpool.spec.context import context_columns, split_context
from partialpool.spec.formula import variables_of

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

#: Rows over which derivatives are averaged; of more, a sample is taken.
MOST_ROWS = 10_000
#: The step, in standard deviations of a predictor; the smallest, where numbers near 0 ask for less.
STEP, SMALLEST = 1e-2, 1e-4
#: What is tried in turn where the formula has no value at a shifted row: step's factor, and whether rows at the ends of
#: the predictor's range are moved inside it first (a spline has no value beyond).
ATTEMPTS = ((1.0, False), (0.1, False), (0.1, True), (1e-3, False))
#: The parts of a step at which differences are taken.
PARTS = (1.0, 0.5)
EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Variable:
    """One predictor, or one category of it.

    label : as users see it, ``x`` or ``sex[M]``. column : of the data. values : the two that a difference is between
    (the reference first), None for a derivative. unit : what a difference is divided by. spread : its standard
    deviation. level : the coarsest grouping factor in whose groups it is constant, "row", or "" where that is unknown.
    """

    label: str
    column: str
    values: tuple[Any, Any] | None
    unit: float
    spread: float
    level: str


@dataclass(frozen=True, eq=False)
class Curvature:
    """What one pair does to X: the mixed derivative or difference, and its error, both (n, p + 1)."""

    value: Array
    error: Array


@dataclass(eq=False)
class Predictors:
    """The rows at which derivatives are taken, and X as a function of their columns. Made by `read_predictors`.

    The last column of X is the offset. home : the rows of the fit (those of `frame` where it has none), whose spread is
    the unit of sizes. shares, home_shares : what each row of the two counts in averages.
    """

    design: Design
    frame: pd.DataFrame
    home: pd.DataFrame
    variables: tuple[Variable, ...]
    shares: Array
    home_shares: Array
    base: dict[str, Array] = field(default_factory=dict)
    steps: dict[str, Array] = field(default_factory=dict)
    _known: dict[Any, Array] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return len(self.frame)

    def at_home(self) -> tuple[Array, Array]:
        """X (h, p + 1) at rows of the fit, of many evenly spaced ones, and their shares (h,)."""
        rows = np.unique(np.linspace(0, len(self.home) - 1, MOST_ROWS).astype(np.int64))
        if not self.home_shares[rows].any():  # none of these counts
            rows = np.arange(len(self.home))
        return _encode(self.design, self.home.iloc[rows]), normalised(self.home_shares[rows])

    def matrix(self, **columns: Any) -> Array:
        """X (n, p + 1) with some columns of the data replaced: (n,) values, or one for all rows."""
        return _encode(self.design, self.frame.assign(**{**self.base, **columns}))

    def at(self, chosen: Mapping[str, Any]) -> Array:
        """X with some columns at a category or a value in every row."""
        key = ("at", *chosen.items())
        if key not in self._known:
            self._known[key] = self.matrix(**chosen)
        return self._known[key]

    def _beside(self, variable: Variable, chosen: Mapping[str, Any], part: float, sign: int) -> Array:
        """X a part of a step to one side, other columns at chosen values."""
        key = ("beside", variable.column, part, sign, *chosen.items())
        if key not in self._known:
            name = variable.column
            moved = self.base[name] + sign * part * self.steps[name]
            self._known[key] = self.matrix(**{**chosen, name: moved})
        return self._known[key]

    def slope(self, variable: Variable, chosen: Mapping[str, Any]) -> Array:
        """dX/dx (n, p + 1), other columns at chosen values."""
        key = ("slope", variable.column, *chosen.items())
        if key not in self._known:
            h = self.steps[variable.column][:, None]
            tables = [
                (self._beside(variable, chosen, part, 1) - self._beside(variable, chosen, part, -1)) / (2 * part * h)
                for part in PARTS
            ]
            self._known[key] = _extrapolated(*tables)
        return self._known[key]

    def curvature(self, first: Variable, second: Variable) -> Curvature:
        """The mixed derivative, or difference, of X in two predictors."""
        if not (self.depends[first.column] & self.depends[second.column]).any():
            return self._nothing
        if first.values is None and second.values is None:
            return self._mixed(first, second)
        if first.values is not None and second.values is not None:
            corners = [[self.at({first.column: a, second.column: b}) for b in second.values] for a in first.values]
            value = corners[1][1] - corners[1][0] - corners[0][1] + corners[0][0]
            error = 4 * EPS * np.abs(np.array(corners)).sum(axis=(0, 1))
            unit = first.unit * second.unit
            return Curvature(value / unit, error / unit)
        chosen, moved = (first, second) if first.values is not None else (second, first)
        return self._difference_of_slopes(chosen, moved)

    def _difference_of_slopes(self, chosen: Variable, moved: Variable) -> Curvature:
        assert chosen.values is not None
        states: list[Mapping[str, Any]] = [{chosen.column: value} for value in chosen.values]
        low, high = (self.slope(moved, state) for state in states)
        h = self.steps[moved.column][:, None]
        sides = []
        for part in PARTS:
            own = [
                sign * (self._beside(moved, state, part, sign) - self.at(state)) for state in states for sign in (1, -1)
            ]
            sides.append(np.abs((own[2] - own[0]) - (own[3] - own[1])) / (part * h))
        rounding = 16 * EPS * np.abs(self.at(states[1])) / h
        return Curvature((high - low) / chosen.unit, (rounding + _edge(*sides)) / chosen.unit)

    @cached_property
    def _nothing(self) -> Curvature:
        zero = np.zeros((self.n_rows, len(self.design.x_names) + 1))
        return Curvature(zero, zero)

    def _mixed(self, first: Variable, second: Variable) -> Curvature:
        a, b = first.column, second.column
        area = (self.steps[a] * self.steps[b])[:, None]
        tables, spreads, largest = [], [], self._nothing.value
        for part in PARTS:
            quarters = []
            for p, q in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                steps = p * part * self.steps[a], q * part * self.steps[b]
                corner = self.matrix(**{a: self.base[a] + steps[0], b: self.base[b] + steps[1]})
                sides = self._beside(first, {}, part, p) + self._beside(second, {}, part, q)
                quarters.append(p * q * (corner - sides + self.at({})) / (part**2 * area))
                largest = np.maximum(largest, np.abs(corner))
            tables.append(np.mean(quarters, axis=0))
            spreads.append(np.ptp(quarters, axis=0))
        value = _extrapolated(*tables)
        both = self.depends[a] & self.depends[b]
        error = np.abs(value - tables[1]) + 8 * EPS * largest / area + _edge(*spreads)
        return Curvature(np.where(both, value, 0.0), np.where(both, error, 0.0))

    @cached_property
    def depends(self) -> dict[str, NDArray[np.bool_]]:
        """By column of the data, which columns of X (p + 1,) change with it somewhere near the rows."""
        categories = {v.column: [v.values[0]] for v in self.variables if v.values is not None}
        for v in self.variables:
            if v.values is not None:
                categories[v.column].append(v.values[1])
        count = max([64, *(20 * len(values) for values in categories.values())])
        rows = np.resize(np.arange(self.n_rows), count)
        frame = self.frame.iloc[rows]
        draw = np.random.default_rng(1)

        def places() -> dict[str, Any]:
            moved = {
                name: self.base[name][rows] + draw.uniform(-1, 1, count) * h[rows] for name, h in self.steps.items()
            }
            return moved | {
                name: np.array(values, dtype=object)[draw.integers(len(values), size=count)]
                for name, values in categories.items()
            }

        here, there = places(), places()
        start = _encode(self.design, frame.assign(**here))
        return {
            name: (_encode(self.design, frame.assign(**{**here, name: there[name]})) != start).any(axis=0)
            for name in here
        }


def _extrapolated(coarse: Array, fine: Array) -> Array:
    return (4 * fine - coarse) / 3


def _edge(coarse: Array, fine: Array) -> Array:
    """What the sides of a point disagree by where that does not shrink with the step, as at an edge; else 0."""
    return np.where(fine > 0.75 * coarse, fine / 2, 0.0)


def _texts(design: Design) -> list[str]:
    return [design.terms.common, *(part.common for part in design.terms.predictors.values())]


def normalised(shares: Array) -> Array:
    """Shares that sum to 1; alike where none counts."""
    total = float(shares.sum())
    return shares / total if total > 0 else np.full(len(shares), 1.0 / len(shares))


def spread(values: Array, shares: Array) -> float:
    """The standard deviation over rows that count by `shares`; 1 where the values are all alike.

    Examples
    --------
    >>> spread(np.array([0.0, 3.0]), np.array([0.5, 0.5])), spread(np.array([2.0, 2.0]), np.array([0.5, 0.5]))
    (1.5, 1.0)
    """
    found = float(np.sqrt(shares @ (values - shares @ values) ** 2))
    return found if found > 1e-12 * float(np.abs(values).max(initial=0.0)) else 1.0


def _encode(design: Design, frame: pd.DataFrame) -> Array:
    """X and the offset (n, p + 1) of rows that hold the columns of within() and between() ready made."""
    encoding = replace(design.encoding, contexts=Contexts())
    X = encoding.encode(frame, _texts(design))[:, design.x_columns]
    offset = read_offset(design.terms.offsets, frame)
    return np.column_stack([X, np.zeros(len(X)) if offset is None else offset])


def predictor_names(design: Design, both: bool = False) -> tuple[str, ...]:
    """The predictors of the mean: columns of the data, and those made by within() and between().

    both : whether the second linear predictor is part of the mean.
    """
    parts = _texts(design) if both else [design.terms.common]
    texts = [split_context(text)[0] for text in parts] + list(design.terms.offsets)
    return tuple(dict.fromkeys(name for text in texts for name in variables_of(text)))


def read_predictors(
    design: Design, at: Any, names: Sequence[str] | None, choose: Any, *, has_rows: bool, both: bool = False
) -> Predictors:
    """The rows of `at` (those of the design where it is None), and the predictors asked for.

    Parameters
    ----------
    choose : callable
        Row count -> positions of the rows used, or None for all.
    has_rows : whether the design has its rows; without them spreads are those of `at` and levels are unknown.
    both : whether the second linear predictor is part of the mean.

    Raises
    ------
    DataError, ModelError
    """
    asked = _asked(design, names, both)
    contexts = design.encoding.contexts
    made = [column.name for column in context_columns(_texts(design))]
    home = contexts.add_to(design.data, made) if has_rows else None
    if at is None:
        assert home is not None
        frame = home
    else:
        if isinstance(at, Mapping):
            at = {name: np.atleast_1d(np.asarray(value)) for name, value in at.items()}
        if design.replay(at, factors=()).n_rows == 0:  # which checks it, too
            raise DataError("at= has no rows.")
        needed = [name for text in [*_texts(design), *design.terms.offsets] for name in variables_of(text)]
        frame = contexts.add_to(read_frame(at, list(dict.fromkeys(needed)), new=True), made)
    shares = row_shares(design) if at is None else np.ones(len(frame))
    rows = choose(len(frame))
    if rows is not None:
        frame, shares = frame.iloc[rows], shares[rows]
    frame, shares = frame.reset_index(drop=True), normalised(shares)
    home, home_shares = (frame, shares) if home is None else (home, row_shares(design))
    variables = [v for name in asked for v in _variables(design, name, home, home_shares, has_rows)]
    found = Predictors(design, frame, home, tuple(variables), shares, home_shares)
    for name in dict.fromkeys(v.column for v in variables if v.values is None):
        _settle(found, name)
    return found


def _asked(design: Design, names: Sequence[str] | None, both: bool) -> tuple[str, ...]:
    known = predictor_names(design, both)
    if isinstance(names, str):
        raise ModelError(f"names={names!r} is one text; give a list of predictors, as in names=[{names!r}, ...].")
    if names is not None and not isinstance(names, Iterable):
        raise ModelError(f"names={names!r} is not a list of predictors, as names={list(known[:2])!r} is.")
    if names is None:
        if len(known) < 2:
            raise ModelError(
                f"An interaction takes two predictors, and the model has {f'one, {known[0]!r}' if known else 'none'}."
            )
        return known
    names = tuple(names)
    for name in names:
        if name not in known:
            raise ModelError(f"The model's population part has no predictor {name!r}.{_reason(design, name, known)}")
    asked = tuple(dict.fromkeys(names))
    if len(asked) < 2:
        raise ModelError("An interaction takes two predictors; name at least two.")
    return asked


def _reason(design: Design, name: Any, known: Sequence[str]) -> str:
    """Why there is none of this name, and what to name instead."""
    column = str(name).partition("[")[0]
    if column in known:
        return f" Name the column, {column!r}: all its categories are compared."
    group = any(name in variables_of(term.effects) for term in design.terms.all_groups)
    where = " It is in group terms only, which are not part of the population mean." if group else ""
    return f"{where} {did_you_mean(str(name), known)}"


def _variables(design: Design, name: str, home: pd.DataFrame, shares: Array, has_rows: bool) -> list[Variable]:
    """A predictor as one variable, or one for each category but the first."""
    known = design.encoding.categories.get(name)
    column = home[name]
    if known is None and name in _categorised(design):
        known = tuple(np.unique(numeric_values(column, name, "The predictor")).tolist())
    if known is not None:
        texts = column.astype(str).to_numpy()
        level = _level(design, texts.astype(object), has_rows)
        made = [
            Variable(
                f"{name}[{value}]",
                name,
                (known[0], value),
                1.0,
                spread((texts == str(value)).astype(float), shares),
                level,
            )
            for value in known[1:]
        ]
        return made
    values = numeric_values(column, name, "The predictor").astype(float)
    distinct = np.unique(values) if has_rows else values
    level = _level(design, values, has_rows)
    own = spread(values, shares)
    if len(distinct) == 2 and has_rows:
        low, high = float(distinct[0]), float(distinct[1])
        return [Variable(name, name, (low, high), high - low, own, level)]
    return [Variable(name, name, None, 1.0, own, level)]


def _categorised(design: Design) -> set[str]:
    """Columns of numbers that the formula turns into categories, as C(period) does."""
    found: set[str] = set()
    for spec in design.encoding.specs.values():
        for expression, (_, state) in spec.encoder_state.items():
            if "categories" in state:
                found |= set(variables_of(expression))
    return found


def _level(design: Design, values: NDArray[Any], has_rows: bool) -> str:
    if not has_rows:
        return ""
    if values.dtype.kind == "O":
        values = encode_ids(_series(values), "level")[0]
    return level_name(
        design, np.array([constant_within(values, factor.codes) for factor in design.factors], dtype=bool)
    )


def _series(values: NDArray[Any]) -> Any:
    import pandas as pd

    return pd.Series(values)


def _settle(found: Predictors, name: str) -> None:
    """Steps (n,) and places (n,) of a column of numbers at which the formula has values on both sides."""
    x = numeric_values(found.frame[name], name, "The predictor").astype(float)
    own = numeric_values(found.home[name], name, "The predictor").astype(float)
    scale = float(own.std()) or float(np.abs(x).max()) or 1.0
    size = np.clip(np.abs(x), SMALLEST * scale / STEP, scale)
    positive = bool((own > 0).all() and (x > 0).all())
    full = STEP * (size if positive else np.full(len(x), scale))
    if positive:
        full = np.minimum(full, 0.4 * x)
    trouble: DataError | None = None
    for factor, inside in ATTEMPTS:
        h, place = factor * full, x
        if inside:
            low, high = float(own.min()), float(own.max())
            within = (x >= low) & (x <= high)
            place = np.where(within, np.clip(x, low + 1.01 * h, high - 1.01 * h), x)
        try:
            for sign in (1, -1):
                found.matrix(**{name: place + sign * h})
        except DataError as error:
            trouble = error
            continue
        found.base[name], found.steps[name] = place, h
        return
    raise DataError(
        f"The formula has no value where {name!r} is moved a little, so that it has no derivative: {trouble}"
    )
