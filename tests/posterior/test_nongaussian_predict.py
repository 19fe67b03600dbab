"""Predictions and residuals where the response is not Gaussian: against dense grids and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from nongaussian import Crossed, Herds, Scales, by_hand, expit
from partialpool.errors import DataError
from partialpool.posterior import predict as predict_module


@pytest.fixture(scope="module")
def herds() -> Herds:
    return Herds()


@pytest.fixture(scope="module")
def crossed() -> Crossed:
    return Crossed()


@pytest.fixture(scope="module")
def scales() -> Scales:
    return Scales()


def within(found, expected, sd, count, errors=4.5):
    np.testing.assert_array_less(np.abs(found - expected), errors * sd / np.sqrt(count) + 1e-12)


def test_rows_of_the_fit(herds):
    fit = herds.fit()
    chance, square = herds.expect(expit), herds.expect(lambda eta: expit(eta) ** 2)
    sd = np.sqrt(square - chance**2)
    found = fit.predict()
    within(found.mean, chance, sd, herds.draws)
    np.testing.assert_allclose(found.sd, sd, rtol=0.04)
    linear = fit.predict(kind="linear")
    np.testing.assert_allclose(linear.mean, herds.expect(lambda eta: eta), atol=3e-4)
    np.testing.assert_allclose(expit(linear.quantile(0.3)), found.quantile(0.3), rtol=1e-4)
    response = fit.predict(kind="response")
    variance = herds.trials * (chance - square) + herds.trials**2 * sd**2
    np.testing.assert_allclose(response.mean, found.mean * herds.trials, rtol=1e-12)
    within(response.draws.mean(axis=0), herds.trials * chance, np.sqrt(variance), herds.draws)
    np.testing.assert_allclose(response.sd, np.sqrt(variance), rtol=0.05)
    assert (response.draws <= herds.trials).all()
    assert (response.draws == np.rint(response.draws)).all()


def test_residuals_are_those_of_pearson(herds):
    table = herds.fit().residuals()
    chance, square = herds.expect(expit), herds.expect(lambda eta: expit(eta) ** 2)
    np.testing.assert_array_equal(table["observed"], herds.y)
    np.testing.assert_allclose(table["fitted"], herds.trials * chance, atol=0.02)
    expected = (herds.y - herds.trials * chance) / np.sqrt(herds.trials * (chance - square))
    np.testing.assert_allclose(table["standardised"], expected, atol=0.03)
    np.testing.assert_array_equal(table["residual"], table["observed"] - table["fitted"])


def new_rows():
    return pd.DataFrame({"x": [0.0, 2.0, 2.0], "g": ["h1", "new", "other"], "n": [5.0, 7.0, 40.0]})


def test_new_groups_of_the_population_are_integrated(herds):
    fit = herds.fit()
    found = fit.predict(new_rows(), new_groups="population")
    z = np.random.default_rng(1).standard_normal(400_000)
    eta = herds.beta[:, 0] + 2 * herds.beta[:, 1]
    by_node = np.array([expit(e + s * z).mean() for e, s in zip(eta, herds.sd, strict=True)])
    expected = herds.weights @ by_node
    assert found.mean[1] == pytest.approx(expected, abs=1.5e-3)
    assert found.sd[1] == pytest.approx(np.sqrt(herds.weights @ (by_node - expected) ** 2), rel=0.02)
    assert found.draws[:, 1] == pytest.approx(found.draws[:, 2], abs=1e-12)
    # a new response has the variance of the group as well
    response = fit.predict(new_rows(), new_groups="population", kind="response")
    chances = expit(eta[:, None] + herds.sd[:, None] * z[:100_000])
    mean = herds.weights @ chances.mean(axis=1)
    square = herds.weights @ (chances**2).mean(axis=1)
    variance = 40 * (mean - square) + 1600 * (square - mean**2)
    assert response.sd[2] == pytest.approx(np.sqrt(variance), rel=0.02)
    assert response.mean[2] == pytest.approx(40 * expected, abs=0.06)


def test_new_groups_at_the_average_and_sampled(herds):
    fit = herds.fit()
    eta = herds.beta[:, 0] + 2 * herds.beta[:, 1]
    average = fit.predict(new_rows(), new_groups="average")
    assert average.mean[1] == pytest.approx(herds.weights @ expit(eta), abs=1e-9)
    sampled = fit.predict(new_rows(), new_groups="sample")
    linear = fit.predict(new_rows(), new_groups="sample", kind="linear")
    np.testing.assert_allclose(sampled.draws, expit(linear.draws), rtol=1e-12)
    within(linear.draws[:, 1].mean(), herds.weights @ eta, linear.sd[1], herds.draws)
    spread = herds.weights @ (herds.sd**2 + eta**2) - (herds.weights @ eta) ** 2
    assert linear.sd[1] == pytest.approx(np.sqrt(spread), rel=0.03)
    twice = pd.DataFrame({"x": [0.0, 2.0], "g": ["new", "new"]})  # the same group has the same effect
    both = fit.predict(twice, new_groups="sample", kind="linear").draws
    np.testing.assert_allclose(both[:, 1] - both[:, 0], 2 * fit.draws("x"), atol=1e-12)
    np.testing.assert_allclose(both[:, 1], linear.draws[:, 1], atol=1e-12)
    for kind in ("mean", "response"):
        with pytest.raises(DataError, match="has not seen"):
            fit.predict(new_rows(), kind=kind)
    with pytest.raises(DataError, match=r"trials\(n\)"):
        fit.predict(twice, new_groups="sample", kind="response")


def test_known_groups_in_new_rows_have_their_own_draws(herds):
    fit = herds.fit()
    new = pd.DataFrame({"x": herds.x[:8], "g": [f"h{g}" for g in herds.group[:8]], "n": herds.trials[:8]})
    np.testing.assert_allclose(fit.predict(new).draws, fit.predict().draws[:, :8], rtol=1e-12)
    np.testing.assert_allclose(
        fit.predict(new, effects="none").draws, expit(fit.predict(new, effects="none", kind="linear").draws)
    )


def test_many_rows_are_streamed(herds, monkeypatch):
    whole = {kind: herds.fit().predict(kind=kind).to_frame() for kind in ("mean", "linear", "response")}
    monkeypatch.setattr(predict_module, "MOST_KEPT", 10)
    monkeypatch.setattr("partialpool.posterior.response.MOST_KEPT", 10)
    for kind, expected in whole.items():
        pd.testing.assert_frame_equal(herds.fit().predict(kind=kind).to_frame(), expected, rtol=1e-9)
    assert "more rows" in repr(herds.fit().predict())


def test_a_row_with_two_new_groups_takes_one_integral(crossed):
    """exp(eta) over two normal effects has a closed form."""
    new = pd.DataFrame({"a": ["new", "a01"], "b": ["new", "new"]})
    found = crossed.fit().predict(new, new_groups="population")
    variance = (crossed.sd**2).sum(axis=1)
    assert found.mean[0] == pytest.approx(np.exp(crossed.beta[:, 0] + variance / 2).mean(), rel=1e-9)
    with_known = crossed.fit().predict(pd.DataFrame({"a": ["a01"], "b": ["b0"]}), effects=["a"])
    average = crossed.fit().predict(new, new_groups="average")
    np.testing.assert_allclose(average.draws[:, 1], with_known.draws[:, 0], rtol=1e-12)


def test_exposure_of_new_rows():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"y": rng.poisson(3.0, 12), "t": rng.uniform(1, 3, 12), "g": np.repeat(list("abc"), 4)})
    model = pp.Model.from_formula("y ~ offset(log(t)) + (1 | g)", data, family="poisson")
    fit = by_hand(model, np.full((1, 1), -1.0), np.full((1, 1), 0.3), np.ones(1), 500)
    found = fit.predict({"t": [1.0, 10.0], "g": ["a", "a"]}).mean
    assert found[1] == pytest.approx(10 * found[0], rel=1e-12)


def test_sigma_has_its_own_predictor(scales):
    fit = scales.fit()
    linear, response = fit.predict(kind="linear"), fit.predict(kind="response", draws=12_000)
    np.testing.assert_allclose(fit.predict().draws, linear.draws)
    drawn = fit.group_draws("g")
    log_sigma = (
        fit.draws("sigma.Intercept")[:, None] + np.outer(fit.draws("sigma.x"), scales.x) + drawn[:, scales.group, 1]
    )
    mu = fit.draws("Intercept")[:, None] + np.outer(fit.draws("x"), scales.x) + drawn[:, scales.group, 0]
    np.testing.assert_allclose(linear.draws, mu, atol=1e-10)
    expected = np.sqrt(mu.var(axis=0) + np.exp(2 * log_sigma).mean(axis=0))
    np.testing.assert_allclose(response.sd, expected, rtol=0.06)
    np.testing.assert_allclose(
        fit.residuals()["standardised"], (scales.y - mu.mean(axis=0)) / np.sqrt(np.exp(2 * log_sigma).mean(axis=0))
    )
    new = pd.DataFrame({"x": [0.0], "g": ["new"]})
    noise = fit.predict(new, kind="response", new_groups="population").draws[:, 0]
    # E[sigma^2] over the population is that of a lognormal
    expected = (
        np.mean(
            scales.sd[:, 0] ** 2 + np.exp(2 * scales.beta[:, 2] + 2 * scales.sd[:, 1] ** 2) + scales.beta[:, 0] ** 2
        )
        - np.mean(scales.beta[:, 0]) ** 2
    )
    assert noise.var() == pytest.approx(expected, rel=0.1)
