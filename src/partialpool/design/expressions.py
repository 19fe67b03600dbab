"""Expressions of a row: what a formula's functions make of the columns, row by row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.frame import numeric_values
from partialpool.errors import DataError
from partialpool.spec.formula import quote_name, variables_of

if TYPE_CHECKING:
    import pandas as pd


def functions() -> dict[str, Any]:
    """Functions that formulaic lacks, or gets wrong (its exp10(x) is x to the 10)."""
    names = "abs ceil clip cos expm1 floor log1p maximum minimum power round sign sin sqrt square tan tanh where"
    functions = {name: getattr(np, name) for name in names.split()}
    functions["exp10"] = lambda x: np.power(10.0, x)
    return functions


def ticks(expression: str) -> str:
    """The expression with each name in backticks as a plain word."""
    return re.sub(r"`([^`]*)`", lambda match: "_tick_" + match[1].encode().hex(), expression)


def evaluate(expression: str, columns: Mapping[str, Any]) -> Any:
    """The value of an expression whose functions work row by row; names in backticks are columns too.

    The names in the expression were checked by `variables_of` when the formula was read.

    Examples
    --------
    >>> evaluate("log(x) + 1", {"x": np.array([1.0])}).tolist()
    [1.0]
    """
    text = ticks(expression)
    names: dict[str, Any] = {"np": np, "numpy": np, "I": lambda x: x, "__builtins__": {}}
    names |= {name: getattr(np, name) for name in ("log", "log2", "log10", "exp", "exp2")} | functions()
    for name, values in columns.items():
        names[name] = names["_tick_" + name.encode().hex()] = values
    with np.errstate(all="ignore"):
        return eval(compile(text, "<formula>", "eval"), names)


def row_values(expression: str, frame: pd.DataFrame, what: str) -> NDArray[Any]:
    """The numbers that an expression gives in each row."""
    import pandas as pd

    column = bare_column(expression)
    if column is not None:
        return numeric_values(frame[column], column, what)
    names = variables_of(expression)
    try:
        value = evaluate(expression, {name: frame[name] for name in names})
    except Exception as error:  # whatever a user's expression raises
        raise DataError(f"{what} {expression!r} cannot be computed: {error}") from error
    if np.ndim(value) == 0:
        value = np.full(len(frame), value)
    return numeric_values(pd.Series(value), expression, what)


def bare_column(expression: str) -> str | None:
    """The column where an expression is nothing but one, else None."""
    names = variables_of(expression)
    return names[0] if len(names) == 1 and expression in (names[0], quote_name(names[0])) else None
