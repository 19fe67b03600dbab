r"""What pooling gains in a study that is yet to be made: bias, variance and mean squared error of the group means.

Groups' true means are drawn with an sd of tau around the population's mean, their rows around them with an sd of sigma;
complete, no and partial pooling estimate the true means. With the variances known all errors have closed forms
(`study_exact`), which simulated data sets confirm. With the variances estimated, partial pooling is what
``pp.fit("y ~ 1 + (1 | g)")`` makes of each simulated data set under the default priors, by quadrature
(`algebra.studies`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import ModelError
from partialpool.levels import study_plan, study_request, study_words
from partialpool.levels.study_crossing import MULTIPLES, Crossing, controlled_error, find_crossing
from partialpool.levels.study_exact import PARTIAL, POOLINGS, StudyDesign, exact_errors
from partialpool.levels.study_simulation import (
    BIAS,
    COVERED,
    GROUP_VARIANCE,
    MEAN_VARIANCE,
    SQUARED,
    Place,
    controlled,
    mean_and_error,
    simulate,
)
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]


def simulate_pooling(
    groups: int | ArrayLike | None = None,
    rows: int | ArrayLike | None = None,
    tau: float | ArrayLike | None = None,
    sigma: float = 1.0,
    *,
    sizes: ArrayLike | None = None,
    variances: str = "estimated",
    replicates: int = 2000,
    seed: int = 0,
    threads: int | None = None,
    progress: bool | None = None,
) -> PoolingStudy:
    """How well complete, no and partial pooling would estimate group means, for a study that is yet to be made.

    Parameters
    ----------
    groups : int or several, optional
        Number of groups; 30 by default. With several, every number is combined with every number of rows.
    rows : int or several, optional
        Rows of each group; 10 by default.
    tau : number or several, optional
        The sd of the groups' true means, in units of the response. By default ten values between 0 and 2 sigma.
    sigma : number
        The sd of the rows of a group, in units of the response.
    sizes : sequence of int, optional
        One design with groups of unequal sizes: the rows of each group, instead of groups and rows.
    variances : {"estimated", "known"}
        "estimated": partial pooling learns tau and sigma from each data set, as ``pp.fit("y ~ 1 + (1 | g)", data)``
        with its default priors. "known": it is told them; the errors are then exact, and the simulation confirms them.
    replicates : int
        Simulated data sets for each design and tau; at least 100.
    seed : int
        Of the random numbers.
    threads : int, optional
        Cores to use; all by default. No result depends on it.
    progress : bool, optional
        Whether to show a bar once the work has lasted two seconds; by default on a terminal. An interrupt (Ctrl-C)
        keeps the data sets that were finished.

    Returns
    -------
    PoolingStudy
        With `.table`, `.designs`, `.crossings`, `.plan(...)` and `.plot()`.

    Raises
    ------
    ModelError
        Where a number cannot be used: fewer than 3 groups, no rows, a negative tau.

    Examples
    --------
    >>> import partialpool as pp
    >>> study = pp.simulate_pooling(groups=10, rows=4, tau=[0, 1], sigma=2, variances="known", replicates=100)
    >>> study.designs[["tau", "complete", "none", "partial"]].round(3).values.tolist()
    [[0.0, 0.1, 1.0, 0.1], [1.0, 1.0, 1.0, 0.55]]
    """
    designs = study_request.read_designs(groups, rows, sizes)
    sd = study_request.read_sigma(sigma)
    taus = study_request.read_tau(tau, sd)
    estimated = study_request.read_variances(variances, designs)
    least = study_request.FEWEST_REPLICATES
    why = f"fewer than {least} simulated data sets can't tell how far the answer is off"
    wanted = study_request.one_whole_number("replicates", replicates, least, why)
    start = study_request.one_whole_number("seed", seed, 0, "seeds start at 0")
    workers = os.cpu_count() or 1
    if threads is not None:
        workers = study_request.one_whole_number("threads", threads, 1, "the work needs 1 at least")
    places, near = _places(designs, taus, sd, estimated)
    statistics = simulate(places, sd, estimated, wanted, start, workers, progress)
    errors = [[_errors(statistics[i * taus.size + k], designs[i], tau, sd, estimated) for k, tau in enumerate(taus)]
              for i in range(len(designs))]  # fmt: skip
    crossings = []
    for i, design in enumerate(designs) if estimated else ():
        first = len(designs) * taus.size + i * len(MULTIPLES)
        crossings.append(find_crossing(design, sd, near[i], statistics[first : first + len(MULTIPLES)]))
    return PoolingStudy(
        designs, taus, sd, estimated, wanted, statistics.shape[1], start, tuple(map(tuple, errors)), tuple(crossings)
    )


def _places(
    designs: Sequence[StudyDesign], taus: Array, sigma: float, estimated: bool
) -> tuple[list[Place], list[Array]]:
    """Where to simulate: the grid, and the small tau where complete pooling may be better."""
    places = [Place(design, float(tau), True) for design in designs for tau in taus]
    near = [np.array(MULTIPLES) * design.standard_error(sigma) for design in designs]
    if estimated:
        places += [
            Place(design, float(tau), False) for design, own in zip(designs, near, strict=True) for tau in own
        ]  # fmt: skip
    return places, near


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of one design at one tau; arrays (3,) in the order of `POOLINGS`.

    mse, bias : expected, and *_error the simulation's standard errors of them (0 where they are exact); simulated,
    simulated_error : plain averages over the data sets. excess : mse of partial pooling over the better extreme's.
    """

    mse: Array
    mse_error: Array
    bias: Array
    bias_error: Array
    simulated: Array
    simulated_error: Array
    coverage: float
    coverage_error: float
    sd_group: float
    sd_mean: float

    @property
    def excess(self) -> tuple[float, float]:
        """Partial pooling's mse over that of the better extreme, and its standard error."""
        better = float(self.mse[:PARTIAL].min())
        return float(self.mse[PARTIAL] / better), float(self.mse_error[PARTIAL] / better)


