"""Distributions of theta in the population against scipy and dense quadrature."""

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import expit, logit

from partialpool.errors import DataError
from partialpool.pooling.shapes import (
    BetaShape,
    Components,
    ComponentShape,
    DiscreteShape,
    GammaShape,
    NormalShape,
    marginal_of,
    to_link,
    to_natural,
)

W = np.array([0.3, 0.7])
NORMALS = [stats.norm(1.0, 0.5), stats.norm(-2.0, 1.5)]
BETAS = [stats.beta(2, 8), stats.beta(30, 10)]
GAMMAS = [stats.gamma(0.7, scale=2), stats.gamma(9, scale=0.2)]


def beta_shape():
    ab = np.array([[2, 8], [30, 10]])
    return BetaShape(W, np.log(ab[:, 0] / ab[:, 1]), np.log(ab.sum(axis=1)))


SHAPES = {
    "normal": (NormalShape(W, np.array([1.0, -2.0]), np.array([0.5, 1.5])), NORMALS, np.linspace(-5, 4, 41)),
    "beta": (beta_shape(), BETAS, np.linspace(0.01, 0.99, 41)),
    "gamma": (GammaShape(W, np.log([1.4, 1.8]), np.log([0.7, 9.0])), GAMMAS, np.linspace(0.01, 9, 41)),
}


def components(family, kind, location, spread, nu=3.0, weight=W):
    c = Components(
        np.zeros(2, dtype=np.int64),
        np.asarray(weight),
        np.full(2, kind),
        np.array(location),
        np.array(spread),
        np.full(2, nu),
    )
    return ComponentShape(family, np.ones(1), c)


@pytest.mark.parametrize("name", SHAPES)
def test_mixtures_of_conjugate_populations(name):
    shape, laws, x = SHAPES[name]
    np.testing.assert_allclose(
        shape.density(x), sum(w * law.pdf(x) for w, law in zip(W, laws, strict=True)), rtol=1e-10
    )
    np.testing.assert_allclose(shape.cdf(x), sum(w * law.cdf(x) for w, law in zip(W, laws, strict=True)), rtol=1e-10)
    mean = sum(w * law.mean() for w, law in zip(W, laws, strict=True))
    square = sum(w * (law.var() + law.mean() ** 2) for w, law in zip(W, laws, strict=True))
    assert shape.moments() == (pytest.approx(mean, rel=1e-12), pytest.approx(np.sqrt(square - mean**2), rel=1e-12))
    levels = np.array([0.001, 0.05, 0.5, 0.95, 0.999])
    np.testing.assert_allclose(shape.cdf(shape.quantile(levels)), levels, rtol=1e-10)
    assert shape.atoms[0].size == 0


@pytest.mark.parametrize("family", ["normal", "binomial", "poisson"])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_components_on_the_link(family, kind):
    location, spread = [0.3, -0.5], [0.4, 1.2]
    laws = {
        0: [stats.norm(a, b) for a, b in zip(location, spread, strict=True)],
        1: [stats.uniform(a - b, 2 * b) for a, b in zip(location, spread, strict=True)],
        2: [stats.t(3.0, a, b) for a, b in zip(location, spread, strict=True)],
    }[kind]
    shape = components(family, kind, location, spread)
    eta = np.linspace(-2.03, 2.01, 33)
    theta = to_natural(family, eta)
    slope = {"normal": 1.0, "binomial": theta * (1 - theta), "poisson": theta}[family]
    expected = sum(w * law.pdf(eta) for w, law in zip(W, laws, strict=True)) / slope
    np.testing.assert_allclose(shape.density(theta), expected, rtol=1e-9)
    np.testing.assert_allclose(
        shape.cdf(theta), sum(w * law.cdf(eta) for w, law in zip(W, laws, strict=True)), rtol=1e-9
    )
    np.testing.assert_allclose(to_link(family, theta), eta, rtol=1e-10, atol=1e-12)
    mean, sd = shape.moments()
    if family == "poisson" and kind == 2:
        assert np.isinf(mean)  # exp of a Student-t has no mean
        assert np.isinf(sd)
        return
    moments = [
        sum(
            w * law.expect(lambda e, k=k: to_natural(family, e) ** k, lb=max(-50, law.ppf(0)), ub=min(50, law.ppf(1)))
            for w, law in zip(W, laws, strict=True)
        )
        for k in (1, 2)
    ]
    # a Student-t of 3 degrees of freedom has heavy tails: the reference is cut at 50
    tolerance = 2e-3 if kind == 2 else 1e-6
    assert mean == pytest.approx(moments[0], rel=tolerance)
    if kind == 2 and family == "normal":
        moments[1] = moments[0] ** 2 + W @ (3 * np.square(spread) + np.square(location)) - (W @ location) ** 2
    assert sd == pytest.approx(np.sqrt(moments[1] - moments[0] ** 2), rel=5 * tolerance)


