"""Predictions: against the linear predictor by hand, and the four things to do with a new group."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from partialpool.errors import DataError, ModelError
from partialpool.posterior import predict as predict_module


def by_hand(fit):
    """X beta + Z u of every draw, the plain way."""
    design = fit.model.design
    eta = fit.result.draws_beta @ design.V[:, design.x_columns].T
    for position, factor in enumerate(design.factors):
        u = fit.group_draws(factor.name)
        columns = np.concatenate([group.columns for group in design.groups if group.factor == position])
        eta = eta + np.einsum("drq,rq->dr", u[:, factor.codes], design.V[:, columns])
    return eta


@pytest.mark.parametrize("name", ["slopes", "nested", "crossed", "schools"])
def test_old_rows(name, request):
    fit = request.getfixturevalue(name)
    prediction = fit.predict()
    expected = by_hand(fit)
    np.testing.assert_allclose(prediction.draws, expected, atol=1e-8)
    np.testing.assert_allclose(prediction.sd, expected.std(axis=0))
    np.testing.assert_allclose(prediction.quantile([0.1, 0.9]), np.quantile(expected, [0.1, 0.9], axis=0))
    assert (np.abs(prediction.mean - expected.mean(axis=0)) < 5 * prediction.sd / np.sqrt(1000)).all()
    assert prediction.quantile(0.5).shape == (len(prediction),)


def test_new_rows_equal_to_old_ones(slopes, sleepstudy):
    old = slopes.predict()
    new = slopes.predict(sleepstudy.iloc[[3, 77]])
    np.testing.assert_allclose(new.mean, old.mean[[3, 77]])
    np.testing.assert_allclose(new.draws, old.draws[:, [3, 77]], atol=1e-8)
    assert new.to_frame().index.tolist() == [3, 77]
    assert new.to_frame().columns.tolist() == ["mean", "sd", "q05", "q50", "q95"]


def test_responses_add_the_residual_noise(slopes):
    mean, response = slopes.predict(), slopes.predict(kind="response")
    sigma2 = np.mean(slopes.draws("sigma") ** 2)
    assert np.array_equal(mean.mean, response.mean)
    np.testing.assert_allclose(response.sd**2, mean.sd**2 + sigma2, rtol=0.12)
    assert np.array_equal(response.draws, slopes.predict(kind="response").draws)


def test_known_errors_are_the_noise(schools):
    se = schools.model.design.se
    mean, response = schools.predict(), schools.predict(kind="response")
    np.testing.assert_allclose(response.sd**2, mean.sd**2 + se**2, rtol=0.12)
    with pytest.raises(DataError, match="error"):
        schools.predict(pd.DataFrame({"school": ["A"]}), kind="response")
    assert schools.predict(pd.DataFrame({"school": ["A"]})).mean.shape == (1,)


def test_new_groups(slopes):
    rows = pd.DataFrame({"Days": [4, 4, 4, 4], "Subject": [308, "new", "new", "other"]})
    with pytest.raises(DataError, match=r"'new', 'other'.*new_groups='sample'"):
        slopes.predict(rows)
    average, population, sample = (slopes.predict(rows, new_groups=how) for how in ("average", "population", "sample"))
    flat = slopes.draws("Intercept") + 4 * slopes.draws("Days")
    np.testing.assert_allclose(average.draws[:, 1], flat)
    np.testing.assert_allclose(population.draws[:, 1], flat)
    assert np.array_equal(sample.draws[:, 1], sample.draws[:, 2])
    assert abs(np.corrcoef(sample.draws[:, 1] - flat, sample.draws[:, 3] - flat)[0, 1]) < 0.08
    for prediction in (average, population, sample):
        np.testing.assert_allclose(prediction.draws[:, 0], slopes.predict(rows.iloc[:1]).draws[:, 0])
    spread = slopes.draws("sd(Intercept|Subject)") ** 2 + 16 * slopes.draws("sd(Days|Subject)") ** 2
    spread += 8 * np.prod([slopes.draws(n) for n in slopes.parameters[2:5]], axis=0)
    np.testing.assert_allclose(np.var(sample.draws[:, 1] - flat), spread.mean(), rtol=0.15)


def test_new_responses_of_a_population(slopes):
    rows = pd.DataFrame({"Days": [4, 4], "Subject": ["new", "new"]})
    sample = slopes.predict(rows, kind="response", new_groups="sample")
    population = slopes.predict(rows, kind="response", new_groups="population")
    np.testing.assert_allclose(sample.sd, population.sd, rtol=0.1)
    assert np.corrcoef(sample.draws.T)[0, 1] > 0.6
    assert np.corrcoef(population.draws.T)[0, 1] < 0.2


def test_a_new_group_s_draw_depends_on_its_label_alone(slopes, nested):
    alone = slopes.predict({"Days": [4], "Subject": ["new"]}, new_groups="sample")
    among = slopes.predict({"Days": [4, 4, 4], "Subject": ["a", "new", "z"]}, new_groups="sample")
    np.testing.assert_allclose(alone.draws[:, 0], among.draws[:, 1], rtol=1e-12)
    fewer = slopes.predict({"Days": [4], "Subject": ["new"]}, new_groups="sample", draws=100)
    np.testing.assert_allclose(fewer.draws[:, 0], alone.draws[:100, 0], rtol=1e-12)
    both = nested.predict({"batch": ["new", "A"], "cask": ["a", "new"]}, new_groups="sample")
    assert abs(np.corrcoef(both.draws.T)[0, 1]) < 0.9


def test_a_new_group_in_a_known_one(nested):
    rows = pd.DataFrame({"batch": ["A", "A"], "cask": ["a", "z"]})
    prediction = nested.predict(rows, new_groups="sample")
    batch = nested.group_draws("batch", ["A"])[:, 0, 0]
    rest = prediction.draws[:, 1] - nested.draws("Intercept") - batch
    np.testing.assert_allclose(rest.std(), np.sqrt(np.mean(nested.draws("sd(Intercept|batch:cask)") ** 2)), rtol=0.1)
    assert abs(np.corrcoef(rest, batch)[0, 1]) < 0.08


def test_effects_that_count(slopes, nested):
    flat = nested.predict(effects="none")
    np.testing.assert_allclose(flat.draws[:, 0], nested.draws("Intercept"))
    one = nested.predict(pd.DataFrame({"batch": ["B"]}), effects=["batch"])
    np.testing.assert_allclose(one.draws[:, 0], nested.draws("Intercept") + nested.group_draws("batch", ["B"])[:, 0, 0])
    assert slopes.predict({"Days": [1.0]}, effects="none").mean.shape == (1,)


def test_residuals(slopes, sleepstudy):
    table = slopes.residuals()
    assert table.columns.tolist() == ["observed", "fitted", "residual", "standardised"]
    np.testing.assert_allclose(table["observed"], sleepstudy["Reaction"])
    np.testing.assert_allclose(table["fitted"], slopes.predict().mean)
    np.testing.assert_allclose(table["residual"] / table["standardised"], slopes.summary().loc["sigma", "mean"])


def test_streamed_values_are_the_kept_ones(slopes, monkeypatch):
    kept = slopes.predict(kind="response")
    everything = kept.draws
    monkeypatch.setattr(predict_module, "MOST_KEPT", 0)
    streamed = slopes.predict(kind="response")
    np.testing.assert_allclose(streamed.sd, everything.std(axis=0))
    np.testing.assert_allclose(streamed.quantile(0.2), np.quantile(everything, 0.2, axis=0))
    assert np.array_equal(streamed.draws, everything)
    monkeypatch.setattr(predict_module, "MOST_EFFECTS", 0)
    monkeypatch.setattr(predict_module, "BLOCK", 4000 * 50)
    by_group = slopes.predict()
    np.testing.assert_allclose(by_group.draws, by_hand(slopes), atol=1e-8)
    assert "180 rows" in repr(by_group)
    np.testing.assert_allclose(by_group._head(3).draws, by_hand(slopes)[:, :3], atol=1e-8)


def test_fewer_draws(slopes):
    prediction = slopes.predict(draws=250)
    assert prediction.draws.shape == (250, 180)
    assert prediction.n_draws == 250
    with pytest.raises(ModelError, match="4,000 draws"):
        slopes.predict(draws=5000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "means"}, "Did you mean 'mean'"),
        ({"new_groups": "averages"}, "Did you mean 'average'"),
        ({"effects": "Subject"}, r"write effects=\['Subject'\]"),
        ({"effects": ["Subjekt"]}, "Did you mean 'Subject'"),
        ({"effects": None}, "effects=None is not known; write 'all', 'none' or a list"),
        ({"effects": 3}, "effects=3 is not known"),
        ({"draws": 0}, "draws = 0"),
    ],
)
def test_mistakes(slopes, options, message):
    with pytest.raises(ModelError, match=message):
        slopes.predict(**options)


def test_new_data_that_lacks_a_column(slopes):
    with pytest.raises(DataError, match="Days"):
        slopes.predict({"Subject": [308]})


def test_reprs(slopes):
    prediction = slopes.predict()
    assert "180 rows, 4,000 draws" in repr(prediction)
    assert "170 more rows" in prediction._repr_html_()
    with pytest.raises(ModelError, match="between 0 and 1"):
        prediction.quantile(1.5)
