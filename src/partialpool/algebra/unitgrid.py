r"""The posterior of one unit under a mixture of components, on panels of the link scale made for it.

Given the components' log integrals and moments (`algebra.unitpass`), the posterior of eta is

.. math:: p(\eta \mid y) = \sum_c \omega_c \, f(y \mid \eta)\, p_c(\eta)\, e^{-L_c}.

Its density is kept at Gauss-Legendre nodes of panels that are as narrow as the narrowest component of weight there;
within a panel it is the polynomial through its nodes. Two kinds of components are kept apart:

- points are atoms;
- components whose posterior is far narrower than the whole (a twentieth for normal ones, a thousandth for others) would
  take panels of their own: they enter as normal distributions with their exact mean and variance. What that neglects is
  their skewness, which moves the cumulative by less than 1e-5 where such a component has weight 1/100.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.elementary import exponential
from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.special import HALF_LOG_TWO_PI, INVERSE_SQRT_TWO_PI, SQRT_HALF, log_gamma
from partialpool.algebra.unitlikelihood import BINOMIAL, NORMAL_DATA, log_likelihood, slope, unit_peak
from partialpool.algebra.unitpass import NORMAL, NORMAL_FROM, POINT, UNIFORM

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What a pass computes.
QUANTILES, CDF, DRAWS = 0, 1, 2
#: Nodes a panel.
NODES = 8
#: Width of a panel: share of a component's standard deviation at its centre, and its growth with the distance.
CENTRAL, GROWTH = 0.9, 0.3
#: Panels at most, but for those that end where a uniform component does; the narrowest, as a share of the whole's sd.
MOST_PANELS, FINEST = 600, 1e-3
#: Components of less weight make no panels; those of less still are left out.
HEAVY, LIGHT = 1e-7, 1e-12
#: Posterior sd, as a share of the whole's, below which a component enters as a normal distribution.
NARROW, NARROW_OTHER = 0.05, 1e-3
#: Log density, against a component's height, where the panels end.
END = -30.0
#: Standard deviations from its posterior mean, beyond which a normal component has nothing; where skewed, the same.
REACH, REACH_SKEWED = 7.5, 25.0
#: Atoms within this of a point are at it.
SAME = 1e-12

PART_OF_GRID, SMOOTH, ATOM = 0, 1, 2


@helper
def own_log(family, reflected, y, size, place, height, eta):
    """log f(y | eta); for a reflected unit y and the place are those of the failures."""
    return log_likelihood(family, y, size, place, height, -eta if reflected else eta)


@helper
def log_component(kind, location, spread, nu, constant, eta):
    """Log density of a component at eta; `constant` is that of `log_constant`."""
    z = (eta - location) / spread
    if kind == UNIFORM:
        return constant if abs(z) <= 1.0 else -math.inf
    if kind == NORMAL or nu > NORMAL_FROM:
        return constant - 0.5 * z * z
    return constant - 0.5 * (nu + 1.0) * math.log1p(z * z / nu)


@helper
def log_constant(kind, spread, nu):
    """The log of a component's normalising constant."""
    if kind == UNIFORM:
        return -math.log(2.0 * spread)
    if kind == NORMAL or nu > NORMAL_FROM:
        return -math.log(spread) - HALF_LOG_TWO_PI
    return log_gamma(0.5 * nu + 0.5) - log_gamma(0.5 * nu) - 0.5 * math.log(nu * math.pi) - math.log(spread)


