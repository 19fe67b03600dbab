"""Each group's p-values: its own rows beside their replicates, and its effect beside the population of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.check_request import Own
from partialpool.criticism.envelopes import holm, two_sided_p
from partialpool.criticism.outlying_groups import GroupEffects
from partialpool.criticism.statistics import Groups, Statistic
from partialpool.errors import ModelError

if TYPE_CHECKING:
    import pandas

    from partialpool.criticism.check import PredictiveCheck

Array = NDArray[np.float64]

#: Numbers, groups times replicates, of one statistic; calls of a user's function for one, at most.
MOST_NUMBERS, MOST_CALLS = 20_000_000, 200_000
#: Fewest replicates of a group's statistic.
FEWEST = 50


def by_group(found: PredictiveCheck) -> pandas.DataFrame:
    """`PredictiveCheck.by_group`."""
    import pandas as pd

    design = found.source.model.design
    chosen: list[Statistic | Own] = [one for one in found.request.statistics if one.by_group is not None]
    chosen += found.request.own
    groups = {f: Groups.of(design, f) for f in found.factors}
    replicated = _replicated(found, chosen, groups)
    parts = []
    for f, own in groups.items():
        factor = design.factors[f]
        for k, one in enumerate(chosen):
            values = replicated[f, k]
            observed = _of_groups(one, design.y[:, None], own, design, None)[:, 0]
            low, high = np.nanquantile(values, [0.05, 0.95], axis=0)
            p = _group_p(values, observed)
            parts.append(_frame(factor.name, factor.labels, own.sizes, one.name, observed, np.nanmean(values, axis=0),
                                np.nanstd(values, axis=0), low, high, p))  # fmt: skip
        for effect in found.effects:
            if effect.factor == factor.name:
                parts.append(_effect_rows(effect, factor.labels, own.sizes))
    if not parts:
        raise ModelError(
            "None of the statistics of this check can be had by group; ask for mean, sd, zeros, minimum, maximum, "
            "'largest effect' or a function."
        )
    return pd.concat(parts, ignore_index=True)


def _replicated(
    found: PredictiveCheck, chosen: list[Statistic | Own], groups: dict[int, Groups]
) -> dict[tuple[int, int], Array]:
    """By factor and statistic, (replicates, groups); fewer replicates where groups are very many."""
    design, replicates = found.source.model.design, found.replicates
    out = {}
    for f, own in groups.items():
        for k, one in enumerate(chosen):
            most = (MOST_CALLS if isinstance(one, Own) else MOST_NUMBERS) // len(own.sizes)
            out[f, k] = np.empty((min(replicates.count, max(FEWEST, most)), len(own.sizes)))
    longest = max((len(values) for values in out.values()), default=0)
    for block in replicates.blocks() if longest else ():
        if block.first >= longest:
            break
        for (f, k), values in out.items():
            y = block.y[:, : max(len(values) - block.first, 0)]
            if y.shape[1]:
                made = _of_groups(chosen[k], y, groups[f], design, block.first)
                values[block.first : block.first + y.shape[1]] = made.T
    return out


def _group_p(replicated: Array, observed: Array) -> Array:
    """Two-sided p (J,) from replicated (D, J) and observed (J,)."""
    out = np.full(len(observed), np.nan)
    whole = np.isfinite(replicated).all(axis=0) & np.isfinite(observed)
    larger = (replicated > observed).sum(axis=0) + 0.5 * (replicated == observed).sum(axis=0)
    least = np.minimum(larger, len(replicated) - larger)
    out[whole] = np.minimum(2 * (1 + least[whole]) / (1 + len(replicated)), 1.0)
    for j in np.flatnonzero(~whole | (least < 5)):  # few as extreme: the tail is continued
        good = replicated[np.isfinite(replicated[:, j]), j]
        out[j] = two_sided_p(good, observed[j]) if len(good) and np.isfinite(observed[j]) else np.nan
    return out


def _of_groups(one: Statistic | Own, y: Array, groups: Groups, design: Any, first: int | None) -> Array:
    """(groups, replicates)."""
    if isinstance(one, Statistic):
        assert one.by_group is not None
        return one.by_group(y, groups)
    out = np.empty((len(groups.sizes), y.shape[1]))
    for j, (start, size) in enumerate(zip(groups.start, groups.sizes.astype(int), strict=True)):
        rows = groups.order[start : start + size]
        data = design.data.iloc[rows] if one.takes_data else design.data
        for k in range(y.shape[1]):
            where = "the observed responses" if first is None else f"replicate {first + k + 1}"
            out[j, k] = one(np.ascontiguousarray(y[rows, k]), data, f"{where} of one group")
    return out


def _effect_rows(effect: GroupEffects, labels: Any, sizes: Array) -> pandas.DataFrame:
    nothing = np.zeros(len(sizes))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.abs(effect.own / effect.score)
    spread = np.where(np.isfinite(spread), spread, np.nan)
    return _frame(effect.factor, labels, sizes, f"effect: {effect.term}", effect.own, nothing, spread,
                        -1.6448536 * spread, 1.6448536 * spread, effect.p)  # fmt: skip


def _frame(
    factor: str, labels: Any, sizes: Array, name: str, observed: Array, mean: Array, sd: Array, low: Array,
    high: Array, p: Array,
) -> pandas.DataFrame:  # fmt: skip
    import pandas as pd

    return pd.DataFrame(
        {
            "factor": factor, "group": labels, "n": sizes.astype(int), "check": name, "observed": observed,
            "mean": mean, "sd": sd, "q05": low, "q95": high, "p": p, "p_adjusted": holm(p),
        }
    )  # fmt: skip
