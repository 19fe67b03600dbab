"""Measure the speeds: `python -m benchmarks`, `make bench`.

    python -m benchmarks                    everything, several runs each (an hour)
    python -m benchmarks --quick            fewer runs, smaller sizes
    python -m benchmarks --only insteval    one part: sleepstudy, kernels, insteval, gauss1m, growth, cbpp, verbagg,
                                            grouseticks, binary_insteval, bernoulli200k, poisson2m, row_pass,
                                            pool_million, pool_shrinkage, pool_npmle, pool_small, hierarchy,
                                            emergence, within_between, peers

Writes benchmarks/results/latest.md and latest.json, and docs/figures/scaling.png. What --only leaves out is kept from
earlier runs on the same machine.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import SLEEPSTUDY
from benchmarks.criticism import PARTS as CRITICISM_PARTS
from benchmarks.data import find, insteval
from benchmarks.figures import draw_growth, slope
from benchmarks.gather import cpu_note, gather, say
from benchmarks.glmm import PARTS as GLMM_PARTS
from benchmarks.levels import PARTS as LEVELS_PARTS
from benchmarks.peers import run_peers
from benchmarks.pool import PARTS as POOL_PARTS
from benchmarks.process import Program, run_case, run_program
from benchmarks.report import Report, Row

PROGRAM = f"""
import partialpool as pp
fit = pp.fit({SLEEPSTUDY!r}, pp.datasets.load("sleepstudy"), draws=4000)
print(fit.summary())
"""
PARTS: dict[str, Callable[[Report, bool], None]] = {}


def part(function: Callable[[Report, bool], None]) -> Callable[[Report, bool], None]:
    """Enter a part of the benchmark in the table of parts."""
    PARTS[function.__name__] = function
    return function


@part
def sleepstudy(report: Report, quick: bool) -> None:
    """Import, first and second call in a process, the whole process; kernels already cached."""
    times = 3 if quick else 9
    path = str(find("sleepstudy.csv"))
    gather(lambda: run_program(PROGRAM), 2)  # kernels in the cache, files in memory
    found, note = gather(lambda: run_case("importing")["seconds"], times)
    report.rows.append(Row("`import partialpool`", "<= 0.3 s", "s", found, 0.3, note))
    cold, note = gather(lambda: run_case("sleepstudy_calls", path=path, frame=False), times)
    first = "sleepstudy, first `fit` in a process, all lazy imports included (data as a path)"
    report.rows.append(Row(first, "<= 0.9 s", "s", [run["first"] for run in cold], 0.9, note))
    warm, note = gather(lambda: run_case("sleepstudy_calls", path=path, frame=True), times)
    first = "the same, the data frame and so pandas already there"
    report.rows.append(Row(first, "", "s", [run["first"] for run in warm], None, note))
    second = "sleepstudy, second `fit` in a process, 4,000 draws"
    report.rows.append(Row(second, "<= 0.15 s", "s", [run["second"] for run in warm], 0.15, note))
    later = [seconds for run in warm for seconds in run["later"]]
    report.rows.append(Row("the same, third and fourth", "", "s", later, None, note))
    whole, note = gather(lambda: run_program(PROGRAM), times)
    seconds, note = [run.seconds for run in whole], note or cpu_note([run.cpu for run in whole])
    report.rows.append(Row("sleepstudy, whole process to the printed summary", "<= 1.5 s", "s", seconds, 1.5, note))


@part
def kernels(report: Report, quick: bool) -> None:
    """The first fit after installation: an empty cache of kernels."""

    def once() -> Program:
        with tempfile.TemporaryDirectory() as folder:
            done = run_program(PROGRAM, PARTIALPOOL_CACHE=folder)
            return replace(done, said=done.said.replace(folder, "the cache"))

    found, note = gather(once, 1 if quick else 3)
    if found:
        said = next((line for line in found[0].said.splitlines() if line.strip()), "")
        note = cpu_note([run.cpu for run in found]) + (f'. It says: "{said}"' if said else ". **It says nothing**")
    seconds = [run.seconds for run in found]
    report.rows.append(
        Row("first fit with no kernels cached, whole process", "<= 20 s, and says so", "s", seconds, 20, note)
    )


def _ess_note(runs: list[dict[str, Any]], note: str) -> str:
    if not runs:
        return note
    smallest = min(run["min_hyperparameter_ess"] for run in runs)
    notes = [f"smallest ESS of a hyperparameter {smallest:,.0f}", cpu_note([run["cpu_seconds"] for run in runs])]
    if runs[0].get("surrogate_error"):
        notes.append(f"interpolation error {max(run['surrogate_error'] for run in runs):.3f}")
    if not all(run["trusted"] for run in runs):
        notes.append("**not trusted by its own checks**")
    return ", ".join([*notes, note] if note else notes)


@part
def insteval_fit(report: Report, quick: bool) -> None:
    """InstEval, three crossed factors, 73,421 rows."""
    path = insteval()
    name = "InstEval, 73,421 rows, `y ~ service + (1\\|s) + (1\\|d) + (1\\|dept:service)`, full posterior, 4,000 draws"
    if path is None:
        report.rows.append(
            Row(name, "<= 5 s", "s", [], None, "skipped: neither the data nor R's lme4, which has it, is here")
        )
        return
    runs, note = gather(lambda: run_case("insteval", path=str(path)), 2 if quick else 5)
    seconds = [run["seconds"] for run in runs]
    report.rows.append(Row(name, "<= 5 s; mark to beat 3.2 s", "s", seconds, 5, _ess_note(runs, note)))
    report.rows.append(
        Row("the same, against the mark of 3.2 s (lme4's point estimate with OpenBLAS)", "<= 3.2 s", "s", seconds, 3.2)
    )
    report.rows.append(Row("the same, peak memory", "<= 1.5 GB", "GB", [run["peak_gb"] for run in runs], 1.5))
    _tables(report, runs)
    report.details["InstEval"] = runs[-1:] if runs else []


def _tables(report: Report, runs: list[dict[str, Any]]) -> None:
    whole = [run["seconds"] + run.get("summary_seconds", 0) + run["groups_seconds"] for run in runs]
    report.rows.append(Row("the same, with the summary and the table of every group", "", "s", whole))
    report.rows.append(
        Row("the same, peak memory with these tables", "", "GB", [run["peak_with_tables_gb"] for run in runs])
    )


@part
def gauss1m(report: Report, quick: bool) -> None:
    """A million rows, a hundred thousand groups with an intercept and a slope each."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "fit.pp")
        runs, note = gather(lambda: run_case("gauss1m", save_to=file), 2 if quick else 5)
        if note:  # the fit alone, where saving is what failed
            alone, again = gather(lambda: run_case("gauss1m"), 1)
            runs, note = (runs or alone), f"{note} {again}".strip()
    name = "1,000,000 rows, 100,000 groups, `y ~ x + (1 + x\\|g)`, full posterior from a data frame in memory"
    report.rows.append(Row(name, "<= 6 s", "s", [run["seconds"] for run in runs], 6, _ess_note(runs, note)))
    report.rows.append(Row("the same, peak memory", "<= 3 GB", "GB", [run["peak_gb"] for run in runs], 3))
    files = [run["file_mb"] for run in runs if "file_mb" in run]
    report.rows.append(Row("the same, the fit's file, rows included", "<= 50 MB", "MB", files[-1:], 50))
    without = [run["file_without_rows_mb"] for run in runs if "file_without_rows_mb" in run]
    report.rows.append(Row("the same, the fit's file without rows", "", "MB", without[-1:]))
    _tables(report, runs)
    report.details["gauss1m"] = runs[-1:] if runs else []


