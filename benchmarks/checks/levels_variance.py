"""Intraclass correlations and R-squared at known parameters: the integrals against a simulation.

Pupils in classes in schools, with intercepts that vary by both, and with a slope that varies by class. Effects of a
school and of two of its classes are drawn; given these, the mean and the variance of responses are known, which leaves
no noise of rows in their covariances: of two pupils of one class, and of two of different classes of a school. The
effects are scrambled Sobol points, as many scramblings giving a standard error, which has to be far below the figure
asked for (plain draws are not decisive: the products of two lognormal means have so long a tail that six million of
them leave more than 1%). That responses drawn do have this mean and variance given their effects is a check of its own.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

#: Fixed before the first run: scramblings, log2 of the points of each, responses drawn at each of `AT`; the relative
#: difference allowed, the relative standard error that the simulation may have, and standard errors of responses.
SEED, SCRAMBLINGS, POINTS, DRAWS, MOST, SHARPEST, ERRORS = 20261121, 8, 16, 1_000_000, 0.02, 0.002, 5.0
AT = np.array([-2.0, -1.0, -0.3, 0.5, 1.2])
PLACES = np.array([-1.0, -0.3, 0.4, 1.2])
SCHOOL, CLASS, SLOPE, COVARIANCE = 0.25, 0.30, 0.15, 0.06
#: Under a log link, a third of these variances.
LOG_SCALE = 1 / 3


def families() -> list[tuple[Any, float]]:
    """Families, and the logs of their own parameters."""
    from partialpool.spec import families as f

    return [
        (f.Bernoulli(), 0.0), (f.Bernoulli(link="probit"), 0.0), (f.Bernoulli(link="cloglog"), 0.0), (f.Poisson(), 0.0),
        (f.NegativeBinomial(), np.log(2.0)), (f.Gamma(), np.log(3.0)), (f.LogNormal(), np.log(0.5)),
        (f.Beta(), np.log(4.0)),
    ]  # fmt: skip


def by_formula(family: Any, own: float, slope: bool) -> np.ndarray:
    """ICC of a school and of a class, R-squared marginal and conditional."""
    from partialpool.levels.decomposition import wanted_sets
    from partialpool.levels.response_scale import partition, variance_powers

    scale = LOG_SCALE if family.link in ("log", "identity") else 1.0
    eta, rooms = -0.3 + 0.5 * PLACES, CLASS + slope * (2 * COVARIANCE * PLACES + SLOPE * PLACES**2)
    sets = [frozenset({0}), frozenset({0, 1})]
    shift = 0.5 * np.exp(2 * own) if family.name == "lognormal" else 0.0
    variances = [np.full((1, 1), SCHOOL * scale), rooms[None, :] * scale]
    found = partition(family, eta[None, :], variances, wanted_sets(sets), variance_powers(family, own), shift)
    between = [found.shared[levels].mean() for levels in sets]
    given, explained = between[1] + found.noise.mean(), found.mean.var()
    whole = explained + given
    return np.array([between[0] / given, between[1] / given, explained / whole, (explained + between[1]) / whole])


def by_simulation(family: Any, own: float, slope: bool, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same by drawing effects, and its relative standard errors."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    scale = LOG_SCALE if family.link in ("log", "identity") else 1.0
    covariance = scale * np.array([[CLASS, slope * COVARIANCE], [slope * COVARIANCE, slope * SLOPE]])
    found = np.empty((SCRAMBLINGS, 4))
    for k, rng in enumerate(np.random.default_rng(seed).spawn(SCRAMBLINGS)):
        school, one, other = ndtri(qmc.Sobol(3, seed=rng).random_base2(POINTS)).T
        parts, means = np.empty((len(PLACES), 3)), np.empty(len(PLACES))
        for at, x in enumerate(PLACES):
            room = np.sqrt(np.array([1.0, x]) @ covariance @ [1.0, x])
            place = -0.3 + 0.5 * x + np.sqrt(SCHOOL * scale) * school
            first, second = (family.mean(place + room * effect, own, 0.0) for effect in (one, other))
            noise = family.variance(place + room * one, own, 0.0).mean()
            parts[at] = np.cov(first, second)[0, 1], first.var(), first.var() + noise
            means[at] = first.mean()
        of_school, of_room, given = parts.mean(axis=0)
        whole = np.var(means) + given
        found[k] = of_school / given, of_room / given, np.var(means) / whole, (np.var(means) + of_room) / whole
    mean = found.mean(axis=0)
    return mean, found.std(axis=0, ddof=1) / np.sqrt(SCRAMBLINGS) / mean


def of_responses(family: Any, own: float, draws: int, rng: np.random.Generator) -> float:
    """How far mean and variance of responses drawn are from those taken for known, in standard errors, at most."""
    worst = 0.0
    for eta in AT:
        y = family.simulate(rng, np.full(draws, eta), own)
        mean, variance = (float(of(eta, own, 0.0)) for of in (family.mean, family.variance))
        square = (y - mean) ** 2
        worst = max(worst, *(abs(v.mean() - m) / (v.std() / draws**0.5) for v, m in ((y, mean), (square, variance))))
    return worst


def run(draws: int = DRAWS, seed: int = SEED, **_: Any) -> Outcome:
    """Every family with intercepts, and with a slope."""
    out = Outcome("Variance by level at known parameters: integrals against a simulation", True)
    names = ["ICC school", "ICC class", "R2 marginal", "R2 conditional"]
    out.lines.append(
        f"{SCRAMBLINGS} x {2**POINTS:,} simulated schools at each of {len(PLACES)} rows, seed {seed}; asked: within "
        f"{MOST:.0%} of them, at a standard error of at most {SHARPEST:.1%}. Responses ({draws:,} at each of {len(AT)} "
        f"places): mean and variance within {ERRORS:.0f} standard errors of those taken for known."
    )
    rows, started = [], time.perf_counter()
    for number, (family, own) in enumerate(families()):
        away = of_responses(family, own, draws, np.random.default_rng([seed, number]))
        if not away <= ERRORS:
            out.fail(f"{family}: responses are {away:.1f} standard errors from their mean or variance")
        for slope in (False, True):
            formula = by_formula(family, own, slope)
            simulated, error = by_simulation(family, own, slope, [seed, number, int(slope)])
            gap = formula / simulated - 1
            label = f"{family}, {'slope by class' if slope else 'intercepts'}"
            cells = [f"{a:.4f} ({e:+.3%})" for a, e in zip(formula, gap, strict=True)]
            rows.append([label, *cells, f"{error.max():.3%}", f"{away:.1f}"])
            out.data[label] = float(np.abs(gap).max())
            if not np.abs(gap).max() <= MOST:
                out.fail(f"{label}: off by {np.abs(gap).max():.1%}")
            if not error.max() <= SHARPEST:
                out.fail(f"{label}: the simulation is not decisive, its standard error is {error.max():.1%}")
    heads = ["family", *names, "largest se", "responses (se)"]
    out.lines += ["", *table(heads, rows), f"{time.perf_counter() - started:.0f} s"]
    return out
