r"""Exchangeability of groups: whether their effects go with their size, their order, or what else is known of them.

``u_j ~ N(0, tau^2)`` takes the groups to be alike but for chance: nothing known of a group says whether its effect is
high or low. Where something does, the groups are alike only given it (conditional exchangeability),

.. math:: \theta_j \sim N(f(x_j), \tau^2),

which is the same model with x_j added to its formula, and ``x:x_j`` for a slope of x. Three answers stand side by side:
the posterior of the slope of u_j on x_j over the groups, as the fit has it (``u_j`` are pulled to 0 by their prior, and
the relation with them); the weighted estimate of the slope, which is not pulled; and a permutation of the groups, which
tells how large a relation chance makes. The last two are in `levels.permutation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.errors import ModelError, did_you_mean
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.importance import weighted_moments
from partialpool.levels.columns import column_levels
from partialpool.levels.context_columns import candidates
from partialpool.levels.covariates import ORDER, SIZE, Covariate, covariates_of
from partialpool.levels.crossing import as_written, first_rows, root_of, split_name
from partialpool.levels.effects import affordable_draws, some_draws
from partialpool.levels.permutation import permuted, relation, whiten
from partialpool.levels.refit import edited, refit
from partialpool.posterior.groups import effect_summary, factor_terms, layout_of, random_stream
from partialpool.posterior.summaries import node_weights
from partialpool.present.report import Report
from partialpool.present.tables import POSTERIOR, listed

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior
    from partialpool.spec.formula import Terms

Array = NDArray[np.float64]

#: Stream of the fit's seed for permutations.
PERMUTATIONS = 41
#: Adjusted p-value at which a relation is taken for one, and the model that has it is proposed.
FOUND = 0.05
FEWEST_GROUPS = 5
#: Share of a covariate's variance over the groups up to which predictors of the model may account for it untold.
OVERLAP = 0.25


@dataclass(frozen=True, eq=False, repr=False)
class Exchangeability(Report):
    """Whether group effects go with covariates of the groups; made by `fit.check_exchangeability()`.

    Attributes
    ----------
    source : Posterior
        The fit that was checked.
    factor : str
        The grouping factor.
    covariates : tuple of Covariate
        What is known of its groups.
    table : pandas.DataFrame
        A row for each covariate (each category but the first) and term: covariate, contrast, term; estimate and se of
        the slope of effects on it among groups such as these; p by permutation of the groups, and p_adjusted for all
        covariates and terms; mean, sd, q05, q95 of the slope over these very groups, in the posterior, pulled to 0 by
        the fit's prior. Slopes are per standard deviation of a number over the groups; for a category, its difference
        from the first.
    permutations : int

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("mAch ~ cses + (1 | school)", pp.datasets.load("Hsb82"), seed=1)
    >>> schools = pp.datasets.load("Hsb82")[["school", "meanses"]].drop_duplicates()
    >>> found = fit.check_exchangeability(schools)
    >>> found.formula
    'mAch ~ cses + (1 | school) + meanses'
    >>> found.refit().summary().loc["meanses", "mean"].round(1)
    np.float64(5.9)
    """

    source: Posterior
    factor: str
    covariates: tuple[Covariate, ...]
    _table: pandas.DataFrame
    permutations: int

    @property
    def title(self) -> str:
        """What this is, in one line."""
        return f"Exchangeability of the groups of {self.factor} in {self.source.model.design.terms.formula}"

    @property
    def table(self) -> pandas.DataFrame:
        """All numbers."""
        return self._table.copy()

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without what the contrast and the quantiles say already."""
        return self._table.drop(columns=["covariate", "sd"]).rename(columns={"mean": f"{POSTERIOR}mean"})

    @property
    def found(self) -> pandas.DataFrame:
        """The covariates and terms whose adjusted p-value is at most 0.05: columns covariate, term, p_adjusted."""
        own = self._table[self._table["p_adjusted"] <= FOUND]
        return own[["covariate", "term", "p_adjusted"]].drop_duplicates().reset_index(drop=True)

    @property
    def sentences(self) -> list[str]:
        """What the numbers say."""
        out = []
        groups = len(self.covariates[0].values)
        found = self.found
        adjusted = f", adjusted for {self._tests} tests" if self._tests > 1 else ""
        for row in found.itertuples():
            out.append(
                f"{_effect_name(str(row.term))} go with {_said(str(row.covariate), self.factor)} "
                f"(p = {row.p_adjusted:.3g}{adjusted})."
            )
        if len(found):
            out.append(f"The model in which groups are alike given that is {self.formula}: .refit() fits it.")
        pairs, same = self._proposed
        if same:
            names = list(dict.fromkeys(_said(name, self.factor) for name, _ in pairs))
            out.append(
                f"Left out of it: {listed(same)}, which {'tell' if len(same) > 1 else 'tells'} no more of the "
                f"groups than {listed(names)}."
            )
        if found["covariate"].nunique() > 1:
            out.append("Each was tested by itself: in one model with the others it may have nothing left.")
        if not len(found):
            out.append(
                f"Nothing stands out against chance: the smallest p is {self._table['p_adjusted'].min():.2g}{adjusted}."
                f" With {groups} groups weak relations may stay unseen."
            )
        if self._row_level:
            out.append(
                f"Not asked here: whether effects go with the groups' means of {listed(self._row_level)}; "
                ".check_context() tells."
            )
        out.append(
            "estimate, se: the slope of effects on the covariate, per sd of a number or as a category less the first, "
            "among groups such as these. p: how often groups dealt out at random show as much; the verdict follows it."
        )
        out.append(
            "posterior mean, q05, q95: the slope over these very groups, pulled to 0 by the fit's prior. Its interval "
            "is narrower: it leaves out how far chance moves the slope from one set of groups to another, and may "
            "leave out 0 where p is not small."
        )
        if self._overlapping:
            out.append(
                f"Group-level predictors of the model say part of what {listed(self._overlapping)} would: p is "
                "cautious there and the slopes too near 0. A fit that has both, as .refit([...]) makes it, tells "
                "what is added."
            )
        link = self.source.model.family.link
        if link != "identity":
            out.append(f"Effects are on the scale of the linear predictor ({link} link).")
        return out

    @property
    def _overlapping(self) -> list[str]:
        """Covariates of whose variance over the groups the model's predictors account for more than `OVERLAP`.

        The effects are what these predictors leave; their relation with such a covariate is not one of its own.
        """
        design = self.source.model.design
        position = next(f for f, factor in enumerate(design.factors) if factor.name == self.factor)
        constant = column_levels(design, design.x_columns)[:, position]
        rows = first_rows(design.factors[position].codes, len(design.factors[position].labels))
        known = design.V[:, design.x_columns[constant]][rows]
        known = known - known.mean(axis=0)
        known = known / np.maximum(known.std(axis=0), 1e-300)
        known = known[:, np.isfinite(known).all(axis=0) & (known.std(axis=0) > 0.5)]
        out = []
        for own in self.covariates:
            contrasts = own.contrasts - own.contrasts.mean(axis=0)
            left = contrasts - known @ np.linalg.lstsq(known, contrasts, rcond=None)[0]
            if known.shape[1] and ((left**2).sum(axis=0) < (1 - OVERLAP) * (contrasts**2).sum(axis=0)).any():
                out.append(own.name)
        return out

    @cached_property
    def _row_level(self) -> list[str]:
        """Predictors of the model that vary both within groups and between them, without their means in the model."""
        design = self.source.model.design
        factors = [factor for factor in design.factors if factor.name == self.factor]
        return list(dict.fromkeys(root_of(candidate.name) for candidate in candidates(design, factors)[0]))

    @property
    def _tests(self) -> int:
        return len(self._table[["covariate", "term"]].drop_duplicates())

    # -- the model of conditional exchangeability -------------------------------------------------------------------

    @property
    def formula(self) -> str | Terms | None:
        """The model with the relations found, as a formula; None where there are none. Its data are `data`."""
        pairs = self._proposed[0]
        return self._formula(pairs) if pairs else None

    @cached_property
    def _proposed(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Relations found, and the covariates of them that are linear functions of those before, left out."""
        place = {own.name: own for own in self.covariates}
        design, found = self.source.model.design, self.found
        pairs: list[tuple[str, str]] = []
        same: list[str] = []
        for name, term in zip(found["covariate"], found["term"], strict=True):
            predictor = _term_of(design, place[name], term)[0]
            there = [other for other, of in pairs if _term_of(design, place[other], of)[0] == predictor]
            columns = [place[other].contrasts for other in dict.fromkeys([*there, name])]
            matrix = np.column_stack([np.ones(len(columns[0])), *columns])
            if name in there or np.linalg.matrix_rank(matrix, tol=1e-6) == matrix.shape[1]:
                pairs.append((name, term))
            elif name not in same:
                same.append(name)
        return pairs, same

    def _formula(self, pairs: Sequence[tuple[str, str]]) -> str | Terms:
        design = self.source.model.design
        place = {own.name: own for own in self.covariates}
        added: dict[str, list[str]] = {}
        for name, term in pairs:
            predictor, text = _term_of(design, place[name], term)
            own = as_written(place[name].column, [place[name].column])
            texts = [text for text in dict.fromkeys((own, text)) if not _is_there(design, predictor, text)]
            added.setdefault(predictor, []).extend(texts)
        return edited(design.terms, {p: list(dict.fromkeys(texts)) for p, texts in added.items()})

    @cached_property
    def data(self) -> pandas.DataFrame:
        """The fit's rows with the covariates as columns (size as the log of the rows, order from 1 on)."""
        design = self.source.model.design
        codes = next(factor.codes for factor in design.factors if factor.name == self.factor)
        new = {own.column: own.values[codes] for own in self.covariates if own.column not in design.data.columns}
        return design.data.assign(**new)

    def refit(self, covariates: Sequence[str] | str | None = None, **options: Any) -> Posterior:
        """The fit of the model in which groups are alike given the covariates, with the same priors and options.

        Parameters
        ----------
        covariates : str or sequence of str, optional
            Those to take, each for every term; by default the relations found.
        **options
            As of :func:`partialpool.fit`, in the place of the fit's own.

        Raises
        ------
        ModelError
            If no relation was found and no covariate is named, or one is unknown.
        """
        names = [own.name for own in self.covariates]
        if covariates is None:
            formula = self.formula
            if formula is None:
                raise ModelError(
                    f"No relation was found, so that there is nothing to add; name covariates to fit them all the "
                    f"same, such as .refit({names[:1]!r})."
                )
            return refit(self.source, formula, self.data, "refit()", **options)
        asked = [covariates] if isinstance(covariates, str) else list(covariates)
        for name in asked:
            if name not in names:
                raise ModelError(f"No covariate {name!r} was checked. {did_you_mean(str(name), names)}")
        terms = list(dict.fromkeys(self._table["term"]))
        formula = self._formula([(name, term) for name in asked for term in terms])
        return refit(self.source, formula, self.data, "refit()", **options)

    # -- figure -----------------------------------------------------------------------------------------------------

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The groups' effects against each covariate, with the slope that the posterior has and the one not pulled."""
        from partialpool.present.canvas import scale_of
        from partialpool.present.exchangeability import EffectPanel, draw_effects

        groups = self.source.groups(self.factor)
        panels = []
        for term in dict.fromkeys(self._table["term"]):
            for own in self.covariates:
                rows = self._table[(self._table["covariate"] == own.name) & (self._table["term"] == term)]
                effects = groups[groups["term"] == term]
                mean, low, high = (effects[column].to_numpy(dtype=float) for column in ("mean", "q05", "q95"))
                panels.append(
                    EffectPanel(
                        own.name, str(term), own.categories, own.values, own.contrasts, mean, low, high,
                        rows["mean"].to_numpy(dtype=float), rows["estimate"].to_numpy(dtype=float),
                        float(rows["p"].iloc[0]), float(rows["p_adjusted"].iloc[0]),
                    )
                )  # fmt: skip
        return draw_effects(panels, self.factor, scale_of(self.source), ax, figsize)


def check_exchangeability(
    fit: Posterior, by: Any = None, factor: str | None = None, *, data: Any = None, permutations: int = 999
) -> Exchangeability:
    """Whether the effects of groups go with what is known of the groups.

    Parameters
    ----------
    fit : Posterior
    by : str, sequence of str, mapping, or data frame, optional
        "size" (the log of the rows of each group), "order" (that of the ids where they are whole numbers or an ordered
        category, else of the groups' first rows) and names of columns that have one value in each group, of the
        model's data or of `data`; or a mapping from names to values by group (a dict or series by label, or an array in
        the order of ``fit.groups()``); or a data frame with the factor's columns and others. By default size, order
        and all columns with one value a group that the model does not have already.
    factor : str, optional
        The grouping factor; may be left out where there is one.
    data : data frame, optional
        Where the columns are looked up; it holds the factor's columns too. The fit itself keeps only the columns of
        its formula.
    permutations : int
        Of the groups.

    Raises
    ------
    DataError
        If a covariate is unknown, varies within groups, is the same in all, or lacks a group.
    ModelError
        If there are no groups or too few, or the fit was saved without its rows.
    """
    from partialpool.posterior.predict import need_rows

    design = fit.model.design
    if not design.factors:
        raise ModelError("check_exchangeability() is about groups, and this model has none; add a term such as (1|g).")
    position = fit._factor(factor)
    need_rows(fit, "check_exchangeability()")
    if isinstance(permutations, bool) or not isinstance(permutations, int | np.integer) or permutations < 19:
        raise ModelError(f"permutations = {permutations!r} is not possible; ask for a whole number of at least 19.")
    own = design.factors[position]
    if len(own.labels) < FEWEST_GROUPS:
        raise ModelError(
            f"{own.name!r} has {len(own.labels)} groups; to tell whether their effects go with anything takes at least "
            f"{FEWEST_GROUPS}."
        )
    terms = factor_terms(design, position)
    covariates = covariates_of(design, position, by, data)
    if by is None:  # what the model has for every term leaves nothing to be found
        covariates = tuple(c for c in covariates if not all(_is_there(design, *_term_of(design, c, t)) for t in terms))
    if not covariates:
        raise ModelError(
            f"Nothing is known of the groups of {own.name!r} but their ids; give by={{'name': values by group}} or "
            "data=, a data frame with more columns."
        )
    rng = random_stream(fit, PERMUTATIONS)
    kept = affordable_draws(fit, position)
    draws = some_draws(fit, position, kept)
    means, spreads, prior = conditional_moments(fit, position, kept, draws)
    found = whiten(means, spreads, prior, rng)
    relations = [relation(covariate.contrasts, found.weights) for covariate in covariates]
    p, adjusted = permuted(found, relations, int(permutations), rng)
    rows = []
    for k, (covariate, own_relation) in enumerate(zip(covariates, relations, strict=True)):
        slopes = group_slopes(draws, covariate.contrasts)
        estimates, errors = own_relation.estimates(found.scores)[1:], own_relation.errors
        for (c, name), (t, term) in ((a, b) for a in enumerate(covariate.names) for b in enumerate(terms)):
            own_draws = slopes[:, c, t]
            low, high = np.quantile(own_draws, [0.05, 0.95])
            rows.append([covariate.name, name, term, estimates[c, t], errors[c, t], p[k, t], adjusted[k, t],
                         own_draws.mean(), own_draws.std(), low, high])  # fmt: skip
    return Exchangeability(fit, own.name, covariates, _frame(rows), int(permutations))


def _frame(rows: Sequence[Sequence[Any]]) -> pandas.DataFrame:
    import pandas as pd

    columns = ["covariate", "contrast", "term", "estimate", "se", "p", "p_adjusted", "mean", "sd", "q05", "q95"]
    return pd.DataFrame(list(rows), columns=columns)


def group_slopes(draws: Array, contrasts: Array) -> Array:
    """Least-squares slopes of effects (D, J, q) on contrasts (J, c) over the groups, each counted once: (D, c, q).

    Examples
    --------
    >>> group_slopes(np.array([[[1.0], [3.0], [5.0]]]), np.array([[-1.0], [0.0], [1.0]])).ravel().round(6).tolist()
    [2.0]
    """
    centred = contrasts - contrasts.mean(axis=0)
    return np.asarray(np.einsum("cj,djq->dcq", np.linalg.pinv(centred), draws))


def conditional_moments(
    fit: Posterior, factor: int, kept: NDArray[np.int64], draws: Array
) -> tuple[Array, Array, Array]:
    """Mean (J, q) and covariance (J, q, q) of a factor's effects at typical hyperparameters, and their prior's (q, q).

    `draws` (D, J, q) are those of its effects in the draws `kept` (D,) of the fit.

    Where all is Gaussian the hyperparameters are held at their means (sds at the mean sd), the coefficients are
    integrated out, and means and variances are exact, correlations within a group those of draws. Else the draws'
    covariance is that which is left when the hyperparameters' part, linear and quadratic, is taken off.
    """
    residual = _without_hyperparameters(fit.result.draws_theta[kept], draws)
    spread = np.einsum("dja,djb->jab", residual, residual) / len(residual)
    weights = node_weights(fit.result)
    if not fit.model.exact:
        priors = _prior(fit, factor, fit.result.theta)
        prior = (weights[:, None, None] * priors).sum(axis=0)
        return effect_summary(fit, factor, "effect").mean, spread, prior
    theta = typical_hyperparameters(fit)
    moments = GaussianMarginal(fit.model, threads=fit.result.settings.threads).moments(theta)
    positions = layout_of(fit.model).effects_of(factor)
    sds = np.sqrt(np.maximum(moments.u_var[0][positions], 0.0))
    own = np.sqrt(np.maximum(np.diagonal(spread, axis1=1, axis2=2), np.finfo(float).tiny))
    correlation = spread / (own[:, :, None] * own[:, None, :])
    return (
        moments.u_mean[0][positions],
        correlation * (sds[:, :, None] * sds[:, None, :]),
        _prior(fit, factor, theta)[0],
    )


def typical_hyperparameters(fit: Posterior) -> Array:
    """Hyperparameters (1, d) at their posterior means, sds and sigma at the logarithm of their mean."""
    hyper, theta, weights = fit.model.hyperparameters, fit.result.theta, node_weights(fit.result)
    out = weighted_moments(theta, weights)[0][None, :].copy()
    logs = [np.arange(theta.shape[1])[term.parameters][: term.covariance.size] for term in hyper.terms]
    if hyper.sigma_at is not None:
        logs.append(np.array([hyper.sigma_at]))
    for at in logs:
        out[0, at] = np.log(weights @ np.exp(theta[:, at]))
    return out


def _prior(fit: Posterior, factor: int, theta: Array) -> Array:
    """The covariance of a factor's effects at nodes, (K, q, q): a block for each of its terms."""
    blocks = [
        term.covariance.factor(theta[:, term.parameters]) for term in fit.model.hyperparameters.terms
        if term.factor == factor
    ]  # fmt: skip
    q = sum(block.shape[1] for block in blocks)
    out = np.zeros((len(theta), q, q))
    start = 0
    for block in blocks:
        end = start + block.shape[1]
        out[:, start:end, start:end] = block @ np.swapaxes(block, 1, 2)
        start = end
    return out


def _without_hyperparameters(theta: Array, draws: Array) -> Array:
    """Draws (D, J, q) of effects less what a quadratic in the hyperparameters' draws (D, d) says of them."""
    centred = (theta - theta.mean(axis=0)) / np.maximum(theta.std(axis=0), 1e-12)
    basis = np.column_stack([np.ones(len(centred)), centred, centred**2])
    q, _ = np.linalg.qr(basis)
    flat = draws.reshape(len(draws), -1)
    return np.asarray((flat - q @ (q.T @ flat)).reshape(draws.shape))


def _term_of(design: Design, covariate: Covariate, term: str) -> tuple[str, str]:
    """The linear predictor ("" for the mean's) of a group term's effect, and the term by which it follows a covariate.

    The covariate itself for an intercept, ``x:covariate`` for a slope.
    """
    predictor = next((name for name in design.terms.predictors if term.startswith(f"{name}.")), "")
    plain = term.removeprefix(f"{predictor}." if predictor else "")
    own = as_written(covariate.column, [covariate.column])
    if plain == "Intercept":
        return predictor, own
    columns = list(design.data.columns)
    return predictor, ":".join([*(as_written(part, columns) for part in split_name(plain)), own])


def _is_there(design: Design, predictor: str, text: str) -> bool:
    """Whether a linear predictor has a term already."""
    prefix = f"{predictor}." if predictor else ""
    wanted = frozenset(split_name(text.replace("`", "")))
    names = [name.removeprefix(prefix) for name in design.x_names if name.startswith(prefix)]
    return any(wanted == frozenset(root_of(part) for part in split_name(name)) for name in names)


def _effect_name(term: str) -> str:
    return "Intercepts" if term == "Intercept" else f"Slopes of {term}"


def _said(name: str, factor: str) -> str:
    return {SIZE: f"the size of the {factor}", ORDER: f"the order of the {factor}s"}.get(name, name)
