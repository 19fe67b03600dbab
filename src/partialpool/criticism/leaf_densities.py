r"""The log density of each group of the leaf, its effects integrated over their population, at points of the posterior.

*Gaussian rows.* Given coefficients and the effects of the other factors, with r the rows' residuals without the leaf's
effects, D their inverse variances and :math:`A_g = Z_g' D Z_g`,

.. math:: \log p(y_g) = -\tfrac12 \Bigl[ n_g \log 2\pi - \log|D_g| + \log|\Lambda' A_g \Lambda + I|
          + r' D r - t' \Lambda (\Lambda' A_g \Lambda + I)^{-1} \Lambda' t \Bigr], \qquad t = Z_g' D r.

*Other rows*: the quadrature that the engine uses (`inference.joint`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.leaf import VALUE
from partialpool.criticism.nodes import nodes_of_fit
from partialpool.design.predictor import LinearPredictor, factor_columns
from partialpool.inference.importance import effective_sample_size
from partialpool.levels.fold_scores import normal_log_density
from partialpool.posterior.effects import leaf_conditional
from partialpool.posterior.groups import effect_draws, layout_of, mean_coefficients, mean_effects
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

LOG_2PI = float(np.log(2 * np.pi))
#: Rows (or groups) times draws that are computed in all, the fewest draws, and numbers of one block.
MOST_COMPUTED, FEWEST, BLOCK = 50_000_000, 400, 4_000_000
#: What quadrature may take in all, in evaluations of rows; numbers that are kept; nodes.
MOST_WORK, MOST_KEPT, MOST_NODES = 400_000_000, 20_000_000, 4000


class LeafBlocks(Protocol):
    """Log densities of the leaf's groups at weighted points.

    groups : how many. weights : (D,) of the points, of sum 1. efficiency : how many independent draws one is worth.
    """

    weights: Array
    efficiency: float

    @property
    def groups(self) -> int: ...

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield groups and their log densities (groups, points)."""
        ...

    def at_means(self) -> Array:
        """(G,) at the posterior means of theta, coefficients and the other factors' effects."""
        ...


def leaf_blocks(fit: Posterior) -> LeafBlocks:
    """Of a fit with groups and rows."""
    return GaussianLeaf(fit) if fit.model.exact else QuadratureLeaf(fit)


def efficiency_of_draws(fit: Posterior, count: int) -> float:
    """How many independent draws one of the fit's equally weighted draws is worth."""
    if fit.result.chains:
        found = [value for value in fit.accuracy.ess.values() if np.isfinite(value)]
        return min(1.0, min(found) / count) if found else 1.0
    have = float(effective_sample_size(fit.result.log_weights))
    return 1 / (1 + count / have) if len(fit.result.log_weights) > 1 else 1.0


def weighted_normal(left: Array, variance: Array, weights: Array | None, rows: Ints) -> Array:
    """Normal log density of residuals (rows, draws), times the rows' weights."""
    value = normal_log_density(left, np.zeros(1), variance)
    return np.asarray(value if weights is None else value * weights[rows][:, None])


# -- Gaussian rows ----------------------------------------------------------------------------------------------------