def test_points_of_a_population():
    shape = components("binomial", 0, [-1.0, -1.0], [0.0, 2.0])
    places, masses = shape.atoms
    np.testing.assert_allclose(places, expit(-1.0))
    np.testing.assert_allclose(masses, 0.3)
    at = expit(-1.0)
    assert shape.cdf(np.array([at]))[0] == pytest.approx(0.3 + 0.7 * 0.5, rel=1e-9)
    assert shape.cdf(np.array([at - 1e-9]))[0] == pytest.approx(0.7 * 0.5, rel=1e-6)
    # every quantile within the jump is the place itself
    np.testing.assert_allclose(shape.quantile([0.36, 0.5, 0.64]), at, rtol=1e-9)
    _theta, weights = shape.points
    assert weights.sum() == pytest.approx(1.0, rel=1e-12)


def test_finitely_many_places():
    shape = DiscreteShape("poisson", np.array([0.5, 2.0, 9.0]), np.array([0.5, 0.3, 0.2]))
    np.testing.assert_allclose(shape.cdf(np.array([0.4, 0.5, 1.9, 2.0, 10])), [0, 0.5, 0.5, 0.8, 1.0])
    np.testing.assert_array_equal(shape.quantile([0.5, 0.51, 0.8, 0.99]), [0.5, 2, 2, 9])
    mean = 0.25 + 0.6 + 1.8
    assert shape.moments()[0] == pytest.approx(mean)
    marginal = marginal_of(shape, 2.0)
    pmf = lambda k: sum(m * stats.poisson(2 * p).pmf(k) for p, m in zip(shape.places, shape.masses, strict=True))  # noqa: E731
    np.testing.assert_allclose(np.exp(marginal.log_density([0, 3, 20])), [pmf(k) for k in (0, 3, 20)], rtol=1e-10)
    np.testing.assert_allclose(marginal.cdf([2, 7]), [sum(pmf(k) for k in range(n + 1)) for n in (2, 7)], rtol=1e-10)


@pytest.mark.parametrize("name", SHAPES)
def test_marginals_of_data(name):
    shape, laws, _ = SHAPES[name]
    size = 12.0 if name != "normal" else 0.8
    marginal = marginal_of(shape, size)
    if name == "normal":
        of = [stats.norm(law.mean(), np.hypot(law.std(), size)) for law in laws]
        y = np.array([-4.0, 0.0, 1.3])
        expected = [w * law.pdf(y) for w, law in zip(W, of, strict=True)]
    elif name == "beta":
        of = [stats.betabinom(12, 2, 8), stats.betabinom(12, 30, 10)]
        y = np.arange(13.0)
        expected = [w * law.pmf(y) for w, law in zip(W, of, strict=True)]
    else:
        of = [stats.nbinom(0.7, 0.5 / (0.5 + 12)), stats.nbinom(9, 5 / 17)]
        y = np.array([0.0, 5, 60])
        expected = [w * law.pmf(y) for w, law in zip(W, of, strict=True)]
    np.testing.assert_allclose(np.exp(marginal.log_density(y)), np.sum(expected, axis=0), rtol=1e-10)
    cdf = np.sum([w * law.cdf(y) for w, law in zip(W, of, strict=True)], axis=0)
    np.testing.assert_allclose(marginal.cdf(y), cdf, atol=2e-4)  # by 256 points of the population
    mean = sum(w * law.mean() for w, law in zip(W, of, strict=True))
    square = sum(w * (law.var() + law.mean() ** 2) for w, law in zip(W, of, strict=True))
    assert marginal.mean == pytest.approx(mean, rel=1e-10)
    assert marginal.variance == pytest.approx(square - mean**2, rel=1e-10)
    assert marginal.extra > 1.0


def test_impossible_data_have_no_probability():
    marginal = marginal_of(beta_shape(), 10)
    np.testing.assert_array_equal(marginal.log_density([-1, 0.5, 11, np.nan]), -np.inf)
    assert marginal.log_density(3).shape == ()
    np.testing.assert_array_equal(marginal.cdf([-1, 10, 12]).round(12), [0, 1, 1])
    for size in (0, -1, np.inf, 2.5):
        with pytest.raises(DataError):
            marginal_of(beta_shape(), size)


def test_a_mixture_with_a_point_where_the_sd_is_zero():
    shape = NormalShape(W, np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    assert shape.cdf(np.array([1.0]))[0] == pytest.approx(0.3 + 0.7 * stats.norm.cdf(-1))
    places, masses = shape.atoms
    assert (places[0], masses[0]) == (1.0, 0.3)
    area = integrate.quad(lambda x: shape.density(np.array([x]))[0], -8, 12)[0]
    assert area == pytest.approx(0.7, abs=1e-9)


def test_densities_integrate_to_one_at_extreme_shapes():
    for log_size in (1.5, 3.0, 12.0):
        shape = BetaShape(np.ones(1), np.array([logit(0.3)]), np.array([log_size]))
        low, high = shape.quantile([0.01, 0.99])
        area = integrate.quad(lambda x, s=shape: s.density(np.array([x]))[0], low, high, limit=400)[0]
        assert area == pytest.approx(0.98, abs=1e-5)
