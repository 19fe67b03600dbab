r"""One pass over the rows: the log density of a whole Gaussian model, group effects and all, and its gradient.

Written apart from the cross-products and eliminations of the other kernels, so that the reference engine checks them.
The unknowns are ``[t, b, z]``: hyperparameters on an unconstrained scale, coefficients ``gamma = mean + scale b``, and
group effects ``u_g = Lambda z_g`` with ``z_g ~ N(0, I)``; a term may instead be centred, where u itself stands in the
place of z. Constants of the priors are left out.
"""

from __future__ import annotations

import math

import numpy as np

from partialpool.algebra.jit import helper, kernel

# Kinds of priors; their parameters stand in three columns.
FLAT = 0
NORMAL = 1  # mu, sigma
STUDENT = 2  # nu, mu, sigma
GAMMA = 3  # shape, rate
INVERSE_GAMMA = 4  # shape, scale
BETA = 5  # a, b
PARTIAL = 6  # atanh of a partial correlation z with (z + 1) / 2 ~ Beta(a, a)

# Columns of the table `terms`, one row a group term.
AT = 0  # first hyperparameter
SIZE = 1  # effects of a group
CORRELATED = 2
WIDTH = 3  # effects of a group of the factor, all its terms together
FIRST = 4  # position of the first group's first effect of this term
GROUPS = 5
CENTRED = 6  # whether the unknowns are u, not z


@helper
def log_prior(kind, a, b, c, x):
    """Log density at x without its constant, and its derivative."""
    if kind == NORMAL:
        z = (x - a) / b
        return -0.5 * z * z, -z / b
    if kind == STUDENT:
        z = (x - b) / c
        return -0.5 * (a + 1.0) * math.log1p(z * z / a), -(a + 1.0) * z / (c * (a + z * z))
    if kind == GAMMA:
        if a == 1.0:
            return -b * x, -b
        return (a - 1.0) * math.log(x) - b * x, (a - 1.0) / x - b
    if kind == INVERSE_GAMMA:
        return -(a + 1.0) * math.log(x) - b / x, (b / x - a - 1.0) / x
    if kind == BETA:
        value = (a - 1.0) * math.log(x) + (b - 1.0) * math.log1p(-x)
        return value, (a - 1.0) / x - (b - 1.0) / (1.0 - x)
    return 0.0, 0.0


@helper
def natural_scale(t, low, width):
    """A positive parameter from t: exp(t), or low + width logistic(t) where width > 0.

    Returns the parameter, its derivative, the log of that, and the derivative of that log.
    """
    if width <= 0.0:
        x = math.exp(t)
        return x, x, t, 1.0
    share = 1.0 / (1.0 + math.exp(-t))
    log_slope = math.log(width) - abs(t) - 2.0 * math.log1p(math.exp(-abs(t)))
    return low + width * share, math.exp(log_slope), log_slope, 1.0 - 2.0 * share


@helper
def correlation_factor(point, at, q, correlated, c):
    """Fill C (q, q), lower triangular with rows of length 1, from the partial correlations tanh(point)."""
    for i in range(q):
        for j in range(q):
            c[i, j] = 1.0 if i == j else 0.0
    if correlated == 0:
        return
    t = at + q
    for i in range(1, q):
        remaining = 1.0
        for j in range(i):
            c[i, j] = math.tanh(point[t]) * remaining
            remaining /= math.cosh(min(max(point[t], -350.0), 350.0))
            t += 1
        c[i, i] = remaining


