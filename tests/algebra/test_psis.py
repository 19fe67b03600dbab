"""Pareto-smoothed importance sampling in bulk, against the one-at-a-time functions it must agree with."""

from __future__ import annotations

import numpy as np
import pytest

from partialpool.algebra.psis import in_sample, leave_out, tail_length
from partialpool.inference.importance import logsumexp, pareto_smooth


def one_by_one(densities, base):
    """Value, error and k of each unit by `pareto_smooth`."""
    out = []
    for own in densities:
        smoothed, k = pareto_smooth(base - own)
        value = float(logsumexp(smoothed + own))
        weights = np.exp(smoothed)
        out.append((value, float(np.sqrt(np.sum((weights * np.expm1(own - value)) ** 2))), k))
    return np.array(out).T


@pytest.mark.parametrize("nodes", [30, 225, 226, 1000, 5000])
@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 8.0])
def test_it_is_pareto_smooth_to_rounding(nodes, scale):
    rng = np.random.default_rng(nodes)
    densities = scale * rng.standard_t(5, size=(12, nodes)) - 40.0
    base = 0.4 * rng.normal(size=nodes)
    base -= logsumexp(base)
    found = leave_out(densities, base, 1.0, 0.7, 0.03)
    value, error, k = one_by_one(densities, base)
    np.testing.assert_allclose(found.value, value, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(found.error, error, rtol=1e-7)
    np.testing.assert_allclose(found.k, k, atol=1e-9)


def test_ties_and_equal_weights_and_few_nodes():
    base = np.full(400, -np.log(400.0))
    tied = np.repeat([0.0, -1.0, -2.0, -3.0], 100)[None]
    found = leave_out(np.concatenate([tied, np.full((1, 400), -7.0)]), base, 1.0, 0.7, 0.03)
    value, _, k = one_by_one(tied, base)
    assert found.value[0] == pytest.approx(value[0], abs=1e-12)
    assert found.k[0] == k[0] or (np.isinf(found.k[0]) and np.isinf(k[0]))
    assert found.value[1] == pytest.approx(-7.0, abs=1e-12)
    assert found.error[1] < 1e-12 and found.k[1] == -np.inf
    few = leave_out(np.log([[0.1, 0.2, 0.3]]), np.log(np.full(3, 1 / 3)), 1.0, 0.7, 0.03)
    assert few.k[0] == np.inf  # no tail can be fitted
    assert np.exp(few.value[0]) == pytest.approx(3 / (1 / 0.1 + 1 / 0.2 + 1 / 0.3))
    alone = leave_out(np.array([[-3.0]]), np.zeros(1), 1.0, 0.7, 0.03)
    assert (alone.value[0], alone.error[0], alone.k[0]) == (-3.0, 0.0, -np.inf)  # the whole posterior is one node


def test_nodes_without_weight_and_densities_of_zero():
    rng = np.random.default_rng(2)
    densities = rng.normal(size=(2, 500))
    base = np.full(500, -np.log(400.0))
    base[400:] = -np.inf
    some = leave_out(densities, base, 1.0, 0.7, 0.03)
    np.testing.assert_allclose(some.value, one_by_one(densities, base)[0], rtol=1e-12)
    densities[1, 7] = -np.inf
    none = leave_out(densities, base, 1.0, 0.7, 0.03)
    assert none.value[0] == some.value[0]
    assert (none.value[1], none.k[1], none.error[1]) == (-np.inf, np.inf, np.inf)


def test_influence_adds_up_and_leaves_out_the_poor():
    rng = np.random.default_rng(3)
    densities = 0.1 * rng.normal(size=(40, 800))
    densities[5] *= 40
    base = np.full(800, -np.log(800.0))
    found = leave_out(densities, base, 0.5, 0.7, 0.03)
    good = (found.k <= 0.7) & (found.error <= 0.03)
    assert not good[5] and good.sum() > 30
    by_hand = np.zeros(800)
    for own in densities[good]:
        smoothed, _ = pareto_smooth(base - own)
        by_hand += np.exp(smoothed) * np.expm1(own - float(logsumexp(smoothed + own)))
    np.testing.assert_allclose(found.influence, by_hand, atol=1e-12)
    full = leave_out(densities, base, 1.0, 0.7, 0.03)
    np.testing.assert_allclose(found.error, full.error * np.sqrt(2), rtol=1e-12)


def test_no_result_depends_on_threads():
    densities = np.random.default_rng(4).normal(size=(50, 300))
    base = np.full(300, -np.log(300.0))
    one, two = (leave_out(densities, base, 1.0, 0.7, 1.0, threads=threads) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(in_sample(densities, base), in_sample(densities, base, threads=2))
    np.testing.assert_allclose(in_sample(densities, base), [float(logsumexp(row + base)) for row in densities])


def test_the_error_is_the_spread_over_repeats():
    """Monte Carlo: nodes drawn anew, the log density's spread against the errors reported."""
    rng = np.random.default_rng(5)
    values, errors = [], []
    for _ in range(200):
        found = leave_out(-0.15 * (rng.normal(size=(1, 1000)) - 1.0) ** 2, np.full(1000, -np.log(1e3)), 1.0, 0.7, 1.0)
        values.append(found.value[0])
        errors.append(found.error[0])
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.35)
    assert tail_length(1000) == 94
