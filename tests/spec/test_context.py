"""within(x|g) and between(x|g), as a formula names them."""

import re

import pytest

from partialpool.errors import FormulaError
from partialpool.spec.context import ContextColumn, context_columns, split_context
from partialpool.spec.formula import parse_formula, variables_of


def test_calls_become_columns_of_their_own():
    text, columns = split_context("1 + within( ses | school ) * between(ses|school)")
    assert text == "1 + `within(ses|school)` * `between(ses|school)`"
    assert columns == (
        ContextColumn("within(ses|school)", "within", "ses", ("school",)),
        ContextColumn("between(ses|school)", "between", "ses", ("school",)),
    )


@pytest.mark.parametrize(
    ("text", "variables", "outer", "name"),
    [
        ("within(x|a/b)", ("a", "b"), (), "within(x|a/b)"),
        ("between(x|a/b)", ("a", "b"), ("a",), "between(x|a/b)"),
        ("between(x|a:b)", ("a", "b"), (), "between(x|a:b)"),
        ("between(x|a / b / c)", ("a", "b", "c"), ("a", "b"), "between(x|a/b/c)"),
        ("between(log(x + 1)|`my group`)", ("my group",), (), "between(log(x + 1)|my group)"),
        ('between(sex == "F|M"|g)', ("g",), (), 'between(sex == "F|M"|g)'),
    ],
)
def test_nested_groups(text, variables, outer, name):
    (column,) = context_columns([text])
    assert (column.variables, column.outer, column.name) == (variables, outer, name)


def test_each_column_once():
    assert len(context_columns(["within(x|g) + z", "1 + within(x | g)"])) == 1


def test_names_that_only_look_like_calls():
    assert split_context("within + between:x + 'within(x|g)' + `between(x|g)`")[1] == ()


def test_the_formula_around_them():
    terms = parse_formula("y ~ within(x|g) * z + between(x|g) + (1 + within(x|g) | g/h)")
    assert terms.common == "1 + within(x|g) * z + between(x|g)"
    assert [group.effects for group in terms.groups] == ["1 + within(x|g)"] * 2
    assert variables_of(terms.common) == ("x", "g", "z")


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ within(x)", "as in within(x|g)"),
        ("y ~ between(|g)", "as in between(x|g)"),
        ("y ~ between(x|)", "as in between(x|g)"),
        ("y ~ within(x|g|h)", "a bar between them"),
        ("y ~ within(x|g + h)", "one call each"),
        ("y ~ within(x|g/g)", "names a column twice"),
        ("y ~ within(within(x|g)|g)", "inside another"),
        ("y ~ within(center(x)|g)", "function of the row"),
        ("within(y|g) ~ x", "function of the row"),
        ("y ~ wihtin(x|g)", "Did you mean 'within'"),
    ],
)
def test_mistakes(formula, says):
    with pytest.raises(FormulaError, match=re.escape(says)):
        parse_formula(formula)
