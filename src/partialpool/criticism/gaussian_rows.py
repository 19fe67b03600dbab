r"""Moments of the rows' log densities of a Gaussian response, all but theta integrated in closed form.

Of a model with one factor (or none), given theta: with :math:`A = Z_g' D Z_g`, :math:`W = \Lambda (\Lambda' A \Lambda +
I)^{-1} \Lambda'` and D the inverse residual variances, a group's effects given the coefficients are normal with
variance W and mean :math:`W Z_g' D (y_g - X_g \beta)`, so that with :math:`L = W Z_g' D X_g` the linear predictor
of row i is normal with

.. math:: m = x'b + z' W Z_g' D (y_g - X_g b), \qquad v = (x - L'z)' C (x - L'z) + z' W z,

b and C being mean and covariance of the coefficients given theta. A row of weight w is w rows.

Leaving rows out (`algebra.leftout`) needs densities alone, and gets them from any elimination; here m and v themselves
are wanted. A test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.nodes import nodes_of_fit
from partialpool.design.predictor import factor_columns
from partialpool.inference.gaussian import GaussianMarginal, working_response

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

LOG_2PI = float(np.log(2 * np.pi))
#: Nodes times rows that are visited, the fewest and the most nodes; nodes times rows that are kept between two passes.
MOST_VISITED, FEWEST, MOST, MOST_KEPT = 6_000_000, 100, 2000, 3_000_000


@dataclass(frozen=True, eq=False)
class RowMoments:
    """log E[p], E[log p] and Var(log p) of each row (n,), and the Monte Carlo errors of their sums."""

    log_mean: Array
    mean: Array
    variance: Array
    errors: dict[str, float]


class RowPredictors:
    """The linear predictors of the rows at one theta.

    Parameters
    ----------
    fit : Posterior
        Exact, of one factor or none, with its rows.
    """

    def __init__(self, fit: Posterior) -> None:
        model, design = fit.model, fit.model.design
        self.marginal = GaussianMarginal(model)
        self.x = design.V[:, design.x_columns] - np.asarray(model.coefficients.centre)
        self.y = working_response(model)
        self.count = np.ones(design.n_rows) if design.weights is None else design.weights
        self.precision = design.precision
        self.se, self.adds = design.se, design.se is not None and design.se_sigma
        self.factor = design.factors[0] if design.factors else None
        self.z = design.V[:, factor_columns(design)[0]] if design.factors else np.empty((design.n_rows, 0))
        self.hyper = model.hyperparameters
        if self.factor is not None:
            self.order = np.argsort(self.factor.codes, kind="stable")
            sizes = np.asarray(self.factor.sizes)
            self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.fixed = None if self.adds else self._products(self._base())

    def _base(self, sigma: float = 0.0) -> Array:
        """Weights D of the rows, but for 1 / sigma^2 where that multiplies all of them."""
        if self.se is not None:
            return np.asarray(self.count / (self.se**2 + sigma**2))
        return np.asarray(self.count if self.precision is None else self.count * self.precision)

    def _by_group(self, values: Array) -> Array:
        return np.add.reduceat(values[self.order], self.starts, axis=0)

    def _products(self, weight: Array) -> tuple[Array, Array, Array]:
        """Z'DZ (G, q, q), Z'DX (G, q, p), Z'Dy (G, q)."""
        if self.factor is None:
            return np.empty((0, 0, 0)), np.empty((0, 0, 0)), np.empty((0, 0))
        zw = self.z * weight[:, None]
        return (
            self._by_group(zw[:, :, None] * self.z[:, None, :]),
            self._by_group(zw[:, :, None] * self.x[:, None, :]),
            self._by_group(zw * self.y[:, None]),
        )

    def coefficients_at(self, theta: Array) -> tuple[Array, Array]:
        """b (K, p) and half (K, p, p) with C = half' half, at nodes theta (K, d)."""
        evaluation, scale = self.marginal.value(theta)[1], self.marginal.scales(theta)
        half = np.linalg.solve(evaluation.low, np.eye(scale.shape[1]) * scale[:, None, :])
        return scale * evaluation.mean, np.asarray(half)  # the prior means are out of y

    def at(self, theta: Array, b: Array, half: Array) -> tuple[Array, Array, Array]:
        """m, v and the variance s of each row (n,) at one theta (d,), given the moments of the coefficients there."""
        sigma = 0.0 if self.hyper.sigma_at is None else float(np.exp(theta[self.hyper.sigma_at]))
        inv = 1.0 if self.se is not None else sigma**-2
        residual = self.count / (self._base(sigma if self.adds else 0.0) * inv)
        m = self.x @ b
        if self.factor is None:
            return m, ((self.x @ half.T) ** 2).sum(axis=1), residual
        own, cross, right = self.fixed if self.fixed is not None else self._products(self._base(sigma))
        lam = self.hyper.factors(theta[None, :])[0].reshape(self.z.shape[1], -1)
        whitened = lam.T @ (own * inv) @ lam + np.eye(len(lam))
        spread = lam @ np.linalg.solve(whitened, np.broadcast_to(lam.T, whitened.shape))
        mean = np.einsum("gij,gj->gi", spread, inv * (right - cross @ b))
        codes = self.factor.codes
        m = m + (self.z * mean[codes]).sum(axis=1)
        moved = self.x - np.einsum("ni,nip->np", self.z, (spread @ (cross * inv))[codes])
        v = ((moved @ half.T) ** 2).sum(axis=1) + np.einsum("ni,nij,nj->n", self.z, spread[codes], self.z)
        return m, v, residual


