"""Link functions: for arrays (numpy), and as helpers for kernels, with derivatives.

A link g takes the mean to the linear predictor: eta = g(mu). Kernels want more than the mean: the logarithms of a
probability and of its complement, or of a positive mean, each with two derivatives in eta and right far out in the
tails. `log_probabilities` and `log_mean` give the helper of a link; it is the same object at every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.jit import helper
from partialpool.algebra.special import LARGEST_EXPONENT, bounded_exp, log_and_reciprocal, normal_tail

Array = NDArray[np.float64]

#: Below this, log(1 - exp(-exp(eta))) is its own series.
_SMALL = -20.0

# --------------------------------------------------------------------------------------------------------------------
# Arrays
# --------------------------------------------------------------------------------------------------------------------


def link_function(link: str, mu: ArrayLike) -> Array:
    """The linear predictor at which the mean is `mu`.

    Examples
    --------
    >>> link_function("logit", [0.5, 0.75]).round(6)
    array([0.      , 1.098612])
    """
    mean = np.asarray(mu, dtype=np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(_FORWARD[link](mean), dtype=np.float64)


def inverse_link(link: str, eta: ArrayLike) -> Array:
    """The mean at the linear predictor `eta`.

    Examples
    --------
    >>> inverse_link("cloglog", [-800.0, 0.0, 800.0]).round(6)
    array([0.      , 0.632121, 1.      ])
    """
    predictor = np.asarray(eta, dtype=np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(_INVERSE[link](predictor), dtype=np.float64)


def _probit(mu: Array) -> Array:
    from scipy.special import ndtri

    return np.asarray(ndtri(mu), dtype=np.float64)


def _normal_cdf(eta: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(ndtr(eta), dtype=np.float64)


def _logistic(eta: Array) -> Array:
    small = np.exp(-np.abs(eta))
    return np.asarray(np.where(eta >= 0.0, 1.0, small) / (1.0 + small), dtype=np.float64)


def _same(values: Array) -> Array:
    return values.copy()


def _reciprocal(values: Array) -> Array:
    return np.asarray(1.0 / values, dtype=np.float64)


_FORWARD: dict[str, Callable[[Array], Any]] = {
    "identity": _same,
    "log": np.log,
    "inverse": _reciprocal,
    "logit": lambda mu: np.log(mu) - np.log1p(-mu),
    "probit": _probit,
    "cloglog": lambda mu: np.log(-np.log1p(-mu)),
}
_INVERSE: dict[str, Callable[[Array], Any]] = {
    "identity": _same,
    "log": np.exp,
    "inverse": _reciprocal,
    "logit": _logistic,
    "probit": _normal_cdf,
    "cloglog": lambda eta: -np.expm1(-np.exp(eta)),
}

#: Names of the links that there are.
LINKS = tuple(_FORWARD)

#: The variance of the latent variable whose sign a binary response is: for variance components on the link scale.
LATENT_VARIANCE = {"logit": math.pi**2 / 3.0, "probit": 1.0, "cloglog": math.pi**2 / 6.0}


# --------------------------------------------------------------------------------------------------------------------
# Helpers: a mean between 0 and 1
# --------------------------------------------------------------------------------------------------------------------

Six = tuple[float, float, float, float, float, float]
Three = tuple[float, float, float]


@helper
def logit_log_probabilities(eta: float) -> Six:
    """log p with its first and second derivatives in eta, then the same of log(1 - p), under the logit link.

    Examples
    --------
    >>> logit_log_probabilities(800.0)
    (-0.0, 0.0, -0.0, -800.0, -1.0, -0.0)
    """
    a = math.exp(-abs(eta))
    both, near = log_and_reciprocal(a)
    far = a * near
    curvature = -near * far
    if eta >= 0.0:
        return -both, far, curvature, -both - eta, -near, curvature
    return eta - both, near, curvature, -both, -far, curvature


@helper
def probit_log_probabilities(eta: float) -> Six:
    """As `logit_log_probabilities`, under the probit link.

    Examples
    --------
    >>> round(probit_log_probabilities(-40.0)[0], 9)
    -804.608442014
    """
    log_p, ratio_p, excess_p = normal_tail(eta)
    log_q, ratio_q, excess_q = normal_tail(-eta)
    return log_p, ratio_p, -ratio_p * excess_p, log_q, -ratio_q, -ratio_q * excess_q


@helper
def cloglog_success(eta: float) -> Three:
    """log(1 - exp(-exp(eta))) with its first and second derivatives.

    Examples
    --------
    >>> cloglog_success(-800.0)
    (-800.0, 1.0, -0.0)
    """
    hazard = bounded_exp(eta)
    if eta < _SMALL:
        return eta - 0.5 * hazard, 1.0 - 0.5 * hazard, -0.5 * hazard
    log_p = math.log(-math.expm1(-hazard)) if hazard < 0.7 else math.log1p(-math.exp(-hazard))
    if hazard > 700.0:
        return log_p, 0.0, 0.0
    first = hazard / math.expm1(hazard)
    if hazard < 0.02:
        square = hazard * hazard
        rest = -0.5 * hazard - square * (1 / 12 - square * (1 / 720 - square / 30240))
    else:
        rest = 1.0 - first - hazard
    return log_p, first, first * rest


@helper
def cloglog_log_probabilities(eta: float) -> Six:
    """As `logit_log_probabilities`, under the complementary log-log link.

    Examples
    --------
    >>> cloglog_log_probabilities(0.0)[3:]
    (-1.0, -1.0, -1.0)
    """
    hazard = bounded_exp(eta)
    log_p, first, second = cloglog_success(eta)
    return log_p, first, second, -hazard, -hazard, -hazard


_LOG_PROBABILITIES = {
    "logit": logit_log_probabilities,
    "probit": probit_log_probabilities,
    "cloglog": cloglog_log_probabilities,
}


def log_probabilities(link: str) -> Callable[[float], Six]:
    """The helper eta -> (log p, its two derivatives, log(1 - p), its two derivatives) of a link.

    Examples
    --------
    >>> [round(v, 6) for v in log_probabilities("logit")(0.0)]
    [-0.693147, 0.5, -0.25, -0.693147, -0.5, -0.25]
    """
    return _LOG_PROBABILITIES[link]


# --------------------------------------------------------------------------------------------------------------------
# Helpers: a positive mean
# --------------------------------------------------------------------------------------------------------------------


@helper
def log_log_mean(eta: float) -> Three:
    """The log of the mean under the log link, held between -690 and 690, with its first and second derivatives.

    Examples
    --------
    >>> log_log_mean(2.0)
    (2.0, 1.0, 0.0)
    """
    return min(max(eta, -LARGEST_EXPONENT), LARGEST_EXPONENT), 1.0, 0.0


@helper
def identity_log_mean(eta: float) -> Three:
    """As `log_log_mean`, under the identity link; the log is -inf where there is no such mean.

    Examples
    --------
    >>> identity_log_mean(2.0)
    (0.6931471805599453, 0.5, -0.25)
    """
    if not eta > 0.0:
        return -math.inf, 0.0, 0.0
    first = 1.0 / eta
    return math.log(eta), first, -first * first


@helper
def inverse_log_mean(eta: float) -> Three:
    """As `log_log_mean`, under the inverse link.

    Examples
    --------
    >>> inverse_log_mean(2.0)
    (-0.6931471805599453, -0.5, 0.25)
    """
    if not eta > 0.0:
        return -math.inf, 0.0, 0.0
    first = -1.0 / eta
    return -math.log(eta), first, first * first


_LOG_MEAN = {"log": log_log_mean, "identity": identity_log_mean, "inverse": inverse_log_mean}


def log_mean(link: str) -> Callable[[float], Three]:
    """The helper eta -> (log of the mean, its two derivatives) of a link to a positive mean.

    Examples
    --------
    >>> log_mean("log")(0.5)
    (0.5, 1.0, 0.0)
    """
    return _LOG_MEAN[link]
