"""The parts of the benchmark that pool one row a unit: `pp.pool`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.data import find
from benchmarks.gather import cpu_note, gather
from benchmarks.pool_cases import FAMILIES, SMALL, WARM_UP
from benchmarks.process import run_case
from benchmarks.report import Report, Row

#: By family: what the units are, and the conjugate population.
TOLD = {
    "normal": ("estimates with standard errors", "normal"),
    "binomial": ("events in trials", "beta"),
    "poisson": ("counts over exposures", "gamma"),
}
SMALL_TOLD = {
    "tumors": "rat tumours, 71 groups, hyperprior (alpha + beta)^(-5/2)",
    "eight_schools": "eight schools",
    "bball1970": "baseball 1970, 18 batters",
}


def _note(runs: list[dict[str, Any]], note: str) -> str:
    if not runs:
        return note
    last = runs[-1]
    notes = [
        f"pool {last['pool_seconds']:.2f} s and table {last['table_seconds']:.2f} s in the last run",
        cpu_note([run["cpu_seconds"] for run in runs]),
        f"measured error {max(run['error'] for run in runs):.1g}",
    ]
    if not all(run["trusted"] for run in runs):
        notes.append("**not trusted by its own checks**")
    return ", ".join([*notes, note] if note else notes)


def pool_million(report: Report, quick: bool) -> None:
    """1,000,000 units, full Bayes, conjugate population, table made: each family in processes of its own."""
    for family in FAMILIES:
        units, population = TOLD[family]
        runs, note = gather(lambda f=family: run_case("pool_million", family=f), 2 if quick else 5)
        name = (
            f"`pp.pool`, 1,000,000 {units}, {population} population, full Bayes, table made; second call in a process, "
            f"after one of {WARM_UP:,} units"
        )
        report.rows.append(Row(name, "<= 2 s", "s", [run["seconds"] for run in runs], 2, _note(runs, note)))
        began = f"{runs[-1]['before_gb']:.2f} GB before the call, data included" if runs else note
        report.rows.append(Row("the same, peak memory", "<= 1 GB", "GB", [run["peak_gb"] for run in runs], 1, began))
        report.details[f"pool 1,000,000 {family}"] = runs[-1:]


def pool_shrinkage(report: Report, quick: bool) -> None:
    """1,000,000 estimates, adaptive shrinkage by empirical Bayes, table made."""
    runs, note = gather(
        lambda: run_case("pool_million", family="normal", population="scale_mixture"), 1 if quick else 3
    )
    name = (
        "`pp.pool`, 1,000,000 estimates, 90% null, scale mixture by empirical Bayes, table made; second call in a "
        f"process, after one of {WARM_UP:,} units"
    )
    report.rows.append(Row(name, "<= 20 s", "s", [run["seconds"] for run in runs], 20, _note(runs, note)))
    report.rows.append(Row("the same, peak memory", "", "GB", [run["peak_gb"] for run in runs]))
    report.details["pool 1,000,000 scale mixture"] = runs[-1:]


def pool_npmle(report: Report, quick: bool) -> None:
    """The non-parametric population of 10,000 units: seconds, and the gap as the benchmark measures it."""
    for family in FAMILIES:
        runs, note = gather(lambda f=family: run_case("pool_npmle", family=f), 1 if quick else 3)
        units, population = TOLD[family]
        if runs:
            last = runs[-1]
            note = f"{last['points']} points, and {last['table_seconds']:.2f} s more for the table"
        name = f"`pp.pool`, 10,000 {units} from a {population} population, NPMLE; second call in a process"
        report.rows.append(Row(name, "", "s", [run["seconds"] for run in runs], None, note))
        gaps = [1e6 * run["gap"] for run in runs]
        told = (
            f"it says itself {1e6 * runs[-1]['gap_told']:.3g}; measured anew by scipy's densities on "
            f"{runs[-1]['grid']:,} places, each maximum followed"
            if runs
            else ""
        )
        name = "the same, Karush-Kuhn-Tucker gap in millionths, over all places"
        report.rows.append(Row(name, "<= 1 (a gap of 1e-6)", "", gaps, 1, told))
        report.details[f"pool NPMLE {family}"] = runs[-1:]


def pool_small(report: Report, quick: bool) -> None:
    """The small examples of the books: milliseconds of full Bayes and the table."""
    for key, (file, _) in SMALL.items():
        path = find(file)
        name = f"`pp.pool`, {SMALL_TOLD[key]}, full Bayes, table made; median of 30 calls after the first in a process"
        if path is None:
            report.rows.append(Row(name, "", "ms", [], None, "skipped: the data is not here"))
            continue
        runs, note = gather(lambda k=key, p=path: run_case("pool_small", which=k, path=str(p)), 2 if quick else 5)
        if runs:
            last = runs[-1]
            note = f"first call {last['first_ms']:,.0f} ms, {last['nodes']:,} nodes, measured error {last['error']:.1g}"
        report.rows.append(Row(name, "", "ms", [run["ms"] for run in runs], None, note))


PARTS: dict[str, Callable[[Report, bool], None]] = {
    part.__name__: part for part in (pool_million, pool_shrinkage, pool_npmle, pool_small)
}
