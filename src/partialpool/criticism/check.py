r"""Does the model reproduce its data? Observed responses beside what the fit would have seen in their place.

Two kinds of p-values stand side by side, and the table says which is which. Posterior predictive ones (`statistics`,
`replicates`) count replicates as extreme as the data: cautious, since the same data made the posterior, so that a large
one proves little. Cross-validatory ones (`calibration_of_rows`, `outlying_groups`) leave the row or the group out and
are uniform where the model is right, or nearly. All of a table are adjusted together by Holm's method, which holds
whatever their dependence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism import check_pictures
from partialpool.criticism.calibration_of_rows import (
    LeftOutRows,
    Reliability,
    left_out_rows,
    likenesses,
    reliability,
)
from partialpool.criticism.check_by_group import by_group
from partialpool.criticism.check_request import (
    LARGEST_EFFECT,
    Request,
    asked,
    battery,
)
from partialpool.criticism.check_table import Compared, framed, table_of
from partialpool.criticism.check_words import KINDS, aligned, shown_p, verdict, width_of
from partialpool.criticism.outlying_groups import GroupEffects, group_effects
from partialpool.criticism.replicates import Replicates, replicates_used
from partialpool.criticism.statistics import (
    RESIDUALS,
    ZerosBeyondMean,
    row_information,
)
from partialpool.errors import ModelError, did_you_mean
from partialpool.present.report import Report
from partialpool.present.tables import decimals_for

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Adjusted p-value at which the data speak against the model.
AGAINST = 0.05
#: Stream of the seed.
SIMULATIONS = 64


@dataclass(frozen=True, eq=False, repr=False)
class PredictiveCheck(Report):
    """What a model reproduces of its data and what it does not; made by `fit.check()`.

    Attributes
    ----------
    source : Posterior
        The fit that was checked.
    table : pandas.DataFrame
        A row a check: check, observed; mean, sd, q05, q95 of the replicates (of what is expected, where a check has
        none); p, p_adjusted for all checks of the table (Holm), kind of p.
    by_group : pandas.DataFrame
        Each group's p-values, see there.
    groups : "same" or "new"
    n_replicates : int

    Examples
    --------
    >>> import partialpool as pp
    >>> from partialpool.criticism.check import check
    >>> fit = pp.fit("Reaction ~ Days + (1 | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> found = check(fit)
    >>> found.against
    ['minimum', 'tails of residuals', 'slopes of Days by Subject']
    """

    source: Posterior
    groups: str
    factors: tuple[int, ...]
    compared: tuple[Compared, ...]
    effects: tuple[GroupEffects, ...]
    request: Request
    replicates: Replicates
    _table: pandas.DataFrame
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What this is, in one line."""
        whose = "new groups" if self.groups == "new" else "the same groups"
        rows = self.source.model.design.n_rows
        return (
            f"Predictive check of {self.source.model.design.terms.formula}: {rows:,} rows, "
            f"{self.n_replicates:,} replicates for {whose}"
        )

    @property
    def table(self) -> pandas.DataFrame:
        """All numbers."""
        return self._table.copy()

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without the replicates' sd and the kinds of p, each row with the decimals it deserves."""
        frame = self._table.drop(columns=["sd", "kind"]).set_index("check")
        wide = self._table[["sd", "q05", "q95"]].to_numpy(dtype=float)
        decimals = [decimals_for(width_of(*row)) for row in wide.tolist()]
        for name in ("p", "p_adjusted"):
            frame[name] = shown_p(frame[name].tolist())
        for name in ("observed", "mean", "q05", "q95"):
            frame[name] = aligned(frame[name].tolist(), decimals)
        return frame

    @property
    def n_replicates(self) -> int:
        """How many data sets were replicated."""
        return self.replicates.count

    @property
    def against(self) -> list[str]:
        """The checks whose adjusted p-value is at most 0.05."""
        return self._table.loc[self._table["p_adjusted"] <= AGAINST, "check"].tolist()

    @cached_property
    def sentences(self) -> list[str]:
        """The verdict: what the model reproduces, what it does not, and what mends it."""
        return verdict(self)

    # -- rows -------------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> LeftOutRows:
        """Each row under the prediction of the others."""
        return left_out_rows(self.replicates.known)

    @cached_property
    def reliability(self) -> Reliability:
        """Events in bins of rows with like predictions."""
        design = self.source.model.design
        trials = np.ones(design.n_rows) if design.trials is None else design.trials
        chosen = self.rows.chosen
        stream = self.replicates.stream(SIMULATIONS)
        key = likenesses(self.source, stream)[chosen]
        return reliability(design.y[chosen], trials[chosen], self.rows.expected, key, stream)

    # -- groups -----------------------------------------------------------------------------------------------------

    @cached_property
    def by_group(self) -> pandas.DataFrame:
        """Each group's p-values.

        A row a group and check: factor, group, n (rows), check, observed; mean, sd, q05, q95 of the replicates of the
        group's own rows; p, p_adjusted for the groups of the factor. The checks are the table's statistics of
        responses, and ``effect: term``: the group's own estimate of its effect, the probability of one as large under
        the population, the group left out.
        """
        if not self.source.model.design.factors:
            raise ModelError("by_group is about groups, and this model has none.")
        return by_group(self)

    # -- figures ----------------------------------------------------------------------------------------------------

    def data(self, kind: str = "statistics") -> pandas.DataFrame:
        """What a picture is drawn from; `kind` as in `plot`."""
        return check_pictures.data(self, self._kind(kind))

    def plot(
        self, kind: str = "statistics", *, ax: Axes | None = None, figsize: tuple[float, float] | None = None
    ) -> Figure:
        """A picture of the check.

        Parameters
        ----------
        kind : str
            "statistics": observed beside replicated ones; "density": the response and 30 of its replicates; "pit":
            transforms of left-out rows; "residuals": their Q-Q plot with an envelope; "rootogram" (counts);
            "reliability" (bernoulli, binomial); "effects": Q-Q plots of group effects with envelopes.
        """
        return check_pictures.draw(self, self._kind(kind), ax, figsize)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The pictures that there are for this fit."""
        return check_pictures.kinds(self)

    def _kind(self, kind: str) -> str:
        kinds = self.kinds
        if kind not in kinds:
            raise ModelError(f"There is no picture {kind!r} of this check. {did_you_mean(str(kind), kinds)}")
        return kind


def check(
    fit: Posterior,
    statistic: Any = None,
    factor: str | None = None,
    *,
    groups: Literal["same", "new"] = "same",
    draws: int | None = None,
    seed: int | None = None,
) -> PredictiveCheck:
    """Whether the model reproduces its data.

    Parameters
    ----------
    fit : Posterior
    statistic : str, callable, list of them, or mapping of names to callables, optional
        By default all that suits the family. A callable takes the responses ``y`` (an array in the order of the fit's
        rows; counts where there are trials) and gives one number; one with two arguments takes the rows as a data
        frame too, ``f(y, data)``.
    factor : str, optional
        The grouping factor of statistics about groups; all by default.
    groups : {"same", "new"}
        Replicates for these groups, or for new ones of the factor (of all factors where none is named), whose effects
        come from the population: a conflict at the level of groups shows there.
    draws : int, optional
        Replicates; 1000 by default, fewer where the rows are very many.
    seed : int, optional
        Of the replicates; the fit's own by default.

    Raises
    ------
    ModelError
        For an unknown statistic or factor, a function that fails (its error, and the replicate), groups="new" without
        groups, or a fit that was saved without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> found = check(fit, {"range": lambda y: y.max() - y.min()}, draws=200)
    >>> found.table["observed"].round(1).tolist()
    [272.0]
    """
    from partialpool.posterior.predict import need_rows

    need_rows(fit, "check()")
    if groups not in ("same", "new"):
        raise ModelError(f"groups={groups!r} is not possible. {did_you_mean(str(groups), ('same', 'new'))}")
    design = fit.model.design
    if not design.factors and (groups == "new" or factor is not None):
        raise ModelError("groups='new' and factor= are about groups, and this model has none; leave them out.")
    position = None if factor is None else fit._factor(factor)
    factors = tuple(range(len(design.factors))) if position is None else (position,)
    new = groups == "new"
    made = Replicates.of(
        fit, replicates_used(fit, draws), position if new else None, new and position is None, _seed(fit, seed)
    )
    information = cache(lambda: _information(made))
    if statistic is None:
        request = battery(fit, factors, new, information)
    else:
        request = asked(fit, statistic, factors, new, information)
    compared, notes = _compare(made, request)
    effects = _effects(made, request, factors)
    found = PredictiveCheck(
        fit, groups, factors, tuple(compared), tuple(effects), request, made, framed([]), (*request.notes, *notes)
    )
    object.__setattr__(found, "_table", table_of(found))
    return found


def _seed(fit: Posterior, seed: Any) -> int:
    if seed is None:
        return fit.seed
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ModelError(f"seed = {seed!r} is not possible; give a whole number of at least 0, or leave it out.")
    return int(seed)


def _information(replicates: Replicates) -> Array:
    """What each row tells of its linear predictor, (n,)."""
    mean, _, first, second = replicates.known.moments
    return row_information(replicates.fit, mean, first, second)


# -- comparing --------------------------------------------------------------------------------------------------------


def _compare(replicates: Replicates, request: Request) -> tuple[list[Compared], list[str]]:
    design = replicates.fit.model.design
    # A user's function may change what it is given: never the fit's own rows.
    y, data = design.y, design.data.copy() if any(own.takes_data for own in request.own) else design.data
    count = replicates.count
    replicated = {id(one): np.empty(count) for one in (*request.statistics, *request.own)}
    observed: dict[int, Array] = {}
    for one in request.statistics:
        observed[id(one)] = np.empty(count) if one.on == RESIDUALS else one.of(y[:, None])
    for own in request.own:
        value = own(y.copy(), data, "the observed responses")
        if not np.isfinite(value):
            raise ModelError(f"The statistic {own.name!r} is {value} for the observed responses; it must be a number.")
        observed[id(own)] = np.array([value])
    residuals = any(one.on == RESIDUALS for one in request.statistics)
    counts = replicates.fit.model.family.discrete and not replicates.renewed
    beyond = counts and any(one.name == "zeros" for one in request.statistics)
    judge = ZerosBeyondMean.of(replicates.fit)
    zeros = (np.empty(count), np.empty(count))
    for block in replicates.blocks() if replicated else ():
        part = slice(block.first, block.first + block.y.shape[1])
        z = (block.residuals(block.y), block.residuals(y[:, None])) if residuals else (block.y, block.y)
        for one in request.statistics:
            replicated[id(one)][part] = one.of(block.y if one.on != RESIDUALS else z[0])
            if one.on == RESIDUALS:
                observed[id(one)][part] = one.of(z[1])
        if beyond:
            none = np.exp(block.no_count())
            slopes = judge.slopes(block.mean, block.sd, none, replicates.theta[part])
            zeros[0][part] = judge.values(y[:, None], block.mean, none, slopes)
            zeros[1][part] = judge.values(block.y, block.mean, none, slopes)
        if request.own:
            columns = np.ascontiguousarray(block.y.T)
            for own in request.own:
                replicated[id(own)][part] = [
                    own(row, data, f"replicate {block.first + k + 1} of {count:,}") for k, row in enumerate(columns)
                ]
    compared = [
        Compared(one.name, one.label, one.side, one.factor, one.predictor, observed[id(one)], replicated[id(one)],
                 KINDS["zeros" if beyond and one.name == "zeros" else one.on],
                 zeros if beyond and one.name == "zeros" else None)
        for one in request.statistics
    ]  # fmt: skip
    compared += [
        Compared(own.name, own.name, "two-sided", "", "", observed[id(own)], replicated[id(own)], KINDS["responses"])
        for own in request.own
    ]
    return compared, _missing(compared, count)


def _missing(compared: Sequence[Compared], count: int) -> list[str]:
    notes = []
    for one in compared:
        lacking = count - int(np.isfinite(one.replicated).sum())
        if 2 * lacking > count:
            raise ModelError(
                f"The statistic {one.label!r} is not a finite number for {lacking:,} of the {count:,} replicates; it "
                "must be one for every data set that the model may make."
            )
        if lacking:
            notes.append(f"{one.label} is not a finite number for {lacking:,} of the replicates; they are left out.")
    return notes


def _effects(replicates: Replicates, request: Request, factors: Sequence[int]) -> list[GroupEffects]:
    if LARGEST_EFFECT not in request.others:
        return []
    found = [effect for f in factors for effect in group_effects(replicates.known, f)]
    return [effect for effect in found if effect.judged >= 4]