class GaussianLeaf:
    """Log densities of the leaf's groups of a Gaussian response at the draws of a fit."""

    def __init__(self, fit: Posterior) -> None:
        model, design = fit.model, fit.model.design
        assert model.latent.leaf is not None
        self.fit, self.leaf = fit, model.latent.leaf
        self.factor = design.factors[self.leaf]
        self.z = design.V[:, factor_columns(design)[self.leaf]]
        self.order = np.argsort(self.factor.codes, kind="stable")
        self.pointer = np.concatenate([[0], np.cumsum(self.sizes)])
        total = len(fit.result.draws_theta)
        numbers = max(design.n_rows, self.groups * self.z.shape[1] ** 2)
        count = min(total, max(FEWEST, MOST_COMPUTED // numbers))
        self.draws = np.unique(np.linspace(0, total - 1, count).astype(np.int64))
        self.weights = np.full(len(self.draws), 1 / len(self.draws))
        self.efficiency = efficiency_of_draws(fit, len(self.draws))
        self.others = [f for f in range(len(design.factors)) if f != self.leaf]

    @property
    def groups(self) -> int:
        """How many groups the leaf has."""
        return len(self.factor.labels)

    @property
    def sizes(self) -> Ints:
        """Rows of each group."""
        return np.asarray(self.factor.sizes, dtype=np.int64)

    @cached_property
    def _effects(self) -> dict[int, Array]:
        """Draws (groups, q, draws) of the other factors' effects."""
        layout, drawn = layout_of(self.fit.model), effect_draws(self.fit, self.draws)
        return {f: np.ascontiguousarray(np.moveaxis(drawn.of(layout.effects_of(f)), 0, 2)) for f in self.others}

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield groups and their log densities (groups, draws)."""
        theta, beta = self.fit.result.draws_theta[self.draws], self.fit.result.draws_beta[self.draws]
        for groups in self._group_blocks(len(theta)):
            yield groups, self._density(groups, theta, beta, self._effects)

    def at_means(self) -> Array:
        """(G,) at posterior means."""
        fit = self.fit
        theta = (node_weights(fit.result) @ fit.result.theta)[None, :]
        layout = layout_of(fit.model)
        means = mean_effects(fit) if self.others else np.empty(0)
        effects = {f: np.ascontiguousarray(means[layout.effects_of(f)][:, :, None]) for f in self.others}
        out = np.empty(self.groups)
        for groups in self._group_blocks(1):
            out[groups] = self._density(groups, theta, mean_coefficients(fit)[None, :], effects)[:, 0]
        return out

    def _group_blocks(self, draws: int) -> Iterator[slice]:
        per_row = draws * (2 + self.z.shape[1] ** 2)
        start = 0
        while start < self.groups:
            limit = self.pointer[start] + max(1, BLOCK // per_row)
            stop = max(start + 1, int(np.searchsorted(self.pointer, limit, side="right")) - 1)
            yield slice(start, min(stop, self.groups))
            start = stop

    def _density(self, groups: slice, theta: Array, beta: Array, effects: dict[int, Array]) -> Array:
        """(groups, draws)."""
        design, hyper = self.fit.model.design, self.fit.model.hyperparameters
        rows = self.order[self.pointer[groups.start] : self.pointer[groups.stop]]
        starts = self.pointer[groups] - self.pointer[groups.start]
        predictor = LinearPredictor.of_design(design, self.others)
        eta = predictor.common(beta, rows)
        for own in predictor.factors:
            predictor.add_effects(eta, own, effects[own.factor], own.codes[rows].astype(np.int64), rows)
        left = design.y[rows][:, None] - eta
        q, at = hyper.widths[self.leaf], hyper.lam_at[self.leaf]
        lam = hyper.factors(theta)[:, at : at + q * q].reshape(-1, q, q)
        sigma = np.zeros(len(theta)) if hyper.sigma_at is None else np.exp(theta[:, hyper.sigma_at])
        count = np.ones(design.n_rows) if design.weights is None else design.weights
        z, own_count = self.z[rows], count[rows]
        if design.se is not None and design.se_sigma:
            parts = []
            for k in range(len(theta)):
                variance = design.se[rows] ** 2 + sigma[k] ** 2
                parts.append(_grouped(left[:, k : k + 1], z, own_count, variance, np.ones(1), lam[k : k + 1], starts))
            return np.concatenate(parts, axis=1)
        known = np.ones(len(rows))
        if design.se is not None:
            known = design.se[rows] ** 2
        elif design.precision is not None:
            known = 1 / design.precision[rows]
        scale = np.ones(len(theta)) if hyper.sigma_at is None else sigma**2
        return _grouped(left, z, own_count, known, scale, lam, starts)


def _grouped(left: Array, z: Array, count: Array, known: Array, scale: Array, lam: Array, starts: Ints) -> Array:
    """(groups, draws) of rows whose variance is known (n,) times scale (D,).

    left : (n, D) residuals without the groups' effects. z : (n, q). count : (n,) weights. lam : (D, q, q).
    """
    weight = count / known
    rows = np.add.reduceat(count, starts)
    constant = np.add.reduceat(count * np.log(known), starts) + rows * LOG_2PI
    zw = z * weight[:, None]
    own = np.add.reduceat(zw[:, :, None] * z[:, None, :], starts, axis=0)
    square = np.add.reduceat(weight[:, None] * left * left, starts, axis=0) / scale
    t = np.stack([np.add.reduceat(zw[:, j : j + 1] * left, starts, axis=0) for j in range(z.shape[1])]) / scale
    log_determinant, explained = _solved(own, lam, t, scale)
    return np.asarray(-0.5 * (constant[:, None] + rows[:, None] * np.log(scale) + log_determinant + square - explained))


def _solved(own: Array, lam: Array, t: Array, scale: Array) -> tuple[Array, Array]:
    """log|M| and t' Lambda M^-1 Lambda' t, M = Lambda' A Lambda + I, (groups, draws).

    By Cholesky's algorithm over the few effects of a group, for all groups and draws at once: LAPACK is slow on
    millions of such small matrices.
    """
    q = lam.shape[1]
    low: dict[tuple[int, int], Array] = {}
    right: list[Array] = []
    log_determinant, explained = np.zeros(t.shape[1:]), np.zeros(t.shape[1:])
    for i in range(q):
        value = np.einsum("jgd,dj->gd", t, lam[:, :, i])
        for j in range(i + 1):
            # (Lambda' A Lambda)_ij is linear in the products of Lambda's entries
            products = np.einsum("da,db->abd", lam[:, :, i], lam[:, :, j]).reshape(q * q, -1)
            entry = own.reshape(-1, q * q) @ (products / scale) + (i == j)
            for k in range(j):
                entry -= low[i, k] * low[j, k]
            low[i, j] = np.sqrt(entry) if i == j else entry / low[j, j]
        for k in range(i):
            value -= low[i, k] * right[k]
        right.append(value / low[i, i])
        log_determinant += 2 * np.log(low[i, i])
        explained += right[i] ** 2
    return log_determinant, explained


# -- other rows -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class QuadratureLeaf:
    """The same of other responses, at the nodes of a fit."""

    fit: Posterior

    def __post_init__(self) -> None:
        self.conditional = leaf_conditional(self.fit)
        density = self.conditional.density
        affordable = min(MOST_WORK // max(density.work, 1), MOST_KEPT // max(density.rows.n_groups, 1), MOST_NODES)
        self.nodes = nodes_of_fit(self.fit, max(FEWEST // 4, affordable))
        self.weights = np.exp(self.nodes.log_weights)
        self.efficiency = self.nodes.efficiency
        rows = density.rows
        each = rows.weight * self.fit.model.family.constant(rows.y, rows.trials)
        self.constant = np.add.reduceat(each, rows.pointer[:-1])

    @property
    def groups(self) -> int:
        """How many groups the leaf has."""
        return int(self.conditional.density.rows.n_groups)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """All groups in one block: a pass over the rows brings all of them at one node."""
        nodes = self.nodes
        out = np.empty((self.groups, len(self.weights)))

        def run(k: int) -> None:
            out[:, k] = self._at(nodes.theta[k], nodes.gamma[k], nodes.root[k])

        threads = self.fit.result.settings.threads
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, range(len(self.weights))))
        else:
            for k in range(len(self.weights)):
                run(k)
        yield slice(0, self.groups), out

    def at_means(self) -> Array:
        """(G,) at posterior means."""
        every = nodes_of_fit(self.fit)
        weights = np.exp(every.log_weights)
        return self._at(weights @ every.theta, weights @ every.gamma, weights @ every.root)

    def _at(self, theta: Array, gamma: Array, root: Array) -> Array:
        own = self.conditional.unpack(theta, gamma, root)
        return np.asarray(self.conditional.density.rows_at(VALUE, own).moments.value + self.constant)
