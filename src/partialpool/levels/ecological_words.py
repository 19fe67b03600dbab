"""What `partialpool.ecological` found, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.levels.latent_means import Estimate
from partialpool.present.tables import decimals_for, number
from partialpool.spec.distributions import Normal
from partialpool.spec.formula import quote_name

if TYPE_CHECKING:
    from partialpool.levels.ecological import Ecological

#: Above this probability of a wrong sign the warning is put in plain words; below the other there is none.
LIKELY, UNLIKELY = 0.9, 0.1
#: Reliability of averages from which on a correction hardly matters.
RELIABLE = 0.95
#: The share of its prior's sd from which on the posterior of the corrected slope is said to lean on the prior.
PRIOR = 0.5
#: Below this 5% quantile of the reliability the groups' means of x may not differ at all: no slope is told.
UNRELIABLE = 0.05
#: Below so many groups there is a word of caution.
FEW_GROUPS = 10
#: A correction by less than this share of the posterior sd is none.
NOTHING = 0.25


def sentences(found: Ecological) -> list[str]:
    """One a line."""
    out = [_averages(found), _within(found), _reading(found), _context(found)]
    if found.latent is not None:
        out += _latent(found)
    return [*out, *_cautions(found), _identity(found), _columns(found), *_accuracy(found)]


def _averages(found: Ecological) -> str:
    slope = found.least_squares.averages
    digits = decimals_for(slope.se)
    if _unclear(found):
        low, high = slope.interval()
        return (
            f"Groups ({found.group}) with a higher average of {found.x} have no clearly higher or lower average of "
            f"{found.y}: {number(slope.estimate, digits)} per unit (90% interval {number(low, digits)} to "
            f"{number(high, digits)}). This is all that averages can show."
        )
    return (
        f"Groups ({found.group}) with a higher average of {found.x} have a {_more(slope.estimate)} average of "
        f"{found.y}: by {number(abs(slope.estimate), digits)} per unit. This is all that averages can show."
    )


def _unclear(found: Ecological) -> bool:
    """Whether the slope of the group averages may be 0."""
    low, high = found.least_squares.averages.interval()
    return low <= 0 <= high


def _within(found: Ecological) -> str:
    own = found.posterior["within"]
    if own.q05 < 0 < own.q95:
        return (
            f"Within a group, the rows with a higher {found.x} have no clearly higher or lower {found.y}: "
            f"{_value(own)} per unit ({_interval(own)})."
        )
    return (
        f"Within a group, a row with a higher {found.x} has a {_more(own.mean)} {found.y}: by "
        f"{_value(own, absolute=True)} per unit ({_interval(own)})."
    )


def _reading(found: Ecological) -> str:
    wrong, size = found.wrong_sign, abs(found.least_squares.averages.estimate)
    own = found.posterior["within"]
    start = f"Reading the first as the second would get the direction wrong with probability {_share(wrong)}"
    if UNLIKELY <= wrong <= LIKELY:
        return f"{start}: these data hardly say which way it goes within groups."
    if _unclear(found):
        return f"{start}; which way the averages go is itself uncertain."
    if wrong > LIKELY:
        return f"{start}: the averages point the other way than the individuals do."
    ratio = size / abs(own.mean)
    if max(ratio, 1 / ratio) >= 1.25:
        times = f"{ratio:.1f} times too large" if ratio > 1 else f"too small, {ratio:.2f} times what it is"
        return f"{start}; the size would be {times}."
    return f"{start}, and the size would be about right."


def _context(found: Ecological) -> str:
    own = found.posterior["contextual"]
    start = f"Contextual effect: of two rows with the same {found.x}, the one whose group averages one unit more"
    if own.q05 < 0 < own.q95:
        return f"{start} differs by {_value(own)} in {found.y} ({_interval(own)}): it may be nothing."
    return f"{start} has a {found.y} that is {_more(own.mean)} by {_value(own, absolute=True)} ({_interval(own)})."


def _latent(found: Ecological) -> list[str]:
    latent = found.latent
    assert latent is not None
    reliability, own = latent.reliability, latent.contextual
    share = f"{reliability.mean:.2f} ({reliability.q05:.2f} to {reliability.q95:.2f})"
    known = f"Where the rows are all that a group has, its average of {found.x} is known and the above stands."
    moved = abs(own.mean - found.posterior["contextual"].mean)
    if reliability.q05 > RELIABLE and moved < NOTHING * own.sd:
        return [f"{known} Where they are a sample of it, little changes: the averages' reliability is {share}."]
    two = _values(found.rows.x) <= 2
    start = (
        f"{known} Where they are a sample of it, the average is measured with error (its reliability is {share}, 1 "
        "being exact), which draws the slope between groups towards that within"
    )
    if hardly_told(found):
        return [
            f"{start}. No corrected slope is shown: so few groups, or averages of {found.x} so alike, hardly tell it, "
            "and the figures would say little beyond their prior."
        ]
    rough = (
        f"The correction takes {found.x} to vary within groups as a normal distribution does; it has two values, so "
        "that the corrected figures are a rough guide."
    )
    return [f"{start}; corrected, the contextual effect is {_value(own)} ({_interval(own)}).", *[rough] * two]


def hardly_told(found: Ecological) -> bool:
    """Whether the corrected slope is that of its prior, or the groups' means may not differ at all."""
    latent = found.latent
    assert latent is not None
    prior = found.fit.model.priors[f"between({found.x}|{found.group})"]
    own = isinstance(prior, Normal) and latent.between.sd > PRIOR * prior.sigma
    return (own and latent.reliability.q05 <= RELIABLE) or latent.reliability.q05 < UNRELIABLE


