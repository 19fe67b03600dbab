from __future__ import annotations

import functools
import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.errors import DataError, ModelError
from partialpool.levels.fitted_interactions import FittedInteractions, fitted_interactions
from partialpool.levels.mean_derivatives import inverse_link_derivatives, mean_derivatives
from partialpool.spec.families import LogNormal
from partialpool.spec.links import LINKS, inverse_link

DRAWS = 200


@functools.cache
def rows() -> pd.DataFrame:
    """120 rows in 24 groups: x, positive t and category s of rows, z of groups, period in three values."""
    draw = np.random.default_rng(3)
    g = np.repeat(np.arange(24), 5)
    frame = pd.DataFrame({
        "g": g, "x": draw.normal(size=120), "t": draw.lognormal(size=120), "s": draw.choice(list("abc"), 120),
        "z": draw.normal(size=24)[g], "b": draw.integers(0, 2, 120), "period": draw.integers(1, 4, 120),
        "e": draw.uniform(1, 5, 120),
    })  # fmt: skip
    eta = 0.6 * frame["x"] + 0.4 * frame["z"] + 0.3 * frame["x"] * frame["z"] + 0.5 * (frame["s"] == "b")
    frame["y"] = eta + draw.normal(size=120) + draw.normal(size=24)[g] * 0.3
    frame["k"] = draw.binomial(1, 1 / (1 + np.exp(-eta)))
    frame["n"] = draw.poisson(frame["e"] * np.exp(0.5 * eta))
    frame["p"] = np.exp(0.3 * eta + 0.3 * draw.normal(size=120))
    return frame


@functools.cache
def fitted(formula: str, family: str = "gaussian", sigma: str = "") -> Any:
    asked = pp.formula(formula, sigma=sigma) if sigma else formula
    return pp.fit(asked, rows(), family=family, seed=1, threads=1, draws=DRAWS, progress=False)


def moved(frame: pd.DataFrame, column: str, by: float) -> pd.DataFrame:
    return frame.assign(**{column: frame[column] + by})


def differences(fit: Any, first: str, second: str, kind: str, frame: pd.DataFrame) -> np.ndarray:
    """Mixed differences (draws, rows) of fit.predict at changed rows: numbers in small steps, categories to theirs."""
    sides = []
    for name in (first, second):
        column = name.partition("[")[0]
        if "[" in name:
            values = [(name[name.index("[") + 1 : -1], 1.0), (min(map(str, set(rows()[column]))), -1.0)]
            values = [(type(frame[column].iloc[0])(value), sign) for value, sign in values]
            sides.append([(functools.partial(pd.DataFrame.assign, **{column: value}), sign) for value, sign in values])
        elif rows()[column].nunique() == 2:
            ends = ((1, 1.0), (0, -1.0))
            sides.append([(functools.partial(pd.DataFrame.assign, **{column: v}), sign) for v, sign in ends])
        else:
            h = 2e-4
            sides.append([(functools.partial(moved, column=column, by=s * h), s / (2 * h)) for s in (1, -1)])
    total: Any = 0.0
    for (change, a), (again, b) in product(*sides):
        total = total + a * b * fit.predict(again(change(frame)), kind=kind, effects="none").draws
    return np.asarray(total)


MODELS = [
    ("y ~ x * z + s + (1 | g)", "gaussian", ""),
    ("k ~ x + z + s + b + (1 | g)", "bernoulli", ""),
    ("k ~ x * s + b * s + (1 | g)", "bernoulli", ""),
    ("n ~ x + z + offset(log(e)) + (1 | g)", "poisson", ""),
    ("y ~ poly(x, 2) * z + log(t) + log(t):x + (1 | g)", "gaussian", ""),
    ("p ~ x + C(period) * b + (1 | g)", "gamma", ""),
    ("p ~ x * z + (1 | g)", "lognormal", ""),
    ("p ~ x + z + (1 | g)", "lognormal", "~ z * x"),
]


