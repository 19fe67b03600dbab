"""Complete, no and partial pooling compared on what they have not seen: K-fold cross-validation.

The rows (or whole groups) are cut into parts, and each part is predicted from models fitted to the others, under the
priors of the whole fit and in its encoding (contrasts, splines and group means of predictors are not learned again;
they never hold the response). `fold_scores` has what is scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, did_you_mean
from partialpool.inference.progress import Progress
from partialpool.levels.extremes import completely_pooled
from partialpool.levels.fold_scores import Scores, by_cluster, posterior_scores, separate_scores
from partialpool.levels.folds import (
    checked_folds,
    checked_seed,
    checked_threads,
    refit_options,
    split,
    spread_over_groups,
    whole_groups,
)
from partialpool.model import Model
from partialpool.posterior.fitting import fit_model
from partialpool.posterior.predict import need_rows
from partialpool.present.report import Report
from partialpool.present.tables import decimals_for, number

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

COMPLETE, NONE, PARTIAL = "complete", "none", "partial"
ROWS = "rows"


@dataclass(frozen=True)
class _Task:
    """One fold: what is held out ("rows" or a factor), its number, and the positions of the rows held out."""

    what: str
    fold: int
    rows: Ints
    seed: int


def held_out(
    fit: Posterior,
    folds: int = 5,
    groups: bool | str = False,
    *,
    seed: int | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> HeldOut:
    """Cross-validation of complete, no and partial pooling; see `Pooling.held_out`."""
    import pandas as pd

    need_rows(fit, "held_out()")
    model = fit.model
    seed = checked_seed(fit.seed if seed is None else seed)
    cores = checked_threads(fit.result.settings.threads if threads is None else threads)
    tasks = list(_tasks(fit, checked_folds(folds, model.design.n_rows), _kinds(fit, groups), seed))
    found: dict[int, list[dict[str, Any]]] = {}
    with Progress(progress) as bar, ThreadPoolExecutor(cores) as pool:
        running = {pool.submit(_run, model, task): number for number, task in enumerate(tasks)}
        for done, future in enumerate(as_completed(running)):
            bar.update(done / len(tasks), "refits")
            found[running[future]] = future.result()
    rows = pd.concat([pd.DataFrame(part) for number in sorted(found) for part in found[number]], ignore_index=True)
    return HeldOut(fit, rows)


# -- what is held out -------------------------------------------------------------------------------------------------


def _kinds(fit: Posterior, groups: bool | str) -> list[str]:
    names = [factor.name for factor in fit.model.design.factors]
    if groups is False:
        return [ROWS]
    if groups is True:
        return names
    if groups == "both":
        return [ROWS, *names]
    if groups not in names:
        hint = did_you_mean(str(groups), [*names, "both"])
        raise ModelError(f"groups={groups!r} is not possible: give False, True, 'both' or a grouping factor. {hint}")
    return [str(groups)]


def _tasks(fit: Posterior, folds: int, kinds: list[str], seed: int) -> Iterator[_Task]:
    design = fit.model.design
    names = [factor.name for factor in design.factors]
    for kind in kinds:
        key = 0 if kind == ROWS else 1 + names.index(kind)
        stream = np.random.SeedSequence(seed, spawn_key=(key,))
        rng = np.random.default_rng(stream)
        if kind == ROWS:
            finest = max(design.factors, key=lambda factor: len(factor.labels))
            fold = spread_over_groups(finest.codes, folds, rng)
        else:
            factor = design.factors[key - 1]
            fold = whole_groups(factor.codes, kind, folds, rng)
        seeds = stream.generate_state(int(fold.max()) + 1)
        for k in range(int(fold.max()) + 1):
            yield _Task(kind, k, np.flatnonzero(fold == k), int(seeds[k]))


# -- one fold ---------------------------------------------------------------------------------------------------------


def _run(model: Model, task: _Task) -> list[dict[str, Any]]:
    """The scores of one fold: a dict of columns for each kind of pooling."""
    part, new = split(model, task.rows)
    options = refit_options(model, task.seed)
    partial = fit_model(part, **options)
    pooled = posterior_scores(fit_model(completely_pooled(part), **options), new)
    cluster = task.rows if task.what == ROWS else _codes(model, task.what)[task.rows]
    base = {
        "held_out": task.what,
        "fold": task.fold,
        "row": task.rows,
        "cluster": cluster,
        "weight": np.ones(len(task.rows)) if new.weights is None else new.weights,
        "observed": new.y,
    }
    out = [_columns(base, COMPLETE, "", pooled, np.zeros(len(task.rows)), np.zeros(len(task.rows)))]
    for f, factor in enumerate(part.design.factors):
        scores, lacking = separate_scores(partial, new, f, task.seed)
        codes = new.codes[f]
        assert codes is not None
        out.append(_columns(base, NONE, factor.name, scores.where(lacking, pooled), lacking, (codes < 0) & ~lacking))
    nothing = np.zeros(len(task.rows))
    out.append(_columns(base, PARTIAL, "", posterior_scores(partial, new), nothing, nothing))
    return out


def _codes(model: Model, name: str) -> NDArray[np.int32]:
    return next(factor.codes for factor in model.design.factors if factor.name == name)


def _columns(
    base: dict[str, Any], pooling: str, factor: str, scores: Scores, lacking: Any, unseen: Any
) -> dict[str, Any]:
    return {
        **base,
        "pooling": pooling,
        "factor": factor,
        "predicted": scores.predicted,
        "log_density": scores.log_density,
        "fell_back": np.asarray(lacking, dtype=bool),
        "new_group": np.asarray(unseen, dtype=bool),
    }


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class HeldOut(Report):
    """Complete, no and partial pooling on held-out data. Made by ``fit.pooling().held_out()``.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> held_out = fit.pooling().held_out(folds=3)
    >>> held_out.table["mse"].idxmin()
    ('rows', 'partial')
    """

    source: Posterior
    _rows: pandas.DataFrame

    @property
    def rows(self) -> pandas.DataFrame:
        """A row for each held-out row and kind of pooling: fold, row (position in the data used), observed, predicted,
        log_density; fell_back, where no separate estimate existed and complete pooling stands for it; new_group, where
        the mean of the separate estimates does.
        """
        return self._rows.drop(columns="cluster")

    @cached_property
    def _summary(self) -> pandas.DataFrame:
        import pandas as pd

        lines, index = [], []
        for what, own in self._rows.groupby("held_out", sort=False):
            best = own[own["pooling"] == PARTIAL].sort_values("row")
            several = own["factor"].nunique() > 2
            for (pooling, factor), part in own.groupby(["pooling", "factor"], sort=False):
                name = f"{pooling} ({factor})" if pooling == NONE and several else str(pooling)
                index.append((str(what), name))
                lines.append(_line(part.sort_values("row"), best))
        names = pd.MultiIndex.from_tuples(index, names=["held_out", "pooling"])
        return pd.DataFrame(lines, index=names)

    @property
    def table(self) -> pandas.DataFrame:
        """By what was held out and kind of pooling: mean squared error and mean log predictive density of a row.

        Columns: rows; mse, mse_difference (less partial pooling's: above 0, partial pooling is better) and its
        mse_se; log_density, log_density_difference (below 0, partial pooling is better) and its log_density_se;
        fell_back, new_group: rows whose group has no separate estimate, by what stands for it.
        """
        return self._summary.copy()

    @property
    def title(self) -> str:
        """What this is."""
        folds = self._rows.groupby("held_out", sort=False)["fold"].max() + 1
        told = ", ".join(f"{count} folds of {_what(str(what))}" for what, count in folds.items())
        return f"Pooling on held-out data: {self.source.model.design.terms.formula} ({told})"

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without counts that are 0 throughout."""
        return self._summary.drop(columns=[n for n in ("fell_back", "new_group") if not self._summary[n].any()])

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        out = []
        for what in self._summary.index.get_level_values("held_out").unique():
            out += _verdict(str(what), self._summary.loc[what])
        lacking = int(self._summary["fell_back"].sum())
        if lacking:
            whose = "1 row is of a group" if lacking == 1 else f"{lacking:,} rows are of groups"
            out.append(
                f"{whose} without a separate estimate (too few rows, or all alike): there complete pooling stands for "
                "no pooling."
            )
        out += self._of_new_groups()
        counts = " (counts)" if self.source.model.design.trials is not None else ""
        kinds = set(self._rows["held_out"])
        over = "over rows" if kinds == {ROWS} else "over the groups held out"
        over = "over rows, or over the groups held out" if len(kinds) > 1 and ROWS in kinds else over
        out.append(
            f"mse: mean squared error of a row{counts}; log_density: mean log predictive density; differences are to "
            f"partial pooling, with standard errors {over}."
        )
        return tuple(out)

    def _of_new_groups(self) -> list[str]:
        """What stands for a separate estimate of a group that the other rows do not have."""
        found = self._rows[self._rows["new_group"]]
        if found.empty:
            return []
        some = int((found["held_out"] == ROWS).sum())
        whose = "a group that is held out whole" if not some else f"a group without other rows ({_number(some)})"
        if some and (found["held_out"] != ROWS).any():
            whose = f"a group that is held out whole or has no other rows ({_number(some)})"
        return [
            f"No pooling says nothing of {whose}: the mean of the separate estimates, with their spread, stands for "
            "it, what groups share taken for known."
        ]

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Differences from partial pooling with their 90% intervals.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw the difference in log density alone.
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present.spectrum import differences

        table = self._summary.reset_index()
        table["held_out"] = [_what(what) for what in table["held_out"]]
        return differences(table[table["pooling"] != PARTIAL], ax, figsize)


def _line(own: pandas.DataFrame, partial: pandas.DataFrame) -> dict[str, Any]:
    weights, clusters = own["weight"].to_numpy(), np.unique(own["cluster"], return_inverse=True)[1]
    error = ((own["observed"] - own["predicted"]) ** 2).to_numpy()
    other = ((partial["observed"] - partial["predicted"]) ** 2).to_numpy()
    density, reference = own["log_density"].to_numpy(), partial["log_density"].to_numpy()
    mine = own["pooling"].iloc[0] == PARTIAL
    more, more_se = (np.nan, np.nan) if mine else by_cluster(error - other, weights, clusters)
    less, less_se = (np.nan, np.nan) if mine else by_cluster(density - reference, weights, clusters)
    return {
        "rows": len(own),
        "mse": by_cluster(error, weights, clusters)[0],
        "mse_difference": more,
        "mse_se": more_se,
        "log_density": by_cluster(density, weights, clusters)[0],
        "log_density_difference": less,
        "log_density_se": less_se,
        "fell_back": int(own["fell_back"].sum()),
        "new_group": int(own["new_group"].sum()),
    }


def _what(name: str) -> str:
    return ROWS if name == ROWS else f"groups of {name}"


def _number(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _verdict(what: str, own: pandas.DataFrame) -> list[str]:
    """Which predicts best, and by how much beyond its standard error.

    Of whole groups no pooling predicts nothing, so that what stands for it cannot be best.
    """
    on = "On held-out rows" if what == ROWS else f"On held-out groups of {what}"
    rivals = own if what == ROWS else own.loc[[COMPLETE, PARTIAL]]
    best = str(rivals["log_density"].idxmax())
    gap, se = rivals["log_density_difference"], rivals["log_density_se"]
    told_apart = (gap.abs() > 2 * se)[rivals.index != PARTIAL]
    if best != PARTIAL and not told_apart[best]:
        best = PARTIAL
    alike = [_named(str(name)) for name in told_apart.index[~told_apart]]
    out = [f"{on} {_named(best)} predicts best, by log density."]
    if alike and best == PARTIAL:
        out = [f"{on} {_listed([_named(PARTIAL), *alike])} are not told apart by log density."]
        better = [_named(str(name)) for name in told_apart.index[told_apart & (gap[told_apart.index] < 0)]]
        out[0] += f" Partial pooling beats {_listed(better)}." if better else ""
    for name, row in own[own.index != PARTIAL].iterrows():
        out.append(f"  {_named(str(name))}: {_gap(row)}.")
    return out


def _gap(row: Any) -> str:
    """Differences from partial pooling in words."""
    gap, se = float(row["log_density_difference"]), float(row["log_density_se"])
    more, more_se = float(row["mse_difference"]), float(row["mse_se"])
    lower, sign = "lower" if gap < 0 else "higher", "larger" if more > 0 else "smaller"
    return (
        f"log density {lower} than partial pooling's by {_digits(gap, se)} a row, squared error {sign} by "
        f"{_digits(more, more_se)}"
    )


def _digits(value: float, se: float) -> str:
    decimals = decimals_for(se)
    return f"{number(abs(value), decimals)} (se {number(se, decimals)})"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _named(pooling: str) -> str:
    kind, _, factor = pooling.partition(" ")
    words = {COMPLETE: "complete pooling", NONE: "no pooling", PARTIAL: "partial pooling"}[kind]
    return f"{words} of {factor.strip('()')}" if factor else words
