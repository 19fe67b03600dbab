"""What a study of pooling says, in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from partialpool.levels.study_exact import COMPLETE, NONE, PARTIAL, StudyDesign

if TYPE_CHECKING:
    from partialpool.levels.study import PoolingStudy
    from partialpool.levels.study_crossing import Crossing

#: tau against a group's standard error from which partial pooling should be near the better extreme, and how near.
LARGE_TAU, NEAR = 5.0, 1.05
#: Standard errors of the simulation beyond which a difference is told.
SURE = 2.0
#: Designs that are told one by one.
MOST_TOLD = 4


def study_sentences(study: PoolingStudy) -> list[str]:
    """What is printed below the table."""
    lines = [_gain(study)]
    if study.estimated:
        lines += [_against_no_pooling(study), *_crossing_lines(study), *_large_tau(study), *_coverage(study)]
    else:
        lines.append(
            "With the variances known, partial pooling is never worse than complete or no pooling, whatever tau is."
        )
        lines += _agreement(study)
    lines.append(
        "bias: of a group whose true mean lies one tau above the population's; pooling draws it down, and one below as "
        "far up. mse = bias² + variance."
    )
    if study.finished < study.replicates:
        lines.append(f"Interrupted: {study.finished:,} of {study.replicates:,} data sets were simulated and are used.")
    return lines


def _gain(study: PoolingStudy) -> str:
    """The largest and the smallest gain over no pooling, and where."""
    best, where = 0.0, None
    for design, own in zip(study.layouts, study.errors, strict=True):
        for tau, errors in zip(study.taus, own, strict=True):
            gain = 1 - errors.mse[PARTIAL] / errors.mse[NONE]
            if where is None or gain > best:
                best, where = float(gain), (design, float(tau))
    assert where is not None
    if best < 0.005:
        return (
            "At these tau partial pooling lowers the mean squared error of a group's mean by less than 0.5%, if at all."
        )
    return (
        f"Partial pooling lowers the mean squared error of a group's mean by up to {max(best, 0.01):.0%} against no "
        f"pooling ({where[0]}, tau = {where[1]:.3g})."
    )


def _against_no_pooling(study: PoolingStudy) -> str:
    """Whether estimated variances ever make partial pooling worse than no pooling."""
    worst, where, unsure = 0.0, None, 0.0
    for design, own in zip(study.layouts, study.errors, strict=True):
        for tau, errors in zip(study.taus, own, strict=True):
            above, error = (float(own[PARTIAL] / errors.mse[NONE]) for own in (errors.mse, errors.mse_error))
            if above - 1 > SURE * error and above - 1 > worst:
                worst, where = above - 1, (design, float(tau))
            unsure = max(unsure, above - 1 + SURE * error)
    if where is None:
        sure = f", or by {_up(unsure)} at most, within the simulation's error" if unsure > 0 else ""
        return f"Though it has to learn the variances from the data, it is nowhere above no pooling on this grid{sure}."
    return (
        f"Having to learn the variances, it is above no pooling somewhere, at most by {worst:.2%} ({where[0]}, "
        f"tau = {where[1]:.3g}): few groups say little of how groups differ."
    )


def _up(share: float) -> str:
    """A share in percent, rounded up, so that "at most" holds."""
    return f"{math.ceil(1000 * share - 1e-9) / 1000:.1%}"


def _crossing_lines(study: PoolingStudy) -> list[str]:
    told = [
        _crossing_line(study, design, crossing)
        for design, crossing in zip(study.layouts[:MOST_TOLD], study.found_crossings[:MOST_TOLD], strict=True)
    ]
    left = len(study.layouts) - MOST_TOLD
    return [*told, f"The other {left} designs: see .crossings."] if left > 0 else told


def _crossing_line(study: PoolingStudy, design: StudyDesign, crossing: Crossing) -> str:
    if not math.isfinite(crossing.tau):
        return f"{_capital(design)}: complete pooling is not better at any tau (looked for up to two standard errors)."
    se = design.standard_error(study.sigma)
    return (
        f"{_capital(design)}: complete pooling is better where tau is below {crossing.tau:.3g} (simulation error "
        f"{crossing.error:.1g}; {crossing.tau / se:.2f} of a group's standard error). There partial pooling's error is "
        f"up to {crossing.ratio:.2g} times complete pooling's; they differ by at most {_up(crossing.cost)} of the "
        "error without pooling."
    )


def _capital(design: StudyDesign) -> str:
    return str(design)[0].upper() + str(design)[1:]


def _large_tau(study: PoolingStudy) -> list[str]:
    """Where tau is large, partial pooling is no pooling but for a little."""
    ratios = [
        errors.excess[0] + SURE * errors.excess[1]
        for design, own in zip(study.layouts, study.errors, strict=True)
        for tau, errors in zip(study.taus, own, strict=True)
        if tau >= LARGE_TAU * design.standard_error(study.sigma)
    ]
    if not ratios:
        return []
    worst = max(ratios) - 1
    change = f"within {_up(worst)} of" if worst > 0 else "below"
    return [f"Where tau is 5 standard errors or more, partial pooling is {change} the better extreme."]


def _coverage(study: PoolingStudy) -> list[str]:
    shares = [(errors.coverage, errors.coverage_error) for own in study.errors for errors in own]
    low, high = min(shares), max(shares)
    span = f"{low[0]:.1%}" if len(shares) == 1 else f"{low[0]:.1%} to {high[0]:.1%}"
    return [f"Its 90% intervals hold a group's true mean in {span} of cases{' (over the grid)' * (len(shares) > 1)}."]


def _agreement(study: PoolingStudy) -> list[str]:
    """How far the simulated averages lie from the exact errors."""
    apart = [
        np.abs(errors.simulated - errors.mse)[[COMPLETE, NONE, PARTIAL]] / errors.simulated_error
        for own in study.errors
        for errors in own
    ]
    return [
        f"These errors are exact; the averages over {study.finished:,} simulated data sets lie within "
        f"{float(np.max(apart)):.1f} of their standard errors."
    ]
