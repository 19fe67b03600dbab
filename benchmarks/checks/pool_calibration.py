"""Simulation-based calibration of `pp.pool`: true values, drawn from the prior, have uniform places in the posterior.

The statistics and the judgement are those of `calibration`. Data are simulated here, from the priors as stated, and
not by the package. 12 units, whose standard errors, trials and exposures vary (`SIZES`). theta is a unit's mean,
probability or rate, eta its logit or log:

normal        theta ~ N(mean, sd^2): mean ~ Normal(0, 1), sd ~ HalfNormal(1)
beta          theta ~ beta of that mean and sd: mean ~ Beta(2, 3), sd ~ HalfNormal(0.2), both drawn again until
              sd^2 < mean (1 - mean)
beta, relative sd    mean ~ Beta(2, 3), sd / sqrt(mean (1 - mean)) ~ Beta(2, 4)
gamma         theta ~ gamma of that mean and sd: mean ~ Gamma(3, rate 2), sd ~ HalfNormal(1)
binomial, normal     eta ~ N(mean, sd^2): mean ~ Normal(-1, 1), sd ~ HalfNormal(1)
Poisson, normal      the same with mean ~ Normal(0.5, 0.7), sd ~ HalfNormal(0.7)
student_t     theta ~ mean + sd t(nu): mean ~ Normal(0, 1), sd ~ HalfNormal(1), nu ~ Gamma(2, rate 0.1)
point_normal  theta = 0 with probability null_share, else N(0, sd^2): sd ~ HalfNormal(3), null_share ~ Beta(1, 1)

A unit's place is P(theta < true value) by `Pooled.posterior.cdf`, at random within the point mass where the true value
is it; a hyperparameter's is found among the 255 quantiles of its posterior, computed as `Pooled.summary` computes those
it shows. Places are told as ranks among 255, so that the figures compare with the other calibrations. The spoiled
version moves every quantile of a posterior to its mean by the factor 0.9 (for positive hyperparameters on the log
scale), but for the point mass.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.checks import Outcome
from benchmarks.checks.calibration import BINS, RANKED, SPOILED, THRESHOLD, draw_ranks, judge

#: Fixed before the first run.
SEED = 20261121
REPLICATES, UNITS = 1000, 12
#: Units whose places are checked, besides all hyperparameters.
CHECKED = np.array([0, 5, 11])
LEVELS = np.arange(1, RANKED + 1) / (RANKED + 1)
#: Replicates that a worker is handed at once.
PART = 20

Array = np.ndarray
True_ = tuple[dict[str, float], Array]
#: Standard errors, trials and exposures of the units.
SIZES = {
    "se": np.geomspace(0.4, 2.0, UNITS),
    "trials": np.array([3, 60, 5, 45, 8, 30, 12, 25, 15, 20, 10, 40]),
    "exposure": np.geomspace(0.5, 20.0, UNITS)[::-1].copy(),
}


@dataclass(frozen=True)
class Design:
    """A population: which sizes its units have, its name and priors for `pp.pool`, and what draws true values."""

    size: str
    population: str
    priors: Callable[[Any], dict[str, Any]]
    draw: Callable[[np.random.Generator], True_]


def _normal(rng: np.random.Generator) -> True_:
    mean, sd = rng.standard_normal(), abs(rng.standard_normal())
    return {"mean": mean, "sd": sd}, mean + sd * rng.standard_normal(UNITS)


def _beta(rng: np.random.Generator) -> True_:
    while True:
        mean, sd = rng.beta(2, 3), 0.2 * abs(rng.standard_normal())
        if sd**2 < mean * (1 - mean):
            return _beta_units(rng, mean, sd)


def _relative_beta(rng: np.random.Generator) -> True_:
    mean, relative = rng.beta(2, 3), rng.beta(2, 4)
    return _beta_units(rng, mean, relative * np.sqrt(mean * (1 - mean)))


def _beta_units(rng: np.random.Generator, mean: float, sd: float) -> True_:
    total = mean * (1 - mean) / sd**2 - 1
    alpha, beta = mean * total, (1 - mean) * total
    return {"mean": mean, "sd": sd, "alpha": alpha, "beta": beta}, rng.beta(alpha, beta, UNITS)


def _gamma(rng: np.random.Generator) -> True_:
    mean, sd = rng.gamma(3, 1 / 2), abs(rng.standard_normal())
    shape, rate = (mean / sd) ** 2, mean / sd**2
    return {"mean": mean, "sd": sd, "shape": shape, "rate": rate}, rng.gamma(shape, 1 / rate, UNITS)


def _logits(rng: np.random.Generator) -> True_:
    mean, sd = rng.normal(-1, 1), abs(rng.standard_normal())
    return {"mean": mean, "sd": sd}, 1 / (1 + np.exp(-(mean + sd * rng.standard_normal(UNITS))))


def _logs(rng: np.random.Generator) -> True_:
    mean, sd = rng.normal(0.5, 0.7), 0.7 * abs(rng.standard_normal())
    return {"mean": mean, "sd": sd}, np.exp(mean + sd * rng.standard_normal(UNITS))


def _student(rng: np.random.Generator) -> True_:
    mean, sd, nu = rng.standard_normal(), abs(rng.standard_normal()), rng.gamma(2, 1 / 0.1)
    return {"mean": mean, "sd": sd, "nu": nu}, mean + sd * rng.standard_t(nu, UNITS)


def _points(rng: np.random.Generator) -> True_:
    sd, share = 3 * abs(rng.standard_normal()), rng.random()
    theta = sd * rng.standard_normal(UNITS) * (rng.random(UNITS) >= share)
    return {"sd": sd, "null_share": share}, theta


DESIGNS = {
    "normal": Design(
        "se", "conjugate", lambda pp: {"mean": pp.Normal(0, 1), "sd": pp.HalfNormal(1)}, _normal,
    ),
    "beta": Design(
        "trials", "conjugate", lambda pp: {"mean": pp.Beta(2, 3), "sd": pp.HalfNormal(0.2)}, _beta,
    ),
    "beta, relative sd": Design(
        "trials", "conjugate", lambda pp: {"mean": pp.Beta(2, 3), "relative_sd": pp.Beta(2, 4)}, _relative_beta,
    ),
    "gamma": Design(
        "exposure", "conjugate", lambda pp: {"mean": pp.Gamma(3, 2), "sd": pp.HalfNormal(1)}, _gamma,
    ),
    "binomial, normal": Design(
        "trials", "normal", lambda pp: {"mean": pp.Normal(-1, 1), "sd": pp.HalfNormal(1)}, _logits,
    ),
    "Poisson, normal": Design(
        "exposure", "normal", lambda pp: {"mean": pp.Normal(0.5, 0.7), "sd": pp.HalfNormal(0.7)}, _logs,
    ),
    "student_t": Design(
        "se", "student_t",
        lambda pp: {"mean": pp.Normal(0, 1), "sd": pp.HalfNormal(1), "nu": pp.Gamma(2, 0.1)}, _student,
    ),
    "point_normal": Design(
        "se", "point_normal", lambda pp: {"sd": pp.HalfNormal(3), "null_share": pp.Beta(1, 1)}, _points,
    ),
}  # fmt: skip


def data_of(design: Design, theta: Array, rng: np.random.Generator) -> Array:
    """Estimates, events or counts of units with these true values."""
    size = SIZES[design.size]
    if design.size == "se":
        return theta + size * rng.standard_normal(UNITS)
    return rng.binomial(size, theta) if design.size == "trials" else rng.poisson(size * theta)


def parameter_quantiles(pooled: Any, name: str) -> Array:
    """The quantiles at LEVELS of a hyperparameter's posterior, by the code behind `Pooled.summary`."""
    from partialpool.algebra.mixture import mixture_summary

    model, explored = pooled.found.model, pooled.found.explored
    names, means, sds = model.coefficients_given(explored.nodes)
    if name in names:
        column = [names.index(name)]
        found = mixture_summary(explored.weights, means[:, column], sds[:, column], LEVELS)
        return np.asarray(found[2][:, 0])
    positive = bool((model.parameters(explored.nodes)[name] > 0).all())

    def own(x: Array) -> Array:
        values = model.parameters(x)[name]
        return np.log(np.clip(values, 1e-300, 1e300)) if positive else values

    found = explored.quantiles(own, LEVELS)
    return np.exp(found) if positive else np.asarray(found)


