"""The checks that take minutes: `python -m benchmarks.check_long`, `make check-long`.

    --only posteriors    eight schools, two radon models and a Poisson model against references
    --only engines       the exact engine against NUTS on the whole model
    --only calibration   simulation-based calibration, 1,000 replicates of two models
    --only lme4          log-likelihoods and optima against lme4's
    --only glmm          log-likelihoods and optima of other families against exact values and glmer's
    --only glmm_engines  other families: the default engine against NUTS on the whole model; an hour or more, so that
                         models can be run one by one (--model toenail): those that were run before are kept
    --only glmm_calibration   the calibration of Bernoulli, sparse Poisson and negative binomial models
    --only pool_engines       `pp.pool` against `pp.fit` with the same priors, and eight schools against posteriordb
    --only pool_coverage      coverage of intervals for 10 units whose spread is drawn from its prior
    --only pool_discoveries   realised false discoveries and power among 20,000 simulated genes
    --only pool_calibration   the calibration of `pp.pool`, each population
    --only levels_simpson     `pp.ecological` on 200 simulated reversals: coverage, means observed and latent
    --only levels_study       `pp.simulate_pooling`: mean squared errors against theory, and against `pp.fit`
    --only levels_variance    variances, ICC and R-squared on the response's scale: integrals against simulation
    --only levels_cross_level    interactions across levels in Hsb82: the exact engine against NUTS
    --only levels_exchangeability   permutation p-values of `fit.check_exchangeability()` under exchangeability
    --only criticism_loo            `fit.loo()` and `fit.logo()` of Gaussian models against refits; 100,000 rows
    --only criticism_loo_other      the same of binomial and Poisson responses
    --only criticism_information    p_D and WAIC of the eight schools; plain PSIS-LOO against ArviZ
    --only criticism_check          p-values of `fit.check()` under the model, and its power against planted misfits
    --only criticism_sensitivity    verdicts of `fit.sensitivity()`; weights against refits
    --only criticism_calibration    `pp.calibrate` of a right and of a wrong sampler

To try the code out: --replicates 20 for the calibrations, --ess 300 for glmm_engines, --folder elsewhere.
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
    "glmm": "benchmarks.checks.glmm",
    "glmm_calibration": "benchmarks.checks.glmm_calibration",
    "glmm_engines": "benchmarks.checks.glmm_engines",
    "pool_engines": "benchmarks.checks.pool_engines",
    "pool_coverage": "benchmarks.checks.pool_coverage",
    "pool_discoveries": "benchmarks.checks.pool_discoveries",
    "pool_calibration": "benchmarks.checks.pool_calibration",
    "levels_simpson": "benchmarks.checks.levels_simpson",
    "levels_study": "benchmarks.checks.levels_study",
    "levels_variance": "benchmarks.checks.levels_variance",
    "levels_cross_level": "benchmarks.checks.levels_cross_level",
    "levels_exchangeability": "benchmarks.checks.levels_exchangeability",
    "criticism_loo": "benchmarks.checks.criticism_loo",
    "criticism_loo_other": "benchmarks.checks.criticism_loo_other",
    "criticism_information": "benchmarks.checks.criticism_information",
    "criticism_check": "benchmarks.checks.criticism_check",
    "criticism_sensitivity": "benchmarks.checks.criticism_sensitivity",
    "criticism_calibration": "benchmarks.checks.criticism_calibration",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The checks that take minutes.")
    parser.add_argument("--only", action="append", choices=CHECKS, help="one check; may be given several times")
    parser.add_argument("--replicates", type=int, help="of the calibrations; fewer are for trying the code out")
    parser.add_argument("--seed", type=int, help="of the calibrations; another is for trying the code out")
    parser.add_argument(
        "--model", action="append", help="of the calibrations and of the comparisons of engines; all by default"
    )
    parser.add_argument("--ess", type=int, help="of glmm_engines; a smaller one is for trying the code out")
    parser.add_argument("--workers", type=int, help="processes of glmm_calibration; one a core by default")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args(arguments)
    chosen = {"models": options.model, "folder": options.folder}
    chosen |= {
        name: getattr(options, name) for name in ("replicates", "seed", "ess", "workers") if getattr(options, name)
    }
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
