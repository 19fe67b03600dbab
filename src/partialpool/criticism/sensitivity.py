r"""How much the prior matters, and whether it and the data agree: power-scaling of prior and likelihood.

The posterior under ``p(theta, b)^a p(y | theta, b)^c`` is followed from a = c = 1: by its derivatives in a and in c,
which the importance weights of the fit's own points give exactly (`cumulative`; nothing is fitted again).

*What is scaled.* The prior is that of coefficients b and hyperparameters theta, each density as the user wrote it. The
likelihood is p(y | theta, b) with all group effects integrated out. The distribution of effects in the population of
groups is no prior here but a part of the likelihood: it is learned. Raising p(y | u, b) p(u | theta) with the effects u
left in would tell what more rows in the same groups would do; raised after integration, twice the likelihood is the
data twice, groups included, which is what the sds and the coefficients are learned from.

*Diagnosis.* In the normal case (prior precision P, likelihood precision F, the two apart by d) a doubling of the prior
moves the posterior mean by ``ln 2 d P F / (P + F)^(3/2)`` posterior sds, a doubling of the likelihood moves it as far
back, and the sd changes by ``-ln 2 / 2`` times the shares ``s = P / (P + F)`` and ``1 - s``. So opposite shifts measure
a conflict, changes of width how much each of the two brings; with c the geometric mean of the two shifts,

.. math:: z = \frac{c}{\ln 2 \sqrt{s (1 - s)}} = \frac{d}{\sqrt{1 / P + 1 / F}}

is the distance between prior and data in sds of that distance. A parameter is flagged where its posterior changes with
the prior (distance 0.05 or more per doubling, the threshold of Kallioinen et al.) or hardly changes with the likelihood
(below 0.05; half of what a parameter shows that the data alone determine, 0.08 to 0.1). It is a *prior-data conflict*
where the shifts are opposite and z is 2 or more; a *weak likelihood* where it hardly changes with the likelihood or the
prior brings a tenth or more of what is known; else the *prior matters*, though the data settle most. What changes most
with the prior of another parameter has the verdict of that one: the contradiction, if there is one, is there. A uniform
prior has no slope: it conflicts where the posterior piles up at its upper end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.cumulative import Rates, rates
from partialpool.criticism.left_out import checked_threads
from partialpool.criticism.reweight import Points, Slope, likelihood_slope, nothing, points_of, prior_slopes
from partialpool.errors import ModelError
from partialpool.posterior.predict import need_rows
from partialpool.present.report import Report
from partialpool.present.tables import listed
from partialpool.spec.distributions import Flat, Uniform

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.criticism.prior_table import PriorSensitivity
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Change per doubling from which prior and likelihood count, and the distance from which they are in conflict.
THRESHOLD, CONFLICT = 0.05, 2.0
#: Share of the posterior in the upper tenth of a uniform prior's interval from which that end cuts it off.
CUT_OFF = 0.2
#: Share of the prior in what is known from which the likelihood is called weak, and shift that is worth telling.
WEAK_FROM, TOLD_SHIFT = 0.1, 0.05
#: Parameters of which a sentence is said.
MOST_TOLD = 4
CONFLICTING, WEAK, MATTERS, FINE = "prior-data conflict", "weak likelihood", "prior matters", "-"
ALL, LIKELIHOOD, HYPER, COEFFICIENTS = range(4)


def sensitivity(
    fit: Posterior,
    priors: str | Sequence[str] | Mapping[str, Any] | None = None,
    *,
    conclusion: str | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    seed: int | None = None,
) -> PowerScaling | PriorSensitivity:
    """How much the answers depend on the priors.

    Parameters
    ----------
    fit : Posterior
    priors : "hyper", sequence of names, or mapping, optional
        Nothing: power-scaling of prior and likelihood. "hyper", or some of the names "half-Cauchy", "half-normal",
        "half-t", "uniform", "inverse-gamma" and "PC": the answers under these priors of the group sds. A mapping is one
        alternative, ``{"sd(Subject)": pp.HalfNormal(10)}``, or several by name:
        ``{"tight": {"sd": "HalfNormal(1)"}, "wide": {"sd": "HalfCauchy(50)"}}``.
    conclusion : str, optional
        A statement about parameters, ``"Days > 5"``, whose probability is shown under each alternative.
    threads : int, optional
        Cores to use; those of the fit by default.
    progress : bool, optional
        Show a bar for refits that take over two seconds.
    seed : int, optional
        Of refits; that of the fit by default.

    Returns
    -------
    PowerScaling, or PriorSensitivity where there are `priors`

    Raises
    ------
    ModelError, PriorError
        For an unknown alternative, a prior that a parameter cannot have, or a fit without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> sensitivity(fit).table["diagnosis"].unique().tolist()
    ['-']
    """
    need_rows(fit, "sensitivity()")
    cores = checked_threads(fit, threads)
    if priors is None:
        if conclusion is not None:
            raise ModelError(
                "conclusion= is shown under alternative priors; say which, as in sensitivity('hyper', "
                f"conclusion={conclusion!r})."
            )
        return power_scaling(fit, cores)
    from partialpool.criticism.prior_table import prior_sensitivity

    if seed is not None and (not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0):
        raise ModelError(f"seed = {seed!r} is not possible; give a whole number of at least 0, or leave it out.")
    return prior_sensitivity(fit, priors, conclusion=conclusion, threads=cores, progress=progress, seed=seed)


def power_scaling(fit: Posterior, threads: int) -> PowerScaling:
    """Power-scaling of prior and likelihood; see the head of this module."""
    points = points_of(fit, threads=threads)
    own = prior_slopes(points)
    kinds = {slot.name: slot.kind for slot in fit.model.priors.slots}
    hyper = [slope for name, slope in own.items() if kinds[name] not in ("coefficient", "intercept")]
    other = [slope for name, slope in own.items() if kinds[name] in ("coefficient", "intercept")]
    slopes = [_sum(points, [*hyper, *other]), likelihood_slope(points), _sum(points, hyper), _sum(points, other)]
    found = rates(points, [*slopes, *own.values()])
    return PowerScaling(fit, found, tuple(own), _cut_off(points))


def _sum(points: Points, slopes: Sequence[Slope]) -> Slope:
    return reduce(add, slopes, nothing(points))


def _cut_off(points: Points) -> tuple[str, ...]:
    """Parameters with a uniform prior at whose upper end the posterior piles up."""
    out = []
    names = points.model.hyperparameters.names
    for name, values in zip(names, points.hyper.T, strict=True):
        prior = points.model.priors.get(name)
        if isinstance(prior, Uniform):
            share = float(points.weights @ (values > prior.high - 0.1 * (prior.high - prior.low)))
            if share > CUT_OFF:
                out.append(name)
    return tuple(out)


@dataclass(frozen=True, eq=False, repr=False)
class PowerScaling(Report):
    """How fast the posterior changes with the weight of the prior, and of the data. Made by ``fit.sensitivity()``.

    Attributes
    ----------
    source : Posterior

    Examples
    --------
    >>> import partialpool as pp
    >>> data = pp.datasets.load("sleepstudy")
    >>> fit = pp.fit("Reaction ~ Days + (1 | Subject)", data, priors={"Days": pp.Normal(0, 1)}, seed=1)
    >>> print(fit.sensitivity().table.loc["Days", "diagnosis"])
    prior-data conflict
    """

    source: Posterior
    _rates: Rates
    _priors: tuple[str, ...]
    _cut: tuple[str, ...]

    @property
    def title(self) -> str:
        """What this is."""
        return f"Sensitivity to the prior: {self.source.model.design.terms.formula}"

    @cached_property
    def _table(self) -> Any:
        import pandas as pd

        own = self._rates
        frame = pd.DataFrame(
            {
                "prior": own.change[ALL],
                "likelihood": own.change[LIKELIHOOD],
                "hyperpriors": own.change[HYPER],
                "coefficients": own.change[COEFFICIENTS],
                "prior_shift": own.shift[ALL],
                "likelihood_shift": own.shift[LIKELIHOOD],
                "prior_share": self._shares,
                "error": np.maximum(own.error[ALL], own.error[LIKELIHOOD]),
            },
            index=pd.Index(self.source.parameters, name="parameter"),
        )
        frame["diagnosis"] = self._diagnoses(frame)
        return frame

    @property
    def _shares(self) -> Array:
        prior, likelihood = (np.maximum(-self._rates.narrowing[k], 0.0) for k in (ALL, LIKELIHOOD))
        total = prior + likelihood
        return np.asarray(np.where(total > 0, prior / np.where(total > 0, total, 1.0), math.nan))

    def _diagnoses(self, frame: Any) -> list[str]:
        moved = frame["prior"] >= THRESHOLD
        share = np.clip(np.nan_to_num(frame["prior_share"], nan=0.5), 0.05, 0.95)
        opposite = frame["prior_shift"] * frame["likelihood_shift"] < 0
        product = np.abs(frame["prior_shift"] * frame["likelihood_shift"])
        distance = np.sqrt(product) / (math.log(2) * np.sqrt(share * (1 - share)))
        conflict = (moved & opposite & (distance >= CONFLICT)) | frame.index.isin(self._cut)
        weak = (frame["likelihood"] < THRESHOLD) | (moved & ~(frame["prior_share"] < WEAK_FROM))
        said = np.select([conflict, weak, moved], [CONFLICTING, WEAK, MATTERS], FINE)
        own = {str(name): str(verdict) for name, verdict in zip(frame.index, said, strict=True)}
        out = []
        for name, verdict in own.items():
            cause = self._leading(name) if moved[name] and name not in self._cut else ""
            through = own.get(cause, verdict)
            out.append(verdict if through == FINE else through)
        return out

    @cached_property
    def by_prior(self) -> pandas.DataFrame:
        """Change of each parameter (rows) with the weight of each prior alone (columns), as the column `prior`."""
        import pandas as pd

        own = self._rates.change[COEFFICIENTS + 1 :]
        return pd.DataFrame(own.T, index=pd.Index(self.source.parameters, name="parameter"), columns=list(self._priors))

    def _leading(self, name: str) -> str:
        """The prior that a parameter changes with most."""
        return "" if self.by_prior.empty else str(self.by_prior.loc[name].idxmax())

    @property
    def table(self) -> pandas.DataFrame:
        """A row a parameter.

        Columns: prior, likelihood, the change of the posterior per doubling of the weight of all priors, and of the
        likelihood (cumulative Jensen-Shannon distance); hyperpriors, coefficients, that of these priors alone;
        prior_shift, likelihood_shift, where the posterior goes meanwhile, in posterior sds; prior_share, the share
        that the prior has in what is known, by changes of width (nan where there is none); error, the Monte Carlo error
        of the changes; diagnosis.
        """
        frame: pandas.DataFrame = self._table.copy()
        return frame

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without the error, with as many digits as are read."""
        frame: pandas.DataFrame = self._table.drop(columns=["error"])
        forms = dict.fromkeys(["prior", "likelihood", "hyperpriors", "coefficients"], "{:.3f}")
        forms |= {"prior_shift": "{:+.2f}", "likelihood_shift": "{:+.2f}", "prior_share": "{:.0%}"}
        for name, form in forms.items():
            frame[name] = ["" if math.isnan(value) else form.format(value) for value in frame[name]]
        return frame

    @property
    def flagged(self) -> tuple[str, ...]:
        """The parameters with a diagnosis."""
        return tuple(str(name) for name in self._table.index[self._table["diagnosis"] != FINE])

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say, and what to do."""
        out = self._verdicts()
        if not out and len(self._table):
            worst = str(self._table["prior"].idxmax())
            out.append(
                f"The data speak louder than the priors everywhere: {worst} changes most with the prior, by "
                f"{_rate(self._table.loc[worst, 'prior'])} per doubling of its weight (from {THRESHOLD} it counts)."
            )
        flat = self._without_slope
        if flat:
            has = "has" if len(flat) == 1 else "have"
            out.append(
                f"{listed(flat)} {has} a flat prior, which no power changes: to see what it does, use "
                f"{self._others(flat)}."
            )
        groups = " Group effects are integrated out: their population is learned, and is no prior here."
        out.append(
            "prior, likelihood: how much the posterior changes per doubling of the weight of either (from "
            f"{THRESHOLD} it counts); shifts in posterior sds.{groups * bool(self.source.model.design.factors)}"
        )
        return tuple(out)

    def _verdicts(self) -> list[str]:
        """A sentence for the worst; what changes most with the prior of one of these is named with it."""
        table = self._table.loc[list(self.flagged)]
        with_it: dict[str, list[str]] = {}
        for name in self.flagged:
            cause = self._leading(name) if table.loc[name, "prior"] >= THRESHOLD and name not in self._cut else name
            with_it.setdefault(cause if cause in self.flagged else name, []).append(name)
        order = sorted(
            with_it, key=lambda name: (table.loc[name, "diagnosis"] != CONFLICTING, -table.loc[name, "prior"])
        )
        out = []
        for name in order[:MOST_TOLD]:
            others = [other for other in with_it[name] if other != name]
            move = "moves" if len(others) == 1 else "move"
            also = f" {_few(others)} {move} most with the same prior." if others else ""
            out.append(self._about(name) + also)
        if len(order) > MOST_TOLD:
            out.append(f"{len(order) - MOST_TOLD} more have a diagnosis, see the table: {_few(order[MOST_TOLD:])}.")
        return out

    @property
    def _without_slope(self) -> list[str]:
        priors = self.source.model.priors
        return [name for name in priors if isinstance(priors[name], Flat | Uniform)]

    def _about(self, name: str) -> str:
        row = self._table.loc[name]
        if name in self._cut:
            prior = self.source.model.priors[name]
            return (
                f"{name}: prior-data conflict. Its prior, {prior}, ends where the data would have it: the posterior "
                "piles up at the upper end. Let the prior reach further."
            )
        cause, priors = self._leading(name), self.source.model.priors
        told = f"the prior of {cause}, {priors[cause]}," if cause else "the prior"
        effect = f"Twice the weight of the priors would {self._effect(name)}"
        if row["diagnosis"] == CONFLICTING:
            return (
                f"{name}: prior-data conflict. {effect}, twice the data would move it "
                f"{_moved(row['likelihood_shift'])}; it is {told} that the data contradict most. Check its location "
                f"and scale against the units of the data, or widen it{self._default_of(cause)}."
            )
        if row["prior"] < THRESHOLD:
            own = next(
                (s.name for s in priors.slots if name == s.name or (s.kind == "cor" and name in s.addresses)), ""
            )
            source = f"its prior, {priors[own]}," if own else "the model"
            return (
                f"{name}: weak likelihood. Twice the data would hardly change what is known of it "
                f"({_rate(row['likelihood'])}). What is reported of it comes from {source} not from the data."
                f"{self._more(name)}"
            )
        share, show = row["prior_share"], f"show the answers under others ({self._others([cause])})"
        if row["diagnosis"] == MATTERS:
            return f"{name}: the data settle most of it, but {told} matters. {effect}; {show}.{self._more(name)}"
        part = f" (about {share:.0%} of what is known comes from priors)" if share >= WEAK_FROM else ""
        return (
            f"{name}: weak likelihood. The data alone do not settle it: {told} matters{part}. {effect}. Choose that "
            f"prior with care, and {show}.{self._more(name)}"
        )

    def _effect(self, name: str) -> str:
        """What twice the weight of all priors would do to a parameter."""
        shift = float(self._table.loc[name, "prior_shift"])
        if abs(shift) >= TOLD_SHIFT:
            return f"move it {_moved(shift)}"
        width = float(self._rates.narrowing[ALL][self.source.parameters.index(name)])
        return f"make its interval {abs(width):.0%} {'narrower' if width < 0 else 'wider'}"

    def _others(self, names: Sequence[str]) -> str:
        """How to see what other priors of these parameters would do."""
        priors = self.source.model.priors
        kinds = {slot.name: slot.kind for slot in priors.slots}
        other = next((name for name in names if name in kinds and kinds[name] != "sd"), "")
        calls = ["sensitivity('hyper')"] if any(kinds.get(name) == "sd" for name in names) else []
        calls += [f"sensitivity({{{other!r}: ...}})"] if other else []
        return " and ".join(calls) or "sensitivity({...})"

    def _default_of(self, name: str) -> str:
        priors = self.source.model.priors
        if name not in priors or priors.source(name) == "default":
            return ""
        return f" (the default is {next(slot.default for slot in priors.slots if slot.name == name)})"

    def _more(self, name: str) -> str:
        """How many groups an sd or a correlation is learned from, where they are few."""
        factors = {factor.name: len(factor.labels) for factor in self.source.model.design.factors}
        inside = name.rpartition("|")[2].removesuffix(")") if name.startswith(("sd(", "cor(")) else ""
        count = factors.get(inside, 99)
        return f" It is learned from {count} groups of {inside}: more groups would help, more rows hardly." * (
            count < 20
        )

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Changes with prior and likelihood, a line a parameter.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw.
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present.criticism_sensitivity import power_scaling

        table = self._table
        return power_scaling(
            [str(name) for name in table.index], table["prior"].to_numpy(), table["likelihood"].to_numpy(),
            table["diagnosis"].tolist(), THRESHOLD, ax, figsize,
        )  # fmt: skip


def _moved(shift: float) -> str:
    return f"{abs(shift):.2f} posterior sds {'up' if shift > 0 else 'down'}"


def _few(names: Sequence[str]) -> str:
    return listed(names) if len(names) <= MOST_TOLD + 1 else f"{', '.join(names[:MOST_TOLD])} and others"


def _rate(change: float) -> str:
    return f"{change:.3f}" if change >= 5e-4 else "less than 0.001"
