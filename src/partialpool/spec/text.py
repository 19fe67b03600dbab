"""The text of formulas, cut where brackets and quotes allow it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from partialpool.errors import FormulaError

QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`[^`]*`")
NAME = re.compile(r"[^\W\d]\w*")


def masked(text: str) -> str:
    """The text with what is quoted blanked out, position by position."""
    return QUOTED.sub(lambda match: "Q" * len(match.group()), text)


def _depths(mask: str) -> Iterator[tuple[int, str, int]]:
    """Position, character and depth of brackets around it."""
    depth = 0
    for position, char in enumerate(mask):
        if char in ")]}":
            depth -= 1
        yield position, char, depth
        if char in "([{":
            depth += 1


def cut(text: str, separator: str) -> list[str]:
    """Cut text at a character that stands outside all brackets and quotes."""
    cuts = [position for position, char, depth in _depths(masked(text)) if char == separator and depth == 0]
    starts = [0, *[position + 1 for position in cuts]]
    return [text[start:end].strip() for start, end in zip(starts, [*cuts, len(text)], strict=True)]


def call_of(text: str) -> tuple[str, str] | None:
    """Name and argument text where the whole text is one call, else None."""
    match = re.match(r"([^\W\d]\w*)\s*\(", text)
    if match is None or not encloses(text, match.end() - 1):
        return None
    return match[1], text[match.end() : -1].strip()


def encloses(text: str, position: int) -> bool:
    """Whether the bracket opened at position closes with the last character."""
    level = sum(char == "(" for char in masked(text)[:position])
    for index, char, depth in _depths(masked(text)):
        if index > position and char == ")" and depth == level:
            return index == len(text) - 1
    return False


def nested_factors(text: str, inner: str, formula: str) -> list[tuple[str, ...]]:
    """``a/b/c`` gives a, a:b and a:b:c."""
    nested: list[tuple[str, ...]] = []
    for step in cut(text, "/"):
        above = nested[-1] if nested else ()
        names = tuple(_factor_name(piece, inner, formula) for piece in cut(step, ":"))
        if len(set(above + names)) < len(above + names):
            raise FormulaError(f"In the formula {formula!r}: the grouping factor {text!r} names a column twice.")
        nested.append(above + names)
    return nested


def _factor_name(piece: str, inner: str, formula: str) -> str:
    if len(piece) > 2 and piece[0] == piece[-1] == "`":
        return piece[1:-1]
    if NAME.fullmatch(piece):
        return piece
    if "+" in piece or "*" in piece:
        names = [name.strip() for name in re.split(r"[+*]", piece)]
        mend = " + ".join(f"({inner.partition('|')[0].strip()} | {name})" for name in names)
        mend = f"for crossed factors write {mend}"
    elif (call := call_of(piece)) is not None:
        column = call[1].rpartition("|")[2].strip() or "g"
        mend = f"a grouping factor is always a set of categories: write the column alone, {column}"
    else:
        mend = "put a column's name there (in backticks if it is not a plain word)"
    raise FormulaError(f"In the formula {formula!r}: {piece!r} cannot be the grouping factor of '({inner})'; {mend}.")
