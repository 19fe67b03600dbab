"""The design of a model: data -> arrays, once, with everything that is needed to do it again for new rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.checks import check_columns, moments
from partialpool.design.encoding import Encoding, evaluate, learn
from partialpool.design.factors import (
    Codes,
    Labels,
    Levels,
    combine,
    encode_ids,
    join_labels,
    match_combinations,
    match_ids,
)
from partialpool.design.frame import check_finite, drop_missing, missing_values, numeric_values, read_frame, row_names
from partialpool.errors import DataError, FormulaError, did_you_mean
from partialpool.spec.formula import GroupTerm, Terms, parse_formula, quote_name, variables_of

if TYPE_CHECKING:
    import pandas as pd

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GroupFactor:
    """A grouping factor: its columns, the labels (J,) of its groups, the group (n,) of each row.

    `members` (J, k) are the positions of each group's parts in the ids of the k columns; `sizes` (J,) count its rows.
    """

    name: str
    variables: tuple[str, ...]
    labels: Labels
    codes: Codes
    members: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32))
    sizes: Positions = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if len(self.members) != len(self.labels):
            object.__setattr__(self, "members", np.arange(len(self.labels), dtype=np.int32)[:, None])
        if len(self.sizes) != len(self.labels):
            object.__setattr__(self, "sizes", np.bincount(self.codes, minlength=len(self.labels)))


@dataclass(frozen=True, eq=False)
class GroupDesign:
    """One group term: which factor, and which columns of V vary by its groups."""

    text: str
    factor: int
    columns: Positions
    names: tuple[str, ...]
    correlated: bool


@dataclass(frozen=True, eq=False)
class NewRows:
    """New rows in the encoding of a fit.

    Attributes
    ----------
    V : (n, m); columns that only group terms of factors not asked for need are nan.
    codes : per factor the group (n,) of each row, -1 where the fit has not seen it; None for a factor not asked for.
    labels : per factor the ids (n,) as text; None for a factor not asked for.
    offset, se, weights, precision, y : (n,) or None.
    index : the labels of the new rows.
    """

    V: Matrix
    codes: list[Codes | None]
    labels: list[Labels | None]
    offset: Vector | None
    se: Vector | None
    weights: Vector | None
    precision: Vector | None
    y: Vector | None
    index: pd.Index[Any]

    @property
    def n_rows(self) -> int:
        """How many new rows there are."""
        return len(self.V)


@dataclass(frozen=True, eq=False)
class Design:
    """Response, predictors and groups of a model as arrays. Made by :func:`build_design`.

    Attributes
    ----------
    terms : the formula, read.
    y : (n,) response.
    V : (n, m) every distinct numeric column of the common part and of the group terms, once.
    v_names, x_columns, x_names : names of V's columns; which of them are the common part (p,), and their names.
    groups : the group terms. factors : their grouping factors, each once.
    offset, se, weights, precision : (n,) or None. se_sigma : whether sigma is added to se.
    rows : (n,) positions of the kept rows in the data given. n_dropped : how many were dropped for missing values.
    dropped_by : missing values by column. data : the columns used, kept rows.
    """

    terms: Terms
    y: Vector
    V: Matrix
    v_names: tuple[str, ...]
    x_columns: Positions
    x_names: tuple[str, ...]
    groups: tuple[GroupDesign, ...]
    factors: tuple[GroupFactor, ...]
    offset: Vector | None
    se: Vector | None
    se_sigma: bool
    weights: Vector | None
    precision: Vector | None
    n_rows: int
    n_dropped: int
    rows: Positions
    dropped_by: dict[str, int]
    data: pd.DataFrame
    encoding: Encoding = field(repr=False, default=None)  # type: ignore[assignment]
    levels: dict[str, Levels] = field(repr=False, default_factory=dict)

    def __repr__(self) -> str:
        groups = "".join(f", {factor.name} {len(factor.labels)}" for factor in self.factors)
        dropped = f", {self.n_dropped} dropped" if self.n_dropped else ""
        return f"Design({self.terms.formula!r}: {self.n_rows} rows{dropped}, {len(self.v_names)} columns{groups})"

    def x_matrix(self) -> Matrix:
        """The common part (n, p), a copy."""
        return self.V[:, self.x_columns]

    def replay(self, new_data: Any, *, factors: Sequence[str] | None = None, response: bool = False) -> NewRows:
        """New rows in the encoding that the design learned.

        Parameters
        ----------
        new_data : any data that :func:`build_design` reads.
        factors : the grouping factors whose groups are wanted; all by default, ``()`` for none. Columns that only
            other factors need may be missing.
        response : whether the response is wanted too.

        Raises
        ------
        DataError
            If a column is missing, a value is missing or infinite, or a category was never seen.

        Examples
        --------
        >>> design = build_design("y ~ x + (1|g)", {"y": [1.0, 2, 4, 3], "x": [0, 1, 0, 1], "g": list("aabb")})
        >>> design.replay({"x": [2.0], "g": ["c"]}).codes[0].tolist()
        [-1]
        """
        asked = self._asked(factors)
        texts = [self.terms.common]
        for term, group in zip(self.terms.groups, self.groups, strict=True):
            if self.factors[group.factor].name in asked:
                texts.append(term.effects)
        ids = list(dict.fromkeys(name for factor in self.factors if factor.name in asked for name in factor.variables))
        needed = [name for text in [*texts, *self.terms.offsets] for name in variables_of(text)] + ids
        left = self.terms.response
        if response:
            needed += variables_of(left.expression)
        extras = {"se": left.se, "weights": left.weights, "precision": left.precision}
        wanted = list(dict.fromkeys(needed))
        frame = read_frame(
            new_data,
            wanted,
            optional=[name for text in extras.values() if text for name in variables_of(text)],
            new=True,
        )
        _refuse_missing(frame, wanted)
        codes, labels = self._match(frame, asked)
        given = {
            kind: _positive(text, frame, kind) if text and set(variables_of(text)) <= set(frame.columns) else None
            for kind, text in extras.items()
        }
        return NewRows(
            V=self.encoding.encode(frame, texts),
            codes=codes,
            labels=labels,
            offset=_offset(self.terms.offsets, frame),
            y=_response(left.expression, frame) if response else None,
            index=frame.index,
            **given,
        )

    def _asked(self, factors: Sequence[str] | None) -> set[str]:
        names = [factor.name for factor in self.factors]
        if factors is None:
            return set(names)
        for name in factors:
            if name not in names:
                raise DataError(f"There is no grouping factor {name!r}. {did_you_mean(name, names)}")
        return set(factors)

    def _match(self, frame: pd.DataFrame, asked: set[str]) -> tuple[list[Codes | None], list[Labels | None]]:
        ids = {
            name: match_ids(frame[name], self.levels[name])
            for name in dict.fromkeys(
                name for factor in self.factors if factor.name in asked for name in factor.variables
            )
        }
        codes: list[Codes | None] = []
        labels: list[Labels | None] = []
        for factor in self.factors:
            if factor.name not in asked:
                codes.append(None)
                labels.append(None)
                continue
            sizes = [len(self.levels[name].labels) for name in factor.variables]
            codes.append(match_combinations([ids[name][0] for name in factor.variables], factor.members, sizes))
            labels.append(join_labels([ids[name][1] for name in factor.variables]))
        return codes, labels

    def to_state(self, *, rows: bool = False) -> dict[str, Any]:
        """What is needed to replay the design, and with `rows` the rows too: ``{"json": ..., "arrays": ...}``."""
        from partialpool.design.state import design_to_state

        return design_to_state(self, rows=rows)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Design:
        """The design that :meth:`to_state` wrote; without its rows, row arrays are empty."""
        from partialpool.design.state import design_from_state

        return design_from_state(state)


def build_design(terms: Terms | str, data: Any, *, family: str = "gaussian") -> Design:
    """Read the columns that a formula names and turn them into the arrays of a model.

    Parameters
    ----------
    terms : what :func:`parse_formula` made, or the formula's text.
    data : a pandas, polars or pyarrow table, a dict of arrays, a list of records, or the path of a CSV or Parquet file.
    family : name of the response's family; checks that belong to the Gaussian family alone are made for it alone.

    Returns
    -------
    Design

    Raises
    ------
    DataError
        If the data do not fit the formula: the message names the column, the rows and the mend.

    Examples
    --------
    >>> design = build_design("y ~ x + (1|g)", {"y": [1.0, 2, 4, 3], "x": [0, 1, 0, 1], "g": list("aabb")})
    >>> design.x_names, design.factors[0].labels.tolist()
    (('Intercept', 'x'), ['a', 'b'])
    """
    if isinstance(terms, str):
        terms = parse_formula(terms)
    frame = read_frame(data, _used_columns(terms))
    n_given = len(frame)
    if n_given == 0:
        raise DataError("The data are empty: there are no rows.")
    frame, rows, dropped_by = drop_missing(frame)
    if len(frame) == 0:
        counts = ", ".join(f"{name!r} lacks {count}" for name, count in dropped_by.items())
        raise DataError(f"Every one of the {n_given} rows has a missing value ({counts}), so that none is left.")
    left = terms.response
    y = _response(left.expression, frame)
    _check_response(y, left.expression, family)
    encoding, V = learn(frame, [terms.common, *(term.effects for term in terms.groups)], caret="^" in terms.formula)
    factors, levels, place = _factors(terms, frame)
    groups = tuple(_group(term, place[term.variables], encoding) for term in terms.groups)
    _check_overlap(groups, factors)
    common = encoding.pieces[terms.common]
    design = Design(
        terms=terms,
        y=y,
        V=V,
        v_names=encoding.names,
        x_columns=common.columns,
        x_names=common.names,
        groups=groups,
        factors=factors,
        offset=_offset(terms.offsets, frame),
        se=_positive(left.se, frame, "se"),
        se_sigma=left.se_sigma,
        weights=_positive(left.weights, frame, "weights"),
        precision=_positive(left.precision, frame, "precision"),
        n_rows=len(frame),
        n_dropped=n_given - len(frame),
        rows=rows,
        dropped_by=dropped_by,
        data=frame,
        encoding=encoding,
        levels=levels,
    )
    if bare_column(left.expression) in common.names:
        raise FormulaError(
            f"The response {left.expression!r} is among its own predictors; take it out of the right side."
        )
    _check_predictors(design)
    _check_groups(design, family)
    return design


def _used_columns(terms: Terms) -> list[str]:
    left = terms.response
    texts = [left.expression, terms.common, *(term.effects for term in terms.groups), *terms.offsets]
    texts += [text for text in (left.se, left.weights, left.precision, left.trials) if text]
    names = [name for text in texts for name in variables_of(text)]
    return list(dict.fromkeys([*names, *(name for term in terms.groups for name in term.variables)]))


def _refuse_missing(frame: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        gaps = missing_values(frame[name])
        if gaps is not None:
            where = row_names(np.flatnonzero(gaps), frame.index)
            raise DataError(f"The new data have no value of {name!r} in {where}; fill it in or drop the rows.")


def _value(expression: str, frame: pd.DataFrame, what: str) -> NDArray[Any]:
    """The numbers that an expression gives in each row."""
    import pandas as pd

    column = bare_column(expression)
    if column is not None:
        return numeric_values(frame[column], column, what)
    names = variables_of(expression)
    try:
        value = evaluate(expression, {name: frame[name] for name in names})
    except Exception as error:  # whatever a user's expression raises
        raise DataError(f"{what} {expression!r} cannot be computed: {error}") from error
    if np.ndim(value) == 0:
        value = np.full(len(frame), value)
    return numeric_values(pd.Series(value), expression, what)


def bare_column(expression: str) -> str | None:
    """The column where an expression is nothing but one, else None."""
    names = variables_of(expression)
    return names[0] if len(names) == 1 and expression in (names[0], quote_name(names[0])) else None


def _floats(values: NDArray[Any], name: str, frame: pd.DataFrame) -> Vector:
    check_finite(values, name, frame.index)
    return np.ascontiguousarray(values, dtype=np.float64)


def _response(expression: str, frame: pd.DataFrame) -> Vector:
    return _floats(_value(expression, frame, "The response"), expression, frame)


def _check_response(y: Vector, name: str, family: str) -> None:
    if family != "gaussian":
        return
    if len(y) == 1:
        raise DataError(f"There is one row only, so that nothing can be learned about how {name!r} varies.")
    if y.min() == y.max():
        raise DataError(f"The response {name!r} is constant, {y[0]:.6g} in every row; there is nothing to explain.")


def _offset(expressions: Sequence[str], frame: pd.DataFrame) -> Vector | None:
    total: Vector | None = None
    for expression in expressions:
        values = _floats(_value(expression, frame, "The offset"), expression, frame)
        total = values if total is None else total + values
    return total


MENDS = {
    "se": "a standard error is above 0; if it is unknown, drop the row or leave out se()",
    "weights": "a weight is at least 0; to leave a row out, drop it",
    "precision": "a precision is above 0: it is 1 over a variance",
}


def _positive(expression: str | None, frame: pd.DataFrame, kind: str) -> Vector | None:
    """Known standard errors, weights or precisions, checked."""
    if expression is None:
        return None
    if len(frame):
        for name in variables_of(expression):
            if (gaps := missing_values(frame[name])) is not None:
                raise DataError(f"{kind} {name!r} has no value in {row_names(np.flatnonzero(gaps), frame.index)}.")
    values = _floats(_value(expression, frame, kind), expression, frame)
    bad = np.flatnonzero(values < 0 if kind == "weights" else values <= 0)
    if len(bad):
        sign = "negative" if values[bad[0]] < 0 else "zero"
        raise DataError(f"{kind}({expression}) is {sign} in {row_names(bad, frame.index)}; {MENDS[kind]}.")
    if kind == "weights" and not values.any():
        raise DataError(f"weights({expression}) are 0 in every row, so that no row counts.")
    return values


def _factors(
    terms: Terms, frame: pd.DataFrame
) -> tuple[tuple[GroupFactor, ...], dict[str, Levels], dict[tuple[str, ...], int]]:
    """Each grouping factor once, the ids of their columns, and where a term finds its factor."""
    codes: dict[str, Codes] = {}
    levels: dict[str, Levels] = {}
    place: dict[tuple[str, ...], int] = {}
    factors: list[GroupFactor] = []
    for term in terms.groups:
        if term.variables in place:
            continue
        for name in term.variables:
            if name not in codes:
                codes[name], levels[name] = encode_ids(frame[name], name)
        parts = [levels[name] for name in term.variables]
        found, members = combine([codes[name] for name in term.variables], parts)
        labels = join_labels([part.labels[members[:, k]] for k, part in enumerate(parts)])
        place[term.variables] = len(factors)
        factors.append(GroupFactor(term.factor, term.variables, labels, found, members))
    return tuple(factors), levels, place


def _group(term: GroupTerm, factor: int, encoding: Encoding) -> GroupDesign:
    piece = encoding.pieces[term.effects]
    return GroupDesign(term.text, factor, piece.columns, piece.names, term.correlated)


def _check_overlap(groups: Sequence[GroupDesign], factors: Sequence[GroupFactor]) -> None:
    """Two terms on one factor may not share a column."""
    seen: dict[tuple[int, str], GroupDesign] = {}
    for group in groups:
        for name in group.names:
            first = seen.setdefault((group.factor, name), group)
            if first is group:
                continue
            factor = factors[group.factor].name
            later = [slope for slope in group.names if slope != "Intercept"]
            mend = (
                f"write (0 + {' + '.join(later)} | {factor})"
                if name == "Intercept" and later
                else "keep it in one of them"
            )
            raise FormulaError(f"{first.text} and {group.text} both let {name!r} vary by {factor!r}; {mend}.")


def _check_predictors(design: Design) -> None:
    found = moments(design.V)
    for column in np.flatnonzero(~np.isfinite(found.mean)):
        check_finite(design.V[:, column], design.v_names[column], design.data.index)
    check_columns(design.V, found, design.x_columns, design.x_names, "the common part")
    for group in design.groups:
        check_columns(design.V, found, group.columns, group.names, f"the group term {group.text}")


def _check_groups(design: Design, family: str) -> None:
    for group in design.groups:
        factor = design.factors[group.factor]
        if len(factor.labels) == 1:
            raise DataError(
                f"The grouping factor {factor.name!r} has a single group, {factor.labels[0]!r}: how groups differ "
                f"cannot be learned from one; leave out {group.text}."
            )
        saturated = len(factor.labels) * len(group.names) >= design.n_rows
        if family == "gaussian" and saturated and (len(group.names) > 1 or group.names == ("Intercept",)):
            _check_residual(design, factor, group)


def _check_residual(design: Design, factor: GroupFactor, group: GroupDesign) -> None:
    """One row per group: sigma and the group sd add up to one variance, unless something tells them apart."""
    known = design.se is not None and not design.se_sigma
    telling = [values for values in (design.weights, design.precision) if values is not None]
    if known or any(values.min() < values.max() for values in telling):
        return
    if group.names != ("Intercept",):
        wide = f"{len(group.names)} effects ({', '.join(group.names[:3])}{', ...' if len(group.names) > 3 else ''})"
        raise DataError(
            f"The term {group.text} has {wide} for each of {len(factor.labels)} groups, "
            f"{len(factor.labels) * len(group.names)} in all for {design.n_rows} rows, so that they cannot be told "
            "from sigma; let fewer columns vary by group "
            "(a column of numbers that was read as text makes one effect for each value: convert it)."
        )
    raise DataError(
        f"The grouping factor {factor.name!r} has as many groups as there are rows ({design.n_rows}), so that its sd "
        f"cannot be told from sigma; leave out {group.text}, or give known standard errors: 'y | se(s) ~ ...'."
    )
