"""Group effects where the response is not Gaussian: against dense grids, whatever the engine."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

import partialpool as pp
from nongaussian import Crossed, Herds, Scales, by_hand
from partialpool.errors import ModelError
from partialpool.inference.conditional import LeafConditional
from partialpool.posterior import effects
from partialpool.posterior.effects import leaf_conditional


@pytest.fixture(scope="module")
def herds() -> Herds:
    return Herds()


@pytest.fixture(scope="module")
def crossed() -> Crossed:
    return Crossed()


@pytest.fixture(scope="module")
def scales() -> Scales:
    return Scales()


def grid_moments(herds):
    """Mean and sd of u at each node, (nodes, groups)."""
    mean = herds.density @ herds.grid
    return mean, np.sqrt(herds.density @ herds.grid**2 - mean**2)


# -- the leaf given all else ------------------------------------------------------------------------------------------


def test_moments_given_a_node_are_those_of_a_grid(herds):
    conditional = leaf_conditional(herds.fit())
    gamma = herds.fit().model.coefficients.from_public(herds.beta)
    mean, variance = conditional.moments(np.log(herds.sd)[:, None], gamma, np.empty((herds.nodes, 0)))
    expected, sd = grid_moments(herds)
    np.testing.assert_allclose(mean[:, :, 0], expected, atol=2e-4)
    np.testing.assert_allclose(np.sqrt(variance[:, :, 0]), sd, rtol=5e-4)


def test_draws_given_a_node_follow_the_density_even_of_a_group_without_events(herds):
    conditional = leaf_conditional(herds.fit())
    count = 60_000
    gamma = np.repeat(herds.fit().model.coefficients.from_public(herds.beta[:1]), count, axis=0)
    theta, root = np.full((count, 1), np.log(herds.sd[0])), np.empty((count, 0))
    drawn = conditional.draws(theta, gamma, root, np.arange(6), 3, np.arange(count))[:, :, 0]
    for g in range(6):
        cdf = np.cumsum(herds.density[0, g])
        ranks = np.sort(np.interp(drawn[:, g], herds.grid, cdf))
        distance = np.abs(ranks - (np.arange(count) + 0.5) / count).max()
        assert distance < 1.95 / np.sqrt(count), f"group {g}: Kolmogorov-Smirnov {distance:.4f}"  # p = 0.001


def test_draws_do_not_depend_on_company_or_threads(herds):
    fit = herds.fit()
    gamma = fit.model.coefficients.from_public(fit.result.draws_beta[:700])
    theta, root, numbers = fit.result.draws_theta[:700], np.empty((700, 0)), np.arange(700)
    conditional = leaf_conditional(fit)
    every = conditional.draws(theta, gamma, root, np.arange(6), 3, numbers)
    some = conditional.draws(theta[100:300], gamma[100:300], root[100:300], np.array([4, 1]), 3, numbers[100:300])
    np.testing.assert_array_equal(every[100:300][:, [4, 1]], some)
    alone = LeafConditional(fit.model, 31, threads=1)
    alone.density.start = conditional.density.start
    np.testing.assert_array_equal(every, alone.draws(theta, gamma, root, np.arange(6), 3, numbers))
    assert not np.array_equal(every, conditional.draws(theta, gamma, root, np.arange(6), 4, numbers))
    flat = every.reshape(700, -1)
    away = flat - flat.mean(axis=0)
    # groups are independent but for the nodes they share: numbers of neighbours must not repeat
    assert len(np.unique(away.ravel())) == away.size


def test_two_effects_a_group_on_two_predictors(scales):
    fit = scales.fit()
    conditional = leaf_conditional(fit)
    gamma = fit.model.coefficients.from_public(scales.beta)
    mean, variance = conditional.moments(np.log(scales.sd), gamma, np.empty((scales.nodes, 0)))
    count = 20_000
    repeat = np.zeros(count, dtype=int)
    drawn = conditional.draws(
        np.log(scales.sd)[repeat], gamma[repeat], np.empty((count, 0)), np.arange(5), 1, np.arange(count)
    )
    for g in range(5):
        expected, covariance = scales.moments(0, g)
        sd = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(mean[0, g], expected, atol=0.01 * sd.min())
        np.testing.assert_allclose(np.sqrt(variance[0, g]), sd, rtol=0.01)
        np.testing.assert_allclose(drawn[:, g].mean(axis=0), expected, atol=4 * sd.max() / np.sqrt(count))
        np.testing.assert_allclose(np.cov(drawn[:, g].T), covariance, atol=0.04 * sd.max() ** 2)


# -- groups() ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["effect", "coefficient"])
def test_the_table_has_the_moments_over_nodes(herds, kind):
    table = herds.fit().groups("g", kind)
    mean, sd = grid_moments(herds)
    if kind == "coefficient":
        mean = mean + herds.beta[:, :1]
    expected = herds.weights @ mean
    variance = herds.weights @ (sd**2 + (mean - expected) ** 2)
    np.testing.assert_allclose(table["mean"], expected, atol=2e-4)
    np.testing.assert_allclose(table["sd"], np.sqrt(variance), rtol=5e-4)
    for column, q in (("q05", 0.05), ("q95", 0.95)):
        for g in range(6):
            shift = herds.beta[:, 0] if kind == "coefficient" else np.zeros(herds.nodes)
            at = float(table[column][g])
            below = sum(
                w * np.interp(at - s, herds.grid, np.cumsum(d))
                for w, s, d in zip(herds.weights, shift, herds.density[:, g], strict=True)
            )
            assert below == pytest.approx(q, abs=4 * np.sqrt(q * (1 - q) / herds.draws))


def test_shrinkage_and_no_pooling(herds):
    table = herds.fit().groups("g")
    sd = grid_moments(herds)[1]
    np.testing.assert_allclose(table["shrinkage"], herds.weights @ (sd / herds.sd[:, None]) ** 2, rtol=2e-3)
    fixed = herds.weights @ herds.beta @ np.stack([np.ones(24), herds.x])
    for g in range(6):
        own = herds.group == g

        def loss(u, own=own):
            eta = fixed[own] + u
            return -(herds.y[own] * eta - herds.trials[own] * np.logaddexp(0, eta)).sum()

        best = minimize_scalar(loss, bounds=(-8, 8), method="bounded", options={"xatol": 1e-9}).x
        if g == 0:
            assert np.isnan(table["no_pooling"][g])  # no events: the estimate is -inf
        else:
            assert table["no_pooling"][g] == pytest.approx(best, abs=1e-5)
    np.testing.assert_allclose(
        herds.fit().groups("g", "coefficient")["no_pooling"][1:],
        table["no_pooling"][1:] + herds.weights @ herds.beta[:, 0],
    )


def test_draws_are_joint_with_those_of_the_parameters(herds):
    fit = herds.fit()
    drawn = fit.group_draws("g")[:, :, 0]
    conditional, spread = grid_moments(herds)
    node = np.abs(fit.result.draws_theta - np.log(herds.sd)).argmin(axis=1)
    for k in range(herds.nodes):
        own = drawn[node == k]
        np.testing.assert_allclose(own.mean(axis=0), conditional[k], atol=4.5 * (spread[k] / np.sqrt(len(own))).max())
    np.testing.assert_array_equal(fit.group_draws("g", ["h3", "h0"])[:, :, 0], drawn[:, [3, 0]])
    np.testing.assert_array_equal(fit.draws("g[h2]"), drawn[:, 2])
    assert fit.probability("g[h2] > g[h0]") == (drawn[:, 2] > drawn[:, 0]).mean()


def test_few_draws_of_many_groups_are_drawn_alone(herds, monkeypatch):
    whole = herds.fit().group_draws("g")
    monkeypatch.setattr(effects, "MOST_FOR_QUANTILES", 10)
    fresh = Herds().fit()
    np.testing.assert_array_equal(fresh.group_draws("g", ["h5"]), whole[:, 5:])
    table, wanted = fresh.groups("g"), herds.fit().groups("g")  # quantiles now from mixtures of normals
    np.testing.assert_allclose(table["mean"], wanted["mean"], rtol=1e-12)
    np.testing.assert_allclose(table["q05"], wanted["q05"], atol=0.3 * wanted["sd"].max())


def test_some_of_the_nodes_tell_what_all_would(monkeypatch):
    """The regression on what is known at every node makes up for the nodes left out."""
    rng = np.random.default_rng(41)
    data = Herds().data
    model = pp.Model.from_formula("y | trials(n) ~ x + (1 | g)", data, family="binomial")
    count = 3000
    sd = np.exp(rng.normal(0.3, 0.2, count))
    beta = np.column_stack([rng.normal(-0.5, 0.5, count), rng.normal(0.3, 0.1, count)])
    weights = np.full(count, 1 / count)
    whole = by_hand(model, np.log(sd)[:, None], beta, weights, count).groups("g")
    monkeypatch.setattr(effects, "BUDGET", 0.0)
    part = by_hand(model, np.log(sd)[:, None], beta, weights, count)
    found = part.groups("g")
    assert effects.leaf_summary(part).nodes <= 64
    # 64 nodes alone would leave an error of sd(E[u | node]) / 8
    np.testing.assert_allclose(found["mean"], whole["mean"], atol=0.02 * whole["sd"].min())
    np.testing.assert_allclose(found["sd"], whole["sd"], rtol=0.03)


# -- crossed factors: the root ----------------------------------------------------------------------------------------


def test_effects_of_the_root_are_those_of_the_nodes(crossed):
    fit = crossed.fit()
    table = fit.groups("b")
    np.testing.assert_allclose(table["mean"], crossed.root.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(table["sd"], crossed.root.std(axis=0), rtol=1e-9)
    shifted = fit.groups("b", "coefficient")
    np.testing.assert_allclose(shifted["sd"], (crossed.root + crossed.beta).std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(fit.group_draws("b")[:, :, 0], fit.result.draws_root)
    with pytest.raises(ModelError, match="Say which grouping factor"):
        fit.groups()


def test_the_leaf_is_given_the_root_of_each_node(crossed):
    """A group's conditional mean by a grid, the root's effects in the predictor."""
    fit = crossed.fit()
    grid = np.linspace(-4, 4, 8001)
    expected, variance, shrinkage = np.zeros(15), np.zeros(15), np.zeros(15)
    means = np.empty((crossed.nodes, 15))
    for k in range(crossed.nodes):
        for g in range(15):
            own = crossed.a == g
            eta = crossed.beta[k, 0] + crossed.root[k][crossed.b[own]][:, None] + grid
            logs = (crossed.y[own][:, None] * eta - np.exp(eta)).sum(axis=0) - 0.5 * (grid / crossed.sd[k, 0]) ** 2
            weight = np.exp(logs - logs.max())
            weight /= weight.sum()
            means[k, g] = weight @ grid
            own_variance = weight @ (grid - means[k, g]) ** 2
            variance[g] += own_variance / crossed.nodes
            shrinkage[g] += own_variance / crossed.sd[k, 0] ** 2 / crossed.nodes
    expected = means.mean(axis=0)
    table = fit.groups("a")
    np.testing.assert_allclose(table["mean"], expected, atol=1e-4)
    np.testing.assert_allclose(table["sd"], np.sqrt(variance + means.var(axis=0)), rtol=1e-3)
    np.testing.assert_allclose(table["shrinkage"], shrinkage, rtol=2e-3)


def test_shrinkage_of_the_root_is_that_of_the_joint_hessian(crossed):
    """Laplace over all effects at once, the coefficients fixed: leaf and root in one dense matrix."""
    fit = crossed.fit()
    ours = fit.groups("b")["shrinkage"].to_numpy()
    expected = np.zeros(4)
    z = np.zeros((60, 19))
    z[np.arange(60), crossed.a] = 1
    z[np.arange(60), 15 + crossed.b] = 1
    # the same sixteen draws that the fit takes
    picked = np.unique(np.linspace(0, len(fit.result.draws_theta) - 1, effects.ROOT_NODES).astype(int))
    for theta, beta, root in zip(
        fit.result.draws_theta[picked], fit.result.draws_beta[picked], fit.result.draws_root[picked], strict=True
    ):
        precision = np.exp(-2 * np.repeat(theta, [15, 4]))
        u = np.zeros(15)
        for _ in range(50):  # the leaf's mode given the root
            mu = np.exp(beta[0] + u[crossed.a] + root[crossed.b])
            u += (z[:, :15].T @ (crossed.y - mu) - u * precision[:15]) / (z[:, :15].T @ mu + precision[:15])
        mu = np.exp(beta[0] + u[crossed.a] + root[crossed.b])
        covariance = np.linalg.inv(z.T @ (z * mu[:, None]) + np.diag(precision))
        expected += np.diag(covariance)[15:] * precision[15:] / len(picked)
    np.testing.assert_allclose(ours, expected, rtol=0.05)


# -- a formula of sigma -----------------------------------------------------------------------------------------------


def test_effects_on_sigma_combine_with_its_own_coefficients(scales):
    fit = scales.fit()
    effect, own = fit.groups("g"), fit.groups("g", "coefficient")
    assert list(effect["term"][:2]) == ["Intercept", "sigma.Intercept"]
    for term, column in (("Intercept", 0), ("sigma.Intercept", 2)):
        rows = effect["term"] == term
        difference = own.loc[rows, "mean"] - effect.loc[rows, "mean"]
        np.testing.assert_allclose(difference, scales.beta[:, column].mean(), atol=1e-9)
    mean = np.mean([[scales.moments(k, g)[0] for g in range(5)] for k in range(scales.nodes)], axis=0)
    np.testing.assert_allclose(effect["mean"], mean.ravel(), atol=5e-3)
    fixed = scales.beta.mean(axis=0)
    first = scales.group == 0
    # both effects together are at the maximum of the group's likelihood: the score is 0
    u, v = effect["no_pooling"][:2]
    sigma = np.exp(fixed[2] + fixed[3] * scales.x[first] + v)
    z = (scales.y[first] - fixed[0] - fixed[1] * scales.x[first] - u) / sigma
    assert (z / sigma).sum() == pytest.approx(0, abs=1e-4)
    assert (z * z - 1).sum() == pytest.approx(0, abs=1e-4)


# -- more than three effects a group ----------------------------------------------------------------------------------


def test_four_effects_a_group_by_quasi_random_nodes():
    rng = np.random.default_rng(51)
    group = np.repeat(np.arange(6), 15)
    data = pd.DataFrame(rng.normal(size=(90, 3)), columns=list("xzw")).assign(g=[f"g{k}" for k in group])
    data["y"] = rng.poisson(np.exp(1 + rng.normal(0, 0.4, 6)[group] + rng.normal(0, 0.3, 6)[group] * data["x"]))
    model = pp.Model.from_formula("y ~ x + z + w + (x + z + w || g)", data, family="poisson")
    count = 20_000
    fit = by_hand(model, np.full((1, 4), np.log(0.4)), np.array([[1.0, 0, 0, 0]]), np.ones(1), count)
    drawn, table = fit.group_draws("g").reshape(count, -1), fit.groups("g")
    sd = table["sd"].to_numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), table["mean"], atol=0.035 * sd.max())
    np.testing.assert_allclose(drawn.std(axis=0), sd, rtol=0.03)
