"""Sentences about separation, sds that run away and overdispersion: where they belong, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from glmer import model as glmer_model
from partialpool.algebra.lapack import one_blas_thread
from partialpool.inference.joint import JointDensity
from partialpool.inference.remarks import remarks
from partialpool.inference.root import RootLaplace


def remarks_of(model: pp.Model, nodes: int = 16) -> tuple[str, ...]:
    laplace = RootLaplace(JointDensity(model, nodes=nodes))
    with one_blas_thread():
        laplace.find_mode()
    return remarks(laplace)


def separated(seed: int = 1, flip: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=120)
    y = (x > 0.2).astype(int)
    if flip:  # outcomes overlap
        y = rng.binomial(1, 1 / (1 + np.exp(-x)))
    return pd.DataFrame({"y": y, "x": x, "b": np.where(x > 0.2, "yes", "no"), "g": np.arange(120) % 12})


def bernoulli(formula: str, data: pd.DataFrame, **priors: Any) -> pp.Model:
    return pp.Model.from_formula(formula, data, family="bernoulli", priors=priors)


def test_separation_under_the_default_prior() -> None:
    told = remarks_of(bernoulli("y ~ x + (1 | g)", separated()))
    assert len(told) == 1
    assert "'x' separates the outcomes" in told[0] and "pp.Normal(0," in told[0] and "priors={'x'" in told[0]


def test_separation_by_a_category() -> None:
    """In one category every outcome is the same."""
    data = separated(flip=True)
    data["c"] = np.where(data["x"] > 0.8, "high", "low")
    data.loc[data["c"] == "high", "y"] = 1
    told = remarks_of(bernoulli("y ~ c + (1 | g)", data))
    assert len(told) == 1 and "'c[low]' separates the outcomes" in told[0]


@pytest.mark.parametrize("formula", ["y ~ x + (1 | g)", "y ~ b + (1 | g)"])
def test_separation_under_a_flat_prior_is_an_error(formula: str) -> None:
    model = bernoulli(formula, separated(), beta=pp.Flat())
    with pytest.raises(pp.ModelError, match=r"runs away .* separates the outcomes.*no posterior.*proper one: priors="):
        remarks_of(model)


def test_no_separation_where_outcomes_overlap() -> None:
    for priors in ({}, {"beta": pp.Flat()}, {"x": pp.Normal(0, 0.1)}):
        assert remarks_of(bernoulli("y ~ x + (1 | g)", separated(flip=True), **priors)) == ()


def test_a_prior_that_holds_a_coefficient_back_is_no_separation() -> None:
    """A strong effect, well told by the data."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=400)
    data = pd.DataFrame({"y": rng.binomial(1, 1 / (1 + np.exp(-3 * x))), "x": x, "g": np.arange(400) % 20})
    assert remarks_of(bernoulli("y ~ x + (1 | g)", data)) == ()


def test_groups_all_or_nothing() -> None:
    data = pd.DataFrame({"y": np.repeat(np.arange(30) % 2, 8), "g": np.repeat(np.arange(30), 8)})
    told = remarks_of(bernoulli("y ~ 1 + (1 | g)", data, **{"sd(g)": pp.HalfNormal(1000)}))
    assert any("sd(Intercept|g) runs away" in sentence and "HalfNormal(2.5)" in sentence for sentence in told)
    assert remarks_of(bernoulli("y ~ 1 + (1 | g)", data, **{"sd(g)": pp.HalfNormal(1)})) == ()


@pytest.mark.parametrize("name", ["cbpp", "toenail", "grouseticks_c"])
def test_quiet_on_good_models(name: str) -> None:
    """toenail's sd of 4 is large, not running away; grouseticks has an effect for each row."""
    assert remarks_of(glmer_model(name), nodes=24) == ()


def test_overdispersed_counts() -> None:
    told = remarks_of(glmer_model("epil_pois"))
    assert len(told) == 1 and "poisson family allows" in told[0] and "family='negative_binomial'" in told[0]
    observed = float(told[0].split("varies ")[1].split(" times")[0])
    assert 1.5 < observed < 4


def test_counts_as_they_should_be() -> None:
    rng = np.random.default_rng(4)
    g = np.arange(300) % 30
    data = pd.DataFrame({"y": rng.poisson(np.exp(0.5 + rng.normal(0, 0.7, 30)[g])), "g": g})
    assert remarks_of(pp.Model.from_formula("y ~ 1 + (1 | g)", data, family="poisson")) == ()


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_events_out_of_trials(spread: float) -> None:
    rng = np.random.default_rng(5)
    g = np.arange(200) % 20
    eta = rng.normal(0, 0.5, 20)[g] + rng.normal(0, spread, 200)
    data = pd.DataFrame({"y": rng.binomial(20, 1 / (1 + np.exp(-eta))), "n": 20, "g": g})
    told = remarks_of(pp.Model.from_formula("y | trials(n) ~ 1 + (1 | g)", data, family="binomial"))
    assert [("beta_binomial" in sentence) for sentence in told] == ([True] if spread else [])
