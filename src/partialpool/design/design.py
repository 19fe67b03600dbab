"""The design of a model: data -> arrays, once, with everything that is needed to do it again for new rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.checks import check_columns, moments
from partialpool.design.encoding import Encoding, learn
from partialpool.design.expressions import bare_column
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
from partialpool.design.frame import check_finite, drop_missing, missing_values, read_frame, row_names
from partialpool.design.response import (
    check_additions,
    read_offset,
    read_outcome,
    read_positive,
    read_response,
    read_trials,
)
from partialpool.errors import DataError, FormulaError, did_you_mean
from partialpool.spec.families import resolve_family
from partialpool.spec.formula import Terms, variables_of
from partialpool.spec.predictors import read_terms

if TYPE_CHECKING:
    import pandas as pd

    from partialpool.spec.families import Family

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
    """One group term: which factor, which columns of V vary by its groups, and in which linear predictor."""

    text: str
    factor: int
    columns: Positions
    names: tuple[str, ...]
    correlated: bool
    predictor: int = 0


@dataclass(frozen=True, eq=False)
class NewRows:
    """New rows in the encoding of a fit.

    Attributes
    ----------
    V : (n, m); columns that only group terms of factors not asked for need are nan.
    codes : per factor the group (n,) of each row, -1 where the fit has not seen it; None for a factor not asked for.
    labels : per factor the ids (n,) as text; None for a factor not asked for.
    offset, se, weights, precision, y, trials : (n,) or None.
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
    trials: Vector | None = None

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
    offset, se, weights, precision, trials : (n,) or None. se_sigma : whether sigma is added to se.
    success, failure : the categories that count as 1 and 0 where the response is one of two categories, else None.
    x_predictor : (p,) the linear predictor that each coefficient belongs to, 0 for the mean's, 1 for that of the
        parameter with a formula of its own, whose names bear a prefix: ``sigma.x``.
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
    trials: Vector | None = None
    success: str | None = None
    failure: str | None = None
    x_predictor: Positions = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if len(self.x_predictor) != len(self.x_names):
            object.__setattr__(self, "x_predictor", np.zeros(len(self.x_names), dtype=np.int64))

    @property
    def prefixes(self) -> tuple[str, ...]:
        """By linear predictor, what its names begin with: nothing for the mean, ``sigma.`` for sigma."""
        return self.terms.prefixes

    @property
    def intercepts(self) -> tuple[int | None, ...]:
        """By linear predictor, the position of its intercept among the coefficients, or None."""
        names = [f"{prefix}Intercept" for prefix in self.prefixes]
        return tuple(self.x_names.index(name) if name in self.x_names else None for name in names)

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
        texts = [self.terms.common, *(part.common for part in self.terms.predictors.values())]
        for term, group in zip(self.terms.all_groups, self.groups, strict=True):
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
            optional=[name for text in (*extras.values(), left.trials) if text for name in variables_of(text)],
            new=True,
        )
        _refuse_missing(frame, wanted)
        codes, labels = self._match(frame, asked)
        given = {
            kind: read_positive(text, frame, kind) if text and set(variables_of(text)) <= set(frame.columns) else None
            for kind, text in extras.items()
        }
        return NewRows(
            V=self.encoding.encode(frame, texts),
            codes=codes,
            labels=labels,
            offset=read_offset(self.terms.offsets, frame),
            y=read_response(left.expression, frame, self.success, self.failure) if response else None,
            index=frame.index,
            trials=self._new_trials(frame),
            **given,
        )

    def _new_trials(self, frame: pd.DataFrame) -> Vector | None:
        """Trials of new rows: those that the formula names where their columns are there; one each without them."""
        text = self.terms.response.trials
        if text is not None:
            return read_trials(text, frame) if set(variables_of(text)) <= set(frame.columns) else None
        return None if self.trials is None else np.ones(len(frame))

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


