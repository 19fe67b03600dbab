r"""Emergence in a fitted model: mixed second derivatives of the mean, on the scale of the link and of the response.

On the link's scale the fitted mean is linear in the coefficients, :math:`\eta = X(x) \beta`, so that

.. math::
    \eta_{ij} = \frac{\partial^2 \eta}{\partial x_i \partial x_j}
    = \frac{\partial^2 X}{\partial x_i \partial x_j} \beta ,

zero unless some term of the formula holds both predictors. The response's mean is :math:`\mu = g^{-1}(\eta)`, and by
the chain rule

.. math::
    \mu_{ij} = (g^{-1})'(\eta) \, \eta_{ij} + (g^{-1})''(\eta) \, \eta_i \, \eta_j .

So where the link bends, two predictors that are additive on its scale interact on the response's, each row in its own
way (Ai and Norton, Economics Letters 80, 2003, 123-129). In a logit model, for one: a predictor adds the same amount to
the log-odds everywhere, which moves a probability of 0.5 a lot and one of 0.99 hardly; what it does to the probability
depends on where the other predictors have put it. Neither scale is the right one; an interaction is a statement about a
scale.

Categories are compared with their first one: with a difference in the place of a derivative. The mean over rows is
computed for every draw of the coefficients, group effects being 0 (a typical group).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.levels.interactions import INTERACTS, UNKNOWN, check_tolerance, listed
from partialpool.levels.mean_derivatives import mean_depends_on_second
from partialpool.levels.predictor_derivatives import MOST_ROWS, read_predictors
from partialpool.levels.scale_interactions import ScaleInteractions, scale_interactions
from partialpool.posterior.groups import random_stream
from partialpool.posterior.predict import need_rows
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Ints = NDArray[np.int64]

#: The key of the random numbers that choose rows.
ROWS_KEY = 7105


@dataclass(frozen=True, eq=False, repr=False)
class FittedInteractions(Report):
    """Interactions in a fitted mean; made by ``fit.interactions()``.

    Attributes
    ----------
    names : the predictors; of columns of categories, each category but the first. levels : at which level each lives.
    link, response : :class:`ScaleInteractions`; the same where the link is the identity.
    link_name : the link. outcome : the response as the formula writes it.
    crosses : (N, N), the pairs whose predictors live at different levels.
    n_rows, n_sampled : rows given, and how many of them were used.
    tolerance : the largest `size` that counts as none.
    """

    names: tuple[str, ...]
    levels: tuple[str, ...]
    link: ScaleInteractions
    response: ScaleInteractions
    link_name: str
    outcome: str
    crosses: NDArray[np.bool_]
    n_rows: int
    n_sampled: int
    tolerance: float

    @property
    def bent(self) -> bool:
        """Whether the two scales differ."""
        return self.link is not self.response

    @property
    def title(self) -> str:
        """What this is, in one line."""
        rows = "at one row" if self.n_rows == 1 else f"averaged over {self.n_sampled:,} rows"
        return f"Interactions in the fitted mean of {self.outcome} (mixed derivatives {rows})"

    @property
    def table(self) -> pandas.DataFrame:
        """A row for each pair and scale, the largest first; columns as in :class:`ScaleInteractions`."""
        return self._table.copy()

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        i, j = np.triu_indices(len(self.names), 1)
        own = self.link.verdicts[i, j] != ""
        i, j = i[own], j[own]
        names, levels = np.array(self.names, dtype=object), self.levels
        parts = []
        for scale, found in (("link", self.link), ("response", self.response)):
            if scale == "link" and not self.bent:
                continue
            order = np.argsort(-found.size[i, j], kind="stable")
            a, b = i[order], j[order]
            numbers = ("mean", "sd", "q05", "q95", "positive", "rows_positive", "size")
            columns: dict[str, Any] = {"scale": scale, "first": names[a], "second": names[b]}
            columns |= {name: getattr(found, name)[a, b] for name in numbers}
            columns["levels"] = [" x ".join(dict.fromkeys([levels[p], levels[q]])) for p, q in zip(a, b, strict=True)]
            parts.append(pd.DataFrame(columns | {"crosses": self.crosses[a, b], "verdict": found.verdicts[a, b]}))
        return pd.concat(parts, ignore_index=True)

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without what few ask for."""
        table = self._table.drop(columns=["crosses"]).set_index(["scale", "first", "second"])
        table["rows_positive"] = [
            f"{v:.2f}" if sd > 0 else "" for v, sd in zip(table["rows_positive"], table["sd"], strict=True)
        ]
        table["size"] = [f"{value:.2g}" for value in table["size"]]
        table["positive"] = [
            f"{value:.3f}" if sd > 0 else "" for value, sd in zip(table["positive"], table["sd"], strict=True)
        ]
        return table if self.crosses.any() else table.drop(columns=["levels"])

    @property
    def sentences(self) -> list[str]:
        """What the numbers say, a sentence a line."""
        lines = []
        if self.bent:
            lines.append(f"On the scale of the link ({self.link_name}): {_said(self.link)}")
            lines.append(f"On the scale of the response: {_said(self.response)}")
            if len(self.response.with_verdict(INTERACTS)) > len(self.link.with_verdict(INTERACTS)):
                lines.append(_bend(self.link_name))
        else:
            said = _said(self.response)
            lines.append(said if said.startswith(self.names) else said[0].upper() + said[1:])
        crossing = [pair for pair in self.response.with_verdict(INTERACTS) if self._crosses(pair)]
        if crossing:
            shown = [(self._placed(a), self._placed(b)) for a, b in crossing]
            lines.append(f"Across levels: {listed(shown)}.")
        if self.n_sampled < self.n_rows:
            lines.append(f"Averaged over {self.n_sampled:,} of the {self.n_rows:,} rows, drawn at random.")
        lines.append(_LEGEND)
        return lines

    def _crosses(self, pair: tuple[str, str]) -> bool:
        return bool(self.crosses[self.names.index(pair[0]), self.names.index(pair[1])])

    def _placed(self, name: str) -> str:
        return f"{name} ({self.levels[self.names.index(name)]})"

    def plot(
        self, ax: Axes | None = None, figsize: tuple[float, float] | None = None, *, scale: str | None = None
    ) -> Figure:
        """The matrices as maps, pairs that cross levels framed.

        Parameters
        ----------
        scale : "link" or "response", optional
            One of the two; both where they differ, by default.
        """
        from partialpool.present.interactions import Panel, interaction_map

        scales = {"link": f"scale of the {self.link_name} link", "response": "scale of the response"}
        if scale is not None and scale not in scales:
            raise ModelError(f"scale={scale!r} is not known; it is 'link', 'response' or None for both.")
        wanted = [scale] if scale else ["link", "response"] if self.bent else ["response"]
        panels = []
        for name in wanted:
            found: ScaleInteractions = getattr(self, name)
            title = scales[name] if self.bent else ""
            panels.append(Panel(found.mean, found.standardised, found.verdicts == UNKNOWN, self.crosses, title))
        notes = ["Numbers: d2M/dx dz, averaged over the rows; coloured by size, in standard deviations of all three."]
        if self.crosses.any():
            notes.append("Framed: predictors of different levels.")
        heading = f"Interactions in the fitted mean of {self.outcome}"
        return interaction_map(panels, self.names, heading, notes, ax, figsize, "size, with its sign")


