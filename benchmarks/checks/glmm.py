"""Responses that are not Gaussian: log-likelihoods against exact values and against glmer's, and its optimum."""

from __future__ import annotations

from typing import Any

from benchmarks.checks import Outcome, skipped, table
from benchmarks.checks.lme4_table import parameters
from benchmarks.data import read, reference

#: Relative differences allowed of exact values and of Laplace's; how far our optimum may lie below glmer's.
EXACT, LAPLACE, SHORT = 1e-6, 1e-5, 1e-4

#: By glmer's model: our formula, data and family.
MODELS = {
    "cbpp": ("incidence | trials(size) ~ period + (1 | herd)", "cbpp", "binomial"),
    "verbagg": ("r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)", "VerbAgg", "bernoulli"),
    "grouseticks": ("TICKS ~ YEAR + HEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "grouseticks", "poisson"),
    "grouseticks_c": ("TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "grouseticks", "poisson"),
    "epil_pois": ("y ~ lbase * trt + lage + V4 + (1 | subject)", "epil", "poisson"),
    "toenail": ('outcome == "moderate or severe" ~ treatment * time + (1 | patientID)', "toenail", "bernoulli"),
}
#: glmer's fits with one node, all of whose Laplace values are compared at its estimates, and the optimum.
ONE_NODE = ("cbpp_agq1", "verbagg_agq1", "grouseticks_agq1", "grouseticks_c_agq1", "epil_pois_agq1")
#: glmer's fits with 25 nodes: the optimum is compared as the exact likelihood of both estimates.
MANY_NODES = ("cbpp_agq25", "epil_pois_agq25", "toenail_agq25")


def run(models: list[str] | None = None, **_: Any) -> Outcome:
    name = "log-likelihoods of other families"
    fits, exact = reference("lme4.json"), reference("glmm_loglik.json")
    if fits is None or exact is None:
        return skipped(name, "Skipped: lme4.json or glmm_loglik.json is in none of the data folders.")
    out, fits = Outcome(name, True), fits["fits"]

    def chosen(fit: str) -> bool:
        return models is None or fits[fit]["model"] in models

    rows = [_at_estimates(out, fit, fits[fit], case["log_likelihood"], EXACT, None)
            for fit, case in exact["cases"].items() if chosen(fit)]  # fmt: skip
    head = ["at the estimates of", "exact", "nodes", "relative difference", "met"]
    out.lines += ["Effects integrated, at the default accuracy, against dense quadrature:", "", *table(head, rows)]
    rows = [_at_estimates(out, fit, fits[fit], fits[fit]["logLik"], LAPLACE, 1) for fit in ONE_NODE if chosen(fit)]
    head[1] = "glmer"
    out.lines += ["Laplace over all effects jointly, against glmer's nAGQ = 1:", "", *table(head, rows)]
    rows = [_optimum(out, fit, fits[fit]) for fit in (*ONE_NODE, "toenail_agq1", *MANY_NODES) if chosen(fit)]
    head = ["fit", "nodes", "log-likelihood at glmer's estimates", "our optimum less that", "status", "met"]
    out.lines += ["maximum_likelihood(nodes=...) against glmer's optimum, both by the same likelihood of ours:", ""]
    out.lines += table(head, rows)
    return out


def _model(fit: dict[str, Any]) -> Any:
    import partialpool as pp

    formula, data, family = MODELS[fit["model"]]
    return pp.Model.from_formula(formula, read(data), family=family)


def _estimates(model: Any, fit: dict[str, Any]) -> dict[str, float]:
    """glmer's estimates under our names; R writes the category of a factor without brackets."""
    return parameters(model, fit)


def _at_estimates(
    out: Outcome, name: str, fit: dict[str, Any], wanted: float, allowed: float, nodes: int | None
) -> list[str]:
    model = _model(fit)
    value = model.log_likelihood(_estimates(model, fit), nodes=nodes)
    relative = abs(value - wanted) / abs(wanted)
    met = relative <= allowed
    if not met:
        out.fail(f"{name}: {value:.6f} against {wanted:.6f}, off by {relative:.1e} (allowed {allowed:.0e})")
    return [name, f"{wanted:,.6f}", str(value.nodes), f"{relative:.1e}", "yes" if met else "**no**"]


def _optimum(out: Outcome, name: str, fit: dict[str, Any]) -> list[str]:
    model, nodes = _model(fit), int(fit["method"].removeprefix("agq"))
    there = model.log_likelihood(_estimates(model, fit), nodes=nodes)
    best = model.maximum_likelihood(nodes=nodes)
    gain = best.log_likelihood - there
    met = gain >= -SHORT
    if not met:
        out.fail(f"{name}: our optimum is {-gain:.2e} below the likelihood at glmer's (allowed {SHORT})")
    return [name, str(nodes), f"{there:,.4f}", f"{gain:+.1e}", str(best.status.value), "yes" if met else "**no**"]
