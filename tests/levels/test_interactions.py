from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partialpool as pp
from partialpool.errors import DataError, ModelError
from partialpool.levels.mixed_derivatives import ROUNDS, Counted, second_derivatives
from partialpool.present.interactions import short


def test_a_sum_of_masses_is_additive() -> None:
    found = pp.interactions(lambda m: m.sum(), at=[5.97, 0.073, 1989.0], names=["earth", "moon", "sun"])
    assert np.abs(np.asarray(found)).max() <= 1e-6
    assert found.verdict == "additive" and found.pairs == []


def test_a_product_has_derivative_one() -> None:
    found = pp.interactions(lambda x: x[0] * x[1], at=[3.0, 4.0])
    assert np.asarray(found)[0, 1] == pytest.approx(1.0, abs=1e-6)
    assert found.verdict == "interacts" and found.pairs == [("x1", "x2")]


def twenty(x: np.ndarray) -> float:
    alone = np.sin(x).sum() + np.exp(0.3 * x[2]) + x[5] ** 3 + 1 / (1 + np.exp(-x[8]))
    return float(alone + x[0] * x[7] + np.tanh(x[3] * x[4]) + np.exp(-(x[10] ** 2)) * x[19])


def test_the_three_interacting_pairs_of_twenty_coordinates_are_found() -> None:
    draw = np.random.default_rng(4)
    for _ in range(5):
        found = pp.interactions(twenty, at=draw.normal(size=20))
        assert set(found.pairs) == {("x1", "x8"), ("x4", "x5"), ("x11", "x20")}
        assert (found.table["verdict"] == "additive").sum() == 187
        assert found.calls <= 6 * 20**2 + 300
    over = pp.interactions(twenty, at=draw.normal(size=(10, 20)))
    assert set(over.pairs) == {("x1", "x8"), ("x4", "x5"), ("x11", "x20")}


EXACT = [
    (lambda x: math.exp(x[0] * x[1]), [1.0, 1.0], 2 * math.e),
    (lambda x: math.exp(x[0] + x[1]), [0.0, 0.0], 1.0),
    (lambda x: 1e6 + 1e6 * x[0] * x[1], [3.0, 7.0], 1e6),
    (lambda x: x[0] * x[1], [0.0, 0.0], 1.0),
    (lambda x: x[0] * x[1], [1e-9, 1e9], 1.0),
    (lambda x: math.exp(x[1]) + 0.02 * x[0] * x[1] + x[0], [1e-11, 1.0], 0.02),
    (lambda x: math.sin(x[0] / 1e-8) * math.sin(x[1] / 1e-8), [0.0, 0.0], 1e16),
    (lambda x: 1e6 + x[0] * x[1], [1e-8, 1e-8], 1.0),
    (lambda x: math.log(x[0]) * x[1], [1e-6, 1.0], 1e6),
    (lambda x: math.sin(x[0]) * math.sin(x[1]), [1e5, 1e5], math.cos(1e5) ** 2),
    (lambda x: x[0] ** 3 * x[1] ** 2, [2.0, -3.0], 3 * 4 * 2 * -3),
    (lambda x: abs(x[0] - x[1]) + x[0] * x[1], [1.0, 1.03], 1.0),
]


@pytest.mark.parametrize(("function", "at", "expected"), EXACT)
def test_values_of_every_size(function: Any, at: list[float], expected: float) -> None:
    found = pp.interactions(function, at=at)
    assert found.matrix[0, 1] == pytest.approx(expected, rel=1e-5)
    assert abs(found.matrix[0, 1] - expected) <= 3 * found.error[0, 1] + 1e-12 * abs(expected)
    assert found.verdict == "interacts"


ADDITIVE = [
    (lambda x: math.exp(x[0]) + math.log(x[1]), [1.0, 1e-3]),
    (lambda x: 1e6 * x[0] ** 2 + 1e6 * math.sin(x[1]), [2.0, 3.0]),
    (lambda x: 1e-9 * x[0] + 1e-9 * x[1] ** 2, [1e-5, 1.0]),
    (lambda x: 5.0, [1.0, 2.0]),
    (lambda x: abs(x[0]) + abs(x[1]), [0.0, 0.0]),
    (lambda x: math.floor(x[0]) + x[1], [1.5, 1.0]),
    (lambda x: x[0] + x[1], [2e30, 7e22]),
]


@pytest.mark.parametrize(("function", "at"), ADDITIVE)
def test_sums_are_additive(function: Any, at: list[float]) -> None:
    assert pp.interactions(function, at=at).verdict == "additive"


