"""How two levels lie to each other: nested, the same groups, partly nested, or crossed; the first is the finer one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from partialpool.design.factors import Codes
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.levels.nesting import Cells, Flags, exact_map, ids_may_be_reused, majority_map, occupied, single_rows
from partialpool.levels.rungs import Level, Rungs

NESTED, SAME, PARTLY, CROSSED, AS_CODED = "nested in", "same groups", "partly nested", "crossed", "crossed as coded"


@dataclass(frozen=True, eq=False)
class Relation:
    """How two levels lie to each other.

    Attributes
    ----------
    finer, coarser : positions of the levels; of crossed ones, `finer` has more groups.
    kind : in words. rows_agree : rows in their finer group's majority parent. whole : finer groups in one parent.
    parent : (J,) the map from finer to coarser where there is one, -1 for groups without a majority parent.
    cells : the combinations of levels that are crossed or partly nested.
    shared : whether crossed levels show by themselves that an id is the same group everywhere.
    """

    finer: int
    coarser: int
    kind: str
    rows_agree: int
    whole: int
    parent: Codes | None = None
    cells: Cells | None = None
    shared: bool = False

    @property
    def crossed(self) -> bool:
        """Whether neither is a map of the other, nor nearly."""
        return self.kind in (CROSSED, AS_CODED)


@dataclass(frozen=True, eq=False)
class Order:
    """Levels and how each pair lies, by their positions in `levels`: what all answers about a hierarchy are read from.

    Attributes
    ----------
    rungs : the levels as they were read.
    relations : one for each pair.
    notes : what declared nestings changed, in sentences.
    """

    rungs: Rungs
    relations: tuple[Relation, ...]
    notes: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[Level, ...]:
        """In the order in which the user listed them."""
        return self.rungs.levels

    @property
    def n_rows(self) -> int:
        """Rows used."""
        return len(self.rungs.index)

    @property
    def n_dropped(self) -> int:
        """Rows left out because an id is missing."""
        return self.rungs.rows_given - self.n_rows

    def position(self, name: str) -> int:
        """Where a level stands, by its name or by its expression in a formula."""
        for place, level in enumerate(self.levels):
            if name in (level.name, level.expression):
                return place
        known = [level.name for level in self.levels]
        raise ModelError(f"{name!r} is not a level of this hierarchy. {did_you_mean(str(name), known)}")

    def relation(self, first: int, second: int) -> Relation:
        """The relation of two levels."""
        return next(own for own in self.relations if {own.finer, own.coarser} == {first, second})

    def parent_codes(self, fine: int, coarse: int) -> Codes:
        """The map (J,) from one level to another; -1 for groups without a majority parent."""
        if fine == coarse:
            return np.arange(self.levels[fine].groups, dtype=np.int32)
        relation = self.relation(fine, coarse)
        if relation.parent is not None and relation.finer == fine:
            return relation.parent
        if relation.parent is not None and relation.kind == SAME:
            return np.argsort(relation.parent).astype(np.int32)
        one, other = self.levels[fine].name, self.levels[coarse].name
        why = (
            f"they are {relation.kind}: a group of {one!r} has rows in several groups of {other!r}"
            if relation.crossed
            else f"{one!r} is the coarser of the two; write the finer level first"
        )
        raise DataError(f"There is no map from {one!r} to {other!r}: {why}.")

    @cached_property
    def below(self) -> Flags:
        """(k, k): whether a level is finer than another or the same, as an exact map."""
        found = np.eye(len(self.levels), dtype=bool)
        for own in self.relations:
            if own.kind in (NESTED, SAME):
                found[own.finer, own.coarser] = True
                found[own.coarser, own.finer] |= own.kind == SAME
        return found

    @cached_property
    def distinct(self) -> list[int]:
        """Positions of levels, one for each partition of the rows, without those that name the rows."""
        kept: list[int] = []
        for place in range(len(self.levels)):
            again = any(self.relation(place, other).kind == SAME for other in kept)
            if not again and not self.names_rows(place):
                kept.append(place)
        return kept

    def names_rows(self, place: int) -> bool:
        """Whether a level has one row in each group."""
        return self.levels[place].groups == self.n_rows

    @cached_property
    def fine_first(self) -> bool:
        """Whether levels are listed from fine to coarse: so it is taken unless most nestings found say otherwise."""
        found = [own for own in self.relations if own.kind in (NESTED, PARTLY)]
        return 2 * sum(own.finer < own.coarser for own in found) >= len(found)


def relations(levels: Sequence[Level]) -> list[Relation]:
    """One for each pair of levels."""
    found = [_relation(levels, i, j) for i in range(len(levels)) for j in range(i + 1, len(levels))]
    found = [_resolved(own, found, levels) if own.kind == PARTLY else own for own in found]
    while True:  # what one pair shows may settle another
        settled = [_settled(own, found, levels) if own.crossed and not own.shared else own for own in found]
        if all(new is own for new, own in zip(settled, found, strict=True)):
            return found
        found = settled


def _relation(levels: Sequence[Level], i: int, j: int) -> Relation:
    first, second = (i, j) if levels[i].groups >= levels[j].groups else (j, i)
    fine, coarse = levels[first], levels[second]
    rows = len(fine.codes)
    parent = exact_map(fine.codes, coarse.codes, fine.groups)
    if parent is not None:
        kind = SAME if fine.groups == coarse.groups else NESTED
        return Relation(first, second, kind, rows, fine.groups, parent)
    cells = occupied(fine.codes, coarse.codes, (fine.groups, coarse.groups))
    found = majority_map(cells)
    if not found.near and (other := majority_map(cells.swapped)).near:  # wrong ids may make the coarser the larger
        first, second, cells, found = second, first, cells.swapped, other
    if found.near:
        return Relation(first, second, PARTLY, found.rows_agree, found.whole, found.parent, cells)
    kind = AS_CODED if ids_may_be_reused(cells) else CROSSED
    return Relation(first, second, kind, found.rows_agree, found.whole, None, cells, single_rows(cells))


def _resolved(own: Relation, found: Sequence[Relation], levels: Sequence[Level]) -> Relation:
    """Groups without a majority parent get that of the group, of a level between, that they lie in.

    Of a pupil's two rows one is in another school: the pupil's class tells which of the two is wrong.
    """
    assert own.parent is not None
    parent = own.parent.copy()
    for first in found:
        if first.kind != NESTED or first.finer != own.finer or first.parent is None:
            continue
        then = next((r for r in found if (r.finer, r.coarser) == (first.coarser, own.coarser)), None)
        if then is not None and then.parent is not None:
            parent = np.where(parent < 0, then.parent[first.parent], parent).astype(np.int32)
    if np.array_equal(parent, own.parent):
        return own
    agree = int((parent[levels[own.finer].codes] == levels[own.coarser].codes).sum())
    return replace(own, parent=parent, rows_agree=agree)


def _settled(own: Relation, found: Sequence[Relation], levels: Sequence[Level]) -> Relation:
    """Crossed, not merely as coded, where groups that lie within those of one level are crossed with the other.

    A pupil who does tasks 1, 2 and 3, with a row for each, tells that these are not labels within the pupil's school.
    """
    for upper, label in ((own.finer, own.coarser), (own.coarser, own.finer)):
        within = [r.finer for r in found if r.kind in (NESTED, PARTLY) and r.coarser == upper and r.finer != label]
        for lower in within:
            pair = next(r for r in found if {r.finer, r.coarser} == {lower, label})
            if pair.kind == CROSSED and pair.shared:
                return replace(own, kind=CROSSED, shared=True)
    return own
