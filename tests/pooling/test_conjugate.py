"""Normal, beta and gamma populations against brute force on dense grids, and against `pp.fit`."""

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from scipy.special import comb

import partialpool as pp
from partialpool.errors import ModelError, PriorError

Y = np.array([2.8, -0.7, 1.4, 0.2, 4.1, -1.9])
SE = np.array([1.0, 0.4, 1.7, 0.8, 2.2, 0.9])
EVENTS = np.array([1, 3, 5, 0, 2, 7])
TRIALS = np.array([10, 10, 12, 5, 9, 20])
COUNTS = np.array([4, 0, 11, 2, 7])
EXPOSURE = np.array([3.0, 1.5, 4.0, 2.5, 1.0])


def logs_normal(mean, sd):
    return stats.norm(mean, np.hypot(sd, SE)).logpdf(Y).sum()


def logs_beta(a, b):
    return stats.betabinom(TRIALS, a, b).logpmf(EVENTS).sum()


def logs_gamma(shape, rate):
    return stats.nbinom(shape, rate / (rate + EXPOSURE)).logpmf(COUNTS).sum()


@pytest.mark.parametrize(("mean", "sd"), [(0.3, 1.2), (-4.0, 0.0), (1.0, 1e-9), (2.0, 1e4)])
def test_normal_likelihood(mean, sd):
    assert pp.pool(Y, se=SE).log_likelihood({"mean": mean, "sd": sd}) == pytest.approx(logs_normal(mean, sd), rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.01, 0.02), (1, 1), (2.3, 14.1), (500, 1300), (3e-5, 8e4)])
def test_beta_likelihood_by_both_names(a, b):
    pooled = pp.pool(EVENTS, trials=TRIALS)
    expected = logs_beta(a, b)
    assert pooled.log_likelihood({"alpha": a, "beta": b}) == pytest.approx(expected, rel=1e-9)
    mean = a / (a + b)
    assert pooled.log_likelihood({"mean": mean, "sd": np.sqrt(mean * (1 - mean) / (a + b + 1))}) == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize(("shape", "rate"), [(0.01, 0.02), (1, 1), (2.3, 14.1), (500, 1300)])
def test_gamma_likelihood_by_both_names(shape, rate):
    pooled = pp.pool(COUNTS, exposure=EXPOSURE)
    expected = logs_gamma(shape, rate)
    assert pooled.log_likelihood({"shape": shape, "rate": rate}) == pytest.approx(expected, rel=1e-9)
    assert pooled.log_likelihood({"mean": shape / rate, "sd": np.sqrt(shape) / rate}) == pytest.approx(
        expected, rel=1e-9
    )


def test_the_limit_of_no_spread_is_continuous():
    normal = pp.pool(Y, se=SE)
    beta = pp.pool(EVENTS, trials=TRIALS)
    gamma = pp.pool(COUNTS, exposure=EXPOSURE)
    for pooled, mean in ((normal, 0.4), (beta, 0.23), (gamma, 2.1)):
        at_zero = pooled.log_likelihood({"mean": mean, "sd": 0.0})
        assert pooled.log_likelihood({"mean": mean, "sd": 1e-8}) == pytest.approx(at_zero, rel=1e-12)
        # the slope at 0 in the variance is finite: halving a small sd divides the difference by 4
        apart = [pooled.log_likelihood({"mean": mean, "sd": sd}) - at_zero for sd in (2e-4, 1e-4)]
        assert apart[0] / apart[1] == pytest.approx(4.0, rel=1e-3)
    assert beta.log_likelihood({"mean": 0.23, "sd": 0.0}) == pytest.approx(
        stats.binom(TRIALS, 0.23).logpmf(EVENTS).sum(), rel=1e-12
    )
    assert gamma.log_likelihood({"mean": 2.1, "sd": 0.0}) == pytest.approx(
        stats.poisson(2.1 * EXPOSURE).logpmf(COUNTS).sum(), rel=1e-12
    )


