"""Which engine, and why, in words."""

from __future__ import annotations

from partialpool.errors import ModelError, did_you_mean
from partialpool.inference.base import Engine
from partialpool.model import Model

METHODS = ("auto", "marginal", "laplace", "whitened", "nuts")
#: More hyperparameters than this are explored by NUTS: importance weights lose 6% a dimension at best.
MOST_DIMENSIONS = 32


def select_engine(model: Model, method: str = "auto") -> tuple[Engine, str]:
    """The engine for a model, and the reason as a sentence.

    Parameters
    ----------
    model : Model
    method : {"auto", "marginal", "laplace", "whitened", "nuts"}

    Raises
    ------
    ModelError
        Where there is no such method, or it does not apply.
    """
    from partialpool.inference.marginal import MarginalEngine

    if method not in METHODS:
        raise ModelError(f"There is no method {method!r}. {did_you_mean(str(method), METHODS)}")
    if not model.exact:
        return _select_for_quadrature(model, method)
    size = model.hyperparameters.size
    if method == "laplace":
        raise ModelError(
            "method='laplace' is for responses that are not Gaussian; "
            "a Gaussian one is integrated exactly by method='marginal'."
        )
    if method == "nuts":
        from partialpool.inference.reference import ReferenceEngine

        return ReferenceEngine(), "NUTS on the whole model, nothing integrated out, because method='nuts' asks for it."
    if method == "whitened" or (method == "auto" and size > MOST_DIMENSIONS):
        from partialpool.inference.whitened import WhitenedEngine

        asked = (
            "method='whitened' asks for it"
            if method == "whitened"
            else f"{size} hyperparameters are too many for importance sampling"
        )
        return (
            WhitenedEngine(),
            f"effects and coefficients integrated out exactly, NUTS on the hyperparameters, because {asked}.",
        )
    return MarginalEngine(), (
        "effects and coefficients integrated out exactly (the response is Gaussian), "
        f"importance sampling of the {size} hyperparameter{'s' if size != 1 else ''}."
    )


def _select_for_quadrature(model: Model, method: str) -> tuple[Engine, str]:
    """The engine where the response is not Gaussian (or its sigma has a formula of its own)."""
    from partialpool.inference.laplace import MOST_DIMENSIONS as MOST_UNKNOWNS
    from partialpool.inference.laplace import LaplaceEngine

    if method == "marginal":
        raise ModelError(
            f"method='marginal' integrates a Gaussian response exactly; with {model.family} use method='auto'."
        )
    if method == "nuts":
        from partialpool.inference.reference_joint import JointReferenceEngine

        asked = "NUTS on the whole model, nothing integrated out, because method='nuts' asks for it."
        return JointReferenceEngine(), asked
    layout = model.latent
    leaf = (
        "there are no group effects"
        if layout.leaf is None
        else (f"the effects of {model.design.factors[layout.leaf].name!r} integrated out by quadrature")
    )
    size = model.hyperparameters.size + len(model.coefficients.names) + layout.n_root
    if method == "whitened":
        from partialpool.inference.whitened_joint import WhitenedJointEngine

        return WhitenedJointEngine(), f"{leaf}, NUTS on the rest, because method='whitened' asks for it."
    way = (
        f"importance sampling of the other {size} unknowns"
        if size <= MOST_UNKNOWNS
        else f"NUTS in whitened coordinates on the other {size:,} unknowns"
    )
    return LaplaceEngine(), f"{leaf} (the response is {model.family.name}), {way}."
