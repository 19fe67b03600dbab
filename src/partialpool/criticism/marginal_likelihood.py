r"""Marginal likelihoods of models, with their errors, and how far they hang on the priors.

The engines' importance weights have the marginal likelihood as their mean (`Posterior.log_marginal_likelihood`); with K
independent nodes of normalised weights w the standard error of its log is

.. math:: \sqrt{\sum_k w_k^2 - 1/K},

to which the error of an interpolated density and that of quadrature are added.

A Bayes factor compares what the *priors* predicted. Make the prior of a slope ten times as wide, and its model loses a
factor of about ten, however well the data determine the slope. So the question is asked again with the priors of slopes
and group sds (what models usually differ in) 4 and 2 times as narrow and as wide. Where the nodes hold coefficients and
sds, with prior densities p and :math:`p_c`,

.. math:: \log p_c(y) - \log p(y) = \log \sum_k w_k \frac{p_c(\beta_k, \theta_k)}{p(\beta_k, \theta_k)},

as long as the products of both weights have an effective size of 50; elsewhere the model is fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, PartialPoolError
from partialpool.inference.base import Result
from partialpool.inference.importance import effective_sample_size, logsumexp, normalise
from partialpool.inference.progress import Progress
from partialpool.levels.refit import shared_priors
from partialpool.model import Model
from partialpool.posterior.fitting import fit_model
from partialpool.present.tables import listed
from partialpool.spec.distributions import (
    Cauchy,
    Distribution,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    Normal,
    StudentT,
    Uniform,
)
from partialpool.spec.priors import resolve_priors

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: How much wider (or narrower) the priors of slopes and group sds are made.
TIMES = (0.25, 0.5, 2.0, 4.0)
#: Draws and effective sample size of a refit: the evidence is a mean of the weights, which few nodes know well.
DRAWS, ESS = 200, 500
#: Effective number of nodes for which reweighting does.
ENOUGH = 50.0
SCALED = ("coefficient", "sd")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Log marginal likelihoods of models.

    table : index model; log_evidence, error, probability (of the model, all equally likely before), and times the
    priors' widths in columns of `by_prior`.
    missing : why a model has none, by name.
    """

    log_evidence: dict[str, float]
    error: dict[str, float]
    by_prior: pandas.DataFrame
    missing: dict[str, str]


def evidence(
    fits: Mapping[str, Posterior], *, threads: int = 1, progress: bool | None = None, seed: int = 0
) -> Evidence:
    """Log marginal likelihoods of fits, under their priors and under narrower and wider ones.

    Parameters
    ----------
    fits : mapping
    threads : int
        Refits at a time.
    progress : bool, optional
    seed : int
        Of the refits.

    Raises
    ------
    ModelError
        Where fewer than two of the models have a marginal likelihood.
    """
    values = {name: fit.log_marginal_likelihood for name, fit in fits.items()}
    errors = {name: error_of_log_evidence(fit.result) for name, fit in fits.items()}
    missing = {name: why_missing(fit) for name, fit in fits.items() if not math.isfinite(values[name])}
    if len(fits) - len(missing) < 2:
        told = " ".join(f"{name!r} has none: {why}." for name, why in missing.items())
        raise ModelError(f"There are no two marginal likelihoods to compare. {told}")
    known = {name: fit for name, fit in fits.items() if name not in missing}
    return Evidence(values, errors, _by_prior(known, values, threads, progress, seed), missing)


def error_of_log_evidence(result: Result) -> float:
    """Standard error of the log marginal likelihood, by the delta method; 0 where one node is the whole posterior.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"), seed=1)
    >>> 0 < error_of_log_evidence(fit.result) < 0.05
    True
    """
    weights = normalise(result.log_weights)
    spread = max(float(weights @ weights) - 1 / len(weights), 0.0)
    accuracy = result.accuracy
    more = [error for error in (accuracy.surrogate_error, accuracy.quadrature_error) if error is not None]
    return math.hypot(math.sqrt(spread), *more)


def why_missing(fit: Posterior) -> str:
    """Why a fit has no marginal likelihood, as the end of a sentence."""
    flat = [repr(name) for name, prior in fit.model.priors.items() if not prior.proper]
    if flat:
        return (
            f"the prior of {listed(flat)} is flat, so that the data have no probability under the model; give "
            f"{'it a proper prior' if len(flat) == 1 else 'them proper priors'}"
        )
    return f"its engine ({fit.accuracy.engine}) does not give one"


def probabilities(log_evidence: Mapping[str, float]) -> dict[str, float]:
    """Posterior probabilities of models that were equally likely; nan where a model has no evidence.

    Examples
    --------
    >>> probabilities({"a": np.log(3.0), "b": 0.0})
    {'a': 0.75, 'b': 0.25}
    """
    known = {name: value for name, value in log_evidence.items() if math.isfinite(value)}
    total = float(logsumexp(np.array(list(known.values()))))
    out = {name: math.exp(value - total) for name, value in known.items()}
    return {name: round(out[name], 15) if name in out else math.nan for name in log_evidence}


