"""Priors by name: which distribution each parameter of a model has, and where it came from.

A prior that a user declares is used or refused, never dropped.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from inspect import signature
from typing import TYPE_CHECKING, Any

from partialpool.errors import PriorError, did_you_mean
from partialpool.spec.distributions import (
    DISTRIBUTIONS,
    LKJ,
    PC,
    Beta,
    Cauchy,
    Distribution,
    Exponential,
    Flat,
    Gamma,
    HalfCauchy,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    Normal,
    StudentT,
    Uniform,
)

if TYPE_CHECKING:
    import pandas

__all__ = [
    "LKJ", "PC", "Beta", "Cauchy", "Distribution", "Exponential", "Flat", "Gamma", "HalfCauchy", "HalfNormal",
    "HalfStudentT", "InverseGamma", "Normal", "PriorTable", "Slot", "StudentT", "Uniform", "distribution_from_json",
    "distribution_to_json", "parse_distribution", "resolve_priors",
]  # fmt: skip

INTERCEPT = "Intercept"
CENTERED_INTERCEPT = "Intercept(centered)"

_KINDS = ("coefficient", "intercept", "sd", "cor", "sigma", "family")
_POSITIVE = ("sd", "sigma", "family")


@dataclass(frozen=True)
class Slot:
    """One place of a model that takes a prior.

    Parameters
    ----------
    name : str
        The parameter's public name, "sd(Days|Subject)".
    kind : str
        "coefficient", "intercept", "sd", "cor", "sigma" or "family" (a positive parameter of the family: phi, nu).
    keys : tuple of str
        Names that address it, most specific first. The slot's own name always does, "beta" every coefficient but the
        intercept, and "Intercept" and "Intercept(centered)" the intercept.
    default : Distribution
        The prior in force where the user names none.
    note : str
        How the default was scaled.
    prefix : str
        What the names of its linear predictor begin with: nothing for the mean's, "sigma." for that of sigma, whose
        coefficients "sigma.beta" addresses.

    Examples
    --------
    >>> Slot("sd(Days|Subject)", "sd", ("sd(Subject)", "sd"), HalfNormal(1)).addresses
    ('sd(Days|Subject)', 'sd(Subject)', 'sd')
    """

    name: str
    kind: str
    keys: tuple[str, ...]
    default: Distribution
    note: str = ""
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise PriorError(f"{self.name!r} is of kind {self.kind!r}, which is none of {', '.join(_KINDS)}.")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every name that addresses this slot, most specific first."""
        implied: tuple[str, ...] = ()
        if self.kind == "coefficient":
            implied = (f"{self.prefix}beta",)
        elif self.kind == "intercept":
            implied = (f"{self.prefix}{INTERCEPT}", f"{self.prefix}{CENTERED_INTERCEPT}")
        return tuple(dict.fromkeys((self.name, *self.keys, *implied)))


@dataclass(frozen=True)
class _Entry:
    slot: Slot
    prior: Distribution
    matched_key: str | None  # the address under which the user named it; None for a default

    @property
    def source(self) -> str:
        return "default" if self.matched_key is None else "you"

    @property
    def note(self) -> str:
        if self.matched_key is None:
            return self.slot.note
        if self.slot.kind == "intercept":
            centered = self.matched_key == f"{self.slot.prefix}{CENTERED_INTERCEPT}"
            return "at the mean of the predictors" if centered else "as written in the formula"
        return "" if self.matched_key == self.slot.name else f"through {self.matched_key!r}"


