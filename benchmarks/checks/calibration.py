"""Simulation-based calibration: true values, drawn from the prior, have uniform ranks among posterior draws.

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788. Data are simulated here, from the priors as
stated below, and not by the package: an error in the package's reading of a prior would show.

Crossed, `y ~ x + (1 | a) + (1 | b)`, 120 rows, 12 and 7 groups, unbalanced:
    Intercept ~ Normal(0, 2), x ~ Normal(0, 1), sd(a) ~ HalfNormal(1), sd(b) ~ Exponential(1),
    sigma ~ HalfStudentT(3, 1)
Correlated slopes, `y ~ x + (1 + x | g)`, 90 rows, 15 groups of 2 to 10 rows:
    Intercept ~ Normal(0, 2), x ~ Normal(0, 1), sd(Intercept|g) ~ HalfNormal(1), sd(x|g) ~ Exponential(1),
    cor ~ LKJ(2), sigma ~ HalfNormal(1)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

#: Fixed before the first run.
SEED = 20261121
REPLICATES = 1000
#: Draws that a true value is ranked among, of DRAWS that a fit makes; bins of ranks.
RANKED, DRAWS, BINS = 255, 1020, 16
THRESHOLD = 0.01
#: What the draws' distance from their mean is multiplied by: the check has to fail then.
SPOILED = 0.9

Simulated = tuple[np.ndarray, dict[str, float]]


def crossed(rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, Any], Callable[..., Simulated]]:
    """Formula, data, priors, and a function that draws true values and a response."""
    import partialpool as pp

    rows = 120
    a = np.concatenate([np.arange(12), rng.integers(0, 12, rows - 12)])
    b = np.concatenate([np.arange(7), np.minimum(rng.geometric(0.3, rows - 7) - 1, 6)])
    x = rng.standard_normal(rows)
    priors = {"Intercept": pp.Normal(0, 2), "x": pp.Normal(0, 1), "sd(a)": pp.HalfNormal(1), "sd(b)": pp.Exponential(1),
              "sigma": pp.HalfStudentT(3, 1)}  # fmt: skip

    def simulate(rng: np.random.Generator) -> Simulated:
        intercept, slope = 2 * rng.standard_normal(), rng.standard_normal()
        sd_a, sd_b, sigma = abs(rng.standard_normal()), rng.exponential(), abs(rng.standard_t(3))
        u, v = sd_a * rng.standard_normal(12), sd_b * rng.standard_normal(7)
        y = intercept + slope * x + u[a] + v[b] + sigma * rng.standard_normal(rows)
        true = {"Intercept": intercept, "x": slope, "sd(Intercept|a)": sd_a, "sd(Intercept|b)": sd_b, "sigma": sigma,
                "a[a00]": u[0], "b[b0]": v[0]}  # fmt: skip
        return y, true

    data = {"a": [f"a{k:02d}" for k in a], "b": [f"b{k}" for k in b], "x": x}
    return "y ~ x + (1 | a) + (1 | b)", data, priors, simulate


def slopes(rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, Any], Callable[..., Simulated]]:
    import partialpool as pp

    sizes = np.array([2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8, 10, 10, 10, 10])
    g = np.repeat(np.arange(15), sizes)
    x = rng.standard_normal(g.size)
    priors = {"Intercept": pp.Normal(0, 2), "x": pp.Normal(0, 1), "sd(Intercept|g)": pp.HalfNormal(1),
              "sd(x|g)": pp.Exponential(1), "cor(g)": pp.LKJ(2), "sigma": pp.HalfNormal(1)}  # fmt: skip

    def simulate(rng: np.random.Generator) -> Simulated:
        intercept, slope = 2 * rng.standard_normal(), rng.standard_normal()
        sd_0, sd_1, sigma = abs(rng.standard_normal()), rng.exponential(), abs(rng.standard_normal())
        correlation = 2 * rng.beta(2, 2) - 1  # LKJ(2) of two columns
        z = rng.standard_normal((15, 2))
        u = sd_0 * z[:, 0]
        v = sd_1 * (correlation * z[:, 0] + np.sqrt(1 - correlation**2) * z[:, 1])
        y = intercept + slope * x + u[g] + v[g] * x + sigma * rng.standard_normal(g.size)
        true = {"Intercept": intercept, "x": slope, "sd(Intercept|g)": sd_0, "sd(x|g)": sd_1,
                "cor(Intercept,x|g)": correlation, "sigma": sigma,
                "g[g00,Intercept]": u[0], "g[g14,x]": v[14]}  # fmt: skip
        return y, true

    return "y ~ x + (1 + x | g)", {"g": [f"g{k:02d}" for k in g], "x": x}, priors, simulate


MODELS = {"crossed": crossed, "correlated slopes": slopes}


def run(
    replicates: int = REPLICATES,
    seed: int = SEED,
    folder: Path | None = None,
    models: list[str] | None = None,
    **_: Any,
) -> Outcome:
    out = Outcome("simulation-based calibration", True, data={"seed": seed, "replicates": replicates})
    out.lines.append(
        f"{replicates:,} replicates of each model, seed {seed}; ranks among {RANKED} of {DRAWS:,} draws, {BINS} bins. "
        f"Asked: smallest p times the number of parameters > {THRESHOLD}, for both statistics. `spoiled` is the same "
        f"code with every draw moved to its mean by a factor of {SPOILED}: it has to fail."
    )
    histograms = {}
    for position, (name, design) in enumerate(MODELS.items()):
        if models is not None and name not in models:
            continue
        ranks, spoiled, notes = _ranks(design, replicates, [seed, position])
        histograms[name] = ranks
        judge(out, name, ranks, spoiled, notes, replicates)
    out.draw = lambda folder: draw_ranks(histograms, folder / "calibration.png")
    return out


def _ranks(
    design: Any, replicates: int, seed: list[int]
) -> tuple[dict[str, list[int]], dict[str, list[int]], list[str]]:
    """Ranks by parameter, the same with spoiled draws, and notes about the fits."""
    import partialpool as pp

    rng = np.random.default_rng(seed)
    formula, data, priors, simulate = design(rng)
    first, _ = simulate(np.random.default_rng(0))  # any response will do: every prior is stated
    model = pp.Model.from_formula(formula, {**data, "y": first}, priors=priors)
    unstated = [name for name, prior in model.priors.items() if model.priors.source(name) == "default"]
    assert not unstated, unstated
    ranks: dict[str, list[int]] = {}
    spoiled: dict[str, list[int]] = {}
    untrusted, began = 0, time.perf_counter()
    engines: dict[str, int] = {}
    for replicate in range(replicates):
        if replicate % 100 == 0:
            print(f"  {formula}: {replicate:,} of {replicates:,}", file=sys.stderr, flush=True)
        one = replicated(model, simulate, rng)
        untrusted += not one.trusted
        engines[one.engine] = engines.get(one.engine, 0) + 1
        for parameter in one.ranks:
            ranks.setdefault(parameter, []).append(one.ranks[parameter])
            spoiled.setdefault(parameter, []).append(one.spoiled[parameter])
    took = time.perf_counter() - began
    counts = ", ".join(f"{engine} {count:,}" for engine, count in engines.items())
    notes = [
        f"engines: {counts}; fits that did not trust themselves: {untrusted}; {1000 * took / replicates:.0f} ms each"
    ]
    return ranks, spoiled, notes


@dataclass(frozen=True)
class Replicate:
    """Ranks of the true values by parameter, the same with spoiled draws, and what the fit says of itself."""

    ranks: dict[str, int]
    spoiled: dict[str, int]
    engine: str
    trusted: bool


def replicated(model: Any, simulate: Callable[..., Simulated], rng: np.random.Generator) -> Replicate:
    """Draw true values and a response, fit the response, rank the true values among the fit's draws."""
    y, true = simulate(rng)
    fit = model.with_response(y).fit(draws=DRAWS, ess=1000, seed=int(rng.integers(2**31)), threads=1, progress=False)
    picked = rng.choice(DRAWS, RANKED, replace=False)
    ranks, spoiled = {}, {}
    for parameter, value in true.items():
        draws = fit.draws(parameter)
        middle = draws.mean()
        ranks[parameter] = int((draws[picked] < value).sum())
        narrow = middle + SPOILED * (draws[picked] - middle)
        spoiled[parameter] = int((narrow < value).sum())
    return Replicate(ranks, spoiled, fit.accuracy.engine, bool(fit.accuracy.trusted))


