from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats
from scipy.special import gammaln

from partialpool.errors import DataError, ModelError
from partialpool.pooling.effect_sizes import effect_sizes
from partialpool.pooling.units import read_units

BCG = pd.read_csv(Path(__file__).parents[1] / "data" / "dat.bcg.csv")
BCG_COLUMNS = {
    "events_treatment": "tpos",
    "nonevents_treatment": "tneg",
    "events_control": "cpos",
    "nonevents_control": "cneg",
}
# log risk ratios and their variances as the documentation of R's metafor prints them
BCG_LOG_RATIO = [-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120, -0.4694, -1.3713]
BCG_LOG_RATIO += [-0.3394, 0.4459, -0.0173]
BCG_VARIANCE = [0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040, 0.0564, 0.0730, 0.0124, 0.5325, 0.0714]
TABLE = {
    "events_treatment": [4, 6, 0],
    "trials_treatment": [123, 306, 20],
    "events_control": [11, 29, 3],
    "trials_control": [139, 303, 30],
}
MEANS = {
    "mean_treatment": [12.0, 5.0],
    "sd_treatment": [3.0, 2.0],
    "n_treatment": [10, 40],
    "mean_control": [10.0, 6.0],
    "sd_control": [4.0, 2.5],
    "n_control": [12, 35],
}


def test_log_risk_ratios_of_the_bcg_trials_are_those_published():
    frame = effect_sizes("RR", **BCG_COLUMNS, units="author", data=BCG)
    assert list(frame.columns) == ["unit", "estimate", "se"]
    assert frame["unit"].tolist() == BCG["author"].tolist()
    np.testing.assert_allclose(frame["estimate"], BCG_LOG_RATIO, atol=5e-5)
    np.testing.assert_allclose(frame["se"] ** 2, BCG_VARIANCE, atol=5e-5)
    assert frame.attrs["measure"] == "risk ratio"
    # two authors led two trials each
    assert frame.attrs["notes"] == ("Some studies share a name; pp.pool needs one for each, such as author and year.",)
    frame = effect_sizes("RR", **BCG_COLUMNS, units="trial", data=BCG)
    assert frame.attrs["notes"] == ()
    units = read_units("estimate", se="se", units="unit", data=frame)
    assert (units.family, units.n) == ("normal", 13)


def test_trials_and_non_events_are_two_ways_to_say_the_same():
    trials = BCG.assign(treated=BCG.tpos + BCG.tneg, controls=BCG.cpos + BCG.cneg)
    one = effect_sizes("odds ratio", **BCG_COLUMNS, data=pl.from_pandas(BCG))
    other = effect_sizes(
        "log odds ratio",
        events_treatment=trials.tpos,
        trials_treatment=trials.treated,
        events_control=trials.cpos,
        trials_control=trials.controls,
    )
    assert list(one.columns) == ["estimate", "se"]
    pd.testing.assert_frame_equal(one, other)


def test_tables_by_hand():
    a, n1, c, n2 = 4.0, 123.0, 11.0, 139.0
    b, d = n1 - a, n2 - c
    first = {name: values[:1] for name, values in TABLE.items()}
    by_hand = {
        "RR": (np.log((a / n1) / (c / n2)), 1 / a - 1 / n1 + 1 / c - 1 / n2),
        "OR": (np.log(a * d / (b * c)), 1 / a + 1 / b + 1 / c + 1 / d),
        "RD": (a / n1 - c / n2, a * b / n1**3 + c * d / n2**3),
    }
    for measure, (estimate, variance) in by_hand.items():
        frame = effect_sizes(measure, **first)
        assert frame["estimate"][0] == pytest.approx(estimate, rel=1e-14)
        assert frame["se"][0] ** 2 == pytest.approx(variance, rel=1e-12)


def test_only_tables_with_an_empty_cell_are_corrected():
    frame = effect_sizes("OR", **TABLE, units=["A", "B", "C"])
    untouched = effect_sizes("OR", **{name: values[:2] for name, values in TABLE.items()})
    np.testing.assert_array_equal(frame["estimate"][:2], untouched["estimate"])
    assert frame["estimate"][2] == pytest.approx(np.log(0.5 * 27.5 / (20.5 * 3.5)), rel=1e-14)
    assert frame["se"][2] ** 2 == pytest.approx(1 / 0.5 + 1 / 20.5 + 1 / 3.5 + 1 / 27.5, rel=1e-14)
    assert frame.attrs["notes"][0].startswith("0.5 was added to all four cells of unit 'C'")
    quarter = effect_sizes("OR", **TABLE, correction=0.25)
    assert quarter["estimate"][2] == pytest.approx(np.log(0.25 * 27.25 / (20.25 * 3.25)), rel=1e-14)
    with pytest.raises(DataError, match="In unit 'C', an empty cell leaves the odds ratio"):
        effect_sizes("OR", **TABLE, units=["A", "B", "C"], correction=0.0)


