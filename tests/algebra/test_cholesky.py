"""The leaf/root factorisation against dense linear algebra on every shape of model."""

from __future__ import annotations

import numpy as np
import pytest

from partialpool.algebra import cholesky, sparse_root
from partialpool.algebra.cholesky import LeafRoot
from partialpool.design import crossprod
from partialpool.design.crossprod import build_row_blocks

CASES = {
    "no groups": [],
    "one factor": [("g", 1)],
    "slopes": [("g", 2)],
    "wide slopes": [("g", 4)],
    "nested": [("class", 1), ("school", 2)],
    "three nested": [("class", 2), ("school", 1), ("town", 2)],
    "crossed": [("g", 1), ("item", 1)],
    "crossed slopes": [("g", 2), ("item", 2)],
    "nested and crossed": [("class", 2), ("school", 2), ("item", 2), ("day", 1)],
    "three nested and crossed": [("class", 1), ("school", 2), ("town", 1), ("item", 2)],
}


def make(case, seed=1, p=2, n=240):
    rng = np.random.default_rng(seed)
    groups = {"class": rng.integers(0, 40, n), "item": rng.integers(0, 7, n), "day": rng.integers(0, 5, n)}
    groups["class"][:40] = rng.permutation(40)
    groups["item"][:7] = np.arange(7)
    groups["day"][:5] = np.arange(5)
    groups["school"] = rng.permutation(np.arange(40) % 12)[groups["class"]]
    groups["town"] = (np.arange(12) % 3)[groups["school"]]
    groups["g"] = groups["class"]
    columns = np.ascontiguousarray(np.column_stack([np.ones(n), rng.normal(2, 1, (n, 3))]))
    y = rng.normal(size=n) + columns[:, 1]
    weight = rng.uniform(0.5, 2, n)
    centre = np.array([0.0, 1.7, 2.1][:p])
    codes = [groups[name] for name, _ in CASES[case]]
    sizes = [int(code.max()) + 1 for code in codes]
    z_columns = [np.arange(q) for _, q in CASES[case]]
    rows = build_row_blocks(columns, np.arange(p), centre, codes, sizes, z_columns)
    factors = []
    for _, q in CASES[case]:
        factor = np.tril(rng.normal(size=(q, q)))
        factor[range(q), range(q)] = rng.uniform(0.2, 1.5, q)
        factors.append(factor)
    return rows, y, weight, columns, centre, codes, sizes, z_columns, factors


def dense_blocks(columns, centre, codes, sizes, z_columns, factors, p):
    """Z Lambda by factor, and X."""
    x = columns[:, :p] - centre
    designs = []
    for code, size, z, factor in zip(codes, sizes, z_columns, factors, strict=True):
        full = np.zeros((columns.shape[0], size * z.size))
        for i in range(columns.shape[0]):
            full[i, code[i] * z.size : (code[i] + 1) * z.size] = columns[i, z]
        designs.append(full @ np.kron(np.eye(size), factor))
    return x, designs


def lams_of(structure, factors):
    lam = np.zeros(structure.n_lam)
    for at, factor in zip(structure.lam_at, factors, strict=True):
        lam[at : at + factor.size] = factor.ravel()
    return lam[None, :]


