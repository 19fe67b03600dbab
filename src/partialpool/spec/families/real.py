"""Responses on the whole line: Gaussian and Student-t."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from partialpool.algebra.jit import helper
from partialpool.algebra.special import HALF_LOG_TWO_PI, clamped, half_step, log1p_minus, log_and_reciprocal
from partialpool.spec.families.base import LARGEST_LOG, Array, Family, Helpers, Mask, Seven, real_troubles

# --------------------------------------------------------------------------------------------------------------------
# Gaussian
# --------------------------------------------------------------------------------------------------------------------


@helper
def gaussian_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a normal response."""
    log_sigma = clamped(e1, LARGEST_LOG)
    z = (y - e0) * math.exp(-log_sigma)
    return -log_sigma - 0.5 * z * z


@helper
def gaussian(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a normal response."""
    log_sigma = clamped(e1, LARGEST_LOG)
    precise = math.exp(-log_sigma)
    z = (y - e0) * precise
    square = z * z
    slope = z * precise
    return -log_sigma - 0.5 * square, slope, square - 1.0, 0.0, -precise * precise, -2.0 * slope, -2.0 * square


_GAUSSIAN = Helpers(gaussian_value, gaussian)

# --------------------------------------------------------------------------------------------------------------------
# Student-t
# --------------------------------------------------------------------------------------------------------------------


@helper
def student_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a Student-t response, normal in the limit of large nu."""
    log_sigma = clamped(e1, 150.0)
    nu = math.exp(clamped(e2, 100.0))
    z = clamped((y - e0) * math.exp(-log_sigma), 1e100)
    return half_step(0.5 * nu)[0] - log_sigma - 0.5 * (nu + 1.0) * log_and_reciprocal(z * z / nu)[0]


@helper
def student(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a Student-t response."""
    log_sigma = clamped(e1, 150.0)
    nu = math.exp(clamped(e2, 100.0))
    precise = math.exp(-log_sigma)
    z = clamped((y - e0) * precise, 1e100)
    square = z * z
    w = square / nu
    spread, u = log_and_reciprocal(w)
    weight = (nu + 1.0) / nu * u
    height, height_slope = half_step(0.5 * nu)
    value = height - log_sigma - 0.5 * (nu + 1.0) * spread
    g0 = weight * z * precise
    g1 = weight * square - 1.0
    # log(1 + w) - w / (1 + w), without cancellation at either end
    excess = log1p_minus(w) + w * (w * u) if w < 0.02 else spread - w * u
    g2 = height_slope - 0.5 * nu * excess + 0.5 * w * u
    return (
        value, g0, g1, g2, -weight * (1.0 - w) * u * precise * precise, -2.0 * g0 * u, -2.0 * weight * square * u
    )  # fmt: skip


@helper
def student_information(e0: float, e1: float, e2: float, t: float) -> float:
    """E[-h00] of a Student-t response: (nu + 1) / (nu + 3) / sigma^2."""
    nu = math.exp(clamped(e2, 100.0))
    return (nu + 1.0) / (nu + 3.0) * math.exp(-2.0 * clamped(e1, 150.0))


_STUDENT = Helpers(student_value, student, student_information)

# --------------------------------------------------------------------------------------------------------------------
# The families
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian(Family):
    """A normal response: y ~ Normal(mu, sigma), with variance sigma^2.

    Parameters
    ----------
    link : str
        ``"identity"``.

    Examples
    --------
    >>> from partialpool.spec.families import Gaussian
    >>> Gaussian().name, Gaussian().variance([0.0], eta1=0.0)
    ('gaussian', array([1.]))
    """

    name: ClassVar[str] = "gaussian"
    parameters: ClassVar[tuple[str, ...]] = ("sigma",)
    modelled: ClassVar[tuple[str, ...]] = ("sigma",)
    concave_links: ClassVar[tuple[str, ...]] = ("identity",)

    def helpers(self) -> Helpers:
        return _GAUSSIAN

    def _constant(self, y: Array, trials: Array) -> Array:
        return np.full(y.shape, -HALF_LOG_TWO_PI)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return np.exp(2.0 * np.clip(eta1, -LARGEST_LOG, LARGEST_LOG))

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu + np.exp(np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)) * rng.standard_normal(mu.shape)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        log_sigma = np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)
        return -log_sigma - 0.5 * ((y - eta0) * np.exp(-log_sigma)) ** 2

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return real_troubles(y, self.name)


@dataclass(frozen=True)
class StudentT(Family):
    """A response with heavy tails: mu + sigma t, t of `nu` degrees of freedom.

    Its variance is sigma^2 nu / (nu - 2), infinite up to nu = 2; it is normal as `nu` grows.

    Parameters
    ----------
    link : str
        ``"identity"``.

    Examples
    --------
    >>> from partialpool.spec.families import StudentT
    >>> StudentT().variance([0.0], eta1=0.0, eta2=np.log(4.0)).round(6)
    array([2.])
    """

    name: ClassVar[str] = "student_t"
    parameters: ClassVar[tuple[str, ...]] = ("sigma", "nu")
    modelled: ClassVar[tuple[str, ...]] = ("sigma",)

    def helpers(self) -> Helpers:
        return _STUDENT

    def _constant(self, y: Array, trials: Array) -> Array:
        return np.full(y.shape, -HALF_LOG_TWO_PI)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        nu = np.exp(np.clip(eta2, -100.0, 100.0))
        return np.where(nu > 2.0, np.exp(2.0 * np.clip(eta1, -150.0, 150.0)) * (nu / (nu - 2.0)), np.inf)

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        nu = np.exp(np.clip(eta2, -100.0, 100.0))
        return mu + np.exp(np.clip(eta1, -150.0, 150.0)) * rng.standard_t(nu)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        from scipy.special import gammaln

        log_sigma = np.clip(eta1, -150.0, 150.0)
        nu = np.exp(np.clip(eta2, -100.0, 100.0))
        z = np.clip((y - eta0) * np.exp(-log_sigma), -1e100, 1e100)
        x = 0.5 * nu
        near = gammaln(x + 0.5) - gammaln(x) - 0.5 * np.log(x)
        height = np.where(x > 300.0, -1.0 / (8.0 * x) + 1.0 / (192.0 * x**3), near)
        return np.asarray(height - log_sigma - 0.5 * (nu + 1.0) * np.log1p(z * z / nu), dtype=np.float64)

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return real_troubles(y, self.name)
