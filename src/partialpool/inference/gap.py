"""How good the quadrature over the leaf's effects is: the gap to many more nodes, by group, measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.leaf import VALUE
from partialpool.algebra.quadrature import ladder
from partialpool.inference.importance import systematic_resample
from partialpool.inference.joint import JointDensity
from partialpool.inference.sobol import Sobol

Array = NDArray[np.float64]

#: Error in log p(y) at the mode, and its spread over the posterior, that count as none.
TOLERANCE, GOOD = 0.005, 0.05
#: Quasi-random nodes for groups of more than three effects: tried in turn.
RANDOM_NODES = (64, 256, 1024)
#: Posterior draws at which the gap is measured again.
DRAWS = 8
#: Evaluations of rows in one pass from which half as many draws must do.
DEAR = 20_000_000
WORST = 5


@dataclass(frozen=True, eq=False)
class Gap:
    """What was chosen at the mode: `nodes`, those it was compared with, the error left, and sentences that say so."""

    nodes: int
    finer: int
    error: float
    sentences: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class GapOverPosterior:
    """Spread of the quadrature's error over the posterior, and the groups with the largest."""

    error: float | None
    worst: dict[str, float]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.error is None or self.error < GOOD


def use_nodes(density: JointDensity, nodes: int) -> None:
    """Set the nodes: Gauss-Hermite up to three effects a group, quasi-random ones (importance sampling) above."""
    if density.q <= 3 or nodes == 1:
        density.set_nodes(nodes)
        return
    density.set_nodes(1, tolerance=3e-3)
    density.nodes = nodes
    density.x_nodes, density.shifted = random_nodes(nodes, density.q)


def random_nodes(count: int, dimension: int) -> tuple[Array, Array]:
    """Quasi-random nodes from a Student-t of 8 degrees of freedom a coordinate, with their log weights.

    As `gauss_hermite` they are relative to the standard normal: ``log weight = -log M - log q(x) - (d / 2) log 2 pi``.
    """
    from scipy.special import gammaln, stdtrit

    uniforms = Sobol(dimension, np.random.default_rng(20261121)).next(count)
    nu = 8.0
    x = stdtrit(nu, np.clip(uniforms, 1e-12, 1 - 1e-12))
    each = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * np.log(nu * np.pi) - 0.5 * (nu + 1) * np.log1p(x * x / nu)
    shifted = -np.log(count) - each.sum(axis=1) - 0.5 * dimension * np.log(2 * np.pi)
    return np.ascontiguousarray(x), np.ascontiguousarray(shifted)


def steps_of(q: int) -> tuple[int, ...]:
    """Numbers of nodes tried in turn."""
    return ladder(q) if q <= 3 else (1, *RANDOM_NODES)


def next_nodes(density: JointDensity, gap: Gap) -> int | None:
    """The number of nodes that follows those in use, None where there are no more."""
    return next((step for step in steps_of(density.q) if step > gap.nodes), None) if density.q else None


def group_values(density: JointDensity, point: Array, nodes: int) -> Array:
    """log p(y_g | root, theta) of every group with so many nodes; the density keeps its own."""
    kept = density.nodes, density.x_nodes, density.shifted, density.tolerance
    use_nodes(density, nodes)
    try:
        return density.rows_at(VALUE, density.unpack(point)).moments.value
    finally:
        density.nodes, density.x_nodes, density.shifted, density.tolerance = kept


def choose_nodes(density: JointDensity, point: Array) -> Gap:
    """The fewest nodes whose error at `point`, measured against many more, is below TOLERANCE; they are set."""
    if density.q == 0:
        return Gap(1, 1, 0.0, ())
    steps = steps_of(density.q)
    # theta is known the better the more groups there are, and the less the error moves over the posterior
    tolerance = TOLERANCE * max(1.0, 0.5 * math.sqrt(density.rows.n_groups))
    laplace = group_values(density, point, 1)
    values = [group_values(density, point, steps[0])]
    error = float("inf")
    chosen, finer = steps[-1], steps[-1]
    for k in range(len(steps) - 1):
        # a rule is compared with the one two steps up, which is far better
        while len(values) <= min(k + 2, len(steps) - 1):
            values.append(group_values(density, point, steps[len(values)]))
        error = abs(float((values[k] - values[min(k + 2, len(steps) - 1)]).sum()))
        if error < tolerance:
            chosen, finer = steps[k], steps[min(k + 2, len(steps) - 1)]
            break
    use_nodes(density, chosen)
    best = values[steps.index(finer)] if finer in steps[: len(values)] else values[-1]
    miss = abs(float((laplace - best).sum()))
    enough = "enough" if miss < tolerance else "not enough"
    kind = "a dimension " if density.q > 1 else ""
    told = (
        f"Laplace alone over the {len(best):,} groups misses the log likelihood by {miss:.2g} at the mode: {enough}",
        f"leaf by quadrature with {chosen} nodes {kind}a group; {finer} nodes change it by {error:.1g}"
        if density.q <= 3
        else f"leaf by {'Laplace' if chosen == 1 else f'{chosen} quasi-random nodes a group'}; "
        f"{finer} change it by {error:.1g}",
    )
    return Gap(chosen, finer, error, told)


def gap_over_posterior(density: JointDensity, points: Array, weights: Array, gap: Gap, seed: int) -> GapOverPosterior:
    """The error of the nodes in use at a few posterior draws; its spread is what moves the posterior."""
    if density.q == 0:
        return GapOverPosterior(None, {}, (), ())
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,)))
    draws = DRAWS if density.work < DEAR else DRAWS // 2
    picked = systematic_resample(weights, draws, rng)
    steps = steps_of(density.q)
    above = [step for step in steps if step > gap.nodes]
    if not above:
        note = f"The quadrature has its most nodes, {gap.nodes}, and was not checked against more."
        return GapOverPosterior(None, {}, (), (note,))
    finer = above[min(1, len(above) - 1)]
    differences = np.stack(
        [group_values(density, points[k], finer) - group_values(density, points[k], gap.nodes) for k in picked]
    )
    error = float(differences.sum(axis=1).std())
    spread = differences.std(axis=0)
    labels = density.model.design.factors[density.leaf].labels if density.leaf is not None else np.empty(0)
    worst = {str(labels[g]): float(spread[g]) for g in np.argsort(-spread)[:WORST]}
    name = max(worst, key=lambda label: worst[label])
    told = (
        f"quadrature at {draws} posterior draws against {finer} nodes: error {error:.1g} in the log density; "
        f"worst group {name}, {worst[name]:.1g}",
    )
    notes = () if error < GOOD else (f"The quadrature's error over the posterior is {error:.2g}, above {GOOD}.",)
    return GapOverPosterior(error, worst, told, notes)
