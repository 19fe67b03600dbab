r"""Each row under the prediction that the other rows make of it: LOO-PIT, reliability, quantile residuals.

Given the hyperparameters the linear predictor of row i has a posterior close to normal, with mean m_i and variance v_i.
The normal ``N(m_{-i}, v_{-i})`` that times the row's own likelihood has these moments is the row as the others see it:
the cavity of expectation propagation (Minka 2001; Vehtari and others 2016, Journal of Machine Learning Research 17,
1-38, where it is one of the approximations of leave-one-out). For a Gaussian response it is exact: with leverage
``h = v/s``, s the row's variance,

.. math:: v_{-i} = \frac{v_i}{1 - h_i}, \qquad y_i - m_{-i} = \frac{y_i - m_i}{1 - h_i},
   \qquad \mathrm{Var}(y_i \mid y_{-i}) = \frac{s}{1 - h_i}.

Events (0 or 1) have ``p(y_i | y_{-i}) = 1 / E[1 / p(y_i | y_{-i}, theta)]``, the group's effect integrated by
quadrature over what its other rows say (`criticism.loo`). Of a group with one row the cavity leaves the population of
groups, where weights 1/p(y_i | draw) would fail. The hyperparameters themselves are not learned again without the row,
but for sigma, whose part is the step from internally to externally studentised residuals.

The probability-integral transform of row i is ``P(Y_i < y_i)`` to ``P(Y_i <= y_i)`` under that prediction (20 nodes of
Gauss-Hermite quadrature); where the model is right it is uniform (Czado, Gneiting and Held 2009, Biometrics 65,
1254-1261, for counts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.quadrature import gauss_hermite
from partialpool.criticism.replicates import Replicates
from partialpool.criticism.row_distributions import probabilities
from partialpool.design.predictor import row_variance

if TYPE_CHECKING:
    pass

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Rows looked at, at most, and the stream of the seed that chooses them.
MOST_ROWS, CHOICE = 20_000, 65
NODES = 20
#: Nodes at most and rows at once of the densities of events.
MOST_NODES, BLOCK_ROWS = 200, 5000
#: Least and largest precision that a row's linear predictor has without its own likelihood, over what it has with it.
LEAST, MOST = 0.02, 5.0
#: Steps at most until the moments match.
STEPS = 12
#: Bins of the reliability diagram; simulated diagrams behind its bands.
BINS, SIMULATED = 10, 2000


@dataclass(frozen=True, eq=False)
class LeftOutRows:
    """The prediction of each row from the others.

    chosen : (m,) the rows looked at: all, or some drawn at random where they are very many. below, at : (m,)
    P(Y < y) and P(Y <= y). expected : (m,) the expected response (a probability where there are trials).
    """

    chosen: Ints
    below: Array
    at: Array
    expected: Array

    def transforms(self, rng: np.random.Generator) -> Array:
        """PIT values (n,); of counts a point drawn evenly between the two probabilities."""
        return np.asarray(self.below + (self.at - self.below) * rng.random(len(self.at)))


def left_out_rows(replicates: Replicates) -> LeftOutRows:
    """The rows of a fit as the others predict them."""
    fit = replicates.fit
    design = fit.model.design
    if fit.model.family.name == "bernoulli":
        return _events(replicates)
    moments = replicates.moments
    weights = np.ones(design.n_rows) if design.weights is None else design.weights
    if fit.model.exact:
        return _gaussian(replicates, moments[0], moments[1], weights)
    chosen = _chosen(replicates)
    m, v, eta1, eta2 = (part[chosen] for part in moments)
    y, weights = design.y[chosen], weights[chosen]
    family = fit.model.family
    trials = np.ones(len(y)) if design.trials is None else design.trials[chosen]
    positive = family.links != ("identity",) and family.link in ("identity", "inverse")  # its means are
    x, shares = _nodes()

    def log_density(eta: Array) -> Array:
        inside = np.maximum(eta, 1e-8 * np.maximum(np.abs(m), 1e-8)) if positive else eta
        return np.asarray(weights * family.log_density_rows(y, inside, eta1, eta2, trials))

    mean, variance = cavity(log_density, m, v)
    below, at, expected = np.zeros(len(y)), np.zeros(len(y)), np.zeros(len(y))
    for place, share in zip(x, shares, strict=True):
        eta = mean + place * np.sqrt(variance)
        if positive:
            eta = np.maximum(eta, 1e-8 * np.maximum(np.abs(m), 1e-8))
        low, high = probabilities(family, y, eta, eta1, eta2, trials)
        below, at = below + share * low, at + share * high
        expected = expected + share * family.mean(eta, eta1, eta2)
    return LeftOutRows(chosen, np.clip(below, 0, 1), np.clip(at, 0, 1), expected)


def _events(replicates: Replicates) -> LeftOutRows:
    """Of events, whose chances a normal cavity would miss where groups differ much: by quadrature."""
    from partialpool.criticism.loo import rows_conditional
    from partialpool.criticism.nodes import nodes_of_fit

    fit, chosen = replicates.fit, _chosen(replicates)
    y = fit.model.design.y[chosen]
    nodes = nodes_of_fit(fit, MOST_NODES)
    conditional = rows_conditional(fit, fit.result.settings.threads)
    inverse = np.empty(len(chosen))
    for start in range(0, len(chosen), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        logs = conditional.log_densities(nodes, chosen[part])[0]
        inverse[part] = np.exp(nodes.log_weights) @ np.exp(-np.maximum(logs, -50.0))
    chance = np.where(y == 1, 1 / inverse, 1 - 1 / inverse)
    return LeftOutRows(chosen, np.where(y == 1, 1 - chance, 0.0), np.where(y == 1, 1.0, 1 - chance), chance)


def _chosen(replicates: Replicates) -> Ints:
    """The rows looked at."""
    n = replicates.fit.model.design.n_rows
    if n <= MOST_ROWS:
        return np.arange(n, dtype=np.int64)
    return np.sort(replicates.stream(CHOICE).choice(n, MOST_ROWS, replace=False))


def _gaussian(replicates: Replicates, m: Array, v: Array, weights: Array) -> LeftOutRows:
    from scipy.special import ndtr, stdtr

    fit = replicates.fit
    design = fit.model.design
    at = fit.model.hyperparameters.sigma_at
    square = 0.0 if at is None else float(np.exp(2 * fit.result.draws_theta[:, at]).mean())
    s = np.broadcast_to(row_variance(design, design.se_sigma).at(np.sqrt(square)), m.shape)
    h = np.minimum(v * weights / s, 1 - LEAST)
    residual = (design.y - m) / (1 - h)
    spread = s + v / (1 - h)
    z = residual / np.sqrt(spread)
    if at is None:
        pit = ndtr(z)
    else:  # sigma without the row: externally studentised
        degrees = max(len(m) - float(h.sum()), 3.0)
        outer = z * np.sqrt((degrees - 1) / np.maximum(degrees - z**2, 1e-3 * degrees))
        pit = stdtr(degrees - 1, outer)
    at_rows = _chosen(replicates)
    return LeftOutRows(at_rows, pit[at_rows], pit[at_rows], (design.y - residual)[at_rows])


def _nodes() -> tuple[Array, Array]:
    """Nodes and weights of quadrature over a standard normal number."""
    x, shifted = gauss_hermite(NODES, 1)
    shares = np.exp(shifted - 0.5 * x[:, 0] ** 2)
    return x[:, 0], shares / shares.sum()


def cavity(log_density: Callable[[Array], Array], m: Array, v: Array) -> tuple[Array, Array]:
    """Mean and variance (n,) of the normal that times the row's likelihood has mean m and variance v.

    Examples
    --------
    >>> mean, variance = cavity(lambda eta: -0.5 * (1.0 - eta) ** 2, np.array([0.5]), np.array([0.5]))
    >>> mean.round(6).tolist(), variance.round(6).tolist()
    ([0.0], [1.0])
    """
    x, shares = _nodes()
    spread = np.sqrt(v)
    places = [m + place * spread for place in x]
    logs = np.array([log_density(place) for place in places])
    logs = np.where(np.isfinite(logs), logs, -1e300)
    precision, shift = 1 / v, np.zeros(len(m))  # in natural parameters, the shift from m
    for _ in range(STEPS):
        tilt = logs + shift * spread * x[:, None] - 0.5 * (precision * v - 1) * x[:, None] ** 2
        weights = shares[:, None] * np.exp(tilt - tilt.max(axis=0))
        weights /= weights.sum(axis=0)
        centre = x @ weights
        square = np.maximum((x**2) @ weights - centre**2, 0.01)
        # What the row adds to the cavity, as far as its first two moments go, is taken off the posterior.
        site = 1 / square - precision * v
        pull = centre / square - shift * spread
        new = np.clip(1 - site, LEAST, MOST)
        moved = float(np.abs(new - precision * v).max(initial=0.0))
        precision, shift = new / v, -pull / spread
        if moved < 1e-4:
            break
    return m + shift / precision, 1 / precision


# -- reliability ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reliability:
    """Events in bins of rows with like predictions.

    predicted, observed : (bins,) shares. low, high : (bins,) where 90% of the observed ones lie if the predictions are
    right. rows : (bins,). statistic, p : the squared deviations of all bins, and how often they are as large.
    reference : (3,) mean, 5% and 95% quantile of the statistic where the predictions are right.
    """

    predicted: Array
    observed: Array
    low: Array
    high: Array
    rows: Array
    statistic: float
    p: float
    reference: Array


def reliability(y: Array, trials: Array, expected: Array, rng: np.random.Generator) -> Reliability:
    """Bins of equal size by the prediction; bands from events simulated from the predictions themselves.

    Broecker and Smith 2007, Weather and Forecasting 22, 651-661.
    """
    expected = np.clip(expected, 0.0, 1.0)
    order = np.argsort(expected, kind="stable")
    bins = min(BINS, max(len(y) // 10, 2))
    edges = np.linspace(0, len(y), bins + 1).round().astype(int)
    label = np.empty(len(y), dtype=np.int64)
    label[order] = np.repeat(np.arange(bins), np.diff(edges))
    total = np.bincount(label, weights=trials, minlength=bins)
    predicted = np.bincount(label, weights=trials * expected, minlength=bins)
    events = np.bincount(label, weights=y, minlength=bins)
    variance = np.maximum(np.bincount(label, weights=trials * expected * (1 - expected), minlength=bins), 1e-12)
    simulated = np.empty((SIMULATED, bins))
    for k in range(SIMULATED if len(y) <= 20_000 else 200):
        simulated[k] = np.bincount(
            label, weights=rng.binomial(trials.astype(np.int64), expected).astype(float), minlength=bins
        )
    simulated = simulated[: k + 1]
    own = float(((events - predicted) ** 2 / variance).sum())
    others = ((simulated - predicted) ** 2 / variance).sum(axis=1)
    low, high = np.quantile(simulated, [0.05, 0.95], axis=0) / total
    p = (1 + float((others >= own).sum())) / (1 + len(others))
    reference = np.array([others.mean(), *np.quantile(others, [0.05, 0.95])])
    return Reliability(predicted / total, events / total, low, high, np.diff(edges).astype(float), own, p, reference)
