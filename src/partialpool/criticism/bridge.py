r"""The ratio of two normalising constants from nodes of both posteriors: bridge sampling.

The posterior of everything and that of all but a unit differ by the factor ``l(s) = p(y_i | y_-i, s)``; the ratio of
their normalising constants is ``r = p(y_i | y_-i)``. For any s_1 and s_2

.. math:: r = \frac{E_{-i}\left[ l / (s_1 l + s_2 r) \right]}{E_{y}\left[ 1 / (s_1 l + s_2 r) \right]},

and with s in proportion to the two effective numbers of nodes the estimate has the least variance (Meng and Wong,
1996, Statistica Sinica 6, 831-860). Both means are of bounded quantities: neither the plain mean of l over the fit
without the unit nor that of 1 / l over the fit of everything is, which is why they fail where the unit moves the
posterior far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.nodes import Nodes, effective_number
from partialpool.inference.importance import logsumexp

Array = NDArray[np.float64]

STEPS, TOLERANCE = 200, 1e-10


class Bridged(NamedTuple):
    """log r and its Monte Carlo standard error.

    influence : (K,) what each node of the fit of everything moves log r by. own_variance : of the other fit's nodes.
    """

    value: float
    error: float
    influence: Array
    own_variance: float


def bridge(full: Nodes, at_full: Array, without: Nodes, at_without: Array) -> Bridged:
    """log p(y_i | y_-i) from its log densities at the nodes of both fits.

    Parameters
    ----------
    full, without : Nodes
        Of the fit of everything (K,) and of the fit without the unit (M,).
    at_full, at_without : (K,) and (M,) log densities of the unit there.
    """
    sizes = np.array([effective_number(full), effective_number(without)])
    first, second = np.log(sizes / sizes.sum())
    value = float(logsumexp(without.log_weights + at_without))
    if not np.isfinite(value):
        return Bridged(value, float("inf"), np.zeros(len(at_full)), float("inf"))
    for _ in range(STEPS):
        above = at_without - np.logaddexp(first + at_without, second + value)
        below = -np.logaddexp(first + at_full, second + value)
        new = float(logsumexp(without.log_weights + above) - logsumexp(full.log_weights + below))
        moved, value = abs(new - value), new
        if moved < TOLERANCE:
            break
    own = np.exp(without.log_weights) * np.expm1(above - logsumexp(without.log_weights + above))
    influence = -np.exp(full.log_weights) * np.expm1(below - logsumexp(full.log_weights + below))
    variance = without.variance_of_sum(own)
    return Bridged(value, float(np.sqrt(variance + full.variance_of_sum(influence))), influence, variance)
