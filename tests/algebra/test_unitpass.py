"""Integrals and moments of a unit's likelihood over a component, against dense quadrature and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from partialpool.algebra.unitpass import component_integrals, component_moments, legendre

NORMAL, UNIFORM, STUDENT = 0, 1, 2
X, W = np.polynomial.legendre.leggauss(24)


def log_likelihood(family, y, size, eta):
    """In extended precision where the platform has it."""
    eta = eta.astype(np.longdouble)
    if family == 0:
        return -0.5 * ((y - eta) / size) ** 2 - math.log(size) - 0.5 * math.log(2 * math.pi)
    if family == 1:
        constant = math.log(math.comb(int(size), int(y)))
        return constant + y * eta - size * np.logaddexp(np.longdouble(0.0), eta)
    return y * (math.log(size) + eta) - size * np.exp(np.minimum(eta, 300)) - special.gammaln(y + 1)


def log_component(kind, m, s, nu, eta):
    if kind == NORMAL:
        return stats.norm.logpdf(eta, m, s)
    if kind == UNIFORM:
        return stats.uniform.logpdf(eta, m - s, 2 * s)
    return stats.t.logpdf(eta, nu, m, s)


def reference(family, y, size, kind, m, s, nu):
    """Log integral, mean and variance of eta, mean of theta and theta^2, on some thousand panels."""
    # without a bound by the likelihood, a Student-t distribution has mass very far out
    endless = kind == STUDENT and family > 0 and (y == 0 or (family == 1 and y == size))
    reach = s if kind == UNIFORM else 2.0**450 * s if endless else 1e10 * s
    low, high = m - reach, m + reach
    places = [(m, s), (y, size)] if family == 0 else [(m, s)]
    if family == 1:
        places.append(
            (math.log((y + 0.5) / (size - y + 0.5)), 1 / math.sqrt((y + 0.5) * (size - y + 0.5) / (size + 1)))
        )
    if family == 2:
        places.append((math.log((y + 0.5) / size), 1 / math.sqrt(y + 0.5)))
    near = [centre + scale * np.arange(-40, 40.25, 0.25) for centre, scale in places]
    far = [
        centre + sign * scale * 2.0 ** np.arange(-30, 450 if endless else 60)
        for centre, scale in places
        for sign in (-1, 1)
    ]
    ends = [end + sign * s * 2.0 ** -np.arange(0, 40.0) for end, sign in ((m - s, 1), (m + s, -1))]
    if family and kind != UNIFORM:  # between the likelihood and the component, where they disagree
        ends.append(np.linspace(places[0][0], places[1][0], 8000))
    b = np.unique(np.clip(np.concatenate([*near, *far, *ends]), low, high))
    half = 0.5 * np.diff(b)
    eta = 0.5 * (b[1:] + b[:-1])[:, None] + half[:, None] * X
    logs = log_likelihood(family, y, size, eta) + log_component(kind, m, s, nu, eta)
    top = logs.max()
    weight = (np.exp(logs - top) * half[:, None] * W).astype(float)
    total = weight.sum()
    theta = eta if family == 0 else special.expit(eta) if family == 1 else np.exp(np.minimum(eta, 300.0))
    mean = (weight * eta).sum() / total
    moments = [(weight * v).sum() / total for v in ((eta - mean) ** 2, theta, theta**2)]
    return float(top) + math.log(total), mean, *moments


def check(family, y, size, kind, m, s, nu, tolerance=1e-9):
    arguments = (family, [y], [size], [kind], [m], [s], [float(nu)])
    expected = reference(family, float(y), float(size), kind, m, s, nu)
    value = component_integrals(*arguments)[0, 0]
    scale = max(1.0, 1e-3 * abs(expected[0]))
    assert abs(value - expected[0]) < tolerance * scale, arguments
    moments = [float(part[0, 0]) for part in component_moments(*arguments)]
    assert abs(moments[0] - value) < tolerance * scale
    sd = math.sqrt(expected[2])
    if math.isinf(moments[2]):  # said of no others
        assert kind == STUDENT and nu <= 2 and family and (y == 0 or (family == 1 and y == size))
        sd, expected = s + abs(expected[1] - m), (*expected[:2], math.inf, *expected[3:])
        if nu <= 1:
            assert moments[1] == (math.inf if family == 1 and y == size else -math.inf)
    rounding = 4 * np.spacing(abs(expected[1]))  # a steep likelihood at the end of an interval: sd near the last digit
    if math.isfinite(moments[1]):
        assert abs(moments[1] - expected[1]) < 1e-7 * sd + rounding, arguments
    assert moments[2] == pytest.approx(expected[2], rel=1e-7 if kind == STUDENT else 1e-6), arguments
    assert moments[3] == pytest.approx(expected[3], rel=1e-8, abs=1e-8 * sd if family == 0 else 0.0), arguments
    assert moments[4] == pytest.approx(expected[4], rel=1e-7, abs=1e-8 * sd if family == 0 else 0.0), arguments


@pytest.mark.parametrize("z", [0.0, 1.0, 3.0, 10.0, 40.0])
@pytest.mark.parametrize("s", [1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3])
def test_normal_data(z, s):
    check(0, z, 1.0, NORMAL, 0.0, s, 1)
    check(0, z, 1.0, UNIFORM, 0.0, s, 1)
    for nu in (3, 4, 30, 1e4):
        check(0, z, 1.0, STUDENT, 0.0, s, nu, tolerance=1e-8)


UNITS = [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (0, 1000), (1, 1000), (500, 1000), (1000, 1000)]


@pytest.mark.parametrize(("y", "size"), UNITS)
def test_binomial(y, size):
    for m, s in itertools.product((-8.0, -1.0, 3.0), (0.001, 0.1, 0.5, 1.0, 5.0)):
        check(1, y, size, NORMAL, m, s, 1)
        check(1, y, size, UNIFORM, m, s, 1)


@pytest.mark.parametrize(("y", "size"), [(0, 1), (0, 1e9), (1, 20), (5, 1e-3), (50, 1e3), (1000, 1.0)])
def test_poisson(y, size):
    for m, s in itertools.product((-8.0, -1.0, 3.0), (0.001, 0.1, 0.5, 1.0, 5.0)):
        check(2, y, size, NORMAL, m, s, 1)
        check(2, y, size, UNIFORM, m, s, 1)


@pytest.mark.parametrize(("family", "y", "size"), [(1, 3, 20), (1, 500, 1000), (2, 1, 20), (2, 50, 1e3)])
def test_student_t(family, y, size):
    for m, s, nu in itertools.product((-8.0, -1.0), (0.1, 1.0), (3, 4, 100)):
        check(family, y, size, STUDENT, m, s, nu, tolerance=1e-8)


STUDENT_CASES = [
    # y of 0, all, few and many; components narrow, wide, far off; from the heaviest tails to nearly normal ones
    (1, 0, 1), (1, 1, 1), (1, 0, 1e6), (1, 3, 20), (1, 1_000_000, 1e6), (1, 2500, 1e4), (2, 0, 1e-3), (2, 0, 1e6),
    (2, 4, 1.0), (2, 1e5, 1e6), (0, 0.3, 1.0), (0, 25.0, 1.0), (0, 4.0, 0.01),
]  # fmt: skip


@pytest.mark.parametrize("nu", [0.3, 1.2, 2.5, 1e4])
@pytest.mark.parametrize(("family", "y", "size"), STUDENT_CASES)
def test_student_t_of_any_tail(family, y, size, nu):
    for m, s in ((-8.0, 1e-4), (0.5, 0.1), (2.0, 10.0)):
        check(family, y, size, STUDENT, m, s, nu, tolerance=1e-8)


@pytest.mark.parametrize(("s", "nu"), [*itertools.product((1e-4, 0.3, 10.0), (0.3, 1.2, 4.5, 60.0)), (0.3, 1e4)])
def test_student_t_below_a_cliff(s, nu):
    # E of the distribution function at the cliff, a Gumbel variable: on panels that meet at the component
    for size, m in ((1e-3, -8.0), (1.0, 0.0), (1e5, 1.0)):
        value = component_integrals(2, [0.0], [size], [STUDENT], [m], [s], [nu])[0, 0]
        component = m + math.log(size)
        near = [component + sign * s * 1.4 ** np.arange(-30.0, 60.0) for sign in (-1, 1)]
        b = np.unique(np.clip(np.concatenate([*near, np.arange(-45.0, 6.5, 0.25)]), -45.0, 6.0))
        half = 0.5 * np.diff(b)
        g = 0.5 * (b[1:] + b[:-1])[:, None] + half[:, None] * X
        below = stats.t.cdf(g - component, nu, 0.0, s)
        expected = np.log((np.exp(g - np.exp(g)) * below * half[:, None] * W).sum())
        assert abs(value - expected) < 1e-8


def test_infinite_moments_are_said():
    # no events: the likelihood does not bound eta from below, and the tail of the component is left as it is
    _, mean, variance, theta, _ = component_moments(
        1, [0.0, 5.0], [5.0, 5.0], [2, 2], [0.0, 0.0], [1.0, 1.0], [1.0, 2.0]
    )
    assert mean[0].tolist() == [-math.inf, math.inf]
    assert np.all(np.isfinite(mean[1])) and np.all(np.isinf(variance))
    assert np.all((theta > 0) & (theta < 1))


@pytest.mark.parametrize("s", [2.0, 20.0, 2e3, 2e6])
def test_wide_normal_over_no_events(s):
    # f rises from 0 to 1 at one cliff: log integral = E Phi((cliff - m) / s), the cliff's place a Gumbel variable
    value = component_integrals(2, [0.0], [1e5], [NORMAL], [1.0], [s], [1.0])[0, 0]
    g = np.linspace(-40.0, 8.0, 20001)
    density = np.exp(g - np.exp(g))
    expected = np.log((density * stats.norm.cdf((g - math.log(1e5) - 1.0) / s)).sum() * (g[1] - g[0]))
    assert abs(value - expected) < 1e-9


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("share", [1e-3, 0.2, 0.5, 0.9])
def test_flat_component_over_many_trials(size, share):
    y = round(size * share)
    half = 60.0
    value = component_integrals(1, [y], [size], [UNIFORM], [0.0], [half], [1.0])[0, 0]
    assert abs(value - math.log(size / (y * (size - y)) / (2 * half))) < 1e-9
    _, _, _, theta, square = (float(v[0, 0]) for v in component_moments(1, [y], [size], [1], [0.0], [half], [1.0]))
    beta = stats.beta(y, size - y)
    assert theta == pytest.approx(beta.mean(), rel=1e-9)
    assert square == pytest.approx(beta.var() + beta.mean() ** 2, rel=1e-9)
    value = component_integrals(2, [y], [size], [UNIFORM], [0.0], [half], [1.0])[0, 0]
    assert abs(value - math.log(1 / y / (2 * half))) < 1e-9


def test_points():
    y, size = np.array([0.0, 3.0, 20.0]), np.full(3, 20.0)
    value, mean, variance, theta, square = component_moments(
        1, y, size, [0, 1, 2], [-1.0, 0.5, 2.0], [0.0] * 3, [4.0] * 3
    )
    eta = np.array([-1.0, 0.5, 2.0])[:, None]
    np.testing.assert_allclose(value, stats.binom.logpmf(y, 20, special.expit(eta)), rtol=1e-12)
    np.testing.assert_allclose(theta, np.broadcast_to(special.expit(eta), (3, 3)), rtol=1e-14)
    np.testing.assert_allclose(square, theta**2, rtol=1e-13)
    assert np.all(variance == 0.0) and np.all(mean == eta)
    ends = component_integrals(1, y, size, [0, 0], [-math.inf, math.inf], [0.0, 0.0], [1.0, 1.0])
    assert ends.tolist() == [[0.0, -math.inf, -math.inf], [-math.inf, -math.inf, 0.0]]
    assert component_integrals(2, [0.0, 1.0], [2.0, 2.0], [0], [-math.inf], [0.0], [1.0]).tolist() == [[0.0, -math.inf]]


def test_many_degrees_of_freedom_are_normal():
    for family, y, size in ((0, 2.0, 1.0), (1, 3.0, 20.0), (2, 3.0, 20.0)):
        t, normal = component_integrals(family, [y], [size], [2, 0], [0.0, 0.0], [0.7, 0.7], [9e5, 1.0])[:, 0]
        assert t == pytest.approx(normal, abs=1e-5)
        beyond = component_integrals(family, [y], [size], [2], [0.0], [0.7], [1e7])[0, 0]
        assert abs(beyond - normal) < 1e-13


@pytest.mark.parametrize("family", [0, 1, 2])
def test_places_by_unit_and_threads(family):
    rng = np.random.default_rng(5)
    units, components = 700, 6
    size = np.full(units, 20.0)
    y = rng.binomial(20, 0.3, units).astype(float)
    kind = np.array([0, 1, 2, 0, 1, 2])
    location = rng.normal(size=(components, units))
    spread, nu = rng.uniform(0.2, 1.5, components), np.full(components, 5.0)
    whole = component_integrals(family, y, size, kind, location, spread, nu)
    assert np.array_equal(whole, component_integrals(family, y, size, kind, location, spread, nu, threads=2))
    for one, two in zip(
        component_moments(family, y, size, kind, location, spread, nu),
        component_moments(family, y, size, kind, location, spread, nu, threads=2),
        strict=True,
    ):
        assert np.array_equal(one, two)
    j = 17
    alone = component_integrals(family, y[j : j + 1], size[:1], kind, location[:, j].copy(), spread, nu)
    assert np.array_equal(alone[:, 0], whole[:, j])


def test_legendre():
    for n in (4, 8, 16):
        x, weights = legendre(n)
        expected = np.polynomial.legendre.leggauss(n)
        np.testing.assert_allclose(x, expected[0], atol=1e-15)
        np.testing.assert_allclose(weights, expected[1], rtol=1e-13)
