"""Predictors -> the numeric columns V, and what was learned on the way, so that it can be replayed on new rows.

Every right-hand side (the common part, the effects of each group term) is a *piece*. A piece that only adds up columns
is encoded here (the columns formulaic would give, without its cost); formulaic parses and materialises all others, in
one pass that evaluates each factor once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.context import Contexts, learn_contexts
from partialpool.design.expressions import evaluate, functions, ticks
from partialpool.design.frame import check_finite, column_kind, numeric_values, row_names
from partialpool.errors import DataError, FormulaError
from partialpool.spec.context import context_columns, split_context
from partialpool.spec.formula import split_addends, variables_of
from partialpool.spec.text import NAME

if TYPE_CHECKING:
    import pandas as pd

Matrix = NDArray[np.float64]
INTERCEPT = "Intercept"


@dataclass(frozen=True)
class Source:
    """How one column is made: the intercept (column None), a number, or the indicator of a category."""

    column: str | None
    category: int = -1


@dataclass(frozen=True, eq=False)
class Piece:
    """One right-hand side, learned: where its columns lie in V, and how they are made (None: by formulaic)."""

    text: str
    columns: NDArray[np.int64]
    names: tuple[str, ...]
    sources: tuple[Source, ...] | None


@dataclass(frozen=True, eq=False)
class Encoding:
    """The learned encoding of all pieces.

    Attributes
    ----------
    names : the public names of V's columns.
    pieces : by right-hand side.
    categories : of every column that holds categories, its values in order.
    specs : formulaic's model specification of the pieces that it materialises.
    template : one row of the columns that formulaic reads; from it the specifications are rebuilt after loading.
    contexts : the group means behind within() and between().
    """

    names: tuple[str, ...]
    pieces: Mapping[str, Piece]
    categories: Mapping[str, tuple[Any, ...]]
    specs: Mapping[str, Any]
    template: Mapping[str, Any]
    contexts: Contexts = field(default_factory=Contexts)

    def encode(self, frame: pd.DataFrame, wanted: Sequence[str]) -> Matrix:
        """V of new rows; columns that belong to none of the wanted pieces are left undefined (nan).

        Raises
        ------
        DataError
            If a row holds a category that the fit has not seen, or a number is text now.
        """
        pieces = [self.pieces[text] for text in dict.fromkeys(wanted)]
        out = np.full((len(frame), len(self.names)), np.nan)
        needed = dict.fromkeys(name for piece in pieces for name in _read_by(piece.text))
        prepared = self._prepare(self.contexts.add_to(frame, needed), list(needed))
        done: set[int] = set()
        for piece in pieces:
            if piece.sources is not None:
                _fill(out, piece.columns, piece.sources, prepared, done)
        matrices = self._materialise(frame, prepared, [piece for piece in pieces if piece.sources is None])
        for piece, matrix in matrices:
            _copy(out, piece.columns, matrix, done)
        for column in sorted(done):
            check_finite(out[:, column], self.names[column], frame.index)
        return out

    def _prepare(self, frame: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
        prepared: dict[str, Any] = {}
        for name in names:
            if name in self.categories:
                prepared[name] = _recode(frame[name], name, self.categories[name], frame.index)
            else:
                values = numeric_values(frame[name], name, "The predictor")
                check_finite(values, name, frame.index)
                prepared[name] = values
        return prepared

    def _materialise(
        self, frame: pd.DataFrame, prepared: dict[str, Any], pieces: Sequence[Piece]
    ) -> list[tuple[Piece, Matrix]]:
        if not pieces:
            return []
        table = _formulaic_frame(prepared, [name for piece in pieces for name in _read_by(piece.text)])
        specs = {piece.text: self.specs[piece.text] for piece in pieces}
        for spec in specs.values():
            _check_seen(spec, table, frame.index)
        matrices, _ = _run_formulaic(specs, table)
        return [(piece, matrices[piece.text]) for piece in pieces]


def learn(
    frame: pd.DataFrame, texts: Sequence[str], *, caret: bool = False, weights: NDArray[np.float64] | None = None
) -> tuple[Encoding, Matrix]:
    """Learn the encoding of the pieces from complete rows, and V of these rows.

    Columns that several pieces share are there once. `caret`: powers are shown as ``^``, as the user wrote them.
    `weights` (n,): how many rows each stands for, in the means of groups.
    """
    texts = list(dict.fromkeys(texts))
    additive = {text: _additive(text) for text in texts}
    used = {text: _read_by(text) for text in texts}
    contexts, frame = learn_contexts(frame, context_columns(texts), weights)
    prepared, categories = _columns(frame, list(dict.fromkeys(name for text in texts for name in used[text])))
    sources: dict[str, tuple[Source, ...] | None] = {}
    names: dict[str, tuple[str, ...]] = {}
    for text in texts:
        parts = additive[text]
        if parts is None:
            sources[text] = None
        else:
            sources[text], names[text] = _additive_columns(*parts, categories)
    others = [text for text in texts if sources[text] is None]
    matrices: dict[str, Matrix] = {}
    specs: dict[str, Any] = {}
    template: dict[str, Any] = {}
    if others:
        table = _formulaic_frame(prepared, [name for text in others for name in used[text]])
        matrices, specs = _run_formulaic(_new_specs(others), table)
        for text, spec in specs.items():
            _check_seen(spec, table, frame.index)
            names[text] = tuple(public_name(name, caret) for name in spec.column_names)
        template = {name: _first(table[name]) for name in table.columns}
    places: dict[str, int] = {}
    for text in texts:
        for name in names[text]:
            places.setdefault(name, len(places))
    pieces = {
        text: Piece(text, np.array([places[name] for name in names[text]], dtype=np.int64), names[text], sources[text])
        for text in texts
    }
    out = np.empty((len(frame), len(places)))
    done: set[int] = set()
    for text in texts:
        made = sources[text]
        if made is None:
            _copy(out, pieces[text].columns, matrices.pop(text), done)
        else:
            _fill(out, pieces[text].columns, made, prepared, done)
    return Encoding(tuple(places), pieces, categories, specs, template, contexts), out


def _read_by(text: str) -> tuple[str, ...]:
    """The columns that a piece reads, those made by within() and between() among them."""
    return variables_of(split_context(text)[0])


def public_name(name: str, caret: bool) -> str:
    """The name users see: formulaic's without ``T.`` and backticks, power as the formula wrote it."""
    name = name.replace("[T.", "[").replace("`", "")
    return name.replace(" ** ", "^") if caret else name


