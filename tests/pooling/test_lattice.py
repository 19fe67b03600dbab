"""The adaptive quadrature against integrals that are known."""

import numpy as np
import pytest
from scipy import special, stats

from partialpool.errors import InferenceError
from partialpool.pooling.lattice import QUICK, THOROUGH, Peak, explore, peak_of, polished


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_correlated_normal(d):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d)) + 2 * np.eye(d)
    covariance, mean = root @ root.T, rng.normal(size=d) * 5
    law = stats.multivariate_normal(mean, covariance)
    lattice = explore(
        lambda x: np.atleast_1d(law.logpdf(x)), peak_of(lambda x: np.atleast_1d(law.logpdf(x)), mean + 1, np.ones(d))
    )
    assert lattice.log_normaliser == pytest.approx(0.0, abs=1e-7)
    assert lattice.error < 1e-6
    np.testing.assert_allclose(lattice.weights @ lattice.nodes, mean, atol=1e-7)
    centred = lattice.nodes - mean
    np.testing.assert_allclose((lattice.weights[:, None] * centred).T @ centred, covariance, rtol=1e-6, atol=1e-6)
    for axis in range(d):
        own = stats.norm(mean[axis], np.sqrt(covariance[axis, axis]))
        levels = np.array([0.01, 0.05, 0.5, 0.95, 0.99])
        found = lattice.quantiles(lambda x, axis=axis: x[:, axis], levels)
        np.testing.assert_allclose(own.cdf(found), levels, atol=1e-4)


@pytest.mark.parametrize("shape", [0.5, 1.0, 7.0])
def test_the_log_of_a_gamma_variable_has_a_long_left_tail(shape):
    log_density = lambda x: shape * x[:, 0] - np.exp(x[:, 0])  # noqa: E731
    lattice = explore(log_density, peak_of(log_density, [0.0], [1.0]))
    assert lattice.log_normaliser == pytest.approx(special.gammaln(shape), abs=1e-7)
    mean = lattice.weights @ np.exp(lattice.nodes[:, 0])
    assert mean == pytest.approx(shape, rel=1e-7)
    levels = np.array([0.05, 0.5, 0.95])
    found = np.exp(lattice.quantiles(lambda x: x[:, 0], levels))
    np.testing.assert_allclose(stats.gamma(shape).cdf(found), levels, atol=1e-5)


def test_a_banana():
    def log_density(x):
        return -0.5 * x[:, 0] ** 2 - 0.5 * ((x[:, 1] - x[:, 0] ** 2) / 0.5) ** 2

    lattice = explore(log_density, peak_of(log_density, [0.5, 0.5], [1.0, 1.0]))
    assert lattice.log_normaliser == pytest.approx(np.log(2 * np.pi * 0.5), abs=1e-6)
    # neighbours on the lattice lose the ridge where it is thin and steep, at 1e-6 of the mass
    assert lattice.weights @ lattice.nodes[:, 1] == pytest.approx(1.0, abs=5e-6)
    assert lattice.weights @ (lattice.nodes[:, 1] - 1) ** 2 == pytest.approx(2.25, rel=1e-4)


def test_the_start_need_not_be_the_peak():
    log_density = lambda x: -0.5 * ((x[:, 0] - 3) / 0.2) ** 2  # noqa: E731
    lattice = explore(log_density, Peak(np.array([3.3]), float(log_density(np.array([[3.3]]))[0]), np.array([[15.0]])))
    assert lattice.log_normaliser == pytest.approx(np.log(0.2 * np.sqrt(2 * np.pi)), abs=1e-7)


def test_the_error_that_is_reported_is_about_the_error():
    # a step in the density: no quadrature converges fast; what is said must cover what is lost
    log_density = lambda x: np.where((x[:, 0] > -1) & (x[:, 0] < 0.7), -0.5 * x[:, 0] ** 2, -np.inf)  # noqa: E731
    peak = Peak(np.zeros(1), 0.0, np.eye(1))
    lattice = explore(log_density, peak)
    exact = np.log(np.sqrt(2 * np.pi) * (stats.norm.cdf(0.7) - stats.norm.cdf(-1)))
    assert abs(lattice.log_normaliser - exact) < 5 * lattice.error
    assert lattice.error > 1e-4


def test_a_density_without_an_end_is_refused():
    with pytest.raises(InferenceError, match="prior with a scale"):
        explore(lambda x: -1e-9 * np.abs(x[:, 0]), Peak(np.zeros(1), 0.0, np.eye(1)))


def test_quickly_where_evaluations_are_dear():
    law = stats.multivariate_normal([1.0, 2.0], [[1.0, 0.3], [0.3, 0.5]])
    log_density = lambda x: np.atleast_1d(law.logpdf(x))  # noqa: E731
    peak = peak_of(log_density, [1.0, 2.0], [1.0, 1.0])
    rough, fine = (explore(log_density, peak, care=care) for care in (QUICK, THOROUGH))
    assert len(rough.nodes) < 0.6 * len(fine.nodes)
    assert rough.log_normaliser == pytest.approx(0.0, abs=2e-3)


def test_light_nodes_are_dropped():
    lattice = explore(lambda x: -0.5 * x[:, 0] ** 2, Peak(np.zeros(1), 0.0, np.eye(1)))
    nodes, weights = lattice.significant(1e-4)
    assert len(nodes) < len(lattice.nodes)
    assert weights.sum() == pytest.approx(1.0, rel=1e-14)
    assert lattice.weights[np.isin(lattice.nodes[:, 0], nodes[:, 0])].sum() > 1 - 1e-4


def test_a_guess_of_the_peak_is_polished():
    log_density = lambda x: -0.5 * ((x - np.array([1.0, -2.0])) ** 2 @ np.array([4.0, 1.0]))  # noqa: E731
    curvature = np.diag([4.0, 1.0])
    found = polished(log_density, Peak(np.array([1.3, -1.5]), 0.0, curvature))
    np.testing.assert_allclose(found.point, [1.0, -2.0], atol=0.05)
    assert polished(log_density, Peak(np.array([500.0, -1.5]), 0.0, curvature)) is None
    assert polished(log_density, Peak(np.zeros(2), 0.0, -curvature)) is None
