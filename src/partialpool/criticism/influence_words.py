"""What the influence of groups says, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.present.tables import decimals_for, number

if TYPE_CHECKING:
    from partialpool.criticism.influence import Influence

#: Groups that are named, and posterior sds from which the sign of a coefficient is one.
NAMED, SIGN = 3, 1.0
#: Half a 90% interval, in sds.
REACH = 1.6449
#: Probabilities at which a conclusion turns, and the least change that counts.
TURNS, TURNED = (0.05, 0.5, 0.95), 0.03


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
        own, spread = found._location[:, j], found._sd[:, j]
        turned = np.flatnonzero((own * mean < 0) & (abs(mean) > SIGN * sd))
        lost = np.flatnonzero(np.abs(own) < REACH * spread) if abs(mean) > REACH * sd else np.empty(0, dtype=int)
        gained = np.flatnonzero(np.abs(own) > REACH * spread) if abs(mean) < REACH * sd else np.empty(0, dtype=int)
        for kept, text in (
            (turned, f"{name} changes its sign"),
            (lost, f"the 90% interval of {name} reaches over 0; with all groups it does not"),
            (gained, f"the 90% interval of {name} leaves out 0; with all groups it does not"),
        ):
            if len(kept):
                yield f"Without {_these(found, kept)} {text}."
                break


def _these(found: Influence, positions: NDArray[np.int64]) -> str:
    names = [str(found._table.index[at]) for at in positions[:NAMED]]
    more = len(positions) - len(names)
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    return f"{found.factor} {joined}" + (f" (or one of {more} more)" if more else "")


def _conclusion(found: Influence) -> Iterator[str]:
    if found.conclusion is None:
        return
    own = found._table["probability"]
    base = found._base.probability
    low, high = int(np.nanargmin(own)), int(np.nanargmax(own))
    least, most = float(own.iloc[low]), float(own.iloc[high])
    told = (
        f"P({found.conclusion}) is {base:.3f}; without one group from {least:.3f} ({own.index[low]}) to {most:.3f} "
        f"({own.index[high]})"
    )
    if round(least, 3) == round(most, 3):
        yield f"P({found.conclusion}) is {base:.3f}, with all groups and without any one of them."
        return
    turns = [t for t in TURNS if min(least, base) < t < max(most, base) and max(most - base, base - least) > TURNED]
    yield f"{told}: " + ("the conclusion hangs on single groups." if turns else "no single group turns the conclusion.")
