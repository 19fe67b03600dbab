r"""How many parameters a hierarchical model spends, level by level, beside how many it has.

Given theta, with the latent coefficients whitened (a normal prior of sd 1 each), the rows' information on all of them G
and the posterior precision :math:`G + E` (E the identity, 0 for a flat coefficient), the effective number of parameters
is the trace of the hat matrix (Spiegelhalter et al., 2002; Hodges and Sargent, 2001, Biometrika 88, 367-379), which is
a sum over the latent coefficients:

.. math:: \mathrm{tr}\, (G + E)^{-1} G = \sum_j \bigl( 1 - e_j \mathrm{Var}(z_j \mid y, \theta) \bigr) .

A level's share is the sum over its coefficients: what the posterior variance has lost of the prior's. Shares add up to
the whole: what the population mean and the groups' effects know together is not counted twice (as it would be by
:math:`\sum_j (1 - B_j)`, whose variances are those given the coefficients). Other responses have the information of the
rows at the posterior means in the place of the weights of a Gaussian one. What is left of :math:`p_D` is the share of
the hyperparameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.cholesky import LeafRoot
from partialpool.algebra.structure import CrossProducts
from partialpool.criticism.densities import conditional_moments
from partialpool.design.predictor import LinearPredictor
from partialpool.inference.gaussian import row_terms
from partialpool.levels.extremes import mean_logs, row_information
from partialpool.posterior.groups import chosen_positions, shrinkage_factors
from partialpool.posterior.predict import linear_means
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Nodes of theta over which the shares are averaged, and seconds (estimated) that they may take.
MOST_NODES, FEWEST_NODES, PATIENCE = 200, 8, 2.0
COEFFICIENTS, HYPERPARAMETERS, TOTAL = "coefficients", "hyperparameters", "all"


def parameters_by_level(fit: Posterior) -> pandas.DataFrame:
    """By level, how many parameters the model has and how many it spends.

    Parameters
    ----------
    fit : Posterior
        With its rows.

    Returns
    -------
    pandas.DataFrame
        Index `level`: "coefficients", each grouping factor, "hyperparameters" (sds, correlations, and the family's
        own parameters), "all". Columns: parameters, the raw count; effective, how many of them the data determine:
        posterior means of the shares of each level, for "all" p_D, for "hyperparameters" what is left of it.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("log_radon ~ floor + (1 | county)", pp.datasets.load("radon"), seed=1)
    >>> parameters_by_level(fit).loc["county"].round().tolist()
    [85.0, 44.0]
    """
    import pandas as pd

    design, model = fit.model.design, fit.model
    moments = conditional_moments(fit)
    whole = 2 * float((moments.at_means - moments.mean).sum())
    shares = _shares(fit)
    sizes = [len(factor.labels) * width for factor, width in zip(design.factors, _widths(fit), strict=True)]
    raw = [len(model.coefficients.names), *sizes, len(model.hyperparameters.names)]
    effective = [*shares, whole - float(np.sum(shares))]
    names = [COEFFICIENTS, *(factor.name for factor in design.factors), HYPERPARAMETERS, TOTAL]
    return pd.DataFrame(
        {"parameters": [*raw, sum(raw)], "effective": [*effective, whole]}, index=pd.Index(names, name="level")
    )


def _widths(fit: Posterior) -> list[int]:
    groups = fit.model.design.groups
    return [sum(len(g.names) for g in groups if g.factor == f) for f in range(len(fit.model.design.factors))]


def _shares(fit: Posterior) -> list[float]:
    """Effective numbers of the coefficients and of each factor's effects."""
    if len(fit.model.design.prefixes) > 1:  # rows then have information on two linear predictors
        kept = [float((1 - shrinkage_factors(fit, f)).sum()) for f in range(len(fit.model.design.factors))]
        return [_known_coefficients(fit), *kept]
    cross, inverse_variance = _information(fit)
    coefficients, hyper = fit.model.coefficients, fit.model.hyperparameters
    proper = np.asarray(coefficients.proper, dtype=float)
    engine = LeafRoot(cross, proper, fit.result.settings.threads)
    count = int(np.clip(PATIENCE / max(engine.seconds(), 1e-9) / 4, FEWEST_NODES, MOST_NODES))
    positions, weights = chosen_positions(fit, count)
    theta = fit.result.theta[positions]
    scales = _scales(fit, theta)
    variances = inverse_variance if inverse_variance is not None else hyper.inverse_variance(theta)
    structure = cross.structure
    lams = _in_order(fit, hyper.factors(theta), structure.lam_at, structure.n_lam)
    found = engine.moments(lams, np.broadcast_to(variances, len(theta)).copy(), scales)
    p = len(proper)
    inverse = np.linalg.inv(found.evaluation.low) if p else np.empty((len(theta), 0, 0))
    own = np.einsum("kij,kij->kj", inverse, inverse) if p else np.empty((len(theta), 0))
    out = [float(weights @ (p - own @ proper))]
    for factor, (width, at) in enumerate(zip(structure.widths, structure.lam_at, strict=True)):
        diagonal = [at + i * (width + 1) for i in range(width)]
        size = len(fit.model.design.factors[factor].labels) * width
        out.append(float(weights @ (size - found.zz[:, diagonal].sum(axis=1))))
    return out


