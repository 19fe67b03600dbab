"""Covariates of groups: their size, their order, and columns that have one value in each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.design.frame import column_kind, drop_missing, read_frame, row_names
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.levels.crossing import first_rows

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]

SIZE, ORDER = "size", "order"


@dataclass(frozen=True, eq=False)
class Covariate:
    """A covariate of the groups.

    name : as the user says it. column : its name in the data of a model that has it. values : (groups,) its values.
    contrasts, names : (groups, c) standardised numbers, or indicators of all categories but the first; their names.
    """

    name: str
    column: str
    values: NDArray[Any]
    contrasts: Array
    names: tuple[str, ...]

    @property
    def categories(self) -> bool:
        """Whether it is one of categories."""
        return self.names != (self.name,)


def covariates_of(design: Design, factor: int, by: Any, data: Any) -> tuple[Covariate, ...]:
    """The covariates asked for, or all that there are.

    Of a data frame given as `by` every column but the ids must be a covariate; of `data`, those that are one are taken.

    `by` : None, a name, names, a mapping from names to values by group, or a data frame. `data` : a data frame with the
    factor's columns and more; the design's own by default.
    """
    own = design.factors[factor]
    data = None if data is None else _table(data)
    if by is not None and hasattr(by, "columns"):
        data = _table(by)
        ids = {name for other in design.factors for name in other.variables}
        return tuple(_columns(design, factor, data, [str(name) for name in data.columns if name not in ids]))
    if isinstance(by, Mapping):
        return tuple(_covariate(str(name), str(name), _by_group(own, str(name), given)) for name, given in by.items())
    if by is None:
        found = [c for c in (_size(design, factor), _order(design, factor)) if c is not None]
        source = design.data if data is None else data
        return (*found, *_columns(design, factor, source, _group_columns(design, factor, source)))
    if not isinstance(by, str | Sequence | np.ndarray):
        raise ModelError(
            f"by={by!r} is not possible; give 'size', 'order', names of columns, a dict of values by group, or a data "
            "frame."
        )
    names = [by] if isinstance(by, str) else list(by)
    if not names:
        raise ModelError("by= names nothing; give 'size', 'order' or columns, or leave it out.")
    return tuple(_named(design, factor, str(name), design.data if data is None else data) for name in names)


def _table(data: Any) -> pandas.DataFrame:
    """All columns of any data frame or dict of columns."""
    if type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns"):
        table: pandas.DataFrame = data
        return table
    if isinstance(data, Mapping):
        return read_frame(data, list(data))
    if not hasattr(data, "columns"):
        raise DataError(f"data= takes a data frame or a dict of columns, not {type(data).__name__}.")
    names = data.column_names if hasattr(data, "column_names") else list(data.columns)
    return read_frame(data, names)


def _named(design: Design, factor: int, name: str, data: Any) -> Covariate:
    own = design.factors[factor]
    if name == SIZE:
        found = _size(design, factor)
        if found is None:
            raise ModelError(f"The groups of {own.name!r} all have {int(own.sizes[0])} rows: nothing can go with size.")
        return found
    if name == ORDER:
        found = _order(design, factor)
        assert found is not None
        return found
    known = [str(column) for column in data.columns]
    if name not in known:
        hint = did_you_mean(name, [SIZE, ORDER, *(c for c in known if c not in own.variables)])
        more = "" if data is not design.data else (
            " The fit keeps only the columns of its formula: give the data frame with data=, or the values with "
            f"by={{{name!r}: ...}}."
        )  # fmt: skip
        raise DataError(f"There is no covariate {name!r} of the groups of {own.name!r}. {hint}{more}")
    return _columns(design, factor, data, [name])[0]


def _size(design: Design, factor: int) -> Covariate | None:
    own = design.factors[factor]
    sizes = np.asarray(own.sizes)
    if (sizes == sizes[0]).all():
        return None
    return _covariate(SIZE, _new_name(design, f"log_size_{own.name}"), np.log(sizes))


def _order(design: Design, factor: int) -> Covariate | None:
    """Order of ids that are numbers or ordered categories, else of the first row."""
    own = design.factors[factor]
    place = np.arange(len(own.labels), dtype=float)
    if not (len(own.variables) == 1 and _has_order(design, own.variables[0])):
        place[np.argsort(first_rows(own.codes, len(own.labels)), kind="stable")] = np.arange(len(own.labels))
    return _covariate(ORDER, _new_name(design, f"order_{own.name}"), place + 1)


def _has_order(design: Design, name: str) -> bool:
    if design.levels[name].integer:
        return True
    return bool(getattr(getattr(design.data[name], "cat", None), "ordered", False))


def _new_name(design: Design, name: str) -> str:
    plain = "".join(char if char.isalnum() or char == "_" else "_" for char in name)
    while plain in design.data.columns:
        plain += "_"
    return plain


def _codes(design: Design, factor: int, data: Any) -> NDArray[np.int32]:
    """The group of each row of the data, -1 where an id is missing and for groups that the fit has not seen."""
    from partialpool.design.factors import match_combinations, match_ids

    own = design.factors[factor]
    frame = read_frame(data, own.variables)
    complete, rows, _ = drop_missing(frame)
    parts = [match_ids(complete[name], design.levels[name])[0] for name in own.variables]
    codes = np.full(len(frame), -1, dtype=np.int32)
    sizes = [len(design.levels[name].labels) for name in own.variables]
    codes[rows] = match_combinations(parts, own.members, sizes)
    return codes


def _group_columns(design: Design, factor: int, data: Any) -> list[str]:
    """Columns that have one value in each group, and several over groups; ids and the response are none."""
    from partialpool.spec.formula import variables_of

    ids = {name for other in design.factors for name in other.variables}
    left = design.terms.response
    mine = {name for text in (left.expression, left.se, left.weights, left.precision, left.trials) if text
            for name in variables_of(text)}  # fmt: skip
    names = [str(name) for name in data.columns if str(name) not in ids | mine]
    codes = design.factors[factor].codes if data is design.data else _codes(design, factor, data)
    groups, own = len(design.factors[factor].labels), codes[codes >= 0]
    out = []
    for name in names:
        column = data[name][codes >= 0]
        if column_kind(column) in ("time", "mixed"):
            continue
        labels = _numbered(column)
        known = labels >= 0
        first = np.full(groups, -1, dtype=np.int64)
        first[own[known]] = labels[known]
        varies = len(np.unique(first)) > 1 and (first >= 0).all()
        text = column_kind(column) != "number"
        constant = (first[own] == labels)[known].all()
        if varies and constant and (not text or len(np.unique(first)) <= max(2, groups // 4)):
            out.append(name)
    return out


def _numbered(column: pandas.Series[Any]) -> NDArray[np.int64]:
    import pandas as pd

    return np.asarray(pd.factorize(column)[0], dtype=np.int64)


def _columns(design: Design, factor: int, data: Any, names: Sequence[str]) -> list[Covariate]:
    """Columns of a data frame, one value a group."""
    if not names:
        return []
    own = design.factors[factor]
    if data is design.data:
        codes, frame = own.codes, data[list(names)]
    else:
        frame = read_frame(data, list(names))
        codes = _codes(design, factor, data)
    out = []
    for name in names:
        column = frame[name]
        labels = _numbered(column)
        inside = (codes >= 0) & (labels >= 0)
        first = np.full(len(own.labels), -1, dtype=np.int64)
        rows = np.flatnonzero(inside)
        first[codes[rows[::-1]]] = rows[::-1]
        if (first < 0).any():
            missing = own.labels[np.flatnonzero(first < 0)].tolist()
            raise DataError(f"{name!r} has no value for {_groups(own.name, missing)}; fill it in.")
        differs = rows[labels[rows] != labels[first[codes[rows]]]]
        if differs.size:
            at = int(differs[0])
            raise DataError(
                f"{name!r} varies within the groups of {own.name!r}, as in {own.labels[codes[at]]!r} between "
                f"{row_names([int(first[codes[at]]), at], frame.index)}: it is no covariate of groups. Whether effects "
                "go with its group means is what check_context() tells."
            )
        out.append(_covariate(name, name, column.iloc[first]))
    return out


def _by_group(own: Any, name: str, given: Any) -> Any:
    """Values in the order of the groups, from a mapping or series by label, or an array."""
    import pandas as pd

    if hasattr(given, "index") and hasattr(given, "to_dict"):
        given = given.to_dict()
    if isinstance(given, Mapping):
        place = {_label(key): value for key, value in given.items()}
        missing = [label for label in own.labels if label not in place]
        if missing:
            raise DataError(f"{name!r} has no value for {_groups(own.name, missing)}; give one for each group.")
        return pd.Series([place[label] for label in own.labels])
    values = pd.Series(list(given) if np.ndim(given) == 1 else [])
    if len(values) != len(own.labels):
        raise DataError(
            f"{name!r} has {len(values)} values, and {own.name!r} has {len(own.labels)} groups; give one for each, in "
            "the order of fit.groups(), or a dict by label."
        )
    return values


def _label(key: Any) -> str:
    from partialpool.posterior.groups import _label as text

    return text(key.item() if isinstance(key, np.generic) else key)


def _groups(factor: str, labels: Sequence[Any]) -> str:
    shown = ", ".join(str(label) for label in list(labels)[:5])
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"{'group' if len(labels) == 1 else 'groups'} {shown}{more} of {factor!r}"


def _covariate(name: str, column: str, values: Any) -> Covariate:
    import pandas as pd

    series = pd.Series(values).reset_index(drop=True)
    if series.isna().any():
        raise DataError(f"The covariate {name!r} has missing values; give one for each group.")
    if column_kind(series) == "number":
        numbers = series.to_numpy(dtype=float)
        if not np.isfinite(numbers).all():
            raise DataError(f"The covariate {name!r} has values that are not finite.")
        spread = numbers.std()
        if not spread > 1e-12 * max(float(np.abs(numbers).max()), 1e-300):
            raise DataError(f"The covariate {name!r} is the same in every group, so that nothing can go with it.")
        return Covariate(name, column, numbers, ((numbers - numbers.mean()) / spread)[:, None], (name,))
    return _categorical(name, column, series)


def _categorical(name: str, column: str, series: Any) -> Covariate:
    texts = series.astype(str)
    kinds = sorted(set(texts))
    if hasattr(series, "cat"):
        kinds = [str(value) for value in series.cat.categories if str(value) in set(texts)]
    if len(kinds) < 2:
        raise DataError(f"The covariate {name!r} is the same in every group, so that nothing can go with it.")
    if len(kinds) > len(texts) // 2:
        raise DataError(
            f"The covariate {name!r} has {len(kinds)} categories for {len(texts)} groups: too few groups of each."
        )
    contrasts = np.column_stack([(texts == kind).to_numpy(dtype=float) for kind in kinds[1:]])
    return Covariate(name, column, texts.to_numpy(dtype=object), contrasts, tuple(f"{name}[{k}]" for k in kinds[1:]))
