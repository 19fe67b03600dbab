"""Columns of numbers and of names, read from arrays, Series, lists or the columns of any data frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.frame import SHOWN, column_kind, read_frame
from partialpool.errors import DataError, ModelError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Column:
    """Numbers (n,) with nan for missing ones; the column's name or ""; what they are; the pandas index they had."""

    values: Array
    name: str
    role: str
    index: Any = None
    scalar: bool = False

    @property
    def shown(self) -> str:
        """How messages and notes call it."""
        return f"{self.name!r}" if self.name else self.role


@dataclass(frozen=True, eq=False)
class Where:
    """Names units in messages."""

    names: NDArray[Any]
    named: bool

    def __call__(self, bad: Flags) -> str:
        found = self.names[np.flatnonzero(bad)[: SHOWN + 1]].tolist()
        count = int(bad.sum())
        shown = [repr(name) if self.named else str(name) for name in found[:SHOWN]]
        counted = "" if self.named else " (counted from 0)"
        if count == 1:
            return f"unit {shown[0]}{counted}"
        if count > SHOWN:
            return f"units {', '.join(shown)} and {count - SHOWN} more{counted}"
        return f"units {', '.join(shown[:-1])} and {shown[-1]}{counted}"


def read_table(data: Any, parts: Sequence[Any], others: Sequence[str] = ()) -> pd.DataFrame | None:
    """The columns of `data` that the arguments (those that are text) name, and the others."""
    columns = [part for part in parts if isinstance(part, str)]
    if data is None:
        if columns:
            raise ModelError(f"{columns[0]!r} names a column, but no data are given; add data=..., or give an array.")
        return None
    try:
        return read_frame(data, list(dict.fromkeys([*columns, *others])))
    except DataError as error:
        # there is no formula here that could name a column
        raise DataError(str(error).replace("The formula names", "An argument names", 1)) from None


def read_column(given: Any, role: str, table: pd.DataFrame | None) -> Column:
    """An argument as numbers: a column of the table if it is text, else an array, a list or one number."""
    if isinstance(given, str):
        assert table is not None  # read_table refused it otherwise
        return Column(floats(table[given], f"The column {given!r}"), given, role, table.index)
    values = floats(given, f"The argument for {role}")
    index = table.index if table is not None else _pandas_index(given)
    return Column(values, "", role, index, np.ndim(given) == 0)


def _pandas_index(given: Any) -> Any:
    return given.index if type(given).__module__.startswith("pandas") and hasattr(given, "dtype") else None


def floats(given: Any, what: str) -> Array:
    """Numbers (n,), nan where missing; text, dates and tables are refused."""
    if np.ma.isMaskedArray(given):
        given = np.ma.asarray(given, dtype=np.float64).filled(np.nan)
    module = type(given).__module__.partition(".")[0]
    if module in ("polars", "pyarrow"):
        given = given.to_pandas()
    if module != "pandas" and not hasattr(given, "dtype"):
        try:
            given = np.atleast_1d(np.asarray(given))
        except ValueError:
            raise DataError(f"{what} has rows of different lengths; give one number for every unit.") from None
    dtype = getattr(given, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "iufb":
        values = np.atleast_1d(np.asarray(given, dtype=np.float64))
        if values.ndim == 2 and 1 in values.shape:
            values = values.ravel()
        if values.ndim == 1:
            return values
    if np.ndim(given) != 1:
        raise DataError(f"{what} has shape {np.shape(given)}; give one number for every unit.")
    return _parsed(given, what)


def _parsed(given: Any, what: str) -> Array:
    """Numbers of an array of objects or of a kind of its own (nullable, Arrow-backed)."""
    import pandas as pd

    column = pd.Series(given)
    if bool(column.isna().all()):
        return np.full(len(column), np.nan)
    if column_kind(column) != "number":
        bad = next(value for value in column.dropna() if not isinstance(value, int | float))
        raise DataError(f"{what} is not numeric: it holds {bad!r}; turn it into numbers, as in pandas.to_numeric(...).")
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))


def unit_names(units: Any, table: pd.DataFrame | None, index: Any, n: int) -> tuple[NDArray[Any] | None, Flags | None]:
    """The names (n,), None where units have none, and which of them are missing."""
    if units is None:
        labels = _index_names(index)
        return labels, None
    given: Any = table[units] if isinstance(units, str) and table is not None else units
    if type(given).__module__.partition(".")[0] in ("polars", "pyarrow"):
        given = given.to_pandas()
    labels = np.atleast_1d(given.to_numpy() if hasattr(given, "to_numpy") else np.asarray(given))
    if labels.ndim != 1 or len(labels) != n:
        raise DataError(f"units has {len(labels)} names for {n} values; give one name for every unit.")
    if labels.dtype.kind in "iuUS":
        return labels, None
    import pandas as pd

    gaps = np.asarray(pd.isna(labels))
    if labels.dtype.kind == "f" and not gaps.any() and bool((labels == np.floor(labels)).all()):
        labels = labels.astype(np.int64)
    return labels, gaps if gaps.any() else None


def _index_names(index: Any) -> NDArray[Any] | None:
    """The names that a pandas index holds, None if it only numbers the rows."""
    if index is None:
        return None
    if index.nlevels > 1:
        return np.array([":".join(map(str, key)) for key in index], dtype=object)
    labels = np.asarray(index.to_numpy())
    if index.name is not None or labels.dtype.kind not in "iu":
        return labels
    plain = type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1
    if plain or np.array_equal(labels, np.arange(len(labels))) or not index.is_unique:
        return None
    return labels


def distinct(names: NDArray[Any]) -> bool:
    """Whether no name occurs twice."""
    if names.dtype.kind in "iu":
        if len(names) < 2 or bool((names[1:] > names[:-1]).all()):
            return True
        ordered = np.sort(names)
        return bool((ordered[1:] != ordered[:-1]).all())
    try:
        return len(set(names.tolist())) == len(names)
    except TypeError:
        raise DataError("The names of the units are lists or tables; give one text or number for every unit.") from None
