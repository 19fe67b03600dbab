"""Rows left out of Gaussian models: conditionals against dense algebra, values against marginal likelihoods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from dense_gaussian import dense, some_theta
from partialpool.algebra import sparse_root
from partialpool.criticism import gaussian_left_out
from partialpool.criticism.gaussian_left_out import GaussianLeftOut
from partialpool.criticism.loo import loo
from partialpool.criticism.nodes import Nodes
from partialpool.design import crossprod


def nodes_at(theta):
    none = np.empty((len(theta), 0))
    return Nodes(theta, none, none, np.full(len(theta), -np.log(len(theta))))


def tangled(n=110, seed=0):
    """Three nested factors and three crossed ones, rows in no order."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, n)
    b = 10 * a + rng.integers(0, 4, n)
    k = rng.integers(0, 26, n)
    return pd.DataFrame(
        {"a": a, "b": b, "c": 10 * b + rng.integers(0, 3, n), "h": rng.integers(0, 9, n), "k": k,
         "l": (k // 3) * 3 + rng.integers(0, 2, n), "x": rng.normal(size=n), "z": rng.normal(size=n),
         "y": rng.normal(size=n), "w": rng.uniform(0.5, 3, n), "s": rng.uniform(0.4, 2, n), "o": rng.normal(size=n)}
    )  # fmt: skip


FORMULAS = {
    "no factor": "y ~ x + z",
    "no coefficient": "y ~ 0 + (1 | a)",
    "slopes": "y ~ x + (x | h)",
    "weights, offset": "y | weights(w) ~ x + offset(o) + (x || h)",
    "precision": "y | precision(w) ~ 1 + (0 + x | h)",
    "known errors": "y | se(s) ~ x + (x | h)",
    "known errors and sigma": "y | se(s, sigma=True) ~ x + (1 | h)",
    "known errors, no factor": "y | se(s, sigma=True) ~ x",
    "nested": "y ~ x + (x | a/b) + (1 | a:b:c)",
    "crossed": "y ~ x + (x | b) + (z | h)",
    "nested and crossed": "y ~ z + (1 | a/b) + (x | h)",
    "wide root": "y ~ z + (x | k) + (z | l) + (x | h)",
}


@pytest.mark.parametrize("name", FORMULAS)
def test_conditionals_are_those_of_a_multivariate_normal(name):
    data = tangled(60 if "wide" not in name else 90)
    model = pp.Model.from_formula(FORMULAS[name], data)
    theta = some_theta(model, 2)
    conditional = GaussianLeftOut(model)
    left, inside = conditional.log_densities(nodes_at(theta), slice(0, conditional.units))
    every = np.arange(model.design.n_rows)
    for k in range(2):
        full = dense(model, theta[k])
        total = full.log_density(every)
        for i in every[::3]:
            assert conditional.rows_of(i).tolist() == [i]
            assert left[k, i] == pytest.approx(total - full.log_density(np.delete(every, i)), abs=1e-9)
            copied = full.with_copy(every[[i]], full.covariance[:, [i]])
            assert inside[k, i] == pytest.approx(copied.log_density(np.arange(every.size + 1)) - total, abs=1e-9)


def test_a_sparse_root_gives_the_same(monkeypatch):
    monkeypatch.setattr(crossprod, "SPARSE_FROM", 1)
    monkeypatch.setattr(sparse_root, "SPARSE_SHARE", 1e9)
    test_conditionals_are_those_of_a_multivariate_normal("nested and crossed")


def test_any_units_in_any_order():
    model = pp.Model.from_formula("y ~ x + (x | h)", tangled(60))
    nodes, conditional = nodes_at(some_theta(model, 3)), GaussianLeftOut(model, threads=2)
    left, inside = conditional.log_densities(nodes, slice(0, 60))
    for units in ([7], [50, 3, 20], np.arange(59, -1, -1), np.arange(0, 60, 2), conditional.order, []):
        wanted = np.asarray(units, dtype=np.int64)
        own = conditional.log_densities(nodes, wanted)
        np.testing.assert_allclose(own[0], left[:, wanted], atol=1e-12)
        np.testing.assert_allclose(own[1], inside[:, wanted], atol=1e-12)


def test_nodes_of_a_model_without_groups_in_steps(monkeypatch):
    model = pp.Model.from_formula("y | weights(w) ~ x + z", tangled(60))
    nodes, conditional = nodes_at(some_theta(model, 9)), GaussianLeftOut(model)
    at_once = conditional.log_densities(nodes, np.arange(10, 40))
    monkeypatch.setattr(gaussian_left_out, "NUMBERS", 30 * 7 * 2)  # two nodes a step
    in_steps = conditional.log_densities(nodes, np.arange(10, 40))
    np.testing.assert_allclose(in_steps[0], at_once[0], atol=1e-12)
    np.testing.assert_allclose(in_steps[1], at_once[1], atol=1e-12)


def test_each_row_against_the_marginal_likelihood_without_it():
    """log p(y) - log p(y less the row), each by importance sampling of its own."""
    data = pp.datasets.load("sleepstudy")
    model = pp.Model.from_formula("Reaction ~ Days + (Days | Subject)", data)
    options = {"draws": 100, "ess": 40_000, "seed": 3, "threads": 1, "progress": False}
    whole = model.fit(**options).log_marginal_likelihood
    found = loo(model.fit(seed=1), threads=1)
    for row in (0, 56, 59, 100):
        without = model.take_rows(np.delete(np.arange(180), row)).fit(**options).log_marginal_likelihood
        apart = found.table["elpd"].iloc[row] - (whole - without)
        assert abs(apart) < max(0.02, 4 * found.table["se"].iloc[row])
    assert (found.table["se"] <= 0.03).all()
    assert (found.table["pareto_k"] > 0.7).mean() <= 0.01
    assert found.elpd == pytest.approx(found.table["elpd"].sum())
    assert found.elpd_se == pytest.approx(np.sqrt(180) * found.table["elpd"].std())
    assert 20 < found.p_eff < 40


def test_rows_permuted_permute_the_answer():
    data = pp.datasets.load("sleepstudy").iloc[:60]
    shuffled = data.sample(frac=1, random_state=2)
    tables = [loo(pp.fit("Reaction ~ Days + (1 | Subject)", own, seed=1), threads=1).table for own in (data, shuffled)]
    assert tables[1].index.tolist() == shuffled.index.tolist()
    np.testing.assert_allclose(tables[1].loc[data.index, "elpd"], tables[0]["elpd"], atol=1e-3)


def test_a_row_of_weight_two_leaves_as_two_rows():
    """It is the group of its two copies in the model of repeated rows."""
    data = pp.datasets.load("sleepstudy").iloc[:40].assign(w=1.0)
    data.loc[data.index[5], "w"] = 2.0
    twice = pd.concat([data, data.iloc[[5]]])
    weighted = pp.Model.from_formula("Reaction | weights(w) ~ Days + (1 | Subject)", data)
    repeated = pp.Model.from_formula("Reaction ~ Days + (1 | Subject)", twice)
    theta = some_theta(repeated, 2)
    left = GaussianLeftOut(weighted).log_densities(nodes_at(theta), np.array([5]))[0][:, 0]
    for k in range(2):
        # the priors' scales and centres differ a little: those of the weighted model
        full = dense(weighted, theta[k])
        pair = np.append(np.arange(40), 5)
        one = type(full)(full.y[pair], full.covariance[np.ix_(pair, pair)], full.variance[pair], np.ones(41))
        rest = np.delete(np.arange(40), 5)
        assert left[k] == pytest.approx(one.log_density(np.arange(41)) - one.log_density(rest), abs=1e-8)


def test_chains_give_the_same():
    data = pp.datasets.load("sleepstudy").iloc[:40]
    formula, priors = "Reaction ~ Days + (1 | Subject)", {"Days": pp.StudentT(3, 0, 10)}
    exact = loo(pp.fit(formula, data, seed=1, priors=priors), threads=1)
    options = {"method": "nuts", "progress": False, "ess": 200, "draws": 400}
    chains = loo(pp.fit(formula, data, seed=1, priors=priors, **options), threads=1)
    error = np.hypot(exact.table["se"], chains.table["se"])
    assert (abs(exact.table["elpd"] - chains.table["elpd"]) < 5 * error + 0.005).all()
    assert abs(exact.elpd - chains.elpd) < 4 * np.hypot(exact.mc_error, chains.mc_error)


def test_a_model_without_hyperparameters_is_exact():
    data = tangled(40)
    found = loo(pp.fit("y | se(s) ~ x", data, seed=1), threads=1)
    assert found.pointwise.nodes == 1 and not found.table["refitted"].any()
    assert (found.table["se"] == 0).all() and found.mc_error == 0


def test_a_flat_prior_that_a_single_row_informs():
    data = tangled(30)
    data["only"] = (np.arange(30) == 4).astype(float)
    fit = pp.fit("y ~ 0 + x + only", data, seed=1, priors={"only": "flat"})
    found = loo(fit, threads=1)
    assert found.table["elpd"].iloc[4] == -np.inf
    assert np.isfinite(found.table["elpd"].drop(index=4)).all()
    assert "flat prior" in repr(found)