@helper
def classify(kind, spread, omega, mean, sd, role):
    """Write the role of each component: atom, normal distribution, or part of the grid; returns the whole's sd."""
    count = kind.shape[0]
    total, first, second = 0.0, 0.0, 0.0
    for c in range(count):
        if spread[c] > POINT and math.isfinite(mean[c]):
            total += omega[c]
            first += omega[c] * mean[c]
    centre = first / total if total > 0.0 else 0.0
    for c in range(count):
        if spread[c] > POINT and math.isfinite(mean[c]):
            own = min(sd[c], 20.0 * spread[c])
            second += omega[c] * (own * own + (mean[c] - centre) * (mean[c] - centre))
    whole = math.sqrt(second / total) if total > 0.0 else 0.0
    for c in range(count):
        role[c] = PART_OF_GRID
        if not spread[c] > POINT:
            role[c] = ATOM
        elif sd[c] < (NARROW if kind[c] == NORMAL else NARROW_OTHER) * whole:
            role[c] = SMOOTH
    return whole


@helper
def grid_ends(
    family, reflected, y, size, place, height, kind, location, spread, nu, constant, omega, logs, mean, sd, role
):
    """The ends of the grid: beyond them no component of weight has any mass."""
    low, high = math.inf, -math.inf
    for c in range(kind.shape[0]):
        if role[c] != PART_OF_GRID or omega[c] < LIGHT:
            continue
        own = min(sd[c], 20.0 * spread[c])
        centre = mean[c] if math.isfinite(mean[c]) else location[c]
        for side in range(2):
            direction = 2.0 * side - 1.0
            x = max(high, centre + 3.0 * own) if side == 1 else min(low, centre - 3.0 * own)
            step = own
            limit = location[c] + direction * spread[c] if kind[c] == UNIFORM else direction * math.inf
            bar = END - math.log(own)
            for _ in range(400):
                if (x - limit) * direction >= 0.0:
                    x = limit
                    break
                value = own_log(family, reflected, y, size, place, height, x) - logs[c]
                value += log_component(kind[c], location[c], spread[c], nu[c], constant[c], x)
                if value + math.log(omega[c]) < bar - math.log(step / own):
                    break
                x += direction * step
                step *= 1.3
            if side == 1:
                high = max(high, x)
            else:
                low = min(low, x)
    return low, high


@helper
def gather_scales(kind, location, spread, omega, mean, sd, role, centres, scales):
    """Write the places and scales that panels respect; returns their number, and whether any has heavy tails."""
    count, heavy_tails = 0, False
    for c in range(kind.shape[0]):
        if role[c] != PART_OF_GRID or omega[c] < HEAVY:
            continue
        if math.isfinite(mean[c]) and sd[c] < 20.0 * spread[c]:
            centres[count], scales[count] = mean[c], CENTRAL * sd[c]
            count += 1
        if kind[c] > UNIFORM:
            heavy_tails = True
            centres[count], scales[count] = location[c], CENTRAL * spread[c]
            count += 1
    return count, heavy_tails


@helper
def panel_width(family, reflected, y, size, heavy_tails, count, centres, scales, x):
    """How wide a panel that begins at x may be."""
    width = math.inf
    for i in range(count):
        width = min(width, scales[i] + GROWTH * abs(x - centres[i]))
    if family == NORMAL_DATA:
        if heavy_tails:
            width = min(width, CENTRAL * size + GROWTH * abs(x - y))
        return width
    eta = -x if reflected else x
    second = slope(family, y, size, eta)[1]
    # A cliff has a width of one; far before it, where nothing is expected, there is nothing to see
    expected = eta + math.log(size)
    if reflected and y == 0.0:
        # The cliff comes first, from the left
        return min(width, max(1.0, 0.3 * (-expected)) if second < 1e-3 else 1.2 / math.sqrt(max(second, 1.0)))
    return min(width, 1.2 / math.sqrt(max(second, 1.0)) + max(0.0, -expected - 3.0))


