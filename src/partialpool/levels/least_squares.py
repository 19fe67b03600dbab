r"""Slopes of y on x by least squares: of the group averages, of all rows, within groups and between groups.

With group averages x̄_j, ȳ_j of n_j rows and grand means x̄, ȳ,

.. math:: SST = \sum_{ij} (x_{ij} - \bar x)^2 = \underbrace{\sum_{ij} (x_{ij} - \bar x_j)^2}_{SSW}
          + \underbrace{\sum_j n_j (\bar x_j - \bar x)^2}_{SSB}

and the same of the cross-products, so that the slope over all rows is an average of the other two (Duncan, Cuzzort
and Duncan, 1961, Statistical Geography):

.. math:: b_{total} = (1 - w)\, b_{within} + w\, b_{between}, \qquad w = SSB / SST,

with the averages weighted by their rows. The contextual effect is b_between - b_within.

Standard errors allow rows of a group to go together, and groups to have variances of their own (Liang and Zeger, 1986,
Biometrika 73, 13-22): with the contribution :math:`\psi_j = \sum_{i \in j} a_i e_i / \sum a_i^2` of a group to the
slope's error (a the predictor as the slope uses it, e the residuals), the variance is
:math:`\sum_j \psi_j^2`, times J / (J - 1) (N - 1) / (N - k), k the coefficients of that regression. Intervals use
Student's t with J - 2 degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int32] | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Averages:
    """Rows, and the averages of their groups.

    x, y : (n,). codes : (n,). sizes : (J,) rows of each group. x_mean, y_mean : (J,). centre : grand means of x and y.
    """

    x: Array
    y: Array
    codes: Codes
    sizes: Array
    x_mean: Array
    y_mean: Array
    centre: tuple[float, float]


@dataclass(frozen=True)
class Slope:
    """A slope by least squares, its standard error, the degrees of freedom of its interval."""

    estimate: float
    se: float
    degrees: int

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """The confidence interval."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.degrees, 0.5 + level / 2)) * self.se
        return self.estimate - half, self.estimate + half


@dataclass(frozen=True)
class LeastSquares:
    """The five slopes by least squares, and the identity that mixes two of them into the third.

    Attributes
    ----------
    averages : of the group averages, each group counting once.
    pooled : over all rows, groups ignored.
    within, between : within groups; between groups, averages weighted by their rows.
    contextual : between minus within.
    share_between : w, the share of the variation of x that lies between groups.
    identity_error : ``abs(pooled - (1 - w) within - w between)``, relative to the largest of the three.
    """

    averages: Slope
    pooled: Slope
    within: Slope
    between: Slope
    contextual: Slope
    share_between: float
    identity_error: float


def averages_of(x: Array, y: Array, codes: Codes) -> Averages:
    """Averages by group; all sums are of values less their grand mean, so that few digits are lost.

    Examples
    --------
    >>> averages_of(np.array([1.0, 3.0, 6.0]), np.array([0.0, 2.0, 5.0]), np.array([0, 0, 1])).x_mean.tolist()
    [2.0, 6.0]
    """
    sizes = np.bincount(codes).astype(float)
    centre = (float(x.mean()), float(y.mean()))
    means = [at + np.bincount(codes, values - at) / sizes for values, at in zip((x, y), centre, strict=True)]
    return Averages(x, y, codes, sizes, means[0], means[1], centre)


def least_squares(groups: Averages) -> LeastSquares:
    """All slopes of y on x.

    Examples
    --------
    >>> x, codes = np.array([0.0, 1, 2, 3]), np.array([0, 0, 1, 1])
    >>> found = least_squares(averages_of(x, np.array([1.0, 0, 5, 4]), codes))
    >>> found.within.estimate, found.between.estimate, round(found.pooled.estimate, 12)
    (-1.0, 2.0, 1.4)
    """
    x, y = groups.x - groups.centre[0], groups.y - groups.centre[1]
    x_mean, y_mean = groups.x_mean - groups.centre[0], groups.y_mean - groups.centre[1]
    x_own, y_own = x - x_mean[groups.codes], y - y_mean[groups.codes]
    rows, count = len(x), len(groups.sizes)
    total, total_parts = _regress(x, y, np.ones(rows), groups.codes, count)
    within, within_parts = _regress(x_own, y_own, np.ones(rows), groups.codes, count)
    each = np.arange(count)
    between, between_parts = _regress(x_mean, y_mean, groups.sizes, each, count)
    once = (x_mean - x_mean.mean(), y_mean - y_mean.mean())
    averages, averages_parts = _regress(*once, np.ones(count), each, count)
    within_square = float(x_own @ x_own)
    share = float(groups.sizes @ x_mean**2) / (within_square + float(groups.sizes @ x_mean**2))
    mixed = (1 - share) * within + share * between
    largest = max(abs(total), abs(within), abs(between)) or 1.0
    degrees = max(count - 2, 1)

    def slope(estimate: float, parts: Array, observations: int) -> Slope:
        return Slope(estimate, _standard_error(parts, observations), degrees)

    return LeastSquares(
        slope(averages, averages_parts, count), slope(total, total_parts, rows), slope(within, within_parts, rows),
        slope(between, between_parts, count), slope(between - within, between_parts - within_parts, count),
        share, abs(total - mixed) / largest,
    )  # fmt: skip


def _regress(x: Array, y: Array, weights: Array, codes: Codes, count: int) -> tuple[float, Array]:
    """The slope of centred y on centred x, and what each group adds to its error, (J,)."""
    square = float(weights @ (x * x))
    slope = float(weights @ (x * y)) / square
    return slope, np.bincount(codes, weights * x * (y - slope * x), minlength=count) / square


def _standard_error(parts: Array, observations: int, coefficients: int = 2) -> float:
    groups = len(parts)
    few = groups / (groups - 1) * (observations - 1) / max(observations - coefficients, 1)
    return math.sqrt(few * float(parts @ parts))
