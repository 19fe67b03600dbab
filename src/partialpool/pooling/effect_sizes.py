"""Effect sizes of studies with their standard errors, from the columns that people have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.pooling.columns import Array, Column, Flags, Where, distinct, read_column, read_table, unit_names

if TYPE_CHECKING:
    import pandas as pd

Columns = Mapping[str, Array]
Effects = tuple[Array, Array]

#: What a measure is computed from, and the arguments that it needs; trials may be given as events and non-events.
INPUTS: dict[str, tuple[str, ...]] = {
    "table": ("events_treatment", "trials_treatment", "events_control", "trials_control"),
    "means": ("mean_treatment", "sd_treatment", "n_treatment", "mean_control", "sd_control", "n_control"),
    "correlation": ("r", "n"),
}
COUNTS = frozenset({"events", "nonevents", "trials", "n"})


def effect_sizes(
    measure: str,
    *,
    events_treatment: Any = None,
    trials_treatment: Any = None,
    nonevents_treatment: Any = None,
    events_control: Any = None,
    trials_control: Any = None,
    nonevents_control: Any = None,
    mean_treatment: Any = None,
    sd_treatment: Any = None,
    n_treatment: Any = None,
    mean_control: Any = None,
    sd_control: Any = None,
    n_control: Any = None,
    r: Any = None,
    n: Any = None,
    units: Any = None,
    data: Any = None,
    correction: float = 0.5,
) -> pd.DataFrame:
    """Effect size and standard error of each study, ready for ``pp.pool("estimate", se="se", data=...)``.

    Treatment stands before control throughout: a ratio below 1 and a negative difference mean less under treatment.

    Parameters
    ----------
    measure : one of

        - ``"risk ratio"`` (``"RR"``): log(p1 / p2), variance 1/a - 1/n1 + 1/c - 1/n2, with a and c the events;
        - ``"odds ratio"`` (``"OR"``): log of the odds ratio, variance 1/a + 1/b + 1/c + 1/d (Woolf);
        - ``"risk difference"`` (``"RD"``): p1 - p2, variance p1 (1 - p1)/n1 + p2 (1 - p2)/n2;
        - ``"mean difference"`` (``"MD"``): variance sd1²/n1 + sd2²/n2;
        - ``"standardised mean difference"`` (``"SMD"``): Hedges' g = J(m) (mean1 - mean2) / pooled sd with
          m = n1 + n2 - 2 and the exact J(m) = Γ(m/2) / (sqrt(m/2) Γ((m - 1)/2)); the variance is the unbiased one of
          small samples, 1/n1 + 1/n2 + (1 - (m - 2) / (m J²)) g² (Hedges, 1983; ``vtype="UB"`` in metafor);
        - ``"correlation"`` (``"ZCOR"``): Fisher's z = artanh(r), variance 1/(n - 3).
    events_treatment, trials_treatment, events_control, trials_control : for the first three. Instead of trials,
        nonevents_treatment and nonevents_control may be given.
    mean_treatment, sd_treatment, n_treatment, mean_control, sd_control, n_control : for differences of means.
    r, n : for correlations: the correlation and the number of pairs.
    units : the studies' names, for a column ``unit``; from the index of a pandas frame if that holds names.
    data : any data frame; then the other arguments may be names of its columns. Else they are arrays or numbers.
    correction : added to all four cells of the tables that have an empty one, and to no other.

    Returns
    -------
    DataFrame with the columns unit (where studies have names), estimate and se. ``frame.attrs["notes"]`` holds
    sentences on corrected tables and on studies that were left out.

    Raises
    ------
    ModelError
        If the measure is unknown, or is given arguments that it does not need or too few.
    DataError
        If a study's numbers are impossible; the message names it.

    Examples
    --------
    >>> import partialpool as pp
    >>> frame = pp.effect_sizes(
    ...     "RR",
    ...     events_treatment=[4, 6],
    ...     trials_treatment=[123, 306],
    ...     events_control=[11, 29],
    ...     trials_control=[139, 303],
    ... )
    >>> frame["estimate"].round(4).tolist()
    [-0.8893, -1.5854]
    """
    import pandas as pd

    given = {
        name: value for name, value in locals().items() if name not in _OTHERS and name != "pd" and value is not None
    }
    name, kind, function = _measure(measure)
    _check_arguments(name, kind, given)
    if not 0.0 <= correction < np.inf:
        raise ModelError(f"The correction of empty cells is a number of 0 or more, such as 0.5; got {correction!r}.")
    table = read_table(data, [*given.values(), units])
    columns, index = _read(given, table)
    size = len(next(iter(columns.values())))
    names, missing_names = unit_names(units, table, index, size)
    labels = np.arange(size) if names is None else names
    keep, notes = _complete(columns, missing_names)
    labels, columns = labels[keep], {key: values[keep] for key, values in columns.items()}
    where = Where(labels, names is not None)
    _check_counts(columns, where)
    if kind == "table":
        cells = _cells(columns, where)
        cells, kept, more = _corrected(name, cells, correction, where)
        labels, where, notes = labels[kept], Where(labels[kept], names is not None), notes + more
        estimate, se = function(cells)
    else:
        estimate, se = function(columns, where)
    _check_result(name, estimate, se, where)
    if names is not None and not distinct(labels):
        notes.append("Some studies share a name; pp.pool needs one for each, such as author and year.")
    content = ({} if names is None else {"unit": labels}) | {"estimate": estimate, "se": se}
    frame = pd.DataFrame(content)
    frame.attrs.update(measure=name, notes=tuple(notes))
    return frame


_OTHERS = frozenset({"measure", "units", "data", "correction"})


# ---- reading ------------------------------------------------------------------------------------------------------


def _measure(measure: str) -> tuple[str, str, Callable[..., Effects]]:
    """A measure's full name, what it is computed from and how."""
    text = " ".join(str(measure).casefold().replace("_", " ").split()).replace("standardized", "standardised")
    text = text.removeprefix("log ")
    for name, (abbreviation, kind, function) in _MEASURES.items():
        if text in (name, abbreviation):
            return name, kind, function
    shown = ", ".join(f"{name!r} ({abbreviation.upper()})" for name, (abbreviation, _, _) in _MEASURES.items())
    near = did_you_mean(str(measure), _MEASURES)
    near = f" {near}" if near.startswith("Did") else ""
    raise ModelError(f"There is no effect size {measure!r}.{near} There are: {shown}.")