def build_design(terms: Terms | str, data: Any, *, family: str | Family = "gaussian") -> Design:
    """Read the columns that a formula names and turn them into the arrays of a model.

    Parameters
    ----------
    terms : the formula's text, or what :func:`parse_formula` or :func:`partialpool.formula` made of it.
    data : a pandas, polars or pyarrow table, a dict of arrays, a list of records, or the path of a CSV or Parquet file.
    family : the response's family, or its name: it decides what a response may be and how it is coded.

    Returns
    -------
    Design

    Raises
    ------
    DataError
        If the data do not fit the formula or the family: the message names the column, the rows and the mend.
    ModelError
        If the formula asks for what the family has not: trials, standard errors, a formula of a parameter.

    Examples
    --------
    >>> design = build_design("y ~ x + (1|g)", {"y": [1.0, 2, 4, 3], "x": [0, 1, 0, 1], "g": list("aabb")})
    >>> design.x_names, design.factors[0].labels.tolist()
    (('Intercept', 'x'), ['a', 'b'])
    """
    terms, family = read_terms(terms), resolve_family(family)
    check_additions(terms, family)
    frame = read_frame(data, _used_columns(terms))
    n_given = len(frame)
    if n_given == 0:
        raise DataError("The data are empty: there are no rows.")
    frame, rows, dropped_by = drop_missing(frame)
    if len(frame) == 0:
        counts = ", ".join(f"{name!r} lacks {count}" for name, count in dropped_by.items())
        raise DataError(f"Every one of the {n_given} rows has a missing value ({counts}), so that none is left.")
    left = terms.response
    outcome = read_outcome(terms, frame, family)
    weights = read_positive(left.weights, frame, "weights")
    encoding, V = learn(frame, _texts(terms), caret="^" in terms.formula, weights=weights)
    factors, levels, place = _factors(terms, frame)
    groups = _groups(terms, place, encoding)
    _check_overlap(groups, factors, terms.prefixes)
    x_columns, x_names, x_predictor = _common(terms, encoding)
    design = Design(
        terms=terms,
        y=outcome.y,
        V=V,
        v_names=encoding.names,
        x_columns=x_columns,
        x_names=x_names,
        groups=groups,
        factors=factors,
        offset=read_offset(terms.offsets, frame),
        se=read_positive(left.se, frame, "se"),
        se_sigma=left.se_sigma,
        weights=weights,
        precision=read_positive(left.precision, frame, "precision"),
        n_rows=len(frame),
        n_dropped=n_given - len(frame),
        rows=rows,
        dropped_by=dropped_by,
        data=frame,
        encoding=encoding,
        levels=levels,
        trials=outcome.trials,
        success=outcome.success,
        failure=outcome.failure,
        x_predictor=x_predictor,
    )
    own = bare_column(left.expression)
    if own in x_names or any(f"{prefix}{own}" in x_names for prefix in design.prefixes[1:]):
        raise FormulaError(
            f"The response {left.expression!r} is among its own predictors; take it out of the right side."
        )
    _check_predictors(design)
    _check_groups(design, family)
    return design


def _texts(terms: Terms) -> list[str]:
    """The right-hand sides: the common part of each linear predictor, then the effects of the group terms."""
    parts = terms.predictors.values()
    return [terms.common, *(part.common for part in parts), *(term.effects for term in terms.all_groups)]


def _used_columns(terms: Terms) -> list[str]:
    left = terms.response
    texts = [left.expression, *_texts(terms), *terms.offsets]
    texts += [text for text in (left.se, left.weights, left.precision, left.trials) if text]
    names = [name for text in texts for name in variables_of(text)]
    return list(dict.fromkeys([*names, *(name for term in terms.all_groups for name in term.variables)]))


