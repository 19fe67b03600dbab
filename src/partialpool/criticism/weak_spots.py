r"""Where a model and its data are weak, however well the posterior was computed.

*An sd that may be 0.* The posterior density at 0 over its peak, by a kernel reflected at 0. Under a prior that is flat
there it is the likelihood ratio of "no such differences", and :math:`e^{-2.71/2} = 0.26` is where a test at 5% would
just reject 0 (Self and Liang 1987: half a chi-squared at the boundary).

*A hyperparameter that its prior decides.* The prior is cut into 20 parts of equal probability; the overlap is
:math:`\sum_j \min(p_j, 1/20)`, p the posterior's probabilities: 1 where the data said nothing. Of normal ones it is
0.83 where prior and data tell equally much (the posterior's variance is half the prior's), from where on it is told,
0.95 where the prior has four fifths of the precision, and 0.68 for a posterior of half the prior's sd.

What rows and predictors alone say stands in `weak_terms`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.finding import CARE, COMPUTATION, MODEL, Finding, fine
from partialpool.criticism.weak_terms import collinear, few_groups, told_by_rows, uncorrelated, without
from partialpool.design.design import GroupDesign
from partialpool.inference.importance import systematic_resample
from partialpool.inference.prior import draw_parameters
from partialpool.inference.remarks import round_number
from partialpool.model import Model
from partialpool.posterior.summaries import node_weights
from partialpool.spec.distributions import Distribution

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Density at 0 over the peak from which on an sd may be 0.
MAY_BE_NONE = 0.26
#: |correlation| that counts as 1; the least posterior probability of it that is told, and so many times the prior's.
NEARLY_ONE, MASS, TIMES = 0.95, 0.2, 2.0
#: Overlap of prior and posterior from which on the prior decides, and the data say next to nothing.
OVERLAP, NOTHING, PARTS = 0.83, 0.95, 20
PRIOR_DRAWS = 20_000
#: Draws that densities are estimated from.
DENSITY_DRAWS = 4000


def weak_spots(fit: Posterior) -> list[Finding]:
    """All checks of the model that apply; those that need rows are left out where the fit was saved without them."""
    model = fit.model
    out = _boundaries(fit) + _correlations(fit) + _prior_decides(fit) + few_groups(model)
    if len(model.design.y) == model.design.n_rows:
        out += told_by_rows(model) + collinear(model)
    return out + _remarks(fit)


# -- sds and correlations at their ends -------------------------------------------------------------------------------


def equal_draws(fit: Posterior) -> Array:
    """Hyperparameters (D, h) at equally weighted nodes."""
    rng = np.random.default_rng(np.random.SeedSequence(fit.seed, spawn_key=(61,)))
    picked = systematic_resample(node_weights(fit.result), DENSITY_DRAWS, rng)
    return fit.model.hyperparameters.public(fit.result.theta[picked])


def density_at_zero(draws: Array) -> float:
    """The density of positive draws at 0 over its peak.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> bool(density_at_zero(np.abs(rng.normal(size=4000))) > 0.9), round(density_at_zero(rng.normal(5, 1, 4000)), 2)
    (True, 0.0)
    """
    quartiles = np.quantile(draws, [0.25, 0.75])
    scale = min(float(draws.std()), float(quartiles[1] - quartiles[0]) / 1.349)
    if scale <= 0:
        return 1.0 if float(draws.mean()) == 0 else 0.0
    width = 0.9 * scale * draws.size**-0.2
    at = np.linspace(0.0, float(quartiles[1] + 2 * scale), 200)

    def kernel(places: Array, width: float) -> Array:
        distance = (places[:, None] - draws) / width
        mirrored = (places[:, None] + draws) / width
        return np.asarray((np.exp(-0.5 * distance**2) + np.exp(-0.5 * mirrored**2)).sum(axis=1) / width)

    peak = max(float(kernel(part, width).max()) for part in np.array_split(at, 8))
    # mirrored, a density that rises from 0 is overestimated there by 0.8 widths of its slope: half a width halves that
    return min(1.0, float(kernel(at[:1], width / 2)[0]) / peak)


def _height(ratio: float) -> str:
    return (
        "the posterior density is highest there" if ratio > 0.995 else f"its density there is {ratio:.0%} of its peak"
    )


def _boundaries(fit: Posterior) -> list[Finding]:
    hyper = fit.model.hyperparameters
    sds = [name for term in hyper.terms for name in term.sd_names]
    if not sds:
        return []
    draws, names = equal_draws(fit), list(hyper.names)
    found, worst = [], 0.0
    for term, group in zip(hyper.terms, fit.model.design.groups, strict=True):
        for name, effect in zip(term.sd_names, term.names, strict=True):
            values = draws[:, names.index(name)]
            ratio = density_at_zero(values)
            worst = max(worst, ratio)
            if ratio < MAY_BE_NONE:
                continue
            found.append(
                Finding(
                    "sd at 0", MODEL, name, CARE, f"density at 0 is {ratio:.0%} of its peak",
                    f"{name} may be 0: {_height(ratio)}, so that the data do not tell whether groups of "
                    f"{term.factor_name!r} differ {_in_what(group, effect)}at all. The posterior allows for both; its "
                    f"mean ({values.mean():.2g}) alone says too little.",
                    f"give its interval (up to {np.quantile(values, 0.95):.2g}), or compare with "
                    f"{without(fit.model, group, effect)}",
                )
            )  # fmt: skip
    return found or [fine("sd at 0", f"density at 0 {_at_most(worst, '{:.0%}')} of its peak")]


def _in_what(group: GroupDesign, effect: str) -> str:
    """What groups differ in, where a term has more than its intercept."""
    return "" if group.names == ("Intercept",) else f"in {effect!r} "


def _at_most(value: float, form: str) -> str:
    """A bound in words, which does not pretend to be 0."""
    return f"below {form.format(0.01)}" if value < 0.01 else f"at most {form.format(value)}"


def _correlations(fit: Posterior) -> list[Finding]:
    model, hyper = fit.model, fit.model.hyperparameters
    names = list(hyper.names)
    terms = [(term, group) for term, group in zip(hyper.terms, model.design.groups, strict=True) if term.cor_names]
    if not any(term.covariance.n_correlations for term, _ in terms):
        return []
    draws = equal_draws(fit)
    prior = hyper.public(draw_parameters(model, PRIOR_DRAWS, _prior_stream(fit))[0]) if _drawable(model) else None
    found, largest = [], 0.0
    for term, group in terms:
        if not term.covariance.n_correlations:
            continue
        for name in term.cor_names:
            at = names.index(name)
            mass = float((np.abs(draws[:, at]) > NEARLY_ONE).mean())
            known = 0.05 if prior is None else float((np.abs(prior[:, at]) > NEARLY_ONE).mean())
            largest = max(largest, mass)
            if mass < max(MASS, TIMES * known):
                continue
            sign = "-1" if float(np.median(draws[:, at])) < 0 else "1"
            factor = term.factor_name
            found.append(
                Finding(
                    "correlation at 1", MODEL, name, CARE, f"P(|cor| > {NEARLY_ONE}) = {mass:.2f}",
                    f"{name} may be {sign} (P(|cor| > {NEARLY_ONE}) = {mass:.2f}, {known:.2f} under the prior): as far "
                    "as the rows tell, one of its two effects follows from the other.",
                    f"{_centred(model, group)}priors={{'cor({factor})': pp.LKJ(2)}} holds it back; "
                    f"{uncorrelated(model, group)} leaves it out",
                )
            )  # fmt: skip
    return found or [fine("correlation at 1", f"P(|cor| > {NEARLY_ONE}) {_at_most(largest, '{:.2f}')}")]


def _centred(model: Model, group: GroupDesign) -> str:
    """What to write where a slope's predictor lies so far from 0 that intercepts there go with slopes."""
    design = model.design
    if len(design.y) != design.n_rows or "Intercept" not in group.names:
        return ""
    for name, column in zip(group.names, group.columns, strict=True):
        values = design.V[:, column]
        spread = float(np.std(values))
        if name != "Intercept" and spread > 0 and abs(float(values.mean())) > spread:
            return (
                f"write I({name} - {round_number(float(values.mean()), spread)}) for {name}, so that intercepts stand "
                "amid the rows and not at 0; "
            )
    return ""


