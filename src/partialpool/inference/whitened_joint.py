r"""NUTS on theta, coefficients and the root's effects in whitened coordinates, the leaf integrated out by quadrature.

The unknowns are ``[phi, b, e] = m + L z``: m the mode of Laplace's approximation, L a factor of its covariance

.. math:: \begin{pmatrix} \Sigma & \Sigma J' \\ J \Sigma & M^{-1} + J \Sigma J' \end{pmatrix},

J the derivative of the root's conditional mode in phi. Where the data say little of an effect, u and its sd form a
funnel that no linear map straightens: each effect e of the root stands between centred and non-centred by the
information that the rows hold on it at the mode (`algebra.joint`). The target is close to a standard normal, so that
tuning is short.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.joint import INFORMATION, ORIGIN, REFERENCE
from partialpool.algebra.lapack import one_blas_thread
from partialpool.inference.base import Accuracy, Result
from partialpool.inference.gap import gap_over_posterior
from partialpool.inference.joint import centred
from partialpool.inference.nuts import Density, Grown, Plan, sample_until, thinned, verdict
from partialpool.inference.root import RootLaplace, cho_solve, inverse_of, precision_of_term
from partialpool.model import Model

if TYPE_CHECKING:
    from partialpool.inference.base import Settings
    from partialpool.inference.laplace import LaplaceRun

Array = NDArray[np.float64]

TUNE = 120
#: Unknowns above which each has its own scale and no more.
MOST_DENSE = 3000
LIMIT = 50_000
TARGET_ACCEPT = 0.8
#: In many dimensions larger steps that are refused more often are cheaper.
MANY, TARGET_OF_MANY = 500, 0.7
#: There a trajectory of 7 steps, between a quarter and a half of a period, does; doubling it would buy nothing.
DEPTH_OF_MANY = 3
TUNE_OF_MANY = 100
LEAST_CURVATURE = 0.1


class WhitenedJointEngine:
    """NUTS in whitened coordinates of theta and the root, for responses that are not Gaussian; see the module."""

    name = "whitened"

    def run(self, model: Model, settings: Settings) -> Result:
        """Four chains, run on until every parameter's bulk and tail effective sample size is ``settings.ess``."""
        from partialpool.inference.laplace import LaplaceRun
        from partialpool.inference.progress import Progress

        run = LaplaceRun(model, settings)
        with Progress(settings.progress) as run.progress:
            run.prepare()
        return run_whitened_joint(run)


class WhitenedJoint:
    """The log density of z; see the module."""

    def __init__(self, laplace: RootLaplace, negative_hessian: Array, tilt: Array) -> None:
        self.laplace = laplace
        self.joint = laplace.density.with_threads(1)
        self.size, self.d = self.joint.size, self.joint.d
        self.joint.centring = self._centring()
        self.mode = self._in_e(laplace.phi, laplace.root)
        self.factor = self._factor(negative_hessian, tilt)

    def _centring(self) -> Array:
        """From the variances v at the mode: information ``1 / v - q0``, origin and prior precision q0."""
        laplace, p = self.laplace, self.joint.p
        out = centred(self.joint.n_root)
        if not self.joint.n_root:
            return out
        low = laplace.settle(laplace.phi, laplace.root)[3]
        variance = np.diag(inverse_of(low))
        theta = self.joint.theta(laplace.t(laplace.phi[None, :]))
        for term, own in laplace.blocks:
            precision = 1 / np.diag(np.linalg.inv(precision_of_term(term, theta)[0]))
            if term.covariance.n_correlations:  # several correlated effects: all one way or the other
                alone = float(np.mean(variance[own] * precision)) > 0.5
                out[INFORMATION, own - p] = 0.0 if alone else np.inf
                continue
            out[INFORMATION, own - p] = np.maximum(1 / variance[own] - precision, 1e-3 * precision)
            out[ORIGIN, own - p] = laplace.root[own]
            out[REFERENCE, own - p] = precision
        return out

    def _in_e(self, phi: Array, root: Array) -> Array:
        """The unknowns [phi, b, e] where the root's effects are u."""
        p = self.joint.p
        return np.concatenate([phi, root[:p], self.joint.to_e(self.laplace.t(phi[None, :])[0], root[p:])])

    def _factor(self, negative_hessian: Array, tilt: Array) -> Array:
        """L (D, D), or the scales (D,) where there are too many unknowns."""
        laplace, d = self.laplace, self.d
        values, vectors = np.linalg.eigh(negative_hessian) if d else (np.empty(0), np.empty((0, 0)))
        own = vectors / np.sqrt(np.maximum(np.nan_to_num(values), LEAST_CURVATURE))
        low = laplace.conditional(laplace.phi[None, :], tilt)[1][0]
        mean = laplace.root
        # derivative of e's conditional mode in phi, and of e in u
        jacobian = np.zeros((self.size, d))
        for j in range(d):
            sides = []
            for sign in (1.0, -1.0):
                phi = laplace.phi.copy()
                phi[j] += sign * 1e-4
                pull, moved = laplace.conditional(phi[None, :], tilt)
                sides.append(self._in_e(phi, laplace.root + cho_solve(moved[0], pull[0])))
            jacobian[:, j] = (sides[0] - sides[1]) / 2e-4
        spread = np.ascontiguousarray(np.linalg.inv(low).T)  # the covariance of (b, u) given theta is spread spread'
        at = self._in_e(laplace.phi, mean)
        for column in range(spread.shape[1] if self._curved() else 0):
            spread[:, column] = (self._in_e(laplace.phi, mean + spread[:, column]) - at)[d:]
        if self.size > MOST_DENSE:
            scales = np.ones(self.size)
            scales[:d] = np.sqrt((own * own).sum(axis=1))
            scales[d:] = np.sqrt((spread * spread).sum(axis=1) + ((jacobian[d:] @ own) ** 2).sum(axis=1))
            return scales
        out = np.zeros((self.size, self.size))
        out[:d, :d] = own
        out[d:, :d] = jacobian[d:] @ own
        out[d:, d:] = spread
        return np.ascontiguousarray(out)

    def _curved(self) -> bool:
        return not bool(np.isinf(self.joint.centring[INFORMATION]).all())

    def make(self) -> Density:
        """The log density and gradient of z, with arrays of its own."""
        evaluate, mode, factor, d = self.joint.density(), self.mode, self.factor, self.d
        coordinates = self.laplace.coordinates
        shifted = bool(coordinates.shifted)
        transposed = np.ascontiguousarray(factor.T) if factor.ndim == 2 else factor
        dense = factor.ndim == 2

        def density(position: Array) -> tuple[float, Array]:
            unknowns = mode + (factor @ position if dense else factor * position)
            if not shifted:
                value, gradient = evaluate(unknowns)
                return value, (transposed @ gradient if dense else factor * gradient)
            phi = unknowns[None, :d].copy()  # unknowns is written to below
            t = coordinates.theta(phi)
            unknowns[:d] = t[0]
            value, gradient = evaluate(unknowns)
            gradient = gradient.copy()
            gradient[:d] = coordinates.pull_back(phi, t, gradient[None, :d], density=True)[0]
            value += float(coordinates.log_jacobian(phi, t)[0])
            return value, (transposed @ gradient if dense else factor * gradient)

        return density

    def points(self, positions: Array) -> Array:
        """Points (K, D) of the joint density from z (K, D)."""
        moved = positions @ self.factor.T if self.factor.ndim == 2 else positions * self.factor
        unknowns = self.mode + moved
        unknowns[:, : self.d] = self.laplace.t(unknowns[:, : self.d])
        return np.asarray(unknowns)

    def initial(self, rng: np.random.Generator) -> Array:
        """A start about as wide as the posterior, twice as wide in theta."""
        start = rng.standard_normal(self.size)
        start[: self.d] *= 2.0
        return start


