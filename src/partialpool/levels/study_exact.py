r"""The errors of complete, no and partial pooling where the variances are known, exactly.

Groups :math:`j = 1, \dots, J` have :math:`n_j` rows, true means :math:`\theta_j = \mu + u_j` with
:math:`u_j \sim N(0, \tau^2)`, and observed means :math:`\bar y_j` with variances :math:`v_j = \sigma^2 / n_j`. All
three estimates are linear in the observed means, with weights that add up to one:

- no pooling: :math:`\bar y_j`;
- complete pooling: the mean of all rows, :math:`\sum_k c_k \bar y_k` with :math:`c_k = n_k / N`;
- partial pooling: :math:`B_j \hat\mu + (1 - B_j) \bar y_j` with :math:`B_j = v_j w_j`,
  :math:`w_j = 1 / (v_j + \tau^2)`, :math:`\hat\mu = \sum_k w_k \bar y_k / W` and :math:`W = \sum_k w_k`: the
  posterior mean under a flat prior of :math:`\mu`, and of all such estimates that with the least mean squared error
  (Henderson, 1975), so that it is never above either extreme.

Their mean squared errors for group j are

.. math::

    v_j, \qquad \tau^2 \bigl(1 - 2 c_j + \textstyle\sum_k c_k^2\bigr) + \sigma^2 / N, \qquad
    v_j (1 - B_j) + B_j^2 / W.

Averaged over groups, an estimate's bias is zero: some groups are drawn down and others up. What pooling costs is bias
*given* the true effect: the error's mean is :math:`b_j u_j`, with :math:`b_j` equal to 0, :math:`-(1 - c_j)` and
:math:`-B_j (1 - w_j / W)`. `bias` is that of a group one :math:`\tau` above the mean, averaged over groups; `variance`
is what remains of the mean squared error: mse = bias² + variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The three, in the order of every array's last axis.
POOLINGS = ("complete", "none", "partial")
COMPLETE, NONE, PARTIAL = range(3)


@dataclass(frozen=True, eq=False)
class StudyDesign:
    """A design: how many rows each group has.

    Attributes
    ----------
    sizes : ndarray of shape (J,)
        Rows of each group.
    """

    sizes: Array

    @property
    def groups(self) -> int:
        return int(self.sizes.size)

    @property
    def total(self) -> int:
        """Rows in all."""
        return int(self.sizes.sum())

    @property
    def rows(self) -> float:
        """Rows of a group, on average."""
        return float(self.sizes.mean())

    @property
    def balanced(self) -> bool:
        return bool((self.sizes == self.sizes[0]).all())

    def standard_error(self, sigma: float) -> float:
        """The root mean square of the groups' own standard errors: sigma / sqrt(n) where all have n rows."""
        return sigma * float(np.sqrt(np.mean(1 / self.sizes)))

    def __str__(self) -> str:
        low, high = int(self.sizes.min()), int(self.sizes.max())
        return f"{self.groups} groups of {low}" if low == high else f"{self.groups} groups of {low} to {high}"


class Exact(NamedTuple):
    """Averages over groups: mse and slope of the bias on the true effect, (3,) in the order of `POOLINGS`; posterior
    standard deviations under partial pooling of a group's mean (root mean square) and of the population's.
    """

    mse: Array
    slope: Array
    sd_group: float
    sd_mean: float


def exact_errors(design: StudyDesign, tau: float, sigma: float) -> Exact:
    """What is expected of the three estimates where tau and sigma are known.

    Examples
    --------
    >>> exact_errors(StudyDesign(np.full(10, 4.0)), tau=1.0, sigma=2.0).mse.round(3).tolist()
    [1.0, 1.0, 0.55]
    """
    v, c = sigma**2 / design.sizes, design.sizes / design.total
    w = 1 / (v + tau**2)
    b, total = v * w, float(w.sum())
    complete = tau**2 * (1 - 2 * c + float(c @ c)) + sigma**2 / design.total
    partial = v * (1 - b) + b**2 / total
    mse = np.array([complete.mean(), v.mean(), partial.mean()])
    slope = np.array([-float(np.mean(1 - c)), 0.0, -float(np.mean(b * (1 - w / total)))])
    return Exact(mse, slope, float(np.sqrt(mse[PARTIAL])), total**-0.5)


def known_weights(design: StudyDesign, tau: float, sigma: float) -> tuple[Array, Array, Array]:
    """Shrinkage factors B (J,), weights in the population mean (J,) with sum 1, and posterior variances (J,)."""
    v = sigma**2 / design.sizes
    w = 1 / (v + tau**2)
    b, total = v * w, float(w.sum())
    return b, w / total, v * (1 - b) + b**2 / total
