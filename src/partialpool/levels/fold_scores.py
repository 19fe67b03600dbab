r"""How well complete, no and partial pooling predict rows that they have not seen: one fold.

Each row is scored by the squared error of its predicted mean and by its log predictive density,

.. math:: \log \frac{1}{S} \sum_s p(y_i \mid \eta_i^{(s)}, \phi^{(s)}),

over draws s. *Partial pooling* is the model refitted to the other rows; a group that it has not seen is integrated over
the population. *Complete pooling* is the same model without group terms, refitted under the same priors. *No pooling*
of a factor draws its effects from what their own rows say alone (`extremes.separate_draws`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import NewRows
from partialpool.design.predictor import LinearPredictor, RowVariance, row_variance
from partialpool.levels.extremes import mean_logs, separate_draws, sigma_square
from partialpool.posterior.predict import Source
from partialpool.posterior.response import JointSource
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

LOG_2PI = float(np.log(2 * np.pi))
#: Draws of separate estimates.
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Scores:
    """Of some rows: the predicted mean (counts where there are trials) and the log predictive density, each (rows,)."""

    predicted: Array
    log_density: Array

    def where(self, mask: NDArray[np.bool_], other: Scores) -> Scores:
        """These, and those of `other` where the mask says so."""
        return Scores(
            np.where(mask, other.predicted, self.predicted), np.where(mask, other.log_density, self.log_density)
        )


def log_mean(values: Array) -> Array:
    """Log of the mean of the exponentials over the last axis.

    Examples
    --------
    >>> log_mean(np.log([[1.0, 3.0]])).round(6).tolist() == np.log([2.0]).round(6).tolist()
    True
    """
    top = values.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(top[..., 0] + np.log(np.exp(values - top).mean(axis=-1)))


def normal_log_density(y: Array, mean: Array, variance: Array) -> Array:
    """Of y (rows, 1) under normals (rows, draws)."""
    return np.asarray(-0.5 * (LOG_2PI + np.log(variance) + (y - mean) ** 2 / variance))


# -- a posterior ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _GaussianScores(Source):
    """Mean and log density (rows, draws, 2) of each row; a new group's effect is integrated in closed form."""

    y: Array | None = None
    residual: RowVariance | None = None

    def block(self, number: int, rows: Ints) -> Array:
        eta = super().block(number, rows)
        assert self.y is not None and self.residual is not None
        own = self.residual.of(rows)
        variance = np.asarray(own.known)[:, None] + self._sigma**2 * np.asarray(own.share)[:, None]
        for factor in self.rows.factors:
            new = factor.codes[rows] < 0
            columns = self.rows.V[rows[new]][:, factor.columns]
            variance[new] += (np.einsum("rj,dji->rdi", columns, self._lambda(factor.factor)) ** 2).sum(axis=2)
        return np.stack([eta, normal_log_density(self.y[rows][:, None], eta, variance)], axis=2)


@dataclass(frozen=True, eq=False)
class _JointScores(JointSource):
    """The same of other responses; a new group's effects are drawn afresh for each row and draw."""

    def block(self, number: int, rows: Ints) -> Array:
        assert self.y is not None
        eta0 = self._predictor(self.rows, rows, number, 0)[0]
        eta1, eta2 = self._own(rows, number)
        family = self.fit.model.family
        trials = None if self.trials is None else np.broadcast_to(self.trials[rows][:, None], eta0.shape)
        mean = family.mean(eta0, eta1, eta2) * (1.0 if trials is None else trials)
        density = family.log_density_rows(self.y[rows][:, None], eta0, eta1, eta2, trials)
        return np.stack([mean, density], axis=2)


def posterior_scores(fit: Posterior, new: NewRows) -> Scores:
    """How a fit predicts rows that it has not seen."""
    design = fit.model.design
    factors = range(len(design.factors))
    every = np.arange(len(fit.result.draws_theta), dtype=np.int64)
    rows = LinearPredictor.of_new_rows(design, new, factors)
    source: Source
    if fit.model.exact:
        residual = row_variance(new, design.se_sigma)
        source = _GaussianScores(fit, rows, "linear", "average", None, every, None, new.y, residual)
    else:
        second = LinearPredictor.of_new_rows(design, new, factors, 1) if len(design.prefixes) > 1 else None
        source = _JointScores(
            fit, rows, "response", "population", None, every, None, second=second, trials=new.trials, y=new.y
        )
    out = np.empty((2, new.n_rows))
    for at, found in source.blocks(lambda block: np.stack([block[..., 0].mean(axis=1), log_mean(block[..., 1])])):
        out[:, at] = found
    return Scores(out[0], out[1])


