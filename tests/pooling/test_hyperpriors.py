"""Priors by name and by text, their defaults, and which leave no posterior; moments that do not exist."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

import partialpool as pp
from partialpool.errors import ModelError, PartialPoolError, PriorError

Y, SE = np.array([2.8, -0.7, 1.4]), np.array([1.0, 0.4, 1.7])
EVENTS, TRIALS = [1, 3, 5, 0], [10, 10, 12, 5]


@pytest.mark.parametrize(
    ("text", "prior"),
    [
        ("half-cauchy(1)", pp.HalfCauchy(1)),
        ("half-normal(2)", pp.HalfNormal(2)),
        ("half-t(3, 1)", pp.HalfStudentT(3, 1)),
        ("PC(1, 0.01)", pp.PC(1, 0.01)),
        ("inverse-gamma(2, 1)", pp.InverseGamma(2, 1)),
        ("uniform(0, 40)", pp.Uniform(0, 40)),
        ("exponential(0.5)", pp.Exponential(0.5)),
    ],
)
def test_a_prior_by_its_text(text, prior):
    by_text, by_object = (pp.pool(Y, se=SE, priors={"sd": given}) for given in (text, prior))
    np.testing.assert_array_equal(by_text.table.to_numpy(float), by_object.table.to_numpy(float))
    assert by_text.log_marginal_likelihood == by_object.log_marginal_likelihood


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (pp.HalfCauchy(1.5), stats.halfcauchy(scale=1.5)),
        (pp.HalfStudentT(3, 2), None),
        (pp.InverseGamma(2, 1), stats.invgamma(2, scale=1)),
        (pp.PC(1, 0.01), stats.expon(scale=-1 / np.log(0.01))),
        (pp.Uniform(0, 7), stats.uniform(0, 7)),
        (pp.Uniform(0.5, 3), stats.uniform(0.5, 2.5)),
        (pp.Exponential(0.5), stats.expon(scale=2)),
        (pp.Gamma(2, 0.7), stats.gamma(2, scale=1 / 0.7)),
    ],
)
def test_every_prior_of_the_sd_against_quadrature(prior, law):
    pdf = law.pdf if law is not None else lambda sd: 2 * stats.t(3, 0, 2).pdf(sd)
    mu0, s0 = 0.5, 4.0
    pooled = pp.pool(Y, se=SE, priors={"mean": pp.Normal(mu0, s0), "sd": prior})

    def joint(sd):
        law_of_y = stats.multivariate_normal(np.full(3, mu0), np.diag(SE**2 + sd**2) + s0**2)
        return law_of_y.pdf(Y) * pdf(sd)

    low, high = prior.support
    edges = np.unique(np.clip([0, 1e-3, 0.1, 0.5, 1, 2, 3, 5, 7, 20, 100, 1e4, 1e6], low, high))
    options = {"epsabs": 0, "epsrel": 1e-9, "limit": 200}
    parts = [[integrate.quad(lambda sd, k=k: sd**k * joint(sd), a, b, **options)[0] for k in (0, 1)]
             for a, b in itertools.pairwise(edges)]  # fmt: skip
    total, first = np.sum(parts, axis=0)
    assert pooled.log_marginal_likelihood == pytest.approx(np.log(total), abs=2e-6)
    assert pooled.summary().loc["sd", "mean"] == pytest.approx(first / total, rel=1e-5)
    # q05, q50 and q95 hold what they say
    for column, p in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
        end = pooled.summary().loc["sd", column]
        cuts = [e for e in edges if e < end] + [end]
        below = sum(integrate.quad(joint, a, b, epsabs=0)[0] for a, b in itertools.pairwise(cuts))
        assert below / total == pytest.approx(p, abs=2e-5), column


@pytest.mark.parametrize("name", ["bda", "BDA", "(alpha+beta)^(-5/2)", "(alpha + beta)**(-5/2)"])
def test_the_hyperprior_of_bda_by_its_names(name):
    assert pp.pool(EVENTS, trials=TRIALS, priors=name).priors.bda


def test_bda_moments_are_infinite_and_medians_finite():
    summary = pp.pool(EVENTS, trials=TRIALS, priors="bda").summary()
    assert np.isinf(summary.loc[["alpha", "beta"], ["mean", "sd"]].to_numpy()).all()
    assert np.isfinite(summary.loc[["alpha", "beta"], ["q05", "q50", "q95"]].to_numpy()).all()
    assert np.isfinite(summary.loc["mean"].to_numpy()).all()


def test_flat_sd_with_three_units_has_no_mean():
    # p(tau | y) falls as tau^-(3 - 1)
    summary = pp.pool(Y, se=SE, priors={"mean": pp.Flat(), "sd": pp.Flat()}).summary()
    assert np.isinf(summary.loc["sd", "mean"])
    assert np.isinf(summary.loc["sd", "sd"])
    weights = lambda sd: np.exp(  # noqa: E731
        -0.5 * np.log(SE**2 + sd**2).sum() - 0.5 * np.log((1 / (SE**2 + sd**2)).sum())
        - 0.5 * ((Y - np.average(Y, weights=1 / (SE**2 + sd**2))) ** 2 / (SE**2 + sd**2)).sum()
    )  # fmt: skip
    median = summary.loc["sd", "q50"]
    below = integrate.quad(weights, 0, median)[0]
    above = integrate.quad(weights, median, 100)[0] + integrate.quad(lambda u: weights(1 / u) / u**2, 1e-12, 0.01)[0]
    assert below == pytest.approx(above, rel=1e-4)


def test_five_units_have_a_mean_and_an_sd():
    y, se = [2.8, -0.7, 1.4, 0.3, 0.9], [1.0, 0.4, 1.7, 1.0, 1.0]
    summary = pp.pool(y, se=se, priors={"mean": pp.Flat(), "sd": pp.Flat()}).summary()
    assert np.isfinite(summary.to_numpy()).all()


@pytest.mark.parametrize(
    "priors", [{"mean": pp.Flat(), "sd": pp.Flat()}, {"sd": "flat"}, {"mean": 0.0, "sd": pp.Flat()}]
)
def test_flat_sd_with_two_units_is_refused(priors):
    with pytest.raises(PriorError, match="improper") as error:
        pp.pool(Y[:2], se=SE[:2], priors=priors)
    assert "HalfCauchy" in str(error.value)  # how to mend it


@pytest.mark.parametrize(
    ("events", "trials"), [([0, 0, 0], [5, 9, 3]), ([5, 9], [5, 9]), ([0, 9], [4, 9]), ([0, 1], [1, 1])]
)
def test_bda_with_no_unit_strictly_inside_is_refused(events, trials):
    with pytest.raises(PriorError, match="improper"):
        pp.pool(events, trials=trials, priors="bda")
    assert np.isfinite(pp.pool([*events, 1], trials=[*trials, 3], priors="bda").table["mean"]).all()
    # the default is proper whatever the data
    assert np.isfinite(pp.pool(events, trials=trials).table["mean"]).all()


@pytest.mark.parametrize("n", [3, 12])
def test_flat_sd_of_a_point_and_a_normal_is_refused(n):
    # all units may be nulls: the likelihood does not vanish as the sd grows, whatever the number of units
    y = np.linspace(-2, 5, n)
    with pytest.raises(PriorError):
        pp.pool(y, se=1.0, population="point_normal", priors={"sd": pp.Flat()})


def test_an_sd_of_a_point_and_a_normal_has_the_tail_of_its_prior():
    summary = pp.pool(
        np.linspace(-2, 5, 6), se=1.0, population="point_normal", priors={"sd": pp.HalfCauchy(1)}
    ).summary()
    assert np.isinf(summary.loc["sd", "mean"])
    assert np.isfinite(summary.loc["sd", "q50"])


@pytest.mark.parametrize("family", ["trials", "exposure"])
def test_flat_priors_on_a_link_scale_need_informative_units(family):
    size = {family: 4}
    with pytest.raises(PriorError, match="improper"):
        pp.pool([0, 0, 0, 0], **size, population="normal", priors={"mean": pp.Flat()})
    with pytest.raises(PriorError, match="improper"):
        pp.pool([0, 0, 1, 1], **size, population="normal", priors={"mean": pp.Flat(), "sd": pp.Flat()})
    pooled = pp.pool([1, 2, 1, 3, 3, 1, 2, 1], **size, population="normal", priors={"mean": pp.Flat(), "sd": pp.Flat()})
    assert np.isnan(pooled.log_marginal_likelihood)
    assert np.isfinite(pooled.table["mean"]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"priors": {"spread": pp.HalfCauchy(1)}}, ["spread", "sd"]),
        ({"priors": {"sd": pp.Normal(0, 1)}}, ["sd"]),
        ({"priors": {"sd": -1.0}}, ["sd"]),
        ({"priors": {"sd": "half-cauchi(1)"}}, ["half-cauchi"]),
        ({"priors": "bda"}, ["bda", "beta"]),
        ({"priors": [1, 2]}, ["mapping"]),
        ({"priors": {"mean": float("nan")}}, ["finite"]),
        ({"population": "student_t", "priors": {"nu": pp.Flat()}}, ["nu", "Gamma"]),
        ({"population": "point_normal", "priors": {"null_share": 1.5}}, ["null_share", "0 and 1"]),
        ({"population": "point_normal", "priors": {"null_share": pp.Normal(0, 1)}}, ["null_share"]),
    ],
)
def test_priors_that_cannot_stand_are_refused_in_words(options, words):
    with pytest.raises(PartialPoolError) as error:
        pp.pool(Y, se=SE, **options)
    for word in words:
        assert word in str(error.value)


def test_a_nu_cannot_be_known():
    with pytest.raises(PriorError, match="'nu': 4"):
        pp.pool(Y, se=SE, population="student_t", priors={"nu": 4})


def test_a_mean_beyond_its_range_is_refused():
    with pytest.raises(PriorError, match="'mean'"):
        pp.pool(EVENTS, trials=TRIALS, priors={"mean": pp.Normal(0.2, 0.1)})
    with pytest.raises(PriorError, match="between 0 and 1"):
        pp.pool(EVENTS, trials=TRIALS, priors={"mean": pp.HalfNormal(0.1)})
    with pytest.raises(PriorError, match="between 0 and 1"):
        pp.pool(EVENTS, trials=TRIALS, priors={"relative_sd": pp.HalfNormal(1)})


def test_priors_are_shown():
    text = repr(pp.pool(Y, se=SE, priors={"sd": pp.HalfCauchy(1)}).priors)
    assert "HalfCauchy(1)" in text
    assert "mean" in text


def test_one_unit_needs_a_population():
    for options in ({"se": 1.0}, {"trials": 9}, {"exposure": 2.0}):
        with pytest.raises(ModelError, match="one unit") as error:
            pp.pool([3], **options)
        assert "population=pp." in str(error.value)
