"""Data frames as text for terminals and as HTML for notebooks, with as many digits as the estimates deserve.

A posterior mean is given to the second significant digit of its sd: further digits are noise. The decimals of a row
follow from its sd (or se); rows of one group term share them, so that its groups can be compared down the column.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

#: Columns on the scale of the row's own sd, and those that have a format of their own.
ESTIMATES = frozenset({
    "mean", "sd", "q05", "q50", "q95", "no_pooling", "partial", "complete", "estimate", "se", "median", "mode",
})  # fmt: skip
COUNTS = frozenset({"ess", "n"})
RATIOS = frozenset({"rhat", "shrinkage"})
#: What a heading of an estimate may begin with where a table holds two kinds of them.
POSTERIOR = "posterior "
PROBABILITIES = frozenset({"p", "p_adjusted", "positive"})
MAX_DECIMALS = 6
LARGEST_ESS = 1e6  # above this an effective sample size tells nothing more
LARGEST = 1e9  # from here on numbers are written as 1.23e+09
FIGURE_SPACE, PUNCTUATION_SPACE = "\u2007", "\u2008"


@dataclass(frozen=True)
class Column:
    """One column ready to be laid out: its heading, its cells as text, and whether they are numbers."""

    heading: str
    cells: tuple[str, ...]
    numeric: bool

    @property
    def left(self) -> int:
        """The longest part before the decimal point."""
        return max((len(_split(cell)[0]) for cell in self.cells), default=0)

    @property
    def right(self) -> int:
        """The longest part from the decimal point on."""
        return max((len(_split(cell)[1]) for cell in self.cells), default=0)


def summary_text(frame: pandas.DataFrame, *, max_rows: int | None = None) -> str:
    """A data frame as lines of text, numbers aligned on the decimal point.

    Parameters
    ----------
    frame : data frame
        As `fit.summary()` or `fit.groups()` give it, or any other.
    max_rows : int, optional
        Show no more rows than this: the first and the last, with the number left out between them.

    Examples
    --------
    >>> import pandas
    >>> index = pandas.Index(["Intercept", "Days"], name="parameter")
    >>> print(summary_text(pandas.DataFrame({"mean": [251.4083, 10.4671], "sd": [7.2312, 1.6204]}, index=index)))
    parameter   mean   sd
    Intercept  251.4  7.2
    Days        10.5  1.6
    """
    shown, left_out = _shorten(frame, max_rows)
    columns = columns_of(shown)
    blocks = [_aligned(column) for column in columns]
    rows = [list(row) for row in zip(*blocks, strict=True)]
    lines = ["  ".join(row).rstrip() for row in rows]
    if left_out:
        lines.insert(1 + (len(shown) + 1) // 2, f"... {left_out:,} more rows ...")
    return "\n".join(lines)


def summary_html(frame: pandas.DataFrame, *, max_rows: int | None = None) -> str:
    """A data frame as an HTML table for notebooks; see :func:`summary_text`."""
    shown, left_out = _shorten(frame, max_rows)
    columns = columns_of(shown)
    style = {True: "text-align:right;font-variant-numeric:tabular-nums;white-space:pre", False: "text-align:left"}
    head = "".join(f"<th style='{style[column.numeric]}'>{escape(column.heading)}</th>" for column in columns)
    lines = []
    for row in range(len(shown)):
        if left_out and row == (len(shown) + 1) // 2:
            lines.append(f"<tr><td colspan='{len(columns)}'>{left_out:,} more rows</td></tr>")
        cells = (f"<td style='{style[column.numeric]}'>{escape(_html_cell(column, row))}</td>" for column in columns)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def columns_of(frame: pandas.DataFrame) -> list[Column]:
    """The index (unless it only counts rows) and the columns of a data frame, formatted."""
    decimals = row_decimals(frame)
    columns = []
    plain = len(frame.index.names) == 1 and frame.index.name is None and _counts_rows(frame)
    if not plain:
        for level, name in enumerate(frame.index.names):
            labels = tuple(str(value) for value in frame.index.get_level_values(level))
            columns.append(Column("" if name is None else str(name), labels, False))
    for position, heading in enumerate(frame.columns):
        values = frame.iloc[:, position]
        columns.append(_column(heading, values.tolist(), decimals, _is_numeric(values)))
    return columns


def row_decimals(frame: pandas.DataFrame) -> list[int | None]:
    """By row, how many decimals its estimates deserve; None where there is no sd to tell."""
    scales = [name for name in ("sd", "se") if name in frame.columns]
    if not scales:
        return [None] * len(frame)
    sds = [float(value) for value in frame[scales].bfill(axis=1).iloc[:, 0]]
    if "term" not in frame.columns:
        return [decimals_for(sd) for sd in sds]
    by_term: dict[str, list[float]] = {}
    for term, sd in zip(frame["term"], sds, strict=True):
        by_term.setdefault(str(term), []).append(sd)
    shared = {term: decimals_for(_median(values)) for term, values in by_term.items()}
    return [shared[str(term)] for term in frame["term"]]


def decimals_for(sd: float) -> int | None:
    """The decimals that show two significant digits of an sd; None where it is zero, missing or infinite.

    Examples
    --------
    >>> decimals_for(7.23), decimals_for(0.0316), decimals_for(140.0)
    (1, 3, 0)
    """
    if not math.isfinite(sd) or sd <= 0:
        return None
    return min(MAX_DECIMALS, max(0, 1 - math.floor(math.log10(sd * (1 + 1e-9)))))


def number(value: float, decimals: int | None) -> str:
    """A number with so many decimals, or with four significant digits where these are not known; blank for nan."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    small = decimals == MAX_DECIMALS and 0 < abs(value) < 10.0**-MAX_DECIMALS
    if abs(value) >= LARGEST or small:
        return f"{value:.3g}"
    if decimals is None:
        decimals = 0 if value == 0 else min(MAX_DECIMALS, max(0, 3 - math.floor(math.log10(abs(value)))))
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def listed(words: Sequence[object], word: str = "and") -> str:
    """Words as a sentence lists them.

    Examples
    --------
    >>> listed(["a", "b", "c"]), listed([3, 4], "or"), listed(["a"])
    ('a, b and c', '3 or 4', 'a')
    """
    texts = [str(text) for text in words]
    return f"{', '.join(texts[:-1])} {word} {texts[-1]}" if len(texts) > 1 else "".join(texts)


