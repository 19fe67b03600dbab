"""A fit as an xarray.DataTree, in the layout that ArviZ reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.posterior.groups import effect_draws, factor_terms, layout_of
from partialpool.posterior.predict import predict

if TYPE_CHECKING:
    import xarray

    from partialpool.posterior.posterior import Posterior
    from partialpool.posterior.predict import Source

Array = NDArray[np.float64]

#: Numbers that one group of the tree holds at most; beyond, rows get fewer draws, and effects are left out.
MOST_NUMBERS = 20_000_000
ROW = "row"
RESERVED = ("chain", "draw", ROW, "parameter")
LOG_2PI = float(np.log(2 * np.pi))


def to_arviz(fit: Posterior) -> xarray.DataTree:
    """`Posterior.to_arviz`.

    Notes
    -----
    Draws of a weighted engine, which are independent, stand in one chain. Effects are named ``Days|Subject``, their
    dimension after the factor, with the groups' labels. Where rows times draws are very many, log_likelihood and
    posterior_predictive hold fewer draws (their coordinate `draw` says which).
    """
    import xarray

    groups: dict[str, Any] = {"/": xarray.Dataset(attrs=_attributes(fit))}
    groups["posterior"], note = _posterior(fit)
    groups["sample_stats"] = _sample_stats(fit)
    design = fit.model.design
    if len(design.y) == design.n_rows:
        name = str(design.terms.response.expression)
        rows = {ROW: _row_labels(fit)}
        if design.trials is not None:
            groups["constant_data"] = xarray.Dataset({"trials": ((ROW,), design.trials.copy())}, coords=rows)
        groups["observed_data"] = xarray.Dataset({name: ((ROW,), design.y.copy())}, coords=rows)
        picked = _picked(fit)
        groups["log_likelihood"] = _rows_by_draws(fit, name, _log_likelihood(fit, picked), picked)
        response = predict(fit, None, kind="response", new_groups="error", effects="all", draws=None)
        groups["posterior_predictive"] = _rows_by_draws(fit, name, _with_draws(response, picked), picked)
    else:
        note.append(
            "the fit was saved without its rows: observed_data, log_likelihood and posterior_predictive are left out"
        )
    if note:
        groups["/"].attrs["note"] = "; ".join(note)
    return xarray.DataTree.from_dict(groups)


def _attributes(fit: Posterior) -> dict[str, Any]:
    from partialpool._version import __version__

    return {
        "inference_library": "partialpool", "inference_library_version": __version__,
        "formula": fit.model.design.terms.formula, "family": str(fit.model.family), "engine": fit.accuracy.engine,
        "seed": fit.seed,
    }  # fmt: skip


def _chains(fit: Posterior) -> int:
    """Chains among the draws: those of the engine where the draws are theirs in order, else one."""
    result = fit.result
    total, kept, chains = len(result.theta), len(result.draws_theta), result.chains
    if chains < 2 or total % chains or kept % chains or not result.theta.shape[1]:
        return 1
    own = result.theta.reshape(chains, -1, result.theta.shape[1])
    drawn = result.draws_theta.reshape(chains, -1, result.theta.shape[1])
    matched = all(np.isin(drawn[c, :, 0], own[c, :, 0]).all() for c in range(chains))
    return chains if matched else 1


def _split(fit: Posterior, values: Array) -> Array:
    """(draws, ...) as (chain, draw, ...)."""
    return values.reshape(_chains(fit), -1, *values.shape[1:])


def dimension(name: str) -> str:
    """The dimension of a factor's groups."""
    return f"{name}_" if name in RESERVED else name


def _posterior(fit: Posterior) -> tuple[xarray.Dataset, list[str]]:
    import xarray

    variables: dict[str, Any] = {name: (("chain", "draw"), _split(fit, fit.draws(name))) for name in fit.parameters}
    coords: dict[str, Any] = {}
    note = []
    design = fit.model.design
    structure = layout_of(fit.model)
    total = structure.n_effects * len(fit.result.draws_theta)
    if design.factors and not fit.model.exact and fit.result.effects is None and len(design.y) != design.n_rows:
        note.append("the group effects are left out of posterior: drawing them needs the rows")
    elif design.factors and total > MOST_NUMBERS:
        note.append(f"{structure.n_effects:,} group effects are left out of posterior; fit.group_draws() has them")
    elif design.factors:
        drawn = effect_draws(fit).of(np.arange(structure.n_effects))
        for position, factor in enumerate(design.factors):
            dim = dimension(factor.name)
            coords[dim] = factor.labels.astype(str)
            effects = drawn[:, structure.effects_of(position)]
            for column, term in enumerate(factor_terms(design, position)):
                variables[f"{term}|{factor.name}"] = (("chain", "draw", dim), _split(fit, effects[:, :, column]))
    count = len(fit.result.draws_theta) // _chains(fit)
    coords |= {"chain": np.arange(_chains(fit)), "draw": np.arange(count)}
    return xarray.Dataset(variables, coords=coords), note


