from __future__ import annotations

import pytest
from pandas.api.types import is_numeric_dtype

from partialpool import datasets
from partialpool.errors import DataError


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_is_as_described(name: str) -> None:
    frame, about = datasets.load(name), datasets.describe(name)
    assert list(frame.columns) == list(about.columns)
    assert len(frame) == about.rows
    assert not frame.isna().any().any()
    for column in frame.columns:
        if column in about.ids:
            assert all(isinstance(value, str) for value in frame[column])
        else:
            assert is_numeric_dtype(frame[column])
    text = repr(about)
    assert about.source in text and about.licence in text and about.formula in text and about.begin in text
    assert about.formula or about.begin


@pytest.mark.parametrize("name", [name for name in datasets.names() if datasets.describe(name).formula])
def test_the_model_to_begin_with_can_be_built(name: str) -> None:
    from partialpool.design.design import build_design

    about = datasets.describe(name)
    design = build_design(about.formula, datasets.load(name), family=about.family)
    assert design.n_rows == about.rows


@pytest.mark.parametrize("name", [name for name in datasets.names() if datasets.describe(name).begin])
def test_the_pooling_to_begin_with_can_be_typed(name: str) -> None:
    import partialpool as pp

    about = datasets.describe(name)
    pooled = eval(about.begin, {"pp": pp, "data": datasets.load(name)})
    assert pooled.units.n == about.rows
    assert pooled.units.named == bool(about.ids)
    assert pooled.accuracy.trusted


def test_what_is_known_of_the_data_for_pooling() -> None:
    tumors = datasets.load("tumors")
    assert (tumors["y"].sum(), tumors["K"].sum()) == (267, 1739)
    assert tumors.iloc[-1].tolist() == [4, 14]  # the new experiment
    baseball = datasets.load("bball1970")
    assert (baseball["AB"] == 45).all() and baseball["Hits"].sum() == 215
    assert baseball.loc[baseball["Player"] == "Clemente", "Hits"].tolist() == [18]
    bcg = datasets.load("bcg")
    assert bcg[["tpos", "cpos"]].iloc[7].tolist() == [505, 499]  # Madras
    assert bcg["trial"].is_unique and bcg["author"].nunique() == 11


def test_each_load_is_a_fresh_copy() -> None:
    first = datasets.load("sleepstudy")
    first["Reaction"] = 0.0
    assert datasets.load("sleepstudy")["Reaction"].min() > 100


def test_capitals_do_not_matter() -> None:
    assert datasets.load("dyestuff").equals(datasets.load("Dyestuff"))


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'sleepstudy'"):
        datasets.load("sleepstduy")
    with pytest.raises(DataError, match="There are: "):
        datasets.describe("zzzz")
