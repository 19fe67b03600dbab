"""Restricted maximum likelihood of the variance between studies, and of a regression with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS = 200
#: Newton's method ends where a step changes tau² by less than this share of the typical variance.
TOLERANCE = 1e-12
NEAR = 1e-5

STATUS = {
    "converged": "The restricted likelihood has its maximum at the estimate.",
    "boundary": "The restricted likelihood is highest at tau = 0: the errors alone explain how the studies differ.",
    "not converged": "The search for tau did not settle; its estimate is the best point that was visited.",
}


@dataclass(frozen=True, eq=False)
class Reml:
    """The estimate of y_i ~ N(x_i' beta, se_i² + tau²).

    Attributes
    ----------
    tau2 : the variance between studies. coefficients (p,), covariance (p, p) given tau2.
    log_likelihood : restricted, without constants that depend on neither.
    status : "converged", "boundary" (tau² = 0 is the best) or "not converged"; STATUS has the sentences.
    """

    tau2: float
    coefficients: Array
    covariance: Array
    log_likelihood: float
    status: str
    iterations: int


@dataclass(frozen=True, eq=False)
class _Point:
    """Restricted log likelihood at one tau², with its derivatives in tau² and the regression there."""

    tau2: float
    value: float
    score: float
    expected: float
    observed: float
    coefficients: Array
    covariance: Array


def reml(y: Array, variance: Array, X: Array | None = None) -> Reml:
    """Estimate tau² by maximising the restricted likelihood over tau² >= 0.

    Newton's method where the log likelihood is concave and Fisher's scoring elsewhere, with steps halved until the
    likelihood rises, from three starts (it may have two maxima): 0, the moment estimate, the variance of y.

    Parameters
    ----------
    y : (k,). variance : (k,) the known variances, se². X : (k, p), a column of ones where it is None.
    """
    X = np.ones((len(y), 1)) if X is None else X
    scale = float(np.median(variance))
    starts = [0.0, _moment_estimate(y, variance, X), float(np.var(y))]
    found = [_climb(start, y, variance, X, scale) for start in starts]
    best, status, steps = max(found, key=lambda result: (result[0].value, result[1] == "converged"))
    return Reml(best.tau2, best.coefficients, best.covariance, best.value, status, steps)


def restricted_log_likelihood(tau2: float, y: Array, variance: Array, X: Array | None = None) -> float:
    """-1/2 [sum log(se² + tau²) + log |X'WX| + r'Wr], with W = 1 / (se² + tau²) and r the residuals."""
    return _evaluate(tau2, y, variance, np.ones((len(y), 1)) if X is None else X).value


def weighted_mean(y: Array, variance: Array, tau2: float) -> tuple[float, float, float]:
    """Mean with weights 1 / (se² + tau²), its variance, and the weighted sum of squares about it."""
    weights = 1.0 / (variance + tau2)
    total = float(weights.sum())
    mean = float(weights @ y) / total
    squares = weights * (y - mean) ** 2
    return mean, 1.0 / total, float(squares.sum())


def _moment_estimate(y: Array, variance: Array, X: Array) -> float:
    """DerSimonian and Laird's tau² with equal weights (Hedges), at least 0."""
    residual: Array = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    degrees: int = len(y) - X.shape[1]
    return max(0.0, float((residual**2).sum()) / max(degrees, 1) - float(variance.mean()))


def _evaluate(tau2: float, y: Array, variance: Array, X: Array) -> _Point:
    """With P = W - WX (X'WX)^-1 X'W: score (y'PPy - tr P) / 2, expected tr(PP) / 2, observed y'PPPy - tr(PP) / 2."""
    w = 1.0 / (variance + tau2)
    products = [X.T @ (w[:, None] ** power * X) for power in (1, 2, 3)]
    covariance: Array = np.asarray(np.linalg.inv(products[0]), dtype=np.float64)
    coefficients: Array = covariance @ (X.T @ (w * y))
    u = w * (y - X @ coefficients)  # Py
    second = covariance @ products[1]
    trace = float(w.sum() - np.trace(second))
    trace2 = float((w**2).sum() - 2.0 * np.trace(covariance @ products[2]) + np.trace(second @ second))
    projected = X.T @ (w * u)
    cubic = float(w @ u**2 - projected @ covariance @ projected)
    value = -0.5 * (float(np.log(variance + tau2).sum()) + float(np.linalg.slogdet(products[0])[1]))
    value -= 0.5 * float((y - X @ coefficients) @ u)
    score = 0.5 * (float(u @ u) - trace)
    return _Point(tau2, value, score, 0.5 * trace2, cubic - 0.5 * trace2, coefficients, covariance)


def _climb(start: float, y: Array, variance: Array, X: Array, scale: float) -> tuple[_Point, str, int]:
    point = _evaluate(start, y, variance, X)
    for iteration in range(1, STEPS + 1):
        if point.tau2 == 0.0 and point.score <= 0.0:
            return point, "boundary", iteration
        curvature = point.observed if point.observed > 0.0 else point.expected
        if not curvature > 0.0:
            return point, "not converged", iteration
        step = max(point.score / curvature, -point.tau2)
        if abs(step) <= TOLERANCE * (scale + point.tau2):
            return point, "converged", iteration
        following = _evaluate(point.tau2 + step, y, variance, X)
        # closer than this, values differ by their rounding only, and the score leads
        while following.value < point.value and abs(step) > NEAR * (scale + point.tau2):
            step *= 0.5
            following = _evaluate(point.tau2 + step, y, variance, X)
        point = following
    return point, "not converged", STEPS
