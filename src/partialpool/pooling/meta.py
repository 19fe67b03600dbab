"""Meta-analysis of pooled estimates: what is reported by custom, beside what the Bayesian answer says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.lapack import one_blas_thread
from partialpool.algebra.mixture import mixture_summary
from partialpool.errors import DataError, ModelError
from partialpool.pooling.population import typical_variance
from partialpool.pooling.reml import STATUS, Reml, reml, weighted_mean
from partialpool.pooling.small_study import SmallStudyEffects, small_study_effects
from partialpool.pooling.units import check_probability

if TYPE_CHECKING:
    import pandas as pd

    from partialpool.pooling.units import Units

Array = NDArray[np.float64]
Interval = tuple[float, float]

METHODS = {"bayes": "Bayes", "empirical_bayes": "empirical Bayes", "fixed": "given population"}


class _Population(Protocol):
    def prediction_interval(self, probability: float = 0.9) -> Interval: ...


class _Found(Protocol):
    @property
    def model(self) -> Any: ...
    @property
    def explored(self) -> Any: ...


class _Pooled(Protocol):
    """What a meta-analysis needs of a `Pooled`."""

    @property
    def units(self) -> Units: ...
    @property
    def population(self) -> _Population: ...
    @property
    def found(self) -> _Found: ...
    @property
    def method(self) -> str: ...
    def summary(self) -> pd.DataFrame: ...


@dataclass(frozen=True, eq=False, repr=False)
class MetaAnalysis:
    """A random-effects meta-analysis by restricted maximum likelihood, beside the Bayesian answer.

    Attributes
    ----------
    n : how many studies. probability : of all intervals.
    mean, se : mean effect with weights 1 / (se_i² + tau²), and its standard error given tau².
    tau2, tau : variance and sd of the effects between studies (REML). status : "converged", or "boundary" where
        tau = 0 is the best.
    wald : mean -/+ z se. hartung_knapp : mean -/+ t sqrt(max(1, q)) se with t on n - 1 degrees of freedom and
        q = sum w_i (y_i - mean)² / (n - 1): the refinement of Knapp and Hartung (2003) by which the interval is never
        narrower than Wald's. hartung_knapp_plain : the same with q itself (Hartung, 1999).
    q, q_p : Cochran's Q and its p on n - 1 degrees of freedom.
    i2 : tau² / (tau² + s²), a share, with Higgins and Thompson's typical variance s²; h2 : (tau² + s²) / s².
    tau2_interval : where the generalised Q has its chi-squared quantiles (Viechtbauer, 2007: Q-profile).
    prediction_interval : mean -/+ t sqrt(tau² + se²) for the effect in a new study, with t on n - 2 degrees of
        freedom (Higgins, Thompson and Spiegelhalter, 2009); infinite with 2 studies.
    table : quantity (mean, tau, new study), method, estimate, low, high: all intervals side by side.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool("y", se="sigma", units="school", data=pp.datasets.load("eight_schools"))
    >>> found = pooled.meta_analysis()
    >>> found.status, round(found.mean, 3), round(found.q, 3)
    ('boundary', 7.686, 4.707)
    """

    n: int
    probability: float
    mean: float
    se: float
    tau2: float
    status: str
    wald: Interval
    hartung_knapp: Interval
    hartung_knapp_plain: Interval
    q: float
    q_p: float
    i2: float
    h2: float
    tau2_interval: Interval
    prediction_interval: Interval
    table: pd.DataFrame
    units: Units = field(repr=False)

    @property
    def tau(self) -> float:
        """The sd of the effects between studies."""
        return math.sqrt(self.tau2)

    def leave_one_out(self) -> pd.DataFrame:
        """The meta-analysis without each study in turn: unit, mean, se, low, high, tau, i2 (Hartung-Knapp interval).

        Raises
        ------
        DataError
            With fewer than 3 studies.
        """
        if self.n < 3:
            raise DataError(f"To leave one study out takes 3 or more; there are {self.n}.")
        studies = np.arange(self.n)
        with one_blas_thread():
            rows = [self._row(self.units.names[place], studies != place) for place in studies]
        return _frame(rows)

    def cumulative(self, by: Sequence[Any] | NDArray[Any] | pd.Series[Any] | None = None) -> pd.DataFrame:
        """The meta-analysis as studies come in: unit, n, mean, se, low, high, tau, i2 after each (Hartung-Knapp).

        Parameters
        ----------
        by : one value for every study, such as its year, by which they are sorted; as they stand without it. The frame
            then has it as the column `by`.

        Notes
        -----
        The first row is a study alone: tau and the interval are undefined (nan) there.
        """
        values = None if by is None else np.asarray(by)
        if values is not None and values.shape != (self.n,):
            raise DataError(f"by has {values.size} values for {self.n} studies; give one for every pooled study.")
        order = np.arange(self.n) if values is None else np.argsort(values, kind="stable")
        with one_blas_thread():
            rows = [self._row(self.units.names[order[last]], order[: last + 1]) for last in range(self.n)]
        frame = _frame(rows)
        frame.insert(1, "n", np.arange(1, self.n + 1))
        if values is not None:
            frame.insert(2, "by", values[order])
        return frame

    def small_study(self) -> SmallStudyEffects:
        """Whether small studies find larger effects: a regression on the standard error and a selection model.

        Raises
        ------
        DataError
            With fewer than 3 studies, or equal standard errors.
        """
        return small_study_effects(self.units.y, self.units.size)

    def _row(self, name: Any, chosen: NDArray[Any]) -> dict[str, Any]:
        y, se = self.units.y[chosen], self.units.size[chosen]
        if len(y) == 1:
            nan = math.nan
            return {
                "unit": name,
                "mean": float(y[0]),
                "se": float(se[0]),
                "low": nan,
                "high": nan,
                "tau": nan,
                "i2": nan,
            }
        found = reml(y, se**2)
        low, high = _hartung_knapp(y, se, found, self.probability)[0]
        i2 = found.tau2 / (found.tau2 + typical_variance(se))
        mean, error = float(found.coefficients[0]), math.sqrt(float(found.covariance[0, 0]))
        return {
            "unit": name,
            "mean": mean,
            "se": error,
            "low": low,
            "high": high,
            "tau": math.sqrt(found.tau2),
            "i2": i2,
        }

    @property
    def sentences(self) -> tuple[str, ...]:
        """The findings in words."""
        low, high = self.hartung_knapp
        ahead, behind = self.prediction_interval
        share = f"{100 * self.probability:g}%"
        said = [
            f"{self.n} studies: mean effect {self.mean:.4g} ({share} interval {low:.4g} to {high:.4g}, Hartung-Knapp).",
            f"Between studies: tau = {self.tau:.4g}, I² = {100 * self.i2:.2f}%, H² = {self.h2:.2f}; "
            f"Q = {self.q:.2f} on {self.n - 1} degrees of freedom (p = {self.q_p:.3g}).",
        ]
        if self.status != "converged":
            said.append(STATUS[self.status])
        if self.status == "boundary":
            upper = math.sqrt(self.tau2_interval[1])
            said.append(f"That does not mean that they are equal: tau up to {upper:.4g} is compatible with the data.")
        if self.n > 2:
            said.append(f"The effect in a new study is expected between {ahead:.4g} and {behind:.4g}.")
        else:
            said.append("With 2 studies the effect in a new one cannot be bounded in this way.")
        return tuple(said)

    def __repr__(self) -> str:
        table = self.table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return "\n".join([*self.sentences, f"{100 * self.probability:g}% intervals side by side:", table])


def meta_analysis(pooled: _Pooled, probability: float = 0.95) -> MetaAnalysis:
    """A random-effects meta-analysis of estimates that were pooled; the door is ``pooled.meta_analysis()``.

    Parameters
    ----------
    pooled : a `Pooled` of estimates with standard errors, without covariates.
    probability : of all intervals. Where the posterior of mean and tau was not explored (empirical Bayes), their
        intervals are those of ``pooled.summary()``, and say that they are of 90%.

    Raises
    ------
    ModelError
        If counts were pooled (see `effect_sizes`), or covariates are there.
    DataError
        With fewer than 2 studies.

    References
    ----------
    Viechtbauer (2010), Journal of Statistical Software 36(3); Higgins and Thompson (2002), Statistics in Medicine 21.
    """
    check_probability(probability)
    units = pooled.units
    if units.family != "normal":
        raise ModelError(
            "A meta-analysis takes estimates with standard errors; make them of the studies' counts with "
            "pp.effect_sizes, and pool those."
        )
    if units.X is not None:
        raise ModelError("A meta-analysis has one mean effect; pool the studies without covariates.")
    if units.n < 2:
        raise DataError("A meta-analysis takes 2 studies or more; there is 1.")
    y, se = units.y, units.size
    found = reml(y, se**2)
    mean, error = float(found.coefficients[0]), math.sqrt(float(found.covariance[0, 0]))
    refined, plain = _hartung_knapp(y, se, found, probability)
    q = weighted_mean(y, se**2, 0.0)[2]
    typical = typical_variance(se)
    reach = _normal_reach(probability) * error
    wald = (mean - reach, mean + reach)
    tau2_interval = q_profile(y, se, probability)
    ahead = _prediction(mean, error, found.tau2, units.n, probability)
    rows = [
        *_bayesian_rows(pooled, probability),
        ("mean", "REML, Wald", mean, *wald),
        ("mean", "REML, Hartung-Knapp", mean, *refined),
        ("tau", "REML, Q-profile", math.sqrt(found.tau2), *(math.sqrt(limit) for limit in tau2_interval)),
        ("new study", f"REML, t on {units.n - 2} df", mean, *ahead),
    ]
    return MetaAnalysis(
        n=units.n,
        probability=probability,
        mean=mean,
        se=error,
        tau2=found.tau2,
        status=found.status,
        wald=wald,
        hartung_knapp=refined,
        hartung_knapp_plain=plain,
        q=q,
        q_p=_chi_squared_tail(q, units.n - 1),
        i2=found.tau2 / (found.tau2 + typical),
        h2=(found.tau2 + typical) / typical,
        tau2_interval=tau2_interval,
        prediction_interval=ahead,
        table=_table(rows),
        units=units,
    )


def q_profile(y: Array, se: Array, probability: float) -> Interval:
    """The values of tau² at which Q(tau²) = sum w_i (y_i - mean)² is at the tails of chi-squared; 0 where none is."""
    from scipy.optimize import brentq
    from scipy.special import chdtri

    def excess(tau2: float, level: float) -> float:
        return weighted_mean(y, se**2, tau2)[2] - level

    limits = []
    for tail in (0.5 * (1.0 - probability), 0.5 * (1.0 + probability)):
        level = float(chdtri(len(y) - 1, tail))
        if excess(0.0, level) <= 0.0:
            limits.append(0.0)
            continue
        top = float(np.var(y)) + float(np.max(se)) ** 2
        while excess(top, level) > 0.0:
            top *= 2.0
        limits.append(float(brentq(excess, 0.0, top, args=(level,), xtol=1e-14 * top, rtol=1e-14)))
    return limits[0], limits[1]


def _hartung_knapp(y: Array, se: Array, found: Reml, probability: float) -> tuple[Interval, Interval]:
    """The refined interval and the plain one."""
    from scipy.special import stdtrit

    mean, variance, squares = weighted_mean(y, se**2, found.tau2)
    reach = float(stdtrit(len(y) - 1, 0.5 * (1.0 + probability))) * math.sqrt(variance)
    scale = squares / (len(y) - 1)
    refined, plain = reach * math.sqrt(max(1.0, scale)), reach * math.sqrt(scale)
    return (mean - refined, mean + refined), (mean - plain, mean + plain)


def _prediction(mean: float, se: float, tau2: float, n: int, probability: float) -> Interval:
    from scipy.special import stdtrit

    if n < 3:
        return -math.inf, math.inf
    reach = float(stdtrit(n - 2, 0.5 * (1.0 + probability))) * math.sqrt(tau2 + se**2)
    return mean - reach, mean + reach


def _bayesian_rows(pooled: _Pooled, probability: float) -> list[tuple[Any, ...]]:
    """Mean, tau and a new study's effect from the posterior of the population."""
    summary = pooled.summary()
    method = METHODS[pooled.method]
    rows: list[tuple[Any, ...]] = []
    for name, parameter in (("mean", "mean"), ("tau", "sd")):
        if parameter not in summary.index:
            continue
        row = {column: float(summary[column].to_dict()[parameter]) for column in ("mean", "q05", "q95")}
        limits = None if probability == 0.9 else _posterior_limits(pooled.found, parameter, probability)
        known = method if limits is not None or probability == 0.9 else f"{method}, 90%"
        rows.append((name, known, row["mean"], *(limits or (row["q05"], row["q95"]))))
    centre = rows[0][2] if rows and rows[0][0] == "mean" else math.nan
    rows.append(("new study", method, centre, *pooled.population.prediction_interval(probability)))
    return rows


