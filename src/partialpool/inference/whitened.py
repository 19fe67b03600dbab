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
from partialpool.inference.nuts import CHAINS, Grown, Plan, sample_until, thinned, verdict
from partialpool.inference.optimum import negative_hessian
from partialpool.inference.target import Target
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
    """The log density of z, with ``phi = mode + L z`` in the coordinates of `Coordinates`."""

    def __init__(self, model: Model) -> None:
        self.target = Target(model, threads=1)
        self.hyper = self.target.marginal.hyper
        self.size = self.hyper.size
        self.mode = np.zeros(self.size)
        self.factor = np.eye(self.size)
        if self.size:
            self.mode = self.target.mode().point
            values, vectors = np.linalg.eigh(negative_hessian(self.target.objective, self.mode))
            self.factor = vectors / np.sqrt(np.maximum(np.nan_to_num(values), LEAST_CURVATURE))

    def density(self, position: Array) -> tuple[float, Array]:
        """Log density of z and its gradient; -inf where numbers overflow, which the sampler rejects."""
        value, gradient = self.target.objective((self.mode + self.factor @ position)[None, :])
        return float(value[0]), gradient[0] @ self.factor

    def initial(self, rng: np.random.Generator) -> Array:
        """A start wider than the posterior."""
        return 2.0 * rng.standard_normal(self.size)

    def theta(self, positions: Array) -> Array:
        """theta (K, size) from z (K, size)."""
        return self.target.coordinates.theta(self.mode + positions @ self.factor.T)


def _result(
    target: Whitened, grown: Grown, settings: Settings, reason: str, steps: Sequence[str], began: float
) -> Result:
    chains, hyper = grown.chains, target.hyper
    stacked = chains.stacked()
    theta = target.theta(stacked)
    kept = thinned(stacked.shape[0], settings.draws)
    _, evaluation = target.target.marginal.value(theta)
    mean, half = target.target.public_moments(theta, evaluation)
    noise = np.random.default_rng([settings.seed, 1]).standard_normal((kept.size, mean.shape[1]))
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
        beta_sd=np.sqrt((half**2).sum(axis=2)),
        draws_theta=theta[kept],
        draws_beta=mean[kept] + np.einsum("kij,kj->ki", half[kept], noise),
        log_marginal_likelihood=math.nan,
        accuracy=accuracy,
        settings=settings,
        chains=chains.positions.shape[0],
        statistics={"depth": chains.depth, "energy": chains.energy, "diverging": chains.diverging},
    )
