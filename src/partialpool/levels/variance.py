r"""Where the variance lies: components, intraclass correlations, R-squared and design effects of every level.

*Share* of a level: what it adds to the levels that contain it, over all variance at given predictors. *Intraclass
correlation* of a level: the correlation of two rows that share one of its groups, and so the groups that these lie in:
that of a class has the school's share in it. Both are averages over the rows of the data of the variance, over the
average of the total: where slopes vary by group each row has its own (`Variance.along`).

On the scale of the linear predictor variances add; see :mod:`partialpool.levels.link_scale` for that of single rows. On
the scale of the response they are integrals (:mod:`partialpool.levels.response_scale`); where levels are crossed and
the link is not the identity, they add something together beside what each adds alone.

The *design effect* is how much larger the variance of a mean over the rows is than that of as many independent rows
(:mod:`partialpool.levels.design_effect`); the rows over it are the effective number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from partialpool.errors import ModelError, did_you_mean
from partialpool.levels.decomposition import (
    LINK,
    RESPONSE,
    STATISTICS,
    Decomposition,
    has_two_scales,
    link_points,
    on_link,
    on_response,
    share_of,
    statistics,
)
from partialpool.levels.design_effect import design_effects, unit_weights
from partialpool.levels.link_scale import average_powers, log_variances, overall_mean
from partialpool.levels.r_squared import LevelExplained, level_r_squared
from partialpool.levels.variance_words import notes, sentences
from partialpool.posterior.predict import need_rows
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.levels.along import Along
    from partialpool.model import Model
    from partialpool.posterior.posterior import Posterior

SCALES = ("both", LINK, RESPONSE)
COLUMNS = ("level", "quantity", "scale", *STATISTICS)


@dataclass(frozen=True, eq=False, repr=False)
class Variance(Report):
    """Where the variance of a response lies, with the uncertainty of the posterior. Made by :meth:`Posterior.variance`.

    Every frame has the columns level, quantity, scale, mean, sd, q05, q50, q95. Levels are the grouping factors,
    ``residual`` and ``all``.

    Attributes
    ----------
    source : Posterior
    scales : tuple of Decomposition
        The values at points of the posterior, by scale.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"), seed=1)
    >>> found = fit.variance()
    >>> found.icc[["level", "quantity", "scale"]].values.tolist()
    [['Batch', 'icc', 'response']]
    """

    source: Posterior
    scales: tuple[Decomposition, ...]
    #: What the user should know of how it was computed.
    remarks: tuple[str, ...] = ()

    # -- frames --------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What this is."""
        return f"Variance by level: {self.source.model.design.terms.formula}, {self.source.model.family}"

    @cached_property
    def components(self) -> pandas.DataFrame:
        """Variance, sd and share of every level and of the residual."""
        rows = []
        for part in self.scales:
            whole = part.within
            for name, values in part.parts:
                rows.append((name, "variance", part.scale, *statistics(values, part.weights)))
                rows.append((name, "sd", part.scale, *statistics(np.sqrt(values), part.weights)))
                rows.append((name, "share", part.scale, *statistics(share_of(values, whole), part.weights)))
        return _frame(rows)

    @property
    def residual_variants(self) -> pandas.DataFrame:
        """Three forms of the variance of a row on the link scale, under a log link (Nakagawa and others, 2017).

        Rows ``delta``, ``lognormal`` and ``trigamma``; columns mean, sd, q05, q50, q95.

        Raises
        ------
        ModelError
            If the link is not the log.
        """
        import pandas as pd

        model = self.source.model
        if model.family.link != "log":
            raise ModelError(f"The variants are those of families with a log link; this one is {model.family}.")
        points, rows = link_points(self.source)
        variants = log_variances(overall_mean(model.family, rows), average_powers(rows))
        table = [statistics(values, points.weights) for values in variants.values()]
        return pd.DataFrame(table, index=pd.Index(list(variants), name="variant"), columns=list(STATISTICS))

    @cached_property
    def icc(self) -> pandas.DataFrame:
        """The correlation of two rows that share a group of a level, and all that it lies in."""
        return _frame(
            [
                (name, "icc", part.scale, *statistics(part.icc[:, k], part.weights))
                for part in self.scales
                for k, name in enumerate(part.names)
            ]
        )

    @cached_property
    def r_squared(self) -> pandas.DataFrame:
        """R-squared, marginal (by the predictors) and conditional (with the groups), and that of each level.

        `r_squared[Intercept]` of a level is Gelman and Pardoe's: how much of the differences between its groups'
        intercepts their predictors and the groups that contain them (the schools, of classes) explain; `r_squared` of
        ``rows`` is that of single rows. Its mean is theirs, one minus a ratio of posterior means; the other columns are
        those of the ratio at single draws. (`cross_level().explained` sets what interactions add against the groups'
        sd in the population instead, draw by draw.)
        """
        rows: list[tuple[Any, ...]] = []
        for part in self.scales:
            values = {"r_squared_marginal": part.explained}
            if part.names:
                values["r_squared_conditional"] = part.explained + part.explained_between
            for name, above in values.items():
                found = statistics(share_of(above, part.total), part.explained_weights)
                rows.append(("all", name, part.scale, *found))
        scale = LINK if has_two_scales(self.source.model) else RESPONSE
        if any(part.scale == scale for part in self.scales):
            for own in self._by_level:
                found = statistics(own.draws, np.ones(len(own.draws)))
                quantity = f"r_squared[{own.term}]" if own.term else "r_squared"
                rows.append((own.level, quantity, scale, own.value, *found[1:]))
        return _frame(rows)

    @cached_property
    def _by_level(self) -> list[LevelExplained]:
        return level_r_squared(self.source)

    @cached_property
    def design_effect(self) -> pandas.DataFrame:
        """How much grouping inflates the variance of a mean over the rows (or trials), and how many it leaves."""
        units = unit_weights(self.source.model.design).sum()
        rows = []
        for part in self.scales:
            for name, values in design_effects(self.source, part).items():
                rows.append((name, "design_effect", part.scale, *statistics(values, part.weights)))
                rows.append((name, "effective_size", part.scale, *statistics(units / values, part.weights)))
        return _frame(rows)

    @cached_property
    def table(self) -> pandas.DataFrame:
        """All of them, one below the other."""
        import pandas as pd

        parts = [self.components, self.icc, self.r_squared, self.design_effect]
        return pd.concat([part for part in parts if len(part)], ignore_index=True)

    @property
    def shown(self) -> pandas.DataFrame:
        """A row a level and scale: its sd (`level_sd`), share of the variance with its 90% interval, and ICC; means."""
        import pandas as pd

        rows = []
        for part in self.scales:
            whole = part.within
            for k, (name, values) in enumerate(part.parts):
                share = statistics(share_of(values, whole), part.weights)
                icc = statistics(part.icc[:, k], part.weights)[0] if k < len(part.names) else np.nan
                sd = statistics(np.sqrt(values), part.weights)[0]
                ratios = ("" if np.isnan(value) else f"{value:.3f}" for value in (share[0], share[2], share[4], icc))
                rows.append([name, part.scale, sd, *ratios])
        names = ["level", "scale", "level_sd", "share", "share_q05", "share_q95", "icc"]
        return pd.DataFrame(rows, columns=names).set_index("level")

    @property
    def sentences(self) -> Sequence[str]:
        """What the numbers say."""
        units = float(unit_weights(self.source.model.design).sum())
        frames = (self.components, self.icc, self.r_squared, self.design_effect)
        return [*sentences(self.source.model, *frames, self._by_level, units), *self.remarks]

    # -- more ----------------------------------------------------------------------------------------------------------

    def along(self, predictor: str, at: ArrayLike | None = None) -> Along:
        """The variance between groups, and the intraclass correlation, as a predictor changes.

        Parameters
        ----------
        predictor : str
            A column of the data, or of the model such as ``"within(x|g)"``; the others stay at a typical value, the one
            in the data that is nearest to their mean, or the commonest category.
        at : array of values, optional
            Where; over the range in the data by default.

        Returns
        -------
        Along
            With `.table` and `.plot()`.

        Raises
        ------
        ModelError, DataError
            If the model has no such predictor or no groups, or a value is impossible.
        """
        from partialpool.levels.along import along

        return along(self, predictor, at)

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The shares of the levels with their 90% intervals."""
        from partialpool.present.variance import Shares, shares_plot

        parts = []
        for part in self.scales:
            found = [statistics(share_of(values, part.within), part.weights) for _, values in part.parts]
            names = tuple(name for name, _ in part.parts)
            parts.append(Shares(part.scale, names, np.array([[row[0], row[2], row[4]] for row in found])))
        return shares_plot(parts, str(self.source.model.design.terms.response.expression), ax, figsize)


def variance(fit: Posterior, scale: str = "both") -> Variance:
    """`Posterior.variance`."""
    if scale not in SCALES:
        raise ModelError(f"There is no scale {scale!r} of variance. {did_you_mean(str(scale), SCALES)}")
    need_rows(fit, "variance()")
    model = fit.model
    if not has_two_scales(model):
        return Variance(fit, (on_link(fit),), notes(model))
    obstacle = no_response_scale(model)
    if obstacle and scale == RESPONSE:
        raise ModelError(obstacle)
    parts = []
    if scale != RESPONSE or obstacle:
        parts.append(on_link(fit))
    remarks = list(notes(model))
    if scale != LINK:
        if obstacle:
            remarks.append(obstacle)
        else:
            parts.append(on_response(fit))
            if parts[-1].rows is not None:
                remarks.append(
                    f"On the scale of the response, averages are over {parts[-1].rows:,} rows, evenly spaced in the "
                    "order of their predictions."
                )
    return Variance(fit, tuple(parts), tuple(remarks))


def no_response_scale(model: Model) -> str | None:
    """Why the response has no finite variance over the population of groups; None where it has."""
    grouped = [group for group in model.design.groups if not group.predictor]
    if model.family.link == "inverse" and grouped:
        return (
            "Under the inverse link with group effects the response has no finite variance, so that there is nothing "
            "on its own scale; with link='log' there is."
        )
    if model.family.name == "lognormal" and len(grouped) < len(model.design.groups):
        return (
            "A lognormal response whose sigma varies by group has no finite variance, so that there is nothing on its "
            "own scale; the scale of its log is left."
        )
    return None


def _frame(rows: Sequence[Sequence[Any]]) -> pandas.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(COLUMNS))
