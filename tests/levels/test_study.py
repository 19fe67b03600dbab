"""`pp.simulate_pooling`: its closed forms, its quadrature, what it promises of pooling, and how it refuses."""

from __future__ import annotations

import math
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.algebra import studies
from partialpool.inference.progress import Progress
from partialpool.levels import study_power
from partialpool.levels.study_exact import StudyDesign, exact_errors
from partialpool.levels.study_plan import degrees_of_freedom, difference_error, power_of
from partialpool.levels.study_simulation import posteriors

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def estimated():
    """The default design, fewer data sets."""
    se = 1 / math.sqrt(10)
    return pp.simulate_pooling(tau=se * np.array([0, 0.2, 0.5, 1, 2, 3, 5, 8]), replicates=600, threads=1, seed=4)


@pytest.fixture(scope="module")
def grid():
    return pp.simulate_pooling([10, 20, 40, 80], [2, 5, 10, 20], [0.2, 0.5], variances="known", replicates=100)


# ---- closed forms -------------------------------------------------------------------------------------------------


def dense_errors(sizes, tau, sigma):
    """Mean squared errors, slopes of the bias, and sds by the algebra of J x J matrices."""
    groups, v = sizes.size, np.diag(sigma**2 / sizes)
    total = v + tau**2 * np.eye(groups)
    ones = np.ones((groups, 1))
    inverse = np.linalg.inv(total)
    mean = np.linalg.inv(ones.T @ inverse @ ones) @ ones.T @ inverse
    shrink = tau**2 * inverse
    partial = ones @ mean + shrink @ (np.eye(groups) - ones @ mean)
    maps = (ones @ (sizes / sizes.sum())[None], np.eye(groups), partial)
    mse = [np.trace((a - np.eye(groups)) @ (a - np.eye(groups)).T * tau**2 + a @ v @ a.T) / groups for a in maps]
    slope = [np.mean(np.diag(a) - 1) for a in maps]
    return mse, slope, (ones.T @ inverse @ ones).item() ** -0.5


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 60), min_size=3, max_size=12), st.floats(0, 20), st.floats(0.05, 20)
)  # fmt: skip
def test_closed_forms_are_those_of_dense_algebra_and_partial_pooling_is_never_above(sizes, tau, sigma):
    design = StudyDesign(np.array(sizes, dtype=float))
    exact = exact_errors(design, tau, sigma)
    mse, slope, sd_mean = dense_errors(design.sizes, tau, sigma)
    np.testing.assert_allclose(exact.mse, mse, rtol=1e-8)
    np.testing.assert_allclose(exact.slope, slope, atol=1e-9)
    assert exact.sd_mean == pytest.approx(sd_mean)
    assert exact.mse[2] <= exact.mse[:2].min() * (1 + 1e-12)


def test_with_known_variances_the_simulation_confirms_the_exact_errors():
    study = pp.simulate_pooling(
        sizes=[2, 3, 5, 8, 20, 60], tau=[0, 0.3, 1, 4], variances="known", replicates=2000, threads=1
    )
    table = study.table
    assert (table["mse_error"] == 0).all()
    assert (np.abs(table["simulated"] - table["mse"]) < 4 * table["simulated_error"]).all()
    partial = table[table["pooling"] == "partial"]
    assert (np.abs(partial["coverage"] - 0.9) < 4 * partial["coverage_error"]).all()
    np.testing.assert_allclose(table["mse"], table["bias"] ** 2 + table["variance"])
    assert (study.designs["over_better"] <= 1 + 1e-12).all()
    assert study.crossings.empty
    assert "never worse" in str(study)


# ---- the quadrature is what pp.fit does ---------------------------------------------------------------------------

CASES = [
    (np.full(5, 4), 0.0, 1.0, 0.0), (np.full(5, 2), 1.0, 1.0, 100.0), (np.full(8, 10), 0.3, 1.0, 0.0),
    (np.array([2, 2, 3, 5, 5, 20, 20, 40]), 5.0, 10.0, -3.0), (np.full(30, 6), 0.02, 0.1, 0.0),
]  # fmt: skip


