"""Mixtures of normals: quantiles against a root finder and against a weighted sample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from partialpool.algebra.mixture import mixture_summary


def expected(weights, means, sds, p):
    return brentq(
        lambda x: weights @ norm.cdf(x, means, sds) - p, (means - 40 * sds).min(), (means + 40 * sds).max(), xtol=1e-13
    )


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0])
def test_quantiles(spread):
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.ones(40))
    means = 5 + spread * rng.normal(size=(40, 7))
    sds = np.exp(rng.normal(0, 0.7, size=(40, 7)))
    probabilities = [0.001, 0.05, 0.5, 0.95, 0.9999]
    mean, sd, quantiles = mixture_summary(weights, means, sds, probabilities)
    np.testing.assert_allclose(mean, weights @ means)
    np.testing.assert_allclose(sd, np.sqrt(weights @ (sds**2 + (means - mean) ** 2)))
    for i, p in enumerate(probabilities):
        truth = [expected(weights, means[:, j], sds[:, j], p) for j in range(7)]
        np.testing.assert_allclose(quantiles[i] / sd, truth / sd, atol=2e-5)


def test_points_and_constants():
    weights = np.array([1.0, 1.0, 2.0])
    means = np.array([[0.0, 3.0], [1.0, 3.0], [2.0, 3.0]])
    _, sd, quantiles = mixture_summary(weights, means, np.zeros((3, 2)), [0.1, 0.3, 0.9])
    np.testing.assert_allclose(quantiles[:, 0], [0, 1, 2], atol=1e-5)
    np.testing.assert_allclose(quantiles[:, 1], 3)
    assert sd[1] == 0


def test_threads_change_nothing():
    rng = np.random.default_rng(2)
    means, sds = rng.normal(size=(20, 1000)), np.exp(rng.normal(size=(20, 1000)))
    one = mixture_summary(np.ones(20), means, sds, [0.05, 0.95], threads=1)
    three = mixture_summary(np.ones(20), means, sds, [0.05, 0.95], threads=3)
    for a, b in zip(one, three, strict=True):
        assert np.array_equal(a, b)
