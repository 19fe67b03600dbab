"""Nothing may depend on the units in which estimates or covariates are measured, nor hide at the ends of a lattice."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import partialpool as pp
from partialpool.pooling.lattice import QUICK, explore, peak_of

EVENTS, TRIALS = [2, 5, 1, 8, 4, 9], [10, 12, 9, 14, 20, 15]
X = np.array([-1, 0, 0.5, 2, 1, 3])
Y, SE = np.array([1.0, 2, 4, -1, 3]), np.array([1, 1, 2, 0.7, 1.5])


@pytest.mark.parametrize("method", ["bayes", "empirical_bayes"])
@pytest.mark.parametrize("scale", [1e-3, 1e2, 1e5])
def test_units_of_a_covariate(scale: float, method: str) -> None:
    """The default prior of a slope scales by the sd of its covariate, so that the answer is the same."""
    one, other = (
        pp.pool(EVENTS, trials=TRIALS, covariates={"x": X * c}, method=method) for c in (1.0, scale)
    )  # fmt: skip
    assert other.log_marginal_likelihood == pytest.approx(one.log_marginal_likelihood, abs=1e-6)
    for name in ("mean", "sd", "q05"):
        own = getattr(one.population["x"], name)
        assert getattr(other.population["x"], name) * scale == pytest.approx(own, rel=1e-5)
    np.testing.assert_allclose(other.posterior.moments(), one.posterior.moments(), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-5, 1e3, 1e6])
def test_units_of_estimates(scale: float) -> None:
    one, other = (pp.pool(Y * c, se=SE * c, population="student_t") for c in (1.0, scale))
    assert other.log_marginal_likelihood + 5 * np.log(scale) == pytest.approx(one.log_marginal_likelihood, abs=1e-6)
    np.testing.assert_allclose(np.array(other.posterior.moments()) / scale, one.posterior.moments(), rtol=1e-6)


def test_units_of_estimates_under_a_prior_that_is_not_normal() -> None:
    one, other = (pp.pool(Y * c, se=SE * c, priors={"mean": pp.StudentT(3, 0, 5 * c)}) for c in (1.0, 1e4))
    assert other.log_marginal_likelihood + 5 * np.log(1e4) == pytest.approx(one.log_marginal_likelihood, abs=1e-3)
    np.testing.assert_allclose(np.array(other.posterior.moments()) / 1e4, one.posterior.moments(), rtol=1e-3)


def test_quantiles_reach_the_ends_of_a_coarse_lattice() -> None:
    """Three independent dimensions, one of them the log of a Gamma(2, 0.1): every quantile is known."""

    def log_density(x):
        heavy = stats.gamma.logpdf(np.exp(x[:, 2]), 2, scale=10) + x[:, 2]
        return heavy - 0.5 * x[:, 0] ** 2 - 0.5 * x[:, 1] ** 2

    lattice = explore(log_density, peak_of(log_density, [0.1, 0.1, 3.0], np.ones(3)), care=QUICK)
    levels = np.array([0.01, 0.05, 0.5, 0.95, 0.99])
    found = np.exp(lattice.quantiles(lambda x: x[:, 2], levels))
    np.testing.assert_allclose(found, stats.gamma.ppf(levels, 2, scale=10), rtol=2e-3)
    found = lattice.quantiles(lambda x: x[:, 0], levels)
    np.testing.assert_allclose(found, stats.norm.ppf(levels), atol=2e-3)


def test_a_null_that_is_learnt_is_not_zero() -> None:
    rng = np.random.default_rng(1)
    y = np.concatenate([rng.normal(10, 0.5, 12), [14.0, 6.0, 15.0]])
    pooled = pp.pool(y, se=0.5, population="point_normal", priors={"mean": pp.Normal(10, 5)})
    assert pooled.null is None
    assert sorted(pooled.discoveries()["unit"]) == [12, 13, 14]


def test_plug_in_intervals_stand_alone_where_full_bayes_is_refused() -> None:
    flat = {"sd": pp.Flat(), "mean": pp.Flat()}
    table = pp.pool([1, 2], se=[1, 1], method="empirical_bayes", priors=flat).table
    assert "bayes_q05" not in table


def test_a_new_unit_at_its_covariates() -> None:
    pooled = pp.pool(EVENTS, trials=TRIALS, covariates={"x": X})
    at = [pooled.predict("new", trials=100, covariates={"x": [value]})["mean"][0] for value in (-1.0, X.mean(), 3.0)]
    assert at[0] < at[1] < at[2]
    assert at[1] == pytest.approx(pooled.predict("new", trials=100)["mean"][0])
