"""``within(x|g)`` and ``between(x|g)``: a predictor in two parts, what varies in a group and what between groups.

``x = within(x|g) + between(x|g)``, the second being the group's mean; and for nested groups
``x = within(x|a/b) + between(x|a/b) + between(x|a)``, where ``between(x|a/b)`` is the mean of b less that of a.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from partialpool.errors import FormulaError
from partialpool.spec.text import cut, masked, nested_factors

KINDS = ("within", "between")
_CALL = re.compile(r"(?<![\w.])(within|between)\s*\(")


@dataclass(frozen=True)
class ContextColumn:
    """One such call.

    Attributes
    ----------
    name : as users see it, ``within(ses|school)``.
    kind : "within" or "between". expression : of what, ``ses``.
    variables : the columns whose combinations are the groups. outer : those of the groups around them, ``()`` if none.
    """

    name: str
    kind: str
    expression: str
    variables: tuple[str, ...]
    outer: tuple[str, ...] = ()


@lru_cache(maxsize=1024)
def split_context(text: str, formula: str = "") -> tuple[str, tuple[ContextColumn, ...]]:
    """The text with each call written as a column of its own, in backticks, and these columns.

    Raises
    ------
    FormulaError
        If a call lacks its bar, its predictor or its group.

    Examples
    --------
    >>> text, columns = split_context("1 + within(ses | school) * sector")
    >>> text, columns[0].variables
    ('1 + `within(ses|school)` * sector', ('school',))
    """
    mask = masked(text)
    out, columns, start = [], [], 0
    for match in _CALL.finditer(mask):
        if match.start() < start:
            raise FormulaError(f"{_where(formula)}{match[1]}() stands inside another; write the parts one by one.")
        end = _closing(mask, match.end() - 1)
        column = _read(match[1], text[match.end() : end], formula)
        columns.append(column)
        out += [text[start : match.start()], f"`{column.name}`"]
        start = end + 1
    return "".join([*out, text[start:]]), tuple(dict.fromkeys(columns))


def context_columns(texts: Sequence[str]) -> tuple[ContextColumn, ...]:
    """Those of several pieces of a formula, each once."""
    return tuple(dict.fromkeys(column for text in texts for column in split_context(text)[1]))


def _where(formula: str) -> str:
    return f"In the formula {formula!r}: " if formula else ""


def _closing(mask: str, opened: int) -> int:
    depth = 0
    for position in range(opened, len(mask)):
        depth += (mask[position] in "([{") - (mask[position] in ")]}")
        if depth == 0:
            return position
    return len(mask)  # the formula's brackets were checked before


def _read(kind: str, inside: str, formula: str) -> ContextColumn:
    parts = cut(inside, "|")
    if len(parts) != 2 or not all(parts):
        raise FormulaError(
            f"{_where(formula)}{kind}({inside.strip()}) takes a predictor and its groups, a bar between them, as in "
            f"{kind}({parts[0] or 'x'}|{'g' if len(parts) < 2 or not parts[1] else parts[1]})."
        )
    expression, groups = parts
    if "+" in masked(groups):
        raise FormulaError(
            f"{_where(formula)}{kind}({inside.strip()}) takes one grouping factor: g, a:b, or the nested a/b. "
            "For crossed factors use one call each."
        )
    nested = nested_factors(groups, inside.strip(), formula)
    shown = expression.replace("`", "")
    name = f"{kind}({shown}|{'/'.join(':'.join(cut(step, ':')) for step in cut(groups, '/'))})".replace("`", "")
    outer = nested[-2] if len(nested) > 1 and kind == "between" else ()
    return ContextColumn(name, kind, expression, nested[-1], outer)
