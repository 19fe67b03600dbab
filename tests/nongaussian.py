"""Fits of models that are not Gaussian, made by hand from a few nodes, beside what brute force says of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import partialpool as pp
from partialpool.inference.base import Accuracy, Result, Settings
from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]


def expit(eta: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(eta)))


def by_hand(
    model: pp.Model, theta: Array, beta: Array, weights: Array, draws: int, root: Array | None = None, seed: int = 5
) -> Posterior:
    """A fit whose posterior is these weighted nodes; its draws are the nodes in proportion to the weights."""
    picked = np.repeat(np.arange(len(weights)), np.diff(np.rint(np.append(0, np.cumsum(weights)) * draws).astype(int)))
    picked = np.random.default_rng(8).permutation(picked)
    root = np.empty((len(theta), 0)) if root is None else root
    result = Result(
        theta, np.log(weights), beta, np.zeros_like(beta), theta[picked], beta[picked], float("nan"),
        Accuracy("laplace", "made by hand", True, {}), Settings(draws=draws, seed=seed, threads=2),
        root=root, draws_root=root[picked], quadrature_nodes=31,
    )  # fmt: skip
    return Posterior(model, result)


class Herds:
    """Binomial rows of six groups, one of them without an event, at ten nodes; every integral on a dense grid."""

    nodes, draws = 10, 20_000
    grid = np.linspace(-25, 15, 20_001)

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self.group = np.repeat(np.arange(6), 4)
        self.x = np.tile([0.0, 1.0, 2.0, 0.5], 6)
        self.trials = rng.integers(3, 12, 24).astype(float)
        effect = np.array([-3.0, 0.5, 1.5, -0.5, 0.0, 1.0])
        self.y = rng.binomial(self.trials.astype(int), expit(-0.5 + 0.3 * self.x + effect[self.group])).astype(float)
        self.y[self.group == 0] = 0.0
        self.data = pd.DataFrame({"y": self.y, "n": self.trials, "x": self.x, "g": [f"h{g}" for g in self.group]})
        self.sd = np.exp(rng.normal(0.4, 0.4, self.nodes))
        self.sd[0] = 3.0
        self.beta = np.column_stack([rng.normal(-0.5, 0.4, self.nodes), rng.normal(0.3, 0.2, self.nodes)])
        self.weights = rng.dirichlet(np.full(self.nodes, 4.0))
        self.weights = np.rint(self.weights * self.draws) / self.draws
        self.weights[-1] += 1 - self.weights.sum()
        self.density = self._density()

    @cache  # noqa: B019  # one object, as long as the tests
    def fit(self) -> Posterior:
        model = pp.Model.from_formula("y | trials(n) ~ x + (1 | g)", self.data, family="binomial")
        return by_hand(model, np.log(self.sd)[:, None], self.beta, self.weights, self.draws)

    def _density(self) -> Array:
        """p(u_g | node) on the grid, (nodes, groups, grid)."""
        out = np.empty((self.nodes, 6, self.grid.size))
        for k in range(self.nodes):
            fixed = self.beta[k, 0] + self.beta[k, 1] * self.x
            for g in range(6):
                own = self.group == g
                eta = fixed[own][:, None] + self.grid
                logs = (self.y[own][:, None] * eta - self.trials[own][:, None] * np.logaddexp(0, eta)).sum(axis=0)
                logs -= 0.5 * (self.grid / self.sd[k]) ** 2
                out[k, g] = np.exp(logs - logs.max())
                out[k, g] /= out[k, g].sum()
        return out

    def expect(self, function: Any) -> Array:
        """E of function(eta) of each row over nodes and effects; eta (grid,)."""
        out = np.zeros(len(self.y))
        for k in range(self.nodes):
            for i, g in enumerate(self.group):
                eta = self.beta[k, 0] + self.beta[k, 1] * self.x[i] + self.grid
                out[i] += self.weights[k] * (self.density[k, g] @ function(eta))
        return out


class Crossed:
    """Poisson counts of two crossed factors, at nodes that hold the effects of the smaller one."""

    nodes = 12

    def __init__(self) -> None:
        rng = np.random.default_rng(21)
        self.a, self.b = (part.ravel() for part in np.meshgrid(np.arange(15), np.arange(4), indexing="ij"))
        self.y = rng.poisson(np.exp(1.0 + rng.normal(0, 0.6, 15)[self.a] + rng.normal(0, 0.5, 4)[self.b])).astype(float)
        self.data = pd.DataFrame({"y": self.y, "a": [f"a{k:02d}" for k in self.a], "b": [f"b{k}" for k in self.b]})
        self.sd = np.exp(rng.normal(-0.6, 0.2, (self.nodes, 2)))
        self.beta = rng.normal(1.0, 0.15, (self.nodes, 1))
        self.root = rng.normal(0, 0.4, (self.nodes, 4))
        self.weights = np.full(self.nodes, 1 / self.nodes)

    @cache  # noqa: B019
    def fit(self) -> Posterior:
        model = pp.Model.from_formula("y ~ 1 + (1 | a) + (1 | b)", self.data, family="poisson")
        return by_hand(model, np.log(self.sd), self.beta, self.weights, 12_000, self.root)


class Scales:
    """A Gaussian response whose sigma has a formula: two effects a group, one on each linear predictor."""

    nodes = 6

    def __init__(self) -> None:
        rng = np.random.default_rng(31)
        self.group, self.x = np.repeat(np.arange(5), 6), rng.normal(size=30)
        scale = np.exp(-0.4 + 0.2 * self.x + rng.normal(0, 0.4, 5)[self.group])
        self.y = 2 + self.x + rng.normal(0, 1, 5)[self.group] + scale * rng.normal(size=30)
        self.data = pd.DataFrame({"y": self.y, "x": self.x, "g": [f"g{k}" for k in self.group]})
        self.sd = np.exp(rng.normal([0.0, -0.8], 0.2, (self.nodes, 2)))
        # Intercept, x, sigma.Intercept, sigma.x
        self.beta = np.array([2, 1, -0.4, 0.2]) + rng.normal(0, 0.15, (self.nodes, 4))
        self.weights = np.full(self.nodes, 1 / self.nodes)

    @cache  # noqa: B019
    def fit(self) -> Posterior:
        terms = pp.formula("y ~ x + (1 | g)", sigma="~ x + (1 | g)")
        return by_hand(pp.Model.from_formula(terms, self.data), np.log(self.sd), self.beta, self.weights, 12_000)

    def moments(self, k: int, g: int) -> tuple[Array, Array]:
        """Mean (2,) and covariance (2, 2) of a group's effects at a node, on a grid."""
        u, v = np.meshgrid(np.linspace(-5, 5, 401), np.linspace(-3, 3, 401), indexing="ij")
        logs = -0.5 * (u / self.sd[k, 0]) ** 2 - 0.5 * (v / self.sd[k, 1]) ** 2
        for i in np.flatnonzero(self.group == g):
            log_sigma = self.beta[k, 2] + self.beta[k, 3] * self.x[i] + v
            z = (self.y[i] - self.beta[k, 0] - self.beta[k, 1] * self.x[i] - u) / np.exp(log_sigma)
            logs += -0.5 * z * z - log_sigma
        weight = np.exp(logs - logs.max())
        weight /= weight.sum()
        points = np.stack([u.ravel(), v.ravel()], axis=1)
        mean = weight.ravel() @ points
        return mean, (points - mean).T @ ((points - mean) * weight.ravel()[:, None])
