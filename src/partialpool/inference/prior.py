"""Draws from the prior, of parameters and of whole data sets."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.design.latent import LatentLayout
from partialpool.design.predictor import factor_columns, factor_predictors, row_variance
from partialpool.errors import ModelError, PriorError
from partialpool.model import Model

if TYPE_CHECKING:
    import pandas

    from partialpool.algebra.structure import Structure

Array = NDArray[np.float64]


class Simulation(NamedTuple):
    """One data set from the prior: theta (d,), gamma (p,), all group effects in the internal order, and y (n,)."""

    theta: Array
    gamma: Array
    effects: Array
    y: Array


def sample_prior(model: Model, draws: int, seed: int | None = None) -> pandas.DataFrame:
    """Draws of every parameter from its prior, in the order and scale of `summary()`.

    Parameters
    ----------
    model : Model
    draws : int
        Number of rows of the frame.
    seed : int, optional
        Makes the draws reproducible.

    Raises
    ------
    ModelError
        Where `draws` is not a positive whole number.
    PriorError
        Where a prior is flat: nothing can be drawn from it.

    Examples
    --------
    >>> import partialpool as pp
    >>> model = pp.Model.from_formula("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"))
    >>> model.sample_prior(100, seed=1).shape
    (100, 6)
    """
    import pandas

    _check_draws(draws)
    _check_proper(model)
    theta, gamma = draw_parameters(model, draws, np.random.default_rng(seed))
    values = [model.coefficients.to_public(gamma), model.hyperparameters.public(theta)]
    return pandas.DataFrame(np.concatenate(values, axis=1), columns=list(model.parameter_names))


def sample_prior_predictive(model: Model, draws: int, seed: int | None = None) -> Array:
    """Data sets that the prior predicts for the model's rows, (draws, rows), in the units of the response.

    Known standard errors, precisions and offsets are honoured; a weight counts a row several times and does not change
    its distribution. Errors are those of `sample_prior`.

    Examples
    --------
    >>> import partialpool as pp
    >>> model = pp.Model.from_formula("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"))
    >>> model.sample_prior_predictive(10, seed=1).shape
    (10, 30)
    """
    _check_draws(draws)
    _check_proper(model)
    rng = np.random.default_rng(seed)
    return np.stack([_simulate(model, rng).y for _ in range(draws)])


def simulate(model: Model, seed: int | np.random.Generator | None = None) -> Simulation:
    """One draw of the parameters, the group effects and the response from the prior (for simulation-based calibration).

    Parameters
    ----------
    model : Model
        With proper priors only; its response plays no part.
    seed : int or numpy Generator, optional

    Examples
    --------
    >>> import partialpool as pp
    >>> model = pp.Model.from_formula("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"))
    >>> replicate = model.with_response(simulate(model, seed=1).y)
    """
    _check_proper(model)
    return _simulate(model, np.random.default_rng(seed))


def draw_parameters(model: Model, draws: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """theta (draws, d) and gamma (draws, p) from the prior."""
    hyper, coefficients = model.hyperparameters, model.coefficients
    theta = hyper.sample(rng, draws)
    scale = np.tile(np.asarray(coefficients.scale, dtype=float), (draws, 1))
    for column, mixture in zip(range(hyper.size)[hyper.mixture_slice()], hyper.mixtures, strict=True):
        scale[:, mixture.coefficient] *= np.exp(0.5 * theta[:, column])
    gamma = np.asarray(coefficients.mean) + scale * rng.standard_normal(scale.shape)
    return theta, gamma


def _simulate(model: Model, rng: np.random.Generator) -> Simulation:
    theta, gamma = draw_parameters(model, 1, rng)
    effects = _draw_effects(model, theta, rng)
    if not model.exact:
        return Simulation(theta[0], gamma[0], effects, simulate_response(model, theta[0], gamma[0], effects, rng))
    mean = linear_predictor(model, gamma[0], effects)
    y = mean + row_sd(model, theta) * rng.standard_normal(mean.size)
    return Simulation(theta[0], gamma[0], effects, y)


def _layout(model: Model) -> Structure | LatentLayout:
    return model.row_blocks.structure if model.exact else model.latent


def _draw_effects(model: Model, theta: Array, rng: np.random.Generator) -> Array:
    """Group effects from the population of groups, in the internal order."""
    structure, hyper = _layout(model), model.hyperparameters
    lams = hyper.factors(theta)[0]
    effects = np.empty(structure.n_effects)
    for factor, (width, groups) in enumerate(zip(structure.widths, structure.sizes, strict=True)):
        start = hyper.lam_at[factor]
        lam = lams[start : start + width * width].reshape(width, width)
        effects[structure.effects_of(factor)] = rng.standard_normal((groups, width)) @ lam.T
    return effects


def linear_predictor(model: Model, gamma: Array, effects: Array, predictor: int = 0) -> Array:
    """The linear predictor of every row given coefficients gamma and group effects (internal order), offset included.

    predictor : which, where a parameter of the family has one of its own; the first is the mean's.
    """
    design, structure = model.design, _layout(model)
    if predictor == 0 and design.offset is not None:
        eta = design.offset.astype(float)
    else:
        eta = np.zeros(design.y.size)
    beta = model.coefficients.to_public(gamma)
    for column, value, own in zip(design.x_columns, beta, design.x_predictor, strict=True):
        if own == predictor:
            eta += value * design.V[:, column]
    predictors = factor_predictors(design)
    for factor, columns in enumerate(factor_columns(design)):
        kept = predictors[factor] == predictor
        if kept.any():
            rows = effects[structure.effects_of(factor)][design.factors[factor].codes]
            eta += np.einsum("ij,ij->i", design.V[:, columns[kept]], rows[:, kept])
    return eta


def linear_predictors(model: Model, theta: Array, gamma: Array, effects: Array) -> tuple[Array, Array, Array]:
    """The three linear predictors of every row at theta (d,): that of the mean, and the logs of the family's own.

    A parameter without a formula is the same in every row; zeros stand for those that the family has not.
    """
    hyper, rows = model.hyperparameters, model.design.y.size
    parts = [linear_predictor(model, gamma, effects)]
    logs = dict(zip((name for name, _ in hyper.auxiliary), theta[hyper.auxiliary_slice], strict=True))
    modelled = list(model.design.terms.predictors)
    for name in model.family.parameters:
        if name in modelled:
            parts.append(linear_predictor(model, gamma, effects, 1 + modelled.index(name)))
        else:
            parts.append(np.full(rows, logs[name]))
    parts += [np.zeros(rows)] * (3 - len(parts))
    return parts[0], parts[1], parts[2]


def simulate_response(model: Model, theta: Array, gamma: Array, effects: Array, rng: np.random.Generator) -> Array:
    """A response (n,) of another family, given all parameters and group effects."""
    etas = linear_predictors(model, theta, gamma, effects)
    trials = model.design.trials
    drawn = model.family.simulate(rng, *etas, np.ones(model.design.y.size) if trials is None else trials)
    return np.asarray(drawn, dtype=float)


def row_sd(model: Model, theta: Array) -> Array:
    """sd of every row's residual at theta (1, d)."""
    design, at = model.design, model.hyperparameters.sigma_at
    variance = row_variance(design, design.se_sigma).at(0.0 if at is None else float(np.exp(theta[0, at])))
    return np.asarray(np.sqrt(np.broadcast_to(variance, design.y.shape)))


def _check_draws(draws: object) -> None:
    if isinstance(draws, bool) or not isinstance(draws, numbers.Integral) or draws <= 0:
        raise ModelError(f"draws must be a whole number above 0, and it is {draws!r}; write draws=1000, for example.")


def _check_proper(model: Model) -> None:
    for name, prior in model.priors.items():
        if not prior.proper:
            raise PriorError(
                f"The prior of {name!r} is flat, and nothing can be drawn from it; give it a proper prior, for example "
                f"priors={{{name!r}: Normal(0, 1)}}."
                if name in model.design.x_names
                else f"The prior of {name!r} is flat, and nothing can be drawn from it; give it a proper prior, for "
                f"example priors={{{name!r}: HalfNormal(1)}}."
            )
