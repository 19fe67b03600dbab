"""The non-parametric population: its gap evaluated anew, brute force, and the cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from partialpool.errors import DataError
from partialpool.inference.optimum import Status
from partialpool.pooling.npmle import npmle

NORMAL, BINOMIAL, POISSON = 0, 1, 2


def simulate(family, n_units, seed=0):
    rng = np.random.default_rng(seed)
    if family == NORMAL:
        se = rng.gamma(4.0, 0.25, n_units) + 0.1
        return np.where(rng.random(n_units) < 0.5, 0.0, rng.normal(0.0, 3.0, n_units)) + se * rng.normal(
            size=n_units
        ), se
    if family == BINOMIAL:
        trials = rng.integers(5, 501, n_units)
        return rng.binomial(trials, rng.beta(2.0, 8.0, n_units)), trials
    exposure = rng.uniform(0.5, 50.0, n_units)
    return rng.poisson(exposure * rng.gamma(1.5, 1.0, n_units) * (rng.random(n_units) < 0.8)), exposure


def log_density(family, y, size, places):
    """(T, J) by scipy."""
    theta = np.asarray(places, dtype=float)[:, None]
    if family == NORMAL:
        return scipy.stats.norm.logpdf(y, theta, size)
    if family == BINOMIAL:
        return scipy.stats.binom.logpmf(y, size, theta)
    return scipy.stats.poisson.logpmf(y, size * theta)


def check(found, family, y, size, n_grid=4000):
    """The log likelihood and the gap by scipy, on a grid that knows nothing of the solver's."""
    y, size = np.asarray(y, dtype=float), np.asarray(size, dtype=float)
    log_g = scipy.special.logsumexp(log_density(family, y, size, found.places) + np.log(found.weights)[:, None], axis=0)
    assert found.log_likelihood == pytest.approx(log_g.sum(), rel=1e-10, abs=1e-10)
    assert np.all(np.diff(found.places) > 0.0) and found.weights.min() > 0.0
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-12)
    raw = y if family == NORMAL else y / size
    grid = np.linspace(raw.min(), raw.max(), n_grid)
    around = np.concatenate(
        [found.places + d for d in np.r_[0.0, np.geomspace(1e-6, 1e-2, 9), -np.geomspace(1e-6, 1e-2, 9)]]
    )
    grid = np.concatenate([grid, np.clip(around, raw.min(), raw.max())])
    pieces = np.array_split(grid, grid.size // 50)
    slope = np.concatenate([np.exp(log_density(family, y, size, piece) - log_g).mean(axis=1) for piece in pieces])
    assert slope.max() - 1.0 <= found.gap + 1e-9
    return slope.max() - 1.0


@pytest.mark.parametrize("family", [NORMAL, BINOMIAL, POISSON])
def test_ten_thousand_units_reach_the_gap(family):
    y, size = simulate(family, 10_000)
    found = npmle(family, y, size, threads=2)
    assert found.status is Status.CONVERGED and found.gap <= 1e-6
    assert check(found, family, y, size, n_grid=1000) <= 1e-6
    assert found.places.size < 60


@pytest.mark.parametrize("family", [NORMAL, BINOMIAL, POISSON])
@pytest.mark.parametrize("seed", range(4))
def test_the_gap_is_the_largest_slope_anywhere(family, seed):
    y, size = simulate(family, 120, seed)
    found = npmle(family, y, size, tolerance=1e-8)
    assert found.gap <= 1e-8
    # D is 1 at every point of the support, so that the gap cannot be below 0
    assert check(found, family, y, size) >= -1e-8


@pytest.mark.parametrize("family", [NORMAL, BINOMIAL, POISSON])
def test_no_worse_than_em_on_a_fine_grid(family):
    y, size = simulate(family, 60, 7)
    found = npmle(family, y, size, tolerance=1e-8)
    raw = y if family == NORMAL else y / size
    log_f = log_density(family, y, size, np.linspace(raw.min(), raw.max(), 500))
    f = np.exp(log_f - log_f.max(axis=0))
    weights = np.full(500, 1.0 / 500)
    for _ in range(20_000):
        weights *= (f / (weights @ f)).mean(axis=1)
    slow = (np.log(weights @ f) + log_f.max(axis=0)).sum()
    assert found.log_likelihood >= slow - 60 * 1e-8
    assert found.log_likelihood == pytest.approx(slow, abs=0.02)  # the grid and EM fall a little short


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    family=st.sampled_from([NORMAL, BINOMIAL, POISSON]),
    n_units=st.integers(1, 25),
    spread=st.floats(0.1, 3.0),
)
def test_small_problems_of_every_kind(seed, family, n_units, spread):
    rng = np.random.default_rng(seed)
    if family == NORMAL:
        size = np.exp(spread * rng.normal(size=n_units))
        y = rng.standard_cauchy(n_units)
    elif family == BINOMIAL:
        size = rng.integers(1, 400, n_units)
        y = rng.binomial(size, rng.beta(0.3, 0.3 * spread, n_units))
    else:
        size = np.exp(spread * rng.normal(size=n_units))
        y = rng.poisson(size * rng.gamma(0.3, 3.0, n_units))
    found = npmle(family, y, size)
    assert found.status is Status.CONVERGED and found.gap <= 1e-6
    assert found.places.size <= n_units
    check(found, family, y, size)


