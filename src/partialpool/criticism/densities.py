r"""The log density of each unit of the data over the posterior: what WAIC and DIC are made of.

Two ways of looking at a hierarchical model, which answer two questions (Spiegelhalter, Best, Carlin and van der Linde,
2002; Merkle, Furr and Rabe-Hesketh, 2019, Psychometrika 84, 802-829):

* *conditional*: group effects count as parameters. A unit is a row, its density :math:`p(y_i \mid \beta, u, \phi)`: how
  well are other rows of the *same* groups predicted?
* *marginal*: group effects are integrated over their population. A unit is a group, its density
  :math:`p(y_g \mid \beta, \theta) = \int p(y_g \mid \beta, u_g, \phi)\, p(u_g \mid \theta)\, du_g`: how well are *other
  groups* predicted? With several factors it is the effects of the leaf (the factor with most effects) that are
  integrated, given draws of the others'.

Over the posterior, of every unit: the log of the mean density, the mean and the variance of the log density. All are
computed block by block of units, never for all rows and draws at once.

*Gaussian rows.* With one factor or none, given theta the linear predictor of a row is normal, with mean m and variance
v (`gaussian_rows`), and with :math:`d = y - m` and s the row's residual variance

.. math:: E[p] = N(d; 0, s + v), \quad E[\log p] = -\tfrac12\log 2\pi s - \frac{d^2 + v}{2s}, \quad
          \mathrm{Var}(\log p) = \frac{4 d^2 v + 2 v^2}{4 s^2},

which leaves only theta to the nodes of the engine and their weights. Elsewhere the draws of the fit are used, or (other
families, marginal) the nodes, each group integrated by the quadrature of the engine.

*Error.* Draw s moves the sum of :math:`\log E p_i - \mathrm{Var}(\log p_i)` by
:math:`\sum_i p_{is} / E p_i - 1 - [(\log p_{is} - E \log p_i)^2 - \mathrm{Var}(\log p_i)]`, over the number of draws:
the Monte Carlo standard error of a total.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.gaussian_rows import gaussian_row_moments
from partialpool.criticism.leaf_densities import efficiency_of_draws, leaf_blocks, weighted_normal
from partialpool.design.predictor import LinearPredictor, RowVariance, row_variance
from partialpool.levels.extremes import mean_logs
from partialpool.posterior.predict import Source, draws_used, linear_means, need_rows
from partialpool.posterior.response import DENSITY, joint_source
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Rows times draws that the variance of the deviance may take, and the fewest draws.
MOST_COMPUTED, FEWEST = 100_000_000, 400


@dataclass(frozen=True, eq=False)
class UnitMoments:
    """Of the log density of U units, over the posterior.

    Attributes
    ----------
    log_mean : (U,) log E[p]. mean, variance : (U,) E[log p] and Var(log p).
    at_means : (U,) log p at the posterior means of coefficients, effects and the logs of sds.
    total_variance : Var(sum log p), nan where it is not asked for.
    errors : Monte Carlo standard errors of the sums of log_mean - variance ("waic2") and of mean ("mean").
    """

    log_mean: Array
    mean: Array
    variance: Array
    at_means: Array
    total_variance: float
    errors: dict[str, float]


def conditional_moments(fit: Posterior) -> UnitMoments:
    """Of the rows, given their groups' effects; kept by the fit."""
    need_rows(fit, "An information criterion")
    cached: UnitMoments | None = fit.__dict__.get("_conditional_moments")
    if cached is None:
        design = fit.model.design
        at_means = _rows_at_means(fit)
        if fit.model.exact and len(design.factors) < 2:
            found = gaussian_row_moments(fit)
            cached = UnitMoments(found.log_mean, found.mean, found.variance, at_means, float("nan"), found.errors)
        else:
            source = _row_source(fit)
            draws = len(source.draws)
            weights = np.full(draws, 1 / draws)
            blocks: Iterable[tuple[Any, Any]] = source.blocks(_of_block)  # type: ignore[arg-type]
            cached = _gathered(blocks, design.n_rows, weights, efficiency_of_draws(fit, draws), at_means)
        fit.__dict__["_conditional_moments"] = cached
    return cached


