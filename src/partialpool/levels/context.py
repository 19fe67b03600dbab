r"""Mundlak's check: whether the group effects go with the predictors' group means.

A hierarchical model takes the effect of a group to be unrelated to the predictors of its rows. Where it is not, the
slope of a predictor is an average of its slope within groups and that between them, weighted by how precisely each is
known. Adding the group means to the predictors,

.. math:: \eta = \beta x + \gamma \bar x_j + \dots + u_j,

makes beta the slope within groups and gamma the contextual effect (between minus within); gamma = 0 is what the model
took for granted (Mundlak, 1978, Econometrica 46, 69-85). Of a categorical predictor the means are the shares of its
categories in the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import GroupFactor
from partialpool.errors import DataError, FormulaError, ModelError, did_you_mean
from partialpool.levels.columns import constant_within
from partialpool.levels.context_columns import Apart, Candidate, candidates, kept_apart, proposed_formula
from partialpool.levels.ecological import estimate_of
from partialpool.levels.latent_means import Estimate
from partialpool.levels.refit import edited, refit
from partialpool.posterior.predict import need_rows
from partialpool.present.report import Report
from partialpool.present.tables import decimals_for, number

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior
    from partialpool.spec.formula import Terms

Array = NDArray[np.float64]

#: A contextual effect within this share of the slope within groups is small.
SMALL = 0.25


@dataclass(frozen=True)
class ContextEffect:
    """What one predictor does within the groups of a factor, and what their averages add.

    Attributes
    ----------
    predictor, factor : names. inner : the factor within whose groups `within` is: this one, or one nested in it that
    is checked too.
    slope : of the predictor in the model as it was fitted; None where the model keeps the two slopes apart already, and
    all else is the fit's own. within : once the group means are in it.
    contextual : the coefficient of the group means. between : within plus contextual, and plus those of the factors
    nested in this one: the slope between groups.
    between_share : the share of the predictor's variance that lies between groups.
    """

    predictor: str
    factor: str
    inner: str
    slope: Estimate | None
    within: Estimate
    contextual: Estimate
    between: Estimate
    between_share: float

    @property
    def found(self) -> bool:
        """Whether the 90% interval of the contextual effect leaves out 0."""
        return not self.contextual.q05 <= 0 <= self.contextual.q95


@dataclass(frozen=True, eq=False, repr=False)
class ContextCheck(Report):
    """Mundlak's check of a fit. Made by ``fit.check_context()``.

    Attributes
    ----------
    effects : tuple of ContextEffect
        A predictor and a factor each.
    fit : Posterior
        Of the model with the group means added, priors of all that is shared unchanged; the fit that was asked where
        there was nothing to add.
    formula : str
        The model in the language of ``within()`` and ``between()``.
    left_out : tuple of str
        Predictors that could not be checked, and why.
    """

    effects: tuple[ContextEffect, ...]
    fit: Posterior
    formula: str
    left_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What was done."""
        return "Do group effects go with the group means of predictors? (Mundlak's check)"

    @property
    def table(self) -> pandas.DataFrame:
        """A row a predictor and factor.

        slope: as fitted; within: with the group means in the model; mean, sd, q05, q95 of the contextual effect;
        positive: the probability that it is above 0; between_share: of the predictor's variance.
        """
        import pandas

        rows = [
            [e.predictor, e.factor, e.slope.mean if e.slope else np.nan, e.within.mean, e.contextual.mean,
             e.contextual.sd, e.contextual.q05, e.contextual.q95, e.contextual.positive, e.between_share]
            for e in self.effects
        ]  # fmt: skip
        columns = ["predictor", "factor", "slope", "within", "mean", "sd", "q05", "q95", "positive", "between_share"]
        return pandas.DataFrame(rows, columns=columns)

    @property
    def sentences(self) -> Sequence[str]:
        """The verdict."""
        heading = "mean, sd, q05, q95: the contextual effect, what one unit more of the group's mean adds at the same x"
        heading += " (of a category: what its share of the group adds)." if self._categories else "."
        out = [heading, *(_verdict(effect) for effect in self.effects)]
        if any(effect.found and effect.slope for effect in self.effects):
            out.append(f"The two apart: {self.formula}")
        if not self.fit.accuracy.trusted:
            out.append("The posterior with the group means is NOT to be relied on: see .fit.accuracy.")
        return [*out, *self.left_out]

    @property
    def _categories(self) -> bool:
        return any(effect.predictor.endswith("]") for effect in self.effects)

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The slope as fitted, within and between groups, of every predictor.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into this one.
        figsize : (float, float), optional
            Inches.
        """
        from partialpool.present.context import context_plot

        rows = [
            (f"{e.predictor} | {e.factor}",
             {name: (own.mean, own.q05, own.q95)
              for name, own in (("fitted", e.slope), ("within", e.within), ("between", e.between)) if own})
            for e in self.effects
        ]  # fmt: skip
        return context_plot(rows, ax, figsize)


def check_context(fit: Posterior, factor: str | None = None, **options: Any) -> ContextCheck:
    """See `Posterior.check_context`.

    Parameters
    ----------
    fit : Posterior
    factor : str, optional
        The grouping factor whose means are added; all by default.
    **options
        As :func:`partialpool.fit` takes them, ``seed``, ``draws``, ``threads`` and so on; those of the fit by default.

    Raises
    ------
    ModelError
        If the model has no groups, or no predictor that varies both within and between groups; if the fit was saved
        without its rows.

    Notes
    -----
    Of a predictor that the model has as ``within(x|g) + between(x|g)`` or ``x + between(x|g)``, the answer is the fit's
    own and nothing is refitted.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit(
    ...     "y ~ x + (1|g)",
    ...     {"y": [1, 0, 2, 6, 5, 4, 8, 9, 7], "x": [0, 1, 2, 2, 4, 3, 5, 4, 6.0], "g": list("aaabbbccc")},
    ...     seed=1,
    ... )
    >>> check_context(fit).table.loc[0, "between_share"].round(2)
    np.float64(0.8)
    """
    need_rows(fit, "check_context()")
    factors, design = _factors(fit, factor), fit.model.design
    there, halves = kept_apart(design)
    found, left_out = candidates(design, factors, {(own.predictor, own.factor) for own in there})
    apart = [_apart(fit, own) for own in there if factor is None or own.factor == factor]
    left_out = [*halves, *left_out]
    if not found and not apart:
        reasons = " ".join(left_out) or "The model has no predictors."
        raise ModelError(f"There is nothing to check: no predictor varies within groups and between them. {reasons}")
    if not found:
        return ContextCheck(tuple(apart), fit, str(design.terms.formula), tuple(left_out))
    other = _refit(fit, edited(design.terms, {"": [candidate.between for candidate in found]}), options)
    effects = (*apart, *(_effect(fit, other, candidate, found) for candidate in found))
    return ContextCheck(effects, other, proposed_formula(design.terms, found), tuple(left_out))


def _factors(fit: Posterior, name: str | None) -> list[GroupFactor]:
    design = fit.model.design
    own = {design.factors[group.factor].name for group in design.groups if group.predictor == 0}
    factors = [factor for factor in design.factors if factor.name in own]
    if not factors:
        raise ModelError("This model has no groups, so that there are no group means to add; add a term such as (1|g).")
    if name is None:
        return factors
    names = [factor.name for factor in factors]
    if name not in names:
        raise ModelError(f"There is no grouping factor {name!r}. {did_you_mean(str(name), names)}")
    return [factor for factor in factors if factor.name == name]


def _refit(fit: Posterior, terms: str | Terms, options: dict[str, Any]) -> Posterior:
    try:
        return refit(fit, terms, fit.model.design.data, "check_context()", **options)
    except (DataError, FormulaError) as error:
        raise ModelError(f"The group means cannot be added to this model. {error}") from error


def _apart(fit: Posterior, own: Apart) -> ContextEffect:
    """Of the fit itself, which has both slopes."""
    within, other = fit.draws(own.within), fit.draws(own.between)
    contextual, between = (other - within, other) if own.total else (other, within + other)
    return ContextEffect(
        own.predictor, own.factor, own.inner, None, estimate_of(within), estimate_of(contextual), estimate_of(between),
        own.between_share,
    )  # fmt: skip


def _effect(fit: Posterior, other: Posterior, candidate: Candidate, found: Sequence[Candidate]) -> ContextEffect:
    within, contextual = other.draws(candidate.name), other.draws(candidate.coefficient)
    factors = {factor.name: factor for factor in fit.model.design.factors}
    own = factors[candidate.factor]
    nested = [
        inner for inner in found if inner.name == candidate.name and inner is not candidate
        and constant_within(own.codes, factors[inner.factor].codes)
    ]  # fmt: skip
    between = within + contextual + sum(other.draws(inner.coefficient) for inner in nested)
    finest = max([candidate, *nested], key=lambda one: len(factors[one.factor].labels)).factor
    return ContextEffect(
        candidate.name, candidate.factor, finest, estimate_of(fit.draws(candidate.name)), estimate_of(within),
        estimate_of(contextual), estimate_of(between), candidate.between_share,
    )  # fmt: skip


def _verdict(effect: ContextEffect) -> str:
    own, within = effect.contextual, effect.within
    digits = decimals_for(own.sd)
    value = f"{number(own.mean, digits)} ({number(own.q05, digits)} to {number(own.q95, digits)})"
    x, g = effect.predictor, effect.factor
    if effect.slope is None:
        return (
            f"{_slope(x)} is kept apart already: within a group of {effect.inner} it is "
            f"{number(within.mean, decimals_for(within.sd))}, between groups of {g} "
            f"{number(effect.between.mean, decimals_for(effect.between.sd))}. The contextual effect is {value}"
            f"{'' if effect.found else '; it may be nothing'}."
        )
    if effect.found:
        fitted = number(effect.slope.mean, decimals_for(effect.slope.sd))
        return (
            f"{_slope(x)} mixes two things: within a group of {effect.inner} it is "
            f"{number(within.mean, decimals_for(within.sd))}, between groups of {g} "
            f"{number(effect.between.mean, digits)}; the model gave {fitted}. The contextual effect is {value}."
        )
    if max(abs(own.q05), abs(own.q95)) <= SMALL * abs(within.mean):
        return f"{_slope(x)} is about the same within and between groups of {g}: the contextual effect is {value}."
    return (
        f"The data do not say whether {_slope(x, 't')} differs between groups of {g} from that within: the contextual "
        f"effect is {value}, with {effect.between_share:.1%} of the variance of {x} between groups."
    )


def _slope(predictor: str, the: str = "T") -> str:
    """What the coefficient of a predictor is called."""
    return f"{the}he {'difference made by' if predictor.endswith(']') else 'slope of'} {predictor}"
