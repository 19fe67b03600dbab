r"""The proposal for theta: a split Student-t around the mode, in whitened coordinates.

With x = L^{-1} (theta - m), each coordinate has density

.. math:: q(x) = \frac{2}{s_- + s_+}\, t_4(x / s_{\pm}),

the scale s taken from the side of x (Geweke, 1989, Bayesian inference in econometric models using Monte Carlo
integration, section 4). The tails of t_4 are heavier than those of any log sd, log sigma or atanh correlation under a
proper prior, which are exponential, so that importance weights stay bounded; the two scales follow the long left tail
of the log of a small sd. Four degrees of freedom, since the quantile then has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.sobol import student4_log_density, student4_quantile

Array = NDArray[np.float64]

#: Distances (in whitened units) at which the density is probed on both sides of the mode.
PROBES = (1.5, 3.0)
SCALE_LIMITS = (0.6, 6.0)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A split Student-t with 4 degrees of freedom; centre (d,), factor L (d, d), scales below and above (d,)."""

    centre: Array
    factor: Array
    below: Array
    above: Array

    def points(self, uniforms: Array) -> tuple[Array, Array]:
        """theta (K, d) and its log density (K,) from uniforms (K, d)."""
        half, scale = halves(uniforms, self.below, self.above)
        x = scale * student4_quantile(np.clip(half, 1e-300, 1 - 1e-16))
        return self.centre + x @ self.factor.T, self._log_density(x)

    def whitened(self, theta: Array) -> Array:
        """x (K, d) from theta (K, d)."""
        return np.asarray(np.linalg.solve(self.factor, (theta - self.centre).T).T)

    def from_whitened(self, x: Array) -> Array:
        """theta (K, d) from x (K, d)."""
        return self.centre + x @ self.factor.T

    def log_density(self, theta: Array) -> Array:
        """Log density (K,) at theta (K, d)."""
        return self._log_density(self.whitened(theta))

    def _log_density(self, x: Array) -> Array:
        scale = np.where(x < 0, self.below, self.above)
        each = student4_log_density(x / scale) + np.log(2.0 / (self.below + self.above))
        return np.asarray(each.sum(axis=1) - np.log(np.abs(np.diag(self.factor))).sum())


def halves(uniforms: Array, below: Array, above: Array) -> tuple[Array, Array]:
    """Of a distribution with scale `below` on the left of 0 and `above` on the right: quantiles, and which scale."""
    share = below / (below + above)
    lower = uniforms < share
    half = np.where(lower, 0.5 * uniforms / share, 0.5 + 0.5 * (uniforms - share) / (1 - share))
    return half, np.where(lower, below, above)


def side_scales(x: Array, weights: Array, limits: tuple[float, float]) -> tuple[Array, Array]:
    """Root mean squares (d,) of a weighted sample x (K, d) below and above 0, kept within limits."""
    scales = []
    for side in (x < 0, x >= 0):
        mass = (weights[:, None] * side).sum(axis=0)
        second = (weights[:, None] * side * x * x).sum(axis=0)
        scales.append(np.clip(np.sqrt(second / np.maximum(mass, 1e-6)), *limits))
    return scales[0], scales[1]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several proposals in equal shares; the weights of its points are bounded by those of each part.

    (Owen and Zhou, 2000, Safe and effective importance sampling.)
    """

    parts: tuple[Proposal, ...]

    def points(self, uniforms: Array) -> tuple[Array, Array]:
        """theta (K, d) and its log density (K,); the first uniform also picks the part."""
        share = uniforms[:, 0] * len(self.parts)
        part_of = np.minimum(share.astype(int), len(self.parts) - 1)
        theta = np.empty_like(uniforms)
        for number, part in enumerate(self.parts):
            own = part_of == number
            stretched = uniforms[own].copy()
            stretched[:, 0] = share[own] - number
            theta[own] = part.points(stretched)[0]
        logs = np.stack([part.log_density(theta) for part in self.parts])
        return theta, np.asarray(np.logaddexp.reduce(logs, axis=0) - np.log(len(self.parts)))


def at_mode(mode: Array, negative_hessian: Array, value: float, log_density: Callable[[Array], Array]) -> Proposal:
    """The proposal at a mode, its scales probed along each axis on both sides.

    Parameters
    ----------
    mode : (d,)
    negative_hessian : (d, d); directions with too little curvature are given a standard deviation of 3.
    value : log density at the mode.
    log_density : callable on (K, d).
    """
    eigenvalues, vectors = np.linalg.eigh(negative_hessian)
    eigenvalues = np.where(eigenvalues > 1 / 9, eigenvalues, np.maximum(np.abs(eigenvalues), 1 / 9))
    factor = np.linalg.cholesky((vectors / eigenvalues) @ vectors.T)
    d = mode.size
    offsets = np.concatenate([sign * probe * np.eye(d) for sign in (-1, 1) for probe in PROBES])
    drops = value - log_density(mode + offsets @ factor.T)
    probes = np.array(PROBES)[:, None]
    scales = []
    for side in (drops[: len(PROBES) * d], drops[len(PROBES) * d :]):
        drop = np.maximum(np.nan_to_num(side.reshape(len(PROBES), d), nan=np.inf, posinf=1e6), 1e-3)
        scales.append(np.clip((probes / np.sqrt(2 * drop)).max(axis=0), *SCALE_LIMITS))
    return Proposal(mode, factor, scales[0], scales[1])


def from_weighted(theta: Array, weights: Array) -> Proposal:
    """The proposal that matches a weighted sample: its mean and covariance, and each side's own spread."""
    centre = weights @ theta
    deviation = theta - centre
    covariance = (weights[:, None] * deviation).T @ deviation
    ridge = 1e-8 * np.trace(covariance) / theta.shape[1] + 1e-12
    factor = np.linalg.cholesky(covariance + ridge * np.eye(theta.shape[1]))
    x = np.asarray(np.linalg.solve(factor, deviation.T).T, dtype=float)
    return Proposal(centre, factor, *side_scales(x, weights, SCALE_LIMITS))
