"""Complete, no and partial pooling side by side, against least squares, brute force and dense algebra."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.errors import ModelError
from partialpool.levels.extremes import row_information
from partialpool.levels.pooling_factor import pooling_factors
from partialpool.spec.families import Poisson, resolve_family


@cache
def fitted(name: str) -> Any:
    formulas = {
        "sleepstudy": ("Reaction ~ Days + (Days | Subject)", "gaussian"),
        "radon": ("log_radon ~ floor + (1 | county)", "gaussian"),
        "Penicillin": ("diameter ~ 1 + (1 | plate) + (1 | sample)", "gaussian"),
        "Pastes": ("strength ~ 1 + (1 | batch / cask)", "gaussian"),
        "cbpp": ("incidence | trials(size) ~ C(period) + (1 | herd)", "binomial"),
    }
    formula, family = formulas[name]
    return pp.fit(formula, pp.datasets.load(name), family=family, seed=1, draws=6000)


def test_complete_pooling_is_least_squares() -> None:
    data = pp.datasets.load("sleepstudy")
    table = fitted("sleepstudy").pooling().table
    x = np.column_stack([np.ones(len(data)), data["Days"]])
    expected = np.linalg.lstsq(x, data["Reaction"].to_numpy(dtype=float), rcond=None)[0]
    found = table.groupby("term", sort=False)["complete"].first().to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_complete_pooling_with_weights_offset_and_precision() -> None:
    rng = np.random.default_rng(1)
    n = 60
    data = pd.DataFrame({"x": rng.normal(size=n), "g": np.repeat(list("abcdef"), 10), "o": rng.normal(size=n)})
    data["w"] = rng.uniform(0.5, 2, n)
    data["y"] = 1 + data["x"] + data["o"] + rng.normal(size=n)
    fit = pp.fit("y | precision(w) ~ x + offset(o) + (1 | g)", data, seed=1)
    root = np.sqrt(data["w"].to_numpy())
    x = np.column_stack([np.ones(n), data["x"]]) * root[:, None]
    expected = np.linalg.lstsq(x, (data["y"] - data["o"]).to_numpy() * root, rcond=None)[0]
    assert fit.pooling().table["complete"].iloc[0] == pytest.approx(expected[0], rel=1e-9)


def test_complete_pooling_of_a_binomial_response_is_the_overall_rate() -> None:
    data = pp.datasets.load("cbpp")
    fit = pp.fit("incidence | trials(size) ~ 1 + (1 | herd)", data, family="binomial", seed=1)
    table = fit.pooling().table
    rate = data["incidence"].sum() / data["size"].sum()
    assert table["complete"].iloc[0] == pytest.approx(np.log(rate / (1 - rate)), abs=1e-5)
    sums = data.groupby("herd")[["incidence", "size"]].sum()
    shares = (sums["incidence"] / sums["size"]).to_numpy()
    np.testing.assert_allclose(table["no_pooling"], np.log(shares / (1 - shares)), atol=1e-5)
    error = 1 / np.sqrt(sums["size"].to_numpy() * shares * (1 - shares))
    np.testing.assert_allclose(table["no_pooling_se"], error, rtol=1e-4)


def test_separate_regressions_and_their_standard_errors() -> None:
    data, fit = pp.datasets.load("sleepstudy"), fitted("sleepstudy")
    table = fit.pooling().table
    weights = np.exp(fit.result.log_weights)
    weights /= weights.sum()
    sigma = np.sqrt(weights @ np.exp(2 * fit.result.theta[:, fit.model.hyperparameters.sigma_at]))
    for label, rows in list(data.groupby("Subject"))[:4]:
        x = np.column_stack([np.ones(len(rows)), rows["Days"]])
        own = table[table["group"] == str(label)]
        np.testing.assert_allclose(own["no_pooling"], np.linalg.lstsq(x, rows["Reaction"], rcond=None)[0], rtol=1e-8)
        error = sigma * np.sqrt(np.diag(np.linalg.inv(x.T @ x)))
        np.testing.assert_allclose(own["no_pooling_se"], error, rtol=1e-6)


def test_an_outer_group_stands_on_its_rows_and_not_on_the_pooled_effects_of_what_nests_in_it() -> None:
    data = pp.datasets.load("Pastes")
    table = fitted("Pastes").pooling().table
    means = data.groupby("batch")["strength"].mean().to_numpy()
    own = table[table["factor"] == "batch"]
    np.testing.assert_allclose(own["no_pooling"], means, atol=2e-4)  # balanced: the plain mean of the batch
    summary = fitted("Pastes").summary()["mean"]
    variance = summary["sd(Intercept|batch:cask)"] ** 2 / 3 + summary["sigma"] ** 2 / 6
    np.testing.assert_allclose(own["no_pooling_se"], np.sqrt(variance), rtol=0.03)  # theta at the mean of its logs


@cache
def schools() -> Any:
    """Unbalanced classes with slopes in schools, and a crossed factor."""
    rng = np.random.default_rng(3)
    room = np.sort(np.concatenate([np.repeat(np.arange(40), 5), rng.integers(0, 40, 100)]))
    school, judge = room // 5, rng.integers(0, 6, 300)
    data = pd.DataFrame({"x": rng.normal(size=300), "school": school, "room": room, "judge": judge})
    effects = rng.normal(0, 3, 8)[school] + rng.normal(0, 1.5, 40)[room] + rng.normal(0, 1, 6)[judge]
    data["y"] = 50 + effects + (1 + rng.normal(0, 0.7, 40)[room]) * data["x"] + rng.normal(0, 2, 300)
    return pp.fit("y ~ x + (1 | school) + (1 + x | school:room) + (1 | judge)", data, seed=1, draws=1000, threads=1)


def test_a_class_is_what_it_adds_to_its_school_in_every_column() -> None:
    """Partial pooling lies between the other two; with the school's effect in no pooling a third did not."""
    rng = np.random.default_rng(8)
    room = np.repeat(np.arange(48), 6)
    effects = rng.normal(0, 3, 8)[room // 6] + rng.normal(0, 1.5, 48)[room]
    data = pd.DataFrame({"y": 50 + effects + rng.normal(0, 3, 288), "school": room // 6, "room": room})
    simulated = pp.fit("y ~ 1 + (1 | school / room)", data, seed=1, threads=1)
    for fit in (fitted("Pastes"), simulated):
        for name, own in fit.pooling().table.groupby("factor"):
            apart = own["no_pooling"] - own["complete"]
            share = ((own["no_pooling"] - own["partial"]) / apart)[apart.abs() > 0.2]
            assert len(share) > 0.7 * len(own)
            assert share.between(0, 1).all(), name
            assert (share < own["shrinkage"][share.index] + 0.02).all()
    summary = simulated.summary()["mean"]  # with the school known: sigma^2 / n over itself and the classes' variance
    noise = summary["sigma"] ** 2 / 6
    assert share.median() == pytest.approx(noise / (noise + summary["sd(Intercept|school:room)"] ** 2), abs=0.04)
    rng = np.random.default_rng(2)
    data["y"] = rng.poisson(np.exp(1 + rng.normal(0, 0.8, 8)[room // 6] + rng.normal(0, 0.5, 48)[room]))
    fit = pp.fit("y ~ 1 + (1 | school / room)", data, family="poisson", seed=1, threads=1, draws=500)
    counts = fit.pooling()
    own = counts.table[counts.table["factor"] == "school:room"].dropna()
    apart = own["no_pooling"] - fit.summary().loc["Intercept", "mean"]  # complete pooling is of the mean over groups
    share = ((own["no_pooling"] - own["partial"]) / apart)[apart.abs() > 0.1]
    assert len(share) > 30 and share.between(-0.02, 1).all()
    text = repr(simulated.pooling())
    assert "school:room: all estimates are of what a group adds to the effect of school." in text


def test_no_pooling_of_schools_integrates_their_classes_where_the_response_is_binary() -> None:
    """Each school's own maximum likelihood, its classes integrated; a school of successes has none."""
    rng = np.random.default_rng(3)
    room = np.repeat(np.arange(40), 6)
    eta = rng.normal(0, 1.2, 8)[room // 5] + rng.normal(0, 1, 40)[room]
    y = (rng.random(240) < 1 / (1 + np.exp(-eta))).astype(int)
    y[room // 5 == 2] = 1
    data = pd.DataFrame({"y": y, "school": room // 5, "room": room})
    fit = pp.fit("y ~ 1 + (1 | school / room)", data, family="bernoulli", seed=1, threads=1, draws=500)
    table = fit.pooling().table
    own = table[table["factor"] == "school"].reset_index(drop=True)
    assert own.loc[2, ["no_pooling", "no_pooling_se"]].isna().all()
    weights = np.exp(fit.result.log_weights - fit.result.log_weights.max())
    theta = weights @ fit.result.theta / weights.sum()
    sd = np.exp(theta[list(fit.model.hyperparameters.names).index("sd(Intercept|school:room)")])
    nodes, mass = np.polynomial.hermite_e.hermegauss(60)
    places = np.linspace(-4, 4, 4001)
    p = 1 / (1 + np.exp(-(places[:, None] + sd * nodes)))
    for school in (0, 1, 3):
        sums = pd.Series(y).groupby(room).sum()[5 * school : 5 * school + 5]
        log = sum(np.log((p**k * (1 - p) ** (6 - k)) @ mass) for k in sums)
        best = int(np.argmax(log))
        curvature = -(log[best + 50] - 2 * log[best] + log[best - 50]) / (50 * 0.002) ** 2
        assert own.loc[school, "no_pooling"] == pytest.approx(places[best], abs=0.01)
        assert own.loc[school, "no_pooling_se"] == pytest.approx(curvature**-0.5, rel=0.02)
    crossed = data.assign(judge=rng.integers(0, 5, 240))
    other = pp.fit("y ~ 1 + (1 | room) + (1 | judge)", crossed, family="bernoulli", seed=1, threads=1, draws=500)
    said = "no_pooling of room takes the effects of judge at their posterior means."
    assert said in other.pooling().sentences
    assert not any("no_pooling of judge" in line for line in other.pooling().sentences)


@pytest.mark.parametrize("name", ["school", "school:room", "judge"])
def test_no_pooling_of_several_factors_against_dense_algebra(name: str) -> None:
    """Least squares with a flat population of one factor, the coarser ones known, the others in the covariance."""
    fit = schools()
    design, hyper = fit.model.design, fit.model.hyperparameters
    names = [factor.name for factor in design.factors]
    weights = np.exp(fit.result.log_weights - fit.result.log_weights.max())
    theta = (weights @ fit.result.theta / weights.sum())[None, :]
    x = design.V[:, design.v_names.index("x")]
    columns = {}
    for f, own in enumerate(design.factors):
        indicator = np.eye(len(own.labels))[own.codes]
        columns[own.name] = np.hstack([indicator, indicator * x[:, None]]) if hyper.widths[f] == 2 else indicator
    mean = fit.summary()["mean"]
    rest = design.y - weights @ fit.result.beta_mean @ np.vstack([np.ones(300), x]) / weights.sum()
    covariance = np.eye(300) * np.exp(2 * theta[0, hyper.sigma_at])
    for term in hyper.terms:
        other = names[term.factor]
        if other == name:
            continue
        if name == "school:room" and other == "school":
            rest = rest - columns[other] @ fit.groups(other)["mean"].to_numpy()
            continue
        lam = term.covariance.factor(theta[:, term.parameters])[0]
        size = len(design.factors[term.factor].labels)
        covariance += columns[other] @ np.kron(lam @ lam.T, np.eye(size)) @ columns[other].T
    weighted = np.linalg.solve(covariance, columns[name])
    inverse = np.linalg.inv(columns[name].T @ weighted)
    table = fit.pooling().table
    own = table[table["factor"] == name]
    found = own["no_pooling"] - own["term"].map({"Intercept": mean["Intercept"], "x": mean["x"]})
    terms = own["term"].nunique()
    np.testing.assert_allclose(found.to_numpy().reshape(-1, terms).T.ravel(), inverse @ (weighted.T @ rest), atol=2e-3)
    errors = own["no_pooling_se"].to_numpy().reshape(-1, terms).T.ravel()
    np.testing.assert_allclose(errors, np.sqrt(np.diag(inverse)), rtol=2e-3)


@pytest.mark.parametrize("name", ["sleepstudy", "radon", "Penicillin", "Pastes", "cbpp"])
def test_pooling_factor_against_draws(name: str) -> None:
    fit = fitted(name)
    levels = fit.pooling().levels
    for position, factor in enumerate(fit.model.design.factors):
        u = fit.group_draws(factor.name)
        brute = 1 - u.mean(axis=0).var(axis=0, ddof=1) / u.var(axis=1, ddof=1).mean(axis=0)
        found = pooling_factors(fit, position)
        np.testing.assert_allclose(found, brute, atol=0.012)
        assert ((found > 0) & (found < 1)).all()
        np.testing.assert_allclose(levels.loc[levels["factor"] == factor.name, "pooling_factor"], found)


def test_pooling_factor_against_dense_algebra() -> None:
    """At each node the covariance of all effects, as a dense matrix."""
    fit = fitted("Penicillin")
    design, result = fit.model.design, fit.result
    weights = np.exp(result.log_weights - result.log_weights.max())
    weights /= weights.sum()
    z = np.concatenate([np.eye(len(f.labels))[f.codes] for f in design.factors], axis=1)
    sizes = [len(f.labels) for f in design.factors]
    columns = np.column_stack([np.ones(design.n_rows), z])
    gram = columns.T @ columns
    priors = fit.model.coefficients
    means, total, expected = np.zeros(sizes[0]), 0.0, 0.0
    for theta, weight in zip(result.theta, weights, strict=True):
        if weight < 1e-7:
            continue
        tau, sigma = np.exp(theta[:2]), np.exp(theta[2])
        penalty = np.concatenate([[priors.scale[0] ** -2], np.repeat(tau**-2, sizes)])
        covariance = np.linalg.inv(gram / sigma**2 + np.diag(penalty))
        centre = covariance @ (columns.T @ (design.y - priors.mean[0])) / sigma**2
        own, block = centre[1 : 1 + sizes[0]], covariance[1 : 1 + sizes[0], 1 : 1 + sizes[0]]
        spread = (np.trace(block) - block.sum() / sizes[0]) / (sizes[0] - 1)
        means, total, expected = means + weight * own, total + weight, expected + weight * (own.var(ddof=1) + spread)
    brute = 1 - (means / total).var(ddof=1) / (expected / total)
    assert pooling_factors(fit, 0)[0] == pytest.approx(brute, abs=2e-3)  # 2,000 or so of the nodes are visited


def test_effective_groups_is_the_trace_of_the_smoother() -> None:
    """Given theta, 1 - B is how much an estimate moves with the group's own: its share of the trace."""
    fit = fitted("radon")
    levels, table = fit.pooling().levels, fit.pooling().table
    assert levels["effective_groups"][0] == pytest.approx((1 - table["shrinkage"]).sum())
    summary = fit.summary()["mean"]
    tau, sigma = summary["sd(Intercept|county)"], summary["sigma"]
    sizes = fit.model.design.factors[0].sizes
    assert levels["effective_groups"][0] == pytest.approx((1 - sigma**2 / (sigma**2 + sizes * tau**2)).sum(), rel=0.03)


def test_sentences_name_who_borrows_most_and_least() -> None:
    text = repr(fitted("radon").pooling())
    assert "Most is borrowed by MAHNOMEN (1 row)" in text
    assert "STLOUIS (116 rows)" in text
    assert "logit link" in repr(fitted("cbpp").pooling())
    assert "<table" in fitted("cbpp").pooling()._repr_html_()


def test_distributional_models_have_terms_of_sigma() -> None:
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(8), 25)
    scale = np.exp(rng.normal(0, 0.5, 8))[group]
    data = pd.DataFrame({"y": rng.normal(0, 1, 8)[group] + scale * rng.normal(size=200), "g": group})
    fit = pp.fit(pp.formula("y ~ 1 + (1 | g)", sigma="~ 1 + (1 | g)"), data, seed=1, draws=1000)
    table = fit.pooling().table
    own = table[table["term"] == "sigma.Intercept"]
    logs = [np.log(rows.std(ddof=0)) for _, rows in data.groupby("g")["y"]]
    np.testing.assert_allclose(own["no_pooling"], logs, atol=1e-4)
    np.testing.assert_allclose(own["no_pooling_se"], 1 / np.sqrt(2 * 25), rtol=1e-3)
    assert own["complete"].iloc[0] == pytest.approx(np.log(data["y"].std(ddof=0)), abs=1e-4)


def test_a_separated_group_has_no_separate_estimate() -> None:
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"g": np.repeat(np.arange(10), 6), "y": rng.integers(0, 2, 60)})
    data.loc[data["g"] == 3, "y"] = 1
    pooling = pp.fit("y ~ 1 + (1 | g)", data, family="bernoulli", seed=1, draws=1000).pooling()
    row = pooling.table.set_index("group").loc["3"]
    assert np.isnan(row["no_pooling"]) and np.isnan(row["no_pooling_se"]) and np.isfinite(row["partial"])
    assert "do not exist" in repr(pooling) or "does not exist" in repr(pooling)


def test_saved_fits(tmp_path: Any) -> None:
    fit = fitted("sleepstudy")
    fit.save(tmp_path / "fit.pp", data=False)
    loaded = pp.load(tmp_path / "fit.pp")
    pd.testing.assert_frame_equal(loaded.pooling().table, fit.pooling().table, rtol=1e-8)
    with pytest.raises(ModelError, match="saved without them"):
        loaded.pooling().held_out()


def test_mistakes() -> None:
    data = pp.datasets.load("sleepstudy")
    with pytest.raises(ModelError, match="about groups, and this model has none"):
        pp.fit("Reaction ~ Days", data, seed=1).pooling()
    pooling = fitted("sleepstudy").pooling()
    with pytest.raises(ModelError, match="no grouping factor 'Subjct'"):
        pooling.plot("Subjct")
    with pytest.raises(ModelError, match="no term 'days'"):
        pooling.plot(term="days")


def test_the_answer_cannot_be_changed() -> None:
    pooling = fitted("sleepstudy").pooling()
    copy = pooling.table
    copy["partial"] = 0.0
    assert pooling.table["partial"].abs().min() > 0


def test_plots() -> None:
    assert len(fitted("sleepstudy").pooling().plot().axes) == 2
    assert len(fitted("radon").pooling().plot().axes) == 1
    assert len(fitted("Pastes").pooling().plot("batch:cask").axes) == 1


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.integers(0, 30))
def test_information_of_a_poisson_row_is_its_mean(eta: float, y: int) -> None:
    found = row_information(Poisson(), np.array([float(y)]), np.array([eta]), np.zeros(1), 0.0)
    assert found[0, 0, 0] == pytest.approx(np.exp(eta), rel=1e-4)


def test_information_of_families_with_parameters_of_their_own() -> None:
    for name in ("student_t", "negative_binomial", "gamma"):
        family = resolve_family(name)
        derivatives = family.derivatives(0.3, 0.2, 1.1, 2.0, 1.0)
        found = row_information(family, np.array([2.0]), np.array([0.3]), np.array([0.2]), 1.1)[0]
        np.testing.assert_allclose(
            [found[0, 0], found[0, 1], found[1, 1]], [-derivatives[4], -derivatives[5], -derivatives[6]], atol=1e-4
        )
