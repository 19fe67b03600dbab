r"""Within and between slopes where the groups' means of x are themselves estimated from few rows.

The average x̄_j of n_j sampled rows is the group's mean mu_j with an error of variance sigma_x²/n_j. Used as a
predictor it makes the between slope a mixture of both slopes (regression dilution); the model with latent means
(Lüdtke, Marsh, Robitzsch, Trautwein, Asparouhov and Muthén, 2008, Psychological Methods 13, 203-229) does not:

.. math::
    x_{ij} &= \mu_j + d_{ij}, \qquad \mu_j \sim N(m, \tau_x^2), \quad d_{ij} \sim N(0, \sigma_x^2) \\
    y_{ij} &= a + b_w (x_{ij} - \mu_j) + b_b \mu_j + u_j + e_{ij}, \quad u_j \sim N(0, \tau^2), \; e \sim N(0, \sigma^2)

Write b_c = b_b - b_w (the contextual effect), so that y = a + b_w x + b_c mu + u + e. Given x, with the reliability of
a group's average :math:`\lambda_j = \tau_x^2 / v_j`, :math:`v_j = \tau_x^2 + \sigma_x^2 / n_j`,

.. math:: \mu_j \mid x \sim N(\lambda_j \bar x_j + (1 - \lambda_j) m,\; \tau_x^2 (1 - \lambda_j)),

which enters the rows of a group alike. Hence the density of all x and y is a product of four parts: deviations of x
from their group's average (variance sigma_x²), those of y from b_w times these (sigma²), each with N - J degrees of
freedom, and

.. math::
    \bar x_j &\sim N(m,\; v_j) \\
    \bar y_j \mid x &\sim N\big(a + b_w \bar x_j + b_c (\lambda_j \bar x_j + (1 - \lambda_j) m),\;
    \tau^2 + \sigma^2 / n_j + b_c^2 \tau_x^2 (1 - \lambda_j)\big).

Only sums over groups of one size enter. Given psi = (log tau_x, log sigma_x, log tau, log sigma, b_c) all of it is
Gaussian in g = (m, a, b_w), which is integrated out in closed form. psi is explored by importance sampling, with a
coordinate in the place of b_c that hardly goes with tau_x (`Whitening`). Computations are done with x and y centred
and in units of their sd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.mixture import mixture_summary
from partialpool.inference.importance import (
    effective_sample_size,
    normalise,
    pareto_smooth,
    weighted_moments,
    weighted_quantile,
)
from partialpool.inference.proposal import Mixture, Proposal, from_weighted
from partialpool.inference.sobol import Sobol
from partialpool.levels.least_squares import Averages, least_squares
from partialpool.pooling.sampling import Sampled, sample
from partialpool.spec.distributions import Distribution

Array = NDArray[np.float64]

#: Nodes times distinct group sizes that are held at once.
BLOCK = 1_000_000
QUANTILES = (0.05, 0.5, 0.95)
LOG_2PI = math.log(2 * math.pi)
#: Above this Pareto k, or below this effective sample size, the answer is not to be relied on.
WORST_K, FEWEST = 0.7, 400.0
#: What is good enough at once; else so many nodes a round, from a mixture of so many proposals.
GOOD_K, ENOUGH = 0.6, 1500.0
ROUNDS, MOST_PARTS = (4096, 8192, 16384), 3


@dataclass(frozen=True)
class Gauss:
    """A normal prior of one unknown; sd inf: flat."""

    mean: float
    sd: float

    @property
    def precision(self) -> float:
        """1 / sd²."""
        return self.sd**-2 if math.isfinite(self.sd) else 0.0

    @property
    def log_constant(self) -> float:
        """What the log density is at its mean."""
        return -0.5 * LOG_2PI - math.log(self.sd) if math.isfinite(self.sd) else 0.0


@dataclass(frozen=True)
class LatentPriors:
    """Priors in the units of the data.

    within, between, intercept, mean_x : normal, or flat but for between (where tau_x may be 0 the likelihood does not
    fall as b_b grows, so that its posterior would not be proper).
    intercept_at : the x at which the intercept's prior stands.
    tau_x, sigma_x, tau, sigma : of the sds.
    """

    within: Gauss
    between: Gauss
    intercept: Gauss
    intercept_at: float
    mean_x: Gauss
    tau_x: Distribution
    sigma_x: Distribution
    tau: Distribution
    sigma: Distribution


@dataclass(frozen=True, eq=False)
class Sums:
    """What the likelihood needs of the data.

    size, count : (S,) distinct group sizes, and how many groups have each.
    x, y, xx, xy, yy : (S,) sums over these groups of their averages, and of the averages' products.
    within : sums of squares and products of deviations from the group averages, of xx, xy, yy.
    rows, groups : how many; log_sizes : sum of the log sizes.
    """

    size: Array
    count: Array
    x: Array
    y: Array
    xx: Array
    xy: Array
    yy: Array
    within: tuple[float, float, float]
    rows: int
    groups: int
    log_sizes: float


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A log density constant + q'g - g'Pg / 2 of g = (m, a, b_w) at each of K nodes: (K,), (K, 3), (K, 3, 3)."""

    constant: Array
    linear: Array
    precision: Array

    def at(self, g: Array) -> Array:
        """Its values (K,) at one g (3,)."""
        return np.asarray(self.constant + self.linear @ g - 0.5 * np.einsum("i,kij,j->k", g, self.precision, g))

    def integrated(self) -> tuple[Array, Array, Array]:
        """The log of its integral over g (K,), and the normal distribution of g: means (K, 3), covariances."""
        covariance = np.linalg.inv(self.precision)
        mean = np.einsum("kij,kj->ki", covariance, self.linear)
        logs = self.constant + 0.5 * (self.linear * mean).sum(axis=1) + 1.5 * LOG_2PI
        logs -= 0.5 * np.linalg.slogdet(self.precision)[1]
        return np.asarray(logs, dtype=float), np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float)


