r"""The root given theta, by Laplace: where the joint density has its mode, and a normal approximation around it.

For theta fixed the joint density of the root ``r = (b, e)`` (coefficients, effects of the factors other than the leaf)
is close to normal with precision ``M(theta) = c(theta) H + Q(theta)``: H the negative Hessian of the rows' log density,
taken at a reference point, Q that of the prior, known for every theta, and ``c = exp(s' (phi - phi_0))`` a scale, for
rows say less of the root where the leaf's sd is larger; s makes the derivative of log |M| at the reference what it is.
Integrating the root out,

.. math:: \tilde L(\theta) = \log p(y, \hat r(\theta), \theta) - \tfrac12 \log |M(\theta)|,

whose gradient is the partial derivative in theta (by the envelope theorem) less half that of log |M|. H is taken anew
until the mode rests. The same M(theta) gives, for any theta, mean and covariance of r: small sds of the root's factors
shrink its effects as they must.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.lapack import inverse_from_factor_in_place
from partialpool.algebra.leaf import GRADIENT
from partialpool.errors import InferenceError
from partialpool.inference.coordinates import Coordinates
from partialpool.inference.joint import JointDensity, prior_curvature
from partialpool.inference.optimum import Optimum, maximise, negative_hessian
from partialpool.spec.hyperparameters import TermLayout

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Predicted gain of a Newton step at which the root's mode is found.
ROOT_TOLERANCE = 1e-7
MOST_ROOT_STEPS = 60
#: Predicted gain of a step that need not be had.
LITTLE = 0.01
#: Times that the rows' Hessian is taken anew while theta is searched.
MOST_ROUNDS = 10
#: Move of theta's mode, in its own sds, below which the reference point is good enough.
RESTED = 0.05
STEP = 1e-3
RESCALE_STEP = 0.1


class RootLaplace:
    """The root's normal approximation around a reference point; see the module.

    Attributes
    ----------
    phi, root : the reference point, theta in the coordinates of `Coordinates`. hessian : H (R, R) at it.
    """

    def __init__(self, density: JointDensity) -> None:
        self.density = density
        self.d, self.n_root = density.d, density.rows.n_root
        self.coordinates = Coordinates(density.model)
        self.coordinates.bounds = {}  # in a point a bounded sd is a logit already
        self.jacobian_scale = np.concatenate([density.scale, np.ones(density.n_root)])
        self.blocks = self._root_terms()
        self.phi = self._start()
        self.root = np.zeros(self.n_root)
        self.hessian = np.zeros((self.n_root, self.n_root))
        self.scaling = np.zeros(self.d)
        self._latest = self.root  # where the last search for the root's mode ended
        self.passes = 0
        self.status: list[str] = []

    # -- theta --------------------------------------------------------------------------------------------------------

    def t(self, phi: Array) -> Array:
        """t (K, d), the first part of a point, from phi (K, d)."""
        return self.coordinates.theta(phi)

    def point(self, phi: Array, root: Array) -> Array:
        """A point (D,) from phi (d,) and root (R,)."""
        return np.concatenate([self.t(phi[None, :])[0], root])

    def _start(self) -> Array:
        """sds of half the response's spread on the link scale (over the column's size); family parameters at rest."""
        model = self.density.model
        design, hyper = model.design, model.hyperparameters
        spread = link_spread(model)
        theta = np.zeros(hyper.size)
        for term, group in zip(hyper.terms, design.groups, strict=True):
            own = spread if group.predictor == 0 else 1.0
            for column, name in enumerate(group.names):
                values = design.V[:, group.columns[column]]
                size = 1.0 if name.rpartition(".")[2] == "Intercept" else float(np.sqrt(np.mean(values**2))) or 1.0
                theta[term.at + column] = math.log(0.5 * own / size)
        for name, _ in hyper.auxiliary:
            start = {"sigma": 0.7 * spread, "nu": 8.0}.get(name, 2.0)
            theta[hyper.auxiliary_at(name)] = math.log(start)
        phi = self.density.from_theta(theta)
        phi[self.density.params[:, 4] > 0] = 0.0
        return phi

    # -- the prior's precision ----------------------------------------------------------------------------------------

    def _root_terms(self) -> list[tuple[TermLayout, Ints]]:
        """Each term of the root, and the positions (groups, q) of its effects in the root."""
        return [(term, own + self.density.p) for term, own in self.density.root_terms()]

    def matrices(self, phi: Array, point: Array) -> Array:
        """M (K, R, R) for phi (K, d); the coefficients' prior has its curvature at `point`."""
        out = self._scale(phi)[:, None, None] * self.hessian
        self.add_prior(out, self.t(phi), point)
        return out

    def precision(self) -> Array:
        """M (R, R) at the reference point."""
        return np.asarray(self.matrices(self.phi[None, :], self.point(self.phi, self.root))[0])

    def _scale(self, phi: Array) -> Array:
        return np.exp(np.clip((phi - self.phi) @ self.scaling, -3.0, 3.0))

    def add_prior(self, matrices: Array, t: Array, point: Array) -> None:
        """Add Q(theta) to M (K, R, R) for t (K, d); the coefficients' prior has its curvature at `point`."""
        p = self.density.p
        matrices[:, np.arange(p), np.arange(p)] += prior_curvature(self.density, point)[1]
        theta = self.density.theta(t)
        for term, own in self.blocks:
            inverse = precision_of_term(term, theta)
            matrices[:, own[:, :, None], own[:, None, :]] += inverse[:, None]

    def prior_pull(self, t: Array, root: Array) -> Array:
        """Gradient (K, R) of the root's prior at one root (R,), for t (K, d)."""
        out = np.zeros((t.shape[0], self.n_root))
        point = np.concatenate([t[0], root])
        out[:, : self.density.p] = prior_curvature(self.density, point)[0]
        theta = self.density.theta(t)
        for term, own in self.blocks:
            out[:, own] -= np.einsum("kij,gj->kgi", precision_of_term(term, theta), root[own])
        return out

    # -- the mode of the root -----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """The root's mode at phi by Newton's method, and H there; the groups' modes are kept as starting points."""
        density = self.density
        last = math.inf
        for _ in range(MOST_ROOT_STEPS):
            point = self.point(self.phi, self.root)
            curvature = density.curvature(point)
            self.passes += 2
            if not math.isfinite(curvature.value):
                raise InferenceError(
                    "The log density is not finite at the starting point; check the scale of the data, and that the "
                    "link gives a possible mean for every row."
                )
            self.hessian = self.jacobian_scale[:, None] * curvature.precision * self.jacobian_scale
            t = self.t(self.phi[None, :])
            matrix = self.matrices(self.phi[None, :], point)
            gradient = self.jacobian_scale * curvature.gradient + self.prior_pull(t, self.root)[0]
            step = cho_solve(factored(matrix[0]), gradient)
            gain = 0.5 * float(gradient @ step)
            if gain < ROOT_TOLERANCE or (gain < LITTLE and gain > 0.5 * last):
                break
            last = gain
            if gain < LITTLE:  # the quadrature's value and gradient may differ by more
                self.root = self.root + step
            else:
                self._move(point, step)
        density.recentre(self.point(self.phi, self.root))

    def _move(self, point: Array, step: Array) -> None:
        """Along a Newton step of the root, halved until the density rises."""
        before = self.density.value(point[None, :])[0]
        for halving in range(30):
            root = self.root + step / 2**halving
            self.passes += 1
            if self.density.value(self.point(self.phi, root)[None, :])[0] >= before - 1e-9 * abs(before):
                self.root = root
                return
        self.status.append("a Newton step of the root could not raise the density")

    def settle(self, phi: Array, start: Array) -> tuple[float, Array, Array, Array]:
        """The root's mode at phi with H fixed: joint density, its gradient (D,), the root, and the Cholesky of M."""
        t = self.t(phi[None, :])
        matrix = self.matrices(phi[None, :], np.concatenate([t[0], start]))
        low = factored(matrix[0])
        root, best, best_gradient = start, -math.inf, np.zeros(self.density.size)
        step = np.zeros(self.n_root)
        length, gain = 1.0, math.inf
        for _ in range(MOST_ROOT_STEPS):
            trial = root + length * step
            value, gradient = self.density.value_and_gradient(np.concatenate([t[0], trial])[None, :])
            self.passes += 1
            if not value[0] >= best - 1e-9 * abs(best):
                length *= 0.4
                # few nodes leave gradient and value at odds: where little is to be gained, that is no reason to go on
                if length < (0.1 if gain < LITTLE else 1e-4):
                    break
                continue
            root, best, best_gradient = trial, float(value[0]), gradient[0]
            slope = best_gradient[self.d :]
            step = cho_solve(low, slope)
            length = min(1.0, 2.0 * length)
            gain = 0.5 * float(slope @ step)
            if gain < ROOT_TOLERANCE:
                break
        return best, best_gradient, root, low

    # -- the marginal density of theta --------------------------------------------------------------------------------

    def objective(self, phis: Array) -> tuple[Array, Array]:
        """L(phi) (K,) and gradient (K, d), with H fixed at the reference point."""
        values, gradients = np.empty(len(phis)), np.zeros((len(phis), self.d))
        with np.errstate(all="ignore"):
            for k, phi in enumerate(phis):
                try:
                    values[k], gradients[k] = self._objective(phi)
                except np.linalg.LinAlgError:
                    values[k] = -np.inf
        return values, gradients

    def _objective(self, phi: Array) -> tuple[float, Array]:
        value, gradient, root, low = self.settle(phi, self._latest)
        if not math.isfinite(value):
            return -math.inf, np.zeros(self.d)
        t = self.t(phi[None, :])
        through_q, trace = self._log_determinant_slope(phi, t, low)
        slope = gradient[: self.d] + through_q
        slope = self.coordinates.pull_back(phi[None, :], t, slope[None, :], density=True)[0]
        slope = slope - 0.5 * trace * self.scaling
        self._latest = root
        value += float(self.coordinates.log_jacobian(phi[None, :], t)[0])
        return value - float(np.log(np.diag(low)).sum()), slope

    def _log_determinant_slope(self, phi: Array, t: Array, low: Array) -> tuple[Array, float]:
        """Gradient (d,) in t of ``-log |M| / 2`` through Q, and the trace of ``M^-1 c H``."""
        out = np.zeros(self.d)
        if not self.d:
            return out, 0.0
        inverse = inverse_of(low)
        for term, own in self.blocks:
            total = inverse[own[:, :, None], own[:, None, :]].sum(axis=0)
            for j in range(term.parameters.start, term.parameters.stop):
                moved = np.repeat(t, 2, axis=0)
                moved[0, j] += STEP
                moved[1, j] -= STEP
                up, down = precision_of_term(term, self.density.theta(moved))
                out[j] = -0.5 * float((total * (up - down)).sum()) / (2 * STEP)
        return out, float(self._scale(phi[None, :])[0] * (inverse * self.hessian).sum())

    def rescale(self) -> None:
        """The derivative of log |M| through the rows' Hessian, by central differences along phi: see `scaling`."""
        self.scaling = np.zeros(self.d)
        if not self.d or not self.n_root:
            return
        point = self.point(self.phi, self.root)
        t = self.t(self.phi[None, :])
        base = inverse_of(factored(self.precision()))
        trace = float((base * self.hessian).sum())
        if trace < 1e-6:
            return
        slopes = np.zeros(self.d)
        for j in range(self.d):
            logs = []
            for sign in (1.0, -1.0):
                phi = self.phi.copy()
                phi[j] += sign * RESCALE_STEP
                root = self.settle(phi, self.root)[2]
                curvature = self.density.curvature(self.point(phi, root))
                self.passes += 2
                matrix = (self.jacobian_scale[:, None] * curvature.precision * self.jacobian_scale)[None]
                self.add_prior(matrix, t, point)
                logs.append(2 * float(np.log(np.diag(factored(matrix[0]))).sum()))
            slopes[j] = (logs[0] - logs[1]) / (2 * RESCALE_STEP)
        self.scaling = slopes / trace

    def find_mode(self, tolerance: float = 1e-4) -> Optimum:
        """The mode of theta with the root integrated out, H taken anew until it rests."""
        self.refresh()
        inverse = self._first_curvature()
        best = None
        for number in range(MOST_ROUNDS):
            self._latest = self.root
            self.rescale()
            best = maximise(self.objective, self.phi, inverse, tolerance=1e-2 if number == 0 else tolerance)
            moved = best.point - self.phi
            self.root = self.settle(best.point, self._latest)[2]
            self.phi = best.point
            self.refresh()
            if not self.d or float(np.abs(moved).max()) < RESTED * math.sqrt(float(np.min(inverse))) + 1e-3:
                break
        assert best is not None
        return best

    def _first_curvature(self) -> Array:
        hyper = self.density.model.hyperparameters
        inverse = np.full(self.d, 2.0 / max(self.density.rows.y.size, 4))
        for term in hyper.terms:
            inverse[term.parameters] = 1.0 / max(self.density.layout.sizes[term.factor], 2)
        inverse[self.density.params[:, 4] > 0] = 1.0
        return inverse

    def negative_hessian(self) -> Array:
        """That of L at phi, (d, d)."""
        self._latest = self.root
        return negative_hessian(self.objective, self.phi, 1e-2)

    # -- the root given any theta -------------------------------------------------------------------------------------

    def tilt(self) -> Array:
        """How the rows' gradient in the root, at the reference, moves with phi: (R, d), by central differences."""
        out = np.zeros((self.n_root, self.d))
        for j in range(self.d):
            sides = []
            for sign in (1, -1):
                phi = self.phi.copy()
                phi[j] += sign * 0.05
                passed = self.density.rows_at(GRADIENT, self.density.unpack(self.point(phi, self.root)))
                self.passes += 1
                sides.append(self.jacobian_scale * passed.in_root)
            out[:, j] = (sides[0] - sides[1]) / 0.1
        return out

    def conditional(self, phi: Array, tilt: Array) -> tuple[Array, Array]:
        """Pulls (K, R) and Cholesky factors (K, R, R) of the precision of the root for phi (K, d).

        The conditional mean is the reference root plus ``M^-1`` times the pull.
        """
        t, own = self.t(phi), self.t(self.phi[None, :])
        low = np.asarray(np.linalg.cholesky(self.matrices(phi, self.point(self.phi, self.root))), dtype=float)
        pull = (phi - self.phi) @ tilt.T + self.prior_pull(t, self.root) - self.prior_pull(own, self.root)
        return pull, low


