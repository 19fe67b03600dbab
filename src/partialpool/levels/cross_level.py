r"""Interactions across levels: how slopes within groups depend on what the groups are.

In ``y ~ x * z + (1 + x | g)``, z constant within the groups j of g, group j's own slope of x is

.. math:: b_j = \beta_x + \gamma z_j + u_j, \qquad u_j \sim N(0, \tau_x^2),

a regression of slopes on the group-level predictor, whose coefficient gamma is that of ``x:z``. The share of the
slopes' variance that the interactions account for is, draw by draw of the posterior,

.. math:: \frac{\mathrm{Var}_j(\sum_k \gamma_k z_{kj})}{\mathrm{Var}_j(\sum_k \gamma_k z_{kj}) + \tau_x^2},

Var_j the variance over the groups in the data, each counted once (divisor J - 1). It cannot be negative, so that it
lies somewhat above 0 where there is nothing. The classical proportional reduction, ``1 - tau_x^2 / tau_x0^2`` with
``tau_x0`` from the model without the interactions (Raudenbush and Bryk 2002, Hierarchical Linear Models, chapter 4),
can be negative.

Parts of an interaction that vary within groups make up the predictor whose slope it is (``x1:x2`` where there are two);
those that are constant are multiplied (``z1:z2``): a three-way interaction ``x:z1:z2`` lets the slope of x depend on
their product. Where three levels meet, or factors are crossed, each reading has its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.predictor import factor_predictors
from partialpool.errors import ModelError, did_you_mean
from partialpool.levels.columns import column_levels, level_name
from partialpool.levels.crossing import (
    Crossing,
    as_written,
    find_crossings,
    first_rows,
    split_name,
)
from partialpool.levels.effects import affordable_draws, some_draws
from partialpool.levels.moderators import Moderator, Point, moderators_of
from partialpool.levels.refit import edited, refit
from partialpool.posterior.groups import factor_terms
from partialpool.present.report import Report
from partialpool.present.tables import decimals_for, listed, number

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CrossSlope:
    """A predictor whose slope depends on group-level predictors of one factor.

    name : the predictor. factor : position of the factor. crossings : its interactions. main : position of its own
    coefficient, or None. effect : which of a group's effects is its slope, or None where it does not vary.
    """

    name: str
    factor: int
    crossings: tuple[Crossing, ...]
    main: int | None
    effect: int | None
    moderators: tuple[Moderator, ...]
    part_values: Mapping[str, Array]

    @property
    def means(self) -> Point:
        """The group-level parts at their means over the groups."""
        return {part: float(values.mean()) for part, values in self.part_values.items()}

    def along(self, beta: Array, points: Sequence[Point]) -> Array:
        """The slope in the population, (draws, points), where the parts have the values of `points`."""
        return self.at(beta, {part: np.array([point[part] for point in points]) for part in self.part_values})

    def at(self, beta: Array, parts: Mapping[str, Array]) -> Array:
        """The same where the values (points,) of each part are given."""
        out = np.zeros((len(beta), len(next(iter(parts.values())))))
        if self.main is not None:
            out += beta[:, self.main, None]
        for crossing in self.crossings:
            out += beta[:, crossing.position, None] * np.prod([parts[part] for part in crossing.group_parts], axis=0)
        return out

    def variance_added(self, beta: Array, crossings: Sequence[Crossing]) -> Array:
        """The variance over the groups of what interactions add to the slope, (draws,)."""
        covariance = np.atleast_2d(np.cov(np.array([crossing.values.prod(axis=0) for crossing in crossings])))
        gamma = beta[:, [crossing.position for crossing in crossings]]
        return np.asarray(np.einsum("dk,kl,dl->d", gamma, covariance, gamma))

    def added(self, beta: Array, crossings: Sequence[Crossing]) -> Array:
        """What interactions add to each group's slope, (draws, groups)."""
        out = np.zeros((len(beta), len(next(iter(self.part_values.values())))))
        for crossing in crossings:
            out += beta[:, crossing.position, None] * crossing.values.prod(axis=0)
        return out


