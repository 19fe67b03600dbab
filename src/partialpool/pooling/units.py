"""The units to be pooled: one estimate, count or rate each, read from arrays or from any data frame, and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.incomplete import beta_quantiles, gamma_quantiles
from partialpool.design.encoding import Encoding
from partialpool.design.frame import SHOWN, missing_values
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.pooling.columns import Column, Where, distinct, read_column, read_table, unit_names
from partialpool.pooling.covariates import covariate_text, encoded, encoded_new, piece_of, predictor_frame
from partialpool.spec.formula import quote_name, variables_of

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: By family: what y and its size are called in messages and notes.
ROLES = {"normal": ("estimate", "se"), "binomial": ("events", "trials"), "poisson": ("counts", "exposure")}
#: More units than this are not searched for a similar name.
SEARCHED = 5_000


@dataclass(frozen=True, eq=False)
class Units:
    """One row per unit, in the order given. Made by :func:`read_units`.

    Attributes
    ----------
    family : "normal", "binomial" or "poisson".
    y : (J,) estimates, events or counts. size : (J,) their standard errors, trials or exposures.
    names : (J,) labels as given; 0 to J-1 where none are. named : whether they were given.
    X : (J, p) covariates with a first column of ones, or None. x_names : (p,) the first is "Intercept".
    label : name of the column that y came from, "" where it was an array.
    notes : what reading noticed, in sentences.
    encoding : how covariates became X, to do the same for new units; None without covariates.
    """

    family: str
    y: Array
    size: Array
    names: NDArray[Any]
    named: bool
    X: Array | None = None
    x_names: tuple[str, ...] = ()
    label: str = ""
    notes: tuple[str, ...] = ()
    encoding: Encoding | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        covariates = f", covariates {', '.join(self.x_names[1:])}" if self.X is not None else ""
        return f"Units({self.n} {self.family} units{covariates})"

    @property
    def n(self) -> int:
        """How many units there are."""
        return len(self.y)

    @property
    def raw(self) -> Array:
        """(J,) each unit on its own: estimate, events / trials (nan without trials), counts / exposure."""
        if self.family == "normal":
            return self.y
        with np.errstate(invalid="ignore"):
            return self.y / self.size

    @property
    def complete_pooling(self) -> float:
        """The answer if all units were one: the precision-weighted mean, or all events over all trials or exposure."""
        if self.family == "normal":
            smallest = float(np.min(self.size))
            weights = (smallest / self.size) ** 2
            return float(weights @ self.y / weights.sum())
        total = float(self.size.sum())
        return float(self.y.sum()) / total if total > 0.0 else math.nan

    def raw_interval(self, probability: float = 0.9, threads: int = 1) -> tuple[Array, Array]:
        """Interval (low, high), each (J,), of every unit on its own.

        Normal: y -/+ z se. Binomial: the equal-tailed interval of Jeffreys' Beta(y + 1/2, n - y + 1/2), from 0 at no
        events and to 1 at as many events as trials. Poisson: that of Gamma(y + 1/2) over the exposure, from 0 at no
        count (Brown, Cai and DasGupta, 2001, Statistical Science 16, 101-133).
        """
        from scipy.special import ndtri

        check_probability(probability)
        tails = np.array([0.5 * (1.0 - probability), 0.5 * (1.0 + probability)])
        if self.family == "normal":
            reach = float(ndtri(tails[1])) * self.size
            return self.y - reach, self.y + reach
        if self.family == "binomial":
            # small units share a few pairs of events and trials, which one exact number names
            most = float(self.size.max()) + 1.0
            key = self.y + most * self.size if most < 2.0**26 else np.arange(self.n)
            _, first, place = np.unique(key, return_index=True, return_inverse=True)
            y, n = self.y[first], self.size[first]
            low, high = beta_quantiles(y + 0.5, n - y + 0.5, tails, threads)
            return np.where(y == 0.0, 0.0, low)[place], np.where(y == n, 1.0, high)[place]
        y, place = np.unique(self.y, return_inverse=True)
        low, high = gamma_quantiles(y + 0.5, 1.0, tails, threads)
        return np.where(y == 0.0, 0.0, low)[place] / self.size, high[place] / self.size

    def position(self, unit: Any) -> int:
        """Where a unit stands, by its name; text matches a number that is written so.

        Raises
        ------
        DataError
            If there is no such unit; a similar name is offered.
        """
        found = np.flatnonzero(self.names == unit)
        if len(found) == 0 or np.ndim(unit) != 0:
            wanted = str(unit)
            found = np.array([place for place, name in enumerate(self.names.tolist()) if str(name) == wanted])
        if len(found):
            return int(found[0])
        if self.n > SEARCHED:
            shown = ", ".join(repr(name) for name in self.names[:3].tolist())
            raise DataError(f"There is no unit {unit!r} among the {self.n} units ({shown}, ...).")
        raise DataError(f"There is no unit {unit!r}. {did_you_mean(str(unit), self.names.tolist())}")

    def own_sd(self, theta: Array) -> Array:
        """The sd of each unit's own estimate where its true value is theta, (J,)."""
        if self.family == "normal":
            return self.size
        spread = theta * (1 - theta) if self.family == "binomial" else theta
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.sqrt(np.maximum(spread, 1e-300) / self.size))

    def encode(self, covariates: Any) -> Array:
        """Covariates of new units (m, p) in the encoding of these, the first column of ones.

        Parameters
        ----------
        covariates : a frame or dict with the columns that were used, or an array (m, p - 1) where one was given.

        Raises
        ------
        ModelError
            If these units have no covariates.
        DataError
            If a column is missing, a value is missing, or a category was never seen.
        """
        if self.encoding is None:
            raise ModelError("These units were pooled without covariates; leave covariates out.")
        return encoded_new(covariates, self.encoding)


