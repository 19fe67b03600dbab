r"""One unit against another, and units against a threshold.

Two units share the uncertainty of the hyperparameters, so that a comparison is made of joint draws. What is known
exactly is used: the mean of the difference, each unit's variance, and, as control variates, each unit's distribution
function:

.. math:: P(\theta_a > \theta_b) \approx \overline{1\{\theta_a > \theta_b\}} - \beta' \overline{(h - E h)}

with h the units' values and indicators of theta <= t, whose expectations the posterior gives. Where nothing uncertain
is shared (empirical Bayes, fixed populations) the probability is an integral over one unit's posterior, without noise.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import ModelError
from partialpool.pooling.marginals import (
    BLOCK,
    MANY_UNITS,
    atom_places,
    check_place,
    chunks,
    independent,
    numbers,
    posterior_points,
    stream,
)

if TYPE_CHECKING:
    import pandas

    from partialpool.pooling.pooled import Pooled

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Joint draws of a pair, and draws times units and the fewest draws where a unit is compared with all others.
PAIR_DRAWS = 40_000
MOST_DRAWN = 10_000_000
FEWEST_DRAWS = 200
#: Points of the first unit's posterior over which a probability is integrated where units are independent.
POINTS = 128
POINTS_MANY = 20
#: Equally likely slices of a unit's posterior of which, among more than 10,000 units, all pairs are compared.
SLICES = 32
#: What a unit's parameter is called.
COLUMNS = ("sd", "q05", "q95", "probability", "probability_equal", "ratio_q05", "ratio_q50", "ratio_q95")
RATIOS = COLUMNS[5:]
WORDS = {"normal": "mean", "binomial": "probability", "poisson": "rate"}
ASKED = np.array([0.05, 0.5, 0.95])


def exceeds(pooled: Pooled, threshold: ArrayLike, *, below: bool = False) -> pandas.Series[float]:
    """The posterior probability that each unit's parameter is above a threshold; exact.

    Parameters
    ----------
    pooled : Pooled
    threshold : float or (units,), in the order of the data; a Series whose index names the units is matched by name
        On the natural scale: a mean, a probability, a rate.
    below : bool
        Give P(theta < threshold) instead; a point mass at the threshold counts in neither.

    Returns
    -------
    Series
        Named probability, its index the units.

    Raises
    ------
    ModelError
        If the threshold is neither one number nor one for each unit.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool([7], trials=[10], population=pp.Beta(2, 8), seed=1)
    >>> float(pooled.exceeds(0.5).iloc[0].round(4))
    0.3238
    """
    import pandas

    units = pooled.units
    if isinstance(threshold, pandas.Series) and units.named:
        threshold = _matched(pooled, threshold)
    limit = numbers("threshold", threshold, units.n)
    check_place(pooled, limit, "threshold")
    uniform = bool(np.all(limit == limit[0]))
    at: float | Array = float(limit[0]) if uniform else limit
    not_above = np.asarray(pooled.posterior.cdf(at), dtype=np.float64)
    if below:
        probability = not_above - _atoms(pooled, limit)
    else:
        probability = 1.0 - not_above
    index = pandas.Index(units.names, name="unit")
    return pandas.Series(np.clip(probability, 0.0, 1.0), index=index, name="probability")


def _matched(pooled: Pooled, threshold: pandas.Series[Any]) -> Array:
    """The thresholds of a Series by the names of its index, where these are the units' names; else as they stand."""
    names = pooled.units.names.tolist()
    labels = threshold.index
    known = labels.isin(names)
    if not known.any():
        return threshold.to_numpy(dtype=np.float64)
    if not labels.is_unique:
        twice = labels[labels.duplicated()][0]
        raise ModelError(f"threshold has unit {twice!r} more than once; give one threshold for each unit.")
    matched = threshold.reindex(names)
    missing = matched.isna().to_numpy()
    if missing.any():
        first = names[int(np.flatnonzero(missing)[0])]
        raise ModelError(f"threshold has no value for {int(missing.sum())} of the units, unit {first!r} first.")
    return matched.to_numpy(dtype=np.float64)


