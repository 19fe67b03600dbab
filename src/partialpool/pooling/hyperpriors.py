"""Priors of a population's parameters: their names, their defaults, and which of them leave no posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.defaults import location_prior, rounded, spread_prior
from partialpool.errors import ModelError, PriorError
from partialpool.pooling.units import Units
from partialpool.spec.distributions import (
    Beta,
    Cauchy,
    Distribution,
    Flat,
    Gamma,
    HalfCauchy,
    HalfStudentT,
    InverseGamma,
    Normal,
    StudentT,
    Uniform,
)
from partialpool.spec.priors import Slot, parse_distribution, resolve_priors

Array = NDArray[np.float64]

#: The hyperprior of Bayesian Data Analysis (Gelman et al., 3rd edition, section 5.3), by the names people give it.
BDA = ("bda", "bda3", "(alpha+beta)^(-5/2)", "(alpha+beta)**(-5/2)", "(alpha+beta)^-2.5", "(alpha+beta)**-2.5")
#: What the sd of a conjugate population is measured in where the default prior speaks of it.
RELATIVE = {"beta": "sqrt(mean (1 - mean)), the largest sd that a mean allows", "gamma": "the mean"}


@dataclass(frozen=True, repr=False)
class HyperPriors:
    """The priors in force.

    Attributes
    ----------
    table : PriorTable, or an empty mapping where nothing is estimated under a prior
    known : values of parameters that are given, not estimated.
    bda : whether it is p(alpha, beta) proportional to (alpha + beta)^(-5/2) that takes the place of the table.
    """

    table: Mapping[str, Distribution]
    known: Mapping[str, float] = field(default_factory=dict)
    bda: bool = False

    def __getitem__(self, name: str) -> Distribution:
        return self.table[name]

    def __contains__(self, name: object) -> bool:
        return name in self.table

    def __repr__(self) -> str:
        if self.bda:
            return "p(alpha, beta) proportional to (alpha + beta)^(-5/2)"
        lines = [repr(self.table)] if self.table else []
        lines += [f"{name} is known: {value:g}" for name, value in self.known.items()]
        return "\n".join(lines) or "No priors: nothing is estimated under one."

    @property
    def proper(self) -> bool:
        """Whether every prior is proper, so that the marginal likelihood has a meaning."""
        return not self.bda and all(prior.proper for prior in self.table.values())


def read_priors(units: Units, kind: str, priors: Any, defaults: Mapping[str, Any] | None = None) -> HyperPriors:
    """The priors of a population's parameters.

    Parameters
    ----------
    units : Units
    kind : the population's name.
    priors : mapping of names to distributions, to their texts, or to numbers (the parameter is then known); or "bda".
    defaults : priors of the population that come before the ones of this module.

    Raises
    ------
    PriorError
        Where a prior cannot stand where it was put.
    """
    if isinstance(priors, str):
        if "".join(priors.split()).casefold() not in BDA or kind != "beta":
            raise PriorError(
                f"priors={priors!r} is not possible; write priors={{'mean': ..., 'sd': ...}}, or priors='bda' for a "
                "beta population."
            )
        return HyperPriors(resolve_priors({}, []), bda=True)
    if priors is not None and not isinstance(priors, Mapping):
        raise PriorError(f"priors= must be a mapping such as {{'sd': pp.HalfCauchy(1)}}, not {priors!r}.")
    given = {**(defaults or {}), **(priors or {})}
    known = {name: _number(name, value) for name, value in given.items() if _is_number(value)}
    asked = {name: value for name, value in given.items() if name not in known}
    slots = _slots(units, kind, asked, known)
    names = {slot.name for slot in slots}
    for name, value in known.items():
        if name not in names or name in ("sd", "relative_sd", "nu") or units.X is not None or kind in RELATIVE:
            raise PriorError(
                f"priors={{{name!r}: {value:g}}} would fix a parameter that cannot be fixed here; give it a "
                "narrow distribution, or a whole population that is known, such as population=pp.Normal(0, 1)."
            )
        if name == "null_share" and not 0 < value < 1:
            raise PriorError(f"'null_share' lies between 0 and 1, and {value:g} does not.")
    if kind in RELATIVE and units.X is not None and {"sd", "tau"} & set(asked):
        raise PriorError(
            f"With covariates the sd of a {kind} population depends on the unit's mean; set 'relative_sd', the sd in "
            f"units of {RELATIVE[kind]}."
        )
    _check_shares(asked, kind)
    table = resolve_priors(asked, [slot for slot in slots if slot.name not in known])
    return HyperPriors(table, known)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _number(name: str, value: Any) -> float:
    if not math.isfinite(float(value)):
        raise PriorError(f"priors={{{name!r}: {value!r}}}: a known parameter must be a finite number.")
    return float(value)


def _slots(units: Units, kind: str, asked: Mapping[str, Any], known: Mapping[str, float]) -> list[Slot]:
    """The places that take a prior, each with its default."""
    centre, spread, note = link_scale(units)
    slots = []
    if units.X is not None:
        for name, column in zip(units.x_names, units.X.T, strict=True):
            if name == "Intercept":
                slots.append(Slot(name, "intercept", ("mean",), location_prior(centre, spread), note))
            else:
                width = float(np.std(column, ddof=1)) or 1.0
                slots.append(
                    Slot(name, "coefficient", ("beta",), Normal(0, rounded(2.5 * spread / width)), "2.5 / sd(x)")
                )
    elif kind == "beta":
        slots.append(Slot("mean", "family", ("mu",), Beta(1, 1), "any mean equally likely"))
    elif kind == "gamma":
        rate = (float(units.y.sum()) + 0.5) / float(units.size.sum())
        slots.append(
            Slot("mean", "family", ("mu",), Gamma(0.5, rounded(0.5 / rate)), "mean (sum y + 1/2) / sum exposure")
        )
    else:
        slots.append(Slot("mean", "coefficient", ("mu",), location_prior(centre, spread), note))
    if kind in RELATIVE and not {"sd", "tau"} & {*asked, *known}:
        default: Distribution = Uniform(0, 1) if kind == "beta" else HalfStudentT(3, 1)
        slots.append(Slot("relative_sd", "sd", (), default, f"sd in units of {RELATIVE[kind]}"))
    else:
        slots.append(
            Slot(
                "sd", "sd", ("tau",), spread_prior(spread), note and "2.5 sd(y)" if units.family == "normal" else "2.5"
            )
        )
    if kind == "student_t":
        slots.append(Slot("nu", "family", (), Gamma(2, 0.1), ""))
    if kind == "point_normal":
        slots.append(Slot("null_share", "family", (), Beta(1, 1), "any share of nulls equally likely"))
    return slots


def link_scale(units: Units) -> tuple[float, float, str]:
    """Centre and spread of the units on the link scale, as `pp.fit` takes them for its default priors."""
    y, size = units.y, units.size
    if units.family == "normal":
        spread = float(np.std(y, ddof=1)) if y.size > 1 else 0.0
        return float(np.mean(y)), spread or 1.0, "mean(y), 2.5 sd(y)"
    if units.family == "binomial":
        share = (float(y.sum()) + 0.5) / (float(size.sum()) + 1)
        return math.log(share / (1 - share)), 1.0, "logit((sum y + 1/2) / (sum trials + 1)), 2.5"
    return math.log((float(y.sum()) + 0.5) / float(size.sum())), 1.0, "log((sum y + 1/2) / sum exposure), 2.5"


def _check_shares(asked: Mapping[str, Any], kind: str) -> None:
    """A share, or the mean of a beta population, lies between 0 and 1."""
    shares = {"null_share"} | ({"mean", "mu", "relative_sd"} if kind == "beta" else set())
    for name in shares & set(asked):
        prior = parse_distribution(asked[name]) if isinstance(asked[name], str) else asked[name]
        if not isinstance(prior, Distribution) or isinstance(prior, Flat):
            continue
        low, high = prior.support
        if low < 0 or high > 1:
            raise PriorError(
                f"{name!r} lies between 0 and 1, and {prior} reaches beyond; write Beta(1, 1) or Uniform(0.1, 0.4), "
                "for example."
            )


def refuse_improper(units: Units, kind: str, priors: HyperPriors) -> None:
    """Refuse priors under which these units leave the posterior improper.

    With a flat prior the likelihood alone has to fall off. In the normal model p(y | tau) falls as tau^-(J - p), p the
    number of coefficients with flat priors, which is integrable over tau from J - p = 2 on (with two units and a flat
    tau, only a proper prior of the mean would keep the posterior proper, and decide it: that is refused too); in the
    beta-binomial model with p(alpha, beta) = (alpha + beta)^(-5/2) one unit strictly between none and all is needed
    (Gelman et al., 2013, exercise 5.7); for counts and events on a link scale units with all or no events say nothing
    about how far away they lie.
    """
    n = units.n
    if priors.bda:
        if not np.any((units.y > 0) & (units.y < units.size)):
            raise PriorError(
                "Under the hyperprior (alpha + beta)^(-5/2) these units leave an improper posterior: not one of them "
                "has events in some of its trials but not in all. Leave priors= out for a proper default."
            )
        return
    flat = [name for name, prior in priors.table.items() if isinstance(prior, Flat)]
    if not flat:
        return
    flat_sd = "sd" in flat or "relative_sd" in flat
    coefficients = [name for name in flat if name not in ("sd", "relative_sd", "nu", "null_share")]
    if "nu" in flat:
        raise PriorError("A flat prior on nu has no proper posterior; use the default, Gamma(2, 0.1).")
    if flat_sd and kind == "point_normal":
        raise PriorError(
            "A flat prior on 'sd' leaves an improper posterior here: all units may be nulls, and then the sd may be as "
            "large as it likes. Give it a prior with a scale, such as priors={'sd': pp.HalfCauchy(1)}."
        )
    if units.family == "normal":
        informative = n
    elif units.family == "binomial":
        informative = int(((units.y > 0) & (units.y < units.size)).sum())
    else:
        informative = int((units.y > 0).sum())
    needed = len(coefficients) + (2 if flat_sd and kind != "beta" else 0)
    if flat_sd and units.family == "normal":
        needed = max(needed, 3)
    if informative < needed:
        what = "units" if units.family == "normal" else "units with events (and not only events)"
        raise PriorError(
            f"A flat prior on {' and '.join(map(repr, flat))} leaves an improper posterior with {informative} {what}: "
            f"{needed} are needed. Give the sd a prior with a scale, such as priors={{'sd': pp.HalfCauchy(1)}}."
        )


def tail_power(prior: Distribution) -> float:
    """How fast the density of a positive parameter falls: as x to the minus this; infinite where faster than that."""
    if isinstance(prior, Flat):
        return 0.0
    if isinstance(prior, HalfCauchy | Cauchy):
        return 2.0
    if isinstance(prior, HalfStudentT | StudentT):
        return prior.nu + 1.0
    if isinstance(prior, InverseGamma):
        return prior.shape + 1.0
    return math.inf


def needs_units(units: Units) -> None:
    """One unit has no spread to learn from."""
    if units.n == 1:
        raise ModelError(
            "There is one unit: nothing can be learnt of how units differ. Give the population it comes from, such as "
            "population=pp.Beta(2, 8), pp.Gamma(7, rate=6) or pp.Normal(0, 1)."
        )


def moment_orders(units: Units, kind: str, priors: HyperPriors) -> dict[str, float]:
    """Up to which order (excluded) the posterior moments of parameters exist; those left out have all of them.

    A large sd: the prior's tail times the likelihood's, which falls as sd^-m with m the units (less flat coefficients)
    that speak against it. A small one: alpha, beta, shape and rate grow as sd^-2, and exist in the mean only where the
    prior keeps away from 0 faster than sd does.
    """
    orders: dict[str, float] = {}
    if kind in ("beta", "gamma"):
        name = "sd" if "sd" in priors else "relative_sd"
        power = 0.0 if priors.bda else zero_power(priors[name])
        concentration = (power + 1) / 2
        orders.update(dict.fromkeys(("alpha", "beta", "alpha+beta", "shape", "rate"), concentration))
    if kind == "beta" or "sd" not in priors:
        return orders
    flat = sum(isinstance(prior, Flat) for name, prior in priors.table.items() if name != "sd")
    if units.family == "normal":
        informative = units.n
    elif units.family == "binomial":
        informative = int(((units.y > 0) & (units.y < units.size)).sum())
    else:
        informative = int((units.y > 0).sum()) * (2 if kind == "gamma" else 1)
    if kind == "point_normal":  # all units may be nulls: the likelihood does not fall with the sd
        informative = flat
    order = tail_power(priors["sd"]) + informative - flat - 1
    orders["sd"] = order
    if kind == "normal" and flat:
        orders.update(dict.fromkeys(("mean", *units.x_names), order))
    return orders


def zero_power(prior: Distribution) -> float:
    """How fast the density of an sd vanishes at 0: as its power; infinite where faster than that."""
    if isinstance(prior, Gamma):
        return prior.shape - 1
    if isinstance(prior, Beta):
        return prior.a - 1
    if isinstance(prior, InverseGamma) or (isinstance(prior, Uniform) and prior.low > 0):
        return math.inf
    return 0.0
