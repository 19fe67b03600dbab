"""The order of levels: recovered from data whose order is known, against brute force, blind to names and row order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.errors import DataError, ModelError
from partialpool.levels import nesting


def reused(rng: np.random.Generator, schools: int = 20) -> pandas.DataFrame:
    """Pupils in classes in schools; classes are numbered from 1 in every school."""
    rows = []
    for school in range(schools):
        for number in range(1, rng.integers(2, 6) + 1):
            rows += [(f"s{school}", number)] * int(rng.integers(10, 30))
    frame = pandas.DataFrame(rows, columns=["school", "class"])
    frame["pupil"] = rng.permutation(len(frame))
    return frame.sample(frac=1, random_state=3).reset_index(drop=True)


def broken(rng: np.random.Generator) -> tuple[pandas.DataFrame, list[int]]:
    """Classes of 20 rows in schools of 4 classes, with 0.5% of the rows put into another school."""
    rows = 4000
    frame = pandas.DataFrame({"class": np.arange(rows) // 20, "school": np.arange(rows) // 80})
    frame["task"] = rng.integers(6, size=rows)
    frame = frame.sample(frac=1, random_state=5)
    bad = rng.choice(rows, 20, replace=False)
    frame.loc[bad, "school"] = (frame.loc[bad, "school"] + rng.integers(1, 50, size=20)) % 50
    return frame, sorted(bad.tolist())


def kinds(h) -> dict[frozenset[str], tuple[str, str, str]]:
    """By pair: the relation, and what is finer where one is."""
    found = {}
    for row in h.table.itertuples():
        ordered = row.relation in ("nested in", "partly nested")
        found[frozenset((row.finer, row.coarser))] = (row.relation, row.finer if ordered else "")
    return found


# -- what it must show ----------------------------------------------------------------------------------------------


def test_ids_reused_in_every_parent_are_a_warning_and_then_cured() -> None:
    frame = reused(np.random.default_rng(1))
    h = pp.hierarchy(frame, ["pupil", "class", "school"])
    assert kinds(h)[frozenset(("class", "school"))][0] == "crossed as coded"
    shown = repr(h)
    assert "crossed as coded" in shown and "(1 | school/class)" in shown and "school:class" in shown
    assert "'s1'" not in h.formula and h.formula == "(1 | class) + (1 | school)"

    cured = pp.hierarchy(frame, ["pupil", "class", "school"], nested={"class": "school"})
    assert kinds(cured)[frozenset(("class", "school"))] == ("nested in", "class")
    assert cured.formula == "(1 | school/class)"
    assert cured.levels.loc["class", "groups"] == len(frame.drop_duplicates(["school", "class"]))
    assert cured.levels.loc["class", "groups_are"] == "school:class"
    for label, school in cured.map("class", "school")["school"].items():
        assert label.split(":")[0] == school


def test_the_formula_is_one_that_the_package_reads_and_means_these_groups() -> None:
    frame = reused(np.random.default_rng(2)).assign(score=1.0)
    cured = pp.hierarchy(frame, ["class", "school"], nested={"class": "school"})
    design = pp.build_design(pp.parse_formula("pupil ~ 1 + " + cured.formula), frame)
    assert {f.name: len(f.labels) for f in design.factors} == {
        "school": 20, "school:class": int(cured.levels.loc["class", "groups"])
    }  # fmt: skip
    spaced = frame.rename(columns={"class": "the class"})
    h = pp.hierarchy(spaced, ["the class", "school"], nested={"the class": "school"})
    assert h.formula == "(1 | school/`the class`)"
    assert pp.parse_formula("pupil ~ 1 + " + h.formula).groups[1].factor == "school:the class"


def test_crossed_levels_are_crossed() -> None:
    rng = np.random.default_rng(3)
    grid = pandas.DataFrame([(s, i) for s in range(40) for i in range(12)], columns=["subject", "item"])
    h = pp.hierarchy(grid.sample(frac=0.8, random_state=1), ["subject", "item"])
    assert h.table["relation"].tolist() == ["crossed"] and h.formula == "(1 | item) + (1 | subject)"
    assert "Warning" not in repr(h)
    sparse = {"a": rng.integers(60, size=3000), "b": rng.integers(50, size=3000)}
    assert pp.hierarchy(sparse, ["a", "b"]).table["relation"].tolist() == ["crossed"]


def test_rows_that_break_a_nesting_are_named_exactly() -> None:
    frame, bad = broken(np.random.default_rng(4))
    h = pp.hierarchy(frame, ["class", "school", "task"])
    found = kinds(h)
    assert found[frozenset(("class", "school"))] == ("partly nested", "class")
    assert all(found[frozenset((name, "task"))][0].startswith("crossed") for name in ("class", "school"))
    assert sorted(h.broken.index) == bad and h.table.loc[0, "broken_rows"] == len(bad)
    for row, told in h.broken.iterrows():
        assert told["group"] == frame.loc[row, "class"] and told["parent"] == frame.loc[row, "school"]
        assert told["majority_parent"] == frame.loc[row, "class"] // 4
    assert h.map("class", "school")["school"].tolist() == [c // 4 for c in range(200)]
    assert "(1 | school)" in h.formula and "(1 | class)" in h.formula


def test_a_task_done_by_every_pupil_is_not_a_label_within_schools() -> None:
    pupil = np.repeat(np.arange(300), 4)
    frame = {"pupil": pupil, "school": pupil // 20, "task": np.tile(np.arange(4), 300)}
    found = kinds(pp.hierarchy(frame, ["pupil", "school", "task"]))
    assert found[frozenset(("task", "school"))] == ("crossed", "")


def test_a_torn_pupil_goes_where_its_class_goes() -> None:
    pupil = np.repeat(np.arange(200), 2)
    school = pupil // 50
    school[7] = 3
    h = pp.hierarchy({"pupil": pupil, "class": pupil // 25, "school": school}, ["pupil", "class", "school"])
    assert h.broken.index.tolist() == [7, 7]
    alone = pp.hierarchy({"pupil": pupil, "school": school}, ["pupil", "school"])
    assert alone.broken.index.tolist() == [6, 7] and alone.broken["majority_parent"].tolist() == [None, None]


def test_three_levels_of_ids_that_start_afresh_are_one_warning_with_the_chain() -> None:
    cells = [(s, c, p) for s in range(6) for c in range(2 + s % 3) for p in range(5 + (s + c) % 6) for _ in range(3)]
    frame = pandas.DataFrame(cells, columns=["school", "class", "pupil"])
    shown = repr(pp.hierarchy(frame, ["pupil", "class", "school"]))
    assert "(1 | school/class/pupil)" in shown and "nested={'pupil': 'class', 'class': 'school'}" in shown
    assert "re-used in every 'pupil'" not in shown
    for nested in ({"pupil": "class", "class": "school"}, {"pupil": ["class", "school"], "class": "school"}):
        cured = pp.hierarchy(frame, ["pupil", "class", "school"], nested=nested)
        assert cured.formula == "(1 | school/class/pupil)"
        assert cured.levels.loc["pupil", "groups"] == len(frame.drop_duplicates())
    half = repr(pp.hierarchy(frame, ["pupil", "class", "school"], nested={"pupil": "class"}))
    assert "Warning: 'class' and 'school'" in half and "in every 'pupil'" not in half


@pytest.mark.parametrize("schools", [2, 3, 30])
def test_which_of_two_levels_has_labels_is_read_from_the_list(schools) -> None:
    """The counts tell nothing: 2 schools with classes 1 to 6 are as usual as 30 with classes 1 to 4."""
    classes = 6 if schools < 5 else 4
    rows = {"school": np.repeat(np.arange(schools), 10 * classes), "class": np.arange(10 * classes * schools) % classes}
    shown = repr(pp.hierarchy(rows, ["class", "school"]))
    assert "write (1 | school/class) or school:class" in shown and "nested={'class': 'school'}" in shown
    assert "the other way round" in shown and "list fine levels first" in shown
    assert "write (1 | class/school)" in repr(pp.hierarchy(rows, ["school", "class"]))


def test_known_nestings_tell_that_levels_are_listed_from_coarse_to_fine() -> None:
    school = np.repeat(np.arange(12), 30)
    rows = {"district": school // 2, "school": school, "class": np.arange(360) % 6}
    for levels in (["district", "school", "class"], ["class", "school", "district"]):
        assert "write (1 | school/class)" in repr(pp.hierarchy(rows, levels))
    assert "coarse levels first" in repr(pp.hierarchy(rows, ["district", "school", "class"]))


def test_levels_of_few_groups_are_predictors_in_the_formula() -> None:
    rng = np.random.default_rng(5)
    frame = pandas.DataFrame({"class": np.arange(800) // 10})
    frame["school"] = frame["class"] // 4
    frame["region"] = np.array(list("nesw"))[frame["school"] % 4]
    frame["half"] = np.where(np.isin(frame["region"], ["n", "e"]), "one", "other")
    frame["the wave"] = rng.integers(3, size=800)
    h = pp.hierarchy(frame, ["class", "school", "region", "half", "the wave"])
    assert h.formula == "region + C(`the wave`) + (1 | school/class)"
    shown = repr(h)
    assert "(fewer than 5): 'region' (4) and 'the wave' (3)." in shown and "'half' is told by 'region'" in shown
    assert "For a formula: region + C(`the wave`) + (1 | school/class)." in shown
    assert len(h.plot().axes[0].patches) >= 5 and any("half" in t.get_text() for t in h.plot().axes[0].texts)
    design = pp.build_design(pp.parse_formula("y ~ 1 + " + h.formula), frame.assign(y=rng.normal(size=800)))
    assert len(design.factors) == 2 and sum("region" in name for name in design.x_names) == 3
    assert np.linalg.matrix_rank(design.V[:, design.x_columns]) == len(design.x_names) == 6
    few = pp.hierarchy({"site": list("AABBCC"), "x": [1, 2, 3, 3, 1, 2]}, ["site"])
    assert few.formula == "site" and "It is a predictor in the formula, without pooling" in repr(few)


def test_few_groups_that_are_combinations_stay_a_group_term() -> None:
    rows = {"school": list("AAABBB") * 4, "class": [1, 1, 2, 1, 2, 2] * 4}
    h = pp.hierarchy(rows, ["class", "school"], nested={"class": "school"})
    assert h.formula == "school + (1 | school:class)"
    assert "'class': fewer than 5 groups, so that the prior decides how much to pool." in repr(h)


def test_ids_that_are_shared_unevenly_are_asked_about() -> None:
    classes = {0: ["3A", "3B"], 1: ["3A"], 2: ["4C", "5B"], 3: ["5B", "3A", "4A"]}
    frame = pandas.DataFrame([(s, c) for s, own in classes.items() for c in own * 4], columns=["school", "class"])
    shown = repr(pp.hierarchy(frame, ["class", "school"]))
    assert "ids taken as they stand: 'class' with 'school'" in shown and "nested=" in shown
    cured = pp.hierarchy(frame, ["class", "school"], nested={"class": "school"})
    assert cured.levels.loc["class", "groups"] == 8 and "nested=" not in repr(cured)


def test_wrong_ids_that_outnumber_the_groups_are_broken_rows() -> None:
    """Misspelt schools are schools of one row each, so that there are more schools than classes."""
    frame = pandas.DataFrame({"class": np.arange(1200) // 30, "school": [f"s{i // 120}" for i in range(1200)]})
    bad = np.random.default_rng(1).choice(1200, 36, replace=False)
    frame.loc[bad, "school"] = [f"typo{i}" for i in range(36)]
    assert frame["school"].nunique() > frame["class"].nunique()
    h = pp.hierarchy(frame, ["class", "school"])
    assert kinds(h)[frozenset(("class", "school"))] == ("partly nested", "class")
    assert sorted(h.broken.index) == sorted(bad)


# -- declared nestings ----------------------------------------------------------------------------------------------


def test_a_declared_nesting_that_few_rows_break_is_refused_with_the_rows() -> None:
    frame, bad = broken(np.random.default_rng(6))
    with pytest.raises(DataError, match=r"declared as nested in 'school'") as caught:
        pp.hierarchy(frame, ["class", "school"], nested={"class": "school"})
    first = next(row for row in frame.index if row in set(bad))
    assert f"row {first} has class" in str(caught.value) and "15 more" in str(caught.value)


def test_a_declared_nesting_that_holds_changes_nothing() -> None:
    data = {"class": np.arange(60) // 3, "school": np.arange(60) // 12}
    with_it = pp.hierarchy(data, ["class", "school"], nested={"class": "school"})
    assert with_it.levels.equals(pp.hierarchy(data, ["class", "school"]).levels)
    assert with_it.formula == "(1 | school/class)"


def test_nestings_may_be_chained_and_joint() -> None:
    cells = [(s, c, p) for s in range(5) for c in range(3) for p in range(4) for _ in range(3)]
    frame = pandas.DataFrame(cells, columns=["school", "class", "pupil"])
    h = pp.hierarchy(frame, ["pupil", "class", "school"], nested={"pupil": "class", "class": "school"})
    assert h.levels["groups"].to_dict() == {"pupil": 60, "class": 15, "school": 5}
    assert h.formula == "(1 | school/class/pupil)"
    joint = pp.hierarchy(frame, ["pupil", "class", "school"], nested={"pupil": ["school", "class"]})
    assert joint.levels.loc["pupil", "groups"] == 60


@pytest.mark.parametrize(
    ("nested", "words"),
    [
        ({"clas": "school"}, "Did you mean 'class'"),
        ({"class": "scool"}, "Did you mean 'school'"),
        ({"class": "class"}, "into itself"),
        ({"class": "school", "school": "class"}, "circle"),
        ({"class": []}, "no parent"),
        ({"class": 3}, "names 3, which is not one of levels="),
        ("class", "maps a level"),
    ],
)
def test_nestings_that_cannot_be_read(nested, words) -> None:
    with pytest.raises(ModelError, match=words):
        pp.hierarchy(reused(np.random.default_rng(1), 4), ["class", "school"], nested=nested)


# -- real data -------------------------------------------------------------------------------------------------------


def test_pastes_sample_is_batch_and_cask() -> None:
    cells = [(b, c) for b in "ABCDEFGHIJ" for c in "abc" for _ in range(2)]
    frame = pandas.DataFrame(cells, columns=["batch", "cask"])
    frame["sample"] = frame["batch"] + ":" + frame["cask"]
    h = pp.hierarchy(frame, ["sample", "cask", "batch"])
    assert kinds(h)[frozenset(("batch", "cask"))][0] == "crossed as coded"
    assert "'sample' has one group for each combination" in repr(h)
    same = pp.hierarchy(frame, ["sample", "batch:cask", "batch"])
    assert kinds(same)[frozenset(("sample", "batch:cask"))][0] == "same groups"
    assert same.formula == "(1 | batch/sample)" and same.map("sample", "batch:cask")["share"].eq(1).all()
    assert same.map("batch:cask", "sample")["sample"].tolist() == same.map("sample", "batch:cask").index.tolist()


def test_rows_with_labels_of_two_columns_are_named() -> None:
    index = pandas.MultiIndex.from_arrays([np.arange(200) // 2, np.arange(200) % 2], names=["i", "j"])
    frame = pandas.DataFrame({"class": np.arange(200) // 10, "school": np.arange(200) // 50}, index=index)
    frame.loc[(3, 1), "school"] = 3
    h = pp.hierarchy(frame, ["class", "school"])
    assert h.broken.index.tolist() == [(3, 1)] and "but for row (3, 1)" in repr(h)
    with pytest.raises(DataError, match=r"row \(3, 1\)"):
        pp.hierarchy(frame, ["class", "school"], nested={"class": "school"})


# -- the numerics against brute force -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=2, max_size=60))
def test_maps_and_cells_against_counting(pairs) -> None:
    a, b = (np.unique(column, return_inverse=True)[1].astype(np.int32) for column in zip(*pairs, strict=True))
    shape = (int(a.max()) + 1, int(b.max()) + 1)
    counts = Counter(zip(a.tolist(), b.tolist(), strict=True))
    cells = nesting.occupied(a, b, shape)
    assert dict(zip(zip(cells.first, cells.second, strict=True), cells.rows, strict=True)) == counts
    found = nesting.majority_map(cells)
    for group in range(shape[0]):
        own = {j: n for (i, j), n in counts.items() if i == group}
        best = max(own, key=own.__getitem__)
        assert found.parent[group] == (best if 2 * own[best] > sum(own.values()) else -1)
    exact = nesting.exact_map(a, b, shape[0])
    assert (exact is not None) == all(sum(i == g for i, _ in counts) == 1 for g in range(shape[0]))
    assert (found.whole == shape[0]) == (exact is not None)


def test_wide_codes_are_counted_by_sorting() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.integers(3000, size=5000).astype(np.int32), rng.integers(3000, size=5000).astype(np.int32)
    cells = nesting.occupied(a, b, (3000, 3000))
    assert dict(zip(zip(cells.first, cells.second, strict=True), cells.rows, strict=True)) == Counter(
        zip(a.tolist(), b.tolist(), strict=True)
    )


def test_chains_of_sets() -> None:
    full = [(i, j) for i in range(4) for j in range(6)]
    stairs = [(i, j) for i, j in full if i <= j]
    diagonal = [(i, j) for i, j in full if (i + j) % 3 == 0]

    def share(pairs):
        a, b = np.array(pairs, dtype=np.int32).T
        return nesting.chain_share(nesting.Cells(a, b, np.full(len(a), 5), (4, 6)))

    assert share(full) == 1 and share(stairs) == 1 and share(diagonal) < 0.5


def test_axioms() -> None:
    order = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1]], dtype=bool)
    assert nesting.is_transitive(order) and nesting.is_antisymmetric(order, np.zeros((3, 3), dtype=bool))
    gap = order.copy()
    gap[0, 2] = False
    assert not nesting.is_transitive(gap)
    both = order | order.T
    assert not nesting.is_antisymmetric(both, np.zeros((3, 3), dtype=bool)) and nesting.is_antisymmetric(both, both)
    strict = order & ~np.eye(3, dtype=bool)
    assert nesting.covers(strict).tolist() == [[False, True, False], [False, False, True], [False, False, False]]
    ends = nesting.disagreeing(np.array([0, 1, -1]), np.array([0, 0]), np.array([0, 1, 0]))
    assert ends.tolist() == [1]


def test_paths_that_end_elsewhere_are_named() -> None:
    """Pupil 5 is in class 1, which lies in school A but for its rows; directly it lies in school B."""
    pupil = np.repeat(np.arange(40), 3)
    group = pupil // 10
    school = np.where(group < 2, "A", "B")
    school[pupil == 5] = "B"
    h = pp.hierarchy({"pupil": pupil, "class": group, "school": school}, ["pupil", "class", "school"])
    assert "Paths disagree: for 1 group of 'pupil' ('5')" in repr(h)


# -- blind to names, row order and the kind of data ----------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_relabelling_and_permuting_never_change_the_order(seed) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(20, 200))
    base = rng.integers(rng.integers(3, 30), size=rows)
    frame = pandas.DataFrame({
        "a": base, "b": base // rng.integers(1, 6), "c": rng.integers(rng.integers(2, 8), size=rows),
        "d": np.where(rng.random(rows) < 0.02, rng.integers(3, size=rows), base // 4),
    })  # fmt: skip
    frame.loc[:1, ["b", "d", "a", "c"]] = [[99, 99, 99, 99], [98, 98, 98, 98]]
    names = ["a", "b", "c", "d"]
    h = pp.hierarchy(frame, names)
    other = frame.copy()
    for name in names:
        fresh = rng.permutation(1000)
        other[name] = [f"g{fresh[value]}" for value in other[name]]
    other = other.sample(frac=1, random_state=int(rng.integers(1000)))
    again = pp.hierarchy(other, names)
    assert again.table.equals(h.table)
    assert again.formula == h.formula.replace("C(a)", "a").replace("C(b)", "b").replace("C(c)", "c").replace(
        "C(d)", "d"
    )
    assert sorted(again.broken.index) == sorted(h.broken.index)


def test_any_kind_of_table_gives_the_same(tmp_path) -> None:
    polars = pytest.importorskip("polars")
    frame = reused(np.random.default_rng(9))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    expected = pp.hierarchy(frame, ["pupil", "class", "school"])
    for data in (polars.DataFrame(frame.to_dict("list")), frame.to_dict("list"), tmp_path / "rows.csv"):
        assert pp.hierarchy(data, ["pupil", "class", "school"]).table.equals(expected.table)
    assert expected.map("pupil", "school").index.dtype.kind == "i"


# -- missing ids, rows, bad input ----------------------------------------------------------------------------------


def test_missing_ids_are_dropped_and_counted() -> None:
    frame = reused(np.random.default_rng(10)).astype({"class": float})
    frame.loc[[3, 5], "class"] = np.nan
    frame.loc[[5, 8], "school"] = None
    h = pp.hierarchy(frame, ["class", "school"])
    assert h.n_rows == len(frame) - 3 and h.n_dropped == 3
    assert "3 of" in repr(h) and "2 in 'class', 2 in 'school'" in repr(h)


def test_a_level_that_names_the_rows_is_no_group_term() -> None:
    h = pp.hierarchy({"id": range(40), "site": np.arange(40) // 8}, ["id", "site"])
    assert h.formula == "(1 | site)" and "names the rows" in repr(h)
    assert pp.hierarchy({"id": range(40)}, ["id"]).formula == ""


@pytest.mark.parametrize(
    ("levels", "kind", "words"),
    [
        (["clas", "school"], DataError, "levels= names 'clas'.*Did you mean 'class'"),
        (["class", "one"], DataError, "'one' is constant: it is 'x' in all"),
        ([], ModelError, "there are none"),
        (["class", "class"], ModelError, "names 'class' twice"),
        (["class", 3], ModelError, "one of them is 3"),
        (3, ModelError, "levels= takes the names of columns.*it is 3"),
        (["height", "school"], DataError, "holds decimals"),
    ],
)
def test_bad_levels_are_a_sentence(levels, kind, words) -> None:
    frame = reused(np.random.default_rng(1), 3).assign(one="x")
    frame["height"] = np.linspace(1.5, 1.9, len(frame))
    with pytest.raises(kind, match=words):
        pp.hierarchy(frame, levels)


def test_too_few_rows() -> None:
    with pytest.raises(DataError, match=r"1 of 3 rows have an id in each.*2 in 'a'"):
        pp.hierarchy({"a": [1, None, None], "b": [1, 2, 3]}, ["a", "b"])
    with pytest.raises(DataError, match="empty"):
        pp.hierarchy(pandas.DataFrame({"a": [], "b": []}), ["a", "b"])


def test_maps_that_are_not_there() -> None:
    h = pp.hierarchy({"class": np.arange(60) // 5, "school": np.arange(60) // 15}, ["class", "school"])
    with pytest.raises(DataError, match="'school' is the coarser"):
        h.map("school", "class")
    with pytest.raises(ModelError, match="Did you mean 'school'"):
        h.map("class", "shool")
    crossed = pp.hierarchy(reused(np.random.default_rng(1)), ["class", "school"])
    with pytest.raises(DataError, match="crossed as coded"):
        crossed.map("class", "school")


def test_a_hundred_thousand_rows_are_quick_and_recovered() -> None:
    from benchmarks.levels_cases import hierarchy_million

    for text in (False, True):
        found = hierarchy_million(text, 100_000)
        assert found["recovered"] and found["seconds"] < 5


def test_the_diagram_joins_what_is_nested() -> None:
    frame, _ = broken(np.random.default_rng(11))
    figure = pp.hierarchy(frame, ["class", "school", "task"]).plot()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "school\n50 groups" in texts and "20 rows broken" in texts and "row\n4,000 rows" in texts
    assert len(figure.axes[0].patches) == 3


def test_figures_are_html_too() -> None:
    h = pp.hierarchy({"class": np.arange(60) // 5, "school": np.arange(60) // 15}, ["class", "school"])
    assert "<table>" in h._repr_html_() and "nested in" in h._repr_html_()
