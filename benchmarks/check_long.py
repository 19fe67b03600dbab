"""The checks that take minutes: `python -m benchmarks.check_long`, `make check-long`.

    --only posteriors    eight schools and two radon models against references
    --only engines       the exact engine against NUTS on the whole model
    --only calibration   simulation-based calibration, 1,000 replicates of two models
    --only lme4          log-likelihoods and optima against lme4's

Writes benchmarks/results/check_long.md; ends with status 1 where a check fails.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.checks import Outcome
from benchmarks.data import ROOT
from benchmarks.report import RESULTS, machine

CHECKS = {
    "lme4": "benchmarks.checks.lme4_table",
    "posteriors": "benchmarks.checks.posteriors",
    "calibration": "benchmarks.checks.calibration",
    "engines": "benchmarks.checks.engines",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The checks that take minutes.")
    parser.add_argument("--only", action="append", choices=CHECKS, help="one check; may be given several times")
    parser.add_argument("--replicates", type=int, help="of the calibration; fewer are for trying the code out")
    parser.add_argument("--seed", type=int, help="of the calibration; another is for trying the code out")
    parser.add_argument(
        "--model", action="append", help="of the calibration and of the comparison of engines; all by default"
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args(arguments)
    chosen = {"models": options.model}
    chosen |= {name: value for name, value in (("replicates", options.replicates), ("seed", options.seed)) if value}
    if importlib.util.find_spec("partialpool") is None:  # not installed: this checkout's own
        sys.path.insert(0, str(ROOT / "src"))
    passed = True
    for name, module in CHECKS.items():
        if options.only is None or name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            start = time.perf_counter()
            outcome: Outcome = importlib.import_module(module).run(**chosen)
            section = describe(outcome, time.perf_counter() - start)
            print("\n".join(section), flush=True)
            keep(options.folder, name, section)
            if outcome.draw is not None:
                outcome.draw(options.folder)
            passed &= outcome.passed
    return 0 if passed else 1


def describe(outcome: Outcome, seconds: float) -> list[str]:
    verdict = "skipped" if outcome.skipped else "passed" if outcome.passed else "**failed**"
    today = datetime.date.today().isoformat()
    lines = [f"## {outcome.name}: {verdict}", "", f"{seconds:,.0f} s, {today}.", "", *outcome.lines]
    return [*lines, "", *(f"- {failure}" for failure in outcome.failures), ""]


def keep(folder: Path, name: str, section: list[str]) -> None:
    """Write the section into check_long.json, and all sections so far into check_long.md."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "check_long.json"
    sections = json.loads(store.read_text()) if store.is_file() else {}
    sections[name] = section
    store.write_text(json.dumps(sections, indent=1) + "\n")
    lines = ["# The checks that take minutes", "", machine()["sentence"], ""]
    for known in CHECKS:
        lines += sections.get(known, [])
    (folder / "check_long.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
