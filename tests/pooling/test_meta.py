from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, optimize, stats

from partialpool.errors import DataError, ModelError
from partialpool.pooling import meta as meta_module
from partialpool.pooling.effect_sizes import effect_sizes
from partialpool.pooling.fitting import pool
from partialpool.pooling.meta import meta_analysis, q_profile
from partialpool.pooling.reml import reml, restricted_log_likelihood
from partialpool.pooling.small_study import fit_selection, selection_log_likelihood, small_study_effects
from partialpool.pooling.units import Units, read_units
from partialpool.spec.priors import HalfNormal, Normal

SCHOOLS = ([28.0, 8, -3, 7, -1, 1, 18, 12], [15.0, 10, 16, 11, 9, 11, 10, 18])


@dataclass(frozen=True)
class Population:
    """A posterior of the population that is known: mean ~ N(1, 0.5²), a new unit ~ N(1, 2²)."""

    def prediction_interval(self, probability=0.9):
        return tuple(stats.norm(1.0, 2.0).interval(probability))


@dataclass(frozen=True)
class Found:
    model: None = None
    explored: None = None


@dataclass(frozen=True)
class Pooled:
    """What a meta-analysis reads of a `Pooled`: these tests are of its frequentist part."""

    units: Units
    population: Population = Population()
    method: str = "empirical_bayes"
    found: Found = Found()

    def summary(self):
        rows = {"mean": [1.0, 0.5, 0.18, 1.0, 1.82], "sd": [1.9, 0.4, 1.3, 1.8, 2.6]}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd", "q05", "q50", "q95"])


@pytest.fixture(scope="module")
def bcg():
    data = pd.read_csv(Path(__file__).parents[1] / "data" / "dat.bcg.csv")
    names = {"events_treatment": "tpos", "nonevents_treatment": "tneg"}
    names |= {"events_control": "cpos", "nonevents_control": "cneg"}
    frame = effect_sizes("RR", **names, units="trial", data=data)
    return Pooled(read_units("estimate", se="se", units="unit", data=frame))


def studies(y, se, **options):
    return Pooled(read_units(y, se=se, **options))


def simulated(seed, n=12, tau=0.4):
    rng = np.random.default_rng(seed)
    se = rng.uniform(0.1, 0.6, n)
    return rng.normal(0.3, np.hypot(se, tau)), se


def test_the_bcg_trials_have_their_published_figures(bcg):
    """tau², mean and se as R's metafor gives them (REML), I² and the prediction interval as the issue defines them."""
    found = meta_analysis(bcg)
    assert found.tau2 == pytest.approx(0.3132432, rel=1e-6)
    assert found.mean == pytest.approx(-0.7145323, abs=1e-7)
    assert found.se == pytest.approx(0.1797815, abs=1e-7)
    assert found.status == "converged"
    assert f"{100 * found.i2:.2f}" == "92.22"
    assert found.h2 == pytest.approx(12.86, abs=0.005)
    assert found.q == pytest.approx(152.233, abs=0.0005)
    assert found.q_p < 1e-15
    np.testing.assert_allclose(found.prediction_interval, [-2.008, 0.579], atol=5e-4)
    np.testing.assert_allclose(found.wald, [-1.0669, -0.3622], atol=5e-5)
    # Viechtbauer (2007) and metafor's confint: 0.1197 to 1.1115
    np.testing.assert_allclose(found.tau2_interval, [0.1197, 1.1115], atol=5e-5)
    assert "I² = 92.22%" in repr(found)


