"""The figures that the issue promises, from textbooks and from reference computations."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaln

import partialpool as pp


@pytest.fixture(scope="module")
def cases(data_folder):
    return json.loads((data_folder / "pooling.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tumors():
    return pp.datasets.load("tumors")


@pytest.fixture(scope="module")
def baseball():
    return pp.datasets.load("bball1970")


@pytest.fixture(scope="module")
def schools():
    return pp.datasets.load("eight_schools")


@pytest.mark.parametrize(("n", "mean", "expected"), [(3, -1.5, -1.0625), (12, 0.1, 0.1115384615384615)])
def test_weights_of_a_mean_of_n_observations(n, mean, expected):
    # sigma^2 = tau^2 = 1: the weight on the unit's own mean is n / (n + 1)
    row = pp.pool([mean], se=[1 / np.sqrt(n)], population=pp.Normal(0.25, 1)).table.loc[0]
    assert row["mean"] == pytest.approx(expected, rel=1e-12)
    assert row["weight"] == pytest.approx(n / (n + 1), rel=1e-12)
    assert row["sd"] == pytest.approx(np.sqrt(1 / (n + 1)), rel=1e-12)


def test_readmissions(cases):
    case = cases["hospitals_fixed_gamma"]
    pooled = pp.pool(case["counts"], exposure=case["exposure"], population=pp.Gamma(case["shape"], rate=case["rate"]))
    np.testing.assert_allclose(pooled.table["mean"], case["posterior_mean"], rtol=1e-12)
    np.testing.assert_allclose(pooled.table["mean"], [1.3, 0.9, 1.19565], atol=5e-6)
    np.testing.assert_allclose(pooled.table["raw"], [1.5, 0.5, 1.2], rtol=1e-15)
    assert pooled.complete_pooling == pytest.approx(56 / 48, rel=1e-15)
    law = stats.gamma(7 + np.array([6, 2, 48]), scale=1 / (6 + np.array([4, 4, 40])))
    np.testing.assert_allclose(pooled.table["q05"], law.ppf(0.05), rtol=1e-9)
    np.testing.assert_allclose(pooled.table["q95"], law.ppf(0.95), rtol=1e-9)
    np.testing.assert_allclose(pooled.table["sd"], law.std(), rtol=1e-12)


def test_a_batter():
    row = pp.pool(9, trials=30, population=pp.Beta(75, 225)).table.loc[0]
    assert round(row["mean"], 4) == 0.2545
    assert row["mean"] == pytest.approx(84 / 330, rel=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_seven_good_reviews_of_ten(a, b):
    row = pp.pool([7], trials=[10], population=pp.Beta(a, b)).table.loc[0]
    assert row["mean"] == pytest.approx((a + 7) / (a + b + 10), rel=1e-12)
    assert row["weight"] == pytest.approx(10 / (a + b + 10), rel=1e-9)
    assert row["sd"] == pytest.approx(stats.beta(a + 7, b + 3).std(), rel=1e-9)


def test_tumors_full_bayes(cases, tumors):
    case = cases["tumors_beta_binomial_full_bayes"]
    pooled = pp.pool("y", trials="K", data=tumors, priors="bda")
    summary = pooled.summary()
    assert summary.loc["alpha", "q50"] == pytest.approx(case["alpha_median"], rel=1e-4)
    assert summary.loc["beta", "q50"] == pytest.approx(case["beta_median"], rel=1e-4)
    assert np.isinf(summary.loc[["alpha", "beta"], ["mean", "sd"]].to_numpy()).all()
    assert summary.loc["mean", "mean"] == pytest.approx(case["population_mean"], rel=1e-4)
    assert pooled.population.mean == pytest.approx(case["population_mean"], rel=1e-4)
    for number in case["theta_mean"]:
        row = pooled.table.loc[int(number) - 1]
        assert row["mean"] == pytest.approx(case["theta_mean"][number], rel=1e-4)
        assert row["sd"] == pytest.approx(case["theta_sd"][number], rel=1e-4)
    assert np.isnan(pooled.log_marginal_likelihood)  # an improper prior leaves it without a meaning


def test_tumors_empirical_bayes(cases, tumors):
    case = cases["tumors_beta_binomial_empirical_bayes"]
    pooled = pp.pool("y", trials="K", data=tumors, method="empirical_bayes")
    summary = pooled.summary()
    assert summary.loc["alpha", "mean"] == pytest.approx(case["alpha"], rel=1e-4)
    assert summary.loc["beta", "mean"] == pytest.approx(case["beta"], rel=1e-4)
    coefficients = -np.log1p(tumors["K"]) - betaln(tumors["y"] + 1, tumors["K"] - tumors["y"] + 1)
    without = pooled.log_marginal_likelihood - float(coefficients.sum())
    assert without == pytest.approx(case["log_marginal_likelihood_without_binomial_coefficients"], rel=1e-9)


def test_eight_schools_empirical_bayes(cases, schools):
    case = cases["eight_schools_empirical_bayes"]
    pooled = pp.pool("y", se="sigma", data=schools, method="empirical_bayes")
    assert pooled.population.tau == 0.0
    np.testing.assert_allclose(pooled.table["mean"], case["mu"], rtol=1e-9)
    np.testing.assert_array_equal(pooled.table["sd"], 0.0)
    np.testing.assert_array_equal(pooled.table["weight"], 0.0)
    assert pooled.complete_pooling == pytest.approx(case["mu"], rel=1e-12)
    # explained, with the honest intervals beside
    assert any("do not differ" in note for note in pooled.accuracy.notes)
    assert (pooled.table["bayes_q95"] - pooled.table["bayes_q05"] > 10).all()


def test_eight_schools_flat_tau(cases, schools):
    case = cases["eight_schools_flat_tau_on_0_40"]
    pooled = pp.pool("y", se="sigma", data=schools, priors={"mean": pp.Flat(), "sd": pp.Uniform(0, 40)})
    summary = pooled.summary()
    assert summary.loc["mean", "mean"] == pytest.approx(case["mu_mean"], rel=5e-4)
    assert summary.loc["sd", "mean"] == pytest.approx(case["tau_mean"], rel=5e-4)
    np.testing.assert_allclose(pooled.table["mean"], case["theta_mean"], rtol=5e-4)


def test_eight_schools_under_the_priors_of_posteriordb(data_folder, schools):
    case = json.loads((data_folder / "posteriors.json").read_text())["eight_schools"]["params"]
    pooled = pp.pool("y", se="sigma", data=schools, priors={"mean": pp.Normal(0, 5), "sd": pp.HalfCauchy(5)})
    for j, row in pooled.table.iterrows():
        reference = case[f"theta[{j + 1}]"]
        for column in ("mean", "sd", "q05", "q95"):
            assert row[column] == pytest.approx(reference[column], abs=0.1 * reference["sd"]), (j, column)
    summary = pooled.summary()
    assert summary.loc["mean", "mean"] == pytest.approx(case["mu"]["mean"], abs=0.1 * case["mu"]["sd"])
    assert summary.loc["sd", "mean"] == pytest.approx(case["tau"]["mean"], abs=0.1 * case["tau"]["sd"])


def test_bcg(cases):
    case = cases["bcg_log_risk_ratio"]
    effects = pp.effect_sizes(
        "risk ratio", events_treatment="tpos", nonevents_treatment="tneg", events_control="cpos",
        nonevents_control="cneg", data=pp.datasets.load("bcg"),
    )  # fmt: skip
    report = pp.pool("estimate", se="se", data=effects).meta_analysis()
    assert report.tau2 == pytest.approx(case["reml_tau2"], rel=1e-4)
    assert report.mean == pytest.approx(case["mu"], rel=1e-4)
    assert report.se == pytest.approx(case["se"], rel=1e-4)
    assert round(100 * report.i2, 2) == 92.22
    assert [round(end, 3) for end in report.prediction_interval] == [-2.008, 0.579]


def test_baseball(cases, baseball):
    case = cases["bball1970_beta_binomial_empirical_bayes"]
    pooled = pp.pool("Hits", trials="AB", units="Player", data=baseball, method="empirical_bayes")
    table, summary = pooled.table, pooled.summary()
    # the likelihood is so flat that alpha and beta are known to about the root of the rounding error
    assert summary.loc["alpha", "mean"] == pytest.approx(case["alpha"], rel=1e-4)
    assert summary.loc["beta", "mean"] == pytest.approx(case["beta"], rel=1e-4)
    assert table.loc[0, "mean"] == pytest.approx(case["theta_first"], rel=1e-5)
    season = (baseball["RemainingHits"] / baseball["RemainingAB"]).to_numpy()
    assert ((table["raw"] - season) ** 2).sum() == pytest.approx(case["sse_raw"], rel=1e-9)
    assert ((table["mean"] - season) ** 2).sum() == pytest.approx(case["sse_pooled"], rel=1e-4)
    assert round(float(((table["raw"] - season) ** 2).sum()), 4) == 0.0857
    assert round(float(((table["mean"] - season) ** 2).sum()), 4) == 0.0273


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 9), st.floats(-3, 9), st.integers(1, 400), st.data())
def test_marginal_of_binomial_over_beta_is_beta_binomial(log_a, log_b, n, data):
    a, b = 10**log_a, 10**log_b
    y = np.array([0, n, data.draw(st.integers(0, n))])
    marginal = pp.pool([1], trials=[2], population=pp.Beta(a, b)).population.marginal(n)
    # scipy's differences of log-beta functions lose digits as alpha + beta grows: judged by sums of logs there
    np.testing.assert_allclose(
        marginal.log_density(y), [exact_beta_binomial(k, n, a, b) for k in y], rtol=1e-10, atol=1e-10
    )
    if a + b < 1e4:
        np.testing.assert_allclose(marginal.log_density(y), stats.betabinom(n, a, b).logpmf(y), rtol=1e-10, atol=1e-10)
    assert marginal.mean == pytest.approx(stats.betabinom(n, a, b).mean(), rel=1e-9)
    variance = n * a * b * (a + b + n) / ((a + b) ** 2 * (a + b + 1))
    assert marginal.variance == pytest.approx(variance, rel=1e-6)
    assert marginal.extra == pytest.approx((a + b + n) / (a + b + 1), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 9), st.floats(-2, 2), st.floats(-2, 3), st.integers(0, 500))
def test_marginal_of_poisson_over_gamma_is_negative_binomial(log_shape, log_mean, log_exposure, y):
    shape, exposure = 10**log_shape, 10**log_exposure
    rate = shape / 10**log_mean
    marginal = pp.pool([1], exposure=[2], population=pp.Gamma(shape, rate=rate)).population.marginal(exposure)
    values = np.array([0, y])
    exact = [exact_negative_binomial(k, exposure, shape, rate) for k in values]
    np.testing.assert_allclose(marginal.log_density(values), exact, rtol=1e-10, atol=1e-10)
    if shape < 1e4 and y < 100:
        law = stats.nbinom(shape, rate / (rate + exposure))
        np.testing.assert_allclose(marginal.log_density(values), law.logpmf(values), rtol=1e-10, atol=1e-9)
    assert marginal.mean == pytest.approx(exposure * shape / rate, rel=1e-9)
    assert marginal.variance == pytest.approx(exposure * shape / rate * (1 + exposure / rate), rel=1e-9)
    assert marginal.extra == pytest.approx(1 + exposure / rate, rel=1e-9)


def exact_beta_binomial(y, n, a, b):
    """log p(y) as a sum of logs of ratios near 1: no digits cancel."""
    terms = [math.log((a + i) / (a + b + i)) for i in range(y)]
    terms += [math.log((b + i) / (a + b + y + i)) for i in range(n - y)]
    return math.fsum([math.log(math.comb(n, y)), *terms])


def exact_negative_binomial(y, exposure, shape, rate):
    """log p(y) likewise."""
    terms = [math.log((shape + i) / (rate + exposure) * exposure / (i + 1)) for i in range(int(y))]
    return math.fsum([-shape * math.log1p(exposure / rate), *terms])