def read_units(
    values: Any,
    *,
    se: Any = None,
    trials: Any = None,
    exposure: Any = None,
    units: Any = None,
    covariates: Any = None,
    data: Any = None,
    like: Units | None = None,
) -> Units:
    """Read estimates with standard errors, events with trials or counts with exposures, one row per unit.

    Parameters
    ----------
    values : estimates, events or counts: an array, a Series, a list or one number; with `data` the name of a column.
    se, trials, exposure : exactly one of them, for every unit or one number for all; an exposure may be the count
        that was expected. A column's name with `data`.
    units : the units' names (J,), or a column. Without it they come from the index of a pandas Series or frame if it
        has a name, holds text or differs from 0 to J-1 (numbers without a name that repeat are row numbers: left).
    covariates : a formula's right side (``"size + region"``) or a list of columns with `data`; or a frame, a dict of
        columns or an array (J, p).
    data : any frame or file that :func:`partialpool.build_design` reads.
    like : units that are already pooled, whose encoding the covariates of these take.

    Returns
    -------
    Units

    Raises
    ------
    ModelError
        If not exactly one of se, trials and exposure is given.
    DataError
        If the data are impossible: the message names the unit and the mend. Units with a missing value are dropped
        with a note, save that an estimate without its standard error is refused.

    Examples
    --------
    >>> units = read_units([9, 2], trials=[30, 8], units=["Ann", "Bob"])
    >>> units.family, units.raw.tolist(), units.position("Bob")
    ('binomial', [0.3, 0.25], 1)
    """
    family, given = _family(se, trials, exposure)
    text = covariate_text(covariates, data)
    table = read_table(data, [values, given, units], variables_of(text) if text else ())
    y, size = (read_column(part, role, table) for part, role in zip((values, given), ROLES[family], strict=True))
    n = len(y.values)
    if n == 0:
        raise DataError("The data are empty: there are no units.")
    if size.scalar and n != 1:
        size = Column(np.full(n, size.values[0]), size.name, size.role, size.index)
    _check_lengths(y, size)
    names, missing_names = unit_names(units, table, _shared_index(y, size), n)
    known = like.encoding if like is not None else None
    predictors = predictor_frame(covariates, text, table, known)
    if predictors is not None and len(predictors) != n:
        raise DataError(f"The covariates have {len(predictors)} rows and {y.shown} {n}; give one row for every unit.")
    where = Where(np.arange(n) if names is None else names, names is not None)
    _check(family, y, size, where)
    keep, notes = _complete(y, size, missing_names, predictors, where)
    kept = slice(None) if keep is None else keep
    labels = np.arange(n if keep is None else int(keep.sum())) if names is None else names[kept]
    if names is not None:
        _check_distinct(labels, family, y, size, units)
    # copies: what the caller does to their arrays later must not reach the units
    found = Units(
        family, np.array(y.values[kept]), np.array(size.values[kept]), labels, names is not None, label=y.name
    )
    if family == "binomial":
        notes += _without_trials(found)
    if predictors is None:
        return replace(found, notes=tuple(notes))
    X, encoding = encoded(predictors[kept], labels, text, known)
    return replace(found, X=X, x_names=piece_of(encoding).names, notes=tuple(notes), encoding=encoding)


