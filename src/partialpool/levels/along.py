"""How the variance between groups, and the intraclass correlation, change with a predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.levels.at_rows import AtRows, Points, Rows, at_rows
from partialpool.levels.decomposition import (
    LINK,
    RESPONSE,
    STATISTICS,
    by_level,
    has_two_scales,
    joint_points,
    level_names,
    level_sets,
    share_of,
    statistics,
    wanted_sets,
)
from partialpool.levels.link_scale import row_variance_on_link
from partialpool.levels.response_scale import partition
from partialpool.model import Model
from partialpool.posterior.components import exact_residual
from partialpool.present.report import Report
from partialpool.present.tables import decimals_for, number

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.levels.variance import Variance
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Places along a numeric predictor, values up to which it is taken at each of them, and nodes of the posterior.
PLACES, FEW, NODES = 41, 8, 400
QUANTITIES = ("variance", "icc")


@dataclass(frozen=True, eq=False, repr=False)
class Along(Report):
    """The variance between groups along a predictor. Made by :meth:`Variance.along`.

    Attributes
    ----------
    source : Posterior
    predictor : str
    places : list
        The values of the predictor.
    rows : list of tuples
        Of `table`.
    """

    source: Posterior
    predictor: str
    places: list[Any]
    rows: list[tuple[Any, ...]]

    @property
    def title(self) -> str:
        """What this is."""
        return f"Variance between groups along {self.predictor}: {self.source.model.design.terms.formula}"

    @cached_property
    def table(self) -> pandas.DataFrame:
        """The predictor's value, level, quantity (variance, icc), scale, mean, sd, q05, q50, q95.

        The variance is what the level adds to those that contain it; the intraclass correlation is that of two rows of
        one of its groups, both at this value.
        """
        import pandas as pd

        return pd.DataFrame(self.rows, columns=[self.predictor, "level", "quantity", "scale", *STATISTICS])

    @property
    def shown(self) -> pandas.DataFrame:
        """Variance between groups and intraclass correlation at six places, or at all where they are few."""
        import pandas as pd

        few = len(self.places) <= FEW
        picked = self.places if few else [self.places[k] for k in np.linspace(0, len(self.places) - 1, 6).astype(int)]
        own = self.table[(self.table["scale"] == self._scale) & self.table[self.predictor].isin(picked)].copy()
        own[self.predictor] = [_place(value, self.places) for value in own[self.predictor]]
        parts = []
        for quantity in QUANTITIES:
            found = own[own["quantity"] == quantity].set_index([self.predictor, "level"])
            finite = found["sd"][np.isfinite(found["sd"])]
            decimals = decimals_for(float(finite.median()) if len(finite) else np.nan)
            for name, column in ((quantity, "mean"), (f"{quantity}_q05", "q05"), (f"{quantity}_q95", "q95")):
                texts = [number(value, decimals) for value in found[column]]
                width = max(map(len, texts))
                parts.append(pd.Series([text.rjust(width) for text in texts], found.index, name=name))
        return pd.concat(parts, axis=1)

    @property
    def _scale(self) -> str:
        return RESPONSE if (self.table["scale"] == RESPONSE).any() else LINK

    @property
    def sentences(self) -> Sequence[str]:
        """Where the variance between groups is least and most."""
        if len(self.places) < 2:
            return []
        out = []
        own = self.table[(self.table["quantity"] == "variance") & (self.table["scale"] == self._scale)]
        for level in own["level"].unique():
            part = own[own["level"] == level].reset_index(drop=True)
            low, high = part.iloc[int(part["mean"].argmin())], part.iloc[int(part["mean"].argmax())]
            if high["mean"] <= low["mean"] * 1.001:
                out.append(f"The variance between groups of {level} does not change with {self.predictor}.")
                continue
            at = [
                f"{number(row['mean'], decimals_for(row['sd']))} at {self.predictor} = "
                f"{_place(row[self.predictor], self.places)}"
                for row in (low, high)
            ]
            out.append(f"The variance between groups of {level} is least, {at[0]}, and largest, {at[1]}.")
        return out

    def plot(
        self,
        quantity: str = "both",
        scale: str | None = None,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Variance between groups and intraclass correlation, with 90% bands.

        Parameters
        ----------
        quantity : {"both", "variance", "icc"}
            One of them goes into the axes given as `ax`.
        scale : {"response", "link"}, optional
            That of the response where there is one.
        """
        from partialpool.present.variance import Curve, CurvePanel, along_plot

        if quantity not in ("both", *QUANTITIES):
            raise ModelError(f"There is no quantity {quantity!r}. {did_you_mean(str(quantity), ('both', *QUANTITIES))}")
        known = list(self.table["scale"].unique())
        if scale is not None and scale not in known:
            raise ModelError(f"There is no scale {scale!r} here. {did_you_mean(str(scale), known)}")
        own = self.table[self.table["scale"] == (scale or self._scale)]
        labels = {"variance": "Variance between groups", "icc": "Intraclass correlation"}
        panels = []
        for name in QUANTITIES if quantity == "both" else (quantity,):
            part = own[own["quantity"] == name]
            curves = [
                Curve(level, *(part.loc[part["level"] == level, c].to_numpy() for c in ("mean", "q05", "q95")))
                for level in part["level"].unique()
            ]
            panels.append(CurvePanel(labels[name], curves))
        return along_plot(self.places, self.predictor, panels, ax, figsize)


