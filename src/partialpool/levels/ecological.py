"""Is a relation between averages also one between individuals: every slope side by side, and the picture of it.

The slope of group averages answers a question about groups; read as one about individuals it can be wrong in size and
in sign (Robinson, 1950, American Sociological Review 15, 351-357: the ecological fallacy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.factors import encode_ids
from partialpool.design.frame import check_finite, drop_missing, numeric_values, read_frame
from partialpool.errors import DataError, ModelError
from partialpool.levels.columns import constant_within
from partialpool.levels.latent_means import Estimate, Gauss, LatentMeans, LatentPriors, latent_means
from partialpool.levels.least_squares import Averages, LeastSquares, averages_of, least_squares
from partialpool.posterior.fitting import fit as fit_formula
from partialpool.present.report import Report
from partialpool.spec.distributions import Distribution, Flat, Normal
from partialpool.spec.formula import quote_name

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Ecological(Report):
    """Slopes of y on x between and within groups. Made by :func:`partialpool.ecological`.

    Attributes
    ----------
    y, x, group : str
        The columns.
    least_squares : LeastSquares
        The slopes by least squares; `.share_between` is w and `.identity_error` the error of
        ``b_total = (1 - w) b_within + w b_between``.
    fit : Posterior
        Of ``y ~ within(x|g) + between(x|g) + (1|g)``.
    wrong_sign : float
        The probability that the slope within groups has another sign than that of the group averages.
    latent : LatentMeans or None
        The slopes corrected for group averages that are measured with error.
    n_dropped : int
        Rows dropped for missing values.
    rows : Averages
        The rows used, and their groups' averages.
    posterior : mapping
        The model's slopes as `Estimate`: "pooled", "within", "between", "contextual".
    """

    y: str
    x: str
    group: str
    least_squares: LeastSquares
    fit: Posterior
    wrong_sign: float
    latent: LatentMeans | None
    n_dropped: int = 0
    rows: Averages = field(repr=False, default=None)  # type: ignore[assignment]
    posterior: Mapping[str, Estimate] = field(repr=False, default_factory=dict)

    @property
    def title(self) -> str:
        """What was compared."""
        rows, groups = len(self.rows.x), len(self.rows.sizes)
        dropped = f" ({self.n_dropped:,} dropped for missing values)" if self.n_dropped else ""
        return f"Slopes of {self.y} on {self.x}: {rows:,} rows{dropped} in {groups:,} groups of {self.group}"

    @property
    def table(self) -> pandas.DataFrame:
        """A row a slope: estimate and se by least squares; mean, sd, q05, q95 of the model's posterior.

        "group averages" counts every group once; "between groups" counts it by its rows (estimate) or by how much its
        average tells (mean). The rows called "latent means" are the model's in which the groups' means of x are
        unknown; they are left out where the data hardly tell them (`.latent` has them all the same).
        """
        import pandas

        found, model = self.least_squares, self.posterior
        rows: list[tuple[str, Any, Estimate | None]] = [
            ("group averages", found.averages, None),
            ("all rows, groups ignored", found.pooled, model["pooled"]),
            ("within groups", found.within, model["within"]),
            ("between groups", found.between, model["between"]),
            ("contextual effect", found.contextual, model["contextual"]),
        ]
        if self.latent is not None and self.corrected:
            rows.append(("between, latent means", None, self.latent.between))
            rows.append(("contextual, latent means", None, self.latent.contextual))
        cells = [
            [*((slope.estimate, slope.se) if slope else (np.nan,) * 2),
             *((own.mean, own.sd, own.q05, own.q95) if own else (np.nan,) * 4)]
            for _, slope, own in rows
        ]  # fmt: skip
        index = pandas.Index([row[0] for row in rows], name="slope")
        return pandas.DataFrame(cells, index=index, columns=["estimate", "se", "mean", "sd", "q05", "q95"])

    @property
    def corrected(self) -> bool:
        """Whether there is a correction for latent group means, and the data tell it."""
        from partialpool.levels.ecological_words import hardly_told

        return self.latent is not None and not hardly_told(self)

    @property
    def sentences(self) -> Sequence[str]:
        """What the slopes say, without jargon."""
        from partialpool.levels.ecological_words import sentences

        return sentences(self)

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Rows, the lines within groups, and the line through the group averages.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Draw into this one.
        figsize : (float, float), optional
            Inches.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from partialpool.present.ecological import ecological_plot

        groups = self.rows
        slopes = {"averages": self.least_squares.averages.estimate, "pooled": self.least_squares.pooled.estimate}
        slopes |= {name: self.posterior[name].mean for name in ("within", "between")}
        names = (self.x, self.y, self.group)
        return ecological_plot(groups.x, groups.y, groups.codes, slopes, names, ax, figsize)


def ecological(
    data: Any,
    y: str,
    x: str,
    group: str,
    *,
    priors: Mapping[str, Distribution | str] | None = None,
    seed: int = 0,
    threads: int | None = None,
    latent: bool = True,
) -> Ecological:
    """Compare the relation of y and x between group averages with that between the rows of a group.

    Parameters
    ----------
    data : data frame, pyarrow table, dict of arrays, or path of a CSV or Parquet file
        A row an individual. Rows with missing values are dropped, and counted.
    y, x, group : str
        Columns: the outcome and the predictor (numbers), and the group of each row. An outcome of 0 and 1 is taken as
        a number: slopes are differences of its probability, along straight lines.
    priors : mapping, optional
        Priors by name, as :func:`partialpool.fit` takes them for ``y ~ within(x|g) + between(x|g) + (1|g)``. Those of
        the model of x, used by the correction, are "mean(x)" (normal or flat), "sd(x|g)" and "sigma(x)", x and g
        being the columns' names; by default those that ``x ~ 1 + (1|g)`` would have.
    seed : int
        Makes the answer repeatable.
    threads : int, optional
        Cores to use; all by default.
    latent : bool
        Correct the slope between groups for averages that come from a sample of each group's rows. Where the rows of
        a group are all there are, its average is known and the uncorrected slope is the right one.

    Returns
    -------
    Ecological
        Frozen: `.table`, `.sentences`, `.wrong_sign`, `.least_squares`, `.latent`, `.fit` and `.plot()`.

    Raises
    ------
    DataError
        If a column is not there, is not numeric, or x varies only within or only between groups; if there are fewer
        than three groups.
    ModelError, PriorError
        If an option or a prior is impossible.

    Notes
    -----
    Standard errors of least squares allow the rows of a group to go together (see `levels.least_squares`). The
    posterior of "all rows, groups ignored" is that of (1 - w) within + w between.

    Examples
    --------
    >>> import numpy as np, partialpool as pp
    >>> rng = np.random.default_rng(1)
    >>> town = np.repeat(np.arange(30), 10)
    >>> income = rng.normal(size=30)[town] + rng.normal(size=300)
    >>> mean = (np.bincount(town, income) / 10)[town]
    >>> vote = mean - (income - mean) + 0.5 * rng.normal(size=300)
    >>> found = pp.ecological({"vote": vote, "income": income, "town": town}, "vote", "income", "town")
    >>> found.table["estimate"].round(1).tolist()[:5]
    [1.0, 0.0, -1.0, 1.0, 2.0]
    >>> found.wrong_sign > 0.99
    True
    """
    frame, dropped = _read(data, y, x, group)
    if not isinstance(latent, bool | np.bool_):
        raise ModelError(f"latent = {latent!r} is not possible; give True or False.")
    groups = _averages(frame, y, x, group)
    of_x, of_y = _split_priors(priors, x, group)
    names = (f"within({x}|{group})", f"between({x}|{group})")
    g, quoted = quote_name(group), quote_name(x)
    formula = f"{quote_name(y)} ~ within({quoted}|{g}) + between({quoted}|{g}) + (1|{g})"
    fit = fit_formula(formula, frame, priors=of_y or None, seed=seed, threads=threads)
    slopes = least_squares(groups)
    model = _model_slopes(fit, names, slopes.share_between)
    found = None
    if latent:
        found = latent_means(groups, _latent_priors(fit, names, frame, x, group, of_x), fit.seed)
    sign = model["within"].positive
    wrong = 1 - sign if slopes.averages.estimate > 0 else sign
    return Ecological(y, x, group, slopes, fit, wrong, found, dropped, groups, model)


def _read(data: Any, y: str, x: str, group: str) -> tuple[pandas.DataFrame, int]:
    """Complete rows of the three columns, and how many were dropped."""
    columns: dict[str, Any] = {"y": y, "x": x, "group": group}
    for role, name in columns.items():
        if not isinstance(name, str):
            more = "; for the combinations of several, make a column of them" if role == "group" else ""
            raise ModelError(f"{role}={name!r} is not possible; give the name of one column of the data{more}.")
    if len(set(columns.values())) < 3:
        twice = next(name for name in columns.values() if list(columns.values()).count(name) > 1)
        raise ModelError(f"{twice!r} is given twice; y, x and group are three different columns.")
    try:
        frame = read_frame(data, list(columns.values()))
    except DataError as error:
        text = str(error).replace("The formula names", "An argument names", 1)
        if any(sign in group for sign in "/:+|") and repr(group) in text:
            text += (
                " group= takes one column and no formula: for one of several levels, give the column of its ids (made "
                "unique where they repeat, such as data['school'].astype(str) + '/' + data['class'].astype(str))."
            )
        raise DataError(text) from None
    complete, rows, _ = drop_missing(frame)
    if not len(rows):
        raise DataError(f"No row has values of all of {y!r}, {x!r} and {group!r}.")
    return complete, len(frame) - len(rows)


def _averages(frame: pandas.DataFrame, y: str, x: str, group: str) -> Averages:
    """The rows and their groups' averages, checked."""
    try:
        codes, found = encode_ids(frame[group], group)
    except DataError as error:  # there is no formula here that could hold it elsewhere
        raise DataError(str(error).replace("put it before the bar", "give it as x=", 1)) from None
    values = {}
    for name, what in ((x, "The predictor"), (y, "The response")):
        numbers = numeric_values(frame[name], name, what)
        check_finite(numbers, name, frame.index)
        values[name] = np.ascontiguousarray(numbers, dtype=float)
        if float(np.ptp(values[name])) == 0.0:
            raise DataError(f"{name!r} is {values[name][0]:.6g} in every row, so that it has no slope.")
    groups = averages_of(values[x], values[y], codes)
    count = len(groups.sizes)
    if count == 1:
        raise DataError(f"{group!r} has one group, {found.labels[0]!r}; there is nothing between groups to compare.")
    if constant_within(values[x], codes):
        raise DataError(
            f"{x!r} does not vary within the groups of {group!r}: it is a property of the groups, and the data have no "
            "slope within them."
        )
    if float(np.ptp(groups.x_mean)) <= 1e-10 * float(np.abs(values[x]).max()):
        raise DataError(
            f"The groups of {group!r} have the same average of {x!r}, so that there is no slope between them. Where "
            "every group has the same values by design, its slope is that within groups, and "
            f"{y} ~ {x} + (1|{group}) gives it. Where it was centred by group, give the predictor as it was measured."
        )
    if count == 2:
        raise DataError(
            f"{group!r} has two groups: a line through two averages always fits; three at least are needed."
        )
    return groups


