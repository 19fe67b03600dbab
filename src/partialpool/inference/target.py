"""The log posterior density of the hyperparameters, as engines that integrate all else out explore it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.cholesky import Evaluation
from partialpool.errors import DataError
from partialpool.inference.coordinates import Coordinates
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.optimum import Optimum, maximise, response_spread, starting_point
from partialpool.model import Model

Array = NDArray[np.float64]

#: A residual sd below this share of the response's is lost in rounding.
LEAST_SIGMA = 1e-6


class Target:
    """The log posterior density in the coordinates phi, up to p(y)."""

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
        self.marginal = GaussianMarginal(model, threads=threads)
        self.coordinates = Coordinates(model)

    def value(self, phi: Array) -> tuple[Array, Array, Evaluation]:
        """Log density (K,), theta (K, d), and the coefficients' conditional moments."""
        with np.errstate(all="ignore"):  # far out numbers overflow; their density is 0
            theta = self.coordinates.theta(phi)
            value, evaluation = self.marginal.value(theta)
            value = value + self.marginal.hyper.log_prior(theta)[0] + self.coordinates.log_jacobian(phi, theta)
        return np.where(np.isnan(value), -np.inf, value), theta, evaluation

    def log_density(self, phi: Array) -> Array:
        return self.value(phi)[0]

    def objective(self, phi: Array) -> tuple[Array, Array]:
        """Log density (K,) and gradient (K, d)."""
        with np.errstate(all="ignore"):
            theta = self.coordinates.theta(phi)
            value, gradient = self.marginal.value_and_gradient(theta)
            prior, slope = self.marginal.hyper.log_prior(theta)
            gradient = self.coordinates.pull_back(phi, theta, gradient + slope, density=True)
            return value + prior + self.coordinates.log_jacobian(phi, theta), gradient

    def mode(self) -> Optimum:
        """The mode of phi.

        Raises
        ------
        DataError
            Where the residual sd runs to 0: predictors and groups reproduce the response.
        """
        start, inverse = starting_point(self.marginal, self.coordinates)
        best = maximise(self.objective, start, inverse, tolerance=1e-4)
        at = self.marginal.hyper.sigma_at
        if at is not None:
            sigma = float(np.exp(self.coordinates.theta(best.point[None, :])[0, at]))
            if sigma < LEAST_SIGMA * response_spread(self.model):
                raise DataError(
                    f"The predictors and groups of {self.model.design.terms.formula!r} reproduce the response to "
                    "within rounding, so that sigma cannot be learned; leave out a term, or check that no predictor "
                    "was computed from the response."
                )
        return best

    # -- coefficients given theta, in public terms -------------------------------------------------------------------

    def public_moments(self, theta: Array, evaluation: Evaluation) -> tuple[Array, Array]:
        """Conditional means (K, p) of the public coefficients, and M (K, p, p) with covariance M M'."""
        coefficients = self.model.coefficients
        scales = self.marginal.scales(theta)
        to_public = coefficients.public_matrix()
        gamma = np.asarray(coefficients.mean) + scales * evaluation.mean
        if not gamma.shape[1]:
            return gamma, np.empty((theta.shape[0], 0, 0))
        half = np.linalg.solve(evaluation.low, scales[:, :, None] * to_public.T)
        return gamma @ to_public.T, np.asarray(np.swapaxes(half, 1, 2), dtype=float)
