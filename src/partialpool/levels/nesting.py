"""How the groups of one factor lie in those of another: maps, the order that they make, and what breaks it.

A factor f puts each row i into a group f(i). It is finer than g, f <= g, when g is a function of it:

    f <= g    if and only if there is a map m with g(i) = m(f(i)) in every row i,

so that g is a coarse-graining of f, and m its table. This is a partial order of the partitions of the rows: it is
reflexive, transitive (maps compose) and, between partitions, antisymmetric: f <= g <= f says that two factors are one
partition under two names.

Data have errors. With n_ab the rows of group a of f in group b of g, and n_a their sum over b, the *majority parent*
of a is the b with 2 n_ab > n_a, where there is one. How much nearer f is to a nesting than to nothing is told by
Goodman and Kruskal's lambda (1954, J. Am. Stat. Assoc. 49, 732-764), here with strict majorities, over the groups
of two rows or more (a group of one row lies in one parent whatever the data are):

    lambda = (sum_a max_b n_ab - max_b n_b) / (n - max_b n_b),

the share of the rows misplaced by "all rows are in the largest group of g" that knowing f puts right. It is 1 for a
nesting, near 0 for crossed factors, also where one group of g holds nearly all rows. From 0.75 on (`NEAR`) we call f
partly nested, and the rows outside their group's majority parent broken.

Ids that are re-used in every parent (classes 1, 2, 3 of each school) have the pattern of crossed factors, and no
computation tells the two apart. What such ids do show: the parents' sets of ids are ordered by inclusion ({1, 2} within
{1, 2, 3}; a Ferrers relation), and a combination has several rows (with one each there would be nothing to group).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: Goodman and Kruskal's lambda from which on two factors are nested but for broken rows.
NEAR = 0.75
#: How near to a chain of inclusions the sets of ids are from which on ids may be re-used ones.
CHAIN = 0.8
#: Rows in a combination, on average, from which on its groups may be groups.
CELL_ROWS = 1.5


@dataclass(frozen=True, eq=False)
class Cells:
    """The combinations of two factors that occur: their codes and rows, (C,) each; `shape`: groups of the two."""

    first: Codes
    second: Codes
    rows: Counts
    shape: tuple[int, int]

    @property
    def swapped(self) -> Cells:
        """The same with the factors exchanged."""
        return Cells(self.second, self.first, self.rows, (self.shape[1], self.shape[0]))


@dataclass(frozen=True, eq=False)
class ParentMap:
    """Where the groups of a factor lie: `parent` (J,) is the majority parent's code, -1 where there is none.

    `rows_agree`: rows that are in their group's majority parent; `whole`: groups all of whose rows have one parent;
    `gain`: lambda of the module's docstring, 1 for an exact map.
    """

    parent: Codes
    rows_agree: int
    whole: int
    gain: float

    @property
    def near(self) -> bool:
        """Whether this is a map but for some broken rows."""
        return self.gain >= NEAR


def exact_map(fine: Codes, coarse: Codes, groups: int) -> Codes | None:
    """The map (groups,) of each fine group to its coarse one, or None where a group has several.

    Examples
    --------
    >>> exact_map(np.array([0, 0, 1], np.int32), np.array([1, 1, 0], np.int32), 2)
    array([1, 0], dtype=int32)
    """
    own = np.empty(groups, dtype=np.int32)
    own[fine] = coarse
    return own if np.array_equal(own[fine], coarse) else None


def occupied(first: Codes, second: Codes, shape: tuple[int, int]) -> Cells:
    """The combinations that occur, ordered by the first factor, then the second."""
    keys = first.astype(np.int64) * shape[1] + second
    if shape[0] * shape[1] <= max(4 * len(keys), 1 << 16):
        counts = np.bincount(keys, minlength=shape[0] * shape[1])
        found = np.flatnonzero(counts)
        rows = counts[found].astype(np.int64)
    else:
        keys.sort()
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        found = keys[starts]
        rows = np.diff(np.append(starts, len(keys))).astype(np.int64)
    a, b = np.divmod(found, shape[1])
    return Cells(a.astype(np.int32), b.astype(np.int32), rows, shape)


def majority_map(cells: Cells) -> ParentMap:
    """The majority parents of the first factor's groups among those of the second.

    Examples
    --------
    >>> cells = Cells(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([9, 1, 10]), (2, 2))
    >>> found = majority_map(cells)
    >>> found.parent, found.rows_agree, found.gain
    (array([0, 1], dtype=int32), 19, 0.8888888888888888)
    """
    sizes = np.bincount(cells.first, weights=cells.rows, minlength=cells.shape[0]).astype(np.int64)
    own = sizes[cells.first]
    major = 2 * cells.rows > own
    parent = np.full(cells.shape[0], -1, dtype=np.int32)
    parent[cells.first[major]] = cells.second[major]
    several = own >= 2
    agree = int(cells.rows[major & several].sum())
    total = int(cells.rows[several].sum())
    by_parent = np.bincount(cells.second[several], weights=cells.rows[several], minlength=1)
    most = int(by_parent.max())
    gain = (agree - most) / (total - most) if total > most else 1.0
    whole = int((cells.rows == own).sum())
    return ParentMap(parent, int(cells.rows[major].sum()), whole, gain)


def ids_may_be_reused(cells: Cells) -> bool:
    """Whether ids of one factor may start afresh in every group of the other; symmetric, and blind to labels."""
    return not single_rows(cells) and chain_share(cells) >= CHAIN


def single_rows(cells: Cells) -> bool:
    """Whether combinations have about one row each, so that there is nothing in them to group."""
    return bool(cells.rows.sum() < CELL_ROWS * len(cells.rows))


def chain_share(cells: Cells) -> float:
    """How near the parents' sets of ids are to a chain of inclusions: 1 for one, both ways; blind to labels.

    Over pairs of sets of sizes k and l, the sum of what they share over that of min(k, l), which it is in a chain. The
    former needs no pairs: an id in w sets is shared by w (w - 1).
    """
    shares = []
    for own, size, other, others in (
        (cells.first, cells.shape[0], cells.second, cells.shape[1]),
        (cells.second, cells.shape[1], cells.first, cells.shape[0]),
    ):
        spread = np.bincount(own, minlength=size).astype(np.float64)
        held = np.sort(np.bincount(other, minlength=others)).astype(np.float64)
        most = 2.0 * float(held @ np.arange(others - 1, -1, -1))
        shares.append(float((spread * (spread - 1)).sum()) / most)
    return min(shares)


def connected_parts(cells: Cells) -> tuple[int, Codes, Codes]:
    """How many parts that share no row a crossed design falls into, and the part of each group of both factors."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    total = sum(cells.shape)
    links = (np.ones(len(cells.first), dtype=np.int8), (cells.first, cells.second + cells.shape[0]))
    parts, labels = connected_components(coo_array(links, shape=(total, total)), directed=False)
    return int(parts), labels[: cells.shape[0]], labels[cells.shape[0] :]


# -- the order ----------------------------------------------------------------------------------------------------


def is_transitive(below: Flags) -> bool:
    """Whether f <= g <= h gives f <= h in a relation (k, k)."""
    step = below.astype(np.int64)
    return bool((((step @ step) > 0) <= below).all())


def is_antisymmetric(below: Flags, same: Flags) -> bool:
    """Whether f <= g <= f only where the two are known as the same groups; relations (k, k)."""
    both = below & below.T
    np.fill_diagonal(both, False)
    return bool((both <= same).all())


def covers(below: Flags) -> Flags:
    """The pairs of a strict order (k, k) with nothing between them: the lines of a Hasse diagram."""
    step = below.astype(np.int64)
    return np.asarray(below & ~((step @ step) > 0))


def disagreeing(first: Codes, then: Codes, direct: Codes) -> Counts:
    """The fine groups for which map `then` after map `first` is not map `direct` (codes below 0: no parent)."""
    through = np.where(first >= 0, then[first], -1)
    return np.flatnonzero((through != direct) & (through >= 0) & (direct >= 0))
