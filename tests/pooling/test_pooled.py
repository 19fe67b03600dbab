"""The frozen answer: its table, its updates, what may be permuted, relabelled and repeated, and what users do wrong."""

import contextlib
import dataclasses

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import partialpool as pp
from partialpool.errors import DataError, ModelError, PartialPoolError

Y, SE = np.array([2.8, -0.7, 1.4, 0.2, 4.1, -1.9]), np.array([1.0, 0.4, 1.7, 0.8, 2.2, 0.9])
EVENTS, TRIALS = np.array([1, 3, 5, 0, 2, 7]), np.array([10, 10, 12, 5, 9, 20])
COUNTS, EXPOSURE = np.array([4, 0, 11, 2, 7, 3]), np.array([3.0, 1.5, 4.0, 2.5, 1.0, 2.0])
FAMILIES = {
    "normal": (Y, {"se": SE}),
    "binomial": (EVENTS, {"trials": TRIALS}),
    "poisson": (COUNTS, {"exposure": EXPOSURE}),
}
NUMBERS = ["raw", "mean", "sd", "q05", "q95", "weight", "shrinkage", "raw_q05", "raw_q95"]


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


def pooled_of(family, order=slice(None), **options):
    values, size = FAMILIES[family]
    return pp.pool(values[order], **{name: part[order] for name, part in size.items()}, **options)


def test_the_table_has_its_columns(family):
    table = pooled_of(family).table
    assert table.columns.tolist() == ["unit", *NUMBERS]
    assert table["unit"].tolist() == list(range(6))
    np.testing.assert_allclose(table["weight"] + table["shrinkage"], 1.0, rtol=1e-14)
    assert table["weight"].between(0, 1).all()
    assert (table["q05"] < table["mean"]).all()
    assert (table["mean"] < table["q95"]).all()
    assert (table["raw_q05"] <= table["raw"]).all()
    assert (table["raw"] <= table["raw_q95"]).all()


def test_the_answer_is_frozen_and_its_table_a_copy(family):
    pooled = pooled_of(family)
    for name in ("units", "method", "table", "seed"):
        with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
            setattr(pooled, name, None)
    table, summary = pooled.table, pooled.summary()
    table.loc[0, "mean"] = summary.iloc[0, 0] = 99.0
    assert pooled.table.loc[0, "mean"] < 99.0
    assert pooled.summary().iloc[0, 0] < 99.0
    mean, _ = pooled.posterior.moments()
    before = pooled.table["mean"].to_numpy().copy()
    with contextlib.suppress(ValueError):
        mean[:] = 99.0
    np.testing.assert_array_equal(pooled.posterior.quantiles(np.array([0.05, 0.95]))[0], pooled.table["q05"])
    np.testing.assert_array_equal(pooled.table["mean"], before)


def test_data_that_change_later_do_not_reach_the_answer():
    y = Y.copy()
    pooled = pp.pool(y, se=SE)
    y[:] = 0.0
    np.testing.assert_array_equal(pooled.units.y, Y)
    assert pooled.draws(10).std() > 0


@pytest.mark.parametrize("population", ["conjugate", "normal", "point_normal"])
def test_units_may_be_permuted(family, population):
    order = np.array([3, 0, 5, 1, 4, 2])
    straight = pooled_of(family, population=population)
    shuffled = pooled_of(family, order, population=population)
    for column in NUMBERS:
        np.testing.assert_allclose(
            shuffled.table[column], straight.table[column].to_numpy()[order], rtol=2e-6, atol=1e-8
        )
    assert shuffled.log_marginal_likelihood == pytest.approx(straight.log_marginal_likelihood, abs=1e-8)


def test_units_may_be_relabelled(family):
    plain, named = pooled_of(family), pooled_of(family, units=list("uvwxyz"))
    assert named.table["unit"].tolist() == list("uvwxyz")
    np.testing.assert_array_equal(plain.table[NUMBERS], named.table[NUMBERS])


def test_exposures_may_change_their_unit():
    base = pp.pool(COUNTS, exposure=EXPOSURE, priors={"mean": pp.Gamma(2, rate=1)}).table
    scaled = pp.pool(COUNTS, exposure=1000 * EXPOSURE, priors={"mean": pp.Gamma(2, rate=1000)}).table
    for column in ("mean", "sd", "q05", "q95"):
        np.testing.assert_allclose(1000 * scaled[column], base[column], rtol=1e-6)


