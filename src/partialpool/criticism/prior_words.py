"""What a table of alternative priors says, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from partialpool.criticism.alternatives import InverseGammaVariance, sd_slots
from partialpool.present.tables import decimals_for, listed, number
from partialpool.spec.distributions import Flat, Uniform

if TYPE_CHECKING:
    import pandas

    from partialpool.criticism.prior_table import Answer, PriorSensitivity

#: Posterior sds by which an answer has to move to be told, and change in a shrinkage.
TOLD, TOLD_SHRINKAGE = 0.1, 0.05
#: Relative change of an interval's width that is told.
TOLD_WIDTH = 0.15
#: Groups up to which the upper end of a uniform prior may matter, and the share of its interval that the posterior may
#: reach without doing so.
FEW_GROUPS, REACH = 5, 0.5
#: Most sds that the overview has columns for.
MOST_SDS = 4
#: Probabilities at which a conclusion is taken to turn, and the least difference that counts.
TURNS, TURNED = (0.05, 0.5, 0.95), 0.03


def overview(table: PriorSensitivity) -> pandas.DataFrame:
    """`PriorSensitivity.shown`."""
    import pandas as pd

    names = _sds(table)
    rows, index = [], []
    for answer in table.answers:
        index.append(answer.name)
        row: dict[str, str] = {"how": answer.how}
        if answer.fit is None:
            rows.append(row)
            continue
        for name in names:
            row[name] = _interval(table, name, answer.name)
        for name in _shrinkages(table):
            row[name] = f"{table._table.loc[(name, answer.name), 'mean']:.2f}"
        if table.conclusion is not None:
            name = f"P({table.conclusion})"
            row[name] = f"{table._table.loc[(name, answer.name), 'mean']:.3f}"
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(index, name="priors")).fillna("")


def _sds(table: PriorSensitivity) -> list[str]:
    from partialpool.criticism.prior_table import changed_parameters

    own = [slot.name for slot in sd_slots(table.source.model)]
    names = list(dict.fromkeys([*own, *changed_parameters(table)]))
    if len(names) <= MOST_SDS:
        return names
    moved = table._table["moved"].abs().groupby(level="quantity").max()
    return sorted(sorted(names, key=lambda name: -moved[name])[:MOST_SDS], key=names.index)


def _shrinkages(table: PriorSensitivity) -> list[str]:
    names = dict.fromkeys(name for name, _ in table._table.index if str(name).startswith("shrinkage("))
    return list(names)[:2]


def _interval(table: PriorSensitivity, name: str, alternative: str) -> str:
    row = table._table.loc[(name, alternative)]
    decimals = decimals_for(float(table._table.loc[(name, table.answers[0].name), "sd"]))
    return f"{number(row['q50'], decimals)} [{number(row['q05'], decimals)}, {number(row['q95'], decimals)}]"


def sentences(table: PriorSensitivity) -> list[str]:
    """`PriorSensitivity.sentences`."""
    others = [answer for answer in table.answers[1:] if answer.fit is not None]
    out, still = [], []
    same = [answer.name for answer in others if answer.how == "as fitted"]
    for answer in others:
        if answer.name in same:
            continue
        told = _moved(table, answer)
        if told:
            out.append(f"{answer.name} ({answer.how}): {told}.")
        else:
            still.append(answer.name)
    if still:
        out.append(
            f"Under {listed(still)} no parameter moves by more than {TOLD} posterior sds, no average shrinkage by "
            f"more than {TOLD_SHRINKAGE}."
        )
    if same:
        out.append(f"{listed(same)} {'is' if len(same) == 1 else 'are'} what was fitted.")
    out += _most_changed(table)
    out += _conclusion(table, others)
    for answer in others:
        out += list(_dangers(table, answer))
    out += [f"{a.name} could not be computed: {a.why}" for a in table.answers if a.fit is None]
    out.append(_how(others))
    return [sentence for sentence in out if sentence]


def _moved(table: PriorSensitivity, answer: Answer) -> str:
    """The parameters that moved, most first, and the shrinkages."""
    own = table._table.xs(answer.name, level="alternative")
    base = table._table.xs(table.answers[0].name, level="alternative")
    width, old = (frame["q95"] - frame["q05"] for frame in (own, base))
    wide = (width / old.where(old > 0) - 1).abs() > TOLD_WIDTH
    names = [str(n) for n in own.index if abs(own.loc[n, "moved"]) > TOLD or wide[n]]
    names.sort(key=lambda name: -abs(own.loc[name, "moved"]))
    parts = [
        f"{name} {_interval(table, name, answer.name)} instead of {_interval(table, name, table.answers[0].name)}"
        for name in names[:3]
    ]
    if len(names) > 3:
        parts.append(f"{len(names) - 3} more {'parameters move' if len(names) > 4 else 'parameter moves'}")
    for name in own.index[own.index.str.startswith("shrinkage(")]:
        if abs(own.loc[name, "mean"] - base.loc[name, "mean"]) > TOLD_SHRINKAGE:
            parts.append(f"average {name} {own.loc[name, 'mean']:.2f} instead of {base.loc[name, 'mean']:.2f}")
    return "; ".join(parts)


def _most_changed(table: PriorSensitivity) -> Iterator[str]:
    groups: Any = table.groups
    if groups.empty or abs(groups.loc[0, "moved"]) < TOLD:
        return
    row = groups.loc[0]
    yield (
        f"The most changed group is {row['factor']} {row['group']} under {row['alternative']}: its effect "
        f"({row['term']}) moves by {abs(row['moved']):.2f} posterior sds {'up' if row['moved'] > 0 else 'down'}, its "
        f"shrinkage from {row['shrinkage_as_fitted']:.2f} to {row['shrinkage']:.2f}."
    )


def turns(before: float, after: float) -> bool:
    """Whether a probability crosses one at which a conclusion turns, by more than little."""
    return abs(after - before) > TURNED and any(min(before, after) < t <= max(before, after) for t in TURNS)


def _conclusion(table: PriorSensitivity, others: list[Answer]) -> Iterator[str]:
    if table.conclusion is None or not others:
        return
    own = table._table.xs(f"P({table.conclusion})", level="quantity")
    base = float(own.loc[table.answers[0].name, "mean"])
    low, high = str(own["mean"].idxmin()), str(own["mean"].idxmax())
    least, most = float(own.loc[low, "mean"]), float(own.loc[high, "mean"])
    told = f"P({table.conclusion}) is {base:.3f} as fitted"
    if most - least < 0.005:
        yield f"{told}, and the same to within {max(most - least, 0.001):.3f} under the others."
        return
    error = float(np.hypot(own.loc[low, "error"], own.loc[high, "error"]))
    turned = any(turns(base, value) for value in own["mean"]) and most - least > 2 * error
    yield (
        f"{told}, from {least:.3f} ({low}) to {most:.3f} ({high}): "
        + ("the conclusion depends on the prior." if turned else "the conclusion does not turn on the prior.")
    )


def _dangers(table: PriorSensitivity, answer: Answer) -> Iterator[str]:
    assert answer.fit is not None
    model = answer.fit.model
    for factor in model.design.factors:
        own = [slot.name for slot in sd_slots(model) if slot.name.endswith(f"|{factor.name})")]
        for name in own:
            prior, groups = model.priors[name], len(factor.labels)
            if isinstance(prior, Uniform | Flat):
                yield from _uniform(table, answer, name, prior, groups, factor.name)
            elif isinstance(prior, InverseGammaVariance):
                yield from _spike(table, answer, name, prior)


def _uniform(
    table: PriorSensitivity, answer: Answer, name: str, prior: Uniform | Flat, groups: int, factor: str
) -> Iterator[str]:
    if isinstance(prior, Flat):
        if groups == 3:
            yield (
                f"{answer.name}: with 3 groups of {factor} the posterior of {name} has no mean under a flat prior; its "
                "upper quantiles mean little."
            )
        return
    upper = float(table._table.loc[(name, answer.name), "q95"])
    if groups <= FEW_GROUPS or upper > REACH * prior.high:
        few = f"{groups} groups of {factor} let the likelihood fall only as {name}^-{groups - 1}, so that "
        tail = "has no proper posterior" if groups <= 2 else "has a posterior without a mean" if groups == 3 else ""
        without = f" Without an end a flat prior {tail}." if tail else ""
        yield (
            f"{answer.name}: {few if groups <= FEW_GROUPS else ''}the answer for {name} depends on where the prior "
            f"ends ({prior.high:g}).{without}"
        )


def _spike(table: PriorSensitivity, answer: Answer, name: str, prior: InverseGammaVariance) -> Iterator[str]:
    """The spike of an inverse-gamma prior at 0: what it makes of small sds, against the fit."""
    assert answer.fit is not None
    edge = 5 * math.sqrt(prior.scale)
    shares = []
    for fit in (answer.fit, table.source):
        draws = fit.draws(name)
        shares.append(float(np.mean(draws < edge)))
    if shares[0] > shares[1] + 0.02:
        yield (
            f"{answer.name} has a spike near 0 (its density goes as 1 / sd down to about "
            f"{math.sqrt(prior.scale):.2g}), and the answer depends on where it stands: P({name} < {edge:.2g}) is "
            f"{shares[0]:.0%}, against {shares[1]:.0%} as fitted. It is no uninformative prior; prefer another."
        )


def _how(others: list[Answer]) -> str:
    by_weights = [answer for answer in others if answer.how == "reweighted"]
    again = [answer.name for answer in others if answer.how == "refitted"]
    parts = []
    if by_weights:
        worst = max(answer.k for answer in by_weights)
        least = min(answer.ess for answer in by_weights)
        told = f" (Pareto k at most {worst:.2f}" if math.isfinite(worst) else " ("
        parts.append(
            f"Reweighted: {listed([answer.name for answer in by_weights])}{told}{', ' * math.isfinite(worst)}"
            f"effective sample size at least {least:,.0f})"
        )
    if again:
        parts.append(f"refitted, since the weights do not reach that far: {listed(again)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
