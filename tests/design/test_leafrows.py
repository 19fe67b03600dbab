"""Rows sorted by the groups of the leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import partialpool as pp
from partialpool.design.design import Design, build_design
from partialpool.design.latent import latent_layout
from partialpool.design.leafrows import BLOCK, LeafRows, leaf_rows


def data(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "y": rng.integers(0, 5, n), "t": rng.integers(5, 9, n), "w": rng.integers(1, 4, n), "o": rng.normal(size=n),
            "x": rng.normal(size=n), "z": rng.normal(size=n), "a": rng.integers(0, 12, n), "b": rng.integers(0, 4, n),
        }
    )  # fmt: skip


def rows_of(formula: Any, frame: pd.DataFrame, centre: Any = None, leaf: bool = True) -> tuple[Design, LeafRows]:
    design = build_design(formula, frame)
    centre = np.zeros(design.x_columns.size) if centre is None else centre
    return design, leaf_rows(design, latent_layout(design), centre, leaf=leaf)


def test_every_row_stands_in_its_group() -> None:
    design, rows = rows_of("y ~ x + (1 | a) + (x | b)", data())
    codes = design.factors[0].codes[rows.order]
    assert rows.n_groups == 12 and sorted(rows.order) == list(range(60))
    np.testing.assert_array_equal(codes, np.repeat(np.arange(12), np.diff(rows.pointer)))
    np.testing.assert_array_equal(rows.y, design.y[rows.order])
    assert rows.z.tolist() == [[1.0]] * 60 and rows.n_root == 2 + 4 * 2
    for array in (rows.y, rows.x, rows.at, rows.z, rows.weight, rows.trials, rows.offset):
        assert array.flags.c_contiguous and array.flags.writeable


def test_predictors_are_those_of_dense_matrices() -> None:
    frame = data()
    centre = np.array([0.0, 0.7])
    _, rows = rows_of("y ~ x + offset(o) + (1 | a) + (x | b) + (0 + z | b)", frame, centre)
    root = np.random.default_rng(2).normal(size=rows.n_root)
    effects = root[2:].reshape(4, 3)[frame["b"]]
    expected = frame["o"] + root[0] + root[1] * (frame["x"] - 0.7) + effects[:, 0] + effects[:, 1] * frame["x"]
    expected += effects[:, 2] * frame["z"]
    np.testing.assert_allclose(rows.predictors(root), expected.to_numpy()[rows.order])


def test_weights_trials_and_offset_follow_their_rows() -> None:
    frame = data()
    model = pp.Model.from_formula("y | trials(t) + weights(w) ~ offset(o) + (1 | a)", frame, family="binomial")
    rows = leaf_rows(model.design, model.latent, np.zeros(1))
    for array, name in ((rows.trials, "t"), (rows.weight, "w"), (rows.offset, "o")):
        np.testing.assert_array_equal(array, frame[name].to_numpy()[rows.order])


def test_what_is_not_given_is_neutral() -> None:
    _, rows = rows_of("y ~ 1 + (1 | a)", data())
    assert (rows.trials == 1).all() and (rows.weight == 1).all() and not rows.offset.any()


def test_without_a_leaf_every_factor_is_in_the_root() -> None:
    frame = data(600)
    design, rows = rows_of("y ~ x + (1 | a) + (x | b)", frame, leaf=False)
    assert rows.z.shape == (600, 0) and rows.n_root == 2 + 12 + 8
    assert rows.order.tolist() == list(range(600)) and rows.pointer.tolist() == [0, BLOCK, 2 * BLOCK, 600]
    root = np.arange(rows.n_root, dtype=float)
    layout = latent_layout(design)
    a = root[2 + layout.effects_of(0)[frame["a"], 0]]
    b = root[2 + layout.effects_of(1)[frame["b"]]]
    x = frame["x"].to_numpy()
    np.testing.assert_allclose(rows.predictors(root), root[0] + root[1] * x + a + b[:, 0] + b[:, 1] * x)


def test_no_groups() -> None:
    _, rows = rows_of("y ~ x", data(BLOCK))
    assert rows.pointer.tolist() == [0, BLOCK] and rows.n_root == 2 and rows.z.shape == (BLOCK, 0)


def test_touched_lists_what_each_group_meets() -> None:
    _, rows = rows_of("y ~ x + (1 | a) + (x | b)", data())
    pointer, entries, local = rows.touched
    for g in range(rows.n_groups):
        own = slice(rows.pointer[g], rows.pointer[g + 1])
        mine = entries[pointer[g] : pointer[g + 1]]
        assert mine.tolist() == sorted(set(rows.at[own].ravel().tolist()))
        np.testing.assert_array_equal(mine[local[own]], rows.at[own])


@pytest.mark.parametrize("leaf", [True, False])
def test_two_predictors(leaf: bool) -> None:
    terms = pp.formula("y ~ x + (1 | a) + (1 | b)", sigma="~ z + (1 | a) + (0 + x | b)")
    design, rows = rows_of(terms, data(), leaf=leaf)
    assert design.x_names == ("Intercept", "x", "sigma.Intercept", "sigma.z")
    assert rows.z_part.tolist() == ([0, 1] if leaf else [])
    parts = [0, 0, 1, 1, 0, 1] if leaf else [0, 0, 1, 1, 0, 1, 0, 1]
    assert rows.x_part.tolist() == parts
    # the mean's predictor takes nothing of the other
    root = np.where(np.arange(rows.n_root) < 2, 1.0, 0.0)
    other = root.copy()
    other[2:4] = 5.0
    np.testing.assert_array_equal(rows.predictors(root), rows.predictors(other))
