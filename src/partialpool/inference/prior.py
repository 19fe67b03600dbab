"""Draws from the prior, of parameters and of whole data sets."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.design.predictor import factor_columns, row_variance
from partialpool.errors import ModelError, PriorError
from partialpool.model import Model

if TYPE_CHECKING:
    import pandas

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
    mean = linear_predictor(model, gamma[0], effects)
    y = mean + row_sd(model, theta) * rng.standard_normal(mean.size)
    return Simulation(theta[0], gamma[0], effects, y)


def _draw_effects(model: Model, theta: Array, rng: np.random.Generator) -> Array:
    """Group effects from the population of groups, in the internal order."""
    structure, hyper = model.row_blocks.structure, model.hyperparameters
    lams = hyper.factors(theta)[0]
    effects = np.empty(structure.n_effects)
    for factor, (width, groups) in enumerate(zip(structure.widths, structure.sizes, strict=True)):
        start = hyper.lam_at[factor]
        lam = lams[start : start + width * width].reshape(width, width)
        effects[structure.effects_of(factor)] = rng.standard_normal((groups, width)) @ lam.T
    return effects


def linear_predictor(model: Model, gamma: Array, effects: Array) -> Array:
    """The mean of every row given coefficients gamma and group effects (internal order), offset included."""
    design, structure = model.design, model.row_blocks.structure
    mean = np.zeros(design.y.size) if design.offset is None else design.offset.astype(float)
    beta = model.coefficients.to_public(gamma)
    for column, value in zip(design.x_columns, beta, strict=True):
        mean += value * design.V[:, column]
    for factor, columns in enumerate(factor_columns(design)):
        own = effects[structure.effects_of(factor)][design.factors[factor].codes]
        mean += np.einsum("ij,ij->i", design.V[:, columns], own)
    return mean


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
