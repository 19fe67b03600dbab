"""Exchangeability: relations of group effects with covariates, their permutation reference, the model proposed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.errors import DataError, ModelError
from partialpool.levels.exchangeability import check_exchangeability, conditional_moments, group_slopes
from partialpool.levels.permutation import permuted, relation, upper_ranks, whiten


def simulated(seed=1, groups=30, plant=0.0, tau=0.7):
    """Unbalanced groups, slopes that vary; the intercepts go with z by `plant`."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.round(np.exp(rng.normal(2, 0.8, groups))), 2, 60).astype(int)
    g = np.repeat(np.arange(groups), sizes)
    z = rng.normal(size=groups)
    x = rng.normal(size=g.size)
    u = rng.normal(size=(groups, 2)) * [tau, 0.4]
    y = 1 + plant * z[g] + u[g, 0] + (0.5 + u[g, 1]) * x + rng.normal(size=g.size)
    kind = np.array(["low", "mid", "top"], dtype=object)[np.digitize(z, [-0.5, 0.5])]
    return pd.DataFrame({"g": [f"g{k:03d}" for k in g], "x": x, "z": z[g], "kind": kind[g], "y": y})


@pytest.fixture(scope="module")
def planted():
    data = simulated(plant=0.8)
    return data, pp.fit("y ~ x + (1 + x | g)", data, seed=1, threads=1)


# -- the statistics ---------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), q=st.integers(1, 3), c=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_the_regression_is_generalised_least_squares_of_own_estimates(seed, q, c):
    """Against dense algebra: own estimates, their covariances, one big weighted regression."""
    rng = np.random.default_rng(seed)
    groups = 9
    roots = rng.normal(size=(groups, q, q))
    sampling = roots @ np.swapaxes(roots, 1, 2) + 0.2 * np.eye(q)
    half = rng.normal(size=(q, q)) + 2 * np.eye(q)
    prior = half @ half.T
    own = rng.normal(size=(groups, q)) * 2
    spread = np.linalg.inv(np.linalg.inv(prior) + np.linalg.inv(sampling))
    means = np.einsum("jab,jb->ja", spread @ np.linalg.inv(sampling), own)
    x = rng.normal(size=(groups, c))
    found = whiten(means, spread, prior, rng)
    fitted = relation(x, found.weights)
    design = np.kron(np.column_stack([np.ones(groups), x]), np.eye(q))
    weights = np.zeros((groups * q, groups * q))
    for j in range(groups):
        weights[j * q : j * q + q, j * q : j * q + q] = np.linalg.inv(prior + sampling[j])
    information = design.T @ weights @ design
    beta = np.linalg.solve(information, design.T @ weights @ own.ravel()).reshape(1 + c, q)
    covariance = np.linalg.inv(information).reshape(1 + c, q, 1 + c, q)
    np.testing.assert_allclose(fitted.estimates(found.scores), beta, rtol=1e-6, atol=1e-8)
    errors = np.sqrt(np.einsum("aiai->ai", covariance))[1:]
    np.testing.assert_allclose(fitted.errors, errors, rtol=1e-6)
    wald = [beta[1:, t] @ np.linalg.solve(covariance[1:, t, 1:, t], beta[1:, t]) for t in range(q)]
    np.testing.assert_allclose(fitted.statistics(found.scores), wald, rtol=1e-5)


def test_a_group_that_tells_nothing_changes_nothing():
    prior = np.eye(2)
    spread = np.tile(np.diag([0.2, 0.5]), (6, 1, 1))
    spread[0] = np.diag([0.2, 1.0])  # nothing of the second effect
    means = np.random.default_rng(1).normal(size=(6, 2))
    means[0, 1] = 0.0
    x = np.arange(6.0)[:, None]
    one, two = (whiten(means, spread, prior, np.random.default_rng(seed)) for seed in (1, 2))
    assert one.noise[0, 1] != two.noise[0, 1]
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-12)
    kept = relation(x[1:], one.weights[1:])
    np.testing.assert_allclose(
        relation(x, one.weights).estimates(one.scores)[:, 1], kept.estimates(one.scores[1:])[:, 1]
    )