def test_parameters_are_asked_for_by_name():
    with pytest.raises(ModelError, match="mean, sd"):
        pp.pool(Y, se=SE).log_likelihood({"mean": 1.0})
    with pytest.raises(ModelError, match="alpha, beta"):
        pp.pool(EVENTS, trials=TRIALS).log_likelihood({"alpha": 1.0, "mean": 2.0})


def brute(logs, prior, first, second, theta):
    """Mean and sd of theta (J,) and the log integral of likelihood and prior, by the trapezoid rule on a dense grid."""
    a, b = first[:, None], second[None, :]
    grid = prior(a, b) + sum(logs(j, a, b) for j in range(len(theta(a, b))))
    top = grid.max()
    weights = np.exp(grid - top)
    log_integral = top + np.log(weights.sum() * (first[1] - first[0]) * (second[1] - second[0]))
    weights /= weights.sum()
    mean = np.array([(weights * m).sum() for m, _ in theta(a, b)])
    square = np.array([(weights * (m**2 + s**2)).sum() for m, s in theta(a, b)])
    return mean, np.sqrt(square - mean**2), log_integral


def test_normal_full_bayes_is_that_of_a_dense_grid():
    def logs(j, mean, log_sd):
        return stats.norm.logpdf(Y[j], mean, np.hypot(np.exp(log_sd), SE[j]))

    def prior(mean, log_sd):
        return stats.norm(0.5, 3).logpdf(mean) + stats.halfcauchy.logpdf(np.exp(log_sd)) + log_sd

    def theta(mean, log_sd):
        out = []
        for y, se in zip(Y, SE, strict=True):
            keep = se**2 / (se**2 + np.exp(2 * log_sd))
            out.append((keep * mean + (1 - keep) * y, np.sqrt(keep) * np.exp(log_sd)))
        return out

    # what lies beyond the grid: sd < e^-16 holds about 1e-7
    mean, sd, total = brute(logs, prior, np.linspace(-13, 14, 270), np.linspace(-16, 10, 200), theta)
    priors = {"mean": pp.Normal(0.5, 3.0), "sd": pp.HalfCauchy(1.0)}
    closed = pp.pool(Y, se=SE, priors=priors)
    assert len(closed.found.nodes[0]) == 1
    np.testing.assert_allclose(closed.table["mean"], mean, atol=2e-6)
    np.testing.assert_allclose(closed.table["sd"], sd, rtol=2e-6)
    assert closed.log_marginal_likelihood == pytest.approx(total, abs=2e-6)
    # the same over two coordinates: a prior that is nearly normal, but of another class; it differs by about 1 / nu
    numeric = pp.pool(Y, se=SE, priors={**priors, "mean": pp.StudentT(1e7, 0.5, 3.0)})
    assert len(numeric.found.nodes[0]) == 2
    np.testing.assert_allclose(numeric.table["mean"], mean, atol=5e-6)
    np.testing.assert_allclose(numeric.table["sd"], sd, rtol=5e-6)
    assert numeric.log_marginal_likelihood == pytest.approx(total, abs=5e-6)


def test_beta_full_bayes_is_that_of_a_dense_grid():
    def logs(j, logit, log_s):
        size, mean = np.exp(-2 * log_s), 1 / (1 + np.exp(-logit))
        y, n = EVENTS[j], TRIALS[j]
        out = np.log(comb(n, y)) + 0 * (logit + log_s)
        for i in range(n):  # products of ratios lose no digits at large alpha + beta
            out = out + np.log((mean * size + i if i < y else (1 - mean) * size + i - y) / (size + i))
        return out

    def prior(logit, log_s):
        # the sd relative to the largest is (M + 1)^(-1/2), uniform on (0, 1); the mean is uniform
        return -np.logaddexp(0, logit) - np.logaddexp(0, -logit) + log_s - 1.5 * np.log1p(np.exp(2 * log_s))

    def theta(logit, log_s):
        size, mean = np.exp(-2 * log_s), 1 / (1 + np.exp(-logit))
        out = []
        for y, n in zip(EVENTS, TRIALS, strict=True):
            m = (mean * size + y) / (size + n)
            out.append((m, np.sqrt(m * (1 - m) / (size + n + 1))))
        return out

    # what lies beyond the grid: s < e^-14 holds about 1e-6
    mean, sd, total = brute(logs, prior, np.linspace(-13, 12, 160), np.linspace(-14, 9, 140), theta)
    pooled = pp.pool(EVENTS, trials=TRIALS)
    np.testing.assert_allclose(pooled.table["mean"], mean, rtol=2e-5)
    np.testing.assert_allclose(pooled.table["sd"], sd, rtol=2e-5)
    assert pooled.log_marginal_likelihood == pytest.approx(total, abs=2e-5)


