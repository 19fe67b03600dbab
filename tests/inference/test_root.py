"""The root by Laplace: its mode, its precision as theta moves, and theta with the root integrated out."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import partialpool as pp
from glmer import model as glmer_model
from partialpool.inference.joint import JointDensity
from partialpool.inference.root import RootLaplace, cho_solve, definite, link_spread, precision_of_term

Array = NDArray[np.float64]


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    n = 400
    a, b = rng.integers(0, 40, n), rng.integers(0, 8, n)
    x = rng.normal(size=n)
    eta = 0.2 + 0.5 * x + rng.normal(0, 0.8, 40)[a] + rng.normal(0, 0.7, 8)[b]
    return pd.DataFrame({"y": rng.binomial(1, 1 / (1 + np.exp(-eta))), "x": x, "a": a, "b": b})


@cache
def found() -> RootLaplace:
    model = pp.Model.from_formula(
        "y ~ x + (1 | a) + (x | b)", data(), family="bernoulli", priors={"x": pp.StudentT(4, 0, 1)}
    )
    laplace = RootLaplace(JointDensity(model, nodes=24))
    laplace.find_mode()
    return laplace


def test_the_root_rests_at_its_mode() -> None:
    laplace = found()
    density = laplace.density
    gradient = density.value_and_gradient(laplace.point(laplace.phi, laplace.root)[None, :])[1][0, laplace.d :]
    point = laplace.point(laplace.phi, laplace.root)
    matrix = laplace.matrices(laplace.phi[None, :], point)[0]
    assert gradient @ np.linalg.solve(matrix, gradient) < 1e-4
    assert not laplace.status


def test_precision_is_the_hessian_of_the_density() -> None:
    """At the mode, in the root, but for the t prior's weight in place of its curvature."""
    laplace = found()
    density = laplace.density
    point = laplace.point(laplace.phi, laplace.root)
    matrix = laplace.matrices(laplace.phi[None, :], point)[0]
    moves = 1e-4 * np.eye(density.size)[laplace.d :]
    rises = density.value_and_gradient(point + moves)[1] - density.value_and_gradient(point - moves)[1]
    hessian = -rises[:, laplace.d :] / 2e-4
    b = point[density.d + 1]
    hessian[1, 1] += 5 / (4 + b * b) - 5 * (4 - b * b) / (4 + b * b) ** 2
    np.testing.assert_allclose(matrix, hessian, atol=2e-3, rtol=1e-3)


def test_the_mode_is_that_of_theta_with_the_root_integrated_out() -> None:
    """L by its definition, with the Hessian taken anew at each theta, has its top there."""
    laplace = found()

    def marginal(phi: Array) -> float:
        own = RootLaplace(laplace.density)
        own.phi, own.root = phi, laplace.root
        own.refresh()
        point = own.point(phi, own.root)
        value = (
            own.density.value(point[None, :])[0]
            + laplace.coordinates.log_jacobian(phi[None, :], own.t(phi[None, :]))[0]
        )
        return float(value - 0.5 * np.linalg.slogdet(own.matrices(phi[None, :], point)[0])[1])

    inverse = np.linalg.inv(laplace.negative_hessian())
    slopes = []
    for j in range(laplace.d):
        step = np.zeros(laplace.d)
        step[j] = 0.02
        slopes.append((marginal(laplace.phi + step) - marginal(laplace.phi - step)) / 0.04)
    # what is left to gain is a small part of one sd of theta
    assert np.array(slopes) @ inverse @ np.array(slopes) < 0.02


def test_objective_has_the_gradient_of_its_value() -> None:
    laplace = found()
    laplace._latest = laplace.root
    phi = laplace.phi + 0.1
    _, gradient = laplace.objective(phi[None, :])
    steps = 1e-3 * np.eye(laplace.d)
    rises = (laplace.objective(phi + steps)[0] - laplace.objective(phi - steps)[0]) / 2e-3
    np.testing.assert_allclose(gradient[0], rises, atol=5e-3, rtol=5e-3)


def test_conditional_at_the_reference() -> None:
    laplace = found()
    tilt = laplace.tilt()
    pull, low = laplace.conditional(laplace.phi[None, :], tilt)
    assert not pull.any()
    matrix = laplace.matrices(laplace.phi[None, :], laplace.point(laplace.phi, laplace.root))[0]
    np.testing.assert_allclose(low[0] @ low[0].T, matrix)


