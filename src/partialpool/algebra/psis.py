r"""Pareto-smoothed importance sampling for many units at once: what the posterior of everything says of each left out.

For a unit with log densities ``l_k = log p(y_i | y_-i, node k)`` the weights are ``r_k = W_k exp(-l_k)``, W the nodes'
own weights. Their tail is smoothed as `inference.importance.pareto_smooth` does it (the same numbers to rounding), and
with smoothed weights r'

.. math:: \hat p = \frac{\sum_k r'_k e^{l_k}}{\sum_k r'_k}, \qquad
          \mathrm{se}(\log \hat p)^2 = \sum_k \left(\frac{r'_k e^{l_k}}{\sum r' e^l} - \frac{r'_k}{\sum r'}\right)^2.

``r'_k exp(l_k) = W_k r'_k / r_k`` needs no exponential, so that there is one a node and unit. The mean of
``log(1 - b x)`` over a tail, of which the Pareto fit needs some forty, is the logarithm of products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.jit import helper, kernel

Array = NDArray[np.float64]

#: Parts into which units are cut; the sums over them are added in order, so that no result depends on threads.
PARTS = 16
_MIN_TAIL = 5  # a Pareto tail cannot be fitted to fewer weights
_EPSILON = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)


class LeftOut(NamedTuple):
    """By unit the log density, its Monte Carlo standard error and Pareto k, each (U,).

    influence : (K,) what each node moves the sum of the log densities by, over the units whose k and error are good.
    """

    value: Array
    error: Array
    k: Array
    influence: Array


def tail_length(count: int) -> int:
    """How many of `count` weights are taken for the tail.

    Examples
    --------
    >>> tail_length(4000), tail_length(100)
    (189, 20)
    """
    return math.floor(3.0 * math.sqrt(count)) if count > 225 else count // 5


def leave_out(
    densities: Array, log_weights: Array, efficiency: float, bad_k: float, most_error: float, threads: int = 1
) -> LeftOut:
    """The predictive density of units left out, from log densities at the nodes of the posterior of everything.

    Parameters
    ----------
    densities : array (U, K), C-contiguous
        ``log p(y_unit | y_rest, node)``.
    log_weights : array (K,)
        Of the nodes, normalised.
    efficiency : float
        How many independent nodes a node is worth.
    bad_k, most_error : float
        Units above either do not count in `influence`.
    threads : int

    Examples
    --------
    >>> flat = leave_out(np.full((1, 1000), -2.0), np.full(1000, -np.log(1000.0)), 1.0, 0.7, 0.03)
    >>> float(flat.value[0]), round(float(flat.error[0]), 9), float(flat.k[0])
    (-2.0, 0.0, -inf)
    """
    units, nodes = densities.shape
    logs = np.ascontiguousarray(log_weights, dtype=float)
    tail = tail_length(nodes)
    scores = -np.log1p(-(np.arange(tail) + 0.5) / max(tail, 1))
    value, error, k = np.empty(units), np.empty(units), np.empty(units)
    influence = np.zeros((PARTS, nodes))

    def run(part: int, own: slice) -> None:
        smooth_units(
            densities[own], logs, scores, 1.0 / efficiency, bad_k, most_error, value[own], error[own], k[own],
            influence[part],
        )  # fmt: skip

    _over_parts(run, units, threads)
    return LeftOut(value, error, k, influence.sum(axis=0))


def in_sample(densities: Array, log_weights: Array, threads: int = 1) -> Array:
    """``log sum_k W_k exp(l_k)`` of each unit, (U,), from densities (U, K) and log weights (K,).

    Examples
    --------
    >>> float(in_sample(np.log([[1.0, 3.0]]), np.log([0.5, 0.5]))[0].round(6)) == round(math.log(2), 6)
    True
    """
    out = np.empty(len(densities))
    logs = np.ascontiguousarray(log_weights, dtype=float)

    def run(_: int, own: slice) -> None:
        average_units(densities[own], logs, out[own])

    _over_parts(run, len(densities), threads)
    return out


def _over_parts(run: Callable[[int, slice], None], units: int, threads: int) -> None:
    edges = np.linspace(0, units, PARTS + 1).astype(int).tolist()
    parts = [(part, slice(edges[part], edges[part + 1])) for part in range(PARTS) if edges[part + 1] > edges[part]]
    if threads <= 1 or len(parts) <= 1:
        for part, own in parts:
            run(part, own)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda one: run(*one), parts))


# -- kernels ----------------------------------------------------------------------------------------------------------


@helper
def select(values, place):
    """Reorder `values` so that the one at `place` is where sorting would put it; returns it."""
    low, high = 0, values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]


@helper
def sort_by(keys, order, count):
    """Sort the first `count` keys, and `order` with them (Shell's method)."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            key, place = keys[i], order[i]
            j = i
            while j >= gap and keys[j - gap] > key:
                keys[j] = keys[j - gap]
                order[j] = order[j - gap]
                j -= gap
            keys[j] = key
            order[j] = place
        gap //= 3


@helper
def mean_log(x, count, b):
    """The mean of log(1 - b x), by products as long as cannot overflow."""
    largest = abs(b) * x[count - 1]
    least = 1.0 - b * x[count - 1]
    reach = math.log1p(largest)
    if least > 0.0:
        reach = max(reach, -math.log(least))
        step = int(min(16.0, max(1.0, 600.0 / max(reach, 1e-300))))
    else:
        step = 1
    total = 0.0
    at = 0
    while at < count:
        stop = min(at + step, count)
        product = 1.0
        for i in range(at, stop):
            product *= 1.0 - b * x[i]
        total += math.log(product)
        at = stop
    return total / count


@helper
def fit_pareto(x, count, profile, grid):
    """Shape and scale of a generalised Pareto distribution of sorted excesses x; see `inference.importance`."""
    quartile = x[int(count / 4 + 0.5) - 1]
    if not quartile > 0.0:
        return math.inf, math.nan
    size = 30 + int(math.sqrt(count))
    best = -math.inf
    for s in range(size):
        b = (1.0 - math.sqrt(size / (s + 0.5))) / (3.0 * quartile) + 1.0 / x[count - 1]
        shape = mean_log(x, count, b)
        grid[s] = b
        profile[s] = count * (math.log(-b / shape) - shape - 1.0)
        if profile[s] > best:
            best = profile[s]
        elif math.isnan(profile[s]):
            return math.inf, math.nan
    if not math.isfinite(best):
        return math.inf, math.nan
    total = 0.0
    for s in range(size):
        profile[s] = math.exp(profile[s] - best)
        total += profile[s]
    kept, b = 0.0, 0.0
    for s in range(size):
        share = profile[s] / total
        if share >= 10.0 * _EPSILON:
            kept += share
            b += share * grid[s]
    b /= kept
    shape = 0.0
    for i in range(count):
        shape += math.log1p(-b * x[i])
    shape /= count
    k = (count * shape + 5.0) / (count + 10)
    if not math.isfinite(k):
        return math.inf, math.nan
    return k, -shape / b if b != 0.0 else math.nan


@helper
def smooth_tail(raw, work, scores, tail, keys, order, profile, grid):
    """Smooth the largest weights of `raw` (largest 1) in place; returns k. `work` holds a copy in any order.

    On return `order` says which weights were the tail, and `keys` what they were, in increasing order.
    """
    nodes = raw.size
    cutoff = select(work, nodes - tail - 1)
    count = 0
    for i in range(nodes):
        if raw[i] > cutoff:
            keys[count] = raw[i]
            order[count] = i
            count += 1
    for i in range(nodes):  # ties with the cutoff
        if count >= tail:
            break
        if raw[i] == cutoff:
            keys[count] = raw[i]
            order[count] = i
            count += 1
    sort_by(keys, order, tail)
    if math.log(keys[tail - 1]) - math.log(keys[0]) < _TINY:
        return -math.inf
    for i in range(tail):
        work[i] = keys[i] - cutoff
    k, scale = fit_pareto(work, tail, profile, grid)
    if math.isfinite(k) and scale > 0.0:
        for i in range(tail):
            e = scores[i]
            raw[order[i]] = min(scale * (math.expm1(k * e) / k if k != 0.0 else e) + cutoff, keys[tail - 1])
    return k


@kernel(
    "void(float64[:,::1], float64[::1], float64[::1], float64, float64, float64, float64[::1], float64[::1], "
    "float64[::1], float64[::1])"
)
def smooth_units(densities, logs, scores, inflation, bad_k, most_error, value, error, ks, influence):
    """`leave_out` of some units. logs, influence: (K,); scores: -log(1 - p) at the order statistics of the tail."""
    units, nodes = densities.shape
    tail = scores.size
    raw, work, product = np.empty(nodes), np.empty(nodes), np.empty(nodes)
    weights = np.empty(nodes)
    keys, order = np.empty(tail), np.empty(tail, np.int64)
    profile, grid = np.empty(32 + int(math.sqrt(tail))), np.empty(32 + int(math.sqrt(tail)))
    for i in range(nodes):
        weights[i] = math.exp(logs[i])
    for u in range(units):
        peak = -math.inf
        bad = False
        for i in range(nodes):
            t = logs[i] - densities[u, i]
            work[i] = t
            if t > peak:
                peak = t
            elif math.isnan(t):
                bad = True
        if bad or not math.isfinite(peak):
            value[u], error[u], ks[u] = (-math.inf if peak == math.inf and not bad else math.nan), math.inf, math.inf
            continue
        for i in range(nodes):
            raw[i] = math.exp(work[i] - peak)
            work[i] = raw[i]
            product[i] = weights[i]
        k = math.inf if nodes > 1 else -math.inf  # one node alone is the whole posterior: nothing is left to chance
        if tail >= _MIN_TAIL:
            k = smooth_tail(raw, work, scores, tail, keys, order, profile, grid)
            for j in range(tail):
                if keys[j] > 0.0:
                    product[order[j]] *= raw[order[j]] / keys[j]
        of_weights, of_products = 0.0, 0.0
        for i in range(nodes):
            of_weights += raw[i]
            of_products += product[i]
        square = 0.0
        for i in range(nodes):
            raw[i] = product[i] / of_products - raw[i] / of_weights
            square += raw[i] * raw[i]
        value[u] = math.log(of_products / of_weights) - peak
        error[u] = math.sqrt(square * inflation)
        ks[u] = k
        if k <= bad_k and error[u] <= most_error:
            for i in range(nodes):
                influence[i] += raw[i]


@kernel("void(float64[:,::1], float64[::1], float64[::1])")
def average_units(densities, logs, out):
    """`in_sample` of some units."""
    units, nodes = densities.shape
    for u in range(units):
        peak = -math.inf
        for i in range(nodes):
            peak = max(peak, logs[i] + densities[u, i])
        if not math.isfinite(peak):
            out[u] = peak
            continue
        total = 0.0
        for i in range(nodes):
            total += math.exp(logs[i] + densities[u, i] - peak)
        out[u] = peak + math.log(total)
