r"""Whether groups' effects go with covariates: weighted regression of what the data say, and permutations of groups.

At hyperparameters theta, Sigma the covariance of a group's q effects u_j, the posterior mean ``m_j`` and covariance
``V_j`` hold what the data say of group j: under exchangeability ``Cov(m_j) = Sigma - V_j``. For a single factor and
own estimates with covariance ``S_j`` that is ``m_j = Sigma W_j u^{own}_j`` with

.. math:: W_j = (\Sigma + S_j)^{-1} = \Sigma^{-1} (\Sigma - V_j) \Sigma^{-1}, \qquad s_j = \Sigma^{-1} m_j
   = W_j u^{own}_j,

so that generalised least squares of u^own on covariates ``g_j = (1, x_j)``,

.. math:: \hat B = A^{-1} \sum_j g_j \otimes s_j, \qquad A = \sum_j g_j g_j' \otimes W_j,

needs nothing but m_j and V_j, whatever the family; nothing is divided by what the data do not tell. It estimates the
relation without the pull to 0 that u_j itself has under an exchangeable prior.

Groups differ in W_j (large ones tell more), so that neither m_j nor u^own_j can be permuted: their spread goes with
size even where effects do not. The whitened ``e_j = W_j^{-1/2} s_j`` are all N(0, I) under exchangeability, whatever
the size; these are permuted among groups, and put back with each group's own ``W_j^{1/2}``. In directions of which a
group's rows tell nothing e_j is drawn anew from N(0, 1), which changes no statistic of the data. This is a permutation
test of residuals under the null (Freedman and Lane 1983, Journal of Business & Economic Statistics 1, 292-298; Winkler
and others 2014, NeuroImage 92, 381-397), exact up to the error of theta. p-values are
``(1 + count) / (1 + permutations)``, adjusted for several covariates and terms by the smallest p over them in each
permutation (Westfall and Young 1993).

What predictors of the model took from the effects is not put back: for a covariate that goes with one of them the
estimate lies nearer 0 than its coefficient beside that predictor would, and p is cautious.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Share of the prior's variance below which the data tell nothing of a direction.
NOTHING = 1e-6
#: Numbers, permutations times effects, of one batch.
BATCH_NUMBERS = 2_000_000


@dataclass(frozen=True, eq=False)
class Whitened:
    """What the data say of the groups: root (J, q, q), of which W is root root', and noise (J, q), e."""

    root: Array
    noise: Array

    @property
    def weights(self) -> Array:
        """W (J, q, q)."""
        return np.asarray(self.root @ np.swapaxes(self.root, 1, 2))

    @property
    def scores(self) -> Array:
        """s (J, q)."""
        return np.asarray(np.einsum("jab,jb->ja", self.root, self.noise))


def whiten(means: Array, covariances: Array, prior: Array, rng: np.random.Generator) -> Whitened:
    """`means` (J, q) and `covariances` (J, q, q) of the effects' posterior, `prior` (q, q) their covariance Sigma.

    Examples
    --------
    >>> own, sampling = np.array([[1.0], [-3.0]]), np.array([1.0, 8.0])
    >>> shrunk = own / (1 + sampling)[:, None]
    >>> found = whiten(shrunk, (sampling / (1 + sampling))[:, None, None], np.eye(1), np.random.default_rng(1))
    >>> np.round(found.noise.ravel() * np.sqrt(1 + sampling), 6).tolist()
    [1.0, -3.0]
    """
    scale = np.sqrt(np.diagonal(prior))
    inverse = np.linalg.inv(prior / np.outer(scale, scale))
    told = (prior - covariances) / np.outer(scale, scale)
    weights = inverse @ ((told + np.swapaxes(told, 1, 2)) / 2) @ inverse
    scores = means / scale @ inverse
    values, vectors = np.linalg.eigh(weights)
    known = values > NOTHING
    roots = np.sqrt(np.where(known, values, 0.0))
    inside = np.einsum("jab,ja->jb", vectors, scores) / np.where(known, roots, 1.0)
    inside = np.where(known, inside, rng.standard_normal(inside.shape))
    root = (vectors * roots[:, None, :]) @ np.swapaxes(vectors, 1, 2) / scale[:, None]
    # Whitened in units of the prior's sds, so that the units of a predictor play no part.
    return Whitened(root, np.einsum("jab,jb->ja", vectors, inside))


