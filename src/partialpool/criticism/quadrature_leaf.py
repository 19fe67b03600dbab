"""What leaving out by quadrature shares: the rows by groups of the leaf, and the rule over their effects."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.leafloo import limits
from partialpool.algebra.quadrature import gauss_hermite
from partialpool.criticism.nodes import Nodes
from partialpool.design.leafrows import LeafRows
from partialpool.inference.gap import random_nodes, steps_of
from partialpool.inference.joint import COARSE
from partialpool.model import Model
from partialpool.posterior.effects import leaf_conditional
from partialpool.spec.families.vector import VECTOR

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Change of a log density under a finer rule that counts as none; relative error of a rule for a normal density, and
#: the same of quasi-random nodes.
ENOUGH, EXACT, RANDOM = 0.003, 1e-4, 0.02
#: Products of Gauss-Hermite nodes where a group has 4 or 5 effects; above, quasi-random nodes.
PRODUCTS: dict[int, tuple[int, ...]] = {4: (5, 6, 7), 5: (4, 5)}
#: Posterior draws, and units, at which a rule is compared with a finer one.
DRAWS, SAMPLE = 5, 512
#: Evaluations of a row's density that all nodes may cost, and nodes that are always affordable.
AFFORDABLE, FEWEST_NODES = 3_600_000_000, 500
#: Rows from which the rule begins with the fit's own nodes, rather than with those that moments of groups need.
MANY = 10_000
#: Evaluations of a row from which the work is cut over threads, and the pieces of it for each.
WORTH_CUTTING, PIECES = 1_000_000, 4


@dataclass(frozen=True, eq=False)
class Rule:
    """Nodes over a group's standardised effects, and the range in which they may be used (`algebra.leafloo.limits`)."""

    step: int
    nodes: Array
    shifted: Array
    far: Array


def steps_for(dimension: int) -> tuple[int, ...]:
    """Numbers of nodes tried in turn, as `rule_of` takes them."""
    return PRODUCTS.get(dimension, steps_of(dimension))


def rule_of(step: int, dimension: int) -> Rule:
    """A rule of so many nodes a dimension (in all, where the dimension is above 5)."""
    if dimension <= 3 or dimension in PRODUCTS:
        nodes, shifted = gauss_hermite(step, dimension)
        return Rule(step, nodes, shifted, limits(nodes, shifted, EXACT))
    nodes, shifted = random_nodes(step, dimension)
    nodes, shifted = np.concatenate([nodes, -nodes]), np.concatenate([shifted, shifted]) - np.log(2.0)
    return Rule(step, nodes, shifted, limits(nodes, shifted, RANDOM))


@dataclass(frozen=True, eq=False)
class Places:
    """Nodes as the kernels read them: root (K, p + R), lam (K, q, q), constants (K, 2), theta (K, d)."""

    root: Array
    lam: Array
    constants: Array
    theta: Array

    def part(self, which: slice) -> Places:
        """Some of them."""
        return Places(self.root[which], self.lam[which], self.constants[which], self.theta[which])


