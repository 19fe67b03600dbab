"""Which predictors of a model vary both within and between groups, and how formulas name their group means."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.design.context import group_means
from partialpool.design.design import Design, GroupFactor
from partialpool.design.frame import column_kind
from partialpool.errors import FormulaError
from partialpool.spec.context import ContextColumn, split_context
from partialpool.spec.formula import Terms, quote_name, split_addends, variables_of
from partialpool.spec.text import NAME, call_of, cut

Array = NDArray[np.float64]

#: Shares of the variance of a predictor below this are rounding; group means that the model's columns already span to
#: within this share are there already.
ROUNDING = 1e-10
#: Functions that learn from all rows; the group means of their columns have no formula.
SPLINES = re.compile(r"\b(bs|cc|cr|cs|poly|C|center|scale|standardize)\s*\(")

#: Predictors in brackets, and a power of their sum.
INNER = re.compile(r"\((?P<text>.*)\)(\*\*\s*\d+)?", re.DOTALL)


@dataclass(frozen=True)
class Candidate:
    """One predictor and one factor.

    name : the coefficient's, ``x`` or ``f[b]``. factor : the factor's. between : the group means in a formula.
    coefficient : their coefficient's name. plain : whether `name` is a numeric column.
    between_share : the share of its variance that lies between groups.
    """

    name: str
    factor: str
    between: str
    coefficient: str
    plain: bool
    between_share: float


@dataclass(frozen=True)
class Apart:
    """A predictor whose slopes within and between groups are in the model already.

    predictor, factor : names. inner : the groups within which the slope `within` is. within, between : coefficients.
    total : whether the slope between groups is `between` itself, of ``within(x|g) + between(x|g)``; else, of
    ``x + between(x|g)``, `between` is the contextual effect. between_share : the share of the predictor's variance.
    """

    predictor: str
    factor: str
    inner: str
    within: str
    between: str
    total: bool
    between_share: float


def kept_apart(design: Design) -> tuple[list[Apart], list[str]]:
    """Predictors that the model has in both parts, and sentences about those of which it has one."""
    columns = [column for name in design.x_names for column in _context(name)]
    plain = {text: name for name, text in _expressions(design) if text is not None}
    found: list[Apart] = []
    paired: set[str] = set()
    for expression in dict.fromkeys(column.expression for column in columns):
        own = [column for column in columns if column.expression == expression]
        betweens = [column for column in own if column.kind == "between"]
        insides = [column for column in own if column.kind == "within"]
        if len(insides) == 1:
            name, within, inner, total = expression.strip("`"), insides[0].name, insides[0].variables, True
            betweens = _chain(insides[0], betweens)
            parts = [within, *(column.name for column in betweens)]
        elif not insides and expression in plain and len(betweens) == 1 and not betweens[0].outer:
            name = within = plain[expression]
            inner, total, parts = betweens[0].variables, False, [within]
        else:
            continue
        for column in betweens:
            paired |= {column.name, within}
            share = _variance(design, [column.name]) / _variance(design, parts)
            groups = (":".join(column.variables), ":".join(inner))
            found.append(Apart(name, *groups, within, column.name, total, share))
    return found, [_half(column) for column in columns if column.name not in paired]


def _chain(inside: ContextColumn, betweens: Sequence[ContextColumn]) -> list[ContextColumn]:
    """The parts between groups that add up to the predictor with the one within: each of the groups around the last."""
    chain: list[ContextColumn] = []
    groups = inside.variables
    while groups:
        own = next((column for column in betweens if column.variables == groups and column not in chain), None)
        if own is None:
            break
        chain.append(own)
        groups = own.outer
    return chain


def _context(name: str) -> tuple[ContextColumn, ...]:
    """What ``within(x|g)`` or ``between(x|g)`` is; nothing for other names."""
    if not name.startswith(("within(", "between(")):
        return ()
    columns = split_context(name)[1]
    return columns if len(columns) == 1 and columns[0].name == name else ()


def _variance(design: Design, names: Sequence[str]) -> float:
    """The variance of a sum of columns over rows, weighted."""
    total = design.V[:, [design.v_names.index(name) for name in names]].sum(axis=1)
    centre = np.average(total, weights=design.weights)
    return float(np.average((total - centre) ** 2, weights=design.weights))


def _half(column: ContextColumn) -> str:
    other = "between" if column.kind == "within" else "within"
    return f"Not checked: {column.name} has no {column.name.replace(column.kind, other, 1)} beside it."


def candidates(
    design: Design, factors: Sequence[GroupFactor], apart: Collection[tuple[str, str]] = ()
) -> tuple[list[Candidate], list[str]]:
    """Predictors whose group means can be added, and sentences about those that cannot be checked.

    `apart` : predictors and factors to leave alone.
    """
    found: list[Candidate] = []
    notes: list[str] = []
    known = design.V[:, design.x_columns]
    for name, expression in _expressions(design):
        if expression is None:
            why = "whose group means have no formula; add columns of your own"
            why = why if name in design.v_names else "which has no slope of its own"
            notes.append(f"Not checked: {name}, {why}.")
            continue
        column = design.V[:, design.v_names.index(name)]
        for factor in factors:
            if (name, factor.name) in apart:
                continue
            means = group_means(column, factor.codes, design.weights)[factor.codes]
            share = between_share(column, means, design.weights)
            if share is None:
                continue
            if share > 1 - ROUNDING or share < ROUNDING:
                kind = "within" if share > 0.5 else "between"
                notes.append(f"Not checked: {name} does not vary {kind} groups of {factor.name}.")
                continue
            if _spanned(known, means):
                notes.append(f"Not checked: the group means of {name} by {factor.name} are in the model already.")
                continue
            groups = ":".join(quote_name(part) for part in factor.variables)
            between = f"between({expression}|{groups})"
            coefficient = split_context(between)[1][0].name
            found.append(
                Candidate(name, factor.name, between, coefficient, expression == quote_name(name), share)
            )  # fmt: skip
            known = np.column_stack([known, means])
    return found, notes


def between_share(column: Array, means: Array, weights: Array | None = None) -> float | None:
    """The share of a column's variance that is that of its group means; None for a constant."""
    counts = np.ones(len(column)) if weights is None else weights
    centre = float(np.average(column, weights=counts))
    total = float(counts @ (column - centre) ** 2)
    if total <= (1e-12 * float(np.abs(column).max())) ** 2 * float(counts.sum()):
        return None
    return float(counts @ (means - centre) ** 2) / total