@pytest.fixture(params=["kernel root", "LAPACK root", "sparse root"])
def root_width(request, monkeypatch):
    """The same model by each way of factorising the root."""
    if request.param == "LAPACK root":
        monkeypatch.setattr(cholesky, "KERNEL_ROOT", 0)
    if request.param == "sparse root":
        monkeypatch.setattr(crossprod, "SPARSE_FROM", 1)
        monkeypatch.setattr(sparse_root, "SPARSE_SHARE", 1e9)
    return request.param


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("p", [0, 2])
@pytest.mark.parametrize("profile", [False, True])
def test_everything_equals_dense_linear_algebra(case, p, profile, root_width):
    rows, y, weight, columns, centre, codes, sizes, z_columns, factors = make(case, p=p)
    cross = rows.cross_products(y, weight)
    structure = cross.structure
    proper = np.array([0.0, 1.0][:p])
    scale = np.array([1.0, 0.7][:p])
    inv_var = 1 / 0.8**2
    x, designs = dense_blocks(columns, centre, codes, sizes, z_columns, factors, p)
    everything = np.column_stack([*designs, x * scale]) if designs or p else np.zeros((y.size, 0))
    n_u = everything.shape[1] - p
    precision = inv_var * everything.T @ (weight[:, None] * everything)
    precision[range(n_u), range(n_u)] += 1
    precision[range(n_u, n_u + p), range(n_u, n_u + p)] += proper
    c = inv_var * everything.T @ (weight * y)
    mean = np.linalg.solve(precision, c) if c.size else c
    half = 0.5 * np.linalg.slogdet(precision[:n_u, :n_u] if profile else precision)[1]

    engine = LeafRoot(cross, proper)
    assert (structure.sparse is not None) == (root_width == "sparse root" and structure.n_root > 0)
    lams, inv_vars, scales = lams_of(structure, factors), np.array([inv_var]), scale[None, :]
    value = engine.evaluate(lams, inv_vars, scales, profile=profile)
    np.testing.assert_allclose(value.half_log_det[0], half, rtol=1e-11)
    np.testing.assert_allclose(value.quadratic[0], inv_var * weight @ y**2 - c @ mean, rtol=1e-10)
    np.testing.assert_allclose(value.mean[0], mean[n_u:], rtol=1e-9, atol=1e-12)

    covariance = np.linalg.inv(precision) if precision.size else precision
    if profile:
        covariance = np.zeros_like(covariance)
        covariance[:n_u, :n_u] = np.linalg.inv(precision[:n_u, :n_u]) if n_u else 0.0
    moments = engine.moments(lams, inv_vars, scales, profile=profile, effects=True)
    start = 0
    for f, (factor, size) in enumerate(zip(factors, sizes, strict=True)):
        q = factor.shape[0]
        block = slice(start, start + q * size)
        zz = np.zeros((q, q))
        for g in range(size):
            part = slice(start + g * q, start + (g + 1) * q)
            zz += covariance[part, part] + np.outer(mean[part], mean[part])
        at = structure.lam_at[f]
        np.testing.assert_allclose(moments.zz[0, at : at + q * q].reshape(q, q), zz, rtol=1e-8, atol=1e-9)
        colour = np.kron(np.eye(size), factor)
        positions = structure.effects_of(f).ravel()
        np.testing.assert_allclose(moments.u_mean[0, positions], colour @ mean[block], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(
            moments.u_var[0, positions], np.diag(colour @ covariance[block, block] @ colour.T), rtol=1e-8
        )
        start += q * size


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case]])
def test_draws_have_the_exact_mean_and_covariance(case, root_width):
    """A draw is affine in its normals: mean and covariance follow exactly from draws at 0 and at unit vectors."""
    p = 2
    rows, y, weight, columns, centre, codes, sizes, z_columns, factors = make(case, p=p)
    cross = rows.cross_products(y, weight)
    structure = cross.structure
    engine = LeafRoot(cross, np.ones(p), threads=2)
    beta = np.array([0.3, -0.4])
    inv_var = 1.7
    n_u = structure.n_effects
    normals = np.vstack([np.zeros(n_u), np.eye(n_u)])
    count = n_u + 1
    u = engine.draws(
        np.repeat(lams_of(structure, factors), count, 0), np.full(count, inv_var), np.tile(beta, (count, 1)), normals
    )
    x, designs = dense_blocks(columns, centre, codes, sizes, z_columns, factors, p)
    z = np.column_stack(designs)
    precision = np.eye(n_u) + inv_var * z.T @ (weight[:, None] * z)
    colour = np.zeros((n_u, n_u))
    start = 0
    order = np.concatenate([structure.effects_of(f).ravel() for f in range(len(factors))])
    for factor, size in zip(factors, sizes, strict=True):
        q = factor.shape[0] * size
        colour[start : start + q, start : start + q] = np.kron(np.eye(size), factor)
        start += q
    mean = colour @ np.linalg.solve(precision, inv_var * z.T @ (weight * (y - x @ beta)))
    np.testing.assert_allclose(u[0, order], mean, rtol=1e-8, atol=1e-10)
    jacobian = (u[1:] - u[0])[:, order]
    np.testing.assert_allclose(
        jacobian.T @ jacobian, colour @ np.linalg.inv(precision) @ colour.T, rtol=1e-7, atol=1e-9
    )


def test_coefficients_can_be_fixed():
    rows, y, weight, columns, centre, _, _, _, factors = make("three nested and crossed")
    beta = np.array([0.2, 0.5])
    fixed = rows.cross_products(y, weight).at_coefficients(beta)
    lam, inv_vars, none = lams_of(fixed.structure, factors), np.array([1.3]), np.empty((1, 0))
    here = LeafRoot(fixed, np.empty(0)).evaluate(lam, inv_vars, none)
    rows_without, *_ = make("three nested and crossed", p=0)
    residual = y - (columns[:, :2] - centre) @ beta
    there = LeafRoot(rows_without.cross_products(residual, weight), np.empty(0)).evaluate(lam, inv_vars, none)
    np.testing.assert_allclose(here.half_log_det, there.half_log_det, rtol=1e-12)
    np.testing.assert_allclose(here.quadratic, there.quadratic, rtol=1e-11)


def test_an_sd_of_zero_is_not_special():
    rows, y, weight, *_, factors = make("nested")
    cross = rows.cross_products(y, weight)
    engine = LeafRoot(cross, np.ones(2))
    factors = [factor * 0 for factor in factors]
    value = engine.evaluate(lams_of(cross.structure, factors), np.ones(1), np.ones((1, 2)))
    moments = engine.moments(lams_of(cross.structure, factors), np.ones(1), np.ones((1, 2)), effects=True)
    assert np.isfinite(value.half_log_det[0])
    np.testing.assert_array_equal(moments.u_mean, 0)
