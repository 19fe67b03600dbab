r"""Outlying groups: how probable an effect as large as a group's is under the population that the others make.

At hyperparameters theta, tau^2 the variance of an effect over the population, m_j and V_j its posterior mean and
variance in group j (coefficients and other effects integrated out), what the group's own rows say of it alone is

.. math:: t_j = m_j\,\frac{\tau^2}{\tau^2 - V_j}, \qquad s_j^2 = V_j\,\frac{\tau^2}{\tau^2 - V_j},
   \qquad t_j \mid \theta \sim N(0, \tau^2 + s_j^2):

t_j is the estimate of a shift of group j in a model that lets it be any number. Under that model, in which the group
plays no part in what is learned of the population, theta has the posterior

.. math:: p(\theta \mid y, \text{without } t_j) \propto p(\theta \mid y) / N(t_j;\, 0,\ \tau^2 + s_j^2),

so that the fit's nodes, weighted anew, give the cross-validatory probability of an effect as large,

.. math:: p_j = \sum_k w_{jk}\, P\big(|N(0, \tau_k^2 + s_j^2)| \ge |t_j|\big),

the "mixed" p-value of Marshall and Spiegelhalter (2007, Bayesian Analysis 2, 409-444) with the group left out. Unlike
a posterior predictive p-value it is uniform where the model is right: an outlying group does not make room for itself.
Each effect of a group (intercept, slope) is looked at by itself. The largest of J groups has the p-value
``1 - (1 - min p_j)^J``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.replicates import Replicates, theta_basis
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.importance import normalise
from partialpool.levels.exchangeability import _typical
from partialpool.posterior.groups import factor_terms, layout_of, sds_at

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Numbers, groups times nodes, of one batch; nodes at most.
BATCH, MOST_NODES = 4_000_000, 4000
#: Least share of the prior's variance that a group's rows must take off, in units of its Monte Carlo error where the
#: variance is one of draws, for the group to be judged.
LEAST = 1e-6
#: Groups from which the largest is judged.
FEWEST_GROUPS = 4


@dataclass(frozen=True, eq=False)
class GroupEffects:
    """The effects of one term over the groups of a factor.

    own, error : (J,) the group's own estimate, and its standard error. score : (J,) standard normal where the model is
    right, the group left out. p : (J,) two-sided; nan where the group's rows tell nothing. largest : position of the
    group of the smallest p. p_largest : its p-value among all groups judged.
    """

    factor: str
    term: str
    own: Array
    error: Array
    score: Array
    p: Array
    largest: int
    p_largest: float
    judged: int


def group_effects(replicates: Replicates, factor: int) -> list[GroupEffects]:
    """By term of a factor; empty where there are fewer than 4 groups."""
    fit = replicates.fit
    if len(fit.model.design.factors[factor].labels) < FEWEST_GROUPS:
        return []
    mean, variance, prior, least = own_moments(replicates, factor)
    theta, log_weights = _nodes(fit)
    spread = sds_at(fit, theta, factor)
    out = []
    for k, term in enumerate(factor_terms(fit.model.design, factor)):
        left = prior[k] - variance[:, k]
        known = left > least * prior[k]
        ratio = np.where(known, prior[k] / np.where(known, left, 1.0), np.nan)
        own, error = mean[:, k] * ratio, np.sqrt(variance[:, k] * ratio)
        p = left_out_p(own, error**2, spread[:, k] ** 2, log_weights)
        out.append(_judged(fit, factor, term, own, error, p))
    return out


def _judged(fit: Posterior, factor: int, term: str, own: Array, error: Array, p: Array) -> GroupEffects:
    from scipy.special import ndtri

    known = np.isfinite(p)
    score = np.where(known, -np.sign(own) * ndtri(np.where(known, np.maximum(p, 1e-300), 1.0) / 2), np.nan)
    judged = int(known.sum())
    name = fit.model.design.factors[factor].name
    if not judged:
        return GroupEffects(name, term, own, error, score, p, -1, float("nan"), 0)
    largest = int(np.nanargmin(p))
    return GroupEffects(
        name, term, own, error, score, p, largest, float(-np.expm1(judged * np.log1p(-min(p[largest], 1 - 1e-16)))),
        judged,
    )  # fmt: skip


def left_out_p(own: Array, square: Array, variance: Array, log_weights: Array) -> Array:
    """p_j (J,) from own estimates (J,), their squared errors (J,), and nodes of tau^2 (K,) with log weights (K,).

    Examples
    --------
    >>> left_out_p(np.array([0.0, 1.96]), np.zeros(2), np.ones(1), np.zeros(1)).round(3).tolist()
    [1.0, 0.05]
    """
    from scipy.special import ndtr

    out = np.full(len(own), np.nan)
    known = np.flatnonzero(np.isfinite(own) & np.isfinite(square))
    size = max(1, BATCH // len(variance))
    for start in range(0, len(known), size):
        part = known[start : start + size]
        total = np.maximum(variance + square[part, None], 1e-300)
        chi = own[part, None] ** 2 / total
        logs = log_weights + 0.5 * np.log(total) + 0.5 * chi
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        # Truncated importance weights (Ionides 2008): no node may count for all.
        weights = np.minimum(weights, np.sqrt(len(variance)) / len(variance) if len(variance) > 1 else 1.0)
        weights /= weights.sum(axis=1, keepdims=True)
        out[part] = np.einsum("jk,jk->j", weights, 2 * ndtr(-np.sqrt(chi)))
    return np.asarray(np.minimum(out, 1.0))


def _nodes(fit: Posterior) -> tuple[Array, Array]:
    """theta (K, d) and normalised log weights (K,) of the fit's nodes, evenly thinned where they are very many."""
    weights = normalise(fit.result.log_weights)
    kept = np.flatnonzero(weights > 0)
    if len(kept) > MOST_NODES:
        kept = kept[np.linspace(0, len(kept) - 1, MOST_NODES).astype(int)]
    return fit.result.theta[kept], np.log(weights[kept])


