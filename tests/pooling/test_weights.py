"""Populations of estimated weights: each is at least as likely as what it contains, and certified."""

import numpy as np
import pytest
from scipy import optimize, stats

import partialpool as pp
from partialpool.pooling.units import read_units
from partialpool.pooling.weights import fit_weights, null_penalty, spread_grid


@pytest.fixture(scope="module")
def genes():
    rng = np.random.default_rng(12)
    theta = np.where(rng.random(600) < 0.7, 0.0, rng.normal(0, 3, 600))
    se = rng.uniform(0.5, 1.5, 600)
    return theta + se * rng.standard_normal(600), se


def test_a_scale_mixture_is_more_likely_than_any_single_normal(genes):
    y, se = genes
    pooled = pp.pool(y, se=se, population="scale_mixture")
    best = optimize.minimize_scalar(lambda s: -stats.norm(0, np.hypot(np.exp(s), se)).logpdf(y).sum(), bounds=(-4, 4))
    assert pooled.log_marginal_likelihood > -best.fun
    # and than a point and a normal, within what a grid of ratio sqrt(2) can lose: less than 0.01 a unit
    both = pp.pool(y, se=se, population="point_normal", method="empirical_bayes")
    assert pooled.log_marginal_likelihood > both.log_marginal_likelihood - 0.1
    assert pooled.accuracy.error < 1e-6


def test_likelihoods_are_ordered_by_what_contains_what(genes):
    y, se = genes
    value = {
        name: pp.pool(y, se=se, population=name).log_marginal_likelihood
        for name in ("npmle", "unimodal", "scale_mixture")
    }
    null = stats.norm(0, se).logpdf(y).sum()
    assert value["npmle"] >= value["unimodal"] - 1e-6
    assert value["npmle"] >= value["scale_mixture"] - 1e-6
    # uniforms make any symmetric unimodal distribution, normals among them; the grid of widths costs little
    assert value["unimodal"] >= value["scale_mixture"] - 0.5
    assert value["scale_mixture"] > null
    normal = pp.pool(y, se=se, method="empirical_bayes").log_marginal_likelihood
    assert value["npmle"] >= normal


@pytest.mark.parametrize("kind", ["scale_mixture", "unimodal"])
def test_the_optimum_fulfils_its_conditions(kind, genes):
    y, se = genes
    found = fit_weights(read_units(y, se=se), kind, 0.0)
    c = found.shape.components
    assert found.log_likelihood == pytest.approx(found.shape.log_marginal(y, se).sum(), rel=1e-10)
    # the conditions of Karush, Kuhn and Tucker with pseudo-nulls of weight n0 on the point: no component of the grid
    # would make the penalised likelihood higher
    mixture = found.shape.log_marginal(y, se)
    pseudo = null_penalty(2, y.size)[0] / y.size
    for spread in spread_grid(read_units(y, se=se), 0.0):
        half = 3**0.5 * spread
        if kind == "scale_mixture" or spread == 0:
            density = stats.norm(0, np.hypot(spread, se)).pdf(y)
        else:
            density = (stats.norm.cdf((y + half) / se) - stats.norm.cdf((y - half) / se)) / (2 * half)
        slope = (density / np.exp(mixture)).mean()
        if spread == 0:
            assert slope + pseudo / found.parameters["null_share"] == pytest.approx(1 + pseudo, abs=1e-5)
        else:
            assert slope <= 1 + pseudo + 1e-5
    assert c.weight.sum() == pytest.approx(1.0, rel=1e-12)


def test_shares_and_posterior_of_a_scale_mixture(genes):
    y, se = genes
    pooled = pp.pool(y, se=se, population="scale_mixture")
    c = pooled.population.shape.components
    logs = stats.norm.logpdf(y[:, None], 0, np.hypot(c.spread, se[:, None]))
    share = c.weight * np.exp(logs)
    share /= share.sum(axis=1, keepdims=True)
    keep = c.spread**2 / (c.spread**2 + se[:, None] ** 2)
    np.testing.assert_allclose(pooled.table["mean"], (share * keep).sum(axis=1) * y, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(pooled.posterior.atom(0.0), share[:, c.spread == 0].sum(axis=1), rtol=1e-8, atol=1e-14)
    assert pooled.null == 0.0


@pytest.mark.parametrize("kind", ["scale_mixture", "unimodal"])
def test_a_mode_that_is_estimated(kind):
    rng = np.random.default_rng(2)
    y = 40 + rng.normal(0, 2, 300) + rng.standard_normal(300)
    free = pp.pool(y, se=1.0, population=kind, priors={"mean": "estimate"})
    assert free.population["mean"].mean == pytest.approx(40, abs=0.6)
    given = pp.pool(y, se=1.0, population=kind)
    assert free.log_marginal_likelihood > given.log_marginal_likelihood
    assert any("one side" in note for note in given.accuracy.notes)
    known = pp.pool(y, se=1.0, population=kind, priors={"mean": 40.0})
    assert known.population["mean"].mean == 40.0
    assert known.null == 40.0


@pytest.mark.parametrize("family", ["binomial", "poisson"])
@pytest.mark.parametrize("kind", ["scale_mixture", "unimodal", "npmle"])
def test_counts(family, kind):
    rng = np.random.default_rng(7)
    size = rng.integers(5, 60, 80)
    truth = rng.beta(3, 12, 80) if family == "binomial" else rng.gamma(3, 0.3, 80)
    y = rng.binomial(size, truth) if family == "binomial" else rng.poisson(size * truth)
    pooled = pp.pool(y, **{"trials" if family == "binomial" else "exposure": size}, population=kind)
    table = pooled.table
    raw = y / size
    assert ((table["mean"] - truth) ** 2).sum() < ((raw - truth) ** 2).sum()
    assert pooled.accuracy.trusted
    law = (
        stats.binom(size, y.sum() / size.sum()) if family == "binomial" else stats.poisson(size * y.sum() / size.sum())
    )
    assert pooled.log_marginal_likelihood > law.logpmf(y).sum()
    assert (table["q05"] <= table["q95"]).all()
    if kind != "npmle":  # finitely many places: the mean may lie just beyond a quantile
        assert (table["q05"] <= table["mean"]).all()
        assert (table["mean"] <= table["q95"]).all()


def test_npmle_of_two_groups_finds_them():
    rng = np.random.default_rng(9)
    y = np.concatenate([rng.normal(-4, 0.3, 300), rng.normal(5, 0.3, 100)])
    pooled = pp.pool(y, se=0.3, population="npmle")
    places, masses = pooled.population.atoms
    assert masses[places < 0].sum() == pytest.approx(0.75, abs=1e-6)
    assert abs(pooled.population.mean - y.mean()) < 1e-3  # the first moment of data without noise of mean
    assert pooled.accuracy.error <= 1e-6


@pytest.mark.parametrize("kind", ["scale_mixture", "unimodal", "npmle"])
def test_identical_units_and_two_units(kind):
    same = pp.pool([1.0] * 6, se=0.5, population=kind)
    assert np.isfinite(same.table["mean"]).all()
    assert np.ptp(same.table["mean"]) < 1e-9
    two = pp.pool([1.0, -1.0], se=1.0, population=kind)
    np.testing.assert_allclose(two.table["mean"], 0.0, atol=1e-6)  # no more spread than noise
