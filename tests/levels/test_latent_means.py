"""Latent group means: the likelihood against dense algebra, the posterior against quadrature."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

import partialpool as pp
from partialpool.levels import latent_means as latent
from partialpool.levels.latent_means import Gauss, LatentPriors
from partialpool.levels.least_squares import averages_of

PRIORS = LatentPriors(
    Gauss(0, 3), Gauss(0.5, 4), Gauss(1, 5), 0.0, Gauss(0, 6),
    pp.HalfStudentT(3, 2), pp.HalfStudentT(3, 2), pp.HalfStudentT(3, 3), pp.HalfStudentT(3, 3),
)  # fmt: skip


def made(sizes, seed=1, tau_x=0.7, sigma_x=1.0, contextual=1.5):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    mean = 3 + tau_x * rng.standard_normal(len(sizes))
    x = mean[codes] + sigma_x * rng.standard_normal(codes.size)
    y = (
        2
        - x
        + contextual * mean[codes]
        + 0.5 * rng.standard_normal(len(sizes))[codes]
        + rng.standard_normal(codes.size)
    )
    return averages_of(x, y, codes)


def dense(groups, psi, g):
    """log density of all x and y, each less its grand mean."""
    tau_x, sigma_x, tau, sigma = np.exp(2 * psi[:4])
    m, a, b = g
    c = psi[4]
    same, own = groups.codes[:, None] == groups.codes, np.eye(len(groups.codes))
    xx = tau_x * same + sigma_x * own
    xy = b * xx + c * tau_x * same
    yy = b * b * xx + (2 * b * c + c * c) * tau_x * same + tau * same + sigma * own
    mean = np.repeat([m, a + (b + c) * m], len(own))
    values = np.concatenate([groups.x - groups.centre[0], groups.y - groups.centre[1]])
    return multivariate_normal(mean, np.block([[xx, xy], [xy.T, yy]])).logpdf(values)


@pytest.mark.parametrize("sizes", [[2, 3, 2, 5, 1], [4, 4, 4]])
def test_likelihood_is_that_of_a_dense_normal(sizes):
    groups, rng = made(sizes), np.random.default_rng(3)
    psi = rng.normal(size=(6, 5)) * 0.5
    g = rng.normal(size=3)
    found = latent.likelihood(latent.sums_of(groups), psi).at(g)
    np.testing.assert_allclose(found, [dense(groups, row, g) for row in psi], rtol=1e-10)


def test_units_only_add_a_constant():
    groups = made([2, 3, 4])
    psi, g, units = np.array([[0.1, -0.2, 0.3, 0.0, 0.7]]), np.array([0.2, -0.1, 0.5]), (2.0, 5.0)
    scaled = psi.copy()
    scaled[:, :4] -= np.log([2, 2, 5, 5])
    scaled[:, 4] *= 2 / 5
    one = latent.likelihood(latent.sums_of(groups), psi).at(g)
    other = latent.likelihood(latent.sums_of(groups, units), scaled).at(g / [2, 5, 5 / 2])
    np.testing.assert_allclose(other - one, 9 * np.log(10), rtol=1e-10)


def test_prior_is_that_which_was_asked_for():
    centre, units = (3.0, 2.0), (1.5, 2.5)
    psi, g = np.array([[0.1, -0.2, 0.3, 0.0, 0.7]]), np.array([0.2, -0.1, 0.5])
    sds = np.exp(psi[0, :4]) * [1.5, 1.5, 2.5, 2.5]
    per = units[1] / units[0]
    within, contextual = g[2] * per, psi[0, 4] * per
    mean_x = centre[0] + units[0] * g[0]
    intercept = centre[1] + units[1] * g[1] - (within + contextual) * centre[0]  # at x = 0
    wanted = sum(
        float(prior.log_density(sd)) + np.log(sd)
        for prior, sd in zip((PRIORS.tau_x, PRIORS.sigma_x, PRIORS.tau, PRIORS.sigma), sds, strict=True)
    )
    wanted += norm.logpdf(within, 0, 3) + np.log(per) + norm.logpdf(within + contextual, 0.5, 4) + np.log(per)
    wanted += norm.logpdf(intercept, 1, 5) + np.log(units[1]) + norm.logpdf(mean_x, 0, 6) + np.log(units[0])
    assert latent.prior(PRIORS, psi, centre, units).at(g)[0] == pytest.approx(wanted, rel=1e-12)


def test_integral_over_the_normal_unknowns():
    """density(g) = integral x normal density of g, wherever g is."""
    groups = made([2, 3, 4, 2])
    quadratic = latent.joint(latent.sums_of(groups), PRIORS, groups.centre, (1.0, 1.0))(
        np.array([[0.1] * 5, [-0.3] * 5])
    )
    logs, mean, covariance = quadratic.integrated()
    g = np.array([0.3, 0.1, -0.4])
    conditional = [multivariate_normal(m, c).logpdf(g) for m, c in zip(mean, covariance, strict=True)]
    np.testing.assert_allclose(logs, quadratic.at(g) - conditional, rtol=1e-10)


def test_posterior_is_that_of_random_walk_metropolis():
    """Many chains on psi, whose density the tests above tie to the dense one."""
    groups = made([3, 4, 2, 5, 3, 4, 2, 3, 5, 4, 6, 3], seed=5)
    density = latent.joint(latent.sums_of(groups), PRIORS, groups.centre, (1.0, 1.0))
    rng = np.random.default_rng(1)
    chains, steps = 200, 3000
    at = np.zeros((chains, 5)) + 0.1 * rng.standard_normal((chains, 5))
    now = density(at).integrated()[0]
    kept = []
    for step in range(steps):
        move = rng.standard_normal((chains, 5)) * [0.25, 0.12, 0.4, 0.12, 0.5] * rng.choice([0.5, 1, 2])
        trial = at + move
        value = density(trial).integrated()[0]
        accepted = np.log(rng.random(chains)) < value - now
        at, now = np.where(accepted[:, None], trial, at), np.where(accepted, value, now)
        if step >= 500 and step % 10 == 0:
            kept.append(at.copy())
    values = np.concatenate(kept)[:, 4]
    found = latent.latent_means(groups, PRIORS, seed=1)
    assert found.trusted
    # about 200 x 60 effective draws
    assert found.contextual.mean == pytest.approx(values.mean(), abs=0.05 * values.std())
    assert found.contextual.sd == pytest.approx(values.std(), rel=0.06)
    np.testing.assert_allclose(
        [found.contextual.q05, found.contextual.q95], np.quantile(values, [0.05, 0.95]), atol=0.1 * values.std()
    )


def test_many_rows_a_group_need_no_correction():
    groups = made([400] * 12, seed=2)
    found = latent.latent_means(groups, PRIORS, seed=0)
    assert found.reliability.q05 > 0.98
    assert found.contextual.mean == pytest.approx(1.5, abs=4 * found.contextual.sd)


def test_same_seed_same_answer_and_other_units_the_same_slopes():
    groups = made([3, 4, 5] * 5, seed=4)
    found = latent.latent_means(groups, PRIORS, seed=3)
    assert found == latent.latent_means(groups, PRIORS, seed=3)
    other = averages_of(1000 * groups.x, groups.y, groups.codes)
    scaled = LatentPriors(
        Gauss(0, 0.003), Gauss(0.0005, 0.004), Gauss(1, 5), 0.0, Gauss(0, 6000),
        pp.HalfStudentT(3, 2000), pp.HalfStudentT(3, 2000), PRIORS.tau, PRIORS.sigma,
    )  # fmt: skip
    again = latent.latent_means(other, scaled, seed=3)
    assert again.contextual.mean * 1000 == pytest.approx(found.contextual.mean, rel=1e-6)


def test_flat_priors_of_all_but_the_slope_between():
    groups = made([3, 4, 5] * 8, seed=6)
    flat = Gauss(0, np.inf)
    sds = [pp.HalfStudentT(3, 3)] * 4
    found = latent.latent_means(groups, LatentPriors(flat, Gauss(0, 10), flat, 0.0, flat, *sds), seed=1)
    assert found.within.mean == pytest.approx(-1, abs=4 * found.within.sd)
