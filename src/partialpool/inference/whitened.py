r"""NUTS on the hyperparameters alone, in whitened coordinates: coefficients and group effects integrated out exactly.

The target is :math:`\log p(y | \theta) + \log p(\theta)` in :math:`\theta = m + L z`, m the mode and :math:`L L'` the
inverse negative Hessian there: close to a standard normal, so that tuning is short. Importance sampling escalates to
this engine where its weights are too uneven.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.base import Accuracy, Result, Settings
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.nuts import CHAINS, Grown, Plan, sample_until, thinned, verdict
from partialpool.inference.optimum import maximise, negative_hessian, starting_point
from partialpool.model import Model

Array = NDArray[np.float64]

TUNE = 300
FIRST = 500
LIMIT = 50_000
TARGET_ACCEPT = 0.8
#: Smallest curvature that whitening believes: no direction is stretched beyond an sd of 3.
LEAST_CURVATURE = 0.1


class WhitenedEngine:
    """NUTS on theta in whitened coordinates; see the module."""

    name = "whitened"

    def run(self, model: Model, settings: Settings) -> Result:
        """Four chains, run on until every hyperparameter's bulk and tail effective sample size is ``settings.ess``."""
        reason = ""  # fit() fills in that of `select_engine`
        return run_whitened(model, settings, reason)


def run_whitened(model: Model, settings: Settings, reason: str, steps: Sequence[str] = ()) -> Result:
    """The posterior by NUTS on theta.

    Parameters
    ----------
    model : Model
    settings : Settings
    reason : str
        Why this engine runs, for `fit.accuracy`.
    steps : sequence of str
        What was tried before.
    """
    began = time.perf_counter()
    target = Whitened(model)
    first = max(FIRST, math.ceil(settings.draws / CHAINS))
    plan = Plan(
        first, max(LIMIT, first), settings.ess, TUNE, settings.seed, settings.threads, settings.progress,
        TARGET_ACCEPT,
    )  # fmt: skip

    def public(positions: Array) -> Array:
        chains, draws, size = positions.shape
        theta = target.theta(positions.reshape(chains * draws, size))
        return target.hyper.public(theta).reshape(chains, draws, len(target.hyper.names))

    grown = sample_until(lambda: target.density, target.size, target.initial, public, plan)
    return _result(target, grown, settings, reason, steps, began)


class Whitened:
    """The log density of z, with ``theta = bounds(mode + L z)``.

    Where the prior of an sd has a bounded support (Uniform, Beta), the coordinate behind its log sd is the logit of
    where in the support it lies, so that the density has no edge.
    """

    def __init__(self, model: Model) -> None:
        self.marginal = GaussianMarginal(model)
        self.hyper = self.marginal.hyper
        self.size = self.hyper.size
        self.bounds = _bounds(model)
        self.mode = np.zeros(self.size)
        self.factor = np.eye(self.size)
        if self.size:
            start, inverse = starting_point(self.marginal)
            for column in self.bounds:
                start[column], inverse[column] = 0.0, 1.0
            best = maximise(self.posterior, start, inverse)
            self.mode = best.point
            values, vectors = np.linalg.eigh(negative_hessian(self.posterior, best.point))
            self.factor = vectors / np.sqrt(np.maximum(np.nan_to_num(values), LEAST_CURVATURE))

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Log posterior density (K,) and gradient (K, size) in the unbounded coordinates (K, size)."""
        theta = self._bounded(points)
        with np.errstate(all="ignore"):
            value, gradient = self.marginal.value_and_gradient(theta)
            prior, slope = self.hyper.log_prior(theta)
            value, gradient = value + prior, gradient + slope
            for column, (_, width) in self.bounds.items():
                x, share = np.exp(theta[:, column]), _logistic(points[:, column])
                relative = width * share * (1 - share) / x  # d theta / d coordinate
                value = value + np.log(relative)
                gradient[:, column] = gradient[:, column] * relative + (1 - 2 * share) - relative
        return value, gradient

    def density(self, position: Array) -> tuple[float, Array]:
        """Log density of z and its gradient; -inf where numbers overflow, which the sampler rejects."""
        value, gradient = self.posterior((self.mode + self.factor @ position)[None, :])
        return float(value[0]), gradient[0] @ self.factor

    def initial(self, rng: np.random.Generator) -> Array:
        """A start a little wider than the posterior."""
        return 1.5 * rng.standard_normal(self.size)

    def theta(self, positions: Array) -> Array:
        """theta (K, size) from z (K, size)."""
        return self._bounded(self.mode + positions @ self.factor.T)

    def _bounded(self, points: Array) -> Array:
        if not self.bounds:
            return points
        theta = points.copy()
        for column, (low, width) in self.bounds.items():
            theta[:, column] = np.log(low + width * _logistic(points[:, column]))
        return theta


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
    return np.asarray(1 / (1 + np.exp(-x)))


def _result(
    target: Whitened, grown: Grown, settings: Settings, reason: str, steps: Sequence[str], began: float
) -> Result:
    chains, hyper = grown.chains, target.hyper
    stacked = chains.stacked()
    theta = target.theta(stacked)
    kept = thinned(stacked.shape[0], settings.draws)
    mean, sd, draws = _coefficients(target.marginal, theta, kept, settings.seed)
    names = list(hyper.names)
    trusted, notes = verdict(grown, names, settings.ess)
    told = f"{chains.positions.shape[0]} chains of {chains.draws:,} draws in {target.size} whitened dimensions"
    accuracy = Accuracy(
        engine="whitened",
        reason=reason,
        trusted=trusted,
        ess=dict(zip(names, grown.ess.tolist(), strict=True)),
        nodes=stacked.shape[0],
        evaluations=chains.evaluations,
        rhat=dict(zip(names, grown.rhat.tolist(), strict=True)),
        divergences=chains.divergences,
        steps=(*steps, told),
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
    )
    return Result(
        theta=theta,
        log_weights=np.full(stacked.shape[0], -math.log(stacked.shape[0])),
        beta_mean=mean,
        beta_sd=sd,
        draws_theta=theta[kept],
        draws_beta=draws,
        log_marginal_likelihood=math.nan,
        accuracy=accuracy,
        settings=settings,
        chains=chains.positions.shape[0],
        statistics={"depth": chains.depth, "energy": chains.energy, "diverging": chains.diverging},
    )


def _coefficients(
    marginal: GaussianMarginal, theta: Array, kept: NDArray[np.int64], seed: int
) -> tuple[Array, Array, Array]:
    """Conditional means and sds of the public coefficients at each node, and a draw at each node kept."""
    coefficients = marginal.model.coefficients
    p = len(coefficients.names)
    if not p:
        return np.empty((theta.shape[0], 0)), np.empty((theta.shape[0], 0)), np.empty((kept.size, 0))
    _, evaluation = marginal.value(theta)
    scale = marginal.scales(theta)
    public = coefficients.public_matrix()
    gamma = np.asarray(coefficients.mean) + scale * evaluation.mean
    # b has the precision low low', so that b - E b = low'^-1 e for a standard normal e
    spread = public * scale[:, None, :] @ np.swapaxes(np.linalg.inv(evaluation.low), 1, 2)
    noise = np.random.default_rng([seed, 1]).standard_normal((kept.size, p))
    mean = coefficients.to_public(gamma)
    draws = mean[kept] + np.einsum("kij,kj->ki", spread[kept], noise)
    return mean, np.sqrt(np.einsum("kij,kij->ki", spread, spread)), draws
