"""Events: Bernoulli, binomial and beta-binomial responses."""

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
    log_and_reciprocal,
    log_normal_cdf,
    log_rising,
    normal_tail,
    rising,
    trigamma,
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
    log_rising_rows,
)
from partialpool.spec.links import cloglog_success

_LINKS = ("logit", "probit", "cloglog")

# --------------------------------------------------------------------------------------------------------------------
# Bernoulli: one branch by y, so that only one of log p and log(1 - p) is computed
# --------------------------------------------------------------------------------------------------------------------


@helper
def bernoulli_logit_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a Bernoulli response under the logit link."""
    s = e0 if y > 0.5 else -e0
    return min(s, 0.0) - log_and_reciprocal(math.exp(-abs(s)))[0]


@helper
def bernoulli_logit(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a Bernoulli response under the logit link, with one exp."""
    sign = 1.0 if y > 0.5 else -1.0
    s = sign * e0
    a = math.exp(-abs(s))
    both, near = log_and_reciprocal(a)
    far = a * near
    slope = far if s > 0.0 else near
    return min(s, 0.0) - both, sign * slope, 0.0, 0.0, -near * far, 0.0, 0.0


@helper
def bernoulli_probit_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a Bernoulli response under the probit link."""
    return log_normal_cdf(e0 if y > 0.5 else -e0)


@helper
def bernoulli_probit(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a Bernoulli response under the probit link."""
    sign = 1.0 if y > 0.5 else -1.0
    value, ratio, excess = normal_tail(sign * e0)
    return value, sign * ratio, 0.0, 0.0, -ratio * excess, 0.0, 0.0


@helper
def bernoulli_cloglog_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a Bernoulli response under the complementary log-log link."""
    if y > 0.5:
        return cloglog_success(e0)[0]
    return -bounded_exp(e0)


@helper
def bernoulli_cloglog(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a Bernoulli response under the complementary log-log link."""
    if y > 0.5:
        value, first, second = cloglog_success(e0)
        return value, first, 0.0, 0.0, second, 0.0, 0.0
    value = -bounded_exp(e0)
    return value, value, 0.0, 0.0, value, 0.0, 0.0


_BERNOULLI = {
    "logit": Helpers(bernoulli_logit_value, bernoulli_logit),
    "probit": Helpers(bernoulli_probit_value, bernoulli_probit),
    "cloglog": Helpers(bernoulli_cloglog_value, bernoulli_cloglog),
}

# --------------------------------------------------------------------------------------------------------------------
# Binomial
# --------------------------------------------------------------------------------------------------------------------


@helper
def binomial_logit_value(e0: float, e1: float, e2: float, y: float, t: float) -> float:
    """The log density of a count of events under the logit link."""
    both = t * log_and_reciprocal(math.exp(-abs(e0)))[0]
    return -both - (t - y) * e0 if e0 > 0.0 else y * e0 - both