def test_conditional_mean_follows_the_mode() -> None:
    """A step in theta: predicted by the tilt, found by Newton's method."""
    laplace = found()
    tilt = laplace.tilt()
    phi = laplace.phi + 0.15 * np.eye(laplace.d)[1]  # the first sd of the root's factor
    pull, low = laplace.conditional(phi[None, :], tilt)
    predicted = laplace.root + cho_solve(low[0], pull[0])
    settled = laplace.settle(phi, laplace.root)[2]
    assert np.abs(predicted - settled).max() < 0.25 * np.abs(settled - laplace.root).max()


def test_small_sds_shrink_the_root() -> None:
    laplace = found()
    phi = laplace.phi.copy()
    term, own = laplace.blocks[0]
    phi[term.at : term.at + 2] = -6.0
    point = laplace.point(laplace.phi, laplace.root)
    variance = np.diag(np.linalg.inv(laplace.matrices(phi[None, :], point)[0]))
    before = np.diag(np.linalg.inv(laplace.matrices(laplace.phi[None, :], point)[0]))
    assert variance[own].max() < 1e-3 * before[own].min()


def test_no_groups_and_no_root() -> None:
    """Logistic regression: the mode by scipy."""
    from scipy.optimize import minimize

    model = pp.Model.from_formula(
        "y ~ x", data(), family="bernoulli", priors={"beta": pp.Normal(0, 1), "Intercept": pp.Normal(0, 2)}
    )
    laplace = RootLaplace(JointDensity(model))
    laplace.find_mode()
    x, y = data()["x"].to_numpy(), data()["y"].to_numpy()

    def falls(beta: Array) -> float:
        eta = beta[0] + beta[1] * x
        return -float((y * eta - np.logaddexp(0, eta)).sum() - 0.5 * beta[1] ** 2 - 0.125 * beta[0] ** 2)

    best = minimize(falls, np.zeros(2), tol=1e-10).x
    gamma = laplace.density.gamma(laplace.point(laplace.phi, laplace.root)[None, :])[0]
    np.testing.assert_allclose(model.coefficients.to_public(gamma), best, atol=1e-4)


def test_more_nodes_do_not_move_the_mode() -> None:
    """Toenail, where few nodes are not enough; glmer's maximum of the likelihood is near."""
    modes = []
    for nodes in (48, 96):
        laplace = RootLaplace(JointDensity(glmer_model("toenail"), nodes=nodes))
        laplace.find_mode()
        modes.append(float(np.exp(laplace.density.theta(laplace.t(laplace.phi[None, :]))[0, 0])))
    assert modes[0] == pytest.approx(modes[1], abs=2e-3) and modes[1] == pytest.approx(4.0, abs=0.1)


def test_definite() -> None:
    good = np.array([[2.0, 0.5], [0.5, 1.0]])
    assert definite(good) is good
    raised = definite(np.array([[1.0, 3.0], [3.0, 1.0]]))
    np.testing.assert_allclose(np.linalg.eigvalsh(raised), [2.0, 4.0])


def test_precision_of_a_term() -> None:
    laplace = found()
    term, _ = laplace.blocks[0]
    theta = laplace.density.theta(laplace.t(laplace.phi[None, :]))
    lam = term.covariance.factor(theta[:, term.parameters])[0]
    np.testing.assert_allclose(precision_of_term(term, theta)[0], np.linalg.inv(lam @ lam.T))


@pytest.mark.parametrize(("family", "expected"), [("gaussian", 3.0), ("lognormal", 0.5)])
def test_link_spread(family: str, expected: float) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(10, 3, 4000) if family == "gaussian" else np.exp(rng.normal(2, 0.5, 4000))
    frame = pd.DataFrame({"y": y, "g": np.arange(4000) % 9})
    formula = pp.formula("y ~ 1 + (1 | g)", sigma="~ 1 + (1 | g)") if family == "gaussian" else "y ~ 1 + (1 | g)"
    assert link_spread(pp.Model.from_formula(formula, frame, family=family)) == pytest.approx(expected, rel=0.05)
