"""Mundlak's check: against the model written by hand, and what it leaves alone."""

import re

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.errors import ModelError
from partialpool.levels.context import check_context
from partialpool.levels.context_columns import Candidate, proposed_formula
from partialpool.spec.formula import parse_formula


def made(seed=0, groups=40, rows=8, contextual=1.0):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    x = rng.standard_normal(groups)[g] + rng.standard_normal(g.size)
    mean = (np.bincount(g, x) / rows)[g]
    kind = np.where(rng.random(g.size) < 0.5, "new", "old")
    y = 0.5 * x + contextual * mean + (kind == "old") + 0.4 * rng.standard_normal(groups)[g]
    z = rng.standard_normal(groups)[g]
    return pd.DataFrame({"y": y + rng.standard_normal(g.size), "x": x, "kind": kind, "z": z, "g": g, "h": g // 4})


@pytest.fixture(scope="module")
def fit():
    return pp.fit("y ~ x + kind + z + (1 | g)", made(), seed=1, threads=1)


@pytest.fixture(scope="module")
def check(fit):
    return fit.check_context()


def test_the_contextual_effect_is_found(check):
    effect = check.effects[0]
    assert (effect.predictor, effect.factor) == ("x", "g")
    assert effect.found
    assert effect.contextual.q05 < 1.0 < effect.contextual.q95
    assert effect.within.q05 < 0.5 < effect.within.q95
    assert effect.slope.mean > effect.within.mean  # the slope as fitted mixes the two
    assert effect.between.mean == pytest.approx(effect.within.mean + effect.contextual.mean)
    assert "mixes two things" in repr(check)
    assert check.formula.startswith("y ~ within(x|g) + between(x|g) + kind + z + (1 | g)")


def test_it_is_the_model_written_by_hand(fit, check):
    frame = made()
    frame["mean"] = frame.groupby("g")["x"].transform("mean")
    frame["share"] = (frame["kind"] == "old").groupby(frame["g"]).transform("mean")
    by_hand = pp.fit("y ~ x + kind + z + mean + share + (1 | g)", frame, seed=2, threads=1).summary()
    own = check.table.set_index("predictor")
    for name, column in (("x", "mean"), ("kind[old]", "share")):
        assert own.loc[name, "mean"] == pytest.approx(by_hand.loc[column, "mean"], abs=0.1 * own.loc[name, "sd"])
        assert own.loc[name, "sd"] == pytest.approx(by_hand.loc[column, "sd"], rel=0.1)
    x = frame["x"].to_numpy()
    mean = frame["mean"].to_numpy()
    assert own.loc["x", "between_share"] == pytest.approx(mean.var() / x.var())


def test_priors_of_what_is_shared_stay(fit, check):
    before, after = fit.model.priors, check.fit.model.priors
    for name in ("Intercept", "x", "kind[old]", "z", "sd(Intercept|g)", "sigma"):
        assert str(after[name]) == str(before[name])
    assert after.source("Intercept") == "default"
    assert check.fit.seed == fit.seed


def test_a_prior_of_every_coefficient_holds_for_the_means_too():
    priors = {"beta": pp.Normal(0, 0.5), "Intercept": pp.Normal(1, 2), "sd": pp.HalfNormal(1)}
    own = pp.fit("y ~ x + (1 | g)", made(), seed=1, threads=1, priors=priors).check_context().fit.model.priors
    assert str(own["between(x|g)"]) == str(own["x"]) == "Normal(0, 0.5)"
    assert own.matched_key("Intercept") == "Intercept"


def test_without_a_contextual_effect_none_is_found():
    own = pp.fit("y ~ x + (1 | g)", made(3, groups=150, rows=20, contextual=0.0), seed=1, threads=1).check_context()
    assert not own.effects[0].found
    assert "mixes" not in repr(own)


def test_what_varies_at_one_level_only_is_left_alone(check):
    assert [effect.predictor for effect in check.effects] == ["x", "kind[old]"]
    assert any("z does not vary within groups of g" in note for note in check.left_out)


def test_several_factors_and_one_of_them():
    frame = made()
    fit = pp.fit("y ~ x + (1 | h / g)", frame, seed=1, threads=1)
    own = check_context(fit)
    assert [effect.factor for effect in own.effects] == ["h", "h:g"]
    assert [effect.factor for effect in check_context(fit, "h").effects] == ["h"]
    assert "between(x|h:g)" in own.fit.parameters


def test_other_families_slopes_and_functions():
    frame = made()
    frame["count"] = np.random.default_rng(1).poisson(np.exp(0.3 * frame["y"].clip(-3, 3)))
    frame["size"] = np.exp(frame["x"])
    fit = pp.fit("count ~ log(size) + (1 | g)", frame, family="poisson", seed=1, threads=1)
    own = fit.check_context(draws=1000)
    assert own.effects[0].predictor == "log(size)"
    assert "between(log(size)|g)" in own.fit.parameters
    assert own.fit.model.family.name == "poisson"
    assert len(own.fit.draws("log(size)")) == 1000


def test_powers_and_formulas_of_sigma():
    frame = made().rename(columns={"g": "which g"})
    terms = pp.formula("y ~ I(x^2) + x + (1 | `which g`)", sigma="~ z")
    own = pp.fit(terms, frame, seed=1, threads=1).check_context()
    assert [effect.predictor for effect in own.effects] == ["I(x^2)", "x"]
    assert own.formula.endswith(", sigma ~ z")
    assert "sigma.z" in own.fit.parameters


def test_a_saved_fit_and_one_without_rows(fit, check, tmp_path):
    fit.save(tmp_path / "fit.pp")
    again = pp.load(tmp_path / "fit.pp").check_context()
    pd.testing.assert_frame_equal(again.table, check.table)
    fit.save(tmp_path / "bare.pp", data=False)
    with pytest.raises(ModelError, match="needs the rows"):
        pp.load(tmp_path / "bare.pp").check_context()


@pytest.mark.parametrize(
    ("formula", "options", "words"),
    [
        ("y ~ x", {}, "no groups"),
        ("y ~ z + (1 | g)", {}, "z does not vary within"),
        ("y ~ 1 + (1 | g)", {}, "no predictors"),
        ("y ~ x + mean + (1 | g)", {}, "in the model already"),
        ("y ~ within(x|g) + (1 | g)", {}, r"within\(x\|g\) has no between\(x\|g\) beside it"),
        ("y ~ poly(x, 2) + (1 | g)", {}, "no formula"),
        ("y ~ x + (1 | g)", {"factor": "G"}, "Did you mean 'g'"),
        ("y ~ x + (1 | g)", {"priors": {}}, "keeps the priors"),
        ("y ~ x + (1 | g)", {"sed": 1}, "Did you mean 'seed'"),
    ],
)
def test_what_cannot_be_checked_is_said(formula, options, words):
    frame = made(groups=12)
    frame["mean"] = frame.groupby("g")["x"].transform("mean")
    fit = pp.fit(formula, frame, seed=1, threads=1)
    with pytest.raises(ModelError, match=words):
        fit.check_context(**options)


@pytest.mark.parametrize(
    ("formula", "wanted"),
    [
        ("y ~ x + (x | g)", "y ~ within(x|g) + between(x|g) + (within(x|g) | g)"),
        ("y ~ z + x + (1 | h)", "y ~ z + within(x|g) + between(x|g) + (1 | h)"),
        ("y ~ x * z + (1 | g)", "y ~ x * z + (1 | g) + between(x|g)"),
        ("y ~ 0 + x + offset(z) + (1 + x || g)",
         "y ~ 0 + within(x|g) + between(x|g) + offset(z) + (1 + within(x|g) || g)"),
    ],
)  # fmt: skip
def test_the_formula_proposed(formula, wanted):
    candidate = Candidate("x", "g", "between(x|g)", "between(x|g)", True, 0.5)
    assert proposed_formula(parse_formula(formula), [candidate]) == wanted


def test_the_proposed_formula_can_be_fitted(check):
    again = pp.fit(check.formula, made(), seed=1, threads=1).summary()
    effect = check.effects[0]
    assert again.loc["within(x|g)", "mean"] == pytest.approx(effect.within.mean, abs=0.1 * effect.within.sd)
    assert again.loc["between(x|g)", "mean"] == pytest.approx(effect.between.mean, abs=0.2 * effect.between.sd)


def test_the_picture(check):
    from matplotlib.figure import Figure

    assert isinstance(check.plot(), Figure)


def test_a_row_of_weight_two_is_two_rows():
    frame = made(groups=25)
    frame["times"] = np.random.default_rng(3).integers(1, 4, len(frame))
    weighted = pp.fit("y | weights(times) ~ x + (1 | g)", frame, seed=1, threads=1).check_context()
    repeated = frame.loc[frame.index.repeat(frame["times"])].reset_index(drop=True)
    twice = pp.fit("y ~ x + (1 | g)", repeated, seed=1, threads=1).check_context()
    assert weighted.table["between_share"].item() == pytest.approx(twice.table["between_share"].item(), rel=1e-12)
    # sigma's prior and the grid are not quite the same
    assert weighted.table["mean"].item() == pytest.approx(twice.table["mean"].item(), abs=0.05)


def test_between_the_groups_of_an_outer_factor_both_means_move():
    """y = 0.5 x + 1 (mean of g) - 2 (mean of h): between groups of h the slope is -0.5, between those of g in h 1.5."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(240), 6)
    h = g // 6
    x = 2 * rng.standard_normal(40)[h] + rng.standard_normal(240)[g] + rng.standard_normal(g.size)
    of_g, of_h = ((np.bincount(codes, x) / np.bincount(codes))[codes] for codes in (g, h))
    y = 0.5 * x + of_g - 2 * of_h + 0.3 * rng.standard_normal(240)[g] + 0.3 * rng.standard_normal(g.size)
    own = pp.fit("y ~ x + (1 | h/g)", {"y": y, "x": x, "g": g, "h": h}, seed=1, threads=1).check_context()
    outer, inner = own.effects
    for effect, contextual, between in ((outer, -2, -0.5), (inner, 1, 1.5)):
        assert effect.contextual.mean == pytest.approx(contextual, abs=0.1)
        assert effect.between.mean == pytest.approx(between, abs=0.1)
        assert effect.inner == "h:g"
    assert re.search(r"within a group of h:g it is 0\.\d+, between groups of h -0\.\d+;", repr(own))


def test_predictors_in_brackets_and_those_that_stand_in_interactions_only():
    fit = pp.fit("y ~ (x + kind)^2 + (1 | g)", made(), seed=1, threads=1)
    assert [effect.predictor for effect in fit.check_context().effects] == ["x", "kind[old]"]
    fit = pp.fit("y ~ kind + x:kind + (1 | g)", made(), seed=1, threads=1)
    own = fit.check_context()
    assert [effect.predictor for effect in own.effects] == ["kind[old]"]
    assert "Not checked: x, which has no slope of its own." in own.left_out


@pytest.mark.parametrize("formula", ["y ~ within(x|g) + between(x|g) + (1 | g)", "y ~ x + between(x|g) + (1 | g)"])
def test_slopes_that_the_model_keeps_apart_already(formula):
    fit = pp.fit(formula, made(), seed=1, threads=1)
    own = fit.check_context()
    assert own.fit is fit and own.formula == formula
    effect = own.effects[0]
    beta = [fit.draws(name) for name in fit.parameters[1:3]]
    contextual = beta[1] - beta[0] if "within" in formula else beta[1]
    assert effect.contextual.mean == pytest.approx(contextual.mean())
    assert effect.within.mean == pytest.approx(beta[0].mean())
    assert effect.between.mean == pytest.approx((contextual + beta[0]).mean())
    x = made()["x"]
    mean = x.groupby(made()["g"]).transform("mean")
    assert effect.between_share == pytest.approx(mean.var() / x.var())
    assert "The slope of x is kept apart already: within a group of g it is 0." in repr(own)
    assert own.table["slope"].isna().all() and own.table["positive"].item() == effect.contextual.positive
    own.plot()


def test_some_predictors_kept_apart_and_others_not():
    fit = pp.fit("y ~ within(x|g) + between(x|g) + kind + (1 | g)", made(), seed=1, threads=1)
    own = fit.check_context()
    assert [(effect.predictor, effect.slope is None) for effect in own.effects] == [("x", True), ("kind[old]", False)]
    assert own.fit is not fit and not own.left_out
    own.plot()


def test_nested_parts_kept_apart():
    fit = pp.fit("y ~ within(x|h/g) + between(x|h/g) + between(x|h) + (1 | h/g)", made(), seed=1, threads=1)
    own = fit.check_context()
    assert [(effect.factor, effect.inner) for effect in own.effects] == [("h:g", "h:g"), ("h", "h:g")]
    for effect, name in zip(own.effects, ("between(x|h/g)", "between(x|h)"), strict=True):
        assert effect.between.mean == pytest.approx(fit.draws(name).mean())
    shares = sum(effect.between_share for effect in own.effects)
    x = made()["x"]
    assert shares == pytest.approx(x.groupby(made()["g"]).transform("mean").var() / x.var())
    assert [effect.factor for effect in fit.check_context("h").effects] == ["h"]
