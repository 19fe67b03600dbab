"""`fit.loo()` and `fit.logo()` of Gaussian models against marginal likelihoods of refits; their time and memory.

The exact value of a unit is log p(y) - log p(y without it) under the priors of the full fit, each marginal likelihood
from importance sampling with an effective sample size of 200,000 (a Monte Carlo error of 0.003).
"""

from __future__ import annotations

import math
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table
from benchmarks.data import read

SEED = 20261121
ESS = 200_000
#: What is allowed beside 4 reported errors, by what is left out; the largest error that may be reported.
ALLOWED = {"rows": 0.02, "groups": 0.05}
REPORTED = 0.03
#: Seconds that leaving groups out may take.
SECONDS = {"sleepstudy": 2.0, "radon": 10.0}
SLEEP, RADON = "Reaction ~ Days + (Days | Subject)", "log_radon ~ floor + (1 | county)"
#: Seconds and bytes of 100,000 rows and 5,000 groups with 2 threads.
LARGE_SECONDS, LARGE_BYTES = 20.0, 2e9


def exact_values(model: Any, units: list[np.ndarray], ess: float, threads: int) -> np.ndarray:
    """log p(y) - log p(y without a unit), by fits of their own."""
    options = {"draws": 100, "ess": ess, "threads": 1, "progress": False}
    n = model.design.n_rows

    def one(number: int) -> float:
        if number < 0:
            return float(model.fit(seed=SEED, **options).log_marginal_likelihood)
        part = model.take_rows(np.setdiff1d(np.arange(n), units[number]))
        return float(part.fit(seed=SEED + 1 + number, **options).log_marginal_likelihood)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(one, range(-1, len(units))))
    return found[0] - np.array(found[1:])


def compared(out: Outcome, name: str, answer: Any, exact: np.ndarray, which: np.ndarray, kind: str) -> list[str]:
    """One line of the table; failures are told."""
    apart = answer.pointwise.elpd[which] - exact
    error = answer.pointwise.error[which]
    allowed = np.maximum(ALLOWED[kind], 4 * error)
    bad = np.flatnonzero(~(np.abs(apart) <= allowed))
    if bad.size:
        worst = bad[np.argmax(np.abs(apart[bad]))]
        out.fail(f"{name}: {bad.size} of {kind} miss the exact value, by up to {apart[worst]:+.3f}")
    if not answer.pointwise.error.max() <= REPORTED:
        out.fail(f"{name}: a reported error of {answer.pointwise.error.max():.3f}, above {REPORTED}")
    high = float((answer.pointwise.pareto_k > 0.7).mean())
    if kind == "rows" and high > 0.01:
        out.fail(f"{name}: Pareto k above 0.7 in {100 * high:.1f}% of rows")
    total = float(apart.sum())
    if len(which) == answer.units and not abs(total) <= 4 * answer.mc_error:
        out.fail(f"{name}: the total is {total:+.3f} off, above 4 times its error {answer.mc_error:.3f}")
    out.data[name] = {
        "units": len(which), "worst": float(np.abs(apart).max()), "rms": float(np.sqrt(np.mean(apart**2))),
        "largest_error": float(answer.pointwise.error.max()), "total": total, "mc_error": answer.mc_error,
        "high_k": high, "refitted": int(answer.pointwise.refitted.sum()),
    }  # fmt: skip
    return [
        name, f"{len(which)}", f"{np.abs(apart).max():.4f}", f"{np.sqrt(np.mean(apart**2)):.4f}",
        f"{answer.pointwise.error.max():.3f}", f"{total:+.3f}", f"{answer.mc_error:.3f}", f"{100 * high:.1f}%",
        f"{int(answer.pointwise.refitted.sum())}",
    ]  # fmt: skip


