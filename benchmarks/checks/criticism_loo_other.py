"""Rows and groups left out where the response is not Gaussian: cbpp and GLMM_Poisson, unit by unit.

The exact value is log p(y) - log p(y without the unit) under the full fit's priors. Both come from the same 200,000
weighted draws of hyperparameters and coefficients, of a wide Student-t proposal (none of the library's engines); at
each the groups' effects are integrated by the trapezoid rule on a fixed grid, with densities from scipy: nothing of
the fit's quadrature, importance weights or smoothing takes part. That more than one draw in 20 counts, and that the
exact values' own Monte Carlo errors are far below what is asked, is checked too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, skipped, table
from benchmarks.data import read, reference

#: Fixed before the first run: seeds, draws, degrees of freedom and widening of the proposal; the grid's step and end;
#: what is asked: of rows, of groups, in reported errors, the largest reported error, the share of rows of k > 0.7.
SEED, DRAWS, NU, WIDER, STEP, END = 20261121, 200_000, 5.0, 1.3, 0.125, 8.0
ROW, GROUP, ERRORS, LARGEST, BAD = 0.02, 0.05, 4.0, 0.03, 0.01
#: What the exact values must come with: their largest Monte Carlo error, and the draws that count.
SHARPEST, LEAST = 0.005, DRAWS / 20
BATCH = 1000


@dataclass
class Case:
    """A model: formula, family, priors, data, factor, and scipy's log density of rows (y, trials, eta)."""

    formula: str
    family: str
    priors: dict[str, Any]
    data: Any
    factor: str
    groups: bool
    log_density: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def cases() -> dict[str, Case]:
    """Those of the issue whose data are at hand."""
    import partialpool as pp

    out = {}
    counts = reference("GLMM_Poisson.json")
    if counts is not None:
        years = counts["year"]
        out["GLMM_Poisson"] = Case(
            "C ~ 1 + year + I(year^2) + I(year^3) + (1 | obs)", "poisson",
            {"Intercept": pp.Flat(), "beta": pp.Flat(), "sd(obs)": pp.Uniform(0, 5)},
            {"C": counts["C"], "year": years, "obs": [f"{k:02d}" for k in range(len(years))]}, "obs", False, _poisson,
        )  # fmt: skip
    herds = read("cbpp")
    if herds is not None:
        formula = "incidence | trials(size) ~ period + (1 | herd)"
        out["cbpp"] = Case(formula, "binomial", {}, herds, "herd", True, _binomial)
    return out


