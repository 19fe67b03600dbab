r"""The reference engine for responses that are not Gaussian: NUTS on the whole model, nothing integrated out.

The unknowns are ``[t, b, e]`` of `algebra.joint` with the effects of every factor in the root. Where the engines that
integrate the leaf out approximate (quadrature, Laplace, importance weights), this one does not; from them it takes only
the place where to start and its coordinates, which change the speed and not the target.

Each group term is centred (e = u) where the rows say most about its effects, non-centred (e = u / sd) where they say
little, and else in between, by the average share :math:`\mathrm{Var}(u \mid y) / \mathrm{sd}^2` that its groups take
from the population (Papaspiliopoulos, Roberts and Sköld, 2007, A general framework for the parametrization of
hierarchical models, Statistical Science 22, 59-73). Then all is scaled and turned by the curvature at the mode:
``t = c + F z_t``; for coefficients and the smaller factors ``e_rest = c + J z_t + A z_rest``, and for the factor with
the most effects ``e_leaf = c + J z_t + B z_rest + s z_leaf``, J being how the mode of e moves with t.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.joint import INFORMATION, ORIGIN, REFERENCE
from partialpool.algebra.lapack import one_blas_thread
from partialpool.algebra.quadrature import ladder
from partialpool.errors import InferenceError
from partialpool.inference.base import Result, Settings
from partialpool.inference.gap import choose_nodes
from partialpool.inference.joint import JointDensity
from partialpool.inference.nuts import CHAINS, Density, Grown, Plan, sample_until, thinned, whole_model_result
from partialpool.inference.parameterization import term_names, told, wanted_degrees
from partialpool.inference.root import RootLaplace, cho_solve, definite
from partialpool.model import Model
from partialpool.spec.hyperparameters import TermLayout

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

TUNE = 1000
#: Draws a chain of the first run, and how many times as many a longer run may take.
FIRST = 1000
LONGEST = 100
#: Group effects whose chains are checked; in a larger model as many, evenly spread.
CHECKED_EFFECTS = 400
TARGET_ACCEPT = 0.9
#: Share taken from the population below which a term is centred, above which it is non-centred, and (for terms with
#: correlated effects) the one limit.
CENTRED_BELOW, NON_CENTRED_ABOVE, CORRELATED_ABOVE = 0.3, 0.7, 0.5
#: Coefficients and effects up to which their curvature is taken, and numbers of a rotation that is worth its time.
MOST_DENSE = 3000
MOST_ROTATED = 400_000
TOO_MANY = "too many effects for a search of the mode: chains start where the scale of the data leads"
#: Step of a derivative in t, and the least curvature that is believed.
STEP, LEAST_CURVATURE = 1e-4, 0.1
#: Coefficients and effects of the smaller factors up to which they are turned.
MOST_TURNED = 500


class JointReferenceEngine:
    """NUTS on hyperparameters, coefficients and every group effect; see the module."""

    name = "nuts"

    def run(self, model: Model, settings: Settings) -> Result:
        """Four chains, run on until every parameter's bulk and tail effective sample size is ``settings.ess``."""
        began = time.perf_counter()
        with one_blas_thread():
            whole = WholeJoint(model, settings)
            first = max(FIRST, math.ceil(settings.draws / CHAINS))
            plan = Plan(
                first, LONGEST * first, settings.ess, TUNE, settings.seed, settings.threads, settings.progress,
                TARGET_ACCEPT,
            )  # fmt: skip
            checked = whole.checked_effects()
            grown = sample_until(
                whole.density, whole.size, whole.initial, lambda positions: whole.quantities(positions, checked), plan
            )
        return _result(whole, grown, checked, settings, began)


def _result(whole: WholeJoint, grown: Grown, checked: Ints, settings: Settings, began: float) -> Result:
    model, chains, joint = whole.model, grown.chains, whole.joint
    stacked = chains.stacked()
    front = whole.front(stacked)
    ran = f"{chains.positions.shape[0]} chains of {chains.draws:,} draws in {whole.size:,} dimensions"
    return whole_model_result(
        grown, settings, began, names=model.parameter_names, checked=checked, theta=joint.theta(front),
        beta=model.coefficients.to_public(joint.gamma(front)),
        effects=lambda kept: joint.root_effects(whole.points(stacked[kept])),
        n_effects=joint.n_root, steps=[*whole.steps, ran], parameterization=whole.parameterization,
    )  # fmt: skip


