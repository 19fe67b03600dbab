r"""The two extremes between which a hierarchical model lies.

*Complete pooling*: the same formula without its group terms, fitted by least squares or maximum likelihood.

*No pooling* of a factor: each group's effects :math:`\hat u_j` by maximum likelihood from its own rows, without a
population (`posterior.unpooled`), and their covariance, the inverse of the rows' information at the estimate

.. math:: \mathrm{Cov}(\hat u_j) = \Bigl(\sum_{i \in j} -\frac{\partial^2 \log p(y_i)}{\partial \eta_i^2} z_i z_i'
          \Bigr)^{-1},

which for a Gaussian response is :math:`\sigma^2 (Z_j' D Z_j)^{-1}`. Coefficients, sigma and the sds of other factors
are held at their posterior means, and the standard errors take them for known. Where all coefficients of a group's
rows vary by group this is each group's own regression, whatever is held. Where some do not, estimating these together
with an intercept for each group would move the estimates little, and it is impossible where a predictor is constant
within groups.

With several factors, what a group adds must not be mixed up with what others add. Effects of *coarser* factors, whose
groups contain this one's, are held at their posterior means: a class's effect is what it adds to its school, in partial
pooling too, and a class without a population of classes would swallow its school's effect. Effects of *finer and
crossed* factors are integrated out: the sd of the factor in question alone is made infinite. Held at their posterior
means they would hide what is asked: the means of a school's classes already hold what the population of schools made of
it. (An indicator for each group of every factor, the other reading of no pooling, does not tell schools from their
classes.) Where the response is not Gaussian see `marginal_estimates`; of the factor with most effects all others are
held there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.cholesky import LeafRoot
from partialpool.algebra.structure import CrossProducts
from partialpool.design.predictor import LinearPredictor, factor_columns, factor_predictors
from partialpool.design.subset import without_groups
from partialpool.errors import InferenceError
from partialpool.inference.gaussian import GaussianMarginal, statistics
from partialpool.levels.marginal_estimates import integrates_others, marginal_estimates
from partialpool.levels.pooling_factor import with_response
from partialpool.model import Model
from partialpool.posterior.components import coarser_factors
from partialpool.posterior.groups import layout_of, mean_coefficients, mean_effects
from partialpool.posterior.predict import linear_means
from partialpool.posterior.summaries import node_weights
from partialpool.posterior.unpooled import normal_equations, unpooled_effects
from partialpool.spec.families import Family

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Steps of the second differences, in units of the rows' own standard errors and on log scales.
STEP = 1e-3
#: The sd that stands for an infinite one, in units of the groups' own sd or standard error.
FLAT = 3e3
#: Coefficients on a link scale beyond which a maximum-likelihood estimate is an infinite one on its way.
INFINITE = 30.0


def completely_pooled(model: Model) -> Model:
    """The model without its group terms, under the same priors."""
    out = Model(without_groups(model.design), model.priors, model.family)
    out.__dict__["column_means"] = model.column_means
    return out


def complete_coefficients(fit: Posterior) -> Array:
    """Coefficients (p,) of complete pooling, by least squares or maximum likelihood; nan where there is no estimate."""
    model = fit.model
    if not model.coefficients.names:
        return np.empty(0)
    if model.exact and not (model.design.se is not None and model.has_sigma):
        p = len(model.coefficients.names)
        products = statistics(model).cross.gxx.reshape(p + 1, p + 1)
        products = np.tril(products) + np.tril(products, -1).T
        size = np.sqrt(np.maximum(np.diagonal(products)[:p], np.finfo(float).tiny))
        shift = np.linalg.lstsq(products[:p, :p] / np.outer(size, size), products[:p, p] / size, rcond=None)[0] / size
        return np.asarray(model.coefficients.to_public(shift + np.asarray(model.coefficients.mean)))
    try:
        found = completely_pooled(model).maximum_likelihood(threads=fit.result.settings.threads).estimates
    except (InferenceError, np.linalg.LinAlgError):
        return np.full(len(model.coefficients.names), np.nan)
    beta = np.array([found[name] for name in model.coefficients.names])
    size = np.abs(model.coefficients.from_public(beta) * _sizes(model))  # the intercept at the mean of the predictors
    if model.family.link != "identity" and (size > INFINITE).any():  # a category whose rows are all of one kind
        beta[size > INFINITE] = np.nan
    return beta


def _sizes(model: Model) -> Array:
    """The spread of each coefficient's column, 1 for a constant."""
    spread = model.design.V[:, model.design.x_columns].std(axis=0)
    return np.asarray(np.where(spread > 0, np.minimum(spread, 1.0), 1.0))


