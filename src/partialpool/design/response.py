"""The response and what was added to it (trials, standard errors, weights), as people have them -> numbers, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.expressions import bare_column, row_values
from partialpool.design.frame import check_finite, column_kind, missing_values, row_names
from partialpool.errors import DataError, ModelError
from partialpool.spec.formula import Response, Terms, variables_of

if TYPE_CHECKING:
    import pandas as pd

    from partialpool.spec.families import Family

Vector = NDArray[np.float64]

#: Families of a response with two outcomes a trial; a response of two categories is one trial.
BINARY = ("bernoulli", "binomial")
#: Counts out of a number of trials.
BINOMIAL = ("bernoulli", "binomial", "beta_binomial")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The response as numbers: y (n,), trials (n,) where the family has them, and the two categories it was made of."""

    y: Vector
    trials: Vector | None
    success: str | None = None
    failure: str | None = None


def read_outcome(terms: Terms, frame: pd.DataFrame, family: Family) -> Outcome:
    """The response of a new model, checked against what its family takes.

    Raises
    ------
    DataError
        With the first rows that are outside of the family's support, or what else is wrong with the response.
    """
    left = terms.response
    column = _category_column(left.expression, frame) if family.name in BINARY else None
    success = failure = None
    if column is None:
        y = numbers(left.expression, frame)
    else:
        failure, success = _two_categories(column, left.expression, family)
        y = match_categories(column, left.expression, success, failure)
    outcome = Outcome(y, _trials(left, y, frame, family), success, failure)
    check_response(y, outcome.trials, frame.index, family, left.expression)
    _check_constant(outcome, left.expression, family)
    return outcome


def read_response(expression: str, frame: pd.DataFrame, success: str | None, failure: str | None) -> Vector:
    """The response of new rows in the coding of the model."""
    if success is None or failure is None:
        return numbers(expression, frame)
    column = bare_column(expression)
    assert column is not None
    return match_categories(frame[column], expression, success, failure)


def check_additions(terms: Terms, family: Family) -> None:
    """Refuse additions to the response, and formulas of parameters, that the family has not.

    Raises
    ------
    ModelError
        With what the family has.
    """
    left = terms.response
    for name in terms.predictors:
        if name not in family.modelled:
            raise ModelError(_no_formula(name, family))
    if left.trials is not None and not family.takes_trials:
        mend = "write family='binomial'" if family.name == "bernoulli" else "remove it, or write family='binomial'"
        raise ModelError(
            f"trials({left.trials}) belongs to a binomial response, and the family is {family.name!r}; {mend}."
        )
    for kind, given in (("se", left.se), ("precision", left.precision)):
        if given is None:
            continue
        if family.name != "gaussian":
            raise ModelError(
                f"{kind}({given}) sets the variance of a gaussian response, and the family is {family.name!r}; "
                "remove it (weights(w) counts a row w times)."
            )
        if terms.predictors:
            raise ModelError(f"{kind}({given}) and a formula of sigma both set a row's variance; keep one of them.")


def _no_formula(name: str, family: Family) -> str:
    own = ", ".join(family.parameters) or "none of its own"
    if name in family.parameters:
        may = " and ".join(family.modelled)
        return f"{name!r} of the family {family.name!r} cannot have a formula; {may} can."
    if family.modelled:
        may = " and ".join(family.modelled)
        return (
            f"The family {family.name!r} has no parameter {name!r}; its parameters are {own}, of which {may} can have "
            f"a formula: pp.formula('y ~ x', {family.modelled[0]}='~ z')."
        )
    return (
        f"The family {family.name!r} has no parameter {name!r} (it has {own}), so that only its mean has a formula; "
        f"leave out {name}='...'."
    )


# ---- outcomes -----------------------------------------------------------------------------------------------------


def _category_column(expression: str, frame: pd.DataFrame) -> pd.Series[Any] | None:
    """The response where it is a column of categories or text."""
    column = bare_column(expression)
    if column is None or column_kind(frame[column]) not in ("category", "text"):
        return None
    return frame[column]


