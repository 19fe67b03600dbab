"""Parameters of a family in theta: layout, public names and values, prior density and its gradient, draws."""

from __future__ import annotations

import numpy as np
import pytest

from partialpool.errors import ModelError
from partialpool.spec.covariance import TermCovariance
from partialpool.spec.distributions import Gamma, HalfNormal, HalfStudentT, InverseGamma
from partialpool.spec.hyperparameters import Hyperparameters, TermLayout

TERM = TermLayout(TermCovariance(1, False), 0, "g", ("Intercept",), 0, 0)
OWN = (("sigma", HalfStudentT(3, 2)), ("nu", Gamma(2, 0.1)))
HYPER = Hyperparameters((TERM,), (1,), (0,), ((HalfNormal(1),),), (None,), None, (), OWN)


def test_layout() -> None:
    assert HYPER.size == 3 and HYPER.sigma_at is None
    assert HYPER.names == ("sd(Intercept|g)", "sigma", "nu")
    assert HYPER.auxiliary_slice == slice(1, 3)
    assert [HYPER.auxiliary_at(name) for name in ("sigma", "nu")] == [1, 2]


def test_public_and_back() -> None:
    theta = np.log([[0.5, 2.0, 7.0], [1.5, 0.1, 30.0]])
    np.testing.assert_allclose(HYPER.public(theta), np.exp(theta))
    values = dict(zip(HYPER.names, [0.5, 2.0, 7.0], strict=True))
    np.testing.assert_allclose(HYPER.from_public(values), theta[0])
    for value, says in ((0.0, "nu = 0 is not possible; it must be above 0"), (np.inf, "above 0 and finite")):
        with pytest.raises(ModelError, match=says):
            HYPER.from_public({**values, "nu": value})
    with pytest.raises(ModelError, match="'nu' has no value"):
        HYPER.from_public({"sd(Intercept|g)": 1.0, "sigma": 1.0})


def test_prior_density_and_its_gradient() -> None:
    theta = np.array([[0.2, -0.4, 2.1]])
    x = np.exp(theta[0])
    value, gradient = HYPER.log_prior(theta)
    priors = (HalfNormal(1), *(prior for _, prior in OWN))
    assert value[0] == pytest.approx(sum(float(p.log_density(v)) + np.log(v) for p, v in zip(priors, x, strict=True)))
    for column in range(3):
        step = np.zeros((1, 3))
        step[0, column] = 1e-6
        numeric = (HYPER.log_prior(theta + step)[0] - HYPER.log_prior(theta - step)[0]) / 2e-6
        assert gradient[0, column] == pytest.approx(numeric[0], rel=1e-6)


def test_draws_have_the_moments_of_their_priors() -> None:
    own = (("phi", InverseGamma(5.0, 8.0)), ("nu", Gamma(2, 0.1)))
    hyper = Hyperparameters((TERM,), (1,), (0,), ((HalfNormal(1),),), (None,), None, (), own)
    draws = hyper.public(hyper.sample(np.random.default_rng(1), 40_000))
    assert draws.mean(axis=0) == pytest.approx([np.sqrt(2 / np.pi), 2.0, 20.0], rel=0.02)
