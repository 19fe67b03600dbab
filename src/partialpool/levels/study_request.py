"""What was asked of `pp.simulate_pooling`: numbers checked, the designs of the grid."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np

from partialpool.errors import ModelError, did_you_mean
from partialpool.levels.study_exact import StudyDesign
from partialpool.posterior.posterior import Posterior

#: Fewest groups for which a spread between groups means anything, and fewest data sets for an error to be known.
FEWEST_GROUPS, FEWEST_REPLICATES = 3, 100
#: tau where none is given, in units of sigma.
DEFAULT_TAU = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


def numbers(name: str, value: Any) -> list[float]:
    """One finite number or several, without repeats, in increasing order."""
    if isinstance(value, Posterior):
        raise ModelError(
            f"{name}= is a fit; a study takes numbers. Pass the fit's sd between groups as tau= and its sigma as "
            "sigma= (both in fit.summary()), with groups= and rows= of the new study."
        )
    if isinstance(value, (str, bytes)) or value is None:
        raise ModelError(f"{name}={value!r} is not a number, nor a list of numbers.")
    values = list(value) if isinstance(value, Iterable) else [value]
    if not values:
        raise ModelError(f"{name} is empty; give a number, or several.")
    found = []
    for entry in values:
        try:
            number = math.nan if isinstance(entry, (bool, np.bool_, str)) else float(entry)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ModelError(f"{name} has {_brief(entry)}, which is not a finite number.")
        found.append(number)
    return found


def _brief(value: object) -> str:
    """A value in a message: what it is where it is long."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"an object of type {type(value).__name__}"


def whole_numbers(name: str, value: Any, least: int, why: str) -> list[int]:
    """Whole numbers that are `least` at least."""
    found = []
    for number in numbers(name, value):
        if number != int(number):
            raise ModelError(f"{name} has {number:g}, which is not a whole number.")
        if number < least:
            raise ModelError(f"{name} has {int(number)}, but {why}.")
        found.append(int(number))
    return found


def one_whole_number(name: str, value: Any, least: int, why: str) -> int:
    """The same where only one makes sense."""
    found = whole_numbers(name, value, least, why)
    if len(found) > 1:
        raise ModelError(f"{name} has {len(found)} values; it takes one.")
    return found[0]


def read_designs(groups: Any, rows: Any, sizes: Any) -> tuple[StudyDesign, ...]:
    """The designs: every number of groups with every number of rows, or the one whose sizes are given."""
    few = f"with fewer than {FEWEST_GROUPS} groups nothing can be learnt of how groups differ; give 3 at the very least"
    empty = "a group without rows has no mean; give 1 or more"
    if sizes is not None:
        if groups is not None or rows is not None:
            raise ModelError(
                "Give groups= and rows= (each group has as many rows), or sizes= (the rows of each group), not both."
            )
        counts = whole_numbers("sizes", sizes, 1, empty)
        if len(counts) < FEWEST_GROUPS:
            raise ModelError(f"sizes has {len(counts)} groups, but {few}. It has one number for each group.")
        return (StudyDesign(np.array(sorted(counts), dtype=np.float64)),)
    group_counts = sorted(set(whole_numbers("groups", 30 if groups is None else groups, FEWEST_GROUPS, few)))
    row_counts = sorted(set(whole_numbers("rows", 10 if rows is None else rows, 1, empty)))
    return tuple(StudyDesign(np.full(count, float(n))) for count, n in product(group_counts, row_counts))


def read_sigma(sigma: Any) -> float:
    """The sd of the rows of a group."""
    values = numbers("sigma", sigma)
    if len(values) > 1:
        raise ModelError(
            f"sigma has {len(values)} values; it takes one. What matters is tau against sigma: give several tau."
        )
    if values[0] <= 0:
        raise ModelError(f"sigma={values[0]:g}, but rows within a group differ: the sd of a row is greater than 0.")
    return values[0]


def read_tau(tau: Any, sigma: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values of tau, increasing."""
    if tau is None:
        return sigma * np.array(DEFAULT_TAU)
    values = sorted(set(numbers("tau", tau)))
    if values[0] < 0:
        raise ModelError(f"tau has {values[0]:g}, but it is the sd of the groups' true means: 0 or more.")
    return np.array(values)


def read_variances(variances: Any, designs: tuple[StudyDesign, ...]) -> bool:
    """Whether they are estimated."""
    choices = ("known", "estimated")
    if variances not in choices:
        raise ModelError(
            f"variances={variances!r}; 'known' or 'estimated' is asked. {did_you_mean(str(variances), choices)}"
        )
    for design in designs:
        if variances == "estimated" and design.total == design.groups:
            raise ModelError(
                f"{design.groups} groups of 1 row: the spread of rows can't be told from that of groups, so that no "
                "variance can be estimated. Give rows=2 or more, or variances='known'."
            )
    return bool(variances == "estimated")
