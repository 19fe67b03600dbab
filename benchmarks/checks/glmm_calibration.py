"""Simulation-based calibration where the response is not Gaussian: the code and the statistics of `calibration`.

Data are simulated here, from the priors as stated, and not by the package. 25 groups,
`y ~ x + (1 | g)`, x standard normal:

Bernoulli, 8 rows a group:
    Intercept ~ Normal(0, 1), x ~ Normal(0, 1), sd(g) ~ HalfNormal(1)
Poisson, 8 rows a group, sparse: the mean is about 0.3
    Intercept ~ Normal(-1.4, 0.4), x ~ Normal(0, 0.3), sd(g) ~ HalfNormal(0.5)
Negative binomial (NB2), 6 rows a group:
    Intercept ~ Normal(1, 0.5), x ~ Normal(0, 0.5), sd(g) ~ HalfNormal(0.7), phi ~ Gamma(3, 1)

Each replicate has a random number generator of its own, so that the result does not depend on how many processes work.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.checks import Outcome
from benchmarks.checks.calibration import (
    BINS,
    DRAWS,
    RANKED,
    REPLICATES,
    SPOILED,
    THRESHOLD,
    Replicate,
    Simulated,
    draw_ranks,
    judge,
    replicated,
)

#: Fixed before the first run.
SEED = 20261121
GROUPS = 25
#: Replicates that a worker is handed at once.
PART = 20
FORMULA = "y ~ x + (1 | g)"

Simulate = Callable[[np.random.Generator], Simulated]
Drawn = tuple[dict[str, float], np.ndarray, np.ndarray]


def _drawn(rng: np.random.Generator, intercept: tuple[float, float], slope: float, scale: float) -> Drawn:
    """True values of an intercept, a slope, a group sd and three effects, and the effects."""
    sd = scale * abs(rng.standard_normal())
    u = sd * rng.standard_normal(GROUPS)
    values = np.array([intercept[0] + intercept[1] * rng.standard_normal(), slope * rng.standard_normal()])
    true = {"Intercept": values[0], "x": values[1], "sd(Intercept|g)": sd, "g[g00]": u[0], "g[g11]": u[11],
            "g[g24]": u[24]}  # fmt: skip
    return true, values, u


def bernoulli(g: np.ndarray, x: np.ndarray) -> tuple[str, dict[str, Any], Simulate]:
    """Family, priors, and a function that draws true values and a response."""
    import partialpool as pp

    def simulate(rng: np.random.Generator) -> Simulated:
        true, beta, u = _drawn(rng, (0.0, 1.0), 1.0, 1.0)
        eta = beta[0] + beta[1] * x + u[g]
        return (rng.random(g.size) < 1 / (1 + np.exp(-eta))).astype(float), true

    priors = {"Intercept": pp.Normal(0, 1), "x": pp.Normal(0, 1), "sd(g)": pp.HalfNormal(1)}
    return "bernoulli", priors, simulate


def poisson(g: np.ndarray, x: np.ndarray) -> tuple[str, dict[str, Any], Simulate]:
    import partialpool as pp

    def simulate(rng: np.random.Generator) -> Simulated:
        true, beta, u = _drawn(rng, (-1.4, 0.4), 0.3, 0.5)
        return rng.poisson(np.exp(beta[0] + beta[1] * x + u[g])).astype(float), true

    priors = {"Intercept": pp.Normal(-1.4, 0.4), "x": pp.Normal(0, 0.3), "sd(g)": pp.HalfNormal(0.5)}
    return "poisson", priors, simulate


def negative_binomial(g: np.ndarray, x: np.ndarray) -> tuple[str, dict[str, Any], Simulate]:
    import partialpool as pp

    def simulate(rng: np.random.Generator) -> Simulated:
        true, beta, u = _drawn(rng, (1.0, 0.5), 0.5, 0.7)
        phi = rng.gamma(3.0, 1.0)
        mean = np.exp(beta[0] + beta[1] * x + u[g])
        return rng.poisson(mean * rng.gamma(phi, 1 / phi, g.size)).astype(float), {**true, "phi": phi}

    priors = {"Intercept": pp.Normal(1, 0.5), "x": pp.Normal(0, 0.5), "sd(g)": pp.HalfNormal(0.7),
              "phi": pp.Gamma(3, 1)}  # fmt: skip
    return "negative_binomial", priors, simulate


#: The model and its rows a group.
MODELS: dict[str, tuple[Callable[..., tuple[str, dict[str, Any], Simulate]], int]] = {
    "bernoulli": (bernoulli, 8),
    "poisson": (poisson, 8),
    "negative_binomial": (negative_binomial, 6),
}


def prepared(name: str, seed: int) -> tuple[Any, Simulate]:
    """The model with its fixed x, every prior stated, and what simulates its responses."""
    import partialpool as pp

    design, rows = MODELS[name]
    g = np.repeat(np.arange(GROUPS), rows)
    x = np.random.default_rng([seed, list(MODELS).index(name)]).standard_normal(g.size)
    family, priors, simulate = design(g, x)
    first = np.tile([0.0, 1.0], g.size)[: g.size]  # any response will do: every prior is stated
    data = {"g": [f"g{k:02d}" for k in g], "x": x, "y": first}
    model = pp.Model.from_formula(FORMULA, data, family=family, priors=priors)
    unstated = [slot for slot, _ in model.priors.items() if model.priors.source(slot) == "default"]
    assert not unstated, unstated
    return model, simulate


def several(name: str, seed: int, start: int, stop: int) -> list[Replicate]:
    """The replicates start..stop of a model: what a worker is asked for."""
    model, simulate = prepared(name, seed)
    position = list(MODELS).index(name)
    return [
        replicated(model, simulate, np.random.default_rng([seed, position, replicate]))
        for replicate in range(start, stop)
    ]


def run(
    replicates: int = REPLICATES,
    seed: int = SEED,
    models: list[str] | None = None,
    workers: int | None = None,
    **_: Any,
) -> Outcome:
    out = Outcome("simulation-based calibration of other families", True, data={"seed": seed, "replicates": replicates})
    out.lines.append(
        f"{replicates:,} replicates of each model, seed {seed}; ranks among {RANKED} of {DRAWS:,} draws, {BINS} bins. "
        f"Asked: smallest p times the number of parameters > {THRESHOLD}, for both statistics. `spoiled` is the same "
        f"code with every draw moved to its mean by a factor of {SPOILED}: it has to fail. Models and priors: "
        "`benchmarks/checks/glmm_calibration.py`."
    )
    workers = workers or os.cpu_count() or 1
    histograms = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for name in MODELS:
            if models is None or name in models:
                several(name, seed, 0, 1)  # compiles the kernels, once for all workers
                ranks, spoiled, notes = _ranks(pool, name, seed, replicates, workers)
                histograms[name] = ranks
                judge(out, name, ranks, spoiled, notes, replicates)
    out.draw = lambda folder: draw_ranks(histograms, folder / "glmm_calibration.png")
    return out


Ranks = dict[str, list[int]]


def _ranks(
    pool: ProcessPoolExecutor, name: str, seed: int, replicates: int, workers: int
) -> tuple[Ranks, Ranks, list[str]]:
    began = time.perf_counter()
    starts = range(0, replicates, PART)
    parts = [pool.submit(several, name, seed, start, min(start + PART, replicates)) for start in starts]
    ranks: Ranks = {}
    spoiled: Ranks = {}
    engines: Counter[str] = Counter()
    untrusted = 0
    for start, part in zip(starts, parts, strict=True):
        if start % 100 == 0:
            print(f"  {name}: {start:,} of {replicates:,}", file=sys.stderr, flush=True)
        for one in part.result():
            engines[one.engine] += 1
            untrusted += not one.trusted
            for parameter in one.ranks:
                ranks.setdefault(parameter, []).append(one.ranks[parameter])
                spoiled.setdefault(parameter, []).append(one.spoiled[parameter])
    took = time.perf_counter() - began
    counts = ", ".join(f"{engine} {count:,}" for engine, count in engines.items())
    each = 1000 * took * workers / replicates
    return ranks, spoiled, [f"engines: {counts}; fits that did not trust themselves: {untrusted}; {each:.0f} ms each"]
