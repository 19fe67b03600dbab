"""The terms that levels ask for in a formula, and the lines of their Hasse diagram."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from partialpool.levels.nesting import Flags, connected_parts, covers
from partialpool.levels.relations import AS_CODED, PARTLY, SAME, Order, Relation
from partialpool.levels.rungs import Level

#: Names that a formula needs no backticks for.
NAME = re.compile(r"[^\W\d]\w*")
#: Fewer groups than these hardly tell their sd.
FEW = 5


def _strict(h: Order, places: Sequence[int]) -> Flags:
    """Exact maps among some levels, without each to itself; (k, k) over all levels."""
    kept = np.zeros(len(h.levels), dtype=bool)
    kept[list(places)] = True
    found = h.below & kept[:, None] & kept[None, :]
    np.fill_diagonal(found, False)
    return np.asarray(found)


def few_levels(h: Order) -> list[int]:
    """Levels of one column with too few groups to learn how they differ; whatever is coarser than one has as few."""
    return [place for place in h.distinct if h.levels[place].groups < FEW and len(h.levels[place].variables) == 1]


def covered_by(h: Order, place: int) -> int | None:
    """Another of the few-grouped levels that is finer than one of them: as a predictor it tells the coarser, too."""
    return next((other for other in few_levels(h) if other != place and h.below[other, place]), None)


def formula_terms(h: Order) -> str:
    """Predictors for levels of few groups, and group terms of all others, the coarsest first.

    A chain of group terms without branches is one term.
    """
    few = few_levels(h)
    terms = [predictor(h.levels[place]) for place in few if covered_by(h, place) is None]
    return " + ".join([*terms, *_group_terms(h, [place for place in h.distinct if place not in few])])


def predictor(level: Level) -> str:
    """A level of one column as a predictor: ``sector``, or ``C(sector)`` where its ids are whole numbers."""
    name = quoted(level.variables[0])
    return f"C({name})" if np.asarray(level.ids[0]).dtype.kind in "iu" else name


def _group_terms(h: Order, places: Sequence[int]) -> list[str]:
    lines = covers(_strict(h, places))
    terms: list[str] = []
    for top in sorted(places, key=lambda place: (h.levels[place].groups, place)):
        if lines[top].any() and _single_chain(lines, top):
            continue  # told by the term of the level above it
        chain = [top]
        while (children := np.flatnonzero(lines[:, chain[-1]])).size == 1 and lines[children[0]].sum() == 1:
            chain.append(int(children[0]))
        terms += _chain_terms([h.levels[place] for place in chain])
    return terms


def _single_chain(lines: Flags, place: int) -> bool:
    """Whether a level has one level above it of which it is the only one below."""
    above = np.flatnonzero(lines[place])
    return above.size == 1 and int(lines[:, above[0]].sum()) == 1


def _chain_terms(chain: Sequence[Level]) -> list[str]:
    """``(1 | a/b/c)`` where each level adds one column, else a term for each."""
    steps: list[str] = []
    known: set[str] = set()
    for level in chain:
        new = [variable for variable in level.variables if variable not in known]
        if len(new) != 1:
            return [f"(1 | {':'.join(map(quoted, own.variables))})" for own in chain]
        steps += new
        known.update(new)
    return [slashed(steps)]


def slashed(columns: Sequence[str]) -> str:
    """The group term of columns, each nested in the one before it."""
    return f"(1 | {'/'.join(map(quoted, columns))})"


def quoted(column: str) -> str:
    """A column as a formula writes it: in backticks where it is no plain name."""
    return column if NAME.fullmatch(column) else f"`{column}`"


# -- diagram ------------------------------------------------------------------------------------------------------


def diagram(h: Order) -> tuple[list[str], list[int], list[tuple[int, int, str, bool]], list[str]]:
    """Names and counts of the nodes, lines (fine, coarse, words, whether rows break it), and small print."""
    shown = h.distinct
    names = [_node_name(h, place) for place in shown]
    exact = _strict(h, shown)
    near = exact.copy()
    partly = {(own.finer, own.coarser): own for own in h.relations if own.kind == PARTLY}
    for pair in partly:
        near[pair] = pair[0] in shown and pair[1] in shown
    lines = []
    drawn = covers(exact) | (covers(near) & ~exact)
    for fine, coarse in zip(*np.nonzero(drawn), strict=True):
        own = partly.get((int(fine), int(coarse)))
        words = f"{h.n_rows - own.rows_agree:,} rows broken" if own else ""
        lines.append((shown.index(int(fine)), shown.index(int(coarse)), words, own is not None))
    counts = [h.levels[place].groups for place in shown]
    own_rows = [level.name for place, level in enumerate(h.levels) if h.names_rows(place)]
    names.append(" = ".join(["row", *own_rows]))
    counts.append(h.n_rows)
    lines += [(len(shown), i, "", False) for i, place in enumerate(shown) if not near[:, place].any()]
    crossed = [
        f"{h.levels[own.finer].name} × {h.levels[own.coarser].name} ({_parts_words(own)}"
        f"{', as coded' if own.kind == AS_CODED else ''})"
        for own in h.relations
        if own.crossed and own.finer in shown and own.coarser in shown
    ]
    return names, counts, lines, crossed


def _node_name(h: Order, place: int) -> str:
    same = [
        h.levels[other].name
        for other in range(len(h.levels))
        if other != place and h.relation(place, other).kind == SAME
    ]
    own = h.levels[place]
    name = own.name if own.expression == own.name else f"{own.name} (as {own.expression})"
    return " = ".join([name, *same])


def _parts_words(own: Relation) -> str:
    assert own.cells is not None
    filled = len(own.cells.rows) / (own.cells.shape[0] * own.cells.shape[1])
    parts = connected_parts(own.cells)[0]
    if parts > 1:
        return f"{parts:,} parts"
    return "complete" if filled == 1 else f"{filled:.2g} of combinations"
