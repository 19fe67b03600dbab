r"""The marginal likelihood of a Gaussian response: group effects and coefficients integrated out exactly.

With rows of variance ``sigma^2 / d_i`` (d the product of `weights` and `precision`, or ``1 / se^2`` with sigma known)
and ``N = sum of the weights``, `LeafRoot` gives ``h = log|H| / 2`` and the quadratic form S, and

.. math:: \log p(y | \theta) = -\tfrac{N}{2} \log 2\pi - N \log\sigma + \text{const} - h - \tfrac12 S.

Its derivatives need only ``sum_g E[z_g z_g' | y, theta]`` for each factor (Fisher's identity): see
`TermCovariance.gradient`, and for the residual sd

.. math:: \frac{\partial \log p}{\partial \log\sigma} = -N + E[r' D r] / \sigma^2
          = -N + S + \dim(H) - \sum_t \mathrm{tr} \sum_g E[z z'] - \sum_j E[b_j^2].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.cholesky import Evaluation, LeafRoot, Moments
from partialpool.algebra.structure import CrossProducts
from partialpool.errors import ModelError
from partialpool.model import Model, unknown_parameter

Array = NDArray[np.float64]

LOG_2PI = math.log(2 * math.pi)
#: Step of the central difference in log sigma where sigma is added to known standard errors.
SIGMA_STEP = 1e-4


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a Gaussian fit needs of the rows; with it a fit lives on without them.

    cross : cross-products of the columns and of ``y - offset - X mean`` (columns centred);
    total_weight : N; constant : the part of the log-likelihood that depends on weights and standard errors alone.
    """

    cross: CrossProducts
    total_weight: float
    constant: float


def row_terms(model: Model, sigma: float | None = None) -> tuple[Array, float, float]:
    """Weights D of the rows, their total weight N, and the constant of the log-likelihood.

    `sigma` is given where it is added to known standard errors, ``variance = se^2 + sigma^2``.
    """
    design = model.design
    n = design.y.size
    count = np.ones(n) if design.weights is None else design.weights
    if design.se is None:
        if design.precision is None:
            return count, float(count.sum()), 0.0
        return count * design.precision, float(count.sum()), 0.5 * float(count @ np.log(design.precision))
    variance = design.se**2 if sigma is None else design.se**2 + sigma**2
    return count / variance, float(count.sum()), -0.5 * float(count @ np.log(variance))


def statistics(model: Model) -> Statistics:
    """Read the rows once; where sigma is added to standard errors at sigma = 0, for the pattern."""
    cached = model.__dict__.get("_statistics")
    if cached is None:
        weight, total, constant = row_terms(model)
        cross = model.row_blocks.cross_products(working_response(model), np.ascontiguousarray(weight))
        cached = model.__dict__["_statistics"] = Statistics(cross, total, constant)
    return cast(Statistics, cached)


def working_response(model: Model) -> Array:
    """``y - offset - X mean``, the response from which prior means are taken, (n,)."""
    design, coefficients = model.design, model.coefficients
    y = design.y if design.offset is None else design.y - design.offset
    mean = np.asarray(coefficients.mean)
    if mean.any():
        shift = np.zeros(design.V.shape[1])
        np.add.at(shift, design.x_columns, mean)
        y = y - (design.V @ shift - float(mean @ np.asarray(coefficients.centre)))
    return np.ascontiguousarray(y)


