"""Aggregate a table from any level to a coarser one, along the maps of a hierarchy.

With maps m: f -> g and k: g -> h the coarse-graining of a column is a sum, or mean, over the fibres of the map:
(S y)(b) = sum of y(a) over all a with m(a) = b. Sums compose, S_k S_m = S_(k m), so does any chain of steps. Means
compose where each step weighs a group by the rows behind it, mean = S(w y) / S(w); with equal weights the mean of group
means is another number, that in which every group counts the same. Medians do not compose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.factors import Codes
from partialpool.design.frame import column_kind, missing_values, numeric_values, read_frame, row_names
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.levels.columns import constant_within
from partialpool.levels.relations import Order
from partialpool.levels.rungs import Level

if TYPE_CHECKING:
    import pandas


How = str | Callable[[Any], Any]
WAYS = ("mean", "sum", "median", "first")
#: The column of the answer that counts the rows behind a group.
COUNT = "n"


def coarsen(
    h: Order, data: Any, to: str, how: How | Mapping[str, How] = "mean", weights: str | None = None
) -> pandas.DataFrame:
    """A row for each group of a level, from rows of the data or from a table of a finer level.

    The table's level is read from its columns: that of the level itself, or of a finer one whose map is followed. Rows
    without an id are left out, as in the hierarchy. Columns of numbers (and true or false) are aggregated, missing
    values left out; other columns stay where each group has one value, and are left out where not.

    Parameters
    ----------
    h : Order
    data, to, how, weights
        See `Hierarchy.coarsen`.

    Returns
    -------
    pandas.DataFrame
        A row per group that occurs: its ids, those of coarser levels, `n`, and the values.

    Raises
    ------
    DataError
        If no column leads to the level, an id is unknown, or two columns lead to different groups.
    ModelError
        If `how` or `weights` cannot be read.

    Examples
    --------
    >>> import partialpool as pp
    >>> rows = {"site": list("AAABB"), "plot": [1, 1, 2, 3, 3], "yield": [1.0, 3.0, 8.0, 5.0, 7.0]}
    >>> h = pp.hierarchy(rows, ["plot", "site"])
    >>> plots = h.coarsen(rows, to="plot")
    >>> plots.to_dict("list")
    {'plot': [1, 2, 3], 'site': ['A', 'A', 'B'], 'n': [2, 1, 2], 'yield': [2.0, 8.0, 6.0]}
    >>> h.coarsen(plots, to="site")["yield"].tolist(), h.coarsen(plots, to="site", weights="n")["yield"].tolist()
    ([5.0, 6.0], [4.0, 6.0])
    """
    import pandas

    frame = read_frame(data, _all_columns(data))
    target = h.position(to)
    _check_ways(how, weights, frame)
    groups = _groups(h, frame, target)
    kept = np.flatnonzero(groups >= 0)
    if not len(kept):
        raise DataError(f"No row of the data has an id that leads to {to!r}.")
    frame, groups = frame.iloc[kept], groups[kept]
    found, inverse = np.unique(groups, return_inverse=True)
    codes: Codes = inverse.astype(np.int32)
    table = _ids(h, target, found)
    table[COUNT] = _behind(frame, codes)
    for name, way in _ways(h, frame, how, weights, table).items():
        value = _aggregate(frame[name], name, codes, len(found), way, _weights(frame, weights))
        if value is not None:
            table[name] = value
    return pandas.DataFrame(table)


def _all_columns(data: Any) -> list[str]:
    """The names of every column, or of those of a file's head."""
    import os

    if isinstance(data, str | os.PathLike):
        raise ModelError("coarsen() takes a data frame or a dict of columns; read the file first.")
    columns = getattr(data, "columns", None)
    if columns is None:
        columns = (
            data.keys() if isinstance(data, Mapping) else data[0].keys() if isinstance(data, list) and data else []
        )
    return [str(name) for name in columns]


# -- ids ----------------------------------------------------------------------------------------------------------


