"""Families of the response: the distribution of y given its linear predictors.

Examples
--------
>>> from partialpool.spec.families import FAMILIES, resolve_family
>>> str(resolve_family("negbinomial"))
'negative_binomial (log link)'
>>> FAMILIES["bernoulli"]().links
('logit', 'probit', 'cloglog')
"""

from __future__ import annotations

from partialpool.errors import ModelError, did_you_mean
from partialpool.spec.families.base import Family, Helpers
from partialpool.spec.families.binomial import Bernoulli, BetaBinomial, Binomial
from partialpool.spec.families.counts import Geometric, NegativeBinomial, NegativeBinomial1, Poisson
from partialpool.spec.families.positive import Exponential, Gamma, InverseGaussian, LogNormal, Weibull
from partialpool.spec.families.real import Gaussian, StudentT
from partialpool.spec.families.unit import Beta

__all__ = [
    "FAMILIES",
    "Bernoulli",
    "Beta",
    "BetaBinomial",
    "Binomial",
    "Exponential",
    "Family",
    "Gamma",
    "Gaussian",
    "Geometric",
    "Helpers",
    "InverseGaussian",
    "LogNormal",
    "NegativeBinomial",
    "NegativeBinomial1",
    "Poisson",
    "StudentT",
    "Weibull",
    "resolve_family",
]

#: Name -> class of every family.
FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (
        Gaussian,
        StudentT,
        Bernoulli,
        Binomial,
        BetaBinomial,
        Poisson,
        NegativeBinomial,
        NegativeBinomial1,
        Geometric,
        Gamma,
        InverseGaussian,
        LogNormal,
        Exponential,
        Weibull,
        Beta,
    )
}

#: What else families are called, in brms, glmmTMB, lme4, bambi and statsmodels; compared without case, "_", "-", ".".
_ALIASES = {
    "normal": "gaussian",
    "student": "student_t",
    "t": "student_t",
    "bernouli": "bernoulli",
    "logistic": "bernoulli",
    "negbinomial": "negative_binomial",
    "negbin": "negative_binomial",
    "nb": "negative_binomial",
    "nb2": "negative_binomial",
    "nbinom": "negative_binomial",
    "nbinom2": "negative_binomial",
    "negbinomial2": "negative_binomial",
    "neg_binomial": "negative_binomial",
    "neg_binomial_2": "negative_binomial",
    "negative_binomial2": "negative_binomial",
    "nb1": "negative_binomial1",
    "nbinom1": "negative_binomial1",
    "negbinomial1": "negative_binomial1",
    "neg_binomial_1": "negative_binomial1",
    "log_normal": "lognormal",
    "inverse_normal": "inverse_gaussian",
    "wald": "inverse_gaussian",
    "betabinom": "beta_binomial",
    "exp": "exponential",
}


def _folded(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in "_-. ")


def resolve_family(family: str | Family) -> Family:
    """The family that a user named, with its default link; a family itself is returned as it is.

    Raises
    ------
    ModelError
        Where there is no such family.

    Examples
    --------
    >>> str(resolve_family("Student"))
    'student_t (identity link)'
    """
    if isinstance(family, Family):
        return family
    names = {_folded(name): name for name in FAMILIES}
    names.update((_folded(alias), name) for alias, name in _ALIASES.items() if name in FAMILIES)
    found = names.get(_folded(str(family)))
    if found is None:
        raise ModelError(f"There is no family {family!r}. {did_you_mean(str(family), FAMILIES)}")
    return FAMILIES[found]()
