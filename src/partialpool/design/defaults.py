"""The default priors of a model, scaled by the data it is built on (rows counted by their `weights`)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design, GroupDesign
from partialpool.design.response import BINOMIAL
from partialpool.errors import DataError
from partialpool.spec.distributions import LKJ, Distribution, Gamma, HalfStudentT, InverseGamma, Normal
from partialpool.spec.priors import INTERCEPT, Slot

if TYPE_CHECKING:
    from partialpool.spec.families import Family

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Scale:
    """The scale of a linear predictor: where its intercept lies, how far it spreads, and both in words.

    size : what coefficients of a formula without intercept have to reach (a root mean square).
    spread_note, size_note : "sd(y)" and "rms(y)", empty where the spread is 1.
    """

    centre: float
    spread: float
    size: float
    centre_note: str
    spread_note: str = ""
    size_note: str = ""

    @property
    def times(self) -> str:
        """What stands after 2.5 in a note."""
        return f" {self.spread_note}" if self.spread_note else ""

    @property
    def times_size(self) -> str:
        """The same for a formula without intercept."""
        return f" {self.size_note}" if self.size_note else f" x {self.size:.3g}"


def prior_slots(design: Design, family: Family) -> list[Slot]:
    """Every place of the model that takes a prior, with its default.

    Raises
    ------
    DataError
        If a column bears the name of a parameter, or an offset is too large for its link.
    """
    mean = _mean_scale(design, family)
    slots = _coefficient_slots(design, 0, mean)
    for group in design.groups:
        if group.predictor == 0:
            slots += _group_slots(design, group, mean)
    own = {name: _own_slot(name, design, family, mean) for name in family.parameters}
    for predictor, name in enumerate(design.terms.predictors, start=1):
        scale = _own_scale(name, design, family, mean)
        slots += _coefficient_slots(design, predictor, scale)
        for group in design.groups:
            if group.predictor == predictor:
                slots += _group_slots(design, group, scale)
    known = family.name == "gaussian" and design.se is not None and not design.se_sigma
    slots += [slot for name, slot in own.items() if name not in design.terms.predictors and not known]
    for name, count in Counter(slot.name for slot in slots).items():
        if count > 1:
            raise DataError(
                f"Two parameters would be called {name!r}: the coefficient of a predictor, and one of the family "
                f"{family.name!r}; rename the column."
            )
    return slots


def correlation_slot(design: Design, group: GroupDesign) -> str:
    """The name under which the prior of a term's correlations stands in the table."""
    factor = design.factors[group.factor].name
    twins = [
        g for g in design.groups
        if g.factor == group.factor and g.predictor == group.predictor and g.correlated and len(g.names) > 1
    ]  # fmt: skip
    if len(twins) > 1:
        return f"cor({','.join(group.names)}|{factor})"
    return f"{design.prefixes[group.predictor]}cor({factor})"


# ---- scales -------------------------------------------------------------------------------------------------------


def _mean_scale(design: Design, family: Family) -> _Scale:
    """Where the mean's linear predictor lies and how far it spreads."""
    if family.name in ("gaussian", "student_t", "lognormal"):
        y, name = (np.log(design.y), "log y") if family.name == "lognormal" else (design.y, "y")
        response = y if design.offset is None else y - design.offset
        centre, spread = moments(response, design)
        size = float(np.sqrt(np.mean(response * response))) or 1.0
        return _Scale(centre, spread or 1.0, size, f"mean({name})", f"sd({name})", f"rms({name})")
    centre, note = _link_centre(design, family)
    if family.link in ("identity", "inverse"):  # the scale of these depends on the units of y
        mean, sd = moments(design.y, design)
        spread = (sd if family.link == "identity" else sd / mean**2) or 1.0
        word = "sd(y)" if family.link == "identity" else "sd(y) / mean(y)^2"
        return _Scale(centre, spread, math.hypot(centre, spread), note, word)
    return _Scale(centre, 1.0, math.hypot(centre, 1.0), note)


