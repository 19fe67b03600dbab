"""Every kind of data gives the same columns; what cannot be read is said in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from partialpool.design.design import Design, build_design
from partialpool.design.factors import encode_ids, match_ids
from partialpool.design.frame import drop_missing, read_frame
from partialpool.errors import DataError

FORMULA = "y ~ x + f + (1 + x | g)"


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "y": rng.normal(size=24),
            "x": rng.integers(0, 9, 24),
            "f": list("abc") * 8,
            "g": np.repeat([7, 3, 5, 11], 6),
            "spare": 1.0,
        }
    )


def kinds(table: pd.DataFrame, folder: Path) -> dict[str, Any]:
    table.to_csv(folder / "table.csv", index=False)
    table.to_csv(folder / "table.tsv", index=False, sep="\t")
    table.to_csv(folder / "table.csv.gz", index=False)
    out: dict[str, Any] = {
        "pandas": table,
        "category": table.astype({"f": "category"}),
        "object": table.astype({"f": object}),
        "dict of arrays": {name: table[name].to_numpy() for name in table},
        "dict of lists": {name: table[name].tolist() for name in table},
        "dict of series": {name: table[name] for name in table},
        "records": table.to_dict("records"),
        "structured": table.drop(columns="f")
        .assign(f=table.f.astype("S1").str.decode("ascii"))
        .to_records(index=False),
        "csv": folder / "table.csv",
        "csv, as text": str(folder / "table.csv"),
        "tsv": folder / "table.tsv",
        "csv.gz": folder / "table.csv.gz",
    }
    return out


def same(one: Design, other: Design) -> None:
    assert one.v_names == other.v_names
    np.testing.assert_allclose(one.V, other.V, rtol=1e-14)
    np.testing.assert_allclose(one.y, other.y, rtol=1e-14)
    assert one.factors[0].labels.tolist() == other.factors[0].labels.tolist()
    np.testing.assert_array_equal(one.factors[0].codes, other.factors[0].codes)


def test_every_kind_of_data_gives_the_same_design(table: pd.DataFrame, tmp_path: Path) -> None:
    reference = build_design(FORMULA, table)
    for data in kinds(table, tmp_path).values():
        same(reference, build_design(FORMULA, data))


def test_arrow(table: pd.DataFrame, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    arrow = pa.Table.from_pandas(table)
    parquet.write_table(arrow, tmp_path / "table.parquet")
    dictionary = arrow.set_column(2, "f", arrow["f"].dictionary_encode())
    reference = build_design(FORMULA, table)
    for data in (arrow, dictionary, tmp_path / "table.parquet"):
        same(reference, build_design(FORMULA, data))
    nullable = table.convert_dtypes(dtype_backend="pyarrow")
    same(reference, build_design(FORMULA, nullable))
    same(reference, build_design(FORMULA, table.convert_dtypes()))


def test_polars(table: pd.DataFrame) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({name: table[name].tolist() for name in table})
    reference = build_design(FORMULA, table)
    for data in (frame, frame.lazy(), frame.with_columns(pl.col("f").cast(pl.Categorical))):
        same(reference, build_design(FORMULA, data))


def test_only_named_columns_are_read(table: pd.DataFrame, tmp_path: Path) -> None:
    for data in kinds(table, tmp_path).values():
        assert "spare" not in build_design(FORMULA, data).data.columns


def test_unknown_column_offers_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'Dayz', which is not a column of the data. Did you mean 'Days'\?"):
        read_frame({"Days": [1], "y": [2]}, ["Dayz"])


def test_column_in_the_index(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="reset_index"):
        build_design(FORMULA, table.set_index("g"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (3, "cannot be read; give a data frame"),
        ([], "no rows"),
        ([1, 2], "cannot be read"),
        ({"y": [1.0, 2.0], "x": [1.0]}, "differ in length: 'y' has 2, 'x' has 1"),
        ({"y": np.ones((3, 2)), "x": [1, 2, 3]}, "shape"),
        ("nowhere.csv", "no file 'nowhere.csv'"),
        (pd.DataFrame([[1, 2, 3]], columns=["y", "x", "x"]), "more than one column named 'x'"),
    ],
)
def test_unreadable_data(data: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_frame(data, ["y", "x"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "sheet.xlsx").write_text("x")
    (tmp_path / "bad.parquet").write_text("not parquet")
    (tmp_path / "good.csv").write_text("x\n1\n")
    for name, says in {
        "empty.csv": "is empty",
        "sheet.xlsx": "of a kind",
        "bad.parquet": "cannot be read",
        "godo.csv": r"Did you mean 'good.csv'\?",
        "": "is a folder",
    }.items():
        with pytest.raises(DataError, match=says):
            read_frame(tmp_path / name, ["x"])


def test_missing_rows_are_counted_by_column() -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0, np.nan], "b": ["u", None, "v", "w"], "c": [1, 2, 3, 4]})
    kept, rows, dropped = drop_missing(frame)
    assert rows.tolist() == [0, 2]
    assert dropped == {"a": 2, "b": 1}
    assert kept["c"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([10, 9, 100], ["9", "10", "100"]),
        ([-3, 5, 10**15], ["-3", "5", str(10**15)]),
        ([2.0, 1.0, 2.0], ["1", "2"]),
        (["b", "a", "B"], ["B", "a", "b"]),
        ([True, False], ["False", "True"]),
        (pd.Categorical(["u", "w"], categories=["w", "v", "u"]), ["w", "u"]),
        (pd.Categorical([2, 10], categories=[10, 2]), ["10", "2"]),
        (pd.Series([1, "1", "a"], dtype=object), ["1", "a"]),
        (pd.array([3, 1], dtype="Int64"), ["1", "3"]),
        (np.array([3, 1], dtype=np.uint8), ["1", "3"]),
        (pd.to_datetime(["2020-01-02", "2020-01-01"]), ["2020-01-01 00:00:00", "2020-01-02 00:00:00"]),
    ],
)
def test_ids(values: Any, labels: list[str]) -> None:
    column = pd.Series(values)
    codes, levels = encode_ids(column, "g")
    assert levels.labels.tolist() == labels
    assert codes.dtype == np.int32
    again, seen = match_ids(column, levels)
    assert again.tolist() == codes.tolist()
    assert seen.tolist() == levels.labels[codes].tolist()


def test_ids_with_decimals_are_refused() -> None:
    with pytest.raises(DataError, match=r"holds decimals, such as 1.5 in row 1;.*astype\(str\)"):
        encode_ids(pd.Series([1.0, 1.5]), "g")


def test_ids_match_by_their_text() -> None:
    _, levels = encode_ids(pd.Series([308, 309]), "Subject")
    codes, labels = match_ids(pd.Series(["309", "1"]), levels)
    assert codes.tolist() == [1, -1]
    assert labels.tolist() == ["309", "1"]
    assert match_ids(pd.Series([308.0]), levels)[0].tolist() == [0]
