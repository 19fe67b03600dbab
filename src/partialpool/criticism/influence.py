r"""What each group does to the answers: the posterior without it, by importance weights, refitted where these fail.

The posterior without the rows of a group g is the posterior with them over ``p(y_g | y_rest, s)`` at each node s (the
densities of `left_out`, all that can be integrated out integrated out), normalised. The weights are Pareto-smoothed;
where their k is above 0.7, or too little of the sample is left, the model is fitted again without the group.

*Coefficients of a Gaussian response.* They are no part of a node: given theta, b is normal with precision Q and
``Q m = c`` (`reweight`). Without the group it is normal again, with precision ``Q - F_g`` and linear term ``c - c_g``,
where F_g and c_g are those of the group's own rows where groups are independent given theta and b; else the other rows'
own Q and c are computed. Either is done at some nodes only: what is found there goes with m, whose mean over all of
them is known, and is regressed on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.left_out import BLOCK_NUMBERS, Conditional, Nodes, checked_threads, nodes_of_fit
from partialpool.criticism.reweight import GOOD_K, over_threads, refit
from partialpool.criticism.without import Coefficients, coefficients_without
from partialpool.errors import ModelError, PartialPoolError
from partialpool.inference.importance import (
    effective_sample_size,
    pareto_smooth,
    systematic_resample,
    weighted_moments,
    weighted_quantile,
)
from partialpool.inference.progress import Progress
from partialpool.model import unknown_parameter
from partialpool.posterior.groups import random_stream
from partialpool.posterior.predict import need_rows
from partialpool.posterior.statement import probability
from partialpool.posterior.summaries import node_weights
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

WEIGHTED, REFITTED, FAILED = "reweighted", "refitted", "failed"
#: Effective sample size below which weights are not enough.
LEAST_ESS = 100.0
#: Nodes at which a group's part in the coefficients is taken, and draws behind a conclusion.
NODES, DRAWS = 128, 1000
#: A group stands out where it moves something by more than OUTSTANDING / sqrt(groups) posterior sds (Belsley, Kuh and
#: Welsch, 1980, for single rows), and at least by LEAST.
OUTSTANDING, LEAST = 2.0, 0.2
#: Groups and parameters of a figure.
MOST_GROUPS, MOST_PARAMETERS = 30, 5
#: Stream of random numbers of the fit's seed.
INFLUENCE = 63


@dataclass(frozen=True, eq=False)
class Without:
    """The answers without one group.

    location : mean of a coefficient, median of another parameter; sd : by parameter; positive : of each coefficient,
    the probability that it is above 0; probability : of the conclusion.
    """

    location: Array
    sd: Array
    positive: Array
    probability: float = math.nan


def influence(
    fit: Posterior,
    factor: str | None = None,
    *,
    conclusion: str | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> Influence:
    """What leaving each group out does to coefficients and hyperparameters.

    Parameters
    ----------
    fit : Posterior
        With its rows.
    factor : str, optional
        The grouping factor; may be left out where there is one.
    conclusion : str, optional
        A statement about parameters, ``"Days > 5"``, whose probability without each group is shown.
    threads : int, optional
        Cores to use, and refits at a time; those of the fit by default. No result depends on it.
    progress : bool, optional
        Show a bar past two seconds: always, never, or (by default) on a terminal.

    Returns
    -------
    Influence

    Raises
    ------
    ModelError
        Where the model has no such factor or the factor a single group, for a statement that cannot be read, or a fit
        saved without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> influence(fit).table.index[0]
    '332'
    """
    need_rows(fit, "influence()")
    if not fit.model.design.factors:
        raise ModelError("influence() leaves out groups, and this model has none.")
    position = fit._factor(factor)
    count = len(fit.model.design.factors[position].labels)
    name = fit.model.design.factors[position].name
    if count < 2:
        raise ModelError(f"{name!r} has one group; without it there are no data left.")
    cores = checked_threads(fit, threads)
    if conclusion is not None:
        probability(conclusion, _Lookup(fit.draws, fit.parameters), fit.parameters)
    with Progress(progress) as bar:
        return _Run(fit, position, conclusion, cores, bar).result()


class _Lookup:
    """Draws by parameter: effects of groups, which may be left out, are refused."""

    def __init__(self, draws: Any, names: Sequence[str]) -> None:
        self.draws, self.names = draws, tuple(names)

    def __call__(self, name: str) -> Array:
        if name not in self.names:
            raise unknown_parameter(name, self.names)
        return np.asarray(self.draws(name))


def _above(mean: Array, sd: Array) -> Array:
    """P(b > 0), of normal distributions or single values."""
    from scipy.special import ndtr

    spread = sd > 0
    return np.asarray(np.where(spread, ndtr(mean / np.where(spread, sd, 1.0)), mean > 0), dtype=np.float64)


def _controlled(weights: Array, share: Array, own: Array, whole: Array, kept: Ints) -> Array:
    """The mean of what is known at some nodes only (kept, p), by its regression on what is known at all (K, p)."""
    with_group = whole[kept]
    centred = with_group - share @ with_group
    square = share @ centred**2
    slope = (share @ (centred * (own - share @ own))) / np.where(square > 0, square, 1.0)
    return np.asarray(share @ own + slope * (weights @ whole - share @ with_group))


def _conditional(fit: Posterior, factor: int, threads: int) -> Conditional:
    if fit.model.exact:
        from partialpool.criticism.gaussian_left_out import GaussianLeftOut

        return GaussianLeftOut(fit.model, factor, threads)
    from partialpool.criticism.quadrature_left_out import quadrature_groups

    found: Conditional = quadrature_groups(fit, factor, threads)
    return found


class _Run:
    """One run; holds what its steps share."""

    def __init__(self, fit: Posterior, factor: int, conclusion: str | None, threads: int, bar: Progress) -> None:
        self.fit, self.factor, self.conclusion, self.threads, self.bar = fit, factor, conclusion, threads, bar
        self.model = fit.model
        self.conditional = _conditional(fit, factor, threads)
        self.nodes: Nodes = nodes_of_fit(fit, self.conditional.most_nodes)
        self.hyper = self.model.hyperparameters.public(self.nodes.theta)
        self.rows = [np.asarray(self.conditional.rows_of(unit)) for unit in range(self.conditional.units)]
        self.coefficients: Coefficients | None = None
        if self.model.exact:
            self.coefficients = coefficients_without(self.model, factor, self.nodes.theta)
            self.beta = self.coefficients.mean
            self.above = _above(self.beta, self.coefficients.sd)
        else:
            self.beta = np.asarray(self.model.coefficients.to_public(self.nodes.gamma))
            self.above = _above(self.beta, np.zeros_like(self.beta))
        p = self.beta.shape[1]
        self.noise = random_stream(fit, INFLUENCE).standard_normal((DRAWS, p))

    def result(self) -> Influence:
        units = self.conditional.units
        found: list[Without | None] = [None] * units
        k = np.full(units, math.inf)
        at = 0
        block = max(1, BLOCK_NUMBERS // max(len(self.nodes.theta), 1))
        for start in range(0, units, block):
            part = slice(start, min(start + block, units))
            left = self.conditional.log_densities(self.nodes, part)[0]

            def one(number: int, left: Array = left, start: int = start) -> None:
                unit = start + number
                log_weights, k[unit], ess = self._weights(left[:, number])
                if k[unit] <= GOOD_K and ess >= LEAST_ESS:
                    found[unit] = self._reweighted(unit, log_weights)

            for number in range(part.stop - part.start):
                one(number)
                at += 1
                self.bar.update(at / units, "leaving groups out")
        how = [WEIGHTED if own is not None else REFITTED for own in found]
        self._refits(found, how)
        return self._answer(found, how, k)

    def _weights(self, left: Array) -> tuple[Array, float, float]:
        total = self.nodes.log_weights - left
        if not np.isfinite(total).any() or np.isposinf(total).any() or np.isnan(total).any():
            return total, math.inf, 0.0
        if not self.nodes.theta.shape[1] and self.model.exact:  # one node is the whole posterior
            return np.zeros(len(total)), -math.inf, math.inf
        log_weights, k = pareto_smooth(total)
        return log_weights, k, float(effective_sample_size(log_weights)) * self.nodes.efficiency

    def _reweighted(self, unit: int, log_weights: Array) -> Without:
        weights = np.exp(log_weights)
        medians, sds = self._hyper(weights)
        count = DRAWS if self.conclusion is not None else NODES
        rng = np.random.default_rng(0)  # the same places for every group: differences are not noise
        picked = np.sort(systematic_resample(weights, min(count, max(len(weights), 1)), rng))
        if self.coefficients is None:
            mean, sd = weighted_moments(self.beta, weights)
            positive = weights @ self.above
            draws = self.beta[picked]
        else:
            kept, back = np.unique(picked, return_inverse=True)
            own = self.coefficients.without(self.rows[unit], kept)
            share = np.bincount(back) / len(picked)
            mean = _controlled(weights, share, own.mean, self.beta, kept)
            between = own.mean - share @ own.mean
            sd = np.sqrt(share @ (between**2 + own.sd**2))
            positive = _controlled(weights, share, _above(own.mean, own.sd), self.above, kept)
            draws = own.mean[back] + np.einsum("kij,kj->ki", own.half[back], self.noise[: len(picked)])
        return Without(
            np.concatenate([mean, medians]), np.concatenate([sd, sds]), np.clip(positive, 0.0, 1.0),
            self._share(draws, picked),
        )  # fmt: skip

    def _hyper(self, weights: Array) -> tuple[Array, Array]:
        if not self.hyper.shape[1]:
            return np.empty(0), np.empty(0)
        return weighted_quantile(self.hyper, weights, 0.5), weighted_moments(self.hyper, weights)[1]

    def _share(self, draws: Array, picked: Ints) -> float:
        if self.conclusion is None:
            return math.nan
        values = dict(zip(self.fit.parameters, np.concatenate([draws, self.hyper[picked]], axis=1).T, strict=True))
        return probability(self.conclusion, values.__getitem__, self.fit.parameters)

    def _base(self) -> Without:
        """The same of the fit, at the same nodes."""
        weights = np.exp(self.nodes.log_weights - self.nodes.log_weights.max())
        weights = weights / weights.sum()
        medians, sds = self._hyper(weights)
        table = self.fit.summary()
        p = self.beta.shape[1]
        share = math.nan if self.conclusion is None else self.fit.probability(self.conclusion)
        return Without(
            np.concatenate([table["mean"].to_numpy()[:p], medians]),
            np.concatenate([table["sd"].to_numpy()[:p], sds]), weights @ self.above, share,
        )  # fmt: skip

    def _refits(self, found: list[Without | None], how: list[str]) -> None:
        lacking = [unit for unit, own in enumerate(found) if own is None]
        p, done = self.beta.shape[1], 0

        def run(number: int) -> None:
            nonlocal done
            unit = lacking[number]
            kept = np.ones(self.model.design.n_rows, dtype=bool)
            kept[self.rows[unit]] = False
            try:
                other = refit(self.fit, self.model.take_rows(np.flatnonzero(kept)))
            except (PartialPoolError, np.linalg.LinAlgError):
                how[unit] = FAILED
                return
            table = other.summary()
            location = np.concatenate([table["mean"].to_numpy()[:p], table["q50"].to_numpy()[p:]])
            share = math.nan if self.conclusion is None else other.probability(self.conclusion)
            above = node_weights(other.result) @ _above(other.result.beta_mean, other.result.beta_sd)
            found[unit] = Without(location, table["sd"].to_numpy(), above, share)
            done += 1
            self.bar.update(done / len(lacking), f"refits without one group ({len(lacking)})")

        over_threads(run, len(lacking), self.threads)

    def _answer(self, found: list[Without | None], how: list[str], k: Array) -> Influence:
        import pandas as pd

        base, names = self._base(), list(self.fit.parameters)
        unknown = np.full(len(names), math.nan)
        nothing = Without(unknown, unknown, np.full(self.beta.shape[1], math.nan))
        own = [one or nothing for one in found]
        location, sd = np.stack([one.location for one in own]), np.stack([one.sd for one in own])
        moved = (location - base.location) / np.where(base.sd > 0, base.sd, 1.0)
        codes = self.model.design.factors[self.factor].codes
        labels = self.model.design.factors[self.factor].labels
        groups = [str(labels[codes[rows[0]]]) for rows in self.rows]
        size = np.abs(np.nan_to_num(moved)).max(axis=1, initial=0.0)
        order = np.argsort(-size, kind="stable")
        frame = pd.DataFrame({"rows": [len(rows) for rows in self.rows], "largest": size})
        which = np.abs(np.nan_to_num(moved)).argmax(axis=1) if names else np.zeros(len(own), dtype=int)
        frame["parameter"] = [names[at] if names else "" for at in which]
        if self.conclusion is not None:
            frame["probability"] = [one.probability for one in own]
        frame["pareto_k"], frame["how"] = k, how
        frame.index = pd.Index(groups, name=self.model.design.factors[self.factor].name)
        frame = pd.concat([frame, pd.DataFrame(moved, index=frame.index, columns=names)], axis=1).iloc[order]
        return Influence(
            self.fit, self.model.design.factors[self.factor].name, self.conclusion, frame, base, location[order],
            sd[order], np.stack([one.positive for one in own])[order],
        )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Influence(Report):
    """What leaving each group out does to the answers. Made by ``fit.influence()``.

    Attributes
    ----------
    source : Posterior
    factor : str
    conclusion : str or None

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> found = influence(fit, conclusion="Days > 5")
    >>> bool(found.table["probability"].min() > 0.99)
    True
    """

    source: Posterior
    factor: str
    conclusion: str | None
    _table: Any
    _base: Without
    _location: Array
    _sd: Array
    _positive: Array

    @property
    def title(self) -> str:
        """What this is."""
        return f"Without one group of {self.factor}: {self.source.model.design.terms.formula}"

    @property
    def table(self) -> pandas.DataFrame:
        """A row a group, the most influential first.

        Columns: rows; largest, the largest move of a parameter in posterior sds, and parameter, which; probability, of
        the conclusion without the group; pareto_k of the weights, how (reweighted, refitted); then for each parameter
        how far its mean (of a coefficient) or median (of another) goes without the group, in posterior sds of the fit.
        """
        frame: pandas.DataFrame = self._table.copy()
        return frame

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without Pareto's k, and with no more parameters than fit a line."""
        names = list(self.source.parameters)
        drop = ["pareto_k"]
        if len(names) > 2 * MOST_PARAMETERS:
            order = self._table[names].abs().max().sort_values(ascending=False)
            drop += list(order.index[2 * MOST_PARAMETERS :])
        frame: pandas.DataFrame = self._table.drop(columns=drop)
        for name in frame.columns:
            if name in names or name == "largest":
                form = "{:.2f}" if name == "largest" else "{:+.2f}"
                frame[name] = ["" if math.isnan(value) else form.format(value) for value in frame[name]]
        if "probability" in frame:
            frame["probability"] = ["" if math.isnan(value) else f"{value:.2f}" for value in frame["probability"]]
        return frame

    @cached_property
    def estimates(self) -> pandas.DataFrame:
        """The parameters themselves: a row for the fit ("all groups"), then one for each group left out.

        Columns (parameter, "location") and (parameter, "sd"): its mean (of a coefficient) or median (of another), and
        its posterior sd.
        """
        import pandas as pd

        location = np.vstack([self._base.location, self._location])
        sd = np.vstack([self._base.sd, self._sd])
        index = pd.Index(["all groups", *self._table.index], name=f"without {self.factor}")
        names = self.source.parameters
        columns = pd.MultiIndex.from_product([names, ["location", "sd"]], names=["parameter", None])
        return pd.DataFrame(np.stack([location, sd], axis=2).reshape(len(index), -1), index=index, columns=columns)

    @property
    def influential(self) -> tuple[str, ...]:
        """The groups that stand out: without them something moves by more than 2 / sqrt(groups) posterior sds."""
        return tuple(str(name) for name in self._table.index[self._table["largest"] > self._bound])

    @property
    def _bound(self) -> float:
        return max(LEAST, OUTSTANDING / math.sqrt(len(self._table)))

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """Which groups matter most, and whether an answer hangs on one of them."""
        from partialpool.criticism.influence_words import sentences

        return tuple(sentences(self))

    def plot(
        self, parameters: str | Sequence[str] | None = None, *, ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:  # fmt: skip
        """How far parameters go without each of the most influential groups.

        Parameters
        ----------
        parameters : str or sequence of str, optional
            Those that move most by default.
        ax : Axes, optional
            Where to draw one parameter.
        figsize : (width, height), optional
            In inches.

        Raises
        ------
        ModelError
            For an unknown parameter.
        """
        from partialpool.present.criticism_sensitivity import influence as draw

        known = list(self.source.parameters)
        if parameters is None:
            order = self._table[known].abs().max().sort_values(ascending=False, kind="stable")
            names = sorted(order.index[: 1 if ax is not None else MOST_PARAMETERS], key=known.index)
        else:
            names = [parameters] if isinstance(parameters, str) else list(parameters)
        for name in names:
            if name not in known:
                raise unknown_parameter(str(name), tuple(known))
        own = self._table[self._table["how"] != FAILED].head(MOST_GROUPS)
        return draw(
            self.factor, [str(group) for group in own.index], names, own[names].to_numpy(dtype=float),
            (own["how"] == REFITTED).to_numpy(), len(self._table), ax, figsize,
        )  # fmt: skip
