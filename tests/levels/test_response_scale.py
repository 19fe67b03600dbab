"""Variance on the scale of the response against Monte Carlo, dense quadrature, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from partialpool.errors import ModelError
from partialpool.levels.decomposition import wanted_sets
from partialpool.levels.response_scale import (
    averaged_powers,
    moments,
    partition,
    shared_variance,
    variance_powers,
)
from partialpool.spec.families import (
    FAMILIES,
    Bernoulli,
    Beta,
    Gamma,
    Geometric,
    InverseGaussian,
    LogNormal,
    NegativeBinomial,
    NegativeBinomial1,
    Poisson,
    Weibull,
)
from partialpool.spec.links import inverse_link

SCHOOL, BOTH = frozenset({0}), frozenset({0, 1})

CASES = [
    (Bernoulli(), 0.0),
    (Bernoulli(link="probit"), 0.0),
    (Bernoulli(link="cloglog"), 0.0),
    (Poisson(), 0.0),
    (NegativeBinomial(), np.log(2.0)),
    (NegativeBinomial1(), np.log(2.0)),
    (Geometric(), 0.0),
    (Gamma(), np.log(3.0)),
    (Weibull(), np.log(1.5)),
    (InverseGaussian(), np.log(2.0)),
    (LogNormal(), np.log(0.5)),
    (Beta(), np.log(4.0)),
]


@pytest.mark.parametrize("slope", [False, True], ids=["intercepts", "slope"])
@pytest.mark.parametrize(("family", "own"), CASES, ids=str)
def test_monte_carlo_at_known_parameters(family, own, slope):
    """Two levels, four rows: shares, intraclass correlations and R-squared within 2% of direct simulation."""
    rng = np.random.default_rng(11)
    rows, draws = np.array([-1.0, -0.3, 0.4, 1.2]), 200_000
    eta = -0.3 + 0.5 * rows
    tails = {"identity": 0.3, "log": 0.1 if family.name == "inverse_gaussian" else 0.3}  # what can be simulated
    size = tails.get(family.link, 1.0)
    sigma = size * (np.array([[0.30, 0.06], [0.06, 0.15]]) if slope else np.diag([0.30, 0.0]))
    z = np.column_stack([np.ones(4), rows])
    variances = [np.full((1, 1), 0.25 * size), np.einsum("ni,ij,nj->n", z, sigma, z)[None, :]]
    shift = 0.5 * np.exp(2 * own) if family.name == "lognormal" else 0.0
    sets = [SCHOOL, BOTH]
    found = partition(family, eta[None, :], variances, wanted_sets(sets), variance_powers(family, own), shift)

    school = (0.25 * size) ** 0.5 * rng.standard_normal(draws)[:, None]
    factor = np.linalg.cholesky(sigma + 1e-14 * np.eye(2))
    classes = [rng.standard_normal((draws, 2)) @ factor.T @ z.T for _ in range(2)]
    here, other = (eta + school + one for one in classes)
    mean_here, mean_other = family.mean(here, own), family.mean(other, own)
    y = family.simulate(rng, here, own)
    total = y.var(axis=0).mean()
    expected_icc = [
        np.mean([np.cov(mean_here[:, i], mean_other[:, i])[0, 1] for i in range(4)]) / total,
        mean_here.var(axis=0).mean() / total,
    ]
    whole = (found.noise + found.shared[BOTH]).mean()
    for levels, expected in zip(sets, expected_icc, strict=True):
        assert found.shared[levels].mean() / whole == pytest.approx(expected, rel=0.02)
    explained = found.mean.var()
    assert explained / (explained + whole) == pytest.approx(mean_here.mean(axis=0).var() / y.var(), rel=0.02)
    conditional = (explained + found.shared[BOTH].mean()) / (explained + whole)
    assert conditional == pytest.approx(mean_here.var() / y.var(), rel=0.02)


@pytest.mark.parametrize("link", ["logit", "cloglog", "probit"])
@pytest.mark.parametrize("sd", [0.05, 0.5, 1.4, 4.0, 12.0])
def test_quadrature_against_a_dense_sum(link, sd):
    grid = np.linspace(-9, 9, 3001)
    weights = norm.pdf(grid) / norm.pdf(grid).sum()
    total, part = sd**2, 0.4 * sd**2
    for eta in (-3.0, 0.0, 1.5):
        mu = inverse_link(link, eta + sd * grid)
        outer = grid[::8], weights[::8] / weights[::8].sum()
        rest = grid * (total - part) ** 0.5
        inner = np.array([weights @ inverse_link(link, eta + a * part**0.5 + rest) for a in outer[0]])
        place = np.array([[eta]])
        mean, spread = moments(link, place, np.array([[total]]))
        assert mean[0, 0] == pytest.approx(weights @ mu, rel=1e-3)
        assert spread[0, 0] == pytest.approx(weights @ (mu - weights @ mu) ** 2, rel=2e-3)
        shared = shared_variance(link, place, np.array([[total]]), np.array([[part]]))
        assert shared[0, 0] == pytest.approx(outer[1] @ (inner - outer[1] @ inner) ** 2, rel=2e-3)


@pytest.mark.parametrize("link", ["logit", "cloglog"])
@pytest.mark.parametrize("reach", [1.0, 6.0, 20.0])
def test_interpolation_over_many_rows(link, reach):
    eta = np.linspace(-reach, reach, 150)[None, :] * np.ones((3, 1))
    total, part = np.array([[0.3], [1.0], [3.0]]), np.array([[0.1], [0.8], [1.5]])
    many = shared_variance(link, eta, total, part)
    few = np.concatenate([shared_variance(link, eta[:, k : k + 50], total, part) for k in (0, 50, 100)], axis=1)
    assert np.abs(many - few).max() < 1e-5


def test_probit_and_logistic_of_small_variance():
    eta, small = np.array([[0.4]]), np.array([[1e-6]])
    for link in ("logit", "probit", "cloglog"):
        slope = (inverse_link(link, 0.4 + 1e-5) - inverse_link(link, 0.4 - 1e-5)) / 2e-5
        assert moments(link, eta, small)[1][0, 0] == pytest.approx(1e-6 * slope**2, rel=1e-3)
        assert shared_variance(link, eta, small, 0.3 * small)[0, 0] == pytest.approx(0.3e-6 * slope**2, rel=1e-3)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_variance_is_a_cubic_of_the_mean(name):
    for link in FAMILIES[name].links:
        family = FAMILIES[name](link=link)
        own = np.log(3.0), np.log(5.0)
        powers = variance_powers(family, *own)
        for mean in (0.05, 0.5, 0.95):
            place = np.log(mean) - 4.5 if name == "lognormal" else family.link_function(mean)
            assert np.polyval(powers[::-1], mean) == pytest.approx(float(family.variance(place, *own)), rel=1e-8)


def test_infinite_variance_of_a_student():
    powers = variance_powers(FAMILIES["student_t"](), 0.0, np.log(np.array([1.5, 4.0])))
    assert np.isinf(powers[0, 0])
    assert powers[0, 1] == pytest.approx(2.0)


def test_own_parameter_that_varies_by_group():
    """E exp(2 (log sigma + v)) is exp(2 log sigma + 2 var)."""
    powers = averaged_powers(FAMILIES["gaussian"](), np.array([[0.3]]), np.array([[0.2]]), 0.0)
    assert powers[0, 0, 0] == pytest.approx(np.exp(0.6 + 0.4), rel=1e-8)


def test_inverse_link_is_refused():
    with pytest.raises(ModelError, match="no finite variance"):
        partition(Gamma(link="inverse"), np.ones((1, 1)), [np.ones((1, 1))], [], variance_powers(Gamma(), 0.0))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["logit", "probit", "cloglog", "log", "identity"]),
    st.floats(-4, 4), st.floats(0.01, 4), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_shared_variance_grows_with_what_is_shared(link, eta, total, first, second):
    low, high = sorted((first, second))
    place, whole = np.array([[eta]]), np.array([[total]])
    small, large = (shared_variance(link, place, whole, share * whole)[0, 0] for share in (low, high))
    everything = moments(link, place, whole)[1][0, 0]
    assert -1e-12 <= small <= large * (1 + 1e-3) + 1e-9
    assert large <= everything * (1 + 2e-3) + 1e-9
