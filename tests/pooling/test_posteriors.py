"""Closed-form posteriors mixed over nodes: moments, quantiles, distribution functions and draws against scipy."""

import numpy as np
import pytest
from scipy import optimize, stats

from partialpool.pooling.posteriors import BetaPosterior, DiscretePosterior, GammaPosterior, NormalPosterior

W = np.array([0.2, 0.5, 0.3])
Y, V = np.array([2.8, -0.7, 1.4, 0.2]), np.array([1.0, 0.2, 2.9, 0.6])
EVENTS, TRIALS = np.array([1.0, 3, 5, 0]), np.array([10.0, 10, 5, 0])
COUNTS, EXPOSURE = np.array([4.0, 0, 11, 2]), np.array([3.0, 1.5, 4.0, 0.5])


def normal(X=None, covariance=0.3):
    tau2 = np.array([0.0, 0.5, 9.0])
    p = 1 if X is None else X.shape[1]
    means = np.arange(3 * p).reshape(3, p) / 3.0
    roots = np.eye(p) * covariance**0.5
    cov = np.stack([(k + 1) * roots @ roots.T for k in range(3)])
    posterior = NormalPosterior(Y, V, X, tau2, means, cov, W)
    rows = np.ones((4, 1)) if X is None else X
    share = V / (V + tau2[:, None])
    mean = Y + share * (means @ rows.T - Y)
    variance = share * tau2[:, None] + share**2 * np.einsum("jp,kpq,jq->kj", rows, cov, rows)
    return posterior, [[stats.norm(mean[k, j], np.sqrt(variance[k, j])) for k in range(3)] for j in range(4)], share


def beta():
    eta, log_size = np.array([[0.3], [-1.0], [0.0]]), np.array([0.5, 3.0, 9.0])
    size, p = np.exp(log_size), 1 / (1 + np.exp(-eta[:, 0]))
    laws = [[stats.beta(s * q + y, s * (1 - q) + n - y) for s, q in zip(size, p, strict=True)]
            for y, n in zip(EVENTS, TRIALS, strict=True)]  # fmt: skip
    return BetaPosterior(EVENTS, TRIALS, eta, log_size, W), laws, size[:, None] / (size[:, None] + TRIALS)


def gamma():
    log_mean, log_shape = np.array([[0.3], [-1.0], [1.0]]), np.array([-0.5, 3.0, 9.0])
    shape = np.exp(log_shape)
    rate = shape / np.exp(log_mean[:, 0])
    laws = [[stats.gamma(a + y, scale=1 / (b + e)) for a, b in zip(shape, rate, strict=True)]
            for y, e in zip(COUNTS, EXPOSURE, strict=True)]  # fmt: skip
    return GammaPosterior(COUNTS, EXPOSURE, log_mean, log_shape, W), laws, rate[:, None] / (rate[:, None] + EXPOSURE)


X2 = np.column_stack([np.ones(4), [0.5, -1.0, 2.0, 0.0]])
CASES = {"normal": normal, "regression": lambda: normal(X2), "beta": beta, "gamma": gamma}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]()


def mixed(laws, x):
    return sum(w * law.cdf(x) for w, law in zip(W, laws, strict=True))


def test_moments(case):
    posterior, laws, share = case
    mean, sd = posterior.moments()
    for j, own in enumerate(laws):
        first = sum(w * law.mean() for w, law in zip(W, own, strict=True))
        second = sum(w * (law.var() + (law.mean() - first) ** 2) for w, law in zip(W, own, strict=True))
        assert mean[j] == pytest.approx(first, rel=1e-10)
        assert sd[j] == pytest.approx(np.sqrt(second), rel=1e-10)
    np.testing.assert_allclose(posterior.shrinkage(), W @ share, rtol=1e-10)


def test_quantiles_and_distribution_functions(case):
    posterior, laws, _ = case
    levels = np.array([0.001, 0.05, 0.5, 0.95, 0.999])
    found = posterior.quantiles(levels)
    sd = posterior.moments()[1]
    for j, own in enumerate(laws):
        for level, value in zip(levels, found[:, j], strict=True):
            low = min(law.ppf(level) for law in own) - 1e-9
            high = max(law.ppf(level) for law in own) + 1e-9
            exact = optimize.brentq(lambda x, own=own, level=level: mixed(own, x) - level, low, high, xtol=1e-13)
            assert value == pytest.approx(exact, abs=2e-6 * sd[j]), (j, level)
        x = found[2, j] + 0.3 * sd[j]
        assert posterior.cdf(x, np.array([j]))[0] == pytest.approx(mixed(own, x), abs=1e-9)
    some = np.array([2, 0])
    np.testing.assert_array_equal(posterior.quantiles(levels, some), found[:, some])
    np.testing.assert_array_equal(
        posterior.quantiles(np.array([0.05, 0.95]), some), posterior.quantiles(np.array([0.05, 0.95]))[:, some]
    )
    x = np.array([0.1, 0.2])
    np.testing.assert_allclose(posterior.cdf(x, some), [mixed(laws[2], 0.1), mixed(laws[0], 0.2)], atol=1e-9)
    np.testing.assert_array_equal(posterior.atom(0.0), 0.0)


