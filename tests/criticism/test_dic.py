"""DIC: eight schools as published, the definition over draws, the plug-in."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import partialpool as pp
from partialpool.criticism.dic import dic
from partialpool.criticism.level_words import level_sentence

OPTIONS: dict[str, Any] = {"seed": 1, "threads": 1, "progress": False}
FLAT = {"Intercept": pp.Flat(), "sd(school)": pp.Uniform(0, 40)}


@cache
def sleepstudy() -> Any:
    return pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), **OPTIONS)


@pytest.mark.parametrize(
    ("formula", "priors", "p_d", "published"),
    [
        ("y | se(sigma) ~ 1", {"Intercept": pp.Flat()}, 1.0, 61.4),
        ("y | se(sigma) ~ 1 + (1 | school)", FLAT, 2.81, 63.0),
        ("y | se(sigma) ~ 0 + school", {"beta": pp.Flat()}, 8.0, 70.6),
    ],
)
def test_eight_schools(formula: str, priors: Any, p_d: float, published: float) -> None:
    row = dic(pp.fit(formula, pp.datasets.load("eight_schools"), priors=priors, **OPTIONS)).table.loc["conditional"]
    assert row["p_D"] == pytest.approx(p_d, abs=0.03)
    assert row["dic"] == pytest.approx(published, abs=0.15)  # Bayesian Data Analysis, table 7.2


def test_the_definition_over_draws() -> None:
    fit = sleepstudy()
    (logs,) = fit.to_arviz()["log_likelihood"].data_vars.values()
    deviance = -2 * logs.to_numpy().reshape(-1, 180).sum(axis=1)
    row = dic(fit).table.loc["conditional"]
    assert row["deviance"] == pytest.approx(deviance.mean(), abs=4 * row["mc_error"] + 4 * deviance.std() / 60)
    assert row["p_V"] == pytest.approx(deviance.var(ddof=1) / 2, rel=1e-6)
    effects = fit.groups("Subject")
    beta = fit.summary()["mean"]
    wide = effects.pivot(index="group", columns="term", values="mean")
    data = pp.datasets.load("sleepstudy")
    own = wide.loc[data["Subject"].astype(str)]
    days = data["Days"].to_numpy(dtype=float)
    eta = beta["Intercept"] + own["Intercept"].to_numpy() + (beta["Days"] + own["Days"].to_numpy()) * days
    sigma = np.exp(np.exp(fit.result.log_weights) @ fit.result.theta[:, -1])
    y = data["Reaction"].to_numpy(dtype=float)
    at_means = (np.log(2 * np.pi * sigma**2) + ((y - eta) / sigma) ** 2).sum()
    assert row["at_means"] == pytest.approx(at_means, abs=0.02)


def test_marginal_plugs_into_the_likelihood() -> None:
    fit = sleepstudy()
    row = dic(fit).table.loc["marginal"]
    theta = np.exp(fit.result.log_weights) @ fit.result.theta
    names = fit.model.hyperparameters.names
    params = dict(zip(names, fit.model.hyperparameters.public(theta[None, :])[0], strict=True))
    params |= {name: fit.summary().loc[name, "mean"] for name in ("Intercept", "Days")}
    assert row["at_means"] == pytest.approx(-2 * fit.model.log_likelihood(params), abs=1e-6)
    values = []
    for k in range(0, 4000, 20):
        params = {name: float(fit.draws(name)[k]) for name in fit.parameters}
        values.append(-2 * fit.model.log_likelihood(params))
    assert row["deviance"] == pytest.approx(np.mean(values), abs=4 * np.std(values) / np.sqrt(len(values)))
    assert row["p_V"] == pytest.approx(np.var(values) / 2, rel=0.5)


def test_shows_itself() -> None:
    found = dic(sleepstudy())
    assert "a unit is a group of Subject" in repr(found)
    assert found.levels.loc["all", "effective"] == pytest.approx(found.table.loc["conditional", "p_D"])
    assert found.plot() is not None


def test_models_without_groups_are_told_as_such() -> None:
    text = repr(dic(pp.fit("Yield ~ 1", pp.datasets.load("Dyestuff"), seed=1, threads=1)))
    assert "the model has no group effects" in text and "same groups" not in text


def test_what_is_left_of_p_d_is_not_laid_on_the_hyperparameters() -> None:
    import pandas as pd

    levels = pd.DataFrame(
        {"parameters": [4, 120, 1, 125], "effective": [3.9, 63.6, 4.4, 71.8]},
        index=["coefficients", "patient", "hyperparameters", "all"],
    )
    assert "the rest, 4.4, is not that of the hyperparameters alone" in level_sentence(levels)
    levels["effective"] = [3.9, 63.6, 1.1, 68.6]
    assert "the rest" not in level_sentence(levels)
