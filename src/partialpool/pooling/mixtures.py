r"""Posteriors of normal estimates under populations made of normals and points: mixtures of normals, in closed form.

Given a node k of the hyperparameters a component c with mean m and variance s^2 has posterior probability proportional
to :math:`\pi_c N(y_j; m, s^2 + s_j^2)`, and within it theta is normal as ever. All components of all nodes make one
mixture, with weights that differ from unit to unit.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from partialpool.algebra.mixture import mixture_summary
from partialpool.pooling.posteriors import TABLE, InPieces
from partialpool.pooling.shapes import Components

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Quantiles closer than this (in posterior sds) to a point mass lie on it.
SNAP = 3e-6


class NormalMixturePosterior(InPieces):
    """See the module.

    Parameters
    ----------
    y, se : (J,); weights : (K,) of the nodes; components : all of kind normal.
    """

    def __init__(self, y: Array, se: Array, weights: Array, components: Components, threads: int = 1) -> None:
        self.y, self.variance_own = y, se**2
        self.node_weights, self.components = weights, components
        self.threads, self.n_units = threads, y.size

    def _given(self, piece: Ints | slice) -> tuple[Array, Array, Array]:
        """Weights, means and variances (C, J') of the components of the units' posteriors."""
        c, y, v = self.components, self.y[piece], self.variance_own[piece]
        location = c.location[:, None] if c.location.ndim == 1 else c.location[:, piece]
        prior = c.spread[:, None] ** 2
        total = prior + v
        with np.errstate(divide="ignore"):
            logs = np.log(c.weight)[:, None] - 0.5 * (np.log(total) + (y - location) ** 2 / total)
        weights = np.empty_like(logs)
        count = self.node_weights.size
        if len(logs) == count:
            weights[:] = self.node_weights[:, None]
        else:
            for k, share in enumerate(self.node_weights):
                own = self._own[k]
                relative = np.exp(logs[own] - logs[own].max(axis=0))
                weights[own] = share * relative / relative.sum(axis=0)
        keep = prior / total
        return weights, location + keep * (y - location), np.broadcast_to(keep * v, weights.shape)

    @cached_property
    def _own(self) -> list[Ints]:
        """The components of each node."""
        return [np.flatnonzero(self.components.node == k) for k in range(self.node_weights.size)]

    @property
    def _width(self) -> int:
        return 4 * self.components.weight.size

    @cached_property
    def _moments(self) -> Array:
        def work(piece: Ints | slice) -> Array:
            weights, means, variances = self._given(piece)
            centre = (weights * means).sum(axis=0)
            return np.stack([centre, np.sqrt((weights * (variances + (means - centre) ** 2)).sum(axis=0))])

        return self.gather(None, self._width, work)

    @cached_property
    def _table(self) -> Array:
        return self._quantiles(TABLE, None)

    def _quantiles(self, probabilities: Array, units: Ints | None) -> Array:
        points = np.unique(self.components.location[self.components.spread == 0])

        def work(piece: Ints | slice) -> Array:
            weights, means, variances = self._given(piece)
            _, sd, found = mixture_summary(weights, means, np.sqrt(variances), probabilities)
            if 0 < points.size <= 64:
                nearest = points[np.abs(found[..., None] - points).argmin(axis=-1)]
                found = np.where(np.abs(found - nearest) <= SNAP * sd, nearest, found)
            return found

        return self.gather(units, self._width, work)

    def moments(self) -> tuple[Array, Array]:
        """See `UnitPosterior`."""
        return self._moments[0], self._moments[1]

    def quantiles(self, probabilities: Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        if probabilities.shape == TABLE.shape and np.array_equal(probabilities, TABLE):
            return self._table if units is None else self._table[:, units]
        return self._quantiles(probabilities, units)

    def cdf(self, x: float | Array, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        places = np.broadcast_to(x, (self.n_units if units is None else len(units),))

        def work(part: slice) -> Array:
            weights, means, variances = self._given(part if units is None else units[part])
            apart = places[part] - means
            with np.errstate(divide="ignore", invalid="ignore"):
                z = np.where(variances > 0, apart / np.sqrt(variances), np.where(apart >= 0, np.inf, -np.inf))
            return np.asarray((weights * ndtr(z)).sum(axis=0))

        return self.over_parts(units, self._width, work)

    def atom(self, x: float | None = None, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        flat = self.components.spread == 0
        if not flat.any():
            return np.zeros(self.n_units if units is None else len(units))

        def work(piece: Ints | slice) -> Array:
            weights, means, _ = self._given(piece)
            return np.asarray((weights[flat] * ((means[flat] == x) | (x is None))).sum(axis=0))

        return self.gather(units, self._width, work)

    def draws(self, nodes: Ints, rng: np.random.Generator, units: Ints | None = None) -> Array:
        """See `UnitPosterior`."""
        count = self.n_units if units is None else len(units)
        out = np.empty((len(nodes), count))
        at = 0
        for part in self.parts(units, self._width + 2 * len(nodes)):
            weights, means, variances = self._given(part if units is None else units[part])
            sds, width = np.sqrt(variances), weights.shape[1]
            for k in np.unique(nodes):
                rows, own = np.flatnonzero(nodes == k), self._own[k]
                below = np.cumsum(weights[own], axis=0)
                uniform = rng.random((rows.size, width)) * below[-1]
                picked = (
                    (uniform[:, None, :] >= below[None, :-1, :]).sum(axis=1)
                    if own.size > 1
                    else np.zeros_like(uniform, int)
                )
                columns = np.arange(width)
                z = rng.standard_normal((rows.size, width))
                out[rows[:, None], at + columns] = means[own][picked, columns] + sds[own][picked, columns] * z
            at += width
        return out

    def shrinkage(self) -> Array:
        """See `UnitPosterior`: the mean over components of se^2 / (spread^2 + se^2), by their posterior weights.

        Around one mode m the posterior mean is m + (1 - shrinkage) (y - m), as for one normal.
        """
        prior = self.components.spread[:, None] ** 2

        def work(piece: Ints | slice) -> Array:
            weights = self._given(piece)[0]
            own = self.variance_own[piece]
            return np.asarray((weights * (own / (prior + own))).sum(axis=0))

        return self.gather(None, self._width, work)
