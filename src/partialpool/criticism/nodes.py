"""Nodes of a posterior, as what asks about units left out reads them: of a fit, and of a refit without some rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.diagnostics import ess_bulk
from partialpool.inference.importance import effective_sample_size, systematic_resample
from partialpool.model import Model
from partialpool.posterior.effects import nodes_of
from partialpool.posterior.groups import NODES, effect_draws, random_stream
from partialpool.posterior.summaries import in_chains, node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Nodes of a refit whose groups must be matched to those of the whole model, one by one.
MATCHED_NODES = 4000
#: Pareto k of a fit's own weights above which equally weighted nodes are picked, and how many of them at least.
HEAVY_K, FEWEST_EQUAL = 0.5, 1000


@dataclass(frozen=True, eq=False)
class Nodes:
    """Points of the posterior, with weights.

    Attributes
    ----------
    theta : (K, d). gamma : (K, p) coefficients as the engines use them (`Coefficients.from_public`), and root : (K, R)
        effects of all factors but the leaf in the order of `Model.latent`; both of width 0 for an exact model, whose
        effects and coefficients are integrated out given theta.
    log_weights : (K,) normalised.
    chains : number of chains in which the nodes are stored one after another; 0 for independent nodes.
    efficiency : how many independent nodes a node is worth: below 1 for chains that mix slowly, for nodes picked from
        others (whose own error adds), and for weights of an interpolated density.
    """

    theta: Array
    gamma: Array
    root: Array
    log_weights: Array
    chains: int = 0
    efficiency: float = 1.0

    def variance_of_sum(self, influence: Array) -> float:
        """The variance of the sum of what the nodes contribute (K,), where that sum has mean 0."""
        return float(np.sum(influence**2) / self.efficiency)


def effective_number(nodes: Nodes) -> float:
    """How many independent, equally weighted nodes these are worth."""
    return nodes.efficiency / float(np.sum(np.exp(2 * nodes.log_weights)))


def nodes_of_fit(fit: Posterior, most: int | None = None) -> Nodes:
    """The nodes of a fit, or a systematic resample where they are more than `most` or their weights have a heavy tail.

    Parameters
    ----------
    fit : Posterior
    most : int, optional
        How many nodes at most; all that have weight by default.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> nodes = nodes_of_fit(fit)
    >>> nodes.theta.shape[1], float(np.exp(nodes.log_weights).sum().round(6))
    (4, 1.0)
    """
    if fit.result.chains:
        return _of_chains(fit, most)
    result = fit.result
    weights = node_weights(result)
    positions = np.flatnonzero(weights > 0)
    kish = float(effective_sample_size(result.log_weights))
    have = min([kish, *fit.accuracy.ess.values()]) if fit.accuracy.surrogate_error is not None else kish
    k = fit.accuracy.pareto_k
    count = len(positions) if most is None else max(1, min(most, len(positions)))
    if k is not None and k > HEAVY_K:  # the tail of the fit's own weights would hide that of a unit's
        count = min(count, max(FEWEST_EQUAL, int(2 * kish)))
    if count == len(positions):
        return Nodes(*_parts(fit, positions), np.log(weights[positions]), 0, min(1.0, have / kish))
    # A node may be picked several times: weights that are whole numbers would look like a heavy tail. The nodes picked
    # vary around those at hand, and these around the posterior.
    picked = np.sort(systematic_resample(weights, count, random_stream(fit, NODES)))
    return Nodes(*_parts(fit, picked), np.full(count, -math.log(count)), 0, 1 / (1 + count / max(have, 1.0)))


def _parts(fit: Posterior, positions: Ints) -> tuple[Array, Array, Array]:
    if fit.model.exact:
        none = np.empty((len(positions), 0))
        return np.ascontiguousarray(fit.result.theta[positions]), none, none
    theta, gamma, root = (np.ascontiguousarray(part[positions]) for part in nodes_of(fit))
    return theta, gamma, root


def _of_chains(fit: Posterior, most: int | None) -> Nodes:
    """Draws of chains, thinned where there are more than `most` (or where effects were kept for some only)."""
    result, model = fit.result, fit.model
    total = len(result.theta)
    if result.effects is not None and not model.exact:  # the draws kept are equally spaced draws of the chains
        theta, gamma = result.draws_theta, model.coefficients.from_public(result.draws_beta)
        root = result.effects[:, model.latent.n_effects - model.latent.n_root :]
    else:
        theta = with_mixing(fit, result.theta, result.beta_mean) if model.exact else result.theta
        gamma = np.empty((total, 0)) if model.exact else model.coefficients.from_public(result.beta_mean)
        root = np.empty((total, 0)) if result.root is None or model.exact else result.root
    size = len(theta)
    kept = np.arange(size)
    if most is not None and size > most:
        kept = np.unique(np.linspace(0, size - 1, max(most, 1)).astype(int))
    every = np.concatenate([result.theta, result.beta_mean], axis=1)
    spread = np.ptp(every, axis=0) > 0
    ess = ess_bulk(in_chains(every[:, spread], result.chains)) if spread.any() else np.array([float(total)])
    ess = ess[np.isfinite(ess)]
    worst = float(ess.min()) if ess.size else float(total)
    # Thinned draws are no worse than independent ones of the chains' effective size.
    efficiency = min(1.0, worst / len(kept))
    parts = (np.ascontiguousarray(part[kept]) for part in (theta, gamma, root))
    theta, gamma, root = parts
    return Nodes(theta, gamma, root, np.full(len(kept), -math.log(len(kept))), result.chains, efficiency)


def with_mixing(fit: Posterior, theta: Array, beta: Array) -> Array:
    """theta of chains that hold no mixing scales of Student-t coefficients: these drawn given the coefficients.

    ``lambda_j | beta_j ~ InverseGamma((nu + 1) / 2, (nu + ((beta_j - m_j) / s_j)^2) / 2)``.
    """
    hyper, coefficients = fit.model.hyperparameters, fit.model.coefficients
    if not hyper.mixtures or fit.result.effects is None:
        return theta
    out = np.array(theta, dtype=float)
    rng = random_stream(fit, NODES, 1)
    gamma = coefficients.from_public(beta)
    for column, mixture in zip(range(hyper.size)[hyper.mixture_slice()], hyper.mixtures, strict=True):
        j = mixture.coefficient
        square = ((gamma[:, j] - coefficients.mean[j]) / coefficients.scale[j]) ** 2
        out[:, column] = np.log((mixture.nu + square) / 2 / rng.gamma((mixture.nu + 1) / 2, 1.0, len(out)))
    return out


def nodes_of_refit(model: Model, refit: Posterior, most: int | None = None) -> Nodes:
    """The nodes of a refit to some of a model's rows, in the layout of the whole model.

    Groups that the refit has not have effects drawn from their population. Where the root holds no effects (an exact
    model, or one factor) the nodes are those of the refit, `most` at most; elsewhere they are draws of it, matched
    group by group.
    """
    if model.exact or not model.latent.n_root:
        return nodes_of_fit(refit, most)
    if len(refit.result.draws_theta) > MATCHED_NODES:
        kept = np.unique(np.linspace(0, len(refit.result.draws_theta) - 1, MATCHED_NODES).astype(int))
    else:
        kept = np.arange(len(refit.result.draws_theta))
    theta = np.ascontiguousarray(refit.result.draws_theta[kept])
    gamma = np.ascontiguousarray(model.coefficients.from_public(refit.result.draws_beta[kept]))
    layout, hyper = model.latent, model.hyperparameters
    root = np.empty((len(kept), layout.n_root))
    lams = hyper.factors(theta)
    drawn, rng = effect_draws(refit, kept), random_stream(refit, NODES, 2)
    for f, factor in enumerate(model.design.factors):
        if f == layout.leaf:
            continue
        q, groups, at = layout.widths[f], layout.sizes[f], layout.lam_at[f]
        own = {label: place for place, label in enumerate(refit.model.design.factors[f].labels.tolist())}
        place = np.array([own.get(label, -1) for label in factor.labels.tolist()], dtype=np.int64)
        lam = lams[:, at : at + q * q].reshape(-1, q, q)
        values = np.einsum("kij,kgj->kgi", lam, rng.standard_normal((len(kept), groups, q)))
        known = place >= 0
        values[:, known] = drawn.of(refit.model.latent.effects_of(f)[place[known]])
        start = layout.root_at(f)
        root[:, start : start + groups * q] = values.reshape(len(kept), -1)
    have = min([float(len(kept)), *refit.accuracy.ess.values()])
    equal = np.full(len(kept), -math.log(len(kept)))
    return Nodes(theta, gamma, root, equal, 0, min(1.0, have / len(kept)))