class GaussianMarginal:
    """log p(y | theta), its gradient, and the conditional moments given theta.

    Parameters
    ----------
    model : Model
    flat : bool
        Give every coefficient a flat prior (REML); the model's own priors otherwise.
    profile : bool
        Maximise over the coefficients instead of integrating (ML); implies `flat`.
    threads : int
        Threads over which nodes are spread.
    """

    def __init__(self, model: Model, *, flat: bool = False, profile: bool = False, threads: int = 1) -> None:
        self.model = model
        self.hyper = model.hyperparameters
        self.threads = threads
        self.profile = profile
        coefficients = model.coefficients
        p = len(coefficients.names)
        unit = flat or profile
        self.proper = np.zeros(p) if unit else np.asarray(coefficients.proper, dtype=float)
        self.scale = np.ones(p) if unit else np.asarray(coefficients.scale, dtype=float)
        self.mixtures = () if unit else self.hyper.mixtures
        self.adds_sigma = model.design.se is not None and model.design.se_sigma
        self.statistics = statistics(model)
        self.engine = LeafRoot(self.statistics.cross, self.proper, threads)
        self.group_counts = self.statistics.cross.structure.sizes
        self.n_evaluations = 0

    @property
    def size(self) -> int:
        return self.hyper.size

    def seconds(self) -> float:
        """Rough time of one evaluation, from counts alone (see `LeafRoot.seconds`)."""
        rows = 4e-4 + 5e-8 * self.model.design.y.size if self.adds_sigma else 0.0
        return self.engine.seconds() + rows

    def scales(self, theta: Array) -> Array:
        """Prior scales of the coefficients at each theta, (K, p)."""
        scales = np.tile(self.scale, (theta.shape[0], 1))
        if self.mixtures:
            mixing = theta[:, self.hyper.mixture_slice()]
            for column, mixture in enumerate(self.mixtures):
                scales[:, mixture.coefficient] *= np.exp(0.5 * mixing[:, column])
        return scales

    def value(self, theta: Array) -> tuple[Array, Evaluation]:
        """log p(y | theta), (K,), and the coefficients' conditional moments."""
        self.n_evaluations += theta.shape[0]
        if self.adds_sigma:
            return self._value_by_node(theta)
        evaluation = self.engine.evaluate(*self.arguments(theta), profile=self.profile)
        return self._log_likelihood(theta, evaluation, self.statistics.constant), evaluation

    def value_and_gradient(self, theta: Array) -> tuple[Array, Array]:
        """log p(y | theta), (K,), and its gradient, (K, size)."""
        self.n_evaluations += theta.shape[0]
        if self.adds_sigma:
            return self._gradient_by_node(theta)
        moments = self.engine.moments(*self.arguments(theta), profile=self.profile)
        value = self._log_likelihood(theta, moments.evaluation, self.statistics.constant)
        return value, self._gradient(theta, moments)

    def moments(self, theta: Array) -> Moments:
        """Conditional moments of coefficients and of every group effect at each theta."""
        if not self.adds_sigma:
            return self.engine.moments(*self.arguments(theta), profile=self.profile, effects=True)
        parts = [
            self.at_sigma(row)[0].moments(*self.arguments(row), profile=self.profile, effects=True)
            for row in theta[:, None, :]
        ]
        evaluation = Evaluation(*(np.concatenate(field) for field in zip(*(p.evaluation for p in parts), strict=True)))
        return Moments(evaluation, *(np.concatenate([part[i] for part in parts]) for i in (1, 2, 3)))

    def draw_effects(self, theta: Array, gamma: Array, normals: Array) -> Array:
        """Draws of all group effects given theta and the coefficients gamma, (K, effects)."""
        shifted = np.ascontiguousarray(gamma - np.asarray(self.model.coefficients.mean))
        lams, inv_vars, _ = self.arguments(theta)
        if not self.adds_sigma:
            return self.engine.draws(lams, inv_vars, shifted, normals)
        rows = [
            self.at_sigma(theta[k : k + 1])[0].draws(
                lams[k : k + 1], inv_vars[k : k + 1], shifted[k : k + 1], normals[k : k + 1]
            )
            for k in range(theta.shape[0])
        ]
        return np.concatenate(rows)

    # -- pieces -----------------------------------------------------------------------------------------------------

    def arguments(self, theta: Array) -> tuple[Array, Array, Array]:
        """Factors Lambda, 1 / sigma^2 and prior scales at each theta, as `LeafRoot` takes them."""
        inv_vars = np.ones(theta.shape[0]) if self.adds_sigma else self.hyper.inverse_variance(theta)
        return np.ascontiguousarray(self.hyper.factors(theta)), inv_vars, np.ascontiguousarray(self.scales(theta))

    def _log_likelihood(self, theta: Array, evaluation: Evaluation, constant: float) -> Array:
        total = self.statistics.total_weight
        value = constant - 0.5 * total * LOG_2PI - evaluation.half_log_det - 0.5 * evaluation.quadratic
        if not self.profile:
            value = value + 0.5 * LOG_2PI * float(np.sum(self.proper == 0))
        if self.hyper.sigma_at is not None and not self.adds_sigma:
            value = value - total * theta[:, self.hyper.sigma_at]
        return value

    def _gradient(self, theta: Array, moments: Moments) -> Array:
        gradient = self.hyper.gradient_of_terms(theta, moments.zz, self.group_counts)
        evaluation = moments.evaluation
        second = _second_moments(evaluation)
        if self.hyper.sigma_at is not None and not self.adds_sigma:
            structure = self.statistics.cross.structure
            known = _traces(moments.zz, structure.widths, structure.lam_at)
            free = structure.n_effects
            if not self.profile:
                free += structure.n_coefficients
                known = known + second @ self.proper
            gradient[:, self.hyper.sigma_at] = -self.statistics.total_weight + evaluation.quadratic + free - known
        for column, mixture in zip(range(self.size)[self.hyper.mixture_slice()], self.mixtures, strict=False):
            gradient[:, column] = 0.5 * (second[:, mixture.coefficient] - 1)
        return gradient

    # -- sigma added to known standard errors: the weights of the rows change with it -------------------------------

    def at_sigma(self, theta: Array) -> tuple[LeafRoot, float]:
        """The factorisation and the constant of the log-likelihood at the sigma of one theta (1, size)."""
        assert self.hyper.sigma_at is not None
        weight, _, constant = row_terms(self.model, sigma=float(np.exp(theta[0, self.hyper.sigma_at])))
        cross = self.model.row_blocks.cross_products(self._response, np.ascontiguousarray(weight))
        return LeafRoot(cross, self.proper, 1), constant

    @property
    def _response(self) -> Array:
        return working_response(self.model)

    def _value_by_node(self, theta: Array) -> tuple[Array, Evaluation]:
        values, evaluations = [], []
        for row in theta[:, None, :]:
            engine, constant = self.at_sigma(row)
            evaluation = engine.evaluate(*self.arguments(row), profile=self.profile)
            values.append(self._log_likelihood(row, evaluation, constant))
            evaluations.append(evaluation)
        return np.concatenate(values), Evaluation(*(np.concatenate(part) for part in zip(*evaluations, strict=True)))

    def _gradient_by_node(self, theta: Array) -> tuple[Array, Array]:
        assert self.hyper.sigma_at is not None
        values, gradients = np.empty(theta.shape[0]), np.empty(theta.shape)
        for k, row in enumerate(theta[:, None, :]):
            engine, constant = self.at_sigma(row)
            moments = engine.moments(*self.arguments(row), profile=self.profile)
            values[k] = self._log_likelihood(row, moments.evaluation, constant)[0]
            gradients[k] = self._gradient(row, moments)[0]
            ends = np.repeat(row, 2, 0)
            ends[:, self.hyper.sigma_at] += [-SIGMA_STEP, SIGMA_STEP]
            low, high = self._value_by_node(ends)[0]
            gradients[k, self.hyper.sigma_at] = (high - low) / (2 * SIGMA_STEP)
        return values, gradients


