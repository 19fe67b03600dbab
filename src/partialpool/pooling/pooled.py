"""What `pp.pool` returns: every unit's posterior, the population they come from, and the questions people ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import InferenceError, ModelError, PriorError
from partialpool.inference.importance import systematic_resample
from partialpool.pooling.estimation import Found, PoolAccuracy
from partialpool.pooling.hyperpriors import HyperPriors, refuse_improper
from partialpool.pooling.population import Population
from partialpool.pooling.posteriors import TABLE, UnitPosterior
from partialpool.pooling.shapes import to_natural
from partialpool.pooling.units import Units, merged, read_units
from partialpool.spec.distributions import Distribution

if TYPE_CHECKING:
    import pandas
    import xarray

    from partialpool.pooling.comparing import Comparison
    from partialpool.pooling.meta import MetaAnalysis
    from partialpool.present.units import UnitPlots

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """What was asked of `pp.pool`: enough to ask it again of other data.

    kind : the population's name, "known" where `known` is the distribution; method; priors in force; seed; threads.
    """

    kind: str
    method: str
    priors: HyperPriors
    known: Distribution | None
    seed: int
    threads: int


@dataclass(frozen=True, eq=False, repr=False)
class Pooled:
    """Units with strength borrowed from each other, as ``pp.pool`` returns them. Nothing changes it.

    Attributes
    ----------
    units : Units
        What was pooled.
    request : Request
        Population, method and priors.
    found : Found
        What the method found.
    log_constant : float
        What `update` adds to the log marginal likelihood, so that it remains that of all the data.

    Examples
    --------
    >>> import partialpool as pp
    >>> schools = pp.datasets.load("eight_schools")
    >>> pooled = pp.pool("y", se="sigma", units="school", data=schools)
    >>> pooled.table.loc[0, ["raw", "mean"]].astype(float).round(0).tolist()
    [28.0, 11.0]
    """

    units: Units
    request: Request
    found: Found
    log_constant: float = field(default=0.0)

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def family(self) -> str:
        """What the data are: "normal", "binomial" or "poisson"."""
        return self.units.family

    @property
    def method(self) -> str:
        """How it was done: "bayes", "empirical_bayes" or "fixed"."""
        return self.request.method

    @property
    def seed(self) -> int:
        """Of what is drawn."""
        return self.request.seed

    @property
    def posterior(self) -> UnitPosterior:
        """The units' posterior: moments, quantiles, distribution functions, draws."""
        return self.found.posterior

    @property
    def population(self) -> Population:
        """What was learnt of the population: parameters, spread, a new unit, new data."""
        return self.found.population

    @property
    def priors(self) -> HyperPriors:
        """The priors in force."""
        return self.request.priors

    @property
    def null(self) -> float | None:
        """The value of theta that counts as no effect; None where there is none."""
        return self.found.null

    @property
    def accuracy(self) -> PoolAccuracy:
        """How the posterior was obtained, and its measured error."""
        return self.found.accuracy

    @property
    def log_marginal_likelihood(self) -> float:
        """log p(data), all integrated out (bayes) or at the estimate (empirical Bayes); nan under a flat prior."""
        return self.found.log_marginal_likelihood + self.log_constant

    @property
    def complete_pooling(self) -> float:
        """One value for all units: the precision-weighted mean, or all events over all trials or exposure."""
        return self.units.complete_pooling

    # -- the table --------------------------------------------------------------------------------------------------

    @property
    def table(self) -> pandas.DataFrame:
        """Every unit: no pooling beside partial pooling.

        Returns
        -------
        pandas.DataFrame
            unit; raw, its own estimate; mean, sd, q05, q95 of its posterior; weight, the share of the estimate that is
            the unit's own; shrinkage, the rest, which is the population's; raw_q05 and raw_q95, the 90% interval from
            its own data alone. Empirical Bayes adds bayes_q05 and bayes_q95: the interval that also accounts for the
            uncertainty of the population's parameters, which the plug-in interval q05 to q95 ignores. It is that of
            full Bayes; for estimated weights, a bootstrap's (up to 5,000 units).

        Notes
        -----
        weight is n / (n + alpha + beta), E / (E + rate) or tau^2 / (tau^2 + se^2) for conjugate populations, and
        1 - E[Var(eta | y, h) / tau^2] for normal ones on a link scale, eta the unit's parameter there and h the
        population's. Of estimates under mixtures of normals (point_normal, scale_mixture) it is its mean over the
        components. For other populations it is read off the estimate, (mean - m) / (raw - m) with m the population's
        mean (where raw is close to m: the posterior variance over that of the estimate). All of these agree where
        they meet. The
        intervals of the unit's own data are of Jeffreys' prior for counts, closed at 0 events and at all events.
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas

        mean, sd = self.posterior.moments()
        low, high = self.posterior.quantiles(TABLE)
        shrinkage = self._shrinkage(mean)
        raw_low, raw_high = self.units.raw_interval(0.9, self.request.threads)
        columns = {
            "unit": self.units.names, "raw": self.units.raw, "mean": mean, "sd": sd, "q05": low, "q95": high,
            "weight": 1.0 - shrinkage, "shrinkage": shrinkage, "raw_q05": raw_low, "raw_q95": raw_high,
        }  # fmt: skip
        beside = self._beside_quantiles()
        if beside is not None:
            columns["bayes_q05"], columns["bayes_q95"] = beside
        return pandas.DataFrame(columns)

    def _shrinkage(self, mean: Array) -> Array:
        """The share of each unit's estimate that is the population's, (J,).

        Where it has no closed form it is read off the estimate, (raw - mean) / (raw - population's), and, for units so
        close to the population's mean that this says nothing, from how far the posterior mean follows the unit's own.
        """
        follows = self.posterior.shrinkage()
        kind = self.population.kind
        exact = kind in ("normal", "beta", "gamma") or (
            self.family == "normal" and kind in ("point_normal", "scale_mixture")
        )
        if exact or self.units.X is not None or "mean" not in self.population.rows:
            return follows
        centre = self.population["mean"].mean
        if kind != "npmle":
            centre = float(to_natural(self.family, centre))
        raw, spread = self.units.raw, self.units.own_sd(mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip((raw - mean) / (raw - centre), 0.0, 1.0)
            known = (raw - centre) ** 2 / ((raw - centre) ** 2 + 0.25 * spread**2)
        return np.where(np.isfinite(share), known * share + (1 - known) * follows, follows)

    def _beside_quantiles(self) -> Array | None:
        """Intervals that account for what was estimated, (2, J); None where nothing was or it does not matter."""
        from partialpool.pooling.bootstrap import MOST_UNITS, bootstrap_quantiles
        from partialpool.pooling.fitting import WEIGHTED

        if self.request.kind not in WEIGHTED:
            return None if self.beside is None else self.beside.posterior.quantiles(TABLE)
        if self.units.n > MOST_UNITS:
            return None
        mode, known = self.population["mean"].mean, "mean" in self.priors.known
        places = self.population.atoms[0]
        return bootstrap_quantiles(
            self.units, self.request.kind, mode, known, places, TABLE, self.seed, self.request.threads
        )

    @cached_property
    def beside(self) -> Pooled | None:
        """For empirical Bayes: full Bayes with the same priors, whose intervals stand beside; else None."""
        from partialpool.pooling.fitting import WEIGHTED, fit_units

        if self.method != "empirical_bayes" or self.request.kind in WEIGHTED:
            return None
        try:
            refuse_improper(self.units, self.request.kind, self.request.priors)
            return fit_units(self.units, replace(self.request, method="bayes"))
        except (PriorError, InferenceError):  # full Bayes is not possible here: the plug-in intervals stand alone
            return None

    def summary(self) -> pandas.DataFrame:
        """The population's parameters: index `parameter`, columns mean sd q05 q50 q95. See `Population.summary`."""
        return self.population.summary()

    def __repr__(self) -> str:
        from partialpool.present.pooled import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from partialpool.present.pooled import as_html

        return as_html(self)

    # -- likelihood and draws ---------------------------------------------------------------------------------------

    def log_likelihood(self, params: Mapping[str, float]) -> float:
        """log p(data | the population's parameters), units integrated out.

        Parameters
        ----------
        params : mapping
            Every hyperparameter by its name in `summary`: mean and sd, (or alpha and beta; shape and rate), nu,
            null_share, the coefficients.
        """
        if self.found.model is None:
            raise ModelError("This population is not described by a few parameters; see log_marginal_likelihood.")
        return self.found.model.likelihood_of(params) + self.log_constant

    def draws(self, n: int = 4000, units: Sequence[Any] | None = None) -> Array:
        """Joint draws of the units' true values, (n, units); the same at every call."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(40,)))
        positions = None if units is None else np.array([self.units.position(unit) for unit in units], dtype=np.int64)
        return self.posterior.draws(self.node_draws(n, rng), rng, positions)

    def node_draws(self, n: int, rng: np.random.Generator) -> Ints:
        """Indices of nodes of the hyperparameters, as often as their weights say, in random order."""
        return systematic_resample(self.posterior.node_weights, n, rng)

    # -- questions --------------------------------------------------------------------------------------------------

    def rank(self, top: int | None = None, best: str = "high", n_draws: int | None = None) -> pandas.DataFrame:
        """Who is best, and how sure that is: expected ranks, their intervals, the probability to be among the top."""
        from partialpool.pooling.ranking import rank

        return rank(self, top, best, n_draws)

    def exceeds(self, threshold: float | ArrayLike, *, below: bool = False) -> pandas.Series[float]:
        """P(theta > threshold) of every unit (of being below it, with below=True)."""
        from partialpool.pooling.comparing import exceeds

        return exceeds(self, threshold, below=below)

    def compare(self, a: Any, b: Any = None) -> Comparison | pandas.DataFrame:
        """Unit a against unit b (or against every other): difference, ratio, and the probability that a is higher."""
        from partialpool.pooling.comparing import compare

        return compare(self, a, b)

    def decide(self, loss: Any = "squared", actions: Sequence[Any] | None = None, **options: Any) -> pandas.DataFrame:
        """The action of least expected loss for every unit."""
        from partialpool.pooling.decisions import decide

        return decide(self, loss, actions, **options)

    def discoveries(self, fdr: float = 0.05, null: float | None = None, by: str = "auto") -> pandas.DataFrame:
        """The units that differ from the null, at a false discovery rate: local rates and q-values."""
        from partialpool.pooling.discoveries import discoveries

        return discoveries(self, fdr, null, by)

    def significance(self, null: float | None = None, by: str = "auto") -> pandas.DataFrame:
        """Local false discovery and false sign rates and q-values of every unit."""
        from partialpool.pooling.discoveries import significance

        return significance(self, null, by)

    def predict(
        self,
        units: Any = None,
        *,
        trials: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        se: ArrayLike | None = None,
        covariates: Any = None,
    ) -> pandas.DataFrame:
        """A unit's next events, counts or estimate of the size given (its own by default); units="new": a new unit."""
        from partialpool.pooling.prediction import predict

        return predict(self, units, trials=trials, exposure=exposure, se=se, covariates=covariates)

    def meta_analysis(self, probability: float = 0.95) -> MetaAnalysis:
        """The meta-analyst's report: heterogeneity, intervals frequentist and Bayesian, small-study effects."""
        from partialpool.pooling.meta import meta_analysis

        return meta_analysis(self, probability)

    @property
    def plot(self) -> UnitPlots:
        """Plots: shrinkage, caterpillar, funnel, forest, population, pit; called, it draws the shrinkage."""
        from partialpool.present.units import UnitPlots

        return UnitPlots(self)

    # -- more data, and elsewhere -------------------------------------------------------------------------------------

    def update(
        self,
        values: ArrayLike | str,
        *,
        se: ArrayLike | str | None = None,
        trials: ArrayLike | str | None = None,
        exposure: ArrayLike | str | None = None,
        units: Sequence[Any] | ArrayLike | str | None = None,
        covariates: Any = None,
        data: Any = None,
    ) -> Pooled:
        """The same with more data: exactly what pooling everything at once would have given.

        Units of the same name add up (events and trials, counts and exposures; estimates by their precisions), new
        names come at the end; where units have no names they are matched by position. The priors stay what they were
        (defaults that are scaled by the data: by the first data). The log marginal likelihood is that of both data
        sets as they came, so that it counts in how many ways events fell into the first and the second.

        Examples
        --------
        >>> import partialpool as pp
        >>> first = pp.pool([9], trials=[30], population=pp.Beta(75, 225))
        >>> first.update([3], trials=[10]).table["mean"].round(6).tolist()
        [0.255882]
        """
        from partialpool.pooling.fitting import fit_units

        new = read_units(
            values, se=se, trials=trials, exposure=exposure, units=units, covariates=covariates, data=data,
            like=self.units if self.units.X is not None else None,
        )  # fmt: skip
        together, constant = merged(self.units, new)
        return replace(fit_units(together, self.request), log_constant=self.log_constant + constant)

    def to_arviz(self, n_draws: int = 4000) -> xarray.DataTree:
        """An ArviZ tree: posterior, posterior_predictive, log_likelihood and observed_data."""
        from partialpool.pooling.export import to_arviz

        return to_arviz(self, n_draws)