@dataclass(frozen=True, eq=False, repr=False)
class CrossLevel(Report):
    """How slopes within groups depend on group-level predictors; made by `fit.cross_level()`.

    Attributes
    ----------
    source : Posterior
        The fit that was asked.
    families : tuple of CrossSlope
        The predictors whose slopes depend on group-level predictors, each with its interactions.
    unread : tuple of str
        Interactions whose parts could not be computed from their names, so that their levels are not known.

    Examples
    --------
    >>> import partialpool as pp
    >>> schools = pp.datasets.load("Hsb82")
    >>> fit = pp.fit("mAch ~ cses * sector + (1 + cses | school)", schools, seed=1)
    >>> found = fit.cross_level()
    >>> found.table.index.tolist(), found.table["level"].tolist()
    (['cses:sector[Public]'], ['school'])
    >>> found.slopes()["mean"].round(1).tolist()
    [1.5, 2.8]
    """

    source: Posterior
    families: tuple[CrossSlope, ...]
    unread: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What this is, in one line."""
        return f"Interactions across levels in {self.source.model.design.terms.formula}"

    @cached_property
    def _summary(self) -> pandas.DataFrame:
        return self.source.summary()

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        rows, names = [], []
        for family in self.families:
            for crossing in family.crossings:
                own = dict(self._summary.loc[crossing.name])
                names.append(crossing.name)
                rows.append(
                    {
                        "row_predictor": family.name,
                        "group_predictor": ":".join(crossing.group_parts),
                        "level": self._factor(family),
                        **{column: float(own[column]) for column in ("mean", "sd", "q05", "q95")},
                        "slope_varies": "yes" if family.effect is not None else "no",
                    }
                )
        return pd.DataFrame(rows, index=pd.Index(names, name="interaction"))

    @property
    def table(self) -> pandas.DataFrame:
        """By interaction: row-level and group-level predictor, level, coefficient, whether the slope varies there."""
        return self._table.copy()

    def _factor(self, family: CrossSlope) -> str:
        return self.source.model.design.factors[family.factor].name

    @property
    def sentences(self) -> list[str]:
        """What the numbers say."""
        out = []
        for family in self.families:
            for by, crossings in _by_predictors(family).items():
                out.append(self._about(family, split_name(by), crossings))
            if family.effect is not None:
                out.append(self._about_variance(family))
        fixed = [family for family in self.families if family.effect is None]
        for factor in dict.fromkeys(family.factor for family in fixed):
            out.append(self._without_slopes([family for family in fixed if family.factor == factor]))
        if any(family.effect is not None for family in self.families):
            out.append(
                "That share is the variance over groups of what the interactions add to the slope, over that plus the "
                "variance that is left, sd(slope)^2. It cannot fall below 0, and lies a little above where there is "
                "nothing; .reduction() compares with a fit without the interactions."
            )
        link = self.source.model.family.link
        if link != "identity":
            out.append(f"Slopes are on the scale of the linear predictor ({link} link).")
        if self.unread:
            out.append(f"The levels of {listed(self.unread)} could not be told from the name: left out.")
        return out

    def _about(self, family: CrossSlope, names: Sequence[str], crossings: Sequence[Crossing]) -> str:
        """Whether a slope depends on some group-level predictors, as sure as the data are of it."""
        slope = f"the slope of {family.name} within groups of {self._factor(family)}"
        on = f"their {listed(names)}{' together' * (len(names) > 1)}"
        if len(crossings) > 1:
            if _may_be_alike(self.source.result.draws_beta, crossings):
                return f"The data do not say whether {slope} depends on {on}: it may well be the same for all."
            return f"T{slope[1:]} depends on {on}: that it is the same for all lies outside the joint 90% region."
        name = crossings[0].name
        own = dict(self._summary.loc[name])
        mean, sd, low, high = (float(own[column]) for column in ("mean", "sd", "q05", "q95"))
        digits = decimals_for(sd)
        value = f"{name} is {number(mean, digits)} (90% interval {number(low, digits)} to {number(high, digits)})"
        if low <= 0 <= high:
            return f"The data do not say whether {slope} depends on {on}: {value}."
        return f"T{slope[1:]} depends on {on}: {value}."

    def _about_variance(self, family: CrossSlope) -> str:
        shares = self.explained
        own = shares[(shares["row_predictor"] == family.name) & (shares["level"] == self._factor(family))].iloc[-1]
        names = [moderator.name for moderator in family.moderators]
        who = f"{listed(names)} account" if len(names) > 1 else f"{names[0]} accounts"
        return (
            f"{who} for {own['mean']:.0%} of the variance of that slope between groups "
            f"(90% interval {own['q05']:.0%} to {own['q95']:.0%})."
        )

    def _without_slopes(self, families: Sequence[CrossSlope]) -> str:
        """About predictors whose slopes do not vary by the groups of one factor, and what to write."""
        design, level = self.source.model.design, self._factor(families[0])
        columns = list(design.data.columns)
        terms, predictors = factor_terms(design, families[0].factor), factor_predictors(design)[families[0].factor]
        there = [term for term, predictor in zip(terms, predictors, strict=True) if not predictor]
        names = [family.name for family in families]
        written = [":".join(as_written(part, columns) for part in split_name(name)) for name in [*there, *names]]
        constant = "1" if "Intercept" in there else "0"
        effects = [constant, *(text for text in dict.fromkeys(written) if text != "Intercept")]
        several = len(names) > 1
        return (
            f"The model has no slope{'s' * several} of {listed(names)} that {'vary' if several else 'varies'} by "
            f"{level}: it takes the groups' slopes to follow their group-level predictors exactly, and the uncertainty "
            f"of the interaction{'s' * several} is then too small. Write ({' + '.join(effects)} | {level})."
        )

    # -- slopes -----------------------------------------------------------------------------------------------------

    def slopes(self, interaction: str | None = None, at: Any = None) -> pandas.DataFrame:
        """The slope as a function of the group-level predictors, in the population of groups.

        Parameters
        ----------
        interaction : str, optional
            One interaction, by its name in the table or as ``"x:z"`` with z a column of the data; all by default.
        at : sequence, or mapping from group-level predictors to a value or a sequence, optional
            Where: values of the group-level predictor, categories by name. By default the 5%, 25%, 50%, 75% and 95%
            quantiles over groups (the values themselves where they are few), or every category. What is not named is
            at its mean over the groups, each group counted once.

        Returns
        -------
        pandas.DataFrame
            row_predictor (whose slope), along (the group-level predictor), at, mean, sd, q05, q95, and positive (the
            probability that the slope is above 0).

        Raises
        ------
        ModelError
            For an unknown interaction, predictor or category.
        """
        import pandas as pd

        chosen = self._chosen(interaction)
        if at is not None and not isinstance(at, Mapping) and len(chosen) > 1:
            names = [f"{family.name}:{moderator.name}" for family, moderator in chosen]
            raise ModelError(f"Say along which interaction the values at= run: {listed(names, 'or')}.")
        frames = []
        if isinstance(at, Mapping):
            for family in dict.fromkeys(family for family, _ in chosen):
                frames.append(self._at_mapping(family, at))
        else:
            for family, moderator in chosen:
                values = moderator.default if at is None else list(np.atleast_1d(np.asarray(at, dtype=object)))
                points = [{**family.means, **moderator.point(value)} for value in values]
                frames.append(self._frame(family, moderator.name, values, points))
        return pd.concat(frames, ignore_index=True)

    def _at_mapping(self, family: CrossSlope, at: Mapping[str, Any]) -> pandas.DataFrame:
        from itertools import product

        own = {moderator.name: moderator for moderator in family.moderators}
        for name in at:
            if name not in own:
                raise ModelError(
                    f"The slope of {family.name!r} does not depend on {name!r}. {did_you_mean(str(name), own)}"
                )
        choices = [list(np.atleast_1d(np.asarray(values, dtype=object))) for values in at.values()]
        points, texts = [], []
        for values in product(*choices):
            point = dict(family.means)
            for name, value in zip(at, values, strict=True):
                point |= own[name].point(value)
            points.append(point)
            texts.append(", ".join(_shown(value) for value in values) if len(values) > 1 else values[0])
        return self._frame(family, ", ".join(at), texts, points)

    def _frame(self, family: CrossSlope, along: str, at: Sequence[Any], points: Sequence[Point]) -> pandas.DataFrame:
        import pandas as pd

        draws = family.along(self.source.result.draws_beta, points)
        out = pd.DataFrame({"row_predictor": family.name, "along": along, "at": pd.Series(list(at), dtype=object)})
        return out.assign(**_moments(draws), positive=(draws > 0).mean(axis=0))

    def _chosen(self, interaction: str | None) -> list[tuple[CrossSlope, Moderator]]:
        every = [(family, moderator) for family in self.families for moderator in family.moderators]
        if interaction is None:
            return every
        asked = frozenset(split_name(str(interaction)))
        chosen = [(f, m) for f, m in every if asked == frozenset((*split_name(f.name), m.name))]
        for family, moderator in every if not chosen else ():
            for crossing in family.crossings:
                if frozenset(split_name(crossing.name)) == asked and set(crossing.group_parts) & set(moderator.parts):
                    chosen.append((family, moderator))
        if not chosen:
            known = [*(f"{f.name}:{m.name}" for f, m in every), *self._table.index]
            hint = did_you_mean(str(interaction), dict.fromkeys(known))
            raise ModelError(f"There is no interaction across levels {interaction!r}. {hint}")
        return chosen

    # -- groups -----------------------------------------------------------------------------------------------------

    @cached_property
    def _groups(self) -> pandas.DataFrame:
        import pandas as pd

        return pd.concat([self._groups_of(family) for family in self.families], ignore_index=True)

    @property
    def groups(self) -> pandas.DataFrame:
        """Every group's own slope, ``beta_x + sum gamma z_j + u_j``, from joint draws.

        Columns row_predictor, level, group, n, the group-level predictors, mean, sd, q05, q95, and expected, the mean
        of the slope that its group-level predictors alone give.
        """
        return self._groups.copy()

    def _groups_of(self, family: CrossSlope) -> pandas.DataFrame:
        import pandas as pd

        factor = self.source.model.design.factors[family.factor]
        own, expected = self._own_slopes(family)
        columns = {moderator.name: moderator.groups for moderator in family.moderators}
        frame = pd.DataFrame(
            {"row_predictor": family.name, "level": factor.name, "group": factor.labels, "n": np.asarray(factor.sizes)}
        )
        return frame.assign(**columns, **_moments(own), expected=expected.mean(axis=0))

    def _own_slopes(self, family: CrossSlope) -> tuple[Array, Array]:
        """Draws of every group's slope and of the part that its predictors give, each (draws, groups)."""
        fit = self.source
        beta = fit.result.draws_beta
        kept = affordable_draws(fit, family.factor)
        expected = family.added(beta[kept], family.crossings)
        if family.main is not None:
            expected += beta[kept, family.main, None]
        if family.effect is None:
            return expected, expected
        return expected + some_draws(fit, family.factor, kept)[:, :, family.effect], expected

    # -- variance ---------------------------------------------------------------------------------------------------

    @cached_property
    def explained(self) -> pandas.DataFrame:
        """Share of the variance of the slopes between groups that the interactions account for.

        A row for each group-level predictor (a three-way interaction has its own) and one for all together, ``all``;
        columns row_predictor, level, by, mean, sd, q05, q50, q95. Each is the variance over groups of what these
        interactions add, over that variance plus sd(x|g)^2: for one predictor the share among groups that are alike
        in the others, so that shares do not add up to that of all. Without rows for slopes that do not vary.
        """
        import pandas as pd

        rows = []
        beta = self.source.result.draws_beta
        for family in self.families:
            if family.effect is None:
                continue
            name = factor_terms(self.source.model.design, family.factor)[family.effect]
            left = self.source.draws(f"sd({name}|{self._factor(family)})") ** 2
            sets = _by_predictors(family)
            every = [*sets.items(), ("all", family.crossings)] if len(sets) > 1 else [("all", family.crossings)]
            for by, crossings in every:
                added = family.variance_added(beta, crossings)
                share = added / (added + left)
                quantiles = np.quantile(share, [0.05, 0.5, 0.95])
                rows.append([family.name, self._factor(family), by, share.mean(), share.std(), *quantiles])
        return pd.DataFrame(rows, columns=["row_predictor", "level", "by", "mean", "sd", "q05", "q50", "q95"])

    def without(self, **options: Any) -> Posterior:
        """The fit of the same model without the interactions; options as of :func:`partialpool.fit`."""
        if options:
            return self._refit(**options)
        return self._without

    @cached_property
    def _without(self) -> Posterior:
        return self._refit()

    def _refit(self, **options: Any) -> Posterior:
        design = self.source.model.design
        columns = list(design.data.columns)
        crossings = [crossing for family in self.families for crossing in family.crossings]
        terms = dict.fromkeys(":".join(as_written(p, columns) for p in split_name(c.name)) for c in crossings)
        missing = [family for family in self.families if family.main is None]
        added = dict.fromkeys(":".join(as_written(p, columns) for p in split_name(f.name)) for f in missing)
        formula = edited(design.terms, {"": list(added)}, list(terms))
        return refit(self.source, formula, design.data, "without()", **options)

    def reduction(self, **options: Any) -> pandas.DataFrame:
        """The classical proportional reduction of the slopes' variance, against a fit without the interactions.

        Returns
        -------
        pandas.DataFrame
            A row for each predictor whose slope varies: row_predictor, level, variance_without and variance_with
            (posterior means of sd(x|g)^2) and reduction, 1 - with / without; it is negative where the interactions
            explain nothing and the estimates differ by chance.
        """
        import pandas as pd

        other = self.without(**options)
        rows = []
        for family in self.families:
            if family.effect is None:
                continue
            name = factor_terms(self.source.model.design, family.factor)[family.effect]
            slot = f"sd({name}|{self._factor(family)})"
            before, after = (float((fit.draws(slot) ** 2).mean()) for fit in (other, self.source))
            rows.append([family.name, self._factor(family), before, after, 1 - after / before])
        columns = ["row_predictor", "level", "variance_without", "variance_with", "reduction"]
        return pd.DataFrame(rows, columns=columns)

    # -- figure -----------------------------------------------------------------------------------------------------

    def plot(
        self, interaction: str | None = None, ax: Axes | None = None, figsize: tuple[float, float] | None = None
    ) -> Figure:
        """The slope along each group-level predictor with its 90% interval, and the groups' own slopes as points.

        A group's point is moved to where the other group-level predictors are at their means, as the line is.
        """
        from partialpool.present.canvas import scale_of
        from partialpool.present.cross_level import SlopePanel, draw_slopes

        panels = []
        for family, moderator in self._chosen(interaction):
            points = [{**family.means, **moderator.point(value)} for value in moderator.grid]
            curve = _moments(family.along(self.source.result.draws_beta, points))
            moved = self._moved(family, moderator)
            panels.append(
                SlopePanel(
                    family.name, self._factor(family), moderator.name, moderator.kind == "category",
                    list(moderator.grid), curve["mean"], curve["q05"], curve["q95"], moderator.groups,
                    moved["mean"], moved["q05"], moved["q95"], family.effect is not None, len(family.moderators) > 1,
                )
            )  # fmt: skip
        return draw_slopes(panels, scale_of(self.source), ax, figsize)

    def _moved(self, family: CrossSlope, moderator: Moderator) -> dict[str, Array]:
        """Groups' slopes with the other group-level predictors at their means."""
        own, _ = self._own_slopes(family)
        here, means = family.part_values, family.means
        there = {
            part: values if part in moderator.parts else np.full_like(values, means[part])
            for part, values in here.items()
        }
        beta = self.source.result.draws_beta[affordable_draws(self.source, family.factor)]
        return _moments(own + family.at(beta, there) - family.at(beta, here))


