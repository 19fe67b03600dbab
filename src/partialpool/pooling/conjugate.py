r"""Populations for which each unit integrates out in closed form: normal, beta and gamma.

Normal: :math:`y_j \sim N(x_j'\beta, \tau^2 + s_j^2)`; the coefficients have normal (or flat) priors and integrate out
too, which leaves tau. Beta: events are beta-binomial; gamma: counts are negative binomial. With mean m these are
written by what they add to their limits, the binomial and the Poisson, so that no digit is lost where units hardly
differ:

.. math::
   \log p(y \mid m, M) &= \log\binom{n}{y} + y \log m + (n - y) \log(1 - m)
       + r(M m, y) + r(M (1 - m), n - y) - r(M, n) \\
   \log p(y \mid m, a) &= y \log(E m) - \log y! + r(a, y) - (y + a) \log(1 + E m / a)

with M = alpha + beta, a the gamma's shape and :math:`r(a, y) = \log[a (a+1) \cdots (a+y-1) / a^y]`, which is 0 in the
limit (`partialpool.algebra.special.rising`). Without covariates the beta-binomial needs only how often each number of
events, of non-events and of trials occurs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, gammaln

from partialpool.algebra.unitsums import add_beta_binomial, add_exposed, add_normal, add_rising, in_pieces
from partialpool.errors import ModelError
from partialpool.pooling.hyperpriors import HyperPriors, link_scale
from partialpool.pooling.posteriors import BetaPosterior, GammaPosterior, NormalPosterior, UnitPosterior
from partialpool.pooling.shapes import BetaShape, GammaShape, NormalShape, Shape
from partialpool.pooling.units import Units
from partialpool.spec.distributions import Flat, Normal

Array = NDArray[np.float64]


class PopulationModel(ABC):
    """The marginal likelihood of a population's hyperparameters, in coordinates x in which they are searched.

    Attributes
    ----------
    kind : the population's name; d : how many coordinates x has.
    sd_at : the coordinate that is the log of an sd (-inf is an sd of 0); None where there is none.
    start, spread : (d,), where the search starts, and about one standard deviation.
    """

    kind: str
    d: int
    sd_at: int | None = None
    start: Array
    spread: Array
    likelihood_alone: bool = False  # the priors play no part: empirical Bayes

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1) -> None:
        self.units = units
        self.priors = priors
        self.threads = threads

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
    def sd_bounds(self) -> tuple[float, float] | None:
        """Ends of the support of the sd's prior where it has an upper one: the coordinate is then a logit."""
        low, high = self.priors["sd"].support if "sd" in self.priors else (0.0, math.inf)
        return (low, high) if math.isfinite(high) and not self.likelihood_alone else None

    def sd_of(self, coordinate: Array) -> Array:
        """The sd (K,) from its coordinate: exp, or within the bounds of its prior."""
        if self.sd_bounds is None:
            return np.asarray(np.exp(coordinate))
        low, high = self.sd_bounds
        return low + (high - low) * expit(coordinate)

    def sd_coordinate(self, sd: float) -> float:
        """The inverse of `sd_of`, kept off the ends."""
        if self.sd_bounds is None:
            return math.log(sd)
        low, high = self.sd_bounds
        share = min(max((sd - low) / (high - low), 0.05), 0.95)
        return math.log(share / (1 - share))

    def sd_prior(self, coordinate: Array) -> Array:
        """Log prior density (K,) of the sd's coordinate."""
        density = self.priors["sd"].log_density(self.sd_of(coordinate))
        if self.sd_bounds is None:
            return np.asarray(density + coordinate)
        low, high = self.sd_bounds
        return np.asarray(density + math.log(high - low) - np.logaddexp(0, coordinate) - np.logaddexp(0, -coordinate))

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


