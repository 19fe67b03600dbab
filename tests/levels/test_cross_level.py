"""Interactions across levels: which they are, slopes along group-level predictors, variance explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.design.design import build_design
from partialpool.errors import ModelError
from partialpool.levels.cross_level import cross_level
from partialpool.levels.crossing import find_crossings, root_of, split_name

DATA = Path(__file__).resolve().parents[1] / "data"
FORMULA = "mAch ~ cses * (meanses + sector) + (1 + cses | school)"
# lme4 1.1-31, lmer(mAch ~ cses * (meanses + sector) + (1 + cses | school), REML): estimates and standard errors.
LME4 = {
    "Intercept": (13.354509455, 0.2194731441), "cses": (1.302366168, 0.1725161887),
    "meanses": (5.332874273, 0.3691636979), "sector[Public]": (-1.226578692, 0.3062694226),
    "cses:meanses": (1.039232084, 0.2988944238), "cses:sector[Public]": (1.642674362, 0.2397776542),
}  # fmt: skip
# The variance of the slopes of cses by school without and with the interactions, likewise.
LME4_REDUCTION = 1 - 0.1012157397 / 0.7006643711


@pytest.fixture(scope="module")
def schools():
    return pd.read_csv(DATA / "Hsb82.csv")


@pytest.fixture(scope="module")
def fit(schools):
    return pp.fit(FORMULA, schools, seed=1, threads=1)


@pytest.fixture(scope="module")
def found(fit):
    return cross_level(fit)


def simulated(groups=60, rows=20, seed=1, gamma=0.8):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    z, x = rng.normal(size=groups), rng.normal(size=g.size)
    kind = np.array(["a", "b", "c"], dtype=object)[np.arange(groups) % 3]
    slope = 0.5 + gamma * z + 0.6 * rng.normal(size=groups)
    y = rng.normal(size=groups)[g] + slope[g] * x + rng.normal(size=g.size)
    return pd.DataFrame({"g": g, "x": x, "z": z[g], "kind": kind[g], "y": y, "slope": slope[g]})


def test_coefficients_are_those_of_lme4(found, fit):
    summary = fit.summary()
    for name, (estimate, error) in LME4.items():
        assert abs(summary.loc[name, "mean"] - estimate) < 0.1 * summary.loc[name, "sd"]
        assert summary.loc[name, "sd"] == pytest.approx(error, rel=0.05)
    table = found.table
    assert table.index.tolist() == ["cses:meanses", "cses:sector[Public]"]
    assert table["row_predictor"].tolist() == ["cses", "cses"]
    assert table["group_predictor"].tolist() == ["meanses", "sector[Public]"]
    assert table["level"].tolist() == ["school", "school"] and table["slope_varies"].tolist() == ["yes", "yes"]
    np.testing.assert_array_equal(table["mean"], summary.loc[table.index, "mean"])


def test_slopes_by_hand(found, fit, schools):
    beta = {name: fit.draws(name) for name in fit.parameters}
    by_school = schools.groupby("school").first()
    at = by_school["meanses"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).to_numpy()
    public = (by_school["sector"] == "Public").mean()
    base = beta["cses"] + public * beta["cses:sector[Public]"]
    slopes = found.slopes("cses:meanses")
    for row, value in zip(slopes.itertuples(), at, strict=True):
        draws = base + value * beta["cses:meanses"]
        assert row.at == pytest.approx(value)
        np.testing.assert_allclose([row.mean, row.sd, row.q95], [draws.mean(), draws.std(), np.quantile(draws, 0.95)])
        assert row.positive == (draws > 0).mean()
    draws = beta["cses"] + 0.3 * beta["cses:meanses"] + beta["cses:sector[Public]"]
    both = found.slopes(at={"meanses": 0.3, "sector": ["Public"]})
    assert both["mean"].item() == pytest.approx(draws.mean())
    assert found.slopes("cses:sector")["at"].tolist() == ["Catholic", "Public"]
    assert found.slopes("cses:sector[Public]").equals(found.slopes("cses:sector"))
    assert len(found.slopes()) == 7


def test_groups_own_slopes(found, fit, schools):
    groups = found.groups
    effects = fit.groups()
    effects = effects[effects["term"] == "cses"]
    summary = fit.summary()["mean"]
    z = schools.groupby(schools["school"].astype(str)).first().loc[groups["group"].astype(str)]
    public = (z["sector"] == "Public").to_numpy(dtype=float)
    expected = summary["cses"] + summary["cses:meanses"] * z["meanses"].to_numpy()
    expected = expected + summary["cses:sector[Public]"] * public
    error = 5 * groups["sd"] / np.sqrt(len(fit.result.draws_beta))
    assert (np.abs(groups["expected"] - expected) < error).all()
    assert (np.abs(groups["mean"] - (expected + effects["mean"].to_numpy())) < error).all()
    draws = fit.draws("cses") + z["meanses"].iloc[3] * fit.draws("cses:meanses")
    draws = draws + public[3] * fit.draws("cses:sector[Public]") + fit.draws(f"school[{groups['group'][3]},cses]")
    np.testing.assert_allclose(groups.loc[3, ["q05", "q95"]].astype(float), np.quantile(draws, [0.05, 0.95]))


def test_variance_explained(found, fit, schools):
    by_school = schools.groupby("school").first()
    added = np.outer(fit.draws("cses:meanses"), by_school["meanses"])
    added = added + np.outer(fit.draws("cses:sector[Public]"), by_school["sector"] == "Public")
    variance = added.var(axis=1, ddof=1)
    share = variance / (variance + fit.draws("sd(cses|school)") ** 2)
    row = found.explained.set_index("by").loc["all"]
    np.testing.assert_allclose([row["mean"], row["sd"], row["q50"]], [share.mean(), share.std(), np.median(share)])
    assert found.explained["by"].tolist() == ["meanses", "sector", "all"]
    assert found.explained["q95"].max() <= 1


def test_reduction_against_the_model_without(found):
    other = found.without()
    assert other.parameters[:5] == ("Intercept", "cses", "meanses", "sector[Public]", "sd(Intercept|school)")
    assert found.without() is other
    reduction = found.reduction()
    assert reduction["reduction"].item() == pytest.approx(LME4_REDUCTION, abs=0.08)
    assert found.without(seed=3, draws=50).draws("cses").shape == (50,)


def test_a_known_share_is_found():
    data = simulated(groups=200, rows=15)
    found = cross_level(pp.fit("y ~ x * z + (1 + x | g)", data, seed=1, threads=1))
    truth = 0.64 * data.groupby("g")["z"].first().var() / (0.64 * data.groupby("g")["z"].first().var() + 0.36)
    row = found.explained.iloc[0]
    assert row["q05"] < truth < row["q95"] and row["sd"] < 0.06
    own = found.groups
    truth = data.groupby("g")["slope"].first().to_numpy()
    assert 0.83 < ((own["q05"] < truth) & (truth < own["q95"])).mean() < 0.96


def test_a_user_prior_holds_in_the_refit():
    data = simulated()
    fit = pp.fit(
        "y ~ x * z + (1 + x | g)", data, seed=1, threads=1, priors={"beta": pp.Normal(0, 3), "x:z": "normal(0, 1)"}
    )
    priors = cross_level(fit).without().model.priors
    assert str(priors["x"]) == "Normal(0, 3)" and "x:z" not in priors


def test_a_prior_of_all_coefficients_of_which_the_refit_has_none_left():
    priors = {"x": pp.Normal(0, 1), "beta": pp.Normal(0, 3)}
    fit = pp.fit("y ~ x + x:z + (1 + x | g)", simulated(), seed=1, threads=1, priors=priors)
    assert str(cross_level(fit).without().model.priors["x"]) == "Normal(0, 1)"
    for wrong, words in (({"sed": 1}, "without.. has no option 'sed'.*'seed'"), ({"priors": {}}, "keeps the priors")):
        with pytest.raises(ModelError, match=words):
            cross_level(fit).without(**wrong)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("y ~ x * z + (x | g)", [("x:z", ("x",), ("z",), "g")]),
        ("y ~ z:x + (x | g)", [("z:x", ("x",), ("z",), "g")]),
        ("y ~ x:kind + (1 | g)", [(f"x:kind[{k}]", ("x",), (f"kind[{k}]",), "g") for k in "abc"]),
        ("y ~ x + x:I(z^2) + (1 | g)", [("x:I(z^2)", ("x",), ("I(z^2)",), "g")]),
        ("y ~ x:C(kind) + x + (1 | g)", [(f"x:C(kind)[{k}]", ("x",), (f"C(kind)[{k}]",), "g") for k in "bc"]),
        ("y ~ x:z:kind + x + (1 | g)", [(f"x:z:kind[{k}]", ("x",), ("z", f"kind[{k}]"), "g") for k in "abc"]),
        ("y ~ x:w:z + (1 | g)", [("x:w:z", ("x", "w"), ("z",), "g")]),
        ("y ~ x:np.exp(z) + (1 | g)", [("x:np.exp(z)", ("x",), ("np.exp(z)",), "g")]),
        ("y ~ x:poly(z, 2) + (1 | g)", [(f"x:poly(z, 2)[{k}]", ("x",), (f"poly(z, 2)[{k}]",), "g") for k in (1, 2)]),
        ("y ~ x * w + z:kind + (1 | g)", []),
        ("y ~ x:z + (1 | top/g)", [("x:z", ("x",), ("z",), "top:g")]),
        ("y ~ x:t + (1 | top/g)", [("x:t", ("x",), ("t",), "top")]),
        ("y ~ z:t + (1 | top/g)", [("z:t", ("z",), ("t",), "top")]),
        ("y ~ x:z:t + (1 | top/g)", [("x:z:t", ("x", "z"), ("t",), "top"), ("x:z:t", ("x",), ("z", "t"), "top:g")]),
        ("y ~ z:i + (1 | g) + (1 | item)", [("z:i", ("i",), ("z",), "g"), ("z:i", ("z",), ("i",), "item")]),
        ("y ~ x:`z score` + (x | g)", [("x:z score", ("x",), ("z score",), "g")]),
        (
            "y ~ within(x|g) * between(x|g) + (1 | g)",
            [("within(x|g):between(x|g)", ("within(x|g)",), ("between(x|g)",), "g")],
        ),
    ],
)
def test_which_interactions_cross_levels(formula, expected):
    data = simulated(groups=24, rows=8)
    rng = np.random.default_rng(2)
    data["w"], data["z score"] = rng.normal(size=len(data)), data["z"]
    data["top"] = data["g"] // 4
    data["t"] = rng.normal(size=6)[data["top"]]
    data["item"] = np.tile(np.arange(8), 24)
    data["i"] = rng.normal(size=8)[data["item"]]
    design = build_design(formula, data)
    crossings, unread = find_crossings(design)
    assert not unread
    got = [(c.name, c.row_parts, c.group_parts, design.factors[c.factor].name) for c in crossings]
    assert got == expected
    for crossing in crossings:
        rows = design.factors[crossing.factor].codes
        whole = design.V[:, design.x_columns[crossing.position]]
        part = crossing.values.prod(axis=0)[rows]
        ratio = np.bincount(rows, whole * part) / np.maximum(np.bincount(rows, part**2), 1e-300)  # 0 where part is
        assert np.isfinite(ratio).all()


@given(st.lists(st.sampled_from(["x", "within(a|b:c)", "f[a:b]", "I(x ** 2)", "poly(x, 2)[1]", "C(k)[u]"]), min_size=1))
@settings(max_examples=50, deadline=None)
def test_names_are_cut_outside_brackets(parts):
    assert split_name(":".join(parts)) == tuple(parts)


def test_roots():
    assert [root_of(p) for p in ("x", "f[a]", "poly(x, 2)[1]", "I(x[0])")] == ["x", "f", "poly(x, 2)", "I(x[0])"]


def test_a_curve_of_several_columns():
    data = simulated()
    fit = pp.fit("y ~ x * poly(z, 2) + (1 + x | g)", data, seed=1, threads=1)
    found = cross_level(fit)
    assert [m.kind for m in found.families[0].moderators] == ["curve"]
    at = float(data["z"].iloc[0]), 0.123
    slopes = found.slopes("x:z", at=at)["mean"]
    # the same by predictions one unit of x apart, of which the mean is over the nodes and not over draws
    rows = pd.DataFrame({"x": [0.0, 1.0] * 2, "z": np.repeat(at, 2), "g": 0})
    mean = fit.predict(rows, effects="none", kind="linear").mean
    np.testing.assert_allclose(slopes, [mean[1] - mean[0], mean[3] - mean[2]], atol=0.01)


def test_without_a_slope_that_varies_it_says_so():
    found = cross_level(pp.fit("y ~ x:kind + z + (1 | g)", simulated(), seed=1, threads=1))
    assert found.table["slope_varies"].unique().tolist() == ["no"]
    assert "Write (1 + x | g)." in repr(found) and "too small" in repr(found)
    assert found.explained.empty and found.reduction().empty
    assert (found.groups["mean"] == found.groups["expected"]).all()
    assert found.slopes()["at"].tolist() == ["a", "b", "c"]
    assert "x" in found.without().parameters  # the slope that the categories shared
    found.plot()


def test_slopes_that_do_not_vary_are_told_together_with_those_that_do():
    text = repr(cross_level(pp.fit("y ~ x * z + I(x^2) * z + x:kind + (1 + x | g)", simulated(), seed=1, threads=1)))
    assert "no slope of I(x^2) that varies by g" in text and "Write (1 + x + I(x^2) | g)." in text
    text = repr(cross_level(pp.fit("y ~ poly(x, 2) * z + (1 | g)", simulated(), seed=1, threads=1)))
    assert text.count("no slopes of poly(x, 2)[1] and poly(x, 2)[2] that vary by g") == 1
    assert "Write (1 + poly(x, 2) | g)." in text


def test_categories_keep_their_order():
    data = simulated()
    data["kind"] = pd.Categorical(data["kind"], categories=["c", "a", "b"], ordered=True)
    found = cross_level(pp.fit("y ~ x * kind + (1 + x | g)", data, seed=1, threads=1))
    assert found.slopes()["at"].tolist() == ["c", "a", "b"]
    assert [tick.get_text() for tick in found.plot().axes[0].get_xticklabels()] == ["c", "a", "b"]


def test_other_families_and_their_scale():
    data = simulated(groups=40, rows=10)
    data["pass"] = (data["y"] > 0).astype(int)
    found = cross_level(pp.fit("pass ~ x * z + (1 + x | g)", data, family="bernoulli", seed=1, threads=1))
    assert "logit link" in repr(found) and found.table["mean"].item() > 0
    assert len(found.groups) == 40


def test_saved_and_loaded(found, fit, tmp_path):
    fit.save(tmp_path / "fit.pp")
    again = cross_level(pp.load(tmp_path / "fit.pp"))
    pd.testing.assert_frame_equal(again.slopes(), found.slopes())
    pd.testing.assert_frame_equal(again.groups, found.groups)
    fit.save(tmp_path / "bare.pp", data=False)
    with pytest.raises(ModelError, match="needs the rows"):
        cross_level(pp.load(tmp_path / "bare.pp"))


def test_mistakes(found, schools):
    with pytest.raises(ModelError, match="Did you mean 'cses:sector'"):
        found.slopes("cses:sectr")
    with pytest.raises(ModelError, match="no category 'Private'"):
        found.slopes("cses:sector", at=["Private"])
    with pytest.raises(ModelError, match="is a number"):
        found.slopes("cses:meanses", at=["high"])
    with pytest.raises(ModelError, match="Say along which"):
        found.slopes(at=[0.0, 1.0])
    with pytest.raises(ModelError, match="does not depend on 'size'"):
        found.slopes(at={"size": 3})
    with pytest.raises(ModelError, match=r"no interaction across levels.*\(1 \+ cses \| school\)"):
        cross_level(pp.fit("mAch ~ cses + meanses + (1 | school)", schools, seed=1, threads=1))
    with pytest.raises(ModelError, match="has none"):
        cross_level(pp.fit("mAch ~ cses * meanses", schools, seed=1, threads=1))


def test_plot_and_text(found):
    figure = found.plot()
    assert len(figure.axes) == 2
    assert len(found.plot("cses:meanses").axes) == 1
    with pytest.raises(ModelError, match="2 panels"):
        found.plot(ax=figure.axes[0])
    text = repr(found)
    assert "The slope of cses within groups of school depends on their meanses: cses:meanses is 1.0" in text
    assert "meanses and sector account for 8" in text
    assert "<table" in found._repr_html_()


def test_how_sure_it_is_that_a_slope_depends_on_something():
    data = simulated(gamma=0.0)
    text = repr(cross_level(pp.fit("y ~ x * z + (1 + x | g)", data, seed=1, threads=1)))
    assert "The data do not say whether the slope of x within groups of g depends on their z: x:z is " in text
    for formula in ("y ~ x * kind + (1 + x | g)", "y ~ kind + x:kind + (1 + x | g)"):  # categories alike, slopes not 0
        text = repr(cross_level(pp.fit(formula, data, seed=1, threads=1)))
        assert "depends on their kind: it may well be the same for all." in text
    data["y"] += data["x"] * (data["kind"] == "b")
    for formula in ("y ~ x * kind + (1 + x | g)", "y ~ kind + x:kind + (1 + x | g)"):
        text = repr(cross_level(pp.fit(formula, data, seed=1, threads=1)))
        assert "The slope of x within groups of g depends on their kind: that it is the same" in text
    text = repr(cross_level(pp.fit("y ~ x * z * kind + (1 + x | g)", data, seed=1, threads=1)))
    assert "depends on their z and kind together" in text
