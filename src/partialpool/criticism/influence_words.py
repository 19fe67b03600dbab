"""What the influence of groups says, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.prior_words import turns
from partialpool.present.tables import decimals_for, listed, number

if TYPE_CHECKING:
    from partialpool.criticism.influence import Influence

#: Groups that are named, and posterior sds from which the sign of a coefficient is one.
NAMED, SIGN = 3, 1.0
#: P(coefficient > 0) at the ends of a 90% interval, and the least change of it that is told.
ENDS, TOLD = (0.05, 0.95), 0.02
#: How many times wider a posterior without a group has to be to be told.
ALONE = 3.0


def sentences(found: Influence) -> Iterator[str]:
    """`Influence.sentences`."""
    table, names = found._table, list(found.source.parameters)
    outstanding = list(found.influential)
    if outstanding:
        for at in range(min(NAMED, len(outstanding))):
            yield _about(found, at)
        if len(outstanding) > NAMED:
            more = len(outstanding) - NAMED
            move = "groups move" if more > 1 else "group moves"
            yield f"{more} more {move} something by more than {found._bound:.2f} posterior sds."
    elif len(table) and names:
        yield (
            f"No group stands out: without {_group(found, 0)}, which matters most, {table['parameter'].iloc[0]} moves "
            f"by {table['largest'].iloc[0]:.2f} posterior sds (from {found._bound:.2f} on it would stand out among "
            f"{len(table)} groups)."
        )
    yield from _alone(found)
    yield from _signs(found)
    yield from _conclusion(found)
    again = int((table["how"] == "refitted").sum())
    failed = [str(name) for name in table.index[table["how"] == "failed"]]
    if failed:
        yield f"Without {', '.join(failed[:5])} the model could not be fitted."
    refits = f"; refitted where these fail: {again} of {len(table)}" if again else ""
    yield (
        "Columns of parameters: change of the mean (of a median, of sds and the like) without the group, in posterior "
        f"sds. By importance weights{refits}."
    )


def _group(found: Influence, at: int) -> str:
    rows = int(found._table["rows"].iloc[at])
    return f"{found.factor} {found._table.index[at]} ({rows} row{'s' * (rows != 1)})"


def _about(found: Influence, at: int) -> str:
    names = list(found.source.parameters)
    row = found._table.iloc[at]
    order = sorted(range(len(names)), key=lambda j: -abs(float(row[names[j]])))
    kept = [j for j in order[:3] if abs(float(row[names[j]])) > max(0.5 * float(row["largest"]), 0.1)]
    told = []
    for j in kept:
        decimals = decimals_for(float(found._base.sd[j]))
        told.append(
            f"{names[j]} is {number(found._location[at, j], decimals)} instead of "
            f"{number(found._base.location[j], decimals)} ({float(row[names[j]]):+.2f} posterior sds)"
        )
    return f"Without {_group(found, at)} {', '.join(told)}."


def _signs(found: Influence) -> Iterator[str]:
    """Coefficients whose sign, or whose distance from 0, hangs on one group."""
    p = len(found.source.model.coefficients.names)
    for j, name in enumerate(found.source.parameters[:p]):
        mean, sd = float(found._base.location[j]), float(found._base.sd[j])
        if sd == 0:
            continue
        own, above = found._location[:, j], found._positive[:, j]
        clear, before = _clear(found._base.positive[j]), float(found._base.positive[j])
        told = np.abs(above - before) > TOLD
        turned = np.flatnonzero((own * mean < 0) & (abs(mean) > SIGN * sd))
        lost = np.flatnonzero(told & bool(clear) & ~_clear(above) & ~np.isnan(above))
        gained = np.flatnonzero(told & (not clear) & _clear(above))
        for kept, text in (
            (turned, f"{name} changes its sign"),
            (lost, f"the 90% interval of {name} reaches over 0; with all groups it does not"),
            (gained, f"the 90% interval of {name} leaves out 0; with all groups it does not"),
        ):
            if len(kept):
                yield f"Without {_these(found, kept)} {text}."
                break


def _clear(above: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the 90% interval of a coefficient leaves out 0."""
    return np.asarray((above < ENDS[0]) | (above > ENDS[1]))


def _alone(found: Influence) -> Iterator[str]:
    """Coefficients of which next to nothing is known without one group."""
    p = len(found.source.model.coefficients.names)
    for j, name in enumerate(found.source.parameters[:p]):
        sd, spread = float(found._base.sd[j]), found._sd[:, j]
        kept = np.flatnonzero(spread > ALONE * sd) if sd > 0 else np.empty(0, dtype=int)
        if len(kept):
            decimals = decimals_for(sd)
            yield (
                f"Without {_these(found, kept)} the data say next to nothing of {name}: its posterior sd is "
                f"{number(float(spread[kept].max()), decimals)} instead of {number(sd, decimals)}."
            )


def _these(found: Influence, positions: NDArray[np.int64]) -> str:
    most = NAMED if len(positions) > NAMED + 1 else NAMED + 1
    names = [str(found._table.index[at]) for at in positions[:most]]
    more = len(positions) - len(names)
    return f"{found.factor} {listed(names, 'or')}" + (f" (or one of {more} more)" if more else "")


def _conclusion(found: Influence) -> Iterator[str]:
    if found.conclusion is None or found._table["probability"].isna().all():
        return
    own = found._table["probability"]
    base = found._base.probability
    low, high = int(np.nanargmin(own)), int(np.nanargmax(own))
    least, most = float(own.iloc[low]), float(own.iloc[high])
    if f"{least:.2f}" == f"{most:.2f}":
        yield f"P({found.conclusion}) is {base:.2f}, with all groups and without any one of them."
        return
    told = (
        f"P({found.conclusion}) is {base:.2f}; without one group from {least:.2f} ({own.index[low]}) to {most:.2f} "
        f"({own.index[high]})"
    )
    turned = any(turns(base, float(value)) for value in own)
    yield f"{told}: " + (
        "the conclusion hangs on single groups." if turned else "no single group turns the conclusion."
    )
