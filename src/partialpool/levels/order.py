"""`pp.hierarchy`: which level is a coarse-graining of which, read from the data.

The levels, and the rows below them, are partitions of the rows, and a nesting is a map between them; the mathematics is
in `nesting`. Two things that look alike in the data are told apart by what the user says:

* Without `nested=`, ids are taken as they stand: one id is one group. A map that all rows obey is *nested in*; one that
  a few rows break is *partly nested*, and these rows are named; all else is *crossed*. Where ids could be labels that
  start afresh in every parent (class 1, 2, 3 of each school), the pair is *crossed as coded*, with the cure.
* `nested={"class": "school"}` says that every class lies in one school. Where the ids are unique, the data must agree,
  and rows that do not are an error that names them. Where ids are re-used, the class's groups are the combinations
  `school:class`. The two are told apart by lambda: ids that start afresh in every parent have hardly any majority
  parent, ids that are unique but for some wrong rows all do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.factors import Codes
from partialpool.levels.relations import PARTLY, Order, Relation, relations
from partialpool.levels.rungs import declare, read_levels
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.levels.estimability import Estimability


def hierarchy(
    data: Any, levels: Sequence[str], *, nested: Mapping[str, str | Sequence[str]] | None = None
) -> Hierarchy:
    """Read from data which factor is a coarse-graining of which, and which are crossed.

    Parameters
    ----------
    data : data frame, dict of columns, list of records, or path of a file
        One row per observation. Rows without an id in one of the levels are dropped and counted.
    levels : sequence of str
        The columns that hold the ids of the levels' groups, from fine to coarse, as in ``["class", "school"]``.
        ``"batch:cask"`` is a level whose groups are the combinations of two columns. The rows are the finest level
        without being named. Relations are read from the data in whatever order; only where ids may be re-used, which
        data cannot tell, does the order say which of two levels is taken to lie in the other.
    nested : mapping of str to str or sequence of str, optional
        Declares that every group of the first lies in one group of the second, as in ``{"class": "school"}``.
        Where ids are re-used in every parent, groups are then the combinations of the two columns. Where they are
        unique but for some rows, those rows are an error.

    Returns
    -------
    Hierarchy
        With `.table` (a row per pair of levels), `.levels`, `.map()`, `.broken`, `.formula`, `.coarsen()`,
        `.estimability()` and `.plot()`.

    Raises
    ------
    DataError
        If a level is no column of the data or is constant, or rows break a declared nesting.
    ModelError
        If `levels` or `nested` cannot be read.

    Examples
    --------
    >>> import partialpool as pp
    >>> data = {"school": list("AAABBBCCCDDDEEE"), "class": [1, 1, 2] * 5, "pupil": range(15)}
    >>> pp.hierarchy(data, ["pupil", "class", "school"]).table.loc[2, "relation"]
    'crossed as coded'
    >>> found = pp.hierarchy(data, ["pupil", "class", "school"], nested={"class": "school"})
    >>> found.formula
    '(1 | school/class)'
    """
    rungs, notes = declare(read_levels(data, levels), nested)
    return Hierarchy(Order(rungs, tuple(relations(rungs.levels)), tuple(notes)))


@dataclass(frozen=True, eq=False, repr=False)
class Hierarchy(Report):
    """The order of levels that `partialpool.hierarchy` found.

    Read the answers from `table`, `levels`, `broken`, `formula`, and the methods below.
    """

    _order: Order

    @property
    def title(self) -> str:
        count = len(self._order.levels)
        return f"Hierarchy: {count} level{'s' if count > 1 else ''} above {self.n_rows:,} rows"

    @property
    def n_rows(self) -> int:
        """Rows used."""
        return self._order.n_rows

    @property
    def n_dropped(self) -> int:
        """Rows left out because an id is missing."""
        return self._order.n_dropped

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row per pair: finer, coarser, relation, the shares of rows and of groups that obey a map, broken rows.

        `rows_agree` is the share of rows in their finer group's majority parent, `groups_agree` that of the finer
        groups that lie whole in one parent, `broken_rows` the rows to look at (blank for crossed levels).
        """
        import pandas

        names = [level.name for level in self._order.levels]
        rows = [
            {
                "finer": names[own.finer],
                "coarser": names[own.coarser],
                "relation": own.kind,
                "rows_agree": own.rows_agree / self.n_rows,
                "groups_agree": own.whole / self._order.levels[own.finer].groups,
                "broken_rows": pandas.NA if own.crossed else self.n_rows - own.rows_agree,
            }
            for own in self._order.relations
        ]
        columns = ["finer", "coarser", "relation", "rows_agree", "groups_agree", "broken_rows"]
        return pandas.DataFrame(rows, columns=columns).astype({"broken_rows": "Int64"})

    @cached_property
    def levels(self) -> pandas.DataFrame:
        """A row per level, the finest first: what its groups are, how many, and their rows."""
        import pandas

        rows = []
        for level in sorted(self._order.levels, key=lambda own: -own.groups):
            sizes = np.bincount(level.codes)
            rows.append({
                "level": level.name, "groups_are": level.expression, "groups": level.groups,
                "rows_min": int(sizes.min()), "rows_median": float(np.median(sizes)), "rows_max": int(sizes.max()),
            })  # fmt: skip
        return pandas.DataFrame(rows).set_index("level")

    @cached_property
    def broken(self) -> pandas.DataFrame:
        """The rows of partly nested levels that are outside their group's majority parent, by their label.

        Columns: `level`, `group`, `parent_level`, `parent` (that the row has), `majority_parent` (that most rows of
        the group have; missing where no parent has more than half of them).
        """
        import pandas

        pieces = [self._broken(own) for own in self._order.relations if own.kind == PARTLY]
        columns = ["level", "group", "parent_level", "parent", "majority_parent"]
        if not pieces:
            return pandas.DataFrame(columns=columns, index=pandas.Index([], name="row"))
        return pandas.concat(pieces)

    def _broken(self, relation: Relation) -> pandas.DataFrame:
        import pandas

        fine, coarse = self._order.levels[relation.finer], self._order.levels[relation.coarser]
        assert relation.parent is not None
        majority = relation.parent[fine.codes]
        rows = np.flatnonzero(majority != coarse.codes)
        usual = majority[rows]
        named = self._order.rungs.index[rows]
        named = named.to_flat_index() if isinstance(named, pandas.MultiIndex) else named
        return pandas.DataFrame(
            {
                "level": fine.name,
                "group": np.asarray(fine.values, dtype=object)[fine.codes[rows]],
                "parent_level": coarse.name,
                "parent": np.asarray(coarse.values, dtype=object)[coarse.codes[rows]],
                "majority_parent": _named(np.asarray(coarse.values, dtype=object), usual),
            },
            index=named.rename("row"),
        )

    def map(self, fine: str, coarse: str) -> pandas.DataFrame:
        """The table of the map from a level to a coarser one: a row per fine group.

        Parameters
        ----------
        fine, coarse : str
            Names of levels.

        Returns
        -------
        pandas.DataFrame
            Index: the fine groups. Columns: the coarse group of each (by the name of its level), `rows`, and `share`,
            that of its rows in this coarse group: below 1 only where the levels are partly nested.

        Raises
        ------
        DataError
            If there is no map: the levels are crossed, or the first is the coarser one.

        Examples
        --------
        >>> import partialpool as pp
        >>> found = pp.hierarchy({"site": list("AABB"), "plot": [1, 2, 3, 3]}, ["plot", "site"])
        >>> found.map("plot", "site")["site"].to_dict()
        {1: 'A', 2: 'A', 3: 'B'}
        """
        import pandas

        first, then = self._order.position(fine), self._order.position(coarse)
        levels = self._order.levels
        parent = self._order.parent_codes(first, then)
        sizes = np.bincount(levels[first].codes)
        inside = np.bincount(levels[first].codes, weights=parent[levels[first].codes] == levels[then].codes)
        values = np.asarray(levels[then].values)
        found = _named(values, parent)
        table = {levels[then].name: found, "rows": sizes, "share": inside / sizes}
        return pandas.DataFrame(table, index=pandas.Index(levels[first].values, name=levels[first].name))

    @property
    def formula(self) -> str:
        """The terms that these levels ask for, such as ``sector + (1 | school/class)``; "" where all levels name rows.

        Levels of fewer than 5 groups are predictors (without pooling), all others group terms. Put the response and
        other predictors before it: ``"score ~ hours + " + h.formula``.
        """
        from partialpool.levels.proposal import formula_terms

        return formula_terms(self._order)

    def coarsen(
        self,
        data: Any,
        to: str,
        how: str | Callable[[Any], Any] | Mapping[str, str | Callable[[Any], Any]] = "mean",
        *,
        weights: str | None = None,
    ) -> pandas.DataFrame:
        """Aggregate a table from any level to a coarser one; see :func:`partialpool.levels.coarsen.coarsen`.

        Parameters
        ----------
        data : data frame or dict
            With the column (or columns) of this level's ids, or of those of a finer level.
        to : str
            The level whose groups are the rows of the answer.
        how : {"mean", "sum", "median", "first"}, callable, or mapping of column to these
            How a column's values in a group become one. A callable takes an array and gives a number.
        weights : str, optional
            A column of weights for means and sums. Without it every row of `data` counts the same: the mean over
            classes is then not that over pupils. A table that `coarsen` gave has the rows behind each group in its
            column `n`: with ``weights="n"`` two steps give what one gives.

        Returns
        -------
        pandas.DataFrame
            A row per group: its ids, those of all coarser levels, `n` (rows of the data behind it), and the values.
        """
        from partialpool.levels.coarsen import coarsen

        return coarsen(self._order, data, to, how, weights)

    def estimability(self) -> Estimability:
        """What a model with these levels can estimate and what it cannot."""
        from partialpool.levels.estimability import Estimability

        return Estimability(self._order)

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The Hasse diagram: coarse above fine, a line for every map that does not go through another level.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional
        """
        from partialpool.levels.proposal import diagram
        from partialpool.present.hasse import hasse

        return hasse(*diagram(self._order), ax=ax, figsize=figsize)

    @property
    def sentences(self) -> Sequence[str]:
        from partialpool.levels.wording import sentences

        return sentences(self._order)


def _named(values: NDArray[Any], codes: Codes) -> NDArray[Any]:
    """The values of codes, None where a code is negative."""
    found = values[codes]
    if (codes < 0).any():
        found = found.astype(object)
        found[codes < 0] = None
    return found
