r"""Weights of a mixture with known components: maximum likelihood over the simplex.

.. math:: \max_{\pi \ge 0,\ \sum_c \pi_c = 1}\ \sum_j n_j \log \sum_c \pi_c f_{cj} + \sum_c a_c \log \pi_c

is a concave problem. It is solved by sequential quadratic programming with an active set (Kim, Carbonetto, Stephens and
Anitescu, 2020, Journal of Computational and Graphical Statistics 29, 261-273; Wang, 2007, Journal of the Royal
Statistical Society B 69, 185-198, for the quadratic problem as one of least squares). Three facts make it short:

* With :math:`M = \sum_j n_j + \sum_c a_c`, adding :math:`-\sum_c \pi_c` to the mean log likelihood makes the sum of the
  weights 1 at the optimum by itself, so that only :math:`\pi \ge 0` is left of the constraints.
* With gradient d and minus Hessian H of the mean log likelihood, :math:`H \pi = d` and :math:`\pi' d = 1`.
* A pseudo count a of component c is a unit known to belong to c: it adds :math:`a / (M \pi_c)` to d.

By concavity, the log likelihood is within M times the gap, :math:`\max_c d_c - 1`, of its maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.algebra.lapack import one_blas_thread
from partialpool.errors import InferenceError, ModelError
from partialpool.inference.optimum import Status

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Parts = tuple[Array, ...]
Part = TypeVar("Part")

#: Units are worked on in chunks of this size, whatever the number of threads.
CHUNK = 8192
#: Added to the Hessian: directions flatter than this change the gradient by less than the gap that is asked for.
RIDGE = 1e-10
RELATIVE_RIDGE = 1e-13
#: At the optimum a unit's density is at least n_j / M of its largest component's; no step goes below this share of it.
FLOOR = 1e-4
LIMIT = 200
#: Fewer densities than this are done with before threads would have started.
WORTH_THREADS = 1_000_000
FEW = 40
HALVINGS = 40
SUFFICIENT = 1e-4
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class MixtureWeights:
    """The weights of a mixture's components at the maximum of the likelihood.

    Attributes
    ----------
    weights : (C,), not negative, of sum 1; those that the likelihood does not want are exactly 0.
    log_likelihood : sum over the units of counts times log density, without the penalty.
    gap : how far the Karush-Kuhn-Tucker conditions are from being met, 0 or below at the exact optimum: the largest
        mean over the units of f_cj / g_j, less 1 (pseudo counts count as units).
    iterations : steps taken.
    status : how the search ended.
    """

    weights: Array
    log_likelihood: float
    gap: float
    iterations: int
    status: Status


def maximise_weights(
    log_likelihood: ArrayLike,
    counts: ArrayLike | None = None,
    *,
    start: ArrayLike | None = None,
    penalty: ArrayLike | None = None,
    tolerance: float = 1e-8,
    threads: int = 1,
    overwrite: bool = False,
) -> MixtureWeights:
    """Maximum likelihood of the weights of a mixture whose components are known.

    Parameters
    ----------
    log_likelihood : array (C, J)
        Log density of each unit under each component; minus infinity where it is impossible.
    counts : array (J,), optional
        How often each unit occurs; once where none are given.
    start : array (C,), optional
        Weights to start from; equal ones of components spread over all where none are given.
    penalty : array (C,), optional
        Multiples of the log weights that are added: the parameters of a Dirichlet prior less 1, not negative.
    tolerance : float
        The gap at which the search ends.
    threads : int
        Chunks of units are spread over threads; no result depends on their number.
    overwrite : bool
        Whether `log_likelihood` may be used as the place for the scaled densities, which saves its copy.

    Returns
    -------
    MixtureWeights

    Raises
    ------
    ModelError
        If shapes do not fit, or counts, penalty or start are negative, not finite or all 0.
    InferenceError
        If a unit is impossible under every component, or a log density is not a number.

    Examples
    --------
    >>> import numpy as np
    >>> found = maximise_weights(np.log([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]]))
    >>> found.weights.round(4), found.gap < 1e-8
    (array([0.7083, 0.2917]), True)
    """
    given = np.asarray(log_likelihood, dtype=np.float64)
    if given.ndim != 2 or 0 in given.shape:
        raise ModelError(f"Log likelihoods must have shape (components, units), and have {given.shape}.")
    size = given.shape[0]
    times = _vector(counts, given.shape[1], "counts") if counts is not None else np.ones(given.shape[1])
    pseudo = _vector(penalty, size, "penalty", may_be_zero=True) if penalty is not None else np.zeros(size)
    begin = _vector(start, size, "start") if start is not None else _few(size)
    own = overwrite and given.flags.writeable and given.flags.c_contiguous
    with one_blas_thread(), _chunks(given.shape[1], threads if given.size >= WORTH_THREADS else 1) as over_chunks:
        densities = given if own else np.empty_like(given, order="C")
        largest = _scale(given, densities, over_chunks)
        problem = _Problem(densities, times, pseudo, over_chunks)
        return problem.solve(_normalised(begin), float(times @ largest), tolerance)


def _few(size: int) -> Array:
    """Equal weights of up to so many components, spread over all: of a fine grid of components most are not wanted."""
    weights = np.zeros(size)
    weights[:: -(-size // FEW)] = 1.0
    return weights


def _vector(values: ArrayLike, size: int, name: str, may_be_zero: bool = False) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (size,):
        raise ModelError(f"'{name}' must have {size} values, and has shape {vector.shape}.")
    if not np.all(np.isfinite(vector)) or np.any(vector < 0.0) or not (may_be_zero or np.any(vector > 0.0)):
        rule = "finite and not negative" if may_be_zero else "finite, not negative and not all 0"
        raise ModelError(f"'{name}' must be {rule}.")
    return vector


# --------------------------------------------------------------------------------------------------------------------
# Passes over the units
# --------------------------------------------------------------------------------------------------------------------

Work = Callable[[slice], Part]
OverChunks = Callable[[Work[Part]], Iterator[Part]]


@contextmanager
def _chunks(n_units: int, threads: int) -> Iterator[Callable[[Callable[[slice], Part]], Iterator[Part]]]:
    """A function that maps work over fixed chunks of the units and yields its parts in order."""
    pieces = [slice(low, min(low + CHUNK, n_units)) for low in range(0, n_units, CHUNK)]
    if threads <= 1 or len(pieces) == 1:
        yield lambda work: map(work, pieces)
        return
    with ThreadPoolExecutor(min(int(threads), len(pieces))) as pool:
        yield lambda work: pool.map(work, pieces)


def _scale(given: Array, densities: Array, over_chunks: OverChunks[Array]) -> Array:
    """Write exp(given - largest) to `densities`, and return each unit's largest log density (J,)."""

    def work(piece: slice) -> Array:
        block = given[:, piece]
        largest: Array = block.max(axis=0)
        if np.all(np.isfinite(largest)):  # else an error follows
            np.exp(np.subtract(block, largest, out=densities[:, piece]), out=densities[:, piece])
        return largest

    largest = np.concatenate(list(over_chunks(work)))
    wrong = np.flatnonzero(~np.isfinite(largest))
    if wrong.size:
        unit, more = int(wrong[0]), f" (and so are {wrong.size - 1} more)" if wrong.size > 1 else ""
        if largest[unit] == -np.inf:
            raise InferenceError(
                f"Unit {unit} is impossible under every component of the population{more}; "
                "give it a component that can produce its data."
            )
        raise InferenceError(f"The log density of unit {unit} is {largest[unit]} under a component{more}.")
    return largest


