"""What levels can estimate: against counting, networkx-free brute force, and simulation of the sd's interval."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.levels.estimability import balance, sd_interval


def brute_parts(pairs: set[tuple[int, int]]) -> set[frozenset[tuple[str, int]]]:
    """Connected parts by merging sets until nothing changes."""
    parts = [{("a", a), ("b", b)} for a, b in pairs]
    merged = True
    while merged:
        merged = False
        for i in range(len(parts)):
            for j in range(i + 1, len(parts)):
                if parts[i] & parts[j]:
                    parts[i] |= parts.pop(j)
                    merged = True
                    break
            if merged:
                break
    return {frozenset(part) for part in parts}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30))
def test_parts_against_brute_force(pairs) -> None:
    a, b = zip(*pairs, strict=True)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return
    h = pp.hierarchy({"a": a, "b": b}, ["a", "b"])
    parts = h.estimability().parts
    if not h.table["relation"].str.startswith("crossed").item():
        assert len(parts) == 0
        return
    expected = brute_parts(set(pairs))
    if len(expected) == 1:
        assert len(parts) == 0
        return
    found = {
        frozenset(
            [*((row["first"], g) for g in row["first_groups"]), *((row["second"], g) for g in row["second_groups"])]
        )
        for _, row in parts.iterrows()
    }
    assert found == expected and parts["rows"].sum() == len(pairs) and parts["rows"].is_monotonic_decreasing


def test_disconnected_parts_are_named() -> None:
    frame = pandas.DataFrame(
        [(w, m) for w in "abc" for m in "xy" for _ in range(3)]
        + [(w, m) for w in "de" for m in "zw" for _ in range(3)],
        columns=["worker", "machine"],
    )
    found = pp.hierarchy(frame, ["worker", "machine"]).estimability()
    assert found.parts["first_groups"].tolist() == [("a", "b", "c"), ("d", "e")]
    assert found.parts["second_groups"].tolist() == [("x", "y"), ("w", "z")] and found.parts["rows"].tolist() == [
        18,
        12,
    ]
    assert "2 parts that share no row: 'a', 'b', 'c' of 'worker' with 'x', 'y' of 'machine' (18 rows)" in repr(found)


def test_parts_that_are_the_groups_of_a_common_level_are_told_so() -> None:
    rng = np.random.default_rng(1)
    school = np.repeat(np.arange(10), 60)
    frame = {
        "school": school, "teacher": school * 10 + np.tile(np.arange(60) % 4, 10),
        "room": school * 10 + rng.integers(3, size=600),
    }  # fmt: skip
    shown = repr(pp.hierarchy(frame, ["teacher", "room", "school"]).estimability())
    assert "crossed within each group of 'school'" in shown


def test_interval_of_the_sd_covers_in_simulation() -> None:
    rng = np.random.default_rng(2)
    for groups in (4, 7, 40):
        low, high = sd_interval(groups)
        sds = rng.normal(size=(20_000, groups)).std(axis=1, ddof=1)
        inside = ((low * sds <= 1) & (high * sds >= 1)).mean()
        assert abs(inside - 0.9) < 4 * np.sqrt(0.09 / 20_000)


def test_table_against_pandas() -> None:
    rng = np.random.default_rng(3)
    frame = pandas.DataFrame({"a": rng.integers(200, size=500), "b": rng.integers(12, size=500)})
    table = pp.hierarchy(frame, ["a", "b"]).estimability().table
    assert table.index.tolist() == ["b", "a"]
    for name in ("a", "b"):
        sizes = frame.groupby(name).size()
        told = table.loc[name]
        assert (told["groups"], told["rows_min"], told["rows_max"]) == (len(sizes), sizes.min(), sizes.max())
        assert told["singletons"] == (sizes == 1).sum() and told["three_rows"] == (sizes >= 3).sum()
        assert told["rows_median"] == sizes.median()
        assert told["balance"] == pytest.approx(1 / ((1 / sizes).mean() * sizes.mean()))
    assert balance(np.full(5, 7)) == pytest.approx(1)


@pytest.mark.parametrize(("groups", "words"), [(3, "too few to learn their sd"), (6, "few for an sd"), (8, None)])
def test_few_groups_are_told_what_it_costs(groups, words) -> None:
    shown = repr(pp.hierarchy({"g": np.arange(groups * 10) % groups}, ["g"]).estimability())
    assert (words in shown) if words else ("groups and rows enough" in shown)
    assert "times its estimate" in shown or not words


def test_singletons_imbalance_and_only_children_are_told() -> None:
    sizes = [1, 1, 2, 3, 4, 5, 6, 8, 300]
    frame = {"g": np.repeat(np.arange(9), sizes)}
    shown = repr(pp.hierarchy(frame, ["g"]).estimability())
    assert "2 of the 9 groups of 'g' have one row ('0', '1')" in shown
    assert "unbalanced" in shown and "'8' alone has 91% of all rows" in shown
    child = np.arange(120) // 6
    parent = np.where(child < 4, child, child // 4 + 3)
    told = repr(pp.hierarchy({"child": child, "parent": parent}, ["child", "parent"]).estimability())
    assert "4 of the 8 groups of 'parent' hold one group of 'child'" in told


def test_groups_of_one_row_are_not_said_to_be_useless() -> None:
    """100 of them beside 3 groups of 20 make the posterior of the sd between groups several times narrower."""
    shown = repr(pp.hierarchy({"g": np.r_[np.repeat(np.arange(3), 20), np.arange(3, 103)]}, ["g"]).estimability())
    assert "the residual sd is learnt from the other 3 only." in shown
    few = repr(pp.hierarchy({"g": [0, 0, 1, 1, 2, 3, 4, 5, 6, 7]}, ["g"]).estimability())
    assert "the other 2 only, which have 2 rows more than groups: too few." in few
    rng, widths = np.random.default_rng(1), []
    for singletons in (0, 100):
        group = np.r_[np.repeat(np.arange(3), 20), np.arange(3, 3 + singletons)]
        y = np.concatenate([[-1.0, 0.0, 1.0], rng.normal(size=100)])[group] + rng.normal(size=group.size)
        own = pp.fit("y ~ 1 + (1 | g)", {"y": y, "g": group}, threads=1).summary().loc["sd(Intercept|g)"]
        widths.append(own["q95"] - own["q05"])
    assert widths[1] < 0.5 * widths[0]


def test_a_level_of_rows() -> None:
    h = pp.hierarchy({"id": range(80), "site": np.arange(80) // 8}, ["id", "site"])
    assert "'id' has one row in each group" in repr(h.estimability())


def test_the_figure_has_a_line_for_each_level() -> None:
    rng = np.random.default_rng(4)
    found = pp.hierarchy({"a": rng.integers(200, size=500), "b": rng.integers(12, size=500)}, ["a", "b"]).estimability()
    axes = found.plot().axes[0]
    count = found.table.loc["a", "groups"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["b (12)", f"a ({count})"]
