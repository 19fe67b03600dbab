"""The answers under other priors, side by side: reweighted where the weights allow it, refitted where not.

Under other priors the posterior at a point of the fit is as many times more likely as its new prior is to its old one:
importance weights, for which nothing is computed but priors (`reweight`). They are trusted where Pareto's k is below
0.7 and the effective sample size 400 or more (half of the fit's own where that is less, and then 200), and where the
old prior leaves out nothing that the new one has. Elsewhere the model is fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.alternatives import (
    AS_FITTED,
    Alternative,
    InverseGammaVariance,
    alternatives,
    resolved,
    sd_slots,
)
from partialpool.criticism.reweight import (
    ENOUGH,
    GOOD_K,
    draw_points,
    other_priors,
    over_threads,
    points_of,
    refit,
    reweighted_fit,
    same_points,
    smoothed,
    with_priors,
)
from partialpool.criticism.root_shrinkage import root_shrinkage
from partialpool.errors import PartialPoolError
from partialpool.inference.progress import Progress
from partialpool.model import Model, unknown_parameter
from partialpool.posterior.groups import effect_summary, factor_terms, layout_of, mean_effects, shrinkage_factors
from partialpool.posterior.posterior import Posterior
from partialpool.present.report import Report
from partialpool.spec.distributions import Distribution

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

REWEIGHTED, REFITTED, FAILED = "reweighted", "refitted", "failed"


@dataclass(frozen=True, eq=False)
class Answer:
    """The posterior under one set of priors.

    how : it was obtained; fit : None where it could not be, and why. k, ess : Pareto's, and the effective sample size.
    drawn : log weights of the fit's own draws, where it was reweighted.
    """

    name: str
    how: str
    fit: Posterior | None
    k: float = math.nan
    ess: float = math.nan
    why: str = ""
    drawn: Array | None = None


def prior_sensitivity(
    fit: Posterior,
    priors: str | Sequence[str] | Mapping[str, Any],
    *,
    conclusion: str | None = None,
    threads: int = 1,
    progress: bool | None = None,
    seed: int | None = None,
) -> PriorSensitivity:
    """The answers of a fit under other priors; see `sensitivity`."""
    wanted = alternatives(fit.model, priors)
    if conclusion is not None:
        fit.probability(conclusion)  # refused here, where it cannot be read
    found: list[Answer] = [_reweighted(fit, alternative, threads) for alternative in wanted]
    lacking = [at for at, answer in enumerate(found) if answer.fit is None]
    with Progress(progress) as bar:
        bar.update(0.0, f"{len(lacking)} refits")

        def run(number: int) -> None:
            at = lacking[number]
            found[at] = _refitted(fit, wanted[at], fit.seed if seed is None else seed)
            done = sum(found[own].how != REFITTED or found[own].fit is not None for own in lacking)
            bar.update(done / len(lacking), f"{len(lacking)} refits")

        over_threads(run, len(lacking), threads)
    k = fit.accuracy.pareto_k
    base = Answer(AS_FITTED, AS_FITTED, fit, math.nan if k is None else k, _least_ess(fit))
    return PriorSensitivity(fit, (base, *found), conclusion)


def _reweighted(fit: Posterior, alternative: Alternative, threads: int) -> Answer:
    """The fit's own points under other priors; no fit where the weights do not allow it."""
    model = with_priors(fit.model, alternative.priors)
    if dict(model.priors) == dict(fit.model.priors) and same_points(fit.model, model):
        k = fit.accuracy.pareto_k
        return Answer(alternative.name, AS_FITTED, fit, math.nan if k is None else k, _least_ess(fit))
    if not same_points(fit.model, model) or not _covered(fit.model, model):
        return Answer(alternative.name, REFITTED, None)
    points, drawn = points_of(fit, likelihood=False, threads=threads), draw_points(fit)
    if fit.model.exact and len(points.theta) < 1000 < len(fit.result.draws_theta):
        points = drawn
    ratio, quadratic = other_priors(points, model)
    weights = smoothed(points, ratio)
    own = smoothed(points, np.zeros(len(ratio)))
    if not (weights.k < GOOD_K and weights.ess >= min(ENOUGH, max(0.5 * own.ess, 200.0))):
        return Answer(alternative.name, REFITTED, None, weights.k, weights.ess)
    draws = smoothed(drawn, other_priors(drawn, model)[0])
    made = reweighted_fit(fit, points, model, weights, quadratic, draws)
    return Answer(alternative.name, REWEIGHTED, made, weights.k, weights.ess, drawn=draws.log_weights)


def _covered(old: Model, new: Model) -> bool:
    """Whether the old priors leave out nothing that the new ones have."""
    floor = {slot.name: 0.0 if slot.kind in ("sd", "sigma", "family") else -math.inf for slot in old.priors.slots}
    pairs = [(floor[name], old.priors[name].support, new.priors[name].support) for name in old.priors]
    return all(max(one[0], low) <= max(two[0], low) and one[1] >= two[1] for low, one, two in pairs)


