"""A formula of lme4 or brms, read into its parts: response with its additions, common part, offsets, group terms.

The bars are read here; the common part and the effects of each group term stay text in formulaic's language,
with the intercept written out (``1 + ...`` or ``0 + ...``), so that nothing downstream guesses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from partialpool.errors import FormulaError, did_you_mean
from partialpool.spec.context import split_context
from partialpool.spec.text import NAME, call_of, cut, encloses, masked, nested_factors

TOKEN = re.compile(
    r"(?P<string>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")"
    r"|`(?P<ticked>[^`]*)`"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*(?:\.\w+)*)"
    r"|(?P<other>\S)"
)
CLOSER = {"(": ")", "[": "]", "{": "}"}

# Functions whose value in a row depends on that row alone: safe in the response and replayable without state.
ELEMENTWISE = [
    *("I", "abs", "ceil", "clip", "cos", "exp", "exp10", "exp2", "expm1", "floor", "log", "log10", "log1p", "log2"),
    *("maximum", "minimum", "power", "round", "sign", "sin", "sqrt", "square", "tan", "tanh", "where"),
]
# Functions that formulaic learns from the data (categories, means, knots) and replays on new rows.
LEARNED = ["C", "between", "bs", "cc", "center", "cr", "cs", "poly", "scale", "standardize", "within"]
# Attributes of numpy that are not ufuncs but still work row by row.
NUMPY_ROWWISE = frozenset({"abs", "round", "clip", "where", "pi", "e", "inf", "nan", "float64", "int64"})
CONSTANTS = frozenset({"True", "False", "None", "and", "or", "not", "in", "is"})


@dataclass(frozen=True)
class GroupTerm:
    """One group-level term, such as ``(1 + Days | Subject)``.

    Attributes
    ----------
    text : the term as the user wrote it, one factor at a time: ``(1|a/b)`` gives ``(1 | a)`` and ``(1 | a:b)``.
    effects : what varies by group, in formulaic's language with the intercept written out, ``1 + Days``.
    variables : the columns whose combinations are the groups.
    correlated : whether the effects of one group are correlated (``|``) or independent (``||``).
    """

    text: str
    effects: str
    variables: tuple[str, ...]
    correlated: bool = True

    @property
    def factor(self) -> str:
        """Name of the grouping factor: its columns joined by a colon."""
        return ":".join(self.variables)


@dataclass(frozen=True)
class Response:
    """The left side of a formula: the expression and what was added to it after a bar."""

    expression: str
    se: str | None = None
    se_sigma: bool = False
    weights: str | None = None
    precision: str | None = None
    trials: str | None = None


@dataclass(frozen=True)
class Predictor:
    """The formula of a family's own parameter, such as ``sigma ~ z + (1 | g)``: it has neither response nor offsets."""

    formula: str
    common: str
    groups: tuple[GroupTerm, ...]


@dataclass(frozen=True)
class Terms:
    """A formula, read. Made by :func:`parse_formula`, and by :func:`partialpool.formula` where there are several.

    `formula` is the whole text, ``y ~ x, sigma ~ z``; `main` that of the response's mean. `predictors` holds the
    formulas of other parameters of the family, by name.
    """

    formula: str
    response: Response
    common: str
    offsets: tuple[str, ...]
    groups: tuple[GroupTerm, ...]
    predictors: Mapping[str, Predictor] = field(default_factory=dict, hash=False)

    @property
    def main(self) -> str:
        """The formula of the mean."""
        return cut(self.formula, ",")[0] if self.predictors else self.formula

    @property
    def prefixes(self) -> tuple[str, ...]:
        """By linear predictor, what its names begin with: nothing for the mean, ``sigma.`` for sigma."""
        return ("", *(f"{name}." for name in self.predictors))

    @property
    def all_groups(self) -> tuple[GroupTerm, ...]:
        """The group terms of the mean, then those of the other parameters."""
        return sum((part.groups for part in self.predictors.values()), self.groups)

    def __str__(self) -> str:
        return self.formula


