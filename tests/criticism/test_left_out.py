"""The driver of what is left out: nodes, bridge, refits, and the answer in words, tables and pictures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.criticism import left_out as driver
from partialpool.criticism import refits
from partialpool.criticism.bridge import bridge
from partialpool.criticism.left_out import left_out
from partialpool.criticism.logo import logo
from partialpool.criticism.loo import loo
from partialpool.criticism.nodes import Nodes, nodes_of_fit, nodes_of_refit
from partialpool.errors import InferenceError, ModelError


@pytest.fixture(scope="module")
def fit():
    return pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1, threads=1)


def equal_nodes(theta):
    none = np.empty((len(theta), 0))
    return Nodes(theta, none, none, np.full(len(theta), -np.log(len(theta))))


class Toy:
    """y_i ~ N(theta, 1), theta ~ N(0, 1e4): units are rows, and p(y_i | y_-i, theta) does not depend on the others."""

    most_nodes = 10_000

    def __init__(self, y):
        self.y = np.asarray(y, dtype=float)

    @property
    def units(self):
        return len(self.y)

    def log_densities(self, nodes, units):
        left = -0.5 * np.log(2 * np.pi) - 0.5 * (self.y[units] - nodes.theta) ** 2
        return left, None

    def rows_of(self, unit):
        return np.array([unit])

    def exact(self, unit):
        rest = np.delete(self.y, unit)
        precision = len(rest) + 1e-4
        variance = 1 + 1 / precision
        error = self.y[unit] - rest.sum() / precision
        return -0.5 * np.log(2 * np.pi * variance) - 0.5 * error**2 / variance


def test_the_bridge_is_exact_where_one_fit_is_far_from_the_other():
    """An outlier at 7 sds among 4 rows: the two posteriors hardly overlap."""
    toy = Toy([0.0, 0.5, -0.5, 7.0])
    rng = np.random.default_rng(1)
    misses, errors = [], []
    for _ in range(60):
        full = rng.normal(toy.y.mean(), 0.5, (1500, 1))
        without = rng.normal(0.0, 3**-0.5, (1500, 1))
        at = [toy.log_densities(equal_nodes(theta), np.array([3]))[0][:, 0] for theta in (full, without)]
        found = bridge(equal_nodes(full), at[0], equal_nodes(without), at[1])
        misses.append(found.value - toy.exact(3))
        errors.append(found.error)
        assert found.error**2 == pytest.approx(found.own_variance + np.sum(found.influence**2), rel=1e-9)
    assert abs(np.mean(misses)) < 4 * np.std(misses) / np.sqrt(60)
    assert np.std(misses) == pytest.approx(np.mean(errors), rel=0.3)
    assert np.mean(errors) < 0.1


def test_importance_alone(fit, monkeypatch):
    """Values, errors and the error of the total of the driver, on a conditional that is known in closed form."""
    rng = np.random.default_rng(2)
    toy = Toy(rng.normal(size=50))
    monkeypatch.setattr(driver, "BLOCK_NUMBERS", 7 * 2000)
    totals, told = [], []
    exact = np.array([toy.exact(unit) for unit in range(50)])
    for seed in range(40):
        theta = np.random.default_rng(seed).normal(toy.y.sum() / 50.0001, 50**-0.5, (2000, 1))
        monkeypatch.setattr(driver, "nodes_of_fit", lambda *_, theta=theta: equal_nodes(theta))
        found = left_out(fit, toy, threads=1)
        assert (abs(found.elpd - exact) < 5 * found.error + 1e-9).all()
        assert found.inside is None and not found.refitted.any()
        totals.append(found.elpd.sum() - exact.sum())
        told.append(found.total_error)
    assert np.std(totals) == pytest.approx(np.mean(told), rel=0.35)


def test_many_errors_are_mended_by_more_nodes(monkeypatch):
    fit = pp.fit("Reaction ~ Days + (1 | Subject)", pp.datasets.load("sleepstudy").iloc[:50], seed=1, threads=1)
    before = loo(fit, threads=1)
    limit = float(np.sort(before.table["se"])[-10])
    monkeypatch.setattr(driver, "MOST_ERROR", limit)
    monkeypatch.setattr(driver, "MOST_TIMES", 12.0)
    monkeypatch.setattr(refits, "TRIES", 1)
    monkeypatch.setattr(driver, "FEW", 5)
    after = loo(fit, threads=1)
    assert after.pointwise.nodes > 2 * before.pointwise.nodes
    assert after.pointwise.refitted.sum() < 6
    assert abs(after.elpd - before.elpd) < 4 * before.mc_error


def test_nodes_of_many_kinds(fit):
    every = nodes_of_fit(fit)
    assert np.exp(every.log_weights).sum() == pytest.approx(1) and every.efficiency == 1
    some = nodes_of_fit(fit, 300)
    assert len(some.theta) <= 300 and some.efficiency < 1
    np.testing.assert_allclose(np.exp(some.log_weights) @ some.theta, np.exp(every.log_weights) @ every.theta, atol=0.1)
    part = fit.model.take_rows(np.arange(100)).fit(seed=2)
    assert nodes_of_refit(fit.model, part).theta.shape[1] == every.theta.shape[1]


def test_nodes_of_a_refit_are_laid_out_as_the_whole_model():
    """Poisson, crossed: a group that the refit lacks has effects from its population."""
    rng = np.random.default_rng(3)
    g, h = rng.integers(0, 12, 150), rng.integers(0, 5, 150)
    data = pd.DataFrame({"y": rng.poisson(3, 150), "g": g, "h": h})
    model = pp.Model.from_formula("y ~ 1 + (1 | g) + (1 | h)", data, family="poisson")
    part = model.take_rows(np.flatnonzero(h != 2)).fit(seed=1, draws=500, ess=200, progress=False)
    nodes = nodes_of_refit(model, part)
    assert nodes.root.shape == (500, 5)
    known = part.group_draws("h")[:, :, 0]
    np.testing.assert_allclose(nodes.root[:, [0, 1, 3, 4]], known)
    spread = nodes.root[:, 2] / np.exp(nodes.theta[:, model.hyperparameters.terms[1].at])
    assert abs(spread.mean()) < 0.2 and spread.std() == pytest.approx(1, abs=0.15)


def test_few_groups_are_refitted():
    """Five groups, one of them far away: its weights fail, and the refit's value is that of marginal likelihoods."""
    rng = np.random.default_rng(0)
    g, x = np.repeat(np.arange(5), 8), rng.normal(size=40)
    data = pd.DataFrame({"y": rng.normal(size=5)[g] + x + rng.normal(size=40) + 30 * (g == 4), "x": x, "g": g})
    model = pp.Model.from_formula("y ~ x + (1 | g)", data)
    found = logo(model.fit(seed=1), threads=1)
    assert found.table.loc["4", "refitted"] and (found.table["se"] <= 0.03).all()
    assert "fitted again" in repr(found) and "g 4" in repr(found)
    options = {"draws": 100, "ess": 20_000, "seed": 3, "threads": 1, "progress": False}
    whole = model.fit(**options).log_marginal_likelihood
    exact = whole - model.take_rows(np.flatnonzero(g != 4)).fit(**options).log_marginal_likelihood
    assert abs(found.table.loc["4", "elpd"] - exact) < max(0.05, 4 * found.table.loc["4", "se"])
    two = logo(model.fit(seed=1), threads=2)
    np.testing.assert_allclose(two.table["elpd"], found.table["elpd"], atol=1e-10)


