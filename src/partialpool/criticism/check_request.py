"""Which statistics a check compares: the battery of a family, names, or a user's own functions."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism import statistics as st
from partialpool.criticism.calibration_of_rows import predictions_differ
from partialpool.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Checks that are no statistics of replicates.
LARGEST_EFFECT, ROWS, RELIABILITY = "largest effect", "left-out rows", "reliability"
#: Statistics of each grouping factor, and of residuals.
BY_FACTOR = {
    "within-group correlation": st.within_group_correlation,
    "sd of group means": st.sd_of_group_means,
    "largest group mean": st.largest_group_mean,
}
OF_RESIDUALS = {own.name: own for own in (st.SKEW, st.TAILS, st.DISPERSION)}
SLOPES = "slopes"
NAMES = (*st.SIMPLE, *BY_FACTOR, *OF_RESIDUALS, SLOPES, LARGEST_EFFECT, ROWS, RELIABILITY)
OTHER_NAMES = {
    "min": "minimum", "max": "maximum", "icc": "within-group correlation", "skewness": "skewness of residuals",
    "skew": "skewness of residuals", "tails": "tails of residuals", "kurtosis": "tails of residuals",
    "standard deviation": "sd", "std": "sd", "zero": "zeros", "pit": ROWS, "loo-pit": ROWS, "loo pit": ROWS,
    "largest effects": LARGEST_EFFECT, "outlying groups": LARGEST_EFFECT, "slope": SLOPES,
}  # fmt: skip
#: Families whose spread follows from their mean.
OF_ONE_PARAMETER = ("poisson", "geometric", "binomial", "exponential")
#: Predictors at most whose slopes are looked at, by factor.
MOST_SLOPES = 10


@dataclass(frozen=True, eq=False)
class Own:
    """A user's statistic: f(y), or f(y, data) with the rows of the fit as a data frame."""

    name: str
    function: Callable[..., Any]
    takes_data: bool

    def __call__(self, y: Array, data: pandas.DataFrame, where: str) -> float:
        """Its value, one finite number or nan; errors are told with where they happened."""
        try:
            value = self.function(y, data) if self.takes_data else self.function(y)
        except Exception as error:
            raise ModelError(
                f"The statistic {self.name!r} failed on {where}: {type(error).__name__}: {error}"
            ) from None
        shape = np.shape(value)
        if shape == (1,):
            value, shape = np.asarray(value)[0], ()
        if shape != () or not isinstance(value, numbers.Real | np.bool_):
            what = f"an array of shape {shape}" if shape else f"{value!r}"
            raise ModelError(f"The statistic {self.name!r} gives {what} on {where}; it must give one number.")
        return float(value)


@dataclass(frozen=True, eq=False)
class Request:
    """What to check: statistics by replicates, a user's own functions, and checks of another kind by name."""

    statistics: tuple[st.Statistic, ...]
    own: tuple[Own, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...] = ()


def battery(fit: Posterior, factors: Sequence[int], new: bool, information: Callable[[], Array]) -> Request:
    """Everything that suits the family and the model.

    factors : the grouping factors looked at. new : whether groups are new ones: statistics of the responses alone.
    information : makes what each row tells of its linear predictor, where it is needed.
    """
    names, notes = list(_simple(fit)), []
    found = [st.SIMPLE[name] for name in names]
    own = list(BY_FACTOR) if new else ["within-group correlation", "sd of group means"]
    for name in own:
        found += _by_factor(fit, name, factors)
    if new:
        return Request(tuple(found), (), ())
    found += [OF_RESIDUALS[name] for name in _residual_names(fit)]
    slopes, left = _slopes(fit, factors, information)
    found += slopes
    if left:
        notes.append(f"Slopes of {', '.join(left)} were not looked at; name them all with statistic='slopes'.")
    others = [LARGEST_EFFECT] if factors else []
    others += [] if fit.model.family.name == "bernoulli" else [ROWS]
    of_events = fit.model.family.name in ("bernoulli", "binomial")
    others += [RELIABILITY] if of_events and predictions_differ(fit.model.design) else []
    return Request(tuple(found), (), tuple(others), tuple(notes))


def _simple(fit: Posterior) -> Iterable[str]:
    name = fit.model.family.name
    if name == "bernoulli":
        return ("mean",)
    if fit.model.family.discrete:
        return ("mean", "sd", "zeros", "maximum")
    return ("mean", "sd", "minimum", "maximum")


