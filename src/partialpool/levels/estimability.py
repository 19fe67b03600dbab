"""What a model with given levels can estimate, and what it cannot: groups, rows in them, balance, connected parts.

*How many groups.* The sd between J groups rests on J - 1 degrees of freedom, however many rows there are. Were every
group's effect known without error, (J - 1) s^2 / tau^2 would be chi-squared with J - 1 degrees of freedom, and the 90%
interval of tau would reach

    from s sqrt((J - 1) / q95)   to   s sqrt((J - 1) / q05),     q the quantiles of chi-squared with J - 1,

which is 0.62 to 2.9 times s for J = 4, 0.67 to 2.1 for J = 6, 0.90 to 1.13 for J = 100: the best that any data can do
by themselves. A prior cuts off the upper end: with the default one, pp.fit gives 0.65 to 2.75 for J = 4.
Below 5 groups the prior decides (Gelman and Hill 2007, section 12.9); from 8 on it is the data that do, by and large.

*Groups of one row* help to learn the sd between groups, but only together with a residual sd that others tell: 100 of
them beside 3 groups of 20 rows bring the 90% interval of tau = 1 from (0.4, 3.4) to (0.85, 1.4).

*Balance.* With n_j rows in group j: harmonic over arithmetic mean, J / (nbar sum 1/n_j) (Ahrens and Pincus 1981), 1 for
groups of one size.

*Connected parts.* Effects of two crossed factors are compared through rows that share a group. The graph with a node
for each group and a line for each combination falls into connected parts (Searle 1971, Linear Models). Between parts
only the assumption that all groups come from one population compares, no data. (With three or more crossed
factors every pair can be connected and a comparison still be missing; pairs are what is told here.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.levels.nesting import Codes, connected_parts, covers, exact_map
from partialpool.levels.proposal import FEW
from partialpool.levels.relations import PARTLY, SAME, Order, Relation
from partialpool.levels.rungs import Level
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Fewer groups than this: their sd is known roughly.
ENOUGH = 8
#: Names of groups told in a sentence or a cell of a table.
NAMED = 5
EXPLAINED = (
    "sd_from, sd_to: how far the data alone leave the sd between groups open (90%), as multiples of its estimate, were "
    "each group known without error."
)
#: Balance below which it is told.
UNBALANCED = 0.5
#: Share of all rows from which on the largest group is named.
LARGE = 0.2


@dataclass(frozen=True, eq=False, repr=False)
class Estimability(Report):
    """What a model with the levels of a hierarchy can and cannot estimate, as `Hierarchy.estimability` finds it.

    Examples
    --------
    >>> import partialpool as pp
    >>> found = pp.hierarchy({"site": list("AABBCC"), "day": [1, 2, 1, 2, 3, 3]}, ["site", "day"]).estimability()
    >>> found.parts["first_groups"].tolist()
    [('A', 'B'), ('C',)]
    """

    _order: Order

    @property
    def title(self) -> str:
        return f"What a model with these levels can estimate, from {self._order.n_rows:,} rows"

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row per level, the coarsest first.

        `groups`, `rows_min`, `rows_median`, `rows_max`, `singletons` (groups of one row), `three_rows` (groups of three
        rows or more, on which a slope by group rests), `balance` (1: all of one size), `sd_from` and `sd_to`: the 90%
        interval of the sd between groups, as multiples of its estimate, were every group known without error.
        """
        import pandas

        levels = sorted(self._order.levels, key=lambda own: own.groups)
        return pandas.DataFrame([_row(level) for level in levels]).set_index("level")

    @cached_property
    def parts(self) -> pandas.DataFrame:
        """The parts of crossed levels that share no row, where there is more than one: a row per pair and part.

        Columns: `first`, `second` (the levels), `part` (the largest is 1), `rows`, `first_groups`, `second_groups`
        (tuples of ids).
        """
        import pandas

        rows = [row for own in self._order.relations for row in _parts(self._order, own)]
        columns = ["first", "second", "part", "rows", "first_groups", "second_groups"]
        return pandas.DataFrame(rows, columns=columns)

    @property
    def sentences(self) -> Sequence[str]:
        h = self._order
        order = sorted(range(len(h.levels)), key=lambda place: h.levels[place].groups)
        lines = [line for place in order for line in _level_words(h, place)]
        lines += [line for own in h.relations if own.kind not in (SAME,) for line in _pair_words(h, own, self.parts)]
        lines = lines or ["Every level has groups and rows enough, and crossed levels are connected."]
        return [*lines, EXPLAINED]

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Rows per group of each level.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional
        """
        from partialpool.present.hasse import group_sizes

        levels = sorted(self._order.levels, key=lambda own: own.groups)
        return group_sizes([own.name for own in levels], [np.bincount(own.codes) for own in levels], ax, figsize)


def sd_interval(groups: int) -> tuple[float, float]:
    """The 90% interval of an sd between groups that are known without error, over its estimate.

    Examples
    --------
    >>> [round(end, 2) for end in sd_interval(6)]
    [0.67, 2.09]
    """
    from scipy.special import chdtri

    freedom = groups - 1
    return float(np.sqrt(freedom / chdtri(freedom, 0.05))), float(np.sqrt(freedom / chdtri(freedom, 0.95)))


def _row(level: Level) -> dict[str, object]:
    sizes = np.bincount(level.codes)
    low, high = sd_interval(level.groups)
    return {
        "level": level.name, "groups": level.groups, "rows_min": int(sizes.min()),
        "rows_median": float(np.median(sizes)), "rows_max": int(sizes.max()),
        "singletons": int((sizes == 1).sum()), "three_rows": int((sizes >= 3).sum()),
        "balance": balance(sizes), "sd_from": low, "sd_to": high,
    }  # fmt: skip


def balance(sizes: NDArray[np.int64]) -> float:
    """Harmonic over arithmetic mean of the groups' sizes.

    Examples
    --------
    >>> round(balance(np.array([1, 4])), 4)
    0.64
    """
    return float(len(sizes) / (sizes.mean() * (1.0 / sizes).sum()))


# -- words --------------------------------------------------------------------------------------------------------


def _level_words(h: Order, place: int) -> list[str]:
    level = h.levels[place]
    if h.names_rows(place):
        return [f"{level.name!r} has one row in each group: no Gaussian model can tell its effects from the residual."]
    return [line for line in (_few_words(level), _singleton_words(level), _balance_words(level)) if line]


def _few_words(level: Level) -> str:
    if level.groups >= ENOUGH:
        return ""
    low, high = sd_interval(level.groups)
    reach = f"with any number of rows, the data alone leave {low:.2f} to {_short(high)} times its estimate open"
    if level.groups < FEW:
        return (
            f"{level.name!r} has {level.groups} groups, too few to learn their sd ({reach}): the prior decides how "
            f"much to pool. As a predictor (no pooling) it needs no sd, but speaks of these {level.groups} only."
        )
    return f"{level.name!r} has {level.groups} groups, few for an sd ({reach}): see how other priors move the answer."


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _singleton_words(level: Level) -> str:
    sizes = np.bincount(level.codes)
    single = int((sizes == 1).sum())
    if single == 0:
        return ""
    several, spare = level.groups - single, int(sizes.sum()) - level.groups
    one = single == 1
    return (
        f"{single:,} of the {level.groups:,} groups of {level.name!r} {'has' if one else 'have'} one row "
        f"({_names(level, sizes == 1)}): the residual sd is learnt from the other {several:,} only"
        + ("." if spare >= ENOUGH else f", which have {spare:,} row{'s' * (spare > 1)} more than groups: too few.")
    )


def _balance_words(level: Level) -> str:
    sizes = np.bincount(level.codes)
    even = balance(sizes)
    if even >= UNBALANCED:
        return ""
    largest = int(sizes.argmax())
    share = sizes.max() / sizes.sum()
    alone = f", and {level.labels[largest]!r} alone has {share:.0%} of all rows" if share >= LARGE else ""
    return (
        f"{level.name!r} is unbalanced (balance {even:.2f}, rows per group {sizes.min():,} to {sizes.max():,}): small "
        f"groups borrow most{alone}."
    )


def _names(level: Level, flags: NDArray[np.bool_]) -> str:
    found = level.labels[flags]
    shown = ", ".join(repr(str(label)) for label in found[:NAMED])
    return shown + (", ..." if len(found) > NAMED else "")


def _pair_words(h: Order, own: Relation, parts: pandas.DataFrame) -> list[str]:
    if own.kind == PARTLY or h.names_rows(own.finer):
        return []
    return _connection_words(h, own, parts) if own.crossed else _children_words(h, own)


def _children_words(h: Order, own: Relation) -> list[str]:
    """What a parent's effect rests on: its groups of the level below."""
    strict = h.below & ~h.below.T
    assert own.parent is not None
    if not covers(strict)[own.finer, own.coarser]:
        return []
    fine, coarse = h.levels[own.finer], h.levels[own.coarser]
    children = np.bincount(own.parent, minlength=coarse.groups)
    single = int((children == 1).sum())
    if not single:
        return []
    others = coarse.groups - single
    held = f"{'holds' if single == 1 else 'hold'} one group of {fine.name!r}"
    return [
        f"{single:,} of the {coarse.groups:,} groups of {coarse.name!r} {held} ({_names(coarse, children == 1)}): "
        f"their two effects cannot be told apart; only the other {others:,} tell{'s' * (others == 1)} the two sds apart"
        f"{'.' if others >= FEW else ', too few.'}"
    ]


