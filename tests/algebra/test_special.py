"""The special functions of kernels against scipy's, run as Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special as sc

from partialpool.algebra import special
from partialpool.algebra.jit import kernel

ARGUMENTS = [1e-8, 1e-3, 0.1, 0.5, 1.0, 1.4616, 2.0, 5.5, 9.999, 10.0, 10.001, 37.0, 1e3, 1e8, 1e15]


@pytest.mark.parametrize("x", ARGUMENTS)
def test_gamma_function_and_its_derivatives(x):
    assert special.log_gamma(x) == pytest.approx(sc.gammaln(x), rel=2e-14, abs=2e-14)
    assert special.digamma(x) == pytest.approx(sc.digamma(x), rel=1e-13, abs=1e-13)
    assert special.trigamma(x) == pytest.approx(sc.polygamma(1, x), rel=1e-12)


@pytest.mark.parametrize("x", ARGUMENTS)
def test_what_stirlings_formula_leaves(x):
    log_x = math.log(x)
    first, second, third = special.stirling_rest(x, log_x)
    assert (x - 0.5) * log_x - x + special.HALF_LOG_TWO_PI + first == pytest.approx(sc.gammaln(x), rel=1e-13, abs=1e-13)
    assert x * log_x + second == pytest.approx(x * sc.digamma(x), rel=1e-13, abs=1e-13)
    assert x + third == pytest.approx(x * x * sc.polygamma(1, x), rel=1e-12)


def test_what_stirlings_formula_leaves_is_finite_at_an_underflow():
    assert all(math.isfinite(v) for v in special.stirling_rest(0.0, -800.0))


@pytest.mark.parametrize("a", [1e-6, 0.03, 0.9, 1.0, 1.1, 7.0, 9.99, 10.0, 25.0, 1e3])
@pytest.mark.parametrize("y", [0, 1, 2, 3, 15, 16, 17, 18, 40, 1000])
def test_rising_factorials(a, y):
    factors = np.arange(y)
    value, first, second = special.rising(a, math.log(a), float(y))
    assert value == pytest.approx(np.log1p(factors / a).sum(), rel=1e-13, abs=1e-12)
    assert first == pytest.approx(-(factors / (a + factors)).sum(), rel=1e-12, abs=1e-12)
    assert second == pytest.approx((a * factors / (a + factors) ** 2).sum(), rel=1e-10, abs=1e-11)
    assert special.log_rising(a, math.log(a), float(y)) == pytest.approx(value, rel=1e-14, abs=1e-12)


def test_rising_factorials_vanish_for_a_large_argument():
    for y in (3.0, 300.0):
        value, first, second = special.rising(1e12, math.log(1e12), y)
        expected = y * (y - 1.0) / 2e12
        assert (value, -first, second) == pytest.approx((expected,) * 3, rel=1e-3, abs=1e-16)


def test_rising_factorials_are_finite_at_an_underflow():
    assert all(math.isfinite(v) for y in (2.0, 16.0, 400.0) for v in special.rising(0.0, -800.0, y))


@pytest.mark.parametrize("x", ARGUMENTS)
def test_half_step(x):
    value, first = special.half_step(x)
    if x < 1e4:
        assert value == pytest.approx(sc.gammaln(x + 0.5) - sc.gammaln(x) - 0.5 * math.log(x), rel=1e-12, abs=1e-11)
        expected = x * (sc.digamma(x + 0.5) - sc.digamma(x)) - 0.5
        assert first == pytest.approx(expected, rel=1e-10, abs=1e-12 * max(x, 1.0))
    else:
        assert value == pytest.approx(-1 / (8 * x), rel=1e-6)
        assert first == pytest.approx(1 / (8 * x), rel=1e-6)


@pytest.mark.parametrize("x", [-1e3, -40.0, -20.0, -6.001, -6.0, -5.999, -3.0, -0.5, 0.0, 0.5, 3.0, 8.0, 40.0])
def test_tails_of_the_normal_distribution(x):
    value, ratio, excess = special.normal_tail(x)
    assert value == pytest.approx(sc.log_ndtr(x), rel=1e-13)
    assert special.log_normal_cdf(x) == value
    # phi / Phi by the scaled complementary error function, right in the lower tail
    assert ratio == pytest.approx(math.sqrt(2 / math.pi) / sc.erfcx(-x / math.sqrt(2)), rel=1e-12, abs=1e-300)
    assert excess > 0.0
    if x > -20.0:
        assert excess == pytest.approx(ratio + x, rel=1e-9)
    else:
        assert excess == pytest.approx(-1 / x, rel=5e-3)


def test_small_differences():
    for x in (1e-12, -1e-9, 1e-4, -0.0199, 0.0199, 0.0201, 0.5):
        series = sum((-1) ** (k + 1) * x**k / k for k in range(2, 60))
        assert special.log1p_minus(x) == pytest.approx(series, rel=1e-12)
        series = sum(x**k / math.factorial(k) for k in range(2, 30))
        assert special.expm1_minus(x) == pytest.approx(series, rel=1e-12)
    assert special.expm1_minus(-0.099) == pytest.approx(sum((-0.099) ** k / math.factorial(k) for k in range(2, 30)))
    assert math.isfinite(special.expm1_minus(1e5))


def test_elementary_functions_far_out():
    assert special.softplus(800.0) == 800.0
    assert special.softplus(-40.0) == pytest.approx(math.exp(-40.0), rel=1e-14)
    for a in (0.0, 1e-300, 1e-17, 1e-9, 0.3, 1.0, 7.0, 1e200):
        value, reciprocal = special.log_and_reciprocal(a)
        assert value == pytest.approx(math.log1p(a), rel=1e-15)
        assert reciprocal == pytest.approx(1 / (1 + a), rel=1e-15)
    assert special.clamped(5.0, 3.0) == 3.0
    assert math.isfinite(special.bounded_exp(1e9))


def test_in_a_kernel():
    log_gamma, digamma, trigamma, tail = special.log_gamma, special.digamma, special.trigamma, special.normal_tail

    @kernel("void(float64[::1], float64[:,::1])", variant="test")
    def table(x, out):
        for i in range(x.size):
            out[i, 0] = log_gamma(x[i])
            out[i, 1] = digamma(x[i])
            out[i, 2] = trigamma(x[i])
            out[i, 3], out[i, 4], out[i, 5] = tail(-x[i])

    x = np.array([0.2, 3.0, 30.0])
    out = np.empty((3, 6))
    table(x, out)
    expected = [sc.gammaln(x), sc.digamma(x), sc.polygamma(1, x), sc.log_ndtr(-x)]
    np.testing.assert_allclose(out[:, :4].T, expected, rtol=1e-12)
