"""The importance-sampling engine: against quadrature, closed forms, and its own promises."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

import partialpool as pp
from cases import CASES, DATA, read
from partialpool.inference import marginal as engine
from partialpool.inference.base import Settings
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.marginal import MarginalEngine


def run(model, **settings):
    return MarginalEngine().run(model, Settings(**({"seed": 1, "threads": 2} | settings)))


def hyper_moments(model, result):
    public = model.hyperparameters.public(result.theta)
    weights = np.exp(result.log_weights)
    mean = weights @ public
    return mean, np.sqrt(weights @ (public - mean) ** 2)


def grid(model, axes, uniform=None):
    """Posterior moments of the hyperparameters, and log p(y), by brute-force summation on a fine grid of theta.

    `uniform` are the ends of the first axis where its grid is even in the sd itself, not in its log.
    """
    mesh = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    log_density = GaussianMarginal(model).value(mesh)[0] + model.hyperparameters.log_prior(mesh)[0]
    cells = [axis[1] - axis[0] for axis in axes]
    if uniform:
        cells[0] = (uniform[1] - uniform[0]) / (axes[0].size + 1)
        log_density -= mesh[:, 0]  # d log sd = d sd / sd
    weights = np.exp(log_density - log_density.max())
    log_evidence = np.log(weights.sum() * np.prod(cells)) + log_density.max()
    weights /= weights.sum()
    public = model.hyperparameters.public(mesh)
    mean = weights @ public
    return mean, np.sqrt(weights @ (public - mean) ** 2), log_evidence


@pytest.mark.parametrize("name", ["sd at zero", "known errors", "t prior"])
def test_posterior_equals_a_grid(name):
    model = CASES[name].model()
    size = model.hyperparameters.size
    result = run(model, ess=20_000)
    if size == 1:
        axes = [np.linspace(-12, 7, 20_000)]
    elif size == 2:
        axes = [np.linspace(-12, 4, 900), np.linspace(0.3, 2.6, 250)]
    else:
        axes = [np.linspace(2, 6.5, 110), np.linspace(2.9, 4, 70), np.linspace(-4, 12, 160)]
    mean, sd, log_evidence = grid(model, axes)
    ours, our_sd = hyper_moments(model, result)
    np.testing.assert_allclose(ours, mean, atol=4 * sd.max() / np.sqrt(20_000), rtol=0.01)
    np.testing.assert_allclose(our_sd, sd, rtol=0.03)
    assert result.log_marginal_likelihood == pytest.approx(log_evidence, abs=0.02)


@pytest.mark.parametrize("name", ["eight_schools", "radon_variable_intercept", "radon_variable_intercept_slope"])
def test_posteriors_of_the_references(name):
    """Means within 0.05 reference sds (0.1 for eight schools, whose reference is Monte Carlo), sds within 5%."""
    reference = json.loads((DATA / "posteriors.json").read_text())[name]
    if name == "eight_schools":
        model = CASES["known errors"].model()
        renamed = {"tau": "sd(Intercept|school)"}
    else:
        half = pp.HalfNormal(1)
        slope = "slope" in name
        model = pp.Model.from_formula(
            "log_radon ~ 1 + floor + (1 + floor || county)" if slope else "log_radon ~ 1 + floor + (1 | county)",
            read("radon.csv"),
            priors={"Intercept": pp.Normal(0, 10), "beta": pp.Normal(0, 10), "sd": half, "sigma": half},
        )
        renamed = {"sigma_y": "sigma", "sigma_alpha": "sd(Intercept|county)", "sigma_beta": "sd(floor|county)"}
    result = run(model, draws=40_000, ess=20_000)
    mean, sd = hyper_moments(model, result)
    names = model.hyperparameters.names
    draws = model.hyperparameters.public(result.draws_theta)
    checked = 0
    for theirs, ours in renamed.items():
        if theirs not in reference["params"] or ours not in names:
            continue
        target, k = reference["params"][theirs], names.index(ours)
        slack = 0.1 if name == "eight_schools" else 0.05
        assert abs(mean[k] - target["mean"]) < slack * target["sd"]
        assert sd[k] == pytest.approx(target["sd"], rel=0.05)
        for q in ("q05", "q95"):
            assert abs(np.quantile(draws[:, k], float(q[1:]) / 100) - target[q]) < 0.1 * target["sd"]
        checked += 1
    assert checked == len([ours for ours in renamed.values() if ours in names])


def test_without_hyperparameters_the_posterior_is_conjugate():
    frame = pd.DataFrame({"y": [1.0, 2.0, 4.0], "s": [1.0, 0.5, 2.0]})
    model = pp.Model.from_formula("y | se(s) ~ 1", frame, priors={"Intercept": pp.Normal(0, 3)})
    result = run(model)
    precision = 1 / 9 + (1 / frame["s"] ** 2).sum()
    assert result.beta_mean[0, 0] == pytest.approx((frame["y"] / frame["s"] ** 2).sum() / precision, rel=1e-12)
    assert result.beta_sd[0, 0] == pytest.approx(precision**-0.5, rel=1e-12)
    covariance = np.diag(frame["s"] ** 2) + 9
    exact = stats.multivariate_normal(np.zeros(3), covariance).logpdf(frame["y"])
    assert result.log_marginal_likelihood == pytest.approx(exact, rel=1e-12)


def test_linear_regression_equals_quadrature_over_sigma():
    model = CASES["no groups"].model()
    result = run(model, ess=20_000)
    marginal = GaussianMarginal(model)

    def density(log_sigma):
        theta = np.array([[log_sigma]])
        return float(marginal.value(theta)[0][0] + model.hyperparameters.log_prior(theta)[0][0])

    peak = density(np.log(47.7))
    total = integrate.quad(lambda t: np.exp(density(t) - peak), 3, 5)[0]
    mean = integrate.quad(lambda t: np.exp(t + density(t) - peak), 3, 5)[0] / total
    assert hyper_moments(model, result)[0][0] == pytest.approx(mean, rel=2e-3)
    assert result.log_marginal_likelihood == pytest.approx(np.log(total) + peak, abs=0.01)


@pytest.mark.parametrize("name", CASES)
def test_every_model_is_explored_well_and_reproducibly(name):
    model = CASES[name].model()
    first, again = run(model, draws=500), run(model, draws=500, threads=1)
    assert first.accuracy.trusted
    assert min(first.accuracy.ess.values()) >= 1000
    for field in ("theta", "log_weights", "draws_theta", "draws_beta", "beta_mean"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert np.isnan(first.log_marginal_likelihood) == (name == "flat prior")


@pytest.mark.parametrize("name", ["correlated slopes", "three levels"])
def test_interpolation_gives_the_same_posterior(name, monkeypatch):
    model = CASES[name].model()
    plain = run(model, ess=4000)
    monkeypatch.setattr(engine, "PATIENCE", 0.0)
    few = run(model, ess=1000)
    used = few.accuracy.surrogate_error is not None
    assert used or any("interpolation given up" in step for step in few.accuracy.steps)
    mean, sd = hyper_moments(model, plain)
    ours, our_sd = hyper_moments(model, few)
    assert np.all(np.abs(ours - mean) < 4 * sd * np.hypot(1000**-0.5, 4000**-0.5))
    np.testing.assert_allclose(our_sd, sd, rtol=0.1)


def test_draws_follow_the_weighted_nodes():
    model = CASES["correlated slopes"].model()
    result = run(model, draws=20_000, ess=20_000)
    weights = np.exp(result.log_weights)
    mean = weights @ result.beta_mean
    sd = np.sqrt(weights @ (result.beta_sd**2 + (result.beta_mean - mean) ** 2))
    np.testing.assert_allclose(result.draws_beta.mean(0), mean, atol=4 * sd.max() / np.sqrt(20_000))
    np.testing.assert_allclose(result.draws_beta.std(0), sd, rtol=0.03)


def years(offset: float) -> pd.DataFrame:
    """Slopes on a predictor whose mean is far from 0."""
    rng = np.random.default_rng(0)
    g = rng.integers(0, 10, 200)
    x = 5 * rng.normal(size=200)
    y = 0.1 * x + rng.normal(size=10)[g] + (g - 4.5) * 0.3 * x + rng.normal(size=200)
    return pd.DataFrame({"y": y, "yr": offset + x, "g": g.astype(str)})


@pytest.mark.parametrize("offset", [50.0, 300.0, 2000.0, 100_000.0])
def test_slopes_on_a_predictor_far_from_zero(offset):
    """The likelihood does not know where a predictor's zero lies (correlated slopes); the search must not either."""
    best = pp.Model.from_formula("y ~ yr + (yr | g)", years(0.0)).maximum_likelihood()
    model = pp.Model.from_formula("y ~ yr + (yr | g)", years(offset))
    found = model.maximum_likelihood()
    assert found.log_likelihood == pytest.approx(best.log_likelihood, abs=1e-4)
    assert found.estimates["sd(yr|g)"] == pytest.approx(best.estimates["sd(yr|g)"], rel=1e-3)
    assert found.estimates["sigma"] == pytest.approx(best.estimates["sigma"], rel=1e-3)
    if offset <= 2000:  # beyond, rounding in the gradient may end the search before its own criterion does
        assert found.status.value == "converged"
    result = run(model)
    assert result.accuracy.engine == "marginal"
    mean, sd = hyper_moments(model, result)
    names = model.hyperparameters.names
    for name in ("sd(yr|g)", "sigma"):
        assert abs(mean[names.index(name)] - best.estimates[name]) < 1.5 * sd[names.index(name)]