def _refuse_missing(frame: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        gaps = missing_values(frame[name])
        if gaps is not None:
            where = row_names(np.flatnonzero(gaps), frame.index)
            raise DataError(f"The new data have no value of {name!r} in {where}; fill it in or drop the rows.")


def _factors(
    terms: Terms, frame: pd.DataFrame
) -> tuple[tuple[GroupFactor, ...], dict[str, Levels], dict[tuple[str, ...], int]]:
    """Each grouping factor once, the ids of their columns, and where a term finds its factor."""
    codes: dict[str, Codes] = {}
    levels: dict[str, Levels] = {}
    place: dict[tuple[str, ...], int] = {}
    factors: list[GroupFactor] = []
    for term in terms.all_groups:
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


def _groups(terms: Terms, place: dict[tuple[str, ...], int], encoding: Encoding) -> tuple[GroupDesign, ...]:
    """The group terms of all linear predictors; names of a parameter's own bear its prefix."""
    parts = [terms.groups, *(part.groups for part in terms.predictors.values())]
    out = []
    for predictor, (prefix, groups) in enumerate(zip(terms.prefixes, parts, strict=True)):
        for term in groups:
            piece = encoding.pieces[term.effects]
            names = tuple(f"{prefix}{name}" for name in piece.names)
            factor = place[term.variables]
            out.append(GroupDesign(term.text, factor, piece.columns, names, term.correlated, predictor))
    return tuple(out)


def _common(terms: Terms, encoding: Encoding) -> tuple[Positions, tuple[str, ...], Positions]:
    """Columns, names and linear predictor of the coefficients."""
    texts = [terms.common, *(part.common for part in terms.predictors.values())]
    pieces = [encoding.pieces[text] for text in texts]
    names = [f"{prefix}{name}" for prefix, piece in zip(terms.prefixes, pieces, strict=True) for name in piece.names]
    counts = [len(piece.names) for piece in pieces]
    columns = pieces[0].columns if len(pieces) == 1 else np.concatenate([piece.columns for piece in pieces])
    return columns, tuple(names), np.repeat(np.arange(len(pieces)), counts)


def _check_overlap(groups: Sequence[GroupDesign], factors: Sequence[GroupFactor], prefixes: Sequence[str]) -> None:
    """Two terms on one factor may not share a column in one linear predictor."""
    seen: dict[tuple[int, str], GroupDesign] = {}
    for group in groups:
        for name in group.names:
            first = seen.setdefault((group.factor, name), group)
            if first is group:
                continue
            factor = factors[group.factor].name
            plain, *names = (own.removeprefix(prefixes[group.predictor]) for own in (name, *group.names))
            later = [slope for slope in names if slope != "Intercept"]
            mend = (
                f"write (0 + {' + '.join(later)} | {factor})"
                if plain == "Intercept" and later
                else "keep it in one of them"
            )
            raise FormulaError(f"{first.text} and {group.text} both let {name!r} vary by {factor!r}; {mend}.")


def _check_predictors(design: Design) -> None:
    found = moments(design.V)
    for column in np.flatnonzero(~np.isfinite(found.mean)):
        check_finite(design.V[:, column], design.v_names[column], design.data.index)
    wheres = ["the common part", *(f"the formula of {name}" for name in design.terms.predictors)]
    names = np.array([design.v_names[column] for column in design.x_columns], dtype=object)
    for predictor, where in enumerate(wheres):
        own = design.x_predictor == predictor
        check_columns(design.V, found, design.x_columns[own], names[own].tolist(), where)
    for group in design.groups:
        listed = [design.v_names[column] for column in group.columns]
        check_columns(design.V, found, group.columns, listed, f"the group term {group.text}")


def _check_groups(design: Design, family: Family) -> None:
    for group in design.groups:
        factor = design.factors[group.factor]
        if len(factor.labels) == 1:
            raise DataError(
                f"The grouping factor {factor.name!r} has a single group, {factor.labels[0]!r}: how groups differ "
                f"cannot be learned from one; leave out {group.text}."
            )
        saturated = len(factor.labels) * len(group.names) >= design.n_rows
        alone = len(group.names) > 1 or group.names == ("Intercept",)
        if family.name == "gaussian" and group.predictor == 0 and saturated and alone:
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
