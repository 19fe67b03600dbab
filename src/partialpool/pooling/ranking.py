r"""Ranks of units that own up to their uncertainty.

The rank of a unit is 1 + the number of units above it, + half the number of other units that are equal to it. Up to
10,000 units it is taken from joint draws. Beyond, units are independent in the posterior but for a share of order
1 / J, and

.. math:: E[rank_j] = 1/2 + \int N(\theta)\, dF_j(\theta)

with N(theta) the expected number of units above theta (half of those equal to it), which a few joint draws of a great
many units give to many digits, and F_j the exact posterior: no unit's rank suffers from the noise of its own draws.

Source: Laird and Louis (1989), Empirical Bayes ranking methods; Lin, Louis, Paddock and Ridgeway (2006), Loss function
based ranking in two-stage, hierarchical models.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.pooling.marginals import (
    BLOCK,
    MANY_UNITS,
    atom_places,
    chunks,
    posterior_points,
    stream,
    unit_points,
)

if TYPE_CHECKING:
    import pandas

    from partialpool.pooling.pooled import Pooled

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Singles = NDArray[np.float32]

#: Draws times units that are sorted at most, and the most and the fewest draws.
MOST_SORTED = 40_000_000
MOST_DRAWS = 4000
FEWEST_DRAWS = 100
#: Draws of the curve N, from which beyond 10,000 units all ranks are read.
CURVE_SORTED = 20_000_000
#: Quantiles of a unit's posterior over which N is averaged.
POINTS = 24
#: A new league begins where its predecessor's first unit wins with this probability.
SURE = 0.95
#: Points of the posterior of a league's first unit, and the distance to it in sds from which on a unit may be beaten.
LEADER_POINTS, SCREEN = 12, 1.0
NORMAL_95 = 1.6448536269514722
LEAGUE = (
    "Reading down the list, a new league begins at the first unit that the current league's first unit beats with "
    f"probability {SURE:g} or more: the first units of successive leagues are in that order, the order within a league "
    "is not supported by the data."
)


@dataclass(frozen=True)
class Ranks:
    """Rank 1 is the best; all arrays (J,)."""

    expected: Array
    mcse: Array
    low: Array
    high: Array
    p_top: Array
    n_draws: int
    beaten_by: Callable[[int, Ints], Array]  # (leader, rows) -> P(leader is above each of the rows)


def rank(pooled: Pooled, top: int | None = None, best: str = "high", n_draws: int | None = None) -> pandas.DataFrame:
    """Units in order of their expected rank, with how sure that order is.

    Parameters
    ----------
    pooled : Pooled
    top : int, optional
        How many units are "the top" in p_top; a tenth of them if not given.
    best : "high" | "low"
        Whether rank 1 is the highest parameter or the lowest.
    n_draws : int, optional
        Joint draws that are ranked; if given they are used for any number of units. If not, 4,000 up to 10,000 units,
        and beyond ranks are read from the exact posterior of each unit (see the module).

    Returns
    -------
    DataFrame
        A row per unit, the best first: unit, mean (posterior), expected_rank, expected_rank_mcse (its Monte Carlo
        standard error), rank_q05, rank_q95, p_top (probability to be among the top; ties share a place), league.
        Ties, as between units at a population's point mass, share their mean rank. `attrs` has top, best, n_draws and
        a sentence, league, that says what a league is.

    Raises
    ------
    ModelError
        If top is not between 1 and the number of units, best is neither, or n_draws is below 2.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool([28, 8, -3, 7, -1, 1, 18, 12], se=[15, 10, 16, 11, 9, 11, 10, 18], seed=1)
    >>> table = pooled.rank(top=1)
    >>> int(table["unit"].iloc[0]), bool(table["p_top"].iloc[0] < 0.5), int(table["league"].max())
    (0, True, 1)
    """
    import pandas

    count = pooled.units.n
    places = _top_of(top, count)
    if best not in ("high", "low"):
        raise ModelError(f'best must be "high" or "low"; it is {best!r}.')
    if n_draws is not None and int(n_draws) < 2:
        raise ModelError(f"n_draws must be at least 2; it is {n_draws}.")
    sign = 1.0 if best == "high" else -1.0
    if n_draws is None and count > MANY_UNITS:
        ranks = _ranks_by_curve(pooled, places, sign)
    else:
        draws = int(n_draws or min(MOST_DRAWS, max(FEWEST_DRAWS, MOST_SORTED // count)))
        ranks = _ranks_by_draws(pooled, places, sign, draws)
    order = np.argsort(ranks.expected, kind="stable")
    mean = np.asarray(pooled.posterior.moments()[0])
    table = pandas.DataFrame(
        {
            "unit": pooled.units.names[order],
            "mean": mean[order],
            "expected_rank": ranks.expected[order],
            "expected_rank_mcse": ranks.mcse[order],
            "rank_q05": ranks.low[order],
            "rank_q95": ranks.high[order],
            "p_top": ranks.p_top[order],
            "league": _leagues(order, ranks.beaten_by),
        }
    )
    table.attrs.update(top=places, best=best, n_draws=ranks.n_draws, league=LEAGUE)
    return table


def _top_of(top: Any, count: int) -> int:
    if top is None:
        return max(1, round(0.1 * count))
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or not 1 <= top <= count:
        raise ModelError(f"top must be a whole number from 1 to {count}, the number of units; it is {top!r}.")
    return int(top)


def _leagues(order: Ints, beaten_by: Callable[[int, Ints], Array]) -> Ints:
    """The league of each place of the list: see LEAGUE."""
    leagues = np.empty(order.size, dtype=np.int64)
    leader, league, place, width = 0, 1, 1, 64
    leagues[0] = 1
    while place < order.size:
        rows = order[place : place + width]
        sure = np.flatnonzero(beaten_by(int(order[leader]), rows) >= SURE)
        passed = int(sure[0]) if sure.size else rows.size
        leagues[place : place + passed] = league
        place += passed
        width = min(4 * width, 262_144)
        if sure.size:
            leader, league, width = place, league + 1, 64
            leagues[place] = league
            place += 1
    return leagues


# ---------------------------------------------------------------------------------------------------- by joint draws


def _rank_row(values: Array, places: int, out: Singles) -> tuple[Ints, int, int]:
    """Write the mean ranks of one draw, the largest first.

    Returns the order of the units, and the first and the past-the-end place of those tied for the last of the top.
    """
    order = np.argsort(-values)
    ordered = values[order]
    count = values.size
    new = np.empty(count, dtype=bool)
    new[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    if new.all():
        out[order] = np.arange(1, count + 1, dtype=np.float32)
        return order, places - 1, places
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], count)
    out[order] = np.repeat((starts + 1 + ends).astype(np.float32) * np.float32(0.5), ends - starts)
    tie = int(np.searchsorted(starts, places - 1, side="right")) - 1
    return order, int(starts[tie]), int(ends[tie])


def _ranks_by_draws(pooled: Pooled, places: int, sign: float, n_draws: int) -> Ranks:
    count = pooled.units.n
    rng = stream(pooled, "rank")
    nodes = pooled.node_draws(n_draws, rng)
    ranks = np.empty((n_draws, count), dtype=np.float32)
    p_top = np.zeros(count)
    with ThreadPoolExecutor(pooled.posterior.threads) as pool:
        for block in chunks(n_draws, BLOCK // count):
            values = sign * np.asarray(pooled.posterior.draws(nodes[block], rng))
            done = pool.map(_rank_row, values, [places] * block.size, ranks[block[0] : block[-1] + 1])
            # added up in the order of the draws, whatever thread was first
            for order, first, past in done:
                p_top[order[:first]] += 1.0
                p_top[order[first:past]] += (places - first) / (past - first)
    mean, sd, low, high = _across_draws(ranks, pooled.posterior.threads)

    def beaten_by(leader: int, rows: Ints) -> Array:
        return np.asarray(np.mean(ranks[:, [leader]] < ranks[:, rows], axis=0))

    return Ranks(mean, sd / np.sqrt(n_draws), low, high, p_top / n_draws, n_draws, beaten_by)


def _across_draws(ranks: Singles, threads: int) -> tuple[Array, Array, Array, Array]:
    """Mean, sd and the 5% and 95% quantiles (the outer ones of the draws) of each column."""
    n_draws, count = ranks.shape
    first, last = int(0.05 * n_draws), n_draws - 1 - int(0.05 * n_draws)
    out = np.empty((4, count))

    def work(rows: Ints) -> None:
        part = np.ascontiguousarray(ranks[:, rows[0] : rows[-1] + 1].T)
        out[0, rows] = part.mean(axis=1, dtype=np.float64)
        out[1, rows] = part.std(axis=1, dtype=np.float64, ddof=1)
        part.partition([first, last], axis=1)
        out[2, rows], out[3, rows] = part[:, first], part[:, last]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, chunks(count, 1_000_000 // n_draws)))
    return out[0], out[1], out[2], out[3]


# ------------------------------------------------------------------------------------- from each unit's own posterior


@dataclass(frozen=True)
class Curve:
    """N(theta): expected numbers of units above theta and not below it, at knots; straight lines between them."""

    knots: Array
    above: Array  # (knots,) expected number above the knot
    not_below: Array
    variance: Array  # of the number above, over draws

    def __call__(self, theta: Array) -> Array:
        place = np.searchsorted(self.knots, theta, side="right") - 1
        inside = np.clip(place, 0, self.knots.size - 2)
        left, right = self.knots[inside], self.knots[inside + 1]
        share = np.clip((theta - left) / (right - left), 0.0, 1.0)
        between = (1.0 - share) * self.above[inside] + share * self.not_below[inside + 1]
        # on a knot itself: half of those that are equal
        at = np.clip(place, 0, None)
        middle = 0.5 * (self.above + self.not_below)
        return np.asarray(np.where(theta == self.knots[at], middle[at], between))

    def spread(self, theta: Array) -> Array:
        """Sd over draws of the number of units above theta."""
        return np.sqrt(np.interp(theta, self.knots, self.variance))


def _knots(ordered: Array, atoms: Array) -> Array:
    """Places where N is kept: finely spaced ranks at both ends of one draw, and beyond its ends."""
    count = ordered.size
    steps = np.unique(np.round(np.geomspace(1, count // 2, 1500)).astype(np.int64))
    ranks = np.unique(np.concatenate([steps - 1, count - steps, np.linspace(0, count - 1, 3000).astype(np.int64)]))
    middle, low, high = ordered[count // 2], ordered[0], ordered[-1]
    beyond = np.linspace(0.0, 0.75, 40)[1:]
    return np.unique(
        np.concatenate([ordered[ranks], low - beyond * (middle - low), high + beyond * (high - middle), atoms])
    )


def _curve(pooled: Pooled, places: int, sign: float, n_draws: int) -> tuple[Curve, Array]:
    """N from joint draws, and the value that separates the top from the rest in each draw, with its share of ties."""
    count = pooled.units.n
    rng = stream(pooled, "rank")
    nodes = pooled.node_draws(n_draws, rng)
    knots = np.empty(0)
    sums: list[Array] = []
    cuts = np.empty((2, n_draws))
    for block in chunks(n_draws, BLOCK // count):
        values = sign * np.asarray(pooled.posterior.draws(nodes[block], rng))
        with ThreadPoolExecutor(pooled.posterior.threads) as pool:
            list(pool.map(np.ndarray.sort, values))
        for draw, ordered in zip(block.tolist(), values, strict=True):
            if draw == 0:
                knots = _knots(ordered, sign * atom_places(pooled))
                sums = [np.zeros(knots.size) for _ in range(3)]
            above = count - np.searchsorted(ordered, knots, side="right").astype(np.float64)
            not_below = count - np.searchsorted(ordered, knots, side="left").astype(np.float64)
            for total, term in zip(sums, (above, not_below, above**2), strict=True):
                total += term
            cuts[:, draw] = _cut(ordered, places)
    above, not_below = sums[0] / n_draws, sums[1] / n_draws
    return Curve(knots, above, not_below, np.maximum(sums[2] / n_draws - above**2, 0.0)), cuts


def _cut(ordered: Array, places: int) -> tuple[float, float]:
    """The value that separates the top of an ascending draw, and the share of units equal to it that is in the top."""
    count = ordered.size
    inner = ordered[count - places]
    outer = ordered[count - places - 1] if places < count else -np.inf
    if inner > outer:
        return (0.5 * (inner + outer) if np.isfinite(outer) else -np.inf), 0.0
    past = count - int(np.searchsorted(ordered, inner, side="right"))
    equal = count - past - int(np.searchsorted(ordered, inner, side="left"))
    return float(inner), (places - past) / equal


def _ranks_by_curve(pooled: Pooled, places: int, sign: float) -> Ranks:
    count = pooled.units.n
    n_draws = max(20, min(400, CURVE_SORTED // count))
    curve, cuts = _curve(pooled, places, sign, n_draws)
    out = np.empty((4, count))
    for rows in chunks(count, 65_536):
        out[:3, rows] = _expected_and_interval(pooled, curve, sign, rows)
        out[3, rows] = _probability_of_top(pooled, cuts, sign, rows)
    mcse = curve.spread(sign * np.asarray(pooled.posterior.moments()[0])) / np.sqrt(n_draws)

    means, sds = (np.asarray(m) for m in pooled.posterior.moments())
    points: dict[int, tuple[Array, Array]] = {}

    def beaten_by(leader: int, rows: Ints) -> Array:
        if leader not in points:
            points[leader] = posterior_points(pooled, leader, LEADER_POINTS)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = sign * (means[leader] - means[rows]) / np.hypot(sds[leader], sds[rows])
        out = np.zeros(rows.size)
        near = np.flatnonzero(score > SCREEN)
        # the first that is beaten ends the search: a few at a time
        for part in chunks(near.size, 512):
            out[near[part]] = _below(pooled, *points[leader], sign, rows[near[part]])
            if (out[near[part]] >= SURE).any():
                break
        return out

    return Ranks(out[0], mcse, out[1], out[2], out[3], n_draws, beaten_by)


def _expected_and_interval(pooled: Pooled, curve: Curve, sign: float, rows: Ints) -> Array:
    theta, weights = unit_points(pooled, POINTS, rows)
    ends = np.asarray(pooled.posterior.quantiles(np.array([0.05, 0.5, 0.95]), rows))
    values = sign * np.concatenate([theta, ends if sign > 0 else ends[::-1]])
    places = np.empty_like(values)

    def work(level: int) -> None:
        places[level] = curve(values[level])

    with ThreadPoolExecutor(pooled.posterior.threads) as pool:
        list(pool.map(work, range(len(values))))
    worst, middle, best = places[POINTS:] + 0.5
    # Besides the unit's own uncertainty, the number of the others above it is random: two independent parts
    low = middle - np.sqrt((middle - best) ** 2 + (NORMAL_95 * curve.spread(values[-1])) ** 2)
    high = middle + np.sqrt((worst - middle) ** 2 + (NORMAL_95 * curve.spread(values[-3])) ** 2)
    expected = 0.5 + np.einsum("qj,qj->j", weights, places[:POINTS])
    last = pooled.units.n
    return np.stack([expected, np.clip(np.round(low), 1, last), np.clip(np.round(high), 1, last)])


def _probability_of_top(pooled: Pooled, cuts: Array, sign: float, rows: Ints) -> Array:
    """P(a unit is above the cut), averaged over strata of the draws' cuts: eight, or two where they hardly differ."""
    sds = np.asarray(pooled.posterior.moments()[1])[rows]
    few = np.ptp(cuts[0]) < 0.1 * np.quantile(sds, 0.05) if np.isfinite(cuts[0]).all() else True
    out = np.zeros(rows.size)
    for stratum in np.array_split(np.argsort(cuts[0], kind="stable"), 2 if few else 8):
        values, shares = cuts[0, stratum], cuts[1, stratum]
        tied = values[0] == values[-1]
        value = float(values[0] if tied else values.mean())
        above = _above(pooled, value, sign, rows)
        if tied and shares.any():
            above = above + shares.mean() * np.asarray(pooled.posterior.atom(sign * value, rows))
        out += above * stratum.size / cuts.shape[1]
    return np.clip(out, 0.0, 1.0)


def _above(pooled: Pooled, value: float, sign: float, rows: Ints) -> Array:
    """P(sign theta > value) of each row."""
    if not np.isfinite(value):
        return np.full(rows.size, float(value < 0))
    below = np.asarray(pooled.posterior.cdf(sign * value, rows))
    if sign > 0:
        return np.asarray(1.0 - below)
    return np.asarray(below - np.asarray(pooled.posterior.atom(sign * value, rows)))


def _below(pooled: Pooled, values: Array, weights: Array, sign: float, rows: Ints) -> Array:
    """P(sign theta of each row < sign theta of the unit whose posterior has these values and weights)."""
    out = np.zeros(rows.size)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        not_above = np.asarray(pooled.posterior.cdf(value, rows))
        if sign > 0:
            out += weight * (not_above - np.asarray(pooled.posterior.atom(value, rows)))
        else:
            out += weight * (1.0 - not_above)
    return out
