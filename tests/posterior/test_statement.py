"""Probabilities of statements, read without eval."""

from __future__ import annotations

import numpy as np
import pytest

from partialpool.errors import ModelError
from partialpool.posterior.statement import probability

DRAWS = {
    "Days": np.array([1.0, 2.0, 3.0, 4.0]),
    "Days2": np.array([4.0, 4.0, 4.0, 4.0]),
    "sd(Days|Subject)": np.array([2.0, 2.0, 2.0, 9.0]),
    "cor(Intercept,Days|Subject)": np.array([-0.5, 0.0, 0.5, 0.9]),
    "service[1]": np.array([1.0, -1.0, 1.0, -1.0]),
    "x:y": np.array([0.0, 1.0, 2.0, 3.0]),
}


def ask(statement: str) -> float:
    return probability(statement, DRAWS.__getitem__, list(DRAWS), ["Subject"])


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("Days > 2", 0.5),
        ("Days >= 2", 0.75),
        ("Days2 > Days", 0.75),
        ("`Days`>`Days2`/2", 0.5),
        ("sd(Days|Subject) > 3", 0.25),
        ("sd(Days|Subject)-Days>0", 0.5),
        ("0 < cor(Intercept,Days|Subject) < 0.8", 0.25),
        ("service[1] > 0", 0.5),
        ("x:y * 2 + 1 <= Days", 0.25),
        ("-(Days - 2) * 3 == 0", 0.25),
        ("abs(Days - 2.5) < 1", 0.5),
        ("exp(log(Days)) > 1e0 + .5", 0.75),
        ("2 * Days - 3 / 1 != 1", 0.75),
    ],
)
def test_statements(statement, expected):
    assert ask(statement) == expected


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("Dayz > 1", "Did you mean 'Days"),
        ("Days", "no comparison"),
        ("Days > ", "ends where"),
        ("Days > (1 + 2", "not closed"),
        ("Days 3 > 1", "where an operator"),
        ("Days > 1 ; import os", "';'"),
        ("__import__('os') > 1", "no parameter"),
        ("`Days > 1", "backtick"),
        ("* 2 > 1", r"'\*' stands"),
        ("sd(Day|Subject) > 1", r"Did you mean 'sd\(Days\|Subject\)'"),
    ],
)
def test_mistakes(statement, message):
    with pytest.raises(ModelError, match=message):
        ask(statement)


def test_of_a_fit(slopes):
    share = np.mean(slopes.draws("Days") > 10)
    assert slopes.probability("Days > 10") == share
    assert slopes.probability("Subject[308,Days] > 0") > 0.9