@pytest.mark.parametrize(
    "function",
    [
        max,
        lambda x: abs(x[0] - x[1]),
        lambda x: math.floor(x[0]) * x[1],
        lambda x: abs((x[0] - 1) * (x[1] - 1)),
        lambda x: 1e16 + x[0] * x[1],
    ],
)
def test_where_there_is_no_derivative_one_cannot_tell(function: Any) -> None:
    found = pp.interactions(function, at=[1.0, 1.0])
    assert found.verdict == "cannot tell" and "cannot tell" in repr(found)


def test_an_edge_close_by_is_an_interaction() -> None:
    points = np.random.default_rng(2).normal(size=(60, 3))
    found = pp.interactions(lambda x: abs(x[0] - x[1]) + x[2], at=points)
    assert found.pairs == [("x1", "x2")] and "edge" in repr(found)
    hidden = pp.interactions(lambda x: (x[0] * x[1]) ** 2, at=[0.0, 0.0])
    assert hidden.verdict == "interacts" and abs(hidden.matrix[0, 1]) < 1e-6


def test_means_over_data_and_signs_that_cancel() -> None:
    points = np.random.default_rng(1).normal(size=(200, 2))
    points = np.vstack([points, -points])
    found = pp.interactions(lambda x: x[0] * x[1] ** 2, at=points, names=["a", "b"])
    assert found.matrix[0, 1] == pytest.approx(0.0, abs=1e-9)
    assert found.mean_absolute[0, 1] == pytest.approx(np.mean(np.abs(2 * points[:, 1])), rel=1e-6)
    assert found.largest[0, 1] == pytest.approx(np.abs(2 * points[:, 1]).max(), rel=1e-6)
    assert found.verdict == "interacts" and found.points_interacting[0, 1] == 1.0
    assert np.diagonal(found.matrix)[1] == pytest.approx(np.mean(2 * points[:, 0]), abs=1e-9)


def test_a_saturated_part_of_the_data_does_not_blur_the_verdict() -> None:
    points = np.array([[0.0, 1.0], [40.0, 45.0], [1.0, -1.0], [-60.0, 3.0]])
    assert pp.interactions(lambda x: np.tanh(x[0]) + np.tanh(x[1]), at=points).verdict == "additive"


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.floats(-2, 2).filter(lambda c: c == 0 or abs(c) > 1e-2),
    st.floats(1e-3, 1e3),
    st.floats(-1e3, 1e3),
)
def test_the_verdict_does_not_depend_on_units(x: list[float], c: float, unit: float, constant: float) -> None:
    def f(v: np.ndarray) -> float:
        return float(np.sin(v[0]) + v[1] ** 2 + np.exp(0.3 * v[2]) + c * v[0] * v[2])

    plain = pp.interactions(f, at=x)
    scaled = pp.interactions(lambda v: unit * f(v / unit) + constant, at=np.array(x) * unit)
    assert plain.matrix[0, 2] == pytest.approx(c, abs=1e-5 + 3 * plain.error[0, 2])
    assert scaled.matrix[0, 2] == pytest.approx(c / unit, abs=1e-5 / unit + 3 * scaled.error[0, 2])
    expected = [("x1", "x3")] if c else []
    assert plain.pairs == expected
    assert scaled.pairs in (expected, []) and set(scaled.pairs) <= set(expected)


def test_a_function_may_change_its_argument_and_return_an_array_of_one() -> None:
    def f(x: np.ndarray) -> np.ndarray:
        x *= 2
        return np.array([x[0] * x[1]])

    at = np.array([1, 2])
    assert np.asarray(pp.interactions(f, at=at))[0, 1] == pytest.approx(4.0)
    assert at.tolist() == [1, 2]


def test_points_from_a_dict_and_a_data_frame() -> None:
    def f(x: np.ndarray) -> float:
        return float(x[0] * x[1] ** 2)

    one = pp.interactions(f, at={"a": 1.0, "b": 2.0})
    assert one.pairs == [("a", "b")] and one.matrix[0, 1] == pytest.approx(4.0)
    frame = pd.DataFrame({"b": [2.0, 3.0], "other": ["u", "v"], "a": [1.0, 1.5]})
    assert pp.interactions(f, at=frame, names=["a", "b"]).matrix[0, 1] == pytest.approx(5.0)