def _link_centre(design: Design, family: Family) -> tuple[float, str]:
    """The centred intercept, as far as the response alone tells it."""
    count = np.ones(design.y.size) if design.weights is None else design.weights
    events = float(count @ design.y)
    if family.link == "log":
        with np.errstate(over="ignore"):
            exposure = float(count.sum() if design.offset is None else count @ np.exp(design.offset))
        if not math.isfinite(exposure):
            text = design.terms.offsets[0]
            raise DataError(
                f"The offset reaches {float(np.max(design.offset)):.6g}, too much for the log link, on whose scale it "  # type: ignore[arg-type]
                f"is; of an exposure, take the log: offset(log({text}))."
            )
        over = "n" if design.offset is None else "sum exp(offset)"
        return math.log((events + 0.5) / exposure), f"log((sum y + 1/2) / {over})"
    if family.name in BINOMIAL:
        trials = np.ones(design.y.size) if design.trials is None else design.trials
        share, note = (events + 0.5) / (float(count @ trials) + 1), "((sum y + 1/2) / (sum trials + 1))"
    else:
        share, note = events / float(count.sum()), "(mean y)"
    centre = float(np.asarray(family.link_function(np.array([share])))[0])
    if design.offset is not None:
        centre -= moments(design.offset, design)[0]
        note += " - mean(offset)"
    return centre, f"{family.link}{note}" if family.link != "identity" else note.strip("()")


def _own_scale(name: str, design: Design, family: Family, mean: _Scale) -> _Scale:
    """The linear predictor (log scale) of a family's own parameter."""
    if name == "sigma":
        centre, note = math.log(mean.spread), f"log {mean.spread_note}"
    elif family.name == "inverse_gaussian":
        centre, note = math.log(moments(design.y, design)[0]), "log mean(y)"
    else:
        centre, note = 0.0, "0"
    return _Scale(centre, 1.0, math.hypot(centre, 1.0), note)


# ---- slots --------------------------------------------------------------------------------------------------------


def _coefficient_slots(design: Design, predictor: int, scale: _Scale) -> list[Slot]:
    """The coefficients of one linear predictor: its intercept first."""
    prefix, at = design.prefixes[predictor], design.intercepts[predictor]
    if at is None:
        return _slots_without_intercept(design, predictor, scale)
    name = design.x_names[at]
    default = location_prior(scale.centre, scale.spread)
    note = f"at the mean of the predictors; {scale.centre_note}, 2.5{scale.times}"
    slots = [Slot(name, "intercept", (), default, note, prefix)]
    for name, column in _columns(design, predictor):
        if name != design.x_names[at]:
            width = moments(design.V[:, column], design)[1] or 1.0
            normal = Normal(0, rounded(2.5 * scale.spread / width))
            slots.append(Slot(name, "coefficient", (), normal, f"2.5{scale.times} / sd(x)", prefix))
    return slots


def _columns(design: Design, predictor: int) -> list[tuple[str, int]]:
    """Names of one predictor's coefficients, and their columns of V."""
    rows = zip(design.x_names, design.x_columns.tolist(), design.x_predictor.tolist(), strict=True)
    return [(name, column) for name, column, own in rows if own == predictor]


def _slots_without_intercept(design: Design, predictor: int, scale: _Scale) -> list[Slot]:
    """Priors of the coefficients of a formula without intercept.

    The columns of a factor that takes the intercept's place are its cells' means: each has the prior of an intercept.
    Other predictors carry the mean of the response too, so that root mean squares stand for sds.
    """
    cells = _cells(design, predictor)
    prefix = design.prefixes[predictor]
    slots = []
    for name, column in _columns(design, predictor):
        if name in cells:
            default = location_prior(scale.centre, scale.spread)
            note = f"the mean of a cell; {scale.centre_note}, 2.5{scale.times}"
            slots.append(Slot(name, "coefficient", (), default, note, prefix))
            continue
        values = design.V[:, column]
        width = float(np.sqrt(np.mean(values * values))) if not cells else moments(values, design)[1]
        default = Normal(0, rounded(2.5 * (scale.spread if cells else scale.size) / (width or 1.0)))
        note = f"2.5{scale.times} / sd(x)" if cells else f"no intercept: 2.5{scale.times_size} / rms(x)"
        slots.append(Slot(name, "coefficient", (), default, note, prefix))
    return slots