def run_whitened_joint(run: LaplaceRun) -> Result:
    """The posterior by NUTS, from what a run has prepared."""
    settings, model = run.settings, run.model
    target = WhitenedJoint(run.laplace, run.transport.negative_hessian, run.transport.tilt)
    many = target.size >= MANY
    first = max(math.ceil((0.66 if many else 0.35) * settings.ess), 100)
    plan = Plan(
        first, max(LIMIT, first), settings.ess, TUNE_OF_MANY if many else TUNE, settings.seed, settings.threads,
        settings.progress, TARGET_OF_MANY if many else TARGET_ACCEPT, max_depth=DEPTH_OF_MANY if many else 10,
    )  # fmt: skip

    def quantities(positions: Array) -> Array:
        chains, draws, size = positions.shape
        values = run._quantities(target.points(positions.reshape(chains * draws, size)))
        return values.reshape(chains, draws, values.shape[1])

    with one_blas_thread():
        grown = sample_until(target.make, target.size, target.initial, quantities, plan)
    return _result(run, target, grown, model)


def _result(run: LaplaceRun, target: WhitenedJoint, grown: Grown, model: Model) -> Result:
    chains, settings, joint = grown.chains, run.settings, target.joint
    points = target.points(chains.stacked())
    count = len(points)
    theta, beta = joint.theta(points), model.coefficients.to_public(joint.gamma(points))
    root = joint.root_effects(points)
    kept = thinned(count, settings.draws)
    names = list(model.parameter_names)
    trusted, notes = verdict(grown, names, settings.ess)
    assert run.gap is not None
    centred = np.concatenate([points[:, : joint.d + joint.p], root], axis=1)
    error = gap_over_posterior(run.density, centred, np.full(count, 1.0 / count), run.gap, settings.seed)
    told = f"{chains.positions.shape[0]} chains of {chains.draws:,} draws in {target.size} whitened dimensions"
    accuracy = Accuracy(
        engine="whitened", reason=run.reason, trusted=trusted and error.good and run.sound,
        ess=dict(zip(names, grown.ess.tolist(), strict=True)), nodes=count,
        evaluations=chains.evaluations + run.evaluations, rhat=dict(zip(names, grown.rhat.tolist(), strict=True)),
        divergences=chains.divergences, steps=(*run.steps, told, *error.sentences),
        notes=(*run.notes, *notes, *error.notes), seconds=time.perf_counter() - run.began,
        quadrature_error=error.error, worst_groups=error.worst,
    )  # fmt: skip
    statistics: dict[str, Any] = {"depth": chains.depth, "energy": chains.energy, "diverging": chains.diverging}
    return Result(
        theta, np.full(count, -math.log(count)), beta, np.zeros_like(beta), theta[kept], beta[kept], math.nan, accuracy,
        settings, chains=chains.positions.shape[0], statistics=statistics, root=root, draws_root=root[kept],
        quadrature_nodes=run.density.nodes,
    )  # fmt: skip