@pytest.mark.parametrize("shift", [0.0, 100_123.0, 1.7123e9])
def test_a_constant_added_to_the_response_changes_nothing_but_the_intercept(shift):
    frame = years(0.0)
    formula = "y ~ yr + (1 | g)"
    here = pp.fit(formula, frame, seed=1).summary()
    there = pp.fit(formula, frame.assign(y=frame["y"] + shift), seed=1).summary()
    rows = ["yr", "sd(Intercept|g)", "sigma"]
    np.testing.assert_allclose(there.loc[rows, "mean"], here.loc[rows, "mean"], rtol=2e-3)
    assert there.loc["Intercept", "mean"] - shift == pytest.approx(here.loc["Intercept", "mean"], abs=0.02)


def test_cells_without_an_intercept_are_not_pulled_to_zero():
    frame = years(0.0).assign(f=lambda d: np.where(np.arange(len(d)) % 2, "a", "b"), y=lambda d: d["y"] + 1000)
    cells = pp.fit("y ~ 0 + f + (1 | g)", frame, seed=1).summary()
    treatment = pp.fit("y ~ f + (1 | g)", frame, seed=1).summary()
    assert cells.loc["f[a]", "mean"] == pytest.approx(treatment.loc["Intercept", "mean"], abs=0.3)
    assert cells.loc["sd(Intercept|g)", "mean"] == pytest.approx(treatment.loc["sd(Intercept|g)", "mean"], rel=0.05)