def conditional_total_variance(fit: Posterior) -> float:
    """Var(sum of the rows' log densities), which the closed form does not have: from draws."""
    found = conditional_moments(fit)
    if np.isfinite(found.total_variance):
        return found.total_variance
    source = _row_source(fit)
    most = max(FEWEST, MOST_COMPUTED // fit.model.design.n_rows)
    source = replace(source, draws=source.draws[: max(most, 1)] if not fit.result.chains else _thinned(source, most))
    total = np.zeros(len(source.draws))
    for _, own in source.blocks(lambda block: block.sum(axis=0)):
        total += own
    return float(total.var(ddof=1))


def _thinned(source: Source, most: int) -> Ints:
    """Some draws of chains, as far apart as can be."""
    places = np.linspace(0, len(source.draws) - 1, min(most, len(source.draws)))
    return np.asarray(source.draws[np.unique(places.astype(np.int64))])


def marginal_moments(fit: Posterior) -> UnitMoments | None:
    """Of the groups of the leaf, its effects integrated; None where the model has no groups. Kept by the fit."""
    need_rows(fit, "An information criterion")
    if not fit.model.design.factors:
        return None
    cached: UnitMoments | None = fit.__dict__.get("_marginal_moments")
    if cached is None:
        found = leaf_blocks(fit)
        pieces = ((units, _of_block(values, found.weights)) for units, values in found.blocks())
        cached = _gathered(pieces, found.groups, found.weights, found.efficiency, found.at_means())
        fit.__dict__["_marginal_moments"] = cached
    return cached


# -- moments of a block -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Block:
    """Moments of some units, and sums over them by draw: of log p, of p / E p - 1, of (log p - mean)^2 - variance."""

    log_mean: Array
    mean: Array
    variance: Array
    total: Array
    ratio: Array
    square: Array


def _of_block(values: Array, weights: Array | None = None) -> _Block:
    """Of log densities (units, draws)."""
    count = values.shape[1]
    share = np.full(count, 1 / count) if weights is None else weights
    with np.errstate(all="ignore"):
        top = values.max(axis=1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        scaled = np.exp(values - top)
        mean_density = scaled @ share
        mean = values @ share
        square = (values - mean[:, None]) ** 2
        # The variance of draws is that of a sample: over S - 1.
        variance = square @ share / (1 - float(share @ share)) if count > 1 else np.zeros(len(values))
        return _Block(
            top[:, 0] + np.log(mean_density), mean, variance, values.sum(axis=0),
            (scaled / mean_density[:, None] - 1).sum(axis=0), (square - variance[:, None]).sum(axis=0),
        )  # fmt: skip


def _gathered(
    blocks: Iterable[tuple[Any, Any]], units: int, weights: Array, efficiency: float, at_means: Array
) -> UnitMoments:
    log_mean, mean, variance = np.empty(units), np.empty(units), np.empty(units)
    total, ratio, square = (np.zeros(len(weights)) for _ in range(3))
    for at, own in blocks:
        log_mean[at], mean[at], variance[at] = own.log_mean, own.mean, own.variance
        total += own.total
        ratio += own.ratio
        square += own.square
    with np.errstate(invalid="ignore"):
        moved = total - weights @ total
        spread = float(weights @ moved**2) / (1 - float(weights @ weights)) if len(weights) > 1 else 0.0
    moves = {"waic2": ratio - square, "mean": moved}
    with np.errstate(invalid="ignore"):
        errors = {name: float(np.sqrt(np.sum((weights * move) ** 2) / efficiency)) for name, move in moves.items()}
    return UnitMoments(log_mean, mean, variance, at_means, spread, errors)


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _GaussianDensity(Source):
    """Log densities (rows, draws) of the rows of a Gaussian fit."""

    residual: RowVariance | None = None

    def block(self, number: int, rows: Ints) -> Array:
        eta = super().block(number, rows)
        design = self.fit.model.design
        assert self.residual is not None
        own = self.residual.of(rows)
        variance = np.asarray(own.known)[:, None] + self._sigma**2 * np.asarray(own.share)[:, None]
        return weighted_normal(design.y[rows][:, None] - eta, variance, design.weights, rows)


def _row_source(fit: Posterior) -> Source:
    design = fit.model.design
    factors = range(len(design.factors))
    rows = LinearPredictor.of_design(design, factors)
    draws = draws_used(fit, rows, None)
    if not fit.model.exact:
        return replace(joint_source(fit, None, factors, DENSITY, "error"), draws=draws)
    residual = row_variance(design, design.se_sigma)
    return _GaussianDensity(fit, rows, "linear", "error", None, draws, None, residual)


def _rows_at_means(fit: Posterior) -> Array:
    """log p of each row at the posterior means of coefficients, effects and the logs of sds."""
    design = fit.model.design
    factors = range(len(design.factors))
    every = np.arange(design.n_rows, dtype=np.int64)
    eta = linear_means(fit, LinearPredictor.of_design(design, factors))
    if fit.model.exact:
        variance = row_variance(design, design.se_sigma).at(np.exp(_mean_log_sigma(fit)))
        spread = np.broadcast_to(variance, eta.shape)[:, None]
        return weighted_normal((design.y - eta)[:, None], spread, design.weights, every)[:, 0]
    first, second = mean_logs(fit)
    own: Any = first
    if len(design.prefixes) > 1:
        own = linear_means(fit, LinearPredictor.of_design(design, factors, 1))
    value = fit.model.family.log_density_rows(design.y, eta, own, second, design.trials)
    return value if design.weights is None else value * design.weights


def _mean_log_sigma(fit: Posterior) -> float:
    at = fit.model.hyperparameters.sigma_at
    return -np.inf if at is None else float(node_weights(fit.result) @ fit.result.theta[:, at])
