"""The numerical posterior of units, against dense sums and closed forms."""

import math

import numpy as np
import pytest
from scipy import special, stats

from partialpool.pooling.grid import GridPosterior

PROBABILITIES = np.array([0.001, 0.05, 0.3, 0.5, 0.8, 0.95, 0.999])


def link_inverse(family, eta):
    return eta if family == 0 else special.expit(eta) if family == 1 else np.exp(eta)


def log_likelihood(family, y, size, eta):
    if family == 0:
        return stats.norm.logpdf(y, eta, size)
    if family == 1:
        return stats.binom.logpmf(y, size, special.expit(eta))
    return stats.poisson.logpmf(y, size * np.exp(eta))


def log_component(kind, m, s, nu, eta):
    if kind == 0:
        return stats.norm.logpdf(eta, m, s)
    if kind == 1:
        return stats.uniform.logpdf(eta, m - s, 2 * s)
    return stats.t.logpdf(eta, nu, m, s)


class Dense:
    """One unit's posterior on half a million points, its atoms apart."""

    def __init__(self, family, y, size, node_weights, node, weight, kind, location, spread, nu, low=-60.0, high=60.0):
        self.family = family
        edge = np.linspace(low, high, 600_001)
        if np.any(kind == 2):  # heavy tails
            far = 60.0 * np.geomspace(1.0, 1e3, 4000)[1:]
            edge = np.concatenate([-far[::-1], edge, far if family < 2 else []])
        self.edge, self.eta = edge, 0.5 * (edge[1:] + edge[:-1])
        log_f = log_likelihood(family, y, size, self.eta)
        top = log_f.max()
        f = np.exp(log_f - top) * np.diff(edge)
        self.mass, self.atoms = np.zeros(self.eta.size), {}
        self.variance = []
        for k, share in enumerate(node_weights):
            own, atoms, total = np.zeros(self.eta.size), {}, 0.0
            for c in np.flatnonzero(node == k):
                if spread[c] == 0.0:
                    atom = weight[c] * math.exp(log_likelihood(family, y, size, location[c]) - top)
                    atoms[location[c]] = atoms.get(location[c], 0.0) + atom
                elif kind[c] == 1:  # the share of a cell that an interval covers
                    covered = np.clip(edge, location[c] - spread[c], location[c] + spread[c])
                    own += weight[c] * f * np.diff(covered) / np.diff(edge) / (2 * spread[c])
                else:
                    own += weight[c] * f * np.exp(log_component(kind[c], location[c], spread[c], nu[c], self.eta))
            total = own.sum() + sum(atoms.values())
            self.mass += share * own / total
            for place, atom in atoms.items():
                self.atoms[place] = self.atoms.get(place, 0.0) + share * atom / total
            places, masses = np.array(list(atoms)), np.array(list(atoms.values()))
            mean = ((own * self.eta).sum() + (masses * places).sum()) / total
            self.variance.append(((own * (self.eta - mean) ** 2).sum() + (masses * (places - mean) ** 2).sum()) / total)
        self.cumulative = np.concatenate([[0.0], np.cumsum(self.mass)])

    def moments(self):
        places, masses = np.array(list(self.atoms)), np.array(list(self.atoms.values()))
        theta, points = link_inverse(self.family, self.eta), link_inverse(self.family, places)
        mean = (self.mass * theta).sum() + (masses * points).sum()
        return mean, math.sqrt((self.mass * (theta - mean) ** 2).sum() + (masses * (points - mean) ** 2).sum())

    def cdf(self, eta):
        return np.interp(eta, self.edge, self.cumulative) + sum(m for place, m in self.atoms.items() if place <= eta)


def population(kind, family):
    """Two nodes: shares, kinds, places, spreads and degrees of freedom of their components."""
    m = {0: 0.5, 1: -1.0, 2: -0.5}[family]
    if kind == "normal":
        return [0, 1], [1.0, 1.0], [0, 0], [m, m + 0.4], [0.5, 1.2]
    if kind == "student_t":
        return [0, 1], [1.0, 1.0], [2, 2], [m, m + 0.4], [0.3, 0.6]
    if kind == "point_normal":
        return [0, 0, 1, 1], [0.7, 0.3, 0.4, 0.6], [0, 0, 0, 0], [m] * 4, [0.0, 1.0, 0.0, 0.5]
    if kind == "unimodal":
        return [0, 0, 0, 1, 1], [0.5, 0.3, 0.2, 0.6, 0.4], [1] * 5, [m] * 5, [0.0, 0.3, 2.0, 0.7, 1.9]
    spreads = [0.05, 0.2, 0.8, 3.0, 0.02, 0.4, 1.5, 4.0]
    return [0] * 4 + [1] * 4, [0.25] * 8, [0] * 8, [m] * 8, spreads


