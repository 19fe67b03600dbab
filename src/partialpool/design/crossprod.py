r"""Sufficient statistics of a Gaussian response: the cross-products ``[Z X y]' D [Z X y]``, held as blocks.

The rows are read here, once per block; what comes out grows with groups, not with rows, and adds up over chunks of
rows. Which factor is eliminated first and what remains for the root is decided here too (`plan_elimination`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import blocks
from partialpool.algebra.sparse_root import MOST_PAIRS, SPARSE_FROM, SparseRoot, clique_pairs, n_pairs, sparse_root
from partialpool.algebra.structure import CrossProducts, Elimination, Structure
from partialpool.errors import ModelError

#: Widest dense root: its factor and inverse take 16 bytes times the square of it (3.6 GB).
WIDEST_ROOT = 15_000

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def parents_if_nested(inner: Ints, n_inner: int, outer: Ints) -> Ints | None:
    """The outer group of each inner group, or None where an inner group lies in more than one."""
    parents = np.full(n_inner, -1, dtype=np.int64)
    parents[inner] = outer
    return parents if np.array_equal(parents[inner], outer) else None


def plan_elimination(codes: Sequence[Ints], sizes: Sequence[int], widths: Sequence[int]) -> Elimination:
    """Choose leaf, chain and root from the nesting of the factors.

    Parameters
    ----------
    codes : sequence of int arrays (n,)
        Group of each row, a factor at a time.
    sizes : sequence of int
        Number of groups of each factor.
    widths : sequence of int
        Number of effects of a group of each factor.
    """
    order = sorted(range(len(codes)), key=lambda f: (-sizes[f] * widths[f], f))
    chain = order[:1]
    for factor in order[1:]:
        last = chain[-1]
        if sizes[factor] <= sizes[last] and parents_if_nested(codes[last], sizes[last], codes[factor]) is not None:
            chain.append(factor)
    return Elimination(tuple(chain), tuple(f for f in sorted(order) if f not in chain))


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over the rows: products of the columns `left` and `right`, added at ``start + codes * stride``."""

    codes: Ints
    left: Ints
    right: Ints
    into: str
    start: int
    size: int
    stride: int


@dataclass(frozen=True, eq=False)
class RowBlocks:
    """Where each row's cross-products go: what is needed to compute them again with other weights."""

    structure: Structure
    columns: Array
    x_columns: Ints
    centre: Array
    passes: tuple[Pass, ...]
    root_keep: NDArray[np.bool_]
    sizes: dict[str, int] = field(default_factory=dict)

    def cross_products(self, y: Array, weight: Array) -> CrossProducts:
        """Sum over the rows: ``y`` (n,) the working response, ``weight`` (n,) the weights D."""
        out = {name: np.zeros(size) for name, size in self.sizes.items()}
        y, weight = (
            np.require(y, float, ["C", "W"]),
            np.require(weight, float, ["C", "W"]),
        )  # kernels take no read-only arrays
        for row_pass in self.passes:
            left, right = row_pass.left, row_pass.right
            left_centre = np.append(self.centre, 0.0) if row_pass.into == "gxx" else np.zeros(left.size)
            right_centre = np.zeros(right.size)
            if row_pass.into in ("b", "gx", "gxx"):  # these end with X and y
                right_centre[right.size - self.centre.size - 1 : right.size - 1] = self.centre
            target = out[row_pass.into][row_pass.start : row_pass.start + row_pass.size]
            blocks.add_cross_products(
                row_pass.codes, self.columns, y, left, left_centre, right, right_centre, weight, row_pass.stride, target
            )
        out["root_v"] = out["root_v"][self.root_keep]
        return CrossProducts(self.structure, **out)


