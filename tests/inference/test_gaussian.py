"""The marginal likelihood of a Gaussian response: against lme4, dense normal densities and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import partialpool as pp
from cases import CASES, lme4_fits, lme4_model, lme4_parameters
from partialpool.inference.gaussian import GaussianMarginal

ML = [name for name, fit in lme4_fits().items() if fit["method"] == "ML"]


@pytest.mark.parametrize("name", ML)
def test_log_likelihood_at_the_estimates_of_lme4(name):
    fit = lme4_fits()[name]
    model = lme4_model(fit)
    value = model.log_likelihood(lme4_parameters(fit, model))
    assert value == pytest.approx(fit["logLik"], rel=1e-9)


@pytest.mark.parametrize("name", lme4_fits())
def test_maximum_likelihood_reaches_the_optimum_of_lme4(name):
    fit = lme4_fits()[name]
    model = lme4_model(fit)
    found = model.maximum_likelihood(reml=fit["method"] == "REML")
    assert found.log_likelihood >= fit["logLik"] - 1e-5
    assert found.log_likelihood == pytest.approx(fit["logLik"], abs=1e-4)
    theirs = np.array(list(fit["fixef"].values()))
    ours = np.array([found.estimates[name] for name in model.design.x_names])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    errors = np.array([found.standard_errors[name] for name in model.design.x_names])
    np.testing.assert_allclose(errors, list(fit["se"].values()), rtol=1e-3)


def dense_log_density(model: pp.Model, theta: np.ndarray, coefficients: str) -> float:
    """log p(y | theta) as one multivariate normal density of y, coefficients integrated over their normal priors."""
    design, hyper = model.design, model.hyperparameters
    n = design.y.size
    sigma = math.exp(theta[hyper.sigma_at]) if hyper.sigma_at is not None else 0.0
    covariance = np.zeros((n, n))
    lams = hyper.factors(theta[None, :])[0]
    for f, factor in enumerate(design.factors):
        width, at = hyper.widths[f], hyper.lam_at[f]
        columns = np.concatenate([group.columns for group in design.groups if group.factor == f])
        z = design.V[:, columns] @ lams[at : at + width * width].reshape(width, width)
        covariance += (z @ z.T) * (factor.codes[:, None] == factor.codes[None, :])
    variance = np.full(n, sigma**2) if design.se is None else design.se**2 + (sigma**2 if design.se_sigma else 0)
    covariance += np.diag(variance / (1 if design.precision is None else design.precision))
    x = design.V[:, design.x_columns] - np.asarray(model.coefficients.centre)
    scale = GaussianMarginal(model).scales(theta[None, :])[0]
    covariance += (x * scale**2) @ x.T
    mean = x @ np.asarray(model.coefficients.mean) + (0 if design.offset is None else design.offset)
    return float(stats.multivariate_normal(mean, covariance).logpdf(design.y))


PROPER = [name for name in CASES if name not in ("flat prior", "weights")]


@pytest.mark.parametrize("name", PROPER)
def test_value_is_the_density_of_one_multivariate_normal(name):
    model = CASES[name].model()
    theta = np.random.default_rng(1).normal(0, 0.3, model.hyperparameters.size)
    if model.hyperparameters.sigma_at is not None:
        theta[model.hyperparameters.sigma_at] += math.log(np.std(model.design.y))
    value, _ = GaussianMarginal(model).value(theta[None, :])
    assert value[0] == pytest.approx(dense_log_density(model, theta, "normal"), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["posterior", "REML", "ML"])
def test_gradient_against_finite_differences(name, kind):
    model = CASES[name].model()
    marginal = GaussianMarginal(model, flat=kind == "REML", profile=kind == "ML")
    hyper = model.hyperparameters
    theta = np.random.default_rng(2).normal(0, 0.4, hyper.size)
    if hyper.sigma_at is not None:
        theta[hyper.sigma_at] += math.log(np.std(model.design.y))
    value, gradient = marginal.value_and_gradient(theta[None, :])
    assert value[0] == pytest.approx(marginal.value(theta[None, :])[0][0], rel=1e-12)
    steps = 1e-5 * np.concatenate([np.eye(hyper.size), -np.eye(hyper.size)])
    ends, _ = marginal.value(theta + steps)
    differences = (ends[: hyper.size] - ends[hyper.size :]) / 2e-5
    np.testing.assert_allclose(gradient[0], differences, rtol=1e-5, atol=1e-4)
    prior, slope = hyper.log_prior(theta[None, :])
    ends, _ = hyper.log_prior(theta + steps)
    np.testing.assert_allclose(slope[0], (ends[: hyper.size] - ends[hyper.size :]) / 2e-5, rtol=1e-5, atol=1e-6)
    assert np.isfinite(prior).all()


def test_a_row_of_weight_two_is_two_rows():
    frame = CASES["weights"].model().design.data
    doubled = frame.loc[frame.index.repeat(frame["w"])].assign(w=1.0)
    priors = {"sd": pp.HalfNormal(1), "sigma": pp.HalfNormal(1), "Intercept": pp.Normal(0, 3), "beta": pp.Normal(0, 1)}
    once = pp.Model.from_formula("y | weights(w) ~ x + (1 | school/cl)", frame, priors=priors)
    twice = pp.Model.from_formula("y ~ x + (1 | school/cl)", doubled, priors=priors)
    values = {"Intercept": 1.9, "x": 0.4, "sd(Intercept|school)": 0.8, "sd(Intercept|school:cl)": 0.4, "sigma": 0.9}
    assert once.log_likelihood(values) == pytest.approx(twice.log_likelihood(values), rel=1e-12)


def test_log_likelihood_refuses_what_it_does_not_know():
    model = CASES["crossed"].model()
    values = {"Intercept": 23.0, "sd(Intercept|plate)": 0.8, "sd(Intercept|sample)": 1.8, "sigma": 0.5}
    with pytest.raises(pp.ModelError, match=r"Did you mean 'sigma'"):
        model.log_likelihood(values | {"sigmaa": 1.0})
    with pytest.raises(pp.ModelError, match="no value for 'sigma'"):
        model.log_likelihood({name: value for name, value in values.items() if name != "sigma"})
    with pytest.raises(pp.ModelError, match="at least 0"):
        model.log_likelihood(values | {"sd(Intercept|plate)": -1.0})