def _posterior_limits(found: _Found, parameter: str, probability: float) -> Interval | None:
    """Equal-tailed limits of the mean or the sd of the population; None where no posterior of them was explored."""
    if found.explored is None or found.model is None:
        return None
    tails = np.array([0.5 * (1.0 - probability), 0.5 * (1.0 + probability)])
    nodes = found.explored.nodes
    names, means, sds = found.model.coefficients_given(nodes)
    if parameter in names:
        limits = mixture_summary(found.explored.weights, means, sds, tails)[2][:, list(names).index(parameter)]
        return float(limits[0]), float(limits[1])
    values = found.model.parameters(nodes)[parameter]
    if np.ptp(values) == 0.0:
        return float(values[0]), float(values[0])
    positive = bool((values > 0.0).all())

    def moved(x: Array) -> Array:
        given = np.asarray(found.model.parameters(x)[parameter])
        return np.log(np.maximum(given, 1e-300)) if positive else given

    low, high = (float(limit) for limit in found.explored.quantiles(moved, tails))
    return (math.exp(low), math.exp(high)) if positive else (low, high)


def _table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    import pandas as pd

    order = {"mean": 0, "tau": 1, "new study": 2}
    rows = sorted(rows, key=lambda row: order[row[0]])
    return pd.DataFrame(rows, columns=["quantity", "method", "estimate", "low", "high"])


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _normal_reach(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 * (1.0 + probability)))


def _chi_squared_tail(value: float, degrees: int) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(degrees, value))