def _check_arguments(name: str, kind: str, given: Mapping[str, Any]) -> None:
    needed = list(INPUTS[kind])
    if kind == "table":
        for arm in ("treatment", "control"):
            if f"nonevents_{arm}" in given:
                if f"trials_{arm}" in given:
                    raise ModelError(f"Give trials_{arm} or nonevents_{arm}, not both: one follows from the other.")
                needed[needed.index(f"trials_{arm}")] = f"nonevents_{arm}"
    absent = [argument for argument in needed if argument not in given]
    surplus = [argument for argument in given if argument not in needed]
    if absent or surplus:
        other = " (or nonevents_... instead of trials_...)" if kind == "table" else ""
        problem = f"{', '.join(absent)} is not given" if absent else f"{', '.join(surplus)} is given too"
        raise ModelError(f"The {name} needs {', '.join(INPUTS[kind])}{other}, and {problem}.")


def _read(given: Mapping[str, Any], table: pd.DataFrame | None) -> tuple[dict[str, Array], Any]:
    """The arguments as columns of one length, and the pandas index they share."""
    read = {name: read_column(value, name, table) for name, value in given.items()}
    lengths = {name: len(column.values) for name, column in read.items() if not column.scalar}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"The arguments differ in length: {counts}. Give one value of each for every study.")
    rows = next(iter(lengths.values()), 1)
    if rows == 0:
        raise DataError("The data are empty: there are no studies.")
    columns = {
        name: np.full(rows, column.values[0]) if column.scalar else column.values for name, column in read.items()
    }
    return columns, _index(list(read.values()))


def _index(columns: Sequence[Column]) -> Any:
    indexes = [column.index for column in columns if column.index is not None]
    if any(not indexes[0].equals(other) for other in indexes[1:]):
        raise DataError(
            "The arguments have different pandas indexes, so that it is unclear which values belong together; "
            "put them into one frame, or drop the indexes with .to_numpy()."
        )
    return indexes[0] if indexes else None


def _complete(columns: Columns, missing_names: Flags | None) -> tuple[Flags, list[str]]:
    gaps = {name: np.isnan(values) for name, values in columns.items()}
    if missing_names is not None:
        gaps["units"] = missing_names
    missing = np.logical_or.reduce(list(gaps.values()))
    if not missing.any():
        return ~missing, []
    shown = ", ".join(f"{name} {int(gap.sum())}" for name, gap in gaps.items() if gap.any())
    if missing.all():
        raise DataError(f"Every study has a missing value ({shown}), so that none is left.")
    count = int(missing.sum())
    return ~missing, [f"{_studies(count)} left out for missing values ({shown})."]


def _studies(count: int) -> str:
    return "1 study was" if count == 1 else f"{count} studies were"


# ---- checks -------------------------------------------------------------------------------------------------------


def _refuse(bad: NDArray[np.bool_], where: Where, what: str) -> None:
    if bad.any():
        raise DataError(f"In {where(bad)}, {what}.")


def _check_counts(columns: Columns, where: Where) -> None:
    for name, values in columns.items():
        _refuse(np.isinf(values), where, f"{name} is infinite")
        if name.partition("_")[0] in COUNTS:
            _refuse(values < 0.0, where, f"{name} is negative; counts are 0 or more")
            _refuse(values != np.floor(values), where, f"{name} is not a whole number")


def _check_result(name: str, estimate: Array, se: Array, where: Where) -> None:
    """A table without correction may leave nothing to compute."""
    bad = ~np.isfinite(estimate) | ~np.isfinite(se) | (se <= 0.0)
    _refuse(bad, where, f"an empty cell leaves the {name} or its standard error undefined; let correction be 0.5")


