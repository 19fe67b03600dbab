from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.errors import ModelError, PriorError
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.prior import (
    linear_predictor,
    linear_predictors,
    sample_prior,
    sample_prior_predictive,
    simulate,
    simulate_response,
)
from partialpool.model import Model
from partialpool.spec.distributions import Flat, HalfNormal, Normal, StudentT, Uniform
from partialpool.spec.families import resolve_family

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


# ---- other families -----------------------------------------------------------------------------------------------


def rows_of(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    trials = rng.integers(2, 9, n)
    return pd.DataFrame(
        {
            "one": np.tile([0, 1, 1], n // 3),
            "count": rng.poisson(3, n),
            "events": rng.binomial(trials, 0.4),
            "trials": trials,
            "share": rng.uniform(0.2, 0.8, n),
            "positive": rng.gamma(3, size=n),
            "real": rng.normal(size=n),
            "x": rng.normal(size=n),
            "e": rng.uniform(1, 3, n),
            "g": np.repeat(np.arange(6), n // 6),
            "h": np.tile(np.arange(10), n // 10),
        }
    )


FAMILIES = [
    ("one", "bernoulli"), ("events | trials(trials)", "binomial"), ("events | trials(trials)", "beta_binomial"),
    ("count", "poisson"), ("count", "negative_binomial"), ("count", "negative_binomial1"), ("count", "geometric"),
    ("positive", "exponential"), ("positive", "gamma"), ("positive", "inverse_gaussian"), ("positive", "weibull"),
    ("positive", "lognormal"), ("share", "beta"), ("real", "student_t"),
]  # fmt: skip
TAME = {"Intercept": Normal(0.5, 0.3), "x": Normal(0.2, 0.1), "sd": HalfNormal(0.2)}


@pytest.mark.parametrize(("response", "family"), FAMILIES)
def test_every_family_is_simulated_within_its_support(response: str, family: str) -> None:
    own = {name: Uniform(0.4, 0.6) if name == "sigma" else Uniform(4, 6) for name in resolve_family(family).parameters}
    model = Model.from_formula(f"{response} ~ x + (x | g) + (1 | h)", rows_of(), family=family, priors={**TAME, **own})
    one, again = simulate(model, seed=4), simulate(model, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert one.effects.size == model.latent.n_effects == 22
    assert one.y.shape == (60,) and one.y.dtype == np.float64
    model.with_response(one.y)
    assert list(sample_prior(model, 5, seed=1).columns) == list(model.parameter_names)
    # the mean over many responses of one set of parameters is that of the family
    rng = np.random.default_rng(5)
    many = np.mean([simulate_response(model, *one[:3], rng) for _ in range(400)])
    etas = linear_predictors(model, *one[:3])
    size = 1.0 if model.design.trials is None else model.design.trials
    if hasattr(model.family, "mean"):
        assert many == pytest.approx(float(np.mean(size * model.family.mean(*etas))), rel=0.05)


def test_linear_predictors_add_up_what_the_model_says() -> None:
    data = rows_of()
    terms = pp.formula("real ~ x + offset(e) + (x | g)", sigma="~ 0 + e + (1 | g) + (1 | h)")
    model = Model.from_formula(terms, data)
    one = simulate(model, seed=8)
    beta = dict(zip(model.design.x_names, model.coefficients.to_public(one.gamma), strict=True))
    own = one.effects[model.latent.effects_of(0)]
    crossed = one.effects[model.latent.effects_of(1)][:, 0]
    g, h = data.g.to_numpy(), data.h.to_numpy()
    mean = data.e + beta["Intercept"] + beta["x"] * data.x + own[g, 0] + own[g, 1] * data.x
    log_sigma = beta["sigma.e"] * data.e + own[g, 2] + crossed[h]
    eta0, eta1, eta2 = linear_predictors(model, *one[:3])
    np.testing.assert_allclose(eta0, mean, rtol=1e-12)
    np.testing.assert_allclose(eta1, log_sigma, rtol=1e-12)
    np.testing.assert_array_equal(eta2, 0.0)
    np.testing.assert_allclose(linear_predictor(model, one.gamma, one.effects, 1), log_sigma, rtol=1e-12)


def test_a_parameter_without_a_formula_is_the_same_in_every_row() -> None:
    model = Model.from_formula("real ~ x + (1 | g)", rows_of(), family="student_t")
    one = simulate(model, seed=8)
    _, eta1, eta2 = linear_predictors(model, *one[:3])
    at = model.hyperparameters.auxiliary_at
    np.testing.assert_array_equal(eta1, one.theta[at("sigma")])
    np.testing.assert_array_equal(eta2, one.theta[at("nu")])


def test_group_effects_have_the_covariance_of_their_term() -> None:
    priors = {"sd(Intercept|g)": Uniform(0.999, 1.001), "sd(x|g)": Uniform(1.999, 2.001), "cor(g)": "LKJ(2)"}
    terms = pp.formula("real ~ x + (x | g)", sigma="~ (1 | g)")
    model = Model.from_formula(terms, rows_of(), priors={**priors, "sd(sigma.Intercept|g)": Uniform(2.999, 3.001)})
    rng = np.random.default_rng(2)
    draws = np.concatenate([simulate(model, rng).effects[model.latent.effects_of(0)] for _ in range(1500)])
    np.testing.assert_allclose(draws.std(axis=0), [1, 2, 3], rtol=0.03)
    assert abs(np.corrcoef(draws.T)[2, :2]).max() < 0.04


def test_spread_of_a_distributional_model_follows_its_formula() -> None:
    priors = {"Intercept": Normal(0, 1e-6), "sigma.Intercept": Normal(0.2, 1e-6), "sigma.x": Normal(0.7, 1e-6)}
    model = Model.from_formula(pp.formula("real ~ 1", sigma="~ x"), rows_of(), priors=priors)
    draws = sample_prior_predictive(model, 4000, seed=3)
    np.testing.assert_allclose(draws.std(axis=0), np.exp(0.2 + 0.7 * rows_of().x), rtol=0.06)
