"""`compare`: its numbers by hand, its sentences, and what it refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.criticism.compare import compare
from partialpool.criticism.loo import loo
from partialpool.errors import DataError, ModelError

OPTIONS: dict[str, Any] = {"seed": 1, "threads": 1, "progress": False}


def fitted(formula: str, data: Any = None, **more: Any) -> Any:
    return pp.fit(formula, pp.datasets.load("sleepstudy") if data is None else data, **(OPTIONS | more))


@cache
def fits() -> dict[str, Any]:
    return {
        "one slope": fitted("Reaction ~ Days + (1 | Subject)"),
        "slopes": fitted("Reaction ~ Days + (Days | Subject)"),
        "none": fitted("Reaction ~ Days"),
    }


@pytest.mark.parametrize("criterion", ["waic", "dic", "loo"])
def test_the_table_by_hand(criterion: str) -> None:
    found = compare(fits(), criterion, threads=1)
    points, table = found.pointwise, found.table
    totals = points.sum()
    assert table.index.tolist() == totals.sort_values(ascending=False).index.tolist() == ["slopes", "one slope", "none"]
    for name, row in table.iterrows():
        apart = points[name] - points["slopes"]
        assert row["elpd"] == pytest.approx(totals[name])
        assert row["se"] == pytest.approx(np.sqrt(180 * points[name].var()))
        assert row["difference"] == pytest.approx(apart.sum(), abs=1e-9)
        if name != "slopes":
            assert row["difference_se"] == pytest.approx(np.sqrt(180 * apart.var()))
    assert np.isnan(table.loc["slopes", "difference_se"])
    assert table["stacking"].sum() == pytest.approx(1) and table["pseudo_bma"].sum() == pytest.approx(1)
    text = repr(found)
    assert "'slopes' predicts better than 'none'" in text
    assert found._repr_html_().startswith("<div>") and found.plot() is not None


def test_each_criterion_is_that_of_the_fits() -> None:
    left = compare(fits(), "loo", threads=1)
    own = loo(fits()["slopes"], threads=1)
    assert left.table.loc["slopes", "elpd"] == pytest.approx(own.elpd, abs=1e-9)
    assert left.table.loc["slopes", "mc_error"] == pytest.approx(own.mc_error)
    two = {name: fits()[name] for name in ("slopes", "one slope")}
    groups = compare(two, "logo", threads=1)
    assert len(groups.pointwise) == 18 and "18 groups of Subject are few" in repr(groups)
    marginal = compare(two, "waic", factor="Subject")
    assert len(marginal.pointwise) == 18
    from partialpool.criticism.dic import dic
    from partialpool.criticism.waic import waic

    assert marginal.table.loc["slopes", "elpd"] == pytest.approx(waic(two["slopes"]).table.loc["marginal", "elpd"])
    deviance = compare(two, "dic").table
    assert -2 * deviance.loc["slopes", "elpd"] == pytest.approx(dic(two["slopes"]).table.loc["conditional", "dic"])
    assert deviance.loc["slopes", "p_eff"] == pytest.approx(dic(two["slopes"]).table.loc["conditional", "p_D"])


def test_information_criteria_and_leaving_out_agree_where_they_should() -> None:
    two = {"a": fits()["none"], "b": fitted("Reaction ~ 1")}
    by = {criterion: compare(two, criterion).table["difference"]["b"] for criterion in ("loo", "waic", "dic")}
    assert by["waic"] == pytest.approx(by["loo"], abs=0.3) and by["dic"] == pytest.approx(by["loo"], abs=0.5)


def test_new_data() -> None:
    data = pp.datasets.load("sleepstudy").reset_index(drop=True)
    late = data["Days"] >= 8
    two = {
        "one slope": fitted("Reaction ~ Days + (1 | Subject)", data[~late]),
        "slopes": fitted("Reaction ~ Days + (Days | Subject)", data[~late]),
    }
    found = compare(two, "log_score", data=data[late])
    fit = two["slopes"]
    drawn = fit.predict(data[late], kind="linear").draws
    sigma = fit.draws("sigma")[:, None]
    y = data.loc[late, "Reaction"].to_numpy(dtype=float)
    logs = -0.5 * np.log(2 * np.pi * sigma**2) - 0.5 * ((y - drawn) / sigma) ** 2
    assert found.pointwise["slopes"].to_numpy() == pytest.approx(np.log(np.exp(logs).mean(axis=0)), abs=1e-9)
    strange = data[late].assign(Subject="someone else")
    assert "36 rows of new groups" in repr(compare(two, "log_score", data=strange))
    with pytest.raises(DataError, match="Reaction"):
        compare(two, "log_score", data=data[late].drop(columns="Reaction"))
    with pytest.raises(ModelError, match="give data="):
        compare(two, "log_score")


def test_new_counts_out_of_trials() -> None:
    data = pp.datasets.load("cbpp")
    two = {
        name: fitted(f"incidence | trials(size) ~ {text} + (1 | herd)", data.iloc[:40], family="binomial", draws=500)
        for name, text in (("a", "period"), ("b", "1"))
    }
    assert len(compare(two, "log_score", data=data.iloc[40:]).pointwise) == 16
    with pytest.raises(DataError, match=r"trials\(size\)"):
        compare(two, "log_score", data=data.iloc[40:].drop(columns="size"))
    with pytest.raises(DataError, match="impossible for 'a' in rows 40, 41"):
        compare(two, "log_score", data=data.iloc[40:].assign(incidence=1000))


def test_small_differences_are_called_small() -> None:
    two = {"correlated": fits()["slopes"], "independent": fitted("Reaction ~ Days + (Days || Subject)")}
    text = repr(compare(two, "loo", threads=1))
    assert "Less than 4 behind 'independent', which is small: 'correlated' by" in text


def test_many_models_and_the_same_model_twice() -> None:
    found = compare({f"m{k}": fits()["none"] for k in range(12)}, "waic")
    assert "Of 12 models the best looks better than it is" in repr(found)
    assert found.table["stacking"].tolist() == pytest.approx([1 / 12] * 12)
    assert found.table["difference_se"].iloc[1:].tolist() == [0.0] * 11


def refused(**changes: Any) -> Any:
    data = pp.datasets.load("sleepstudy").reset_index(drop=True)
    if "missing" in changes:
        data["x"] = np.where(data.index.isin([3, 77]), np.nan, data.index)
        return fitted("Reaction ~ x", data)
    if "first" in changes:
        return fitted("Reaction ~ Days", data.iloc[:100])
    if "order" in changes:
        return fitted("Reaction ~ Days", data.iloc[::-1])
    if "value" in changes:
        data.loc[5, "Reaction"] = 1.0
        return fitted("Reaction ~ Days", data)
    if "weights" in changes:
        return fitted("Reaction | weights(w) ~ Days", data.assign(w=np.where(data.index == 7, 2.0, 1.0)))
    raise AssertionError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"'a' has 2 rows that 'b' lacks \(rows 3 and 77\).*missing values of 'x'"),
        ("first", r"80 rows that 'b' lacks \(rows 100, 101, 102, 103, 104 and 75 more\)"),
        ("order", "the same rows in different orders"),
        ("value", r"different responses in 1 of 180 rows \(row 5\)"),
        ("weights", r"different weights in 1 of 180 rows \(row 7\)"),
    ],
)
def test_other_rows_and_responses_are_refused(change: str, message: str) -> None:
    a = fitted("Reaction ~ Days", pp.datasets.load("sleepstudy").reset_index(drop=True))
    with pytest.raises(DataError, match=message):
        compare({"a": a, "b": refused(**{change: True})})


def test_other_labels_of_the_same_rows_are_not() -> None:
    data = pp.datasets.load("sleepstudy")
    relabelled = data.set_index(np.array([f"r{k}" for k in range(180)]))
    assert compare({"a": fitted("Reaction ~ Days", data), "b": fitted("Reaction ~ 1", relabelled)}, "waic") is not None


def test_rows_under_other_labels_are_compared_row_by_row() -> None:
    data = pp.datasets.load("sleepstudy")
    relabelled = data.set_index(np.array([f"r{k}" for k in range(180)]))
    two = {"a": fits()["none"], "b": fitted("Reaction ~ 1", relabelled)}
    found = compare(two, "loo", threads=1)
    assert found.pointwise.shape == (180, 2) and found.pointwise.index.equals(data.index)
    assert found.pointwise["b"].to_numpy() == pytest.approx(loo(two["b"]).table["elpd"].to_numpy())


def test_groups_are_matched_by_their_names() -> None:
    """Categories in another order are the same groups: unit must meet unit."""
    data = pp.datasets.load("sleepstudy")
    names = data["Subject"].astype(str)
    turned = data.assign(Subject=pd.Categorical(names, categories=sorted(set(names))[::-1]))
    other = fitted("Reaction ~ Days + (Days | Subject)", turned)
    for criterion in ("waic", "logo"):
        same = compare({"a": fits()["one slope"], "b": fits()["slopes"]}, criterion, factor="Subject")
        apart = compare({"a": fits()["one slope"], "b": other}, criterion, factor="Subject")
        assert apart.pointwise.index.tolist() == same.pointwise.index.tolist()
        assert apart.pointwise["b"].to_numpy() == pytest.approx(same.pointwise["b"].to_numpy(), abs=0.3)
        told = [float(found.table["difference_se"].iloc[1]) for found in (apart, same)]
        assert told[0] == pytest.approx(told[1], rel=0.05)  # 37 instead of 12 where the wrong groups meet


def test_the_same_fit_twice_is_not_apart() -> None:
    found = compare({"a": fits()["none"], "b": fits()["none"]}, "waic", threads=1)
    assert found.table["difference"].tolist() == [0.0, 0.0] and found.table["difference_se"].iloc[1] == 0
    assert "'b' by less than 0.01; it predicts about as well" in repr(found)
    evidence = repr(compare({"a": fits()["none"], "b": fits()["none"]}, "marginal_likelihood", threads=1))
    assert "a Bayes factor of 1.0 (log 0.00" in evidence and "too large to tell them apart" not in evidence


def test_scores_that_are_no_numbers_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from partialpool.criticism.scores import SCORES, waic_scores

    def broken(known: Any, request: Any) -> Any:
        scored = waic_scores(known, request)
        scored.elpd.iloc[[2, 5], 1] = np.nan
        return scored

    monkeypatch.setitem(SCORES, "waic", broken)
    with pytest.raises(ModelError, match=r"no number under 'b' for 2 of 180 rows \(rows 2 and 5\)"):
        compare({"a": fits()["none"], "b": fits()["none"]}, "waic")


def test_new_rows_need_what_their_densities_need() -> None:
    schools = pp.datasets.load("eight_schools")
    two = {
        "partial": fitted("y | se(sigma) ~ 1 + (1 | school)", schools), "complete": fitted("y | se(sigma) ~ 1", schools)
    }  # fmt: skip
    with pytest.raises(DataError, match=r"lack the column of se\(sigma\), which 'partial' needs"):
        compare(two, "log_score", data=schools.drop(columns="sigma"))
    with pytest.raises(DataError, match="The new data have no rows"):
        compare(two, "log_score", data=schools.iloc[:0])
    text = repr(compare(two, "log_score", data=schools.iloc[:1]))
    assert "log score on new data: 1 row" in text and "One unit cannot tell how sure" in text
    data = schools.assign(w=[1, 2] * 4)
    weighted = {"a": fitted("y | weights(w) ~ 1", data), "b": fitted("y ~ 1", data)}
    with pytest.raises(DataError, match="give the new rows different weights"):
        compare(weighted, "log_score", data=data)
    with pytest.raises(DataError, match=r"weights\(w\), which 'a' needs"):
        compare(weighted, "log_score", data=data.drop(columns="w"))


def test_other_scales_are_refused() -> None:
    logs = fitted("log(Reaction) ~ Days")
    with pytest.raises(ModelError, match="Fit 'b' to Reaction with family='lognormal'"):
        compare({"a": fits()["none"], "b": logs})
    with pytest.raises(ModelError, match="log densities of different responses"):
        compare({"a": fits()["none"], "b": fitted("Days ~ Reaction")})
    counts = pp.datasets.load("cbpp")
    poisson = fitted("incidence ~ period", counts, family="poisson")
    with pytest.raises(ModelError, match="'p' has the probabilities of counts"):
        compare({"p": poisson, "n": fitted("incidence ~ period", counts)})
    binomial = fitted("incidence | trials(size) ~ period", counts, family="binomial")
    assert compare({"p": poisson, "b": binomial}, "waic") is not None
    lognormal = fitted("Reaction ~ Days", family="lognormal")
    assert compare({"a": fits()["none"], "b": lognormal}, "waic") is not None


def test_impossible_requests() -> None:
    a = fits()["none"]
    for wrong, message in (
        ([a, a], "takes fits by name"), ({"a": a}, "at least two fits"), ({1: a, "b": a}, "names of fits are text"),
        ({"a": a, "b": 3}, "'b' is no fit"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            compare(wrong)  # type: ignore[arg-type]
    both = {"a": a, "b": fits()["slopes"]}
    for options, message in (
        ({"criterion": "lo"}, "Did you mean 'loo'"), ({"by": "rows"}, "by= has no part in criterion='loo'"),
        ({"data": 3}, "it belongs to criterion='log_score'"), ({"factor": "Subject"}, "factor= has no part"),
        ({"folds": 5}, "folds= has no part"), ({"threads": 0}, "threads = 0"), ({"seed": -1}, "seed = -1"),
        ({"criterion": "logo"}, "the models share none"),
        ({"criterion": "logo", "factor": "Subject"}, "'a' has no groups of 'Subject'"),
        ({"criterion": "logo", "factor": "Sub"}, "No model has the grouping factor 'Sub'"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            compare(both, **options)  # type: ignore[arg-type]


def test_marginal_criteria_need_the_factor_that_is_integrated() -> None:
    data = pp.datasets.load("Pastes")
    nested = fitted("strength ~ 1 + (1 | batch / cask)", data)
    two = {"a": nested, "b": fitted("strength ~ 1 + (1 | batch)", data)}
    with pytest.raises(ModelError, match="it is the effects of 'batch:cask' that are integrated"):
        compare(two, "waic", factor="batch")


def test_a_fit_without_rows_is_refused(tmp_path: Any) -> None:
    fits()["none"].save(tmp_path / "a.pp", data=False)
    with pytest.raises(ModelError, match="of the fit 'a', needs the rows"):
        compare({"a": pp.load(tmp_path / "a.pp"), "b": fits()["none"]})


def test_rows_that_no_model_can_predict_are_left_out() -> None:
    data = pp.datasets.load("Dyestuff").assign(odd=np.arange(30) == 4).assign(x=np.arange(30.0))
    data["odd"] = data["odd"].astype(float)
    flat = {"beta": pp.Flat(), "Intercept": pp.Flat()}
    two = {name: fitted(f"Yield ~ {name} + odd", data, priors=flat) for name in ("x", "1")}
    two["1"] = fitted("Yield ~ odd", data, priors=flat)
    found = compare(two, "loo", threads=1)
    assert found.table["units"].tolist() == [29, 29] and np.isfinite(found.table["elpd"]).all()
    assert "Every model gives density 0 to row 4" in repr(found)
    alone = {"odd": two["1"], "none": fitted("Yield ~ 1", data)}
    other = compare(alone, "loo", threads=1)
    assert other.table.index[0] == "none" and other.table.loc["odd", "pseudo_bma"] == 0
    assert "'odd' gives density 0" in repr(other) and other.plot() is not None