def simulated(sizes, tau, sigma, mean, seed=1):
    """Rows, ids, group means, and the sum of squares within."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(sizes.size), sizes)
    y = mean + tau * rng.standard_normal(sizes.size)[group] + sigma * rng.standard_normal(group.size)
    means = np.bincount(group, y) / sizes
    return y, group, means, float(((y - means[group]) ** 2).sum())


@pytest.mark.parametrize(("sizes", "tau", "sigma", "mean"), CASES)
def test_the_posterior_is_that_of_fit(sizes, tau, sigma, mean):
    y, group, means, within = simulated(sizes, tau, sigma, mean)
    design = StudyDesign(sizes.astype(float))
    found, estimates = posteriors(design, means[None], np.zeros_like(means)[None], np.array([within]))
    fit = pp.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": group}), seed=1, threads=1, ess=2000)
    table, summary = fit.groups("g", kind="coefficient"), fit.summary()
    sd = math.sqrt(found[0, studies.VARIANCE])
    np.testing.assert_allclose(estimates[0], table["mean"], atol=0.005 * sd)
    assert (table["sd"] ** 2).mean() == pytest.approx(found[0, studies.VARIANCE], rel=0.01)
    for name, column in (("Intercept", studies.MEAN), ("sd(Intercept|g)", studies.TAU), ("sigma", studies.SIGMA)):
        assert summary.loc[name, "mean"] == pytest.approx(found[0, column], abs=0.01 * summary.loc[name, "sd"])
    assert summary.loc["Intercept", "sd"] ** 2 == pytest.approx(found[0, studies.MEAN_VARIANCE], rel=0.03)


@pytest.mark.parametrize(("sizes", "tau", "sigma", "mean"), CASES)
def test_the_posterior_is_that_of_a_fine_grid(sizes, tau, sigma, mean):
    from partialpool.levels.study_simulation import default_priors

    _, _, means, within = simulated(sizes, tau, sigma, mean, seed=2)
    design, freedom = StudyDesign(sizes.astype(float)), sizes.sum() - sizes.size
    m0, s0, scale_tau, scale_sigma = default_priors(design, means[None], np.array([within]))[0]
    x = np.linspace(-13, 4, 700)[:, None] + math.log(scale_tau)
    z = np.linspace(-1, 1, 250)[None] * min(4, 8 / math.sqrt(2 * freedom)) + 0.5 * math.log(within / freedom)
    tau2, v = np.exp(2 * x)[..., None], np.exp(2 * z)[..., None] / sizes
    w = 1 / (tau2 + v)
    precision = 1 / s0**2 + w.sum(axis=-1)
    mean_mu = (w @ (means - m0)) / precision
    log = x + z - freedom * z - 0.5 * within * np.exp(-2 * z) + 0.5 * np.log(w).sum(axis=-1) - 0.5 * np.log(precision)
    log -= 0.5 * (w @ (means - m0) ** 2 - precision * mean_mu**2)
    log -= 2 * np.log1p(np.exp(2 * x) / (3 * scale_tau**2)) + 2 * np.log1p(np.exp(2 * z) / (3 * scale_sigma**2))
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    b = v * w
    theta = b * mean_mu[..., None] + (1 - b) * (means - m0)
    expected = np.einsum("ab,abj->j", weights, theta) + m0
    second = np.einsum("ab,abj->j", weights, theta**2 + v * (1 - b) + b**2 / precision[..., None])
    variance = second - (expected - m0) ** 2
    found, estimates = posteriors(design, means[None], np.zeros_like(means)[None], np.array([within]))
    np.testing.assert_allclose(estimates[0], expected, atol=1e-4 * math.sqrt(variance.mean()))
    assert found[0, studies.VARIANCE] == pytest.approx(variance.mean(), rel=2e-4)
    assert found[0, studies.TAU] == pytest.approx(float((weights * np.exp(x)).sum()), rel=2e-4)


def test_coverage_is_that_of_quantiles_of_a_fit():
    sizes = np.full(6, 5)
    y, group, means, within = simulated(sizes, 0.5, 1.0, 0.0, seed=5)
    table = pp.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": group}), seed=1, threads=1).groups(
        "g", kind="coefficient"
    )  # fmt: skip
    design = StudyDesign(sizes.astype(float))
    low, high = (table[name].to_numpy() for name in ("q05", "q95"))
    inside = 0.04 * (high - low)
    for truth, share in ((low + inside, 1), (low - inside, 0), (high - inside, 1), (high + inside, 0)):
        found, _ = posteriors(design, means[None], truth[None], np.array([within]), intervals=True)
        assert found[0, studies.COVERED] == share


# ---- what it says of pooling --------------------------------------------------------------------------------------


def test_with_estimated_variances_partial_pooling_is_below_no_pooling_and_near_the_better_extreme(estimated):
    frame = estimated.designs
    assert (frame["partial"] + 2 * frame["over_better_error"] * frame["none"] < frame["none"]).all()
    large = frame[frame["tau_over_se"] > 4.99]
    assert len(large) == 2
    assert (large["over_better"] < 1.05).all()


def test_the_region_where_complete_pooling_wins_is_located(estimated):
    crossing = estimated.crossings.iloc[0]
    assert crossing["tau_over_se"] == pytest.approx(0.40, abs=0.03)
    assert 0 < crossing["tau_error"] < 0.01
    assert crossing["ratio"] == pytest.approx(2.04, abs=0.15)
    assert crossing["cost"] == pytest.approx(0.035, abs=0.006)
    for share, sign in ((0.9, 1), (1.1, -1)):  # other random numbers, to either side
        other = pp.simulate_pooling(tau=share * crossing["tau"], replicates=600, threads=1, seed=9)
        own = other.designs.iloc[0]
        assert sign * (own["partial"] - own["complete"]) > 0
    assert "complete pooling is better where tau is below 0.1" in str(estimated)


def test_bias_is_that_of_a_group_one_tau_above_the_mean(estimated):
    """Compared with direct simulation where the first group's true effect is held at tau."""
    rng, tau, design = np.random.default_rng(3), 1 / math.sqrt(10), StudyDesign(np.full(30, 10.0))
    effects = tau * rng.standard_normal((1500, 30))
    effects[:, 0] = tau
    means = effects + rng.standard_normal((1500, 30)) / math.sqrt(10)
    within = rng.chisquare(270, 1500)
    error = posteriors(design, means, effects, within)[1][:, 0] - tau
    table = estimated.table.query("pooling == 'partial'")
    bias = table.loc[np.isclose(table["tau"], tau), "bias"].item()
    assert error.mean() == pytest.approx(bias, abs=4 * error.std() / math.sqrt(1500) + 0.003)