def _cautions(found: Ecological) -> list[str]:
    """Few groups; an outcome of two values."""
    out = []
    groups = len(found.rows.sizes)
    if groups < FEW_GROUPS:
        out.append(f"{groups} groups tell little of what is between groups: take those slopes as a hint.")
    if np.isin(found.rows.y, (0.0, 1.0)).all():
        x, y, g = (quote_name(name) for name in (found.x, found.y, found.group))
        out.append(
            f"{found.y} is 0 or 1: slopes are differences of its probability, along straight lines. For odds, fit "
            f"{y} ~ within({x}|{g}) + between({x}|{g}) + (1|{g}) with family='bernoulli'."
        )
    return out


def _columns(found: Ecological) -> str:
    """What the columns are, and why those of a row differ."""
    start = f"estimate, se: least squares; mean to q95: the model, which lets groups differ by more than {found.x}."
    if (found.rows.sizes == found.rows.sizes[0]).all():
        return start
    return (
        f"{start} The groups have different numbers of rows: 'group averages' counts each group once, 'between groups' "
        "counts it by its rows (estimate) or by how much its average tells (mean). The mean of 'all rows' is the "
        "model's slopes within and between, mixed in the shares above."
    )


def _identity(found: Ecological) -> str:
    squares = found.least_squares
    share = squares.share_between
    slope = [number(s.estimate, decimals_for(s.se)) for s in (squares.pooled, squares.within, squares.between)]
    return (
        f"Ignoring groups mixes the two: {slope[0]} = {1 - share:.3f} x {slope[1]} (within) + {share:.3f} x {slope[2]} "
        f"(between), {share:.1%} of the variation of {found.x} lying between groups (least squares; holds to "
        f"{max(squares.identity_error, 1e-16):.0e})."
    )


def _accuracy(found: Ecological) -> list[str]:
    out = []
    if not found.fit.accuracy.trusted:
        out.append("The model's posterior is NOT to be relied on: see .fit.accuracy.")
    latent = found.latent
    if latent is not None and not latent.trusted:
        out.append(
            f"The correction is NOT to be relied on (effective sample size {latent.ess:.0f}, Pareto k "
            f"{latent.pareto_k:.2f}): the groups' means of {found.x} are hardly known."
        )
    return out


def _more(slope: float) -> str:
    return "higher" if slope > 0 else "lower"


def _value(own: Estimate, absolute: bool = False) -> str:
    return number(abs(own.mean) if absolute else own.mean, decimals_for(own.sd))


def _interval(own: Estimate) -> str:
    digits = decimals_for(own.sd)
    return f"with probability 0.9 between {number(own.q05, digits)} and {number(own.q95, digits)}"


def _share(probability: float) -> str:
    if probability < 0.001:
        return "below 0.001"
    return "above 0.999" if probability > 0.999 else f"{probability:.3f}"


def _values(x: NDArray[np.float64]) -> int:
    """How many distinct values there are, up to 3."""
    others = x[x != x[0]]
    return 1 + bool(others.size) + bool((others != others[:1]).any())
