"""Slopes between and within groups: least squares against lstsq, the model, the words, what goes wrong."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.errors import DataError, ModelError, PriorError
from partialpool.levels.least_squares import averages_of, least_squares


def reversal(seed=0, groups=30, rows=10, latent=False):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    mean = 0.5 * rng.standard_normal(groups)
    x = mean[g] + rng.standard_normal(g.size)
    own = mean if latent else np.bincount(g, x) / rows
    y = -(x - own[g]) + own[g] + 0.5 * rng.standard_normal(groups)[g] + rng.standard_normal(g.size)
    return pd.DataFrame({"y": y, "x": x, "g": [f"town {k}" for k in g]})


@pytest.fixture(scope="module")
def found():
    return pp.ecological(reversal(), "y", "x", "g", threads=1)


def slopes_by_lstsq(x, y, codes):
    frame = pd.DataFrame({"x": x, "y": y, "g": codes})
    means = frame.groupby("g").transform("mean")

    def first(*columns):
        matrix = np.column_stack([np.ones(len(columns[0])), *columns[:-1]])
        return np.linalg.lstsq(matrix, columns[-1], rcond=None)[0]

    by_group = frame.groupby("g").mean()
    both = first(frame["x"] - means["x"], means["x"], frame["y"])
    return first(by_group["x"], by_group["y"])[1], first(frame["x"], frame["y"])[1], both[1], both[2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 8), min_size=3, max_size=12), st.integers(0, 10_000), st.sampled_from([0.0, 2000.0, -1e5])
)
def test_slopes_and_the_identity_whatever_the_group_sizes(sizes, seed, origin):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes) + 1), [*sizes, 3])
    x = origin + rng.standard_normal(len(sizes) + 1)[codes] + rng.standard_normal(codes.size)
    y = rng.standard_normal(codes.size) + x
    own = least_squares(averages_of(x, y, codes))
    wanted = slopes_by_lstsq(x - origin, y - origin, codes)
    parts = (own.averages, own.pooled, own.within, own.between)
    np.testing.assert_allclose([part.estimate for part in parts], wanted, rtol=1e-6, atol=1e-7)
    assert own.identity_error < 1e-10
    w = own.share_between
    assert own.pooled.estimate == pytest.approx((1 - w) * own.within.estimate + w * own.between.estimate, abs=1e-10)


def test_standard_errors_allow_groups_to_go_together():
    """Against the sd over simulations in which only groups are drawn anew, and the sandwich by matrices."""
    frame = reversal(3)
    codes = pd.factorize(frame["g"])[0]
    x, y = frame["x"].to_numpy(), frame["y"].to_numpy()
    own = least_squares(averages_of(x, y, codes))
    X = np.column_stack([np.ones(len(x)), x])
    bread = np.linalg.inv(X.T @ X)
    residual = y - X @ (bread @ X.T @ y)
    scores = np.stack([np.bincount(codes, column * residual) for column in X.T], axis=1)
    factor = 30 / 29 * 299 / 298
    assert own.pooled.se == pytest.approx(np.sqrt(factor * (bread @ scores.T @ scores @ bread)[1, 1]), rel=1e-10)
    many = [least_squares(averages_of(f["x"].to_numpy(), f["y"].to_numpy(), codes)) for f in map(reversal, range(200))]
    for name in ("pooled", "within", "averages", "contextual"):
        spread = np.std([getattr(one, name).estimate for one in many])
        typical = np.mean([getattr(one, name).se for one in many])
        assert typical == pytest.approx(spread, rel=0.2), (
            name
        )  # 200 simulations know an sd to 5%; these se are a bit low


def test_the_reversal_is_seen(found):
    table = found.table
    assert table.loc["group averages", "estimate"] > 0
    assert table.loc["within groups", "q05"] < -1 < table.loc["within groups", "q95"]
    assert table.loc["contextual effect", "q05"] < 2 < table.loc["contextual effect", "q95"]
    assert found.wrong_sign > 0.999
    assert found.least_squares.identity_error < 1e-10
    text = repr(found)
    assert "point the other way" in text
    assert "lower y" in text


def test_the_model_is_that_of_its_formula(found):
    frame = reversal()
    mean = frame.groupby("g")["x"].transform("mean")
    other = pp.fit("y ~ w + b + (1|g)", frame.assign(w=frame["x"] - mean, b=mean), seed=3, threads=1)
    table = other.summary()
    for name, column in (("within groups", "w"), ("between groups", "b")):
        row = found.table.loc[name]
        assert row["mean"] == pytest.approx(table.loc[column, "mean"], abs=0.1 * row["sd"])
        assert row["sd"] == pytest.approx(table.loc[column, "sd"], rel=0.1)
    contextual = found.fit.draws("between(x|g)") - found.fit.draws("within(x|g)")
    assert found.table.loc["contextual effect", "mean"] == pytest.approx(contextual.mean())


def test_coverage_with_latent_means_only_where_corrected():
    """A short form of benchmarks/checks/levels_simpson.py."""
    inside = []
    for seed in range(20):
        table = pp.ecological(reversal(seed, latent=True), "y", "x", "g", threads=1).table
        inside.append([table.loc[name, "q05"] < 2 < table.loc[name, "q95"] for name in table.index[[4, 6]]])
    uncorrected, corrected = np.mean(inside, axis=0)
    assert uncorrected < 0.7
    assert corrected > 0.7


def test_same_seed_same_answer_whatever_the_order_of_rows(found):
    frame = reversal()
    again = pp.ecological(frame, "y", "x", "g", threads=1)
    pd.testing.assert_frame_equal(again.table, found.table)
    mixed = pp.ecological(frame.sample(frac=1, random_state=1), "y", "x", "g", threads=1)
    np.testing.assert_allclose(mixed.table["estimate"], found.table["estimate"], rtol=1e-9)
    np.testing.assert_allclose(mixed.table["mean"], found.table["mean"], atol=0.01)


def test_odd_names_missing_values_and_priors():
    frame = reversal().rename(columns={"y": "the outcome", "x": "x (in $)", "g": "which town"})
    frame.loc[3, "x (in $)"] = np.nan
    own = pp.ecological(
        frame, "the outcome", "x (in $)", "which town", latent=False, threads=1, priors={"sigma": pp.HalfNormal(2)}
    )
    assert own.n_dropped == 1
    assert own.latent is None
    assert len(own.table) == 5
    assert str(own.fit.model.priors["sigma"]) == "HalfNormal(2)"


def test_priors_of_the_model_of_x_reach_the_correction():
    frame = reversal(rows=3)
    free = pp.ecological(frame, "y", "x", "g", threads=1)
    tight = pp.ecological(frame, "y", "x", "g", threads=1, priors={"sd(x|g)": pp.HalfNormal(0.05)})
    assert tight.latent.reliability.mean < free.latent.reliability.mean
    pd.testing.assert_frame_equal(tight.table.iloc[:5], free.table.iloc[:5])


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        ({}, {"x": "z"}, DataError, "not a column of the data"),
        ({}, {"x": "y"}, ModelError, "given twice"),
        ({"x": 1.0}, {}, DataError, "'x' is 1 in every row"),
        ({"y": 2.5}, {}, DataError, "'y' is 2.5 in every row"),
        ({"x": "mean"}, {}, DataError, "does not vary within the groups of 'g'"),
        ({"x": "centred"}, {}, DataError, "same average of 'x'.*by design.*centred"),
        ({"g": "only"}, {}, DataError, "one group, 'only'"),
        ({"g": "two"}, {}, DataError, "two groups"),
        ({"g": "mean"}, {}, DataError, "holds decimals.*give it as x="),
        ({"x": "text"}, {}, DataError, "'x' is not numeric"),
        ({"y": "text"}, {}, DataError, "'y' is not numeric"),
        ({}, {"x": 3}, ModelError, "x=3"),
        ({}, {"group": ["g", "h"]}, ModelError, "one column of the data; for the combinations"),
        ({}, {"group": "h/g"}, DataError, "group= takes one column and no formula"),
        ({}, {"seed": -1}, ModelError, "seed = -1"),
        ({}, {"latent": "yes"}, ModelError, "latent = 'yes'"),
        ({}, {"priors": {"sgima": pp.HalfNormal(1)}}, PriorError, "sgima"),
        ({}, {"priors": {"within(x|g)": pp.StudentT(3, 0, 1)}}, ModelError, "Normal or Flat"),
        ({}, {"priors": {"beta": pp.Flat()}}, ModelError, "has no posterior.*latent=False"),
    ],
)
def test_what_cannot_be_done_is_said(change, options, error, words):
    frame = reversal(groups=6, rows=4)
    mean = frame.groupby("g")["x"].transform("mean")
    special = {
        "mean": mean, "centred": frame["x"] - mean, "text": np.array(["a", "b"] * 12), "two": ["a", "b"] * 12,
    }  # fmt: skip
    for column, value in change.items():
        frame[column] = special.get(value, value)
    arguments = {"y": "y", "x": "x", "group": "g", "threads": 1} | options
    with pytest.raises(error, match="(?s)" + words.replace("(", r"\(")):
        pp.ecological(frame, **arguments)


def test_pictures_of_few_and_of_many_groups(found):
    from matplotlib.figure import Figure

    assert isinstance(found.plot(), Figure)
    many = reversal(1, groups=200, rows=30)
    figure = pp.ecological(many, "y", "x", "g", threads=1, latent=False).plot(figsize=(6, 4))
    assert "60 of 200 groups" in figure._supxlabel.get_text()
    axes = Figure().add_subplot()
    assert found.plot(ax=axes).axes == [axes]


def test_averages_that_say_nothing_are_not_said_to_go_one_way():
    frame = pp.datasets.load("sleepstudy").sample(120, random_state=1)
    found = pp.ecological(frame, "Reaction", "Days", "Subject", threads=1)
    low, high = found.least_squares.averages.interval()
    assert low < 0 < high
    text = repr(found)
    assert "no clearly higher or lower average of Reaction" in text
    assert "which way the averages go is itself uncertain" in text
    # all but chance is the same in every group's average of Days
    assert "No corrected slope is shown" in text and not found.corrected and len(found.table) == 5
    assert "corrected, the contextual effect is" in repr(pp.ecological(reversal(rows=40), "y", "x", "g", threads=1))


def test_labels_of_the_picture_point_into_the_frame():
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(40), 8)
    x = (rng.random(320) < rng.beta(1, 4, 40)[g]).astype(float)
    y = np.clip(1.2 * x + 0.4 * rng.random(320), 0, 1)
    x, y, g = np.append(x, 6.0), np.append(y, 1.0), np.append(g, 40)  # a group of one row, far from the others
    axes = pp.ecological({"x": x, "y": y, "g": g}, "y", "x", "g", latent=False, threads=1).plot().axes[0]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    ends = {label.get_text().partition("\n")[0]: label.xy for label in axes.texts}
    assert len(ends) == 4
    for across, up in ends.values():
        assert left <= across <= right and low - 1e-9 <= up <= high + 1e-9
    assert ends["within a group (model)"][0] == 1.0


def test_few_groups_two_values_and_unequal_sizes_are_spoken_of(found):
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(5), [6, 9, 12, 15, 30])
    x = 0.2 * rng.standard_normal(5)[g] + rng.standard_normal(g.size)
    y = (x + rng.standard_normal(g.size) > 0).astype(int)
    few = pp.ecological({"y": y, "x": x, "g": g}, "y", "x", "g", threads=1)
    text = repr(few)
    assert "5 groups tell little" in text
    assert "y is 0 or 1: slopes are differences of its probability" in text and "family='bernoulli'" in text
    assert "'group averages' counts each group once" in text
    assert "No corrected slope is shown" in text and few.latent is not None
    text = repr(found)
    assert "tell little" not in text and "is 0 or 1" not in text and "counts each group once" not in text
