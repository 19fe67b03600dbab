"""Rows left out one by one: the kernel against sums over a fine grid of effects, for every family.

The kernel runs as plain Python where nothing is compiled (`py_func`): the arithmetic is the same, and no family has to
be compiled for a test of twelve rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from partialpool.algebra.leafloo import limits, row_kernel
from partialpool.algebra.quadrature import gauss_hermite
from partialpool.inference.gap import random_nodes
from partialpool.spec import families as f
from partialpool.spec.families.vector import VECTOR

SIZES = (1, 2, 3, 6)


@dataclass
class Rows:
    """Twelve rows in four groups: predictor a + b x, and effects with columns z in one of two linear predictors."""

    family: Any
    y: np.ndarray
    trials: np.ndarray
    weight: np.ndarray
    x: np.ndarray
    z: np.ndarray
    z_part: np.ndarray
    root: np.ndarray
    lam: np.ndarray
    constants: np.ndarray

    @property
    def pointer(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)

    def left_out(self, nodes: int, far: float | None = None, compiled: bool = False) -> tuple[np.ndarray, ...]:
        """(n,) log p(y_i | the others), of a copy of the row, and how many rows went by which rule."""
        n, q = self.z.shape
        x, shifted = gauss_hermite(nodes, q) if q <= 3 or nodes < 9 else random_nodes(nodes, q)
        family = self.family
        kernel = row_kernel(
            f"{family.name}_{family.link}", family.log_density, family.derivatives,
            VECTOR.get((family.name, family.link)),
        )  # fmt: skip
        wide = np.concatenate([np.zeros((1, q)), 2 * np.eye(q), -2 * np.eye(q)])
        starts = np.empty((0, q)) if family.log_concave else wide
        out, copies, counts = np.empty((n, 1)), np.empty((n, 1)), np.zeros(2, dtype=np.int64)
        wholes = np.empty((len(SIZES), 1))
        with np.errstate(all="ignore"):
            (kernel if compiled else kernel.py_func)(
                np.arange(len(SIZES)), np.arange(n), self.root[None], self.lam[None], self.constants[None], self.y,
                self.trials, self.weight, np.zeros(n), self.x,
                np.ascontiguousarray(np.tile(np.arange(2, dtype=np.int32), (n, 1))), np.zeros(2, dtype=np.int64),
                self.z, self.z_part, self.pointer, x, shifted, np.zeros((len(SIZES), q)), starts, 3e-3,
                limits(x, shifted, 1e-4 if nodes < 99 else 0.02) if far is None else np.full(33, far), out, copies,
                wholes, counts,
            )  # fmt: skip
        constant = self.weight * family.constant(self.y, self.trials)
        return out[:, 0] + constant, copies[:, 0] + constant, counts

    def on_grid(self, v: np.ndarray, log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same by a sum over effects v (M, q) of given log weights."""
        out, copies = np.empty(len(self.y)), np.empty(len(self.y))
        u = v @ self.lam.T
        for g in range(len(SIZES)):
            own = slice(self.pointer[g], self.pointer[g + 1])
            part0, part1 = (np.where(self.z_part == k, self.z[own], 0.0) @ u.T for k in (0, 1))
            eta0 = (self.x[own] @ self.root)[:, None] + part0
            each = self.weight[own, None] * self.family.log_density_rows(
                self.y[own, None], eta0, self.constants[0] + part1, self.constants[1],
                np.broadcast_to(self.trials[own, None], eta0.shape),
            )  # fmt: skip
            total = each.sum(axis=0) + log_weight
            whole = logsumexp(total)
            for i in range(len(each)):  # rows that are impossible somewhere cannot be taken from the sum
                rest = np.delete(each, i, axis=0).sum(axis=0) + log_weight
                out[own.start + i] = whole - logsumexp(rest)
            copies[own] = logsumexp(total + each, axis=1) - whole
        return out, copies


def rows_of(family: Any, seed: int = 1, sd: float = 0.8, z: str = "1", z_part: tuple[int, ...] = (0,)) -> Rows:
    rng = np.random.default_rng(seed)
    n = sum(SIZES)
    x = np.column_stack([np.ones(n), rng.normal(size=n)])
    columns = {"1": x[:, :1], "1x": x, "sigma": x[:, [0, 0]], "four": np.column_stack([x, rng.normal(size=(n, 2))])}[z]
    q = columns.shape[1]
    lam = np.tril(np.full((q, q), 0.2)) + np.diag(np.full(q, sd - 0.2))
    positive = family.link in ("inverse", "identity") and family.name not in ("gaussian", "student_t")
    root = np.array([4.0, 0.3]) if positive else np.array([0.4, 0.3])
    constants = np.array([np.log(1.5), np.log(3.0)])
    group = np.repeat(np.arange(len(SIZES)), SIZES)
    u = rng.normal(size=(len(SIZES), q)) @ lam.T
    part0, part1 = (np.where(np.array(z_part) == k, columns * u[group], 0.0).sum(axis=1) for k in (0, 1))
    trials = np.full(n, 7.0) if family.takes_trials else np.ones(n)
    y = family.simulate(rng, x @ root + part0, constants[0] + part1, constants[1], trials)
    return Rows(
        family, np.asarray(y, dtype=float), trials, np.ones(n), x, np.ascontiguousarray(columns),
        np.array(z_part, dtype=np.int64), root, lam, constants,
    )  # fmt: skip


