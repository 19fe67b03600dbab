r"""Rows and groups left out where the response is not Gaussian: their densities given the others, by quadrature.

At a node (hyperparameters, coefficients, effects of the root) the groups of the leaf are independent, and

- a row's density given the other rows is ``p(y_g) / p(y_{g \ i})``, g its group of the leaf (`algebra.leafloo`);
  where that group lies inside a small one of the root, whose effect the row says much of, that effect is integrated
  out too (`criticism.quadrature_above`), for the rows whose importance weights would be heavy otherwise;
- a group of the leaf has for its density the integral of its rows over the population of effects, which the engine's
  own pass over the leaf gives (`algebra.leaf`);
- a group of another factor is integrated over its own effects, over those of the factors that lie inside it, and over
  the leaf's (`criticism.quadrature_units`).

The effects of all other groups are part of the node: their posterior given everything is weighted to that given the
rest by the driver's importance weights (`criticism.left_out`). Two groups of unrelated factors, or of a coarser factor,
are no more than that: conditioning on them costs nothing where the unit says little of them.

Error. The rule over a group's effects is that of the fit (among few rows no coarser than what moments need), refined
until rules two steps finer change no density of a sample of units by more than 0.003, at several draws of the
posterior; what is left is in `error`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.joint import family_kernels
from partialpool.algebra.leaf import VALUE
from partialpool.algebra.leafloo import row_kernel
from partialpool.algebra.psis import leave_out
from partialpool.criticism.nodes import Nodes, nodes_of_fit
from partialpool.criticism.quadrature_above import Above
from partialpool.criticism.quadrature_leaf import (
    PIECES,
    SAMPLE,
    WORTH_CUTTING,
    Leaf,
    Places,
    Rule,
    affordable_nodes,
    over_threads,
)
from partialpool.model import Model

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Nodes at which is found which rows need the effects above the leaf integrated as well: those of whose weights there
#: Pareto k, or the error, is larger. Numbers, rows times nodes, of one block of them.
PILOT, LIGHT_K, LIGHT_ERROR, MOST_NUMBERS = 1000, 0.4, 0.03, 20_000_000
#: How much more an evaluation counts there: the density of a row is smoother, and needs fewer nodes.
DEARER = 3
#: Numbers, rows and groups times nodes, that are in the work at a time where the factor above the leaf is integrated.
TOGETHER = 400_000


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
    integrated : (n,) by row in the leaf's order, whether the effect above its group is integrated out too.
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
        self.integrated = np.zeros(self.units, dtype=bool)
        places, sample = self.leaf.places(self.leaf.some_nodes()), _sample(self.units)
        self.error = self.leaf.settle(lambda rule: self._densities(places, sample, rule)[0])
        self.above = Above(self.leaf)
        if (self.above.units >= 0).any():
            self._choose(fit)
            own = self.order[self.integrated]
            own = own[_sample(len(own))]
            error = self.above.settle(lambda: self._densities(places, own, self.leaf.rule)[0])
            self.error = max(self.error, error)
        self.order = self.order[np.argsort(self.above.units[self.group], kind="stable")]
        self.counts[:] = 0

    def _choose(self, fit: Posterior) -> None:
        """Integrate the effects above the leaf too where weights at some nodes that hold them are not light."""
        nodes = nodes_of_fit(fit, PILOT)
        places, small = self.leaf.places(nodes), np.flatnonzero(self.above.units[self.group] >= 0)
        for own in np.array_split(small, -(-small.size * len(nodes.theta) // MOST_NUMBERS)):
            left, _ = self._densities(places, self.order[own], self.leaf.rule)
            found = leave_out(
                np.ascontiguousarray(left), nodes.log_weights, nodes.efficiency, 1.0, np.inf, threads=self.leaf.threads
            )
            self.integrated[own] = ~((found.k <= LIGHT_K) & (found.error <= LIGHT_ERROR))

    @property
    def units(self) -> int:
        """How many rows there are."""
        return len(self.order)

    @property
    def most_nodes(self) -> int:
        """How many nodes are affordable."""
        each, rows = 3 * len(self.leaf.rule.shifted) + 12, self.units
        if self.integrated.any():
            units = np.unique(self.above.units[self.group[self.integrated]])
            rows += DEARER * self.above.passes * int(self.above.sizes[units].sum())
        return affordable_nodes(rows * each)

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
        at = self.place[wanted]
        out, copies = np.empty((len(wanted), len(places.root))), np.empty((len(wanted), len(places.root)))
        drawn, integrated = np.flatnonzero(~self.integrated[at]), np.flatnonzero(self.integrated[at])
        if drawn.size:
            own = at[drawn]
            column = self._columns(own)
            _, out[drawn], copies[drawn] = self._pass(places, np.unique(self.group[own]), column, len(own), rule)
        if integrated.size:
            self._integrated(places, at[integrated], rule, out, copies, integrated)
        constant = self.leaf.constant[at][:, None]
        out += constant
        copies += constant
        return _without_nan(out), _without_nan(copies)

    def _columns(self, at: Ints) -> Ints:
        """By row, in the leaf's order, its place among some; -1 where it is not among them."""
        column = np.full(self.units, -1, dtype=np.int64)
        column[at] = np.arange(len(at))
        return column

    def _integrated(self, places: Places, at: Ints, rule: Rule, out: Array, copies: Array, to: Ints) -> None:
        """Rows whose effects of the factor above are integrated out too: some nodes at a time."""
        units, of_row = np.unique(self.above.units[self.group[at]], return_inverse=True)
        groups = np.flatnonzero(np.isin(self.above.units, units))
        groups = groups[np.argsort(self.above.units[groups], kind="stable")]
        column, nothing = self._columns(at), np.full(self.units, -1, dtype=np.int64)
        size = max(1, TOGETHER // (len(groups) + len(at)))
        for first in range(0, len(places.root), size):
            part = slice(first, min(first + size, len(places.root)))
            out[to, part], copies[to, part] = self.above.integrate(
                places.part(part), groups, of_row,
                lambda moved, some, rows: self._pass(
                    moved, some, column if rows else nothing, len(at) if rows else 0, rule
                ),
            )  # fmt: skip

    def _pass(self, places: Places, groups: Ints, column: Ints, size: int, rule: Rule) -> tuple[Array, Array, Array]:
        """Of groups of the leaf log p(y_g) (W, K); of the rows with a column what the kernel says of them (size, K)."""
        leaf, count = self.leaf, len(places.root)
        whole, out, copies = (np.empty((number, count)) for number in (len(groups), size, size))

        def run(part: slice) -> None:
            own = np.zeros(2, dtype=np.int64)
            self.kernel(
                groups[part], column, places.root, places.lam, places.constants, *leaf.row_arguments,
                *leaf.rule_arguments(rule), rule.far, out, copies, whole[part], own,
            )  # fmt: skip
            self.counts[:] += own

        work = len(groups) * count * len(rule.shifted)
        cut = leaf.threads > 1 and work > WORTH_CUTTING
        over_threads(run, len(groups), PIECES * leaf.threads if cut else 1, leaf.threads)
        return whole, out, copies


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
        none2, none3 = np.empty((0, 0)), np.empty((0, 0, 0))
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
