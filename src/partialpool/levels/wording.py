"""What a hierarchy says of itself, a sentence a line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from partialpool.design.frame import row_names
from partialpool.levels.nesting import Counts, disagreeing, exact_map, is_antisymmetric, is_transitive
from partialpool.levels.proposal import FEW, covered_by, few_levels, formula_terms, slashed
from partialpool.levels.relations import AS_CODED, CROSSED, PARTLY, SAME, Order, Relation
from partialpool.levels.rungs import Level
from partialpool.present.tables import listed

#: Groups and pairs that are named before "and k more".
SHOWN = 4


def sentences(h: Order) -> list[str]:
    """Counts, what was dropped or declared, warnings, and the formula."""
    lines = [_counts(h)]
    if h.n_dropped:
        by = ", ".join(f"{count:,} in {name!r}" for name, count in h.rungs.dropped.items() if count)
        lines.append(f"{h.n_dropped:,} of {h.rungs.rows_given:,} rows have no id and are left out: {by}.")
    lines += h.notes
    lines += _reused_words(h)
    partly = [_partly_words(h, own) for own in h.relations if own.kind == PARTLY]
    lines += _at_most(partly)
    if partly:
        lines.append("Correct these rows if they are errors of coding; if groups did move, both levels need a term.")
    lines += [_same_words(h, own) for own in h.relations if own.kind == SAME]
    lines += [_row_words(level.name) for place, level in enumerate(h.levels) if h.names_rows(place)][:1]
    lines += _order_words(h)
    lines += _few_words(h)
    terms = formula_terms(h)
    lines.append(f"For a formula: {terms}." if terms else "There is no level to group by.")
    return lines


def _counts(h: Order) -> str:
    levels = sorted(h.levels, key=lambda own: own.groups)
    counted = [
        f"{own.name} {own.groups:,}" + (f" (as {own.expression})" if own.expression != own.name else "")
        for own in levels
    ]
    return f"Groups, coarse to fine: {', '.join(counted)}, rows {h.n_rows:,}."


def _few_words(h: Order) -> list[str]:
    """Levels whose sd is not to be learnt: as predictors, and what they tell of coarser ones."""
    few = few_levels(h)
    lines = []
    alone = [h.levels[place] for place in few if covered_by(h, place) is None]
    if alone:
        names = listed([f"{level.name!r} ({level.groups})" for level in alone])
        what = "It is a predictor" if len(alone) == 1 else "They are predictors"
        lines.append(
            f"Too few groups to learn an sd from (fewer than {FEW}): {names}. {what} in the formula, without pooling; "
            "see .estimability()."
        )
    for place in few:
        finer = covered_by(h, place)
        if finer is not None:
            lines.append(f"{h.levels[place].name!r} is told by {h.levels[finer].name!r}: it needs no term of its own.")
    rest = [h.levels[place] for place in h.distinct if h.levels[place].groups < FEW and place not in few]
    if rest:
        names = listed([repr(level.name) for level in rest])
        lines.append(f"{names}: fewer than {FEW} groups, so that the prior decides how much to pool.")
    return lines


def _at_most(lines: Sequence[str]) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"And {more} more pairs like these, see .table."] if more > 0 else [])]


def reused_direction(h: Order, own: Relation) -> tuple[int, int]:
    """Which of two levels that are crossed as coded is taken to have labels that start afresh in the other.

    The data cannot tell, nor can the counts (2 schools with classes 1 to 6, 30 with classes 1 to 4): the order in which
    the user lists levels does. Ids that are labels within one parent may be so within another.
    """
    many, few = own.finer, own.coarser
    made = [len(h.levels[place].variables) > 1 for place in (many, few)]
    if made[0] != made[1]:  # the one that was declared as labels within a parent
        return (many, few) if made[0] else (few, many)
    first, then = min(many, few), max(many, few)
    return (first, then) if h.fine_first else (then, first)


def _reused_words(h: Order) -> list[str]:
    """The pairs that are crossed as coded: one in full, or a chain of them, the others in brief."""
    found = [own for own in h.relations if own.kind == AS_CODED]
    chain = _chain(h, found)
    if chain:
        return [_chain_warning(h, chain, found), *_as_they_stand(h)]
    told = [(own, *reused_direction(h, own)) for own in found]
    told.sort(  # the likeliest first, and of a label's parents the finest: to lie in it is to lie in the coarser ones
        key=lambda case: (_combinations_named(h, case[0]) is None, _columns(h, case[0]), -h.levels[case[2]].groups)
    )
    lines = [_warning(h, *case) for case in told[:1]]
    others = [f"{h.levels[label].name!r} in {h.levels[parent].name!r}" for _, label, parent in told[1:]]
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        lines.append(f"The same question, whether ids start afresh, for {', '.join(others[:SHOWN])}{more}.")
    return [*lines, *_as_they_stand(h)]


def _columns(h: Order, own: Relation) -> int:
    """How many columns make the groups of two levels."""
    return len(h.levels[own.finer].variables) + len(h.levels[own.coarser].variables)


def _chain(h: Order, found: Sequence[Relation]) -> list[int]:
    """Three or more levels, fine to coarse as listed, all pairs of them crossed as coded; none where others are."""
    chain = sorted({place for own in found for place in (own.finer, own.coarser)})
    plain = all(len(h.levels[place].variables) == 1 for place in chain)
    chain = chain if h.fine_first else chain[::-1]
    return chain if plain and len(chain) > 2 and 2 * len(found) == len(chain) * (len(chain) - 1) else []


def _chain_warning(h: Order, chain: Sequence[int], found: Sequence[Relation]) -> str:
    names = [h.levels[place].name for place in chain]
    pair = next(own for own in found if {own.finer, own.coarser} == set(chain[:2]))
    nested = ", ".join(f"{inner!r}: {outer!r}" for inner, outer in pairwise(names))
    example, where, _ = _widest(h, pair, chain[0], chain[1])
    return (
        f"Warning: {listed([repr(name) for name in names])} are crossed as coded: {example} is in {where}, "
        f"and so on. If ids start afresh at each level ({' in '.join(names)}, as levels= lists them), write "
        f"{slashed(names[::-1])} in the formula and nested={{{nested}}} here; where only some do, declare those. Ids "
        "that mean the same everywhere are crossed indeed."
    )


def _as_they_stand(h: Order) -> list[str]:
    """Pairs that are crossed, which nothing in the data says of their ids."""
    pairs = [
        f"{h.levels[own.finer].name!r} with {h.levels[own.coarser].name!r}"
        for own in h.relations
        if own.kind == CROSSED and not own.shared
    ]
    if not pairs:
        return []
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return [
        f"Crossed, with ids taken as they stand: {', '.join(pairs[:SHOWN])}{more}. If ids of one start afresh in the "
        "groups of the other, say so by nested=."
    ]


def _warning(h: Order, own: Relation, label: int, parent: int) -> str:
    inner, outer = h.levels[label], h.levels[parent]
    same, where, spread = _widest(h, own, label, parent)
    named = _combinations_named(h, own)
    hint = f" {named!r} has one group for each combination, which speaks for it." if named else ""
    simple = len(inner.variables) == len(outer.variables) == 1
    slash = f"{slashed([outer.name, inner.name])} or " if simple else ""
    declared = f"nested={{{inner.name!r}: {outer.name!r}}}"
    listing = "fine levels first" if h.fine_first else "coarse levels first"
    return (
        f"Warning: {inner.name!r} and {outer.name!r} are crossed as coded: {same} is in {where}. "
        f"If these are {spread:,} different groups, because ids of {inner.name!r} are re-used in every {outer.name!r}, "
        f"write {slash}{outer.expression}:{inner.expression} in the formula and {declared} "
        f"here; if ids of {outer.name!r} are re-used in every {inner.name!r}, the other way round (no data can tell; "
        f"levels= is taken to list {listing}).{hint} If {same} is the same in all, they "
        "are crossed indeed."
    )


def _widest(h: Order, own: Relation, label: int, parent: int) -> tuple[str, str, int]:
    """The id of `label` that is in most groups of `parent`, in how many of them in words, and as a number."""
    inner, outer = h.levels[label], h.levels[parent]
    assert own.cells is not None
    cells = own.cells if label == own.finer else own.cells.swapped
    spread = np.bincount(cells.first, minlength=inner.groups)
    widest = int(spread.argmax())
    whole = "both" if outer.groups == 2 else f"all {outer.groups:,}"
    counted = f"{spread[widest]:,} of {outer.groups:,}" if spread[widest] < outer.groups else whole
    return f"{inner.name} {inner.labels[widest]!r}", f"{counted} groups of {outer.name!r}", int(spread[widest])


def _combinations_named(h: Order, own: Relation) -> str | None:
    """The level, if any, whose groups are the combinations of two crossed ones."""
    assert own.cells is not None
    one, other = h.levels[own.finer], h.levels[own.coarser]
    return next((level.name for level in h.levels if _names_cells(level, one, other, len(own.cells.rows))), None)


def _names_cells(level: Level, inner: Level, outer: Level, combinations: int) -> bool:
    """Whether a level's groups are the combinations of two others."""
    return (
        level.groups == combinations
        and exact_map(level.codes, inner.codes, level.groups) is not None
        and exact_map(level.codes, outer.codes, level.groups) is not None
    )


