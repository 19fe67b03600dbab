"""A Pooled as an ArviZ tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool._version import __version__
from partialpool.errors import ModelError
from partialpool.pooling.lattice import Lattice
from partialpool.pooling.posteriors import NormalPosterior
from partialpool.pooling.shapes import unit_log_likelihood

if TYPE_CHECKING:
    import xarray

    from partialpool.pooling.pooled import Pooled

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Numbers (draws x units) in one group at most; more units have fewer draws.
MOST_NUMBERS = 40_000_000


def to_arviz(pooled: Pooled, n_draws: int = 4000) -> xarray.DataTree:
    """`Pooled.to_arviz`.

    Returns
    -------
    xarray.DataTree
        posterior: the population's parameters and theta (chain, draw, unit); posterior_predictive: replicated data;
        log_likelihood: of each unit's data given its theta; observed_data. One chain of independent draws.

    Raises
    ------
    ModelError
        Where units are so many that not even 100 draws of them fit.
    """
    import xarray

    if isinstance(n_draws, bool) or not isinstance(n_draws, int | np.integer) or n_draws < 1:
        raise ModelError(f"n_draws = {n_draws!r} is not possible; give a whole number above 0, such as 4000.")
    units = pooled.units
    count = min(int(n_draws), MOST_NUMBERS // units.n)
    if count < min(100, n_draws):
        raise ModelError(f"{units.n:,} units are too many for an ArviZ tree; use .table, .draws() or .rank().")
    rng = np.random.default_rng(np.random.SeedSequence(pooled.seed, spawn_key=(42,)))
    nodes = pooled.node_draws(count, rng)
    if isinstance(pooled.posterior, NormalPosterior):
        coefficients = pooled.posterior.coefficient_draws(nodes, rng)
        theta = pooled.posterior.draws(nodes, rng, coefficients=coefficients)
    else:
        coefficients, theta = np.empty((count, 0)), pooled.posterior.draws(nodes, rng)
    hyper = _hyperparameters(pooled, nodes, coefficients, rng)
    name = units.label or {"normal": "estimate", "binomial": "events", "poisson": "counts"}[units.family]
    coords = {"chain": [0], "draw": np.arange(count), "unit": units.names}
    by_unit = ("chain", "draw", "unit")

    def dataset(values: dict[str, Any], dims: tuple[str, ...] = by_unit) -> xarray.Dataset:
        own = {key: coords[key] for key in dims}
        data = {key: (dims, value) for key, value in values.items()}
        return xarray.Dataset(data, coords=own, attrs=_attributes(pooled))

    posterior = dataset({"theta": theta[None]})
    for key, values in hyper.items():
        posterior[key] = (("chain", "draw"), values[None])
    groups = {
        "posterior": posterior,
        "posterior_predictive": dataset({name: _replicated(pooled, theta, rng)[None]}),
        "log_likelihood": dataset({name: unit_log_likelihood(units.family, units.y, units.size, theta)[None]}),
        "observed_data": dataset({name: units.y}, ("unit",)),
    }
    return xarray.DataTree.from_dict(groups)


def _attributes(pooled: Pooled) -> dict[str, Any]:
    return {
        "inference_library": "partialpool",
        "inference_library_version": __version__,
        "method": pooled.method, "population": pooled.population.kind, "seed": pooled.seed,
    }  # fmt: skip


def _hyperparameters(pooled: Pooled, nodes: Ints, coefficients: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Draws of the population's parameters that go with the nodes and coefficients drawn; constant where known."""
    found = pooled.found
    if found.model is None or found.nodes is None:
        return {name: np.full(len(nodes), row.mean) for name, row in pooled.population.rows.items()}
    x = found.nodes[nodes]
    names = found.model.coefficients_given(found.nodes[:1])[0]
    out = {name: coefficients[:, i] for i, name in enumerate(names)}
    if isinstance(found.explored, Lattice):
        x = _between(found.explored, x, rng)
    return {**out, **found.model.parameters(x)}


def _between(lattice: Lattice, x: Array, rng: np.random.Generator) -> Array:
    """Points around nodes of a lattice: spread over its cells, and drawn in so that sds stay what they are."""
    mean = lattice.weights @ lattice.nodes
    whiten = np.linalg.inv(lattice.factor).T
    variance = np.maximum(lattice.weights @ ((lattice.nodes - mean) @ whiten) ** 2, 1e-12)
    noise = lattice.step**2 / 12
    inside = (x - mean) @ whiten + lattice.step * (rng.random(x.shape) - 0.5)
    return np.asarray(mean + (inside * np.sqrt(variance / (variance + noise))) @ lattice.factor.T)


def _replicated(pooled: Pooled, theta: Array, rng: np.random.Generator) -> Array:
    """Data that units with these true values would give again."""
    size = pooled.units.size
    if pooled.family == "normal":
        return theta + size * rng.standard_normal(theta.shape)
    if pooled.family == "binomial":
        return rng.binomial(size.astype(np.int64), np.clip(theta, 0, 1)).astype(float)
    return rng.poisson(theta * size).astype(float)
