r"""Likelihood of coefficients and hyperparameters where effects need quadrature, and its maximum (lme4's glmer).

With one grouping factor (or factors that add to one leaf) the effects are integrated by quadrature, with as many nodes
as it takes. With crossed factors the leaf is integrated by quadrature and the effects e of the others by Laplace,

.. math:: \log p(y | \beta, \theta) \approx \log p(y | \hat e) - \tfrac12 \hat e' Q \hat e
          + \tfrac12 \log |Q| - \tfrac12 \log |H + Q|,

and importance sampling around the mode measures what that leaves out. With one node all effects are at their joint
mode: Laplace's approximation as glmer's nAGQ = 1 has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.lapack import one_blas_thread
from partialpool.algebra.leaf import GRADIENT, HESSIAN, VALUE
from partialpool.algebra.quadrature import ladder
from partialpool.errors import InferenceError, ModelError
from partialpool.inference.gap import steps_of, use_nodes
from partialpool.inference.joint import FINE, JointDensity, Passed, Unpacked
from partialpool.inference.optimum import MaximumLikelihood, maximise, negative_hessian
from partialpool.inference.root import RootLaplace, cho_solve, factored, precision_of_term
from partialpool.model import Model

Array = NDArray[np.float64]

#: Relative change at which more nodes are not tried.
SETTLED = 1e-9
#: Points of importance sampling around the mode of the crossed factors' effects.
IMPORTANCE_POINTS = 500
#: An sd is not taken below this: the effects' precision must stay finite.
LEAST_SD = 1e-7
MOST_STEPS = 100


class LogLikelihood(float):
    """A log likelihood, with how it was obtained.

    Attributes
    ----------
    nodes : quadrature nodes a dimension of the leaf's effects. quadrature_error : change to the next finer rule, nan
        where the nodes were given. correction, correction_error : what importance sampling adds to Laplace's
        approximation over the crossed factors, and its Monte Carlo error; 0 where nothing is left to Laplace.
    """

    nodes: int
    quadrature_error: float
    correction: float
    correction_error: float


def log_likelihood(model: Model, params: Mapping[str, float], nodes: int | None = None) -> LogLikelihood:
    """See `Model.log_likelihood`.

    Raises
    ------
    ModelError
        Where a value is missing or impossible, or the number of nodes is.
    """
    _check_nodes(nodes)
    names = model.coefficients.names
    missing = [name for name in (*names, *model.hyperparameters.names) if name not in params]
    if missing:
        raise ModelError(f"The parameter {missing[0]!r} has no value. Pass a value for {missing[0]!r}.")
    theta = model.hyperparameters.from_public(params)
    gamma = model.coefficients.from_public(np.array([float(params[name]) for name in names]))
    with one_blas_thread():
        return Likelihood(model).at(theta, gamma, nodes, measure=True)


def _check_nodes(nodes: int | None) -> None:
    whole = isinstance(nodes, int | np.integer) and not isinstance(nodes, bool)
    if nodes is not None and not (whole and 1 <= nodes <= 201):
        raise ModelError(f"nodes = {nodes!r} is not possible; give a whole number from 1 to 201, or leave it out.")


class Likelihood:
    """The likelihood of a model as a function of theta and coefficients."""

    def __init__(self, model: Model, threads: int = 1) -> None:
        self.density = JointDensity(model, threads=threads)
        self.e = np.zeros(self.density.n_root)
        self.terms = self.density.root_terms()

    def at(self, theta: Array, gamma: Array, nodes: int | None, *, measure: bool = False) -> LogLikelihood:
        """log p(y | gamma, theta) with so many nodes, or as many as it takes."""
        density = self.density
        error = math.nan
        if nodes is not None:
            self._use(nodes)
            value = self.value(theta, gamma)
        else:
            steps = steps_of(density.q)
            value = math.nan
            for step in steps if density.q else (1,):
                self._use(step)
                before, value = value, self.value(theta, gamma)
                error = abs(value - before)
                if error < SETTLED * abs(value) or density.q == 0:
                    break
        out = LogLikelihood(value)
        out.nodes, out.quadrature_error = density.nodes, error
        out.correction, out.correction_error = self._correction(theta, gamma) if measure else (math.nan, math.nan)
        return out

    def _use(self, nodes: int) -> None:
        use_nodes(self.density, nodes)
        self.density.tolerance = FINE

    def unpacked(self, theta: Array, gamma: Array) -> Unpacked:
        """What the rows need, the root's effects left at 0."""
        density = self.density
        t = density.from_theta(np.maximum(theta, -700.0))
        return density.unpack(np.concatenate([t, (gamma - density.mean) / density.scale, np.zeros(density.n_root)]))

    def value(self, theta: Array, gamma: Array) -> float:
        """With the nodes in force."""
        own = self.unpacked(theta, gamma)
        if not self.density.n_root:
            return self.density.rows_at(VALUE, own).value + self.density.constant
        return self._laplace(theta, own)[0]

    # -- crossed factors ----------------------------------------------------------------------------------------------

    def _prior(self, theta: Array) -> tuple[Array, float]:
        """Q (R, R) of the root's effects, and log |Q|."""
        size = self.density.n_root
        matrix, log_determinant = np.zeros((size, size)), 0.0
        floored = theta.copy()
        for term, own in self.terms:
            part = slice(term.at, term.at + term.covariance.size)
            floored[part] = np.maximum(theta[part], math.log(LEAST_SD))
            inverse = precision_of_term(term, floored[None, :])[0]
            matrix[own[:, :, None], own[:, None, :]] += inverse
            log_determinant += len(own) * np.linalg.slogdet(inverse)[1]
        return matrix, log_determinant

    def _laplace(self, theta: Array, own: Unpacked) -> tuple[float, Array, Array]:
        """Laplace's value over e, its mode and the Cholesky factor of the negative Hessian there."""
        p = self.density.p
        prior, log_determinant = self._prior(theta)
        e = self.e
        gamma = own.root[:p]
        step, length, last = np.zeros_like(e), 1.0, math.inf
        for _ in range(MOST_STEPS):
            trial = e + length * step
            passed: Passed = self.density.rows_at(HESSIAN, own.at_root(np.concatenate([gamma, trial])))
            slope = passed.in_root[p:] - prior @ trial
            lower = np.tril(passed.hess)[p:, p:]
            matrix = prior - (lower + np.tril(lower, -1).T)
            if math.isfinite(passed.value):
                low = factored(matrix)
                ahead = cho_solve(low, slope)
                decrement = float(slope @ ahead)
            else:
                decrement = math.inf
            if decrement > max(4 * last, 1e-6) or not math.isfinite(decrement):
                length *= 0.4
                if length < 1e-6:
                    raise InferenceError("The mode of the group effects was not found at these parameters.")
                continue
            e, step, last, length = trial, ahead, decrement, 1.0
            if decrement < 1e-10:
                break
        self.e = e
        value = passed.value + self.density.constant - 0.5 * float(e @ prior @ e)
        value += 0.5 * log_determinant - float(np.log(np.diag(low)).sum())
        return value, e, low

    def _correction(self, theta: Array, gamma: Array) -> tuple[float, float]:
        """log of the mean importance weight around the mode of e, and its Monte Carlo error."""
        size = self.density.n_root
        if not size:
            return 0.0, 0.0
        own = self.unpacked(theta, gamma)
        value, mode, low = self._laplace(theta, own)
        prior, log_determinant = self._prior(theta)
        z = np.random.default_rng(20261121).standard_normal((IMPORTANCE_POINTS, size))
        logs = np.empty(IMPORTANCE_POINTS)
        half_log = float(np.log(np.diag(low)).sum())
        moved = np.linalg.solve(low.T, z.T).T
        for k in range(IMPORTANCE_POINTS):
            e = mode + moved[k]
            passed = self.density.rows_at(VALUE, own.at_root(np.concatenate([own.root[: self.density.p], e])))
            joint = passed.value + self.density.constant - 0.5 * float(e @ prior @ e) + 0.5 * log_determinant
            logs[k] = joint + 0.5 * float(z[k] @ z[k]) - half_log - value
        top = float(logs.max())
        weights = np.exp(logs - top)
        mean = float(weights.mean())
        return top + math.log(mean), float(weights.std() / mean / math.sqrt(IMPORTANCE_POINTS))

    def gradient(self, theta: Array, gamma: Array) -> tuple[float, Array]:
        """Value and gradient in (theta, gamma) where the leaf is all there is: Fisher's identity."""
        density = self.density
        own = self.unpacked(theta, gamma)
        passed = density.rows_at(GRADIENT, own)
        out = np.zeros(density.size)
        density.ascend(own, passed, out)
        out[: density.d] /= np.where(own.relative == 0, 1.0, own.relative)  # back to the log of a bounded sd
        out[density.d :] = passed.in_root
        return passed.value + density.constant, out


