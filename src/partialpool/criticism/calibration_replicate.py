r"""One replicate of simulation-based calibration: a truth from the prior, data from it, and the truth's place.

Where a quantity f has the posterior distribution function F and the truth was drawn from the prior, F(f(truth)) is
uniform over data sets (Cook, Gelman and Rubin 2006; Talts et al. 2018), also where f depends on the data, as the log
likelihood does (Modrák et al. 2023, Simulation-based calibration checking for Bayesian computation: the choice of test
quantities shapes sensitivity, Bayesian Analysis).

F of a parameter is computed from the engine's nodes as `summary()` computes its quantiles,

.. math:: F(t) = \sum_k w_k\, P(f \le t \mid \theta_k, y),

a normal distribution function for coefficients that are integrated out, a step for what stands among the nodes. Ranks
among draws would add the noise of drawing to it, and would check the draws in place of the numbers that users read;
with an effective sample size of 1,000, what the steps add to a place is below 0.016. Of group effects and of the log
likelihood the place is the rank among draws, at random between two draws, which is exactly uniform for independent
ones: ``(rank + U) / (draws + 1)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.predictor import factor_columns, row_variance
from partialpool.errors import ModelError, PartialPoolError, did_you_mean
from partialpool.inference.diagnostics import ess_bulk
from partialpool.inference.prior import Simulation, linear_predictors, simulate
from partialpool.model import Model
from partialpool.posterior.fitting import fit_model
from partialpool.posterior.groups import factor_terms, layout_of
from partialpool.posterior.posterior import Posterior
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.inference.base import Result

Array = NDArray[np.float64]
#: What a user's function may be.
Fit = Callable[..., Any]

LOG_LIKELIHOOD = "log likelihood"
#: Draws among which the log likelihood of the truth is ranked.
RANKED = 200
#: Numbers of a replicate by quantity: the truth, posterior mean, sd, 5% and 95% quantiles, the truth's place.
TRUTH, MEAN, SD, LOW, HIGH, PLACE = range(6)
COLUMNS = 6
#: Chains have to move as independent draws would to be ranked among: at least so many of them.
FEWEST_DRAWS = 20


@dataclass(frozen=True)
class Effect:
    """A group effect that is followed: its name, factor, group and term as positions, and the group's label."""

    name: str
    factor: int
    group: int
    term: int
    label: str


@dataclass(frozen=True, eq=False)
class Plan:
    """What every replicate does.

    model : with proper priors. names : of all quantities: parameters, effects, the log likelihood. effects : followed.
    fit : the user's function, or None. options : of `model.fit`. seed : of all replicates.
    """

    model: Model
    names: tuple[str, ...]
    effects: tuple[Effect, ...]
    fit: Fit | None
    options: Mapping[str, Any]
    seed: int


@dataclass(frozen=True, eq=False)
class Replicate:
    """What one replicate gave: values (quantities, COLUMNS), nan where a quantity was not returned.

    failure : why there is no fit, else "". engine, trusted : what the fit says of itself.
    """

    number: int
    values: Array
    failure: str = ""
    engine: str = ""
    trusted: bool = True


def followed_effects(model: Model) -> tuple[Effect, ...]:
    """Of each factor and term, the effects of the smallest and of the largest group."""
    found = []
    for f, factor in enumerate(model.design.factors):
        groups = dict.fromkeys((int(factor.sizes.argmin()), int(factor.sizes.argmax()), len(factor.labels) - 1))
        terms = factor_terms(model.design, f)
        for group in list(groups)[:2]:
            for position, term in enumerate(terms):
                label = str(factor.labels[group])
                inside = f"{label},{term}" if len(terms) > 1 else label
                found.append(Effect(f"{factor.name}[{inside}]", f, group, position, label))
    return tuple(found)


def run(plan: Plan, number: int) -> Replicate:
    """Draw a truth and data, fit, and find the truth's places."""
    streams = np.random.SeedSequence(plan.seed, spawn_key=(number,)).spawn(3)
    nothing = np.full((len(plan.names), COLUMNS), np.nan)
    fit_seed = int(streams[1].generate_state(1)[0])
    rng = np.random.default_rng(streams[2])
    try:
        with np.errstate(all="ignore"):
            drawn = simulate(plan.model, np.random.default_rng(streams[0]))
            model = plan.model.with_response(drawn.y)
            if plan.fit is None:
                answer: Any = fit_model(model, seed=fit_seed, threads=1, progress=False, **plan.options)
            else:
                answer = _asked(plan.fit, model, fit_seed, number)
            truth = truths(plan, model, drawn)
            if isinstance(answer, Posterior):
                values = _from_posterior(plan, answer, truth, rng)
            else:
                values = _from_draws(plan, answer, truth, rng)
    except (PartialPoolError, np.linalg.LinAlgError) as error:
        if isinstance(error, FunctionFailed):
            raise
        return Replicate(number, nothing, " ".join(str(error).split()) or type(error).__name__, trusted=False)
    if isinstance(answer, Posterior):
        return Replicate(number, values, "", answer.accuracy.engine, bool(answer.accuracy.trusted))
    return Replicate(number, values)


