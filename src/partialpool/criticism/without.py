"""The coefficients of a Gaussian model given theta, with all rows and without those of one group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.cholesky import LeafRoot
from partialpool.criticism.reweight import Quadratic, downdated
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.model import Model

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class Given(NamedTuple):
    """Public coefficients at nodes: mean and sd (K, p), and M (K, p, p) with covariance M M'."""

    mean: Array
    sd: Array
    half: Array


class Coefficients:
    """Conditional moments of the coefficients at nodes of theta.

    Parameters
    ----------
    model : Model
        Exact, with its rows.
    theta : (K, d)
    independent : bool
        Whether the groups that are left out are independent of each other given theta and the coefficients.
    """

    def __init__(self, model: Model, theta: Array, independent: bool) -> None:
        self.model, self.theta, self.independent = model, theta, independent
        marginal = GaussianMarginal(model)
        self.scale = marginal.scales(theta)
        self.proper = marginal.proper
        evaluation = marginal.value(theta)[1]
        self.whole = Quadratic(evaluation.mean, evaluation.low)
        self.mean, self.sd, _ = self._public(self.whole, slice(None))

    def without(self, rows: Ints, nodes: Ints) -> Given:
        """At some of the nodes, without these rows."""
        if not self.whole.mean.shape[1]:
            none = np.empty((len(nodes), 0))
            return Given(none, none, np.empty((len(nodes), 0, 0)))
        found = self._downdated(rows, nodes) if self.independent else self._complement(rows, nodes)
        return self._public(found, nodes)

    def _downdated(self, rows: Ints, nodes: Ints) -> Quadratic:
        """By taking away what the group's own rows know, Q_g less the prior that they were given."""
        own = self._evaluated(rows, nodes, np.ones_like(self.proper))
        whole = Quadratic(self.whole.mean[nodes], self.whole.low[nodes])
        precision, linear = _natural(whole)
        group, pull = _natural(own)
        group = group - np.eye(group.shape[1])
        return downdated(whole, precision - group, linear - pull)[1]

    def _complement(self, rows: Ints, nodes: Ints) -> Quadratic:
        kept = np.ones(self.model.design.n_rows, dtype=bool)
        kept[rows] = False
        return self._evaluated(np.flatnonzero(kept), nodes, self.proper)

    def _evaluated(self, rows: Ints, nodes: Ints, proper: Array) -> Quadratic:
        """b given theta from some rows alone, with a standard normal prior where `proper` is 1."""
        part = self.model.take_rows(rows)
        part.__dict__["coefficients"] = self.model.coefficients
        marginal = GaussianMarginal(part)
        marginal.proper = proper
        marginal.engine = LeafRoot(marginal.statistics.cross, proper)
        evaluation = marginal.value(self.theta[nodes])[1]
        return Quadratic(evaluation.mean, evaluation.low)

    def _public(self, own: Quadratic, nodes: slice | Ints) -> Given:
        coefficients = self.model.coefficients
        scale, to_public = self.scale[nodes], coefficients.public_matrix()
        gamma = np.asarray(coefficients.mean) + scale * own.mean
        if not gamma.shape[1]:
            return Given(gamma, gamma, np.empty((len(gamma), 0, 0)))
        solved = np.linalg.solve(own.low, scale[:, :, None] * to_public.T)
        half: Array = np.asarray(np.swapaxes(solved, 1, 2), dtype=np.float64)
        return Given(np.asarray(gamma @ to_public.T), np.sqrt(np.einsum("kij,kij->ki", half, half)), half)


def coefficients_without(model: Model, factor: int, theta: Array) -> Coefficients:
    """What `influence` asks of a Gaussian model for the groups of a factor."""
    return Coefficients(model, theta, _independent(model, factor))


def _independent(model: Model, factor: int) -> bool:
    """Whether every other factor is nested in this one: its groups then share nothing but theta and coefficients."""
    codes = model.design.factors[factor].codes
    for f, other in enumerate(model.design.factors):
        if f == factor:
            continue
        first = np.full(len(other.labels), -1, dtype=np.int64)
        first[other.codes] = codes
        if (first[other.codes] != codes).any():
            return False
    return True


def _natural(own: Quadratic) -> tuple[Array, Array]:
    """Q and Q m."""
    precision = own.low @ np.swapaxes(own.low, 1, 2)
    return precision, np.einsum("kij,kj->ki", precision, own.mean)
