r"""The density of a row given the other rows of its group, the group's effects integrated over what these leave open.

Given the root and the hyperparameters (`algebra.leaf`), the density of row i without itself is a ratio of two
integrals over the standardised effects v of its group,

.. math:: p(y_i \mid y_{g \setminus i}) = \frac{\int e^{h(v)} dv}{\int e^{h_{-i}(v)} dv}, \qquad
          h_{-i}(v) = h(v) - w_i \log f_i(v),

since the other groups cancel. A row of weight w leaves as a whole: all its copies at once. The numerator is the
group's own integral. With its nodes and their log weights (`algebra.quadrature`), the denominator is

.. math:: \frac{1}{|L|} \sum_k \omega_k \exp\{h(v_k) - w_i \log f_i(v_k) + x_k'x_k / 2\},

the harmonic mean of f over the group's conditional distribution, taken by quadrature, where it is as good as the rule
is for that integrand: no density has an infinite variance at a few nodes. One pass gives all rows of the group. The
rule is made for the normal distribution at the mode of h. Without the row, the effects have in its coordinates x a mean
m and a variance s^2, which the same nodes give; the error of the rule for a normal density of this mean and variance
is known, and `limits` holds, by log s^2, the largest |m| at which it is negligible. A row beyond that (most of its
group's information, or an outlier) has a rule of its own: a new search for the mode and new nodes, without it. A
row that is all its group has the group's integral for its density: without it, the effects have their prior.

The group's own integral goes out with its rows: a factor of the root whose groups hold whole groups of the leaf is
integrated over in the same way, outside of this pass (`criticism.quadrature_above`).

For whole groups of a factor of the root, see `algebra.leaflogo`.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.elementary import exponential
from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.leaf import (
    LeafFunctions,
    leaf_functions,
    root_predictors,
    scaled_columns,
    solve_transposed,
)

Array = NDArray[np.float64]

#: Relative error of a rule, for a normal density, that counts as none.
NEGLIGIBLE = 1e-4
#: Log variances between which limits are tabulated, and steps for each unit of it.
WIDEST, STEPS = 2.0, 8
#: The largest mean that is tried.
FARTHEST = 6.0
#: Spread of a row's log density over the nodes from which exponentials would lose it.
MOST_SPREAD = 600.0


@lru_cache(maxsize=32)
def _limits(nodes: bytes, shifted: bytes, count: int, tolerance: float) -> Array:
    x = np.frombuffer(nodes).reshape(count, -1)
    log_weight = np.frombuffer(shifted) - 0.5 * (x * x).sum(axis=1)
    keep = np.isfinite(log_weight)
    x, log_weight = x[keep], log_weight[keep]
    means = np.arange(0.0, FARTHEST + 1e-9, 0.125)
    out = np.zeros(int(2 * WIDEST * STEPS) + 1)
    for at in range(out.size):
        log_variance = at / STEPS - WIDEST
        worst = np.zeros(means.size)
        for j in range(x.shape[1]):
            own = x[:, j]
            for sign in (1.0, -1.0):
                ratio = -0.5 * (own[:, None] - sign * means) ** 2 / np.exp(log_variance) + 0.5 * own[:, None] ** 2
                found = np.exp(log_weight[:, None] + ratio - 0.5 * log_variance).sum(axis=0)
                worst = np.maximum(worst, np.abs(found - 1.0))
        bad = np.flatnonzero(worst > tolerance)
        out[at] = means[-1] if not bad.size else (means[bad[0] - 1] if bad[0] else -1.0)
    return out


def limits(nodes: Array, shifted: Array, tolerance: float = NEGLIGIBLE) -> Array:
    """How far from its centre a rule may be used: by log variance from -2 to 2, the largest mean, -1 where none.

    Parameters
    ----------
    nodes, shifted : (M, q), (M,)
        A rule for the standard normal distribution, as `gauss_hermite` gives it.
    tolerance : relative error for a normal density of that mean and variance, along any one axis.

    Examples
    --------
    >>> from partialpool.algebra.quadrature import gauss_hermite
    >>> far = limits(*gauss_hermite(16, 1))
    >>> far.size, bool(far[16] > 3), float(far[-1])
    (33, True, -1.0)
    """
    return _limits(
        np.ascontiguousarray(nodes).tobytes(), np.ascontiguousarray(shifted).tobytes(), len(shifted), tolerance
    )


@helper
def within_limits(far, mean, variance):
    """Whether a rule may be used for what has this mean and variance in its coordinates."""
    if not variance > 0.0:
        return False
    place = (math.log(variance) + WIDEST) * STEPS
    at = math.floor(place)
    if at < 0 or at + 1 >= far.size:
        return False
    return abs(mean) <= min(far[at], far[at + 1])


@helper
def place_nodes(nodes, shifted, v, low, q, step, points, logs):
    """points (q, M) = v + L'^-1 x, and logs (M,) of their weights times the prior of the effects."""
    for m in range(nodes.shape[0]):
        solve_transposed(low, nodes[m], step, q)
        square = 0.0
        for j in range(q):
            points[j, m] = v[j] + step[j]
            square += points[j, m] * points[j, m]
        logs[m] = shifted[m] - 0.5 * square


