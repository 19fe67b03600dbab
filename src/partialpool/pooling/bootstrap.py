"""Intervals that account for estimated weights: the weighted-likelihood bootstrap (Newton and Raftery, 1994).

Each replicate gives every unit a weight drawn from a flat Dirichlet distribution, and estimates the population's
weights anew; the units' posteriors under all replicates form one mixture. It approximates the posterior of the weights
without a prior; a mode that was estimated is not varied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.unitpass import legendre
from partialpool.pooling.grid import GridPosterior
from partialpool.pooling.mixtures import NormalMixturePosterior
from partialpool.pooling.posteriors import UnitPosterior
from partialpool.pooling.shapes import FAMILIES, Components, unit_log_likelihood
from partialpool.pooling.simplex import maximise_weights
from partialpool.pooling.units import Units
from partialpool.pooling.weights import component_code, component_logs, null_penalty, spread_grid

Array = NDArray[np.float64]

#: Replicates, and the largest number of units for which they are made: beyond it weights are known well enough.
REPLICATES, MOST_UNITS = 30, 5_000
#: A replicate's weights need no more precision than this; smaller ones are dropped.
GAP, NEGLIGIBLE = 1e-5, 1e-5
#: Places of theta between which a non-parametric population is replicated.
PLACES = 200


def bootstrap_quantiles(
    units: Units, kind: str, mode: float, known: bool, places: Array, probabilities: Array, seed: int, threads: int = 1
) -> Array:
    """Quantiles (Q, J) of the units under replicated populations.

    Parameters
    ----------
    mode, known : of scale_mixture and unimodal, on the link scale, and whether it was given.
    places : of the non-parametric population, on the natural scale.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(44,)))
    counts = rng.standard_exponential((REPLICATES, units.n))
    counts *= units.n / counts.sum(axis=1, keepdims=True)
    if kind == "npmle":
        return _points(units, places, counts, probabilities, threads)
    return _components(units, kind, mode, known, counts, threads).quantiles(probabilities)


def _components(units: Units, kind: str, mode: float, known: bool, counts: Array, threads: int) -> UnitPosterior:
    spreads = spread_grid(units, mode)
    logs = component_logs(units, kind, mode, spreads, threads)
    penalty = null_penalty(spreads.size, units.n) if known else None
    weights = np.stack([
        maximise_weights(logs, own, penalty=penalty, tolerance=GAP, threads=threads).weights for own in counts
    ])  # fmt: skip
    weights = np.where(weights > NEGLIGIBLE, weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    node, part = np.nonzero(weights)
    code, stretch = component_code(kind)
    c = Components(
        node.astype(np.int64), weights[node, part], np.full(node.size, code), np.full(node.size, mode),
        stretch * spreads[part], np.ones(node.size),
    )  # fmt: skip
    even = np.full(REPLICATES, 1 / REPLICATES)
    if units.family == "normal" and kind == "scale_mixture":
        return NormalMixturePosterior(units.y, units.size, even, c, threads=threads)
    return GridPosterior(
        FAMILIES.index(units.family), units.y, units.size, even, c.node, c.weight, c.kind, c.location, c.spread, c.nu,
        None, threads=threads,
    )  # fmt: skip


def _points(units: Units, support: Array, counts: Array, probabilities: Array, threads: int) -> Array:
    """Replicates of a non-parametric population, on the support found and places between the raw estimates."""
    raw = units.raw[np.isfinite(units.raw)]
    x, _ = legendre(PLACES)
    between = np.quantile(raw, 0.5 * (x + 1))
    places = np.unique(np.concatenate([support, between]))
    logs = unit_log_likelihood(units.family, units.y, units.size, places[:, None])
    keep = np.isfinite(logs).any(axis=1)
    places, logs = places[keep], logs[keep]
    likelihood = np.exp(logs - logs.max(axis=0))
    total = np.zeros_like(likelihood)
    for own in counts:
        weights = maximise_weights(logs, own, tolerance=GAP, threads=threads).weights
        joint = weights[:, None] * likelihood
        total += joint / joint.sum(axis=0)
    below = np.cumsum(total / REPLICATES, axis=0)
    at = np.stack([np.argmax(below >= p * (1 - 1e-12), axis=0) for p in probabilities])
    return np.asarray(places[at])
