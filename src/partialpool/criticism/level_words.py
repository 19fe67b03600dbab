"""Sentences about levels that WAIC and DIC share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partialpool.criticism.effective import COEFFICIENTS, HYPERPARAMETERS, TOTAL

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior


#: Parameters by which what is left of p_D may be off before it is said.
ROUGH = 0.5


def marginal_of(fit: Posterior) -> str:
    """What is integrated, and what a unit is."""
    design, leaf = fit.model.design, fit.model.latent.leaf
    assert leaf is not None
    name = design.factors[leaf].name
    others = [factor.name for f, factor in enumerate(design.factors) if f != leaf]
    told = f"the effects of {name} are integrated over their population, a unit is a group of {name}"
    return told + (f" (given the effects of {' and '.join(others)})" if others else "")


def conditional_of(fit: Posterior) -> str:
    """What the conditional densities are about."""
    if not fit.model.design.factors:
        return "conditional: a unit is a row, given all parameters (the model has no group effects)."
    return "conditional: group effects count as parameters, a unit is a row; it is about new rows of the same groups."


def level_sentence(levels: pandas.DataFrame) -> str:
    """What the groups' effects cost."""
    rows = {str(name): (int(row["parameters"]), float(row["effective"])) for name, row in levels.iterrows()}
    parts = [
        f"the {count:,} effects of {name} cost {effective:.1f}"
        for name, (count, effective) in rows.items()
        if name not in (COEFFICIENTS, HYPERPARAMETERS, TOTAL)
    ]
    (whole, spent), (number, own) = rows[TOTAL], rows[COEFFICIENTS]
    noun = "coefficient" if number == 1 else "coefficients"
    parts.append(f"the {number:,} {noun} {own:.1f}")
    count, left = rows[HYPERPARAMETERS]
    if left < -ROUGH or left > count + ROUGH:
        parts.append(
            f"the rest, {left:.1f}, is not that of the hyperparameters alone (the shares of the levels take the "
            "likelihood for quadratic)"
        )
    if whole == 1:
        return f"Of its 1 parameter the data determine {spent:.1f} (p_D)."
    return f"Of {whole:,} parameters the data determine {spent:.1f} (p_D): {'; '.join(parts)}. See .levels."
