"""A fit: the posterior of a model, and everything a user does with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, did_you_mean
from partialpool.inference.base import Accuracy, Result
from partialpool.model import Model, unknown_parameter

if TYPE_CHECKING:
    from pathlib import Path

    import pandas
    import xarray

    from partialpool.criticism.check import PredictiveCheck
    from partialpool.criticism.diagnose import Diagnosis
    from partialpool.criticism.dic import Dic
    from partialpool.criticism.influence import Influence
    from partialpool.criticism.left_out_report import LeftOut
    from partialpool.criticism.prior_table import PriorSensitivity
    from partialpool.criticism.sensitivity import PowerScaling
    from partialpool.criticism.waic import Waic
    from partialpool.levels.context import ContextCheck
    from partialpool.levels.cross_level import CrossLevel
    from partialpool.levels.exchangeability import Exchangeability
    from partialpool.levels.fitted_interactions import FittedInteractions
    from partialpool.levels.spectrum import Pooling
    from partialpool.levels.variance import Variance
    from partialpool.posterior.predict import Prediction

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """The posterior of a model, as ``pp.fit`` returns it. Nothing changes it.

    Attributes
    ----------
    model : Model
        What was fitted.
    result : Result
        What the engine found: nodes, weights and draws.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> fit.summary().loc["Days", "mean"].round()
    np.float64(10.0)
    """

    model: Model
    result: Result

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """The seed; with it the fit can be repeated to the bit."""
        return self.result.settings.seed

    @property
    def accuracy(self) -> Accuracy:
        """How the posterior was obtained, and how good it is."""
        return self.result.accuracy

    @property
    def log_marginal_likelihood(self) -> float:
        """log p(y), everything integrated out; nan where a prior is flat, and where NUTS was run (whitened, nuts)."""
        return float(self.result.log_marginal_likelihood)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return self.model.parameter_names

    # -- parameters -------------------------------------------------------------------------------------------------

    def summary(self) -> pandas.DataFrame:
        """Every parameter's posterior.

        Returns
        -------
        pandas.DataFrame
            Index `parameter`; columns mean, sd, q05, q50, q95, ess (how many independent draws would know the mean
            as well), and rhat where chains were run.
        """
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pandas.DataFrame:
        from partialpool.posterior.summaries import parameter_table

        return parameter_table(self.model, self.result)

    def draws(self, name: str) -> Array:
        """Equally weighted draws of one parameter, or of one group's effect.

        Parameters
        ----------
        name : str
            A name of `summary`, such as ``"sd(Days|Subject)"``; or an effect, ``"Subject[308]"`` where its groups
            have one, ``"Subject[308,Days]"`` where they have several.

        Returns
        -------
        array (draws,)

        Raises
        ------
        ModelError
            For an unknown name, with the nearest.
        """
        names = self.parameters
        p = self.result.draws_beta.shape[1]
        if not isinstance(name, str):
            raise ModelError(f"draws({name!r}) is not possible; it takes a parameter's name, such as {names[-1]!r}.")
        if name in names:
            position = names.index(name)
            source = self.result.draws_beta if position < p else self._hyper_draws
            return np.array(source[:, position if position < p else position - p])
        effect = self._effect_named(name)
        if effect is None:
            raise unknown_parameter(str(name), names)
        factor, label, term = effect
        return np.array(self.group_draws(factor, [label])[:, 0, term])

    @cached_property
    def _hyper_draws(self) -> Array:
        return self.model.hyperparameters.public(self.result.draws_theta)

    def _effect_named(self, name: str) -> tuple[str, str, int] | None:
        """Factor, group and term of ``"Subject[308,Days]"``; None where it is no such name."""
        from partialpool.posterior.groups import factor_terms

        for f, factor in enumerate(self.model.design.factors):
            if not (name.startswith(f"{factor.name}[") and name.endswith("]")):
                continue
            inside = name[len(factor.name) + 1 : -1]
            terms = factor_terms(self.model.design, f)
            for position, term in enumerate(terms):
                if inside.endswith(f",{term}"):
                    return factor.name, inside[: -len(term) - 1].strip(), position
            if len(terms) > 1:
                raise ModelError(
                    f"The groups of {factor.name!r} have several effects ({', '.join(terms)}); "
                    f"say which: {factor.name}[{inside},{terms[0]}]."
                )
            return factor.name, inside.strip(), 0
        return None

    # -- groups -----------------------------------------------------------------------------------------------------

    def groups(self, factor: str | None = None, kind: Literal["effect", "coefficient"] = "effect") -> pandas.DataFrame:
        """Every group of a factor: what partial pooling makes of it, beside what no pooling would.

        Parameters
        ----------
        factor : str
            The grouping factor; may be left out where there is one.
        kind : {"effect", "coefficient"}
            The group's deviation u, or the group's own coefficient beta + u. With ``(0 + f | g)``, an effect for
            each category of f, the coefficient is that category's own level: in ``y ~ f`` that of the first category
            is ``Intercept + u``, that of another ``Intercept + f[b] + u``. What the effects' columns do not span
            (other predictors) counts as 0; an effect to which no coefficient corresponds is alone.

        Returns
        -------
        pandas.DataFrame
            A row for each group and term: group, term, n (rows), mean, sd, q05, q95; no_pooling, the least-squares
            estimate from the group's own rows alone, the coefficients and the other factors' effects at their
            posterior means (nan where its rows do not determine it); shrinkage, the share of the estimate that comes
            from the population, E[Var(u | y, beta, theta) / sd^2].

        Notes
        -----
        Where the response is not Gaussian all of this is on the scale of the linear predictor. no_pooling is then the
        maximum-likelihood estimate, nan also where it is infinite (all of a group's rows are successes), and the
        variance in the shrinkage is that given the other factors' effects too, for the factor that is integrated out
        by quadrature, and Laplace's for the others. Terms of sigma's own predictor, ``sigma.x``, combine with its
        coefficients.
        """
        from partialpool.posterior.groups import group_table

        position = self._factor(factor)
        if kind not in ("effect", "coefficient"):
            raise ModelError(
                f"There is no kind {kind!r} of group estimates. {did_you_mean(str(kind), ('effect', 'coefficient'))}"
            )
        cache: dict[tuple[int, str], pandas.DataFrame] = self.__dict__.setdefault("_group_tables", {})
        if (position, kind) not in cache:
            cache[position, kind] = group_table(self, position, kind)
        return cache[position, kind].copy()

    def group_draws(self, factor: str | None = None, groups: Sequence[Any] | None = None) -> Array:
        """Joint draws of group effects, one with those of `draws`; the same ones at every call.

        Parameters
        ----------
        factor : str
            The grouping factor.
        groups : sequence of labels, optional
            The groups wanted, in this order; all by default.

        Returns
        -------
        array (draws, groups, terms)
        """
        from partialpool.posterior.groups import factor_draws

        return factor_draws(self, self._factor(factor), groups)

    def _factor(self, name: str | None) -> int:
        names = [factor.name for factor in self.model.design.factors]
        if name is None and len(names) == 1:
            return 0
        if name not in names:
            hint = did_you_mean("" if name is None else str(name), names) if names else "The model has no groups."
            asked = "Say which grouping factor." if name is None else f"There is no grouping factor {name!r}."
            raise ModelError(f"{asked} {hint}")
        return names.index(name)

    # -- variance ---------------------------------------------------------------------------------------------------

    def variance_components(self) -> pandas.DataFrame:
        """How much of the response's variance each group term and the residual account for, with uncertainty.

        Returns
        -------
        pandas.DataFrame
            A row for each group term and one for `residual`; columns sd, variance and share (of the total of these
            rows) as posterior means, each with its 5% and 95% quantile. The variance of a term with slopes is its
            mean over the rows of the data.

        Notes
        -----
        Where the response is not Gaussian, variances are those of the linear predictor of the mean
        (``.attrs["scale"]`` says so). `residual` is then the variance of the latent variable (pi^2/3 for the logit,
        1 for the probit, pi^2/6 for the cloglog link of Bernoulli and binomial responses; sigma^2 of a lognormal
        one); for other families there is no such row, and the shares are those among the group terms.
        """
        from partialpool.posterior.components import variance_components

        return variance_components(self)

    def icc(self) -> pandas.DataFrame:
        """Intraclass correlations: of two rows that share a group of a factor (and all that it nests in).

        Returns
        -------
        pandas.DataFrame
            A row a factor; columns mean, sd, q05, q50, q95.

        Raises
        ------
        ModelError
            Where slopes vary by group: the correlation then depends on the rows; where the family has no single
            residual variance on the scale of the linear predictor.
        """
        from partialpool.posterior.components import intraclass_correlations

        return intraclass_correlations(self)

    # -- levels -----------------------------------------------------------------------------------------------------

    def pooling(self) -> Pooling:
        """Complete, no and partial pooling side by side, for every group and term.

        Returns
        -------
        Pooling
            With `.table`, `.levels` (pooling factor and effective number of groups by factor and term), `.held_out()`
            (which of the three predicts better) and `.plot()` (arrows from raw to pooled).
        """
        from partialpool.levels.spectrum import pooling

        return pooling(self)

    def variance(self, scale: Literal["both", "link", "response"] = "both") -> Variance:
        """Where the variance lies: components, intraclass correlations, R-squared and design effects by level.

        Parameters
        ----------
        scale : {"both", "link", "response"}
            For responses that are not Gaussian: the scale of the linear predictor, that of the response, or both.

        Returns
        -------
        Variance
            With `.table`, `.components`, `.icc`, `.r_squared`, `.design_effect`, `.along(predictor)` (the variance
            between groups as a function of a predictor whose slope varies) and `.plot()`.
        """
        from partialpool.levels.variance import variance

        return variance(self, scale)

    def check_context(self, factor: str | None = None, **options: Any) -> ContextCheck:
        """Mundlak's check: whether group effects go with the predictors' group means.

        Where they do, the slope of a predictor mixes what it does within groups and between them.

        Parameters
        ----------
        factor : str, optional
            One grouping factor; all by default.
        **options
            Those of :func:`partialpool.fit`, for the model with the group means added.
        """
        from partialpool.levels.context import check_context

        return check_context(self, factor, **options)

    def cross_level(self) -> CrossLevel:
        """Interactions of predictors of different levels: slopes along the group-level predictor, variance explained.

        Raises
        ------
        ModelError
            If the model has no interaction across levels.
        """
        from partialpool.levels.cross_level import cross_level

        return cross_level(self)

    def interactions(
        self, at: Any = None, names: Sequence[str] | None = None, *, draws: int | None = None, tolerance: float = 1e-6
    ) -> FittedInteractions:
        """Whether the fitted mean is a sum of what each predictor does: its mixed second derivatives.

        Parameters
        ----------
        at : data frame or dict, optional
            The rows at which derivatives are taken and averaged; by default those of the fit.
        names : sequence of str, optional
            The predictors, as columns of the data; all by default.
        draws : int, optional
            How many of the fit's draws to use.
        tolerance : float
            Largest derivative, in units of the response's (or link's) spread over those of the predictors, that
            counts as none.

        Returns
        -------
        FittedInteractions
            With `.link` and `.response` (the matrices and their uncertainty), `.table` and `.plot()`.
        """
        from partialpool.levels.fitted_interactions import fitted_interactions

        return fitted_interactions(self, at, names, draws=draws, tolerance=tolerance)

    def check_exchangeability(
        self, by: Any = None, factor: str | None = None, *, data: Any = None, permutations: int = 999
    ) -> Exchangeability:
        """Whether group effects go with the groups' size, order or covariates.

        Parameters
        ----------
        by : str, sequence of str or mapping, optional
            "size", "order" and columns that are constant within groups; or a mapping of names to values by group.
            By default size, order and every such column.
        factor : str, optional
            The grouping factor; may be left out where there is one.
        data : data frame, optional
            The fit's own rows with more columns than its formula names, for `by`.
        permutations : int
            Of the groups, for the reference distribution.

        Returns
        -------
        Exchangeability
            With `.table`, `.formula` (the model in which groups are alike given what was found), `.refit()` and
            `.plot()`.
        """
        from partialpool.levels.exchangeability import check_exchangeability

        return check_exchangeability(self, by, factor, data=data, permutations=permutations)

    # -- criticism --------------------------------------------------------------------------------------------------

    def loo(self, *, threads: int | None = None, progress: bool | None = None) -> LeftOut:
        """Leave-one-out: how well each row is predicted by all others, group effects integrated out.

        Returns
        -------
        LeftOut
            With `.elpd`, `.elpd_se`, `.mc_error`, `.p_eff`, `.table` and `.plot()`.
        """
        from partialpool.criticism.loo import loo

        return loo(self, threads=threads, progress=progress)

    def logo(self, factor: str | None = None, *, threads: int | None = None, progress: bool | None = None) -> LeftOut:
        """Leave-one-group-out: how well each group of a factor is predicted by the others.

        Parameters
        ----------
        factor : str, optional
            The grouping factor; may be left out where there is one.
        """
        from partialpool.criticism.logo import logo

        return logo(self, factor, threads=threads, progress=progress)

    def waic(self) -> Waic:
        """WAIC, group effects as parameters and integrated out, and effective numbers of parameters by level."""
        from partialpool.criticism.waic import waic

        return waic(self)

    def dic(self) -> Dic:
        """DIC with p_D and p_V, conditional and marginal, and effective numbers of parameters by level."""
        from partialpool.criticism.dic import dic

        return dic(self)

    def check(
        self,
        statistic: Any = None,
        factor: str | None = None,
        *,
        groups: Literal["same", "new"] = "same",
        draws: int | None = None,
        seed: int | None = None,
    ) -> PredictiveCheck:
        """Whether the model reproduces its data: predictive checks, overall and by group, and a verdict in words.

        Parameters
        ----------
        statistic : str, callable, list of them, or mapping of names to callables, optional
            By default all that suits the family; a callable takes the responses, ``f(y)`` or ``f(y, data)``.
        factor : str, optional
            Of statistics about groups; all by default.
        groups : {"same", "new"}
            Replicates for these groups, or for new ones from the population.
        draws, seed : int, optional
            How many replicates (1000 by default), and their seed.
        """
        from partialpool.criticism.check import check

        return check(self, statistic, factor, groups=groups, draws=draws, seed=seed)

    def sensitivity(self, priors: Any = None, **options: Any) -> PowerScaling | PriorSensitivity:
        """How much the answers depend on the priors: power-scaling, or a table of alternative priors.

        Parameters
        ----------
        priors : "hyper", sequence of names, or mapping, optional
            The alternatives; see :func:`partialpool.criticism.sensitivity.sensitivity`.
        **options
            conclusion (a statement such as ``"Days > 5"``), threads, progress, seed.
        """
        from partialpool.criticism.sensitivity import sensitivity

        return sensitivity(self, priors, **options)

    def influence(self, factor: str | None = None, **options: Any) -> Influence:
        """What leaving each group out does to coefficients and hyperparameters.

        Parameters
        ----------
        factor : str, optional
            The grouping factor; may be left out where there is one.
        **options
            conclusion (a statement such as ``"Days > 5"``), threads, progress.
        """
        from partialpool.criticism.influence import influence

        return influence(self, factor, **options)

    def diagnose(self) -> Diagnosis:
        """Whether the computation can be believed, and the model's weak spots: one verdict, evidence and mends."""
        from partialpool.criticism.diagnose import diagnose

        return diagnose(self)

    # -- questions and predictions ----------------------------------------------------------------------------------

    def probability(self, statement: str) -> float:
        """The posterior probability of a statement about parameters.

        Parameters
        ----------
        statement : str
            One or more comparisons of expressions in the parameters' names, with ``+ - * /``, parentheses, `abs`,
            `exp`, `log` and `sqrt`: ``"Days > 5"``, ``"0 < cor(Intercept,Days|Subject) < 0.5"``,
            ``"sd(Days|Subject) > Days / 2"``. A name may stand in backticks.
        """
        from partialpool.posterior.statement import probability

        return probability(statement, self.draws, self.parameters, tuple(f.name for f in self.model.design.factors))

    def residuals(self) -> pandas.DataFrame:
        """For each row of the data: observed, fitted (posterior mean, groups included), residual, standardised.

        Where there are trials, observed and fitted are counts. `standardised` is the residual over the square root of
        the response's variance, averaged over the posterior (Pearson's residual).
        """
        from partialpool.posterior.predict import residual_table

        return residual_table(self)

    def predict(
        self,
        new_data: Any = None,
        *,
        kind: Literal["mean", "response", "linear"] = "mean",
        new_groups: Literal["error", "average", "population", "sample"] = "error",
        effects: str | Sequence[str] = "all",
        draws: int | None = None,
    ) -> Prediction:
        """What the fit says about rows, old or new.

        Parameters
        ----------
        new_data : data frame, dict of arrays or path, optional
            New rows; the rows of the fit by default.
        kind : {"mean", "response", "linear"}
            The expected response (of counts out of trials: the probability), a new response (residual noise
            included), or the linear predictor of the mean.
        new_groups : {"error", "average", "population", "sample"}
            A group that the fit has not seen: refuse; take the average group (effect 0); integrate over the
            population of groups (each row on its own); or give each new group a draw of its own, shared by its rows
            (it depends on the fit's seed and the group's label alone). "average" is not the mean over groups where
            the link is not the identity; "population" is: the inverse link is integrated over ``z'u``, one normal
            number with variance ``z' Sigma z`` whatever the number of effects, by 20 Gauss-Hermite nodes a draw.
            (New effects on sigma's own predictor count as 0 for kind="mean".)
        effects : "all", "none" or a list of factors
            Whose group effects count; the others are 0.
        draws : int, optional
            How many of the fit's draws to use; all by default, fewer where rows times draws would be very many
            (see ``Prediction.n_draws``).

        Returns
        -------
        Prediction
            With mean, sd, quantile(q), draws and to_frame().
        """
        from partialpool.posterior.predict import predict

        return predict(self, new_data, kind=kind, new_groups=new_groups, effects=effects, draws=draws)

    # -- doors ------------------------------------------------------------------------------------------------------

    def verify(self, **options: Any) -> Any:
        """Run the reference engine (NUTS, nothing integrated out) and compare with it; see `posterior.verify`."""
        from partialpool.posterior.verify import verify

        return verify(self, **options)

    @property
    def plot(self) -> Any:
        """Figures: ``fit.plot.shrinkage()``, ``.forest()``, ``.density()``, ``.fitted()``."""
        from partialpool.present.plot import Plots

        return Plots(self)

    def to_arviz(self) -> xarray.DataTree:
        """The fit for ArviZ: posterior, sample_stats, log_likelihood, observed_data, posterior_predictive."""
        from partialpool.posterior.arviz import to_arviz

        return to_arviz(self)

    def save(self, path: str | Path, data: bool = True) -> None:
        """Write the fit to one file, which :func:`partialpool.load` reads.

        Parameters
        ----------
        path : str or Path
        data : bool
            Keep the rows too. Without them the file is smaller and holds no one's data; what needs rows says so.
        """
        from partialpool.posterior.storage import save

        save(self, path, data=data)

    def __repr__(self) -> str:
        from partialpool.posterior.describe import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from partialpool.posterior.describe import as_html

        return as_html(self)
