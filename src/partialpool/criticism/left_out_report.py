"""What `fit.loo()` and `fit.logo()` answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.left_out import MOST_ERROR, Pointwise
from partialpool.inference.base import GOOD_K
from partialpool.present.report import Report
from partialpool.present.tables import decimals_for, listed, number

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Units that are named as the worst predicted.
NAMED = 3


@dataclass(frozen=True, eq=False, repr=False)
class LeftOut(Report):
    """Every row, or every group of a factor, predicted from all others. Made by ``fit.loo()`` and ``fit.logo()``.

    Attributes
    ----------
    source : Posterior
        The fit that it is about.
    factor : str or None
        The grouping factor whose groups were left out; None where rows were.
    pointwise : Pointwise
        The numbers, unit by unit, as arrays.

    Examples
    --------
    >>> import partialpool as pp
    >>> from partialpool.criticism.loo import loo
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> left = loo(fit)
    >>> left.table.columns.tolist(), round(left.elpd)
    (['elpd', 'se', 'pareto_k', 'refitted'], -862)
    """

    source: Posterior
    factor: str | None
    pointwise: Pointwise

    @property
    def what(self) -> str:
        """What was left out, in words."""
        return "row" if self.factor is None else f"group of {self.factor}"

    @property
    def units(self) -> int:
        """How many rows or groups were left out."""
        return len(self.pointwise.elpd)

    # -- totals -------------------------------------------------------------------------------------------------------

    @property
    def elpd(self) -> float:
        """The expected log predictive density of as many new units: the sum of log p(y_unit | all others)."""
        return float(self.pointwise.elpd.sum())

    @property
    def elpd_se(self) -> float:
        """The standard error of `elpd` as an estimate for new data: root of units times the variance over units."""
        if self.units < 2 or not math.isfinite(self.elpd):
            return math.nan
        return float(np.sqrt(self.units) * self.pointwise.elpd.std(ddof=1))

    @property
    def mc_error(self) -> float:
        """The Monte Carlo standard error of `elpd`: how far another run may be from it."""
        return self.pointwise.total_error

    @property
    def p_eff(self) -> float:
        """Effective number of parameters: how much better the fit predicts its own data than data that were left out.

        The sum over the units of ``log p(a copy of the unit | y)`` less `elpd`. A copy of a row is of the same group,
        so that the group effects count by as much as they follow the data; a copy of a group is a new group with the
        same data, so that only what groups share counts (coefficients, hyperparameters, effects of coarser and crossed
        factors). nan where the density of a copy is not known.
        """
        inside = self.pointwise.inside
        return math.nan if inside is None else float(inside.sum() - self.elpd)

    # -- tables -------------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        found, design = self.pointwise, self.source.model.design
        columns = {"elpd": found.elpd, "se": found.error, "pareto_k": found.pareto_k, "refitted": found.refitted}
        if self.factor is None:
            return pd.DataFrame(columns, index=design.data.index)
        own = next(factor for factor in design.factors if factor.name == self.factor)
        sizes = np.bincount(own.codes, minlength=len(own.labels))
        return pd.DataFrame({"n": sizes, **columns}, index=pd.Index(own.labels, name=self.factor))

    @property
    def table(self) -> pandas.DataFrame:
        """A row for each unit: the data's own labels of rows, or the groups.

        Columns: elpd, log p(y_unit | all others' rows); se, its Monte Carlo standard error; pareto_k, of the importance
        weights (those of a refitted unit say why it was refitted); refitted. For groups also n, their rows.
        """
        return self._table.copy()

    @property
    def title(self) -> str:
        """What this is."""
        told = "Leave-one-out" if self.factor is None else f"Leave-one-group-out by {self.factor}"
        return f"{told}: {self.source.model.design.terms.formula}"

    @property
    def shown(self) -> pandas.DataFrame:
        """The totals; the units are in `table`."""
        import pandas as pd

        frame = pd.DataFrame(
            {"estimate": [self.elpd, self.p_eff, -2 * self.elpd], "se": [self.elpd_se, math.nan, 2 * self.elpd_se]},
            index=["elpd", "p_eff", "-2 elpd"],
        )
        errors = (self.mc_error, math.nan, 2 * self.mc_error)
        frame["Monte Carlo se"] = [number(error, decimals_for(error)) for error in errors]
        return frame.drop(index="p_eff") if math.isnan(self.p_eff) else frame

    # -- words --------------------------------------------------------------------------------------------------------

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """How much of it rests on importance weights, which units are predicted worst, and how far to trust it."""
        return tuple(sentence for sentence in (self._how(), self._worst(), self._trust(), self._terms()) if sentence)

    def _how(self) -> str:
        count, found = self.units, self.pointwise
        units = "rows" if self.factor is None else f"groups of {self.factor}"
        refitted = int(found.refitted.sum())
        start = f"{count:,} {units} were left out one at a time, without refits"
        if not refitted:
            return f"{start}: every Pareto k is below {GOOD_K} and every Monte Carlo error below {MOST_ERROR}."
        high = int((found.refitted & (found.pareto_k > GOOD_K)).sum())
        reasons = []
        if high:
            reasons.append(f"Pareto k above {GOOD_K} in {high:,}")
        if refitted - high:
            reasons.append(f"a Monte Carlo error above {MOST_ERROR} in {refitted - high:,}")
        return f"{start} but for {refitted:,}, for which the model was fitted again ({listed(reasons)})."

    def _worst(self) -> str:
        """The units that are predicted worst; groups are compared by row."""
        elpd = self.pointwise.elpd
        finite = np.isfinite(elpd)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            return (
                f"Nothing can be said of {self._named(bad)} without {'it' if len(bad) == 1 else 'them'}: a coefficient "
                "with a flat prior is known from there alone. Give it a proper prior."
            )
        if self.units < 3:
            return ""
        score = elpd if self.factor is None else elpd / np.maximum(self._table["n"].to_numpy(), 1)
        per, unit = ("", "row") if self.factor is None else (", a row on average", self.factor)
        mean, spread = float(score.mean()), float(score.std())
        places = decimals_for(spread / 10)
        worst = [
            f"{self._table.index[int(at)]} ({number(float(score[at]), places)})"
            for at in np.argsort(score)[: min(NAMED, self.units // 2)]
        ]
        return f"Predicted worst{per}: {unit} {listed(worst)}; the mean of all is {number(mean, places)}."

    def _named(self, units: NDArray[np.int64]) -> str:
        labels = [str(self._table.index[int(unit)]) for unit in units[:NAMED]]
        more = len(units) - len(labels)
        one, several = ("row", "rows") if self.factor is None else (self.factor, self.factor)
        told = listed(labels) if not more else f"{', '.join(labels)} and {more:,} more"
        return f"{one if len(units) == 1 else several} {told}"

    def _trust(self) -> str:
        found = self.pointwise
        doubtful = int(found.doubtful.sum())
        decimals = decimals_for(self.mc_error)
        told = f"Another run would give an elpd within about {number(2 * self.mc_error, decimals)} of this one"
        if not doubtful:
            return f"{told}."
        why = "the refits were stopped" if found.interrupted else "a refit was not possible or not good enough"
        which = self._named(np.flatnonzero(found.doubtful))
        return f"{told}, but for {doubtful:,} ({which}) whose value is not to be relied on: {why}."

    def _terms(self) -> str:
        unit = "row" if self.factor is None else self.factor
        counted = "" if math.isnan(self.p_eff) else "; p_eff: how many parameters the fit spends on its own data"
        if counted and self.factor is not None:
            counted += ", effects of the groups left out not counted"
        kind = "other data of this kind"
        if self.factor is not None and np.ptp(self._table["n"].to_numpy()) > 0:
            kind = "other groups, of sizes that differ as these do"
        return f"elpd: the sum of log p({unit} | all others), its se for {kind}{counted}."

    # -- plot ---------------------------------------------------------------------------------------------------------

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Log predictive density of each unit, those marked that were refitted or are not to be relied on.

        Of groups that differ in size it is that of a row of the group, on average.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw.
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present.criticism_left_out import by_unit

        table = self._table
        values, by_row = self.pointwise.elpd, False
        if self.factor is not None:
            sizes = table["n"].to_numpy()
            by_row = bool(np.ptp(sizes) > 0)
            values = values / np.maximum(sizes, 1) if by_row else values
        return by_unit(
            [str(label) for label in table.index], values, self.pointwise.pareto_k, self.pointwise.refitted,
            self.pointwise.doubtful, self.factor, by_row, self.title, ax, figsize,
        )  # fmt: skip
