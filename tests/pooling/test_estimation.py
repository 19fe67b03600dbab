"""Empirical Bayes against brute-force maximisation, its limits, and its two kinds of interval."""

import numpy as np
import pytest
from scipy import optimize, stats

import partialpool as pp

Y, SE = np.array([2.8, -0.7, 1.4, 0.2, 4.1, -3.9]), np.array([1.0, 0.4, 0.7, 0.8, 1.2, 0.9])
EVENTS, TRIALS = np.array([1, 3, 9, 0, 2, 17]), np.array([10, 10, 12, 9, 9, 20])
COUNTS, EXPOSURE = np.array([4, 0, 31, 2, 7, 3]), np.array([3.0, 2.5, 4.0, 2.5, 1.0, 2.0])


def logs_normal(x):
    return stats.norm(x[0], np.hypot(np.exp(x[1]), SE)).logpdf(Y).sum()


def logs_beta(x):
    return stats.betabinom(TRIALS, np.exp(x[0]), np.exp(x[1])).logpmf(EVENTS).sum()


def logs_gamma(x):
    shape, rate = np.exp(x)
    return stats.nbinom(shape, rate / (rate + EXPOSURE)).logpmf(COUNTS).sum()


@pytest.mark.parametrize(
    ("values", "size", "logs", "names"),
    [
        (Y, {"se": SE}, logs_normal, ("mean", "sd")),
        (EVENTS, {"trials": TRIALS}, logs_beta, ("alpha", "beta")),
        (COUNTS, {"exposure": EXPOSURE}, logs_gamma, ("shape", "rate")),
    ],
)
def test_the_maximum_is_the_maximum(values, size, logs, names):
    pooled = pp.pool(values, **size, method="empirical_bayes")
    best = optimize.minimize(
        lambda x: -logs(x), [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}
    )
    assert pooled.log_marginal_likelihood == pytest.approx(-best.fun, abs=1e-8)
    mine = pooled.summary()["mean"]
    expected = [best.x[0] if names[0] == "mean" else np.exp(best.x[0]), np.exp(best.x[1])]
    np.testing.assert_allclose([mine[name] for name in names], expected, rtol=1e-5)
    at = {name: mine[name] for name in names}
    assert pooled.log_likelihood(at) == pytest.approx(pooled.log_marginal_likelihood, abs=1e-10)


def test_standard_errors_are_those_of_the_curvature():
    pooled = pp.pool(Y, se=SE, method="empirical_bayes")
    summary = pooled.summary()
    at = np.array([summary.loc["mean", "mean"], np.log(summary.loc["sd", "mean"])])
    h = 1e-3
    hessian = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            e, f = h * np.eye(2)[i], h * np.eye(2)[j]
            hessian[i, j] = (logs_normal(at + e + f) - logs_normal(at + e - f) - logs_normal(at - e + f)
                             + logs_normal(at - e - f)) / (4 * h * h)  # fmt: skip
    covariance = np.linalg.inv(-hessian)
    assert summary.loc["mean", "sd"] == pytest.approx(np.sqrt(1 / (1 / (SE**2 + np.exp(2 * at[1]))).sum()), rel=1e-3)
    log_se = np.sqrt(covariance[1, 1])
    assert summary.loc["sd", "q95"] == pytest.approx(np.exp(at[1] + stats.norm.ppf(0.95) * log_se), rel=1e-2)


@pytest.mark.parametrize("population", ["conjugate", "normal", "student_t", "point_normal"])
@pytest.mark.parametrize("family", ["normal", "binomial", "poisson"])
def test_no_spread_at_the_maximum(family, population):
    # less spread than noise: underdispersed data
    values, size = {
        "normal": ([0.1, -0.1, 0.05, 0.0, -0.05], {"se": 1.0}),
        "binomial": ([5, 5, 4, 5, 6], {"trials": 10}),
        "poisson": ([5, 5, 4, 5, 6], {"exposure": 2.0}),
    }[family]
    pooled = pp.pool(values, **size, population=population, method="empirical_bayes")
    assert pooled.population.tau == 0.0
    assert any("sd = 0" in note for note in pooled.accuracy.notes)
    pooling = pooled.complete_pooling
    if family == "normal" and population == "point_normal":
        pooling = 0.0  # its mean is known
    # on a natural scale of counts alpha + beta is held at 1e14
    np.testing.assert_allclose(pooled.table["mean"], pooling, rtol=1e-6, atol=1e-9)
    assert pooled.table["sd"].max() < 1e-6
    assert (pooled.table["weight"] < 1e-9).all()
    assert np.ptp(pooled.table["mean"]) < 1e-12
    law = {
        "normal": lambda: stats.norm(pooling, 1.0).logpdf(values),
        "binomial": lambda: stats.binom(10, pooling).logpmf(values),
        "poisson": lambda: stats.poisson(2 * pooling).logpmf(values),
    }[family]()
    assert pooled.log_marginal_likelihood == pytest.approx(law.sum(), abs=1e-8)
    assert (pooled.table["bayes_q95"] - pooled.table["bayes_q05"]).min() > 0.01


