"""Formulas: what is read, and what is refused with which mend."""

from __future__ import annotations

import pytest

from partialpool.errors import DataError, FormulaError, PartialPoolError
from partialpool.spec.formula import GroupTerm, Response, parse_formula, quote_name, variables_of


def groups(formula: str) -> list[tuple[str, str, bool]]:
    return [(term.effects, term.factor, term.correlated) for term in parse_formula(formula).groups]


@pytest.mark.parametrize(
    ("formula", "common"),
    [
        ("y ~ x", "1 + x"),
        ("y ~ 1 + (1|g)", "1"),
        ("y ~ (1|g)", "1"),
        ("y ~ 0 + x", "0 + x"),
        ("y ~ x - 1 + (1|g)", "0 + x"),
        ("y ~ -1 + x", "0 + x"),
        ("y ~ x + 0", "0 + x"),
        ("y ~ a*b - a:b", "1 + a*b - a:b"),
        ("y ~ (x + (1|g))", "1 + x"),
        ("y ~ I(t^2) + (a+b)^2", "1 + I(t**2) + (a+b)**2"),
        ("y ~ f == 'a ~ b | c'", "1 + f == 'a ~ b | c'"),
        ("y ~ x +\n  z", "1 + x + z"),
        ("y ~ `a + b` + (1|`c d`)", "1 + `a + b`"),
    ],
)
def test_common_part(formula: str, common: str) -> None:
    assert parse_formula(formula).common == common


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("y ~ (1|g)", [("1", "g", True)]),
        ("y ~ x + (x|g)", [("1 + x", "g", True)]),
        ("y ~ x + (1 + x | g)", [("1 + x", "g", True)]),
        ("y ~ x + (x||g)", [("1 + x", "g", False)]),
        ("y ~ x + (0+x|g)", [("0 + x", "g", True)]),
        ("y ~ x + (x - 1|g)", [("0 + x", "g", True)]),
        ("y ~ (1|a/b)", [("1", "a", True), ("1", "a:b", True)]),
        ("y ~ (1|a/b/c)", [("1", "a", True), ("1", "a:b", True), ("1", "a:b:c", True)]),
        ("y ~ (1|a:b) + (1|c)", [("1", "a:b", True), ("1", "c", True)]),
        ("y ~ (1|a:b) + (0+x|b:a)", [("1", "a:b", True), ("0 + x", "a:b", True)]),
        ("y ~ (1 + C(f)|g)", [("1 + C(f)", "g", True)]),
        ("y ~ (1|`my group`)", [("1", "my group", True)]),
        ("y ~ x + ((1|g))", [("1", "g", True)]),
    ],
)
def test_group_terms(formula: str, expected: list[tuple[str, str, bool]]) -> None:
    assert groups(formula) == expected


def test_group_term_keeps_the_users_text() -> None:
    term = parse_formula("Reaction ~ Days + (Days|Subject)").groups[0]
    assert term == GroupTerm("(Days | Subject)", "1 + Days", ("Subject",), True)


@pytest.mark.parametrize(
    ("left", "response"),
    [
        ("y", Response("y")),
        ("log(y)", Response("log(y)")),
        ("y == 'yes'", Response("y == 'yes'")),
        ("y | se(s)", Response("y", se="s")),
        ("y | se(s, sigma=True)", Response("y", se="s", se_sigma=True)),
        ("y | se(s, sigma = FALSE)", Response("y", se="s")),
        ("y | weights(w)", Response("y", weights="w")),
        ("y | precision(1/v)", Response("y", precision="1/v")),
        ("y | trials(n)", Response("y", trials="n")),
        ("y | se(s) + weights(w)", Response("y", se="s", weights="w")),
    ],
)
def test_response(left: str, response: Response) -> None:
    assert parse_formula(f"{left} ~ 1 + (1|g)").response == response


def test_offsets_are_not_predictors() -> None:
    terms = parse_formula("y ~ x + offset(log(e)) + offset(z) + (1|g)")
    assert terms.offsets == ("log(e)", "z")
    assert terms.common == "1 + x"


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ x + (1|g", "never closed; add ')'"),
        ("y ~ (1|g))", "character 10 closes nothing"),
        ("y ~ x[1)", "is closed by"),
        ("y ~ 'x", "quote"),
        ("y", "has no '~'"),
        ("", "has no '~'"),
        ("~ x", "names no response"),
        ("y ~", "nothing after the '~'"),
        ("y ~ x ~ z", "more than one '~'"),
        ("y ~ x +", "nothing follows the last '+'"),
        ("y ~ x + + z", "two operators"),
        ("y ~ x | g", "written in them, as in"),
        ("y ~ x + (|g)", "nothing before the bar; write (1 | g)"),
        ("y ~ x + (x|)", "names no grouping factor"),
        ("y ~ (1|g|h)", "too many bars"),
        ("y ~ (x|||g)", "too many bars"),
        ("y ~ (0|g)", "has no effects"),
        ("y ~ x*(1|g)", "mixes a group term"),
        ("y ~ x - (1|g)", "cannot be subtracted"),
        ("y ~ (1|g) + (1|g)", "there twice"),
        ("y ~ (1|a/b) + (1|a)", "there twice"),
        ("y ~ (x|g) + (1 + x|g)", "there twice"),
        ("y ~ (1|a:a)", "names a column twice"),
        ("y ~ (1|a+b)", "(1 | a) + (1 | b)"),
        ("y ~ (1|factor(g))", "write the column alone, g"),
        ("y ~ (x + offset(z)|g)", "offset has no group effects"),
        ("y ~ x:offset(z)", "offset() stands on its own"),
        ("y ~ offset()", "offset() is empty"),
        ("y ~ offset(scale(x))", "learns from the data"),
        ("y | foo(x) ~ 1", "not an addition"),
        ("y | weight(x) ~ 1", "Did you mean 'weights'?"),
        ("y | se() ~ 1", "takes one column"),
        ("y | se(s, tau=1) ~ 1", "sigma=True"),
        ("y | se(s) + se(t) ~ 1", "there twice"),
        ("y | se(s) + precision(t) ~ 1", "both set"),
        ("y | a | b ~ 1", "with one bar"),
        ("y ~ .", "'all columns'"),
        ("y ~ total.score", "backticks: `total.score`"),
        ("y ~ lgo(x)", "Did you mean 'log'?"),
        ("y ~ np.mean(x)", "not a function of one row"),
        ("y ~ __import__('os').system('true')", "cannot be read"),
        ("y ~ log(x).__class__", "cannot be read"),
        ("y ~ x.__class__", "cannot be read"),
    ],
)
def test_errors_name_the_thing_and_the_mend(formula: str, says: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse_formula(formula)
    assert says in str(caught.value)


def test_not_text() -> None:
    with pytest.raises(FormulaError, match="A formula is text"):
        parse_formula(3)  # type: ignore[arg-type]


def test_errors_are_of_one_family() -> None:
    assert issubclass(FormulaError, PartialPoolError) and issubclass(DataError, PartialPoolError)


def test_variables_of() -> None:
    assert variables_of("1 + `a b` + log(x):bs(z, df=4, knots=[1e3, 2.5]) + C(f, contr.poly) + np.sqrt(w)") == (
        "a b",
        "x",
        "z",
        "f",
        "w",
    )


def test_quote_name() -> None:
    assert quote_name("x_1") == "x_1"
    assert quote_name("a b") == "`a b`"
