"""Rows and groups left out at a node, by quadrature: against sums over grids of effects."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

import partialpool as pp
from partialpool.criticism.nodes import nodes_of_fit
from partialpool.criticism.quadrature_above import RULES, sinh_rule
from partialpool.criticism.quadrature_left_out import QuadratureLeafGroups, QuadratureRows, inside_of, quadrature_groups
from partialpool.criticism.quadrature_units import QuadratureUnits, outer_rule

NODES = 3
GRID = np.linspace(-8.0, 8.0, 161)
STEP = GRID[1] - GRID[0]


def data_of(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    n = 120
    x = rng.normal(size=n)
    if kind in ("nested", "partly"):
        a, b = np.arange(n) // 30, np.arange(n) // (5 if kind == "nested" else 4)
        y = rng.poisson(np.exp(0.5 + 0.7 * rng.normal(size=4)[a] + 0.5 * rng.normal(size=30)[b] + 0.2 * x))
    elif kind == "crossed":
        a, b = np.arange(n) % 6, np.arange(n) // 4
        y = rng.binomial(1, 1 / (1 + np.exp(-(0.3 + 0.8 * rng.normal(size=6)[a] + rng.normal(size=30)[b] + x))))
    elif kind in (
        "rows",
        "slopes",
    ):  # an effect for every row; groups of 1 to 4 rows, one row of them far from the others
        a, b = np.repeat(np.arange(48), np.tile([1, 2, 3, 4], 12)), np.arange(n)
        y = rng.poisson(np.exp(0.5 + 0.9 * rng.normal(size=48)[a] + 0.5 * rng.normal(size=n)[b] + 0.2 * x))
        y[1] = 60
    else:  # the leaf is the coarser factor: two effects a group
        a, b = np.arange(n) // 12, np.arange(n) // np.where(np.arange(n) < 60, 12, 6)
        y = rng.poisson(np.exp(0.5 + 0.6 * rng.normal(size=10)[a] + 0.4 * rng.normal(size=30)[b] + 0.3 * x))
    return {"y": y, "x": x, "a": a, "b": b}


@cache
def fitted(kind: str) -> Any:
    formula = {"coarse": "y ~ x + (1 + x || a) + (1 | b)", "slopes": "y ~ x + (1 + x | a) + (1 | b)"}.get(
        kind, "y ~ x + (1 | a) + (1 | b)"
    )
    family = "bernoulli" if kind == "crossed" else "poisson"
    return pp.fit(formula, data_of(kind), family=family, seed=1, threads=1, draws=1000, ess=400, progress=False)


class AtNode:
    """One node of a fit: sds, the rows' predictors by coefficients, and the effects that stand in the root."""

    def __init__(self, fit: Any, nodes: Any, k: int) -> None:
        design, model = fit.model.design, fit.model
        self.design, self.family = design, model.family
        self.fixed = design.V[:, design.x_columns] @ model.coefficients.to_public(nodes.gamma[k])
        self.sds = [
            np.concatenate([t.covariance.sds(nodes.theta[k : k + 1, t.parameters])[0]
                            for t in model.hyperparameters.terms if t.factor == f])
            for f in range(len(design.factors))
        ]  # fmt: skip
        self.root = nodes.root[k]

    def rows(self, which: np.ndarray, effects: np.ndarray) -> np.ndarray:
        """Sum of log densities of some rows where their predictor is moved by effects (rows, ...)."""
        shape = (-1,) + (1,) * (effects.ndim - 1)
        eta = self.fixed[which].reshape(shape) + effects
        y = np.broadcast_to(self.design.y[which].reshape(shape), eta.shape)
        return self.family.log_density_rows(y, eta, 0.0, 0.0, np.ones(eta.shape)).sum(axis=0)

    def rows_apart(self, effects: np.ndarray) -> np.ndarray:
        """(n, ...): the log density of every row where its predictor is moved by effects (...)."""
        eta = self.fixed.reshape((-1,) + (1,) * effects.ndim) + effects
        y = np.broadcast_to(self.design.y.reshape((-1,) + (1,) * effects.ndim), eta.shape)
        return self.family.log_density_rows(y, eta, 0.0, 0.0, np.ones(eta.shape))


