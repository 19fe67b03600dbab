"""Normal estimates under points and normals: mixtures in closed form against scipy."""

import numpy as np
import pytest
from scipy import stats

from partialpool.pooling.mixtures import NormalMixturePosterior
from partialpool.pooling.shapes import Components

Y, SE = np.array([2.8, -0.1, 0.0, 7.5]), np.array([1.0, 0.4, 1.7, 0.8])
NODES = np.array([0.4, 0.6])
NODE, SHARE = np.array([0, 1, 0, 1]), np.array([0.7, 0.2, 0.3, 0.8])
PLACE, SD = np.array([0.0, 0.0, 0.3, -0.5]), np.array([0.0, 0.0, 2.0, 4.0])


@pytest.fixture
def posterior():
    components = Components(NODE, SHARE, np.zeros(4, dtype=np.int64), PLACE, SD, np.ones(4))
    return NormalMixturePosterior(Y, SE, NODES, components)


def parts(j):
    """Weight, mean and sd of the four components of unit j's posterior."""
    weight = SHARE * stats.norm.pdf(Y[j], PLACE, np.hypot(SD, SE[j]))
    for k in range(2):
        weight[k == NODE] *= NODES[k] / weight[k == NODE].sum()
    keep = SD**2 / (SD**2 + SE[j] ** 2)
    return weight, PLACE + keep * (Y[j] - PLACE), np.sqrt(keep) * SE[j]


def test_moments_atoms_and_shrinkage(posterior):
    mean, sd = posterior.moments()
    for j in range(4):
        w, m, s = parts(j)
        assert mean[j] == pytest.approx(w @ m, rel=1e-12)
        assert sd[j] == pytest.approx(np.sqrt(w @ (s**2 + (m - w @ m) ** 2)), rel=1e-12)
        assert posterior.atom(0.0)[j] == pytest.approx(w[:2].sum(), rel=1e-12)
        assert posterior.atom(0.3)[j] == 0.0
        shrinkage = w @ (SE[j] ** 2 / (SD**2 + SE[j] ** 2))
        assert posterior.shrinkage()[j] == pytest.approx(shrinkage, rel=1e-10)


def test_around_one_mode_the_weight_is_the_share_of_the_estimate():
    components = Components(
        np.zeros(2, int), np.array([0.7, 0.3]), np.zeros(2, int), np.full(2, 0.5), np.array([0.0, 2.0]), np.ones(2)
    )
    posterior = NormalMixturePosterior(Y, SE, np.ones(1), components)
    np.testing.assert_allclose(posterior.moments()[0], 0.5 + (1 - posterior.shrinkage()) * (Y - 0.5), rtol=1e-12)


def test_quantiles_invert_the_distribution_function(posterior):
    def cdf(j, x):
        w, m, s = parts(j)
        below = np.where(s > 0, stats.norm.cdf((x - m) / np.where(s > 0, s, 1)), x >= m)
        return w @ below

    for x in (-1.0, 0.0, 0.2, 5.0):
        np.testing.assert_allclose(posterior.cdf(x), [cdf(j, x) for j in range(4)], atol=1e-12)
    levels = np.array([0.05, 0.3, 0.5, 0.7, 0.95])
    found = posterior.quantiles(levels)
    for j in range(4):
        jump = (cdf(j, -1e-12), cdf(j, 0.0))
        for level, value in zip(levels, found[:, j], strict=True):
            if jump[0] + 1e-6 < level < jump[1] - 1e-6:
                assert value == 0.0  # on the point itself, not beside it
            else:
                assert cdf(j, value) == pytest.approx(level, abs=1e-5)


def test_draws_come_from_the_node_that_is_named(posterior):
    nodes = np.repeat([0, 1], 20_000)
    draws = posterior.draws(nodes, np.random.default_rng(4))
    for j in range(4):
        w, m, _ = parts(j)
        for k in range(2):
            own = w[k == NODE] / NODES[k]
            part = draws[nodes == k, j]
            error = np.sqrt(own[0] * (1 - own[0]) / 20_000)
            assert abs((part == 0.0).mean() - own[0]) <= 4.5 * error + 1e-12
            rest = part[part != 0.0]
            if rest.size > 500:
                assert rest.mean() == pytest.approx(m[k == NODE][1], abs=4.5 * rest.std() / np.sqrt(rest.size))
    some = posterior.draws(nodes[:9], np.random.default_rng(4), np.array([3]))
    assert some.shape == (9, 1)


def test_pieces_do_not_matter(posterior, monkeypatch):
    whole = posterior.moments(), posterior.quantiles(np.array([0.1, 0.9])), posterior.cdf(0.4), posterior.shrinkage()
    monkeypatch.setattr("partialpool.pooling.posteriors.BLOCK", 1)
    components = posterior.components
    small = NormalMixturePosterior(Y, SE, NODES, components, threads=2)
    again = small.moments(), small.quantiles(np.array([0.1, 0.9])), small.cdf(0.4), small.shrinkage()
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)
