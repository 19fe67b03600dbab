"""The exact engine for a Gaussian response: only theta is explored, by importance sampling; all else is integrated.

The steps of a run: the mode of log p(theta | y); a heavy-tailed proposal there; quasi-random nodes with Pareto-smoothed
weights against the exact density, in growing number; equally weighted draws. Where the weights have too heavy a tail,
the proposal is fitted anew to what was learned, and then NUTS takes over. Where one evaluation is dear, the density is
interpolated (`surrogate`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.inference import surrogate
from partialpool.inference.base import GOOD_K, Accuracy, Result, Settings
from partialpool.inference.importance import (
    effective_sample_size,
    logsumexp,
    normalise,
    pareto_smooth,
    systematic_resample,
)
from partialpool.inference.optimum import negative_hessian
from partialpool.inference.progress import Progress
from partialpool.inference.proposal import Mixture, Proposal, at_mode, from_weighted
from partialpool.inference.sobol import Sobol, normal_quantile
from partialpool.inference.target import Target
from partialpool.model import Model

Array = NDArray[np.float64]

FIRST_NODES = 1024
MOST_NODES = 400_000
#: Seconds of plain importance sampling (on one core, by `LeafRoot.seconds`) above which the density is interpolated.
PATIENCE = 2.0
#: Nodes of the interpolated density for each effective draw asked for.
SURROGATE_NODES = 16
#: Draws are made as good as independent where that costs no more than this, seconds.
BARGAIN = 0.05
ADAPTATIONS = 3
#: How much wider than the posterior the second part of the last proposal is that is tried before NUTS.
WIDER = 2.0
#: A first sample is fair where its efficiency is above FAIR_SHARE times DIMENSION_SHARE to the number of dimensions:
#: t proposals of a normal target lose 6% a dimension, and posteriors are not quite normal.
FAIR_SHARE = 0.35
DIMENSION_SHARE = 0.93


class Weighted(NamedTuple):
    """Nodes of one proposal, their smoothed log weights, Pareto k, and the least effective sample size."""

    sample: Sample
    log_weights: Array
    k: float
    have: float


@dataclass(frozen=True, eq=False)
class Sample:
    """Weighted nodes: phi and theta (K, d), log density less log proposal (K,), and the coefficients' moments."""

    phi: Array
    theta: Array
    log_ratio: Array
    beta_mean: Array
    beta_half: Array

    @staticmethod
    def join(parts: list[Sample]) -> Sample:
        if len(parts) == 1:
            return parts[0]
        return Sample(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in Sample.__dataclass_fields__)
        )

    @property
    def beta_sd(self) -> Array:
        return np.asarray(np.sqrt((self.beta_half**2).sum(axis=2)))


class MarginalEngine:
    """Importance sampling of the hyperparameters, everything else integrated out."""

    name = "marginal"

    def run(self, model: Model, settings: Settings) -> Result:
        """The posterior of a model with a Gaussian response."""
        from partialpool.inference.select import select_engine

        return _Run(model, settings, select_engine(model, "marginal")[1]).result()


