"""Distribution functions of responses given their linear predictors: what lies below an observed response."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from partialpool.spec.families import Family

Array = NDArray[np.float64]
#: (y, mean, eta0, eta1, eta2, trials) -> P(Y <= y).
Distribution = Callable[[Array, Array, Array, Array, Array, Array], Array]

#: Largest logs of own parameters: those of the families.
LARGEST_LOG = 300.0


def probabilities(
    family: Family, y: Array, eta0: Array, eta1: Array, eta2: Array, trials: Array
) -> tuple[Array, Array]:
    """P(Y < y) and P(Y <= y), all arrays broadcast against each other.

    Examples
    --------
    >>> from partialpool.spec.families import Poisson
    >>> zero = np.zeros(1)
    >>> below, at = probabilities(Poisson(), np.array([1.0]), zero, zero, zero, np.ones(1))
    >>> below.round(4).tolist(), at.round(4).tolist()
    ([0.3679], [0.7358])
    """
    y, eta0, eta1, eta2, trials = np.broadcast_arrays(y, eta0, eta1, eta2, trials)
    with np.errstate(all="ignore"):
        mean = family.mean(eta0, eta1, eta2)
        if family.name == "beta_binomial":
            return _beta_binomial(family, y, eta0, eta1, trials)
        function = FUNCTIONS[family.name]
        at = function(y, mean, eta0, eta1, eta2, trials)
        if not family.discrete:
            return at, at
        below = np.where(y > 0, function(np.maximum(y - 1, 0.0), mean, eta0, eta1, eta2, trials), 0.0)
    return np.asarray(np.minimum(below, at)), np.asarray(at)


def _beta_binomial(family: Family, y: Array, eta0: Array, eta1: Array, trials: Array) -> tuple[Array, Array]:
    """By adding up the probabilities of all counts up to y."""
    below, at = np.zeros(y.shape), np.zeros(y.shape)
    for count in range(int(y.max()) + 1 if y.size else 0):
        own = y >= count
        mass = np.exp(family.log_density_rows(np.full(int(own.sum()), float(count)), eta0[own], eta1[own], 0.0,
                                              trials[own]))  # fmt: skip
        at[own] += mass
        below[own] += np.where(y[own] > count, mass, 0.0)
    return np.minimum(below, 1.0), np.minimum(at, 1.0)


def _exp(logs: Array) -> Array:
    return np.exp(np.clip(logs, -LARGEST_LOG, LARGEST_LOG))


def _normal(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(ndtr((y - e0) / _exp(e1)))


def _student(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import stdtr

    return np.asarray(stdtr(np.minimum(np.exp(np.clip(e2, -100, 30)), 1e12), (y - e0) / _exp(e1)))


def _lognormal(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    return _normal(np.log(y), mean, e0, e1, e2, t)


def _bernoulli(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    return np.where(y >= 1, 1.0, 1 - mean)


def _binomial(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import betainc

    inside = betainc(np.maximum(t - y, 1e-300), y + 1.0, 1 - mean)
    return np.where(y >= t, 1.0, inside)


def _poisson(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import gammaincc

    return np.asarray(gammaincc(y + 1.0, mean))


def _of_size(y: Array, size: Array, chance: Array) -> Array:
    """Negative binomial: `chance` is that of a success, `size` the number of them waited for."""
    from scipy.special import betainc

    return np.asarray(betainc(size, y + 1.0, chance))


def _negative_binomial(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    phi = np.minimum(_exp(e1), 1e12)
    return _of_size(y, phi, phi / (phi + mean))


def _negative_binomial1(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    phi = np.minimum(_exp(e1), 1e12)
    return _of_size(y, mean * phi, phi / (1 + phi))


def _geometric(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    return np.asarray(-np.expm1(-(y + 1.0) * np.log1p(1 / mean)))


def _gamma(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import gammainc

    shape = np.minimum(_exp(e1), 1e12)
    return np.asarray(gammainc(shape, shape * y / mean))


def _inverse_gaussian(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import log_ndtr, ndtr

    shape = _exp(e1)
    root = np.sqrt(shape / y)
    far = np.exp(2 * shape / mean + log_ndtr(-root * (y / mean + 1)))
    return np.asarray(ndtr(root * (y / mean - 1)) + np.where(np.isfinite(far), far, 0.0))


def _exponential(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    return np.asarray(-np.expm1(-y / mean))


def _weibull(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import gammaln

    shape = _exp(e1)
    return np.asarray(-np.expm1(-np.exp(np.minimum(shape * (np.log(y / mean) + gammaln(1 + 1 / shape)), 500.0))))


def _beta(y: Array, mean: Array, e0: Array, e1: Array, e2: Array, t: Array) -> Array:
    from scipy.special import betainc

    phi = np.minimum(_exp(e1), 1e12)
    return np.asarray(betainc(np.maximum(mean * phi, 1e-300), np.maximum((1 - mean) * phi, 1e-300), y))


FUNCTIONS: dict[str, Distribution] = {
    "gaussian": _normal,
    "student_t": _student,
    "lognormal": _lognormal,
    "bernoulli": _bernoulli,
    "binomial": _binomial,
    "poisson": _poisson,
    "negative_binomial": _negative_binomial,
    "negative_binomial1": _negative_binomial1,
    "geometric": _geometric,
    "gamma": _gamma,
    "inverse_gaussian": _inverse_gaussian,
    "exponential": _exponential,
    "weibull": _weibull,
    "beta": _beta,
}
