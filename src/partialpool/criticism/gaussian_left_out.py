"""What is left out of a Gaussian model: rows and groups given all others, coefficients and effects integrated exactly.

Given the hyperparameters everything else is normal, so that nodes of theta are all that is needed: the densities
are those of `algebra.leftout`, for any number of grouping factors. Groups of a factor that is not among those
integrated group by group (`Elimination.chain`) get an elimination of their own that begins with it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import leftout
from partialpool.algebra.cholesky import LeafRoot
from partialpool.algebra.lapack import one_blas_thread
from partialpool.algebra.leftout_nodes import LeftOutNodes
from partialpool.algebra.structure import CrossProducts
from partialpool.criticism.gaussian_units import blocks_with, elimination_of, lay_out
from partialpool.criticism.nodes import Nodes
from partialpool.inference.gaussian import LOG_2PI, GaussianMarginal, row_terms, working_response
from partialpool.model import Model

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Seconds (on one core, from sizes alone) that one pass over all units at all nodes may take before nodes are left out.
BUDGET = 5.0
FEWEST_NODES = 250
#: Pieces in which units that lie apart are asked for.
MOST_RUNS = 8
#: Numbers of one step of a model without groups.
NUMBERS = 2_000_000
#: Seconds of a row, or of a group a unit of work, at one node.
ROW_SECONDS, GROUP_SECONDS = 6e-8, 3e-9


class GaussianLeftOut:
    """The `Conditional` of a Gaussian model.

    Parameters
    ----------
    model : Model
        Exact, with its rows.
    factor : int or None
        The grouping factor whose groups are left out; None leaves out rows.
    threads : int
    """

    def __init__(self, model: Model, factor: int | None = None, threads: int = 1) -> None:
        self.model, self.factor, self.threads = model, factor, max(1, threads)
        self.marginal = GaussianMarginal(model, threads=self.threads)
        own = None if factor is None else elimination_of(model, factor)
        self.blocks = model.row_blocks if own is None else blocks_with(model, own)
        self.structure = self.blocks.structure
        chain = self.structure.elimination.chain
        self.level = -1 if factor is None else chain.index(factor)
        self._units = lay_out(model, self.structure, max(self.level, 0))
        self._order = self._units.order if factor is None else np.argsort(self.structure.rank[factor])
        self._place = np.argsort(self._order)
        none = np.empty(0)  # where sigma is added to known standard errors, all of it depends on the node
        self._weight, self._constant = (none, none) if self.marginal.adds_sigma else self._row_terms(None)
        design = model.design
        self._count = np.ones(design.n_rows) if design.weights is None else np.asarray(design.weights, dtype=float)
        self._cross = None if self.marginal.adds_sigma else self._cross_products(self._weight)
        self._alone = len(chain) == 1 and not self.structure.n_root
        self._last: tuple[Nodes, tuple[Array, Array]] | None = None

    # -- what the driver asks -----------------------------------------------------------------------------------------

    @property
    def units(self) -> int:
        """Rows, or groups."""
        return self.model.design.n_rows if self.factor is None else len(self._units.pointer) - 1

    @property
    def order(self) -> Ints:
        """(units,) the units in the order in which blocks of them are cheapest: rows by the groups of the leaf."""
        return self._order

    def rows_of(self, unit: int) -> Ints:
        """Positions of the rows that leave with a unit."""
        if self.factor is None:
            return np.array([unit])
        place = self._place[unit]
        return self._units.order[self._units.pointer[place] : self._units.pointer[place + 1]]

    @property
    def most_nodes(self) -> int:
        """Nodes within the budget."""
        return max(FEWEST_NODES, int(BUDGET / self.seconds))

    @property
    def seconds(self) -> float:
        """Rough time of one node on one core, from counts alone."""
        structure, n = self.structure, self.model.design.n_rows
        engine = LeafRoot(self._cross if self._cross is not None else self.marginal.statistics.cross, self._proper)
        total = engine.seconds() * (6 if structure.n_root else 2)  # factors, inverses
        width = self._units.dense.shape[1] + self._units.sparse.shape[1] + self._units.own.shape[1]
        if self.factor is None:
            total += n * ROW_SECONDS * max(1.0, width / 6) ** 2
        else:
            met = self._units.met + self._units.dense.shape[1]
            total += GROUP_SECONDS * float((2.0 * met**3 + 10.0 * met**2 + 200.0).sum())
        total += 6e-5 if self.structure.elimination.chain else 0.0  # steps from kernel to kernel
        return total + (4e-4 + 2e-7 * n if self.marginal.adds_sigma else 0.0)

    def log_densities(self, nodes: Nodes, units: slice | Ints) -> tuple[Array, Array]:
        """Each (K, units): see `Conditional.log_densities`."""
        wanted = self._place[units]
        if not wanted.size:
            none = np.empty((len(nodes.theta), 0))
            return none, none
        runs = _runs(np.sort(wanted))
        parts = [self._of_slice(nodes, run) for run in runs]
        if len(runs) == 1 and (np.diff(wanted) > 0).all():
            return parts[0][0].T, parts[0][1].T
        known = np.concatenate([np.arange(run.start, run.stop) for run in runs])
        at = np.searchsorted(known, wanted)
        left, inside = (np.concatenate([part[i] for part in parts])[at] for i in (0, 1))
        return left.T, inside.T

    # -- one slice of units -------------------------------------------------------------------------------------------

    def _of_slice(self, nodes: Nodes, units: slice) -> tuple[Array, Array]:
        """Each (units, K), C-contiguous."""
        count, size = units.stop - units.start, len(nodes.theta)
        left, inside = np.empty((count, size)), np.empty((count, size))
        if not count or not size:
            return left, inside
        lams, inv_vars, scales = self._arguments(nodes.theta)
        sigma_at = self.model.hyperparameters.sigma_at
        free = sigma_at is not None and not self.marginal.adds_sigma
        logs = np.ascontiguousarray(nodes.theta[:, sigma_at]) if free else np.zeros(size)
        if not self.structure.elimination.chain:
            self._without_groups(nodes, units, lams, inv_vars, scales, logs, left, inside)
            return left, inside
        known = self._known(nodes, lams, inv_vars, scales)

        def run(part: slice) -> None:
            if self.marginal.adds_sigma:
                for node in range(part.start, part.stop):
                    self._run(nodes, slice(node, node + 1), units, (lams, inv_vars, scales, logs), known, left, inside)
            else:
                self._run(nodes, part, units, (lams, inv_vars, scales, logs), known, left, inside)

        with one_blas_thread():
            _over_parts(run, size, self.threads)
        return left, inside

    def _run(
        self,
        nodes: Nodes,
        part: slice,
        units: slice,
        given: tuple[Array, Array, Array, Array],
        known: tuple[Array, Array] | None,
        left: Array,
        inside: Array,
    ) -> None:
        """Some nodes by one thread; where sigma is added to known standard errors, a single one."""
        weight, constant, cross = self._weight, self._constant, self._cross
        if cross is None:
            sigma_at = self.model.hyperparameters.sigma_at
            weight, constant = self._row_terms(float(np.exp(nodes.theta[part.start, sigma_at])))
            cross = self._cross_products(weight)
        lams, inv_vars, scales, logs = (np.ascontiguousarray(values[part]) for values in given)
        ranges, rows = self._rows_of_slice(units, weight, constant)
        moments = None if known is None else (known[0][part], known[1][part])
        LeftOutNodes(LeafRoot(cross, self._proper), self.level).leave(
            lams, inv_vars, scales, logs, moments, ranges, rows, left, inside, part.start
        )

    def _rows_of_slice(self, units: slice, weight: Array, constant: Array) -> tuple[Ints, tuple[Any, ...]]:
        """The groups in which these units lie, and the arguments of the kernels that describe the units."""
        own = self._units
        pointer = own.pointer
        if self.factor is None:
            rows = slice(units.start, units.stop)
            first = int(np.searchsorted(pointer, units.start, side="right")) - 1
            last = int(np.searchsorted(pointer, units.stop, side="left"))
            local = np.clip(pointer[first : last + 1], units.start, units.stop) - units.start
        else:
            first, last = units.start, units.stop
            rows = slice(int(pointer[first]), int(pointer[last]))
            local = pointer[first : last + 1] - rows.start
        order = own.order[rows]
        row_weight, row_count, row_constant = weight[order], self._count[order], constant[order]
        local = np.ascontiguousarray(local)
        pieces: tuple[Any, ...] = (own.dense[rows], own.sparse[rows], own.entry[rows], own.y[rows])
        ranges = np.array([[first, last]], dtype=np.int64)
        if self.factor is None:
            return ranges, (first, local, own.own[rows], *pieces, row_weight, row_count, row_constant, own.pairs)
        met = own.met[first:last]
        sizes = (own.dense.shape[1] + met + 1) ** 2
        at_product = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        products = np.zeros(int(sizes.sum()))
        given: list[Any] = [local, *pieces, row_weight, np.ascontiguousarray(met), at_product, products]
        leftout.add_products(*given)
        group = np.repeat(np.arange(last - first), np.diff(local))
        count, constant = (np.bincount(group, each, last - first).astype(float) for each in (row_count, row_constant))
        spans = np.ascontiguousarray(own.spans[first:last])
        return ranges, (first, own.pairs, count, constant, at_product, products, spans)

    # -- pieces -------------------------------------------------------------------------------------------------------

    @property
    def _proper(self) -> Array:
        return np.ascontiguousarray(self.marginal.proper)

    def _arguments(self, theta: Array) -> tuple[Array, Array, Array]:
        lams, inv_vars, scales = self.marginal.arguments(theta)
        hyper, at = self.model.hyperparameters, self.structure.lam_at
        if tuple(at) == tuple(hyper.lam_at):
            return lams, inv_vars, scales
        moved = np.empty_like(lams)
        for width, there, here in zip(hyper.widths, hyper.lam_at, at, strict=True):
            moved[:, here : here + width * width] = lams[:, there : there + width * width]
        return moved, inv_vars, scales

    def _row_terms(self, sigma: float | None) -> tuple[Array, Array]:
        """Information of the rows times sigma^2 (n,), and what their log densities hold that no node changes (n,)."""
        design = self.model.design
        weight = row_terms(self.model, sigma)[0]
        count = np.ones(design.n_rows) if design.weights is None else np.asarray(design.weights, dtype=float)
        constant = -0.5 * count * LOG_2PI
        if design.se is not None:
            constant -= 0.5 * count * np.log(design.se**2 + (0.0 if sigma is None else sigma**2))
        elif design.precision is not None:
            constant += 0.5 * count * np.log(design.precision)
        return np.ascontiguousarray(weight, dtype=float), constant

    def _cross_products(self, weight: Array) -> CrossProducts:
        return self.blocks.cross_products(working_response(self.model), weight)

    def _known(self, nodes: Nodes, lams: Array, inv_vars: Array, scales: Array) -> tuple[Array, Array] | None:
        """Moments of the coefficients at the nodes where nothing else is shared between groups: once for all slices."""
        if not self._alone or self._cross is None:
            return None
        if self._last is not None and self._last[0] is nodes:
            return self._last[1]
        found = _coefficient_moments(LeafRoot(self._cross, self._proper, self.threads), lams, inv_vars, scales)
        self._last = nodes, found
        return found

    def _without_groups(
        self, nodes: Nodes, units: slice, lams: Array, inv_vars: Array, scales: Array, logs: Array, left: Array,
        inside: Array,
    ) -> None:  # fmt: skip
        """Rows of a model without groups: the same formula, in numpy."""
        own, size = self._units, len(lams)
        x, y, order = own.dense[units], own.y[units], own.order[units]
        step = 1 if self._cross is None else max(1, NUMBERS // max(len(y) * (x.shape[1] + 4), 1))
        for part in (slice(k, min(k + step, size)) for k in range(0, size, step)):
            weight, constant, cross = self._weight, self._constant, self._cross
            if cross is None:
                sigma_at = self.model.hyperparameters.sigma_at
                weight, constant = self._row_terms(float(np.exp(nodes.theta[part.start, sigma_at])))
                cross = self._cross_products(weight)
            mean, cov = _coefficient_moments(LeafRoot(cross, self._proper), lams[part], inv_vars[part], scales[part])
            information = weight[order][:, None] * inv_vars[part]
            h = np.einsum("kij,ij->ik", x @ cov, x) * information
            square = (y[:, None] - x @ mean.T) ** 2 * information
            base = constant[order][:, None] - self._count[order][:, None] * logs[part]
            rest = 1.0 - h
            with np.errstate(divide="ignore", invalid="ignore"):
                value = base + 0.5 * np.log(rest) - 0.5 * square / rest
            left[:, part] = np.where(rest > leftout.SINGULAR, value, -np.inf)
            inside[:, part] = base - 0.5 * np.log1p(h) - 0.5 * square / (1.0 + h)


def _runs(places: Ints) -> list[slice]:
    """Slices that hold these sorted places; what lies between is taken along where the gaps are many."""
    cuts = np.flatnonzero(np.diff(places) > 1)
    if cuts.size > MOST_RUNS:
        return [slice(int(places[0]), int(places[-1]) + 1)]
    starts, stops = np.append(places[0], places[cuts + 1]), np.append(places[cuts], places[-1]) + 1
    return [slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]


def _coefficient_moments(engine: LeafRoot, lams: Array, inv_vars: Array, scales: Array) -> tuple[Array, Array]:
    """Means (K, p) and covariances (K, p, p) of the coefficients."""
    found = engine.evaluate(lams, inv_vars, scales)
    p = scales.shape[1]
    if not p:
        return np.empty((len(lams), 0)), np.empty((len(lams), 0, 0))
    half = np.linalg.solve(found.low, np.eye(p)[None] * scales[:, None, :])
    return np.asarray(scales * found.mean), np.asarray(np.swapaxes(half, 1, 2) @ half)


def _over_parts(run: Callable[[slice], None], count: int, threads: int) -> None:
    edges = np.linspace(0, count, min(threads, count) + 1).astype(int)
    parts = [slice(int(a), int(b)) for a, b in pairwise(edges) if b > a]
    if len(parts) <= 1:
        for part in parts:
            run(part)
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(run, parts))