def _renumber(codes: Sequence[Ints], sizes: Sequence[int], elimination: Elimination) -> tuple[list[Ints], list[Ints]]:
    """Internal group numbers: children of one parent together. Returns rank by factor and parents by chain level."""
    rank = [np.arange(size, dtype=np.int64) for size in sizes]
    chain = elimination.chain
    parents: list[Ints] = []
    for lower, upper in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
        own = parents_if_nested(codes[lower], sizes[lower], codes[upper])
        assert own is not None
        own = rank[upper][own]
        order = np.argsort(own, kind="stable")
        rank[lower] = np.empty(sizes[lower], dtype=np.int64)
        rank[lower][order] = np.arange(sizes[lower])
        parents.insert(0, own[order])
    return rank, parents


def build_row_blocks(
    columns: Array,
    x_columns: Ints,
    centre: Array,
    codes: Sequence[NDArray[np.integer]],
    sizes: Sequence[int],
    z_columns: Sequence[Ints],
    elimination: Elimination | None = None,
) -> RowBlocks:
    """Plan the elimination (unless one is given) and where every row's products go.

    Parameters
    ----------
    columns : ndarray of shape (n, m), C-contiguous
        The design's distinct columns.
    x_columns : int array of shape (p,)
        Which of them are the common part; `centre` (p,) is taken from them.
    codes, sizes, z_columns
        By factor: the group of each row, the number of groups, and the columns whose effects vary by group.
    elimination : Elimination, optional
        Instead of the cheapest one: factors of its chain nest in each other, finest first.
    """
    wide = [np.require(code, np.int64, ["C", "W"]) for code in codes]
    columns = np.require(columns, float, ["C", "W"])
    if elimination is None:
        elimination = plan_elimination(wide, sizes, [int(z.size) for z in z_columns])
    return _Builder(
        columns, np.asarray(x_columns, dtype=np.int64), centre, wide, list(sizes), z_columns, elimination
    ).build()


