"""WAIC against its definition by hand, from draws made in another way; effective parameters against dense algebra."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.criticism.densities import conditional_moments, marginal_moments
from partialpool.criticism.effective import MOST_NODES, parameters_by_level
from partialpool.criticism.gaussian_left_out import GaussianLeftOut
from partialpool.criticism.gaussian_rows import RowPredictors, given_theta
from partialpool.criticism.leaf_densities import leaf_blocks
from partialpool.criticism.nodes import nodes_of_fit
from partialpool.criticism.waic import waic
from partialpool.errors import ModelError
from partialpool.posterior.groups import chosen_positions

FLAT = {"Intercept": pp.Flat(), "sd(school)": pp.Uniform(0, 40)}
OPTIONS: dict[str, Any] = {"seed": 1, "threads": 1, "progress": False}


@cache
def schools() -> Any:
    return pp.fit("y | se(sigma) ~ 1 + (1 | school)", pp.datasets.load("eight_schools"), priors=FLAT, **OPTIONS)


@cache
def sleepstudy() -> Any:
    return pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), **OPTIONS)


@cache
def cbpp() -> Any:
    data = pp.datasets.load("cbpp")
    return pp.fit("incidence | trials(size) ~ period + (1 | herd)", data, family="binomial", **OPTIONS)


def by_hand(logs: np.ndarray) -> dict[str, float]:
    """The definition, from log densities (draws, rows)."""
    lppd = np.log(np.exp(logs).mean(axis=0))
    return {
        "lppd": lppd.sum(), "p_waic1": 2 * (lppd - logs.mean(axis=0)).sum(),
        "p_waic2": logs.var(axis=0, ddof=1).sum(), "elpd": (lppd - logs.var(axis=0, ddof=1)).sum(),
    }  # fmt: skip


def draws_of_schools(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mu, tau and the schools' effects from a grid of tau, as in Bayesian Data Analysis, section 5.4."""
    data, rng = pp.datasets.load("eight_schools"), np.random.default_rng(7)
    y, s = data["y"].to_numpy(dtype=float), data["sigma"].to_numpy(dtype=float)
    tau = (np.arange(4000) + 0.5) / 100
    precision = 1 / (s**2 + tau[:, None] ** 2)
    v = 1 / precision.sum(axis=1)
    m = (precision * y).sum(axis=1) * v
    logs = 0.5 * np.log(v) + 0.5 * np.log(precision).sum(axis=1) - 0.5 * ((y - m[:, None]) ** 2 * precision).sum(axis=1)
    p = np.exp(logs - logs.max())
    at = rng.choice(len(tau), count, p=p / p.sum())
    mu = rng.normal(m[at], np.sqrt(v[at]))
    spread = 1 / (1 / s**2 + 1 / tau[at, None] ** 2)
    theta = rng.normal(spread * (y / s**2 + (mu / tau[at] ** 2)[:, None]), np.sqrt(spread))
    return mu, tau[at], theta


def test_eight_schools_by_hand() -> None:
    data = pp.datasets.load("eight_schools")
    y, s = data["y"].to_numpy(dtype=float), data["sigma"].to_numpy(dtype=float)
    mu, tau, theta = draws_of_schools(200_000)
    conditional = by_hand(-0.5 * np.log(2 * np.pi * s**2) - 0.5 * ((y - theta) / s) ** 2)
    variance = s**2 + tau[:, None] ** 2
    marginal = by_hand(-0.5 * np.log(2 * np.pi * variance) - 0.5 * (y - mu[:, None]) ** 2 / variance)
    table = waic(schools()).table
    for name, value in conditional.items():  # 0.02: some 3 of the errors that mc_error tells
        assert table.loc["conditional", name] == pytest.approx(value, abs=0.03)
    for name, value in marginal.items():
        assert table.loc["marginal", name] == pytest.approx(value, abs=4 * table.loc["marginal", "mc_error"])
    assert table.loc["conditional", "waic"] == pytest.approx(61.8, abs=0.2)  # Bayesian Data Analysis, table 7.2


@pytest.mark.parametrize("make", [sleepstudy, cbpp])
def test_conditional_is_the_definition_over_the_draws(make: Any) -> None:
    fit = make()
    (logs,) = fit.to_arviz()["log_likelihood"].data_vars.values()
    expected = by_hand(logs.to_numpy().reshape(-1, logs.shape[-1]))
    own = waic(fit).table.loc["conditional"]
    for name in ("lppd", "p_waic1", "p_waic2", "elpd"):
        assert own[name] == pytest.approx(expected[name], abs=1e-7 if make is cbpp else 4 * own["mc_error"] + 0.3)
    assert own["units"] == logs.shape[-1]


