"""Quasi-random importance sampling, and what stands on it: regressions with several coefficients."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import partialpool as pp
from partialpool.pooling.sampling import sample


def test_a_skewed_density_in_five_dimensions():
    shapes = np.array([2.0, 3.0, 5.0, 8.0, 13.0])

    def log_density(x):
        return (shapes * x - np.exp(x)).sum(axis=1)

    found = sample(log_density, np.zeros(5), np.ones(5), seed=3)
    from scipy.special import gammaln

    # error is about that of a mean in sds; the log of the integral is as good as a mean of weights
    assert found.error < 0.03
    assert found.log_normaliser == pytest.approx(gammaln(shapes).sum(), abs=4 * found.error)
    mean = found.weights @ np.exp(found.nodes)
    np.testing.assert_allclose(mean, shapes, atol=4 * found.error * np.sqrt(shapes.max()))
    assert found.quantiles(lambda x: np.exp(x[:, 4]), [0.5])[0] == pytest.approx(stats.gamma(13).median(), abs=0.3)
    again = sample(log_density, np.zeros(5), np.ones(5), seed=3)
    np.testing.assert_array_equal(found.nodes, again.nodes)


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(8)
    n = 60
    data = pd.DataFrame(
        {"x": rng.normal(size=n), "w": rng.normal(size=n), "z": rng.normal(size=n), "n": rng.integers(5, 40, n)}
    )
    eta = -0.8 + 0.7 * data["x"] - 0.4 * data["w"] + 0.5 * rng.normal(size=n)
    data["y"] = rng.binomial(data["n"], 1 / (1 + np.exp(-eta)))
    data["g"] = [f"u{i}" for i in range(n)]
    return data


def test_a_regression_of_three_coefficients_is_that_of_pp_fit(regression):
    pooled = pp.pool("y", trials="n", units="g", covariates="x + w + z", data=regression, population="normal")
    assert "importance sampling" in pooled.accuracy.reason
    assert pooled.accuracy.trusted
    fit = pp.fit("y | trials(n) ~ x + w + z + (1 | g)", regression, family="binomial", seed=1)
    mine, theirs = pooled.summary(), fit.summary()
    ess = np.minimum(theirs["ess"], 2000)
    for name, other in (("Intercept", "Intercept"), ("x", "x"), ("w", "w"), ("z", "z"), ("sd", "sd(Intercept|g)")):
        error = mine.loc[name, "sd"] * np.hypot(pooled.accuracy.error, ess[other] ** -0.5)
        assert mine.loc[name, "mean"] == pytest.approx(theirs.loc[other, "mean"], abs=4 * error), name
        assert mine.loc[name, "sd"] == pytest.approx(theirs.loc[other, "sd"], abs=4 * error), name


def test_conjugate_regressions(regression):
    beta = pp.pool("y", trials="n", units="g", covariates="x + w + z", data=regression)
    summary = beta.summary()
    assert summary.loc["x", "q05"] < 0.7 < summary.loc["x", "q95"]
    assert summary.loc["w", "q05"] < -0.4 < summary.loc["w", "q95"]
    assert np.isinf(summary.loc["alpha+beta", "mean"])
    # by brute force: the likelihood at the median of the coefficients
    values = {name: summary.loc[name, "q50"] for name in ("Intercept", "x", "w", "z")}
    X = np.column_stack([np.ones(60), regression[["x", "w", "z"]]])
    p = 1 / (1 + np.exp(-X @ np.array(list(values.values()))))
    expected = stats.betabinom(regression["n"], 20 * p, 20 * (1 - p)).logpmf(regression["y"]).sum()
    assert beta.log_likelihood({**values, "alpha+beta": 20.0}) == pytest.approx(expected, rel=1e-10)
    # units lie around their own regression: shrinkage towards it
    table = beta.table
    closer = np.abs(table["mean"] - p) < np.abs(table["raw"] - p)
    assert closer.mean() > 0.9


def test_normal_regression_is_exact_and_that_of_least_squares_for_large_tau():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(40, 3))
    y = X @ [1.0, -2.0, 0.5] + 3 + rng.normal(size=40)
    pooled = pp.pool(y, se=0.5, covariates=X)
    assert "closed form" in pooled.accuracy.reason
    design = np.column_stack([np.ones(40), X])
    least = np.linalg.lstsq(design, y, rcond=None)[0]
    # equal standard errors: given any sd the likelihood's coefficients are those of least squares
    np.testing.assert_allclose(pooled.summary()["mean"].to_numpy()[:4], least, atol=0.02)
