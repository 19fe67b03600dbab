"""Designs: against formulaic itself, replayed on new rows, saved and loaded, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from formulaic import Formula

from partialpool.design.design import Design, build_design
from partialpool.design.encoding import learn
from partialpool.errors import DataError, FormulaError, PartialPoolError, StorageError
from partialpool.spec.formula import parse_formula

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n = 60
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "x": rng.normal(size=n),
            "z": rng.uniform(1, 2, size=n),
            "k": rng.integers(1, 4, n),
            "f": np.tile(list("uvwx"), 15),
            "h": np.tile(list("abc"), 20),
            "flag": np.tile([True, False, False], 20),
            "g": np.repeat(np.arange(10), 6),
            "s": np.repeat(list("pqrst"), 12),
            "cat": pd.Categorical(np.tile(list("uvwx"), 15), categories=list("zxwvu")),
            "my col": rng.normal(size=n),
            "const": 2.0,
            "single": "q",
            "row": np.arange(n),
            "v": rng.uniform(1, 2, size=n),
        }
    )


ENCODINGS = [
    "1",
    "1 + x + z",
    "0 + x",
    "1 + f + x",
    "0 + x + f + h",
    "1 + cat + flag",
    "1 + f*x",
    "1 + C(k)*x",
    "0 + C(k, contr.poly) + x",
    "1 + poly(x, 3) + bs(z, df=5)",
    "1 + cr(z, df=4, constraints='center')",
    "1 + scale(x) + center(z) + log(z):h",
    "1 + I(x**2) + np.exp(z)",
    "1 + C(f, contr.sum) + C(h, contr.treatment(base='b'))",
    "1 + (x + z + h)**2",
    "1 + h/x",
    "1 + f*h - f:h",
    "1 + `my col`:z + `my col`",
]


@pytest.mark.parametrize("text", ENCODINGS)
def test_columns_are_formulaics(table: pd.DataFrame, text: str) -> None:
    encoding, V = learn(table, [text])
    reference = Formula({"it": text}).get_model_matrix(table.assign(cat=table.cat.cat.remove_unused_categories()))["it"]
    names = [str(name).replace("[T.", "[").replace("`", "") for name in reference.columns]
    assert list(encoding.names) == names
    np.testing.assert_allclose(V, reference.to_numpy(dtype=float), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("text", ENCODINGS)
def test_replay_is_row_by_row(table: pd.DataFrame, text: str) -> None:
    """Rows one at a time get what they got all together: nothing is learned again."""
    encoding, V = learn(table, [text])
    for row in (0, 7, 31):
        again = encoding.encode(table.iloc[[row]], [text])
        np.testing.assert_allclose(again[0], V[row], rtol=1e-12, atol=1e-12)


FORMULAS = [
    "y ~ x + (1|g)",
    "y ~ x*f + (x|g) + (1|s:h)",
    "log(z) | weights(v) ~ poly(x, 3) + C(k)*h + offset(log(v)) + (0 + h|s) + (x||g)",
    "y | se(v, sigma=True) ~ bs(z, df=4) + (C(k)|s)",
    "y | precision(1/v) ~ cr(z, df=3, constraints='center') + scale(x) + (1|s/h)",
    "y ~ 0 + cat + sqrt(z) + `my col` + I(x^2) + (1 + flag|g)",
    "y ~ 1 + offset(z) + offset(log(v)) + (f|s)",
]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("rows", [False, True])
def test_state_replays_without_rows_and_without_pickle(
    table: pd.DataFrame, formula: str, rows: bool, tmp_path: Path
) -> None:
    table.loc[4, "y"] = np.nan
    design = build_design(formula, table.drop(columns="y").assign(y=table.y))
    state = design.to_state(rows=rows)
    np.savez(tmp_path / "state.npz", allow_pickle=False, **state["arrays"])
    with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
        loaded = Design.from_state({"json": json.loads(json.dumps(state["json"])), "arrays": dict(arrays)})
    new = table.iloc[10:40]
    for factors in (None, ()):
        one, other = design.replay(new, factors=factors), loaded.replay(new, factors=factors)
        np.testing.assert_array_equal(one.V, other.V)
        assert str(one.codes) == str(other.codes) and str(one.labels) == str(other.labels)
        assert str(one.offset) == str(other.offset) and str(one.se) == str(other.se)
    assert loaded.v_names == design.v_names and loaded.x_names == design.x_names
    assert [factor.labels.tolist() for factor in loaded.factors] == [
        factor.labels.tolist() for factor in design.factors
    ]
    assert [factor.sizes.tolist() for factor in loaded.factors] == [factor.sizes.tolist() for factor in design.factors]
    assert loaded.dropped_by == design.dropped_by and loaded.n_rows == design.n_rows
    if not rows:
        assert loaded.V.shape == (0, len(design.v_names)) and loaded.y.shape == (0,)
        return
    for name in ("y", "V", "offset", "se", "weights", "precision", "rows"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(design, name))
    for one_factor, other_factor in zip(design.factors, loaded.factors, strict=True):
        np.testing.assert_array_equal(one_factor.codes, other_factor.codes)
    pd.testing.assert_frame_equal(loaded.data, design.data)


def test_rows_of_many_types_come_back(table: pd.DataFrame) -> None:
    table = table.assign(
        g=table.g.astype("int16"),
        s=table.s.astype(object),
        k=table.k.astype("Int64"),
        when=np.repeat(pd.date_range("2020", periods=6), 10),
        x=table.x.astype("float32"),
    )
    table.index = pd.Index([f"r{i}" for i in range(60)], name="label")
    design = build_design("y ~ x + k + cat + flag + (1|g) + (1|s:h) + (1|when)", table)
    state = design.to_state(rows=True)
    loaded = Design.from_state({"json": json.loads(json.dumps(state["json"])), "arrays": state["arrays"]})
    pd.testing.assert_frame_equal(loaded.data, design.data)
    np.testing.assert_array_equal(loaded.V, design.V)


def test_a_later_state_is_refused(table: pd.DataFrame) -> None:
    state = build_design("y ~ x", table).to_state()
    state["json"]["version"] = 99
    with pytest.raises(StorageError, match="upgrade"):
        Design.from_state(state)


def test_sleepstudy() -> None:
    design = build_design("Reaction ~ Days + (Days|Subject)", DATA / "sleepstudy.csv")
    assert design.V.shape == (180, 2) and design.V.flags.c_contiguous
    assert design.x_names == ("Intercept", "Days")
    assert design.groups[0].names == ("Intercept", "Days")
    assert design.groups[0].columns.tolist() == [0, 1]
    assert design.factors[0].labels[0] == "308" and len(design.factors[0].labels) == 18
    assert design.factors[0].sizes.tolist() == [10] * 18
    np.testing.assert_array_equal(design.x_matrix()[:, 1], design.data["Days"])


def test_pastes_nested() -> None:
    design = build_design("strength ~ 1 + (1|batch/cask)", DATA / "Pastes.csv")
    assert [factor.name for factor in design.factors] == ["batch", "batch:cask"]
    assert design.factors[1].labels[:3].tolist() == ["A:a", "A:b", "A:c"]
    assert len(design.factors[1].labels) == 30
    assert design.V.shape == (60, 1)


def test_penicillin_crossed() -> None:
    design = build_design("diameter ~ 1 + (1|plate) + (1|sample)", DATA / "Penicillin.csv")
    assert [len(factor.labels) for factor in design.factors] == [24, 6]


def test_cake_polynomial_contrasts() -> None:
    cake = pd.read_csv(DATA / "cake.csv", dtype={"replicate": str, "temperature": str})
    design = build_design("angle ~ recipe * C(temperature, contr.poly) + (1|recipe:replicate)", cake)
    assert len(design.x_names) == 18
    assert design.x_names[:4] == ("Intercept", "recipe[B]", "recipe[C]", "C(temperature, contr.poly)[.L]")
    assert len(design.factors[0].labels) == 45


def test_hsb82_interaction_names() -> None:
    design = build_design("mAch ~ minrty*cses + (1 + cses|school)", DATA / "Hsb82.csv")
    assert design.x_names == ("Intercept", "minrty[Yes]", "cses", "minrty[Yes]:cses")


def test_integers_are_numbers_and_C_makes_categories(table: pd.DataFrame) -> None:
    assert build_design("y ~ k + (1|g)", table).x_names == ("Intercept", "k")
    assert build_design("y ~ C(k) + (1|g)", table).x_names == ("Intercept", "C(k)[2]", "C(k)[3]")


def test_shared_columns_are_there_once(table: pd.DataFrame) -> None:
    design = build_design("y ~ x + f*z + (x + f|g) + (0 + x|s) + (1|s)", table)
    assert len(set(design.v_names)) == len(design.v_names) == design.V.shape[1] == 9
    assert [group.factor for group in design.groups] == [0, 1, 1]
    assert [design.v_names[column] for column in design.groups[0].columns] == ["Intercept", "x", "f[v]", "f[w]", "f[x]"]


def test_no_common_part(table: pd.DataFrame) -> None:
    design = build_design("y ~ 0 + (1|g)", table)
    assert design.x_matrix().shape == (60, 0) and design.v_names == ("Intercept",)


def test_missing_rows(table: pd.DataFrame) -> None:
    table.loc[[3, 5], "x"] = np.nan
    table.loc[[5, 9], "s"] = None
    table.loc[11, "v"] = np.nan  # not in the formula
    design = build_design("y ~ x + (1|s)", table)
    assert (design.n_rows, design.n_dropped, design.dropped_by) == (57, 3, {"x": 2, "s": 2})
    assert design.data.index.tolist() == design.rows.tolist()
    assert not {3, 5, 9} & set(design.rows.tolist())


def test_unused_categories_are_left_out(table: pd.DataFrame) -> None:
    design = build_design("y ~ cat + (1|s)", table.assign(s=pd.Categorical(table.s, categories=list("tsrqpo"))))
    assert design.x_names == ("Intercept", "cat[w]", "cat[v]", "cat[u]")
    assert design.factors[0].labels.tolist() == list("tsrqp")


def test_offsets_sum(table: pd.DataFrame) -> None:
    design = build_design("y ~ x + offset(z) + offset(log(v)) + (1|g)", table)
    np.testing.assert_allclose(design.offset, table.z + np.log(table.v))
    assert design.x_names == ("Intercept", "x")


def test_additions(table: pd.DataFrame) -> None:
    design = build_design("log(z) | se(v, sigma=True) + weights(k) ~ x + (1|g)", table)
    np.testing.assert_allclose(design.y, np.log(table.z))
    assert design.se is not None and design.se_sigma and design.weights is not None
    np.testing.assert_array_equal(design.weights, table.k)


def test_power_is_shown_as_written(table: pd.DataFrame) -> None:
    assert build_design("y ~ I(x^2) + (1|g)", table).x_names[1] == "I(x^2)"
    assert build_design("y ~ I(x**2) + (1|g)", table).x_names[1] == "I(x ** 2)"
    np.testing.assert_allclose(build_design("y ~ I(x^2) + (1|g)", table).V[:, 1], table.x**2)


def test_the_users_data_are_not_touched(table: pd.DataFrame) -> None:
    before = table.copy(deep=True)
    build_design("y ~ x*cat + C(k) + (1|g)", table)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ xx + (1|g)", "Did you mean 'x'"),
        ("y ~ x + (1|gg)", "Did you mean 'g'"),
        ("f ~ x + (1|g)", "The response 'f' is not numeric: its first value is 'u'"),
        ("const ~ x + (1|g)", "The response 'const' is constant, 2 in every row"),
        ("log(x) ~ z + (1|g)", r"'log\(x\)' is undefined in rows"),
        ("y ~ log(x) + (1|g)", r"'log\(x\)' is undefined in rows"),
        ("y ~ x + y + (1|g)", "among its own predictors"),
        ("y ~ const + (1|g)", "'const' in the common part does not vary: it is 2"),
        ("y ~ x + (const|g)", r"'const' in the group term \(const \| g\) does not vary"),
        ("y ~ single + (1|g)", "single category, 'q'"),
        ("y ~ x + I(2*x+1) + (1|g)", r"Collinear predictors: .*'I\(2 \* x \+ 1\)' is determined by 'x'; drop one"),
        ("y ~ x + (x + I(2*x)|g)", r"Collinear predictors: in the group term"),
        ("y ~ f + C(cat) + (1|g)", "Collinear"),
        ("y ~ cr(z, df=3) + (1|g)", "constraints='center'"),
        ("y ~ x + (1|single)", "single group, 'q'"),
        ("y ~ x + (1|row)", r"as many groups as there are rows \(60\)"),
        ("y | se(v, sigma=True) ~ x + (1|row)", "as many groups as there are rows"),
        ("y | precision(const) ~ x + (1|row)", "as many groups as there are rows"),
        ("y ~ z + (1|x)", "holds decimals"),
        ("y ~ x + (1|g) + (x|g)", r"both let 'Intercept' vary by 'g'; write \(0 \+ x \| g\)"),
        ("y ~ x + (x|g) + (0+x|g)", "both let 'x' vary"),
        ("y | se(x) ~ 1 + (1|g)", r"se\(x\) is negative in rows"),
        ("y | se(v - v) ~ 1 + (1|g)", r"is zero in rows 0, 1, 2, 3, 4 and 55 more"),
        ("y | weights(x) ~ 1 + (1|g)", r"weights\(x\) is negative"),
        ("y | weights(0*v) ~ 1 + (1|g)", "no row counts"),
        ("y | precision(x) ~ 1 + (1|g)", r"precision\(x\) is negative"),
        ("y ~ 2*x + (1|g)", "cannot be read"),
        ("y ~ bs(x, df=1) + (1|g)", "cannot be computed"),
        ("y ~ C(f, levels=['u', 'v']) + (1|g)", "not one of the known categories: 'u', 'v'"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_errors_name_the_thing_and_the_mend(table: pd.DataFrame, formula: str, says: str) -> None:
    with pytest.raises(PartialPoolError, match=says):
        build_design(formula, table)


def test_one_row_per_group_is_fine_where_sigma_is_known_or_told_apart(table: pd.DataFrame) -> None:
    for formula in (
        "y | se(v) ~ x + (1|row)",
        "y | precision(v) ~ x + (1|row)",
        "y | weights(k) ~ x + (1|row)",
        "y ~ x + (0 + x|row)",
    ):
        assert len(build_design(formula, table).factors[0].labels) == 60
    assert build_design("y | se(sigma) ~ 1 + (1|school)", DATA / "eight_schools.csv").se is not None


def test_infinite_values_name_the_rows(table: pd.DataFrame) -> None:
    table.loc[[3, 8], "x"] = np.inf
    with pytest.raises(DataError, match="'x' is infinite in rows 3 and 8"):
        build_design("y ~ x + (1|g)", table)
    with pytest.raises(DataError, match="'x' is infinite in rows 3 and 8"):
        build_design("x ~ z + (1|g)", table)


def test_empty_and_all_dropped(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no rows"):
        build_design("y ~ x + (1|g)", table.iloc[:0])
    with pytest.raises(DataError, match=r"Every one of the 60 rows has a missing value \('x' lacks 60"):
        build_design("y ~ x + (1|g)", table.assign(x=np.nan))
    with pytest.raises(DataError, match="one row only"):
        build_design("y ~ x + (1|g)", table.iloc[:1])


def test_dates_and_mixtures(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="holds dates"):
        build_design("y ~ d + (1|g)", table.assign(d=pd.date_range("2020", periods=60)))
    with pytest.raises(DataError, match="mixes numbers and text"):
        build_design("y ~ d + (1|g)", table.assign(d=pd.Series([1, "a"] * 30, dtype=object)))


def test_collinearity_is_not_cried_for_large_means(table: pd.DataFrame) -> None:
    year = 1990 + np.arange(60) % 30
    design = build_design("y ~ year + I(year^2) + (1|g)", table.assign(year=year))
    assert design.x_names[2] == "I(year^2)"


def test_new_rows(table: pd.DataFrame) -> None:
    design = build_design("y ~ x*cat + C(k) + (1|s/h) + (0 + z|g)", table)
    new = design.replay(table.drop(columns="y").iloc[5:9])
    np.testing.assert_array_equal(new.V, design.V[5:9])
    for factor, codes, labels in zip(design.factors, new.codes, new.labels, strict=True):
        assert codes is not None and labels is not None
        np.testing.assert_array_equal(codes, factor.codes[5:9])
        assert labels.tolist() == factor.labels[factor.codes[5:9]].tolist()
    assert new.y is None and new.n_rows == 4
    replayed = design.replay(table, response=True)
    np.testing.assert_array_equal(replayed.y, design.y)


def test_new_groups_have_no_code(table: pd.DataFrame) -> None:
    design = build_design("y ~ x + (1|s/h) + (1|g)", table)
    new = design.replay({"x": [0.0, 1.0, 2.0], "s": ["p", "p", "new"], "h": ["a", "other", "a"], "g": [3, 99, 4.0]})
    assert [codes.tolist() for codes in new.codes if codes is not None] == [[0, 0, -1], [0, -1, -1], [3, -1, 4]]
    assert new.labels[1] is not None and new.labels[1].tolist() == ["p:a", "p:other", "new:a"]


def test_factors_that_are_not_asked_for(table: pd.DataFrame) -> None:
    design = build_design("y ~ x + (1|s) + (0 + z|g)", table)
    new = design.replay({"x": [0.0]}, factors=())
    assert new.codes == [None, None] and np.isnan(new.V[0, 2]) and np.isfinite(new.V[0, :2]).all()
    assert design.replay({"x": [0.0], "s": ["p"]}, factors=["s"]).codes[1] is None
    with pytest.raises(DataError, match="lack the column 'z'"):
        design.replay({"x": [0.0], "s": ["p"], "g": [1]})
    with pytest.raises(DataError, match="no grouping factor 'q'"):
        design.replay({"x": [0.0]}, factors=["q"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cat": ["u", "Q"]}, "In row r2, 'cat' is 'Q', not one of the known categories: 'x', 'w', 'v', 'u'"),
        ({"k": [1, 9]}, r"In row r2, 'C\(k\)' is 9, not one of the known categories: 1, 2, 3"),
        ({"x": [1.0, np.nan]}, "no value of 'x' in row r2"),
        ({"x": [1.0, np.inf]}, "'x' is infinite in row r2"),
        ({"x": ["a", "b"]}, "'x' is not numeric"),
        ({"x": None}, "lack the column 'x'"),
    ],
)
def test_new_rows_that_do_not_fit(table: pd.DataFrame, change: dict[str, Any], says: str) -> None:
    design = build_design("y ~ x + cat + C(k) + (1|g)", table)
    new = (
        table.iloc[[1, 2]]
        .set_axis(["r1", "r2"])
        .drop(columns=[name for name, value in change.items() if value is None])
    )
    with pytest.raises(DataError, match=says):
        design.replay(new.assign(**{name: value for name, value in change.items() if value is not None}))


def test_categories_match_by_their_text(table: pd.DataFrame) -> None:
    design = build_design("y ~ k + (1|g)", table.assign(k=table.k.astype(str)))
    new = design.replay({"k": [1, 2, 3.0], "g": ["0", "1", "2"]})
    np.testing.assert_array_equal(new.V[:, 1:3], [[0, 0], [1, 0], [0, 1]])


def test_learned_means_stay(table: pd.DataFrame) -> None:
    design = build_design("y ~ center(x) + (1|g)", table)
    np.testing.assert_allclose(design.replay({"x": [table.x.mean(), 7.0], "g": [0, 0]}).V[0, 1], 0, atol=1e-14)


def test_terms_or_text(table: pd.DataFrame) -> None:
    text = "y ~ x + (1|g)"
    np.testing.assert_array_equal(build_design(text, table).V, build_design(parse_formula(text), table).V)


def test_overlap_is_a_formula_error(table: pd.DataFrame) -> None:
    with pytest.raises(FormulaError):
        build_design("y ~ x + (1|g) + (x|g)", table)


def test_wide_integer_ids_and_narrow_ones_agree(table: pd.DataFrame) -> None:
    one = build_design("y ~ x + (1|g)", table)
    other = build_design("y ~ x + (1|g)", table.assign(g=table.g * 10**12 - 5 * 10**14))
    np.testing.assert_array_equal(one.factors[0].codes, other.factors[0].codes)


def test_plain_formulas_do_without_formulaic() -> None:
    """What makes the first fit of a process quick."""
    code = (
        "import sys\nfrom partialpool.design.design import build_design\n"
        f"build_design('Reaction ~ Days + (Days|Subject)', {str(DATA / 'sleepstudy.csv')!r})\n"
        "assert not {'formulaic', 'scipy.stats', 'pyarrow.parquet', 'narwhals'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numbers_read_as_text_do_not_make_an_effect_for_each_value():
    frame = pd.DataFrame({"y": np.random.default_rng(1).normal(size=40), "g": np.repeat(np.arange(4), 10)})
    frame["day"] = [str(day) for day in np.tile(np.arange(10), 4)]
    with pytest.raises(DataError, match=r"10 effects .* 40 in all for 40 rows.*read as text"):
        build_design(parse_formula("y ~ day + (day | g)"), frame)
