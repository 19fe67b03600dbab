"""Sparse Cholesky factors of one fixed pattern, factorised again and again with new values.

`analyse` looks at the pattern once: it chooses an order that keeps the factor sparse, and groups neighbouring columns
of the factor L of P A P' = L L' that share their rows into panels. A panel of w columns is stored as one dense matrix
of its rows by its w columns, row after row, so that its trailing rows are one contiguous block and the products of the
factorisation are dense matrix products. `SymbolicCholesky` then factorises, solves, and gives the log-determinant and
the entries of the inverse on the pattern of L.

References
----------
T. A. Davis (2006), Direct Methods for Sparse Linear Systems, SIAM: elimination trees, symbolic factorisation.
J. R. Gilbert, E. G. Ng, B. W. Peyton (1994), SIAM J. Matrix Anal. Appl. 15, 1075-1091: counts of the columns.
C. Ashcraft, R. Grimes (1989), ACM Trans. Math. Softw. 15, 291-309: relaxed supernodes.
E. G. Ng, B. W. Peyton (1993), SIAM J. Sci. Comput. 14, 1034-1056: left-looking by supernodes.
A. M. Erisman, W. F. Tinney (1975), Comm. ACM 18, 177-179: the inverse on the pattern of the factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from partialpool.algebra.sparse_pattern import (
    _column_counts,
    _elimination_tree,
    _find,
    _panels,
    _postorder,
    _supernode_rows,
    _supernodes,
)
from partialpool.algebra.sparse_values import (
    _PANEL_WIDTH,
    _factor,
    _log_determinant,
    _selected_inverse,
    _solve_lower,
    _solve_upper,
)

if TYPE_CHECKING:
    import scipy.sparse

__all__ = ["SymbolicCholesky", "analyse", "predicted_costs"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


# --------------------------------------------------------------------------------------------------------------------
# The order
# --------------------------------------------------------------------------------------------------------------------


def _pattern(rows: npt.ArrayLike, cols: npt.ArrayLike, n: int) -> scipy.sparse.csc_array[Any]:
    """The symmetric pattern with its diagonal, as ones, from entries of either triangle."""
    from scipy import sparse

    i = np.asarray(rows, dtype=np.int64).ravel()
    j = np.asarray(cols, dtype=np.int64).ravel()
    if i.shape != j.shape:
        raise ValueError(f"rows and cols must be equally long, got {i.size} and {j.size}")
    if n < 1 or (i.size and (min(i.min(), j.min()) < 0 or max(i.max(), j.max()) >= n)):
        raise ValueError(f"rows and cols must lie in 0..n-1 with n >= 1, got n = {n}")
    diagonal = np.arange(n, dtype=np.int64)
    i, j = np.concatenate([i, j, diagonal]), np.concatenate([j, i, diagonal])
    pattern: scipy.sparse.csc_array[Any] = sparse.coo_array((np.ones(i.size), (i, j)), shape=(n, n)).tocsc()
    pattern.data[:] = 1.0
    return pattern


@dataclass(frozen=True, eq=False)
class _Ordered:
    """A postordered permutation with the tree and the counts that it leads to."""

    order: Integers  # order[k] is the original index in place k
    parent: Integers
    counts: Integers
    pointers: Integers  # the permuted pattern, both triangles
    indices: Integers


def _permuted(pattern: scipy.sparse.csc_array[Any], order: Integers) -> tuple[Integers, Integers]:
    moved = pattern[order][:, order].tocsc()
    return moved.indptr.astype(np.int64), moved.indices.astype(np.int64)


def _evaluate(pattern: scipy.sparse.csc_array[Any], order: Integers) -> _Ordered:
    """Tree and counts of an order, after it has been postordered (which keeps the fill)."""
    n = order.size
    pointers, indices = _permuted(pattern, order)
    parent = _elimination_tree(pointers, indices)
    counts = _column_counts(pointers, indices, parent, _postorder(parent, np.arange(n)))
    # The child with the longest column comes right before its parent: the two can share a panel.
    post = _postorder(parent, np.argsort(counts, kind="stable"))
    place = np.empty(n + 1, np.int64)
    place[post] = np.arange(n)
    place[-1] = -1  # the parent of a root stays -1
    order = np.ascontiguousarray(order[post])
    return _Ordered(order, place[parent[post]], counts[post], *_permuted(pattern, order))


def _minimum_degree(pattern: scipy.sparse.csc_array[Any]) -> Integers:
    """SuperLU's multiple minimum degree, through an incomplete factorisation that drops everything, so is cheap."""
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import spilu

    n = pattern.shape[0]
    degree = np.diff(pattern.indptr)
    # Rows met by nearly all others slow minimum degree down and belong last anyway (Amestoy, Davis, Duff 1996).
    dense = degree > max(16.0, 10.0 * np.sqrt(n))
    kept = np.flatnonzero(~dense)
    order = np.arange(kept.size)
    if kept.size > 1:
        part = pattern[kept][:, kept]
        dominant = csc_array(diags_array(np.diff(part.tocsc().indptr) + 1.0) - part)
        factors = spilu(
            dominant,
            drop_tol=1.0,
            fill_factor=1.0,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        order = np.argsort(factors.perm_c)
    last = np.flatnonzero(dense)
    return np.concatenate([kept[order], last[np.argsort(degree[last], kind="stable")]]).astype(np.int64)


def _best_order(pattern: scipy.sparse.csc_array[Any]) -> _Ordered:
    """Of minimum degree, the reverse Cuthill-McKee order and the given one, that with the least fill."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = pattern.shape[0]
    given = np.arange(n, dtype=np.int64)
    if pattern.nnz > 0.25 * float(n) ** 2:  # no order saves much, and minimum degree would take seconds
        return _evaluate(pattern, given)
    narrow = reverse_cuthill_mckee(pattern.tocsr(), symmetric_mode=True)
    candidates = [_minimum_degree(pattern), narrow.astype(np.int64), given]
    return min((_evaluate(pattern, order) for order in candidates), key=lambda ordered: int(ordered.counts.sum()))


def _flops(counts: Integers) -> float:
    return float(np.sum(counts.astype(np.float64) ** 2))


def predicted_costs(rows: npt.ArrayLike, cols: npt.ArrayLike, n: int) -> tuple[float, float]:
    """Floating-point operations of a sparse and of a dense Cholesky factorisation.

    Dense operations run several times faster than those on short columns: prefer the sparse factor where its count is
    well below the dense one.

    Parameters
    ----------
    rows, cols : array of int
        Entries of one triangle of the matrix (duplicates, and the diagonal, may be there or not).
    n : int
        Size of the matrix.

    Returns
    -------
    tuple of float
        (sparse, dense): the sum of squares of the lengths of the columns of the factor, and n^3 / 3.

    Examples
    --------
    >>> predicted_costs([1, 2, 3], [0, 1, 2], 4)
    (13.0, 21.333333333333332)
    """
    return _flops(_best_order(_pattern(rows, cols, n)).counts), n**3 / 3.0


# --------------------------------------------------------------------------------------------------------------------
# The public object
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SymbolicCholesky:
    """What is known of P A P' = L L' from the pattern of A alone; made by `analyse`.

    Values of A, of L and of the inverse live in arrays (size,) of one layout: panel s holds columns
    first[s]..first[s+1]-1 of L as a dense matrix, row after row, of the rows rows[begin[s]:end[s]] (its own columns
    first), from offset[s] on. What lies above the diagonal within a panel is never read.

    Attributes
    ----------
    n : int
        Size of the matrix.
    perm : array of int64, shape (n,)
        perm[k] is the original index in place k.
    inverse_perm : array of int64, shape (n,)
        The place of each original index.
    parent : array of int64, shape (n,)
        The elimination tree of the permuted matrix: parent of each column, -1 for a root.
    counts : array of int64, shape (n,)
        Entries of each column of L, diagonal included.
    first, begin, end, rows, offset, owner : arrays of int64
        The panels; `owner` is the panel of each column.
    """

    n: int
    perm: Integers
    inverse_perm: Integers
    parent: Integers
    counts: Integers
    first: Integers
    begin: Integers
    end: Integers
    rows: Integers
    offset: Integers
    owner: Integers

    @property
    def size(self) -> int:
        """Length of an array of values: the fill and some zeros that make panels dense."""
        return int(self.offset[-1])

    @property
    def fill(self) -> int:
        """Entries of L, the diagonal included."""
        return int(self.counts.sum())

    @property
    def flops(self) -> float:
        """Floating-point operations of one factorisation."""
        return _flops(self.counts)

    @property
    def layout(self) -> tuple[Integers, Integers, Integers, Integers, Integers, Integers]:
        """The arrays that the kernels take after the values."""
        return self.first, self.begin, self.end, self.rows, self.offset, self.owner

    def positions(self, i: npt.ArrayLike, j: npt.ArrayLike) -> Integers:
        """Where the entries (i, j) of A, of L and of the inverse live among the values.

        Parameters
        ----------
        i, j : array of int
            Original indices, in either order.

        Returns
        -------
        array of int64
            One place for each pair.

        Raises
        ------
        ValueError
            If a pair is outside the pattern of L.
        """
        row = np.asarray(i, dtype=np.int64)
        column = np.asarray(j, dtype=np.int64)
        row, column = np.broadcast_arrays(row, column)
        shape = row.shape
        if row.size and (min(row.min(), column.min()) < 0 or max(row.max(), column.max()) >= self.n):
            raise ValueError(f"positions needs indices in 0..{self.n - 1}")
        places = _find(*self.layout, self.inverse_perm[row.ravel()], self.inverse_perm[column.ravel()])
        if places.size and places.min() < 0:
            wrong = int(np.argmin(places))
            raise ValueError(
                f"the entry ({row.ravel()[wrong]}, {column.ravel()[wrong]}) is outside the pattern that was analysed"
            )
        return np.asarray(places.reshape(shape), dtype=np.int64)

    def assemble(self, positions: Integers, entries: npt.ArrayLike) -> Floats:
        """Values of A from entries at `positions` (each entry of one triangle once; those at one place add up)."""
        weights = np.asarray(entries, dtype=np.float64).ravel()
        values = np.bincount(positions.ravel(), weights=weights, minlength=self.size)
        return np.asarray(values, dtype=np.float64)

    def factor(self, values: Floats) -> int:
        """Turn the values of A into those of L, in place.

        Parameters
        ----------
        values : array of float64, shape (size,)
            The lower triangle of A; overwritten.

        Returns
        -------
        int
            0, or where A is not positive definite (or not finite) one more than the place in `perm` of the column
            whose pivot fails: its original index is ``perm[status - 1]``. The values are then of no use.
        """
        return int(_factor(self._checked(values), *self.layout))

    def log_determinant(self, values: Floats) -> float:
        """log det A, from the values of L."""
        return float(_log_determinant(self._checked(values), *self.layout))

    def permute(self, x: npt.ArrayLike) -> Floats:
        """P x: a copy of the rows of x in the order of L, always of shape (n, k)."""
        original = np.asarray(x, dtype=np.float64)
        return np.ascontiguousarray(original.reshape(self.n, -1)[self.perm])

    def unpermute(self, x: Floats) -> Floats:
        """P' x: the rows of x (n, k) back in the original order."""
        return np.ascontiguousarray(x[self.inverse_perm])

    def solve_lower(self, values: Floats, x: Floats) -> None:
        """Solve L x = b in place for b (n, k) in permuted order."""
        _solve_lower(self._checked(values), *self.layout, self._checked_sides(x))

    def solve_upper(self, values: Floats, x: Floats) -> None:
        """Solve L' x = b in place for b (n, k) in permuted order."""
        _solve_upper(self._checked(values), *self.layout, self._checked_sides(x))

    def solve(self, values: Floats, b: npt.ArrayLike) -> Floats:
        """A^-1 b for b (n,) or (n, k) in the original order, from the values of L."""
        x = self.permute(b)
        self.solve_lower(values, x)
        self.solve_upper(values, x)
        return self.unpermute(x).reshape(np.shape(b))

    def selected_inverse(self, values: Floats) -> Floats:
        """Entries of A^-1 on the pattern of L, in the layout of the values, from the values of L."""
        return np.asarray(_selected_inverse(self._checked(values), *self.layout))

    def to_dense(self, values: Floats) -> Floats:
        """The lower triangle that the values hold, as a dense (n, n) matrix in permuted order; for tests and looks."""
        dense = np.zeros((self.n, self.n))
        for s in range(self.begin.size):
            left, right = self.first[s], self.first[s + 1]
            panel = values[self.offset[s] : self.offset[s + 1]].reshape(-1, right - left)
            dense[self.rows[self.begin[s] : self.end[s]], left:right] = panel
        return np.tril(dense)

    def _checked(self, values: Floats) -> Floats:
        """Kernels check no bounds."""
        if values.shape != (self.size,):
            raise ValueError(f"values must have shape ({self.size},), got {values.shape}")
        return values

    def _checked_sides(self, x: Floats) -> Floats:
        if x.ndim != 2 or x.shape[0] != self.n:
            raise ValueError(f"the right-hand sides must have shape ({self.n}, k), got {x.shape}")
        return x


def analyse(rows: npt.ArrayLike, cols: npt.ArrayLike, n: int) -> SymbolicCholesky:
    """Choose an order for a sparse symmetric matrix and lay out its Cholesky factor.

    Parameters
    ----------
    rows, cols : array of int
        Where the matrix may differ from zero: entries of one triangle (duplicates, entries of the other triangle, and
        the diagonal, may be there or not).
    n : int
        Size of the matrix.

    Returns
    -------
    SymbolicCholesky

    Raises
    ------
    ValueError
        If `rows` and `cols` differ in length or leave 0..n-1.

    Examples
    --------
    >>> import numpy as np
    >>> rows, cols = np.array([0, 1, 2, 1, 2]), np.array([0, 1, 2, 0, 1])
    >>> symbolic = analyse(rows, cols, 3)
    >>> values = symbolic.assemble(symbolic.positions(rows, cols), [2.0, 2.0, 2.0, -1.0, -1.0])
    >>> symbolic.factor(values)
    0
    >>> round(float(np.exp(symbolic.log_determinant(values))), 12)
    4.0
    >>> symbolic.solve(values, [1.0, 0.0, 1.0]).round(12).tolist()
    [1.0, 1.0, 1.0]
    """
    ordered = _best_order(_pattern(rows, cols, n))
    start = _supernodes(ordered.parent, ordered.counts)
    bounds, row_list = _supernode_rows(ordered.pointers, ordered.indices, start, ordered.parent, ordered.counts)
    first, begin, end, offset, owner = _panels(start, bounds, _PANEL_WIDTH)
    inverse_perm = np.empty(n, np.int64)
    inverse_perm[ordered.order] = np.arange(n)
    return SymbolicCholesky(
        n=n,
        perm=ordered.order,
        inverse_perm=inverse_perm,
        parent=ordered.parent,
        counts=ordered.counts,
        first=first,
        begin=begin,
        end=end,
        rows=row_list,
        offset=offset,
        owner=owner,
    )