class FunctionFailed(ModelError):
    """The user's own function raised, or returned what cannot be used."""


def _asked(function: Fit, model: Model, seed: int, number: int) -> Any:
    """What the user's function says of a model."""
    try:
        return function(model, seed=seed) if _takes_seed(function) else function(model)
    except Exception as error:
        raise FunctionFailed(
            f"The function given as fit= failed in replicate {number}: {type(error).__name__}: {error}"
        ) from error


def _takes_seed(function: Fit) -> bool:
    try:
        return "seed" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


# -- the truth --------------------------------------------------------------------------------------------------------


def truths(plan: Plan, model: Model, drawn: Simulation) -> dict[str, float]:
    """The true value of every quantity."""
    values = np.concatenate(
        [model.coefficients.to_public(drawn.gamma), model.hyperparameters.public(drawn.theta[None, :])[0]]
    )
    out = dict(zip(model.parameter_names, values.tolist(), strict=True))
    layout = layout_of(model)
    for effect in plan.effects:
        out[effect.name] = float(drawn.effects[layout.effects_of(effect.factor)][effect.group, effect.term])
    out[LOG_LIKELIHOOD] = log_likelihood(model, drawn)
    return out


def log_likelihood(model: Model, drawn: Simulation) -> float:
    """log p(y | coefficients, group effects, hyperparameters)."""
    design = model.design
    if not model.exact:
        etas = linear_predictors(model, drawn.theta, drawn.gamma, drawn.effects)
        return float(np.sum(model.family.log_density_rows(design.y, *etas, design.trials)))
    return float(exact_log_likelihoods(model, drawn.theta[None], drawn.gamma[None], drawn.effects[None])[0])


def exact_log_likelihoods(model: Model, theta: Array, gamma: Array, effects: Array) -> Array:
    """The same of a Gaussian response with one sigma, (K,), at theta (K, d), coefficients (K, p), effects (K, m)."""
    design, layout, at = model.design, layout_of(model), model.hyperparameters.sigma_at
    eta = model.coefficients.to_public(gamma) @ design.V[:, design.x_columns].T
    for factor, columns in enumerate(factor_columns(design)):
        rows = effects[:, layout.effects_of(factor)[design.factors[factor].codes]]
        eta += np.einsum("ij,kij->ki", design.V[:, columns], rows)
    shape = row_variance(design, design.se_sigma)
    sigma = np.zeros(len(theta)) if at is None else np.exp(theta[:, at])
    variance = np.stack([np.broadcast_to(shape.at(float(own)), design.y.shape) for own in sigma])
    known = design.y if design.offset is None else design.y - design.offset
    return np.asarray(-0.5 * ((known - eta) ** 2 / variance + np.log(2 * np.pi * variance)).sum(axis=1))


# -- places by a posterior --------------------------------------------------------------------------------------------


def _from_posterior(plan: Plan, fit: Posterior, truth: Mapping[str, float], rng: np.random.Generator) -> Array:
    parameters = fit.parameters
    unknown = next((name for name in parameters if name not in plan.names), None)
    if unknown is not None:
        raise _not_checked(unknown, plan)
    out = np.full((len(plan.names), COLUMNS), np.nan)
    places = parameter_places(fit, np.array([truth[name] for name in parameters]))
    table = fit.summary()[["mean", "sd", "q05", "q95"]].to_numpy()
    for row, name in enumerate(parameters):
        out[plan.names.index(name)] = truth[name], *table[row], places[row]
    if fit.model.parameter_names != plan.model.parameter_names:  # a smaller model: its effects are other quantities
        return out
    for f in {effect.factor for effect in plan.effects}:
        own = [effect for effect in plan.effects if effect.factor == f]
        labels = list(dict.fromkeys(effect.label for effect in own))
        drawn = fit.group_draws(fit.model.design.factors[f].name, labels)
        for effect in own:
            draws = drawn[:, labels.index(effect.label), effect.term]
            out[plan.names.index(effect.name)] = ranked(draws, truth[effect.name], rng)
    picked = rng.choice(len(fit.result.draws_theta), min(RANKED, len(fit.result.draws_theta)), replace=False)
    likelihoods = _log_likelihoods(fit, np.sort(picked))
    out[plan.names.index(LOG_LIKELIHOOD)] = ranked(likelihoods, truth[LOG_LIKELIHOOD], rng)
    return out