# -- no pooling -------------------------------------------------------------------------------------------------------


def separate_estimates(fit: Posterior, factor: int) -> tuple[Array, Array]:
    """Estimates and standard errors, each (groups, q), of a factor's effects without pooling; nan where none exists."""
    separate = unpooled_effects(fit, factor)
    if fit.model.exact and len(fit.model.design.factors) > 1:
        engine, arguments, positions = _unpooled_engine(fit, factor)
        moments = engine.moments(*arguments, np.empty((1, 0)), effects=True)
        known = np.isfinite(separate)
        error = np.sqrt(np.maximum(moments.u_var[0][positions], 0.0))
        return np.where(known, moments.u_mean[0][positions], np.nan), np.where(known, error, np.nan)
    if len(coarser_factors(fit.model, factor)) + 1 < len(fit.model.design.factors) and integrates_others(fit, factor):
        return marginal_estimates(fit, factor, np.asarray(np.isfinite(separate).all(axis=1)))
    with np.errstate(invalid="ignore"):
        variance = np.einsum("gii->gi", separate_covariances(fit, factor, separate))
        return separate, np.sqrt(variance)


def separate_draws(fit: Posterior, factor: int, count: int, rng: np.random.Generator) -> dict[int, Array]:
    """Draws (groups, q, count) of every factor's effects where `factor` is not pooled, nan where it has no estimate.

    They are what the rows alone say (a flat population), the rest at its posterior mean. The effects of factors that do
    not contain this one are drawn with them where the response is Gaussian; all others are at their posterior means.
    """
    layout = layout_of(fit.model)
    factors = range(len(fit.model.design.factors))
    separate = unpooled_effects(fit, factor)
    means = mean_effects(fit)
    if fit.model.exact and len(factors) > 1:
        engine, (lams, inv_vars), _ = _unpooled_engine(fit, factor)
        normals = rng.standard_normal((count, layout.n_effects))
        drawn = engine.draws(np.repeat(lams, count, 0), np.repeat(inv_vars, count), np.empty((count, 0)), normals)
        out = {f: np.ascontiguousarray(np.moveaxis(drawn[:, layout.effects_of(f)], 0, 2)) for f in factors}
        out[factor][~np.isfinite(separate).all(axis=1)] = np.nan
        return out | {f: _repeated(means[layout.effects_of(f)], count) for f in coarser_factors(fit.model, factor)}
    covariance = separate_covariances(fit, factor, separate)
    known = np.isfinite(covariance).all(axis=(1, 2))
    out = {f: _repeated(means[layout.effects_of(f)], count) for f in factors}
    out[factor] = np.full((*separate.shape, count), np.nan)
    half = np.linalg.cholesky(covariance[known])
    normals = rng.standard_normal((int(known.sum()), separate.shape[1], count))
    out[factor][known] = separate[known, :, None] + half @ normals
    return out


def _repeated(effects: Array, count: int) -> Array:
    """Effects (groups, q) as so many draws that are all alike, (groups, q, count)."""
    return np.repeat(effects[:, :, None], count, 2)


