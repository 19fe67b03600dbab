"""The pass over the leaf's groups against dense integration of what the rows say, written out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm
from scipy.stats import t as student

import partialpool as pp
from glmer import log_rows, log_sum
from partialpool.algebra.leaf import FOUND, GRADIENT, HESSIAN, MOMENTS, VALUE, cholesky, solve_both, solve_transposed
from partialpool.inference.joint import JointDensity

Array = NDArray[np.float64]
GROUPS = 4


def frame(rows: int = 5, seed: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = GROUPS * rows
    group = rng.permutation(np.repeat(np.arange(GROUPS), rows))
    x, z = rng.normal(size=n), rng.normal(size=n)
    eta = 0.3 + 0.6 * x + rng.normal(0, 1, GROUPS)[group]
    return pd.DataFrame(
        {
            "g": group, "x": x, "z": z, "b": rng.binomial(1, 1 / (1 + np.exp(-eta))), "c": rng.poisson(np.exp(eta)),
            "r": eta + rng.normal(size=n), "w": rng.integers(1, 4, n), "o": 0.2 * rng.normal(size=n),
        }
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A model, parameters, and by hand: fixed parts of both predictors, columns of u in both, covariance of u."""

    formula: Any
    family: str
    response: str
    params: dict[str, float]
    columns: tuple[str, ...]  # of u, "1" for an intercept
    parts: tuple[int, ...] = ()
    weighted: bool = False
    offset: bool = False
    many: int = 200
    width: float = 8.0
    points: int = 801
    tolerance: float = 1e-9
    second: tuple[str, ...] = ()
    data: pd.DataFrame = field(default_factory=frame)

    @cache  # noqa: B019
    def model(self) -> pp.Model:
        return pp.Model.from_formula(self.formula, self.data, family=self.family)

    def column(self, name: str) -> Array:
        return np.ones(len(self.data)) if name == "1" else self.data[name].to_numpy(dtype=float)

    @property
    def q(self) -> int:
        return len(self.columns)

    def covariance(self) -> Array:
        names = {"1": "Intercept"}
        sds = []
        for name, part in zip(self.columns, self.parts or (0,) * self.q, strict=True):
            own = names.get(name, name)
            sds.append(self.params[f"sd({'sigma.' * part}{own}|g)"])
        out = np.diag(np.square(sds))
        for i in range(self.q):
            for j in range(i):
                first, second = (names.get(self.columns[k], self.columns[k]) for k in (j, i))
                rho = self.params.get(f"cor({first},{second}|g)", 0.0)
                out[i, j] = out[j, i] = rho * sds[i] * sds[j]
        return out

    def fixed(self, params: dict[str, float]) -> tuple[Array, Array]:
        """Linear predictors without group effects."""
        eta0 = self.data["o"].to_numpy() if self.offset else np.zeros(len(self.data))
        eta1 = np.zeros(len(self.data))
        for name, value in params.items():
            if "(" in name:
                continue
            if name in ("phi",):
                eta1 = eta1 + math.log(value)
            elif name.startswith("sigma."):
                eta1 = eta1 + value * self.column(name[6:].replace("Intercept", "1"))
            else:
                eta0 = eta0 + value * self.column(name.replace("Intercept", "1"))
        return eta0, eta1

    def h(self, g: int, v: Array, params: dict[str, float]) -> Array:
        """h(v) of one group at points (m, q) of the standardised effects, the rows' constants included."""
        own = self.data["g"].to_numpy() == g
        eta0, eta1 = (part[own][:, None] for part in self.fixed(params))
        eta0, eta1 = np.repeat(eta0, len(v), 1), np.repeat(eta1, len(v), 1)
        u = v @ np.linalg.cholesky(self.covariance()).T if self.q else v
        for k in range(self.q):
            add = self.column(self.columns[k])[own][:, None] * u[:, k]
            if self.parts and self.parts[k]:
                eta1 = eta1 + add
            else:
                eta0 = eta0 + add
        weight = self.data["w"].to_numpy()[own] if self.weighted else np.ones(own.sum())
        y = self.data[self.response].to_numpy(dtype=float)[own][:, None]
        return weight @ log_rows(self.family, y, eta0, eta1) - 0.5 * (v**2).sum(axis=1)

    def grid(self) -> tuple[Array, float]:
        line = np.linspace(-self.width, self.width, self.points)
        mesh = np.meshgrid(*[line] * self.q, indexing="ij")
        return np.stack([part.ravel() for part in mesh], axis=1), self.q * math.log(line[1] - line[0])

    def values(self, params: dict[str, float] | None = None) -> Array:
        """log p(y_g) of every group by the trapezoid rule."""
        params = params or self.params
        if not self.q:
            return np.array([self.h(g, np.zeros((1, 0)), params)[0] for g in range(GROUPS)])
        v, log_cell = self.grid()
        norm = log_cell - 0.5 * self.q * math.log(2 * math.pi)
        return np.array([float(log_sum(self.h(g, v, params))) + norm for g in range(GROUPS)])

    def moments(self) -> tuple[Array, Array]:
        v, _ = self.grid()
        mean, covariance = np.empty((GROUPS, self.q)), np.empty((GROUPS, self.q, self.q))
        for g in range(GROUPS):
            logs = self.h(g, v, self.params)
            weight = np.exp(logs - logs.max())
            weight /= weight.sum()
            mean[g] = weight @ v
            covariance[g] = ((v - mean[g]) * weight[:, None]).T @ (v - mean[g])
        return mean, covariance

    def density(self, nodes: int) -> JointDensity:
        return JointDensity(self.model(), nodes=nodes)

    def point(self, density: JointDensity, params: dict[str, float] | None = None) -> Array:
        model, params = self.model(), params or self.params
        gamma = model.coefficients.from_public(np.array([params[name] for name in model.design.x_names]))
        return density.point(model.hyperparameters.from_public(params), gamma, np.zeros(0))

    def constants(self) -> Array:
        """The rows' constants by group."""
        weight = self.data["w"].to_numpy() if self.weighted else np.ones(len(self.data))
        own = weight * self.model().family.constant(self.data[self.response].to_numpy(dtype=float))
        return np.bincount(self.data["g"], own)