class NormalModel(PopulationModel):
    """Estimates with known standard errors around a normal population. x is log tau; coefficients integrate out.

    Parameters
    ----------
    profile : bool
        Put the coefficients at their maximum-likelihood values given tau instead: for empirical Bayes.
    """

    kind = "normal"
    d = 1
    sd_at = 0

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1, profile: bool = False) -> None:
        super().__init__(units, priors, threads)
        self.profile = self.likelihood_alone = profile
        self.X = np.ones((units.n, 1)) if units.X is None else np.ascontiguousarray(units.X)
        self.names = ("mean",) if units.X is None else units.x_names
        self.shift = float(np.average(units.y, weights=1 / units.size**2))  # so that squares lose no digits
        self.y = np.ascontiguousarray(units.y - self.shift)
        self.variance = np.ascontiguousarray(units.size**2)
        total = max(float(np.var(units.y)), 0.0)
        scale = math.sqrt(max(total - float(np.mean(self.variance)), 0.1 * total, 1e-4 * float(np.mean(self.variance))))
        self.start = np.array([self.sd_coordinate(scale)])
        self.spread = np.array([1.0 / math.sqrt(max(1.0, 0.05 * units.n))])

    def log_likelihood(self, x: Array) -> Array:
        """See `PopulationModel`; the coefficients are integrated out over their priors (maximised where `profile`)."""
        return self.conditional(self.sd_of(x[:, 0]))[2]

    def log_prior(self, x: Array) -> Array:
        """See `PopulationModel`."""
        return self.sd_prior(x[:, 0])

    def likelihood_at(self, coefficients: Array, tau: Array) -> Array:
        """log p(y | beta, tau) for coefficients (K, p) and tau (K,): nothing but the units integrated out."""
        s = self._sums(tau)
        logs, squares, linear, gram = s
        b = np.array(coefficients, dtype=float)
        b[:, 0] -= self.shift
        fit = squares - 2 * np.einsum("kp,kp->k", linear, b) + np.einsum("kp,kpq,kq->k", b, gram, b)
        return np.asarray(0.5 * logs - 0.5 * fit - 0.5 * self.units.n * math.log(2 * math.pi))

    def _sums(self, tau: Array) -> tuple[Array, Array, Array, Array]:
        p = self.X.shape[1]
        tau2 = np.ascontiguousarray(np.asarray(tau, dtype=float) ** 2)

        def add(piece: slice, out: Array) -> None:
            add_normal(self.y[piece], self.variance[piece], self.X[piece], tau2, out)

        s = in_pieces(self.units.n, (tau2.size, 2 + p + p * (p + 1) // 2), add, self.threads)
        gram = np.zeros((tau2.size, p, p))
        rows, columns = np.tril_indices(p)
        gram[:, rows, columns] = gram[:, columns, rows] = s[:, 2 + p :]
        return s[:, 0], s[:, 1], s[:, 2 : 2 + p], gram

    def conditional(self, tau: Array) -> tuple[Array, Array, Array]:
        """Given tau (K,): mean (K, p) and covariance (K, p, p) of the coefficients, and log p(y | tau)."""
        logs, squares, linear, gram = self._sums(tau)
        prior_precision, prior_mean = self._prior()
        precision = gram + prior_precision
        pull = linear + prior_precision @ prior_mean
        means = np.linalg.solve(precision, pull[..., None])[..., 0]
        fit = squares - np.einsum("kp,kp->k", pull, means)
        value = 0.5 * logs - 0.5 * self.units.n * math.log(2 * math.pi)
        if self.profile:
            value = value - 0.5 * fit
            covariance: Array = np.zeros_like(precision)
        else:
            fit = fit + prior_mean @ prior_precision @ prior_mean
            # a flat prior has density 1: it brings no factor of its own but sqrt(2 pi)
            value = value - 0.5 * fit - 0.5 * np.linalg.slogdet(precision)[1]
            value = value + self._log_prior_constant
            covariance = np.asarray(np.linalg.inv(precision), dtype=float)
        shifted: Array = np.array(means, dtype=float)
        shifted[:, 0] += self.shift
        return shifted, np.asarray(covariance, dtype=float), np.asarray(value, dtype=float)

    @cached_property
    def _log_prior_constant(self) -> float:
        flat = sum(isinstance(self.priors[name], Flat) for name in self.names)
        logs = [
            math.log(prior.sigma) for prior in map(self.priors.__getitem__, self.names) if isinstance(prior, Normal)
        ]
        return 0.5 * flat * math.log(2 * math.pi) - sum(logs)

    def _prior(self) -> tuple[Array, Array]:
        """Precision (p, p) and mean (p,) of the coefficients' normal prior, on the shifted scale."""
        p = len(self.names)
        precision, mean = np.zeros((p, p)), np.zeros(p)
        if self.profile:
            return precision, mean
        # the intercept's prior speaks of the value at the mean of the covariates: c'beta ~ N(mu, sigma^2)
        centre = self.X.mean(axis=0)
        for i, name in enumerate(self.names):
            prior = self.priors[name]
            if isinstance(prior, Normal):
                row = centre if i == 0 else np.eye(p)[i]
                precision += np.outer(row, row) / prior.sigma**2
                if i == 0:
                    mean[0] = prior.mu - self.shift
                elif prior.mu:
                    mean[i] = prior.mu
        mean[0] -= centre[1:] @ mean[1:]
        return precision, mean

    def parameters(self, x: Array) -> dict[str, Array]:
        """See `PopulationModel`; the coefficients are in `coefficients_given`."""
        return {"sd": self.sd_of(x[:, 0])}

    def coefficients_given(self, x: Array) -> tuple[tuple[str, ...], Array, Array]:
        """See `PopulationModel`; the sds are those of maximum likelihood where `profile`."""
        tau = self.sd_of(x[:, 0])
        means, covariance, _ = self.conditional(tau)
        if self.profile:
            covariance = np.asarray(np.linalg.inv(self._sums(tau)[3]), dtype=float)
        return self.names, means, np.sqrt(np.einsum("kpp->kp", covariance))

    def likelihood_of(self, params: Mapping[str, float]) -> float:
        """See `PopulationModel`."""
        values = wanted(params, (*self.names, "sd"))
        return float(self.likelihood_at(values[None, :-1], values[-1:])[0])

    def shape(self, x: Array, weights: Array, row: Array) -> NormalShape:
        """See `PopulationModel`."""
        tau = self.sd_of(x[:, 0])
        means, covariance, _ = self.conditional(tau)
        return NormalShape(weights, means @ row, np.sqrt(tau**2 + np.einsum("p,kpq,q->k", row, covariance, row)))

    def posterior(self, x: Array, weights: Array) -> NormalPosterior:
        """See `PopulationModel`."""
        tau = self.sd_of(x[:, 0])
        means, covariance, _ = self.conditional(tau)
        return NormalPosterior(
            self.units.y, self.variance, None if self.units.X is None else self.X, tau**2, means, covariance, weights,
            threads=self.threads,
        )  # fmt: skip


class BetaModel(PopulationModel):
    """Events in trials around a beta population. x is (logit m, log s) with s = (alpha + beta)^(-1/2).

    With covariates logit m is a regression and x starts with its coefficients.
    """

    kind = "beta"

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1) -> None:
        super().__init__(units, priors, threads)
        p = 1 if units.X is None else units.X.shape[1]
        self.d = p + 1
        self.sd_at = p
        self.start = np.zeros(self.d)
        self.start[0] = link_scale(units)[0]
        self.start[-1] = math.log(0.2)
        self.spread = np.full(self.d, 0.5)
        self.constant = float(np.sum(log_binomial(units.size, units.y)))
        self._tables = [_counted(values) for values in (units.y, units.size - units.y, units.size)]
        self.events, self.failures = float(units.y.sum()), float((units.size - units.y).sum())

    def log_likelihood(self, x: Array) -> Array:
        """See `PopulationModel`."""
        log_size = -2 * x[:, -1]
        if self.units.X is not None:
            eta = np.ascontiguousarray(self.locations(x[:, :-1]))
            out = np.zeros(len(x))
            add_beta_binomial(self.units.y, self.units.size, eta, np.ascontiguousarray(log_size), out)
            return np.asarray(self.constant + out)
        log_p, log_q = -np.logaddexp(0, -x[:, 0]), -np.logaddexp(0, x[:, 0])
        total = self.constant + self.events * log_p + self.failures * log_q
        for sign, own, (values, counts) in zip((1, 1, -1), (log_p, log_q, 0 * log_p), self._tables, strict=True):
            out = np.zeros(len(x))
            log_a = np.ascontiguousarray(log_size + own)
            add_rising(log_a, values, counts, (~(log_a < 300)).astype(float), out)
            total = total + sign * out
        return np.asarray(total)

    def log_prior(self, x: Array) -> Array:
        """See `PopulationModel`."""
        log_s = x[:, -1]
        # the sd in units of sqrt(m (1 - m)) is r = (alpha + beta + 1)^(-1/2) = s / sqrt(1 + s^2)
        log_r = log_s - 0.5 * np.log1p(np.exp(2 * log_s))
        slope = log_s - 1.5 * np.log1p(np.exp(2 * log_s))  # log dr / d log s
        if self.units.X is not None:
            return self.coefficient_priors(x[:, :-1]) + self._spread_prior(log_r, slope, np.zeros(len(x)))
        log_p, log_q = -np.logaddexp(0, -x[:, 0]), -np.logaddexp(0, x[:, 0])
        jacobian = log_p + log_q
        if self.priors.bda:  # flat in m and in s
            return np.asarray(jacobian + log_s)
        if "mean" in self.priors:
            mean = self.priors["mean"].log_density(np.exp(log_p)) + jacobian
        else:
            mean = np.zeros(len(x))
        return np.asarray(mean + self._spread_prior(log_r, slope, 0.5 * jacobian) - self._log_share)

    def _spread_prior(self, log_r: Array, slope: Array, log_largest: Array) -> Array:
        if "relative_sd" in self.priors:
            return self.priors["relative_sd"].log_density(np.exp(log_r)) + slope
        return self.priors["sd"].log_density(np.exp(log_r + log_largest)) + slope + log_largest

    @cached_property
    def _log_share(self) -> float:
        """Log of the share of the prior of (mean, sd) that a beta distribution can have: sd^2 < mean (1 - mean)."""
        if "sd" not in self.priors or not self.priors.proper or "mean" not in self.priors:
            return 0.0
        t, w = np.polynomial.legendre.leggauss(200)
        z = 14 * t  # logit of the mean
        mean = 1 / (1 + np.exp(-z))
        heights = self.priors["mean"].log_density(mean) + np.log(mean * (1 - mean))
        largest = np.sqrt(mean * (1 - mean))
        inside = (w / 2) @ np.exp(self.priors["sd"].log_density(np.outer(0.5 * (t + 1), largest))) * largest
        return float(np.log((14 * w * np.exp(heights)) @ inside / ((14 * w) @ np.exp(heights))))

    def parameters(self, x: Array) -> dict[str, Array]:
        """See `PopulationModel`."""
        log_s = x[:, -1]
        relative = np.exp(log_s - 0.5 * np.log1p(np.exp(2 * log_s)))
        size = without_limit(-2 * log_s)
        if self.units.X is not None:
            names = {name: x[:, i] for i, name in enumerate(self.units.x_names)}
            return {**names, "relative_sd": relative, "alpha+beta": size}
        mean, rest = 1 / (1 + np.exp(-x[:, 0])), 1 / (1 + np.exp(x[:, 0]))
        return {"mean": mean, "sd": np.sqrt(mean * rest) * relative, "alpha": size * mean, "beta": size * rest}

    def likelihood_of(self, params: Mapping[str, float]) -> float:
        """See `PopulationModel`; by mean and sd, or alpha and beta."""
        if self.units.X is not None:
            values = wanted(params, (*self.units.x_names, "alpha+beta"))
            return float(self.log_likelihood(np.array([[*values[:-1], -0.5 * math.log(values[-1])]]))[0])
        if "alpha" in params:
            a, b = wanted(params, ("alpha", "beta"))
        else:
            mean, sd = wanted(params, ("mean", "sd"))
            with np.errstate(divide="ignore"):
                size = np.float64(mean * (1 - mean)) / sd**2 - 1
            a, b = mean * size, (1 - mean) * size
            if math.isinf(size):
                return float(self.log_likelihood(np.array([[math.log(mean / (1 - mean)), -np.inf]]))[0])
        return float(self.log_likelihood(np.array([[math.log(a / b), -0.5 * math.log(a + b)]]))[0])

    def shape(self, x: Array, weights: Array, row: Array) -> BetaShape:
        """See `PopulationModel`."""
        return BetaShape(weights, x[:, 0] if self.units.X is None else x[:, :-1] @ row, -2 * x[:, -1])

    @property
    def cost(self) -> int:
        """See `PopulationModel`."""
        return self.units.n if self.units.X is not None else sum(values.size for values, _ in self._tables)

    def posterior(self, x: Array, weights: Array) -> BetaPosterior:
        """See `PopulationModel`."""
        eta = x[:, :1] if self.units.X is None else self.locations(x[:, :-1])
        return BetaPosterior(self.units.y, self.units.size, eta, -2 * x[:, -1], weights, threads=self.threads)


class GammaModel(PopulationModel):
    """Counts over exposures around a gamma population. x is (log m, log c), c = sd / mean = shape^(-1/2).

    With covariates log m is a regression and x starts with its coefficients.
    """

    kind = "gamma"

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1) -> None:
        super().__init__(units, priors, threads)
        p = 1 if units.X is None else units.X.shape[1]
        self.d = p + 1
        self.sd_at = p
        self.start = np.zeros(self.d)
        self.start[0] = link_scale(units)[0]
        self.start[-1] = math.log(0.4)
        self.spread = np.full(self.d, 0.5)
        with np.errstate(divide="ignore"):
            logs = np.where(units.y > 0, units.y * np.log(units.size), 0.0)
        self.constant = float(np.sum(logs - gammaln(units.y + 1)))
        self._table = _counted(units.y)
        self.events = float(units.y.sum())

    def log_likelihood(self, x: Array) -> Array:
        """See `PopulationModel`."""
        units, log_a = self.units, np.ascontiguousarray(-2 * x[:, -1])
        infinite = ~(log_a < 300)
        inverse = np.where(infinite, 0.0, np.exp(np.minimum(-log_a, 690.0)))
        if units.X is None:
            log_mean = np.ascontiguousarray(x[:, :1])
            linear = self.events * x[:, 0]
        else:
            log_mean = np.ascontiguousarray(self.locations(x[:, :-1]))
            linear = log_mean @ units.y

        def add(piece: slice, out: Array) -> None:
            own = log_mean if units.X is None else np.ascontiguousarray(log_mean[:, piece])
            add_exposed(units.y[piece], units.size[piece], own, inverse, out)

        exposed = in_pieces(units.n, (len(x),), add, self.threads)
        rises = np.zeros(len(x))
        add_rising(log_a, *self._table, infinite.astype(float), rises)
        return np.asarray(self.constant + linear + rises - exposed)

    def log_prior(self, x: Array) -> Array:
        """See `PopulationModel`."""
        log_c = x[:, -1]
        if self.units.X is not None:
            total, log_mean = self.coefficient_priors(x[:, :-1]), np.zeros(len(x))
        else:
            log_mean = x[:, 0]
            total = np.zeros(len(x))
            if "mean" in self.priors:
                total = self.priors["mean"].log_density(np.exp(log_mean)) + log_mean
        if "relative_sd" in self.priors:
            return np.asarray(total + self.priors["relative_sd"].log_density(np.exp(log_c)) + log_c)
        log_sd = log_c + log_mean
        return np.asarray(total + self.priors["sd"].log_density(np.exp(log_sd)) + log_sd)

    def parameters(self, x: Array) -> dict[str, Array]:
        """See `PopulationModel`."""
        relative = np.exp(x[:, -1])
        shape = without_limit(-2 * x[:, -1])
        if self.units.X is not None:
            names = {name: x[:, i] for i, name in enumerate(self.units.x_names)}
            return {**names, "relative_sd": relative, "shape": shape}
        mean = np.exp(x[:, 0])
        return {"mean": mean, "sd": mean * relative, "shape": shape, "rate": shape / mean}

    def likelihood_of(self, params: Mapping[str, float]) -> float:
        """See `PopulationModel`; by mean and sd, or shape and rate."""
        if self.units.X is not None:
            values = wanted(params, (*self.units.x_names, "shape"))
            return float(self.log_likelihood(np.array([[*values[:-1], -0.5 * math.log(values[-1])]]))[0])
        if "shape" in params:
            shape, rate = wanted(params, ("shape", "rate"))
            return float(self.log_likelihood(np.array([[math.log(shape / rate), -0.5 * math.log(shape)]]))[0])
        mean, sd = wanted(params, ("mean", "sd"))
        with np.errstate(divide="ignore"):
            return float(self.log_likelihood(np.array([[math.log(mean), np.log(sd / mean)]]))[0])

    def shape(self, x: Array, weights: Array, row: Array) -> GammaShape:
        """See `PopulationModel`."""
        return GammaShape(weights, x[:, 0] if self.units.X is None else x[:, :-1] @ row, -2 * x[:, -1])

    def posterior(self, x: Array, weights: Array) -> GammaPosterior:
        """See `PopulationModel`."""
        log_mean = x[:, :1] if self.units.X is None else self.locations(x[:, :-1])
        return GammaPosterior(self.units.y, self.units.size, log_mean, -2 * x[:, -1], weights, threads=self.threads)


def _counted(values: Array) -> tuple[Array, Array]:
    """Distinct values above 1 (others rise to nothing) and how often each occurs."""
    distinct, counts = np.unique(values, return_counts=True)
    keep = distinct > 1
    return np.ascontiguousarray(distinct[keep]), counts[keep].astype(float)


def without_limit(logs: Array) -> Array:
    """exp, infinite where it is beyond 1e300."""
    return np.where(logs > 690.0, np.inf, np.exp(np.minimum(logs, 690.0)))


def wanted(params: Mapping[str, float], names: tuple[str, ...]) -> Array:
    """The values of the hyperparameters named, all of them and no others."""
    if set(params) != set(names):
        raise ModelError(f"The hyperparameters are {', '.join(names)}; given were {', '.join(params) or 'none'}.")
    return np.array([float(params[name]) for name in names])


def log_binomial(n: Array, y: Array) -> Array:
    """Log of n over y, for arrays."""
    return np.asarray(gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1))
