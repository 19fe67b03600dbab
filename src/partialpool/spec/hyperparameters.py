r"""The vector theta of hyperparameters: its layout, its public names, its prior density.

theta holds, on an unconstrained scale and in this order: for each group term its log sds and the coordinates of its
correlations (`TermCovariance`), then log sigma of a Gaussian response (unless the standard errors are known) or the
logs of the family's own parameters, then, for a Gaussian response, one ``log lambda`` for each coefficient with a
Student-t prior, which is written as a scale mixture of normals:
``beta_j | lambda_j ~ N(m_j, s_j^2 lambda_j)``, ``lambda_j ~ InverseGamma(nu / 2, nu / 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, did_you_mean
from partialpool.spec.covariance import TermCovariance
from partialpool.spec.distributions import LKJ, Distribution

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TermLayout:
    """One group term in theta.

    factor : index of its grouping factor; offset : its first column among the factor's effects; at : start in theta.
    """

    covariance: TermCovariance
    factor: int
    factor_name: str
    names: tuple[str, ...]
    offset: int
    at: int

    @property
    def parameters(self) -> slice:
        return slice(self.at, self.at + self.covariance.n_parameters)

    @property
    def sd_names(self) -> tuple[str, ...]:
        return tuple(f"sd({name}|{self.factor_name})" for name in self.names)

    @property
    def cor_names(self) -> tuple[str, ...]:
        # brms and lme4 name the pair in the order of the columns: cor(Intercept,Days|Subject)
        return tuple(f"cor({self.names[j]},{self.names[i]}|{self.factor_name})" for i, j in self.covariance.pairs())


@dataclass(frozen=True)
class Mixture:
    """The mixing scale of one coefficient with a Student-t prior."""

    coefficient: int
    nu: float


@dataclass(frozen=True)
class Hyperparameters:
    """Layout and prior of theta.

    Parameters
    ----------
    terms : the group terms.
    widths, lam_at : by factor, the number of effects of a group and where its Lambda starts in the flat vector.
    sds, correlations : priors by term: those of its sds, and of its correlations (None where there are none).
    sigma : the prior of sigma of a Gaussian response that is integrated out exactly, or None where the residual sd is
        known or the response is another.
    mixtures : coefficients with a Student-t prior.
    auxiliary : names and priors of the parameters of another family (``phi``, ``nu``) that have no formula.
    """

    terms: tuple[TermLayout, ...]
    widths: tuple[int, ...]
    lam_at: tuple[int, ...]
    sds: tuple[tuple[Distribution, ...], ...]
    correlations: tuple[LKJ | None, ...]
    sigma: Distribution | None
    mixtures: tuple[Mixture, ...] = ()
    auxiliary: tuple[tuple[str, Distribution], ...] = ()

    @property
    def _n_terms(self) -> int:
        return sum(term.covariance.n_parameters for term in self.terms)

    @property
    def sigma_at(self) -> int | None:
        """Position of log sigma of a Gaussian response in theta."""
        return None if self.sigma is None else self._n_terms

    @property
    def size(self) -> int:
        return self._n_terms + (self.sigma is not None) + len(self.auxiliary) + len(self.mixtures)

    @property
    def auxiliary_slice(self) -> slice:
        """Where the logs of the family's parameters stand in theta."""
        start = self._n_terms + (self.sigma is not None)
        return slice(start, start + len(self.auxiliary))

    def auxiliary_at(self, name: str) -> int:
        """Position of the log of one of the family's parameters in theta."""
        return int(self.auxiliary_slice.start) + [own for own, _ in self.auxiliary].index(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Public names: sds and correlations term by term, then sigma or the family's own parameters."""
        out: list[str] = []
        for term in self.terms:
            out += [*term.sd_names, *term.cor_names]
        return (*out, *(["sigma"] if self.sigma is not None else []), *(name for name, _ in self.auxiliary))

    def public(self, theta: Array) -> Array:
        """sds, correlations, sigma and the family's parameters, (K, len(names)), from theta (K, size)."""
        parts = []
        for term in self.terms:
            own = theta[:, term.parameters]
            parts += [term.covariance.sds(own), term.covariance.correlations(own)]
        if self.sigma_at is not None:
            parts.append(np.exp(theta[:, self.sigma_at : self.sigma_at + 1]))
        if self.auxiliary:
            parts.append(np.exp(theta[:, self.auxiliary_slice]))
        return np.concatenate(parts, axis=1) if parts else np.empty((theta.shape[0], 0))

    def from_public(self, values: Mapping[str, float]) -> Array:
        """theta (size,) from values by public name; the mixing scales are set to 1.

        Raises
        ------
        ModelError
            Where a value is missing, an sd is negative, a family's parameter is not above 0, or correlations are not
            those of a covariance matrix.
        """
        theta = np.zeros(self.size)
        for term in self.terms:
            q = term.covariance.size
            sd = np.array([_value(values, name, self.names) for name in term.sd_names])
            correlation = np.eye(q)
            for name, (i, j) in zip(term.cor_names, term.covariance.pairs(), strict=True):
                correlation[i, j] = correlation[j, i] = _value(values, name, self.names)
            for name, value in zip(term.sd_names, sd, strict=True):
                if not value >= 0:
                    raise ModelError(f"{name} = {value:g} is not a standard deviation; it must be at least 0.")
            try:
                theta[term.parameters] = term.covariance.parameters_from(sd, correlation)
            except np.linalg.LinAlgError:
                shown = ", ".join(term.cor_names)
                raise ModelError(f"{shown}: these correlations do not belong to any covariance matrix.") from None
        if self.sigma_at is not None:
            theta[self.sigma_at] = math.log(self._positive(values, "sigma"))
        for column, (name, _) in zip(range(self.size)[self.auxiliary_slice], self.auxiliary, strict=True):
            theta[column] = math.log(self._positive(values, name))
        return theta

    def _positive(self, values: Mapping[str, float], name: str) -> float:
        value = _value(values, name, self.names)
        if not 0 < value < math.inf:
            raise ModelError(f"{name} = {value:g} is not possible; it must be above 0{' and finite' * (value > 0)}.")
        return value

    def factors(self, theta: Array) -> Array:
        """All Lambda, flat: (K, sum of widths^2)."""
        total = sum(width * width for width in self.widths)
        lams = np.zeros((theta.shape[0], total))
        for term in self.terms:
            block = term.covariance.factor(theta[:, term.parameters])
            width, q = self.widths[term.factor], term.covariance.size
            start = self.lam_at[term.factor]
            view = lams[:, start : start + width * width].reshape(-1, width, width)
            view[:, term.offset : term.offset + q, term.offset : term.offset + q] = block
        return lams

    def inverse_variance(self, theta: Array) -> Array:
        """1 / sigma^2, (K,); ones where sigma is known."""
        if self.sigma_at is None:
            return np.ones(theta.shape[0])
        return np.exp(-2 * theta[:, self.sigma_at])

    def mixture_slice(self) -> slice:
        return slice(self.size - len(self.mixtures), self.size)

    def log_prior(self, theta: Array) -> tuple[Array, Array]:
        """Log prior density of theta, Jacobian included, (K,), and its gradient (K, size)."""
        value = np.zeros(theta.shape[0])
        gradient = np.zeros_like(theta)
        for term, sds, lkj in zip(self.terms, self.sds, self.correlations, strict=True):
            for column, prior in enumerate(sds):
                _add_positive(prior, theta, term.at + column, value, gradient)
            if lkj is not None and term.covariance.n_correlations:
                own, slope = term.covariance.lkj_log_density(theta[:, term.parameters], lkj.eta)
                value += own
                gradient[:, term.at + term.covariance.size : term.parameters.stop] += slope
        if self.sigma is not None and self.sigma_at is not None:
            _add_positive(self.sigma, theta, self.sigma_at, value, gradient)
        for column, (_, prior) in zip(range(self.size)[self.auxiliary_slice], self.auxiliary, strict=True):
            _add_positive(prior, theta, column, value, gradient)
        for column, mixture in zip(range(self.size)[self.mixture_slice()], self.mixtures, strict=True):
            shape = mixture.nu / 2
            x = theta[:, column]
            inverse = shape * np.exp(-x)
            value += shape * math.log(shape) - math.lgamma(shape) - shape * x - inverse
            gradient[:, column] += inverse - shape
        return value, gradient

    def gradient_of_terms(self, theta: Array, zz: Array, group_counts: Sequence[int]) -> Array:
        """The gradient (K, size) in the terms' parameters, from the sums E[z z'] over groups (K, n_lam)."""
        out = np.zeros_like(theta)
        for term in self.terms:
            width, q = self.widths[term.factor], term.covariance.size
            start = self.lam_at[term.factor]
            block = zz[:, start : start + width * width].reshape(-1, width, width)
            own = block[:, term.offset : term.offset + q, term.offset : term.offset + q]
            excess = own - group_counts[term.factor] * np.eye(q)
            out[:, term.parameters] = term.covariance.gradient(theta[:, term.parameters], excess)
        return out

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draws of theta from its prior, (size, self.size)."""
        theta = np.empty((size, self.size))
        for term, sds, lkj in zip(self.terms, self.sds, self.correlations, strict=True):
            covariance = term.covariance
            for column, prior in enumerate(sds):
                theta[:, term.at + column] = np.log(prior.sample(rng, size))
            eta = lkj.eta if lkj is not None else 1.0
            for column, (_, j) in enumerate(covariance.pairs()):
                shape = eta + (covariance.size - 2 - j) / 2
                partial = 2 * rng.beta(shape, shape, size) - 1
                theta[:, term.at + covariance.size + column] = np.arctanh(np.clip(partial, -1 + 1e-16, 1 - 1e-16))
        if self.sigma is not None and self.sigma_at is not None:
            theta[:, self.sigma_at] = np.log(self.sigma.sample(rng, size))
        for column, (_, prior) in zip(range(self.size)[self.auxiliary_slice], self.auxiliary, strict=True):
            theta[:, column] = np.log(prior.sample(rng, size))
        for column, mixture in zip(range(self.size)[self.mixture_slice()], self.mixtures, strict=True):
            shape = mixture.nu / 2
            theta[:, column] = np.log(shape / rng.gamma(shape, 1.0, size))
        return theta


def _add_positive(prior: Distribution, theta: Array, column: int, value: Array, gradient: Array) -> None:
    """Add the log density of ``log x`` where x has the given prior on (0, inf)."""
    x = np.exp(theta[:, column])
    value += prior.log_density(x) + theta[:, column]
    gradient[:, column] += prior.score(x) * x + 1


def _value(values: Mapping[str, float], name: str, known: Sequence[str]) -> float:
    try:
        return float(values[name])
    except KeyError:
        extra = [given for given in values if given not in known]
        hint = did_you_mean(name, extra) if extra else f"Pass a value for {name!r}."
        raise ModelError(f"The parameter {name!r} has no value. {hint}") from None