class _Builder:
    """Lays the blocks out; used once by `build_row_blocks`."""

    def __init__(
        self,
        columns: Array,
        x_columns: Ints,
        centre: Array,
        codes: Sequence[Ints],
        sizes: list[int],
        z_columns: Sequence[Ints],
        elimination: Elimination,
    ) -> None:
        self.columns, self.x_columns, self.centre = columns, x_columns, np.asarray(centre, dtype=float)
        self.z = [np.asarray(z, dtype=np.int64) for z in z_columns]
        self.sizes, self.elimination = sizes, elimination
        self.widths = [int(z.size) for z in self.z]
        self.rank, self.parents = _renumber(codes, sizes, elimination)
        in_place = len(elimination.chain) <= 1
        self.codes = codes if in_place else [self.rank[f][code] for f, code in enumerate(codes)]
        self.n = columns.shape[0]
        self.p = int(self.x_columns.size)
        self.passes: list[Pass] = []
        self.x_and_y = np.append(self.x_columns, columns.shape[1])

    def build(self) -> RowBlocks:
        self._lay_out_root_columns()
        levels = self._chain_blocks()
        root_at, n_root_v = self._root_entries()
        zeros = np.zeros(self.n, dtype=np.int64)
        p1 = self.p + 1
        self.passes.append(Pass(zeros, self.x_and_y, self.x_and_y, "gxx", 0, p1 * p1, 0))
        root_keep = root_at >= 0
        structure = self._structure(levels, root_at[root_keep])
        sizes = {
            "d": self.d_size, "b": self.b_size, "s": self.s_size,
            "root_v": n_root_v, "gx": self.n_root * p1, "gxx": p1 * p1,
        }  # fmt: skip
        return RowBlocks(structure, self.columns, self.x_columns, self.centre, tuple(self.passes), root_keep, sizes)

    def _lay_out_root_columns(self) -> None:
        self.root_start: dict[int, int] = {}
        at = 0
        for f in self.elimination.root:
            self.root_start[f] = at
            at += self.sizes[f] * self.widths[f]
        self.n_root = at
        self.lam_at, self.effect_at = [0] * len(self.sizes), [0] * len(self.sizes)
        lam, effect = 0, 0
        for f in (*self.elimination.chain, *self.elimination.root):
            self.lam_at[f], self.effect_at[f] = lam, effect
            lam += self.widths[f] ** 2
            effect += self.sizes[f] * self.widths[f]
        self.n_lam, self.n_effects = lam, effect

    def _chain_blocks(self) -> Ints:
        """Tables of the chain's levels; adds their passes."""
        chain = self.elimination.chain
        levels = np.zeros((len(chain), 11), dtype=np.int64)
        self.ptr_parts: list[Ints] = []
        self.idx_parts: list[Ints] = []
        self.key_parts: list[Ints] = []
        self.d_size = self.b_size = self.s_size = 0
        ptr_at = idx_at = up_at = 0
        for k, f in enumerate(chain):
            q, groups = self.widths[f], self.sizes[f]
            right = np.concatenate([*(self.z[a] for a in chain[k + 1 :]), self.x_and_y])
            ptr, idx = self._sparse_part(f)
            levels[k] = (
                q, groups, right.size, self.d_size, self.b_size, self.s_size,
                ptr_at, idx_at, up_at, self.lam_at[f], self.effect_at[f],
            )  # fmt: skip
            code = self.codes[f]
            self.passes.append(Pass(code, self.z[f], self.z[f], "d", self.d_size, groups * q * q, q * q))
            self.passes.append(Pass(code, self.z[f], right, "b", self.b_size, groups * q * right.size, q * right.size))
            self.d_size += groups * q * q
            self.b_size += groups * q * right.size
            self.s_size += idx.size * q
            ptr_at += ptr.size
            idx_at += idx.size
            up_at += groups if k < len(chain) - 1 else 0
            self.ptr_parts.append(ptr)
            self.idx_parts.append(idx)
        return levels

    def _sparse_part(self, f: int) -> tuple[Ints, Ints]:
        """The root's columns that each group of a chain factor meets: pointers and sorted column numbers."""
        groups, q = self.sizes[f], self.widths[f]
        if not self.elimination.root:
            self.key_parts.append(np.empty(0, dtype=np.int64))
            return np.zeros(groups + 1, dtype=np.int64), np.empty(0, dtype=np.int64)
        all_keys = []
        by_factor = []
        for r in self.elimination.root:
            key = self.codes[f] * self.n_root + self.root_start[r] + self.codes[r] * self.widths[r]
            unique, inverse = np.unique(key, return_inverse=True)
            by_factor.append((r, unique, np.asarray(inverse).ravel()))
            all_keys.append((unique[:, None] + np.arange(self.widths[r])).ravel())
        keys = np.asarray(np.sort(np.concatenate(all_keys)), dtype=np.int64)
        ptr = np.searchsorted(keys, np.arange(groups + 1) * self.n_root)
        for r, unique, inverse in by_factor:
            # entries of one pair lie together: S[(entry + c) q + i] is block (c, i), rows z of the root's factor
            entry = np.atleast_1d(np.searchsorted(keys, unique))
            code = np.ascontiguousarray(entry[inverse], dtype=np.int64)
            self.passes.append(Pass(code, self.z[r], self.z[f], "s", self.s_size, keys.size * q, q))
        self.key_parts.append(keys)
        return ptr.astype(np.int64), keys % self.n_root

    def _root_entries(self) -> tuple[Ints, int]:
        """Positions (in a dense lower triangle) of the root's own cross-products; adds their passes."""
        positions: list[Ints] = []
        at = 0
        root = self.elimination.root
        p1 = self.p + 1
        for r in root:
            q = self.widths[r]
            start = self.root_start[r]
            self.passes.append(
                Pass(self.codes[r], self.z[r], self.x_and_y, "gx", start * p1, self.sizes[r] * q * p1, q * p1)
            )
            for other in root:
                if self.root_start[other] > start:
                    continue
                w = self.widths[other]
                pair = self.codes[r] * self.sizes[other] + self.codes[other]
                unique, inverse = np.unique(pair, return_inverse=True)
                rows = start + (unique // self.sizes[other])[:, None, None] * q + np.arange(q)[None, :, None]
                cols = self.root_start[other] + (unique % self.sizes[other])[:, None, None] * w + np.arange(w)
                upper = np.broadcast_to(cols > rows, (unique.size, q, w))
                # the upper half of a diagonal block is the mirror image of its lower half: not kept
                position = np.where(upper, -1, rows * self.n_root + cols)
                positions.append(position.ravel())
                size = unique.size * q * w
                code = np.ascontiguousarray(inverse.ravel(), dtype=np.int64)
                self.passes.append(Pass(code, self.z[r], self.z[other], "root_v", at, size, q * w))
                at += size
        return (np.concatenate(positions) if positions else np.empty(0, dtype=np.int64)), at

    def _structure(self, levels: Ints, root_at: Ints) -> Structure:
        chain = self.elimination.chain
        up_parts = []
        for k in range(len(chain)):
            own = self.key_parts[k]
            if k == len(chain) - 1 or not own.size:
                up_parts.append(np.zeros(own.size, dtype=np.int64))
                continue
            key = self.parents[k][own // self.n_root] * self.n_root + own % self.n_root
            up_parts.append(np.searchsorted(self.key_parts[k + 1], key))
        root_blocks = np.array(
            [
                (self.root_start[f], self.sizes[f], self.widths[f], self.lam_at[f], self.effect_at[f])
                for f in self.elimination.root
            ],
            dtype=np.int64,
        ).reshape(-1, 5)
        none = np.empty(0, dtype=np.int64)
        sparse, pair_at = self._sparse_root(root_blocks, root_at)
        if sparse is not None:
            root_at = sparse.symbolic.positions(root_at // self.n_root, root_at % self.n_root)
        elif self.n_root > WIDEST_ROOT:
            raise ModelError(self._too_wide())
        return Structure(
            elimination=self.elimination,
            widths=tuple(self.widths),
            sizes=tuple(self.sizes),
            n_coefficients=self.p,
            levels=levels,
            parent=np.concatenate([*self.parents, none]),
            ptr=np.concatenate([*self.ptr_parts, none]),
            idx=np.concatenate([*self.idx_parts, none]),
            up=np.concatenate([*up_parts, none]).astype(np.int64),
            ranges=np.array([(0, self.sizes[f]) for f in chain], dtype=np.int64).reshape(-1, 2),
            root_blocks=root_blocks,
            root_at=root_at,
            n_root=self.n_root,
            n_effects=self.n_effects,
            n_lam=self.n_lam,
            lam_at=tuple(self.lam_at),
            rank=tuple(self.rank),
            effect_at=tuple(self.effect_at),
            pair_at=pair_at,
            sparse=sparse,
        )

    def _sparse_root(self, root_blocks: Ints, root_at: Ints) -> tuple[SparseRoot | None, Ints]:
        """A sparse root where that pays, and where each pair of a group's root columns lives in it."""
        none = np.empty(0, dtype=np.int64)
        if self.n_root < SPARSE_FROM or sum(n_pairs(ptr) for ptr in self.ptr_parts) > MOST_PAIRS:
            return None, none
        # the lists of the last level contain those of the levels below it
        last = clique_pairs(self.ptr_parts[-1], self.idx_parts[-1])
        sparse = sparse_root(self.n_root, last, (root_at // self.n_root, root_at % self.n_root), root_blocks)
        if sparse is None:
            return None, none
        places = [
            sparse.symbolic.positions(*clique_pairs(ptr, idx))
            for ptr, idx in zip(self.ptr_parts, self.idx_parts, strict=True)
        ]
        return sparse, np.concatenate(places)

    def _too_wide(self) -> str:
        wide = max(self.elimination.root, key=lambda f: self.sizes[f] * self.widths[f])
        return (
            f"The crossed grouping factors leave {self.n_root:,} effects that must be solved for together (the largest "
            f"factor has {self.sizes[wide]:,} groups), more than the {WIDEST_ROOT:,} that fit in memory. "
            "Leave out the smaller of the crossed factors, or fit a subset of its groups."
        )