def of_units(at: AtNode, outer: int, leaf: int) -> np.ndarray:
    """log p(y_unit | rest, node) of one effect a unit and one a group of the leaf, by grids of both."""
    codes, groups = at.design.factors[outer].codes, at.design.factors[leaf].codes
    out = []
    for unit in range(codes.max() + 1):
        total = -0.5 * GRID**2 - 0.5 * np.log(2 * np.pi) + np.log(STEP)
        for g in np.unique(groups[codes == unit]):
            own = np.flatnonzero((groups == g) & (codes == unit))
            rest = np.flatnonzero((groups == g) & (codes != unit))
            stay = at.rows(rest, at.root[codes[rest], None] + at.sds[leaf][0] * GRID) - 0.5 * GRID**2
            both = at.sds[outer][0] * GRID[:, None] + at.sds[leaf][0] * GRID
            leave = at.rows(own, np.broadcast_to(both, (len(own), *both.shape)))
            total = total + logsumexp(leave + stay, axis=1) - logsumexp(stay)
        out.append(logsumexp(total))
    return np.array(out)


@pytest.mark.parametrize("kind", ["nested", "partly", "crossed"])
def test_groups_of_the_root_agree_with_grids(kind: str) -> None:
    fit = fitted(kind)
    found = quadrature_groups(fit, 0, 1)
    assert isinstance(found, QuadratureUnits) and fit.model.latent.leaf == 1
    nodes = nodes_of_fit(fit, NODES)
    left, inside = found.log_densities(nodes, slice(0, found.units))
    for k in range(len(nodes.theta)):
        np.testing.assert_allclose(left[k], of_units(AtNode(fit, nodes, k), 0, 1), atol=2e-4)
    assert found.error < 0.003
    assert (inside is None) == (found.counts[0] > 0) == (kind != "nested")
    some = found.log_densities(nodes, np.array([2, 0]))[0]
    np.testing.assert_allclose(some, left[:, [2, 0]], atol=1e-12)
    np.testing.assert_array_equal(found.rows_of(1), np.flatnonzero(fit.model.design.factors[0].codes == 1))


def test_groups_of_a_leaf_that_hold_groups_of_the_root_agree_with_grids() -> None:
    fit = fitted("coarse")
    assert fit.model.latent.leaf == 0 and inside_of(fit.model, 0) == (1,) and inside_of(fit.model, 1) == ()
    found = quadrature_groups(fit, 0, 1)
    assert isinstance(found, QuadratureUnits) and set(found.parts.effects.tolist()) == {1, 2}
    nodes = nodes_of_fit(fit, NODES)
    left = found.log_densities(nodes, slice(0, found.units))[0]
    grid = np.linspace(-6.0, 6.0, 49)
    for k in range(len(nodes.theta)):
        at = AtNode(fit, nodes, k)
        a, b = (factor.codes for factor in at.design.factors)
        x = at.design.data["x"].to_numpy()
        for unit in (0, 7):
            total = -0.5 * (grid[:, None] ** 2 + grid**2) + 2 * np.log(0.25) - np.log(2 * np.pi)
            for g in np.unique(b[a == unit]):
                own = np.flatnonzero(b == g)
                moved = at.sds[0][0] * grid[:, None] + at.sds[0][1] * grid * x[own, None, None]
                whole = at.rows(own, moved[..., None] + at.sds[1][0] * grid)
                log_weight = -0.5 * grid**2 + np.log(0.25) - 0.5 * np.log(2 * np.pi)
                total = total + logsumexp(whole + log_weight, axis=2)
            assert left[k, unit] == pytest.approx(logsumexp(total), abs=2e-3)


def test_groups_of_the_leaf_and_rows_agree_with_grids() -> None:
    fit = fitted("nested")
    groups, rows, nodes = quadrature_groups(fit, 1, 1), QuadratureRows(fit, 1), nodes_of_fit(fit, NODES)
    rows.integrated[:] = False  # the effects above the leaf are those of the nodes
    assert isinstance(groups, QuadratureLeafGroups)
    left, inside = groups.log_densities(nodes, slice(0, groups.units))
    np.testing.assert_array_equal(left, inside)
    every, copies = rows.log_densities(nodes, slice(0, rows.units))
    for k in range(len(nodes.theta)):
        at = AtNode(fit, nodes, k)
        a, b = (factor.codes for factor in at.design.factors)
        log_weight = -0.5 * GRID**2 - 0.5 * np.log(2 * np.pi) + np.log(STEP)
        for g in (0, 13, 23):
            own = np.flatnonzero(b == g)
            effects = at.root[a[own], None] + at.sds[1][0] * GRID
            each = np.stack([at.rows(own[i : i + 1], effects[i : i + 1]) for i in range(len(own))])
            whole = logsumexp(each.sum(axis=0) + log_weight)
            assert left[k, g] == pytest.approx(whole, abs=1e-4)
            for i, row in enumerate(own):
                without = logsumexp(each.sum(axis=0) - each[i] + log_weight)
                assert every[k, row] == pytest.approx(whole - without, abs=2e-3)
                assert copies[k, row] == pytest.approx(
                    logsumexp(each.sum(axis=0) + each[i] + log_weight) - whole, abs=2e-3
                )
    np.testing.assert_array_equal(groups.rows_of(13), np.flatnonzero(b == 13))


