r"""Which units differ from the null value, and how many of those named are likely to be wrong.

lfdr
    The local false discovery rate: the posterior probability that the unit's parameter is the null value.
lfsr
    The local false sign rate: min(P(theta <= null), P(theta >= null)), the probability that the sign one would give is
    wrong.
q_value
    The mean of the lfdr over this unit and all with a smaller one: the Bayesian false discovery rate of the list that
    ends with this unit. Where the population has no point mass at the null it is the mean of the lfsr (the s-value):
    the expected share of wrong signs.

Source: Efron (2008), Microarrays, empirical Bayes and the two-groups model; Stephens (2017), False discovery rates: a
new deal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.pooling.marginals import atom_places, check_place, raw_and_mean
from partialpool.pooling.shapes import to_natural

if TYPE_CHECKING:
    import pandas

    from partialpool.pooling.pooled import Pooled

Array = NDArray[np.float64]

BY = ("auto", "lfdr", "lfsr")


def significance(pooled: Pooled, null: float | None = None, by: str = "auto") -> pandas.DataFrame:
    """Local false discovery rate, local false sign rate and q-value of every unit, in the order of the data.

    Parameters
    ----------
    pooled : Pooled
    null : float, optional
        The value that counts as no effect; the Pooled's own if not given (0 for estimates). Populations without a
        point there have no nulls: the list is then one of signs that are sure, by the lfsr, and lfdr is nan. A
        point_normal population of events or counts learns where its nulls lie: there the lfdr is the probability to be
        one of them.
    by : "auto" | "lfdr" | "lfsr"
        Which rate is averaged to the q-value. "auto": lfdr where the population has a point mass at the null,
        else lfsr.

    Returns
    -------
    DataFrame
        unit, raw, mean, lfdr, lfsr, q_value. `attrs`: null, by.

    Raises
    ------
    ModelError
        Without a null value, or where the lfdr is asked for and the population has no point mass there.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool([0.1, 4.2, -0.3, -3.9, 0.5, 0.2], se=1.0, population="point_normal", seed=1)
    >>> table = significance(pooled)
    >>> table["lfsr"].idxmin() in (1, 3)
    True
    """
    import pandas

    learnt = null is None and pooled.null is None and pooled.population.kind == "point_normal"
    if learnt:  # where the nulls lie is uncertain: a unit is null where it belongs to the point, wherever that is
        rows = pooled.population.rows
        centre = float(to_natural(pooled.family, rows["mean"].mean)) if "mean" in rows else pooled.population.mean
        value = centre
        rate = by if by in ("lfdr", "lfsr") else "lfdr"
        atom = np.asarray(pooled.posterior.atom(), dtype=np.float64)
    else:
        value = _null(pooled, null)
        rate = _rate(pooled, value, by)
        atom = np.asarray(pooled.posterior.atom(value), dtype=np.float64)
    not_above = np.asarray(pooled.posterior.cdf(value), dtype=np.float64)
    lfdr = np.clip(atom, 0.0, 1.0)
    lfsr = np.clip(np.minimum(not_above, 1.0 - not_above + (0.0 if learnt else atom)), lfdr, 1.0)
    if rate == "lfsr" and not atom_places(pooled).size:
        lfdr = np.full(lfsr.shape, np.nan)  # a population without points has no nulls to speak of
    raw, mean = raw_and_mean(pooled)
    q_value = q_values(lfdr if rate == "lfdr" else lfsr)
    columns = {"unit": pooled.units.names, "raw": raw, "mean": mean, "lfdr": lfdr, "lfsr": lfsr, "q_value": q_value}
    table = pandas.DataFrame(columns)
    table.attrs.update(null=value, by=rate)
    if pooled.method == "empirical_bayes" and pooled.beside is not None:
        table.attrs["note"] = "the population's parameters count as known; method='bayes' allows for their uncertainty"
    return table


def discoveries(pooled: Pooled, fdr: float = 0.05, null: float | None = None, by: str = "auto") -> pandas.DataFrame:
    """The units that differ from the null value, in a list of which the share of errors is expected to be at most fdr.

    Parameters
    ----------
    pooled : Pooled
    fdr : float
        Expected share of wrong entries, between 0 and 1: the longest list is given whose mean lfdr (or lfsr) is at
        most fdr.
    null, by
        As in `significance`, which has the same columns for every unit.

    Returns
    -------
    DataFrame
        A row per discovered unit, the surest first: unit, raw, mean, q05, q95, lfdr, lfsr, q_value. `attrs`: fdr, null,
        by, expected_false, the number of wrong entries that are expected.

    Raises
    ------
    ModelError
        If fdr is not between 0 and 1; else as `significance`.

    Examples
    --------
    >>> import partialpool as pp
    >>> pooled = pp.pool([0.1, 6.2, -0.3, -5.9, 0.5, 0.2], se=1.0, population="point_normal", seed=1)
    >>> sorted(pooled.discoveries(fdr=0.1)["unit"].tolist())
    [1, 3]
    """
    if isinstance(fdr, bool) or not isinstance(fdr, int | float | np.number) or not 0.0 < float(fdr) < 1.0:
        raise ModelError(f"fdr must lie between 0 and 1, both excluded; it is {fdr!r}. 0.05 is 5%.")
    table = significance(pooled, null, by)
    rate = table[table.attrs["by"]].to_numpy()
    q_value = table["q_value"].to_numpy()
    found = np.flatnonzero(q_value <= float(fdr))
    distance = np.abs(table["mean"].to_numpy()[found] - table.attrs["null"])
    found = found[np.lexsort((-distance, rate[found], q_value[found]))].astype(np.int64)
    chosen = table.iloc[found].reset_index(drop=True)
    if found.size:
        low, high = np.asarray(pooled.posterior.quantiles(np.array([0.05, 0.95]), found))
    else:
        low = high = np.empty(0)
    chosen.insert(3, "q05", low)
    chosen.insert(4, "q95", high)
    chosen.attrs = {**table.attrs, "fdr": float(fdr), "expected_false": float(rate[found].sum())}
    return chosen


def q_values(rates: Array) -> Array:
    """Mean of each rate and all that are smaller; equal rates share the mean over all of them.

    Examples
    --------
    >>> q_values(np.array([0.3, 0.0, 0.1, 0.1])).round(4).tolist()
    [0.125, 0.0, 0.0667, 0.0667]
    """
    order = np.argsort(rates, kind="stable")
    ordered = rates[order]
    running = np.cumsum(ordered) / np.arange(1, rates.size + 1)
    last = np.searchsorted(ordered, ordered, side="right") - 1
    out = np.empty_like(running)
    out[order] = running[last]
    return out


def _null(pooled: Pooled, null: float | None) -> float:
    given: Any = pooled.null if null is None else null
    if given is None:
        raise ModelError(
            "These units have no value of their own that counts as no effect: say which with null= (such as null="
            f"{0.5 if pooled.family == 'binomial' else 1.0}), or pool with population='point_normal', which learns it."
        )
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise ModelError(f"null must be a finite number, the value that counts as no effect; it is {given!r}.")
    check_place(pooled, value, "null")
    return value


def _rate(pooled: Pooled, null: float, by: str) -> str:
    if by not in BY:
        raise ModelError(f'by must be "auto", "lfdr" or "lfsr"; it is {by!r}.')
    if by == "auto" and pooled.population.kind == "npmle" and not np.any(atom_places(pooled) == null):
        raise ModelError(
            f"A non-parametric population consists of points, and {null:g} is not one of them: how many units are null "
            "cannot be said. Pool with population='point_normal' or 'scale_mixture', or ask for signs with by='lfsr'."
        )
    has_point = bool(np.any(atom_places(pooled) == null))
    if by == "lfdr" and not has_point:
        raise ModelError(
            f"The population has no point mass at {null:g}, so every unit's local false discovery rate is 0. "
            'Use by="lfsr", or pool with population="point_normal".'
        )
    if by == "auto":
        return "lfdr" if has_point else "lfsr"
    return by
