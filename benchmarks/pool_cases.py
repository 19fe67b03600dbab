"""What is timed of `pp.pool` inside a fresh process: cases that `benchmarks.cases` runs. It imports nothing heavy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Units of the call that comes before the clock starts: it loads the kernels and pandas.
WARM_UP = 1_000
#: Shares of the finest likelihood's sd that the dense grid steps by, on the scale that stabilises the variance.
DENSE = 0.02
#: Grid points whose densities are held at a time.
CHUNK = 100


def million_units(family: str, count: int = 1_000_000) -> tuple[Any, dict[str, Any]]:
    """Values, and the arguments that go with them, of units from the family's conjugate population; sizes vary."""
    import numpy as np

    rng = np.random.default_rng([20240505, FAMILIES.index(family)])
    if family == "normal":
        se = rng.uniform(0.5, 2.0, count)
        return 1 + 0.8 * rng.standard_normal(count) + se * rng.standard_normal(count), {"se": se}
    if family == "binomial":  # 1 to some thousand trials, half of the units below 21
        trials = 1 + np.floor(rng.lognormal(3, 1, count)).astype(np.int64)
        return rng.binomial(trials, rng.beta(4, 12, count)), {"trials": trials}
    exposure = rng.lognormal(1, 1, count)
    return rng.poisson(exposure * rng.gamma(3, 1 / 2, count)), {"exposure": exposure}


def mostly_null(count: int) -> tuple[Any, dict[str, Any]]:
    """Estimates of effects of which 90% are null and the rest N(0, 3^2); standard errors from 0.5 to 2."""
    import numpy as np

    rng = np.random.default_rng(20240506)
    effects = 3 * rng.standard_normal(count) * (rng.random(count) < 0.1)
    se = rng.uniform(0.5, 2.0, count)
    return effects + se * rng.standard_normal(count), {"se": se}


FAMILIES = ("normal", "binomial", "poisson")


def pool_million(family: str, count: int = 1_000_000, population: str = "conjugate") -> dict[str, Any]:
    """The second call in a process: units from arrays in memory to the table of all of them."""
    import partialpool as pp
    from benchmarks.cases import peak_gb, timed

    values, sizes = mostly_null(count) if population == "scale_mixture" else million_units(family, count)
    first = {name: array[:WARM_UP] for name, array in sizes.items()}
    _ = pp.pool(values[:WARM_UP], population=population, **first).table
    before, cpu = peak_gb(), time.process_time()
    pooling, pooled = timed(lambda: pp.pool(values, population=population, **sizes))
    tabling, table = timed(lambda: pooled.table)
    cpu = time.process_time() - cpu
    assert len(table) == count and bool(table["mean"].notna().all())
    return {
        "seconds": pooling + tabling, "pool_seconds": pooling, "table_seconds": tabling, "cpu_seconds": cpu,
        "peak_gb": peak_gb(), "before_gb": before, "trusted": pooled.accuracy.trusted,
        "error": pooled.accuracy.error, "accuracy": repr(pooled.accuracy), "method": pooled.method,
        "summary": pooled.summary().to_dict("index"),
    }  # fmt: skip


def pool_npmle(family: str, count: int = 10_000) -> dict[str, Any]:
    """The non-parametric population of 10,000 units, and its gap as this file measures it."""
    import partialpool as pp
    from benchmarks.cases import peak_gb, timed

    values, sizes = million_units(family, count)
    small = {name: array[:WARM_UP] for name, array in sizes.items()}
    _ = pp.pool(values[:WARM_UP], population="npmle", **small).table
    seconds, pooled = timed(lambda: pp.pool(values, population="npmle", **sizes))
    peak = peak_gb()
    tabling, _ = timed(lambda: pooled.table)
    places, masses = pooled.population.atoms
    checking, (gap, points) = timed(
        lambda: measured_gap(family, values, next(iter(sizes.values())), places, masses)
    )  # fmt: skip
    return {
        "seconds": seconds, "table_seconds": tabling, "peak_gb": peak, "points": len(places),
        "gap_told": pooled.accuracy.error, "gap": gap, "grid": points, "check_seconds": checking,
        "trusted": pooled.accuracy.trusted,
    }  # fmt: skip