@pytest.mark.parametrize("kind", ["nested", "rows"])
def test_rows_without_the_effects_above_their_group_agree_with_grids(kind: str) -> None:
    fit = fitted(kind)
    found, nodes = QuadratureRows(fit, 1), nodes_of_fit(fit, NODES)
    assert found.above.factor == 0 and found.integrated.any()
    found.integrated[:] = True
    wanted = np.array([0, 1, 2, 3, 7, 47, 100])
    left, copies = found.log_densities(nodes, wanted)
    a, b = (factor.codes for factor in fit.model.design.factors)
    log_weight = -0.5 * GRID**2 - 0.5 * np.log(2 * np.pi) + np.log(STEP)
    for k in range(len(nodes.theta)):
        at = AtNode(fit, nodes, k)
        effects = at.sds[0][0] * GRID[:, None] + at.sds[1][0] * GRID
        each = at.rows_apart(effects)  # (n, u, v)

        def unit(weights: np.ndarray, rows: np.ndarray, each: np.ndarray = each) -> float:
            inner = [
                logsumexp((weights[own, None, None] * each[own]).sum(axis=0) + log_weight, axis=1)
                for own in (rows[b[rows] == g] for g in np.unique(b[rows]))
            ]
            return float(logsumexp(np.sum(inner, axis=0) + log_weight))

        for place, row in enumerate(wanted):
            rows = np.flatnonzero(a == a[row])
            whole, without, twice = (unit(np.where(np.arange(120) == row, w, 1.0), rows) for w in (1.0, 0.0, 2.0))
            assert left[k, place] == pytest.approx(whole - without, abs=1e-3)
            assert copies[k, place] == pytest.approx(twice - whole, abs=1e-3)
    moved = replace(nodes, root=nodes.root + 1.0)  # the effects of the units in the nodes play no part
    np.testing.assert_array_equal(found.log_densities(moved, wanted)[0], left)


def test_rows_without_two_effects_above_their_group_agree_with_grids() -> None:
    fit = fitted("slopes")
    found, nodes = QuadratureRows(fit, 1), nodes_of_fit(fit, 2)
    assert found.above.width == 2 and found.error < 0.01
    found.integrated[:] = True
    wanted = np.array([0, 1, 4, 9])
    left = found.log_densities(nodes, wanted)[0]
    codes = fit.model.design.factors[0].codes
    one = np.linspace(-6.0, 6.0, 41)
    first, second = (side.ravel() for side in np.meshgrid(one, one))
    prior = -0.5 * (first**2 + second**2) - np.log(2 * np.pi) + 2 * np.log(0.3)
    log_weight = -0.5 * GRID[::3] ** 2 - 0.5 * np.log(2 * np.pi) + np.log(3 * STEP)
    for k in range(len(nodes.theta)):
        at = AtNode(fit, nodes, k)
        lam = found.leaf.model.hyperparameters.factors(nodes.theta[k : k + 1])[0][found.above.at :][:4].reshape(2, 2)
        for place, row in enumerate(wanted):
            rows = np.flatnonzero(codes == codes[row])
            each = []
            for i in rows:
                u = lam @ np.stack([first, second])
                moved = (u[0] + u[1] * data_of("slopes")["x"][i])[:, None] + at.sds[1][0] * GRID[::3]
                each.append(logsumexp(at.rows(np.array([i]), moved[None]) + log_weight, axis=1))
            whole = logsumexp(np.sum(each, axis=0) + prior)
            rest = logsumexp(np.sum([e for e, i in zip(each, rows, strict=True) if i != row] + [prior], axis=0))
            assert left[k, place] == pytest.approx(whole - rest, abs=5e-3)


def test_units_above_are_those_that_hold_whole_groups_of_the_leaf() -> None:
    assert QuadratureRows(fitted("crossed"), 1).above.factor is None
    assert QuadratureRows(fitted("coarse"), 1).above.factor is None
    assert QuadratureRows(fitted("partly"), 1).above.factor is None
    for rule in RULES[1] + RULES[2]:
        x, log_weight = sinh_rule(rule)
        for mean, sd in ((0.0, 0.8), (0.4, 1.0), (1.5, 2.0), (0.0, 3.0)):
            density = log_weight - 0.5 * (x[:, 0] - mean) ** 2 / sd**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
            assert logsumexp(density) == pytest.approx(0.0, abs=2e-3 if rule[0] < 13 else 2e-4)


