"""Stacking against a general solver, pseudo-BMA+ against its definition, plain PSIS-LOO against ArviZ."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import partialpool as pp
from partialpool.criticism.plain_loo import plain_loo
from partialpool.criticism.weights import pseudo_bma_weights, stacking_weights
from partialpool.errors import ModelError


def objective(weights: np.ndarray, elpd: np.ndarray) -> float:
    return float(np.log(np.exp(elpd) @ weights).sum())


@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_no_mixture_does_better_than_stacking(seed: int, units: int, models: int) -> None:
    rng = np.random.default_rng(seed)
    elpd = rng.normal(-1, rng.uniform(0.01, 2), (units, models)) + rng.normal(0, 0.3, models)
    weights = stacking_weights(elpd)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    best = objective(weights, elpd)
    for other in [*np.eye(models), *rng.dirichlet(np.ones(models), 200)]:
        assert objective(other, elpd) <= best + 1e-6


def test_stacking_is_what_a_general_solver_finds() -> None:
    elpd = np.random.default_rng(5).normal(-1, 0.7, (80, 3))
    found = minimize(
        lambda w: -objective(w, elpd), np.full(3, 1 / 3), bounds=[(0, 1)] * 3, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-14},
    )  # fmt: skip
    assert stacking_weights(elpd) == pytest.approx(found.x, abs=1e-5)


def test_stacking_of_models_that_are_alike_or_impossible() -> None:
    same = np.random.default_rng(1).normal(size=(20, 1)) * np.ones((1, 3))
    assert stacking_weights(same).tolist() == pytest.approx([1 / 3] * 3)
    ruled_out = np.column_stack([np.full(10, -1.0), np.where(np.arange(10) == 3, -np.inf, 0.0)])
    weights = stacking_weights(ruled_out)
    assert 0 < weights[1] < 1
    assert pseudo_bma_weights(ruled_out)[0] == pytest.approx(1.0)
    with pytest.raises(ModelError, match="not a number"):
        stacking_weights(np.array([[np.nan, 1.0]]))
    with pytest.raises(ModelError, match="density 0 under every model"):
        stacking_weights(np.full((2, 2), -np.inf))


def test_pseudo_bma_is_the_mean_over_bootstrap_samples() -> None:
    elpd = np.random.default_rng(2).normal([-1, -0.98], 0.3, (50, 2))
    rng = np.random.default_rng(9)
    shares = rng.dirichlet(np.ones(50), 40_000)
    z = 50 * shares @ elpd
    expected = 1 / (1 + np.exp(z[:, 1] - z[:, 0]))
    found = pseudo_bma_weights(elpd, seed=3)
    assert found[0] == pytest.approx(expected.mean(), abs=0.02)
    assert found.tolist() == pseudo_bma_weights(elpd, seed=3).tolist()
    assert found.tolist() != pseudo_bma_weights(elpd, seed=4).tolist()


@pytest.mark.parametrize("kind", ["eight_schools", "sleepstudy", "cbpp", "chains"])
def test_plain_loo_is_arvizs(kind: str) -> None:
    arviz_stats = pytest.importorskip("arviz_stats")
    options: dict[str, Any] = {"seed": 1, "threads": 1, "progress": False, "draws": 1000}
    schools = "y | se(sigma) ~ 1 + (1 | school)"
    formula, data, more = {
        "eight_schools": (schools, "eight_schools", {}),
        "sleepstudy": ("Reaction ~ Days + (Days | Subject)", "sleepstudy", {}),
        "cbpp": ("incidence | trials(size) ~ period + (1 | herd)", "cbpp", {"family": "binomial"}),
        "chains": (schools, "eight_schools", {"method": "nuts", "ess": 100}),
    }[kind]
    fit = pp.fit(formula, pp.datasets.load(data), **options, **more)
    own = plain_loo(fit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a high Pareto k
        theirs = arviz_stats.loo(fit.to_arviz(), pointwise=True)
    assert own.elpd == pytest.approx(theirs.elpd_i.to_numpy(), abs=1e-8)
    assert own.pareto_k == pytest.approx(theirs.pareto_k.to_numpy(), abs=1e-8)
    assert (own.total, own.se, own.p) == pytest.approx((theirs.elpd, theirs.se, theirs.p), abs=1e-8)
