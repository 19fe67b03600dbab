"""Special functions for kernels: the gamma function and its kin, the tail of the normal distribution.

All are helpers (see `partialpool.algebra.jit.helper`): numba has no digamma, and differences of log gammas lose every
digit where they are wanted most. The arguments are float64 and so is every result; called from Python they run as
Python.
"""

from __future__ import annotations

import math

from partialpool.algebra.jit import helper

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
SQRT_HALF = math.sqrt(0.5)
INVERSE_SQRT_TWO_PI = 1.0 / math.sqrt(2.0 * math.pi)

#: exp of no more than this in size is taken, so that neither it nor its product with a count over- or underflows.
LARGEST_EXPONENT = 690.0
#: From here on up, Stirling's series has full precision.
STIRLING = 10.0
#: Up to this count, a rising factorial is multiplied out.
FEW = 16.0
#: Below this, the lower tail of the normal distribution is a continued fraction of so many terms.
TAIL, TAIL_TERMS = -6.0, 36


@helper
def clamped(x: float, bound: float) -> float:
    """`x`, no larger than `bound` in size.

    Examples
    --------
    >>> clamped(-800.0, 690.0)
    -690.0
    """
    return min(max(x, -bound), bound)


@helper
def bounded_exp(x: float) -> float:
    """exp(x) that does not overflow: it stays at exp(690) from there on.

    Examples
    --------
    >>> bounded_exp(0.0), bounded_exp(1e6) < math.inf
    (1.0, True)
    """
    return math.exp(min(x, LARGEST_EXPONENT))


@helper
def log_and_reciprocal(a: float) -> tuple[float, float]:
    """log(1 + a) and 1 / (1 + a) for a >= 0: as accurate as log1p, in half its time.

    Examples
    --------
    >>> log_and_reciprocal(1e-20)
    (1e-20, 1.0)
    """
    total = 1.0 + a
    reciprocal = 1.0 / total
    return math.log(total) + (a - (total - 1.0)) * reciprocal, reciprocal


@helper
def softplus(x: float) -> float:
    """log(1 + exp(x)).

    Examples
    --------
    >>> softplus(800.0), softplus(-800.0)
    (800.0, 0.0)
    """
    return max(x, 0.0) + log_and_reciprocal(math.exp(-abs(x)))[0]


@helper
def log1p_minus(x: float) -> float:
    """log(1 + x) - x, to full relative precision for small x.

    Examples
    --------
    >>> round(log1p_minus(1e-9) * 1e18, 6)
    -0.5
    """
    if abs(x) > 0.02:
        return math.log1p(x) - x
    return -x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6 - x * (1 / 7 - x * (1 / 8 - x / 9)))))))


@helper
def expm1_minus(x: float) -> float:
    """exp(x) - 1 - x, to full relative precision for small x.

    Examples
    --------
    >>> round(expm1_minus(1e-9) * 1e18, 6)
    0.5
    """
    if abs(x) > 0.1:
        return math.expm1(min(x, LARGEST_EXPONENT)) - x
    return x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8 * (1 + x / 9)))))))


# --------------------------------------------------------------------------------------------------------------------
# The gamma function
# --------------------------------------------------------------------------------------------------------------------


@helper
def stirling_series(x: float) -> tuple[float, float, float]:
    """What Stirling's formula leaves of log gamma, digamma and trigamma at x >= 10.

    log gamma(x) = (x - 1/2) log x - x + log(2 pi) / 2 + first; digamma(x) = log x + second;
    trigamma(x) = 1 / x + third.

    Examples
    --------
    >>> round(stirling_series(10.0)[0], 10)
    0.0083305634
    """
    r = 1.0 / x
    s = r * r
    first = r * (
        1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s * (1 / 1188 - s * (691 / 360360 - s / 156)))))
    )
    second = -0.5 * r - s * (
        1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s * (1 / 132 - s * (691 / 32760 - s / 12)))))
    )
    third = s * (
        0.5 + r * (1 / 6 - s * (1 / 30 - s * (1 / 42 - s * (1 / 30 - s * (5 / 66 - s * (691 / 2730 - s * (7 / 6)))))))
    )
    return first, second, third


