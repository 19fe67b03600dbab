import numpy as np
import pytest
from scipy import special, stats

from partialpool.errors import InferenceError
from partialpool.inference.importance import (
    effective_sample_size,
    logsumexp,
    normalise,
    pareto_smooth,
    systematic_resample,
    weighted_moments,
    weighted_quantile,
)


def _weights(kind, size, seed):
    rng = np.random.default_rng(seed)
    if kind == "good":  # wide proposal, bounded weights
        x = rng.standard_t(4, size)
        return stats.norm.logpdf(x) - stats.t.logpdf(x, 4)
    if kind == "fair":
        return 1e4 + rng.normal(0, 1.0, size)
    if kind == "narrow":  # proposal narrower than the target: infinite variance
        x = rng.normal(0, 0.6, size)
        return stats.norm.logpdf(x) - stats.norm.logpdf(x, 0, 0.6)
    if kind == "terrible":
        return 30 * rng.standard_exponential(size)
    weights = rng.normal(0, 2, size)
    weights[rng.random(size) < 0.1] = -np.inf
    return weights


@pytest.mark.parametrize("kind", ["good", "fair", "narrow", "terrible", "some zero"])
@pytest.mark.parametrize("size", [25, 100, 225, 226, 1000, 4096, 10_000])
def test_pareto_smooth_equals_arviz(kind, size):
    arviz = pytest.importorskip("arviz_stats.base").array_stats
    logs = _weights(kind, size, seed=size)
    given = logs.copy()
    smoothed, k = pareto_smooth(logs)
    with np.errstate(all="ignore"):
        theirs, their_k = arviz.psislw(-logs)
    if np.isfinite(their_k):
        np.testing.assert_allclose(smoothed, theirs, rtol=1e-10, atol=1e-10)
        assert k == pytest.approx(float(their_k), rel=1e-10, abs=1e-10)
    elif size == 25:  # a tail of 5 weights: arviz-stats 0.8 fits it, as we do; 1.x gives it up
        assert k < np.inf
    else:
        assert k == np.inf
    assert np.exp(smoothed).sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_array_equal(logs, given)


def test_pareto_k_tells_good_from_bad():
    assert pareto_smooth(_weights("good", 4000, 1))[1] < 0.3
    assert pareto_smooth(_weights("narrow", 4000, 1))[1] > 0.5
    assert pareto_smooth(_weights("terrible", 4000, 1))[1] > 1
    # Pareto weights with a known tail: P(w > x) = x^(-1/k)
    for k in (0.3, 0.7):
        logs = k * np.random.default_rng(8).standard_exponential(100_000)
        assert pareto_smooth(logs)[1] == pytest.approx(k, abs=0.12)


def test_pareto_smooth_of_degenerate_weights(recwarn):
    smoothed, k = pareto_smooth(np.full(1000, -3.0))
    np.testing.assert_allclose(smoothed, -np.log(1000))
    assert k == -np.inf
    smoothed, k = pareto_smooth(np.zeros(10))  # too few for a tail
    np.testing.assert_allclose(smoothed, -np.log(10))
    assert k == np.inf
    one = np.full(1000, -np.inf)
    one[17] = 2.0
    smoothed, k = pareto_smooth(one)
    assert smoothed[17] == 0
    assert k == np.inf
    underflow = np.linspace(-1e5, 0, 1000)
    smoothed, k = pareto_smooth(underflow)
    assert k == np.inf
    assert np.isfinite(smoothed).all()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("logs", "words"),
    [([0.0, np.nan], "include nan"), ([0.0, np.inf], "include inf"), ([-np.inf] * 3, "all -inf"), ([], "at least one")],
)
def test_impossible_log_weights(logs, words):
    for function in (pareto_smooth, normalise, effective_sample_size):
        with pytest.raises(InferenceError, match=words):
            function(logs)


def test_logsumexp_equals_scipy():
    x = np.random.default_rng(2).normal(0, 400, (5, 7))
    x[1] = -np.inf
    for axis in (None, 0, 1):
        np.testing.assert_allclose(logsumexp(x, axis), special.logsumexp(x, axis=axis), rtol=1e-14)
    assert logsumexp([]) == -np.inf
    assert logsumexp([np.inf, 1.0]) == np.inf


