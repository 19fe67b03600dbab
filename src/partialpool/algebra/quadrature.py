r"""Nodes of adaptive Gauss-Hermite quadrature over the effects of one group.

For standardised effects v with log integrand h(v), mode m and negative Hessian ``H = L L'`` there,

.. math:: \int e^{h(v)} (2\pi)^{-q/2} dv \approx \frac{1}{|L|} \sum_k \omega_k \exp\{h(m + L^{-T} x_k) + x_k'x_k / 2\},

with the nodes x and weights omega of the standard normal distribution (Naylor and Smith, 1982; Pinheiro and Bates,
1995). One node is Laplace's approximation.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Nodes a dimension that are tried in turn, by dimension of a group's effects.
LADDERS: dict[int, tuple[int, ...]] = {
    0: (1,),
    1: (8, 16, 24, 32, 48, 64, 96, 144, 200),
    2: (5, 7, 11, 15, 21, 31, 45),
    3: (5, 7, 9, 13, 17, 21),
}


#: Numbers that vector instructions take at once; what is left over goes one by one.
LANES = 8
#: Log of a weight, against the largest, below which a node of a product is left out.
NEGLIGIBLE = np.log(1e-32)


def ladder(dimension: int) -> tuple[int, ...]:
    """Numbers of nodes a dimension, in growing order; a group of more than three effects is left to Laplace."""
    return LADDERS.get(dimension, (1,))


@lru_cache(maxsize=64)
def _rule(nodes: int) -> tuple[Array, Array]:
    """Nodes (n,), by Golub and Welsch (1969), and the log of their weights.

    The weight of x is ``1 / (n psi(x)^2)``, psi the orthonormal polynomial of degree n - 1. The recurrence is scaled as
    it goes: weights far out are below the smallest number, and yet needed in full precision, for an integrand with a
    long tail is multiplied there by ``exp(x'x / 2)``.
    """
    off = np.sqrt(np.arange(1.0, nodes))
    x = np.linalg.eigvalsh(np.diag(off, 1) + np.diag(off, -1))
    x = 0.5 * (x - x[::-1])
    before, own, log_scale = np.zeros(nodes), np.ones(nodes), np.zeros(nodes)
    for k in range(nodes - 1):
        before, own = own, (x * own - np.sqrt(k) * before) / np.sqrt(k + 1)
        size = np.maximum(np.abs(before), np.abs(own))
        before, own, log_scale = before / size, own / size, log_scale + np.log(size)
    return x, -np.log(nodes) - 2 * (np.log(np.abs(own)) + log_scale)


@lru_cache(maxsize=64)
def gauss_hermite(nodes: int, dimension: int) -> tuple[Array, Array]:
    """Product rule of the standard normal: nodes (M, dimension), and ``log weight + x'x / 2`` (M,).

    Of products, nodes whose weight is below 1e-32 of the largest are left out; others of weight 0 make the number a
    multiple of 8.

    Examples
    --------
    >>> x, shifted = gauss_hermite(3, 1)
    >>> x.ravel().round(3).tolist()
    [-1.732, 0.0, 1.732, 0.0, 0.0, 0.0, 0.0, 0.0]
    >>> float(np.exp(shifted - 0.5 * (x**2).sum(axis=1)).sum().round(12))
    1.0
    """
    if dimension == 0 or nodes == 1:
        return np.zeros((1, dimension)), np.zeros(1)
    x, log_weight = _rule(nodes)
    if dimension == 1:
        return padded(x[:, None].copy(), log_weight + 0.5 * x * x)
    grids = np.meshgrid(*[np.arange(nodes)] * dimension, indexing="ij")
    picks = np.stack([grid.ravel() for grid in grids], axis=1)
    log_weights = log_weight[picks].sum(axis=1)
    kept = log_weights > log_weights.max() + NEGLIGIBLE
    points = np.ascontiguousarray(x[picks[kept]])
    shifted = log_weights[kept] + 0.5 * (points**2).sum(axis=1)
    return padded(points, shifted)


def padded(points: Array, shifted: Array) -> tuple[Array, Array]:
    """Nodes of weight 0 added up to a multiple of the lanes of a vector instruction: the rest would go one by one."""
    missing = -len(points) % LANES
    points = np.concatenate([points, np.zeros((missing, points.shape[1]))])
    return points, np.concatenate([shifted, np.full(missing, -np.inf)])
