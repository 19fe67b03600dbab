"""Predictors that cannot be told apart, found on small cross-products: no n x n, no copy of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import DataError

Matrix = NDArray[np.float64]
CHUNK = 1 << 15


@dataclass(frozen=True, eq=False)
class Moments:
    """Means of V's columns and their centred cross-products."""

    n: int
    mean: NDArray[np.float64]
    centred: Matrix


def moments(V: Matrix) -> Moments:
    """Means and centred cross-products, over chunks of rows (centred first: no cancellation)."""
    n, m = V.shape
    mean = V.sum(axis=0) / max(n, 1)
    centred = np.zeros((m, m))
    for start in range(0, n, CHUNK):
        part = V[start : start + CHUNK] - mean
        centred += part.T @ part
    return Moments(n, mean, centred)


def check_columns(V: Matrix, found: Moments, columns: NDArray[np.int64], names: Sequence[str], where: str) -> None:
    """Refuse a slope that does not vary and a column that the ones before it determine.

    Parameters
    ----------
    columns : positions in V of the columns that stand together (the common part, or one group term).
    names : their names.
    where : how a message calls them, such as "the group term (x | g)".
    """
    intercept = "Intercept" in names
    slopes = [(int(column), name) for column, name in zip(columns, names, strict=True) if name != "Intercept"]
    for column, name in slopes:
        scale = max(abs(found.mean[column]), 1e-300)
        if found.centred[column, column] <= found.n * (1e-13 * scale) ** 2:
            raise DataError(
                f"{name!r} in {where} does not vary: it is {found.mean[column]:.6g} in every row; drop it"
                + ("." if intercept else ", or write 1 for an intercept.")
            )
    if len(slopes) < 2 and found.n > len(columns):
        return
    _check_rank(V, found, slopes, intercept, where)


def _check_rank(V: Matrix, found: Moments, slopes: list[tuple[int, str]], intercept: bool, where: str) -> None:
    place = np.array([column for column, _ in slopes], dtype=np.int64)
    products = found.centred[np.ix_(place, place)]
    if not intercept:
        products = products + found.n * np.outer(found.mean[place], found.mean[place])
    scale = np.sqrt(np.diag(products))
    correlation = products / np.outer(scale, scale)
    if len(place) == 0 or np.linalg.eigvalsh(correlation)[0] > 1e-8:
        return
    kept: list[int] = []
    for j in range(len(place)):
        if kept:
            weights = np.linalg.lstsq(correlation[np.ix_(kept, kept)], correlation[kept, j], rcond=1e-13)[0]
            left = 1.0 - correlation[kept, j] @ weights
            if left < 1e-8 and _determined(V, place[kept], place[j], intercept):
                _refuse(slopes, kept, j, weights, where)
        kept.append(j)


def _determined(V: Matrix, others: NDArray[np.int64], column: np.int64, intercept: bool) -> bool:
    """The same question on the rows themselves: cross-products square the condition number."""
    predictors = V[:, others]
    target = V[:, column]
    if intercept:
        predictors = predictors - predictors.mean(axis=0)
        target = target - target.mean()
    predictors = predictors / np.sqrt((predictors**2).sum(axis=0))
    rest = target - predictors @ np.linalg.lstsq(predictors, target, rcond=None)[0]
    return bool(np.sqrt(rest @ rest) < 1e-7 * np.sqrt(target @ target))


def _refuse(slopes: list[tuple[int, str]], kept: list[int], j: int, weights: NDArray[np.float64], where: str) -> None:
    name = slopes[j][1]
    causes = [slopes[k][1] for k, weight in zip(kept, weights, strict=True) if abs(weight) > 1e-5]
    shown = ", ".join(repr(cause) for cause in causes[:8]) + (" ..." if len(causes) > 8 else "")
    mend = "drop one of them"
    if name.startswith(("cr(", "cs(", "cc(")):
        mend = "this spline contains a constant: write constraints='center' in it, or 0 + for the intercept"
    raise DataError(f"Collinear predictors: in {where}, {name!r} is determined by {shown}; {mend}.")