@pytest.mark.parametrize("low, high", [(0, 0.1), (0, 1), (5, 10)])
def test_bounded_priors(low, high):
    model = pp.Model.from_formula("y ~ yr + (1 | g)", years(0.0), priors={"sd(g)": pp.Uniform(low, high)})
    result = run(model, ess=10_000)
    assert result.accuracy.engine == "marginal"
    sds = model.hyperparameters.public(result.draws_theta)[:, 0]
    assert sds.min() > low
    assert sds.max() < high
    mean, sd, log_evidence = grid(
        model, [np.log(np.linspace(low + 1e-9, high - 1e-9, 700))[1:], np.linspace(0.9, 1.9, 160)], uniform=(low, high)
    )
    ours, our_sd = hyper_moments(model, result)
    np.testing.assert_allclose(ours, mean, atol=0.05 * sd.max())
    np.testing.assert_allclose(our_sd, sd, rtol=0.04)
    assert result.log_marginal_likelihood == pytest.approx(log_evidence, abs=0.02)


def test_a_response_that_is_reproduced_exactly_is_refused():
    frame = years(0.0)
    with pytest.raises(pp.DataError, match="sigma cannot be learned"):
        pp.fit("y ~ yr + (1 | g)", frame.assign(y=2 * frame["yr"] + frame["g"].astype(float)))
    with pytest.raises(pp.DataError, match="sigma cannot be learned"):
        pp.fit("y ~ yr", frame.assign(y=2 * frame["yr"]))


def test_a_student_prior_as_the_only_hyperparameter():
    frame = years(0.0).assign(s=1.0)
    fit = pp.fit("y | se(s) ~ yr", frame, priors={"yr": pp.StudentT(3, 0, 1)}, seed=1)
    assert fit.accuracy.trusted
    assert fit.accuracy.ess["yr"] >= 1000


def test_a_flat_sd_prior_needs_three_groups():
    frame = years(0.0).assign(h=lambda d: np.where(d["g"] > "4", "a", "b"))
    with pytest.raises(pp.PriorError, match="at least 3"):
        pp.fit("y ~ yr + (1 | h)", frame, priors={"sd(h)": pp.Flat()})


def test_more_than_can_be_had_is_told():
    fit = pp.fit("y ~ yr + (1 | g)", years(0.0), ess=2_000_000, seed=1)
    assert not fit.accuracy.trusted
    assert any("was reached" in note for note in fit.accuracy.notes)


@pytest.mark.parametrize("seed", [19, 52])
def test_heavy_tails_of_few_groups_need_no_nuts(seed):
    """Six groups, sds near 0 with correlated slopes: the last proposal is fitted anew, with a wider part."""
    rng = np.random.default_rng(seed)
    group, x = np.repeat(np.arange(6), 12), np.tile([0.0, 1.0], 36)
    effects = [0.5 * rng.normal(size=6) for _ in range(2)]
    y = 0.5 * x + effects[0][group] + effects[1][group] * x + rng.normal(size=72)
    data = {"y": y, "x": x, "g": group}
    fits = [pp.fit("y ~ x + (1 + x | g)", data, seed=own, ess=4000) for own in (1, 2)]
    for fit in fits:
        assert fit.accuracy.engine == "marginal" and fit.accuracy.trusted and fit.accuracy.pareto_k < 0.7
        assert any("a fitted and a wider one" in step for step in fit.accuracy.steps)
    one, other = (fit.summary() for fit in fits)
    error = np.sqrt(one["sd"] ** 2 / one["ess"] + other["sd"] ** 2 / other["ess"])
    assert ((one["mean"] - other["mean"]).abs() < 5 * error).all()
