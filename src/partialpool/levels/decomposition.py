"""A fit's variance cut by level, at points of its posterior: on the scale of the predictor and of the response."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.importance import weighted_moments, weighted_quantile
from partialpool.levels.at_rows import AtRows, Points, Rows, at_rows, level_factors
from partialpool.levels.link_scale import TRIALS, needs_quadrature, row_variance_on_link
from partialpool.levels.r_squared import predicted_variance, variance_over_rows
from partialpool.levels.response_scale import Levels, Partition, cells, mean_link, partition
from partialpool.model import Model
from partialpool.posterior.components import exact_residual, row_averages, term_variances
from partialpool.posterior.groups import chosen_positions
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

LINK, RESPONSE = "link", "response"
RESIDUAL, INTERACTION, TRIAL_ROWS = "residual", "levels together", "rows"
#: Evaluations of the inverse link that a call may cost, the fewest nodes and rows that are used.
MOST_CELLS, FEWEST_NODES, FEWEST_ROWS = 12_000_000, 200, 500
QUANTILES = (0.05, 0.5, 0.95)
STATISTICS = ("mean", "sd", "q05", "q50", "q95")


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Variances at K points of the posterior, on one scale.

    Attributes
    ----------
    scale : LINK or RESPONSE.
    names : of the levels.
    own : (K, levels), what each level adds to the levels that contain it. icc : (K, levels).
    rest : by name, the other parts (K,): what crossed levels add together, overdispersion of rows, the residual.
    theta, weights : the points, (K, d) and (K,).
    explained, total, explained_weights : variance over the rows of what the predictors give, and all variance, at
        points of their own (M,).
    rows : how many distinct rows were averaged over, or None where all were.
    """

    scale: str
    names: tuple[str, ...]
    own: Array
    icc: Array
    rest: dict[str, Array]
    theta: Array
    weights: Array
    explained: Array
    explained_between: Array
    total: Array
    explained_weights: Array
    rows: int | None = None

    @property
    def within(self) -> Array:
        """All variance at given predictors (K,)."""
        return np.asarray(self.own.sum(axis=1) + sum(self.rest.values(), np.zeros(len(self.own))))

    @property
    def parts(self) -> list[tuple[str, Array]]:
        """Levels and rest by name, (K,) each, in the order in which they are shown."""
        return [*((name, self.own[:, k]) for k, name in enumerate(self.names)), *self.rest.items()]


def has_two_scales(model: Model) -> bool:
    """Whether the linear predictor is on another scale than the response."""
    return model.family.link != "identity" or model.family.name == "lognormal"


def level_names(model: Model) -> tuple[str, ...]:
    """The levels with group effects in the mean."""
    return tuple(model.design.factors[factor].name for factor in level_factors(model))


def level_sets(model: Model) -> list[Levels]:
    """By level, the levels that two rows of one of its groups share: itself and those that it nests in."""
    factors = level_factors(model)
    nesting = row_averages(model)["nesting"] > 0
    return [frozenset(j for j, outer in enumerate(factors) if nesting[inner, outer]) for inner in factors]


def share_of(part: Array, whole: Array) -> Array:
    """part / whole; 0 where the whole is infinite and the part is not."""
    part, whole = np.broadcast_arrays(part, whole)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = part / whole
    return np.where(np.isinf(part) & np.isinf(whole), 1.0, np.where(whole > 0, ratio, 0.0))


def statistics(values: Array, weights: Array) -> list[float]:
    """mean, sd, q05, q50, q95 of values (K,); infinite ones count as such."""
    finite = np.isfinite(values)
    if finite.all():
        with np.errstate(over="ignore"):
            mean, sd = weighted_moments(values, weights)
        return [float(mean), float(sd), *(float(q) for q in weighted_quantile(values, weights, QUANTILES))]
    top = 1e300
    quantiles = weighted_quantile(np.where(finite, values, top), weights, QUANTILES)
    shown = [math.inf if q > 1e250 else float(q) for q in quantiles]
    if weights[~finite].sum() > 0:
        return [math.inf, math.inf, *shown]
    return [*statistics(values[finite], weights[finite])[:2], *shown]


# -- on the scale of the predictor -------------------------------------------------------------------------------------


def on_link(fit: Posterior) -> Decomposition:
    """On the scale of the linear predictor, which is that of the response under an identity link."""
    model = fit.model
    if model.exact:
        theta, weights = fit.result.theta, node_weights(fit.result)
        own, residual = _by_level(model, theta), exact_residual(model, theta)
        draws = Points(fit.result.draws_theta, fit.result.draws_beta, np.ones(len(fit.result.draws_theta)))
        between = _by_level(model, draws.theta).sum(axis=1)
        rest = exact_residual(model, draws.theta)
    else:
        draws, at = link_points(fit)
        theta, weights = draws.theta, draws.weights
        own = _by_level(model, theta)
        residual = rest = row_variance_on_link(model, theta, at)
        between = own.sum(axis=1)
    explained = predicted_variance(model, draws.beta)
    shared = np.column_stack([np.empty((len(theta), 0)), *(own[:, sorted(s)].sum(axis=1) for s in level_sets(model))])
    whole = own.sum(axis=1) + residual
    scale = LINK if has_two_scales(model) else RESPONSE
    return Decomposition(
        scale, level_names(model), own, share_of(shared, whole[:, None]), {RESIDUAL: residual}, theta, weights,
        explained, between, explained + between + rest, draws.weights,
    )  # fmt: skip


