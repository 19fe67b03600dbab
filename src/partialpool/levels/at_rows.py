r"""What a model says of rows before any group effect: predictors, and the variance that each level's effects add.

At K points of the parameters: ``eta = offset + X beta``, and for every level the variance ``z' Sigma z`` of the sum of
its group's effects in the row, which is all that matters of them for the row alone (a sum of normal numbers is normal).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import NewRows
from partialpool.levels.response_scale import averaged_powers
from partialpool.model import Model
from partialpool.posterior.components import row_shares

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Points:
    """Points of the parameters with weights: theta (K, d), beta (K, p), weights (K,)."""

    theta: Array
    beta: Array
    weights: Array


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows as a model reads them: V (n, m), offset (n,) or None, and what each counts in averages, shares (n,)."""

    V: Array
    offset: Array | None
    shares: Array

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.V)

    @classmethod
    def of_model(cls, model: Model) -> Rows:
        """The rows of the data, those that are alike once."""
        design = model.design
        offset = None if design.offset is None or not np.ptp(design.offset) else design.offset
        keys = design.V if offset is None else np.column_stack([design.V, offset])
        shares = row_shares(design)
        _, first, place = np.unique(_as_bytes(keys), return_index=True, return_inverse=True)
        counted = np.bincount(place.ravel(), shares, minlength=len(first)).astype(float)
        kept = design.offset[first] if design.offset is not None else None
        return cls(design.V[first], kept, counted)

    @classmethod
    def of_new(cls, new: NewRows) -> Rows:
        """New rows, which count alike."""
        return cls(new.V, new.offset, np.full(new.n_rows, 1.0 / max(new.n_rows, 1)))

    def thinned(self, order: Array, most: int) -> Rows:
        """About `most` of the rows, evenly spaced in the order of `order` (n,) and by what they count."""
        if self.size <= most:
            return self
        sorted_rows = np.argsort(order, kind="stable")
        reached = np.cumsum(self.shares[sorted_rows])
        picked = np.searchsorted(reached, (np.arange(most) + 0.5) / most * reached[-1])
        rows, times = np.unique(sorted_rows[np.minimum(picked, self.size - 1)], return_counts=True)
        return Rows(self.V[rows], None if self.offset is None else self.offset[rows], times.astype(float) / most)


@dataclass(frozen=True, eq=False)
class AtRows:
    """Predictors and variances of rows at K points.

    eta : (K, n). variances : by level (K, n) or (K, 1). eta1, eta2 : logs of the family's own parameters, (K, n) or
    (K, 1). variance1 : of the group effects in eta1, (K, n) or (K, 1), or None. powers : the variance function.
    shift : what the log of the mean is beyond eta. shares : (n,).
    """

    eta: Array
    variances: tuple[Array, ...]
    eta1: Array
    variance1: Array | None
    eta2: Array
    powers: Array
    shift: Array | float
    shares: Array

    def average(self, values: Array) -> Array:
        """The mean over the rows (K,) of values (K, n) or (K, 1)."""
        return values[:, 0] if values.shape[1] == 1 else np.asarray(values @ self.shares)


def level_factors(model: Model) -> tuple[int, ...]:
    """The grouping factors with effects in the predictor of the mean, those of fewer groups first."""
    factors = model.design.factors
    found = {group.factor for group in model.design.groups if not group.predictor}
    return tuple(sorted(found, key=lambda factor: (len(factors[factor].labels), factor)))


def at_rows(model: Model, points: Points, rows: Rows) -> AtRows:
    """What the model says of rows at points of the parameters."""
    eta = _common(model, points, rows, 0)
    variances = tuple(_group_variance(model, points.theta, rows.V, 0, factor) for factor in level_factors(model))
    own = [_own(model, points, rows, name) for name in model.family.parameters]
    nothing = np.zeros((len(points.theta), 1))
    eta1, eta2 = [*own, nothing, nothing][:2]
    variance1 = None
    factors = sorted({group.factor for group in model.design.groups if group.predictor == 1})
    for factor in factors:
        added = _group_variance(model, points.theta, rows.V, 1, factor)
        variance1 = added if variance1 is None else variance1 + added
    shift = 0.5 * np.exp(2 * eta1) if model.family.name == "lognormal" else 0.0
    powers = averaged_powers(model.family, eta1, variance1, eta2)
    return AtRows(eta, variances, eta1, variance1, eta2, powers, shift, rows.shares)


def _common(model: Model, points: Points, rows: Rows, predictor: int) -> Array:
    """The predictor (K, n) without group effects."""
    design = model.design
    own = np.flatnonzero(design.x_predictor == predictor)
    eta = points.beta[:, own] @ rows.V[:, design.x_columns[own]].T
    if predictor == 0 and rows.offset is not None:
        eta = eta + rows.offset
    return np.asarray(eta)


def _own(model: Model, points: Points, rows: Rows, name: str) -> Array:
    """The log of one of the family's own parameters, without group effects."""
    if model.exact:
        at = model.hyperparameters.sigma_at
        return np.full((len(points.theta), 1), -np.inf) if at is None else points.theta[:, at : at + 1]
    if name in model.design.terms.predictors:
        return _common(model, points, rows, 1)
    at = model.hyperparameters.auxiliary_at(name)
    return points.theta[:, at : at + 1]


def _group_variance(model: Model, theta: Array, V: Array, predictor: int, factor: int) -> Array:
    """z' Sigma z of all terms of a factor in one linear predictor, (K, n), or (K, 1) where all rows have the same."""
    total: Array | None = None
    for term, group in zip(model.hyperparameters.terms, model.design.groups, strict=True):
        if group.predictor != predictor or group.factor != factor:
            continue
        lam = term.covariance.factor(theta[:, term.parameters])
        z = V[:, group.columns]
        if len(z) and not np.ptp(z, axis=0).any():
            z = z[:1]
        spread = np.einsum("nj,kji->kni", z, lam)
        own = np.einsum("kni,kni->kn", spread, spread)
        total = own if total is None else total + own
    assert total is not None  # the factor has terms there
    return np.asarray(total)


def _as_bytes(keys: Array) -> NDArray[np.void]:
    """Each row as one value that can be sorted; 0 and -0 alike."""
    tidy = np.ascontiguousarray(keys + 0.0)
    return tidy.view(np.dtype((np.void, tidy.dtype.itemsize * max(tidy.shape[1], 1)))).ravel()
