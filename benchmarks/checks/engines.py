"""The exact engine against the reference engine, NUTS on the whole model with nothing integrated out."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table
from benchmarks.data import read

SEED = 20261121
#: Bulk and tail effective sample sizes that both engines have to reach.
ENOUGH = 10_000
#: What each is asked for: the exact engine more, because its tail is less well known than its bulk.
EXACT = {"draws": 40_000, "ess": 25_000}
REFERENCE = {"draws": 20_000, "ess": 10_500}
ERRORS, SD_WITHIN = 4.0, 0.10
#: Effects compared, of each term: those of the first groups.
GROUPS = 3


def cases() -> dict[str, tuple[str, Any]]:
    """Formula and data of each comparison; priors are the defaults."""
    return {
        "sleepstudy": ("Reaction ~ Days + (Days | Subject)", read("sleepstudy")),
        "Pastes": ("strength ~ 1 + (1 | batch/cask)", read("Pastes")),
        "Penicillin": ("diameter ~ 1 + (1 | plate) + (1 | sample)", read("Penicillin")),
        "Dyestuff2": ("Yield ~ 1 + (1 | Batch)", read("Dyestuff2")),
        "Hsb82": ("mAch ~ cses + minrty + (cses + minrty | school)", read("Hsb82")),
        "nested": ("y ~ x + (1 | district/school/class)", nested()),
    }


def nested() -> dict[str, Any]:
    """Unbalanced: 12 districts, 1 to 6 schools in each, 1 to 4 classes, 1 to 7 rows."""
    rng = np.random.default_rng(SEED)
    rows: list[tuple[str, str, str, float]] = []
    for district in range(12):
        of_district = 0.8 * rng.standard_normal()
        for school in range(rng.integers(1, 7)):
            of_school = 0.5 * rng.standard_normal()
            for room in range(rng.integers(1, 5)):
                mean = of_district + of_school + 0.3 * rng.standard_normal()
                rows += [(f"d{district:02d}", f"s{school}", f"c{room}", mean)] * int(rng.integers(1, 8))
    x = rng.standard_normal(len(rows))
    y = 2.0 + 0.7 * x + np.array([row[3] for row in rows]) + rng.standard_normal(len(rows))
    columns = {name: [row[k] for row in rows] for k, name in enumerate(("district", "school", "class"))}
    return {**columns, "x": x, "y": y}


def run(models: list[str] | None = None, **_: Any) -> Outcome:
    out = Outcome("exact engine against the reference engine", True)
    out.lines += [
        f"Seed {SEED}; means in combined Monte Carlo standard errors, of all parameters and of the effects of {GROUPS} "
        "groups of each factor; effective sample sizes are the smallest of any parameter.",
        "",
    ]
    rows: list[list[str]] = []
    for name, (formula, data) in cases().items():
        if models is None or name in models:
            rows.append(_compare(out, name, formula, data))
            print("  " + ", ".join(rows[-1]), file=sys.stderr, flush=True)
    head = ["model", "quantities", "worst mean", "worst sd ratio", "exact: bulk, tail ESS", "reference: bulk, tail ESS",
            "reference: R-hat, divergences", "seconds", "met"]  # fmt: skip
    out.lines += ["", *table(head, rows)]
    return out


def _compare(out: Outcome, name: str, formula: str, data: Any) -> list[str]:
    import partialpool as pp

    model = pp.Model.from_formula(formula, data)
    exact = model.fit(seed=SEED, progress=False, **EXACT)
    chains = model.fit(method="nuts", seed=SEED, progress=False, **REFERENCE)
    before = len(out.failures)
    if not exact.accuracy.trusted:
        out.fail(f"{name}: the exact fit does not trust itself: {' '.join(exact.accuracy.notes)}")
    if not chains.accuracy.trusted:  # said, and no failure: it is the exact engine that is checked
        out.lines.append(f"{name}: the reference says of itself: {' '.join(chains.accuracy.notes)}")
    bulk, tail = exact_ess(exact)
    nuts_bulk, nuts_tail = chain_ess(chains)
    for engine, smallest in (("exact", min(bulk, tail)), ("reference", min(nuts_bulk, nuts_tail))):
        if smallest < ENOUGH:
            out.fail(
                f"{name}: the {engine} engine's smallest effective sample size is {smallest:,.0f}, below {ENOUGH:,}"
            )
    pairs = parameters(exact, chains) + effects(exact, chains)
    worst, ratio = 0.0, 1.0
    for quantity, (mean, sd, error), (other_mean, other_sd, other_error) in pairs:
        z = (mean - other_mean) / math.hypot(error, other_error)
        share = sd / other_sd
        worst = z if abs(z) > abs(worst) else worst
        ratio = share if abs(math.log(share)) > abs(math.log(ratio)) else ratio
        if not abs(z) <= ERRORS:
            out.fail(f"{name}: the means of {quantity} differ by {z:+.1f} Monte Carlo standard errors")
        if not abs(share - 1) <= SD_WITHIN:
            out.fail(f"{name}: the sd of {quantity} is {share:.3f} times that of the reference engine")
    met = "yes" if len(out.failures) == before else "**no**"
    rhat = max(chains.accuracy.rhat.values())
    return [
        name, str(len(pairs)), f"{worst:+.2f}", f"{ratio:.3f}", f"{bulk:,.0f}, {tail:,.0f}",
        f"{nuts_bulk:,.0f}, {nuts_tail:,.0f}", f"{rhat:.3f}, {chains.accuracy.divergences}",
        f"{exact.accuracy.seconds:.1f} and {chains.accuracy.seconds:.0f}", met,
    ]  # fmt: skip


Moments = tuple[float, float, float]


def parameters(exact: Any, chains: Any) -> list[tuple[str, Moments, Moments]]:
    """Mean, sd and Monte Carlo standard error of the mean of every parameter, by both engines."""
    tables = [fit.summary() for fit in (exact, chains)]
    return [
        (name, *((row["mean"], row["sd"], row["sd"] / math.sqrt(row["ess"])) for row in (t.loc[name] for t in tables)))
        for name in tables[0].index
    ]


def effects(exact: Any, chains: Any) -> list[tuple[str, Moments, Moments]]:
    """The same of some group effects, from draws."""
    from partialpool.inference.diagnostics import ess_bulk

    out = []
    for factor in exact.model.design.factors:
        labels = list(factor.labels[:GROUPS])
        ours, theirs = exact.group_draws(factor.name, labels), chains.group_draws(factor.name, labels)
        smallest = min(exact.accuracy.ess.values())
        for place in np.ndindex(ours.shape[1:]):
            a, b = ours[:, *place], theirs[:, *place]
            in_chains = b[: b.size // 4 * 4].reshape(4, -1)
            ess = float(ess_bulk(in_chains))
            independent = min(a.size, smallest)
            out.append(
                (
                    f"{factor.name}[{labels[place[0]]}], effect {place[1]}",
                    (float(a.mean()), float(a.std()), float(a.std()) / math.sqrt(independent)),
                    (float(b.mean()), float(b.std()), float(b.std()) / math.sqrt(ess)),
                )
            )
    return out


def exact_ess(fit: Any) -> tuple[float, float]:
    """Smallest bulk and tail effective sample size of an importance sample's parameters.

    The tail's is that of the probability to lie below the 5% and the 95% quantile, as for chains: of an indicator of
    a hyperparameter, and of a coefficient's conditional probability given the node (an indicator where the nodes hold
    the coefficient itself).
    """
    from scipy.special import ndtr

    from partialpool.inference.importance import effective_sample_size

    result, summary = fit.result, fit.summary()
    bulk = float(summary["ess"].min())
    hyper = fit.model.hyperparameters.public(result.theta)
    p = result.beta_mean.shape[1]
    weights = np.exp(result.log_weights - result.log_weights.max())
    weights /= weights.sum()
    tails = []
    for column, name in enumerate(summary.index):
        for quantile, share in (("q05", 0.05), ("q95", 0.95)):
            limit = summary.loc[name, quantile]
            if column < p and result.beta_sd[:, column].any():
                below = ndtr((limit - result.beta_mean[:, column]) / result.beta_sd[:, column])
                error = ((weights * (below - weights @ below)) ** 2).sum()
                tails.append(share * (1 - share) / error)
            else:
                own = result.beta_mean[:, column] if column < p else hyper[:, column - p]
                below = (own <= limit).astype(float)
                tails.append(float(np.ravel(effective_sample_size(result.log_weights, below[:, None]))[0]))
    error = fit.accuracy.surrogate_error or 0.0  # of an interpolated density: `bulk` has it already
    return bulk, 1 / (1 / float(min(tails)) + error**2)


def chain_ess(fit: Any) -> tuple[float, float]:
    from partialpool.inference.diagnostics import ess_bulk, ess_tail

    result = fit.result
    values = np.concatenate([result.beta_mean, fit.model.hyperparameters.public(result.theta)], axis=1)
    in_chains = values.reshape(result.chains, -1, values.shape[1])
    return float(np.min(ess_bulk(in_chains))), float(np.min(ess_tail(in_chains)))
