"""Do small studies find larger effects? A regression on the standard error, and a model of selective publication."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.lapack import one_blas_thread
from partialpool.errors import DataError
from partialpool.pooling.reml import reml, weighted_mean

Array = NDArray[np.float64]

#: A study counts as significant below this one-sided p, in the direction of the mean effect.
CUTPOINT = 0.025
#: Fewer studies than this: the tests have so little power that they are not recommended (Sterne et al., 2011, BMJ).
FEW = 10
#: The log of the relative weight is sought between these.
BOUND = 8.0


@dataclass(frozen=True, repr=False)
class SmallStudyEffects:
    """What `MetaAnalysis.small_study` returns.

    Attributes
    ----------
    n : how many studies. favoured : "positive" or "negative", the direction of the mean effect.
    intercept, intercept_se : the effect that the regression expects of a study with standard error 0.
    slope, slope_se, t, p : its slope on the standard error, with t on n - 2 degrees of freedom.
    regression_tau : the sd between studies that is left about the regression.
    n_significant : studies with a one-sided p below 0.025 in the favoured direction.
    weight : the publication weight of a study that is not significant, relative to one that is; weight_q05 and
        weight_q95 its 90% interval. nan where all studies are on one side.
    weight_p : likelihood-ratio test of weight = 1.
    adjusted_mean, adjusted_se, adjusted_tau : mean effect and sd between studies under that selection.
    """

    n: int
    favoured: str
    intercept: float
    intercept_se: float
    slope: float
    slope_se: float
    t: float
    p: float
    regression_tau: float
    n_significant: int
    weight: float
    weight_q05: float
    weight_q95: float
    weight_p: float
    adjusted_mean: float
    adjusted_se: float
    adjusted_tau: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """The findings in words."""
        trend = "larger" if (self.slope > 0.0) == (self.favoured == "positive") else "smaller"
        said = [
            f"Regression on the standard error: small studies find {trend} effects (slope {self.slope:.3g}, "
            f"t = {self.t:.2f}, p = {self.p:.3g}); a study without error is expected at {self.intercept:.3g} "
            f"(se {self.intercept_se:.2g})."
        ]
        if math.isnan(self.weight):
            side = "every study" if self.n_significant else "no study"
            said.append(f"Selection model: {side} is significant in the {self.favoured} direction, so that nothing can "
                        "be said of how often the others were published.")  # fmt: skip
        else:
            said.append(
                f"Selection model: a study that is not significant was {self.weight:.2g} times as likely to be "
                f"published as one that is (90% interval {self.weight_q05:.2g} to {self.weight_q95:.2g}, "
                f"p = {self.weight_p:.3g}); allowing for it, the mean is {self.adjusted_mean:.3g} "
                f"(se {self.adjusted_se:.2g})."
            )
        if self.n < FEW:
            said.append(
                f"With {self.n} studies, under {FEW}, neither test can tell: even strong selection would mostly "
                "be missed, and a small p may be chance."
            )
        said.append("Small studies may also differ because their patients or treatments do, not by selection.")
        return tuple(said)

    def __repr__(self) -> str:
        return "\n".join([f"Small-study effects in {self.n} studies", *self.sentences])


def small_study_effects(y: Array, se: Array) -> SmallStudyEffects:
    """Regression of y on se with heterogeneity (Egger et al., 1997; Sterne and Egger, 2005), and a selection model.

    The selection model is Vevea and Hedges' (1995, Psychometrika 60, 419-435) with one cutpoint: a study's density is
    N(y | mu, se² + tau²) w(y) / A, w = 1 where its one-sided p is below 0.025 and w = weight elsewhere, A the integral.

    Raises
    ------
    DataError
        With fewer than 3 studies, or equal standard errors.
    """
    n = len(y)
    if n < 3:
        raise DataError(f"Small-study effects need 3 studies or more, and 10 to be worth a look; there are {n}.")
    if np.ptp(se) <= 1e-9 * float(se.max()):
        raise DataError("All studies have the same standard error, so that none is smaller than another.")
    with one_blas_thread():  # matrices of 2 or 3 columns: waking threads costs more than the work
        return _effects(y, se)


def _effects(y: Array, se: Array) -> SmallStudyEffects:
    from scipy.special import chdtrc, ndtri, stdtr

    n = len(y)
    regression = reml(y, se**2, np.column_stack([np.ones(n), se]))
    intercept, slope = (float(value) for value in regression.coefficients)
    intercept_se, slope_se = (float(value) for value in np.sqrt(np.diag(regression.covariance)))
    t = slope / slope_se
    start = reml(y, se**2)
    sign = -1.0 if start.coefficients[0] < 0.0 else 1.0
    z = float(ndtri(1.0 - CUTPOINT))
    significant = sign * y / se > z
    if significant.all() or not significant.any():
        weight = low = high = weight_p = mean = mean_se = tau = math.nan
    else:
        selected = fit_selection(sign * y, se, start.tau2)
        unselected = _maximum_likelihood(sign * y, se, start.tau2)
        statistic = max(0.0, 2.0 * (selected.log_likelihood - unselected))
        weight, weight_p = selected.weight, float(chdtrc(1, statistic))
        reach = float(ndtri(0.95)) * selected.log_weight_se
        low, high = weight * math.exp(-reach), weight * math.exp(reach)
        mean, mean_se, tau = sign * selected.mean, selected.mean_se, math.sqrt(selected.tau2)
    return SmallStudyEffects(
        n, "positive" if sign > 0.0 else "negative", intercept, intercept_se, slope, slope_se, t,
        2.0 * float(stdtr(n - 2, -abs(t))), math.sqrt(regression.tau2), int(significant.sum()),
        weight, low, high, weight_p, mean, mean_se, tau,
    )  # fmt: skip


# ---- selection ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Maximum-likelihood estimate of the selection model, positive effects favoured."""

    mean: float
    mean_se: float
    tau2: float
    weight: float
    log_weight_se: float
    log_likelihood: float