def along(found: Variance, predictor: str, at: ArrayLike | None) -> Along:
    """`Variance.along`."""
    fit, model = found.source, found.source.model
    names = level_names(model)
    if not names:
        raise ModelError(
            "along() is about the variance between groups, and this model has none in its mean; add (1 | g)."
        )
    places, rows = places_along(model, predictor, at)
    points = joint_points(fit, NODES)
    lines: list[tuple[Any, ...]] = []
    for scale in dict.fromkeys(part.scale for part in found.scales):
        for k, place in enumerate(places):
            one = Rows(rows.V[k : k + 1], None if rows.offset is None else rows.offset[k : k + 1], np.ones(1))
            here = at_rows(model, points, one)
            own, icc = _at_one(model, points, here, scale)
            for level, name in enumerate(names):
                lines.append((place, name, "variance", scale, *statistics(own[:, level], points.weights)))
                lines.append((place, name, "icc", scale, *statistics(icc[:, level], points.weights)))
    return Along(fit, predictor, list(places), lines)


def _at_one(model: Model, points: Points, here: AtRows, scale: str) -> tuple[Array, Array]:
    """What each level adds, and intraclass correlations, (K, levels), of one row."""
    sets = level_sets(model)
    if scale == RESPONSE and has_two_scales(model):
        parts = partition(model.family, here.eta, here.variances, wanted_sets(sets), here.powers, here.shift)
        own, _, icc = by_level(here, parts, sets, model)
        return own, icc
    own = np.column_stack([part[:, 0] for part in here.variances])
    exact = model.exact
    residual = exact_residual(model, points.theta) if exact else row_variance_on_link(model, points.theta, here)
    whole = own.sum(axis=1) + residual
    shared = np.column_stack([own[:, sorted(levels)].sum(axis=1) for levels in sets])
    return own, share_of(shared, whole[:, None])


def places_along(model: Model, predictor: str, at: ArrayLike | None) -> tuple[list[Any], Rows]:
    """Values of the predictor, and rows that have them, the rest typical."""
    design = model.design
    used = [name for name in design.data.columns if name in _predictors(model)]
    if predictor in design.v_names and predictor not in used:
        column = design.v_names.index(predictor)
        places = _numbers(design.V[:, column], predictor, at)
        V = np.repeat(design.replay(typical_rows(model, 1)).V, len(places), axis=0)
        V[:, column] = places
        return places.tolist(), Rows(V, None, np.full(len(places), 1.0 / len(places)))
    if predictor not in used:
        known = list(dict.fromkeys([*used, *(name for name in design.v_names if name != "Intercept")]))
        raise ModelError(f"The model has no predictor {predictor!r}. {did_you_mean(str(predictor), known)}")
    values = design.data[predictor]
    if values.dtype.kind in "iuf":
        places_list: list[Any] = _numbers(values.to_numpy(dtype=float), predictor, at).tolist()
        try:
            return places_list, _moved(model, predictor, places_list)
        except DataError:  # numbers that are categories, C(year)
            if at is not None:
                raise
    places_list = sorted(values.unique().tolist()) if at is None else list(np.atleast_1d(np.asarray(at)))
    return places_list, _moved(model, predictor, places_list)


def _moved(model: Model, predictor: str, places: list[Any]) -> Rows:
    """Typical rows but for one predictor."""
    frame = typical_rows(model, len(places))
    frame[predictor] = places
    return Rows.of_new(model.design.replay(frame))


def _predictors(model: Model) -> set[str]:
    """The columns that predictors are made of."""
    from partialpool.spec.formula import variables_of

    terms = model.design.terms
    texts = [terms.common, *(part.common for part in terms.predictors.values()), *terms.offsets]
    texts += [term.effects for term in terms.all_groups]
    return {name for text in texts for name in variables_of(text)}


def typical_rows(model: Model, count: int) -> pandas.DataFrame:
    """Rows of the data's columns at the value nearest to the mean, or at the commonest category."""
    import pandas as pd

    data = model.design.data
    row = {}
    for name in data.columns:
        values = data[name]
        if values.dtype.kind in "iuf":
            numbers = values.to_numpy(dtype=float)
            row[name] = values.iloc[int(np.abs(numbers - numbers.mean()).argmin())]
        else:
            row[name] = values.value_counts().index[0]
    return pd.DataFrame({name: [value] * count for name, value in row.items()})


def _numbers(values: Array, predictor: str, at: ArrayLike | None) -> Array:
    if at is None:
        known = np.unique(values)
        return known if len(known) <= FEW else np.linspace(known[0], known[-1], PLACES)
    try:
        places = np.atleast_1d(np.asarray(at, dtype=float)).ravel()
    except (TypeError, ValueError):
        raise DataError(f"at= takes numbers, values of {predictor!r}, such as at=[0, 1, 2].") from None
    if not places.size or not np.isfinite(places).all():
        raise DataError(f"at= takes finite numbers, at least one, values of {predictor!r}.")
    return places


def _place(value: Any, places: Sequence[Any]) -> str:
    """A value of the predictor, numbers to a hundredth or so of their range.

    Examples
    --------
    >>> _place(0.84183, [-1.1, 0.84183]), _place(1996.0, [1995.0, 1996.0, 1997.0]), _place("a", ["a", "b"])
    ('0.84', '1996', 'a')
    """
    numeric = [isinstance(place, int | float) and not isinstance(place, bool) for place in places]
    if not all(numeric):
        return str(value)
    span = max(places) - min(places)
    if span <= 0:
        return f"{value:.4g}"
    text = f"{value:.{max(0, 2 - math.floor(math.log10(span)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