def statistics(ranks: list[int]) -> tuple[float, float]:
    """p of the chi-square on binned ranks, and two-sided p of the sum of squared normal scores."""
    from scipy.stats import chi2, norm

    values = np.asarray(ranks)
    counts = np.bincount(values * BINS // (RANKED + 1), minlength=BINS)
    expected = values.size / BINS
    uniform = float(chi2.sf(((counts - expected) ** 2 / expected).sum(), BINS - 1))
    total = float((norm.ppf((values + 0.5) / (RANKED + 1)) ** 2).sum())
    scores = 2 * min(chi2.cdf(total, values.size), chi2.sf(total, values.size))
    return uniform, float(min(scores, 1.0))


def judge(out: Outcome, name: str, ranks: Any, spoiled: Any, notes: list[str], replicates: int) -> None:
    rows, smallest, smallest_spoiled = [], [1.0, 1.0], [1.0, 1.0]
    for parameter in ranks:
        good, bad = statistics(ranks[parameter]), statistics(spoiled[parameter])
        rows.append([parameter, *(f"{p:.3g}" for p in (*good, *bad))])
        smallest = [min(pair) for pair in zip(smallest, good, strict=True)]
        smallest_spoiled = [min(pair) for pair in zip(smallest_spoiled, bad, strict=True)]
    count = len(ranks)
    adjusted = [p * count for p in smallest]
    adjusted_spoiled = [p * count for p in smallest_spoiled]
    out.data[name] = {"adjusted": adjusted, "adjusted_spoiled": adjusted_spoiled, "parameters": count}
    for statistic, p, bad in zip(("chi-square", "normal scores"), adjusted, adjusted_spoiled, strict=True):
        if not p > THRESHOLD:
            out.fail(f"{name}, {statistic}: smallest p times {count} is {p:.2g} (asked > {THRESHOLD})")
        if not bad <= THRESHOLD:
            out.fail(f"{name}, {statistic}: with sds scaled by {SPOILED} the check still passes ({bad:.2g})")
    head = ["parameter", "p chi-square", "p normal scores", "spoiled: p chi-square", "spoiled: p normal scores"]
    out.lines += ["", f"### {name}", "", *table(head, rows)]
    out.lines.append(
        f"Smallest p times {count}: chi-square {adjusted[0]:.3g}, normal scores {adjusted[1]:.3g}; spoiled "
        f"{adjusted_spoiled[0]:.2g} and {adjusted_spoiled[1]:.2g}. {'; '.join(notes)}."
    )


def draw_ranks(histograms: dict[str, dict[str, list[int]]], path: Path) -> None:
    """Rank histograms with the band that 99% of bins should keep to."""
    from matplotlib.figure import Figure
    from scipy.stats import binom

    columns = max(len(ranks) for ranks in histograms.values())
    figure = Figure(figsize=(1.9 * columns, 2.2 * len(histograms)), layout="constrained")
    axes = figure.subplots(len(histograms), columns, squeeze=False)
    for line, (name, ranks) in zip(axes, histograms.items(), strict=True):
        for axis in line[len(ranks) :]:
            axis.axis("off")
        for axis, (parameter, values) in zip(line, ranks.items(), strict=False):
            counts = np.bincount(np.asarray(values) * BINS // (RANKED + 1), minlength=BINS)
            low, high = binom.ppf([0.005, 0.995], len(values), 1 / BINS)
            axis.axhspan(low, high, color="#d8e3ec")
            axis.bar(np.arange(BINS), counts, width=0.9, color="#1f5a8a")
            axis.set_title(parameter, fontsize=8)
            axis.set(xticks=[], ylim=(0, max(high * 1.3, counts.max() * 1.05)))
            axis.tick_params(labelsize=7)
        line[0].set_ylabel(name, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