def _two_categories(column: pd.Series[Any], name: str, family: Family) -> tuple[str, str]:
    """(failure, success): the column's own order, else sorted; the second counts as success."""
    import pandas as pd

    categories = pd.Categorical(column).remove_unused_categories().categories.tolist()
    shown = ", ".join(repr(value) for value in categories[:6]) + (", ..." if len(categories) > 6 else "")
    if len(categories) > 2:
        raise DataError(
            f"The response {name!r} has {len(categories)} categories ({shown}), and the family {family.name!r} takes "
            f"two; choose the one that counts as success: {name} == {categories[1]!r} ~ ..."
        )
    if len(categories) < 2:
        raise DataError(
            f"The response {name!r} is {shown} in every row, so that there is nothing to learn about when it is not; "
            "check that rows of both outcomes are in the data."
        )
    return _label(categories[0]), _label(categories[1])


def _label(value: Any) -> str:
    """A category as text; a whole number that became a float next to missing values reads as before."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def match_categories(column: pd.Series[Any], name: str, success: str, failure: str) -> Vector:
    """1 for success, 0 for failure; categories match by their text."""
    import pandas as pd

    codes, uniques = pd.factorize(column)
    known = {success: 1.0, failure: 0.0}
    values = np.array([known.get(_label(value), np.nan) for value in uniques])
    y: Vector = values[codes]
    bad = np.flatnonzero(np.isnan(y))
    if len(bad):
        raise DataError(
            f"In {row_names(bad, column.index)}, the response {name!r} is {str(column.iloc[bad[0]])!r}, neither "
            f"{failure!r} nor {success!r}."
        )
    return y


def _trials(left: Response, y: Vector, frame: pd.DataFrame, family: Family) -> Vector | None:
    if not family.takes_trials:
        return None
    if left.trials is not None:
        return read_trials(left.trials, frame)
    name = left.expression
    if family.name == "binomial" and bool(np.isin(y, (0.0, 1.0)).all()):
        return np.ones(len(y))
    if bool(((y >= 0) & (y <= 1)).all()) and not bool((y == np.floor(y)).all()):
        size = left.weights or "n"
        raise DataError(
            f"The response {name!r} holds proportions, and the family {family.name!r} takes the number of events and "
            f"that of trials: write 'events | trials({size}) ~ ...', with events = {name} * {size}"
            + (", in the place of weights()." if left.weights else ".")
        )
    raise DataError(
        f"The family {family.name!r} needs the number of trials of each row: write '{name} | trials(n) ~ ...', with n "
        "a column or a number."
    )


def read_trials(expression: str, frame: pd.DataFrame) -> Vector:
    """The number of trials of each row: whole, and at least 1."""
    if len(frame):
        _refuse_gaps(expression, frame, "trials")
    values = _floats(row_values(expression, frame, "trials"), expression, frame)
    bad = np.flatnonzero((values < 1) | (values != np.floor(values)))
    if len(bad):
        raise DataError(
            f"trials({expression}) is {values[bad[0]]:.6g} in {_first_of(bad, frame.index)}; "
            "a number of trials is whole and at least 1 (drop rows without trials)."
        )
    return values


def _first_of(bad: NDArray[Any], index: pd.Index[Any]) -> str:
    """Rows in words, after a value that the first of them has."""
    where = row_names(bad, index)
    return where if len(bad) == 1 else f"the first of {where}"


def check_response(y: Vector, trials: Vector | None, index: pd.Index[Any], family: Family, name: str = "") -> None:
    """Refuse a response outside of the family's support, naming the first rows.

    name : the response in the formula; without it the new response of an old model is meant.
    """
    found = family.check(y, trials)
    if found is None or not found[0].any():
        return
    mask, sentence = found
    bad = np.flatnonzero(mask)
    of = "" if trials is None else f" of {trials[bad[0]]:.6g} trials"
    what = f"The response {name!r}" if name else "The new response"
    raise DataError(
        f"{what} is {y[bad[0]]:.6g}{of} in {_first_of(bad, index)}; {sentence.rstrip('.')}{_mend(y, name, family)}."
    )


def _mend(y: Vector, name: str, family: Family) -> str:
    """What a response outside of the family's support may be meant to be."""
    values, name = np.unique(y), name or "y"
    shares = bool(values[0] >= 0 and values[-1] <= 1)
    if family.name == "bernoulli" and shares:
        return " (proportions are modelled as 'events | trials(n) ~ ...' with family='binomial')"
    if family.name == "bernoulli" and len(values) == 2:
        return f" (write '{name} == {values[1]:g} ~ ...' to count {values[1]:g} as success)"
    if family.takes_trials and shares:
        return " (these look like proportions: multiply them by the trials)"
    if family.name == "beta" and shares:
        at = " and ".join(f"{end:g}" for end in (0, 1) if end in values)
        return f" (an exact {at} cannot be: move it inwards, or model the counts that it comes from)"
    return ""


