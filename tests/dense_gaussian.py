"""A Gaussian model given theta, as one multivariate normal of all rows: what the engines must agree with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.design.predictor import factor_columns
from partialpool.inference.gaussian import GaussianMarginal, working_response
from partialpool.model import Model

Array = NDArray[np.float64]


class Dense(NamedTuple):
    """The response (offset and prior means taken off), covariance of the predictors, row variances, weights."""

    y: Array
    covariance: Array
    variance: Array
    weight: Array

    def log_density(self, rows: Array) -> float:
        """The log density of some rows, the others left out. A row of weight w counts w times."""
        y, s, w = self.y[rows], self.variance[rows], self.weight[rows]
        constant = np.sum(-0.5 * w * np.log(2 * np.pi * s) + 0.5 * np.log(2 * np.pi * s / w))
        low = np.linalg.cholesky(self.covariance[np.ix_(rows, rows)] + np.diag(s / w))
        z = np.linalg.solve(low, y)
        return float(constant - 0.5 * len(y) * np.log(2 * np.pi) - np.log(np.diag(low)).sum() - 0.5 * z @ z)

    def with_copy(self, rows: Array, shared: Array) -> Dense:
        """With a copy of some rows, whose predictors have the covariances `shared` (n, rows) with those of all rows."""
        top = np.concatenate([self.covariance, shared], axis=1)
        below = np.concatenate([shared.T, self.covariance[np.ix_(rows, rows)]], axis=1)
        again = (np.concatenate([part, part[rows]]) for part in (self.y, self.variance, self.weight))
        y, variance, weight = again
        return Dense(y, np.concatenate([top, below]), variance, weight)


def effects_covariance(model: Model, theta: Array, factor: int) -> Array:
    """What the effects of one factor add to the covariance of the predictors of all rows, (n, n)."""
    design, hyper = model.design, model.hyperparameters
    columns, at = factor_columns(design)[factor], hyper.lam_at[factor]
    q = columns.size
    lam = hyper.factors(theta[None])[0][at : at + q * q].reshape(q, q)
    z, codes = design.V[:, columns], design.factors[factor].codes
    return np.asarray((codes[:, None] == codes[None]) * (z @ lam @ lam.T @ z.T))


def dense(model: Model, theta: Array) -> Dense:
    """The rows of an exact model at one theta (d,)."""
    design, hyper = model.design, model.hyperparameters
    x = design.V[:, design.x_columns] - model.row_blocks.centre
    scale = GaussianMarginal(model).scales(theta[None])[0]
    covariance = (x * scale**2) @ x.T
    for factor in range(len(design.factors)):
        covariance = covariance + effects_covariance(model, theta, factor)
    square = 0.0 if hyper.sigma_at is None else float(np.exp(2 * theta[hyper.sigma_at]))
    ones = np.ones(design.n_rows)
    if design.se is not None:
        variance = design.se**2 + (square if design.se_sigma else 0.0)
    else:
        variance = square / (ones if design.precision is None else design.precision)
    return Dense(working_response(model), covariance, variance, ones if design.weights is None else design.weights)


def some_theta(model: Model, count: int, seed: int = 1) -> Array:
    """Moderate values of the hyperparameters, (count, d)."""
    theta = model.hyperparameters.sample(np.random.default_rng(seed), 200)
    return np.clip(theta, *np.quantile(theta, [0.2, 0.8], axis=0))[:count] if theta.size else theta[:count]
