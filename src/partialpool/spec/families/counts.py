"""Counts: Poisson, two negative binomials and geometric responses."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from partialpool.algebra.jit import helper
from partialpool.algebra.special import (
    LARGEST_EXPONENT,
    bounded_exp,
    clamped,
    log1p_minus,
    log_and_reciprocal,
    log_rising,
    rising,
    softplus,
)
from partialpool.spec import links
from partialpool.spec.families.base import (
    LARGEST_LOG,
    LARGEST_POISSON_MEAN,
    Array,
    Family,
    Helpers,
    Mask,
    Seven,
    count_troubles,
    log_rising_rows,
    through_log,
    through_mean,
)

_LINKS = ("log", "identity")
Six = tuple[float, float, float, float, float, float]

# --------------------------------------------------------------------------------------------------------------------
# Poisson
# --------------------------------------------------------------------------------------------------------------------


@helper
def poisson_log_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a Poisson count under the log link."""
    return y * e0 - bounded_exp(e0)


@helper
def poisson_log(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a Poisson count under the log link, with one exp."""
    mu = bounded_exp(e0)
    return y * e0 - mu, y - mu, 0.0, 0.0, -mu, 0.0, 0.0


@helper
def poisson_identity_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a Poisson count under the identity link."""
    if not e0 > 0.0:
        return -math.inf
    return y * math.log(e0) - e0


@helper
def poisson_identity(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a Poisson count under the identity link."""
    if not e0 > 0.0:
        return -math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    ratio = y / e0
    return y * math.log(e0) - e0, ratio - 1.0, 0.0, 0.0, -ratio / e0, 0.0, 0.0


_POISSON = {
    "log": Helpers(poisson_log_value, poisson_log),
    "identity": Helpers(poisson_identity_value, poisson_identity),
}

# --------------------------------------------------------------------------------------------------------------------
# NB2 in the log of the mean: variance mu + mu^2 / phi
# --------------------------------------------------------------------------------------------------------------------


@helper
def negative_binomial_value(m: float, e1: float, y: float) -> float:
    """The log density of an NB2 count, written so that it is Poisson's in the limit of large phi."""
    log_phi = clamped(e1, LARGEST_LOG)
    phi = math.exp(log_phi)
    spread = softplus(m - log_phi)  # log(1 + mu / phi)
    # phi log(1 + mu / phi), which is mu where the ratio has no digits left to add to 1
    loss = math.exp(m) if m - log_phi < -36.0 else phi * spread
    return log_rising(phi, log_phi, y) + y * (m - spread) - loss


@helper
def negative_binomial_core(m: float, e1: float, y: float) -> Six:
    """Log density and derivatives of an NB2 count in the log of its mean and in log phi."""
    log_phi = clamped(e1, LARGEST_LOG)
    phi = math.exp(log_phi)
    d = m - log_phi
    a = math.exp(-abs(d))
    spread, near = log_and_reciprocal(a)  # log(1 + mu / phi)
    far = a * near
    if d > 0.0:
        p, q = near, far
        spread += d
    else:
        p, q = far, near
    flow = phi * p  # mu phi / (mu + phi)
    if d < -4.0:
        # phi (log(1 + r) - r / (1 + r)), r = mu / phi, without cancellation; and phi log(1 + r)
        excess = phi * (log1p_minus(a) + a * far)
        loss = flow + excess
    else:
        loss = phi * spread
        excess = loss - flow
    c0, c1, c2 = rising(phi, log_phi, y)
    value = c0 + y * (m - spread) - loss
    g1 = c1 + y * p - excess
    return (
        value,
        y * q - flow,
        g1,
        -q * (y * p + flow),
        p * (y * q - flow),
        c2 - y * p * q - excess + flow * p,
    )


def _negative_binomial_identity() -> Helpers:
    @helper
    def information(e0: float, e1: float, e2: float, t: float) -> float:
        if not e0 > 0.0:
            return 0.0
        return 1.0 / (e0 * (1.0 + e0 * math.exp(-clamped(e1, LARGEST_LOG))))

    log_density, derivatives, _ = through_mean(
        links.log_mean("identity"), negative_binomial_value, negative_binomial_core
    )
    return Helpers(log_density, derivatives, information)


@functools.cache
def _negative_binomial_helpers(link: str) -> Helpers:
    if link == "log":
        return through_log(negative_binomial_value, negative_binomial_core)
    return _negative_binomial_identity()


# --------------------------------------------------------------------------------------------------------------------
# Geometric: NB2 with phi = 1
# --------------------------------------------------------------------------------------------------------------------


@helper
def geometric_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a geometric count, the failures before the first success."""
    return y * min(e0, 0.0) - max(e0, 0.0) - (y + 1.0) * log_and_reciprocal(math.exp(-abs(e0)))[0]


@helper
def geometric(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a geometric count."""
    a = math.exp(-abs(e0))
    both, near = log_and_reciprocal(a)
    far = a * near
    p, q = (near, far) if e0 > 0.0 else (far, near)
    value = y * min(e0, 0.0) - max(e0, 0.0) - (y + 1.0) * both
    return value, y * q - p, 0.0, 0.0, -(y + 1.0) * near * far, 0.0, 0.0


_GEOMETRIC = Helpers(geometric_value, geometric)

# --------------------------------------------------------------------------------------------------------------------
# NB1 in the log of the mean: size mu phi, variance mu (1 + 1 / phi)
# --------------------------------------------------------------------------------------------------------------------

#: The expected curvature of an NB1 count is summed up to this count, and bounded beyond.
_HEAD = 64


@helper
def negative_binomial1_value(m: float, e1: float, y: float) -> float:
    """The log density of an NB1 count, written so that it is Poisson's in the limit of large phi."""
    log_phi = clamped(e1, LARGEST_LOG)
    log_size = clamped(m + log_phi, LARGEST_EXPONENT)
    size = math.exp(log_size)
    rate = softplus(-log_phi)  # log(1 + 1 / phi)
    # phi log(1 + 1 / phi), which is 1 where 1 / phi is below the last digit
    slope = 1.0 if log_phi > 36.0 else math.exp(log_phi) * rate
    return log_rising(size, log_size, y) + y * (m - rate) - bounded_exp(m) * slope


@helper
def negative_binomial1_core(m: float, e1: float, y: float) -> Six:
    """Log density and derivatives of an NB1 count in the log of its mean and in log phi."""
    log_phi = clamped(e1, LARGEST_LOG)
    log_size = clamped(m + log_phi, LARGEST_EXPONENT)
    size = math.exp(log_size)
    mu = bounded_exp(m)
    a = math.exp(-abs(log_phi))
    rate, near = log_and_reciprocal(a)  # log(1 + 1 / phi)
    far = a * near
    if log_phi > 0.0:
        w = far  # 1 / (1 + phi)
        rest = near
    else:
        w = near
        rest = far
        rate -= log_phi
    slope = 1.0 if log_phi > 36.0 else math.exp(log_phi) * rate
    if log_phi > 4.0:
        bend = math.exp(log_phi) * (log1p_minus(a) + a * far)  # slope - phi / (1 + phi)
    else:
        bend = slope - rest
    c0, c1, c2 = rising(size, log_size, y)
    return (
        c0 + y * (m - rate) - mu * slope,
        c1 + y - mu * slope,
        c1 + y * w - mu * bend,
        c2 - mu * slope,
        c2 - mu * bend,
        c2 - y * w * rest - mu * (bend - w * rest),
    )


@helper
def negative_binomial1_log_information(e0: float, e1: float, e2: float, t: float) -> float:
    """E[-h00] of an NB1 count under the log link: the sum over j of P(y > j) (size / (size + j))^2."""
    log_phi = clamped(e1, LARGEST_LOG)
    mu = bounded_exp(e0)
    size = math.exp(clamped(e0 + log_phi, LARGEST_LOG))
    chance = 1.0 / (1.0 + math.exp(log_phi))
    slope = 1.0 if log_phi > 36.0 else math.exp(log_phi) * softplus(-log_phi)
    mass = math.exp(-mu * slope)
    below = 0.0
    seen = 0.0
    total = 0.0
    for j in range(_HEAD):
        below += mass
        above = max(1.0 - below, 0.0)
        share = size / (size + j)
        seen += above
        total += above * share * share
        mass *= (size + j) * chance / (j + 1.0)
        if above < 1e-17:
            return total
    # The rest of the mean, as if it were one count; trigamma(u) is 1 / (u - 1/2) out there.
    left = max(1.0 - below, 0.0)
    rest = max(mu - seen, 0.0)
    if left > 0.0 and rest > 0.0:
        start = size + _HEAD - 0.5
        total += rest * (size / start) * (size / (start + rest / left))
    return total


@functools.cache
def _negative_binomial1_helpers(link: str) -> Helpers:
    if link == "log":
        log_density, derivatives, _ = through_log(negative_binomial1_value, negative_binomial1_core)
        return Helpers(log_density, derivatives, negative_binomial1_log_information)
    return through_mean(links.log_mean(link), negative_binomial1_value, negative_binomial1_core)


# --------------------------------------------------------------------------------------------------------------------
# The families
# --------------------------------------------------------------------------------------------------------------------


def _log_mean_rows(link: str, eta: Array) -> Array:
    return np.clip(eta, -LARGEST_EXPONENT, LARGEST_EXPONENT) if link == "log" else np.log(eta)


def _minus_log_factorial(y: Array) -> Array:
    from scipy.special import gammaln

    return np.asarray(-gammaln(y + 1.0), dtype=np.float64)


def _poisson(rng: Generator, mu: Array) -> Array:
    return rng.poisson(np.minimum(mu, LARGEST_POISSON_MEAN)).astype(np.float64)


def _gamma_poisson(rng: Generator, size: Array, mu: Array) -> Array:
    size = np.clip(size, np.finfo(np.float64).tiny, 1e100)
    return _poisson(rng, rng.gamma(size) * (mu / size))


@dataclass(frozen=True)
class _Count(Family):
    """What counts have in common."""

    links: ClassVar[tuple[str, ...]] = _LINKS
    discrete: ClassVar[bool] = True

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return count_troubles(y)

    def _constant(self, y: Array, trials: Array) -> Array:
        return _minus_log_factorial(y)


@dataclass(frozen=True)
class Poisson(_Count):
    """A count with mean and variance mu.

    Parameters
    ----------
    link : str
        ``"log"`` (the default) or ``"identity"``.

    Examples
    --------
    >>> from partialpool.spec.families import Poisson
    >>> Poisson().variance([0.0, 1.0]).round(3)
    array([1.   , 2.718])
    """

    name: ClassVar[str] = "poisson"
    concave_links: ClassVar[tuple[str, ...]] = _LINKS

    def helpers(self) -> Helpers:
        return _POISSON[self.link]

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return _poisson(rng, mu)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        m = eta0 if self.link == "log" else np.log(eta0)
        return np.where(y > 0.0, y * m, 0.0) - np.exp(np.minimum(m, LARGEST_EXPONENT))


@dataclass(frozen=True)
class NegativeBinomial(_Count):
    """NB2: a count with mean mu and variance mu + mu^2 / phi; Poisson as `phi` grows.

    Parameters
    ----------
    link : str
        ``"log"`` (the default) or ``"identity"``.

    Examples
    --------
    >>> from partialpool.spec.families import NegativeBinomial
    >>> NegativeBinomial(link="identity").variance([3.0], eta1=0.0)
    array([12.])
    """

    name: ClassVar[str] = "negative_binomial"
    parameters: ClassVar[tuple[str, ...]] = ("phi",)
    modelled: ClassVar[tuple[str, ...]] = ("phi",)
    concave_links: ClassVar[tuple[str, ...]] = ("log",)

    def helpers(self) -> Helpers:
        return _negative_binomial_helpers(self.link)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * (1.0 + mu * np.exp(-np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)))

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return _gamma_poisson(rng, np.exp(np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)), mu)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        m = _log_mean_rows(self.link, eta0)
        log_phi = np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)
        phi = np.exp(log_phi)
        spread = np.logaddexp(0.0, m - log_phi)
        loss = np.where(m - log_phi < -36.0, np.exp(m), phi * spread)
        return np.asarray(log_rising_rows(phi, log_phi, y) + y * (m - spread) - loss, dtype=np.float64)


