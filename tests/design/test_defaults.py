"""Default priors, by family: where they lie, how wide they are, and that the Gaussian ones stay what they were."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.design.defaults import prior_slots
from partialpool.design.design import build_design
from partialpool.errors import DataError
from partialpool.spec.families import resolve_family

N = 60


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    trials = rng.integers(3, 9, N)
    return pd.DataFrame(
        {
            "one": rng.integers(0, 2, N),
            "count": rng.poisson(4, N),
            "trials": trials,
            "events": rng.binomial(trials, 0.3),
            "share": rng.uniform(0.1, 0.7, N),
            "real": rng.normal(50, 10, N),
            "positive": rng.gamma(2, 40, N),
            "x": rng.normal(7, 2, N),
            "e": rng.uniform(0.5, 3, N),
            "w": rng.integers(1, 4, N),
            "f": np.tile(list("abc"), N // 3),
            "g": np.repeat(np.arange(6), N // 6),
        }
    )


def priors(formula: Any, table: pd.DataFrame, family: str) -> dict[str, str]:
    resolved = resolve_family(family)
    slots = prior_slots(build_design(formula, table, family=resolved), resolved)
    return {slot.name: str(slot.default) for slot in slots}


def test_link_scale(table: pd.DataFrame) -> None:
    sd = table.x.std()
    found = priors("one ~ x + (x|g)", table, "bernoulli")
    share = (table.one.sum() + 0.5) / (N + 1)
    assert found == {
        "Intercept": f"Normal({round(math.log(share / (1 - share)), 2):.12g}, 2.5)",
        "x": f"Normal(0, {2.5 / sd:.3g})",
        "sd(Intercept|g)": "HalfStudentT(3, 2.5)",
        "sd(x|g)": f"HalfStudentT(3, {2.5 / sd:.3g})",
        "cor(g)": "LKJ(1)",
    }


def at(formula: str, table: pd.DataFrame, family: Any) -> float:
    resolved = resolve_family(family)
    slots = prior_slots(build_design(formula, table, family=resolved), resolved)
    return float(slots[0].default.mu)  # type: ignore[attr-defined]


def test_centred_intercepts(table: pd.DataFrame) -> None:
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    t, near = table, {"abs": 0.0051}
    assert at("events | trials(trials) ~ x", t, "binomial") == pytest.approx(
        logit((t.events.sum() + 0.5) / (t.trials.sum() + 1)), **near
    )
    assert at("events | trials(trials) + weights(w) ~ x", t, "beta_binomial") == pytest.approx(
        logit(((t.w * t.events).sum() + 0.5) / ((t.w * t.trials).sum() + 1)), **near
    )
    assert at("one ~ x + offset(e)", t, "bernoulli") == pytest.approx(
        logit((t.one.sum() + 0.5) / (N + 1)) - t.e.mean(), **near
    )
    for family in ("poisson", "negative_binomial", "geometric"):
        assert at("count ~ x", t, family) == pytest.approx(math.log((t["count"].sum() + 0.5) / N), **near)
    assert at("count ~ x + offset(log(e))", t, "poisson") == pytest.approx(
        math.log((t["count"].sum() + 0.5) / t.e.sum()), **near
    )
    assert at("count | weights(w) ~ x + offset(log(e))", t, "poisson") == pytest.approx(
        math.log(((t.w * t["count"]).sum() + 0.5) / (t.w * t.e).sum()), **near
    )
    for family in ("gamma", "inverse_gaussian", "weibull", "exponential"):
        assert at("positive ~ x", t, family) == pytest.approx(math.log((t.positive.sum() + 0.5) / N), **near)
    assert at("share ~ x", t, "beta") == pytest.approx(logit(t.share.mean()), **near)
    assert at("positive ~ x", t, "lognormal") == pytest.approx(np.log(t.positive).mean(), **near)
    assert at("real ~ x", t, "student_t") == pytest.approx(t.real.mean(), abs=0.051)


def test_all_zero_counts_have_a_finite_intercept(table: pd.DataFrame) -> None:
    assert at("count ~ x", table.assign(count=0), "poisson") == pytest.approx(math.log(0.5 / N), abs=0.0051)


@pytest.mark.parametrize(("family", "values"), [("student_t", "real"), ("lognormal", "positive")])
def test_location_and_scale(table: pd.DataFrame, family: str, values: str) -> None:
    y = np.log(table[values]) if family == "lognormal" else table[values]
    found = priors(f"{values} ~ x + (1|g)", table, family)
    assert found["Intercept"].endswith(f", {2.5 * y.std():.3g})")
    assert found["x"] == f"Normal(0, {2.5 * y.std() / table.x.std():.3g})"
    assert found["sd(Intercept|g)"] == found["sigma"] == f"HalfStudentT(3, {2.5 * y.std():.3g})"
    assert found.get("nu") == ("Gamma(2, 0.1)" if family == "student_t" else None)


@pytest.mark.parametrize(
    ("family", "response", "name", "prior"),
    [
        ("negative_binomial", "count", "phi", "InverseGamma(0.4, 0.3)"),
        ("negative_binomial1", "count", "phi", "InverseGamma(0.4, 0.3)"),
        ("beta", "share", "phi", "InverseGamma(0.4, 0.3)"),
        ("beta_binomial", "events | trials(trials)", "phi", "InverseGamma(0.4, 0.3)"),
        ("gamma", "positive", "shape", "InverseGamma(0.4, 0.3)"),
        ("weibull", "positive", "shape", "InverseGamma(0.4, 0.3)"),
        ("poisson", "count", None, ""),
        ("exponential", "positive", None, ""),
    ],
)
def test_own_parameters(table: pd.DataFrame, family: str, response: str, name: str | None, prior: str) -> None:
    found = priors(f"{response} ~ x", table, family)
    assert list(found) == ["Intercept", "x", *([name] if name else [])]
    if name:
        assert found[name] == prior
        slot = pp.Model.from_formula(f"{response} ~ x", table, family=family).priors.slots[-1]
        assert slot.kind == "family"


def test_the_shape_of_the_inverse_gaussian_has_the_units_of_the_response(table: pd.DataFrame) -> None:
    found = priors("positive ~ x", table, "inverse_gaussian")
    assert found["shape"] == f"InverseGamma(0.4, {0.3 * table.positive.mean():.3g})"


def test_formula_of_sigma(table: pd.DataFrame) -> None:
    found = priors(pp.formula("real ~ x + (1|g)", sigma="~ x + (1 + x|g)"), table, "gaussian")
    plain = priors("real ~ x + (1|g)", table, "gaussian")
    slope = f"{2.5 / table.x.std():.3g}"
    assert list(plain) == ["Intercept", "x", "sd(Intercept|g)", "sigma"]
    assert {name: found[name] for name in list(plain)[:3]} == {name: plain[name] for name in list(plain)[:3]}
    assert {name: prior for name, prior in found.items() if name not in plain} == {
        "sigma.Intercept": f"Normal({math.log(table.real.std()):.2f}, 2.5)",
        "sigma.x": f"Normal(0, {slope})",
        "sd(sigma.Intercept|g)": "HalfStudentT(3, 2.5)",
        "sd(sigma.x|g)": f"HalfStudentT(3, {slope})",
        "sigma.cor(g)": "LKJ(1)",
    }
    assert "sigma" not in found


def test_formula_of_phi_and_cells(table: pd.DataFrame) -> None:
    found = priors(pp.formula("count ~ x", phi="~ 0 + f"), table, "negative_binomial")
    assert found == {
        **priors("count ~ x", table, "poisson"), **dict.fromkeys(("phi.f[a]", "phi.f[b]", "phi.f[c]"), "Normal(0, 2.5)")
    }  # fmt: skip
    student = priors(pp.formula("real ~ x", sigma="~ x"), table, "student_t")
    assert list(student) == ["Intercept", "x", "sigma.Intercept", "sigma.x", "nu"]


def test_no_intercept(table: pd.DataFrame) -> None:
    centre = math.log((table["count"].sum() + 0.5) / N)
    cells = priors("count ~ 0 + f + x", table, "poisson")
    assert cells["f[a]"] == f"Normal({centre:.2f}, 2.5)" and cells["x"] == f"Normal(0, {2.5 / table.x.std():.3g})"
    alone = priors("count ~ 0 + x", table, "poisson")
    rms = math.sqrt((table.x**2).mean())
    assert alone == {"x": f"Normal(0, {2.5 * math.hypot(centre, 1) / rms:.3g})"}


def test_units_do_not_matter_where_the_link_keeps_them(table: pd.DataFrame) -> None:
    """With an identity or inverse link, the scale of the priors is that of the response carried through the link."""
    gamma = resolve_family("gamma")
    for link, power in (("identity", 1), ("inverse", -1)):
        family = type(gamma)(link=link) if type(gamma).__name__ == "Gamma" else type(gamma)("gamma", link)
        sds = []
        for units in (1.0, 1000.0):
            design = build_design("positive ~ x", table.assign(positive=table.positive * units), family=family)
            slots = {slot.name: slot.default for slot in prior_slots(design, family)}
            sds.append(slots["x"].sigma)  # type: ignore[attr-defined]
        assert sds[1] / sds[0] == pytest.approx(1000.0**power, rel=0.01)


def test_notes_say_how_defaults_were_scaled(table: pd.DataFrame) -> None:
    model = pp.Model.from_formula("count ~ x + offset(log(e)) + (1|g)", table, family="poisson")
    assert model.priors.note("Intercept") == "at the mean of the predictors; log((sum y + 1/2) / sum exp(offset)), 2.5"
    assert model.priors.note("x") == "2.5 / sd(x)"
    model = pp.Model.from_formula("real ~ x + (x|g)", table)
    assert [model.priors.note(name) for name in ("Intercept", "x", "sd(x|g)", "sigma")] == [
        "at the mean of the predictors; mean(y), 2.5 sd(y)", "2.5 sd(y) / sd(x)", "2.5 sd(y) / sd(x)", "2.5 sd(y)"
    ]  # fmt: skip


def test_gaussian_defaults_are_those_of_the_contract() -> None:
    model = pp.Model.from_formula("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"))
    assert {name: str(prior) for name, prior in model.priors.items()} == {
        "Intercept": "Normal(298.5, 141)", "Days": "Normal(0, 48.9)", "sd(Intercept|Subject)": "HalfStudentT(3, 141)",
        "sd(Days|Subject)": "HalfStudentT(3, 48.9)", "cor(Subject)": "LKJ(1)", "sigma": "HalfStudentT(3, 141)",
    }  # fmt: skip


def test_a_column_with_the_name_of_a_parameter_is_refused(table: pd.DataFrame) -> None:
    data = table.assign(phi=table.x, sigma=table.x)
    with pytest.raises(DataError, match=r"would be called 'phi': the coefficient of a predictor, .*; rename the"):
        priors("count ~ phi", data, "negative_binomial")
    assert "phi" in priors("count ~ phi", data, "poisson")
    with pytest.raises(DataError, match="would be called 'sigma'"):
        priors("real ~ sigma", data, "gaussian")
    with pytest.raises(DataError, match=r"would be called 'sigma\.x'"):
        priors(pp.formula("real ~ `sigma.x`", sigma="~ x"), data.assign(**{"sigma.x": table.e}), "gaussian")


def test_an_offset_that_was_not_logged_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"The offset reaches 1\d\d\d.*offset\(log\(size\)\)"):
        priors("count ~ x + offset(size)", table.assign(size=1000 + 100 * table.e), "poisson")