def parse_formula(formula: str) -> Terms:
    """Read a formula of lme4 or brms.

    Parameters
    ----------
    formula : text such as ``"Reaction ~ Days + (1 + Days | Subject)"``. Additions to the response follow a bar:
        ``y | se(s)``, ``y | weights(w)``, ``y | precision(w)``, ``y | trials(n)``, joined by ``+``. Group terms:
        ``(1|g)``, ``(x|g)``, ``(x||g)``, ``(0+x|g)``, ``(1|a/b)``, ``(1|a:b)``. In a function, ``^`` is power.
        A name that is not a plain word is put in backticks.

    Returns
    -------
    Terms

    Raises
    ------
    FormulaError
        If the formula cannot be read; the message says where and how to mend it.

    Examples
    --------
    >>> terms = parse_formula("score ~ hours + (1 | school/class)")
    >>> terms.common
    '1 + hours'
    >>> [group.factor for group in terms.groups]
    ['school', 'school:class']
    """
    if not isinstance(formula, str):
        raise FormulaError(f"A formula is text, such as 'y ~ x + (1|g)'; got {type(formula).__name__}.")
    text = " ".join(formula.split())
    _check_quotes(text)
    _check_brackets(text)
    left, right = _sides(text)
    response = _response(left, text)
    parts = _Parts(text)
    parts.read(_powers(right))
    if parts.groups:
        _check_repeats(parts.groups, text)
    terms = Terms(text, response, parts.common_text(), tuple(parts.offsets), tuple(parts.groups))
    for piece in _expressions(terms):
        variables_of(piece, formula=text)
        for column in split_context(piece, text)[1]:
            variables_of(column.expression, formula=text, elementwise=True)
    return terms


def variables_of(expression: str, *, formula: str | None = None, elementwise: bool = False) -> tuple[str, ...]:
    """The columns that an expression reads, in order of appearance.

    Only columns and the functions that the design knows may appear: an expression is later evaluated, also from a
    loaded file, so nothing else is let through. With `elementwise`, functions that learn from the data are refused.

    Examples
    --------
    >>> variables_of("log(dose) + poly(age, 2):site")
    ('dose', 'age', 'site')
    """
    where = f"In the formula {formula!r}: " if formula else ""
    names: list[str] = []
    depth = 0
    previous = ""
    for match in TOKEN.finditer(expression):
        after = expression[match.end() :].lstrip()
        if match["ticked"] is not None:
            names.append(match["ticked"])
        elif match["name"] is not None:
            if previous == "." or match["name"].startswith("__") or ".__" in match["name"]:
                raise FormulaError(
                    f"{where}'.{match['name']}' cannot be read; a formula has columns and functions only."
                )
            name = _column_or_function(match["name"], after, depth, where, elementwise)
            if name is not None:
                names.append(name)
        elif match["other"] == ".":
            if previous and previous not in "+-*/:(,":
                raise FormulaError(
                    f"{where}the '.' after {previous!r} cannot be read; a formula has columns and functions."
                )
            raise FormulaError(f"{where}'.' does not stand for 'all columns' here; name the columns.")
        elif match["other"] is not None:
            depth += (match["other"] in "([{") - (match["other"] in ")]}")
        previous = match.group()
    return tuple(dict.fromkeys(names))


def quote_name(name: str) -> str:
    """A column's name as a formula writes it: in backticks unless it is a plain word."""
    return name if NAME.fullmatch(name) else f"`{name}`"


def split_addends(text: str, formula: str) -> list[tuple[str, str]]:
    """Cut text at the + and - that stand outside all brackets: pairs of sign and piece."""
    mask = masked(text)
    pieces: list[tuple[str, str]] = []
    sign, start, depth = "+", 0, 0
    for position, char in enumerate(mask):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and char in "+-":
            piece = text[start:position].strip()
            if piece and mask[start:position].rstrip()[-1] in "*/:^|%":
                continue
            if piece:
                pieces.append((sign, piece))
            elif position > 0 and not (not pieces and start == 0):
                raise FormulaError(
                    f"In the formula {formula!r}: two operators follow each other before {text[position:]!r}."
                )
            sign, start = char, position + 1
    last = text[start:].strip()
    if not last:
        raise FormulaError(f"In the formula {formula!r}: nothing follows the last {sign!r}.")
    pieces.append((sign, last))
    return pieces


