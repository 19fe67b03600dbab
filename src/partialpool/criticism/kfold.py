"""K-fold cross-validation of several models at once: refits to all folds but one, in parallel.

Folds are of rows at random, of rows dealt out evenly within the groups of a factor (stratified), or of whole groups.
All models are scored on the same folds. Refits have the priors of the fit and its encoding of the data
(`levels.folds`); a group that the refit has not seen is integrated over its population (`levels.fold_scores`).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError, PartialPoolError, did_you_mean
from partialpool.inference.progress import Progress
from partialpool.levels.fold_scores import posterior_scores
from partialpool.levels.folds import checked_folds, refit_options, split, spread_over_groups, whole_groups
from partialpool.model import Model
from partialpool.posterior.fitting import fit_model
from partialpool.present.tables import listed

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

ROWS, STRATIFIED, GROUPS = "rows", "stratified", "groups"


@dataclass(frozen=True, eq=False)
class Folds:
    """Which fold each row is in, and what a unit of the comparison is.

    fold : (n,). by : "rows", "stratified" or "groups". factor : the factor behind the last two, else "".
    codes, labels : of whole groups the group of each row and the groups' names; else None.
    """

    fold: Ints
    by: str
    factor: str
    codes: Ints | None = None
    labels: Any = None

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.fold.max()) + 1

    @property
    def what(self) -> str:
        """What is held out, in words."""
        if self.by == GROUPS:
            return f"{self.count} folds of whole groups of {self.factor}"
        return f"{self.count} folds of rows" + (f", even within {self.factor}" if self.by == STRATIFIED else "")


def make_folds(fits: Mapping[str, Posterior], folds: Any, by: Any, factor: str | None, seed: int) -> Folds:
    """Cut the rows that all fits share.

    Parameters
    ----------
    fits : mapping
        Of the same rows. The factor need be in one of the models only.
    folds : int
    by : {None, "rows", "stratified", "groups"}
    factor : str, optional
        May be left out where there is one.
    seed : int

    Raises
    ------
    ModelError
        Where an option is impossible.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"), seed=1)
    >>> make_folds({"a": fit}, 3, "groups", None, 0).what
    '3 folds of whole groups of Batch'
    """
    kind = ROWS if by is None else by
    if kind not in (ROWS, STRATIFIED, GROUPS):
        hint = did_you_mean(str(by), (ROWS, STRATIFIED, GROUPS))
        factors = {f.name for fit in fits.values() for f in fit.model.design.factors}
        if by in factors:
            hint = f"Write by='groups', factor={by!r} for whole groups, or by='stratified', factor={by!r}."
        raise ModelError(f"by={by!r} is not possible: give 'rows', 'stratified' or 'groups'. {hint}")
    design = next(iter(fits.values())).model.design
    number = checked_folds(folds, design.n_rows)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    if kind == ROWS and factor is not None:
        raise ModelError(
            f"factor={factor!r} has no part in folds of rows at random: write by='groups' for whole groups of it, or "
            "by='stratified' for rows dealt out evenly within its groups."
        )
    if kind == ROWS:
        return Folds(spread_over_groups(np.zeros(design.n_rows, dtype=np.int64), number, rng), kind, "")
    found = _factor(fits, factor, kind)
    codes = np.asarray(found.codes, dtype=np.int64)
    if kind == STRATIFIED:
        return Folds(spread_over_groups(codes, number, rng), kind, found.name)
    return Folds(whole_groups(codes, found.name, number, rng), kind, found.name, codes, found.labels)


def _factor(fits: Mapping[str, Posterior], factor: str | None, kind: str) -> Any:
    known = {own.name: own for fit in fits.values() for own in fit.model.design.factors}
    if factor is None:
        if len(known) != 1:
            told = f"the models have {listed(list(known))}" if known else "the models have none"
            raise ModelError(f"by={kind!r} needs a grouping factor: {told}; say factor=...")
        return next(iter(known.values()))
    if factor not in known:
        raise ModelError(f"No model has the grouping factor {factor!r}. {did_you_mean(str(factor), known)}")
    return known[factor]


def fold_scores(
    fits: Mapping[str, Posterior], folds: Folds, *, seed: int, threads: int, progress: bool | None = None
) -> dict[str, Array]:
    """Log predictive densities of the units by model: (n,) of rows, (groups,) sums over the rows of whole groups."""
    out = {name: np.empty(len(folds.fold)) for name in fits}
    seeds = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(folds.count)
    tasks = [(name, k) for k in range(folds.count) for name in fits]
    with Progress(progress) as bar, ThreadPoolExecutor(threads) as pool:
        running = {
            pool.submit(_score, fits[name].model, name, np.flatnonzero(folds.fold == k), k, int(seeds[k])): (name, k)
            for name, k in tasks
        }
        try:
            for done, future in enumerate(as_completed(running)):
                name, k = running[future]
                out[name][folds.fold == k] = future.result()
                bar.update((done + 1) / len(tasks), "refits")
        except BaseException:  # Ctrl-C too: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if folds.codes is None:
        return out
    count = len(folds.labels)
    by_group = {name: np.bincount(folds.codes, weights=scores, minlength=count) for name, scores in out.items()}
    return {name: np.asarray(scores, dtype=float) for name, scores in by_group.items()}


def _score(model: Model, name: str, rows: Ints, fold: int, seed: int) -> Array:
    """Log densities of the rows of one fold, from a refit to the others; a row of weight w counts w times."""
    try:
        part, new = split(model, rows)
        scores = posterior_scores(fit_model(part, **refit_options(model, seed)), new)
    except PartialPoolError as error:
        raise ModelError(f"{name!r} could not be fitted without fold {fold + 1}: {error}") from error
    return scores.log_density if new.weights is None else scores.log_density * new.weights
