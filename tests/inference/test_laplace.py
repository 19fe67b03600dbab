"""The engine for responses that are not Gaussian against dense quadrature, references, and itself."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import partialpool as pp
from glmer import DATA, log_rows, log_sum
from glmer import model as glmer_model
from partialpool.inference import laplace as engine
from partialpool.inference.base import Result, Settings
from partialpool.inference.laplace import LaplaceEngine, LaplaceRun, Pool
from partialpool.inference.transport import SplitT

Array = NDArray[np.float64]


def moments(result: Result, model: pp.Model) -> tuple[Array, Array]:
    """Means and sds of coefficients and public hyperparameters by the weighted nodes."""
    values = np.concatenate([result.beta_mean, model.hyperparameters.public(result.theta)], axis=1)
    weights = np.exp(result.log_weights)
    mean = weights @ values
    return mean, np.sqrt(weights @ (values - mean) ** 2)


# -- a posterior on a dense grid ---------------------------------------------------------------------------------------


class Tiny:
    """Events of six herds in two periods: three unknowns besides the effects, each with a proper prior."""

    def __init__(self) -> None:
        rng = np.random.default_rng(8)
        self.g, self.x = np.repeat(np.arange(6), 2), np.tile([-0.5, 0.5], 6)
        self.n = rng.integers(4, 15, 12).astype(float)
        eta = -1.0 - 0.8 * self.x + rng.normal(0, 0.8, 6)[self.g]
        self.y = rng.binomial(self.n.astype(int), 1 / (1 + np.exp(-eta))).astype(float)
        data = pd.DataFrame({"y": self.y, "n": self.n, "x": self.x, "g": self.g})
        priors = {"Intercept": pp.Normal(-1, 1.5), "x": pp.Normal(0, 1), "sd(g)": pp.HalfNormal(1)}
        self.model = pp.Model.from_formula("y | trials(n) ~ x + (1 | g)", data, family="binomial", priors=priors)

    def on_grid(self) -> tuple[float, Array, Array]:
        """log p(y), means and sds of (Intercept, x, sd), all by the trapezoid rule."""
        axes = [np.linspace(-4.5, 2.0, 44), np.linspace(-3.5, 2.2, 41), np.linspace(-5.5, 1.5, 48)]
        a, b, log_sd = (part.ravel() for part in np.meshgrid(*axes, indexing="ij"))
        v = np.linspace(-6.5, 6.5, 53)
        total = (
            -0.5 * ((a + 1) / 1.5) ** 2 - math.log(1.5) - 0.5 * b**2 - math.log(2 * math.pi)
            + math.log(2) - 0.5 * math.log(2 * math.pi) - 0.5 * np.exp(2 * log_sd) + log_sd
        )  # fmt: skip
        total += sum(math.log(axis[1] - axis[0]) for axis in axes)
        for g in range(6):
            own = np.flatnonzero(self.g == g)
            logs = -0.5 * v**2 - 0.5 * math.log(2 * math.pi) + math.log(v[1] - v[0]) + np.zeros((a.size, 1))
            for i in own:
                eta = (a + b * self.x[i])[:, None] + np.exp(log_sd)[:, None] * v
                logs += log_rows("binomial", self.y[i], eta, trials=self.n[i])
            total += log_sum(logs, axis=1)
        log_p = float(log_sum(total))
        weight = np.exp(total - log_p)
        values = np.stack([a, b, np.exp(log_sd)], axis=1)
        mean = weight @ values
        return log_p, mean, np.sqrt(weight @ (values - mean) ** 2)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="module")
def exact(tiny: Tiny) -> tuple[float, Array, Array]:
    return tiny.on_grid()


@pytest.fixture(scope="module")
def found(tiny: Tiny) -> Result:
    return LaplaceEngine().run(tiny.model, Settings(draws=4000, ess=4000, seed=1))


def test_posterior_is_that_of_a_dense_grid(tiny: Tiny, found: Result, exact: tuple[float, Array, Array]) -> None:
    mean, sd = moments(found, tiny.model)
    error = exact[2] / np.sqrt(np.array(list(found.accuracy.ess.values())))
    assert (np.abs(mean - exact[1]) < 4 * error).all()
    np.testing.assert_allclose(sd, exact[2], rtol=0.05)
    assert found.accuracy.trusted and found.accuracy.pareto_k is not None and found.accuracy.pareto_k < 0.7
    assert min(found.accuracy.ess.values()) >= 4000


def test_marginal_likelihood_is_that_of_a_dense_grid(found: Result, exact: tuple[float, Array, Array]) -> None:
    """Every constant of priors and rows, whichever way it went."""
    assert found.log_marginal_likelihood == pytest.approx(exact[0], abs=0.03)


def test_draws_are_of_the_same_posterior(found: Result, exact: tuple[float, Array, Array]) -> None:
    draws = np.concatenate([found.draws_beta, np.exp(found.draws_theta)], axis=1)
    assert draws.shape == (4000, 3)
    assert (np.abs(draws.mean(axis=0) - exact[1]) < 5 * exact[2] / math.sqrt(4000)).all()
    np.testing.assert_allclose(draws.std(axis=0), exact[2], rtol=0.08)


def test_whitened_engine_finds_the_same(tiny: Tiny, exact: tuple[float, Array, Array]) -> None:
    from partialpool.inference.whitened_joint import WhitenedJointEngine

    result = WhitenedJointEngine().run(tiny.model, Settings(draws=1000, ess=800, seed=2))
    mean, sd = moments(result, tiny.model)
    error = exact[2] / np.sqrt(np.array(list(result.accuracy.ess.values())))
    assert (np.abs(mean - exact[1]) < 5 * error).all()
    np.testing.assert_allclose(sd, exact[2], rtol=0.15)


# -- references --------------------------------------------------------------------------------------------------------


def test_reference_of_glmm_poisson() -> None:
    source = json.loads((DATA / "GLMM_Poisson.json").read_text())
    data = pd.DataFrame({"C": source["C"], "year": source["year"], "obs": np.arange(source["n"])})
    # flat where the reference has uniform priors far wider than the posterior
    priors = {"Intercept": pp.Flat(), "beta": pp.Flat(), "sd(obs)": pp.Uniform(0, 5)}
    formula = "C ~ year + I(year**2) + I(year**3) + (1 | obs)"
    model = pp.Model.from_formula(formula, data, family="poisson", priors=priors)
    result = LaplaceEngine().run(model, Settings(draws=40_000, ess=20_000, seed=1, threads=2))
    reference = list(json.loads((DATA / "posteriors.json").read_text())["GLMM_Poisson"]["params"].values())
    mean, sd = moments(result, model)
    exact_mean, exact_sd = (np.array([row[key] for row in reference]) for key in ("mean", "sd"))
    assert (np.abs(mean - exact_mean) < 0.05 * exact_sd).all()
    np.testing.assert_allclose(sd, exact_sd, rtol=0.05)
    draws = np.exp(result.draws_theta[:, 0])
    for share, key in ((0.05, "q05"), (0.5, "q50"), (0.95, "q95")):
        assert np.quantile(draws, share) == pytest.approx(reference[-1][key], abs=0.05 * exact_sd[-1])
    assert min(result.accuracy.ess.values()) >= 20_000 and math.isnan(result.log_marginal_likelihood)


def test_toenail_says_that_laplace_is_not_enough() -> None:
    result = LaplaceEngine().run(glmer_model("toenail"), Settings(seed=1, threads=2))
    assert any("Laplace alone" in step and "not enough" in step for step in result.accuracy.steps)
    assert result.quadrature_nodes > 8 and result.accuracy.trusted
    assert result.accuracy.quadrature_error is not None and result.accuracy.quadrature_error < 0.05
    mean, sd = moments(result, glmer_model("toenail"))
    assert mean[-1] == pytest.approx(4.1, abs=0.15) and sd[-1] == pytest.approx(0.38, rel=0.15)


# -- seeds and threads -------------------------------------------------------------------------------------------------


def same(first: Result, second: Result) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name), equal_nan=True)
        for name in (
            "theta",
            "log_weights",
            "beta_mean",
            "draws_theta",
            "draws_beta",
            "root",
            "log_marginal_likelihood",
        )
    )


@cache
def crossed(n: int) -> pp.Model:
    rng = np.random.default_rng(4)
    a, b, x = rng.integers(0, n // 12, n), rng.integers(0, 6, n), rng.normal(2, 1, n)
    eta = -0.5 + 0.4 * x + rng.normal(0, 0.9, n // 12)[a] + rng.normal(0, 0.6, 6)[b]
    data = pd.DataFrame({"y": rng.binomial(1, 1 / (1 + np.exp(-eta))), "x": x, "a": a, "b": b})
    return pp.Model.from_formula("y ~ x + (1 | a) + (x | b)", data, family="bernoulli")


@pytest.mark.parametrize("rows", [240, 9000])
def test_seeds_reproduce_to_the_bit_on_any_number_of_threads(rows: int) -> None:
    """A small model, and one whose passes are cut in parts."""
    model = crossed(rows)
    results = [LaplaceEngine().run(model, Settings(draws=200, ess=200, seed=7, threads=threads)) for threads in (1, 2)]
    assert same(*results)
    if rows < 1000:
        assert same(results[0], LaplaceEngine().run(model, Settings(draws=200, ess=200, seed=7)))
        assert not same(results[0], LaplaceEngine().run(model, Settings(draws=200, ess=200, seed=8)))


@cache
def long() -> pp.Model:
    rng = np.random.default_rng(5)
    n = 24_000
    g, x = rng.integers(0, 1200, n), rng.normal(size=n)
    eta = 0.3 + 0.5 * x + rng.normal(0, 0.8, 1200)[g]
    data = pd.DataFrame({"y": rng.binomial(1, 1 / (1 + np.exp(-eta))), "x": x, "g": g})
    return pp.Model.from_formula("y ~ x + (1 | g)", data, family="bernoulli")


@pytest.fixture(scope="module")
def interpolated() -> list[Result]:
    return [LaplaceEngine().run(long(), Settings(ess=2000, seed=3, threads=threads)) for threads in (1, 2)]


def test_many_rows_are_interpolated(interpolated: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    result = interpolated[0]
    assert any("interpolated between" in step for step in result.accuracy.steps)
    assert result.accuracy.surrogate_error is not None and result.accuracy.surrogate_error < 0.05
    assert result.accuracy.trusted and result.accuracy.evaluations < 2000
    monkeypatch.setattr(engine, "PATIENCE", math.inf)
    plain = LaplaceEngine().run(long(), Settings(draws=400, ess=400, seed=4, threads=2))
    assert plain.accuracy.surrogate_error is None
    mean, sd = moments(result, long())
    other_mean, other_sd = moments(plain, long())
    assert (np.abs(mean - other_mean) < 4 * other_sd / math.sqrt(400)).all()
    np.testing.assert_allclose(sd, other_sd, rtol=0.15)
    assert result.log_marginal_likelihood == pytest.approx(plain.log_marginal_likelihood, abs=0.1)


def test_interpolation_does_not_depend_on_threads(interpolated: list[Result]) -> None:
    assert same(*interpolated)


# -- the rungs ---------------------------------------------------------------------------------------------------------


def test_escalation_is_told(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    """Too many unknowns: NUTS in whitened coordinates, and why."""
    monkeypatch.setattr(engine, "MOST_DIMENSIONS", 2)
    result = LaplaceEngine().run(tiny.model, Settings(draws=400, ess=200, seed=1))
    assert result.accuracy.engine == "whitened" and result.chains == 4
    assert any("3 unknowns are too many" in step and "NUTS in whitened" in step for step in result.accuracy.steps)


def test_weights_given_up_are_told(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    monkeypatch.setattr(engine, "LEAST_EFFICIENCY", 1.1)
    monkeypatch.setattr(engine, "FAIR_SHARE", 1.1)
    monkeypatch.setattr(engine, "BARGAIN", 0)
    monkeypatch.setattr(engine, "FIRST_NODES", 64)
    result = LaplaceEngine().run(tiny.model, Settings(draws=200, ess=200, seed=1))
    assert result.accuracy.engine == "whitened"
    assert any("importance sampling given up: Pareto k" in step for step in result.accuracy.steps)


def test_an_ess_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    monkeypatch.setattr(engine, "MOST_NODES", 500)
    result = LaplaceEngine().run(tiny.model, Settings(draws=100, ess=5000, seed=1))
    assert not result.accuracy.trusted
    assert any("was reached, not the 5,000 asked for" in note for note in result.accuracy.notes)


def test_pool_weighs_against_the_mixture() -> None:
    """Two proposals, one of them bad: the pool's estimate of a normalising constant stays that of the target."""
    rng = np.random.default_rng(2)
    narrow = SplitT(np.zeros(1), np.eye(1), np.full(1, 0.3), np.full(1, 0.3), np.full(1, 10.0))
    wide = SplitT(np.zeros(1), np.eye(1), np.full(1, 1.5), np.full(1, 1.5), np.full(1, 4.0))
    pool = Pool()
    for proposal in (narrow, wide):
        x, _ = proposal.points(rng.random((4000, 1)))
        pool.add(proposal, x, x, -0.5 * x[:, 0] ** 2)
    sample = pool.sample()
    assert pool.size == 8000 and sample.x.shape == (8000, 1)
    assert np.exp(sample.log_ratio).mean() == pytest.approx(math.sqrt(2 * math.pi), rel=0.03)
    # no weight is larger than twice what the better proposal gives
    assert (sample.log_ratio <= -0.5 * sample.x[:, 0] ** 2 - wide.log_density(sample.x) + math.log(2) + 1e-9).all()


