r"""Rows and groups left out where the response is not Gaussian: their densities given the others, by quadrature.

At a node (hyperparameters, coefficients, effects of the root) the groups of the leaf are independent, and

- a row's density given the other rows is ``p(y_g) / p(y_{g \ i})``, g its group of the leaf (`algebra.leafloo`);
- a group of the leaf has for its density the integral of its rows over the population of effects, which the engine's
  own pass over the leaf gives (`algebra.leaf`);
- a group of another factor is integrated over its own effects, over those of the factors that lie inside it, and over
  the leaf's (`criticism.quadrature_units`).

The effects of all other groups are part of the node: their posterior given everything is weighted to that given the
rest by the driver's importance weights (`criticism.left_out`). Two groups of unrelated factors, or of a coarser factor,
are no more than that: conditioning on them costs nothing where the unit says little of them.

Error. The rule over a group's effects is that of the fit, no coarser than what moments need, and refined until rules two steps
finer change no density of a sample of units by more than `ENOUGH`, at several draws of the posterior; what is left is in
`error`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.joint import family_kernels
from partialpool.algebra.leaf import VALUE
from partialpool.algebra.leafloo import limits, row_kernel
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
    """Nodes over a group's standardised effects, with the range in which they may be used (`algebra.leafloo.limits`)."""

    step: int
    nodes: Array
    shifted: Array
    far: Array


