r"""Variance components and intraclass correlations, with their uncertainty.

A term with columns z contributes ``z' Sigma z`` to the variance of a row; its component is the mean of that over the
rows, :math:`\mathrm{tr}(\Sigma\, \overline{z z'})`, which for an intercept is sd^2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.inference.importance import weighted_moments, weighted_quantile
from partialpool.model import Model
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

RESIDUAL = "residual"


def row_averages(model: Model) -> dict[str, Array]:
    """Means over the rows that variance components need: ``gram`` (m, m) of V's columns, ``noise`` (1,), 1/precision.

    Kept by a fit that is saved without its rows.
    """
    cached = model.__dict__.get("_row_averages")
    if cached is None:
        design = model.design
        noise = np.ones(1)
        if design.precision is not None:
            noise = np.array([np.mean(1 / design.precision)])
        known = np.zeros(1)
        if design.se is not None:
            square = design.se**2 if design.precision is None else design.se**2 / design.precision
            known = np.array([np.mean(square)])
        gram = design.V.T @ design.V / max(len(design.V), 1)
        cached = model.__dict__["_row_averages"] = {"gram": gram, "noise": noise, "known": known}
    return cached


def _components(fit: Posterior) -> tuple[list[str], Array]:
    """Names and variances (K, components) at the nodes; the residual comes last."""
    model, theta = fit.model, fit.result.theta
    averages = row_averages(model)
    names, columns = [], []
    factors = [group.factor for group in model.design.groups]
    for term, group in zip(model.hyperparameters.terms, model.design.groups, strict=True):
        lam = term.covariance.factor(theta[:, term.parameters])
        mean = averages["gram"][np.ix_(group.columns, group.columns)]
        columns.append(np.einsum("kij,il,klj->k", lam, mean, lam))
        several = factors.count(group.factor) > 1
        names.append(f"{term.factor_name}: {', '.join(group.names)}" if several else term.factor_name)
    residual = np.full(len(theta), float(averages["known"][0]))
    if model.hyperparameters.sigma_at is not None:
        residual = residual + np.exp(2 * theta[:, model.hyperparameters.sigma_at]) * float(averages["noise"][0])
    return [*names, RESIDUAL], np.column_stack([*columns, residual])


def variance_components(fit: Posterior) -> pandas.DataFrame:
    """`Posterior.variance_components`."""
    import pandas as pd

    names, variance = _components(fit)
    weights = node_weights(fit.result)
    quantities = {
        "sd": np.sqrt(variance), "variance": variance, "share": variance / variance.sum(axis=1, keepdims=True),
    }  # fmt: skip
    table = {}
    for name, values in quantities.items():
        table[name] = weighted_moments(values, weights)[0]
        table[f"{name}_q05"], table[f"{name}_q95"] = weighted_quantile(values, weights, [0.05, 0.95])
    return pd.DataFrame(table, index=pd.Index(names, name="component"))


def intraclass_correlations(fit: Posterior) -> pandas.DataFrame:
    """`Posterior.icc`."""
    import pandas as pd

    design = fit.model.design
    if not design.groups:
        raise ModelError("icc() is about groups, and this model has none; add a term such as (1 | g).")
    for group in design.groups:
        if group.names != ("Intercept",):
            raise ModelError(
                f"In {group.text} slopes vary by group, so that the correlation of two rows depends on their "
                "predictors; icc() is for terms (1 | g). variance_components() has the mean shares."
            )
    variance = _components(fit)[1]
    total = variance.sum(axis=1)
    weights = node_weights(fit.result)
    names, rows = [], []
    for position, group in enumerate(design.groups):
        shared = [other for other, twin in enumerate(design.groups) if _lies_in(fit.model, group.factor, twin.factor)]
        values = variance[:, sorted({position, *shared})].sum(axis=1) / total
        mean, sd = weighted_moments(values, weights)
        rows.append([mean, sd, *weighted_quantile(values, weights, [0.05, 0.5, 0.95])])
        names.append(design.factors[group.factor].name)
    columns = ["mean", "sd", "q05", "q50", "q95"]
    return pd.DataFrame(np.array(rows, dtype=float), index=pd.Index(names, name="factor"), columns=columns)


def _lies_in(model: Model, inner: int, outer: int) -> bool:
    """Whether two rows that share a group of `inner` always share one of `outer` too."""
    from partialpool.inference.gaussian import statistics

    factors = model.design.factors
    if inner == outer or set(factors[outer].variables) < set(factors[inner].variables):
        return True
    chain = statistics(model).cross.structure.elimination.chain
    return inner in chain and outer in chain and chain.index(inner) < chain.index(outer)
