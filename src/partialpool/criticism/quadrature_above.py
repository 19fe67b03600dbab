r"""The factor above the leaf: its effects integrated out of each left-out row as well, where its groups are small.

Take a factor of the root with one or two effects a group, and whose groups hold whole groups of the leaf (schools of
classes; subjects, where every row has an effect of its own). At a node without that effect u, unit B of row i has

.. math:: p(y_i \mid y_{-i}) = \frac{\int e^{l(u)} du}{\int e^{l(u)} / p(y_i \mid y_{g \setminus i}, u) du}, \qquad
          l(u) = \log p(u) + \sum_{g \in B} \log p(y_g \mid u),

since the other units cancel: the harmonic mean of the row's density under what all rows say of u. The leaf's pass
(`algebra.leafloo`) gives the integrand's parts at one u of every unit at once. For a row that is all its unit has the
denominator is 1.

*Rule.* Without the row u may be known much worse than with it. So the rule is not Gauss-Hermite's, which fails beyond
twice the variance, but the trapezoidal rule in x, where ``u = c + s sinh(b x) / b`` (with two effects a product of two
of them), c and s those of a parabola through l near its mode. Its error falls exponentially, and its tails reach far:
13 nodes give a normal density of 0.6 to 9 times the variance, around a mean as far off as a row can move it, to 1e-4;
31 nodes one of 64 times the variance. What a finer rule changes is measured (`Above.settle`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.quadrature_leaf import Leaf, Places, largest_change

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
#: (nodes, groups of the leaf, whether of rows too) -> by group log p(y_g), by row log p(y_i | the others), of a copy.
Pass = Callable[[Places, Ints, bool], tuple[Array, Array, Array]]

#: By effects a group the nodes along each, their distance, and b.
RULES: dict[int, tuple[tuple[int, float, float], ...]] = {
    1: ((13, 1.0, 0.35), (19, 0.85, 0.38), (31, 0.65, 0.38)),
    2: ((9, 1.3, 0.35), (13, 1.0, 0.35), (19, 0.85, 0.38)),
}
#: Passes that the search for the mode takes, about, by effects a group; parabolas that it may take.
SEARCH, MOST_STEPS = {1: 9, 2: 24}, 10
#: Change of a log density under a finer rule that counts as none: the largest of any, far from their mean's.
LITTLE = 0.006
#: Rows of a unit above which its effect stays at its draws: one row says little of it.
MOST_ROWS = 40


def sinh_rule(rule: tuple[int, float, float], dimension: int = 1) -> tuple[Array, Array]:
    """Nodes (T, dimension) around 0, in standard deviations, and the log weights of a density there.

    Examples
    --------
    >>> x, log_weight = sinh_rule(RULES[1][0])
    >>> for sd in (0.8, 1.0, 3.0):
    ...     print(round(float((np.exp(log_weight - x[:, 0] ** 2 / sd**2 / 2) / sd).sum() / np.sqrt(2 * np.pi)), 4))
    1.0
    1.0
    1.0
    """
    count, step, bend = rule
    x = (np.arange(count) - (count - 1) / 2) * step
    nodes, weights = np.sinh(bend * x) / bend, np.log(np.cosh(bend * x) * step)
    return (
        np.array(list(itertools.product(nodes, repeat=dimension))),
        np.array([sum(some) for some in itertools.product(weights, repeat=dimension)]),
    )


class Above:
    """The finest factor above the leaf, and the units of it that are small.

    Attributes
    ----------
    factor : int or None
        None where there is none with one or two effects a group.
    units : (G,) by group of the leaf its unit; -1 where the unit is large, or there is no factor.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        model, rows = leaf.model, leaf.rows
        self.units = np.full(rows.n_groups, -1, dtype=np.int64)
        self.factor: int | None = None
        self.rule, self.width = RULES[1][0], 1
        found = [f for f in range(len(model.design.factors)) if self._holds(f)]
        if not leaf.q or not found:
            return
        self.factor = max(found, key=lambda f: model.latent.sizes[f])
        self.width = model.latent.widths[self.factor]
        self.rule = RULES[self.width][0]
        codes = model.design.factors[self.factor].codes[rows.order].astype(np.int64)
        units = codes[rows.pointer[:-1]]
        self.sizes = np.bincount(codes)
        self.units = np.where(self.sizes[units] <= MOST_ROWS, units, -1)
        self.first = len(model.coefficients.names) + model.latent.root_at(self.factor)
        self.at = model.hyperparameters.lam_at[self.factor]

    def _holds(self, factor: int) -> bool:
        """Whether every group of the leaf lies inside one group of a factor of one or two effects a group."""
        leaf, layout = self.leaf, self.leaf.model.latent
        if factor == leaf.leaf or leaf.leaf is None or layout.widths[factor] not in RULES:
            return False
        codes = leaf.model.design.factors[factor].codes[leaf.rows.order]
        first = codes[leaf.rows.pointer[:-1]]
        return bool((np.repeat(first, np.diff(leaf.rows.pointer)) == codes).all())

    @property
    def passes(self) -> int:
        """How many passes over the leaf one node takes."""
        return int(self.rule[0] ** self.width) + SEARCH[self.width]

    def settle(self, evaluate: Callable[[], Array]) -> float:
        """Refine the rule until densities no longer change; returns the largest change left."""
        coarse, change = evaluate(), 0.0
        for finer in RULES[self.width][1:]:
            before, self.rule = self.rule, finer
            fine = evaluate()
            change = largest_change(coarse, fine)
            if change <= LITTLE:
                self.rule = before
                break
            coarse = fine
        return change

    def integrate(self, places: Places, groups: Ints, of_row: Ints, whole: Pass) -> tuple[Array, Array]:
        """Log densities (rows, K) of rows given all others, and of copies of them given all.

        Parameters
        ----------
        places : Places
            The nodes; the effects of the units in them are not used.
        groups : (W,)
            All groups of the leaf of some units, sorted by unit. of_row : (rows,) by row wanted, the place of its unit.
        whole : the pass over the leaf.
        """
        units, unit_of = np.unique(self.units[groups], return_inverse=True)
        width, theta = self.width, places.theta
        columns = self.first + units[:, None] * width + np.arange(width)
        lam = self.leaf.model.hyperparameters.factors(theta)[:, self.at : self.at + width**2]
        lam = lam.reshape(-1, width, width)

        def at(t: Array, some: Ints, rows: bool) -> tuple[Array, Array, Array]:
            """l (U, K) at t (U, K, width), of some of the units; and what the leaf says of their rows."""
            root = places.root.copy()
            root[:, columns[some]] = np.einsum("kij,ukj->kui", lam, t)
            mine = np.flatnonzero(np.isin(unit_of, some))
            of_groups, left, copies = whole(Places(root, places.lam, places.constants, theta), groups[mine], rows)
            starts = np.searchsorted(unit_of[mine], some)
            prior = 0.5 * (t * t).sum(axis=2) + 0.5 * width * np.log(2 * np.pi)
            return np.add.reduceat(of_groups, starts, axis=0) - prior, left, copies

        centre, axes, log_size = _parabolas(lambda t, some: at(t, some, False)[0], (len(units), len(theta), width))
        every = np.arange(len(units))
        total = np.full((len(units), len(theta)), -np.inf)
        rest = np.full((len(of_row), len(theta)), -np.inf)
        copy = rest.copy()
        for x, weight in zip(*sinh_rule(self.rule, width), strict=True):
            value, left, copies = at(centre + axes @ x, every, True)
            value += weight + log_size
            np.logaddexp(total, value, out=total)
            own = value[of_row]
            possible = np.isfinite(left)
            np.logaddexp(rest, np.where(possible, own - np.where(possible, left, 0.0), -np.inf), out=rest)
            np.logaddexp(copy, own + copies, out=copy)
        rest[self.sizes[units[of_row]] == 1] = 0.0
        with np.errstate(invalid="ignore"):
            return total[of_row] - rest, copy - total[of_row]


