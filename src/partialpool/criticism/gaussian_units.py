"""How the rows of a Gaussian model are laid out for `algebra.leftout`: sorted by unit, with what each unit meets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import blocks
from partialpool.algebra.structure import Elimination, Structure
from partialpool.design.crossprod import RowBlocks, build_row_blocks, parents_if_nested
from partialpool.design.predictor import factor_columns
from partialpool.inference.gaussian import working_response
from partialpool.model import Model

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SortedRows:
    """The rows of all units, sorted by unit, as `algebra.leftout` reads them.

    order : (n,) the row of the design in each place. pointer : (units or leaf groups + 1,). own, dense, sparse, entry,
    y : as there; met : by unit how many of the root's effects it meets. spans : of groups.
    """

    order: Ints
    pointer: Ints
    own: Array
    dense: Array
    sparse: Array
    entry: Ints
    y: Array
    met: Ints
    spans: Ints
    pairs: Ints


def elimination_of(model: Model, factor: int) -> Elimination | None:
    """An elimination whose chain holds a factor, or None where the model's own does.

    The chain is one of factors that nest in it, itself, and factors in which it nests.
    """
    if factor in model.row_blocks.structure.elimination.chain:
        return None
    codes = [np.asarray(own.codes, dtype=np.int64) for own in model.design.factors]
    sizes = [len(own.labels) for own in model.design.factors]

    def nested(inner: int, outer: int) -> bool:
        return sizes[outer] <= sizes[inner] and parents_if_nested(codes[inner], sizes[inner], codes[outer]) is not None

    others = sorted((f for f in range(len(codes)) if f != factor), key=lambda f: (-sizes[f], f))
    chain: list[int] = []
    for other in others:
        if nested(other, factor) and (not chain or nested(chain[-1], other)):
            chain.append(other)
    chain.append(factor)
    for other in others:
        if other not in chain and nested(chain[-1], other):
            chain.append(other)
    return Elimination(tuple(chain), tuple(f for f in range(len(codes)) if f not in chain))


def blocks_with(model: Model, elimination: Elimination) -> RowBlocks:
    """The blocks of a model's rows under another elimination than its own."""
    design = model.design
    return build_row_blocks(
        design.V, np.asarray(design.x_columns, dtype=np.int64), model.row_blocks.centre,
        [factor.codes for factor in design.factors], [len(factor.labels) for factor in design.factors],
        factor_columns(design), elimination,
    )  # fmt: skip


def lay_out(model: Model, structure: Structure, level: int) -> SortedRows:
    """The rows sorted by the groups of the leaf, and what those of a chain level meet."""
    design, columns = model.design, factor_columns(model.design)
    chain, y = structure.elimination.chain, working_response(model)
    x = design.V[:, design.x_columns] - model.row_blocks.centre
    if not chain:
        n = design.n_rows
        none, nothing = np.empty((n, 0)), np.zeros(0, np.int64)
        spans = np.zeros((0, 1, 2), np.int64)
        return SortedRows(
            np.arange(n), np.arange(n + 1), none, x, none, np.empty((n, 0), np.int64), y, nothing, spans, nothing
        )
    internal = [structure.rank[f][np.asarray(factor.codes)] for f, factor in enumerate(design.factors)]
    order = np.argsort(internal[chain[0]], kind="stable")
    own = internal[chain[level]][order]
    pointer = np.searchsorted(own, np.arange(structure.sizes[chain[level]] + 1)).astype(np.int64)
    dense = np.concatenate([*(design.V[:, columns[f]] for f in chain[level + 1 :]), x], axis=1)
    sparse, entry, met = _met(model, structure, level, internal, columns)
    return SortedRows(
        order=order,
        pointer=pointer,
        own=np.ascontiguousarray(design.V[order][:, columns[chain[0]]]),
        dense=np.ascontiguousarray(dense[order]),
        sparse=np.ascontiguousarray(sparse[order]),
        entry=np.ascontiguousarray(entry[order]),
        y=np.array(y[order], dtype=float),
        met=met,
        spans=_spans(structure, level),
        pairs=_pairs(structure, level),
    )


def _met(
    model: Model, structure: Structure, level: int, internal: list[Ints], columns: list[Ints]
) -> tuple[Array, Ints, Ints]:
    """Values and entries (n, s) of the root's columns by row, and how many entries each group of the level meets."""
    design, row = model.design, structure.levels[level]
    groups = int(row[blocks.GROUPS])
    ptr = structure.ptr[int(row[blocks.PTR_AT]) : int(row[blocks.PTR_AT]) + groups + 1]
    met = np.diff(ptr).astype(np.int64)
    if not structure.elimination.root:
        return np.empty((design.n_rows, 0)), np.empty((design.n_rows, 0), np.int64), met
    at = int(row[blocks.IDX_AT])
    keys = np.repeat(np.arange(groups), met) * structure.n_root + structure.idx[at : at + int(ptr[-1])]
    code = internal[structure.elimination.chain[level]]
    values, entries = [], []
    for f, start in zip(structure.elimination.root, structure.root_blocks[:, blocks.ROOT_START], strict=True):
        width = structure.widths[f]
        place = np.searchsorted(keys, code * structure.n_root + start + internal[f] * width) - ptr[code]
        values.append(design.V[:, columns[f]])
        entries.append(place[:, None] + np.arange(width))
    return np.concatenate(values, axis=1), np.concatenate(entries, axis=1).astype(np.int64), met


def _spans(structure: Structure, level: int) -> Ints:
    """(groups, level + 1, 2): which groups of each level lie in each group of `level`."""
    groups = int(structure.levels[level, blocks.GROUPS])
    out = np.zeros((groups, level + 1, 2), dtype=np.int64)
    out[:, level, 0] = np.arange(groups)
    out[:, level, 1] = np.arange(1, groups + 1)
    for k in range(level - 1, -1, -1):
        at, own = int(structure.levels[k, blocks.UP_AT]), int(structure.levels[k, blocks.GROUPS])
        parent = structure.parent[at : at + own]
        out[:, k] = np.searchsorted(parent, out[:, k + 1])
    return out


def _pairs(structure: Structure, level: int) -> Ints:
    """Where the pairs of each group of a level begin in `Structure.pair_at`; empty where the root is dense."""
    if not structure.pair_at.size:
        return np.zeros(0, dtype=np.int64)
    start = 0
    for k in range(level + 1):
        at, groups = int(structure.levels[k, blocks.PTR_AT]), int(structure.levels[k, blocks.GROUPS])
        met = np.diff(structure.ptr[at : at + groups + 1])
        own = met * (met + 1) // 2
        if k == level:
            break
        start += int(own.sum())
    return np.asarray(start + np.concatenate([[0], np.cumsum(own)[:-1]]), dtype=np.int64)