@pytest.mark.parametrize(("formula", "family", "sigma"), MODELS)
def test_the_derivatives_are_those_of_predictions_at_moved_rows(formula: str, family: str, sigma: str) -> None:
    fit = fitted(formula, family, sigma)
    inner = rows()[(rows()["x"].abs() < 2) & (rows()["t"] > 0.2)].reset_index(drop=True)
    found = fit.interactions(inner)
    assert isinstance(found, FittedInteractions)
    for kind, scale in (("linear", found.link), ("mean", found.response)):
        for i, j in zip(*np.triu_indices(len(found.names), 1), strict=True):
            if not scale.verdicts[i, j]:
                assert np.isnan(scale.mean[i, j])
                continue
            each = differences(fit, found.names[i], found.names[j], kind, inner).mean(axis=1)
            close = 2e-5 * max(1.0, float(np.abs(each).max()))
            if kind == "mean" and found.bent:  # else it is exact, not that of the draws
                assert scale.mean[i, j] == pytest.approx(each.mean(), abs=close)
            assert scale.sd[i, j] == pytest.approx(each.std(), abs=close)
            assert scale.q95[i, j] == pytest.approx(np.quantile(each, 0.95), abs=close)
            assert scale.positive[i, j] == pytest.approx(np.mean(each > 1e-7), abs=0.02)


def test_the_interaction_of_a_product_is_its_coefficient() -> None:
    fit = fitted("y ~ x * z + s + (1 | g)")
    found = fit.interactions()
    assert found.names == ("x", "z", "s[b]", "s[c]")
    assert np.asarray(found.response)[0, 1] == pytest.approx(fit.summary().loc["x:z", "mean"], rel=1e-9)
    assert found.response.sd[0, 1] == pytest.approx(fit.draws("x:z").std(), rel=1e-6)
    assert found.response is found.link and not found.bent
    assert found.response.with_verdict("interacts") == [("x", "z")]
    assert (found.table["verdict"] == "additive").sum() == 4
    assert not found.response.mean[0, 2:].any()


def test_levels_of_predictors_are_read_and_pairs_that_cross_them_marked() -> None:
    found = fitted("y ~ x * z + s + (1 | g)").interactions()
    assert found.levels == ("row", "g", "row", "row")
    assert found.crosses[0, 1] and not found.crosses[0, 2]
    assert "Across levels: x (row) and z (g)." in found.sentences


def test_a_logit_model_is_additive_on_one_scale_and_not_on_the_other() -> None:
    found = fitted("k ~ x + z + s + b + (1 | g)", "bernoulli").interactions()
    shown = repr(found)
    assert not found.link.with_verdict("interacts")
    assert len(found.response.with_verdict("interacts")) == 9  # all but the two categories of s
    assert "near 0 or 1" in shown and "logit" in shown
    assert set(found.table["scale"]) == {"link", "response"}


def test_a_log_link_multiplies() -> None:
    fit = fitted("n ~ x + z + offset(log(e)) + (1 | g)", "poisson")
    found = fit.interactions({"x": 0.0, "z": 0.0, "e": 1.0}, ["x", "z"])
    beta = fit.result.draws_beta
    expected = np.exp(beta[:, 0]) * beta[:, 1] * beta[:, 2]
    assert found.response.mean[0, 1] == pytest.approx(expected.mean(), rel=1e-6)
    assert found.response.sd[0, 1] == pytest.approx(expected.std(), rel=1e-6)
    assert found.link.verdicts[0, 1] == "additive"


def test_splines_are_differentiated_up_to_the_ends_of_their_range() -> None:
    fit = fitted("y ~ bs(x, df=4) * z + (1 | g)")
    found = fit.interactions()
    assert found.response.verdicts[0, 1] == "interacts"
    inner = rows()[(rows()["x"] > rows()["x"].min() + 0.1) & (rows()["x"] < rows()["x"].max() - 0.1)]
    each = differences(fit, "x", "z", "mean", inner.reset_index(drop=True)).mean(axis=1)
    assert fit.interactions(inner).response.sd[0, 1] == pytest.approx(each.std(), rel=1e-4)


def test_within_and_between_are_predictors_of_their_own() -> None:
    fit = fitted("y ~ within(x|g) * between(x|g) + (1 | g)")
    found = fit.interactions()
    assert found.names == ("within(x|g)", "between(x|g)") and found.levels == ("row", "g")
    coefficient = fit.summary()["mean"].filter(like=":").iloc[0]
    assert found.response.mean[0, 1] == pytest.approx(coefficient, rel=1e-8)
    assert found.crosses[0, 1]


