r"""Sums over units that the marginal likelihood of a population's hyperparameters is made of.

Units are cut into pieces of fixed size that are added in order, so that no result depends on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.jit import kernel
from partialpool.algebra.special import log_rising

Array = NDArray[np.float64]

#: Units in one piece of work.
PIECE = 65_536


@kernel("void(float64[::1], float64[::1], float64[:,::1], float64[::1], float64[:,::1])")
def add_normal(y: Array, variance: Array, X: Array, tau2: Array, out: Array) -> None:
    """Adds to out (K, 2 + p + p (p + 1) / 2): sums of log w and w y^2, X'Wy, the lower half of X'WX by rows.

    w = 1 / (variance + tau2): the precision of y_j around the regression.
    """
    p = X.shape[1]
    for k in range(tau2.size):
        logs = 0.0
        product = 1.0
        for j in range(y.size):
            total = variance[j] + tau2[k]
            product *= total
            if j % 8 == 7 or product > 1e140 or product < 1e-140:
                logs -= math.log(product)
                product = 1.0
            w = 1.0 / total
            out[k, 1] += w * y[j] * y[j]
            at = 2 + p
            for a in range(p):
                wx = w * X[j, a]
                out[k, 2 + a] += wx * y[j]
                for b in range(a + 1):
                    out[k, at] += wx * X[j, b]
                    at += 1
        out[k, 0] += logs - math.log(product)


@kernel("void(float64[::1], float64[::1], float64[::1], float64[::1], float64[::1])")
def add_rising(log_a: Array, values: Array, counts: Array, infinite: Array, out: Array) -> None:
    """Adds to out (K,) the sums over values of counts log(a (a + 1) ... (a + v - 1) / a^v); 0 where infinite."""
    for k in range(log_a.size):
        if infinite[k] > 0.0:
            continue
        a = math.exp(log_a[k])
        for i in range(values.size):
            out[k] += counts[i] * log_rising(a, log_a[k], values[i])


@kernel("void(float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1])")
def add_exposed(y: Array, exposure: Array, log_mean: Array, inverse_shape: Array, out: Array) -> None:
    """Adds to out (K,) the sums of (y + a) log(1 + E m / a): the exposures' part of the negative binomial.

    log_mean is (K, 1), the same for every unit, or (K, J); inverse_shape (K,) is 1 / a, and 0 is the Poisson limit.
    """
    common = log_mean.shape[1] == 1
    for k in range(inverse_shape.size):
        r = inverse_shape[k]
        m = math.exp(log_mean[k, 0])
        for j in range(y.size):
            if not common:
                m = math.exp(log_mean[k, j])
            mu = exposure[j] * m
            out[k] += mu if r == 0.0 else (y[j] + 1.0 / r) * math.log1p(mu * r)


@kernel("void(float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1])")
def add_beta_binomial(y: Array, n: Array, eta: Array, log_size: Array, out: Array) -> None:
    """Adds to out (K,) the sums of beta-binomial log densities, without binomial coefficients, with means expit(eta).

    eta (K, J); log_size (K,), the log of alpha + beta, infinite in the binomial limit.
    """
    for k in range(log_size.size):
        limit = not log_size[k] < 300.0
        m_size = 0.0 if limit else math.exp(log_size[k])
        for j in range(y.size):
            e = eta[k, j]
            soft = max(e, 0.0) + math.log1p(math.exp(-abs(e)))
            log_p, log_q = e - soft, -soft
            out[k] += y[j] * log_p + (n[j] - y[j]) * log_q
            if limit:
                continue
            log_a, log_b = log_size[k] + log_p, log_size[k] + log_q
            out[k] += log_rising(math.exp(log_a), log_a, y[j]) + log_rising(math.exp(log_b), log_b, n[j] - y[j])
            out[k] -= log_rising(m_size, log_size[k], n[j])


@kernel("void(float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[:,:])")
def normal_moments(
    y: Array, variance: Array, tau2: Array, location: Array, spread: Array, weights: Array, out: Array
) -> None:
    """Writes out (3, J): mean and sd of each unit's normal posterior mixed over K nodes, and its mean shrinkage.

    location and spread (K,): mean and variance of the population's mean given the node.
    """
    for j in range(y.size):
        mean = 0.0
        second = 0.0
        shrinkage = 0.0
        for k in range(tau2.size):
            total = variance[j] + tau2[k]
            share = variance[j] / total
            # from the first node's location, so that units without spread are exactly alike
            moved = (location[k] - location[0]) + tau2[k] / total * (y[j] - location[k])
            mean += weights[k] * moved
            second += weights[k] * (share * tau2[k] + share * share * spread[k])
            shrinkage += weights[k] * share
        # squares around the mean itself: a small se beside a large tau would drown in the difference of two large ones
        for k in range(tau2.size):
            moved = (location[k] - location[0]) + tau2[k] / (variance[j] + tau2[k]) * (y[j] - location[k])
            second += weights[k] * (moved - mean) ** 2
        out[0, j] = location[0] + mean
        out[1, j] = math.sqrt(second)
        out[2, j] = shrinkage


def in_pieces(count: int, shape: tuple[int, ...], add: Callable[[slice, Array], None], threads: int = 1) -> Array:
    """The sum over pieces of units of what `add` writes into arrays of this shape; the same for any threads.

    Examples
    --------
    >>> def add(piece, out):
    ...     out += np.arange(100.0)[piece].sum()
    >>> float(in_pieces(100, (1,), add)[0])
    4950.0
    """
    pieces = [slice(low, min(low + PIECE, count)) for low in range(0, count, PIECE)]

    def work(piece: slice) -> Array:
        out = np.zeros(shape)
        add(piece, out)
        return out

    if len(pieces) == 1 or threads == 1:
        parts = [work(piece) for piece in pieces]
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(work, pieces))
    total = np.zeros(shape)
    for part in parts:
        total += part
    return total


@kernel("void(float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1])")
def beta_binomial_logs(y: Array, n: Array, eta: Array, log_size: Array, out: Array) -> None:
    """Writes out (K, J): beta-binomial log densities of y in n trials, without binomial coefficients."""
    for k in range(eta.size):
        soft = max(eta[k], 0.0) + math.log1p(math.exp(-abs(eta[k])))
        log_p, log_q = eta[k] - soft, -soft
        limit = not log_size[k] < 300.0
        size = 0.0 if limit else math.exp(log_size[k])
        log_a, log_b = log_size[k] + log_p, log_size[k] + log_q
        for j in range(y.size):
            value = y[j] * log_p + (n[j] - y[j]) * log_q
            if not limit:
                value += log_rising(math.exp(log_a), log_a, y[j]) + log_rising(math.exp(log_b), log_b, n[j] - y[j])
                value -= log_rising(size, log_size[k], n[j])
            out[k, j] = value


@kernel("void(float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1])")
def negative_binomial_logs(y: Array, exposure: Array, log_mean: Array, log_shape: Array, out: Array) -> None:
    """Writes out (K, J): negative binomial log densities of y with means E m, without log y!."""
    for k in range(log_mean.size):
        limit = not log_shape[k] < 300.0
        shape = 0.0 if limit else math.exp(log_shape[k])
        for j in range(y.size):
            log_mu = math.log(exposure[j]) + log_mean[k]
            value = y[j] * log_mu
            if limit:
                value -= math.exp(log_mu)
            else:
                value += log_rising(shape, log_shape[k], y[j]) - (y[j] + shape) * math.log1p(math.exp(log_mu) / shape)
            out[k, j] = value