@pytest.mark.parametrize(
    ("values", "size"), [(Y, {"se": SE}), (EVENTS, {"trials": TRIALS}), (COUNTS, {"exposure": EXPOSURE})]
)
def test_the_plug_in_is_overconfident_and_stands_beside_full_bayes(values, size):
    plug_in, full = (pp.pool(values, **size, method=method) for method in ("empirical_bayes", "bayes"))
    table = plug_in.table
    np.testing.assert_array_equal(table[["bayes_q05", "bayes_q95"]], full.table[["q05", "q95"]])
    assert (table["bayes_q95"] - table["bayes_q05"]).sum() > (table["q95"] - table["q05"]).sum()


def test_a_known_population_needs_no_method():
    free, named = (pp.pool(Y, se=SE, population=pp.Normal(0.5, 2), method=method) for method in (None, "fixed"))
    np.testing.assert_array_equal(free.table.to_numpy(float), named.table.to_numpy(float))
    assert free.log_marginal_likelihood == pytest.approx(stats.norm(0.5, np.hypot(2, SE)).logpdf(Y).sum(), rel=1e-12)
    assert free.method == "fixed"


@pytest.mark.parametrize(
    ("population", "law"),
    [
        (pp.StudentT(4, 0.5, 2), stats.t(4, 0.5, 2)),
        (pp.Cauchy(0.5, 2), stats.cauchy(0.5, 2)),
        (pp.Uniform(-1, 3), stats.uniform(-1, 4)),
        (pp.Normal(0.5, 2), stats.norm(0.5, 2)),
    ],
)
def test_known_populations_of_estimates_against_a_dense_grid(population, law):
    pooled = pp.pool(Y, se=SE, population=population)
    theta = np.linspace(-1, 3, 8001) if isinstance(population, pp.Uniform) else np.linspace(-60, 60, 120_001)
    weight = np.full(theta.size, theta[1] - theta[0])
    weight[[0, -1]] /= 2
    joint = stats.norm.pdf(Y[:, None], theta, SE[:, None]) * law.pdf(theta) * weight
    total = joint.sum(axis=1)
    mean = joint @ theta / total
    sd = np.sqrt(np.maximum(joint @ theta**2 / total - mean**2, 0))
    assert pooled.log_marginal_likelihood == pytest.approx(np.log(total).sum(), abs=1e-5)
    np.testing.assert_allclose(pooled.table["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(pooled.table["sd"], sd, atol=1e-5)
    below = np.array([np.interp(q, theta, row.cumsum() - row / 2) for q, row in
                      zip(pooled.table["q05"], joint / total[:, None], strict=True)])  # fmt: skip
    np.testing.assert_allclose(below, 0.05, atol=1e-4)


def test_accuracy_says_what_was_done():
    full = pp.pool(Y, se=SE).accuracy
    assert full.trusted
    assert full.error < 1e-6
    assert "every check passed" in repr(full)
    assert "maximum marginal likelihood" in pp.pool(Y, se=SE, method="empirical_bayes").accuracy.reason
    assert "known" in pp.pool(Y, se=SE, population=pp.Normal(0, 1)).accuracy.reason


def test_many_units_take_the_fast_way_to_the_same_answer():
    rng = np.random.default_rng(4)
    n = 45_000
    trials = rng.integers(1, 100, n)
    events = rng.binomial(trials, rng.beta(6, 14, n))
    summary = pp.pool(events, trials=trials).summary()
    eb = pp.pool(events, trials=trials, method="empirical_bayes").summary()
    for name in ("alpha", "beta", "mean", "sd"):
        assert summary.loc[name, "q50"] == pytest.approx(eb.loc[name, "mean"], abs=0.1 * summary.loc[name, "sd"])
        assert summary.loc[name, "q95"] == pytest.approx(eb.loc[name, "q95"], abs=0.1 * summary.loc[name, "sd"])
    assert abs(summary.loc["alpha", "q50"] - 6) < 4 * (summary.loc["alpha", "q95"] - summary.loc["alpha", "q05"]) / 3.29
