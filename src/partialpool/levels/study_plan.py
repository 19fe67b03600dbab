r"""How large a study has to be: for a wanted precision, or a wanted power to see an effect.

Precision is the posterior sd of a group's mean, or of the population's, from the study's own table. For a treatment,
the standard error of the difference between the arms:

- by group, half of the groups treated: the groups' means scatter around their arm's with variances
  :math:`\tau^2 + \sigma^2 / n_j` (and :math:`\omega^2` more among the treated where the effect itself has an sd of
  :math:`\omega` between groups), so that :math:`se^2 = 2 / W_0 + 2 / W_1` with W the sums over all groups of one over
  these variances. :math:`\tau` does not go away with more rows: :math:`se^2 \ge 4 \tau^2 / J`;
- by row, half the rows of each group: each group has its own comparison, of variance :math:`\sigma^2 (1/a_j + 1/b_j) +
  \omega^2` with :math:`a_j + b_j = n_j`; :math:`\tau` drops out.

The power is that of the 95% interval around the estimate leaving out zero: normal where the variances are known. Where
they are estimated it is, by group, that of ``pp.fit`` (`study_power`), whose prior leaves room for a large
:math:`\tau`: where groups are few, less than that of Student's t on the groups' means (Raudenbush, 1997; Bloom, 2005),
11% against 34% with 4 groups of 20, a tau of 0.5 and an effect of 1.5. By row it is that of Student's t with N - J - 1
degrees of freedom, or J - 1 where the effect varies between groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, did_you_mean
from partialpool.levels.study_exact import StudyDesign
from partialpool.levels.study_power import fit_power
from partialpool.levels.study_request import numbers
from partialpool.present.report import Report
from partialpool.present.tables import listed

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.levels.study import PoolingStudy

Array = NDArray[np.float64]

#: The two tails outside the interval of a difference.
LEVEL = 0.05
#: Groups below which the interval of an effect that varies between groups is wider in `pp.fit` than Student's.
FEW_GROUPS = 10


@dataclass(frozen=True)
class Aim:
    """What is wanted of a design.

    kind : "group" or "mean" (a posterior sd of at most `value`), or "power" (of at least `value`, for `effect` with
    an sd of `effect_sd` between groups, treated `by` group or row). tau : where it must be reached; nan for everywhere.
    """

    kind: str
    value: float
    effect: float = math.nan
    by: str = "group"
    effect_sd: float = 0.0
    tau: float = math.nan

    def reached(self, value: float) -> bool:
        return value >= self.value if self.kind == "power" else value <= self.value

    @property
    def words(self) -> str:
        if self.kind == "power":
            halves = "groups" if self.by == "group" else "rows of each group"
            spread = f" (sd {self.effect_sd:.4g} between groups)" if self.effect_sd > 0 else ""
            size = f"{self.effect:.4g}{spread}"
            return f"power of {self.value:.0%} for a difference of {size} between halves of the {halves}"
        whose = "a group's mean" if self.kind == "group" else "the population's mean"
        return f"posterior sd of {whose} of at most {self.value:.4g}"


def difference_error(design: StudyDesign, tau: float, sigma: float, by: str, effect_sd: float = 0.0) -> float:
    """The standard error of the difference between two arms; infinite where the design has no comparison.

    Examples
    --------
    >>> design = StudyDesign(np.full(20, 10.0))
    >>> [round(difference_error(design, 0.5, 1.0, by), 3) for by in ("group", "row")]
    [0.265, 0.141]
    """
    n = design.sizes
    if by == "group":
        spread = tau**2 + sigma**2 / n
        return math.sqrt(2 / np.sum(1 / spread) + 2 / np.sum(1 / (spread + effect_sd**2)))
    n = n[n >= 2]
    if not n.size:
        return math.inf
    half = np.floor(n / 2)
    return float(np.sum(1 / (sigma**2 * (1 / half + 1 / (n - half)) + effect_sd**2)) ** -0.5)


def power_of(effect: float, error: float, freedom: float) -> float:
    """The probability that the 95% interval of an effect leaves out zero; freedom may be infinite (known variances).

    Examples
    --------
    >>> round(power_of(2.8, 1.0, math.inf), 3), round(power_of(0.0, 1.0, 8.0), 3)
    (0.8, 0.05)
    """
    from scipy.special import ndtr, ndtri, nctdtr, stdtrit  # noqa: I001

    if not math.isfinite(error) or freedom < 1:
        return 0.0  # nothing to compare
    distance = abs(effect) / error
    if math.isinf(freedom):
        reach = float(ndtri(1 - LEVEL / 2))
        return float(ndtr(distance - reach) + ndtr(-distance - reach))
    reach = float(stdtrit(freedom, 1 - LEVEL / 2))
    if distance > 30:
        return 1.0
    above = float(nctdtr(freedom, distance, reach))
    return 1.0 - above + (float(nctdtr(freedom, distance, -reach)) if distance < 3 else 0.0)  # nan where it is tiny


def power_at(design: StudyDesign, tau: float, sigma: float, aim: Aim, estimated: bool) -> float:
    """The power of a design to see the effect that is aimed at."""
    error = difference_error(design, tau, sigma, aim.by, aim.effect_sd)
    if not estimated:
        return power_of(aim.effect, error, math.inf)
    if aim.by == "group":
        return fit_power(aim.effect, design.groups, design.total, sigma, error)
    return power_of(aim.effect, error, degrees_of_freedom(design, aim.effect_sd))


def degrees_of_freedom(design: StudyDesign, effect_sd: float) -> float:
    """Those of the difference between halves of the rows of each group where the variances are estimated."""
    compared = design.sizes[design.sizes >= 2]
    return float(compared.size - 1 if effect_sd > 0 else compared.sum() - compared.size - 1)


@dataclass(frozen=True, eq=False, repr=False)
class PoolingPlan(Report):
    """Which designs of a study reach an aim, as `PoolingStudy.plan` returns it.

    Attributes
    ----------
    study : PoolingStudy
    aim : Aim
    reached : ndarray of shape (D, T)
        The posterior sd or the power of each design at each tau.
    """

    study: PoolingStudy
    aim: Aim
    reached: Array

    @property
    def title(self) -> str:
        return f"Designs with a {self.aim.words}"

    @property
    def _worst(self) -> tuple[Array, Array]:
        """Each design's value where it is worst, and the tau of that; at the aim's tau where it has one."""
        if math.isfinite(self.aim.tau):
            at = np.full(len(self.reached), int(np.argmin(np.abs(self.study.taus - self.aim.tau))))
        else:
            at = self.reached.argmin(axis=1) if self.aim.kind == "power" else self.reached.argmax(axis=1)
        return self.reached[np.arange(at.size), at], self.study.taus[at]

    @property
    def table(self) -> pandas.DataFrame:
        """Every design: groups, rows (of a group), total rows, what it reaches (`power`, or `sd`), at which tau (the
        worst, unless one was asked for), whether that is enough, and whether it has the fewest rows among the designs
        with as many groups that do (`smallest`).
        """
        import pandas as pd

        value, tau = self._worst
        name = "power" if self.aim.kind == "power" else "sd"
        designs = self.study.layouts
        frame = pd.DataFrame({
            "groups": [design.groups for design in designs], "rows": [design.rows for design in designs],
            "total_rows": [design.total for design in designs], name: value, "tau": tau,
            "enough": [self.aim.reached(float(own)) for own in value],
        })  # fmt: skip
        smallest = frame[frame["enough"]].groupby("groups")["total_rows"].idxmin()
        frame["smallest"] = frame.index.isin(smallest)
        return frame

    @property
    def shown(self) -> pandas.DataFrame:
        """The smallest designs, or, where none is enough, all."""
        frame = self.table
        if frame["smallest"].any():
            frame = frame[frame["smallest"]].drop(columns=["enough", "smallest"])
        name = "power" if self.aim.kind == "power" else "sd"
        return frame.assign(**{name: [float(f"{value:.4g}") for value in frame[name]]}).reset_index(drop=True)

    @property
    def best(self) -> Any:
        """The design that does with the fewest rows in all: with .groups and .rows; None where none does."""
        at = self._best_at
        return None if at is None else next(self.table.loc[[at]].itertuples(index=False, name="Design"))

    @property
    def _best_at(self) -> int | None:
        """The position of that design."""
        frame = self.table
        total = np.where(frame["enough"], frame["total_rows"], np.inf)
        return int(total.argmin()) if np.isfinite(total).any() else None

    @property
    def sentences(self) -> list[str]:
        """What to do."""
        taus = self.study.taus
        tau = float(taus[0]) if taus.size == 1 else self.aim.tau
        where = f"at tau = {tau:.3g}" if math.isfinite(tau) else "at every tau of the study"
        best, at = self.best, self._best_at
        if at is None:
            lines = [f"No design of the grid reaches a {self.aim.words} {where}."]
            return [line for line in (*lines, _nearest(self), _floor(self), _few_groups(self)) if line]
        lines = [
            f"Fewest rows in all: {self.study.layouts[at]} ({best.total_rows:,} rows), which reach a "
            f"{self.aim.words} {where}."
        ]
        left_out = sorted(set(self.table["groups"]) - set(self.table.loc[self.table["enough"], "groups"]))
        if left_out:
            lines.append(f"Not with {listed(left_out, 'or')} groups, with as many rows as the grid has.")
        return [line for line in (*lines, _floor(self), _few_groups(self)) if line]

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """What each design reaches against its rows a group, a line for each number of groups, and what is wanted."""
        from partialpool.present import study as pictures

        frame = self.table
        name = "power" if self.aim.kind == "power" else "sd"
        label = (
            "power"
            if name == "power"
            else f"posterior sd of {'a group' if self.aim.kind == 'group' else 'the population'}'s mean"
        )
        lines = [
            (groups, *(own[column].to_numpy(dtype=float) for column in ("rows", name)), own["smallest"].to_numpy())
            for groups in sorted(set(frame["groups"].tolist()))
            for own in [frame[frame["groups"] == groups]]
        ]  # fmt: skip
        return pictures.plan_lines(lines, self.aim.value, label, self.title, ax, figsize)


def make_plan(
    study: PoolingStudy, precision: Any, of: str, power: Any, effect: Any, by: str, effect_sd: Any, tau: Any
) -> PoolingPlan:
    """See `PoolingStudy.plan`."""
    aim = _read_aim(study, precision, of, power, effect, by, effect_sd, tau)
    reached = np.empty((len(study.layouts), study.taus.size))
    for i, design in enumerate(study.layouts):
        for k, own in enumerate(study.taus):
            if aim.kind == "power":
                reached[i, k] = power_at(design, float(own), study.sigma, aim, study.estimated)
            else:
                errors = study.errors[i][k]
                reached[i, k] = errors.sd_group if aim.kind == "group" else errors.sd_mean
    return PoolingPlan(study, aim, reached)


def _read_aim(
    study: PoolingStudy, precision: Any, of: str, power: Any, effect: Any, by: str, effect_sd: Any, tau: Any
) -> Aim:
    where = math.nan if tau is None else _one("tau", tau)
    if tau is not None and not np.isclose(study.taus, where, rtol=1e-6, atol=1e-12).any():
        known = ", ".join(f"{value:g}" for value in study.taus)
        raise ModelError(f"tau={where:g} is not in the study, which has {known}; give it to pp.simulate_pooling too.")
    if (precision is None) == (power is None):
        raise ModelError(
            "Ask for precision= (a posterior sd) or for power= with effect= (the difference to be seen), one of them."
        )
    if precision is not None:
        if effect is not None:
            raise ModelError("effect= goes with power=; precision= has no effect to be seen.")
        _choice("of", of, ("group", "mean"))
        return Aim(of, _above_zero("precision", precision), tau=where)
    wanted = _one("power", power)
    if not LEVEL < wanted < 1:
        raise ModelError(f"power={wanted:g} is a probability between {LEVEL:g} and 1; 0.8 is usual.")
    if effect is None:
        raise ModelError("power= needs effect=: the true difference, in units of the response, that is to be seen.")
    size, spread = abs(_one("effect", effect)), _one("effect_sd", effect_sd)
    if size == 0:
        raise ModelError("effect=0: no study can see a difference that is not there.")
    if spread < 0:
        raise ModelError(f"effect_sd={spread:g}, but it is an sd: 0 or more.")
    _choice("by", by, ("group", "row"))
    return Aim("power", wanted, size, by, spread, where)


def _one(name: str, value: Any) -> float:
    found = numbers(name, value)
    if len(found) > 1:
        raise ModelError(f"{name} has {len(found)} values; it takes one.")
    return found[0]


def _above_zero(name: str, value: Any) -> float:
    number = _one(name, value)
    if number <= 0:
        raise ModelError(f"{name}={number:g}, but no study makes an sd of 0: give a number above it.")
    return number


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{name}={value!r} is unknown. {did_you_mean(str(value), choices)}")


def _nearest(plan: PoolingPlan) -> str:
    """The design that comes nearest."""
    value, tau = plan._worst
    power = plan.aim.kind == "power"
    at = int(value.argmax() if power else value.argmin())
    reached = f"a power of {value[at]:.0%}" if power else f"an sd of {value[at]:.4g}"
    return f"The nearest is {plan.study.layouts[at]} with {reached} (tau = {tau[at]:.3g})."


def _floor(plan: PoolingPlan) -> str:
    """What more rows in a group can't buy, where that is what some designs lack."""
    aim, study = plan.aim, plan.study
    tau = aim.tau if math.isfinite(aim.tau) else float(study.taus.max())
    frame = plan.table
    lacking = sorted(set(frame["groups"]) - set(frame.loc[frame["enough"], "groups"]))
    if not lacking:
        return ""
    if aim.kind == "mean":
        need = math.ceil((tau / aim.value) ** 2 * (1 - 1e-12))
        if need <= lacking[0]:
            return ""
        least = f"{need:,} groups at the least, however many rows they have: its sd is never below tau / sqrt(groups)."
        return f"At tau = {tau:.3g} the population's mean needs {least}"
    if aim.kind == "power":
        return _power_floor(plan, lacking, tau)
    if aim.kind == "group" and plan.best is None:
        need = math.ceil((study.sigma / aim.value) ** 2)
        about = "about " if study.estimated else ""
        return f"With {about}{need:,} rows a group no pooling is needed for this: an sd of sigma / sqrt(rows)."
    return ""