def fill_plain(encoding: Encoding, frame: pd.DataFrame) -> Matrix:
    """V of the rows of the fit, without the columns that formulaic made (left undefined)."""
    out = np.empty((len(frame), len(encoding.names)))
    done: set[int] = set()
    plain = [piece for piece in encoding.pieces.values() if piece.sources is not None]
    frame = encoding.contexts.add_to(frame, [name for piece in plain for name in _read_by(piece.text)])
    for piece in plain:
        assert piece.sources is not None
        data: dict[str, Any] = {}
        for name in _read_by(piece.text):
            column = frame[name]
            known = encoding.categories.get(name)
            data[name] = column.to_numpy() if known is None else _recode(column, name, known, frame.index)
        _fill(out, piece.columns, piece.sources, data, done)
    return out


def _additive(text: str) -> tuple[bool, list[str]] | None:
    """Intercept and column names of a piece that only adds up columns, else None."""
    intercept, names = False, []
    for sign, piece in split_addends(split_context(text)[0], text):
        if piece in ("0", "1"):
            intercept = piece == "1"
        elif sign == "+" and NAME.fullmatch(piece):
            names.append(piece)
        elif sign == "+" and re.fullmatch(r"`[^`]+`", piece):
            names.append(piece[1:-1])
        else:
            return None
    return intercept, list(dict.fromkeys(names))