# -- prior against posterior ------------------------------------------------------------------------------------------


def _drawable(model: Model) -> bool:
    return all(prior.proper for prior in model.priors.values())


def _prior_stream(fit: Posterior) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(fit.seed, spawn_key=(62,)))


def overlap(prior: Array, posterior: Array) -> float:
    """The common part of two distributions, by the prior's own quantiles; see the module's docstring.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> x = rng.normal(size=20000)
    >>> round(overlap(x, x), 2), round(overlap(x, x / 10), 1)
    (1.0, 0.2)
    """
    edges = np.quantile(prior, np.arange(1, PARTS) / PARTS)
    share = np.bincount(np.searchsorted(edges, posterior), minlength=PARTS) / posterior.size
    return float(np.minimum(share, 1 / PARTS).sum())


def _prior_decides(fit: Posterior) -> list[Finding]:
    """Every parameter whose posterior is its prior, or nearly."""
    model = fit.model
    names = model.parameter_names
    flat = {name for name, prior in model.priors.items() if not prior.proper}
    if not names:
        return []
    prior = _prior_draws(fit, flat)
    posterior = np.concatenate([fit.result.draws_beta, model.hyperparameters.public(fit.result.draws_theta)], axis=1)
    found, largest = [], 0.0
    for column, name in enumerate(names):
        if np.isnan(prior[0, column]):
            continue
        share = overlap(prior[:, column], posterior[:, column])
        largest = max(largest, share)
        if share < OVERLAP:
            continue
        key, distribution = _prior_of(model, name)
        whose = "its default prior" if key is None or model.priors.source(key) == "default" else "the prior you gave"
        example = _example(distribution)
        slot = name if key is None or name in model.priors else key
        mend = (
            f"say what is plausible, priors={{{slot!r}: pp.{example}}}"
            if example
            else "say what is plausible in a prior"
        )
        mend += ", and see fit.sensitivity() for what depends on it"
        much = "next to nothing" if share >= NOTHING else "less than its prior does"
        found.append(
            Finding(
                "prior decides", MODEL, name, CARE, f"overlap with its prior {share:.2f}",
                f"The data say {much} of {name}: its posterior overlaps {whose} "
                f"({'LKJ' if distribution is None else distribution}) by {share:.0%}.",
                mend if whose.startswith("its") else "nothing, where that prior says what you know",
            )
        )  # fmt: skip
    return found or [fine("prior decides", f"overlap with the prior at most {largest:.2f}")]


