"""The same model with terms added to its formula or taken from it, fitted with the same priors and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from partialpool.errors import ModelError, did_you_mean
from partialpool.model import Model
from partialpool.spec.distributions import Distribution
from partialpool.spec.formula import Terms
from partialpool.spec.predictors import formula as several
from partialpool.spec.priors import CENTERED_INTERCEPT, PriorTable, Slot, resolve_priors

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

#: Options of a fit that a refit takes; those of `inference.base.Settings` are the fit's own where they are not given.
OPTIONS = ("draws", "ess", "seed", "threads", "progress", "method", "parameterization")


def edited(terms: Terms, added: Mapping[str, Sequence[str]], removed: Sequence[str] = ()) -> str | Terms:
    """A formula with terms added to a linear predictor ("" is the mean's), and terms taken from the mean's.

    Examples
    --------
    >>> from partialpool.spec.formula import parse_formula
    >>> edited(parse_formula("y ~ x * z + (1 | g)"), {"": ["w"]}, ["x:z"])
    'y ~ x * z + (1 | g) + w - x:z'
    """
    main = " ".join([terms.main, *(f"+ {text}" for text in added.get("", ())), *(f"- {text}" for text in removed)])
    if not terms.predictors:
        return main
    parts = {
        name: " ".join([part.formula, *(f"+ {text}" for text in added.get(name, ()))])
        for name, part in terms.predictors.items()
    }
    return several(main, **parts)


def refit(fit: Posterior, formula: str | Terms, data: pandas.DataFrame, caller: str, **options: Any) -> Posterior:
    """A fit of another formula: priors of all that both models have, and options not given, are those of the fit.

    Parameters
    ----------
    fit : Posterior
    formula : str or Terms
    data : data frame
    caller : str
        Who asks, as messages name it.
    **options
        As of :func:`partialpool.fit`.

    Raises
    ------
    ModelError
        For an option that there is not, or a prior or family.
    """
    from partialpool.posterior.fitting import fit_model

    for name in options:
        if name in ("priors", "family"):
            raise ModelError(f"{caller} keeps the priors and the family of the fit; leave {name}= out.")
        if name not in OPTIONS:
            raise ModelError(f"{caller} has no option {name!r}. {did_you_mean(name, OPTIONS)}")
    model = Model.from_formula(formula, data, family=fit.model.family)
    slots = model.priors.slots
    model = replace(model, priors=resolve_priors(shared_priors(fit.model.priors, slots), slots))
    settings = fit.result.settings
    kept = {name: getattr(settings, name) for name in ("draws", "ess", "seed", "threads", "progress")}
    return fit_model(model, **{**kept, **options})


def shared_priors(known: PriorTable, slots: Sequence[Slot]) -> dict[str, Distribution | str]:
    """What to ask for in a model with these slots, so that its priors are those of another where both have a parameter.

    A parameter that is new has the prior that the user gave to all of its kind ("beta", "sd"), or its default.

    Examples
    --------
    >>> from partialpool.spec.distributions import Normal
    >>> slots = [Slot(name, "coefficient", (), Normal(0, 1)) for name in "xz"]
    >>> shared_priors(resolve_priors({"beta": Normal(0, 2)}, slots[:1]), slots)
    {'x': Normal(mu=0.0, sigma=2.0), 'z': Normal(mu=0.0, sigma=2.0)}
    """
    named = {known.matched_key(name): known[name] for name in known}
    out: dict[str, Distribution | str] = {}
    for slot in slots:
        if slot.name not in known:
            key = next((key for key in slot.addresses if key in named), None)
            if key is not None:
                out[slot.name] = named[key]
            continue
        key, prior = known.matched_key(slot.name), known[slot.name]
        if key is None and prior == slot.default:
            continue
        centered = f"{slot.prefix}{CENTERED_INTERCEPT}"
        at_mean = slot.kind == "intercept" and key in (None, centered)
        out[centered if at_mean else slot.name] = prior
    return out
