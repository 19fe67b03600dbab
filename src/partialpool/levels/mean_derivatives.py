r"""Derivatives of a family's mean in its linear predictors, in closed form.

With :math:`\mu = g^{-1}(\eta)`: the first and second derivative of the inverse link. The mean of a lognormal response,
:math:`\exp(\eta_0 + \tfrac12 e^{2 \eta_1})`, depends on the predictor of sigma too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.spec.families import Family

Array = NDArray[np.float64]


class MeanDerivatives(NamedTuple):
    """The mean, its first derivatives in eta0 and eta1, and its second ones; None where they are 0."""

    mean: Array
    d0: Array
    d00: Array
    d1: Array | None = None
    d01: Array | None = None
    d11: Array | None = None


def mean_depends_on_second(family: Family) -> bool:
    """Whether the mean depends on the family's own parameter."""
    return family.name == "lognormal"


def mean_derivatives(family: Family, eta0: Array, eta1: Any = 0.0) -> MeanDerivatives:
    """At linear predictors of one shape, or shapes that broadcast.

    Examples
    --------
    >>> from partialpool.spec.families import Bernoulli
    >>> found = mean_derivatives(Bernoulli(), np.array([1.0, 2.0]))
    >>> found.d0.round(4).tolist(), found.d00.round(4).tolist()
    ([0.1966, 0.105], [-0.0909, -0.08])
    """
    mean = family.mean(eta0, eta1)
    if mean_depends_on_second(family):
        square = np.exp(2.0 * np.asarray(eta1))
        return MeanDerivatives(mean, mean, mean, mean * square, mean * square, mean * (square**2 + 2 * square))
    first, second = inverse_link_derivatives(family.link, eta0)
    return MeanDerivatives(mean, first, second)


def inverse_link_derivatives(link: str, eta: Array) -> tuple[Array, Array]:
    """First and second derivative of the mean at the linear predictor eta.

    Examples
    --------
    >>> [values.tolist() for values in inverse_link_derivatives("inverse", np.array([2.0]))]
    [[-0.25], [0.25]]
    """
    with np.errstate(all="ignore"):
        if link == "identity":
            return np.ones_like(eta), np.zeros_like(eta)
        if link == "log":
            return np.exp(eta), np.exp(eta)
        if link == "inverse":
            return -1.0 / eta**2, 2.0 / eta**3
        if link == "logit":
            small = np.exp(-np.abs(eta))
            first = small / (1.0 + small) ** 2
            return first, -first * np.tanh(0.5 * eta)
        if link == "probit":
            first = np.exp(-0.5 * eta**2) / np.sqrt(2.0 * np.pi)
            return first, -eta * first
        if link == "cloglog":
            first = np.exp(eta - np.exp(eta))
            return first, np.where(first > 0, first * -np.expm1(eta), 0.0)
    raise NotImplementedError(link)
