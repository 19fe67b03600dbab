r"""Draws of the leaf's effects given all else, and each group's own maximum-likelihood estimate.

Given the root r and the hyperparameters the groups of the leaf are independent, with densities ``exp h(v)`` of a few
dimensions (`algebra.leaf`). Each is drawn by independence Metropolis: the proposal is a multivariate Student-t around
the mode with the Hessian's covariance, slightly widened, with heavier tails than those of ``exp h`` (the prior of v
is normal), so that the chain converges uniformly, at the rate of one less the least ratio of proposal to target. The
random numbers of a group in a draw follow from the seed and the two numbers alone: no draw depends on which others are
made, nor on threads.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.leaf import (
    FOUND,
    leaf_functions,
    root_predictors,
    scaled_columns,
    solve_transposed,
)

#: Degrees of freedom and widening of the proposal.
NU, WIDER = 5, 1.1
#: Steps of a chain, by whether the family is log-concave.
STEPS, MORE_STEPS = 10, 30

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TO_UNIT = 1.0 / 9007199254740992.0


@helper
def mixed(x):
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> _S30)) * _FIRST
    x = (x ^ (x >> _S27)) * _SECOND
    return x ^ (x >> _S31)


@helper
def stream_of(seed, group, draw):
    """Where the random numbers of one group in one draw begin."""
    key = mixed(np.uint64(seed) + _GOLDEN)
    key = mixed(key ^ (np.uint64(group) * _GOLDEN + _FIRST))
    return mixed(key ^ (np.uint64(draw) * _SECOND + _GOLDEN))


@helper
def uniform_at(key, count):
    """Number `count` of a stream, above 0 and below 1."""
    return (float(mixed(key + np.uint64(count) * _GOLDEN) >> _S11) + 0.5) * _TO_UNIT


@helper
def normal_at(key, count):
    """A standard normal number from numbers `count` and `count + 1` of a stream."""
    radius = math.sqrt(-2.0 * math.log(uniform_at(key, count)))
    return radius * math.cos(2.0 * math.pi * uniform_at(key, count + 1))


@helper
def student_at(key, count, q, out):
    """A multivariate Student-t (q,) of NU degrees of freedom from a stream; the square of its length.

    Up to two dimensions by Bailey (1994): r^2 of a pair is NU (u^(-2 / NU) - 1). Above, normal numbers over the root of
    a chi-square of 5 degrees of freedom.
    """
    if q <= 2:
        radius = math.sqrt(NU * (math.exp(-2.0 / NU * math.log(uniform_at(key, count))) - 1.0))
        angle = 2.0 * math.pi * uniform_at(key, count + 1)
        out[0] = radius * math.cos(angle)
        if q == 1:
            return out[0] * out[0]
        out[1] = radius * math.sin(angle)
        return radius * radius
    chi = -2.0 * math.log(uniform_at(key, count) * uniform_at(key, count + 1))
    last = normal_at(key, count + 2)
    chi += last * last
    square = 0.0
    for j in range(q):
        out[j] = normal_at(key, count + 4 + 2 * j) * math.sqrt(NU / chi)
        square += out[j] * out[j]
    return square


class DrawKernels(NamedTuple):
    """``draw``: conditional draws of the leaf's effects; ``alone``: each group's maximum-likelihood estimate."""

    draw: Any
    alone: Any


_LEAF_ROWS = (
    "float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1], int32[:,::1], int64[::1],"
    " float64[:,::1], int64[::1], int64[::1]"
)


@cache
def draw_kernels(name: str, log_density: Any, derivatives: Any) -> DrawKernels:
    """The kernels of one family.

    Parameters
    ----------
    name : of the family and its link, for the files of the cache.
    log_density, derivatives : helpers of one row; see `spec.families.base`.
    """
    functions = leaf_functions(log_density, derivatives)
    find_mode, find_highest, log_integrand = functions.find_mode, functions.find_highest, functions.log_integrand

    @kernel(
        "void(int64, int64, int64, int64[::1], int64[::1], float64[:,::1], float64[:,:,::1], float64[:,::1],"
        f" {_LEAF_ROWS}, float64[:,::1], float64[:,::1], float64, int64, float64[:,:,::1])",
        variant=name,
    )
    def draw(
        begin, end, seed, draws, groups, root, lam, constants, y, trials, weight, offset, x, at, x_part, z, z_part,
        pointer, start, starts, tolerance, steps, out,
    ):  # fmt: skip
        """out[k] (groups, q) = u of the wanted groups at draw k, for k from begin to end.

        draws (D,), groups (W,): numbers of the draws and groups, which choose the random numbers. root (D, R),
        lam (D, q, q), constants (D, 2): what each draw is made given.
        """
        q = z.shape[1]
        most = 1
        for place in range(groups.size):
            most = max(most, pointer[groups[place] + 1] - pointer[groups[place]])
        second = False
        for k in range(q):
            if z_part[k] != 0:
                second = True
        base0, base1 = np.empty(most), np.empty(most)
        b0, b1 = np.empty((most, q)), np.empty((most, q))
        v, best_v, gradient, step, old = np.empty(q), np.empty(q), np.empty(q), np.empty(q), np.empty(q)
        z_own, now = np.empty(q), np.empty(q)
        hessian, low, best_low = np.empty((q, q)), np.empty((q, q)), np.empty((q, q))
        for k in range(begin, end):
            for place in range(groups.size):
                g = groups[place]
                first = pointer[g]
                count = pointer[g + 1] - first
                root_predictors(first, count, x, at, x_part, root[k], offset, constants[k, 0], base0, base1)
                scaled_columns(first, count, z, z_part, lam[k], b0, b1)
                e2 = constants[k, 1]
                for j in range(q):
                    v[j] = start[g, j]
                find_highest(
                    first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v, hessian, low, gradient,
                    step, old, tolerance, starts, best_v, best_low,
                )  # fmt: skip
                # independence Metropolis: `old` is the state, as a place relative to the mode
                key = stream_of(seed, g, draws[k])
                at_now = 0
                ratio = -math.inf
                for j in range(q):
                    old[j] = v[j]
                for _ in range(steps + 1):
                    square = student_at(key, at_now, q, z_own)
                    at_now += 4 + 2 * q
                    solve_transposed(low, z_own, step, q)
                    for j in range(q):
                        now[j] = v[j] + WIDER * step[j]
                    value = log_integrand(
                        first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, now
                    ) + 0.5 * (NU + q) * math.log1p(square / NU)
                    chance = uniform_at(key, at_now)
                    at_now += 1
                    if value > ratio or math.log(chance) < value - ratio:
                        ratio = value
                        for j in range(q):
                            old[j] = now[j]
                for i in range(q):
                    total = 0.0
                    for j in range(i + 1):
                        total += lam[k, i, j] * old[j]
                    out[k, place, i] = total

    @kernel(
        "void(float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64, float64[:,::1],"
        " int64[::1], int64[::1], float64[::1], float64[:,::1], float64[:,::1], float64[:,:,::1], int64[::1])",
        variant=name,
    )
    def alone(y, trials, weight, base0, base1, e2, z, z_part, pointer, scale, start, u, information, status):
        """Effects u (G, q) that maximise each group's likelihood, and the rows' information (G, q, q) on u / scale.

        scale (q,): sds of a prior that is so wide that it does not count. start (G, q): where the search begins.
        """
        q = z.shape[1]
        most = 1
        for g in range(pointer.size - 1):
            most = max(most, pointer[g + 1] - pointer[g])
        second = False
        for k in range(q):
            if z_part[k] != 0:
                second = True
        b0, b1, lam = np.empty((most, q)), np.empty((most, q)), np.zeros((q, q))
        for j in range(q):
            lam[j, j] = scale[j]
        v, gradient, step, old = np.empty(q), np.empty(q), np.empty(q), np.empty(q)
        hessian, low = np.empty((q, q)), np.empty((q, q))
        for g in range(pointer.size - 1):
            first = pointer[g]
            count = pointer[g + 1] - first
            scaled_columns(first, count, z, z_part, lam, b0, b1)
            for j in range(q):
                v[j] = start[g, j] / scale[j]
            _, ended = find_mode(
                first, count, y, trials, weight, base0[first:], base1[first:], e2, b0, b1, second, q, v, hessian, low,
                gradient, step, old, 1e-12,
            )  # fmt: skip
            status[g] = ended
            for j in range(q):
                u[g, j] = scale[j] * v[j]
                for k in range(j + 1):
                    own = hessian[j, k] - (1.0 if j == k else 0.0)
                    information[g, j, k] = own
                    information[g, k, j] = own

    return DrawKernels(draw, alone)


__all__ = ["FOUND", "MORE_STEPS", "STEPS", "draw_kernels"]
