"""Models of other families: coefficients, hyperparameters, layout of effects, new responses, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.errors import DataError, ModelError, PriorError

N = 60


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(9)
    trials = rng.integers(3, 9, N)
    return pd.DataFrame(
        {
            "one": np.tile([0, 1, 1], 20),
            "text": np.tile(["no", "yes", "yes"], 20),
            "count": rng.poisson(3, N),
            "trials": trials,
            "events": rng.binomial(trials, 0.4),
            "real": rng.normal(size=N),
            "x": rng.normal(3, 1, N),
            "z": rng.normal(-2, 1, N),
            "g": np.repeat(np.arange(6), 10),
            "h": np.tile(np.arange(10), 6),
        }
    )


def two_predictors(table: pd.DataFrame, **priors: pp.Normal) -> pp.Model:
    terms = pp.formula("real ~ x + z + (x|g)", sigma="~ x + (1|g) + (1|h)")
    return pp.Model.from_formula(terms, table, priors={name.replace("_", "."): prior for name, prior in priors.items()})


@pytest.mark.parametrize(
    ("formula", "family", "names"),
    [
        ("one ~ x + (1|g)", "bernoulli", ("Intercept", "x", "sd(Intercept|g)")),
        ("text ~ x + (x|g)", "binomial",
         ("Intercept", "x", "sd(Intercept|g)", "sd(x|g)", "cor(Intercept,x|g)")),
        ("count ~ x + (1|g) + (1|h)", "poisson", ("Intercept", "x", "sd(Intercept|g)", "sd(Intercept|h)")),
        ("count ~ x + (1|g)", "negative_binomial", ("Intercept", "x", "sd(Intercept|g)", "phi")),
        ("real ~ x + (1|g)", "student_t", ("Intercept", "x", "sd(Intercept|g)", "sigma", "nu")),
        ("events | trials(trials) ~ x", "beta_binomial", ("Intercept", "x", "phi")),
    ],
)  # fmt: skip
def test_names(table: pd.DataFrame, formula: str, family: str, names: tuple[str, ...]) -> None:
    model = pp.Model.from_formula(formula, table, family=family)
    assert model.parameter_names == names
    assert not model.exact and model.hyperparameters.sigma is None
    repr(model)
    assert "row_blocks" not in model.__dict__


def test_a_gaussian_model_is_exact_without_a_formula_of_sigma(table: pd.DataFrame) -> None:
    assert pp.Model.from_formula("real ~ x + (1|g)", table).exact
    assert not two_predictors(table).exact


def test_effects_of_two_predictors(table: pd.DataFrame) -> None:
    model = two_predictors(table)
    hyper, layout = model.hyperparameters, model.latent
    assert model.parameter_names == (
        "Intercept", "x", "z", "sigma.Intercept", "sigma.x", "sd(Intercept|g)", "sd(x|g)", "cor(Intercept,x|g)",
        "sd(sigma.Intercept|g)", "sd(sigma.Intercept|h)",
    )  # fmt: skip
    assert (layout.leaf, layout.widths, layout.lam_at) == (0, (3, 1), (0, 9))
    assert hyper.widths == layout.widths and hyper.lam_at == layout.lam_at
    values = dict.fromkeys(hyper.names, 0.5) | {"sd(sigma.Intercept|g)": 2.0, "sd(sigma.Intercept|h)": 3.0}
    lam = hyper.factors(hyper.from_public(values)[None])[0]
    block = lam[:9].reshape(3, 3)
    np.testing.assert_allclose(block @ block.T, [[0.25, 0.125, 0], [0.125, 0.25, 0], [0, 0, 4]])
    assert lam[9] == pytest.approx(3.0)
    assert "row_blocks" not in model.__dict__


def test_each_intercept_is_centred_by_its_own_columns(table: pd.DataFrame) -> None:
    coefficients = two_predictors(table).coefficients
    assert (coefficients.intercept, coefficients.intercepts) == (0, (0, 3))
    assert coefficients.predictor == (0, 0, 0, 1, 1)
    gamma = np.random.default_rng(1).normal(size=(4, 5))
    beta = coefficients.to_public(gamma)
    np.testing.assert_allclose(beta[:, 0], gamma[:, 0] - gamma[:, 1] * table.x.mean() - gamma[:, 2] * table.z.mean())
    np.testing.assert_allclose(beta[:, 3], gamma[:, 3] - gamma[:, 4] * table.x.mean())
    np.testing.assert_array_equal(beta[:, [1, 2, 4]], gamma[:, [1, 2, 4]])
    np.testing.assert_allclose(coefficients.from_public(beta), gamma)
    np.testing.assert_allclose(gamma @ coefficients.public_matrix().T, beta)


def test_an_intercept_as_written_is_not_centred(table: pd.DataFrame) -> None:
    means = (0.0, table.x.mean(), table.z.mean())
    written = two_predictors(table, sigma_Intercept=pp.Normal(0.3, 2)).coefficients
    assert written.centre == pytest.approx((*means, 0.0, 0.0))
    assert written.mean[3] == 0.3 and written.scale[3] == 2.0
    other = two_predictors(table, Intercept=pp.Normal(1, 2)).coefficients
    assert other.centre == pytest.approx((0.0, 0.0, 0.0, 0.0, table.x.mean()))
    beta = two_predictors(table, beta=pp.Normal(0, 9)).coefficients
    assert beta.scale[1:3] == (9.0, 9.0) and beta.scale[4] != 9.0


def test_no_mixtures_and_an_origin_for_flat_intercepts(table: pd.DataFrame) -> None:
    priors = {"x": pp.StudentT(3, 0, 2), "Intercept": pp.Flat()}
    model = pp.Model.from_formula("count ~ x + (1|g)", table, family="poisson", priors=priors)
    assert model.hyperparameters.mixtures == () and model.hyperparameters.size == 1
    assert model.coefficients.proper == (0.0, 1.0)
    assert model.coefficients.mean[0] == pytest.approx(np.log(table["count"].mean()), abs=0.02)
    exact = pp.Model.from_formula("real ~ x + (1|g)", table, priors={"x": pp.StudentT(3, 0, 2)})
    assert len(exact.hyperparameters.mixtures) == 1


def test_priors_of_a_family(table: pd.DataFrame) -> None:
    model = pp.Model.from_formula("count ~ x", table, family="negative_binomial", priors={"phi": "Exponential(1)"})
    assert model.hyperparameters.auxiliary == (("phi", pp.Exponential(1)),)
    with pytest.raises(PriorError, match="No parameter of this model takes the prior 'sigma'"):
        pp.Model.from_formula("count ~ x", table, family="poisson", priors={"sigma": pp.HalfNormal(1)})
    terms = pp.formula("count ~ x", phi="~ x")
    with pytest.raises(PriorError, match="No parameter of this model takes the prior 'phi'"):
        pp.Model.from_formula(terms, table, family="negative_binomial", priors={"phi": pp.HalfNormal(1)})


def test_group_sds_of_the_mean_and_of_a_parameter_are_addressed_apart(table: pd.DataFrame) -> None:
    terms = pp.formula("real ~ x + (x|g)", sigma="~ x + (x|g)")
    priors = {"sd(g)": "HalfNormal(7)", "sigma.sd(g)": "HalfNormal(0.5)", "sigma.cor": "LKJ(4)"}
    table_of = pp.Model.from_formula(terms, table, priors=priors).priors
    assert [str(table_of[f"sd({name}|g)"]) for name in ("Intercept", "x", "sigma.Intercept", "sigma.x")] == [
        "HalfNormal(7)", "HalfNormal(7)", "HalfNormal(0.5)", "HalfNormal(0.5)"
    ]  # fmt: skip
    assert (str(table_of["cor(g)"]), str(table_of["sigma.cor(g)"])) == ("LKJ(1)", "LKJ(4)")
    named = pp.Model.from_formula(terms, table, priors={"cor(sigma.Intercept,sigma.x|g)": "LKJ(3)"})
    assert str(named.priors["sigma.cor(g)"]) == "LKJ(3)"


# ---- new responses ------------------------------------------------------------------------------------------------


def test_with_response_keeps_trials_and_priors(table: pd.DataFrame) -> None:
    model = pp.Model.from_formula("events | trials(trials) ~ x + (1|g)", table, family="binomial")
    other = model.with_response(np.minimum(table.trials, 2))
    np.testing.assert_array_equal(other.design.trials, table.trials)
    assert other.priors is model.priors and other.coefficients == model.coefficients
    assert "row_blocks" not in other.__dict__
    assert model.with_response(np.zeros(N)).design.y.sum() == 0  # a simulated response may be constant


def test_with_response_refuses_what_the_family_cannot_produce(table: pd.DataFrame) -> None:
    model = pp.Model.from_formula("events | trials(trials) ~ x + (1|g)", table, family="binomial")
    with pytest.raises(DataError, match=r"The new response is 99 of \d trials in row 4; "):
        model.with_response(np.where(np.arange(N) == 4, 99, 0))
    poisson = pp.Model.from_formula("count ~ x", table, family="poisson")
    with pytest.raises(DataError, match=r"The new response is 0.5 in the first of rows 0, 1, 2, 3, 4 and 55 more"):
        poisson.with_response(np.full(N, 0.5))
    with pytest.raises(DataError, match="not finite in row 0"):
        poisson.with_response(np.full(N, np.nan))


# ---- likelihood ---------------------------------------------------------------------------------------------------


def test_arguments_of_the_likelihood(table: pd.DataFrame) -> None:
    exact = pp.Model.from_formula("real ~ x + (1|g)", table)
    params = {"Intercept": 0.0, "x": 0.0, "sd(Intercept|g)": 1.0, "sigma": 1.0}
    assert np.isfinite(exact.log_likelihood(params))
    for call in (lambda: exact.log_likelihood(params, nodes=3), lambda: exact.maximum_likelihood(nodes=3)):
        with pytest.raises(ModelError, match="nodes= is for responses that need quadrature"):
            call()
    poisson = pp.Model.from_formula("count ~ x + (1|g)", table, family="poisson")
    with pytest.raises(ModelError, match=r"reml=True is for a Gaussian response.* this one is poisson"):
        poisson.maximum_likelihood(reml=True)
    with pytest.raises(ModelError, match="with a formula of sigma"):
        two_predictors(table).maximum_likelihood(reml=True)


def test_one_formula_of_the_public_face(table: pd.DataFrame) -> None:
    text = "count ~ x + (1|g)"
    one = pp.Model.from_formula(text, table, family="poisson")
    other = pp.Model.from_formula(pp.formula(text), table, family="poisson")
    assert one.priors == other.priors and repr(one) == repr(other)