def _prior_draws(fit: Posterior, flat: set[str]) -> Array:
    """Draws (PRIOR_DRAWS, parameters) of the prior, nan in the columns of flat ones and of what depends on them."""
    model = fit.model
    rng = _prior_stream(fit)
    names = model.parameter_names
    p = len(model.coefficients.names)
    if not flat:
        theta, gamma = draw_parameters(model, PRIOR_DRAWS, rng)
        return np.concatenate([model.coefficients.to_public(gamma), model.hyperparameters.public(theta)], axis=1)
    out = np.full((PRIOR_DRAWS, len(names)), np.nan)
    for column, name in enumerate(names):
        if name in flat or name not in model.priors or (column < p and name == model.design.x_names[0]):
            continue
        out[:, column] = model.priors[name].sample(rng, PRIOR_DRAWS)
    return out


def _prior_of(model: Model, name: str) -> tuple[str | None, Distribution | None]:
    """The name and the prior of the slot behind a parameter; a correlation's is that of its term."""
    if name in model.priors:
        return name, model.priors[name]
    factor = name.rpartition("|")[2]
    key = next((own for own in model.priors if own.startswith("cor(") and own.endswith(factor)), None)
    return key, None if key is None else model.priors[key]


def _example(prior: Distribution | None) -> str:
    """A prior of the same kind and half the scale, to be edited; empty where it has no scale."""
    if prior is None:
        return "LKJ(2)"
    values = dict(prior.parameters)
    scale = next((name for name in ("sigma", "scale", "eta") if name in values), None)
    if scale is None:
        return ""
    values[scale] = values[scale] * 2 if scale == "eta" else values[scale] / 2
    numbers = ", ".join(f"{float(f'{value:.2g}'):.12g}" for value in values.values())
    return f"{type(prior).__name__}({numbers})"


def prior_and_posterior(fit: Posterior) -> tuple[list[str], Array, Array, list[tuple[float, float]]]:
    """Names, prior draws (nan where flat), equally weighted posterior draws and supports of the hyperparameters."""
    model = fit.model
    flat = {name for name, prior in model.priors.items() if not prior.proper}
    names = list(model.hyperparameters.names)
    prior = _prior_draws(fit, flat)[:, len(model.coefficients.names) :]
    supports = [(-1.0, 1.0) if name.startswith("cor(") else (0.0, math.inf) for name in names]
    return names, prior, equal_draws(fit), supports


# -- what the engines noticed -----------------------------------------------------------------------------------------

#: What a note of the engines is about, by words that it holds.
NOTES = {
    "separates the outcomes": "separation",
    "runs away": "sd runs away",
    "times as much around its mean": "overdispersion",
    "lies far from 0": "prior of a product",
    "was interrupted": "interrupted",
}


def _remarks(fit: Posterior) -> list[Finding]:
    """The remarks of `inference.remarks`, which hold their own mend."""
    out = []
    for note in fit.accuracy.notes:
        check = next((own for words, own in NOTES.items() if words in note), None)
        if check is None:
            continue
        where = note.split("'")[1] if note.startswith("'") else note.split(" ")[0] if note.startswith("sd(") else ""
        about = COMPUTATION if check == "interrupted" else MODEL
        out.append(Finding(check, about, where, CARE, _number(check, note), note))
    return out


def _number(check: str, note: str) -> str:
    if check == "overdispersion":
        return f"variance {note.partition('varies ')[2].partition(' times')[0]} times the family's"
    if check == "sd runs away":
        return (
            note.partition("(")[2].partition(")")[0]
            if "it is" not in note
            else note.partition("it is ")[2].split(" ")[0]
        )
    if check == "prior of a product":
        return note.partition("(")[2].partition(")")[0]
    return {"separation": "all outcomes alike at one end", "interrupted": "stopped early"}[check]