@helper
def make_panels(
    family, reflected, y, size, kind, location, spread, omega, mean, sd, role, low, high, whole, ends, centres, scales,
    breaks,
):  # fmt: skip
    """Write the ends of the panels; returns their number."""
    marks = 0  # ends of uniform components: no panel crosses one
    for c in range(kind.shape[0]):
        if role[c] == PART_OF_GRID and kind[c] == UNIFORM and omega[c] >= 1e-9:
            for side in range(2):
                mark = location[c] + (2.0 * side - 1.0) * spread[c]
                if low < mark < high:
                    i = marks
                    while i > 0 and ends[i - 1] > mark:
                        ends[i] = ends[i - 1]
                        i -= 1
                    ends[i] = mark
                    marks += 1
    scale_count, heavy_tails = gather_scales(kind, location, spread, omega, mean, sd, role, centres, scales)
    floor = FINEST * whole
    while True:
        count = march(
            family, reflected, y, size, heavy_tails, scale_count, centres, scales, low, high, floor, ends, marks, breaks
        )
        if breaks[count] >= high:
            return count
        floor *= 4.0  # too many: coarser, until they reach the end


@helper
def march(family, reflected, y, size, heavy_tails, scale_count, centres, scales, low, high, floor, ends, marks, breaks):
    """Panels from the low end on, none narrower than `floor`; returns how many, which may not reach the high end."""
    x = low
    breaks[0] = low
    count, mark = 0, 0
    while x < high and count < breaks.shape[0] - 1:
        while mark < marks and ends[mark] <= x + 1e-3 * floor:
            mark += 1
        limit = ends[mark] if mark < marks else high
        width = max(panel_width(family, reflected, y, size, heavy_tails, scale_count, centres, scales, x), floor)
        left = limit - x
        if width >= left:
            x = limit
        else:
            x += left / math.ceil(left / width) if left < 4.0 * width else width
        count += 1
        breaks[count] = x
    return count


@helper
def first_above(eta, count, x):
    """The first of the sorted nodes that is not below x."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if eta[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


@helper
def add_component(kind, location, spread, nu, shift, centre, reach, top, count, eta, log_f, relative, values):
    """Add a component's part of the density at the nodes; `shift` takes all its constants.

    A normal component has nothing beyond `reach` of its posterior centre. `relative` is exp(log_f - top).
    Slices, and loops that begin at 0: an index that might be negative keeps a loop from becoming vector instructions.
    """
    inverse = 1.0 / spread
    first, last = 0, count
    if kind == UNIFORM:
        first, last = first_above(eta, count, location - spread), first_above(eta, count, location + spread)
    elif kind == NORMAL or nu > NORMAL_FROM:
        first, last = first_above(eta, count, centre - reach), first_above(eta, count, centre + reach)
    own_eta, own_f, own_values, own_relative = (
        eta[first:last],
        log_f[first:last],
        values[first:last],
        relative[first:last],
    )
    length = own_eta.shape[0]
    if kind == UNIFORM:
        if shift + top < 600.0:
            factor = math.exp(shift + top)
            for i in range(length):
                own_values[i] += factor * own_relative[i]
        else:
            for i in range(length):
                own_values[i] += exponential(own_f[i] + shift)
    elif kind == NORMAL or nu > NORMAL_FROM:
        for i in range(length):
            z = (own_eta[i] - location) * inverse
            own_values[i] += exponential(own_f[i] + shift - 0.5 * z * z)
    else:
        for i in range(length):
            z = (own_eta[i] - location) * inverse
            own_values[i] += exponential(own_f[i] + shift - 0.5 * (nu + 1.0) * math.log1p(z * z / nu))


@helper
def panel_part(values, first, half, t, project, coefficients):
    """Integral of the density from the panel's start to t in [-1, 1], and the density at t."""
    for k in range(NODES):
        total = 0.0
        for i in range(NODES):
            total += project[k, i] * values[first + i]
        coefficients[k] = total
    return _from_coefficients(half, t, coefficients)


@helper
def _from_coefficients(half, t, coefficients):
    before, own = 1.0, t
    integral = coefficients[0] * (1.0 + t)
    density = coefficients[0]
    for k in range(1, NODES):
        following = ((2 * k + 1) * t * own - k * before) / (k + 1)
        density += coefficients[k] * own
        integral += coefficients[k] * (following - before) / (2 * k + 1)
        before, own = own, following
    return half * integral, max(density, 0.0)


