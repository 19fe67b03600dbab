"""Posterior densities with their priors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialpool.errors import ModelError, did_you_mean
from partialpool.present import canvas
from partialpool.spec.distributions import LKJ, Distribution, Normal

Array = NDArray[np.float64]
INTERCEPT = "Intercept"
#: The families' own parameters, which are positive.
OWN_PARAMETERS = ("sigma", "nu", "phi", "shape")


def densities(fit: Any, names: Sequence[str] | None, figsize: tuple[float, float] | None) -> Figure:
    """See `Plots.density`."""
    known = [str(name) for name in fit.summary().index]
    asked = list(known if names is None else dict.fromkeys(names))
    for name in asked:
        if name not in known:
            raise ModelError(f"There is no parameter {name!r}. {did_you_mean(name, known)}")
    if not asked:
        raise ModelError("No parameter was named; give at least one of summary()'s names, or none for all.")
    shown = asked[: canvas.MAX_PANELS]
    notes = ["Blue: posterior, its 90% interval shaded, its mean dotted. Grey: prior."]
    if len(shown) < len(asked):
        notes.append(f"The first {len(shown)} of {len(asked)} parameters; give names= to see others.")
    across = min(3, len(shown)) if len(shown) != 4 else 2
    down = math.ceil(len(shown) / across)
    figure = canvas.new_figure(figsize or (max(4.6, 3.1 * across), 0.9 + 2.0 * down))
    grid = figure.subplots(down, across, squeeze=False, gridspec_kw={"wspace": 0.1, "hspace": 0.08})
    for axes, name in zip(grid.flat, shown, strict=False):
        _panel(axes, fit, name)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    canvas.heading(figure, "Posterior and prior")
    canvas.footnote(figure, notes)
    return figure


def support_of(name: str) -> tuple[float, float]:
    """The values that a parameter can take, by its name."""
    if name.startswith("cor("):
        return (-1.0, 1.0)
    positive = name in OWN_PARAMETERS or (name.startswith("sd(") and name.endswith(")"))
    return (0.0, math.inf) if positive else (-math.inf, math.inf)


def _panel(axes: Axes, fit: Any, name: str) -> None:
    draws = np.asarray(fit.draws(name), dtype=float)
    places, heights = canvas.density(draws, support_of(name))
    row = fit.summary().loc[name]
    axes.plot(places, heights, color=canvas.POOLED, linewidth=1.5, zorder=3)
    within = (places >= float(row["q05"])) & (places <= float(row["q95"]))
    axes.fill_between(places, heights, where=list(within), color=canvas.POOLED, alpha=0.22, linewidth=0)
    mean = float(row["mean"])
    top = float(np.interp(mean, places, heights))
    axes.plot([mean, mean], [0, top], color=canvas.POOLED, linewidth=1.2, linestyle=":")
    prior = prior_density(fit.model, name, places)
    if prior is not None:
        axes.plot(places, np.minimum(prior, 1.6 * heights.max()), color=canvas.MUTED, linewidth=1.5, zorder=2)
    axes.set_title(canvas.clip(name, 36), fontsize=9)
    axes.set_ylim(0, None)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=canvas.SMALL)
    canvas.tidy(axes, grid="")
    axes.spines["left"].set_visible(False)


def prior_density(model: Any, name: str, places: Array) -> Array | None:
    """The prior density of a parameter as `summary()` names it; None where it is flat or has no simple form."""
    priors = model.priors
    if name.rpartition(".")[2] == INTERCEPT and name in priors and name in model.design.x_names:
        prior = _intercept_prior(model, name)
    elif name in priors:
        prior = priors[name]
    else:
        return _correlation_prior(model, name, places)
    if isinstance(prior, LKJ):
        return _correlation_prior(model, name, places)
    if prior is None or not prior.proper:
        return None
    return np.exp(prior.log_density(places))


def _intercept_prior(model: Any, intercept: str) -> Distribution | None:
    """The prior of the intercept as written in the formula, which the one at the predictors' means implies."""
    prior: Distribution = model.priors[intercept]
    if model.priors.matched_key(intercept) == intercept:
        return prior
    own = dict(zip(model.design.x_names, model.design.x_predictor.tolist(), strict=True))
    others = [name for name in own if name != intercept and own[name] == own[intercept]]
    if not others:
        return prior
    slopes = [model.priors[name] for name in others]
    if not isinstance(prior, Normal) or not all(isinstance(slope, Normal) for slope in slopes):
        return None
    centre = dict(zip(model.design.x_names, model.coefficients.centre, strict=True))
    mean = prior.mu - sum(centre[name] * slope.mu for name, slope in zip(others, slopes, strict=True))
    variance = prior.sigma**2 + sum((centre[n] * slope.sigma) ** 2 for n, slope in zip(others, slopes, strict=True))
    return Normal(mean, math.sqrt(variance))


def _correlation_prior(model: Any, name: str, places: Array) -> Array | None:
    """LKJ's margin: (r + 1)/2 is Beta(b, b) with b = eta - 1 + q/2, for q terms (Lewandowski et al. 2009)."""
    for group in model.design.groups:
        factor = model.design.factors[group.factor].name
        pairs = [f"cor({a},{b}|{factor})" for a in group.names for b in group.names]
        if not group.correlated or name not in pairs:
            continue
        for slot in (f"cor({','.join(group.names)}|{factor})", f"cor({factor})"):
            prior = model.priors.get(slot)
            if isinstance(prior, LKJ):
                b = prior.eta - 1 + len(group.names) / 2
                constant = math.lgamma(2 * b) - 2 * math.lgamma(b) - (2 * b - 1) * math.log(2)
                inside = np.clip(places, -1 + 1e-9, 1 - 1e-9)
                return np.exp(constant + (b - 1) * np.log1p(-(inside**2)))
    return None
