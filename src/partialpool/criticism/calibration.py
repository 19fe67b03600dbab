"""What a calibration found: coverage, places, verdicts.

*Verdict.* Two p-values for each quantity: that of the empirical distribution function of its places (exact, by
simultaneous bands) and that of the sum of their squared normal scores, chi-squared with N degrees of freedom, which is
far the sharper one for intervals that are too short or too long. Twice the smaller is a p-value; times the number of
quantities (Bonferroni) it is held against 0.01 (not calibrated) and 0.05 (not clear).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.calibration_replicate import (
    HIGH,
    LOG_LIKELIHOOD,
    LOW,
    MEAN,
    PLACE,
    SD,
    TRUTH,
    Plan,
    Replicate,
)
from partialpool.criticism.rank_bands import p_value, simultaneous_band
from partialpool.errors import ModelError, did_you_mean
from partialpool.model import Model
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

INTERVALS = (50, 80, 90, 95)
#: Adjusted p-values below which a quantity is not calibrated, and not clear.
OFF, UNCLEAR = 0.01, 0.05
CALIBRATED, NOT_CLEAR = "calibrated", "not clear"


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Report):
    """What `pp.calibrate` found."""

    _plan: Plan
    wanted: int
    _replicates: tuple[Replicate, ...]

    @property
    def source(self) -> Model:
        """The model."""
        return self._plan.model

    @cached_property
    def _kept(self) -> tuple[Replicate, ...]:
        return tuple(one for one in self._replicates if not one.failure)

    @cached_property
    def _values(self) -> Array:
        """(replicates, quantities, COLUMNS) of those quantities that were returned throughout."""
        return np.stack([one.values for one in self._kept])[:, self._returned]

    @cached_property
    def _returned(self) -> NDArray[np.bool_]:
        values = np.stack([one.values for one in self._kept])
        return np.asarray(np.isfinite(values[:, :, PLACE]).all(axis=0))

    @property
    def _missing(self) -> tuple[str, ...]:
        """What some replicates have and others have not."""
        some = np.asarray(np.isfinite(np.stack([one.values for one in self._kept])[:, :, PLACE]).any(axis=0))
        return tuple(name for name, has, own in zip(self._plan.names, some, self._returned, strict=True) if has > own)

    @property
    def replicates(self) -> int:
        """How many replicates there are, those without a fit left out."""
        return len(self._kept)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What was checked: parameters, two groups' effects of each term, the log likelihood."""
        return tuple(name for name, own in zip(self._plan.names, self._returned, strict=True) if own)

    @cached_property
    def places(self) -> pandas.DataFrame:
        """The place of each true value in its posterior, between 0 and 1: a row a replicate, a column a quantity."""
        return self._frame(PLACE)

    @cached_property
    def truths(self) -> pandas.DataFrame:
        """The true values: a row a replicate, a column a quantity."""
        return self._frame(TRUTH)

    def _frame(self, column: int) -> pandas.DataFrame:
        import pandas as pd

        index = pd.Index([one.number for one in self._kept], name="replicate")
        return pd.DataFrame(self._values[:, :, column], index=index, columns=list(self.quantities))

    @cached_property
    def failures(self) -> pandas.Series[str]:
        """Why replicates could not be fitted, by their number."""
        import pandas as pd

        found = {one.number: one.failure for one in self._replicates if one.failure}
        return pd.Series(found, name="failure", dtype=object).rename_axis("replicate")

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row a quantity.

        verdict; p (adjusted for the number of quantities); cover50, cover80, cover90, cover95: the share of central
        intervals that hold the truth (`coverage` has their errors); bias, the mean of (posterior mean - truth) over
        the posterior sd, and spread, its sd, 1 where the posterior is as wide as its errors; contraction, the
        share of the prior's variance that the data remove: that of posterior means, over itself and the mean
        posterior variance, which add up to the prior's variance.
        """
        import pandas as pd

        rows = {name: self._row(k) for k, name in enumerate(self.quantities)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("quantity")

    def _row(self, k: int) -> dict[str, Any]:
        own = self._values[:, k]
        p = min(1.0, quantity_p(own[:, PLACE]) * len(self.quantities))
        off = np.abs(own[:, PLACE] - 0.5)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (own[:, MEAN] - own[:, TRUTH]) / own[:, SD]
        return {
            "verdict": verdict(own[:, PLACE], p), "p": p,
            **{f"cover{share}": float((off <= share / 200).mean()) for share in INTERVALS},
            "bias": float(z.mean()) if np.isfinite(z).all() else np.nan,
            "spread": float(z.std(ddof=1)) if np.isfinite(z).all() else np.nan,
            "contraction": np.nan if self.quantities[k] == LOG_LIKELIHOOD else contraction(own[:, MEAN], own[:, SD]),
        }  # fmt: skip

    @property
    def shown(self) -> pandas.DataFrame:
        """The table, to the digits that so many replicates can tell."""
        frame = self.table.copy()
        digits = 2 if self.replicates < 1000 else 3
        frame["p"] = ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in frame["p"]]
        for name in frame.columns[2:]:
            frame[name] = ["" if np.isnan(value) else f"{value:.{digits}f}" for value in frame[name]]
        return frame

    @cached_property
    def coverage(self) -> pandas.DataFrame:
        """A row a quantity and central interval: nominal and measured coverage, the standard error that chance alone
        gives it, and their distance in standard errors.
        """
        import pandas as pd

        rows = []
        for name, places in self.places.items():
            for share in INTERVALS:
                held, nominal = float(((places - 0.5).abs() <= share / 200).mean()), share / 100
                error = float(np.sqrt(nominal * (1 - nominal) / len(places)))
                rows.append((name, nominal, held, error, (held - nominal) / error))
        frame = pd.DataFrame(rows, columns=["quantity", "nominal", "coverage", "se", "z"])
        return frame.set_index(["quantity", "nominal"])

    @property
    def calibrated(self) -> bool:
        """Whether no quantity is found to be off."""
        return bool((self.table["p"] >= OFF).all())

    @property
    def title(self) -> str:
        """What this is."""
        return f"Calibration of {self._told}"

    @property
    def _told(self) -> str:
        return f"{self.source.design.terms.formula}, {self.source.family}, {self.replicates:,} replicates"

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        from partialpool.criticism.calibration_words import sentences

        return sentences(self)

    @property
    def _engines(self) -> Counter[str]:
        return Counter(one.engine for one in self._kept if one.engine)

    @property
    def _untrusted(self) -> int:
        return sum(not one.trusted for one in self._kept)

    def plot(
        self,
        kind: Literal["ranks", "recovery"] = "ranks",
        names: Sequence[str] | None = None,
        *,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Places against uniform ones with a simultaneous band, or true values against posterior means.

        Parameters
        ----------
        kind : {"ranks", "recovery"}
        names : sequence of str, optional
            The quantities to draw; all by default.
        ax : Axes, optional
            Where to draw a single quantity.
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present import criticism_calibration as pictures

        if kind not in ("ranks", "recovery"):
            raise ModelError(f"There is no plot {kind!r}. {did_you_mean(str(kind), ('ranks', 'recovery'))}")
        given = [names] if isinstance(names, str) else names
        every = [name for name in self.quantities if kind == "ranks" or name != LOG_LIKELIHOOD]
        wanted = every if given is None else list(given)
        for name in wanted:
            if name not in self.quantities:
                raise ModelError(f"There is no quantity {name!r}. {did_you_mean(str(name), self.quantities)}")
        chosen = [self.quantities.index(name) for name in wanted]
        verdicts = self.table["verdict"].to_numpy()[chosen].tolist()
        if kind == "recovery":
            own = self._values[:, chosen][:, :, [TRUTH, MEAN, LOW, HIGH]]
            return pictures.recovery(wanted, own, self._told, ax, figsize)
        band = simultaneous_band(self.replicates, 1 - UNCLEAR / len(self.quantities))
        edges = band.places, band.low, band.high
        return pictures.ranks(wanted, verdicts, self._values[:, chosen, PLACE], edges, self._told, ax, figsize)


def contraction(means: Array, sds: Array) -> float:
    """Var(posterior mean) over Var(posterior mean) + E(posterior variance).

    The denominator is the prior's variance (law of total variance) also where the prior is a mixture of wide and narrow
    ones, as that of a group effect is.

    Examples
    --------
    >>> contraction(np.array([-1.0, 1.0]), np.array([1.0, 1.0]))
    0.5
    """
    told, left = float(means.var()), float((sds**2).mean())
    return told / (told + left) if told + left > 0 else np.nan


def normal_scores(places: Array) -> Array:
    """Normal quantiles of places, which are kept from 0 and 1 by what a posterior's effective sample size can tell."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.clip(places, 5e-4, 1 - 5e-4)))