def selection_log_likelihood(mean: float, tau2: float, log_weight: float, y: Array, se: Array) -> tuple[float, Array]:
    """Log likelihood of (mean, tau², log weight), positive effects favoured, and its gradient (3,)."""
    from scipy.special import ndtr, ndtri

    cut = float(ndtri(1.0 - CUTPOINT)) * se
    variance = se**2 + tau2
    eta = np.sqrt(variance)
    residual = y - mean
    weight = math.exp(log_weight)
    hidden = y <= cut
    h = (cut - mean) / eta
    below = ndtr(h)
    density = np.exp(-0.5 * h**2) / math.sqrt(2.0 * math.pi)
    # 1 - below + weight below, without the cancellation of 1 - below
    integral = ndtr(-h) + weight * below
    value = -0.5 * float((residual**2 / variance + np.log(2.0 * math.pi * variance)).sum())
    value += float(hidden.sum()) * log_weight - float(np.log(integral).sum())
    shift = (weight - 1.0) * density / integral
    gradient = [
        (residual / variance + shift / eta).sum(),
        (0.5 * (residual**2 / variance - 1.0) / variance + 0.5 * shift * h / variance).sum(),
        float(hidden.sum()) - (weight * below / integral).sum(),
    ]
    return value, np.array(gradient, dtype=np.float64)


def fit_selection(y: Array, se: Array, tau2: float) -> Selection:
    """Maximise the likelihood of the selection model from several starts around tau²."""
    from scipy.optimize import minimize

    scale = float(np.median(se))
    y, se, tau2 = y / scale, se / scale, tau2 / scale**2

    def negative(x: Array) -> tuple[float, Array]:
        value, gradient = selection_log_likelihood(x[0], x[1], x[2], y, se)
        return -value, -gradient

    centre = weighted_mean(y, se**2, tau2)[0]
    starts = [
        np.array([share * centre, tau2 + 0.1, log_weight]) for share in (1.0, 0.5, 0.0) for log_weight in (-2.0, 0.0)
    ]
    bounds = [(None, None), (0.0, None), (-BOUND, BOUND)]
    found = [
        minimize(
            negative,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500},
        )
        for start in starts
    ]
    best = min(found, key=lambda result: float(result.fun))
    x = np.asarray(best.x, dtype=np.float64)
    errors = _standard_errors(x, y, se)
    return Selection(
        float(x[0]) * scale,
        float(errors[0]) * scale,
        float(x[1]) * scale**2,
        math.exp(x[2]),
        float(errors[2]),
        -float(best.fun) - len(y) * math.log(scale),
    )


def _standard_errors(x: Array, y: Array, se: Array) -> Array:
    """From the curvature at the maximum, over the parameters that are not at a bound; infinite where it is flat."""
    free = [0, *([1] if x[1] > 1e-8 else []), *([2] if abs(x[2]) < BOUND - 1e-6 else [])]
    errors = np.full(3, math.inf)
    errors[1] = 0.0 if 1 not in free else math.inf
    hessian = np.empty((len(free), len(free)))
    for row, j in enumerate(free):
        step = np.zeros(3)
        step[j] = 1e-5 * max(1.0, abs(x[j])) if j != 1 else min(1e-5, 0.5 * x[1])
        up, down = (_gradient(x + side * step, y, se) for side in (1.0, -1.0))
        hessian[row] = (down - up)[free] / (2.0 * step[j])
    hessian = 0.5 * (hessian + hessian.T)
    if np.linalg.eigvalsh(hessian)[0] > 0.0:
        errors[free] = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return errors


def _gradient(x: Array, y: Array, se: Array) -> Array:
    return selection_log_likelihood(float(x[0]), float(x[1]), float(x[2]), y, se)[1]


def _maximum_likelihood(y: Array, se: Array, tau2: float) -> float:
    """The largest log likelihood without selection, over mean and tau²."""
    from scipy.optimize import minimize_scalar

    def negative(t2: float) -> float:
        mean = weighted_mean(y, se**2, t2)[0]
        return -selection_log_likelihood(mean, t2, 0.0, y, se)[0]

    top = 4.0 * (tau2 + float(np.var(y)) + float(np.median(se)) ** 2)
    found = minimize_scalar(negative, bounds=(0.0, top), method="bounded", options={"xatol": 1e-10 * top})
    return -min(float(found.fun), negative(0.0), negative(tau2))
