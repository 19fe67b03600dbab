"""Marginal likelihoods against closed forms, their errors against repetitions, and what other priors make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import partialpool as pp
from partialpool.criticism.compare import compare
from partialpool.criticism.marginal_likelihood import (
    error_of_log_evidence,
    probabilities,
    rescaled,
    reweighted,
    scaled,
    under,
)
from partialpool.errors import ModelError

OPTIONS: dict[str, Any] = {"seed": 1, "threads": 1, "progress": False}


def known_sds() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    x = rng.normal(size=30)
    return pd.DataFrame({"x": x, "y": 0.3 * x + rng.normal(size=30), "s": np.ones(30)})


def exact(data: pd.DataFrame, slope_sd: float | None) -> float:
    """log p(y) of a normal response of known sds under Normal(0, 2) at the mean of x, and a normal slope."""
    x = data["x"].to_numpy() - data["x"].mean()
    cov = np.eye(30) + 4 * np.ones((30, 30))
    if slope_sd is not None:
        cov = cov + slope_sd**2 * np.outer(x, x)
    return float(multivariate_normal(np.zeros(30), cov).logpdf(data["y"]))


def test_against_closed_forms_under_any_prior() -> None:
    data = known_sds()
    intercept = {"Intercept(centered)": pp.Normal(0, 2)}
    fits = {
        "slope": pp.fit("y | se(s) ~ x", data, priors=intercept | {"x": pp.Normal(0, 1)}, **OPTIONS),
        "none": pp.fit("y | se(s) ~ 1", data, priors=intercept, **OPTIONS),
    }
    found = compare(fits, "marginal_likelihood", threads=1)
    a, b = exact(data, 1.0), exact(data, None)
    assert found.table.loc["slope", "log_evidence"] == pytest.approx(a, abs=1e-8)
    assert found.table.loc["none", "log_evidence"] == pytest.approx(b, abs=1e-8)
    assert found.table["error"].tolist() == [0.0, 0.0]
    assert found.table.loc["slope", "probability"] == pytest.approx(1 / (1 + np.exp(b - a)))
    for times in (0.25, 0.5, 1.0, 2.0, 4.0):
        assert found.by_prior.loc[times, "slope"] == pytest.approx(exact(data, times), abs=1e-8)
        assert found.by_prior.loc[times, "none"] == pytest.approx(b, abs=1e-8)
    assert "a Bayes factor of" in repr(found) and "as wide" in repr(found)
    assert found.plot().axes[0].get_ylabel().startswith("Log Bayes factor")


def test_error_is_that_of_repetitions() -> None:
    data = pp.datasets.load("Dyestuff")
    fits = [pp.fit("Yield ~ 1 + (1 | Batch)", data, seed=k, threads=1) for k in range(8)]
    spread = np.std([fit.log_marginal_likelihood for fit in fits], ddof=1)
    told = np.mean([error_of_log_evidence(fit.result) for fit in fits])
    assert 0 < spread < 1.7 * told  # quasi-random nodes do far better than independent ones


def test_scaled_priors_keep_their_kind() -> None:
    rng = np.random.default_rng(1)
    for prior in (
        pp.Normal(1, 2), pp.StudentT(4, 0, 1), pp.HalfNormal(2), pp.HalfCauchy(1), pp.HalfStudentT(3, 0.5),
        pp.Gamma(2, 3), pp.InverseGamma(3, 2), pp.Exponential(2), pp.Uniform(0, 5),
    ):  # fmt: skip
        centre = getattr(prior, "mu", 0.0)
        x = np.abs(prior.sample(rng, 5)) + 0.01
        x = np.minimum(x, 4.9)
        wide = scaled(prior, 3.0)
        assert wide.log_density(centre + 3 * (x - centre)) + np.log(3) == pytest.approx(prior.log_density(x))
    assert scaled(pp.LKJ(2), 3.0) == pp.LKJ(2)


def test_rescaled_models_differ_in_slopes_and_sds_alone() -> None:
    model = pp.Model.from_formula("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"))
    other = rescaled(model, 4.0)
    changed = [name for name in model.priors if model.priors[name] != other.priors[name]]
    assert changed == ["Days", "sd(Intercept|Subject)", "sd(Days|Subject)"]


def test_reweighting_is_what_refits_find() -> None:
    data = pp.datasets.load("cbpp")
    fit = pp.fit("incidence | trials(size) ~ period + (1 | herd)", data, family="binomial", **OPTIONS)
    for times in (0.5, 4.0):
        added, size = reweighted(fit, times)
        again = rescaled(fit.model, times).fit(ess=1000, draws=100, **OPTIONS)
        assert size > 300
        assert fit.log_marginal_likelihood + added == pytest.approx(again.log_marginal_likelihood, abs=0.1)


def test_wider_bounds_let_in_what_the_fit_has_no_nodes_for() -> None:
    """An sd of some 1.5 under Uniform(0, 1): reweighting would say that wider bounds only cost, and is 4.2 off."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(15), 6)
    data = pd.DataFrame({"y": rng.poisson(np.exp(1 + rng.normal(0, 1.5, 15)[group])), "g": group})
    fit = pp.fit("y ~ 1 + (1 | g)", data, family="poisson", priors={"sd(g)": pp.Uniform(0, 1)}, **OPTIONS)
    again = rescaled(fit.model, 2.0).fit(ess=1000, draws=100, **OPTIONS).log_marginal_likelihood
    added, size = reweighted(fit, 2.0)
    assert size > 50 and fit.log_marginal_likelihood + added < again - 4
    assert under(fit, 2.0, 3) == pytest.approx(again, abs=0.1)


def test_bounds_are_scaled_about_their_middle_where_they_have_two_sides() -> None:
    assert scaled(pp.Uniform(-1, 3), 2.0) == pp.Uniform(-3, 5)
    assert scaled(pp.Uniform(1, 3), 2.0) == pp.Uniform(2, 6)  # an sd: from 0


def test_strength_is_that_of_the_words() -> None:
    """A log factor of 24 that becomes 23 is as strong as it was."""
    data = pp.datasets.load("Pastes")
    fits = {name: pp.fit(f"strength ~ 1 + {name}", data, **OPTIONS) for name in ("(1 | batch / cask)", "(1 | batch)")}
    text = repr(compare(fits, "marginal_likelihood", threads=1))
    assert "the verdict stays (see .by_prior)" in text and "its strength does not" not in text


def test_models_without_one() -> None:
    data = pp.datasets.load("Dyestuff")
    flat = pp.fit("Yield ~ 1", data, priors={"Intercept": pp.Flat()}, **OPTIONS)
    fits = {"flat": flat, "a": pp.fit("Yield ~ 1", data, **OPTIONS)}
    with pytest.raises(ModelError, match="the prior of 'Intercept' is flat"):
        compare(fits, "marginal_likelihood")
    fits["b"] = pp.fit("Yield ~ 1 + (1 | Batch)", data, **OPTIONS)
    found = compare(fits, "marginal_likelihood", threads=1)
    assert np.isnan(found.table.loc["flat", "probability"]) and found.table.index[-1] == "flat"
    assert "'flat' has no marginal likelihood: the prior of 'Intercept' is flat" in repr(found)
    assert found.table["probability"].sum() == pytest.approx(1)
    assert np.isnan(probabilities({"a": 0.0, "b": float("nan")})["b"])
