"""What must not change a posterior: the order of rows, the names of groups, the units, how rows are split."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import partialpool as pp

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FORMULAS = ("y ~ x + (1 + x | g)", "y ~ x + (1 | g) + (1 | h)", "y ~ x + (x || g) + (1 | h/k)")
PRIORS = {
    "Intercept(centered)": pp.Normal(0, 5), "beta": pp.Normal(0, 2), "sd": pp.HalfNormal(2), "sigma": pp.HalfNormal(2)
}  # fmt: skip


def make(seed: int, n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"g": rng.integers(0, 8, n), "h": rng.integers(0, 4, n), "k": rng.integers(0, 3, n)})
    frame.loc[:7, "g"], frame.loc[:7, "h"] = np.arange(8), np.arange(8) % 4  # no group is left out
    frame["x"] = rng.normal(size=n)
    frame["y"] = 1 + 0.5 * frame["x"] + rng.normal(size=8)[frame["g"]] + rng.normal(size=n)
    return frame


def moments(formula: str, frame: pd.DataFrame, **options) -> pd.DataFrame:
    fit = pp.fit(formula, frame, priors=options.pop("priors", PRIORS), seed=5, draws=100, threads=1, **options)
    return fit.summary()[["mean", "sd", "q05", "q95"]]


def assert_same(one: pd.DataFrame, two: pd.DataFrame, rtol: float = 1e-5) -> None:
    """Equal but for rounding: the same nodes up to the last digits of the mode."""
    np.testing.assert_allclose(two.to_numpy(), one.to_numpy(), rtol=rtol, atol=rtol * one["sd"].max())


@FEW
@given(seed=st.integers(0, 10_000), formula=st.sampled_from(FORMULAS))
def test_the_order_of_rows(seed, formula):
    frame = make(seed)
    shuffled = frame.sample(frac=1, random_state=seed)
    assert_same(moments(formula, frame), moments(formula, shuffled))


@FEW
@given(seed=st.integers(0, 10_000), formula=st.sampled_from(FORMULAS))
def test_the_names_of_groups(seed, formula):
    frame = make(seed)
    names = {column: np.random.default_rng(seed).permutation(1000) for column in "ghk"}
    renamed = frame.assign(**{column: [f"{column}{names[column][i]}" for i in frame[column]] for column in "ghk"})
    assert_same(moments(formula, frame), moments(formula, renamed))


@FEW
@given(seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_the_units_of_a_predictor(seed, factor, shift):
    """Default priors scale with the predictor: the coefficient is divided by the factor, the rest stays."""
    frame = make(seed)
    formula = "y ~ x + (1 | g)"
    here = moments(formula, frame, priors={"beta": pp.Flat()})
    there = moments(formula, frame.assign(x=factor * frame["x"] + shift), priors={"beta": pp.Flat()})
    there.loc["x"] *= factor
    rows = ["x", "sd(Intercept|g)", "sigma"]
    assert_same(here.loc[rows], there.loc[rows], rtol=1e-4)


@FEW
@given(seed=st.integers(0, 10_000), factor=st.floats(1e-6, 1e6))
def test_the_units_of_the_response(seed, factor):
    """With the default priors, which follow sd(y), everything scales with the response (three digits are rounded)."""
    frame = make(seed)
    here = moments("y ~ x + (1 | g)", frame, priors=None)
    there = moments("y ~ x + (1 | g)", frame.assign(y=factor * frame["y"]), priors=None) / factor
    np.testing.assert_allclose(there["mean"], here["mean"], atol=0.02 * here["sd"].max())
    np.testing.assert_allclose(there["sd"], here["sd"], rtol=0.02)


@FEW
@given(seed=st.integers(0, 10_000), formula=st.sampled_from(FORMULAS))
def test_a_weight_is_a_number_of_rows(seed, formula):
    frame = make(seed)
    frame["w"] = np.random.default_rng(seed).integers(1, 4, len(frame))
    priors = PRIORS | {"Intercept": pp.Normal(0, 5)}
    del priors["Intercept(centered)"]  # the centre of the predictors is not the same in the two frames
    repeated = frame.loc[frame.index.repeat(frame["w"])].reset_index(drop=True)
    weighted = moments(formula.replace("y ~", "y | weights(w) ~"), frame, priors=priors)
    # starting point and mode differ in their last digits, so nodes do, and estimates within Monte Carlo error
    np.testing.assert_allclose(
        moments(formula, repeated, priors=priors)["mean"], weighted["mean"], atol=0.1 * weighted["sd"].max()
    )


@pytest.mark.parametrize("shift", [0.0, 2000.0, 1.7e9])
def test_predictors_far_from_zero(shift):
    """Years and seconds since 1970 as predictors: centring keeps the digits."""
    frame = make(3)
    here = moments("y ~ x + (1 | g)", frame)
    there = moments("y ~ x + (1 | g)", frame.assign(x=frame["x"] + shift))
    rows = ["x", "sd(Intercept|g)", "sigma"]
    assert_same(here.loc[rows], there.loc[rows], rtol=1e-3)