def cross_level(fit: Posterior) -> CrossLevel:
    """Interactions of predictors of different levels in a fit; see `Posterior.cross_level`.

    Raises
    ------
    ModelError
        If the model has no groups or no interaction across levels, or the fit was saved without its rows.
    """
    from partialpool.posterior.predict import need_rows

    design = fit.model.design
    if not design.factors:
        raise ModelError("cross_level() is about groups, and this model has none; add a term such as (1 + x | g).")
    need_rows(fit, "cross_level()")
    crossings, unread = find_crossings(design)
    if not crossings:
        raise _nothing_found(fit, unread)
    keys = dict.fromkeys((frozenset(c.row_parts), c.factor) for c in crossings)
    families = [_family(fit, [c for c in crossings if (frozenset(c.row_parts), c.factor) == key]) for key in keys]
    return CrossLevel(fit, tuple(families), unread)


def _family(fit: Posterior, crossings: Sequence[Crossing]) -> CrossSlope:
    design, first = fit.model.design, crossings[0]
    own, factor = frozenset(first.row_parts), first.factor
    main = next((k for k, name in enumerate(design.x_names)
                 if frozenset(split_name(name)) == own and not design.x_predictor[k]), None)  # fmt: skip
    terms, predictors = factor_terms(design, factor), factor_predictors(design)[factor]
    effect = next((k for k, name in enumerate(terms) if frozenset(split_name(name)) == own and not predictors[k]), None)
    values = {part: column for c in crossings for part, column in zip(c.group_parts, c.values, strict=True)}
    rows = first_rows(design.factors[factor].codes, len(design.factors[factor].labels))
    return CrossSlope(
        ":".join(first.row_parts), factor, tuple(crossings), main, effect,
        moderators_of(design, values, rows), values,
    )  # fmt: skip