def _partly_words(h: Order, own: Relation) -> str:
    fine, coarse = h.levels[own.finer], h.levels[own.coarser]
    assert own.parent is not None
    rows = np.flatnonzero(own.parent[fine.codes] != coarse.codes)
    torn = int((own.parent < 0).sum())
    extra = (
        f" {torn:,} groups have no parent with more than half of their rows; all rows of these are listed."
        if torn
        else ""
    )
    return (
        f"{fine.name!r} is nested in {coarse.name!r} but for {row_names(rows, h.rungs.index)} "
        f"({100 * len(rows) / h.n_rows:.2g}% of all rows; .broken has the list).{extra}"
    )


def _same_words(h: Order, own: Relation) -> str:
    first, second = sorted((own.finer, own.coarser))
    one, other = h.levels[first].name, h.levels[second].name
    return f"{one!r} and {other!r} are the same groups under two names: a model can have only one of them."


def _row_words(name: str) -> str:
    return (
        f"{name!r} has one row in each group: it names the rows. A Gaussian model has no term for it (it cannot be "
        f"told from the residual); a count model can take one, for overdispersion."
    )


def _order_words(h: Order) -> list[str]:
    """What the axioms of a partial order say of what was found."""
    same = np.zeros_like(h.below)
    for own in h.relations:
        if own.kind == SAME:
            same[own.finer, own.coarser] = same[own.coarser, own.finer] = True
    wrong = []
    if not is_transitive(h.below) or not is_antisymmetric(h.below, same):
        wrong.append("The relations found are not a partial order; please report this with the data.")
    paths, torn = _paths(h)
    for fine, middle, coarse, groups in torn:
        if h.names_rows(fine):
            continue  # these are the broken rows themselves
        names = [h.levels[place].name for place in (fine, middle, coarse)]
        labels = ", ".join(repr(str(label)) for label in h.levels[fine].labels[groups[:SHOWN]])
        labels += ", ..." if len(groups) > SHOWN else ""
        wrong.append(
            f"Paths disagree: for {len(groups):,} group{'s' if len(groups) > 1 else ''} of {names[0]!r} ({labels}), "
            f"the way to {names[2]!r} through {names[1]!r} ends elsewhere than the direct one."
        )
    if not wrong and not torn and paths:
        wrong.append("Checked: the order is transitive, and all paths between two levels agree.")
    return wrong


def _paths(h: Order) -> tuple[int, list[tuple[int, int, int, Counts]]]:
    """How many detours from one level to another there are, and those that end elsewhere than the direct map."""
    maps = {(own.finer, own.coarser): own.parent for own in h.relations if own.parent is not None}
    count, torn = 0, []
    for (fine, middle), first in maps.items():
        for (start, coarse), then in maps.items():
            if start != middle or (fine, coarse) not in maps:
                continue
            count += 1
            groups = disagreeing(first, then, maps[fine, coarse])
            if len(groups):
                torn.append((fine, middle, coarse, groups))
    return count, torn
