"""Incomplete gamma and beta functions and mixtures: against scipy, integrals in 50 digits and a root finder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from partialpool.algebra import gamma_beta, incomplete
from partialpool.algebra.incomplete import (
    beta_cdfs,
    beta_mixture,
    beta_mixture_cdfs,
    beta_quantiles,
    gamma_cdfs,
    gamma_mixture,
    gamma_mixture_cdfs,
    gamma_quantiles,
)
from partialpool.errors import ModelError

PARAMETERS = np.array([1e-3, 0.03, 0.5, 1.0, 1.7, 2.0, 3.7, 9.99, 40.0, 250.0, 999.0, 1001.0, 3e3, 1e5])
PROBABILITIES = np.array([1e-20, 1e-8, 1e-4, 0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.99, 0.9999])
LEAST = 1e-300

# Tails by quadrature in 50 digits (mpmath): scipy's gammainc loses all digits of the far lower tail of a large shape.
GAMMA_TAILS = [
    (5.0, 2.5, False, 0.10882198108584876),
    (999.0, 600.0, False, 3.8791867269200605e-50),
    (999.0, 1100.0, True, 0.00095395296828763376),
    (1001.0, 1200.0, True, 1.5531469821142222e-9),
    (1001.0, 600.0, False, 1.3909840565854311e-50),
    (100000.0, 99000.0, False, 0.00075741992117476797),
    (100000.0, 101500.0, True, 1.1736845137221691e-6),
    (1e9, 999800000.0, False, 1.266437917018217e-10),
    (1e9, 1000100000.0, True, 0.00078295616195832682),
    (1e12, 999991000000.0, False, 1.1283143100970246e-19),
    (1e12, 1000003000000.0, True, 0.0013499098499169015),
]
BETA_TAILS = [
    (3.0, 300.0, 0.125, True, 2.9783148048022405e-15),
    (999.0, 10.0, 0.75, False, 1.7192522814397665e-109),
    (40.0, 1e9, 2.0**-24, True, 0.0029536033728486728),
    (1001.0, 1001.0, 0.375, False, 3.1062713181382867e-30),
    (1e5, 1e5, 0.4921875, False, 1.3928685995210774e-12),
    (1e9, 1e5, 0.999899, False, 0.00072442568798463848),
    (1e9, 1e9, 0.5 + 2.0**-13, True, 4.7121186043466047e-28),
]


def pairs():
    a, b = np.meshgrid(PARAMETERS, PARAMETERS)
    return a.ravel(), b.ravel()


# --------------------------------------------------------------------------------------------------------------------
# Tails
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "x", "upper", "expected"), GAMMA_TAILS)
def test_gamma_tails_against_fifty_digits(a, x, upper, expected):
    assert gamma_cdfs(x, a, 1.0, upper=upper)[0] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("a", "b", "x", "upper", "expected"), BETA_TAILS)
def test_beta_tails_against_fifty_digits(a, b, x, upper, expected):
    assert beta_cdfs(x, a, b, upper=upper)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("a", PARAMETERS[PARAMETERS < 1e4])
def test_gamma_tails_against_scipy(a):
    x = np.concatenate([sc.gammaincinv(a, PROBABILITIES), [0.3 * a, a, a + 1, 3 * a, 1.0, 30.0]])
    x = x[x > LEAST]
    for upper, function in ((False, sc.gammainc), (True, sc.gammaincc)):
        expected = function(a, x)
        seen = expected > LEAST
        got = gamma_cdfs(x, a, 1.0, upper=upper)
        np.testing.assert_allclose(got[seen], expected[seen], rtol=3e-12, atol=2e-14 if upper and a < 0.1 else 0)


def test_beta_tails_against_scipy():
    a, b = pairs()
    for p in PROBABILITIES[1:]:
        x = sc.betaincinv(a, b, p)
        for upper, function in ((False, sc.betainc), (True, sc.betaincc)):
            expected = function(a, b, x)
            seen = (x > LEAST) & (x < 1.0) & (expected > LEAST)
            got = beta_cdfs(x, a, b, upper=upper)
            np.testing.assert_allclose(got[seen], expected[seen], rtol=2e-10)


def test_edges_of_the_support():
    np.testing.assert_array_equal(gamma_cdfs([-1.0, 0.0, np.inf], 2.0, 1.0), [0, 0, 1])
    np.testing.assert_array_equal(gamma_cdfs([-1.0, 0.0, np.inf, 1e300], 2.0, 1.0, upper=True), [1, 1, 0, 0])
    np.testing.assert_array_equal(beta_cdfs([-1.0, 0.0, 1.0, 2.0], 2.0, 3.0), [0, 0, 1, 1])
    np.testing.assert_array_equal(beta_cdfs([-1.0, 0.0, 1.0, 2.0], 2.0, 3.0, upper=True), [1, 1, 0, 0])


@pytest.mark.parametrize("a", [0.01, 0.7, 4.0, 12.0, 500.0, 1e4])
def test_densities(a):
    for x in (0.2 * a, a, 1.001 * a, 3 * a):
        constant = gamma_beta.log_constant(gamma_beta.GAMMA, a, 1.0)
        expected = a * math.log(x) - x - sc.gammaln(a)
        assert gamma_beta.gamma_density(a, x, constant) == pytest.approx(math.exp(expected), rel=1e-10)
    for x in (0.01, 0.4, 0.97):
        constant = gamma_beta.log_constant(gamma_beta.BETA, a, 7.0)
        expected = a * math.log(x) + 7.0 * math.log1p(-x) - sc.betaln(a, 7.0)
        assert gamma_beta.beta_density(a, 7.0, x, 1.0 - x, constant) == pytest.approx(math.exp(expected), rel=1e-10)


# --------------------------------------------------------------------------------------------------------------------
# Quantiles
# --------------------------------------------------------------------------------------------------------------------


def test_gamma_quantiles_against_scipy():
    a = PARAMETERS[PARAMETERS < 1e5]
    got = gamma_quantiles(a, 2.0, PROBABILITIES)
    expected = sc.gammaincinv(a, PROBABILITIES[:, None]) / 2.0
    seen = expected > LEAST
    np.testing.assert_allclose(got[seen], expected[seen], rtol=1e-9)
    np.testing.assert_array_less(got[~seen], 1e-299)


def test_beta_quantiles_against_scipy():
    a, b = pairs()
    got = beta_quantiles(a, b, PROBABILITIES)
    expected = sc.betaincinv(a, b, PROBABILITIES[:, None])
    seen = expected > LEAST
    np.testing.assert_allclose(got[seen], expected[seen], rtol=1e-9)
    np.testing.assert_array_less(got[~seen], 1e-299)


def test_quantiles_and_tails_undo_each_other():
    """The tail moves by the quantile's own rounding times the square root of the parameter, and no more."""
    parameters = np.array([0.5, 3.0, 1e2, 1e4, 1e6, 1e9, 1e12])
    for p in (1e-100, 1e-9, 0.05, 0.4):
        slack = 1e-9 + 1e-15 * np.sqrt(parameters) * (5.0 + math.sqrt(-2.0 * math.log(p)))
        lower = gamma_cdfs(gamma_quantiles(parameters, 3.0, p)[0], parameters, 3.0) / p - 1.0
        upper = gamma_cdfs(gamma_quantiles(parameters, 3.0, 1 - 1e-9)[0], parameters, 3.0, upper=True) / (
            1 - (1 - 1e-9)
        )
        assert (np.abs(lower) < 30 * slack).all()
        assert (np.abs(upper - 1.0) < 30 * (slack + 1e-8)).all()
        for b in parameters:
            quantiles = beta_quantiles(parameters, b, p)[0]
            near = beta_cdfs(quantiles, parameters, b) / p - 1.0
            inner = quantiles < 0.9  # nearer to 1 the quantile itself has no digits for its distance from 1
            assert (np.abs(near)[inner] < 30 * slack[inner]).all()


