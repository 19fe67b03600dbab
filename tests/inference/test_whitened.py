from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from partialpool.inference import whitened
from partialpool.inference.base import Settings
from partialpool.inference.diagnostics import ess_bulk
from partialpool.inference.reference import ReferenceEngine
from partialpool.inference.whitened import Whitened, WhitenedEngine, run_whitened
from partialpool.model import Model


def of_chains(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chains = values.reshape(4, -1, values.shape[1])
    sd = values.std(axis=0)
    return values.mean(axis=0), sd, sd / np.sqrt(ess_bulk(chains))


FORMULAS = [("Reaction ~ Days + (Days | Subject)", "sleepstudy"), ("Yield ~ 1 + (1 | Batch)", "Dyestuff2")]


@pytest.mark.parametrize(("formula", "name"), FORMULAS)
def test_agrees_with_the_reference(formula: str, name: str, data_folder: Path) -> None:
    """Two engines that share neither algebra nor coordinates."""
    model = Model.from_formula(formula, pd.read_csv(data_folder / f"{name}.csv"))
    exact = WhitenedEngine().run(model, Settings(draws=2000, ess=1000, seed=1))
    sampled = ReferenceEngine().run(model, Settings(ess=1000, seed=2))
    for result in (exact, sampled):
        assert min(result.accuracy.ess.values()) >= 1000
    hyper = model.hyperparameters
    mean, sd, error = of_chains(hyper.public(exact.theta))
    other_mean, other_sd, other_error = of_chains(hyper.public(sampled.theta))
    assert np.abs((mean - other_mean) / np.hypot(error, other_error)).max() < 4
    assert np.abs(sd / other_sd - 1).max() < 0.15
    other_mean, other_sd, other_error = of_chains(sampled.beta_mean)
    assert np.abs((exact.draws_beta.mean(axis=0) - other_mean) / other_error).max() < 5
    sd = np.sqrt((exact.beta_sd**2).mean(axis=0) + exact.beta_mean.var(axis=0))
    assert np.abs(sd / other_sd - 1).max() < 0.12
    assert np.abs(exact.draws_beta.std(axis=0) / sd - 1).max() < 0.1


@pytest.mark.parametrize("prior", ["HalfNormal(20)", "Uniform(1, 60)"])
def test_gradient_in_whitened_coordinates(prior: str, data_folder: Path) -> None:
    data = pd.read_csv(data_folder / "sleepstudy.csv")
    priors = {"sd": prior, "Days": "StudentT(3, 0, 10)"}
    target = Whitened(Model.from_formula("Reaction ~ Days + (Days | Subject)", data, priors=priors))
    z = np.random.default_rng(1).normal(size=target.size)
    gradient = target.density(z)[1]
    steps = np.eye(target.size) * 1e-5
    numerical = [(target.density(z + step)[0] - target.density(z - step)[0]) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, numerical, atol=1e-5)
    if prior.startswith("Uniform"):
        sds = np.exp(target.theta(5 * np.random.default_rng(2).normal(size=(100, target.size)))[:, :2])
        assert sds.min() >= 1
        assert sds.max() <= 60


def test_says_why_it_ran_and_has_no_evidence(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_formula("Yield ~ 1 + (1 | Batch)", pd.read_csv(data_folder / "Dyestuff2.csv"))
    settings = Settings(draws=400, ess=50, seed=3)
    monkeypatch.setattr(whitened, "FIRST", 100)
    result = run_whitened(model, settings, "Pareto k was 0.9", ("512 nodes",))
    again = run_whitened(model, settings, "Pareto k was 0.9", ("512 nodes",))
    assert result.accuracy.reason == "Pareto k was 0.9"
    assert result.accuracy.steps[0] == "512 nodes"
    assert np.isnan(result.log_marginal_likelihood)
    assert np.isclose(np.exp(result.log_weights).sum(), 1)
    assert result.draws_theta.shape == (400, 2)
    assert np.array_equal(result.draws_beta, again.draws_beta)


def test_nothing_to_explore() -> None:
    """Known standard errors and no groups: theta is empty."""
    data = pd.DataFrame({"y": [1.0, 2.0, 4.0], "s": [1.0, 1.0, 2.0]})
    model = Model.from_formula("y | se(s) ~ 1", data, priors={"Intercept": "Normal(0, 10)"})
    result = run_whitened(model, Settings(draws=400, ess=50), "asked")
    precision = np.array([1, 1, 0.25])
    expected = precision @ data["y"] / (precision.sum() + 0.01)
    assert abs(result.beta_mean.mean() - expected) < 1e-8
