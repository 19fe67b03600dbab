r"""The points of a fit, ready to be reweighted: to other powers of prior and likelihood, other priors, other rows.

With y the rows, theta the hyperparameters and b the coefficients (scaled so that a prior is N(0, 1) or flat, P its
precision), group effects are integrated out of everything here: the likelihood is p(y | theta, b), the distribution of
effects in the population of groups is part of it, and the prior is that of theta and b.

*A Gaussian response.* Given theta, b is normal, ``b | y, theta ~ N(m, C)``, ``Q = C^-1``. As

.. math:: \log p(y | \theta, b) = \log p(y | \theta) + \log N(b; m, C) - \log N(b; 0, P^{-1}),

the likelihood is exp of a quadratic in b with precision ``F = Q - P``, and whatever multiplies it by exp of another
quadratic (a power of itself, of the prior, another normal prior) leaves a normal distribution of b given theta, and a
factor of theta alone. So the points stay those of theta, and no coefficient is ever drawn.

A Student-t prior of a coefficient is a mixture, ``N(0, lambda), lambda ~ InverseGamma(nu / 2, nu / 2)``, with lambda in
theta. Its power alpha is a Student-t again, with the same normal and ``lambda ~ InverseGamma(nu' / 2, nu / 2)``,
``nu' + 1 = alpha (nu + 1)``: a factor ``lambda^(-(nu + 1) (alpha - 1) / 2)``.

*Other responses.* The points hold b itself. Where effects of crossed factors are among the points too, they are
integrated out of the likelihood again, by Laplace.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.nodes import with_mixing
from partialpool.design.defaults import correlation_slot
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.importance import (
    effective_sample_size,
    normalise,
    pareto_smooth,
    systematic_resample,
)
from partialpool.model import Model
from partialpool.posterior.effects import leaf_conditional, nodes_of
from partialpool.posterior.fitting import fit_model
from partialpool.posterior.groups import random_stream
from partialpool.posterior.posterior import Posterior
from partialpool.posterior.summaries import node_weights
from partialpool.spec.distributions import LKJ, Flat
from partialpool.spec.priors import PriorTable

if TYPE_CHECKING:
    from partialpool.inference.base import Result

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Seconds (estimated) that likelihoods at the points may cost before some points are chosen; the fewest points then,
#: and the most in any case.
BUDGET = 2.0
FEWEST = 400
MOST = 10_000
#: Numbers, points times coefficients squared, kept at once.
MOST_NUMBERS = 20_000_000
#: Reweighted answers are given where Pareto's k is below this and the effective sample size above that.
GOOD_K, ENOUGH = 0.7, 400.0
#: Streams of random numbers of the fit's seed (see `posterior.groups`).
POINTS, REWEIGHTED = 61, 62


class Weights(NamedTuple):
    """Log weights (K,) that sum to 1, Pareto's k and the effective sample size."""

    log_weights: Array
    k: float
    ess: float

    @property
    def good(self) -> bool:
        """Whether answers may be read off them."""
        return self.k < GOOD_K and self.ess >= ENOUGH


