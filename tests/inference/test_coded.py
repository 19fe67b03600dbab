"""Priors as kernels read them, and the constants that they leave out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.algebra.rows import PARTIAL, log_prior
from partialpool.inference.coded import code_prior, coded_hyperparameters, left_out
from partialpool.spec.distributions import Distribution

PRIORS: list[Distribution] = [
    pp.Normal(0.3, 2), pp.HalfNormal(1.5), pp.StudentT(4, 0.2, 1.5), pp.HalfStudentT(3, 2), pp.Cauchy(0.1, 2),
    pp.HalfCauchy(2), pp.Exponential(1.3), pp.Gamma(2.5, 0.8), pp.InverseGamma(3, 2), pp.Beta(2, 3), pp.Uniform(0.2, 3),
]  # fmt: skip


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_coded_priors_are_the_priors_up_to_a_constant(prior: Distribution) -> None:
    coded = code_prior(prior)
    x = np.array([0.25, 0.5, 0.9])
    own = np.array([log_prior(coded.kind, *coded.parameters, at) for at in x])
    gap = prior.log_density(x) - own[:, 0]
    np.testing.assert_allclose(gap, gap[0], rtol=1e-12)
    np.testing.assert_allclose(own[:, 1], prior.score(x), rtol=1e-12, atol=1e-14)


def test_bounds() -> None:
    assert code_prior(pp.Uniform(0.2, 3)).row[3:] == (0.2, 2.8)
    assert code_prior(pp.Beta(2, 3)).row[3:] == (0.0, 1.0)
    assert code_prior(pp.HalfNormal(1)).row[3:] == (0.0, 0.0)
    assert code_prior(pp.Flat()).row == (0.0,) * 5


def data() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {"y": rng.poisson(2, 40), "x": rng.normal(size=40), "z": rng.normal(size=40), "g": np.arange(40) % 8}
    )


def model_with(priors: dict[str, Distribution], family: str = "negative_binomial") -> pp.Model:
    return pp.Model.from_formula("y ~ x + (x + z | g)", data(), family=family, priors=priors)


def test_every_hyperparameter_has_its_code() -> None:
    model = model_with({"sd(x|g)": pp.Gamma(2, 3), "phi": pp.Uniform(0, 50), "cor(g)": pp.LKJ(2)})
    kinds, params = coded_hyperparameters(model, model.hyperparameters.size)
    assert kinds.size == 3 + 3 + 1
    assert kinds[3:6].tolist() == [PARTIAL] * 3
    # Lewandowski, Kurowicka and Joe: eta + (q - 2 - j) / 2 for the pairs (1, 0), (2, 0), (2, 1)
    assert params[3:6, 0].tolist() == [2.5, 2.5, 2.0]
    assert params[1, :2].tolist() == [2.0, 3.0] and params[6, 3:].tolist() == [0.0, 50.0]


@pytest.mark.parametrize("prior", [prior for prior in PRIORS if prior.support[0] >= 0], ids=str)
def test_left_out_is_what_is_left_out(prior: Distribution) -> None:
    """Against the normalised prior of theta that the exact engines use, for one sd."""
    plain, other = model_with({"sd(x|g)": pp.HalfNormal(1)}), model_with({"sd(x|g)": prior})
    coded = code_prior(prior)
    at = 0.6
    own = float(prior.log_density(np.array([at]))[0]) - log_prior(coded.kind, *coded.parameters, at)[0]
    halfnormal = math.log(2) - 0.5 * math.log(2 * math.pi)
    assert left_out(other) - left_out(plain) == pytest.approx(own - halfnormal, rel=1e-10)


def test_coefficients_count_on_their_own_scale() -> None:
    narrow = left_out(model_with({"x": pp.Normal(0, 0.1)}))
    assert left_out(model_with({"x": pp.Normal(5, 30)})) == narrow
    nu = 3.0
    constant = math.lgamma(2.0) - math.lgamma(1.5) - 0.5 * math.log(nu * math.pi)
    heavy = left_out(model_with({"x": pp.StudentT(3, 0, 1)}))
    assert heavy - narrow == pytest.approx(constant + 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("name", ["x", "Intercept", "sd(z|g)"])
def test_nothing_is_normalised_under_a_flat_prior(name: str) -> None:
    assert math.isnan(left_out(model_with({name: pp.Flat()})))