def cho_solve(low: Array, right: Array) -> Array:
    """``(L L')^-1 right`` for one factor (R, R)."""
    from scipy.linalg import solve_triangular

    half = solve_triangular(low, right, lower=True, check_finite=False)
    return np.asarray(solve_triangular(low, half, lower=True, trans=1, check_finite=False))


def factored(matrix: Array) -> Array:
    """The Cholesky factor of a symmetric matrix, its negative directions raised where there are any."""
    try:
        return np.asarray(np.linalg.cholesky(matrix), dtype=float)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.cholesky(definite(matrix)), dtype=float)


def inverse_of(low: Array) -> Array:
    """``(L L')^-1``, symmetric, from L."""
    out = np.array(low, dtype=float, order="C")
    if out.size:
        inverse_from_factor_in_place(out)
    lower = np.tril(out)
    return np.asarray(lower + np.tril(lower, -1).T)


def definite(matrix: Array) -> Array:
    """A symmetric matrix, its negative directions raised where there are any."""
    try:
        np.linalg.cholesky(matrix)
        return matrix
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        floor = 1e-6 * float(np.abs(values).max()) + 1e-10
        return np.asarray((vectors * np.maximum(np.abs(values), floor)) @ vectors.T)


def precision_of_term(term: TermLayout, theta: Array) -> Array:
    """Inverse covariances (K, q, q) of a term's effects at theta (K, d)."""
    factor = term.covariance.factor(theta[:, term.parameters])
    inverse = np.linalg.inv(factor)
    return np.asarray(np.swapaxes(inverse, 1, 2) @ inverse)


def link_spread(model: object) -> float:
    """Spread of the response on the scale of its linear predictor: its sd under an identity link, else 1."""
    family, design = model.family, model.design  # type: ignore[attr-defined]
    if family.link != "identity" or family.discrete:
        return 1.0
    y = np.log(design.y) if family.name == "lognormal" else design.y
    return float(np.std(y if design.offset is None else y - design.offset)) or 1.0