def _connection_words(h: Order, own: Relation, parts: pandas.DataFrame) -> list[str]:
    first, second = h.levels[own.finer], h.levels[own.coarser]
    mine = parts[(parts["first"] == first.name) & (parts["second"] == second.name)]
    if not len(mine):
        return []
    assert own.cells is not None
    _, part_first, part_second = connected_parts(own.cells)
    common = _common_level(h, own, part_first, part_second)
    if common is not None:
        return [
            f"{first.name!r} and {second.name!r} are crossed within each group of {common.name!r} and share no row "
            f"across: effects from different groups of {common.name!r} are compared through their population only."
        ]
    described = [
        f"{_some(one)} of {first.name!r} with {_some(other)} of {second.name!r} ({rows:,} rows)"
        for one, other, rows in mine[["first_groups", "second_groups", "rows"]].head(NAMED).to_numpy().tolist()
    ]
    more = f"; and {len(mine) - NAMED:,} more" if len(mine) > NAMED else ""
    return [
        f"{first.name!r} and {second.name!r} fall into {len(mine):,} parts that share no row: "
        f"{'; '.join(described)}{more}. The data do not compare effects of different parts; only the assumption of one "
        f"population does."
    ]


def _some(groups: tuple[object, ...]) -> str:
    shown = ", ".join(repr(str(group)) for group in groups[:NAMED])
    return shown if len(groups) <= NAMED else f"{shown} and {len(groups) - NAMED:,} more"


