"""Any data frame, file or table of columns -> a pandas data frame of the columns that a formula names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # rows named in a message before "and k more"
FILES = ".csv, .tsv or .parquet"


def read_frame(data: Any, columns: Sequence[str], *, optional: Sequence[str] = (), new: bool = False) -> pd.DataFrame:
    """The named columns of `data` as a pandas data frame, with its index kept where it has one.

    Parameters
    ----------
    data : pandas, polars, pyarrow or any frame that narwhals knows; a dict of arrays; a list of records; or the path
        of a CSV or Parquet file, of which only the named columns are read.
    columns : the columns needed; one that is missing is an error that offers the nearest name.
    optional : columns taken where they are there.
    new : whether these are new rows for a model that is already built (for the message).

    Raises
    ------
    DataError
        If a column or the file is not there, or the data are of a kind that cannot be read.

    Examples
    --------
    >>> read_frame({"x": [1, 2], "z": [3, 4]}, ["z"])["z"].tolist()
    [3, 4]
    """
    if isinstance(data, str | os.PathLike):
        return _read_file(Path(data), columns, optional, new)
    module = type(data).__module__.partition(".")[0]
    if module == "pandas" and hasattr(data, "columns"):
        available = data.columns
        if not available.is_unique:
            twice = [name for name in dict.fromkeys(columns) if list(available).count(name) > 1]
            if twice:
                raise DataError(f"The data have more than one column named {twice[0]!r}; rename all but one.")
        wanted = _wanted(columns, optional, set(available), new, data.index.names)
        frame: pd.DataFrame = data[wanted]
        return frame
    if isinstance(data, Mapping):
        return _from_mapping(data, columns, optional, new)
    if isinstance(data, Sequence | np.ndarray):
        return _from_records(data, columns, optional, new)
    return _from_other(data, columns, optional, new)


def drop_missing(frame: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.int64], dict[str, int]]:
    """Rows without missing values: the frame of them, their positions, and the count of missing values by column."""
    missing = None
    dropped: dict[str, int] = {}
    for name in frame.columns:
        gaps = missing_values(frame[name])
        if gaps is not None:
            dropped[str(name)] = int(gaps.sum())
            missing = gaps if missing is None else missing | gaps
    if missing is None:
        return frame, np.arange(len(frame), dtype=np.int64), dropped
    rows = np.flatnonzero(~missing).astype(np.int64)
    return frame.iloc[rows], rows, dropped


def missing_values(column: pd.Series[Any]) -> NDArray[np.bool_] | None:
    """Which values are missing, or None where none is (decided without an array of rows where that is possible)."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype):
        if dtype.kind in "iub":
            return None
        if dtype.kind == "f":
            with np.errstate(all="ignore"):
                if not np.isnan(np.sum(column.to_numpy())):
                    return None
    gaps = column.isna().to_numpy(dtype=bool)
    return gaps if gaps.any() else None


def numeric_values(column: pd.Series[Any], name: str, what: str) -> NDArray[Any]:
    """A column without missing values as a numpy array of numbers or booleans; text and dates are refused."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "iubf":
        return column.to_numpy()
    kind = column_kind(column)
    if kind == "number":
        values = column.to_numpy(dtype=bool) if str(dtype).startswith("bool") else column.to_numpy(dtype=np.float64)
        return np.asarray(values)
    if kind == "time":
        raise DataError(
            f"{what} {name!r} holds dates or times; turn it into numbers first, "
            f"as in (data[{name!r}] - data[{name!r}].min()).dt.days."
        )
    first = column.iloc[0] if len(column) else ""
    raise DataError(
        f"{what} {name!r} is not numeric: its first value is {first!r}; "
        f"turn it into numbers, as in pandas.to_numeric(data[{name!r}])."
    )


def column_kind(column: pd.Series[Any]) -> str:
    """What a column holds: number, category (its own), text, time or mixed."""
    import pandas as pd

    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(dtype) or (
        pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
    ):
        return "number"
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        return "time"
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    if inferred in ("integer", "floating", "decimal", "boolean", "mixed-integer-float"):
        return "number"
    if inferred in ("datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period"):
        return "time"
    return "text" if inferred in ("string", "empty") else "mixed"


def check_finite(values: NDArray[Any], name: str, index: pd.Index[Any]) -> None:
    """Refuse infinite or undefined values, naming the rows."""
    if values.dtype.kind != "f" or len(values) == 0:
        return
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(values)):
            return
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad) == 0:
        return
    kind = "undefined" if np.isnan(values[bad]).all() else "infinite"
    where = f" in {row_names(bad, index)}"
    cause = (
        f"Check the values that {name} is computed from (the log of 0 or of a negative number, a division by 0)"
        if not name.isidentifier()
        else "Correct or remove these rows"
    )
    raise DataError(f"{name!r} is {kind}{where}. {cause}.")


def row_names(positions: Iterable[int] | NDArray[Any], index: pd.Index[Any]) -> str:
    """Rows in words, by their labels in the data: ``rows 3, 7 and 12``."""
    found = np.asarray(positions if isinstance(positions, np.ndarray) else list(positions))
    labels = [_row_label(index[int(position)]) for position in found[:SHOWN]]
    if len(found) == 1:
        return f"row {labels[0]}"
    if len(found) > SHOWN:
        return f"rows {', '.join(labels)} and {len(found) - SHOWN} more"
    return f"rows {', '.join(labels[:-1])} and {labels[-1]}"


def _row_label(label: Any) -> str:
    """A row's label as the user wrote it, a tuple where the index has several columns."""
    if not isinstance(label, tuple):
        return str(label)
    return str(tuple(part.item() if isinstance(part, np.generic) else part for part in label))


