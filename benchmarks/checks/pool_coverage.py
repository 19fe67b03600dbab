"""Coverage of 90% intervals for 10 units whose spread is drawn from its own prior.

10 units with standard errors of 1 around a mean of 0, tau drawn from HalfCauchy(1) anew for each simulation. Priors:
flat on the mean, HalfCauchy(1) on tau. Coverage does not depend on the mean (moving it moves data, estimates and
intervals alike), so that full Bayes has 90% but for simulation error, averaged over tau. The plug-in of the estimated
mean and tau ignores that these are uncertain; where tau is estimated as 0 its intervals have no width at all.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

#: Fixed before the first run.
SEED = 20261121
REPLICATES, UNITS = 2000, 10
#: The share of intervals of full Bayes that hold the true value.
LOW, HIGH = 0.88, 0.92
#: What is known of the plug-in's.
PLUG_IN = 0.64
PART = 50
#: The intervals compared: words, and the columns of the table.
INTERVALS = {
    "full Bayes": ("bayes", "q05", "q95"),
    "plug-in of empirical Bayes": ("empirical_bayes", "q05", "q95"),
    "beside the plug-in (`bayes_q05`, `bayes_q95`)": ("empirical_bayes", "bayes_q05", "bayes_q95"),
    "no pooling (`raw_q05`, `raw_q95`)": ("bayes", "raw_q05", "raw_q95"),
}


def simulated(seed: int, replicate: int) -> tuple[float, np.ndarray, np.ndarray]:
    """tau, the units' true values, and their estimates."""
    rng = np.random.default_rng([seed, replicate])
    tau = abs(rng.standard_cauchy())
    theta = tau * rng.standard_normal(UNITS)
    return tau, theta, theta + rng.standard_normal(UNITS)


def several(seed: int, start: int, stop: int) -> np.ndarray:
    """Of each simulation: tau, the share of covering intervals of each kind, their mean widths, and whether a fit did
    not trust itself; (stop - start, 2 + 2 x kinds)."""
    import partialpool as pp

    priors = {"mean": pp.Flat(), "sd": pp.HalfCauchy(1)}
    rows = []
    for replicate in range(start, stop):
        tau, theta, y = simulated(seed, replicate)
        tables, untrusted = {}, False
        for method in ("bayes", "empirical_bayes"):
            pooled = pp.pool(y, se=1.0, priors=priors, method=method, threads=1)
            tables[method] = pooled.table
            untrusted |= not pooled.accuracy.trusted
        covered, width = [], []
        for method, low, high in INTERVALS.values():
            a, b = (tables[method][name].to_numpy() for name in (low, high))
            covered.append(float(((a <= theta) & (theta <= b)).mean()))
            width.append(float((b - a).mean()))
        rows.append([tau, *covered, *width, float(untrusted)])
    return np.array(rows)


def run(replicates: int = REPLICATES, seed: int = SEED, workers: int | None = None, **_: Any) -> Outcome:
    out = Outcome("coverage of intervals of pooled units", True, data={"seed": seed, "replicates": replicates})
    several(seed, 0, 1)  # compiles the kernels, once for all workers
    starts = range(0, replicates, PART)
    with ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(several, seed, start, min(start + PART, replicates)) for start in starts]
        found = []
        for start, part in zip(starts, parts, strict=True):
            if start % 500 == 0:
                print(f"  {start:,} of {replicates:,}", file=sys.stderr, flush=True)
            found.append(part.result())
    values = np.concatenate(found)
    untrusted = int(values[:, -1].sum())
    tau, covered = values[:, 0], values[:, 1 : 1 + len(INTERVALS)]
    widths = values[:, 1 + len(INTERVALS) : -1]
    out.lines.append(
        f"{replicates:,} simulations of {UNITS} units, se 1, mean 0, tau from HalfCauchy(1), seed {seed}; priors of "
        f"the fits: flat on the mean, HalfCauchy(1) on tau. Asked: full Bayes within {LOW} and {HIGH}. Fits that did "
        f"not trust themselves: {untrusted}."
    )
    bands = {"tau below 0.5": tau < 0.5, "0.5 to 2": (tau >= 0.5) & (tau < 2), "above 2": tau >= 2}
    rows = []
    for k, name in enumerate(INTERVALS):
        share, error = covered[:, k].mean(), covered[:, k].std() / math.sqrt(replicates)
        own = [f"{covered[band, k].mean():.3f}" if band.any() else "" for band in bands.values()]
        rows.append([name, f"{share:.4f}", f"{error:.4f}", *own, f"{np.median(widths[:, k]):.2f}"])
        out.data[name] = {"coverage": float(share), "error": float(error)}
    head = ["90% intervals", "coverage", "its standard error", *bands, "median width"]
    out.lines += ["", *table(head, rows)]
    bayes = out.data["full Bayes"]["coverage"]
    if not LOW <= bayes <= HIGH:
        out.fail(f"full Bayes covers {bayes:.4f} (asked {LOW} to {HIGH})")
    plug_in = out.data["plug-in of empirical Bayes"]["coverage"]
    out.lines.append(f"The plug-in's coverage is known to be about {PLUG_IN}; here it is {plug_in:.3f}.")
    if untrusted:
        out.fail(f"{untrusted} fits did not trust themselves")
    return out