def _information(fit: Posterior) -> tuple[CrossProducts, float | None]:
    """Cross-products without a response, whose moments are variances alone; the inverse variance if it is known."""
    model, design = fit.model, fit.model.design
    nothing = np.zeros(design.n_rows)
    if model.exact:
        adds = design.se is not None and design.se_sigma
        at = model.hyperparameters.sigma_at
        sigma = float(np.exp(node_weights(fit.result) @ fit.result.theta[:, at])) if adds and at is not None else None
        weight = row_terms(model, sigma)[0]
        return model.row_blocks.cross_products(nothing, weight), 1.0 if adds or at is None else None
    eta = linear_means(fit, LinearPredictor.of_design(design, range(len(design.factors))))
    first, second = mean_logs(fit)
    own = row_information(model.family, design.y, eta, np.full(design.n_rows, first), second, design.trials)[:, 0, 0]
    weight = np.where(np.isfinite(own), np.maximum(own, 0.0), 0.0)
    if design.weights is not None:
        weight = weight * design.weights
    return model.row_blocks.cross_products(nothing, np.ascontiguousarray(weight)), 1.0


def _scales(fit: Posterior, theta: Array) -> Array:
    """Prior sds of the coefficients at each node (K, p)."""
    coefficients, hyper = fit.model.coefficients, fit.model.hyperparameters
    out = np.tile(np.asarray(coefficients.scale, dtype=float), (len(theta), 1))
    mixing = theta[:, hyper.mixture_slice()]
    for column, mixture in enumerate(hyper.mixtures):
        out[:, mixture.coefficient] *= np.exp(0.5 * mixing[:, column])
    return out


def _in_order(fit: Posterior, lams: Array, wanted: tuple[int, ...], size: int) -> Array:
    """All Lambda in the order of the structure of the cross-products, which may not be that of theta's layout."""
    hyper = fit.model.hyperparameters
    out = np.zeros((len(lams), size))
    for width, at, to in zip(hyper.widths, hyper.lam_at, wanted, strict=True):
        out[:, to : to + width * width] = lams[:, at : at + width * width]
    return out


def _known_coefficients(fit: Posterior) -> float:
    """Of a model with a formula of another parameter: the coefficients less what their priors hold of them."""
    coefficients = fit.model.coefficients
    gamma = coefficients.from_public(fit.result.draws_beta)
    share = (gamma.std(axis=0) / np.asarray(coefficients.scale)) ** 2 * np.asarray(coefficients.proper)
    return float(np.sum(1 - np.clip(share, 0.0, 1.0)))
