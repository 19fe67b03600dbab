"""`pp.compare`: which of several models predicts better, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from partialpool.criticism.comparable import check_rows, checked_fits
from partialpool.criticism.compare_words import evidence_sentences, pointwise_sentences
from partialpool.criticism.marginal_likelihood import Evidence, evidence, probabilities
from partialpool.criticism.scores import SCORES, Request, Scored
from partialpool.criticism.weights import pseudo_bma_weights, stacking_weights
from partialpool.design.frame import row_names
from partialpool.errors import ModelError, did_you_mean
from partialpool.levels.folds import checked_seed, checked_threads
from partialpool.present.report import Report

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

MARGINAL = "marginal_likelihood"
CRITERIA = (*SCORES, MARGINAL)
FOLDS = 10
#: What each criterion is called in a heading.
TITLES = {
    "loo": "leave-one-out", "logo": "leave-one-group-out", "waic": "WAIC", "dic": "DIC", "kfold": "K-fold",
    "log_score": "log score on new data", MARGINAL: "marginal likelihood",
}  # fmt: skip


def compare(
    fits: Mapping[str, Posterior],
    criterion: str = "loo",
    *,
    factor: str | None = None,
    data: Any = None,
    folds: int = FOLDS,
    by: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool | None = None,
) -> Comparison | EvidenceComparison:
    """Compare models by how well they predict.

    Parameters
    ----------
    fits : mapping of str to Posterior
        Fits of the same rows and the same response, by the names that the answer shall use.
    criterion : {"loo", "logo", "waic", "dic", "kfold", "log_score", "marginal_likelihood"}
        Rows left out one at a time; whole groups left out one at a time; two information criteria (conditional on the
        group effects; marginal where `factor` is given); refits to all folds but one; new data; or how probable the
        data were under each model and its priors.
    factor : str, optional
        The grouping factor of "logo", of folds by groups or within groups, and of marginal "waic" and "dic".
    data : data frame, optional
        Of "log_score": new rows, with the response.
    folds : int
        Of "kfold".
    by : {None, "rows", "stratified", "groups"}
        Of "kfold": rows at random, rows dealt out evenly within the groups of `factor`, or whole groups of it.
    seed : int
        Of folds, of refits and of the weights' bootstrap.
    threads : int, optional
        Cores to use, and refits at a time; those of the fits by default.
    progress : bool, optional
        Show a bar after two seconds: always, never, or (by default) on a terminal.

    Returns
    -------
    Comparison
        With `.table` (best first), sentences when printed, `.pointwise` and `.plot()`; of "marginal_likelihood" an
        EvidenceComparison.

    Raises
    ------
    ModelError
        If an option is impossible, a factor is not in every model, or responses are measured differently.
    DataError
        If the fits are of different rows or responses: with which.

    Examples
    --------
    >>> import partialpool as pp
    >>> data = pp.datasets.load("sleepstudy")
    >>> varying = pp.fit("Reaction ~ Days + (Days | Subject)", data, seed=1)
    >>> one = pp.fit("Reaction ~ Days + (1 | Subject)", data, seed=1)
    >>> compare({"varying slopes": varying, "one slope": one}, "waic").table.index[0]
    'varying slopes'
    """
    known = checked_fits(fits)
    if criterion not in CRITERIA:
        raise ModelError(f"There is no criterion {criterion!r}. {did_you_mean(str(criterion), CRITERIA)}")
    cores = None if threads is None else checked_threads(threads)
    request = Request(factor, data, folds, by, checked_seed(seed), cores, progress)
    _refuse_unused(criterion, request)
    if criterion == MARGINAL:
        check_rows(known)
        found = evidence(known, threads=request.cores(known), progress=progress, seed=request.seed)
        return EvidenceComparison(known, found)
    scored = SCORES[criterion](known, request)
    _refuse_nan(scored, criterion)
    return Comparison(known, criterion, scored, request.seed)


def _refuse_nan(scored: Scored, criterion: str) -> None:
    """Scores that are no numbers are refused here, not where the answer is printed."""
    for name in scored.elpd:
        lost = np.flatnonzero(np.isnan(scored.elpd[name].to_numpy(dtype=float)))
        if lost.size:
            where = row_names(lost, scored.elpd.index)
            raise ModelError(
                f"criterion={criterion!r} finds no number under {name!r} for {lost.size:,} of {len(scored.elpd):,} "
                f"{scored.unit} ({where}): their log densities are not finite all over the posterior. Use another "
                "criterion, or look at these rows."
            )


def _refuse_unused(criterion: str, request: Request) -> None:
    """An option that has no part in a criterion is refused, not dropped."""
    takes = {"data": ("log_score",), "by": ("kfold",), "folds": ("kfold",), "factor": ("logo", "kfold", "waic", "dic")}
    for name, where in takes.items():
        given = request.folds != FOLDS if name == "folds" else getattr(request, name) is not None
        if given and criterion not in where:
            options = " or ".join(f"criterion={own!r}" for own in where)
            raise ModelError(f"{name}= has no part in criterion={criterion!r}; it belongs to {options}.")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Report):
    """Models compared by how well they predict each unit of the data. Made by ``pp.compare``.

    Examples
    --------
    >>> import partialpool as pp
    >>> data = pp.datasets.load("Dyestuff")
    >>> fits = {"batches": pp.fit("Yield ~ 1 + (1 | Batch)", data, seed=1), "none": pp.fit("Yield ~ 1", data, seed=1)}
    >>> compare(fits, "waic").pointwise.shape
    (30, 2)
    """

    source: dict[str, Posterior]
    criterion: str
    _scored: Scored
    _seed: int

    @property
    def title(self) -> str:
        """What this is."""
        return f"Comparison by {TITLES[self.criterion]}: {self._scored.what}"

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        names = list(self._scored.elpd.columns)
        scores = self._scored.elpd.to_numpy(dtype=float)
        scores = scores[~self._impossible]
        units = len(scores)
        totals = scores.sum(axis=0)
        order = np.argsort(-totals, kind="stable")
        best = scores[:, order[0]]
        with np.errstate(invalid="ignore"):
            apart = scores - best[:, None]
        stacking, bma = stacking_weights(scores), np.full(len(names), math.nan)
        if np.isfinite(totals).any():
            bma = pseudo_bma_weights(scores, self._seed)
        rows = []
        for m in order:
            name = names[m]
            rows.append({
                "elpd": totals[m], "se": _total_se(scores[:, m]),
                "difference": float(apart[:, m].sum()) if np.isfinite(totals[m]) else totals[m],
                "difference_se": _total_se(apart[:, m]) if m != order[0] else math.nan,
                "p_eff": self._scored.p_eff[name], "stacking": stacking[m], "pseudo_bma": bma[m],
                "mc_error": self._scored.error[name], "units": units, "note": self._scored.note[name],
            })  # fmt: skip
        return pd.DataFrame(rows, index=pd.Index([names[m] for m in order], name="model"))

    @cached_property
    def _impossible(self) -> Any:
        """Units to which every model gives density 0: they tell nothing of the models."""
        return np.isneginf(self._scored.elpd.to_numpy(dtype=float)).all(axis=1)

    @property
    def table(self) -> pandas.DataFrame:
        """A row a model, the best first.

        Columns: elpd, the expected log predictive density: the sum over the units of the log of the density that the
        model gives to what it has not seen (by "dic", -DIC / 2); se, its standard error over the units; difference and
        difference_se, from the best, unit by unit; p_eff, effective number of parameters; stacking, the weight in the
        mixture of models that would have predicted best; pseudo_bma, the weight by total score, averaged over
        bootstrap samples of the units; mc_error, Monte Carlo standard error of elpd; units; note.
        """
        return self._table.copy()

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without columns that are empty."""
        table = self._table.drop(columns="units").round({"stacking": 3, "pseudo_bma": 3})
        empty = [name for name in ("p_eff", "mc_error") if table[name].isna().all()]
        return table.drop(columns=[*empty, *(["note"] if not table["note"].any() else [])])

    @property
    def pointwise(self) -> pandas.DataFrame:
        """The log predictive density of each unit (row) under each model (column)."""
        return self._scored.elpd.copy()

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        out = pointwise_sentences(self._table, self._scored, self.criterion)
        count = int(self._impossible.sum())
        if count:
            units = row_names(np.flatnonzero(self._impossible), self._scored.elpd.index)
            units = units if self._scored.unit == "rows" else units.replace("row", self._scored.unit.split()[0], 1)
            out.append(
                f"Every model gives density 0 to {units}, left out: data that alone determine a coefficient cannot be "
                "predicted from the others (a proper prior would mend it). The comparison is about the rest."
            )
        return tuple(out)

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Differences from the best model, with 90% intervals.

        Parameters
        ----------
        ax : Axes, optional
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present.criticism_compare import differences

        return differences(self._table, self.title, ax, figsize)