def test_p_values_are_uniform_where_groups_are_exchangeable():
    """Sizes differ a hundredfold and are a covariate: neither estimates nor shrunken effects could be permuted."""
    p, smallest = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        sizes = np.exp(rng.uniform(0, np.log(100), 20))
        sampling, tau = 4 / sizes, 0.5
        own = rng.normal(size=20) * np.sqrt(tau**2 + sampling)
        shrink = tau**2 / (tau**2 + sampling)
        found = whiten((shrink * own)[:, None], (tau**2 * (1 - shrink))[:, None, None], np.array([[tau**2]]), rng)
        covariates = [np.log(sizes)[:, None], np.eye(3)[rng.integers(0, 3, 20)][:, 1:]]
        alone, adjusted = permuted(found, [relation(x, found.weights) for x in covariates], 99, rng)
        p.append(alone[:, 0])
        smallest.append(adjusted.min())
    for column in np.array(p).T:
        assert abs((column <= 0.05).mean() - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 300)
        assert abs((column <= 0.5).mean() - 0.5) < 3 * np.sqrt(0.25 / 300)
    assert (np.array(smallest) <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_ranks_by_counting():
    values = np.random.default_rng(1).integers(0, 5, (40, 3)).astype(float)
    expected = (values[None] >= values[:, None]).mean(axis=1)
    np.testing.assert_allclose(upper_ranks(values), expected)


def test_slopes_over_groups_are_least_squares():
    rng = np.random.default_rng(1)
    draws, x = rng.normal(size=(4, 12, 2)), rng.normal(size=(12, 3))
    design = np.column_stack([np.ones(12), x])
    for d in range(4):
        np.testing.assert_allclose(group_slopes(draws, x)[d], np.linalg.lstsq(design, draws[d], rcond=None)[0][1:])


def test_moments_by_formula_in_a_one_way_model():
    """At typical hyperparameters, with the mean integrated out: against dense conditioning."""
    data = simulated(seed=4)
    fit = pp.fit("y ~ 1 + (1 | g)", data, seed=1, threads=1, priors={"Intercept": pp.Normal(0, 100)})
    kept = np.arange(len(fit.result.draws_theta))
    means, spread, prior = conditional_moments(fit, 0, kept, fit.group_draws("g"))
    codes = fit.model.design.factors[0].codes
    tau2, sigma = fit.draws("sd(Intercept|g)").mean() ** 2, fit.draws("sigma").mean()
    Z = np.eye(30)[codes]
    total = tau2 * Z @ Z.T + sigma**2 * np.eye(len(Z)) + 1e4
    expected = tau2 * Z.T @ np.linalg.solve(total, data["y"].to_numpy())
    variance = tau2 - tau2**2 * np.einsum("ij,ij->j", Z, np.linalg.solve(total, Z))
    assert prior[0, 0] == pytest.approx(tau2, rel=0.01)
    np.testing.assert_allclose(means[:, 0], expected, atol=0.02)
    np.testing.assert_allclose(spread[:, 0, 0], variance, rtol=0.02)


# -- what a user sees -------------------------------------------------------------------------------------------------


def test_a_planted_relation_is_found_and_the_model_that_has_it_fitted(planted):
    data, fit = planted
    found = check_exchangeability(fit, ["size", "order", "z"], data=data)
    table = found.table.set_index(["covariate", "term"])
    assert table.loc[("z", "Intercept"), "p_adjusted"] <= 0.01
    assert (table.drop(("z", "Intercept"))["p_adjusted"] > 0.05).all()
    scale = data.groupby("g")["z"].first().std(ddof=0)
    row = table.loc[("z", "Intercept")]
    assert abs(row["estimate"] - 0.8 * scale) < 3 * row["se"] and 0 < row["mean"] < row["estimate"] + row["se"]
    assert found.formula == "y ~ x + (1 + x | g) + z"
    assert found.found[["covariate", "term"]].to_numpy().tolist() == [["z", "Intercept"]]
    extended = found.refit()
    again = pp.fit(found.formula, data, seed=1, threads=1)
    pd.testing.assert_frame_equal(extended.summary(), again.summary())
    summary = extended.summary().loc["z"]
    assert summary["q05"] < 0.8 < summary["q95"]
    assert summary["mean"] * scale == pytest.approx(row["estimate"], abs=row["se"])
    assert "Intercepts go with z" in repr(found) and ".refit() fits it" in repr(found)
    # given the covariate nothing is left
    left = check_exchangeability(extended, "z", data=data).table
    assert (left["p"] > 0.05).all()


def test_the_posterior_relation_by_hand(planted):
    data, fit = planted
    row = check_exchangeability(fit, "z", data=data).table.set_index("term").loc["x"]
    z = data.groupby("g")["z"].first().to_numpy()
    z = (z - z.mean()) / z.std()
    slopes = fit.group_draws("g")[:, :, 1] @ z / (z @ z)
    np.testing.assert_allclose([row["mean"], row["sd"]], [slopes.mean(), slopes.std()])
    np.testing.assert_allclose([row["q05"], row["q95"]], np.quantile(slopes, [0.05, 0.95]))


def test_ways_to_give_covariates(planted):
    data, fit = planted
    by_group = data.groupby("g")["z"].first()
    tables = [
        check_exchangeability(fit, given, data=frame).table.iloc[:, 2:]
        for given, frame in (
            ("z", data), (["z"], data.drop_duplicates("g")), ({"z": by_group}, None), ({"z": by_group.to_dict()}, None),
            ({"z": by_group.to_numpy()}, None), (data[["g", "z"]], None),
        )
    ]  # fmt: skip
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    assert list(check_exchangeability(fit).table["covariate"].unique()) == ["size", "order"]
    every = check_exchangeability(fit, data=data).table
    assert list(every["contrast"].unique()) == ["size", "order", "z", "kind[mid]", "kind[top]"]
    # one p for all categories together
    assert every[every["covariate"] == "kind"].groupby("term")["p"].nunique().tolist() == [1, 1]


def test_categories_and_slopes_in_the_formula():
    rng = np.random.default_rng(3)
    data = simulated(seed=3, groups=40)
    data["kind of"] = np.where(data["kind"] == "top", "b", "a")
    data["y"] += 1.5 * (data["kind of"] == "b") * data["x"]
    fit = pp.fit("y ~ x + (1 + x | g)", data, seed=1, threads=1, priors={"beta": pp.Normal(0, 2)})
    found = check_exchangeability(fit, "kind of", data=data)
    assert found.formula == "y ~ x + (1 + x | g) + `kind of` + x:`kind of`"
    extended = found.refit(draws=500)
    assert extended.summary().loc["x:kind of[b]", "mean"] == pytest.approx(1.5, abs=0.6)
    assert str(extended.model.priors["x:kind of[b]"]) == "Normal(0, 2)" and extended.draws("x").shape == (500,)
    assert "size" not in found.table["covariate"].tolist() and rng is not None


def test_rows_with_gaps_in_ids_or_covariates_are_passed_over():
    """Those that the fit dropped, and others."""
    data = simulated(seed=3, plant=1.2)
    data["school"] = data["g"].str[1:].astype(int)
    data["class"] = np.arange(len(data)) % 2
    data["text"] = data["g"]
    whole = pp.fit("y ~ x + (1 | school/class)", data, seed=1, threads=1)
    one = whole.check_exchangeability("z", "school:class", data=data)
    gone = pd.DataFrame({"y": [1.0, 2.0, 3.0], "x": [0.0, 1.0, np.nan], "g": ["g001", None, "g002"]})
    gone = gone.assign(school=[np.nan, 3, 2], text=gone["g"], **{"class": [1, np.nan, 1]})
    more = pd.concat([data, gone], ignore_index=True)
    fit = pp.fit("y ~ x + (1 | school/class)", more, seed=1, threads=1)
    two = fit.check_exchangeability("z", "school:class", data=more)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert "z" in fit.check_exchangeability(factor="school", data=more.drop(columns="kind")).table["covariate"].tolist()
    named = pp.fit("y ~ x + (1 | text)", more, seed=1, threads=1)
    assert named.check_exchangeability("z", data=more).table["p"].item() <= 0.01


def test_what_is_printed_says_which_slope_the_verdict_is_about(planted):
    data, fit = planted
    found = check_exchangeability(fit, "z", data=data)
    assert list(found.table.columns[3:]) == ["estimate", "se", "p", "p_adjusted", "mean", "sd", "q05", "q95"]
    heading = repr(found).splitlines()[2]
    assert heading.index("p_adjusted") < heading.index("posterior mean") < heading.index("q05")
    assert "over these very groups" in repr(found)
    assert "means of x; .check_context() tells." in repr(found)
    apart = pp.fit("y ~ within(x | g) + between(x | g) + (1 | g)", data, seed=1, threads=1)
    assert "check_context" not in repr(check_exchangeability(apart, "z", data=data))


def test_covariates_that_say_the_same_are_proposed_once():
    data = simulated(seed=3, plant=1.2)
    data["twice"] = 2 * data["z"] - 7
    found = check_exchangeability(pp.fit("y ~ x + (1 | g)", data, seed=1, threads=1), ["z", "twice"], data=data)
    assert found.found["covariate"].tolist() == ["z", "twice"]
    assert found.formula == "y ~ x + (1 | g) + z"
    assert "Left out of it: twice, which tells no more of the groups than z." in repr(found)
    assert "adjusted for 2 tests" in repr(found)
    assert "z" in found.refit(draws=100).parameters
    with pytest.raises(ModelError, match=r"refit.. keeps the priors"):
        found.refit(priors={})
    alone = check_exchangeability(pp.fit("y ~ x + (1 | g)", data, seed=1, threads=1), "z", data=data)
    assert "go with z (p = 0.001)." in repr(alone)


def test_a_covariate_that_goes_with_a_predictor_of_the_model():
    """Its p is cautious: the effects are what the predictor left."""
    data = simulated(seed=3, plant=1.2)
    fit = pp.fit("y ~ x + z + (1 | g)", data, seed=1, threads=1)
    z = data.groupby("g")["z"].first().to_numpy()
    near, far = z + 0.5 * np.random.default_rng(1).normal(size=30), np.random.default_rng(2).normal(size=30)
    assert "say part of what near would" in repr(check_exchangeability(fit, {"near": near, "far": far}))
    bare = pp.fit("y ~ x + (1 | g)", data, seed=1, threads=1)
    assert "say part of" not in repr(check_exchangeability(bare, {"near": near}))


def test_nothing_found_and_a_fit_all_the_same():
    data = simulated(seed=8)
    found = check_exchangeability(pp.fit("y ~ x + (1 | g)", data, seed=1, threads=1))
    assert found.formula is None and "Nothing stands out" in repr(found)
    with pytest.raises(ModelError, match=r"No relation was found.*\.refit\(\['size'\]\)"):
        found.refit()
    extended = found.refit("size")
    assert "log_size_g" in extended.parameters
    sizes = data.groupby("g").size()
    np.testing.assert_allclose(found.data["log_size_g"], np.log(sizes[data["g"]]))
    with pytest.raises(ModelError, match="Did you mean 'size'"):
        found.refit("sizes")


def test_order():
    """Of first rows where ids are text; the ids' own where they are numbers or ordered."""
    data = simulated(seed=2).sample(frac=1, random_state=1)
    fit = pp.fit("y ~ 1 + (1 | g)", data, seed=1, threads=1)
    own = check_exchangeability(fit, "order").covariates[0].values
    first = data["g"].drop_duplicates().tolist()
    assert [first[int(k) - 1] for k in own] == list(fit.model.design.factors[0].labels)
    for ids in (data["g"].str[1:].astype(int), pd.Categorical(data["g"], ordered=True)):
        fit = pp.fit("y ~ 1 + (1 | g)", data.assign(g=ids), seed=1, threads=1)
        assert check_exchangeability(fit, "order").covariates[0].values.tolist() == list(range(1, 31))


@pytest.mark.parametrize(
    ("formula", "family"),
    [
        ("b ~ x + (1 | g)", "bernoulli"),
        ("y ~ x + (1 | h/g)", "gaussian"),
        ("b ~ x + (1 | g) + (1 | item)", "bernoulli"),
        ("y ~ x + (x || g) + (1 | item)", "gaussian"),
    ],
)
def test_other_families_and_several_factors(formula, family):
    data = simulated(seed=5, plant=1.5)
    data["b"] = (data["y"] > 1).astype(int)
    data["item"] = np.arange(len(data)) % 7
    data["h"] = data["g"].str[1:].astype(int) % 6
    fit = pp.fit(formula, data, family=family, seed=1, threads=1)
    name = next(factor.name for factor in fit.model.design.factors if factor.name.endswith("g"))
    found = check_exchangeability(fit, ["size", "z"], name, data=data)
    table = found.table.set_index(["covariate", "term"])
    assert np.isfinite(table.drop(columns="contrast").to_numpy()).all()
    assert table.loc[("z", "Intercept"), "p"] <= 0.01
    assert ("logit" in repr(found)) == (family == "bernoulli")


def test_a_formula_of_sigma():
    rng = np.random.default_rng(1)
    g, z = np.repeat(np.arange(20), 8), rng.normal(size=20)
    y = rng.normal(size=20)[g] + rng.normal(size=160) * np.exp(0.8 * z[g])
    data = pd.DataFrame({"g": g, "y": y, "z": z[g]})
    terms = pp.formula("y ~ 1 + (1 | g)", sigma="~ 1 + (1 | g)")
    fit = pp.fit(terms, data, seed=1, threads=1, draws=1000, ess=400)
    found = check_exchangeability(fit, "z", data=data)
    assert found.found["term"].tolist() == ["sigma.Intercept"]
    assert str(found.formula) == "y ~ 1 + (1 | g), sigma ~ 1 + (1 | g) + z"


def test_saved_and_loaded(planted, tmp_path):
    data, fit = planted
    fit.save(tmp_path / "fit.pp")
    one = check_exchangeability(fit, "z", data=data).table
    two = check_exchangeability(pp.load(tmp_path / "fit.pp"), "z", data=data).table
    pd.testing.assert_frame_equal(one, two)
    fit.save(tmp_path / "bare.pp", data=False)
    with pytest.raises(ModelError, match="needs the rows"):
        check_exchangeability(pp.load(tmp_path / "bare.pp"))


def test_mistakes(planted):
    data, fit = planted
    for options, message in (
        ({"by": "zz", "data": data}, "Did you mean 'z'"),
        ({"by": "z"}, "keeps only the columns of its formula"),
        ({"by": "x"}, r"varies within the groups of 'g', as in 'g000' between rows 0 and 1.*check_context"),
        ({"by": {"z": {"g000": 1.0}}}, "no value for groups g001, g002"),
        ({"by": {"z": [1.0, 2.0]}}, "has 2 values"),
        ({"by": {"z": 3}}, "has 0 values"),
        ({"by": {"z": [1.0] * 30}}, "is the same in every group"),
        ({"by": {"z": [np.inf] + [1.0] * 29}}, "not finite"),
        ({"by": {"z": [f"k{i}" for i in range(30)]}}, "30 categories for 30 groups"),
        ({"by": "z", "data": data[data["g"] != "g004"]}, "no value for group g004"),
    ):
        with pytest.raises(DataError, match=message):
            check_exchangeability(fit, **options)
    for options, message in (
        ({"factor": "h"}, "no grouping factor 'h'"), ({"permutations": 5}, "at least 19"),
        ({"by": []}, "names nothing"), ({"by": 3}, "by=3 is not possible"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            check_exchangeability(fit, **options)
    with pytest.raises(ModelError, match="has none"):
        check_exchangeability(pp.fit("y ~ x", data, seed=1, threads=1))
    few = pp.fit("y ~ x + (1 | kind)", data, seed=1, threads=1)
    with pytest.raises(ModelError, match="'kind' has 3 groups"):
        check_exchangeability(few)
    even = data.groupby("g").head(2)
    with pytest.raises(ModelError, match="all have 2 rows"):
        check_exchangeability(pp.fit("y ~ x + (1 | g)", even, seed=1, threads=1), "size")


def test_it_is_the_same_at_every_call_and_drawn(planted):
    data, fit = planted
    one, two = (check_exchangeability(fit, data=data, permutations=99) for _ in range(2))
    pd.testing.assert_frame_equal(one.table, two.table)
    assert len(one.plot().axes) == 8
    assert len(check_exchangeability(fit, {"z": np.arange(30)}, permutations=99).plot().axes) == 2
    assert "<table" in one._repr_html_()


# -- what must not change a fit ---------------------------------------------------------------------------------------

MODELS = {
    "y ~ x + (1 + x | g)": "gaussian",
    "y ~ x + (1 | h/g)": "gaussian",
    "y ~ x + (1 | g) + (1 | item)": "gaussian",
    "b ~ x + (1 | g)": "bernoulli",
    "b ~ x + (1 | h/g)": "bernoulli",
    "b ~ x + (1 | g) + (1 | item)": "bernoulli",
}


@pytest.mark.parametrize("formula", MODELS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
def test_labels_of_groups_and_order_of_rows_change_no_fit(formula, seed):
    """Parameters and every group's effect, within four Monte Carlo errors of both fits."""
    rng = np.random.default_rng(seed)
    data = simulated(seed=seed, groups=12)
    data["h"] = data["g"].str[-1].astype(int) % 4
    data["item"] = rng.integers(0, 5, len(data))
    data["b"] = (data["y"] > 1).astype(int)
    other = data.sample(frac=1, random_state=seed)
    names = {}
    for column in ("g", "h", "item"):
        ids = data[column].unique()
        names[column] = dict(zip(ids, rng.permutation(1000)[: len(ids)], strict=True))
        other[column] = other[column].map(names[column])
    options = {"family": MODELS[formula], "seed": 5, "threads": 1, "draws": 500, "progress": False}
    one, two = pp.fit(formula, data, **options), pp.fit(formula, other, **options)
    first, second = one.summary(), two.summary()
    assert list(first.index) == list(second.index)
    error = first["sd"] * np.sqrt(1 / first["ess"] + 1 / second["ess"])
    assert (np.abs(first["mean"] - second["mean"]) < 4 * error + 1e-6 * first["sd"]).all()
    assert (np.abs(np.log(first["sd"] / second["sd"])) < 4 / np.sqrt(np.minimum(first["ess"], second["ess"]))).all()
    assert one.log_marginal_likelihood == pytest.approx(two.log_marginal_likelihood, abs=0.1)
    ess = min(first["ess"].min(), second["ess"].min())
    for factor in one.model.design.factors:
        own = {tuple(label.split(":")): label for label in factor.labels}
        rename = {
            label: ":".join(str(_renamed(names[v], part)) for v, part in zip(factor.variables, parts, strict=True))
            for parts, label in own.items()
        }
        here, there = (fit.groups(factor.name) for fit in (one, two))
        here["group"] = here["group"].map(rename)
        both = here.merge(there, on=["group", "term"])
        assert len(both) == len(here) and (both["n_x"] == both["n_y"]).all()
        error = both["sd_x"] * np.sqrt(2 / ess)
        assert (np.abs(both["mean_x"] - both["mean_y"]) < 4 * error + 1e-6 * both["sd_x"]).all()


def _renamed(names, part):
    return next(new for old, new in names.items() if str(old) == part)