def measured_gap(family: str, y: Any, size: Any, places: Any, masses: Any) -> tuple[float, int]:
    """The largest mean_i f(y_i | theta) / g(y_i) - 1 over theta, by code that shares nothing with the package's.

    Densities are scipy's. The grid steps evenly on the scale that stabilises the variance, by 2% of the finest
    likelihood's sd (more only where that would need over 6,000 places); every local maximum of it within 1e-3 of the
    largest value is followed by a bounded search.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.stats import binom, norm, poisson

    y, size = np.asarray(y, dtype=float), np.asarray(size, dtype=float)
    if family == "normal":
        log_density: Callable[[Any], Any] = lambda theta: norm.logpdf(y[:, None], theta, size[:, None])  # noqa: E731
        ends, step, back = (y.min(), y.max()), DENSE * size.min(), lambda t: t
    elif family == "binomial":
        log_density = lambda theta: binom.logpmf(y[:, None], size[:, None], theta)  # noqa: E731
        ends, step, back = (0.0, np.pi), DENSE / np.sqrt(size.max()), lambda t: np.sin(t / 2) ** 2
    else:
        log_density = lambda theta: poisson.logpmf(y[:, None], size[:, None] * theta)  # noqa: E731
        ends, step, back = (0.0, 2 * np.sqrt((y / size).max())), DENSE / np.sqrt(size.max()), lambda t: (t / 2) ** 2
    count = int(min(max(np.ceil((ends[1] - ends[0]) / step), 2_000), 6_000))
    angles = np.linspace(*ends, count + 1)
    grid = np.clip(back(angles), back(ends[0]), back(ends[1]))
    with np.errstate(divide="ignore"):
        offset = np.logaddexp.reduce(log_density(places) + np.log(masses), axis=1)[:, None]

    def derivative(theta: Any) -> Any:
        return np.exp(log_density(np.atleast_1d(theta)) - offset).mean(axis=0) - 1

    parts = [derivative(grid[low : low + CHUNK]) for low in range(0, grid.size, CHUNK)]
    values = np.concatenate(parts)
    inner = np.flatnonzero((values[1:-1] >= values[:-2]) & (values[1:-1] >= values[2:])) + 1
    best = max(float(values.max()), float(derivative(places).max()))
    for top in inner[values[inner] > best - 1e-3]:
        found = minimize_scalar(
            lambda t: -derivative(back(t))[0], bounds=(angles[top - 1], angles[top + 1]), method="bounded",
            options={"xatol": 1e-3 * (angles[1] - angles[0]), "maxiter": 40},
        )  # fmt: skip
        best = max(best, -float(found.fun))
    return best, grid.size


#: File, arguments of `pp.pool` with the columns' names, as the guides have them.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "tumors": ("tumors.csv", {"values": "y", "trials": "K", "priors": "bda"}),
    "eight_schools": ("eight_schools.csv", {"values": "y", "se": "sigma", "units": "school"}),
    "bball1970": ("bball1970.csv", {"values": "Hits", "trials": "AB", "units": "Player"}),
}


def pool_small(which: str, path: str, calls: int = 30) -> dict[str, Any]:
    """Milliseconds of pool and table, full Bayes, of a data frame in memory: the first call, the median of others."""
    import statistics

    import pandas

    import partialpool as pp
    from benchmarks.cases import timed

    data = pandas.read_csv(path)
    arguments = dict(SMALL[which][1])
    values = arguments.pop("values")

    def once() -> Any:
        pooled = pp.pool(values, data=data, **arguments)
        return pooled, pooled.table

    found = [timed(once) for _ in range(1 + calls)]
    pooled = found[-1][1][0]
    return {
        "first_ms": 1000 * found[0][0], "ms": 1000 * statistics.median(seconds for seconds, _ in found[1:]),
        "units": pooled.units.n, "nodes": pooled.accuracy.nodes, "error": pooled.accuracy.error,
        "trusted": pooled.accuracy.trusted,
    }  # fmt: skip


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    case.__name__: case for case in (pool_million, pool_npmle, pool_small)
}
