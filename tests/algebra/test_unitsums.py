"""Sums over units against scipy, and the same to the bit for any number of threads."""

import numpy as np
import pytest
from scipy import special, stats

from partialpool.algebra.unitsums import (
    PIECE,
    add_beta_binomial,
    add_exposed,
    add_normal,
    add_rising,
    beta_binomial_logs,
    in_pieces,
    negative_binomial_logs,
    normal_moments,
)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_normal_sums(rng):
    y, variance, X = rng.normal(size=37), rng.uniform(0.1, 3, 37), rng.normal(size=(37, 3))
    tau2 = np.array([0.0, 0.5, 1e8])
    out = np.zeros((3, 2 + 3 + 6))
    add_normal(y, variance, X, tau2, out)
    for k, t in enumerate(tau2):
        w = 1 / (variance + t)
        assert out[k, 0] == pytest.approx(np.log(w).sum(), rel=1e-12)
        assert out[k, 1] == pytest.approx((w * y**2).sum(), rel=1e-12)
        np.testing.assert_allclose(out[k, 2:5], X.T @ (w * y), rtol=1e-11)
        np.testing.assert_allclose(out[k, 5:], ((X.T * w) @ X)[np.tril_indices(3)], rtol=1e-11)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_logs_of_products_neither_overflow_nor_vanish(scale, rng):
    variance = scale * rng.uniform(0.5, 2, 1001)
    out = np.zeros((1, 4))
    add_normal(np.zeros(1001), variance, np.ones((1001, 1)), np.zeros(1), out)
    assert out[0, 0] == pytest.approx(-np.log(variance).sum(), rel=1e-12)


@pytest.mark.parametrize("log_a", [-300.0, -5.0, 0.3, 8.0, 30.0, 299.0])
def test_rising(log_a):
    values, counts = np.array([2.0, 3.0, 17.0, 400.0]), np.array([1.0, 5.0, 2.0, 3.0])
    out = np.zeros(2)
    add_rising(np.array([log_a, np.inf]), values, counts, np.array([0.0, 1.0]), out)
    expected = 0.0
    for value, count in zip(values, counts, strict=True):
        i = np.arange(1, value)
        # log prod (a + i) / a = sum log(1 + i / a)
        expected += count * np.logaddexp(0.0, np.log(i) - log_a).sum()
    assert out[0] == pytest.approx(expected, rel=1e-11)
    assert out[1] == 0.0


@pytest.mark.parametrize("a", [0.5, 15.0, 1500.0, 1e6])
@pytest.mark.parametrize("y", [1e3, 1e6, 1e9])
def test_rising_over_very_many_factors(a, y):
    out = np.zeros(1)
    add_rising(np.array([np.log(a)]), np.array([y]), np.ones(1), np.zeros(1), out)
    terms = [special.gammaln(a + y), special.gammaln(a), y * np.log(a)]
    # each of the three terms of the reference, and the result, is rounded: some units of the largest one's last place
    assert out[0] == pytest.approx(terms[0] - terms[1] - terms[2], abs=8 * np.spacing(max(map(abs, terms))))


@pytest.mark.parametrize("log_size", [-8.0, 0.0, 6.0, 20.0, np.inf])
def test_beta_binomial(log_size, rng):
    n = rng.integers(0, 60, 40).astype(float)
    y = np.floor(rng.random(40) * (n + 1))
    eta = rng.normal(size=(1, 40)) * 2
    out = np.zeros(1)
    add_beta_binomial(y, n, eta, np.array([log_size]), out)
    p = special.expit(eta[0])
    coefficients = special.gammaln(n + 1) - special.gammaln(y + 1) - special.gammaln(n - y + 1)
    if np.isinf(log_size):
        expected = stats.binom(n, p).logpmf(y).sum()
    else:
        # products of ratios, which lose no digits at large alpha + beta
        size, expected = np.exp(log_size), coefficients.sum()
        for k, m, q in zip(y.astype(int), n.astype(int), p, strict=True):
            expected += sum(np.log((q * size + i) / (size + i)) for i in range(k))
            expected += sum(np.log(((1 - q) * size + i) / (size + k + i)) for i in range(m - k))
    assert out[0] + coefficients.sum() == pytest.approx(expected, rel=1e-10)
    by_unit = np.empty((40, 40))
    beta_binomial_logs(y, n, eta[0], np.full(40, log_size), by_unit)
    assert np.trace(by_unit) == pytest.approx(out[0], rel=1e-12)