@pytest.mark.parametrize("population", ["conjugate", "normal", "student_t", "scale_mixture", "npmle"])
def test_threads_do_not_change_a_bit(family, population):
    one, two = (pooled_of(family, population=population, threads=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    np.testing.assert_array_equal(one.draws(50), two.draws(50))


def test_threads_do_not_change_a_bit_of_many_units():
    rng = np.random.default_rng(0)
    trials = rng.integers(1, 200, 70_000)
    events = rng.binomial(trials, rng.beta(3, 9, trials.size))
    one, two = (pp.pool(events, trials=trials, threads=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)


def test_seeds_repeat_to_the_bit(family):
    first, again, other = (pooled_of(family, seed=seed).draws(200) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_draws_have_the_moments_of_the_table(family):
    pooled = pooled_of(family)
    draws = pooled.draws(40_000)
    table = pooled.table
    error = table["sd"] / np.sqrt(40_000)
    assert (np.abs(draws.mean(axis=0) - table["mean"]) < 4.5 * error).all()
    # the standard error of an sd is sd sqrt((kurtosis - 1) / 4n); kurtoses here are below 20
    np.testing.assert_allclose(draws.std(axis=0), table["sd"], rtol=4.5 * np.sqrt(19 / 4 / 40_000))
    assert np.abs((draws < table["q05"].to_numpy()).mean(axis=0) - 0.05).max() < 4.5 * np.sqrt(0.05 * 0.95 / 40_000)


def test_draws_of_some_units():
    pooled = pp.pool(Y, se=SE, units=list("abcdef"))
    some = pooled.draws(300, units=["c", "a"])
    assert some.shape == (300, 2)
    table = pooled.table.set_index("unit").loc[["c", "a"]]
    assert (np.abs(some.mean(axis=0) - table["mean"]) < 5 * table["sd"] / np.sqrt(300)).all()


# ---- updates -------------------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)),
        min_size=2,
        max_size=5,
    )
)
def test_an_update_of_events_is_everything_at_once(rows):
    a, b, c, d = np.array(rows).T
    a, b = np.append(a, 3), np.append(b, 2)
    c, d = np.append(c, 1), np.append(d, 2)
    priors = {"mean": pp.Beta(2, 3), "sd": pp.HalfNormal(0.2)}
    updated = pp.pool(a, trials=a + b, priors=priors).update(c, trials=c + d)
    whole = pp.pool(a + c, trials=a + b + c + d, priors=priors)
    pd.testing.assert_frame_equal(updated.table, whole.table, check_exact=True)


@pytest.mark.parametrize("method", ["bayes", "empirical_bayes"])
def test_an_update_keeps_the_likelihood_of_all_the_data(family, method):
    values, size = FAMILIES[family]
    name, own = next(iter(size.items()))
    priors = {
        "normal": {"mean": pp.Normal(0, 3), "sd": pp.HalfCauchy(1)},
        "binomial": {"mean": pp.Beta(2, 3), "sd": pp.HalfNormal(0.2)},
        "poisson": {"mean": pp.Gamma(2, rate=1), "sd": pp.HalfNormal(2)},
    }[family]
    first = pp.pool(values, **{name: own}, priors=priors, method=method)
    second_values, second_size = values[::-1].copy(), own[::-1].copy()
    updated = first.update(second_values, **{name: second_size})
    # the sum of both data of a unit, and the constant that its two likelihoods exceed the sum's by
    if family == "normal":
        precision = own**-2.0 + second_size**-2.0
        together, total = (values / own**2 + second_values / second_size**2) / precision, precision**-0.5
        constant = stats.norm(0, np.hypot(own, second_size)).logpdf(values - second_values).sum()
    elif family == "binomial":
        together, total = values + second_values, own + second_size
        # given their sum the events of two parts are hypergeometric, whatever the probability
        constant = stats.hypergeom(total, together, own).logpmf(values).sum()
    else:
        together, total = values + second_values, own + second_size
        constant = stats.binom(together, own / total).logpmf(values).sum()
    whole = pp.pool(together, **{name: total}, priors=priors, method=method)
    for column in ("mean", "sd", "q05", "q95"):
        np.testing.assert_allclose(updated.table[column], whole.table[column], rtol=1e-12)
    assert updated.log_marginal_likelihood == pytest.approx(whole.log_marginal_likelihood + constant, abs=1e-8)


def test_sequential_updates_of_a_known_population():
    pooled = pp.pool([0], trials=[1], population=pp.Beta(2, 8))
    for event in (1, 1, 0, 1):
        pooled = pooled.update([event], trials=[1])
    assert pooled.table.loc[0, "mean"] == pytest.approx((2 + 3) / (10 + 5), rel=1e-14)
    # the log likelihood of a sequence of single trials has no binomial coefficient
    from scipy.special import betaln

    assert pooled.log_marginal_likelihood == pytest.approx(betaln(5, 10) - betaln(2, 8), rel=1e-10)


def test_an_update_with_new_units_and_known_ones():
    first = pp.pool([3, 4], trials=[10, 12], units=["a", "b"])
    updated = first.update([5, 1], trials=[9, 3], units=["c", "a"])
    assert updated.table["unit"].tolist() == ["a", "b", "c"]
    whole = pp.pool([4, 4, 5], trials=[13, 12, 9], units=["a", "b", "c"])
    pd.testing.assert_frame_equal(updated.table, whole.table, check_exact=True)
    assert first.table["unit"].tolist() == ["a", "b"]


def test_priors_stay_what_they_were():
    first = pp.pool(Y, se=SE, units=list("abcdef"))
    updated = first.update([400.0], se=[1.0], units=["g"])
    assert repr(updated.priors) == repr(first.priors)


def test_an_update_with_covariates_of_one_new_unit():
    x = ["n", "s", "n", "s", "s", "n"]
    first = pp.pool(Y, se=SE, units=list("abcdef"), covariates={"region": x})
    updated = first.update([2.0], se=[1.0], units=["g"], covariates={"region": ["s"]})
    whole = pp.pool(
        [*Y, 2.0], se=[*SE, 1.0], units=list("abcdefg"), covariates={"region": [*x, "s"]}, priors=first.priors.table
    )
    np.testing.assert_allclose(updated.table[NUMBERS].to_numpy(), whole.table[NUMBERS].to_numpy(), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.update([1.0], se=[1.0]), "which units"),
        (lambda p: p.update([1] * 6, trials=[2] * 6), "normal"),
        (lambda p: p.update([1.0], se=[0.0], units=["a"]), "standard error"),
        (lambda p: p.draws(10, units=["zz"]), "no unit 'zz'"),
        (lambda p: p.population["tau2"], "tau2"),
        (lambda p: p.population.prediction_interval(1.5), "1.5"),
        (lambda p: p.population.marginal(-1.0), "-1"),
        (lambda p: p.to_arviz(0), "n_draws"),
    ],
)
def test_questions_that_make_no_sense(call, words):
    pooled = pp.pool(Y, se=SE, units=list("abcdef"))
    with pytest.raises(PartialPoolError, match=words):
        call(pooled)