def test_units_with_standard_errors_of_very_different_size():
    rng = np.random.default_rng(3)
    se = np.exp(rng.normal(0.0, 2.0, 400))
    y = rng.standard_t(2, 400) + se * rng.normal(size=400)
    found = npmle(NORMAL, y, se)
    assert found.gap <= 1e-6
    assert check(found, NORMAL, y, se, n_grid=40_000) <= 1e-6


def test_identical_units_have_one_point():
    for family, y, size, place in [(NORMAL, 2.5, 0.7, 2.5), (BINOMIAL, 3, 12, 0.25), (POISSON, 6, 4.0, 1.5)]:
        found = npmle(family, [y] * 9, [size] * 9)
        assert found.places == pytest.approx([place], rel=1e-15) and found.weights.tolist() == [1.0]
        assert found.log_likelihood == pytest.approx(9 * log_density(family, y, size, [place])[0, 0], rel=1e-12)
    spread = npmle(NORMAL, [1.0, 1.0, 1.0], [0.5, 1.0, 9.0])
    assert spread.places.tolist() == [1.0]


def test_two_far_clusters():
    y = np.r_[np.full(30, -20.0) + np.linspace(-0.1, 0.1, 30), np.full(10, 20.0)]
    found = npmle(NORMAL, y, np.ones(40), tolerance=1e-10)
    assert found.places == pytest.approx([-20.0, 20.0], abs=2e-5)  # the gap is half the square of what they are off
    assert found.weights == pytest.approx([0.75, 0.25], abs=1e-6)


def test_two_units_split_when_they_are_more_than_two_standard_errors_apart():
    assert npmle(NORMAL, [0.0, 1.99], [1.0, 1.0], tolerance=1e-10).places == pytest.approx([0.995], abs=1e-6)
    assert npmle(NORMAL, [0.0, 2.2], [1.0, 1.0]).places.size == 2


def test_the_ends_of_the_range():
    none = npmle(BINOMIAL, [0, 0, 0], [4, 9, 30])
    assert (none.places.tolist(), none.log_likelihood) == ([0.0], 0.0)
    every = npmle(BINOMIAL, [4, 9, 30], [4, 9, 30])
    assert (every.places.tolist(), every.log_likelihood) == ([1.0], 0.0)
    quiet = npmle(POISSON, [0, 0], [1.0, 5.0])
    assert (quiet.places.tolist(), quiet.log_likelihood) == ([0.0], 0.0)
    both = npmle(POISSON, [0] * 30 + [40, 45, 38], [2.0] * 33)
    assert both.places[0] == 0.0 and both.weights[0] == pytest.approx(30 / 33, abs=1e-6)
    ends = npmle(BINOMIAL, [0] * 200 + [500] * 100 + [250], [500] * 301)
    assert ends.places == pytest.approx([0.0, 0.5, 1.0], abs=1e-9)
    assert ends.weights == pytest.approx([200 / 301, 1 / 301, 100 / 301], abs=1e-6)