SIGMA = {"Intercept": 0.2, "x": 0.5}
CASES = {
    "no groups": Case("b ~ x", "bernoulli", "b", SIGMA, ()),
    "bernoulli": Case("b ~ x + (1 | g)", "bernoulli", "b", SIGMA | {"sd(Intercept|g)": 1.4}, ("1",)),
    "weights": Case(
        "b | weights(w) ~ x + (1 | g)", "bernoulli", "b", SIGMA | {"sd(Intercept|g)": 2.5}, ("1",), weighted=True,
    ),
    "poisson slopes": Case(
        "c ~ x + offset(o) + (x | g)", "poisson", "c",
        SIGMA | {"sd(Intercept|g)": 0.8, "sd(x|g)": 0.5, "cor(Intercept,x|g)": -0.6}, ("1", "x"), offset=True, many=45,
        points=241,
    ),
    "negative binomial": Case(
        "c ~ x + (x + z | g)", "negative_binomial", "c",
        SIGMA | {"phi": 1.7, "sd(Intercept|g)": 0.7, "sd(x|g)": 0.5, "sd(z|g)": 0.4, "cor(Intercept,x|g)": 0.5,
                 "cor(Intercept,z|g)": -0.3, "cor(x,z|g)": 0.2},
        ("1", "x", "z"), many=21, width=6.5, points=53, tolerance=1e-7,
    ),
    "sigma of its own": Case(
        pp.formula("r ~ x + (1 | g)", sigma="~ z + (1 | g)"), "gaussian", "r",
        SIGMA | {"sigma.Intercept": -0.2, "sigma.z": 0.3, "sd(Intercept|g)": 0.9, "sd(sigma.Intercept|g)": 0.5},
        ("1", "1"), parts=(0, 1), many=45, points=241, tolerance=1e-7,
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_values_are_integrals(case: Case) -> None:
    density = case.density(case.many)
    found = density.rows_at(VALUE, density.unpack(case.point(density)))
    exact = case.values()
    assert found.value + density.constant == pytest.approx(exact.sum(), rel=case.tolerance)
    if case.q:
        np.testing.assert_allclose(found.moments.value + case.constants(), exact, rtol=10 * case.tolerance)
        assert (found.moments.status == FOUND).all()


def test_moments_are_those_of_the_integrand(case: Case) -> None:
    if not case.q:
        pytest.skip("no effects")
    density = case.density(case.many)
    found = density.leaf_moments(case.point(density))
    mean, covariance = case.moments()
    np.testing.assert_allclose(found.mean, mean, atol=1e-5 if case.q > 1 else 1e-8)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-5 if case.q > 1 else 1e-8)
    # the same sums come with the gradient
    zz = density.rows_at(GRADIENT, density.unpack(case.point(density))).zz
    np.testing.assert_allclose(zz, (found.covariance + np.einsum("gi,gj->gij", found.mean, found.mean)).sum(axis=0))


def test_gradient_in_the_coefficients(case: Case) -> None:
    density = case.density(case.many)
    names = case.model().design.x_names
    in_root = density.rows_at(GRADIENT, density.unpack(case.point(density))).in_root
    gradient = []
    for name in names:
        ends = [case.values(case.params | {name: case.params[name] + step}).sum() for step in (1e-4, -1e-4)]
        gradient.append((ends[0] - ends[1]) / 2e-4)
    # gamma is beta but for the intercept: the chain rule
    np.testing.assert_allclose(case.model().coefficients.public_matrix().T @ gradient, in_root, atol=2e-5, rtol=1e-5)


def test_gradient_in_the_family_parameter() -> None:
    case = CASES["negative binomial"]
    density = case.density(case.many)
    passed = density.rows_at(GRADIENT, density.unpack(case.point(density)))
    phi = case.params["phi"]
    ends = [case.values(case.params | {"phi": phi * math.exp(step)}).sum() for step in (1e-4, -1e-4)]
    assert passed.in_constant[0] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5)


