"""The verdict of a predictive check in words: what the model reproduces, what it does not, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from partialpool.criticism.check_request import OF_ONE_PARAMETER
from partialpool.levels.crossing import root_of
from partialpool.present.tables import decimals_for, listed, number

if TYPE_CHECKING:
    import pandas

    from partialpool.criticism.check import PredictiveCheck
    from partialpool.criticism.outlying_groups import GroupEffects
    from partialpool.posterior.posterior import Posterior

#: Kinds of p-values.
KINDS = {
    "responses": "posterior predictive",
    "residuals": "posterior predictive, residuals at each draw",
    "zeros": "posterior predictive, zeros beyond the mean",
    "group": "group left out",
    "row": "rows left out",
}
#: Adjusted p-value at which the data speak against the model.
AGAINST = 0.05
#: Statistics that a fit reproduces almost by itself.
BY_ITSELF = ("mean", "sd", "median", "within-group correlation", "sd of group means")


def verdict(found: PredictiveCheck) -> list[str]:
    """The sentences of a check."""
    table = found.table
    against = table[table["p_adjusted"] <= AGAINST]
    weak = table[(table["p_adjusted"] > AGAINST) & (table["p"] <= AGAINST)]
    rest = table[table["p"] > AGAINST]
    out = [_heading(len(against), len(table))]
    for row in _first_causes(found, against):
        out.append(_finding(found, row))
    if len(against) > 1:
        out.append("One cause may show in several checks: mend the first, and check again.")
    for row in _first_causes(found, weak):
        out.append(_sign(found, row, len(table)))
    if len(rest):
        out.append(f"Reproduced: {listed(rest['check'].tolist())}.")
    out += _about_groups(found)
    out += found.notes
    out += _explanations(found)
    return out


#: What is told first: checks that point to a cause, before those in which it shows too.
CAUSES = ("slopes", "largest", "zeros", "dispersion", "skewness", "tails", "sd of group", "within-group")


def _first_causes(found: PredictiveCheck, rows: pandas.DataFrame) -> list[Any]:
    place = {name: k for k, name in enumerate(CAUSES)}
    if _skewed(found) is False:
        place["skewness"], place["tails"] = place["tails"], place["skewness"]

    def key(row: Any) -> tuple[int, float]:
        first = next((k for name, k in place.items() if str(row.check).startswith(name)), len(place))
        return first, float(row.p)

    return sorted(rows.itertuples(), key=key)


def _heading(against: int, count: int) -> str:
    if not against:
        what = "this check" if count == 1 else f"these {count} checks"
        return f"Verdict: nothing in {what} speaks against the model."
    if count == 1:
        return "Verdict: the data speak against the model."
    return f"Verdict: {against} of {count} checks {'speak' if against > 1 else 'speaks'} against the model."


def _finding(found: PredictiveCheck, row: Any) -> str:
    text = f"Not reproduced: {_values(row)}; p = {row.p_adjusted:.2g} adjusted."
    mended = mend(found, str(row.check), float(row.observed) > float(row.mean))
    return f"{text} {mended}" if mended else text


def _sign(found: PredictiveCheck, row: Any, count: int) -> str:
    mended = mend(found, str(row.check), float(row.observed) > float(row.mean))
    text = f"A sign, which among {count} checks may be chance: {_values(row)}; p = {row.p:.2g}."
    return (
        f"{text} If it is real: {mended[:1].lower()}{mended[1:]}"
        if mended and count > 1
        else f"{text} {mended}".strip()
    )


def _values(row: Any) -> str:
    places = decimals_for(width_of(row.sd, row.q05, row.q95))
    mean, low, high = (number(float(value), places) for value in (row.mean, row.q05, row.q95))
    return f"{row.check} is {number(float(row.observed), places)} where the model gives {mean} ({low} to {high})"


def width_of(sd: float, low: float, high: float) -> float:
    """How far replicates spread, for the decimals of what stands beside them: not by a few that lie far out."""
    return min(float(sd), (float(high) - float(low)) / 3.29) if high > low else float(sd)


def shown_p(p: Sequence[float]) -> list[str]:
    """p-values as text.

    Examples
    --------
    >>> shown_p([0.0001, 0.04, 1.0])
    ['<0.001', '0.040', '1.000']
    """
    return ["<0.001" if value < 0.001 else number(float(value), 3) for value in p]


def aligned(values: Sequence[float], decimals: Sequence[int | None]) -> list[str]:
    """Numbers as text, each with its decimals, padded so that their points stand in one column.

    Examples
    --------
    >>> aligned([298.46, 0.123], [1, 3])
    ['298.5  ', '  0.123']
    """
    texts = [number(float(value), places) for value, places in zip(values, decimals, strict=True)]
    parts = [text.partition(".") for text in texts]
    before = max((len(part[0]) for part in parts), default=0)
    after = max((len(part[1] + part[2]) for part in parts), default=0)
    return [part[0].rjust(before) + (part[1] + part[2]).ljust(after) for part in parts]


# -- what to do -------------------------------------------------------------------------------------------------------


def mend(found: PredictiveCheck, label: str, larger: bool) -> str:
    """What to do about a statistic that is larger (or smaller) than the model makes it."""
    fit = found.source
    for effect in found.effects:
        if label == effect_label(effect):
            return _about_effect(fit, effect)
    own = next((one for one in found.compared if one.label == label), None)
    name = label if own is None else own.name
    if own is not None and own.predictor:
        return _missing_slope(fit, own.predictor, own.factor)
    if found.groups == "new" and own is not None:
        return _of_new_groups(fit, name, larger)
    whole = fit.model.family.name in ("gaussian", "student_t") and bool((fit.model.design.y >= 0).all())
    if name == "minimum" and larger and whole and own is not None and float(np.quantile(own.replicated, 0.05)) < 0:
        return 'The model makes responses below 0, which the data do not have: family="gamma" or "lognormal".'
    if name == "tails of residuals" and larger and _skewed(found) is True:
        return "Skewness makes tails heavy too: mend that first."
    if name == "skewness of residuals" and _skewed(found) is False:
        return "Heavy tails alone may make the residuals of a sample so skewed: mend these first."
    if name == "within-group correlation":
        return _of_correlation(fit, larger)
    return _of_rows(fit, name, larger)


def _skewed(found: PredictiveCheck) -> bool | None:
    """Where both skewness and tails are against the model: whether the first can explain the other; None elsewhere.

    Gamma and exponential distributions have an excess kurtosis of 1.5 times their squared skewness, lognormal ones of
    1.8 to about 4 times.
    """
    table = found.table.set_index("check")
    if not {"skewness of residuals", "tails of residuals"} <= set(table.index):
        return None
    skewness, tails = table.loc["skewness of residuals"], table.loc["tails of residuals"]
    if max(skewness["p_adjusted"], tails["p_adjusted"]) > AGAINST or tails["observed"] < tails["mean"]:
        return None
    return bool(4 * skewness["observed"] ** 2 >= tails["observed"])


def _of_correlation(fit: Posterior, larger: bool) -> str:
    if larger:
        return "Rows of a group are more alike than the model makes them."
    if fit.model.family.name in OF_ONE_PARAMETER:
        return "Rows of a group differ more than the model makes them: see dispersion."
    return "Rows of a group differ more than the model makes them."


def effect_label(effect: GroupEffects) -> str:
    """How a table names the check of the largest effect."""
    return f"largest effect of {effect.factor}" + (f": {effect.term}" if effect.term != "Intercept" else "")


def _about_effect(fit: Posterior, effect: GroupEffects) -> str:
    factor = next(own for own in fit.model.design.factors if own.name == effect.factor)
    label = factor.labels[effect.largest]
    what = "effect" if effect.term == "Intercept" else f"slope of {effect.term}"
    return (
        f"The {what} of {effect.factor} {label!s} ({effect.own[effect.largest]:.3g} by its own rows) does not belong "
        "to the population that the others make: look at its rows first; if they are right, add a group-level "
        "predictor that tells it apart (fit.check_exchangeability() looks for one), and see what the answer is without "
        "it."
    )


def _missing_slope(fit: Posterior, predictor: str, factor: str) -> str:
    design = fit.model.design
    position = next(f for f, own in enumerate(design.factors) if own.name == factor)
    text = next((g.text for g in design.groups if g.factor == position and not g.predictor), f"(1 | {factor})")
    return (
        f"The slope of {predictor} differs between the groups of {factor}: put (1 + {predictor} | {factor}) for {text}."
    )


def _of_new_groups(fit: Posterior, name: str, larger: bool) -> str:
    if name in ("sd of group means", "within-group correlation"):
        return (
            f"New groups would differ {'less' if larger else 'more'} than these do: the prior of the group sd, or a "
            "population of another shape than the normal one, is in conflict with the data."
        )
    if name == "largest group mean":
        return "A group lies further out than the population has them: check() without groups= says which."
    return _of_rows(fit, name, larger)


def _of_rows(fit: Posterior, name: str, larger: bool) -> str:
    family = fit.model.family.name
    counts = fit.model.family.discrete and not fit.model.family.takes_trials and family != "bernoulli"
    if name == "zeros" and counts:
        return _zeros(family, larger)
    if name == "dispersion" or (name == "sd" and family in OF_ONE_PARAMETER):
        return _dispersion(fit, larger)
    if name == "tails of residuals":
        return _tails(fit, larger)
    if name == "skewness of residuals":
        return _skewness(fit, larger)
    if name == "left-out rows":
        return (
            "Rows do not lie where the others predict them: .plot('pit') and .plot('residuals') show whether it is "
            "place, spread, skewness or tails."
        )
    if name == "reliability":
        return (
            "Events are not as frequent as predicted: .plot('reliability') shows where; a predictor may act otherwise "
            "than linearly."
        )
    if name in ("maximum", "minimum"):
        return _extremes(fit, name, larger)
    if name in ("mean", "sd", "median"):
        return "A fit reproduces this unless the priors (model.priors) or the family hold it off: look at these."
    return ""


def _zeros(family: str, larger: bool) -> str:
    if not larger:
        return "There are fewer zeros than the family makes: were rows of zero left out of the data?"
    if family in ("poisson", "geometric"):
        return (
            'Try family="negative_binomial", which has more zeros at the same mean; if it still lacks them, some rows '
            "are zero for a reason of their own: model whether a count is 0 by itself (a bernoulli model), and the "
            "rest apart."
        )
    return "Some rows are zero for a reason of their own: model whether a count is 0 by itself (a bernoulli model)."


def _dispersion(fit: Posterior, larger: bool) -> str:
    family = fit.model.family.name
    if fit.model.exact:
        return (
            "Rows scatter more than their standard errors say: add sigma to them, se(s, sigma=True)."
            if larger
            else "Rows scatter less than their standard errors say: are these too large?"
        )
    if not larger:
        return "Rows scatter less than the family makes them: are they counts of independent events?"
    other = {"poisson": "negative_binomial", "geometric": "negative_binomial", "binomial": "beta_binomial"}
    if family in other:
        return f'Rows scatter more than the family allows: family="{other[family]}", or a predictor that is missing.'
    return 'Rows scatter more than the family allows: family="gamma".'


def _tails(fit: Posterior, larger: bool) -> str:
    family = fit.model.family.name
    if not larger:
        return "Residuals have lighter tails than the family: is the response bounded?"
    if family == "gaussian":
        text = 'Residuals have heavy tails: family="student_t" keeps single rows from pulling the fit.'
        return f"{text} {_about_spread(fit)}".strip()
    if family == "student_t":
        return (
            "Tails are heavier than one Student-t makes them: does the spread differ between rows (a formula of sigma)?"
        )
    return "Residuals have heavier tails than the family: look at the rows that lie far out (fit.residuals())."


def _about_spread(fit: Posterior) -> str:
    """How sigma would get the mean's predictors, as it is typed; nothing where it has a formula or errors are known."""
    design = fit.model.design
    if len(design.prefixes) > 1 or not fit.model.has_sigma or design.se is not None:
        return ""
    own = [root_of(name) for name in design.x_names if name in design.data.columns or root_of(name) != name]
    columns = [name for name in dict.fromkeys(own) if name in design.data.columns and str(name).isidentifier()]
    factors = [f"(1 | {factor.name})" for factor in design.factors if str(factor.name).isidentifier()]
    by = " + ".join([*columns[:2], *factors[:1]][:2])
    if not by:
        return ""
    return (
        "If it is the spread that differs between rows, give sigma a formula: "
        f"pp.formula('{design.terms.formula}', sigma=\"~ {by}\")."
    )


