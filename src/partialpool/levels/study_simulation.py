r"""Simulated data sets and what complete, no and partial pooling make of them.

The same random numbers are used at every tau and for every design, so that curves are smooth and differences sharp.
What is expected of the linear estimates is known exactly (`study_exact`), and serves as control variates for the one
whose variances are estimated: the mean of :math:`x - \beta^T (c - E c)` over the data sets, with the regression's
:math:`\beta`, has the expectation of :math:`x` and a fraction of its variance.

The bias of a group whose true effect is one :math:`\tau`, :math:`b = E[error | z = 1]` with :math:`z = u / \tau`, is
the sum of :math:`E[error\, He_k(z)] He_k(1) / k!` over the odd Hermite polynomials :math:`He_k`, up to k = 7. For
linear estimates k = 1 is all there is; where the variances are estimated, shrinkage is weaker for larger effects.

Data sets are drawn in parts of fixed size, each with its own stream of random numbers: no result depends on how many
threads there are.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import studies
from partialpool.design.defaults import location_prior, spread_prior
from partialpool.errors import InferenceError
from partialpool.inference.progress import Progress
from partialpool.levels.study_exact import PARTIAL, StudyDesign, known_weights

Array = NDArray[np.float64]

#: Data sets of one part: few, so that an interrupt soon finds some finished.
PART = 10
#: The intervals whose coverage is measured, and the normal quantile at their ends.
INTERVAL, REACH = 0.90, 1.6448536269514722
#: Columns of what a data set gives: squared errors of complete, no, partial pooling with known and with estimated
#: variances; what averages to their biases one tau above the mean; what else is averaged.
SQUARED, BIAS, COVERED, GROUP_VARIANCE, MEAN_VARIANCE = slice(0, 4), slice(4, 8), 8, 9, 10
STATISTICS = 11


@dataclass(frozen=True, eq=False)
class Place:
    """Where data are simulated: a design, tau, and whether intervals are wanted."""

    design: StudyDesign
    tau: float
    intervals: bool


def simulate(
    places: Sequence[Place], sigma: float, estimated: bool, replicates: int, seed: int, threads: int,
    progress: bool | None,
) -> Array:  # fmt: skip
    """Statistics of every place and data set, (P, R, STATISTICS); fewer data sets where the user interrupts.

    Raises
    ------
    KeyboardInterrupt
        Where not even one part was finished.
    """
    starts = range(0, replicates, PART)
    stop, done = threading.Event(), [0]

    def part(index: int) -> Array | None:
        count = min(PART, replicates - index * PART)
        rng_seed = np.random.SeedSequence(seed, spawn_key=(index,))
        found = np.empty((len(places), count, STATISTICS))
        for k, place in enumerate(places):
            if stop.is_set():
                return None
            found[k] = _simulate_part(place, sigma, estimated, count, np.random.default_rng(rng_seed))
            done[0] += 1
        return found

    everything = len(starts) * len(places)
    with Progress(progress) as bar, ThreadPoolExecutor(max(1, min(threads, len(starts)))) as pool:
        futures = [pool.submit(part, index) for index in range(len(starts))]
        try:
            pending: set[Future[Array | None]] = set(futures)
            while pending:
                _, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(done[0] / everything, "simulating data sets")
        except KeyboardInterrupt:
            stop.set()
            for future in futures:
                future.cancel()
    parts = [value for future in futures if not future.cancelled() and (value := future.result()) is not None]
    if not parts:
        raise KeyboardInterrupt
    return np.concatenate(parts, axis=1)


def _simulate_part(place: Place, sigma: float, estimated: bool, count: int, rng: np.random.Generator) -> Array:
    """Statistics (R, STATISTICS) of `count` data sets."""
    design, tau = place.design, place.tau
    truth = tau * rng.standard_normal((count, design.groups))
    noise = rng.standard_normal((count, design.groups)) * (sigma / np.sqrt(design.sizes))
    freedom = design.total - design.groups
    within = sigma**2 * (rng.chisquare(freedom, count) if freedom else np.zeros(count))
    means = truth + noise
    shrunk, weights, variance = known_weights(design, tau, sigma)
    complete = (means @ (design.sizes / design.total))[:, None] - truth
    known = shrunk * (means @ weights)[:, None] + (1 - shrunk) * means - truth
    above = at_one(truth / tau) if tau > 0 else np.zeros_like(truth)
    out = np.full((count, STATISTICS), np.nan)
    for k, error in enumerate((complete, noise, known)):
        out[:, SQUARED][:, k] = np.mean(error * error, axis=1)
        out[:, BIAS][:, k] = np.mean(error * above, axis=1)
    if not estimated:
        out[:, SQUARED][:, 3], out[:, BIAS][:, 3] = out[:, SQUARED][:, PARTIAL], out[:, BIAS][:, PARTIAL]
        out[:, COVERED] = np.mean(np.abs(known) <= REACH * np.sqrt(variance), axis=1)
        return out
    found, estimates = posteriors(design, means, truth, within, place.intervals)
    out[:, SQUARED][:, 3] = found[:, studies.ERROR]
    out[:, BIAS][:, 3] = np.mean((estimates - truth) * above, axis=1)
    out[:, COVERED] = found[:, studies.COVERED]
    out[:, GROUP_VARIANCE], out[:, MEAN_VARIANCE] = found[:, studies.VARIANCE], found[:, studies.MEAN_VARIANCE]
    return out


def at_one(z: Array) -> Array:
    """What averages, times a function of standard normal z, to that function's value at 1: see the module's docstring.

    Examples
    --------
    >>> z, weight = np.polynomial.hermite_e.hermegauss(20)
    >>> float((weight / weight.sum() * at_one(z) * z**3).sum().round(9))
    1.0
    """
    hermite = np.polynomial.hermite_e
    values = hermite.hermevander([1.0], 7)[0]
    scaled = [value / math.factorial(k) if k % 2 else 0.0 for k, value in enumerate(values)]
    return np.asarray(hermite.hermeval(z, scaled))


def posteriors(
    design: StudyDesign, means: Array, truth: Array, within: Array, intervals: bool = False
) -> tuple[Array, Array]:
    """The posterior of each data set under the default priors of ``pp.fit("y ~ 1 + (1 | g)")``.

    Parameters
    ----------
    means, truth : ndarray of shape (R, J)
        Observed and true group means.
    within : ndarray of shape (R,)
        Sums of squares within groups.

    Returns
    -------
    statistics : ndarray of shape (R, studies.COLUMNS)
    estimates : ndarray of shape (R, J)
        Posterior means of the groups' means.
    """
    size, code = np.unique(design.sizes, return_inverse=True)
    count = np.bincount(code).astype(np.float64)
    priors = default_priors(design, means, within)
    statistics = np.zeros((means.shape[0], studies.COLUMNS))
    lines = np.zeros((means.shape[0], size.size, 5))
    tail = 0.5 * (1 - INTERVAL) if intervals else 0.0
    studies.study_pass(
        np.ascontiguousarray(means), np.ascontiguousarray(truth), np.ascontiguousarray(within),
        code.astype(np.int64), size, count, priors, float(design.total - design.groups), tail, statistics, lines,
    )  # fmt: skip
    if (statistics[:, studies.NODES] < 1).any():
        raise InferenceError(
            "The posterior of a simulated data set is too wide to be integrated; more rows make it narrower."
        )
    centre = priors[:, :1]
    return statistics, centre + lines[:, code, 0] + lines[:, code, 1] * (means - centre)


def default_priors(design: StudyDesign, means: Array, within: Array) -> Array:
    """The default priors of each data set, (R, 4): mean and sd of mu's, scales of tau's and sigma's."""
    centre = means @ (design.sizes / design.total)
    total = within + ((means - centre[:, None]) ** 2) @ design.sizes
    spread = np.sqrt(total / (design.total - 1))
    out = np.empty((means.shape[0], 4))
    for r, (middle, sd) in enumerate(zip(centre.tolist(), spread.tolist(), strict=True)):
        location, scale = location_prior(middle, sd), spread_prior(sd)
        out[r] = location.mu, location.sigma, scale.sigma, scale.sigma
    return out


def controlled(values: Array, controls: Array, expected: Array) -> Array:
    """Values (R,) whose mean estimates that of `values` with the controls' (R, k) known expectations made use of."""
    centred = controls - controls.mean(axis=0)
    scale = centred.std(axis=0)
    scale[scale == 0] = 1.0
    coefficients = np.linalg.lstsq(centred / scale, values - values.mean(), rcond=1e-10)[0]
    return np.asarray(values - ((controls - expected) / scale) @ coefficients)


def mean_and_error(values: Array) -> tuple[float, float]:
    """The mean of (R,) values and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))