class PriorTable(Mapping[str, Distribution]):
    """The priors in force, by the name of the parameter; immutable.

    Examples
    --------
    >>> slots = [Slot("Days", "coefficient", (), Normal(0, 50)), Slot("sigma", "sigma", (), HalfStudentT(3, 140))]
    >>> resolve_priors({"sigma": "half_normal(30)"}, slots)
    parameter  prior           source   note
    Days       Normal(0, 50)   default
    sigma      HalfNormal(30)  you
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self._entries = {entry.slot.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Distribution:
        return self._entry(name).prior

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots, in the order of the table."""
        return tuple(entry.slot for entry in self._entries.values())

    def source(self, name: str) -> str:
        """Whether the prior is a "default" or was named by "you"."""
        return self._entry(name).source

    def matched_key(self, name: str) -> str | None:
        """The name under which the user gave this prior ("beta", "sd(Subject)"); None for a default."""
        return self._entry(name).matched_key

    def note(self, name: str) -> str:
        """How a default was scaled, or through which name the user's prior came."""
        return self._entry(name).note

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise _UnknownPriorError(f"No parameter is called {name!r}. {did_you_mean(name, self._entries)}") from None

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(name, str(entry.prior), entry.source, entry.note) for name, entry in self._entries.items()]

    def to_frame(self) -> pandas.DataFrame:
        """A data frame: index parameter, columns prior, source, note (all text)."""
        import pandas

        frame = pandas.DataFrame(self._rows(), columns=["parameter", "prior", "source", "note"])
        return frame.set_index("parameter")

    def to_json(self) -> list[dict[str, Any]]:
        """The whole table as plain data."""
        return [
            {
                "name": entry.slot.name,
                "kind": entry.slot.kind,
                "keys": list(entry.slot.keys),
                "default": distribution_to_json(entry.slot.default),
                "note": entry.slot.note,
                "prefix": entry.slot.prefix,
                "prior": distribution_to_json(entry.prior),
                "matched_key": entry.matched_key,
            }
            for entry in self._entries.values()
        ]

    @classmethod
    def from_json(cls, state: Sequence[Mapping[str, Any]]) -> PriorTable:
        """The inverse of `to_json`."""
        return cls([_entry_from_json(row) for row in state])

    def __repr__(self) -> str:
        rows = [("parameter", "prior", "source", "note"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{cell}</th>" for cell in ("parameter", "prior", "source", "note"))
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class _UnknownPriorError(PriorError, KeyError):
    """The table has no such parameter; a KeyError as well, so that `in` and `.get` work."""

    def __str__(self) -> str:  # KeyError would show the quoted repr of the sentence
        return str(self.args[0])


def resolve_priors(user: Mapping[str, Distribution | str] | None, slots: Sequence[Slot]) -> PriorTable:
    """The prior of every slot: the user's where a key addresses it (the most specific wins), else the default.

    Parameters
    ----------
    user : mapping or None
        Distributions, or their text, by name; None for all defaults.
    slots : sequence of Slot
        What takes a prior in this model, in the order of the table.

    Raises
    ------
    PriorError
        For a name that addresses nothing (with the nearest), a distribution that the parameter cannot have, both
        intercepts at once, or a prior that more specific ones leave without a parameter.

    Examples
    --------
    >>> slots = [Slot("Days", "coefficient", (), Normal(0, 50))]
    >>> resolve_priors({"beta": Normal(0, 1)}, slots)["Days"]
    Normal(mu=0.0, sigma=1.0)
    """
    given = _read_user(user)
    address_of = {_squeeze(address): address for slot in slots for address in slot.addresses}
    for squeezed, (key, _) in given.items():
        if squeezed not in address_of:
            _refuse_pair(key, slots)
            raise PriorError(f"No parameter of this model takes the prior {key!r}. {_candidates(key, slots)}")
    entries, used = [], set()
    for slot in slots:
        both = [f"{slot.prefix}{name}" for name in (INTERCEPT, CENTERED_INTERCEPT)]
        if slot.kind == "intercept" and all(name in given for name in both):
            raise PriorError(f"There are priors on {both[0]!r} and {both[1]!r}, which are one parameter; keep one.")
        matched = next((address for address in slot.addresses if _squeeze(address) in given), None)
        prior = slot.default if matched is None else given[_squeeze(matched)][1]
        if matched is not None:
            used.add(_squeeze(matched))
            _check_kind(slot, prior)
        entries.append(_Entry(slot, prior, matched))
    for squeezed, (key, _) in given.items():
        if squeezed not in used:
            raise PriorError(
                f"The prior on {key!r} would not be used, because every parameter it addresses has a more specific "
                "prior; remove one of them."
            )
    return PriorTable(entries)


def _read_user(user: Mapping[str, Distribution | str] | None) -> dict[str, tuple[str, Distribution]]:
    """User's priors by squeezed key, each with the key as written."""
    if user is None:
        return {}
    if not isinstance(user, Mapping):
        raise PriorError(
            "priors must be a dict of distributions by name, as in {'Intercept': Normal(0, 5)}, "
            f"not {_describe(user)}."
        )
    given: dict[str, tuple[str, Distribution]] = {}
    for key, value in user.items():
        if not isinstance(key, str):
            raise PriorError(f"The names of priors are text such as 'sd(Subject)', and one is {_describe(key)}.")
        squeezed = _squeeze(key)
        if squeezed in given:
            raise PriorError(f"The priors {given[squeezed][0]!r} and {key!r} name the same parameter; keep one.")
        given[squeezed] = (key, _read_value(key, value))
    return given


def _read_value(key: str, value: object) -> Distribution:
    if isinstance(value, Distribution):
        return value
    if isinstance(value, str):
        try:
            return parse_distribution(value)
        except PriorError as error:
            raise PriorError(f"Prior on {key!r}: {error}") from None
    raise PriorError(
        f"The prior on {key!r} must be a distribution such as Normal(0, 1), or its text, not {_describe(value)}."
    )


def _check_kind(slot: Slot, prior: Distribution) -> None:
    """Refuse a distribution that a parameter of this kind cannot have."""
    if slot.kind == "cor":
        if not isinstance(prior, LKJ):
            flat = isinstance(prior, Flat)
            mend = "LKJ(1), which is flat over correlation matrices" if flat else "LKJ(2), for example"
            raise PriorError(f"{slot.name!r} is a correlation and cannot have the prior {prior}; write {mend}.")
    elif isinstance(prior, LKJ):
        mend = "HalfNormal(1)" if slot.kind in _POSITIVE else "Normal(0, 1)"
        raise PriorError(
            f"{prior} is a prior of correlations, and {slot.name!r} is not one; write {mend}, for example."
        )
    elif slot.kind in _POSITIVE:
        _check_positive(slot, prior)
    elif prior.support[0] == 0.0 and prior.support[1] == float("inf"):
        raise PriorError(
            f"{slot.name!r} is a coefficient, which may be negative, and cannot have the prior {prior}; "
            f"write {_whole_version(prior)}."
        )
    elif not isinstance(prior, Normal | StudentT | Cauchy | Flat):
        raise PriorError(
            f"The prior {prior} of the coefficient {slot.name!r} cannot be integrated out exactly. "
            "Use Normal, StudentT, Cauchy or Flat."
        )


def _refuse_pair(key: str, slots: Sequence[Slot]) -> None:
    """Refuse a prior of one correlation among several: LKJ is about all of them at once."""
    squeezed = _squeeze(key)
    if not (squeezed.startswith("cor(") and squeezed.endswith(")") and "|" in squeezed):
        return
    whole = f"cor({squeezed[:-1].rpartition('|')[2]})"
    for slot in slots:
        if slot.kind == "cor" and whole in map(_squeeze, slot.addresses):
            raise PriorError(
                f"The prior {key!r} is not possible: LKJ is a prior of the whole correlation matrix of a term's "
                f"effects; set {slot.name!r}."
            )


def _check_positive(slot: Slot, prior: Distribution) -> None:
    if slot.kind == "family" and isinstance(prior, Flat):
        raise PriorError(
            f"A flat prior on {slot.name!r} has no proper posterior: the likelihood does not vanish as {slot.name} "
            f"grows. Use a proper one, such as the default, {slot.default}."
        )
    if isinstance(prior, Flat) or prior.support[0] >= 0.0:
        return
    what = "a positive parameter of the family" if slot.kind == "family" else "a standard deviation"
    raise PriorError(f"{slot.name!r} is {what}, and {prior} reaches below zero; write {_half_version(prior)}.")


def _half_version(prior: Distribution) -> str:
    """The mend for a prior of a standard deviation that reaches below zero."""
    if isinstance(prior, Uniform):
        high = prior.high if prior.high > 0 else 1.0
        return str(Uniform(0.0, high))
    half: Distribution = HalfNormal(1.0)
    if isinstance(prior, Normal):
        half = HalfNormal(prior.sigma)
    elif isinstance(prior, StudentT):
        half = HalfStudentT(prior.nu, prior.sigma)
    elif isinstance(prior, Cauchy):
        half = HalfCauchy(prior.sigma)
    elsewhere = getattr(prior, "mu", 0.0) != 0.0
    return f"{half}, which starts at zero, or a Gamma with its bulk where you want it" if elsewhere else str(half)


def _whole_version(prior: Distribution) -> str:
    """The mend for a prior of a coefficient that excludes what is below zero."""
    if isinstance(prior, HalfNormal):
        return str(Normal(0.0, prior.sigma))
    if isinstance(prior, HalfStudentT):
        return str(StudentT(prior.nu, 0.0, prior.sigma))
    if isinstance(prior, HalfCauchy):
        return str(Cauchy(0.0, prior.sigma))
    return "Normal(0, 1), for example"


def _candidates(key: str, slots: Sequence[Slot]) -> str:
    names = dict.fromkeys(address for slot in slots for address in slot.addresses)
    return did_you_mean(key, names)


def _squeeze(key: str) -> str:
    return "".join(key.split())


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} (give it its parameters)"
    text = repr(value)
    return f"{text[:40]}{'...' if len(text) > 40 else ''} (a {type(value).__name__})"


def _entry_from_json(row: Mapping[str, Any]) -> _Entry:
    default = distribution_from_json(row["default"])
    slot = Slot(row["name"], row["kind"], tuple(row["keys"]), default, row["note"], row.get("prefix", ""))
    return _Entry(slot, distribution_from_json(row["prior"]), row["matched_key"])


# Stan's and other libraries' names of the same distributions, without case and underscores.
_ALIASES = {"invgamma": "InverseGamma", "lkjcorr": "LKJ", "halft": "HalfStudentT", "t": "StudentT"}


def parse_distribution(text: str) -> Distribution:
    """Read a distribution such as "Normal(0, 5)" or "half_normal(sigma=1)"; nothing is evaluated.

    Raises
    ------
    PriorError
        Where the text is not a known distribution with numbers as its parameters.

    Examples
    --------
    >>> parse_distribution("student_t(3, 0, 2.5)")
    StudentT(nu=3.0, mu=0.0, sigma=2.5)
    """
    mend = "write it as, for example, 'Normal(0, 5)'."
    stem, parenthesis, rest = text.strip().partition("(")
    spelled = stem.replace("-", "_") + parenthesis + rest  # half-cauchy(1)
    try:
        node = ast.parse(spelled, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise PriorError(f"The prior {text!r} cannot be read; {mend}") from None
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if name is None:
        raise PriorError(f"The prior {text!r} cannot be read; {mend}")
    folded = name.replace("_", "").casefold()
    known = {**{key.casefold(): key for key in (*DISTRIBUTIONS, "PC")}, **_ALIASES}
    if folded not in known:
        near = did_you_mean(name, DISTRIBUTIONS)
        raise PriorError(f"There is no distribution {name!r} (in the prior {text!r}). {near}")
    named = {keyword.arg: _number(keyword.value, text) for keyword in call.keywords if keyword.arg is not None}
    if len(named) < len(call.keywords):
        raise PriorError(f"The prior {text!r} cannot be read; {mend}")
    make = PC if known[folded] == "PC" else DISTRIBUTIONS[known[folded]]
    return _construct(make, [_number(argument, text) for argument in call.args], named)


def distribution_to_json(distribution: Distribution) -> dict[str, Any]:
    """A distribution as plain data.

    Examples
    --------
    >>> distribution_to_json(Normal(0, 5))
    {'distribution': 'Normal', 'parameters': {'mu': 0.0, 'sigma': 5.0}}
    """
    return {"distribution": type(distribution).__name__, "parameters": distribution.parameters}


def distribution_from_json(state: Mapping[str, Any]) -> Distribution:
    """The inverse of `distribution_to_json`.

    Examples
    --------
    >>> distribution_from_json({"distribution": "Normal", "parameters": {"mu": 0, "sigma": 5}})
    Normal(mu=0.0, sigma=5.0)
    """
    name = state.get("distribution")
    kind = DISTRIBUTIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise PriorError(f"There is no distribution {name!r}. {did_you_mean(str(name), DISTRIBUTIONS)}")
    return _construct(kind, [], dict(state.get("parameters", {})))


def _construct(kind: Callable[..., Distribution], positional: list[float], named: dict[str, float]) -> Distribution:
    try:
        return kind(*positional, **named)
    except TypeError:
        names = ", ".join(signature(kind).parameters)
        given = ", ".join([f"{value:g}" for value in positional] + [f"{key}={value}" for key, value in named.items()])
        raise PriorError(f"{kind.__name__} takes ({names}), and it was given ({given}).") from None


def _number(node: ast.expr, text: str) -> float:
    sign = 1.0
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign = -sign if isinstance(node.op, ast.USub) else sign
        node = node.operand
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise PriorError(f"The parameters of the prior {text!r} must be plain numbers, as in 'Normal(0, 5)'.")
    try:
        return sign * float(node.value)
    except OverflowError:
        raise PriorError(f"A parameter of the prior {text[:60]!r} is too large to be a number.") from None
