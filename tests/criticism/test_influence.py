"""Groups left out: weights against refits, downdated coefficients against the other rows' own."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import partialpool as pp
from partialpool.criticism.groups_left_out import trusted
from partialpool.criticism.influence import influence
from partialpool.criticism.without import Coefficients, _independent
from partialpool.errors import ModelError

CASES = {
    "sleepstudy": ("Reaction ~ Days + (Days | Subject)", "gaussian", "Subject"),
    "cbpp": ("incidence | trials(size) ~ C(period) + (1 | herd)", "binomial", "herd"),
    "Penicillin": ("diameter ~ 1 + (1 | plate) + (1 | sample)", "gaussian", "sample"),
    "Pastes": ("strength ~ 1 + (1 | batch / cask)", "gaussian", "batch"),
}


@cache
def fitted(name: str) -> Any:
    formula, family, _ = CASES[name]
    return pp.fit(formula, pp.datasets.load(name), family=family, seed=1, threads=1)


@cache
def found(name: str) -> Any:
    return influence(fitted(name), CASES[name][2])


def without(name: str, group: str) -> Any:
    fit, factor = fitted(name), CASES[name][2]
    own = next(f for f in fit.model.design.factors if f.name == factor)
    kept = np.flatnonzero(own.labels[own.codes].astype(str) != group)
    return fit.model.take_rows(kept).fit(seed=7, threads=1)


@pytest.mark.parametrize("name", list(CASES))
def test_weights_give_what_refits_give(name: str) -> None:
    answer, fit = found(name), fitted(name)
    base, p = fit.summary(), len(fit.model.coefficients.names)
    for group in (answer.table.index[0], answer.table.index[len(answer.table) // 2]):
        other = without(name, group).summary()
        expected = np.concatenate([other["mean"][:p], other["q50"][p:]])
        own = answer.estimates.loc[group]
        difference = (own.xs("location", level=1).to_numpy() - expected) / base["sd"].to_numpy()
        assert np.abs(difference).max() < 0.1, (group, difference)
        sds = own.xs("sd", level=1).to_numpy()
        np.testing.assert_allclose(sds, other["sd"], rtol=0.12)
        if fit.model.exact:
            np.testing.assert_allclose(sds[:p], other["sd"][:p], rtol=0.03)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["sleepstudy", "Pastes", "mixture"])
def test_downdated_coefficients_are_those_of_the_other_rows(name: str, flat: bool) -> None:
    formula, _, factor = CASES["sleepstudy" if name == "mixture" else name]
    data = pp.datasets.load("sleepstudy" if name == "mixture" else name)
    priors: dict[str, Any] = {"Days": "StudentT(3, 0, 5)"} if name == "mixture" else {}
    if flat:
        priors["Intercept"] = pp.Flat()
    model = pp.Model.from_formula(formula, data, priors=priors)
    f = [own.name for own in model.design.factors].index(factor)
    theta = 0.3 * np.random.default_rng(1).normal(size=(4, model.hyperparameters.size)) + 1.0
    assert _independent(model, f)
    rows = np.flatnonzero(model.design.factors[f].codes == 2)
    nodes = np.array([0, 2, 3])
    own = Coefficients(model, theta, True).without(rows, nodes)
    other = Coefficients(model, theta, False).without(rows, nodes)
    np.testing.assert_allclose(own.mean, other.mean, rtol=1e-7)
    np.testing.assert_allclose(own.sd, other.sd, rtol=1e-7)


def test_crossed_groups_are_not_independent() -> None:
    model = fitted("Penicillin").model
    assert not _independent(model, 0)
    assert not _independent(model, 1)


def test_a_group_that_carries_the_conclusion_is_named() -> None:
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(12), 6)
    x = rng.normal(size=g.size)
    y = -0.15 * x + 0.5 * rng.normal(size=12)[g] + rng.normal(size=g.size)
    x[g == 4] = np.linspace(4, 8, 6)
    y[g == 4] = np.linspace(4, 9, 6)
    fit = pp.fit("y ~ x + (1 | g)", pd.DataFrame({"y": y, "x": x, "g": [f"group {k}" for k in g]}), seed=1)
    answer = influence(fit, conclusion="x > 0")
    assert answer.table.index[0] == "group 4"
    assert answer.influential[0] == "group 4"
    text = " ".join(answer.sentences)
    assert "Without g group 4 x changes its sign." in text
    assert "hangs on single groups" in text
    assert answer.table.loc["group 4", "probability"] < 0.5 < answer.estimates.loc["all groups"].iloc[0] + 1


def test_a_conclusion_without_each_group() -> None:
    answer = influence(fitted("sleepstudy"), conclusion="Days > 9")
    for group in ("308", "335"):
        other = without("sleepstudy", group).probability("Days > 9")
        assert answer.table.loc[group, "probability"] == pytest.approx(other, abs=0.04)


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_the_share_of_a_coefficient_above_zero_is_that_of_a_refit(family: str) -> None:
    name = "sleepstudy" if family == "gaussian" else "cbpp"
    answer, group = found(name), found(name).table.index[0]
    other = without(name, group)
    for own, fit in ((answer._base, fitted(name)), (answer, other)):
        shares = own.positive if own is answer._base else answer._positive[0]
        for share, coefficient in zip(shares, fit.model.coefficients.names, strict=True):
            assert share == pytest.approx(fit.probability(f"{coefficient} > 0"), abs=0.02)


def test_intervals_that_hardly_touch_zero_are_not_told() -> None:
    data = pp.datasets.load("eight_schools")
    answer = influence(pp.fit("y | se(sigma) ~ 1 + (1 | school)", data, seed=1, threads=1), conclusion="Intercept > 0")
    # P is 0.950 with all schools, 0.967 without E, 0.93 without B
    assert answer._base.positive[0] == pytest.approx(0.95, abs=0.005)
    assert "Without school G, A or B the 90% interval of Intercept reaches over 0" in " ".join(answer.sentences)
    assert "no single group turns the conclusion" in " ".join(answer.sentences)


def test_a_coefficient_that_one_group_alone_tells_of() -> None:
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(10), 6)
    y = 2 + 0.5 * rng.normal(size=10)[g] + rng.normal(size=60)
    data = pd.DataFrame({"y": y, "z": np.where(g == 9, "b", "a"), "g": g.astype(str)})
    fit = pp.fit("y ~ z + (1 | g)", data, seed=1, threads=1)
    answer = influence(fit)
    other = fit.model.take_rows(np.flatnonzero(g != 9)).fit(seed=3, threads=1).summary().loc["z[b]"]
    location, sd = answer.estimates.loc["9", "z[b]"]
    assert location == pytest.approx(other["mean"], abs=0.03 * fit.summary().loc["z[b]", "sd"])
    assert sd == pytest.approx(other["sd"], rel=1e-3)
    assert sd == pytest.approx(fit.model.priors["z[b]"].parameters["sigma"], rel=0.05)
    assert "Without g 9 the data say next to nothing of z[b]" in " ".join(answer.sentences)


def test_heavy_weights_need_a_larger_sample() -> None:
    # of a crossed factor with 4 groups: k = 0.64 and 286 draws' worth were 0.4 posterior sds from a refit
    assert not trusted(0.64, 286)
    assert trusted(0.64, 450)
    assert trusted(0.3, 150)
    assert not trusted(0.3, 90)
    assert not trusted(0.75, 4000)


def test_what_weights_cannot_do_is_refitted() -> None:
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(8), 5)
    effects = np.array([0.1, -0.2, 0.0, 0.2, -0.1, 0.1, 0.0, 15.0])
    data = pd.DataFrame({"y": effects[g] + 0.5 * rng.normal(size=g.size), "g": g.astype(str)})
    fit = pp.fit("y ~ 1 + (1 | g)", data, seed=1, threads=1)
    answer = influence(fit)
    assert answer.table.index[0] == "7"
    assert answer.table.loc["7", "how"] == "refitted"
    kept = np.flatnonzero(data["g"].to_numpy() != "7")
    other = fit.model.take_rows(kept).fit(seed=3).summary()
    own = answer.estimates.loc["7"].xs("location", level=1)
    assert own["sd(Intercept|g)"] == pytest.approx(other.loc["sd(Intercept|g)", "q50"], abs=0.05)
    assert "refitted where these fail" in " ".join(answer.sentences)


def test_what_is_printed_and_drawn() -> None:
    answer = found("sleepstudy")
    assert repr(answer).startswith("Without one group of Subject")
    assert isinstance(answer.plot(), Figure)
    assert isinstance(answer.plot("Days"), Figure)
    assert len({panel.get_xlim() for panel in answer.plot().axes}) == 1
    with pytest.raises(ModelError, match="no parameter"):
        answer.plot("Dayz")
    names = list(fitted("sleepstudy").parameters)
    assert list(answer.table.columns[-len(names) :]) == names


def test_impossible_requests_are_refused() -> None:
    fit = fitted("sleepstudy")
    with pytest.raises(ModelError, match="no grouping factor 'Subjekt'"):
        influence(fit, "Subjekt")
    with pytest.raises(ModelError, match="no parameter"):
        influence(fit, conclusion="Dais > 5")
    with pytest.raises(ModelError, match="no parameter"):
        influence(fit, conclusion="Subject[308,Days] > 5")
    plain = pp.fit("Reaction ~ Days", pp.datasets.load("sleepstudy"), seed=1)
    with pytest.raises(ModelError, match="this model has none"):
        influence(plain)
