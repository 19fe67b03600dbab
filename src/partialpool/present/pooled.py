"""A Pooled in words: what stands in the terminal, and in a notebook."""

from __future__ import annotations

import html
from typing import Any

from partialpool.present.tables import summary_html, summary_text

#: Units shown; `table` has them all.
MOST_UNITS = 12
#: Above so many units the table is not made only to be shown.
MANY = 20_000

NAMES = {"normal": "estimates with standard errors", "binomial": "events in trials", "poisson": "counts over exposures"}
METHODS = {"bayes": "full Bayes", "empirical_bayes": "empirical Bayes", "fixed": "known population"}
COLUMNS = ["unit", "raw", "mean", "sd", "q05", "q95", "weight"]


def as_text(pooled: Any) -> str:
    """`Pooled.__repr__`."""
    lines = [*_heading(pooled), "", summary_text(pooled.summary()), ""]
    if pooled.units.n <= MANY:
        lines += [summary_text(_shown(pooled), max_rows=MOST_UNITS), ""]
    return "\n".join(lines + _sentences(pooled))


def as_html(pooled: Any) -> str:
    """`Pooled._repr_html_`."""
    heading = _heading(pooled)
    tables = summary_html(pooled.summary())
    if pooled.units.n <= MANY:
        tables += summary_html(_shown(pooled), max_rows=MOST_UNITS)
    below = "<br>".join(html.escape(line) for line in _sentences(pooled))
    return f"<div><p><b>{html.escape(heading[0])}</b><br>{html.escape(heading[1])}</p>{tables}<p>{below}</p></div>"


def _heading(pooled: Any) -> list[str]:
    kind = pooled.population.kind.replace("_", " ")
    label = f" ({pooled.units.label})" if pooled.units.label else ""
    return [
        f"Partial pooling of {pooled.units.n:,} unit{'s' if pooled.units.n > 1 else ''}: {NAMES[pooled.family]}{label}",
        f"Population: {kind}; {METHODS[pooled.method]}",
    ]


def _shown(pooled: Any) -> Any:
    frame = pooled.table
    wanted = [*COLUMNS, *[name for name in ("bayes_q05", "bayes_q95") if name in frame]]
    return frame[wanted].set_index("unit")


def _sentences(pooled: Any) -> list[str]:
    low, high = pooled.population.prediction_interval(0.9)
    where = " at the mean of the covariates" if pooled.units.X is not None else ""
    out = [f"A new unit{where} lies between {low:.4g} and {high:.4g} with probability 90%."]
    if pooled.units.X is None:
        out.append(f"Complete pooling would give every unit {pooled.complete_pooling:.4g}.")
    accuracy = pooled.accuracy
    reason = accuracy.reason[:1].upper() + accuracy.reason[1:]
    exact = "exact" if accuracy.error == 0 else f"measured error {accuracy.error:.1g}"
    verdict = "" if accuracy.trusted else " NOT to be relied on: see .accuracy."
    out.append(f"{reason}; {exact}.{verdict}")
    return out + [f"Note: {note}" for note in accuracy.notes]