def _cells(columns: Columns, where: Where) -> Array:
    """(4, k): events and non-events under treatment, then under control."""
    parts = []
    for arm in ("treatment", "control"):
        events = columns[f"events_{arm}"]
        if f"nonevents_{arm}" in columns:
            others = columns[f"nonevents_{arm}"]
        else:
            others = columns[f"trials_{arm}"] - events
            _refuse(others < 0.0, where, f"events_{arm} are more than trials_{arm}")
        _refuse(events + others == 0.0, where, f"there are no trials under {arm}; leave out the study")
        parts += [events, others]
    return np.array(parts)


def _corrected(name: str, cells: Array, correction: float, where: Where) -> tuple[Array, Flags, list[str]]:
    """The tables that tell something, with the empty cells mended; which these are; and notes."""
    a, b, c, d = cells
    silent = np.zeros(len(a), dtype=bool)
    reason = "no events in either arm"
    if name in ("risk ratio", "odds ratio"):
        silent = (a == 0.0) & (c == 0.0)
    if name == "odds ratio":
        full = (b == 0.0) & (d == 0.0)
        reason = "no events in either arm, or only events" if full.any() else reason
        silent |= full
    notes = []
    if silent.any():
        if silent.all():
            raise DataError(f"Every study has {reason}: that tells nothing of a {name}; take the risk difference.")
        left_out = where(silent)
        notes.append(
            f"{left_out[0].upper() + left_out[1:]} {'was' if int(silent.sum()) == 1 else 'were'} left out: "
            f"{reason} tell{'s' if 'only' not in reason else ''} nothing of a {name}."
        )
    cells = cells[:, ~silent]
    empty = (cells == 0.0).any(axis=0)
    if empty.any() and correction > 0.0:
        shown = Where(where.names[~silent], where.named)(empty)
        cells = np.where(empty, cells + correction, cells)
        notes.append(
            f"{correction:g} was added to all four cells of {shown}, which had an empty one: the estimate leans on it "
            "where events are rare."
        )
    return cells, ~silent, notes


# ---- measures -----------------------------------------------------------------------------------------------------


def _risk_ratio(cells: Array) -> Effects:
    a, b, c, d = cells
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = np.log(a / (a + b)) - np.log(c / (c + d))
        # 1/a - 1/n1 without its cancellation
        variance = b / (a * (a + b)) + d / (c * (c + d))
    return estimate, np.sqrt(variance)


def _odds_ratio(cells: Array) -> Effects:
    a, b, c, d = cells
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(a) - np.log(b) - np.log(c) + np.log(d), np.sqrt((1.0 / cells).sum(axis=0))


def _risk_difference(cells: Array) -> Effects:
    a, b, c, d = cells
    n1, n2 = a + b, c + d
    return a / n1 - c / n2, np.sqrt(a * b / n1**3 + c * d / n2**3)


def _check_means(columns: Columns, where: Where) -> None:
    for arm in ("treatment", "control"):
        _refuse(columns[f"sd_{arm}"] <= 0.0, where, f"sd_{arm} is not positive")
        _refuse(columns[f"n_{arm}"] < 2.0, where, f"n_{arm} is below 2, and one value has no sd")


def _mean_difference(columns: Columns, where: Where) -> Effects:
    _check_means(columns, where)
    variances = [columns[f"sd_{arm}"] ** 2 / columns[f"n_{arm}"] for arm in ("treatment", "control")]
    return columns["mean_treatment"] - columns["mean_control"], np.sqrt(variances[0] + variances[1])


def _standardised_mean_difference(columns: Columns, where: Where) -> Effects:
    from scipy.special import poch

    _check_means(columns, where)
    n1, n2 = columns["n_treatment"], columns["n_control"]
    m = n1 + n2 - 2.0
    pooled = np.sqrt(((n1 - 1.0) * columns["sd_treatment"] ** 2 + (n2 - 1.0) * columns["sd_control"] ** 2) / m)
    # J(m), with the ratio of two gamma functions as one rising factorial
    exact = poch((m - 1.0) / 2.0, 0.5) / np.sqrt(m / 2.0)
    g = exact * (columns["mean_treatment"] - columns["mean_control"]) / pooled
    return g, np.sqrt(1.0 / n1 + 1.0 / n2 + (1.0 - (m - 2.0) / (m * exact**2)) * g**2)


def _correlation(columns: Columns, where: Where) -> Effects:
    _refuse(np.abs(columns["r"]) >= 1.0, where, "r is not strictly between -1 and 1")
    _refuse(columns["n"] <= 3.0, where, "n is below 4, and Fisher's z has the variance 1/(n - 3)")
    return np.arctanh(columns["r"]), 1.0 / np.sqrt(columns["n"] - 3.0)


#: Full name -> abbreviation, kind of input, and the function that computes it.
_MEASURES: dict[str, tuple[str, str, Callable[..., Effects]]] = {
    "risk ratio": ("rr", "table", _risk_ratio),
    "odds ratio": ("or", "table", _odds_ratio),
    "risk difference": ("rd", "table", _risk_difference),
    "mean difference": ("md", "means", _mean_difference),
    "standardised mean difference": ("smd", "means", _standardised_mean_difference),
    "correlation": ("zcor", "correlation", _correlation),
}
