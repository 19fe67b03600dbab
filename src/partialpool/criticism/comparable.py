"""Whether the scores of several fits may be compared: the same rows, the same response, on the same scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from partialpool.design.frame import row_names
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.posterior.predict import need_rows
from partialpool.present.tables import listed

if TYPE_CHECKING:
    from partialpool.design.design import Design
    from partialpool.posterior.posterior import Posterior


def checked_fits(fits: Any) -> dict[str, Posterior]:
    """Fits by name.

    Raises
    ------
    ModelError
        Where they have no names, are fewer than two, or are no fits.
    """
    from partialpool.posterior.posterior import Posterior

    if not isinstance(fits, Mapping):
        raise ModelError(
            "compare() takes fits by name, as in pp.compare({'varying slopes': fit1, 'one slope': fit2}), "
            f"and was given a {type(fits).__name__}."
        )
    if len(fits) < 2:
        raise ModelError(
            f"compare() takes at least two fits, and was given {len(fits)}; of one fit, fit.loo(), fit.waic() and "
            "fit.dic() tell how well it predicts."
        )
    for name, fit in fits.items():
        if not isinstance(name, str) or not name.strip():
            raise ModelError(f"The names of fits are text, and one is {name!r}.")
        if not isinstance(fit, Posterior):
            raise ModelError(f"{name!r} is no fit (its type is {type(fit).__name__}); give what pp.fit returned.")
    return dict(fits)


def check_rows(fits: Mapping[str, Posterior]) -> None:
    """Refuse fits of different rows or responses.

    Raises
    ------
    DataError
        With the rows that differ, by their labels in the data.
    ModelError
        Where responses are measured differently, so that their densities cannot be compared.
    """
    for name, fit in fits.items():
        need_rows(fit, f"compare(), of the fit {name!r},")
    (first, one), *others = fits.items()
    for name, other in others:
        _check_scale((first, one), (name, other))
        _check_same_rows(first, one.model.design, name, other.model.design)
        _check_same_response(first, one.model.design, name, other.model.design)


def check_scale(fits: Mapping[str, Posterior]) -> None:
    """Refuse fits whose responses are measured differently."""
    (first, one), *others = fits.items()
    for name, other in others:
        _check_scale((first, one), (name, other))


def _check_scale(one: tuple[str, Posterior], other: tuple[str, Posterior]) -> None:
    names = [name for name, _ in (one, other)]
    texts = [_squeezed(fit.model.design.terms.response.expression) for _, fit in (one, other)]
    families = [fit.model.family for _, fit in (one, other)]
    if texts[0] != texts[1]:
        logs = [k for k in (0, 1) if texts[k] in (f"log({texts[1 - k]})", f"np.log({texts[1 - k]})")]
        if logs:
            k = logs[0]
            plain = texts[1 - k]
            raise ModelError(
                f"{names[k]!r} is a model of log({plain}) and {names[1 - k]!r} of {plain}: their log densities are on "
                f"different scales and differ by the sum of log({plain}). Fit {names[k]!r} to {plain} with "
                "family='lognormal': that is the same model, and its densities can be compared."
            )
        if not _same_numbers(one[1].model.design, other[1].model.design):
            raise ModelError(
                f"{names[0]!r} is a model of {texts[0]} and {names[1]!r} of {texts[1]}: log densities of different "
                "responses cannot be compared. Fit all models to the same response."
            )
    if families[0].discrete != families[1].discrete:
        k = 0 if families[0].discrete else 1
        raise ModelError(
            f"{names[k]!r} has the probabilities of counts ({families[k].name}) and {names[1 - k]!r} densities of a "
            f"continuous response ({families[1 - k].name}): these cannot be compared. Use families of one kind."
        )


def _squeezed(text: str) -> str:
    return "".join(str(text).split())


def _same_numbers(one: Design, other: Design) -> bool:
    return one.y.shape == other.y.shape and bool(np.array_equal(one.y, other.y))


def _check_same_rows(first: str, one: Design, second: str, other: Design) -> None:
    a, b = one.data.index, other.data.index
    if a.equals(b):
        return
    if a.is_unique and b.is_unique:
        only_a, only_b = np.flatnonzero(~a.isin(b)), np.flatnonzero(~b.isin(a))
        if len(only_a) or len(only_b):
            parts = []
            if len(only_a):
                parts.append(f"{_have(first, len(only_a))} that {second!r} lacks ({row_names(only_a, a)})")
            if len(only_b):
                parts.append(f"{_have(second, len(only_b))} that {first!r} lacks ({row_names(only_b, b)})")
            if len(a) == len(b) and len(only_a) == len(a) and _same_numbers(one, other):
                return  # the same responses under other labels
            raise DataError(f"The fits are of different rows: {'; '.join(parts)}.{_dropped(first, one, second, other)}")
        if len(a) == len(b):
            raise DataError(
                f"{first!r} and {second!r} have the same rows in different orders; sort the data before fitting both."
            )
    if len(a) != len(b):
        raise DataError(
            f"The fits are of different rows: {first!r} has {len(a):,} and {second!r} {len(b):,}."
            f"{_dropped(first, one, second, other)}"
        )


def _have(name: str, count: int) -> str:
    return f"{name!r} has 1 row" if count == 1 else f"{name!r} has {count:,} rows"


def _dropped(first: str, one: Design, second: str, other: Design) -> str:
    """Which missing values are behind it, and the mend."""
    columns = [
        f"{column!r}" for column in dict.fromkeys([*one.dropped_by, *other.dropped_by])
        if one.dropped_by.get(column, 0) != other.dropped_by.get(column, 0)
    ]  # fmt: skip
    if not columns:
        return " Fit both to the same data."
    return (
        f" Rows were dropped for missing values of {listed(columns)}; drop them from the data before fitting both: "
        "data.dropna(subset=[...]) with all columns that any of the models uses."
    )


def _check_same_response(first: str, one: Design, second: str, other: Design) -> None:
    apart = np.flatnonzero(one.y != other.y)
    if apart.size:
        hint = ""
        if one.success != other.success:
            hint = f" {first!r} counts {one.success!r} as success and {second!r} {other.success!r}."
        raise DataError(
            f"{first!r} and {second!r} have different responses in {apart.size:,} of {len(one.y):,} rows "
            f"({row_names(apart, one.data.index)}).{hint or ' Fit both to the same data.'}"
        )
    for what in ("trials", "weights"):
        values = [getattr(d, what) for d in (one, other)]
        if all(own is None for own in values) or (what == "trials" and any(own is None for own in values)):
            continue  # counts of any kind have probabilities on the same numbers
        first_values, second_values = (np.ones(len(one.y)) if own is None else own for own in values)
        apart = np.flatnonzero(first_values != second_values)
        if apart.size:
            raise DataError(
                f"{first!r} and {second!r} have different {what} in {apart.size:,} of {len(one.y):,} rows "
                f"({row_names(apart, one.data.index)})."
            )


def shared_factor(fits: Mapping[str, Posterior], factor: Any, what: str) -> str:
    """The factor that every model has.

    Raises
    ------
    ModelError
        Where one lacks it, or there are several and none was named, or its groups are not the same.
    """
    own = {name: [f.name for f in fit.model.design.factors] for name, fit in fits.items()}
    every = list(dict.fromkeys(name for names in own.values() for name in names))
    common = [name for name in every if all(name in names for names in own.values())]
    if factor is None:
        if len(common) != 1:
            told = f"the models share {listed(common)}" if common else "the models share none"
            raise ModelError(f"{what} needs a grouping factor: {told}; say factor=...")
        factor = common[0]
    lacking = [repr(name) for name, names in own.items() if factor not in names]
    if lacking:
        if factor not in every:
            raise ModelError(f"No model has the grouping factor {factor!r}. {did_you_mean(str(factor), every)}")
        whose = f"{listed(lacking)} {'has' if len(lacking) == 1 else 'have'} no groups of {factor!r}"
        raise ModelError(
            f"{what} leaves out whole groups of {factor!r}, and {whose}. Use factors that every model has, or "
            "criterion='kfold' with by='groups', which refits and needs the groups in one model only."
        )
    designs = [fit.model.design for fit in fits.values()]
    found = [next(f for f in design.factors if f.name == factor) for design in designs]
    for one in found[1:]:
        if not np.array_equal(one.labels[one.codes], found[0].labels[found[0].codes]):
            raise DataError(f"The models' rows are of different groups of {factor!r}; fit them to the same data.")
    return str(factor)