def test_extremes():
    low, middle, high = beta_quantiles(0.5, 1e6, [1e-12, 0.5, 1 - 1e-12])[:, 0]
    np.testing.assert_allclose([low, middle, high], sc.betaincinv(0.5, 1e6, [1e-12, 0.5, 1 - 1e-12]), rtol=1e-9)
    # tails that are powers: p = (x / 2)^(1/1000) nearly, below the smallest number for small p
    expected = [0, sc.betaincinv(1e-3, 1e-3, 0.3), 1]
    np.testing.assert_allclose(beta_quantiles(1e-3, 1e-3, [0.1, 0.3, 0.7])[:, 0], expected, rtol=1e-9)
    assert gamma_quantiles(1e-3, 1.0, [0.05])[0, 0] == 0
    assert gamma_quantiles(1e-3, 1.0, [1 - 1e-9])[0, 0] == pytest.approx(
        sc.gammainccinv(1e-3, 1 - (1 - 1e-9)), rel=1e-8
    )
    every = beta_quantiles(*(np.array(v) for v in ([1e-3, 1e12, 1e-3, 1e12], [1e-3, 1e12, 1e12, 1e-3])), [1e-300, 0.5])
    assert np.isfinite(every).all()
    assert every[1, 1] == pytest.approx(0.5, rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-3, 9),
    st.floats(-3, 9),
    st.lists(st.floats(1e-12, 1 - 1e-12), min_size=2, max_size=12, unique=True),
)
def test_quantiles_grow_with_the_probability(log_a, log_b, probabilities):
    p = np.sort(probabilities)
    for values in (gamma_quantiles(10**log_a, 10**log_b, p), beta_quantiles(10**log_a, 10**log_b, p)):
        assert np.isfinite(values).all()
        assert (np.diff(values[:, 0]) >= -2e-9 * values[1:, 0]).all()
    x = np.sort(beta_quantiles(10**log_a, 10**log_b, p)[:, 0])
    assert (np.diff(beta_cdfs(x, 10**log_a, 10**log_b)) >= -1e-9).all()