@dataclass(frozen=True)
class Replicate:
    """Ranks of the true values by parameter, the same for spoiled posteriors, and whether the fit trusts itself."""

    ranks: dict[str, int]
    spoiled: dict[str, int]
    trusted: bool


def replicated(design: Design, rng: np.random.Generator) -> Replicate:
    """Draw true values and data, pool the data, find the true values' places in the posterior."""
    import partialpool as pp

    true, theta = design.draw(rng)
    y = data_of(design, theta, rng)
    sizes = {design.size: SIZES[design.size]}
    pooled = pp.pool(y, population=design.population, priors=design.priors(pp), threads=1, **sizes)
    ranks, spoiled = {}, {}
    for name, value in true.items():
        quantiles = parameter_quantiles(pooled, name)
        ranks[name] = int(np.searchsorted(quantiles, value))
        # alpha, beta, shape and rate may have no mean: their logs are moved
        own, place = (np.log(quantiles), np.log(value)) if quantiles[0] > 0 else (quantiles, value)
        middle = own.mean()
        spoiled[name] = int(np.searchsorted(middle + SPOILED * (own - middle), place))
    mean = pooled.posterior.moments()[0][CHECKED]
    own = theta[CHECKED]
    atoms = pooled.posterior.atom(0.0, CHECKED) if design.population == "point_normal" else np.zeros(CHECKED.size)
    atoms = np.where(own == 0, atoms, 0.0)
    within = rng.random(CHECKED.size) * atoms
    wide = np.where(atoms > 0, own, mean + (own - mean) / SPOILED)
    for places, out in ((own, ranks), (wide, spoiled)):
        below = np.clip(pooled.posterior.cdf(places, CHECKED) - within, 0.0, 1.0)
        for unit, share in zip(CHECKED, below, strict=True):
            out[f"theta[{unit}]"] = min(int(share * (RANKED + 1)), RANKED)
    return Replicate(ranks, spoiled, bool(pooled.accuracy.trusted))