#: A sign with a probability above this is clear.
CLEAR = 0.95
_LEGEND = (
    "mean, sd, q05, q95: d2M/dx dz, averaged over the rows (a category: its difference from the first); positive: the "
    "probability that it is above 0; rows_positive: the share of rows where it is; size: the average of |d2M/dx dz| in "
    "standard deviations; verdict: whether the fitted formula holds an interaction, however small. Group effects are 0."
)


def _said(found: ScaleInteractions) -> str:
    """What one scale shows, in sentences."""
    count = int((found.verdicts[np.triu_indices(len(found.names), 1)] != "").sum())
    pairs, unknown = found.with_verdict(INTERACTS), found.with_verdict(UNKNOWN)
    if pairs:
        lines = _who_interacts(found, pairs, count)
    elif unknown:
        lines = ["no pair is known to interact."]
    else:
        lines = ["the mean is a sum of what each predictor does; no pair interacts."]
    if unknown:
        lines.append(f"Of {listed(unknown)} one cannot tell: an edge or a jump is close by.")
    return " ".join(lines)


def _who_interacts(found: ScaleInteractions, pairs: Sequence[tuple[str, str]], count: int) -> list[str]:
    """Which pairs interact (may, where no row's sign is clear), and of which the sign is clear or differs."""
    clear = [pair for pair in pairs if not 1 - CLEAR <= found.of("positive", pair) <= CLEAR]
    both = [pair for pair in pairs if 0 < found.of("rows_positive", pair) < 1]
    do = "interact" if clear or both else "may interact"
    lines = [f"{listed(pairs)} {do}." if count == 1 else f"{len(pairs)} of {count} pairs {do}: {listed(pairs)}."]
    if not clear:
        whose = "its sign" if len(pairs) == 1 else "no sign"
        lines.append(f"On average {whose} is {'not ' if len(pairs) == 1 else ''}clear (probability below {CLEAR:g}).")
    elif len(clear) < len(pairs):
        lines.append(f"On average the sign is clear (probability above {CLEAR:g}) for {listed(clear)} only.")
    if both:
        lines.append(f"The sign differs between rows{'' if both == pairs else ' for ' + listed(both)}.")
    return lines


