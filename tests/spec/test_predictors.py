"""Formulas of several parameters at once."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import partialpool as pp
from partialpool.errors import FormulaError
from partialpool.spec.formula import parse_formula
from partialpool.spec.predictors import formula, read_terms


def test_parts() -> None:
    terms = pp.formula("y ~ x + (1|g)", sigma="~ 0 + z + (z||g) +  (1 | h)")
    assert str(terms) == terms.formula == "y ~ x + (1|g), sigma ~ 0 + z + (z||g) + (1 | h)"
    assert terms.main == "y ~ x + (1|g)"
    assert terms.prefixes == ("", "sigma.")
    part = terms.predictors["sigma"]
    assert (part.formula, part.common) == ("~ 0 + z + (z||g) + (1 | h)", "0 + z")
    assert [(term.factor, term.effects, term.correlated) for term in terms.all_groups] == [
        ("g", "1", True),
        ("g", "1 + z", False),
        ("h", "1", True),
    ]


def test_without_parts_it_is_the_plain_formula() -> None:
    terms = formula("y ~ poly(x, 2) + (1|g)")
    assert terms == parse_formula(terms.formula)
    assert terms.main == terms.formula and terms.prefixes == ("",)
    assert read_terms(terms) is terms and read_terms("y ~ x") == parse_formula("y ~ x")


def test_the_main_formula_ends_at_the_comma_outside_all_brackets() -> None:
    terms = formula("y == 'a, b' ~ poly(x, 2) + (1|g)", phi="~ poly(x, 3)")
    assert terms.main == "y == 'a, b' ~ poly(x, 2) + (1|g)"
    assert formula(terms.main, phi=terms.predictors["phi"].formula) == terms
    assert pickle.loads(pickle.dumps(terms)) == terms
    assert isinstance(hash(terms), int)


def test_a_factor_named_in_two_orders_is_one() -> None:
    terms = formula("y ~ (1|a:b)", sigma="~ (1|b:a)")
    assert [term.variables for term in terms.all_groups] == [("a", "b"), ("a", "b")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("y ~ z", "has a left side, 'y'; .* write sigma='~ z'"),
        ("y | trials(n) ~ z", r"has a left side, 'y \| trials\(n\)'; the response, with trials"),
        ("z + (1|g)", r"has no '~'; write sigma='~ z \+ \(1\|g\)'"),
        ("~ z + offset(e)", r"The formula of 'sigma' has an offset, offset\(e\)"),
        ("~", "nothing after the '~'"),
        ("~ z + (1|g", "never closed"),
        ("~ lgo(z)", "sigma ~ lgo.*Did you mean 'log'"),
        (3, "The formula of 'sigma' is text; it is a int; write sigma="),
    ],
)
def test_what_a_part_may_not_have(text: Any, says: str) -> None:
    with pytest.raises(FormulaError, match=says):
        formula("y ~ x", sigma=text)


def test_the_response_may_be_a_comparison() -> None:
    assert parse_formula('y == "yes" ~ x').response.expression == 'y == "yes"'
    assert parse_formula("y >= 4 ~ x + (1|g)").response.expression == "y >= 4"
    assert parse_formula("y != 'a ~ b' ~ x").response.expression == "y != 'a ~ b'"
