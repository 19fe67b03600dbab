r"""The deviance information criterion, with group effects as parameters and with group effects integrated out.

With the deviance :math:`D = -2 \log p(y \mid \cdot)`, its posterior mean :math:`\bar D` and its value :math:`\hat D` at
the posterior means of coefficients, effects and the logs of sds (Spiegelhalter, Best, Carlin and van der Linde, 2002,
Journal of the Royal Statistical Society B 64, 583-639; Gelman et al., Bayesian Data Analysis, for p_V)

.. math:: p_D = \bar D - \hat D, \qquad p_V = \tfrac12 \mathrm{Var}(D), \qquad \mathrm{DIC} = \bar D + p_D .

What the deviance is given is in `densities`: conditional, the groups' effects; marginal, only their population.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from partialpool.criticism.densities import (
    UnitMoments,
    conditional_moments,
    conditional_total_variance,
    marginal_moments,
)
from partialpool.criticism.effective import parameters_by_level
from partialpool.criticism.level_words import conditional_of, level_sentence, marginal_of
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior


def dic(fit: Posterior) -> Dic:
    """The deviance information criterion of a fit, conditional and marginal.

    Parameters
    ----------
    fit : Posterior
        With its rows.

    Returns
    -------
    Dic

    Raises
    ------
    ModelError
        If the fit was saved without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> priors = {"Intercept": pp.Flat(), "sd(school)": pp.Uniform(0, 40)}
    >>> schools = pp.datasets.load("eight_schools")
    >>> fit = pp.fit("y | se(sigma) ~ 1 + (1 | school)", schools, priors=priors, seed=1)
    >>> print(round(dic(fit).table.loc["conditional", "p_D"], 1))
    2.8
    """
    moments, other = conditional_moments(fit), marginal_moments(fit)
    lines = {"conditional": _line(moments, conditional_total_variance(fit))}
    if other is not None:
        lines["marginal"] = _line(other, other.total_variance)
    return Dic(fit, lines, parameters_by_level(fit))


@dataclass(frozen=True, eq=False, repr=False)
class Dic(Report):
    """DIC of a fit. Made by ``fit.dic()``."""

    source: Posterior
    _lines: dict[str, dict[str, Any]]
    _levels: pandas.DataFrame

    @property
    def title(self) -> str:
        """What this is."""
        return f"DIC: {self.source.model.design.terms.formula}"

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        return pd.DataFrame.from_dict(self._lines, orient="index").rename_axis("effects")

    @property
    def table(self) -> pandas.DataFrame:
        """A row where group effects count as parameters, and one where they are integrated out.

        Columns: units; deviance, its posterior mean; at_means, the deviance at the posterior means of coefficients,
        effects and the logs of sds; p_D (their difference), p_V (half the deviance's variance); dic (deviance + p_D),
        dic_v (deviance + p_V); mc_error, the Monte Carlo standard error of the mean deviance.
        """
        return self._table.copy()

    @property
    def levels(self) -> pandas.DataFrame:
        """Parameters by level: how many there are, and how many the data determine; see `parameters_by_level`."""
        return self._levels.copy()

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        out = [conditional_of(self.source)]
        if "marginal" in self._lines:
            out.append(f"marginal: {marginal_of(self.source)}; it is about new groups.")
            out.append("The two answer different questions: compare models by rows of the same kind only.")
        out.append(level_sentence(self._levels))
        for kind, row in self._lines.items():
            if row["p_D"] < 0:
                out.append(
                    f"The {kind} p_D is below 0: the posterior means are a poor summary of a skewed posterior, and DIC "
                    "is not to be used; fit.loo() does not depend on them."
                )
            elif row["p_V"] > 2 * row["p_D"] + 2:
                out.append(
                    f"The {kind} p_V ({row['p_V']:.1f}) is far above p_D ({row['p_D']:.1f}): the posterior is not near "
                    "normal, and DIC is not to be relied on; fit.loo() does not assume it."
                )
        return tuple(out)

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


def _line(moments: UnitMoments, variance: float) -> dict[str, Any]:
    mean, at_means = -2 * float(moments.mean.sum()), -2 * float(moments.at_means.sum())
    p_d, p_v = mean - at_means, 2 * variance
    return {
        "units": len(moments.mean), "deviance": mean, "at_means": at_means, "p_D": p_d, "p_V": p_v,
        "dic": mean + p_d, "dic_v": mean + p_v, "mc_error": 2 * moments.errors["mean"],
    }  # fmt: skip
