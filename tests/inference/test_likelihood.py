"""Likelihood and maximum likelihood against glmer and against exact values."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import partialpool as pp
from glmer import estimates, exact_values, log_rows, log_sum, model, read, references, standard_errors
from partialpool.inference.likelihood import Likelihood

Array = NDArray[np.float64]


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", exact_values())
def test_exact_values(name: str) -> None:
    found = model(references()[name]["model"]).log_likelihood(estimates(name))
    assert found == pytest.approx(exact_values()[name], rel=1e-9)
    assert found.quadrature_error < 1e-6 * abs(found) and found.nodes > 1  # type: ignore[attr-defined]
    assert found.correction == 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["cbpp_agq1", "epil_pois_agq1", "grouseticks_agq1", "grouseticks_c_agq1", "toenail_agq1"]
)
def test_one_node_is_glmer(name: str) -> None:
    fit = references()[name]
    assert model(fit["model"]).log_likelihood(estimates(name), nodes=1) == pytest.approx(fit["logLik"], rel=1e-5)


def test_25_nodes_are_glmer_for_binary_outcomes() -> None:
    """For counts and trials lme4 leaves a constant out; for 0 and 1 there is none."""
    fit = references()["toenail_agq25"]
    found = model("toenail").log_likelihood(estimates("toenail_agq25"), nodes=25)
    assert found == pytest.approx(fit["logLik"], rel=1e-6)
    for name in ("cbpp", "epil_pois"):
        gaps = [references()[f"{name}_agq25"]["logLik"] - exact_values()[f"{name}_agq25"]]
        own = model(name).log_likelihood(estimates(f"{name}_agq25"), nodes=25)
        assert own + gaps[0] == pytest.approx(references()[f"{name}_agq25"]["logLik"], rel=1e-8)


def crossed() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    a, b = (part.ravel() for part in np.meshgrid(np.arange(8), np.arange(2), indexing="ij"))
    a, b = np.repeat(a, 3), np.repeat(b, 3)
    eta = 0.3 + rng.normal(0, 1, 8)[a] + rng.normal(0, 0.7, 2)[b]
    return pd.DataFrame({"y": rng.binomial(1, 1 / (1 + np.exp(-eta))), "a": a, "b": b})


def test_crossed_factors_and_what_laplace_leaves_out() -> None:
    """Two effects of the root on a dense grid, the leaf's by the same at each point."""
    data = crossed()
    params = {"Intercept": 0.2, "sd(Intercept|a)": 0.9, "sd(Intercept|b)": 0.8}
    found = pp.Model.from_formula("y ~ 1 + (1 | a) + (1 | b)", data, family="bernoulli").log_likelihood(params)
    line, fine = np.linspace(-6, 6, 61), np.linspace(-7, 7, 141)
    first, second = (part.ravel() for part in np.meshgrid(line, line, indexing="ij"))
    total = -0.5 * (first**2 + second**2) - math.log(2 * math.pi) + 2 * math.log(line[1] - line[0])
    for g in range(8):
        own = data[data["a"] == g]
        logs = -0.5 * fine**2 - 0.5 * math.log(2 * math.pi) + math.log(fine[1] - fine[0]) + np.zeros((first.size, 1))
        for y, b in zip(own["y"], own["b"], strict=True):
            effect = 0.8 * (first if b == 0 else second)
            logs = logs + log_rows("bernoulli", y, 0.2 + effect[:, None] + 0.9 * fine)
        total += log_sum(logs, axis=1)
    exact = float(log_sum(total))
    assert found == pytest.approx(exact, abs=0.05) and found != pytest.approx(exact, abs=1e-4)
    assert 0 < found.correction_error < 0.01  # type: ignore[attr-defined]
    assert abs(found + found.correction - exact) < 4 * found.correction_error  # type: ignore[attr-defined]


