"""Groups of a factor of the root left out where the response is not Gaussian; see `algebra.leaflogo`.

With a group go its effects and those of the groups that lie inside it; also for groups of the leaf, where another
factor's groups lie inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.leaflogo import unit_kernel
from partialpool.algebra.quadrature import gauss_hermite
from partialpool.criticism.nodes import Nodes
from partialpool.criticism.quadrature_leaf import (
    PIECES,
    WORTH_CUTTING,
    Leaf,
    Places,
    Rule,
    affordable_nodes,
    largest_change,
    over_threads,
)
from partialpool.criticism.quadrature_left_out import inside_of
from partialpool.inference.gap import random_nodes
from partialpool.inference.sobol import MAX_DIMENSIONS

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Nodes a dimension over a unit's own effects, by their number, and those of the rule it is compared with.
OUTER, FINER = {1: 11, 2: 7, 3: 5, 4: 4}, {1: 21, 2: 13, 3: 9, 4: 6}
#: Quasi-random nodes (and as many mirror images) where a unit has more effects than that.
OUTER_RANDOM, FINER_RANDOM = 128, 1024
#: Units at which rules are compared.
SAMPLE = 40


def outer_rule(dimension: int, *, finer: bool = False) -> tuple[Array, Array]:
    """Nodes (T, D) over a unit's effects, and their log weights; Laplace's where quasi-random ones do not exist."""
    if dimension <= 4:
        nodes, shifted = gauss_hermite((FINER if finer else OUTER)[dimension], dimension)
        kept = np.isfinite(shifted)  # each is a pass over the rows: none for the lanes of vector instructions
        return np.ascontiguousarray(nodes[kept]), np.ascontiguousarray(shifted[kept])
    if dimension > MAX_DIMENSIONS:
        return gauss_hermite(1, dimension)
    nodes, shifted = random_nodes(FINER_RANDOM if finer else OUTER_RANDOM, dimension)
    return np.concatenate([nodes, -nodes]), np.concatenate([shifted, shifted]) - np.log(2.0)


@dataclass(frozen=True, eq=False)
class Units:
    """The rows and effects that leave with each group, as the kernel reads them.

    Attributes
    ----------
    pointer, rows : the rows of each unit, in the leaf's order, growing.
    effects : (U,) how many effects leave. places : (U, most of them) which of the root; -1 beyond.
    block_pointer, block_kind, block_at : the groups that leave with a unit: their factor among `kinds`, and where their
        effects begin among the unit's.
    local : (n, S) by row and column of the root, which of its unit's effects. inside : (S,) whether it is one.
    kinds : the factors whose effects leave.
    """

    pointer: Ints
    rows: Ints
    effects: Ints
    places: Ints
    block_pointer: Ints
    block_kind: Ints
    block_at: Ints
    local: Ints
    inside: Ints
    kinds: tuple[int, ...]


class QuadratureUnits:
    """`Conditional` of the groups of a factor whose effects, or those of factors inside it, are in the root.

    Parameters
    ----------
    fit : Posterior
        With its rows, of a response that is not Gaussian (or Gaussian with a formula for sigma).
    factor : int
        Its position among the factors of the design.
    threads : int, optional
        Those of the fit by default.

    Attributes
    ----------
    error : what finer rules change in a group's log density, at most.
    counts : (2,) how often a group of the leaf had shared nodes, and a rule made anew.

    Examples
    --------
    >>> import numpy as np
    >>> import partialpool as pp
    >>> from partialpool.criticism.nodes import nodes_of_fit
    >>> rng = np.random.default_rng(1)
    >>> data = {"y": rng.poisson(2.0, 60), "site": np.arange(60) // 15, "plot": np.arange(60) // 3}
    >>> fit = pp.fit("y ~ 1 + (1 | site) + (1 | plot)", data, family="poisson", seed=1)
    >>> sites = QuadratureUnits(fit, 0)
    >>> sites.log_densities(nodes_of_fit(fit, 100), slice(0, 4))[0].shape
    (100, 4)
    """

    def __init__(self, fit: Posterior, factor: int, threads: int | None = None) -> None:
        self.leaf = Leaf(fit, fit.result.settings.threads if threads is None else threads)
        self.factor = factor
        self.counts = np.zeros(2, dtype=np.int64)
        self.parts = self._units()
        rows = self.leaf.rows
        self.whole = self._whole()
        by_unit = np.repeat(np.arange(self.units), np.diff(self.parts.pointer))
        self.constant = np.bincount(by_unit, self.leaf.constant[self.parts.rows], minlength=self.units)
        self.kernel = unit_kernel(*self.leaf.family)
        self.fine = False
        places = self.leaf.places(self.leaf.some_nodes())
        sample = np.unique(np.linspace(0, self.units - 1, min(SAMPLE, self.units)).astype(np.int64))
        self.error = self.leaf.settle(lambda rule: self._densities(places, sample, rule))
        coarse, fine = (self._densities(places, sample, self.leaf.rule, finer) for finer in (False, True))
        change = largest_change(coarse, fine)
        self.fine = change > 2 * self.error + 0.003 and rows.y.size < 20_000
        self.error = max(self.error, change)
        self.counts[:] = 0

    @property
    def units(self) -> int:
        """How many groups there are."""
        return len(self.leaf.model.design.factors[self.factor].labels)

    @property
    def most_nodes(self) -> int:
        """How many nodes are affordable."""
        most = int(self.parts.effects.max())
        each = len(outer_rule(most, finer=self.fine)[1]) + 12
        return affordable_nodes(self.leaf.rows.y.size * (len(self.leaf.rule.shifted) + 12) * each)

    def rows_of(self, unit: int) -> Ints:
        """The rows of a group."""
        own = self.parts.rows[self.parts.pointer[unit] : self.parts.pointer[unit + 1]]
        return np.sort(self.leaf.rows.order[own])

    def log_densities(self, nodes: Nodes, units: slice | Ints) -> tuple[Array, Array | None]:
        """See `criticism.left_out.Conditional`; a copy's density is known where units share no group of the leaf."""
        wanted = np.arange(units.start, units.stop) if isinstance(units, slice) else np.asarray(units)
        left = self._densities(self.leaf.places(nodes), wanted, self.leaf.rule).T
        return left, left if self.whole else None

    # -- what leaves with a unit --------------------------------------------------------------------------------------

    def _whole(self) -> bool:
        """Whether every group of the leaf lies inside one unit."""
        leaf, design = self.leaf, self.leaf.model.design
        assert leaf.leaf is not None
        own = design.factors[leaf.leaf].codes
        first = np.empty(len(design.factors[leaf.leaf].labels), dtype=np.int64)
        codes = design.factors[self.factor].codes
        first[own] = codes
        return bool((first[own] == codes).all())

    def _units(self) -> Units:
        model, rows = self.leaf.model, self.leaf.rows
        design, layout = model.design, model.latent
        own = () if self.factor == layout.leaf else (self.factor,)
        kinds = (*own, *inside_of(model, self.factor))
        codes = design.factors[self.factor].codes[rows.order].astype(np.int64)
        order = np.argsort(codes, kind="stable")
        pointer = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=self.units))]).astype(np.int64)
        local = np.zeros(rows.at.shape, dtype=np.int64)
        inside = np.zeros(rows.at.shape[1], dtype=np.int64)
        effects = np.zeros(self.units, dtype=np.int64)
        blocks: list[tuple[Ints, int, Ints]] = []  # unit, factor, place of its first effect in the root
        column = len(model.coefficients.names)
        first_column = {}
        for f in range(len(design.factors)):
            if f != layout.leaf:
                first_column[f] = column
                column += layout.widths[f]
        for kind, f in enumerate(kinds):
            width, of_row = layout.widths[f], design.factors[f].codes[rows.order].astype(np.int64)
            unit = np.empty(layout.sizes[f], dtype=np.int64)
            unit[of_row] = codes
            rank, count = _ranks(unit, self.units)
            begin = effects[unit] + rank * width
            for j in range(width):
                local[:, first_column[f] + j] = begin[of_row] + j
            inside[first_column[f] : first_column[f] + width] = 1
            place = len(model.coefficients.names) + layout.root_at(f) + np.arange(layout.sizes[f]) * width
            blocks.append((np.column_stack([unit, begin, place]), kind, np.full(len(unit), width)))
            effects = effects + count * width
        return Units(pointer, order.astype(np.int64), effects, *_blocks(blocks, effects), local, inside, kinds)

    # -- densities ----------------------------------------------------------------------------------------------------

    def _densities(self, places: Places, wanted: Ints, rule: Rule, finer: bool | None = None) -> Array:
        """(U, K)."""
        fine = self.fine if finer is None else finer
        out = np.empty((len(wanted), len(places.root)))
        sizes = self.parts.effects[wanted]
        for size in np.unique(sizes).tolist():
            which = np.flatnonzero(sizes == size)
            out[which] = self._of_size(places, wanted[which], rule, outer_rule(size, finer=fine))
        out += self.constant[wanted][:, None]
        out[np.isnan(out)] = -np.inf
        return out

    def _of_size(self, places: Places, wanted: Ints, rule: Rule, outer: tuple[Array, Array]) -> Array:
        leaf, parts, count = self.leaf, self.parts, len(places.root)
        size = int(parts.effects[wanted[0]])
        lams, widths = self._factors(places.theta)
        of_units = (
            parts.pointer, parts.rows, np.ascontiguousarray(parts.places[:, :size]), parts.block_pointer,
            parts.block_kind, parts.block_at, parts.local, parts.inside,
        )  # fmt: skip
        out = np.empty((count, len(wanted)))

        def run(part: slice) -> None:
            own, here = places.part(part), np.empty((len(wanted), part.stop - part.start))
            counts = np.zeros(2, dtype=np.int64)
            self.kernel(
                wanted, *of_units, lams[part], widths, own.root, own.lam, own.constants, *leaf.row_arguments,
                *leaf.rule_arguments(rule), rule.far, *outer, here, counts,
            )  # fmt: skip
            out[part] = here.T
            self.counts[:] += counts

        rows = np.diff(parts.pointer)[wanted].sum()
        cut = leaf.threads > 1 and rows * count * len(rule.shifted) * len(outer[1]) > WORTH_CUTTING
        over_threads(run, count, PIECES * leaf.threads if cut else 1, leaf.threads)
        return out.T

    def _factors(self, theta: Array) -> tuple[Array, Ints]:
        """Lambda (K, kinds, w, w) of the factors whose effects leave, and their widths."""
        hyper, layout = self.leaf.model.hyperparameters, self.leaf.model.latent
        widths = np.array([layout.widths[f] for f in self.parts.kinds], dtype=np.int64)
        lams = np.zeros((len(theta), len(widths), int(widths.max()), int(widths.max())))
        flat = hyper.factors(theta)
        for kind, f in enumerate(self.parts.kinds):
            w, at = layout.widths[f], hyper.lam_at[f]
            lams[:, kind, :w, :w] = flat[:, at : at + w * w].reshape(-1, w, w)
        return lams, widths


def _ranks(unit: Ints, units: int) -> tuple[Ints, Ints]:
    """The number of each group among those of its unit, and how many each unit has."""
    count = np.bincount(unit, minlength=units)
    order = np.argsort(unit, kind="stable")
    first = np.concatenate([[0], np.cumsum(count)])[:-1]
    rank = np.empty(len(unit), dtype=np.int64)
    rank[order] = np.arange(len(unit)) - first[unit[order]]
    return rank, count.astype(np.int64)


def _blocks(blocks: Sequence[tuple[Ints, int, Ints]], effects: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """places, and the blocks by unit."""
    table = np.concatenate([np.column_stack([own, np.full(len(own), kind), width]) for own, kind, width in blocks])
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    places = np.full((len(effects), int(effects.max())), -1, dtype=np.int64)
    for j in range(int(table[:, 4].max())):
        own = table[table[:, 4] > j]
        places[own[:, 0], own[:, 1] + j] = own[:, 2] + j
    pointer = np.concatenate([[0], np.cumsum(np.bincount(table[:, 0], minlength=len(effects)))]).astype(np.int64)
    return places, pointer, np.ascontiguousarray(table[:, 3]), np.ascontiguousarray(table[:, 1])