def test_tau_of_forty_digits(bcg):
    """The root of the restricted score in 40-digit arithmetic."""
    assert meta_analysis(bcg).tau2 == pytest.approx(0.31324325813648094, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("slope", [False, True])
def test_reml_is_the_maximum_of_the_restricted_likelihood(seed, slope):
    """Against the density of n - p contrasts that are free of the coefficients, maximised on a fine grid."""
    y, se = simulated(seed, n=8, tau=0.1 * seed)
    X = np.column_stack([np.ones(8), se]) if slope else np.ones((8, 1))
    contrasts = np.linalg.svd(X.T)[2][X.shape[1] :]

    def log_density(tau2):
        covariance = contrasts @ np.diag(se**2 + tau2) @ contrasts.T
        return stats.multivariate_normal(cov=covariance).logpdf(contrasts @ y)

    grid = np.linspace(0.0, 2.0, 401)
    values = [log_density(tau2) for tau2 in grid]
    best = int(np.argmax(values))
    found = reml(y, se**2, X)
    if best == 0:
        assert (found.tau2, found.status) == (0.0, "boundary")
    else:
        refined = optimize.minimize_scalar(
            lambda t: -log_density(t),
            bounds=(grid[best - 1], grid[best + 1]),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert found.tau2 == pytest.approx(refined.x, abs=1e-6)
        assert found.status == "converged"
    ours = [restricted_log_likelihood(t, y, se**2, X) for t in (0.0, 0.3)]
    assert ours[1] - ours[0] == pytest.approx(log_density(0.3) - log_density(0.0), abs=1e-10)
    W = np.diag(1 / (se**2 + found.tau2))
    np.testing.assert_allclose(found.covariance, np.linalg.inv(X.T @ W @ X), rtol=1e-10)
    np.testing.assert_allclose(found.coefficients, np.linalg.solve(X.T @ W @ X, X.T @ W @ y), rtol=1e-9)


def test_reml_does_not_depend_on_units_of_measurement():
    y, se = simulated(3)
    plain, scaled = reml(y, se**2), reml(1e6 * y, (1e6 * se) ** 2)
    assert scaled.tau2 == pytest.approx(1e12 * plain.tau2, rel=1e-9)


def test_tau_of_zero_is_said():
    found = meta_analysis(studies(*SCHOOLS))
    assert (found.tau2, found.i2, found.h2, found.status) == (0.0, 0.0, 1.0, "boundary")
    assert found.mean == pytest.approx(7.685616724956035, rel=1e-12)  # shared reference: eight schools, tau = 0
    assert "highest at tau = 0" in repr(found)
    upper = np.sqrt(found.tau2_interval[1])
    assert f"tau up to {upper:.4g} is compatible" in repr(found)


def test_hartung_knapp_by_hand_and_its_refinement():
    y, se = simulated(1)
    found = meta_analysis(studies(y, se), probability=0.9)
    w = 1 / (se**2 + found.tau2)
    q = (w * (y - found.mean) ** 2).sum() / (len(y) - 1)
    reach = stats.t(len(y) - 1).ppf(0.95) * found.se
    np.testing.assert_allclose(found.hartung_knapp_plain, found.mean + np.array([-1, 1]) * reach * np.sqrt(q))
    np.testing.assert_allclose(found.hartung_knapp, found.mean + np.array([-1, 1]) * reach * np.sqrt(max(1, q)))
    agreeing = meta_analysis(studies([1.0, 1.01, 0.99, 1.0], 0.5))
    widths = [high - low for low, high in (agreeing.hartung_knapp_plain, agreeing.wald, agreeing.hartung_knapp)]
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("probability", [0.8, 0.95])
def test_q_profile_has_its_chi_squared_quantiles_at_the_limits(probability):
    y, se = simulated(2, n=20, tau=0.8)

    def Q(tau2):
        w = 1 / (se**2 + tau2)
        return (w * (y - (w @ y) / w.sum()) ** 2).sum()

    low, high = q_profile(y, se, probability)
    assert 0 < low < high
    upper_tail = stats.chi2(len(y) - 1).isf
    assert Q(low) == pytest.approx(upper_tail((1 - probability) / 2), rel=1e-9)
    assert Q(high) == pytest.approx(upper_tail((1 + probability) / 2), rel=1e-9)
    assert q_profile(np.ones(5), np.ones(5), 0.95) == (0.0, 0.0)


def test_q_profile_covers_the_true_tau():
    rng = np.random.default_rng(11)
    tau, se = 0.5, np.linspace(0.2, 0.9, 10)
    hits = 0
    for _ in range(400):
        low, high = q_profile(rng.normal(0.0, np.hypot(se, tau)), se, 0.9)
        hits += low <= tau**2 <= high
    assert abs(hits / 400 - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 400)


def test_leave_one_out_is_refitting(bcg):
    found = meta_analysis(bcg)
    frame = found.leave_one_out()
    assert frame["unit"].tolist() == list(range(1, 14))
    y, se = bcg.units.y, bcg.units.size
    for place in (0, 7, 12):
        others = np.arange(13) != place
        again = meta_analysis(studies(y[others], se[others]))
        row = frame.iloc[place]
        expected = [again.mean, again.se, *again.hartung_knapp, again.tau, again.i2]
        np.testing.assert_allclose(row[["mean", "se", "low", "high", "tau", "i2"]].astype(float), expected, rtol=1e-12)
    with pytest.raises(DataError, match="3 or more"):
        meta_analysis(studies([1.0, 2.0], 1.0)).leave_one_out()


def test_cumulative_meta_analysis_ends_at_the_whole(bcg):
    found = meta_analysis(bcg)
    years = [1948, 1949, 1960, 1977, 1973, 1953, 1973, 1980, 1968, 1961, 1974, 1969, 1976]
    frame = found.cumulative(by=years)
    assert list(frame.columns) == ["unit", "n", "by", "mean", "se", "low", "high", "tau", "i2"]
    assert frame["by"].tolist() == sorted(years)
    assert frame["n"].tolist() == list(range(1, 14))
    assert frame["unit"].tolist()[:4] == [1, 2, 6, 3]
    assert frame["mean"][0] == bcg.units.y[0]
    assert np.isnan(frame["tau"][0])
    last = frame.iloc[-1]
    assert last["mean"] == pytest.approx(found.mean, rel=1e-9)
    assert last["tau"] == pytest.approx(found.tau, rel=1e-9)
    np.testing.assert_allclose([last["low"], last["high"]], found.hartung_knapp, rtol=1e-9)
    assert found.cumulative()["unit"].tolist() == list(range(1, 14))
    with pytest.raises(DataError, match="by has 2 values for 13 studies"):
        found.cumulative(by=[1, 2])


def test_bayesian_and_frequentist_intervals_stand_side_by_side(bcg):
    table = meta_analysis(bcg).table
    assert table["quantity"].tolist() == ["mean"] * 3 + ["tau"] * 2 + ["new study"] * 2
    assert table["method"].tolist()[:3] == ["empirical Bayes, 90%", "REML, Wald", "REML, Hartung-Knapp"]
    assert table.loc[0, ["low", "high"]].tolist() == [0.18, 1.82]
    np.testing.assert_allclose(table.loc[5, ["low", "high"]].astype(float), stats.norm(1, 2).interval(0.95))
    ninety = meta_analysis(bcg, probability=0.9).table
    assert ninety.loc[0, ["method", "low", "high"]].tolist() == ["empirical Bayes", 0.18, 1.82]
    assert ninety.loc[3, ["estimate", "low", "high"]].tolist() == [1.9, 1.3, 2.6]


def test_bayesian_limits_are_those_of_the_posterior(bcg):
    """At 90% they are the summary's; at every probability those of the posterior integrated on a fine grid."""
    pooled = pool(bcg.units.y, se=bcg.units.size, priors={"mean": Normal(0.0, 2.0), "sd": HalfNormal(1.0)})
    summary = pooled.summary()
    for name, row in (("mean", 0), ("sd", 3)):
        limits = meta_module._posterior_limits(pooled.found, name, 0.9)
        np.testing.assert_allclose(limits, summary.loc[name, ["q05", "q95"]].astype(float), rtol=1e-8)
        assert pooled.meta_analysis(0.9).table.loc[row, ["low", "high"]].tolist() == pytest.approx(limits, rel=1e-8)
    mu, tau = np.linspace(-2.2, 0.8, 601), np.linspace(1e-4, 3.0, 1200)
    y, se = bcg.units.y, bcg.units.size
    log_density = -0.5 * tau[:, None] ** 2 - 0.5 * (mu / 2.0) ** 2
    for estimate, error in zip(y, se, strict=True):
        variance = error**2 + tau[:, None] ** 2
        log_density = log_density - 0.5 * (np.log(variance) + (estimate - mu) ** 2 / variance)
    density = np.exp(log_density - log_density.max())
    table = pooled.meta_analysis(0.95).table
    for marginal, at, row in ((density.sum(axis=0), mu, 0), (density.sum(axis=1), tau, 3)):
        cumulated = np.cumsum(marginal) - 0.5 * marginal
        limits = np.interp([0.025, 0.975], cumulated / marginal.sum(), at)
        assert table.loc[row, "method"] == "Bayes"
        np.testing.assert_allclose(table.loc[row, ["low", "high"]].astype(float), limits, atol=2e-4)


def test_two_studies_have_no_bounded_prediction():
    found = meta_analysis(studies([1.0, 3.0], [0.5, 0.5]))
    assert found.prediction_interval == (-np.inf, np.inf)
    assert found.tau2 == pytest.approx(2.0 - 0.25)
    assert "cannot be bounded" in repr(found)


def test_what_cannot_be_analysed():
    with pytest.raises(ModelError, match=r"pp\.effect_sizes"):
        meta_analysis(Pooled(read_units([1, 2], trials=5)))
    with pytest.raises(ModelError, match="without covariates"):
        meta_analysis(studies([1.0, 2, 4], 1.0, covariates={"x": [1.0, 2, 5]}))
    with pytest.raises(DataError, match="2 studies or more"):
        meta_analysis(studies([1.0], 1.0))
    with pytest.raises(ModelError, match="between 0 and 1"):
        meta_analysis(studies(*SCHOOLS), probability=95)


# ---- small-study effects ------------------------------------------------------------------------------------------


def test_selection_density_integrates_to_one():
    """exp(log likelihood) of one study, integrated over y numerically."""
    for mean, tau2, log_weight, se in [(0.2, 0.1, -1.5, 0.3), (-0.5, 0.0, 0.7, 0.2), (2.0, 1.0, -4.0, 1.0)]:

        def density(y, values=(mean, tau2, log_weight), se=se):
            return np.exp(selection_log_likelihood(*values, np.array([y]), np.array([se]))[0])

        cut = stats.norm.ppf(0.975) * se
        reach = 12 * np.hypot(se, np.sqrt(tau2))
        total = integrate.quad(density, mean - reach, cut, epsabs=1e-12)[0]
        total += integrate.quad(density, cut, max(cut, mean) + reach, epsabs=1e-12)[0]
        assert total == pytest.approx(1.0, abs=1e-9)


def test_gradient_of_the_selection_likelihood():
    y, se = simulated(4)
    at = np.array([0.25, 0.2, -0.8])
    gradient = selection_log_likelihood(*at, y, se)[1]
    for j in range(3):
        step = np.zeros(3)
        step[j] = 1e-5
        up, down = (selection_log_likelihood(*(at + side * step), y, se)[0] for side in (1, -1))
        assert gradient[j] == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-8)


def selected_studies(seed, n, weight, mean=0.2, tau=0.15):
    """Studies of which the significant are always published, the others with a probability."""
    rng = np.random.default_rng(seed)
    kept = []
    while len(kept) < n:
        se = rng.uniform(0.05, 0.4)
        y = rng.normal(mean, np.hypot(se, tau))
        if y / se > 1.96 or rng.random() < weight:
            kept.append((y, se))
    return np.array(kept).T


def test_selection_is_detected_and_allowed_for():
    y, se = selected_studies(1, 400, weight=0.1)
    found = small_study_effects(y, se)
    assert found.favoured == "positive"
    assert found.weight_p < 1e-4
    assert found.weight_q05 < 0.1 < found.weight_q95 < 0.3
    naive = reml(y, se**2).coefficients[0]
    assert naive > 0.25  # the truth is 0.2
    assert abs(found.adjusted_mean - 0.2) < 3 * found.adjusted_se
    assert found.adjusted_se < 0.04
    assert found.adjusted_tau == pytest.approx(0.15, abs=0.05)
    assert found.slope > 0
    assert found.p < 0.01
    assert "small studies find larger effects" in repr(found)


def test_the_mirrored_studies_have_the_mirrored_answer():
    y, se = selected_studies(2, 60, weight=0.2)
    one, other = small_study_effects(y, se), small_study_effects(-y, se)
    assert (one.favoured, other.favoured) == ("positive", "negative")
    assert other.weight == pytest.approx(one.weight, rel=1e-6)
    assert other.adjusted_mean == pytest.approx(-one.adjusted_mean, rel=1e-6)
    assert other.slope == pytest.approx(-one.slope, rel=1e-9)
    scaled = small_study_effects(1e3 * y, 1e3 * se)
    assert scaled.weight_p == pytest.approx(one.weight_p, rel=1e-5)
    assert scaled.adjusted_mean == pytest.approx(1e3 * one.adjusted_mean, rel=1e-5)


def test_without_selection_the_tests_keep_their_level():
    both = [small_study_effects(*selected_studies(100 + seed, 40, weight=1.0)) for seed in range(150)]
    for values in ([found.p for found in both], [found.weight_p for found in both]):
        rate = np.mean(np.array(values) < 0.1)
        assert rate < 0.1 + 4 * np.sqrt(0.1 * 0.9 / 150)
        assert rate > 0.02


def test_selection_fit_is_the_maximum():
    y, se = selected_studies(5, 50, weight=0.3)
    found = fit_selection(y, se, 0.05)

    def negative(x):
        return -selection_log_likelihood(x[0], abs(x[1]), x[2], y, se)[0]

    start = [found.mean, found.tau2 + 0.01, np.log(found.weight) + 0.2]
    search = optimize.minimize(
        negative, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 4000}
    )
    assert found.log_likelihood == pytest.approx(-search.fun, abs=1e-7)
    assert found.weight == pytest.approx(np.exp(search.x[2]), rel=1e-3)


