r"""Estimates with known standard errors around a normal population: :math:`y_j \sim N(x_j'\beta, \tau^2 + s_j^2)`.

The coefficients have normal (or flat) priors and integrate out in closed form, which leaves tau; other priors of theirs
leave them on the lattice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.unitsums import add_normal, in_pieces
from partialpool.pooling.bounds import to_line
from partialpool.pooling.hyperpriors import HyperPriors
from partialpool.pooling.models import PopulationModel, wanted
from partialpool.pooling.posteriors import NormalPosterior
from partialpool.pooling.shapes import NormalShape
from partialpool.pooling.units import Units
from partialpool.spec.distributions import Flat, Normal

Array = NDArray[np.float64]


class NormalModel(PopulationModel):
    """Estimates with known standard errors around a normal population. x is log tau; coefficients integrate out.

    Attributes
    ----------
    profile : whether the coefficients are put at their maximum-likelihood values given tau instead, as for empirical
        Bayes.
    """

    kind = "normal"
    d = 1
    sd_at = 0

    profile: bool

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1, likelihood_alone: bool = False) -> None:
        super().__init__(units, priors, threads, likelihood_alone)
        self.profile = likelihood_alone
        self.X = np.ones((units.n, 1)) if units.X is None else np.ascontiguousarray(units.X)
        self.names = ("mean",) if units.X is None else units.x_names
        self.shift = float(np.average(units.y, weights=1 / units.size**2))  # so that squares lose no digits
        self.y = np.ascontiguousarray(units.y - self.shift)
        self.variance = np.ascontiguousarray(units.size**2)
        total = max(float(np.var(units.y)), 0.0)
        noise = float(np.mean(self.variance))
        self.scale = math.sqrt(max(total - noise, 0.1 * total, 1e-4 * noise))
        self.start = np.array([to_line(self.scale, *self.sd_bounds)])
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


class NormalGridModel(NormalModel):
    """The normal model where the prior of a coefficient is not normal, or the mean is known.

    x is the coefficients (none where the mean is known) and log tau.
    """

    def __init__(self, units: Units, priors: HyperPriors, threads: int = 1) -> None:
        super().__init__(units, priors, threads)
        self.profile = True  # of the prior of coefficients nothing is integrated out
        self.known = priors.known.get("mean")
        free = 0 if self.known is not None else len(self.names)
        self.d = free + 1
        self.sd_at = free
        own = self.conditional(np.array([self.scale]))[0][0]
        self.start = np.array([*own[:free], *self.start])
        width = math.sqrt((float(np.mean(self.variance)) + self.scale**2) / units.n)
        scales = np.ones(free) if units.X is None else np.array([1.0, *(1 / np.std(units.X[:, 1:], axis=0))])[:free]
        self.spread = np.concatenate([width * scales, self.spread])

    def _coefficients(self, x: Array) -> Array:
        return x[:, :-1] if self.known is None else np.full((len(x), 1), self.known)

    def log_likelihood(self, x: Array) -> Array:
        """See `PopulationModel`."""
        return self.likelihood_at(self._coefficients(x), self.sd_of(x[:, -1]))

    def log_prior(self, x: Array) -> Array:
        """See `PopulationModel`."""
        total = self.sd_prior(x[:, -1])
        if self.known is None:
            total = total + (
                self.coefficient_priors(x[:, :-1])
                if self.units.X is not None
                else self.priors["mean"].log_density(x[:, 0])
            )
        return np.asarray(total)

    def parameters(self, x: Array) -> dict[str, Array]:
        """See `PopulationModel`."""
        b = self._coefficients(x)
        return {**{name: b[:, i] for i, name in enumerate(self.names)}, "sd": self.sd_of(x[:, -1])}

    def coefficients_given(self, x: Array) -> tuple[tuple[str, ...], Array, Array]:
        """See `PopulationModel`: none, they are coordinates."""
        return PopulationModel.coefficients_given(self, x)

    def shape(self, x: Array, weights: Array, row: Array) -> NormalShape:
        """See `PopulationModel`."""
        return NormalShape(weights, self._coefficients(x) @ row, self.sd_of(x[:, -1]))

    def posterior(self, x: Array, weights: Array) -> NormalPosterior:
        """See `PopulationModel`."""
        means = self._coefficients(x)
        covariance = np.zeros((len(x), means.shape[1], means.shape[1]))
        X = self.X if self.units.X is not None else None
        tau2 = self.sd_of(x[:, -1]) ** 2
        return NormalPosterior(self.units.y, self.variance, X, tau2, means, covariance, weights, threads=self.threads)