def test_gamma_full_bayes_is_that_of_a_dense_grid():
    def logs(j, log_mean, log_c):
        shape = np.exp(-2 * log_c)
        rate = shape / np.exp(log_mean)
        return stats.nbinom.logpmf(COUNTS[j], shape, rate / (rate + EXPOSURE[j]))

    def prior(log_mean, log_c):
        mean, c = np.exp(log_mean), np.exp(log_c)
        return stats.gamma(2).logpdf(mean) + stats.halfnorm(scale=2).logpdf(mean * c) + 2 * log_mean + log_c

    def theta(log_mean, log_c):
        shape = np.exp(-2 * log_c)
        rate = shape / np.exp(log_mean)
        return [
            ((shape + y) / (rate + e), np.sqrt(shape + y) / (rate + e)) for y, e in zip(COUNTS, EXPOSURE, strict=True)
        ]

    # scipy's nbinom is good to 1e-7 at shape 1e8, and c < e^-9 holds less than 1e-6 here
    mean, sd, total = brute(logs, prior, np.linspace(-3.5, 3.5, 120), np.linspace(-9, 4, 120), theta)
    pooled = pp.pool(COUNTS, exposure=EXPOSURE, priors={"mean": pp.Gamma(2, rate=1), "sd": pp.HalfNormal(2.0)})
    np.testing.assert_allclose(pooled.table["mean"], mean, rtol=2e-5)
    np.testing.assert_allclose(pooled.table["sd"], sd, rtol=2e-5)
    assert pooled.log_marginal_likelihood == pytest.approx(total, abs=2e-5)


def test_beta_sd_prior_is_cut_where_no_beta_distribution_is():
    mean_prior, sd_prior = stats.beta(3, 7), stats.halfnorm(scale=0.1)
    pooled = pp.pool(EVENTS, trials=TRIALS, priors={"mean": pp.Beta(3, 7), "sd": pp.HalfNormal(0.1)})
    m = (np.arange(200) + 0.5) / 200
    t = (np.arange(200) + 0.5) / 200
    M, T = np.meshgrid(m, t, indexing="ij")
    largest = np.sqrt(M * (1 - M))
    sd = T * largest
    prior = mean_prior.pdf(M) * sd_prior.pdf(sd) * largest
    size = M * (1 - M) / sd**2 - 1
    logs = sum(stats.betabinom.logpmf(y, n, M * size, (1 - M) * size) for y, n in zip(EVENTS, TRIALS, strict=True))
    total = np.log((prior * np.exp(logs)).sum() / prior.sum())
    assert pooled.log_marginal_likelihood == pytest.approx(total, abs=2e-4)  # midpoint rule with 200 points a side
    weights = prior * np.exp(logs)
    weights /= weights.sum()
    assert pooled.summary().loc["sd", "mean"] == pytest.approx((weights * sd).sum(), rel=1e-3)
    assert pooled.summary().loc["mean", "mean"] == pytest.approx((weights * M).sum(), rel=1e-3)