def _errors(statistics: Array, design: StudyDesign, tau: float, sigma: float, estimated: bool) -> Errors:
    """From the statistics (R, .) of the data sets of one design and tau."""
    exact = exact_errors(design, tau, sigma)
    squared, biases = statistics[:, SQUARED], statistics[:, BIAS]
    mse, bias = exact.mse.copy(), exact.slope * tau + 0.0
    mse_error, bias_error = np.zeros(3), np.zeros(3)
    sd_group, sd_mean = exact.sd_group, exact.sd_mean
    own = [0, 1, 3]
    simulated = np.array([mean_and_error(squared[:, k]) for k in own])
    if estimated:
        mse[PARTIAL], mse_error[PARTIAL] = mean_and_error(controlled_error(statistics, design, tau, sigma))
        if tau > 0:
            known = exact.slope * tau
            bias[PARTIAL], bias_error[PARTIAL] = mean_and_error(controlled(biases[:, 3], biases[:, :3], known))
        sd_group = math.sqrt(statistics[:, GROUP_VARIANCE].mean())
        sd_mean = math.sqrt(statistics[:, MEAN_VARIANCE].mean())
    coverage = mean_and_error(statistics[:, COVERED])
    return Errors(
        mse, mse_error, bias, bias_error, simulated[:, 0], simulated[:, 1], *coverage, sd_group, sd_mean
    )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class PoolingStudy(Report):
    """Errors of complete, no and partial pooling over a grid of designs, as ``pp.simulate_pooling`` returns them.

    Attributes
    ----------
    layouts : tuple of StudyDesign
        The designs of the grid.
    taus : ndarray of shape (T,)
        The sds of the groups' true means.
    sigma : float
        The sd of the rows of a group.
    estimated : bool
        Whether partial pooling had to learn tau and sigma.
    replicates, finished : int
        Data sets asked for, and simulated (fewer after an interrupt).
    seed : int
    errors : tuple of tuples of Errors
        By design and tau.
    found_crossings : tuple of Crossing
        By design, where the variances are estimated.
    """

    layouts: tuple[StudyDesign, ...]
    taus: Array
    sigma: float
    estimated: bool
    replicates: int
    finished: int
    seed: int
    errors: tuple[tuple[Errors, ...], ...]
    found_crossings: tuple[Crossing, ...]

    @property
    def title(self) -> str:
        what = str(self.layouts[0]) if len(self.layouts) == 1 else f"{len(self.layouts)} designs"
        how = "estimated from each data set" if self.estimated else "known"
        return f"Mean squared error of group means: {what}, sigma = {self.sigma:.4g}, variances {how}"

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        rows = []
        for design, own in zip(self.layouts, self.errors, strict=True):
            for tau, errors in zip(self.taus, own, strict=True):
                rows += [self._row(design, float(tau), errors, k) for k in range(3)]
        return pd.DataFrame(rows)

    def _row(self, design: StudyDesign, tau: float, errors: Errors, k: int) -> dict[str, Any]:
        bias = float(errors.bias[k])
        partial = k == PARTIAL
        return {
            "groups": design.groups, "rows": design.rows, "tau": tau, "pooling": POOLINGS[k],
            "mse": errors.mse[k], "mse_error": errors.mse_error[k], "bias": bias,
            "bias_error": errors.bias_error[k],
            "variance": errors.mse[k] - bias**2,
            "simulated": errors.simulated[k], "simulated_error": errors.simulated_error[k],
            "coverage": errors.coverage if partial else math.nan,
            "coverage_error": errors.coverage_error if partial else math.nan,
            "sd_group": errors.sd_group if partial else math.nan,
            "sd_mean": errors.sd_mean if partial else math.nan,
        }  # fmt: skip

    @property
    def table(self) -> pandas.DataFrame:
        """A row for each design, tau and kind of pooling.

        Columns: groups; rows (of a group, on average); tau; pooling; mse, expected, and mse_error, its standard error
        from simulating (0 where it is exact); bias, that of a group whose true mean lies one tau above the population's
        (of one below it is the opposite, so that the average over groups is 0); variance (mse = bias² + variance);
        simulated, the plain average over the simulated data sets, and its standard error; for partial pooling
        coverage, the share of 90% intervals that hold the true mean; sd_group and sd_mean, root mean square posterior
        sds of a group's mean and of the population's.
        """
        return self._table.copy()

    @property
    def designs(self) -> pandas.DataFrame:
        """A row for each design and tau, with the three mean squared errors side by side.

        Columns: groups, rows, tau, tau_over_se (against a group's own standard error), complete, none, partial,
        over_better (partial pooling's error over that of the better extreme) and its standard error, coverage,
        sd_group, sd_mean.
        """
        import pandas as pd

        rows = []
        for design, own in zip(self.layouts, self.errors, strict=True):
            se = design.standard_error(self.sigma)
            for tau, errors in zip(self.taus, own, strict=True):
                ratio, ratio_error = errors.excess
                rows.append({
                    "groups": design.groups, "rows": design.rows, "tau": float(tau), "tau_over_se": float(tau) / se,
                    **dict(zip(POOLINGS, map(float, errors.mse), strict=True)),
                    "over_better": ratio, "over_better_error": ratio_error, "coverage": errors.coverage,
                    "sd_group": errors.sd_group, "sd_mean": errors.sd_mean,
                })  # fmt: skip
        return pd.DataFrame(rows)

    @property
    def shown(self) -> pandas.DataFrame:
        """What is printed."""
        import pandas as pd

        frame = self.designs
        ratio = frame["over_better"]
        partial = self.table.query("pooling == 'partial'")["bias"].to_numpy()
        columns = {
            "groups": frame["groups"], "rows": frame["rows"], "tau": frame["tau"], "tau/se": frame["tau_over_se"],
            **{name: frame[name] for name in POOLINGS}, "partial/better": ratio, "bias": partial,
            "coverage": frame["coverage"], "sd(group)": frame["sd_group"], "sd(mean)": frame["sd_mean"],
        }  # fmt: skip
        printed = pd.DataFrame(columns)
        return printed.map(lambda value: float(f"{value:.3g}"))

    @property
    def crossings(self) -> pandas.DataFrame:
        """By design: the tau below which complete pooling is better than partial pooling, and what that costs.

        Columns: groups, rows, tau and its standard error, tau_over_se (against a group's own standard error), cost (the
        most by which partial pooling's mean squared error is above complete pooling's, as a share of that without
        pooling) and its standard error, ratio (how many times complete pooling's, at most). Empty where the variances
        are known: there is no such region.
        """
        import pandas as pd

        names = ["groups", "rows", "tau", "tau_error", "tau_over_se", "cost", "cost_error", "ratio"]
        rows = [
            (design.groups, design.rows, own.tau, own.error, own.tau / design.standard_error(self.sigma), own.cost,
             own.cost_error, own.ratio)
            for design, own in zip(self.layouts, self.found_crossings, strict=self.estimated)
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=names)

    @property
    def sentences(self) -> list[str]:
        """What the numbers say."""
        return study_words.study_sentences(self)

    def plan(
        self,
        *,
        precision: float | None = None,
        of: str = "group",
        power: float | None = None,
        effect: float | None = None,
        by: str = "group",
        effect_sd: float = 0.0,
        tau: float | None = None,
    ) -> study_plan.PoolingPlan:
        """The smallest designs of the grid that reach a wanted precision, or a wanted power to see an effect.

        Parameters
        ----------
        precision : number, optional
            Wanted posterior sd, in units of the response.
        of : {"group", "mean"}
            Of a group's true mean under partial pooling, or of the population's mean.
        power : number between 0 and 1, optional
            Wanted probability that the 95% interval of a difference between two treatments leaves out zero. Where the
            variances are estimated it is, by group, the interval of ``pp.fit("y ~ treated + (1 | group)")`` with its
            default priors, which is wider than Student's t where groups are few; by row, Student's t.
        effect : number, optional
            The true difference, in units of the response. Of a covariate of groups: the difference between groups one
            sd above and one sd below its mean.
        by : {"group", "row"}
            Whether half the groups are treated, drawn by chance, or half the rows of each group.
        effect_sd : number
            The sd of the treatment's effect between groups.
        tau : number, optional
            One of the study's; by default the design has to do at every tau of the study.

        Returns
        -------
        PoolingPlan
            For each number of groups the fewest rows that do; `.table`, `.best`, `.plot()`.

        Raises
        ------
        ModelError
            Where nothing is asked, or what can't be answered from this study.

        Examples
        --------
        >>> import partialpool as pp
        >>> study = pp.simulate_pooling([10, 20, 40], [5, 10, 20], 0.5, variances="known", replicates=100)
        >>> plan = study.plan(power=0.8, effect=0.5, by="group")
        >>> plan.best.groups, plan.best.rows
        (40, 20.0)
        """
        return study_plan.make_plan(self, precision, of, power, effect, by, effect_sd, tau)

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The three errors against tau, a panel for each design (the first six), as shares of that without pooling.

        Where the variances are estimated, the region of small tau where complete pooling is better is shaded.
        """
        from partialpool.present import study as pictures

        if ax is not None and len(self.layouts) > 1:
            raise ModelError(f"{len(self.layouts)} designs can't be drawn into one axes; leave out ax=.")
        panels = [self._panel(i) for i in range(min(len(self.layouts), pictures.MOST_PANELS))]
        return pictures.error_curves(panels, len(self.layouts), self.estimated, ax, figsize)

    def _panel(self, i: int) -> dict[str, Any]:
        """What the picture of one design needs: errors as shares of that without pooling, tau in standard errors."""
        design = self.layouts[i]
        se = design.standard_error(self.sigma)
        own = np.array([errors.mse[PARTIAL] for errors in self.errors[i]])
        at, partial = self.taus, own
        crossing = self.found_crossings[i] if self.estimated else None
        if crossing is not None:
            every = np.concatenate([self.taus, crossing.curve_tau])
            first = np.unique(np.round(every / se, 6), return_index=True)[1]  # one of two that rounding tells apart
            at, partial = every[first], np.concatenate([own, crossing.curve])[first]
        fine = se * np.unique(np.concatenate([np.linspace(0, 1, 60), np.geomspace(1, max(at.max() / se, 2.0), 60)]))
        exact = np.array([exact_errors(design, float(tau), self.sigma).mse for tau in fine])
        if crossing is None:
            at, partial = fine, exact[:, PARTIAL]
        return {
            "title": str(design), "fine": fine / se, "exact": exact / se**2, "at": at / se, "partial": partial / se**2,
            "crossing": None if crossing is None or not math.isfinite(crossing.tau)
            else (crossing.tau / se, crossing.error / se, crossing.tau), "grid": (self.taus / se, own / se**2),
        }  # fmt: skip