def test_studies_that_tell_nothing_of_a_ratio_are_left_out_with_a_note():
    silent = {
        "events_treatment": [0, 3, 9, 2],
        "trials_treatment": [10, 20, 9, 12],
        "events_control": [0, 5, 8, 4],
        "trials_control": [12, 20, 8, 15],
    }
    ratio = effect_sizes("RR", **silent, units=list("ABCD"))
    assert ratio["unit"].tolist() == ["B", "C", "D"]
    assert ratio.attrs["notes"][0] == "Unit 'A' was left out: no events in either arm tells nothing of a risk ratio."
    odds = effect_sizes("OR", **silent, units=list("ABCD"))
    assert odds["unit"].tolist() == ["B", "D"]
    assert odds.attrs["notes"][0].startswith("Units 'A' and 'C' were left out")
    assert len(effect_sizes("RD", **silent)) == 4
    with pytest.raises(DataError, match="tells nothing of a risk ratio"):
        effect_sizes("RR", events_treatment=0, trials_treatment=5, events_control=0, trials_control=5)


def test_means_by_hand():
    difference = effect_sizes("MD", **MEANS)
    np.testing.assert_allclose(difference["estimate"], [2.0, -1.0])
    np.testing.assert_allclose(difference["se"] ** 2, [9 / 10 + 16 / 12, 4 / 40 + 6.25 / 35], rtol=1e-14)
    frame = effect_sizes("standardized mean difference", **MEANS)
    m = np.array([20.0, 73.0])
    pooled = np.sqrt([(9 * 9 + 11 * 16) / 20, (39 * 4 + 34 * 6.25) / 73])
    J = np.exp(gammaln(m / 2) - 0.5 * np.log(m / 2) - gammaln((m - 1) / 2))
    g = J * np.array([2.0, -1.0]) / pooled
    variance = np.array([1 / 10 + 1 / 12, 1 / 40 + 1 / 35]) + (1 - (m - 2) / (m * J**2)) * g**2
    np.testing.assert_allclose(frame["estimate"], g, rtol=1e-12)
    np.testing.assert_allclose(frame["se"] ** 2, variance, rtol=1e-12)


def test_hedges_g_and_its_variance_are_unbiased():
    """With d = (mean difference) / sd and n1 = n2 = n: d sqrt(n/2) is noncentral t, whose moments are known."""
    delta, n = 0.8, 4
    t = stats.nct(2 * n - 2, delta * np.sqrt(n / 2))
    probability = (np.arange(200_000) + 0.5) / 200_000
    d = t.ppf(probability) / np.sqrt(n / 2)
    frame = effect_sizes(
        "SMD", mean_treatment=d, sd_treatment=1, n_treatment=n, mean_control=0, sd_control=1, n_control=n
    )
    assert frame["estimate"].mean() == pytest.approx(delta, rel=1e-4)
    assert (frame["se"] ** 2).mean() == pytest.approx(frame["estimate"].var(), rel=2e-3)


def test_fishers_z():
    frame = effect_sizes("correlation", r=[0.5, -0.2], n=[28, 12])
    np.testing.assert_allclose(frame["estimate"], [np.arctanh(0.5), -np.arctanh(0.2)])
    np.testing.assert_allclose(frame["se"], [0.2, 1 / 3])


def test_missing_values_are_left_out_with_a_note():
    frame = effect_sizes("ZCOR", r=[0.5, None, 0.1], n=[28, 12, np.nan], units=list("ABC"))
    assert frame["unit"].tolist() == ["A"]
    assert frame.attrs["notes"] == ("2 studies were left out for missing values (r 1, n 1).",)
    with pytest.raises(DataError, match="none is left"):
        effect_sizes("ZCOR", r=[None], n=[5])


@pytest.mark.parametrize(
    ("measure", "change", "message"),
    [
        ("RR", {"events_treatment": [4, 6, 21]}, r"In unit 2 \(counted from 0\), events_treatment are more than"),
        ("RR", {"events_treatment": [4, -6, 2]}, "negative"),
        ("RR", {"events_treatment": [4, 6.5, 2]}, "not a whole number"),
        ("RR", {"events_treatment": [4, 6]}, "differ in length"),
        ("RR", {"events_control": [0, 0, 0], "trials_control": [1, 0, 1]}, "no trials under control"),
        ("RR", {"events_treatment": ["a", "b", "c"]}, "not numeric"),
        ("MD", {"sd_control": [1.0, 0.0]}, "sd_control is not positive"),
        ("SMD", {"n_control": [1, 3]}, "n_control is below 2"),
        ("SMD", {"mean_control": [1, np.inf]}, "mean_control is infinite"),
        ("COR", {}, ""),
    ],
)
def test_bad_data(measure, change, message):
    if measure == "COR":
        with pytest.raises(DataError, match="strictly between"):
            effect_sizes("correlation", r=1.0, n=10)
        with pytest.raises(DataError, match="below 4"):
            effect_sizes("correlation", r=0.5, n=3)
        return
    with pytest.raises(DataError, match=message):
        effect_sizes(measure, **((TABLE if measure == "RR" else MEANS) | change))


def test_bad_arguments():
    with pytest.raises(ModelError, match="Did you mean 'risk ratio'"):
        effect_sizes("risk ration", **TABLE)
    with pytest.raises(ModelError, match="needs r, n, and n is not given"):
        effect_sizes("ZCOR", r=[0.5])
    with pytest.raises(ModelError, match=r"nonevents_... instead of trials_.* and sd_control is given too"):
        effect_sizes("RR", **TABLE, sd_control=1)
    with pytest.raises(ModelError, match="not both"):
        effect_sizes("RR", **TABLE, nonevents_control=[1, 2, 3])
    with pytest.raises(ModelError, match="correction"):
        effect_sizes("RR", **TABLE, correction=-1)
