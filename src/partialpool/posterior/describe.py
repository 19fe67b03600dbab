"""A fit in words: what stands in the terminal, and in a notebook."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

#: Rows of the table shown; `summary` has them all.
MOST_ROWS = 40
#: Seconds (estimated) of extra work that showing a fit may cost.
CHEAP = 0.05
CHEAP_QUADRATURE = 0.5
#: Above this an effective sample size tells nothing more.
LARGEST_ESS = 1e6


def as_text(fit: Posterior) -> str:
    """`Posterior.__repr__`."""
    lines = [*_heading(fit), "", *_table_lines(fit), ""]
    lines += [*_shrinkage_lines(fit), *_accuracy_lines(fit), *_notes(fit)]
    return "\n".join(lines)


def as_html(fit: Posterior) -> str:
    """`Posterior._repr_html_`."""
    heading = _heading(fit)
    table = fit.summary()
    cells = _rounded(table.head(MOST_ROWS))
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in ["", *table.columns])
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(str(name))}</th>'
        + "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in row)
        + "</tr>"
        for name, row in zip(table.index, cells, strict=False)
    )
    more = _more(table)
    below = [*more, *_shrinkage_lines(fit), *_accuracy_lines(fit), *_notes(fit)]
    return (
        f"<div><p><b>{html.escape(heading[0])}</b><br>{'<br>'.join(html.escape(line) for line in heading[1:])}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{'<br>'.join(html.escape(line) for line in below)}</p></div>"
    )


def _heading(fit: Posterior) -> list[str]:
    design = fit.model.design
    factors = ", ".join(f"{factor.name} {len(factor.labels):,}" for factor in design.factors) or "no groups"
    counted = f"; {design.success!r} counts as success" if design.success is not None else ""
    return [f"Posterior of {design.terms.formula}", f"{design.n_rows:,} rows; {factors}; {fit.model.family}{counted}"]


def _more(table: pandas.DataFrame) -> list[str]:
    left = len(table) - MOST_ROWS
    return [f"... and {left} more parameters: fit.summary()"] if left > 0 else []


def _table_lines(fit: Posterior) -> list[str]:
    table = fit.summary()
    cells = [[str(column) for column in table.columns], *_rounded(table.head(MOST_ROWS))]
    names = ["", *(str(name) for name in table.index[:MOST_ROWS])]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    left = max(len(name) for name in names)
    lines = [
        name.ljust(left) + "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for name, row in zip(names, cells, strict=True)
    ]
    return [line.rstrip() for line in lines] + _more(table)


def _rounded(table: pandas.DataFrame) -> list[list[str]]:
    """Cells with as many decimals as the sd deserves: two of its digits."""
    out = []
    for values in table.to_numpy(dtype=float):
        row = []
        decimals = decimals_for(values[list(table.columns).index("sd")])
        for column, value in zip(table.columns, values, strict=True):
            if column == "ess":
                row.append(f">{LARGEST_ESS:,.0f}" if value > LARGEST_ESS else f"{value:,.0f}")
            elif column == "rhat":
                row.append(f"{value:.3f}")
            else:
                row.append(_number(value, decimals))
        out.append(row)
    return out


def decimals_for(sd: float) -> int:
    """Decimals that show two significant digits of `sd`."""
    if not math.isfinite(sd) or sd <= 0:
        return 3
    return max(0, 1 - math.floor(math.log10(sd)))


def _number(value: float, decimals: int) -> str:
    if decimals > 8 or abs(value) >= 1e7:
        return f"{value:.4g}"
    return f"{value:.{decimals}f}"


def _shrinkage_lines(fit: Posterior) -> list[str]:
    from partialpool.posterior.groups import factor_terms, seconds_per_node, shrinkage_factors

    factors = fit.model.design.factors
    if not factors:
        return []
    known = "_shrinkage" in fit.__dict__
    limit = CHEAP if fit.model.exact else CHEAP_QUADRATURE
    cheap = seconds_per_node(fit) * len(fit.result.theta) < limit and not _needs_rows(fit)
    if not (known or cheap):
        return []
    lines = []
    for position, factor in enumerate(factors):
        share = shrinkage_factors(fit, position)
        for column, term in enumerate(factor_terms(fit.model.design, position)):
            low, high = float(np.min(share[:, column])), float(np.max(share[:, column]))
            amount = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
            lines.append(f"Shrinkage of {term} by {factor.name}: {amount}")
    return [*lines, "(0: each group keeps its own estimate, 1: it takes the population's)", ""]


def _needs_rows(fit: Posterior) -> bool:
    """Whether the moments of effects need rows that a fit saved without its data lacks."""
    design = fit.model.design
    wanted = not fit.model.exact or (design.se is not None and design.se_sigma)
    return wanted and len(design.y) != design.n_rows


def _accuracy_lines(fit: Posterior) -> list[str]:
    accuracy = fit.accuracy
    parts = []
    if accuracy.ess:
        worst = min(accuracy.ess, key=lambda name: accuracy.ess[name])
        parts.append(f"effective sample size at least {accuracy.ess[worst]:,.0f} ({worst})")
    if accuracy.pareto_k is not None and math.isfinite(accuracy.pareto_k):
        parts.append(f"Pareto k {accuracy.pareto_k:.2f}")
    if accuracy.rhat:
        parts.append(f"R-hat at most {max(accuracy.rhat.values()):.3f}")
    if accuracy.divergences:
        parts.append(f"{accuracy.divergences} divergences")
    checks = "; ".join(parts)
    verdict = "every check passed" if accuracy.trusted else "NOT to be relied on: see fit.accuracy"
    middle = f"{checks[0].upper()}{checks[1:]};" if checks else ""
    reason = accuracy.reason.rstrip()
    reason = reason if reason.endswith(".") or not reason else reason + "."
    reason = reason[:1].upper() + reason[1:]
    return [line for line in (reason, f"{middle} {verdict}.".strip()) if line]


def _notes(fit: Posterior) -> list[str]:
    design = fit.model.design
    notes = []
    if design.n_dropped:
        by = ", ".join(f"{name} {count:,}" for name, count in design.dropped_by.items())
        rows = "row was" if design.n_dropped == 1 else "rows were"
        notes.append(f"Note: {design.n_dropped:,} {rows} dropped for missing values ({by}).")
    if len(design.y) != design.n_rows:
        notes.append("Note: this fit was saved without its rows.")
    return notes + [f"Note: {note}" for note in fit.accuracy.notes]
