"""The joint density with the leaf integrated out: against densities written out, differences, and itself in parts."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm
from scipy.stats import t as student

import partialpool as pp
from glmer import log_rows
from partialpool.algebra.joint import INFORMATION, ORIGIN, REFERENCE
from partialpool.algebra.leaf import GRADIENT, VALUE
from partialpool.inference.joint import JointDensity, prior_curvature
from partialpool.model import Model

Array = NDArray[np.float64]


@cache
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    n = 90
    a, b = rng.integers(0, 12, n), rng.integers(0, 5, n)
    x, z = rng.normal(1.0, 1.0, n), rng.normal(size=n)
    eta = -0.3 + 0.4 * x + rng.normal(0, 0.8, 12)[a] + rng.normal(0, 0.5, 5)[b]
    return pd.DataFrame(
        {
            "a": a, "b": b, "x": x, "z": z, "s": rng.binomial(1, 1 / (1 + np.exp(-eta))), "c": rng.poisson(np.exp(eta)),
            "r": eta + 0.5 * rng.normal(size=n),
        }
    )  # fmt: skip


MODELS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "slopes in the leaf": ("s ~ x + (x | a)", "bernoulli", {}),
    "slopes in the root": ("s ~ x + (x | b) + (1 | a)", "bernoulli", {"cor(b)": pp.LKJ(2)}),
    "crossed, uncorrelated": ("c ~ x + (1 | a) + (x || b)", "poisson", {}),
    "two terms, bounds, t": (
        "c ~ x + (1 | a) + (1 | b) + (0 + z | b)", "poisson",
        {"sd(Intercept|b)": pp.Uniform(0.1, 2), "sd(Intercept|a)": pp.Uniform(0, 3), "x": pp.StudentT(3, 0.1, 0.7),
         "sd(z|b)": pp.HalfStudentT(4, 1)},
    ),
    "phi": ("c ~ x + (1 | a) + (1 | b)", "negative_binomial", {"phi": pp.Gamma(2, 0.5), "x": pp.Cauchy(0, 1)}),
    "sigma of its own": (pp.formula("r ~ x + (1 | a) + (1 | b)", sigma="~ z + (1 | a)"), "gaussian", {}),
    "no groups": ("s ~ x", "bernoulli", {}),
}  # fmt: skip
#: Nodes at which quadrature leaves nothing, by effects of a group of the leaf.
MANY = {0: 1, 1: 96, 2: 45}


@cache
def model_of(name: str) -> Model:
    formula, family, priors = MODELS[name]
    return Model.from_formula(formula, frame(), family=family, priors=priors)


def density_of(name: str, how: str = "centred", **options: Any) -> JointDensity:
    density = JointDensity(model_of(name), **options)
    if "nodes" not in options:
        density.set_nodes(MANY[density.q], tolerance=1e-13)
    density.centring = centring_of(density, how)
    return density


def centring_of(density: JointDensity, how: str) -> Array:
    rng = np.random.default_rng(6)
    out = np.zeros((3, density.n_root))
    if how == "centred":
        out[INFORMATION] = np.inf
    elif how == "non-centred":
        out[REFERENCE] = 1.0
    else:
        for term, own in density.root_terms():
            if term.covariance.n_correlations:  # all one way or the other
                out[REFERENCE, own] = 1.0
                continue
            out[INFORMATION, own] = rng.gamma(2.0, 2.0, own.shape)
            out[ORIGIN, own] = rng.normal(0, 0.5, own.shape)
            out[REFERENCE, own] = rng.gamma(2.0, 1.0, own.shape)
    return out


def some_point(density: JointDensity, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    theta = rng.normal(-0.2, 0.3, density.d)
    if density.model.design.terms.predictors:  # an sd of log sigma near 1 makes integrands that no few nodes follow
        theta -= 0.8
    b = rng.normal(0, 0.3, density.p)
    point = density.point(theta, density.mean + density.scale * b, rng.normal(0, 0.5, density.n_root))
    for j in np.flatnonzero(density.params[:, 4] > 0):
        point[j] = rng.normal(-0.5, 0.5)
    return point


HOW = ["centred", "non-centred", "partial"]
WITH_ROOT = [name for name in MODELS if name not in ("slopes in the leaf", "no groups")]


# -- values ------------------------------------------------------------------------------------------------------------


def by_hand(density: JointDensity, point: Array) -> float:
    """The normalised density of y and every unknown [t, b, u], nothing integrated out."""
    model = density.model
    hyper, design = model.hyperparameters, model.design
    theta = density.theta(point[None, :])
    total = float(hyper.log_prior(theta)[0][0])
    for j in np.flatnonzero(density.params[:, 4] > 0):  # from log sd to the logit of its place
        low, width = density.params[j, 3:5]
        share = 1 / (1 + math.exp(-point[j]))
        total += math.log(width * share * (1 - share) / (low + width * share))
    for name, b in zip(design.x_names, point[density.d : density.d + density.p], strict=True):
        prior = model.priors[name]
        if isinstance(prior, pp.StudentT | pp.Cauchy):
            total += float(student.logpdf(b, getattr(prior, "nu", 1.0)))
        else:
            total += float(norm.logpdf(b))
    u = point[density.d + density.p :]
    beta = model.coefficients.to_public(density.gamma(point[None, :]))[0]
    eta = [np.zeros(design.y.size), np.zeros(design.y.size)]
    for value, column, part in zip(beta, design.x_columns, design.x_predictor, strict=True):
        eta[part] = eta[part] + value * design.V[:, column]
    for term, own in density.root_terms():
        lam = term.covariance.factor(theta[:, term.parameters])[0]
        total += multivariate_normal.logpdf(u[own], cov=lam @ lam.T).sum()
        group = design.groups[hyper.terms.index(term)]
        for k, column in enumerate(group.columns):
            eta[group.predictor] += design.V[:, column] * u[own[design.factors[term.factor].codes, k]]
    for name, _ in hyper.auxiliary:
        eta[1] = eta[1] + theta[0, hyper.auxiliary_at(name)]
    return total + float(log_rows(model.family.name, design.y, eta[0], eta[1]).sum())


@pytest.mark.parametrize("name", MODELS)
def test_whole_density_is_that_of_scipy(name: str) -> None:
    """With no leaf and the constant, at two points: priors, effects and rows, normalised."""
    density = density_of(name, leaf=False)
    for seed in (1, 2):
        point = some_point(density, seed)
        value = density.value(point[None, :])[0] + density.log_constant()
        assert value == pytest.approx(by_hand(density, point), rel=1e-10)


def test_flat_priors_have_no_constant() -> None:
    model = Model.from_formula("s ~ x + (1 | a)", frame(), family="bernoulli", priors={"x": pp.Flat()})
    assert math.isnan(JointDensity(model).log_constant())


@pytest.mark.parametrize("name", WITH_ROOT)
@pytest.mark.parametrize("how", HOW[1:])
def test_centring_is_a_change_of_variables(name: str, how: str) -> None:
    plain, other = density_of(name), density_of(name, how)
    point = some_point(plain)
    first = plain.d + plain.p
    e = other.to_e(point, point[first:])
    moved = np.concatenate([point[:first], e])
    np.testing.assert_allclose(other.root_effects(moved[None, :])[0], point[first:], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(other.unpack(moved).root[plain.p :], point[first:], rtol=1e-11, atol=1e-12)
    jacobian = np.empty((e.size, e.size))
    for j in range(e.size):
        step = np.zeros(e.size)
        step[j] = 1e-4
        ends = [other.root_effects((moved + sign * np.append(np.zeros(first), step))[None, :])[0] for sign in (1, -1)]
        jacobian[:, j] = (ends[0] - ends[1]) / 2e-4
    expected = plain.value(point[None, :])[0] + np.linalg.slogdet(jacobian)[1]
    assert other.value(moved[None, :])[0] == pytest.approx(expected, rel=1e-9)


def test_information_of_none_and_of_all() -> None:
    """Partial non-centring ends in both: lambda = 0 and lambda without bound."""
    name = "crossed, uncorrelated"
    plain, other = density_of(name), density_of(name, "partial")
    point = some_point(plain)
    first = plain.d + plain.p
    other.centring[INFORMATION] = 1e14
    np.testing.assert_allclose(other.root_effects(point[None, :])[0], point[first:], rtol=1e-9, atol=1e-9)
    other.centring[:] = np.array([0.0, 0.0, 1.0])[:, None]
    none = density_of(name, "non-centred")
    assert other.value(point[None, :])[0] == none.value(point[None, :])[0]
    for term, own in none.root_terms():
        sds = np.exp(none.theta(point[None, :])[0, term.parameters])
        np.testing.assert_allclose(none.root_effects(point[None, :])[0][own], sds * point[first:][own])


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", MODELS)
def test_gradient(name: str, how: str) -> None:
    if how != "centred" and name not in WITH_ROOT:
        pytest.skip("no root")
    density = density_of(name, how)
    points = np.stack([some_point(density, 1), some_point(density, 2)])
    values, gradients = density.value_and_gradient(points)
    np.testing.assert_allclose(values, density.value(points), rtol=1e-12)
    step = 1e-5
    for point, gradient in zip(points, gradients, strict=True):
        moves = step * np.eye(density.size)
        rises = (density.value(point + moves) - density.value(point - moves)) / (2 * step)
        # in theta the gradient is Fisher's, equal to that of the quadrature's value only in the limit
        np.testing.assert_allclose(gradient, rises, rtol=1e-5, atol=1e-5 if density.q < 2 else 2e-4)


@pytest.mark.parametrize("name", ["crossed, uncorrelated", "phi"])
def test_gradient_without_a_leaf(name: str) -> None:
    density = density_of(name, leaf=False)
    assert density.q == 0 and density.n_root == density.layout.n_effects
    point = some_point(density)
    gradient = density.value_and_gradient(point[None, :])[1][0]
    moves = 1e-5 * np.eye(density.size)
    np.testing.assert_allclose(
        gradient, (density.value(point + moves) - density.value(point - moves)) / 2e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_curvature(name: str) -> None:
    """Value, gradient and Hessian of the rows alone, in the root."""
    density = density_of(name)
    point = some_point(density)
    found = density.curvature(point)
    own = density.unpack(point)
    assert found.value == pytest.approx(density.rows_at(VALUE, own).value, rel=1e-12)
    np.testing.assert_allclose(found.precision, found.precision.T)
    for j in range(own.root.size):
        step = np.zeros(own.root.size)
        step[j] = 1e-4
        ends = [density.rows_at(GRADIENT, own.at_root(own.root + sign * step)).in_root for sign in (1, -1)]
        np.testing.assert_allclose(-found.precision[j], (ends[0] - ends[1]) / 2e-4, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_one_point_as_nuts_sees_it(name: str) -> None:
    density = density_of(name, "non-centred")
    points = np.stack([some_point(density, 1), some_point(density, 2)])
    values, gradients = density.value_and_gradient(points)
    evaluate = density.density()
    for point, value, gradient in zip(points, values, gradients, strict=True):
        own_value, own_gradient = evaluate(point)
        assert own_value == pytest.approx(value - density.constant, rel=1e-12)
        np.testing.assert_allclose(own_gradient, gradient, rtol=1e-10, atol=1e-12)


def test_prior_curvature() -> None:
    """Score as the density has it; a positive curvature also in a t's tails."""
    density = density_of("two terms, bounds, t")
    point = some_point(density)
    point[density.d : density.d + density.p] = 0.8, 4.0
    score, curve = prior_curvature(density, point)
    assert score[0] == pytest.approx(-0.8) and curve[0] == 1.0
    assert score[1] == pytest.approx(-4 * 4.0 / (3 + 16)) and 0 < curve[1] < 1


