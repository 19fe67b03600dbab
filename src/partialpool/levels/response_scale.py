r"""Variance on the scale of the response, by integration over the group effects (Goldstein, Browne and Rasbash, 2002).

Given the parameters, a row's linear predictor is ``eta + sum_l u_l``, the effects of the levels l being independent
normal numbers of variance :math:`s_l^2 = z' \Sigma_l z`, however many effects a group has. With
:math:`\mu(\cdot)` the inverse link, the variance of the response at the row's predictors is

.. math:: \mathrm{Var}_u\,\mu(\eta + u) + \mathrm{E}_u\,V(\mu(\eta + u)),

V the variance of the family. Two rows with the same predictors that share the effects of a set S of levels, and no
others, have the covariance

.. math:: C_S = \mathrm{Var}\{\mathrm{E}[\mu \mid u_S]\}.

So :math:`C_S` over the total is the intraclass correlation, and what a level adds to the levels that contain it is its
share. Under the log and identity links :math:`C_S` is closed,
:math:`e^{2\eta + s^2}(e^{s_S^2} - 1)` and :math:`s_S^2`; under probit it is a bivariate normal probability (Owen),
:math:`\Phi_2(h, h; s_S^2 / (1 + s^2)) - \Phi(h)^2` at :math:`h = \eta / \sqrt{1 + s^2}`; under logit and cloglog it is
a sum over quadrature nodes in :math:`u_S`, and in the other effects within it: Gauss-Hermite nodes for small sds, and
evenly spaced ones for large sds, where the mean is a step and they converge faster.

Every variance function V here is a polynomial of the mean, so that ``E V`` needs its first moments alone.

Goldstein, H., Browne, W. and Rasbash, J. (2002). Partitioning variation in multilevel models. Understanding Statistics
1, 223-231.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.quadrature import gauss_hermite
from partialpool.errors import ModelError
from partialpool.spec.families import Family
from partialpool.spec.links import inverse_link

Array = NDArray[np.float64]
Levels = frozenset[int]

#: Links under which moments of the mean are sums over quadrature nodes.
SUMMED = ("logit", "cloglog")
#: Gauss-Hermite nodes for sds up to these; beyond, evenly spaced nodes at most `STEP` apart over +-`REACH` sds.
LADDER = ((0.3, 8), (0.6, 12), (1.0, 16))
STEP, REACH, MOST_STEPS = 0.8, 7.0, 64
#: The singularity of the link nearest to the real line, against that of the logit: how much finer its nodes must be.
FINER = {"logit": 1.0, "cloglog": 2.0}
#: Numbers that are evaluated at once: they stay in the processor's cache.
BLOCK = 2048
#: Chebyshev nodes at which a function of eta is evaluated, to be interpolated at many rows.
FEWEST_PLACES = 32
#: Largest exponent: nodes of the posterior beyond it have no weight that counts.
LARGEST = 300.0
#: Means at which a variance function is read off, all possible for every family.
_MEANS = (0.2, 0.4, 0.6, 0.8)
#: Nodes over the group effects of the family's own parameter.
_OWN_NODES = 16


@dataclass(frozen=True, eq=False)
class Partition:
    """The variance of rows at K points of the parameters, each array (K, n).

    mean : E y. noise : E V, the part within groups of all levels. shared : by set of levels, ``C_S``.
    """

    mean: Array
    noise: Array
    shared: Mapping[Levels, Array]


def partition(
    family: Family,
    eta: Array,
    variances: Sequence[Array],
    sets: Sequence[Levels],
    powers: Array,
    shift: Array | float = 0.0,
) -> Partition:
    """The variance of rows on the scale of the response (of one trial, where there are trials).

    Parameters
    ----------
    family : Family
    eta : array (K, n)
        Linear predictor of the mean without group effects.
    variances : sequence of arrays, each (K, n) or (K, 1)
        By level, the variance of what its effects add to eta.
    sets : sequence of sets of levels
        Those of which ``C_S`` is wanted.
    powers : array (4, K, n) or (4, K, 1)
        The variance function, see `variance_powers`.
    shift : array or float
        What the log of the mean is beyond eta: sigma^2 / 2 of a lognormal response.

    Raises
    ------
    ModelError
        If the response has no finite variance: an inverse link with group effects.

    Examples
    --------
    >>> from partialpool.spec.families import Poisson
    >>> family = Poisson()
    >>> found = partition(family, np.zeros((1, 1)), [np.full((1, 1), 0.25)], [frozenset({0})], variance_powers(family))
    >>> float(found.shared[frozenset({0})][0, 0].round(4)), float(found.noise[0, 0].round(4))
    (0.3647, 1.1331)
    """
    link = mean_link(family)
    refuse_infinite(family, any(bool((v > 0).any()) for v in variances))
    place = eta + shift
    total = np.zeros((len(eta), 1)) + sum(variances, np.zeros((len(eta), 1)))
    mean, spread = moments(link, place, total)
    everything = frozenset(range(len(variances)))
    shared: dict[Levels, Array] = {}
    for levels in sets:
        if levels == everything:
            shared[levels] = spread
        elif not levels:
            shared[levels] = np.zeros(spread.shape)
        elif levels not in shared:
            part = sum((variances[level] for level in levels), np.zeros((len(eta), 1)))
            shared[levels] = shared_variance(link, place, total, part)
    return Partition(mean, _noise(link, place, total, mean, spread, powers), shared)


def mean_link(family: Family) -> str:
    """The link as it acts on the mean: that of a lognormal response is the log."""
    return "log" if family.name == "lognormal" else family.link


def refuse_infinite(family: Family, grouped: bool) -> None:
    """Refuse a link under which normal effects give the response no finite variance."""
    if family.link == "inverse" and grouped:
        raise ModelError(
            f"Under the inverse link with group effects a response of family {family.name} has no finite variance, so "
            "that nothing can be said on its scale; use scale='link', or fit with link='log'."
        )


def variance_powers(family: Family, eta1: Array | float = 0.0, eta2: Array | float = 0.0) -> Array:
    """The variance function as a polynomial of the mean: c of ``V(mu) = c_0 + c_1 mu + c_2 mu^2 + c_3 mu^3``.

    Parameters
    ----------
    family : Family
    eta1, eta2 : arrays or floats
        Logs of the family's own parameters; their shapes are broadcast against each other.

    Returns
    -------
    array (4, ...)
        Of families with trials, those of one trial. c_0 is infinite where the variance is.

    Examples
    --------
    >>> from partialpool.spec.families import NegativeBinomial
    >>> variance_powers(NegativeBinomial(), np.log(2.0)).round(6).tolist()
    [0.0, 1.0, 0.5, 0.0]
    """
    first, second = np.broadcast_arrays(np.asarray(eta1, float), np.asarray(eta2, float))
    at = np.array(_MEANS)
    lognormal = family.name == "lognormal"
    values = []
    for mean in at:
        place = (
            np.log(mean) - 0.5 * np.exp(2 * first) if lognormal else np.full(first.shape, family.link_function(mean))
        )
        values.append(family.variance(place, first, second))
    stacked = np.stack(values)
    infinite = ~np.isfinite(stacked).all(axis=0)
    flat = np.where(infinite, 0.0, stacked).reshape(len(at), -1)
    out = np.linalg.solve(np.vander(at, increasing=True), flat).reshape(4, *first.shape)
    out = np.where(np.abs(out) > 1e-9 * np.abs(out).max(axis=0, keepdims=True), out, 0.0)
    out[0] = np.where(infinite, np.inf, out[0])
    return out


def averaged_powers(family: Family, eta1: Array, variance1: Array | None, eta2: Array | float) -> Array:
    """`variance_powers`, averaged over the group effects of the family's own parameter.

    eta1 : (K, n) without these effects, of variance `variance1` (K, n) or (K, 1); None where there are none.
    """
    if variance1 is None or not variance1.any():
        return variance_powers(family, eta1, eta2)
    x, weights = rule(_OWN_NODES)
    sd = np.sqrt(variance1)
    total = np.zeros((4, *np.broadcast_shapes(eta1.shape, sd.shape)))
    for place, weight in zip(x, weights, strict=True):
        total += weight * variance_powers(family, eta1 + place * sd, eta2)
    return total


# -- moments of the mean -----------------------------------------------------------------------------------------------


def moments(link: str, eta: Array, total: Array) -> tuple[Array, Array]:
    """Mean and variance of the inverse link at ``eta + u``, u of variance `total`; (K, n) each."""
    total = np.broadcast_to(total, eta.shape)
    if link == "identity":
        return eta, np.array(total)
    if link == "log":
        return _exp(eta + 0.5 * total), _exp(2 * eta + total) * np.expm1(np.minimum(total, 60.0))
    if link == "inverse":
        return 1.0 / eta, np.zeros(eta.shape)
    if link == "probit":
        place = eta / np.sqrt(1.0 + total)
        return inverse_link(link, place), _probit_shared(place, total / (1.0 + total))

    def sums(eta: Array, sd: Array) -> tuple[Array, Array]:
        x, weights = _rule_for(link, sd.max())
        origin = inverse_link(link, eta)
        first, second = np.zeros(eta.shape), np.zeros(eta.shape)
        for place, weight in zip(x, weights, strict=True):
            away = inverse_link(link, eta + place * sd) - origin
            first += weight * away
            second += weight * away * away
        return origin + first, second - first * first

    mean, spread = _in_blocks(sums, eta, np.sqrt(total))
    return mean, spread


def shared_variance(link: str, eta: Array, total: Array, part: Array) -> Array:
    """``Var(E[mu | u_S])`` (K, n): u of variance `total`, of which u_S has `part`."""
    total, part = np.broadcast_to(total, eta.shape), np.broadcast_to(part, eta.shape)
    if link == "identity":
        return np.array(part)
    if link == "log":
        return np.asarray(_exp(2 * eta + total) * np.expm1(np.minimum(part, 60.0)))
    if link == "inverse" or not part.any():
        return np.zeros(eta.shape)
    if link == "probit":
        return _probit_shared(eta / np.sqrt(1.0 + total), part / (1.0 + total))
    if eta.shape[1] > 4 * FEWEST_PLACES and not (np.ptp(total, axis=1).any() or np.ptp(part, axis=1).any()):
        return _interpolated(link, eta, total[:, :1], part[:, :1])
    rest = np.maximum(total - part, 0.0)

    def sums(eta: Array, sd: Array, other: Array) -> tuple[Array, ...]:
        outer, inner = _rule_for(link, sd.max()), _rule_for(link, other.max())
        origin = inverse_link(link, eta)
        first, second = np.zeros(eta.shape), np.zeros(eta.shape)
        for place, weight in zip(*outer, strict=True):
            centre = eta + place * sd
            away = -origin
            for within, share in zip(*inner, strict=True):
                away = away + share * inverse_link(link, centre + within * other)
            first += weight * away
            second += weight * away * away
        return (second - first * first,)

    return _in_blocks(sums, eta, np.sqrt(part), np.sqrt(rest))[0]


def _interpolated(link: str, eta: Array, total: Array, part: Array) -> Array:
    """`shared_variance` where the variances (K, 1) are those of all rows: smooth in eta, on Chebyshev nodes."""
    low, high = eta.min(axis=1, keepdims=True), eta.max(axis=1, keepdims=True)
    half = np.maximum(0.5 * (high - low), 1e-8)
    reach = float(half.max())
    count = FEWEST_PLACES * (1 if reach < 8.0 else 2 if reach < 14.0 else 4)
    angles = (np.arange(count) + 0.5) * math.pi / count
    values = shared_variance(link, 0.5 * (low + high) + half * np.cos(angles), total, part)
    transform = 2.0 / count * np.cos(np.outer(np.arange(count), angles))
    transform[0] *= 0.5
    coefficients = (values @ transform.T).T[:, :, None]
    place = (eta - 0.5 * (low + high)) / half
    return np.asarray(np.maximum(np.polynomial.chebyshev.chebval(place, coefficients, tensor=False), 0.0))


def cells(link: str, rows: int, total: float, partial: int, alike: bool) -> int:
    """How many evaluations a row costs at one point.

    total : about the largest variance. partial : how many sets are proper. alike : whether all rows have one variance.
    """
    if link not in SUMMED:
        return 2 + partial
    nodes = len(_rule_for(link, math.sqrt(total))[0])
    share = FEWEST_PLACES / rows if alike and rows > 4 * FEWEST_PLACES else 1.0
    return math.ceil(nodes + partial * (nodes * nodes * share + FEWEST_PLACES))


def _noise(link: str, eta: Array, total: Array, mean: Array, spread: Array, powers: Array) -> Array:
    """E V(mu) by the moments of mu."""
    out = powers[0] + powers[1] * mean
    if powers[2].any() or powers[3].any():
        out = out + powers[2] * (spread + mean * mean)
    if powers[3].any():
        third = _exp(3 * eta + 4.5 * total) if link == "log" else mean**3 + 3 * mean * spread
        out = out + powers[3] * third
    return np.asarray(np.broadcast_to(out, mean.shape))


def _exp(exponent: Array) -> Array:
    return np.asarray(np.exp(np.minimum(exponent, LARGEST)))


def _probit_shared(place: Array, correlation: Array) -> Array:
    """Phi_2(h, h; rho) - Phi(h)^2, by Owen's T function."""
    from scipy.special import ndtr, owens_t

    below = ndtr(place)
    joint = below - 2.0 * owens_t(place, np.sqrt((1.0 - correlation) / (1.0 + correlation)))
    return np.asarray(np.maximum(joint - below * below, 0.0))