@helper
def panel_of(breaks, panels, x):
    """The panel that holds x, of `panels` with these ends (or with these cumulative masses)."""
    low, high = 0, panels - 1
    while low < high:
        middle = (low + high) // 2
        if x >= breaks[middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low


@helper
def cumulative(x, begin, end, panels, breaks, values, masses, location, omega, mean, sd, role, project, coefficients):
    """P(eta <= x) of one group of components, and its density without atoms."""
    total, density = 0.0, 0.0
    if panels > 0 and x > breaks[0]:
        if x >= breaks[panels]:
            total = masses[panels]
        else:
            p = panel_of(breaks, panels, x)
            half = 0.5 * (breaks[p + 1] - breaks[p])
            t = (x - breaks[p]) / half - 1.0
            part, density = panel_part(values, p * NODES, half, t, project, coefficients)
            total = masses[p] + min(max(part, 0.0), masses[p + 1] - masses[p])
    for c in range(begin, end):
        if role[c] == ATOM:
            if location[c] == x or location[c] <= x + SAME * (1.0 + abs(x)):
                total += omega[c]
        elif role[c] == SMOOTH:
            z = (x - mean[c]) / sd[c]
            total += 0.5 * omega[c] * math.erfc(-z * SQRT_HALF)
            density += omega[c] * INVERSE_SQRT_TWO_PI * math.exp(-0.5 * z * z) / sd[c]
    return total, density


@helper
def quantile(
    p, low, high, scale, atoms, n_atoms, begin, end, panels, breaks, values, masses, location, omega, mean, sd, role,
    project, coefficients,
):  # fmt: skip
    """The least x with P(eta <= x) >= p, between low and high; `atoms` are sorted places."""
    first, last = 0, n_atoms
    while first < last:  # the first atom at or above the quantile
        middle = (first + last) // 2
        value = cumulative(
            atoms[middle], begin, end, panels, breaks, values, masses, location, omega, mean, sd, role, project,
            coefficients,
        )[0]  # fmt: skip
        if value >= p:
            last = middle
        else:
            first = middle + 1
    if first < n_atoms:
        place = atoms[first]
        value = cumulative(
            place, begin, end, panels, breaks, values, masses, location, omega, mean, sd, role, project, coefficients
        )[0]
        for c in range(begin, end):
            if role[c] == ATOM and (location[c] == place or abs(location[c] - place) <= SAME * (1.0 + abs(place))):
                value -= omega[c]
        if value < p:
            return place
        high = min(high, place)
    if first > 0:
        low = max(low, atoms[first - 1])
    bottom, top = 0, panels
    while bottom < top:  # the first break at or above it
        middle = (bottom + top) // 2
        value = cumulative(
            breaks[middle], begin, end, panels, breaks, values, masses, location, omega, mean, sd, role, project,
            coefficients,
        )[0]  # fmt: skip
        if value >= p:
            top = middle
            high = min(high, breaks[middle])
        else:
            bottom = middle + 1
            low = max(low, breaks[middle])
    x = 0.5 * (low + high)
    for _ in range(200):
        value, density = cumulative(
            x, begin, end, panels, breaks, values, masses, location, omega, mean, sd, role, project, coefficients
        )
        error = value - p
        if error >= 0.0:
            high = x
        else:
            low = x
        following = x - error / density if density > 0.0 else math.inf
        newton = low <= following <= high
        if not newton:
            following = 0.5 * (low + high)
        step = abs(following - x)
        x = following
        if (newton and step <= 1e-8 * scale) or high - low <= 1e-9 * scale:
            break
    return x


@helper
def draw_one(
    u, normal, begin, end, panels, breaks, values, masses, location, omega, mean, sd, role, project, coefficients
):  # fmt: skip
    """One draw from a group of components: u is uniform, `normal` standard normal."""
    total = masses[panels] if panels > 0 else 0.0
    other = 0.0
    for c in range(begin, end):
        if role[c] != PART_OF_GRID:
            other += omega[c]
    u *= total + other
    if u < total:
        low = panel_of(masses, panels, u)
        half = 0.5 * (breaks[low + 1] - breaks[low])
        target = u - masses[low]
        own = masses[low + 1] - masses[low]
        bottom, top = -1.0, 1.0
        t = 2.0 * target / own - 1.0 if own > 0.0 else 0.0
        part, density = panel_part(values, low * NODES, half, t, project, coefficients)
        for _ in range(60):
            if part >= target:
                top = t
            else:
                bottom = t
            following = t - (part - target) / (density * half) if density > 0.0 else 2.0
            if not bottom < following < top:
                following = 0.5 * (bottom + top)
            step = abs(following - t)
            t = following
            if step < 1e-7:
                break
            part, density = _from_coefficients(half, t, coefficients)
        return breaks[low] + half * (1.0 + t)
    u -= total
    chosen = -1
    for c in range(begin, end):
        if role[c] != PART_OF_GRID and omega[c] > 0.0:
            chosen = c
            u -= omega[c]
            if u < 0.0:
                break
    if chosen < 0:
        return breaks[panels]
    if role[chosen] == ATOM:
        return location[chosen]
    return mean[chosen] + sd[chosen] * normal


@helper
def sorted_atoms(location, omega, role, atoms):
    """Write the places of the atoms in order, each once; returns their number."""
    count = 0
    for c in range(location.shape[0]):
        if role[c] != ATOM or not omega[c] > 0.0:
            continue
        i = count
        while i > 0 and atoms[i - 1] > location[c]:
            i -= 1
        if i > 0 and atoms[i - 1] == location[c]:
            continue
        for k in range(count, i, -1):
            atoms[k] = atoms[k - 1]
        atoms[i] = location[c]
        count += 1
    return count


@kernel(
    "void(int64, int64, float64[::1], float64[::1], int64[::1], float64[:,::1], float64[::1], float64[::1],"
    "int64[::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[::1], float64[::1],"
    "float64[:,::1], float64[:,::1], int64[::1], float64[:,::1], float64[:,::1])"
)
def grid_pass(
    task: int, family: int, y: Array, size: Array, kind: Ints, location: Array, spread: Array, nu: Array,
    pointer: Ints, omega: Array, logs: Array, mean: Array, sd: Array, x: Array, weights: Array, project: Array,
    asked: Array, group: Ints, normals: Array, out: Array,
) -> None:  # fmt: skip
    """Quantiles, cumulative probabilities, or draws of eta for each unit; see `pooling.grid`.

    location, omega, logs, mean, sd (J, C): of the components, which lie in groups pointer[g]..pointer[g + 1].
    asked (J, A): probabilities, places, or uniform numbers; group (A,): each one's group; normals (J, A) for draws.
    Writes out (J, A).
    """
    count = kind.shape[0]
    groups = pointer.shape[0] - 1
    most = MOST_PANELS + 8
    for c in range(count):
        if kind[c] == UNIFORM:
            most += 2
    breaks, ends, atoms = np.empty(most + 1), np.empty(2 * count + 1), np.empty(count + 1)
    centres, scales = np.empty(2 * count), np.empty(2 * count)
    eta, log_f = np.empty(most * NODES), np.empty(most * NODES)
    relative = np.empty(most * NODES)
    reach = REACH if family == NORMAL_DATA else REACH_SKEWED
    values, masses = np.empty((groups, most * NODES)), np.empty((groups, most + 1))
    role, constant, coefficients = np.empty(count, dtype=np.int64), np.empty(count), np.empty(NODES)
    for c in range(count):
        constant[c] = log_constant(kind[c], spread[c], nu[c]) if spread[c] > POINT else 0.0
    for j in range(y.shape[0]):
        reflected = family == BINOMIAL and y[j] > 0.5 * size[j]
        own = size[j] - y[j] if reflected else y[j]
        place, height = unit_peak(family, own, size[j])
        whole = classify(kind, spread, omega[j], mean[j], sd[j], role)
        low, high = grid_ends(
            family, reflected, own, size[j], place, height, kind, location[j], spread, nu, constant, omega[j], logs[j],
            mean[j], sd[j], role,
        )  # fmt: skip
        panels = 0
        if low < high:
            panels = make_panels(
                family, reflected, own, size[j], kind, location[j], spread, omega[j], mean[j], sd[j], role, low, high,
                whole, ends, centres, scales, breaks,
            )  # fmt: skip
        for p in range(panels):
            middle, half = 0.5 * (breaks[p] + breaks[p + 1]), 0.5 * (breaks[p + 1] - breaks[p])
            for i in range(NODES):
                eta[p * NODES + i] = middle + half * x[i]
                log_f[p * NODES + i] = own_log(family, reflected, own, size[j], place, height, eta[p * NODES + i])
        top_of_f = -math.inf
        for i in range(panels * NODES):
            top_of_f = max(top_of_f, log_f[i])
        for i in range(panels * NODES):
            relative[i] = exponential(log_f[i] - top_of_f)
        for g in range(groups):
            row = values[g]
            for i in range(panels * NODES):
                row[i] = 0.0
            expected = 0.0
            for c in range(pointer[g], pointer[g + 1]):
                if role[c] == PART_OF_GRID and omega[j, c] > LIGHT:
                    expected += omega[j, c]
                    shift = constant[c] + math.log(omega[j, c]) - logs[j, c]
                    add_component(
                        kind[c], location[j, c], spread[c], nu[c], shift, mean[j, c], reach * sd[j, c], top_of_f,
                        panels * NODES, eta, log_f, relative, row,
                    )  # fmt: skip
            masses[g, 0] = 0.0
            for p in range(panels):
                total = 0.0
                for i in range(NODES):
                    total += weights[i] * row[p * NODES + i]
                masses[g, p + 1] = masses[g, p] + 0.5 * (breaks[p + 1] - breaks[p]) * total
            if panels > 0 and masses[g, panels] > 0.0:
                scale = expected / masses[g, panels]  # the mass is known exactly
                for p in range(panels + 1):
                    masses[g, p] *= scale
                for i in range(panels * NODES):
                    row[i] *= scale
        if task == DRAWS:
            for a in range(asked.shape[1]):
                g = group[a]
                out[j, a] = draw_one(
                    asked[j, a], normals[j, a], pointer[g], pointer[g + 1], panels, breaks, values[g], masses[g],
                    location[j], omega[j], mean[j], sd[j], role, project, coefficients,
                )  # fmt: skip
        elif task == CDF:
            for a in range(asked.shape[1]):
                g = group[a]
                out[j, a] = min(cumulative(
                    asked[j, a], pointer[g], pointer[g + 1], panels, breaks, values[g], masses[g], location[j],
                    omega[j], mean[j], sd[j], role, project, coefficients,
                )[0], 1.0)  # fmt: skip
        else:
            n_atoms = sorted_atoms(location[j], omega[j], role, atoms)
            bottom, top, widest = low, high, high - low if panels > 0 else 0.0
            for c in range(count):
                if role[c] == SMOOTH:
                    bottom, top = min(bottom, mean[j, c] - 10.0 * sd[j, c]), max(top, mean[j, c] + 10.0 * sd[j, c])
                    widest = max(widest, 10.0 * sd[j, c])
                elif role[c] == ATOM and math.isfinite(location[j, c]):
                    bottom, top = min(bottom, location[j, c]), max(top, location[j, c])
            for a in range(asked.shape[1]):
                g = group[a]
                out[j, a] = quantile(
                    asked[j, a], bottom, top, widest * 0.05, atoms, n_atoms, pointer[g], pointer[g + 1], panels,
                    breaks, values[g], masses[g], location[j], omega[j], mean[j], sd[j], role, project, coefficients,
                )  # fmt: skip