def _model_slopes(fit: Posterior, names: tuple[str, str], share: float) -> dict[str, Estimate]:
    """The model's slopes, and what follows from them."""
    within, between = fit.draws(names[0]), fit.draws(names[1])
    values = {
        "pooled": (1 - share) * within + share * between,
        "within": within,
        "between": between,
        "contextual": between - within,
    }
    return {name: estimate_of(draws) for name, draws in values.items()}


def estimate_of(draws: Array) -> Estimate:
    """Moments, quantiles and the probability of being above 0, of equally weighted draws."""
    low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95))
    return Estimate(
        float(draws.mean()), float(draws.std()), float(low), float(middle), float(high), float((draws > 0).mean())
    )


def _split_priors(
    priors: Mapping[str, Distribution | str] | None, x: str, group: str
) -> tuple[dict[str, Distribution | str], dict[str, Distribution | str]]:
    """The priors of the model of x, by the names they have there, and all others."""
    names = {f"mean({x})": "Intercept", f"sd({x}|{group})": f"sd({group})", f"sigma({x})": "sigma"}
    given = dict(priors or {})
    of_x = {names[key]: given.pop(key) for key in list(given) if key in names}
    return of_x, given


def _latent_priors(
    fit: Posterior, names: tuple[str, str], frame: pandas.DataFrame, x: str, group: str,
    of_x: Mapping[str, Distribution | str],
) -> LatentPriors:  # fmt: skip
    """Those in force in the fit, and those of x ~ 1 + (1|g)."""
    from partialpool.model import Model

    model_x = Model.from_formula(f"{quote_name(x)} ~ 1 + (1|{quote_name(group)})", frame, priors=of_x or None)
    table = fit.model.priors
    if isinstance(table[names[1]], Flat):
        raise ModelError(
            f"With a flat prior of {names[1]!r} the correction for latent group means has no posterior: where the "
            f"groups' means of {x} hardly differ, any slope between them will do. Give it a Normal prior, or "
            "latent=False."
        )
    as_written = table.matched_key("Intercept") == "Intercept"
    return LatentPriors(
        within=_gauss(table[names[0]], names[0]),
        between=_gauss(table[names[1]], names[1]),
        intercept=_gauss(table["Intercept"], "Intercept"),
        intercept_at=0.0 if as_written else float(np.mean(frame[x].to_numpy(dtype=float))),
        mean_x=_gauss(model_x.priors["Intercept"], f"mean({x})"),
        tau_x=model_x.priors[f"sd(Intercept|{group})"],
        sigma_x=model_x.priors["sigma"],
        tau=table[f"sd(Intercept|{group})"],
        sigma=table["sigma"],
    )


def _gauss(prior: Distribution, name: str) -> Gauss:
    if isinstance(prior, Normal):
        return Gauss(float(prior.mu), float(prior.sigma))
    if isinstance(prior, Flat):
        return Gauss(0.0, np.inf)
    raise ModelError(
        f"The correction for latent group means takes Normal or Flat priors of slopes and intercepts; that of {name!r} "
        f"is {prior}. Give such a one, or latent=False."
    )
