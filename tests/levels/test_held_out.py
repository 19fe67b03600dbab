"""Cross-validation of the three kinds of pooling, against a loop written by hand; the design of a part of the rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.design.design import build_design
from partialpool.design.subset import rows_as_new, take_rows
from partialpool.errors import ModelError
from partialpool.levels.held_out import HeldOut

PRIORS = {
    "Intercept": pp.Normal(250, 100), "Days": pp.Normal(0, 30), "sd(Intercept|Subject)": pp.HalfNormal(60),
    "sd(Days|Subject)": pp.HalfNormal(15), "sigma": pp.HalfNormal(60),
}  # fmt: skip
FORMULA = "Reaction ~ Days + (Days | Subject)"


@cache
def sleepstudy() -> Any:
    return pp.fit(FORMULA, pp.datasets.load("sleepstudy"), priors=PRIORS, seed=1)


@cache
def compared(groups: bool | str = False) -> HeldOut:
    return sleepstudy().pooling().held_out(folds=3, groups=groups, threads=1)


def log_mean(values: np.ndarray) -> np.ndarray:
    top = values.max(axis=0)
    return top + np.log(np.exp(values - top).mean(axis=0))


def log_normal(y: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return -0.5 * (np.log(2 * np.pi) + ((y - mean) / sd) ** 2) - np.log(sd)


@pytest.mark.parametrize("what", ["rows", "Subject"])
def test_against_a_loop_by_hand(what: str) -> None:
    data = pp.datasets.load("sleepstudy").reset_index(drop=True)
    rows = compared("both").rows
    rows = rows[rows["held_out"] == what]
    simple = {name: PRIORS[name] for name in ("Intercept", "Days", "sigma")}
    for fold in range(2):
        here = rows[rows["fold"] == fold]
        test = here.loc[here["pooling"] == "partial", "row"].to_numpy()
        train, held = data.drop(index=test), data.loc[test]
        y = held["Reaction"].to_numpy(dtype=float)
        for kind, formula, priors in (("partial", FORMULA, PRIORS), ("complete", "Reaction ~ Days", simple)):
            fit = pp.fit(formula, train, priors=priors, seed=5)
            new_groups = "error" if what == "rows" else "sample"
            drawn = fit.predict(held, kind="linear", new_groups=new_groups).draws
            sigma = fit.draws("sigma")[:, None]
            own = here[here["pooling"] == kind].set_index("row").loc[test]
            spread = drawn.std(axis=0) / np.sqrt(300)  # far beyond what 2,000 and 4,000 draws leave
            assert (np.abs(own["predicted"] - drawn.mean(axis=0)) < 3 * spread).all()
            density = log_mean(log_normal(y, drawn, sigma))
            # The average is known well; the density of an outlying row rests on few draws.
            assert own["log_density"].mean() == pytest.approx(density.mean(), abs=0.03)
            assert np.median(np.abs(own["log_density"] - density)) < 0.03


def test_no_pooling_is_each_groups_own_regression() -> None:
    data = pp.datasets.load("sleepstudy").reset_index(drop=True)
    rows = compared("both").rows
    here = rows[(rows["held_out"] == "rows") & (rows["fold"] == 0) & (rows["pooling"] == "none")]
    train = data.drop(index=here["row"])
    for row, predicted in list(zip(here["row"], here["predicted"], strict=True))[::5]:
        own = train[train["Subject"] == data.loc[row, "Subject"]]
        slope, intercept = np.polyfit(own["Days"], own["Reaction"].astype(float), 1)
        assert predicted == pytest.approx(intercept + slope * data.loc[row, "Days"], abs=6)  # 1,000 draws of sd 20


def test_no_pooling_of_a_new_group_is_the_mean_of_the_separate_estimates() -> None:
    data = pp.datasets.load("sleepstudy").reset_index(drop=True)
    rows = compared("both").rows
    here = rows[(rows["held_out"] == "Subject") & (rows["fold"] == 0) & (rows["pooling"] == "none")]
    assert here["new_group"].all() and not here["fell_back"].any()
    train = data.drop(index=here["row"])
    lines = [np.polyfit(own["Days"], own["Reaction"].astype(float), 1) for _, own in train.groupby("Subject")]
    slope, intercept = np.mean(lines, axis=0)
    days = data.loc[here["row"], "Days"].to_numpy()
    np.testing.assert_allclose(here["predicted"], intercept + slope * days, atol=8)


def test_every_row_is_held_out_once_and_folds_share_the_groups() -> None:
    rows = compared("both").rows
    for (_, _), own in rows.groupby(["held_out", "pooling"]):
        assert sorted(own["row"]) == list(range(180))
    spread = rows[(rows["held_out"] == "rows") & (rows["pooling"] == "partial")]
    data = pp.datasets.load("sleepstudy").reset_index(drop=True)
    counts = pd.crosstab(data.loc[spread["row"], "Subject"].to_numpy(), spread["fold"].to_numpy())
    assert counts.to_numpy().min() >= 3 and counts.to_numpy().max() <= 4
    whole = rows[(rows["held_out"] == "Subject") & (rows["pooling"] == "partial")]
    assert (
        (pd.crosstab(data.loc[whole["row"], "Subject"].to_numpy(), whole["fold"].to_numpy()) > 0)
        .sum(axis=1)
        .eq(1)
        .all()
    )


def test_of_whole_groups_no_pooling_is_never_best() -> None:
    """What stands for it takes coefficients for known, so that its density can be the highest."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(6), 10)
    data = pd.DataFrame({"y": rng.normal(size=6)[g] + rng.normal(size=60), "g": g, "x": rng.normal(size=60)})
    fit = pp.fit("y ~ C(g) + x + (0 + x | g)", data, seed=1, threads=1)
    found = fit.pooling().held_out(groups=True)
    assert found.table["log_density"].idxmax() == ("g", "none")
    assert "complete pooling are not told apart" in found.sentences[0]


