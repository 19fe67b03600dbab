"""What is timed inside a fresh process: `python -m benchmarks.cases NAME JSON`, the answer as the last line, in JSON.

This module imports nothing heavy, so that what a case imports is the case's own cost.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.criticism_cases import CASES as CRITICISM_CASES
from benchmarks.levels_cases import CASES as LEVELS_CASES
from benchmarks.pool_cases import CASES as POOL_CASES

SLEEPSTUDY = "Reaction ~ Days + (Days | Subject)"
INSTEVAL = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"
SLOPES = "y ~ x + (1 + x | g)"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` took, and what it gave."""
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def peak_gb() -> float:
    """Largest resident memory of this process so far, in units of 10^9 bytes."""
    try:  # of this program alone: what getrusage tells may include the parent's, from before exec
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def importing() -> dict[str, Any]:
    seconds, _ = timed(lambda: __import__("partialpool"))
    return {"seconds": seconds}


def sleepstudy_calls(path: str, frame: bool, calls: int = 4) -> dict[str, Any]:
    """The first and later calls of fit in a process; data as a path, or as a frame read before the clock starts."""
    import partialpool as pp

    if frame:
        import pandas

        data: Any = pandas.read_csv(path, dtype={"Subject": str})
    else:
        data = path
    seconds = [timed(lambda: pp.fit(SLEEPSTUDY, data, draws=4000, seed=1))[0] for _ in range(calls)]
    return {"first": seconds[0], "second": seconds[1], "later": seconds[2:]}


def insteval(path: str) -> dict[str, Any]:
    import pandas

    import partialpool as pp

    data = pandas.read_csv(path, dtype=dict.fromkeys(("s", "d", "studage", "lectage", "service", "dept"), str))
    return _fit_and_tables(pp, INSTEVAL, data, ("s", "d", "dept:service"))


def _fit_and_tables(pp: Any, formula: str, data: Any, factors: tuple[str, ...]) -> dict[str, Any]:
    cpu = time.process_time()
    seconds, fit = timed(lambda: pp.fit(formula, data, draws=4000, seed=1))
    cpu = time.process_time() - cpu
    peak = peak_gb()
    out = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gb": peak,
        "accuracy": repr(fit.accuracy),
        "trusted": fit.accuracy.trusted,
    }
    out["min_hyperparameter_ess"] = min(fit.accuracy.ess[name] for name in fit.model.hyperparameters.names)
    out["surrogate_error"] = fit.accuracy.surrogate_error
    out["summary_seconds"], summary = timed(fit.summary)
    out["summary"] = summary.to_dict("index")
    out["groups_seconds"] = timed(lambda: [fit.groups(factor) for factor in factors])[0]
    out["peak_with_tables_gb"] = peak_gb()
    return out


def gauss1m(save_to: str | None = None) -> dict[str, Any]:
    """A million rows from a data frame in memory; the frame's own memory counts."""
    import os

    import pandas

    import partialpool as pp
    from benchmarks.data import gauss1m as make

    data = pandas.DataFrame(make())
    cpu = time.process_time()
    seconds, fit = timed(lambda: pp.fit(SLOPES, data, draws=4000, seed=1))
    out: dict[str, Any] = {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": peak_gb(),
        "trusted": fit.accuracy.trusted,
    }
    out["accuracy"] = repr(fit.accuracy)
    out["min_hyperparameter_ess"] = min(fit.accuracy.ess[name] for name in fit.model.hyperparameters.names)
    out["summary"] = fit.summary().to_dict("index")
    if save_to:
        for rows, name in ((True, "file_mb"), (False, "file_without_rows_mb")):
            out["save_seconds"] = timed(lambda rows=rows: fit.save(save_to, data=rows))[0]
            out[name] = os.path.getsize(save_to) / 1e6
    out["groups_seconds"] = timed(lambda: fit.groups("g"))[0]
    out["peak_with_tables_gb"] = peak_gb()
    return out