@dataclass(frozen=True)
class Estimate:
    """A posterior: mean, sd, quantiles, and the probability of being above 0."""

    mean: float
    sd: float
    q05: float
    q50: float
    q95: float
    positive: float


@dataclass(frozen=True)
class LatentMeans:
    """The slopes with the groups' means of x as unknowns.

    Attributes
    ----------
    within, between, contextual : Estimate
        The slopes, and between minus within, in units of y per unit of x.
    reliability : Estimate
        The share of the variance of a typical group's average of x that is that of the groups' means; typical is the
        harmonic mean of the group sizes.
    pareto_k, ess : of the importance sampling (k below 0.7 is good). trusted : whether both are good enough.
    """

    within: Estimate
    between: Estimate
    contextual: Estimate
    reliability: Estimate
    pareto_k: float
    ess: float

    @property
    def trusted(self) -> bool:
        """Whether the importance sampling can be relied on."""
        return self.pareto_k < WORST_K and self.ess >= FEWEST


def sums_of(groups: Averages, units: tuple[float, float] = (1.0, 1.0)) -> Sums:
    """Sums of centred x and y, divided by their units."""
    own = [
        ((values - at) / unit, (mean - at) / unit)
        for values, mean, at, unit in zip(
            (groups.x, groups.y), (groups.x_mean, groups.y_mean), groups.centre, units, strict=True
        )
    ]
    (x, x_mean), (y, y_mean) = own
    dx, dy = x - x_mean[groups.codes], y - y_mean[groups.codes]
    size, place = np.unique(groups.sizes, return_inverse=True)

    def total(part: Array) -> Array:
        return np.bincount(place, part, minlength=len(size)).astype(float)

    return Sums(
        size=size, count=total(np.ones(len(x_mean))), x=total(x_mean), y=total(y_mean), xx=total(x_mean**2),
        xy=total(x_mean * y_mean), yy=total(y_mean**2), within=(float(dx @ dx), float(dx @ dy), float(dy @ dy)),
        rows=len(x), groups=len(groups.sizes), log_sizes=float(np.log(groups.sizes).sum()),
    )  # fmt: skip