def _power_floor(plan: PoolingPlan, lacking: list[int], tau: float) -> str:
    """The numbers of groups with which no number of rows is enough."""
    aim = plan.aim
    spread = tau if aim.by == "group" else aim.effect_sd
    if spread == 0:
        return ""
    hopeless = []
    for groups in lacking:
        endless = StudyDesign(np.full(groups, 1e9))
        if not aim.reached(power_at(endless, tau, plan.study.sigma, aim, plan.study.estimated)):
            hopeless.append(groups)
    if not hopeless:
        return ""
    least = "2 tau / sqrt(groups)" if aim.by == "group" else "effect_sd / sqrt(groups)"
    at = f"at tau = {tau:.3g} " if aim.by == "group" else ""
    return (
        f"More rows do not make up for few groups: with {listed(hopeless, 'or')} groups no number of rows is enough, "
        f"since {at}the difference's standard error is at least {least}."
    )


def _few_groups(plan: PoolingPlan) -> str:
    """Whose interval the power is of, where groups are few."""
    few = min(design.groups for design in plan.study.layouts) < FEW_GROUPS
    if plan.aim.kind != "power" or not few or not plan.study.estimated:
        return ""
    if plan.aim.by == "group":
        return (
            'The power is that of pp.fit("y ~ treated + (1 | group)") with its default priors; where groups are few it '
            "is lower than that of a t test on the groups' means."
        )
    if plan.aim.effect_sd == 0:
        return ""
    return (
        f"The power is that of Student's t on the groups' own differences; with fewer than {FEW_GROUPS} groups the "
        "interval of pp.fit is wider, and its power lower."
    )
