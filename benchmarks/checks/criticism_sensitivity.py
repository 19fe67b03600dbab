"""Sensitivity: planted conflicts and weak likelihoods flagged, clean models not; weights against refits."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

SEED = 20261121
REPLICATES = 20
CONFLICT, WEAK, FINE = "prior-data conflict", "weak likelihood", "-"
#: Name: groups, rows a group, tau, spread of x, priors, family, the parameter looked at, and what is to be said of it.
PLANTED: dict[str, tuple[int, int, float, float, dict[str, str], str, str, str]] = {
    "slope 1, prior Normal(0, 0.15)": (10, 6, 1.0, 1.0, {"x": "Normal(0, 0.15)"}, "gaussian", "x", CONFLICT),
    "slope 1, prior StudentT(3, 0, 0.1)": (10, 6, 1.0, 1.0, {"x": "StudentT(3, 0, 0.1)"}, "gaussian", "x", CONFLICT),
    "tau 2, prior HalfNormal(0.3)": (
        10,
        6,
        2.0,
        1.0,
        {"sd": "HalfNormal(0.3)"},
        "gaussian",
        "sd(Intercept|g)",
        CONFLICT,
    ),
    "tau 0.1, prior Gamma(40, 10)": (10, 6, 0.1, 1.0, {"sd": "Gamma(40, 10)"}, "gaussian", "sd(Intercept|g)", CONFLICT),
    "log odds 1, prior Normal(-1, 0.2)": (15, 20, 0.5, 1.0, {"x": "Normal(-1, 0.2)"}, "bernoulli", "x", CONFLICT),
    "x hardly varies, prior Normal(0, 1)": (10, 6, 1.0, 0.02, {"x": "Normal(0, 1)"}, "gaussian", "x", WEAK),
    "x hardly varies, binary": (15, 20, 0.5, 0.01, {"x": "Normal(0, 1)"}, "bernoulli", "x", WEAK),
    "3 groups": (3, 30, 1.0, 1.0, {}, "gaussian", "sd(Intercept|g)", WEAK),
    "clean, 15 groups": (15, 6, 1.0, 1.0, {}, "gaussian", "", FINE),
    "clean, 15 groups, binary": (15, 20, 1.0, 1.0, {}, "bernoulli", "", FINE),
}
#: Three clean models on real data.
CLEAN = {
    "sleepstudy": ("Reaction ~ Days + (Days | Subject)", "gaussian"),
    "radon": ("log_radon ~ floor + log_uranium + (1 | county)", "gaussian"),
    "cbpp": ("incidence | trials(size) ~ C(period) + (1 | herd)", "binomial"),
}


def simulated(rng: np.random.Generator, groups: int, rows: int, tau: float, spread: float, family: str) -> Any:
    import pandas as pd

    g = np.repeat(np.arange(groups), rows)
    x = spread * rng.normal(size=g.size)
    eta = x + tau * rng.normal(size=groups)[g]
    if family == "gaussian":
        y = 2 + eta + rng.normal(size=g.size)
    else:
        y = (rng.random(g.size) < 1 / (1 + np.exp(-eta))).astype(int)
    return pd.DataFrame({"y": y, "x": x, "g": g.astype(str)})


def run(replicates: int | None = None, **_: Any) -> Outcome:
    out = Outcome("sensitivity: verdicts, and weights against refits", True)
    count = replicates or REPLICATES
    out.lines += [f"{count} replicates of each planted case, seed {SEED}.", ""]
    _verdicts(out, count)
    _clean(out)
    _priors(out)
    _groups(out)
    return out


def _verdicts(out: Outcome, count: int) -> None:
    import partialpool as pp
    from partialpool.criticism.sensitivity import sensitivity

    rows = []
    for name, (groups, size, tau, spread, priors, family, parameter, wanted) in PLANTED.items():
        said: list[str] = []
        for replicate in range(count):
            data = simulated(np.random.default_rng([SEED, replicate]), groups, size, tau, spread, family)
            fit = pp.fit(
                "y ~ x + (1 | g)", data, family=family, priors=priors, seed=replicate, threads=1, progress=False
            )
            diagnosis = sensitivity(fit).table["diagnosis"]
            said.append(diagnosis[parameter] if parameter else max(diagnosis, key=lambda own: own != FINE))
        right = said.count(wanted)
        if right < 0.9 * count:
            out.fail(f"{name}: {wanted!r} in {right} of {count}")
        others = {own: said.count(own) for own in sorted(set(said)) if own != wanted}
        rows.append([name, wanted, f"{right} of {count}", ", ".join(f"{k}: {v}" for k, v in others.items())])
    out.lines += table(["case", "planted", "said", "else"], rows)


def _clean(out: Outcome) -> None:
    import partialpool as pp
    from partialpool.criticism.sensitivity import sensitivity

    rows = []
    for name, (formula, family) in CLEAN.items():
        fit = pp.fit(formula, pp.datasets.load(name), family=family, seed=1, threads=1, progress=False)
        found = sensitivity(fit)
        if found.flagged:
            out.fail(f"{name}: {found.flagged} flagged")
        own = found.table
        rows.append([name, f"{own['prior'].max():.3f}", f"{own['likelihood'].min():.3f}", ", ".join(found.flagged)])
    out.lines += table(["clean model", "largest change with the prior", "least with the data", "flagged"], rows)


def _priors(out: Outcome) -> None:
    """Reweighted answers under each usual prior against fits under that prior, in posterior sds."""
    import partialpool as pp
    from partialpool.criticism.alternatives import alternatives
    from partialpool.criticism.prior_table import _refitted
    from partialpool.criticism.sensitivity import sensitivity

    rows = []
    for name, (formula, family) in CLEAN.items():
        fit = pp.fit(formula, pp.datasets.load(name), family=family, seed=1, threads=1, progress=False)
        found = sensitivity(fit, "hyper").table
        for alternative in alternatives(fit.model, "hyper"):
            own = found.xs(alternative.name, level="alternative").loc[list(fit.parameters)]
            other = _refitted(fit, alternative, 2).fit
            assert other is not None
            table_ = other.summary()
            worst = max(
                float((np.abs(own[column] - table_[column]) / table_["sd"]).max()) for column in ("mean", "q50", "q05")
            )
            if worst > 0.15:
                out.fail(f"{name}, {alternative.name}: {worst:.2f} posterior sds from a refit")
            how = str(own["how"].iloc[0])
            rows.append([name, alternative.name, how, f"{own['pareto_k'].iloc[0]:.2f}", f"{worst:.3f}"])
    out.lines += table(["fit", "prior", "how", "Pareto k", "largest difference to a refit (sds)"], rows)


def _groups(out: Outcome) -> None:
    """What leaving each group out does, by weights and by refits."""
    import partialpool as pp
    from partialpool.criticism.influence import influence

    rows = []
    for name in ("sleepstudy", "cbpp"):
        formula, family = CLEAN[name]
        fit = pp.fit(formula, pp.datasets.load(name), family=family, seed=1, threads=1, progress=False)
        answer = influence(fit)
        p, base = len(fit.model.coefficients.names), fit.summary()
        factor = fit.model.design.factors[0]
        worst = []
        for group in answer.table.index:
            kept = np.flatnonzero(factor.labels[factor.codes].astype(str) != group)
            other = fit.model.take_rows(kept).fit(seed=3, threads=1, progress=False).summary()
            expected = np.concatenate([other["mean"].to_numpy()[:p], other["q50"].to_numpy()[p:]])
            own = answer.estimates.loc[group].xs("location", level=1).to_numpy()
            worst.append(float((np.abs(own - expected) / base["sd"].to_numpy()).max()))
        refits = int((answer.table["how"] == "refitted").sum())
        if max(worst) > 0.15:
            out.fail(f"{name}: influence {max(worst):.2f} posterior sds from a refit")
        rows.append([name, str(len(worst)), str(refits), f"{max(worst):.3f}", f"{np.median(worst):.3f}"])
    out.lines += table(["fit", "groups", "refitted", "largest difference to a refit (sds)", "median"], rows)