def maximum_likelihood(model: Model, *, nodes: int | None = None, threads: int = 1) -> MaximumLikelihood:
    """Maximise the likelihood over coefficients and hyperparameters; see `Model.maximum_likelihood`."""
    _check_nodes(nodes)
    with one_blas_thread():  # thousands of small factors: threads cost more than they bring
        return _maximum_likelihood(model, nodes, threads)


def _maximum_likelihood(model: Model, nodes: int | None, threads: int) -> MaximumLikelihood:
    likelihood = Likelihood(model, threads)
    density = likelihood.density
    steps = ladder(density.q)  # not the fewest: far from the mode these lead the search astray
    start = RootLaplace(JointDensity(model, nodes=steps[min(1, len(steps) - 1)], threads=threads))
    start.find_mode(1e-2)
    search = _Search(model, likelihood, start, nodes)
    best = maximise(search.objective, search.start, search.inverse, tolerance=1e-8 if nodes is None else 1e-3)
    search.exact = search.exact and nodes is None  # Fisher's identity is that of the integral, not that of few nodes
    best = maximise(search.objective, best.point, search.inverse, tolerance=1e-9)
    theta, gamma = search.read(best.point)
    value = search.value(best.point)
    theta, value, singular = search.snapped(theta, gamma, value)
    with np.errstate(all="ignore"):
        hessian = negative_hessian(search.objective, best.point, 2e-3)
    names = model.coefficients.names
    inverse = np.linalg.pinv(hessian)
    to_public = model.coefficients.public_matrix() * density.scale
    variance = np.diag(to_public @ inverse[density.d :, density.d :] @ to_public.T)
    beta = model.coefficients.to_public(gamma)
    public = model.hyperparameters.public(theta[None, :])[0]
    estimates = dict(zip(model.parameter_names, np.concatenate([beta, public]).tolist(), strict=True))
    errors = dict(zip(names, np.sqrt(np.maximum(variance, 0.0)).tolist(), strict=True))
    return MaximumLikelihood(value, False, estimates, errors, best.status, singular, model.design.terms.formula)


