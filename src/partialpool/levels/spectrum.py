r"""Complete, no and partial pooling side by side, for every group and term.

Of a coefficient that varies by group there are three estimates: one for all groups (complete pooling), one from each
group's own rows (no pooling), and what the model makes of both (partial pooling). How much of a group's estimate comes
from the population is its shrinkage factor :math:`B_j = E[\mathrm{Var}(u_j \mid y, \beta, \theta) / \tau^2]`; summed up
over the groups of a term,

.. math:: J_{\mathrm{eff}} = \sum_j (1 - B_j)

is the effective number of groups: as many as there are where each stands on its own data, 0 where all is pooled (it is
what the term adds to the effective number of parameters). The average pooling factor of Gelman and Pardoe is in
`pooling_factor`, what no pooling means in `extremes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from partialpool.errors import ModelError, did_you_mean
from partialpool.levels.extremes import complete_coefficients, separate_estimates
from partialpool.levels.marginal_estimates import integrates_others
from partialpool.levels.pooling_factor import pooling_factors
from partialpool.posterior.components import coarser_factors
from partialpool.posterior.groups import coefficient_levels, factor_terms, mean_coefficients, sds_at
from partialpool.posterior.predict import need_rows
from partialpool.posterior.summaries import node_weights
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.levels.held_out import HeldOut
    from partialpool.posterior.posterior import Posterior

#: Groups named as those that borrow most or least, and the difference in shrinkage that counts as a tie.
NAMED, TIE = 2, 0.005


def spectrum(fit: Posterior) -> Pooling:
    """Complete, no and partial pooling of a fit's groups.

    Parameters
    ----------
    source : Posterior
        Of a model with group terms.

    Returns
    -------
    Pooling

    Raises
    ------
    ModelError
        If the model has no groups, or if its response is not Gaussian and it was saved without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> fit.pooling().levels["effective_groups"].round().tolist()
    [14.0, 16.0]
    """
    import pandas as pd

    design = fit.model.design
    if not design.groups:
        raise ModelError("pooling() is about groups, and this model has none; add a term such as (1 | g).")
    if not fit.model.exact:
        need_rows(fit, "pooling() of a response that is not Gaussian")
    beta = complete_coefficients(fit)
    tables = [_factor_table(fit, f, beta) for f in range(len(design.factors))]
    table = pd.concat(tables, ignore_index=True)
    levels = pd.concat([_levels(fit, f, part) for f, part in enumerate(tables)], ignore_index=True)
    return Pooling(fit, table, levels)


#: The name under which `Posterior.pooling` asks for it.
pooling = spectrum


def _factor_table(fit: Posterior, factor: int, beta: Any) -> pandas.DataFrame:
    own = fit.model.design.factors[factor]
    found = fit.groups(own.name, kind="coefficient")
    separate, error = separate_estimates(fit, factor)
    maps = coefficient_levels(fit, factor)
    raw = separate + maps @ mean_coefficients(fit)
    # 0 times an estimate that does not exist is 0
    complete = np.where(maps != 0, maps * np.where(maps != 0, beta, 0.0), 0.0).sum(axis=1)
    found.insert(0, "factor", own.name)
    found.insert(4, "complete", np.tile(complete, len(own.labels)))
    found = found.drop(columns="no_pooling")
    found.insert(5, "no_pooling", raw.ravel())
    found.insert(6, "no_pooling_se", error.ravel())
    return found.rename(columns={"mean": "partial"})


def _levels(fit: Posterior, factor: int, table: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each term of a factor."""
    import pandas as pd

    own = fit.model.design.factors[factor]
    terms = factor_terms(fit.model.design, factor)
    kept = 1 - table["shrinkage"].to_numpy(dtype=float).reshape(-1, len(terms))
    return pd.DataFrame(
        {
            "factor": own.name,
            "term": list(terms),
            "groups": len(own.labels),
            "sd": node_weights(fit.result) @ sds_at(fit, fit.result.theta, factor),
            "pooling_factor": pooling_factors(fit, factor),
            "effective_groups": kept.sum(axis=0),
            "median_shrinkage": 1 - np.median(kept, axis=0),
        }
    )


