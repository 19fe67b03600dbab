"""`fit.check_exchangeability`: p-values where groups are exchangeable, and power where intercepts go with size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

SEED = 20261121
GROUPS = 25
REPLICATES = 200
PERMUTATIONS = 199
#: Model, family, how far intercepts move with one sd of the log of the size (sd of intercepts 0.7).
CASES = {
    "intercepts": ("y ~ x + (1 | g)", "gaussian", 0.0),
    "slopes": ("y ~ x + (x | g)", "gaussian", 0.0),
    "crossed": ("y ~ x + (1 | g) + (1 | h)", "gaussian", 0.0),
    "binary": ("b ~ x + (1 | g)", "bernoulli", 0.0),
    "slopes, planted": ("y ~ x + (x | g)", "gaussian", 0.5),
}


def simulated(rng: np.random.Generator, plant: float) -> dict[str, Any]:
    """25 groups of 2 to 80 rows, effects of intercept and slope correlated by 0.5."""
    sizes = np.clip(np.round(np.exp(rng.normal(2, 1, GROUPS))), 2, 80).astype(int)
    logs = np.log(sizes)
    g = np.repeat(np.arange(GROUPS), sizes)
    x, z = rng.normal(size=g.size), rng.normal(size=GROUPS)
    half = np.linalg.cholesky(np.array([[1, 0.5], [0.5, 1]]))
    u = rng.normal(size=(GROUPS, 2)) @ half.T * [0.7, 0.5]
    u[:, 0] += plant * (logs - logs.mean()) / logs.std()
    h = rng.integers(0, 10, g.size)
    eta = u[g, 0] + (0.5 + u[g, 1]) * x + 0.5 * rng.normal(size=10)[h]
    y = eta + rng.normal(size=g.size)
    b = (rng.random(g.size) < 1 / (1 + np.exp(-eta))).astype(int)
    return {"g": g, "h": h, "x": x, "z": z[g], "kind": np.where(z > 0, "b", "a")[g], "y": y, "b": b}


def run(replicates: int | None = None, models: list[str] | None = None, **_: Any) -> Outcome:
    import pandas as pd

    import partialpool as pp
    from partialpool.levels.exchangeability import check_exchangeability

    out = Outcome("exchangeability: p-values and power", True)
    count = replicates or REPLICATES
    out.lines += [f"{GROUPS} groups of 2 to 80 rows, {count} replicates, {PERMUTATIONS} permutations, seed {SEED}.", ""]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)
    rows = []
    for name, (formula, family, plant) in CASES.items():
        if models is not None and name not in models:
            continue
        p, adjusted = [], []
        for replicate in range(count):
            data = pd.DataFrame(simulated(np.random.default_rng([SEED, replicate]), plant))
            fit = pp.fit(formula, data, family=family, seed=replicate, draws=2000, threads=1, progress=False)
            by = ["size", "order", "z", "kind"]
            found = check_exchangeability(fit, by, "g", data=data, permutations=PERMUTATIONS).table
            p.append(found["p"].to_numpy())
            adjusted.append(float(found["p_adjusted"].min()))
        low = (np.array(p) <= 0.05).mean(axis=0)
        for k, (covariate, term) in enumerate(zip(found["covariate"], found["term"], strict=True)):
            planted = plant and covariate == "size" and term == "Intercept"
            if not planted and low[k] > allowed:
                out.fail(f"{name}: p <= 0.05 for {covariate}, {term} in {low[k]:.3f} of the replicates")
            half = (np.array(p)[:, k] <= 0.5).mean()
            rows.append([name, covariate, term, f"{low[k]:.3f}{' (power)' * bool(planted)}", f"{half:.3f}"])
        smallest = float((np.array(adjusted) <= 0.05).mean())
        if not plant and smallest > allowed:
            out.fail(f"{name}: some adjusted p <= 0.05 in {smallest:.3f} of the replicates")
        rows.append([name, "any", "adjusted", f"{smallest:.3f}", ""])
    out.lines += table(["model", "covariate", "term", "p <= 0.05", "p <= 0.5"], rows)
    return out
