"""`leftout` where the root is too wide for its kernels: node by node, the root factorised by LAPACK or sparse."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import descent, lapack, leftout
from partialpool.algebra.cholesky import LeafRoot, Workspace
from partialpool.algebra.lapack import one_blas_thread

Array = NDArray[np.float64]


class WideNodes:
    """What is left out of a model with a wide root."""

    def __init__(self, engine: LeafRoot) -> None:
        self.engine, self.structure = engine, engine.cross.structure
        self.p = engine.n_coefficients

    def leave(
        self, lams: Array, inv_vars: Array, scales: Array, logs: Array, level: int, rows: tuple[Any, ...], left: Array,
        inside: Array, first: int,
    ) -> None:  # fmt: skip
        """Fill the columns from `first` on: see `leftout.leave_batch`."""
        engine, structure, p = self.engine, self.structure, self.p
        space = engine._workspace(keep=True)
        out = {"pieces": np.empty((1, 2)), "means": np.empty((1, p)), "lows": np.empty((1, p * p))}
        with one_blas_thread():
            for k, lam in enumerate(lams):
                engine._factor_wide(0, space, lam, float(inv_vars[k]), scales[k], False, out, keep=True)
                moments = self._moments(space, lam, scales[k], out)
                arguments: list[Any] = [
                    *structure.arrays, level, lam, float(inv_vars[k]), float(logs[k]), space.low, space.y_b, space.y_s,
                    *moments, p, *rows, left, inside, first + k,
                ]  # fmt: skip
                leftout.leave_at_node(*arguments)

    def _moments(self, space: Workspace, lam: Array, scale: Array, out: dict[str, Array]) -> tuple[Any, ...]:
        """cov_d, cov_b, cov_s, means, root_cov, n_root, pair_at, root_beta_cov, beta_cov, root_mean, beta_mean."""
        structure, p, n_root = self.structure, self.p, self.engine.n_root
        beta_mean = scale * out["means"][0]
        beta_cov = np.zeros((p, p))
        if p:
            half = np.linalg.solve(out["lows"][0].reshape(p, p), np.diag(scale))
            beta_cov = half.T @ half
        zz = np.zeros(structure.n_lam)
        u_mean, u_var = np.empty(structure.n_effects), np.empty(structure.n_effects)
        if structure.sparse is not None:
            root_beta = np.ascontiguousarray(-space.solved[:, :p] @ beta_cov)
            root_mean = np.ascontiguousarray(space.solved[:, p] - space.solved[:, :p] @ beta_mean)
            root_cov = structure.sparse.covariance(space.root, space.solved[:, :p], root_beta)
        else:
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
