"""The likelihood of one unit on the link scale, for kernels: its peak, its slope, and its logs at the nodes of a rule.

A family is 0: y is N(eta, size^2); 1: Binomial(size, expit(eta)), y at most half of size; 2: Poisson(size exp(eta)).
All is relative to a place near the peak, by functions without cancellation: a billion trials lose no digits.
"""

from __future__ import annotations

import math

from partialpool.algebra.elementary import artanh_rest, exponential, log1p_share
from partialpool.algebra.jit import helper
from partialpool.algebra.special import (
    HALF_LOG_TWO_PI,
    LARGEST_EXPONENT,
    SQRT_HALF,
    expm1_minus,
    log1p_minus,
    normal_tail,
    softplus,
    stirling_rest,
)

NORMAL_DATA, BINOMIAL, POISSON = 0, 1, 2
#: Displacements up to this take series that cancel nothing.
NEAR = 0.35
#: What lies this far, on the log scale, below the peak is left out.
DROP = 25.0
#: Where the expected count is below this, the likelihood of no events is flat.
FLAT = 1e-13

#: What a pass writes for one unit and component: log integral, mean and variance of eta, mean of theta and theta^2.
VALUES, ALL = 1, 5


@helper
def unit_peak(family, y, size):
    """Where a unit's likelihood is highest on the link scale, and its log there with all constants.

    Examples
    --------
    >>> place, height = unit_peak(2, 3.0, 1.0)  # 3^3 exp(-3) / 3!
    >>> round(math.exp(place), 9), round(math.exp(height), 9)
    (3.0, 0.224041808)
    """
    if family == NORMAL_DATA:
        return y, -math.log(size) - HALF_LOG_TWO_PI
    if not y > 0.0:
        return -math.inf, 0.0
    log_y = math.log(y)
    if family == POISSON:
        return log_y - math.log(size), -0.5 * log_y - HALF_LOG_TWO_PI - stirling_rest(y, log_y)[0]
    failures = size - y
    log_failures, log_size = math.log(failures), math.log(size)
    height = 0.5 * (log_size - log_y - log_failures) - HALF_LOG_TWO_PI
    rests = stirling_rest(y, log_y)[0] + stirling_rest(failures, log_failures)[0]
    return math.log(y / failures), height + stirling_rest(size, log_size)[0] - rests


@helper
def log_likelihood(family, y, size, place, height, eta):
    """log f(y | eta), given `unit_peak`."""
    d = eta - place
    if math.isinf(eta) and (y > 0.0 or eta > 0.0):  # a point at theta = 0, or at 1
        return -math.inf
    if family == NORMAL_DATA:
        z = d / size
        return height - 0.5 * z * z
    if family == POISSON:
        if not y > 0.0:
            return -size * math.exp(min(eta, LARGEST_EXPONENT))
        return height - y * expm1_minus(d)
    if not y > 0.0:
        return -size * softplus(eta)
    if abs(d) > 30.0:
        return height + y * d - size * (softplus(eta) - softplus(place))
    share = y / size
    return height - size * (log1p_minus(share * math.expm1(d)) + share * expm1_minus(d))


@helper
def slope(family, y, size, eta):
    """First derivative of log f at eta, minus the second, and the level: probability or expected count."""
    if family == NORMAL_DATA:
        precision = 1.0 / (size * size)
        return (y - eta) * precision, precision, eta
    if family == POISSON:
        mean = size * math.exp(min(eta, LARGEST_EXPONENT))
        return y - mean, mean, mean
    small = math.exp(-abs(eta))
    reciprocal = 1.0 / (1.0 + small)
    level = reciprocal if eta > 0.0 else small * reciprocal
    return y - size * level, size * small * reciprocal * reciprocal, level


@helper(inline=True)
def _expm1_minus_near(d):
    """exp(d) - 1 - d for abs(d) up to 0.35, without branches."""
    p = 1.0 + d * (1.0 / 13.0)
    p = 1.0 + d * (1.0 / 12.0) * p
    p = 1.0 + d * (1.0 / 11.0) * p
    p = 1.0 + d * (1.0 / 10.0) * p
    p = 1.0 + d * (1.0 / 9.0) * p
    p = 1.0 + d * (1.0 / 8.0) * p
    p = 1.0 + d * (1.0 / 7.0) * p
    p = 1.0 + d * (1.0 / 6.0) * p
    p = 1.0 + d * (1.0 / 5.0) * p
    p = 1.0 + d * (1.0 / 4.0) * p
    p = 1.0 + d * (1.0 / 3.0) * p
    return 0.5 * d * d * p


@helper(inline=True)
def _log1p_minus_near(u):
    """log(1 + u) - u for u from -0.3 to 0.45, without branches: 2 artanh(s) - u, s = u / (2 + u)."""
    r = 1.0 / (2.0 + u)
    s = u * r
    z = s * s
    p = artanh_rest(z, 0.0)
    return 2.0 * s * z * p - u * u * r


