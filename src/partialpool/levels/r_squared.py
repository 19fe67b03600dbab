r"""R-squared: of the whole model, and of each level.

*Of the model* (Nakagawa and Schielzeth, 2013; with slopes that vary, Johnson, 2014): with :math:`\sigma_f^2` the
variance over the rows of what the predictors give, :math:`\sigma_l^2` that of level l, averaged over the rows, and
:math:`\sigma_\epsilon^2` that of single rows,

.. math:: R^2_{marginal} = \frac{\sigma_f^2}{\sigma_f^2 + \sum \sigma_l^2 + \sigma_\epsilon^2}, \qquad
          R^2_{conditional} = \frac{\sigma_f^2 + \sum \sigma_l^2}{\sigma_f^2 + \sum \sigma_l^2 + \sigma_\epsilon^2}.

On the scale of the response the same follows from the law of total variance: :math:`\sigma_f^2` is the variance over
the rows of E y, the others are those of :mod:`partialpool.levels.response_scale`.

*Of a level* (Gelman and Pardoe, 2006): the coefficients of its groups are a predictor and a rest,
:math:`\theta_j = w_j'\beta + u_j`, the predictor being what does not vary within groups (for a slope: the
interactions of its column with such) and the effects of the groups that contain it. Then

.. math:: R^2 = 1 - \frac{\mathrm{E}\,V_j(u_j)}{\mathrm{E}\,V_j(\theta_j)},

V the variance over the groups and E the posterior mean. For rows, theta is y and u the residual.

Gelman, A. and Pardoe, I. (2006). Bayesian measures of explained variance and pooling in multilevel (hierarchical)
models. Technometrics 48, 241-251. Johnson, P. C. D. (2014). Extension of Nakagawa and Schielzeth's R2_GLMM to random
slopes models. Methods in Ecology and Evolution 5, 944-946. Nakagawa, S. and Schielzeth, H. (2013). A general and simple
method for obtaining R2 from generalized linear mixed-effects models. Methods in Ecology and Evolution 4, 133-142.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.design.predictor import LinearPredictor, factor_columns, factor_predictors
from partialpool.model import Model
from partialpool.posterior.components import coarser_factors, row_shares
from partialpool.posterior.groups import effect_draws, factor_terms, layout_of

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Draws that are used, the fewest of them, and how many numbers may be drawn before it is fewer.
MOST_DRAWS, FEWEST_DRAWS, MOST_DRAWN = 1000, 100, 400_000
#: Error, relative to its largest value, with which a column counts as a multiple of another within groups.
EXACT = 1e-9
#: Families whose rows have a residual on the scale of the predictor.
WITH_RESIDUAL = ("gaussian", "student_t", "lognormal")


@dataclass(frozen=True, eq=False)
class LevelExplained:
    """R-squared of one batch of coefficients: `value` of Gelman and Pardoe, `draws` (D,) of 1 - V(u) / V(theta).

    predictors, parents : what explains: whether predictors take part, and the coarser factors that do.
    """

    level: str
    term: str
    value: float
    draws: Array
    predictors: bool = True
    parents: tuple[str, ...] = ()


def predicted_variance(model: Model, beta: Array) -> Array:
    """The variance over the rows (K,) of what the predictors of the mean give, without offset; beta (K, p)."""
    covariance = _covariance(model)
    own = np.flatnonzero(model.design.x_predictor == 0)
    return np.asarray(np.maximum(np.einsum("ki,ij,kj->k", beta[:, own], covariance, beta[:, own]), 0.0))


def variance_over_rows(values: Array, shares: Array, design: Design) -> Array:
    """The variance over the rows (K,) of values (K, n) of distinct rows that count `shares`, with n - 1 below."""
    mean = values @ shares
    return np.asarray(((values - mean[:, None]) ** 2) @ shares * _of_sample(design))


def _covariance(model: Model) -> Array:
    cached: Array | None = model.__dict__.get("_predictor_covariance")
    if cached is None:
        design = model.design
        x = design.V[:, design.x_columns[design.x_predictor == 0]]
        shares = row_shares(design)
        away = x - shares @ x
        cached = model.__dict__["_predictor_covariance"] = away.T @ (away * shares[:, None]) * _of_sample(design)
    return cached


def _of_sample(design: Design) -> float:
    count = float(design.n_rows if design.weights is None else design.weights.sum())
    return count / (count - 1.0) if count > 1.0 else 1.0


# -- by level ----------------------------------------------------------------------------------------------------------


def level_r_squared(fit: Posterior) -> list[LevelExplained]:
    """R-squared of each level's coefficients, and of the rows where these have a residual on the predictor's scale."""
    design = fit.model.design
    drawn = _draw(fit)
    out = [_explained_rows(fit, drawn)] if fit.model.family.name in WITH_RESIDUAL else []
    for factor, own in enumerate(design.factors):
        if len(own.labels) < 2:
            continue
        positions = np.flatnonzero(factor_predictors(design)[factor] == 0)
        if positions.size:
            out += _explained_factor(fit.model, drawn, factor, positions)
    return out


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Some of a fit's draws: coefficients (D, p), and by factor the effects (D, groups, effects)."""

    beta: Array
    effects: tuple[Array, ...]


