r"""Linear predictors, for old and new rows: ``eta_k = offset + X_k beta_k + sum_t Z_kt u_t``, and their noise.

There is one in most models; a family's own parameter with a formula has a second, without offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.jit import kernel
from partialpool.design.design import Design, NewRows

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FactorRows:
    """Where the effects of one grouping factor enter the rows.

    columns : (q,) columns of V. codes : (n,) group of each row, -1 where it is new. labels : (n,) ids of the rows'
    groups as text, or None where no row has a new group. effects : (q,) which of a group's effects these are, or None
    for all of them.
    """

    factor: int
    columns: Ints
    codes: NDArray[np.int32]
    labels: NDArray[np.object_] | None
    effects: Ints | None = None


@dataclass(frozen=True, eq=False)
class LinearPredictor:
    """Rows ready to be multiplied by coefficients and group effects.

    Attributes
    ----------
    V : (n, m) columns. x_columns : (p,) which of them the coefficients multiply.
    factors : the grouping factors that take part. offset : (n,) or None.
    coefficients : which of the model's coefficients these are, or None for all of them.
    """

    V: Array
    x_columns: Ints
    factors: tuple[FactorRows, ...]
    offset: Array | None
    coefficients: Ints | None = None

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return len(self.V)

    @classmethod
    def of_design(cls, design: Design, factors: Sequence[int], predictor: int = 0) -> LinearPredictor:
        """The rows that a design was built on, in its first linear predictor or in another."""
        parts = [(f, design.factors[f].codes, None) for f in factors]
        return cls._of(design, design.V, parts, design.offset, predictor)

    @classmethod
    def of_new_rows(cls, design: Design, new: NewRows, factors: Sequence[int], predictor: int = 0) -> LinearPredictor:
        """Rows that the design replayed."""
        parts = []
        for f in factors:
            codes = new.codes[f]
            assert codes is not None  # the design was asked for these factors
            parts.append((f, codes, new.labels[f]))
        return cls._of(design, new.V, parts, new.offset, predictor)

    @classmethod
    def _of(
        cls,
        design: Design,
        V: Array,
        parts: Sequence[tuple[int, NDArray[np.int32], NDArray[np.object_] | None]],
        offset: Array | None,
        predictor: int,
    ) -> LinearPredictor:
        columns = factor_columns(design)
        if len(design.prefixes) == 1:
            rows = tuple(FactorRows(f, columns[f], codes, labels) for f, codes, labels in parts)
            return cls(V, design.x_columns, rows, offset)
        own = np.flatnonzero(design.x_predictor == predictor)
        found = []
        for f, codes, labels in parts:
            effects = np.flatnonzero(factor_predictors(design)[f] == predictor)
            if effects.size:
                found.append(FactorRows(f, columns[f][effects], codes, labels, effects))
        return cls(V, design.x_columns[own], tuple(found), offset if predictor == 0 else None, own)

    def common(self, beta: Array, rows: Ints) -> Array:
        """``offset + X beta`` of some rows: beta (draws, p), all of the model's coefficients -> (rows, draws)."""
        own = beta if self.coefficients is None else beta[:, self.coefficients]
        eta = np.ascontiguousarray(self.V[rows][:, self.x_columns] @ own.T)
        if self.offset is not None:
            eta += self.offset[rows][:, None]
        return eta

    def add_effects(self, eta: Array, factor: FactorRows, effects: Array, place: Ints, rows: Ints) -> None:
        """Add the effects of one factor to eta (rows, draws), in place.

        effects : (groups, q, draws), C-contiguous, all effects of a group. place : (rows,) which of these groups a row
        belongs to, -1 for none (effect 0).
        """
        if factor.effects is not None:
            effects = np.ascontiguousarray(effects[:, factor.effects])
        if len(rows) and effects.size:
            add_group_effects(eta, self.V, rows, factor.columns, effects, place)


@kernel("void(float64[:,::1], float64[:,::1], int64[::1], int64[::1], float64[:,:,::1], int64[::1])")
def add_group_effects(eta: Array, values: Array, rows: Ints, columns: Ints, effects: Array, place: Ints) -> None:
    """eta[i, :] += sum_j values[rows[i], columns[j]] effects[place[i], j, :]."""
    for i in range(rows.size):
        g = place[i]
        if g < 0:
            continue
        for j in range(columns.size):
            value = values[rows[i], columns[j]]
            for d in range(eta.shape[1]):
                eta[i, d] += value * effects[g, j, d]


def factor_columns(design: Design) -> list[Ints]:
    """By factor, the columns whose effects vary by its groups: those of its terms, in order."""
    out = []
    for f in range(len(design.factors)):
        own = [group.columns for group in design.groups if group.factor == f]
        out.append(np.concatenate(own).astype(np.int64))
    return out


def factor_predictors(design: Design) -> list[Ints]:
    """By factor, the linear predictor that each of a group's effects enters, in the order of `factor_columns`."""
    return [
        np.concatenate([np.full(len(g.names), g.predictor, np.int64) for g in design.groups if g.factor == f])
        for f in range(len(design.factors))
    ]


@dataclass(frozen=True, eq=False)
class RowVariance:
    """The residual variance of rows, ``known + sigma^2 share``; each (n,), or a number where all rows have the same."""

    known: Array | float
    share: Array | float

    def at(self, sigma: float) -> Array | float:
        """(n,) or a number, for one sigma."""
        return self.known + float(sigma) ** 2 * self.share

    def of(self, rows: Ints) -> RowVariance:
        """That of some of the rows, each (rows,)."""
        known, share = (
            np.broadcast_to(value, rows.shape) if np.ndim(value) == 0 else np.asarray(value)[rows]
            for value in (self.known, self.share)
        )
        return RowVariance(known, share)


def row_variance(rows: Design | NewRows, adds_sigma: bool) -> RowVariance:
    """How the residual variance of rows follows from sigma, their known standard errors and their precisions.

    adds_sigma : whether sigma is estimated beside standard errors (``se(s, sigma=True)``); without them it always is.
    """
    if rows.se is not None:  # with precision() the formula is refused
        return RowVariance(rows.se**2, 1.0 if adds_sigma else 0.0)
    return RowVariance(0.0, 1.0 if rows.precision is None else 1 / rows.precision)
