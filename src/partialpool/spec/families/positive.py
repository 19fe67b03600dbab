"""Positive responses: gamma, inverse Gaussian, lognormal, exponential and Weibull."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from partialpool.algebra.jit import helper
from partialpool.algebra.special import (
    HALF_LOG_TWO_PI,
    LARGEST_EXPONENT,
    bounded_exp,
    clamped,
    expm1_minus,
    stirling_rest,
)
from partialpool.spec import links
from partialpool.spec.families.base import (
    LARGEST_LOG,
    Array,
    Family,
    Helper,
    Helpers,
    Mask,
    Seven,
    positive_troubles,
    through_log,
    through_mean,
)

_LINKS = ("log", "inverse", "identity")
Six = tuple[float, float, float, float, float, float]

# --------------------------------------------------------------------------------------------------------------------
# Gamma, in the log of the mean
# --------------------------------------------------------------------------------------------------------------------


@helper
def gamma_value(m: float, e1: float, y: float) -> float:
    """The log density of a gamma response, times y."""
    log_shape = clamped(e1, LARGEST_LOG)
    shape = math.exp(log_shape)
    return 0.5 * log_shape - stirling_rest(shape, log_shape)[0] - shape * expm1_minus(math.log(y) - m)


@helper
def gamma_core(m: float, e1: float, y: float) -> Six:
    """Log density and derivatives of a gamma response in the log of its mean and in the log of its shape."""
    log_shape = clamped(e1, LARGEST_LOG)
    shape = math.exp(log_shape)
    d = math.log(y) - m
    loss = shape * expm1_minus(d)
    slope = shape * math.expm1(min(d, LARGEST_EXPONENT))
    rest, first, second = stirling_rest(shape, log_shape)
    g1 = -first - loss
    return 0.5 * log_shape - rest - loss, slope, g1, -slope - shape, slope, g1 - second


# --------------------------------------------------------------------------------------------------------------------
# Inverse Gaussian, in the log of the mean
# --------------------------------------------------------------------------------------------------------------------

#: Squares of exp of this neither over- nor underflow.
_LARGEST_LOG_MEAN = 200.0


@helper
def inverse_gaussian_value(m: float, e1: float, y: float) -> float:
    """The log density of an inverse Gaussian response, times sqrt(2 pi y^3)."""
    log_shape = clamped(e1, LARGEST_LOG)
    share = y * math.exp(-clamped(m, _LARGEST_LOG_MEAN)) - 1.0
    return 0.5 * log_shape - 0.5 * math.exp(log_shape) * share * share / y


@helper
def inverse_gaussian_core(m: float, e1: float, y: float) -> Six:
    """Log density and derivatives of an inverse Gaussian response in the logs of its mean and shape."""
    log_shape = clamped(e1, LARGEST_LOG)
    shape = math.exp(log_shape)
    i = math.exp(-clamped(m, _LARGEST_LOG_MEAN))
    share = y * i - 1.0
    loss = 0.5 * shape * share * share / y
    slope = shape * i * share
    return 0.5 * log_shape - loss, slope, 0.5 - loss, -shape * i * (2.0 * share + 1.0), slope, -loss


def _with_information(link: str, value: Helper, core: Helper, power: int) -> Helpers:
    """The helpers of a link; the information in the log of the mean is shape / mu^power."""
    log_mean = links.log_mean(link)
    chosen = through_log(value, core) if link == "log" else through_mean(log_mean, value, core)

    @helper
    def information(e0: float, e1: float, e2: float, t: float) -> float:
        m, first, _ = log_mean(e0)
        if m == -np.inf:
            return 0.0
        return math.exp(clamped(clamped(e1, LARGEST_LOG) - power * m, LARGEST_EXPONENT)) * first * first

    return Helpers(chosen.log_density, chosen.derivatives, information)


@functools.cache
def _gamma_helpers(link: str) -> Helpers:
    return _with_information(link, gamma_value, gamma_core, 0)


@functools.cache
def _inverse_gaussian_helpers(link: str) -> Helpers:
    return _with_information(link, inverse_gaussian_value, inverse_gaussian_core, 1)


# --------------------------------------------------------------------------------------------------------------------
# Lognormal, exponential, Weibull
# --------------------------------------------------------------------------------------------------------------------


@helper
def lognormal_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a lognormal response, times y."""
    log_sigma = clamped(e1, LARGEST_LOG)
    z = (math.log(y) - e0) * math.exp(-log_sigma)
    return -log_sigma - 0.5 * z * z


