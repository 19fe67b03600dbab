"""What each group's own rows say of it: maximum likelihood, everything else held at its posterior mean.

For a Gaussian response that is least squares, from the cross-products alone, so that a fit that was saved without its
rows has it too. For others Newton's method runs over the rows of each group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import blocks
from partialpool.algebra.structure import CrossProducts
from partialpool.design.predictor import LinearPredictor, factor_columns, factor_predictors
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: A group whose scaled cross-products have a determinant below this does not determine its effects.
SINGULAR = 1e-9


def unpooled_effects(fit: Posterior, factor: int) -> Array:
    """Own effects of each group of a factor, (groups, terms); nan where its rows do not determine them."""
    from partialpool.posterior.groups import mean_coefficients, mean_effects

    if not fit.model.exact:
        return _own_maxima(fit, factor)
    cross = _cross_products(fit)
    coefficients = fit.model.coefficients
    shift = coefficients.from_public(mean_coefficients(fit)) - np.asarray(coefficients.mean)
    own, rest = normal_equations(cross, factor, shift, mean_effects(fit))
    return _solve(own, rest)[cross.structure.rank[factor]]


def _own_maxima(fit: Posterior, factor: int) -> Array:
    """Maximum-likelihood effects; nan also where they are infinite, as where all of a group's rows are successes."""
    from partialpool.inference.conditional import OwnEstimates
    from partialpool.posterior.effects import leaf_conditional
    from partialpool.posterior.groups import mean_effects
    from partialpool.posterior.predict import linear_means

    design, hyper = fit.model.design, fit.model.hyperparameters
    others = [f for f in range(len(design.factors)) if f != factor]
    means = node_weights(fit.result) @ fit.result.theta
    logs = dict(zip((name for name, _ in hyper.auxiliary), means[hyper.auxiliary_slice], strict=True))
    first, second = (*(logs.get(name, 0.0) for name in fit.model.family.parameters), 0.0, 0.0)[:2]
    eta0 = linear_means(fit, LinearPredictor.of_design(design, others))
    eta1 = np.full(design.y.size, first)
    if len(design.prefixes) > 1:
        eta1 = linear_means(fit, LinearPredictor.of_design(design, others, 1))
    start = mean_effects(fit)[fit.model.latent.effects_of(factor)]
    columns, parts = factor_columns(design)[factor], factor_predictors(design)[factor]
    return OwnEstimates(leaf_conditional(fit)).of(factor, (eta0, eta1), float(second), columns, parts, start)


def _cross_products(fit: Posterior) -> CrossProducts:
    marginal = GaussianMarginal(fit.model)
    if not marginal.adds_sigma:
        return marginal.statistics.cross
    # The weights of the rows depend on sigma: at its posterior mean.
    assert marginal.hyper.sigma_at is not None
    theta = node_weights(fit.result) @ fit.result.theta
    return marginal.at_sigma(theta[None, :])[0].cross


def _solve(own: Array, rest: Array) -> Array:
    """own (groups, q, q), rest (groups, q) -> (groups, q)."""
    out = np.full(rest.shape, np.nan)
    size = np.sqrt(np.maximum(np.diagonal(own, axis1=1, axis2=2), 0.0))
    usable = (size > 0).all(axis=1)
    scaled = own[usable] / (size[usable, :, None] * size[usable, None, :])
    good = np.linalg.det(scaled) > SINGULAR
    at = np.flatnonzero(usable)[good]
    out[at] = np.linalg.solve(scaled[good], (rest[at] / size[at])[:, :, None])[:, :, 0] / size[at]
    return out


def normal_equations(cross: CrossProducts, factor: int, gamma: Array, effects: Array) -> tuple[Array, Array]:
    """Z'DZ (groups, q, q) and Z'D(y - X gamma - the other factors' effects) (groups, q), groups in internal order."""
    chain = cross.structure.elimination.chain
    if factor in chain:
        return _in_chain(cross, chain.index(factor), gamma, effects)
    return _in_root(cross, cross.structure.elimination.root.index(factor), gamma, effects)


class _Level:
    """One level of the chain, its blocks as arrays."""

    def __init__(self, cross: CrossProducts, level: int) -> None:
        row = cross.structure.levels[level]
        self.q, self.groups, self.width = int(row[blocks.Q]), int(row[blocks.GROUPS]), int(row[blocks.WIDTH])
        d_at, b_at, u_at = int(row[blocks.D_AT]), int(row[blocks.B_AT]), int(row[blocks.U_AT])
        own = cross.d[d_at : d_at + self.groups * self.q * self.q].reshape(self.groups, self.q, self.q)
        self.own = np.tril(own) + np.swapaxes(np.tril(own, -1), 1, 2)
        size = self.groups * self.q * self.width
        self.border = cross.b[b_at : b_at + size].reshape(self.groups, self.q, self.width)
        self.effects = slice(u_at, u_at + self.groups * self.q)


def _ancestors(cross: CrossProducts, level: int, above: int) -> Ints:
    """The group at level `above` of each group at `level`."""
    structure = cross.structure
    up = np.arange(int(structure.levels[level][blocks.GROUPS]))
    for k in range(level, above):
        up = structure.parent[int(structure.levels[k][blocks.UP_AT]) + up]
    return up


