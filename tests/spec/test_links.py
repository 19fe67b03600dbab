"""Link functions: there and back, their derivatives, and their tails."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.special as sc

from partialpool.spec import links

GRID = np.linspace(-5.0, 3.0, 41)


@pytest.mark.parametrize("link", links.LINKS)
def test_there_and_back(link):
    eta = np.abs(GRID) + 0.1 if link in ("inverse", "identity") else np.minimum(GRID, 1.0)
    np.testing.assert_allclose(links.link_function(link, links.inverse_link(link, eta)), eta, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("link", links.LINKS)
def test_no_warning_far_out(link):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        links.inverse_link(link, [-1e3, -800.0, 0.0, 800.0, 1e3])
        links.link_function(link, [0.0, 0.5, 1.0])


def derivatives_agree(function, index, grid):
    h = 1e-4
    for eta in grid:
        here = function(eta)
        for k in (index, index + 1):
            near = (function(eta + h)[k] - function(eta - h)[k]) / (2 * h)
            far = (function(eta + 2 * h)[k] - function(eta - 2 * h)[k]) / (4 * h)
            assert here[k + 1] == pytest.approx((4 * near - far) / 3, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog"])
def test_log_probabilities(link):
    function = links.log_probabilities(link)
    assert function is links.log_probabilities(link)
    for eta in GRID:
        p = links.inverse_link(link, eta)
        assert function(eta)[0] == pytest.approx(np.log(p), rel=1e-10)
        assert function(eta)[3] == pytest.approx(np.log1p(-p), rel=1e-7)
    derivatives_agree(function, 0, GRID)
    derivatives_agree(function, 3, GRID)
    for eta in (-800.0, -40.0, 40.0, 800.0):
        values = function(eta)
        assert all(math.isfinite(v) and isinstance(v, float) for v in values)
        assert max(values[0], values[3]) <= 0.0


@pytest.mark.parametrize("link", ["log", "identity", "inverse"])
def test_log_means(link):
    function = links.log_mean(link)
    grid = np.exp(GRID) if link != "log" else GRID
    for eta in grid:
        assert function(eta)[0] == pytest.approx(np.log(links.inverse_link(link, eta)), abs=1e-12)
    derivatives_agree(function, 0, grid[20:])
    if link != "log":
        assert function(-1.0) == (-math.inf, 0.0, 0.0)
        assert function(0.0) == (-math.inf, 0.0, 0.0)


def test_cloglog_at_both_ends():
    value, first, second = links.cloglog_success(-800.0)
    assert (value, first, second) == (-800.0, 1.0, 0.0)
    value, first, second = links.cloglog_success(3.0)
    m = math.exp(3.0)
    assert value == pytest.approx(math.log1p(-math.exp(-m)), rel=1e-14)
    assert first == pytest.approx(m / math.expm1(m), rel=1e-13)
    assert second == pytest.approx(first * (1 - m / -math.expm1(-m)), rel=1e-12)
    assert links.cloglog_success(800.0) == (0.0, 0.0, 0.0)
    # On either side of the changes of formula
    for edge in (-20.0, math.log(0.02), math.log(0.7)):
        below, above = links.cloglog_success(edge - 1e-9), links.cloglog_success(edge + 1e-9)
        assert below == pytest.approx(above, rel=1e-7, abs=1e-12)


def test_probit_far_out():
    assert links.probit_log_probabilities(-40.0)[0] == pytest.approx(sc.log_ndtr(-40.0), rel=1e-13)
    assert links.probit_log_probabilities(40.0)[3] == pytest.approx(sc.log_ndtr(-40.0), rel=1e-13)