def test_the_array_protocol() -> None:
    found = pp.interactions(lambda x: x[0] * x[1], at=[1.0, 1.0])
    assert np.asarray(found).shape == (2, 2)
    assert np.asarray(found, dtype=np.float32).dtype == np.float32
    mine = np.array(found)
    mine[:] = 9
    assert found.matrix[0, 1] == pytest.approx(1.0)


def test_noise_is_told() -> None:
    draw = np.random.default_rng(0)
    found = pp.interactions(lambda x: x[0] + x[1] + 1e-3 * draw.normal(), at=[1.0, 1.0])
    assert not found.repeatable and "random seed" in repr(found)


MISTAKES = [
    (lambda x: np.nan, [1, 2], {}, DataError, "is nan at the point .x1 = 1, x2 = 2."),
    (lambda x: np.log(x[0] - 1), [1, 2], {}, DataError, "is -inf at the point"),
    (lambda x: np.sqrt(x[0]) + x[1], [0, 2], {}, DataError, "no values around.*as soon as x1 moves"),
    (lambda x: math.sqrt(x[0]) + x[1], [0, 2], {}, DataError, "raises ValueError"),
    (lambda x: 1 / 0, [1, 2], {}, ModelError, "raised ZeroDivisionError"),
    (lambda a, b: a * b, [1, 2], {}, ModelError, r"lambda x: f\(\*x\)"),
    (lambda x: [1, 2][x[0]], [1, 2], {}, ModelError, "whole numbers"),
    (lambda x: x, [1, 2], {}, ModelError, r"array of shape \(2,\)"),
    (lambda x: None, [1, 2], {}, ModelError, "return statement"),
    (lambda x: "a", [1, 2], {}, ModelError, "one real number"),
    (lambda x: 1j, [1, 2], {}, ModelError, "one real number"),
    (5, [1, 2], {}, ModelError, "takes a function"),
    (sum, [1], {}, ModelError, "takes two coordinates"),
    (sum, [1, np.nan], {}, DataError, "'x2' is nan"),
    (sum, [1, 2], {"names": ["a"]}, ModelError, "1 names for 2"),
    (sum, [1, 2], {"names": ["a", "a"]}, ModelError, "Two coordinates are called 'a'"),
    (sum, [1, 2], {"names": "ab"}, ModelError, "one text"),
    (sum, "ab", {}, DataError, "array of numbers"),
    (sum, [[[1]]], {}, DataError, "3 dimensions"),
    (sum, np.empty((0, 2)), {}, DataError, "no points"),
    (sum, {"a": 1.0, "b": "z"}, {}, DataError, "'b' is not numeric"),
    (sum, [1, 2], {"tolerance": 0}, ModelError, "tolerance"),
]


@pytest.mark.parametrize(("function", "at", "options", "error", "text"), MISTAKES)
def test_mistakes_are_told(function: Any, at: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        pp.interactions(function, at=at, **options)


def test_no_warnings_reach_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pp.interactions(lambda x: np.log(x[0]) / x[1], at=[1e-8, 1e-8])
        repr(pp.interactions(lambda x: np.float64(0.0), at=[0.0, 0.0]))


def test_values_that_are_missing_near_the_point_shrink_the_step() -> None:
    found = pp.interactions(lambda x: x[0] * x[1] if abs(x[0] - 1) < 1e-3 else np.nan, at=[1.0, 2.0])
    assert found.matrix[0, 1] == pytest.approx(1.0, abs=1e-6)


def test_the_number_of_calls_is_bounded_where_nothing_settles() -> None:
    function = Counted(np.max, ("a", "b", "c"))
    second_derivatives(function, np.ones(3), np.ones(3), enlarge=False)
    assert function.calls <= ROUNDS * 6 * 3**2 + 10


def test_the_map() -> None:
    found = pp.interactions(lambda x: x[0] * x[1] + max(x[2], x[1]), at=[1.0, 2.0, 2.0], names=["a", "b", "c"])
    figure = found.plot()
    figure.savefig(io.BytesIO(), format="png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "1" in texts and "?" in texts
    assert short(-1.5e-9) == "-1.5e-9"


def test_a_row_of_a_data_frame_is_a_point_with_names() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    found = pp.interactions(lambda x: x[0] * x[1], at=frame.iloc[0])
    assert found.names == ("a", "b") and "a and b interact." in found.sentences[0]
    assert pp.interactions(lambda x: x[0] * x[1], at=pd.Series([1.0, 2.0])).names == ("x1", "x2")
    with pytest.raises(ModelError, match="not a list of names"):
        pp.interactions(lambda x: x[0] * x[1], at=[1.0, 2.0], names=3)
