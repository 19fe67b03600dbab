"""fit_model and the parameters of a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from partialpool.errors import ModelError
from partialpool.model import Model
from partialpool.posterior.fitting import fit_model
from partialpool.posterior.posterior import Posterior
from partialpool.posterior.storage import load


def test_summary_of_a_mixture_is_exact(balanced, balanced_fit):
    table = balanced_fit.summary()
    assert table.index.tolist() == ["Intercept", "sd(Intercept|g)", "sigma"]
    assert table.index.name == "parameter"
    assert table.columns.tolist() == ["mean", "sd", "q05", "q50", "q95", "ess"]
    w, centre, sds = balanced.weights, balanced.means.mean(), np.sqrt(balanced.mean_variance)
    np.testing.assert_allclose(table.loc["Intercept", "mean"], centre)
    np.testing.assert_allclose(table.loc["Intercept", "sd"], np.sqrt(w @ sds**2))
    q05 = brentq(lambda x: w @ norm.cdf(x, centre, sds) - 0.05, centre - 50, centre)
    np.testing.assert_allclose(table.loc["Intercept", "q05"], q05, atol=1e-5)
    np.testing.assert_allclose(table.loc["sigma", "mean"], w @ balanced.sigma)
    mean = w @ balanced.sd
    ess = (w @ (balanced.sd - mean) ** 2) / (w**2 @ (balanced.sd - mean) ** 2)
    np.testing.assert_allclose(table.loc["sd(Intercept|g)", "ess"], ess)


def test_summary_is_a_copy_and_draws_agree_with_it(slopes):
    spoiled = slopes.summary()
    spoiled.iloc[:, 0] = 0.0
    table = slopes.summary()
    assert (table["mean"] != 0).all()
    for name, row in table.iterrows():
        draws = slopes.draws(name)
        assert draws.shape == (4000,)
        assert abs(draws.mean() - row["mean"]) < 6 * row["sd"] / np.sqrt(min(row["ess"], 4000))
        assert abs(np.quantile(draws, 0.5) - row["q50"]) < 0.15 * row["sd"]
    draws[:] = 0
    assert slopes.draws(name).std() > 0


def test_chains_have_rhat(balanced_fit):
    from dataclasses import replace

    result = balanced_fit.result
    rng = np.random.default_rng(1)
    theta = rng.normal(size=(400, 2)) * 0.1
    beta = rng.normal(size=(400, 1))
    chained = replace(
        result,
        theta=theta,
        log_weights=np.full(400, -np.log(400)),
        beta_mean=beta,
        beta_sd=np.zeros((400, 1)),
        chains=4,
    )
    table = Posterior(balanced_fit.model, chained).summary()
    assert table.columns.tolist()[-1] == "rhat"
    np.testing.assert_allclose(table.loc["Intercept", "mean"], beta.mean())
    np.testing.assert_allclose(table.loc["sigma", "mean"], np.exp(theta[:, 1]).mean())
    assert (table["rhat"] < 1.1).all()


def test_the_seed_repeats_a_fit_and_is_kept_when_drawn(sleepstudy):
    model = Model.from_formula("Reaction ~ Days + (1 | Subject)", sleepstudy)
    first = fit_model(model, draws=300, ess=100)
    again = fit_model(model, draws=300, ess=100, seed=first.seed)
    assert np.array_equal(first.draws("sigma"), again.draws("sigma"))
    assert np.array_equal(first.group_draws("Subject"), again.group_draws("Subject"))
    assert first.draws("Days").shape == (300,)
    assert fit_model(model, draws=300, ess=100).seed != first.seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws = 0"),
        ({"draws": -5}, "draws = -5"),
        ({"draws": 1.5}, "draws = 1.5"),
        ({"ess": 0}, "ess = 0"),
        ({"progress": "x"}, "progress = .x. is not possible; give True or False"),
        ({"ess": float("nan")}, "ess = nan"),
        ({"method": "marginals"}, "Did you mean 'marginal'"),
        ({"threads": 0}, "threads = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_impossible_options_are_refused(slopes, options, message):
    with pytest.raises(ModelError, match=message):
        fit_model(slopes.model, **options)


def test_unknown_parameter_offers_the_nearest(slopes):
    with pytest.raises(ModelError, match=r"Did you mean 'sd\(Days\|Subject\)'"):
        slopes.draws("sd(Day|Subject)")
    with pytest.raises(ModelError, match=r"draws\(3\) is not possible; it takes a parameter's name, such as 'sigma'"):
        slopes.draws(3)


def test_a_fit_is_frozen(slopes):
    with pytest.raises(AttributeError):
        slopes.model = None


def test_variance_components_and_icc_of_an_intercept(balanced, balanced_fit):
    w, between, within = balanced.weights, balanced.sd**2, balanced.sigma**2
    table = balanced_fit.variance_components()
    assert table.index.tolist() == ["g", "residual"]
    np.testing.assert_allclose(table.loc["g", "variance"], w @ between)
    np.testing.assert_allclose(table.loc["g", "sd"], w @ balanced.sd)
    np.testing.assert_allclose(table.loc["g", "share"], w @ (between / (between + within)))
    np.testing.assert_allclose(table["share"].sum(), 1)
    icc = balanced_fit.icc()
    np.testing.assert_allclose(icc.loc["g", "mean"], w @ (between / (between + within)))
    assert icc.loc["g", "q05"] < icc.loc["g", "q50"] < icc.loc["g", "q95"]


def test_icc_of_nested_and_crossed_factors(nested, crossed):
    shares = nested.variance_components()["share"]
    icc = nested.icc()["mean"]
    np.testing.assert_allclose(icc["batch"], shares["batch"])
    np.testing.assert_allclose(icc["batch:cask"], shares["batch"] + shares["batch:cask"])
    np.testing.assert_allclose(crossed.icc()["mean"], crossed.variance_components()["share"].iloc[:2])


def test_icc_follows_the_data_and_not_the_spelling_of_the_formula(tmp_path):
    """Students crossed with schools, which lie in towns; the students are the leaf, so that no chain tells."""
    rng = np.random.default_rng(3)
    student, school = np.repeat(np.arange(300), 4), rng.integers(0, 12, 1200)
    effects = [rng.normal(0, sd, size) for sd, size in ((1, 300), (1, 12), (2, 4))]
    y = effects[0][student] + effects[1][school] + effects[2][school // 3] + rng.normal(size=1200)
    data = pd.DataFrame({"y": y, "st": student, "sc": school, "tw": school // 3}).astype({"sc": str, "tw": str})
    found = {}
    for formula in ("y ~ 1 + (1 | st) + (1 | sc) + (1 | tw)", "y ~ 1 + (1 | st) + (1 | tw/sc)"):
        fit = fit_model(Model.from_formula(formula, data), seed=1, threads=1)
        found[formula] = fit.icc()
        share = fit.variance_components()["share"]
        inner = next(name for name in share.index if "sc" in name)
        np.testing.assert_allclose(found[formula].loc[inner, "mean"], share[inner] + share["tw"])
        np.testing.assert_allclose(found[formula].loc["st", "mean"], share["st"])
        fit.save(tmp_path / "fit.pp", data=False)
        pd.testing.assert_frame_equal(load(tmp_path / "fit.pp").icc(), found[formula])
    first, second = found.values()
    np.testing.assert_allclose(first.loc["sc", "mean"], second.loc["tw:sc", "mean"], atol=0.02)


def test_a_file_of_an_earlier_version_has_an_icc(nested, tmp_path):
    nested.save(tmp_path / "fit.pp", data=False)
    old = load(tmp_path / "fit.pp")
    for name in ("nesting", "levels_0", "levels_1"):
        del old.model.__dict__["_row_averages"][name]
    pd.testing.assert_frame_equal(old.icc(), nested.icc())
    pd.testing.assert_frame_equal(old.groups("batch", "coefficient"), nested.groups("batch", "coefficient"))


def test_slopes_have_mean_components_and_no_icc(slopes):
    v = slopes.result.theta
    days = slopes.model.design.V[:, slopes.model.design.groups[0].columns]
    lam = slopes.model.hyperparameters.terms[0].covariance.factor(v[:, :3])
    variance = np.mean(((days @ lam[:50].reshape(50, 2, 2)) ** 2).sum(axis=2), axis=1)
    from partialpool.posterior.components import _components

    np.testing.assert_allclose(_components(slopes)[1][:50, 0], variance)
    with pytest.raises(ModelError, match="slopes vary"):
        slopes.icc()


def test_repr_says_what_matters(slopes, nested):
    text = repr(slopes)
    for part in (
        "Reaction ~ Days",
        "180 rows; Subject 18",
        "sd(Days|Subject)",
        "Shrinkage of Days by Subject",
        "passed",
    ):
        assert part in text
    assert "batch:cask 30" in repr(nested)
    page = slopes._repr_html_()
    assert page.count("<tr>") == 7
    assert "cor(Intercept,Days|Subject)" in page


def test_dropped_rows_are_noted(sleepstudy):
    data = sleepstudy.copy()
    data.loc[[3, 5], "Days"] = np.nan
    fit = fit_model(Model.from_formula("Reaction ~ Days + (1 | Subject)", data), draws=100, ess=50, seed=1)
    assert "2 rows were dropped for missing values (Days 2)" in repr(fit)
