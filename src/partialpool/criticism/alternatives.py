r"""Alternative priors: those that are usually tried for the sds of groups, and those that a user names.

The usual ones are scaled by S, the scale of the default prior (2.5 sd(y) of an intercept, over sd(x) of a slope), so
that they do not depend on the units of the data: half-Cauchy(S), half-normal(S), half-t(3, S), uniform(0, 4 S) (0 to 10
sds of the response), the penalised-complexity prior with P(sd > S) = 5%, and inverse-gamma(0.001, 0.001) for the
variance in units of (S / 2.5)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, PriorError, did_you_mean
from partialpool.levels.refit import shared_priors
from partialpool.model import Model
from partialpool.spec.distributions import (
    PC,
    Distribution,
    Flat,
    HalfCauchy,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    Uniform,
)
from partialpool.spec.priors import CENTERED_INTERCEPT, PriorTable, Slot, resolve_priors

Array = NDArray[np.float64]
Priors = Mapping[str, Distribution | str]

#: Shape and scale of the inverse-gamma prior of a variance (in units of the response's), as BUGS examples had it.
VAGUE = 0.001
#: What the fit itself is called beside its alternatives.
AS_FITTED = "as fitted"


@dataclass(frozen=True)
class InverseGammaVariance(Distribution):
    """The prior of an sd whose square is InverseGamma(`shape`, `scale`).

    Its density is ``2 scale^shape / Gamma(shape) x^(-2 shape - 1) exp(-scale / x^2)``.

    Examples
    --------
    >>> print(InverseGammaVariance(0.001, 0.5))
    InverseGamma(0.001, 0.5) on the variance
    """

    shape: float
    scale: float
    positive = ("shape", "scale")

    @property
    def support(self) -> tuple[float, float]:
        """Ends of the interval where the density is positive."""
        return (0.0, math.inf)

    def _log_density(self, x: Array) -> Array:
        constant = math.log(2.0) + self.shape * math.log(self.scale) - math.lgamma(self.shape)
        density = constant - (2 * self.shape + 1) * np.log(x) - self.scale / (x * x)
        return np.where((x == 0.0) | np.isnan(density), -np.inf, density)

    def _score(self, x: Array) -> Array:
        return (2 * self.scale / (x * x) - (2 * self.shape + 1)) / x

    def sample(self, rng: np.random.Generator, size: Any = None) -> Array:
        return np.asarray(np.sqrt(self.scale / rng.standard_gamma(self.shape, size)))

    @property
    def carrier(self) -> Distribution:
        """A prior that every engine knows, of almost the same shape.

        This density over its is bounded, and nearly constant above the spike at 0: a fit under it is reweighted without
        loss.
        """
        return InverseGamma(2 * self.shape, math.sqrt(self.scale) / 2)

    def __str__(self) -> str:
        return f"InverseGamma({self.shape:.12g}, {self.scale:.12g}) on the variance"


#: The usual alternatives, by name: a prior from the default's scale.
USUAL: dict[str, Callable[[float], Distribution]] = {
    "half-Cauchy": HalfCauchy,
    "half-normal": HalfNormal,
    "half-t": lambda scale: HalfStudentT(3, scale),
    "uniform": lambda scale: Uniform(0.0, 4 * scale),
    "inverse-gamma": lambda scale: InverseGammaVariance(VAGUE, float(f"{VAGUE * (scale / 2.5) ** 2:.3g}")),
    "PC": lambda scale: PC(scale, 0.05),
}


@dataclass(frozen=True)
class Alternative:
    """Priors to try: their name, and the table of priors in force under them."""

    name: str
    priors: PriorTable


def alternatives(model: Model, wanted: Any) -> list[Alternative]:
    """What `priors=` of ``fit.sensitivity`` asks for.

    Raises
    ------
    ModelError, PriorError
        With what is wrong, and what there is.
    """
    if wanted == "hyper":
        wanted = list(USUAL)
    if isinstance(wanted, str):
        wanted = [wanted]
    if isinstance(wanted, Mapping):
        named = _named(model, wanted)
        if AS_FITTED in named:
            raise ModelError(
                f"{AS_FITTED!r} is what the fit itself is called here; give that alternative another name."
            )
        return [Alternative(name, resolved(model, own)) for name, own in named.items()]
    if not isinstance(wanted, Sequence) or not wanted:
        raise ModelError(
            f"priors={wanted!r} is not possible: write 'hyper', names out of {', '.join(USUAL)}, or a mapping such as "
            "{'sd(g)': pp.HalfNormal(1)}."
        )
    found = {known_name(name): name for name in wanted}
    return [Alternative(name, resolved(model, usual(model, name))) for name in found]


def usual(model: Model, name: str) -> dict[str, Distribution]:
    """One of the usual priors for every sd of groups."""
    key = known_name(name)
    own = sd_slots(model)
    if not own:
        raise ModelError(
            "This model has no groups, so that there are no group sds to give other priors; name the priors: "
            "priors={'beta': pp.Normal(0, 1)}, for example."
        )
    return {slot.name: USUAL[key](default_scale(slot)) for slot in own}


def known_name(name: Any) -> str:
    """A usual prior as it is written here, however the user wrote it."""
    known = {key.casefold().replace("-", "").replace("_", ""): key for key in USUAL}
    key = known.get(str(name).casefold().replace("-", "").replace("_", "").replace(" ", ""))
    if key is None:
        raise ModelError(f"There is no alternative prior {name!r}. {did_you_mean(str(name), list(USUAL))}")
    return key


def sd_slots(model: Model) -> list[Slot]:
    """The sds of groups."""
    return [slot for slot in model.priors.slots if slot.kind == "sd"]


def default_scale(slot: Slot) -> float:
    """The scale of an sd's default prior."""
    return float(slot.default.parameters.get("sigma", 1.0))