def test_beta_mean_prior_with_ends():
    # the sd's prior is cut within the largest sd of each mean, and both are normalised together
    m, t = (np.arange(300) + 0.5) / 1000 + 0.1, (np.arange(300) + 0.5) / 300
    M, T = np.meshgrid(m, t, indexing="ij")
    largest = np.sqrt(M * (1 - M))
    prior = stats.halfnorm(scale=0.1).pdf(T * largest) * largest
    size = 1 / T**2 - 1
    logs = sum(stats.betabinom.logpmf(y, n, M * size, (1 - M) * size) for y, n in zip(EVENTS, TRIALS, strict=True))
    total = np.log((prior * np.exp(logs)).sum() / prior.sum())
    pooled = pp.pool(EVENTS, trials=TRIALS, priors={"mean": pp.Uniform(0.1, 0.4), "sd": pp.HalfNormal(0.1)})
    assert pooled.log_marginal_likelihood == pytest.approx(total, abs=1e-3)


def test_beta_mean_prior_away_from_the_data():
    pooled = pp.pool([5, 31, 6, 29], trials=[10, 50, 9, 40], priors={"mean": pp.Uniform(0.1, 0.4)})
    assert 0.1 <= pooled.summary().loc["mean", "q05"] <= pooled.summary().loc["mean", "q95"] <= 0.4


def test_gamma_flat_prior_of_the_mean_is_refused():
    # the likelihood of a rate near shape 0 falls as mean^(-shape J): not integrable for any number of units
    with pytest.raises(PriorError, match="mean"):
        pp.pool(COUNTS, exposure=EXPOSURE, priors={"mean": pp.Flat()})


@pytest.mark.parametrize(("family", "options"), [("beta", {"trials": TRIALS}), ("gamma", {"exposure": EXPOSURE})])
def test_a_mean_that_is_known_is_known_or_refused(family, options):
    values = EVENTS if family == "beta" else COUNTS
    try:
        pooled = pp.pool(values, priors={"mean": 0.6}, **options)
    except PriorError as error:
        assert "mean" in str(error)
        return
    row = pooled.summary().loc["mean"]
    assert (row["mean"], row["sd"]) == (pytest.approx(0.6), 0.0)


@pytest.mark.parametrize("sd", [pp.Uniform(0, 0.05), pp.Uniform(0, 0.2), pp.Uniform(0.02, 0.05)])
def test_beta_population_with_a_bounded_sd(sd):
    pooled = pp.pool(EVENTS, trials=TRIALS, priors={"mean": pp.Beta(3, 7), "sd": sd})
    m, t = (np.arange(300) + 0.5) / 300, sd.low + (sd.high - sd.low) * (np.arange(100) + 0.5) / 100
    M, T = np.meshgrid(m, t, indexing="ij")
    size = M * (1 - M) / T**2 - 1
    prior = np.where(size > 0, stats.beta(3, 7).pdf(M), 0.0)
    size = np.where(size > 0, size, 1.0)
    logs = sum(stats.betabinom.logpmf(y, n, M * size, (1 - M) * size) for y, n in zip(EVENTS, TRIALS, strict=True))
    weights = prior * np.exp(logs)
    assert pooled.log_marginal_likelihood == pytest.approx(np.log(weights.sum() / prior.sum()), abs=5e-3)
    weights /= weights.sum()
    assert pooled.summary().loc["sd", "mean"] == pytest.approx((weights * T).sum(), rel=5e-3)
    assert sd.low <= pooled.summary().loc["sd", "q05"] <= pooled.summary().loc["sd", "q95"] <= sd.high


@pytest.mark.parametrize("covariates", [None, "x", "x + w"])
def test_log_likelihood_is_that_of_pp_fit(covariates):
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"y": Y, "s": SE, "g": list("abcdef"), "x": rng.normal(5, 1, 6), "w": rng.normal(size=6)})
    pooled = pp.pool("y", se="s", units="g", data=data, covariates=covariates)
    model = pp.fit(f"y | se(s) ~ {covariates or 1} + (1 | g)", data).model
    names = list(pooled.units.x_names) or ["mean"]
    for sd in (0.3, 2.0):
        values = dict(zip(names, [0.4, -0.2, 1.3], strict=False))
        mine = pooled.log_likelihood({**values, "sd": sd})
        theirs = model.log_likelihood(
            {("Intercept" if k == "mean" else k): v for k, v in values.items()} | {"sd(Intercept|g)": sd}
        )
        assert mine == pytest.approx(theirs, abs=1e-10)


