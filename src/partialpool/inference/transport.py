r"""From whitened coordinates x to the unknowns ``(phi, root)``, and proposals in x.

.. math:: \phi = \hat\phi + F x_\theta, \qquad r = m(\phi) + L(\phi)^{-T} x_r, \quad L L' = M(\phi),

so that the posterior is close to standard normal in x: the root's location and scale follow theta (`RootLaplace`). Each
coordinate is proposed from a split Student-t; a weighted sample refits the centre, the factor and the scales.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.lapack import one_blas_thread
from partialpool.algebra.rootsolve import solve_roots
from partialpool.inference.proposal import PROBES, halves, side_scales
from partialpool.inference.root import RootLaplace

Array = NDArray[np.float64]

#: Degrees of freedom of the proposal: of theta, whose tails are long, and of the root, which has many dimensions.
NU_THETA, NU_ROOT = 4.0, 10.0
#: Root's dimensions above which its proposal has lighter tails, which cost less a dimension.
WIDE = 12
SCALES = (0.6, 5.0)
#: Numbers in one batch of matrices, most points of one, and how many are too few to spread over threads.
BATCH, PART, FEW = 2_000_000, 64, 32


class Transport:
    """The map from x (K, D) to points (K, D) of the joint density; see the module."""

    def __init__(self, laplace: RootLaplace, negative_hessian: Array) -> None:
        self.laplace = laplace
        self.d, self.n_root = laplace.d, laplace.n_root
        self.size = self.d + self.n_root
        self.negative_hessian = negative_hessian
        values, vectors = np.linalg.eigh(negative_hessian) if self.d else (np.empty(0), np.empty((0, 0)))
        values = np.where(values > 1 / 9, values, np.maximum(np.abs(values), 1 / 9))
        self.factor = np.linalg.cholesky((vectors / values) @ vectors.T) if self.d else np.empty((0, 0))
        self.tilt = laplace.tilt()

    def points(self, x: Array) -> tuple[Array, Array]:
        """Points (K, D) of `JointDensity`, and the log Jacobian (K,) of the whole way, t by phi included."""
        phi = self.laplace.phi + x[:, : self.d] @ self.factor.T
        pull, low = self.laplace.conditional(phi, self.tilt)
        root, logs = np.empty_like(pull), np.empty(len(x))
        solve_roots(low, np.ascontiguousarray(pull), np.ascontiguousarray(x[:, self.d :]), root, logs)
        t = self.laplace.t(phi)
        jacobian = float(np.log(np.diag(self.factor)).sum()) - logs + self.laplace.coordinates.log_jacobian(phi, t)
        return np.concatenate([t, self.laplace.root + root], axis=1), jacobian

    def log_density(self, x: Array) -> tuple[Array, Array]:
        """Log density of x (K,), and the points."""
        values, points = np.empty(len(x)), np.empty_like(x)
        whole = self.laplace.density
        few = len(x) <= FEW
        density = whole if few else whole.with_threads(1)  # of few points each pass is split over the threads itself
        # the parts do not depend on the threads: products of other shapes differ in their last digit
        size = max(1, min(BATCH // max(self.n_root, 1) ** 2, PART))
        parts = [slice(start, start + size) for start in range(0, len(x), size)]

        def run(part: slice) -> None:
            with np.errstate(all="ignore"):
                points[part], logs = self.points(x[part])
                values[part] = density.value(points[part]) + logs

        with one_blas_thread(), ThreadPoolExecutor(1 if few else whole.threads) as pool:
            list(pool.map(run, parts))
        return np.where(np.isnan(values), -np.inf, values), points


@dataclass(frozen=True, eq=False)
class SplitT:
    """Independent split Student-t coordinates behind a linear map: ``x = centre + factor z``.

    below, above : (D,) scales of z on both sides. nu : (D,) degrees of freedom.
    """

    centre: Array
    factor: Array
    below: Array
    above: Array
    nu: Array

    def points(self, uniforms: Array) -> tuple[Array, Array]:
        """x (K, D) and its log density (K,) from uniforms (K, D)."""
        half, scale = halves(uniforms, self.below, self.above)
        z = scale * t_quantile(np.clip(half, 1e-14, 1 - 1e-14), self.nu)
        return self.centre + z @ self.factor.T, self._log_density(z)

    def log_density(self, x: Array) -> Array:
        """Log density (K,) at x (K, D)."""
        return self._log_density(np.asarray(np.linalg.solve(self.factor, (x - self.centre).T).T, dtype=float))

    def _log_density(self, z: Array) -> Array:
        scale = np.where(z < 0, self.below, self.above)
        nu = self.nu
        each = -0.5 * (nu + 1) * np.log1p((z / scale) ** 2 / nu)
        norm = [math.lgamma((n + 1) / 2) - math.lgamma(n / 2) - 0.5 * math.log(n * math.pi) for n in nu]
        constant = np.array(norm) + np.log(2.0 / (self.below + self.above))
        determinant = np.linalg.slogdet(self.factor)[1]
        return np.asarray((each + constant).sum(axis=1) - determinant)


def t_quantile(p: Array, nu: Array) -> Array:
    """Quantiles of Student's t, by column."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(nu, p))


def degrees_of_freedom(d: int, n_root: int) -> Array:
    """By coordinate of x."""
    tails = NU_ROOT if n_root <= WIDE else max(25.0, float(n_root))
    return np.concatenate([np.full(d, NU_THETA), np.full(n_root, tails)])


def at_origin(transport: Transport) -> SplitT:
    """The first proposal: x around 0, the scales of theta's coordinates probed on both sides."""
    d, size = transport.d, transport.size
    below, above = np.ones(size), np.ones(size)
    below[d:] = above[d:] = 1.0 if transport.n_root > WIDE else 1.05
    if d:
        ends = np.zeros((2 * len(PROBES) * d, size))
        row = 0
        for sign in (-1.0, 1.0):
            for probe in PROBES:
                for j in range(d):
                    ends[row, j] = sign * probe
                    row += 1
        value = transport.log_density(np.concatenate([np.zeros((1, size)), ends]))[0]
        drops = np.maximum(np.nan_to_num(value[0] - value[1:], nan=1e6, posinf=1e6), 1e-3)
        drops = drops.reshape(2, len(PROBES), d)
        probes = np.array(PROBES)[:, None]
        scales = np.clip((probes / np.sqrt(2 * drops)).max(axis=1), *SCALES)
        below[:d], above[:d] = scales[0], scales[1]
    return SplitT(np.zeros(size), np.eye(size), below, above, degrees_of_freedom(d, transport.n_root))


def refitted(x: Array, weights: Array, nu: Array, effective: float) -> SplitT:
    """The proposal that matches a weighted sample: mean, covariance (its diagonal where draws are few), both sides."""
    size = x.shape[1]
    mean = weights @ x
    deviation = x - mean
    if effective < 10.0 * size:  # too few for correlations: location and spread, the less the fewer
        trust = min(1.0, effective / max(100.0, size))
        centre = trust * mean
        factor = np.diag(np.clip(np.sqrt(weights @ deviation**2), 0.7, 2.0) ** trust)
        deviation = x - centre
    else:
        centre = mean
        covariance = (weights[:, None] * deviation).T @ deviation
        factor = np.linalg.cholesky(covariance + 1e-10 * np.trace(covariance) / size * np.eye(size))
    z = np.asarray(np.linalg.solve(factor, deviation.T).T, dtype=float)
    return SplitT(centre, factor, *side_scales(z, weights, SCALES), nu)
