"""Where complete pooling beats partial pooling with estimated variances: at which tau they cross, and what it costs.

With known variances there is no such region. With estimated ones there is: where the groups' true means hardly differ,
taking them all as equal is right, and partial pooling pays for finding it out. Simulated at values of tau between 0 and
twice a group's standard error, at which the errors of complete pooling are known exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.levels.study_exact import COMPLETE, NONE, StudyDesign, exact_errors
from partialpool.levels.study_simulation import SQUARED, controlled

Array = NDArray[np.float64]

#: Where it is looked for, in standard errors of a group's own mean.
MULTIPLES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)


@dataclass(frozen=True, eq=False)
class Crossing:
    """Below which tau complete pooling is better, and by how much.

    Attributes
    ----------
    tau, error : float
        Where the two mean squared errors are equal, and the simulation's standard error of that; nan where they are
        not equal anywhere below two standard errors.
    cost, cost_error : float
        The most by which partial pooling's mean squared error lies above complete pooling's, as a share of that
        without pooling, and its standard error.
    ratio : float
        How many times complete pooling's error it is, at most.
    curve_tau, curve : ndarray
        The mean squared error of partial pooling at the places where it was simulated.
    """

    tau: float
    error: float
    cost: float
    cost_error: float
    ratio: float
    curve_tau: Array
    curve: Array


def find_crossing(design: StudyDesign, sigma: float, taus: Array, statistics: Array) -> Crossing:
    """The crossing, from the statistics (T, R, .) of simulations at each tau (T,)."""
    exact = np.array([exact_errors(design, tau, sigma).mse for tau in taus])
    adjusted = np.stack([controlled_error(own, design, tau, sigma) for own, tau in zip(statistics, taus, strict=True)])
    above = adjusted - exact[:, COMPLETE, None]  # of partial over complete, (T, R)
    replicates = above.shape[1]
    gap, spread = above.mean(axis=1), above.std(axis=1, ddof=1) / math.sqrt(replicates)
    tau, error = math.nan, math.nan
    below = np.flatnonzero(gap < 0)
    if gap[0] > 0 and below.size:
        tau = _root(taus, gap, int(below[0]))
        slope = (_weights(taus, 1.01 * tau) - _weights(taus, 0.99 * tau)) @ gap / (0.02 * tau)
        at = (_weights(taus, tau) @ above).std(ddof=1) / math.sqrt(replicates)
        error = float(at / abs(slope)) if slope else math.nan
    worst = int(np.argmax(gap))
    share = exact[0, NONE]
    curve = adjusted.mean(axis=1)
    ratio = float(np.max(curve / exact[:, COMPLETE]))
    cost = max(float(gap[worst] / share), 0.0)
    return Crossing(tau, error, cost, float(spread[worst] / share), ratio, taus, curve)


def controlled_error(statistics: Array, design: StudyDesign, tau: float, sigma: float) -> Array:
    """Values (R,) whose mean is the mean squared error of partial pooling with estimated variances."""
    squared = statistics[:, SQUARED]
    return controlled(squared[:, 3], squared[:, :3], exact_errors(design, tau, sigma).mse)


def _weights(taus: Array, tau: float) -> Array:
    """Weights (T,) of the polynomial through the four values nearest to tau, at tau."""
    near = np.sort(np.argsort(np.abs(taus - tau))[:4])
    out = np.zeros(taus.size)
    for i in near:
        others = taus[near[near != i]]
        out[i] = np.prod((tau - others) / (taus[i] - others))
    return out


def _root(taus: Array, gap: Array, first: int) -> float:
    """Where the gap goes through 0, between the value before `first` and it."""
    low, high = float(taus[first - 1]), float(taus[first])
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _weights(taus, middle) @ gap > 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
