"""NUTS in whitened coordinates of theta and the root."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import partialpool as pp
from partialpool.algebra.joint import INFORMATION
from partialpool.inference.base import Result, Settings
from partialpool.inference.diagnostics import ess_bulk
from partialpool.inference.joint import JointDensity
from partialpool.inference.laplace import LaplaceEngine
from partialpool.inference.root import RootLaplace
from partialpool.inference.whitened_joint import WhitenedJoint, WhitenedJointEngine

Array = NDArray[np.float64]


@cache
def crossed(formula: str = "y ~ x + (1 | a) + (1 | b)") -> pp.Model:
    rng = np.random.default_rng(6)
    n = 200
    a, b, x = rng.integers(0, 20, n), rng.integers(0, 5, n), rng.normal(1.5, 1, n)
    eta = -0.2 + 0.5 * x + rng.normal(0, 0.9, 20)[a] + rng.normal(0, 0.6, 5)[b]
    data = pd.DataFrame({"y": rng.binomial(1, 1 / (1 + np.exp(-eta))), "x": x, "a": a, "b": b})
    priors = {"beta": pp.Normal(0, 1.5), "sd": pp.HalfNormal(1)}
    return pp.Model.from_formula(formula, data, family="bernoulli", priors=priors)


@cache
def whitened(formula: str) -> WhitenedJoint:
    laplace = RootLaplace(JointDensity(crossed(formula), nodes=24))
    laplace.find_mode()
    return WhitenedJoint(laplace, laplace.negative_hessian(), laplace.tilt())


FORMULAS = [
    "y ~ x + (1 | a) + (1 | b)",  # partly centred
    "y ~ x + (1 | a) + (x | b)",  # correlated, explored at the mean of x
    "y ~ x + (x | a)",  # no root
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradient(formula: str) -> None:
    target = whitened(formula)
    density = target.make()
    rng = np.random.default_rng(1)
    for _ in range(2):
        z = 0.5 * rng.normal(size=target.size)
        gradient = density(z)[1].copy()
        rises = np.array([(density(z + move)[0] - density(z - move)[0]) / 2e-5 for move in 1e-5 * np.eye(target.size)])
        np.testing.assert_allclose(gradient, rises, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_mode_is_at_the_origin_and_the_scale_is_one(formula: str) -> None:
    target = whitened(formula)
    density = target.make()
    top = density(np.zeros(target.size))[0]
    drops = np.array([[top - density(sign * axis)[0] for axis in np.eye(target.size)] for sign in (1, -1)])
    assert 0.25 < np.median(drops) < 0.75
    # sds of few groups are skewed, the rest is close to normal
    assert (drops[:, target.d :].mean(axis=0) > 0.25).all() and (drops[:, target.d :].mean(axis=0) < 0.9).all()


@pytest.mark.parametrize("formula", FORMULAS)
def test_points_are_those_of_the_density(formula: str) -> None:
    """What is stored belongs to the values that NUTS saw."""
    target = whitened(formula)
    density = target.make()
    z = 0.4 * np.random.default_rng(2).normal(size=(3, target.size))
    points = target.points(z)
    values = target.joint.value(points)
    for k in range(3):
        phi = (target.mode + target.factor @ z[k])[None, : target.d]
        jacobian = target.laplace.coordinates.log_jacobian(phi, target.laplace.t(phi))[0]
        assert density(z[k])[0] == pytest.approx(values[k] - target.joint.constant + jacobian, rel=1e-10)


def test_centring_follows_the_information() -> None:
    target = whitened(FORMULAS[0])
    information = target.joint.centring[INFORMATION]
    assert information.shape == (5,) and (information > 0).all() and np.isfinite(information).all()
    # and leaves the density of the engine that importance sampling uses as it was
    assert np.isinf(target.laplace.density.centring[INFORMATION]).all()


def test_initial_points() -> None:
    target = whitened(FORMULAS[0])
    starts = np.stack([target.initial(np.random.default_rng(seed)) for seed in range(200)])
    assert starts[:, : target.d].std() == pytest.approx(2.0, rel=0.15)
    assert starts[:, target.d :].std() == pytest.approx(1.0, rel=0.1)


# -- the engine --------------------------------------------------------------------------------------------------------


def summary(result: Result, model: pp.Model) -> tuple[Array, Array, Array]:
    """Mean, sd, effective sample size."""
    values = np.concatenate([result.beta_mean, model.hyperparameters.public(result.theta)], axis=1)
    weights = np.exp(result.log_weights)
    mean = weights @ values
    return mean, np.sqrt(weights @ (values - mean) ** 2), np.array(list(result.accuracy.ess.values()))


@pytest.fixture(scope="module")
def chains() -> Result:
    return WhitenedJointEngine().run(crossed(), Settings(draws=500, ess=400, seed=3))


def test_agrees_with_importance_sampling(chains: Result) -> None:
    weighted = LaplaceEngine().run(crossed(), Settings(ess=2000, seed=4))
    assert weighted.accuracy.engine == "laplace" and weighted.accuracy.trusted
    mean, sd, ess = summary(chains, crossed())
    other_mean, other_sd, other_ess = summary(weighted, crossed())
    assert (np.abs(mean - other_mean) < 4 * other_sd * np.sqrt(1 / ess + 1 / other_ess)).all()
    np.testing.assert_allclose(sd, other_sd, rtol=0.15)
    # the root's effects too
    assert chains.root is not None and weighted.root is not None
    weights = np.exp(weighted.log_weights)
    own, other = chains.root.mean(axis=0), weights @ weighted.root
    spread = np.sqrt(weights @ (weighted.root - other) ** 2)
    reached = ess_bulk(chains.root.reshape(4, -1, chains.root.shape[1]))
    assert (np.abs(own - other) < 4.5 * spread * np.sqrt(1 / reached + 1 / 1000)).all()


def test_what_the_chains_tell(chains: Result) -> None:
    accuracy = chains.accuracy
    assert accuracy.engine == "whitened"
    assert accuracy.divergences is not None and accuracy.divergences <= 2
    assert accuracy.trusted == (accuracy.divergences == 0)
    assert accuracy.rhat is not None and max(accuracy.rhat.values()) < 1.01 and min(accuracy.ess.values()) >= 400
    assert any("4 chains of" in step and "whitened dimensions" in step for step in accuracy.steps)
    assert any("leaf by quadrature" in step for step in accuracy.steps)
    assert chains.draws_theta.shape == (500, 2) and chains.draws_root is not None
    assert chains.draws_root.shape == (500, 5) and np.isnan(chains.log_marginal_likelihood)


def test_seeds_reproduce(chains: Result) -> None:
    again = WhitenedJointEngine().run(crossed(), Settings(draws=500, ess=400, seed=3, threads=2))
    assert (again.theta == chains.theta).all() and (again.draws_beta == chains.draws_beta).all()