def test_order_and_repetition_of_units_do_not_matter():
    y, size = simulate(BINOMIAL, 300, 5)
    found = npmle(BINOMIAL, y, size)
    order = np.random.default_rng(0).permutation(300)
    shuffled = npmle(BINOMIAL, y[order], size[order], threads=2)
    assert np.array_equal(found.places, shuffled.places) and np.array_equal(found.weights, shuffled.weights)
    assert (found.log_likelihood, found.gap) == (shuffled.log_likelihood, shuffled.gap)
    doubled = npmle(BINOMIAL, np.repeat(y, 2), np.repeat(size, 2))
    assert doubled.log_likelihood == pytest.approx(2.0 * found.log_likelihood, abs=600 * 2e-6)
    assert doubled.places == pytest.approx(found.places, abs=1e-3)


def test_units_of_location_and_scale():
    y, se = simulate(NORMAL, 200, 2)
    found, moved = npmle(NORMAL, y, se, tolerance=1e-9), npmle(NORMAL, 1e-6 * y + 0.5, 1e-6 * se, tolerance=1e-9)
    assert (moved.places - 0.5) * 1e6 == pytest.approx(found.places, abs=1e-3)
    assert moved.log_likelihood + 200 * np.log(1e-6) == pytest.approx(found.log_likelihood, abs=1e-6)


def test_very_many_trials_lose_no_digits():
    y, trials = np.array([10**9, 10**9 + 10**6, 5 * 10**8]), np.full(3, 2 * 10**9)
    found = npmle(BINOMIAL, y, trials)
    assert found.places == pytest.approx(y[[2, 0, 1]] / trials[0], rel=1e-12)
    # far apart: each unit has its own point, and a third of the weight
    peaks = -0.5 * np.log(2.0 * np.pi * y * (1.0 - y / trials))
    assert found.log_likelihood == pytest.approx(peaks.sum() - 3.0 * np.log(3.0), abs=1e-6)
    counts = np.array([10**9, 10**9 + 10**6])
    assert npmle(POISSON, counts, np.full(2, 1e3)).places == pytest.approx(counts / 1e3, rel=1e-12)


def test_a_sample_first_gives_the_same_answer(monkeypatch):
    y, size = simulate(NORMAL, 3000, 4)
    whole = npmle(NORMAL, y, size)
    monkeypatch.setattr("partialpool.pooling.npmle.SAMPLE", 1000)
    sampled = npmle(NORMAL, y, size)
    assert sampled.gap <= 1e-6
    assert sampled.log_likelihood == pytest.approx(whole.log_likelihood, abs=3000 * 1e-6)


def test_an_outlying_unit_has_a_point_of_its_own():
    y = np.r_[np.random.default_rng(0).normal(size=200), 1e6]
    found = npmle(NORMAL, y, np.ones(201))
    assert found.places[-1] == pytest.approx(1e6) and found.weights[-1] == pytest.approx(1 / 201, rel=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match=r"Unit 1 has the value 7\.0 with size 5\.0"):
        npmle(BINOMIAL, [2, 7], [5, 5])
    with pytest.raises(DataError, match=r"Unit 0 .* size 0\.0"):
        npmle(NORMAL, [2.0], [0.0])
    with pytest.raises(DataError, match="shapes"):
        npmle(POISSON, [1, 2], [1.0])
    with pytest.raises(DataError, match="shapes"):
        npmle(POISSON, [], [])