def grid(q: int, step: float, end: float = 9.0) -> tuple[np.ndarray, np.ndarray]:
    one = np.arange(-end, end + step / 2, step)
    v = np.stack(np.meshgrid(*[one] * q, indexing="ij"), axis=-1).reshape(-1, q)
    return v, -0.5 * (v**2).sum(axis=1)


FAMILIES = [
    f.StudentT(), f.Bernoulli(), f.Bernoulli(link="probit"), f.Bernoulli(link="cloglog"), f.Binomial(),
    f.BetaBinomial(), f.Poisson(), f.NegativeBinomial(), f.NegativeBinomial1(), f.Geometric(), f.Gamma(),
    f.Gamma(link="inverse"), f.InverseGaussian(), f.LogNormal(), f.Exponential(), f.Weibull(), f.Beta(), f.Gaussian(),
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_family_agrees_with_a_grid(family: Any) -> None:
    rows = rows_of(family)
    left, copies, _ = rows.left_out(16)
    exact = rows.on_grid(*grid(1, 0.02))
    np.testing.assert_allclose(left, exact[0], atol=3e-3)
    np.testing.assert_allclose(copies, exact[1], atol=3e-3)


@pytest.mark.parametrize("family", [f.Bernoulli(), f.Poisson()], ids=str)
@pytest.mark.parametrize("sd", [0.05, 1.0, 3.0])
def test_both_rules_and_compiled_code_agree_with_a_grid(family: Any, sd: float) -> None:
    rows = rows_of(family, sd=sd)
    exact, _ = rows.on_grid(*grid(1, 0.01))
    mixed, _, counts = rows.left_out(16, compiled=True)
    alone, _, own = rows.left_out(16, far=-1.0)
    np.testing.assert_allclose(mixed, exact, atol=2e-3)
    np.testing.assert_allclose(alone, exact, atol=2e-3)
    assert counts.sum() == own.sum() == 2 * len(rows.y)
    assert own[0] == 1  # without the row that is all its group, no rule is needed


def test_a_row_that_decides_its_group_needs_a_rule_of_its_own() -> None:
    rows = rows_of(f.Poisson(), sd=2.0)
    rows.y[-1] = 400.0
    exact, _ = rows.on_grid(*grid(1, 0.005))
    measured, _, counts = rows.left_out(11)
    assert counts[1] > 0
    np.testing.assert_allclose(measured, exact, atol=5e-3)


def test_a_distant_row_under_student_t_is_searched_from_several_places() -> None:
    rows = rows_of(f.StudentT(), sd=4.0)
    rows.y[1:3] = -9.0, 9.0  # a group of two rows that contradict each other
    exact, _ = rows.on_grid(*grid(1, 0.01))
    np.testing.assert_allclose(rows.left_out(48)[0], exact, atol=5e-3)


@pytest.mark.parametrize(
    ("family", "z", "part"),
    [(f.Bernoulli(), "1x", (0, 0)), (f.Gaussian(), "sigma", (0, 1)), (f.NegativeBinomial(), "sigma", (0, 1))],
    ids=str,
)
def test_two_effects_a_group_also_on_the_second_predictor(family: Any, z: str, part: tuple[int, int]) -> None:
    rows = rows_of(family, z=z, z_part=part, sd=0.5)
    exact, copies = rows.on_grid(*grid(2, 0.1, 7.0))
    left, also, _ = rows.left_out(15)
    np.testing.assert_allclose(left, exact, atol=5e-3)
    np.testing.assert_allclose(also, copies, atol=5e-3)


@pytest.mark.parametrize(("nodes", "within"), [(5, 5e-3), (2048, 0.05)])
def test_four_effects_a_group_by_products_and_by_quasi_random_nodes(nodes: int, within: float) -> None:
    rows = rows_of(f.Bernoulli(), z="four", z_part=(0, 0, 0, 0), sd=0.6)
    exact, _ = rows.on_grid(*grid(4, 0.6, 4.8))
    left, _, _ = rows.left_out(nodes, compiled=True)
    np.testing.assert_allclose(left, exact, atol=within)


def test_a_row_of_weight_two_leaves_with_both_copies() -> None:
    rows = rows_of(f.Poisson())
    rows.weight[4] = 2.0
    exact, _ = rows.on_grid(*grid(1, 0.02))
    np.testing.assert_allclose(rows.left_out(16)[0], exact, atol=1e-3)


def test_without_effects_rows_do_not_depend_on_each_other() -> None:
    rows = rows_of(f.Gamma())
    bare = Rows(**{**rows.__dict__, "z": np.empty((12, 0)), "z_part": np.empty(0, int), "lam": np.empty((0, 0))})
    left, copies, _ = bare.left_out(1)
    direct = f.Gamma().log_density_rows(rows.y, rows.x @ rows.root, rows.constants[0])
    np.testing.assert_allclose(left, direct, atol=1e-12)
    np.testing.assert_allclose(copies, direct, atol=1e-12)


def test_limits_say_where_a_rule_is_good_for_a_normal_density() -> None:
    x, shifted = gauss_hermite(16, 1)
    far = limits(x, shifted, 1e-4)
    weight = np.exp(shifted - 0.5 * x[:, 0] ** 2)
    for at, log_variance in ((8, -1.0), (16, 0.0), (20, 0.5)):
        inside, outside = far[at], far[at] + 0.126
        error = [
            abs(
                weight @ np.exp(0.5 * x[:, 0] ** 2 - 0.5 * (x[:, 0] - m) ** 2 / np.exp(log_variance) - log_variance / 2)
                - 1
            )
            for m in (inside, outside)
        ]
        assert error[0] <= 1e-4 < error[1]