@dataclass(frozen=True)
class NegativeBinomial1(_Count):
    """NB1: a count with mean mu and variance mu (1 + 1 / phi); Poisson as `phi` grows.

    It is negative binomial of size mu phi.

    Parameters
    ----------
    link : str
        ``"log"`` (the default) or ``"identity"``.

    Examples
    --------
    >>> from partialpool.spec.families import NegativeBinomial1
    >>> NegativeBinomial1(link="identity").variance([3.0], eta1=0.0)
    array([6.])
    """

    name: ClassVar[str] = "negative_binomial1"
    parameters: ClassVar[tuple[str, ...]] = ("phi",)
    modelled: ClassVar[tuple[str, ...]] = ("phi",)
    concave_links: ClassVar[tuple[str, ...]] = ("identity",)

    def helpers(self) -> Helpers:
        return _negative_binomial1_helpers(self.link)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * (1.0 + np.exp(-np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)))

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return _gamma_poisson(rng, mu * np.exp(np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)), mu)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        m = _log_mean_rows(self.link, eta0)
        log_phi = np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)
        log_size = np.clip(m + log_phi, -LARGEST_EXPONENT, LARGEST_EXPONENT)
        rate = np.logaddexp(0.0, -log_phi)
        slope = np.where(log_phi > 36.0, 1.0, np.exp(log_phi) * rate)
        value = log_rising_rows(np.exp(log_size), log_size, y) + y * (m - rate)
        return np.asarray(value - np.exp(m) * slope, dtype=np.float64)


@dataclass(frozen=True)
class Geometric(_Count):
    """The failures before a first success: a count with mean mu and variance mu + mu^2, NB2 with `phi` = 1.

    Parameters
    ----------
    link : str
        ``"log"``.

    Examples
    --------
    >>> from partialpool.spec.families import Geometric
    >>> Geometric().variance([0.0])
    array([2.])
    """

    name: ClassVar[str] = "geometric"
    links: ClassVar[tuple[str, ...]] = ("log",)
    concave_links: ClassVar[tuple[str, ...]] = ("log",)

    def helpers(self) -> Helpers:
        return _GEOMETRIC

    def _constant(self, y: Array, trials: Array) -> Array:
        return np.zeros(y.shape)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * (1.0 + mu)

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return _gamma_poisson(rng, np.ones(mu.shape), mu)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return np.asarray(-y * np.logaddexp(0.0, -eta0) - np.logaddexp(0.0, eta0), dtype=np.float64)
