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
With few groups the prior of tau matters: a flat one predicts groups further out than there are for any one tau. The
nodes are therefore weighted by ``tau / (tau^2 + s^2)`` too, Jeffreys' prior of the variance tau^2 + s^2 over a flat one
of tau (s^2 the median of the groups'), with which probabilities of prediction are frequencies: exactly, for a normal
sample; Datta, Mukerjee, Ghosh and Sweeting 2000, Annals of Statistics 28, 1414-1426, for such priors in general.
Where a group has few counts in all, t_j is far from normal; the p-value is then that of the group's total among those
of new groups in the same rows, the draws weighted by 1 / p(y_j | draw) (of factors other than the leaf not weighted,
which is cautious: the group makes some room for itself).
Each effect of a group (intercept, slope) is looked at by itself. The largest of J groups has the p-value
``1 - (1 - min p_j)^J``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.envelopes import two_sided_p
from partialpool.criticism.replicates import Replicates, theta_basis
from partialpool.criticism.statistics import Groups
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.importance import systematic_resample
from partialpool.levels.exchangeability import typical_hyperparameters
from partialpool.posterior.groups import chosen_positions, factor_terms, layout_of, sds_at, seconds_per_node

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Numbers, groups times nodes, of one batch; seconds (estimated) that all nodes may cost; fewest and most nodes.
BATCH, BUDGET, FEWEST_NODES, MOST_NODES = 4_000_000, 0.5, 64, 4000
#: Least share of the prior's variance that a group's rows must take off at a node for the node to count.
LEAST = 1e-9
#: Groups from which the largest is judged.
FEWEST_GROUPS = 4
#: Total of a group's counts, as the model has it for a new group, below which it is judged by its total.
FEW_COUNTS = 30
#: Stream of the seed by which draws are picked with a group left out.
RESAMPLED = 66


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
    evidence, terms = own_evidence(replicates, factor), factor_terms(fit.model.design, factor)
    out = []
    for k, term in enumerate(terms):
        own, square, spread = evidence.own[:, :, k], evidence.square[:, :, k], evidence.spread[:, k]
        weights = evidence.log_weights + _matching(spread, square)
        found = left_out_p(own, square, spread**2, weights)
        family = fit.model.family
        if terms == ("Intercept",) and family.discrete and not family.takes_trials and family.name != "bernoulli":
            found = _of_few_counts(replicates, factor, found)
        out.append(_judged(fit, factor, term, found))
    return out


def _of_few_counts(replicates: Replicates, factor: int, found: LeftOutGroups) -> LeftOutGroups:
    """Groups of few counts judged by their totals."""
    fit = replicates.fit
    groups = Groups.of(fit.model.design, factor)
    new = Replicates.of(fit, replicates.draws, factor, False, replicates.seed)
    observed = groups.sums(fit.model.design.y)
    totals = np.concatenate([groups.sums(block.y) for block in new.blocks()], axis=1)
    few = np.flatnonzero(np.median(totals, axis=1) < FEW_COUNTS)
    p = found.p.copy()
    few = few[np.isfinite(p[few])]
    without = _without_each(replicates, factor, few)
    for j, weights in zip(few, without.T, strict=True):
        own = totals[j, systematic_resample(weights, replicates.count, replicates.stream(RESAMPLED, int(j)))]
        p[j] = two_sided_p(own, observed[j])
    return found._replace(p=p)


def _without_each(replicates: Replicates, factor: int, groups: Ints) -> Array:
    """Weights (D, groups) of the replicates' draws with each of some groups left out: 1 / p(y_j | draw) of the leaf."""
    from partialpool.criticism.logo import groups_conditional
    from partialpool.criticism.nodes import Nodes
    from partialpool.posterior.effects import nodes_at_draws

    fit, count = replicates.fit, replicates.count
    if factor != fit.model.latent.leaf or not groups.size:
        return np.full((count, len(groups)), 1 / count)
    nodes = Nodes(*nodes_at_draws(fit, replicates.draws), np.full(count, -np.log(count)))
    logs = groups_conditional(fit, factor, fit.result.settings.threads).log_densities(nodes, groups)[0]
    weights = np.exp(logs.min(axis=0) - logs)
    weights /= weights.sum(axis=0)
    weights = np.minimum(weights, count**-0.5)
    return np.asarray(weights / weights.sum(axis=0))


def _matching(spread: Array, square: Array) -> Array:
    """Log weights (K,) of nodes for which predicted probabilities are frequencies."""
    known = square[np.isfinite(square)]
    typical = float(np.median(known)) if known.size else 0.0
    safe = np.maximum(spread, 1e-150)
    return np.asarray(np.log(safe) - np.log(safe**2 + typical))


def _judged(fit: Posterior, factor: int, term: str, found: LeftOutGroups) -> GroupEffects:
    from scipy.special import ndtri

    p = found.p
    known = np.isfinite(p)
    size = -ndtri(np.where(known, np.maximum(p, 1e-300), 1.0) / 2)
    score = np.where(known, np.sign(found.own) * size, np.nan)
    judged = int(known.sum())
    name = fit.model.design.factors[factor].name
    if not judged:
        return GroupEffects(name, term, found.own, found.error, score, p, -1, float("nan"), 0)
    largest = int(np.nanargmin(p))
    all_of_them = float(-np.expm1(judged * np.log1p(-min(p[largest], 1 - 1e-16))))
    return GroupEffects(name, term, found.own, found.error, score, p, largest, all_of_them, judged)


class LeftOutGroups(NamedTuple):
    """p (J,) with the group left out, its own estimate and the estimate's standard error, averaged over the nodes."""

    p: Array
    own: Array
    error: Array


def left_out_p(own: Array, square: Array, variance: Array, log_weights: Array) -> LeftOutGroups:
    """Of own estimates and their squared errors, (J,) or (K, J), at nodes of tau^2 (K,) with log weights (K,).

    Examples
    --------
    >>> left_out_p(np.array([0.0, 1.96]), np.zeros(2), np.ones(1), np.zeros(1)).p.round(3).tolist()
    [1.0, 0.05]
    """
    from scipy.special import ndtr

    own, square = np.atleast_2d(own), np.atleast_2d(square)
    groups, count = own.shape[1], len(variance)
    out = np.full((3, groups), np.nan)
    size = max(1, BATCH // count)
    for start in range(0, groups, size):
        part = slice(start, min(start + size, groups))
        t, s2 = own[:, part], square[:, part]
        known = np.isfinite(t) & np.isfinite(s2)
        total = np.maximum(variance[:, None] + np.where(known, s2, 0.0), 1e-300)
        t = np.where(known, t, 0.0)
        chi = t**2 / total
        logs = np.where(known, log_weights[:, None] + 0.5 * np.log(total) + 0.5 * chi, -np.inf)
        top = logs.max(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = np.exp(logs - np.where(np.isfinite(top), top, 0.0))
            weights /= weights.sum(axis=0)
            # Truncated importance weights (Ionides 2008): no node may count for all.
            weights = np.minimum(weights, count**-0.5)
            weights /= weights.sum(axis=0)
        tails = 2 * ndtr(-np.sqrt(chi))
        out[:, part] = [(weights * tails).sum(axis=0), (weights * t).sum(axis=0),
                        np.sqrt((weights * np.where(known, s2, 0.0)).sum(axis=0))]  # fmt: skip
    return LeftOutGroups(np.minimum(out[0], 1.0), out[1], out[2])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What each group's own rows say of its effects, at nodes.

    own, square : (K, J, q) or (1, J, q), t and s^2; nan where a group's rows tell nothing. spread : (K, q) tau.
    log_weights : (K,) of the nodes.
    """

    own: Array
    square: Array
    spread: Array
    log_weights: Array


def own_evidence(replicates: Replicates, factor: int) -> Evidence:
    """That of a factor's groups.

    Of a Gaussian response at each node, the coefficients integrated out; of the leaf of other responses at each node
    of hyperparameters, coefficients and root, by quadrature; of other factors at typical hyperparameters, by draws.
    """
    fit = replicates.fit
    if fit.model.exact:
        return _of_gaussian(fit, factor)
    if factor == fit.model.latent.leaf:
        return _of_leaf(fit, factor)
    theta = fit.result.draws_theta[replicates.draws]
    mean, variance = _moments_of_draws(replicates, factor)
    prior = sds_at(fit, typical_hyperparameters(fit), factor) ** 2
    own, square = _own(mean[None], variance[None], prior, 4 * np.sqrt(2 / replicates.count))
    return Evidence(own, square, sds_at(fit, theta, factor), np.zeros(len(theta)))


def _own(mean: Array, variance: Array, prior: Array, least: float) -> tuple[Array, Array]:
    """t and s^2 from the posterior's means and variances (K, J, q) and the prior's variances (K, q)."""
    left = prior[:, None, :] - variance
    known = left > least * prior[:, None, :]
    ratio = np.where(known, prior[:, None, :] / np.where(known, left, 1.0), np.nan)
    return mean * ratio, variance * ratio


def _of_gaussian(fit: Posterior, factor: int) -> Evidence:
    positions = layout_of(fit.model).effects_of(factor)
    size = layout_of(fit.model).n_effects
    at, weights = chosen_positions(fit, _affordable(seconds_per_node(fit), size))
    theta = fit.result.theta[at]
    marginal = GaussianMarginal(fit.model, threads=fit.result.settings.threads)
    mean, variance = np.empty((len(at), *positions.shape)), np.empty((len(at), *positions.shape))
    step = max(fit.result.settings.threads, BATCH // max(size, 1))
    for start in range(0, len(at), step):
        part = slice(start, start + step)
        found = marginal.moments(theta[part])
        mean[part], variance[part] = found.u_mean[:, positions], np.maximum(found.u_var[:, positions], 0.0)
    spread = sds_at(fit, theta, factor)
    return Evidence(*_own(mean, variance, spread**2, LEAST), spread, np.log(weights))


def _of_leaf(fit: Posterior, factor: int) -> Evidence:
    from partialpool.posterior.effects import leaf_conditional, nodes_of, some_draws

    conditional = leaf_conditional(fit)
    count = _affordable(conditional.seconds, conditional.groups * conditional.q)
    if fit.result.effects is None:
        at, weights = chosen_positions(fit, count)
        theta, gamma, root = (part[at] for part in nodes_of(fit))
    else:
        theta, gamma, root = some_draws(fit, count)
        weights = np.full(len(theta), 1 / len(theta))
    mean, variance = conditional.moments(theta, gamma, root)
    spread = sds_at(fit, theta, factor)
    return Evidence(*_own(mean, variance, spread**2, LEAST), spread, np.log(weights))


def _affordable(seconds: float, effects: int) -> int:
    """Nodes at which to look, from the sizes alone."""
    return int(np.clip(min(BUDGET / seconds, BATCH / max(effects, 1)), FEWEST_NODES, MOST_NODES))


def _moments_of_draws(replicates: Replicates, factor: int) -> tuple[Array, Array]:
    """Mean and variance (J, q) of draws of the effects, what goes with the hyperparameters taken off."""
    drawn = replicates.known_effects[factor]
    basis = theta_basis(replicates.theta)
    centre = drawn.mean(axis=2)
    centred = drawn - centre[:, :, None]
    sums = centred @ basis
    variance = ((centred**2).sum(axis=2) - (sums**2).sum(axis=2)) / max(replicates.count - basis.shape[1], 1)
    return centre, np.maximum(variance, 0.0)
