r"""Populations of many components whose weights are estimated: scale mixtures, unimodal, non-parametric.

Scale mixture (adaptive shrinkage; Stephens, 2017, Biostatistics 18, 275-294): normals around one mode whose sds form a
fixed geometric grid, from far below the standard errors to beyond the data, and a point at the mode. Unimodal: the same
with uniforms, which can form any symmetric unimodal distribution. Non-parametric: any distribution at all (Kiefer and
Wolfowitz, 1956), which the likelihood makes one of finitely many points. The weights maximise the marginal likelihood
(with a few pseudo-units on a null that is known), a convex problem (`partialpool.pooling.simplex`), on the link scale
of the family.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.unitpass import component_integrals
from partialpool.errors import ModelError
from partialpool.pooling.grid import GridPosterior
from partialpool.pooling.linked import link_data
from partialpool.pooling.mixtures import NormalMixturePosterior
from partialpool.pooling.npmle import npmle
from partialpool.pooling.posteriors import DiscretePosterior, UnitPosterior
from partialpool.pooling.shapes import (
    FAMILIES,
    NORMAL,
    UNIFORM,
    Components,
    ComponentShape,
    DiscreteShape,
    Shape,
    unit_log_likelihood,
)
from partialpool.pooling.simplex import maximise_weights
from partialpool.pooling.units import Units

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Ratio of neighbouring sds of the grid; half widths of uniforms are sqrt(3) times sds.
RATIO = 2.0**0.5
#: The mode is searched on so many units at most, evenly spaced.
MODE_UNITS = 4_000
#: Where the mode is a null that is known, its point counts so many units more (of few units, a share): between a point
#: and the narrowest normals the likelihood cannot choose, and false discoveries come from choosing the latter (as in
#: Stephens, 2017).
PSEUDO_NULLS, NULLS_PER_UNIT = 9.0, 0.02
#: Components of smaller weight are dropped from the answer.
NEGLIGIBLE = 1e-10


@dataclass(frozen=True, eq=False)
class WeightedFit:
    """A population of estimated weights, the units' posterior under it, and how well the optimum is certified.

    parameters : by name; log_likelihood : at the optimum; gap : the Karush-Kuhn-Tucker gap, per unit; components : how
    many have weight; note : what the user should know, or "".
    """

    parameters: dict[str, float]
    log_likelihood: float
    gap: float
    components: int
    shape: Shape
    posterior: UnitPosterior
    note: str = ""


def fit_weights(units: Units, kind: str, mode: float | None, threads: int = 1) -> WeightedFit:
    """Estimate the weights of a population by maximum marginal likelihood.

    Parameters
    ----------
    units : Units
    kind : "scale_mixture", "unimodal" or "npmle".
    mode : on the link scale; None to estimate it. The non-parametric population has none.
    """
    if kind == "npmle":
        return _fit_points(units, threads)
    note, known = "", mode is not None
    if mode is None:
        mode = _find_mode(units, kind, threads)
    elif units.family == "normal":
        note = _far_from(units, mode)
    spreads = spread_grid(units, mode)
    logs = component_logs(units, kind, mode, spreads, threads)
    penalty = null_penalty(spreads.size, units.n) if known else None
    found = maximise_weights(logs, penalty=penalty, threads=threads, overwrite=True)
    del logs
    keep = found.weights > NEGLIGIBLE
    weights = found.weights[keep] / found.weights[keep].sum()
    own = spreads[keep]
    code, stretch = component_code(kind)
    components = Components(
        np.zeros(own.size, dtype=np.int64), weights, np.full(own.size, code), np.full(own.size, mode),
        stretch * own, np.ones(own.size),
    )  # fmt: skip
    sd = float(weights @ own**2) ** 0.5
    null_share = float(weights[own == 0].sum())
    posterior: UnitPosterior
    if units.family == "normal" and kind == "scale_mixture":
        posterior = NormalMixturePosterior(units.y, units.size, np.ones(1), components, threads=threads)
    else:
        c = components
        posterior = GridPosterior(
            FAMILIES.index(units.family), units.y, units.size, np.ones(1), c.node, c.weight, c.kind, c.location,
            c.spread, c.nu, None, threads=threads,
        )  # fmt: skip
    if null_share == 1.0:
        note = note or f"The likelihood is highest where every unit is exactly at the mode, {mode:.4g}."
    parameters = {"mean": mode, "sd": sd, "null_share": null_share}
    shape = ComponentShape(units.family, np.ones(1), components)
    return WeightedFit(parameters, found.log_likelihood, found.gap, int(keep.sum()), shape, posterior, note)


def spread_grid(units: Units, mode: float) -> Array:
    """0 and a geometric grid of sds: from a tenth of the smallest standard error to twice the largest excess."""
    value, se = link_data(units)
    low = float(np.min(se)) / 10
    excess = float(np.max((value - mode) ** 2 - se**2))
    high = 2 * excess**0.5 if excess > 0 else 8 * low
    high = max(high, 2 * low)
    count = int(np.ceil(np.log(high / low) / np.log(RATIO))) + 1
    return np.concatenate([[0.0], low * RATIO ** np.arange(count)])


def component_code(kind: str) -> tuple[int, float]:
    """The kernels' number of a population's components, and their spread over their sd."""
    return (UNIFORM, 3**0.5) if kind == "unimodal" else (NORMAL, 1.0)


def null_penalty(count: int, n_units: int) -> Array:
    """Pseudo-units on the point at a mode that is known, (C,)."""
    return np.concatenate([[min(PSEUDO_NULLS, NULLS_PER_UNIT * n_units)], np.zeros(count - 1)])


def component_logs(units: Units, kind: str, mode: float, spreads: Array, threads: int) -> Array:
    """Log marginal density of each unit under each component, (C, J)."""
    code, stretch = component_code(kind)
    count, widths = spreads.size, stretch * spreads
    return component_integrals(
        FAMILIES.index(units.family), units.y, units.size, np.full(count, code), np.full(count, mode), widths,
        np.ones(count), threads=threads,
    )  # fmt: skip


def _find_mode(units: Units, kind: str, threads: int) -> float:
    """The mode that maximises the marginal likelihood, weights and all: by golden section within the data."""
    from scipy.optimize import minimize_scalar

    some = units
    if units.n > MODE_UNITS:
        rows = np.unique(np.linspace(0, units.n - 1, MODE_UNITS).round().astype(int))
        some = Units(units.family, units.y[rows], units.size[rows], units.names[rows], units.named)
    value, se = link_data(some)
    centre = float(np.average(value, weights=1 / (se**2 + np.var(value) + 1e-300)))
    reach = 2 * float(np.sqrt(np.var(value))) + float(np.median(se))
    spreads = spread_grid(some, centre)

    def loss(mode: float) -> float:
        return -maximise_weights(component_logs(some, kind, mode, spreads, threads), tolerance=1e-6).log_likelihood

    found = minimize_scalar(
        loss, bounds=(centre - reach, centre + reach), method="bounded", options={"xatol": 1e-3 * reach}
    )
    return float(found.x)


def _far_from(units: Units, mode: float) -> str:
    """A warning where the units do not lie around the mode that the population was given."""
    z = (units.y - mode) / units.size
    centre = float(np.average(units.y, weights=1 / units.size**2))
    same_side = max(float((z > 2).mean()), float((z < -2).mean()))
    if same_side < 0.9:
        return ""
    return (
        f"Nearly all units lie on one side of {mode:g}, where this population has its mode, around {centre:.4g}. To "
        "shrink towards a mode that is estimated give priors={'mean': 'estimate'}."
    )


def _fit_points(units: Units, threads: int) -> WeightedFit:
    """The non-parametric population."""
    if units.X is not None:
        raise ModelError("A non-parametric population takes no covariates; use population='normal'.")
    found = npmle(FAMILIES.index(units.family), units.y, units.size, threads=threads)
    places, masses = found.places, found.weights

    def log_likelihood(piece: Ints | slice) -> Array:
        return unit_log_likelihood(units.family, units.y[piece], units.size[piece], places[:, None])

    posterior = DiscretePosterior(
        units.n, log_likelihood, lambda theta: units.own_sd(theta) ** 2, places, masses, threads=threads
    )
    shape = DiscreteShape(units.family, places, masses)
    mean, sd = shape.moments()
    parameters = {"mean": mean, "sd": sd}
    return WeightedFit(parameters, found.log_likelihood, found.gap, places.size, shape, posterior)