def test_bias_of_few_groups_is_not_that_of_a_straight_line():
    """With 5 groups shrinkage is weaker for larger effects; the slope of errors on effects would say -0.139."""
    rng, tau = np.random.default_rng(4), 2 / math.sqrt(5)
    design, effects = StudyDesign(np.full(5, 5.0)), tau * rng.standard_normal((2500, 5))
    effects[:, 0] = tau
    means = effects + rng.standard_normal((2500, 5)) / math.sqrt(5)
    error = posteriors(design, means, effects, rng.chisquare(20, 2500))[1][:, 0] - tau
    study = pp.simulate_pooling(5, 5, tau, replicates=1500, threads=1)
    told = study.table.query("pooling == 'partial'").iloc[0]
    spread = math.hypot(error.std() / math.sqrt(2500), told["bias_error"])
    assert told["bias"] == pytest.approx(error.mean(), abs=4 * spread)
    assert told["bias"] < -0.155


def test_the_controlled_mean_squared_error_agrees_with_the_plain_average_and_is_sharper(estimated):
    table = estimated.table.query("pooling == 'partial'")
    assert (np.abs(table["mse"] - table["simulated"]) < 4.5 * table["simulated_error"]).all()
    assert (table["mse_error"] < 0.8 * table["simulated_error"]).all()


