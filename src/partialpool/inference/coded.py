"""Priors and group terms as the row kernels read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import rows
from partialpool.model import Model
from partialpool.spec.distributions import (
    Beta,
    Cauchy,
    Distribution,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    Normal,
    StudentT,
)

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CodedPrior:
    """A prior as the kernel reads it: kind, three parameters, lower end and width of a bounded support (else 0)."""

    kind: int
    parameters: tuple[float, float, float]
    low: float = 0.0
    width: float = 0.0

    @property
    def row(self) -> tuple[float, ...]:
        return (*self.parameters, self.low, self.width)


def code_prior(prior: Distribution) -> CodedPrior:
    """The kernel's code of a prior; what is left out are constants (a uniform density is one)."""
    low, high = prior.support
    bounds = (low, high - low) if math.isfinite(low) and math.isfinite(high) else (0.0, 0.0)
    kind, parameters = rows.FLAT, (0.0, 0.0, 0.0)
    if isinstance(prior, Normal):
        kind, parameters = rows.NORMAL, (prior.mu, prior.sigma, 0.0)
    elif isinstance(prior, HalfNormal):
        kind, parameters = rows.NORMAL, (0.0, prior.sigma, 0.0)
    elif isinstance(prior, StudentT):
        kind, parameters = rows.STUDENT, (prior.nu, prior.mu, prior.sigma)
    elif isinstance(prior, HalfStudentT):
        kind, parameters = rows.STUDENT, (prior.nu, 0.0, prior.sigma)
    elif isinstance(prior, Cauchy):
        kind, parameters = rows.STUDENT, (1.0, prior.mu, prior.sigma)
    elif isinstance(prior, HalfCauchy):
        kind, parameters = rows.STUDENT, (1.0, 0.0, prior.sigma)
    elif isinstance(prior, Exponential):
        kind, parameters = rows.GAMMA, (1.0, prior.rate, 0.0)
    elif isinstance(prior, Gamma):
        kind, parameters = rows.GAMMA, (prior.shape, prior.rate, 0.0)
    elif isinstance(prior, InverseGamma):
        kind, parameters = rows.INVERSE_GAMMA, (prior.shape, prior.scale, 0.0)
    elif isinstance(prior, Beta):
        kind, parameters = rows.BETA, (prior.a, prior.b, 0.0)
    return CodedPrior(kind, parameters, *bounds)


def coded_hyperparameters(model: Model, size: int) -> tuple[Ints, Array]:
    """Kinds (size,) and parameters (size, 5) of the priors of sds, partial correlations and family parameters."""
    hyper = model.hyperparameters
    kinds, params = np.zeros(size, dtype=np.int64), np.zeros((size, 5))

    def put(at: int, prior: Distribution) -> None:
        coded = code_prior(prior)
        kinds[at], params[at] = coded.kind, coded.row

    for term, sds, lkj in zip(hyper.terms, hyper.sds, hyper.correlations, strict=True):
        for column, prior in enumerate(sds):
            put(term.at + column, prior)
        q = term.covariance.size
        for column, (_, j) in enumerate(term.covariance.pairs()):
            eta = lkj.eta if lkj is not None else 1.0
            kinds[term.at + q + column] = rows.PARTIAL
            params[term.at + q + column, 0] = eta + (q - 2 - j) / 2
    if hyper.sigma is not None and hyper.sigma_at is not None:
        put(hyper.sigma_at, hyper.sigma)
    for name, prior in hyper.auxiliary:
        put(hyper.auxiliary_at(name), prior)
    return kinds, params


def left_out(model: Model) -> float:
    """The constants that the kernels leave out of the prior of hyperparameters and coefficients; nan where one is flat.

    Coefficients count on the scale of b, ``gamma = mean + scale b``.
    """
    hyper = model.hyperparameters
    total = 0.0
    priors = [prior for sds in hyper.sds for prior in sds]
    priors += [prior for prior in (hyper.sigma, *(prior for _, prior in hyper.auxiliary)) if prior is not None]
    for prior in priors:
        coded = code_prior(prior)
        low, high = prior.support
        at = low + 0.37 * (high - low) if math.isfinite(high) else 0.7
        own = rows.log_prior(coded.kind, *coded.parameters, at)[0]
        total += float(prior.log_density(np.array([at]))[0]) - own if prior.proper else math.nan
    for term, lkj in zip(hyper.terms, hyper.correlations, strict=True):
        for _, j in term.covariance.pairs():
            a = (lkj.eta if lkj is not None else 1.0) + (term.covariance.size - 2 - j) / 2
            log_beta = 2 * math.lgamma(a) - math.lgamma(2 * a)
            total -= (2 * a - 1) * math.log(2) + log_beta
    for name in model.coefficients.names:
        prior = model.priors[name]
        if isinstance(prior, StudentT | Cauchy):
            nu = prior.nu if isinstance(prior, StudentT) else 1.0
            total += math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
        else:
            total += -0.5 * math.log(2 * math.pi) if prior.proper else math.nan
    return total