class WholeJoint:
    """The density of all unknowns of a model in the sampler's coordinates; see the module.

    Attributes
    ----------
    joint : the density at ``[t, b, e]``. scouted : where it lies. degrees : by term, from 0 (non-centred) to 1.
    steps : what was found on the way, in words.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        wanted = wanted_degrees(model, settings.parameterization)
        self.model, self.names = model, term_names(model)
        self.joint = JointDensity(model, leaf=False)
        self.d, self.p, self.size = self.joint.d, self.joint.p, self.joint.size
        self.scouted, found = _scout(self.joint, settings)
        self.steps = [found] if found else []
        self.degrees = [
            self._degree(degree, term, own) for degree, (term, own) in zip(wanted, self.joint.root_terms(), strict=True)
        ]
        self._set_centring()
        self.rotation = Rotation.at(self.joint, self.scouted)

    @property
    def parameterization(self) -> dict[str, str]:
        """How every group term is parameterized, in words."""
        return {name: told(degree) for name, degree in zip(self.names, self.degrees, strict=True)}

    # -- coordinates ------------------------------------------------------------------------------------------------

    def _degree(self, wanted: float | None, term: TermLayout, own: Ints) -> float:
        if wanted is not None:
            return wanted
        variance = self.scouted.variance[self.p + own]
        sds = np.exp(self.joint.theta(self.scouted.t[None, :])[0, term.at : term.at + own.shape[1]])
        share = float(np.clip(np.mean(variance / sds**2), 0.0, 1.0))
        if term.covariance.n_correlations:
            return 0.0 if share > CORRELATED_ABOVE else 1.0
        if CENTRED_BELOW <= share <= NON_CENTRED_ABOVE:
            return 1.0 - share
        return 1.0 if share < CENTRED_BELOW else 0.0

    def _set_centring(self) -> None:
        centring = self.joint.centring
        theta = self.joint.theta(self.scouted.t[None, :])[0]
        for degree, (term, own) in zip(self.degrees, self.joint.root_terms(), strict=True):
            if degree == 1.0:
                centring[INFORMATION, own] = np.inf
                continue
            centring[INFORMATION, own], centring[REFERENCE, own] = 0.0, 1.0
            if degree > 0.0:  # lambda such that q0 / (lambda + q0) = 1 - degree
                precision = np.exp(-2.0 * theta[term.at : term.at + own.shape[1]])
                centring[REFERENCE, own] = precision
                centring[INFORMATION, own] = precision * degree / (1.0 - degree)
                centring[ORIGIN, own] = self.scouted.root[self.p + own]

    def points(self, positions: Array) -> Array:
        """Points (K, D) ``[t, b, e]`` of the joint density from the sampler's positions."""
        return self.rotation.forward(positions)

    def front(self, positions: Array) -> Array:
        """The part ``[t, b]`` of the points (K, d + p)."""
        return self.points(positions)[:, : self.d + self.p]

    def density(self) -> Density:
        """The log density and gradient in the sampler's coordinates, with arrays of its own."""
        evaluate, rotation = self.joint.density(), self.rotation

        def density(position: Array) -> tuple[float, Array]:
            value, gradient = evaluate(rotation.forward(position))
            return value, rotation.backward(gradient)

        return density

    def initial(self, rng: np.random.Generator) -> Array:
        """A start spread wider than the posterior: chains that end apart show in R-hat."""
        density = self.density()
        position = rng.uniform(-2.0, 2.0, self.size)
        position[: self.d] *= 1.5
        for _ in range(20):
            with np.errstate(all="ignore"):
                value, gradient = density(position)
            if math.isfinite(value) and np.isfinite(gradient).all():
                break
            position = 0.5 * position  # a link that overflows, or an impossible mean
        return position

    # -- what the unknowns mean -------------------------------------------------------------------------------------

    def checked_effects(self) -> Ints:
        """Positions of the group effects whose chains are checked."""
        if self.joint.n_root <= CHECKED_EFFECTS:
            return np.arange(self.joint.n_root)
        return thinned(self.joint.n_root, CHECKED_EFFECTS)

    def quantities(self, positions: Array, effects: Ints) -> Array:
        """Public parameters, in the order of `summary()`, and the group effects named, (chains, draws, q)."""
        points = self.points(positions.reshape(-1, self.size))
        beta = self.model.coefficients.to_public(self.joint.gamma(points))
        public = self.model.hyperparameters.public(self.joint.theta(points))
        values = np.concatenate([beta, public, self.joint.root_effects(points)[:, effects]], axis=1)
        return values.reshape(*positions.shape[:2], values.shape[1])


# -- where the posterior lies --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scouted:
    """Roughly where the posterior lies: t (d,), the root ``[b, u]`` (R,), its variances, and its precision given t.

    precision is None where there are too many effects for it. turn_t (d, d): a factor of the covariance of t, the
    identity where it is not known. laplace : of the root given t, where that was found.
    """

    t: Array
    root: Array
    variance: Array
    turn_t: Array
    precision: Array | None = None
    laplace: RootLaplace | None = None


