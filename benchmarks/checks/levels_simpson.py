"""A simulated reversal of Simpson: coverage of the slopes within and between groups, the naive aggregate beside them.

30 groups of 10 rows, y = -(x - m_g) + m_g + u_g + e: within a group the slope is -1, between groups +1, so that the
contextual effect is 2. m_g is the group's observed mean of x (all its rows are there) or a latent one, of which the
rows are a sample. With observed means the model with within(x|g) and between(x|g) must cover; with latent ones, whose
averages have a reliability of 0.71, only the corrected estimate can.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

#: Fixed before the first run.
SEED = 20261121
REPLICATES, GROUPS, ROWS = 200, 30, 10
#: The sds of group means of x, of x within groups, of group effects and of rows.
TAU_X, SIGMA_X, TAU, SIGMA = 0.5, 1.0, 0.5, 1.0
WITHIN, CONTEXTUAL = -1.0, 2.0
#: The share of 90% intervals that hold the true value.
LOW, HIGH = 0.85, 0.95
PART = 10
INTERVALS = {
    "within, model": ("within groups", "model", WITHIN),
    "contextual, model": ("contextual effect", "model", CONTEXTUAL),
    "contextual, latent means": ("contextual, latent means", "model", CONTEXTUAL),
    "slope of the group averages, read as one within": ("group averages", "least squares", WITHIN),
}


def simulated(latent: bool, seed: int, replicate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and the group of each row."""
    rng = np.random.default_rng([seed, replicate])
    group = np.repeat(np.arange(GROUPS), ROWS)
    mean = TAU_X * rng.standard_normal(GROUPS)
    x = mean[group] + SIGMA_X * rng.standard_normal(group.size)
    own = mean if latent else np.bincount(group, x) / ROWS
    effect = own + TAU * rng.standard_normal(GROUPS)
    y = WITHIN * (x - own[group]) + effect[group] + SIGMA * rng.standard_normal(group.size)
    return x, y, group


def several(latent: bool, seed: int, start: int, stop: int) -> np.ndarray:
    """Of each simulation: which intervals cover, their widths, whether the naive sign is wrong, the probability given
    to that, and whether the answer did not trust itself; (stop - start, 2 x kinds + 3)."""
    import partialpool as pp

    rows = []
    for replicate in range(start, stop):
        x, y, group = simulated(latent, seed, replicate)
        found = pp.ecological({"x": x, "y": y, "g": group}, "y", "x", "g", seed=replicate, threads=1)
        answers = found.table
        covered, width = [], []
        for slope, by, truth in INTERVALS.values():
            low, high = answers.loc[slope, ["q05", "q95"]]
            if by == "least squares":
                low, high = found.least_squares.averages.interval()
            covered.append(float(low <= truth <= high))
            width.append(high - low)
        naive = float(np.sign(answers.loc["group averages", "estimate"]) != np.sign(WITHIN))
        untrusted = not (found.fit.accuracy.trusted and found.latent.trusted)
        rows.append([*covered, *width, naive, found.wrong_sign, float(untrusted)])
    return np.array(rows)


def run(replicates: int = REPLICATES, seed: int = SEED, workers: int | None = None, **_: Any) -> Outcome:
    out = Outcome("Simpson's reversal: slopes within and between groups", True)
    out.data = {"seed": seed, "replicates": replicates}
    several(False, seed, 0, 1)  # compiles the kernels, once for all workers
    starts = range(0, replicates, PART)
    with ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = {
            kind: [pool.submit(several, latent, seed, start, min(start + PART, replicates)) for start in starts]
            for kind, latent in (("observed", False), ("latent", True))
        }
        found = {kind: np.concatenate([part.result() for part in own]) for kind, own in parts.items()}
    reliability = TAU_X**2 / (TAU_X**2 + SIGMA_X**2 / ROWS)
    out.lines.append(
        f"{replicates:,} simulations each, {GROUPS} groups of {ROWS}, seed {seed}; reliability of an average "
        f"{reliability:.2f}. Asked: coverage of 90% intervals from {LOW} to {HIGH}, with observed means by the model, "
        "with latent means by the corrected estimate."
    )
    kinds, rows = len(INTERVALS), []
    for kind, values in found.items():
        for k, name in enumerate(INTERVALS):
            share = float(values[:, k].mean())
            error = math.sqrt(share * (1 - share) / replicates)
            rows.append([kind, name, f"{share:.3f}", f"{error:.3f}", f"{np.median(values[:, kinds + k]):.2f}"])
            out.data[f"{kind}: {name}"] = share
        wrong, said, untrusted = values[:, -3:].mean(axis=0)
        out.lines.append(
            f"Group means {kind}: the slope of the averages had the wrong sign in {wrong:.1%} of simulations; "
            f"`wrong_sign` was {said:.4f} on average; answers that did not trust themselves: {untrusted:.1%}."
        )
    head = ["group means", "90% interval", "coverage", "its standard error", "median width"]
    out.lines += ["", *table(head, rows)]
    for key in ("observed: within, model", "observed: contextual, model", "latent: contextual, latent means"):
        if not LOW <= out.data[key] <= HIGH:
            out.fail(f"{key}: coverage {out.data[key]:.3f} (asked {LOW} to {HIGH})")
    if out.data["latent: contextual, model"] > 0.8:
        out.fail(
            f"the uncorrected contextual effect covers {out.data['latent: contextual, model']:.3f} of latent means"
        )
    return out
