"""What is measured of criticism in a fresh process: cases that `benchmarks.cases` runs. It imports nothing heavy."""

from __future__ import annotations

from typing import Any

RADON = "log_radon ~ floor + (1 | county)"


def groups_left_out(formula: str, path: str, ids: str) -> dict[str, Any]:
    """The first and the second call of `fit.logo()` in a process, the fit made before the clock starts."""
    import partialpool as pp
    from benchmarks.cases import timed

    fit = pp.fit(formula, path, seed=1)
    seconds, found = zip(*(timed(fit.logo) for _ in range(2)), strict=True)
    return {
        "first": seconds[0], "seconds": seconds[1], "units": len(found[1].table), "error": found[1].mc_error,
        "refits": int(found[1].table["refitted"].sum()), "ids": ids,
    }  # fmt: skip


def large_left_out(family: str, rows: int = 100_000, groups: int = 5_000) -> dict[str, Any]:
    """`fit.loo()` and `fit.logo()` of many rows, with 2 threads; the peak is that of the whole process."""
    import numpy as np

    import partialpool as pp
    from benchmarks.cases import peak_gb, timed

    rng = np.random.default_rng(20261121)
    g, x = rng.permutation(np.arange(rows) % groups), rng.normal(size=rows)
    eta = 0.5 + 0.4 * x + 0.7 * rng.normal(size=groups)[g]
    y = eta + rng.normal(size=rows) if family == "gaussian" else rng.binomial(1, 1 / (1 + np.exp(-eta)))
    fit = pp.fit("y ~ x + (1 | g)", {"y": y, "x": x, "g": g}, family=family, seed=1, threads=2)
    before = peak_gb()
    loo, left = timed(lambda: fit.loo(threads=2))
    logo, out = timed(lambda: fit.logo(threads=2))
    return {
        "loo": loo, "logo": logo, "fit_gb": before, "peak_gb": peak_gb(), "loo_error": left.mc_error,
        "logo_error": out.mc_error, "refits": int(left.table["refitted"].sum() + out.table["refitted"].sum()),
    }  # fmt: skip


CASES = {case.__name__: case for case in (groups_left_out, large_left_out)}
