r"""A root whose blocks are sparse: chosen where its factor costs much less than a dense one.

A sparse root is factorised in the precision form, ``F + Q`` with ``Q = Lambda^-T Lambda^-1`` block by block, since
whitening would only rescale entries: ``log|Lambda' F Lambda + I| = log|F + Q| + 2 log|Lambda|``. Covariances then come
out in the raw scale, on the pattern of the factor, which holds every pair that the groups further down need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.blocks import ROOT_GROUPS, ROOT_LAM, ROOT_Q, ROOT_START, ROOT_U
from partialpool.algebra.sparse import SymbolicCholesky, analyse

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Roots narrower than this are always dense; LAPACK takes them in some 20 ms.
SPARSE_FROM = 1500
#: A sparse factor is taken where its flops are below this share of the dense one's.
SPARSE_SHARE = 0.2
#: Patterns with more pairs than this are not tried: listing them would cost more than it could save.
MOST_PAIRS = 60_000_000
#: An sd below this counts as this, so that its precision stays finite.
SMALLEST_SD = 1e-140


@dataclass(frozen=True, eq=False)
class SparseRoot:
    """The pattern of a sparse root: its symbolic factor and where its entries and diagonal blocks live.

    rows, cols, at : the entries of the pattern (lower triangle) and their places among the factor's values.
    diagonal : by factor of the root, places (groups, q, q) of its diagonal blocks.
    """

    symbolic: SymbolicCholesky
    rows: Ints
    cols: Ints
    at: Ints
    diagonal: tuple[Ints, ...]

    @property
    def size(self) -> int:
        return self.symbolic.size

    def factor(self, values: Array, root_blocks: Ints, lam: Array) -> float:
        """Add the prior precisions to `values`, factorise in place; half the log-determinant, whitened."""
        half_log_lam = 0.0
        for row, places in zip(root_blocks, self.diagonal, strict=True):
            low = lambda_of(row, lam)
            inverse = np.linalg.inv(low)
            q = low.shape[0]
            values[places[:, *np.tril_indices(q)]] += (inverse.T @ inverse)[np.tril_indices(q)]
            half_log_lam += int(row[ROOT_GROUPS]) * float(np.log(np.diag(low)).sum())
        if self.symbolic.factor(values) != 0:
            return float("nan")
        return 0.5 * self.symbolic.log_determinant(values) + half_log_lam

    def covariance(self, values: Array, solved: Array, root_beta_cov: Array) -> Array:
        """Covariances of the root's effects on the pattern, the coefficients' spread included."""
        inverse = self.symbolic.selected_inverse(values)
        inverse[self.at] -= (root_beta_cov[self.rows] * solved[self.cols]).sum(axis=1)
        return inverse

    def collect(
        self, root_blocks: Ints, lam: Array, covariance: Array, mean: Array, zz: Array, u_mean: Array, u_var: Array
    ) -> None:
        """Add sum_g E[z z'] by factor to zz; write the effects' means and variances unless those have length 0."""
        for row, places in zip(root_blocks, self.diagonal, strict=True):
            q, groups = int(row[ROOT_Q]), int(row[ROOT_GROUPS])
            start, at, u_at = int(row[ROOT_START]), int(row[ROOT_LAM]), int(row[ROOT_U])
            own_mean = mean[start : start + groups * q].reshape(groups, q)
            block = covariance[places]
            block = np.tril(block) + np.swapaxes(np.tril(block, -1), 1, 2)
            inverse = np.linalg.inv(lambda_of(row, lam))
            raw = block.sum(axis=0) + own_mean.T @ own_mean
            zz[at : at + q * q] += (inverse @ raw @ inverse.T).ravel()
            if u_mean.size:
                u_mean[u_at : u_at + groups * q] = own_mean.ravel()
                u_var[u_at : u_at + groups * q] = block[:, range(q), range(q)].ravel()


def lambda_of(row: Ints, lam: Array) -> Array:
    """The factor Lambda (q, q) of one factor of the root, kept away from 0."""
    q, at = int(row[ROOT_Q]), int(row[ROOT_LAM])
    low = lam[at : at + q * q].reshape(q, q).copy()
    diagonal = np.arange(q)
    low[diagonal, diagonal] = np.maximum(low[diagonal, diagonal], SMALLEST_SD)
    return low


def clique_pairs(ptr: Ints, idx: Ints) -> tuple[Ints, Ints]:
    """Rows and columns of all pairs (e >= f) of each list ``idx[ptr[g]:ptr[g + 1]]``, list after list, e by e."""
    lengths = np.diff(ptr)
    position = np.arange(idx.size) - np.repeat(ptr[:-1], lengths)  # of each entry in its own list
    repeats = position + 1
    rows = np.repeat(idx, repeats)
    first = np.repeat(np.repeat(ptr[:-1], lengths), repeats)
    starts = np.cumsum(repeats) - repeats
    offset = np.arange(rows.size) - np.repeat(starts, repeats)
    return rows, idx[first + offset]


def n_pairs(ptr: Ints) -> int:
    """How many pairs `clique_pairs` lists."""
    lengths = np.diff(ptr)
    return int((lengths * (lengths + 1) // 2).sum())


def sparse_root(n_root: int, pairs: tuple[Ints, Ints], own: tuple[Ints, Ints], root_blocks: Ints) -> SparseRoot | None:
    """Lay a sparse root out, or return None where a dense one costs less.

    Parameters
    ----------
    pairs : rows and columns of every pair of root columns that a group of the chain couples.
    own : rows and columns of the root's own cross-products (lower triangle).
    """
    rows = np.concatenate([pairs[0], own[0]])
    cols = np.concatenate([pairs[1], own[1]])
    unique = np.unique(rows * n_root + cols)
    # fill only adds to the pattern: a pattern that is dense already needs no analysis
    if unique.size > SPARSE_SHARE * n_root * n_root / 2:
        return None
    rows, cols = unique // n_root, unique % n_root
    symbolic = analyse(rows, cols, n_root)
    if symbolic.flops > SPARSE_SHARE * n_root**3 / 3:
        return None
    diagonal = []
    for row in root_blocks:
        q = int(row[ROOT_Q])
        first = int(row[ROOT_START]) + np.arange(int(row[ROOT_GROUPS]))[:, None, None] * q
        diagonal.append(symbolic.positions(first + np.arange(q)[None, :, None], first + np.arange(q)[None, None, :]))
    return SparseRoot(symbolic, rows, cols, symbolic.positions(rows, cols), tuple(diagonal))