class _Run:
    """One run; holds what its steps share."""

    def __init__(self, model: Model, settings: Settings, reason: str) -> None:
        self.model, self.settings, self.reason = model, settings, reason
        self.began = time.perf_counter()
        self.target = Target(model, settings.threads)
        self.size = self.target.marginal.size
        self.rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(1,)))
        self.steps: list[str] = []
        self.notes: list[str] = []

    def result(self) -> Result:
        if not self.size:
            return self._without_hyperparameters()
        with Progress(self.settings.progress) as self.progress:
            self.progress.update(0.0, "finding the mode")
            mode = self.target.mode()
            curvature = negative_hessian(self.target.objective, mode.point)
            proposal = at_mode(mode.point, curvature, mode.value, self.target.log_density)
            self.steps.append(f"mode of the hyperparameters: {mode.status.value} after {mode.iterations} steps")
            seconds = self.target.marginal.seconds()
            if seconds * self.settings.ess / 0.7 > PATIENCE and self.size <= 10:
                result = self._interpolated(proposal)
                if result is not None:
                    return result
            return self._sampled(proposal, seconds)

    # -- plain importance sampling ------------------------------------------------------------------------------------

    def _sampled(self, start: Proposal, seconds: float) -> Result:
        goal = float(self.settings.ess)
        if seconds * self.settings.draws / 0.6 < BARGAIN:
            goal = max(goal, float(self.settings.draws))
        first = int(min(max(FIRST_NODES, 0.3 * goal), MOST_NODES))
        grown = self._grown(*self._adapted(start, first), first, goal)
        for _ in range(ADAPTATIONS):
            if grown.k <= GOOD_K or grown.have <= self.size + 1:
                break
            self.steps.append(
                f"tails too heavy for the proposal: Pareto k {grown.k:.2f}, effective sample size {grown.have:,.0f}; "
                "a fitted and a wider one instead"
            )
            fitted = from_weighted(grown.sample.phi, normalise(grown.log_weights))
            wide = Mixture((fitted, replace(fitted, factor=WIDER * fitted.factor)))
            points = Sobol(self.size, self.rng)
            grown = self._grown(self._evaluate(wide, points.next(first)), wide, points, first, goal)
        if grown.k > GOOD_K:
            return self._escalate(grown.k, grown.have)
        return self._result(grown.sample, grown.log_weights, grown.k, surrogate_error=None)

    def _grown(self, sample: Sample, proposal: Proposal | Mixture, points: Sobol, first: int, goal: float) -> Weighted:
        """Nodes of one proposal until the effective sample size reaches its goal, or the weights prove too heavy."""
        parts = [sample]
        while True:
            sample = Sample.join(parts)
            log_weights, k = pareto_smooth(sample.log_ratio)
            ess = self._ess(sample, log_weights)
            have, count = float(ess.min()), sample.theta.shape[0]
            self.progress.update(min(have / goal, 1.0), f"importance sampling, {count:,} nodes")
            heavy = k > GOOD_K  # of few weights k is a rough estimate: more of them decide
            if (have >= goal and not heavy) or (heavy and count >= 16 * first) or count >= MOST_NODES:
                return Weighted(sample, log_weights, k, have)
            wanted = 2 * count if heavy else count * goal / max(have, 1.0) * 1.06 + 32
            more = int(min(max(wanted, count + 128), 8 * count, MOST_NODES)) - count
            parts.append(self._evaluate(proposal, points.next(more)))

    def _adapted(self, start: Proposal, count: int) -> tuple[Sample, Proposal | Mixture, Sobol]:
        """A first sample; where it is poor, a proposal fitted to it joins the one it came from. The best is kept."""
        proposal: Proposal | Mixture = start
        latest = start
        fair = FAIR_SHARE * DIMENSION_SHARE**self.size
        tried: list[tuple[tuple[bool, bool, float], Sample, Proposal | Mixture, Sobol]] = []
        for _ in range(ADAPTATIONS + 1):
            points = Sobol(self.size, self.rng)
            sample = self._evaluate(proposal, points.next(count))
            log_weights, k = pareto_smooth(sample.log_ratio)
            share = float(effective_sample_size(log_weights)) / count
            tried.append(((k <= 0.5, k <= GOOD_K, share), sample, proposal, points))
            # a fit to fewer effective points than this would be worse than the mode
            if (k <= 0.5 and share > fair) or share * count < 4 * self.size:
                break
            self.steps.append(f"proposal widened by what was learned: Pareto k {k:.2f}, efficiency {share:.0%}")
            fitted = from_weighted(sample.phi, np.exp(log_weights))
            proposal, latest = Mixture((latest, fitted)), fitted
        return max(tried, key=lambda attempt: attempt[0])[1:]

    def _evaluate(self, proposal: Proposal | Mixture, uniforms: Array) -> Sample:
        phi, log_q = proposal.points(uniforms)
        value, theta, evaluation = self.target.value(phi)
        mean, half = self.target.public_moments(theta, evaluation)
        return Sample(phi, theta, value - log_q, mean, half)

    def _ess(self, sample: Sample, log_weights: Array) -> Array:
        """Effective sample sizes of coefficients and hyperparameters, in the order of the parameters' names."""
        public = self.target.marginal.hyper.public(sample.theta)
        hyper = np.minimum(effective_sample_size(log_weights, public), sample.theta.shape[0])
        return np.concatenate([self._coefficient_ess(sample, normalise(log_weights)), hyper])

    def _escalate(self, k: float, ess: float) -> Result:
        """Importance weights cannot carry this posterior: NUTS on theta."""
        from partialpool.inference.whitened import run_whitened

        self.steps.append(
            f"importance sampling given up: Pareto k {k:.2f}, effective sample size {ess:,.0f}; "
            "NUTS on the hyperparameters instead"
        )
        return run_whitened(self.model, self.settings, self.reason, tuple(self.steps))

    # -- interpolation ------------------------------------------------------------------------------------------------

    def _interpolated(self, proposal: Proposal) -> Result | None:
        """Few exact nodes, a certified interpolation between them; None where it is not good enough."""
        p = len(self.model.coefficients.names)
        d = self.size
        # of the variance that 1 / ess allows, the weights take up to 15% (they have SURROGATE_NODES times ess nodes)
        tolerance = min(surrogate.TOLERANCE, math.sqrt(0.85 / self.settings.ess))
        count = 3 * math.ceil(0.9 * surrogate.n_features(d) + 4 * d)
        points = Sobol(d, self.rng)
        x, value, moments = np.empty((0, d)), np.empty(0), np.empty((0, p + p * (p + 1) // 2))
        for _ in range(3):
            new = surrogate.SPREAD * normal_quantile(points.next(count))
            new_value, new_moments = self._exact(proposal.from_whitened(new))
            x, value, moments = np.vstack([x, new]), np.append(value, new_value), np.vstack([moments, new_moments])
            fitted = surrogate.fit_surrogate(x, value, moments, p)
            if fitted.error <= tolerance and fitted.moment_error <= tolerance:
                break
        else:
            self.steps.append(
                f"interpolation given up: error {fitted.error:.3f} in the log density, {fitted.moment_error:.3f} in "
                "the coefficients' moments, on nodes held out"
            )
            return None
        self.steps.append(f"log density interpolated between {x.shape[0]} exact evaluations")
        return self._from_surrogate(proposal, fitted, p)

    def _exact(self, phi: Array) -> tuple[Array, Array]:
        """Exact log densities and packed moments, a few nodes at a time so that progress shows."""
        values, moments = [], []
        step = max(8, self.settings.threads * 4)
        for start in range(0, phi.shape[0], step):
            value, theta, evaluation = self.target.value(phi[start : start + step])
            mean, half = self.target.public_moments(theta, evaluation)
            covariance = half @ np.swapaxes(half, 1, 2)
            values.append(value)
            moments.append(surrogate.pack_moments(mean, np.asarray(np.linalg.cholesky(covariance), dtype=float)))
            self.progress.update(start / phi.shape[0], "evaluating the log density")
        return np.concatenate(values), np.concatenate(moments)

    def _from_surrogate(self, proposal: Proposal, fitted: surrogate.Surrogate, p: int) -> Result | None:
        points = Sobol(self.size, self.rng)
        count = int(max(SURROGATE_NODES * self.settings.ess, 4 * self.settings.draws))
        phi, log_q = proposal.points(points.next(count))
        x = proposal.whitened(phi)
        ratio = fitted.log_density(x) - log_q
        inside = np.isfinite(ratio)
        phi, x, ratio = phi[inside], x[inside], ratio[inside]
        log_weights, k = pareto_smooth(ratio)
        if k > GOOD_K:
            return None
        mean, half = fitted.moments(x, p)
        theta = self.target.coordinates.theta(phi)
        sample = Sample(phi, theta, ratio - math.log(count / phi.shape[0]), mean, half)
        return self._result(sample, log_weights, k, surrogate_error=max(fitted.error, fitted.moment_error))

    # -- results ------------------------------------------------------------------------------------------------------

    def _result(self, sample: Sample, log_weights: Array, k: float, *, surrogate_error: float | None) -> Result:
        names = self.model.parameter_names
        weights = normalise(log_weights)
        picked = systematic_resample(weights, self.settings.draws, self.rng)
        noise = self.rng.standard_normal((self.settings.draws, sample.beta_mean.shape[1]))
        draws_beta = sample.beta_mean[picked] + np.einsum("kij,kj->ki", sample.beta_half[picked], noise)
        ess = self._ess(sample, log_weights)
        if surrogate_error:
            ess = 1 / (1 / ess + surrogate_error**2)
        enough = not ess.size or float(ess.min()) >= self.settings.ess
        if not enough:
            self.notes.append(
                f"an effective sample size of {ess.min():,.0f} was reached, not the {self.settings.ess:,.0f} asked for"
            )
        accuracy = Accuracy(
            engine="marginal", reason=self.reason, trusted=enough and k < GOOD_K,
            ess=dict(zip(names, ess.tolist(), strict=True)), pareto_k=k, nodes=sample.theta.shape[0],
            evaluations=self.target.marginal.n_evaluations, surrogate_error=surrogate_error,
            steps=tuple(self.steps), notes=tuple(self.notes), seconds=time.perf_counter() - self.began,
        )  # fmt: skip
        with np.errstate(divide="ignore"):  # a weight may underflow to 0
            log_weights = np.log(weights)
        return Result(
            sample.theta, log_weights, sample.beta_mean, sample.beta_sd, sample.theta[picked], draws_beta,
            self._log_marginal_likelihood(sample.log_ratio), accuracy, self.settings,
        )  # fmt: skip

    def _coefficient_ess(self, sample: Sample, weights: Array) -> Array:
        """Var(beta) / Var(estimate of its mean); the estimate averages conditional means."""
        mean = weights @ sample.beta_mean
        between = sample.beta_mean - mean
        variance = weights @ (sample.beta_sd**2 + between**2)
        error = (weights**2) @ between**2
        kish = 1 / float(weights @ weights)
        return np.where(error > 0, variance / np.where(error > 0, error, 1.0), kish * 1e3).clip(max=kish * 1e3)

    def _log_marginal_likelihood(self, log_ratio: Array) -> float:
        """log p(y), or nan where a prior is flat: its normalising constant does not exist."""
        if not all(prior.proper for prior in self.model.priors.values()):
            return math.nan
        return float(logsumexp(log_ratio) - math.log(log_ratio.size))

    def _without_hyperparameters(self) -> Result:
        """Everything is known but the coefficients: one node is the whole posterior."""
        theta = np.zeros((1, 0))
        value, theta, evaluation = self.target.value(theta)
        mean, half = self.target.public_moments(theta, evaluation)
        sample = Sample(theta, theta, value, mean, half)
        done = self._result(sample, np.zeros(1), -math.inf, surrogate_error=None)
        exact = dict.fromkeys(self.model.parameter_names, math.inf)
        accuracy = replace(
            done.accuracy,
            ess=exact,
            pareto_k=None,
            trusted=True,
            notes=(),
            steps=("no hyperparameters: the posterior is exactly normal",),
        )
        return replace(done, accuracy=accuracy)