# --------------------------------------------------------------------------------------------------------------------
# Mixtures
# --------------------------------------------------------------------------------------------------------------------


def beta_truth(weights, a, b, p):
    """The quantile by a root finder on the logit scale."""

    def miss(u):
        x, y = sc.expit(u), sc.expit(-u)
        if x < 0.5:
            return weights @ sc.betainc(a, b, x) - p
        return (1 - p) - weights @ sc.betainc(b, a, y)

    return 0.0 if miss(-690) > 0 else sc.expit(brentq(miss, -690, 690, xtol=1e-13, rtol=1e-14))


def gamma_truth(weights, a, b, p):
    def miss(u):
        return weights @ sc.gammainc(a, b * math.exp(u)) - p

    return 0.0 if miss(-690) > 0 else math.exp(brentq(miss, -690, 690, xtol=1e-13, rtol=1e-14))


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("covariates", [False, True])
def test_mixtures_against_a_root_finder(spread, covariates):
    rng = np.random.default_rng(3)
    y = np.array([0.0, 0.0, 3.0, 40.0, 900.0])
    n = np.array([0.0, 1e6, 5.0, 300.0, 1000.0])
    shape = (12, 5) if covariates else (12,)
    weights = rng.dirichlet(np.ones(12))
    a, b = 0.5 * np.exp(spread * rng.normal(size=shape)), 8.0 * np.exp(spread * rng.normal(size=shape))
    probabilities = [1e-6, 0.05, 0.5, 0.95, 0.9999]
    mean, sd, quantiles, error = beta_mixture(weights, a, b, y, n, probabilities)
    counts = gamma_mixture(weights, a, b, y, n, probabilities)
    assert error == counts[3] == 0.0
    wide_a, wide_b = (np.broadcast_to(v.reshape(12, -1), (12, 5)) for v in (a, b))
    alpha, beta = wide_a + y, wide_b + n - y
    each = alpha / (alpha + beta)
    np.testing.assert_allclose(mean, weights @ each, rtol=1e-13)
    variance = weights @ (each * (1 - each) / (alpha + beta + 1) + (each - mean) ** 2)
    np.testing.assert_allclose(sd, np.sqrt(variance), rtol=1e-11)
    rate = wide_b + n
    np.testing.assert_allclose(counts[0], weights @ (alpha / rate), rtol=1e-13)
    variance = weights @ (alpha / rate**2 + (alpha / rate - counts[0]) ** 2)
    np.testing.assert_allclose(counts[1], np.sqrt(variance), rtol=1e-12)
    for i, p in enumerate(probabilities):
        for j in range(5):
            expected = beta_truth(weights, alpha[:, j], beta[:, j], p)
            assert quantiles[i, j] == pytest.approx(expected, rel=2e-9, abs=LEAST)
            expected = gamma_truth(weights, alpha[:, j], rate[:, j], p)
            assert counts[2][i, j] == pytest.approx(expected, rel=2e-9, abs=LEAST)
    # a quantile below the least number is 0, and nothing lies below that
    there = np.where(quantiles[1] > 0.0, 0.05, 0.0)
    np.testing.assert_allclose(beta_mixture_cdfs(weights, a, b, y, n, quantiles[1]), there, rtol=1e-8)
    for j, x in enumerate(quantiles[1]):
        above = beta_mixture_cdfs(weights, wide_a[:, [j]], wide_b[:, [j]], y[j], n[j], x, upper=True)[0]
        assert above == pytest.approx(1.0 - there[j], rel=1e-8)
    np.testing.assert_allclose(gamma_mixture_cdfs(weights, a, b, y, n, counts[2][3]), 0.95, rtol=1e-9)


def test_two_humps_with_a_gap():
    """Where the density between two narrow humps vanishes, Newton's method alone would be lost."""
    weights, a, b = np.array([0.3, 0.7]), np.array([2e4, 9e5]), np.array([9e5, 2e4])
    got = beta_mixture(weights, a, b, 0.0, 0.0, [0.1, 0.2999, 0.3001, 0.9])[2][:, 0]
    expected = [beta_truth(weights, a, b, p) for p in (0.1, 0.2999, 0.3001, 0.9)]
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_weights_need_no_scale_and_may_be_zero():
    one = beta_mixture([2.0, 0.0, 6.0], [1.0, 5.0, 2.0], [3.0, 5.0, 4.0], [2.0], [9.0], [0.3])
    other = beta_mixture([0.25, 0.75], [1.0, 2.0], [3.0, 4.0], [2.0], [9.0], [0.3])
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-12)


