"""The blocks that every kernel reads: their pattern (`Structure`) and their values (`CrossProducts`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import blocks
from partialpool.algebra.sparse_root import SparseRoot

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Elimination:
    """The order in which grouping factors are integrated out.

    Attributes
    ----------
    chain : tuple of int
        Factors eliminated group by group: the leaf, then the factors in which its groups nest, coarser and coarser.
    root : tuple of int
        The other factors: their effects are factorised together.
    """

    chain: tuple[int, ...]
    root: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Structure:
    """The pattern of the blocks: everything about cross-products that does not depend on their values.

    The tables are those that the kernels of `algebra.blocks` read; group numbers are internal (a chain's groups are
    ordered so that the children of a group lie together), `rank` maps a factor's own group numbers to them.
    """

    elimination: Elimination
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    n_coefficients: int
    levels: Ints
    parent: Ints
    ptr: Ints
    idx: Ints
    up: Ints
    ranges: Ints
    root_blocks: Ints
    root_at: Ints
    n_root: int
    n_effects: int
    n_lam: int
    lam_at: tuple[int, ...]
    rank: tuple[Ints, ...]
    effect_at: tuple[int, ...]
    pair_at: Ints
    sparse: SparseRoot | None = None

    def effects_of(self, factor: int) -> Ints:
        """Positions of a factor's effects in the vector of all effects, (groups, width), in the factor's own order."""
        width = self.widths[factor]
        return self.effect_at[factor] + self.rank[factor][:, None] * width + np.arange(width)

    def root_effects(self) -> list[tuple[int, int]]:
        """Where the effects of each factor of the root stand in the vector of all effects: (start, number)."""
        rows = self.root_blocks
        return [(int(row[blocks.ROOT_U]), int(row[blocks.ROOT_GROUPS] * row[blocks.ROOT_Q])) for row in rows]

    @property
    def arrays(self) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """The arguments that lead every kernel's list."""
        return self.levels, self.parent, self.ptr, self.idx, self.up


@dataclass(frozen=True, eq=False)
class CrossProducts:
    """Cross-products of one model's rows, weighted, in the blocks of `structure`.

    d : own blocks of the chain's groups; b : their borders (ancestors, X, y); s : their sparse part with the root;
    root_v : entries of the root at ``structure.root_at``; gx : root effects by [X y]; gxx : [X y] by [X y].
    """

    structure: Structure
    d: Array
    b: Array
    s: Array
    root_v: Array
    gx: Array
    gxx: Array

    @property
    def values(self) -> tuple[Array, Array, Array]:
        return self.d, self.b, self.s

    def at_coefficients(self, beta: Array) -> CrossProducts:
        """The cross-products of ``y - X beta``, with no coefficients left."""
        structure, p = self.structure, self.structure.n_coefficients
        p1 = p + 1
        weights = np.append(-np.asarray(beta, dtype=float), 1.0)
        levels = structure.levels.copy()
        borders = []
        at = 0
        for k, row in enumerate(structure.levels):
            q, groups, width = int(row[blocks.Q]), int(row[blocks.GROUPS]), int(row[blocks.WIDTH])
            start = int(row[blocks.B_AT])
            border = self.b[start : start + q * groups * width].reshape(groups, q, width)
            reduced = np.concatenate(
                [border[:, :, : width - p1], border[:, :, width - p1 :] @ weights[:, None]], axis=2
            )
            borders.append(reduced.ravel())
            levels[k, blocks.WIDTH] = width - p
            levels[k, blocks.B_AT] = at
            at += reduced.size
        gxx = self.gxx.reshape(p1, p1)
        gxx = np.tril(gxx) + np.tril(gxx, -1).T
        return CrossProducts(
            replace(structure, n_coefficients=0, levels=levels),
            self.d,
            np.concatenate(borders) if borders else self.b,
            self.s,
            self.root_v,
            np.ascontiguousarray(self.gx.reshape(-1, p1) @ weights),
            np.array([weights @ gxx @ weights]),
        )
