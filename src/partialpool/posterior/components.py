r"""Variance components and intraclass correlations, with their uncertainty.

Those of a Gaussian response are on its own scale, all others on the scale of the linear predictor of the mean.
A term with columns z contributes ``z' Sigma z`` to the variance of a row; its component is the mean of that over the
rows, :math:`\mathrm{tr}(\Sigma\, \overline{z z'})`, which for an intercept is sd^2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.design.predictor import row_variance
from partialpool.errors import ModelError
from partialpool.inference.gaussian import statistics
from partialpool.inference.importance import weighted_moments, weighted_quantile
from partialpool.model import Model
from partialpool.posterior.levels import by_name, coefficient_map
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

RESIDUAL = "residual"


def row_averages(model: Model) -> dict[str, Array]:
    """What a fit keeps of its rows where it is saved without them.

    gram : (m, m), the mean cross-products of V's columns.
    known, noise : (1,), the mean residual variance is ``known + sigma^2 noise``.
    nesting : (factors, factors), 1 where every group of the row's factor lies in one group of the column's.
    levels_0, ... : by factor, the map of `coefficient_map`.
    """
    cached: dict[str, Array] = model.__dict__.setdefault("_row_averages", {})
    if "nesting" in cached:
        return cached
    design = model.design
    if len(design.y) != design.n_rows:  # saved without rows by an earlier version
        cached["nesting"] = _nesting_of_structure(model)
        cached |= {f"levels_{f}": by_name(design, f) for f in range(len(design.factors))}
        return cached
    shares = row_shares(design)
    cached["gram"] = design.V.T @ (design.V * shares[:, None])
    if model.exact:
        variance = row_variance(design, design.se_sigma)
        cached["known"] = np.array([shares @ np.broadcast_to(variance.known, shares.shape)])
        cached["noise"] = np.array([shares @ np.broadcast_to(variance.share, shares.shape)])
    cached |= {f"levels_{f}": coefficient_map(design, f, cached["gram"]) for f in range(len(design.factors))}
    cached["nesting"] = _nesting(design)  # last: it says that all is there
    return cached


def coarser_factors(model: Model, factor: int) -> tuple[int, ...]:
    """The factors whose groups contain this one's: schools, of classes."""
    nesting = row_averages(model)["nesting"] > 0
    others = range(len(model.design.factors))
    return tuple(other for other in others if nesting[factor, other] and not nesting[other, factor])


def row_shares(design: Design) -> Array:
    """What each row counts in averages over the rows (n,): alike, or by `weights()`, for a row of weight 2 is two."""
    weights = np.ones(len(design.V)) if design.weights is None else design.weights
    return np.asarray(weights / max(float(weights.sum()), np.finfo(float).tiny))


def term_variances(model: Model, theta: Array) -> Array:
    """The variance of each group term in the predictor of the mean, averaged over the rows, (K, such terms)."""
    gram = row_averages(model)["gram"]
    columns = [np.empty((len(theta), 0))]
    for term, group in zip(model.hyperparameters.terms, model.design.groups, strict=True):
        if group.predictor:  # on the scale of another parameter
            continue
        lam = term.covariance.factor(theta[:, term.parameters])
        columns.append(np.einsum("kij,il,klj->k", lam, gram[np.ix_(group.columns, group.columns)], lam)[:, None])
    return np.concatenate(columns, axis=1)


def exact_residual(model: Model, theta: Array) -> Array:
    """The residual variance (K,) of a Gaussian response with one sigma, averaged over the rows."""
    averages = row_averages(model)
    residual = np.full(len(theta), float(averages["known"][0]))
    if model.hyperparameters.sigma_at is not None:
        residual = residual + np.exp(2 * theta[:, model.hyperparameters.sigma_at]) * float(averages["noise"][0])
    return residual


def _components(fit: Posterior) -> tuple[list[str], Array]:
    """Names and variances (K, components) at the nodes; the residual, where there is one, comes last."""
    model, theta = fit.model, fit.result.theta
    names = []
    groups = [group for group in model.design.groups if not group.predictor]
    factors = [group.factor for group in groups]
    for group in groups:
        several = factors.count(group.factor) > 1
        own = model.design.factors[group.factor].name
        names.append(f"{own}: {', '.join(group.names)}" if several else own)
    variances = term_variances(model, theta)
    residual = exact_residual(model, theta) if model.exact else latent_residual(model, theta)
    if residual is None:
        return names, variances
    return [*names, RESIDUAL], np.column_stack([variances, residual])