@helper
def log_determinant(low, q):
    """log |L|."""
    total = 0.0
    for j in range(q):
        total += math.log(low[j, j])
    return total


@helper(fastmath={"nnan", "nsz"})
def range_of(rows, i):
    """The least and the largest of a row."""
    least, largest = rows[i, 0], rows[i, 0]
    for m in range(1, rows.shape[1]):
        least = min(least, rows[i, m])
        largest = max(largest, rows[i, m])
    return least, largest


@helper(fastmath={"nnan", "nsz"})
def highest(values):
    """The largest."""
    found = values[0]
    for m in range(1, values.size):
        found = max(found, values[m])
    return found


@helper(fastmath={"reassoc"})
def sum_of(values):
    """The sum."""
    total = 0.0
    for m in range(values.size):
        total += values[m]
    return total


@helper(fastmath={"reassoc"})
def inner(a, b):
    """a'b."""
    total = 0.0
    for m in range(a.size):
        total += a[m] * b[m]
    return total


@helper(fastmath={"reassoc"})
def moments_along(shares, nodes, j):
    """sum p x and sum p x^2, x a row of `nodes`."""
    first, second = 0.0, 0.0
    for m in range(shares.size):
        first += shares[m] * nodes[j, m]
        second += shares[m] * nodes[j, m] * nodes[j, m]
    return first, second


# What has a loop around a density or an exponential is merged into its callers (`inline`): only there does the compiler
# turn it into vector instructions. Rows of arrays are passed as array and number: a view costs as much as ten nodes.


@helper(inline=True)
def log_sum(logs, work):
    """log sum exp; -inf where all are. work (M,): room for the exponentials, less the largest."""
    found = highest(logs)
    if math.isfinite(found):
        for m in range(logs.size):
            work[m] = exponential(logs[m] - found)
        found += math.log(sum_of(work))
    elif found != math.inf:
        found = -math.inf
    return found


@helper
def exchange_all(i, j, y, trials, weight, base0, base1, b0, b1, q):
    """Swap two rows of a group."""
    for values in (y, trials, weight, base0, base1):
        values[i], values[j] = values[j], values[i]
    for values in (b0, b1):
        for k in range(q):
            values[i, k], values[j, k] = values[j, k], values[i, k]


@helper
def rule_good(shares, total, nodes, q, far):
    """Whether the rule may be used for what the shares (M,), of this sum, of its nodes (q, M) describe."""
    for j in range(q):
        first, second = moments_along(shares, nodes, j)
        first /= total
        if not within_limits(far, first, second / total - first * first):
            return False
    return True


@helper(inline=True)
def with_and_without(shares, rows, i, nodes, q, far, work, density):
    """A row at the nodes of its group: log sum p f and log sum p / f, and whether the rule may be used for each.

    shares p (M,): weights of the nodes given all rows. rows (., M): row i is log f. nodes (q, M).
    """
    least, largest = range_of(rows, i)
    good_with, good_without, added, rest = False, False, 0.0, 0.0
    if largest - least < MOST_SPREAD:
        for m in range(shares.size):
            density[m] = exponential(rows[i, m] - largest)
        for m in range(shares.size):
            work[m] = shares[m] * density[m]
        total = sum_of(work)
        added = largest + math.log(total)
        good_with = rule_good(work, total, nodes, q, far)
        for m in range(shares.size):
            work[m] = shares[m] / density[m]
        total = sum_of(work)
        rest = math.log(total) - largest
        good_without = rule_good(work, total, nodes, q, far)
    return added, good_with, rest, good_without


