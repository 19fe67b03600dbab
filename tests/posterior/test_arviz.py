"""The tree that ArviZ reads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from partialpool.posterior import arviz as arviz_module


def test_posterior_and_its_names(slopes):
    tree = slopes.to_arviz()
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "observed_data",
        "log_likelihood",
        "posterior_predictive",
    }
    posterior = tree["posterior"]
    for name in slopes.parameters:
        np.testing.assert_array_equal(posterior[name].values, slopes.draws(name)[None])
    effects = posterior["Days|Subject"]
    assert effects.dims == ("chain", "draw", "Subject")
    np.testing.assert_array_equal(effects.sel(Subject="330").values[0], slopes.draws("Subject[330,Days]"))


def test_log_likelihood_and_responses(slopes, sleepstudy):
    tree = slopes.to_arviz()
    observed = tree["observed_data"]["Reaction"].values
    np.testing.assert_array_equal(observed, sleepstudy["Reaction"])
    expected = norm.logpdf(observed, slopes.predict().draws, slopes.draws("sigma")[:, None])
    np.testing.assert_allclose(tree["log_likelihood"]["Reaction"].values[0], expected, atol=1e-8)
    np.testing.assert_allclose(
        tree["posterior_predictive"]["Reaction"].values[0], slopes.predict(kind="response").draws, atol=1e-8
    )


def test_known_errors(schools):
    tree = schools.to_arviz()
    expected = norm.logpdf(schools.model.design.y, schools.predict().draws, schools.model.design.se)
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], expected, atol=1e-8)


def test_rows_get_fewer_draws_where_they_are_many(slopes, monkeypatch):
    monkeypatch.setattr(arviz_module, "MOST_NUMBERS", 180 * 100)
    tree = slopes.to_arviz()
    likelihood = tree["log_likelihood"]["Reaction"]
    assert likelihood.shape == (1, 100, 180)
    picked = likelihood.coords["draw"].values
    expected = norm.logpdf(slopes.model.design.y, slopes.predict().draws[picked], slopes.draws("sigma")[picked, None])
    np.testing.assert_allclose(likelihood.values[0], expected, atol=1e-8)
    assert "Days|Subject" not in tree["posterior"]
    assert "left out" in tree.attrs["note"]


def test_arviz_reads_it(nested):
    arviz_stats = pytest.importorskip("arviz_stats")
    table = arviz_stats.summary(nested.to_arviz(), var_names=["sigma", "Intercept|batch"])
    assert len(table) == 11
