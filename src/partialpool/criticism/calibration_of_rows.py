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

Rows are put into the bins of a reliability diagram by what half of the rows, to which they do not belong, say of their
groups. Sorted by the predictions themselves they would fall apart by their own responses: of rows of one group those
with an event have the lower prediction, for it is made without the event. Given the other half a prediction errs by 0
on average, and the errors of rows of one group are correlated negatively if at all (as the elements of ``P y`` are, P a
precision matrix), so that events drawn independently of each other make bands that are wide enough.

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
from partialpool.design.predictor import LinearPredictor, row_variance

if TYPE_CHECKING:
    from partialpool.design.design import Design
    from partialpool.posterior.posterior import Posterior

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
    reference : (4,) mean, sd, 5% and 95% quantile of the statistic where the predictions are right.
    """

    predicted: Array
    observed: Array
    low: Array
    high: Array
    rows: Array
    statistic: float
    p: float
    reference: Array


def predictions_differ(design: Design) -> bool:
    """Whether rows can be told apart without their own responses: by a predictor, or by other rows of their groups."""
    several = any(len(factor.codes) > len(factor.labels) for factor in design.factors)
    offset = design.offset is not None and bool(np.ptp(design.offset) > 0)
    return several or offset or any(name != "Intercept" for name in design.x_names)


def likenesses(fit: Posterior, rng: np.random.Generator) -> Array:
    """By what rows of events are put into bins (n,): a linear predictor that does not know the row's own response.

    The coefficients at their means, and of each group a step from 0 towards its effect, made of the other half of its
    rows.
    """
    model, design = fit.model, fit.model.design
    rows = LinearPredictor.of_design(design, ())
    eta = rows.V[:, rows.x_columns] @ fit.result.draws_beta.mean(axis=0)
    eta = eta if rows.offset is None else eta + rows.offset
    if not design.factors:
        return np.asarray(eta)
    family, trials = model.family, np.ones(len(eta)) if design.trials is None else design.trials
    chance = np.clip(family.mean(eta, 0.0, 0.0), 1e-9, 1 - 1e-9)
    slope = (family.mean(eta + 1e-4, 0.0, 0.0) - family.mean(eta - 1e-4, 0.0, 0.0)) / 2e-4
    score = (design.y - trials * chance) * slope / (chance * (1 - chance))
    told = trials * slope**2 / (chance * (1 - chance))
    finest = max(design.factors, key=lambda factor: len(factor.labels)).codes
    half = np.empty(len(eta), dtype=np.int64)
    half[np.lexsort((rng.random(len(eta)), finest))] = np.arange(len(eta)) % 2
    out = eta.copy()
    for term in model.hyperparameters.terms:
        if "Intercept" not in term.names:
            continue
        sds = term.covariance.sds(fit.result.draws_theta[:, term.parameters])
        least = 1 / max(float((sds[:, term.names.index("Intercept")] ** 2).mean()), 1e-12)
        factor = design.factors[term.factor]
        at = factor.codes + len(factor.labels) * half
        sums, square = (np.bincount(at, weights=w, minlength=2 * len(factor.labels)) for w in (score, told))
        step = sums / (square + least)
        out += step[factor.codes + len(factor.labels) * (1 - half)]
    return np.asarray(out)


def bins_of(key: Array) -> Ints:
    """The bin of each row (n,): about equally many in each, rows of the same key together."""
    count = min(BINS, max(len(key) // 10, 2))
    _, place, sizes = np.unique(np.round(key, 9), return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - (sizes + 1) / 2
    return np.unique((middle * count / len(key)).astype(np.int64)[place], return_inverse=True)[1].astype(np.int64)


def reliability(y: Array, trials: Array, expected: Array, key: Array, rng: np.random.Generator) -> Reliability:
    """Bins of about equal size by `key` (n,), see `likenesses`; bands from events simulated from the predictions.

    Broecker and Smith 2007, Weather and Forecasting 22, 651-661.
    """
    expected = np.clip(expected, 0.0, 1.0)
    label = bins_of(key)
    bins = int(label.max()) + 1
    total = np.bincount(label, weights=trials, minlength=bins)
    predicted = np.bincount(label, weights=trials * expected, minlength=bins)
    events = np.bincount(label, weights=y, minlength=bins)
    variance = np.maximum(np.bincount(label, weights=trials * expected * (1 - expected), minlength=bins), 1e-12)
    simulated = np.empty((SIMULATED if len(y) <= 20_000 else 200, bins))
    for own in simulated:
        drawn = rng.binomial(trials.astype(np.int64), expected).astype(float)
        own[:] = np.bincount(label, weights=drawn, minlength=bins)
    statistic = float(((events - predicted) ** 2 / variance).sum())
    others = ((simulated - predicted) ** 2 / variance).sum(axis=1)
    low, high = np.quantile(simulated, [0.05, 0.95], axis=0) / total
    p = (1 + float((others >= statistic).sum())) / (1 + len(others))
    reference = np.array([others.mean(), others.std(), *np.quantile(others, [0.05, 0.95])])
    sizes = np.bincount(label).astype(float)
    return Reliability(predicted / total, events / total, low, high, sizes, statistic, p, reference)
