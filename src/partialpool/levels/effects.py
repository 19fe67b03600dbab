"""Joint draws of the effects of many groups: as many draws as are affordable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.posterior.groups import effect_draws, layout_of

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Numbers, draws times effects, that are kept; and the fewest draws whatever the number of effects.
MOST_NUMBERS = 10_000_000
FEWEST_DRAWS = 250


def affordable_draws(fit: Posterior, factor: int) -> NDArray[np.int64]:
    """Which of the fit's draws to take so that those of a factor's effects are not too many numbers."""
    total = len(fit.result.draws_theta)
    size = layout_of(fit.model).effects_of(factor).size
    count = min(total, max(FEWEST_DRAWS, MOST_NUMBERS // max(size, 1)))
    if fit.result.chains:  # in their order: some of each
        return np.linspace(0, total - 1, count).astype(np.int64)
    return np.arange(count)  # in random order, and the first ones are the cheapest


def some_draws(fit: Posterior, factor: int, kept: NDArray[np.int64]) -> Array:
    """The effects of a factor's groups in these draws, (draws, groups, effects)."""
    return effect_draws(fit, kept).of(layout_of(fit.model).effects_of(factor))