def several(name: str, seed: int, start: int, stop: int) -> tuple[list[Replicate], float]:
    """The replicates start..stop of a population, each with a random number generator of its own; processor seconds."""
    position, cpu = list(DESIGNS).index(name), time.process_time()
    found = [replicated(DESIGNS[name], np.random.default_rng([seed, position, k])) for k in range(start, stop)]
    return found, time.process_time() - cpu


def run(
    replicates: int = REPLICATES,
    seed: int = SEED,
    models: list[str] | None = None,
    workers: int | None = None,
    **_: Any,
) -> Outcome:
    out = Outcome("simulation-based calibration of pooled units", True, data={"seed": seed, "replicates": replicates})
    out.lines.append(
        f"{replicates:,} replicates of each population, {UNITS} units, method='bayes', seed {seed}; places of the true "
        f"values among {RANKED} quantiles, {BINS} bins. Asked: smallest p times the number of parameters > "
        f"{THRESHOLD}, for both statistics. `spoiled` is the same with every posterior narrowed to its mean by a "
        f"factor of {SPOILED}: it has to fail. Populations and priors: `benchmarks/checks/pool_calibration.py`."
    )
    histograms = {}
    with ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name in DESIGNS:
            if models is None or name in models:
                several(name, seed, 0, 1)  # compiles the kernels, once for all workers
                ranks, spoiled, notes = _ranks(pool, name, seed, replicates)
                histograms[name] = ranks
                judge(out, name, ranks, spoiled, notes, replicates)
    out.draw = lambda folder: draw_ranks(histograms, folder / "pool_calibration.png")
    return out


Ranks = dict[str, list[int]]


def _ranks(pool: ProcessPoolExecutor, name: str, seed: int, replicates: int) -> tuple[Ranks, Ranks, list[str]]:
    starts = range(0, replicates, PART)
    parts = [pool.submit(several, name, seed, start, min(start + PART, replicates)) for start in starts]
    ranks: Ranks = {}
    spoiled: Ranks = {}
    untrusted, cpu = 0, 0.0
    for start, part in zip(starts, parts, strict=True):
        if start % 200 == 0:
            print(f"  {name}: {start:,} of {replicates:,}", file=sys.stderr, flush=True)
        found, seconds = part.result()
        cpu += seconds
        for one in found:
            untrusted += not one.trusted
            for parameter in one.ranks:
                ranks.setdefault(parameter, []).append(one.ranks[parameter])
                spoiled.setdefault(parameter, []).append(one.spoiled[parameter])
    each = f"{1000 * cpu / replicates:.0f} ms of processor time each"
    return ranks, spoiled, [f"fits that did not trust themselves: {untrusted}; {each}"]
