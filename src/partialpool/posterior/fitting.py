"""From a formula to a posterior in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from partialpool.model import Model
from partialpool.posterior.posterior import Posterior
from partialpool.spec.families import Family
from partialpool.spec.formula import Terms
from partialpool.spec.priors import Distribution


def fit(
    formula: str | Terms,
    data: Any,
    *,
    family: str | Family = "gaussian",
    priors: Mapping[str, Distribution | str] | None = None,
    method: str = "auto",
    draws: int = 4000,
    ess: float = 1000,
    seed: int | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    parameterization: Mapping[str, str | float] | None = None,
) -> Posterior:
    """Fit a hierarchical model: the whole posterior, from a formula and a data frame.

    Parameters
    ----------
    formula : str, or what :func:`partialpool.formula` made of several
        An lme4 or brms formula: ``"y ~ x + (1 + x | school / class)"``; additions to the response such as
        ``"y | se(s) ~ ..."`` give known standard errors, ``weights(w)`` and ``precision(w)``.
    data : data frame, pyarrow table, dict of arrays, or path of a CSV or Parquet file
        One row an observation. Rows with missing values in the columns used are dropped, and counted.
    family : str or family
        The distribution of the response: ``"gaussian"``, ``"bernoulli"``, ``"binomial"``, ``"poisson"``,
        ``"negative_binomial"``, ...; with options ``pp.families.Gamma(link="inverse")``.
    priors : mapping, optional
        Priors by name, ``{"sd(school)": pp.HalfNormal(1)}``; defaults for the rest (print ``fit.model.priors``).
    method : {"auto", "marginal", "laplace", "whitened", "nuts"}
        "auto" integrates out what can be, and explores the rest by importance sampling, or by NUTS where that is not
        enough; "nuts" is the slow reference, with nothing integrated out.
    draws : int
        Equally weighted draws that the fit returns.
    ess : float
        Effective sample size asked of every hyperparameter.
    seed : int, optional
        Makes the fit reproducible to the bit on one machine; a fresh one is drawn, and kept in the fit, without it.
    threads : int, optional
        Cores to use; all by default. The result does not depend on it.
    progress : bool, optional
        Show a bar for work of over two seconds: always, never, or (default) on a terminal.
    parameterization : mapping, optional
        For method="nuts": how the sampler stands in the effects of a factor or a group term (``"school"`` or
        ``"(1 | school)"``): "centered", "non-centered", "auto", or a number from 0 (non-centered) to 1. It changes
        the speed and not the posterior.

    Returns
    -------
    Posterior

    Raises
    ------
    FormulaError, DataError, PriorError, ModelError
        With what is wrong, where, and how to mend it.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> print(fit.summary().loc["Days", "mean"].round(1))
    10.5
    """
    model = Model.from_formula(formula, data, family=family, priors=priors)
    return model.fit(
        method=method, draws=draws, ess=ess, seed=seed, threads=threads, progress=progress,
        parameterization=parameterization,
    )  # fmt: skip
