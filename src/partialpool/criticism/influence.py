"""What each group does to the answers, group by group: the question, and its answer. How: `groups_left_out`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.groups_left_out import FAILED, REFITTED, Run, Without
from partialpool.criticism.left_out import checked_threads
from partialpool.errors import ModelError
from partialpool.inference.progress import Progress
from partialpool.model import unknown_parameter
from partialpool.posterior.predict import need_rows
from partialpool.posterior.statement import probability
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: A group stands out where it moves something by more than OUTSTANDING / sqrt(groups) posterior sds (Belsley, Kuh and
#: Welsch, 1980, for single rows), and at least by LEAST.
OUTSTANDING, LEAST = 2.0, 0.2
#: Groups and parameters of a figure.
MOST_GROUPS, MOST_PARAMETERS = 30, 5


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
        return _answer(Run(fit, position, conclusion, cores, bar), position, conclusion)


class _Lookup:
    """Draws by parameter: effects of groups, which may be left out, are refused."""

    def __init__(self, draws: Any, names: Sequence[str]) -> None:
        self.draws, self.names = draws, tuple(names)

    def __call__(self, name: str) -> Array:
        if name not in self.names:
            raise unknown_parameter(name, self.names)
        return np.asarray(self.draws(name))


def _answer(run: Run, factor: int, conclusion: str | None) -> Influence:
    """The table of a run."""
    import pandas as pd

    found, how, k = run.result()
    fit, own_factor = run.fit, run.model.design.factors[factor]
    base, names = run.base(), list(fit.parameters)
    unknown = np.full(len(names), math.nan)
    nothing = Without(unknown, unknown, np.full(run.beta.shape[1], math.nan))
    own = [one or nothing for one in found]
    location, sd = np.stack([one.location for one in own]), np.stack([one.sd for one in own])
    moved = (location - base.location) / np.where(base.sd > 0, base.sd, 1.0)
    codes, labels = own_factor.codes, own_factor.labels
    groups = [str(labels[codes[rows[0]]]) for rows in run.rows]
    size = np.abs(np.nan_to_num(moved)).max(axis=1, initial=0.0)
    order = np.argsort(-size, kind="stable")
    frame = pd.DataFrame({"rows": [len(rows) for rows in run.rows], "largest": size})
    which = np.abs(np.nan_to_num(moved)).argmax(axis=1) if names else np.zeros(len(own), dtype=int)
    frame["parameter"] = [names[at] if names else "" for at in which]
    if conclusion is not None:
        frame["probability"] = [one.probability for one in own]
    frame["pareto_k"], frame["how"] = k, how
    frame.index = pd.Index(groups, name=own_factor.name)
    frame = pd.concat([frame, pd.DataFrame(moved, index=frame.index, columns=names)], axis=1).iloc[order]
    return Influence(
        fit, own_factor.name, conclusion, frame, base, location[order],
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
