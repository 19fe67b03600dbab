"""Points: posterior modes, maximum likelihood and restricted maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import InferenceError
from partialpool.inference.coordinates import Coordinates
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.model import Model

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]
#: Values (K,) and gradients (K, d) at points (K, d).
Objective = Callable[[Array], tuple[Array, Array]]

#: A predicted gain below this may be nothing but rounding in the gradient.
ROUNDING = 1e-5
#: An sd below this share of the response's sd is tried at exactly 0 (a singular fit).
TINY_SD = 1e-3


class Status(Enum):
    """How a search for an optimum ended; the value is what a user reads."""

    CONVERGED = "converged"
    STALLED = "stopped where no step improved the objective"
    LIMIT = "stopped at its limit of iterations"


@dataclass(frozen=True, eq=False)
class Optimum:
    """The end of a search: point, value, gradient, how it ended and after how many steps."""

    point: Array
    value: float
    gradient: Array
    status: Status
    iterations: int


def maximise(
    objective: Objective, start: Array, inverse_curvature: Array, *, tolerance: float = 1e-9, limit: int = 200
) -> Optimum:
    """Maximise by BFGS with a backtracking line search.

    Parameters
    ----------
    objective : callable
        Values and gradients at (K, d) points.
    start : ndarray of shape (d,)
    inverse_curvature : ndarray of shape (d,)
        First guess of the diagonal of the inverse negative Hessian.
    tolerance : float
        Stop when the predicted gain, half of g' H^-1 g, falls below it.

    Notes
    -----
    Steps are capped at 2 in every coordinate: theta is on log and atanh scales, where 2 is a long way. Nocedal and
    Wright (2006), Numerical Optimization, algorithm 6.1.
    """
    point = np.array(start, dtype=float)
    if not point.size:
        values, gradients = objective(point[None, :])
        return Optimum(point, float(values[0]), gradients[0], Status.CONVERGED, 0)
    values, gradients = objective(point[None, :])
    value, gradient = float(values[0]), gradients[0]
    if not math.isfinite(value):
        raise InferenceError("The log density is not finite at the starting point; check the scale of the data.")
    inverse = np.diag(inverse_curvature)
    idle = 0
    for iteration in range(limit):
        direction = inverse @ gradient
        slope = float(gradient @ direction)
        if slope <= 0 or not np.isfinite(slope):
            inverse = np.diag(inverse_curvature)
            direction = inverse @ gradient
            slope = float(gradient @ direction)
        if 0.5 * slope < tolerance:
            return Optimum(point, value, gradient, Status.CONVERGED, iteration)
        step = min(1.0, 2.0 / float(np.abs(direction).max()))
        for _ in range(30):
            trial = point + step * direction
            values, gradients = objective(trial[None, :])
            new_value, new_gradient = float(values[0]), gradients[0]
            if math.isfinite(new_value) and new_value >= value + 1e-4 * step * slope:
                break
            step *= 0.35
        else:
            small = 0.5 * slope < ROUNDING * max(1.0, 1e-6 * abs(value))
            return Optimum(point, value, gradient, Status.CONVERGED if small else Status.STALLED, iteration)
        inverse = _bfgs_update(inverse, trial - point, gradient - new_gradient)
        gain = new_value - value
        point, value, gradient = trial, new_value, new_gradient
        # where rounding in the gradient keeps the predicted gain above the tolerance, the gain itself decides
        idle = idle + 1 if gain <= max(tolerance, 1e-14 * abs(value)) and 0.5 * slope < ROUNDING else 0
        if idle == 3:
            return Optimum(point, value, gradient, Status.CONVERGED, iteration + 1)
    return Optimum(point, value, gradient, Status.LIMIT, limit)


def _bfgs_update(inverse: Array, moved: Array, change: Array) -> Array:
    """The inverse negative Hessian after a step; left alone where the curvature along the step is not positive."""
    curvature = float(moved @ change)
    if curvature <= 1e-12 * float(np.linalg.norm(moved) * np.linalg.norm(change)):
        return inverse
    along = np.eye(moved.size) - np.outer(moved, change) / curvature
    return np.asarray(along @ inverse @ along.T + np.outer(moved, moved) / curvature)


def negative_hessian(objective: Objective, point: Array, step: float = 1e-3) -> Array:
    """The negative Hessian by central differences of the gradient, all points in one call."""
    d = point.size
    offsets = np.concatenate([np.eye(d), -np.eye(d)]) * step
    _, gradients = objective(point + offsets)
    hessian = (gradients[d:] - gradients[:d]) / (2 * step)
    return 0.5 * (hessian + hessian.T)


def starting_point(marginal: GaussianMarginal, coordinates: Coordinates) -> tuple[Array, Array]:
    """A first phi (see `Coordinates`), and the diagonal of a first inverse curvature there.

    The residual sd starts at 0.7 of the response's, every group sd at half of that over the column's root mean square;
    a log sd of J groups has a curvature near J, log sigma one near 2 N.
    """
    hyper, model = marginal.hyper, marginal.model
    y = model.design.y
    spread = response_spread(model)
    sigma = 0.7 * spread
    theta = np.zeros(hyper.size)
    inverse = np.ones(hyper.size)
    for term, group in zip(hyper.terms, model.design.groups, strict=True):
        n_groups = marginal.group_counts[term.factor]
        centred = term in coordinates.centred_terms
        for column, name in enumerate(term.names):
            values = model.design.V[:, group.columns[column]]
            size = float(np.std(values)) if centred else float(np.sqrt(np.mean(values * values)))
            scale = 1.0 if name == "Intercept" else size or 1.0
            theta[term.at + column] = math.log(0.5 * sigma / scale)
        inverse[term.parameters] = 1.0 / max(n_groups, 2)
    if hyper.sigma_at is not None:
        theta[hyper.sigma_at] = math.log(sigma)
        inverse[hyper.sigma_at] = 0.5 / max(y.size, 2)
    inverse[hyper.mixture_slice()] = 0.5
    for column in coordinates.bounds:
        theta[column], inverse[column] = 0.0, 1.0
    return theta, inverse


def response_spread(model: Model) -> float:
    """sd of the response less its offset."""
    design = model.design
    y = design.y if design.offset is None else design.y - design.offset
    return float(np.std(y)) or 1.0


@dataclass(frozen=True, eq=False)
class MaximumLikelihood:
    """A point estimate: maximum likelihood, or restricted maximum likelihood.

    Attributes
    ----------
    log_likelihood : float
        At the estimates (restricted, where `reml`).
    reml : bool
    estimates : dict
        By parameter name.
    standard_errors : dict
        Of the coefficients.
    status : Status
        How the search ended.
    singular : tuple of str
        Group sds that are estimated at 0 (the boundary).
    formula : str
    """

    log_likelihood: float
    reml: bool
    estimates: dict[str, float]
    standard_errors: dict[str, float]
    status: Status
    singular: tuple[str, ...]
    formula: str

    def summary(self) -> pandas.DataFrame:
        """A data frame with a row a parameter and the columns estimate, se (of the coefficients)."""
        import pandas

        index = pandas.Index(list(self.estimates), name="parameter")
        se = [self.standard_errors.get(name, math.nan) for name in self.estimates]
        return pandas.DataFrame({"estimate": list(self.estimates.values()), "se": se}, index=index)

    def __repr__(self) -> str:
        kind = "Restricted maximum likelihood" if self.reml else "Maximum likelihood"
        frame = self.summary()
        text = frame.to_string(float_format=lambda value: f"{value:.4f}", na_rep="")
        lines = [f"{kind}: {self.formula}", text, f"log-likelihood {self.log_likelihood:.4f} ({self.status.value})"]
        if self.singular:
            lines.append(f"At the boundary, estimated as 0: {', '.join(self.singular)}.")
        return "\n".join(lines)


def maximum_likelihood(model: Model, *, reml: bool = False, threads: int = 2) -> MaximumLikelihood:
    """Maximise the (restricted) likelihood over the hyperparameters; see `Model.maximum_likelihood`."""
    marginal = GaussianMarginal(model, flat=True, profile=not reml, threads=threads)
    hyper = marginal.hyper
    coordinates = Coordinates(model, bounded=False)
    start, inverse = starting_point(marginal, coordinates)
    free = hyper.size - len(hyper.mixtures)  # mixing scales belong to priors, which play no part here

    def objective(points: Array) -> tuple[Array, Array]:
        phi = np.zeros((points.shape[0], hyper.size))
        phi[:, :free] = points
        theta = coordinates.theta(phi)
        value, gradient = marginal.value_and_gradient(theta)
        return value, coordinates.pull_back(phi, theta, gradient, density=False)[:, :free]

    best = maximise(objective, start[:free], inverse[:free], tolerance=1e-11)
    phi = np.zeros((1, hyper.size))
    phi[0, :free] = best.point
    theta = coordinates.theta(phi)
    theta, value, singular = _snap_to_zero(marginal, theta, best.value)
    return _describe(model, marginal, theta, value, reml, best.status, singular)


def _snap_to_zero(marginal: GaussianMarginal, theta: Array, value: float) -> tuple[Array, float, tuple[str, ...]]:
    """Put sds that ran towards 0 at exactly 0 where that is no worse."""
    hyper = marginal.hyper
    spread = response_spread(marginal.model)
    singular: list[str] = []
    for term, group in zip(hyper.terms, marginal.model.design.groups, strict=True):
        for column, name in enumerate(term.sd_names):
            at = term.at + column
            values = marginal.model.design.V[:, group.columns[column]]
            size = float(np.sqrt(np.mean(values * values))) or 1.0
            if np.exp(theta[0, at]) * size > TINY_SD * spread:
                continue
            trial = theta.copy()
            trial[0, at] = -np.inf
            new_value = float(marginal.value(trial)[0][0])
            if new_value >= value - 1e-9 * abs(value):
                theta, value = trial, new_value
                singular.append(name)
    return theta, value, tuple(singular)


def _describe(
    model: Model, marginal: GaussianMarginal, theta: Array, value: float, reml: bool, status: Status,
    singular: tuple[str, ...],
) -> MaximumLikelihood:  # fmt: skip
    _, evaluation = marginal.value(theta)
    coefficients = model.coefficients
    gamma = evaluation.mean[0] + np.asarray(coefficients.mean)
    to_public = coefficients.public_matrix()
    p = gamma.size
    estimates = dict(zip(coefficients.names, (to_public @ gamma).tolist() if p else [], strict=True))
    errors: dict[str, float] = {}
    if p:
        half = np.linalg.solve(evaluation.low[0], to_public.T)
        errors = dict(zip(coefficients.names, np.sqrt((half * half).sum(axis=0)).tolist(), strict=True))
    public = marginal.hyper.public(theta)[0]
    estimates |= dict(zip(marginal.hyper.names, public.tolist(), strict=True))
    return MaximumLikelihood(value, reml, estimates, errors, status, singular, model.design.terms.formula)