def _residual_names(fit: Posterior) -> Iterable[str]:
    family = fit.model.family
    free = family.name not in OF_ONE_PARAMETER
    known = fit.model.exact and not fit.model.has_sigma
    out = [] if family.discrete else ["skewness of residuals", "tails of residuals"]
    return [*out, "dispersion"] if not (free and not known) else out


def _by_factor(fit: Posterior, name: str, factors: Sequence[int]) -> list[st.Statistic]:
    found = [BY_FACTOR[name](fit.model.design, f) for f in factors]
    return [own for own in found if own is not None]


def _slopes(
    fit: Posterior, factors: Sequence[int], information: Callable[[], Array], most: int = MOST_SLOPES
) -> tuple[list[st.Statistic], list[str]]:
    out: list[st.Statistic] = []
    left: list[str] = []
    for f in factors:
        missing = st.missing_slopes(fit, f)
        left += [name for name, _ in missing[most:]]
        for name, columns in missing[:most]:
            made = st.slopes(fit, f, columns, name, information())
            if made is not None:
                out.append(made)
    return out, list(dict.fromkeys(left))


def asked(
    fit: Posterior, statistic: Any, factors: Sequence[int], new: bool, information: Callable[[], Array]
) -> Request:
    """What a user named: a name, a function, a list of them, or a mapping of names to functions."""
    found: list[st.Statistic] = []
    functions: list[Own] = []
    others: list[str] = []
    if isinstance(statistic, Mapping):
        functions = [_own(function, str(name)) for name, function in statistic.items()]
    elif isinstance(statistic, str) or callable(statistic):
        statistic = [statistic]
    elif not isinstance(statistic, Iterable):
        raise ModelError(f"statistic={statistic!r} is not known; give a name ({', '.join(NAMES)}) or a function of y.")
    for one in [] if isinstance(statistic, Mapping) else list(statistic):
        if callable(one):
            functions.append(_own(one, None))
            continue
        name = _known(str(one))
        _refuse(fit, name, factors, new)
        if name in st.SIMPLE:
            found.append(st.SIMPLE[name])
        elif name in OF_RESIDUALS:
            found.append(OF_RESIDUALS[name])
        elif name in BY_FACTOR:
            own = _by_factor(fit, name, factors)
            if not own:
                raise ModelError(f"{name!r} needs groups of several rows, and there are none such here.")
            found += own
        elif name == SLOPES:
            made = _slopes(fit, factors, information, 10_000)[0]
            if not made:
                raise ModelError(
                    "There is no predictor that varies within groups and whose slope does not vary by them."
                )
            found += made
        else:
            others.append(name)
    if not (found or functions or others):
        raise ModelError(f"statistic={statistic!r} names nothing; there are {', '.join(NAMES)}, or a function of y.")
    once = {one.label: one for one in found}
    return Request(tuple(once.values()), tuple(functions), tuple(dict.fromkeys(others)))


def _known(text: str) -> str:
    folded = text.casefold().replace("_", " ").strip()
    folded = OTHER_NAMES.get(folded, folded)
    for name in NAMES:
        if folded in (name, name.replace("-", " ")):
            return name
    raise ModelError(f"There is no statistic {text!r}. {did_you_mean(folded, NAMES)} A function of y does as well.")


def _refuse(fit: Posterior, name: str, factors: Sequence[int], new: bool) -> None:
    family = fit.model.family
    needs_groups = name in BY_FACTOR or name in (SLOPES, LARGEST_EFFECT)
    if needs_groups and not factors:
        raise ModelError(f"{name!r} is about groups, and this model has none.")
    if new and (name in OF_RESIDUALS or name in (SLOPES, LARGEST_EFFECT, ROWS, RELIABILITY)):
        raise ModelError(f"{name!r} is about rows given their own groups; leave groups='new' out.")
    if name == RELIABILITY and family.name not in ("bernoulli", "binomial"):
        raise ModelError(f"'reliability' is for bernoulli and binomial responses; this one is {family.name}.")
    if name == RELIABILITY and not predictions_differ(fit.model.design):
        raise ModelError(
            "'reliability' needs rows whose predictions differ: a predictor, or groups of several rows. Here every row "
            "is predicted alike."
        )


def _own(function: Any, name: str | None) -> Own:
    if not callable(function):
        raise ModelError(f"The statistic {name!r} is {function!r}; give a function of the responses y.")
    named = name or getattr(function, "__name__", "statistic")
    return Own("statistic" if named == "<lambda>" else str(named), function, _wants_data(function))


def _wants_data(function: Callable[..., Any]) -> bool:
    """Whether a function has a second argument without a default."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # numpy's own functions may have no signature
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(places) >= 2
