"""The rows of a model in the order of the leaf's groups, as the kernels of `algebra.leaf` read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design, GroupDesign
from partialpool.design.latent import LatentLayout

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Short = NDArray[np.int32]

#: Rows of one block where there is no leaf.
BLOCK = 256


@dataclass(frozen=True, eq=False)
class LeafRows:
    """Rows sorted by the groups of the leaf; every array is that of `algebra.leaf`.

    Attributes
    ----------
    order : (n,) the row of the design that stands in each place.
    y, trials, weight, offset : (n,)
    x : (n, S) values of the root's columns; at : (n, S) which entry of the root each multiplies; x_part : (S,) in which
        linear predictor. z, z_part : (n, q), (q,) the same for the leaf's own effects. pointer : (G + 1,).
    n_root : coefficients and effects of the root.
    """

    order: Ints
    y: Array
    trials: Array
    weight: Array
    offset: Array
    x: Array
    at: Short
    x_part: Ints
    z: Array
    z_part: Ints
    pointer: Ints
    n_root: int

    @property
    def n_groups(self) -> int:
        """Groups of the leaf (blocks of rows where there is no leaf)."""
        return int(self.pointer.size - 1)

    @cached_property
    def touched(self) -> tuple[Ints, Short, Short]:
        """By group the sorted entries of the root that its rows meet: pointer, entries, and (n, S) their places."""
        n, slots = self.at.shape
        group = np.repeat(np.arange(self.n_groups), np.diff(self.pointer))
        key = (group[:, None] * self.n_root + self.at).ravel()
        unique, inverse = np.unique(key, return_inverse=True)
        pointer = np.searchsorted(unique, np.arange(self.n_groups + 1) * self.n_root).astype(np.int64)
        local = np.asarray(inverse).reshape(n, slots) - pointer[group][:, None]
        return pointer, (unique % max(self.n_root, 1)).astype(np.int32), np.ascontiguousarray(local, dtype=np.int32)

    def predictors(self, root: Array) -> Array:
        """``offset + x root`` of the mean's linear predictor at each place, (n,): the leaf's effects left out."""
        return np.asarray(self.offset + (self.x * root[self.at])[:, self.x_part == 0].sum(axis=1))


def leaf_rows(design: Design, layout: LatentLayout, centre: Array, *, leaf: bool = True) -> LeafRows:
    """Sort the rows of a design by its leaf.

    Parameters
    ----------
    design : Design
    layout : LatentLayout
    centre : (p,) what is taken from each column of the common part.
    leaf : bool
        False leaves every factor in the root, in the order of `layout`, behind the coefficients.
    """
    n, p = design.y.size, design.x_columns.size
    own = layout.leaf if leaf else None
    if own is None:
        order = np.arange(n)
        pointer = np.append(np.arange(0, n, BLOCK), n).astype(np.int64)
    else:
        codes = design.factors[own].codes
        order = np.argsort(codes, kind="stable")
        pointer = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=layout.sizes[own]))]).astype(np.int64)
    values = [design.V[order][:, design.x_columns] - centre]
    places = [np.broadcast_to(np.arange(p, dtype=np.int32), (n, p))]
    parts = [np.asarray(design.x_predictor, dtype=np.int64)]
    before = 0 if own is None else layout.sizes[own] * layout.widths[own]
    for f, factor in enumerate(design.factors):
        if f == own:
            continue
        groups = [group for group in design.groups if group.factor == f]
        columns = np.concatenate([group.columns for group in groups]).astype(np.int64)
        width = columns.size
        first = p + layout.effect_at[f] - before
        values.append(design.V[order][:, columns])
        place = first + factor.codes[order].astype(np.int64)[:, None] * width + np.arange(width)
        places.append(place.astype(np.int32))
        parts.append(_parts(groups))
    leaf_groups = [group for group in design.groups if group.factor == own] if own is not None else []
    none = np.empty(0, dtype=np.int64)
    z_columns = np.concatenate([none, *(group.columns for group in leaf_groups)]).astype(np.int64)
    ones = np.ones(n)
    return LeafRows(
        order=order,
        y=_taken(design.y, order),
        trials=ones if design.trials is None else _taken(design.trials, order),
        weight=ones if design.weights is None else _taken(design.weights, order),
        offset=np.zeros(n) if design.offset is None else _taken(design.offset, order),
        x=np.ascontiguousarray(np.concatenate(values, axis=1)),
        at=np.ascontiguousarray(np.concatenate(places, axis=1)),
        x_part=np.concatenate(parts),
        z=np.ascontiguousarray(design.V[order][:, z_columns]),
        z_part=_parts(leaf_groups),
        pointer=pointer,
        n_root=p + layout.n_effects - before,
    )  # fmt: skip


def _parts(groups: list[GroupDesign]) -> Ints:
    none = [np.empty(0, dtype=np.int64)]
    return np.concatenate([*none, *(np.full(len(group.names), group.predictor, dtype=np.int64) for group in groups)])


def _taken(values: Array, order: Ints) -> Array:
    """A writable copy: kernels take no read-only arrays."""
    return np.array(values[order], dtype=float)
