"""The rungs of a hierarchy: columns of ids read as levels, and ids that are labels within a parent made whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from partialpool.design.factors import Codes, Labels, combine, encode_ids, join_labels
from partialpool.design.factors import Levels as Ids
from partialpool.design.frame import SHOWN, drop_missing, read_frame, row_names
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.levels.nesting import exact_map, majority_map, occupied
from partialpool.present.tables import listed

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Level:
    """One level: its groups are the combinations of `variables` that occur.

    Attributes
    ----------
    name : as the user listed it.
    variables : the columns whose combinations are its groups; more than one where ids are labels within a parent.
    codes : (n,) the group of each row. labels : (J,) the groups' names as text.
    ids : by variable, the id of each group (J,), whole numbers where the column holds such.
    """

    name: str
    variables: tuple[str, ...]
    codes: Codes
    labels: Labels
    ids: tuple[Any, ...]

    @property
    def expression(self) -> str:
        """The level in a formula."""
        return ":".join(self.variables)

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def values(self) -> Any:
        """The groups' ids (J,): those of the column, or joined by colons where there are several columns."""
        return self.ids[0] if len(self.ids) == 1 else self.labels


@dataclass(frozen=True, eq=False)
class Rungs:
    """Levels read from data; `index`: the labels of the rows used; `dropped`: by column, rows without an id."""

    levels: tuple[Level, ...]
    index: pandas.Index[Any]
    dropped: Mapping[str, int]
    rows_given: int


def read_levels(data: Any, names: Sequence[str]) -> Rungs:
    """The columns that hold the levels' ids; rows without an id are dropped and counted."""
    names = _checked(names)
    frame, split = _read(data, names)
    given = len(frame)
    if given == 0:
        raise DataError("The data are empty: there are no rows.")
    frame, _, dropped = drop_missing(frame)
    if len(frame) < 2:
        every = listed([repr(name) for name in names])
        raise DataError(
            f"{len(frame)} of {given} rows have an id in each of {every}; levels need at least 2 rows. "
            f"Missing ids: {_counted(dropped)}."
        )
    columns = {str(column): encode_ids(frame[column], str(column)) for column in frame.columns}
    levels = tuple(_level(name, split[name], columns) for name in names)
    for level in levels:
        if level.groups < 2:
            raise DataError(
                f"{level.name!r} is constant: it is {level.labels[0]!r} in all {len(frame):,} rows. "
                f"A level needs at least two groups; leave it out."
            )
    return Rungs(levels, frame.index, dropped, given)


def _checked(names: Sequence[str]) -> list[str]:
    if not isinstance(names, Iterable):
        raise ModelError(f"levels= takes the names of columns, such as ['class', 'school']; it is {names!r}.")
    listed = [names] if isinstance(names, str) else list(names)
    wrong = next((name for name in listed if not isinstance(name, str)), None)
    if wrong is not None or not listed:
        found = f"one of them is {wrong!r}" if listed else "there are none"
        raise ModelError(f"levels= takes the names of columns, such as ['class', 'school']; {found}.")
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise ModelError(f"levels= names {twice!r} twice; name each level once.")
    return listed


def _read(data: Any, names: Sequence[str]) -> tuple[pandas.DataFrame, dict[str, tuple[str, ...]]]:
    """The columns, and by level the columns it is made of: `batch:cask` is the combinations of two."""
    split = {name: tuple(part.strip() for part in name.split(":")) for name in names}
    whole = [name for name in names if len(split[name]) > 1]
    present = set() if not whole else {str(name) for name in _optional(data, whole)}
    split = {name: (name,) if name in present else parts for name, parts in split.items()}
    try:
        return read_frame(data, list(dict.fromkeys(part for parts in split.values() for part in parts))), split
    except DataError as error:
        raise DataError(str(error).replace("The formula names", "levels= names", 1)) from None


def _optional(data: Any, names: Sequence[str]) -> Sequence[Any]:
    """Those of the names that are columns of the data."""
    return list(read_frame(data, [], optional=names).columns)


def _level(name: str, parts: tuple[str, ...], columns: Mapping[str, tuple[Codes, Ids]]) -> Level:
    codes, members = combine([columns[part][0] for part in parts], [columns[part][1] for part in parts])
    found = [columns[part][1] for part in parts]
    labels = join_labels([ids.labels[members[:, place]] for place, ids in enumerate(found)])
    values = tuple(_values(ids)[members[:, place]] for place, ids in enumerate(found))
    return Level(name, parts, codes, labels, values)


def _values(ids: Ids) -> Any:
    """Ids as the user has them: whole numbers as such, all else as text."""
    try:
        return ids.labels.astype(np.int64) if ids.integer else ids.labels
    except (ValueError, OverflowError):  # categories that are whole numbers too large for 64 bits
        return ids.labels


# -- declared nestings --------------------------------------------------------------------------------------------


def declare(rungs: Rungs, nested: Mapping[str, str | Sequence[str]] | None) -> tuple[Rungs, list[str]]:
    """The levels with their declared nestings, parents first, and sentences on what that changed."""
    if not nested:
        return rungs, []
    parents = _parents(rungs, nested)
    levels = {level.name: level for level in rungs.levels}
    notes = []
    for name in _parents_first(parents):
        level, note = _within(levels[name], [levels[parent] for parent in parents[name]], rungs.index)
        levels[name] = level
        notes += [note] if note else []
    return Rungs(tuple(levels.values()), rungs.index, rungs.dropped, rungs.rows_given), notes


