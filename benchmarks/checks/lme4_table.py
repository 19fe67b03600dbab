"""Every Gaussian fit of lme4 in the reference: the log-likelihood at its estimates, and the optimum."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.checks import Outcome, skipped, table
from benchmarks.data import read, reference

RELATIVE, SHORT = 1e-6, 1e-4

#: lme4's formula where ours differs: cake's temperature was an ordered factor.
FORMULAS = {
    "angle ~ recipe * temperature + (1 | recipe:replicate)":
        "angle ~ recipe * C(temperature, contr.poly) + (1 | recipe:replicate)",
}  # fmt: skip
#: Categories in R's order where that is not the alphabet's: REML depends on the contrasts.
CATEGORIES = {"Hsb82": {"sector": ("Public", "Catholic")}}


def run(**_: Any) -> Outcome:
    known = reference("lme4.json")
    name = "lme4's table"
    if known is None:
        return skipped(name, "Skipped: lme4.json is in none of the data folders.")
    out = Outcome(name, True)
    rows = []
    for fit, wanted in known["fits"].items():
        if wanted["family"] == "gaussian":
            rows.append(_compare(out, fit, wanted))
    head = ["fit", "lme4's logLik", "ours there, relative difference", "our optimum less lme4's", "met"]
    out.lines += table(head, rows)
    return out


def _compare(out: Outcome, name: str, wanted: dict[str, Any]) -> list[str]:
    import partialpool as pp

    formula = FORMULAS.get(wanted["formula"], wanted["formula"])
    data = _data(wanted["data"].removesuffix(".csv"))
    model = pp.Model.from_formula(formula, data)
    reml = wanted["method"] == "REML"
    optimum = model.maximum_likelihood(reml=reml)
    gain = optimum.log_likelihood - wanted["logLik"]
    there = ""
    met = gain >= -SHORT
    if not met:
        out.fail(f"{name}: our optimum is {-gain:.2e} below lme4's (allowed {SHORT})")
    if not reml:
        value = model.log_likelihood(parameters(model, wanted))
        relative = abs(value - wanted["logLik"]) / abs(wanted["logLik"])
        there = f"{relative:.1e}"
        if not relative <= RELATIVE:
            met = False
            out.fail(f"{name}: log-likelihood at lme4's estimates is {value:.6f}, off by {relative:.1e} (allowed 1e-6)")
    return [name, f"{wanted['logLik']:,.4f}", there, f"{gain:+.1e}", "yes" if met else "**no**"]


def _data(name: str) -> Any:
    import pandas

    data = read(name)
    for column, categories in CATEGORIES.get(name, {}).items():
        data[column] = pandas.Categorical(data[column], categories=list(categories))
    return data


def parameters(model: Any, wanted: dict[str, Any]) -> dict[str, float]:
    """lme4's estimates under our names."""
    ours = {_parts(name): name for name in model.design.x_names}
    values = {ours[_lme4_parts(name)]: value for name, value in wanted["fixef"].items()}
    for row in wanted["varcomp"]:
        if row["grp"] == "Residual":
            values["sigma"] = row["sdcor"]
            continue
        factor = _factor(model, row["grp"])
        first = _term(row["var1"])
        if row["var2"] is None:
            values[f"sd({first}|{factor})"] = row["sdcor"]
        else:
            values[f"cor({first},{_term(row['var2'])}|{factor})"] = row["sdcor"]
    return values


def _term(name: str) -> str:
    return "Intercept" if name == "(Intercept)" else name


def _factor(model: Any, group: str) -> str:
    """Our name of lme4's factor: it writes nested ones inside out, and numbers a factor's further terms."""
    names = {frozenset(factor.name.split(":")): factor.name for factor in model.design.factors}
    for name in (group, re.sub(r"\.\d+$", "", group)):
        if frozenset(name.split(":")) in names:
            return names[frozenset(name.split(":"))]
    raise KeyError(group)


def _parts(name: str) -> frozenset[str]:
    """The parts of one of our names as lme4 writes them: `C(temperature, contr.poly)[.L]` is `temperature.L`."""
    plain = re.sub(r"C\((\w+),[^)]*\)", r"\1", name)
    return frozenset(re.sub(r"\[([^]]*)\]", r"\1", part) for part in plain.split(":"))


def _lme4_parts(name: str) -> frozenset[str]:
    return frozenset({"Intercept"} if name == "(Intercept)" else name.split(":"))
