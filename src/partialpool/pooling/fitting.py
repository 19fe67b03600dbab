"""`pp.pool`: units and a population -> the posterior of every unit."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import ModelError, did_you_mean
from partialpool.pooling.estimation import estimate_bayes, estimate_empirical, known_population, weighted_population
from partialpool.pooling.hyperpriors import HyperPriors, needs_units, read_priors, refuse_improper
from partialpool.pooling.pooled import Pooled, Request
from partialpool.pooling.units import Units, read_units
from partialpool.spec.distributions import Distribution

Array = NDArray[np.float64]

METHODS = ("bayes", "empirical_bayes", "fixed")
#: The conjugate population of each family.
CONJUGATE = {"normal": "normal", "binomial": "beta", "poisson": "gamma"}
#: Populations of estimated weights: by empirical Bayes only.
WEIGHTED = ("scale_mixture", "unimodal", "npmle")
POPULATIONS = ("conjugate", "normal", "student_t", "point_normal", *WEIGHTED)


def pool(
    values: ArrayLike | str,
    *,
    se: ArrayLike | str | None = None,
    trials: ArrayLike | str | None = None,
    exposure: ArrayLike | str | None = None,
    units: Sequence[Any] | ArrayLike | str | None = None,
    covariates: Any = None,
    data: Any = None,
    population: str | Distribution = "conjugate",
    method: str | None = None,
    priors: Mapping[str, Any] | str | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Pooled:
    """Borrow strength across units: better estimates of each, from one estimate, count or rate a unit.

    Parameters
    ----------
    values : array or column name
        Estimates (with `se`), events (with `trials`), or counts (with `exposure`); one row per unit.
    se, trials, exposure : array, number or column name
        One of them: standard errors (estimates are normal), trials (events are binomial), or exposures such as
        person-years or expected counts (counts are Poisson).
    units : array or column name, optional
        The units' names; 0 to n - 1 where none are given.
    covariates : formula text such as "size + region", data frame, mapping or array, optional
        The units vary around a regression on these (on the scale of the link: identity, logit, log).
    data : any data frame, mapping, or path of a CSV or Parquet file, optional
        Where column names are looked up.
    population : str or distribution
        The distribution of the units' true values. "conjugate": normal, beta or gamma. On the link scale: "normal";
        "student_t" (robust to outlying units); "point_normal" (a share of nulls, exactly alike, and a normal);
        "scale_mixture" (adaptive shrinkage), "unimodal" and "npmle" (any distribution), whose weights are estimated. Or
        a distribution that is known: ``pp.Beta(2, 8)``, ``pp.Gamma(7, rate=6)``, ``pp.Normal(0.25, 1)``.
    method : {"bayes", "empirical_bayes", "fixed"}, optional
        "bayes", the default, integrates over the population's parameters; "empirical_bayes" puts them at their
        maximum marginal likelihood, and shows beside its intervals those of "bayes"; "fixed" is for a known
        distribution, and goes without saying there. Populations of estimated weights have "empirical_bayes" only,
        which is their default.
    priors : mapping, optional
        By the names of the parameters, such as ``{"mean": pp.Normal(0, 10), "sd": pp.HalfCauchy(5)}``, or their texts;
        a number in the place of a distribution for the mean of estimates, or of a population on the link scale, means
        that it is known. ``priors="bda"`` is the
        hyperprior (alpha + beta)^(-5/2) of a beta population.
    seed : int
        Of what is drawn (ranks, predictions, the ArviZ export); the pooled estimates need no random numbers.
    threads : int, optional
        Cores to use; all by default. No result depends on it.

    Returns
    -------
    Pooled

    Raises
    ------
    DataError, ModelError, PriorError
        Where the data, an argument or a prior cannot be used: what, where, and how to mend it.

    Notes
    -----
    ``pp.pool(y, se=s, units=g)`` is the model ``pp.fit("y | se(s) ~ 1 + (1 | g)")`` with the same priors.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool([6, 2, 48], exposure=[4, 4, 40], population=pp.Gamma(7, rate=6))
    >>> pooled.table[["raw", "mean"]].round(5).values.tolist()
    [[1.5, 1.3], [0.5, 0.9], [1.2, 1.19565]]
    """
    read = read_units(
        values, se=se, trials=trials, exposure=exposure, units=units, covariates=covariates, data=data
    )  # fmt: skip
    return fit_units(read, _request(read, population, method, priors, seed, threads))


def _request(
    units: Units, population: str | Distribution, method: str | None, priors: Any, seed: int, threads: int | None
) -> Request:
    """What was asked, checked and with every default filled in."""
    if method is not None and method not in METHODS:
        raise ModelError(f"There is no method {method!r}. {did_you_mean(str(method), METHODS)}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ModelError(f"seed = {seed!r} is not possible; give a whole number of at least 0.")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ModelError(f"threads = {threads!r} is not possible; give a whole number above 0, or leave it out.")
    workers = int(threads or os.cpu_count() or 1)
    if isinstance(population, Distribution):
        return _known_request(units, population, method, priors, int(seed), workers)
    if not isinstance(population, str) or population not in POPULATIONS:
        names = {"beta": "conjugate", "gamma": "conjugate"}
        if population == CONJUGATE[units.family]:
            population = "conjugate"
        else:
            hint = names.get(str(population))
            told = f"It is the conjugate one of {'counts' if population == 'gamma' else 'events'}." if hint else None
            raise ModelError(
                f"There is no population {population!r} here. {told or did_you_mean(str(population), POPULATIONS)}"
            )
    kind = CONJUGATE[units.family] if population == "conjugate" else population
    if method == "fixed":
        raise ModelError("method='fixed' is for a population that is known; give it, as in population=pp.Normal(0, 1).")
    if kind in WEIGHTED and method == "bayes":
        raise ModelError(
            f"The weights of population={kind!r} are estimated by maximum likelihood: method='empirical_bayes' (its "
            "default). For full Bayes take population='normal', 'student_t' or 'point_normal'."
        )
    wanted = method or ("empirical_bayes" if kind in WEIGHTED else "bayes")
    needs_units(units)
    hyper = _hyperpriors(units, kind, priors)
    if wanted == "bayes":
        refuse_improper(units, kind, hyper)
    return Request(kind, wanted, hyper, None, int(seed), workers)


def _known_request(
    units: Units, population: Distribution, method: str | None, priors: Any, seed: int, threads: int
) -> Request:
    if method not in (None, "fixed"):
        raise ModelError(
            f"The population {population} is known, so that there is nothing for method={method!r} to learn; leave "
            "method= out, or give the name of a population to be learnt, such as population='conjugate'."
        )
    if priors:
        raise ModelError(f"The population {population} is known and has no parameters that priors= could speak of.")
    if units.X is not None:
        raise ModelError(f"The population {population} is known and has no place for covariates=.")
    return Request("known", "fixed", HyperPriors({}), population, seed, threads)


def _hyperpriors(units: Units, kind: str, priors: Any) -> HyperPriors:
    """The priors; nulls of estimates are at 0: point_normal, scale_mixture and unimodal have that mean, known."""
    defaults: dict[str, Any] = {}
    if kind in ("point_normal", "scale_mixture", "unimodal") and units.family == "normal" and units.X is None:
        defaults["mean"] = 0.0
    if isinstance(priors, Mapping) and str(priors.get("mean")).casefold() == "estimate":
        if kind not in WEIGHTED[:2]:
            raise ModelError("priors={'mean': 'estimate'} is for scale_mixture and unimodal; give the mean a prior.")
        return HyperPriors({})
    if kind in WEIGHTED:
        known = {**defaults, **(priors or {})} if not isinstance(priors, str) else {}
        extra = [name for name in known if name != "mean"]
        if isinstance(priors, str) or extra or (kind == "npmle" and known):
            raise ModelError(
                f"population={kind!r} is estimated by maximum likelihood and takes no priors, "
                "but for a mode that is known: priors={'mean': 0.0} (scale_mixture, unimodal)."
            )
        if units.X is not None:
            raise ModelError(f"population={kind!r} takes no covariates; use 'normal', 'student_t' or 'conjugate'.")
        for name, value in known.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ModelError(f"priors={{{name!r}: {value!r}}}: the mode of {kind!r} is a number, or 'estimate'.")
        return HyperPriors({}, {name: float(value) for name, value in known.items()})
    return read_priors(units, kind, priors, defaults)


def fit_units(units: Units, request: Request) -> Pooled:
    """The posterior of units that have been read, by the method asked for."""
    if request.method == "fixed":
        assert request.known is not None
        found = known_population(units, request.known, request.threads)
    elif request.kind in WEIGHTED:
        found = weighted_population(units, request.kind, request.priors.known.get("mean"), request.threads)
    elif request.method == "empirical_bayes":
        found = estimate_empirical(units, request.kind, request.priors, request.threads)
    else:
        found = estimate_bayes(units, request.kind, request.priors, request.threads, request.seed)
    return Pooled(units, request, found)