def _cells(design: Design, predictor: int) -> set[str]:
    """Names of the indicator columns of one factor that add up to 1 in every row."""
    by_factor: dict[str, list[tuple[str, int]]] = {}
    for name, column in _columns(design, predictor):
        stem, bracket, _ = name.rpartition("[")
        if bracket and ":" not in name:
            by_factor.setdefault(stem, []).append((name, column))
    for columns in by_factor.values():
        if np.all(design.V[:, [column for _, column in columns]].sum(axis=1) == 1):
            return {name for name, _ in columns}
    return set()


def _group_slots(design: Design, group: GroupDesign, scale: _Scale) -> list[Slot]:
    factor, prefix = design.factors[group.factor].name, design.prefixes[group.predictor]
    slots = []
    for name, column in zip(group.names, group.columns, strict=True):
        slope = name != f"{prefix}{INTERCEPT}"
        width = moments(design.V[:, column], design)[1] or 1.0 if slope else 1.0
        default = spread_prior(scale.spread / width)
        keys = (f"{prefix}sd({factor})", f"{prefix}sd")
        slots.append(Slot(f"sd({name}|{factor})", "sd", keys, default, f"2.5{scale.times}{' / sd(x)' * slope}", prefix))
    if group.correlated and len(group.names) > 1:
        names = [f"{prefix}cor({factor})", f"{prefix}cor"]
        if len(group.names) == 2:  # the one correlation, as `summary` names it
            names.insert(0, f"cor({group.names[0]},{group.names[1]}|{factor})")
        note = "every correlation matrix equally likely"
        slots.append(Slot(correlation_slot(design, group), "cor", tuple(names), LKJ(1), note, prefix))
    return slots


def _own_slot(name: str, design: Design, family: Family, mean: _Scale) -> Slot:
    """The prior of a parameter of the family that has no formula."""
    if name == "sigma":
        return Slot(name, "sigma", (), spread_prior(mean.spread), f"2.5{mean.times}")
    default: Distribution = InverseGamma(0.4, 0.3)
    note = ""
    if name == "nu":
        default = Gamma(2, 0.1)
    elif family.name == "inverse_gaussian":
        default, note = InverseGamma(0.4, rounded(0.3 * moments(design.y, design)[0])), "0.3 mean(y)"
    return Slot(name, "family", (), default, note)


# ---- numbers ------------------------------------------------------------------------------------------------------


def moments(values: Array, design: Design) -> tuple[float, float]:
    """Mean and sd over the rows, a row of weight 2 counting as two."""
    count = np.ones(values.size) if design.weights is None else design.weights
    total = float(count.sum())
    mean = float(count @ values) / total
    return mean, math.sqrt(float(count @ (values - mean) ** 2) / max(total - 1, 1.0))


def location_prior(centre: float, spread: float) -> Normal:
    """The default prior of what lies at `centre` on a scale on which units spread by `spread`.

    Examples
    --------
    >>> str(location_prior(7.68, 10.4))
    'Normal(7.7, 26)'
    """
    return Normal(_round_to(centre, spread), rounded(2.5 * spread))


def spread_prior(spread: float) -> HalfStudentT:
    """The default prior of an sd on such a scale.

    Examples
    --------
    >>> str(spread_prior(1.0))
    'HalfStudentT(3, 2.5)'
    """
    return HalfStudentT(3, rounded(2.5 * spread))


def rounded(value: float) -> float:
    """Three significant digits: a default prior that can be read, and typed again."""
    return float(f"{value:.3g}")


def _round_to(value: float, spread: float) -> float:
    """`value` to a hundredth of `spread` or so: short, yet as near as the prior's scale can tell."""
    return round(value, max(0, 2 - math.floor(math.log10(spread)))) if spread < 100 else float(round(value))