def _in_chain(cross: CrossProducts, level: int, gamma: Array, effects: Array) -> tuple[Array, Array]:
    structure = cross.structure
    levels = [_Level(cross, k) for k in range(len(structure.levels))]
    here = levels[level]
    p = structure.n_coefficients
    rest = here.border[:, :, -1] - here.border[:, :, here.width - 1 - p : here.width - 1] @ gamma
    start = 0
    for above in range(level + 1, len(levels)):  # coarser factors: columns of its own border
        q = levels[above].q
        own = effects[levels[above].effects].reshape(-1, q)[_ancestors(cross, level, above)]
        rest = rest - np.einsum("gij,gj->gi", here.border[:, :, start : start + q], own)
        start += q
    for below in range(level):  # finer factors: the borders of its groups' children
        child = levels[below]
        start = sum(levels[k].q for k in range(below + 1, level))
        own = effects[child.effects].reshape(-1, child.q)
        part = np.einsum("gji,gj->gi", child.border[:, :, start : start + here.q], own)
        np.subtract.at(rest, _ancestors(cross, below, level), part)
    if structure.n_root:
        group, column, values = _sparse(cross, level)
        root_u = _root_vector(cross, effects)
        for i in range(here.q):
            rest[:, i] -= np.bincount(group, weights=values[:, i] * root_u[column], minlength=here.groups)
    return here.own, rest


def _sparse(cross: CrossProducts, level: int) -> tuple[Ints, Ints, Array]:
    """Entries of a level's sparse part with the root: their group, root column, values (entries, q)."""
    row = cross.structure.levels[level]
    q, groups = int(row[blocks.Q]), int(row[blocks.GROUPS])
    ptr = cross.structure.ptr[int(row[blocks.PTR_AT]) : int(row[blocks.PTR_AT]) + groups + 1]
    count = int(ptr[-1])
    start = int(row[blocks.IDX_AT])
    column = cross.structure.idx[start : start + count]
    at = int(row[blocks.S_AT])
    return np.repeat(np.arange(groups), np.diff(ptr)), column, cross.s[at : at + count * q].reshape(count, q)


def _root_vector(cross: CrossProducts, effects: Array) -> Array:
    """The root's effects in the order of its columns."""
    return np.concatenate([effects[start : start + size] for start, size in cross.structure.root_effects()])


def _in_root(cross: CrossProducts, block: int, gamma: Array, effects: Array) -> tuple[Array, Array]:
    structure = cross.structure
    n_root = structure.n_root
    start, groups, q = (
        int(structure.root_blocks[block][k]) for k in (blocks.ROOT_START, blocks.ROOT_GROUPS, blocks.ROOT_Q)
    )
    row, column = structure.root_at // n_root, structure.root_at % n_root
    u = _root_vector(cross, effects)
    border = cross.gx.reshape(n_root, -1)
    product = np.bincount(row, weights=cross.root_v * u[column], minlength=n_root)
    off = row != column
    product += np.bincount(column[off], weights=(cross.root_v * u[row])[off], minlength=n_root)
    for level in range(len(structure.levels)):
        group, met, values = _sparse(cross, level)
        own = effects[_Level(cross, level).effects].reshape(-1, values.shape[1])
        product += np.bincount(met, weights=(values * own[group]).sum(axis=1), minlength=n_root)
    rest = border[:, -1] - border[:, :-1] @ gamma - product
    own_blocks = np.zeros((groups, q, q))
    inside = (
        (row >= start) & (row < start + groups * q) & ((row - start) // q == (column - start) // q) & (column >= start)
    )
    r, c = row[inside] - start, column[inside] - start
    np.add.at(own_blocks, (r // q, r % q, c % q), cross.root_v[inside])
    np.add.at(own_blocks, (r[r != c] // q, c[r != c] % q, r[r != c] % q), cross.root_v[inside][r != c])
    rest_here = rest[start : start + groups * q].reshape(groups, q)
    # Its own effects were taken off with the others: put them back.
    rest_here = rest_here + np.einsum("gij,gj->gi", own_blocks, u[start : start + groups * q].reshape(groups, q))
    return own_blocks, rest_here


def only_groups(cross: CrossProducts, groups: Ints) -> CrossProducts:
    """The cross-products of some groups (internal numbers, ascending) of a model with a single factor."""
    from dataclasses import replace

    structure = cross.structure
    level = _Level(cross, 0)
    levels = structure.levels.copy()
    levels[0, blocks.GROUPS] = groups.size
    smaller = replace(
        structure,
        sizes=(groups.size,),
        levels=levels,
        ptr=np.zeros(groups.size + 1, dtype=np.int64),
        ranges=np.array([(0, groups.size)], dtype=np.int64),
        n_effects=groups.size * level.q,
        rank=(np.arange(groups.size),),
    )
    d = cross.d[: level.groups * level.q**2].reshape(level.groups, -1)[groups].ravel()
    b = cross.b[: level.border.size].reshape(level.groups, -1)[groups].ravel()
    return CrossProducts(smaller, d, b, cross.s, cross.root_v, cross.gx, cross.gxx)
