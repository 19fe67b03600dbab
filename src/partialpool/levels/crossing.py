"""Which coefficients are interactions across levels: ``x:z`` with z constant within groups in which x varies.

A column ``x:z`` is the product of its parts, which are read from its name (cut at the colons outside brackets) and
checked by multiplying them. A part lives at the level of a factor where it is constant within the factor's groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.design.expressions import evaluate
from partialpool.errors import FormulaError
from partialpool.levels.columns import constant_within
from partialpool.spec.formula import quote_name, variables_of

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]

CATEGORY = re.compile(r"(?P<root>.+?)\[(?P<label>.*)\]", re.DOTALL)
#: Difference of an interaction's column from the product of its parts, relative to its largest value, that is rounding.
EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class Crossing:
    """A coefficient of the mean that is an interaction across levels, in one reading.

    position, name : of the coefficient. row_parts : the parts that vary within groups of the factor, whose slope it
    changes. group_parts : the parts that are constant within them. factor : position of the (coarsest) factor.
    values : (parts, groups) of the group-level parts.
    """

    position: int
    name: str
    row_parts: tuple[str, ...]
    group_parts: tuple[str, ...]
    factor: int
    values: Array


def split_name(name: str) -> tuple[str, ...]:
    """The parts of an interaction's name.

    Examples
    --------
    >>> split_name("within(ses|school):sector[a:b]")
    ('within(ses|school)', 'sector[a:b]')
    """
    parts, start, depth = [], 0, 0
    for position, char in enumerate(name):
        depth += (char in "([{") - (char in ")]}")
        if char == ":" and depth == 0:
            parts.append(name[start:position])
            start = position + 1
    return (*parts, name[start:])


def root_of(part: str) -> str:
    """A part without its category or column: ``sector[Public]`` is one of ``sector``."""
    found = CATEGORY.fullmatch(part)
    return found["root"] if found else part


def as_written(part: str, columns: Sequence[Any]) -> str:
    """A part as a formula writes it: in backticks where it is a column whose name is not a plain word."""
    root = root_of(part)
    return quote_name(root) if root in columns else root


def raw_variables(design: Design, part: str) -> tuple[str, ...]:
    """The columns of the data that a part is made from, without the grouping factors' own."""
    root = root_of(part)
    if root in design.data.columns:
        return (root,)
    ids = {name for factor in design.factors for name in factor.variables}
    try:
        names = tuple(name for name in variables_of(root) if name not in ids)
    except FormulaError:
        names = ()
    return names or (root,)


def part_values(design: Design, part: str, values: Array | None = None, data: Any = None) -> Array | None:
    """One part of an interaction as a column (n,), of the design's rows or of others; None where it cannot be had."""
    data = design.data if data is None else data
    values = design.V if values is None else values
    if part in design.v_names:
        column = np.asarray(values[:, design.v_names.index(part)])
        if np.isfinite(column).all():
            return column
    if part in data.columns and part not in design.encoding.categories:
        return np.asarray(data[part], dtype=float)
    found = CATEGORY.fullmatch(part)
    if found:
        return _indicator(data, found["root"], found["label"])
    try:
        columns = {str(name): data[name] for name in variables_of(part)}
        return np.asarray(evaluate(part.replace("^", "**"), columns), dtype=float) * np.ones(len(data))
    except Exception:  # a function that learns from the data, or whatever a user's expression raises
        return None


def _indicator(data: pandas.DataFrame, root: str, label: str) -> Array | None:
    """1 in the rows of a category."""
    inside = re.fullmatch(r"C\(\s*`?(?P<name>[^,`]+?)`?\s*(,.*)?\)", root, re.DOTALL)
    name = inside["name"] if inside else root
    if name not in data.columns:
        return None
    texts = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in data[name].tolist()]
    return np.array([text == label for text in texts], dtype=float)


def first_rows(codes: NDArray[np.int32], groups: int) -> NDArray[np.int64]:
    """The first row of each group, (groups,)."""
    first = np.zeros(groups, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


def find_crossings(design: Design) -> tuple[tuple[Crossing, ...], tuple[str, ...]]:
    """The interactions across levels among the coefficients of the mean, and names that could not be read.

    Where a part varies within the groups of one factor and is constant within those of another, and the other part the
    reverse (crossed factors), or where three levels meet, there is a reading for each factor.
    """
    found: list[Crossing] = []
    unread: list[str] = []
    for position, name in enumerate(design.x_names):
        parts = split_name(name)
        if len(parts) < 2 or design.x_predictor[position]:
            continue
        columns = _part_columns(design, position, parts)
        if columns is None:
            unread.append(name)
        else:
            found += _readings(design, position, parts, columns)
    return tuple(found), tuple(unread)


def _part_columns(design: Design, position: int, parts: Sequence[str]) -> list[Array] | None:
    whole = design.V[:, design.x_columns[position]]
    columns = [part_values(design, part) for part in parts]
    missing = [k for k, column in enumerate(columns) if column is None]
    if len(missing) == 1:
        rest = np.prod([column for column in columns if column is not None], axis=0)
        columns[missing[0]] = _solved(design, whole, rest)
    if any(column is None for column in columns):
        return None
    known = [column for column in columns if column is not None]
    same = np.abs(np.prod(known, axis=0) - whole).max() <= EXACT * max(float(np.abs(whole).max()), 1e-300)
    return known if same else None


def _solved(design: Design, whole: Array, rest: Array) -> Array | None:
    """The part that, times the others, gives the column: by rows, or by groups where the others are 0 in places."""
    if (rest != 0).all():
        return np.asarray(whole / rest)
    for factor in design.factors:
        square = np.bincount(factor.codes, weights=rest**2, minlength=len(factor.labels))
        product = np.bincount(factor.codes, weights=rest * whole, minlength=len(factor.labels))
        if (square > 0).all():
            column = (product / square)[factor.codes]
            if np.abs(column * rest - whole).max() <= EXACT * np.abs(whole).max():
                return np.asarray(column)
    return None


def _readings(design: Design, position: int, parts: Sequence[str], columns: Sequence[Array]) -> list[Crossing]:
    best: dict[tuple[bool, ...], int] = {}
    for f, factor in enumerate(design.factors):
        constant = tuple(constant_within(column, factor.codes) for column in columns)
        if all(constant) or not any(constant):
            continue
        if constant not in best or len(factor.labels) < len(design.factors[best[constant]].labels):
            best[constant] = f
    out = []
    for constant, f in best.items():
        factor = design.factors[f]
        rows = first_rows(factor.codes, len(factor.labels))
        values = np.array([column[rows] for column, still in zip(columns, constant, strict=True) if still])
        across = tuple(part for part, still in zip(parts, constant, strict=True) if not still)
        above = tuple(part for part, still in zip(parts, constant, strict=True) if still)
        out.append(Crossing(position, design.x_names[position], across, above, f, values))
    return out