def _nothing_found(fit: Posterior, unread: Sequence[str]) -> ModelError:
    """What the model has instead, and what to write."""
    design = fit.model.design
    constant = column_levels(design, design.x_columns)
    factor = design.factors[0].name
    between = [
        n for n, row in zip(design.x_names, constant, strict=True) if level_name(design, row) != "row" and ":" not in n
    ]
    between = [name for name in between if name != "Intercept"]
    within = [
        n for n, row in zip(design.x_names, constant, strict=True) if level_name(design, row) == "row" and ":" not in n
    ]
    x, z = (within or ["x"])[0], (between or ["z"])[0]
    has = f" ({listed(unread)} could not be read)" if unread else ""
    known = f"; of its predictors {listed(between)} {'is' if len(between) == 1 else 'are'}" if between else ""
    return ModelError(
        f"The model has no interaction across levels{has}: an x:z in which z is constant within groups and x varies "
        f"within them{known}. Write one, such as {x}:{z}, and let the slope vary: (1 + {x} | {factor})."
    )


def _by_predictors(family: CrossSlope) -> dict[str, tuple[Crossing, ...]]:
    """Interactions by the group-level predictors that they name."""
    place = {part: moderator.name for moderator in family.moderators for part in moderator.parts}
    out: dict[str, list[Crossing]] = {}
    for crossing in family.crossings:
        names = dict.fromkeys(place[part] for part in crossing.group_parts)
        out.setdefault(":".join(names), []).append(crossing)
    return {name: tuple(found) for name, found in out.items()}


def _moments(draws: Array) -> dict[str, Array]:
    low, high = np.quantile(np.ascontiguousarray(draws.T), [0.05, 0.95], axis=1)
    return {"mean": draws.mean(axis=0), "sd": draws.std(axis=0), "q05": low, "q95": high}


def _may_be_alike(beta: Array, crossings: Sequence[Crossing]) -> bool:
    """Whether the 90% region (an ellipsoid) of what interactions add to the groups' slopes holds the same for all."""
    from scipy.special import chdtr

    values = np.array([crossing.values.prod(axis=0) for crossing in crossings])
    directions, sizes, _ = np.linalg.svd(values - values.mean(axis=1, keepdims=True), full_matrices=False)
    draws = beta[:, [crossing.position for crossing in crossings]] @ directions[:, sizes > 1e-9 * sizes[0]]
    mean, covariance = draws.mean(axis=0), np.atleast_2d(np.cov(draws.T))
    return bool(chdtr(len(mean), float(mean @ np.linalg.solve(covariance, mean))) <= 0.9)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