def _bend(link: str) -> str:
    why = {
        "log": "effects multiply there: each predictor changes the mean in proportion to what the others have made it",
        "inverse": "the inverse link bends",
    }.get(link, "the same step on the link's scale moves a probability much in the middle and little near 0 or 1")
    return f"Pairs that are additive for the link interact on the response, since {why}."


# -- computing --------------------------------------------------------------------------------------------------------


def fitted_interactions(
    fit: Posterior,
    at: Any = None,
    names: Sequence[str] | None = None,
    *,
    draws: int | None = None,
    tolerance: float = 1e-6,
) -> FittedInteractions:
    """Mixed derivatives of the fitted population mean, with their posterior uncertainty.

    Parameters
    ----------
    fit : Posterior
    at : data frame or dict, optional
        Rows (columns of the data) over which derivatives are averaged; those of the fit by default, of more than
        10,000 a sample.
    names : sequence of str, optional
        Predictors of the population part, as columns of the data; all by default. ``within(x|g)`` and ``between(x|g)``
        are predictors of their own.
    draws : int, optional
        How many of the fit's draws.
    tolerance : float
        The largest size that counts as none: the mean absolute derivative over rows, in standard deviations of the
        fitted mean over those of the predictors.

    Returns
    -------
    FittedInteractions
        With `.link` and `.response`, each with (N, N) `mean`, `sd`, `q05`, `q95` and `positive`, in units of the linear
        predictor or the response over those of both predictors; `.table`, `.plot()`.

    Raises
    ------
    ModelError
        If there are no two predictors, or the fit has no rows and none are given.
    DataError
        If rows do not fit the formula, or it has no derivative there.

    Examples
    --------
    >>> import partialpool as pp
    >>> rng = np.random.default_rng(1)
    >>> x, z, g = rng.normal(size=60), np.repeat(rng.normal(size=12), 5), np.repeat(np.arange(12), 5)
    >>> y = x + z + 2 * x * z + rng.normal(size=60)
    >>> fit = pp.fit("y ~ x * z + (1 | g)", {"y": y, "x": x, "z": z, "g": g}, seed=1)
    >>> found = fitted_interactions(fit)
    >>> found.levels, bool(np.isclose(found.response.mean[0, 1], fit.summary().loc["x:z", "mean"]))
    (('row', 'g'), True)
    """
    _check_arguments(fit, draws, tolerance)
    design = fit.model.design
    has_rows = len(design.y) == design.n_rows
    if at is None:
        need_rows(fit, "interactions() without at=")
    total = [0]

    def choose(count: int) -> Ints | None:
        total[0] = count
        if count <= MOST_ROWS:
            return None
        return np.sort(random_stream(fit, ROWS_KEY).choice(count, MOST_ROWS, replace=False))

    both = mean_depends_on_second(fit.model.family)
    predictors = read_predictors(design, at, names, choose, has_rows=has_rows, both=both)
    scales = scale_interactions(fit, predictors, draws, tolerance)
    levels = tuple(variable.level for variable in predictors.variables)
    return FittedInteractions(
        names=tuple(variable.label for variable in predictors.variables),
        levels=levels,
        link=scales[0],
        response=scales[1],
        link_name=fit.model.family.link,
        outcome=str(design.terms.response.expression),
        crosses=np.array([[a != b for b in levels] for a in levels], dtype=bool),
        n_rows=total[0],
        n_sampled=predictors.n_rows,
        tolerance=float(tolerance),
    )


def _check_arguments(fit: Posterior, draws: int | None, tolerance: float) -> None:
    check_tolerance(tolerance)
    if draws is None:
        return
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws <= 0:
        raise ModelError(f"draws = {draws!r} is not possible; ask for a whole number above 0, or leave it out.")
    total = len(fit.result.draws_theta)
    if draws > total:
        raise ModelError(f"The fit has {total:,} draws; ask for at most as many, or fit again with draws={draws}.")
