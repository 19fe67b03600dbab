"""Default priors of products whose parts lie far from 0."""

import numpy as np
import pytest

import partialpool as pp


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    n = 300
    out = {"g": rng.integers(0, 20, n), "x": rng.normal(size=n), "year": rng.integers(2000, 2021, n)}
    out["f"] = rng.choice(list("ab"), n)
    out["y"] = 0.3 * out["x"] * (out["year"] - 2010) + rng.normal(size=n)
    return out


def notes(formula, data, **options):
    return [n for n in pp.fit(formula, data, seed=1, **options).accuracy.notes if "far from 0" in n]


def test_a_product_with_an_uncentred_predictor_is_told(data):
    (note,) = notes("y ~ x * year + (1 | g)", data)
    assert "'year' lies far from 0 (mean 2010, sd 6)" in note and "I(year - 2010)" in note
    assert "'x' and 'x:year'" in note


def test_the_mend_that_it_names_finds_the_slope(data):
    fit = pp.fit("y ~ x * I(year - 2010) + (1 | g)", data, seed=1)
    assert not fit.accuracy.notes
    assert fit.summary().loc["x:I(year - 2010)", "mean"] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("formula", ["y ~ year + I(year^2)", "y ~ f * year", "y ~ within(x|g) * year"])
def test_powers_categories_and_parts(data, formula):
    assert len(notes(f"{formula} + (1 | g)", data)) == 1


@pytest.mark.parametrize("formula", ["y ~ x * f", "y ~ x + I(x^2)", "y ~ year + x", "y ~ x:f", "y ~ 0 + x * year"])
def test_no_remark_where_it_does_not_apply(data, formula):
    assert not notes(f"{formula} + (1 | g)", data)


def test_a_prior_of_one_s_own_is_one_s_own_business(data):
    assert not notes("y ~ x * year + (1 | g)", data, priors={"x:year": pp.Normal(0, 1)})


def test_other_families_too(data):
    binary = {**data, "b": (data["y"] > 0).astype(int)}
    assert len(notes("b ~ x * year + (1 | g)", binary, family="bernoulli")) == 1
