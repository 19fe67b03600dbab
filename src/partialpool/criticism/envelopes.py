r"""p-values from replicates, several at once, and how far sorted values may lie from where they are expected.

Order statistic k of n uniform numbers is Beta(k, n + 1 - k). An envelope takes from each of them the same tail
probability, chosen so that 90% of samples lie within it everywhere (found by simulation); how small the smallest tail
probability of the data is among those of simulated samples is a p-value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Share of samples that lie within an envelope everywhere.
INSIDE = 0.90
#: Simulated samples, and order statistics at most.
SAMPLES, MOST_PLACES = 1000, 300
#: Replicates in the tail from which p-values beyond all replicates are extrapolated, as a share and at least.
TAIL, FEWEST_TAIL = 0.05, 20


def upper_p(replicated: Array, observed: Array | float) -> float:
    """How often replicates are as large as the data, half of the ties counted.

    Where fewer than 5 are, the tail is continued as an exponential one, to a tenth of 1/replicates at most.

    Examples
    --------
    >>> round(upper_p(np.arange(999.0), 898.5), 3)
    0.101
    """
    difference = np.asarray(replicated, dtype=float) - observed
    scale = 1e-12 * max(float(np.abs(replicated).max()), 1e-300)
    count = len(difference)
    larger = float((difference > scale).sum()) + 0.5 * float((np.abs(difference) <= scale).sum())
    p = (1 + larger) / (1 + count)
    if larger >= 5:
        return min(p, 1.0)
    size = max(FEWEST_TAIL, int(TAIL * count))
    ordered = np.sort(difference)[::-1]
    if size >= count or ordered[size] >= 0:
        return p
    excess = float((ordered[:size] - ordered[size]).mean())
    if not excess > 0:
        return p if larger > 0 else 1 / (1 + count)
    beyond = size / count * np.exp(ordered[size] / excess)
    return float(min(p, max(beyond, 0.1 / (1 + count))))


def two_sided_p(replicated: Array, observed: Array | float) -> float:
    """Twice the smaller tail probability."""
    upper = upper_p(replicated, observed)
    lower = upper_p(-np.asarray(replicated), -np.asarray(observed))
    return min(1.0, 2 * min(upper, lower))


def holm(p: Array, weights: Array | None = None) -> Array:
    """p-values adjusted for their number, valid whatever their dependence; nan stays.

    With weights (Holm 1979, Scandinavian Journal of Statistics 6, 65-70, section 4) a check of small weight costs the
    others little, and is hard to fire itself.

    Examples
    --------
    >>> holm(np.array([0.01, 0.5, 0.02])).round(3).tolist()
    [0.03, 0.5, 0.04]
    >>> holm(np.array([0.01, 0.5, 0.02]), np.array([1.0, 0.1, 1.0])).round(3).tolist()
    [0.021, 0.5, 0.022]
    """
    own = np.ones(len(p)) if weights is None else weights
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known] / own[known], kind="stable")]
    left = np.cumsum(own[order][::-1])[::-1]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * left / own[order]), 1.0)
    return out


@dataclass(frozen=True, eq=False)
class Envelope:
    """Sorted uniform numbers beside where they may lie.

    expected, observed, low, high : (places,) in (0, 1). p : of a departure as large anywhere. outside : how many
    places are.
    """

    expected: Array
    observed: Array
    low: Array
    high: Array
    p: float
    outside: int


def envelope(values: Array) -> Envelope:
    """`values` (n,) that are uniform on (0, 1) where all is well.

    Examples
    --------
    >>> even = (np.arange(200) + 0.5) / 200
    >>> envelope(even).outside, bool(envelope(even**3).p < 0.01)
    (0, True)
    """
    from scipy.special import betainc, betaincinv

    n = len(values)
    ranks, level, smallest = _simulated(n)
    ordered = np.sort(np.clip(values, 1e-12, 1 - 1e-12))[ranks.astype(int) - 1]
    below = betainc(ranks, n + 1 - ranks, ordered)
    own = float(np.minimum(below, 1 - below).min())
    low = np.asarray(betaincinv(ranks, n + 1 - ranks, level), dtype=float)
    high = np.asarray(betaincinv(ranks, n + 1 - ranks, 1 - level), dtype=float)
    p = (1 + float((smallest <= own).sum())) / (1 + len(smallest))
    outside = int(((ordered < low) | (ordered > high)).sum())
    return Envelope(ranks / (n + 1), ordered, low, high, p, outside)


@cache
def _simulated(n: int) -> tuple[Array, float, Array]:
    """Ranks looked at, the tail probability at each that 90% of samples keep to, and each sample's smallest one."""
    from scipy.special import betainc

    count = min(n, MOST_PLACES)
    # Evenly spaced, and the outermost ones on each side.
    ends = np.arange(1, min(n, 10) + 1)
    ranks = np.unique(np.concatenate([ends, np.linspace(1, n, count).round(), n + 1 - ends])).astype(float)
    rng = np.random.default_rng(n)
    gaps = np.diff(np.concatenate([[0.0], ranks, [n + 1.0]]))
    smallest = np.empty(SAMPLES)
    for start in range(0, SAMPLES, 100):
        spacings = rng.standard_gamma(gaps, size=(100, len(gaps)))
        total = np.cumsum(spacings, axis=1)
        places = total[:, :-1] / total[:, -1:]
        below = betainc(ranks, n + 1 - ranks, places)
        smallest[start : start + 100] = np.minimum(below, 1 - below).min(axis=1)
    return ranks, float(np.quantile(smallest, 1 - INSIDE)), smallest
