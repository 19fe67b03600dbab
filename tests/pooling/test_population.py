"""The population: parameters, I², prediction intervals, densities, and what it says of data."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

import partialpool as pp
from partialpool.errors import ModelError
from partialpool.pooling.population import typical_variance

Y, SE = np.array([2.8, -0.7, 1.4, 0.2, 4.1, -3.9]), np.array([1.0, 0.4, 0.7, 0.8, 1.2, 0.9])
EVENTS, TRIALS = np.array([1, 3, 9, 0, 2, 17]), np.array([10, 10, 12, 9, 9, 20])
COUNTS, EXPOSURE = np.array([4, 0, 31, 2, 7, 3]), np.array([3.0, 2.5, 4.0, 2.5, 1.0, 2.0])
DATA = {
    "normal": (Y, {"se": SE}),
    "binomial": (EVENTS, {"trials": TRIALS}),
    "poisson": (COUNTS, {"exposure": EXPOSURE}),
}


def test_typical_variance():
    w = 1 / SE**2
    expected = 5 * w.sum() / (w.sum() ** 2 - (w**2).sum())
    assert typical_variance(SE) == pytest.approx(expected, rel=1e-14)
    assert typical_variance(np.full(7, 0.3)) == pytest.approx(0.09, rel=1e-12)
    assert typical_variance(np.array([0.3])) == pytest.approx(0.09, rel=1e-12)


def test_i_squared():
    pooled = pp.pool(Y, se=SE, method="empirical_bayes")
    tau = pooled.population.tau
    assert pooled.population.i_squared == pytest.approx(tau**2 / (tau**2 + typical_variance(SE)), rel=1e-12)
    full = pp.pool(Y, se=SE)
    row = full.summary().loc["I2"]
    assert 0 < row["q05"] < row["q50"] < row["q95"] < 1
    assert full.population.i_squared == pytest.approx(row["mean"])
    # quantiles follow the sd's, since I² grows with it
    for column in ("q05", "q50", "q95"):
        sd = full.summary().loc["sd", column]
        assert row[column] == pytest.approx(sd**2 / (sd**2 + typical_variance(SE)), rel=1e-3)
    assert np.isnan(pp.pool(EVENTS, trials=TRIALS).population.i_squared)


@pytest.mark.parametrize("family", DATA)
@pytest.mark.parametrize(
    "population", ["conjugate", "normal", "student_t", "point_normal", "scale_mixture", "unimodal", "npmle"]
)
def test_density_atoms_distribution_and_quantiles_agree(family, population):
    values, size = DATA[family]
    pooled = pp.pool(values, **size, population=population, method="empirical_bayes")
    p = pooled.population
    low, high = p.quantile([0.02, 0.98])
    places, masses = p.atoms
    inside = masses[(places > low) & (places <= high)].sum()
    if high > low:
        cuts = np.unique(
            np.concatenate([[low, high], p.quantile([0.25, 0.5, 0.75]), places[(places > low) & (places < high)]])
        )
        area = sum(
            integrate.quad(lambda x: float(p.density(np.array([x]))[0]), a, b, limit=200, epsabs=1e-9)[0]
            for a, b in itertools.pairwise(cuts)
        )
        assert area + inside == pytest.approx(float(p.cdf(high) - p.cdf(low)), abs=1e-5)
    assert masses.sum() <= 1 + 1e-12
    interval = p.prediction_interval(0.9)
    assert float(p.cdf(interval[1])) >= 0.95 - 1e-9
    assert interval[0] <= p.quantile(0.5)[0] <= interval[1]
    if family == "binomial":
        assert interval[0] >= 0
        assert interval[1] <= 1
    assert p.density(np.zeros((2, 3)) + 0.3).shape == (2, 3)


@pytest.mark.parametrize("family", DATA)
def test_the_prediction_interval_holds_new_units(family):
    values, size = DATA[family]
    pooled = pp.pool(values, **size)
    low, high = pooled.population.prediction_interval(0.8)
    assert float(pooled.population.cdf(low)) == pytest.approx(0.1, abs=1e-8)
    assert float(pooled.population.cdf(high)) == pytest.approx(0.9, abs=1e-8)
    for probability in (0, 1, -0.1, 2):
        with pytest.raises(ModelError):
            pooled.population.prediction_interval(probability)


def test_a_new_unit_of_full_bayes_is_a_mixture_over_the_hyperparameters():
    pooled = pp.pool(Y, se=SE, priors={"mean": pp.Normal(0, 3), "sd": pp.HalfNormal(2)})
    sd = np.linspace(0, 14, 1401)[1:]
    total = SE[:, None] ** 2 + sd**2
    precision = (1 / total).sum(axis=0) + 1 / 9
    mean = (Y[:, None] / total).sum(axis=0) / precision
    fit = (Y[:, None] ** 2 / total).sum(axis=0) - mean**2 * precision
    logs = -0.5 * np.log(total).sum(axis=0) - 0.5 * fit - 0.5 * np.log(precision) + stats.halfnorm(scale=2).logpdf(sd)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    x = np.array([-6.0, -1.0, 0.5, 3.0, 9.0])
    cdf = (weights * stats.norm.cdf((x[:, None] - mean) / np.sqrt(sd**2 + 1 / precision))).sum(axis=1)
    np.testing.assert_allclose(pooled.population.cdf(x), cdf, atol=2e-5)
    expected = weights @ mean
    assert pooled.population.mean == pytest.approx(expected, abs=1e-4)
    variance = weights @ (sd**2 + 1 / precision + (mean - expected) ** 2)
    assert pooled.population.sd == pytest.approx(np.sqrt(variance), rel=1e-4)
    marginal = pooled.population.marginal(0.7)
    density = (weights * stats.norm.pdf(1.0, mean, np.sqrt(sd**2 + 1 / precision + 0.49))).sum()
    assert float(marginal.log_density(1.0)) == pytest.approx(np.log(density), abs=2e-5)


def test_extra_variance_of_counts():
    beta = pp.pool(EVENTS, trials=TRIALS, method="empirical_bayes").population
    a, b = beta["alpha"].mean, beta["beta"].mean
    marginal = beta.marginal(25)
    law = stats.betabinom(25, a, b)
    assert marginal.variance == pytest.approx(law.var(), rel=1e-9)
    assert marginal.extra == pytest.approx((a + b + 25) / (a + b + 1), rel=1e-9)
    np.testing.assert_allclose(marginal.log_density(np.arange(26)), law.logpmf(np.arange(26)), rtol=1e-10, atol=1e-10)
    gamma = pp.pool(COUNTS, exposure=EXPOSURE, method="empirical_bayes").population
    law = stats.nbinom(gamma["shape"].mean, gamma["rate"].mean / (gamma["rate"].mean + 6.5))
    np.testing.assert_allclose(gamma.marginal(6.5).log_density(np.arange(40)), law.logpmf(np.arange(40)), rtol=1e-10)
    assert gamma.marginal(6.5).extra == pytest.approx(1 + 6.5 / gamma["rate"].mean, rel=1e-9)


def test_summary_is_a_table_of_parameters():
    for (values, size), names in zip(
        DATA.values(),
        (["mean", "sd", "I2"], ["mean", "sd", "alpha", "beta"], ["mean", "sd", "shape", "rate"]),
        strict=True,
    ):
        summary = pp.pool(values, **size).summary()
        assert summary.index.tolist() == names
        assert summary.index.name == "parameter"
        assert summary.columns.tolist() == ["mean", "sd", "q05", "q50", "q95"]
        assert (summary["q05"] < summary["q50"]).all()
        assert (summary["q50"] < summary["q95"]).all()


def test_covariates_put_the_population_at_their_mean():
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 8.0])
    pooled = pp.pool(3 * x + 1, se=0.1, covariates={"x": x})
    assert pooled.population.mean == pytest.approx(3 * x.mean() + 1, abs=0.05)
    assert "at the mean of the covariates" in repr(pooled.population)