def _column_or_function(token: str, after: str, depth: int, where: str, elementwise: bool) -> str | None:
    """A column's name, or None for a function, a keyword argument or a constant."""
    root, _, attribute = token.partition(".")
    if root in ("np", "numpy") and attribute:
        _check_numpy(attribute, where)
        return None
    if root == "contr" and attribute:
        return None
    if attribute:
        raise FormulaError(f"{where}{token!r} has a dot; put the column's name in backticks: `{token}`.")
    if after.startswith("("):
        known = ELEMENTWISE if elementwise else [*ELEMENTWISE, *LEARNED]
        if token in known or token in CONSTANTS:
            return None
        if token in LEARNED:
            raise FormulaError(
                f"{where}{token}() learns from the data and cannot stand here; use a function of the row."
            )
        raise FormulaError(f"{where}there is no function {token!r}. {did_you_mean(token, [*known, 'offset'])}")
    if depth > 0 and re.match(r"=(?!=)", after):
        return None
    return None if token in CONSTANTS else token


def _check_numpy(attribute: str, where: str) -> None:
    import numpy as np

    if attribute in NUMPY_ROWWISE or isinstance(getattr(np, attribute, None), np.ufunc):
        return
    hint = " center(x), scale(x) and poly(x, 2) remember what they learned." if hasattr(np, attribute) else ""
    raise FormulaError(
        f"{where}np.{attribute} is not a function of one row, so that it could not be replayed on new rows.{hint}"
    )


def _check_quotes(text: str) -> None:
    for quote in "'\"`":
        position = masked(text).find(quote)
        if position >= 0:
            raise FormulaError(
                f"In the formula {text!r}: the quote {quote} before {text[position + 1 :]!r} is never closed."
            )


def _check_brackets(text: str) -> None:
    opened: list[tuple[str, int]] = []
    for position, char in enumerate(masked(text)):
        if char in CLOSER:
            opened.append((char, position))
        elif char in CLOSER.values():
            if not opened:
                raise FormulaError(
                    f"In the formula {text!r}: the {char!r} at character {position + 1} closes nothing; "
                    "remove it or open a parenthesis before it."
                )
            bracket, _ = opened.pop()
            if CLOSER[bracket] != char:
                raise FormulaError(
                    f"In the formula {text!r}: {bracket!r} is closed by {char!r} at character {position + 1}."
                )
    if opened:
        bracket, position = opened[-1]
        raise FormulaError(
            f"In the formula {text!r}: the parenthesis opened at character {position + 1}, {text[position:]!r}, "
            f"is never closed; add {CLOSER[bracket]!r}."
        )


def _sides(text: str) -> tuple[str, str]:
    sides = cut(text, "~")
    if len(sides) == 1:
        raise FormulaError(f"The formula {text!r} has no '~'; write response ~ predictors, as in 'y ~ x + (1|g)'.")
    if len(sides) > 2:
        raise FormulaError(
            f"The formula {text!r} has more than one '~'; keep one, between response and predictors (a formula of "
            "another parameter goes into pp.formula('y ~ x', sigma='~ z'))."
        )
    if not sides[0]:
        raise FormulaError(f"The formula {text!r} names no response; put it before the '~', as in 'y {text}'.")
    if not sides[1]:
        raise FormulaError(f"The formula {text!r} has nothing after the '~'; write '{text} 1' for an intercept alone.")
    return sides[0], sides[1]


def _powers(text: str) -> str:
    """Write ``^`` as ``**``: power inside a function as in R, crossing of terms outside, as formulaic reads both."""
    mask = masked(text)
    return "".join("**" if mask[position] == "^" else char for position, char in enumerate(text))


