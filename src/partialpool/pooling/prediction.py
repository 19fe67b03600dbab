r"""A unit's next data: the posterior predictive distribution, in moments that are exact and quantiles by quadrature.

.. math::
   E\,\tilde y = \mathrm{size} \cdot E\theta, \qquad
   \mathrm{Var}\,\tilde y = E\,\mathrm{Var}(\tilde y \mid \theta) + \mathrm{Var}\,E(\tilde y \mid \theta)

and P(next <= y) is the average of the normal, binomial or Poisson distribution function over quantiles of theta
(`marginals.probability_grid`), inverted: for counts the smallest whole number that reaches the probability.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import ModelError
from partialpool.pooling.marginals import affordable, chunks, dense_quantiles, numbers, positions, probability_grid
from partialpool.pooling.shapes import Shape, marginal_of

if TYPE_CHECKING:
    import pandas

    from partialpool.pooling.pooled import Pooled

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Quantiles of theta over which the predictive distribution is averaged, for few units and for many.
POINTS, POINTS_MANY, FEW = 256, 20, 10_000
#: Units worked on at a time.
CHUNK = 4096
PROBABILITIES = (0.05, 0.95)
#: What a family's size is called, and that of the data that it gives.
SIZES = {"normal": "se", "binomial": "trials", "poisson": "exposure"}
NEXT = {"normal": "the next estimate", "binomial": "the events of the next trials", "poisson": "the next count"}
#: The label of a unit that has not been seen.
NEW = "new"


def predict(
    pooled: Pooled,
    units: Any = None,
    *,
    trials: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    se: ArrayLike | None = None,
    covariates: Any = None,
) -> pandas.DataFrame:
    """What a unit will show next: events in so many trials, a count in so much exposure, an estimate with such an se.

    Parameters
    ----------
    pooled : Pooled
    units : a label, a list of labels, or "new"; optional
        All units if not given. "new" is a unit that has not been seen, drawn from the population.
    trials, exposure, se : float or (units asked for,)
        The size of the data to come, named as the family has it; each unit's own if not given.
    covariates : mapping of names to values, or a one-row data frame
        Those of the new unit, where units were pooled around a regression; their means if not given.

    Returns
    -------
    DataFrame
        A row per unit: unit, mean, sd, q05, q95 of the data to come, over the posterior of the unit's parameter and the
        noise of the data. Means and sds are exact; quantiles of counts are whole numbers. `attrs`: what, size.

    Raises
    ------
    ModelError
        For a size that is not of the family, impossible, or missing for a new unit. DataError: for an unknown unit.

    Examples
    --------
    A beta-binomial: 7 of 10 and a population Beta(2, 8), so Beta(9, 11); the mean of 20 more is 20 x 9 / 20.

    >>> import partialpool as pp
    >>> pooled = pp.pool([7], trials=[10], population=pp.Beta(2, 8), seed=1)
    >>> pooled.predict(trials=20).round(4).to_dict("records")
    [{'unit': 0, 'mean': 9.0, 'sd': 3.0706, 'q05': 4.0, 'q95': 14.0}]
    """
    import pandas

    given = _given_size(pooled, {"trials": trials, "exposure": exposure, "se": se})
    if isinstance(units, str) and units == NEW and NEW not in pooled.units.names.tolist():
        table = pandas.DataFrame({"unit": [NEW], **_of_new_unit(pooled, given, covariates)})
    elif covariates is not None:
        raise ModelError("covariates= are those of a new unit; units that were pooled have theirs: leave them out.")
    else:
        rows = positions(pooled, units)
        size = pooled.units.size[rows] if given is None else _checked(pooled, given, rows.size)
        columns = _of_units(pooled, rows, np.asarray(size, dtype=np.float64))
        table = pandas.DataFrame({"unit": pooled.units.names[rows], **columns})
    table.attrs.update(what=NEXT[pooled.family], size=SIZES[pooled.family])
    return table


def _given_size(pooled: Pooled, sizes: dict[str, Any]) -> Any:
    own = SIZES[pooled.family]
    for name, value in sizes.items():
        if value is not None and name != own:
            raise ModelError(
                f"{name}= does not go with the {pooled.family} family: its units are measured in {own}. "
                f"Give {own}= instead."
            )
    return sizes[own]


def _checked(pooled: Pooled, given: Any, count: int) -> Array:
    name = SIZES[pooled.family]
    size = numbers(f"{name}=", given, count)
    wrong = ~np.isfinite(size) | (size <= 0.0)
    if pooled.family == "binomial":
        wrong |= size != np.floor(size)
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        kind = "a whole number of at least 1" if pooled.family == "binomial" else "a positive finite number"
        raise ModelError(f"{name}= must be {kind}; it is {size[place]:g} at position {place}.")
    return size


def _moments(family: str, mean: Array, sd: Array, size: Array) -> tuple[Array, Array]:
    """Mean and sd of the data to come, from those of theta and the laws of total expectation and variance."""
    if family == "normal":
        return mean, np.hypot(sd, size)
    if family == "binomial":
        noise = size * np.maximum(mean * (1.0 - mean) - sd**2, 0.0)
        return size * mean, np.sqrt(noise + (size * sd) ** 2)
    return size * mean, np.sqrt(size * mean + (size * sd) ** 2)


def _of_units(pooled: Pooled, rows: Ints, size: Array) -> dict[str, Array]:
    theta_mean, theta_sd = (np.asarray(m)[rows] for m in pooled.posterior.moments())
    mean, sd = _moments(pooled.family, theta_mean, theta_sd, size)
    p, w = probability_grid(affordable(pooled, POINTS if rows.size <= FEW else POINTS_MANY))
    out = np.empty((2, rows.size))

    def work(part: Ints, theta: Array) -> None:
        out[:, part] = _quantiles(pooled.family, theta, w, size[part], mean[part], sd[part])

    with ThreadPoolExecutor(pooled.posterior.threads) as pool:
        for parts in chunks(rows.size, CHUNK * pooled.posterior.threads):
            theta = dense_quantiles(pooled, p, rows[parts])
            pieces = list(chunks(parts.size, CHUNK))
            list(pool.map(work, [parts[piece] for piece in pieces], [theta[:, piece] for piece in pieces]))
    return {"mean": mean, "sd": sd, "q05": out[0], "q95": out[1]}


def _population_at(pooled: Pooled, covariates: Any) -> Shape:
    """The population around the covariates of a new unit."""
    found = pooled.found
    if covariates is None:
        return found.population.shape
    row = pooled.units.encode(covariates)
    if len(row) != 1:
        raise ModelError(f"covariates= describe {len(row)} new units; give one at a time.")
    assert found.model is not None and found.nodes is not None
    return found.model.shape(found.nodes, pooled.posterior.node_weights, row[0])


def _of_new_unit(pooled: Pooled, given: Any, covariates: Any) -> dict[str, Array]:
    if given is None:
        name = SIZES[pooled.family]
        raise ModelError(f"A new unit has no {name} of its own: say how much data is to come with {name}=.")
    marginal = marginal_of(_population_at(pooled, covariates), float(_checked(pooled, given, 1)[0]))
    mean, sd = np.array([float(marginal.mean)]), np.sqrt(np.array([float(marginal.variance)]))

    def cdf(y: Array, asked: Ints) -> Array:
        return np.asarray(marginal.cdf(y), dtype=np.float64)

    if pooled.family == "normal":
        quantiles = [_continuous(cdf, p, mean, sd) for p in PROBABILITIES]
    else:
        quantiles = [_whole(cdf, p, mean, sd) for p in PROBABILITIES]
    return {"mean": mean, "sd": sd, "q05": quantiles[0], "q95": quantiles[1]}


def _quantiles(family: str, theta: Array, weights: Array, size: Array, mean: Array, sd: Array) -> Array:
    """The two quantiles (2, units) of the data, over theta (points, units) with their weights."""
    from scipy.special import betainc, gammaincc

    if family == "normal":
        from partialpool.algebra.mixture import mixture_summary

        sds = np.ascontiguousarray(np.broadcast_to(size, theta.shape))
        return mixture_summary(weights, np.ascontiguousarray(theta), sds, np.array(PROBABILITIES))[2]

    def binomial(y: Array, asked: Ints) -> Array:
        rest = size[asked] - y
        safe = np.maximum(rest, 1.0)
        reached = weights @ betainc(safe, np.maximum(y, 0.0) + 1.0, 1.0 - theta[:, asked])
        return np.asarray(np.where(y < 0, 0.0, np.where(rest <= 0, 1.0, reached)))

    def poisson(y: Array, asked: Ints) -> Array:
        reached = weights @ gammaincc(np.maximum(y, 0.0) + 1.0, size[asked] * theta[:, asked])
        return np.asarray(np.where(y < 0, 0.0, reached))

    cdf = binomial if family == "binomial" else poisson
    return np.stack([_whole(cdf, p, mean, sd) for p in PROBABILITIES])


def _whole(cdf: Callable[[Array, Ints], Array], p: float, mean: Array, sd: Array) -> Array:
    """The smallest whole numbers at which distribution functions reach p; `cdf(y, positions)` is of some of them."""
    everyone = np.arange(mean.size, dtype=np.int64)
    centre = np.where(np.isfinite(mean), mean, 1.0)
    width = np.maximum(1.0, np.where(np.isfinite(sd), sd, centre))
    guess = centre + NormalDist().inv_cdf(p) * width
    low = np.maximum(np.floor(guess - 0.5 * width), -1.0)
    high = np.maximum(np.ceil(guess + 0.5 * width), low + 1.0)
    low[cdf(low, everyone) >= p] = -1.0
    short = everyone[cdf(high, everyone) < p]
    while short.size:
        low[short] = high[short]
        high[short] = 2.0 * high[short] + 2.0
        short = short[(cdf(high[short], short) < p) & (high[short] < 1e15)]
    active = everyone[high - low > 1.0]
    while active.size:
        middle = np.floor(0.5 * (low[active] + high[active]))
        reached = cdf(middle, active) >= p
        high[active] = np.where(reached, middle, high[active])
        low[active] = np.where(reached, low[active], middle)
        active = active[high[active] - low[active] > 1.0]
    return high


def _continuous(cdf: Callable[[Array, Ints], Array], p: float, mean: Array, sd: Array) -> Array:
    """Where distribution functions reach p, by bisection within the bounds of Cantelli's inequality."""
    everyone = np.arange(mean.size, dtype=np.int64)
    centre = np.where(np.isfinite(mean), mean, 0.0)
    reach = np.where(np.isfinite(sd), sd, 1.0) * 1.01 * np.sqrt(max(p, 1 - p) / min(p, 1 - p))
    low, high = centre - reach, centre + reach
    for _ in range(200):
        outside_low, outside_high = cdf(low, everyone) > p, cdf(high, everyone) < p
        if not (outside_low.any() or outside_high.any()):
            break
        low, high = np.where(outside_low, low - reach, low), np.where(outside_high, high + reach, high)
        reach = 2.0 * reach
    for _ in range(100):
        middle = 0.5 * (low + high)
        reached = cdf(middle, everyone) >= p
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.asarray(high)
