"""Group means behind within() and between(): learned, replayed, saved."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.design.design import Design, build_design
from partialpool.errors import DataError

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def frame():
    rng = np.random.default_rng(3)
    n = 120
    out = pd.DataFrame(
        {
            "a": rng.choice(list("pqrs"), n), "b": rng.integers(0, 3, n), "x": 50 + rng.normal(size=n),
            "w": rng.integers(1, 4, n), "s": rng.choice(["m", "f"], n),
        }
    )  # fmt: skip
    out["y"] = out.x + rng.normal(size=n)
    return out


def column(design, name):
    return design.V[:, design.v_names.index(name)]


def test_against_pandas(frame):
    of_a = frame.groupby("a").x.transform("mean")
    of_ab = frame.groupby(["a", "b"]).x.transform("mean")
    expected = {
        "within(x|a)": frame.x - of_a, "between(x|a)": of_a, "within(x|a/b)": frame.x - of_ab,
        "between(x|a/b)": of_ab - of_a, "between(x|a:b)": of_ab,
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(column(build_design(f"y ~ {name}", frame), name), values, atol=1e-12)


def test_the_parts_add_up(frame):
    design = build_design("y ~ within(x|a/b) + between(x|a/b) + between(x|a)", frame)
    np.testing.assert_allclose(design.x_matrix()[:, 1:].sum(axis=1), frame.x, rtol=1e-14)


def test_interactions_and_group_terms_share_the_column(frame):
    design = build_design("y ~ within(x|a) * s + (1 + within(x|a) | a)", frame)
    assert design.x_names == ("Intercept", "within(x|a)", "s[m]", "within(x|a):s[m]")
    assert design.groups[0].columns.tolist() == [design.v_names.index(name) for name in ("Intercept", "within(x|a)")]
    own = column(design, "within(x|a)") * (frame.s == "m")
    np.testing.assert_allclose(column(design, "within(x|a):s[m]"), own, atol=1e-14)


def test_shares_of_a_category(frame):
    design = build_design('y ~ between(s == "f" | a)', frame)
    expected = (frame.s == "f").astype(float).groupby(frame.a).transform("mean")
    np.testing.assert_allclose(design.x_matrix()[:, 1], expected, atol=1e-14)


def test_missing_rows_do_not_count(frame):
    holes = frame.astype({"x": float})
    holes.loc[[0, 7], "y"] = np.nan
    kept = holes.dropna()
    design = build_design("y ~ between(x|a)", holes)
    np.testing.assert_allclose(design.x_matrix()[:, 1], kept.groupby("a").x.transform("mean"), atol=1e-12)


def test_a_row_of_weight_two_is_two_rows(frame):
    formula = "y | weights(w) ~ within(x|a/b) + between(x|a/b)"
    weighted = build_design(formula, frame)
    places = np.repeat(np.arange(len(frame)), frame.w)
    repeated = build_design(formula.replace(" | weights(w)", ""), frame.iloc[places])
    np.testing.assert_allclose(weighted.V[places], repeated.V, atol=1e-12)


def test_new_rows_use_the_means_learned(frame):
    design = build_design("y ~ within(x|a/b) + between(x|a/b) + between(x|a)", frame)
    few = frame.iloc[[5, 2, 11]].assign(x=[0.0, 1.0, 2.0])
    mean = frame.groupby(["a", "b"]).x.mean()
    expected = few.x.to_numpy() - [mean[a, b] for a, b in zip(few.a, few.b, strict=True)]
    found = design.replay(few).V[:, 1]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(design.replay(frame).V, design.V)


def test_groups_that_the_fit_has_not_seen_have_the_means_of_their_new_rows(frame):
    design = build_design("y ~ within(x|a) + between(x|a/b) + between(x|a)", frame)
    new = pd.DataFrame({"x": [1.0, 3.0, 10.0, 50.0], "a": ["new", "new", "other", "p"], "b": [9, 9, 0, 77]})
    replayed = design.replay(new).V
    of_p = frame.x[frame.a == "p"].mean()
    within, nested, between = (replayed[:, design.v_names.index(name)] for name in design.x_names[1:])
    np.testing.assert_allclose(within, [-1.0, 1.0, 0.0, 50.0 - of_p], atol=1e-12)
    np.testing.assert_allclose(between, [2.0, 2.0, 10.0, of_p], atol=1e-12)
    np.testing.assert_allclose(nested, [0.0, 0.0, 0.0, 50.0 - of_p], atol=1e-12)


@pytest.mark.parametrize("rows", [True, False])
def test_saved_and_loaded(frame, rows):
    formula = "y ~ within(x|a/b) * s + between(log(x)|b) + (1 + between(x|b) | a)"
    design = build_design(formula, frame)
    again = Design.from_state(design.to_state(rows=rows))
    np.testing.assert_array_equal(again.replay(frame).V, design.V)
    if rows:
        np.testing.assert_array_equal(again.V, design.V)


def test_columns_made_of_others_are_not_asked_of_new_data(frame):
    fit = pp.fit("y ~ within(x|b) + (1 + between(x|a) | a)", frame, seed=1)
    assert fit.predict({"x": [50.0], "b": [1]}, effects="none").mean.shape == (1,)
    with pytest.raises(DataError, match="'b'"):
        fit.predict({"x": [50.0]}, effects="none")


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ within(g|a)", "does not vary within the groups of 'a'.*write g alone"),
        ("y ~ between(c|a)", "the same in every row.*centred by group"),
        ("y ~ between(one|a)", "'one' is 1 in every row; drop it"),
        ("y ~ within(s|a)", r"not numeric.*within\(s == 'a'\|a\)"),
        ("y ~ within(log(x - 50)|a)", "undefined in rows"),
        ("y ~ within(z|a)", "'z', which is not a column"),
        ("y ~ within(x|x)", "decimals"),
    ],
)
def test_mistakes(frame, formula, says):
    frame["g"] = frame.groupby("a").x.transform("mean")
    frame["c"] = frame.x - frame.g
    frame["one"] = 1.0
    with pytest.raises(DataError, match=says):
        build_design(formula, frame)


def test_a_column_of_the_same_name(frame):
    frame["within(x|a)"] = np.arange(len(frame)) * 1.0
    np.testing.assert_array_equal(column(build_design("y ~ `within(x|a)`", frame), "within(x|a)"), np.arange(120))
    assert np.abs(column(build_design("y ~ within(x|a)", frame), "within(x|a)")).max() < 10
    with pytest.raises(DataError, match="rename the column"):
        build_design("y ~ `within(x|a)` + within(x|a)", frame)


def test_the_same_model_as_with_the_data_s_own_columns():
    """Hsb82's own meanses and cses were computed by its authors."""
    data = pd.read_csv(DATA / "Hsb82.csv")
    formula = "mAch ~ within(ses|school) + between(ses|school) + (1 + within(ses|school) | school)"
    own = pp.fit(formula, data, seed=1)
    theirs = pp.fit("mAch ~ cses + meanses + (1 + cses | school)", data, seed=1)
    columns = ["mean", "sd", "q05", "q50", "q95"]
    found, expected = own.summary()[columns].to_numpy(), theirs.summary()[columns].to_numpy()
    assert np.abs(found - expected).max() < 1e-6
    assert own.log_marginal_likelihood == pytest.approx(theirs.log_marginal_likelihood, abs=1e-6)


@given(shift=st.floats(-1e6, 1e6), scale=st.floats(0.01, 1e4), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_rescaling_the_predictor_rescales_its_parts(shift, scale, seed):
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=40), rng.integers(0, 5, 40)
    data = {"y": rng.normal(size=40), "x": x, "z": shift + scale * x, "g": g}
    design = build_design("y ~ within(x|g) + between(x|g)", data)
    other = build_design("y ~ within(z|g) + between(z|g)", data)
    size = 1e-14 * (abs(shift) + scale * 10)
    np.testing.assert_allclose(other.V[:, 1], scale * design.V[:, 1], atol=10 * size)
    np.testing.assert_allclose(other.V[:, 2], shift + scale * design.V[:, 2], atol=10 * size)