def test_a_row_whose_predictor_only_it_has(fit):
    """Without it a column is constant: columns and priors are those of the whole model."""
    data = pd.DataFrame({"y": [0.1, 0.5, -0.3, 0.9, 2.0, 9.0, 0.2, 0.4], "c": list("aaabbcab")})
    found = loo(pp.fit("y ~ c", data, seed=1), threads=1)
    assert np.isfinite(found.table["elpd"]).all()


def test_refits_that_are_stopped_or_fail(fit, monkeypatch):
    def fails(*_, **__):
        raise InferenceError("no")

    monkeypatch.setattr(refits, "fit_model", fails)
    found = logo(fit, threads=1)
    assert found.pointwise.doubtful.sum() == 1 and not found.table["refitted"].any()
    assert "Subject 332" in " ".join(found.sentences) and "not possible" in " ".join(found.sentences)
    found.plot()

    def stopped(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr(refits, "as_completed", stopped)
    found = logo(fit, threads=1)
    assert found.pointwise.interrupted and "stopped" in " ".join(found.sentences)


def test_the_answer(fit):
    found = loo(fit, threads=1)
    assert found.table.columns.tolist() == ["elpd", "se", "pareto_k", "refitted"]
    assert found.table.index.equals(pp.datasets.load("sleepstudy").index)
    text = repr(found)
    assert "Leave-one-out: Reaction ~ Days + (Days | Subject)" in text and "180 rows" in text
    assert "Predicted worst: row 56" in text
    assert "se for other data of this kind" in text
    assert re.search(r"\nelpd +-862 +23 +0\.\d\d\d\n", text)  # two digits of a Monte Carlo error are enough
    assert "<table" in found._repr_html_()
    table = found.table
    table["elpd"] = 0.0
    assert found.table["elpd"].iloc[0] != 0  # the user's copy
    for drawn in (found.plot(), logo(fit, threads=1).plot(figsize=(6, 4))):
        drawn.canvas.draw()
    with pytest.raises(ModelError, match="not both"):
        found.plot(ax=found.plot().axes[0], figsize=(3, 3))


def test_groups_of_different_sizes_are_told():
    """The se of the sum holds that other groups have other sizes too."""
    data = pp.datasets.load("sleepstudy").iloc[5:60]
    text = repr(logo(pp.fit("Reaction ~ Days + (1 | Subject)", data, seed=1, threads=1), threads=1))
    assert "se for other groups, of sizes that differ as these do" in text
    assert "Predicted worst, a row on average: Subject 308" in text


def test_no_result_depends_on_threads(fit):
    one, two = (loo(fit, threads=threads) for threads in (1, 2))
    np.testing.assert_allclose(one.table["elpd"], two.table["elpd"], atol=1e-12)
    with pytest.raises(ModelError, match="threads = 0"):
        loo(fit, threads=0)


def test_saved_fits(fit, tmp_path):
    fit.save(tmp_path / "with.pp")
    again = loo(pp.load(tmp_path / "with.pp"), threads=1)
    np.testing.assert_allclose(again.table["elpd"], loo(fit, threads=1).table["elpd"], atol=1e-10)
    fit.save(tmp_path / "without.pp", data=False)
    bare = pp.load(tmp_path / "without.pp")
    for ask in (loo, logo):
        with pytest.raises(ModelError, match=f"{ask.__name__}\\(\\) needs the rows"):
            ask(bare)


def test_chains_count_for_less_than_their_draws(fit):
    chains = replace(fit.result, chains=4)
    nodes = nodes_of_fit(replace(fit, result=replace(chains, theta=np.cumsum(fit.result.theta[:4000], axis=0),
                                                     beta_mean=fit.result.beta_mean[:4000])))  # fmt: skip
    assert nodes.chains == 4 and nodes.efficiency < 0.1
