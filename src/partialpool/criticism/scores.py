"""Pointwise scores of several fits by a criterion: the log predictive density of each unit under each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.comparable import check_rows, check_scale, shared_factor
from partialpool.criticism.densities import UnitMoments, conditional_moments, marginal_moments
from partialpool.criticism.kfold import GROUPS, fold_scores, make_folds
from partialpool.criticism.waic import MOST_VARIANCE
from partialpool.errors import DataError, ModelError
from partialpool.levels.fold_scores import posterior_scores
from partialpool.levels.folds import checked_seed
from partialpool.present.tables import listed

if TYPE_CHECKING:
    import pandas

    from partialpool.criticism.left_out_report import LeftOut
    from partialpool.design.design import NewRows
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Share of the units of which WAIC is too favourable, from which its verdict is not to be believed.
SEVERE = 0.1


@dataclass(frozen=True, eq=False)
class Scored:
    """Pointwise scores of some models.

    Attributes
    ----------
    what : what was predicted from what, in words. unit : what a unit is, in the plural.
    elpd : data frame, a row a unit and a column a model.
    p_eff, error : by model, the effective number of parameters and the Monte Carlo standard error of the total; nan
        where the criterion has none.
    note : by model, what to know of its computation. warnings : sentences. severe : whether they come first.
    """

    what: str
    unit: str
    elpd: pandas.DataFrame
    p_eff: dict[str, float]
    error: dict[str, float]
    note: dict[str, str]
    warnings: tuple[str, ...] = ()
    severe: bool = False


@dataclass(frozen=True)
class Request:
    """What `compare` was asked for beside the criterion."""

    factor: str | None
    data: Any
    folds: int
    by: str | None
    seed: int
    threads: int | None
    progress: bool | None

    def cores(self, fits: Mapping[str, Posterior]) -> int:
        """Cores to use: as many as any of the fits did, unless the user says."""
        return self.threads or max(fit.result.settings.threads for fit in fits.values())


# -- left out ---------------------------------------------------------------------------------------------------------


def loo_scores(fits: Mapping[str, Posterior], request: Request) -> Scored:
    """Rows left out one at a time."""
    from partialpool.criticism.loo import loo

    check_rows(fits)
    found = {name: loo(fit, threads=request.threads, progress=request.progress) for name, fit in fits.items()}
    index = next(iter(fits.values())).model.design.data.index  # others may label the same rows otherwise
    elpd = {name: own.table["elpd"].to_numpy() for name, own in found.items()}
    return _of_left_out(found, elpd, index, "each row predicted from all others", "rows")


def logo_scores(fits: Mapping[str, Posterior], request: Request) -> Scored:
    """Whole groups left out one at a time."""
    from partialpool.criticism.logo import logo

    check_rows(fits)
    factor = shared_factor(fits, request.factor, "criterion='logo'")
    found = {name: logo(fit, factor, threads=request.threads, progress=request.progress) for name, fit in fits.items()}
    index, elpd = _by_group(fits, factor, {name: own.table["elpd"].to_numpy() for name, own in found.items()})
    return _of_left_out(found, elpd, index, f"each group of {factor} predicted from all others", f"groups of {factor}")


def _by_group(
    fits: Mapping[str, Posterior], factor: str, values: Mapping[str, Array]
) -> tuple[pandas.Index, dict[str, Array]]:
    """The groups in the order of the first fit, and values (G,) of each fit's groups in that order.

    Fits of the same data may have their groups in different orders: categories can be in any.
    """
    import pandas as pd

    labels: pandas.Index | None = None
    out = {}
    for name, fit in fits.items():
        own = pd.Index(next(f.labels for f in fit.model.design.factors if f.name == factor), name=factor)
        labels = own if labels is None else labels
        out[name] = np.asarray(values[name])[own.get_indexer(labels)]
    assert labels is not None
    return labels, out


def _of_left_out(
    found: Mapping[str, LeftOut], values: Mapping[str, Array], index: pandas.Index, what: str, unit: str
) -> Scored:
    import pandas as pd

    elpd = pd.DataFrame(dict(values), index=index)
    note, warnings = {}, []
    for name, own in found.items():
        refits, doubtful = int(own.pointwise.refitted.sum()), int(own.pointwise.doubtful.sum())
        note[name] = f"{refits:,} refitted" if refits else ""
        if doubtful:
            warnings.append(
                f"{doubtful:,} of {own.units:,} {unit} are not known well under {name!r} (Pareto k above 0.7 or a "
                "Monte Carlo error above 0.03, and no refit that mends it): compare by criterion='kfold' too."
            )
    p_eff = {name: own.p_eff for name, own in found.items()}
    error = {name: own.mc_error for name, own in found.items()}
    return Scored(what, unit, elpd, p_eff, error, note, tuple(warnings))


# -- information criteria ---------------------------------------------------------------------------------------------


def waic_scores(fits: Mapping[str, Posterior], request: Request) -> Scored:
    """WAIC, conditional on the effects; marginal where a factor is named."""
    return _information(fits, request, "waic", lambda moments: moments.log_mean - moments.variance)


def dic_scores(fits: Mapping[str, Posterior], request: Request) -> Scored:
    """DIC on the scale of log densities, -DIC / 2, unit by unit."""
    return _information(fits, request, "dic", lambda moments: 2 * moments.mean - moments.at_means)


def _information(
    fits: Mapping[str, Posterior], request: Request, criterion: str, elpd: Callable[[UnitMoments], Array]
) -> Scored:
    import pandas as pd

    check_rows(fits)
    if request.factor is None:
        unit, index = "rows", next(iter(fits.values())).model.design.data.index
        moments = {name: conditional_moments(fit) for name, fit in fits.items()}
        values = {name: elpd(own) for name, own in moments.items()}
        grouped = any(fit.model.design.factors for fit in fits.values())
        what = "new rows of the same groups, effects counted as parameters" if grouped else "new rows"
    else:
        factor = shared_factor(fits, request.factor, f"criterion={criterion!r} with factor=")
        moments = {name: _marginal(name, fit, factor) for name, fit in fits.items()}
        index, values = _by_group(fits, factor, {name: elpd(own) for name, own in moments.items()})
        unit = f"groups of {factor}"
        what = f"new groups of {factor}, whose effects are integrated"
    table = pd.DataFrame(values, index=index)
    p_eff = {
        name: float((own.log_mean if criterion == "waic" else own.at_means).sum()) for name, own in moments.items()
    }
    p_eff = {name: value - float(table[name].sum()) for name, value in p_eff.items()}
    kind = "waic2" if criterion == "waic" else "mean"
    times = 1.0 if criterion == "waic" else 2.0
    error = {name: times * own.errors[kind] for name, own in moments.items()}
    warnings, severe = [], False
    if criterion == "waic":
        found = {name: int((own.variance > MOST_VARIANCE).sum()) for name, own in moments.items()}
        counts = [f"{count:,} under {name!r}" for name, count in found.items() if count]
        severe = max(found.values()) > SEVERE * len(table)
        if counts:
            warnings.append(
                f"Of {len(table):,} {unit} some have a log density whose variance is above {MOST_VARIANCE} "
                f"({listed(counts)}): WAIC is too favourable there; use "
                f"criterion={'loo' if unit == 'rows' else 'logo'!r}."
            )
    warnings += [f"p_D of {name!r} is below 0: DIC is not to be used." for name, p in p_eff.items() if p < 0]
    return Scored(what, unit, table, p_eff, error, dict.fromkeys(fits, ""), tuple(warnings), severe)


def _marginal(name: str, fit: Posterior, factor: str) -> UnitMoments:
    leaf = fit.model.latent.leaf
    assert leaf is not None
    own = fit.model.design.factors[leaf].name
    if own != factor:
        raise ModelError(
            f"In {name!r} it is the effects of {own!r} that are integrated out, not those of {factor!r}; write "
            f"factor={own!r}, or use criterion='logo', which takes any factor."
        )
    found = marginal_moments(fit)
    assert found is not None
    return found


# -- refits and new data ----------------------------------------------------------------------------------------------


def kfold_scores(fits: Mapping[str, Posterior], request: Request) -> Scored:
    """K-fold cross-validation."""
    import pandas as pd

    check_rows(fits)
    seed = checked_seed(request.seed)
    folds = make_folds(fits, request.folds, request.by, request.factor, seed)
    found = fold_scores(fits, folds, seed=seed, threads=request.cores(fits), progress=request.progress)
    if folds.by == GROUPS:
        unit, index = f"groups of {folds.factor}", pd.Index(folds.labels, name=folds.factor)
    else:
        unit, index = "rows", next(iter(fits.values())).model.design.data.index
    nothing = dict.fromkeys(fits, float("nan"))
    note = dict.fromkeys(fits, f"{folds.count} refits")
    warnings: tuple[str, ...] = ()
    if folds.by == GROUPS:
        warnings = (
            "Each row of a group held out is predicted on its own, not knowing the group's other rows; criterion='logo'"
            " predicts them jointly, so that its totals are others.",
        )
    return Scored(folds.what, unit, pd.DataFrame(found, index=index), nothing, nothing, note, warnings)


def new_data_scores(fits: Mapping[str, Posterior], request: Request) -> Scored:
    """Log predictive densities of new rows."""
    import pandas as pd

    if request.data is None:
        raise ModelError("criterion='log_score' is about new data: give data=, a table with the response too.")
    check_scale(fits)
    scores: dict[str, Array] = {}
    index: Any = None
    strange: dict[str, int] = {}
    first: NewRows | None = None
    for name, fit in fits.items():
        new = fit.model.design.replay(request.data, response=True)
        _check_new(fit, new, name)
        first = new if first is None else first
        _check_alike(next(iter(fits)), first, name, new)
        own = posterior_scores(fit, new).log_density
        scores[name] = own if new.weights is None else own * new.weights
        index = new.index
        codes = [c for c in new.codes if c is not None]
        strange[name] = int(np.any([c < 0 for c in codes], axis=0).sum()) if codes else 0
    note = {name: _of_new_groups(count) for name, count in strange.items()}
    warnings: tuple[str, ...] = ()
    if any(strange.values()):
        warnings = (
            "Rows of groups that a fit has not seen are predicted one by one, each with its group integrated over "
            "the population; their standard errors take them for independent.",
        )
    nothing = dict.fromkeys(fits, float("nan"))
    what = "1 row" if len(index) == 1 else f"{len(index):,} rows"
    return Scored(what, "rows", pd.DataFrame(scores, index=index), nothing, nothing, note, warnings)


def _of_new_groups(count: int) -> str:
    return "" if not count else "1 row of a new group" if count == 1 else f"{count:,} rows of new groups"


def _check_alike(first: str, one: NewRows, second: str, other: NewRows) -> None:
    """Refuse new rows that two models read differently: their scores would not be of the same thing."""
    assert one.y is not None and other.y is not None
    if not np.array_equal(one.y, other.y):
        raise DataError(f"{second!r} reads other responses from the new data than {first!r} does.")
    mine, yours = (np.ones(rows.n_rows) if rows.weights is None else rows.weights for rows in (one, other))
    if not np.array_equal(mine, yours):
        raise DataError(
            f"{first!r} and {second!r} give the new rows different weights, so that their scores cannot be compared."
        )


def _check_new(fit: Posterior, new: NewRows, name: str) -> None:
    """Refuse responses that the family cannot have, and rows without what the density of a row needs."""
    from partialpool.design.frame import row_names

    design, y = fit.model.design, new.y
    assert y is not None
    if not new.n_rows:
        raise DataError("The new data have no rows.")
    for kind in ("trials", "se", "precision", "weights"):
        if getattr(design, kind) is not None and getattr(new, kind) is None:
            text = getattr(design.terms.response, kind)
            raise DataError(f"The new data lack the column of {kind}({text}), which {name!r} needs.")
    trouble = fit.model.family.check(y, new.trials)
    if trouble is not None:
        bad, sentence = trouble
        where = row_names(np.flatnonzero(bad), new.index)
        raise DataError(f"The response of the new data is impossible for {name!r} in {where}: {sentence}.")


SCORES: dict[str, Callable[[Mapping[str, Posterior], Request], Scored]] = {
    "loo": loo_scores,
    "logo": logo_scores,
    "waic": waic_scores,
    "dic": dic_scores,
    "kfold": kfold_scores,
    "log_score": new_data_scores,
}
