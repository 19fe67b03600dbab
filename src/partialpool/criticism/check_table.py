"""The table of a predictive check: a row a check, its p-value, and that adjusted for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.calibration_of_rows import LeftOutRows
from partialpool.criticism.check_request import RELIABILITY, ROWS
from partialpool.criticism.check_words import BY_ITSELF, KINDS, effect_label
from partialpool.criticism.envelopes import holm, two_sided_p, upper_p
from partialpool.criticism.statistics import LARGER
from partialpool.present.transforms import smooth_components

if TYPE_CHECKING:
    import pandas

    from partialpool.criticism.check import PredictiveCheck

Array = NDArray[np.float64]

#: What a statistic that a fit reproduces almost by itself counts for in the adjustment of p-values.
LIGHT = 0.1
COLUMNS = ["check", "observed", "mean", "sd", "q05", "q95", "p", "p_adjusted", "kind"]


@dataclass(frozen=True, eq=False)
class Compared:
    """One statistic of the data and of the replicates: observed (D,) or (1,), replicated (D,).

    judged : what the p-value is from where that is not the statistic itself: of the data, and of the replicates.
    """

    name: str
    label: str
    side: str
    factor: str
    predictor: str
    observed: Array
    replicated: Array
    kind: str
    judged: tuple[Array, Array] | None = None

    def p(self) -> float:
        """See `envelopes`."""
        observed, replicated = self.judged or (self.observed, self.replicated)
        good = np.isfinite(replicated)
        observed = observed[good] if observed.size > 1 else observed
        function = upper_p if self.side == LARGER else two_sided_p
        return function(replicated[good], observed)


def framed(rows: Sequence[Sequence[Any]]) -> pandas.DataFrame:
    """Rows under the columns of the table."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=COLUMNS)


def table_of(found: PredictiveCheck) -> pandas.DataFrame:
    """`PredictiveCheck.table`."""
    rows: list[list[Any]] = []
    for one in found.compared:
        good = one.replicated[np.isfinite(one.replicated)]
        low, high = np.quantile(good, [0.05, 0.95])
        rows.append([one.label, float(one.observed.mean()), good.mean(), good.std(), low, high, one.p(), 0.0, one.kind])
    for effect in found.effects:
        mean, sd, low, high = _largest_of(effect.judged)
        label = effect_label(effect)
        size = abs(float(effect.score[effect.largest]))
        rows.append([label, size, mean, sd, low, high, effect.p_largest, 0.0, KINDS["group"]])
    if ROWS in found.request.others:
        rows.append([ROWS, *_rows_statistic(found.rows), 0.0, KINDS["row"]])
    if RELIABILITY in found.request.others:
        own = found.reliability
        mean, sd, low, high = own.reference
        rows.append([RELIABILITY, own.statistic, mean, sd, low, high, own.p, 0.0, KINDS["row"]])
    frame = framed(rows)
    weights = np.array(
        [LIGHT if found.groups == "same" and _by_itself(found, label) else 1.0 for label in frame["check"]]
    )
    frame["p_adjusted"] = holm(frame["p"].to_numpy(dtype=float), weights)
    return frame


def _by_itself(found: PredictiveCheck, label: str) -> bool:
    """Whether any fit reproduces a statistic almost by itself."""
    name = next((one.name for one in found.compared if one.label == label), label)
    return name in BY_ITSELF


def _largest_of(count: int) -> tuple[float, float, float, float]:
    """Mean, sd and quantiles of the largest of |z| over `count` normal numbers."""
    from scipy.special import ndtri

    shares = (np.arange(2000) + 0.5) / 2000
    places = ndtri((1 + shares ** (1 / count)) / 2)
    low, high = ndtri((1 + np.array([0.05, 0.95]) ** (1 / count)) / 2)
    return float(places.mean()), float(places.std()), float(low), float(high)


def _rows_statistic(rows: LeftOutRows) -> list[float]:
    """Neyman's smooth statistic of the transforms, its distribution where they are uniform, and its p-value."""
    from scipy.special import chdtrc, chdtri

    components = smooth_components(rows.below, rows.at)
    value, degrees = float((components**2).sum()), len(components)
    return [
        value, float(degrees), float(np.sqrt(2 * degrees)), float(chdtri(degrees, 0.95)), float(chdtri(degrees, 0.05)),
        float(chdtrc(degrees, value)),
    ]  # fmt: skip