def _atoms(pooled: Pooled, at: Array, rows: Ints | None = None) -> Array:
    """P(theta_j == at_j), for the few values of `at` that are point masses of the population."""
    out = np.zeros(at.shape)
    for place in atom_places(pooled).tolist():
        here = np.flatnonzero(at == place)
        if here.size:
            out[here] = pooled.posterior.atom(place, (here if rows is None else rows[here]).astype(np.int64))
    return out


@dataclass(frozen=True, repr=False)
class Comparison:
    """The first unit's parameter against the second's. Made by ``pooled.compare``.

    Attributes
    ----------
    first, second : the units.
    mean, sd, q05, q95 : of theta_first - theta_second; the mean is exact.
    probability : P(theta_first > theta_second). probability_equal : P(theta_first == theta_second), 0 unless the
        population has point masses.
    ratio : (q05, q50, q95) of theta_first / theta_second for probabilities and rates; None for means.
    mcse : Monte Carlo standard error of the probability; 0 where it was integrated. n_draws : joint draws.
    parameter : "mean", "probability" or "rate".
    """

    first: Any
    second: Any
    mean: float
    sd: float
    q05: float
    q95: float
    probability: float
    probability_equal: float
    ratio: tuple[float, float, float] | None
    mcse: float
    n_draws: int
    parameter: str

    def __repr__(self) -> str:
        digits = _decimals(self.sd)
        side = "above" if self.mean >= 0 else "below"
        text = (
            f"The {self.parameter} of {self.first!s} is {abs(self.mean):.{digits}f} {side} that of {self.second!s} "
            f"(90% interval of the difference {self.q05:.{digits}f} to {self.q95:.{digits}f}); it is higher with "
            f"probability {_share(self.probability)}"
        )
        if self.probability_equal > 0:
            text += f", equal with probability {_share(self.probability_equal)}"
        text += "."
        if self.ratio is not None and math.isfinite(self.ratio[2]):
            low, middle, high = self.ratio
            text += f" Ratio {middle:.3g} (90% interval {low:.3g} to {high:.3g})."
        return text


def _decimals(sd: float) -> int:
    """Decimals that show a number to the second significant digit of its sd."""
    return 3 if not 0 < sd < math.inf else min(8, max(0, 1 - math.floor(math.log10(sd))))


def _share(probability: float) -> str:
    if probability > 0.9995:
        return "> 0.999"
    return "< 0.001" if probability < 0.0005 else f"{probability:.3f}"


def compare(pooled: Pooled, a: Any, b: Any = None) -> Comparison | pandas.DataFrame:
    """One unit against another, or against every other.

    Parameters
    ----------
    pooled : Pooled
    a, b : labels of units
        Without b, `a` is compared with every other unit.

    Returns
    -------
    Comparison or DataFrame
        With b a Comparison, from 40,000 joint draws and the exact moments. Without, a row per other unit in the order
        of the data, from at most as many draws as come to 10,000,000 numbers (beyond 10,000 units from quantiles of
        both): unit, mean, sd, q05, q95 (of theta_a - theta_unit), probability (that it is positive), probability_equal,
        and for probabilities and rates ratio_q05, ratio_q50, ratio_q95. `attrs`: first, n_draws.

    Raises
    ------
    DataError
        For an unknown unit. ModelError: if a and b are the same unit, or there is only one.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool(
    ...     [28, 8, -3, 7, -1, 1, 18, 12], se=[15, 10, 16, 11, 9, 11, 10, 18], units=list("ABCDEFGH"), seed=1
    ... )
    >>> against = pooled.compare("A", "E")
    >>> 0.5 < against.probability < 0.95 and against.q05 < 0 < against.q95
    True
    >>> len(pooled.compare("A"))
    7
    """
    for side in (a, b):
        if isinstance(side, list | tuple | np.ndarray):
            raise ModelError("compare takes one unit against another, or one against all: name a unit, not a list.")
    first = pooled.units.position(a)
    if b is None:
        if pooled.units.n < 2:
            raise ModelError("There is only one unit; nothing to compare it with.")
        return _against_all(pooled, first)
    second = pooled.units.position(b)
    if first == second:
        raise ModelError(
            f"a and b are the same unit, {a!r}; name two different ones, or leave b out to compare with all."
        )
    return _pair(pooled, first, second)


