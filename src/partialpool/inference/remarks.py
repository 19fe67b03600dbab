"""What the data say against a model: separation, runaway sds, overdispersion, default priors out of place."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.inference.root import RootLaplace, definite
from partialpool.model import Model
from partialpool.spec.distributions import Flat
from partialpool.spec.text import cut

Array = NDArray[np.float64]

#: A prior that lets one sd of a predictor change the link by no more than this needs no taming.
TIGHT = 1.2
#: Change of a log odds or log mean over the range of a predictor that no data tell apart from infinity.
INFINITE = 12.0
#: Group sd on a log odds or log scale beyond which nearly every group is all or nothing.
RUNAWAY_SD = 8.0
#: Observed over expected variance that is told, and how many of its standard errors it must lie above 1.
EXCESS, CERTAIN = 1.5, 5.0
#: Families whose variance follows from the mean alone, and the one with a variance of its own.
WIDER = {"poisson": "negative_binomial", "binomial": "beta_binomial", "geometric": "negative_binomial"}
#: A product's sd over that of what its parts leave of it, from which on its default prior is too narrow to be used.
FAR = 10.0
LINKS = ("logit", "probit", "cloglog", "log")


def remarks(laplace: RootLaplace) -> tuple[str, ...]:
    """Sentences for `fit.accuracy`.

    Raises
    ------
    ModelError
        Where a coefficient under a flat prior runs away: its posterior does not exist.
    """
    return (*_separation(laplace), *_runaway(laplace), *_overdispersion(laplace))


def _separation(laplace: RootLaplace) -> list[str]:
    """Coefficients that only their prior holds back."""
    density = laplace.density
    model = density.model
    if model.family.link not in LINKS or not density.p:
        return []
    point = laplace.point(laplace.phi, laplace.root)
    precision = definite(laplace.precision())
    sd = np.sqrt(np.maximum(np.diag(np.linalg.inv(precision))[: density.p], 0.0)) * density.scale
    gamma = density.gamma(point[None, :])[0]
    out = []
    for j, name in enumerate(model.coefficients.names):
        column = model.design.V[:, model.design.x_columns[j]]
        width = float(np.ptp(column))
        if not width or model.design.x_predictor[j] != 0:
            continue
        prior = model.priors[name]
        separated = _separates(model, column)
        if isinstance(prior, Flat):
            if separated or (abs(gamma[j]) * width > INFINITE and sd[j] * width > INFINITE / 3):
                raise ModelError(
                    f"The coefficient of {name!r} runs away (it reached {gamma[j]:.3g}): {name!r} separates the "
                    f"outcomes, and under its flat prior there is no posterior. Give it a proper one: "
                    f"{_tame(name, column, 2.5)}."
                )
            continue
        if separated and density.scale[j] * float(np.std(column)) > TIGHT:
            out.append(
                f"{name!r} separates the outcomes: the data alone would send its coefficient to infinity, and its "
                f"size, {gamma[j]:.2g} with sd {sd[j]:.2g}, is that of its prior {prior}. A prior of what is plausible "
                f"tames it, such as {_tame(name, column, 1.0)}."
            )
    return out


def _tame(name: str, column: Array, size: float) -> str:
    """A prior that lets one sd of a predictor change the link by about `size`."""
    return f"priors={{{name!r}: pp.Normal(0, {_short(size / (float(np.std(column)) or 1.0))})}}"


def _separates(model: object, column: Array) -> bool:
    """Whether the data alone would send a predictor's coefficient to infinity.

    Of yes and no: at one end of the predictor every outcome is the same, and all others lie beyond. Of counts: one of
    the two values of the predictor has nothing but zeros.
    """
    design, family = model.design, model.family  # type: ignore[attr-defined]
    if not family.discrete:
        return False
    y, trials = design.y, design.trials
    counts = not family.takes_trials and family.name != "bernoulli"
    events = y > 0
    others = y < (np.ones_like(y) if trials is None else trials)
    values = np.unique(column[:1000])
    if values.size <= 2 and (values := np.unique(column)).size == 2:
        ends = [column == end for end in values]
        return any(not (events & end).any() or (not counts and not (others & end).any()) for end in ends)
    if counts or not events.any() or not others.any():
        return False
    return bool(column[events].min() >= column[others].max() or column[events].max() <= column[others].min())


def _runaway(laplace: RootLaplace) -> list[str]:
    """Group sds at which nearly every group is all or nothing."""
    density = laplace.density
    model = density.model
    if model.family.link not in LINKS:
        return []
    theta = density.theta(laplace.t(laplace.phi[None, :]))
    out = []
    for term, group in zip(model.hyperparameters.terms, model.design.groups, strict=True):
        sds = term.covariance.sds(theta[:, term.parameters])[0]
        for name, sd, column in zip(term.names, sds, group.columns, strict=True):
            spread = float(np.sqrt(np.mean(model.design.V[:, column] ** 2)))
            if sd * spread > RUNAWAY_SD and group.predictor == 0:
                slot = f"sd({name}|{term.factor_name})"
                out.append(
                    f"{slot} runs away (it is {sd:.3g} at the mode): nearly every group of {term.factor_name!r} is all "
                    f"or nothing, so that the data hardly bound it. A prior tames it: "
                    f"priors={{{slot!r}: pp.HalfNormal({_short(2.5 / spread)})}}."
                )
    return out


def _overdispersion(laplace: RootLaplace) -> list[str]:
    """Pearson's statistic at the mode against its degrees of freedom."""
    density = laplace.density
    model, rows = density.model, density.rows
    family = model.family
    if family.name not in WIDER or (family.name == "binomial" and rows.trials.max() <= 1):
        return []
    point = laplace.point(laplace.phi, laplace.root)
    own = density.unpack(point)
    eta = rows.predictors(own.root)
    told = float(density.p)
    if density.q:
        moments = density.leaf_moments(point)
        u = moments.mean @ own.lam.T
        group = np.repeat(np.arange(rows.n_groups), np.diff(rows.pointer))
        eta = eta + (rows.z * u[group]).sum(axis=1)
        told += float((1.0 - np.einsum("gii->gi", moments.covariance)).clip(0, 1).sum())
    if density.n_root:
        precision = definite(laplace.precision())
        prior = np.zeros((1, *precision.shape))
        laplace.add_prior(prior, laplace.t(laplace.phi[None, :]), point)
        share = np.einsum("ij,ji->i", np.linalg.inv(precision), prior[0])[density.p :]
        told += float((1.0 - share).clip(0, 1).sum())
    zero = np.zeros_like(eta)
    mean = np.asarray(family.mean(eta, zero, zero)) * (rows.trials if family.takes_trials else 1.0)
    variance = np.maximum(np.asarray(family.variance(eta, zero, zero, rows.trials)), 1e-300)
    square = float((rows.weight * (rows.y - mean) ** 2 / variance).sum())
    free = float(rows.weight.sum()) - told
    if free < 10 or square / free < EXCESS or (square - free) / math.sqrt(2 * free) < CERTAIN:
        return []
    return [
        f"The response varies {square / free:.1f} times as much around its mean as the {family.name} family allows "
        f"(observed {square:,.0f}, expected {free:,.0f}); family={WIDER[family.name]!r} has a variance of its own."
    ]