def _poisson(y: np.ndarray, trials: np.ndarray, eta: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln

    return np.asarray(y * eta - np.exp(np.minimum(eta, 500.0)) - gammaln(y + 1))


def _binomial(y: np.ndarray, trials: np.ndarray, eta: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln

    choose = gammaln(trials + 1) - gammaln(y + 1) - gammaln(trials - y + 1)
    return np.asarray(choose + y * eta - trials * np.logaddexp(0.0, eta))


@dataclass
class Exact:
    """By row and by group, log p(y) - log p(y without it), with its Monte Carlo error; and how many draws count."""

    rows: np.ndarray
    row_errors: np.ndarray
    groups: np.ndarray
    group_errors: np.ndarray
    draws: float


def exact(case: Case, fit: Any, draws: int, seed: int) -> Exact:
    """By weighted draws of a wide proposal, the effects on a grid."""
    model = fit.model
    theta, gamma = fit.result.draws_theta, model.coefficients.from_public(fit.result.draws_beta)
    place = np.concatenate([theta, gamma], axis=1)
    low = np.linalg.cholesky(np.cov(place.T) * WIDER)
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((draws, place.shape[1]))
    z *= np.sqrt(NU / rng.chisquare(NU, draws))[:, None]
    points = place.mean(axis=0) + z @ low.T
    log_q = -0.5 * (NU + z.shape[1]) * np.log1p((z**2).sum(axis=1) / NU)
    value, without_rows, without_groups = _likelihoods(case, model, points)
    d = theta.shape[1]
    centred = (points[:, d:] - np.array(model.coefficients.mean)) / np.array(model.coefficients.scale)
    proper = np.array(model.coefficients.proper)
    prior = model.hyperparameters.log_prior(points[:, :d])[0] - 0.5 * (centred**2) @ proper
    log_weight = value + prior - log_q
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return Exact(*_ratio(weight, without_rows), *_ratio(weight, without_groups), float(1 / (weight**2).sum()))


def _ratio(weight: np.ndarray, log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log E[exp(log_ratio)] and its Monte Carlo error, by column."""
    from scipy.special import logsumexp

    kept = weight > 0
    joint = np.log(weight[kept])[:, None] + log_ratio[kept]
    mean = logsumexp(joint, axis=0)
    return -mean, np.sqrt(((np.exp(joint - mean) - weight[kept, None]) ** 2).sum(axis=0))


def _likelihoods(case: Case, model: Any, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(y | point) (K,); log p(y without the row) - log p(y) (K, n); the same of groups (K, G)."""
    from scipy.special import logsumexp

    design = model.design
    codes = design.factors[0].codes
    x = design.V[:, design.x_columns]
    trials = np.ones(design.n_rows) if design.trials is None else design.trials
    v = np.arange(-END, END + STEP / 2, STEP)
    log_v = -0.5 * v**2 - 0.5 * np.log(2 * np.pi) + np.log(STEP)
    rows = np.empty((len(points), design.n_rows))
    groups = np.empty((len(points), len(design.factors[0].labels)))
    for start in range(0, len(points), BATCH):
        part = slice(start, start + BATCH)
        eta = model.coefficients.to_public(points[part, 1:]) @ x.T
        spread = np.exp(points[part, 0])[:, None, None] * v
        for g in range(groups.shape[1]):
            own = np.flatnonzero(codes == g)
            each = case.log_density(design.y[own, None], trials[own, None], eta[:, own, None] + spread)
            total = each.sum(axis=1) + log_v
            groups[part, g] = logsumexp(total, axis=1)
            rows[part, own] = logsumexp(total[:, None, :] - each, axis=2) - groups[part, g, None]
    return groups.sum(axis=1), rows, -groups


def run(draws: int = DRAWS, seed: int = SEED, threads: int = 2, **_: Any) -> Outcome:
    """Rows of both; groups of cbpp."""
    import partialpool as pp
    from partialpool.criticism.logo import logo
    from partialpool.criticism.loo import loo

    name = "Rows and groups left out: binomial and Poisson responses against exact values"
    known = cases()
    if not known:
        return skipped(name, "Skipped: neither cbpp nor GLMM_Poisson is in the data folders.")
    out = Outcome(name, True)
    out.lines.append(
        f"Exact: {draws:,} weighted draws, effects on a grid of step {STEP}; seed {seed}. Asked: each row within "
        f"{ROW}, each group within {GROUP}, or {ERRORS:.0f} reported errors; no reported error above {LARGEST}; "
        f"the total within {ERRORS:.0f} reported errors; k > 0.7 for at most {BAD:.0%} of rows."
    )
    rows = []
    for label, case in known.items():
        options = {"priors": case.priors, "seed": seed, "threads": threads, "progress": False}
        fit = pp.fit(case.formula, case.data, family=case.family, **options)
        truth = exact(case, fit, draws, seed)
        if truth.draws < LEAST * draws / DRAWS:
            out.fail(f"{label}: of the draws behind the exact values only {truth.draws:,.0f} count")
        began = time.perf_counter()
        rows.append(_judged(out, f"{label}, rows", loo(fit), truth.rows, truth.row_errors, ROW, began))
        if case.groups:
            began = time.perf_counter()
            found = logo(fit, case.factor)
            rows.append(_judged(out, f"{label}, groups", found, truth.groups, truth.group_errors, GROUP, began))
    heads = ["units left out", "units", "worst difference", "in reported errors", "largest error", "k > 0.7",
             "refits", "total", "exact", "error", "seconds"]  # fmt: skip
    out.lines += ["", *table(heads, rows)]
    return out


def _judged(
    out: Outcome, label: str, found: Any, truth: np.ndarray, sharp: np.ndarray, most: float, began: float
) -> list[str]:
    own = found.pointwise
    seconds = time.perf_counter() - began
    gap = np.abs(own.elpd - truth)
    allowed = np.maximum(most, ERRORS * own.error)
    worst, bad = int(np.argmax(gap)), float((own.pareto_k > 0.7).mean())
    total = abs(float(own.elpd.sum() - truth.sum()))
    if not (gap <= allowed).all():
        out.fail(f"{label}: unit {worst} is off by {gap[worst]:.3f}, its reported error {own.error[worst]:.3f}")
    if not own.error.max() <= LARGEST:
        out.fail(f"{label}: a reported error is {own.error.max():.3f}")
    if not sharp.max() <= SHARPEST:
        out.fail(f"{label}: the exact values are not decisive, their errors reach {sharp.max():.4f}")
    if not total <= ERRORS * own.total_error:
        out.fail(f"{label}: the total is off by {total:.3f}, its reported error {own.total_error:.3f}")
    if "rows" in label and not bad <= BAD:
        out.fail(f"{label}: k is above 0.7 for {bad:.0%}")
    out.data[label] = {
        "worst": float(gap.max()), "error": float(own.error.max()), "total": total, "bad_k": bad,
        "exact_error": float(sharp.max()), "seconds": seconds,
    }  # fmt: skip
    return [
        label, str(len(gap)), f"{gap[worst]:.4f}", f"{(gap / own.error).max():.1f}", f"{own.error.max():.4f}",
        f"{(own.pareto_k > 0.7).sum()} (largest {own.pareto_k.max():.2f})", str(int(own.refitted.sum())),
        f"{own.elpd.sum():.3f}", f"{truth.sum():.3f}", f"{own.total_error:.3f}", f"{seconds:.1f}",
    ]  # fmt: skip
