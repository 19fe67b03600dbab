"""`leftout` at many nodes: one after another the blocks are factorised, moments found, and the units left out.

Python steps from kernel to kernel, some 20 to 60 microseconds a node: a kernel of its own that took many nodes would be
that much faster, and take as long to compile as all others of `leftout` together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import blocks, descent, lapack, leftout
from partialpool.algebra.cholesky import LeafRoot, Workspace

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class LeftOutNodes:
    """What is left out of a model whose cross-products are those of `engine`.

    Parameters
    ----------
    engine : LeafRoot
    level : int
        Of the chain, whose groups are left out; -1 for rows.
    """

    def __init__(self, engine: LeafRoot, level: int) -> None:
        self.engine, self.structure, self.level = engine, engine.cross.structure, level
        self.p = engine.n_coefficients

    def leave(
        self,
        lams: Array,
        inv_vars: Array,
        scales: Array,
        logs: Array,
        known: tuple[Array, Array] | None,
        ranges: Ints,
        units: tuple[Any, ...],
        left: Array,
        inside: Array,
        first: int,
    ) -> None:
        """Fill the columns of `left` and `inside` from `first` on, one a node; best with one BLAS thread.

        Parameters
        ----------
        lams, inv_vars, scales
            As `LeafRoot.evaluate` takes them.
        logs : (K,)
            log sigma, which the density of a row holds once (0 where it does not).
        known : (K, p) and (K, p, p), or None
            Moments of the coefficients, where these alone are shared between groups: only the groups of `ranges` are
            then factorised.
        units : tuple
            What `leftout.leave_rows` or `leave_groups` want to know of the units, from `begin` on.
        """
        space = self.engine._workspace(keep=True)
        moments: tuple[Any, ...]
        for k, lam in enumerate(lams):
            inv_var = float(inv_vars[k])
            if known is None:
                moments = self._moments(space, lam, inv_var, scales[k])
            else:
                self._eliminate(space, lam, inv_var, ranges)
                moments = self._of_coefficients(known[0][k], known[1][k])
            state = (space.low, space.y_b, space.y_s, *moments, self.p)
            at = (float(logs[k]), *state, *units, left, inside, first + k)
            if self.level < 0:
                leftout.leave_rows(*self.structure.arrays, lam, inv_var, *at)
            else:
                leftout.leave_groups(*self.structure.arrays, self.level, inv_var, *at)

    def _eliminate(self, space: Workspace, lam: Array, inv_var: float, ranges: Ints) -> None:
        cross, structure = self.engine.cross, self.structure
        blocks.load(
            structure.levels, *cross.values, inv_var, space.d_work, space.b_work, space.s_work, structure.root_at,
            cross.root_v, space.root, cross.gx, space.root_x, cross.gxx, space.xx,
        )  # fmt: skip
        blocks.eliminate(
            *structure.arrays, *cross.values, space.d_work, space.b_work, space.s_work, lam, inv_var, ranges, True,
            space.y_b, space.y_s, space.low, structure.n_root, structure.pair_at, space.root, space.root_x, space.xx,
            self.p + 1,
        )  # fmt: skip

    def _of_coefficients(self, mean: Array, cov: Array) -> tuple[Any, ...]:
        """The moments of a model in which groups share the coefficients only."""
        none, nothing = _NONE, self.structure.pair_at
        return none, none, none, none, none, 0, nothing, none, cov.ravel(), none, mean

    def _moments(self, space: Workspace, lam: Array, inv_var: float, scale: Array) -> tuple[Any, ...]:
        """cov_d, cov_b, cov_s, means, root_cov, n_root, pair_at, root_beta_cov, beta_cov, root_mean, beta_mean."""
        structure, p, n_root = self.structure, self.p, self.engine.n_root
        out = {"pieces": np.empty((1, 2)), "means": np.empty((1, p)), "lows": np.empty((1, p * p))}
        if n_root:
            self.engine._factor_wide(0, space, lam, inv_var, scale, False, out, keep=True)
        else:
            self._eliminate(space, lam, inv_var, structure.ranges)
            blocks.finish_coefficients(space.xx, scale, self.engine.proper, p, out["lows"][0], out["means"][0])
        beta_mean = scale * out["means"][0]
        beta_cov = np.zeros((p, p))
        if p:
            half = np.linalg.solve(out["lows"][0].reshape(p, p), np.diag(scale))
            beta_cov = half.T @ half
        zz = np.zeros(structure.n_lam)
        u_mean, u_var = np.empty(structure.n_effects), np.empty(structure.n_effects)
        root_mean, root_cov, root_beta = _NONE, _NONE, np.empty((0, p))
        if structure.sparse is not None:
            root_beta = np.ascontiguousarray(-space.solved[:, :p] @ beta_cov)
            root_mean = np.ascontiguousarray(space.solved[:, p] - space.solved[:, :p] @ beta_mean)
            root_cov = structure.sparse.covariance(space.root, space.solved[:, :p], root_beta)
        elif n_root:
            low = space.root.reshape(n_root, n_root)
            solved = space.root_x.reshape(n_root, p + 1).copy()
            lapack.solve_triangular_in_place(low, solved, transposed=True)
            z_mean = np.ascontiguousarray(solved[:, p] - solved[:, :p] @ beta_mean)
            root_beta = np.ascontiguousarray(-solved[:, :p] @ beta_cov)
            lapack.inverse_from_factor_in_place(low)
            root_mean, root_cov = np.empty(n_root), space.root
            descent.dense_root_moments(
                structure.root_blocks, lam, n_root, p, root_cov, solved.ravel(), root_beta.ravel(), z_mean, root_mean,
                zz, u_mean, u_var,
            )  # fmt: skip
        cov_d, cov_b, cov_s = (np.empty_like(part) for part in (space.d_work, space.b_work, space.s_work))
        if len(structure.levels) > 1:
            descent.descend(
                *structure.arrays, lam, space.y_b, space.y_s, space.low, n_root, structure.pair_at, root_cov,
                root_beta.ravel(), beta_cov.ravel(), root_mean, beta_mean, p, cov_d, cov_b, cov_s, zz, u_mean, u_var,
            )  # fmt: skip
        return (
            cov_d, cov_b, cov_s, u_mean, root_cov, n_root, structure.pair_at, root_beta.ravel(), beta_cov.ravel(),
            root_mean, beta_mean,
        )  # fmt: skip


_NONE = np.empty(0)
