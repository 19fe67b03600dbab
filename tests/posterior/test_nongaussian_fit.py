"""Everything else that a fit does where the response is not Gaussian: one fit of the engine, and some by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, poisson

import partialpool as pp
from nongaussian import Crossed, Herds, Scales, by_hand
from partialpool.errors import ModelError

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def cbpp() -> pp.Posterior:
    data = pd.read_csv(DATA / "cbpp.csv", dtype={"herd": str, "period": str})
    return pp.fit("incidence | trials(size) ~ period + (1 | herd)", data, family="binomial", seed=1, threads=2)


@pytest.fixture(scope="module")
def herds() -> pp.Posterior:
    return Herds().fit()


def test_draws_and_table_agree(cbpp):
    drawn, table = cbpp.group_draws("herd")[:, :, 0], cbpp.groups("herd")
    errors = table["sd"].to_numpy() / np.sqrt(min(cbpp.accuracy.ess.values()))
    assert (np.abs(drawn.mean(axis=0) - table["mean"]) < 4 * errors).all()
    np.testing.assert_allclose(drawn.std(axis=0), table["sd"], rtol=0.08)
    assert table["shrinkage"].between(0.05, 0.95).all()
    assert table["n"].sum() == 56


def test_the_same_seed_gives_the_same_numbers_on_any_threads(cbpp):
    again = pp.Posterior(cbpp.model, cbpp.result)
    one = by_threads(cbpp, 1)
    for fit in (again, one):
        pd.testing.assert_frame_equal(fit.groups(), cbpp.groups(), check_exact=True)
        np.testing.assert_array_equal(fit.predict(kind="response").draws, cbpp.predict(kind="response").draws)


def by_threads(fit, threads):
    from dataclasses import replace

    result = replace(fit.result, settings=replace(fit.result.settings, threads=threads))
    return pp.Posterior(fit.model, result)


def test_the_reference_engine_agrees(cbpp):
    found = cbpp.verify()
    assert found.agrees, found.verdict
    assert found.groups["largest_z"].max() < 4
    reference = found.reference
    ours, theirs = cbpp.groups(), reference.groups()
    np.testing.assert_allclose(ours["shrinkage"], theirs["shrinkage"], atol=0.05)
    np.testing.assert_allclose(ours["no_pooling"], theirs["no_pooling"], atol=0.05)
    np.testing.assert_allclose(cbpp.predict().mean, reference.predict().mean, atol=0.012)
    assert reference.to_arviz()["posterior"].sizes["chain"] >= 2


# -- variance ----------------------------------------------------------------------------------------------------------


def test_variance_components_on_the_scale_of_the_link(cbpp):
    table = cbpp.variance_components()
    assert table.loc["residual", "variance"] == pytest.approx(np.pi**2 / 3)
    assert table.attrs["scale"] == "linear predictor (logit link)"
    sd = cbpp.draws("sd(Intercept|herd)")
    share = sd**2 / (sd**2 + np.pi**2 / 3)
    assert table.loc["herd", "share"] == pytest.approx(share.mean(), abs=0.01)
    assert cbpp.icc().loc["herd", "mean"] == pytest.approx(share.mean(), abs=0.01)


def test_variance_components_without_a_residual():
    fit = Crossed().fit()
    table = fit.variance_components()
    assert list(table.index) == ["a", "b"]
    assert table["share"].sum() == pytest.approx(1)
    with pytest.raises(ModelError, match="no single one"):
        fit.icc()
    distributional = Scales().fit()
    assert list(distributional.variance_components().index) == ["g"]  # the term on sigma is on another scale
    with pytest.raises(ModelError, match="no single one"):
        distributional.icc()


def test_lognormal_has_a_residual_variance():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"y": np.exp(rng.normal(size=20)), "g": np.repeat(list("abcd"), 5)})
    model = pp.Model.from_formula("y ~ 1 + (1 | g)", data, family="lognormal")
    fit = by_hand(model, np.log([[1.0, 2.0]]), np.zeros((1, 1)), np.ones(1), 100)
    assert fit.icc().loc["g", "mean"] == pytest.approx(0.2)


# -- ArviZ, files, words, figures --------------------------------------------------------------------------------------


def test_arviz_has_every_group(cbpp):
    tree = cbpp.to_arviz()
    design = cbpp.model.design
    np.testing.assert_array_equal(tree["constant_data"]["trials"], design.trials)
    np.testing.assert_array_equal(tree["observed_data"]["incidence"], design.y)
    chance = cbpp.predict().draws
    ours = tree["log_likelihood"]["incidence"].to_numpy()[0]
    np.testing.assert_allclose(ours, binom.logpmf(design.y, design.trials, chance), rtol=1e-8)
    predicted = tree["posterior_predictive"]["incidence"].to_numpy()[0]
    np.testing.assert_array_equal(predicted, cbpp.predict(kind="response").draws)
    assert tree["posterior"]["Intercept|herd"].sizes == {"chain": 1, "draw": 4000, "herd": 15}
    assert tree.attrs["family"] == "binomial (logit link)"


@pytest.mark.parametrize("make", [Herds, Crossed, Scales])
def test_a_file_brings_back_the_fit(make, tmp_path):
    fit = make().fit()
    fit.save(tmp_path / "fit.pp")
    loaded = pp.load(tmp_path / "fit.pp")
    assert str(loaded.model.family) == str(fit.model.family)
    assert loaded.result.quadrature_nodes == fit.result.quadrature_nodes
    np.testing.assert_array_equal(loaded.result.root, fit.result.root)
    np.testing.assert_array_equal(loaded.result.draws_root, fit.result.draws_root)
    for factor in fit.model.design.factors:
        pd.testing.assert_frame_equal(loaded.groups(factor.name), fit.groups(factor.name), check_exact=True)
    np.testing.assert_array_equal(loaded.predict(kind="response").draws, fit.predict(kind="response").draws)


def test_a_link_that_is_not_the_first_is_kept(tmp_path):
    data = Herds().data
    model = pp.Model.from_formula("y | trials(n) ~ 1 + (1 | g)", data, family=pp.families.Binomial(link="probit"))
    by_hand(model, np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1), 50).save(tmp_path / "fit.pp")
    loaded = pp.load(tmp_path / "fit.pp")
    assert loaded.model.family == model.family
    assert loaded.variance_components().loc["residual", "variance"] == 1


def test_without_rows_what_needs_them_says_so(herds, tmp_path):
    herds.save(tmp_path / "fit.pp", data=False)
    loaded = pp.load(tmp_path / "fit.pp")
    pd.testing.assert_frame_equal(loaded.summary(), herds.summary())
    pd.testing.assert_frame_equal(loaded.variance_components(), herds.variance_components())
    assert "saved without its rows" in repr(loaded)
    new = {"x": [1.0], "g": ["unseen"], "n": [5]}
    for kind in ("mean", "linear", "response"):
        np.testing.assert_array_equal(
            loaded.predict(new, kind=kind, new_groups="sample").draws,
            herds.predict(new, kind=kind, new_groups="sample").draws,
        )
    assert "needs the rows" in loaded.to_arviz().attrs["note"]
    for question in (
        loaded.groups, loaded.group_draws, loaded.predict, loaded.residuals, lambda: loaded.draws("g[h1]"),
        lambda: loaded.predict({"x": [1.0], "g": ["h1"]}),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=r"data=False"):
            question()


def test_words(cbpp, herds):
    text = repr(cbpp)
    assert "56 rows; herd 15; binomial (logit link)" in text
    assert "sigma" not in text
    assert "Shrinkage of Intercept by herd" in text
    assert "by quadrature" in text
    assert "sigma" not in cbpp._repr_html_()
    data = pd.DataFrame({"y": ["no", "yes"] * 10, "g": np.repeat(list("abcde"), 4)})
    model = pp.Model.from_formula("y ~ 1 + (1 | g)", data, family="bernoulli")
    fit = by_hand(model, np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1), 50)
    assert "'yes' counts as success" in repr(fit)


@pytest.mark.parametrize("make", [Herds, Crossed, Scales])
def test_figures(make):
    fit = make().fit()
    figures = [fit.plot.shrinkage(), fit.plot.density(), fit.plot.fitted()]
    figures += [fit.plot.forest(factor.name) for factor in fit.model.design.factors]
    assert all(figure.axes for figure in figures)


def test_labels_of_figures(herds):
    assert herds.plot.shrinkage().axes[0].get_xlabel() == "Intercept (logit of y)"
    fitted = herds.plot.fitted()
    assert fitted.get_supylabel() == "y per trial"
    heights = np.concatenate(
        [np.asarray(axes.collections[-1].get_offsets())[:, 1] for axes in fitted.axes if axes.collections]
    )
    assert heights.max() <= 1
    terms = [axes.get_xlabel() for axes in Scales().fit().plot.forest("g").axes]
    assert terms == ["Intercept (y)", "Intercept (log sigma)"]


def test_a_model_without_groups(tmp_path):
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"y": rng.poisson(3.0, 30), "x": rng.normal(size=30)})
    model = pp.Model.from_formula("y ~ x", data, family="poisson")
    beta = rng.normal([1.0, 0.1], 0.1, (50, 2))
    fit = by_hand(model, np.empty((50, 0)), beta, np.full(50, 0.02), 500)
    rate = np.exp(beta[:, 0] + np.outer(data["x"], beta[:, 1]))
    np.testing.assert_allclose(fit.predict().mean, rate.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(
        fit.residuals()["standardised"], (data["y"] - rate.mean(axis=1)) / np.sqrt(rate.mean(axis=1))
    )
    assert "no groups; poisson (log link)" in repr(fit)
    assert fit.to_arviz()["log_likelihood"]["y"].shape == (1, 500, 30)
    fit.save(tmp_path / "fit.pp", data=False)
    np.testing.assert_array_equal(
        pp.load(tmp_path / "fit.pp").predict(data, kind="response").draws, fit.predict(data, kind="response").draws
    )
    with pytest.raises(ModelError, match="no group terms"):
        fit.variance_components()


def test_weights_multiply_the_log_likelihood():
    data = Crossed().data.assign(w=np.tile([1.0, 2.0], 30))
    model = pp.Model.from_formula("y | weights(w) ~ 1 + (1 | a)", data, family="poisson")
    fit = by_hand(model, np.log([[0.6]]), np.ones((1, 1)), np.ones(1), 40)
    rate = fit.predict().draws
    expected = data["w"].to_numpy() * poisson.logpmf(data["y"].to_numpy(), rate)
    np.testing.assert_allclose(fit.to_arviz()["log_likelihood"]["y"].to_numpy()[0], expected, rtol=1e-9)
