"""Families of the response: the distribution of y given the linear predictor."""

from __future__ import annotations

from dataclasses import dataclass

from partialpool.errors import ModelError, did_you_mean

_LATER = ("bernoulli", "binomial", "poisson", "negative_binomial", "gamma", "beta", "student_t")


@dataclass(frozen=True)
class Gaussian:
    """A normal response with identity link: ``y ~ Normal(eta, sigma)``.

    Examples
    --------
    >>> Gaussian().name
    'gaussian'
    """

    name: str = "gaussian"
    link: str = "identity"

    def __str__(self) -> str:
        return f"{self.name} ({self.link} link)"


def resolve_family(family: str | Gaussian) -> Gaussian:
    """The family that a user named.

    Raises
    ------
    ModelError
        Where there is no such family in this version.
    """
    if isinstance(family, Gaussian):
        return family
    name = str(family).strip().lower()
    if name in ("gaussian", "normal"):
        return Gaussian()
    if name in _LATER:
        raise ModelError(
            f"family={family!r} is not in this version of partialpool, which fits family='gaussian'; "
            "other responses come next."
        )
    raise ModelError(f"There is no family {family!r}. {did_you_mean(name, ['gaussian'])}")