class Leaf:
    """The rows of a fit by groups of its leaf, and the rule over their effects.

    Parameters
    ----------
    fit : Posterior
        With its rows, of a response that needs quadrature.
    threads : int
    """

    def __init__(self, fit: Posterior, threads: int = 1) -> None:
        self.fit, self.threads = fit, threads
        self.model: Model = fit.model
        density = leaf_conditional(fit).density
        self.rows: LeafRows = density.rows
        self.leaf = self.model.latent.leaf
        self.start, self.starts, self.q = density.start, density.starts, density.q
        self.constant_at = density.constant_at
        self.rule = rule_of(self._first_step(density.nodes), self.q)
        family = self.model.family
        self.constant = self.rows.weight * family.constant(self.rows.y, self.rows.trials)
        name = f"{family.name}_{family.link}".replace("/", "_").replace("^", "")
        self.family: tuple[Any, ...] = (
            name, family.log_density, family.derivatives, VECTOR.get((family.name, family.link)),
        )  # fmt: skip

    def _first_step(self, of_moments: int) -> int:
        if self.q > 3:
            return max(256, of_moments) if self.q not in PRODUCTS else PRODUCTS[self.q][0]
        if self.rows.y.size > MANY and self.q:
            return max(self.fit.result.quadrature_nodes, steps_for(self.q)[0])
        return of_moments

    @property
    def row_arguments(self) -> tuple[Any, ...]:
        """What every kernel reads of the rows."""
        rows = self.rows
        return (
            rows.y, rows.trials, rows.weight, rows.offset, rows.x, rows.at, rows.x_part, rows.z, rows.z_part,
            rows.pointer,
        )  # fmt: skip

    def rule_arguments(self, rule: Rule) -> tuple[Any, ...]:
        """A rule, and where the search for a group's mode begins."""
        return rule.nodes, rule.shifted, self.start, self.starts, COARSE

    def places(self, nodes: Nodes) -> Places:
        """Nodes as the kernels read them."""
        count = len(nodes.theta)
        lam = np.zeros((count, self.q, self.q))
        if self.leaf is not None:
            hyper = self.model.hyperparameters
            first = hyper.lam_at[self.leaf]
            lam[:] = hyper.factors(nodes.theta)[:, first : first + self.q**2].reshape(count, self.q, self.q)
        constants = np.zeros((count, 2))
        for k in range(2):
            if self.constant_at[k] >= 0:
                constants[:, k] = nodes.theta[:, self.constant_at[k]]
        root = np.ascontiguousarray(np.concatenate([nodes.gamma, nodes.root], axis=1), dtype=float)
        return Places(root, lam, constants, np.ascontiguousarray(nodes.theta, dtype=float))

    def some_nodes(self) -> Nodes:
        """A few draws of the posterior, to compare rules at."""
        result, layout = self.fit.result, self.model.latent
        picked = np.unique(np.linspace(0, len(result.draws_theta) - 1, DRAWS).astype(int))
        gamma = self.model.coefficients.from_public(result.draws_beta[picked])
        root = np.empty((len(picked), 0))
        if result.effects is not None:
            root = result.effects[picked, layout.n_effects - layout.n_root :]
        elif result.draws_root is not None:
            root = result.draws_root[picked]
        equal = np.full(len(picked), -np.log(len(picked)))
        return Nodes(result.draws_theta[picked], gamma, np.ascontiguousarray(root), equal)

    def settle(self, evaluate: Callable[[Rule], Array]) -> float:
        """Refine the rule until log densities at a few draws no longer change; returns the largest change left."""
        steps = [step for step in steps_for(self.q) if step > self.rule.step]
        if not self.q:
            return 0.0
        while True:
            if not steps:
                return largest_change(evaluate(self.rule), evaluate(rule_of(3 * self.rule.step // 2, self.q)))
            finer = rule_of(steps[min(1, len(steps) - 1)], self.q)
            error = largest_change(evaluate(self.rule), evaluate(finer))
            if error <= ENOUGH:
                return error
            self.rule = rule_of(steps.pop(0), self.q)


def largest_change(coarse: Array, fine: Array) -> float:
    """The largest difference of log densities, where both exist."""
    both = np.isfinite(coarse) & np.isfinite(fine)
    with np.errstate(invalid="ignore"):
        return float(np.abs(np.where(both, coarse - fine, 0.0)).max(initial=0.0))


def over_threads(run: Callable[[slice], None], count: int, pieces: int, threads: int) -> None:
    """Call `run` for slices that make up range(count): how it is cut changes no result."""
    edges = np.unique(np.linspace(0, count, min(pieces, count) + 1).astype(int)).tolist()
    parts = [slice(a, b) for a, b in pairwise(edges)]
    if threads > 1 and len(parts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, parts))
    else:
        for part in parts:
            run(part)


def affordable_nodes(evaluations: float) -> int:
    """How many nodes are worth their cost, given the evaluations of a row's density that one takes."""
    return max(FEWEST_NODES, int(AFFORDABLE / max(evaluations, 1.0)))
