r"""The widely applicable information criterion, with group effects as parameters and with group effects integrated out.

With the log pointwise predictive density :math:`\mathrm{lppd} = \sum_i \log E[p(y_i \mid \cdot)]` (Watanabe, 2010;
Gelman, Hwang and Vehtari, 2014, Statistics and Computing 24, 997-1016)

.. math:: p_1 = 2 \sum_i \bigl( \log E[p_i] - E[\log p_i] \bigr), \qquad p_2 = \sum_i \mathrm{Var}(\log p_i), \qquad
          \mathrm{elpd} = \mathrm{lppd} - p_2, \qquad \mathrm{WAIC} = -2\, \mathrm{elpd}.

What the units are, and what their densities are given, is in `densities`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.densities import UnitMoments, conditional_moments, marginal_moments
from partialpool.criticism.effective import parameters_by_level
from partialpool.criticism.level_words import conditional_of, level_sentence, marginal_of
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Variance of a unit's log density above which WAIC's approximation is not to be trusted for it.
MOST_VARIANCE = 0.4


def waic(fit: Posterior) -> Waic:
    """The widely applicable information criterion of a fit, conditional and marginal.

    Parameters
    ----------
    fit : Posterior
        With its rows.

    Returns
    -------
    Waic

    Raises
    ------
    ModelError
        If the fit was saved without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> found = waic(fit)
    >>> list(found.table.index), bool(found.table.loc["conditional", "p_waic2"] > 25)
    (['conditional', 'marginal'], True)
    """
    return Waic(fit, conditional_moments(fit), marginal_moments(fit), parameters_by_level(fit))


@dataclass(frozen=True, eq=False, repr=False)
class Waic(Report):
    """WAIC of a fit. Made by ``fit.waic()``.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"), seed=1)
    >>> waic(fit).pointwise.columns.tolist()
    ['lppd', 'p_waic1', 'p_waic2', 'elpd']
    """

    source: Posterior
    _conditional: UnitMoments
    _marginal: UnitMoments | None
    _levels: pandas.DataFrame

    @property
    def title(self) -> str:
        """What this is."""
        return f"WAIC: {self.source.model.design.terms.formula}"

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        rows = {"conditional": _line(self._conditional)}
        if self._marginal is not None:
            rows["marginal"] = _line(self._marginal)
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("effects")

    @property
    def table(self) -> pandas.DataFrame:
        """A row where group effects count as parameters, and one where they are integrated out.

        Columns: units; lppd; p_waic1, p_waic2; elpd (lppd less p_waic2) and its se over the units; waic (-2 elpd);
        mc_error, the Monte Carlo standard error of elpd; uncertain, units whose log density has a variance above 0.4.
        """
        return self._table.copy()

    @property
    def levels(self) -> pandas.DataFrame:
        """Parameters by level: how many there are, and how many the data determine; see `parameters_by_level`."""
        return self._levels.copy()

    @property
    def pointwise(self) -> pandas.DataFrame:
        """A row for each row of the data: lppd, p_waic1, p_waic2, elpd, conditional on the group effects."""
        return _pointwise(self._conditional, self.source.model.design.data.index)

    @property
    def pointwise_marginal(self) -> pandas.DataFrame:
        """The same with the effects of the leaf integrated out, a row for each of its groups; empty without groups."""
        import pandas as pd

        if self._marginal is None:
            return _pointwise(self._conditional, self.source.model.design.data.index).iloc[:0]
        leaf = self.source.model.latent.leaf
        assert leaf is not None
        factor = self.source.model.design.factors[leaf]
        return _pointwise(self._marginal, pd.Index(factor.labels, name=factor.name))

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        out = [conditional_of(self.source)]
        if self._marginal is not None:
            out.append(f"marginal: {marginal_of(self.source)}; it is about new groups.")
            out.append("The two answer different questions: compare models by rows of the same kind only.")
        out += [level_sentence(self._levels), *self._of_uncertain_units()]
        return tuple(out)

    def _of_uncertain_units(self) -> list[str]:
        out = []
        for kind, row in self._table.iterrows():
            if row["uncertain"]:
                what, instead = ("rows", "fit.loo()") if kind == "conditional" else ("groups", "fit.logo()")
                out.append(
                    f"{int(row['uncertain']):,} of {int(row['units']):,} {what} have a log density whose variance over "
                    f"the posterior is above {MOST_VARIANCE}: the {kind} WAIC leans on them and is too favourable "
                    f"there; use {instead}."
                )
        return out

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Parameters by level: how many there are, and how many the data determine.

        Parameters
        ----------
        ax : Axes, optional
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present.criticism_compare import parameters

        return parameters(self._levels, ax, figsize)


def _line(moments: UnitMoments) -> dict[str, Any]:
    pointwise = moments.log_mean - moments.variance
    units = len(pointwise)
    elpd = float(pointwise.sum())
    return {
        "units": units,
        "lppd": float(moments.log_mean.sum()),
        "p_waic1": 2 * float((moments.log_mean - moments.mean).sum()),
        "p_waic2": float(moments.variance.sum()),
        "elpd": elpd,
        "se": float(np.sqrt(units) * pointwise.std(ddof=1)) if units > 1 else float("nan"),
        "waic": -2 * elpd,
        "mc_error": moments.errors["waic2"],
        "uncertain": int((moments.variance > MOST_VARIANCE).sum()),
    }


def _pointwise(moments: UnitMoments, index: Any) -> pandas.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "lppd": moments.log_mean,
            "p_waic1": 2 * (moments.log_mean - moments.mean),
            "p_waic2": moments.variance,
            "elpd": moments.log_mean - moments.variance,
        },
        index=index,
    )
