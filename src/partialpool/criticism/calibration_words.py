"""What a calibration says, in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from partialpool.present.tables import listed

if TYPE_CHECKING:
    from partialpool.criticism.calibration import Calibration

#: Names told in a sentence.
NAMED = 4
MEANINGS = {
    "too narrow": "its intervals are too short",
    "too wide": "its intervals are too long",
    "too low": "it lies below the truth too often",
    "too high": "it lies above the truth too often",
    "wrong shape": "its distribution has another shape than it should",
}
#: Below this share of the prior's variance removed, the data tell next to nothing of a parameter.
LITTLE = 0.1


def sentences(found: Calibration) -> tuple[str, ...]:
    """The verdict first."""
    return (*_verdicts(found), *_left_out(found), *_power(found), *_little(found), _explained())


def _verdicts(found: Calibration) -> list[str]:
    table = found.table
    wrong = table[table["verdict"].isin(list(MEANINGS))]
    unclear = table.index[table["verdict"] == "not clear"].tolist()
    out = []
    if wrong.empty and not unclear:
        which = f"none of {len(table)} quantities" if len(table) > 1 else f"{table.index[0]!r}"
        out.append(
            f"Calibrated: {which} is {'not ' if len(table) == 1 else ''}out of its place more than chance allows."
        )
    for kind, own in wrong.groupby("verdict", sort=False):
        p = float(own["p"].min())
        told = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
        out.append(
            f"Not calibrated: the posterior of {_named(own.index.tolist())} is {kind}: {MEANINGS[str(kind)]} ({told})."
        )
    if not wrong.empty:
        out.append(
            "Do not rely on these posteriors under this model and these priors; fit.verify() on one data set says "
            "whether the computation is at fault."
            if found._plan.fit is None
            else "The sampler given as fit= does not draw from the posterior of this model, or it is another model."
        )
    if unclear:
        out.append(f"Not clear: {_named(unclear)}; more replicates decide (path= keeps those that there are).")
    return out


def _named(names: list[str]) -> str:
    shown = [repr(name) for name in names[:NAMED]]
    return listed(shown) if len(names) <= NAMED else f"{', '.join(shown)} and {len(names) - NAMED} more"


def _left_out(found: Calibration) -> list[str]:
    out = []
    done = len(found._replicates)
    if done < found.wanted:
        out.append(f"Interrupted: {done:,} of {found.wanted:,} replicates were finished.")
    failed = len(found.failures)
    if failed:
        are, first = "are" if failed > 1 else "is", str(found.failures.iloc[0]).rstrip(".")
        out.append(
            f"{failed:,} of {done:,} replicates gave no fit and {are} left out, which does not bias the check (the "
            f"first, replicate {found.failures.index[0]}: {first}). Priors that allow impossible data are the usual "
            "reason: see model.sample_prior_predictive()."
        )
    if found._missing:
        out.append(f"Left out, since not every replicate has them: {_named(list(found._missing))}.")
    engines = found._engines
    if engines:
        ways = listed([f"{name} {count:,}" for name, count in engines.most_common()])
        doubt = found._untrusted
        told = f"; {doubt:,} did not trust themselves and are counted all the same" if doubt else ""
        out.append(f"Engines of the fits: {ways}{told}.")
    return out


def _power(found: Calibration) -> list[str]:
    """How small an error so many replicates could have told."""
    count = found.replicates
    small, large = told_sds(count, len(found.quantities))
    above = f"{100 * (large - 1):.0f}% too large" if large < 2 else f"{large:.1f} times too large"
    return [
        f"About nine times in ten, {count:,} replicates catch posterior sds that are {100 * (1 - small):.0f}% too "
        f"small or {above}; the standard error of a 90% interval's coverage is {math.sqrt(0.09 / count):.3f}."
    ]


def told_sds(count: int, quantities: int) -> tuple[float, float]:
    """Posterior sds, as shares of the right one, that are caught in nine of ten runs: too small and too large.

    The sum of `count` squared normal scores is chi-squared, over the square of the share; see `calibration.quantity_p`.

    Examples
    --------
    >>> [round(share, 2) for share in told_sds(200, 7)]
    [0.8, 1.27]
    """
    from scipy.special import chdtri

    from partialpool.criticism.calibration import OFF

    tail = OFF / (4 * quantities)
    least, most = float(chdtri(count, 1 - tail)), float(chdtri(count, tail))
    return math.sqrt(float(chdtri(count, 0.9)) / most), math.sqrt(float(chdtri(count, 0.1)) / least)


def _little(found: Calibration) -> list[str]:
    weak = found.table.index[found.table["contraction"] < LITTLE].tolist()
    if not weak:
        return []
    return [
        f"The data say next to nothing of {_named(weak)} (contraction below {LITTLE:g}): the posterior is nearly the "
        "prior."
    ]


def _explained() -> str:
    return (
        "cover50 to cover95: share of central intervals that hold the truth; bias and spread: mean and sd of the error "
        "in posterior sds (0 and 1 are wanted); contraction: share of the prior's variance that the data remove."
    )