@helper
def correlation_gradient(point, at, q, in_c, gradient):
    """Add the gradient in the partial correlations' coordinates, given that in C: the recursion backwards."""
    end = at + q
    remaining = np.empty(q + 1)
    for i in range(1, q):
        start = end
        end += i
        remaining[0] = 1.0
        for j in range(i):
            remaining[j + 1] = remaining[j] / math.cosh(min(max(point[start + j], -350.0), 350.0))
        in_remaining = in_c[i, i]
        for j in range(i - 1, -1, -1):
            z = math.tanh(point[start + j])
            root = 1.0 / math.cosh(min(max(point[start + j], -350.0), 350.0))
            gradient[start + j] += remaining[j] * root * (in_c[i, j] * root - in_remaining * z)
            in_remaining = in_c[i, j] * z + in_remaining * root


@helper
def centred_effects(natural, at, q, c, in_c, u, in_u, here, first_z, gradient):
    """Log density -z'z / 2 of one group's u, z = Lambda^-1 u; adds its derivative in C, writes that in u.

    With w = C^-T z the derivative in u is -w / sd and that in C is w z'; the determinant is left to the caller.
    """
    z = np.empty(q)
    w = np.empty(q)
    value = 0.0
    for i in range(q):
        total = u[here + i] / natural[at + i]
        for j in range(i):
            total -= c[i, j] * z[j]
        z[i] = total / c[i, i]
        value -= 0.5 * z[i] * z[i]
    for i in range(q - 1, -1, -1):
        total = z[i]
        for j in range(i + 1, q):
            total -= c[j, i] * w[j]
        w[i] = total / c[i, i]
        gradient[first_z + here + i] = in_u[here + i] - w[i] / natural[at + i]
        for j in range(i + 1):
            in_c[i, j] += w[i] * z[j]
    return value


