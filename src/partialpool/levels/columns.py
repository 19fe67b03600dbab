"""At which level a column lives: the grouping factors within whose groups it does not vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design

#: Differences, relative to a column's largest value, that are rounding.
ROUNDING = 1e-10


def constant_within(values: NDArray[Any], codes: NDArray[np.int32]) -> bool:
    """Whether a column (n,) has one value in each group; numbers may differ by rounding.

    Examples
    --------
    >>> constant_within(np.array([2.0, 2.0, 3.0]), np.array([0, 0, 1], dtype=np.int32))
    True
    """
    if not len(values):
        return True
    own = np.empty(int(codes.max()) + 1, dtype=values.dtype)
    own[codes] = values
    found = own[codes]
    if values.dtype.kind != "f":
        return bool((found == values).all())
    return bool(np.abs(found - values).max() <= ROUNDING * np.abs(values).max())


def column_levels(design: Design, columns: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which columns of V are constant within the groups of which factors, (columns, factors)."""
    out = np.zeros((len(columns), len(design.factors)), dtype=bool)
    for row, column in enumerate(columns):
        for f, factor in enumerate(design.factors):
            out[row, f] = constant_within(design.V[:, int(column)], factor.codes)
    return out


def level_name(design: Design, constant: NDArray[np.bool_]) -> str:
    """The level of a column: the coarsest factor in whose groups it does not vary, or ``row``.

    `constant` : (factors,), as a row of `column_levels`.
    """
    found = np.flatnonzero(constant)
    if not found.size:
        return "row"
    counts = [len(design.factors[int(f)].labels) for f in found]
    return design.factors[int(found[int(np.argmin(counts))])].name
