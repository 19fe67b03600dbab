"""Formulas of several parameters at once: that of the mean, and those of the family's own (distributional models)."""

from __future__ import annotations

from dataclasses import replace

from partialpool.errors import FormulaError
from partialpool.spec.formula import Predictor, Terms, parse_formula


def formula(formula: str, /, **parameters: str) -> Terms:
    """A formula of the mean together with formulas of other parameters of the family (a distributional model).

    Parameters
    ----------
    formula : str
        That of the mean: ``"y ~ x + (1 | g)"``.
    **parameters : str
        By parameter, the right side of its own: ``sigma="~ z + (1 | g)"``. It is a linear predictor on the log scale,
        with coefficients ``sigma.Intercept``, ``sigma.z`` and group sds ``sd(sigma.Intercept|g)``.

    Returns
    -------
    Terms
        What `fit` and `Model.from_formula` take in the place of a text.

    Raises
    ------
    FormulaError
        If a formula cannot be read, or that of a parameter has a response, additions to it or an offset.

    Examples
    --------
    >>> print(formula("y ~ x + (1 | g)", sigma="~ z + (1 | g)"))
    y ~ x + (1 | g), sigma ~ z + (1 | g)
    """
    main = parse_formula(formula)
    predictors: dict[str, Predictor] = {}
    named = {frozenset(term.variables): term.variables for term in main.groups}
    for name, text in parameters.items():
        part = _part(name, text)
        groups = tuple(
            replace(term, variables=named.setdefault(frozenset(term.variables), term.variables)) for term in part.groups
        )  # one factor, whatever the order in which a part names its columns
        predictors[name] = replace(part, groups=groups)
    whole = ", ".join([main.formula, *(f"{name} {part.formula}" for name, part in predictors.items())])
    return replace(main, formula=whole, predictors=predictors)


def read_terms(formula: object) -> Terms:
    """The parts of a formula given as text or as `formula` made it."""
    return formula if isinstance(formula, Terms) else parse_formula(formula)  # type: ignore[arg-type]


def _part(name: str, text: object) -> Predictor:
    """The formula of one parameter, read; messages name the parameter."""
    mend = f"write {name}='~ z + (1|g)'."
    if not isinstance(text, str):
        raise FormulaError(f"The formula of {name!r} is text; it is a {type(text).__name__}; {mend}")
    squeezed = " ".join(text.split())
    left, tilde, right = squeezed.partition("~")
    if not tilde:
        raise FormulaError(f"The formula {squeezed!r} of {name!r} has no '~'; write {name}='~ {squeezed}'.")
    if left.strip():
        raise FormulaError(
            f"The formula {squeezed!r} of {name!r} has a left side, {left.strip()!r}; the response, with trials() and "
            f"weights(), stands in the first formula alone: write {name}='~ {right.strip()}'."
        )
    whole = f"{name} ~ {right.strip()}"  # its errors quote it with the parameter on the left
    terms = parse_formula(whole)
    if terms.offsets:
        raise FormulaError(
            f"The formula of {name!r} has an offset, offset({terms.offsets[0]}), which only that of the mean may have; "
            "take it out."
        )
    return Predictor(f"~ {right.strip()}", terms.common, terms.groups)