def test_few_groups_are_told_the_truth():
    study = pp.simulate_pooling(3, 2, [8 / math.sqrt(2)], replicates=1000, threads=1)
    assert "above no pooling" in str(study)
    assert study.designs["over_better"].item() > 1.1


def test_scale_and_threads_do_not_matter():
    one = pp.simulate_pooling(5, 4, [0, 0.5], replicates=120, threads=1, seed=2)
    two = pp.simulate_pooling(5, 4, [0, 0.5], replicates=120, threads=2, seed=2)
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    scaled = pp.simulate_pooling(5, 4, [0, 500], sigma=1000, replicates=120, threads=1, seed=2)
    np.testing.assert_allclose(scaled.table["mse"], 1e6 * one.table["mse"], rtol=2e-3)  # priors have three digits
    other = pp.simulate_pooling(5, 4, [0, 0.5], replicates=120, threads=1, seed=3)
    assert not np.allclose(other.table["mse"], one.table["mse"], rtol=1e-6)


def test_unequal_sizes_in_any_order_are_one_design():
    a = pp.simulate_pooling(sizes=[9, 2, 4], tau=1, replicates=100, threads=1)
    b = pp.simulate_pooling(sizes=(2, 4, 9), tau=1, replicates=100, threads=1)
    pd.testing.assert_frame_equal(a.table, b.table)
    assert a.title.startswith("Mean squared error of group means: 3 groups of 2 to 9")


# ---- interrupted --------------------------------------------------------------------------------------------------


def test_an_interrupt_keeps_what_was_finished(monkeypatch):
    calls = []

    def update(self, share, text):
        calls.append(share)
        if share > 0.2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", update)
    study = pp.simulate_pooling(5, 4, np.linspace(0, 2, 6), replicates=3_000, threads=1)
    assert 10 <= study.finished < 3_000
    assert study.finished % 10 == 0
    assert f"Interrupted: {study.finished:,} of 3,000" in str(study)
    assert min(calls) >= 0
    assert max(calls) <= 1


