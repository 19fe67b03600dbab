"""Eight schools, radon models and a Poisson model against posteriors obtained otherwise (posteriordb; quadrature)."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.checks import Outcome, skipped, table
from benchmarks.data import read, reference

DRAWS, ESS, SEED = 40_000, 20_000, 20261121
SD_WITHIN, QUANTILE_WITHIN = 0.05, 0.1


def models() -> dict[str, dict[str, Any]]:
    """Formula, priors as the reference states them, names of parameters, and how near each mean has to be."""
    import partialpool as pp

    radon = {
        "Intercept": pp.Normal(0, 10),
        "floor": pp.Normal(0, 10),
        "sd": pp.HalfNormal(1),
        "sigma": pp.HalfNormal(1),
    }
    return {
        "eight_schools": {
            "formula": "y | se(sigma) ~ 1 + (1 | school)",
            "data": "eight_schools",
            "priors": {"Intercept": pp.Normal(0, 5), "sd(school)": pp.HalfCauchy(5)},
            "names": {"mu": "Intercept", "tau": "sd(Intercept|school)"},
            "groups": {"theta": ("school", "Intercept")},
            "mean_within": 0.1,
        },
        "radon_variable_intercept": {
            "formula": "log_radon ~ 1 + floor + (1 | county)",
            "data": "radon",
            "priors": radon,
            "names": {
                "mu_alpha": "Intercept", "beta": "floor", "sigma_y": "sigma", "sigma_alpha": "sd(Intercept|county)",
            },
            "groups": {"alpha": ("county", "Intercept")},
            "mean_within": 0.05,
        },
        "radon_variable_intercept_slope": {
            "formula": "log_radon ~ 1 + floor + (1 + floor || county)",
            "data": "radon",
            "priors": radon,
            "names": {
                "mu_alpha": "Intercept", "mu_beta": "floor", "sigma_y": "sigma",
                "sigma_alpha": "sd(Intercept|county)", "sigma_beta": "sd(floor|county)",
            },
            "groups": {"alpha": ("county", "Intercept"), "beta": ("county", "floor")},
            "mean_within": 0.05,
        },
        "GLMM_Poisson": {  # flat priors stand for the reference's, uniform over hundreds of sds
            "formula": "C ~ 1 + year + I(year^2) + I(year^3) + (1 | obs)",
            "family": "poisson",
            "data": counts_of_years,
            "priors": {"Intercept": pp.Flat(), "beta": pp.Flat(), "sd(obs)": pp.Uniform(0, 5)},
            "names": {
                "alpha": "Intercept", "beta1": "year", "beta2": "I(year^2)", "beta3": "I(year^3)",
                "sigma": "sd(Intercept|obs)",
            },
            "groups": {},
            "mean_within": 0.05,
        },
    }  # fmt: skip


def counts_of_years() -> dict[str, Any]:
    """Yearly counts, each year its own group."""
    found = reference("GLMM_Poisson.json")
    years = found["year"]
    return {"C": found["C"], "year": years, "obs": [f"{k:02d}" for k in range(len(years))]}


def run(**_: Any) -> Outcome:
    known = reference("posteriors.json")
    name = "posteriors against references"
    if known is None:
        return skipped(name, "Skipped: posteriors.json is in none of the data folders.")
    out = Outcome(name, True, [f"draws={DRAWS:,}, ess={ESS:,}, seed {SEED}. Deviations of means and quantiles are in "
                               "reference sds. `draws` is the same, from the equally weighted draws."])  # fmt: skip
    rows: list[list[str]] = []
    for model, how in models().items():
        rows += _compare(out, model, how, known[model]["params"])
    out.lines += ["", *table(["model", "parameter", "from", "mean", "sd ratio", "5%", "95%", "met"], rows)]
    return out


def _compare(out: Outcome, model: str, how: dict[str, Any], params: dict[str, Any]) -> list[list[str]]:
    import partialpool as pp

    data = how["data"]() if callable(how["data"]) else read(how["data"])
    family = how.get("family", "gaussian")
    fit = pp.fit(how["formula"], data, family=family, priors=how["priors"], draws=DRAWS, ess=ESS, seed=SEED)
    if not fit.accuracy.trusted:
        out.fail(f"{model}: the fit does not trust itself: {' '.join(fit.accuracy.notes)}")
    rows = []
    summary = fit.summary()
    for parameter, wanted in params.items():
        stem, _, index = parameter.rstrip("]").partition("[")
        if index:
            factor, term = how["groups"][stem]
            found, draws = _group(fit, factor, term, int(index) - 1)
        else:
            found = summary.loc[how["names"][parameter]].to_dict()
            draws = fit.draws(how["names"][parameter])
        low, high = np.quantile(draws, (0.05, 0.95))
        drawn = {"mean": draws.mean(), "sd": draws.std(), "q05": low, "q95": high}
        for source, values in (("summary" if not index else "groups", found), ("draws", drawn)):
            rows.append(_row(out, (model, parameter, source), values, wanted, how["mean_within"]))
    return rows


def _group(fit: Any, factor: str, term: str, position: int) -> tuple[dict[str, float], Any]:
    """The group's own coefficient, beta + u, of the group that stands at `position` among the sorted ones."""
    groups = fit.groups(factor, kind="coefficient")
    own = groups[groups["term"] == term]
    label = sorted(own["group"])[position]
    found = own[own["group"] == label].iloc[0]
    terms = list(dict.fromkeys(groups["term"]))
    effect = fit.group_draws(factor, [label])[:, 0, terms.index(term)]
    return {key: float(found[key]) for key in ("mean", "sd", "q05", "q95")}, fit.draws(term) + effect


def _row(
    out: Outcome, who: tuple[str, str, str], found: dict[str, float], wanted: dict[str, float], mean_within: float
) -> list[str]:
    sd = wanted["sd"]
    off = {key: (found[key] - wanted[key]) / sd for key in ("mean", "q05", "q95")}
    ratio = found["sd"] / sd
    met = (
        abs(off["mean"]) <= mean_within
        and abs(ratio - 1) <= SD_WITHIN
        and max(abs(off["q05"]), abs(off["q95"])) <= QUANTILE_WITHIN
    )
    if not met:
        out.fail(
            f"{' '.join(who)}: mean off by {off['mean']:+.3f} sd (allowed {mean_within}), sd ratio {ratio:.4f} "
            f"(allowed 5%), quantiles off by {off['q05']:+.3f} and {off['q95']:+.3f} sd (allowed {QUANTILE_WITHIN})"
        )
    figures = [f"{off['mean']:+.3f}", f"{ratio:.4f}", f"{off['q05']:+.3f}", f"{off['q95']:+.3f}"]
    return [*who, *figures, "yes" if met else "**no**"]
