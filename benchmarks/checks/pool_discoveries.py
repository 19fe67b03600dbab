"""Lists of discoveries among simulated genes: how many entries are wrong, and how many true effects are found.

20,000 genes, standard errors of 1, effects N(0, 3^2) but for the null ones: 90% of all, and again 50%. The population
of the fit is a point mass plus a normal, its share and sd unknown. Beside it stand the oracle, which knows both and
lists by the same rule (the longest list whose mean local false discovery rate is at most 5%), and Benjamini and
Hochberg's (1995) procedure on two-sided p-values.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

#: Fixed before the first run.
SEED = 20261121
REPLICATES, GENES, SD, FDR = 50, 20_000, 3.0, 0.05
NULL_SHARES = (0.9, 0.5)
#: The mean share of wrong entries; the power as a share of the oracle's.
LOW, HIGH, POWER = 0.045, 0.055, 0.98
METHODS = ("empirical_bayes", "bayes")
BENJAMINI, ORACLE = "Benjamini-Hochberg", "oracle"


def simulated(rng: np.random.Generator, null_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Which genes have an effect, and the estimates."""
    real = rng.random(GENES) >= null_share
    return real, SD * rng.standard_normal(GENES) * real + rng.standard_normal(GENES)


def oracle(y: np.ndarray, null_share: float) -> np.ndarray:
    """The genes listed by one who knows the mixture."""
    total = 1 + SD**2
    odds = (1 - null_share) / null_share * np.exp(0.5 * y**2 * (1 - 1 / total)) / math.sqrt(total)
    rate = 1 / (1 + odds)
    order = np.argsort(rate, kind="stable")
    running = np.cumsum(rate[order]) / np.arange(1, y.size + 1)
    return order[: int((running <= FDR).sum())]


def benjamini_hochberg(y: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    p = 2 * ndtr(-np.abs(y))
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= FDR * np.arange(1, y.size + 1) / y.size)
    return order[: int(passed[-1]) + 1] if passed.size else order[:0]


def run(replicates: int = REPLICATES, seed: int = SEED, models: list[str] | None = None, **_: Any) -> Outcome:
    """`models` are methods of `pp.pool`: empirical_bayes, bayes."""
    out = Outcome("discoveries among simulated genes", True, data={"seed": seed, "replicates": replicates})
    methods = [method for method in METHODS if models is None or method in models]
    out.lines.append(
        f"{replicates:,} simulations of {GENES:,} genes, effects N(0, {SD:g}^2), se 1, seed {seed}; "
        f"`pp.pool(y, se=1, population='point_normal').discoveries(fdr={FDR})`. Asked: mean false discovery proportion "
        f"within {LOW} and {HIGH}; power, the share of true effects found, at least {POWER:.0%} of the oracle's."
    )
    rows = []
    for position, null_share in enumerate(NULL_SHARES):
        wrong, power, seconds = _lists(methods, null_share, replicates, [seed, position])
        known = float(np.mean(power[ORACLE]))
        for name in (*methods, BENJAMINI, ORACLE):
            share, error = float(np.mean(wrong[name])), float(np.std(wrong[name])) / math.sqrt(replicates)
            relative = float(np.mean(power[name])) / known
            met = ""
            if name in methods:
                good = LOW <= share <= HIGH and relative >= POWER
                met = "yes" if good else "**no**"
                if not good:
                    out.fail(
                        f"{null_share:.0%} null, {name}: false discovery proportion {share:.4f} (asked {LOW} to "
                        f"{HIGH}), power {relative:.4f} of the oracle's (asked {POWER})"
                    )
            took = f"{1000 * float(np.median(seconds[name])):.0f}" if name in seconds else ""
            rows.append([f"{null_share:.0%}", name, f"{share:.4f}", f"{error:.4f}", f"{np.mean(power[name]):.4f}",
                         f"{relative:.4f}", took, met])  # fmt: skip
            out.data[f"{null_share}, {name}"] = {"fdp": share, "error": error, "relative_power": relative}
    head = ["null", "list", "false discovery proportion", "its standard error", "power", "as a share of the oracle's",
            "median ms", "met"]  # fmt: skip
    out.lines += ["", *table(head, rows)]
    return out


Shares = dict[str, list[float]]


def _lists(methods: list[str], null_share: float, replicates: int, seed: list[int]) -> tuple[Shares, Shares, Shares]:
    """Of every simulation: the share of wrong entries, the share of true effects found, and seconds, by list."""
    import partialpool as pp

    wrong: Shares = {name: [] for name in (*methods, BENJAMINI, ORACLE)}
    power: Shares = {name: [] for name in wrong}
    seconds: Shares = {name: [] for name in methods}
    for replicate in range(replicates):
        if replicate % 10 == 0:
            print(f"  {null_share:.0%} null: {replicate:,} of {replicates:,}", file=sys.stderr, flush=True)
        real, y = simulated(np.random.default_rng([*seed, replicate]), null_share)
        lists = {BENJAMINI: benjamini_hochberg(y), ORACLE: oracle(y, null_share)}
        for method in methods:
            begin = time.perf_counter()
            found = pp.pool(y, se=1.0, population="point_normal", method=method).discoveries(fdr=FDR)
            seconds[method].append(time.perf_counter() - begin)
            lists[method] = found["unit"].to_numpy()
        for name, genes in lists.items():
            wrong[name].append(float((~real[genes]).mean()) if len(genes) else 0.0)
            power[name].append(float(real[genes].sum() / real.sum()))
    return wrong, power, seconds