def _by_level(model: Model, theta: Array) -> Array:
    """The variance of each level (K, levels), averaged over the rows."""
    variances = term_variances(model, theta)
    factors = np.array([group.factor for group in model.design.groups if not group.predictor], dtype=int)
    columns = [variances[:, factors == factor].sum(axis=1) for factor in level_factors(model)]
    return np.column_stack([np.empty((len(theta), 0)), *columns])


def link_points(fit: Posterior) -> tuple[Points, AtRows]:
    """Nodes of the posterior, and the rows at them as the link scale needs them."""
    model = fit.model
    rows = Rows.of_model(model)
    if model.family.name in TRIALS:  # nothing depends on the rows
        rows = Rows(rows.V[:1], None if rows.offset is None else rows.offset[:1], np.ones(1))
    points, rows, _ = _afforded(fit, rows, 20 if needs_quadrature(model) else 2)
    return points, at_rows(model, points, rows)


# -- on the scale of the response --------------------------------------------------------------------------------------


def on_response(fit: Posterior) -> Decomposition:
    """On the scale of the response, integrated over the group effects at the rows' predictors."""
    model = fit.model
    sets = level_sets(model)
    wanted = wanted_sets(sets)
    everything = frozenset(range(len(sets)))
    proper = sum(1 for levels in wanted if levels and levels != everything)
    largest = float(_largest_variance(model, fit))
    every = Rows.of_model(model)
    alike = all(group.names == ("Intercept",) for group in model.design.groups if not group.predictor)
    cost = cells(mean_link(model.family), every.size, largest, proper, alike)
    points, rows, thinned = _afforded(fit, every, cost)
    at = at_rows(model, points, rows)
    found = partition(model.family, at.eta, at.variances, wanted, at.powers, at.shift)
    own, rest, icc = by_level(at, found, sets, model)
    explained = variance_over_rows(np.broadcast_to(found.mean, at.eta.shape), at.shares, model.design)
    between = at.average(found.shared[everything])
    return Decomposition(
        RESPONSE, level_names(model), own, icc, rest, points.theta, points.weights, explained, between,
        explained + between + at.average(found.noise), points.weights, thinned,
    )  # fmt: skip


def wanted_sets(sets: Sequence[Levels]) -> list[Levels]:
    """The sets of levels whose shared variance is needed: each level's, each without the level, and all."""
    wanted: dict[Levels, None] = {frozenset(range(len(sets))): None}
    for level, own in enumerate(sets):
        wanted[own] = None
        wanted[own - {level}] = None
    return list(wanted)


def by_level(
    at: AtRows, found: Partition, sets: Sequence[Levels], model: Model
) -> tuple[Array, dict[str, Array], Array]:
    """What each level adds (K, levels), the other parts by name, and intraclass correlations, averaged over rows."""
    shared = {levels: at.average(values) for levels, values in found.shared.items()}
    count = len(at.eta)
    own = np.column_stack(
        [np.empty((count, 0)), *(np.maximum(shared[s] - shared[s - {k}], 0.0) for k, s in enumerate(sets))]
    )
    between = shared[frozenset(range(len(sets)))]
    noise = at.average(found.noise)
    rest: dict[str, Array] = {}
    together = between - own.sum(axis=1)
    if len(sets) > 1 and not _is_chain(sets):
        rest[INTERACTION] = np.maximum(together, 0.0)
    if model.family.name == "beta_binomial":
        # of one trial: 1 / (1 + phi) of its variance is what the trials of a row share
        extra = at.average(found.noise / (1.0 + np.exp(at.eta1)))
        rest[TRIAL_ROWS] = extra
        rest[RESIDUAL] = noise - extra
    else:
        rest[RESIDUAL] = noise
    whole = between + noise
    icc = np.column_stack([np.empty((count, 0)), *(share_of(shared[s], whole) for s in sets)])
    return own, rest, icc


def _is_chain(sets: Sequence[Levels]) -> bool:
    """Whether the levels nest in each other one by one."""
    ordered = sorted(sets, key=len)
    return all(small <= large for small, large in itertools.pairwise(ordered))


def _largest_variance(model: Model, fit: Posterior) -> float:
    """About the largest variance of the group effects of a row."""
    weights = node_weights(fit.result)
    factor = 3.0 if any(group.names != ("Intercept",) for group in model.design.groups) else 1.5
    return factor * float(weights @ _by_level(model, fit.result.theta).sum(axis=1))


def _afforded(fit: Posterior, rows: Rows, cost: int) -> tuple[Points, Rows, int | None]:
    """Nodes and rows for which `cost` evaluations each are affordable; how many rows are left, None for all."""
    count = max(FEWEST_NODES, MOST_CELLS // max(rows.size * cost, 1))
    points = joint_points(fit, count)
    most = max(FEWEST_ROWS, 2 * MOST_CELLS // max(len(points.weights) * cost, 1))
    if rows.size <= most:
        return points, rows, None
    own = np.flatnonzero(fit.model.design.x_predictor == 0)
    centre = node_weights(fit.result) @ fit.result.beta_mean[:, own]
    order = rows.V[:, fit.model.design.x_columns[own]] @ centre
    if rows.offset is not None:
        order = order + rows.offset
    thinned = rows.thinned(order, most)
    return points, thinned, thinned.size


def joint_points(fit: Posterior, count: int) -> Points:
    """At most `count` nodes of theta and coefficients together."""
    result = fit.result
    if result.beta_sd.any():  # the nodes are of theta alone
        picked = np.linspace(0, len(result.draws_theta) - 1, min(count, len(result.draws_theta))).astype(int)
        return Points(result.draws_theta[picked], result.draws_beta[picked], np.full(len(picked), 1.0 / len(picked)))
    positions, weights = chosen_positions(fit, count)
    return Points(result.theta[positions], result.beta_mean[positions], weights)
