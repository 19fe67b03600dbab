"""A parameter between bounds, from a coordinate on the whole line, where a lattice needs its density to vanish."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

#: Starting points keep so far (as a share) from both bounds.
MARGIN = 0.05


def from_line(x: Array, low: Any, high: Any) -> Array:
    """The parameter: above `low` by exp(x), or between `low` and a finite `high` by the logistic function.

    Examples
    --------
    >>> from_line(np.array([0.0]), 0.0, math.inf).item(), from_line(np.array([0.0]), 1.0, 3.0).item()
    (1.0, 2.0)
    """
    if np.all(np.isinf(high)):
        return np.asarray(low + np.exp(x))
    return np.asarray(low + (high - low) * expit(x))


def log_slope(x: Array, low: Any, high: Any) -> Array:
    """Log of the derivative of `from_line`."""
    if np.all(np.isinf(high)):
        return np.asarray(x)
    return np.asarray(np.log(high - low) - np.logaddexp(0, x) - np.logaddexp(0, -x))


def to_line(value: float, low: float, high: float) -> float:
    """The inverse of `from_line` for a starting point, which is kept off the bounds.

    Examples
    --------
    >>> round(to_line(2.0, 1.0, 3.0), 12), round(to_line(-5.0, 0.0, 1.0), 3)
    (0.0, -2.944)
    """
    if math.isinf(high):
        return math.log(max(value - low, 1e-3 * abs(value) + 1e-300))
    share = min(max((value - low) / (high - low), MARGIN), 1 - MARGIN)
    return math.log(share / (1 - share))
