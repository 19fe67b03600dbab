from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from partialpool.errors import ModelError, PriorError
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.prior import sample_prior, sample_prior_predictive, simulate
from partialpool.model import Model
from partialpool.spec.distributions import Flat, HalfNormal, Normal, StudentT

PRIORS = {"Intercept": Normal(3, 2), "x": Normal(-1, 0.5), "sd": HalfNormal(1), "sigma": HalfNormal(2)}


def frame(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "x": rng.normal(5, 1, n),
            "g": np.repeat(list("abcdef"), n // 6),
            "s": rng.uniform(0.5, 2, n),
            "w": rng.uniform(0.5, 2, n),
            "o": np.linspace(0, 50, n),
        }
    )


def test_parameters_have_the_moments_of_their_priors() -> None:
    model = Model.from_formula("y ~ x + (1 + x | g)", frame(), priors={**PRIORS, "cor": "LKJ(2)"})
    named = Model.from_formula("y ~ x + (1 + x | g)", frame(), priors={**PRIORS, "cor(Intercept,x|g)": "LKJ(2)"})
    assert dict(named.priors) == dict(model.priors)  # the name that summary() shows
    draws = sample_prior(model, 20_000, seed=2)
    assert list(draws.columns) == list(model.parameter_names)
    assert abs(draws["Intercept"].mean() - 3) < 0.06
    assert abs(draws["Intercept"].std() - 2) < 0.05
    assert abs(draws["x"].mean() + 1) < 0.02
    assert abs(draws["sd(x|g)"].mean() - np.sqrt(2 / np.pi)) < 0.02
    assert abs(draws["cor(Intercept,x|g)"].var() - 0.2) < 0.01  # LKJ(2) of size 2: variance 1 / (2 eta + 1)


def test_default_intercept_is_at_the_centre_of_the_predictors() -> None:
    data = frame()
    model = Model.from_formula("y ~ x + (1 | g)", data)
    draws = sample_prior(model, 20_000, seed=2)
    prior = model.priors["Intercept"]
    at_centre = draws["Intercept"] + draws["x"] * data["x"].mean()
    assert abs(at_centre.std() / prior.sigma - 1) < 0.03  # type: ignore[attr-defined]
    assert draws["Intercept"].std() > 2 * prior.sigma  # type: ignore[attr-defined]


def test_a_student_prior_keeps_its_tails() -> None:
    model = Model.from_formula("y ~ x + (1 | g)", frame(), priors={"x": StudentT(3, 1, 0.5)})
    draws = sample_prior(model, 40_000, seed=2)["x"]
    assert np.allclose(np.quantile(draws, [0.05, 0.5, 0.95]), 1 + 0.5 * np.array([-2.353, 0, 2.353]), atol=0.04)


@pytest.mark.parametrize("addition", ["se(s, sigma=True)", "precision(w)"])
def test_predictive_variance_is_that_of_the_model(addition: str) -> None:
    data = frame()
    priors = {"x": Normal(0, 0.1), "sd": HalfNormal(1), "sigma": HalfNormal(2)}
    model = Model.from_formula(f"y | {addition} ~ 0 + x + offset(o) + (1 | g)", data, priors=priors)
    draws = sample_prior_predictive(model, 4000, seed=3)
    assert draws.shape == (4000, 60)
    residual = 4 / data["w"] if addition.startswith("precision") else data["s"] ** 2 + 4
    variance = 0.01 * data["x"] ** 2 + 1 + residual
    assert np.abs(draws.var(axis=0) / variance - 1).mean() < 0.05
    assert np.abs((draws.mean(axis=0) - data["o"]) / np.sqrt(variance / 4000)).max() < 5


def test_weights_change_no_row() -> None:
    priors = {**PRIORS}
    plain = Model.from_formula("y ~ x + (1 | g)", frame(), priors=priors)
    weighted = Model.from_formula("y | weights(w) ~ x + (1 | g)", frame(), priors=priors)
    assert np.array_equal(sample_prior_predictive(plain, 3, seed=1), sample_prior_predictive(weighted, 3, seed=1))


def test_a_simulation_fits_its_own_parameters() -> None:
    model = Model.from_formula("y ~ x + (1 | g)", frame(), priors=PRIORS)
    one = simulate(model, seed=4)
    again = simulate(model, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    replicate = model.with_response(one.y)
    theta = one.theta[None, :]
    mean = GaussianMarginal(replicate).moments(theta).u_mean[0]
    assert np.corrcoef(mean, one.effects)[0, 1] > 0 or np.exp(theta[0, 0]) < np.exp(theta[0, 1])


@pytest.mark.parametrize("draws", [0, -3, 2.5, True])
def test_impossible_draws(draws: object) -> None:
    model = Model.from_formula("y ~ x + (1 | g)", frame(), priors=PRIORS)
    with pytest.raises(ModelError, match="draws must be a whole number above 0"):
        sample_prior(model, draws)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="draws"):
        sample_prior_predictive(model, draws)  # type: ignore[arg-type]


def test_flat_priors_are_named() -> None:
    model = Model.from_formula("y ~ x + (1 | g)", frame(), priors={**PRIORS, "x": Flat()})
    with pytest.raises(PriorError, match=r"'x' is flat.*proper prior"):
        sample_prior(model, 10)
    with pytest.raises(PriorError, match="flat"):
        simulate(model)
