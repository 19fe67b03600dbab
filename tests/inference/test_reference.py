from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from partialpool.inference import reference
from partialpool.inference.base import Settings
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.nuts import thinned
from partialpool.inference.reference import ReferenceEngine, WholeModel
from partialpool.model import Model
from partialpool.spec.distributions import Flat, HalfCauchy, Normal

PRIORS = {
    "normal": {},
    "student": {
        "x": "StudentT(3, 0, 1)",
        "Intercept": "Cauchy(0, 2)",
        "sd": "HalfCauchy(1)",
        "sigma": "Exponential(1)",
    },
    "flat": {"beta": Flat(), "Intercept": Flat(), "sd(Intercept|g)": "Gamma(2, 1)", "sigma": "InverseGamma(2, 1)"},
    "bounded": {
        "sd(Intercept|g)": "Uniform(0.2, 3)",
        "sd(z|h)": "Beta(2, 3)",
        "cor": "LKJ(3)",
        "sigma": "HalfNormal(2)",
    },
}
RESPONSES = {
    "plain": "y",
    "weights": "y | weights(w)",
    "precision": "y | precision(w)",
    "se": "y | se(s)",
    "se and sigma": "y | se(s, sigma=True) + weights(w)",
}


def frame(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "x": rng.normal(2, 1, n),
            "z": rng.normal(size=n),
            "g": np.repeat(list("abcdef"), n // 6),
            "h": np.tile(list("pqrst"), n // 5),
            "s": rng.uniform(0.5, 2, n),
            "w": rng.uniform(0.5, 2, n),
            "o": rng.normal(size=n),
        }
    )


def model_of(response: str, priors: str) -> Model:
    chosen = dict(PRIORS[priors])
    if response == "y | se(s)":
        chosen.pop("sigma", None)
    return Model.from_formula(f"{response} ~ x + offset(o) + (1 + x + z | g) + (1 + z || h)", frame(), priors=chosen)


@pytest.mark.parametrize("centred", [0.0, 2.0])
@pytest.mark.parametrize("rotated", [0, 300])
@pytest.mark.parametrize("priors", PRIORS)
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
def test_gradient(response: str, priors: str, rotated: int, centred: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MOST_ROTATED", rotated)
    monkeypatch.setattr(reference, "CENTRED_BELOW", centred)
    whole = WholeModel(model_of(response, priors))
    density = whole.density()
    point = 0.5 * np.random.default_rng(3).normal(size=whole.dimension)
    gradient = density(point)[1].copy()
    steps = np.eye(whole.dimension) * 1e-5
    numerical = np.array([(density(point + step)[0] - density(point - step)[0]) / 2e-5 for step in steps])
    np.testing.assert_allclose(gradient, numerical, atol=2e-6 * np.abs(gradient).max())


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
@pytest.mark.parametrize("priors", ["normal", "bounded"])
def test_density_integrates_to_the_marginal(response: str, priors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given theta the density is normal in b and z; its integral is the marginal likelihood of the exact engine."""
    monkeypatch.setattr(reference, "MOST_ROTATED", 0)
    monkeypatch.setattr(reference, "CENTRED_BELOW", 0.0)
    model = model_of(response, priors)
    whole, marginal = WholeModel(model), GaussianMarginal(model)
    density, n_t, rng = whole.log_density(), whole.n_t, np.random.default_rng(0)
    differences = []
    for _ in range(3):
        point = np.zeros(whole.dimension)
        point[:n_t] = 0.4 * rng.normal(size=n_t)
        whole.start = point[:n_t]
        hessian, slope = whole._hessian(np.ones(whole.dimension - n_t))
        value = density(point)[0] + 0.5 * slope @ np.linalg.solve(hessian, slope)
        integral = value - 0.5 * np.linalg.slogdet(hessian)[1]
        theta = whole.theta(point[None, :], rng)
        exact = marginal.value(theta)[0][0] + model.hyperparameters.log_prior(theta)[0][0]
        for j in np.flatnonzero(whole.params[:, 4] > 0):  # from log sd to the logit
            low, width = whole.params[j, 3:5]
            share = 1 / (1 + np.exp(-point[j]))
            exact += np.log(width * share * (1 - share) / (low + width * share))
        differences.append(integral - exact)
    np.testing.assert_allclose(differences, differences[0], atol=1e-6)


def test_eight_schools(data_folder: Path) -> None:
    """posteriordb's gold standard: 10 chains of 1,000 draws."""
    data = pd.read_csv(data_folder / "eight_schools.csv")
    priors = {"Intercept": Normal(0, 5), "sd": HalfCauchy(5)}
    model = Model.from_formula("y | se(sigma) ~ 1 + (1 | school)", data, priors=priors)
    result = ReferenceEngine().run(model, Settings(ess=1000, seed=1, threads=2))
    tau = np.exp(result.theta[:, 0])
    assert abs(result.beta_mean.mean() - 4.41) < 4 * 3.31 * np.sqrt(1 / 1000 + 1 / 10_000)
    assert abs(tau.mean() - 3.60) < 4 * 3.20 * np.sqrt(1 / 1000 + 1 / 10_000)
    assert abs(tau.std() / 3.20 - 1) < 0.15
    assert result.effects is not None
    assert result.effects.shape == (4000, 8)
    schools = result.draws_beta + result.effects[:, model.row_blocks.structure.effects_of(0)[:, 0]]
    expected = [6.15, 4.94, 3.91, 4.80, 3.61, 4.05, 6.32, 4.88]
    assert np.abs(schools.mean(axis=0) - expected).max() < 0.7
    assert result.accuracy.rhat is not None
    assert max(result.accuracy.rhat.values()) < 1.01


def test_the_same_to_the_bit_and_effects_aligned(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_formula("Yield ~ 1 + (1 | Batch)", pd.read_csv(data_folder / "Dyestuff2.csv"))
    settings = Settings(draws=1000, ess=50, seed=7)
    monkeypatch.setattr(reference, "FIRST", 250)
    monkeypatch.setattr(reference, "TUNE", 300)
    one, two = ReferenceEngine().run(model, settings), ReferenceEngine().run(model, Settings(1000, 50, 7, threads=2))
    assert np.array_equal(one.theta, two.theta)
    assert one.effects is not None and two.effects is not None
    assert np.array_equal(one.effects, two.effects)
    sd = np.exp(one.draws_theta[:, 0])
    high = sd > np.median(sd)
    assert one.effects[high].std() > 2 * one.effects[~high].std()
    assert one.chains == 4
    assert not one.accuracy.trusted or one.accuracy.divergences == 0
    assert "non-centred: (1 | Batch)" in one.accuracy.steps[1]


def test_thinned_is_even() -> None:
    assert thinned(8, 4).tolist() == [1, 3, 5, 7]
    assert thinned(2, 4).tolist() == [0, 0, 1, 1]