def own_moments(replicates: Replicates, factor: int) -> tuple[Array, Array, Array, float]:
    """Mean and variance (J, q) of the effects' posterior at typical hyperparameters, their prior variance (q,).

    And the least share of the prior's variance by which they must differ to be judged. Of a Gaussian response they are
    exact; of the leaf of others given the coefficients too; else those of draws, the hyperparameters' part taken off.
    """
    fit = replicates.fit
    if fit.model.exact:
        theta = _typical(fit)
        positions = layout_of(fit.model).effects_of(factor)
        found = GaussianMarginal(fit.model, threads=fit.result.settings.threads).moments(theta)
        return (
            found.u_mean[0][positions], np.maximum(found.u_var[0][positions], 0.0), sds_at(fit, theta, factor)[0] ** 2,
            LEAST,
        )  # fmt: skip
    theta = _typical(fit)
    prior = sds_at(fit, theta, factor)[0] ** 2
    if factor == fit.model.latent.leaf:
        return (*_leaf_moments(fit, theta), prior, LEAST)
    drawn = replicates.known_effects[factor]
    basis = theta_basis(replicates.theta)
    centre = drawn.mean(axis=2)
    centred = drawn - centre[:, :, None]
    sums = centred @ basis
    count = replicates.count
    variance = ((centred**2).sum(axis=2) - (sums**2).sum(axis=2)) / max(count - basis.shape[1], 1)
    return centre, np.maximum(variance, 0.0), prior, 4 * np.sqrt(2 / count)


def _leaf_moments(fit: Posterior, theta: Array) -> tuple[Array, Array]:
    """The leaf's effects at typical hyperparameters, mean coefficients and mean effects of the root."""
    from partialpool.posterior.effects import _some_draws, leaf_conditional, nodes_of
    from partialpool.posterior.summaries import node_weights

    conditional = leaf_conditional(fit)
    if fit.result.effects is None:
        weights = node_weights(fit.result)
        gamma, root = (weights @ part for part in nodes_of(fit)[1:])
    else:
        gamma, root = (part.mean(axis=0) for part in _some_draws(fit, 256)[1:])
    mean, variance = conditional.moments(theta, gamma[None, :], root[None, :])
    return mean[0], variance[0]
