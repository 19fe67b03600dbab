"""From a formula, or a model, to a posterior in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from partialpool.errors import ModelError, did_you_mean
from partialpool.inference.base import Settings
from partialpool.model import Model
from partialpool.posterior.posterior import Posterior
from partialpool.spec.families import Family
from partialpool.spec.formula import Terms
from partialpool.spec.priors import Distribution


def fit(
    formula: str | Terms,
    data: Any,
    *,
    family: str | Family = "gaussian",
    priors: Mapping[str, Distribution | str] | None = None,
    method: str = "auto",
    draws: int = 4000,
    ess: float = 1000,
    seed: int | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    parameterization: Mapping[str, str | float] | None = None,
) -> Posterior:
    """Fit a hierarchical model: the whole posterior, from a formula and a data frame.

    Parameters
    ----------
    formula : str, or what :func:`partialpool.formula` made of several
        An lme4 or brms formula: ``"y ~ x + (1 + x | school / class)"``; additions to the response such as
        ``"y | se(s) ~ ..."`` give known standard errors, ``weights(w)`` and ``precision(w)``.
    data : data frame, pyarrow table, dict of arrays, or path of a CSV or Parquet file
        One row an observation. Rows with missing values in the columns used are dropped, and counted.
    family : str or family
        The distribution of the response: ``"gaussian"``, ``"bernoulli"``, ``"binomial"``, ``"poisson"``,
        ``"negative_binomial"``, ...; with options ``pp.families.Gamma(link="inverse")``.
    priors : mapping, optional
        Priors by name, ``{"sd(school)": pp.HalfNormal(1)}``; defaults for the rest (print ``fit.model.priors``).
    method : {"auto", "marginal", "laplace", "whitened", "nuts"}
        "auto" integrates out what can be, and explores the rest by importance sampling, or by NUTS where that is not
        enough; "nuts" is the slow reference, with nothing integrated out.
    draws : int
        Equally weighted draws that the fit returns.
    ess : float
        Effective sample size asked of every hyperparameter.
    seed : int, optional
        Makes the fit reproducible to the bit on one machine; a fresh one is drawn, and kept in the fit, without it.
    threads : int, optional
        Cores to use; all by default. The result does not depend on it.
    progress : bool, optional
        Show a bar for work of over two seconds: always, never, or (default) on a terminal.
    parameterization : mapping, optional
        For method="nuts": how the sampler stands in the effects of a factor or a group term (``"school"`` or
        ``"(1 | school)"``): "centered", "non-centered", "auto", or a number from 0 (non-centered) to 1. It changes
        the speed and not the posterior.

    Returns
    -------
    Posterior

    Raises
    ------
    FormulaError, DataError, PriorError, ModelError
        With what is wrong, where, and how to mend it.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> print(fit.summary().loc["Days", "mean"].round(1))
    10.5
    """
    model = Model.from_formula(formula, data, family=family, priors=priors)
    return model.fit(
        method=method, draws=draws, ess=ess, seed=seed, threads=threads, progress=progress,
        parameterization=parameterization,
    )  # fmt: skip


def fit_model(
    model: Model,
    *,
    method: str = "auto",
    draws: int = 4000,
    ess: float = 1000,
    seed: int | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    parameterization: Mapping[str, str | float] | None = None,
) -> Posterior:
    """The posterior of a model.

    Parameters
    ----------
    model : Model
    method : {"auto", "marginal", "laplace", "whitened", "nuts"}
        The engine; "auto" takes the exact one wherever there is one, and says so in ``fit.accuracy``.
    draws : int
        Equally weighted draws to keep.
    ess : float
        Effective sample size wanted of every hyperparameter.
    seed : int, optional
        Makes the fit repeatable to the bit. Where it is left out, a fresh one is drawn and kept in ``fit.seed``.
    threads : int, optional
        Cores to use; all by default. No result depends on it.
    progress : bool, optional
        Show progress: True, False, or (by default) where it takes over two seconds.
    parameterization : mapping, optional
        For method="nuts": by factor or group term "centered", "non-centered", "auto" or a number from 0 to 1.

    Raises
    ------
    ModelError
        Where an option is impossible.

    Examples
    --------
    >>> import partialpool as pp
    >>> model = pp.Model.from_formula("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"))
    >>> fit = fit_model(model, seed=1)
    >>> fit.draws("sigma").shape
    (4000,)
    """
    from partialpool.inference.parameterization import wanted_degrees
    from partialpool.inference.remarks import prior_remarks
    from partialpool.inference.select import select_engine

    settings = _settings(method, draws, ess, seed, threads, progress)
    if parameterization is not None:
        if method != "nuts":
            raise ModelError(
                f"parameterization= is for method='nuts', which samples the group effects; method={method!r} "
                "integrates them out. Leave it out, or use method='nuts'."
            )
        wanted_degrees(model, parameterization, between=not model.exact)
        settings = replace(settings, parameterization=dict(parameterization))
    engine, reason = select_engine(model, method)
    result = engine.run(model, settings)
    accuracy = result.accuracy
    told = replace(accuracy, reason=accuracy.reason or reason, notes=(*accuracy.notes, *prior_remarks(model)))
    return Posterior(model, replace(result, accuracy=told))


def _settings(
    method: str, draws: int, ess: float, seed: int | None, threads: int | None, progress: bool | None
) -> Settings:
    from partialpool.inference.select import METHODS

    if method not in METHODS:
        raise ModelError(f"There is no method {method!r}. {did_you_mean(str(method), METHODS)}")
    if not _is_whole(draws) or draws <= 0:
        raise ModelError(f"draws = {draws!r} is not possible; ask for a whole number above 0, such as 4000.")
    if isinstance(ess, bool) or not isinstance(ess, int | float | np.number) or not 0 < ess < np.inf:
        raise ModelError(f"ess = {ess!r} is not possible; ask for a number above 0, such as 1000.")
    if threads is not None and (not _is_whole(threads) or threads <= 0):
        raise ModelError(f"threads = {threads!r} is not possible; give a whole number above 0, or leave it out.")
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    elif not _is_whole(seed) or seed < 0:
        raise ModelError(f"seed = {seed!r} is not possible; give a whole number of at least 0, or leave it out.")
    if progress is not None and not isinstance(progress, bool | np.bool_):
        raise ModelError(f"progress = {progress!r} is not possible; give True or False, or leave it out.")
    wanted = None if progress is None else bool(progress)
    return Settings(int(draws), float(ess), int(seed), int(threads or os.cpu_count() or 1), wanted)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