class Quadratic(NamedTuple):
    """Of a Gaussian response: b | y, theta at each point. mean (K, p), low (K, p, p): Cholesky factor of Q."""

    mean: Array
    low: Array


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a posterior and their weights.

    Attributes
    ----------
    model : Model
    theta : (K, d). log_weights : (K,).
    scale : (K, p) prior scales of the coefficients.
    quadratic : moments of b given theta, for a Gaussian response; None else.
    gamma : (K, p) coefficients on the engines' scale: conditional means, or values.
    log_likelihood : (K,) log p(y | theta) of a Gaussian response, log p(y | theta, gamma) of others.
    positions : (K,) which of the fit's nodes (or, where effects were sampled, draws) these are.
    efficiency : how many independent points one of a chain is worth; 1 where they are independent.
    chains : the number of chains in which points stand one after another; 0 where they are independent.
    """

    model: Model
    theta: Array
    log_weights: Array
    scale: Array
    quadratic: Quadratic | None
    gamma: Array
    log_likelihood: Array
    positions: Ints
    efficiency: float
    chains: int

    @cached_property
    def weights(self) -> Array:
        """(K,), summing to 1."""
        return normalise(self.log_weights)

    @cached_property
    def covariance(self) -> Array:
        """C (K, p, p) of b."""
        assert self.quadratic is not None
        return _inverse(self.quadratic.low)

    @cached_property
    def to_public(self) -> Array:
        """T (K, p, p): beta = T b + const."""
        return np.asarray(self.model.coefficients.public_matrix()[None] * self.scale[:, None, :])

    @cached_property
    def beta(self) -> tuple[Array, Array]:
        """Means and sds (K, p) of the public coefficients at each point."""
        mean = np.asarray(self.model.coefficients.to_public(self.gamma))
        if self.quadratic is None:
            return mean, np.zeros_like(mean)
        return mean, np.sqrt(np.einsum("kij,kjl,kil->ki", self.to_public, self.covariance, self.to_public))

    @cached_property
    def hyper(self) -> Array:
        """sds, correlations, sigma, ... (K, h), as `Hyperparameters.names`."""
        return self.model.hyperparameters.public(self.theta)


def points_of(fit: Posterior, *, likelihood: bool = True, threads: int | None = None) -> Points:
    """The points of a fit, with likelihoods where they are asked for (nan else); some of them where they are dear."""
    cores = threads or fit.result.settings.threads
    kept = fit.__dict__.setdefault("_points", {})
    if likelihood not in kept:
        kept[likelihood] = (_exact_points if fit.model.exact else _joint_points)(fit, likelihood, cores)
    return kept[likelihood]  # type: ignore[no-any-return]


def draw_points(fit: Posterior) -> Points:
    """The equally weighted draws of a fit as points, for which nothing is evaluated."""
    result, model = fit.result, fit.model
    theta, count = result.draws_theta, len(result.draws_theta)
    gamma = np.asarray(model.coefficients.from_public(result.draws_beta))
    equal = np.full(count, -math.log(count))
    scale = np.tile(np.asarray(model.coefficients.scale, dtype=float), (count, 1))
    least = min((value for value in fit.accuracy.ess.values() if math.isfinite(value)), default=float(count))
    none = np.full(count, math.nan)
    return Points(model, theta, equal, scale, None, gamma, none, np.arange(count), min(1.0, max(least, 1.0) / count), 0)


def _efficiency(fit: Posterior) -> float:
    if not fit.result.chains:
        return 1.0
    ess = [value for value in fit.accuracy.ess.values() if math.isfinite(value)]
    return min(1.0, max(min(ess, default=1.0), 1.0) / len(fit.result.theta))


def _chosen(fit: Posterior, log_weights: Array, most: int) -> tuple[Ints, Array]:
    """Positions of all points that count, or of a systematic resample, and their log weights."""
    weights = normalise(log_weights)
    positive = np.flatnonzero(weights > 0)
    if positive.size <= most:
        return positive, np.log(weights[positive])
    picked = systematic_resample(weights, most, random_stream(fit, POINTS))
    unique, times = np.unique(picked, return_counts=True)
    return unique, np.log(times / most)


def _exact_points(fit: Posterior, likelihood: bool, threads: int) -> Points:
    """Of a Gaussian response: theta is all there is to a point."""
    result, model = fit.result, fit.model
    marginal = GaussianMarginal(model, threads=threads)
    p = len(model.coefficients.names)
    most = max(FEWEST, int(BUDGET * threads / max(marginal.seconds(), 1e-9)))
    most = min(most, max(FEWEST, MOST_NUMBERS // max(p * p, 1)))
    most = min(most, MOST)
    at, log_weights = _chosen(fit, result.log_weights, most)
    theta = with_mixing(fit, result.theta, result.beta_mean)[at]
    value, evaluation = marginal.value(theta)
    scale = marginal.scales(theta)
    gamma = np.asarray(model.coefficients.mean) + scale * evaluation.mean
    quadratic = Quadratic(evaluation.mean, evaluation.low)
    whole = len(at) == len(result.theta)
    return Points(
        model, theta, log_weights, scale, quadratic, gamma, value, at, _efficiency(fit), result.chains if whole else 0
    )


def _joint_points(fit: Posterior, likelihood: bool, threads: int) -> Points:
    """Of other responses: points of theta and coefficients."""
    result, model = fit.result, fit.model
    if result.effects is None:
        theta, gamma, _ = nodes_of(fit)
        log_weights, chains = result.log_weights, result.chains
    else:  # all effects were sampled: the draws that were kept are the points
        theta, gamma = result.draws_theta, model.coefficients.from_public(result.draws_beta)
        log_weights, chains = np.full(len(theta), -math.log(len(theta))), 0
    most = MOST
    if likelihood:
        conditional = leaf_conditional(fit)
        wide = conditional.density.n_root
        seconds = 5e-5 + 1.5e-8 * conditional.density.work * (1 + 4 * (wide > 0)) + 2e-9 * wide**3
        most = min(most, max(FEWEST, int(BUDGET * threads / seconds)))
    at, own = _chosen(fit, log_weights, most)
    chains = chains if len(at) == len(log_weights) else 0
    theta, gamma = theta[at], np.ascontiguousarray(gamma[at])
    value = np.full(len(at), math.nan)
    if likelihood:
        value = marginal_likelihoods(fit, theta, gamma, threads)
    scale = np.tile(np.asarray(model.coefficients.scale, dtype=float), (len(at), 1))
    return Points(model, theta, own, scale, None, gamma, value, at, _efficiency(fit), chains)


def marginal_likelihoods(fit: Posterior, theta: Array, gamma: Array, threads: int) -> Array:
    """log p(y | theta, gamma) (K,), all group effects integrated out: the leaf's by quadrature, others by Laplace."""
    from partialpool.algebra.lapack import one_blas_thread
    from partialpool.inference.likelihood import Likelihood

    density = leaf_conditional(fit).density
    base = Likelihood.__new__(Likelihood)
    base.density, base.terms, base.e = density, density.root_terms(), np.zeros(density.n_root)
    if density.n_root and fit.result.root is not None:
        base.e = node_weights(fit.result) @ fit.result.root
    out = np.empty(len(theta))

    def run(part: slice) -> None:
        own = copy.copy(base)
        for k in range(part.start, part.stop):
            out[k] = own.value(theta[k], gamma[k])

    edges = np.linspace(0, len(theta), threads + 1).astype(int)
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [slice(a, b) for a, b in pairwise(edges) if b > a]))
    return out