@helper(inline=True)
def relative_logs(family, size, at, level, linear, quadratic, near, count, d, out):
    """out = linear d - quadratic d^2, less the log likelihood's bend from `at` to `at` + d; its level is at `at`.

    Loops without branches or calls, one a case, so that they become vector instructions.
    """
    if family == NORMAL_DATA:
        for i in range(count):
            out[i] = d[i] * (linear - quadratic * d[i])
    elif family == POISSON:
        if near:
            for i in range(count):
                out[i] = d[i] * (linear - quadratic * d[i]) - level * _expm1_minus_near(d[i])
        else:
            for i in range(count):
                out[i] = d[i] * (linear - quadratic * d[i]) - level * (exponential(d[i]) - 1.0 - d[i])
    elif near:
        for i in range(count):
            bend = _expm1_minus_near(d[i])
            u = level * (bend + d[i])
            out[i] = d[i] * (linear - quadratic * d[i]) - size * (_log1p_minus_near(u) + level * bend)
    else:
        # The part of eta above 0 apart: what is left has full relative precision however small
        at_above = 0.5 * (at + abs(at))
        at_rest = log1p_share(exponential(-abs(at)))
        for i in range(count):
            eta = at + d[i]
            above = 0.5 * (eta + abs(eta)) - at_above
            rest = log1p_share(exponential(-abs(eta))) - at_rest
            out[i] = d[i] * (linear - quadratic * d[i]) - size * (above + rest - level * d[i])


@helper(inline=True)
def natural(family, count, at, d, out):
    """out = theta at the link's value `at` + d."""
    if family == NORMAL_DATA:
        for i in range(count):
            out[i] = at + d[i]
    elif family == POISSON:
        for i in range(count):
            out[i] = exponential(at + d[i])
    else:
        for i in range(count):
            eta = at + d[i]
            small = exponential(-abs(eta))
            negative = 0.5 - math.copysign(0.5, eta)
            out[i] = (negative * small + 1.0 - negative) / (1.0 + small)


@helper
def normal_mode(family, y, size, place, location, precision):
    """Near the mode of f(y | eta) N(eta; location, 1 / precision): Newton's method within a bracket.

    A twentieth of a standard deviation off is near enough: the sums take the slope that is left.
    """
    low, high = min(place, location), max(place, location)
    guess = place if y > 0.0 else math.log(0.5 / (size + 0.5)) if family == BINOMIAL else math.log(0.5 / size)
    weight = y + 0.5
    if family == BINOMIAL:
        weight *= (size - y + 0.5) / (size + 1.0)
    eta = (weight * guess + precision * location) / (weight + precision) if guess < location else location
    if y > 0.0:
        eta = (weight * guess + precision * location) / (weight + precision)
    eta = min(max(eta, low), high)
    before = 0.0
    for _ in range(200):
        first, second, _level = slope(family, y, size, eta)
        first -= (eta - location) * precision
        second += precision
        if first * first <= 0.0025 * second:
            break
        if first > 0.0:
            low = max(low, eta)
        else:
            high = min(high, eta)
        step = first / second
        following = eta + step
        # Steps that turn back without becoming much smaller may go to and fro for ever
        if not low <= following <= high or (step * before < 0.0 and abs(step) > 0.5 * abs(before)):
            following = 0.5 * (low + high) if low > -math.inf else eta - 1.0
        before = step
        if following == eta:
            break
        eta = following
    return eta


@helper
def log_normal_interval(low, high):
    """log(Phi(high) - Phi(low)) where they are not close: far out in both tails."""
    if low > 0.0:
        low, high = -high, -low
    if high > 0.0:
        return math.log(0.5 * (math.erf(high * SQRT_HALF) - math.erf(low * SQRT_HALF)))
    above, below = normal_tail(high)[0], normal_tail(low)[0]
    return above + math.log(-math.expm1(below - above))


@helper
def end_of_likelihood(family, y, size, place, height, at, top, direction, first_step, end):
    """Where, from `at` in a direction, the likelihood has become negligible; no farther than `end`."""
    inside, outside = 0.0, first_step
    farthest = abs(end - at)
    while True:
        if outside >= farthest:
            if inside >= 0.8 * farthest:
                return end
            outside = farthest
        if log_likelihood(family, y, size, place, height, at + direction * outside) - top < -DROP:
            break
        if outside >= farthest:
            return end
        inside = outside
        outside *= 2.0
    for _ in range(3):
        middle = 0.5 * (inside + outside)
        if log_likelihood(family, y, size, place, height, at + direction * middle) - top < -DROP:
            outside = middle
        else:
            inside = middle
    return at + direction * outside