ADDITIONS = ("se", "weights", "precision", "trials")


def _response(left: str, formula: str) -> Response:
    parts = cut(left, "|")
    if len(parts) > 2 or not parts[0]:
        raise FormulaError(
            f"In the formula {formula!r}: the response reads 'y' or 'y | addition(s)', with one bar; "
            "join several additions by '+', as in 'y | se(s) + weights(w)'."
        )
    response = Response(_powers(parts[0]))
    if len(parts) == 1:
        return response
    for sign, piece in split_addends(parts[1], formula) if parts[1] else [("+", "")]:
        call = call_of(piece)
        if call is None or sign != "+" or call[0] not in ADDITIONS:
            near = did_you_mean(call[0] if call else piece, ADDITIONS)
            raise FormulaError(f"In the formula {formula!r}: {piece!r} is not an addition to the response. {near}")
        response = _add(response, call[0], call[1], formula)
    if response.se and response.precision:
        raise FormulaError(
            f"In the formula {formula!r}: se() and precision() both set a row's variance; keep one of them."
        )
    return response


def _add(response: Response, kind: str, argument: str, formula: str) -> Response:
    arguments = [piece for piece in cut(_powers(argument), ",") if piece]
    se_sigma = response.se_sigma
    if kind == "se" and len(arguments) == 2:
        match = re.fullmatch(r"sigma\s*=\s*(True|TRUE|T|False|FALSE|F)", arguments[1])
        if match is None:
            raise FormulaError(
                f"In the formula {formula!r}: se() takes 'sigma=True' beside its column, not {arguments[1]!r}."
            )
        se_sigma = match[1].startswith("T")
        arguments = arguments[:1]
    if len(arguments) != 1:
        raise FormulaError(f"In the formula {formula!r}: {kind}() takes one column, as in 'y | {kind}(w)'.")
    if getattr(response, kind) is not None:
        raise FormulaError(f"In the formula {formula!r}: {kind}() is there twice; keep one.")
    if kind == "se":
        return replace(response, se=arguments[0], se_sigma=se_sigma)
    if kind == "weights":
        return replace(response, weights=arguments[0])
    if kind == "precision":
        return replace(response, precision=arguments[0])
    return replace(response, trials=arguments[0])


class _Parts:
    """Collects the addends of the right side."""

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.intercept = True
        self.common: list[tuple[str, str]] = []
        self.offsets: list[str] = []
        self.groups: list[GroupTerm] = []

    def common_text(self) -> str:
        return _with_intercept(self.intercept, self.common)

    def read(self, text: str) -> None:
        for sign, piece in split_addends(text, self.formula):
            self._addend(sign, piece)

    def _addend(self, sign: str, piece: str) -> None:
        if len(cut(piece, "|")) > 1:
            raise FormulaError(
                f"In the formula {self.formula!r}: the bar in {piece!r} stands outside parentheses; "
                f"a group term is written in them, as in '({piece})'."
            )
        inner = piece[1:-1].strip() if piece.startswith("(") and encloses(piece, 0) else None
        if inner is not None and len(cut(inner, "|")) > 1:
            self._need_plus(sign, piece)
            self.groups.extend(_group_terms(inner, self.formula))
        elif inner is not None and (_holds_group(inner) or "offset" in inner):
            self._need_plus(sign, piece)
            self.read(inner)
        elif _holds_group(piece):
            raise FormulaError(
                f"In the formula {self.formula!r}: {piece!r} mixes a group term with another operator; "
                "group terms are added with '+'."
            )
        elif piece in ("0", "1"):
            self.intercept = (piece == "1") == (sign == "+")
        else:
            self._common(sign, piece)

    def _common(self, sign: str, piece: str) -> None:
        call = call_of(piece)
        if call is not None and call[0] == "offset":
            self._need_plus(sign, piece)
            if not call[1]:
                raise FormulaError(f"In the formula {self.formula!r}: offset() is empty; write offset(log(exposure)).")
            variables_of(call[1], formula=self.formula, elementwise=True)
            self.offsets.append(call[1])
        elif re.search(r"\boffset\s*\(", masked(piece)):
            raise FormulaError(f"In the formula {self.formula!r}: offset() stands on its own, added with '+'.")
        else:
            self.common.append((sign, piece))

    def _need_plus(self, sign: str, piece: str) -> None:
        if sign != "+":
            raise FormulaError(f"In the formula {self.formula!r}: {piece!r} cannot be subtracted; leave it out.")


