"""Groups: moments against closed forms, draws against moments, no pooling against least squares."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from partialpool.errors import ModelError
from partialpool.inference.gaussian import GaussianMarginal, statistics
from partialpool.model import Model
from partialpool.posterior import groups as groups_module
from partialpool.posterior.fitting import fit_model
from partialpool.posterior.groups import EffectDraws, chosen_nodes, coefficient_levels
from partialpool.posterior.storage import load


def mixture_quantile(q, weights, means, sds):
    def excess(x):
        return float(weights @ norm.cdf(x, means, sds)) - q

    return brentq(excess, (means - 10 * sds).min(), (means + 10 * sds).max(), xtol=1e-12)


@pytest.mark.parametrize("kind", ["effect", "coefficient"])
def test_moments_of_a_balanced_model_are_those_of_theory(balanced, balanced_fit, kind):
    table = balanced_fit.groups("g", kind)
    means = balanced.effect_mean if kind == "effect" else balanced.coefficient_mean
    sds = balanced.effect_sd if kind == "effect" else balanced.coefficient_sd
    w = balanced.weights
    expected = w @ means
    variance = w @ (sds[:, None] ** 2 + (means - expected) ** 2)
    np.testing.assert_allclose(table["mean"], expected, atol=1e-9)
    np.testing.assert_allclose(table["sd"], np.sqrt(variance), rtol=1e-9)
    for column, q in (("q05", 0.05), ("q95", 0.95)):
        quantiles = [mixture_quantile(q, w, means[:, g], sds) for g in range(balanced.groups)]
        np.testing.assert_allclose(table[column], quantiles, atol=1e-5)


def test_shrinkage_and_no_pooling_of_a_balanced_model(balanced, balanced_fit):
    table = balanced_fit.groups("g")
    np.testing.assert_allclose(table["shrinkage"], balanced.weights @ balanced.shrinkage, rtol=1e-9)
    np.testing.assert_allclose(table["no_pooling"], balanced.means - balanced.means.mean(), atol=1e-9)
    np.testing.assert_allclose(balanced_fit.groups("g", "coefficient")["no_pooling"], balanced.means, atol=1e-9)
    assert table["n"].tolist() == [4] * 5
    assert table["group"].tolist() == list("abcde")
    assert table.columns.tolist() == ["group", "term", "n", "mean", "sd", "q05", "q95", "no_pooling", "shrinkage"]


@pytest.mark.parametrize("name", ["slopes", "nested", "crossed", "schools"])
@pytest.mark.parametrize("kind", ["effect", "coefficient"])
def test_draws_and_moments_agree(name, kind, request):
    """The covariance of coefficients and effects is in both: beta + u varies less than either alone would say."""
    fit = request.getfixturevalue(name)
    for factor in fit.model.design.factors:
        table = fit.groups(factor.name, kind)
        draws = fit.group_draws(factor.name)
        terms = list(dict.fromkeys(table["term"]))
        if kind == "coefficient":
            draws = draws + np.stack([fit.draws(term) for term in terms], axis=1)[:, None, :]
        error = np.abs(draws.mean(axis=0).ravel() - table["mean"]) / table["sd"]
        assert error.max() < 5 / np.sqrt(len(draws))
        assert np.abs(draws.std(axis=0).ravel() / table["sd"] - 1).max() < 0.06
        low = np.quantile(draws, 0.05, axis=0).ravel()
        assert (np.abs(low - table["q05"]) / table["sd"]).max() < 0.15


def test_draws_repeat_and_a_part_of_them_is_a_part_of_all(slopes):
    first, again = slopes.group_draws("Subject"), slopes.group_draws("Subject")
    assert np.array_equal(first, again)
    assert first.shape == (4000, 18, 2)
    some = slopes.group_draws("Subject", [330, "308"])
    assert np.array_equal(
        some, first[:, [slopes.model.design.factors[0].labels.tolist().index(k) for k in ("330", "308")]]
    )
    assert np.array_equal(slopes.draws("Subject[308,Days]"), some[:, 1, 1])


def test_groups_alone_are_drawn_as_with_the_others(slopes, monkeypatch):
    monkeypatch.setattr(groups_module, "STREAM_WIDTH", 8)
    positions = statistics(slopes.model).cross.structure.effects_of(0)
    picked = np.arange(0, 4000, 7)
    draws = EffectDraws(slopes, picked)
    alone = draws.of(positions[[2, 11]])
    assert draws._alone(positions[[2, 11]].ravel()) is not None
    np.testing.assert_allclose(alone, draws.of(positions)[:, [2, 11]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["slopes", "nested", "crossed"])
def test_no_pooling_is_least_squares_on_the_group_s_rows(name, request):
    """Against lstsq row by row, with everything else at its posterior mean."""
    fit = request.getfixturevalue(name)
    design = fit.model.design
    structure = statistics(fit.model).cross.structure
    u = groups_module.mean_effects(fit)
    beta = groups_module.mean_coefficients(fit)
    for position, factor in enumerate(design.factors):
        rest = design.y - design.V[:, design.x_columns] @ beta
        for group in design.groups:
            if group.factor != position:
                other = u[structure.effects_of(group.factor)][design.factors[group.factor].codes]
                rest = rest - (design.V[:, group.columns] * other).sum(axis=1)
        columns = next(group.columns for group in design.groups if group.factor == position)
        expected = [
            np.linalg.lstsq(design.V[factor.codes == g][:, columns], rest[factor.codes == g], rcond=None)[0]
            for g in range(len(factor.labels))
        ]
        np.testing.assert_allclose(fit.groups(factor.name)["no_pooling"], np.ravel(expected), atol=1e-7)


def test_no_pooling_is_missing_where_the_rows_do_not_determine_it(sleepstudy):
    data = sleepstudy[(sleepstudy.Subject != 308) | (sleepstudy.Days == 3)]
    fit = fit_model(Model.from_formula("Reaction ~ Days + (Days | Subject)", data), seed=1, draws=200, ess=50)
    table = fit.groups("Subject").set_index(["group", "term"])
    assert table.loc["308", "no_pooling"].isna().all()
    assert table.loc["309", "no_pooling"].notna().all()
    assert (table.loc["308", "shrinkage"] > table.loc["309", "shrinkage"]).all()


def test_moments_added_up_node_by_node_agree_with_the_mixture(slopes, monkeypatch):
    """What a million groups get: cumulants, and quantiles from them."""
    whole = groups_module.effect_summary(slopes, 0, "coefficient")
    monkeypatch.setattr(groups_module, "MOST_NUMBERS", 0)
    summed = groups_module.effect_summary(slopes, 0, "coefficient")
    np.testing.assert_allclose(summed.mean, whole.mean, atol=1e-8)
    np.testing.assert_allclose(summed.sd, whole.sd, rtol=1e-8)
    assert (np.abs(summed.q05 - whole.q05) / whole.sd).max() < 0.03
    assert (np.abs(summed.q95 - whole.q95) / whole.sd).max() < 0.03


def test_fewer_nodes_are_a_sample_of_all(slopes, monkeypatch):
    everything, weights = chosen_nodes(slopes)
    np.testing.assert_allclose(weights.sum(), 1)
    monkeypatch.setattr(groups_module, "seconds_per_node", lambda fit: 1.0)
    few, few_weights = chosen_nodes(slopes)
    assert len(few) <= groups_module.FEWEST_NODES < len(everything)
    np.testing.assert_allclose(few_weights.sum(), 1)
    whole, part = weights @ everything, few_weights @ few
    sd = np.sqrt(weights @ (everything - whole) ** 2)
    assert (np.abs(whole - part) < 0.6 * sd).all()


def test_effect_variances_contain_the_conditional_ones(slopes):
    """Var(u | theta) is at least Var(u | beta, theta): the coefficients are not known either."""
    marginal = GaussianMarginal(slopes.model)
    theta = slopes.result.theta[:3]
    assert (marginal.moments(theta).u_var >= groups_module._variances_given_coefficients(marginal, theta) - 1e-9).all()


def test_mistakes_are_told(slopes, nested):
    with pytest.raises(ModelError, match="Did you mean 'Subject'"):
        slopes.groups("Subjekt")
    with pytest.raises(ModelError, match="no group '999'"):
        slopes.group_draws("Subject", [999])
    with pytest.raises(ModelError, match="effect"):
        slopes.groups("Subject", kind="effects")
    with pytest.raises(ModelError, match="Say which grouping factor"):
        nested.groups()
    with pytest.raises(ModelError, match="list of labels"):
        slopes.group_draws("Subject", "308")
    with pytest.raises(ModelError, match="several effects"):
        slopes.draws("Subject[308]")


CELLS = "ab"


@pytest.fixture(scope="module")
def cells():
    """Groups in which two treatments, and a covariate, were observed."""
    rng = np.random.default_rng(11)
    g, f = np.repeat([f"g{k}" for k in range(8)], 12), np.tile(list("aab"), 32)
    x = rng.normal(2, 1, 96)
    level = {(k, c): rng.normal({"a": 5, "b": 9}[c], 1.5) for k in np.unique(g) for c in CELLS}
    y = np.array([level[pair] for pair in zip(g, f, strict=True)]) + 0.5 * x + rng.normal(0, 1, 96)
    return pd.DataFrame({"y": y, "x": x, "f": f, "g": g})


def fitted(formula, data):
    return fit_model(Model.from_formula(formula, data), seed=6, draws=400, ess=100, threads=1)


@pytest.mark.parametrize("common", ["f", "f + x", "0 + f", "f * x"])
def test_the_coefficient_of_a_cell_is_its_predicted_level(cells, common, tmp_path):
    """Coding by treatments against coding by cells: f[a] goes with the intercept, f[b] with its sum with f[b]."""
    fit = fitted(f"y ~ {common} + (0 + f | g)", cells)
    table = fit.groups("g", "coefficient")
    assert table["term"].tolist()[:2] == ["f[a]", "f[b]"]
    rows = pd.DataFrame({"g": table["group"], "f": [term[2] for term in table["term"]], "x": 0.0})
    prediction = fit.predict(rows)
    np.testing.assert_allclose(table["mean"], prediction.mean, atol=1e-8)
    assert (np.abs(prediction.sd / table["sd"] - 1) < 0.2).all()
    own = cells.groupby(["g", "f"])["y"].mean()
    if "x" not in common:
        np.testing.assert_allclose(table["no_pooling"], own.to_numpy(), atol=1e-8)
    fit.save(tmp_path / "fit.pp", data=False)
    pd.testing.assert_frame_equal(load(tmp_path / "fit.pp").groups("g", "coefficient"), table)


def test_cells_in_the_common_part_and_treatments_by_group(cells):
    fit = fitted("y ~ 0 + f + (f | g)", cells)
    table = fit.groups("g", "coefficient").pivot(index="group", columns="term", values="mean")
    for cell, level in (("a", table["Intercept"]), ("b", table["Intercept"] + table["f[b]"])):
        rows = pd.DataFrame({"g": table.index, "f": cell})
        np.testing.assert_allclose(level, fit.predict(rows).mean, atol=1e-8)


def test_an_effect_without_a_coefficient_is_alone(cells):
    fit = fitted("y ~ 1 + (0 + x | g)", cells)
    np.testing.assert_allclose(fit.groups("g", "coefficient")["mean"], fit.groups("g", "effect")["mean"])
    assert not coefficient_levels(fit, 0).any()
    shifted = fitted("y ~ 1 + (0 + x | g)", cells.assign(x=1e7 + cells.x))  # nearly constant, but not constant
    assert not coefficient_levels(shifted, 0).any()
