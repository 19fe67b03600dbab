r"""Where one evaluation of log p(y | theta) is dear: an interpolation whose error is measured.

Log density, conditional mean and conditional covariance of the coefficients are smooth in theta. A few hundred exact
evaluations at quasi-random nodes in whitened coordinates x give, by weighted least squares, a cubic polynomial for
each; nodes held out measure how good it is. An error of e in the log density (root mean square over the posterior,
after its mean) moves the mean of any quantity by at most e of its posterior sds, as the Monte Carlo error of 1 / e^2
independent draws does: the effective sample size that is reported counts it so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEGREE = 3
#: Nodes lie in a normal distribution of this sd in whitened coordinates.
SPREAD = 1.35
#: Root mean square error of the log density that is accepted: that of 1,000 independent draws.
TOLERANCE = 0.03


def features(x: Array, degree: int = DEGREE) -> Array:
    """All monomials of x (K, d) up to `degree`, (K, number of them)."""
    count, d = x.shape
    columns = [np.ones(count)]
    for order in range(1, degree + 1):
        columns += [
            np.prod(x[:, combination], axis=1) for combination in combinations_with_replacement(range(d), order)
        ]
    return np.column_stack(columns)


def n_features(d: int, degree: int = DEGREE) -> int:
    """How many monomials there are."""
    return int(features(np.zeros((1, d)), degree).shape[1])


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Polynomials for the log density and the coefficients' moments, and their measured errors.

    radius : distance of the farthest node; nothing is extrapolated beyond.
    error : root mean square error of the log density on held-out nodes, weighted by the posterior.
    moment_error : the largest error of a conditional mean, in conditional sds, and of a log conditional sd.
    """

    log_density_terms: Array
    moment_terms: Array
    radius: float
    error: float
    moment_error: float
    degree: int = DEGREE

    def log_density(self, x: Array) -> Array:
        """The log density at x (K, d); -inf beyond the nodes."""
        inside = np.linalg.norm(x, axis=1) <= self.radius
        out = np.full(x.shape[0], -np.inf)
        out[inside] = features(x[inside], self.degree) @ self.log_density_terms
        return out

    def moments(self, x: Array, p: int) -> tuple[Array, Array]:
        """Conditional means (K, p) and Cholesky factors (K, p, p) of the coefficients' conditional covariance."""
        flat = features(x, self.degree) @ self.moment_terms
        factor = np.zeros((x.shape[0], p, p))
        rows, columns = np.tril_indices(p)
        factor[:, rows, columns] = flat[:, p:]
        diagonal = np.arange(p)
        factor[:, diagonal, diagonal] = np.exp(factor[:, diagonal, diagonal])
        return flat[:, :p], factor


def pack_moments(mean: Array, factor: Array) -> Array:
    """Means and covariance factors (log diagonals) as the columns that are interpolated."""
    p = mean.shape[1]
    rows, columns = np.tril_indices(p)
    flat = factor[:, rows, columns].copy()
    on_diagonal = rows == columns
    flat[:, on_diagonal] = np.log(flat[:, on_diagonal])
    return np.concatenate([mean, flat], axis=1)


def fit_surrogate(x: Array, log_density: Array, moments: Array, p: int, degree: int = DEGREE) -> Surrogate:
    """Fit on two thirds of the nodes, measure on the others, then fit again on all.

    Parameters
    ----------
    x : (K, d) nodes, drawn from Normal(0, SPREAD^2) in each coordinate.
    log_density : (K,) exact values. moments : (K, .) from `pack_moments`.
    degree : of the polynomials.
    """
    relative = log_density - log_density.max()
    importance = relative + 0.5 * (x * x).sum(axis=1) / SPREAD**2
    posterior = np.exp(importance - importance.max())
    root_weight = np.exp(0.25 * relative) + 1e-3  # tails count less, but still bend the polynomial the right way
    held_out = np.arange(x.shape[0]) % 3 == 2
    design = features(x, degree)
    targets = np.column_stack([relative, moments])

    def solve(rows: NDArray[np.bool_]) -> Array:
        weight = root_weight[rows][:, None]
        return np.asarray(np.linalg.lstsq(design[rows] * weight, targets[rows] * weight, rcond=None)[0])

    terms = solve(~held_out)
    miss = design[held_out] @ terms - targets[held_out]
    weight = posterior[held_out] / posterior[held_out].sum()
    miss_density = miss[:, 0] - weight @ miss[:, 0]
    error = float(np.sqrt(weight @ miss_density**2))
    moment_error = _moment_error(miss[:, 1:], moments[held_out], weight, p)
    terms = solve(np.ones(x.shape[0], dtype=bool))
    terms[0, 0] += log_density.max()
    return Surrogate(terms[:, 0], terms[:, 1:], float(np.linalg.norm(x, axis=1).max()), error, moment_error, degree)


def _moment_error(miss: Array, exact: Array, weight: Array, p: int) -> float:
    """Root mean square errors in conditional sds (means) and log sds (diagonal of the factor); the largest."""
    if not p:
        return 0.0
    rows, columns = np.tril_indices(p)
    factor = np.zeros((exact.shape[0], p, p))
    factor[:, rows, columns] = exact[:, p:]
    factor[:, range(p), range(p)] = np.exp(factor[:, range(p), range(p)])
    sd = np.sqrt((factor**2).sum(axis=2))
    off_diagonal = np.zeros_like(factor)
    off_diagonal[:, rows, columns] = miss[:, p:]
    off_diagonal[:, range(p), range(p)] *= factor[:, range(p), range(p)]
    spread = np.sqrt((off_diagonal**2).sum(axis=2)) / sd
    mean = miss[:, :p] / sd
    return float(np.sqrt(np.maximum(weight @ mean**2, weight @ spread**2).max()))
