"""`fit.variance()`: against lme4's definitions by hand, fit.icc(), Monte Carlo, and with bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.cases import DATA

import partialpool as pp
from partialpool.errors import DataError, ModelError
from partialpool.levels.at_rows import Points, Rows, at_rows
from partialpool.levels.decomposition import by_level, level_sets, on_response, wanted_sets
from partialpool.levels.design_effect import design_effects, effective_group_sizes, row_slopes, unit_weights
from partialpool.levels.link_scale import row_variance_on_link
from partialpool.levels.r_squared import level_r_squared, predicted_variance
from partialpool.levels.response_scale import partition
from partialpool.posterior.components import exact_residual, term_variances
from partialpool.posterior.summaries import node_weights

PARTS = ("level", "quantity", "scale", "mean", "sd", "q05", "q50", "q95")


def value(frame, level, quantity, scale="response", column="mean"):
    own = frame[(frame["level"] == level) & (frame["quantity"] == quantity) & (frame["scale"] == scale)]
    assert len(own) == 1, (level, quantity, scale)
    return float(own[column].iloc[0])


@pytest.fixture(scope="module")
def sleep():
    return pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1, threads=1)


@pytest.fixture(scope="module")
def nested():
    rng = np.random.default_rng(4)
    n = 360
    school = rng.integers(0, 9, n)
    room = 4 * school + rng.integers(0, 4, n)
    x = rng.normal(size=n)
    eta = -0.4 + 0.7 * x + 0.6 * rng.normal(size=9)[school] + 0.8 * rng.normal(size=36)[room]
    y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    data = pd.DataFrame({"y": y, "x": x, "school": school, "room": room})
    return pp.fit("y ~ x + (1 | school/room)", data, family="bernoulli", seed=1, threads=1)


# -- lme4's estimates, R's definitions (computed by hand in R 4, lme4: no package of R-squared) ------------------------


def components_at(model, coefficients, hyperparameters):
    """Variance of the predictors, of the groups and of rows at given parameters."""
    theta = model.hyperparameters.from_public(hyperparameters)[None, :]
    beta = np.array([[coefficients[name] for name in model.design.x_names]])
    between = term_variances(model, theta).sum()
    if model.exact:
        rest = exact_residual(model, theta)[0]
    else:
        here = at_rows(model, Points(theta, beta, np.ones(1)), Rows.of_model(model))
        rest = row_variance_on_link(model, theta, here)[0]
    return float(predicted_variance(model, beta)[0]), float(between), float(rest)


CATTLE = {"Intercept": -1.399223727829, "C(period)[2]": -0.991408883813,
          "C(period)[3]": -1.127809594158, "C(period)[4]": -1.579480950705}  # fmt: skip
TICKS = {"Intercept": 0.466860497413, "C(YEAR)[96]": 1.165584554829,
         "C(YEAR)[97]": -0.977916687635, "cH": -2.354606101066}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "formula", "family", "coefficients", "hyperparameters", "expected"),
    [
        (
            "sleepstudy", "Reaction ~ Days + (Days | Subject)", "gaussian",
            {"Intercept": 251.4051048485, "Days": 10.4672859596},
            {"sd(Intercept|Subject)": 24.7406579949841, "sd(Days|Subject)": 5.9221376588981,
             "cor(Intercept,Days|Subject)": 0.0655512382381, "sigma": 25.5917957216753},
            (908.953363, 1698.0837, 654.940008),
        ),
        (
            "Hsb82", "mAch ~ cses + meanses + (1 + cses | school)", "gaussian",
            {"Intercept": 12.68080696921, "cses": 2.19128019130, "meanses": 5.89635704799},
            {"sd(Intercept|school)": 1.641103022836, "sd(cses|school)": 0.828145796890,
             "cor(Intercept,cses|school)": -0.194808497709, "sigma": 6.059139851610},
            (8.04113886, 2.99245564, 36.7131757),
        ),
        (
            "cbpp", "incidence | trials(size) ~ C(period) + (1 | herd)", "binomial",
            CATTLE, {"sd(Intercept|herd)": 0.647519914522}, (0.345361236, 0.41928204, 3.28986813),
        ),
        (
            "grouseticks", "TICKS ~ C(YEAR) + cH + (1 | BROOD) + (1 | LOCATION)", "poisson",
            TICKS, {"sd(Intercept|BROOD)": 0.769652512348, "sd(Intercept|LOCATION)": 0.574145541203},
            (1.73001327, 0.922008092, 0.150694821),
        ),
    ],
)  # fmt: skip
def test_r_squared_of_lme4_by_hand(file, formula, family, coefficients, hyperparameters, expected):
    data = pd.read_csv(DATA / f"{file}.csv")
    if file == "grouseticks":
        data["cH"] = (data["HEIGHT"] - data["HEIGHT"].mean()) / 100
    model = pp.Model.from_formula(formula, data, family=family)
    assert components_at(model, coefficients, hyperparameters) == pytest.approx(expected, rel=1e-6)


# -- sleepstudy: everything that can be checked ------------------------------------------------------------------------


def test_gaussian_components_are_those_of_the_fit(sleep):
    found = sleep.variance()
    assert tuple(found.table.columns) == PARTS
    expected = sleep.variance_components()
    for name in ("Subject", "residual"):
        for quantity in ("variance", "sd", "share"):
            assert value(found.components, name, quantity) == pytest.approx(expected.loc[name, quantity])
    assert value(found.icc, "Subject", "icc") == pytest.approx(expected.loc["Subject", "share"])
    assert set(found.table["scale"]) == {"response"}
    for scale in ("link", "response"):
        assert sleep.variance(scale).table.equals(found.table)


def test_r_squared_at_draws(sleep):
    found = sleep.variance()
    days = sleep.draws("Days")
    between = (
        sleep.draws("sd(Intercept|Subject)") ** 2
        + 2 * 4.5 * sleep.draws("cor(Intercept,Days|Subject)")
        * sleep.draws("sd(Intercept|Subject)") * sleep.draws("sd(Days|Subject)")
        + 28.5 * sleep.draws("sd(Days|Subject)") ** 2
    )  # fmt: skip
    explained = days**2 * np.var(np.arange(10)) * 180 / 179
    total = explained + between + sleep.draws("sigma") ** 2
    marginal, conditional = explained / total, (explained + between) / total
    for name, expected in (("marginal", marginal), ("conditional", conditional)):
        assert value(found.r_squared, "all", f"r_squared_{name}") == pytest.approx(expected.mean())
        assert value(found.r_squared, "all", f"r_squared_{name}", column="q05") == pytest.approx(
            np.quantile(expected, 0.05), abs=1e-3
        )


def test_along_is_at_each_of_few_values_and_says_what_it_shows(sleep):
    rng = np.random.default_rng(2)
    x, g = np.tile([0, 1, 2, 5], 20), np.repeat(np.arange(10), 8)
    data = pd.DataFrame({"y": rng.normal(size=10)[g] * x + rng.normal(size=80), "x": x, "g": g})
    assert pp.fit("y ~ x + (x | g)", data, seed=1, threads=1).variance().along("x").places == [0, 1, 2, 5]
    shown = sleep.variance().along("Days").shown
    assert {"variance", "icc"} <= {*shown.columns}
    assert shown.index.get_level_values("Days").tolist() == ["0", "1.8", "3.6", "5.4", "7.2", "9"]
    z = np.random.default_rng(1).normal(size=80)
    line = pp.fit("y ~ z + (z | g)", data.assign(z=z), seed=1, threads=1).variance().along("z").sentences[0]
    digits = [len(word.strip(",.").partition(".")[2]) for word in line.split() if word.strip(",.-")[:1].isdigit()]
    assert len(digits) == 4 and max(digits) <= 3


def test_along_days(sleep):
    table = sleep.variance().along("Days", at=[0, 4, 9]).table
    for day in (0, 4, 9):
        sds = sleep.draws("sd(Intercept|Subject)"), sleep.draws("sd(Days|Subject)")
        cross = sleep.draws("cor(Intercept,Days|Subject)") * sds[0] * sds[1]
        between = sds[0] ** 2 + 2 * day * cross + day**2 * sds[1] ** 2
        here = table[table["Days"] == day]
        expected = (between / (between + sleep.draws("sigma") ** 2)).mean()
        assert value(here, "Subject", "variance") == pytest.approx(between.mean(), rel=0.1)
        assert value(here, "Subject", "icc") == pytest.approx(expected, abs=0.03)
    shown = repr(sleep.variance().along("Days"))
    assert "least" in shown and "largest" in shown


def test_rows_explained_by_gelman_and_pardoe(sleep):
    """1 - E V(residual) / V(y), from the draws of coefficients and effects."""
    effects, data = sleep.group_draws("Subject"), sleep.model.design
    codes, days = data.factors[0].codes, data.V[:, data.v_names.index("Days")]
    eta = sleep.draws("Intercept")[:, None] + sleep.draws("Days")[:, None] * days
    eta = eta + effects[:, codes, 0] + effects[:, codes, 1] * days
    expected = 1 - (data.y - eta).var(axis=1).mean() / data.y.var()
    assert value(sleep.variance().r_squared, "rows", "r_squared") == pytest.approx(expected, abs=0.002)
    assert value(sleep.variance().r_squared, "Subject", "r_squared[Days]") == 0.0


def test_group_level_r_squared():
    """Predictors of schools explain intercepts, and their interactions slopes."""
    rng = np.random.default_rng(2)
    n, groups = 1500, 60
    g = np.repeat(np.arange(groups), n // groups)
    z = rng.normal(size=groups)
    x = rng.normal(size=n)
    a = 1.0 * z + 0.5 * rng.normal(size=groups)
    b = 1 - 0.6 * z + 0.4 * rng.normal(size=groups)
    data = pd.DataFrame({"y": a[g] + b[g] * x + rng.normal(size=n), "x": x, "z": z[g], "g": g})
    fit = pp.fit("y ~ x * z + (x | g)", data, seed=1, threads=1)
    found = {own.term: own.value for own in level_r_squared(fit) if own.level == "g"}
    assert found["Intercept"] == pytest.approx(1 - 0.25 / np.var(a), abs=0.12)
    assert found["x"] == pytest.approx(1 - 0.16 / np.var(b), abs=0.15)
    table = fit.variance().r_squared
    assert 0 < value(table, "g", "r_squared[x]", column="sd") < 0.2
    assert (
        value(table, "g", "r_squared[x]", column="q05") < found["x"] < value(table, "g", "r_squared[x]", column="q95")
    )


def test_what_explains_the_differences_between_classes_is_named(nested):
    """Their school's effect, and predictors where these differ between groups."""
    text = repr(nested.variance())
    assert "Between groups of school:room, school explains" in text and "predictors explain 5" not in text
    rng = np.random.default_rng(3)
    room = np.repeat(np.arange(40), 8)
    z = rng.normal(size=40)
    y = rng.normal(0, 2, 8)[room // 5] + z[room] + 0.5 * rng.normal(size=40)[room] + rng.normal(size=320)
    data = pd.DataFrame({"y": y, "z": z[room], "school": room // 5, "room": room})
    both = pp.fit("y ~ z + (1 | school/room)", data, seed=1, threads=1)
    text = repr(both.variance())
    assert "Between groups of school:room, predictors and school explain" in text
    assert "Between groups of school, " not in text  # z differs within schools


def test_the_printed_sd_is_that_of_the_table_and_of_the_summary(sleep, nested):
    printed = nested.variance().shown
    for scale in ("link", "response"):
        for name, row in printed[printed["scale"] == scale].iterrows():
            assert row["level_sd"] == value(nested.variance().components, name, "sd", scale)
    summary = nested.summary()["mean"]
    own = printed[printed["scale"] == "link"]["level_sd"]
    assert own["school"] == pytest.approx(summary["sd(Intercept|school)"], rel=0.03)
    assert not any(name != name.strip() for name in sleep.variance().shown.columns)


# -- other responses ---------------------------------------------------------------------------------------------------


def test_bernoulli_nested(nested):
    found = nested.variance()
    expected = nested.icc()
    for level in expected.index:
        for column in ("mean", "q05", "q50", "q95"):
            assert value(found.icc, level, "icc", "link", column) == pytest.approx(expected.loc[level, column])
    shares = [value(found.components, name, "share") for name in ("school", "school:room", "residual")]
    assert sum(shares) == pytest.approx(1.0)
    assert value(found.icc, "school:room", "icc") == pytest.approx(shares[0] + shares[1])
    assert value(found.icc, "school", "icc") == pytest.approx(shares[0])
    assert "rows" not in set(found.r_squared["level"])
    for scale in ("link", "response"):
        assert set(nested.variance(scale).table["scale"]) == {scale}
        part = nested.variance(scale).components
        assert part.equals(found.components[found.components["scale"] == scale].reset_index(drop=True))


def test_response_scale_of_a_fit_by_simulation(nested):
    """At the posterior mean: R-squared and intraclass correlations of simulated schools, within 2%."""
    model, result = nested.model, nested.result
    weights = np.exp(result.log_weights - result.log_weights.max())
    theta = (weights @ result.theta / weights.sum())[None, :]
    beta = (weights @ result.beta_mean / weights.sum())[None, :]
    rows = Rows.of_model(model)
    here = at_rows(model, Points(theta, beta, np.ones(1)), rows)
    sets = level_sets(model)
    found = partition(model.family, here.eta, here.variances, wanted_sets(sets), here.powers)
    icc = by_level(here, found, sets, model)[2][0]
    rng, count = np.random.default_rng(3), 3000
    sds = np.exp(theta[0])
    eta = beta[0, 0] + beta[0, 1] * model.design.V[:, model.design.v_names.index("x")]
    school = sds[0] * rng.standard_normal((count, 1))
    p, q = (1 / (1 + np.exp(-(eta + school + sds[1] * rng.standard_normal((count, len(eta)))))) for _ in range(2))
    whole = (p.mean(axis=0) * (1 - p.mean(axis=0))).mean()
    levels = [factor.name for factor in model.design.factors]
    expected = {
        "school": ((p - p.mean(0)) * (q - q.mean(0))).mean() / whole,
        "school:room": p.var(axis=0).mean() / whole,
    }
    for k, name in enumerate(levels):
        assert icc[k] == pytest.approx(expected[name], rel=0.02 if name == "school:room" else 0.05)


def test_crossed_levels_do_something_together():
    rng = np.random.default_rng(8)
    n = 400
    a, b = rng.integers(0, 12, n), rng.integers(0, 10, n)
    y = rng.poisson(np.exp(0.2 + 0.6 * rng.normal(size=12)[a] + 0.7 * rng.normal(size=10)[b]))
    fit = pp.fit(
        "y ~ 1 + (1 | a) + (1 | b)", pd.DataFrame({"y": y, "a": a, "b": b}), family="poisson", seed=1, threads=1
    )
    part = on_response(fit)
    assert set(part.rest) == {"levels together", "residual"}
    theta = np.minimum(np.exp(fit.result.theta[:, 1::-1]) ** 2, 30.0)  # b has fewer groups
    first = fit.result.beta_mean[:, 0]
    own = np.exp(2 * first + theta.sum(axis=1))[:, None] * np.expm1(theta)
    together = np.exp(2 * first + theta.sum(axis=1)) * np.expm1(theta[:, 0]) * np.expm1(theta[:, 1])
    assert len(part.own) == len(own)
    usual = theta.sum(axis=1) < 20.0
    assert np.allclose(part.own[usual], own[usual])
    assert np.allclose(part.rest["levels together"][usual], together[usual])


@pytest.mark.parametrize(
    ("family", "response"),
    [
        ("student_t", lambda rng, eta: eta + rng.standard_t(5, len(eta))),
        ("lognormal", lambda rng, eta: np.exp(0.4 * eta + 0.5 * rng.normal(size=len(eta)))),
        ("gamma", lambda rng, eta: np.exp(0.4 * eta) * rng.gamma(3.0, 1 / 3.0, len(eta))),
        ("negative_binomial", lambda rng, eta: rng.poisson(np.exp(0.4 * eta) * rng.gamma(2.0, 0.5, len(eta)))),
        ("beta", lambda rng, eta: np.clip(rng.beta(5 / (1 + np.exp(-eta)), 5 / (1 + np.exp(eta))), 1e-6, 1 - 1e-6)),
    ],
)
def test_every_kind_of_family(family, response):
    rng = np.random.default_rng(5)
    g, x = np.repeat(np.arange(15), 12), rng.normal(size=180)
    eta = 0.3 + 0.5 * x + 0.7 * rng.normal(size=15)[g]
    data = pd.DataFrame({"y": response(rng, eta), "x": x, "g": g})
    found = pp.fit("y ~ x + (1 | g)", data, family=family, seed=1, threads=1).variance()
    scales = {"response"} if family == "student_t" else {"link", "response"}
    assert set(found.components["scale"]) == scales
    for scale in scales:
        assert 0.02 < value(found.icc, "g", "icc", scale) < 0.9
        assert 0 < value(found.r_squared, "all", "r_squared_marginal", scale) < 0.9
    assert "R-squared" in repr(found)
    if family in ("gamma", "negative_binomial"):
        variants = found.residual_variants["mean"]
        assert variants["lognormal"] < variants["delta"] < variants["trigamma"]
        chosen = "trigamma" if family == "gamma" else "lognormal"
        assert value(found.components, "residual", "variance", "link") == pytest.approx(variants[chosen])


def test_distributional_sigma_averages_over_rows():
    rng = np.random.default_rng(6)
    g, x = np.repeat(np.arange(20), 15), rng.normal(size=300)
    y = 0.8 * rng.normal(size=20)[g] + np.exp(0.1 + 0.4 * x) * rng.normal(size=300)
    fit = pp.fit(pp.formula("y ~ x + (1 | g)", sigma="~ x"), pd.DataFrame({"y": y, "x": x, "g": g}), seed=1, threads=1)
    found = fit.variance()
    at = np.exp(2 * (fit.draws("sigma.Intercept")[:, None] + fit.draws("sigma.x")[:, None] * x))
    assert value(found.components, "residual", "variance") == pytest.approx(at.mean(), rel=0.02)
    table = found.along("x", at=[-1.0, 1.0]).table
    low, high = (value(table[table["x"] == place], "g", "icc") for place in (-1.0, 1.0))
    assert low > high


def test_no_groups_and_no_predictors():
    data = pp.datasets.load("sleepstudy")
    fit = pp.fit("Reaction ~ Days", data, seed=1, threads=1)
    found = fit.variance()
    assert value(found.r_squared, "all", "r_squared_marginal") == pytest.approx(0.28, abs=0.03)
    assert not len(found.icc) and not len(found.design_effect)
    assert "no groups" in repr(found)
    with pytest.raises(ModelError, match="has none"):
        found.along("Days")
    alone = pp.fit("Reaction ~ 1 + (1 | Subject)", data, seed=1, threads=1).variance()
    assert value(alone.r_squared, "all", "r_squared_marginal") == 0.0


# -- design effects, weights -------------------------------------------------------------------------------------------


def test_design_effect_of_unequal_groups():
    rng = np.random.default_rng(7)
    g = np.repeat(np.arange(8), [2, 3, 5, 8, 10, 12, 20, 40])
    fit = pp.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": rng.normal(size=8)[g] + rng.normal(size=100), "g": g}), seed=1)
    sizes = np.bincount(g)
    assert effective_group_sizes(fit.model, fit.result.theta[:1])[0][0] == pytest.approx((sizes**2).sum() / 100)
    found = fit.variance()
    expected = 1 + ((sizes**2).sum() / 100 - 1) * value(found.icc, "g", "icc")
    assert value(found.design_effect, "g", "design_effect") == pytest.approx(expected)


def test_design_effect_is_that_of_the_dense_covariance():
    """Slopes that correlate, a nested and a crossed factor: the variance of a mean is 1' V 1."""
    rng = np.random.default_rng(31)
    g, h = rng.integers(0, 9, 150), rng.integers(0, 5, 150)
    data = pd.DataFrame({"x": rng.normal(1.0, 1.0, 150), "g": g, "c": 3 * g + rng.integers(0, 3, 150), "h": h})
    data["y"] = rng.normal(size=9)[g] + rng.normal(size=9)[g] * data["x"] + rng.normal(size=5)[h]
    data["y"] += rng.normal(size=27)[data["c"]] + rng.normal(size=150)
    fit = pp.fit("y ~ x + (x | g) + (1 | c) + (1 | h)", data, seed=1, threads=1)
    found, model = fit.variance(), fit.model
    effects = design_effects(fit, found.scales[0])
    for k in (0, len(fit.result.theta) // 2):
        theta = fit.result.theta[k : k + 1]
        whole = np.eye(150) * exact_residual(model, theta)[0]
        of_g = np.zeros((150, 150))
        for term, group in zip(model.hyperparameters.terms, model.design.groups, strict=True):
            lam = term.covariance.factor(theta[:, term.parameters])[0]
            z = model.design.V[:, group.columns] @ lam
            own = model.design.factors[group.factor]
            added = (z @ z.T) * (own.codes[:, None] == own.codes[None, :])
            whole += added
            of_g += added if own.name == "g" else 0.0
        assert effects["all"][k] == pytest.approx(whole.sum() / np.trace(whole))
        alone = np.trace(whole) - np.trace(of_g) + of_g.sum()
        assert effects["g"][k] == pytest.approx(alone / np.trace(whole))


def test_a_slope_centred_within_groups_leaves_the_variance_of_a_mean_alone():
    rng = np.random.default_rng(32)
    g, x = np.repeat(np.arange(20), 12), np.tile(np.linspace(-1, 1, 12), 20)
    data = pd.DataFrame({"y": 2 * rng.normal(size=20)[g] * x + 0.3 * rng.normal(size=240), "x": x, "g": g})
    found = pp.fit("y ~ x + (0 + x | g)", data, seed=1, threads=1).variance()
    assert value(found.icc, "g", "icc") > 0.9
    assert value(found.design_effect, "g", "design_effect") < 0.1


def test_design_effect_of_a_binary_response_by_simulation():
    rng = np.random.default_rng(33)
    g = np.repeat(np.arange(30), rng.integers(4, 30, 30))
    x = rng.normal(size=len(g))
    eta = -1.0 + x + 0.7 * rng.normal(size=30)[g] + rng.normal(size=30)[g] * x
    data = pd.DataFrame({"y": rng.binomial(1, 1 / (1 + np.exp(-eta))), "x": x, "g": g})
    fit = pp.fit("y ~ x + (x | g)", data, family="bernoulli", seed=1, threads=1)
    weights = node_weights(fit.result)
    theta, beta = weights @ fit.result.theta, weights @ fit.result.beta_mean
    lam = fit.model.hyperparameters.terms[0].covariance.factor(theta[None])[0]
    means, total, noise = [], np.zeros(len(g)), 0.0
    for _ in range(10):
        u = rng.normal(size=(2000, 30, 2)) @ lam.T
        p = 1 / (1 + np.exp(-(beta[0] + beta[1] * x + u[:, g, 0] + u[:, g, 1] * x)))
        means.append(p.mean(axis=1))
        total += p.mean(axis=0) / 10
        noise += (p * (1 - p)).sum(axis=1).mean() / 10
    simulated = (np.concatenate(means).var() * len(g) ** 2 + noise) / (total * (1 - total)).sum()
    here = at_rows(fit.model, Points(theta[None], beta[None], np.ones(1)), Rows.of_model(fit.model))
    sets = level_sets(fit.model)
    found = partition(fit.model.family, here.eta, here.variances, wanted_sets(sets), here.powers)
    icc = by_level(here, found, sets, fit.model)[2][0, 0]
    size = effective_group_sizes(fit.model, theta[None], row_slopes(fit))[0][0, 0]
    assert 1 + (size - 1) * icc == pytest.approx(simulated, rel=0.03)


def test_a_row_of_weight_two_is_two_rows():
    rng = np.random.default_rng(9)
    g, x = np.repeat(np.arange(10), 8), rng.normal(size=80)
    w = rng.integers(1, 4, 80)
    data = pd.DataFrame({"y": 0.5 * x + rng.normal(size=10)[g] + rng.normal(size=80), "x": x, "g": g, "w": w})
    weighted = pp.fit("y | weights(w) ~ x + (x | g)", data, seed=1, threads=1).variance()
    repeated = pp.fit(
        "y ~ x + (x | g)", data.loc[data.index.repeat(w)].reset_index(drop=True), seed=1, threads=1
    ).variance()
    for frame in ("components", "icc", "r_squared", "design_effect"):
        one, two = getattr(weighted, frame), getattr(repeated, frame)
        assert np.allclose(one["mean"], two["mean"], rtol=0.1, atol=0.02)
    assert unit_weights(weighted.source.model.design).sum() == w.sum()


def test_trials_are_units():
    formula = "incidence | trials(size) ~ C(period) + (1 | herd)"
    fit = pp.fit(formula, pp.datasets.load("cbpp"), family="binomial", seed=1, threads=1)
    found = fit.variance()
    effect = value(found.design_effect, "herd", "design_effect", column="q50")
    assert effect > 3
    left = value(found.design_effect, "herd", "effective_size", column="q50")
    assert left == pytest.approx(842 / effect, rel=0.01)


# -- saved, wrong, drawn -----------------------------------------------------------------------------------------------


def test_saved_and_loaded(sleep, tmp_path):
    sleep.save(tmp_path / "fit.pp")
    again = pp.load(tmp_path / "fit.pp")
    assert np.allclose(again.variance().table["mean"], sleep.variance().table["mean"])
    sleep.save(tmp_path / "bare.pp", data=False)
    with pytest.raises(ModelError, match="needs the rows"):
        pp.load(tmp_path / "bare.pp").variance()


def test_words_of_a_model_whose_groups_are_those_of_sigma():
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"y": rng.normal(size=80), "g": np.arange(80) % 8})
    found = pp.fit(pp.formula("y ~ 1", sigma="~ 1 + (1 | g)"), data, seed=1, threads=1).variance()
    assert "no groups in the mean of y" in repr(found) and "there are no predictors" in repr(found)


def test_an_intercept_alone_explains_nothing():
    """Rounding is not a predictor."""
    data = {"y": [1.0, 2, 3, 4, 5, 6, 3], "g": list("aabbccd")}
    assert "there are no predictors" in repr(pp.fit("y ~ 1 + (1 | g)", data, seed=1, threads=1).variance())


def test_bad_input(sleep):
    with pytest.raises(ModelError, match="response"):
        sleep.variance("reponse")
    found = sleep.variance()
    with pytest.raises(ModelError, match="Days"):
        found.along("days")
    with pytest.raises(DataError, match="numbers"):
        found.along("Days", at=["a"])
    with pytest.raises(DataError, match="finite"):
        found.along("Days", at=[np.nan])
    with pytest.raises(ModelError, match="quantity"):
        found.along("Days", at=[1, 2]).plot("iccc")


def test_inverse_link_has_no_response_scale():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(10), 10)
    y = rng.gamma(4.0, 1 / (4.0 * (2 + 0.2 * rng.normal(size=10)[g])))
    fit = pp.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": g}), family=pp.families.Gamma(link="inverse"), seed=1)
    found = fit.variance()
    assert set(found.table["scale"]) == {"link"} and "no finite variance" in repr(found)
    with pytest.raises(ModelError, match="no finite variance"):
        fit.variance("response")


def test_plots(sleep, nested):
    from matplotlib.figure import Figure

    assert isinstance(sleep.variance().plot(), Figure)
    figure = nested.variance().plot()
    assert all(bar.get_x() == 0 for bar in figure.axes[0].patches)  # so that intervals lie at the bars' ends
    curves = sleep.variance().along("Days", at=[0, 3, 9])
    assert len(curves.plot().axes) == 2
    assert len(curves.plot("icc").axes) == 1
    with pytest.raises(ModelError, match="panels"):
        curves.plot(ax=curves.plot("icc").axes[0])