def _parabolas(value: Callable[[Array, Ints], Array], shape: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Centres (U, K, w), axes (U, K, w, w) and the logs of their determinants, as a rule needs them.

    Of the parabolas near the highest places of functions of w numbers, (U, K) of them; `value` is theirs, of some U.
    """
    width, identity = shape[2], np.eye(shape[2])
    centre, axes = np.zeros(shape), np.broadcast_to(0.7 * identity, (*shape, width)).copy()
    log_size, searching = np.full(shape[:2], width * np.log(0.7)), np.ones(shape[:2], dtype=bool)
    for _ in range(MOST_STEPS):
        left = np.flatnonzero(searching.any(axis=1))
        if not left.size:
            break
        c, a, on = centre[left], axes[left], searching[left]
        slope, bend = _derivatives(lambda x, c=c, a=a, left=left: value(c + a @ x, left), width)  # type: ignore[misc]
        good: NDArray[np.bool_] = np.isfinite(slope.sum(axis=-1) + bend.sum(axis=(-1, -2)))
        values, vectors = np.linalg.eigh(np.where(good[..., None, None], bend, identity))
        values = np.clip(values, 0.25, 16.0)
        step = np.clip(np.einsum("ukij,uki->ukj", vectors, slope) / values, -3.0, 3.0)
        change = np.maximum(np.abs(step) * np.sqrt(values) / 0.4, np.abs(np.log(values)) / 0.6)
        far = ~good | (change.max(axis=-1) > 1.0)
        # where a value is impossible: nearer to the population's centre
        c = np.where(good[..., None], c + np.einsum("ukij,ukj->uki", a @ vectors, step), 0.5 * c)
        a = np.where(good[..., None, None], a @ vectors / np.sqrt(values)[..., None, :], 0.5 * a)
        added = np.where(good, -0.5 * np.log(values).sum(axis=-1), width * np.log(0.5))
        centre[left] = np.where(on[..., None], c, centre[left])
        axes[left] = np.where(on[..., None, None], a, axes[left])
        log_size[left] += np.where(on, added, 0.0)  # each node's search ends by itself, whatever is searched with it
        searching[left] = on & far
    return centre, axes, log_size


def _derivatives(value: Callable[[Array], Array], width: int) -> tuple[Array, Array]:
    """Slope (..., w) and minus the second derivatives (..., w, w) at 0, from differences of steps of 1."""
    one = np.eye(width)
    middle, high, low = value(np.zeros(width)), [value(x) for x in one], [value(-x) for x in one]
    with np.errstate(invalid="ignore"):
        slope = np.stack([(a - b) / 2 for a, b in zip(high, low, strict=True)], axis=-1)
        bend = np.empty((*middle.shape, width, width))
        for i in range(width):
            bend[..., i, i] = 2 * middle - high[i] - low[i]
            for j in range(i):
                cross = high[i] + high[j] - middle - value(one[i] + one[j])
                bend[..., i, j] = bend[..., j, i] = cross
    return slope, bend