@helper
def binomial_logit(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
    """Log density and derivatives of a count of events under the logit link, with one exp."""
    a = math.exp(-abs(e0))
    both, near = log_and_reciprocal(a)
    far = a * near
    both *= t
    curvature = -t * near * far
    if e0 > 0.0:
        return -both - (t - y) * e0, y * far - (t - y) * near, 0.0, 0.0, curvature, 0.0, 0.0
    return y * e0 - both, y * near - (t - y) * far, 0.0, 0.0, curvature, 0.0, 0.0


def _binomial(log_probabilities: Helper) -> Helpers:
    """Through log p and log(1 - p); a term without events is left out, for 0 times -inf is not 0."""

    @helper
    def derivatives(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
        log_p, p1, p2, log_q, q1, q2 = log_probabilities(e0)
        n = t - y
        value = 0.0
        first = 0.0
        second = 0.0
        if y > 0.0:
            value += y * log_p
            first += y * p1
            second += y * p2
        if n > 0.0:
            value += n * log_q
            first += n * q1
            second += n * q2
        return value, first, 0.0, 0.0, second, 0.0, 0.0

    @helper
    def log_density(e0: float, e1: float, e2: float, y: float, t: float) -> float:
        log_p, _, _, log_q, _, _ = log_probabilities(e0)
        value = 0.0
        if y > 0.0:
            value += y * log_p
        if t - y > 0.0:
            value += (t - y) * log_q
        return value

    return Helpers(log_density, derivatives)


@functools.cache
def _binomial_helpers(link: str) -> Helpers:
    if link == "logit":
        return Helpers(binomial_logit_value, binomial_logit)
    return _binomial(links.log_probabilities(link))


# --------------------------------------------------------------------------------------------------------------------
# Beta-binomial, in log(mu phi) and log((1 - mu) phi)
# --------------------------------------------------------------------------------------------------------------------

#: Up to this many trials, the expected curvature of a beta-binomial is summed; beyond, it is interpolated.
_FEW_TRIALS = 64.0


@functools.cache
def _beta_binomial_helpers(link: str) -> Helpers:
    log_probabilities = links.log_probabilities(link)

    @helper
    def log_density(e0: float, e1: float, e2: float, y: float, t: float) -> float:
        log_p, _, _, log_q, _, _ = log_probabilities(e0)
        log_phi = clamped(e1, LARGEST_LOG)
        log_p = max(log_p, -1e300)
        log_q = max(log_q, -1e300)
        log_a = log_p + log_phi
        log_b = log_q + log_phi
        value = log_rising(math.exp(log_a), log_a, y) + log_rising(math.exp(log_b), log_b, t - y)
        return float(value + y * log_p + (t - y) * log_q - log_rising(math.exp(log_phi), log_phi, t))

    @helper
    def derivatives(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
        log_p, p1, p2, log_q, q1, q2 = log_probabilities(e0)
        log_phi = clamped(e1, LARGEST_LOG)
        log_p = max(log_p, -1e300)
        log_q = max(log_q, -1e300)
        n = t - y
        log_a = log_p + log_phi
        log_b = log_q + log_phi
        a0, a1, a2 = rising(math.exp(log_a), log_a, y)
        b0, b1, b2 = rising(math.exp(log_b), log_b, n)
        c0, c1, c2 = rising(math.exp(log_phi), log_phi, t)
        value = a0 + b0 - c0 + y * log_p + n * log_q
        slope_a = a1 + y
        slope_b = b1 + n
        first = slope_a * p1 + slope_b * q1
        second = a2 * p1 * p1 + slope_a * p2 + b2 * q1 * q1 + slope_b * q2
        return value, first, a1 + b1 - c1, 0.0, second, a2 * p1 + b2 * q1, a2 + b2 - c2

    @helper
    def information(e0: float, e1: float, e2: float, t: float) -> float:
        log_p, p1, _, log_q, _, _ = log_probabilities(e0)
        log_p = max(log_p, -LARGEST_EXPONENT)
        log_q = max(log_q, -LARGEST_EXPONENT)
        log_phi = clamped(e1, LARGEST_LOG)
        phi = math.exp(log_phi)
        p = math.exp(log_p)
        q = math.exp(log_q)
        a = math.exp(clamped(log_p + log_phi, LARGEST_LOG))
        b = math.exp(clamped(log_q + log_phi, LARGEST_LOG))
        if t > _FEW_TRIALS:
            # Between the information of a beta variable seen without noise and that of a binomial count.
            beta = p1 * p1 * (a * a * trigamma(a) + (p / q * b) * (p / q * b) * trigamma(b))
            binomial = t * p1 * p1 * p / q
            return float(beta * binomial / (beta + binomial)) if beta + binomial > 0.0 else 0.0
        # E sum_{j < y} (p phi / (a + j))^2, and likewise of the failures, from the survival function of y.
        log_start = t * log_q + log_rising(b, math.log(b), t) - log_rising(phi, log_phi, t)
        mass = math.exp(log_start)
        below = 0.0
        total = 0.0
        ratio = p / q
        k = 0.0
        while k < t:
            below += mass  # P(y <= k)
            share = a / (a + k)
            total += max(1.0 - below, 0.0) * share * share
            share = ratio * b / (b + (t - k - 1.0))
            total += below * share * share  # P(n - y > n - k - 1)
            mass *= (t - k) / (k + 1.0) * ((a + k) / (b + (t - k - 1.0)))
            k += 1.0
        return float(total * p1 * p1)

    return Helpers(log_density, derivatives, information)


# --------------------------------------------------------------------------------------------------------------------
# The families
# --------------------------------------------------------------------------------------------------------------------


def log_probability_rows(link: str, eta: Array) -> tuple[Array, Array]:
    """log p and log(1 - p) of arrays, right in both tails."""
    if link == "logit":
        log_p, log_q = -np.logaddexp(0.0, -eta), -np.logaddexp(0.0, eta)
    elif link == "probit":
        from scipy.special import log_ndtr

        log_p, log_q = log_ndtr(eta), log_ndtr(-eta)
    else:
        hazard = np.exp(np.minimum(eta, LARGEST_EXPONENT))
        log_p = np.where(eta < -20.0, eta - 0.5 * hazard, np.log(-np.expm1(-hazard)))
        log_p, log_q = np.where(hazard > 0.7, np.log1p(-np.exp(-hazard)), log_p), -hazard
    return np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)


def _events_kernel(link: str, y: Array, eta: Array, trials: Array) -> Array:
    log_p, log_q = log_probability_rows(link, eta)
    failures = trials - y
    return np.where(y > 0.0, y * log_p, 0.0) + np.where(failures > 0.0, failures * log_q, 0.0)


def _log_choose(y: Array, trials: Array) -> Array:
    from scipy.special import gammaln

    return np.asarray(gammaln(trials + 1.0) - gammaln(y + 1.0) - gammaln(trials - y + 1.0), dtype=np.float64)


def _trial_troubles(y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
    t = np.ones(y.shape) if trials is None else trials
    mend = "" if trials is not None else "; without trials(n) in the formula every row is one trial"
    return [
        (~(np.isfinite(t) & (t >= 0.0) & (t == np.floor(t))), "trials are whole numbers of at least 0"),
        (
            ~(np.isfinite(y) & (y >= 0.0) & (y == np.floor(y))),
            "counts of events are whole numbers of at least 0" + mend,
        ),
        (y > t, "there cannot be more events than trials" + mend),
    ]


@dataclass(frozen=True)
class Bernoulli(Family):
    """Yes or no: y is 1 with probability mu, else 0; its variance is mu (1 - mu).

    Parameters
    ----------
    link : str
        ``"logit"`` (the default), ``"probit"`` or ``"cloglog"``.

    Examples
    --------
    >>> from partialpool.spec.families import Bernoulli
    >>> Bernoulli(link="probit").mean([0.0, 1.0]).round(3)
    array([0.5  , 0.841])
    """

    name: ClassVar[str] = "bernoulli"
    links: ClassVar[tuple[str, ...]] = _LINKS
    concave_links: ClassVar[tuple[str, ...]] = _LINKS
    discrete: ClassVar[bool] = True

    def helpers(self) -> Helpers:
        return _BERNOULLI[self.link]

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * (1.0 - mu)

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return (rng.random(mu.shape) < mu).astype(np.float64)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return _events_kernel(self.link, y, eta0, np.ones(y.shape))

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return [(~((y == 0.0) | (y == 1.0)), "a Bernoulli response is 0 or 1")]


@dataclass(frozen=True)
class Binomial(Family):
    """A count of events among n trials, each with probability mu; its variance is n mu (1 - mu).

    Parameters
    ----------
    link : str
        ``"logit"`` (the default), ``"probit"`` or ``"cloglog"``.

    Examples
    --------
    >>> from partialpool.spec.families import Binomial
    >>> Binomial().variance([0.0], trials=[8.0])
    array([2.])
    """

    name: ClassVar[str] = "binomial"
    links: ClassVar[tuple[str, ...]] = _LINKS
    concave_links: ClassVar[tuple[str, ...]] = _LINKS
    discrete: ClassVar[bool] = True
    takes_trials: ClassVar[bool] = True

    def helpers(self) -> Helpers:
        return _binomial_helpers(self.link)

    def _constant(self, y: Array, trials: Array) -> Array:
        return _log_choose(y, trials)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return trials * mu * (1.0 - mu)

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return rng.binomial(trials.astype(np.int64), mu).astype(np.float64)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return _events_kernel(self.link, y, eta0, trials)

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return _trial_troubles(y, trials)


@dataclass(frozen=True)
class BetaBinomial(Family):
    """A count of events among n trials whose probability is itself Beta(mu phi, (1 - mu) phi).

    Its variance is n mu (1 - mu) (phi + n) / (phi + 1): binomial as `phi` grows.

    Parameters
    ----------
    link : str
        ``"logit"`` (the default), ``"probit"`` or ``"cloglog"``.

    Examples
    --------
    >>> from partialpool.spec.families import BetaBinomial
    >>> BetaBinomial().variance([0.0], eta1=0.0, trials=[3.0])
    array([1.5])
    """

    name: ClassVar[str] = "beta_binomial"
    parameters: ClassVar[tuple[str, ...]] = ("phi",)
    modelled: ClassVar[tuple[str, ...]] = ("phi",)
    links: ClassVar[tuple[str, ...]] = _LINKS
    discrete: ClassVar[bool] = True
    takes_trials: ClassVar[bool] = True

    def helpers(self) -> Helpers:
        return _beta_binomial_helpers(self.link)

    def _constant(self, y: Array, trials: Array) -> Array:
        return _log_choose(y, trials)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        size = np.exp(np.clip(eta1, -LARGEST_LOG, LARGEST_LOG))
        return trials * mu * (1.0 - mu) * (1.0 + (trials - 1.0) / (size + 1.0))

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        size = np.exp(np.clip(eta1, -LARGEST_LOG, 100.0))
        tiny = np.finfo(np.float64).tiny
        p = rng.beta(np.maximum(mu * size, tiny), np.maximum((1.0 - mu) * size, tiny))
        p = np.where(np.isfinite(p), p, rng.random(mu.shape) < mu)  # where both shapes are all but 0
        return rng.binomial(trials.astype(np.int64), p).astype(np.float64)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        log_p, log_q = log_probability_rows(self.link, eta0)
        log_p, log_q = np.maximum(log_p, -1e300), np.maximum(log_q, -1e300)
        log_phi = np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)
        log_a, log_b = log_p + log_phi, log_q + log_phi
        failures = trials - y
        value = log_rising_rows(np.exp(log_a), log_a, y) + log_rising_rows(np.exp(log_b), log_b, failures)
        value -= log_rising_rows(np.exp(log_phi), log_phi, trials)
        return np.asarray(value + y * log_p + failures * log_q, dtype=np.float64)

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return _trial_troubles(y, trials)