def _crude(joint: JointDensity) -> Scouted:
    """By the scale of the data alone: nothing is known of the effects."""
    laplace = RootLaplace(joint)
    t = laplace.t(laplace.phi[None, :])[0]
    variance = np.ones(joint.rows.n_root)
    theta = joint.theta(t[None, :])[0]
    for term, own in joint.root_terms():
        variance[joint.p + own] = np.exp(2.0 * theta[term.at : term.at + own.shape[1]])
    return Scouted(t, np.zeros(joint.rows.n_root), variance, np.eye(joint.d))


def _scout(joint: JointDensity, settings: Settings) -> tuple[Scouted, str]:
    """The mode of t with the leaf integrated out, and the curvature of (b, u) there; a sentence where there is none."""
    model = joint.model
    if joint.p + model.latent.n_root > MOST_DENSE:
        return _crude(joint), TOO_MANY
    try:
        with np.errstate(all="ignore"):
            found = _at_mode(joint, settings)
        if np.isfinite(found.t).all() and np.isfinite(found.root).all() and (found.variance > 0).all():
            return found, ""
    except (InferenceError, np.linalg.LinAlgError):
        pass
    return _crude(joint), "no mode found: chains start where the scale of the data leads"


def _at_mode(joint: JointDensity, settings: Settings) -> Scouted:
    model, p = joint.model, joint.p
    layout = model.latent
    q = 0 if layout.leaf is None else layout.widths[layout.leaf]
    density = JointDensity(model, nodes=ladder(q)[0], threads=settings.threads)
    laplace = RootLaplace(density)
    laplace.refresh()
    choose_nodes(density, laplace.point(laplace.phi, laplace.root))
    laplace.find_mode(1e-2)
    point = laplace.point(laplace.phi, laplace.root)
    own, moments = density.unpack(point), density.leaf_moments(point)
    leaf = (moments.mean @ own.lam.T).ravel() if q else np.empty(0)
    root = np.concatenate([laplace.root[:p], leaf, laplace.root[p:]])
    if joint.rows.n_root <= MOST_DENSE:
        whole = RootLaplace(joint)
        whole.phi, whole.root = laplace.phi, root
        whole.refresh()
        precision = definite(whole.precision())
        variance = np.diag(np.linalg.inv(precision)).copy()
        return Scouted(point[: joint.d], whole.root, variance, _turn_of_t(laplace), precision, whole)
    variance = np.diag(np.linalg.inv(definite(laplace.precision())))
    of_leaf = np.einsum("ij,gjk,ik->gi", own.lam, moments.covariance, own.lam).ravel() if q else np.empty(0)
    return Scouted(point[: joint.d], root, np.concatenate([variance[:p], of_leaf, variance[p:]]), _turn_of_t(laplace))


def _turn_of_t(laplace: RootLaplace) -> Array:
    """A factor of the covariance of t; the identity where phi is not t (`Coordinates`)."""
    if laplace.coordinates.shifted or not laplace.d:
        return np.eye(laplace.d)
    values, vectors = np.linalg.eigh(np.nan_to_num(laplace.negative_hessian()))
    return np.asarray(np.linalg.cholesky((vectors / np.maximum(values, LEAST_CURVATURE)) @ vectors.T))


def _follow(joint: JointDensity, scouted: Scouted) -> Array:
    """How the conditional mode of ``[b, e]`` moves with t, (R, d)."""
    out = np.zeros((joint.rows.n_root, joint.d))
    laplace = scouted.laplace
    if laplace is None or laplace.coordinates.shifted:
        return out
    tilt = laplace.tilt()
    for j in range(joint.d):
        sides = []
        for sign in (1.0, -1.0):
            t = scouted.t.copy()
            t[j] += sign * STEP
            pull, low = (part[0] for part in laplace.conditional(t[None, :], tilt))
            mean = laplace.root + cho_solve(low, pull)
            sides.append(np.concatenate([mean[: joint.p], joint.to_e(t, mean[joint.p :])]))
        out[:, j] = (sides[0] - sides[1]) / (2 * STEP)
    return out