def _skewness(fit: Posterior, larger: bool) -> str:
    family = fit.model.family.name
    way = "right" if larger else "left"
    if family in ("gaussian", "student_t") and (fit.model.design.y > 0).all() and larger:
        return f'Residuals are skewed to the {way} and the response is positive: family="lognormal" or "gamma".'
    if family in ("gaussian", "student_t"):
        return f"Residuals are skewed to the {way}: transform the response, or let a predictor act in a curve."
    return f"Residuals are skewed further to the {way} than the family: try another for such responses."


def _extremes(fit: Posterior, name: str, larger: bool) -> str:
    outward = larger == (name == "maximum")
    if outward:
        return f"Look at the row of the {name} first; if it is right, the family has too light a tail."
    return (
        "The model makes more extreme responses than there are: does its spread differ between rows, or is it bounded?"
    )


# -- notes ------------------------------------------------------------------------------------------------------------


def _about_groups(found: PredictiveCheck) -> list[str]:
    if found.groups != "new":
        return []
    names = [found.source.model.design.factors[f].name for f in sorted(found.replicates.renewed)]
    return [f"Replicates have new groups of {listed(names)}, whose effects come from the population."]


def _explanations(found: PredictiveCheck) -> list[str]:
    kinds, out = found.table["kind"].tolist(), []
    own = [KINDS["responses"], KINDS["residuals"], KINDS["zeros"]]
    if any(kind in own for kind in kinds):
        out.append(
            f"p of replicates: how often one of {found.n_replicates:,} is as extreme (both sides counted, but for "
            "slopes and largest means). It is cautious, for the same data made the posterior: a large one proves "
            "little."
        )
    if any(kind not in own for kind in kinds):
        out.append(
            "p of left-out rows and groups: each is judged by what the others say of it; uniform where the model is "
            "right."
        )
    if len(kinds) > 1:
        light = [one.name for one in found.compared if one.name in BY_ITSELF and found.groups == "same"]
        light = list(dict.fromkeys(light))
        said = (
            f"; {listed(light)}, which a fit reproduces almost by itself, as a tenth of a check each" if light else ""
        )
        out.append(f"p_adjusted: for all {len(kinds)} checks together (Holm's method{said}); the verdict follows it.")
    design = found.source.model.design
    if any(kind == KINDS["row"] for kind in kinds) and len(found.rows.chosen) < design.n_rows:
        out.append(f"Left-out rows: {len(found.rows.chosen):,} of {design.n_rows:,}, drawn at random.")
    if design.weights is not None:
        out.append("Each row counts once, whatever its weight.")
    return out
