"""What has been learnt of the population: its parameters with their uncertainty, its spread, a new unit, new data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import ModelError, did_you_mean
from partialpool.pooling.shapes import Marginal, Shape, marginal_of
from partialpool.pooling.units import check_probability
from partialpool.present.tables import summary_html, summary_text

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ParameterRow:
    """One parameter's posterior: mean and sd are infinite where they do not exist."""

    mean: float
    sd: float = math.nan
    q05: float = math.nan
    q50: float = math.nan
    q95: float = math.nan


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """The population that units come from; `Pooled.population`.

    Attributes
    ----------
    kind : "normal", "beta", "gamma", "student_t", "point_normal", "scale_mixture", "unimodal" or "npmle".
    family : of the units' data.
    rows : the parameters by name; `summary` is their table.
    shape : the distribution of theta in the population, averaged over its parameters.
    at_mean : whether `shape` is that at the mean of covariates.
    quantile_of : quantiles of a parameter, by its name; None where there are none.
    i2 : I^2, the share of the estimates' variance that is between units (normal family), with its quantiles.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool("y", se="sigma", data=pp.datasets.load("eight_schools"), method="empirical_bayes")
    >>> pooled.population.tau
    0.0
    """

    kind: str
    family: str
    rows: Mapping[str, ParameterRow]
    shape: Shape
    i2: ParameterRow | None = None
    at_mean: bool = field(default=False)
    quantile_of: Callable[[str, Array], Array] | None = field(default=None)

    def summary(self) -> pandas.DataFrame:
        """The parameters: index `parameter`, columns mean sd q05 q50 q95.

        Of populations on the link scale mean and sd are on that scale (logits, logs); the sd of point_normal is that of
        its normal part, those of scale_mixture, unimodal and npmle are of the whole. For empirical Bayes mean and q50
        are the estimate, sd its standard error, and q05 and q95 an interval from it, formed on a scale where it is
        more nearly normal (logs of sds); they are nan where the curvature of the likelihood does not tell.
        """
        import pandas

        rows = dict(self.rows)
        if self.i2 is not None:
            rows["I2"] = self.i2
        frame = pandas.DataFrame(
            [[row.mean, row.sd, row.q05, row.q50, row.q95] for row in rows.values()],
            index=pandas.Index(list(rows), name="parameter"), columns=["mean", "sd", "q05", "q50", "q95"],
        )  # fmt: skip
        return frame

    def __getitem__(self, name: str) -> ParameterRow:
        if name not in self.rows:
            raise ModelError(f"The population has no parameter {name!r}. {did_you_mean(str(name), self.rows)}")
        return self.rows[name]

    def __repr__(self) -> str:
        low, high = self.prediction_interval(0.9)
        where = " at the mean of the covariates" if self.at_mean else ""
        return (
            f"Population: {self.kind.replace('_', ' ')}\n{summary_text(self.summary())}\n"
            f"A new unit{where}: {low:.4g} to {high:.4g} with probability 90%."
        )

    def _repr_html_(self) -> str:
        return summary_html(self.summary())

    def interval(self, name: str, probability: float = 0.9) -> tuple[float, float]:
        """An interval of one parameter, equal tails; nan where its uncertainty is not known."""
        check_probability(probability)
        row = self[name]
        if row.sd == 0:
            return row.mean, row.mean
        if self.quantile_of is None:
            return math.nan, math.nan
        low, high = self.quantile_of(name, np.array([(1 - probability) / 2, (1 + probability) / 2]))
        return float(low), float(high)

    @property
    def mean(self) -> float:
        """Mean of theta in the population, on its natural scale."""
        return self.shape.moments()[0]

    @property
    def sd(self) -> float:
        """Sd of theta in the population, the uncertainty of its mean included, on its natural scale."""
        return self.shape.moments()[1]

    @property
    def tau(self) -> float:
        """The sd between units: the parameter `sd` (posterior mean, or estimate), on the link scale if there is one."""
        return self.rows["sd"].mean if "sd" in self.rows else self.sd

    @property
    def i_squared(self) -> float:
        """I^2 with Higgins and Thompson's typical variance: tau^2 / (tau^2 + s^2); nan unless the family is normal."""
        return self.i2.mean if self.i2 is not None else math.nan

    def density(self, x: ArrayLike) -> Array:
        """Density of theta in the population at x, point masses left out."""
        values = np.asarray(x, dtype=float)
        return self.shape.density(values.ravel()).reshape(values.shape)

    def cdf(self, x: ArrayLike) -> Array:
        """P(theta <= x) for a unit of the population."""
        values = np.asarray(x, dtype=float)
        return self.shape.cdf(values.ravel()).reshape(values.shape)

    @property
    def atoms(self) -> tuple[Array, Array]:
        """Places and masses of the population's points."""
        return self.shape.atoms

    def quantile(self, probabilities: ArrayLike) -> Array:
        """Quantiles of theta in the population."""
        return self.shape.quantile(probabilities)

    def prediction_interval(self, probability: float = 0.9) -> tuple[float, float]:
        """An interval that holds the theta of a new unit with this probability, equal tails."""
        check_probability(probability)
        low, high = self.shape.quantile([(1 - probability) / 2, (1 + probability) / 2])
        return float(low), float(high)

    def marginal(self, size: float) -> Marginal:
        """The distribution of the data of a unit with this standard error, trials or exposure.

        For a beta population it is beta-binomial, for a gamma population negative binomial; with a mixture over the
        parameters' uncertainty.

        Examples
        --------
        >>> import partialpool as pp
        >>> pooled = pp.pool([9], trials=[30], population=pp.Beta(75, 225))
        >>> round(pooled.population.marginal(30).extra, 4)
        1.0963
        """
        return marginal_of(self.shape, size)


def typical_variance(se: Array) -> float:
    """Higgins and Thompson's (2002, Statistics in Medicine 21, 1539-1558, equation 9) typical within-unit variance."""
    w = 1 / se**2
    total = float(w.sum())
    denominator = total**2 - float((w**2).sum())
    return (se.size - 1) * total / denominator if denominator > 0 else float(se[0] ** 2)
