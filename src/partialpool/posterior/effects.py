r"""Group effects of a model whose response is not Gaussian: moments, shrinkage and joint draws.

The engine gives nodes of theta, coefficients and root. The leaf's effects are independent given a node, with moments by
quadrature (`inference.conditional`), so that over the nodes the law of total variance holds; the root's effects are
among the nodes themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.inference.conditional import LeafConditional
from partialpool.inference.importance import weighted_moments, weighted_quantile
from partialpool.inference.progress import Progress
from partialpool.inference.root import definite, precision_of_term
from partialpool.posterior.groups import (
    EFFECTS,
    FEWEST_NODES,
    MOST_DRAWN,
    Collector,
    GroupMoments,
    chosen_positions,
    coefficient_levels,
    sds_at,
)
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Seconds (estimated) that moments over the nodes may cost before some nodes are chosen.
BUDGET = 1.0
#: Draws of the leaf's groups up to which quantiles are those of draws; above, those of mixtures of normals.
MOST_FOR_QUANTILES = 2_000_000
#: Nodes at which the root's shrinkage is evaluated, and effects of the root from which fewer are.
ROOT_NODES, WIDE_ROOT = 16, 600
#: Numbers of one batch of nodes.
BATCH_NUMBERS = 2_000_000


def leaf_conditional(fit: Posterior) -> LeafConditional:
    """The leaf's effects given a node, made once a fit.

    Raises
    ------
    ModelError
        Where the fit was saved without its rows.
    """
    cached = fit.__dict__.get("_leaf_conditional")
    if cached is None:
        design = fit.model.design
        if len(design.y) != design.n_rows:
            raise ModelError(
                "The group effects need the rows of the data, and this fit was saved without them (data=False)."
            )
        cached = LeafConditional(fit.model, fit.result.quadrature_nodes, fit.result.settings.threads)
        if fit.result.effects is None:
            weights = node_weights(fit.result)
            theta, gamma, root = (weights @ part for part in nodes_of(fit))
        else:
            theta, gamma, root = (part.mean(axis=0) for part in some_draws(fit, FEWEST_NODES))
        cached.centre(theta, gamma, root)
        fit.__dict__["_leaf_conditional"] = cached
    return cached


def nodes_of(fit: Posterior) -> tuple[Array, Array, Array]:
    """theta (K, d), gamma (K, p) and the root's effects (K, n_root) at the nodes."""
    result = fit.result
    gamma = fit.model.coefficients.from_public(result.beta_mean)
    root = np.empty((len(result.theta), 0)) if result.root is None else result.root
    return result.theta, gamma, root


# -- moments of the leaf ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LeafSummary:
    """What one pass over the nodes tells of the leaf: moments of u and of beta + u, E[Var(u | node) / sd^2]."""

    effect: GroupMoments
    coefficient: GroupMoments
    shrinkage: Array
    nodes: int


def leaf_summary(fit: Posterior) -> LeafSummary:
    """The leaf's moments over the nodes, computed once a fit."""
    cached: LeafSummary | None = fit.__dict__.get("_leaf_summary")
    if cached is None:
        cached = fit.__dict__["_leaf_summary"] = _leaf_summary(fit)
    return cached


