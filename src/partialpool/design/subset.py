"""Some of a design's rows as a design of their own, and the others as new rows of it: for refits on parts of the data.

Columns are not learned again: V's rows are taken as they are, so that splines, contrasts and group means stay those of
all rows. A group that loses all its rows is no group of the part; where it comes again among the rows left out it is
new there, as it would be had the part been all the data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design, GroupFactor, NewRows
from partialpool.design.factors import Codes, Labels, Levels, join_labels

Ints = NDArray[np.int64]
Vector = NDArray[np.float64]


def take_rows(design: Design, rows: Ints) -> Design:
    """The design of some of a design's rows.

    Parameters
    ----------
    design : Design
        With its rows.
    rows : positions (k,) of the rows wanted, each once.

    Examples
    --------
    >>> from partialpool.design.design import build_design
    >>> data = {"y": [1.0, 2, 4, 3, 5], "g": list("aabbc")}
    >>> part = take_rows(build_design("y ~ 1 + (1|g)", data), np.array([2, 3, 4]))
    >>> part.factors[0].labels.tolist(), part.factors[0].codes.tolist()
    (['b', 'c'], [0, 0, 1])
    """
    used = [np.bincount(factor.codes[rows], minlength=len(factor.labels)) > 0 for factor in design.factors]
    levels, place = _levels(design, used)
    factors = tuple(
        _factor(factor, groups, rows, levels, place) for factor, groups in zip(design.factors, used, strict=True)
    )
    return replace(
        design,
        y=np.ascontiguousarray(design.y[rows]),
        V=np.ascontiguousarray(design.V[rows]),
        factors=factors,
        offset=_part(design.offset, rows),
        se=_part(design.se, rows),
        weights=_part(design.weights, rows),
        precision=_part(design.precision, rows),
        trials=_part(design.trials, rows),
        n_rows=len(rows),
        n_dropped=0,
        dropped_by={},
        rows=design.rows[rows],
        data=design.data.iloc[rows],
        levels=levels,
    )


def rows_as_new(design: Design, part: Design, rows: Ints) -> NewRows:
    """Rows of a design as new rows of a part of it: groups that the part has not are new (-1).

    Parameters
    ----------
    design : Design
        The whole.
    part : Design
        What `take_rows` made of other rows of it.
    rows : positions (k,) in the whole.
    """
    codes: list[Codes | None] = []
    labels: list[Labels | None] = []
    for whole, own in zip(design.factors, part.factors, strict=True):
        known = {label: code for code, label in enumerate(own.labels.tolist())}
        lookup = np.array([known.get(label, -1) for label in whole.labels.tolist()], dtype=np.int32)
        codes.append(lookup[whole.codes[rows]])
        labels.append(whole.labels[whole.codes[rows]])
    return NewRows(
        V=np.ascontiguousarray(design.V[rows]),
        codes=codes,
        labels=labels,
        offset=_part(design.offset, rows),
        se=_part(design.se, rows),
        weights=_part(design.weights, rows),
        precision=_part(design.precision, rows),
        y=_part(design.y, rows),
        index=design.data.index[rows],
        trials=_part(design.trials, rows),
    )


def without_groups(design: Design) -> Design:
    """The same rows without any group term: what complete pooling is a model of."""
    terms = design.terms
    bare = {name: replace(part, groups=()) for name, part in terms.predictors.items()}
    return replace(design, terms=replace(terms, groups=(), predictors=bare), groups=(), factors=(), levels={})


def _part(values: Vector | None, rows: Ints) -> Vector | None:
    return None if values is None else np.ascontiguousarray(values[rows])


def _levels(design: Design, used: list[NDArray[np.bool_]]) -> tuple[dict[str, Levels], dict[str, Ints]]:
    """The ids that are left of each column, and the new position of each old one (-1: gone)."""
    levels, place = {}, {}
    for name, level in design.levels.items():
        f = next(f for f, factor in enumerate(design.factors) if name in factor.variables)
        factor = design.factors[f]
        kept = np.zeros(len(level.labels), dtype=bool)
        kept[factor.members[used[f], factor.variables.index(name)]] = True
        levels[name] = replace(level, labels=level.labels[kept])
        place[name] = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int64)
    return levels, place


def _factor(
    factor: GroupFactor, used: NDArray[np.bool_], rows: Ints, levels: dict[str, Levels], place: dict[str, Ints]
) -> GroupFactor:
    members = np.column_stack([place[name][factor.members[used, k]] for k, name in enumerate(factor.variables)]).astype(
        np.int32
    )
    renumbered = np.where(used, np.cumsum(used) - 1, -1).astype(np.int32)
    parts = [levels[name].labels[members[:, k]] for k, name in enumerate(factor.variables)]
    codes = np.ascontiguousarray(renumbered[factor.codes[rows]])
    return GroupFactor(factor.name, factor.variables, join_labels(parts), codes, members)