def row_values_of(node_value: Any) -> Any:
    """The helper that fills one row's weighted log densities at all nodes."""

    @helper(inline=True)
    def along_first(n_nodes, w, eta0, constant, e2, y, trials, out, to):
        for m in range(n_nodes):
            out[to, m] = w * node_value(eta0[m], constant, e2, y, trials)

    @helper(inline=True)
    def row_values(i, y, trials, weight, base0, base1, e2, b0, b1, second, q, points, eta0, eta1, out, to):
        """out[to] (M,) = w log f of row i at the nodes `points` (q, M)."""
        n_nodes = eta0.size
        w, own_y, own_trials, plain0, plain1 = weight[i], y[i], trials[i], base0[i], base1[i]
        for m in range(n_nodes):
            eta0[m] = plain0
        for j in range(q):
            slope = b0[i, j]
            for m in range(n_nodes):
                eta0[m] += slope * points[j, m]
        if second:
            for m in range(n_nodes):
                eta1[m] = plain1
            for j in range(q):
                slope = b1[i, j]
                for m in range(n_nodes):
                    eta1[m] += slope * points[j, m]
            for m in range(n_nodes):
                out[to, m] = w * node_value(eta0[m], eta1[m], e2, own_y, own_trials)
        else:
            along_first(n_nodes, w, eta0, plain1, e2, own_y, own_trials, out, to)

    return row_values


_ROWS = (
    "float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1], int32[:,::1], int64[::1],"
    " float64[:,::1], int64[::1], int64[::1]"
)
_RULE = "float64[:,::1], float64[::1], float64[:,::1], float64[:,::1], float64"
_NODES = "float64[:,::1], float64[:,:,::1], float64[:,::1]"