def test_regression_on_the_standard_error(bcg):
    found = meta_analysis(bcg).small_study()
    y, se = bcg.units.y, bcg.units.size
    W = np.diag(1 / (se**2 + found.regression_tau**2))
    X = np.column_stack([np.ones(13), se])
    covariance = np.linalg.inv(X.T @ W @ X)
    coefficients = covariance @ X.T @ W @ y
    np.testing.assert_allclose([found.intercept, found.slope], coefficients, rtol=1e-9)
    assert found.t == pytest.approx(coefficients[1] / np.sqrt(covariance[1, 1]), rel=1e-9)
    assert found.p == pytest.approx(2 * stats.t(11).sf(abs(found.t)), rel=1e-9)
    assert found.favoured == "negative"
    assert found.n_significant == int((y / se < -stats.norm.ppf(0.975)).sum())


def test_how_little_a_few_studies_tell_is_said():
    found = meta_analysis(studies(*SCHOOLS)).small_study()
    assert np.isnan(found.weight)
    assert "no study is significant in the positive direction" in repr(found)
    assert "With 8 studies, under 10, neither test can tell" in repr(found)
    with pytest.raises(DataError, match="3 studies or more"):
        small_study_effects(np.ones(2), np.array([1.0, 2.0]))
    with pytest.raises(DataError, match="same standard error"):
        small_study_effects(np.arange(5.0), np.ones(5))