@dataclass(frozen=True, eq=False)
class Relation:
    """The regression on one covariate with c contrasts.

    design : (J, 1 + c). inverse : (1 + c, q, 1 + c, q), the inverse of A. precision : (q, c, c), by term the inverse of
    the covariance of its contrasts' coefficients.
    """

    design: Array
    inverse: Array
    precision: Array

    def estimates(self, scores: Array) -> Array:
        """(1 + c, q) from scores (J, q)."""
        return np.asarray(np.einsum("aibj,bj->ai", self.inverse, self.design.T @ scores))

    @property
    def errors(self) -> Array:
        """Standard errors (c, q)."""
        return np.asarray(np.sqrt(np.maximum(np.einsum("aiai->ai", self.inverse)[1:], 0.0)))

    def statistics(self, scores: Array) -> Array:
        """Wald's chi-squared of each term's contrasts together, (q,)."""
        return np.asarray(self.of_sums((self.design.T @ scores)[None])[0])

    def of_sums(self, sums: Array) -> Array:
        """The same (B, q) from ``sum_j g_j s_j'``, (B, 1 + c, q)."""
        found = np.einsum("aibj,nbj->nai", self.inverse[1:], sums)
        return np.asarray(np.einsum("nat,tab,nbt->nt", found, self.precision, found))

    def map_of(self, root: Array) -> Array:
        """The matrix (J q, (1 + c) q) that takes whitened numbers to ``sum_j g_j s_j'``."""
        groups, q, _ = root.shape
        return np.asarray(np.einsum("ja,jtb->jbat", self.design, root)).reshape(groups * q, -1)


def relation(contrasts: Array, weights: Array) -> Relation:
    """The regression on the contrasts (J, c) of a covariate, given W (J, q, q)."""
    design = np.column_stack([np.ones(len(contrasts)), contrasts])
    size, q = design.shape[1], weights.shape[1]
    information = np.einsum("ja,jb,jik->aibk", design, design, weights).reshape(size * q, size * q)
    scale = np.sqrt(np.maximum(np.diagonal(information), np.finfo(float).tiny))
    inverse = np.linalg.pinv(information / np.outer(scale, scale), rcond=1e-10, hermitian=True)
    inverse = (inverse / np.outer(scale, scale)).reshape(size, q, size, q)
    own = [np.linalg.pinv(inverse[1:, term, 1:, term], rcond=1e-10, hermitian=True) for term in range(q)]
    return Relation(design, inverse, np.array(own))


def permuted(
    found: Whitened, relations: Sequence[Relation], permutations: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """p-values (covariates, q), each alone and adjusted for all of them."""
    groups, q = found.noise.shape
    statistics = np.empty((permutations + 1, len(relations), q))
    maps = [own.map_of(found.root) for own in relations]
    size = max(1, BATCH_NUMBERS // (groups * q))
    for start in range(0, permutations + 1, size):
        rows = range(start, min(start + size, permutations + 1))
        orders = [rng.permutation(groups) if row else np.arange(groups) for row in rows]
        noise = found.noise[np.array(orders)].reshape(len(rows), -1)
        for k, (own, taken) in enumerate(zip(relations, maps, strict=True)):
            statistics[rows.start : rows.stop, k] = own.of_sums((noise @ taken).reshape(len(rows), -1, q))
    flat = statistics.reshape(permutations + 1, -1)
    p = upper_ranks(flat)
    smallest = np.sort(p.min(axis=1))
    adjusted = np.searchsorted(smallest, p[0] * (1 + 1e-12), side="right") / (permutations + 1)
    shape = statistics.shape[1:]
    return p[0].reshape(shape), adjusted.reshape(shape)


def upper_ranks(values: Array) -> Array:
    """By column, the share of values that are at least as large, (rows, columns).

    Examples
    --------
    >>> upper_ranks(np.array([[3.0], [1.0], [3.0], [2.0]])).ravel().tolist()
    [0.5, 1.0, 0.5, 0.75]
    """
    out = np.empty(values.shape)
    for column in range(values.shape[1]):
        own = np.sort(values[:, column])
        slack = 1e-9 * np.maximum(np.abs(values[:, column]), 1e-12)
        out[:, column] = 1 - np.searchsorted(own, values[:, column] - slack, side="left") / len(own)
    return out