# -- what a power of a prior or of the likelihood does, to first order ------------------------------------------------


class Slope(NamedTuple):
    """Derivatives in the power at 1: of log weights (K,), and of the coefficients' means and variances (K, p)."""

    value: Array
    mean: Array
    variance: Array

    def __add__(self, other: Slope) -> Slope:  # type: ignore[override]
        return Slope(*(one + two for one, two in zip(self, other, strict=True)))


def nothing(points: Points) -> Slope:
    """The slope of what does not depend on the point."""
    return Slope(np.zeros(len(points.theta)), *(np.zeros(points.gamma.shape) for _ in range(2)))


def likelihood_slope(points: Points) -> Slope:
    """That of the likelihood: with P as above, dm = C P m and dC = -(C - C P C)."""
    still = nothing(points)
    if points.quadratic is None:
        return still._replace(value=points.log_likelihood)
    mean, low = points.quadratic
    proper = np.asarray(points.model.coefficients.proper, dtype=float)
    own = np.einsum("kjj->kj", points.covariance)
    value = points.log_likelihood + np.log(np.einsum("kjj->kj", low)).sum(axis=1)
    value = value + 0.5 * (mean**2 + own) @ proper
    moved = points.to_public @ points.covariance * proper
    variance = np.einsum("kij,kij->ki", moved, moved) - points.beta[1] ** 2
    return Slope(value, np.einsum("kij,kj->ki", moved, mean), variance)


def prior_slopes(points: Points) -> dict[str, Slope]:
    """That of each prior, by the name of its parameter; flat ones left out."""
    model = points.model
    still = nothing(points)
    out = {name: still._replace(value=value) for name, value in hyper_log_priors(points).items()}
    mixtures = {mixture.coefficient: at for at, mixture in enumerate(model.hyperparameters.mixtures)}
    for j, name in enumerate(model.coefficients.names):
        prior = model.priors[name]
        if isinstance(prior, Flat):
            continue
        if points.quadratic is None:
            out[name] = still._replace(value=prior.log_density(points.gamma[:, j]))
        elif j in mixtures:
            mixture = model.hyperparameters.mixtures[mixtures[j]]
            log_lambda = points.theta[:, model.hyperparameters.mixture_slice()][:, mixtures[j]]
            out[name] = still._replace(value=-0.5 * (mixture.nu + 1) * log_lambda)
        else:
            mean, covariance = points.quadratic.mean[:, j], points.covariance[:, :, j]
            moved = np.einsum("kij,kj->ki", points.to_public, covariance)
            value = -0.5 * (mean**2 + covariance[:, j])
            out[name] = Slope(value, -moved * mean[:, None], -(moved**2))
    return {slot.name: out[slot.name] for slot in model.priors.slots if slot.name in out}


