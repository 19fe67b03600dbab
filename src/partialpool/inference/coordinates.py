r"""The coordinates phi in which theta is searched and explored.

theta says what users say: sds and correlations of the effects of the columns as written. Two things make it a poor
place to search:

- With a slope on a predictor far from 0 (years), intercept and slope of a group are all but perfectly correlated, along
  a narrow curved ridge. In the coordinates of the covariance at the mean of the predictors,
  ``Sigma = T Sigma_c T'`` with T the shift of the intercept to 0, they are not. phi holds the log sds and partial
  correlations of Sigma_c.
- An sd with a prior of bounded support (Uniform) has an edge. phi holds the logit of its place in the support.

Since T has determinant 1, Sigma and Sigma_c have the same volume element, and the Jacobian of theta by phi is the ratio
of those of Sigma by its own parameters,

.. math:: \log\left|\frac{\partial\Sigma}{\partial\theta}\right| = \text{const} + (q + 1) \sum_i \log sd_i
          + \sum_{i > j} \left(1 + \frac{q - 2 - j}{2}\right) \log(1 - z_{ij}^2).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.model import Model
from partialpool.spec.covariance import TermCovariance
from partialpool.spec.hyperparameters import TermLayout
from partialpool.spec.priors import INTERCEPT

Array = NDArray[np.float64]

#: Step of the central differences of the map, which is smooth and of order 1.
STEP = 1e-6


class Coordinates:
    """The map from phi (K, d) to theta (K, d), its Jacobian, and gradients pulled back through it."""

    def __init__(self, model: Model, *, bounded: bool = True) -> None:
        """`bounded=False` leaves priors out of it, for maximum likelihood."""
        hyper = model.hyperparameters
        self.size = hyper.size
        self.bounds = _bounds(model) if bounded else {}
        self.shifted: list[tuple[TermLayout, Array]] = []
        for term, group in zip(hyper.terms, model.design.groups, strict=True):
            bounded = any(at in self.bounds for at in range(term.at, term.at + term.covariance.size))
            if not term.covariance.n_correlations or term.names[0] != INTERCEPT or bounded:
                continue
            means = np.array([model.design.V[:, column].mean() for column in group.columns[1:]])
            if means.any():
                shift = np.eye(term.covariance.size)
                shift[0, 1:] = -means
                self.shifted.append((term, shift))

    @property
    def centred_terms(self) -> list[TermLayout]:
        """The terms whose covariance is held at the mean of their columns."""
        return [term for term, _ in self.shifted]

    def theta(self, phi: Array) -> Array:
        """theta (K, d) from phi (K, d)."""
        if not self.shifted and not self.bounds:
            return phi
        theta = phi.copy()
        for column, (low, width) in self.bounds.items():
            theta[:, column] = np.log(low + width * _logistic(phi[:, column]))
        for term, shift in self.shifted:
            theta[:, term.parameters] = _uncentred(term.covariance, shift, phi[:, term.parameters])
        return theta

    def log_jacobian(self, phi: Array, theta: Array) -> Array:
        """log |d theta / d phi|, (K,)."""
        value = np.zeros(phi.shape[0])
        for column, (_, width) in self.bounds.items():
            value += np.log(self._relative(phi, theta, column, width))
        for term, _ in self.shifted:
            own = term.parameters
            value += _log_volume(term.covariance, phi[:, own])[0] - _log_volume(term.covariance, theta[:, own])[0]
        return value

    def pull_back(self, phi: Array, theta: Array, gradient: Array, *, density: bool) -> Array:
        """The gradient in phi of a function with the given gradient in theta (K, d).

        With `density` the function is a log density of theta, and the log Jacobian's own gradient is added.
        """
        out = gradient.copy()
        for column, (_, width) in self.bounds.items():
            share = _logistic(phi[:, column])
            relative = self._relative(phi, theta, column, width)
            out[:, column] = gradient[:, column] * relative
            if density:
                out[:, column] += (1 - 2 * share) - relative
        for term, shift in self.shifted:
            own = term.parameters
            slope = gradient[:, own]
            if density:
                slope = slope - _log_volume(term.covariance, theta[:, own])[1]
            out[:, own] = np.einsum("kij,ki->kj", _jacobian(term.covariance, shift, phi[:, own]), slope)
            if density:
                out[:, own] += _log_volume(term.covariance, phi[:, own])[1]
        return out

    @staticmethod
    def _relative(phi: Array, theta: Array, column: int, width: float) -> Array:
        """d theta / d phi of a bounded sd."""
        share = _logistic(phi[:, column])
        return np.asarray(width * share * (1 - share) / np.exp(theta[:, column]))


def _uncentred(covariance: TermCovariance, shift: Array, own: Array) -> Array:
    """theta of a term from the parameters of its covariance at the mean of the columns.

    The factor of ``T Lambda_c Lambda_c' T'`` is the triangle of a QR decomposition, and ``atanh`` of a partial
    correlation is the asinh of a ratio: no digit is lost as correlations go to 1.
    """
    spread = shift @ covariance.factor(own)
    upper = np.linalg.qr(np.swapaxes(spread, 1, 2), mode="r")
    low = np.swapaxes(upper, 1, 2)
    low = low * np.where(np.einsum("kii->ki", low) < 0, -1.0, 1.0)[:, None, :]
    q = covariance.size
    theta = np.empty_like(own)
    theta[:, :q] = 0.5 * np.log((low * low).sum(axis=2))
    for position, (i, j) in enumerate(covariance.pairs()):
        rest = np.sqrt((low[:, i, j + 1 : i + 1] ** 2).sum(axis=1))
        theta[:, q + position] = np.arcsinh(low[:, i, j] / rest)
    return theta


def _jacobian(covariance: TermCovariance, shift: Array, own: Array) -> Array:
    """d theta / d phi of a term, (K, m, m), by central differences."""
    count, m = own.shape
    steps = STEP * np.eye(m)
    ends = np.concatenate([own[:, None, :] + steps, own[:, None, :] - steps], axis=1).reshape(-1, m)
    values = _uncentred(covariance, shift, ends).reshape(count, 2, m, m)
    return np.asarray(np.swapaxes((values[:, 0] - values[:, 1]) / (2 * STEP), 1, 2))


def _log_volume(covariance: TermCovariance, own: Array) -> tuple[Array, Array]:
    """log |d Sigma / d parameters| up to a constant, (K,), and its gradient (K, m)."""
    q = covariance.size
    power = np.array([1 + (q - 2 - j) / 2 for _, j in covariance.pairs()])
    x = own[:, q:]
    magnitude = np.abs(x)
    log_one_minus_z2 = 2 * (math.log(2) - magnitude - np.log1p(np.exp(-2 * magnitude)))
    gradient = np.empty_like(own)
    gradient[:, :q] = q + 1
    gradient[:, q:] = -2 * power * np.tanh(x)
    return (q + 1) * own[:, :q].sum(axis=1) + log_one_minus_z2 @ power, gradient


def _bounds(model: Model) -> dict[int, tuple[float, float]]:
    """Lower end and width of the priors of bounded support, by position in theta."""
    hyper = model.hyperparameters
    terms = zip(hyper.terms, hyper.sds, strict=True)
    priors = {term.at + k: prior for term, own in terms for k, prior in enumerate(own)}
    if hyper.sigma is not None and hyper.sigma_at is not None:
        priors[hyper.sigma_at] = hyper.sigma
    ends = {at: prior.support for at, prior in priors.items()}
    return {at: (low, high - low) for at, (low, high) in ends.items() if math.isfinite(high)}


def _logistic(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