@pytest.mark.parametrize("nodes", [None, 1])
def test_hessian(case: Case, nodes: int | None) -> None:
    """With many nodes the derivative of the gradient; with one that of the score at the groups' modes."""
    density = case.density(nodes or case.many)
    own = density.unpack(case.point(density))
    passed = density.rows_at(HESSIAN, own)
    lower = np.tril(passed.hess)
    hessian = lower + np.tril(lower, -1).T
    for j in range(own.root.size):
        step = np.zeros_like(own.root)
        step[j] = 1e-4
        ends = [density.rows_at(GRADIENT, own.at_root(own.root + sign * step)).in_root for sign in (1, -1)]
        np.testing.assert_allclose(hessian[j], (ends[0] - ends[1]) / 2e-4, atol=3e-5, rtol=1e-5)


def test_one_node_is_laplace(case: Case) -> None:
    """Mode and Hessian found by other means: h(mode) - log |H| / 2."""
    density = case.density(1)
    found = density.leaf_moments(case.point(density))
    for g in range(GROUPS if case.q else 0):

        def falls(v: Array, g: int = g) -> float:
            return -float(case.h(g, v[None, :], case.params)[0])

        best = minimize(falls, np.zeros(case.q), method="BFGS", options={"gtol": 1e-9})
        best = minimize(falls, best.x, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
        hessian = second_differences(falls, best.x)
        value = -best.fun - 0.5 * np.linalg.slogdet(hessian)[1]
        assert found.value[g] + case.constants()[g] == pytest.approx(value, rel=1e-5)
        np.testing.assert_allclose(found.mode[g], best.x, atol=1e-5)
        np.testing.assert_allclose(found.covariance[g], np.linalg.inv(hessian), atol=1e-4)


def second_differences(function: Any, at: Array, step: float = 1e-3) -> Array:
    q = at.size
    eye = step * np.eye(q)
    out = np.empty((q, q))
    for i in range(q):
        for j in range(q):
            ends = [a * b * function(at + a * eye[i] + b * eye[j]) for a in (1, -1) for b in (1, -1)]
            out[i, j] = sum(ends) / (4 * step * step)
    return out


def test_weights_are_rows_written_down_again() -> None:
    case = CASES["weights"]
    repeated = case.data.loc[case.data.index.repeat(case.data["w"])].reset_index(drop=True)
    weighted = case.model()
    plain = pp.Model.from_formula("b ~ x + (1 | g)", repeated, family="bernoulli")
    for nodes in (1, 20):
        values = [model.log_likelihood(case.params, nodes=nodes) for model in (weighted, plain)]
        assert values[0] == pytest.approx(values[1], rel=1e-11)


def test_a_group_of_one_sort_has_its_mode_far_out() -> None:
    """All successes at a huge sd: still the integral, and a status that says the mode was found."""
    data = pd.DataFrame({"b": [1] * 30 + [0] * 30 + [0, 1] * 3, "g": [0] * 30 + [1] * 30 + [2] * 6})
    case = Case(
        "b ~ 1 + (1 | g)", "bernoulli", "b", {"Intercept": 0.5, "sd(Intercept|g)": 30.0}, ("1",), data=data, points=8001
    )
    density = case.density(200)
    density.set_nodes(200, tolerance=1e-13)
    found = density.rows_at(VALUE, density.unpack(case.point(density)))
    v, log_cell = case.grid()
    exact = [float(log_sum(case.h(g, v, case.params))) + log_cell - 0.5 * math.log(2 * math.pi) for g in range(3)]
    np.testing.assert_allclose(found.moments.value, exact, atol=2e-3)
    assert (found.moments.status == FOUND).all()


def test_groups_that_no_row_has_left_nothing() -> None:
    """An sd of 0: the effects play no part, whatever the nodes."""
    case = CASES["bernoulli"]
    for nodes in (1, 9):
        density = case.density(nodes)
        params = case.params | {"sd(Intercept|g)": 1e-9}
        found = density.rows_at(VALUE, density.unpack(case.point(density, params)))
        eta, _ = case.fixed(case.params)
        assert found.value == pytest.approx(log_rows("bernoulli", case.data["b"].to_numpy(), eta).sum(), rel=1e-9)


def test_two_modes_and_the_higher_one_is_found() -> None:
    """A Student-t response is not log-concave in the effect: groups in two clusters, the smaller near the start."""
    y = np.array([-5, -5.2, 5, 5.3, 5.1, 0.1, 0.2, 7.9, 8.0, 8.1])
    data = pd.DataFrame({"y": y, "g": np.repeat([0, 1], 5)})
    model = pp.Model.from_formula("y ~ 1 + (1 | g)", data, family="student_t")
    params = {"Intercept": 0.0, "sd(Intercept|g)": 5.0, "sigma": 0.3, "nu": 3.0}
    density = JointDensity(model, nodes=200)
    point = density.point(
        model.hyperparameters.from_public(params), model.coefficients.from_public(np.zeros(1)), np.zeros(0)
    )
    found = density.leaf_moments(point)
    v = np.linspace(-6, 6, 60_001)
    total = 0.0
    for g in range(2):
        h = student.logpdf(y[data["g"] == g][:, None], 3, 5 * v, 0.3).sum(axis=0) + norm.logpdf(v)
        assert found.mode[g, 0] == pytest.approx(v[h.argmax()], abs=0.01)
        total += float(log_sum(h)) + math.log(v[1] - v[0])
    assert found.value.sum() + density.constant == pytest.approx(total, abs=1e-3)
    assert model.log_likelihood(params) == pytest.approx(total, abs=1e-3)


# -- the small solves --------------------------------------------------------------------------------------------------


def test_cholesky_and_solves() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 3))
    matrix = root @ root.T + np.eye(3)
    low, step, g = np.zeros((3, 3)), np.zeros(3), rng.normal(size=3)
    assert cholesky(matrix, low, 3)
    np.testing.assert_allclose(low, np.linalg.cholesky(matrix), rtol=1e-12)
    assert solve_both(low, g, step, 3) == pytest.approx(g @ np.linalg.solve(matrix, g))
    np.testing.assert_allclose(step, np.linalg.solve(matrix, g))
    solve_transposed(low, g, step, 3)
    np.testing.assert_allclose(step, np.linalg.solve(low.T, g))


def test_cholesky_raises_what_is_not_definite() -> None:
    """The direction found still rises."""
    low, step, g = np.zeros((2, 2)), np.zeros(2), np.array([1.0, -2.0])
    assert cholesky(np.array([[-3.0, 0.5], [0.5, 1.0]]), low, 2)
    assert solve_both(low, g, step, 2) > 0 and g @ step > 0
    assert not cholesky(np.full((2, 2), np.nan), low, 2)


@pytest.mark.parametrize("want", [VALUE, GRADIENT, MOMENTS])
def test_the_same_value_whatever_else_is_asked(want: int) -> None:
    case = CASES["poisson slopes"]
    density = case.density(7)
    own = density.unpack(case.point(density))
    assert density.rows_at(want, own).value == pytest.approx(density.rows_at(HESSIAN, own).value, rel=1e-13)
