"""`fit.check`: replicates, verdict, planted misfits, groups, a user's own functions, bad input, pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.criticism.check import check
from partialpool.criticism.outlying_groups import left_out_p
from partialpool.criticism.replicates import Replicates, replicates_used
from partialpool.errors import ModelError


def simulated(seed=1, rows=300, groups=20, tau=0.5):
    rng = np.random.default_rng(seed)
    g = np.sort(rng.integers(0, groups, rows))
    x = rng.normal(size=rows)
    u = tau * rng.normal(size=groups)
    eta = 0.5 + u[g] + 0.4 * x
    return pd.DataFrame(
        {
            "g": [f"g{k:02d}" for k in g], "area": [f"a{k // 4}" for k in g], "x": x, "y": eta + rng.normal(size=rows),
            "count": rng.poisson(np.exp(eta)), "n": 6, "events": rng.binomial(6, 1 / (1 + np.exp(-eta))),
        }
    )  # fmt: skip


def fitted(formula, data, family="gaussian", **options):
    return pp.fit(formula, data, family=family, seed=1, threads=1, draws=1000, progress=False, **options)


@pytest.fixture(scope="module")
def sleep():
    return fitted("Reaction ~ Days + (1 | Subject)", pp.datasets.load("sleepstudy"))


@pytest.fixture(scope="module")
def counts():
    return fitted("count ~ x + (1 | g)", simulated(), "poisson")


# -- replicates -------------------------------------------------------------------------------------------------------


def together(replicates):
    return np.concatenate([block.y for block in replicates.blocks()], axis=1)


def test_replicates_have_the_moments_of_predicted_responses(sleep):
    """Against `fit.predict`, which draws in another order and with other numbers."""
    y = together(Replicates(sleep, replicates_used(sleep, 1000)))
    predicted = sleep.predict(kind="response")
    error = predicted.sd / np.sqrt(1000)
    assert np.abs((y.mean(axis=1) - predicted.mean) / error).max() < 4.5
    assert np.abs(y.std(axis=1) / predicted.sd - 1).max() < 0.12


def test_new_groups_come_from_the_population(sleep):
    made = Replicates.of(sleep, replicates_used(sleep, 1000), 0, False, 3)
    y = together(made)
    codes = sleep.model.design.factors[0].codes
    tau, sigma = sleep.draws("sd(Intercept|Subject)"), sleep.draws("sigma")
    spread = (tau**2 + sigma**2).mean()
    mean = sleep.predict(effects="none").mean
    centred = y - mean[:, None]
    assert (centred**2).mean() == pytest.approx(spread, rel=0.1)
    first, second = np.flatnonzero(codes == 0)[:2]
    assert np.mean(centred[first] * centred[second]) == pytest.approx((tau**2).mean(), rel=0.2)
    other = np.flatnonzero(codes == 1)[0]
    assert abs(np.mean(centred[first] * centred[other])) < 0.2 * (tau**2).mean()


def test_what_nests_in_a_new_group_is_new_too():
    fit = fitted("y ~ x + (1 | area/g)", simulated())
    names = [factor.name for factor in fit.model.design.factors]
    inner, outer = names.index("area:g"), names.index("area")
    draws = replicates_used(fit, 100)
    assert Replicates.of(fit, draws, outer, False, 0).renewed == {inner, outer}
    assert Replicates.of(fit, draws, inner, False, 0).renewed == {inner}
    assert check(fit, "sd of group means", "area:g", groups="new", draws=100).table.shape[0] == 1


def test_the_same_seed_gives_the_same_table_and_another_another(sleep):
    first, again, other = (check(sleep, draws=200, seed=seed).table for seed in (4, 4, 5))
    assert first.equals(again)
    assert not first.equals(other)


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_missing_slope_is_found_and_its_term_proposed(sleep):
    found = check(sleep)
    assert "slopes of Days by Subject" in found.against
    assert any("(1 + Days | Subject) for (1 | Subject)" in text for text in found.sentences)
    mended = check(fitted("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy")))
    assert not any(name.startswith("slopes") for name in mended.table["check"])
    assert any('family="student_t"' in text for text in mended.sentences)


def test_zeros_are_found_and_counts_without_them_pass(counts):
    assert check(counts).against == []
    data = simulated()
    data["count"] = np.where(np.random.default_rng(2).random(len(data)) < 0.25, 0, data["count"])
    found = check(fitted("count ~ x + (1 | g)", data, "poisson"))
    assert "zeros" in found.against
    assert any("negative_binomial" in text for text in found.sentences)


def test_an_outlying_group_is_named():
    data = simulated(tau=0.4)
    data.loc[data["g"] == "g07", "y"] += 4
    found = check(fitted("y ~ x + (1 | g)", data))
    assert "largest effect of g" in found.against
    assert any("g g07" in text for text in found.sentences)
    groups = found.by_group
    effects = groups[groups["check"] == "effect: Intercept"]
    assert effects.loc[effects["p"].idxmin(), "group"] == "g07"


def test_an_outlying_group_of_few_counts_is_found_and_others_are_not():
    """Four counts of mean 1.5 a group: their likelihood is far from normal."""
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(25), 4)
    u = 0.4 * rng.normal(size=25)
    data = pd.DataFrame({"g": g, "count": rng.poisson(np.exp(0.4 + u[g]))})
    assert check(fitted("count ~ 1 + (1 | g)", data, "poisson"), "largest effect").table["p"][0] > 0.05
    u[3] = 2.6
    data["count"] = np.where(g == 3, rng.poisson(np.exp(0.4 + u[g])), data["count"])
    found = check(fitted("count ~ 1 + (1 | g)", data, "poisson"), "largest effect")
    assert found.table["p"][0] < 0.05
    assert found.effects[0].largest == 3


@pytest.mark.parametrize("seed", [9, 11])
def test_left_out_probabilities_of_single_counts_are_those_of_a_fit_without_them(seed):
    """Mixed predictive mid-p of the largest count; a normal likelihood would give a third of it."""
    from scipy.stats import poisson

    rng = np.random.default_rng(seed)
    rng.normal(size=40)
    data = pd.DataFrame({"count": rng.poisson(np.exp(0.3 + 0.5 * rng.normal(size=40))), "g": np.arange(40)})
    top = int(data["count"].idxmax())
    effect = check(fitted("count ~ 1 + (1 | g)", data, "poisson"), "largest effect").effects[0]
    rest = fitted("count ~ 1 + (1 | g)", data.drop(index=top), "poisson")
    z = np.random.default_rng(1).normal(size=(1000, 50))
    mean = np.exp(rest.draws("Intercept")[:, None] + rest.draws("sd(Intercept|g)")[:, None] * z)
    own = data["count"][top]
    exact = 2 * (poisson.sf(own, mean) + 0.5 * poisson.pmf(own, mean)).mean()
    assert effect.p[top] == pytest.approx(exact, rel=0.5)


def test_reliability_does_not_fire_where_only_a_rows_own_response_tells_it_from_its_group():
    """Of rows predicted alike those with an event have the lower left-out prediction: sorted by it, all would fail."""
    small = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        g = np.repeat(np.arange(15), 8)
        event = rng.random(120) < 1 / (1 + np.exp(-0.3 - 0.7 * rng.normal(size=15)[g]))
        data = pd.DataFrame({"g": g, "event": event.astype(int)})
        found = check(fitted("event ~ 1 + (1 | g)", data, "bernoulli"), "reliability")
        small.append(found.table["p"][0] <= 0.05)
    assert sum(small) <= 1


def test_reliability_needs_predictions_that_differ():
    data = pd.DataFrame({"hits": [18, 17, 16, 15, 14, 11, 10, 9, 8, 7], "n": 45, "player": range(10)})
    fit = fitted("hits | trials(n) ~ 1 + (1 | player)", data, "binomial")
    found = check(fit, draws=200)
    assert "reliability" not in set(found.table["check"]) | set(found.kinds)
    with pytest.raises(ModelError, match="every row is predicted alike"):
        check(fit, "reliability")


def test_overdispersed_events_are_found():
    data = simulated()
    rng = np.random.default_rng(5)
    data["events"] = rng.binomial(6, rng.beta(0.8, 0.8, len(data)))
    found = check(fitted("events | trials(n) ~ x + (1 | g)", data, "binomial"))
    assert "dispersion" in found.against
    assert any("beta_binomial" in text for text in found.sentences)


def test_standard_errors_that_are_too_small_are_found():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"y": rng.normal(size=60) * 2, "s": 1.0, "g": np.arange(60) % 12})
    found = check(fitted("y | se(s) ~ 1 + (1 | g)", data))
    assert "dispersion" in found.against
    assert any("sigma=True" in text for text in found.sentences)


def test_a_prior_that_holds_groups_together_conflicts_with_new_groups():
    data = simulated(tau=2.0)
    fit = fitted("y ~ x + (1 | g)", data, priors={"sd(g)": pp.HalfNormal(0.05)})
    found = check(fit, groups="new")
    assert "sd of group means by g" in found.against
    assert check(fitted("y ~ x + (1 | g)", data), groups="new").against == []


def test_left_out_probabilities_of_a_group_are_those_of_a_fit_without_it():
    data = simulated(tau=0.6, rows=400)
    data.loc[data["g"] == "g03", "y"] += 1.5
    fit = fitted("y ~ 1 + (1 | g)", data)
    effect = check(fit, "largest effect").effects[0]
    for label in ("g03", "g10"):
        own = data["g"] == label
        rest = fitted("y ~ 1 + (1 | g)", data[~own])
        spread = np.sqrt(rest.draws("sd(Intercept|g)") ** 2 + rest.draws("sigma") ** 2 / own.sum())
        z = (data.loc[own, "y"].mean() - rest.draws("Intercept")) / spread
        from scipy.stats import norm

        lower = norm.cdf(z).mean()
        place = list(fit.model.design.factors[0].labels).index(label)
        assert effect.p[place] == pytest.approx(2 * min(lower, 1 - lower), rel=0.15)


def test_weights_of_nodes_leave_the_group_out():
    """Two nodes: the one at which the group is improbable counts for more once its evidence is gone."""
    p = left_out_p(np.array([4.0]), np.array([0.0]), np.array([1.0, 16.0] * 500), np.log(np.full(1000, 1e-3))).p
    density = np.exp(-0.5 * 16 / np.array([1.0, 16.0])) / np.array([1.0, 4.0])
    weights = (1 / density) / (1 / density).sum()
    from scipy.stats import norm

    assert p[0] == pytest.approx(weights @ (2 * norm.sf(4 / np.array([1.0, 4.0]))), rel=1e-9)


# -- families, data ---------------------------------------------------------------------------------------------------


def test_models_without_groups_and_with_one_row_a_group():
    data = simulated()
    found = check(fitted("y ~ x", data), draws=200)
    assert "largest effect" not in " ".join(found.table["check"])
    with pytest.raises(ModelError, match="this model has none"):
        found.by_group  # noqa: B018
    schools = pd.DataFrame(
        {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "s": [15.0, 10, 16, 11, 9, 11, 10, 18], "g": range(8)}
    )
    table = check(fitted("y | se(s) ~ 1 + (1 | g)", schools), draws=300).table
    assert table["p"].between(0.02, 1).all()
    assert "within-group correlation by g" not in set(table["check"])


def test_weights_offsets_missing_rows_and_polars():
    polars = pytest.importorskip("polars")
    data = simulated(rows=120)
    data["w"] = 1.0 + np.arange(len(data)) % 2
    data["e"] = 1.0 + np.arange(len(data)) % 3
    data.loc[3, "g"] = None
    data.loc[5, "x"] = np.nan
    fit = fitted("count | weights(w) ~ x + offset(log(e)) + (1 | g)", polars.from_pandas(data), "poisson")
    found = check(fit, draws=200)
    assert found.rows.at.shape == (118,)
    assert np.isfinite(found.table["p"]).all()
    assert any("whatever its weight" in text for text in found.sentences)


def test_a_saved_fit_needs_its_rows(sleep, tmp_path):
    sleep.save(tmp_path / "a.pp", data=False)
    with pytest.raises(ModelError, match=r"check\(\) needs the rows"):
        check(pp.load(tmp_path / "a.pp"))
    sleep.save(tmp_path / "b.pp")
    assert check(pp.load(tmp_path / "b.pp"), draws=200).table.equals(check(sleep, draws=200).table)


def test_a_formula_of_sigma():
    fit = fitted(pp.formula("y ~ x + (1 | g)", sigma="~ x"), simulated(rows=150))
    found = check(fit, draws=200)
    assert np.isfinite(found.table["p"]).all()
    assert "sigma=" not in " ".join(found.sentences)


def test_draws_of_chains():
    data = pp.datasets.load("Dyestuff")
    chains = pp.fit("Yield ~ 1 + (1 | Batch)", data, method="nuts", seed=1, threads=1, draws=200, progress=False)
    assert check(chains, draws=200).against == []


# -- a user's own statistics ------------------------------------------------------------------------------------------


def test_functions_of_the_response_and_of_the_rows(sleep):
    def slope(y, data):
        return np.polyfit(data["Days"], y, 1)[0]

    found = check(sleep, [slope, "max", np.median], draws=200)
    assert found.table["check"].tolist() == ["maximum", "slope", "median"]
    row = found.table.set_index("check").loc["slope"]
    assert row["observed"] == pytest.approx(10.467, abs=1e-3)
    assert row["mean"] == pytest.approx(10.4, abs=0.5)
    named = check(sleep, {"range": lambda y: y.max() - y.min()}, draws=100)
    assert named.table["check"].tolist() == ["range"]
    assert len(named.by_group) == 18
    assert named.by_group["observed"].iloc[0] == pytest.approx(216.7935)


def test_a_function_cannot_change_the_rows_of_a_fit():
    fit = fitted("y ~ x + (1 | g)", simulated(rows=60))
    before = fit.model.design.data.copy()

    def rough(y, data):
        data["x"] = 0.0
        y.sort()
        return y[0]

    check(fit, rough, draws=50)
    assert fit.model.design.data.equals(before)


def test_a_statistic_named_twice_stands_once(sleep):
    assert check(sleep, ["max", "maximum", "mean"], draws=50).table["check"].tolist() == ["maximum", "mean"]


def test_a_function_that_fails_says_where(sleep):
    calls = []

    def late(y):
        calls.append(0)
        if len(calls) == 18:
            raise ValueError("too odd")
        return y.mean()

    with pytest.raises(ModelError, match=r"'late' failed on replicate 17 of 200: ValueError: too odd"):
        check(sleep, late, draws=200)
    with pytest.raises(ModelError, match="failed on the observed responses: ZeroDivisionError"):
        check(sleep, lambda y: 1 / 0)
    with pytest.raises(ModelError, match=r"array of shape \(180,\)"):
        check(sleep, lambda y: y)
    with pytest.raises(ModelError, match="gives None"):
        check(sleep, lambda y: None)
    with pytest.raises(ModelError, match="is nan for the observed"):
        check(sleep, lambda y: float("nan"))
    with pytest.raises(ModelError, match="not a finite number for"):
        check(sleep, {"a": lambda y: 1.0 if abs(y.mean() - 298.507892) < 1e-5 else float("nan")}, draws=100)


def test_replicates_without_a_value_are_told(sleep):
    calls = []

    def some(y):
        calls.append(0)
        return float("nan") if len(calls) in (10, 20) else y.mean()

    assert "some is not a finite number for 2 of the replicates; they are left out." in check(sleep, some).sentences


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "maxium"}, "Did you mean 'maximum'"),
        ({"statistic": 3}, "give a name"),
        ({"statistic": []}, "names nothing"),
        ({"statistic": {"a": 3}}, "give a function"),
        ({"statistic": "reliability"}, "for bernoulli and binomial"),
        ({"statistic": "tails", "groups": "new"}, "leave groups='new' out"),
        ({"factor": "Subj"}, "Did you mean 'Subject'"),
        ({"groups": "old"}, "'same', 'new'"),
        ({"draws": 3}, "at least 50"),
        ({"draws": 10_000}, "1,000 draws"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input(sleep, options, message):
    with pytest.raises(ModelError, match=message):
        check(sleep, **options)


# -- how it looks -----------------------------------------------------------------------------------------------------


def test_pictures_and_their_data(counts):
    found = check(counts, draws=300)
    assert found.kinds == ("statistics", "density", "pit", "residuals", "rootogram", "effects")
    for kind in found.kinds:
        assert found.plot(kind).axes
        assert len(found.data(kind)) > 5
    hanging = found.data("rootogram")
    assert hanging["observed"].sum() == 300
    assert hanging["mean"].sum() == pytest.approx(300)
    with pytest.raises(ModelError, match="There is no picture 'reliability'"):
        found.plot("reliability")
    assert check(counts, "max", draws=100).plot().axes


def test_skewness_is_told_before_the_tails_that_it_makes():
    data = simulated()
    data["y"] = np.exp(data["y"])
    said = [text for text in check(fitted("y ~ x + (1 | g)", data)).sentences if text.startswith("Not reproduced")]
    assert 'family="lognormal" or "gamma"' in said[0]
    tails = next(text for text in said if "tails of residuals" in text)
    assert "student_t" not in tails


def test_the_formula_of_sigma_that_is_proposed_runs():
    data = simulated()
    data["y"] += 2 * np.random.default_rng(3).normal(size=len(data)) * np.abs(data["x"])
    said = check(fitted("y ~ x + (1 | g)", data)).sentences
    text = next(text for text in said if "pp.formula(" in text)
    assert any("Heavy tails alone may make" in other for other in said[said.index(text) :])
    proposed = text[text.index("pp.formula(") : text.rindex(")") + 1]
    assert proposed == """pp.formula('y ~ x + (1 | g)', sigma="~ x + (1 | g)")"""
    assert pp.Model.from_formula(eval(proposed), data).design.x_names


def test_small_p_values_are_shown_as_such(sleep):
    shown = check(sleep).shown
    assert shown.loc["tails of residuals", "p"] == "<0.001"
    assert shown.loc["mean", "p"].startswith("0.")


def test_it_prints(counts):
    found = check(counts, draws=300)
    assert repr(found).startswith("Predictive check of count ~ x + (1 | g): 300 rows, 300 replicates")
    assert "Verdict: nothing in these 10 checks speaks against the model." in repr(found)
    assert "<table>" in found._repr_html_()
    new = check(counts, groups="new", factor="g", draws=100)
    assert "for new groups" in repr(new)
    assert "whose effects come from the population" in repr(new)
