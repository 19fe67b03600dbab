"""Alternative priors: reweighted answers against quadrature and refits."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.integrate import quad

import partialpool as pp
from partialpool.criticism.alternatives import USUAL, InverseGammaVariance
from partialpool.criticism.reweight import over_threads
from partialpool.criticism.sensitivity import sensitivity
from partialpool.errors import ModelError, PriorError

SCHOOLS = "y | se(sigma) ~ 1 + (1 | school)"
TAU = "sd(Intercept|school)"


@cache
def schools(**priors: Any) -> Any:
    return pp.fit(SCHOOLS, pp.datasets.load("eight_schools"), priors=priors or None, seed=1, threads=1)


def exact_median(prior: Any, mean: float, sd: float) -> tuple[float, float]:
    """Median of tau, and P(mu > 0), by quadrature over tau; mu ~ Normal(mean, sd) integrated out."""
    from scipy.stats import norm

    data = pp.datasets.load("eight_schools")
    y, se = data["y"].to_numpy(dtype=float), data["sigma"].to_numpy(dtype=float)
    grid = np.exp(np.linspace(np.log(1e-3), np.log(300.0), 20_000))
    variance = grid[:, None] ** 2 + se**2
    precision = (1 / variance).sum(axis=1) + 1 / sd**2
    centre = ((y / variance).sum(axis=1) + mean / sd**2) / precision
    square = (y**2 / variance).sum(axis=1) + mean**2 / sd**2 - precision * centre**2
    logs = -0.5 * (np.log(variance).sum(axis=1) + np.log(precision) + square)
    mass = np.exp(logs - logs.max() + prior.log_density(grid)) * grid
    cdf = np.cumsum(mass) / mass.sum()
    positive = float(mass @ norm.cdf(centre * np.sqrt(precision)) / mass.sum())
    return float(np.interp(0.5, cdf, grid)), positive


def test_every_usual_prior_against_quadrature() -> None:
    fit = schools()
    mean, sd = (fit.model.priors["Intercept"].parameters[name] for name in ("mu", "sigma"))
    found = sensitivity(fit, "hyper", conclusion="Intercept > 0")
    scale = fit.model.priors[TAU].parameters["sigma"]
    for name, make in USUAL.items():
        prior = make(scale)
        row = found.table.loc[(TAU, name)]
        median, positive = exact_median(prior, mean, sd)
        assert row["q50"] == pytest.approx(median, rel=0.05), name
        share = found.table.loc[("P(Intercept > 0)", name)]
        assert abs(share["mean"] - positive) < max(4 * share["error"], 0.01), name
        assert row["how"] in ("reweighted", "as fitted")


def test_where_weights_cannot_reach_the_model_is_refitted() -> None:
    fit = schools(sd="Uniform(0, 5)")
    mean, sd = (fit.model.priors["Intercept"].parameters[name] for name in ("mu", "sigma"))
    found = sensitivity(fit, ["inverse-gamma", "half-Cauchy"])
    assert set(found.table["how"]) == {"as fitted", "refitted"}
    scale = next(slot.default for slot in fit.model.priors.slots if slot.name == TAU).parameters["sigma"]
    for name in ("inverse-gamma", "half-Cauchy"):
        median = exact_median(USUAL[name](scale), mean, sd)[0]
        assert found.table.loc[(TAU, name), "q50"] == pytest.approx(median, rel=0.06)


def test_other_priors_of_coefficients_are_exact_in_gaussian_models() -> None:
    fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    for prior in (pp.Normal(8, 2), pp.Flat()):
        found = sensitivity(fit, {"Days": prior})
        row = found.table.loc[("Days", "yours")]
        assert row["how"] == "reweighted"
        other = fit.model.from_formula(
            "Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), priors={"Days": prior}
        ).fit(seed=2)
        expected = other.summary().loc["Days"]
        for name in ("mean", "sd", "q05", "q95"):
            assert row[name] == pytest.approx(expected[name], abs=0.06 * expected["sd"])


def test_reweighted_and_refitted_agree_in_other_families() -> None:
    data = pp.datasets.load("cbpp")
    formula = "incidence | trials(size) ~ C(period) + (1 | herd)"
    fit = pp.fit(formula, data, family="binomial", seed=1)
    priors = {"sd": pp.HalfNormal(0.3), "C(period)[4]": pp.Normal(0, 0.5)}
    found = sensitivity(fit, priors)
    other = pp.fit(formula, data, family="binomial", seed=2, priors=priors).summary()
    own = found.table.xs("yours", level="alternative").loc[other.index]
    assert (own["how"] == "reweighted").all()
    np.testing.assert_allclose(own["mean"], other["mean"], atol=0.12 * other["sd"].max())
    np.testing.assert_allclose(own["sd"], other["sd"], rtol=0.12)


def test_shrinkage_and_groups_follow() -> None:
    fit = schools()
    found = sensitivity(fit, {"tight": pp.HalfNormal(1), "wide": {"sd(school)": "HalfCauchy(50)"}})
    other = schools(sd="HalfNormal(1)")
    expected = other.groups("school")
    name = "shrinkage(Intercept|school)"
    assert found.table.loc[(name, "tight"), "mean"] == pytest.approx(expected["shrinkage"].mean(), abs=0.01)
    groups = found.groups
    assert list(groups["moved"].abs()) == sorted(groups["moved"].abs(), reverse=True)
    own = groups[groups["alternative"] == "tight"].set_index("group").loc[expected["group"]]
    np.testing.assert_allclose(own["mean"], expected["mean"], atol=0.15)
    assert "tight" in repr(found)


def test_a_conclusion_is_compared_on_the_same_draws() -> None:
    found = sensitivity(schools(), ["half-Cauchy", "half-t"], conclusion="Intercept > 5")
    share = found.table.xs("P(Intercept > 5)", level="quantity")["mean"]
    assert share["half-t"] == share["as fitted"]
    assert abs(share["half-Cauchy"] - share["as fitted"]) < 0.01


def test_the_inverse_gamma_prior_of_a_variance() -> None:
    prior = InverseGammaVariance(1.5, 2.0)
    assert quad(lambda x: float(np.exp(prior.log_density(x))), 0, np.inf)[0] == pytest.approx(1.0, abs=1e-6)
    step = 1e-6
    slope = (prior.log_density(0.7 + step) - prior.log_density(0.7 - step)) / (2 * step)
    assert float(prior.score(0.7)) == pytest.approx(float(slope), rel=1e-6)
    inverse = prior.sample(np.random.default_rng(1), 20_000) ** -2
    assert inverse.mean() == pytest.approx(1.5 / 2.0, rel=0.03)
    vague = InverseGammaVariance(0.001, 0.5)
    x = np.exp(np.linspace(np.log(0.3), np.log(1e3), 400))
    assert np.ptp(vague.log_density(x)[50:] - vague.carrier.log_density(x)[50:]) < 2.0
    assert np.max(vague.log_density(x) - vague.carrier.log_density(x)) < 1.0


def test_few_groups_and_spikes_are_told() -> None:
    data = pp.datasets.load("sleepstudy")
    few = data[data["Subject"].isin(data["Subject"].unique()[:3])]
    text = repr(sensitivity(pp.fit("Reaction ~ Days + (1 | Subject)", few, seed=1), "hyper"))
    assert "3 groups of Subject" in text
    assert "without a mean" in text
    assert "spike" in repr(sensitivity(schools(), "inverse-gamma"))


def test_what_is_drawn() -> None:
    found = sensitivity(schools(), "hyper")
    assert isinstance(found.plot(), Figure)
    assert isinstance(found.plot("Intercept"), Figure)
    with pytest.raises(ModelError, match="no parameter 'Intercpt'"):
        found.plot("Intercpt")


@pytest.mark.parametrize(
    ("priors", "error", "match"),
    [
        ("half-cauchi", ModelError, "half-Cauchy"),
        ({}, ModelError, "names no prior"),
        (3, ModelError, "write 'hyper'"),
        ({"a": 3}, ModelError, "must be a dict of priors"),
        ({"tight": {"sd": pp.HalfNormal(1)}, "Intercept": pp.Normal(0, 1)}, ModelError, "beside something that is"),
        ({"as fitted": {"sd": pp.HalfNormal(1)}}, ModelError, "another name"),
        ({"sd(schol)": pp.HalfNormal(1)}, PriorError, "sd\\(schol\\)"),
        ({"Interccept": pp.Normal(0, 1)}, PriorError, "Interccept"),
        ({"sd": pp.Normal(0, 1)}, PriorError, "below zero"),
    ],
)
def test_impossible_alternatives_are_refused(priors: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sensitivity(schools(), priors)


def test_an_interrupt_ends_refits_that_have_not_begun() -> None:
    begun: list[int] = []

    def run(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)
        if number == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        over_threads(run, 200, 2)
    assert len(begun) < 100


def test_an_alternative_named_twice_is_shown_once() -> None:
    found = sensitivity(schools(), ["PC", "half-t", "pc"])
    assert list(found.shown.index) == ["as fitted", "PC", "half-t"]


def test_other_priors_of_correlations_are_shown() -> None:
    fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1, threads=1)
    found = sensitivity(fit, {"cor": "LKJ(8)"})
    assert "cor(Intercept,Days|Subject)" in found.shown.columns


def test_conclusions_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ModelError, match="no parameter"):
        sensitivity(schools(), "hyper", conclusion="Dayz > 5")


def test_a_model_without_groups() -> None:
    fit = pp.fit("Reaction ~ Days", pp.datasets.load("sleepstudy"), seed=1)
    with pytest.raises(ModelError, match="no groups"):
        sensitivity(fit, "hyper")
    found = sensitivity(fit, {"Days": pp.Normal(0, 1)})
    assert found.table.loc[("Days", "yours"), "mean"] < 6
    assert found.groups.empty
    assert "Days" in repr(found)
