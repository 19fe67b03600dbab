"""Tables of a posterior: every parameter with its moments, quantiles and effective sample size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.mixture import mixture_summary
from partialpool.inference.base import Result
from partialpool.inference.diagnostics import ess_bulk, rhat
from partialpool.inference.importance import effective_sample_size, normalise, weighted_moments, weighted_quantile
from partialpool.model import Model

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.50, 0.95)
COLUMNS = ("mean", "sd", "q05", "q50", "q95", "ess")


def node_weights(result: Result) -> Array:
    """Weights (K,) of the nodes, which sum to 1."""
    return normalise(result.log_weights)


def in_chains(values: Array, chains: int) -> Array:
    """Values (K, ...) of chains that are stored one after another, as (chains, draws, ...)."""
    return values.reshape(chains, -1, *values.shape[1:])


def parameter_table(model: Model, result: Result) -> pandas.DataFrame:
    """`Posterior.summary`."""
    import pandas as pd

    columns = list(COLUMNS) + (["rhat"] if result.chains else [])
    rows = np.concatenate(
        [_coefficient_rows(result), quantity_rows(result, model.hyperparameters.public(result.theta))]
    )
    names = model.parameter_names
    if result.accuracy.surrogate_error is not None:
        # The weights know nothing of the error of an interpolated density; the engine's own figure does.
        known = [result.accuracy.ess.get(name, np.inf) for name in names]
        rows[:, columns.index("ess")] = np.minimum(rows[:, columns.index("ess")], known)
    index = pd.Index(names, name="parameter")
    return pd.DataFrame(rows, index=index, columns=columns)


def quantity_rows(result: Result, values: Array) -> Array:
    """mean, sd, quantiles and ess (and R-hat) of functions of the nodes: `values` (K, f) -> (f, columns)."""
    if not values.shape[1]:
        return np.empty((0, len(COLUMNS) + bool(result.chains)))
    weights = node_weights(result)
    mean, sd = weighted_moments(values, weights)
    columns = [mean, sd, *weighted_quantile(values, weights, QUANTILES)]
    if result.chains:
        chains = in_chains(values, result.chains)
        columns += [ess_bulk(chains), rhat(chains)]
    else:
        columns.append(effective_sample_size(result.log_weights, values))
    return np.column_stack(columns)


def _coefficient_rows(result: Result) -> Array:
    """The same of the coefficients, mixtures of normals over the nodes (or draws, where their sds are 0)."""
    p = result.beta_mean.shape[1]
    if not p:
        return np.empty((0, len(COLUMNS) + bool(result.chains)))
    if not result.beta_sd.any():
        return quantity_rows(result, result.beta_mean)
    weights = node_weights(result)
    mean, sd, quantiles = mixture_summary(weights, result.beta_mean, result.beta_sd, QUANTILES)
    columns = [mean, sd, *quantiles, _conditional_ess(result, weights, sd)]
    if result.chains:
        columns.append(rhat(in_chains(result.beta_mean, result.chains)))
    return np.column_stack(columns)


def _conditional_ess(result: Result, weights: Array, sd: Array) -> Array:
    """Var(f) / Var(estimate of E f), the estimate being the weighted mean of the conditional means."""
    spread = weighted_moments(result.beta_mean, weights)[1]
    if result.chains:
        within = ess_bulk(in_chains(result.beta_mean, result.chains))
    else:
        within = effective_sample_size(result.log_weights, result.beta_mean)
    with np.errstate(divide="ignore", over="ignore"):
        ratio = (sd / np.maximum(spread, np.finfo(float).tiny)) ** 2
    # Rounding alone makes the means of a constant differ: no estimate is better than 1e9 independent draws.
    return np.asarray(np.minimum(within * ratio, 1e9))