@helper
def lognormal(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a lognormal response."""
    log_sigma = clamped(e1, LARGEST_LOG)
    precise = math.exp(-log_sigma)
    z = (math.log(y) - e0) * precise
    square = z * z
    slope = z * precise
    return -log_sigma - 0.5 * square, slope, square - 1.0, 0.0, -precise * precise, -2.0 * slope, -2.0 * square


@helper
def exponential_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of an exponential response."""
    return -e0 - y * bounded_exp(-e0)


@helper
def exponential(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of an exponential response."""
    ratio = y * bounded_exp(-e0)
    return -e0 - ratio, ratio - 1.0, 0.0, 0.0, -ratio, 0.0, 0.0


#: Held below this, the hazard and its products with powers of the shape do not overflow.
_LARGEST_LOG_HAZARD = 500.0


@helper
def weibull_value(m: float, e1: float, y: float) -> float:
    """The log density of a Weibull response, times y."""
    log_shape = clamped(e1, LARGEST_LOG)
    shape = math.exp(log_shape)
    inverse = math.exp(-log_shape)
    v = shape * (math.log(y) - m + math.lgamma(1.0 + inverse))
    return log_shape + v - math.exp(min(v, _LARGEST_LOG_HAZARD))


@helper
def weibull_core(m: float, e1: float, y: float) -> Six:
    """Log density and derivatives of a Weibull response in the log of its mean and in the log of its shape."""
    log_shape = clamped(e1, LARGEST_LOG)
    shape = math.exp(log_shape)
    inverse = math.exp(-log_shape)
    x = 1.0 + inverse
    log_x = math.log(x)
    _, first, second = stirling_rest(x, log_x)
    psi = log_x + first / x
    psi1 = (1.0 + second / x) / x
    v = shape * (math.log(y) - m + math.lgamma(x))
    w = math.exp(min(v, _LARGEST_LOG_HAZARD))
    v1 = v - psi  # in log shape
    v2 = v1 + psi1 * inverse
    return (
        log_shape + v - w,
        shape * (w - 1.0),
        1.0 + (1.0 - w) * v1,
        -shape * shape * w,
        shape * (w - 1.0 + w * v1),
        (1.0 - w) * v2 - w * v1 * v1,
    )


_LOGNORMAL = Helpers(lognormal_value, lognormal)
_EXPONENTIAL = Helpers(exponential_value, exponential)
_WEIBULL = through_log(weibull_value, weibull_core)

# --------------------------------------------------------------------------------------------------------------------
# The families
# --------------------------------------------------------------------------------------------------------------------


def _log_mean_rows(link: str, eta: Array) -> Array:
    if link == "log":
        return np.clip(eta, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return np.log(eta) if link == "identity" else -np.log(eta)


def _parameter(eta1: Array) -> Array:
    return np.exp(np.clip(eta1, -LARGEST_LOG, LARGEST_LOG))


@dataclass(frozen=True)
class _Positive(Family):
    """What positive responses have in common."""

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return positive_troubles(y, self.name)

    def _constant(self, y: Array, trials: Array) -> Array:
        return -np.log(y) - HALF_LOG_TWO_PI


@dataclass(frozen=True)
class Gamma(_Positive):
    """A gamma response with mean mu and variance mu^2 / shape.

    Parameters
    ----------
    link : str
        ``"log"`` (the default), ``"inverse"`` or ``"identity"``.

    Examples
    --------
    >>> from partialpool.spec.families import Gamma
    >>> Gamma(link="identity").variance([3.0], eta1=0.0)
    array([9.])
    """

    name: ClassVar[str] = "gamma"
    parameters: ClassVar[tuple[str, ...]] = ("shape",)
    modelled: ClassVar[tuple[str, ...]] = ("shape",)
    links: ClassVar[tuple[str, ...]] = _LINKS
    concave_links: ClassVar[tuple[str, ...]] = ("log", "inverse")

    def helpers(self) -> Helpers:
        return _gamma_helpers(self.link)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * mu / _parameter(eta1)

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        shape = np.clip(_parameter(eta1), 1e-300, 1e100)
        # A shape below 1/2 by the power of a uniform, in logs: a response is never exactly 0.
        log_y = np.log(rng.gamma(shape + 1.0)) + np.log1p(-rng.random(mu.shape)) / shape
        return np.maximum(mu * np.exp(log_y - np.log(shape)), np.finfo(np.float64).tiny)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        from scipy.special import gammaln

        shape = _parameter(eta1)
        d = np.log(y) - _log_mean_rows(self.link, eta0)
        log_shape = np.log(shape)
        rest = gammaln(1.0 + shape) - (shape + 0.5) * log_shape + shape - HALF_LOG_TWO_PI
        rest = np.where(shape > 300.0, 1.0 / (12.0 * shape) - 1.0 / (360.0 * shape**3), rest)
        small = d * d * (0.5 + d / 6.0 + d * d / 24.0)
        loss = np.where(np.abs(d) < 1e-4, small, np.expm1(np.minimum(d, LARGEST_EXPONENT)) - d)
        return np.asarray(0.5 * log_shape - rest - shape * loss, dtype=np.float64)


@dataclass(frozen=True)
class InverseGaussian(_Positive):
    """An inverse Gaussian response with mean mu and variance mu^3 / shape.

    Parameters
    ----------
    link : str
        ``"log"`` (the default), ``"inverse"`` or ``"identity"``.

    Examples
    --------
    >>> from partialpool.spec.families import InverseGaussian
    >>> InverseGaussian(link="identity").variance([3.0], eta1=0.0)
    array([27.])
    """

    name: ClassVar[str] = "inverse_gaussian"
    parameters: ClassVar[tuple[str, ...]] = ("shape",)
    modelled: ClassVar[tuple[str, ...]] = ("shape",)
    links: ClassVar[tuple[str, ...]] = _LINKS
    concave_links: ClassVar[tuple[str, ...]] = ("inverse",)

    def helpers(self) -> Helpers:
        return _inverse_gaussian_helpers(self.link)

    def _constant(self, y: Array, trials: Array) -> Array:
        return -HALF_LOG_TWO_PI - 1.5 * np.log(y)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * mu * mu / _parameter(eta1)

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        # Michael, Schucany and Haas; the smaller root as the mean over the larger, which does not cancel.
        tail = rng.standard_normal(mu.shape) ** 2 * mu / _parameter(eta1)
        larger = 1.0 + 0.5 * tail + np.sqrt(tail + 0.25 * tail * tail)
        smaller = 1.0 / larger
        first = rng.random(mu.shape) <= 1.0 / (1.0 + smaller)
        return np.maximum(mu * np.where(first, smaller, larger), np.finfo(np.float64).tiny)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        m = np.clip(_log_mean_rows(self.link, eta0), -_LARGEST_LOG_MEAN, _LARGEST_LOG_MEAN)
        shape = _parameter(eta1)
        return np.asarray(0.5 * np.log(shape) - 0.5 * shape * (y * np.exp(-m) - 1.0) ** 2 / y, dtype=np.float64)


@dataclass(frozen=True)
class LogNormal(_Positive):
    """A response whose log is Normal(eta0, sigma).

    Its mean is exp(eta0 + sigma^2 / 2), and its variance (exp(sigma^2) - 1) times the square of the mean.

    Parameters
    ----------
    link : str
        ``"identity"``: eta0 is the mean of log y.

    Examples
    --------
    >>> from partialpool.spec.families import LogNormal
    >>> LogNormal().mean([0.0], eta1=0.0).round(6)
    array([1.648721])
    """

    name: ClassVar[str] = "lognormal"
    parameters: ClassVar[tuple[str, ...]] = ("sigma",)
    modelled: ClassVar[tuple[str, ...]] = ("sigma",)
    links: ClassVar[tuple[str, ...]] = ("identity",)
    concave_links: ClassVar[tuple[str, ...]] = ("identity",)

    def helpers(self) -> Helpers:
        return _LOGNORMAL

    def _mean(self, eta0: Array, eta1: Array, eta2: Array) -> Array:
        return np.exp(eta0 + 0.5 * _parameter(eta1) ** 2)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return np.expm1(_parameter(eta1) ** 2) * mu * mu

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        sigma = _parameter(eta1)
        return -np.log(sigma) - 0.5 * ((np.log(y) - eta0) / sigma) ** 2

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        sigma = _parameter(eta1)
        return np.exp(np.log(mu) - 0.5 * sigma**2 + sigma * rng.standard_normal(mu.shape))


@dataclass(frozen=True)
class Exponential(_Positive):
    """An exponential response with mean mu and variance mu^2.

    Parameters
    ----------
    link : str
        ``"log"``.

    Examples
    --------
    >>> from partialpool.spec.families import Exponential
    >>> Exponential().variance([0.0])
    array([1.])
    """

    name: ClassVar[str] = "exponential"
    links: ClassVar[tuple[str, ...]] = ("log",)
    concave_links: ClassVar[tuple[str, ...]] = ("log",)

    def helpers(self) -> Helpers:
        return _EXPONENTIAL

    def _constant(self, y: Array, trials: Array) -> Array:
        return np.zeros(y.shape)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * mu

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return np.maximum(mu * rng.standard_exponential(mu.shape), np.finfo(np.float64).tiny)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return -eta0 - y * np.exp(np.minimum(-eta0, LARGEST_EXPONENT))


@dataclass(frozen=True)
class Weibull(_Positive):
    """A Weibull response with mean mu: its scale is mu / Gamma(1 + 1 / shape).

    Its variance is mu^2 (Gamma(1 + 2 / shape) / Gamma(1 + 1 / shape)^2 - 1).

    Parameters
    ----------
    link : str
        ``"log"``.

    Examples
    --------
    >>> from partialpool.spec.families import Weibull
    >>> Weibull().variance([0.0], eta1=0.0).round(6)
    array([1.])
    """

    name: ClassVar[str] = "weibull"
    parameters: ClassVar[tuple[str, ...]] = ("shape",)
    modelled: ClassVar[tuple[str, ...]] = ("shape",)
    links: ClassVar[tuple[str, ...]] = ("log",)
    concave_links: ClassVar[tuple[str, ...]] = ("log",)

    def helpers(self) -> Helpers:
        return _WEIBULL

    def _constant(self, y: Array, trials: Array) -> Array:
        return -np.log(y)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        from scipy.special import gammaln

        inverse = 1.0 / _parameter(eta1)
        return np.asarray(mu * mu * np.expm1(gammaln(1.0 + 2.0 * inverse) - 2.0 * gammaln(1.0 + inverse)))

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        from scipy.special import gammaln

        inverse = 1.0 / _parameter(eta1)
        log_y = np.log(mu) - gammaln(1.0 + inverse) + inverse * np.log(rng.standard_exponential(mu.shape))
        return np.asarray(np.maximum(np.exp(log_y), np.finfo(np.float64).tiny), dtype=np.float64)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        from scipy.special import gammaln

        shape = _parameter(eta1)
        v = shape * (np.log(y) - _log_mean_rows("log", eta0) + gammaln(1.0 + 1.0 / shape))
        return np.asarray(np.log(shape) + v - np.exp(np.minimum(v, _LARGEST_LOG_HAZARD)), dtype=np.float64)