def _with_intercept(intercept: bool, pieces: list[tuple[str, str]]) -> str:
    text = "1" if intercept else "0"
    for sign, piece in pieces:
        text += f" {sign} {piece}"
    return text


def _holds_group(text: str) -> bool:
    """Whether a parenthesis that is not a function's holds a bar."""
    mask = masked(text)
    opened: list[bool] = []
    for position, char in enumerate(mask):
        if char == "(":
            before = mask[:position].rstrip()
            opened.append(not before or not (before[-1].isalnum() or before[-1] in "_)"))
        elif char == ")":
            opened.pop()
        elif char == "|" and opened and all(opened):
            return True
    return False


def _group_terms(inner: str, formula: str) -> list[GroupTerm]:
    """The terms of what stands between the parentheses of ``(effects | factor)``."""
    parts = cut(inner, "|")
    double = len(parts) == 3 and parts[1] == "" and "||" in inner
    if len(parts) != 2 and not double:
        raise FormulaError(f"In the formula {formula!r}: '({inner})' has too many bars; write (effects | factor).")
    effects, factor = parts[0], parts[-1]
    if not effects:
        raise FormulaError(
            f"In the formula {formula!r}: '({inner})' has nothing before the bar; write (1 | {factor or 'g'})."
        )
    if not factor:
        raise FormulaError(
            f"In the formula {formula!r}: '({inner})' names no grouping factor after the bar; write ({effects} | g)."
        )
    return [
        GroupTerm(
            f"({effects} {'||' if double else '|'} {':'.join(variables)})",
            _effects(effects, inner, formula),
            variables,
            not double,
        )
        for variables in nested_factors(factor, inner, formula)
    ]


def _effects(text: str, inner: str, formula: str) -> str:
    intercept = True
    pieces: list[tuple[str, str]] = []
    for sign, piece in split_addends(text, formula):
        if piece in ("0", "1"):
            intercept = (piece == "1") == (sign == "+")
        elif re.search(r"\boffset\s*\(", masked(piece)):
            raise FormulaError(
                f"In the formula {formula!r}: an offset has no group effects; take it out of '({inner})'."
            )
        else:
            pieces.append((sign, piece))
    if not intercept and not pieces:
        raise FormulaError(
            f"In the formula {formula!r}: '({inner})' has no effects; leave it out or write 1 before the bar."
        )
    return _with_intercept(intercept, pieces)


def _check_repeats(groups: list[GroupTerm], formula: str) -> None:
    """The same term twice is refused; a factor named in two orders gets one name."""
    names: dict[frozenset[str], tuple[str, ...]] = {}
    seen: dict[tuple[frozenset[str], frozenset[tuple[str, str]]], GroupTerm] = {}
    for index, term in enumerate(groups):
        members = frozenset(term.variables)
        variables = names.setdefault(members, term.variables)
        if variables != term.variables:
            groups[index] = term = replace(term, variables=variables)
        key = (members, frozenset(split_addends(term.effects, formula)))
        if key in seen:
            raise FormulaError(f"In the formula {formula!r}: the group term {term.text} is there twice; keep one.")
        seen[key] = term


def _expressions(terms: Terms) -> Iterator[str]:
    yield terms.common
    for term in terms.groups:
        yield term.effects
    response = terms.response
    for piece in (response.expression, response.se, response.weights, response.precision, response.trials):
        if piece is not None:
            variables_of(piece, formula=terms.formula, elementwise=True)