def merged(units: Units, new: Units) -> tuple[Units, float]:
    """Units with new data added, and the constant by which both likelihoods exceed that of the sum.

    Events and trials, or counts and exposures, add up; two estimates become their precision-weighted mean. Units of
    new names are appended. For every population, log p(both data sets) = log p(merged data) + constant, since for
    each unit the product of its two likelihoods is a constant times that of the merged data.

    Raises
    ------
    DataError
        If the families differ, units cannot be told apart for want of names, or covariates are missing or changed.
    """
    if units.family != new.family:
        raise DataError(f"The units are {units.family} and the new data {new.family}; give {_forms(units.family)}.")
    if not new.named and (units.named or new.n != units.n):
        count = f"the names of the {units.n} units" if units.named else f"values for all {units.n} units"
        raise DataError(f"The new data do not say which units they belong to; give units=..., with {count}.")
    place = _places(units, new)
    old, fresh = np.flatnonzero(place >= 0), np.flatnonzero(place < 0)
    target = place[old]
    y, size = units.y.copy(), units.size.copy()
    y[target], size[target], constant = _combined(units.family, (y[target], size[target]), (new.y[old], new.size[old]))
    names = units.names
    if len(fresh):
        y, size = np.concatenate([y, new.y[fresh]]), np.concatenate([size, new.size[fresh]])
        names = _joined(names, new.names[fresh])
    together = Units(
        units.family,
        y,
        size,
        names,
        units.named or len(fresh) > 0,
        _merged_covariates(units, new, old, target, fresh),
        units.x_names,
        units.label,
        tuple(dict.fromkeys([*units.notes, *new.notes])),
        units.encoding,
    )
    return together, constant


def check_probability(probability: float) -> None:
    """Refuse the probability of an interval that is not strictly between 0 and 1."""
    if not 0.0 < probability < 1.0:
        raise ModelError(f"The probability of an interval lies between 0 and 1, such as 0.9; got {probability!r}.")


# ---- reading ------------------------------------------------------------------------------------------------------


def _family(se: Any, trials: Any, exposure: Any) -> tuple[str, Any]:
    sizes = {"normal": se, "binomial": trials, "poisson": exposure}
    given = [family for family, size in sizes.items() if size is not None]
    if len(given) == 1:
        return given[0], sizes[given[0]]
    found = "none of them is given" if not given else f"{' and '.join(ROLES[family][1] for family in given)} are given"
    forms = ", or ".join(_forms(family) for family in sizes)
    raise ModelError(f"Exactly one of se, trials and exposure says what is pooled, and {found}: give {forms}.")


def _forms(family: str) -> str:
    return {
        "normal": "estimates with se=... (standard errors)",
        "binomial": "events with trials=...",
        "poisson": "counts with exposure=... (time at risk, population, or expected counts)",
    }[family]


def _check_lengths(y: Column, size: Column) -> None:
    if len(y.values) != len(size.values):
        raise DataError(
            f"{y.shown} has {len(y.values)} values and {size.shown} {len(size.values)}; "
            "give one of each for every unit."
        )


def _shared_index(y: Column, size: Column) -> Any:
    if y.index is not None and size.index is not None and not y.index.equals(size.index):
        raise DataError(
            f"{y.shown} and {size.shown} have different pandas indexes, so that it is unclear which values belong "
            "together; put them into one frame, or drop the indexes with .to_numpy()."
        )
    return y.index if y.index is not None else size.index