def _refitted(fit: Posterior, alternative: Alternative, seed: int) -> Answer:
    """A fit under other priors; one that the engines do not know is reached by way of one that they do."""
    model = with_priors(fit.model, alternative.priors)
    carried: dict[str, Distribution | str] = {
        name: prior.carrier for name, prior in alternative.priors.items() if isinstance(prior, InverseGammaVariance)
    }
    try:
        if carried:
            other = refit(fit, with_priors(model, resolved(model, carried)), seed=seed)
            found = replace(_reweighted(other, alternative, 1), how=REFITTED)
            return found if found.fit else replace(found, how=FAILED, why="its weights could not be trusted")
        made = refit(fit, model, seed=seed)
    except (PartialPoolError, np.linalg.LinAlgError) as error:
        return Answer(alternative.name, FAILED, None, why=str(error))
    k = made.accuracy.pareto_k
    return Answer(alternative.name, REFITTED, made, math.nan if k is None else k, _least_ess(made))


def _least_ess(fit: Posterior) -> float:
    return min((value for value in fit.accuracy.ess.values() if math.isfinite(value)), default=math.inf)


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class PriorSensitivity(Report):
    """The answers under other priors, side by side. Made by ``fit.sensitivity("hyper")``.

    Attributes
    ----------
    source : Posterior
        The fit.
    answers : tuple of Answer
        The fit as it stands, then each alternative with its own fit.
    conclusion : str or None
        The statement whose probability is shown.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (1 | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> table = fit.sensitivity(["half-normal", "PC"], conclusion="Days > 8").table
    >>> table.loc[("sd(Intercept|Subject)", "PC"), "how"]
    'reweighted'
    """

    source: Posterior
    answers: tuple[Answer, ...]
    conclusion: str | None

    @property
    def title(self) -> str:
        """What this is."""
        return f"The answers under other priors: {self.source.model.design.terms.formula}"

    @property
    def priors(self) -> pandas.DataFrame:
        """The priors that differ from the fit's: a row each, with the alternative, the parameter and its prior."""
        import pandas as pd

        old = self.source.model.priors
        rows = [
            (answer.name, name, str(old[name]), str(prior))
            for answer in self.answers
            if answer.fit is not None
            for name, prior in answer.fit.model.priors.items()
            if prior != old[name]
        ]
        return pd.DataFrame(rows, columns=["alternative", "parameter", "as_fitted", "prior"])

    @cached_property
    def _table(self) -> Any:
        import pandas as pd

        parts = []
        base = self.source.summary()
        for answer in self.answers:
            if answer.fit is None:
                continue
            own = answer.fit.summary()
            frame = pd.DataFrame({name: own[name] for name in ("mean", "sd", "q05", "q50", "q95")})
            frame["moved"] = (own["q50"] - base["q50"]) / base["sd"]
            frame["error"] = own["sd"] / np.sqrt(own["ess"])
            extra = _shrinkage_rows(self, answer)
            if self.conclusion is not None:
                share = answer.fit.probability(self.conclusion)
                worth = min(answer.ess, len(answer.fit.result.draws_theta))
                error = math.sqrt(max(share * (1 - share), 0.25 / worth) / worth)
                extra[f"P({self.conclusion})"] = {"mean": share, "error": error}
            frame = pd.concat([frame, pd.DataFrame.from_dict(extra, orient="index")]) if extra else frame
            frame["how"], frame["pareto_k"], frame["alternative"] = answer.how, answer.k, answer.name
            parts.append(frame.rename_axis("quantity").reset_index())
        whole = pd.concat(parts, ignore_index=True)
        order = {name: at for at, name in enumerate(parts[0]["quantity"])}
        whole = whole.sort_values("quantity", key=lambda names: names.map(order), kind="stable")
        return whole.set_index(["quantity", "alternative"])

    @property
    def table(self) -> pandas.DataFrame:
        """By quantity and alternative.

        Quantities: every parameter; ``shrinkage(term|factor)``, averaged over the groups; the probability of the
        conclusion. Columns: mean, sd, q05, q50, q95; moved, how far the median went, in posterior sds of the fit;
        error, the Monte Carlo error of the mean; how (as fitted, reweighted, refitted) and Pareto's k.
        """
        frame: pandas.DataFrame = self._table.copy()
        return frame

    @cached_property
    def groups(self) -> pandas.DataFrame:
        """Every group under every alternative, the most changed first.

        Columns: factor, group, term, alternative, mean of the effect and shrinkage, the same as fitted, and moved, the
        difference of the means in posterior sds of the fit.
        """
        import pandas as pd

        if not self.source.model.design.factors:
            return pd.DataFrame()
        base = _group_rows(self, self.answers[0])
        sds = np.concatenate([effect_summary(self.source, f, "effect").sd.ravel() for f in _factors(self.source)])
        parts = []
        for answer in self.answers[1:]:
            if answer.fit is None:
                continue
            own = _group_rows(self, answer)
            own.insert(3, "alternative", answer.name)
            own["mean_as_fitted"], own["shrinkage_as_fitted"] = base["mean"], base["shrinkage"]
            own["moved"] = (own["mean"] - base["mean"]) / np.where(sds > 0, sds, 1.0)
            parts.append(own)
        if not parts:
            return pd.DataFrame()
        whole = pd.concat(parts, ignore_index=True)
        return whole.sort_values("moved", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    @property
    def shown(self) -> pandas.DataFrame:
        """A row an alternative: how it was obtained, the sds, average shrinkage, what moved most, the conclusion."""
        from partialpool.criticism.prior_words import overview

        return overview(self)

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What moves, how it was obtained, and which alternatives to distrust."""
        from partialpool.criticism.prior_words import sentences

        return tuple(sentences(self))

    def plot(
        self, parameters: str | Sequence[str] | None = None, *, ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:  # fmt: skip
        """Median and 90% interval of parameters under every alternative.

        Parameters
        ----------
        parameters : str or sequence of str, optional
            The sds of groups by default, or what has other priors where there are none.
        ax : Axes, optional
            Where to draw one parameter.
        figsize : (width, height), optional
            In inches.

        Raises
        ------
        ModelError
            For an unknown parameter.
        """
        from partialpool.present.criticism_sensitivity import alternatives as draw

        names = [parameters] if isinstance(parameters, str) else list(parameters or _default_names(self))
        known = self.source.parameters
        for name in names:
            if name not in known:
                raise unknown_parameter(str(name), known)
        kept = [answer for answer in self.answers if answer.fit is not None]
        values = np.array(
            [[self._table.loc[(name, answer.name), ["q50", "q05", "q95"]] for answer in kept] for name in names],
            dtype=float,
        )
        return draw(names, [answer.name for answer in kept], [answer.how for answer in kept], values, ax, figsize)


def changed_parameters(table: PriorSensitivity) -> list[str]:
    """The parameters whose own priors some alternative changes."""
    changed = set(table.priors["parameter"])
    slots = table.source.model.priors.slots
    within = {name for slot in slots if slot.kind == "cor" and slot.name in changed for name in slot.addresses}
    return [name for name in table.source.parameters if name in changed | within]


def _default_names(table: PriorSensitivity) -> list[str]:
    sds, changed = [slot.name for slot in sd_slots(table.source.model)], changed_parameters(table)
    return (sds or changed or list(table.source.parameters))[:6]


def _factors(fit: Posterior) -> range:
    return range(len(fit.model.design.factors))


def shrinkages(table: PriorSensitivity, answer: Answer) -> list[Array]:
    """By factor, the shrinkage of each group (groups, terms) under one set of priors.

    Where the response is not Gaussian, that of crossed factors is known at few draws: for a reweighted answer those of
    the fit, under its weights, so that a difference is no noise.
    """
    assert answer.fit is not None
    fit, base = answer.fit, table.source
    out = [shrinkage_factors(fit, f) for f in _factors(fit)]
    if fit.model.exact or not fit.model.latent.n_root:
        return out
    drawn = answer.drawn
    own = base if drawn is not None else fit
    if "_root_shrinkage" not in own.__dict__:
        own.__dict__["_root_shrinkage"] = root_shrinkage(own)
    places, found = own.__dict__["_root_shrinkage"]
    weights = np.ones(len(places)) if drawn is None else np.exp(drawn[places] - drawn[places].max())
    for f, values in found.items():
        out[f] = np.tensordot(weights / weights.sum(), values, axes=1)
    return out


def _shrinkage_rows(table: PriorSensitivity, answer: Answer) -> dict[str, dict[str, float]]:
    """Average shrinkage of each term."""
    design = table.source.model.design
    out: dict[str, dict[str, float]] = {}
    for f, own in enumerate(shrinkages(table, answer)):
        for term, values in zip(factor_terms(design, f), own.T, strict=True):
            out[f"shrinkage({term}|{design.factors[f].name})"] = {"mean": float(values.mean())}
    return out


def _group_rows(table: PriorSensitivity, answer: Answer) -> pandas.DataFrame:
    """Factor, group, term, mean of the effect and shrinkage."""
    import pandas as pd

    fit = answer.fit
    assert fit is not None
    design, effects, layout = fit.model.design, mean_effects(fit), layout_of(fit.model)
    shares = shrinkages(table, answer)
    parts = []
    for f in _factors(fit):
        terms, labels = factor_terms(design, f), design.factors[f].labels
        parts.append(
            pd.DataFrame(
                {
                    "factor": design.factors[f].name,
                    "group": np.repeat(labels, len(terms)),
                    "term": np.tile(np.array(terms, dtype=object), len(labels)),
                    "mean": effects[layout.effects_of(f)].ravel(),
                    "shrinkage": shares[f].ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
