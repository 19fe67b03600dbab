"""`fit.check`: p-values where the model is right, and how often the right check fires where it is not.

Five models of 500 rows in 25 groups whose sizes differ; four planted misfits. "fires" is the check's own p-value of at
most 0.05 (of the largest effect: that for all 25 groups), "adjusted" the same for all checks of the table (Holm). The
best attainable test knows every parameter: the likelihood ratio of the planted model to the fitted one, at level 0.05;
of the outlying group, whose tau no one can know, the ratio maximised over the group, its effect, tau and the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.checks import Outcome, table

SEED = 20261121
GROUPS, ROWS, REPLICATES = 25, 500, 200
TAU = 0.5
Array = NDArray[np.float64]

#: Model, family.
RIGHT = {
    "intercepts": ("y ~ x + (1 | g)", "gaussian"),
    "slopes": ("y ~ x + (x | g)", "gaussian"),
    "crossed": ("y ~ x + (1 | g) + (1 | h)", "gaussian"),
    "counts": ("count ~ x + (1 | g)", "poisson"),
    "binary": ("event ~ x + (1 | g)", "bernoulli"),
}
#: Model, family, the check that ought to fire.
PLANTED = {
    "zeros": ("count ~ 1 + (1 | g)", "poisson", "zeros"),
    "tails": ("y ~ x + (1 | g)", "gaussian", "tails of residuals"),
    "outlier": ("y ~ x + (1 | g)", "gaussian", "largest effect of g"),
    "slope": ("y ~ x + (1 | g)", "gaussian", "slopes of x by g"),
}


def rows(rng: np.random.Generator) -> dict[str, Any]:
    """Groups of 5 rows at least, a predictor of sd 1, a second factor of 10 groups."""
    sizes = 5 + rng.multinomial(ROWS - 5 * GROUPS, rng.dirichlet(np.full(GROUPS, 3.0)))
    g = np.repeat(np.arange(GROUPS), sizes)
    return {"g": g, "h": rng.integers(0, 10, ROWS), "x": rng.normal(size=ROWS)}


def right(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """A data set from the model."""
    data = rows(rng)
    g, x = data["g"], data["x"]
    u = TAU * rng.normal(size=GROUPS)
    eta = u[g] + 0.4 * x
    if name == "slopes":
        eta = eta + 0.4 * rng.normal(size=GROUPS)[g] * x
    if name == "crossed":
        eta = eta + 0.5 * rng.normal(size=10)[data["h"]]
    data["y"] = eta + rng.normal(size=ROWS)
    data["count"] = rng.poisson(2 * np.exp(eta))
    data["event"] = (rng.random(ROWS) < 1 / (1 + np.exp(-eta))).astype(int)
    return data


def _stream(name: str, replicate: int) -> np.random.Generator:
    """Random numbers of one planted data set."""
    return np.random.default_rng([SEED, 11 + list(PLANTED).index(name), replicate])


def planted(name: str, rng: np.random.Generator) -> tuple[dict[str, Any], float]:
    """A data set with the misfit, and the log likelihood ratio of the planted model at the true parameters."""
    return drawn(name, rng, True)


def drawn(name: str, rng: np.random.Generator, with_misfit: bool) -> tuple[dict[str, Any], float]:
    """As `planted`; without the misfit, for the distribution of the ratio."""
    data = rows(rng)
    g, x = data["g"], data["x"]
    u = TAU * rng.normal(size=GROUPS)
    if name == "zeros":
        mean = 2 * np.exp(u[g] - TAU**2 / 2)
        count = rng.poisson(mean)
        if with_misfit:
            count = np.where(rng.random(ROWS) < 0.2, 0, count)
        data["count"] = count
        # Given the effects and each model's own mean: the ratio of the two densities.
        plain = -0.8 * mean + count * np.log(0.8 * mean)
        mixed = np.log(0.2 * (count == 0) + 0.8 * np.exp(-mean + count * np.log(mean)))
        return data, float((mixed - plain).sum())
    noise = rng.normal(size=ROWS)
    ratio = 0.0
    if name == "tails":
        if with_misfit:
            noise = rng.standard_t(3, size=ROWS)
        else:
            noise = np.sqrt(3.0) * noise
        heavy = -2 * np.log1p(noise**2 / 3) + math.lgamma(2) - math.lgamma(1.5) - 0.5 * math.log(3 * math.pi)
        ratio = float((heavy + 0.5 * noise**2 / 3 + 0.5 * math.log(2 * math.pi * 3)).sum())
    if name == "outlier" and with_misfit:
        u[int(rng.integers(GROUPS))] = 5 * TAU * rng.choice([-1, 1])
    slope = np.zeros(GROUPS)
    if name == "slope" and with_misfit:
        slope = 0.5 * rng.normal(size=GROUPS)
    data["y"] = u[g] + (0.4 + slope[g]) * x + noise
    if name == "outlier":
        ratio = _outlier_ratio(u[g] + noise, g)
    if name == "slope":
        ratio = _slope_ratio(slope[g] * x + noise, g, x)
    return data, ratio


def _outlier_ratio(y: Array, g: NDArray[np.int64]) -> float:
    """The likelihood ratio of one group with an effect of its own, tau and the mean unknown."""
    size = np.bincount(g)
    mean = np.bincount(g, weights=y) / size
    tau = np.linspace(0.05, 2.5, 120)[:, None]
    variance = tau**2 + 1 / size
    kept = np.concatenate([np.ones((1, GROUPS)), 1 - np.eye(GROUPS)])[:, None, :] / variance  # all; without each one
    centre = (kept * mean).sum(axis=2) / kept.sum(axis=2)
    value = -0.5 * (kept * (mean - centre[:, :, None]) ** 2).sum(axis=2)
    value -= 0.5 * ((kept > 0) * np.log(variance)).sum(axis=2)
    best = value.max(axis=1)
    # An effect of its own is fitted without error: its density is that of the rows' mean.
    return float((best[1:] + 0.5 * np.log(size)).max() - best[0])


def _slope_ratio(y: Array, g: NDArray[np.int64], x: Array) -> float:
    """Slopes of sd 0.5 given the intercepts."""
    xx, xy = np.bincount(g, weights=x * x), np.bincount(g, weights=x * y)
    return float((0.5 * xy**2 / (xx + 4) - 0.5 * np.log1p(0.25 * xx)).sum())


def best(name: str, replicates: int) -> float:
    """Share of planted data sets that the likelihood ratio finds at level 0.05."""
    found = [planted(name, _stream(name, k)) for k in range(replicates)]
    ratios = np.array([ratio for _, ratio in found])
    if name != "outlier":
        null = [drawn(name, np.random.default_rng([SEED, 7, k]), False)[1] for k in range(max(replicates, 200) * 10)]
        return float((ratios > np.quantile(null, 0.95)).mean())
    # Its null distribution depends on the groups' sizes: one for each data set.
    limits = []
    for k, (data, _) in enumerate(found):
        rng, g = np.random.default_rng([SEED, 8, k]), data["g"]
        null = [_outlier_ratio(TAU * rng.normal(size=GROUPS)[g] + rng.normal(size=ROWS), g) for _ in range(200)]
        limits.append(np.quantile(null, 0.95))
    return float((ratios > np.array(limits)).mean())


def _check(formula: str, family: str, data: dict[str, Any], seed: int) -> Any:
    import pandas as pd

    import partialpool as pp
    from partialpool.criticism.check import check

    fit = pp.fit(formula, pd.DataFrame(data), family=family, seed=seed, draws=1000, threads=1, progress=False)
    return check(fit).table


def run(replicates: int | None = None, models: list[str] | None = None, **_: Any) -> Outcome:
    out = Outcome("predictive checks: p-values and power", True)
    count = replicates or REPLICATES
    out.lines += [f"{ROWS} rows in {GROUPS} groups, tau {TAU}, {count} data sets a model, seed {SEED}.", ""]
    wanted: Callable[[str], bool] = lambda name: models is None or name in models  # noqa: E731
    lines: list[list[str]] = []
    for name, (formula, family) in RIGHT.items():
        if wanted(name):
            lines += _calibration(out, name, formula, family, count)
    out.lines += ["Data simulated from the model:", ""]
    out.lines += table(["model", "check", "p <= 0.05", "p <= 0.2", "p <= 0.5", "mean p"], lines)
    found = [_power(out, name, *PLANTED[name], count) for name in PLANTED if wanted(name)]
    out.lines += ["Planted misfits:", ""]
    out.lines += table(["misfit", "the right check", "fires", "adjusted", "best attainable test"], found)
    return out


def _calibration(out: Outcome, name: str, formula: str, family: str, count: int) -> list[list[str]]:
    key = list(RIGHT).index(name)
    tables = [_check(formula, family, right(name, np.random.default_rng([SEED, key, k])), k) for k in range(count)]
    allowed = {level: level + 3 * math.sqrt(level * (1 - level) / count) for level in (0.05, 0.2)}
    lines = []
    for row, label in enumerate(tables[0]["check"]):
        p = np.array([float(own["p"].iloc[row]) for own in tables])
        for level, most in allowed.items():
            share = float((p <= level).mean())
            if share > most:
                out.fail(f"{name}, {label}: p <= {level} in {share:.3f} of the data sets")
        shares = [f"{float((p <= level).mean()):.3f}" for level in (0.05, 0.2, 0.5)]
        lines.append([name, label, *shares, f"{p.mean():.2f}"])
    smallest = np.array([float(own["p_adjusted"].min()) for own in tables])
    share = float((smallest <= 0.05).mean())
    if share > allowed[0.05]:
        out.fail(f"{name}: some adjusted p <= 0.05 in {share:.3f} of the data sets")
    lines.append([name, "any, adjusted", f"{share:.3f}", "", "", ""])
    return lines


def _power(out: Outcome, name: str, formula: str, family: str, wanted: str, count: int) -> list[str]:
    adjusted, alone = [], []
    for k in range(count):
        data, _ = planted(name, _stream(name, k))
        own = _check(formula, family, data, k).set_index("check").loc[wanted]
        adjusted.append(float(own["p_adjusted"]) <= 0.05)
        alone.append(float(own["p"]) <= 0.05)
    limit = best(name, count)
    share = float(np.mean(alone))
    if share < min(0.9, limit) - 2 * math.sqrt(0.9 * 0.1 / count):  # two standard errors of a share of 0.9
        out.fail(f"{name}: {wanted} fires in {share:.3f} of the data sets, the best attainable test in {limit:.3f}")
    return [name, wanted, f"{share:.3f}", f"{float(np.mean(adjusted)):.3f}", f"{limit:.3f}"]