# --------------------------------------------------------------------------------------------------------------------
# The search
# --------------------------------------------------------------------------------------------------------------------


class _Problem:
    """Minus the mean log likelihood plus the sum of the weights, and the search for its minimum."""

    def __init__(self, densities: Array, times: Array, pseudo: Array, over_chunks: OverChunks[Parts]) -> None:
        self.densities = densities
        self.times = times
        self.roots = np.sqrt(times)
        self.pseudo = pseudo
        self.total = float(times.sum() + pseudo.sum())
        self.floor = np.maximum(FLOOR / densities.shape[0] * times / self.total, TINY)
        self.over_chunks = over_chunks

    def solve(self, weights: Array, offset: float, tolerance: float) -> MixtureWeights:
        weights = self._inside(weights)
        status, best = Status.LIMIT, None
        for iteration in range(LIMIT + 1):  # noqa: B007
            mixed, gradient, hessian = self._derivatives(weights)
            gap = float(gradient.max() - 1.0)
            if best is None or gap < best[1]:
                best = weights, gap, offset + float(self.times @ np.log(np.maximum(mixed, TINY)))
            if gap <= tolerance:
                status = Status.CONVERGED
                break
            following = self._step(weights, mixed, gradient, hessian, 1e-3 * tolerance)
            if following is None:
                status = Status.STALLED
                break
            weights = following
        assert best is not None
        return MixtureWeights(best[0], best[2], best[1], iteration, status)

    def _inside(self, weights: Array) -> Array:
        """`weights`, or a mixture of them with equal ones where a unit or a pseudo count could not be explained."""
        mixed = self._mix(weights)
        if np.all(mixed >= self.floor) and np.all(weights[self.pseudo > 0.0] > 0.0):
            return weights
        return 0.9 * weights + 0.1 / weights.size

    def _mix(self, direction: Array) -> Array:
        """Each unit's scaled density under the mixture (J,); linear in `direction`."""
        return np.concatenate([mixed for (mixed,) in self.over_chunks(lambda p: (direction @ self.densities[:, p],))])

    def _derivatives(self, weights: Array) -> tuple[Array, Array, Array]:
        """The units' densities (J,), the gradient (C,) and minus the Hessian (C, C) of the mean log likelihood."""

        def work(piece: slice) -> Parts:
            block, roots = self.densities[:, piece], self.roots[piece]
            mixed = weights @ block
            ratios = block * (roots / np.maximum(mixed, TINY))
            return mixed, ratios @ roots, ratios @ ratios.T

        gradient, hessian = np.zeros(weights.size), np.zeros((weights.size, weights.size))
        densities = []
        for mixed, first, second in self.over_chunks(work):
            densities.append(mixed)
            gradient += first
            hessian += second
        counted = self.pseudo > 0.0
        share = self.pseudo[counted] / weights[counted]
        gradient[counted] += share
        hessian[counted, counted] += share / weights[counted]
        return np.concatenate(densities), gradient / self.total, hessian / self.total

    def _step(self, weights: Array, mixed: Array, gradient: Array, hessian: Array, exact: float) -> Array | None:
        """Better weights, or None where none are found."""
        ridge = RIDGE + RELATIVE_RIDGE * np.diag(hessian)
        linear = 2.0 * gradient - 1.0 + ridge * weights
        try:
            target = minimise_quadratic(hessian + np.diag(ridge), linear, weights, exact)
            following = self._search(weights, target - weights, mixed, gradient)
        except np.linalg.LinAlgError:
            following = None
        if following is not None:
            return following
        best = int(np.argmax(gradient))
        if weights[best] > 0.0:  # the EM algorithm's step never makes it worse, but cannot leave a weight of 0
            renewed = _normalised(weights * gradient)
            return renewed if np.any(renewed != weights) else None
        towards = -weights
        towards[best] += 1.0
        return self._search(weights, towards, mixed, gradient)

    def _search(self, weights: Array, direction: Array, mixed: Array, gradient: Array) -> Array | None:
        """Weights along `direction` that are better by a fair share of what the slope promises; None if there are none.

        Differences of the objective are sums of log(1 + change), exact where the objective's own digits run out.
        """
        slope = float((1.0 - gradient) @ direction)
        if not slope < 0.0:
            return None
        change = self._mix(direction)
        relative = change / np.maximum(mixed, TINY)
        counted = self.pseudo > 0.0
        share = direction[counted] / weights[counted]
        room = self.floor - mixed  # negative: the change that a unit's density can bear
        step = 1.0
        for _ in range(HALVINGS):
            if np.all(step * change >= room) and np.all(step * share > -1.0):
                gain = self.times @ np.log1p(step * relative) + self.pseudo[counted] @ np.log1p(step * share)
                if step * direction.sum() - gain / self.total <= SUFFICIENT * step * slope:
                    return _normalised(np.maximum(weights + step * direction, 0.0))
            step *= 0.5
        return None


