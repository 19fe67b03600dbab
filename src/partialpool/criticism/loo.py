"""Leave-one-out: every row predicted from all others, its group's effects integrated over what these say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partialpool.criticism.left_out import Conditional, checked_threads, left_out
from partialpool.criticism.left_out_report import LeftOut
from partialpool.posterior.predict import need_rows

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior


def loo(fit: Posterior, *, threads: int | None = None, progress: bool | None = None) -> LeftOut:
    """Leave-one-out cross-validation of a fit's rows.

    Coefficients and group effects are integrated over their distribution given the *other* rows (in closed form for a
    Gaussian response, by quadrature else), so that importance weights are left to cover only what all rows say of the
    hyperparameters. Where their Pareto k is above 0.7, or the Monte Carlo error above 0.03, the row is really left
    out and the model fitted again.

    Parameters
    ----------
    fit : Posterior
        By any method. A row of weight w (``y | weights(w)``) counts w times and leaves as a whole.
    threads : int, optional
        Cores to use, and refits at a time; those of the fit by default. No result depends on it.
    progress : bool, optional
        Show a bar past two seconds: always, never, or (by default) on a terminal. Ctrl-C during the refits keeps those
        that are finished, and the answer says so.

    Returns
    -------
    LeftOut
        With `.elpd`, `.elpd_se`, `.mc_error`, `.p_eff`, `.table` (a row a row) and `.plot()`.

    Raises
    ------
    ModelError
        For a fit saved without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> left = loo(fit)
    >>> round(left.elpd), bool(left.mc_error < 0.2)
    (-862, True)
    """
    need_rows(fit, "loo()")
    cores = checked_threads(fit, threads)
    return LeftOut(fit, None, left_out(fit, rows_conditional(fit, cores), threads=cores, progress=progress))


def rows_conditional(fit: Posterior, threads: int) -> Conditional:
    """What knows the density of each row of a fit given all others."""
    if fit.model.exact:
        from partialpool.criticism.gaussian_left_out import GaussianLeftOut

        return GaussianLeftOut(fit.model, None, threads)
    from partialpool.criticism.quadrature_left_out import quadrature_rows

    return quadrature_rows(fit, threads)
