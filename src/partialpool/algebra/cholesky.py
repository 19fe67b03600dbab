r"""The leaf/root factorisation of a Gaussian hierarchical model, for many values of the hyperparameters.

For one theta, with the latent coefficients whitened (``u = Lambda z``, ``beta = scale * b``), the precision of all
of them given y is

.. math:: H = \Lambda' [Z X]' D [Z X] \Lambda / \sigma^2 + E,

E the identity (0 for a flat coefficient). `LeafRoot` returns the two numbers of which every likelihood is made,

.. math:: \tfrac12 \log |H| \quad\text{and}\quad y' D y / \sigma^2 - c' H^{-1} c,
          \qquad c = \Lambda' [Z X]' D y / \sigma^2,

the conditional moments of coefficients and group effects, and draws of them. A chain of nested factors is eliminated
from its leaves up (`blocks`), what remains is factorised as a dense matrix: in a kernel where it is narrow, by LAPACK
where it is wide, or as a sparse matrix (`sparse_root`) where that costs less.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import blocks, descent, draws, lapack
from partialpool.algebra.lapack import one_blas_thread
from partialpool.algebra.structure import CrossProducts

Array = NDArray[np.float64]

#: A root at most this wide is factorised inside the kernel that walks over the nodes; a wider one by LAPACK.
KERNEL_ROOT = 48


class Evaluation(NamedTuple):
    """What one pass over K nodes returns.

    half_log_det, quadratic : (K,); mean : (K, p) of b; low : (K, p, p) Cholesky factors of the precision of b.
    """

    half_log_det: Array
    quadratic: Array
    mean: Array
    low: Array


class Moments(NamedTuple):
    """An `Evaluation` with the moments of the group effects given theta, integrated over the coefficients.

    zz : (K, n_lam) sums over groups of E[z z']; u_mean, u_var : (K, n_effects), or (K, 0) where not asked for.
    """

    evaluation: Evaluation
    zz: Array
    u_mean: Array
    u_var: Array


@dataclass(frozen=True, eq=False)
class Workspace:
    """The arrays that one wide-root evaluation fills; made once a call and thread."""

    d_work: Array
    b_work: Array
    s_work: Array
    root: Array
    root_x: Array
    xx: Array
    low: Array
    y_b: Array
    y_s: Array
    solved: Array


class LeafRoot:
    """Factorises one model's cross-products at any hyperparameters; holds no state that an evaluation changes.

    Parameters
    ----------
    cross : CrossProducts
    proper : ndarray of shape (p,)
        1 where a coefficient has a normal prior (given theta), 0 where its prior is flat.
    threads : int
        Threads used when several nodes are evaluated at once. Each node is computed by one thread, so that results
        do not depend on their number.
    """

    def __init__(self, cross: CrossProducts, proper: Array, threads: int = 1) -> None:
        self.cross = cross
        self.proper = np.ascontiguousarray(proper, dtype=float)
        self.threads = max(1, int(threads))
        structure = cross.structure
        self.n_coefficients = structure.n_coefficients
        self.n_root = structure.n_root
        self.wide = structure.n_root > KERNEL_ROOT or structure.sparse is not None
        self._lead = structure.arrays
        self._blocks = (
            *structure.arrays, *cross.values, structure.ranges, structure.root_at, cross.root_v, cross.gx, cross.gxx,
            structure.root_blocks,
        )  # what every kernel that takes many nodes begins with  # fmt: skip

    def seconds(self) -> float:
        """Rough time of one node on one core of a present-day machine, from counts alone.

        What is decided by it (how many nodes, whether to interpolate) must not depend on how busy the machine is, or
        the same seed would not give the same posterior.
        """
        structure = self.cross.structure
        total = 3e-7
        for row in structure.levels:
            q, groups, width = float(row[blocks.Q]), float(row[blocks.GROUPS]), float(row[blocks.WIDTH])
            start = int(row[blocks.PTR_AT])
            met = np.diff(structure.ptr[start : start + int(row[blocks.GROUPS]) + 1]).astype(float)
            dense = groups * (q**3 + 2 * q * q * width + 0.5 * q * width**2)
            sparse = float((2 * q * q * met + q * met * (0.5 * met + self.n_coefficients)).sum())
            total += 4e-8 * groups + 2.5e-9 * (dense + sparse)
        if structure.sparse is not None:
            return total + structure.sparse.symbolic.flops / 5e9
        return total + self.n_root**3 / 3 / (3e10 if self.wide else 1e9)

    # -- values ---------------------------------------------------------------------------------------------------

    def evaluate(self, lams: Array, inv_vars: Array, scales: Array, *, profile: bool = False) -> Evaluation:
        """Log-determinants, quadratic forms and the coefficients' moments at K nodes.

        Parameters
        ----------
        lams : ndarray of shape (K, n_lam)
            The factors Lambda of all grouping factors, row by row, in the order of ``structure.lam_at``.
        inv_vars : ndarray of shape (K,)
            1 / sigma^2.
        scales : ndarray of shape (K, p)
            Prior scales of the coefficients (1 where flat).
        profile : bool
            Leave the coefficients' own determinant out, as maximum likelihood does.
        """
        out = self._allocate(lams.shape[0])
        self._over_nodes(
            lams.shape[0], lambda part, space: self._evaluate(part, space, lams, inv_vars, scales, profile, out)
        )
        return self._evaluation(out)

    def _evaluate(
        self,
        part: slice,
        space: Workspace | None,
        lams: Array,
        inv_vars: Array,
        scales: Array,
        profile: bool,
        out: dict[str, Array],
    ) -> None:
        if space is None:
            blocks.evaluate_batch(
                *self._blocks, lams[part], inv_vars[part], scales[part], self.proper, profile,
                out["pieces"][part], out["means"][part], out["lows"][part],
            )  # fmt: skip
            return
        for node in range(part.start, part.stop):
            self._factor_wide(node, space, lams[node], float(inv_vars[node]), scales[node], profile, out, keep=False)

    # -- moments --------------------------------------------------------------------------------------------------

    def moments(
        self, lams: Array, inv_vars: Array, scales: Array, *, profile: bool = False, effects: bool = False
    ) -> Moments:
        """As `evaluate`, with E[z z'] summed over groups (for gradients) and, if asked for, every effect's moments.

        With `profile` the coefficients are held at their conditional mean.
        """
        count = lams.shape[0]
        out = self._allocate(count)
        size = self.cross.structure.n_effects if effects else 0
        out["zz"] = np.zeros((count, self.cross.structure.n_lam))
        out["u_mean"], out["u_var"] = np.empty((count, size)), np.empty((count, size))
        self._over_nodes(
            count, lambda part, space: self._moments(part, space, lams, inv_vars, scales, profile, out), keep=True
        )
        return Moments(self._evaluation(out), out["zz"], out["u_mean"], out["u_var"])

    def _moments(
        self,
        part: slice,
        space: Workspace | None,
        lams: Array,
        inv_vars: Array,
        scales: Array,
        profile: bool,
        out: dict[str, Array],
    ) -> None:
        if space is None:
            descent.moments_batch(
                *self._blocks, lams[part], inv_vars[part], scales[part], self.proper, profile,
                out["pieces"][part], out["means"][part], out["lows"][part],
                out["zz"][part], out["u_mean"][part], out["u_var"][part],
            )  # fmt: skip
            return
        for node in range(part.start, part.stop):
            self._factor_wide(node, space, lams[node], float(inv_vars[node]), scales[node], profile, out, keep=True)
            self._moments_wide(node, space, lams[node], scales[node], profile, out)

    # -- draws ----------------------------------------------------------------------------------------------------

    def draws(self, lams: Array, inv_vars: Array, betas: Array, normals: Array) -> Array:
        """Draws of all group effects given theta and the coefficients, (K, n_effects).

        `betas` (K, p) in the scale of the cross-products' columns; `normals` (K, n_effects) standard normal.
        """
        count = lams.shape[0]
        u = np.empty((count, self.cross.structure.n_effects))

        def work(part: slice, space: Workspace | None) -> None:
            if space is None:
                draws.draw_batch(
                    *self._blocks, lams[part], inv_vars[part], betas[part], normals[part], u[part],
                )  # fmt: skip
                return
            for node in range(part.start, part.stop):
                self._eliminate_wide(space, lams[node], float(inv_vars[node]), keep=True)
                self._draw_wide(space, lams[node], betas[node], normals[node], u[node])

        self._over_nodes(count, work, keep=True)
        return u

    # -- a wide root, node by node ----------------------------------------------------------------------------------

    def _eliminate_wide(self, space: Workspace, lam: Array, inv_var: float, *, keep: bool) -> float:
        """Eliminate the chain and factorise the root of one node into `space`; returns the half log-determinant."""
        cross, structure = self.cross, self.cross.structure
        n_root, p1 = self.n_root, self.n_coefficients + 1
        blocks.load(
            structure.levels, *cross.values, inv_var, space.d_work, space.b_work, space.s_work, structure.root_at,
            cross.root_v, space.root, cross.gx, space.root_x, cross.gxx, space.xx,
        )  # fmt: skip
        half_log_det = blocks.eliminate(
            *self._lead, *cross.values, space.d_work, space.b_work, space.s_work, lam, inv_var, structure.ranges, keep,
            space.y_b, space.y_s, space.low, n_root, structure.pair_at, space.root, space.root_x, space.xx, p1,
        )  # fmt: skip
        if structure.sparse is not None:
            half_log_det += structure.sparse.factor(space.root, structure.root_blocks, lam)
            root_x = space.root_x.reshape(n_root, p1)
            space.solved[:] = structure.sparse.symbolic.solve(space.root, root_x)
            space.xx[:] -= (root_x.T @ space.solved).ravel()
            return float(half_log_det)
        root = space.root.reshape(n_root, n_root)
        blocks.whiten_dense_root(space.root, space.root_x, structure.root_blocks, lam, n_root, p1)
        if not lapack.cholesky_in_place(root):
            return float("nan")
        root_x = space.root_x.reshape(n_root, p1)
        lapack.solve_triangular_in_place(root, root_x)
        space.xx[:] -= (root_x.T @ root_x).ravel()
        return float(half_log_det + np.log(root.diagonal()).sum())

    def _factor_wide(
        self,
        node: int,
        space: Workspace,
        lam: Array,
        inv_var: float,
        scale: Array,
        profile: bool,
        out: dict[str, Array],
        *,
        keep: bool,
    ) -> None:
        half_log_det = self._eliminate_wide(space, lam, inv_var, keep=keep)
        last, square = blocks.finish_coefficients(
            space.xx, scale, self.proper, self.n_coefficients, out["lows"][node], out["means"][node]
        )
        out["pieces"][node] = (half_log_det if profile else half_log_det + last), space.xx[-1] - square

    def _moments_wide(
        self, node: int, space: Workspace, lam: Array, scale: Array, profile: bool, out: dict[str, Array]
    ) -> None:
        structure = self.cross.structure
        n_root, p = self.n_root, self.n_coefficients
        beta_mean = scale * out["means"][node]
        beta_cov = np.zeros((p, p))
        if p and not profile:
            inverse = np.linalg.solve(out["lows"][node].reshape(p, p), np.diag(scale))
            beta_cov = inverse.T @ inverse
        if structure.sparse is not None:
            self._moments_sparse(node, space, lam, beta_mean, beta_cov, out)
            return
        low = space.root.reshape(n_root, n_root)
        solved = space.root_x.reshape(n_root, p + 1).copy()
        lapack.solve_triangular_in_place(low, solved, transposed=True)
        z_mean = solved[:, p] - solved[:, :p] @ beta_mean
        root_beta_cov = -solved[:, :p] @ beta_cov
        lapack.inverse_from_factor_in_place(low)
        root_mean = np.empty(n_root)
        zz, u_mean, u_var = out["zz"][node], out["u_mean"][node], out["u_var"][node]
        root_beta = np.ascontiguousarray(root_beta_cov).ravel()
        descent.dense_root_moments(
            structure.root_blocks,
            lam,
            n_root,
            p,
            space.root,
            solved.ravel(),
            root_beta,
            z_mean,
            root_mean,
            zz,
            u_mean,
            u_var,
        )
        self._descend(space, lam, root_beta, beta_cov, root_mean, beta_mean, space.root, node, out)

    def _moments_sparse(
        self, node: int, space: Workspace, lam: Array, beta_mean: Array, beta_cov: Array, out: dict[str, Array]
    ) -> None:
        structure, p = self.cross.structure, self.n_coefficients
        sparse = structure.sparse
        assert sparse is not None
        root_beta_cov = -space.solved[:, :p] @ beta_cov
        root_mean = space.solved[:, p] - space.solved[:, :p] @ beta_mean
        covariance = sparse.covariance(space.root, space.solved[:, :p], root_beta_cov)
        zz, u_mean, u_var = out["zz"][node], out["u_mean"][node], out["u_var"][node]
        sparse.collect(structure.root_blocks, lam, covariance, root_mean, zz, u_mean, u_var)
        root_beta = np.ascontiguousarray(root_beta_cov).ravel()
        self._descend(space, lam, root_beta, beta_cov, root_mean, beta_mean, covariance, node, out)

    def _descend(
        self,
        space: Workspace,
        lam: Array,
        root_beta: Array,
        beta_cov: Array,
        root_mean: Array,
        beta_mean: Array,
        root_cov: Array,
        node: int,
        out: dict[str, Array],
    ) -> None:
        descent.descend(
            *self._lead, lam, space.y_b, space.y_s, space.low, self.n_root, self.cross.structure.pair_at, root_cov,
            root_beta, beta_cov.ravel(), root_mean, beta_mean, self.n_coefficients,
            np.empty_like(space.d_work), np.empty_like(space.b_work), np.empty_like(space.s_work),
            out["zz"][node], out["u_mean"][node], out["u_var"][node],
        )  # fmt: skip

    def _draw_wide(self, space: Workspace, lam: Array, beta: Array, normals: Array, u: Array) -> None:
        structure = self.cross.structure
        n_root, p = self.n_root, self.n_coefficients
        noise = np.concatenate([normals[start : start + size] for start, size in structure.root_effects()])
        if structure.sparse is not None:
            coloured = np.ascontiguousarray(noise[:, None])
            structure.sparse.symbolic.solve_upper(space.root, coloured)
            spread = structure.sparse.symbolic.unpermute(coloured)[:, 0]
            root_u = space.solved[:, p] - space.solved[:, :p] @ beta + spread
            for (u_at, size), row in zip(structure.root_effects(), structure.root_blocks, strict=True):
                u[u_at : u_at + size] = root_u[row[blocks.ROOT_START] : row[blocks.ROOT_START] + size]
            self._draw_chain(space, lam, root_u, beta, normals, u)
            return
        root_x = space.root_x.reshape(n_root, p + 1)
        z = (root_x[:, p] - root_x[:, :p] @ beta + noise)[:, None]
        lapack.solve_triangular_in_place(space.root.reshape(n_root, n_root), z, transposed=True)
        root_u = np.ascontiguousarray(z[:, 0])
        draws.colour_root_effects(structure.root_blocks, lam, root_u, u)
        self._draw_chain(space, lam, root_u, beta, normals, u)

    def _draw_chain(self, space: Workspace, lam: Array, root_u: Array, beta: Array, normals: Array, u: Array) -> None:
        draws.draw_chain(
            *self._lead, lam, space.y_b, space.y_s, space.low, np.ascontiguousarray(root_u), np.ascontiguousarray(beta),
            self.n_coefficients, normals, u,
        )  # fmt: skip

    # -- plumbing -------------------------------------------------------------------------------------------------

    def _allocate(self, count: int) -> dict[str, Array]:
        p = self.n_coefficients
        return {"pieces": np.empty((count, 2)), "means": np.empty((count, p)), "lows": np.empty((count, p * p))}

    def _evaluation(self, out: dict[str, Array]) -> Evaluation:
        p = self.n_coefficients
        return Evaluation(
            out["pieces"][:, 0], out["pieces"][:, 1], out["means"], out["lows"].reshape(len(out["means"]), p, p)
        )

    def _workspace(self, *, keep: bool) -> Workspace:
        cross, structure = self.cross, self.cross.structure
        later = structure.levels[1:2]
        first = [int(later[0, at]) if later.size else size for at, size in zip(
            (blocks.D_AT, blocks.B_AT, blocks.S_AT), (cross.d.size, cross.b.size, cross.s.size), strict=True
        )]  # fmt: skip
        kept = [array.size if keep else 0 for array in (cross.d, cross.b, cross.s)]
        p1 = self.n_coefficients + 1
        return Workspace(
            np.empty(cross.d.size - first[0]), np.empty(cross.b.size - first[1]), np.empty(cross.s.size - first[2]),
            np.empty(self.n_root * self.n_root if structure.sparse is None else structure.sparse.size),
            np.empty(self.n_root * p1), np.empty(p1 * p1), np.empty(kept[0]), np.empty(kept[1]), np.empty(kept[2]),
            np.empty((self.n_root if structure.sparse is not None else 0, p1)),
        )  # fmt: skip

    def _over_nodes(self, count: int, work: Callable[[slice, Workspace | None], None], *, keep: bool = False) -> None:
        """Split the nodes over threads; every node is computed alone, so the split changes no result."""
        threads = min(self.threads, count)
        edges = np.linspace(0, count, threads + 1).astype(int)
        parts = [slice(int(a), int(b)) for a, b in pairwise(edges) if b > a]

        def one(part: slice) -> None:
            work(part, self._workspace(keep=keep) if self.wide else None)

        with one_blas_thread() if self.wide else nullcontext():
            if len(parts) <= 1:
                for part in parts:
                    one(part)
                return
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(one, parts))