def gaussian_row_moments(fit: Posterior) -> RowMoments:
    """Moments of the rows' log densities over the nodes of a fit."""
    rows = RowPredictors(fit)
    nodes = nodes_of_fit(fit, min(MOST, max(FEWEST, MOST_VISITED // max(len(rows.y), 1))))
    weights, w = np.exp(nodes.log_weights), rows.count
    found = _Visits(rows, nodes.theta)
    sums = _Sums(len(w))
    for k, share in enumerate(weights):
        sums.add(float(share), *found.at(k))
    log_mean, mean, variance = sums.moments()
    ratio, square, total = (np.empty(len(weights)) for _ in range(3))
    for k in range(len(weights)):  # again, now that the means are known
        log_p, own, spread = found.at(k)
        ratio[k] = (np.exp(log_p - log_mean) - 1).sum()
        square[k] = (spread + (own - mean) ** 2 - variance).sum()
        total[k] = (own - mean).sum()
    moves = {"waic2": ratio - square, "mean": total}
    errors = {name: float(np.sqrt(nodes.variance_of_sum(weights * move))) for name, move in moves.items()}
    return RowMoments(log_mean, mean, variance, errors)


def given_theta(square: Array, v: Array, s: Array, w: Array) -> tuple[Array, Array, Array]:
    """log E[p], E[log p], Var(log p) of rows of weight w, whose residual is normal with this squared mean and v."""
    constant = -0.5 * w * (LOG_2PI + np.log(s))
    wide = s + w * v
    log_p = constant + 0.5 * np.log(s / wide) - 0.5 * w * square / wide
    mean = constant - w * (square + v) / (2 * s)
    return log_p, mean, (w / s) ** 2 * (square * v + 0.5 * v * v)


class _Visits:
    """log E[p], E[log p] and Var(log p) of the rows given theta, node by node; kept where they are few."""

    def __init__(self, rows: RowPredictors, theta: Array) -> None:
        self.rows, self.theta = rows, theta
        self.b, self.half = rows.coefficients_at(theta)
        self.kept: dict[int, tuple[Array, Array, Array]] | None = {} if len(theta) * len(rows.y) < MOST_KEPT else None

    def at(self, k: int) -> tuple[Array, Array, Array]:
        if self.kept is not None and k in self.kept:
            return self.kept[k]
        m, v, s = self.rows.at(self.theta[k], self.b[k], self.half[k])
        out = given_theta((self.rows.y - m) ** 2, v, s, self.rows.count)
        if self.kept is not None:
            self.kept[k] = out
        return out


class _Sums:
    """Running sums over the nodes of p (scaled), log p and its square."""

    def __init__(self, n: int) -> None:
        self.top, self.density = np.full(n, -np.inf), np.zeros(n)
        self.origin: Array | None = None
        self.first, self.second = np.zeros(n), np.zeros(n)

    def add(self, share: float, log_p: Array, mean: Array, variance: Array) -> None:
        top = np.maximum(self.top, log_p)
        self.density = self.density * np.exp(self.top - top) + share * np.exp(log_p - top)
        self.top = top
        if self.origin is None:
            self.origin = mean.copy()
        shift = mean - self.origin
        self.first += share * shift
        self.second += share * (variance + shift * shift)

    def moments(self) -> tuple[Array, Array, Array]:
        """log E[p], E[log p], Var(log p)."""
        assert self.origin is not None
        return self.top + np.log(self.density), self.origin + self.first, self.second - self.first**2