def test_effective_sample_size():
    rng = np.random.default_rng(3)
    logs, values = rng.normal(0, 1, 400), rng.normal(2, 3, (400, 4))
    w = np.exp(logs - special.logsumexp(logs))
    assert effective_sample_size(logs + 900) == pytest.approx(1 / np.sum(w**2))
    ours = effective_sample_size(logs, values)
    assert ours.shape == (4,)
    for column in range(4):
        f = values[:, column]
        centred = f - np.sum(w * f)
        assert ours[column] == pytest.approx(np.sum(w * centred**2) / np.sum(w**2 * centred**2))
        assert effective_sample_size(logs, f) == pytest.approx(ours[column])
    assert effective_sample_size(logs, np.full(400, 0.1)) == pytest.approx(1 / np.sum(w**2))
    np.testing.assert_allclose(effective_sample_size(np.zeros(400), values), 400)


def test_effective_sample_size_predicts_the_error():
    """Variance of the estimate of E x over repeated samples is Var(x)/ESS."""
    rng = np.random.default_rng(4)
    x = rng.standard_t(4, (3000, 500))
    logs = stats.norm.logpdf(x) - stats.t.logpdf(x, 4)
    estimates = [np.sum(normalise(row) * nodes) for row, nodes in zip(logs, x, strict=True)]
    sizes = [float(effective_sample_size(row, nodes)) for row, nodes in zip(logs, x, strict=True)]
    assert np.var(estimates) == pytest.approx(np.mean(1 / np.array(sizes)), rel=0.1)


def test_weighted_moments():
    rng = np.random.default_rng(5)
    values, weights = rng.normal(size=(50, 3)), rng.random(50)
    mean, sd = weighted_moments(values, weights)
    np.testing.assert_allclose(mean, np.average(values, axis=0, weights=weights))
    np.testing.assert_allclose(sd**2, np.average((values - mean) ** 2, axis=0, weights=weights))
    mean, sd = weighted_moments(values[:, 0], weights)
    assert mean.shape == sd.shape == ()


def test_weighted_quantile():
    rng = np.random.default_rng(6)
    values, q = rng.normal(size=(41, 3)), np.array([0.0, 0.05, 0.5, 0.95, 1.0])
    equal = np.full(41, 2.0)
    hazen = np.quantile(values, q, axis=0, method="hazen")
    np.testing.assert_allclose(weighted_quantile(values, equal, q), hazen, rtol=1e-12)
    np.testing.assert_allclose(weighted_quantile(values, equal, 0.5), hazen[2], rtol=1e-12)
    assert weighted_quantile(values[:, 0], equal, 0.5).shape == ()
    assert weighted_quantile(values, equal, np.full((2, 2), 0.5)).shape == (2, 2, 3)
    # A node without weight does not matter, and the order of the nodes does not.
    weights = rng.random(41)
    extended = weighted_quantile(np.r_[values[:, 0], 99.0, -99.0][::-1], np.r_[weights, 0.0, 0.0][::-1], q)
    np.testing.assert_allclose(extended, weighted_quantile(values[:, 0], weights, q), rtol=1e-12)


def test_weighted_quantile_converges_to_the_target():
    x = np.random.default_rng(7).standard_t(4, 200_000)
    weights = normalise(stats.norm.logpdf(x) - stats.t.logpdf(x, 4))
    q = np.array([0.05, 0.5, 0.95])
    np.testing.assert_allclose(weighted_quantile(x, weights, q), stats.norm.ppf(q), atol=0.02)


def test_systematic_resample():
    weights = np.random.default_rng(8).random(100) ** 4
    weights[[0, 50, 99]] = 0
    indices = systematic_resample(weights, 1000, np.random.default_rng(9))
    np.testing.assert_array_equal(indices, systematic_resample(weights, 1000, np.random.default_rng(9)))
    counts = np.bincount(indices, minlength=100)
    expected = 1000 * weights / weights.sum()
    assert np.all(np.abs(counts - expected) < 1 + 1e-9)
    assert counts[[0, 50, 99]].sum() == 0
    assert abs(np.corrcoef(np.arange(1000), indices)[0, 1]) < 0.15  # in no order
    means = [systematic_resample(weights, 7, np.random.default_rng(seed)).mean() for seed in range(4000)]
    assert np.mean(means) == pytest.approx(np.sum(weights * np.arange(100)) / weights.sum(), abs=0.3)
    assert systematic_resample([0.0, 1.0, 0.0], 5, np.random.default_rng(0)).tolist() == [1] * 5


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0], []])
def test_impossible_weights(weights):
    with pytest.raises(InferenceError, match="non-negative finite"):
        systematic_resample(weights, 3, np.random.default_rng(0))