def quantity_p(places: Array) -> float:
    """Twice the smaller p-value of the places' distribution function and of their squared normal scores.

    Examples
    --------
    >>> even = (np.arange(400) + 0.5) / 400
    >>> quantity_p(even), quantity_p(0.5 + 0.8 * (even - 0.5)) < 1e-3
    (1.0, True)
    """
    from scipy.special import chdtr, chdtrc

    total, count = float((normal_scores(places) ** 2).sum()), len(places)
    scores = 2 * min(float(chdtr(count, total)), float(chdtrc(count, total)))
    return min(1.0, 2 * min(p_value(places), scores))


def verdict(places: Array, p: float) -> str:
    """What is wrong with a posterior, in two words.

    Examples
    --------
    >>> even = (np.arange(400) + 0.5) / 400
    >>> verdict(even**2, 0.0), verdict(0.5 + 0.8 * (even - 0.5), 0.0), verdict(even, 0.6)
    ('too high', 'too wide', 'calibrated')
    """
    if p >= UNCLEAR:
        return CALIBRATED
    if p >= OFF:
        return NOT_CLEAR
    z, root = normal_scores(places), np.sqrt(len(places))
    place, width = float(z.mean()) * root, (float(z.std()) - 1) * np.sqrt(2) * root
    if max(abs(place), abs(width)) < 2:
        return "wrong shape"
    if abs(place) > abs(width):
        return "too low" if place > 0 else "too high"
    return "too narrow" if width > 0 else "too wide"
