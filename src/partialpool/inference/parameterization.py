"""How the reference engines stand in each group term: what the user asked for, and how it is told.

The degree of centring of a term is 1 where the sampler moves in the effects u themselves (centred), 0 where it moves in
``u / sd`` (non-centred), and between the two where it is 1 less the share that the groups take from the population.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from partialpool.errors import ModelError, did_you_mean
from partialpool.model import Model

CENTRED, NON_CENTRED, AUTO = "centered", "non-centered", "auto"
WORDS: dict[str, float | None] = {CENTRED: 1.0, NON_CENTRED: 0.0, AUTO: None}


def term_names(model: Model) -> list[str]:
    """The text of every group term, with the name of its predictor in front where that tells two apart.

    Examples
    --------
    >>> import partialpool as pp
    >>> term_names(pp.Model.from_formula("Yield ~ 1 + (1|Batch)", pp.datasets.load("Dyestuff")))
    ['(1 | Batch)']
    """
    groups = model.design.groups
    texts = [group.text for group in groups]
    modelled = list(model.design.terms.predictors)
    return [
        f"{modelled[group.predictor - 1]}: {text}" if group.predictor and texts.count(text) > 1 else text
        for group, text in zip(groups, texts, strict=True)
    ]


def wanted_degrees(
    model: Model, parameterization: Mapping[str, str | float] | None, *, between: bool = True
) -> list[float | None]:
    """By term the degree of centring asked for, None where the engine is to choose.

    Parameters
    ----------
    model : Model
    parameterization : mapping, optional
        From a factor's name or a term's text to "centered", "non-centered", "auto" or a number from 0 to 1. A term's
        own text counts before its factor's name.
    between : bool
        Whether the engine has degrees between 0 and 1.

    Raises
    ------
    ModelError
        For a name that is no factor or term, and for an impossible value.
    """
    terms = model.hyperparameters.terms
    out: list[float | None] = [None] * len(terms)
    if parameterization is None:
        return out
    if not isinstance(parameterization, Mapping):
        raise ModelError(
            f"parameterization = {parameterization!r} is not possible; give a mapping from factors to a choice, such "
            f"as {{'school': '{CENTRED}'}}."
        )
    names = term_names(model)
    factors = [term.factor_name for term in terms]
    squeezed = ["".join(name.split()) for name in names]
    whole = {key: value for key, value in parameterization.items() if key in factors}
    single = {key: value for key, value in parameterization.items() if key not in factors}
    for key, value in whole.items():
        degree = _degree(key, value)
        for position, factor in enumerate(factors):
            if factor == key:
                out[position] = degree
    for key, value in single.items():
        text = "".join(str(key).split())
        if text not in squeezed:
            raise ModelError(
                f"parameterization names {key!r}, which is no grouping factor or group term of the model. "
                f"{did_you_mean(str(key), [*dict.fromkeys(factors), *names])}"
            )
        out[squeezed.index(text)] = _degree(key, value)
    for name, term, chosen in zip(names, terms, out, strict=True):
        if chosen is None or chosen in (0.0, 1.0):
            continue
        if not between:
            raise ModelError(
                f"parameterization of {name} is {chosen:g}; with a Gaussian response a term is '{CENTRED}' (1) or "
                f"'{NON_CENTRED}' (0), nothing between."
            )
        if term.covariance.n_correlations:
            raise ModelError(
                f"parameterization of {name} is {chosen:g}; a term with correlated effects is '{CENTRED}' (1) or "
                f"'{NON_CENTRED}' (0), nothing between. Write || for independent effects."
            )
    return out


def _degree(key: object, value: object) -> float | None:
    if isinstance(value, str) and value in WORDS:
        return WORDS[value]
    if isinstance(value, int | float | np.number) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    hint = f" {did_you_mean(value, WORDS)}" if isinstance(value, str) else ""
    raise ModelError(
        f"parameterization of {key!r} is {value!r}; give '{CENTRED}', '{NON_CENTRED}', '{AUTO}', or a number from 0 "
        f"(non-centered) to 1 (centered).{hint}"
    )


def told(degree: float) -> str:
    """The degree of centring in words.

    Examples
    --------
    >>> told(1.0), told(0.0), told(0.43)
    ('centered', 'non-centered', 'between (0.43)')
    """
    if math.isclose(degree, 1.0) or math.isclose(degree, 0.0, abs_tol=1e-9):
        return CENTRED if degree > 0.5 else NON_CENTRED
    return f"between ({degree:.2f})"