def _groups(h: Order, frame: pandas.DataFrame, target: int) -> Codes:
    """The group of the wanted level that each row belongs to, -1 where an id is missing."""
    levels = h.levels
    there = [place for place, own in enumerate(levels) if set(own.variables) <= set(frame.columns)]
    below = [place for place in there if h.below[place, target]]
    if not below:
        _no_way(h, frame, target, there)
    below.sort(key=lambda place: (place != target, -levels[place].groups))
    groups: Codes | None = None
    for place in below:
        codes = _match(levels[place], frame)
        own = np.where(codes >= 0, h.parent_codes(place, target)[codes], -1).astype(np.int32)
        if groups is None:
            groups, first = own, place
            continue
        torn = np.flatnonzero((groups != own) & (groups >= 0) & (own >= 0))
        if len(torn):
            raise DataError(
                f"In {row_names(torn, frame.index)}, {levels[first].expression!r} and {levels[place].expression!r} "
                f"lead to different groups of {levels[target].name!r}, unlike in the hierarchy's data. Correct the ids."
            )
        groups = np.where(groups >= 0, groups, own).astype(np.int32)
    assert groups is not None
    return groups


def _no_way(h: Order, frame: pandas.DataFrame, target: int, there: list[int]) -> None:
    levels = h.levels
    name = levels[target].name
    for place in there:
        relation = h.relation(place, target)
        if relation.finer == place and relation.kind == "partly nested":
            raise DataError(
                f"{levels[place].name!r} is only partly nested in {name!r}: {h.n_rows - relation.rows_agree:,} rows "
                f"break the map, see .broken. Correct them, or give a table that has the column {name!r} itself."
            )
    finer = [own.expression for place, own in enumerate(levels) if h.below[place, target]]
    has = ", ".join(repr(levels[place].expression) for place in there) or "no level"
    raise DataError(
        f"The data lead to no group of {name!r}: they need its column, or those of a finer level ({', '.join(finer)}); "
        f"they have {has}."
    )


def _match(level: Level, frame: pandas.DataFrame) -> Codes:
    """Codes of a level's groups in a table; ids match by their text."""
    import pandas

    missing = np.zeros(len(frame), dtype=bool)
    parts = []
    for variable in level.variables:
        gaps = missing_values(frame[variable])
        missing |= gaps if gaps is not None else False
        parts.append(frame[variable])
    rows = np.flatnonzero(~missing)
    texts = [_texts(part.iloc[rows]) for part in parts]
    known = pandas.MultiIndex.from_arrays([_plain(ids) for ids in level.ids])
    wanted = pandas.MultiIndex.from_arrays(texts)
    codes = np.full(len(frame), -1, dtype=np.int32)
    codes[rows] = known.get_indexer(wanted)
    unknown = rows[codes[rows] < 0]
    if len(unknown):
        shown = ":".join(str(part.iloc[int(unknown[0])]) for part in parts)
        raise DataError(
            f"{level.expression} {shown!r} in {row_names(unknown[:1], frame.index)} is not in the hierarchy"
            + (f", and {len(unknown) - 1:,} more rows have such ids" if len(unknown) > 1 else "")
            + ". Read the hierarchy from data that hold all groups, or take these rows out."
        )
    return codes


def _texts(column: pandas.Series[Any]) -> NDArray[Any]:
    """Ids of rows as text, 1.0 as 1: those with a missing neighbour are read as decimals."""
    import pandas

    codes, uniques = pandas.factorize(column)
    return _plain(uniques)[codes] if len(uniques) else np.empty(0, dtype=object)


def _plain(values: Any) -> NDArray[Any]:
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    out = np.empty(len(listed), dtype=object)
    out[:] = [str(int(x)) if isinstance(x, float) and x.is_integer() else str(x) for x in listed]
    return out


def _ids(h: Order, target: int, found: NDArray[Any]) -> dict[str, Any]:
    """The columns that name the groups of the answer, and the coarser groups that they lie in."""
    levels = h.levels
    table: dict[str, Any] = {}
    coarser = [place for place in range(len(levels)) if h.below[target, place] and place != target]
    for place in (target, *sorted(coarser, key=lambda own: -levels[own].groups)):
        parent = h.parent_codes(target, place)[found]
        for variable, ids in zip(levels[place].variables, levels[place].ids, strict=True):
            table.setdefault(variable, ids[parent])
    return table


