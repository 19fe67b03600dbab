"""The cross-level interaction of Hsb82: the exact engine against the reference engine and against lme4."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.checks import Outcome, table
from benchmarks.data import read

SEED = 20261121
FORMULA = "mAch ~ cses * (meanses + sector) + (1 + cses | school)"
#: What is allowed between the engines' posterior means, in posterior sds, and the largest Monte Carlo error of either
#: for which that can be told.
WITHIN, KNOWN = 0.1, 0.03
EXACT = {"draws": 8000, "ess": 5000}
REFERENCE = {"draws": 8000, "ess": 4000}
#: lme4 1.1-31, lmer, REML: estimates.
LME4 = {
    "Intercept": 13.354509455, "cses": 1.302366168, "meanses": 5.332874273, "sector[Public]": -1.226578692,
    "cses:meanses": 1.039232084, "cses:sector[Public]": 1.642674362,
}  # fmt: skip


def run(**_: Any) -> Outcome:
    import partialpool as pp

    out = Outcome("cross-level interaction: exact engine against the reference engine", True)
    data = read("Hsb82")
    exact = pp.fit(FORMULA, data, seed=SEED, progress=False, **EXACT)
    chains = pp.fit(FORMULA, data, seed=SEED, progress=False, method="nuts", **REFERENCE)
    out.lines += [f"`{FORMULA}`, seed {SEED}; means of the coefficients, their difference in posterior sds.", ""]
    ours, theirs = exact.summary(), chains.summary()
    rows = []
    for name, estimate in LME4.items():
        mean, sd = float(ours.loc[name, "mean"]), float(ours.loc[name, "sd"])
        other = float(theirs.loc[name, "mean"])
        error = math.hypot(sd / math.sqrt(ours.loc[name, "ess"]), sd / math.sqrt(theirs.loc[name, "ess"]))
        apart = (mean - other) / sd
        if error / sd > KNOWN:
            out.fail(f"{name}: the Monte Carlo error of the difference is {error / sd:.3f} sd, above {KNOWN}")
        if not abs(apart) <= WITHIN:
            out.fail(f"{name}: the engines' means are {apart:+.3f} posterior sds apart")
        rows.append(
            [name, f"{mean:.4f}", f"{sd:.4f}", f"{other:.4f}", f"{apart:+.3f}", f"{error / sd:.3f}", f"{estimate:.4f}",
             f"{(mean - estimate) / sd:+.3f}"]
        )  # fmt: skip
        out.data[name] = {"exact": mean, "sd": sd, "reference": other, "apart": apart, "lme4": estimate}
    head = ["coefficient", "exact", "sd", "reference", "apart (sd)", "error (sd)", "lme4", "from lme4 (sd)"]
    rhat = max(chains.accuracy.rhat.values())
    out.lines += [
        *table(head, rows),
        f"Reference: R-hat {rhat:.3f}, {chains.accuracy.divergences} divergences. Seconds: "
        f"{exact.accuracy.seconds:.1f} and {chains.accuracy.seconds:.0f}.",
    ]
    return out
