"""The population of units as a distribution of theta, averaged over the hyperparameters, and what it says of data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betainc, betaln, expit, gammainc, gammaln, ndtr, pdtr, stdtr

from partialpool.algebra.unitpass import component_integrals, legendre
from partialpool.algebra.unitsums import beta_binomial_logs, negative_binomial_logs
from partialpool.errors import DataError
from partialpool.inference.importance import logsumexp
from partialpool.spec.links import inverse_link, link_function

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

FAMILIES = ("normal", "binomial", "poisson")
LINKS = {"normal": "identity", "binomial": "logit", "poisson": "log"}
#: Points of the population at which the distribution function of data is averaged.
POINTS = 256
#: Up to so many atoms, a population's points are taken between them.
FEW_ATOMS = 8
#: Quantiles are found to this on the link scale, relative to its size.
FINEST = 1e-11
#: Kinds of component, as the kernels number them.
NORMAL, UNIFORM, STUDENT = 0, 1, 2


def to_natural(family: str, eta: ArrayLike) -> Array:
    """theta from the link scale: itself, a probability, a rate."""
    return inverse_link(LINKS[family], eta)


def to_link(family: str, theta: ArrayLike) -> Array:
    """The inverse of `to_natural`; infinite at the ends."""
    return link_function(LINKS[family], theta)


class Shape(ABC):
    """A distribution of theta on its natural scale: a mixture over the nodes of the hyperparameters.

    Attributes
    ----------
    family : str; weights : (K,).
    """

    family: str
    weights: Array

    @abstractmethod
    def density(self, x: Array) -> Array:
        """Of the continuous part, (n,)."""

    @abstractmethod
    def cdf(self, x: Array) -> Array:
        """P(theta <= x), (n,)."""

    @abstractmethod
    def moments(self) -> tuple[float, float]:
        """Mean and sd."""

    @abstractmethod
    def log_marginal(self, y: Array, size: Array) -> Array:
        """Log density of data y of a unit of this size, (n,)."""

    @property
    def atoms(self) -> tuple[Array, Array]:
        """Places and masses of its points."""
        return np.empty(0), np.empty(0)

    def quantile(self, probabilities: ArrayLike) -> Array:
        """Quantiles, by bisection of the distribution function on the link scale."""
        p = np.atleast_1d(np.asarray(probabilities, dtype=float))
        centre, reach = self._extent()
        low, high = np.full(p.shape, centre - reach), np.full(p.shape, centre + reach)
        for _ in range(60):
            out = self.cdf(to_natural(self.family, low)) > p
            if not out.any():
                break
            low[out] -= high[out] - low[out]
        for _ in range(60):
            out = self.cdf(to_natural(self.family, high)) < p
            if not out.any():
                break
            high[out] += high[out] - low[out]
        if p.size > 8:  # one grid for all brings each between two neighbours
            grid = np.linspace(low.min(), high.max(), 8 * p.size)
            reached = np.searchsorted(np.maximum.accumulate(self.cdf(to_natural(self.family, grid))), p)
            low, high = grid[np.maximum(reached - 1, 0)], grid[np.minimum(reached, grid.size - 1)]
        while float((high - low).max()) > FINEST * float(np.abs(high).max() + 1.0):
            middle = 0.5 * (low + high)
            above = self.cdf(to_natural(self.family, middle)) >= p
            high = np.where(above, middle, high)
            low = np.where(above, low, middle)
        return to_natural(self.family, high)

    def _extent(self) -> tuple[float, float]:
        """Centre and a first reach on the link scale."""
        mean, sd = self.moments()
        if self.family == "normal":
            return mean, 4 * sd + 1e-12 * (abs(mean) + 1e-300)
        centre = float(
            to_link(self.family, min(max(mean, 1e-300), 1 - 1e-16 if self.family == "binomial" else math.inf))
        )
        return centre, 8.0

    @cached_property
    def points(self) -> tuple[Array, Array]:
        """Places of theta and weights that stand for the whole: Gauss-Legendre in the distribution function."""
        places, masses = self.atoms
        x, w = legendre(POINTS)
        if not masses.size:
            return self.quantile(0.5 * (x + 1)), 0.5 * w
        if masses.size <= FEW_ATOMS:
            return self._between(places, masses)
        u = 0.5 * (x + 1)
        theta = self.quantile(u)
        continuous = ~np.isin(theta, places)
        if float(masses.sum()) >= 1 - 1e-12 or not continuous.any():
            return places, masses
        rest = 0.5 * w[continuous]
        return (
            np.concatenate([theta[continuous], places]),
            np.concatenate([rest / rest.sum() * (1 - masses.sum()), masses]),
        )

    def _between(self, places: Array, masses: Array) -> tuple[Array, Array]:
        """`points` of a population with a few atoms: nodes within each stretch of the distribution function."""
        order = np.argsort(places)
        places, masses = places[order], masses[order]
        reached = self.cdf(places)
        ends = np.stack([np.append(0.0, reached), np.append(reached - masses, 1.0)])
        x, w = legendre(POINTS // 2)
        theta, weights = [places], [masses]
        for low, high in ends.T:
            if high - low > 1e-12:
                theta.append(self.quantile(low + (high - low) * 0.5 * (x + 1)))
                weights.append(0.5 * (high - low) * w)
        return np.concatenate(theta), np.concatenate(weights)


class NormalShape(Shape):
    """Mixture of normals: the normal population, with the uncertainty of its mean; (K,) each."""

    family = "normal"

    def __init__(self, weights: Array, means: Array, sds: Array) -> None:
        self.weights, self.means, self.sds = weights, means, sds

    def _z(self, x: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = x[:, None] - self.means
            return np.where(self.sds > 0, apart / self.sds, np.where(apart >= 0, np.inf, -np.inf))

    def density(self, x: Array) -> Array:
        """See `Shape`."""
        solid = self.sds > 0
        z = self._z(x)[:, solid]
        return np.asarray(np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) @ (self.weights[solid] / self.sds[solid]))

    def cdf(self, x: Array) -> Array:
        """See `Shape`."""
        return np.asarray(ndtr(self._z(x)) @ self.weights)

    @property
    def atoms(self) -> tuple[Array, Array]:
        """See `Shape`."""
        flat = self.sds == 0
        return self.means[flat], self.weights[flat]

    def moments(self) -> tuple[float, float]:
        """See `Shape`."""
        mean = float(self.weights @ self.means)
        return mean, math.sqrt(float(self.weights @ (self.sds**2 + (self.means - mean) ** 2)))

    def log_marginal(self, y: Array, size: Array) -> Array:
        """See `Shape`."""
        variance = self.sds[:, None] ** 2 + size**2
        logs = -0.5 * ((y - self.means[:, None]) ** 2 / variance + np.log(2 * math.pi * variance))
        return logsumexp(logs + np.log(self.weights)[:, None], axis=0)


class BetaShape(Shape):
    """Mixture of beta distributions: eta (K,), logits of the mean; log_size (K,), logs of alpha + beta."""

    family = "binomial"

    def __init__(self, weights: Array, eta: Array, log_size: Array) -> None:
        self.weights, self.eta, self.log_size = weights, eta, log_size
        size = np.exp(np.minimum(log_size, np.log(1e14)))
        self.a, self.b = size * expit(eta), size * expit(-eta)

    def density(self, x: Array) -> Array:
        """See `Shape`."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            a, b = self.a, self.b
            logs = (a - 1) * np.log(x)[:, None] + (b - 1) * np.log1p(-x)[:, None] - betaln(a, b)
            return np.asarray(np.nan_to_num(np.exp(logs), nan=0.0, posinf=0.0) @ self.weights)

    def cdf(self, x: Array) -> Array:
        """See `Shape`."""
        return np.asarray(betainc(self.a, self.b, np.clip(x, 0, 1)[:, None]) @ self.weights)

    def moments(self) -> tuple[float, float]:
        """See `Shape`."""
        means = expit(self.eta)
        mean = float(self.weights @ means)
        own = means * expit(-self.eta) / (1 + np.exp(self.log_size))
        return mean, math.sqrt(float(self.weights @ (own + (means - mean) ** 2)))

    def log_marginal(self, y: Array, size: Array) -> Array:
        """See `Shape`: beta-binomial."""
        out = np.empty((self.eta.size, y.size))
        y, size = np.ascontiguousarray(y, dtype=float), np.ascontiguousarray(size, dtype=float)
        beta_binomial_logs(y, size, np.ascontiguousarray(self.eta), np.ascontiguousarray(self.log_size), out)
        return logsumexp(out + np.log(self.weights)[:, None], axis=0) + log_binomial(size, y)