def _sample_stats(fit: Posterior) -> xarray.Dataset:
    import xarray

    accuracy, result = fit.accuracy, fit.result
    variables: dict[str, Any] = {"log_marginal_likelihood": ((), fit.log_marginal_likelihood)}
    if accuracy.pareto_k is not None:
        variables["pareto_k"] = ((), float(accuracy.pareto_k))
    coords: dict[str, Any] = {}
    if accuracy.ess:
        coords["parameter"] = list(accuracy.ess)
        variables["ess"] = (("parameter",), np.array([accuracy.ess[name] for name in accuracy.ess], dtype=float))
    chains = _chains(fit)
    if result.chains and chains == result.chains and len(result.theta) == len(result.draws_theta):
        for name, values in result.statistics.items():
            array = np.asarray(values)
            if array.dtype.kind in "biuf" and array.shape == (chains, len(result.theta) // chains):
                variables[name] = (("chain", "draw"), array)
    return xarray.Dataset(variables, coords=coords)


def _row_labels(fit: Posterior) -> Any:
    index = fit.model.design.data.index
    return index.to_numpy() if index.dtype.kind in "iuf" else index.astype(str).to_numpy().astype(str)


def _picked(fit: Posterior) -> NDArray[np.int64]:
    """Draws that the groups with rows hold."""
    total = len(fit.result.draws_theta)
    count = max(1, min(total, MOST_NUMBERS // max(fit.model.design.n_rows, 1)))
    if fit.result.effects is None and _chains(fit) == 1:
        from partialpool.posterior.groups import seconds_per_node

        if layout_of(fit.model).n_root or not fit.model.exact:
            count = min(count, max(100, int(20 / seconds_per_node(fit))))
    return np.unique(np.linspace(0, total - 1, count).astype(np.int64))


def _with_draws(prediction: Any, picked: NDArray[np.int64]) -> Array:
    """The values of a prediction at these draws of the fit, (draws, rows)."""
    return _drawn(prediction._source, picked)


def _drawn(source: Source, picked: NDArray[np.int64]) -> Array:
    source = replace(source, draws=picked)
    out = np.empty((len(picked), source.rows.n_rows))
    for rows, block in source.blocks(np.transpose):
        out[:, rows] = block
    return out


def _log_likelihood(fit: Posterior, picked: NDArray[np.int64]) -> Array:
    """log p(y_i | eta_i, sigma) times the row's weight, (draws, rows)."""
    from partialpool.posterior.predict import residual_variance

    design = fit.model.design
    if not fit.model.exact:
        from partialpool.posterior.response import DENSITY, joint_source

        return _drawn(joint_source(fit, None, range(len(design.factors)), DENSITY, "error"), picked)
    linear = predict(fit, None, kind="linear", new_groups="error", effects="all", draws=None)
    eta = _with_draws(linear, picked)
    variance = residual_variance(fit, picked).T
    eta -= design.y
    eta *= eta
    eta /= variance
    eta += np.log(variance) + LOG_2PI
    eta *= -0.5 if design.weights is None else -0.5 * design.weights
    return eta


def _rows_by_draws(fit: Posterior, name: str, values: Array, picked: NDArray[np.int64]) -> xarray.Dataset:
    import xarray

    whole = len(picked) == len(fit.result.draws_theta)
    chains = _chains(fit) if whole else 1
    draw = np.arange(len(picked) // chains) if whole else picked
    return xarray.Dataset(
        {name: (("chain", "draw", ROW), values.reshape(chains, -1, values.shape[1]))},
        coords={"chain": np.arange(chains), "draw": draw, ROW: _row_labels(fit)},
    )
