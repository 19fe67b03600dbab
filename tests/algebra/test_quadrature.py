"""Rules of Gauss and Hermite against the moments of the normal distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from partialpool.algebra.quadrature import LADDERS, LANES, gauss_hermite, ladder, padded


def weights_of(x: np.ndarray, shifted: np.ndarray) -> np.ndarray:
    return np.exp(shifted - 0.5 * (x**2).sum(axis=1))


def moment(power: int) -> float:
    """E x^power of a standard normal."""
    return 0.0 if power % 2 else float(math.prod(range(power - 1, 0, -2)))


@pytest.mark.parametrize("nodes", [2, 3, 5, 8, 16, 25, 64, 150, 151, 200, 201])
def test_polynomials_are_exact(nodes: int) -> None:
    x, shifted = gauss_hermite(nodes, 1)
    weights = weights_of(x, shifted)
    for power in range(min(2 * nodes - 1, 24) + 1):
        scale = float(weights @ np.abs(x[:, 0]) ** power)
        assert weights @ x[:, 0] ** power == pytest.approx(moment(power), rel=1e-10, abs=1e-10 * scale)


def test_one_degree_more_is_not() -> None:
    """The rule has the nodes that it says, not more: 3 nodes miss E x^6 = 15."""
    x, shifted = gauss_hermite(3, 1)
    assert weights_of(x, shifted) @ x[:, 0] ** 6 == pytest.approx(9.0)


@pytest.mark.parametrize("nodes", [64, 150, 151, 200])
def test_smooth_functions_with_many_nodes(nodes: int) -> None:
    """E exp(s x) = exp(s^2 / 2), E cos(s x) = exp(-s^2 / 2)."""
    x, shifted = gauss_hermite(nodes, 1)
    weights = weights_of(x, shifted)
    for s in (0.5, 1.0, 3.0):
        assert weights @ np.exp(s * x[:, 0]) == pytest.approx(math.exp(s * s / 2), rel=1e-10)
        assert weights @ np.cos(s * x[:, 0]) == pytest.approx(math.exp(-s * s / 2), rel=1e-9)


def test_weights_far_out_keep_their_precision() -> None:
    """Adaptive quadrature multiplies them by exp(x'x / 2): without them an integrand with a long tail is cut off."""
    x, shifted = gauss_hermite(200, 1)
    assert x.max() > 27 and np.isfinite(shifted).all()
    value = np.exp(shifted - np.sqrt(1 + (x[:, 0] - 3) ** 2)).sum() * math.sqrt(2 * math.pi)
    line = np.linspace(-60, 60, 240_001)
    exact = np.exp(-np.sqrt(1 + (line - 3) ** 2)).sum() * (line[1] - line[0])
    assert value == pytest.approx(exact, rel=1e-6)


def test_many_nodes_agree_on_both_sides_of_the_change_of_method() -> None:
    """A function that needs many nodes: the logistic curve at a large scale."""
    values = []
    for nodes in (150, 151):
        x, shifted = gauss_hermite(nodes, 1)
        values.append(float(weights_of(x, shifted) @ np.log1p(np.exp(-2.0 * x[:, 0]))))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize(("nodes", "dimension"), [(5, 2), (7, 3), (21, 2), (45, 2), (21, 3)])
def test_products(nodes: int, dimension: int) -> None:
    x, shifted = gauss_hermite(nodes, dimension)
    weights = weights_of(x, shifted)
    for powers in itertools.product(range(5), repeat=dimension):
        exact = math.prod(moment(power) for power in powers)
        scale = float(weights @ np.abs(x**powers).prod(axis=1))
        assert weights @ (x**powers).prod(axis=1) == pytest.approx(exact, rel=1e-10, abs=1e-10 * scale)


@pytest.mark.parametrize(("nodes", "dimension"), [(3, 1), (5, 2), (7, 3), (200, 1)])
def test_padding_has_no_weight(nodes: int, dimension: int) -> None:
    x, shifted = gauss_hermite(nodes, dimension)
    assert len(x) % LANES == 0 and x.shape == (len(shifted), dimension)
    assert x.flags.c_contiguous and np.isfinite(x).all()
    kept = np.isfinite(shifted)
    assert (x[~kept] == 0).all() and np.exp(shifted[~kept]).sum() == 0.0
    assert kept.sum() == nodes**dimension
    assert weights_of(x, shifted).sum() == pytest.approx(1.0, abs=1e-12)


def test_padded_leaves_whole_lanes_alone() -> None:
    points, shifted = np.ones((2 * LANES, 2)), np.zeros(2 * LANES)
    same, own = padded(points, shifted)
    assert same.shape == points.shape and (own == shifted).all()


@pytest.mark.parametrize("dimension", [0, 1, 2, 4])
def test_one_node_is_the_mode(dimension: int) -> None:
    x, shifted = gauss_hermite(1, dimension)
    assert x.shape == (1, dimension) and not x.any() and shifted.tolist() == [0.0]


def test_no_effects_need_no_nodes() -> None:
    x, shifted = gauss_hermite(20, 0)
    assert x.shape == (1, 0) and shifted.tolist() == [0.0]


def test_ladders() -> None:
    assert all(list(steps) == sorted(set(steps)) for steps in LADDERS.values())
    assert ladder(2) == LADDERS[2] and ladder(4) == (1,)
