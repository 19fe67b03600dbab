r"""The integral of a unit's likelihood over a Student-t component, by panels of Gauss-Legendre nodes.

With :math:`A = \nu s^2`, the component's density is :math:`(A + r^2)^{-(\nu + 1) / 2}` up to a constant at distance
r of its location: analytic but for poles at a distance of :math:`\sqrt{A}`, and at most as curved as a normal density.
Panels begin at the location and march outwards, each in proportion to :math:`\sqrt{A + r^2}` and no wider than the
likelihood's own curvature allows, until both functions have fallen; where the likelihood at the location is nothing
beside its peak, they begin short of the peak instead. Below the cliff of a unit without events the likelihood is 1, and
the component's tail is a series in closed form.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.elementary import artanh_rest, exponential
from partialpool.algebra.jit import helper
from partialpool.algebra.special import HALF_LOG_TWO_PI, LARGEST_EXPONENT, half_step
from partialpool.algebra.unitlikelihood import (
    ALL,
    BINOMIAL,
    DROP,
    FLAT,
    NEAR,
    NORMAL_DATA,
    POISSON,
    end_of_likelihood,
    log_likelihood,
    natural,
    relative_logs,
    slope,
)

Array = NDArray[np.float64]

#: Width of a panel: in standard deviations of what is locally a normal density; in distances from the poles; before
#: the cliff of the likelihood, where it is flat.
DEVIATIONS, GROWTH, STEEP = 6.0, 3.5, 4.5
#: Mass, and moments, beyond the last panel: shares that are neglected.
REST, REST_OF_MOMENT = 1e-10, 1e-9
#: Below this log, against what the surroundings of the peak give, the likelihood at the location is left out.
OUTSIDE = 26.0
#: The tail in closed form begins so many times sqrt(A) from the location; for the mean of theta also so far from it.
TAIL_FROM, TAIL_OF_THETA = 3.0, 40.0
#: Sums are rescaled when what is added exceeds their reference by more, on the log scale.
RESCALE = 200.0
MOST_PANELS = 20_000


@helper
def student_constant(spread: float, nu: float) -> float:
    """The log of a Student-t density at its location.

    Examples
    --------
    >>> round(math.exp(student_constant(1.0, 1.0)) * math.pi, 12)
    1.0
    """
    return half_step(0.5 * nu)[0] - HALF_LOG_TWO_PI - math.log(spread)


@helper
def subtract_logs(b: float, pole2: float, centre: float, near: float, far: float, d: Array, out: Array) -> float:
    """Subtract b log((A + r^2) / g) from out at r = d - centre; returns g, the geometric mean of both ends' A + r^2.

    Square roots bring the ratio, from 1/5 to 5, to where the series of artanh is short; no branches, no calls.
    """
    middle = math.sqrt(pole2 + near * near) * math.sqrt(pole2 + far * far)
    inverse = 1.0 / middle
    for i in range(d.shape[0]):
        r = d[i] - centre
        u = math.sqrt(math.sqrt((pole2 + r * r) * inverse))
        s = (u - 1.0) / (u + 1.0)
        z = s * s
        p = artanh_rest(z, 0.0)
        out[i] -= 8.0 * b * (s + s * z * p)
    return middle


@helper
def beginning(
    family: int, want: int, y: float, size: float, place: float, height: float, location: float, pole2: float,
    nu: float, constant: float,
) -> tuple[float, float, bool]:  # fmt: skip
    """Where the panels begin, the peak or the cliff of the likelihood, and whether the location is left out.

    It is left out where the likelihood there is nothing beside a lower bound of the whole integral.
    """
    own = log_likelihood(family, y, size, place, height, location)
    if family == NORMAL_DATA or y > 0.0:
        peak = place
        if family == NORMAL_DATA:
            width = size
        elif family == POISSON:
            width = 1.0 / math.sqrt(y)
        else:
            width = math.sqrt(size / (y * (size - y)))
        distance = abs(location - peak)
    else:
        peak = -math.log(size)
        if location <= peak:
            return location, peak, False
        distance = location - peak
        width = math.sqrt(pole2 + distance * distance) / (nu + 1.0)
    distance += width
    bound = height + constant - 0.5 * (nu + 1.0) * math.log1p(distance * distance / pole2) + math.log(width)
    bound -= OUTSIDE
    if want == ALL:
        bound -= 8.0
        if family != NORMAL_DATA and location > peak:  # theta^2 is larger there
            bound -= 2.0 * (location - peak)
    if own >= bound:
        return location, peak, False
    direction = math.copysign(1.0, location - peak)
    step = width if y > 0.0 or family == NORMAL_DATA else 1.0
    start = end_of_likelihood(family, y, size, place, height, peak, bound + DROP, direction, step, location)
    return start, peak, True


@helper
def panel_of_student(
    family: int, y: float, size: float, log_size: float, x: float, direction: float, widest: float
) -> float:
    """The width of the panel that begins at x, on which the component alone allows `widest`."""
    inverse = 1.0 / (widest * widest)
    share = 1.0 / (DEVIATIONS * DEVIATIONS)
    second = slope(family, y, size, x)[1]
    if family == NORMAL_DATA:
        return 1.0 / math.sqrt(inverse + share * second)
    flat = -(x + log_size)  # so far before the cliff
    most = STEEP + 2.0 * max(flat, 0.0) if direction < 0.0 else max(STEEP, (STEEP + 2.0 * flat) / 3.0)
    width = min(1.0 / math.sqrt(inverse + share * second), most)
    for _ in range(60):  # the likelihood may be steeper farther on
        steepest = x
        if direction > 0.0 and (family == POISSON or x < 0.0):
            steepest = x + width if family == POISSON else min(x + width, 0.0)
        elif family == BINOMIAL and direction < 0.0 and x > 0.0:
            steepest = max(x - width, 0.0)
        if steepest == x:
            break
        allowed = 1.0 / math.sqrt(inverse + share * slope(family, y, size, steepest)[1])
        if width <= 1.0001 * allowed:
            break
        width = max(allowed, 0.7 * width)
    return width


@helper
def add_panel(
    family: int, want: int, at: float, start: float, half: float, shift: float, weights: Array, d: Array, out: Array,
    work: Array, sums: Array,
) -> None:  # fmt: skip
    """Turn out into values, and add them times weights to the sums of 1, e, e^2, theta, theta^2; e from `start`."""
    lanes = d.shape[0]
    for i in range(lanes):
        out[i] = exponential(out[i] + shift)
    total = 0.0
    for i in range(lanes):
        total += out[i] * weights[i]
    sums[0] += half * total
    if want != ALL:
        return
    natural(family, lanes, at, d, work)
    own = start - at
    first, second, theta, square = 0.0, 0.0, 0.0, 0.0
    for i in range(lanes):
        weight = out[i] * weights[i]
        e = d[i] - own
        first += weight * e
        second += weight * e * e
        theta += weight * work[i]
        square += weight * work[i] * work[i]
    sums[1] += half * first
    sums[2] += half * second
    sums[3] += half * theta
    sums[4] += half * square


@helper
def rest_is_negligible(
    family: int, want: int, y: float, size: float, place: float, height: float, x: float, direction: float, r: float,
    pole2: float, nu: float, constant: float, start: float, edge: float, theta: float, reference: float, sums: Array,
) -> bool:  # fmt: skip
    """Whether what is beyond x may be left out; `edge` and `theta` are the integrand and theta there.

    Beyond the likelihood's peak the integrand falls; before it, it stays below the peak times the component.
    """
    scale = math.sqrt(pole2 + r * r) / min(nu, 1.0)
    reach = abs(x - start)
    spread = max(sums[2] - sums[1] * sums[1] / sums[0], 0.0) if want == ALL else 0.0
    rest = edge * scale
    if rest > REST * sums[0] or (want == ALL and rest * reach * reach > REST_OF_MOMENT * spread):
        return False
    component = constant - 0.5 * (nu + 1.0) * math.log1p(r * r / pole2) - reference
    if (x - place) * direction < 0.0:
        rest = scale * math.exp(min(height + component, LARGEST_EXPONENT))
        if rest > REST * sums[0] or (want == ALL and rest * reach * reach > REST_OF_MOMENT * spread):
            return False
    if want == ALL and direction > 0.0 and family != NORMAL_DATA:
        # theta^2 makes a likelihood of two more events
        rest = edge * theta * theta * scale
        if rest > REST_OF_MOMENT * sums[4]:
            return False
        lifted = math.log((y + 2.0) / (size if family == POISSON else size - y))
        if x < lifted:
            theta = math.exp(lifted) if family == POISSON else (y + 2.0) / (size + 2.0)
            value = log_likelihood(family, y, size, place, height, lifted) + 2.0 * math.log(theta)
            if scale * math.exp(min(value + component, LARGEST_EXPONENT)) > REST_OF_MOMENT * sums[4]:
                return False
    return True


@helper
def tail_series(nu: float, w: float) -> float:
    """r^-1 nu times the integral of the density beyond r, over its value there, for w = A / (A + r^2)."""
    a = 0.5 * nu
    term, total = 1.0, 1.0
    for k in range(200):
        term *= w * (a + 0.5 + k) / (a + 1.0 + k)
        total += term
        if term < 1e-16 * total:
            break
    return total


@helper
def add_tail(
    want: int, x: float, location: float, pole2: float, nu: float, constant: float, start: float, reference: float,
    sums: Array,
) -> None:  # fmt: skip
    """Add the component below x, where the likelihood is 1; theta is 0 there."""
    r = location - x
    density = math.exp(constant - 0.5 * (nu + 1.0) * math.log1p(r * r / pole2) - reference)
    whole = pole2 + r * r
    w = pole2 / whole
    mass = density * (r / nu) * tail_series(nu, w)
    sums[0] += mass
    own = location - start
    if want == ALL and nu > 1.0:
        first = density * whole / (nu - 1.0)
        sums[1] += own * mass - first
        second = first * first / mass  # of one point, where it is infinite: not used but to compare others with
        if nu > 2.0:
            second = whole * density * (r / (nu - 2.0)) * tail_series(nu - 2.0, w) - pole2 * mass
        sums[2] += own * own * mass - 2.0 * own * first + second


@helper
def march_out(
    family: int, want: int, y: float, size: float, place: float, height: float, location: float, pole2: float,
    nu: float, constant: float, start: float, direction: float, reference: float, x: Array, weights: Array, d: Array,
    out: Array, work: Array, sums: Array,
) -> float:  # fmt: skip
    """Add panels from `start` on in one direction, until the rest is negligible; returns the sums' reference."""
    b = 0.5 * (nu + 1.0)
    growth = min(GROWTH, DEVIATIONS / math.sqrt(nu + 1.0))
    lanes = d.shape[0]
    log_size = math.log(size) if family != NORMAL_DATA else 0.0
    endless = family != NORMAL_DATA and not y > 0.0
    # Relative to the peak, or where no event is expected
    at = math.log(FLAT) - log_size if endless else place
    first, second, level = slope(family, y, size, at)
    base = log_likelihood(family, y, size, place, height, at) + constant
    quadratic = 0.5 * second if family == NORMAL_DATA else 0.0
    end = direction * math.inf
    if endless and direction < 0.0:
        far = TAIL_FROM * math.sqrt(pole2)
        end = min(at, location - (max(far, TAIL_OF_THETA) if want == ALL else far))
    here = start
    for _ in range(MOST_PANELS):
        near = abs(here - location)
        width = panel_of_student(family, y, size, log_size, here, direction, growth * math.sqrt(pole2 + near * near))
        width = min(width, abs(end - here))
        following = here + direction * width
        middle, half = (here - at) + 0.5 * direction * width, 0.5 * width
        for i in range(lanes):
            d[i] = middle + half * x[i]
        close = abs(middle) + half <= NEAR
        relative_logs(family, size, at, level, first, quadratic, close, lanes, d, out)
        r = abs(following - location)
        scale = subtract_logs(b, pole2, location - at, near, r, d, out)
        own = base - b * math.log(scale / pole2)
        top = max(out[0], out[lanes - 1]) + own
        if top > reference + RESCALE:
            factor = math.exp(reference - top)
            for k in range(5):
                sums[k] *= factor
            reference = top
        add_panel(family, want, at, start, half, own - reference, weights, d, out, work, sums)
        here = following
        if here == end:
            add_tail(want, here, location, pole2, nu, constant, start, reference, sums)
            break
        edge = lanes - 1 if direction > 0.0 else 0
        if rest_is_negligible(
            family, want, y, size, place, height, here, direction, r, pole2, nu, constant, start, out[edge],
            work[edge], reference, sums,
        ):  # fmt: skip
            break
    return reference