def test_no_groups() -> None:
    """Logistic regression on a grid."""
    data = pd.DataFrame({"y": [0, 1, 0, 1, 1, 0, 1, 1], "x": [-2.0, -1, -0.5, 0, 0.5, 1, 1.5, 2]})
    priors = {"Intercept": pp.Normal(0, 2), "x": pp.Normal(0, 1)}
    model = pp.Model.from_formula("y ~ x", data, family="bernoulli", priors=priors)
    result = LaplaceEngine().run(model, Settings(ess=4000, seed=1))
    a, b = (part.ravel() for part in np.meshgrid(np.linspace(-7, 8, 201), np.linspace(-4, 5, 201), indexing="ij"))
    logs = -0.125 * a**2 - 0.5 * b**2 - math.log(2) - math.log(2 * math.pi) + math.log(0.075 * 0.045)
    for y, x in zip(data["y"], data["x"], strict=True):
        logs = logs + log_rows("bernoulli", y, a + b * x)
    log_p = float(log_sum(logs))
    weight = np.exp(logs - log_p)
    mean, sd = moments(result, model)
    for k, values in enumerate((a, b)):
        exact = float(weight @ values)
        spread = math.sqrt(weight @ (values - exact) ** 2)
        assert mean[k] == pytest.approx(exact, abs=4 * spread / math.sqrt(4000))
        assert sd[k] == pytest.approx(spread, rel=0.05)
    assert result.log_marginal_likelihood == pytest.approx(log_p, abs=0.03)


def test_run_keeps_what_it_prepared(tiny: Tiny) -> None:
    run = LaplaceRun(tiny.model, Settings(seed=1), reason="asked")
    from partialpool.inference.progress import Progress

    with Progress(False) as run.progress:
        transport = run.prepare()
    assert run.transport is transport and run.gap is not None and run.evaluations > 0
    assert any("mode of the hyperparameters: converged" in step for step in run.steps)
