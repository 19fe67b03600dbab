r"""The design effect: how much grouping inflates the variance of a mean over the rows.

It (Kish, 1965) is the variance of a mean over the rows against that of as many independent rows with the same
variances. Groups of a level that share effects of covariance Sigma with columns z add
:math:`\sum_j s_j' \Sigma s_j`, :math:`s_j = \sum_{i \in j} z_i`, to the variance of a sum of rows; independent rows
would add :math:`\sum_i z_i' \Sigma z_i`. With n_0 the ratio of the two,

.. math:: \mathrm{deff} = 1 + (n_0 - 1)\,\mathrm{ICC},

and of several levels together :math:`1 + \sum_l (n_{0l} - 1)\, share_l`. Where intercepts alone vary,
:math:`n_0 = \sum_j n_j^2 / \sum_j n_j`, the size of the group of a row. Where slopes do it depends on Sigma and is
mostly less: what slopes add to some rows of a group they take from others, so that of slopes of a predictor that is
centred within groups nothing is left in the mean.

This is exact where the response is Gaussian. For others, z_i is multiplied by the derivative of the mean response of
row i, :math:`\mathrm{E}_u\, \mu'(\eta_i + u)` at the posterior mean: by Stein's lemma the product of two such rows'
columns with Sigma is their covariance to first order (design effects of binary responses are met within some 3%). What
crossed levels add together is left out.

Kish, L. (1965). Survey sampling. Wiley.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.levels.at_rows import Points, Rows, at_rows, level_factors
from partialpool.levels.decomposition import (
    RESPONSE,
    TRIAL_ROWS,
    Decomposition,
    has_two_scales,
    level_sets,
    share_of,
)
from partialpool.levels.response_scale import mean_link, moments
from partialpool.model import Model
from partialpool.posterior.components import row_shares
from partialpool.posterior.summaries import node_weights
from partialpool.spec.hyperparameters import TermLayout

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Step of a central difference in the linear predictor.
STEP = 1e-4


def unit_weights(design: Design) -> Array:
    """How many units each row is (n,): its trials where there are some, by `weights()`."""
    units = np.ones(design.n_rows) if design.trials is None else design.trials
    return np.asarray(units if design.weights is None else units * design.weights, dtype=float)


def design_effects(fit: Posterior, part: Decomposition) -> dict[str, Array]:
    """Design effects (K,) of each level alone, and of ``all`` where there are several."""
    model = fit.model
    slopes = row_slopes(fit) if part.scale == RESPONSE and has_two_scales(model) else None
    alone, own = effective_group_sizes(model, part.theta, slopes)
    effects = {name: 1.0 + (alone[:, k] - 1.0) * part.icc[:, k] for k, name in enumerate(part.names)}
    extra = part.rest.get(TRIAL_ROWS)
    if len(part.names) > 1 or (part.names and extra is not None):
        together = 1.0 + (share_of(part.own, part.within[:, None]) * (own - 1.0)).sum(axis=1)
        if extra is not None:
            units = unit_weights(model.design)
            size = float(np.sum(units**2) / np.sum(units))
            together = together + (size - 1.0) * share_of(extra, part.within)
        effects["all"] = together
    return effects


def effective_group_sizes(model: Model, theta: Array, slopes: Array | None = None) -> tuple[Array, Array]:
    """n_0 of each level at points theta, for all effects that rows of its groups share and for its own, (K, levels).

    slopes : (n,), what each row's columns are multiplied by; 1 by default.
    """
    design, factors = model.design, level_factors(model)
    units = unit_weights(design)
    V = design.V if slopes is None else design.V * slopes[:, None]
    out = np.empty((2, len(theta), len(factors)))
    for level, shared in enumerate(level_sets(model)):
        factor = design.factors[factors[level]]
        sizes = np.bincount(factor.codes, units, minlength=len(factor.labels))
        plain = float(np.sum(sizes**2) / np.sum(sizes))
        for which, taken in enumerate((shared, {level})):
            sums, rows = np.zeros(len(theta)), np.zeros(len(theta))
            for term, group in zip(model.hyperparameters.terms, design.groups, strict=True):
                if group.predictor or factors.index(group.factor) not in taken:
                    continue
                z = V[:, group.columns]
                s = np.stack([np.bincount(factor.codes, units * column, minlength=len(sizes)) for column in z.T])
                sums += _variance(term, theta, s @ s.T)
                rows += _variance(term, theta, z.T @ (z * units[:, None]))
            out[which, :, level] = np.where(rows > 0, sums / np.where(rows > 0, rows, 1.0), plain)
    return out[0], out[1]


def row_slopes(fit: Posterior) -> Array:
    """The derivative of each row's mean response by its linear predictor, at the posterior mean, (n,)."""
    model, weights = fit.model, node_weights(fit.result)
    design = model.design
    mean = Points((weights @ fit.result.theta)[None], (weights @ fit.result.beta_mean)[None], np.ones(1))
    at = at_rows(model, mean, Rows(design.V, design.offset, row_shares(design)))
    total = sum(at.variances, np.zeros((1, 1)))
    above, below = (moments(mean_link(model.family), at.eta + at.shift + step, total)[0] for step in (STEP, -STEP))
    return np.asarray((above - below)[0] / (2.0 * STEP))


def _variance(term: TermLayout, theta: Array, products: NDArray[Any]) -> Array:
    """tr(Sigma products) of a term's covariance at points theta, (K,)."""
    lam = term.covariance.factor(theta[:, term.parameters])
    return np.asarray(np.einsum("kij,il,klj->k", lam, np.asarray(products, dtype=float), lam))