def narrow(units, nodes, spread):
    rng = np.random.default_rng(5)
    n = rng.integers(1, 400, units).astype(float)
    y = rng.binomial(n.astype(int), 0.1).astype(float)
    weights = rng.dirichlet(np.ones(nodes))
    return weights, 4 * np.exp(spread * rng.normal(size=nodes)), 36 * np.exp(spread * rng.normal(size=nodes)), y, n


def test_the_fast_path_says_its_error(monkeypatch):
    arguments = narrow(4000, 60, 0.003)
    monkeypatch.setattr(incomplete, "MANY_PAIRS", math.inf)
    exact = [f(*arguments, [0.05, 0.95]) for f in (beta_mixture, gamma_mixture)]
    monkeypatch.undo()
    quick = [f(*arguments, [0.05, 0.95]) for f in (beta_mixture, gamma_mixture)]
    for slow, fast in zip(exact, quick, strict=True):
        assert slow[3] == 0.0
        assert 0.0 < fast[3] <= incomplete.MATCH_TOLERANCE
        np.testing.assert_array_equal(slow[0], fast[0])
        worst = (np.abs(slow[2] - fast[2]) / slow[1]).max()
        assert fast[3] <= worst <= 3 * fast[3]  # 256 of 4,000 units were measured
        assert not np.array_equal(slow[2], fast[2])


def test_the_fast_path_with_parameters_of_each_unit():
    weights, a, b, y, n = narrow(4000, 60, 0.003)
    shift = np.linspace(0.5, 2.0, 4000)
    mean, sd, quantiles, error = beta_mixture(weights, a[:, None] * shift, b[:, None], y, n, [0.05, 0.95])
    assert 0.0 < error <= incomplete.MATCH_TOLERANCE
    some = np.array([0, 17, 3999])
    exact = beta_mixture(weights, a[:, None] * shift[some], b, y[some], n[some], [0.05, 0.95])
    assert exact[3] == 0.0
    np.testing.assert_allclose(mean[some], exact[0], rtol=1e-14)
    assert (np.abs(quantiles[:, some] - exact[2]) / sd[some]).max() <= 3 * error


def test_a_wide_mixture_is_inverted_exactly_however_large():
    arguments = narrow(4000, 60, 0.5)
    for mixture in (beta_mixture, gamma_mixture):
        _, _, quantiles, error = mixture(*arguments, [0.05])
        assert error == 0.0
        part = mixture(*arguments[:3], arguments[3][:50], arguments[4][:50], [0.05])
        np.testing.assert_array_equal(quantiles[:, :50], part[2])


def test_same_bits_for_any_number_of_threads():
    rng = np.random.default_rng(7)
    a, b = rng.uniform(0.1, 50, 9001), rng.uniform(0.1, 50, 9001)
    for function in (gamma_quantiles, beta_quantiles):
        np.testing.assert_array_equal(function(a, b, [0.05, 0.95], 1), function(a, b, [0.05, 0.95], 2))
    np.testing.assert_array_equal(gamma_cdfs(3.0, a, b, 1), gamma_cdfs(3.0, a, b, 2))
    np.testing.assert_array_equal(beta_cdfs(0.3, a, b, 1), beta_cdfs(0.3, a, b, 2))
    arguments = narrow(9001, 5, 0.5)
    for mixture in (gamma_mixture, beta_mixture):
        for one, two in zip(mixture(*arguments, [0.1], 1), mixture(*arguments, [0.1], 2), strict=True):
            np.testing.assert_array_equal(one, two)


def test_arguments_that_do_not_fit():
    with pytest.raises(ModelError, match="between 0 and 1"):
        gamma_quantiles([1.0], [1.0], [0.0])
    with pytest.raises(ModelError, match="positive and finite"):
        beta_quantiles([1.0, 0.0], [1.0, 1.0], [0.5])
    with pytest.raises(ModelError, match="positive and finite"):
        gamma_quantiles([1.0, np.nan], [1.0, 1.0], [0.5])
    with pytest.raises(ModelError, match="positive and finite"):
        beta_mixture([1.0], [1.0], [1.0], [3.0], [1.0], [0.5])
    with pytest.raises(ModelError, match="one row a weight"):
        gamma_mixture([1.0, 1.0], [1.0], [1.0], [3.0], [1.0], [0.5])
    with pytest.raises(ModelError, match="weights"):
        gamma_mixture([1.0, -1.0], [1.0, 1.0], [1.0, 1.0], [3.0], [1.0], [0.5])
    with pytest.raises(ModelError, match="x is one number"):
        gamma_cdfs([1.0, 2.0, 3.0], [1.0, 2.0], [1.0, 2.0])