# ---- checks -------------------------------------------------------------------------------------------------------


def _check(family: str, y: Column, size: Column, where: Where) -> None:
    """Refuse impossible values; missing ones pass (a comparison with nan is false)."""
    for column in (y, size):
        bad = np.isinf(column.values)
        if bad.any():
            mend = "leave out the unit, it says nothing" if column.role == "se" else "correct it or leave out the unit"
            raise DataError(f"{column.shown} is infinite for {where(bad)}; {mend}.")
    if family == "normal":
        _check_se(y, size, where)
        return
    whole = (y, size) if family == "binomial" else (y,)
    for column in whole:
        bad = column.values < 0.0
        if bad.any():
            raise DataError(f"{column.shown} is negative for {where(bad)}; counts are 0 or more.")
        bad = np.floor(column.values) < column.values
        if bad.any():
            value = column.values[np.flatnonzero(bad)[0]]
            raise DataError(
                f"{column.shown} is not a whole number for {where(bad)} (the first is {value:.6g}): pooling with "
                f"{size.role}= needs counts; for rates give their standard errors, with se=."
            )
    if family == "binomial":
        bad = y.values > size.values
        if bad.any():
            first = np.flatnonzero(bad)[0]
            raise DataError(
                f"There are more events than trials in {where(bad)} (the first has {y.values[first]:.0f} events in "
                f"{size.values[first]:.0f} trials); correct them, or give counts with exposure=."
            )
        return
    bad = size.values <= 0.0
    if bad.any():
        raise DataError(
            f"{size.shown} is not positive for {where(bad)}; without exposure a unit cannot count anything."
        )


def _check_se(y: Column, size: Column, where: Where) -> None:
    bad = size.values <= 0.0
    if bad.any():
        raise DataError(
            f"The standard error of {where(bad)} is not positive (it is {size.values[np.flatnonzero(bad)[0]]:.6g}); "
            "an estimate without error would leave nothing to pool: give its true standard error."
        )
    bad = np.isnan(size.values)
    if bad.any() and (bad := bad & ~np.isnan(y.values)).any():
        verb = "is" if int(bad.sum()) == 1 else "are"
        noun = "error" if verb == "is" else "errors"
        raise DataError(
            f"The standard {noun} of {where(bad)} {verb} missing while the estimate is there; "
            "give it, or leave out the unit."
        )


def _complete(
    y: Column, size: Column, missing_names: Flags | None, predictors: pd.DataFrame | None, where: Where
) -> tuple[Flags | None, list[str]]:
    """Which units have all their values, None if all have, and a note on the others."""
    gaps = {column.name or column.role: np.isnan(column.values) for column in (y, size)}
    if missing_names is not None:
        gaps["units"] = missing_names
    if predictors is not None:
        found = {str(name): missing_values(predictors[name]) for name in predictors.columns}
        gaps |= {name: missing for name, missing in found.items() if missing is not None}
    counts = {name: int(missing.sum()) for name, missing in gaps.items()}
    if not any(counts.values()):
        return None, []
    missing = np.logical_or.reduce(list(gaps.values()))
    shown = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    dropped = int(missing.sum())
    if dropped == len(missing):
        raise DataError(f"Every unit has a missing value ({shown}), so that none is left.")
    verb = "1 unit was" if dropped == 1 else f"{dropped} units were"
    renumbered = "" if where.named else f" The units left are numbered 0 to {len(missing) - dropped - 1}."
    return ~missing, [f"{verb} dropped for missing values ({shown}).{renumbered}"]


def _without_trials(units: Units) -> list[str]:
    empty = units.size == 0.0
    if not empty.any():
        return []
    shown = Where(units.names, units.named)(empty)
    has = "has" if int(empty.sum()) == 1 else "have"
    shown = shown[0].upper() + shown[1:]
    return [f"{shown} {has} no trials: the estimate is the population's, and there is no raw rate."]