# ---- what users do wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: pp.pool([3, 11], trials=[10, 10], units=["a", "b"]),
            DataError,
            ["more events than trials", "'b'", "11"],
        ),
        (lambda: pp.pool([1.0, 2.0], se=[1.0, 0.0]), DataError, ["standard error", "1", "not positive"]),
        (lambda: pp.pool([1.0, 2.0], se=[1.0, None]), DataError, ["missing"]),
        (lambda: pp.pool([1.0, 2.0]), ModelError, ["se", "trials", "exposure"]),
        (lambda: pp.pool([1, 2], trials=[3, 4], exposure=[1, 2]), ModelError, ["trials and exposure"]),
        (lambda: pp.pool([-1, 2], exposure=[3, 4]), DataError, ["negative"]),
        (lambda: pp.pool([1, 2], exposure=[3, 0]), DataError, ["not positive", "exposure"]),
        (lambda: pp.pool([1.5, 2], trials=[3, 4]), DataError, ["whole number", "1.5"]),
        (lambda: pp.pool([1, 2], trials=[3, 4], units=["a", "a"]), DataError, ["'a'", "groupby", "sum()"]),
        (lambda: pp.pool([1.0, 2], se=[3, 4], units=["a", "a"]), DataError, ["'a'", "precision"]),
        (lambda: pp.pool([1, 2, 3], trials=[3, 4]), DataError, ["3 values", "2"]),
        (lambda: pp.pool([], se=[]), DataError, ["empty"]),
        (lambda: pp.pool([1.0, np.inf], se=1.0), DataError, ["infinite"]),
        (lambda: pp.pool("y", se="s", data={"y": [1.0, 2], "se": [1, 1]}), DataError, ["'s'", "'se'"]),
        (lambda: pp.pool("y", se="s"), ModelError, ["data"]),
        (lambda: pp.pool(Y, se=SE, population="npml"), ModelError, ["npml", "npmle"]),
        (lambda: pp.pool(Y, se=SE, population="beta"), ModelError, ["beta"]),
        (lambda: pp.pool(Y, se=SE, population=pp.Beta(1, 2)), ModelError, ["Beta(1, 2)", "pp.Normal"]),
        (lambda: pp.pool(EVENTS, trials=TRIALS, population=pp.Normal(0, 1)), ModelError, ["pp.Beta"]),
        (lambda: pp.pool(Y, se=SE, method="fixed"), ModelError, ["population=pp.Normal"]),
        (lambda: pp.pool(Y, se=SE, method="empirical"), ModelError, ["empirical_bayes"]),
        (lambda: pp.pool(Y, se=SE, population=pp.Normal(0, 1), method="bayes"), ModelError, ["known"]),
        (lambda: pp.pool(Y, se=SE, population="npmle", method="bayes"), ModelError, ["empirical_bayes"]),
        (
            lambda: pp.pool(Y, se=SE, population=pp.Normal(0, 1), priors={"sd": pp.HalfNormal(1)}),
            ModelError,
            ["priors="],
        ),
        (lambda: pp.pool(Y, se=SE, population="npmle", priors={"sd": pp.HalfNormal(1)}), ModelError, ["no priors"]),
        (lambda: pp.pool(Y, se=SE, seed=-1), ModelError, ["seed"]),
        (lambda: pp.pool(Y, se=SE, threads=0), ModelError, ["threads"]),
        (lambda: pp.pool(Y, se=SE, population="npmle", covariates={"x": Y}), ModelError, ["covariates"]),
    ],
)
def test_mistakes_are_told_in_words(call, error, words):
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_a_unit_without_trials_takes_the_population():
    pooled = pp.pool([*EVENTS, 0], trials=[*TRIALS, 0])
    row = pooled.table.iloc[-1]
    assert np.isnan(row["raw"])
    assert row["weight"] == pytest.approx(0.0, abs=1e-12)
    assert row["mean"] == pytest.approx(pooled.population.mean, rel=1e-6)
    others = pp.pool(EVENTS, trials=TRIALS)
    assert pooled.log_marginal_likelihood == pytest.approx(others.log_marginal_likelihood, abs=1e-8)


