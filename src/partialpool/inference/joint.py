"""The joint log density of theta, coefficients and the root's effects, the leaf's effects integrated out.

One object serves the search for the mode, importance sampling, NUTS and (with no leaf) the reference engine.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import joint as kernels
from partialpool.algebra.joint import INFORMATION
from partialpool.algebra.leaf import FOUND, GRADIENT, HESSIAN, MOMENTS, VALUE
from partialpool.algebra.quadrature import gauss_hermite
from partialpool.algebra.rows import NORMAL, STUDENT, log_prior
from partialpool.design.leafrows import leaf_rows
from partialpool.inference.coded import coded_hyperparameters, left_out
from partialpool.model import Model
from partialpool.spec.distributions import Cauchy, Flat, StudentT
from partialpool.spec.families.vector import VECTOR
from partialpool.spec.hyperparameters import TermLayout

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Parts into which a pass over many rows is cut, whatever the number of threads: sums come out the same to the bit.
PARTS = 16
#: Rows times nodes from which one pass is cut into parts.
WORTH_CUTTING = 100_000
#: Predicted gain at which the search for a group's mode stops: only to place nodes, and to the last digit.
COARSE, FINE = 3e-3, 1e-13


@dataclass(frozen=True, eq=False)
class Curvature:
    """Value, gradient and negative Hessian of the rows' log density in the root (R,), (R, R), at one point."""

    value: float
    gradient: Array
    precision: Array


@dataclass(frozen=True, eq=False)
class LeafMoments:
    """Given the root and theta, by group of the leaf: mean (G, q) and covariance (G, q, q) of v, mode and status."""

    value: Array
    mean: Array
    covariance: Array
    mode: Array
    status: Ints


