"""The pictures of a predictive check, each as data first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.calibration_of_rows import predictions_differ
from partialpool.criticism.envelopes import Envelope, envelope

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.criticism.check import PredictiveCheck

Array = NDArray[np.float64]

#: Replicates that are drawn beside the data.
OVERLAID = 30
#: Bars of the rootogram at most; larger counts share the last.
MOST_COUNTS = 40
#: Stream of the seed for points between the two probabilities of a count.
TIES = 63


def kinds(found: PredictiveCheck) -> tuple[str, ...]:
    """The pictures that suit the family and the model."""
    family = found.source.model.family
    out = ["statistics"] if found.compared or found.effects or len(found.table) else []
    if family.name != "bernoulli":
        out += ["density", "pit", "residuals"]
    if family.discrete and family.name != "bernoulli":
        out.append("rootogram")
    if family.name in ("bernoulli", "binomial") and predictions_differ(found.source.model.design):
        out.append("reliability")
    if found.effects:
        out.append("effects")
    return tuple(out)


def data(found: PredictiveCheck, kind: str) -> pandas.DataFrame:
    """What a picture shows."""
    import pandas as pd

    if kind == "statistics":
        return found.table
    if kind == "density":
        return _density(found)
    if kind == "pit":
        rows = found.rows
        index = found.source.model.design.data.index[rows.chosen]
        return pd.DataFrame({"below": rows.below, "at": rows.at}, index=index)
    if kind == "residuals":
        return _scores(residual_envelope(found))
    if kind == "rootogram":
        return rootogram(found)
    if kind == "reliability":
        own = found.reliability
        return pd.DataFrame(
            {"predicted": own.predicted, "observed": own.observed, "q05": own.low, "q95": own.high,
             "rows": own.rows.astype(int)}
        )  # fmt: skip
    parts = []
    for effect in found.effects:
        frame = _scores(effect_envelope(effect.p, effect.score))
        factor = next(f for f in found.source.model.design.factors if f.name == effect.factor)
        known = np.flatnonzero(np.isfinite(effect.score))
        order = known[np.argsort(effect.score[known])]
        if len(frame) == len(order):
            frame.insert(0, "group", factor.labels[order])
        frame.insert(0, "term", effect.term)
        frame.insert(0, "factor", effect.factor)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def draw(found: PredictiveCheck, kind: str, ax: Axes | None, figsize: tuple[float, float] | None) -> Figure:
    """The picture."""
    from partialpool.present import criticism_check as pictures
    from partialpool.present.canvas import response_of

    response = response_of(found.source)
    if kind == "statistics":
        panels = [pictures.Panel(one.label, one.replicated[np.isfinite(one.replicated)],
                                 one.observed, float(p), float(adjusted))
                  for one, p, adjusted in zip(found.compared, found.table["p"], found.table["p_adjusted"],
                                              strict=False)]  # fmt: skip
        return pictures.draw_statistics(panels, found.table, ax, figsize)
    if kind == "density":
        return pictures.draw_density(
            found.source.model.design.y, _overlaid(found), response, found.source.model.family.discrete,
            _support(found), ax, figsize,
        )  # fmt: skip
    if kind == "pit":
        return pictures.draw_transforms(found.rows.below, found.rows.at, ax, figsize)
    if kind == "residuals":
        band = residual_envelope(found)
        return pictures.draw_quantiles([("", _scores(band), band.p)], "left-out rows", ax, figsize)
    if kind == "rootogram":
        return pictures.draw_rootogram(rootogram(found), response, ax, figsize)
    if kind == "reliability":
        return pictures.draw_reliability(data(found, kind), found.reliability.p, ax, figsize)
    frame = data(found, kind)
    panels_of = []
    for effect in found.effects:
        own = frame[(frame["factor"] == effect.factor) & (frame["term"] == effect.term)]
        title = effect.factor if effect.term == "Intercept" else f"{effect.factor}: {effect.term}"
        panels_of.append((title, own, effect_envelope(effect.p, effect.score).p))
    return pictures.draw_quantiles(panels_of, "groups", ax, figsize)


# -- what they are made of --------------------------------------------------------------------------------------------


def residual_envelope(found: PredictiveCheck) -> Envelope:
    """The transforms of left-out rows beside uniform numbers."""
    return envelope(found.rows.transforms(found.replicates.stream(TIES)))


def effect_envelope(p: Array, score: Array) -> Envelope:
    """The left-out tail probabilities of effects beside uniform numbers."""
    known = np.isfinite(p)
    half = np.maximum(p[known], 1e-300) / 2
    return envelope(np.where(score[known] > 0, 1 - half, half))


def _scores(own: Envelope) -> pandas.DataFrame:
    """An envelope on the scale of normal quantiles."""
    import pandas as pd
    from scipy.special import ndtri

    parts = {"expected": own.expected, "observed": own.observed, "low": own.low, "high": own.high}
    return pd.DataFrame({name: ndtri(np.clip(values, 1e-12, 1 - 1e-12)) for name, values in parts.items()})


def _overlaid(found: PredictiveCheck) -> Array:
    """Some replicates (replicates, rows)."""
    rows: list[Array] = []
    for block in found.replicates.blocks():
        rows += list(block.y.T[: OVERLAID - len(rows)])
        if len(rows) >= OVERLAID:
            break
    return np.array(rows)


def _support(found: PredictiveCheck) -> tuple[float, float]:
    name = found.source.model.family.name
    if name == "beta":
        return 0.0, 1.0
    return (-np.inf if name in ("gaussian", "student_t") else 0.0), np.inf


def _density(found: PredictiveCheck) -> pandas.DataFrame:
    """The response and some replicates, a row a value: replicate 0 is the data."""
    import pandas as pd

    values = np.vstack([found.source.model.design.y, _overlaid(found)])
    number = np.repeat(np.arange(len(values)), values.shape[1])
    return pd.DataFrame({"replicate": number, "response": values.ravel()})


def rootogram(found: PredictiveCheck) -> pandas.DataFrame:
    """How many rows have each count, in the data and in the replicates: columns count, observed, mean, q05, q95."""
    import pandas as pd

    y = found.source.model.design.y
    width = max(1, -(-(int(y.max()) + 1) // MOST_COUNTS))
    bars = int(y.max()) // width + 2
    counts = []
    for block in found.replicates.blocks():
        place = np.minimum(block.y // width, bars - 1).astype(np.int64)
        shifted = place + bars * np.arange(place.shape[1])
        counts.append(np.bincount(shifted.ravel(), minlength=bars * place.shape[1]).reshape(-1, bars))
    replicated = np.concatenate(counts)
    low, high = np.quantile(replicated, [0.05, 0.95], axis=0)
    observed = np.bincount(np.minimum(y // width, bars - 1).astype(np.int64), minlength=bars)
    start = np.arange(bars) * width
    return pd.DataFrame(
        {"count": start, "to": start + width - 1, "observed": observed, "mean": replicated.mean(axis=0), "q05": low,
         "q95": high}
    )  # fmt: skip