@helper
def stirling_rest(x: float, log_x: float) -> tuple[float, float, float]:
    """As `stirling_series`, for every x > 0, multiplied by 1, x and x^2; finite even where x underflows to 0.

    Parameters
    ----------
    x, log_x : float
        The argument and its logarithm.

    Examples
    --------
    >>> [round(v, 8) for v in stirling_rest(1.0, 0.0)]
    [0.08106147, -0.57721566, 0.64493407]
    """
    if x >= STIRLING:
        first, second, third = stirling_series(x)
        return first, x * second, x * x * third
    product = 1.0
    reciprocals = 1.0  # of x / (x + j); the term of j = 0 is 1 even at x = 0
    squares = 1.0
    for j in range(1, 10):
        shifted = x + j
        product *= shifted
        ratio = x / shifted
        reciprocals += ratio
        squares += ratio * ratio
    top = x + 10.0
    log_top = math.log(top)
    first, second, third = stirling_series(top)
    log_gamma_top = (top - 0.5) * log_top - top + first  # less log(2 pi) / 2
    first = log_gamma_top - math.log(product) - (x + 0.5) * log_x + x
    second = x * (log_top - log_x + second) - reciprocals
    third = x * x * (1.0 / top + third) + squares - x
    return first, second, third


@helper
def log_gamma(x: float) -> float:
    """log gamma(x) for x > 0.

    Examples
    --------
    >>> round(log_gamma(5.0), 12) == round(math.log(24.0), 12)
    True
    """
    log_x = math.log(x)
    return (x - 0.5) * log_x - x + HALF_LOG_TWO_PI + stirling_rest(x, log_x)[0]


@helper
def digamma(x: float) -> float:
    """The derivative of log gamma at x > 0.

    Examples
    --------
    >>> round(digamma(1.0), 10)
    -0.5772156649
    """
    below = 0.0
    while x < STIRLING:
        below += 1.0 / x
        x += 1.0
    return math.log(x) + stirling_series(x)[1] - below


@helper
def trigamma(x: float) -> float:
    """The second derivative of log gamma at x > 0.

    Examples
    --------
    >>> round(trigamma(1.0), 10) == round(math.pi**2 / 6, 10)
    True
    """
    below = 0.0
    while x < STIRLING:
        below += 1.0 / (x * x)
        x += 1.0
    return 1.0 / x + stirling_series(x)[2] + below


@helper
def rising_far(a: float, y: float) -> tuple[float, float, float]:
    """`rising` by Stirling's series, for a >= 10; y need not be whole.

    Examples
    --------
    >>> [round(v, 10) for v in rising_far(20.0, 2.0)]
    [0.0487901642, -0.0476190476, 0.0453514739]
    """
    x = y / a
    top = a + y
    curved = log1p_minus(x)
    first_top, second_top, third_top = stirling_series(top)
    first, second, third = stirling_series(a)
    drop = a * (second_top - second)
    value = a * curved + (y - 0.5) * math.log1p(x) + first_top - first
    return value, a * curved + drop, a * (curved + x * (y / top)) + drop + a * a * (third_top - third)


@helper
def rising(a: float, log_a: float, y: float) -> tuple[float, float, float]:
    """log(a (a + 1) ... (a + y - 1) / a^y), and its first and second derivatives in log a.

    It is 0 in the limit of large a, to full absolute precision, and finite even where a underflows to 0.

    Parameters
    ----------
    a, log_a : float
        The argument, positive, and its logarithm.
    y : float
        The number of factors, whole.

    Examples
    --------
    >>> value, first, second = rising(2.0, math.log(2.0), 3.0)  # 2 * 3 * 4 / 8
    >>> round(math.exp(value), 12), round(first, 12)
    (3.0, -0.833333333333)
    """
    if y <= 1.5:
        return 0.0, 0.0, 0.0
    if y > FEW and a >= STIRLING:
        return rising_far(a, y)
    factors = y if y <= FEW else 10.0
    product = 1.0
    first = 0.0
    second = 0.0
    scale = 1.0 / a if a > 1.0 else 1.0
    start = 1.0 if a > 1.0 else a
    j = 1.0
    while j < factors - 0.5:
        ratio = j / (a + j)
        product *= start + j * scale
        first -= ratio
        second += ratio * (1.0 - ratio)
        j += 1.0
    value = math.log(product)
    if a <= 1.0:
        value -= (factors - 1.0) * log_a
    if y > FEW:
        top = a + factors
        rest = y - factors
        far, far_first, far_second = rising_far(top, rest)
        share = a / top
        value += far + rest * (math.log(top) - log_a)
        far_first += rest
        first += share * far_first - rest
        second += share * far_first + share * share * (far_second - far_first)
    return value, first, second


