r"""Plain Pareto-smoothed leave-one-out, from the log densities of rows given their groups' effects at draws.

It is what ArviZ does with ``fit.to_arviz()`` (Vehtari, Gelman and Gabry, 2017, Statistics and Computing 27, 1413-1432):

.. math:: \log \hat p(y_i | y_{-i}) = \log \sum_s w_{is}\, p(y_i \mid \beta_s, u_s, \phi_s), \qquad
          w_{is} \propto 1 / p(y_i \mid \beta_s, u_s, \phi_s) \text{ (smoothed)},

and fails where a row says much about its own group's effect: k is then above 0.7. It is kept for comparison with other
programs; `loo` integrates the effects out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.importance import logsumexp, pareto_smooth
from partialpool.posterior.predict import need_rows

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlainLoo:
    """By row elpd and pareto_k, each (n,); the sum `total`, its error `se` over the rows, effective number `p`."""

    elpd: Array
    pareto_k: Array
    total: float
    se: float
    p: float


def plain_loo(fit: Posterior) -> PlainLoo:
    """Plain Pareto-smoothed leave-one-out of a fit's draws.

    Parameters
    ----------
    fit : Posterior
        With its rows, few enough for ``fit.to_arviz()`` to hold their log densities at the draws.

    Raises
    ------
    ModelError
        If the fit was saved without its rows.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> bool(plain_loo(fit).pareto_k.max() > 0.7)
    True
    """
    need_rows(fit, "plain_loo()")
    tree = fit.to_arviz()
    (values,) = tree["log_likelihood"].data_vars.values()
    chains = values.sizes["chain"]
    logs = values.to_numpy().reshape(-1, values.shape[-1])
    efficiency = 1.0 if chains == 1 else _efficiency(tree, len(logs))
    n = logs.shape[1]
    elpd, k = np.empty(n), np.empty(n)
    for row in range(n):
        smoothed, k[row] = pareto_smooth(-logs[:, row], efficiency)
        elpd[row] = logsumexp(smoothed + logs[:, row])
    inside = float((logsumexp(logs, axis=0) - np.log(len(logs))).sum())
    total = float(elpd.sum())
    return PlainLoo(elpd, k, total, float(np.sqrt(n * elpd.var())), inside - total)


def _efficiency(tree: Any, draws: int) -> float:
    """ArviZ's: the mean effective sample size of all that is in the posterior, over the number of draws."""
    import arviz_stats  # noqa: F401  (it adds the accessor)

    ess = tree["posterior"].to_dataset().azstats.ess(method="mean")
    return float(np.hstack([ess[name].to_numpy().ravel() for name in ess.data_vars]).mean() / draws)