def _spanned(known: Array, means: Array) -> bool:
    """Whether the columns that are there already give these means."""
    own = means - means.mean()
    with_constant = np.column_stack([np.ones(len(known)), known])
    left = own - with_constant @ np.linalg.lstsq(with_constant, own, rcond=None)[0]
    return bool(left @ left <= ROUNDING * (own @ own))


def _expressions(design: Design) -> Iterator[tuple[str, str | None]]:
    """Coefficients of the mean's predictors, and what between(...|g) holds for each; None where nothing can be."""
    names = set(design.x_names)
    by_text = {_bare(name): name for name in design.x_names}
    for atom in dict.fromkeys(_atoms(design.terms.common)):
        plain = atom[1:-1] if atom.startswith("`") else atom
        if plain in design.encoding.categories:
            for category in design.encoding.categories[plain]:
                if f"{plain}[{category}]" in names:
                    yield f"{plain}[{category}]", f"{quote_name(plain)} == {category!r}"
        elif _bare(plain) in by_text:
            known = by_text[_bare(plain)]
            yield known, None if SPLINES.search(atom) and not NAME.fullmatch(plain) else atom
        elif SPLINES.search(atom):
            for name in design.x_names:
                if name.startswith(f"{plain}["):
                    yield name, _of_category(design, atom, name)
        elif NAME.fullmatch(plain) or plain in design.data.columns:
            yield plain, None


def _bare(text: str) -> str:
    """An expression without what formulas and names write in several ways."""
    return text.replace(" ", "").replace("^", "**").replace("`", "")


def _of_category(design: Design, atom: str, name: str) -> str | None:
    """``year == 96`` for ``C(year)[96]``."""
    call = call_of(atom)
    if call is None or call[0] != "C" or call[1].strip("`") not in design.data.columns:
        return None
    label = name[name.rindex("[") + 1 : -1]
    numeric = column_kind(design.data[call[1].strip("`")]) == "number"
    return f"{call[1]} == {label if numeric else repr(label)}"


def _atoms(common: str) -> Iterator[str]:
    """The predictors of a right side, interactions taken apart."""
    for sign, piece in split_addends(common, common):
        if sign != "+" or piece in ("0", "1"):
            continue
        for part in cut(piece.replace("**", "^"), "*"):
            for atom in (text.replace("^", "**") for text in cut(part, ":")):
                inner = INNER.fullmatch(atom)
                if inner:
                    yield from _atoms(inner["text"])
                elif not atom.startswith(("within(", "between(")):
                    yield atom


def proposed_formula(terms: Terms, found: Sequence[Candidate]) -> str:
    """The formula with every predictor in its parts where it stands alone; else with the group means added.

    Examples
    --------
    >>> from partialpool.spec.formula import parse_formula
    >>> candidate = Candidate("x", "g", "between(x|g)", "between(x|g)", True, 0.5)
    >>> proposed_formula(parse_formula("y ~ x + z + (1 + x | g)"), [candidate])
    'y ~ within(x|g) + between(x|g) + z + (1 + within(x|g) | g)'
    """
    left, right = cut(terms.main, "~")
    pieces = split_addends(right, terms.main)
    added = []
    for name in dict.fromkeys(candidate.name for candidate in found):
        own = [candidate for candidate in found if candidate.name == name]
        text = quote_name(name)
        alone = [k for k, (sign, piece) in enumerate(pieces) if sign == "+" and piece in (name, text)]
        others = sum(name in variables_of(piece) for piece in _common(pieces)) - len(alone)
        if len(own) > 1 or not own[0].plain or len(alone) != 1 or others:
            added += [candidate.between for candidate in own]
            continue
        within = own[0].between.replace("between(", "within(", 1)
        pieces[alone[0]] = ("+", f"{within} + {own[0].between}")
        pieces = [(sign, _in_group(piece, name, own[0].factor, within)) for sign, piece in pieces]
    text = "".join(f" {sign} {piece}" for sign, piece in pieces).removeprefix(" + ").strip()
    others_own = "".join(f", {name} {part.formula}" for name, part in terms.predictors.items())
    return " + ".join([f"{left} ~ {text}", *added]) + others_own


def _common(pieces: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The addends that are not group terms."""
    for _, piece in pieces:
        if len(cut(piece[1:-1], "|")) == 1 or not piece.startswith("("):
            try:
                variables_of(piece)
            except FormulaError:
                continue
            yield piece


def _in_group(piece: str, name: str, factor: str, within: str) -> str:
    """A group term of the same factor with the slope of the predictor within groups."""
    if not (piece.startswith("(") and piece.endswith(")")):
        return piece
    parts = cut(piece[1:-1], "|")
    if len(parts) < 2 or parts[-1].replace("`", "") != factor:
        return piece
    effects = [within if text in (name, quote_name(name)) else text for _, text in split_addends(parts[0], piece)]
    bar = " || " if len(parts) == 3 else " | "
    return f"({' + '.join(effects)}{bar}{parts[-1]})"
