"""`pp.pool` against `pp.fit` with the same priors, and eight schools against posteriordb's reference.

Pooling is a regression of an intercept and groups of one row each: `pp.pool(y, se=s, units=g)` is
`pp.fit("y | se(s) ~ 1 + (1 | g)")`. One integrates the hyperparameters over a lattice, the other draws them; they share
no engine. The quadrature has no Monte Carlo error, so that differences are in those of the fit.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table
from benchmarks.data import read, reference

SEED = 20261121
FITS = {"draws": 40_000, "ess": 20_000}
#: Means in Monte Carlo standard errors of the fit; sds.
ERRORS, SD_WITHIN = 4.0, 0.05
#: Deviations from posteriordb, in its sds.
REFERENCE_WITHIN = 0.1
UNITS = 30


@dataclass(frozen=True)
class Case:
    """The same units for both: data, formula and family of `pp.fit`, arguments of `pp.pool`, priors of mean and sd, and
    the inverse link."""

    data: dict[str, Any]
    formula: str
    family: str
    arguments: dict[str, Any]
    mean: Any
    sd: Any
    inverse: Any


def cases() -> dict[str, Case]:
    import partialpool as pp

    rng = np.random.default_rng(SEED)
    names = [f"u{k:02d}" for k in range(UNITS)]
    trials = rng.integers(3, 80, UNITS)
    share = 1 / (1 + np.exp(-rng.normal(-1.0, 0.8, UNITS)))
    events = rng.binomial(trials, share)
    exposure = rng.lognormal(1, 1, UNITS)
    counts = rng.poisson(exposure * np.exp(rng.normal(0.2, 0.7, UNITS)))
    schools = read("eight_schools")
    return {
        "eight schools": Case(
            {"y": schools["y"].to_numpy(), "size": schools["sigma"].to_numpy(), "g": list(schools["school"])},
            "y | se(size) ~ 1 + (1 | g)", "gaussian", {"se": "size"}, pp.Normal(0, 5), pp.HalfCauchy(5), np.array,
        ),
        "events in trials": Case(
            {"y": events, "size": trials, "g": names}, "y | trials(size) ~ 1 + (1 | g)", "binomial",
            {"trials": "size", "population": "normal"}, pp.Normal(-1, 1), pp.HalfNormal(1),
            lambda eta: 1 / (1 + np.exp(-eta)),
        ),
        "counts over exposures": Case(
            {"y": counts, "size": exposure, "g": names}, "y ~ 1 + offset(log(size)) + (1 | g)", "poisson",
            {"exposure": "size", "population": "normal"}, pp.Normal(0, 1), pp.HalfStudentT(3, 1), np.exp,
        ),
    }  # fmt: skip


def run(models: list[str] | None = None, **_: Any) -> Outcome:
    out = Outcome("pooling against regression and posteriordb", True)
    out.lines += [
        f"`pp.pool` by quadrature against `pp.fit` with draws={FITS['draws']:,}, ess={FITS['ess']:,}, seed {SEED}, and "
        "the same priors: mean and sd of the population and every unit's own parameter, on its natural scale. Asked: "
        f"means within {ERRORS:g} Monte Carlo standard errors of the fit, sds within {SD_WITHIN:.0%}.",
        "",
    ]
    rows = []
    for name, case in cases().items():
        if models is None or name in models:
            rows.append(_compare(out, name, case))
            print("  " + ", ".join(rows[-1]), file=sys.stderr, flush=True)
    head = ["units", "quantities", "worst mean", "worst sd ratio", "engine of the fit", "its smallest ESS",
            "nodes of pool", "met"]  # fmt: skip
    out.lines += table(head, rows)
    _schools(out)
    return out


def _compare(out: Outcome, name: str, case: Case) -> list[str]:
    import partialpool as pp

    before = len(out.failures)
    pooled = pp.pool("y", units="g", data=case.data, priors={"mean": case.mean, "sd": case.sd}, **case.arguments)
    priors = {"Intercept": case.mean, "sd(g)": case.sd}
    fit = pp.fit(case.formula, case.data, family=case.family, priors=priors, seed=SEED, progress=False, **FITS)
    for who, accuracy in (("pp.pool", pooled.accuracy), ("pp.fit", fit.accuracy)):
        if not accuracy.trusted:
            out.fail(f"{name}: {who} does not trust itself: {' '.join(accuracy.notes)}")
    smallest = min(fit.accuracy.ess.values())
    summary, theirs, units = pooled.summary(), fit.summary(), pooled.table
    pairs = []
    for own, other in (("mean", "Intercept"), ("sd", "sd(Intercept|g)")):
        row = theirs.loc[other]
        error = row["sd"] / math.sqrt(row["ess"])
        pairs.append((own, summary.loc[own, "mean"], summary.loc[own, "sd"], row["mean"], row["sd"], error))
    labels = list(units["unit"])
    draws = case.inverse(fit.draws("Intercept")[:, None] + fit.group_draws("g", labels)[:, :, 0])
    independent = min(len(draws), smallest)
    for k, label in enumerate(labels):
        sd = float(draws[:, k].std())
        error = sd / math.sqrt(independent)
        pairs.append((f"unit {label}", units["mean"][k], units["sd"][k], float(draws[:, k].mean()), sd, error))
    worst, ratio = 0.0, 1.0
    for quantity, mean, sd, their_mean, their_sd, error in pairs:
        z, share = (mean - their_mean) / error, sd / their_sd
        worst = z if abs(z) > abs(worst) else worst
        ratio = share if abs(math.log(share)) > abs(math.log(ratio)) else ratio
        if not abs(z) <= ERRORS:
            out.fail(f"{name}: the means of {quantity} differ by {z:+.1f} Monte Carlo standard errors")
        if not abs(share - 1) <= SD_WITHIN:
            out.fail(f"{name}: the sd of {quantity} is {share:.3f} times that of the fit")
    met = "yes" if len(out.failures) == before else "**no**"
    return [
        name, str(len(pairs)), f"{worst:+.2f}", f"{ratio:.3f}", fit.accuracy.engine, f"{smallest:,.0f}",
        f"{pooled.accuracy.nodes:,}", met,
    ]  # fmt: skip


def _schools(out: Outcome) -> None:
    """Eight schools under posteriordb's priors."""
    import partialpool as pp

    known = reference("posteriors.json")
    if known is None:
        out.lines.append("Eight schools against posteriordb: skipped, posteriors.json is in none of the data folders.")
        return
    pooled = pp.pool(
        "y", se="sigma", units="school", data=read("eight_schools"),
        priors={"mean": pp.Normal(0, 5), "sd": pp.HalfCauchy(5)},
    )  # fmt: skip
    units, summary = pooled.table, pooled.summary()
    rows = []
    for parameter, wanted in known["eight_schools"]["params"].items():
        stem, _, index = parameter.rstrip("]").partition("[")
        found = units.iloc[int(index) - 1] if index else summary.loc[{"mu": "mean", "tau": "sd"}[stem]]
        off = {key: (float(found[key]) - wanted[key]) / wanted["sd"] for key in ("mean", "q05", "q95")}
        ratio = float(found["sd"]) / wanted["sd"]
        met = max(map(abs, off.values())) <= REFERENCE_WITHIN and abs(ratio - 1) <= SD_WITHIN
        if not met:
            told = ", ".join(f"{key} {value:+.3f}" for key, value in off.items())
            out.fail(f"eight schools, {parameter}: off by {told} reference sds, sd ratio {ratio:.3f}")
        figures = [f"{off['mean']:+.3f}", f"{ratio:.4f}", f"{off['q05']:+.3f}", f"{off['q95']:+.3f}"]
        rows.append([parameter, *figures, "yes" if met else "**no**"])
    out.lines += [
        "",
        f"Eight schools under posteriordb's priors, mean ~ Normal(0, 5), tau ~ HalfCauchy(5): deviations in the "
        f"reference's sds, asked within {REFERENCE_WITHIN}, sds within {SD_WITHIN:.0%}.",
        "",
        *table(["parameter", "mean", "sd ratio", "5%", "95%", "met"], rows),
    ]
