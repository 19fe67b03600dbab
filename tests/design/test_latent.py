"""Where group effects stand in the vector of all of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

import partialpool as pp
from partialpool.design.design import build_design
from partialpool.design.latent import latent_layout
from partialpool.design.predictor import factor_columns, factor_predictors


def data() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "y": rng.normal(size=48),
            "x": rng.normal(size=48),
            "a": np.tile(np.arange(6), 8),
            "b": np.repeat(np.arange(12), 4),
            "c": np.tile(np.arange(3), 16),
        }
    )


def test_the_leaf_comes_first() -> None:
    layout = latent_layout(build_design("y ~ x + (x|a) + (1|b) + (1|c)", data()))
    assert layout.leaf == 0  # 6 groups of 2 effects, before 12 of 1
    layout = latent_layout(build_design("y ~ x + (1|b) + (x|a)", data()))
    assert layout.leaf == 0  # as many effects: the first
    layout = latent_layout(build_design("y ~ (1|c) + (1|b) + (0 + x|b) + (1|a)", data()))
    assert (layout.leaf, layout.order, layout.widths, layout.sizes) == (1, (1, 0, 2), (1, 2, 1), (3, 12, 6))
    assert layout.effect_at == (24, 0, 27) and layout.lam_at == (4, 0, 5)
    assert (layout.n_effects, layout.n_root, layout.n_lam) == (33, 9, 6)
    assert [layout.root_at(factor) for factor in (0, 2)] == [0, 3]


def test_positions_cover_the_vector_group_by_group() -> None:
    layout = latent_layout(build_design("y ~ (1|c) + (x|b) + (1|a)", data()))
    positions = [layout.effects_of(factor) for factor in range(3)]
    assert positions[1][:2].tolist() == [[0, 1], [2, 3]]
    assert sorted(np.concatenate([p.ravel() for p in positions])) == list(range(layout.n_effects))
    assert positions[0].dtype == np.int64


def test_no_groups() -> None:
    layout = latent_layout(build_design("y ~ x", data()))
    assert (layout.leaf, layout.order, layout.n_effects, layout.n_root) == (None, (), 0, 0)


def test_a_factor_of_two_predictors_is_one() -> None:
    terms = pp.formula("y ~ x + (x|b)", sigma="~ x + (1|b) + (1|a)")
    design = build_design(terms, data())
    layout = latent_layout(design)
    assert [factor.name for factor in design.factors] == ["b", "a"]
    assert layout.widths == (3, 1) and layout.n_effects == 42
    assert [predictors.tolist() for predictors in factor_predictors(design)] == [[0, 0, 1], [1]]
    assert [columns.tolist() for columns in factor_columns(design)] == [[0, 1, 0], [0]]