def hyper_log_priors(points: Points) -> dict[str, Array]:
    """Log prior densities (K,) of sds, correlations, sigma and family parameters, as the user wrote them.

    Of an sd that is the density of the sd, not of its logarithm: a power of it is one of the density in the formula.
    """
    model, hyper = points.model, points.model.hyperparameters
    public = dict(zip(hyper.names, points.hyper.T, strict=True))
    out: dict[str, Array] = {}
    for term, group, lkj in zip(hyper.terms, model.design.groups, hyper.correlations, strict=True):
        for name in term.sd_names:
            out[name] = model.priors[name].log_density(public[name])
        if isinstance(lkj, LKJ) and term.covariance.n_correlations:
            own = points.theta[:, term.parameters]
            density = [term.covariance.lkj_log_density(own, eta)[0] for eta in (lkj.eta, 1.0)]
            out[correlation_slot(model.design, group)] = density[0] - density[1]
    names = ["sigma"] if hyper.sigma is not None else []
    for name in [*names, *(name for name, _ in hyper.auxiliary)]:
        out[name] = model.priors[name].log_density(public[name])
    return {name: value for name, value in out.items() if np.ptp(value) > 0}


# -- other weights ----------------------------------------------------------------------------------------------------


def smoothed(points: Points, log_ratio: Array) -> Weights:
    """The points' weights times ratios (K,), Pareto-smoothed."""
    total = points.log_weights + log_ratio
    if not points.theta.shape[1] and points.quadratic is not None:  # one point is the whole posterior
        return Weights(np.zeros(len(total)), -math.inf, math.inf)
    if not np.isfinite(total).any():
        return Weights(points.log_weights, math.inf, 0.0)
    log_weights, k = pareto_smooth(total)
    return Weights(log_weights, k, float(effective_sample_size(log_weights)) * points.efficiency)


def other_priors(points: Points, model: Model) -> tuple[Array, Quadratic | None]:
    """Log ratios (K,) of other priors to those of the points, and b given theta under them.

    The other model must have the same theta, and its coefficients the same centre: see `same_points`.
    """
    ratio = model.hyperparameters.log_prior(points.theta)[0] - points.model.hyperparameters.log_prior(points.theta)[0]
    names = model.coefficients.names
    if points.quadratic is None:
        for j, name in enumerate(names):
            old, new = points.model.priors[name], model.priors[name]
            if old != new:
                ratio = ratio + new.log_density(points.gamma[:, j]) - old.log_density(points.gamma[:, j])
        return ratio, None
    old_mean, new_mean = (np.asarray(own.coefficients.mean) for own in (points.model, model))
    old_proper, new_proper = (np.asarray(own.coefficients.proper, dtype=float) for own in (points.model, model))
    old_scale, new_scale = (np.asarray(own.coefficients.scale, dtype=float) for own in (points.model, model))
    changed = np.array([points.model.priors[name] != model.priors[name] for name in names], dtype=bool)
    if not changed.any():
        return ratio, points.quadratic
    # In the units of the old b: N(c, 1 / precision).
    centre = np.where(changed & (new_proper > 0), (new_mean - old_mean) / old_scale, 0.0)
    precision = np.where(changed, new_proper * (old_scale / new_scale) ** 2, old_proper)
    factor, quadratic = with_other_prior(points.quadratic, precision - old_proper, precision * centre)
    return ratio + factor, quadratic


def with_other_prior(own: Quadratic, more: Array, pull: Array) -> tuple[Array, Quadratic]:
    """Multiply N(b; m, C) by ``exp(-b' diag(more) b / 2 + pull' b)``: the log of its integral (K,), and b after it."""
    precision = own.low @ np.swapaxes(own.low, 1, 2)
    linear = np.einsum("kij,kj->ki", precision, own.mean)
    return downdated(own, precision + np.diag(more), linear + pull)


def downdated(own: Quadratic, precision: Array, linear: Array) -> tuple[Array, Quadratic]:
    """From b with Q and Q m to b with another precision (K, p, p) and linear term (K, p), and the log of the ratio of
    their integrals (K,); -inf where the other is not positive definite.
    """
    count, p = own.mean.shape
    if not p:
        return np.zeros(count), own
    low, good = _cholesky(precision)
    half = np.linalg.solve(low, linear[:, :, None])[:, :, 0]
    mean = np.linalg.solve(np.swapaxes(low, 1, 2), half[:, :, None])[:, :, 0]
    old = np.einsum("kij,ki->kj", own.low, own.mean)
    log_ratio = 0.5 * ((half**2).sum(axis=1) - (old**2).sum(axis=1))
    log_ratio += np.log(np.einsum("kjj->kj", own.low)).sum(axis=1) - np.log(np.einsum("kjj->kj", low)).sum(axis=1)
    return np.where(good, log_ratio, -np.inf), Quadratic(mean, low)