@kernel(
    "float64(float64[::1], float64[::1], float64[::1], float64[:,::1], float64[:,::1], int64[:,::1], int64[::1],"
    " float64[::1], float64[::1], float64[::1], boolean, int64[:,::1], int64[::1], float64[:,::1], int64, int64[::1],"
    " float64[:,::1], float64[::1], float64[::1], float64[::1], float64[::1])"
)
def whole_model(
    point, gradient, y, x, z, start, pointer, known, count, precision, has_known, terms, kinds, params, sigma_at,
    b_kinds, b_params, mean, scale, u, in_u,
):  # fmt: skip
    """Log density at `point` up to a constant; the gradient is written to `gradient`.

    Parameters
    ----------
    y : (n,) response less offset. x : (n, p). z : (n, w) the effects' columns, factor by factor, `pointer` where each
    factor's begin. start : (factors, n) position of the row's group in the vector of effects.
    known, count, precision : (n,) squares of the standard errors, weights, precisions (ones where there are none).
    terms : see the columns above. kinds, params : priors of t (params: three of the prior, lower end and width of a
    bounded support, width 0 where there is no bound). sigma_at : position of sigma in t, or -1.
    b_kinds, b_params : priors of b. u, in_u : (effects,) workspace.
    """
    d = kinds.size
    n, p = x.shape
    n_factors = start.shape[0]
    first_z = d + p
    value = 0.0
    natural = np.empty(d)
    relative = np.empty(d)  # d log(natural) / dt
    for j in range(d):
        gradient[j] = 0.0
        if kinds[j] == PARTIAL:
            magnitude = abs(point[j])
            value += 2.0 * params[j, 0] * (math.log(2.0) - magnitude - math.log1p(math.exp(-2.0 * magnitude)))
            gradient[j] = -2.0 * params[j, 0] * math.tanh(point[j])
            continue
        s, slope, log_slope, slope_of_log = natural_scale(point[j], params[j, 3], params[j, 4])
        log_density, score = log_prior(kinds[j], params[j, 0], params[j, 1], params[j, 2], s)
        value += log_density + log_slope
        gradient[j] = score * slope + slope_of_log
        natural[j] = s
        relative[j] = 1.0 if params[j, 4] <= 0.0 else slope / s

    gamma = np.empty(p)
    for j in range(p):
        b = point[d + j]
        gamma[j] = mean[j] + scale[j] * b
        log_density, score = log_prior(b_kinds[j], b_params[j, 0], b_params[j, 1], b_params[j, 2], b)
        value += log_density
        gradient[d + j] = score

    q_max = 1
    for t in range(terms.shape[0]):
        q_max = max(q_max, terms[t, SIZE])
    c = np.empty((q_max, q_max))
    in_c = np.empty((q_max, q_max))
    for t in range(terms.shape[0]):
        at, q = terms[t, AT], terms[t, SIZE]
        correlation_factor(point, at, q, terms[t, CORRELATED], c)
        for g in range(terms[t, GROUPS]):
            here = terms[t, FIRST] + g * terms[t, WIDTH]
            for i in range(q):
                total = 0.0
                for j in range(i + 1):
                    total += c[i, j] * point[first_z + here + j]
                u[here + i] = point[first_z + here + i] if terms[t, CENTRED] != 0 else natural[at + i] * total
                in_u[here + i] = 0.0

    sigma_square = natural[sigma_at] * natural[sigma_at] if sigma_at >= 0 else 0.0
    if not has_known:
        total = 0.0
        for i in range(n):
            total += count[i]
        value -= total * math.log(natural[sigma_at])
        gradient[sigma_at] -= total * relative[sigma_at]
    in_gamma = np.zeros(p)
    inverse = 1.0 / sigma_square if sigma_at >= 0 else 0.0
    in_log_sigma = 0.0
    for i in range(n):
        residual = y[i]
        for j in range(p):
            residual -= x[i, j] * gamma[j]
        for f in range(n_factors):
            here = start[f, i] - pointer[f]
            for k in range(pointer[f], pointer[f + 1]):
                residual -= z[i, k] * u[here + k]
        if has_known:
            variance = known[i] + sigma_square
            pull = count[i] * precision[i] * residual / variance
            square = pull * residual
            value -= 0.5 * count[i] * math.log(variance)
            in_log_sigma += (square - count[i]) * (sigma_square / variance)
        else:
            pull = count[i] * precision[i] * residual * inverse
            square = pull * residual
            in_log_sigma += square
        value -= 0.5 * square
        for j in range(p):
            in_gamma[j] += pull * x[i, j]
        for f in range(n_factors):
            here = start[f, i] - pointer[f]
            for k in range(pointer[f], pointer[f + 1]):
                in_u[here + k] += pull * z[i, k]

    if sigma_at >= 0:
        gradient[sigma_at] += in_log_sigma * relative[sigma_at]
    for j in range(p):
        gradient[d + j] += scale[j] * in_gamma[j]
    for t in range(terms.shape[0]):
        at, q = terms[t, AT], terms[t, SIZE]
        correlation_factor(point, at, q, terms[t, CORRELATED], c)
        for i in range(q):
            for j in range(q):
                in_c[i, j] = 0.0
        n_groups = terms[t, GROUPS]
        for g in range(n_groups):
            here = terms[t, FIRST] + g * terms[t, WIDTH]
            if terms[t, CENTRED] != 0:
                value += centred_effects(natural, at, q, c, in_c, u, in_u, here, first_z, gradient)
                continue
            for j in range(q):
                own = point[first_z + here + j]
                total = 0.0
                for i in range(j, q):
                    pulled = natural[at + i] * in_u[here + i]
                    total += c[i, j] * pulled
                    in_c[i, j] += pulled * own
                gradient[first_z + here + j] = total - own
                value -= 0.5 * own * own
        if terms[t, CENTRED] != 0:
            for i in range(q):
                value -= n_groups * (math.log(natural[at + i]) + math.log(c[i, i]))
                in_c[i, i] -= n_groups / c[i, i]
        for i in range(q):
            total = 0.0
            for j in range(i + 1):
                total += c[i, j] * in_c[i, j]
            gradient[at + i] += total * relative[at + i]
        if terms[t, CORRELATED] != 0:
            correlation_gradient(point, at, q, in_c, gradient)
    return value
