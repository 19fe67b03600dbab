"""The parts of the benchmark about criticism: the cost of leaving rows and groups out."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cases import SLEEPSTUDY
from benchmarks.criticism_cases import RADON
from benchmarks.data import find
from benchmarks.gather import gather
from benchmarks.process import run_case
from benchmarks.report import Report, Row

GROUPS = {"sleepstudy": (SLEEPSTUDY, "18 subjects", 2.0), "radon": (RADON, "85 counties", 10.0)}


def left_out_groups(report: Report, quick: bool) -> None:
    """Leave-one-group-out of sleepstudy and radon, refits and all."""
    for name, (formula, units, limit) in GROUPS.items():
        path = find(f"{name}.csv")
        told = f"`fit.logo()`, {name} ({units}); second call"
        if path is None:
            report.rows.append(Row(told, f"<= {limit:g} s", "s", [], None, "skipped: the data is not here"))
            continue
        work = lambda f=formula, p=path, u=units: run_case("groups_left_out", formula=f, path=str(p), ids=u)  # noqa: E731
        runs, note = gather(work, 2 if quick else 5)
        if runs:
            last = runs[-1]
            note = f"first call {last['first']:.2f} s; {last['refits']} refitted, error of the sum {last['error']:.3f}"
        report.rows.append(Row(told, f"<= {limit:g} s", "s", [run["seconds"] for run in runs], limit, note))


def left_out_large(report: Report, quick: bool) -> None:
    """Rows and groups left out of 100,000 rows in 5,000 groups, 2 threads."""
    for family in ("gaussian", "bernoulli"):
        runs, note = gather(lambda f=family: run_case("large_left_out", family=f), 1 if quick else 3)
        for kind in ("loo", "logo"):
            if runs:
                last = runs[-1]
                note = f"{last['refits']} refitted in both, error of the sum {last[f'{kind}_error']:.2f}"
            name = f"`fit.{kind}()`, 100,000 rows, 5,000 groups, {family}, 2 threads"
            report.rows.append(Row(name, "<= 20 s", "s", [run[kind] for run in runs], 20, note))
        name = f"peak memory of the process, {family}, data, fit and both"
        report.rows.append(Row(name, "<= 2 GB", "GB", [run["peak_gb"] for run in runs], 2, ""))


PARTS: dict[str, Callable[[Report, bool], None]] = {part.__name__: part for part in (left_out_groups, left_out_large)}