def _common_level(h: Order, own: Relation, part_first: Codes, part_second: Codes) -> Level | None:
    """The level in which both of a pair are nested and whose groups are the parts, if there is one."""
    levels = h.levels
    part_of_row = part_first[levels[own.finer].codes]
    for place, level in enumerate(levels):
        if place in (own.finer, own.coarser) or not (h.below[own.finer, place] and h.below[own.coarser, place]):
            continue
        if level.groups == part_first.max() + 1 and exact_map(level.codes, part_of_row, level.groups) is not None:
            return level
    return None


def _parts(h: Order, own: Relation) -> list[dict[str, object]]:
    """The connected parts of one crossed pair, the largest first; none where all is connected."""
    if not own.crossed or own.cells is None:
        return []
    count, first_part, second_part = connected_parts(own.cells)
    if count == 1:
        return []
    first, second = h.levels[own.finer], h.levels[own.coarser]
    rows = np.bincount(first_part[own.cells.first], weights=own.cells.rows, minlength=count).astype(np.int64)
    in_first, in_second = _members(first, first_part, count), _members(second, second_part, count)
    return [
        {
            "first": first.name, "second": second.name, "part": rank, "rows": int(rows[part]),
            "first_groups": in_first[part], "second_groups": in_second[part],
        }
        for rank, part in enumerate(np.argsort(-rows, kind="stable").tolist(), start=1)
    ]  # fmt: skip


def _members(level: Level, part: Codes, count: int) -> list[tuple[object, ...]]:
    order = np.argsort(part, kind="stable")
    pieces = np.split(np.asarray(level.values)[order], np.cumsum(np.bincount(part, minlength=count))[:-1])
    return [tuple(piece.tolist()) for piece in pieces]