# -- theta -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_theta_and_back(name: str) -> None:
    density = density_of(name)
    point = some_point(density)
    theta = density.theta(point[None, :])[0]
    np.testing.assert_allclose(density.from_theta(theta), point[: density.d], rtol=1e-10)
    gamma = density.gamma(point[None, :])[0]
    rebuilt = density.point(theta, gamma, density.root_effects(point[None, :])[0])
    np.testing.assert_allclose(rebuilt, point, rtol=1e-10)


def test_an_impossible_point_is_no_trouble() -> None:
    density = density_of("phi")
    point = some_point(density)
    point[density.d] = 1e6
    assert not math.isfinite(density.value(point[None, :])[0]) or density.value(point[None, :])[0] < -1e6
    point[density.d] = math.nan
    assert density.value(point[None, :])[0] == -math.inf


# -- parts and threads -------------------------------------------------------------------------------------------------


@cache
def large() -> Model:
    rng = np.random.default_rng(9)
    n = 4000
    a, b, x = rng.integers(0, 300, n), rng.integers(0, 10, n), rng.normal(size=n)
    eta = 0.2 + 0.5 * x + rng.normal(0, 1, 300)[a] + rng.normal(0, 0.5, 10)[b]
    data = pd.DataFrame({"s": rng.binomial(1, 1 / (1 + np.exp(-eta))), "x": x, "a": a, "b": b})
    return Model.from_formula("s ~ x + (1 | a) + (1 | b)", data, family="bernoulli")


