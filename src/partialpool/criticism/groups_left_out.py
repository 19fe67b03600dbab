r"""What each group does to the answers: the posterior without it, by importance weights, refitted where these fail.

The posterior without the rows of a group g is the posterior with them over ``p(y_g | y_rest, s)`` at each node s (the
densities of `left_out`, all that can be integrated out integrated out), normalised. The weights are Pareto-smoothed;
where their k is above 0.7, or too little of the sample is left (100, and 400 where k is above 0.5), the model is fitted
again without the group.

*Coefficients of a Gaussian response.* They are no part of a node: given theta, b is normal with precision Q and
``Q m = c`` (`reweight`). Without the group it is normal again, with precision ``Q - F_g`` and linear term ``c - c_g``,
where F_g and c_g are those of the group's own rows where groups are independent given theta and b; else the other rows'
own Q and c are computed. Either is done at some nodes only: what is found there goes with m, whose mean over all of
them is known, and is regressed on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.left_out import BLOCK_NUMBERS, Conditional, Nodes, nodes_of_fit
from partialpool.criticism.reweight import ENOUGH, GOOD_K, over_threads, refit
from partialpool.criticism.without import Coefficients, coefficients_without
from partialpool.errors import PartialPoolError
from partialpool.inference.importance import (
    effective_sample_size,
    pareto_smooth,
    systematic_resample,
    weighted_moments,
    weighted_quantile,
)
from partialpool.posterior.groups import random_stream
from partialpool.posterior.statement import probability
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.inference.progress import Progress
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

WEIGHTED, REFITTED, FAILED = "reweighted", "refitted", "failed"
#: Effective sample size below which weights are not enough, and Pareto k from which they have to be worth ENOUGH: the
#: posterior without the group may then be wider than what the nodes reach.
LEAST_ESS, HEAVY_K = 100.0, 0.5
#: Nodes at which a group's part in the coefficients is taken; those behind a conclusion, and draws of coefficients at
#: each.
NODES, DRAWS, REPEATS = 128, 1000, 4
#: Stream of random numbers of the fit's seed.
INFLUENCE = 63


@dataclass(frozen=True, eq=False)
class Without:
    """The answers without one group.

    location : mean of a coefficient, median of another parameter; sd : by parameter; positive : of each coefficient,
    the probability that it is above 0; probability : of the conclusion.
    """

    location: Array
    sd: Array
    positive: Array
    probability: float = math.nan


def trusted(k: float, ess: float) -> bool:
    """Whether weights with this Pareto k and effective sample size will do."""
    return k <= GOOD_K and ess >= (LEAST_ESS if k <= HEAVY_K else ENOUGH)


def _above(mean: Array, sd: Array) -> Array:
    """P(b > 0), of normal distributions or single values."""
    from scipy.special import ndtr

    spread = sd > 0
    return np.asarray(np.where(spread, ndtr(mean / np.where(spread, sd, 1.0)), mean > 0), dtype=np.float64)


def _controlled(weights: Array, share: Array, own: Array, whole: Array, kept: Ints) -> Array:
    """The mean of what is known at some nodes only (kept, p), by its regression on what is known at all (K, p)."""
    with_group = whole[kept]
    centred = with_group - share @ with_group
    square = share @ centred**2
    slope = (share @ (centred * (own - share @ own))) / np.where(square > 0, square, 1.0)
    return np.asarray(share @ own + slope * (weights @ whole - share @ with_group))


def _conditional(fit: Posterior, factor: int, threads: int) -> Conditional:
    if fit.model.exact:
        from partialpool.criticism.gaussian_left_out import GaussianLeftOut

        return GaussianLeftOut(fit.model, factor, threads)
    from partialpool.criticism.quadrature_left_out import quadrature_groups

    found: Conditional = quadrature_groups(fit, factor, threads)
    return found


class Run:
    """One run; holds what its steps share."""

    def __init__(self, fit: Posterior, factor: int, conclusion: str | None, threads: int, bar: Progress) -> None:
        self.fit, self.factor, self.conclusion, self.threads, self.bar = fit, factor, conclusion, threads, bar
        self.model = fit.model
        self.conditional = _conditional(fit, factor, threads)
        self.nodes: Nodes = nodes_of_fit(fit, self.conditional.most_nodes)
        self.hyper = self.model.hyperparameters.public(self.nodes.theta)
        self.rows = [np.asarray(self.conditional.rows_of(unit)) for unit in range(self.conditional.units)]
        self.coefficients: Coefficients | None = None
        if self.model.exact:
            self.coefficients = coefficients_without(self.model, factor, self.nodes.theta)
            self.beta = self.coefficients.mean
            self.above = _above(self.beta, self.coefficients.sd)
        else:
            self.beta = np.asarray(self.model.coefficients.to_public(self.nodes.gamma))
            self.above = _above(self.beta, np.zeros_like(self.beta))
        p = self.beta.shape[1]
        self.noise = random_stream(fit, INFLUENCE).standard_normal((DRAWS * REPEATS, p))

    def result(self) -> tuple[list[Without | None], list[str], Array]:
        """By group: the answers without it (None where there are none), how they were found, and Pareto's k."""
        units = self.conditional.units
        found: list[Without | None] = [None] * units
        k = np.full(units, math.inf)
        at = 0
        block = max(1, BLOCK_NUMBERS // max(len(self.nodes.theta), 1))
        for start in range(0, units, block):
            part = slice(start, min(start + block, units))
            left = self.conditional.log_densities(self.nodes, part)[0]

            def one(number: int, left: Array = left, start: int = start) -> None:
                unit = start + number
                log_weights, k[unit], ess = self._weights(left[:, number])
                if trusted(k[unit], ess):
                    found[unit] = self._reweighted(unit, log_weights)

            for number in range(part.stop - part.start):
                one(number)
                at += 1
                self.bar.update(at / units, "leaving groups out")
        how = [WEIGHTED if own is not None else REFITTED for own in found]
        self._refits(found, how)
        return found, how, k

    def _weights(self, left: Array) -> tuple[Array, float, float]:
        total = self.nodes.log_weights - left
        if not np.isfinite(total).any() or np.isposinf(total).any() or np.isnan(total).any():
            return total, math.inf, 0.0
        if not self.nodes.theta.shape[1] and self.model.exact:  # one node is the whole posterior
            return np.zeros(len(total)), -math.inf, math.inf
        log_weights, k = pareto_smooth(total)
        return log_weights, k, float(effective_sample_size(log_weights)) * self.nodes.efficiency

    def _reweighted(self, unit: int, log_weights: Array) -> Without:
        weights = np.exp(log_weights)
        medians, sds = self._hyper(weights)
        count = DRAWS if self.conclusion is not None else NODES
        rng = np.random.default_rng(0)  # the same places for every group: differences are not noise
        picked = np.sort(systematic_resample(weights, min(count, max(len(weights), 1)), rng))
        if self.coefficients is None:
            mean, sd = weighted_moments(self.beta, weights)
            positive = weights @ self.above
            draws = self.beta[picked]
        else:
            kept, back = np.unique(picked, return_inverse=True)
            own = self.coefficients.without(self.rows[unit], kept)
            share = np.bincount(back) / len(picked)
            mean = _controlled(weights, share, own.mean, self.beta, kept)
            square = _controlled(
                weights, share, own.sd**2 + (own.mean - mean) ** 2,
                self.coefficients.sd**2 + (self.beta - weights @ self.beta) ** 2, kept,
            )  # fmt: skip
            sd = np.sqrt(np.maximum(square, own.sd.min(axis=0) ** 2))
            positive = _controlled(weights, share, _above(own.mean, own.sd), self.above, kept)
            if self.conclusion is not None:
                back, picked = np.tile(back, REPEATS), np.tile(picked, REPEATS)
                draws = own.mean[back] + np.einsum("kij,kj->ki", own.half[back], self.noise[: len(picked)])
            else:
                draws = own.mean
        return Without(
            np.concatenate([mean, medians]), np.concatenate([sd, sds]), np.clip(positive, 0.0, 1.0),
            self._share(draws, picked),
        )  # fmt: skip

    def _hyper(self, weights: Array) -> tuple[Array, Array]:
        if not self.hyper.shape[1]:
            return np.empty(0), np.empty(0)
        return weighted_quantile(self.hyper, weights, 0.5), weighted_moments(self.hyper, weights)[1]

    def _share(self, draws: Array, picked: Ints) -> float:
        if self.conclusion is None:
            return math.nan
        values = dict(zip(self.fit.parameters, np.concatenate([draws, self.hyper[picked]], axis=1).T, strict=True))
        return probability(self.conclusion, values.__getitem__, self.fit.parameters)

    def base(self) -> Without:
        """The same of the fit, at the same nodes."""
        weights = np.exp(self.nodes.log_weights - self.nodes.log_weights.max())
        weights = weights / weights.sum()
        medians, sds = self._hyper(weights)
        table = self.fit.summary()
        p = self.beta.shape[1]
        share = math.nan if self.conclusion is None else self.fit.probability(self.conclusion)
        return Without(
            np.concatenate([table["mean"].to_numpy()[:p], medians]),
            np.concatenate([table["sd"].to_numpy()[:p], sds]), weights @ self.above, share,
        )  # fmt: skip

    def _refits(self, found: list[Without | None], how: list[str]) -> None:
        lacking = [unit for unit, own in enumerate(found) if own is None]
        p, done = self.beta.shape[1], 0

        def run(number: int) -> None:
            nonlocal done
            unit = lacking[number]
            kept = np.ones(self.model.design.n_rows, dtype=bool)
            kept[self.rows[unit]] = False
            try:
                other = refit(self.fit, self.model.take_rows(np.flatnonzero(kept)))
            except (PartialPoolError, np.linalg.LinAlgError):
                how[unit] = FAILED
                return
            table = other.summary()
            location = np.concatenate([table["mean"].to_numpy()[:p], table["q50"].to_numpy()[p:]])
            share = math.nan if self.conclusion is None else other.probability(self.conclusion)
            above = node_weights(other.result) @ _above(other.result.beta_mean, other.result.beta_sd)
            found[unit] = Without(location, table["sd"].to_numpy(), above, share)
            done += 1
            self.bar.update(done / len(lacking), f"refits without one group ({len(lacking)})")

        over_threads(run, len(lacking), self.threads)
