"""What every question to a Pooled needs: rows of units, random numbers, a unit's posterior as points with weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import ModelError

if TYPE_CHECKING:
    from partialpool.pooling.pooled import Pooled

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: From this many units on, two units are taken to be independent in the posterior: what they share, the uncertainty of
#: the hyperparameters, correlates them by an amount of order 1 / units.
MANY_UNITS = 10_000
#: Numbers drawn or kept at a time.
BLOCK = 4_000_000
#: Units times the square of the population's point masses up to which these are weighed exactly.
MOST_MASSES = 200_000_000
#: Scores at which a smooth quantile function is computed, from how many nodes on; quantiles a unit that are dear.
KNOTS, FEW_NODES, DEAR_POINTS = 41, 20, 64
#: The streams of random numbers, one for each question, so that none repeats another's draws.
PURPOSES = ("rank", "compare")


def stream(pooled: Pooled, purpose: str) -> np.random.Generator:
    """The random numbers of one question: the same for every call on the same Pooled."""
    return np.random.default_rng(np.random.SeedSequence(pooled.seed, spawn_key=(41, PURPOSES.index(purpose))))


def independent(pooled: Pooled) -> bool:
    """Whether units are independent in the posterior, exactly (nothing uncertain is shared) or but for 1 / units."""
    posterior = pooled.posterior
    shared = posterior.node_weights.size > 1 or np.any(getattr(posterior, "covariance", 0.0))
    return not shared or pooled.units.n > MANY_UNITS


def positions(pooled: Pooled, units: Any = None) -> Ints:
    """Rows of the units asked for: all where none are named, else those of one label or of a list of labels."""
    if units is None:
        return np.arange(pooled.units.n, dtype=np.int64)
    if isinstance(units, str | bytes) or not hasattr(units, "__iter__"):
        return np.array([pooled.units.position(units)], dtype=np.int64)
    wanted = list(units)
    if not wanted:
        raise ModelError("No units were asked for: units= is empty. Leave it out to ask for all of them.")
    if len(wanted) <= 8:
        return np.array([pooled.units.position(unit) for unit in wanted], dtype=np.int64)
    places = {name: place for place, name in enumerate(pooled.units.names.tolist())}
    return np.array([places[u] if u in places else pooled.units.position(u) for u in wanted], dtype=np.int64)


def raw_and_mean(pooled: Pooled) -> tuple[Array, Array]:
    """The units' own estimates and their posterior means."""
    return np.asarray(pooled.units.raw, dtype=np.float64), np.asarray(pooled.posterior.moments()[0], dtype=np.float64)


def probability_grid(count: int) -> tuple[Array, Array]:
    r"""Probabilities and weights (count,) with which a mean over a unit's posterior is a sum over its quantiles.

    .. math:: E\,f(\theta) = \int_0^1 f(Q(p))\,dp, \qquad p = v^3 (10 - 15 v + 6 v^2),\; v = (i + 1/2) / n

    The points crowd at both ends, where the quantile function is steep, and their weights vanish there: smooth
    functions are integrated to many digits, and a jump of f costs at most its height times 0.94 / count.

    Examples
    --------
    >>> p, w = probability_grid(64)
    >>> float(np.sum(w * p**2).round(6))
    0.333333
    """
    v = (np.arange(count) + 0.5) / count
    weights = 30.0 * (v * (1.0 - v)) ** 2
    return v**3 * (10.0 - 15.0 * v + 6.0 * v * v), weights / weights.sum()


def chunks(count: int, width: int) -> Iterator[Ints]:
    """The rows 0 to count - 1, `width` at a time."""
    for low in range(0, count, max(1, width)):
        yield np.arange(low, min(count, low + max(1, width)), dtype=np.int64)


def atom_places(pooled: Pooled) -> Array:
    """Values of the parameter that carry a point mass in the population, in order."""
    places, masses = pooled.population.atoms
    kept = np.asarray(places, dtype=np.float64)[np.asarray(masses, dtype=np.float64) > 0.0]
    return np.unique(kept)


def dense_quantiles(pooled: Pooled, p: Array, rows: Ints) -> Array:
    """Quantiles (p, rows) at many probabilities.

    Where there are no point masses the quantile function is smooth in the normal score, and mixtures over hundreds of
    nodes are inverted at KNOTS scores only, between which a monotone cubic is laid.
    """
    posterior = pooled.posterior
    if p.size <= KNOTS or posterior.node_weights.size < FEW_NODES or atom_places(pooled).size:
        return np.asarray(posterior.quantiles(p, rows), dtype=np.float64)
    from scipy.interpolate import PchipInterpolator
    from scipy.special import ndtr, ndtri

    score = ndtri(p)
    knots = np.linspace(score[0], score[-1], KNOTS)
    known = np.asarray(posterior.quantiles(ndtr(knots), rows), dtype=np.float64)
    return np.asarray(PchipInterpolator(knots, known, axis=0)(score))


