"""The parts of the benchmark whose response is not Gaussian; each row bears the bound that it is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.data import GLMMS, find, insteval
from benchmarks.gather import cpu_note, gather
from benchmarks.process import run_case
from benchmarks.report import Report, Row

#: Milliseconds an effective draw of VerbAgg that are asked: a tenth of NumPyro's (785 draws in 20.4 s on such a
#: machine), which is less than a hundredth of rstanarm's (487 in 151 s).
VERBAGG_MS = 2.6


def _note(runs: list[dict[str, Any]], note: str) -> str:
    if not runs:
        return note
    last = runs[-1]
    notes = [
        f"smallest ESS of any parameter {min(run['min_ess'] for run in runs):,.0f}, engine {last['engine']}",
        cpu_note([run["cpu_seconds"] for run in runs]),
    ]
    if last["pareto_k"] is not None:
        notes.append(f"Pareto k {max(run['pareto_k'] for run in runs):.2f}")
    if any(run["divergences"] for run in runs):
        notes.append(f"**{max(run['divergences'] for run in runs)} divergences**")
    if last["surrogate_error"]:
        notes.append(f"interpolation error {last['surrogate_error']:.3f}")
    if not all(run["trusted"] for run in runs):
        notes.append("**not trusted by its own checks**")
    return ", ".join([*notes, note] if note else notes)


def _named(model: str, words: str) -> str:
    formula = GLMMS[model][0].replace("|", "\\|")
    return f"{words}, `{formula}`, full posterior"


def cbpp(report: Report, quick: bool) -> None:
    """cbpp, binomial: the second and later calls in a process."""
    runs, note = gather(lambda: run_case("glmm", model="cbpp", calls=4), 3 if quick else 9)
    found = [run["seconds"][1] for run in runs]
    name = _named("cbpp", "cbpp, second `fit` in a process")
    report.rows.append(Row(name, "<= 0.3 s", "s", found, 0.3, _note(runs, note)))
    report.rows.append(Row("the same, first", "", "s", [run["seconds"][0] for run in runs]))


def verbagg(report: Report, quick: bool) -> None:
    """VerbAgg, Bernoulli, 7,584 rows, crossed 316 x 24: the second call in a process."""
    if not _here(report, "VerbAgg", "<= 3 s"):
        return
    runs, note = gather(lambda: run_case("glmm", model="VerbAgg", calls=2), 2 if quick else 5)
    name = _named("VerbAgg", "VerbAgg, warm")
    report.rows.append(
        Row(f"{name}, ESS >= 1,000", "<= 3 s", "s", [run["seconds"][1] for run in runs], 3, _note(runs, note))
    )
    each = [1000 * run["seconds"][1] / run["min_ess"] for run in runs]
    asked = f"<= {VERBAGG_MS} ms (10 times NumPyro's draws a second, and more than 100 times rstanarm's)"
    report.rows.append(Row("the same, an effective draw of the worst parameter", asked, "ms", each, VERBAGG_MS))
    report.details["VerbAgg"] = runs[-1:]


def grouseticks(report: Report, quick: bool) -> None:
    """grouseticks, Poisson, three factors, one of them per observation."""
    if not _here(report, "grouseticks", "<= 8 s"):
        return
    runs, note = gather(lambda: run_case("glmm", model="grouseticks", calls=2), 2 if quick else 5)
    name = _named("grouseticks", "grouseticks, warm")
    asked = "<= 8 s, no divergence"
    report.rows.append(
        Row(f"{name}, ESS >= 1,000", asked, "s", [run["seconds"][1] for run in runs], 8, _note(runs, note))
    )
    report.details["grouseticks"] = runs[-1:]


def binary_insteval(report: Report, quick: bool) -> None:
    """Binary InstEval, 73,421 rows, crossed 2,972 x 1,128."""
    _large(report, "binary InstEval", "InstEval, y >= 4, 73,421 rows", 60, 2, quick, ess=400)


def bernoulli200k(report: Report, quick: bool) -> None:
    """200,000 rows, 20,000 groups, Bernoulli."""
    _large(report, "bernoulli200k", "Bernoulli, 200,000 rows, 20,000 groups", 8, None, quick, ess=1000)


def poisson2m(report: Report, quick: bool) -> None:
    """2,000,000 rows, 200,000 groups, Poisson, random slope."""
    _large(report, "poisson2m", "Poisson, 2,000,000 rows, 200,000 groups", 120, 6, quick, ess=1000)


def _here(report: Report, model: str, asked: str) -> bool:
    """Whether the data is found; else a row says that it is not."""
    if find(f"{model}.csv") is not None:
        return True
    report.rows.append(Row(_named(model, model), asked, "s", [], None, "skipped: the data is not here"))
    return False


def _large(
    report: Report, model: str, words: str, seconds: float, memory: float | None, quick: bool, ess: float
) -> None:
    """One call in a fresh process, whose kernels are in the cache; time and peak memory."""
    if model == "binary InstEval" and insteval() is None:
        report.rows.append(Row(_named(model, words), f"<= {seconds} s", "s", [], None, "skipped: the data is not here"))
        return
    gather(lambda: run_case("row_pass", family=GLMMS[model][1], rows=2000, groups=200), 1)  # kernels in the cache
    runs, note = gather(lambda: run_case("glmm", model=model, ess=ess), 1 if quick else 3)
    name = f"{_named(model, words)}, ESS >= {ess:,.0f}, from a data frame in memory"
    found = [run["seconds"][0] for run in runs]
    report.rows.append(Row(name, f"<= {seconds} s", "s", found, seconds, _note(runs, note)))
    asked = f"<= {memory} GB" if memory else ""
    report.rows.append(Row("the same, peak memory", asked, "GB", [run["peak_gb"] for run in runs], memory))
    report.details[model] = runs[-1:]


def row_pass(report: Report, quick: bool) -> None:
    """One pass over rows and quadrature nodes, one thread."""
    for family in ("bernoulli", "poisson", "negative_binomial"):
        runs, note = gather(lambda f=family: run_case("row_pass", family=f), 1 if quick else 3)
        for want, words in (("value", "log density"), ("gradient", "with its gradient")):
            name = f"{family}, {words}: a row and quadrature node, one thread"
            whole = ", ".join(f"{run[f'{want}_of_24']:.1f}" for run in runs[-1:])
            told = f"{whole} ns with what a group costs besides, at 24 nodes" if runs else note
            report.rows.append(Row(name, "", "ns", [run[want] for run in runs], None, told))


PARTS: dict[str, Callable[[Report, bool], None]] = {
    part.__name__: part for part in (cbpp, verbagg, grouseticks, binary_insteval, bernoulli200k, poisson2m, row_pass)
}