@helper
def student_component(
    family: int, want: int, y: float, size: float, place: float, height: float, location: float, spread: float,
    nu: float, constant: float, x: Array, weights: Array, d: Array, out: Array, work: Array, sums: Array,
    result: Array,
) -> None:  # fmt: skip
    """Write the log integral, and the moments, of a Student-t component; `constant` is `student_constant`."""
    pole2 = nu * spread * spread
    start, peak, left_out = beginning(family, want, y, size, place, height, location, pole2, nu, constant)
    for k in range(5):
        sums[k] = 0.0
    reference = -math.inf
    towards = 1.0 if start <= peak else -1.0
    for side in range(1 if left_out else 2):
        direction = towards if side == 0 else -towards
        reference = march_out(
            family, want, y, size, place, height, location, pole2, nu, constant, start, direction, reference, x,
            weights, d, out, work, sums,
        )  # fmt: skip
    result[0] = reference + math.log(sums[0])
    if want == ALL:
        shift = sums[1] / sums[0]
        result[1] = start + shift
        result[2] = max(sums[2] / sums[0] - shift * shift, 0.0)
        result[3] = sums[3] / sums[0]
        result[4] = sums[4] / sums[0]
        if family != NORMAL_DATA and not y > 0.0:  # nothing but the component bounds eta from below
            if nu <= 2.0:
                result[2] = math.inf
            if nu <= 1.0:
                result[1] = -math.inf