def _second_moments(evaluation: Evaluation) -> Array:
    """E[b_j^2 | y, theta], (K, p)."""
    p = evaluation.mean.shape[1]
    if not p:
        return np.zeros_like(evaluation.mean)
    inverse = np.linalg.inv(evaluation.low)
    return np.asarray(evaluation.mean**2 + np.einsum("kij,kij->kj", inverse, inverse))


def _traces(zz: Array, widths: tuple[int, ...], lam_at: tuple[int, ...]) -> Array:
    """The sum over factors of tr(sum_g E[z z']), (K,)."""
    positions = [at + i * (width + 1) for width, at in zip(widths, lam_at, strict=True) for i in range(width)]
    return np.asarray(zz[:, positions].sum(axis=1))


def log_likelihood(model: Model, params: Mapping[str, float]) -> float:
    """log p(y | coefficients, hyperparameters); see `Model.log_likelihood`."""
    known = model.parameter_names
    values = {}
    for name, value in dict(params).items():
        try:
            values[str(name)] = float(value)
        except (TypeError, ValueError):
            raise ModelError(f"The value of {name!r} in params is {value!r}; it must be a number.") from None
    for name in values:
        if name not in known:
            raise unknown_parameter(name, known)
    for name in known:
        if name not in values:
            raise ModelError(f"params has no value for {name!r}; it needs one for each of: {', '.join(known)}.")
    theta = model.hyperparameters.from_public(values)[None, :]
    coefficients = model.coefficients
    beta = np.array([values[name] for name in coefficients.names])
    shift = coefficients.from_public(beta) - np.asarray(coefficients.mean)
    marginal = GaussianMarginal(model, profile=True)
    if marginal.adds_sigma:
        engine, constant = marginal.at_sigma(theta)
        cross = engine.cross
    else:
        cross, constant = marginal.statistics.cross, marginal.statistics.constant
    lams, inv_vars, _ = marginal.arguments(theta)
    fixed = LeafRoot(cross.at_coefficients(shift), np.empty(0))
    evaluation = fixed.evaluate(lams, inv_vars, np.empty((1, 0)), profile=True)
    return float(marginal._log_likelihood(theta, evaluation, constant)[0])
