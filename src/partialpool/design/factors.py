"""Grouping factors: ids of any kind -> small integer codes, and the same again for new rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.frame import column_kind, row_names
from partialpool.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Codes = NDArray[np.int32]
Labels = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Levels:
    """The distinct ids of one column, in order, as text. `integer`: they are written as whole numbers."""

    name: str
    labels: Labels
    integer: bool


def encode_ids(column: pd.Series[Any], name: str) -> tuple[Codes, Levels]:
    """Codes of a column of group ids without missing values, and its ids.

    Ids are ordered as a categorical orders them, numbers ascending, text sorted; unused categories are left out.
    """
    codes, labels, integer = _encode(column, name)
    order = _order(labels, column, integer)
    if order is not None:
        place = np.empty(len(order), dtype=np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        codes, labels = place[codes], labels[order]
    return codes, Levels(name, labels, integer)


def match_ids(column: pd.Series[Any], levels: Levels) -> tuple[Codes, Labels]:
    """Codes of new rows (-1: an id that the fit has not seen) and their ids as text. Ids match by their text."""
    codes, labels, _ = _encode(column, levels.name)
    if levels.integer and labels.dtype == object:
        labels = _whole(labels)
    known = {label: code for code, label in enumerate(levels.labels)}
    lookup = np.array([known.get(label, -1) for label in labels], dtype=np.int32)
    return lookup[codes] if len(labels) else codes, labels[codes] if len(labels) else labels


def combine(codes: Sequence[Codes], levels: Sequence[Levels]) -> tuple[Codes, NDArray[np.int32]]:
    """Codes of the combinations that occur, in order of their parts, and the parts of each (J, k)."""
    if len(codes) == 1:
        return codes[0], np.arange(len(levels[0].labels), dtype=np.int32)[:, None]
    combined, sizes = codes[0].astype(np.int64), [len(level.labels) for level in levels]
    for part, size in zip(codes[1:], sizes[1:], strict=True):
        combined = combined * size + part
    dense, keys = _from_integers(combined)
    members = np.empty((len(keys), len(sizes)), dtype=np.int32)
    for position in range(len(sizes) - 1, -1, -1):
        keys, members[:, position] = np.divmod(keys, sizes[position])
    return dense, members


def match_combinations(codes: Sequence[Codes], members: NDArray[np.int32], sizes: Sequence[int]) -> Codes:
    """Codes of combinations in new rows, -1 where the fit has not seen one."""
    if len(codes) == 1:
        return codes[0]
    combined, keys = codes[0].astype(np.int64), members[:, 0].astype(np.int64)
    unseen = codes[0] < 0
    for position, size in enumerate(sizes[1:], start=1):
        combined = combined * size + codes[position]
        keys = keys * size + members[:, position]
        unseen |= codes[position] < 0
    place = np.minimum(np.searchsorted(keys, combined), len(keys) - 1)
    unseen |= keys[place] != combined
    return np.where(unseen, -1, place).astype(np.int32)


def join_labels(parts: Sequence[Labels]) -> Labels:
    """``batch:cask`` labels of combinations."""
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + ":" + part
    return joined


def _encode(column: pd.Series[Any], name: str) -> tuple[Codes, Labels, bool]:
    """Codes and labels of distinct ids, and whether they are whole numbers."""
    import pandas as pd

    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _from_categorical(column)
    if column_kind(column) == "number":
        if str(dtype).startswith("bool"):
            codes, values = _from_integers(column.to_numpy(dtype=bool).astype(np.int64))
            return codes, np.array(["False", "True"], dtype=object)[values], False
        codes, values = _from_integers(_integers(column, name))
        return codes, texts(values), True
    found, uniques = pd.factorize(column)
    labels = texts(uniques)
    if len(set(labels)) < len(labels):  # 1 and "1" in one column: ids are told apart by their text
        place, labels = pd.factorize(labels)
        found = place[found]
    return found.astype(np.int32), labels, False


def _integers(column: pd.Series[Any], name: str) -> NDArray[np.int64]:
    values = column.to_numpy()
    if values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    numbers = column.to_numpy(dtype=np.float64)
    whole = np.isfinite(numbers) & (np.floor(numbers) == numbers) & (np.abs(numbers) < 2.0**53)
    if not whole.all():
        position = int(np.flatnonzero(~whole)[0])
        raise DataError(
            f"The grouping factor {name!r} holds decimals, such as {float(numbers[position])!r} in "
            f"{row_names([position], column.index)}; ids are whole numbers or text. If it is a predictor, put it "
            f"before the bar; if it is an id, turn it into text: data[{name!r}] = data[{name!r}].astype(str)."
        )
    return numbers.astype(np.int64)


def _from_integers(values: NDArray[np.int64]) -> tuple[Codes, NDArray[np.int64]]:
    """Codes and distinct values ascending; by a direct table where the range is not much wider than the rows."""
    import pandas as pd

    if len(values) == 0:
        return np.empty(0, dtype=np.int32), values
    low, high = int(values.min()), int(values.max())
    if high - low < max(4 * len(values), 1 << 16):
        shifted = values - low
        seen = np.zeros(high - low + 1, dtype=bool)
        seen[shifted] = True
        place = np.cumsum(seen, dtype=np.int32) - np.int32(1)
        return place[shifted], np.flatnonzero(seen).astype(np.int64) + low
    codes, uniques = pd.factorize(values, sort=True)
    return codes.astype(np.int32), np.asarray(uniques, dtype=np.int64)


def _from_categorical(column: pd.Series[Any]) -> tuple[Codes, Labels, bool]:
    codes = np.asarray(column.cat.codes)
    categories = column.cat.categories
    used = np.zeros(len(categories), dtype=bool)
    used[codes] = True
    place = np.cumsum(used, dtype=np.int32) - np.int32(1)
    kept = categories[used]
    integer = kept.dtype.kind in "iu" if isinstance(kept.dtype, np.dtype) else False
    return place[codes], texts(_whole_categories(kept)), integer


def _whole_categories(categories: Any) -> Any:
    """Categories 1.0, 2.0 (ids that once had a missing value) read 1, 2."""
    values = np.asarray(categories)
    if values.dtype.kind == "f" and np.isfinite(values).all() and (np.floor(values) == values).all():
        return values.astype(np.int64)
    return categories


def texts(values: Any) -> Labels:
    """Distinct ids as an object array of text."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    out = np.empty(len(listed), dtype=object)
    out[:] = [value if type(value) is str else str(value) for value in listed]
    return out


def _whole(labels: Labels) -> Labels:
    """Text of whole numbers without a trailing .0, so that ids read from another file still match."""
    out = labels.copy()
    out[:] = [label[:-2] if label.endswith(".0") else label for label in labels]
    return out


def _order(labels: Labels, column: pd.Series[Any], integer: bool) -> NDArray[np.int64] | None:
    import pandas as pd

    if (
        integer
        or isinstance(column.dtype, pd.CategoricalDtype)
        or len(labels) < 2
        or str(column.dtype).startswith("bool")
    ):
        return None
    return np.array(sorted(range(len(labels)), key=labels.__getitem__), dtype=np.int64)