# -- separate estimates -----------------------------------------------------------------------------------------------


def separate_scores(fit: Posterior, new: NewRows, factor: int, seed: int) -> tuple[Scores, NDArray[np.bool_]]:
    """How separate estimates of a factor's groups predict new rows, and which rows have none (nan there).

    fit : of the other rows. A group that these have not has no estimate of its own: the mean of the separate ones
    stands for it, with their spread about it.
    """
    design, rng = fit.model.design, np.random.default_rng(seed)
    drawn = separate_draws(fit, factor, DRAWS, rng)
    drawn[factor] = _with_mean(drawn[factor], rng)
    for f in drawn:
        if f != factor:
            drawn[f] = np.concatenate([drawn[f], _of_population(fit, f, rng)])
    eta0 = _predictor(fit, new, drawn, 0)
    first, second = mean_logs(fit)
    assert new.y is not None
    y = new.y[:, None]
    if fit.model.exact:
        residual = row_variance(new, design.se_sigma)
        square = sigma_square(fit)
        own = np.asarray(residual.known) + square * np.asarray(residual.share)
        variance = np.broadcast_to(np.broadcast_to(own, new.y.shape)[:, None], eta0.shape)
        mean, density = eta0, normal_log_density(y, eta0, variance)
    else:
        eta1 = _predictor(fit, new, drawn, 1) if len(design.prefixes) > 1 else np.full((1, 1), first)
        trials = None if new.trials is None else np.broadcast_to(new.trials[:, None], eta0.shape)
        mean = fit.model.family.mean(eta0, eta1, second) * (1.0 if trials is None else trials)
        density = fit.model.family.log_density_rows(y, eta0, eta1, second, trials)
    lacking = np.asarray(~np.isfinite(eta0).all(axis=1))
    with np.errstate(invalid="ignore"):
        return Scores(mean.mean(axis=1), log_mean(density)), lacking


def _predictor(fit: Posterior, new: NewRows, drawn: dict[int, Array], which: int) -> Array:
    """A linear predictor (rows, draws) from draws of effects, the last "group" of which stands for all new ones."""
    design = fit.model.design
    rows = LinearPredictor.of_new_rows(design, new, range(len(design.factors)), which)
    every = np.arange(new.n_rows, dtype=np.int64)
    weights = node_weights(fit.result)
    eta = np.repeat(rows.common((weights @ fit.result.beta_mean)[None, :], every), DRAWS, axis=1)
    for own in rows.factors:
        effects = np.ascontiguousarray(drawn[own.factor])
        place = np.where(own.codes < 0, len(effects) - 1, own.codes).astype(np.int64)
        rows.add_effects(eta, own, effects, place, every)
    return eta


def _with_mean(drawn: Array, rng: np.random.Generator) -> Array:
    """The draws (groups, q, draws) and those of a new group: the mean of the separate estimates, with their spread."""
    known = np.isfinite(drawn).all(axis=(1, 2))
    q, count = drawn.shape[1:]
    if known.sum() < 2:
        return np.concatenate([drawn, np.full((1, q, count), np.nan)])
    estimates = drawn[known].mean(axis=2)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(estimates.T)))
    spread = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.concatenate([drawn, (drawn[known].mean(axis=0) + spread @ rng.standard_normal((q, count)))[None]])


def _of_population(fit: Posterior, factor: int, rng: np.random.Generator) -> Array:
    """Draws (1, q, draws) of a new group of another factor, from its population at the posterior mean of theta."""
    hyper = fit.model.hyperparameters
    q, at = hyper.widths[factor], hyper.lam_at[factor]
    theta = (node_weights(fit.result) @ fit.result.theta)[None, :]
    lam = hyper.factors(theta)[0, at : at + q * q].reshape(q, q)
    return np.asarray((lam @ rng.standard_normal((q, DRAWS)))[None])


def by_cluster(values: Array, weights: Array, clusters: Sequence[int] | Ints) -> tuple[float, float]:
    """Weighted mean of rows' values, and its standard error with the rows of a cluster taken together.

    Examples
    --------
    >>> by_cluster(np.array([1.0, 1.0, 3.0, 3.0]), np.ones(4), [0, 0, 1, 1])
    (2.0, 1.0)
    """
    total = float(weights.sum())
    mean = float(weights @ values) / total
    parts = np.bincount(np.asarray(clusters), weights=weights * (values - mean))
    met = np.bincount(np.asarray(clusters)) > 0
    count = int(met.sum())
    if count < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(count / (count - 1) * (parts[met] ** 2).sum()) / total)