class GammaShape(Shape):
    """Mixture of gamma distributions: log_mean (K,) and log_shape (K,)."""

    family = "poisson"

    def __init__(self, weights: Array, log_mean: Array, log_shape: Array) -> None:
        self.weights, self.log_mean, self.log_shape = weights, log_mean, log_shape
        self.a = np.exp(np.minimum(log_shape, np.log(1e14)))
        self.rate = self.a / np.exp(log_mean)

    def density(self, x: Array) -> Array:
        """See `Shape`."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            logs = (
                (self.a - 1) * np.log(x)[:, None]
                - self.rate * x[:, None]
                + self.a * np.log(self.rate)
                - gammaln(self.a)
            )
            return np.asarray(np.nan_to_num(np.exp(logs), nan=0.0, posinf=0.0) @ self.weights)

    def cdf(self, x: Array) -> Array:
        """See `Shape`."""
        return np.asarray(gammainc(self.a, self.rate * np.maximum(x, 0)[:, None]) @ self.weights)

    def moments(self) -> tuple[float, float]:
        """See `Shape`."""
        means = np.exp(self.log_mean)
        mean = float(self.weights @ means)
        return mean, math.sqrt(float(self.weights @ (means**2 * np.exp(-self.log_shape) + (means - mean) ** 2)))

    def log_marginal(self, y: Array, size: Array) -> Array:
        """See `Shape`: negative binomial."""
        out = np.empty((self.a.size, y.size))
        y, size = np.ascontiguousarray(y, dtype=float), np.ascontiguousarray(size, dtype=float)
        negative_binomial_logs(y, size, np.ascontiguousarray(self.log_mean), np.ascontiguousarray(self.log_shape), out)
        return logsumexp(out + np.log(self.weights)[:, None], axis=0) - gammaln(y + 1)


@dataclass(frozen=True, eq=False)
class Components:
    """Parts of a population on the link scale: (C,) each.

    Attributes
    ----------
    node : the node a component belongs to; weight : its share within the node; kind : NORMAL, UNIFORM or STUDENT;
    location, spread (0 is a point), nu.
    """

    node: Ints
    weight: Array
    kind: Ints
    location: Array
    spread: Array
    nu: Array


class ComponentShape(Shape):
    """A mixture of components on the link scale, for each of K nodes."""

    def __init__(self, family: str, weights: Array, components: Components) -> None:
        self.family, self.weights, self.components = family, weights, components
        self.shares = weights[components.node] * components.weight

    def density(self, x: Array) -> Array:
        """See `Shape`."""
        c = self.components
        solid = c.spread > 0
        eta = to_link(self.family, x)
        with np.errstate(all="ignore"):
            z = (eta[:, None] - c.location[solid]) / c.spread[solid]
            nu, kind = c.nu[solid], c.kind[solid]
            student = np.exp(
                gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * np.log(nu * np.pi) - (nu + 1) / 2 * np.log1p(z * z / nu)
            )
            normal = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
            heights = np.where(kind == STUDENT, student, np.where(kind == UNIFORM, 0.5 * (np.abs(z) <= 1), normal))
            total = heights @ (self.shares[solid] / c.spread[solid])
            slope = {"normal": np.ones_like(x), "binomial": x * (1 - x), "poisson": x}[self.family]
            return np.asarray(np.where(slope > 0, total / slope, 0.0))

    def cdf(self, x: Array) -> Array:
        """See `Shape`."""
        c = self.components
        eta = to_link(self.family, x)[:, None]
        with np.errstate(all="ignore"):
            apart = eta - c.location
            z = np.where(
                c.spread > 0, apart / c.spread, np.where(apart >= -1e-12 * np.abs(c.location), np.inf, -np.inf)
            )
            values = np.where(c.kind == UNIFORM, np.clip(0.5 * (z + 1), 0, 1), ndtr(z))
            student = c.kind == STUDENT
            if student.any():
                values[:, student] = stdtr(c.nu[student], z[:, student])
        return np.asarray(values @ self.shares)

    @property
    def atoms(self) -> tuple[Array, Array]:
        """See `Shape`."""
        flat = (self.components.spread == 0) & (self.shares > 0)
        places, which = np.unique(self.components.location[flat], return_inverse=True)
        masses = np.bincount(which, self.shares[flat], minlength=places.size)
        return to_natural(self.family, places), np.asarray(masses, dtype=float)

    def moments(self) -> tuple[float, float]:
        """See `Shape`; on the natural scale by quadrature over each component."""
        c = self.components
        if self.family == "normal":
            factor = np.where(c.kind == UNIFORM, 1 / 3, 1.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = np.where(c.kind == STUDENT, np.where(c.nu > 2, c.nu / (c.nu - 2), np.inf), factor)
            mean = float(self.shares @ c.location)
            own = np.where(c.spread > 0, c.spread**2 * factor, 0.0)
            return mean, math.sqrt(float(self.shares @ (own + (c.location - mean) ** 2)))
        x, w = legendre(128)
        u = 0.5 * (x + 1)
        first, second = np.zeros(c.location.size), np.zeros(c.location.size)
        from scipy.special import ndtri, stdtrit

        for share, weight in zip(u, 0.5 * w, strict=True):
            z = np.where(c.kind == UNIFORM, 2 * share - 1, ndtri(share))
            student = c.kind == STUDENT
            if student.any():
                z[student] = stdtrit(c.nu[student], share)
            theta = to_natural(self.family, c.location + c.spread * z)
            first += weight * theta
            second += weight * theta**2
        if self.family == "poisson":  # exp has heavier tails than quadrature sees: normal components in closed form
            normal = c.kind == NORMAL
            first[normal] = np.exp(c.location[normal] + 0.5 * c.spread[normal] ** 2)
            second[normal] = np.exp(2 * c.location[normal] + 2 * c.spread[normal] ** 2)
            heavy = (c.kind == STUDENT) & (c.spread > 0)
            first[heavy] = second[heavy] = np.inf
        mean = float(self.shares @ first)
        return mean, math.sqrt(max(float(self.shares @ second) - mean**2, 0.0)) if math.isfinite(mean) else math.inf

    def _extent(self) -> tuple[float, float]:
        c = self.components
        return float(self.shares @ c.location), 4 * float(np.sqrt(self.shares @ c.spread**2)) + float(
            np.ptp(c.location)
        ) + 1e-9

    def log_marginal(self, y: Array, size: Array) -> Array:
        """See `Shape`."""
        c = self.components
        keep = self.shares > 0
        logs = component_integrals(
            FAMILIES.index(self.family), y, size, c.kind[keep], c.location[keep], c.spread[keep], c.nu[keep]
        )
        return logsumexp(logs + np.log(self.shares[keep])[:, None], axis=0)


class DiscreteShape(Shape):
    """Finitely many places of theta (G,), increasing, with their masses (G,)."""

    def __init__(self, family: str, places: Array, masses: Array) -> None:
        self.family, self.places, self.masses = family, places, masses
        self.weights = np.ones(1)

    def density(self, x: Array) -> Array:
        """See `Shape`: there is no continuous part."""
        return np.zeros_like(x)

    def cdf(self, x: Array) -> Array:
        """See `Shape`."""
        return np.asarray((x[:, None] >= self.places) @ self.masses)

    @property
    def atoms(self) -> tuple[Array, Array]:
        """See `Shape`."""
        return self.places, self.masses

    def moments(self) -> tuple[float, float]:
        """See `Shape`."""
        mean = float(self.masses @ self.places)
        return mean, math.sqrt(float(self.masses @ (self.places - mean) ** 2))

    def quantile(self, probabilities: ArrayLike) -> Array:
        """See `Shape`."""
        below = np.cumsum(self.masses)
        at = np.searchsorted(below, np.atleast_1d(np.asarray(probabilities, dtype=float)) * (1 - 1e-12))
        return np.asarray(self.places[np.minimum(at, self.places.size - 1)])

    def log_marginal(self, y: Array, size: Array) -> Array:
        """See `Shape`."""
        logs = unit_log_likelihood(self.family, y, size, self.places[:, None])
        return logsumexp(logs + np.log(self.masses)[:, None], axis=0)


def log_binomial(n: Array, y: Array) -> Array:
    """Log of n over y, for arrays."""
    return np.asarray(gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1))


def unit_log_likelihood(family: str, y: Array, size: Array, theta: Array) -> Array:
    """log f(y_j | theta) with every constant; theta (G, 1) or (G, J) gives (G, J)."""
    at = theta
    with np.errstate(divide="ignore", invalid="ignore"):
        if family == "normal":
            return np.asarray(-0.5 * ((y - at) / size) ** 2 - np.log(size) - 0.5 * math.log(2 * math.pi))
        if family == "binomial":
            up = np.where(y > 0, y * np.log(at), 0.0)
            return np.asarray(log_binomial(size, y) + up + np.where(size - y > 0, (size - y) * np.log1p(-at), 0.0))
        up = np.where(y > 0, y * np.log(at * size), 0.0)
        return np.asarray(up - at * size - gammaln(y + 1))


@dataclass(frozen=True, eq=False)
class Marginal:
    """What the population says of a unit's data before they are seen, averaged over the hyperparameters.

    Attributes
    ----------
    family : "normal", "binomial" or "poisson"; size : the unit's standard error, trials or exposure.
    mean, variance : of the data.
    extra : the variance over that of a unit at the population's mean (binomial, Poisson, or se^2): 1 is no
        overdispersion.
    """

    family: str
    size: float
    mean: float
    variance: float
    extra: float
    shape: Shape = field(repr=False)

    def log_density(self, y: ArrayLike) -> Array:
        """Log density (normal) or log probability (counts) of data y, of its shape."""
        values = np.atleast_1d(np.asarray(y, dtype=float))
        flat = values.ravel()
        inside = np.isfinite(flat)
        if self.family != "normal":
            inside = inside & (flat >= 0) & (flat == np.floor(flat))
            if self.family == "binomial":
                inside = inside & (flat <= self.size)
        out = np.full(flat.shape, -np.inf)
        if inside.any():
            out[inside] = self.shape.log_marginal(flat[inside], np.full(int(inside.sum()), self.size))
        return out.reshape(np.shape(y))

    def cdf(self, y: ArrayLike) -> Array:
        """P(data <= y), of the shape of y."""
        values = np.asarray(y, dtype=float)
        theta, weights = self.shape.points
        at = values[..., None]
        if self.family == "normal":
            return np.asarray(ndtr((at - theta) / self.size) @ weights)
        whole = np.floor(at)
        if self.family == "binomial":
            inner = bdtr(np.clip(whole, 0, self.size), int(self.size), theta)
        else:
            inner = np.where(theta * self.size > 0, pdtr(np.maximum(whole, 0), theta * self.size), 1.0)
        return np.asarray(np.where(whole >= 0, inner, 0.0) @ weights)


def marginal_of(shape: Shape, size: float) -> Marginal:
    """The marginal distribution of the data of a unit of this size."""
    size = float(size)
    if not math.isfinite(size) or size <= 0:
        raise DataError(f"A unit's size (standard error, trials or exposure) must be greater than 0, not {size:g}.")
    mean, sd = shape.moments()
    if shape.family == "normal":
        return Marginal("normal", size, mean, sd**2 + size**2, (sd**2 + size**2) / size**2, shape)
    if shape.family == "binomial":
        if size != math.floor(size):
            raise DataError(f"Trials are counted: give a whole number, not {size:g}.")
        variance = size * (mean * (1 - mean) - sd**2) + size**2 * sd**2
        plain = size * mean * (1 - mean)
    else:
        variance = size * mean + size**2 * sd**2
        plain = size * mean
    return Marginal(shape.family, size, size * mean, variance, variance / plain if plain > 0 else math.nan, shape)