def timed(ask: Any, *arguments: Any, **options: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    found = ask(*arguments, **options)
    return found, time.perf_counter() - began


def large(connection: Any) -> None:
    """100,000 rows, 5,000 groups, in a process of its own: seconds of the fit, of both, and the peak of memory."""
    import resource

    import pandas as pd

    import partialpool as pp
    from partialpool.algebra.jit import warm_up
    from partialpool.criticism.logo import logo
    from partialpool.criticism.loo import loo

    warm_up()
    rng = np.random.default_rng(SEED)
    g, x = rng.integers(0, 5000, 100_000), rng.normal(size=100_000)
    u = rng.normal(size=(5000, 2)) * [0.7, 0.4]
    data = pd.DataFrame({"y": 1 + 0.5 * x + u[g, 0] + u[g, 1] * x + rng.normal(size=g.size), "x": x, "g": g})
    fit, of_fit = timed(pp.fit, "y ~ x + (x | g)", data, seed=SEED, threads=2, progress=False)
    rows, of_rows = timed(loo, fit, threads=2)
    groups, of_groups = timed(logo, fit, threads=2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    connection.send((of_fit, of_rows, of_groups, float(peak), rows.mc_error, groups.mc_error))
    connection.close()


def run(ess: float = ESS, threads: int = 2, units: int | None = None, big: bool = True, **_: Any) -> Outcome:
    """`units`: how many rows and groups are compared, evenly spread; all by default."""
    import partialpool as pp
    from partialpool.criticism.logo import logo
    from partialpool.criticism.loo import loo

    out = Outcome("rows and groups left out of Gaussian models, against marginal likelihoods of refits", True)
    lines, seconds = [], []
    sleep = pp.Model.from_formula(SLEEP, read("sleepstudy"))
    fit = sleep.fit(seed=SEED, threads=threads, progress=False)
    logo(fit, threads=threads), loo(fit, threads=threads)  # kernels
    rows, of_rows = timed(loo, fit, threads=threads)
    which = _spread(180, units)
    exact = exact_values(sleep, [np.array([row]) for row in which], ess, threads)
    lines.append(compared(out, "sleepstudy, rows", rows, exact, which, "rows"))
    seconds.append(["sleepstudy, rows", f"{of_rows:.2f}", ""])
    radon = pp.Model.from_formula(RADON, pp.datasets.load("radon"))
    for name, model in (("sleepstudy", sleep), ("radon", radon)):
        fit = model.fit(seed=SEED, threads=threads, progress=False)
        groups, took = timed(logo, fit, threads=threads)
        codes = model.design.factors[0].codes
        which = _spread(groups.units, units)
        exact = exact_values(model, [np.flatnonzero(codes == group) for group in which], ess, threads)
        lines.append(compared(out, f"{name}, groups", groups, exact, which, "groups"))
        if took > SECONDS[name]:
            out.fail(f"{name}: leaving groups out took {took:.1f} s, above {SECONDS[name]:.0f}")
        seconds.append([f"{name}, groups", f"{took:.2f}", f"{SECONDS[name]:.0f}"])
        out.data[f"{name}, groups"]["seconds"] = took
    head = ["what", "units", "worst miss", "rms miss", "largest error told", "total off", "its error", "k > 0.7",
            "refitted"]  # fmt: skip
    out.lines += [
        f"`{SLEEP}` and `{RADON}`; exact values with an effective sample size of {ess:,.0f}, seed {SEED}.",
        f"{threads} threads.", "", *table(head, lines),
    ]  # fmt: skip
    if big:
        seconds += _large(out)
    out.lines += table(["what", "seconds", "at most"], seconds)
    return out


def _spread(count: int, most: int | None) -> np.ndarray:
    return np.arange(count) if most is None else np.unique(np.linspace(0, count - 1, most).astype(int))


def _large(out: Outcome) -> list[list[str]]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=large, args=(theirs,))
    process.start()
    theirs.close()
    of_fit, of_rows, of_groups, peak, rows_error, groups_error = mine.recv()
    process.join()
    for what, took in (("rows", of_rows), ("groups", of_groups)):
        if took > LARGE_SECONDS:
            out.fail(f"100,000 rows, 5,000 groups: leaving {what} out took {took:.1f} s, above {LARGE_SECONDS:.0f}")
    if not peak <= LARGE_BYTES or math.isnan(peak):
        out.fail(f"100,000 rows, 5,000 groups: {peak / 1e9:.2f} GB, above {LARGE_BYTES / 1e9:.0f}")
    out.data["large"] = {
        "fit": of_fit, "rows": of_rows, "groups": of_groups, "bytes": peak, "rows_error": rows_error,
        "groups_error": groups_error,
    }  # fmt: skip
    out.lines.append(
        f"100,000 rows, 5,000 groups, slopes, 2 threads: fit {of_fit:.1f} s, peak memory of all {peak / 1e9:.2f} GB; "
        f"errors of the totals {rows_error:.2f} (rows) and {groups_error:.2f} (groups)."
    )
    out.lines.append("")
    return [
        ["100,000 rows", f"{of_rows:.1f}", f"{LARGE_SECONDS:.0f}"],
        ["5,000 groups of them", f"{of_groups:.1f}", f"{LARGE_SECONDS:.0f}"],
    ]