@helper
def log_rising(a: float, log_a: float, y: float) -> float:
    """The first value of `rising`.

    Examples
    --------
    >>> round(math.exp(log_rising(2.0, math.log(2.0), 3.0)), 12)
    3.0
    """
    if y <= 1.5:
        return 0.0
    if y > FEW and a >= STIRLING:
        x = y / a
        curved = log1p_minus(x)
        return a * curved + (y - 0.5) * math.log1p(x) + stirling_series(a + y)[0] - stirling_series(a)[0]
    factors = y if y <= FEW else 10.0
    product = 1.0
    scale = 1.0 / a if a > 1.0 else 1.0
    start = 1.0 if a > 1.0 else a
    j = 1.0
    while j < factors - 0.5:
        product *= start + j * scale
        j += 1.0
    value = math.log(product)
    if a <= 1.0:
        value -= (factors - 1.0) * log_a
    if y > FEW:
        top = a + factors
        rest = y - factors
        x = rest / top
        curved = log1p_minus(x)
        far = top * curved + (rest - 0.5) * math.log1p(x) + stirling_series(a + y)[0] - stirling_series(top)[0]
        value += far + rest * (math.log(top) - log_a)
    return value


@helper
def half_step(x: float) -> tuple[float, float]:
    """log gamma(x + 1/2) - log gamma(x) - log(x) / 2, and its derivative in log x; 0 in the limit of large x.

    Examples
    --------
    >>> value, first = half_step(0.5)  # 1 / sqrt(pi) / sqrt(1/2)
    >>> round(math.exp(value), 12) == round(math.sqrt(2.0 / math.pi), 12)
    True
    """
    top = x
    above = 1.0
    below = 1.0
    shift = 0.0  # sum of 1 / ((x + j) (x + j + 1/2)), times the product of the denominators
    product = 1.0
    if x < STIRLING:
        for j in range(10):
            n = x + j
            d = n + 0.5
            above *= n
            below *= d
            shift = shift * (n * d) + product
            product *= n * d
        top = x + 10.0
    r = 1.0 / top
    s = r * r
    value = -r * (
        1 / 8
        - s * (1 / 192 - s * (1 / 640 - s * (17 / 14336 - s * (31 / 18432 - s * (691 / 180224 - s * (5461 / 425984))))))
    )
    first = r * (
        1 / 8
        - s
        * (3 / 192 - s * (5 / 640 - s * (119 / 14336 - s * (279 / 18432 - s * (7601 / 180224 - s * (70993 / 425984))))))
    )
    if x < STIRLING:
        share = x * r
        value += math.log(above / below) + 0.5 * math.log(top / x)
        first = share * first + 0.5 * share - 0.5 + 0.5 * x * (shift / product)
    return value, first


# --------------------------------------------------------------------------------------------------------------------
# The normal distribution
# --------------------------------------------------------------------------------------------------------------------


@helper
def normal_tail(x: float) -> tuple[float, float, float]:
    """log Phi(x), its derivative phi(x) / Phi(x), and that derivative plus x, which is positive.

    The second derivative of log Phi is minus the product of the last two. Accurate however far x is in either tail.

    Examples
    --------
    >>> [round(v, 9) for v in normal_tail(-40.0)]
    [-804.608442014, 40.024968847, 0.024968847]
    """
    if x < TAIL:
        fraction = 0.0
        for k in range(TAIL_TERMS, 0, -1):
            fraction = k / (fraction - x)
        ratio = fraction - x
        return -0.5 * x * x - HALF_LOG_TWO_PI - math.log(ratio), ratio, fraction
    density = INVERSE_SQRT_TWO_PI * math.exp(-0.5 * x * x)
    if x < 0.0:
        below = 0.5 * math.erfc(-x * SQRT_HALF)
        ratio = density / below
        return math.log(below), ratio, ratio + x
    above = 0.5 * math.erfc(x * SQRT_HALF)
    ratio = density / (1.0 - above)
    return math.log1p(-above), ratio, ratio + x


@helper
def log_normal_cdf(x: float) -> float:
    """log Phi(x).

    Examples
    --------
    >>> round(log_normal_cdf(0.0), 12) == round(math.log(0.5), 12)
    True
    """
    return normal_tail(x)[0]