def growth(rows: int, groups: int) -> dict[str, Any]:
    """One fit of synthetic slopes, kernels loaded before by a small one."""
    import pandas

    import partialpool as pp
    from benchmarks.data import correlated_slopes

    pp.fit(SLOPES, pandas.DataFrame(correlated_slopes(500, 20, 1)), draws=4000, seed=1)
    data = pandas.DataFrame(correlated_slopes(rows, groups, 20240501))
    before = peak_gb()
    seconds, fit = timed(lambda: pp.fit(SLOPES, data, draws=4000, seed=1))
    return {"seconds": seconds, "peak_gb": peak_gb(), "before_gb": before, "trusted": fit.accuracy.trusted}


def glmm(model: str, ess: float = 1000, calls: int = 1) -> dict[str, Any]:
    """Fits of a response that is not Gaussian, one after another in this process, from a data frame in memory."""
    import partialpool as pp
    from benchmarks.data import glmm_data

    formula, family, data = glmm_data(model)
    seconds, cpu = [], time.process_time()
    for _ in range(calls):
        took, fit = timed(lambda: pp.fit(formula, data, family=family, ess=ess, seed=1, progress=False))
        seconds.append(took)
        cpu, last = time.process_time(), time.process_time() - cpu
    accuracy = fit.accuracy
    return {
        "seconds": seconds, "cpu_seconds": last, "peak_gb": peak_gb(), "min_ess": min(accuracy.ess.values()),
        "engine": accuracy.engine, "pareto_k": accuracy.pareto_k, "divergences": accuracy.divergences or 0,
        "surrogate_error": accuracy.surrogate_error, "trusted": accuracy.trusted, "nodes": fit.result.quadrature_nodes,
        "accuracy": repr(accuracy), "summary": fit.summary().to_dict("index"),
    }  # fmt: skip


def row_pass(family: str, rows: int = 40_000, groups: int = 4_000) -> dict[str, Any]:
    """Nanoseconds a row and quadrature node, one thread: what 96 nodes cost more than 24, over passes at one point."""
    import numpy

    import partialpool as pp
    from partialpool.algebra.leaf import GRADIENT, VALUE
    from partialpool.inference.joint import JointDensity

    rng = numpy.random.default_rng(20240504)
    g, x = numpy.repeat(numpy.arange(groups), rows // groups), rng.standard_normal(rows)
    eta = 0.5 * x + 0.7 * rng.standard_normal(groups)[g]
    y = rng.poisson(numpy.exp(eta)) if family != "bernoulli" else rng.random(rows) < 1 / (1 + numpy.exp(-eta))
    model = pp.Model.from_formula("y ~ x + (1 | g)", {"y": y.astype(int), "x": x, "g": g}, family=family)
    out: dict[str, Any] = {}
    for want, name in ((VALUE, "value"), (GRADIENT, "gradient")):
        took = {}
        for nodes in (24, 96):
            density = JointDensity(model, nodes=nodes)
            point = density.unpack(numpy.zeros(density.size))
            density.rows_at(want, point)
            took[nodes] = min(timed(lambda d=density, p=point, w=want: d.rows_at(w, p))[0] for _ in range(15))
        out[name] = 1e9 * (took[96] - took[24]) / (72 * rows)
        out[f"{name}_of_24"] = 1e9 * took[24] / (24 * rows)
    return out


def child(command: list[str]) -> dict[str, Any]:
    """Run a program; its standard output, wall time, and largest resident memory."""
    import resource
    import subprocess

    start = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
    return {
        "process_seconds": seconds, "peak_gb": peak, "code": done.returncode,
        "output": done.stdout[-4000:], "error": done.stderr[-2000:],
    }  # fmt: skip


CASES: dict[str, Callable[..., dict[str, Any]]] = (
    {case.__name__: case for case in (importing, sleepstudy_calls, insteval, gauss1m, growth, glmm, row_pass, child)}
    | POOL_CASES
    | LEVELS_CASES
    | CRITICISM_CASES
)

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
