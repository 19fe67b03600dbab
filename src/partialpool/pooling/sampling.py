"""More hyperparameters than a lattice can hold (regressions): quasi-random importance sampling around the mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.inference.importance import (
    effective_sample_size,
    logsumexp,
    normalise,
    pareto_smooth,
    weighted_quantile,
)
from partialpool.inference.proposal import at_mode, from_weighted
from partialpool.inference.sobol import Sobol
from partialpool.pooling.lattice import LogDensity, WeightedNodes, in_units, peak_of

Array = NDArray[np.float64]

#: Nodes of the pilot that shapes the proposal, and of the answer; the latter doubled so often where too few count.
PILOT, NODES, DOUBLINGS = 1024, 4096, 3
#: The effective sample size that is enough.
ENOUGH = 2000.0


@dataclass(frozen=True, eq=False)
class Sampled(WeightedNodes):
    """A density on nodes that were drawn.

    error : 1 / sqrt(effective sample size), about the error of a mean in sds; pareto_k : of the weights' tail.
    """

    pareto_k: float

    def quantiles(self, function: Callable[[Array], Array], probabilities: ArrayLike) -> Array:
        """Quantiles of a function of the hyperparameters, (N, d) -> (N,)."""
        values = np.asarray(function(self.nodes), dtype=float)[:, None]
        return np.ravel(weighted_quantile(values, self.weights, np.atleast_1d(probabilities)))


def sample(log_density: LogDensity, start: ArrayLike, spread: ArrayLike, seed: int) -> Sampled:
    """Weighted nodes of a density in any dimension.

    Examples
    --------
    >>> found = sample(lambda x: -0.5 * (x**2).sum(axis=1), np.ones(4), np.ones(4), seed=1)
    >>> bool(abs(found.log_normaliser - 2 * np.log(2 * np.pi)) < 0.02)
    True
    """
    units = np.asarray(spread, dtype=float)
    log_density = in_units(log_density, units)
    found = peak_of(log_density, np.asarray(start, dtype=float) / units, np.ones(units.size))
    proposal = at_mode(found.point, found.curvature, found.value, log_density)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(43,)))
    nodes, log_q = proposal.points(Sobol(found.point.size, rng).next(PILOT))
    better = from_weighted(nodes, normalise(_finite(log_density(nodes)) - log_q))
    source = Sobol(found.point.size, rng)
    count = NODES
    nodes, log_q = better.points(source.next(count))
    logs = _finite(log_density(nodes)) - log_q
    for _ in range(DOUBLINGS):
        if float(np.min(effective_sample_size(logs, nodes))) >= ENOUGH:
            break
        more, log_more = better.points(source.next(count))
        nodes, logs = np.concatenate([nodes, more]), np.concatenate([logs, _finite(log_density(more)) - log_more])
        count *= 2
    smoothed, k = pareto_smooth(logs)
    ess = float(np.min(effective_sample_size(smoothed, nodes)))
    total = float(logsumexp(logs)) - float(np.log(logs.size)) + float(np.log(units).sum())
    return Sampled(nodes * units, normalise(smoothed), total, ess**-0.5, k)


def _finite(values: Array) -> Array:
    return np.where(np.isnan(values), -np.inf, values)