def test_neither_threads_nor_the_choice_of_units_change_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialpool.criticism.quadrature_left_out.WORTH_CUTTING", 0)
    monkeypatch.setattr("partialpool.criticism.quadrature_units.WORTH_CUTTING", 0)
    for fit, make in (
        (fitted("crossed"), QuadratureRows),
        (fitted("rows"), QuadratureRows),
        (fitted("crossed"), lambda fit, threads: quadrature_groups(fit, 0, threads)),
        (fitted("crossed"), lambda fit, threads: quadrature_groups(fit, 1, threads)),
    ):
        nodes = nodes_of_fit(fit, 20)
        one, two = make(fit, 1), make(fit, 2)
        whole = one.log_densities(nodes, slice(0, one.units))[0]
        np.testing.assert_array_equal(two.log_densities(nodes, slice(0, two.units))[0], whole)
        some = np.array([3, 0])
        np.testing.assert_allclose(one.log_densities(nodes, some)[0], whole[:, some], atol=1e-12)


def test_rows_in_any_order() -> None:
    fit = fitted("crossed")
    data = {name: values[::-1] for name, values in data_of("crossed").items()}
    turned = pp.fit("y ~ x + (1 | a) + (1 | b)", data, family="bernoulli", seed=1, threads=1, draws=100, ess=100)
    nodes = nodes_of_fit(fit, 5)
    mine, other = QuadratureRows(fit, 1), QuadratureRows(turned, 1)
    assert sorted(other.order.tolist()) == list(range(120)) and other.rows_of(7).tolist() == [7]
    np.testing.assert_allclose(
        other.log_densities(nodes, slice(0, 120))[0][:, ::-1], mine.log_densities(nodes, slice(0, 120))[0], atol=1e-3
    )


def test_a_model_without_groups_has_the_densities_of_its_rows() -> None:
    data = data_of("crossed")
    fit = pp.fit("y ~ x", data, family="bernoulli", seed=1, threads=1, progress=False)
    nodes = nodes_of_fit(fit, 10)
    left, inside = QuadratureRows(fit, 1).log_densities(nodes, slice(0, 120))
    at = [AtNode(fit, nodes, k) for k in range(len(nodes.theta))]
    each = [[node.rows(np.array([i]), np.zeros((1,))) for i in range(120)] for node in at]
    np.testing.assert_allclose(left, np.array(each).reshape(left.shape), atol=1e-10)
    np.testing.assert_array_equal(left, inside)


def test_weights_count_copies_of_rows() -> None:
    data = data_of("nested")
    twice = {name: np.concatenate([values, values[:1]]) for name, values in data.items()}
    heavy = data | {"w": np.r_[2.0, np.ones(119)]}
    options = {"family": "poisson", "seed": 1, "threads": 1, "draws": 100, "ess": 100, "progress": False}
    weighted = pp.fit("y | weights(w) ~ x + (1 | a) + (1 | b)", heavy, **options)
    copied = pp.fit("y ~ x + (1 | a) + (1 | b)", twice, **options)
    nodes = nodes_of_fit(weighted, 5)
    for factor in (0, 1):
        one, other = quadrature_groups(weighted, factor, 1), quadrature_groups(copied, factor, 1)
        np.testing.assert_allclose(
            one.log_densities(nodes, slice(0, one.units))[0],
            other.log_densities(nodes, slice(0, one.units))[0],
            atol=1e-3,
        )


def test_outer_rules_integrate_the_normal_distribution() -> None:
    for dimension in (1, 2, 3, 4, 6):
        nodes, shifted = outer_rule(dimension)
        log_weight = shifted - 0.5 * (nodes**2).sum(axis=1)
        assert logsumexp(log_weight) == pytest.approx(0.0, abs=0.05)
        assert nodes.shape[1] == dimension
    assert outer_rule(100)[0].shape == (1, 100)


def test_leave_one_out_of_cbpp_is_near_its_exact_value() -> None:
    from partialpool.criticism.logo import logo
    from partialpool.criticism.loo import loo

    formula = "incidence | trials(size) ~ period + (1 | herd)"
    fit = pp.fit(formula, pp.datasets.load("cbpp"), family="binomial", seed=1, threads=1, progress=False)
    # by 200,000 weighted draws and a grid of effects: benchmarks/checks/criticism_loo_other.py
    for found, exact in ((loo(fit), -101.168), (logo(fit, "herd"), -98.252)):
        assert found.elpd == pytest.approx(exact, abs=4 * found.mc_error)
        assert found.pointwise.pareto_k.max() < 0.7 and found.pointwise.error.max() < 0.03