@lru_cache(maxsize=32)
def rule(nodes: int) -> tuple[Array, Array]:
    """Gauss-Hermite nodes and weights (nodes,) of the standard normal distribution."""
    x, shifted = gauss_hermite(nodes, 1)
    weights = np.exp(shifted - 0.5 * x[:, 0] ** 2)
    kept = weights > 0
    return x[kept, 0], weights[kept] / weights.sum()


@lru_cache(maxsize=256)
def _even_rule(steps: int) -> tuple[Array, Array]:
    """The trapezoid rule of the standard normal distribution: 2 steps + 1 nodes."""
    x = np.linspace(-REACH, REACH, 2 * steps + 1)
    weights = np.exp(-0.5 * x * x)
    return x, weights / weights.sum()


def _rule_for(link: str, largest: float) -> tuple[Array, Array]:
    """The rule for an inverse link of a normal number whose sd is at most `largest`."""
    sd = FINER[link] * float(largest)
    for limit, count in LADDER:
        if sd <= limit:
            return rule(count)
    return _even_rule(min(math.ceil(REACH / min(STEP, 2.0 / sd)), MOST_STEPS))


def _in_blocks(function: Callable[..., tuple[Array, ...]], eta: Array, *sds: Array) -> tuple[Array, ...]:
    """Apply a function of flat arrays piece by piece, those of small sds first: each piece has a rule of its own."""
    flat = [np.broadcast_to(array, eta.shape).ravel() for array in (eta, *sds)]
    order = np.argsort(sum(flat[1:], np.zeros(eta.size)), kind="stable")
    outputs: list[Array] = []
    for start in range(0, eta.size, BLOCK):
        piece = order[start : start + BLOCK]
        for k, values in enumerate(function(*(array[piece] for array in flat))):
            if k == len(outputs):
                outputs.append(np.empty(eta.size))
            outputs[k][piece] = values
    return tuple(values.reshape(eta.shape) for values in outputs)