def _leaf_summary(fit: Posterior) -> LeafSummary:
    conditional = leaf_conditional(fit)
    leaf = fit.model.latent.leaf
    assert leaf is not None
    positions, weights = chosen_positions(fit, max(FEWEST_NODES, int(BUDGET / conditional.seconds)))
    theta, gamma, root = (part[positions] for part in nodes_of(fit))
    levels = fit.result.beta_mean[positions] @ coefficient_levels(fit, leaf).T
    shape = (conditional.groups, conditional.q)
    size = shape[0] * shape[1]
    threads = fit.result.settings.threads
    collectors = Collector(weights, size, threads), Collector(weights, size, threads)
    square = sds_at(fit, theta, leaf) ** 2
    shrinkage = np.zeros(shape)
    for part in _batches(fit, len(theta), size):
        mean, variance = conditional.moments(theta[part], gamma[part], root[part])
        flat = variance.reshape(len(mean), -1)
        collectors[0].add(mean.reshape(len(mean), -1), flat)
        collectors[1].add((mean + levels[part, None, :]).reshape(len(mean), -1), flat)
        own = square[part, None, :]
        share = np.where(own > 0, variance / np.where(own > 0, own, 1.0), 1.0)
        shrinkage += np.einsum("k,kgj->gj", weights[part], np.clip(share, 0.0, 1.0))
    effect, coefficient = (_adjusted(fit, one, positions, weights) for one in collectors)
    return LeafSummary(_shaped(effect, shape), _shaped(coefficient, shape), shrinkage, len(positions))