# -- scales and turns ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rotation:
    """The point ``[t, b, e]`` from the sampler's coordinates z of the same order; see the module.

    origin (D,): the mode. turn_t (d, d) and follow (R, d): of t, and what ``[b, e]`` take along of it. rest: positions
    in ``[b, e]`` of what is turned, by `turn` (rest, rest), and what the leaf (positions `leaf`) takes along of it, by
    `along` (leaf, rest), the leaf's own scales being `scale` (leaf,). Where nothing is turned, rest is empty.
    """

    origin: Array
    turn_t: Array
    follow: Array
    rest: Ints
    leaf: slice
    turn: Array
    along: Array
    scale: Array

    @staticmethod
    def at(joint: JointDensity, scouted: Scouted) -> Rotation:
        """From the curvature at the mode, in the coordinates e that `joint` has been given."""
        p, size = joint.p, joint.rows.n_root
        point = np.concatenate([scouted.t, scouted.root])
        origin = np.concatenate([point[: joint.d + p], joint.to_e(point, scouted.root[p:])])
        follow = _follow(joint, scouted) @ scouted.turn_t

        def scaled(scale: Array) -> Rotation:
            nothing = np.empty(0, dtype=np.int64)
            return Rotation(
                origin, scouted.turn_t, follow, nothing, slice(0, size), np.empty((0, 0)), np.empty((size, 0)), scale
            )

        slopes = _slopes(joint, scouted)
        if scouted.precision is None:
            scale = np.sqrt(scouted.variance)
            for own, slope in slopes:
                scale[p + own] /= np.sqrt((slope * slope).sum(axis=-1))
            return scaled(scale)
        precision = scouted.precision.copy()
        for own, slope in slopes:
            at = p + own
            precision[at] = np.einsum("gqk,gqj->gkj", slope, precision[at])
            precision[:, at] = np.einsum("jgq,gqk->jgk", precision[:, at], slope)
        leaf = slice(p, p + _leaf_effects(joint))
        rest = np.concatenate([np.arange(p), np.arange(leaf.stop, size)])
        if rest.size > MOST_TURNED or rest.size * max(leaf.stop - p, rest.size) > MOST_ROTATED:
            return scaled(np.sqrt(np.diag(np.linalg.inv(precision))))
        return Rotation(origin, scouted.turn_t, follow, rest, leaf, *_turned(precision, rest, leaf))

    def forward(self, position: Array) -> Array:
        """Points (..., D) from z (..., D)."""
        d = self.turn_t.shape[0]
        out = np.empty_like(position)
        own, linear = position[..., :d], position[..., d:]
        out[..., :d] = own @ self.turn_t.T
        moved = out[..., d:]
        moved[...] = own @ self.follow.T
        moved[..., self.leaf] += self.scale * linear[..., self.leaf]
        if self.rest.size:
            turned = linear[..., self.rest]
            moved[..., self.leaf] += turned @ self.along.T
            moved[..., self.rest] += turned @ self.turn.T
        out += self.origin
        return out

    def backward(self, gradient: Array) -> Array:
        """The gradient (D,) in z from that at a point."""
        d = self.turn_t.shape[0]
        out = np.empty_like(gradient)
        linear = gradient[d:]
        out[:d] = gradient[:d] @ self.turn_t + linear @ self.follow
        moved, own = out[d:], linear[self.leaf]
        moved[self.leaf] = self.scale * own
        if self.rest.size:
            moved[self.rest] = linear[self.rest] @ self.turn + own @ self.along
        return out


def _slopes(joint: JointDensity, scouted: Scouted) -> list[tuple[Ints, Array]]:
    """For each term that is not centred the positions (groups, q) of its effects, and du / de (groups, q, q)."""
    theta = joint.theta(scouted.t[None, :])
    out = []
    for term, own in joint.root_terms():
        information, _, reference = joint.centring[:, own]
        if np.isinf(information).all():
            continue
        factor = np.repeat(term.covariance.factor(theta[:, term.parameters]), len(own), axis=0)
        if not term.covariance.n_correlations:
            precision = np.einsum("gii->gi", factor) ** -2.0
            factor = np.sqrt((information + reference) / (information + precision))[:, :, None] * np.eye(own.shape[1])
        out.append((own, factor))
    return out


def _leaf_effects(joint: JointDensity) -> int:
    """Effects of the factor that stands first in the root, the one with the most."""
    leaf = joint.layout.leaf
    return 0 if leaf is None else joint.layout.sizes[leaf] * joint.layout.widths[leaf]


def _turned(precision: Array, rest: Ints, leaf: slice) -> tuple[Array, Array, Array]:
    """`turn`, `along` and `scale` of `Rotation`: the leaf's precision is diagonal, group by group."""
    own, across = precision[leaf, leaf], precision[leaf][:, rest]
    follows = np.linalg.solve(own, across) if own.size else across
    low = np.linalg.cholesky(definite(precision[np.ix_(rest, rest)] - across.T @ follows))
    turn = np.linalg.inv(low).T
    scale = 1.0 / np.sqrt(np.diag(own))
    return np.ascontiguousarray(turn), np.ascontiguousarray(-follows @ turn), scale