# -- other priors -----------------------------------------------------------------------------------------------------


def _by_prior(
    fits: Mapping[str, Posterior], values: Mapping[str, float], threads: int, progress: bool | None, seed: int
) -> pandas.DataFrame:
    """Log evidence by how wide priors are and model."""
    import pandas as pd

    found = {(1.0, name): values[name] for name in fits}
    seeds = np.random.SeedSequence(seed, spawn_key=(2,)).generate_state(len(TIMES))
    tasks = [(times, name, int(own)) for times, own in zip(TIMES, seeds, strict=True) for name in fits]
    with Progress(progress) as bar, ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(under, fits[name], times, own): (times, name) for times, name, own in tasks}
        try:
            for done, future in enumerate(as_completed(running)):
                found[running[future]] = future.result()
                bar.update((done + 1) / len(tasks), "refits under other priors")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    index = pd.Index(sorted({*TIMES, 1.0}), name="times")
    return pd.DataFrame({name: [found[times, name] for times in index] for name in fits}, index=index)


def under(fit: Posterior, times: float, seed: int) -> float:
    """The log evidence with priors so many times as wide."""
    if not fit.model.exact and not _reaches_further(fit.model, times):
        added, size = reweighted(fit, times)
        if size >= ENOUGH:
            return fit.log_marginal_likelihood + added
    try:
        fit = fit_model(rescaled(fit.model, times), draws=DRAWS, ess=ESS, seed=seed, threads=1, progress=False)
    except PartialPoolError:  # such a prior may be impossible for the data
        return math.nan
    return fit.log_marginal_likelihood


def _reaches_further(model: Model, times: float) -> bool:
    """Whether wider priors allow what those of the fit rule out, where it can have no nodes."""
    bounded = [model.priors[slot.name] for slot in model.priors.slots if slot.kind in SCALED]
    return any(isinstance(p, Uniform) and (times > 1 or p.low > 0) for p in bounded)


def reweighted(fit: Posterior, times: float) -> tuple[float, float]:
    """What wider priors add to the log evidence, from the nodes of a fit, and the effective number of these.

    For responses that are not Gaussian, whose nodes hold the coefficients.
    """
    result, hyper = fit.result, fit.model.hyperparameters
    change = np.zeros(len(result.theta))
    values = dict(zip(fit.model.coefficients.names, result.beta_mean.T, strict=True))
    values |= dict(zip(hyper.names, hyper.public(result.theta).T, strict=True))
    for slot in fit.model.priors.slots:
        if slot.kind in SCALED:
            prior = fit.model.priors[slot.name]
            change += scaled(prior, times).log_density(values[slot.name]) - prior.log_density(values[slot.name])
    logs = result.log_weights + change
    total = float(logsumexp(logs) - logsumexp(result.log_weights))
    return total, float(effective_sample_size(logs))


def rescaled(model: Model, times: float) -> Model:
    """The same model with the priors of slopes and group sds so many times as wide.

    Examples
    --------
    >>> import partialpool as pp
    >>> model = pp.Model.from_formula("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"))
    >>> rescaled(model, 2.0).priors["sd(Intercept|Batch)"].sigma / model.priors["sd(Intercept|Batch)"].sigma
    2.0
    """
    slots = model.priors.slots
    wanted = shared_priors(model.priors, slots)
    for slot in slots:
        if slot.kind in SCALED:
            wanted[slot.name] = scaled(model.priors[slot.name], times)
    out = replace(model, priors=resolve_priors(wanted, slots))
    out.__dict__["column_means"] = model.column_means
    return out


def scaled(prior: Distribution, times: float) -> Distribution:
    """The distribution of a parameter's deviation from its centre times a number; itself where it has no scale.

    Examples
    --------
    >>> str(scaled(Normal(1, 2), 3.0)), str(scaled(Exponential(1), 2.0)), str(scaled(Uniform(0, 40), 0.5))
    ('Normal(1, 6)', 'Exponential(0.5)', 'Uniform(0, 20)')
    """
    if isinstance(prior, Normal | StudentT | Cauchy | HalfNormal | HalfStudentT | HalfCauchy):
        return replace(prior, sigma=prior.sigma * times)
    if isinstance(prior, Exponential | Gamma):
        return replace(prior, rate=prior.rate / times)
    if isinstance(prior, InverseGamma):
        return replace(prior, scale=prior.scale * times)
    if isinstance(prior, Uniform):
        centre = 0.5 * (prior.low + prior.high) if prior.low < 0 else 0.0  # of an sd: from 0
        return replace(prior, low=centre + (prior.low - centre) * times, high=centre + (prior.high - centre) * times)
    return prior
