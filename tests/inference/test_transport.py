"""The map from whitened coordinates, and proposals in them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

import partialpool as pp
from partialpool.algebra.rootsolve import solve_roots
from partialpool.inference.joint import JointDensity
from partialpool.inference.root import RootLaplace
from partialpool.inference.transport import (
    NU_ROOT,
    NU_THETA,
    SCALES,
    WIDE,
    SplitT,
    Transport,
    at_origin,
    degrees_of_freedom,
    refitted,
    t_quantile,
)

Array = NDArray[np.float64]


@cache
def transport(threads: int = 1) -> Transport:
    """Slopes on a predictor far from 0, whose covariance is explored at its mean; a bounded sd."""
    rng = np.random.default_rng(5)
    n = 240
    a, b = rng.integers(0, 24, n), rng.integers(0, 5, n)
    x = rng.normal(3.0, 1.0, n)
    eta = -1.0 + 0.3 * x + rng.normal(0, 0.8, 24)[a] + rng.normal(0, 0.4, 5)[b]
    data = pd.DataFrame({"y": rng.poisson(np.exp(eta)), "x": x, "a": a, "b": b})
    model = pp.Model.from_formula(
        "y ~ x + (x | a) + (1 | b)", data, family="poisson", priors={"sd(b)": pp.Uniform(0, 4)}
    )
    laplace = RootLaplace(JointDensity(model, nodes=7, threads=threads))
    laplace.find_mode()
    return Transport(laplace, laplace.negative_hessian())


def test_the_origin_is_the_mode() -> None:
    own = transport()
    points, _ = own.points(np.zeros((1, own.size)))
    np.testing.assert_allclose(points[0], own.laplace.point(own.laplace.phi, own.laplace.root), atol=1e-10)


def test_jacobian() -> None:
    own = transport()
    x = np.random.default_rng(1).normal(size=(3, own.size))
    _, logs = own.points(x)
    for k in range(3):
        moves = 1e-5 * np.eye(own.size)
        jacobian = (own.points(x[k] + moves)[0] - own.points(x[k] - moves)[0]).T / 2e-5
        assert logs[k] == pytest.approx(np.linalg.slogdet(jacobian)[1], abs=1e-4)


def test_close_to_standard_normal() -> None:
    """Along every axis the density falls about as a normal one does."""
    own = transport()
    axes = np.eye(own.size)
    value, _ = own.log_density(np.concatenate([np.zeros((1, own.size)), axes, -axes]))
    drops = value[0] - value[1:]
    assert 0.25 < np.median(drops) < 0.75
    assert (drops[own.d : own.size] > 0.3).all() and (drops[own.d : own.size] < 0.8).all()


def test_batches_and_threads_change_no_bit() -> None:
    x = np.random.default_rng(2).normal(size=(301, transport().size))
    value, points = transport().log_density(x)
    density = transport().laplace.density
    try:
        for threads in (2, 3):
            density.threads = threads
            other_value, other_points = transport().log_density(x)
            assert other_points.tolist() == points.tolist() and other_value.tolist() == value.tolist()
    finally:
        density.threads = 1


def test_roots_are_solved_one_by_one() -> None:
    rng = np.random.default_rng(3)
    low = np.linalg.cholesky(np.stack([np.cov(rng.normal(size=(4, 30))) for _ in range(6)]))
    pull, x = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    out, logs = np.empty((6, 4)), np.empty(6)
    solve_roots(low, pull, x, out, logs)
    for k in range(6):
        np.testing.assert_allclose(out[k], np.linalg.solve(low[k].T, np.linalg.solve(low[k], pull[k]) + x[k]))
        assert logs[k] == pytest.approx(np.log(np.diag(low[k])).sum())


# -- proposals ---------------------------------------------------------------------------------------------------------


def skewed(size: int = 2) -> SplitT:
    rng = np.random.default_rng(4)
    factor = np.tril(rng.normal(size=(size, size))) + 2 * np.eye(size)
    return SplitT(
        rng.normal(size=size), factor, rng.uniform(0.5, 1, size), rng.uniform(1, 3, size), np.array([4.0, 10.0][:size])
    )


def test_density_of_what_is_drawn() -> None:
    proposal = skewed()
    x, logs = proposal.points(np.random.default_rng(5).random((50, 2)))
    np.testing.assert_allclose(proposal.log_density(x), logs, rtol=1e-10)


def test_density_has_mass_one() -> None:
    """Both sides of one coordinate, and the whole by importance from another proposal."""
    line = np.linspace(-400, 400, 400_001)[:, None]
    one = SplitT(np.array([0.3]), np.array([[1.7]]), np.array([0.6]), np.array([2.0]), np.array([4.0]))
    assert np.exp(one.log_density(line)).sum() * 0.002 == pytest.approx(1.0, abs=1e-4)
    other = SplitT(skewed().centre, 3 * np.eye(2), np.full(2, 1.5), np.full(2, 1.5), np.full(2, 3.0))
    x, logs = other.points(np.random.default_rng(6).random((200_000, 2)))
    assert np.exp(skewed().log_density(x) - logs).mean() == pytest.approx(1.0, abs=0.03)


def test_draws_have_the_shares_and_scales_of_both_sides() -> None:
    proposal = SplitT(np.zeros(1), np.eye(1), np.array([0.5]), np.array([2.0]), np.array([10.0]))
    x, _ = proposal.points(((np.arange(20_000) + 0.5) / 20_000)[:, None])
    assert (x < 0).mean() == pytest.approx(0.2, abs=1e-3)
    for side, scale in ((x[x < 0], 0.5), (x[x > 0], 2.0)):
        assert np.median(np.abs(side)) == pytest.approx(scale * student.ppf(0.75, 10), rel=2e-3)


def test_quantiles() -> None:
    np.testing.assert_allclose(
        t_quantile(np.array([0.1, 0.9]), np.array([4.0, 25.0])), [student.ppf(0.1, 4), student.ppf(0.9, 25)]
    )


def test_degrees_of_freedom() -> None:
    assert degrees_of_freedom(2, 3).tolist() == [NU_THETA] * 2 + [NU_ROOT] * 3
    assert (degrees_of_freedom(1, 60)[1:] == 60).all() and degrees_of_freedom(0, WIDE + 1)[0] == 25


def test_first_proposal_probes_both_sides_of_theta() -> None:
    own = transport()
    proposal = at_origin(own)
    assert not proposal.centre.any() and (proposal.factor == np.eye(own.size)).all()
    scales = np.concatenate([proposal.below, proposal.above])
    assert (scales >= SCALES[0]).all() and (scales <= SCALES[1]).all()
    assert (proposal.below[own.d :] == 1.05).all()


@pytest.mark.parametrize("many", [True, False])
def test_refit_follows_the_sample(many: bool) -> None:
    rng = np.random.default_rng(7)
    count = 20_000 if many else 15
    x = rng.normal([1.0, -2.0], [1.5, 0.8], size=(count, 2))
    x[:, 1] += 0.4 * x[:, 0]
    weights = np.full(count, 1 / count)
    proposal = refitted(x, weights, np.array([4.0, 10.0]), float(count))
    if many:
        np.testing.assert_allclose(proposal.centre, x.mean(axis=0))
        np.testing.assert_allclose(proposal.factor @ proposal.factor.T, np.cov(x.T), rtol=1e-3)
        np.testing.assert_allclose([proposal.below, proposal.above], 1.0, atol=0.05)
    else:  # too few to trust: between where they are and where the proposal was
        assert (np.abs(proposal.centre) < np.abs(x.mean(axis=0))).all()
        assert np.count_nonzero(proposal.factor - np.diag(np.diag(proposal.factor))) == 0