def _check_distinct(names: NDArray[Any], family: str, y: Column, size: Column, units: Any) -> None:
    if distinct(names):
        return
    import pandas as pd

    twice = pd.unique(pd.Series(names)[pd.Series(names).duplicated()]).tolist()
    shown = ", ".join(repr(name) for name in twice[:SHOWN])
    more = f" and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
    group = repr(units) if isinstance(units, str) else "'unit'"
    y_name, size_name = y.name or y.role, size.name or size.role
    if family == "normal":
        mend = (
            "combine the estimates of a unit into their precision-weighted mean (weights 1/se²), or model its rows "
            f"with pp.fit('{quote_name(y_name)} | se({quote_name(size_name)}) ~ 1 + (1 | {group[1:-1]})', data); "
            "or, if they are different units, give each a name of its own"
        )
    else:
        columns = f"[[{y_name!r}, {size_name!r}]]"
        mend = f"add them up: data = data.groupby({group}, as_index=False){columns}.sum()"
    raise DataError(f"There is more than one row for {shown}{more}, and a unit has one; {mend}.")


# ---- merging ------------------------------------------------------------------------------------------------------


def _places(units: Units, new: Units) -> NDArray[np.int64]:
    """(m,) the position of each new row among the units, -1 for a new name."""
    if not new.named:
        return np.arange(new.n, dtype=np.int64)
    import pandas as pd

    known = pd.Index(units.names.tolist(), dtype=object)
    return np.asarray(known.get_indexer(pd.Index(new.names.tolist(), dtype=object)), dtype=np.int64)


def _joined(names: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
    """Names in one array; numbers next to text stay numbers."""
    if names.dtype.kind != more.dtype.kind:
        names, more = (np.array(part.tolist(), dtype=object) for part in (names, more))
    return np.concatenate([names, more])


def _combined(family: str, first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array, float]:
    """One datum of two for each unit, and the sum of the logs of what their likelihoods exceed its own by."""
    from scipy.special import betaln, gammaln, xlogy

    (y1, size1), (y2, size2) = first, second
    if family == "normal":
        variance = size1**2 + size2**2
        # N(y1 | t, s1²) N(y2 | t, s2²) = N(y1 - y2 | 0, s1² + s2²) N(mean | t, s²)
        constant = -0.5 * ((y1 - y2) ** 2 / variance + np.log(2.0 * np.pi * variance))
        return y1 + (y2 - y1) * (size1**2 / variance), size1 * size2 / np.sqrt(variance), float(constant.sum())
    y, size = y1 + y2, size1 + size2
    if family == "binomial":
        parts = [-np.log1p(n) - betaln(k + 1.0, n - k + 1.0) for k, n in ((y1, size1), (y2, size2), (y, size))]
    else:
        parts = [xlogy(k, e) - gammaln(k + 1.0) for k, e in ((y1, size1), (y2, size2), (y, size))]
    return y, size, float((parts[0] + parts[1] - parts[2]).sum())


def _merged_covariates(
    units: Units, new: Units, old: NDArray[np.int64], target: NDArray[np.int64], fresh: NDArray[np.int64]
) -> Array | None:
    if units.X is None:
        if new.X is not None:
            raise DataError("The new data have covariates and the units they are added to have none; leave them out.")
        return None
    if new.X is None:
        if len(fresh):
            shown = ", ".join(repr(name) for name in new.names[fresh[:SHOWN]].tolist())
            raise DataError(
                f"New units ({shown}) need the covariates that the others have: {', '.join(units.x_names[1:])}."
            )
        return units.X
    if new.x_names != units.x_names:
        raise DataError(
            f"The covariates of the new data ({', '.join(new.x_names[1:])}) are not those of the units "
            f"({', '.join(units.x_names[1:])})."
        )
    scale = np.abs(units.X).max(axis=0)
    changed = (np.abs(new.X[old] - units.X[target]) > 1e-9 * scale).any(axis=1)
    if changed.any():
        where = Where(new.names[old], True)(changed)
        raise DataError(f"The covariates of {where} differ from those given before; a unit has one value of each.")
    return np.concatenate([units.X, new.X[fresh]]) if len(fresh) else units.X