class JointDensity:
    """The joint density of a model at points ``[t, b, e]``; see `algebra.joint`.

    Parameters
    ----------
    model : Model
        Of a response that needs quadrature.
    nodes : int
        Quadrature nodes a dimension of the leaf; 1 is Laplace.
    leaf : bool
        False integrates nothing out.
    threads : int
    """

    def __init__(self, model: Model, *, nodes: int = 1, leaf: bool = True, threads: int = 1) -> None:
        self.model, self.threads = model, threads
        hyper, coefficients = model.hyperparameters, model.coefficients
        layout = model.latent
        self.layout = layout
        self.leaf = layout.leaf if leaf else None
        self.rows = leaf_rows(model.design, layout, np.asarray(coefficients.centre, dtype=float), leaf=leaf)
        self.d, self.p = hyper.size, len(coefficients.names)
        self.n_root = self.rows.n_root - self.p
        self.size = self.d + self.rows.n_root
        self.q = int(self.rows.z.shape[1])
        self.before = layout.n_effects - self.n_root  # effects of the leaf stand first in the vector of all effects
        self.kinds, self.params = coded_hyperparameters(model, self.d)
        self.b_kinds, self.b_params = self._coded_coefficients()
        self.mean = np.array(coefficients.mean, dtype=float)
        self.scale = np.array(coefficients.scale, dtype=float)
        self.terms = self._terms()
        self.centring = centred(self.n_root)
        names = [name for name, _ in hyper.auxiliary]
        self.constant_at = np.array(
            [hyper.auxiliary_at(name) if name in names else -1 for name in _own_parameters(model)], dtype=np.int64
        )
        family = model.family
        self._joint, self._part = kernels.family_kernels(
            f"{family.name}_{family.link}".replace("/", "_").replace("^", ""),
            family.log_density,
            family.derivatives,
            VECTOR.get((family.name, family.link)),
        )
        self.constant = float(self.rows.weight @ family.constant(self.rows.y, self.rows.trials))
        self.start = np.zeros((self.rows.n_groups, self.q))
        self.starts = np.empty((0, self.q)) if family.log_concave else _other_starts(self.q)
        self.set_nodes(nodes)

    # -- the arrays of the kernels -----------------------------------------------------------------------------------

    def _coded_coefficients(self) -> tuple[Ints, Array]:
        kinds = np.full(self.p, NORMAL, dtype=np.int64)
        params = np.tile(np.array([0.0, 1.0, 0.0]), (self.p, 1))
        for j, name in enumerate(self.model.coefficients.names):
            prior = self.model.priors[name]
            if isinstance(prior, StudentT | Cauchy):
                kinds[j] = STUDENT
                params[j] = (prior.nu if isinstance(prior, StudentT) else 1.0), 0.0, 1.0
            elif isinstance(prior, Flat):
                kinds[j] = 0
        return kinds, params

    def _terms(self) -> Ints:
        hyper = self.model.hyperparameters
        table = np.zeros((len(hyper.terms), 7), dtype=np.int64)
        for row, term in zip(table, hyper.terms, strict=True):
            in_leaf = term.factor == self.leaf
            first = term.offset if in_leaf else self.layout.effect_at[term.factor] - self.before + term.offset
            row[:] = (
                term.at, term.covariance.size, term.covariance.n_correlations > 0, self.layout.widths[term.factor],
                first, self.layout.sizes[term.factor], in_leaf,
            )  # fmt: skip
        return table

    def set_nodes(self, nodes: int, tolerance: float | None = None) -> None:
        """Use another number of quadrature nodes, and another precision of the groups' modes."""
        self.nodes = nodes if self.q else 1
        self.x_nodes, self.shifted = gauss_hermite(self.nodes, self.q)
        self.tolerance = tolerance or (FINE if self.nodes == 1 else COARSE)

    @property
    def work(self) -> int:
        """Evaluations of a row that one pass takes, roughly."""
        return int(self.rows.y.size * (len(self.shifted) + (3 if self.q else 0)))

    def _prior_arguments(self) -> tuple[Any, ...]:
        return (
            self.kinds, self.params, self.b_kinds, self.b_params, self.mean, self.scale, self.terms, self.centring,
            self.constant_at,
        )  # fmt: skip

    def _row_arguments(self, *, touched: bool = False) -> tuple[Any, ...]:
        rows = self.rows
        pointer, places, local = rows.touched if touched else _NOT_TOUCHED
        return (
            rows.y, rows.trials, rows.weight, rows.offset, rows.x, rows.at, rows.x_part, rows.z, rows.z_part,
            rows.pointer, pointer, local, places, self.x_nodes, self.shifted, self.start, self.starts, self.tolerance,
        )  # fmt: skip

    # -- values and gradients ------------------------------------------------------------------------------------------

    def value(self, points: Array) -> Array:
        """Log density (K,) at points (K, D)."""
        return self._evaluate(VALUE, points)[0]

    def value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        """Log density (K,) and gradient (K, D)."""
        return self._evaluate(GRADIENT, points)

    def _evaluate(self, want: int, points: Array) -> tuple[Array, Array]:
        points = np.ascontiguousarray(points, dtype=float)
        count = points.shape[0]
        values = np.empty(count)
        gradients = np.empty((count if want == GRADIENT else 0, self.size))
        if self.work > WORTH_CUTTING:  # whatever the threads and the points: sums come out the same to the bit
            for k in range(count):
                values[k], own = self._in_parts(want, points[k])
                if want == GRADIENT:
                    gradients[k] = own
            return self._finite(values), gradients
        prior, rows = self._prior_arguments(), self._row_arguments()

        def run(part: slice) -> None:
            kept = gradients[part] if want == GRADIENT else gradients
            self._joint(want, points[part], values[part], kept, *prior, *rows)

        pieces = 1 if self.threads == 1 or self.work * count < WORTH_CUTTING else min(4 * self.threads, count)
        if pieces <= 1:
            run(slice(0, count))
        else:
            edges = np.linspace(0, count, pieces + 1).astype(int)
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(run, [slice(a, b) for a, b in pairwise(edges)]))
        return self._finite(values), gradients

    def _finite(self, values: Array) -> Array:
        return np.where(np.isnan(values), -np.inf, values) + self.constant

    def density(self) -> Any:
        """Log density and gradient at one point, as light as can be, for NUTS: one thread, arrays of its own."""
        values, gradients = np.empty(1), np.empty((1, self.size))
        prior, rows, kernel = self._prior_arguments(), self._row_arguments(), self._joint

        def evaluate(point: Array) -> tuple[float, Array]:
            kernel(GRADIENT, point[None, :], values, gradients, *prior, *rows)
            return float(values[0]), gradients[0]

        return evaluate

    # -- one point, in parts -------------------------------------------------------------------------------------------

    def unpack(self, point: Array) -> Unpacked:
        """What the rows need at one point: root, Lambda of the leaf, constant predictors."""
        natural, relative = np.ones(self.d), np.ones(self.d)
        root, lam, constants = np.empty(self.size - self.d), np.zeros((self.q, self.q)), np.zeros(2)
        gradient = np.zeros(self.size)
        point = np.ascontiguousarray(point, dtype=float)
        descend: Any = kernels.descend
        value = descend(point, *self._prior_arguments(), natural, relative, root, lam, constants, gradient)
        return Unpacked(point, float(value), natural, relative, root, lam, constants, gradient)

    def _in_parts(self, want: int, point: Array) -> tuple[float, Array]:
        own = self.unpack(point)
        if not math.isfinite(own.value):
            return own.value, own.gradient
        passed = self.rows_at(want, own)
        value = own.value + passed.value + self.ascend(own, passed, own.gradient)
        return value, own.gradient

    def ascend(self, own: Unpacked, passed: Passed, gradient: Array) -> float:
        """Log prior density of the root's effects; adds to `gradient` (D,) what they and the rows bring."""
        return float(
            kernels.ascend(
                own.point, self.kinds, self.scale, self.terms, self.centring, self.constant_at, own.natural,
                own.relative, own.root, passed.in_root, passed.in_constant, passed.zz, self.rows.n_groups, gradient,
            )
        )  # fmt: skip

    def rows_at(self, want: int, own: Unpacked) -> Passed:
        """One pass over the rows at one point, its parts over threads and added up in order."""
        groups, size, q = self.rows.n_groups, self.rows.n_root, self.q
        wide = want == HESSIAN
        whole = self.work < WORTH_CUTTING // 4 or (wide and size > 600)
        edges = [0, groups] if whole else _edges(self.rows.pointer, PARTS)
        pieces = list(pairwise(edges))
        full = want == MOMENTS
        in_root = np.zeros((len(pieces), size))
        in_constant, zz = np.zeros((len(pieces), 2)), np.zeros((len(pieces), q, q))
        hess = np.zeros((len(pieces) if wide else 0, size, size))
        group_value, status = np.zeros(groups), np.zeros(groups, dtype=np.int64)
        mode, mean = np.zeros((groups, q)), np.zeros((groups if full else 0, q))
        covariance = np.zeros((groups if full else 0, q, q))
        rows = self._row_arguments(touched=wide)
        nothing = np.zeros((0, 0))

        def run(k: int) -> float:
            begin, end = pieces[k]
            return float(
                self._part(
                    begin, end, want, own.root, own.lam, own.constants[0], own.constants[1], *rows, in_root[k],
                    in_constant[k], zz[k], hess[k] if wide else nothing, group_value, mode, mean, covariance, status,
                )
            )  # fmt: skip

        if self.threads > 1 and len(pieces) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                values = list(pool.map(run, range(len(pieces))))
        else:
            values = [run(k) for k in range(len(pieces))]
        return Passed(
            math.fsum(values) if np.isfinite(values).all() else -math.inf,
            in_root.sum(axis=0), in_constant.sum(axis=0), zz.sum(axis=0), hess.sum(axis=0) if wide else nothing,
            LeafMoments(group_value, mean, covariance, mode, status),
        )  # fmt: skip

    def curvature(self, point: Array) -> Curvature:
        """Value, gradient and negative Hessian in the root of the rows' log density (centring plays no part)."""
        passed = self.rows_at(HESSIAN, self.unpack(point))
        low = np.tril(passed.hess)
        return Curvature(passed.value, passed.in_root, -(low + np.tril(low, -1).T))

    def leaf_moments(self, point: Array) -> LeafMoments:
        """Moments of the leaf's standardised effects at one point."""
        return self.rows_at(MOMENTS, self.unpack(point)).moments

    def recentre(self, point: Array) -> LeafMoments:
        """Let later searches for the groups' modes start from those at this point; returns what was found there."""
        found = self.leaf_moments(point)
        good = np.isfinite(found.mode).all(axis=1, keepdims=True)
        self.start = np.ascontiguousarray(np.where(good, found.mode, 0.0))
        return found

    def unfinished(self, moments: LeafMoments) -> int:
        """Groups whose mode was not found."""
        return int((moments.status != FOUND).sum())

    # -- what a point means -------------------------------------------------------------------------------------------

    def log_constant(self) -> float:
        """What is to be added for a normalised density of y and the unknowns; nan under a flat prior."""
        centred = 0.5 * math.log(2 * math.pi) * self.n_root
        return left_out(self.model) - centred

    def theta(self, points: Array) -> Array:
        """theta (K, d): a bounded parameter stands as a logit in a point."""
        theta = np.array(points[:, : self.d])
        for j in np.flatnonzero(self.params[:, 4] > 0):
            low, width = self.params[j, 3:5]
            theta[:, j] = np.log(low + width / (1 + np.exp(-points[:, j])))
        return theta

    def from_theta(self, theta: Array) -> Array:
        """The first part of a point (d,) from theta (d,)."""
        t = np.array(theta, dtype=float)
        for j in np.flatnonzero(self.params[:, 4] > 0):
            low, width = self.params[j, 3:5]
            share = np.clip((np.exp(t[j]) - low) / width, 1e-12, 1 - 1e-12)
            t[j] = np.log(share / (1 - share))
        return t

    def gamma(self, points: Array) -> Array:
        """Coefficients (K, p) on the engines' scale."""
        return np.asarray(self.mean + self.scale * points[:, self.d : self.d + self.p])

    def root_effects(self, points: Array) -> Array:
        """The root's effects u (K, n_root)."""
        if not self.n_root:
            return np.empty((points.shape[0], 0))
        e = points[:, self.d + self.p :]
        return np.array(e) if np.isinf(self.centring[INFORMATION]).all() else self._from_e(points)

    def _from_e(self, points: Array) -> Array:
        """u from e, term by term; see `algebra.joint`."""
        e = points[:, self.d + self.p :]
        out = np.array(e)
        theta = self.theta(points)
        for term, own in self.root_terms():
            factor = term.covariance.factor(theta[:, term.parameters])
            information, origin, reference = self.centring[:, own]
            if not term.covariance.n_correlations:
                precision = np.einsum("kii->ki", factor)[:, None, :] ** -2.0
                with np.errstate(invalid="ignore"):
                    square = (information + reference) / (information + precision)
                square = np.where(np.isinf(information), 1.0, square)
                out[:, own] = square * origin + np.sqrt(square) * (e[:, own] - origin)
            elif not np.isinf(information.flat[0]):
                out[:, own] = np.einsum("kij,kgj->kgi", factor, e[:, own])
        return out

    def to_e(self, point: Array, root: Array) -> Array:
        """e (n_root,) from u (n_root,) at the theta of a point."""
        out = np.array(root)
        theta = self.theta(point[None, : self.d])
        for term, own in self.root_terms():
            factor = term.covariance.factor(theta[:, term.parameters])[0]
            information, origin, reference = self.centring[:, own]
            if not term.covariance.n_correlations:
                precision = np.diag(factor) ** -2.0
                with np.errstate(invalid="ignore"):
                    square = (information + reference) / (information + precision)
                square = np.where(np.isinf(information), 1.0, square)
                out[own] = origin + (root[own] - square * origin) / np.sqrt(square)
            elif not np.isinf(information.flat[0]):
                out[own] = np.linalg.solve(factor, root[own].T).T
        return out

    def root_terms(self) -> list[tuple[TermLayout, Ints]]:
        """Each term of the root, and the positions (groups, q) of its effects among the root's."""
        out = []
        for term in self.model.hyperparameters.terms:
            if term.factor != self.leaf:
                own = self.layout.effects_of(term.factor) - self.before
                out.append((term, own[:, term.offset : term.offset + term.covariance.size]))
        return out

    def point(self, theta: Array, gamma: Array, root: Array) -> Array:
        """The point of theta (d,), coefficients (p,) and the root's effects (n_root,), where they are centred."""
        return np.concatenate([self.from_theta(theta), (gamma - self.mean) / self.scale, root])

    def with_threads(self, threads: int) -> JointDensity:
        """The same density, for use on other threads."""
        twin = object.__new__(JointDensity)
        twin.__dict__.update(self.__dict__)
        twin.threads = threads
        return twin