def test_polars_and_pandas_and_arrays_agree():
    table = {"g": list("abcdef"), "y": EVENTS, "n": TRIALS}
    frames = [pd.DataFrame(table), pl.DataFrame(table), table]
    tables = [pp.pool("y", trials="n", units="g", data=frame).table for frame in frames]
    for other in tables[1:]:
        np.testing.assert_array_equal(tables[0][NUMBERS], other[NUMBERS])
        assert other["unit"].tolist() == list("abcdef")


# ---- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("population", ["conjugate", "normal"])
def test_few_units(family, n, population):
    pooled = pooled_of(family, slice(0, n), population=population)
    table = pooled.table
    assert np.isfinite(table[NUMBERS].to_numpy()).all()
    assert pooled.accuracy.trusted


def test_one_unit_of_a_known_population():
    assert pp.pool([3], exposure=[2.0], population=pp.Gamma(7, rate=6)).table.loc[0, "mean"] == pytest.approx(10 / 8)
    assert pp.pool(1.0, se=2.0, population=pp.Normal(0, 1)).table.loc[0, "mean"] == pytest.approx(0.2)


@pytest.mark.parametrize("method", ["bayes", "empirical_bayes"])
def test_identical_units(method):
    for pooled in (
        pp.pool([1.0] * 5, se=0.5, method=method), pp.pool([3] * 5, trials=10, method=method),
        pp.pool([3] * 5, exposure=2.0, method=method),
    ):  # fmt: skip
        table = pooled.table
        assert np.isfinite(table[NUMBERS].to_numpy()).all()
        assert np.ptp(table["mean"]) < 1e-12
        assert table.loc[0, "mean"] == pytest.approx(table.loc[0, "raw"], rel=0.15)
        if method == "empirical_bayes":
            assert pooled.population.tau == 0.0
            assert table.loc[0, "mean"] == pytest.approx(table.loc[0, "raw"], rel=1e-6)


