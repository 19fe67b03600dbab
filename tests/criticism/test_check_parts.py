"""The parts of a predictive check against plain computations: statistics, p-values, envelopes, left-out rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import partialpool as pp
from partialpool.criticism import statistics as parts
from partialpool.criticism.calibration_of_rows import left_out_rows, reliability
from partialpool.criticism.envelopes import envelope, holm, two_sided_p, upper_p
from partialpool.criticism.replicates import Replicates, replicates_used
from partialpool.criticism.row_distributions import FUNCTIONS, probabilities
from partialpool.spec.families import FAMILIES


def data_of(seed=1, rows=90, groups=9):
    rng = np.random.default_rng(seed)
    g = rng.integers(0, groups, rows)
    x = rng.normal(size=rows)
    y = 1 + 0.7 * rng.normal(size=groups)[g] + 0.5 * x + rng.normal(size=rows)
    return pd.DataFrame({"g": g, "x": x, "z": rng.normal(size=rows), "k": np.array(list("abc"))[g % 3], "y": y})


# -- statistics -------------------------------------------------------------------------------------------------------


def test_skewness_and_tails_are_scipys():
    z = np.random.default_rng(1).exponential(size=(50, 4))
    assert parts.SKEW.of(z) == pytest.approx(stats.skew(z))
    assert parts.TAILS.of(z) == pytest.approx(stats.kurtosis(z))


def test_statistics_by_group_are_those_of_its_rows():
    data = data_of()
    design = pp.Model.from_formula("y ~ x + (1 | g)", data).design
    groups = parts.Groups.of(design, 0)
    y = np.column_stack([data["y"], data["x"].round()])
    plain = {"mean": np.mean, "sd": lambda v: v.std(ddof=1), "zeros": lambda v: (v == 0).mean(), "minimum": np.min,
             "maximum": np.max}  # fmt: skip
    for name, function in plain.items():
        found = parts.SIMPLE[name].by_group(y, groups)
        for j in range(9):
            own = y[design.factors[0].codes == j]
            assert found[j] == pytest.approx([function(own[:, c]) for c in range(2)])


def test_within_group_correlation_is_that_of_analysis_of_variance():
    data = data_of()
    design = pp.Model.from_formula("y ~ x + (1 | g)", data).design
    y, sizes = data["y"].to_numpy(), data.groupby("g").size().to_numpy()
    f, _ = stats.f_oneway(*[part["y"] for _, part in data.groupby("g")])
    typical = (len(y) - (sizes**2).sum() / len(y)) / (len(sizes) - 1)
    assert parts.within_group_correlation(design, 0).of(y[:, None])[0] == pytest.approx((f - 1) / (f - 1 + typical))


def test_slopes_are_least_squares_slopes_within_groups():
    """The sum of squares that each group's own slopes explain beyond the group's own effects, over their number."""
    data = data_of()
    fit = pp.fit("y ~ x + z + (1 + z | g)", data, seed=1, threads=1, draws=200, progress=False)
    assert [name for name, _ in parts.missing_slopes(fit, 0)] == ["x"]
    column = parts.missing_slopes(fit, 0)[0][1]
    own = parts.slopes(fit, 0, column, "x", np.ones(len(data)))
    noise = np.random.default_rng(2).normal(size=(len(data), 3))
    total = np.zeros(3)
    for _, rows in data.reset_index().groupby("g"):
        small = np.column_stack([np.ones(len(rows)), rows["z"]])
        large = np.column_stack([small, rows["x"]])
        v = noise[rows.index]
        left = [((v - m @ np.linalg.lstsq(m, v, rcond=None)[0]) ** 2).sum(axis=0) for m in (small, large)]
        total += left[0] - left[1]
    assert own.of(noise) == pytest.approx(total / 9)


def test_columns_of_a_category_are_one_predictor_and_constant_ones_none():
    data = data_of()
    data["kind"] = np.array(list("uvw"))[np.arange(len(data)) % 3]
    fit = pp.fit("y ~ kind + k + (1 | g)", data, seed=1, threads=1, draws=200, progress=False)
    found = dict(parts.missing_slopes(fit, 0))
    assert set(found) == {"kind", "k"}
    assert len(found["kind"]) == 2
    assert parts.slopes(fit, 0, found["kind"], "kind", np.ones(90)) is not None
    assert parts.slopes(fit, 0, found["k"], "k", np.ones(90)) is None


# -- p-values ---------------------------------------------------------------------------------------------------------


def test_p_values_count_half_of_the_ties_and_continue_the_tail():
    assert two_sided_p(np.zeros(999), 0.0) == 1.0
    draws = np.random.default_rng(1).exponential(size=1000)
    assert upper_p(draws, np.log(20)) == pytest.approx(0.05, abs=0.02)
    assert upper_p(draws, 50.0) == pytest.approx(1e-4, rel=0.01)
    assert upper_p(draws, 8.0) == pytest.approx(np.exp(-8), rel=2.0)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_holm_is_never_below_p_and_keeps_its_order(values, seed):
    p = np.array(values)
    weights = np.random.default_rng(seed).choice([0.1, 1.0], size=len(p))
    adjusted = holm(p, weights)
    assert (adjusted >= p - 1e-15).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p / weights)
    assert (np.diff(adjusted[order]) >= -1e-12).all()
    alike = holm(p)
    by_hand = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)).clip(max=1)
    assert np.sort(alike) == pytest.approx(by_hand)


def test_envelopes_hold_nine_of_ten_samples():
    rng = np.random.default_rng(1)
    found = [envelope(rng.random(60)) for _ in range(300)]
    assert np.mean([own.outside == 0 for own in found]) == pytest.approx(0.9, abs=0.06)
    assert np.mean([own.p <= 0.2 for own in found]) == pytest.approx(0.2, abs=0.08)


# -- rows left out ----------------------------------------------------------------------------------------------------


def test_transforms_of_gaussian_rows_are_those_of_dense_algebra():
    """The prediction of each row from the others, hyperparameters weighted anew without it."""
    data = data_of(rows=50, groups=8)
    fit = pp.fit("y ~ x + (1 | g)", data, seed=1, threads=1, draws=4000, progress=False)
    found = left_out_rows(Replicates(fit, replicates_used(fit, 4000)))
    hyper = fit.model.hyperparameters.public(fit.result.draws_theta[:400])
    y, z = data["y"].to_numpy(), (data["g"].to_numpy()[:, None] == np.arange(8)).astype(float)
    x = np.column_stack([np.ones(50), data["x"] - data["x"].mean()])
    prior = np.diag(np.asarray(fit.model.coefficients.scale) ** 2)
    centre = x @ np.asarray(fit.model.coefficients.mean)
    logs, cdf = np.empty((400, 50)), np.empty((400, 50))
    for k, (tau, sigma) in enumerate(hyper):
        inverse = np.linalg.inv(x @ prior @ x.T + tau**2 * z @ z.T + sigma**2 * np.eye(50))
        spread = 1 / np.sqrt(np.diag(inverse))
        left = (inverse @ (y - centre)) * spread
        cdf[k], logs[k] = stats.norm.cdf(left), stats.norm.logpdf(left) - np.log(spread)
    shares = np.exp(-logs)
    exact = (shares * cdf).sum(axis=0) / shares.sum(axis=0)
    assert np.abs(found.at - exact).max() < 0.025
    assert np.abs(found.at - exact).mean() < 0.006


def test_transforms_of_a_group_a_row_are_those_of_its_population():
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"y": rng.poisson(np.exp(1 + 0.7 * rng.normal(size=60))), "g": np.arange(60)})
    fit = pp.fit("y ~ 1 + (1 | g)", data, family="poisson", seed=1, threads=1, draws=2000, progress=False)
    found = left_out_rows(Replicates(fit, replicates_used(fit, 2000)))
    nodes, share = np.polynomial.hermite_e.hermegauss(30)
    share = share / share.sum()
    mean = np.exp(fit.draws("Intercept")[:, None] + fit.draws("sd(Intercept|g)")[:, None] * nodes)
    for i in range(0, 60, 7):
        y = data["y"].iloc[i]
        mass = stats.poisson.pmf(y, mean) @ share
        at, below = stats.poisson.cdf(y, mean) @ share, stats.poisson.cdf(y - 1, mean) @ share
        assert found.at[i] == pytest.approx((at / mass).mean() / (1 / mass).mean(), abs=0.04)
        assert found.below[i] == pytest.approx((below / mass).mean() / (1 / mass).mean(), abs=0.04)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_distribution_functions_are_those_of_the_simulator(name):
    family, rng = FAMILIES[name](), np.random.default_rng(1)
    eta0, eta1, eta2 = np.array([0.3, -0.4]), np.array([0.5, 0.9]), np.full(2, 1.5)
    trials = np.array([5.0, 8.0])
    size = 20_000
    draws = family.simulate(rng, *(np.repeat(e[:, None], size, axis=1) for e in (eta0, eta1, eta2)), trials[:, None])
    places = np.quantile(draws, [0.1, 0.5, 0.9], axis=1, method="inverted_cdf")
    for y in places:
        below, at = probabilities(family, y, eta0, eta1, eta2, trials)
        assert below == pytest.approx((draws < y[:, None]).mean(axis=1), abs=0.015)
        assert at == pytest.approx((draws <= y[:, None]).mean(axis=1), abs=0.015)
    assert name in FUNCTIONS or name == "beta_binomial"


def test_reliability_tells_right_predictions_from_wrong_ones():
    rng = np.random.default_rng(3)
    p = rng.random(400)
    y = (rng.random(400) < p).astype(float)
    right = reliability(y, np.ones(400), p, p, np.random.default_rng(1))
    wrong = reliability(y, np.ones(400), 0.5 + 0.5 * (p - 0.5), p, np.random.default_rng(1))
    assert right.p > 0.05 > wrong.p
    assert right.predicted == pytest.approx(np.sort(p).reshape(10, 40).mean(axis=1))
    assert (right.low <= right.high).all()


def test_chances_of_events_are_those_of_leave_one_out():
    """Groups that differ much: the posterior of their effects is far from normal. Against `loo`, with its own nodes."""
    from partialpool.criticism.loo import loo

    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(30), 5)
    event = (rng.random(150) < 1 / (1 + np.exp(1 - 3 * rng.normal(size=30)[g]))).astype(int)
    data = pd.DataFrame({"event": event, "g": g})
    fit = pp.fit("event ~ 1 + (1 | g)", data, family="bernoulli", seed=1, threads=1, draws=500, progress=False)
    found = left_out_rows(Replicates(fit, replicates_used(fit, 500)))
    exact = np.exp(loo(fit, threads=1, progress=False).table["elpd"].to_numpy())
    assert np.where(event == 1, found.expected, 1 - found.expected) == pytest.approx(exact, abs=0.03)