def _wanted(
    columns: Sequence[str],
    optional: Sequence[str],
    available: Iterable[Any],
    new: bool,
    index_names: Iterable[Any] = (),
) -> list[str]:
    """The columns to read; an unknown one is an error."""
    names = set(available)
    for column in columns:
        if column not in names:
            if column in set(index_names):
                raise DataError(f"{column!r} is in the index of the data, not a column; use data.reset_index().")
            if new:
                raise DataError(
                    f"The new data lack the column {column!r}. {did_you_mean(column, sorted(map(str, names)))}"
                )
            raise DataError(
                f"The formula names {column!r}, which is not a column of the data. "
                f"{did_you_mean(column, sorted(map(str, names)))}"
            )
    return list(dict.fromkeys([*columns, *[column for column in optional if column in names]]))


def _from_mapping(data: Mapping[Any, Any], columns: Sequence[str], optional: Sequence[str], new: bool) -> pd.DataFrame:
    import pandas as pd

    wanted = _wanted(columns, optional, data.keys(), new)
    arrays = {name: _one_dimension(data[name], name) for name in wanted}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(f"The columns of the data differ in length: {counts}. Give every column one value per row.")
    if not wanted:
        first = next(iter(data.values()), ())
        return pd.DataFrame(index=range(1 if np.ndim(first) == 0 else len(first)))
    for name, values in arrays.items():
        if type(values).__module__.startswith("pandas") and hasattr(values, "index"):
            arrays[name] = values.array
    return pd.DataFrame(arrays)


def _one_dimension(values: Any, name: str) -> Any:
    if isinstance(values, str) or np.ndim(values) == 0:
        return [values]
    if isinstance(values, np.ndarray) and values.ndim == 2 and 1 in values.shape:
        return values.ravel()
    if isinstance(values, np.ndarray) and values.ndim > 1:
        raise DataError(f"The column {name!r} has shape {values.shape}; give one value per row.")
    return values.to_pandas() if type(values).__module__.partition(".")[0] in ("polars", "pyarrow") else values


def _from_records(data: Any, columns: Sequence[str], optional: Sequence[str], new: bool) -> pd.DataFrame:
    import pandas as pd

    if len(data) == 0:
        raise DataError("The data are empty: there are no rows.")
    if isinstance(data, np.ndarray) and data.dtype.names:
        frame = pd.DataFrame({name: data[name] for name in data.dtype.names})
    elif isinstance(data, Sequence) and all(isinstance(record, Mapping) for record in data):
        frame = pd.DataFrame.from_records(list(data))
    else:
        raise DataError(_unreadable(data))
    return frame[_wanted(columns, optional, frame.columns, new)]


def _from_other(data: Any, columns: Sequence[str], optional: Sequence[str], new: bool) -> pd.DataFrame:
    import narwhals as nw

    try:
        table: Any = nw.from_native(data)
    except TypeError:
        raise DataError(_unreadable(data)) from None
    names = table.collect_schema().names()
    wanted = _wanted(columns, optional, names, new)
    if not wanted:
        wanted = names[:1]
    table = table.select(wanted)
    if isinstance(table, nw.LazyFrame):
        table = table.collect()
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _unreadable(data: Any) -> str:
    return (
        f"Data of type {type(data).__module__}.{type(data).__qualname__} cannot be read; give a data frame "
        f"(pandas, polars, pyarrow), a dict of arrays, a list of records, or the path of a {FILES} file."
    )


def _read_file(path: Path, columns: Sequence[str], optional: Sequence[str], new: bool) -> pd.DataFrame:
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(
            path.name, [name for name in siblings if name.endswith((".csv", ".tsv", ".parquet", ".gz"))]
        )
        hint = f" {near}" if near.startswith("Did") else f" Check the path; the current folder is {os.getcwd()!r}."
        raise DataError(f"There is no file {str(path)!r}.{hint}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder; give the path of a {FILES} file.")
    try:
        if suffixes[-1:] in ([".parquet"], [".pq"]):
            return _read_parquet(path, columns, optional, new)
        if ".csv" in suffixes or ".tsv" in suffixes or ".txt" in suffixes:
            return _read_csv(path, columns, optional, new, "\t" if ".tsv" in suffixes else ",")
    except DataError:
        raise
    except Exception as error:  # a reader's own exceptions differ by format; the user needs the file and the cause
        raise DataError(f"The file {str(path)!r} cannot be read: {error}") from error
    raise DataError(f"The file {str(path)!r} is of a kind that cannot be read; give a {FILES} file.")


def _read_csv(path: Path, columns: Sequence[str], optional: Sequence[str], new: bool, separator: str) -> pd.DataFrame:
    import pandas as pd

    if path.stat().st_size == 0:
        raise DataError(f"The file {str(path)!r} is empty.")
    header = pd.read_csv(path, sep=separator, nrows=0).columns
    wanted = _wanted(columns, optional, header, new)
    return pd.read_csv(path, sep=separator, usecols=wanted or [header[0]], low_memory=False)


def _read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str], new: bool) -> pd.DataFrame:
    import pyarrow.parquet as parquet

    names = parquet.read_schema(path).names
    wanted = _wanted(columns, optional, names, new)
    table = parquet.read_table(path, columns=wanted or names[:1])
    return table.to_pandas(ignore_metadata=True)  # type: ignore[no-any-return]