@pytest.mark.parametrize("population", ["conjugate", "normal"])
def test_nothing_ever_happened(population):
    trials = pp.pool([0, 0, 0], trials=[30, 40, 50], population=population)
    counts = pp.pool([0, 0, 0], exposure=[30.0, 40.0, 50.0], population=population)
    for pooled in (trials, counts):
        table = pooled.table
        assert np.isfinite(table[NUMBERS].to_numpy()).all()
        assert (table["raw"] == 0).all()
        assert (table["mean"] > 0).all()
        # the rule of three: a rate above 3 / 120 would have shown itself
        assert (table["mean"] < 3 / 120).all()
        assert (table["mean"].diff().dropna() < 0).all()  # more trials without an event, a lower rate


def test_very_large_counts_and_very_small_errors():
    n = 10**9
    events = np.array([300_000_000, 310_000_000, 290_000_001])
    law = stats.beta(events + 1.0, n - events + 1.0)
    for pooled in (pp.pool(events, trials=n), pp.pool(events, trials=n, population="normal")):
        np.testing.assert_allclose(pooled.table["mean"], events / n, rtol=1e-6)
        np.testing.assert_allclose(pooled.table["sd"], law.std(), rtol=1e-3)
        assert pooled.accuracy.trusted
    # three rates that are as good as known: the population is that of 1,000 times fewer trials
    many, fewer = pp.pool(events, trials=n).summary(), pp.pool(events // 1000, trials=n // 1000).summary()
    np.testing.assert_allclose(many.loc["sd", ["q05", "q50", "q95"]], fewer.loc["sd", ["q05", "q50", "q95"]], rtol=5e-3)
    for pooled in (pp.pool(events, exposure=1e9), pp.pool(events, exposure=1e9, population="normal")):
        np.testing.assert_allclose(pooled.table["mean"], events / n, rtol=1e-6)
        np.testing.assert_allclose(pooled.table["sd"], np.sqrt(events) / n, rtol=1e-3)
    pooled = pp.pool([1.0, 2.0, 3.0], se=1e-9)
    np.testing.assert_allclose(pooled.table["mean"], [1, 2, 3], rtol=1e-12)
    np.testing.assert_allclose(pooled.table["sd"], 1e-9, rtol=1e-6)


def test_standard_errors_of_very_different_size():
    pooled = pp.pool([1.0, 2.0, 3.0, 2.5], se=[1e-6, 1.0, 1e6, 0.3])
    table = pooled.table
    assert table.loc[0, "mean"] == pytest.approx(1.0, abs=1e-5)
    assert table.loc[2, "weight"] < 1e-9
    assert table.loc[2, "mean"] == pytest.approx(pooled.population.mean, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.01, 10), st.floats(-3, 3), st.floats(0.01, 10))
def test_intervals_of_a_known_population_hold_their_probability(estimates, se, mean, sd):
    pooled = pp.pool(estimates, se=se, population=pp.Normal(mean, sd))
    low, high = pooled.table["q05"].to_numpy(), pooled.table["q95"].to_numpy()
    np.testing.assert_allclose(pooled.posterior.cdf(low), 0.05, atol=1e-7)
    np.testing.assert_allclose(pooled.posterior.cdf(high), 0.95, atol=1e-7)
    keep = se**2 / (se**2 + sd**2)
    law = stats.norm(keep * mean + (1 - keep) * np.array(estimates), np.sqrt(keep) * sd)
    np.testing.assert_allclose(low, law.ppf(0.05), atol=1e-6 * law.std()[0])
    np.testing.assert_allclose(high, law.ppf(0.95), atol=1e-6 * law.std()[0])


def test_it_prints(family):
    pooled = pooled_of(family, units=list("abcdef"))
    text = repr(pooled)
    assert "6" in text
    assert "mean" in text
    assert "<table" in pooled._repr_html_()
    assert "probability 90%" in repr(pooled.population)
