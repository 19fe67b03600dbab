r"""Gamma and beta distributions in kernels: densities, tails and quantiles for any parameters.

Both families are treated as one. Let :math:`w = x` for a gamma and :math:`w = x / (1 - x)` for a beta distribution. The
density of :math:`u = \log w` is log-concave for every parameter, its logarithm's derivatives are polynomials of
:math:`x`, and so an inversion takes few steps: of fifth order near the root, of Newton's method for the logarithm of a
tail elsewhere. The cumulants of :math:`u` are polygamma functions; Cornish and Fisher's expansion in them starts it.

A tail is the density times a continued fraction (Didonato and Morris 1992, algorithm 708, and its limit for the gamma
distribution; Legendre's fraction for the upper tail of the gamma distribution), or, where parameters are large and a
fraction would be long, times an integral by Gauss's rule whose cost does not grow.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.elementary import artanh_rest, decay
from partialpool.algebra.jit import helper
from partialpool.algebra.special import HALF_LOG_TWO_PI, STIRLING, clamped, stirling_rest

Array = NDArray[np.float64]

#: The two families, as kernels know them.
GAMMA, BETA = 0, 1

#: A continued fraction ends where a term changes it by less than this share.
FRACTION_TOLERANCE = 1e-15
#: From these parameters on (the smaller of the two of a beta), a tail is an integral rather than a fraction.
LARGE = 1000.0
#: The integral ends where the density has fallen by this exponent.
FALL = 40.0
_nodes, _node_weights = np.polynomial.legendre.leggauss(32)
TAIL_NODES, TAIL_WEIGHTS = 0.5 * (_nodes + 1.0), 0.5 * _node_weights
#: An inversion ends where the error of its last step is below this share of the quantile.
INVERSION_TOLERANCE = 1e-10
#: Numerators and denominators of a fraction are scaled down where they exceed this.
HUGE = 1e100
#: Quantiles of log w beyond this are infinite: exp of them is no number with all its digits.
FURTHEST = 708.0


# --------------------------------------------------------------------------------------------------------------------
# Densities
# --------------------------------------------------------------------------------------------------------------------


@helper(inline=True)
def log1p_rest(v: float) -> float:
    """log(1 + v) - v for abs(v) up to 0.35, to full relative precision and without a branch.

    Examples
    --------
    >>> round(log1p_rest(1e-9) * 1e18, 6)
    -0.5
    """
    s = v / (2.0 + v)
    z = s * s
    p = artanh_rest(z, 0.0)
    return s * (2.0 * z * p - v)


@helper
def log_ratio_rest(ratio: float, v: float) -> float:
    """log(ratio) - v, where v = ratio - 1 is known to full relative precision.

    Examples
    --------
    >>> round(log_ratio_rest(2.0, 1.0), 12) == round(math.log(2.0) - 1.0, 12)
    True
    """
    if abs(v) < 0.35:
        return log1p_rest(v)
    return math.log(ratio) - v


@helper
def stirling_error(x: float, log_x: float) -> float:
    """What Stirling's formula leaves of log gamma(x), for every x > 0.

    Examples
    --------
    >>> round(stirling_error(1.0, 0.0), 8)
    0.08106147
    """
    if x >= STIRLING:
        r = 1.0 / x
        s = r * r
        return r * (
            1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s * (1 / 1188 - s * (691 / 360360 - s / 156)))))
        )
    return stirling_rest(x, log_x)[0]


@helper
def log_constant(kind: int, a: float, b: float) -> float:
    """The logarithm of the density of u at x = a for a gamma (of rate 1), at x = a / (a + b) for a beta distribution.

    Examples
    --------
    >>> round(log_constant(BETA, 1.0, 1.0), 12) == round(math.log(0.25), 12)
    True
    """
    log_a = math.log(a)
    constant = 0.5 * log_a - HALF_LOG_TWO_PI - stirling_error(a, log_a)
    if kind == BETA:
        log_b = math.log(b)
        total = a + b
        log_total = math.log(total)
        constant += 0.5 * (log_b - log_total) + stirling_error(total, log_total) - stirling_error(b, log_b)
    return constant


@helper
def gamma_density(a: float, x: float, constant: float) -> float:
    """x^a exp(-x) / gamma(a), given `log_constant`.

    Examples
    --------
    >>> round(gamma_density(2.0, 1.0, log_constant(GAMMA, 2.0, 1.0)), 12) == round(math.exp(-1.0), 12)
    True
    """
    return math.exp(a * log_ratio_rest(x / a, (x - a) / a) + constant)


@helper
def beta_density(a: float, b: float, x: float, y: float, constant: float) -> float:
    """x^a y^b / B(a, b) with x + y = 1, given `log_constant`.

    Examples
    --------
    >>> round(beta_density(1.0, 1.0, 0.3, 0.7, log_constant(BETA, 1.0, 1.0)), 12)
    0.21
    """
    shift = x * b - y * a
    total = a + b
    exponent = a * log_ratio_rest(x * total / a, shift / a) + b * log_ratio_rest(y * total / b, -shift / b)
    return math.exp(exponent + constant)


# --------------------------------------------------------------------------------------------------------------------
# Tails
# --------------------------------------------------------------------------------------------------------------------


@helper(fastmath={"reassoc", "contract"})
def tail_integral(a: float, p: float, b: float, q: float, slope: float) -> float:
    """The integral over t > 0 of (1 + p t)^a exp(-a p t) (1 - q t)^b exp(b q t) exp(-slope t), for large a (and b).

    Examples
    --------
    >>> float(round(tail_integral(1e12, 1e-6, 0.0, 0.0, 0.0), 5)) == round(math.sqrt(0.5 * math.pi), 5)
    True
    """
    length = 2.0 * FALL / (slope + math.sqrt(slope * slope + 2.0 * FALL * (a * p * p + b * q * q)))
    total = 0.0
    for i in range(TAIL_NODES.size):
        t = length * TAIL_NODES[i]
        fall = slope * t - a * log1p_rest(p * t) - b * log1p_rest(-q * t)
        total += TAIL_WEIGHTS[i] * decay(fall)
    return length * total


@helper
def lower_fraction(a: float, b: float, base: float, x: float, shift: float, per_unit: float) -> float:
    """The lower tail divided by the density of u: of a beta distribution or, in the limit, of a gamma distribution.

    A beta distribution has base = a + b - 1, shift = a - (a + b) x and per_unit = 1; a gamma distribution has
    b = base = 1, shift = a - x and per_unit = 0.

    Examples
    --------
    >>> round(lower_fraction(1.0, 1.0, 1.0, 0.25, 0.5, 1.0) * 0.25 * 0.75, 12)
    0.25
    """
    inverse = 1.0 / (a + 1.0)
    drift = shift + 1.0
    step = 2.0 - per_unit * x
    above, last_above = 1.0, 0.0
    below, last_below = a * inverse * drift, 1.0
    n = 0.0
    for _ in range(5000):
        n += 1.0
        rise = n * (b - per_unit * n) * x * inverse
        alpha = (a + (n - 1.0)) * (base + per_unit * n) * x * inverse * rise
        inverse = 1.0 / (a + 2.0 * n + 1.0)
        beta = n + rise + (a + n) * inverse * (drift + n * step)
        next_above = alpha * last_above + beta * above
        next_below = alpha * last_below + beta * below
        last_above, above = above, next_above
        last_below, below = below, next_below
        if abs(above * last_below - last_above * below) <= FRACTION_TOLERANCE * abs(above * last_below):
            break
        if abs(below) > HUGE:
            last_above, above = last_above / HUGE, above / HUGE
            last_below, below = last_below / HUGE, below / HUGE
    return above / below


@helper
def upper_gamma_fraction(a: float, x: float) -> float:
    """The upper tail of a gamma distribution divided by its density of log x: Legendre's fraction.

    Examples
    --------
    >>> round(upper_gamma_fraction(1.0, 2.0), 12)
    0.5
    """
    beta = x + 1.0 - a
    above, last_above = 1.0, 0.0
    below, last_below = beta, 1.0
    n = 0.0
    for _ in range(5000):
        n += 1.0
        alpha = n * (a - n)
        beta += 2.0
        next_above = alpha * last_above + beta * above
        next_below = alpha * last_below + beta * below
        last_above, above = above, next_above
        last_below, below = below, next_below
        if abs(above * last_below - last_above * below) <= FRACTION_TOLERANCE * abs(above * last_below):
            break
        if abs(below) > HUGE:
            last_above, above = last_above / HUGE, above / HUGE
            last_below, below = last_below / HUGE, below / HUGE
    return above / below


@helper
def gamma_tails(a: float, x: float, density: float) -> tuple[float, float]:
    """P(a, x) and Q(a, x), given `gamma_density`.

    Below a + 1 the lower tail has full relative precision, and the upper is what it leaves of 1; above, it is reversed.
    Only the upper tail of a shape far below 1 is small there as well: it has an absolute error of some 1e-14.

    Examples
    --------
    >>> lower, upper = gamma_tails(1.0, 3.0, 3.0 * math.exp(-3.0))
    >>> round(upper, 12) == round(math.exp(-3.0), 12)
    True
    """
    if not density > 0.0:
        tail = 0.0
        is_upper = x > a
    elif a >= LARGE:
        slope = x - (a - 1.0)
        side = 1.0 if slope > 0.0 else -1.0
        tail = density * tail_integral(a - 1.0, side, 0.0, 0.0, abs(slope))
        is_upper = slope > 0.0
    elif x < a + 1.0:
        tail = density * lower_fraction(a, 1.0, 1.0, x, a - x, 0.0)
        is_upper = False
    else:
        tail = density * upper_gamma_fraction(a, x)
        is_upper = True
    return (1.0 - tail, tail) if is_upper else (tail, 1.0 - tail)


@helper
def beta_tails(a: float, b: float, x: float, y: float, density: float) -> tuple[float, float]:
    """I_x(a, b) and 1 - I_x(a, b) with x + y = 1, given `beta_density`; as precise as `gamma_tails`.

    Examples
    --------
    >>> lower, upper = beta_tails(1.0, 1.0, 0.2, 0.8, 0.16)
    >>> round(lower, 12), round(upper, 12)
    (0.2, 0.8)
    """
    if not density > 0.0:
        tail = 0.0
        is_upper = x * b > a * y
    elif a >= LARGE and b >= LARGE:
        slope = (b - 1.0) / y - (a - 1.0) / x
        side = 1.0 if slope > 0.0 else -1.0
        tail = density / (x * y) * tail_integral(a - 1.0, side / x, b - 1.0, side / y, abs(slope))
        is_upper = slope > 0.0
    elif x * (b + 1.0) < (a + 1.0) * y:
        tail = density * lower_fraction(a, b, a + b - 1.0, x, a * y - b * x, 1.0)
        is_upper = False
    else:
        tail = density * lower_fraction(b, a, a + b - 1.0, y, b * x - a * y, 1.0)
        is_upper = True
    return (1.0 - tail, tail) if is_upper else (tail, 1.0 - tail)


# --------------------------------------------------------------------------------------------------------------------
# Inversion
# --------------------------------------------------------------------------------------------------------------------


@helper
def evaluate(
    kind: int, a: float, b: float, constant: float, w: float
) -> tuple[float, float, float, float, float, float]:
    """Lower and upper tail at w, density of u = log w, and three derivatives of its logarithm.

    A gamma distribution has shape a and rate b, a beta distribution has w = x / (1 - x).

    Examples
    --------
    >>> [round(v, 6) for v in evaluate(BETA, 1.0, 1.0, log_constant(BETA, 1.0, 1.0), 1.0)]
    [0.5, 0.5, 0.25, 0.0, -0.5, -0.0]
    """
    if kind == GAMMA:
        x = w * b
        density = gamma_density(a, x, constant)
        lower, upper = gamma_tails(a, x, density)
        return lower, upper, density, a - x, -x, -x
    y = 1.0 / (1.0 + w)
    x = w * y
    density = beta_density(a, b, x, y, constant)
    lower, upper = beta_tails(a, b, x, y, density)
    total = a + b
    curvature = -total * x * y
    return lower, upper, density, a * y - b * x, curvature, curvature * (y - x)


@helper
def log_gamma_cumulants(a: float) -> tuple[float, float, float, float, float]:
    """Five cumulants of the logarithm of a gamma variable: polygamma functions, to some four digits.

    Examples
    --------
    >>> [round(v, 3) for v in log_gamma_cumulants(1.0)]
    [-0.577, 1.645, -2.404, 6.494, -24.886]
    """
    c = a + 1.5
    r = 1.0 / c
    s = r * r
    i = 1.0 / a
    j = 1.0 / (a + 1.0)
    i2, j2 = i * i, j * j
    first = math.log(c) + s * (1 / 24 - s * (7 / 960 - s * (31 / 8064))) - i - j
    second = r * (1.0 - s * (1 / 12 - s * (7 / 240 - s * (31 / 1344)))) + i2 + j2
    third = -s * (1.0 - s * (1 / 4 - s * (7 / 48 - s * (31 / 192)))) - 2.0 * (i2 * i + j2 * j)
    fourth = s * r * (2.0 - s * (1.0 - s * (7 / 8 - s * (31 / 24)))) + 6.0 * (i2 * i2 + j2 * j2)
    fifth = -s * s * (6.0 - s * (5.0 - s * (49 / 8 - s * (31 / 3)))) - 24.0 * (i2 * i2 * i + j2 * j2 * j)
    return first, second, third, fourth, fifth


@helper
def standard_cumulants(kind: int, a: float, b: float) -> tuple[float, float, float, float, float]:
    """Mean and sd of u, and its third to fifth standardised cumulants.

    Examples
    --------
    >>> [round(v, 2) for v in standard_cumulants(BETA, 3.0, 3.0)]
    [0.0, 0.89, 0.0, 0.38, 0.0]
    """
    mean, variance, third, fourth, fifth = log_gamma_cumulants(a)
    if kind == BETA:
        other = log_gamma_cumulants(b)
        mean -= other[0]
        variance += other[1]
        third -= other[2]
        fourth += other[3]
        fifth -= other[4]
    else:
        mean -= math.log(b)
    sd = math.sqrt(variance)
    r = 1.0 / sd
    r3 = r * r * r
    return mean, sd, third * r3, fourth * r3 * r, fifth * r3 * r * r


@helper
def power_start(a: float, curvature: float, log_share: float) -> tuple[float, bool]:
    """Where a lower tail x^a (1 - curvature a x / (a + 1)) exp(-log_share) is 1: log x; and whether that holds there.

    Examples
    --------
    >>> power_start(0.5, 1.0, -5.0)[1]
    True
    """
    u = log_share / a
    x = math.exp(min(u, 1.0))
    shift = curvature * x / (a + 1.0)
    return u + shift, abs(shift) < 0.2 and u < -1.0


@helper
def start(
    kind: int, a: float, b: float, constant: float, shape: tuple[float, float, float, float, float], level: Array
) -> float:
    """A first guess at the quantile of u; `level` as `incomplete.levels_of` makes it.

    Examples
    --------
    >>> level = np.array([0.5, 0.5, 0.0, -1 / 6, 0.0, 0.0, 1 / 40, -1 / 12, 17 / 324])
    >>> u = start(BETA, 3.0, 3.0, log_constant(BETA, 3.0, 3.0), standard_cumulants(BETA, 3.0, 3.0), level)
    >>> round(float(u), 6)
    0.0
    """
    if kind == BETA:
        log_total = math.log(a + b)
        share = constant + a * (log_total - math.log(a)) + b * (log_total - math.log(b)) if min(a, b) < 2.0 else 0.0
        if b < 2.0:
            u, holds = power_start(b, a - 1.0, math.log(level[1]) + math.log(b) - share)
            if holds:
                return -u
        if a < 2.0:
            u, holds = power_start(a, b - 1.0, math.log(level[0]) + math.log(a) - share)
            if holds:
                return u
    elif a < 2.0:
        u, holds = power_start(a, 1.0, math.log(level[0]) + (a + 1.0) * math.log(a) - a - constant)
        if holds:
            return u - math.log(b)
    mean, sd, third, fourth, fifth = shape
    score: float = level[2] + third * level[3] + fourth * level[4] + third * third * level[5]
    score += fifth * level[6] + third * fourth * level[7] + third * third * third * level[8]
    # Where the expansion is of no use its terms are large; the guess stays within reach.
    reach: float = 1.5 * abs(level[2]) + 1.0
    u = mean + sd * max(-reach, min(reach, score))
    if kind == GAMMA and a < 2.0:  # no quantile is beyond this (Boucheron, Lugosi and Massart 2013, section 2.4)
        fall = -math.log(level[1])
        u = min(u, math.log((a + math.sqrt(2.0 * a * fall) + fall) / b))
    return u


@helper
def quantile(kind: int, weights: Array, a: Array, b: Array, constants: Array, level: Array, u: float) -> float:
    """The quantile of log w of a mixture, found from the guess u; infinite where w is below 1e-307 or above 1e307.

    Examples
    --------
    >>> one, level = np.ones(1), np.array([0.75, 0.25])
    >>> constants = np.array([log_constant(BETA, 1.0, 1.0)])
    >>> round(math.exp(quantile(BETA, one, one, one, constants, level, 1.0)), 8)
    3.0
    """
    p, q = level[0], level[1]
    low, high = -math.inf, math.inf
    for _ in range(200):
        u = clamped(u, FURTHEST)
        w = math.exp(u)
        lower = upper = density = first = second = third = scale = 0.0
        for k in range(weights.size):
            share = weights[k]
            if share > 0.0:
                below, above, f, g1, g2, g3 = evaluate(kind, a[k], b[k], constants[k], w)
                f *= share
                lower += share * below
                upper += share * above
                density += f
                first += f * g1
                second += f * (g1 * g1 + g2)
                third += f * (g1 * g1 * g1 + 3.0 * g1 * g2 + g3)
                scale = max(scale, -g2)
        right = lower > p if p < q else upper < q
        if right:
            high = u
        else:
            low = u
        if high == -FURTHEST or low == FURTHEST:
            return math.copysign(math.inf, u)
        miss = p - lower if p < q else upper - q
        e = miss / density if density > 0.0 else math.inf
        h, k2, k3 = first / density, second / density, third / density
        size = max(abs(h), math.sqrt(max(scale, abs(k2))))
        tau = abs(e) * size
        if tau < 0.3:
            step = e * (1.0 - e * (h / 2 - e * ((3 * h * h - k2) / 6 + e * (10 * h * k2 - 15 * h * h * h - k3) / 24)))
            if tau * tau * tau * tau * tau <= INVERSION_TOLERANCE * size:
                return u + step
        elif right and (p >= q or lower > 0.5):
            step = math.log(upper / q) * upper / density
        elif right or (p < q or upper > 0.5) or not upper > 0.0:
            step = math.log(p / lower) * lower / density
        else:
            step = math.log(upper / q) * upper / density
        following = u + step
        if not (low < following < high):
            if low == -math.inf:
                following = high - max(1.0, 2.0 * abs(high))
            elif high == math.inf:
                following = low + max(1.0, 2.0 * abs(low))
            else:
                following = 0.5 * (low + high)
        if abs(following - u) <= 1e-15 * abs(u) or high - low <= 1e-12:
            return following
        u = following
    return u
