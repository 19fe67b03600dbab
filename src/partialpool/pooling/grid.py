"""The posterior of every unit by numerical integration, for any family and any mixture of components."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.unitgrid import CDF, DRAWS, NODES, QUANTILES, grid_pass
from partialpool.algebra.unitlikelihood import BINOMIAL, NORMAL_DATA
from partialpool.algebra.unitpass import POINT, component_moments, legendre
from partialpool.pooling.shapes import FAMILIES, to_link, to_natural

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Units times components that are held at a time.
CHUNK = 200_000
#: Numbers drawn at a time.
DRAWN = 500_000
#: Quantiles that are kept once computed.
KEPT = (0.05, 0.95)


class _Part:
    """Units first..last: their components' shares and moments, (C, J')."""

    def __init__(self, posterior: GridPosterior, units: Ints) -> None:
        self.y, self.size = posterior.y[units], posterior.size[units]
        self.location = posterior.locations(units)
        value, mean, variance, theta, square = component_moments(
            posterior.family, self.y, self.size, posterior.kind, self.location, posterior.spread, posterior.nu,
            posterior.threads,
        )  # fmt: skip
        self.logs, self.mean, self.variance, self.theta, self.square = value, mean, variance, theta, square
        first, node = posterior.first, posterior.rank_of_node
        weighted = value + posterior.log_weight[:, None]
        top = np.maximum.reduceat(weighted, first, axis=0)
        impossible = ~np.isfinite(top)
        weighted = np.exp(weighted - np.where(impossible, 0.0, top)[node])
        if impossible.any():  # no component of the node can give such data: its shares stay
            weighted = np.where(impossible[node], np.exp(posterior.log_weight)[:, None], weighted)
        self.share = weighted / np.add.reduceat(weighted, first, axis=0)[node]

    def transposed(self, omega: Array) -> tuple[Array, Array, Array, Array]:
        """What `grid_pass` reads, (J', C)."""
        sd = np.sqrt(self.variance)
        first, second, third, fourth = (np.array(a.T, order="C") for a in (omega, self.logs, self.mean, sd))
        return first, second, third, fourth


class GridPosterior:
    """Posterior of every unit under a population made of components, mixed over nodes of the hyperparameters.

    Given node k, a unit's posterior is proportional to ``f(y_j | eta)`` times the node's mixture of components. The
    moments, and the weights of components, come from the quadrature of `algebra.unitpass`; distributions from panels
    on the link scale (`algebra.unitgrid`), made anew for a chunk of units whenever they are asked for.

    Parameters
    ----------
    family : int
        0: y is N(eta, size^2); 1: Binomial(size, expit(eta)); 2: Poisson(size exp(eta)).
    y, size : array (J,)
        The data; standard errors, trials, or exposures.
    node_weights : array (K,)
        Of the nodes; they sum to 1.
    node : array (C,)
        The node of each component. Each node has at least one.
    weight : array (C,)
        Share of each component in its node.
    kind, location, spread, nu : arrays (C,)
        As for `algebra.unitpass.component_integrals`; location may be (C, J).
    population_variance : array (K,), optional
        Variance of eta in the population given the node, for `shrinkage`, which compares the posterior's with it;
        without it, `shrinkage` compares the posterior's with the unit's own information.
    threads : int
        No result depends on their number.

    Examples
    --------
    >>> posterior = GridPosterior(0, [1.0], [1.0], [1.0], [0], [1.0], [0], [0.0], [1.0], [1.0])
    >>> posterior.quantiles([0.5]).round(6).tolist(), posterior.shrinkage().tolist()
    ([[0.5]], [0.5])
    """

    def __init__(
        self, family: int, y: ArrayLike, size: ArrayLike, node_weights: ArrayLike, node: ArrayLike, weight: ArrayLike,
        kind: ArrayLike, location: ArrayLike, spread: ArrayLike, nu: ArrayLike,
        population_variance: ArrayLike | None = None, threads: int = 1,
    ) -> None:  # fmt: skip
        self.family, self.threads = int(family), max(1, int(threads))
        self.y, self.size = np.array(y, dtype=np.float64), np.array(size, dtype=np.float64)
        self.node_weights = np.array(node_weights, dtype=np.float64)
        order = np.argsort(np.asarray(node), kind="stable")  # a node's components side by side
        self.rank_of_node = np.asarray(node, dtype=np.int64)[order]
        self.first = np.searchsorted(self.rank_of_node, np.arange(self.node_weights.size))
        self.kind = np.asarray(kind, dtype=np.int64)[order]
        shape = self.kind.shape
        self.spread, self.nu = (np.array(np.broadcast_to(v, shape), dtype=np.float64)[order] for v in (spread, nu))
        places = np.asarray(location, dtype=np.float64)
        # Places that differ between units are not copied: they may be large
        self._location: Array = places[order] if places.ndim == 1 else places
        self._order: Ints | None = None if places.ndim == 1 else order
        with np.errstate(divide="ignore"):
            self.log_weight = np.log(np.asarray(weight, dtype=np.float64)[order])
        self._variance = None if population_variance is None else np.array(population_variance, dtype=np.float64)

    @property
    def n_units(self) -> int:
        return self.y.size

    def locations(self, units: Ints) -> Array:
        """Places of the components (C, J') for these units, or (C,)."""
        if self._order is None:
            return self._location
        return np.asarray(self._location[self._order[:, None], units])

    def _units(self, units: Ints | None) -> Ints:
        return np.arange(self.n_units) if units is None else np.asarray(units, dtype=np.int64)

    def _chunks(self, units: Ints, most: int) -> Iterator[slice]:
        """Fixed chunks of units: results may not depend on threads."""
        step = max(1, min(most, CHUNK // self.kind.size))
        return (slice(begin, begin + step) for begin in range(0, units.size, step))

    def _theta(self, eta: Array) -> Array:
        """The natural scale."""
        return to_natural(FAMILIES[self.family], eta)

    def _link(self, theta: Array) -> Array:
        """The link scale; beyond the ends of the natural scale, its infinite ends."""
        low, high = ((-np.inf, np.inf), (0.0, 1.0), (0.0, np.inf))[self.family]
        return to_link(FAMILIES[self.family], np.clip(theta, low, high))

    def _pass(
        self, task: int, part: _Part, asked: Array, group: Ints, pointer: Ints, omega: Array, normals: Array
    ) -> Array:
        """`grid_pass` over one part, in pieces for the threads: (J', A)."""
        x, weights = legendre(NODES)
        location = part.location if part.location.ndim == 2 else np.broadcast_to(part.location[:, None], omega.shape)
        shares, logs, means, sds = part.transposed(omega)
        places = np.array(location.T, order="C")
        asked, normals = np.array(asked, order="C"), np.array(normals, order="C")
        out = np.empty(asked.shape)

        def work(low: int, high: int) -> None:
            rows = slice(low, high)
            grid_pass(
                task, self.family, part.y[rows], part.size[rows], self.kind, places[rows], self.spread, self.nu,
                pointer, shares[rows], logs[rows], means[rows], sds[rows], x, weights, _projection(), asked[rows],
                group, normals[rows], out[rows],
            )  # fmt: skip

        _spread_over_threads(work, asked.shape[0], self.threads)
        return out

    def _mixed(self, task: int, asked: Array, units: Ints) -> Array:
        """Quantiles or cumulative probabilities of the posterior mixed over the nodes: asked (J', A)."""
        out = np.empty(asked.shape)
        pointer = np.array([0, self.kind.size])
        group = np.zeros(asked.shape[1], dtype=np.int64)
        for rows in self._chunks(units, 1 << 20):
            part = _Part(self, units[rows])
            omega = part.share * self.node_weights[self.rank_of_node][:, None]
            own = np.array(asked[rows])
            out[rows] = self._pass(task, part, own, group, pointer, omega, np.zeros((own.shape[0], own.shape[1])))
        return out

    @cached_property
    def _summary(self) -> tuple[Array, Array, Array]:
        """Mean and sd of theta, and the shrinkage: (J,) each."""
        mean, sd, shrinkage = (np.empty(self.n_units) for _ in range(3))
        every = self._units(None)
        for rows in self._chunks(every, 1 << 20):
            part = _Part(self, every[rows])
            omega = part.share * self.node_weights[self.rank_of_node][:, None]
            mean[rows] = (omega * part.theta).sum(axis=0)
            within = np.maximum(part.square - part.theta**2, 0.0)
            sd[rows] = np.sqrt((omega * (within + (part.theta - mean[rows]) ** 2)).sum(axis=0))
            shrinkage[rows] = self._shrinkage_of(part, mean[rows])
        return mean, sd, shrinkage

    def _shrinkage_of(self, part: _Part, theta: Array) -> Array:
        """See `shrinkage`: (J',), at the posterior means of theta."""
        own = self._within_nodes(part.share, part.mean, part.variance)
        if self._variance is None:
            information = self._information(part.size, theta)
            with np.errstate(invalid="ignore"):
                weight = np.where(information > 0.0, information * (self.node_weights @ own), 0.0)
            return np.asarray(1.0 - np.minimum(weight, 1.0))
        population = self._variance[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(population > 0.0, own / population, 1.0)
        ratio = np.where(np.isinf(population) & np.isinf(own), 1.0, ratio)
        return np.asarray(self.node_weights @ np.clip(ratio, 0.0, 1.0))

    def _information(self, size: Array, theta: Array) -> Array:
        """A unit's own information about eta, at theta: (J',)."""
        if self.family == NORMAL_DATA:
            return 1.0 / size**2
        return size * theta * (1.0 - theta) if self.family == BINOMIAL else size * theta

    def _within_nodes(self, share: Array, mean: Array, variance: Array) -> Array:
        """Variance of each node's mixture (K, J'); a point at an infinite place makes it infinite."""
        used = share > 0.0
        safe = np.where(used, mean, 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            centre = np.add.reduceat(share * safe, self.first, axis=0)[self.rank_of_node]
            spread = np.where(used, share * (variance + (safe - centre) ** 2), 0.0)
            total = np.add.reduceat(spread, self.first, axis=0)
        return np.where(np.isnan(total), np.inf, total)

    def moments(self) -> tuple[Array, Array]:
        """Posterior mean and sd of every theta: (J,), (J,)."""
        return self._summary[0].copy(), self._summary[1].copy()

    def shrinkage(self) -> Array:
        """How far each unit's posterior mean stays with the population rather than its own estimate: (J,), 0 to 1.

        Where the variance of eta in the population was given: the posterior's against it, averaged over the nodes.
        Else 1 less the unit's own information about eta, at its posterior mean, times the variance of eta given the
        data and the node, averaged over the nodes: for normal data, the derivative of the posterior mean in y given
        the node. With normal data and a normal population both are the same.
        """
        return self._summary[2].copy()

    @cached_property
    def _kept(self) -> Array:
        levels = np.broadcast_to(np.array(KEPT), (self.n_units, len(KEPT)))
        return np.ascontiguousarray(self._theta(self._mixed(QUANTILES, levels, self._units(None))).T)

    def quantiles(self, probabilities: ArrayLike, units: Ints | None = None) -> Array:
        """Quantiles (Q, J') of theta at probabilities (Q,) between 0 and 1, both excluded."""
        levels = np.atleast_1d(np.asarray(probabilities, dtype=np.float64))
        if units is None and tuple(levels.tolist()) == KEPT:
            return self._kept.copy()
        rows = self._units(units)
        asked = np.broadcast_to(levels, (rows.size, levels.size))
        return np.ascontiguousarray(self._theta(self._mixed(QUANTILES, asked, rows)).T)

    def cdf(self, x: float | Array, units: Ints | None = None) -> Array:
        """P(theta_j <= x), (J',); x is one number or one a unit."""
        rows = self._units(units)
        theta = np.broadcast_to(np.asarray(x, dtype=np.float64), rows.shape)
        out = self._mixed(CDF, np.array(self._link(theta))[:, None], rows)[:, 0]
        if self.family == BINOMIAL:
            out = np.where(theta >= 1.0, 1.0, out)
        return np.where(theta < 0.0, 0.0, out) if self.family != NORMAL_DATA else out

    def atom(self, x: float | None = None, units: Ints | None = None) -> Array:
        """P(theta_j = x), (J',): the weight of the components that are points at x, or anywhere where x is None."""
        rows = self._units(units)
        out = np.zeros(rows.size)
        points = np.flatnonzero(~(self.spread > POINT))
        if points.size == 0:
            return out
        for part_of in self._chunks(rows, 1 << 20):
            part = _Part(self, rows[part_of])
            places = part.location if part.location.ndim == 2 else part.location[:, None]
            near = 1e-12 * max(abs(x or 0.0), np.finfo(float).tiny)
            there = np.array(True) if x is None else np.abs(self._theta(places[points]) - x) <= near
            omega = part.share[points] * self.node_weights[self.rank_of_node[points]][:, None]
            out[part_of] = (omega * there).sum(axis=0)
        return out

    def draws(self, nodes: Ints, rng: np.random.Generator, units: Ints | None = None) -> Array:
        """One draw of every unit's theta given each of the nodes (n,): (n, J')."""
        rows = self._units(units)
        used, group = np.unique(np.asarray(nodes, dtype=np.int64), return_inverse=True)
        out = np.empty((group.size, rows.size))
        ends = np.append(self.first[1:], self.kind.size)
        kept = np.concatenate([np.arange(self.first[k], ends[k]) for k in used])
        pointer = np.concatenate([[0], np.cumsum(ends[used] - self.first[used])]).astype(np.int64)
        few = self if kept.size == self.kind.size else self._restricted(used, kept)
        for part_of in self._chunks(rows, max(1, DRAWN // max(group.size, 1))):
            part = _Part(few, rows[part_of])
            shape = (part.y.size, group.size)
            uniforms, normals = rng.random(shape), rng.standard_normal(shape)
            eta = few._pass(DRAWS, part, uniforms, group.astype(np.int64), pointer, part.share, normals)
            out[:, part_of] = self._theta(eta).T
        return out

    def _restricted(self, used: Ints, kept: Ints) -> GridPosterior:
        """The same with these nodes only."""
        nodes = np.searchsorted(used, self.rank_of_node[kept])
        location = self._location[kept] if self._order is None else self._location[self._order[kept]]
        return GridPosterior(
            self.family, self.y, self.size, np.full(used.size, 1.0 / used.size), nodes, np.exp(self.log_weight[kept]),
            self.kind[kept], location, self.spread[kept], self.nu[kept], None, self.threads,
        )  # fmt: skip


@lru_cache(maxsize=1)
def _projection() -> Array:
    """Coefficients of Legendre polynomials (n, n) from the values at the nodes of a panel."""
    x, weights = legendre(NODES)
    rows = [np.ones(NODES), x.copy()]
    for k in range(1, NODES - 1):
        rows.append(((2 * k + 1) * x * rows[k] - k * rows[k - 1]) / (k + 1))
    return np.array([(k + 0.5) * weights * row for k, row in enumerate(rows)])


def _spread_over_threads(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call work(low, high) over all of `count` rows, each written by one thread alone."""
    pieces = max(1, min(threads, count // 4))
    if pieces == 1:
        work(0, count)
        return
    edges = np.linspace(0, count, pieces + 1).astype(int).tolist()
    with ThreadPoolExecutor(pieces) as pool:
        list(pool.map(lambda edge: work(*edge), pairwise(edges)))