def _short(value: float) -> str:
    return f"{value:.2g}"


def prior_remarks(model: Model) -> tuple[str, ...]:
    """Default priors of products whose parts lie far from 0: they are made for predictors near 0, and hold back there.

    With x far from 0, sd(x z) is nearly that of z times the mean of x, and 2.5 sd(y) / sd(x z) is next to nothing for
    what x z adds to x and z; the coefficient of z is that at x = 0, where nobody ever was.
    """
    design = model.design
    out = []
    for predictor, at in enumerate(design.intercepts):
        names = [name for name, own in zip(design.x_names, design.x_predictor, strict=True) if own == predictor]
        columns = dict(zip(names, design.x_columns[design.x_predictor == predictor].tolist(), strict=True))
        if at is None:
            continue
        read = {name: read_by(name, design.prefixes[predictor]) for name in names}
        for name in names:
            parts = [other for other in names if (read[other] and read[other] < read[name]) or power_of(name, other)]
            if not parts or model.priors.source(name) != "default":
                continue
            own, lower = design.V[:, columns[name]], design.V[:, [columns[other] for other in parts]]
            left = _residual_sd(own, lower)
            if left <= 0 or float(np.std(own)) < FAR * left:
                continue
            far = max(parts, key=lambda other: _distance(design.V[:, columns[other]]))
            values = design.V[:, columns[far]]
            centre = round_number(float(values.mean()), float(np.std(values)))
            held = [*(repr(part) for part in parts if part != far), repr(name)]
            priors = (
                f"default priors of {' and '.join(held)} are" if len(held) > 1 else f"default prior of {held[0]} is"
            )
            out.append(
                f"{far!r} lies far from 0 (mean {centre}, sd {_short(float(np.std(values)))}) and enters {name!r}: the "
                f"{priors} made for predictors near 0 and may hold back what it is about. Write I({far} - {centre}) in "
                "the formula, or give priors of your own."
            )
    return tuple(dict.fromkeys(out))


def round_number(value: float, spread: float) -> str:
    """A value to the digit of its spread, to be typed."""
    return f"{round(value, -math.floor(math.log10(spread))):g}" if spread > 0 else f"{value:g}"


def read_by(name: str, prefix: str) -> frozenset[str]:
    """The parts of a product, ``x:z`` -> {x, z}; empty for the intercept."""
    plain = name.removeprefix(prefix)
    return frozenset() if plain == "Intercept" else frozenset(cut(plain, ":"))


def power_of(name: str, other: str) -> bool:
    """Whether a column is a power of another, ``I(x^2)`` of ``x``."""
    return re.fullmatch(rf"I\(\s*`?{re.escape(other)}`?\s*(\^|\*\*)\s*\d+\s*\)", name) is not None


def _residual_sd(values: Array, others: Array) -> float:
    """The sd of what a least-squares fit on other columns leaves."""
    centred, predictors = values - values.mean(), others - others.mean(axis=0)
    predictors = predictors / np.maximum(np.sqrt((predictors**2).sum(axis=0)), np.finfo(float).tiny)
    rest = centred - predictors @ np.linalg.lstsq(predictors, centred, rcond=1e-10)[0]
    return float(np.std(rest))


def _distance(values: Array) -> float:
    """How many sds a column's mean lies from 0."""
    return abs(float(values.mean())) / (float(np.std(values)) or 1.0)