def rule_of(step: int, dimension: int) -> Rule:
    """A rule of so many nodes a dimension (in all, where the dimension is above 3)."""
    if dimension <= 3:
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
        many = self.rows.y.size > MANY and 0 < self.q <= 3
        self.rule = rule_of(max(fit.result.quadrature_nodes, steps_of(self.q)[0]) if many else density.nodes, self.q)
        family = self.model.family
        self.constant = self.rows.weight * family.constant(self.rows.y, self.rows.trials)
        name = f"{family.name}_{family.link}".replace("/", "_").replace("^", "")
        self.family: tuple[Any, ...] = (
            name, family.log_density, family.derivatives, VECTOR.get((family.name, family.link)),
        )  # fmt: skip

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
        steps = [step for step in steps_of(self.q) if step > self.rule.step]
        if not self.q:
            return 0.0
        while True:
            if not steps:
                return self._change(evaluate(self.rule), evaluate(rule_of(3 * self.rule.step // 2, self.q)))
            finer = rule_of(steps[min(1, len(steps) - 1)], self.q)
            error = self._change(evaluate(self.rule), evaluate(finer))
            if error <= ENOUGH:
                return error
            self.rule = rule_of(steps.pop(0), self.q)

    @staticmethod
    def _change(coarse: Array, fine: Array) -> float:
        both = np.isfinite(coarse) & np.isfinite(fine)
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


class QuadratureRows:
    """`Conditional` of rows.

    Parameters
    ----------
    fit : Posterior
        With its rows, of a response that is not Gaussian (or Gaussian with a formula for sigma).
    threads : int, optional
        Those of the fit by default.

    Attributes
    ----------
    order : (n,) the rows in the order in which blocks of them cost least: by groups of the leaf.
    error : what a finer rule changes in a row's log density, at most.
    counts : (2,) how often a row went by its group's rule, and by one of its own.

    Examples
    --------
    >>> import partialpool as pp
    >>> from partialpool.criticism.nodes import nodes_of_fit
    >>> data = pp.datasets.load("cbpp")
    >>> fit = pp.fit("incidence | trials(size) ~ period + (1 | herd)", data, family="binomial", seed=1)
    >>> rows = QuadratureRows(fit)
    >>> left, inside = rows.log_densities(nodes_of_fit(fit, 100), slice(0, 3))
    >>> left.shape, bool((left < inside).mean() > 0.5)
    ((100, 3), True)
    """

    def __init__(self, fit: Posterior, threads: int | None = None) -> None:
        self.leaf = Leaf(fit, fit.result.settings.threads if threads is None else threads)
        self.order = self.leaf.rows.order
        self.place = np.empty(len(self.order), dtype=np.int64)
        self.place[self.order] = np.arange(len(self.order))
        self.group = np.repeat(np.arange(self.leaf.rows.n_groups), np.diff(self.leaf.rows.pointer))
        self.counts = np.zeros(2, dtype=np.int64)
        self.kernel = row_kernel(*self.leaf.family)
        places, sample = self.leaf.places(self.leaf.some_nodes()), _sample(self.units)
        self.error = self.leaf.settle(lambda rule: self._densities(places, sample, rule)[0])
        self.counts[:] = 0

    @property
    def units(self) -> int:
        """How many rows there are."""
        return len(self.order)

    @property
    def most_nodes(self) -> int:
        """How many nodes are affordable."""
        return affordable_nodes(self.units * (3 * len(self.leaf.rule.shifted) + 12))

    def rows_of(self, unit: int) -> Ints:
        """The row itself."""
        return np.array([unit])

    def log_densities(self, nodes: Nodes, units: slice | Ints) -> tuple[Array, Array | None]:
        """See `criticism.left_out.Conditional`."""
        wanted = np.arange(units.start, units.stop) if isinstance(units, slice) else np.asarray(units)
        left, inside = self._densities(self.leaf.places(nodes), wanted, self.leaf.rule)
        return left.T, inside.T

    def _densities(self, places: Places, wanted: Ints, rule: Rule) -> tuple[Array, Array]:
        """(U, K) each."""
        leaf, count = self.leaf, len(places.root)
        at = self.place[wanted]
        column = np.full(self.units, -1, dtype=np.int64)
        column[at] = np.arange(len(wanted))
        groups = np.unique(self.group[at])
        out, copies = np.empty((len(wanted), count)), np.empty((len(wanted), count))

        def run(part: slice) -> None:
            own = np.zeros(2, dtype=np.int64)
            self.kernel(
                groups[part], column, places.root, places.lam, places.constants, *leaf.row_arguments,
                *leaf.rule_arguments(rule), rule.far, out, copies, own,
            )  # fmt: skip
            self.counts[:] += own

        work = len(wanted) * count * len(rule.shifted)
        cut = leaf.threads > 1 and work > WORTH_CUTTING
        over_threads(run, len(groups), PIECES * leaf.threads if cut else 1, leaf.threads)
        constant = leaf.constant[at][:, None]
        out += constant
        copies += constant
        return _without_nan(out), _without_nan(copies)


class QuadratureLeafGroups:
    """`Conditional` of the groups of the leaf, where no factor of the root lies inside them.

    Parameters
    ----------
    fit : Posterior
    threads : int, optional

    Attributes
    ----------
    error : what a finer rule changes in a group's log density, at most.
    """

    def __init__(self, fit: Posterior, threads: int | None = None) -> None:
        self.leaf = Leaf(fit, fit.result.settings.threads if threads is None else threads)
        rows = self.leaf.rows
        self.part = family_kernels(*self.leaf.family)[1]
        self.constant = np.add.reduceat(self.leaf.constant, rows.pointer[:-1])
        places, sample = self.leaf.places(self.leaf.some_nodes()), _sample(self.units)
        self.error = self.leaf.settle(lambda rule: self._densities(places, sample, rule))

    @property
    def units(self) -> int:
        """How many groups there are."""
        return self.leaf.rows.n_groups

    @property
    def most_nodes(self) -> int:
        """How many nodes are affordable."""
        return affordable_nodes(self.leaf.rows.y.size * (2 * len(self.leaf.rule.shifted) + 20))

    def rows_of(self, unit: int) -> Ints:
        """The rows of a group."""
        rows = self.leaf.rows
        return np.sort(rows.order[rows.pointer[unit] : rows.pointer[unit + 1]])

    def log_densities(self, nodes: Nodes, units: slice | Ints) -> tuple[Array, Array | None]:
        """See `criticism.left_out.Conditional`: a copy is a new group, whose density is the same."""
        wanted = np.arange(units.start, units.stop) if isinstance(units, slice) else np.asarray(units)
        left = self._densities(self.leaf.places(nodes), wanted, self.leaf.rule).T
        return left, left

    def _densities(self, places: Places, wanted: Ints, rule: Rule) -> Array:
        """(U, K)."""
        leaf, count, q = self.leaf, len(places.root), self.leaf.q
        out = np.empty((len(wanted), count))
        runs = _runs(wanted)
        none1, none2, none3 = np.empty(0), np.empty((0, 0)), np.empty((0, 0, 0))
        untouched = np.zeros(1, dtype=np.int64), np.zeros((0, 0), dtype=np.int32), np.zeros(0, dtype=np.int32)
        rows, starts = leaf.row_arguments, leaf.rule_arguments(rule)

        def run(part: slice) -> None:
            value = np.empty(self.units)
            in_root, in_constant, zz = np.zeros(places.root.shape[1]), np.zeros(2), np.zeros((q, q))
            status = np.empty(0, dtype=np.int64)
            for k in range(part.start, part.stop):
                for begin, end in runs:
                    self.part(
                        begin, end, VALUE, places.root[k], places.lam[k], places.constants[k, 0],
                        places.constants[k, 1], *rows, *untouched, *starts, in_root, in_constant, zz, none2, value,
                        none2, none2, none3, status,
                    )  # fmt: skip
                out[:, k] = value[wanted]

        size = np.diff(leaf.rows.pointer)[wanted].sum()
        cut = leaf.threads > 1 and size * count * len(rule.shifted) > WORTH_CUTTING
        over_threads(run, count, PIECES * leaf.threads if cut else 1, leaf.threads)
        out += self.constant[wanted][:, None]
        return _without_nan(out)


def _runs(wanted: Ints) -> list[tuple[int, int]]:
    """Ranges (first, past the last) of groups that follow one another."""
    if not wanted.size:
        return []
    breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
    edges = [0, *breaks.tolist(), wanted.size]
    return [(int(wanted[a]), int(wanted[b - 1]) + 1) for a, b in pairwise(edges)]


def _sample(units: int) -> Ints:
    """Units at which rules are compared, spread evenly."""
    return np.unique(np.linspace(0, units - 1, min(SAMPLE, units)).astype(np.int64))


def _without_nan(values: Array) -> Array:
    values[np.isnan(values)] = -np.inf
    return values


def inside_of(model: Model, factor: int) -> tuple[int, ...]:
    """Factors other than the leaf and `factor` whose groups each lie inside one group of `factor`."""
    design, found = model.design, []
    outer = design.factors[factor].codes.astype(np.int64)
    for f, own in enumerate(design.factors):
        if f in (factor, model.latent.leaf):
            continue
        first = np.full(len(own.labels), -1, dtype=np.int64)
        first[own.codes] = outer
        if (first[own.codes] == outer).all():
            found.append(f)
    return tuple(found)


def quadrature_rows(fit: Posterior, threads: int | None = None) -> QuadratureRows:
    """The `Conditional` of a fit's rows."""
    return QuadratureRows(fit, threads)


def quadrature_groups(fit: Posterior, factor: int, threads: int | None = None) -> Any:
    """The `Conditional` of the groups of one of a fit's factors (its position among ``design.factors``)."""
    if factor == fit.model.latent.leaf and not inside_of(fit.model, factor):
        return QuadratureLeafGroups(fit, threads)
    from partialpool.criticism.quadrature_units import QuadratureUnits

    return QuadratureUnits(fit, factor, threads)


__all__ = ["Leaf", "Places", "QuadratureLeafGroups", "QuadratureRows", "Rule", "quadrature_groups", "quadrature_rows"]