def test_the_table_sums_up_the_rows() -> None:
    rows, table = compared().rows, compared().table
    own = {kind: part.sort_values("row") for kind, part in rows.groupby("pooling")}
    error = {kind: ((part["observed"] - part["predicted"]) ** 2).to_numpy() for kind, part in own.items()}
    gap = error["complete"] - error["partial"]
    line = table.loc[("rows", "complete")]
    assert line["mse"] == pytest.approx(error["complete"].mean())
    assert line["mse_difference"] == pytest.approx(gap.mean())
    assert line["mse_se"] == pytest.approx(gap.std(ddof=1) / np.sqrt(180))


def test_it_does_not_depend_on_threads_and_does_on_the_seed() -> None:
    pooling = sleepstudy().pooling()
    again = pooling.held_out(folds=3, threads=3).table
    pd.testing.assert_frame_equal(again, compared().table)
    assert not np.allclose(pooling.held_out(folds=3, seed=9).table["mse"], again["mse"])


@cache
def radon() -> HeldOut:
    return pp.fit("log_radon ~ floor + (1 | county)", pp.datasets.load("radon"), seed=1).pooling().held_out()


def test_partial_pooling_wins_on_radon() -> None:
    table = radon().table.loc["rows"]
    assert table["mse"].idxmin() == table["log_density"].idxmax() == "partial"
    worse = table["log_density_difference"] / table["log_density_se"]
    assert worse["complete"] < -3 and worse["none"] < -2
    assert table.loc["none", "new_group"] == 3  # counties of a single row
    assert "partial pooling predicts best" in repr(radon())
    assert len(radon().plot().axes) == 2


def test_counts_with_trials() -> None:
    fit = pp.fit(
        "incidence | trials(size) ~ C(period) + (1 | herd)", pp.datasets.load("cbpp"), family="binomial", seed=1
    )
    found = fit.pooling().held_out(folds=2, groups="both")
    table = found.table
    assert np.isfinite(table[["mse", "log_density"]].to_numpy()).all()
    assert table.loc[("herd", "complete"), "log_density_difference"] < 0
    assert (found.rows["predicted"] >= 0).all() and "counts" in repr(found)


def test_groups_without_a_separate_estimate_fall_back() -> None:
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"g": np.repeat(np.arange(12), 5), "y": rng.integers(0, 2, 60)})
    data.loc[data["g"] == 3, "y"] = 1
    found = pp.fit("y ~ 1 + (1 | g)", data, family="bernoulli", seed=1, draws=500).pooling().held_out(folds=3)
    rows = found.rows
    own = rows[rows["row"].isin(np.flatnonzero(data["g"] == 3))]
    none = own[own["pooling"] == "none"].set_index("row").sort_index()
    complete = own[own["pooling"] == "complete"].set_index("row").sort_index()
    assert none["fell_back"].all()
    np.testing.assert_array_equal(none["log_density"], complete["log_density"])
    assert "without a separate estimate" in repr(found)