def test_an_sd_of_zero() -> None:
    """In the leaf and in the root: as if the term were not there."""
    data = crossed()
    params = {"Intercept": 0.2, "sd(Intercept|a)": 0.9, "sd(Intercept|b)": 0.0}
    both = pp.Model.from_formula("y ~ 1 + (1 | a) + (1 | b)", data, family="bernoulli").log_likelihood(params)
    one = pp.Model.from_formula("y ~ 1 + (1 | a)", data, family="bernoulli").log_likelihood(params)
    assert both == pytest.approx(one, rel=1e-6)
    none = pp.Model.from_formula("y ~ 1", data, family="bernoulli").log_likelihood(params)
    zero = pp.Model.from_formula("y ~ 1 + (1 | a)", data, family="bernoulli").log_likelihood(
        params | {"sd(Intercept|a)": 0.0}
    )
    assert zero == pytest.approx(none, rel=1e-9)
    assert none == pytest.approx(float(log_rows("bernoulli", data["y"].to_numpy(), 0.2).sum()), rel=1e-12)


def test_priors_play_no_part() -> None:
    params = estimates("cbpp_agq1")
    plain = model("cbpp").log_likelihood(params)
    priors = {"beta": pp.Normal(3, 0.1), "sd(herd)": pp.Uniform(0, 5)}
    other = pp.Model.from_formula(
        "incidence | trials(size) ~ period + (1 | herd)", read("cbpp"), family="binomial", priors=priors
    )
    assert other.log_likelihood(params) == pytest.approx(plain, rel=1e-10)
    best = other.maximum_likelihood()
    assert best.log_likelihood == pytest.approx(model("cbpp").maximum_likelihood().log_likelihood, rel=1e-8)


@pytest.mark.parametrize("nodes", [0, -1, 2.5, True, 1000])
def test_impossible_nodes(nodes: object) -> None:
    with pytest.raises(pp.ModelError, match="whole number from 1 to 201"):
        model("cbpp").log_likelihood(estimates("cbpp_agq1"), nodes=nodes)  # type: ignore[arg-type]


def test_missing_parameters() -> None:
    params = estimates("cbpp_agq1")
    del params["period[3]"]
    with pytest.raises(pp.ModelError, match=r"'period\[3\]' has no value"):
        model("cbpp").log_likelihood(params)


# -- invariants --------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.05, 40.0), nodes=st.sampled_from([1, 7, None]))
def test_rows_labels_and_units_do_not_matter(seed: int, scale: float, nodes: int | None) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 6, 40)
    data = pd.DataFrame({"y": rng.binomial(1, 0.4, 40), "x": rng.normal(size=40), "g": [f"g{k}" for k in group]})
    params = {"Intercept": -0.3, "x": 0.6, "sd(Intercept|g)": 0.8, "sd(x|g)": 0.5, "cor(Intercept,x|g)": 0.4}
    formula = "y ~ x + (x | g)"
    value = pp.Model.from_formula(formula, data, family="bernoulli").log_likelihood(params, nodes=nodes)

    def again(frame: pd.DataFrame, values: dict[str, float]) -> float:
        return pp.Model.from_formula(formula, frame, family="bernoulli").log_likelihood(values, nodes=nodes)

    assert again(data.sample(frac=1, random_state=seed), params) == pytest.approx(value, rel=1e-9)
    labels = dict(zip(sorted(set(data["g"])), rng.permutation(100)[:6].astype(str), strict=False))
    assert again(data.assign(g=data["g"].map(labels)), params) == pytest.approx(value, rel=1e-9)
    moved = params | {"x": 0.6 / scale, "sd(x|g)": 0.5 / scale}
    assert again(data.assign(x=scale * data["x"]), moved) == pytest.approx(value, rel=1e-8)