def test_an_interrupt_before_anything_is_finished_is_an_interrupt(monkeypatch):
    def update(self, share, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", update)
    monkeypatch.setattr("partialpool.levels.study_simulation.PART", 8_000)
    with pytest.raises(KeyboardInterrupt):
        pp.simulate_pooling(5, 4, [0, 1, 2, 3], replicates=8_000, threads=1)


# ---- planning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "effect_sd"), [("group", 0.0), ("row", 0.0), ("row", 0.4)])
def test_the_power_is_that_of_simulated_experiments(by, effect_sd):
    from scipy.stats import t

    rng, groups, n, tau, effect, many = np.random.default_rng(8), 12, 6, 0.5, 0.6, 20_000
    design = StudyDesign(np.full(groups, float(n)))
    freedom = groups - 2 if by == "group" else degrees_of_freedom(design, effect_sd)
    predicted = power_of(effect, difference_error(design, tau, 1.0, by, effect_sd), freedom)
    half = groups // 2
    if by == "group":
        means = tau * rng.standard_normal((many, groups)) + rng.standard_normal((many, groups)) / math.sqrt(n)
        means[:, half:] += effect
        a, b = means[:, :half], means[:, half:]
        pooled = (a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / 2
        statistic = (b.mean(axis=1) - a.mean(axis=1)) / np.sqrt(pooled * 2 / half)
    else:
        y = rng.standard_normal((many, groups, 2, n // 2))
        y[:, :, 1] += (effect + effect_sd * rng.standard_normal((many, groups)))[..., None]
        arm = y.mean(axis=-1)
        own = arm[..., 1] - arm[..., 0]
        variance = own.var(axis=1, ddof=1) / groups
        if effect_sd == 0:  # of the rows around their group and the common effect
            residual = y - y.mean(axis=(2, 3), keepdims=True)
            residual[:, :, 1] -= own.mean(axis=1)[:, None, None] / 2
            residual[:, :, 0] += own.mean(axis=1)[:, None, None] / 2
            variance = (residual**2).sum(axis=(1, 2, 3)) / freedom * 4 / (groups * n)
        statistic = own.mean(axis=1) / np.sqrt(variance)
    seen = np.mean(np.abs(statistic) > t.ppf(0.975, freedom))
    assert seen == pytest.approx(predicted, abs=4 * math.sqrt(0.25 / many))


def test_the_plan_names_the_smallest_designs(grid):
    plan = grid.plan(power=0.8, effect=0.5)
    table = plan.table
    for groups, own in table.groupby("groups"):
        enough = own[own["power"] >= 0.8]
        assert own["smallest"].sum() == (not enough.empty), groups
        if not enough.empty:
            assert own.loc[own["smallest"], "rows"].item() == enough["rows"].min()
    assert (table["tau"] == 0.5).all()  # the worst, which a design has to do with
    assert (plan.best.groups, plan.best.rows) == (80, 5)
    assert grid.plan(power=0.8, effect=0.5, tau=0.2).best.total_rows < plan.best.total_rows
    assert "80 groups of 5 (400 rows)" in str(plan)


def test_precision_is_the_posterior_sd(grid):
    plan = grid.plan(precision=0.3, tau=0.5)
    expected = [math.sqrt(exact_errors(design, 0.5, 1.0).mse[2]) for design in grid.layouts]
    np.testing.assert_allclose(plan.table["sd"], expected)
    mean = grid.plan(precision=0.05, of="mean")
    assert mean.best is None
    assert "100 groups at the least" in str(mean)
    assert "The nearest is 80 groups of 20" in str(mean)


def test_a_design_that_compares_nothing_has_no_power():
    study = pp.simulate_pooling(3, 1, 0.5, variances="known", replicates=100)
    assert study.plan(power=0.5, effect=9, by="row").table["power"].item() == 0


def test_floors_are_told_only_where_rows_do_not_help():
    study = pp.simulate_pooling(10, [2, 4], [0.01], variances="known", replicates=100)
    assert "More rows do not" not in str(study.plan(power=0.8, effect=0.5))  # they do
    wide = pp.simulate_pooling([6, 40], [20], [0.5], variances="known", replicates=100)
    assert "with 6 groups no number of rows is enough" in str(wide.plan(power=0.8, effect=0.5))
    spread = str(wide.plan(power=0.8, effect=0.5, by="row", effect_sd=1))
    assert "with 6 groups no number of rows" in spread and "effect_sd / sqrt(groups)" in spread


def test_unequal_sizes_are_named_as_the_design_is():
    study = pp.simulate_pooling(sizes=[2, 3, 5, 8, 20, 60], tau=0.5, variances="known", replicates=100)
    assert "6 groups of 2 to 60 (98 rows)" in str(study.plan(precision=0.4))


def test_few_groups_are_told_that_fit_is_more_careful():
    study = pp.simulate_pooling(6, 5, 0.5, replicates=100, threads=1)
    assert 'that of pp.fit("y ~ treated + (1 | group)")' in str(study.plan(power=0.3, effect=1.2))
    assert "pp.fit" not in str(study.plan(power=0.3, effect=1.2, by="row"))
    assert "interval of pp.fit is wider" in str(study.plan(power=0.3, effect=1.2, by="row", effect_sd=0.5))


def dense_tail(y, treated, group):
    """The posterior probability that an effect of treating groups is below zero, from matrices of rows, on a grid."""
    from scipy.stats import multivariate_normal, norm

    x, spread, out = treated - treated.mean(), y.std(ddof=1), []
    columns, indicators = np.c_[np.ones(y.size), x], np.eye(group.max() + 1)[group]
    prior = np.diag([(2.5 * spread) ** 2, (2.5 * spread / treated.std(ddof=1)) ** 2])
    start = np.array([y.mean(), 0.0])
    for tau in np.exp(np.arange(math.log(0.01), math.log(40), 0.25)):
        for sigma in np.exp(np.linspace(-1.2, 1.2, 25)):
            noise = sigma**2 * np.eye(y.size) + tau**2 * indicators @ indicators.T
            precise = columns.T @ np.linalg.inv(noise)
            cov = np.linalg.inv(precise @ columns + np.linalg.inv(prior))
            mean = cov @ (precise @ y + np.linalg.solve(prior, start))
            log = multivariate_normal.logpdf(y, columns @ start, noise + columns @ prior @ columns.T)
            log += math.log(tau * sigma) - 2 * sum(np.log1p(sd**2 / 3 / (2.5 * spread) ** 2) for sd in (tau, sigma))
            out.append((log, norm.cdf(0, mean[1], cov[1, 1] ** 0.5)))
    logs, tails = np.array(out).T
    return float(np.average(tails, weights=np.exp(logs - logs.max())))


@pytest.mark.parametrize(("groups", "rows"), [(4, 3), (6, 5)])
def test_an_interval_between_groups_is_that_of_matrices_of_rows(groups, rows):
    rng = np.random.default_rng(groups)
    group = np.repeat(np.arange(groups), rows)
    treated = (group % 2).astype(float)
    y = rng.normal(size=group.size) + 0.5 * rng.normal(size=groups)[group] + 1.2 * treated
    means = np.bincount(group, y) / rows
    arms = [means[::2], means[1::2]]
    between = sum(((own - own.mean()) ** 2).sum() for own in arms)
    within = ((y - means[group]) ** 2).sum() / (group.size - groups)
    seen = arms[1].mean() - arms[0].mean()
    found = study_power.tail_beyond(np.array([seen]), np.array([between]), np.array([within]), groups, group.size, 0.5)
    assert found[0] == pytest.approx(dense_tail(y, treated, group), rel=0.03)


def test_power_by_group_is_that_of_simulated_fits():
    """By the tail probability itself, of simulated statistics; a t test would say 34%."""
    rng, groups, rows, tau, effect, many = np.random.default_rng(2), 4, 20, 0.5, 1.5, 6000
    spread = tau**2 + 1 / rows
    seen = effect + math.sqrt(4 * spread / groups) * rng.standard_normal(many)
    between = spread * rng.chisquare(groups - 2, many)
    within = rng.chisquare(groups * (rows - 1), many) / (groups * (rows - 1))
    tails = study_power.tail_beyond(np.abs(seen), between, within, groups, groups * rows, spread)
    told = pp.simulate_pooling(groups, rows, tau, replicates=100, threads=1).plan(power=0.1, effect=effect)
    assert told.table["power"].item() == pytest.approx(np.mean(tails < 0.025), abs=4 * math.sqrt(0.1 / many))
    assert power_of(effect, math.sqrt(4 * spread / groups), groups - 2) == pytest.approx(0.341, abs=1e-3)


def test_with_many_groups_the_power_is_that_of_a_t_test():
    assert study_power.fit_power(0.3, 200, 2000, 1.0, 0.1) == pytest.approx(power_of(0.3, 0.1, 198), abs=0.01)


def test_power_near_one_is_a_number():
    """The lower tail of the noncentral t is not a number where it is tiny; such designs were never enough."""
    values = [power_of(distance, 1.0, df) for df in (2, 4, 8, 18, 300) for distance in np.linspace(0.1, 40, 150)]
    assert np.isfinite(values).all() and max(values) <= 1
    for df in (2, 8, 300):
        own = [power_of(distance, 1.0, df) for distance in np.linspace(0.1, 40, 150)]
        assert (np.diff(own) >= -1e-9).all()


def test_a_fit_is_refused_in_one_line_that_says_what_to_pass():
    fit = pp.fit("y ~ 1 + (1 | g)", {"y": np.arange(12.0) ** 1.5 % 5, "g": np.arange(12) // 3}, threads=1)
    for arguments in ({"groups": fit}, {"tau": fit}):
        with pytest.raises(pp.ModelError, match="is a fit; a study takes numbers") as caught:
            pp.simulate_pooling(**arguments)
        assert "\n" not in str(caught.value) and "tau=" in str(caught.value) and len(str(caught.value)) < 250
    with pytest.raises(pp.ModelError, match="an object of type DataFrame"):
        pp.simulate_pooling(tau=[pd.DataFrame({"a": range(30)})])


def test_sentences_do_not_claim_a_gain_that_is_not_there():
    study = str(pp.simulate_pooling(3, 2, [10], replicates=200, threads=1))
    assert "up to -" not in study and "by less than 0.5%, if at all" in study
    near = str(pp.simulate_pooling(5, 5, [10], replicates=400, threads=1))
    assert "within 0.0%" not in near


def test_estimated_variances_cost_power():
    known = pp.simulate_pooling(6, 5, 0.5, variances="known", replicates=100, threads=1)
    learnt = pp.simulate_pooling(6, 5, 0.5, replicates=100, threads=1)
    aim = {"power": 0.5, "effect": 1.0}
    assert learnt.plan(**aim).table["power"].item() < known.plan(**aim).table["power"].item()


@pytest.mark.parametrize(
    ("aim", "message"),
    [
        ({}, "Ask for precision="),
        ({"precision": 0.1, "power": 0.8}, "one of them"),
        ({"power": 0.8}, "needs effect="),
        ({"power": 80, "effect": 1}, "probability between"),
        ({"power": 0.8, "effect": 0}, "not there"),
        ({"power": 0.8, "effect": 1, "by": "rows"}, "Did you mean 'row'"),
        ({"precision": 0.1, "of": "groups"}, "Did you mean 'group'"),
        ({"precision": 0}, "no study makes an sd of 0"),
        ({"precision": 0.1, "effect": 1}, "goes with power="),
        ({"precision": 0.1, "tau": 0.3}, "which has 0.2, 0.5"),
        ({"power": 0.8, "effect": 1, "effect_sd": -1}, "0 or more"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(grid, aim, message):
    with pytest.raises(pp.ModelError, match=re.escape(message)):
        grid.plan(**aim)


# ---- pictures and words -------------------------------------------------------------------------------------------


def test_pictures(estimated, grid):
    figure = estimated.plot()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["complete pooling", "no pooling", "partial pooling", "complete better than partial"]
    several = grid.plot()
    assert sum(axes.get_visible() for axes in several.axes) == 6
    own = matplotlib.figure.Figure().add_subplot()
    assert estimated.plot(ax=own) is own.get_figure()
    with pytest.raises(pp.ModelError, match="16 designs"):
        grid.plot(ax=own)
    assert grid.plan(precision=0.3).plot().axes[0].get_ylabel() == "posterior sd of a group's mean"
    assert "90% intervals" in estimated._repr_html_()


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": -1}, "tau has -1, but it is the sd"),
        ({"tau": [0, math.nan]}, "not a finite number"),
        ({"tau": "0.5"}, "is not a number"),
        ({"tau": []}, "tau is empty"),
        ({"groups": 2}, "fewer than 3 groups"),
        ({"groups": 10.5}, "not a whole number"),
        ({"rows": 0}, "rows has 0, but a group without rows"),
        ({"rows": True}, "not a finite number"),
        ({"rows": 1}, "can't be told from that of groups"),
        ({"sigma": 0}, "greater than 0"),
        ({"sigma": [1, 2]}, "it takes one"),
        ({"sizes": [3, 4]}, "sizes has 2 groups"),
        ({"sizes": [3, 4, 0]}, "sizes has 0"),
        ({"sizes": [3, 4, 5], "rows": 4}, "not both"),
        ({"variances": "estimate"}, "Did you mean 'estimated'"),
        ({"replicates": 10}, "fewer than 100"),
        ({"threads": 0}, "threads has 0"),
        ({"seed": -1}, "seeds start at 0"),
    ],
)
def test_bad_input_is_told(arguments, message):
    with pytest.raises(pp.ModelError, match=re.escape(message)):
        pp.simulate_pooling(**arguments)


def test_groups_of_one_row_can_be_studied_with_known_variances():
    study = pp.simulate_pooling(5, 1, 1.0, variances="known", replicates=100)
    assert study.designs["partial"].item() == pytest.approx(0.6)