def affordable(pooled: Pooled, points: int) -> int:
    """How many quantiles a unit: fewer where each is dear, which mixtures over many nodes with point masses are."""
    dear = pooled.posterior.node_weights.size >= FEW_NODES and atom_places(pooled).size > 0
    return min(points, DEAR_POINTS) if dear else points


def unit_points(pooled: Pooled, count: int, rows: Ints) -> tuple[Array, Array]:
    """Each unit's posterior as values and weights, (count, rows): a mean over it is the weighted sum.

    The weights are those of `probability_grid`, but that the values at a point mass of the population, and those
    between two of them, together weigh what the posterior gives them: a loss or a rank that jumps there costs no
    accuracy.
    """
    p, w = probability_grid(count)
    values = dense_quantiles(pooled, p, rows)
    places = atom_places(pooled)
    # more masses than values can meet (one for each node, where their place is uncertain) are as good as continuous
    if not 0 < places.size <= count // 4 or places.size**2 * pooled.units.n > MOST_MASSES:
        return values, np.broadcast_to(w[:, None], values.shape)
    values = values.copy()
    weights = np.repeat(w[:, None], rows.size, axis=1)
    # rounding must not leave a quantile beside the mass it lies on: a loss may ask whether theta > 0
    for place in places.tolist():
        values[np.abs(values - place) <= 1e-12 * (1.0 + abs(place))] = place
    below, low, missed = np.zeros(rows.size), -np.inf, np.zeros(rows.size)
    for place in [*places.tolist(), np.inf]:
        atom = np.asarray(pooled.posterior.atom(place, rows)) if place < np.inf else np.zeros(rows.size)
        reached = np.asarray(pooled.posterior.cdf(place, rows)) if place < np.inf else np.ones(rows.size)
        missed = _weigh(weights, (values > low) & (values < place), reached - atom - below + missed)
        missed = _weigh(weights, values == place, atom + missed)
        below, low = reached, place
    return values, weights / weights.sum(axis=0)


def _weigh(weights: Array, where: NDArray[np.bool_], mass: Array) -> Array:
    """Scale the weights `where` so that those of each column add up to its mass; returns what had none to bear it."""
    total = (weights * where).sum(axis=0)
    mass = np.maximum(mass, 0.0)
    factor = np.divide(mass, total, out=np.ones_like(total), where=total > 0)
    np.multiply(weights, factor, out=weights, where=where)
    return np.where(total > 0, 0.0, mass)


def posterior_points(pooled: Pooled, row: int, count: int) -> tuple[Array, Array]:
    """One unit's posterior as values and weights: its point masses exactly, the rest by about `count` quantiles.

    Between two point masses the quantile function is smooth, so that no accuracy is lost to their jumps.
    """
    unit = np.array([row], dtype=np.int64)
    places = atom_places(pooled)
    masses = np.array([float(pooled.posterior.atom(float(x), unit)[0]) for x in places])
    places, masses = places[masses > 0.0], masses[masses > 0.0]
    tops = np.array([float(pooled.posterior.cdf(float(x), unit)[0]) for x in places])
    starts, ends = np.concatenate([[0.0], tops]), np.concatenate([tops - masses, [1.0]])
    values, weights = [places], [masses]
    for low, high in zip(starts.tolist(), ends.tolist(), strict=True):
        if high - low <= 1e-12:
            continue
        p, w = probability_grid(max(count // 2, round(count * (high - low))))
        values.append(np.asarray(pooled.posterior.quantiles(low + (high - low) * p, unit))[:, 0])
        weights.append(w * (high - low))
    joined = np.concatenate(weights)
    return np.concatenate(values), joined / joined.sum()


def numbers(name: str, value: Any, count: int) -> Array:
    """A number, or one for each of `count` units, as an array (count,); ModelError where it is neither."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ModelError(f"{name} must be a number, or one number for each unit; it is {value!r}.") from None
    if array.ndim > 1 or (array.ndim == 1 and array.shape[0] != count):
        raise ModelError(
            f"{name} has shape {array.shape}; give one number for all, or one for each of the {count} units asked for."
        )
    full = np.broadcast_to(array, (count,))
    if np.isnan(full).any():
        raise ModelError(
            f"{name} is missing (NaN) at position {int(np.flatnonzero(np.isnan(full))[0])}; give a number."
        )
    return np.ascontiguousarray(full)


def check_place(pooled: Pooled, values: ArrayLike, name: str) -> None:
    """Refuse places where no true value can lie: 4, meant as 4 percent, is not a probability."""
    places = np.asarray(values, dtype=np.float64)
    if pooled.family == "binomial" and bool(np.any((places < 0) | (places > 1))):
        raise ModelError(f"{name} must be a probability, between 0 and 1; 4% is 0.04.")
    if pooled.family == "poisson" and bool(np.any(places < 0)):
        raise ModelError(f"{name} must be a rate, which is not negative.")
