"""The sparse Cholesky factor against dense numpy, over patterns of every kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partialpool.algebra import sparse
from partialpool.algebra.sparse import SymbolicCholesky, analyse, predicted_costs


def random_matrix(rng: np.random.Generator, rows: np.ndarray, cols: np.ndarray, n: int) -> np.ndarray:
    """A dense positive definite matrix with the given pattern, of varied scale."""
    dense = np.zeros((n, n))
    dense[rows, cols] = rng.normal(size=len(rows))
    dense = np.tril(dense, -1) + np.triu(dense, 1).T
    dense += dense.T
    np.fill_diagonal(dense, np.abs(dense).sum(axis=1) + rng.uniform(0.1, 2.0, n))
    scale = np.exp(rng.normal(size=n))
    return dense * np.outer(scale, scale)


def values_of(symbolic: SymbolicCholesky, dense: np.ndarray) -> np.ndarray:
    i, j = np.nonzero(np.tril(dense))
    return symbolic.assemble(symbolic.positions(i, j), dense[i, j])


def check_everything(rng: np.random.Generator, rows: np.ndarray, cols: np.ndarray, n: int) -> SymbolicCholesky:
    symbolic = analyse(rows, cols, n)
    for _ in range(2):  # the second time with other values
        dense = random_matrix(rng, rows, cols, n)
        permuted = dense[np.ix_(symbolic.perm, symbolic.perm)]
        values = values_of(symbolic, dense)
        np.testing.assert_array_equal(symbolic.to_dense(values), np.tril(permuted))

        assert symbolic.factor(values) == 0
        factor = np.linalg.cholesky(permuted)
        np.testing.assert_allclose(symbolic.to_dense(values), factor, rtol=1e-9, atol=1e-11 * np.abs(factor).max())
        np.testing.assert_allclose(symbolic.log_determinant(values), np.linalg.slogdet(dense)[1], rtol=1e-10, atol=1e-9)

        inverse = np.linalg.inv(dense)
        for sides in (1, 7):
            b = rng.normal(size=(n, sides))
            np.testing.assert_allclose(
                symbolic.solve(values, b), inverse @ b, rtol=1e-7, atol=1e-10 * np.abs(inverse @ b).max()
            )
            x = symbolic.permute(b)
            np.testing.assert_array_equal(symbolic.unpermute(x), b)
            symbolic.solve_lower(values, x)
            np.testing.assert_allclose(factor @ x, b[symbolic.perm], rtol=1e-8, atol=1e-9)
            x = symbolic.permute(b)
            symbolic.solve_upper(values, x)
            np.testing.assert_allclose(factor.T @ x, b[symbolic.perm], rtol=1e-8, atol=1e-9)

        selected = symbolic.selected_inverse(values)
        i, j = np.nonzero(np.abs(symbolic.to_dense(np.ones(symbolic.size))))
        wanted = inverse[symbolic.perm[i], symbolic.perm[j]]
        np.testing.assert_allclose(
            selected[symbolic.positions(symbolic.perm[i], symbolic.perm[j])],
            wanted,
            rtol=1e-7,
            atol=1e-10 * np.abs(inverse).max(),
        )
    true_fill = fill_by_elimination(permuted != 0.0)
    np.testing.assert_array_equal(symbolic.counts, true_fill.sum(axis=0))
    assert symbolic.fill == true_fill.sum() <= symbolic.size
    np.testing.assert_array_equal(symbolic.parent, parents(true_fill))
    assert np.all(symbolic.to_dense(np.ones(symbolic.size)) >= true_fill)
    return symbolic


def fill_by_elimination(pattern: np.ndarray) -> np.ndarray:
    """The pattern of L by eliminating one column after the other."""
    filled = np.tril(pattern)
    for k in range(len(filled)):
        below = k + 1 + np.flatnonzero(filled[k + 1 :, k])
        filled[np.ix_(below, below)] |= True
        filled = np.tril(filled)
    return filled


def parents(filled: np.ndarray) -> np.ndarray:
    below = [np.flatnonzero(filled[k + 1 :, k]) for k in range(len(filled))]
    return np.array([k + 1 + rows[0] if rows.size else -1 for k, rows in enumerate(below)])


def grid(side: int) -> tuple[np.ndarray, np.ndarray, int]:
    k = np.arange(side * side).reshape(side, side)
    rows = np.concatenate([k[1:].ravel(), k[:, 1:].ravel()])
    return rows, np.concatenate([k[:-1].ravel(), k[:, :-1].ravel()]), side * side


def banded_with_links(rng: np.random.Generator, n: int, band: int, links: int) -> tuple[np.ndarray, np.ndarray, int]:
    rows = [np.arange(b, n) for b in range(1, band + 1)] + [rng.integers(0, n, links)]
    cols = [np.arange(n - b) for b in range(1, band + 1)] + [rng.integers(0, n, links)]
    return np.concatenate(rows), np.concatenate(cols), n


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_patterns(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    index = st.integers(0, n - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), max_size=4 * n))
    i, j = np.array([p[0] for p in pairs], dtype=int), np.array([p[1] for p in pairs], dtype=int)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    check_everything(rng, np.maximum(i, j), np.minimum(i, j), n)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_diagonal(n: int) -> None:
    symbolic = check_everything(np.random.default_rng(1), np.arange(n), np.arange(n), n)
    assert symbolic.fill == n
    assert predicted_costs([], [], n) == (n, n**3 / 3)


def test_wide_panels_and_products_by_blas() -> None:
    """Dense parts wider than a panel, so that supernodes are cut and updates go to BLAS."""
    rng = np.random.default_rng(2)
    rows, cols = np.tril_indices(200)
    symbolic = check_everything(rng, rows, cols, 200)
    assert symbolic.begin.size > 1
    assert symbolic.flops == pytest.approx(np.sum(np.arange(1, 201.0) ** 2))
    check_everything(rng, *banded_with_links(rng, 400, 2, 500))


@pytest.mark.parametrize("side", [7, 20])
def test_grid(side: int) -> None:
    symbolic = check_everything(np.random.default_rng(3), *grid(side))
    if side == 20:
        assert symbolic.fill < 0.5 * 400 * 20  # the band of the natural order


def test_dense_rows_come_last() -> None:
    """Coefficients that meet every group fill the factor unless they are eliminated at the end."""
    n, coefficients = 300, 3
    rows = np.repeat(np.arange(coefficients), n)
    cols = np.tile(np.arange(n), coefficients)
    symbolic = check_everything(np.random.default_rng(4), np.maximum(rows, cols), np.minimum(rows, cols), n)
    assert set(symbolic.perm[-coefficients - 1 :]) >= set(range(coefficients))


def test_many_sides_agree_with_one() -> None:
    rng = np.random.default_rng(5)
    rows, cols, n = banded_with_links(rng, 2000, 3, 300)
    symbolic = analyse(rows, cols, n)
    positions = symbolic.positions(np.r_[rows, np.arange(n)], np.r_[cols, np.arange(n)])
    values = symbolic.assemble(positions, np.r_[np.full(rows.size, -1.0), np.full(n, 20.0)])
    assert symbolic.factor(values) == 0
    b = rng.normal(size=(n, 40))
    together = symbolic.solve(values, b)
    one_by_one = np.column_stack([symbolic.solve(values, b[:, k]) for k in range(40)])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-10, atol=1e-13)


def test_refactorising_gives_the_same_bits() -> None:
    rng = np.random.default_rng(6)
    rows, cols, n = grid(15)
    symbolic = analyse(rows, cols, n)
    values = values_of(symbolic, random_matrix(rng, rows, cols, n))
    again = values.copy()
    symbolic.factor(values)
    symbolic.factor(again)
    np.testing.assert_array_equal(values, again)
    np.testing.assert_array_equal(symbolic.selected_inverse(values), symbolic.selected_inverse(again))


@pytest.mark.parametrize("bad", [-1.0, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 40, 99])
def test_status_names_the_column_that_fails(bad: float, column: int) -> None:
    symbolic = analyse(np.arange(100), np.arange(100), 100)
    diagonal = np.ones(100)
    diagonal[column] = bad
    values = symbolic.assemble(symbolic.positions(np.arange(100), np.arange(100)), diagonal)
    status = symbolic.factor(values)
    assert status > 0
    assert symbolic.perm[status - 1] == column


def test_indefinite_inside_a_panel() -> None:
    rows, cols = np.tril_indices(90)
    symbolic = analyse(rows, cols, 90)
    dense = np.eye(90)
    dense[80, 10] = dense[10, 80] = 1.5
    status = symbolic.factor(values_of(symbolic, dense))
    assert symbolic.perm[status - 1] in (10, 80)


def test_positions_take_either_triangle_and_keep_shapes() -> None:
    rows, cols, n = grid(5)
    symbolic = analyse(np.r_[rows, rows], np.r_[cols, cols], n)
    np.testing.assert_array_equal(symbolic.positions(rows, cols), symbolic.positions(cols, rows))
    assert symbolic.positions(3, 3).shape == ()
    assert symbolic.positions(rows[:, None], rows[:, None]).shape == (rows.size, 1)
    assert np.unique(symbolic.positions(rows, cols)).size == rows.size


def test_predicted_costs_are_those_of_the_analysis() -> None:
    rows, cols, n = grid(12)
    cheap, dense = predicted_costs(rows, cols, n)
    assert cheap == analyse(rows, cols, n).flops
    assert dense == pytest.approx(144**3 / 3)
    assert cheap < 0.2 * dense


def test_mistakes_are_refused() -> None:
    symbolic = analyse([], [], 3)
    with pytest.raises(ValueError, match="outside the pattern"):
        symbolic.positions(0, 1)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        symbolic.positions(0, 3)
    with pytest.raises(ValueError, match="shape"):
        symbolic.factor(np.ones(4))
    with pytest.raises(ValueError, match="right-hand sides"):
        symbolic.solve_lower(np.ones(3), np.ones((4, 1)))
    with pytest.raises(ValueError, match="equally long"):
        analyse([0], [], 3)
    with pytest.raises(ValueError, match="n-1"):
        analyse([3], [0], 3)
    with pytest.raises(ValueError, match="n-1"):
        analyse([], [], 0)


def test_the_order_is_the_best_of_the_candidates() -> None:
    """A matrix whose given order has no fill: none of the candidates may beat it, nor be chosen if worse."""
    n = 60
    rows = np.r_[np.arange(1, n), np.full(n - 2, n - 1)]
    cols = np.r_[np.arange(n - 1), np.arange(n - 2)]
    symbolic = analyse(rows, cols, n)
    assert symbolic.fill == 2 * n - 1 + n - 2
    pattern = sparse._pattern(rows, cols, n)
    assert sparse._minimum_degree(pattern).size == n