@pytest.mark.parametrize("log_shape", [-6.0, 0.0, 5.0, 15.0, np.inf])
def test_negative_binomial(log_shape, rng):
    y, exposure = rng.poisson(5, 30).astype(float), rng.uniform(0.1, 9, 30)
    log_mean = 0.4
    out = np.empty((1, 30))
    negative_binomial_logs(y, exposure, np.array([log_mean]), np.array([log_shape]), out)
    mu = exposure * np.exp(log_mean)
    law = (
        stats.poisson(mu) if np.isinf(log_shape) else stats.nbinom(np.exp(log_shape), 1 / (1 + mu / np.exp(log_shape)))
    )
    expected = law.logpmf(y) + special.gammaln(y + 1)
    # scipy's differences of log-gamma functions of 3e6 are good to about 1e-8
    np.testing.assert_allclose(out[0], expected, atol=1e-7 if log_shape == 15.0 else 1e-11)
    total = np.zeros(1)
    inverse = np.array([np.exp(-log_shape)])
    add_exposed(y, exposure, np.full((1, 1), log_mean), inverse, total)
    each = np.zeros(1)
    add_exposed(y, exposure, np.full((1, 30), log_mean), inverse, each)
    assert total[0] == pytest.approx(each[0], rel=1e-14)
    r = inverse[0]
    assert total[0] == pytest.approx(mu.sum() if r == 0 else ((y + 1 / r) * np.log1p(mu * r)).sum(), rel=1e-12)


def test_moments_of_mixed_normals(rng):
    y, variance = rng.normal(size=9) * 3 + 1e6, rng.uniform(0.1, 2, 9)
    tau2, location, spread = np.array([0.0, 0.4, 30.0]), np.array([1e6, 1e6 + 1, 1e6 - 2]), np.array([0.1, 0.2, 0.0])
    weights = np.array([0.2, 0.5, 0.3])
    out = np.empty((3, 9))
    normal_moments(y, variance, tau2, location, spread, weights, out)
    share = variance / (variance + tau2[:, None])
    means = y + share * (location[:, None] - y)
    mean = weights @ means
    second = weights @ ((means - mean) ** 2 + share * tau2[:, None] + share**2 * spread[:, None])
    np.testing.assert_allclose(out[0], mean, rtol=1e-15)
    np.testing.assert_allclose(out[1], np.sqrt(second), rtol=1e-8)  # digits of a million's units
    np.testing.assert_allclose(out[2], weights @ share, rtol=1e-14)


def test_moments_keep_an_error_much_smaller_than_the_spread_and_none_where_units_are_alike():
    y, variance, out = np.array([1.0, 2.0, 3.0]), np.full(3, 1e-18), np.empty((3, 3))
    tau2, location, weights = np.array([0.5, 1.0, 40.0]), np.array([2.0, 2.1, 1.8]), np.full(3, 1 / 3)
    normal_moments(y, variance, tau2, location, np.full(3, 0.2), weights, out)
    np.testing.assert_allclose(out[0], y, rtol=1e-15)
    np.testing.assert_allclose(out[1], 1e-9, rtol=1e-6)
    normal_moments(y, np.ones(3), np.zeros(3), np.full(3, 1.7), np.full(3, 0.04), weights, out)
    np.testing.assert_array_equal(out[0], 1.7)
    np.testing.assert_array_equal(out[1], out[1, 0])


def test_pieces_add_up_the_same_for_any_threads(rng):
    values = rng.normal(size=3 * PIECE + 17)

    def add(piece, out):
        out += [values[piece].sum(), (values[piece] ** 2).sum()]

    one, two, five = (in_pieces(values.size, (2,), add, threads) for threads in (1, 2, 5))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, five)
    np.testing.assert_allclose(one, [values.sum(), (values**2).sum()], rtol=1e-10)
