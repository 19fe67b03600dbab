r"""Integrals of a unit's likelihood over one component of a population, one unit and component at a time.

For a unit with data y and a component p_c of the population on the link scale eta,

.. math:: \log \int f(y \mid \eta)\, p_c(\eta)\, d\eta

and the moments of eta, and of the unit's own parameter theta, given y and c. The component is a normal distribution, an
interval on which eta is uniform, or a Student-t distribution.

Normal data and normal components have closed forms. Else, with a normal component, the integrand is log-concave and
analytic, and the trapezoid rule around its mode converges exponentially (Trefethen and Weideman, 2014): for
y = 0, where it is a cliff in front of a wide plain, just as for a nearly normal one. A uniform component
takes panels of Gauss-Legendre nodes, and so does a Student-t distribution (`algebra.unitstudent`).

A unit with more events than failures is reflected: y is at most half the trials here.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.elementary import exponential, log1p_share
from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.special import (
    HALF_LOG_TWO_PI,
    LARGEST_EXPONENT,
    softplus,
)
from partialpool.algebra.unitlikelihood import (
    ALL,
    BINOMIAL,
    DROP,
    FLAT,
    NEAR,
    NORMAL_DATA,
    POISSON,
    VALUES,
    end_of_likelihood,
    log_likelihood,
    log_normal_interval,
    natural,
    normal_mode,
    relative_logs,
    slope,
    unit_peak,
)
from partialpool.algebra.unitstudent import student_component, student_constant

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

NORMAL, UNIFORM, STUDENT_T = 0, 1, 2

#: Nodes of a panel, and of a block of the trapezoid rule: a multiple of what vector instructions take at once.
PANEL = 16
#: Steps of the trapezoid rule: share of the standard deviation at the mode; at most, on the link scale (a cliff has 1).
SHARE, WIDEST = 0.6, 0.35
#: A Student-t distribution of more degrees of freedom is normal.
NORMAL_FROM = 1e6
#: A spread below this is a point.
POINT = 1e-100


# --------------------------------------------------------------------------------------------------------------------
# One component
# --------------------------------------------------------------------------------------------------------------------


@helper
def add_block(family, want, at, count, weighted, d, out, work, weights, sums):
    """Add exp(out) times weights at the nodes to the sums of 1, d, d^2, theta, theta^2."""
    for i in range(count):
        out[i] = exponential(out[i])
    if weighted:
        for i in range(count):
            out[i] *= weights[i]
    if want == VALUES:
        total = 0.0
        for i in range(count):
            total += out[i]
        sums[0] += total
        return
    natural(family, count, at, d, work)
    for i in range(count):
        weight = out[i]
        sums[0] += weight
        sums[1] += weight * d[i]
        sums[2] += weight * d[i] * d[i]
        sums[3] += weight * work[i]
        sums[4] += weight * work[i] * work[i]


@helper
def finish(want, at, log_scale, sums, result):
    """The log integral and the moments from the sums around `at`."""
    result[0] = log_scale + math.log(sums[0])
    if want == ALL:
        first = sums[1] / sums[0]
        result[1] = at + first
        result[2] = max(sums[2] / sums[0] - first * first, 0.0)
        result[3] = sums[3] / sums[0]
        result[4] = sums[4] / sums[0]


@helper
def point_component(family, want, y, size, place, height, location, result):
    """A component that is one point."""
    result[0] = log_likelihood(family, y, size, place, height, location)
    if want == ALL:
        theta = slope(family, y, size, location)[2]
        if family == POISSON:
            theta = math.exp(min(location, LARGEST_EXPONENT))
        result[1], result[2], result[3], result[4] = location, 0.0, theta, theta * theta


@helper
def stretched(count, origin, bend, stretch, shift, d, rates):
    """Turn steps d from `origin` into displacements of eta, and write the rates of change.

    The map is the identity above `bend`, and `stretch` times as fast below, in one analytic function.
    """
    for i in range(count):
        t = origin + d[i]
        x = t - bend
        small = exponential(-abs(x))
        below = 0.5 - math.copysign(0.5, x)
        d[i] = t - (stretch - 1.0) * (0.5 * (abs(x) - x) + log1p_share(small)) - shift
        rates[i] = 1.0 + (stretch - 1.0) * (below + (1.0 - 2.0 * below) * small / (1.0 + small))


@helper
def normal_component(family, want, y, size, place, height, location, spread, d, out, work, rates, sums, result):
    """A normal component: in closed form, or by the trapezoid rule around the mode."""
    if family == NORMAL_DATA:
        variance = size * size + spread * spread
        z2 = (y - location) * (y - location) / variance
        result[0] = -0.5 * (z2 + math.log(variance)) - HALF_LOG_TWO_PI
        if want == ALL:
            share = spread * spread / variance
            result[1] = location + share * (y - location)
            result[2] = share * size * size
            result[3] = result[1]
            result[4] = result[1] * result[1] + result[2]
        return
    precision = 1.0 / (spread * spread)
    at = normal_mode(family, y, size, place, location, precision)
    # Before the cliff of a unit without events the steps grow to those of the component
    wide = not y > 0.0 and SHARE * spread > WIDEST
    cliff, stretch, bend, origin, rate = 0.0, 1.0, 0.0, 0.0, 1.0
    if wide:
        cliff, stretch = -math.log(size), SHARE * spread / WIDEST
        bend = -5.0 - math.log(stretch)
        origin = at - cliff if at - cliff > bend else bend + (at - cliff - bend) / stretch
        at = cliff + origin - (stretch - 1.0) * softplus(bend - origin)
        rate = 1.0 + (stretch - 1.0) / (1.0 + math.exp(min(origin - bend, LARGEST_EXPONENT)))
    first, second, level = slope(family, y, size, at)
    linear = first - (at - location) * precision
    step = min(SHARE / (rate * math.sqrt(second + precision)), WIDEST)
    quadratic = 0.5 * precision
    drop = DROP + math.log(stretch)
    for k in range(5):
        sums[k] = 0.0
    lanes = d.shape[0]
    for side in range(2):
        direction = 1.0 - 2.0 * side
        begin = side  # the node at 0 is taken on the way to the right
        highest = -math.inf
        while True:
            for i in range(lanes):
                d[i] = direction * step * (begin + i)
            near = step * (begin + lanes - 1) <= NEAR and not wide
            if wide:
                stretched(lanes, origin, bend, stretch, at - cliff, d, rates)
                relative_logs(family, size, at, level, linear, quadratic, False, lanes, d, out)
            else:
                relative_logs(family, size, at, level, linear, quadratic, near, lanes, d, out)
            last = out[lanes - 1]
            add_block(family, want, at, lanes, wide, d, out, work, rates, sums)
            begin += lanes
            # theta^2 of counts lifts the far side, and the mode with it
            lift = 2.0 * d[lanes - 1] if want == ALL and family == POISSON and side == 0 else 0.0
            highest = max(highest, last + lift)
            if last < -drop and (lift == 0.0 or last + lift < highest - drop or last < -1000.0):
                break
    z = (at - location) / spread
    log_scale = log_likelihood(family, y, size, place, height, at) - 0.5 * z * z - HALF_LOG_TWO_PI
    finish(want, at, log_scale + math.log(step / spread), sums, result)


@helper
def uniform_component(
    family, want, y, size, place, height, location, spread, x, weights, d, out, work, sums, result
):  # fmt: skip
    """An interval: panels of Gauss-Legendre nodes where the likelihood is not negligible."""
    low, high = location - spread, location + spread
    if family == NORMAL_DATA and want == VALUES:
        alpha, beta = (low - y) / size, (high - y) / size
        if (beta - alpha) * max(1.0, min(abs(alpha), abs(beta))) > 1.0:
            result[0] = log_normal_interval(alpha, beta) - math.log(2.0 * spread)
            return
    at = min(max(place, low), high)
    start = low
    panel_of_plain = False
    if family != NORMAL_DATA and not y > 0.0:
        # No events: flat up to where any is expected. One panel is exact there, whatever its width.
        cliff = math.log(FLAT / size)
        if cliff > low:
            at = min(cliff, high)
            start = at
            panel_of_plain = True
    top = log_likelihood(family, y, size, place, height, at)
    first, second, level = slope(family, y, size, at)
    scale = 1.0 / (math.sqrt(second) + 0.2 * abs(first))
    if not panel_of_plain:
        start = low
        if at > low:
            start = end_of_likelihood(family, y, size, place, height, at, top, -1.0, scale, low)
    end = high
    if at < high:
        end = end_of_likelihood(family, y, size, place, height, at, top, 1.0, scale, high)
    largest = max(second, slope(family, y, size, start)[1], slope(family, y, size, end)[1])
    if family == BINOMIAL and start < 0.0 < end:
        largest = 0.25 * size
    if family != NORMAL_DATA:
        largest = max(largest, 1.0)
    count = max(1, math.ceil((end - start) * math.sqrt(largest) * 0.25))
    half = 0.5 * (end - start) / count
    lanes = d.shape[0]
    for k in range(5):
        sums[k] = 0.0
    quadratic = 0.5 / (size * size) if family == NORMAL_DATA else 0.0
    if panel_of_plain:
        # In units of a half panel of the rest, so that the sums share their weights
        half_plain = 0.5 * (start - low)
        if half == 0.0:
            half, count = half_plain, 0
        for i in range(lanes):
            d[i] = -half_plain * (1.0 - x[i])
        relative_logs(family, size, at, level, first, quadratic, False, lanes, d, out)
        for i in range(lanes):
            out[i] += math.log(half_plain / half)
        add_block(family, want, at, lanes, True, d, out, work, weights, sums)
    for panel in range(count):
        middle = (start - at) + half * (2.0 * panel + 1.0)
        for i in range(lanes):
            d[i] = middle + half * x[i]
        near = abs(middle) + half <= NEAR
        relative_logs(family, size, at, level, first, quadratic, near, lanes, d, out)
        add_block(family, want, at, lanes, True, d, out, work, weights, sums)
    finish(want, at, top + math.log(half / (2.0 * spread)), sums, result)


# --------------------------------------------------------------------------------------------------------------------
# All units and components
# --------------------------------------------------------------------------------------------------------------------


@kernel("void(float64[::1], float64[::1], float64[:,:], float64[::1], float64[:,:])")
def normal_integrals(y: Array, size: Array, location: Array, spread: Array, out: Array) -> None:
    """Log densities of normal data under normal components: out (C, J)."""
    for c in range(spread.shape[0]):
        s2 = spread[c] * spread[c]
        for j in range(y.shape[0]):
            variance = size[j] * size[j] + s2
            shift = y[j] - location[c, j]
            out[c, j] = -0.5 * (shift * shift / variance + math.log(variance)) - HALF_LOG_TWO_PI


@kernel(
    "void(int64, float64[::1], float64[::1], int64[::1], float64[:,:], float64[::1], float64[::1], float64[::1],"
    "float64[::1], float64[:,:,:])"
)
def fill_components(
    family: int, y: Array, size: Array, kind: Ints, location: Array, spread: Array, nu: Array, x: Array,
    weights: Array, out: Array,
) -> None:  # fmt: skip
    """Write the log integral (out has one layer) or all moments (five), each (C, J)."""
    want = out.shape[0]
    units = y.shape[0]
    place, height, less = np.empty(units), np.empty(units), np.empty(units)
    reflected = np.zeros(units, dtype=np.bool_)
    for j in range(units):
        less[j] = y[j]
        if family == BINOMIAL and y[j] > 0.5 * size[j]:
            less[j] = size[j] - y[j]
            reflected[j] = True
        place[j], height[j] = unit_peak(family, less[j], size[j])
    lanes = x.shape[0]  # not a constant: the compiler would unroll the loops over nodes before it sees vectors
    d, values, work = np.empty(lanes), np.empty(lanes), np.empty(lanes)
    sums, result, rates = np.empty(5), np.empty(5), np.empty(lanes)
    for c in range(kind.shape[0]):
        s, constant = spread[c], 0.0
        if kind[c] == STUDENT_T and s > POINT:
            constant = student_constant(s, nu[c])
        for j in range(units):
            m = -location[c, j] if reflected[j] else location[c, j]
            if not s > POINT:
                point_component(family, want, less[j], size[j], place[j], height[j], m, result)
            elif kind[c] == UNIFORM:
                uniform_component(
                    family, want, less[j], size[j], place[j], height[j], m, s, x, weights, d, values, work, sums,
                    result,
                )  # fmt: skip
            elif kind[c] == NORMAL or nu[c] > NORMAL_FROM:
                normal_component(
                    family, want, less[j], size[j], place[j], height[j], m, s, d, values, work, rates, sums, result
                )
            else:
                student_component(
                    family, want, less[j], size[j], place[j], height[j], m, s, nu[c], constant, x, weights, d, values,
                    work, sums, result,
                )  # fmt: skip
            if want == ALL and reflected[j]:
                result[1] = -result[1]
                result[4] = 1.0 - 2.0 * result[3] + result[4]
                result[3] = 1.0 - result[3]
            for k in range(want):
                out[k, c, j] = result[k]


@lru_cache(maxsize=8)
def legendre(nodes: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [-1, 1], kept.

    Examples
    --------
    >>> x, weights = legendre(4)
    >>> bool(abs((weights * x**6).sum() - 2 / 7) < 1e-14)
    True
    """
    x, weights = np.polynomial.legendre.leggauss(nodes)
    return x, weights


