"""What every model of a population offers to the methods: its marginal likelihood, priors, and posteriors of units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.pooling.bounds import from_line, log_slope
from partialpool.pooling.hyperpriors import HyperPriors
from partialpool.pooling.posteriors import UnitPosterior
from partialpool.pooling.shapes import Shape
from partialpool.pooling.units import Units

Array = NDArray[np.float64]


class PopulationModel(ABC):
    """The marginal likelihood of a population's hyperparameters, in coordinates x in which they are searched.

    Attributes
    ----------
    kind : the population's name; d : how many coordinates x has.
    sd_at : the coordinate that is the log of an sd (-inf is an sd of 0); None where there is none.
    start, spread : (d,), where the search starts, and about one standard deviation.
    likelihood_alone : whether the priors play no part: empirical Bayes.
    """

    kind: str
    d: int
    sd_at: int | None = None
    start: Array
    spread: Array

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1, likelihood_alone: bool = False) -> None:
        self.units = units
        self.priors = priors
        self.threads = threads
        self.likelihood_alone = likelihood_alone

    @abstractmethod
    def log_likelihood(self, x: Array) -> Array:
        """log p(y | x), (K, d) -> (K,), with every constant."""

    @abstractmethod
    def log_prior(self, x: Array) -> Array:
        """Log prior density of x, (K, d) -> (K,), the Jacobian of the coordinates included."""

    @abstractmethod
    def parameters(self, x: Array) -> dict[str, Array]:
        """The hyperparameters by name, (K,) each."""

    @abstractmethod
    def posterior(self, x: Array, weights: Array) -> UnitPosterior:
        """The units' posterior, mixed over nodes x (K, d)."""

    @abstractmethod
    def shape(self, x: Array, weights: Array, row: Array) -> Shape:
        """The population around one row of covariates (p,), mixed over nodes x."""

    @abstractmethod
    def likelihood_of(self, params: Mapping[str, float]) -> float:
        """log p(y | hyperparameters), these by their public names."""

    def coefficients_given(self, x: Array) -> tuple[tuple[str, ...], Array, Array]:
        """Names, means (K, p) and sds (K, p) of coefficients that were integrated out given each node."""
        return (), np.empty((len(x), 0)), np.empty((len(x), 0))

    @property
    def cost(self) -> int:
        """Numbers that one evaluation of the likelihood passes over."""
        return self.units.n

    @cached_property
    def sd_bounds(self) -> tuple[float, float]:
        """Ends of the support of the sd's prior where it has an upper one, else 0 and infinity."""
        low, high = self.priors["sd"].support if "sd" in self.priors else (0.0, math.inf)
        return (low, high) if math.isfinite(high) and not self.likelihood_alone else (0.0, math.inf)

    def sd_of(self, coordinate: Array) -> Array:
        """The sd (K,) from its coordinate: exp, or within the bounds of its prior."""
        return from_line(coordinate, *self.sd_bounds)

    def sd_prior(self, coordinate: Array) -> Array:
        """Log prior density (K,) of the sd's coordinate."""
        density = self.priors["sd"].log_density(self.sd_of(coordinate))
        return np.asarray(density + log_slope(coordinate, *self.sd_bounds))

    @property
    def other_starts(self) -> list[Array]:
        """Places besides `start` from which another peak may be found."""
        return []

    def log_density(self, x: Array) -> Array:
        """Log of prior times likelihood at x."""
        with np.errstate(all="ignore"):
            return self.log_likelihood(x) + self.log_prior(x)

    def coefficient_priors(self, coefficients: Array) -> Array:
        """Log prior density (K,) of regression coefficients (K, p), the intercept's at the mean of the covariates."""
        units = self.units
        assert units.X is not None
        total = np.zeros(len(coefficients))
        for i, name in enumerate(units.x_names):
            values = coefficients @ units.X.mean(axis=0) if name == "Intercept" else coefficients[:, i]
            total += self.priors[name].log_density(values)
        return total

    def locations(self, coefficients: Array) -> Array:
        """The regression's value for every unit, (K, J)."""
        assert self.units.X is not None
        return np.asarray(coefficients @ self.units.X.T)


def without_limit(logs: Array) -> Array:
    """exp, infinite where it is beyond 1e300."""
    return np.where(logs > 690.0, np.inf, np.exp(np.minimum(logs, 690.0)))


def wanted(params: Mapping[str, float], names: tuple[str, ...]) -> Array:
    """The values of the hyperparameters named, all of them and no others."""
    if set(params) != set(names):
        raise ModelError(f"The hyperparameters are {', '.join(names)}; given were {', '.join(params) or 'none'}.")
    return np.array([float(params[name]) for name in names])