def _additive_columns(
    intercept: bool, names: Sequence[str], categories: Mapping[str, tuple[Any, ...]]
) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Treatment coding: without an intercept the first categorical column keeps its first category."""
    sources: list[Source] = [Source(None)] if intercept else []
    labels: list[str] = [INTERCEPT] if intercept else []
    spanned = intercept
    for name in names:
        if name not in categories:
            sources.append(Source(name))
            labels.append(name)
            continue
        for code, category in enumerate(categories[name]):
            if code > 0 or not spanned:
                sources.append(Source(name, code))
                labels.append(f"{name}[{category}]")
        spanned = True
    return tuple(sources), tuple(labels)


def _columns(frame: pd.DataFrame, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Predictors as arrays of numbers or categoricals, and the categories of the latter."""
    import pandas as pd

    prepared: dict[str, Any] = {}
    categories: dict[str, tuple[Any, ...]] = {}
    for name in names:
        if name == INTERCEPT:
            raise DataError(f"A predictor cannot be called {INTERCEPT!r}, the name of the constant; rename the column.")
        column = frame[name]
        kind = column_kind(column)
        if kind == "mixed":
            raise DataError(
                f"The predictor {name!r} mixes numbers and text; make it one or the other, "
                f"as in data[{name!r}].astype(str)."
            )
        if kind in ("category", "text"):
            values = pd.Categorical(column)
            values = values.remove_unused_categories()
            if len(values.categories) < 2:
                only = values.categories[0] if len(values.categories) else None
                raise DataError(
                    f"The predictor {name!r} has a single category, {only!r}, so that it explains nothing; drop it."
                )
            categories[name] = tuple(_plain(value) for value in values.categories.tolist())
            prepared[name] = values.rename_categories(dict(zip(values.categories, categories[name], strict=True)))
        else:
            numbers = numeric_values(column, name, "The predictor")
            check_finite(numbers, name, frame.index)
            prepared[name] = numbers
    return prepared, categories


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _text(value: Any) -> str:
    """A category as text; a whole number that became a float next to missing values reads as before."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _first(column: pd.Series[Any]) -> Any:
    value = column.iloc[0]
    return value.item() if isinstance(value, np.generic) else value


def _fill(
    out: Matrix, columns: NDArray[np.int64], sources: Sequence[Source], data: dict[str, Any], done: set[int]
) -> None:
    for column, source in zip(columns.tolist(), sources, strict=True):
        if column in done:
            continue
        done.add(column)
        if source.column is None:
            out[:, column] = 1.0
        elif source.category < 0:
            out[:, column] = data[source.column]
        else:
            out[:, column] = data[source.column].codes == source.category


def _copy(out: Matrix, columns: NDArray[np.int64], matrix: Matrix, done: set[int]) -> None:
    for position, column in enumerate(columns.tolist()):
        if column not in done:
            done.add(column)
            out[:, column] = matrix[:, position]


def _recode(column: pd.Series[Any], name: str, known: tuple[Any, ...], index: pd.Index[Any]) -> Any:
    """A column of new rows in the categories of the fit; categories match by their text."""
    import pandas as pd

    codes, uniques = pd.factorize(column)
    places = {_text(value): place for place, value in enumerate(known)}
    lookup = np.array([places.get(_text(value), -1) for value in uniques], dtype=np.int64)
    found = lookup[codes] if len(uniques) else codes
    bad = np.flatnonzero(found < 0)
    if len(bad):
        value = uniques[codes[bad[0]]]
        _refuse(name, value, [place for place in bad if uniques[codes[place]] == value], known, index)
    return pd.Categorical.from_codes(found, categories=pd.Index(list(known)))


def _refuse(name: str, value: Any, rows: Any, known: Sequence[Any], index: pd.Index[Any]) -> None:
    shown = ", ".join(repr(_scalar(category)) for category in known[:12])
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    raise DataError(
        f"In {row_names(rows, index)}, {name!r} is {_scalar(value)!r}, not one of the known categories: {shown}{more}."
    )


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


# ---- formulaic ----------------------------------------------------------------------------------------------------


def _formulaic_frame(prepared: Mapping[str, Any], names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    columns = {}
    for name in dict.fromkeys(names):
        values = prepared[name]
        # a narrow integer would overflow in x**2
        narrow = isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.dtype != np.int64
        columns[name] = values.astype(np.int64) if narrow else values
    return pd.DataFrame(columns, copy=False)


def _new_specs(texts: Sequence[str]) -> dict[str, Any]:
    from formulaic import Formula, ModelSpec

    specs = {}
    for text in texts:
        try:
            formula = Formula({"piece": split_context(text)[0]}, _ordering="degree").piece
        except Exception as error:  # formulaic raises several kinds; the user needs the piece and the cause
            raise FormulaError(f"The part {text!r} of the formula cannot be read: {_cause(error)}") from error
        specs[text] = ModelSpec(formula=formula, output="numpy", na_action="ignore")
    return specs


def _run_formulaic(specs: Mapping[str, Any], table: pd.DataFrame) -> tuple[dict[str, Matrix], dict[str, Any]]:
    """Materialise several pieces at once, each factor evaluated once."""
    from formulaic import ModelSpecs
    from formulaic.materializers import PandasMaterializer

    keys = {f"piece{position}": text for position, text in enumerate(specs)}
    together = ModelSpecs(**{key: specs[text] for key, text in keys.items()})
    try:
        with np.errstate(all="ignore"):
            result = PandasMaterializer(table, context=functions()).get_model_matrix(together)
    except Exception as error:  # whatever a user's expression raises
        texts = " or ".join(repr(text) for text in specs)
        raise DataError(f"The part {texts} of the formula cannot be computed: {_cause(error)}") from error
    matrices = {}
    learned = {}
    for key, text in keys.items():
        matrix = getattr(result, key)
        learned[text] = matrix.model_spec
        matrices[text] = np.asarray(getattr(matrix, "__wrapped__", matrix), dtype=np.float64)
    return matrices, learned


def rebuild_specs(
    learned: Mapping[str, Mapping[str, Any]], template: Mapping[str, Any], categories: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Formulaic's model specifications from what they learned.

    Given their state, the transforms learn nothing from the template row: it only shows formulaic the structure.
    """
    import pandas as pd
    from formulaic.parser.types import Factor

    if not learned:
        return {}
    columns = {
        name: pd.Categorical([value], categories=list(categories[name])) if name in categories else np.array([value])
        for name, value in template.items()
    }
    specs = _new_specs(list(learned))
    for text, state in learned.items():
        specs[text].transform_state.update(state["transforms"])
        for name, (kind, encoder) in state["encoders"].items():
            specs[text].encoder_state[name] = (Factor.Kind(kind), encoder)
    return _run_formulaic(specs, pd.DataFrame(columns))[1]


def _cause(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip().splitlines()
    return text[0].rstrip(".") + "." if text else type(error).__name__ + "."


def _check_seen(spec: Any, table: pd.DataFrame, index: pd.Index[Any]) -> None:
    """Categories made on the way, as by C(period), that are unknown: formulaic would give a row of zeros."""
    import pandas as pd

    for expression, (_, state) in spec.encoder_state.items():
        if "categories" not in state or not expression.startswith("C("):
            continue
        argument = ast.unparse(ast.parse(ticks(expression), mode="eval").body.args[0])  # type: ignore[attr-defined]
        values = _evaluate(argument, table)
        unseen = ~pd.Series(values).isin(state["categories"]).to_numpy()
        if unseen.any():
            rows = np.flatnonzero(unseen)
            first = pd.Series(values).iloc[rows[0]]
            _refuse(expression, first, rows, state["categories"], index)


def _evaluate(expression: str, table: pd.DataFrame) -> Any:
    columns = {"_tick_" + str(name).encode().hex(): table[name] for name in table.columns}
    return evaluate(expression, {**columns, **{str(name): table[name] for name in table.columns}})
