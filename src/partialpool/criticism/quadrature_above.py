r"""The factor above the leaf: its effects integrated out of each left-out row as well, where its groups are small.

Take a factor of the root with one effect a group whose groups hold whole groups of the leaf (schools of classes;
subjects, where every row has an effect of its own). At a node without that effect u, unit B of row i has

.. math:: p(y_i \mid y_{-i}) = \frac{\int e^{l(u)} du}{\int e^{l(u)} / p(y_i \mid y_{g \setminus i}, u) du}, \qquad
          l(u) = \log p(u) + \sum_{g \in B} \log p(y_g \mid u),

since the other units cancel: the harmonic mean of the row's density under what all rows say of u. The leaf's pass
(`algebra.leafloo`) gives the integrand's parts at one u of every unit at once. A row that is all its unit has has
e^l's own integral.

*Rule.* Without the row u may be known much worse than with it, and elsewhere. So the rule is not Gauss-Hermite's, which
fails past twice the variance, but the trapezoidal rule in x where ``u = c + s sinh(b x) / b``, c and s those of a
parabola through l near its mode: its error falls exponentially, and its tails reach far (13 nodes: 1e-4 for a normal
density of 0.6 to 9 times the variance, around as far as this moves it; 31 nodes: 64 times).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.quadrature_leaf import ENOUGH, Leaf, Places, largest_change

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
#: (root, groups of the leaf, rows wanted or None) -> by group log p(y_g), by row log p(y_i | the others), of a copy.
Pass = Callable[[Places, Ints, bool], tuple[Array, Array, Array]]

#: Nodes, their distance, and b.
RULES: tuple[tuple[int, float, float], ...] = ((13, 1.0, 0.35), (19, 0.85, 0.38), (31, 0.65, 0.38))
#: Passes that the search for the mode takes, about; passes over the leaf that it may take.
SEARCH, MOST_STEPS = 9, 10
#: Rows of a unit above which its effect stays at its draws: one row says little of it.
MOST_ROWS = 40


def sinh_rule(rule: tuple[int, float, float]) -> tuple[Array, Array]:
    """Nodes (T,) around 0, in standard deviations, and the log weights of a density there.

    Examples
    --------
    >>> x, log_weight = sinh_rule(RULES[0])
    >>> for sd in (0.8, 1.0, 3.0):
    ...     print(round(float((np.exp(log_weight - x**2 / sd**2 / 2) / sd).sum() / np.sqrt(2 * np.pi)), 4))
    1.0
    1.0
    1.0
    """
    count, step, bend = rule
    x = (np.arange(count) - (count - 1) / 2) * step
    return np.sinh(bend * x) / bend, np.log(np.cosh(bend * x) * step)


class Above:
    """The finest factor above the leaf, and the units of it that are small.

    Attributes
    ----------
    factor : int or None
        None where there is none with one effect a group.
    units : (G,) by group of the leaf its unit; -1 where the unit is large, or there is no factor.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        model, rows = leaf.model, leaf.rows
        self.units = np.full(rows.n_groups, -1, dtype=np.int64)
        self.factor: int | None = None
        self.rule = RULES[0]
        found = [f for f in range(len(model.design.factors)) if self._holds(f)]
        if not leaf.q or not found:
            return
        self.factor = max(found, key=lambda f: model.latent.sizes[f])
        codes = model.design.factors[self.factor].codes[rows.order].astype(np.int64)
        units = codes[rows.pointer[:-1]]
        self.sizes = np.bincount(codes)
        self.units = np.where(self.sizes[units] <= MOST_ROWS, units, -1)
        self.first = len(model.coefficients.names) + model.latent.root_at(self.factor)
        self.at = model.hyperparameters.lam_at[self.factor]

    def _holds(self, factor: int) -> bool:
        """Whether every group of the leaf lies inside one group of a factor that has one effect a group."""
        leaf, layout = self.leaf, self.leaf.model.latent
        if factor == leaf.leaf or leaf.leaf is None or layout.widths[factor] != 1:
            return False
        codes = leaf.model.design.factors[factor].codes[leaf.rows.order]
        first = codes[leaf.rows.pointer[:-1]]
        return bool((np.repeat(first, np.diff(leaf.rows.pointer)) == codes).all())

    @property
    def passes(self) -> int:
        """How many passes over the leaf one node takes."""
        return self.rule[0] + SEARCH

    def settle(self, evaluate: Callable[[], Array]) -> float:
        """Refine the rule until densities no longer change; returns the largest change left."""
        coarse, change = evaluate(), 0.0
        for finer in RULES[1:]:
            before, self.rule = self.rule, finer
            fine = evaluate()
            change = largest_change(coarse, fine)
            if change <= ENOUGH:
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
        columns = self.first + units
        theta = places.theta
        sd = self.leaf.model.hyperparameters.factors(theta)[:, self.at]

        def at(t: Array, some: Ints, rows: bool) -> tuple[Array, Array, Array]:
            """l (U, K) at t (U, K), of some of the units; and what the leaf says of their rows."""
            root = places.root.copy()
            root[:, columns[some]] = sd[:, None] * t.T
            mine = np.flatnonzero(np.isin(unit_of, some))
            of_groups, left, copies = whole(Places(root, places.lam, places.constants, theta), groups[mine], rows)
            starts = np.searchsorted(unit_of[mine], some)
            value = np.add.reduceat(of_groups, starts, axis=0) - 0.5 * t * t - 0.5 * np.log(2 * np.pi)
            return value, left, copies

        centre, scale = _parabolas(lambda t, some: at(t, some, False)[0], len(units), len(theta))
        nodes, log_weight = sinh_rule(self.rule)
        every = np.arange(len(units))
        total = np.full((len(units), len(theta)), -np.inf)
        rest = np.full((len(of_row), len(theta)), -np.inf)
        copy = rest.copy()
        for x, weight in zip(nodes, log_weight, strict=True):
            value, left, copies = at(centre + scale * x, every, True)
            value += weight + np.log(scale)
            np.logaddexp(total, value, out=total)
            own = value[of_row]
            possible = np.isfinite(left)
            np.logaddexp(rest, np.where(possible, own - np.where(possible, left, 0.0), -np.inf), out=rest)
            np.logaddexp(copy, own + copies, out=copy)
        alone = self.sizes[units[of_row]] == 1
        rest[alone] = 0.0
        return total[of_row] - rest, copy - total[of_row]


def _parabolas(value: Callable[[Array, Ints], Array], units: int, nodes: int) -> tuple[Array, Array]:
    """Centre and scale (U, K) of functions of one number, near their highest: no more than a rule needs."""
    centre, scale = np.zeros((units, nodes)), np.full((units, nodes), 0.7)
    left = np.arange(units)
    for _ in range(MOST_STEPS):
        c, s = centre[left], scale[left]
        low, middle, high = (value(c + j * s, left) for j in (-1, 0, 1))
        with np.errstate(all="ignore"):
            slope, bend = (high - low) / (2 * s), (high - 2 * middle + low) / s**2
            good = np.isfinite(slope) & np.isfinite(bend)
            bend = np.where(good, np.minimum(bend, -0.3), -1.0)
            step = np.where(good, np.clip(-slope / bend, -3 * s, 3 * s), np.where(np.isfinite(high), s, -s))
        new = np.where(good, np.clip(1 / np.sqrt(-bend), s / 4, 2 * s), s)
        centre[left], scale[left] = c + step, new
        far = (np.abs(step) > 0.4 * new) | (np.abs(np.log(new / s)) > 0.3)
        left = left[far.any(axis=1)]
        if not left.size:
            break
    return centre, scale