def _unpooled_engine(fit: Posterior, factor: int) -> tuple[LeafRoot, tuple[Array, Array], Ints]:
    """The Gaussian engine with the sds of a factor made infinite, and positions of its effects.

    Coefficients, theta and the effects of coarser factors are at their posterior means.
    """
    model, marginal = fit.model, GaussianMarginal(fit.model)
    theta = (node_weights(fit.result) @ fit.result.theta)[None, :]
    coefficients = model.coefficients
    shift = coefficients.from_public(mean_coefficients(fit)) - np.asarray(coefficients.mean)
    cross = marginal.at_sigma(theta)[0].cross if marginal.adds_sigma else marginal.statistics.cross
    lams, inv_vars, _ = marginal.arguments(theta)
    q, at = model.hyperparameters.widths[factor], model.hyperparameters.lam_at[factor]
    own, _ = normal_equations(cross, factor, shift, mean_effects(fit))
    size = np.sqrt(np.einsum("gii->gi", own).max(axis=0) * inv_vars[0])  # of the surest group: 1 / its standard error
    least = np.sqrt(np.median(np.einsum("gii->gi", own), axis=0) * inv_vars[0])
    sds = np.sqrt(np.einsum("kij,kij->i", *(lams[:, at : at + q * q].reshape(1, q, q),) * 2))
    wide = FLAT * np.maximum(sds, 1 / np.maximum(np.where(least > 0, least, size), np.finfo(float).tiny))
    lams = lams.copy()
    lams[0, at : at + q * q] = np.diag(wide).ravel()
    held = coarser_factors(model, factor)
    for other in held:  # taken off the response, and so of no spread
        start = model.hyperparameters.lam_at[other]
        lams[0, start : start + model.hyperparameters.widths[other] ** 2] = 0.0
    engine = LeafRoot(_without_effects(fit, cross, shift, held), np.empty(0), 1)
    return engine, (lams, inv_vars), layout_of(model).effects_of(factor)


def _without_effects(fit: Posterior, cross: CrossProducts, shift: Array, held: Sequence[int]) -> CrossProducts:
    """The cross-products of y less its predictors and less the posterior means of some factors' effects."""
    out = cross.at_coefficients(shift)
    if not held:
        return out
    layout, means = layout_of(fit.model), mean_effects(fit)
    known = np.zeros_like(means)
    for factor in held:
        known[layout.effects_of(factor)] = means[layout.effects_of(factor)]
    left = np.zeros_like(means)
    for factor in range(len(fit.model.design.factors)):
        if factor not in held:
            rest = normal_equations(cross, factor, shift, known)[1]
            left[layout.effects_of(factor)] = rest[cross.structure.rank[factor]]
    return with_response(out, np.arange(len(left)), left)


def separate_covariances(fit: Posterior, factor: int, separate: Array) -> Array:
    """Cov of the separate estimates (groups, q, q) of a factor; nan where there is no estimate."""
    information = _information(fit, factor, separate)
    known = np.isfinite(separate).all(axis=1) & np.isfinite(information).all(axis=(1, 2))
    known &= (np.einsum("gii->gi", information) > 0).all(axis=1)
    out = np.full(information.shape, np.nan)
    own = information[known]
    size = np.sqrt(np.einsum("gii->gi", own))
    scaled = own / (size[:, :, None] * size[:, None, :])
    sound = np.linalg.det(scaled) > 1e-12
    inverse = np.linalg.inv(np.where(sound[:, None, None], scaled, np.eye(own.shape[1])))
    found = inverse / (size[:, :, None] * size[:, None, :])
    out[known] = np.where(sound[:, None, None], found, np.nan)
    return out


def _information(fit: Posterior, factor: int, separate: Array) -> Array:
    if not fit.model.exact:
        return _information_of_rows(fit, factor, separate)
    marginal = GaussianMarginal(fit.model)
    theta = (node_weights(fit.result) @ fit.result.theta)[None, :]
    cross = marginal.at_sigma(theta)[0].cross if marginal.adds_sigma else marginal.statistics.cross
    coefficients = fit.model.coefficients
    shift = coefficients.from_public(mean_coefficients(fit)) - np.asarray(coefficients.mean)
    own, _ = normal_equations(cross, factor, shift, mean_effects(fit))
    variance = 1.0 if marginal.adds_sigma else sigma_square(fit)
    return own[cross.structure.rank[factor]] / variance


