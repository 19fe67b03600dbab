r"""The covariance of one group-level term: unconstrained parameters <-> factor <-> (sd, cor).

A term with q columns has group effects ``u_g = Lambda z_g`` with ``z_g ~ N(0, I)`` and

.. math:: \Lambda = \mathrm{diag}(sd)\, C, \qquad C C' = \text{the correlation matrix},

C lower triangular. The unconstrained parameters of the term are ``log sd`` (q of them) and, where the effects are
correlated, ``x = atanh(z)`` of the q (q - 1) / 2 canonical partial correlations z, row by row. Row i of C is

.. math:: C_{ij} = z_{ij}\, r_{ij}, \quad r_{i0} = 1, \quad
   r_{i,j+1} = r_{ij} \sqrt{1 - z_{ij}^2}, \quad C_{ii} = r_{ii}.

Under an LKJ(eta) prior the partial correlations are independent, ``(z_ij + 1) / 2 ~ Beta(b_j, b_j)`` with
``b_j = eta + (q - 2 - j) / 2`` (Lewandowski, Kurowicka and Joe, 2009, Generating random correlation matrices based on
vines and extended onion method, section 2), so that prior and Jacobian cost nothing.

All functions take parameters of shape (K, ...): one row a node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TermCovariance:
    """The covariance of the effects of one group-level term.

    Parameters
    ----------
    size : int
        Number of columns of the term, q.
    correlated : bool
        Whether the q effects of a group are correlated (unstructured) or independent (diagonal).
    """

    size: int
    correlated: bool

    @property
    def n_correlations(self) -> int:
        return self.size * (self.size - 1) // 2 if self.correlated else 0

    @property
    def n_parameters(self) -> int:
        return self.size + self.n_correlations

    def pairs(self) -> list[tuple[int, int]]:
        """The (row, column) of each correlation parameter, in their order."""
        return [(i, j) for i in range(1, self.size) for j in range(i)] if self.n_correlations else []

    def correlation_factor(self, parameters: Array) -> Array:
        """C, of shape (K, q, q), from the unconstrained parameters (K, n_parameters)."""
        count, q = parameters.shape[0], self.size
        factor = np.zeros((count, q, q))
        factor[:, range(q), range(q)] = 1.0
        if not self.n_correlations:
            return factor
        x = parameters[:, q:]
        z = np.tanh(x)
        root = 1.0 / np.cosh(np.clip(x, -350.0, 350.0))  # sqrt(1 - z^2) without cancellation
        position = 0
        for i in range(1, q):
            remaining = np.ones(count)
            for j in range(i):
                factor[:, i, j] = z[:, position] * remaining
                remaining = remaining * root[:, position]
                position += 1
            factor[:, i, i] = remaining
        return factor

    def factor(self, parameters: Array) -> Array:
        """Lambda = diag(sd) C, of shape (K, q, q)."""
        sd = np.exp(parameters[:, : self.size])
        return sd[:, :, None] * self.correlation_factor(parameters)

    def sds(self, parameters: Array) -> Array:
        """Standard deviations, of shape (K, q)."""
        return np.exp(parameters[:, : self.size])

    def correlations(self, parameters: Array) -> Array:
        """Correlations, of shape (K, n_correlations), in the order of `pairs`."""
        factor = self.correlation_factor(parameters)
        columns = [np.einsum("kj,kj->k", factor[:, i], factor[:, j]) for i, j in self.pairs()]
        return np.column_stack(columns) if columns else np.empty((parameters.shape[0], 0))

    def gradient(self, parameters: Array, excess: Array) -> Array:
        r"""Gradient of a log marginal likelihood in the parameters.

        Parameters
        ----------
        parameters : ndarray of shape (K, n_parameters)
        excess : ndarray of shape (K, q, q)
            ``sum over groups of E[z z' | y, theta] - I``: by Fisher's identity
            :math:`d \log p = \mathrm{tr}(\text{excess}\, \Lambda^{-1} d\Lambda)`.

        Returns
        -------
        ndarray of shape (K, n_parameters)

        Notes
        -----
        Written with C alone, since ``Lambda^-1 dLambda = C^-1 (d log sd) C`` for a change of log sd and ``C^-1 dC``
        for one of C: nothing divides by an sd, so that it is finite as an sd goes to 0.
        """
        q = self.size
        factor = self.correlation_factor(parameters)
        # solve(C', excess) = C^-T excess, the derivative in C; and C excess C^-1, whose diagonal is that in log sd
        in_factor = np.asarray(np.linalg.solve(np.swapaxes(factor, 1, 2), excess), dtype=float)
        in_log_sd = np.einsum("kij,kij->ki", factor, in_factor)
        out = np.empty((parameters.shape[0], self.n_parameters))
        out[:, :q] = in_log_sd
        if self.n_correlations:
            out[:, q:] = self._partial_correlation_gradient(parameters[:, q:], in_factor)
        return out

    def _partial_correlation_gradient(self, x: Array, in_factor: Array) -> Array:
        """Reverse pass through the recursion for the rows of C."""
        z = np.tanh(x)
        root = 1.0 / np.cosh(np.clip(x, -350.0, 350.0))
        out = np.empty(x.shape)
        end = 0
        for i in range(1, self.size):
            start, end = end, end + i
            remaining = np.ones((x.shape[0], i + 1))
            for j in range(i):
                remaining[:, j + 1] = remaining[:, j] * root[:, start + j]
            in_remaining = in_factor[:, i, i].copy()
            for j in range(i - 1, -1, -1):
                t = start + j
                # dz/dx = root^2 and d root/dx = -z root
                out[:, t] = (
                    in_factor[:, i, j] * remaining[:, j] * root[:, t] ** 2
                    - in_remaining * remaining[:, j] * z[:, t] * root[:, t]
                )
                in_remaining = in_factor[:, i, j] * z[:, t] + in_remaining * root[:, t]
        return out

    def lkj_log_density(self, parameters: Array, eta: float) -> tuple[Array, Array]:
        """Log density of the correlation parameters under LKJ(eta), Jacobian included, and its gradient.

        Returns arrays of shape (K,) and (K, n_correlations).
        """
        x = parameters[:, self.size :]
        shape = np.array([eta + (self.size - 2 - j) / 2 for _, j in self.pairs()])
        log_norm = sum((2 * b - 1) * math.log(2) + 2 * math.lgamma(b) - math.lgamma(2 * b) for b in shape.tolist())
        magnitude = np.abs(x)
        log_one_minus_z2 = 2 * (math.log(2) - magnitude - np.log1p(np.exp(-2 * magnitude)))
        return log_one_minus_z2 @ shape - log_norm, -2 * shape * np.tanh(x)

    def parameters_from(self, sd: Array, correlation: Array | None) -> Array:
        """The unconstrained parameters of given sds (q,) and correlation matrix (q, q); sds of 0 give -inf."""
        with np.errstate(divide="ignore"):
            log_sd = np.log(np.asarray(sd, dtype=float))
        if not self.n_correlations:
            return np.asarray(log_sd)
        factor = np.linalg.cholesky(np.eye(self.size) if correlation is None else correlation)
        x = []
        for i in range(1, self.size):
            remaining = 1.0
            for j in range(i):
                z = float(np.clip(factor[i, j] / remaining, -1 + 1e-15, 1 - 1e-15))
                x.append(math.atanh(z))
                remaining *= math.sqrt(1 - z * z)
        return np.asarray(np.concatenate([log_sd, x]))
