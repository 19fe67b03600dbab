r"""The average pooling factor of a group term, and what its parts are made of.

Gelman and Pardoe (2006, Technometrics 48:241) compare what the groups' effects share out as estimates with what they
share out as quantities still uncertain,

.. math:: \lambda = 1 - \frac{V_j\, E(u_j \mid y)}{E(V_j\, u_j \mid y)},
          \qquad V_j\, u_j = \frac{1}{J - 1} \sum_j (u_j - \bar u)^2 .

0: each group stands on its own data; 1: the posterior means do not differ at all. Where the response is Gaussian both
are exact over the fit's nodes k (weights w), at which the effects are normal with means m and variances v:

.. math:: E(V_j u_j) = \sum_k w_k \Bigl[V_j\, m_{kj}
          + \frac{1}{J - 1} \bigl(\sum_j v_{kj} - J\, \mathrm{Var}_k(\bar u)\bigr)\Bigr],

:math:`\mathrm{Var}_k(\bar u) = c' \mathrm{Cov}_k(u)\, c` with :math:`c = 1/J` on the term's effects, which is
:math:`\sigma^2 c' E`, E the mean of the effects where the rows' cross-products ``Z'Dy`` are replaced by c. Effects that
are among the nodes themselves (those of the root) need no such step; all others are taken from the fit's draws.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import blocks
from partialpool.algebra.cholesky import LeafRoot
from partialpool.algebra.structure import CrossProducts
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.posterior.groups import chosen_nodes, effect_draws, layout_of, seconds_per_node
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Seconds (estimated) that exact moments may cost before fewer nodes are visited, and the fewest of these: where nodes
#: are dear the groups are many, and theta is known well.
BUDGET, FEWEST = 0.1, 16
#: Numbers (draws times effects) that are drawn at most.
MOST_DRAWN = 20_000_000


def pooling_factors(fit: Posterior, factor: int) -> Array:
    """lambda of each term of a factor, (terms,); nan where the factor has a single group."""
    positions = layout_of(fit.model).effects_of(factor)
    if len(positions) < 2:
        return np.full(positions.shape[1], np.nan)
    of_means, expected = _variances(fit, factor, positions)
    return np.asarray(1 - of_means / np.where(expected > 0, expected, np.nan))


def _variances(fit: Posterior, factor: int, positions: Ints) -> tuple[Array, Array]:
    """V_j E(u_j) and E(V_j u_j), each (terms,)."""
    result = fit.result
    if fit.model.exact and result.effects is None and not (fit.model.design.se is not None and fit.model.has_sigma):
        cost = seconds_per_node(fit) * (1 + positions.shape[1])
        return _exactly(fit, positions, max(FEWEST, int(BUDGET / cost)))
    if result.root is not None and factor != fit.model.latent.leaf:
        start = fit.model.latent.root_at(factor)
        values = result.root[:, start : start + positions.size].reshape(-1, *positions.shape)
        return _of_sample(values, node_weights(result))
    total = len(result.draws_theta)
    count = int(min(total, max(200, MOST_DRAWN // max(layout_of(fit.model).n_effects, 1))))
    picked = np.unique(np.linspace(0, total - 1, count).astype(np.int64))
    return _of_sample(effect_draws(fit, picked).of(positions), np.full(len(picked), 1 / len(picked)))


def _of_sample(values: Array, weights: Array) -> tuple[Array, Array]:
    """The same of a weighted sample (K, groups, terms)."""
    of_means = np.einsum("k,kjt->jt", weights, values).var(axis=0, ddof=1)
    return np.asarray(of_means), np.asarray(weights @ values.var(axis=1, ddof=1))


def _exactly(fit: Posterior, positions: Ints, count: int) -> tuple[Array, Array]:
    """Over the nodes of a Gaussian response; see above."""
    theta, weights = chosen_nodes(fit, count)
    marginal = GaussianMarginal(fit.model, threads=fit.result.settings.threads)
    arguments = marginal.arguments(theta)
    moments = marginal.engine.moments(*arguments, effects=True)
    of_means, expected = _of_sample(moments.u_mean[:, positions], weights)
    groups = len(positions)
    for term, own in enumerate(positions.T):
        c = np.full(groups, 1 / groups)
        engine = LeafRoot(with_response(marginal.statistics.cross, own, c), marginal.proper, marginal.threads)
        of_mean = engine.moments(*arguments, effects=True).u_mean[:, own] @ c / arguments[1]
        within = moments.u_var[:, own].sum(axis=1) - groups * of_mean
        expected[term] += float(weights @ np.maximum(within, 0.0)) / (groups - 1)
    return of_means, expected


def with_response(cross: CrossProducts, positions: Ints, values: Array) -> CrossProducts:
    """The same cross-products with ``Z'Dy`` replaced by `values` at `positions` (0 elsewhere) and ``X'Dy`` by 0."""
    structure = cross.structure
    p1 = structure.n_coefficients + 1
    whole = np.zeros(structure.n_effects)
    whole[positions] = values
    b = cross.b.copy()
    for row in structure.levels:
        q, groups, width = int(row[blocks.Q]), int(row[blocks.GROUPS]), int(row[blocks.WIDTH])
        start, u_at = int(row[blocks.B_AT]), int(row[blocks.U_AT])
        border = b[start : start + q * groups * width].reshape(groups, q, width)
        border[:, :, -1] = whole[u_at : u_at + groups * q].reshape(groups, q)
    gx = cross.gx.copy()
    if structure.n_root:
        parts = [whole[start : start + size] for start, size in structure.root_effects()]
        gx.reshape(-1, p1)[:, -1] = np.concatenate(parts)
    gxx = cross.gxx.copy().reshape(p1, p1)
    gxx[-1, :-1] = gxx[:-1, -1] = 0.0
    return replace(cross, b=b, gx=gx, gxx=gxx.reshape(cross.gxx.shape))