def test_the_derivative_of_an_edge_is_not_told() -> None:
    fit = fitted("y ~ abs(x):z + abs(x):s + x + z + s + (1 | g)")
    found = fit.interactions(rows().assign(x=0.0))
    assert found.response.verdicts[0, 1] == "cannot tell"
    assert "cannot tell" in repr(found)
    assert found.names[:3] == ("x", "z", "s[b]") and found.response.verdicts[0, 2] == "cannot tell"
    smooth = fitted("y ~ I(x**2):z + x + z + (1 | g)").interactions(rows().assign(x=0.0))
    assert smooth.response.verdicts[0, 1] == "additive"


def test_a_saved_fit_without_rows_needs_rows_and_works_with_them(tmp_path: Path) -> None:
    fit = fitted("k ~ x + z + s + b + (1 | g)", "bernoulli")
    fit.save(tmp_path / "with")
    fit.save(tmp_path / "without", data=False)
    again = pp.load(tmp_path / "with").interactions()
    assert np.array_equal(again.response.sd, fit.interactions().response.sd, equal_nan=True)
    bare = pp.load(tmp_path / "without")
    with pytest.raises(ModelError, match="saved without"):
        bare.interactions()
    given = bare.interactions(rows())
    own = [given.names.index(name) for name in ("x", "z", "s[b]")]
    full = [again.names.index(name) for name in ("x", "z", "s[b]")]
    assert np.allclose(given.response.mean[np.ix_(own, own)], again.response.mean[np.ix_(full, full)], equal_nan=True)
    assert set(given.levels) == {""} and not given.crosses.any()


def test_mistakes_are_told() -> None:
    fit = fitted("y ~ x * z + s + (1 | g)")
    with pytest.raises(ModelError, match=r"no predictor 'zz'.*Did you mean 'z'"):
        fit.interactions(names=["x", "zz"])
    with pytest.raises(ModelError, match="list of predictors"):
        fit.interactions(names="x")
    with pytest.raises(ModelError, match="takes two predictors"):
        fit.interactions(names=["x"])
    with pytest.raises(ModelError, match="takes two predictors"):
        fit.interactions(names=["s", "s"])
    with pytest.raises(DataError, match="'z'"):
        fit.interactions({"x": [1.0], "s": ["a"]})
    with pytest.raises(DataError, match="'s' is 'q'"):
        fit.interactions({"x": [1.0], "z": [1.0], "s": ["q"]})
    with pytest.raises(DataError, match="no rows"):
        fit.interactions(rows().iloc[:0])
    with pytest.raises(ModelError, match="draws = 0"):
        fit.interactions(draws=0)
    with pytest.raises(ModelError, match="has 200 draws"):
        fit.interactions(draws=10_000)
    with pytest.raises(ModelError, match="tolerance"):
        fit.interactions(tolerance=-1)
    with pytest.raises(ModelError, match="one, 'x'"):
        fitted("y ~ x + (1 | g)").interactions()
    with pytest.raises(ModelError, match="group terms only"):
        fitted("y ~ x + s + (0 + t | g)").interactions(names=["x", "t"])


@pytest.mark.parametrize("link", LINKS)
def test_derivatives_of_inverse_links(link: str) -> None:
    eta = np.linspace(0.2, 3.0, 15) if link == "inverse" else np.linspace(-4.0, 3.0, 29)
    h = 1e-3
    first, second = inverse_link_derivatives(link, eta)
    up, here, down = (inverse_link(link, eta + by) for by in (h, 0.0, -h))
    assert np.allclose(first, (up - down) / (2 * h), rtol=1e-4, atol=1e-6)
    assert np.allclose(second, (up - 2 * here + down) / h**2, rtol=1e-4, atol=1e-5)
    far = inverse_link_derivatives(link, np.array([-700.0, 700.0]))
    assert not np.isnan(far).any()


def test_derivatives_of_a_lognormal_mean() -> None:
    family, h = LogNormal(), 1e-4
    a, b = np.array([0.3, -1.0]), np.array([-0.5, 0.2])
    found = mean_derivatives(family, a, b)

    def mean(p: float, q: float) -> np.ndarray:
        return family.mean(a + p * h, b + q * h)

    assert found.d1 is not None and found.d01 is not None and found.d11 is not None
    assert np.allclose(found.d1, (mean(0, 1) - mean(0, -1)) / (2 * h), rtol=1e-6)
    assert np.allclose(found.d01, (mean(1, 1) - mean(1, -1) - mean(-1, 1) + mean(-1, -1)) / (4 * h * h), rtol=1e-5)
    assert np.allclose(found.d11, (mean(0, 1) - 2 * mean(0, 0) + mean(0, -1)) / h**2, rtol=1e-5)


