"""The engine for responses that are not Gaussian: leaf by quadrature, root by Laplace, importance sampling over all.

The steps of a run: the mode of theta with the root integrated out (`RootLaplace`); as many quadrature nodes as a
measured gap asks for; importance sampling of theta and root from a proposal that follows theta (`Transport`), with
Pareto-smoothed weights, in growing number. Where the weights fail or the root is wide, NUTS in whitened coordinates
takes over.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.lapack import one_blas_thread
from partialpool.algebra.quadrature import ladder
from partialpool.inference import surrogate
from partialpool.inference.base import GOOD_K, Accuracy, Result, Settings
from partialpool.inference.gap import Gap, choose_nodes, gap_over_posterior, next_nodes, use_nodes
from partialpool.inference.importance import (
    effective_sample_size,
    logsumexp,
    normalise,
    pareto_smooth,
    systematic_resample,
)
from partialpool.inference.joint import JointDensity
from partialpool.inference.progress import Progress
from partialpool.inference.remarks import remarks
from partialpool.inference.root import RootLaplace
from partialpool.inference.sobol import MAX_DIMENSIONS, Sobol, normal_quantile
from partialpool.inference.transport import SplitT, Transport, at_origin, refitted
from partialpool.model import Model

Array = NDArray[np.float64]

FIRST_NODES = 1024
MOST_NODES = 200_000
#: Unknowns (theta and root) up to which importance sampling is tried.
MOST_DIMENSIONS = 300
#: Efficiency below which importance sampling is given up.
LEAST_EFFICIENCY = 0.02
#: Adaptations of the proposal.
ADAPTATIONS = 3
#: Efficiency below which a proposal is refitted (less in more dimensions).
FAIR_SHARE = 0.2
#: Evaluations of rows that may be spent on draws as good as independent.
BARGAIN = 10_000_000
#: Evaluations of rows (times the effective sample size) above which the density is interpolated, and in how many
#: dimensions that can be.
PATIENCE = 400_000_000
MOST_INTERPOLATED = 8
#: Nodes of the interpolated density for each effective draw asked for.
INTERPOLATED_NODES = 16
#: Exact evaluations made at a time, whatever the number of threads.
INTERPOLATED_BATCH = 16


@dataclass(frozen=True, eq=False)
class Sample:
    """Weighted nodes: x, points (K, D), log density less log proposal (K,)."""

    x: Array
    points: Array
    log_ratio: Array


class Pool:
    """Nodes of several proposals; each is weighted against the mixture of all, by how many nodes each gave.

    The balance heuristic of multiple importance sampling (Veach and Guibas, 1995; Cornuet et al., 2012, Adaptive
    multiple importance sampling): no node is wasted, and no weight is larger than the best proposal would give it, but
    for a constant.
    """

    def __init__(self) -> None:
        self.proposals: list[SplitT] = []
        self.counts: list[int] = []
        self.x: list[Array] = []
        self.points: list[Array] = []
        self.log_density: list[Array] = []

    def add(self, proposal: SplitT, x: Array, points: Array, log_density: Array) -> None:
        if not self.proposals or self.proposals[-1] is not proposal:
            self.proposals.append(proposal)
            self.counts.append(0)
        self.counts[-1] += len(x)
        self.x.append(x)
        self.points.append(points)
        self.log_density.append(log_density)

    @property
    def size(self) -> int:
        return sum(self.counts)

    def sample(self) -> Sample:
        """All nodes."""
        x = np.concatenate(self.x)
        shares = np.log(np.array(self.counts) / self.size)
        logs = np.stack([share + own.log_density(x) for share, own in zip(shares, self.proposals, strict=True)])
        mixture = np.logaddexp.reduce(logs, axis=0)
        return Sample(x, np.concatenate(self.points), np.concatenate(self.log_density) - mixture)


class LaplaceEngine:
    """Leaf by quadrature, root by Laplace, corrected by importance sampling."""

    name = "laplace"

    def run(self, model: Model, settings: Settings) -> Result:
        """The posterior of a model whose response is not Gaussian."""
        return LaplaceRun(model, settings).result()


class LaplaceRun:
    """One run; holds what its steps share."""

    def __init__(self, model: Model, settings: Settings, reason: str = "") -> None:
        self.model, self.settings, self.reason = model, settings, reason
        self.began = time.perf_counter()
        self.rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(1,)))
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.evaluations = 0
        layout = model.latent
        q = 0 if layout.leaf is None else layout.widths[layout.leaf]
        steps = ladder(q)  # not the fewest: far from the mode these lead the search astray
        self.density = JointDensity(model, nodes=steps[min(1, len(steps) - 1)], threads=settings.threads)
        self.laplace = RootLaplace(self.density)
        self.gap: Gap | None = None
        self.sound = True

    def result(self) -> Result:
        with Progress(self.settings.progress) as self.progress:
            self.prepare()
            if self.density.size > MOST_DIMENSIONS:
                return self._escalate(f"{self.density.size} unknowns are too many for importance sampling")
            if self.density.work * self.settings.ess > PATIENCE and self.density.size <= MOST_INTERPOLATED:
                result = self._interpolated()
                if result is not None:
                    return result
            return self._sampled()

    # -- the mode -----------------------------------------------------------------------------------------------------

    @one_blas_thread()  # thousands of small factors: threads cost more than they bring
    def prepare(self) -> Transport:
        """The mode, as many nodes as it takes, and the map from whitened coordinates."""
        self.progress.update(0.0, "finding the mode")
        self.laplace.find_mode(1e-2)
        self.steps.extend(self._choose_nodes().sentences)
        best = self.laplace.find_mode()
        self.steps.append(f"mode of the hyperparameters: {best.status.value}")
        self.notes.extend(remarks(self.laplace))
        self.notes.extend(self._unfinished())
        self.progress.update(0.0, "curvature at the mode")
        self.transport = Transport(self.laplace, self.laplace.negative_hessian())
        self.evaluations += self.laplace.passes
        return self.transport

    def _unfinished(self) -> list[str]:
        """Inner searches that did not end well, said so."""
        found = self.density.leaf_moments(self.laplace.point(self.laplace.phi, self.laplace.root))
        lost = self.density.unfinished(found)
        if not lost:
            return list(dict.fromkeys(self.laplace.status))
        assert self.density.leaf is not None
        factor = self.model.design.factors[self.density.leaf]
        first = str(factor.labels[int(np.flatnonzero(found.status)[0])])
        self.sound = False
        return [f"the effects of {lost:,} groups of {factor.name!r} have no mode that was found (the first: {first})"]

    def _choose_nodes(self) -> Gap:
        point = self.laplace.point(self.laplace.phi, self.laplace.root)
        self.gap = choose_nodes(self.density, point)
        return self.gap

    # -- importance sampling ------------------------------------------------------------------------------------------

    def _sampled(self) -> Result:
        goal = self._goal()
        size = self.transport.size
        first = int(min(max(FIRST_NODES, 0.5 * goal, 32 * size), MOST_NODES))
        proposal = at_origin(self.transport)
        pool, points = Pool(), _Uniforms(size, self.rng)
        more, adapted = first, 0
        while True:
            self._evaluate(pool, proposal, points(more))
            sample = pool.sample()
            log_weights, k = pareto_smooth(sample.log_ratio)
            ess = self._ess(sample, log_weights)
            have, count = float(ess.min()) if ess.size else math.inf, pool.size
            self.progress.update(min(have / goal, 1.0), f"importance sampling, {count:,} nodes")
            heavy = k > GOOD_K
            kish = float(effective_sample_size(log_weights))
            if have >= goal and not heavy:
                return self._result(sample, log_weights, k, ess)
            poor = kish / count < LEAST_EFFICIENCY
            if (poor and adapted) or (heavy and count >= 12 * first) or count >= MOST_NODES:
                if heavy or poor:
                    return self._escalate(
                        f"importance sampling given up: Pareto k {k:.2f}, effective sample size {kish:,.0f} of "
                        f"{count:,} nodes"
                    )
                return self._result(sample, log_weights, k, ess)
            fair = k <= 0.5 and kish / count > max(FAIR_SHARE, 0.35 * 0.97**size)
            if adapted < ADAPTATIONS and not fair and kish > 20:
                self.steps.append(
                    f"proposal refitted to {count:,} nodes: Pareto k {k:.2f}, efficiency {kish / count:.0%}"
                )
                proposal = refitted(sample.x, np.exp(log_weights), proposal.nu, kish)
                points = _Uniforms(size, self.rng)
                adapted += 1
                more = first
                continue
            wanted = 2 * count if heavy else count * goal / max(have, 1.0) * 1.06 + 32
            more = int(min(max(wanted, count + 128), 4 * count, MOST_NODES)) - count

    def _goal(self) -> float:
        """Effective sample size to reach: where it costs little, as many as the draws to be returned."""
        cheap = self.density.work * self.settings.draws < BARGAIN and self.transport.size <= MAX_DIMENSIONS
        return max(float(self.settings.ess), float(self.settings.draws) if cheap else 0.0)

    def _evaluate(self, pool: Pool, proposal: SplitT, uniforms: Array) -> None:
        x, _ = proposal.points(uniforms)
        value, points = self.transport.log_density(x)
        self.evaluations += len(x)
        pool.add(proposal, x, points, value)

    def _quantities(self, points: Array) -> Array:
        """Public coefficients and hyperparameters (K, q)."""
        beta = self.model.coefficients.to_public(self.density.gamma(points))
        return np.concatenate([beta, self.model.hyperparameters.public(self.density.theta(points))], axis=1)

    def _ess(self, sample: Sample, log_weights: Array) -> Array:
        values = self._quantities(sample.points)
        return np.minimum(effective_sample_size(log_weights, values), len(sample.x))

    def _escalate(self, why: str) -> Result:
        """NUTS in whitened coordinates."""
        from partialpool.inference.whitened_joint import run_whitened_joint

        self.steps.append(f"{why}; NUTS in whitened coordinates instead")
        return run_whitened_joint(self)

    # -- interpolation ------------------------------------------------------------------------------------------------

    def _interpolated(self) -> Result | None:
        """A polynomial between few exact evaluations, its error measured; None where it is not good enough."""
        size = self.transport.size
        tolerance = min(surrogate.TOLERANCE, math.sqrt(0.85 / self.settings.ess))
        uniforms = _Uniforms(size, self.rng)
        x, value = np.empty((0, size)), np.empty(0)
        fitted = None
        for degree in (2, 3, 3):
            count = 3 * math.ceil(0.9 * surrogate.n_features(size, degree) + 2 * size)
            while len(x) < count or (degree == 3 and fitted is not None and len(x) < 1.3 * fitted[1]):
                new = surrogate.SPREAD * normal_quantile(uniforms(INTERPOLATED_BATCH))
                x = np.vstack([x, new])
                value = np.append(value, self.transport.log_density(new)[0])
                self.evaluations += len(new)
                self.progress.update(min(len(x) / count, 1.0), "evaluating the log density")
            whole = np.isfinite(value)
            fit = surrogate.fit_surrogate(x[whole], value[whole], np.empty((int(whole.sum()), 0)), 0, degree)
            fitted = fit, len(x)
            if fit.error <= tolerance:
                break
        else:
            self.steps.append(f"interpolation given up: error {fit.error:.3f} in the log density on nodes held out")
            return None
        self.steps.append(f"log density interpolated between {len(x)} exact evaluations")
        return self._from_surrogate(fit)

    def _from_surrogate(self, fit: surrogate.Surrogate) -> Result | None:
        proposal = at_origin(self.transport)
        count = int(max(INTERPOLATED_NODES * self.settings.ess, 4 * self.settings.draws))
        x, log_q = proposal.points(_Uniforms(self.transport.size, self.rng)(count))
        ratio = fit.log_density(x) - log_q
        inside = np.isfinite(ratio)
        x, ratio = x[inside], ratio[inside]
        log_weights, k = pareto_smooth(ratio)
        if k > GOOD_K:
            return None
        with np.errstate(all="ignore"):
            sample = Sample(x, self.transport.points(x)[0], ratio - math.log(count / len(x)))
        ess = 1 / (1 / self._ess(sample, log_weights) + fit.error**2)
        return self._result(sample, log_weights, k, ess, fit.error)

    # -- results ------------------------------------------------------------------------------------------------------

    def _result(
        self, sample: Sample, log_weights: Array, k: float, ess: Array, surrogate_error: float | None = None
    ) -> Result:
        names = self.model.parameter_names
        weights = normalise(log_weights)
        picked = systematic_resample(weights, self.settings.draws, self.rng)
        assert self.gap is not None
        error = gap_over_posterior(self.density, sample.points, weights, self.gap, self.settings.seed)
        self.steps.extend(error.sentences)
        finer = next_nodes(self.density, self.gap)
        if not error.good and finer is not None:
            self.steps.append(f"not good enough: {finer} nodes instead, and the sample drawn anew")
            use_nodes(self.density, finer)
            self.gap = replace(self.gap, nodes=finer)
            again = self._interpolated() if surrogate_error is not None else None
            return self._sampled() if again is None else again
        enough = not ess.size or float(ess.min()) >= self.settings.ess
        if not enough:
            self.notes.append(
                f"an effective sample size of {ess.min():,.0f} was reached, not the {self.settings.ess:,.0f} asked for"
            )
        self.notes.extend(error.notes)
        beta = self.model.coefficients.to_public(self.density.gamma(sample.points))
        theta = self.density.theta(sample.points)
        root = self.density.root_effects(sample.points)
        accuracy = Accuracy(
            engine="laplace", reason=self.reason, trusted=enough and k < GOOD_K and error.good and self.sound,
            ess=dict(zip(names, ess.tolist(), strict=True)), pareto_k=k, nodes=len(sample.x),
            evaluations=self.evaluations, steps=tuple(self.steps), notes=tuple(self.notes),
            seconds=time.perf_counter() - self.began, quadrature_error=error.error, worst_groups=error.worst,
            surrogate_error=surrogate_error,
        )  # fmt: skip
        with np.errstate(divide="ignore"):  # a weight may underflow to 0
            log_weights = np.log(weights)
        log_marginal = float(logsumexp(sample.log_ratio) - math.log(len(sample.x))) + self.density.log_constant()
        return Result(
            theta, log_weights, beta, np.zeros_like(beta), theta[picked], beta[picked], log_marginal, accuracy,
            self.settings, root=root, draws_root=root[picked], quadrature_nodes=self.density.nodes,
        )  # fmt: skip


class _Uniforms:
    """Quasi-random points in the first dimensions (theta, then coefficients), pseudo-random ones in the others."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.sobol = Sobol(min(size, MAX_DIMENSIONS), rng) if size else None

    def __call__(self, count: int) -> Array:
        if self.sobol is None:
            return np.empty((count, 0))
        first = self.sobol.next(count)
        return np.concatenate([first, self.rng.random((count, self.size - first.shape[1]))], axis=1)