def latent_residual(model: Model, theta: Array) -> Array | None:
    """The residual variance (K,) on the scale of the linear predictor; None where there is no one such number.

    That of the latent variable behind a binary response (pi^2/3 under the logit link, 1 under probit, pi^2/6 under
    cloglog); sigma^2 of log y for a lognormal response.
    """
    latent = model.family.latent_variance
    if latent is not None and model.family.name in ("bernoulli", "binomial"):
        return np.full(len(theta), float(latent))
    if model.family.name == "lognormal" and not model.design.terms.predictors:
        return np.asarray(np.exp(2 * theta[:, model.hyperparameters.auxiliary_at("sigma")]))
    return None


def variance_components(fit: Posterior) -> pandas.DataFrame:
    """`Posterior.variance_components`."""
    import pandas as pd

    names, variance = _components(fit)
    if not names:
        raise ModelError("The model has no group terms, so that its variance has no components.")
    weights = node_weights(fit.result)
    quantities = {
        "sd": np.sqrt(variance), "variance": variance, "share": variance / variance.sum(axis=1, keepdims=True),
    }  # fmt: skip
    table = {}
    for name, values in quantities.items():
        table[name] = weighted_moments(values, weights)[0]
        table[f"{name}_q05"], table[f"{name}_q95"] = weighted_quantile(values, weights, [0.05, 0.95])
    frame = pd.DataFrame(table, index=pd.Index(names, name="component"))
    if not fit.model.exact:
        frame.attrs["scale"] = f"linear predictor ({fit.model.family.link} link)"
    return frame


def intraclass_correlations(fit: Posterior) -> pandas.DataFrame:
    """`Posterior.icc`."""
    import pandas as pd

    design = fit.model.design
    if not design.groups:
        raise ModelError("icc() is about groups, and this model has none; add a term such as (1 | g).")
    groups = [group for group in design.groups if not group.predictor]
    if not groups:
        raise ModelError("icc() is about groups in the predictor of the mean, and this model has none there.")
    if not fit.model.exact and latent_residual(fit.model, fit.result.theta[:1]) is None:
        raise ModelError(
            f"icc() needs a residual variance on the scale of the groups, and {fit.model.family} has no single one; "
            "variance_components() compares the group terms among each other."
        )
    for group in groups:
        if group.names != ("Intercept",):
            raise ModelError(
                f"In {group.text} slopes vary by group, so that the correlation of two rows depends on their "
                "predictors; icc() is for terms (1 | g). variance_components() has the mean shares."
            )
    variance = _components(fit)[1]
    total = variance.sum(axis=1)
    weights = node_weights(fit.result)
    names, rows = [], []
    nesting = row_averages(fit.model)["nesting"] > 0
    for group in groups:
        shared = [other for other, twin in enumerate(groups) if nesting[group.factor, twin.factor]]
        values = variance[:, shared].sum(axis=1) / total
        mean, sd = weighted_moments(values, weights)
        rows.append([mean, sd, *weighted_quantile(values, weights, [0.05, 0.5, 0.95])])
        names.append(design.factors[group.factor].name)
    columns = ["mean", "sd", "q05", "q50", "q95"]
    return pd.DataFrame(np.array(rows, dtype=float), index=pd.Index(names, name="factor"), columns=columns)


def _nesting(design: Design) -> Array:
    """1 where two rows that share a group of one factor always share one of the other, (factors, factors)."""
    out = np.eye(len(design.factors))
    for inner, own in enumerate(design.factors):
        for outer, other in enumerate(design.factors):
            met = np.zeros(len(own.labels), dtype=other.codes.dtype)
            met[own.codes] = other.codes
            out[inner, outer] = float(np.array_equal(met[own.codes], other.codes))
    return out


def _nesting_of_structure(model: Model) -> Array:
    """The same as far as the factors' columns, and the order in which they are integrated out, tell."""
    factors = model.design.factors
    chain = statistics(model).cross.structure.elimination.chain
    out = np.eye(len(factors))
    for inner, own in enumerate(factors):
        for outer, other in enumerate(factors):
            below = inner in chain and outer in chain and chain.index(inner) <= chain.index(outer)
            if below or set(other.variables) < set(own.variables):
                out[inner, outer] = 1.0
    return out