def _draw(fit: Posterior) -> _Drawn:
    """All effects at once, which costs as much as those of one factor; fewer draws where there are many of them."""
    layout = layout_of(fit.model)
    positions = [layout.effects_of(factor) for factor in range(len(fit.model.design.factors))]
    size = sum(own.size for own in positions)
    total = len(fit.result.draws_theta)
    most = MOST_DRAWS if fit.model.exact else MOST_DRAWS // 2
    count = min(total, most, max(FEWEST_DRAWS, MOST_DRAWN // max(size, 1)))
    draws = np.arange(count, dtype=np.int64)
    if fit.result.chains:
        draws = np.linspace(0, total - 1, count).astype(np.int64)
    effects: list[Array] = []
    if positions:
        every = effect_draws(fit, draws).of(np.concatenate([own.ravel() for own in positions]))
        ends = np.cumsum([own.size for own in positions])[:-1]
        parts = zip(positions, np.split(every, ends, axis=1), strict=True)
        effects = [part.reshape(count, *own.shape) for own, part in parts]
    return _Drawn(fit.result.draws_beta[draws], tuple(effects))


def _explained_factor(model: Model, drawn: _Drawn, factor: int, positions: Ints) -> list[LevelExplained]:
    design = model.design
    columns = factor_columns(design)[factor]
    beta = drawn.beta
    out = []
    for position in positions:
        rest = drawn.effects[factor][:, :, position]
        weights = group_predictors(design, factor, int(columns[position]))
        own = np.flatnonzero(design.x_predictor == 0)
        predicted = bool((np.ptp(weights, axis=0) > EXACT * np.abs(weights).max(axis=0)).any())
        weights -= weights[0]  # what all groups have in common does not differ between them
        theta = rest + beta[:, own] @ weights.T if weights.any() else rest
        containing = _containing(model, factor, int(columns[position]))
        for other, place in containing:
            parent = _parents(design, factor, other)
            theta = theta + drawn.effects[other][:, parent, place]
        name = factor_terms(design, factor)[position]
        found = _explained(design.factors[factor].name, name, rest.var(axis=1), theta.var(axis=1))
        parents = tuple(design.factors[other].name for other, _ in containing)
        out.append(replace(found, predictors=predicted, parents=parents))
    return out


def _explained(level: str, term: str, rest: Array, whole: Array) -> LevelExplained:
    ratio = np.where(whole > 0, rest / np.where(whole > 0, whole, 1.0), 1.0)
    value = 1.0 - float(rest.mean()) / float(whole.mean()) if whole.mean() > 0 else 0.0
    return LevelExplained(level, term, value, 1.0 - ratio)


def group_predictors(design: Design, factor: int, column: int) -> Array:
    """What the predictors of the mean give to a group's coefficient of a column of V, (groups, p of the mean).

    A predictor takes part where it is w times the column in all rows of each group; w is its entry, which is the
    predictor itself for an intercept.
    """
    own = design.factors[factor]
    count = len(own.labels)
    z = design.V[:, column]
    square = np.bincount(own.codes, z * z, minlength=count)
    x_columns = design.x_columns[design.x_predictor == 0]
    out = np.zeros((count, len(x_columns)))
    for k, x_column in enumerate(x_columns):
        x = design.V[:, x_column]
        ratio = np.bincount(own.codes, z * x, minlength=count) / np.where(square > 0, square, 1.0)
        if np.abs(x - ratio[own.codes] * z).max() <= EXACT * max(float(np.abs(x).max()), 1e-300):
            out[:, k] = ratio
    return out


def _containing(model: Model, factor: int, column: int) -> list[tuple[int, int]]:
    """The coarser factors whose groups contain this one's and have an effect in the same column; which effect it is."""
    columns, predictors = factor_columns(model.design), factor_predictors(model.design)
    out = []
    for other in coarser_factors(model, factor):
        place = np.flatnonzero((columns[other] == column) & (predictors[other] == 0))
        if place.size:
            out.append((other, int(place[0])))
    return out


def _parents(design: Design, factor: int, other: int) -> Ints:
    """The group of a coarser factor that each group lies in."""
    parent = np.zeros(len(design.factors[factor].labels), dtype=np.int64)
    parent[design.factors[factor].codes] = design.factors[other].codes
    return parent


def _explained_rows(fit: Posterior, drawn: _Drawn) -> LevelExplained:
    design = fit.model.design
    y = np.log(design.y) if fit.model.family.name == "lognormal" else design.y
    if design.offset is not None:
        y = y - design.offset
    rows = LinearPredictor.of_design(design, range(len(design.factors)))
    most = max(FEWEST_DRAWS, MOST_DRAWN // design.n_rows)
    draws = np.unique(np.linspace(0, len(drawn.beta) - 1, min(len(drawn.beta), most)).astype(np.int64))
    every = np.arange(design.n_rows, dtype=np.int64)
    eta = rows.common(drawn.beta[draws], every)
    for part in rows.factors:
        effects = np.ascontiguousarray(np.moveaxis(drawn.effects[part.factor][draws], 0, 2))
        rows.add_effects(eta, part, effects, part.codes.astype(np.int64), every)
    if design.offset is not None:
        eta -= design.offset[:, None]
    shares = row_shares(design)
    rest = y[:, None] - eta
    rest -= shares @ rest
    whole = float(shares @ (y - shares @ y) ** 2)
    return _explained("rows", "", shares @ rest**2, np.full(len(draws), whole))