@part
def growth(report: Report, quick: bool) -> None:
    """Rows at fixed groups, and groups at ten rows each."""
    top = 6 if quick else 7
    by_rows = [(10**power, 1000) for power in range(4, top + 1)]
    by_groups = [(10 ** (power + 1), 10**power) for power in range(2, top)]
    series = {"rows, 1,000 groups": by_rows, "groups, 10 rows each": by_groups}
    for name, sizes in series.items():
        points: list[dict[str, Any]] = []
        for rows, groups in sizes:
            point: dict[str, Any] = {"rows": rows, "groups": groups}
            times = 1 if quick or rows >= 10**7 else 3
            runs, note = gather(lambda r=rows, g=groups: run_case("growth", rows=r, groups=g), times)
            if runs:
                best = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
                point.update(best)
            else:
                point["failed"] = note
            say(f"  {name}: {point}")
            points.append(point)
        report.growth[name] = points
        for value in ("seconds", "peak_gb"):
            report.slopes[f"{value} on log size, {name}, all sizes"] = slope(points, "rows", value)
            report.slopes[f"{value} on log size, {name}, the three largest"] = slope(points[-3:], "rows", value)
        last = slope(points[-2:], "rows", "seconds")
        grew = [] if math.isnan(last) else [last]
        report.rows.append(
            Row(f"growth with {name}: slope of log seconds, last decade", "linear: <= 1.1", "", grew, 1.1)
        )
    largest = [points[-1] for points in report.growth.values()]
    memory = [point["peak_gb"] for point in largest if "peak_gb" in point]
    if top == 7:
        complete = len(memory) == len(largest)
        name = "10^7 rows (1,000 groups; 10^6 groups), the larger peak memory"
        report.rows.append(Row(name, "<= 16 GB", "GB", [max(memory)] if complete else [], 16))
    draw_growth(report.growth)


PARTS |= GLMM_PARTS | POOL_PARTS | LEVELS_PARTS | CRITICISM_PARTS


@part
def peers(report: Report, quick: bool) -> None:
    """lme4, statsmodels, bambi and NumPyro, where they are installed."""
    models = ("sleepstudy",) if quick else ("sleepstudy", "InstEval", "gauss1m", "VerbAgg", "grouseticks")
    report.peers = run_peers(models, 3 if quick else 5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the speeds of partialpool and of its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer runs, smaller sizes")
    order = [name.removesuffix("_fit") for name in PARTS]
    parser.add_argument("--only", action="append", choices=order, help="one part; may be given several times")
    options = parser.parse_args(arguments)
    chosen = [name for name in order if options.only is None or name in options.only]
    report = Report.kept(chosen)
    for name, work in zip(order, PARTS.values(), strict=True):
        if name in chosen:
            say(f"{name}: {(work.__doc__ or '').strip()}")
            report.measure(name, work, options.quick, order)
            report.write()
    print(report.as_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