def test_draws(case):
    posterior, laws, _ = case
    nodes = np.repeat(np.arange(3), [4000, 10_000, 6000])
    draws = posterior.draws(nodes, np.random.default_rng(1))
    assert draws.shape == (20_000, 4)
    for j, own in enumerate(laws):
        for k, law in enumerate(own):
            # Kolmogorov-Smirnov: at 12 tests of level 1e-5 a false alarm is rare, and the seed is fixed
            assert stats.kstest(draws[nodes == k, j], law.cdf).pvalue > 1e-5, (j, k)
    some = posterior.draws(nodes[:50], np.random.default_rng(1), np.array([3, 1]))
    assert some.shape == (50, 2)


def test_units_of_a_draw_share_its_coefficients():
    posterior, _, share = normal(covariance=400.0)
    draws = posterior.draws(np.full(20_000, 0), np.random.default_rng(2))
    # at tau = 0 every unit is at the population's mean
    assert np.ptp(draws, axis=1).max() < 1e-9
    draws = posterior.draws(np.full(20_000, 1), np.random.default_rng(2))
    cov = np.cov(draws.T)
    expected = np.outer(share[1], share[1]) * 800.0
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(cov[off], expected[off], rtol=0.05)


def test_a_posterior_without_spread_is_a_step():
    posterior = NormalPosterior(Y, V, None, np.zeros(1), np.array([[0.7]]), np.zeros((1, 1, 1)), np.ones(1))
    np.testing.assert_array_equal(posterior.moments()[1], 0.0)
    np.testing.assert_array_equal(posterior.cdf(0.7 - 1e-9), 0.0)
    np.testing.assert_array_equal(posterior.cdf(0.7), 1.0)
    np.testing.assert_array_equal(posterior.quantiles(np.array([0.05, 0.3, 0.95])), 0.7)
    np.testing.assert_array_equal(posterior.draws(np.zeros(5, int), np.random.default_rng(0)), 0.7)


def test_the_quick_quantiles_of_many_units_are_measured():
    rng = np.random.default_rng(3)
    n = 30_000
    y, v = rng.normal(size=n) * 2, rng.uniform(0.5, 1.5, n)
    tau2 = np.linspace(3.9, 4.1, 9)
    w = np.full(9, 1 / 9)
    posterior = NormalPosterior(y, v, None, tau2, np.zeros((9, 1)), np.full((9, 1, 1), 1e-4), w)
    some = np.arange(0, n, 97)
    table, exact = posterior.quantiles(np.array([0.05, 0.95]))[:, some], posterior._exact(np.array([0.05, 0.95]), some)
    error = np.abs(table - exact) / posterior.moments()[1][some]
    assert error.max() <= 3 * posterior.quantile_error + 1e-12
    assert posterior.quantile_error <= 1e-4


def test_finitely_many_places():
    places, masses = np.array([-1.0, 0.0, 2.0]), np.array([0.2, 0.5, 0.3])

    def logs(piece):
        return stats.norm.logpdf(Y[piece], places[:, None], np.sqrt(V[piece]))

    posterior = DiscretePosterior(4, logs, lambda theta: V, places, masses)
    shares = np.exp(logs(slice(None))) * masses[:, None]
    shares /= shares.sum(axis=0)
    mean = places @ shares
    np.testing.assert_allclose(posterior.moments()[0], mean, rtol=1e-12)
    np.testing.assert_allclose(posterior.moments()[1], np.sqrt(places**2 @ shares - mean**2), rtol=1e-9)
    np.testing.assert_allclose(posterior.atom(0.0), shares[1], rtol=1e-12)
    np.testing.assert_allclose(
        posterior.cdf(np.array([0.0, -1.5, 2.0, -0.5])), [shares[:2, 0].sum(), 0, 1, shares[0, 3]], rtol=1e-9
    )
    np.testing.assert_allclose(posterior.cdf(0.0), shares[:2].sum(axis=0), rtol=1e-12)
    for level in (0.05, 0.5, 0.95):
        expected = [places[np.flatnonzero(np.cumsum(column) >= level)[0]] for column in shares.T]
        np.testing.assert_array_equal(posterior.quantiles(np.array([level]))[0], expected)
    draws = posterior.draws(np.zeros(20_000, int), np.random.default_rng(1))
    for g, place in enumerate(places):
        error = np.sqrt(shares[g] * (1 - shares[g]) / 20_000)
        assert (np.abs((draws == place).mean(axis=0) - shares[g]) <= 4.5 * error + 1e-12).all()