@cache
def row_kernel(name: str, log_density: Any, derivatives: Any, vector: tuple[Any, Any] | None = None) -> Any:
    """The kernel of one family that leaves out rows one by one.

    Parameters
    ----------
    name : of the family and its link, for the files of the cache.
    log_density, derivatives : helpers of one row; see `spec.families.base`. vector : see `leaf_functions`.
    """
    functions: LeafFunctions = leaf_functions(log_density, derivatives, vector)
    find_highest = functions.find_highest
    row_values = row_values_of(vector[0] if vector else log_density)

    @kernel(
        f"void(int64[::1], int64[::1], {_NODES}, {_ROWS}, {_RULE}, float64[::1], float64[:,::1], float64[:,::1],"
        " float64[:,::1], int64[::1])",
        variant=name,
    )
    def leave_rows_out(
        groups, column, root, lam, constants, y, trials, weight, offset, x, at, x_part, z, z_part, pointer,
        nodes, shifted, start, starts, tolerance, far, out, copies, wholes, counts,
    ):  # fmt: skip
        """out[column[i], k] = log p(y_i | the other rows of its group, node k), without the family's constants.

        groups (W,): groups of the leaf that are wanted. column (n,): by row, in the leaf's order, where it goes;
        -1 where it is not wanted. root (K, R), lam (K, q, q), constants (K, 2): the nodes. far: `limits` of the rule.
        copies[column[i], k]: the same of a copy of the row, given all rows. wholes[place, k] = log p(y_g | node k), of
        the groups wanted.
        counts (2,): densities (without the row, and of a copy) by the group's rule, and by one of their own.
        """
        q = z.shape[1]
        n_nodes = nodes.shape[0]
        most = 1
        for place in range(groups.size):
            most = max(most, pointer[groups[place] + 1] - pointer[groups[place]])
        second = False
        for k in range(q):
            if z_part[k] != 0:
                second = True
        base0, base1 = np.empty(most), np.empty(most)
        b0, b1 = np.empty((most, q)), np.empty((most, q))
        own_y, own_trials, own_weight = np.empty(most), np.empty(most), np.empty(most)
        v, mode, best_v, gradient = np.empty(q), np.empty(q), np.empty(q), np.empty(q)
        step, old = np.empty(q), np.empty(q)
        hessian, low, best_low = np.empty((q, q)), np.empty((q, q)), np.empty((q, q))
        points, eta0, eta1 = np.empty((q, n_nodes)), np.empty(n_nodes), np.empty(n_nodes)
        logs, work = np.empty(n_nodes), np.empty(n_nodes)
        shares, density, axes = np.empty(n_nodes), np.empty(n_nodes), nodes.T.copy()
        rows = np.empty((most + 1, n_nodes))  # the last: a row of another rule
        for place in range(groups.size):
            g = groups[place]
            first = pointer[g]
            count = pointer[g + 1] - first
            for i in range(count):
                own_y[i], own_trials[i], own_weight[i] = y[first + i], trials[first + i], weight[first + i]
            for k in range(root.shape[0]):
                e2 = constants[k, 1]
                root_predictors(first, count, x, at, x_part, root[k], offset, constants[k, 0], base0, base1)
                scaled_columns(first, count, z, z_part, lam[k], b0, b1)
                for j in range(q):
                    v[j] = start[g, j]
                if q > 0:
                    find_highest(
                        0, count, own_y, own_trials, own_weight, base0, base1, e2, b0, b1, second, q, v, hessian, low,
                        gradient, step, old, tolerance, starts, best_v, best_low,
                    )  # fmt: skip
                place_nodes(nodes, shifted, v, low, q, step, points, logs)
                for i in range(count):
                    row_values(
                        i, own_y, own_trials, own_weight, base0, base1, e2, b0, b1, second, q, points, eta0, eta1,
                        rows, i,
                    )  # fmt: skip
                    for m in range(n_nodes):
                        logs[m] += rows[i, m]
                if q == 0:  # rows are independent
                    wholes[place, k] = logs[0]
                    for i in range(count):
                        if column[first + i] >= 0:
                            out[column[first + i], k] = rows[i, 0]
                            copies[column[first + i], k] = rows[i, 0]
                    continue
                half = log_determinant(low, q)
                whole = log_sum(logs, work) - half
                wholes[place, k] = whole
                if whole > -math.inf:
                    total = sum_of(work)
                    for m in range(n_nodes):
                        shares[m] = work[m] / total if logs[m] > -math.inf else 0.0
                for j in range(q):
                    mode[j] = v[j]
                for i in range(count):
                    to = column[first + i]
                    if to < 0:
                        continue
                    if whole == -math.inf:
                        out[to, k], copies[to, k] = whole, whole
                        continue
                    copies[to, k], good_with, rest, good_without = with_and_without(
                        shares, rows, i, axes, q, far, work, density
                    )
                    out[to, k] = -rest
                    if count == 1:
                        out[to, k], good_without = whole, True
                    counts[0] += int(good_with) + int(good_without)
                    if good_with and good_without:
                        continue
                    # a rule of its own: the row is put last; without it the group ends before it, with its copy its
                    # weight is twice what it was
                    last = count - 1
                    exchange_all(i, last, own_y, own_trials, own_weight, base0, base1, b0, b1, q)
                    for twice in range(2):
                        if good_with if twice == 1 else good_without:
                            continue
                        counts[1] += 1
                        size = count if twice == 1 else last
                        own_weight[last] *= 1.0 + twice
                        for j in range(q):
                            v[j] = mode[j]
                        find_highest(
                            0, size, own_y, own_trials, own_weight, base0, base1, e2, b0, b1, second, q, v, hessian,
                            low, gradient, step, old, tolerance, starts, best_v, best_low,
                        )  # fmt: skip
                        # `logs` of the whole group is needed for the rows that follow: the sum goes to `work`
                        place_nodes(nodes, shifted, v, low, q, step, points, work)
                        for other in range(size):
                            row_values(
                                other, own_y, own_trials, own_weight, base0, base1, e2, b0, b1, second, q, points,
                                eta0, eta1, rows, most,
                            )  # fmt: skip
                            for m in range(n_nodes):
                                work[m] += rows[most, m]
                        own_weight[last] /= 1.0 + twice
                        total = log_sum(work, work) - log_determinant(low, q)
                        if twice == 1:
                            copies[to, k] = total - whole
                        else:
                            out[to, k] = whole - total
                    exchange_all(i, last, own_y, own_trials, own_weight, base0, base1, b0, b1, q)

    return leave_rows_out
