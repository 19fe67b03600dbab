r"""The posterior of group means with unknown variances, by quadrature, for many simulated data sets.

The model is :math:`y_{ij} = \mu + u_j + e_{ij}` with :math:`u_j \sim N(0, \tau^2)`, :math:`e_{ij} \sim N(0, \sigma^2)`,
:math:`\mu \sim N(m_0, s_0^2)` and half-Student-t priors with 3 degrees of freedom on :math:`\tau` and :math:`\sigma`.
Given both, everything is normal: with :math:`v_j = \sigma^2 / n_j`, :math:`w_j = 1 / (v_j + \tau^2)` and
:math:`B_j = v_j w_j`,

.. math::

    \mu \mid y \sim N(\hat\mu, 1 / P), \quad P = 1 / s_0^2 + \sum_j w_j, \qquad
    \theta_j \mid y \sim N\bigl(B_j \hat\mu + (1 - B_j) \bar y_j,\; v_j (1 - B_j) + B_j^2 / P\bigr),

and the rows enter through the group means and the sum of squares within groups alone; groups of the same size form a
class, whose mean and sum of squares are enough for the density. The two variances are integrated by the trapezoidal
rule in :math:`(\log \tau, \log \sigma)`, which converges exponentially in its step since the density is analytic and
vanishes at all ends (Trefethen and Weideman, 2014). The lattice starts at the mode, with steps of a half (tau) and 0.7
(sigma) of the standard deviations there, and goes on row by row as long as there is density to be found.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.special import SQRT_HALF

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What `study_pass` writes for each data set.
ERROR, VARIANCE, COVERED, MEAN, MEAN_VARIANCE, TAU, SIGMA, NODES = range(8)
COLUMNS = 8
#: Nodes at most; where they do not suffice NODES is -1.
CAPACITY = 20_000
#: Log density below the mode's where the lattice ends; share of the largest weight below which a node is left out of
#: the intervals.
END, LIGHT = 15.0, 1e-5
#: Steps of the lattice in standard deviations at the mode, and at most.
STEP_TAU, STEP_SIGMA, LARGEST = 0.5, 0.7, 0.5
#: The step of second differences at the mode.
DIFFERENCE = 2e-3


@helper
def log_posterior(x, z, size, count, centre, square, within, df, prior):
    """The log density of (log tau, log sigma); centre is that of each class against the prior mean of mu."""
    tau2, sigma2 = math.exp(2.0 * x), math.exp(2.0 * z)
    value = x + (1.0 - df) * z - 0.5 * within / sigma2
    value -= 2.0 * math.log1p(tau2 / (3.0 * prior[2] * prior[2])) + 2.0 * math.log1p(
        sigma2 / (3.0 * prior[3] * prior[3])
    )
    precision, first, second = 1.0 / (prior[1] * prior[1]), 0.0, 0.0
    for d in range(size.shape[0]):
        total = sigma2 / size[d] + tau2
        w = count[d] / total
        precision += w
        first += w * centre[d]
        second += w * centre[d] * centre[d] + square[d] / total
        value -= 0.5 * count[d] * math.log(total)
    return value - 0.5 * (second - first * first / precision) - 0.5 * math.log(precision)


@helper
def find_mode(size, count, centre, square, within, df, prior, at):
    """Write the place of the mode to at (2,), which holds where to start; returns the density there."""
    best = log_posterior(at[0], at[1], size, count, centre, square, within, df, prior)
    step = 0.5
    while step > 1e-3:
        moved = False
        for direction in range(4):
            dx = step * ((direction == 0) - 1.0 * (direction == 1))
            dz = step * ((direction == 2) - 1.0 * (direction == 3))
            value = log_posterior(at[0] + dx, at[1] + dz, size, count, centre, square, within, df, prior)
            while value > best:
                best = value
                at[0] += dx
                at[1] += dz
                moved = True
                value = log_posterior(at[0] + dx, at[1] + dz, size, count, centre, square, within, df, prior)
        if not moved:
            step *= 0.5
    return best


@helper
def lattice_step(axis, at, best, share, size, count, centre, square, within, df, prior):
    """The step along an axis: a share of the standard deviation of the density at the mode."""
    dx, dz = (DIFFERENCE, 0.0) if axis == 0 else (0.0, DIFFERENCE)
    above = log_posterior(at[0] + dx, at[1] + dz, size, count, centre, square, within, df, prior)
    below = log_posterior(at[0] - dx, at[1] - dz, size, count, centre, square, within, df, prior)
    curvature = (2.0 * best - above - below) / (DIFFERENCE * DIFFERENCE)
    return min(LARGEST, share / math.sqrt(curvature)) if curvature > 0.0 else LARGEST


@helper
def fill_lattice(at, best, hx, hz, size, count, centre, square, within, df, prior, nodes):
    """Write the nodes (log tau, log sigma, log density against the mode's); returns their number, -1 for too many."""
    filled = 0
    for side in range(2):
        row, start = side, 0
        while True:
            z = at[1] + hz * (row if side == 1 else -row)
            here = log_posterior(at[0] + hx * start, z, size, count, centre, square, within, df, prior)
            for direction in (-1, 1):  # climb to the highest of this row
                while True:
                    value = log_posterior(
                        at[0] + hx * (start + direction), z, size, count, centre, square, within, df, prior
                    )
                    if value <= here:
                        break
                    here = value
                    start += direction
            if here < best - END:
                break
            for direction in (-1, 1):
                i = start if direction == 1 else start - 1
                while True:
                    value = log_posterior(at[0] + hx * i, z, size, count, centre, square, within, df, prior)
                    if value < best - END:
                        break
                    if filled == nodes.shape[0]:
                        return -1
                    nodes[filled, 0] = at[0] + hx * i
                    nodes[filled, 1] = z
                    nodes[filled, 2] = value - best
                    filled += 1
                    i += direction
            row += 1
    return filled


@helper
def summarise_classes(means, code, centre, square, count, shift):
    """Mean (against `shift`) and sum of squares around it, class by class."""
    for d in range(centre.shape[0]):
        centre[d] = 0.0
        square[d] = 0.0
    for j in range(means.shape[0]):
        centre[code[j]] += (means[j] - shift) / count[code[j]]
    for j in range(means.shape[0]):
        own = means[j] - shift - centre[code[j]]
        square[code[j]] += own * own


@helper
def integrate(nodes, filled, size, count, centre, prior, node_mean, node_precision, lines, out):
    """Moments over the lattice; writes weights to nodes[:, 2], and to lines (D, 5) what the groups of a class need."""
    total = 0.0
    for k in range(filled):
        nodes[k, 2] = math.exp(nodes[k, 2])
        total += nodes[k, 2]
    for d in range(size.shape[0]):
        for c in range(5):
            lines[d, c] = 0.0
    mean, second, own, tau_mean, sigma_mean = 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(filled):
        weight = nodes[k, 2] / total
        nodes[k, 2] = weight
        tau2, sigma2 = math.exp(2.0 * nodes[k, 0]), math.exp(2.0 * nodes[k, 1])
        precision, first = 1.0 / (prior[1] * prior[1]), 0.0
        for d in range(size.shape[0]):
            w = count[d] / (sigma2 / size[d] + tau2)
            precision += w
            first += w * centre[d]
        m = first / precision
        node_mean[k] = m
        node_precision[k] = precision
        mean += weight * m
        second += weight * m * m
        own += weight / precision
        tau_mean += weight * math.sqrt(tau2)
        sigma_mean += weight * math.sqrt(sigma2)
        for d in range(size.shape[0]):
            v = sigma2 / size[d]
            b = v / (v + tau2)
            lines[d, 0] += weight * b * m
            lines[d, 1] += weight * (1.0 - b)
            lines[d, 2] += weight * (v * (1.0 - b) + b * b / precision + b * b * m * m)
            lines[d, 3] += weight * b * (1.0 - b) * m
            lines[d, 4] += weight * (1.0 - b) * (1.0 - b)
    out[MEAN] = mean + prior[0]
    out[MEAN_VARIANCE] = own + second - mean * mean
    out[TAU] = tau_mean
    out[SIGMA] = sigma_mean


@helper
def covering(d, tail, means, truth, code, size, shift, nodes, filled, node_mean, node_precision, scratch):
    """How many intervals of the groups of class d hold the truth; scratch (nodes, 4) is written over."""
    light, used, total = 0.0, 0, 0.0
    for k in range(filled):
        light = max(light, LIGHT * nodes[k, 2])
    for k in range(filled):
        if nodes[k, 2] < light:
            continue
        tau2, v = math.exp(2.0 * nodes[k, 0]), math.exp(2.0 * nodes[k, 1]) / size[d]
        b = v / (v + tau2)
        scale = SQRT_HALF / math.sqrt(v * (1.0 - b) + b * b / node_precision[k])
        scratch[used, 0] = 0.5 * nodes[k, 2]
        scratch[used, 1] = b * node_mean[k] * scale
        scratch[used, 2] = (1.0 - b) * scale
        scratch[used, 3] = scale
        total += nodes[k, 2]
        used += 1
    covered = 0.0
    for j in range(means.shape[0]):
        if code[j] != d:
            continue
        own, true, below = means[j] - shift, truth[j] - shift, 0.0
        for k in range(used):
            node = scratch[k]
            below += node[0] * math.erfc(node[1] + node[2] * own - node[3] * true)
        covered += 1.0 if tail < below / total < 1.0 - tail else 0.0
    return covered


@kernel(
    "void(float64[:,::1], float64[:,::1], float64[::1], int64[::1], float64[::1], float64[::1], float64[:,::1], "
    "float64, float64, float64[:,::1], float64[:,:,::1])"
)
def study_pass(
    means: Array, truth: Array, within: Array, code: Ints, size: Array, count: Array, priors: Array, df: float,
    tail: float, out: Array, lines: Array,
) -> None:  # fmt: skip
    """The posterior of each data set, and how it compares with the truth.

    Parameters
    ----------
    means, truth : ndarray of shape (R, J)
        Group means as observed, and as they are; the population's mean is 0.
    within : ndarray of shape (R,)
        Sums of squares within groups, on `df` degrees of freedom.
    code, size, count : ndarrays of shape (J,), (D,), (D,)
        The class of each group; rows of a group of each class, and groups of it.
    priors : ndarray of shape (R, 4)
        Mean and sd of mu's normal prior, scales of the half-Student-t priors of tau and sigma.
    tail : float
        Probability below (and above) the intervals whose coverage is wanted; 0 where none is.
    out : ndarray of shape (R, COLUMNS)
        Averages over groups: squared error, posterior variance, share covered; posterior mean and variance of mu, means
        of tau and sigma; the number of nodes, -1 where the lattice did not suffice.
    lines : ndarray of shape (R, D, 5)
        The first two: a group's posterior mean is prior mean + lines[0] + lines[1] (own mean - prior mean).
    """
    groups, classes = means.shape[1], size.shape[0]
    centre, square, at = np.empty(classes), np.empty(classes), np.empty(2)
    nodes, node_mean, node_precision = np.empty((CAPACITY, 3)), np.empty(CAPACITY), np.empty(CAPACITY)
    scratch = np.empty((CAPACITY, 4))
    for r in range(means.shape[0]):
        prior, shift = priors[r], priors[r, 0]
        summarise_classes(means[r], code, centre, square, count, shift)
        at[0], at[1] = math.log(0.3 * prior[2]), 0.5 * math.log(within[r] / df)
        best = find_mode(size, count, centre, square, within[r], df, prior, at)
        hx = lattice_step(0, at, best, STEP_TAU, size, count, centre, square, within[r], df, prior)
        hz = lattice_step(1, at, best, STEP_SIGMA, size, count, centre, square, within[r], df, prior)
        filled = fill_lattice(at, best, hx, hz, size, count, centre, square, within[r], df, prior, nodes)
        out[r, NODES] = filled
        if filled < 1:
            continue
        integrate(nodes, filled, size, count, centre, prior, node_mean, node_precision, lines[r], out[r])
        error, variance, covered = 0.0, 0.0, 0.0
        for j in range(groups):
            line, own = lines[r, code[j]], means[r, j] - shift
            mean = line[0] + line[1] * own
            miss = mean + shift - truth[r, j]
            error += miss * miss
            variance += line[2] + 2.0 * line[3] * own + line[4] * own * own - mean * mean
        if tail > 0.0:
            for d in range(classes):
                covered += covering(
                    d, tail, means[r], truth[r], code, size, shift, nodes, filled, node_mean, node_precision, scratch
                )
        out[r, ERROR] = error / groups
        out[r, VARIANCE] = variance / groups
        out[r, COVERED] = covered / groups
