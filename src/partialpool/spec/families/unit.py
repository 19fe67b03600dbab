"""Responses between 0 and 1: beta."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from partialpool.algebra.jit import helper
from partialpool.algebra.special import HALF_LOG_TWO_PI, LARGEST_EXPONENT, clamped, stirling_rest
from partialpool.spec import links
from partialpool.spec.families.base import LARGEST_LOG, Array, Family, Helpers, Mask, Seven


@functools.cache
def _beta_helpers(link: str) -> Helpers:
    """In log(mu phi) and log((1 - mu) phi), with what Stirling's formula leaves: so that large phi loses nothing."""
    log_probabilities = links.log_probabilities(link)

    @helper
    def log_density(e0: float, e1: float, e2: float, y: float, t: float) -> float:
        log_p, _, _, log_q, _, _ = log_probabilities(e0)
        log_phi = clamped(e1, LARGEST_LOG)
        log_p = clamped(log_p, LARGEST_EXPONENT)
        log_q = clamped(log_q, LARGEST_EXPONENT)
        log_a = log_p + log_phi
        log_b = log_q + log_phi
        a = math.exp(log_a)
        b = math.exp(log_b)
        value = 0.5 * (log_a + log_b - log_phi) - HALF_LOG_TWO_PI
        value += stirling_rest(math.exp(log_phi), log_phi)[0]
        value -= stirling_rest(a, log_a)[0] + stirling_rest(b, log_b)[0]
        return float(value + a * (math.log(y) - log_p) + b * (math.log1p(-y) - log_q))

    @helper
    def derivatives(e0: float, e1: float, e2: float, y: float, t: float) -> Seven:
        log_p, p1, p2, log_q, q1, q2 = log_probabilities(e0)
        log_phi = clamped(e1, LARGEST_LOG)
        log_p = clamped(log_p, LARGEST_EXPONENT)
        log_q = clamped(log_q, LARGEST_EXPONENT)
        log_a = log_p + log_phi
        log_b = log_q + log_phi
        a = math.exp(log_a)
        b = math.exp(log_b)
        a0, a1, a2 = stirling_rest(a, log_a)
        b0, b1, b2 = stirling_rest(b, log_b)
        c0, c1, c2 = stirling_rest(math.exp(log_phi), log_phi)
        gain_a = a * (math.log(y) - log_p)
        gain_b = b * (math.log1p(-y) - log_q)
        value = 0.5 * (log_a + log_b - log_phi) - HALF_LOG_TWO_PI + c0 - a0 - b0 + gain_a + gain_b
        # Terms in log phi, and those of 1 in x trigamma(x), cancel between a and b: they are left out.
        slope_a = gain_a - a1
        slope_b = gain_b - b1
        g1 = c1 + slope_a + slope_b
        bend_a = slope_a - a2
        bend_b = slope_b - b2
        first = slope_a * p1 + slope_b * q1
        second = (bend_a - a) * p1 * p1 + slope_a * p2 + (bend_b - b) * q1 * q1 + slope_b * q2
        return value, first, g1, 0.0, second, bend_a * p1 + bend_b * q1, g1 + c2 - a2 - b2

    @helper
    def information(e0: float, e1: float, e2: float, t: float) -> float:
        log_p, p1, _, log_q, q1, _ = log_probabilities(e0)
        log_phi = clamped(e1, LARGEST_LOG)
        log_a = clamped(log_p, LARGEST_EXPONENT) + log_phi
        log_b = clamped(log_q, LARGEST_EXPONENT) + log_phi
        a = math.exp(log_a)
        b = math.exp(log_b)
        curve_a = a + stirling_rest(a, log_a)[2]
        curve_b = b + stirling_rest(b, log_b)[2]
        return float(curve_a * p1 * p1 + curve_b * q1 * q1)

    return Helpers(log_density, derivatives, information)


@dataclass(frozen=True)
class Beta(Family):
    """A proportion, Beta(mu phi, (1 - mu) phi): its mean is mu and its variance mu (1 - mu) / (1 + phi).

    Parameters
    ----------
    link : str
        ``"logit"`` (the default), ``"probit"`` or ``"cloglog"``.

    Examples
    --------
    >>> from partialpool.spec.families import Beta
    >>> Beta().variance([0.0], eta1=0.0)
    array([0.125])
    """

    name: ClassVar[str] = "beta"
    parameters: ClassVar[tuple[str, ...]] = ("phi",)
    modelled: ClassVar[tuple[str, ...]] = ("phi",)
    links: ClassVar[tuple[str, ...]] = ("logit", "probit", "cloglog")

    @property
    def latent_variance(self) -> float | None:
        return None

    def helpers(self) -> Helpers:
        return _beta_helpers(self.link)

    def _constant(self, y: Array, trials: Array) -> Array:
        return -np.log(y) - np.log1p(-y)

    def _variance(self, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        return mu * (1.0 - mu) / (1.0 + np.exp(np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)))

    def _simulate(self, rng: Generator, mu: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        # Two gammas in logs: small shapes would give 0 / 0.
        size = np.exp(np.clip(eta1, -LARGEST_LOG, 100.0))
        log_gammas = []
        for shape in (np.maximum(mu * size, 1e-300), np.maximum((1.0 - mu) * size, 1e-300)):
            log_gammas.append(np.log(rng.gamma(shape + 1.0)) + np.log1p(-rng.random(mu.shape)) / shape)
        share = np.exp(-np.logaddexp(0.0, log_gammas[1] - log_gammas[0]))
        share = np.where(np.isnan(share), rng.random(mu.shape) < mu, share)  # where both shapes are all but 0
        # The density is defined strictly inside.
        return np.clip(share, np.finfo(np.float64).tiny, 1.0 - np.finfo(np.float64).epsneg)

    def _log_kernel(self, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array) -> Array:
        from partialpool.spec.families.binomial import log_probability_rows

        log_p, log_q = log_probability_rows(self.link, eta0)
        log_p, log_q = np.maximum(log_p, -LARGEST_EXPONENT), np.maximum(log_q, -LARGEST_EXPONENT)
        log_phi = np.clip(eta1, -LARGEST_LOG, LARGEST_LOG)
        log_a, log_b = log_p + log_phi, log_q + log_phi
        rests = _stirling_rest_rows(log_phi) - _stirling_rest_rows(log_a) - _stirling_rest_rows(log_b)
        value = 0.5 * (log_a + log_b - log_phi) - HALF_LOG_TWO_PI + rests
        return np.asarray(value + np.exp(log_a) * (np.log(y) - log_p) + np.exp(log_b) * (np.log1p(-y) - log_q))

    def _troubles(self, y: Array, trials: Array | None) -> list[tuple[Mask, str]]:
        return [(~((y > 0.0) & (y < 1.0)), "a response of family beta lies strictly between 0 and 1")]


def _stirling_rest_rows(log_x: Array) -> Array:
    from scipy.special import gammaln

    x = np.exp(log_x)
    near = gammaln(1.0 + x) - (x + 0.5) * log_x + x - HALF_LOG_TWO_PI
    far = 1.0 / (12.0 * x) - 1.0 / (360.0 * x**3)
    return np.asarray(np.where(x > 300.0, far, near), dtype=np.float64)