def test_posterior_is_that_of_pp_fit():
    data = pd.DataFrame({"y": Y, "s": SE, "g": list("abcdef")})
    pooled = pp.pool("y", se="s", units="g", data=data, priors={"mean": pp.Normal(0, 4), "sd": pp.HalfNormal(2)})
    fit = pp.fit("y | se(s) ~ 1 + (1 | g)", data, priors={"Intercept": pp.Normal(0, 4), "sd": pp.HalfNormal(2)}, seed=1)
    theirs = fit.summary()
    mine = pooled.summary()
    for name, other in (("mean", "Intercept"), ("sd", "sd(Intercept|g)")):
        for column in ("mean", "sd"):
            # the engine of pp.fit draws on the order of 1,000 effective samples or more: 4 standard errors
            assert mine.loc[name, column] == pytest.approx(theirs.loc[other, column], abs=4 * mine.loc[name, "sd"] / 30)


def test_priors_scale_with_the_data():
    base = pp.pool(Y, se=SE, priors={"mean": pp.Normal(1, 3), "sd": pp.HalfCauchy(2)}).table
    for scale in (1e-6, 0.37, 1e8):
        own = {"mean": pp.Normal(scale, 3 * scale), "sd": pp.HalfCauchy(2 * scale)}
        table = pp.pool(scale * Y, se=scale * SE, priors=own).table
        for column in ("mean", "sd", "q05", "q95"):
            np.testing.assert_allclose(table[column] / scale, base[column], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(table["weight"], base["weight"], rtol=1e-6)


@pytest.mark.parametrize("covariates", [False, True])
@pytest.mark.parametrize("shift", [1e3, 1e7])
def test_estimates_may_lie_far_from_zero(covariates, shift):
    x = np.array([0.3, -1.0, 2.0, 0.1, 0.7, -0.4])
    name = "Intercept" if covariates else "mean"
    options = {"covariates": {"x": x}} if covariates else {}
    slope = {"x": pp.Normal(0, 2)} if covariates else {}
    tables = [
        pp.pool(Y + c, se=SE, priors={name: pp.Normal(c, 3), "sd": pp.HalfCauchy(2), **slope}, **options).table
        for c in (0.0, shift)
    ]
    # adding the shift to the estimates rounds them by shift * 2e-16
    np.testing.assert_allclose(tables[1]["mean"] - shift, tables[0]["mean"], atol=1e-6)
    np.testing.assert_allclose(tables[1]["sd"], tables[0]["sd"], rtol=1e-6)


def test_default_priors_scale_by_powers_of_ten():
    y = Y - Y.mean() + 1.0  # the centre of the default prior is rounded, to 1 and 1000 here
    base, scaled = pp.pool(y, se=SE).table, pp.pool(1000 * y, se=1000 * SE).table
    for column in ("mean", "sd", "q05", "q95"):
        np.testing.assert_allclose(scaled[column] / 1000, base[column], rtol=1e-6, atol=1e-7)


def test_log_marginal_likelihood_of_a_known_mean():
    pooled = pp.pool(Y, se=SE, priors={"mean": 0.5, "sd": pp.HalfNormal(2)})
    value = integrate.quad(lambda sd: np.exp(logs_normal(0.5, sd)) * stats.halfnorm(scale=2).pdf(sd), 0, 30, epsabs=0)[
        0
    ]
    assert pooled.log_marginal_likelihood == pytest.approx(np.log(value), abs=1e-7)
    assert pooled.summary().loc["mean", "sd"] == 0.0
