"""Sentences about levels that WAIC and DIC share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partialpool.criticism.effective import COEFFICIENTS, HYPERPARAMETERS, TOTAL

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior


def marginal_of(fit: Posterior) -> str:
    """What is integrated, and what a unit is."""
    design, leaf = fit.model.design, fit.model.latent.leaf
    assert leaf is not None
    name = design.factors[leaf].name
    others = [factor.name for f, factor in enumerate(design.factors) if f != leaf]
    told = f"the effects of {name} are integrated over their population, a unit is a group of {name}"
    return told + (f" (given the effects of {' and '.join(others)})" if others else "")


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
    return f"Of {whole:,} parameters the data determine {spent:.1f} (p_D): {'; '.join(parts)}. See .levels."