def _total_se(pointwise: Any) -> float:
    """The standard error of a sum over units."""
    if len(pointwise) < 2 or not np.isfinite(pointwise).all():
        return math.nan
    return float(np.sqrt(len(pointwise)) * np.std(pointwise, ddof=1))


@dataclass(frozen=True, eq=False, repr=False)
class EvidenceComparison(Report):
    """Models compared by their marginal likelihoods. Made by ``pp.compare(..., "marginal_likelihood")``.

    Examples
    --------
    >>> import partialpool as pp
    >>> data = pp.datasets.load("Dyestuff")
    >>> fits = {"batches": pp.fit("Yield ~ 1 + (1 | Batch)", data, seed=1), "none": pp.fit("Yield ~ 1", data, seed=1)}
    >>> compare(fits, "marginal_likelihood").by_prior.index.tolist()
    [0.25, 0.5, 1.0, 2.0, 4.0]
    """

    source: dict[str, Posterior]
    _found: Evidence

    criterion = MARGINAL

    @property
    def title(self) -> str:
        """What this is."""
        return "Comparison by marginal likelihood: how probable the data were under each model and its priors"

    @cached_property
    def _table(self) -> pandas.DataFrame:
        import pandas as pd

        values, errors = self._found.log_evidence, self._found.error
        names = sorted(values, key=lambda name: -values[name] if math.isfinite(values[name]) else math.inf)
        best = names[0]
        chance = probabilities(values)
        rows = [
            {
                "log_evidence": values[name],
                "error": errors[name] if math.isfinite(values[name]) else math.nan,
                "log_bayes_factor": values[name] - values[best],
                "bayes_factor": math.exp(values[name] - values[best]),
                "probability": chance[name],
                "note": "" if name not in self._found.missing else "no marginal likelihood",
            }
            for name in names
        ]
        return pd.DataFrame(rows, index=pd.Index(names, name="model"))

    @property
    def table(self) -> pandas.DataFrame:
        """A row a model, the best first.

        Columns: log_evidence, the log marginal likelihood; error, its standard error; log_bayes_factor and
        bayes_factor, against the best; probability, of the model if all were equally likely before; note.
        """
        return self._table.copy()

    @property
    def by_prior(self) -> pandas.DataFrame:
        """Log marginal likelihoods (a column a model) with the priors of slopes and group sds `times` as wide."""
        return self._found.by_prior.copy()

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without an empty column, probabilities to four places."""
        table = self._table.round({"bayes_factor": 4, "probability": 4})
        return table if table["note"].any() else table.drop(columns="note")

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        return tuple(evidence_sentences(self._table, self._found))

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Log Bayes factors against the best model, as the priors of slopes and group sds become wider.

        Parameters
        ----------
        ax : Axes, optional
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.present.criticism_compare import by_prior

        best = str(self._table.index[0])
        return by_prior(self._found.by_prior, best, ax, figsize)