@pytest.mark.parametrize("nodes", [8, 48])
def test_threads_change_no_bit(nodes: int) -> None:
    """Whether a pass is cut in parts depends on the work alone, and the parts are added up in order."""
    densities = [JointDensity(large(), nodes=nodes, threads=threads) for threads in (1, 2, 3)]
    point = some_point(densities[0])
    found = [density.value_and_gradient(point[None, :]) for density in densities]
    passes = [density.curvature(point) for density in densities]
    for (value, gradient), curvature in zip(found[1:], passes[1:], strict=True):
        assert value.tolist() == found[0][0].tolist() and gradient.tolist() == found[0][1].tolist()
        assert curvature.value == passes[0].value and (curvature.precision == passes[0].precision).all()
    many = np.stack([some_point(densities[0], seed) for seed in range(7)])
    values = [density.value(many) for density in densities]
    assert values[0].tolist() == values[1].tolist() == values[2].tolist()
    # one at a time or many at once, on any twin
    assert densities[1].value(many[:1])[0] == values[0][0] == densities[2].with_threads(1).value(many[:3])[0]


def test_parts_are_the_whole() -> None:
    density = JointDensity(large(), nodes=48)
    assert density.work > 100_000
    point = some_point(density)
    in_parts = density._in_parts(GRADIENT, point)
    values, gradients = np.empty(1), np.empty((1, density.size))
    density._joint(GRADIENT, point[None, :], values, gradients, *density._prior_arguments(), *density._row_arguments())
    assert in_parts[0] == pytest.approx(values[0], rel=1e-12)
    np.testing.assert_allclose(in_parts[1], gradients[0], rtol=1e-11, atol=1e-11)


def test_recentre_keeps_the_value() -> None:
    """Starting the searches at the modes found moves nothing but the number of steps."""
    density = density_of("slopes in the root")
    point = some_point(density)
    before = density.value(point[None, :])[0]
    moments = density.recentre(point)
    assert density.unfinished(moments) == 0 and density.start.any()
    assert density.value(point[None, :])[0] == pytest.approx(before, rel=1e-12)
