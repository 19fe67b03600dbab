r"""The variance of single rows on the scale of the linear predictor, where a response is not Gaussian.

The variance between groups lives on that scale; for an intraclass correlation or an R-squared it needs a variance of
rows beside it. Which one follows from the family:

- *Bernoulli, binomial, beta-binomial:* that of the latent variable behind one trial, :math:`\pi^2/3` (logit), 1
  (probit), :math:`\pi^2/6` (cloglog).
- *Log link:* the variance of log y about its predictor where log y has one: :math:`\sigma^2` (lognormal),
  :math:`\psi_1(\text{shape})` (gamma, exponential with shape 1), :math:`\pi^2 / (6\,\text{shape}^2)` (Weibull). A count
  may be 0, so that log y has none; it takes the variance of the lognormal distribution with the same mean and variance,

  .. math:: \ln\{1 + V(\lambda) / \lambda^2\}

  (Nakagawa, Johnson and Schielzeth, 2017), as the inverse Gaussian does. The other two variants of that paper, delta
  :math:`V(\lambda)/\lambda^2` and trigamma :math:`\psi_1(\lambda^2 / V(\lambda))`, grow faster as the mean falls; they
  are in `Variance.residual_variants`. :math:`\lambda` is the mean response, over rows and groups, at the same
  parameters.
- *Beta:* the variance of logit y, :math:`\psi_1(\lambda\phi) + \psi_1((1-\lambda)\phi)`; under other links, and under
  the inverse link, the delta method, :math:`V(\lambda)\,g'(\lambda)^2`.
- *Identity link:* the mean of V over the rows: the link scale is that of the response.

Nakagawa, S., Johnson, P. C. D. and Schielzeth, H. (2017). The coefficient of determination R2 and intra-class
correlation coefficient from generalized linear mixed-effects models revisited and expanded. Journal of the Royal
Society Interface 14, 20170213.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.levels.at_rows import AtRows
from partialpool.levels.response_scale import SUMMED, mean_link, moments
from partialpool.model import Model
from partialpool.posterior.components import latent_residual
from partialpool.spec.families import Family

Array = NDArray[np.float64]

VARIANTS = ("delta", "lognormal", "trigamma")
#: Families whose log has a variance of closed form.
_TRIGAMMA = ("gamma", "exponential")
TRIALS = ("bernoulli", "binomial", "beta_binomial")


def row_variance_on_link(model: Model, theta: Array, rows: AtRows) -> Array:
    """The variance of single rows on the scale of the linear predictor, averaged over the rows, (K,)."""
    family = model.family
    if family.name in TRIALS:
        latent = latent_residual(model, theta)
        return np.full(len(theta), float(family.latent_variance or math.nan)) if latent is None else latent
    if family.name == "lognormal":
        return rows.average(_inverse_square(rows, -1.0))
    if family.link == "identity":
        return _mean_noise(rows)
    if family.name == "weibull":
        return math.pi**2 / 6.0 * rows.average(_inverse_square(rows, 1.0))
    mean, powers = overall_mean(family, rows), average_powers(rows)
    if family.link == "log":
        variants = log_variances(mean, powers)
        return variants["trigamma" if family.name in _TRIGAMMA else "lognormal"]
    if family.name == "beta" and family.link == "logit":
        from scipy.special import polygamma

        size = 1.0 / powers[1] - 1.0  # V = mu (1 - mu) / (1 + phi)
        return np.asarray(polygamma(1, mean * size) + polygamma(1, (1.0 - mean) * size))
    return variance_at(mean, powers) * link_slope(family, mean) ** 2


def log_variances(mean: Array, powers: Array) -> dict[str, Array]:
    """The three variants of Nakagawa, Johnson and Schielzeth under the log link, each (K,).

    Examples
    --------
    >>> found = log_variances(np.array([2.0]), np.array([[0.0], [1.0], [0.0], [0.0]]))
    >>> {name: round(float(value[0]), 4) for name, value in found.items()}
    {'delta': 0.5, 'lognormal': 0.4055, 'trigamma': 0.6449}
    """
    from scipy.special import polygamma

    square = variance_at(mean, powers) / mean**2
    return {"delta": square, "lognormal": np.log1p(square), "trigamma": np.asarray(polygamma(1, 1.0 / square))}


def overall_mean(family: Family, rows: AtRows) -> Array:
    """The mean response (K,) over the rows and over the population of groups."""
    if family.link == "inverse":  # it has no mean over the groups
        return 1.0 / rows.average(rows.eta)
    total = np.zeros((len(rows.eta), 1)) + sum(rows.variances, np.zeros((len(rows.eta), 1)))
    return rows.average(moments(mean_link(family), rows.eta + rows.shift, total)[0])


def average_powers(rows: AtRows) -> Array:
    """The variance function (4, K), averaged over the rows."""
    return np.stack([rows.average(part) for part in rows.powers])


def variance_at(mean: Array, powers: Array) -> Array:
    """The variance function at a mean."""
    return np.asarray(powers[0] + mean * (powers[1] + mean * (powers[2] + mean * powers[3])))


def link_slope(family: Family, mean: Array) -> Array:
    """The derivative of the link at a mean, by a central difference in the linear predictor."""
    place = family.link_function(mean)
    step = 1e-5 * np.maximum(np.abs(place), 1.0)
    return np.asarray(2 * step / (family.inverse_link(place + step) - family.inverse_link(place - step)))


def needs_quadrature(model: Model) -> bool:
    """Whether the variance of rows needs the mean under a link whose moments are sums over nodes."""
    return model.family.name not in TRIALS and model.family.link in SUMMED


def _inverse_square(rows: AtRows, sign: float) -> Array:
    """The mean of ``exp(-2 sign (eta1 + v))`` over the group effects v of the own parameter."""
    extra = 0.0 if rows.variance1 is None else 2.0 * rows.variance1
    return np.asarray(np.exp(-2.0 * sign * rows.eta1 + extra))


def _mean_noise(rows: AtRows) -> Array:
    """The mean of V over rows and groups under the identity link."""
    spread = sum(rows.variances, np.zeros((len(rows.eta), 1)))
    mean = rows.eta
    out = rows.powers[0]
    if rows.powers[1:].any():
        square = spread + mean * mean
        out = out + rows.powers[1] * mean + rows.powers[2] * square + rows.powers[3] * (mean**3 + 3 * mean * spread)
    return rows.average(out)
