"""What a comparison says in words.

A difference of less than 4 is small whatever its standard error, and standard errors over fewer than about 100 units
are rough and rather too small (Sivula, Magnusson, Matamoros and Vehtari, 2020, arXiv:2008.10296).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from partialpool.present.tables import decimals_for, listed, number

if TYPE_CHECKING:
    import pandas

    from partialpool.criticism.marginal_likelihood import Evidence
    from partialpool.criticism.scores import Scored

#: A difference below this is small; units below which standard errors are rough; errors that tell models apart.
SMALL, FEW, APART = 4.0, 100, 2.0
#: Differences (and standard errors) that are not told by number.
LEAST = 0.01
#: Models from which the best of them looks better than it is.
MANY = 10
#: A weight from which stacking wants a mixture.
MIXED = 0.05
#: Factors by which the evidence is told in words (Kass and Raftery, 1995).
WEAK, STRONG = 3.0, 20.0
#: A log Bayes factor to the other side that counts as one.
TURNED = 0.05


def pointwise_sentences(table: pandas.DataFrame, scored: Scored, criterion: str) -> list[str]:
    """Which model predicts best, how sure that is, what to do about warnings."""
    out = [*(scored.warnings if scored.severe else ()), *_verdict(table), *_stacking(table)]
    if scored.severe:
        out[len(scored.warnings)] = f"With so many of them do not believe what follows. {out[len(scored.warnings)]}"
    units = int(table["units"].iloc[0])
    if units == 1:
        out.append("One unit cannot tell how sure a difference is.")
    elif units < FEW:
        out.append(
            f"{units} {scored.unit} are few: standard errors over fewer than {FEW} are rough and rather too small; "
            "do not lean on a difference of 2 or 3 of them."
        )
    if len(table) > MANY:
        out.append(
            f"Of {len(table)} models the best looks better than it is, since it was chosen among so many; average them "
            "by the stacking weights rather than take one."
        )
    out += [*(() if scored.severe else scored.warnings), *_noise(table)]
    if criterion == "dic":
        out.append(
            "elpd is here -DIC / 2, and DIC takes the posterior for normal; criterion='loo' does not, and costs "
            "little more."
        )
    return out


def _verdict(table: pandas.DataFrame) -> list[str]:
    best, alike, out = str(table.index[0]), [], []
    for name, row in table.iloc[1:].iterrows():
        gap, se = -float(row["difference"]), float(row["difference_se"])
        if not math.isfinite(gap):
            out.append(f"{name!r} gives density 0 to what it has not seen, and cannot be compared by numbers.")
        elif gap < SMALL:
            alike.append(f"{name!r} by {_told(gap, se)}")
        elif not gap > APART * se:
            out.append(f"{name!r} is behind {best!r} by {_told(gap, se)}: not by enough to say that it predicts worse.")
        else:
            out.append(
                f"{best!r} predicts better than {name!r}: by {_told(gap, se)}, {number(gap / se, 1)} standard errors."
                if se > 0 else f"{best!r} predicts better than {name!r}: by {_told(gap, se)}."
            )  # fmt: skip
    if alike:
        them = "it predicts" if len(alike) == 1 else "they predict"
        out.insert(
            0,
            f"Less than {SMALL:.0f} behind {best!r}, which is small: {listed(alike)}; {them} about as well, and other "
            "reasons should choose.",
        )
    return out


def _told(gap: float, se: float) -> str:
    if gap < LEAST and not se >= LEAST:
        return f"less than {LEAST}"
    wanted = decimals_for(se) if math.isfinite(se) and se > 0 else None
    decimals = 2 if wanted is None else min(wanted, 2)
    return f"{number(gap, decimals)} (se {number(se, decimals)})" if math.isfinite(se) else number(gap, decimals)


def _stacking(table: pandas.DataFrame) -> list[str]:
    weights = table["stacking"].sort_values(ascending=False)
    taken = weights[weights >= MIXED]
    if len(taken) < 2:
        return []
    told = listed([f"{100 * value:.0f}% {name!r}" for name, value in taken.items()])
    return [f"Predictions mixed by stacking would have done best: {told}."]


def _noise(table: pandas.DataFrame) -> list[str]:
    """Differences that the Monte Carlo error of the scores could make."""
    errors = table["mc_error"]
    out = []
    for name, row in table.iloc[1:].iterrows():
        noise = math.hypot(float(row["mc_error"]), float(errors.iloc[0]))
        gap = -float(row["difference"])
        if math.isfinite(noise) and gap >= SMALL and 2 * noise > gap:
            out.append(
                f"The Monte Carlo error of the difference to {name!r} is {number(noise, 1)}: fit both with a larger "
                "ess= before believing it."
            )
    return out


# -- marginal likelihoods ---------------------------------------------------------------------------------------------


def evidence_sentences(table: pandas.DataFrame, found: Evidence) -> list[str]:
    """What the data favour, how sure that is, and how far it hangs on the priors."""
    best = str(table.index[0])
    out = []
    for name, row in table.iloc[1:].iterrows():
        if name in found.missing:
            continue
        gap = -float(row["log_bayes_factor"])
        error = math.hypot(float(row["error"]), float(table["error"].iloc[0]))
        out.append(_bayes_factor(best, str(name), gap, error))
        out.append(_hangs(best, str(name), gap, found.by_prior))
    out += [f"{name!r} has no marginal likelihood: {why}." for name, why in found.missing.items()]
    out.append(
        "probability: if all models were equally likely before. A marginal likelihood is about what the priors "
        "predicted; for how well the fitted models predict use criterion='loo'."
    )
    return out


def _strength(gap: float) -> str:
    factor = math.exp(gap) if gap < 700 else math.inf
    return "hardly favour" if factor < WEAK else "favour" if factor < STRONG else "strongly favour"


def _bayes_factor(best: str, name: str, gap: float, error: float) -> str:
    gap = max(0.0, gap)
    told = f"{math.exp(gap):,.1f}" if gap < math.log(1000) else f"exp({gap:.1f})"
    sure = f"log {gap:.2f}, Monte Carlo error {number(error, decimals_for(error) if error > 0 else 2)}"
    unsure = 2 * error > gap and gap + 2 * error > math.log(WEAK)
    more = " That error is too large to tell them apart; fit with a larger ess=." if unsure else ""
    return f"The data {_strength(gap)} {best!r} over {name!r}: a Bayes factor of {told} ({sure}).{more}"


def _hangs(best: str, name: str, gap: float, by_prior: pandas.DataFrame) -> str:
    apart = (by_prior[best] - by_prior[name]).dropna()
    if len(apart) < 2:
        return f"Under other priors {best!r} and {name!r} could not both be fitted."
    narrow, wide = float(apart.index[0]), float(apart.index[-1])
    first, last = float(apart.iloc[0]), float(apart.iloc[-1])
    turned = bool((apart < -TURNED).any())
    verdict = "the verdict turns" if turned else "the verdict stays"
    changed = any(_strength(float(value)) != _strength(gap) for value in apart)
    much = ", its strength does not" if changed and not turned else ""
    return (
        f"  With priors of slopes and group sds {_times(narrow)} that log factor is {first:.2f}, {_times(wide)} it is "
        f"{last:.2f}: {verdict}{much} (see .by_prior)."
    )


def _times(value: float) -> str:
    return f"1/{1 / value:.0f} as wide" if value < 1 else f"{value:.0f} times as wide"
