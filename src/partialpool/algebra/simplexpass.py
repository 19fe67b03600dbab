"""Kernels of the non-parametric mixture: units' densities at points, and the slope of the likelihood towards a point.

family is 0 (normal: y an estimate, size its standard error), 1 (binomial: events, trials) or 2 (Poisson: counts,
exposures). A place is the mean, the probability or the rate. raw is the place of a unit's largest density, whose log is
its peak. All densities are taken as the peak less the drop to the place, so that large counts lose no digits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.elementary import exponential
from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.special import log1p_minus, stirling_series

Array = NDArray[np.float64]

NORMAL, BINOMIAL = 0, 1
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
#: From this size on, the log of a place is no longer precise enough, and the drop is summed from differences.
LARGE = 1e5
#: exp of less than this adds nothing to a sum over the units; exp of more than the other is not taken.
LEAST, MOST = -60.0, 600.0


@helper
def stirling_error(x: float) -> float:
    """log x! less (x + 1/2) log x - x + log(2 pi) / 2, for x > 0.

    Examples
    --------
    >>> round(stirling_error(1.0), 10), round(stirling_error(50.0), 10)
    (0.0810614668, 0.0016666444)
    """
    if x >= 10.0:
        return stirling_series(x)[0]
    return math.lgamma(x + 1.0) - (x + 0.5) * math.log(x) + x - HALF_LOG_TWO_PI


@helper
def peak_log_density(family: int, y: float, size: float) -> float:
    """The log density of a unit at its own raw estimate.

    Examples
    --------
    >>> round(math.exp(peak_log_density(1, 1.0, 2.0)), 12), peak_log_density(2, 0.0, 3.0)
    (0.5, 0.0)
    """
    if family == NORMAL:
        return -math.log(size) - HALF_LOG_TWO_PI
    if y <= 0.0:
        return 0.0
    if family == BINOMIAL:
        rest = size - y
        if rest <= 0.0:
            return 0.0
        spread = 0.5 * math.log(size / y / rest) - HALF_LOG_TWO_PI
        return spread + stirling_error(size) - stirling_error(y) - stirling_error(rest)
    return -0.5 * math.log(y) - HALF_LOG_TWO_PI - stirling_error(y)


@helper
def own_sum(family: int, y: float, size: float, raw: float) -> float:
    """The part of a unit's log density at its own raw estimate that depends on the place; 0 for normal units.

    Examples
    --------
    >>> round(own_sum(1, 1.0, 2.0, 0.5), 12) == round(2.0 * math.log(0.5), 12)
    True
    """
    total = 0.0
    if family != NORMAL and y > 0.0:
        total += y * math.log(raw)
    if family == BINOMIAL and size > y:
        total += (size - y) * math.log1p(-raw)
    if family > BINOMIAL:
        total -= size * raw
    return total


@helper
def log_drop(
    family: int, y: float, size: float, raw: float, own: float, place: float, log_place: float, log_rest: float
) -> float:
    """log density at a place less that at the unit's own raw estimate: 0 or negative.

    Parameters
    ----------
    family, y, size, raw, place
        See the module.
    own : float
        `own_sum` of the unit.
    log_place, log_rest : float
        log of the place and, for binomial units, of 1 less the place.

    Examples
    --------
    >>> log_drop(0, 1.0, 0.5, 1.0, 0.0, 2.0, 0.0, 0.0)
    -2.0
    >>> own = own_sum(1, 1.0, 2.0, 0.5)
    >>> round(math.exp(log_drop(1, 1.0, 2.0, 0.5, own, 0.25, math.log(0.25), math.log(0.75))), 12)  # 0.375 / 0.5
    0.75
    """
    if family == NORMAL:
        z = (y - place) / size
        return -0.5 * z * z
    if family == BINOMIAL:
        rest = size - y
        if y <= 0.0:
            return rest * log_rest
        if rest <= 0.0:
            return y * log_place
        if size < LARGE or place <= 0.0 or place >= 1.0:
            return y * log_place + rest * log_rest - own
        return y * log1p_minus((place - raw) / raw) + rest * log1p_minus((raw - place) / (1.0 - raw))
    if y <= 0.0:
        return -size * place
    if y < LARGE or place <= 0.0:
        return y * log_place - size * place - own
    return y * log1p_minus((place - raw) / raw)


@helper
def logs_of(family: int, place: float) -> tuple[float, float]:
    """log of a place and of 1 less it; 0 where the family does not need them.

    Examples
    --------
    >>> logs_of(1, 1.0), logs_of(0, -3.0)
    ((0.0, -inf), (0.0, 0.0))
    """
    if family == NORMAL:
        return 0.0, 0.0
    log_place = math.log(place) if place > 0.0 else -math.inf
    if family != BINOMIAL:
        return log_place, 0.0
    return log_place, math.log1p(-place) if place < 1.0 else -math.inf


@helper
def score(family: int, y: float, size: float, place: float) -> tuple[float, float]:
    """The first and second derivatives in the place of a unit's log density, inside the places' range.

    Examples
    --------
    >>> score(2, 3.0, 2.0, 1.0)
    (1.0, -3.0)
    """
    if family == NORMAL:
        return (y - place) / (size * size), -1.0 / (size * size)
    if family == BINOMIAL:
        rest = 1.0 - place
        return (y - size * place) / (place * rest), -y / (place * place) - (size - y) / (rest * rest)
    return y / place - size, -y / (place * place)


@helper
def slope_at_end(family: int, y: float, size: float, place: float) -> float:
    """The derivative of a unit's density at place 0 or 1, where it is 1, or 0 with a limit.

    Examples
    --------
    >>> slope_at_end(1, 0.0, 5.0, 0.0), slope_at_end(1, 4.0, 5.0, 1.0), slope_at_end(2, 2.0, 5.0, 0.0)
    (-5.0, -5.0, 0.0)
    """
    away = size - y if family == BINOMIAL and place >= 1.0 else y
    sign = -1.0 if family == BINOMIAL and place >= 1.0 else 1.0
    if away == 0.0:
        return -sign * size
    return sign * size if away == 1.0 else 0.0


# --------------------------------------------------------------------------------------------------------------------
# Kernels
# --------------------------------------------------------------------------------------------------------------------


@kernel("void(int64, float64[::1], float64[::1], float64[:,::1])")
def prepare_units(family: int, y: Array, size: Array, out: Array) -> None:
    """Write raw estimates, peaks and own sums of the units to out (3, J)."""
    for j in range(y.shape[0]):
        raw = y[j] if family == NORMAL else y[j] / size[j]
        out[0, j] = raw
        out[1, j] = peak_log_density(family, y[j], size[j])
        out[2, j] = own_sum(family, y[j], size[j], raw)


@kernel("void(int64, float64[::1], float64[::1], float64[:,::1], float64[::1], float64[:,::1])")
def log_densities(family: int, y: Array, size: Array, prepared: Array, places: Array, out: Array) -> None:
    """Write the log density of each unit at each place to out (C, J)."""
    for c in range(places.shape[0]):
        place = places[c]
        log_place, log_rest = logs_of(family, place)
        for j in range(y.shape[0]):
            drop = log_drop(family, y[j], size[j], prepared[0, j], prepared[2, j], place, log_place, log_rest)
            out[c, j] = prepared[1, j] + drop


@kernel("void(int64, float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1], float64[:,::1])")
def mixture_slope(
    family: int, y: Array, size: Array, prepared: Array, offset: Array, places: Array, out: Array
) -> None:
    """Write D(place) = sum_j exp(offset_j + drop_j(place)) and its first two derivatives in the place to out (T, 3).

    At the ends of the range of rates and probabilities the second derivative is left at 0.
    """
    for t in range(places.shape[0]):
        place = places[t]
        log_place, log_rest = logs_of(family, place)
        end = (family != NORMAL and place <= 0.0) or (family == BINOMIAL and place >= 1.0)
        value = 0.0
        first = 0.0
        second = 0.0
        for j in range(y.shape[0]):
            drop = log_drop(family, y[j], size[j], prepared[0, j], prepared[2, j], place, log_place, log_rest)
            power = offset[j] + drop
            if end:
                # The units whose density vanishes here may still have a slope: their log density at the end is that of
                # a certain outcome, 0, so that only what the offset holds besides the peak is left.
                rate = slope_at_end(family, y[j], size[j], place)
                if rate != 0.0:
                    first += rate * math.exp(min(offset[j] - prepared[1, j], MOST))
                if power > LEAST:
                    value += math.exp(min(power, MOST))
            elif power > LEAST:
                density = math.exp(min(power, MOST))
                slope, curvature = score(family, y[j], size[j], place)
                value += density
                first += density * slope
                second += density * (slope * slope + curvature)
        out[t, 0] = value
        out[t, 1] = first
        out[t, 2] = second


@kernel(
    "void(int64, float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1])",
    fastmath={"reassoc", "contract"},
)
def quick_slope(family: int, y: Array, size: Array, base: Array, places: Array, out: Array) -> None:
    """As `mixture_slope`, without the second derivative and in vector instructions, to some 11 digits: out (T, 2).

    base is the offset less the own sum; for normal units, size is 1 / se. Places are inside the range, sizes and counts
    below LARGE.
    """
    for t in range(places.shape[0]):
        place = places[t]
        value = 0.0
        first = 0.0
        if family == NORMAL:
            for j in range(y.shape[0]):
                z = (y[j] - place) * size[j]
                density = exponential(min(base[j] - 0.5 * z * z, MOST))
                value += density
                first += density * z * size[j]
            out[t, 0] = value
            out[t, 1] = first
            continue
        # log density = base + y log_odds - size cost; both of these families have this form
        if family == BINOMIAL:
            cost = -math.log1p(-place)
            log_odds = math.log(place) + cost
            per_y, per_size = 1.0 / (place * (1.0 - place)), 1.0 / (1.0 - place)
        else:
            cost = place
            log_odds = math.log(place)
            per_y, per_size = 1.0 / place, 1.0
        for j in range(y.shape[0]):
            density = exponential(min(base[j] + y[j] * log_odds - size[j] * cost, MOST))
            value += density
            first += density * (y[j] * per_y - size[j] * per_size)
        out[t, 0] = value
        out[t, 1] = first


@kernel("void(int64, float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1], float64[::1])")
def log_mixture_drops(
    family: int, y: Array, size: Array, prepared: Array, places: Array, log_weights: Array, out: Array
) -> None:
    """Write log sum_c weight_c f_cj, less the unit's peak, to out (J,)."""
    count = places.shape[0]
    logs = np.empty((2, count))
    work = np.empty(count)
    for c in range(count):
        logs[0, c], logs[1, c] = logs_of(family, places[c])
    for j in range(y.shape[0]):
        largest = -math.inf
        for c in range(count):
            drop = log_drop(family, y[j], size[j], prepared[0, j], prepared[2, j], places[c], logs[0, c], logs[1, c])
            work[c] = log_weights[c] + drop
            largest = max(largest, work[c])
        total = 0.0
        if largest > -math.inf:
            for c in range(count):
                total += math.exp(work[c] - largest)
        out[j] = largest + math.log(total) if total > 0.0 else -math.inf
