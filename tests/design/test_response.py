"""Responses as people have them, by family: how they are coded, and what is refused with which mend."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.design.design import Design, build_design
from partialpool.errors import DataError, ModelError

N = 40


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    yes = np.tile([True, False, False, True, False], 8)
    trials = rng.integers(3, 9, N)
    return pd.DataFrame(
        {
            "yes": yes,
            "one": yes.astype(int),
            "text": np.where(yes, "yes", "no"),
            "word": np.where(yes, "alive", "dead"),
            "cat": pd.Categorical(np.where(yes, "good", "bad"), categories=["unused", "good", "bad"]),
            "three": np.tile(list("abca"), 10),
            "coded": np.where(yes, 2, 1),
            "count": rng.poisson(3, N),
            "trials": trials,
            "events": rng.binomial(trials, 0.4),
            "share": rng.uniform(0.1, 0.9, N),
            "real": rng.normal(size=N),
            "positive": rng.gamma(2, size=N),
            "zero": 0,
            "x": rng.normal(size=N),
            "g": np.repeat(np.arange(8), 5),
            "row": np.arange(N),
        },
        index=[f"r{row}" for row in range(N)],
    )


@pytest.mark.parametrize("family", ["bernoulli", "binomial"])
@pytest.mark.parametrize(
    ("response", "success", "flipped"),
    [
        ("one", None, False),
        ("yes", None, False),
        ("text", "yes", False),
        ("word", "dead", True),
        ("cat", "bad", True),
        ("text == 'yes'", None, False),
        ("text == 'no'", None, True),
        ("cat != 'bad'", None, False),
        ("coded == 2", None, False),
        ("coded > 1", None, False),
    ],
)
def test_binary(table: pd.DataFrame, family: str, response: str, success: str | None, flipped: bool) -> None:
    design = build_design(f"{response} ~ x + (1|g)", table, family=family)
    np.testing.assert_array_equal(design.y, table.yes != flipped)
    assert design.y.dtype == np.float64 and design.success == success
    assert (design.trials is None) if family == "bernoulli" else (design.trials is not None)
    if family == "binomial":
        np.testing.assert_array_equal(design.trials, 1.0)


@pytest.mark.parametrize("dtype", ["boolean", "Int64", object, "float32"])
def test_binary_of_many_types(table: pd.DataFrame, dtype: Any) -> None:
    column = table.yes.astype(dtype)
    design = build_design("b ~ x + (1|g)", table.assign(b=column), family="bernoulli")
    np.testing.assert_array_equal(design.y, table.yes)


def test_the_model_says_which_category_is_success(table: pd.DataFrame) -> None:
    assert "'dead' counts as success" in repr(pp.Model.from_formula("word ~ x + (1|g)", table, family="bernoulli"))
    assert "success" not in repr(pp.Model.from_formula("one ~ x + (1|g)", table, family="bernoulli"))


def test_missing_values_do_not_make_a_category(table: pd.DataFrame) -> None:
    table.loc["r3", "text"] = None
    design = build_design("text ~ x + (1|g)", table, family="bernoulli")
    assert (design.n_dropped, design.success, design.y.sum()) == (1, "yes", table.yes.sum() - 1)


@pytest.mark.parametrize(
    ("response", "expected"),
    [("events | trials(trials)", "trials"), ("events | trials(9)", 9.0), ("events | trials(trials + 1)", "more")],
)
def test_trials(table: pd.DataFrame, response: str, expected: Any) -> None:
    design = build_design(f"{response} ~ x + (1|g)", table, family="binomial")
    wanted = {"trials": table.trials, "more": table.trials + 1}.get(expected, expected)
    np.testing.assert_array_equal(design.trials, np.broadcast_to(wanted, N))
    np.testing.assert_array_equal(design.y, table.events)


@pytest.mark.parametrize(
    ("formula", "family", "says"),
    [
        ("one | trials(trials) ~ x", "bernoulli", r"trials\(trials\) belongs to a binomial.*write family='binomial'"),
        ("count | trials(trials) ~ x", "poisson", "the family is 'poisson'; remove it, or write family='binomial'"),
        ("real | trials(trials) ~ x", "gaussian", "the family is 'gaussian'"),
        ("count | se(positive) ~ x", "poisson", r"se\(positive\) sets the variance of a gaussian response"),
        ("one | precision(positive) ~ x", "bernoulli", r"weights\(w\) counts a row w times"),
    ],
)
def test_additions_that_a_family_has_not(table: pd.DataFrame, formula: str, family: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        build_design(formula, table, family=family)


@pytest.mark.parametrize(
    ("formula", "family", "says"),
    [
        (
            "share ~ x",
            "binomial",
            r"'share' holds proportions.*'events \| trials\(n\) ~ ...', with events = share \* n",
        ),
        ("share | weights(trials) ~ x", "binomial", r"'events \| trials\(trials\) ~ ...'.*in the place of weights"),
        ("events ~ x", "binomial", r"needs the number of trials of each row: write 'events \| trials\(n\)"),
        ("one ~ x", "beta_binomial", r"'beta_binomial' needs the number of trials"),
        (
            "share | trials(trials) ~ x",
            "binomial",
            r"of \d trials in the first of rows r0, r1, .* look like proportions",
        ),
        ("share ~ x", "bernoulli", "proportions are modelled as 'events"),
        ("coded ~ x", "bernoulli", r"is 2 in the first of rows r0, r3, .*\(write 'coded == 2 ~ ...' to count 2 as"),
        ("count ~ x", "bernoulli", r"The response 'count' is \d+ in the first of rows"),
        ("three ~ x", "bernoulli", r"has 3 categories \('a', 'b', 'c'\).* takes two; .* three == 'b' ~"),
        ("three ~ x", "binomial", "has 3 categories"),
        ("zero ~ x", "bernoulli", "is 0 in every row, so that there is nothing to learn.*how it is coded"),
        ("zero + 1 ~ x", "bernoulli", "is 1 in every row"),
        ("text == 'Yes' ~ x", "bernoulli", "is 0 in every row"),
        ("zero | trials(trials) ~ x", "binomial", "is 0 in every row"),
        ("trials | trials(trials) ~ x", "binomial", "is all trials in every row"),
        ("text ~ x", "poisson", "'text' is not numeric"),
        ("text ~ x", "gaussian", "'text' is not numeric"),
        ("events | trials(share) ~ x", "binomial", r"trials\(share\) is 0\.\d+ in the first of rows r0, r1, .* whole"),
        ("events | trials(trials - trials) ~ x", "binomial", "is 0 in .* at least 1"),
        ("zero + 2 ~ x", "gamma", "is constant, 2 in every row"),
    ],
)
def test_errors_name_the_thing_and_the_mend(table: pd.DataFrame, formula: str, family: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        build_design(formula, table, family=family)


@pytest.mark.parametrize(
    ("column", "family", "value", "shown"),
    [
        ("count", "poisson", 1.5, "1.5"),
        ("count", "poisson", -1, "-1"),
        ("count", "negative_binomial", 2.5, "2.5"),
        ("count", "geometric", -2, "-2"),
        ("share", "beta", 0.0, "0"),
        ("share", "beta", 1.0, "1"),
        ("share", "beta", 1.5, "1.5"),
        *[("positive", f, v, f"{v}") for f in ("gamma", "lognormal", "weibull", "inverse_gaussian") for v in (0, -3)],
        ("positive", "exponential", -3, "-3"),
    ],
)
def test_rows_outside_of_the_support_are_named(
    table: pd.DataFrame, column: str, family: str, value: float, shown: str
) -> None:
    table[column] = table[column].astype(float)
    build_design(f"{column} ~ x + (1|g)", table, family=family)
    table.loc[["r4", "r17"], column] = value
    message = rf"The response '{column}' is {shown} in the first of rows r4 and r17; "
    with pytest.raises(DataError, match=message) as caught:
        build_design(f"{column} ~ x + (1|g)", table, family=family)
    if family == "beta" and value in (0, 1):
        assert f"an exact {shown} cannot be" in str(caught.value)


@pytest.mark.parametrize("family", ["binomial", "beta_binomial"])
def test_events_above_trials(table: pd.DataFrame, family: str) -> None:
    table.loc["r6", "events"] = 12
    with pytest.raises(DataError, match=rf"is 12 of {table.trials['r6']} trials in row r6; "):
        build_design("events | trials(trials) ~ x + (1|g)", table, family=family)


def test_counts_may_be_constant_and_have_an_effect_for_each_row(table: pd.DataFrame) -> None:
    assert build_design("zero ~ x", table, family="poisson").y.sum() == 0
    design = build_design("count ~ x + (1|row) + (1|g)", table, family="poisson")
    assert len(design.factors[0].labels) == N
    with pytest.raises(DataError, match="as many groups as there are rows"):
        build_design("real ~ x + (1|row)", table)


# ---- formulas of parameters ---------------------------------------------------------------------------------------


def test_two_predictors(table: pd.DataFrame) -> None:
    terms = pp.formula("real ~ x + (x|g)", sigma="~ 0 + positive + text + (1|g) + (1|three)")
    design = build_design(terms, table)
    assert design.x_names == ("Intercept", "x", "sigma.positive", "sigma.text[no]", "sigma.text[yes]")
    assert design.x_predictor.tolist() == [0, 0, 1, 1, 1]
    assert design.intercepts == (0, None) and design.prefixes == ("", "sigma.")
    np.testing.assert_array_equal(design.V[:, design.x_columns[2]], table.positive)
    assert [(g.predictor, g.factor, g.names) for g in design.groups] == [
        (0, 0, ("Intercept", "x")),
        (1, 0, ("sigma.Intercept",)),
        (1, 1, ("sigma.Intercept",)),
    ]
    assert len(set(design.v_names)) == design.V.shape[1] == 5
    assert build_design("real ~ x", table).x_predictor.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("parts", "family", "says"),
    [
        ({"phi": "~ x"}, "gaussian", r"no parameter 'phi'; its parameters are sigma, of which sigma can .*sigma='~ z'"),
        ({"sigma": "~ x"}, "poisson", r"'poisson' has no parameter 'sigma' \(it has none of its own\).*sigma='...'"),
        ({"nu": "~ x"}, "student_t", "'nu' of the family 'student_t' cannot have a formula; sigma can"),
    ],
)
def test_parameters_that_a_family_has_not(table: pd.DataFrame, parts: dict[str, str], family: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        build_design(pp.formula("count ~ x", **parts), table, family=family)


def test_errors_of_a_part(table: pd.DataFrame) -> None:
    with pytest.raises(ModelError, match=r"se\(positive\) and a formula of sigma both set"):
        build_design(pp.formula("real | se(positive) ~ x", sigma="~ x"), table)
    with pytest.raises(DataError, match="'zero' in the formula of sigma does not vary"):
        build_design(pp.formula("real ~ x", sigma="~ zero"), table)
    with pytest.raises(ValueError, match="among its own predictors"):
        build_design(pp.formula("real ~ x", sigma="~ real"), table)
    with pytest.raises(ValueError, match=r"both let 'sigma.x' vary by 'g'"):
        build_design(pp.formula("real ~ x", sigma="~ (x|g) + (0+x|g)"), table)
    build_design(pp.formula("real ~ x + (x|g)", sigma="~ (x|g)"), table)
    build_design(pp.formula("real ~ x + (1|g)", sigma="~ (1|row)"), table)  # a scale mixture: heavier tails


# ---- new rows, and files ------------------------------------------------------------------------------------------


def test_new_rows_of_both_predictors(table: pd.DataFrame) -> None:
    terms = pp.formula("events | trials(trials) ~ x + (1|g)", phi="~ positive*text + (0 + share|three)")
    design = build_design(terms, table, family="beta_binomial")
    new = design.replay(table.iloc[7:12], response=True)
    np.testing.assert_array_equal(new.V, design.V[7:12])
    np.testing.assert_array_equal(new.trials, table.trials.iloc[7:12])
    np.testing.assert_array_equal(new.y, table.events.iloc[7:12])
    np.testing.assert_array_equal(new.codes[1], design.factors[1].codes[7:12])
    without = design.replay(table.iloc[7:12].drop(columns=["trials", "three", "share"]), factors=["g"])
    assert without.trials is None and without.codes[1] is None
    with pytest.raises(DataError, match=r"trials\(trials\) is 0 in row r7"):
        design.replay(table.iloc[7:12].assign(trials=[0, 1, 1, 1, 1]))
    with pytest.raises(DataError, match="lack the column 'positive'"):
        design.replay(table.iloc[7:12].drop(columns="positive"))


def test_new_rows_without_trials_in_the_formula_have_one_each(table: pd.DataFrame) -> None:
    design = build_design("text ~ x + (1|g)", table, family="binomial")
    np.testing.assert_array_equal(design.replay({"x": [0.0, 1.0], "g": [0, 1]}).trials, [1, 1])
    assert build_design("text ~ x", table, family="bernoulli").replay({"x": [0.0]}).trials is None
    fixed = build_design("events | trials(9) ~ x", table, family="binomial").replay({"x": [0.0, 2.0]})
    np.testing.assert_array_equal(fixed.trials, [9, 9])


def test_the_response_of_new_rows_is_coded_as_that_of_the_fit(table: pd.DataFrame) -> None:
    design = build_design("word ~ x + (1|g)", table, family="bernoulli")
    new = design.replay({"word": ["dead", "dead"], "x": [0.0, 1.0], "g": [0, 1]}, response=True)
    np.testing.assert_array_equal(new.y, [1.0, 1.0])
    with pytest.raises(DataError, match="In row 1, the response 'word' is 'ill', neither 'alive' nor 'dead'"):
        design.replay({"word": ["dead", "ill"], "x": [0.0, 1.0], "g": [0, 1]}, response=True)


@pytest.mark.parametrize("rows", [True, False])
def test_states(table: pd.DataFrame, rows: bool) -> None:
    for terms, family in (
        (pp.formula("events | trials(trials) ~ x + (1|g)", phi="~ positive*text + (1|three)"), "beta_binomial"),
        ("word ~ x + (1|g)", "bernoulli"),
        ("yes ~ x + (1|g)", "binomial"),
        ("coded == 2 ~ x + (1|g)", "bernoulli"),
        ("events | trials(9) ~ x + (1|g)", "binomial"),
    ):
        design = build_design(terms, table, family=family)
        state = design.to_state(rows=rows)
        loaded = Design.from_state({"json": json.loads(json.dumps(state["json"])), "arrays": state["arrays"]})
        assert loaded.terms == design.terms
        assert (loaded.success, loaded.failure) == (design.success, design.failure)
        np.testing.assert_array_equal(loaded.x_predictor, design.x_predictor)
        assert [g.predictor for g in loaded.groups] == [g.predictor for g in design.groups]
        assert (loaded.trials is None) == (design.trials is None)
        new = table.iloc[3:6]
        np.testing.assert_array_equal(loaded.replay(new).V, design.replay(new).V)
        np.testing.assert_array_equal(loaded.replay(new, response=True).y, design.y[3:6])
        if rows:
            np.testing.assert_array_equal(loaded.y, design.y)
            np.testing.assert_array_equal(loaded.V, design.V)
            if design.trials is not None:
                np.testing.assert_array_equal(loaded.trials, design.trials)


def test_older_states_are_read(table: pd.DataFrame) -> None:
    design = build_design("real ~ x + (x|g)", table)
    state = design.to_state(rows=True)
    for key in ("predictors", "x_predictor", "success", "failure"):
        del state["json"][key]
    state["json"]["groups"] = [group[:5] for group in state["json"]["groups"]]
    loaded = Design.from_state(state)
    assert loaded.success is None and loaded.trials is None
    assert loaded.x_predictor.tolist() == [0, 0] and loaded.groups[0].predictor == 0
    np.testing.assert_array_equal(loaded.y, design.y)
