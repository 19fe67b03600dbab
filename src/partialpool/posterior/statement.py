"""Statements about parameters, such as ``sd(Days|Subject) > Days / 2``: read without `eval`, evaluated on draws.

A parameter's name may hold characters that are operators elsewhere; at every point the longest known name wins.

    statement  := expression (comparison expression)+
    expression := product (("+" | "-") product)*
    product    := factor (("*" | "/") factor)*
    factor     := ("+" | "-") factor | number | name | function "(" expression ")" | "(" expression ")"
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, did_you_mean

Array = NDArray[np.float64]
Lookup = Callable[[str], Array]

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[Any], Any]] = {"abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt}
NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WORD = re.compile(r"[^\W\d][\w.]*")
SIGNS = ("<=", ">=", "==", "!=", "<", ">", "+", "-", "*", "/", "(", ")")


def probability(statement: str, lookup: Lookup, names: Sequence[str], factors: Sequence[str] = ()) -> float:
    """The share of draws in which a statement holds.

    Parameters
    ----------
    statement : str
    lookup : gives the draws of a name.
    names : the parameters. factors : grouping factors, whose effects are named ``factor[group]``.

    Raises
    ------
    ModelError
        Where the statement cannot be read, with what is wrong.

    Examples
    --------
    >>> probability("0 < x < y / 2", {"x": np.array([1.0, 3.0]), "y": np.array([4.0, 4.0])}.__getitem__, ["x", "y"])
    0.5
    """
    if not isinstance(statement, str):
        raise ModelError(f"probability() takes a statement as text, such as 'Days > 5', not {statement!r}.")
    holds = _Reader(statement, _tokens(statement, names, factors), lookup).statement()
    return float(np.mean(holds))


def _tokens(text: str, names: Sequence[str], factors: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, text) of each token; kind is name, function, number or sign."""
    ordered = sorted(names, key=len, reverse=True)
    out: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        kind, token, at = _next(text, at, ordered, factors)
        out.append((kind, token))
    return out


def _next(text: str, at: int, ordered: Sequence[str], factors: Sequence[str]) -> tuple[str, str, int]:
    if text[at] == "`":
        end = text.find("`", at + 1)
        if end < 0:
            raise ModelError(f"The backtick in {text!r} is not closed.")
        return "name", text[at + 1 : end], end + 1
    for name in ordered:
        if text.startswith(name, at) and _ends_here(text, at + len(name), name):
            return "name", name, at + len(name)
    for factor in sorted(factors, key=len, reverse=True):
        if text.startswith(f"{factor}[", at) and (end := text.find("]", at)) > 0:
            return "name", text[at : end + 1], end + 1
    if number := NUMBER.match(text, at):
        return "number", number.group(), number.end()
    for sign in SIGNS:
        if text.startswith(sign, at):
            return "sign", sign, at + len(sign)
    if word := WORD.match(text, at):
        after = text[word.end() :].lstrip()
        if word.group() in FUNCTIONS and after.startswith("("):
            return "function", word.group(), word.end()
        _unknown(text, at, word.end(), ordered)
    raise ModelError(f"{text[at]!r} in {text!r} is not understood; a statement reads like 'Days > 2 * Intercept'.")


def _ends_here(text: str, end: int, name: str) -> bool:
    """A name that ends in a letter or digit may not go on: `Days` is not the start of `Days2`."""
    return end == len(text) or not (name[-1].isalnum() or name[-1] == "_") or not re.match(r"[\w.\[:(]", text[end])


def _unknown(text: str, at: int, end: int, names: Sequence[str]) -> None:
    if text[end : end + 1] in ("(", "["):
        close = text.find({"(": ")", "[": "]"}[text[end]], end)
        end = close + 1 if close > 0 else end
    name = text[at:end]
    raise ModelError(f"There is no parameter {name!r}. {did_you_mean(name, names)}")


class _Reader:
    """Reads tokens from left to right and computes as it goes."""

    def __init__(self, text: str, tokens: list[tuple[str, str]], lookup: Lookup) -> None:
        self.text, self.tokens, self.lookup, self.at = text, tokens, lookup, 0

    def statement(self) -> Any:
        left = self.expression()
        holds: Any = None
        while (sign := self.peek()) in COMPARISONS:
            self.at += 1
            right = self.expression()
            one = COMPARISONS[sign](left, right)
            holds = one if holds is None else holds & one
            left = right
        if self.at < len(self.tokens):
            raise self.error(f"{self.tokens[self.at][1]!r} stands where an operator should")
        if holds is None:
            raise self.error("there is no comparison (<, >, <=, >=)")
        return holds

    def expression(self) -> Any:
        value = self.product()
        while (sign := self.peek()) in ("+", "-"):
            self.at += 1
            other = self.product()
            value = value + other if sign == "+" else value - other
        return value

    def product(self) -> Any:
        value = self.factor()
        while (sign := self.peek()) in ("*", "/"):
            self.at += 1
            other = self.factor()
            with np.errstate(divide="ignore", invalid="ignore"):
                value = value * other if sign == "*" else np.divide(value, other)
        return value

    def factor(self) -> Any:
        if self.at >= len(self.tokens):
            raise self.error("it ends where a name or a number should follow")
        kind, token = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return float(token)
        if kind == "name":
            return self.lookup(token)
        if kind == "function":
            with np.errstate(divide="ignore", invalid="ignore"):
                return FUNCTIONS[token](self.bracket())
        if token in ("+", "-"):
            value = self.factor()
            return value if token == "+" else -value
        if token == "(":
            self.at -= 1
            return self.bracket()
        raise self.error(f"{token!r} stands where a name or a number should")

    def bracket(self) -> Any:
        if self.peek() != "(":
            raise self.error("a parenthesis is missing")
        self.at += 1
        value = self.expression()
        if self.peek() != ")":
            raise self.error("a parenthesis is not closed")
        self.at += 1
        return value

    def peek(self) -> str:
        """The sign that comes next, or nothing."""
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "sign":
            return self.tokens[self.at][1]
        return ""

    def error(self, what: str) -> ModelError:
        return ModelError(f"The statement {self.text!r} cannot be read: {what}. It reads like 'Days > 5'.")