@dataclass(frozen=True, eq=False, repr=False)
class Pooling(Report):
    """Complete, no and partial pooling side by side. Made by ``fit.pooling()``.

    Attributes
    ----------
    table : pandas.DataFrame
        A row for each factor, group and term: n (rows); complete, the coefficient of the same formula without group
        terms, by least squares or maximum likelihood (0 where no coefficient corresponds to the term; under another
        link than the identity it is that of the mean over groups, which is not quite what these are pooled to);
        no_pooling and
        no_pooling_se, the estimate from the group's own rows alone (nan where these do not determine it, or where it
        is infinite), all that groups share at its posterior mean and taken for known in the standard error; partial,
        sd, q05, q95, the posterior; shrinkage, the share of the estimate that comes from the population. Where classes
        lie in schools, every estimate of a class is of what it adds to its school: the school's effect is in none of
        them. no_pooling takes it for known and shrinkage does not, so that partial is then nearer to no_pooling than
        ``(1 - shrinkage) * no_pooling + shrinkage * complete``.
        Where the response is not Gaussian all of this is on the scale of the linear predictor.
    levels : pandas.DataFrame
        A row for each factor and term: groups; sd, the posterior mean of the groups' sd; pooling_factor, the average
        pooling factor of Gelman and Pardoe (2006), 0 to 1; effective_groups, the sum over groups of 1 - shrinkage;
        median_shrinkage.
    source : Posterior

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"), seed=1)
    >>> pooling = fit.pooling()
    >>> pooling.table.loc[0, ["complete", "no_pooling"]].astype(float).round(1).to_list()
    [1527.5, 1505.0]
    """

    source: Posterior
    _table: pandas.DataFrame
    _levels: pandas.DataFrame

    @property
    def table(self) -> pandas.DataFrame:
        """A row for each factor, group and term; a copy."""
        return self._table.copy()

    @property
    def levels(self) -> pandas.DataFrame:
        """A row for each factor and term; a copy."""
        return self._levels.copy()

    @property
    def title(self) -> str:
        """What this is."""
        return f"The spectrum of pooling: {self.source.model.design.terms.formula}"

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without columns that say the same in every row; se is that of no_pooling."""
        left_out = [name for name in ("factor", "term") if self._table[name].nunique() == 1]
        return self._table.drop(columns=left_out).rename(columns={"no_pooling_se": "se"})

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        out = [self._scale()] if self._scale() else []
        for row in self.levels.itertuples(index=False):
            out += self._of_term(str(row.factor), str(row.term), row)
        out += self._of_several()
        lacking = int((self.table["no_pooling"].isna()).sum())
        if lacking:
            these = "estimate does" if lacking == 1 else "estimates do"
            out.append(
                f"{lacking:,} separate {these} not exist (too few rows, or all rows alike): no_pooling is blank there."
            )
        out.append(
            "pooling factor: 0 where each group keeps its own estimate, 1 where all take the population's; effective "
            "groups: the sum of 1 - shrinkage."
        )
        return tuple(out)

    def _scale(self) -> str:
        family = self.source.model.family
        if family.link == "identity" and len(self.source.model.design.prefixes) == 1:
            return ""
        if family.link == "identity":
            return "Terms of sigma and its like are on the log scale."
        return f"All estimates are on the scale of the linear predictor ({family.link} link)."

    def _of_several(self) -> list[str]:
        """What no pooling of one factor takes the other factors' effects for."""
        model = self.source.model
        names = [factor.name for factor in model.design.factors]
        coarser = [coarser_factors(model, f) for f in range(len(names))]
        out = []
        for name, above in zip(names, coarser, strict=True):
            if above:
                told = " and ".join(names[f] for f in above)
                out.append(f"{name}: all estimates are of what a group adds to the effect of {told}.")
        if out:
            out.append(
                "no_pooling takes what it is added to for known (its posterior mean); shrinkage does not, and is more "
                "than the step from no_pooling to partial."
            )
        for f, name in enumerate(names):
            others = [g for g in range(len(names)) if g != f and g not in coarser[f]]
            if others and not integrates_others(self.source, f):
                told = " and ".join(names[g] for g in others)
                within = any(f in coarser[g] for g in others)
                tail = ", and so is partly pooled already" if within else ""
                out.append(f"no_pooling of {name} takes the effects of {told} at their posterior means{tail}.")
        return out

    def _of_term(self, factor: str, term: str, row: Any) -> list[str]:
        own = self.table[(self.table["factor"] == factor) & (self.table["term"] == term)]
        first = (
            f"{term} by {factor}: pooling factor {row.pooling_factor:.2f}; the {row.groups:,} groups are worth "
            f"{row.effective_groups:.1f} with estimates of their own."
        )
        share = own["shrinkage"].to_numpy(dtype=float)
        if share.max() - share.min() < TIE:
            return [first, f"Every group takes about {share.mean():.0%} of its estimate from the population."]
        most, least = (self._named(own, factor, end) for end in (share.max(), share.min()))
        return [
            first,
            f"Most is borrowed by {most}: {share.max():.0%} of the estimate comes from the population; "
            f"least by {least}: {share.min():.0%}.",
        ]

    @staticmethod
    def _named(own: pandas.DataFrame, factor: str, share: float) -> str:
        """The groups whose shrinkage is about `share`, with their rows."""
        found = own[(own["shrinkage"] - share).abs() < TIE]
        names = [
            f"{group if any(map(str.isalpha, str(group))) else f'{factor} {group}'} ({n:,} row{'s' if n != 1 else ''})"
            for group, n in zip(found["group"], found["n"], strict=True)
        ]
        more = len(names) - NAMED
        if more > 0:
            return ", ".join(names[:NAMED]) + f" and {more:,} more"
        return " and ".join(names)

    def held_out(
        self,
        folds: int = 5,
        groups: bool | str = False,
        *,
        seed: int | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> HeldOut:
        """Which of the three predicts better what it has not seen: K-fold cross-validation.

        Parameters
        ----------
        folds : int
            How many parts the rows (or groups) are cut into, each predicted from the others.
        groups : False, True, "both" or the name of a factor
            False holds out rows, spread evenly over the groups; True whole groups (of each factor in turn); a name
            those of that factor; "both" rows, and then whole groups.
        seed : int, optional
            Of the folds and the refits; that of the fit by default.
        threads : int, optional
            Refits at a time; as many as the fit used by default. The result does not depend on it.
        progress : bool, optional
            Show a bar after two seconds: always, never, or (by default) on a terminal.

        Returns
        -------
        HeldOut
            With `.table` (errors and log densities of each, differences with standard errors), `.rows` and `.plot()`.

        Raises
        ------
        ModelError
            If the fit was saved without its rows, or there are too few rows or groups for as many folds.
        """
        from partialpool.levels.held_out import held_out

        return held_out(self.source, folds, groups, seed=seed, threads=threads, progress=progress)

    def plot(
        self,
        factor: str | None = None,
        term: str | None = None,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Arrows from the separate to the partially pooled estimate of every group, sorted, with 90% intervals.

        Parameters
        ----------
        factor, term : str, optional
            Which groups and which coefficient; by default the first factor, and all its terms side by side.
        ax : Axes, optional
            Where to draw (one term).
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present.canvas import term_axis
        from partialpool.present.spectrum import arrows

        factors = list(dict.fromkeys(self.table["factor"]))
        factor = factors[0] if factor is None else factor
        if factor not in factors:
            raise ModelError(f"There is no grouping factor {factor!r}. {did_you_mean(str(factor), factors)}")
        own = self.table[self.table["factor"] == factor]
        terms = list(dict.fromkeys(own["term"]))
        if term is not None and term not in terms:
            raise ModelError(f"The groups of {factor!r} have no term {term!r}. {did_you_mean(str(term), terms)}")
        wanted = terms if term is None else [term]
        panels = {term_axis(self.source, name): own[own["term"] == name] for name in wanted}
        return arrows(panels, str(factor), ax, figsize)
