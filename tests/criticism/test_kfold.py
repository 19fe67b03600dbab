"""Folds, and K-fold scores against refits by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import partialpool as pp
from partialpool.criticism.compare import compare
from partialpool.criticism.kfold import fold_scores, make_folds
from partialpool.errors import ModelError

OPTIONS: dict[str, Any] = {"seed": 1, "threads": 1, "progress": False}
PRIORS = {
    "Intercept": pp.Normal(250, 100), "Days": pp.Normal(0, 30), "sd(Subject)": pp.HalfNormal(60),
    "sigma": pp.HalfNormal(60),
}  # fmt: skip
FORMULA = "Reaction ~ Days + (1 | Subject)"


@cache
def fits() -> dict[str, Any]:
    data = pp.datasets.load("sleepstudy")
    flat = {name: prior for name, prior in PRIORS.items() if name != "sd(Subject)"}
    return {
        "groups": pp.fit(FORMULA, data, priors=PRIORS, **OPTIONS),
        "none": pp.fit("Reaction ~ Days", data, priors=flat, **OPTIONS),
    }


def test_folds() -> None:
    codes = fits()["groups"].model.design.factors[0].codes
    rows = make_folds(fits(), 7, None, None, 3)
    assert np.bincount(rows.fold).tolist() == [26] * 5 + [25] * 2
    even = make_folds(fits(), 5, "stratified", None, 3)
    assert all(np.bincount(even.fold[codes == g], minlength=5).tolist() == [2] * 5 for g in range(18))
    whole = make_folds(fits(), 6, "groups", "Subject", 3)
    assert all(len(set(whole.fold[codes == g])) == 1 for g in range(18)) and whole.count == 6
    assert make_folds(fits(), 7, "rows", None, 3).fold.tolist() == rows.fold.tolist()
    assert make_folds(fits(), 7, "rows", None, 4).fold.tolist() != rows.fold.tolist()


@pytest.mark.parametrize("by", ["rows", "groups"])
def test_scores_are_those_of_refits_by_hand(by: str) -> None:
    data = pp.datasets.load("sleepstudy").reset_index(drop=True)
    folds = make_folds(fits(), 3, by, None, 1)
    scores = compare(fits(), "kfold", folds=3, by=by, seed=1, threads=1).pointwise
    test = np.flatnonzero(folds.fold == 0)
    train, held = data.drop(index=test), data.loc[test]
    fit = pp.fit(FORMULA, train, priors=PRIORS, **(OPTIONS | {"seed": 9}))
    groups = "error" if by == "rows" else "sample"
    drawn = fit.predict(held, kind="linear", new_groups=groups).draws
    y, sigma = held["Reaction"].to_numpy(dtype=float), fit.draws("sigma")[:, None]
    logs = -0.5 * np.log(2 * np.pi * sigma**2) - 0.5 * ((y - drawn) / sigma) ** 2
    expected = np.log(np.exp(logs).mean(axis=0))
    if by == "rows":
        assert scores["groups"].to_numpy()[test] == pytest.approx(expected, abs=0.1)
        assert scores["groups"].to_numpy()[test].sum() == pytest.approx(expected.sum(), abs=0.4)
    else:
        labels = held["Subject"].astype(str).to_numpy()
        by_hand = {g: expected[labels == g].sum() for g in np.unique(labels)}
        own = scores["groups"].loc[list(by_hand)]
        assert own.to_numpy() == pytest.approx(list(by_hand.values()), abs=0.5)
        assert len(scores) == 18


def test_no_result_depends_on_threads() -> None:
    folds = make_folds(fits(), 3, None, None, 1)
    one = fold_scores(fits(), folds, seed=2, threads=1, progress=False)
    two = fold_scores(fits(), folds, seed=2, threads=2, progress=False)
    assert all((one[name] == two[name]).all() for name in one)


def test_bad_input() -> None:
    with pytest.raises(ModelError, match="by='groups', factor='Subject'"):
        compare(fits(), "kfold", by="Subject")
    with pytest.raises(ModelError, match="Did you mean 'groups'"):
        compare(fits(), "kfold", by="group")
    with pytest.raises(ModelError, match="No model has the grouping factor 'Sub'"):
        compare(fits(), "kfold", by="groups", factor="Sub")
    for by in (None, "rows"):
        with pytest.raises(ModelError, match="has no part in folds of rows at random: write by='groups'"):
            compare(fits(), "kfold", by=by, factor="Subject")
    with pytest.raises(ModelError, match="from 2 to the 180 rows"):
        compare(fits(), "kfold", folds=181)
    alone = {"a": fits()["none"], "b": fits()["none"]}
    with pytest.raises(ModelError, match="the models have none"):
        compare(alone, "kfold", by="stratified")


def test_a_fold_that_cannot_be_fitted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import partialpool.criticism.kfold as module

    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelError("It cannot be fitted.")

    monkeypatch.setattr(module, "fit_model", refuse)
    with pytest.raises(ModelError, match=r"could not be fitted without fold \d: It cannot"):
        compare(fits(), "kfold", folds=2, threads=1)
