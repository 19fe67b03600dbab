"""Group-level predictors along which a slope is shown: numbers, categories, or curves of several columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design
from partialpool.errors import ModelError, did_you_mean
from partialpool.levels.crossing import part_values, raw_variables

Array = NDArray[np.float64]
Point = dict[str, float]

#: Quantiles over groups at which slopes are told, and how few distinct values are all told.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FEW_VALUES = 5
GRID = 61


@dataclass(frozen=True, eq=False)
class Moderator:
    """One group-level predictor and the columns (parts) that it enters by.

    kind : "number" (one column, its value), "category", or "curve" (several columns made from one number). groups : its
    value by group. parts : by part, the values by group.
    """

    name: str
    kind: str
    groups: NDArray[Any]
    parts: Mapping[str, Array]
    design: Design = field(repr=False)

    @property
    def default(self) -> list[Any]:
        """Where slopes are told: categories, the few values there are, or quantiles over groups."""
        if self.kind == "category":
            return self.categories
        values = distinct(self.groups)
        if len(values) <= FEW_VALUES:
            return values
        method = "nearest" if self.kind == "curve" else "linear"
        return [float(v) for v in np.quantile(self.groups.astype(float), QUANTILES, method=method)]  # type: ignore[call-overload]

    @property
    def categories(self) -> list[Any]:
        """Those that there are, in the order of the model's coding."""
        order = list(self.design.encoding.categories.get(self.name, ()))
        values = distinct(self.groups)
        return sorted(values, key=lambda value: order.index(str(value))) if {*map(str, values)} <= {*order} else values

    @property
    def grid(self) -> list[Any]:
        """Where it is drawn."""
        if self.kind == "category":
            return self.categories
        values = distinct(self.groups)
        if self.kind == "curve":
            return [values[k] for k in np.unique(np.linspace(0, len(values) - 1, GRID).astype(int))]
        return [float(value) for value in np.linspace(values[0], values[-1], GRID)]

    def point(self, value: Any) -> Point:
        """The values of its parts where it has this value.

        Raises
        ------
        ModelError
            If the value is not a number, or a category that no group has.
        """
        if self.kind == "category":
            at = np.flatnonzero([str(own) == str(value) for own in self.groups])
            if not at.size:
                known = [str(own) for own in distinct(self.groups)]
                raise ModelError(f"{self.name!r} has no category {value!r}. {did_you_mean(str(value), known)}")
            return {part: float(values[at[0]]) for part, values in self.parts.items()}
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ModelError(f"{self.name!r} is a number, and {value!r} is none.") from None
        if self.kind == "number":
            return dict.fromkeys(self.parts, number)
        at = np.flatnonzero(self.groups == number)
        if at.size:
            return {part: float(values[at[0]]) for part, values in self.parts.items()}
        return self._encoded(number)

    def _encoded(self, number: float) -> Point:
        """The parts at a value that no group has, as the design makes them."""
        row = self.design.data.iloc[[0]].assign(**{self.name: number})
        new = self.design.replay(row)
        out: Point = {}
        for part in self.parts:
            found = part_values(self.design, part, new.V, row)
            if found is None:
                raise ModelError(
                    f"The column {part!r} cannot be computed where {self.name!r} is {number:g}; take a value of "
                    f"{self.name!r} that a group has, or put {self.name!r} into the model by itself too."
                )
            out[part] = float(found[0])
        return out


def moderators_of(design: Design, values: Mapping[str, Array], rows: NDArray[np.int64]) -> tuple[Moderator, ...]:
    """The group-level predictors behind parts, by what they are made from. `rows` : one row of each group."""
    by_raw: dict[tuple[str, ...], list[str]] = {}
    for part in values:
        by_raw.setdefault(raw_variables(design, part), []).append(part)
    return tuple(_moderator(design, raw, parts, values, rows) for raw, parts in by_raw.items())


def _moderator(
    design: Design, raw: tuple[str, ...], parts: Sequence[str], values: Mapping[str, Array], rows: NDArray[np.int64]
) -> Moderator:
    own = {part: values[part] for part in parts}
    in_data = len(raw) == 1 and raw[0] in design.data.columns
    if in_data and all(part.endswith("]") and np.isin(column, (0.0, 1.0)).all() for part, column in own.items()):
        return Moderator(raw[0], "category", design.data[raw[0]].to_numpy(dtype=object)[rows], own, design)
    if len(parts) == 1:
        return Moderator(parts[0], "number", own[parts[0]], own, design)
    if not in_data:
        raise ModelError(
            f"{', '.join(parts)} are made from {' and '.join(raw)} together, so that there is no single group-level "
            "predictor to show the slope along."
        )
    return Moderator(raw[0], "curve", design.data[raw[0]].to_numpy(dtype=float)[rows], own, design)


def distinct(values: NDArray[Any]) -> list[Any]:
    """Distinct values in order; mixed kinds by their text."""
    found = list(dict.fromkeys(values.tolist()))
    try:
        return sorted(found)
    except TypeError:
        return sorted(found, key=str)