def _normalised(weights: Array) -> Array:
    result: Array = weights / weights.sum()
    return result


def minimise_quadratic(matrix: Array, linear: Array, start: Array, tolerance: float = 1e-12) -> Array:
    """The minimiser of x'Ax/2 - b'x over x >= 0, by an active set.

    The objective never rises above its value at `start`, so that the way from there to the result leads down.

    Parameters
    ----------
    matrix : array (C, C)
        A, symmetric and positive definite.
    linear : array (C,)
        b.
    start : array (C,)
        Not negative; its zeros are the first guess of the result's zeros.
    tolerance : float
        The largest violation of b - Ax <= 0 at zeros of x.

    Returns
    -------
    array (C,)

    Raises
    ------
    numpy.linalg.LinAlgError
        If a part of the matrix is singular.

    Examples
    --------
    >>> import numpy as np
    >>> minimise_quadratic(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([2.0, -1.0]), np.ones(2))
    array([1., 0.])
    """
    x, free = start.copy(), start > 0.0
    value = _quadratic(matrix, linear, x)
    barred = np.zeros(x.size, dtype=bool)
    entered = -1
    for _ in range(10 * x.size + 50):
        target = _solve_free(matrix, linear, free)
        wrong = free & (target <= 0.0)
        if not wrong.any():
            x, entered = target, -1
            violation = np.where(free | barred, -np.inf, linear - matrix @ x)
            value = _quadratic(matrix, linear, x)
            if violation.max() <= tolerance:
                break
            entered = int(np.argmax(violation))
            free[entered] = True
            continue
        if entered >= 0 and wrong[entered] and x[entered] == 0.0:
            # Rounding: what the gradient promised is not there. It is left out until something else has moved.
            barred[entered], free[entered] = True, False
            entered = -1
            continue
        x, value, moved = _retreat(matrix, linear, x, value, target, wrong)
        free &= x > 0.0
        barred &= not moved
        entered = -1
    return x


def _quadratic(matrix: Array, linear: Array, x: Array) -> float:
    return float(0.5 * x @ matrix @ x - linear @ x)


def _solve_free(matrix: Array, linear: Array, free: Flags) -> Array:
    """The minimiser over the free coordinates, the others being 0, whatever its signs."""
    target = np.zeros(linear.size)
    index = np.flatnonzero(free)
    if index.size:
        target[index] = np.linalg.solve(matrix[np.ix_(index, index)], linear[index])
    return target


def _retreat(
    matrix: Array, linear: Array, x: Array, value: float, target: Array, wrong: Flags
) -> tuple[Array, float, bool]:
    """A point towards `target` where no coordinate is negative and some that were to be so are 0, and its value."""
    clipped = np.maximum(target, 0.0)  # drops many coordinates at once, where that is an improvement
    reached = _quadratic(matrix, linear, clipped)
    if reached < value:
        return clipped, reached, True
    share = x[wrong] / (x[wrong] - target[wrong])
    step = float(share.min())
    moved = np.maximum(x + step * (target - x), 0.0)
    moved[np.flatnonzero(wrong)[share <= step]] = 0.0
    return moved, _quadratic(matrix, linear, moved), step > 0.0