def test_several_factors_distributional_and_weighted_models() -> None:
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"a": np.repeat(np.arange(8), 12), "b": np.tile(np.arange(6), 16), "w": rng.integers(1, 3, 96)})
    data["y"] = rng.normal(0, 1, 8)[data["a"]] + rng.normal(0, 1, 6)[data["b"]] + rng.normal(size=96)
    found = pp.fit("y ~ 1 + (1 | a) + (1 | b)", data, seed=1).pooling().held_out(folds=2, groups="b").table
    assert list(found.index) == [("b", kind) for kind in ("complete", "none (a)", "none (b)", "partial")]
    weighted = pp.fit("y | weights(w) ~ 1 + (1 | a)", data, seed=1).pooling().held_out(folds=2)
    own = weighted.rows[weighted.rows["pooling"] == "partial"]
    error = (own["observed"] - own["predicted"]) ** 2
    assert weighted.table.loc[("rows", "partial"), "mse"] == pytest.approx(np.average(error, weights=own["weight"]))
    both = pp.fit(pp.formula("y ~ 1 + (1 | a)", sigma="~ x"), data.assign(x=data["b"] / 6), seed=1, draws=500)
    assert np.isfinite(both.pooling().held_out(folds=2).table["log_density"]).all()


def test_mistakes() -> None:
    pooling = sleepstudy().pooling()
    for options, message in (
        ({"folds": 1}, "folds = 1 is not possible"),
        ({"folds": 2.5}, "folds = 2.5 is not possible"),
        ({"groups": "Subjects"}, "grouping factor. Did you mean"),
        ({"seed": -1}, "seed = -1"),
        ({"threads": 0}, "threads = 0"),
    ):
        with pytest.raises(ModelError, match=message):
            pooling.held_out(**options)
    data = pd.DataFrame({"y": np.arange(12.0) % 5, "g": np.repeat([0, 1], 6)})
    with pytest.raises(ModelError, match="it has 2"):
        pp.fit("y ~ 1 + (1 | g)", data, seed=1).pooling().held_out(folds=2, groups=True)


# -- a part of the rows -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_part_is_what_the_rows_alone_would_have_made(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 40
    data = pd.DataFrame(
        {"y": rng.normal(size=n), "x": rng.normal(size=n), "a": rng.integers(0, 6, n), "b": rng.choice(list("pqrs"), n)}
    )
    rows = np.sort(rng.choice(n, 25, replace=False))
    formula = "y ~ x + (1 + x | a) + (1 | a:b) + (1 | b)"
    whole, alone = build_design(formula, data), build_design(formula, data.iloc[rows])
    part = take_rows(whole, rows)
    np.testing.assert_array_equal(part.V, alone.V)
    for own, other in zip(part.factors, alone.factors, strict=True):
        assert own.labels.tolist() == other.labels.tolist()
        np.testing.assert_array_equal(own.codes, other.codes)
        np.testing.assert_array_equal(own.members, other.members)
        np.testing.assert_array_equal(own.sizes, other.sizes)
    rest = np.setdiff1d(np.arange(n), rows)
    new, replayed = rows_as_new(whole, part, rest), alone.replay(data.iloc[rest], response=True)
    np.testing.assert_array_equal(new.V, replayed.V)
    np.testing.assert_array_equal(new.y, replayed.y)
    for own, other in zip(new.codes, replayed.codes, strict=True):
        np.testing.assert_array_equal(own, other)
    for own, other in zip(part.replay(data.iloc[rest]).codes, replayed.codes, strict=True):
        np.testing.assert_array_equal(own, other)


def test_a_part_keeps_the_priors_and_the_centre() -> None:
    model = sleepstudy().model
    default = pp.Model.from_formula(FORMULA, pp.datasets.load("sleepstudy"))
    part = default.take_rows(np.arange(100))
    assert str(part.priors) == str(default.priors)
    np.testing.assert_array_equal(part.column_means, default.column_means)
    assert part.design.n_rows == 100 and model.design.n_rows == 180
