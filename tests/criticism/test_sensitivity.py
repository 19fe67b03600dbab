"""Power-scaling: against the normal case in closed form, and against weighted draws by definition."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import partialpool as pp
from partialpool.criticism import reweight
from partialpool.criticism.sensitivity import sensitivity
from partialpool.errors import ModelError
from partialpool.posterior.posterior import Posterior

SLEEP = "Reaction ~ Days + (Days | Subject)"


@cache
def sleepstudy(**priors: Any) -> Any:
    return pp.fit(SLEEP, pp.datasets.load("sleepstudy"), priors=priors or None, seed=1, threads=1)


def simulated(groups: int, rows: int, tau: float, seed: int = 0, spread: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    x = spread * rng.normal(size=g.size)
    y = 2 + x + tau * rng.normal(size=groups)[g] + rng.normal(size=g.size)
    return pd.DataFrame({"y": y, "x": x, "g": [f"g{k}" for k in g]})


def distance(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """The cumulative Jensen-Shannon distance of two weightings of the same values, by its definition."""
    out = []
    for sign in (1, -1):
        order = np.argsort(sign * values)
        ordered = (sign * values)[order]
        step = np.diff(ordered)
        p, q = (np.cumsum(w[order] / w.sum())[:-1] for w in (first, second))
        middle = (p + q) / 2

        def one(a: np.ndarray, b: np.ndarray, middle: np.ndarray = middle, step: np.ndarray = step) -> float:
            share = np.where(a > 0, a * np.log2(np.where(a > 0, a, 1) / middle), 0.0)
            return float(step @ share + 0.5 / math.log(2) * step @ (b - a))

        out.append((one(p, q) + one(q, p)) / float(step @ (p + q)))
    return math.sqrt(max(out))


# -- the normal case --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (3.0, 0.4), (1.2, 30.0)])
def test_the_normal_case_in_closed_form(mean: float, sd: float) -> None:
    y, se = np.array([1.0, 1.4, 0.6, 1.8]), np.array([0.5, 1.0, 1.0, 2.0])
    fit = pp.fit("y | se(se) ~ 1", {"y": y, "se": se}, priors={"Intercept": pp.Normal(mean, sd)}, seed=1)
    row = sensitivity(fit).table.loc["Intercept"]
    prior, data = 1 / sd**2, float((1 / se**2).sum())
    apart = mean - float((y / se**2).sum()) / data
    shift = math.log(2) * apart * prior * data / (prior + data) ** 1.5
    assert row["prior_share"] == pytest.approx(prior / (prior + data), abs=2e-3)
    assert row["prior_shift"] == pytest.approx(shift, abs=2e-3)
    assert row["likelihood_shift"] == pytest.approx(-shift, abs=2e-3)
    from scipy.stats import norm

    step = 1e-3
    places = np.linspace(-3.29, 3.29, 4001) / math.sqrt(prior + data)
    centre = (prior * mean + data * (mean - apart)) / (prior + data)
    expected = []
    for powers in ((1 + step, 1.0), (1.0, 1 + step)):
        a, b = prior * powers[0], data * powers[1]
        own = norm((a * mean + b * (mean - apart)) / (a + b), (a + b) ** -0.5)
        base = norm(centre, (prior + data) ** -0.5)
        f, q = base.cdf(centre + places), own.cdf(centre + places)
        mass = np.concatenate([[f[0]], np.diff(f)]), np.concatenate([[q[0]], np.diff(q)])
        expected.append(distance(centre + places, *mass) / math.log2(1 + step))
    np.testing.assert_allclose(row[["prior", "likelihood"]].to_numpy(dtype=float), expected, rtol=0.02, atol=1e-4)


def test_against_weighted_draws_by_definition() -> None:
    fit = pp.fit("y ~ x + (1 | g)", simulated(6, 4, 1.0), priors={"x": pp.StudentT(3, 0, 0.2)}, seed=1, draws=4000)
    table = sensitivity(fit).table
    names = fit.parameters
    draws = np.column_stack([fit.draws(name) for name in names])[:2500]
    rows = [dict(zip(names, row, strict=True)) for row in draws]
    priors = fit.model.priors
    log_prior = sum(
        priors[name].log_density(fit.model.coefficients.from_public(draws[:, :2])[:, k] if k < 2 else draws[:, k])
        for k, name in enumerate(names)
    )
    log_likelihood = np.array([fit.model.log_likelihood(row) for row in rows])
    equal = np.ones(len(draws))
    for column, logs in (("prior", log_prior), ("likelihood", log_likelihood)):
        for k, name in enumerate(names):
            ends = [np.exp(power * (logs - logs.mean())) for power in (-0.01, 0.01)]
            slope = sum(distance(draws[:, k], equal, end) for end in ends) / (2 * math.log2(1.01))
            assert table.loc[name, column] == pytest.approx(slope, rel=0.25, abs=0.02), (column, name)
            if name == "x":
                move = math.log(2) * np.cov(draws[:, k], logs)[0, 1] / draws[:, k].std()
                assert table.loc[name, f"{column}_shift"] == pytest.approx(move, abs=0.12)


def test_finite_powers_of_a_normal_prior_are_those_of_a_narrower_one() -> None:
    fit = sleepstudy(Days=pp.Normal(0, 3))
    points = reweight.points_of(fit, likelihood=False)
    other = fit.model.priors
    wide = reweight.with_priors(fit.model, type(other).from_json(other.to_json()))
    ratio, _ = reweight.other_priors(points, wide)
    assert np.ptp(ratio) == 0
    step = 1e-5
    more = np.array([0.0, step])
    factor, moved = reweight.with_other_prior(points.quadratic, more, np.zeros(2))
    slope = reweight.prior_slopes(points)["Days"]
    np.testing.assert_allclose((factor - factor.mean()) / step, slope.value - slope.value.mean(), atol=1e-3)
    mean = np.einsum("kij,kj->ki", points.to_public, moved.mean - points.quadratic.mean)
    np.testing.assert_allclose(mean / step, slope.mean, rtol=1e-3, atol=1e-5)


# -- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["Normal(0, 0.15)", "StudentT(3, 0, 0.1)"])
def test_a_planted_conflict_is_flagged(prior: str) -> None:
    found = sensitivity(pp.fit("y ~ x + (1 | g)", simulated(10, 6, 1.0), priors={"x": prior}, seed=1, threads=1))
    assert found.table.loc["x", "diagnosis"] == "prior-data conflict"
    assert found.by_prior.loc["x"].idxmax() == "x"
    assert any(text.startswith("x: prior-data conflict") for text in found.sentences)


def test_conflicts_of_hyperpriors_are_flagged() -> None:
    fit = pp.fit("y ~ x + (1 | g)", simulated(10, 6, 2.0), priors={"sd": "HalfNormal(0.3)"}, seed=1, threads=1)
    assert sensitivity(fit).table.loc["sd(Intercept|g)", "diagnosis"] == "prior-data conflict"
    fit = pp.fit("y ~ x + (1 | g)", simulated(10, 6, 0.1), priors={"sd": "Gamma(40, 10)"}, seed=1)
    assert sensitivity(fit).table.loc["sd(Intercept|g)", "diagnosis"] == "prior-data conflict"


def test_the_verdict_is_that_of_the_prior_behind_it() -> None:
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(5), 4)
    x = rng.normal(size=20)
    y = 3 + 0.8 * x + 1.2 * rng.normal(size=5)[g] + rng.normal(size=20)
    priors = {"Intercept": pp.Normal(1, 2), "x": pp.Normal(0, 0.3), "sd": "HalfNormal(0.5)", "sigma": pp.Gamma(3, 2)}
    found = sensitivity(pp.fit("y ~ x + (1 | g)", {"y": y, "x": x, "g": g.astype(str)}, priors=priors, seed=1))
    # sigma goes up with the priors only because they hold the sd of groups down
    assert found.by_prior.loc["sigma"].idxmax() == "sd(Intercept|g)"
    assert found.table.loc["sigma", "prior"] >= 0.05
    assert found.table.loc["sigma", "diagnosis"] == found.table.loc["sd(Intercept|g)", "diagnosis"] != "-"


def test_a_prior_that_matters_is_no_weak_likelihood() -> None:
    data = pp.datasets.load("Penicillin")
    found = sensitivity(pp.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", data, seed=1, threads=1))
    assert found.flagged == ("sd(Intercept|sample)",)
    assert found.table.loc["sd(Intercept|sample)", "diagnosis"] == "prior matters"
    assert found.sentences[0].startswith("sd(Intercept|sample): the data settle most of it")
    assert "sensitivity('hyper')" in found.sentences[0]


def test_what_is_advised_can_be_done() -> None:
    data = simulated(4, 3, 0.0, spread=0.02)
    plain = sensitivity(pp.fit("y ~ x", data, priors={"x": "Normal(0, 1)"}, seed=1))
    assert plain.table.loc["x", "diagnosis"] == "weak likelihood"
    assert "sensitivity({'x': ...})" in plain.sentences[0]
    assert "hyper" not in " ".join(plain.sentences)
    flat = sensitivity(pp.fit("y ~ 1 + (1 | g)", data, priors={"Intercept": pp.Flat(), "sd": "Uniform(0, 99)"}, seed=1))
    assert "sensitivity('hyper') and sensitivity({'Intercept': ...})" in " ".join(flat.sentences)


def test_of_many_flagged_parameters_the_worst_are_told() -> None:
    rng = np.random.default_rng(0)
    data = {f"x{k}": rng.normal(size=60) for k in range(12)}
    data["y"] = data["x7"] + rng.normal(size=60)
    formula = f"y ~ {' + '.join(f'x{k}' for k in range(12))}"
    found = sensitivity(pp.fit(formula, data, priors={"beta": "Normal(0, 0.1)"}, seed=1, threads=1))
    assert len(found.flagged) > 8
    assert found.sentences[0].startswith("x7: prior-data conflict")
    # sigma is no verdict of its own: it goes with the prior of x7
    assert "sigma" in found.sentences[0]
    assert "sigma" not in " ".join(found.sentences[1:])
    assert len(found.sentences) == 6
    assert "more have a diagnosis, see the table: " in found.sentences[4]


def test_a_correlation_that_nothing_settles_comes_from_its_own_prior() -> None:
    found = sensitivity(pp.fit("y ~ x + (x | g)", simulated(8, 6, 1.0), seed=1, threads=1))
    about = next(text for text in found.sentences if text.startswith("cor("))
    assert "comes from its prior, LKJ(1), not from the data" in about


def test_a_uniform_prior_that_cuts_the_posterior_off_is_flagged() -> None:
    found = sensitivity(sleepstudy(**{"sd(Intercept|Subject)": "Uniform(0, 10)"}))
    assert found.table.loc["sd(Intercept|Subject)", "diagnosis"] == "prior-data conflict"
    assert "reach further" in found.sentences[0]


def test_weak_likelihoods_are_flagged() -> None:
    fit = pp.fit("y ~ x + (1 | g)", simulated(10, 3, 1.0, spread=0.02), priors={"x": "Normal(0, 1)"}, seed=1)
    table = sensitivity(fit).table
    assert table["diagnosis"].to_dict() == {
        "Intercept": "-", "x": "weak likelihood", "sd(Intercept|g)": "-", "sigma": "-"
    }  # fmt: skip
    assert table.loc["x", "prior_share"] > 0.95
    few = sensitivity(pp.fit("y ~ x + (1 | g)", simulated(3, 30, 1.0), seed=1))
    assert few.flagged == ("sd(Intercept|g)",)
    assert "3 groups of g" in few.sentences[0]


@pytest.mark.parametrize("name", ["sleepstudy", "radon", "cbpp"])
def test_clean_models_are_not_flagged(name: str) -> None:
    formulas = {
        "sleepstudy": (SLEEP, "gaussian"),
        "radon": ("log_radon ~ floor + log_uranium + (1 | county)", "gaussian"),
        "cbpp": ("incidence | trials(size) ~ C(period) + (1 | herd)", "binomial"),
    }
    formula, family = formulas[name]
    found = sensitivity(pp.fit(formula, pp.datasets.load(name), family=family, seed=1))
    assert found.flagged == ()
    assert found.table["prior"].max() < 0.02
    assert found.table["likelihood"].min() > 0.07


# -- engines, and what is refused -------------------------------------------------------------------------------------


def test_points_of_chains_serve_as_well() -> None:
    fit = pp.fit("y ~ x + (1 | g)", simulated(10, 3, 1.0), priors={"x": pp.StudentT(5, 0, 0.3)}, seed=1, threads=1)
    drawn, names = fit.result, fit.parameters
    accuracy = replace(drawn.accuracy, ess=dict.fromkeys(names, 2000.0))
    equal = np.full(len(drawn.draws_theta), -math.log(len(drawn.draws_theta)))
    chains = replace(
        drawn, theta=drawn.draws_theta, log_weights=equal, beta_mean=drawn.draws_beta,
        beta_sd=np.zeros_like(drawn.draws_beta), chains=4, accuracy=accuracy,
    )  # fmt: skip
    twin = Posterior(fit.model, chains)
    assert reweight.points_of(twin).efficiency == 0.5
    own, other = sensitivity(fit).table, sensitivity(twin).table
    np.testing.assert_allclose(other["prior"], own["prior"], atol=0.02)
    np.testing.assert_allclose(other["likelihood"], own["likelihood"], atol=0.05)


def test_likelihoods_of_other_families_integrate_all_effects() -> None:
    data = pp.datasets.load("cbpp")
    data["pair"] = (np.arange(len(data)) % 3).astype(str)
    fit = pp.fit(
        "incidence | trials(size) ~ 1 + (1 | herd) + (1 | pair)", data, family="binomial", seed=1, ess=100, draws=200
    )
    points = reweight.points_of(fit)
    table = dict(zip(fit.model.coefficients.names, points.beta[0].T, strict=True))
    table |= dict(zip(fit.model.hyperparameters.names, points.hyper.T, strict=True))
    for k in (0, 7, 50):
        expected = fit.model.log_likelihood({name: values[k] for name, values in table.items()})
        assert points.log_likelihood[k] == pytest.approx(float(expected), abs=2e-3)


def test_the_prior_of_correlations() -> None:
    fit = sleepstudy(cor="LKJ(5)")
    points = reweight.points_of(fit, likelihood=False)
    correlation = points.hyper[:, fit.model.hyperparameters.names.index("cor(Intercept,Days|Subject)")]
    own = reweight.hyper_log_priors(points)["cor(Subject)"]
    expected = 4 * np.log(1 - correlation**2)
    np.testing.assert_allclose(own - own[0], expected - expected[0], atol=1e-9)
    found = sensitivity(fit)
    assert found.by_prior.loc["cor(Intercept,Days|Subject)"].idxmax() == "cor(Subject)"
    assert found.table.loc["cor(Intercept,Days|Subject)", "prior_share"] > 0.1


def test_a_loaded_fit_gives_the_same(tmp_path: Any) -> None:
    path = tmp_path / "fit.pp"
    sleepstudy().save(path)
    pd.testing.assert_frame_equal(sensitivity(pp.load(path)).table, sensitivity(sleepstudy()).table)


def test_what_is_printed_and_drawn() -> None:
    found = sensitivity(sleepstudy())
    text = repr(found)
    assert text.startswith(f"Sensitivity to the prior: {SLEEP}")
    assert "The data speak louder than the priors everywhere" in text
    assert "<table>" in found._repr_html_()
    assert isinstance(found.plot(), Figure)
    from matplotlib.figure import Figure as Own

    ax = Own().add_subplot()
    assert found.plot(ax=ax) is ax.figure


def test_impossible_requests_are_refused() -> None:
    fit = sleepstudy()
    with pytest.raises(ModelError, match="alternative priors"):
        sensitivity(fit, conclusion="Days > 5")
    with pytest.raises(ModelError, match="threads = 0"):
        sensitivity(fit, threads=0)


def test_a_fit_without_its_rows_says_so(tmp_path: Any) -> None:
    path = tmp_path / "fit.pp"
    sleepstudy().save(path, data=False)
    with pytest.raises(ModelError, match="needs the rows"):
        sensitivity(pp.load(path))
