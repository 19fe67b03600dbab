"""Populations on the link scale against dense quadrature, against closed forms, and against `pp.fit`."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit

import partialpool as pp

Y = np.array([2.8, -0.7, 1.4, 0.2, 4.1, -1.9])
SE = np.array([1.0, 0.4, 1.7, 0.8, 2.2, 0.9])
EVENTS, TRIALS = np.array([1, 3, 5, 0, 2, 20]), np.array([10, 10, 12, 5, 9, 20])
COUNTS, EXPOSURE = np.array([4, 0, 11, 2, 7]), np.array([3.0, 1.5, 4.0, 2.5, 1.0])
DATA = {
    "normal": ((Y,), {"se": SE}, lambda eta: stats.norm.logpdf(Y[:, None], eta, SE[:, None])),
    "binomial": (
        (EVENTS,), {"trials": TRIALS},
        lambda eta: stats.binom.logpmf(EVENTS[:, None], TRIALS[:, None], expit(eta)),
    ),
    "poisson": (
        (COUNTS,), {"exposure": EXPOSURE},
        lambda eta: stats.poisson.logpmf(COUNTS[:, None], EXPOSURE[:, None] * np.exp(eta)),
    ),
}  # fmt: skip


def dense(family, law):
    """log p(y | population): the trapezoid rule over eta, which converges exponentially for such smooth integrands."""
    eta = np.linspace(-90, 90, 60_001)
    logs = DATA[family][2](eta)
    return np.log((np.exp(logs) * law.pdf(eta)).sum(axis=1) * (eta[1] - eta[0])), np.exp(logs)


@pytest.mark.parametrize("family", DATA)
@pytest.mark.parametrize(("mean", "sd"), [(0.3, 0.7), (-1.0, 2.5), (1.5, 0.05)])
def test_normal_on_the_link(family, mean, sd):
    values, size, _ = DATA[family]
    pooled = pp.pool(*values, **size, population="normal")
    expected = dense(family, stats.norm(mean, sd))[0].sum()
    assert pooled.log_likelihood({"mean": mean, "sd": sd}) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", DATA)
@pytest.mark.parametrize(("mean", "sd", "nu"), [(0.3, 0.7, 4.0), (-1.0, 1.5, 25.0)])
def test_student_t_on_the_link(family, mean, sd, nu):
    values, size, _ = DATA[family]
    pooled = pp.pool(*values, **size, population="student_t", method="empirical_bayes")
    expected = dense(family, stats.t(nu, mean, sd))[0].sum()
    assert pooled.log_likelihood({"mean": mean, "sd": sd, "nu": nu}) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", DATA)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_point_normal_on_the_link(family, share):
    values, size, logs = DATA[family]
    pooled = pp.pool(*values, **size, population="point_normal", method="empirical_bayes")
    alternative = np.exp(dense(family, stats.norm(0.4, 1.3))[0])
    null = np.exp(logs(np.array([0.4]))[:, 0])
    expected = np.log(share * null + (1 - share) * alternative).sum()
    found = pooled.log_likelihood({"mean": 0.4, "sd": 1.3, "null_share": share})
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", DATA)
@pytest.mark.parametrize("population", ["normal", "student_t", "point_normal"])
def test_the_limit_of_no_spread_is_continuous(family, population):
    values, size, logs = DATA[family]
    pooled = pp.pool(*values, **size, population=population, method="empirical_bayes")
    extra = {"normal": {}, "student_t": {"nu": 5.0}, "point_normal": {"null_share": 0.3}}[population]
    expected = logs(np.array([0.4]))[:, 0].sum()
    # the quadrature of a Student-t leaves out its tails, of less than 5e-8 a unit
    tolerance = 3e-7 if population == "student_t" else 1e-9
    for sd in (0.0, 1e-8):
        assert pooled.log_likelihood({"mean": 0.4, "sd": sd, **extra}) == pytest.approx(expected, abs=tolerance)


def test_normal_likelihood_is_that_of_pp_fit():
    data = pd.DataFrame({"y": EVENTS, "n": TRIALS, "g": list("abcdef"), "x": [0.1, -0.4, 1.2, 0.6, -1.0, 0.3]})
    for formula, covariates, values in (("1", None, {"mean": -0.6}), ("x", "x", {"Intercept": -0.6, "x": 0.8})):
        pooled = pp.pool("y", trials="n", units="g", data=data, covariates=covariates, population="normal")
        model = pp.fit(f"y | trials(n) ~ {formula} + (1 | g)", data, family="binomial").model
        for sd in (0.4, 1.7):
            theirs = {("Intercept" if name == "mean" else name): value for name, value in values.items()}
            exact = model.log_likelihood({**theirs, "sd(Intercept|g)": sd}, nodes=60)
            assert pooled.log_likelihood({**values, "sd": sd}) == pytest.approx(exact, abs=1e-8)


def test_normal_posterior_on_the_logit_is_that_of_a_dense_grid():
    priors = {"mean": pp.Normal(0, 1.5), "sd": pp.HalfNormal(1.0)}
    pooled = pp.pool(EVENTS, trials=TRIALS, population="normal", priors=priors)
    eta = np.linspace(-16, 16, 1601)
    likelihood = np.exp(DATA["binomial"][2](eta)) * (eta[1] - eta[0])
    means, sds = np.linspace(-4, 4, 33), np.linspace(0.0, 5.0, 52)[1:]  # even in sd: the trapezoid rule from 0
    logs, first, second = [], [], []
    for mean in means:
        for sd in sds:
            joint = likelihood * stats.norm(mean, sd).pdf(eta) if sd > 0.05 else None
            if joint is None:  # narrower than the grid of eta
                x, w = np.polynomial.hermite_e.hermegauss(30)
                places = mean + sd * x
                joint = np.exp(DATA["binomial"][2](places)) * (w / w.sum())
                theta = expit(places)
            else:
                theta = expit(eta)
            z = joint.sum(axis=1)
            logs.append(np.log(z).sum() + stats.norm(0, 1.5).logpdf(mean) + stats.halfnorm.logpdf(sd))
            first.append(joint @ theta / z)
            second.append(joint @ theta**2 / z)
    weights = np.exp(np.array(logs) - max(logs))
    ends = np.isclose(np.tile(sds, means.size), sds[0])
    weights[ends] *= 1.5  # half of the cell at 0, where the density is as good as that at the first sd
    weights /= weights.sum()
    mean = weights @ np.array(first)
    sd = np.sqrt(weights @ np.array(second) - mean**2)
    np.testing.assert_allclose(pooled.table["mean"], mean, atol=2e-4)
    np.testing.assert_allclose(pooled.table["sd"], sd, atol=2e-4)


def test_student_t_shrinks_an_outlier_less_than_normal():
    rng = np.random.default_rng(5)
    y = np.append(rng.normal(0, np.sqrt(0.3**2 + 1), 30), 12.0)
    normal = pp.pool(y, se=1.0, population="normal")
    robust = pp.pool(y, se=1.0, population="student_t")
    assert robust.table["mean"].iloc[-1] > normal.table["mean"].iloc[-1] + 1.0
    # and the others more: their spread is not inflated by the one
    assert np.std(robust.table["mean"].iloc[:-1]) < 0.9 * np.std(normal.table["mean"].iloc[:-1])
    assert robust.population["nu"].q50 < 10


def test_point_normal_lfdr_is_the_direct_computation():
    rng = np.random.default_rng(6)
    theta = np.where(rng.random(400) < 0.8, 0.0, rng.normal(0, 3, 400))
    y = theta + rng.standard_normal(400)
    pooled = pp.pool(y, se=1.0, population="point_normal", method="empirical_bayes")
    row = pooled.population
    share, sd = row["null_share"].mean, row["sd"].mean
    null, other = share * stats.norm.pdf(y), (1 - share) * stats.norm.pdf(y, 0, np.hypot(1, sd))
    lfdr = null / (null + other)
    np.testing.assert_allclose(pooled.posterior.atom(0.0), lfdr, rtol=1e-9, atol=1e-15)
    keep = sd**2 / (1 + sd**2)
    np.testing.assert_allclose(pooled.table["mean"], (1 - lfdr) * keep * y, rtol=1e-9)
    assert pooled.log_marginal_likelihood == pytest.approx(np.log(null + other).sum(), rel=1e-12)
    assert share == pytest.approx(0.8, abs=0.1)


def test_point_normal_finds_every_mode_of_an_estimated_mean():
    # any of three far and exact estimates may be the null: by symmetry the middle one stays in the middle
    y, se = np.array([-5.0, 0.0, 5.0]), 0.05
    pooled = pp.pool(y, se=se, population="point_normal", priors={"mean": pp.Normal(0, 10), "sd": pp.HalfNormal(5)})
    means = np.linspace(-12, 12, 2401)
    logs = []
    shares, sds = (np.arange(20) + 0.5) / 20, (np.arange(40) + 0.5) / 2
    for sd in sds:
        null = stats.norm.pdf(y[:, None], means, se)
        other = stats.norm.pdf(y[:, None], means, np.hypot(se, sd))
        for share in shares:
            likelihood = (share * null + (1 - share) * other).prod(axis=0)
            logs.append(likelihood * stats.norm(0, 10).pdf(means) * stats.halfnorm(scale=5).pdf(sd))
    total = np.log(np.sum(logs) * (means[1] - means[0]) / 20 / 2)
    # one mode alone would be log 3 below; an answer that says it is not to be trusted is honest
    assert pooled.log_marginal_likelihood == pytest.approx(total, abs=0.05) or not pooled.accuracy.trusted


def test_a_heavy_tailed_prior_of_the_mean():
    pooled = pp.pool(Y, se=SE, priors={"mean": pp.Cauchy(0, 1), "sd": pp.HalfCauchy(1)})
    mean, log_sd = np.linspace(-40, 40, 2001)[:, None], np.linspace(-15, 11, 300)[None, :]
    logs = stats.cauchy.logpdf(mean) + stats.halfcauchy.logpdf(np.exp(log_sd)) + log_sd
    for y, se in zip(Y, SE, strict=True):
        logs = logs + stats.norm.logpdf(y, mean, np.hypot(se, np.exp(log_sd)))
    weights = np.exp(logs)
    assert pooled.log_marginal_likelihood == pytest.approx(np.log(weights.sum() * 0.04 * 26 / 299), abs=1e-5)
    weights /= weights.sum()
    assert pooled.summary().loc["sd", "mean"] == pytest.approx((weights * np.exp(log_sd)).sum(), rel=1e-5)
    assert pooled.summary().loc["mean", "mean"] == pytest.approx((weights * mean).sum(), rel=1e-4)