def test_trials_and_rows_of_one_trial() -> None:
    """The same likelihood up to the binomial coefficients."""
    data = read("cbpp")
    rows = data.loc[data.index.repeat(data["size"])].copy()
    rows["event"] = np.concatenate(
        [np.arange(size) < y for y, size in zip(data["incidence"], data["size"], strict=True)]
    )
    rows["event"] = rows["event"].astype(int)
    split = pp.Model.from_formula("event ~ period + (1 | herd)", rows, family="bernoulli")
    constant = sum(math.log(math.comb(size, y)) for y, size in zip(data["incidence"], data["size"], strict=True))
    for nodes in (1, 25):
        whole = model("cbpp").log_likelihood(estimates("cbpp_agq1"), nodes=nodes)
        assert split.log_likelihood(estimates("cbpp_agq1"), nodes=nodes) + constant == pytest.approx(whole, rel=1e-10)


# -- its maximum -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nodes"),
    [("cbpp_agq1", 1), ("cbpp_agq25", 25), ("epil_pois_agq1", 1), ("epil_pois_agq25", 25), ("toenail_agq1", 1),
     ("toenail_agq25", 25), ("grouseticks_c_agq1", 1)],
)  # fmt: skip
def test_reaches_the_optimum_of_glmer(name: str, nodes: int) -> None:
    own = model(references()[name]["model"])
    best = own.maximum_likelihood(nodes=nodes)
    assert best.status.value == "converged"
    reached = own.log_likelihood(best.estimates, nodes=nodes)
    assert reached == pytest.approx(best.log_likelihood, rel=1e-8)
    assert reached >= own.log_likelihood(estimates(name), nodes=nodes) - 1e-6
    errors = np.array(list(best.standard_errors.values()))
    np.testing.assert_allclose(errors, standard_errors(name), rtol=0.02 if "toenail" not in name else 0.04)


def test_the_default_is_the_exact_maximum() -> None:
    best = model("cbpp").maximum_likelihood()
    shown = best.summary()
    assert best.log_likelihood >= exact_values()["cbpp_agq25"] - 1e-8
    for name, value in estimates("cbpp_agq25").items():
        assert best.estimates[name] == pytest.approx(value, abs=2e-3)
    assert shown.loc["period[2]", "se"] == pytest.approx(0.3068, rel=0.01)
    assert not best.singular


def test_crossed_factors() -> None:
    """No step from the maximum leads higher."""
    own = pp.Model.from_formula("y ~ 1 + (1 | a) + (1 | b)", crossed(), family="bernoulli")
    best = own.maximum_likelihood(nodes=1)
    top = own.log_likelihood(best.estimates, nodes=1)
    for name in best.estimates:
        for factor in (0.97, 1.03):
            assert own.log_likelihood(best.estimates | {name: best.estimates[name] * factor}, nodes=1) <= top + 1e-7


def test_an_sd_at_the_boundary() -> None:
    """Groups less different than chance makes them: the sd is 0 and the fit says so."""
    data = pd.DataFrame({"y": [0, 1] * 20, "g": np.repeat(np.arange(10), 4)})
    best = pp.Model.from_formula("y ~ 1 + (1 | g)", data, family="bernoulli").maximum_likelihood(nodes=11)
    assert best.singular == ("sd(Intercept|g)",) and best.estimates["sd(Intercept|g)"] == 0.0
    assert best.log_likelihood == pytest.approx(40 * math.log(0.5), rel=1e-9)


@pytest.mark.parametrize("name", ["cbpp", "toenail"])
def test_gradient_of_the_search(name: str) -> None:
    """Fisher's identity against differences of the value."""
    own = Likelihood(model(name))
    params = estimates(f"{name}_agq25")
    theta = model(name).hyperparameters.from_public(params)
    gamma = model(name).coefficients.from_public(np.array([params[key] for key in model(name).design.x_names]))
    own.at(theta, gamma, 144)
    value, gradient = own.gradient(theta, gamma)
    assert value == pytest.approx(own.value(theta, gamma), rel=1e-12)
    both = np.concatenate([theta, gamma])
    for j in range(both.size):
        ends = []
        for sign in (1, -1):
            moved = both.copy()
            moved[j] += sign * 1e-5
            ends.append(own.value(moved[: theta.size], moved[theta.size :]))
        assert gradient[j] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-3, rel=1e-5)