def test_error_is_that_of_repetitions() -> None:
    data = pp.datasets.load("Dyestuff")
    runs = [waic(pp.fit("Yield ~ 1 + (1 | Batch)", data, seed=k, threads=1)).table for k in range(5)]
    for kind, least in (("conditional", 0.05), ("marginal", 0.1)):  # quasi-random nodes do better than is told
        spread = np.std([table.loc[kind, "elpd"] for table in runs], ddof=1)
        told = np.mean([table.loc[kind, "mc_error"] for table in runs])
        assert least * told < spread < 2.5 * told


def test_weighted_rows_are_rows_that_come_several_times() -> None:
    data = pp.datasets.load("Dyestuff").assign(w=np.tile([1, 2, 3], 10))
    whole = data.loc[data.index.repeat(data["w"])]
    priors = {"Intercept": pp.Normal(1500, 100), "sd(Batch)": pp.HalfNormal(60), "sigma": pp.HalfNormal(60)}
    weighted = pp.fit("Yield | weights(w) ~ 1 + (1 | Batch)", data, priors=priors, **OPTIONS)
    repeated = pp.fit("Yield ~ 1 + (1 | Batch)", whole, priors=priors, **OPTIONS)
    one, other = conditional_moments(weighted), conditional_moments(repeated)
    w = data["w"].to_numpy()
    by_row = other.mean[np.concatenate([[0], np.cumsum(w)[:-1]])]
    assert one.mean == pytest.approx(w * by_row, abs=0.05)
    a, b = marginal_moments(weighted), marginal_moments(repeated)
    assert a is not None and b is not None
    assert a.at_means == pytest.approx(b.at_means, abs=0.02)
    assert a.mean == pytest.approx(b.mean, abs=0.15)


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x + (x | g)", "y ~ x + (x || g)", "y | se(s, sigma=True) ~ x + (1 | g)", "y | precision(w) ~ 1 + (1 | g)",
        "y | weights(w) ~ x + (x | g)", "y | se(s) ~ x + offset(x) + (1 | g)",
    ],
)  # fmt: skip
def test_marginal_densities_are_the_models_likelihood(formula: str) -> None:
    rng = np.random.default_rng(3)
    g = rng.integers(0, 6, 50)
    x = rng.normal(size=50)
    y = x + rng.normal(size=6)[g] + rng.normal(size=50)
    data = pd.DataFrame({"y": y, "x": x, "g": g, "s": rng.uniform(0.5, 2, 50), "w": rng.integers(1, 4, 50)})
    fit = pp.fit(formula, data, draws=50, **OPTIONS)
    densities = np.concatenate([values for _, values in leaf_blocks(fit).blocks()])
    for k in (0, 49):
        params = {name: float(fit.draws(name)[k]) for name in fit.parameters}
        assert densities[:, k].sum() == pytest.approx(fit.model.log_likelihood(params), abs=1e-8)


@pytest.mark.parametrize("response", ["y", "y | se(s, sigma=True)", "y | precision(w)", "y | weights(w)"])
def test_given_theta_rows_have_the_densities_that_leaving_out_finds(response: str) -> None:
    """The same densities in another way: the passes over an elimination of `GaussianLeftOut`."""
    rng = np.random.default_rng(3)
    g, x = rng.integers(0, 6, 50), rng.normal(size=50)
    y = x + rng.normal(size=6)[g] + rng.normal(size=50)
    data = pd.DataFrame({"y": y, "x": x, "g": g, "s": rng.uniform(0.5, 2, 50), "w": rng.integers(1, 4, 50)})
    fit = pp.fit(f"{response} ~ x + (x | g)", data, draws=50, **OPTIONS)
    nodes, rows = nodes_of_fit(fit, 5), RowPredictors(fit)
    inside = GaussianLeftOut(fit.model).log_densities(nodes, slice(0, 50))[1]
    for k, (b, half) in enumerate(zip(*rows.coefficients_at(nodes.theta), strict=True)):
        m, v, s = rows.at(nodes.theta[k], b, half)
        assert given_theta((rows.y - m) ** 2, v, s, rows.count)[0] == pytest.approx(inside[k], abs=1e-8)


def test_marginal_of_other_families_is_the_likelihood() -> None:
    fit = cbpp()
    theta = np.exp(fit.result.log_weights) @ fit.result.theta
    params = {name: float(fit.summary().loc[name, "mean"]) for name in fit.parameters}
    params["sd(Intercept|herd)"] = float(np.exp(theta[0]))
    found = marginal_moments(fit)
    assert found is not None
    assert found.at_means.sum() == pytest.approx(fit.model.log_likelihood(params), abs=1e-4)