@pytest.mark.parametrize("scale", [None, "link", "response"])
def test_plots(scale: str | None) -> None:
    found = fitted("k ~ x + z + s + b + (1 | g)", "bernoulli").interactions()
    figure = found.plot(scale=scale)
    figure.savefig(io.BytesIO(), format="png")
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titles) == (2 if scale is None else 1)
    with pytest.raises(ModelError, match="scale="):
        found.plot(scale="both")


def test_the_answer_does_not_depend_on_the_order_of_predictors() -> None:
    fit = fitted("k ~ x + z + s + b + (1 | g)", "bernoulli")
    one, two = (fitted_interactions(fit, names=names) for names in (["x", "z", "b"], ["b", "z", "x"]))
    assert np.allclose(one.response.mean, two.response.mean[::-1, ::-1], equal_nan=True, rtol=1e-9)


@functools.cache
def weighted() -> pd.DataFrame:
    """Rows with whole weights, one of 0 among them."""
    draw = np.random.default_rng(5)
    frame = rows().assign(w=draw.integers(0, 4, 120))
    return frame.assign(x=frame["x"] + 0.8 * frame["w"])


def test_a_row_of_weight_two_is_two_rows() -> None:
    options: Any = {
        "family": "bernoulli",
        "seed": 1,
        "threads": 1,
        "progress": False,
        "priors": {"beta": pp.Normal(0, 2)},
    }
    twice = weighted().loc[np.repeat(np.arange(120), weighted()["w"])].reset_index(drop=True)
    one = pp.fit("k | weights(w) ~ x * z + (1 | g)", weighted(), **options)
    two = pp.fit("k ~ x * z + (1 | g)", twice, **options)
    for scale in ("link", "response"):
        a, b = getattr(one.interactions(), scale), getattr(two.interactions(), scale)
        for name in ("mean", "size", "rows_positive", "standardised"):
            assert a.of(name, ("x", "z")) == pytest.approx(b.of(name, ("x", "z")), rel=0.03), (scale, name)


def test_sizes_do_not_depend_on_how_many_rows_are_asked_for() -> None:
    fit = fitted("y ~ x * z + s + (1 | g)")
    every, one = fit.interactions().response, fit.interactions(rows().iloc[:1]).response
    assert one.of("size", ("x", "z")) == pytest.approx(every.of("size", ("x", "z")), rel=1e-6)
    base = fit.predict(kind="linear", effects="none").mean
    unit = rows()["x"].std(ddof=0) * rows()["z"].std(ddof=0) / base.std()
    expected = abs(fit.summary().loc["x:z", "mean"]) * unit
    assert one.of("size", ("x", "z")) == pytest.approx(expected, rel=1e-3)
    assert "at one row" in fit.interactions(rows().iloc[:1]).title


def test_an_interaction_of_unclear_sign_is_said_to_be_one_that_may_be() -> None:
    draw = np.random.default_rng(11)
    g = np.repeat(np.arange(20), 5)
    data = {"y": draw.normal(size=100), "x": draw.normal(size=100), "z": draw.normal(size=20)[g], "g": g}
    fit = pp.fit("y ~ x * z + (1 | g)", data, seed=1, threads=1, progress=False)
    found = fit.interactions()
    assert 0.05 < found.response.of("positive", ("x", "z")) < 0.95
    assert found.sentences[0] == "x and z may interact. On average its sign is not clear (probability below 0.95)."
    assert found.response.of("rows_positive", ("x", "z")) in (0.0, 1.0)


def test_a_category_is_asked_for_by_its_column() -> None:
    fit = fitted("y ~ x * z + s + (1 | g)")
    with pytest.raises(ModelError, match=r"Name the column, 's'"):
        fit.interactions(names=["x", "s[b]"])
    with pytest.raises(ModelError, match="not a list of predictors"):
        fit.interactions(names=3)
    assert fit.interactions(names=(name for name in ("x", "z"))).names == ("x", "z")