def _components(
    family: int, y: ArrayLike, size: ArrayLike, kind: ArrayLike, location: ArrayLike, spread: ArrayLike,
    nu: ArrayLike, threads: int, layers: int,
) -> Array:  # fmt: skip
    """out (layers, C, J), in pieces along the longer of both axes."""
    data, sizes = (np.require(value, np.float64, ("C", "W")) for value in (y, size))
    kinds = np.require(kind, np.int64, ("C", "W"))
    spreads, degrees = (np.array(np.broadcast_to(value, kinds.shape), dtype=np.float64) for value in (spread, nu))
    places = np.require(location, np.float64, ("W",))
    if places.ndim == 1:
        places = as_strided(places, (kinds.size, data.size), (places.strides[0], 0))
    out = np.empty((layers, kinds.size, data.size))
    x, weights = legendre(PANEL)
    closed = family == NORMAL_DATA and layers == VALUES and bool((kinds == NORMAL).all())

    def work(c: slice, j: slice) -> None:
        if closed:
            normal_integrals(data[j], sizes[j], places[c, j], spreads[c], out[0, c, j])
        else:
            arguments = (kinds[c], places[c, j], spreads[c], degrees[c], x, weights, out[:, c, j])
            fill_components(family, data[j], sizes[j], *arguments)

    longer = max(data.size, kinds.size)
    pieces = max(1, min(int(threads), longer // 16, kinds.size * data.size // 512))
    edges = np.linspace(0, longer, pieces + 1).astype(int).tolist()
    slices = [slice(low, high) for low, high in pairwise(edges)]
    every = slice(None)
    tasks = [(every, s) for s in slices] if data.size >= kinds.size else [(s, every) for s in slices]
    if pieces == 1:
        work(*tasks[0])
    else:
        with ThreadPoolExecutor(pieces) as pool:
            list(pool.map(lambda task: work(*task), tasks))
    return out


def component_integrals(
    family: int, y: ArrayLike, size: ArrayLike, kind: ArrayLike, location: ArrayLike, spread: ArrayLike,
    nu: ArrayLike, threads: int = 1,
) -> Array:  # fmt: skip
    """Log of the integral of each unit's likelihood over each component of a population.

    Parameters
    ----------
    family : int
        0: y is N(eta, size^2); 1: Binomial(size, expit(eta)); 2: Poisson(size exp(eta)).
    y, size : array (J,)
        The data; standard errors, trials, or exposures.
    kind : array (C,)
        0: normal; 1: uniform on location -/+ spread; 2: Student-t.
    location : array (C,) or (C, J)
        Of the components on the link scale, for each unit where they differ.
    spread : array (C,)
        Standard deviation, half width, or scale; 0 is a point.
    nu : array (C,)
        Degrees of freedom of Student-t components; others ignore it.
    threads : int
        No result depends on their number.

    Returns
    -------
    array (C, J)
        With every constant of the likelihood; errors below 1e-9.

    Examples
    --------
    >>> log_density = component_integrals(0, [1.0], [1.0], [0], [0.0], [1.0], [1.0])  # N(1; 0, 2)
    >>> float(log_density[0, 0].round(6))
    -1.515512
    """
    return np.asarray(_components(family, y, size, kind, location, spread, nu, threads, VALUES)[0])


def component_moments(
    family: int, y: ArrayLike, size: ArrayLike, kind: ArrayLike, location: ArrayLike, spread: ArrayLike,
    nu: ArrayLike, threads: int = 1,
) -> tuple[Array, Array, Array, Array, Array]:  # fmt: skip
    """Log integral, mean and variance of eta, mean of theta and of theta^2, given each component and unit's data.

    The arguments are those of `component_integrals`. theta is the unit's parameter on its natural scale: eta,
    expit(eta) or exp(eta). A variance or mean of eta that does not exist is infinite.

    Returns
    -------
    five arrays (C, J)

    Examples
    --------
    >>> value, mean, variance, theta, square = component_moments(0, [1.0], [1.0], [0], [0.0], [1.0], [1.0])
    >>> mean.item(), variance.item(), theta.item(), square.item()
    (0.5, 0.5, 0.5, 0.75)
    """
    value, mean, variance, theta, square = _components(family, y, size, kind, location, spread, nu, threads, ALL)
    return value, mean, variance, theta, square