def test_several_factors() -> None:
    fit = pp.fit("strength ~ 1 + (1 | batch / cask)", pp.datasets.load("Pastes"), **OPTIONS)
    (logs,) = fit.to_arviz()["log_likelihood"].data_vars.values()
    expected = by_hand(logs.to_numpy().reshape(-1, logs.shape[-1]))
    found = waic(fit)
    assert found.table.loc["conditional", "elpd"] == pytest.approx(expected["elpd"], abs=1e-7)
    assert len(found.pointwise_marginal) == 30
    assert "given the effects of batch" in repr(found)


def test_effective_parameters_are_the_trace_of_the_hat_matrix() -> None:
    fit = sleepstudy()
    data = pp.datasets.load("sleepstudy")
    days = data["Days"].to_numpy(dtype=float)
    subject = np.unique(data["Subject"].astype(str), return_inverse=True)[1]
    x = np.column_stack([np.ones(180), days - days.mean()])
    z = np.zeros((180, 36))
    z[np.arange(180), 2 * subject] = 1
    z[np.arange(180), 2 * subject + 1] = days
    positions, weights = chosen_positions(fit, MOST_NODES)
    coefficients = fit.model.coefficients
    levels = parameters_by_level(fit)
    expected = np.zeros(2)
    for theta, share in list(zip(fit.result.theta[positions], weights, strict=True)):
        lam = fit.model.hyperparameters.factors(theta[None, :])[0].reshape(2, 2)
        whole = np.column_stack([z @ np.kron(np.eye(18), lam), x * np.asarray(coefficients.scale)])
        gram = whole.T @ whole * np.exp(-2 * theta[-1])
        own = 1 - np.diag(np.linalg.inv(gram + np.eye(38)))
        expected += share * np.array([own[36:].sum(), own[:36].sum()])
    assert levels["effective"].iloc[:2].to_numpy() == pytest.approx(expected, rel=1e-8)
    assert levels.loc["all", "effective"] == pytest.approx(levels["effective"].iloc[:3].sum())
    assert levels["parameters"].tolist() == [2, 36, 4, 42]


def test_radon_counties_cost_half_their_number() -> None:
    fit = pp.fit("log_radon ~ floor + (1 | county)", pp.datasets.load("radon"), **OPTIONS)
    found = waic(fit)
    assert found.levels.loc["county", "parameters"] == 85
    assert found.levels.loc["county", "effective"] == pytest.approx(43.5, abs=1.5)
    assert "the 85 effects of county cost 4" in repr(found)


def test_what_each_pooling_costs() -> None:
    """With priors that say nothing, all effects count as parameters; with none, only the coefficients."""
    data = pp.datasets.load("Dyestuff")
    wide = {"sd(Batch)": pp.Uniform(1e4, 1.1e4), "Intercept": pp.Normal(1500, 1e5), "sigma": pp.HalfNormal(60)}
    levels = parameters_by_level(pp.fit("Yield ~ 1 + (1 | Batch)", data, priors=wide, **OPTIONS))
    assert levels.loc[["coefficients", "Batch"], "effective"].sum() == pytest.approx(6, abs=0.01)
    alone = parameters_by_level(pp.fit("Yield ~ 1", data, **OPTIONS))
    assert alone.loc["coefficients", "effective"] == pytest.approx(1, abs=0.02)
    assert alone.index.tolist() == ["coefficients", "hyperparameters", "all"]


def test_effective_parameters_of_other_responses_and_of_distributional_models() -> None:
    levels = parameters_by_level(cbpp())
    assert 8 < levels.loc["herd", "effective"] < 12
    data = pp.datasets.load("sleepstudy")
    formula = pp.formula("Reaction ~ Days + (1 | Subject)", sigma="~ 1 + (1 | Subject)")
    fit = pp.fit(formula, data, draws=500, ess=200, **OPTIONS)
    own = parameters_by_level(fit)
    assert own.loc["Subject", "parameters"] == 36
    assert 20 < own.loc["Subject", "effective"] < 36


def test_shows_itself_and_needs_rows(tmp_path: Any) -> None:
    found = waic(sleepstudy())
    text = repr(found)
    assert "14 of 180 rows" in text and "fit.loo()" in text and "6 of 18 groups" in text
    assert found.plot().axes[0].get_xlabel() == "Number of parameters"
    assert len(found.pointwise) == 180 and list(found.pointwise_marginal.index)[:2] == ["308", "309"]
    assert found._repr_html_().startswith("<div>")
    none = waic(pp.fit("Yield ~ 1", pp.datasets.load("Dyestuff"), **OPTIONS))
    assert list(none.table.index) == ["conditional"] and none.pointwise_marginal.empty
    sleepstudy().save(tmp_path / "a.pp", data=False)
    with pytest.raises(ModelError, match="needs the rows"):
        waic(pp.load(tmp_path / "a.pp"))
