"""The weights of a mixture: against brute force, the optimality conditions, and the cases at the edge."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from partialpool.errors import InferenceError, ModelError
from partialpool.inference.optimum import Status
from partialpool.pooling.simplex import CHUNK, maximise_weights, minimise_quadratic


def scale_mixture(n_units, n_components, seed=0):
    """Log densities of units whose effects are half null, under zero-mean normals of growing sd."""
    rng = np.random.default_rng(seed)
    se = rng.gamma(4.0, 0.25, n_units) + 0.1
    y = np.where(rng.random(n_units) < 0.5, 0.0, rng.normal(0.0, 3.0, n_units)) + se * rng.normal(size=n_units)
    variance = np.r_[0.0, np.geomspace(0.1, 10.0, n_components - 1)][:, None] ** 2 + se**2
    return -0.5 * y**2 / variance - 0.5 * np.log(2.0 * np.pi * variance)


def objective(weights, log_likelihood, counts, penalty=None):
    value = counts @ np.log(weights @ np.exp(log_likelihood))
    if penalty is not None:
        used = penalty > 0.0
        value += penalty[used] @ np.log(weights[used])
    return value


def gap_of(weights, log_likelihood, counts, penalty=None):
    """The largest directional derivative, computed anew from the densities themselves."""
    f = np.exp(log_likelihood - log_likelihood.max(axis=0))
    gradient = (f / (weights @ f)) @ counts
    total = counts.sum()
    if penalty is not None:
        gradient[penalty > 0.0] += penalty[penalty > 0.0] / weights[penalty > 0.0]
        total += penalty.sum()
    return gradient.max() / total - 1.0


def by_em(log_likelihood, counts, penalty, steps=20_000):
    f = np.exp(log_likelihood - log_likelihood.max(axis=0))
    weights = np.full(f.shape[0], 1.0 / f.shape[0])
    for _ in range(steps):
        weights = weights * ((f / (weights @ f)) @ counts) + penalty
        weights /= weights.sum()
    return weights


def test_two_components_in_closed_form():
    # a unit of the first kind is certain to be of component 0; 7 of 10 are
    certain = np.where(np.array([[True] * 7 + [False] * 3, [False] * 7 + [True] * 3]), 0.0, -np.inf)
    found = maximise_weights(certain)
    assert found.weights == pytest.approx([0.7, 0.3], abs=1e-9)
    assert found.log_likelihood == pytest.approx(7 * np.log(0.7) + 3 * np.log(0.3), rel=1e-12)
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize("seed", range(5))
def test_as_slsqp(seed):
    log_likelihood = scale_mixture(40, 5, seed)
    counts = np.random.default_rng(seed).integers(1, 6, 40).astype(float)
    found = maximise_weights(log_likelihood, counts, tolerance=1e-10)
    brute = scipy.optimize.minimize(
        lambda w: -objective(w, log_likelihood, counts),
        np.full(5, 0.2),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * 5,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    assert found.log_likelihood >= -brute.fun - 1e-8
    assert found.log_likelihood == pytest.approx(-brute.fun, abs=1e-4)
    assert found.log_likelihood == pytest.approx(objective(found.weights, log_likelihood, counts), rel=1e-12)


@pytest.mark.parametrize("penalised", [False, True])
def test_as_a_long_run_of_em(penalised):
    log_likelihood = scale_mixture(300, 6)
    counts = np.ones(300)
    penalty = np.array([9.0, 0.0, 0.5, 0.0, 0.0, 2.0]) if penalised else np.zeros(6)
    found = maximise_weights(log_likelihood, penalty=penalty, tolerance=1e-10)
    slow = by_em(log_likelihood, counts, penalty)
    expected = objective(slow, log_likelihood, counts, penalty)
    reached = objective(found.weights, log_likelihood, counts, penalty)
    assert reached >= expected - 1e-9
    assert reached == pytest.approx(expected, abs=1e-3)
    assert found.gap <= 1e-10
    assert gap_of(found.weights, log_likelihood, counts, penalty) == pytest.approx(found.gap, abs=1e-12)


@pytest.mark.parametrize("pseudo", [1e-3, 1.0, 50.0])
def test_a_penalty_is_so_many_units_known_to_be_of_a_component(pseudo):
    log_likelihood = scale_mixture(200, 5)
    known = np.where(np.arange(5) == 2, 0.0, -np.inf)[:, None]
    counted = maximise_weights(np.hstack([log_likelihood, known]), np.r_[np.ones(200), pseudo], tolerance=1e-11)
    found = maximise_weights(log_likelihood, penalty=np.array([0, 0, pseudo, 0, 0]), tolerance=1e-11)
    assert found.weights == pytest.approx(counted.weights, abs=1e-6)
    assert found.weights[2] > 0.0
    assert found.log_likelihood == pytest.approx(objective(found.weights, log_likelihood, np.ones(200)), rel=1e-12)


@pytest.mark.parametrize(("n_units", "n_components"), [(1, 4), (2, 3), (30, 60), (3 * CHUNK + 17, 25), (5000, 120)])
def test_optimality_conditions(n_units, n_components):
    log_likelihood = scale_mixture(n_units, n_components)
    found = maximise_weights(log_likelihood)
    assert found.status is Status.CONVERGED
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-12) and found.weights.min() >= 0.0
    assert gap_of(found.weights, log_likelihood, np.ones(n_units)) <= 1e-8 + 1e-12
    f = np.exp(log_likelihood - log_likelihood.max(axis=0))
    slopes = (f / (found.weights @ f)).mean(axis=1)
    assert found.weights @ np.abs(slopes - 1.0) < 1e-7  # complementary slackness


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_units=st.integers(1, 60),
    n_components=st.integers(1, 12),
    scale=st.floats(0.01, 300.0),
)
def test_random_problems_reach_the_gap(seed, n_units, n_components, scale):
    rng = np.random.default_rng(seed)
    log_likelihood = scale * rng.normal(size=(n_components, n_units))
    log_likelihood[rng.random(log_likelihood.shape) < 0.2] = -np.inf
    log_likelihood[rng.integers(n_components, size=n_units), np.arange(n_units)] = rng.normal(size=n_units)
    counts = rng.integers(1, 1000, n_units).astype(float)
    penalty = np.where(rng.random(n_components) < 0.3, rng.exponential(size=n_components), 0.0)
    found = maximise_weights(log_likelihood, counts, penalty=penalty)
    assert found.status is Status.CONVERGED and found.gap <= 1e-8
    assert gap_of(found.weights, log_likelihood, counts, penalty) <= 1e-8 + 1e-11


def test_order_and_repetition_of_units_do_not_matter():
    log_likelihood = scale_mixture(500, 6)
    found = maximise_weights(log_likelihood, tolerance=1e-11)
    shuffled = maximise_weights(log_likelihood[:, np.random.default_rng(1).permutation(500)], tolerance=1e-11)
    repeated = maximise_weights(np.hstack([log_likelihood] * 3), tolerance=1e-11)
    counted = maximise_weights(log_likelihood, np.full(500, 3.0), tolerance=1e-11)
    absent = maximise_weights(
        np.hstack([log_likelihood, np.full((6, 1), -3.0)]), np.r_[np.ones(500), 0.0], tolerance=1e-11
    )
    for other, times in [(shuffled, 1.0), (repeated, 3.0), (counted, 3.0), (absent, 1.0)]:
        assert other.weights == pytest.approx(found.weights, abs=1e-6)
        assert other.log_likelihood == pytest.approx(times * found.log_likelihood, rel=1e-12)


def test_a_constant_per_unit_only_shifts_the_log_likelihood():
    log_likelihood = scale_mixture(100, 5)
    shift = np.random.default_rng(2).normal(0.0, 1e4, 100)
    found, shifted = maximise_weights(log_likelihood), maximise_weights(log_likelihood + shift)
    assert shifted.weights == pytest.approx(found.weights, abs=1e-6)
    assert shifted.log_likelihood - shift.sum() == pytest.approx(found.log_likelihood, abs=1e-6)


def test_results_do_not_depend_on_threads_and_the_input_is_left_alone(monkeypatch):
    monkeypatch.setattr("partialpool.pooling.simplex.WORTH_THREADS", 1)
    log_likelihood = scale_mixture(5 * CHUNK + 3, 8)
    before = log_likelihood.copy()
    one, two = maximise_weights(log_likelihood, threads=1), maximise_weights(log_likelihood, threads=2)
    assert np.array_equal(log_likelihood, before)
    place = maximise_weights(log_likelihood, threads=2, overwrite=True)
    assert not np.array_equal(log_likelihood, before)
    for other in (two, place):
        assert np.array_equal(one.weights, other.weights)
        assert (one.log_likelihood, one.gap) == (other.log_likelihood, other.gap)


def test_memory_of_many_units():
    log_likelihood = scale_mixture(40 * CHUNK, 12)
    tracemalloc.start()
    maximise_weights(log_likelihood, overwrite=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * log_likelihood.nbytes


def test_one_component_and_components_that_are_equal_or_impossible():
    log_likelihood = scale_mixture(50, 4)
    alone = maximise_weights(log_likelihood[:1])
    assert (alone.weights.tolist(), alone.iterations) == ([1.0], 0)
    assert alone.log_likelihood == pytest.approx(log_likelihood[0].sum(), rel=1e-13)
    found = maximise_weights(log_likelihood)
    doubled = maximise_weights(np.vstack([log_likelihood, log_likelihood]))
    assert doubled.log_likelihood == pytest.approx(found.log_likelihood, abs=1e-6)
    assert doubled.weights[:4] + doubled.weights[4:] == pytest.approx(found.weights, abs=1e-5)
    useless = maximise_weights(np.vstack([np.full(50, -np.inf), log_likelihood]))
    assert useless.weights[0] == 0.0
    assert useless.weights[1:] == pytest.approx(found.weights, abs=1e-6)


def test_a_start_that_cannot_explain_a_unit_is_mended():
    log_likelihood = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    found = maximise_weights(log_likelihood, start=np.array([1.0, 0.0]))
    assert found.weights == pytest.approx([0.5, 0.5], abs=1e-8)
    warm = maximise_weights(log_likelihood, start=found.weights)
    assert warm.iterations == 0


def test_em_takes_over_where_the_quadratic_problem_fails(monkeypatch):
    def fails(*_):
        raise np.linalg.LinAlgError

    log_likelihood = scale_mixture(100, 3)
    expected = maximise_weights(log_likelihood)
    monkeypatch.setattr("partialpool.pooling.simplex.minimise_quadratic", fails)
    monkeypatch.setattr("partialpool.pooling.simplex.LIMIT", 5000)
    found = maximise_weights(log_likelihood, tolerance=1e-3)
    assert found.gap <= 1e-3
    assert 0.0 <= expected.log_likelihood - found.log_likelihood <= 100 * 1e-3
    # from a corner, where EM alone would stay
    corner = maximise_weights(log_likelihood, start=np.array([0.0, 0.0, 1.0]), tolerance=1e-2)
    assert 0.0 <= expected.log_likelihood - corner.log_likelihood <= 100 * 1e-2


def test_what_cannot_be_is_refused():
    log_likelihood = np.zeros((2, 4))
    log_likelihood[:, 2] = -np.inf
    with pytest.raises(InferenceError, match="Unit 2 is impossible"):
        maximise_weights(log_likelihood)
    log_likelihood[1, 2] = np.nan
    with pytest.raises(InferenceError, match="unit 2 is nan"):
        maximise_weights(log_likelihood)
    with pytest.raises(ModelError, match="'counts' must have 4 values"):
        maximise_weights(np.zeros((2, 4)), np.ones(3))
    with pytest.raises(ModelError, match="'counts' must be finite, not negative and not all 0"):
        maximise_weights(np.zeros((2, 4)), np.zeros(4))
    with pytest.raises(ModelError, match="'penalty' must be finite"):
        maximise_weights(np.zeros((2, 4)), penalty=np.array([-0.5, 0.0]))
    with pytest.raises(ModelError, match="shape"):
        maximise_weights(np.zeros(4))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 25), zeros=st.booleans())
def test_quadratic_problems_are_solved_as_by_nnls(seed, size, zeros):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(size + 5, size)), rng.normal(size=size + 5)
    start = rng.exponential(size=size) * (rng.random(size) < 0.5 if zeros else 1.0)
    expected, _ = scipy.optimize.nnls(a, b)
    assert minimise_quadratic(a.T @ a, a.T @ b, start) == pytest.approx(expected, abs=1e-7)
