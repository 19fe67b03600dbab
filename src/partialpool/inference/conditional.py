"""The leaf's effects given theta, coefficients and root: moments by quadrature, and exact draws."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.leaf import MOMENTS
from partialpool.algebra.leafdraws import MORE_STEPS, STEPS, draw_kernels
from partialpool.inference.gap import use_nodes
from partialpool.inference.joint import COARSE, JointDensity, Unpacked
from partialpool.model import Model

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Fewest quadrature nodes a dimension for moments, by dimension: those that suffice for the sum of the groups' log
#: densities may leave the moments of one group a digit short.
FEWEST = {1: 11, 2: 7, 3: 5}
#: Fewest quasi-random nodes where a group has more than three effects.
FEWEST_RANDOM = 256
#: Draws that one call of the kernel makes.
PIECE = 256


class LeafConditional:
    """The distribution of the leaf's effects u given everything else.

    Parameters
    ----------
    model : Model
        With its rows, of a response that needs quadrature.
    nodes : int
        Quadrature nodes that the engine used.
    threads : int
    """

    def __init__(self, model: Model, nodes: int, threads: int = 1) -> None:
        self.model, self.threads = model, threads
        self.density = JointDensity(model)
        self.q, self.groups = self.density.q, self.density.rows.n_groups
        if self.q > 3:
            _set_random_nodes(self.density, max(nodes, FEWEST_RANDOM))
        elif self.q:
            use_nodes(self.density, max(nodes, FEWEST[self.q]))
        family = model.family
        name = f"{family.name}_{family.link}".replace("/", "_").replace("^", "")
        self.kernels = draw_kernels(name, family.log_density, family.derivatives)

    def centre(self, theta: Array, gamma: Array, root: Array) -> None:
        """Let every search for a mode begin from the modes at one point: (d,), (p,), (n_root,)."""
        if self.q:
            self.density.recentre(self.density.point(theta, gamma, root))

    def unpack(self, theta: Array, gamma: Array, root: Array) -> Unpacked:
        """What the rows need at one point."""
        return self.density.unpack(self.density.point(theta, gamma, root))

    @property
    def seconds(self) -> float:
        """Rough cost of the moments at one node: from the sizes alone, never from a clock."""
        return 1e-4 + 1.5e-8 * self.density.work + 1e-7 * self.groups * self.q

    # -- moments ----------------------------------------------------------------------------------------------------

    def moments(self, theta: Array, gamma: Array, root: Array) -> tuple[Array, Array]:
        """Means and variances (K, groups, q) of u at nodes theta (K, d), gamma (K, p), root (K, n_root)."""
        count = len(theta)
        mean, variance = np.empty((count, self.groups, self.q)), np.empty((count, self.groups, self.q))
        if not self.q:
            return mean, variance

        def run(k: int) -> None:
            own = self.unpack(theta[k], gamma[k], root[k])
            found = self.density.rows_at(MOMENTS, own).moments
            mean[k] = found.mean @ own.lam.T
            variance[k] = np.einsum("ij,gjk,ik->gi", own.lam, found.covariance, own.lam)

        _over_threads(run, count, self.threads)
        return mean, variance

    # -- draws ------------------------------------------------------------------------------------------------------

    def draws(self, theta: Array, gamma: Array, root: Array, groups: Ints, seed: int, numbers: Ints) -> Array:
        """Exact draws (K, len(groups), q) of u of some groups, one at each of K points.

        numbers : (K,) numbers of the draws: a group's draw follows from seed, group and number, whatever else is drawn.
        """
        count = len(theta)
        out = np.empty((count, len(groups), self.q))
        if not out.size:
            return out
        wanted = np.ascontiguousarray(groups, dtype=np.int64)
        rows, density = self.density.rows, self.density
        arrays = (
            rows.y, rows.trials, rows.weight, rows.offset, rows.x, rows.at, rows.x_part, rows.z, rows.z_part,
            rows.pointer, density.start, density.starts, COARSE,
        )  # fmt: skip
        steps = STEPS if self.model.family.log_concave and not rows.z_part.any() else MORE_STEPS
        size = max(1, min(PIECE, -(-count // (4 * self.threads))))

        def run(piece: int) -> None:
            part = slice(piece * size, min((piece + 1) * size, count))
            own = [self.unpack(theta[k], gamma[k], root[k]) for k in range(part.start, part.stop)]
            self.kernels.draw(
                0, len(own), seed, np.ascontiguousarray(numbers[part], dtype=np.int64), wanted,
                np.stack([point.root for point in own]), np.stack([point.lam for point in own]),
                np.stack([point.constants for point in own]), *arrays, steps, out[part],
            )  # fmt: skip

        _over_threads(run, -(-count // size), self.threads)
        return out


def _over_threads(run: Callable[[int], None], count: int, threads: int) -> None:
    if threads > 1 and count > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(count)))
    else:
        for k in range(count):
            run(k)


def _set_random_nodes(density: JointDensity, nodes: int) -> None:
    """Quasi-random nodes and their mirror images: with these a symmetric density has its mean exactly."""
    use_nodes(density, nodes)
    density.x_nodes = np.concatenate([density.x_nodes, -density.x_nodes])
    density.shifted = np.concatenate([density.shifted, density.shifted]) - np.log(2.0)


class OwnEstimates:
    """Each group's own maximum-likelihood estimate, all else fixed.

    Parameters
    ----------
    conditional : LeafConditional
        Of the model.
    """

    #: Sd of the prior that does not count, in units of the link's scale over the column's size.
    WIDE = 1e4
    #: Information on an effect, in the same units, below which rows do not determine it.
    LEAST = 1e-5
    #: An information matrix whose scaled determinant is below this does not determine its effects.
    SINGULAR = 1e-9

    def __init__(self, conditional: LeafConditional) -> None:
        self.model, self.alone = conditional.model, conditional.kernels.alone

    def of(
        self, factor: int, predictors: tuple[Array, Array], e2: float, columns: Ints, parts: Ints, start: Array
    ) -> Array:
        """(groups, q); nan where the rows do not determine it.

        predictors : (n,) eta0 and eta1 of the rows without the factor's effects, in the order of the design.
        columns, parts : (q,) the columns of the effects, and their linear predictors. start : (groups, q).
        """
        design = self.model.design
        codes = design.factors[factor].codes
        order = np.argsort(codes, kind="stable")
        groups, q = start.shape
        pointer = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=groups))]).astype(np.int64)
        z = np.ascontiguousarray(design.V[order][:, columns])
        size = np.sqrt(np.mean(z * z, axis=0))
        scale = self.WIDE / np.where(size > 0, size, 1.0)
        u, information = np.zeros((groups, q)), np.zeros((groups, q, q))
        status = np.zeros(groups, dtype=np.int64)
        ones = np.ones(len(order))
        self.alone(
            np.array(design.y[order], dtype=float),
            ones if design.trials is None else np.array(design.trials[order], dtype=float),
            ones if design.weights is None else np.array(design.weights[order], dtype=float),
            np.ascontiguousarray(predictors[0][order]), np.ascontiguousarray(predictors[1][order]), e2, z,
            np.ascontiguousarray(parts, dtype=np.int64), pointer, scale, np.ascontiguousarray(start), u, information,
            status,
        )  # fmt: skip
        known = (status == 0) & np.isfinite(u).all(axis=1) & self._determined(information / self.WIDE**2)
        return np.where(known[:, None], u, np.nan)

    def _determined(self, information: Array) -> NDArray[np.bool_]:
        own = np.einsum("gii->gi", information)
        good = (own > self.LEAST).all(axis=1) & np.isfinite(information).all(axis=(1, 2))
        root = np.sqrt(np.where(own > 0, own, 1.0))
        scaled = np.where(good[:, None, None], information / (root[:, :, None] * root[:, None, :]), 0.0)
        return np.asarray(good & (np.linalg.det(scaled) > self.SINGULAR))