def sigma_square(fit: Posterior) -> float:
    """Posterior mean of sigma^2; 1 where the residual variance is known (se)."""
    at = fit.model.hyperparameters.sigma_at
    return 1.0 if at is None else float(node_weights(fit.result) @ np.exp(2 * fit.result.theta[:, at]))


def mean_logs(fit: Posterior) -> tuple[float, float]:
    """Logs of the family's own parameters at their posterior means, 0 where it has none or they have a formula."""
    hyper = fit.model.hyperparameters
    means = node_weights(fit.result) @ fit.result.theta
    logs = dict(zip((name for name, _ in hyper.auxiliary), means[hyper.auxiliary_slice], strict=True))
    first, second = (*(float(logs.get(name, 0.0)) for name in fit.model.family.parameters), 0.0, 0.0)[:2]
    return first, second


def _information_of_rows(fit: Posterior, factor: int, separate: Array) -> Array:
    design = fit.model.design
    codes, columns = design.factors[factor].codes, factor_columns(design)[factor]
    parts = factor_predictors(design)[factor]
    others = [f for f in range(len(design.factors)) if f != factor]
    z, u = design.V[:, columns], np.nan_to_num(separate)[codes]
    first, second = mean_logs(fit)
    eta0 = linear_means(fit, LinearPredictor.of_design(design, others)) + (z * u * (parts == 0)).sum(axis=1)
    eta1 = np.full(design.y.size, first)
    if len(design.prefixes) > 1:
        eta1 = linear_means(fit, LinearPredictor.of_design(design, others, 1)) + (z * u * (parts == 1)).sum(axis=1)
    rows = row_information(fit.model.family, design.y, eta0, eta1, second, design.trials)
    if design.weights is not None:
        rows = rows * design.weights[:, None, None]
    groups, q = separate.shape
    out = np.empty((groups, q, q))
    for i in range(q):
        for j in range(q):
            values = z[:, i] * z[:, j] * rows[:, parts[i], parts[j]]
            out[:, i, j] = np.bincount(codes, weights=values, minlength=groups)
    return out


def row_information(
    family: Family, y: Array, eta0: Array, eta1: Array, eta2: float, trials: Array | None = None
) -> Array:
    """Negative second derivatives of each row's log density in (eta0, eta1), by differences: (n, 2, 2).

    Examples
    --------
    >>> from partialpool.spec.families import Poisson
    >>> row_information(Poisson(), np.array([2.0]), np.array([1.0]), np.zeros(1), 0.0)[0, 0, 0].round(4)
    np.float64(2.7183)
    """

    def value(first: float, second: float) -> Array:
        return family.log_density_rows(y, eta0 + first * step, eta1 + second * STEP, eta2, trials)

    with np.errstate(all="ignore"):
        slope = (family.mean(eta0 + 1e-4, eta1, eta2) - family.mean(eta0 - 1e-4, eta1, eta2)) / 2e-4
        number = 1.0 if trials is None else trials
        error = np.sqrt(family.variance(eta0, eta1, eta2, trials)) / np.abs(slope * number)
        step = STEP * np.where(np.isfinite(error), np.clip(error, 1e-6, 1e6 if family.link == "identity" else 1.0), 1.0)
        centre = value(0, 0)
        out = np.zeros((len(y), 2, 2))
        out[:, 0, 0] = -(value(1, 0) - 2 * centre + value(-1, 0)) / step**2
        if family.parameters:
            out[:, 1, 1] = -(value(0, 1) - 2 * centre + value(0, -1)) / STEP**2
            mixed = value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1)
            out[:, 0, 1] = out[:, 1, 0] = -mixed / (4 * step * STEP)
    return out