def likelihood(sums: Sums, psi: Array) -> Quadratic:
    """The log density of all x and y at nodes psi (K, 5), as a function of g = (m, a, b_w)."""
    tau_x, sigma_x, tau, sigma = np.exp(2 * psi[:, :4]).T
    b = psi[:, 4, None]
    noise = sigma_x[:, None] / sums.size
    v = tau_x[:, None] + noise
    known, unknown = tau_x[:, None] / v, noise / v
    spread = tau[:, None] + sigma[:, None] / sums.size + b * b * tau_x[:, None] * unknown
    slope, pull = b * known, b * unknown
    xx, xy, yy = sums.within
    free = sums.rows - sums.groups
    constant = -sums.rows * LOG_2PI - sums.log_sizes - 0.5 * free * np.log(sigma_x * sigma)
    constant -= 0.5 * (xx / sigma_x + yy / sigma)
    constant -= 0.5 * (sums.count * (np.log(v) + np.log(spread)) + sums.xx / v).sum(axis=1)
    constant -= 0.5 * ((sums.yy - 2 * slope * sums.xy + slope**2 * sums.xx) / spread).sum(axis=1)
    z, zx = (sums.y - slope * sums.x) / spread, (sums.xy - slope * sums.xx) / spread
    linear = np.stack(
        [(sums.x / v + pull * z).sum(axis=1), z.sum(axis=1), zx.sum(axis=1) + xy / sigma], axis=1
    )  # fmt: skip
    one, x, x2 = sums.count / spread, sums.x / spread, sums.xx / spread
    precision = np.empty((len(psi), 3, 3))
    precision[:, 0, 0] = (sums.count / v + pull**2 * one).sum(axis=1)
    precision[:, 0, 1] = precision[:, 1, 0] = (pull * one).sum(axis=1)
    precision[:, 0, 2] = precision[:, 2, 0] = (pull * x).sum(axis=1)
    precision[:, 1, 1] = one.sum(axis=1)
    precision[:, 1, 2] = precision[:, 2, 1] = x.sum(axis=1)
    precision[:, 2, 2] = x2.sum(axis=1) + xx / sigma
    return Quadratic(constant, linear, precision)


def prior(priors: LatentPriors, psi: Array, centre: tuple[float, float], units: tuple[float, float]) -> Quadratic:
    """The log prior of (psi, g) in the units of the computation, up to the constants of flat ones."""
    across, up = units
    per = up / across
    count = len(psi)
    constant, linear, precision = np.zeros(count), np.zeros((count, 3)), np.zeros((count, 3, 3))
    for column, (distribution, unit) in enumerate(
        [(priors.tau_x, across), (priors.sigma_x, across), (priors.tau, up), (priors.sigma, up)]
    ):
        constant += distribution.log_density(np.exp(psi[:, column]) * unit) + psi[:, column] + math.log(unit)
    away = (priors.intercept_at - centre[0]) / across
    # each line: a linear form of g, what is added to it at each node, and its prior in the units of the computation
    lines = [
        (np.array([1.0, 0, 0]), np.zeros(count), _scaled(priors.mean_x, centre[0], across)),
        (np.array([0, 1.0, away]), away * psi[:, 4], _scaled(priors.intercept, centre[1], up)),
        (np.array([0, 0, 1.0]), np.zeros(count), _scaled(priors.within, 0.0, per)),
        (np.array([0, 0, 1.0]), psi[:, 4], _scaled(priors.between, 0.0, per)),
    ]
    for form, added, gauss in lines:
        rest = gauss.mean - added
        constant += gauss.log_constant - 0.5 * gauss.precision * rest**2
        linear += gauss.precision * rest[:, None] * form
        precision += gauss.precision * np.outer(form, form)
    return Quadratic(constant, linear, precision)