def parameter_places(fit: Posterior, values: Array) -> Array:
    """The posterior probabilities (parameters,) of less than these values, by the engine's nodes."""
    from scipy.special import ndtr

    result: Result = fit.result
    weights = node_weights(result)
    p = result.beta_mean.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (values[:p] - result.beta_mean) / result.beta_sd
    step = np.where(values[:p] > result.beta_mean, 1.0, np.where(values[:p] == result.beta_mean, 0.5, 0.0))
    coefficients = np.where(result.beta_sd > 0, ndtr(z), step)
    hyper = fit.model.hyperparameters.public(result.theta)
    below = (hyper < values[p:]) + 0.5 * (hyper == values[p:])
    return np.asarray(np.clip(weights @ np.concatenate([coefficients, below], axis=1), 0.0, 1.0))


def _log_likelihoods(fit: Posterior, picked: NDArray[np.int64]) -> Array:
    """log p(y | all parameters and effects) at some draws."""
    from partialpool.posterior.groups import effect_draws

    model, result = fit.model, fit.result
    gamma = model.coefficients.from_public(result.draws_beta[picked])
    count = layout_of(model).n_effects
    effects = np.zeros((len(picked), 0))
    if model.design.factors:
        effects = effect_draws(fit, picked).of(np.arange(count))
    if model.exact:
        return exact_log_likelihoods(model, result.draws_theta[picked], gamma, effects)
    none = np.empty(0)
    return np.array([
        log_likelihood(model, Simulation(result.draws_theta[k], gamma[j], effects[j], none))
        for j, k in enumerate(picked)
    ])  # fmt: skip


# -- places among draws -----------------------------------------------------------------------------------------------


def ranked(draws: Array, truth: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Truth, mean, sd, quantiles and place of a truth among independent draws.

    Examples
    --------
    >>> found = ranked(np.array([1.0, 2.0, 3.0]), 2.5, np.random.default_rng(1))
    >>> found[:3], 0.5 < found[PLACE] < 0.75
    ((2.5, 2.0, 1.0), True)
    """
    below, equal = int((draws < truth).sum()), int((draws == truth).sum())
    place = (below + (equal + 1) * rng.random()) / (draws.size + 1)
    low, high = np.quantile(draws, [0.05, 0.95])
    return truth, float(draws.mean()), float(draws.std(ddof=1)), float(low), float(high), float(place)


def _from_draws(plan: Plan, answer: Any, truth: Mapping[str, float], rng: np.random.Generator) -> Array:
    """Of what a user's function returned: a mapping, or a data frame, of draws by name."""
    named = _mapping(answer)
    out = np.full((len(plan.names), COLUMNS), np.nan)
    for name, given in named.items():
        if name not in plan.names:
            raise _not_checked(str(name), plan)
        out[plan.names.index(name)] = ranked(independent(str(name), given), truth[name], rng)
    return out


def _not_checked(name: str, plan: Plan) -> FunctionFailed:
    return FunctionFailed(
        f"The function given as fit= returned {name!r}, which is not among what is checked. "
        f"{did_you_mean(name, plan.names)}"
    )


def _mapping(answer: Any) -> dict[Any, Any]:
    if hasattr(answer, "to_dict") and hasattr(answer, "columns"):
        return {name: np.asarray(answer[name]) for name in answer.columns}
    if isinstance(answer, Mapping) and answer:
        return dict(answer)
    raise FunctionFailed(
        "The function given as fit= must return a fit of partialpool, or draws by the parameters' names "
        f"({{'sigma': array, ...}}, or a data frame with a column a parameter); it returned {type(answer).__name__}."
    )


def independent(name: str, given: Any) -> Array:
    """Draws (D,) as they are; of chains (chains, draws) as many as are worth independent ones, evenly spaced."""
    try:
        draws = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        raise FunctionFailed(f"The draws of {name!r} that fit= returned are not numbers.") from None
    if draws.ndim not in (1, 2) or draws.size < FEWEST_DRAWS:
        raise FunctionFailed(
            f"The draws of {name!r} that fit= returned have shape {draws.shape}; (draws,) of at least {FEWEST_DRAWS} "
            "independent draws is asked, or (chains, draws), which is thinned."
        )
    if not np.isfinite(draws).all():
        raise FunctionFailed(f"The draws of {name!r} that fit= returned are not all finite.")
    if draws.ndim == 1:
        return draws
    worth = float(ess_bulk(draws)) if draws.shape[1] >= 4 else float(draws.size)
    step = max(1, int(np.ceil(draws.size / max(worth, 1.0)))) if np.isfinite(worth) else 1
    return draws[:, step - 1 :: step].ravel()
