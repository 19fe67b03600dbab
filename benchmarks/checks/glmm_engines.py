"""The default engine against the reference engine where the response is not Gaussian; priors are the defaults.

A comparison takes minutes, so that models can be run one at a time: what was found is kept, by model, in
`glmm_engines.json` beside the other results.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table
from benchmarks.checks.engines import ERRORS, SD_WITHIN, chain_ess, effects, exact_ess, parameters
from benchmarks.data import read
from benchmarks.report import RESULTS

#: Fixed before the first run.
SEED = 20261121
#: Bulk and tail effective sample sizes that both engines have to reach.
ENOUGH = 10_000
#: How much more than that they are asked for: importance sampling's tail is less well known than its bulk.
MORE, MORE_OF_CHAINS = 2.0, 1.05
SDS_OF_EFFECTS_WITHIN = 0.05


@dataclass(frozen=True)
class Case:
    """A comparison: formula, data, family; `times` ENOUGH is asked; `more` as MORE where many unknowns make it dear."""

    formula: str
    data: Any
    family: str
    times: float = 1.0
    more: float = MORE
    #: The factor all of whose effects' sds are compared, and that Laplace has to be told not to be enough for.
    hard: str = ""


def cases() -> dict[str, Case]:
    return {
        "cbpp": Case("incidence | trials(size) ~ period + (1 | herd)", "cbpp", "binomial"),
        "VerbAgg": Case("r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)", "VerbAgg", "bernoulli"),
        "grouseticks": Case(
            "TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "grouseticks", "poisson", more=1.8
        ),
        "toenail": Case(
            'outcome == "moderate or severe" ~ treatment * time + (1 | patientID)', "toenail", "bernoulli", 2.0, 1.3,
            "patientID",
        ),
        "epil": Case("y ~ lbase * trt + lage + V4 + (1 | subject)", "epil", "negative_binomial"),
        "beta-binomial": Case("y | trials(n) ~ x + (1 | g)", beta_binomial, "beta_binomial"),
        "sleepstudy, Student-t": Case("Reaction ~ Days + (Days | Subject)", "sleepstudy", "student_t"),
        "cake, gamma": Case("angle ~ recipe + temp + (1 | recipe:replicate)", "cake", "gamma"),
    }  # fmt: skip


def beta_binomial() -> dict[str, Any]:
    """30 groups of 6 rows with 5 to 20 trials; coefficients -0.5 and 0.4, sd 0.7, phi 4."""
    rng = np.random.default_rng(SEED)
    g = np.repeat(np.arange(30), 6)
    x, n = rng.standard_normal(g.size), rng.integers(5, 21, g.size)
    mean = 1 / (1 + np.exp(-(-0.5 + 0.4 * x + 0.7 * rng.standard_normal(30)[g])))
    return {"y": rng.binomial(n, rng.beta(4 * mean, 4 * (1 - mean))), "n": n, "x": x, "g": [f"g{k:02d}" for k in g]}


@dataclass
class Compared:
    """What a comparison found: its line of the table, sentences on what failed, and remarks."""

    row: list[str]
    ess: int
    on: str
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def run(models: list[str] | None = None, ess: int = ENOUGH, folder: Path = RESULTS, **_: Any) -> Outcome:
    out = Outcome("other families: default engine against the reference engine", True)
    known = cases()
    unknown = [name for name in models or () if name not in known]
    if unknown:
        raise SystemExit(f"There is no model {unknown[0]!r} here; there are: {', '.join(known)}.")
    store = folder / "glmm_engines.json"
    found = {name: Compared(**kept) for name, kept in json.loads(store.read_text()).items()} if store.is_file() else {}
    for name, case in known.items():
        if models is None or name in models:
            found[name] = _compare(name, case, ess)
            print("  " + ", ".join(found[name].row), file=sys.stderr, flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            store.write_text(json.dumps({key: asdict(one) for key, one in found.items()}, indent=1) + "\n")
    kept = [(name, found[name]) for name in known if name in found]
    out.lines += [
        f"Seed {SEED}; means in combined Monte Carlo standard errors, of all parameters and of the effects of some "
        f"groups; asked: within {ERRORS:g}, sds within {SD_WITHIN:.0%}. Effective sample sizes, bulk and tail, are the "
        f"smallest of any parameter. Divergences of the default engine are those of chains, where it needed them.",
        "",
    ]
    head = [
        "model", "quantities", "worst mean", "worst sd ratio", "default engine", "its bulk, tail ESS, Pareto k",
        "reference: bulk, tail ESS", "reference: R-hat, divergences", "seconds", "asked ESS", "on", "met",
    ]  # fmt: skip
    rows = [[*one.row[:-1], f"{one.ess:,}", one.on, one.row[-1]] for _, one in kept]
    out.lines += table(head, rows)
    for name, one in kept:
        out.lines += [f"{name}: {remark}" for remark in one.remarks]
        for failure in one.failures:
            out.fail(failure)
    missing = [name for name in known if name not in found]
    if missing:
        out.lines.append(f"Not run yet: {', '.join(missing)}.")
    return out


def _compare(name: str, case: Case, wanted: int) -> Compared:
    import partialpool as pp

    enough = int(wanted * case.times)
    draws = max(4 * enough, 4000)
    data = case.data() if callable(case.data) else read(case.data)
    model = pp.Model.from_formula(case.formula, data, family=case.family)
    ours = model.fit(draws=draws, ess=case.more * enough, seed=SEED, progress=False)
    chains = model.fit(method="nuts", draws=2 * enough, ess=MORE_OF_CHAINS * enough, seed=SEED, progress=False)
    out = Compared([], enough, datetime.date.today().isoformat())
    if not ours.accuracy.trusted:
        out.failures.append(f"{name}: the default fit does not trust itself: {' '.join(ours.accuracy.notes)}")
    if not chains.accuracy.trusted:  # said, and no failure: it is the default engine that is checked
        out.remarks.append(f"the reference says of itself: {' '.join(chains.accuracy.notes)}")
    sizes = chain_ess(ours) if ours.result.chains else exact_ess(ours)
    others = chain_ess(chains)
    for engine, smallest in (("default", min(sizes)), ("reference", min(others))):
        if smallest < enough:
            out.failures.append(
                f"{name}: the {engine} engine's smallest effective sample size is {smallest:,.0f}, below {enough:,}"
            )
    pairs = parameters(ours, chains) + effects(ours, chains)
    worst, ratio = 0.0, 1.0
    for quantity, (mean, sd, error), (other_mean, other_sd, other_error) in pairs:
        z = (mean - other_mean) / math.hypot(error, other_error)
        share = sd / other_sd
        worst = z if abs(z) > abs(worst) else worst
        ratio = share if abs(math.log(share)) > abs(math.log(ratio)) else ratio
        if not abs(z) <= ERRORS:
            out.failures.append(f"{name}: the means of {quantity} differ by {z:+.1f} Monte Carlo standard errors")
        if not abs(share - 1) <= SD_WITHIN:
            out.failures.append(f"{name}: the sd of {quantity} is {share:.3f} times that of the reference engine")
    if case.hard:
        _hard(out, name, case.hard, ours, chains)
    if ours.accuracy.divergences:
        out.failures.append(f"{name}: {ours.accuracy.divergences} draws of the default engine diverged")
    k = "" if ours.accuracy.pareto_k is None else f", {ours.accuracy.pareto_k:.2f}"
    rhat = max((chains.accuracy.rhat or {}).values(), default=math.nan)
    out.row = [
        name, str(len(pairs)), f"{worst:+.2f}", f"{ratio:.3f}", ours.accuracy.engine,
        f"{sizes[0]:,.0f}, {sizes[1]:,.0f}{k}", f"{others[0]:,.0f}, {others[1]:,.0f}",
        f"{rhat:.3f}, {chains.accuracy.divergences}", f"{ours.accuracy.seconds:.1f} and {chains.accuracy.seconds:.0f}",
        "**no**" if out.failures else "yes",
    ]  # fmt: skip
    return out


def _hard(out: Compared, name: str, factor: str, ours: Any, chains: Any) -> None:
    """The sds of all effects of a factor, and whether the fit said by itself that Laplace is not enough."""
    ratios = ours.groups(factor)["sd"].to_numpy() / chains.groups(factor)["sd"].to_numpy()
    worst = float(np.abs(ratios - 1).max())
    told = [step for step in ours.accuracy.steps if step.startswith("Laplace alone")]
    out.remarks.append(
        f"sds of the {ratios.size} effects differ by at most {worst:.1%}; the fit says: {' '.join(told)}."
    )
    if not worst <= SDS_OF_EFFECTS_WITHIN:
        out.failures.append(f"{name}: sds of effects differ by {worst:.1%} (allowed {SDS_OF_EFFECTS_WITHIN:.0%})")
    if not any("not enough" in step for step in told):
        out.failures.append(f"{name}: the fit does not say that Laplace is not enough")
