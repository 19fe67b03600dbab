"""The parts of the benchmark about levels: their order, interactions, within and between."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.data import find
from benchmarks.gather import gather
from benchmarks.process import run_case
from benchmarks.report import Report, Row

SIMULATED = {
    "re-used ids": "ids re-used in every parent: reported as crossed as coded, with the cure",
    "re-used ids, declared": "the same with `nested=`: recovered",
    "crossed": "crossed, one row a cell: recovered",
    "partly nested": "0.5% of rows broken: recovered, and exactly these rows named",
}


def hierarchy(report: Report, quick: bool) -> None:
    """1,000,000 rows and 5 factors; simulated hierarchies of known order."""
    for text in (False, True):
        runs, note = gather(lambda t=text: run_case("hierarchy_million", text=t), 2 if quick else 5)
        if runs:
            last = runs[-1]
            note = (
                f"first call {last['first']:.2f} s; {'the order is the true one' if last['recovered'] else '**wrong**'}"
            )
        name = (
            f"`pp.hierarchy`, 1,000,000 rows, 5 factors, ids {'as text' if text else 'as whole numbers'}; second call"
        )
        report.rows.append(Row(name, "<= 2 s", "s", [run["seconds"] for run in runs], 2, note))
    runs, note = gather(lambda: run_case("hierarchies"), 1)
    for key, told in SIMULATED.items():
        missed = [1 - run["share"][key] for run in runs]
        name = f"`pp.hierarchy`, share of 100 simulated hierarchies missed: {told}"
        report.rows.append(Row(name, "0", "", missed, 0, note))


def emergence(report: Report, quick: bool) -> None:
    """`pp.interactions` of three functions with known answers."""
    runs, note = gather(lambda: run_case("emergence"), 1)
    told = {
        "masses": "`pp.interactions`, a sum of 20 masses: largest mixed derivative",
        "product": "`pp.interactions`, x1 x2: distance of the mixed derivative from 1",
    }
    for key, name in told.items():
        report.rows.append(Row(name, "<= 1e-6", "", [run[key] for run in runs], 1e-6, note))
    name = "`pp.interactions`, 20 dimensions, 3 interacting pairs: share of 10 points where not exactly these are found"
    report.rows.append(Row(name, "0", "", [1 - run["exact"] for run in runs], 0, note))


def within_between(report: Report, quick: bool) -> None:
    """Hsb82 by within() and between(), against the data's own columns."""
    path = find("Hsb82.csv")
    name = "Hsb82, `within` and `between` against the data's own columns: largest difference, posterior sds"
    if path is None:
        report.rows.append(Row(name, "equal", "", [], None, "skipped: the data is not here"))
        return
    runs, note = gather(lambda: run_case("within_between", path=str(path)), 1)
    report.rows.append(Row(name, "equal (1e-6)", "", [run["difference"] for run in runs], 1e-6, note))


PARTS: dict[str, Callable[[Report, bool], None]] = {
    part.__name__: part for part in (hierarchy, emergence, within_between)
}
