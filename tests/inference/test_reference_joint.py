from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.errors import ModelError
from partialpool.inference import reference_joint
from partialpool.inference.base import Result, Settings
from partialpool.inference.joint import JointDensity
from partialpool.inference.laplace import LaplaceEngine
from partialpool.inference.parameterization import wanted_degrees
from partialpool.inference.reference_joint import JointReferenceEngine, WholeJoint
from partialpool.model import Model


def frame(n: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    g, h = np.repeat(np.arange(12), n // 12), np.tile(np.arange(5), n // 5)
    x = rng.normal(size=n)
    eta = 0.3 + 0.5 * x + 0.8 * rng.normal(size=12)[g] + 0.5 * rng.normal(size=5)[h]
    return pd.DataFrame(
        {
            "x": x,
            "g": [f"g{k:02d}" for k in g],
            "h": [f"h{k}" for k in h],
            "hit": (rng.random(n) < 1 / (1 + np.exp(-eta))) * 1.0,
            "count": rng.poisson(np.exp(eta)).astype(float),
        }
    )


MODELS = {
    "bernoulli": ("hit ~ x + (1 | g)", "bernoulli"),
    "poisson": ("count ~ x + (1 | g)", "poisson"),
    "crossed": ("count ~ x + (1 | g) + (1 | h)", "poisson"),
}


def model_of(name: str) -> Model:
    formula, family = MODELS[name]
    return Model.from_formula(formula, frame(), family=family)


def run(model: Model, parameterization: Mapping[str, str | float] | None = None) -> Result:
    settings = Settings(draws=2000, ess=400, seed=3, threads=2, progress=False, parameterization=parameterization)
    return JointReferenceEngine().run(model, settings)


def moments(model: Model, result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Means and their Monte Carlo errors, of coefficients and hyperparameters."""
    values = np.concatenate([result.beta_mean, model.hyperparameters.public(result.theta)], axis=1)
    weights = np.exp(result.log_weights)
    mean = weights @ values
    sd = np.sqrt(weights @ (values - mean) ** 2)
    return mean, sd / np.sqrt([result.accuracy.ess[name] for name in model.parameter_names])


def assert_agree(model: Model, one: Result, two: Result) -> None:
    (first, error), (second, other) = moments(model, one), moments(model, two)
    assert (np.abs(first - second) < 4 * np.hypot(error, other)).all()


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_laplace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_joint, "TUNE", 400)
    model = model_of(name)
    result = run(model)
    assert_agree(model, result, LaplaceEngine().run(model, Settings(ess=1000, seed=1, threads=2, progress=False)))
    assert result.effects is not None
    assert result.effects.shape == (2000, model.latent.n_effects)
    assert result.accuracy.divergences == 0


@pytest.mark.parametrize("turned", [0, 500])
@pytest.mark.parametrize("degree", ["centered", "non-centered", 0.4])
def test_gradient(degree: str | float, turned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_joint, "MOST_TURNED", turned)
    model = model_of("crossed")
    whole = WholeJoint(model, Settings(parameterization={"g": degree, "(1|h)": degree}))
    density = whole.density()
    position = 0.5 * np.random.default_rng(2).normal(size=whole.size)
    gradient = density(position)[1].copy()
    steps = 1e-5 * np.eye(whole.size)
    numerical = np.array([(density(position + step)[0] - density(position - step)[0]) / 2e-5 for step in steps])
    np.testing.assert_allclose(gradient, numerical, atol=2e-6 * np.abs(gradient).max())


def test_effects_stand_in_the_order_of_the_layout() -> None:
    """The predictors of the density's own rows are those put together from the layout."""
    model = model_of("crossed")
    joint = JointDensity(model, leaf=False)
    root = np.random.default_rng(0).normal(size=joint.rows.n_root)
    expected = (model.design.V[:, model.design.x_columns] - np.asarray(model.coefficients.centre)) @ root[: joint.p]
    for f, factor in enumerate(model.design.factors):
        expected = expected + root[joint.p + model.latent.effects_of(f)[factor.codes, 0]]
    np.testing.assert_allclose(joint.rows.predictors(root), expected[joint.rows.order])


def test_parameterizations_change_no_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_joint, "TUNE", 400)
    model = model_of("poisson")
    results = [run(model, {"g": degree}) for degree in ("centered", 0.5)]
    told = [result.accuracy.parameterization for result in results]
    assert told == [{"(1 | g)": "centered"}, {"(1 | g)": "between (0.50)"}]
    assert_agree(model, results[0], results[1])


def test_options() -> None:
    model = model_of("crossed")
    assert wanted_degrees(model, {"g": "centered", "(1|h)": 0.25}) == [1.0, 0.25]
    assert wanted_degrees(model, {"(1 | g)": "auto", "g": 1, "h": 0}) == [None, 0.0]
    with pytest.raises(ModelError, match="no grouping factor or group term"):
        wanted_degrees(model, {"gg": "centered"})
    for value in ("centred", 1.5, True, float("nan")):
        with pytest.raises(ModelError, match="a number from 0"):
            wanted_degrees(model, {"g": value})
    with pytest.raises(ModelError, match="method='nuts'"):
        model.fit(parameterization={"g": "centered"})
    gaussian = Model.from_formula("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"))
    with pytest.raises(ModelError, match="nothing between"):
        gaussian.fit(method="nuts", parameterization={"Batch": 0.5})
    slopes = Model.from_formula("count ~ x + (1 + x | g)", frame(), family="poisson")
    with pytest.raises(ModelError, match="correlated"):
        wanted_degrees(slopes, {"g": 0.5})
