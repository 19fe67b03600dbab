"""Leave-one-group-out: how the model would do on a school that it has never seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partialpool.criticism.left_out import Conditional, checked_threads, left_out
from partialpool.criticism.left_out_report import LeftOut
from partialpool.errors import ModelError, did_you_mean
from partialpool.posterior.predict import need_rows

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior


def logo(
    fit: Posterior, factor: str | None = None, *, threads: int | None = None, progress: bool | None = None
) -> LeftOut:
    """Leave-one-group-out cross-validation: all rows of a group, predicted from the other groups.

    The group's own effects, and those of all that nests in it, are integrated over their population; coefficients and
    other effects over what the other groups say; the hyperparameters by importance weights, and by a refit
    where these have too heavy a tail (Pareto k above 0.7) or the Monte Carlo error is above 0.03.

    Parameters
    ----------
    fit : Posterior
        By any method.
    factor : str, optional
        The grouping factor, any of the model; may be left out where there is one.
    threads : int, optional
        Cores to use, and refits at a time; those of the fit by default. No result depends on it.
    progress : bool, optional
        Show a bar past two seconds: always, never, or (by default) on a terminal. Ctrl-C during the refits keeps those
        that are finished, and the answer says so.

    Returns
    -------
    LeftOut
        With `.elpd`, `.elpd_se`, `.mc_error`, `.p_eff`, `.table` (a row a group) and `.plot()`.

    Raises
    ------
    ModelError
        Where the model has no such factor, or no groups at all; for a factor of one group; for a fit saved without its
        rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> logo(fit, "Subject").table["elpd"].idxmin()
    '332'
    """
    need_rows(fit, "logo()")
    cores = checked_threads(fit, threads)
    position = _position(fit, factor)
    own = fit.model.design.factors[position]
    if len(own.labels) < 2:
        raise ModelError(f"{own.name!r} has a single group; without it there are no data left.")
    found = left_out(fit, groups_conditional(fit, position, cores), threads=cores, progress=progress)
    return LeftOut(fit, own.name, found)


def _position(fit: Posterior, factor: str | None) -> int:
    names = [own.name for own in fit.model.design.factors]
    if not names:
        raise ModelError(
            "logo() leaves out groups, and this model has none; loo() leaves out rows. Add a term such as (1 | g) "
            "for groups."
        )
    if factor is None:
        if len(names) > 1:
            raise ModelError(f"The model has several grouping factors; name one of: {', '.join(names)}.")
        return 0
    if factor not in names:
        raise ModelError(f"The model has no grouping factor {factor!r}. {did_you_mean(str(factor), names)}")
    return names.index(str(factor))


def groups_conditional(fit: Posterior, factor: int, threads: int) -> Conditional:
    """What knows the density of each group of a factor (its position in the design) given all others."""
    if fit.model.exact:
        from partialpool.criticism.gaussian_left_out import GaussianLeftOut

        return GaussianLeftOut(fit.model, factor, threads)
    from partialpool.criticism.quadrature_left_out import quadrature_groups

    found: Conditional = quadrature_groups(fit, factor, threads)
    return found
