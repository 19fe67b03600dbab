"""Groups left out of Gaussian models: conditionals against dense algebra, values against marginal likelihoods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from dense_gaussian import dense, effects_covariance, some_theta
from partialpool.algebra import sparse_root
from partialpool.criticism.gaussian_left_out import GaussianLeftOut
from partialpool.criticism.logo import logo
from partialpool.criticism.nodes import Nodes
from partialpool.design import crossprod
from partialpool.errors import ModelError
from partialpool.posterior.components import coarser_factors


def nodes_at(theta):
    none = np.empty((len(theta), 0))
    return Nodes(theta, none, none, np.full(len(theta), -np.log(len(theta))))


def tangled(n=110, seed=0):
    """Nested and crossed factors, rows in no order, labels that do not sort by their parents."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, n)
    b = 10 * rng.integers(0, 4, n) + a  # children of one parent lie apart
    k = rng.integers(0, 26, n)
    return pd.DataFrame(
        {"a": a, "b": b, "h": rng.integers(0, 9, n), "k": k, "l": (k // 3) * 3 + rng.integers(0, 2, n),
         "x": rng.normal(size=n), "z": rng.normal(size=n), "y": rng.normal(size=n), "w": rng.uniform(0.5, 3, n),
         "s": rng.uniform(0.4, 2, n), "o": rng.normal(size=n)}
    ).assign(hk=lambda d: d["h"] // 3)  # fmt: skip


FORMULAS = {
    "slopes": "y ~ x + (x | h)",
    "no coefficient": "y ~ 0 + (1 | a)",
    "weights, offset": "y | weights(w) ~ x + offset(o) + (x || h)",
    "precision": "y | precision(w) ~ 1 + (0 + x | h)",
    "known errors": "y | se(s) ~ x + (x | h)",
    "known errors and sigma": "y | se(s, sigma=True) ~ x + (1 | h)",
    "nested": "y ~ x + (x | a) + (x | b)",
    "nested and crossed": "y ~ z + (1 | a) + (x | b) + (x | h) + (1 | hk)",
    "wide root": "y ~ z + (x | k) + (z | l) + (x | h)",
}


@pytest.mark.parametrize("name", FORMULAS)
def test_conditionals_are_those_of_a_multivariate_normal(name):
    """Of every factor; a copy of a group is a new group, and so are the groups inside it."""
    model = pp.Model.from_formula(FORMULAS[name], tangled(90))
    theta = some_theta(model, 1)
    full, every = dense(model, theta[0]), np.arange(90)
    total = full.log_density(every)
    factors = model.design.factors
    for f, factor in enumerate(factors):
        conditional = GaussianLeftOut(model, f)
        left, inside = conditional.log_densities(nodes_at(theta), slice(0, conditional.units))
        assert conditional.units == len(factor.labels)
        new = [other for other in range(len(factors)) if other == f or f in coarser_factors(model, other)]
        own = sum(effects_covariance(model, theta[0], other) for other in new)
        for unit in range(0, conditional.units, 2):
            rows = np.sort(conditional.rows_of(unit))
            assert rows.tolist() == np.flatnonzero(factor.codes == unit).tolist()
            exact = total - full.log_density(np.setdiff1d(every, rows))
            assert left[0, unit] == pytest.approx(exact, abs=1e-8)
            copied = full.with_copy(rows, (full.covariance - own)[:, rows])
            exact = copied.log_density(np.arange(90 + rows.size)) - total
            assert inside[0, unit] == pytest.approx(exact, abs=1e-8)


def test_a_sparse_root_gives_the_same(monkeypatch):
    monkeypatch.setattr(crossprod, "SPARSE_FROM", 1)
    monkeypatch.setattr(sparse_root, "SPARSE_SHARE", 1e9)
    test_conditionals_are_those_of_a_multivariate_normal("nested and crossed")


def test_some_groups_are_those_of_all():
    model = pp.Model.from_formula(FORMULAS["nested"], tangled(90))
    nodes, conditional = nodes_at(some_theta(model, 3)), GaussianLeftOut(model, 1, threads=2)
    left, inside = conditional.log_densities(nodes, slice(0, conditional.units))
    for units in ([3], [7, 1, 4], np.arange(conditional.units)[::2]):
        own = conditional.log_densities(nodes, np.asarray(units))
        np.testing.assert_allclose(own[0], left[:, units], atol=1e-11)
        np.testing.assert_allclose(own[1], inside[:, units], atol=1e-11)


def test_each_group_against_the_marginal_likelihood_without_it():
    """Subject 332 defeats importance weights; 308 nearly does."""
    model = pp.Model.from_formula("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"))
    options = {"draws": 100, "ess": 40_000, "seed": 3, "threads": 1, "progress": False}
    whole = model.fit(**options).log_marginal_likelihood
    found = logo(model.fit(seed=1), threads=1)
    assert found.table.index.tolist() == model.design.factors[0].labels.tolist()
    for group in ("308", "332", "372"):
        code = found.table.index.get_loc(group)
        rest = np.flatnonzero(model.design.factors[0].codes != code)
        exact = whole - model.take_rows(rest).fit(**options).log_marginal_likelihood
        assert abs(found.table.loc[group, "elpd"] - exact) < max(0.05, 4 * found.table.loc[group, "se"])
    assert (found.table["se"] <= 0.03).all()
    assert found.table["n"].eq(10).all()


def test_nested_and_crossed_data():
    pastes = logo(pp.fit("strength ~ 1 + (1 | batch/cask)", pp.datasets.load("Pastes"), seed=1), "batch", threads=1)
    casks = logo(pastes.source, "batch:cask", threads=1)
    assert len(pastes.table) == 10 and len(casks.table) == 30
    # a batch is three casks: what is known of the batch's other casks helps to predict one
    assert casks.elpd > pastes.elpd - 3
    penicillin = pp.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", pp.datasets.load("Penicillin"), seed=1)
    for factor, groups in (("plate", 24), ("sample", 6)):
        found = logo(penicillin, factor, threads=1)
        assert len(found.table) == groups and (found.table["se"] <= 0.03).all()


def test_what_cannot_be_asked():
    data = tangled(60)
    with pytest.raises(ModelError, match="Did you mean 'h'"):
        logo(pp.fit("y ~ x + (1 | h)", data, seed=1), "H")
    with pytest.raises(ModelError, match="several grouping factors; name one of: a, h"):
        logo(pp.fit("y ~ x + (1 | a) + (1 | h)", data, seed=1))
    with pytest.raises(ModelError, match="this model has none; loo"):
        logo(pp.fit("y ~ x", data, seed=1))
