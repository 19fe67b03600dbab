"""The measured gap of the quadrature, and the nodes that it asks for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from glmer import model as glmer_model
from partialpool.algebra.quadrature import gauss_hermite
from partialpool.inference.gap import (
    GOOD,
    Gap,
    GapOverPosterior,
    choose_nodes,
    gap_over_posterior,
    group_values,
    random_nodes,
    steps_of,
    use_nodes,
)
from partialpool.inference.joint import JointDensity
from partialpool.inference.root import RootLaplace


@cache
def at_mode(name: str) -> tuple[JointDensity, np.ndarray]:
    density = JointDensity(glmer_model(name), nodes=16)
    laplace = RootLaplace(density)
    laplace.find_mode(1e-2)
    return density, laplace.point(laplace.phi, laplace.root)


def test_a_large_sd_takes_more_nodes_and_says_that_laplace_is_not_enough() -> None:
    density, point = at_mode("toenail")
    gap = choose_nodes(density, point)
    assert gap.nodes > 8 and gap.nodes == density.nodes and gap.finer > gap.nodes
    assert "not enough" in gap.sentences[0] and "294 groups" in gap.sentences[0]
    exact = group_values(density, point, 200).sum()
    assert abs(group_values(density, point, gap.nodes).sum() - exact) < 0.05
    assert abs(group_values(density, point, 1).sum() - exact) > 1


def test_few_nodes_where_they_are_enough() -> None:
    density, point = at_mode("epil_pois")
    gap = choose_nodes(density, point)
    assert gap.nodes == 8 and gap.error < 1e-4
    assert "not enough" not in gap.sentences[1]


def test_no_leaf_no_gap() -> None:
    data = pd.DataFrame({"y": [0, 1, 1, 0, 1], "x": [1.0, 2, 3, 4, 5]})
    density = JointDensity(pp.Model.from_formula("y ~ x", data, family="bernoulli"))
    gap = choose_nodes(density, np.zeros(density.size))
    assert (gap.nodes, gap.error, gap.sentences) == (1, 0.0, ())
    assert gap_over_posterior(density, np.zeros((1, density.size)), np.ones(1), gap, 1).good


def test_group_values_leave_the_nodes_alone() -> None:
    density, point = at_mode("epil_pois")
    density.set_nodes(16)
    kept = density.nodes, density.shifted, density.tolerance
    group_values(density, point, 48)
    assert (density.nodes, density.shifted, density.tolerance) == kept


def test_over_the_posterior() -> None:
    """Too few nodes are found out, and the worst groups named."""
    density, point = at_mode("toenail")
    rng = np.random.default_rng(1)
    points = point + rng.normal(0, [0.1, 0.1, 0.1, 0.1, 0.1], size=(50, point.size))
    weights = np.full(50, 0.02)
    use_nodes(density, 8)
    few = gap_over_posterior(density, points, weights, Gap(8, 24, 1.0, ()), 3)
    use_nodes(density, 48)
    many = gap_over_posterior(density, points, weights, Gap(48, 96, 0.0, ()), 3)
    assert few.error is not None and many.error is not None and few.error > 5 * many.error
    assert not few.good and few.notes and few.error > GOOD
    assert many.good and not many.notes
    labels = set(density.model.design.factors[0].labels.astype(str))
    assert set(few.worst) <= labels and len(few.worst) == 5
    assert next(iter(few.worst)) in few.sentences[0]
    use_nodes(density, 200)
    last = gap_over_posterior(density, points, weights, Gap(200, 200, 0.0, ()), 3)
    assert last.error is None and "not checked" in last.notes[0]


def test_no_error_known_is_no_trouble() -> None:
    assert GapOverPosterior(None, {}, (), ()).good


# -- more than three effects a group -----------------------------------------------------------------------------------


def test_random_nodes_are_importance_weights_of_the_normal() -> None:
    x, shifted = random_nodes(4096, 4)
    weights = np.exp(shifted - 0.5 * (x**2).sum(axis=1))
    assert weights.sum() == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(weights @ x, 0.0, atol=0.02)
    np.testing.assert_allclose(weights @ x**2, 1.0, atol=0.05)
    again, _ = random_nodes(4096, 4)
    assert (again == x).all()


def test_steps() -> None:
    assert steps_of(1)[0] == 8 and steps_of(4)[0] == 1 and steps_of(4)[-1] > 500


@cache
def four_effects() -> JointDensity:
    rng = np.random.default_rng(2)
    n = 240
    g = np.arange(n) % 12
    frame = pd.DataFrame({name: rng.normal(size=n) for name in "xzw"} | {"g": g})
    effect = rng.normal(0, [1.0, 0.8, 0.6, 0.5], size=(12, 4))
    eta = effect[g, 0] + effect[g, 1] * frame["x"] + effect[g, 2] * frame["z"] + effect[g, 3] * frame["w"]
    frame["y"] = rng.binomial(1, 1 / (1 + np.exp(-eta)))
    return JointDensity(pp.Model.from_formula("y ~ 1 + (x + z + w || g)", frame, family="bernoulli"))


def test_four_effects_by_quasi_random_nodes() -> None:
    density = four_effects()
    point = density.point(np.log([1.0, 0.8, 0.6, 0.5]), np.zeros(1), np.zeros(0))
    gap = choose_nodes(density, point)
    assert gap.nodes in steps_of(4)
    assert ("Laplace" in gap.sentences[1]) == (gap.nodes == 1)
    # against a product rule, which is too dear for every day
    kept = group_values(density, point, 1024)
    density.x_nodes, density.shifted = gauss_hermite(9, 4)
    exact = density.leaf_moments(point).value
    np.testing.assert_allclose(kept, exact, atol=0.02)
    use_nodes(density, 1)
    laplace = density.leaf_moments(point).value
    assert np.abs(kept - exact).sum() < 0.5 * np.abs(laplace - exact).sum()
    assert str(gap.finer) in gap.sentences[1]