def _named(model: Model, wanted: Mapping[Any, Any]) -> dict[str, Priors]:
    """One alternative, or several by name; a distribution alone is meant for every sd of groups."""
    if not wanted:
        raise ModelError("priors={} names no prior; write {'sd': pp.HalfNormal(1)}, for example.")
    addresses = {_squeezed(address) for slot in model.priors.slots for address in slot.addresses}
    plain = {name: isinstance(value, str | Distribution) for name, value in wanted.items()}
    if all(plain.values()) and any(_squeezed(str(name)) in addresses for name in wanted):
        return {"yours": dict(wanted)}
    out: dict[str, Priors] = {}
    for name, value in wanted.items():
        if isinstance(value, Mapping):
            out[str(name)] = value
        elif isinstance(value, str | Distribution):
            if _squeezed(str(name)) in addresses:
                raise ModelError(
                    f"priors= has a prior ({name!r}) beside something that is none. Give either one dict of priors, or "
                    f"several by name: {{'first': {{{name!r}: {value}}}, 'second': {{...}}}}."
                )
            near = get_close_matches(_squeezed(str(name)), addresses, cutoff=0.75)
            if near or "(" in str(name) or not sd_slots(model):
                raise PriorError(
                    f"No parameter of this model takes the prior {name!r}. {did_you_mean(str(name), sorted(addresses))}"
                )
            out[str(name)] = {slot.name: value for slot in sd_slots(model)}
        else:
            raise ModelError(
                f"The alternative {name!r} must be a dict of priors, such as {{'sd': pp.HalfNormal(1)}}, or one prior "
                f"for every sd of groups; it is {value!r}."
            )
    return out


def _squeezed(name: str) -> str:
    return "".join(name.split())


def resolved(model: Model, changes: Priors) -> PriorTable:
    """The priors of a model with some of them changed.

    Raises
    ------
    PriorError
        For a name that addresses nothing, a prior that a parameter cannot have, or one without a proper posterior.
    """
    slots = model.priors.slots
    new = resolve_priors(changes, slots)
    kept = shared_priors(model.priors, slots)
    merged: dict[str, Distribution | str] = {}
    for slot in slots:
        key = new.matched_key(slot.name)
        if key is None:
            merged.update({name: kept[name] for name in (slot.name, f"{slot.prefix}{CENTERED_INTERCEPT}")
                           if name in kept and (name == slot.name or slot.kind == "intercept")})  # fmt: skip
        else:
            merged[key if slot.kind == "intercept" else slot.name] = new[slot.name]
    table = resolve_priors(merged, slots)
    _refuse_improper(model, table)
    return table


def _refuse_improper(model: Model, table: PriorTable) -> None:
    for factor in model.design.factors:
        for name in table:
            few = len(factor.labels) <= 2
            if few and isinstance(table[name], Flat) and name.startswith("sd(") and name.endswith(f"|{factor.name})"):
                raise PriorError(
                    f"A flat prior on {name!r} has no proper posterior with {len(factor.labels)} groups; it takes at "
                    "least 3. Use a proper one, such as HalfNormal(1)."
                )