def _cholesky(matrices: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Lower factors (K, p, p), the identity where there is none, and whether there is."""
    try:
        return np.asarray(np.linalg.cholesky(matrices)), np.ones(len(matrices), dtype=bool)
    except np.linalg.LinAlgError:
        good = np.linalg.eigvalsh(matrices)[:, 0] > 0
        safe = np.where(good[:, None, None], matrices, np.eye(matrices.shape[1]))
        return np.asarray(np.linalg.cholesky(safe)), good


def _inverse(low: Array) -> Array:
    """(L L')^-1, (K, p, p)."""
    if not low.shape[1]:
        return low
    half = np.linalg.solve(low, np.broadcast_to(np.eye(low.shape[1]), low.shape))
    return np.asarray(np.swapaxes(half, 1, 2) @ half)


# -- fits -------------------------------------------------------------------------------------------------------------


def same_points(old: Model, new: Model) -> bool:
    """Whether points of one model can stand for the other: the same theta, and coefficients with the same centre."""
    one, two = old.coefficients, new.coefficients
    mixtures = old.hyperparameters.mixtures == new.hyperparameters.mixtures
    scales = all(
        old.priors[one.names[m.coefficient]] == new.priors[one.names[m.coefficient]]
        for m in old.hyperparameters.mixtures
    )
    return mixtures and scales and one.centre == two.centre


def with_priors(model: Model, priors: PriorTable) -> Model:
    """The same model with other priors, centred at the same values."""
    other = Model(model.design, priors, model.family)
    other.__dict__["column_means"] = model.column_means
    return other


def reweighted_fit(
    fit: Posterior, points: Points, model: Model, weights: Weights, b: Quadratic | None, draws: Weights
) -> Posterior:
    """A fit made of another's points under other weights.

    Its draws are those of the fit resampled by their own weights, so that what little the priors change is not lost in
    new noise; all else follows from the points.
    """
    old = fit.result
    own = replace(points, model=model, log_weights=weights.log_weights, quadratic=b)
    if b is not None:
        own = replace(own, gamma=np.asarray(points.model.coefficients.mean) + points.scale * b.mean)
    mean, sd = own.beta
    picked = systematic_resample(normalise(draws.log_weights), len(old.draws_theta), random_stream(fit, REWEIGHTED))
    accuracy = replace(
        old.accuracy, ess=dict.fromkeys(model.parameter_names, weights.ess), pareto_k=weights.k, rhat=None,
        nodes=len(points.theta), surrogate_error=None, trusted=weights.good,
        steps=(*old.accuracy.steps, "reweighted to other priors"),
    )  # fmt: skip
    result: Result = replace(
        old, theta=points.theta, log_weights=weights.log_weights, beta_mean=mean, beta_sd=sd,
        draws_theta=old.draws_theta[picked], draws_beta=old.draws_beta[picked], log_marginal_likelihood=math.nan,
        accuracy=accuracy, chains=0,
        effects=None if old.effects is None or model.exact else old.effects[picked],
        root=None if old.root is None else old.root[points.positions],
        draws_root=None if old.draws_root is None else old.draws_root[picked], statistics={},
    )  # fmt: skip
    return Posterior(model, result)


def refit(fit: Posterior, model: Model, **options: object) -> Posterior:
    """Fit another model with the settings and the seed of a fit, on one core."""
    settings = fit.result.settings
    chosen = {"draws": settings.draws, "ess": settings.ess, "seed": settings.seed, "threads": 1, "progress": False}
    return fit_model(model, **{**chosen, **options})  # type: ignore[arg-type]


def over_threads(run: Callable[[int], None], count: int, threads: int) -> None:
    """Call `run` with 0 .. count - 1, over threads."""
    if threads <= 1 or count <= 1:
        for k in range(count):
            run(k)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        for future in as_completed([pool.submit(run, k) for k in range(count)]):
            future.result()
    finally:  # Ctrl-C ends it when those that run have ended, not when all have
        pool.shutdown(wait=True, cancel_futures=True)