@dataclass(frozen=True, eq=False)
class Unpacked:
    """A point, its log prior (effects left out), and what the rows need of it."""

    point: Array
    value: float
    natural: Array
    relative: Array
    root: Array
    lam: Array
    constants: Array
    gradient: Array

    def at_root(self, root: Array) -> Unpacked:
        """The same with another root."""
        return replace(self, root=np.ascontiguousarray(root, dtype=float))


@dataclass(frozen=True, eq=False)
class Passed:
    """What a pass over the rows brought."""

    value: float
    in_root: Array
    in_constant: Array
    zz: Array
    hess: Array
    moments: LeafMoments


_NOT_TOUCHED = (np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros((0, 0), dtype=np.int32))


def centred(n_root: int) -> Array:
    """The centring (3, n_root) in which e is u itself."""
    out = np.zeros((3, n_root))
    out[INFORMATION] = np.inf
    return out


def _own_parameters(model: Model) -> tuple[str, str]:
    """Names of the family's parameters behind the second and third predictor, '' where it has none."""
    names = (*model.family.parameters, "", "")
    return names[0], names[1]


def _other_starts(q: int) -> Array:
    """Where else the search for a group's mode begins: the centre and two sds out on each axis."""
    return np.concatenate([np.zeros((1, q)), 2.0 * np.eye(q), -2.0 * np.eye(q)])


def _edges(pointer: Ints, parts: int) -> list[int]:
    """Where to cut the groups so that the parts have about as many rows each."""
    groups = pointer.size - 1
    cuts = np.searchsorted(pointer, np.linspace(0, pointer[-1], parts + 1)[1:-1])
    return [int(cut) for cut in np.unique(np.concatenate([[0], np.clip(cuts, 0, groups), [groups]]))]


def prior_curvature(density: JointDensity, point: Array) -> tuple[Array, Array]:
    """Score (p,) and curvature (p,), at least a tenth of its scale, of the coefficients' prior on the scale of b."""
    b = point[density.d : density.d + density.p]
    score, curve = np.zeros(density.p), np.zeros(density.p)
    for j in range(density.p):
        kind, own = density.b_kinds[j], density.b_params[j]
        score[j] = log_prior(kind, own[0], own[1], own[2], b[j])[1]
        if kind == NORMAL:
            curve[j] = 1.0
        elif kind == STUDENT:  # the weight of Newton's method for a t: positive everywhere
            curve[j] = (own[0] + 1) / (own[0] + b[j] ** 2)
    return score, curve
