from __future__ import annotations

import math

import pandas as pd
import pytest

from partialpool.present.tables import decimals_for, summary_html, summary_text

SUMMARY = pd.DataFrame(
    {
        "mean": [251.4083, 10.4671, 0.0661],
        "sd": [7.2312, 1.6204, 0.3011],
        "q05": [239.52, 7.81, -0.4249],
        "ess": [1203.4, 2.5e8, 1000.0],
        "rhat": [1.0004, math.nan, 1.021],
    },
    index=pd.Index(["Intercept", "Days", "cor(Intercept,Days|Subject)"], name="parameter"),
)
GROUPS = pd.DataFrame(
    {
        "group": ["308", "309", "308", "309"],
        "term": ["Intercept", "Intercept", "Days", "Days"],
        "n": [1000, 10, 1000, 10],
        "mean": [2.13, -40.2, 9.14, -8.61],
        "sd": [9.8, 10.4, 2.3, 2.4],
        "no_pooling": [-7.2, math.nan, 11.3, -8.2],
        "shrinkage": [0.2212, 0.2178, 0.1382, 0.141],
    }
)


def test_a_summary_has_two_digits_of_each_sd_and_aligned_points() -> None:
    assert summary_text(SUMMARY).splitlines() == [
        "parameter                      mean    sd     q05         ess  rhat",
        "Intercept                    251.4   7.2   239.5        1,203  1.00",
        "Days                          10.5   1.6     7.8   >1,000,000",
        "cor(Intercept,Days|Subject)    0.07  0.30   -0.42       1,000  1.02",
    ]


def test_groups_share_decimals_by_term_and_a_missing_estimate_is_blank() -> None:
    lines = summary_text(GROUPS).splitlines()
    assert lines[0].split() == list(GROUPS.columns)
    assert lines[1].split() == ["308", "Intercept", "1,000", "2", "10", "-7", "0.22"]
    assert lines[2].split() == ["309", "Intercept", "10", "-40", "10", "0.22"]
    assert lines[3].split() == ["308", "Days", "1,000", "9.1", "2.3", "11.3", "0.14"]


def test_the_decimal_points_of_a_column_stand_under_each_other() -> None:
    lines = summary_text(SUMMARY).splitlines()[1:]
    assert len({line.index(".", 27) for line in lines}) == 1


def test_long_tables_say_how_much_is_left_out() -> None:
    frame = pd.DataFrame({"mean": range(100), "sd": [2.0] * 100})
    lines = summary_text(frame, max_rows=5).splitlines()
    assert len(lines) == 7
    assert lines[4] == "... 95 more rows ..."
    assert lines[-1].split() == ["99.0", "2.0"]
    assert "95 more rows" in summary_html(frame, max_rows=5)


def test_html_is_escaped() -> None:
    frame = pd.DataFrame({"mean": [1.0], "sd": [0.1]}, index=pd.Index(["<script>"], name="parameter"))
    html = summary_html(frame)
    assert "<script>" not in html and "&lt;script&gt;" in html and "1.00" in html
    assert html.count("<tr>") == 2


@pytest.mark.parametrize(
    ("sd", "decimals"), [(7.2, 1), (0.031, 3), (140.0, 0), (1.0, 1), (10.0, 0), (0.0, None), (math.nan, None)]
)
def test_decimals_follow_the_sd(sd: float, decimals: int | None) -> None:
    assert decimals_for(sd) == decimals


def test_extreme_and_odd_values_do_not_break_a_table() -> None:
    frame = pd.DataFrame(
        {"mean": [1e-9, 1e12, math.inf, math.nan, -1e-4], "sd": [1e-10, 1.0, 1.0, math.nan, 1.0], "flag": [True] * 5}
    )
    rows = [line.split() for line in summary_text(frame).splitlines()[1:]]
    assert rows[0][0] == "1e-09" and rows[1][0] == "1e+12" and rows[2][0] == "inf"
    assert rows[4][0] == "0.0"  # never "-0.0"
    assert summary_text(pd.DataFrame({"mean": [], "sd": []})) == "mean  sd"