def _batches(fit: Posterior, count: int, size: int) -> Iterator[slice]:
    step = max(fit.result.settings.threads, min(256, BATCH_NUMBERS // max(size, 1)))
    with Progress(fit.result.settings.progress) as progress:
        for start in range(0, count, step):
            progress.update(start / count, "moments of the group effects")
            yield slice(start, min(start + step, count))


def _shaped(found: tuple[Array, Array, Array], shape: tuple[int, int]) -> GroupMoments:
    mean, sd, (low, high) = found
    return GroupMoments(mean.reshape(shape), sd.reshape(shape), low.reshape(shape), high.reshape(shape))


def _adjusted(fit: Posterior, collector: Collector, positions: Ints, weights: Array) -> tuple[Array, Array, Array]:
    """mean, sd and quantiles; where only some nodes were visited, those of all tell where these lie.

    The conditional means are regressed on theta, coefficients and (if there are nodes enough) root, whose moments over
    all nodes are known.
    """
    mean, sd, quantiles = collector.summary()
    every = node_weights(fit.result)
    if len(positions) == int((every > 0).sum()) or not collector.whole:
        return mean, sd, quantiles
    theta, gamma, root = nodes_of(fit)
    features = np.concatenate([theta, gamma], axis=1)
    if 4 * (features.shape[1] + root.shape[1] + 2) <= len(positions):
        features = np.concatenate([features, root], axis=1)
    if 4 * (features.shape[1] + 2) > len(positions):
        return mean, sd, quantiles
    centre, spread = weighted_moments(features, every)
    features = np.clip((features - centre) / np.where(spread > 0, spread, 1.0), -3.0, 3.0)
    centre = every @ features
    features = features - centre
    covariance = (features * every[:, None]).T @ features
    own = np.concatenate([np.ones((len(positions), 1)), features[positions]], axis=1)
    root_weight = np.sqrt(weights)[:, None]
    slopes = np.linalg.lstsq(root_weight * own, root_weight * collector.means, rcond=1e-10)[0]
    left = collector.means - own @ slopes
    between = np.einsum("ij,ik,kj->j", slopes[1:], covariance, slopes[1:]) + weights @ left**2
    better = np.sqrt(between + weights @ collector.sds**2)
    scale = np.where(sd > 0, better / np.where(sd > 0, sd, 1.0), 1.0)
    return slopes[0], better, slopes[0] + (quantiles - mean) * scale


def joint_summary(fit: Posterior, factor: int, kind: str) -> GroupMoments:
    """Moments and quantiles of a factor's effects, or of ``beta + u``."""
    layout = fit.model.latent
    levels = coefficient_levels(fit, factor) if kind == "coefficient" else None
    if factor != layout.leaf:
        start = layout.root_at(factor)
        shape = layout.sizes[factor], layout.widths[factor]
        assert fit.result.root is not None
        values = fit.result.root[:, start : start + shape[0] * shape[1]].reshape(-1, *shape)
        if levels is not None:
            values = values + (fit.result.beta_mean @ levels.T)[:, None, :]
        weights = node_weights(fit.result)
        flat = values.reshape(len(values), -1)
        mean, sd = weighted_moments(flat, weights)
        return _shaped((mean, sd, weighted_quantile(flat, weights, [0.05, 0.95])), shape)
    found = leaf_summary(fit)
    moments = found.effect if kind == "effect" else found.coefficient
    drawn = _drawn_leaf(fit)
    if drawn is None:
        return moments
    if levels is not None:
        drawn = drawn + (fit.result.draws_beta @ levels.T)[:, None, :]
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    return GroupMoments(moments.mean, moments.sd, low, high)


def _drawn_leaf(fit: Posterior) -> Array | None:
    """Draws (draws, groups, q) of the leaf's effects where they are few; kept by the fit."""
    layout = fit.model.latent
    assert layout.leaf is not None
    if "_drawn_leaf" not in fit.__dict__:
        groups = layout.sizes[layout.leaf]
        if len(fit.result.draws_theta) * groups * layout.widths[layout.leaf] > MOST_FOR_QUANTILES:
            return None
        fit.__dict__["_drawn_leaf"] = JointEffectDraws(fit).of(layout.effects_of(layout.leaf))
    return np.asarray(fit.__dict__["_drawn_leaf"])


def joint_mean_effects(fit: Posterior) -> Array:
    """Posterior means of all effects, in the order of `Model.latent`."""
    layout = fit.model.latent
    parts = [] if layout.leaf is None else [leaf_summary(fit).effect.mean.ravel()]
    if fit.result.root is not None:
        parts.append(node_weights(fit.result) @ fit.result.root)
    return np.concatenate([np.empty(0), *parts])


# -- shrinkage --------------------------------------------------------------------------------------------------------


def joint_shrinkage(fit: Posterior) -> list[Array]:
    """E_theta[Var(u | y, beta, theta) / sd^2] by factor, (groups, terms).

    Of the leaf, the variance is that by quadrature, given the root's effects too. Of the root, it is the diagonal of
    the inverse of Laplace's precision matrix with the coefficients fixed, at a few nodes.
    """
    layout = fit.model.latent
    out = [np.zeros((size, width)) for size, width in zip(layout.sizes, layout.widths, strict=True)]
    if fit.result.effects is None and layout.leaf is not None:
        out[layout.leaf] = leaf_summary(fit).shrinkage
    elif layout.leaf is not None:
        out[layout.leaf] = _shrinkage_by_nodes(fit)
    if layout.n_root:
        _root_shrinkage(fit, out)
    return out


def _shrinkage_by_nodes(fit: Posterior) -> Array:
    """That of the leaf where an engine sampled all effects: the root's are among its draws."""
    conditional, layout = leaf_conditional(fit), fit.model.latent
    assert layout.leaf is not None
    theta, gamma, root = some_draws(fit, FEWEST_NODES)
    variance = conditional.moments(theta, gamma, root)[1]
    square = sds_at(fit, theta, layout.leaf)[:, None, :] ** 2
    share = np.where(square > 0, variance / np.where(square > 0, square, 1.0), 1.0)
    return np.asarray(np.clip(share, 0.0, 1.0).mean(axis=0))


def some_draws(fit: Posterior, count: int) -> tuple[Array, Array, Array]:
    """theta, gamma and root of some of the equally weighted draws."""
    last = len(fit.result.draws_theta) - 1
    return nodes_at_draws(fit, np.unique(np.linspace(0, last, count).astype(np.int64)))


def nodes_at_draws(fit: Posterior, picked: Ints) -> tuple[Array, Array, Array]:
    """theta, gamma and root of the draws `picked` (K,), of a model that is not exact."""
    result, layout = fit.result, fit.model.latent
    gamma = fit.model.coefficients.from_public(result.draws_beta[picked])
    if result.effects is not None:
        root = result.effects[picked, layout.n_effects - layout.n_root :]
    else:
        assert result.draws_root is not None
        root = result.draws_root[picked]
    return result.draws_theta[picked], gamma, np.ascontiguousarray(root)


def _root_shrinkage(fit: Posterior, out: list[Array]) -> None:
    density = leaf_conditional(fit).density
    wide = density.n_root > WIDE_ROOT
    theta, gamma, root = some_draws(fit, ROOT_NODES // 4 if wide else ROOT_NODES)
    p = density.p
    blocks = density.root_terms()
    for k in range(len(theta)):
        point = density.point(theta[k], gamma[k], root[k])
        matrix = np.array(density.curvature(point).precision[p:, p:])
        for term, own in blocks:
            precision = precision_of_term(term, theta[k : k + 1])[0]
            matrix[own[:, :, None], own[:, None, :]] += precision
        variance = np.diag(np.linalg.inv(definite(matrix)))
        for term, own in blocks:
            square = term.covariance.sds(theta[k : k + 1, term.parameters])[0] ** 2
            share = np.where(square > 0, variance[own] / np.where(square > 0, square, 1.0), 1.0)
            columns = slice(term.offset, term.offset + term.covariance.size)
            out[term.factor][:, columns] += np.clip(share, 0.0, 1.0) / len(theta)


# -- draws ------------------------------------------------------------------------------------------------------------


class JointEffectDraws:
    """Draws of effects, joint with the fit's draws of all parameters, for as many effects as are asked for.

    A group's draw follows from the fit's seed, the group and the number of the draw.
    """

    def __init__(self, fit: Posterior, draws: Ints | None = None) -> None:
        self.fit, self.layout = fit, fit.model.latent
        self.draws = np.arange(len(fit.result.draws_theta)) if draws is None else draws
        self.before = self.layout.n_effects - self.layout.n_root

    @property
    def independent(self) -> bool:
        """Whether some groups can be drawn without the rest: always, given the draws of all else."""
        return True

    def of(self, positions: Ints) -> Array:
        """(draws, *positions.shape): the effects at `positions` of the vector of all effects (`Model.latent`)."""
        flat = np.asarray(positions).ravel()
        count, result = len(self.draws), self.fit.result
        shape = (count, *np.shape(positions))
        if result.effects is not None:
            return result.effects[np.ix_(self.draws, flat)].reshape(shape)
        if count * max(flat.size, 1) > MOST_DRAWN:
            raise ModelError(
                f"{count:,} draws of {flat.size:,} effects are {count * flat.size * 8 / 1e9:.0f} GB; name the groups "
                "you need with groups=[...], or use groups(), which has their moments."
            )
        out = np.empty((count, flat.size))
        in_leaf = flat < self.before
        if in_leaf.any():
            out[:, in_leaf] = self._leaf(flat[in_leaf])
        if not in_leaf.all():
            assert result.draws_root is not None
            out[:, ~in_leaf] = result.draws_root[np.ix_(self.draws, flat[~in_leaf] - self.before)]
        return out.reshape(shape)

    def _leaf(self, flat: Ints) -> Array:
        conditional, result = leaf_conditional(self.fit), self.fit.result
        q = conditional.q
        kept = self.fit.__dict__.get("_drawn_leaf")
        if kept is not None:
            return np.asarray(kept.reshape(len(kept), -1)[np.ix_(self.draws, flat)])
        groups, place = np.unique(flat // q, return_inverse=True)
        gamma = self.fit.model.coefficients.from_public(result.draws_beta[self.draws])
        root = np.empty((len(self.draws), 0)) if result.draws_root is None else result.draws_root[self.draws]
        seed = np.random.SeedSequence(self.fit.seed, spawn_key=(EFFECTS,)).generate_state(1, np.uint64)[0]
        drawn = conditional.draws(
            result.draws_theta[self.draws], gamma, root, groups, int(seed >> np.uint64(1)), self.draws
        )
        return np.asarray(drawn[:, place, flat % q])
