r"""The joint log density of hyperparameters, coefficients and the root's effects, the leaf integrated out.

A point is ``[t, b, e]``: hyperparameters on an unconstrained scale, coefficients ``gamma = mean + scale b``, and the
effects of the factors other than the leaf. An effect may stand anywhere between centred (e = u) and non-centred
(u = sd e). If the rows hold information lambda on u, its conditional mean and variance follow its prior precision
``q = 1 / sd^2`` as ``lambda m / (lambda + q)`` and ``1 / (lambda + q)``; with u0 and q0 at a reference,

.. math:: u = S^2 u_0 + S (e - u_0), \qquad S^2 = (\lambda + q_0) / (\lambda + q),

takes both along, so that e hardly depends on the sd: S goes as the sd where the sd is small, and to a constant where it
is large (partial non-centring, Papaspiliopoulos, Roberts and Sköld, 2007, with the location moved as well). Infinite
lambda is centred; lambda = u0 = 0, q0 = 1 is non-centred. A term of several correlated effects is one or the other,
``u = Lambda e``. With no leaf this is the density of the whole model. Constants of the priors are left out; those of
the likelihood are the caller's.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.leaf import GRADIENT, VALUE, leaf_functions
from partialpool.algebra.rows import (
    PARTIAL,
    centred_effects,
    correlation_factor,
    correlation_gradient,
    log_prior,
    natural_scale,
)

# Columns of the table of terms.
AT = 0  # first hyperparameter
SIZE = 1  # effects of a group
CORRELATED = 2
WIDTH = 3  # effects of a group of the factor, all its terms together
FIRST = 4  # root: position of the first group's first effect in the root; leaf: its place among a group's effects
GROUPS = 5
LEAF = 6  # whether the term's factor is the leaf

# Rows of `centring`, a column for each effect of the root.
INFORMATION, ORIGIN, REFERENCE = 0, 1, 2  # lambda, u0, q0


@helper
def squared_scale(information, reference, precision):
    """S^2 of one effect."""
    if information == math.inf:
        return 1.0
    return (information + reference) / (information + precision)


@helper
def descend_from_point(
    point, kinds, params, b_kinds, b_params, mean, scale, terms, centring, constant_at,
    natural, relative, root, lam, constants, gradient,
):  # fmt: skip
    """Log prior density; fills what the rows need: `root` (R,), `lam` (q, q) and `constants` (2,).

    gradient (D,) is set to that of the priors of t and b; the effects' part is left to `ascend_to_point`.
    natural, relative (d,): hyperparameters on their own scale, and the derivative of their log by t.
    """
    d, p = kinds.size, mean.size
    value = 0.0
    for j in range(point.size):
        gradient[j] = 0.0
    for j in range(d):
        if kinds[j] == PARTIAL:
            magnitude = abs(point[j])
            value += 2.0 * params[j, 0] * (math.log(2.0) - magnitude - math.log1p(math.exp(-2.0 * magnitude)))
            gradient[j] = -2.0 * params[j, 0] * math.tanh(point[j])
            continue
        s, slope, log_slope, slope_of_log = natural_scale(point[j], params[j, 3], params[j, 4])
        density, score = log_prior(kinds[j], params[j, 0], params[j, 1], params[j, 2], s)
        value += density + log_slope
        gradient[j] = score * slope + slope_of_log
        natural[j] = s
        relative[j] = 1.0 if params[j, 4] <= 0.0 else slope / s
    for k in range(2):
        constants[k] = 0.0
        if constant_at[k] >= 0:
            j = constant_at[k]
            constants[k] = math.log(natural[j]) if params[j, 4] > 0.0 else point[j]
    for j in range(p):
        b = point[d + j]
        root[j] = mean[j] + scale[j] * b
        density, score = log_prior(b_kinds[j], b_params[j, 0], b_params[j, 1], b_params[j, 2], b)
        value += density
        gradient[d + j] = score
    q_leaf = lam.shape[0]
    for i in range(q_leaf):
        for j in range(q_leaf):
            lam[i, j] = 0.0
    q_max = 1
    for t in range(terms.shape[0]):
        q_max = max(q_max, terms[t, SIZE])
    c = np.empty((q_max, q_max))
    for t in range(terms.shape[0]):
        at, q, first = terms[t, AT], terms[t, SIZE], terms[t, FIRST]
        if terms[t, LEAF] != 0:
            correlation_factor(point, at, q, terms[t, CORRELATED], c)
            for i in range(q):
                for j in range(i + 1):
                    lam[first + i, first + j] = natural[at + i] * c[i, j]
            continue
        if q == 1 or terms[t, CORRELATED] == 0:
            for i in range(q):
                precision = 1.0 / (natural[at + i] * natural[at + i])
                for g in range(terms[t, GROUPS]):
                    here = first + g * terms[t, WIDTH] + i
                    square = squared_scale(centring[INFORMATION, here], centring[REFERENCE, here], precision)
                    origin = centring[ORIGIN, here]
                    root[p + here] = square * origin + math.sqrt(square) * (point[d + p + here] - origin)
            continue
        correlation_factor(point, at, q, terms[t, CORRELATED], c)
        for g in range(terms[t, GROUPS]):
            here = first + g * terms[t, WIDTH]
            for i in range(q):
                if centring[INFORMATION, here] == math.inf:
                    root[p + here + i] = point[d + p + here + i]
                    continue
                total = 0.0
                for j in range(i + 1):
                    total += c[i, j] * point[d + p + here + j]
                root[p + here + i] = natural[at + i] * total
    return value


@helper
def ascend_to_point(
    point, kinds, scale, terms, centring, constant_at, natural, relative, root, in_root, in_constant, zz, n_leaf,
    gradient,
):  # fmt: skip
    """The effects' log prior density; adds to `gradient` that of the effects' prior and of the rows.

    in_root (R,), in_constant (2,): the rows' gradient. zz (q, q): sum over the leaf's groups of E[v v'].
    """
    d, p = kinds.size, scale.size
    value = 0.0
    for k in range(2):
        if constant_at[k] >= 0:
            gradient[constant_at[k]] += in_constant[k] * relative[constant_at[k]]
    for j in range(p):
        gradient[d + j] += scale[j] * in_root[j]
    q_max = 1
    for t in range(terms.shape[0]):
        q_max = max(q_max, terms[t, SIZE])
    c = np.empty((q_max, q_max))
    in_c = np.empty((q_max, q_max))
    column = np.empty(q_max)
    effects = root[p:]
    in_effects = in_root[p:]
    for t in range(terms.shape[0]):
        at, q, first, groups = terms[t, AT], terms[t, SIZE], terms[t, FIRST], terms[t, GROUPS]
        if terms[t, LEAF] == 0 and (q == 1 or terms[t, CORRELATED] == 0):
            for i in range(q):
                log_sd = math.log(natural[at + i])
                precision = 1.0 / (natural[at + i] * natural[at + i])
                slope = 0.0
                for g in range(groups):
                    here = first + g * terms[t, WIDTH] + i
                    information = centring[INFORMATION, here]
                    square = squared_scale(information, centring[REFERENCE, here], precision)
                    share = 0.0 if information == math.inf else precision / (information + precision)
                    u = effects[here]
                    pull = in_effects[here] - u * precision
                    value += -0.5 * u * u * precision - log_sd + 0.5 * math.log(square)
                    slope += u * u * precision - 1.0 + share + pull * share * (u + centring[ORIGIN, here] * square)
                    gradient[d + p + here] = pull * math.sqrt(square)
                gradient[at + i] += slope * relative[at + i]
            continue
        correlation_factor(point, at, q, terms[t, CORRELATED], c)
        for i in range(q):
            for j in range(q):
                in_c[i, j] = 0.0
        if terms[t, LEAF] != 0:
            # E[w z'] summed over groups, w = C'^-1 z: in C as for centred effects
            for j in range(q):
                for i in range(q - 1, -1, -1):
                    total = zz[first + i, first + j]
                    for k in range(i + 1, q):
                        total -= c[k, i] * column[k]
                    column[i] = total / c[i, i]
                for i in range(j, q):
                    in_c[i, j] = column[i]
            for i in range(q):
                in_c[i, i] -= n_leaf / c[i, i]
        elif centring[INFORMATION, first] == math.inf:
            for g in range(groups):
                here = first + g * terms[t, WIDTH]
                value += centred_effects(natural, at, q, c, in_c, effects, in_effects, here, d + p, gradient)
            for i in range(q):
                value -= groups * (math.log(natural[at + i]) + math.log(c[i, i]))
                in_c[i, i] -= groups / c[i, i]
        else:
            for g in range(groups):
                here = first + g * terms[t, WIDTH]
                for j in range(q):
                    own = point[d + p + here + j]
                    total = 0.0
                    for i in range(j, q):
                        pulled = natural[at + i] * in_effects[here + i]
                        total += c[i, j] * pulled
                        in_c[i, j] += pulled * own
                    gradient[d + p + here + j] = total - own
                    value -= 0.5 * own * own
        for i in range(q):
            total = 0.0
            for j in range(i + 1):
                total += c[i, j] * in_c[i, j]
            gradient[at + i] += total * relative[at + i]
        if terms[t, CORRELATED] != 0:
            correlation_gradient(point, at, q, in_c, gradient)
    return value


_PRIORS = (
    "int64[::1], float64[:,::1], int64[::1], float64[:,::1], float64[::1], float64[::1], int64[:,::1], float64[:,::1],"
    " int64[::1]"
)
_ROWS = (
    "float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1], int32[:,::1], int64[::1],"
    " float64[:,::1], int64[::1], int64[::1], int64[::1], int32[:,::1], int32[::1]"
)
_NODES = "float64[:,::1], float64[::1], float64[:,::1], float64[:,::1], float64"


@kernel(
    f"float64(float64[::1], {_PRIORS}, float64[::1], float64[::1], float64[::1], float64[:,::1], float64[::1],"
    " float64[::1])"
)
def descend(
    point, kinds, params, b_kinds, b_params, mean, scale, terms, centring, constant_at,
    natural, relative, root, lam, constants, gradient,
):  # fmt: skip
    """`descend_from_point`, for passes that are split over threads."""
    return descend_from_point(
        point, kinds, params, b_kinds, b_params, mean, scale, terms, centring, constant_at,
        natural, relative, root, lam, constants, gradient,
    )  # fmt: skip


@kernel(
    "float64(float64[::1], int64[::1], float64[::1], int64[:,::1], float64[:,::1], int64[::1], float64[::1],"
    " float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1], int64, float64[::1])"
)
def ascend(
    point, kinds, scale, terms, centring, constant_at, natural, relative, root, in_root, in_constant, zz, n_leaf,
    gradient,
):  # fmt: skip
    """`ascend_to_point`, for passes that are split over threads."""
    return ascend_to_point(
        point, kinds, scale, terms, centring, constant_at, natural, relative, root, in_root, in_constant, zz, n_leaf,
        gradient,
    )  # fmt: skip


@cache
def family_kernels(
    name: str, log_density: Any, derivatives: Any, vector: tuple[Any, Any] | None = None
) -> tuple[Any, Any]:
    """The kernels of one family: ``joint`` at many points, and ``part`` of the leaf's groups at one.

    Parameters
    ----------
    name : of the family and its link, for the files of the cache.
    log_density, derivatives : helpers of one row; see `spec.families.base`. vector : see `leaf_functions`.
    """
    leaf_pass = leaf_functions(log_density, derivatives, vector).leaf_pass

    @kernel(f"void(int64, float64[:,::1], float64[::1], float64[:,::1], {_PRIORS}, {_ROWS}, {_NODES})", variant=name)
    def joint(
        want, points, values, gradients, kinds, params, b_kinds, b_params, mean, scale, terms, centring, constant_at,
        y, trials, weight, offset, x, at, x_part, z, z_part, pointer, touched_pointer, local, touched,
        nodes, shifted, start, starts, tolerance,
    ):  # fmt: skip
        """values (K,) and, where want is GRADIENT, gradients (K, D) at points (K, D)."""
        d, q = kinds.size, z.shape[1]
        size = points.shape[1]
        natural, relative, constants = np.empty(d), np.empty(d), np.empty(2)
        root, in_root = np.empty(size - d), np.empty(size - d)
        lam, zz, in_constant = np.empty((q, q)), np.empty((q, q)), np.empty(2)
        none1, none2, none3 = np.empty(0), np.empty((0, 0)), np.empty((0, 0, 0))
        no_status = np.empty(0, dtype=np.int64)
        spare = np.empty(size)
        groups = pointer.size - 1
        for k in range(points.shape[0]):
            gradient = gradients[k] if want == GRADIENT else spare
            value = descend_from_point(
                points[k], kinds, params, b_kinds, b_params, mean, scale, terms, centring, constant_at,
                natural, relative, root, lam, constants, gradient,
            )  # fmt: skip
            in_root[:] = 0.0
            zz[:, :] = 0.0
            in_constant[:] = 0.0
            if math.isfinite(value):
                value += leaf_pass(
                    0, groups, want, root, lam, constants[0], constants[1], y, trials, weight, offset, x, at, x_part,
                    z, z_part, pointer, touched_pointer, local, touched, nodes, shifted, start, starts, tolerance,
                    in_root, in_constant, zz, none2, none1, none2, none2, none3, no_status,
                )  # fmt: skip
                value += ascend_to_point(
                    points[k], kinds, scale, terms, centring, constant_at, natural, relative, root, in_root,
                    in_constant, zz, groups, gradient,
                )  # fmt: skip
            values[k] = value

    @kernel(
        "float64(int64, int64, int64, float64[::1], float64[:,::1], float64, float64,"
        f" {_ROWS}, {_NODES}, float64[::1], float64[::1], float64[:,::1], float64[:,::1], float64[::1],"
        " float64[:,::1], float64[:,::1], float64[:,:,::1], int64[::1])",
        variant=name,
    )
    def part(
        begin, end, want, root, lam, constant, e2, y, trials, weight, offset, x, at, x_part, z, z_part, pointer,
        touched_pointer, local, touched, nodes, shifted, start, starts, tolerance,
        in_root, in_constant, zz, hess, group_value, mode, mean, covariance, status,
    ):  # fmt: skip
        """`leaf_pass` of the groups begin..end."""
        return leaf_pass(
            begin, end, want, root, lam, constant, e2, y, trials, weight, offset, x, at, x_part, z, z_part, pointer,
            touched_pointer, local, touched, nodes, shifted, start, starts, tolerance,
            in_root, in_constant, zz, hess, group_value, mode, mean, covariance, status,
        )  # fmt: skip

    return joint, part


__all__ = ["GRADIENT", "VALUE", "ascend", "descend", "family_kernels"]
