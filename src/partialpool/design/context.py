r"""The group means behind ``within(x|g)`` and ``between(x|g)``: learned from the rows of a fit, replayed on new ones.

The mean of a group is that of its rows, weighted where the model has ``weights()`` (a row of weight 2 is two rows). A
new row of a group that the fit knows uses the mean learned then; a group that it does not know has the mean of its new
rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.expressions import row_values
from partialpool.design.factors import Codes, Levels, combine, encode_ids, join_labels, match_combinations, match_ids
from partialpool.design.frame import check_finite
from partialpool.errors import DataError
from partialpool.spec.context import ContextColumn

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

#: Spread, relative to the values themselves, that is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """The means (J,) of an expression by group; `members` (J, k) are the groups' parts among the ids of k columns."""

    expression: str
    variables: tuple[str, ...]
    members: NDArray[np.int32]
    means: Array


@dataclass(frozen=True, eq=False)
class Contexts:
    """The columns ``within(x|g)`` and ``between(x|g)`` of a formula, learned.

    Attributes
    ----------
    columns : as the formula names them.
    ids : the distinct ids of every column that is part of a group.
    means : by expression and group columns.
    """

    columns: tuple[ContextColumn, ...] = ()
    ids: Mapping[str, Levels] = field(default_factory=dict)
    means: tuple[GroupMeans, ...] = ()

    def add_to(self, frame: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
        """Rows with those of these columns that are wanted beside their own; the frame itself where there are none.

        Raises
        ------
        DataError
            If the predictor is not a number in some row.
        """
        wanted = set(names)
        values = {column.name: self._values(column, frame) for column in self.columns if column.name in wanted}
        return frame.assign(**values) if values else frame

    def _values(self, column: ContextColumn, frame: pd.DataFrame) -> Array:
        own = self._means(column.expression, column.variables, frame)
        if column.kind == "within":
            return _numbers(column, frame) - own
        return own - self._means(column.expression, column.outer, frame) if column.outer else own

    def _means(self, expression: str, variables: tuple[str, ...], frame: pd.DataFrame) -> Array:
        """The mean of each row's group."""
        learned = next(found for found in self.means if (found.expression, found.variables) == (expression, variables))
        matched = [match_ids(frame[name], self.ids[name]) for name in variables]
        sizes = [len(self.ids[name].labels) for name in variables]
        codes = match_combinations([codes for codes, _ in matched], learned.members, sizes)
        out = np.append(learned.means, np.nan)[codes]
        new = np.flatnonzero(codes < 0)
        if new.size:
            labels = join_labels([labels for _, labels in matched])[new].astype(str)
            _, place = np.unique(labels, return_inverse=True)
            values = row_values(expression, frame.iloc[new], "The predictor").astype(float)
            out[new] = group_means(values, place.ravel(), None)[place.ravel()]
        return out


def learn_contexts(
    frame: pd.DataFrame, columns: Sequence[ContextColumn], weights: Array | None
) -> tuple[Contexts, pd.DataFrame]:
    """The group means of complete rows, and the rows with the columns made of them.

    Raises
    ------
    DataError
        If a predictor is no number, or has no variance within groups or none between them.
    """
    if not columns:
        return Contexts(), frame
    encoded: dict[str, tuple[Codes, Levels]] = {}
    means: dict[tuple[str, tuple[str, ...]], GroupMeans] = {}
    values: dict[str, Array] = {}
    for column in columns:
        if column.name in frame.columns:
            raise DataError(
                f"The formula has both the data's own column `{column.name}` and {column.name}, which makes one of "
                "that name; rename the column."
            )
        x = _numbers(column, frame)
        by_row = []
        for variables in filter(None, (column.variables, column.outer)):
            for name in variables:
                if name not in encoded:
                    encoded[name] = encode_ids(frame[name], name)
            codes, members = combine([encoded[name][0] for name in variables], [encoded[name][1] for name in variables])
            own = group_means(x, codes, weights)
            means[column.expression, variables] = GroupMeans(column.expression, variables, members, own)
            by_row.append(own[codes])
        made = x - by_row[0] if column.kind == "within" else by_row[0] - (by_row[1] if len(by_row) > 1 else 0.0)
        values[column.name] = made
        _check_varies(column, x, made)
    ids = {name: levels for name, (_, levels) in encoded.items()}
    return Contexts(tuple(columns), ids, tuple(means.values())), frame.assign(**values)


def _numbers(column: ContextColumn, frame: pd.DataFrame) -> Array:
    """The predictor (n,) of which a column is made."""
    try:
        values = row_values(column.expression, frame, f"In {column.name}, the predictor")
    except DataError as error:
        if "is not numeric" not in str(error):
            raise
        raise DataError(
            f"{error} For the share of a category in each group write {column.kind}({column.expression} == 'a'|"
            f"{':'.join(column.variables)})."
        ) from None
    out = np.ascontiguousarray(values, dtype=np.float64)
    check_finite(out, column.expression, frame.index)
    return out


def group_means(x: Array, codes: NDArray[Any], weights: Array | None) -> Array:
    """Means (J,) of the groups, rows counted by their weights (n,); distances from the overall mean, to save digits.

    Examples
    --------
    >>> group_means(np.array([1.0, 4.0, 5.0]), np.array([0, 0, 1]), np.array([2.0, 1.0, 1.0])).tolist()
    [2.0, 5.0]
    """
    origin = float(x.mean())
    if weights is None:
        return np.asarray(origin + np.bincount(codes, x - origin) / np.bincount(codes))
    total = np.bincount(codes, weights)
    counted = np.where(total[codes] > 0, weights, 1.0)  # a group of which no row counts: its plain mean
    return np.asarray(origin + np.bincount(codes, counted * (x - origin)) / np.bincount(codes, counted))


def _check_varies(column: ContextColumn, x: Array, made: Array) -> None:
    groups = ":".join(column.variables)
    if float(np.ptp(made)) > ROUNDING * float(np.abs(x).max()):
        return
    if float(np.ptp(x)) == 0.0:
        raise DataError(f"{column.name}: {column.expression!r} is {x[0]:.6g} in every row; drop it.")
    if column.kind == "within":
        raise DataError(
            f"{column.name} is 0 in every row: {column.expression!r} does not vary within the groups of {groups!r}. It "
            f"is a predictor of the groups themselves: write {column.expression} alone."
        )
    around = f" of one {':'.join(column.outer)!r}" if column.outer else ""
    raise DataError(
        f"{column.name} is the same in every row: the groups of {groups!r}{around} have the same mean of "
        f"{column.expression!r} (was it centred by group?). Leave it out, or give the predictor as it was measured."
    )
