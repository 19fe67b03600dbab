"""A decomposition of variance in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from partialpool.levels.decomposition import (
    INTERACTION,
    LINK,
    RESIDUAL,
    RESPONSE,
    TRIAL_ROWS,
    has_two_scales,
    level_sets,
)
from partialpool.levels.link_scale import TRIALS
from partialpool.levels.r_squared import LevelExplained
from partialpool.levels.response_scale import mean_link

if TYPE_CHECKING:
    import pandas

    from partialpool.model import Model


#: Shares below this are rounding.
NOTHING = 1e-9
#: R-squared of a level from which on it is told.
SMALL = 0.005


def percent(row: Any) -> str:
    """A share with its 90% interval.

    Examples
    --------
    >>> percent({"mean": 0.571, "q05": 0.384, "q95": 0.74})
    '57% (38% to 74%)'
    """
    return f"{row['mean']:.0%} ({row['q05']:.0%} to {row['q95']:.0%})"


def sentences(
    model: Model,
    components: pandas.DataFrame,
    icc: pandas.DataFrame,
    r_squared: pandas.DataFrame,
    design_effect: pandas.DataFrame,
    by_level: Sequence[LevelExplained],
    units: float,
) -> list[str]:
    """What the frames of `Variance` say, and R-squared by level."""
    scale = RESPONSE if (components["scale"] == RESPONSE).any() else LINK
    out = _shares(model, components[components["scale"] == scale], scale)
    out += _correlations(icc[icc["scale"] == scale], any(len(levels) > 1 for levels in level_sets(model)))
    out += _explained(r_squared, scale)
    out += [_of_level(own) for own in by_level if own.term and own.value > SMALL]
    out += _design(model, units, design_effect[design_effect["scale"] == scale])
    return out


def _shares(model: Model, components: pandas.DataFrame, scale: str) -> list[str]:
    response = model.design.terms.response.expression
    of = f"the linear predictor of {response}" if scale == LINK else response
    if model.family.name in TRIALS and scale == RESPONSE and model.design.trials is not None:
        of = f"one trial of {response}"
    shares = components[components["quantity"] == "share"]
    if len(shares) == 1:
        where = f" in the mean of {response}" if model.design.groups else ""
        return [f"The model has no groups{where}, so that all variance at given predictors is that of rows."]
    words = {
        RESIDUAL: "between trials of a row" if (shares["level"] == TRIAL_ROWS).any() else "between rows of a group",
        INTERACTION: "in what crossed levels do together",
        TRIAL_ROWS: "between rows of a group",
    }
    told = [
        f"{percent(row)} {'' if k else 'lies '}{words.get(row['level'], 'between groups of ' + str(row['level']))}"
        for k, (_, row) in enumerate(shares.iterrows())
    ]
    comma = "," if len(told) > 2 else ""
    return [f"Of the variance of {of} at given predictors, {', '.join(told[:-1])}{comma} and {told[-1]}."]


def _correlations(icc: pandas.DataFrame, nested: bool) -> list[str]:
    if len(icc) < 2:
        return []
    told = [f"{row['mean']:.2f} in one of {row['level']}" for _, row in icc.iterrows()]
    within = ", with all that the group lies in," if nested else ""
    return [f"Two rows of one group{within} correlate: {', '.join(told)}."]


def _explained(r_squared: pandas.DataFrame, scale: str) -> list[str]:
    own: Any = r_squared[(r_squared["scale"] == scale) & (r_squared["level"] == "all")].set_index("quantity")
    if own.loc["r_squared_marginal", "q95"] > NOTHING:
        text = f"R-squared: the predictors explain {percent(own.loc['r_squared_marginal'])} of all variance"
    else:
        text = "R-squared: there are no predictors that could explain variance"
    if "r_squared_conditional" in own.index:
        text += f", with the groups {percent(own.loc['r_squared_conditional'])}"
    return [text + "."]


def _of_level(own: LevelExplained) -> str:
    """What explains the differences between groups: predictors, the groups that contain them, or both."""
    by = [*(["predictors"] if own.predictors else []), *own.parents]
    listed = by[0] if len(by) == 1 else f"{', '.join(by[:-1])} and {by[-1]}"
    verb = "explain" if len(by) > 1 or own.predictors else "explains"
    what = "intercepts" if own.term == "Intercept" else f"slopes of {own.term}"
    told = f"Between groups of {own.level}, {listed} {verb} {own.value:.0%} of how {what} differ"
    if own.term != "Intercept" and own.predictors:
        told += " (among these groups; cross_level() takes what is left from their population)"
    return told + "."


def _design(model: Model, units: float, design_effect: pandas.DataFrame) -> list[str]:
    rows: Any = design_effect.set_index(["quantity", "level"])
    out = []
    trials = model.design.trials is not None
    levels = [str(level) for level in design_effect["level"].unique()]
    for level in ["all"] if "all" in levels else levels:
        effect, left = rows.loc[("design_effect", level)], rows.loc[("effective_size", level)]
        own = "all levels" if level == "all" else level
        out.append(
            f"Design effect of {own}: {effect['mean']:.3g}; {units:,.0f} {'trials' if trials else 'rows'} tell as much "
            f"about {'a rate' if trials else 'a mean'} as "
            f"{left['mean']:,.0f} independent ones."
        )
    return out


def notes(model: Model) -> tuple[str, ...]:
    """What the user should know of what was averaged."""
    out = []
    design = model.design
    slopes = [name for group in design.groups if not group.predictor for name in group.names if name != "Intercept"]
    if slopes:
        name = slopes[0]
        out.append(
            f"Slopes of {', '.join(dict.fromkeys(slopes))} vary by group, so that each row has its own variance: "
            f"figures are averages over the data's rows, and .along({name!r}) shows how they change."
        )
    if design.terms.predictors or design.precision is not None or design.se is not None:
        out.append("The variance of rows differs from row to row; the residual is its average.")
    if model.family.name in TRIALS:
        out.append("The link scale is that of the latent variable behind one trial; each row counts alike.")
    elif has_two_scales(model) and model.family.name != "lognormal":
        out.append("On the link scale the residual is that of a row at the mean response; see the guide for its form.")
    if mean_link(model.family) == "log":
        out.append("Variances of the response have a long tail above: read their medians, q50; shares have none.")
    if design.offset is not None and has_two_scales(model):
        out.append("The offset is part of each row's mean on the scale of the response, and is left out on the link's.")
    if model.family.name == "student_t":
        out.append("Where nu is 2 or less the residual variance is infinite, and the groups' share is 0.")
    return tuple(out)
