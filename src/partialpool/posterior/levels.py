"""Which coefficients a group's effects deviate from: the map from ``beta`` to the level around which effects vary.

The rows' predictor is ``X beta + Z u``. Where columns of X are combinations of Z's, ``X_k = Z m_k``, it is
``Z (M beta + u)`` plus what the other columns of X give: ``M beta + u`` are the group's own coefficients. A column that
X and Z share is a unit vector of M; under ``y ~ f + (0 + f | g)`` the intercept is the sum of Z's columns, so that each
category's coefficient has it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.design.predictor import factor_columns, factor_predictors

Array = NDArray[np.float64]

#: Share of a column's square that may be left for a closer look at the rows.
CANDIDATE = 1e-6
#: Largest error, relative to a column's largest value, of a combination that counts as exact.
EXACT = 1e-9


def by_name(design: Design, factor: int) -> Array:
    """M (effects, coefficients) from the shared columns alone."""
    columns = factor_columns(design)[factor]
    return np.asarray(((columns[:, None] == design.x_columns[None, :]) & same_predictor(design, factor)).astype(float))


def same_predictor(design: Design, factor: int) -> NDArray[np.bool_]:
    """Which effects and coefficients enter the same linear predictor, (effects, coefficients)."""
    return np.asarray(factor_predictors(design)[factor][:, None] == design.x_predictor[None, :])


def coefficient_map(design: Design, factor: int, gram: Array) -> Array:
    """M (effects, coefficients) of a factor. `gram` : (m, m), the mean cross-products of V's columns."""
    out = by_name(design, factor)
    every, same = factor_columns(design)[factor], same_predictor(design, factor)
    scale = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(float).tiny))
    unit = gram / np.outer(scale, scale)
    for k in np.flatnonzero(~out.any(axis=0)):
        x = int(design.x_columns[k])
        columns = every[same[:, k]]
        if not columns.size:
            continue
        solution = np.linalg.lstsq(unit[np.ix_(columns, columns)], unit[columns, x], rcond=1e-10)[0]
        if unit[x, x] - unit[columns, x] @ solution > CANDIDATE:
            continue
        weights = _tidy(solution * scale[x] / scale[columns])
        wanted = design.V[:, x]
        if np.abs(design.V[:, columns] @ weights - wanted).max() <= EXACT * np.abs(wanted).max():
            out[same[:, k], k] = weights
    return out


def _tidy(values: Array) -> Array:
    """Whole numbers where they are whole but for rounding."""
    whole = np.rint(values)
    return np.where(np.abs(values - whole) < 1e-9, whole, values)