def _parents(rungs: Rungs, nested: Mapping[str, str | Sequence[str]]) -> dict[str, list[str]]:
    if not isinstance(nested, Mapping):
        raise ModelError(
            f"nested= maps a level to its parent, such as {{'class': 'school'}}; {nested!r} is no such map."
        )
    known = [level.name for level in rungs.levels]
    parents = {name: _several(own) for name, own in nested.items()}
    for name, own in parents.items():
        for mentioned in (name, *own):
            if mentioned not in known:
                raise ModelError(
                    f"nested= names {mentioned!r}, which is not one of levels=. {did_you_mean(str(mentioned), known)}"
                )
        if name in own:
            raise ModelError(f"nested= puts {name!r} into itself; name the coarser level that it lies in.")
        if not own:
            raise ModelError(f"nested= names no parent of {name!r}; name the coarser level that it lies in.")
    return parents


def _several(names: Any) -> list[Any]:
    return list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]


def _parents_first(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """The declared levels in an order in which each follows its parents."""
    ordered: list[str] = []
    waiting = list(parents)
    while waiting:
        ready = [name for name in waiting if not any(parent in waiting for parent in parents[name])]
        if not ready:
            circle = " in ".join(repr(name) for name in [*waiting, waiting[0]])
            raise ModelError(f"nested= goes round in a circle: {circle}; take out one of these.")
        ordered += ready
        waiting = [name for name in waiting if name not in ready]
    return ordered


def _within(level: Level, parents: Sequence[Level], index: pandas.Index[Any]) -> tuple[Level, str]:
    """The level as it is where it lies in its parents; its combinations with them where its ids are re-used.

    Where most groups lie in one parent and some rows do not, the ids are not labels that start afresh, and the
    declaration is contradicted: that is refused, with the rows.
    """
    codes, members = combine([own.codes for own in parents], [_as_ids(own) for own in parents])
    if exact_map(level.codes, codes, level.groups) is not None:
        return level, ""
    name = ":".join(own.name for own in parents)
    cells = occupied(level.codes, codes, (level.groups, len(members)))
    found = majority_map(cells)
    if found.near:
        parent_labels = join_labels([own.labels[members[:, place]] for place, own in enumerate(parents)])
        raise DataError(_contradiction(level, name, codes, parent_labels, found.parent, index))
    combined = _combinations(level, parents)
    spread = np.bincount(cells.first)
    widest = int(spread.argmax())
    where = f"{spread[widest]:,} of {len(members):,}" if spread[widest] < len(members) else f"all {len(members):,}"
    note = (
        f"Ids of {level.name!r} occur in several groups of {name!r} ({level.labels[widest]!r} in {where}). "
        "As declared, each is another group there: the groups are the combinations "
        f"{combined.expression}, {combined.groups:,} of them."
    )
    return combined, note


def _combinations(level: Level, parents: Sequence[Level]) -> Level:
    """The level's groups as the combinations of the parents' columns and its own."""
    pieces: dict[str, tuple[Codes, Any]] = {}
    for own in (*parents, level):
        for variable, values in zip(own.variables, own.ids, strict=True):
            pieces.setdefault(variable, (own.codes, values))
    coded = [_dense(codes, values) for codes, values in pieces.values()]
    ids = [Ids(variable, labels, False) for variable, (_, labels, _) in zip(pieces, coded, strict=True)]
    codes, members = combine([codes for codes, _, _ in coded], ids)
    labels = join_labels([own.labels[members[:, place]] for place, own in enumerate(ids)])
    values = tuple(kept[members[:, place]] for place, (_, _, kept) in enumerate(coded))
    return Level(level.name, tuple(pieces), codes, labels, values)


def _dense(codes: Codes, values: Any) -> tuple[Codes, Labels, Any]:
    """Codes of a column from the codes of groups that carry its value: equal values get one code."""
    kept, place = np.unique(values, return_inverse=True)
    labels = np.array([str(value) for value in kept.tolist()], dtype=object)
    return place.astype(np.int32)[codes], labels, kept


def _as_ids(level: Level) -> Ids:
    return Ids(level.name, level.labels, False)


def _contradiction(
    level: Level, parent: str, codes: Codes, labels: Labels, majority: Codes, index: pandas.Index[Any]
) -> str:
    """The message for a declared nesting that a few rows break."""
    broken = np.flatnonzero(majority[level.codes] != codes)
    shown = []
    for row in broken[:SHOWN]:
        group = int(level.codes[row])
        usual = f"mostly {labels[majority[group]]!r}" if majority[group] >= 0 else "without a majority"
        where = f"{level.name} {level.labels[group]!r} in {parent} {labels[codes[row]]!r}"
        shown.append(f"{row_names([int(row)], index)} has {where} ({usual})")
    more = f"; and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
    one = len(broken) == 1
    return (
        f"{level.name!r} is declared as nested in {parent!r}, which {row_names(broken, index)} (of {len(codes):,}) "
        f"{'contradicts' if one else 'contradict'}: {'; '.join(shown)}{more}. Correct {'it' if one else 'them'}, or "
        f"leave out nested= and see .broken. If ids are re-used in every {parent} all the same, name the level "
        f"{parent + ':' + level.name!r} in levels=."
    )


def _counted(dropped: Mapping[str, int]) -> str:
    found = [f"{count:,} in {name!r}" for name, count in dropped.items() if count]
    return listed(found) if found else "none"