def _check_constant(outcome: Outcome, name: str, family: Family) -> None:
    """A response from which nothing can be learned."""
    y = outcome.y
    if family.name in BINOMIAL:
        size = np.ones(len(y)) if outcome.trials is None else outcome.trials
        for none, word in ((not y.any(), "0"), (bool((y == size).all()), "1" if size.max() == 1 else "all trials")):
            if none:
                raise DataError(
                    f"The response {name!r} is {word} in every row, so that there is nothing to learn about what makes "
                    "a difference; check how it is coded, and that both outcomes are in the data."
                )
        return
    if family.discrete:
        return
    if len(y) == 1:
        raise DataError(f"There is one row only, so that nothing can be learned about how {name!r} varies.")
    if y.min() == y.max():
        raise DataError(f"The response {name!r} is constant, {y[0]:.6g} in every row; there is nothing to explain.")


# ---- numbers of a row ---------------------------------------------------------------------------------------------


def numbers(expression: str, frame: pd.DataFrame) -> Vector:
    """The response where it is numeric."""
    return _floats(row_values(expression, frame, "The response"), expression, frame)


def _floats(values: NDArray[Any], name: str, frame: pd.DataFrame) -> Vector:
    check_finite(values, name, frame.index)
    return np.ascontiguousarray(values, dtype=np.float64)


def read_offset(expressions: Sequence[str], frame: pd.DataFrame) -> Vector | None:
    """The sum of the offsets, or None where there is none."""
    total: Vector | None = None
    for expression in expressions:
        values = _floats(row_values(expression, frame, "The offset"), expression, frame)
        total = values if total is None else total + values
    return total


MENDS = {
    "se": "a standard error is above 0; if it is unknown, drop the row or leave out se()",
    "weights": "a weight is at least 0; to leave a row out, drop it",
    "precision": "a precision is above 0: it is 1 over a variance",
}


def read_positive(expression: str | None, frame: pd.DataFrame, kind: str) -> Vector | None:
    """Known standard errors, weights or precisions, checked."""
    if expression is None:
        return None
    if len(frame):
        _refuse_gaps(expression, frame, kind)
    values = _floats(row_values(expression, frame, kind), expression, frame)
    bad = np.flatnonzero(values < 0 if kind == "weights" else values <= 0)
    if len(bad):
        sign = "negative" if values[bad[0]] < 0 else "zero"
        raise DataError(f"{kind}({expression}) is {sign} in {row_names(bad, frame.index)}; {MENDS[kind]}.")
    if kind == "weights" and not values.any():
        raise DataError(f"weights({expression}) are 0 in every row, so that no row counts.")
    return values


def _refuse_gaps(expression: str, frame: pd.DataFrame, kind: str) -> None:
    for name in variables_of(expression):
        if (gaps := missing_values(frame[name])) is not None:
            raise DataError(f"{kind} {name!r} has no value in {row_names(np.flatnonzero(gaps), frame.index)}.")