class _Search:
    """The objective of maximum likelihood in coordinates (phi, b)."""

    def __init__(self, model: Model, likelihood: Likelihood, start: RootLaplace, nodes: int | None) -> None:
        self.likelihood, self.density, self.nodes = likelihood, likelihood.density, nodes
        self.coordinates = start.coordinates
        d, p = self.density.d, self.density.p
        phi = start.phi.copy()
        bounded = self.density.params[:, 4] > 0
        phi[bounded] = self.density.theta(start.phi[None, :])[0][bounded]  # priors and their bounds play no part here
        self.density.params[:, 3:] = np.where(bounded[:, None], 0.0, self.density.params[:, 3:])
        self.start = np.concatenate([phi, start.root[:p]])
        self.likelihood.e = start.root[p:].copy()
        self.exact = not self.density.n_root and nodes != 1 and self.density.q <= 3
        if nodes is None:
            theta, gamma = self.read(self.start)
            self.likelihood.at(theta, gamma, None)
        else:
            self.likelihood._use(nodes)
        curvature = np.diag(start.hessian)[:p]
        self.inverse = np.concatenate([np.full(d, 0.05), 1 / np.maximum(curvature, 1e-3)])

    def read(self, point: Array) -> tuple[Array, Array]:
        """theta (d,) and gamma (p,)."""
        d = self.density.d
        theta = self.coordinates.theta(point[None, :d])[0]
        return theta, self.density.mean + self.density.scale * point[d:]

    def value(self, point: Array) -> float:
        return self.likelihood.value(*self.read(point))

    def objective(self, points: Array) -> tuple[Array, Array]:
        """Log likelihood and gradient at (K, d + p): Fisher's identity, else central differences."""
        values, gradients = np.empty(len(points)), np.empty(points.shape)
        for k, point in enumerate(points):
            values[k], gradients[k] = self._exactly(point) if self.exact else self._by_differences(point)
        return values, gradients

    def _exactly(self, point: Array) -> tuple[float, Array]:
        d = self.density.d
        theta, gamma = self.read(point)
        value, gradient = self.likelihood.gradient(theta, gamma)
        phi = point[None, :d]
        own = self.coordinates.pull_back(phi, theta[None, :], gradient[None, :d], density=False)[0]
        return value, np.concatenate([own, gradient[d:] * self.density.scale])

    def _by_differences(self, point: Array) -> tuple[float, Array]:
        value, gradient = self._tried(point), np.empty(point.size)
        if not math.isfinite(value):
            return -math.inf, np.zeros(point.size)
        for j in range(point.size):
            step = np.zeros(point.size)
            step[j] = 1e-4
            gradient[j] = (self._tried(point + step) - self._tried(point - step)) / 2e-4
        return value, gradient

    def _tried(self, point: Array) -> float:
        try:
            return self.value(point)
        except (InferenceError, np.linalg.LinAlgError):
            return -math.inf

    def snapped(self, theta: Array, gamma: Array, value: float) -> tuple[Array, float, tuple[str, ...]]:
        """sds that ran towards 0 put at 0 where that is no worse."""
        singular = []
        for term in self.density.model.hyperparameters.terms:
            for column, name in enumerate(term.sd_names):
                if theta[term.at + column] > math.log(1e-3):
                    continue
                trial = theta.copy()
                trial[term.at + column] = -np.inf
                at_zero = self.likelihood.value(np.maximum(trial, math.log(LEAST_SD)), gamma)
                if at_zero >= value - 1e-7 * abs(value):
                    theta, value = trial, at_zero
                    singular.append(name)
        return theta, value, tuple(singular)