def _scaled(gauss: Gauss, origin: float, unit: float) -> Gauss:
    return Gauss((gauss.mean - origin) / unit, gauss.sd / unit)


def joint(sums: Sums, priors: LatentPriors, centre: tuple[float, float], units: tuple[float, float]) -> Callable[
    [Array], Quadratic
]:  # fmt: skip
    """The log density of data and unknowns as a function of psi (K, 5)."""

    def at(psi: Array) -> Quadratic:
        rows, before = likelihood(sums, psi), prior(priors, psi, centre, units)
        return Quadratic(
            rows.constant + before.constant, rows.linear + before.linear, rows.precision + before.precision
        )

    return at


def latent_means(groups: Averages, priors: LatentPriors, seed: int = 0) -> LatentMeans:
    """The posterior of the slopes when group means of x are unknown.

    Parameters
    ----------
    groups : Averages
        As `least_squares.averages_of` makes them of rows.
    priors : LatentPriors
    seed : int
        Of the quasi-random nodes.
    """
    units = (float(np.std(groups.x)), float(np.std(groups.y)))
    sums = sums_of(groups, units)
    density = joint(sums, priors, groups.centre, units)
    step = max(1, BLOCK // len(sums.size))

    start, spread, whitening = _start(groups, sums, units, priors)
    typical = whitening.typical

    def log_density(shown: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            psi, log_jacobian = whitening.psi(shown)
            logs = [_integrated(density, psi[k : k + step])[0] for k in range(0, len(psi), step)]
            return np.concatenate(logs) + log_jacobian

    found = refined(log_density, sample(log_density, start, spread, seed), seed)
    nodes, weights = found.significant(1e-9)
    nodes = whitening.psi(nodes)[0]
    parts = [_integrated(density, nodes[k : k + step])[1:] for k in range(0, len(nodes), step)]
    mean = np.concatenate([part[0] for part in parts])[:, 2]
    variance = np.concatenate([part[1] for part in parts])[:, 2, 2]
    per = units[1] / units[0]
    sd = np.sqrt(np.maximum(variance, 0.0)) * per
    contextual = nodes[:, 4] * per
    within = _mixture(weights, mean * per, sd)
    between = _mixture(weights, mean * per + contextual, sd)
    reliability = _reliability(nodes, typical)
    return LatentMeans(
        within, between, _weighted(weights, contextual), _weighted(weights, reliability), found.pareto_k,
        found.error**-2,
    )  # fmt: skip


def _reliability(psi: Array, typical: float) -> Array:
    """lambda (K,) of a group of typical size."""
    return np.asarray(1 / (1 + np.exp(2 * (psi[:, 1] - psi[:, 0])) / typical))


@dataclass(frozen=True)
class Whitening:
    """b_c = m(lambda) + s(lambda) z: about normal z whatever the reliability lambda, which b_c goes with.

    m and s are those of a regression of the averages, known to be lambda b_c, with the residual variance held fixed:
    information lambda² `information` of a slope `shown`; the prior's `precision` around `origin`.
    """

    typical: float
    information: float
    shown: float
    origin: float
    precision: float

    def psi(self, nodes: Array) -> tuple[Array, Array]:
        """psi (K, 5) from nodes whose last coordinate is z, and the log of the Jacobian (K,)."""
        known = _reliability(nodes, self.typical)
        total = self.information * known**2 + self.precision
        psi = nodes.copy()
        mean = (self.information * known * self.shown + self.precision * self.origin) / total
        psi[:, 4] = mean + nodes[:, 4] / np.sqrt(total)
        return psi, -0.5 * np.log(total)


def refined(log_density: Callable[[Array], Array], found: Sampled, seed: int) -> Sampled:
    """A sample drawn anew where the first cannot be relied on, from all that was learned of where the density lies.

    Each round's proposal is the mixture of a Student-t fitted to the weighted sample so far and those before it.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(44,)))
    parts: tuple[Proposal, ...] = ()
    for nodes_wanted in ROUNDS:
        if found.pareto_k < GOOD_K and found.error**-2 >= ENOUGH:
            break
        parts = (*parts, from_weighted(found.nodes, found.weights))
        nodes, log_q = Mixture(parts[-MOST_PARTS:]).points(Sobol(found.nodes.shape[1], rng).next(nodes_wanted))
        logs = np.nan_to_num(log_density(nodes), nan=-np.inf) - log_q
        smoothed, k = pareto_smooth(logs)
        ess = float(np.min(effective_sample_size(smoothed, nodes)))
        again = Sampled(nodes, normalise(smoothed), found.log_normaliser, ess**-0.5, k)
        found = again
    return found


def _integrated(density: Callable[[Array], Quadratic], psi: Array) -> tuple[Array, Array, Array]:
    """Log density (K,) of psi, and means (K, 3) and covariances of g; nodes that overflow have none."""
    quadratic = density(psi)
    bad = ~(np.isfinite(quadratic.constant) & np.isfinite(quadratic.precision).all(axis=(1, 2)))
    quadratic.precision[bad] = np.eye(3)
    quadratic.linear[bad] = 0.0
    logs, mean, covariance = quadratic.integrated()
    return np.where(bad, -np.inf, logs), mean, covariance


def _start(
    groups: Averages, sums: Sums, units: tuple[float, float], priors: LatentPriors
) -> tuple[Array, Array, Whitening]:
    """A first point from moments, about the sd of each coordinate, and the coordinate that stands for b_c."""
    slopes = least_squares(groups)
    per = units[1] / units[0]
    free = max(sums.rows - sums.groups, 1)
    xx, xy, yy = sums.within
    b, shown = slopes.within.estimate / per, slopes.contextual.estimate / per
    sigma_x = max(xx / free, 1e-8)
    sigma = max((yy - 2 * b * xy + b * b * xx) / free, 1e-8)
    typical = len(groups.sizes) / float((1 / groups.sizes).sum())
    square = max(float(sums.xx.sum()), 1e-8)
    spread = square / sums.groups
    tau_x = max(spread - sigma_x / typical, 0.1 * spread)
    slope = b + shown
    left = max(float((sums.yy - 2 * slope * sums.xy + slope**2 * sums.xx).sum()) / sums.groups, 1e-8)
    tau = max(left - sigma / typical, 0.1 * left)
    start = np.array([*(0.5 * np.log([tau_x, sigma_x, tau, sigma])), 0.0])
    few, many = 1 / math.sqrt(2 * sums.groups), 1 / math.sqrt(2 * free)
    precision = priors.between.precision * per**2
    whitening = Whitening(typical, square / left, shown, priors.between.mean / per - b, precision)
    return start, np.array([few * spread / tau_x, many, few * left / tau, many, 1.0]), whitening


def _mixture(weights: Array, mean: Array, sd: Array) -> Estimate:
    """Of a mixture of normals over the nodes."""
    from scipy.special import ndtr

    centre, spread, quantiles = mixture_summary(weights, mean[:, None], sd[:, None], QUANTILES)
    low, middle, high = (float(q) for q in np.ravel(quantiles))
    above = float(weights @ ndtr(mean / np.maximum(sd, 1e-300)))
    return Estimate(float(centre[0]), float(spread[0]), low, middle, high, above)


def _weighted(weights: Array, values: Array) -> Estimate:
    mean, sd = weighted_moments(values, weights)
    low, middle, high = (float(q) for q in weighted_quantile(values, weights, QUANTILES))
    return Estimate(float(mean), float(sd), low, middle, high, min(1.0, float(weights @ (values > 0))))
