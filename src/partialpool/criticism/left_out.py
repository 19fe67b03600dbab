r"""Predicting what was left out, from the fit of everything: the interface and the driver of `loo` and `logo`.

With nodes s of the posterior of everything (hyperparameters; where a family needs them coefficients and effects too),
and unit i a row or a group, Bayes' rule gives

.. math:: p(y_i | y_{-i}) = \frac{1}{E_{s | y}\left[ 1 / p(y_i | y_{-i}, s) \right]},

where :math:`p(y_i | y_{-i}, s)` integrates the group effects over their conditional distribution given the *other* rows
(`Conditional`). Conditioned on the effects themselves the weights :math:`1 / p` have heavy tails wherever a row says
much about its own effect; integrated, they depend on what all rows say of s together, and their tails are light.
The weights are Pareto-smoothed (`algebra.psis`): the k of their tail says whether to trust them.

*Error.* With smoothed weights w (summing to 1) and densities p at the nodes the estimate is
:math:`\hat p = \sum_s w_s p_s`, and a node moves its logarithm by :math:`w_s (p_s / \hat p - 1)`: the Monte Carlo
standard error of a unit's log density is the root of the sum of squares. The error of the total is the root of the sum
over the nodes of the squared sum of what a node moves (units share the nodes, so that their errors do not add up as if
they were independent).

*Refits.* Where k is above 0.7 or the error above 0.03 the unit is really left out: the model is fitted to the other
rows (under the same priors and in the same columns), and the nodes of both fits together give the value by bridge
sampling (`criticism.bridge`). Where many errors are above 0.03 and their k are sound, the posterior of everything is
first computed with more nodes.

*In sample.* The `Conditional` also knows :math:`p(y_i^* = y_i | y, s)`, the density of a copy of the unit, given
everything. The sum of its logs less that of the units left out is what `p_eff` reports: how many parameters the fit
spends on the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.psis import in_sample, leave_out
from partialpool.criticism.nodes import Nodes, effective_number, nodes_of_fit
from partialpool.criticism.refits import better_known, refit_units
from partialpool.errors import ModelError
from partialpool.inference.base import GOOD_K
from partialpool.inference.progress import Progress

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

__all__ = ["BLOCK_NUMBERS", "MOST_ERROR", "Conditional", "Nodes", "Pointwise", "left_out", "nodes_of_fit"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Monte Carlo standard error of a unit's log density above which the unit is really left out.
MOST_ERROR = 0.03
#: Units with too large an error that are refitted one by one; where there are more, the posterior of everything is
#: first made better known, so many times at most.
FEW, MOST_TIMES = 8, 20.0
#: Numbers, nodes times units, of one block: 2 or 3 arrays of that size are in memory at a time.
BLOCK_NUMBERS = 20_000_000


class Conditional(Protocol):
    """The density of each unit given all others' rows, at nodes of the posterior.

    Made once for a fit (of the whole data), and also asked at the nodes of refits without a unit: what it returns
    depends on the data of the fit and on the nodes given, never on the fit's own nodes.

    Attributes
    ----------
    units : int
        How many: the rows in the order of ``fit.model.design.y``, or the groups in the order of the factor's labels.
    most_nodes : int
        Nodes to use at most: fewer where a node is dear (from sizes alone, never from a clock).
    """

    @property
    def units(self) -> int:
        """How many units there are."""
        ...

    @property
    def most_nodes(self) -> int:
        """How many nodes are affordable."""
        ...

    def log_densities(self, nodes: Nodes, units: slice | Ints) -> tuple[Array, Array | None]:
        """Log densities of some units at all nodes.

        Parameters
        ----------
        nodes : Nodes
            K of them, in the layout of the model that the conditional was made for.
        units : slice or int array
            U of the units; a slice has start and stop and no step.

        Returns
        -------
        left : array (K, U)
            ``log p(y_unit | y_rest, node)``: the effects integrated over their distribution given the rows of the
            others (and the node). A row of weight w counts w times, and leaves as a whole. -inf where the density is
            0; never nan.
        inside : array (K, U) or None
            ``log p(a copy of y_unit | y, node)``: the same given all rows, the unit's own among them. For a row its
            group is the same; for a group the copy is a new group of the same rows. None where it is not known.
            Either may be the transpose of a contiguous (U, K) array, which saves a copy.
        """
        ...

    def rows_of(self, unit: int) -> Ints:
        """Positions of the rows that leave with a unit."""
        ...

    # A conditional may also have `order`, (units,): the units in the order in which blocks of them are cheapest.


@dataclass(frozen=True, eq=False)
class Pointwise:
    """What `left_out` found, unit by unit.

    Attributes
    ----------
    elpd : (U,) log p(y_unit | y_rest). error : (U,) their Monte Carlo standard errors. pareto_k : (U,) of the weights.
    refitted : (U,) bool, where the value is that of a refit without the unit.
    doubtful : (U,) bool, where a refit was called for and did not happen, or did not bring the error below 0.03.
    inside : (U,) log density of a copy of the unit given everything, or None.
    total_error : Monte Carlo standard error of the sum of elpd.
    nodes : how many nodes of the posterior were used. interrupted : whether the user stopped the refits.
    """

    elpd: Array
    error: Array
    pareto_k: Array
    refitted: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]
    inside: Array | None
    total_error: float
    nodes: int
    interrupted: bool = False


def left_out(
    fit: Posterior, conditional: Conditional, *, threads: int | None = None, progress: bool | None = None
) -> Pointwise:
    """Leave every unit out, by importance where that works, by refits elsewhere.

    Parameters
    ----------
    fit : Posterior
        With its rows.
    conditional : Conditional
        Of the fit's model.
    threads : int, optional
        Cores to use, and refits at a time; those of the fit by default. The result does not depend on it.
    progress : bool, optional
        Show a bar after two seconds: always, never, or (by default) on a terminal. Ctrl-C during the refits keeps those
        that are finished.

    Returns
    -------
    Pointwise

    Raises
    ------
    ModelError
        Where threads= is impossible.
    """
    cores = checked_threads(fit, threads)
    nodes = nodes_of_fit(fit, conditional.most_nodes)
    with Progress(progress) as bar:
        found = _by_importance(conditional, nodes, cores, bar)
        size = _better_size(found, nodes, conditional.most_nodes)
        if size:
            bar.update(None, "a better known posterior")
            nodes = nodes_of_fit(better_known(fit, size, cores), conditional.most_nodes)
            found = _by_importance(conditional, nodes, cores, bar)
        refits = refit_units(fit, conditional, nodes, found.poor, found.error, MOST_ERROR, cores, bar)
    elpd, error, refitted = found.elpd.copy(), found.error.copy(), np.zeros(conditional.units, dtype=bool)
    influence, alone = found.influence.copy(), 0.0
    for unit in found.poor:
        if unit in refits.found:
            own = refits.found[unit]
            elpd[unit], error[unit], refitted[unit] = own.value, own.error, True
            influence += own.influence
            alone += own.own_variance
        else:
            alone += error[unit] ** 2
    doubtful = np.zeros(conditional.units, dtype=bool)
    doubtful[list(found.poor)] = True
    doubtful &= ~(refitted & (error <= MOST_ERROR))
    return Pointwise(
        elpd, error, found.pareto_k, refitted, doubtful, found.inside,
        math.sqrt(nodes.variance_of_sum(influence) + alone), len(nodes.theta), refits.interrupted,
    )  # fmt: skip


def _better_size(found: _Importance, nodes: Nodes, most_nodes: int) -> float:
    """The effective sample size of the posterior that mends most Monte Carlo errors that are too large; 0 for none.

    Many units whose weights are sound but whose errors are too large need more nodes, not a refit each.
    """
    errors = found.error[[unit for unit in found.poor if found.pareto_k[unit] <= GOOD_K]]
    if len(errors) <= FEW or len(nodes.theta) >= most_nodes:
        return 0.0
    factor = 1.3 * float(np.quantile(errors, 0.9) / MOST_ERROR) ** 2
    return effective_number(nodes) * min(max(factor, 2.0), MOST_TIMES)


def checked_threads(fit: Posterior, threads: int | None) -> int:
    """The number of cores to use; those of the fit by default."""
    if threads is None:
        return fit.result.settings.threads
    if not isinstance(threads, int | np.integer) or isinstance(threads, bool) or threads <= 0:
        raise ModelError(f"threads = {threads!r} is not possible; give a whole number above 0, or leave it out.")
    return int(threads)


@dataclass(frozen=True, eq=False)
class _Importance:
    """By unit what importance weights give.

    influence : (K,) what each node moves the sum by, over the units that need no refit. poor : by unit that does, its
    log densities (K,) at the nodes.
    """

    elpd: Array
    error: Array
    pareto_k: Array
    inside: Array | None
    influence: Array
    poor: dict[int, Array]


def _by_importance(conditional: Conditional, nodes: Nodes, cores: int, bar: Progress) -> _Importance:
    count, size = conditional.units, len(nodes.theta)
    elpd, error, k, inside = (np.empty(count) for _ in range(4))
    influence, poor = np.zeros(size), dict[int, Array]()
    known = True
    order: Ints | None = getattr(conditional, "order", None)
    for part in _blocks(count, size):
        bar.update(part.start / max(count, 1), "leaving out")
        which: slice | Ints = part if order is None else order[part]
        left, copies = conditional.log_densities(nodes, which)
        by_unit = np.ascontiguousarray(left.T)
        found = leave_out(by_unit, nodes.log_weights, nodes.efficiency, GOOD_K, MOST_ERROR, threads=cores)
        elpd[which], error[which], k[which] = found.value, found.error, found.k
        influence += found.influence
        units = np.arange(part.start, part.stop) if order is None else order[part]
        for place in np.flatnonzero((found.k > GOOD_K) | ~(found.error <= MOST_ERROR)):
            if np.isneginf(by_unit[place]).all():  # improper: no fit can say more
                error[units[place]] = 0.0
            else:
                poor[int(units[place])] = by_unit[place].copy()
        del left, by_unit
        if copies is None:
            known = False
        else:
            inside[which] = in_sample(np.ascontiguousarray(copies.T), nodes.log_weights, threads=cores)
    return _Importance(elpd, error, k, inside if known else None, influence, poor)


def _blocks(units: int, nodes: int) -> Iterator[slice]:
    """Blocks of units whose densities fit in memory."""
    size = max(1, BLOCK_NUMBERS // max(nodes, 1))
    count = -(-units // size)
    edges = np.linspace(0, units, count + 1).astype(int) if count else np.zeros(1, dtype=int)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield slice(start, stop)
