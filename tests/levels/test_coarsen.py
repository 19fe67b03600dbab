"""Aggregation along the maps of a hierarchy: against pandas on the full data, and by the laws of composition."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.errors import DataError, ModelError


@pytest.fixture(scope="module")
def rows() -> pandas.DataFrame:
    rng = np.random.default_rng(1)
    class_ = rng.integers(40, size=900)
    frame = pandas.DataFrame({
        "class": class_, "school": [f"s{c // 5}" for c in class_], "district": class_ // 20,
        "x": rng.normal(size=900), "count": rng.integers(9, size=900),
        "sector": np.where(class_ < 20, "public", "other"),
        "name": [f"p{i}" for i in range(900)],
    })  # fmt: skip
    frame.loc[5, "x"] = np.nan
    return frame


@pytest.fixture(scope="module")
def h(rows):
    return pp.hierarchy(rows, ["class", "school", "district"])


@pytest.mark.parametrize("how", ["mean", "sum", "median", "first"])
@pytest.mark.parametrize("to", ["class", "school", "district"])
def test_every_way_against_pandas(h, rows, how, to) -> None:
    found = h.coarsen(rows, to=to, how=how).set_index(to)
    expected = getattr(rows.groupby(to)[["x", "count"]], how)()
    pandas.testing.assert_frame_equal(
        found[["x", "count"]].astype(float), expected.loc[found.index].astype(float), check_dtype=False
    )
    assert found["n"].to_dict() == rows.groupby(to).size().to_dict()


def test_what_the_answer_holds(h, rows) -> None:
    classes = h.coarsen(rows, to="class")
    assert list(classes.columns) == ["class", "school", "district", "n", "x", "count", "sector"]
    assert (classes["school"] == [f"s{c // 5}" for c in classes["class"]]).all()
    assert "sector" in h.coarsen(rows, to="district") and "name" not in classes


def test_chains_of_sums_and_weighted_means_compose(h, rows) -> None:
    whole = rows.dropna()
    classes = h.coarsen(whole, to="class")
    for steps in (["class", "district"], ["class", "school", "district"]):
        table, sums = whole, whole
        for place, to in enumerate(steps):
            table = h.coarsen(table, to=to, weights="n" if place else None)
            sums = h.coarsen(sums, to=to, how="sum")
        direct = h.coarsen(whole, to="district")
        np.testing.assert_allclose(table["x"], direct["x"], atol=1e-12)
        assert table["n"].tolist() == direct["n"].tolist()
        np.testing.assert_allclose(sums["x"], whole.groupby("district")["x"].sum(), atol=1e-12)
    unweighted = h.coarsen(classes, to="school").set_index("school")["x"]
    np.testing.assert_allclose(unweighted, classes.groupby("school")["x"].mean().loc[unweighted.index], atol=1e-12)


def test_a_table_of_a_finer_level_follows_the_map(h, rows) -> None:
    only = rows[["class", "x"]].dropna()
    found = h.coarsen(only, to="school").set_index("school")["x"]
    np.testing.assert_allclose(found, rows.groupby("school")["x"].mean().loc[found.index], atol=1e-12)


def test_ways_by_column_and_functions(h, rows) -> None:
    found = h.coarsen(rows, to="school", how={"x": np.nanmax, "count": "sum", "name": "first"}).set_index("school")
    by = rows.groupby("school")
    assert found["x"].to_dict() == by["x"].max().to_dict() and found["name"].to_dict() == by["name"].first().to_dict()
    assert "sector" not in found and found["count"].to_dict() == by["count"].sum().to_dict()


def test_groups_that_are_combinations() -> None:
    frame = pandas.DataFrame([(s, c) for s in "AB" for c in (1, 2, 3) for _ in range(4)], columns=["school", "class"])
    frame["y"] = np.arange(24.0)
    h = pp.hierarchy(frame, ["class", "school"], nested={"class": "school"})
    classes = h.coarsen(frame, to="class")
    assert classes[["school", "class"]].to_numpy().tolist() == [[s, c] for s in "AB" for c in (1, 2, 3)]
    assert classes["y"].tolist() == frame.groupby(["school", "class"])["y"].mean().tolist()
    assert h.coarsen(classes, to="school", weights="n")["y"].tolist() == frame.groupby("school")["y"].mean().tolist()


def test_other_tables_and_ids_of_another_type(h, rows) -> None:
    polars = pytest.importorskip("polars")
    expected = h.coarsen(rows, to="school")
    numbers = rows.drop(columns="name")
    other = h.coarsen(polars.from_pandas(numbers), to="school")
    np.testing.assert_allclose(other["x"], expected["x"])
    np.testing.assert_allclose(
        h.coarsen(rows.assign(**{"class": rows["class"].astype(str)}), to="school")["x"], expected["x"]
    )
    np.testing.assert_allclose(h.coarsen(numbers.to_dict("list"), to="school")["x"], expected["x"])
    gap = rows.astype({"class": float})
    gap.loc[3, "class"] = np.nan
    assert h.coarsen(gap[["class", "x"]], to="school")["n"].sum() == len(rows) - 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_rows_does_not_matter(h, rows, seed) -> None:
    shuffled = rows.sample(frac=1, random_state=np.random.default_rng(seed).integers(2**31))
    for how in ("mean", "median"):
        expected, found = h.coarsen(rows, "school", how), h.coarsen(shuffled, "school", how)
        pandas.testing.assert_frame_equal(found, expected)


def test_mistakes_are_a_sentence(h, rows) -> None:
    with pytest.raises(ModelError, match=r"Did you mean 'school'"):
        h.coarsen(rows, to="scool")
    with pytest.raises(DataError, match=r"lead to no group of 'class'.*'school'"):
        h.coarsen(rows[["school", "x"]], to="class")
    with pytest.raises(ModelError, match=r"how='average' is not known"):
        h.coarsen(rows, to="school", how="average")
    with pytest.raises(DataError, match=r"Did you mean 'x'|There are"):
        h.coarsen(rows, to="school", how={"xx": "mean"})
    with pytest.raises(DataError, match=r"class '77' in row 2 is not in the hierarchy"):
        h.coarsen(rows[["class", "x"]].assign(**{"class": rows["class"].where(rows.index != 2, 77)}), to="school")
    with pytest.raises(DataError, match=r"row 2.*lead to different groups of 'school'"):
        h.coarsen(rows.assign(school=rows["school"].where(rows.index != 2, "s7")).drop(columns="district"), to="school")
    with pytest.raises(DataError, match=r"needs numbers, and 'name' holds text"):
        h.coarsen(rows, to="school", how={"name": "mean"})
    with pytest.raises(ModelError, match=r"weights= has no meaning for how='median'"):
        h.coarsen(rows, to="school", how="median", weights="count")
    with pytest.raises(DataError, match=r"weights= names 'nn'"):
        h.coarsen(rows, to="school", weights="nn")
    with pytest.raises(DataError, match=r"weights= are negative"):
        h.coarsen(rows.assign(w=-1.0), to="school", weights="w")


def test_partly_nested_levels_have_no_map_to_follow() -> None:
    frame = pandas.DataFrame({"class": np.arange(200) // 10, "school": np.arange(200) // 50, "y": 1.0})
    frame.loc[7, "school"] = 3
    h = pp.hierarchy(frame, ["class", "school"])
    with pytest.raises(DataError, match=r"only partly nested in 'school': 1 row"):
        h.coarsen(frame[["class", "y"]], to="school")
    assert h.coarsen(frame, to="school")["n"].tolist() == [49, 50, 50, 51]