# -- values -------------------------------------------------------------------------------------------------------


def _check_ways(how: How | Mapping[str, How], weights: str | None, frame: pandas.DataFrame) -> None:
    columns = [str(name) for name in frame.columns]
    asked = dict(how) if isinstance(how, Mapping) else {"": how}
    for name, way in asked.items():
        if name and name not in columns:
            raise DataError(
                f"how= names {name!r}, which is not a column of the data. {did_you_mean(str(name), columns)}"
            )
        if not callable(way) and way not in WAYS:
            raise ModelError(f"how={way!r} is not known; give one of {', '.join(WAYS)}, or a function of an array.")
        if weights is not None and way not in ("mean", "sum"):
            raise ModelError(f"weights= has no meaning for how={way!r}; it weighs means and sums.")
    if weights is not None and weights not in columns:
        raise DataError(f"weights= names {weights!r}, which is not a column. {did_you_mean(str(weights), columns)}")


def _behind(frame: pandas.DataFrame, codes: Codes) -> NDArray[np.int64]:
    """Rows of the data behind each group: those of the table, or the sum of what an earlier step counted."""
    if COUNT in frame.columns and column_kind(frame[COUNT]) == "number" and missing_values(frame[COUNT]) is None:
        counts = frame[COUNT].to_numpy(dtype=np.float64)
        if (counts >= 1).all() and (counts == np.floor(counts)).all():
            return np.bincount(codes, weights=counts).astype(np.int64)
    return np.bincount(codes).astype(np.int64)


def _weights(frame: pandas.DataFrame, weights: str | None) -> NDArray[np.float64] | None:
    if weights is None:
        return None
    if missing_values(frame[weights]) is not None:
        raise DataError(f"weights= has missing values in {weights!r}; fill them in.")
    values = numeric_values(frame[weights], weights, "the weights").astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise DataError(f"weights= are negative or infinite in {row_names(bad, frame.index)} of {weights!r}.")
    return values


def _ways(
    h: Order, frame: pandas.DataFrame, how: How | Mapping[str, How], weights: str | None, table: Mapping[str, Any]
) -> dict[str, How | None]:
    """How each column is aggregated; None: it stays where it is constant within groups."""
    ids = {variable for level in h.levels for variable in level.variables} | set(table)
    if isinstance(how, Mapping):
        return {name: way for name, way in how.items() if name not in table}
    others = [str(name) for name in frame.columns if name not in ids and name != weights]
    return {name: how if column_kind(frame[name]) == "number" else None for name in others}


def _aggregate(
    column: pandas.Series[Any], name: str, codes: Codes, groups: int, way: How | None, weights: Any
) -> NDArray[Any] | None:
    import pandas

    if way is None:
        return _constant(column, codes, groups)
    if way == "first":
        return column.groupby(codes).first().to_numpy()
    if column_kind(column) != "number":
        raise DataError(f"how={way!r} needs numbers, and {name!r} holds {column_kind(column)}; use 'first' for it.")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if callable(way):
        order = np.argsort(codes, kind="stable")
        pieces = np.split(values[order], np.cumsum(np.bincount(codes, minlength=groups))[:-1])
        return np.array([_number(way(piece), name) for piece in pieces])
    if way == "median":
        return pandas.Series(values).groupby(codes).median().to_numpy()
    known = ~np.isnan(values)
    own = known.astype(np.float64) if weights is None else np.where(known, weights, 0.0)
    total = np.bincount(codes, weights=own * np.where(known, values, 0.0), minlength=groups)
    if way == "sum":
        whole = weights is None and getattr(column.dtype, "kind", "") in "iub"
        return total.astype(np.int64) if whole else total
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.bincount(codes, weights=own, minlength=groups))


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ModelError(f"how= for {name!r} gives {value!r}; a function of an array has to give one number.") from None


def _constant(column: pandas.Series[Any], codes: Codes, groups: int) -> NDArray[Any] | None:
    """The value of each group, where each has one."""
    import pandas

    own, _ = pandas.factorize(column)
    if not constant_within(np.asarray(own), codes):
        return None
    first = np.empty(groups, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return np.asarray(column.iloc[first].to_numpy())