def _column(heading: Hashable, values: Sequence[Any], decimals: Sequence[int | None], numeric: bool) -> Column:
    name = str(heading)
    if not numeric:
        return Column(name, tuple("" if _missing(value) else str(value) for value in values), False)
    numbers = [math.nan if _missing(value) else float(value) for value in values]
    whole = all(value.is_integer() for value in numbers if math.isfinite(value))
    if name in COUNTS or (whole and name.removeprefix(POSTERIOR) not in ESTIMATES):
        cells = tuple(_count(x, LARGEST_ESS if name == "ess" else math.inf) for x in numbers)
    elif name in RATIOS or name in PROBABILITIES:
        cells = tuple(number(x, 2 if name in RATIOS else 3) for x in numbers)
    elif name.removeprefix(POSTERIOR) in ESTIMATES and any(places is not None for places in decimals):
        cells = tuple(number(x, places) for x, places in zip(numbers, decimals, strict=True))
    else:
        cells = tuple(number(x, _common_decimals(numbers)) for x in numbers)
    return Column(name, cells, True)


def _count(value: float, largest: float) -> str:
    if not math.isfinite(value):
        return number(value, 0)
    return f">{largest:,.0f}" if value > largest else f"{value:,.0f}"


def _common_decimals(numbers: Sequence[float]) -> int | None:
    """Decimals that show four significant digits of the largest of a column, and at least two of the typical one."""
    sizes = sorted(abs(x) for x in numbers if math.isfinite(x) and x != 0)
    if not sizes:
        return 0
    largest = 3 - math.floor(math.log10(sizes[-1]))
    typical = 1 - math.floor(math.log10(sizes[len(sizes) // 2]))
    return min(MAX_DECIMALS, max(0, largest, typical))


def _split(cell: str) -> tuple[str, str]:
    """A number's text before its decimal point, and from it on."""
    at = cell.find(".")
    return (cell, "") if at < 0 or "e" in cell else (cell[:at], cell[at:])


def _aligned(column: Column) -> list[str]:
    """Heading and cells, all of one width."""
    if column.numeric:
        left, right = column.left, column.right
        cells = [f"{before.rjust(left)}{after.ljust(right)}" for before, after in map(_split, column.cells)]
        width = max(len(column.heading), left + right)
        return [text.rjust(width) for text in (column.heading, *cells)]
    width = max(len(text) for text in (column.heading, *column.cells))
    return [text.ljust(width) for text in (column.heading, *column.cells)]


def _html_cell(column: Column, row: int) -> str:
    """A cell padded on its right, so that decimal points meet when the cells are set flush right."""
    cell = column.cells[row]
    if not column.numeric or not cell:
        return cell
    before, after = _split(cell)
    missing = column.right - len(after)
    point = PUNCTUATION_SPACE if missing and not after else ""
    return f"{before}{after}{point}{FIGURE_SPACE * (missing - len(point))}"


def _shorten(frame: pandas.DataFrame, max_rows: int | None) -> tuple[pandas.DataFrame, int]:
    if max_rows is None or len(frame) <= max_rows:
        return frame, 0
    import pandas

    first = (max_rows + 1) // 2
    last = max_rows - first
    return pandas.concat([frame.iloc[:first], frame.iloc[len(frame) - last :]]), len(frame) - max_rows


def _counts_rows(frame: pandas.DataFrame) -> bool:
    import pandas

    return isinstance(frame.index, pandas.RangeIndex) or frame.index.dtype.kind in "iu"


def _is_numeric(values: pandas.Series[Any]) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(values) and not is_bool_dtype(values)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value) in ("<NA>", "NaT")


def _median(values: Sequence[float]) -> float:
    known = sorted(value for value in values if math.isfinite(value) and value > 0)
    return known[len(known) // 2] if known else math.nan