def units(family):
    if family == 0:
        return np.array([0.5, 2.0, -6.0, 9.0]), np.array([1.0, 0.3, 1.0, 0.5])
    if family == 1:
        return np.array([0.0, 3.0, 20.0, 480.0]), np.array([20.0, 9.0, 20.0, 1000.0])
    return np.array([0.0, 2.0, 40.0, 300.0]), np.array([3.0, 5.0, 10.0, 900.0])


def made(kind, family, threads=1, nu=4.0):
    node, weight, kinds, location, spread = (np.array(v) for v in population(kind, family))
    shares = np.array([0.3, 0.7])
    y, size = units(family)
    arguments = (shares, node, weight, kinds, location, spread, np.full(node.size, nu))
    return GridPosterior(family, y, size, *arguments, threads=threads), y, size, arguments


KINDS = ["normal", "student_t", "point_normal", "unimodal", "scale_mixture"]


@pytest.mark.parametrize("family", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_against_dense_sums(kind, family):
    posterior, y, size, arguments = made(kind, family)
    mean, sd = posterior.moments()
    quantiles = posterior.quantiles(PROBABILITIES)
    assert quantiles.shape == (PROBABILITIES.size, y.size)
    shrinkage = posterior.shrinkage()
    for j in range(y.size):
        dense = Dense(family, y[j], size[j], *arguments)
        expected = dense.moments()
        assert mean[j] == pytest.approx(expected[0], rel=1e-6, abs=1e-6 * expected[1])
        assert sd[j] == pytest.approx(expected[1], rel=1e-5)
        for q, p in enumerate(PROBABILITIES):
            x = quantiles[q, j]
            eta = x if family == 0 else special.logit(x) if family == 1 else math.log(x)
            places = np.array(list(dense.atoms))
            near = places[np.abs(places - eta) < 1e-9]
            if near.size:  # a jump over p
                assert dense.cdf(near[0] - 1e-9) - 2e-5 <= p <= dense.cdf(near[0]) + 2e-5
            else:
                assert dense.cdf(eta) == pytest.approx(p, abs=3e-6 + 1e-4 * min(p, 1 - p))
        for x in (mean[j], mean[j] + sd[j]):
            if family == 1 and x >= 1:
                continue
            eta = x if family == 0 else special.logit(x) if family == 1 else math.log(x)
            if np.any(np.abs(np.array(list(dense.atoms)) - eta) < 1e-9):  # at a jump, rounding takes the side
                found = posterior.cdf(x, np.array([j]))[0]
                assert dense.cdf(eta - 1e-9) - 1e-5 <= found <= dense.cdf(eta + 1e-9) + 1e-5
                continue
            assert posterior.cdf(x, np.array([j]))[0] == pytest.approx(dense.cdf(eta), abs=1e-5)
        theta = expected[0]
        information = 1 / size[j] ** 2 if family == 0 else size[j] * theta * (1 - theta if family == 1 else 1)
        weight = information * (np.array([0.3, 0.7]) @ dense.variance)
        assert shrinkage[j] == pytest.approx(1 - min(weight, 1), abs=1e-5)


def test_quantiles_of_normal_data_and_population_are_exact():
    rng = np.random.default_rng(1)
    y, size = rng.normal(0, 3, 50), rng.uniform(0.1, 5, 50)
    for tau in (0.01, 1.0, 30.0):
        posterior = GridPosterior(0, y, size, [1.0], [0], [1.0], [0], [0.7], [tau], [1.0])
        share = tau**2 / (tau**2 + size**2)
        mean, sd = 0.7 + share * (y - 0.7), np.sqrt(share) * size
        expected = mean + sd * stats.norm.ppf(PROBABILITIES)[:, None]
        assert np.all(np.abs(posterior.quantiles(PROBABILITIES) - expected) < 1e-5 * sd)
        np.testing.assert_allclose(posterior.moments()[0], mean, rtol=1e-12)
        np.testing.assert_allclose(posterior.moments()[1], sd, rtol=1e-7)
        np.testing.assert_allclose(posterior.shrinkage(), 1 - share, rtol=1e-9)
        known = GridPosterior(0, y, size, [1.0], [0], [1.0], [0], [0.7], [tau], [1.0], [tau**2])
        np.testing.assert_allclose(known.shrinkage(), 1 - share, rtol=1e-9)
        np.testing.assert_allclose(posterior.cdf(0.3), stats.norm.cdf(0.3, mean, sd), atol=1e-7)


def test_many_nodes_some_narrow():
    rng = np.random.default_rng(2)
    nodes = 150
    mu, tau = rng.normal(0, 1, nodes), np.exp(rng.normal(-4, 3, nodes))
    weights = rng.dirichlet(np.ones(nodes))
    y, size = np.array([0.3, 5.0]), np.array([1.0, 2.0])
    posterior = GridPosterior(
        0, y, size, weights, np.arange(nodes), np.ones(nodes), np.zeros(nodes), mu, tau, np.ones(nodes)
    )
    share = (tau**2)[:, None] / (tau[:, None] ** 2 + size**2)
    mean, sd = mu[:, None] + share * (y - mu[:, None]), np.sqrt(share) * size
    whole = np.sqrt(weights @ (sd**2 + (mean - weights @ mean) ** 2))
    quantiles = posterior.quantiles(PROBABILITIES)
    for q, p in enumerate(PROBABILITIES):
        for j in range(2):
            low, high = (
                weights @ stats.norm.cdf((quantiles[q, j] + d * whole[j] - mean[:, j]) / sd[:, j])
                for d in (-1e-5, 1e-5)
            )
            assert low - 1e-9 <= p <= high + 1e-9


def test_narrow_components_of_counts():
    # a population nearly known at each node: the posterior is the nodes' places, smeared
    rng = np.random.default_rng(3)
    nodes = 60
    mu, tau = rng.normal(-1, 0.5, nodes), np.full(nodes, 0.01)
    arguments = (np.full(nodes, 1 / nodes), np.arange(nodes), np.ones(nodes), np.zeros(nodes), mu, tau, np.ones(nodes))
    posterior = GridPosterior(1, [4.0], [10.0], *arguments)
    dense = Dense(1, 4.0, 10.0, *arguments, low=-5.0, high=3.0)
    for x in np.linspace(0.15, 0.5, 8):
        assert posterior.cdf(x)[0] == pytest.approx(dense.cdf(special.logit(x)), abs=2e-5)


@pytest.mark.parametrize("family", [0, 1, 2])
def test_atoms(family):
    posterior, y, size, arguments = made("point_normal", family)
    place = arguments[4][0]
    theta = float(link_inverse(family, place))
    atom = posterior.atom(theta)
    for j in range(y.size):
        dense = Dense(family, y[j], size[j], *arguments)
        assert atom[j] == pytest.approx(dense.atoms[place], rel=1e-6, abs=1e-12)
    step = posterior.cdf(theta) - posterior.cdf(theta * (1 - 1e-9) if theta > 0 else theta * (1 + 1e-9))
    np.testing.assert_allclose(step, atom, atol=1e-7)
    assert np.all(posterior.atom(theta * 1.001) == 0.0)
    middle = posterior.quantiles([float(posterior.cdf(theta)[0] - 0.5 * atom[0])], np.array([0]))[0, 0]
    assert middle == pytest.approx(theta, rel=1e-12)


def test_points_only():
    posterior = GridPosterior(
        1, [0.0, 5.0, 10.0], [10.0] * 3, [1.0], [0, 0, 0], [0.2, 0.5, 0.3], [0] * 3, [-math.inf, 0.0, math.inf],
        [0.0] * 3, [1.0] * 3,
    )  # fmt: skip
    middle = 0.5 * 0.5**10
    np.testing.assert_allclose(posterior.atom(0.0), [0.2 / (0.2 + middle), 0, 0], atol=1e-12)
    np.testing.assert_allclose(posterior.atom(0.5)[1], 1.0)
    np.testing.assert_allclose(posterior.atom(1.0), [0, 0, 0.3 / (0.3 + middle)], atol=1e-12)
    np.testing.assert_allclose(
        posterior.moments()[0], [middle * 0.5 / (0.2 + middle), 0.5, 1 - middle * 0.5 / (0.3 + middle)]
    )
    np.testing.assert_allclose(posterior.quantiles([0.5])[0], [0.0, 0.5, 1.0])
    np.testing.assert_allclose(posterior.cdf(0.5), [1.0, 1.0, middle / (0.3 + middle)])


@pytest.mark.parametrize("family", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_cdf(kind, family):
    posterior, y, size, (_shares, *rest) = made(kind, family)
    n = 20_000
    nodes = np.repeat([0, 1], [int(0.3 * n), int(0.7 * n)])
    draws = posterior.draws(nodes, np.random.default_rng(4))
    assert draws.shape == (n, y.size)
    for j in range(y.size):
        x = np.quantile(draws[:, j], np.linspace(0.02, 0.98, 25))
        below = np.array([posterior.cdf(v, np.array([j]))[0] for v in x])
        empirical = np.array([(draws[:, j] <= v * (1 + 1e-12 * np.sign(v))).mean() for v in x])
        assert np.abs(below - empirical).max() < 1.95 / math.sqrt(n)  # a chance of 1e-3 under Kolmogorov's law
    # given one node only
    one = posterior.draws(np.zeros(4000, dtype=int), np.random.default_rng(5), np.array([1]))
    node = rest[0]
    alone = GridPosterior(family, y, size, [1.0], node[node == 0], *(v[node == 0] for v in rest[1:]))
    x = float(np.median(one))
    assert alone.cdf(x, np.array([1]))[0] == pytest.approx((one <= x * (1 + 1e-12 * np.sign(x))).mean(), abs=0.035)


@pytest.mark.parametrize("family", [0, 1, 2])
def test_threads_and_units(family):
    rng = np.random.default_rng(6)
    y = rng.poisson(4, 40).astype(float)
    size, m = np.full(40, 12.0), rng.normal(-1, 1, (3, 40))

    def build(threads):
        return GridPosterior(
            family, y, size, [0.4, 0.6], [1, 0, 1], [0.3, 1.0, 0.7], [0, 2, 1], m, [0.6, 0.4, 1.0], [5.0] * 3,
            [0.5, 0.7], threads,
        )  # fmt: skip

    one, two = build(1), build(2)
    assert np.array_equal(one.quantiles(PROBABILITIES), two.quantiles(PROBABILITIES))
    assert np.array_equal(one.cdf(0.4), two.cdf(0.4))
    nodes = np.array([0, 1, 1, 0])
    assert np.array_equal(one.draws(nodes, np.random.default_rng(1)), two.draws(nodes, np.random.default_rng(1)))
    assert np.array_equal(np.stack(one.moments()), np.stack(two.moments()))
    few = np.array([7, 3])
    assert np.array_equal(one.quantiles([0.05, 0.95], few), one.quantiles([0.05, 0.95])[:, few])
    assert np.array_equal(one.cdf(0.4, few), one.cdf(0.4)[few])
    assert np.array_equal(one.cdf(np.array([0.4, 0.4]), few), one.cdf(0.4)[few])
    assert one.n_units == 40 and np.all((one.shrinkage() >= 0) & (one.shrinkage() <= 1))


def test_weight_is_the_derivative_of_the_posterior_mean():
    # a Student-t population lets an outlier go: there the posterior mean may follow y by more than all of its change
    def mean(y):
        return GridPosterior(0, y, [1.0, 0.5], [1.0], [0], [1.0], [2], [0.0], [0.7], [4.0]).moments()[0]

    y, step = np.array([0.4, 3.0]), 1e-4
    posterior = GridPosterior(0, y, [1.0, 0.5], [1.0], [0], [1.0], [2], [0.0], [0.7], [4.0])
    derivative = (mean(y + step) - mean(y - step)) / (2 * step)
    assert derivative[0] < 0.5 and derivative[1] > 1
    np.testing.assert_allclose(1 - posterior.shrinkage(), [derivative[0], 1.0], rtol=1e-6)


def test_variance_of_the_population_is_what_shrinkage_compares_with_where_given():
    y, size, spread = np.array([0.0, 4.0, 30.0]), np.array([10.0, 10.0, 40.0]), np.array([0.4, 1.1])
    arguments = (1, y, size, [0.25, 0.75], [0, 1], [1.0, 1.0], [0, 0], [-1.0, -0.5], spread, [1.0, 1.0])
    weights, parts = np.array([0.25, 0.75]), []
    for k in range(2):
        dense = [Dense(1, y[j], size[j], [1.0], np.zeros(1, int), [1.0], [0], [[-1.0, -0.5][k]], [spread[k]], [1.0])
                 for j in range(3)]  # fmt: skip
        parts.append([d.variance[0] / spread[k] ** 2 for d in dense])
    np.testing.assert_allclose(GridPosterior(*arguments, spread**2).shrinkage(), weights @ np.array(parts), rtol=1e-6)


def test_variance_that_does_not_exist_leaves_a_unit_to_itself():
    posterior = GridPosterior(1, [0.0], [5.0], [1.0], [0], [1.0], [2], [0.0], [1.0], [1.5])
    assert posterior.shrinkage().tolist() == [0.0]
    nothing = GridPosterior(1, [0.0], [5.0], [1.0], [0], [1.0], [0], [-math.inf], [0.0], [1.0])
    assert nothing.shrinkage().tolist() == [1.0]


def test_population_known_exactly_is_shrunk_wholly():
    posterior = GridPosterior(0, [1.0], [1.0], [1.0], [0], [1.0], [0], [0.3], [0.0], [1.0])
    assert posterior.shrinkage().tolist() == [1.0]
    assert posterior.moments()[1].tolist() == [0.0]
    assert posterior.quantiles([0.05, 0.95]).ravel().tolist() == [0.3, 0.3]