def _pair(pooled: Pooled, first: int, second: int) -> Comparison:
    rows = np.array([first, second], dtype=np.int64)
    rng = stream(pooled, "compare")
    theta = np.asarray(pooled.posterior.draws(pooled.node_draws(PAIR_DRAWS, rng), rng, rows))
    means, sds = (np.asarray(m)[rows] for m in pooled.posterior.moments())
    difference = theta[:, 0] - theta[:, 1]
    if independent(pooled):
        above, equal = _integrated(pooled, first, rows[1:], POINTS)
        probability, same, mcse, covariance = float(above[0]), float(equal[0]), 0.0, 0.0
    else:
        controls = _controls(pooled, theta, rows, means, sds)
        probability, mcse = _controlled(difference > 0, controls)
        same = _controlled(difference == 0, controls)[0] if (difference == 0).any() else 0.0
        covariance = float(np.mean((theta[:, 0] - theta[:, 0].mean()) * (theta[:, 1] - theta[:, 1].mean())))
    low, high = np.quantile(difference, [0.05, 0.95])
    return Comparison(
        first=pooled.units.names[first],
        second=pooled.units.names[second],
        mean=float(means[0] - means[1]),
        sd=math.sqrt(max(0.0, float(sds @ sds) - 2.0 * covariance)),
        q05=float(low),
        q95=float(high),
        probability=min(probability, 1.0 - same),
        probability_equal=same,
        ratio=_ratio(pooled, theta[:, 0], theta[:, 1:]),
        mcse=mcse,
        n_draws=PAIR_DRAWS,
        parameter=WORDS[pooled.family],
    )


def _ratio(pooled: Pooled, first: Array, others: Array) -> Any:
    """Quantiles of theta_first / theta of the others, for families whose parameters are positive."""
    if pooled.family == "normal":
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(first[:, None] == others, 1.0, first[:, None] / others)
    low, middle, high = np.quantile(ratios, ASKED, axis=0)
    if others.shape[1] == 1:
        return float(low[0]), float(middle[0]), float(high[0])
    return low, middle, high


def _controls(pooled: Pooled, theta: Array, rows: Ints, means: Array, sds: Array) -> Array:
    """Functions of one unit each (draws, controls), their exact expectations taken off."""
    columns = []
    places = np.unique(np.quantile(theta, np.linspace(0.04, 0.96, 13)))
    for unit in range(2):
        if 0 < sds[unit] < np.inf:
            columns.append((theta[:, unit] - means[unit]) / sds[unit])
        for place in places.tolist():
            known = float(pooled.posterior.cdf(place, rows[unit : unit + 1])[0])
            if 0.002 < known < 0.998:
                columns.append((theta[:, unit] <= place) - known)
    return np.stack(columns, axis=1) if columns else np.empty((theta.shape[0], 0))


def _controlled(event: NDArray[np.bool_], controls: Array) -> tuple[float, float]:
    """Mean of an event given controls whose expectation is 0, and its Monte Carlo standard error."""
    count = event.size
    design = np.column_stack([np.ones(count), controls])
    target = event.astype(np.float64)
    coefficients = np.linalg.lstsq(design, target, rcond=None)[0]
    rest = target - design @ coefficients
    estimate = float(coefficients[0])
    return min(1.0, max(0.0, estimate)), float(np.sqrt(rest @ rest / (count - design.shape[1]) / count))


def _integrated(pooled: Pooled, first: int, rows: Ints, points: int) -> tuple[Array, Array]:
    """P(theta_first > theta_j) and P(theta_first == theta_j) of each row where units are independent."""
    places = atom_places(pooled)
    values, weights = posterior_points(pooled, first, points)
    above, equal = np.zeros(rows.size), np.zeros(rows.size)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        share = np.asarray(pooled.posterior.cdf(value, rows), dtype=np.float64)
        if value in places:
            atom = np.asarray(pooled.posterior.atom(value, rows))
            equal += weight * atom
            share = share - atom
        above += weight * share
    return np.clip(above, 0.0, 1.0), np.clip(equal, 0.0, 1.0)


