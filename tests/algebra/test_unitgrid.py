"""The pieces of a unit's grid: densities of components, roles, integrals within a panel, atoms."""

import math

import numpy as np
import pytest
from scipy import stats

from partialpool.algebra import unitgrid
from partialpool.algebra.unitpass import legendre
from partialpool.pooling.grid import GridPosterior, _projection


@pytest.mark.parametrize("eta", [-3.0, 0.2, 0.9, 50.0])
def test_log_component(eta):
    for kind, nu, law in (
        (0, 1.0, stats.norm(0.5, 0.7)),
        (1, 1.0, stats.uniform(-0.2, 1.4)),
        (2, 3.5, stats.t(3.5, 0.5, 0.7)),
    ):
        constant = unitgrid.log_constant(kind, 0.7, nu)
        assert unitgrid.log_component(kind, 0.5, 0.7, nu, constant, eta) == pytest.approx(law.logpdf(eta), rel=1e-12)


def test_panel_integrates_a_polynomial_exactly():
    x, _ = legendre(unitgrid.NODES)
    law = np.polynomial.Polynomial([1.0, 0.3, 0.5, -0.1, 0.2, 0.05, 0.1, -0.04])
    low, half = 2.0, 0.25
    values = law(low + half * (1 + x))
    coefficients = np.empty(unitgrid.NODES)
    antiderivative = law.integ()
    for t in (-1.0, -0.3, 0.6, 1.0):
        part, density = unitgrid.panel_part(values, 0, half, t, _projection(), coefficients)
        end = low + half * (1 + t)
        assert part == pytest.approx(antiderivative(end) - antiderivative(low), rel=1e-12, abs=1e-14)
        assert density == pytest.approx(law(end), rel=1e-12)


def test_roles():
    kind, spread = np.array([0, 0, 0, 2]), np.array([0.0, 1e-3, 1.0, 1.0])
    role = np.zeros(4, dtype=np.int64)
    whole = unitgrid.classify(
        kind, spread, np.full(4, 0.25), np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.0, 1e-3, 1.0, 1.0]), role
    )
    assert role.tolist() == [unitgrid.ATOM, unitgrid.SMOOTH, unitgrid.PART_OF_GRID, unitgrid.PART_OF_GRID]
    assert 0.5 < whole < 1.0


def test_atoms_are_sorted_and_each_stands_once():
    atoms = np.empty(6)
    role = np.array([unitgrid.ATOM] * 5 + [unitgrid.PART_OF_GRID])
    location = np.array([2.0, -1.0, 2.0, 0.5, 7.0, -9.0])
    count = unitgrid.sorted_atoms(location, np.array([0.1, 0.2, 0.1, 0.3, 0.0, 0.3]), role, atoms)
    assert atoms[:count].tolist() == [-1.0, 0.5, 2.0]


@pytest.mark.parametrize(("y", "size"), [(0.0, 1e6), (1e6, 1e6), (3.0, 1e9)])
def test_cliffs_and_plains(y, size):
    # no events, or all: a cliff in front of a wide population; the median against the distribution function's own law
    posterior = GridPosterior(1, [y], [size], [1.0], [0], [1.0], [0], [0.0], [6.0], [1.0])
    eta = np.linspace(-60.0, 60.0, 2_000_001)
    logs = y * np.minimum(eta, 0) - (size - y) * np.maximum(eta, 0) - size * np.log1p(np.exp(-np.abs(eta)))
    logs += stats.norm.logpdf(eta, 0, 6)
    mass = np.exp(logs - logs.max())
    cumulative = np.cumsum(mass) - 0.5 * mass
    for p in (0.001, 0.05, 0.5, 0.95, 0.999):
        theta = posterior.quantiles([p])[0, 0]
        place = math.log(theta) - math.log1p(-theta)
        assert np.interp(place, eta, cumulative) / mass.sum() == pytest.approx(p, abs=1e-5)
        assert posterior.cdf(theta)[0] == pytest.approx(p, abs=1e-7)