def _against_all(pooled: Pooled, first: int) -> pandas.DataFrame:
    import pandas

    others = np.delete(np.arange(pooled.units.n, dtype=np.int64), first)
    many = pooled.units.n > MANY_UNITS
    positive = pooled.family != "normal"
    means, sds = (np.asarray(m) for m in pooled.posterior.moments())
    columns, n_draws = (_by_slices if many else _by_draws)(pooled, first, others, means, sds)
    if independent(pooled):
        points = POINTS_MANY if many else POINTS
        columns["probability"], columns["probability_equal"] = _integrated(pooled, first, others, points)
    names = ["sd", "q05", "q95", "probability", "probability_equal"]
    names += ["ratio_q05", "ratio_q50", "ratio_q95"] if positive else []
    table = pandas.DataFrame({"unit": pooled.units.names[others], "mean": means[first] - means[others]})
    for name in names:
        table[name] = columns[name]
    table.attrs.update(first=pooled.units.names[first], n_draws=n_draws)
    return table


def _by_draws(pooled: Pooled, first: int, others: Ints, means: Array, sds: Array) -> tuple[dict[str, Array], int]:
    """One unit against others, by joint draws; the exact variances are used beside the drawn covariance."""
    n_draws = max(FEWEST_DRAWS, min(PAIR_DRAWS, MOST_DRAWN // others.size))
    rng = stream(pooled, "compare")
    nodes = pooled.node_draws(n_draws, rng)
    out = {name: np.empty(others.size) for name in COLUMNS}
    for part in chunks(others.size, BLOCK // n_draws):
        theta = np.asarray(pooled.posterior.draws(nodes, rng, np.append(others[part], first)))
        own, theirs = theta[:, -1:], theta[:, :-1]
        difference = own - theirs
        spread = sds[first] ** 2 + sds[others[part]] ** 2
        if not independent(pooled):
            spread = spread - 2.0 * np.mean((own - own.mean()) * (theirs - theirs.mean(axis=0)), axis=0)
        out["sd"][part] = np.sqrt(np.maximum(spread, 0.0))
        out["probability"][part] = (difference > 0).mean(axis=0)
        out["probability_equal"][part] = (difference == 0).mean(axis=0)
        out["q05"][part], out["q95"][part] = np.quantile(difference, [0.05, 0.95], axis=0)
        ratio = _ratio(pooled, own[:, 0], theirs)
        if ratio is not None:
            for name, values in zip(RATIOS, ratio, strict=True):
                out[name][part] = values
    return out, n_draws


def _by_slices(pooled: Pooled, first: int, others: Ints, means: Array, sds: Array) -> tuple[dict[str, Array], int]:
    """The same for independent units: all pairs of the middles of 32 equally likely slices, without random draws.

    Within a slice values differ: the differences are stretched about their mean to their exact sd.
    """
    p = (np.arange(SLICES) + 0.5) / SLICES
    own = np.asarray(pooled.posterior.quantiles(p, np.array([first], dtype=np.int64)))[:, 0]
    out = {name: np.empty(others.size) for name in COLUMNS}
    out["sd"] = np.hypot(sds[first], sds[others])

    def work(part: Ints) -> None:
        theirs = np.asarray(pooled.posterior.quantiles(p, others[part])).T
        pairs = (own[None, :, None] - theirs[:, None, :]).reshape(part.size, -1)
        centre, sd = pairs.mean(axis=1), pairs.std(axis=1)
        stretch = np.where(sd > 0, out["sd"][part] / np.where(sd > 0, sd, 1.0), 1.0)
        exact = means[first] - means[others[part]]
        low, _, high = _three_quantiles(pairs)
        out["q05"][part], out["q95"][part] = exact + stretch * (low - centre), exact + stretch * (high - centre)
        if pooled.family != "normal":
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = own[None, :, None] / theirs[:, None, :]
            ratios[own[None, :, None] == theirs[:, None, :]] = 1.0
            for name, values in zip(RATIOS, _three_quantiles(ratios.reshape(part.size, -1)), strict=True):
                out[name][part] = values

    with ThreadPoolExecutor(pooled.posterior.threads) as pool:
        list(pool.map(work, chunks(others.size, 1024)))
    return out, 0


def _three_quantiles(values: Array) -> tuple[Array, Array, Array]:
    """The 5%, 50% and 95% quantiles of each row of equally likely values."""
    count = values.shape[1]
    places = [int(np.floor(q * count)) for q in ASKED]
    ordered = np.partition(values, places, axis=1)
    return ordered[:, places[0]], ordered[:, places[1]], ordered[:, places[2]]
