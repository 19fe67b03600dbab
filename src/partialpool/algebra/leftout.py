r"""Kernels for what is left out of a Gaussian model: the density of a row, or of a whole group, given all others.

*Rows.* Given theta the linear predictor of row i is normal given y, with mean m and variance v, coefficients and all
effects integrated. With D_i / sigma^2 the information of the row (its weights included) and ``h = v D_i / sigma^2``,
taking the row away again (or adding a copy of it) gives

.. math:: \log p(y_i | y_{-i}) = c_i + \tfrac12 \log(1 - h) - \frac{(y_i - m)^2 D_i / \sigma^2}{2 (1 - h)}, \qquad
          \log p(y_i^* | y) = c_i - \tfrac12 \log(1 + h) - \frac{(y_i - m)^2 D_i / \sigma^2}{2 (1 + h)},

``c_i`` the log density's constant at the row's own weight.

*Groups.* A group g of a chain level and all that nests in it say of the later coefficients c (effects of its ancestors,
coefficients, effects of the root that it meets) what is in ``J = [c y]' cross-products - Y' Y`` (`blocks`), its own
effects integrated out. With ``c | y ~ N(m, C)``, ``C = R R'`` and ``a = J_cy - J_cc m``,

.. math:: \log p(y_g | y_{-g}) = \log p(y_g | m) + \tfrac12 \log|I - R' J R| - \tfrac12 a' R (I - R' J R)^{-1} R' a,

and with the signs of J turned the density of a new group of the same rows.
"""

from __future__ import annotations

import math

import numpy as np

from partialpool.algebra.blocks import (
    B_AT,
    D_AT,
    GROUPS,
    IDX_AT,
    LAM_AT,
    PTR_AT,
    S_AT,
    SIGNATURE_STRUCTURE,
    U_AT,
    UP_AT,
    WIDTH,
    Q,
)
from partialpool.algebra.descent import solve_low_transposed
from partialpool.algebra.jit import helper, kernel

#: A share of a direction's information below which a unit's removal leaves it unknown.
SINGULAR = 1e-11


@helper
def gather(
    levels, parent, ptr, idx, up, k, g, pos, cov_d, cov_b, cov_s, means, root_cov, n_root, pair_at, pair,
    root_beta_cov, beta_cov, root_mean, beta_mean, p, cov, mean,
):
    """Mean and covariance of what group g of level k meets: ancestors' effects, coefficients, its root effects.

    pair: where the group's pairs begin in `pair_at`. Returns how many of these are dense, and in all.
    """
    n_levels = levels.shape[0]
    d0 = levels[1, D_AT] if n_levels > 1 else 0
    b0 = levels[1, B_AT] if n_levels > 1 else 0
    s0 = levels[1, S_AT] if n_levels > 1 else 0
    nb = levels[k, WIDTH] - 1
    first = ptr[levels[k, PTR_AT] + g]
    m = ptr[levels[k, PTR_AT] + g + 1] - first
    h = g
    start = 0
    for e in range(m):
        pos[e] = first + e
    for a in range(k + 1, n_levels):
        h = parent[levels[a - 1, UP_AT] + h]
        qa = levels[a, Q]
        wa = levels[a, WIDTH]
        at = levels[a, D_AT] - d0 + h * qa * qa
        for i in range(qa):
            for j in range(qa):
                cov[start + i, start + j] = cov_d[at + i * qa + j]
            mean[start + i] = means[levels[a, U_AT] + h * qa + i]
        at = levels[a, B_AT] - b0 + h * qa * wa
        for i in range(qa):
            for c in range(wa - 1):
                value = cov_b[at + i * wa + c]
                cov[start + i, start + qa + c] = value
                cov[start + qa + c, start + i] = value
        at = levels[a, S_AT] - s0
        for e in range(m):
            pos[e] = up[levels[a - 1, IDX_AT] + pos[e]]
            for i in range(qa):
                value = cov_s[at + pos[e] * qa + i]
                cov[start + i, nb + e] = value
                cov[nb + e, start + i] = value
        start += qa
    for i in range(p):
        for j in range(p):
            cov[start + i, start + j] = beta_cov[i * p + j]
        mean[start + i] = beta_mean[i]
    idx_at = levels[k, IDX_AT] + first
    for e in range(m):
        row = idx[idx_at + e]
        for c in range(p):
            value = root_beta_cov[row * p + c]
            cov[nb + e, start + c] = value
            cov[start + c, nb + e] = value
        mean[nb + e] = root_mean[row]
        for f in range(e + 1):
            if pair_at.size == 0:
                value = root_cov[row * n_root + idx[idx_at + f]]
            else:
                value = root_cov[pair_at[pair]]
                pair += 1
            cov[nb + e, nb + f] = value
            cov[nb + f, nb + e] = value
    return nb, nb + m


@helper
def widest(levels, ptr, lowest):
    """The most that a group of the levels from `lowest` meets, and the most of the root that any group meets."""
    r_max, m_max = 1, 1
    for k in range(levels.shape[0]):
        for g in range(levels[k, GROUPS]):
            at = levels[k, PTR_AT] + g
            m = ptr[at + 1] - ptr[at]
            m_max = max(m_max, m)
            if k == lowest:
                r_max = max(r_max, levels[k, WIDTH] + m)
    return r_max, m_max


SIGNATURE_STATE = (
    "float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "int64, int64[::1], float64[::1], float64[::1], float64[::1], float64[::1], int64"
)  # from low to p
SIGNATURE_OUT = "float64[:,::1], float64[:,::1], int64"


@kernel(
    f"void({SIGNATURE_STRUCTURE}, float64[::1], float64, float64, {SIGNATURE_STATE}, int64, int64[::1], "
    "float64[:,::1], float64[:,::1], float64[:,::1], int64[:,::1], float64[::1], float64[::1], float64[::1], "
    f"float64[::1], int64[::1], {SIGNATURE_OUT})"
)
def leave_rows(
    levels, parent, ptr, idx, up, lam, inv_var, log_sigma, low, y_b, y_s, cov_d, cov_b, cov_s, means, root_cov, n_root,
    pair_at, root_beta_cov, beta_cov, root_mean, beta_mean, p, begin, pointer, own, dense, sparse, entry, y, weight,
    count, constant, pairs, left, inside, node,
):
    """Fill left[:, node] and inside[:, node] for the rows of the leaf groups begin, begin + 1, ...

    pointer: their rows; own (n, q), dense (n, nb), sparse and entry (n, s): values of the columns, and which of the
    group's entries those of the root are; count: weights of the rows; pairs: where each group's pairs begin.
    """
    q = levels[0, Q]
    w = levels[0, WIDTH]
    lam_at = levels[0, LAM_AT]
    r_max, m_max = widest(levels, ptr, 0)
    cov, mean = np.empty((r_max, r_max)), np.empty(r_max)
    x, xc = np.empty((q, r_max)), np.empty((q, r_max))
    z_mean, column, scaled, cross = np.empty(q), np.empty(q), np.empty(q), np.empty(r_max)
    variance = np.empty((q, q))
    pos = np.empty(m_max, np.int64)
    for place in range(pointer.size - 1):
        g = begin + place
        if pointer[place + 1] == pointer[place]:
            continue
        pair = pairs[g] if pairs.size else 0
        nb, r = gather(
            levels, parent, ptr, idx, up, 0, g, pos, cov_d, cov_b, cov_s, means, root_cov, n_root, pair_at, pair,
            root_beta_cov, beta_cov, root_mean, beta_mean, p, cov, mean,
        )
        low_at = levels[0, D_AT] + g * q * q
        b_at = levels[0, B_AT] + g * q * w
        s_at = levels[0, S_AT] + ptr[levels[0, PTR_AT] + g] * q
        for c in range(r):
            for i in range(q):
                column[i] = y_b[b_at + i * w + c] if c < nb else y_s[s_at + (c - nb) * q + i]
            solve_low_transposed(low, low_at, q, column)
            for i in range(q):
                x[i, c] = column[i]
        for i in range(q):
            z_mean[i] = y_b[b_at + i * w + nb]
        solve_low_transposed(low, low_at, q, z_mean)
        for i in range(q):
            t = z_mean[i]
            for c in range(r):
                t -= x[i, c] * mean[c]
            z_mean[i] = t
            for c in range(r):
                t = 0.0
                for e in range(r):
                    t += x[i, e] * cov[e, c]
                xc[i, c] = t
        for j in range(q):
            for i in range(q):
                column[i] = 0.0
            column[j] = 1.0
            for i in range(j, q):
                t = column[i]
                for e in range(j, i):
                    t -= low[low_at + i * q + e] * column[e]
                column[i] = t / low[low_at + i * q + i]
            solve_low_transposed(low, low_at, q, column)
            for i in range(q):
                t = column[i]
                for c in range(r):
                    t += xc[i, c] * x[j, c]
                variance[i, j] = t
        for i in range(pointer[place], pointer[place + 1]):
            centre, spread = 0.0, 0.0
            for j in range(q):
                t = 0.0
                for e in range(j, q):
                    t += lam[lam_at + e * q + j] * own[i, e]
                scaled[j] = t
                centre += t * z_mean[j]
            for j in range(q):
                for e in range(q):
                    spread += scaled[j] * variance[j, e] * scaled[e]
            for c in range(nb):
                t = 0.0
                for j in range(q):
                    t -= scaled[j] * xc[j, c]
                cross[c] = 2.0 * t
                centre += dense[i, c] * mean[c]
            for c in range(nb):
                t = cross[c]
                for e in range(nb):
                    t += cov[c, e] * dense[i, e]
                spread += t * dense[i, c]
            for c in range(sparse.shape[1]):
                at = nb + entry[i, c]
                centre += sparse[i, c] * mean[at]
                t = 0.0
                for j in range(q):
                    t -= 2.0 * scaled[j] * xc[j, at]
                for e in range(nb):
                    t += 2.0 * cov[at, e] * dense[i, e]
                for e in range(sparse.shape[1]):
                    t += cov[at, nb + entry[i, e]] * sparse[i, e]
                spread += t * sparse[i, c]
            information = weight[i] * inv_var
            h = max(spread, 0.0) * information
            square = (y[i] - centre) * (y[i] - centre) * information
            base = constant[i] - count[i] * log_sigma
            rest = 1.0 - h
            if rest > SINGULAR:
                left[i, node] = base + 0.5 * math.log(rest) - 0.5 * square / rest
            else:
                left[i, node] = -math.inf
            inside[i, node] = base - 0.5 * math.log(1.0 + h) - 0.5 * square / (1.0 + h)


@helper
def half_factor(matrix, r, half):
    """half half' = matrix (lower triangular), with columns of 0 where nothing is left."""
    for j in range(r):
        s = matrix[j, j]
        for e in range(j):
            s -= half[j, e] * half[j, e]
        for i in range(j):
            half[i, j] = 0.0
        if not s > 1e-15 * matrix[j, j]:
            for i in range(j, r):
                half[i, j] = 0.0
            continue
        diagonal = math.sqrt(s)
        half[j, j] = diagonal
        for i in range(j + 1, r):
            t = matrix[i, j]
            for e in range(j):
                t -= half[i, e] * half[j, e]
            half[i, j] = t / diagonal


@helper
def turned(inner, sign, slope, r, work, solved):
    """log |I + sign inner| / 2 and slope' (I + sign inner)^-1 slope; -inf where nothing is left of a direction."""
    half_log_det, square = 0.0, 0.0
    for j in range(r):
        s = 1.0 + sign * inner[j, j]
        for e in range(j):
            s -= work[j, e] * work[j, e]
        if not s > SINGULAR:
            return -math.inf, 0.0
        diagonal = math.sqrt(s)
        half_log_det += math.log(diagonal)
        work[j, j] = diagonal
        for i in range(j + 1, r):
            t = sign * inner[i, j]
            for e in range(j):
                t -= work[i, e] * work[j, e]
            work[i, j] = t / diagonal
        t = slope[j]
        for e in range(j):
            t -= work[j, e] * solved[e]
        solved[j] = t / diagonal
        square += solved[j] * solved[j]
    return half_log_det, square


@kernel(
    f"void({SIGNATURE_STRUCTURE}, int64, float64, float64, {SIGNATURE_STATE}, int64, int64[::1], float64[::1], "
    f"float64[::1], int64[::1], float64[::1], int64[:,:,::1], {SIGNATURE_OUT})"
)
def leave_groups(
    levels, parent, ptr, idx, up, level, inv_var, log_sigma, low, y_b, y_s, cov_d, cov_b, cov_s, means, root_cov,
    n_root, pair_at, root_beta_cov, beta_cov, root_mean, beta_mean, p, begin, pairs, count, constant, at_product,
    products, spans, left, inside, node,
):
    """Fill left[:, node] and inside[:, node] for the groups begin, begin + 1, ... of a chain level.

    products: by group the cross-products of [what it meets, y], (r + 1)^2 from at_product on; spans: (groups, level +
    1, 2) which groups of each level lie in it; count, constant: sums over its rows.
    """
    r_max, m_max = widest(levels, ptr, level)
    cov, mean, half = np.empty((r_max, r_max)), np.empty(r_max), np.empty((r_max, r_max))
    j_mat, inner, work = np.empty((r_max + 1, r_max + 1)), np.empty((r_max, r_max)), np.empty((r_max, r_max))
    slope, turned_slope, solved = np.empty(r_max), np.empty(r_max), np.empty(r_max)
    values, places = np.empty(r_max + 1), np.empty(r_max + 1, np.int64)
    pos = np.empty(m_max, np.int64)
    for unit in range(count.size):
        g = begin + unit
        pair = pairs[g] if pairs.size else 0
        nb, r = gather(
            levels, parent, ptr, idx, up, level, g, pos, cov_d, cov_b, cov_s, means, root_cov, n_root, pair_at, pair,
            root_beta_cov, beta_cov, root_mean, beta_mean, p, cov, mean,
        )
        first = ptr[levels[level, PTR_AT] + g]
        for i in range(r + 1):
            for j in range(i + 1):
                j_mat[i, j] = products[at_product[unit] + i * (r + 1) + j] * inv_var
        half_log_det = 0.0
        for k in range(level + 1):
            q = levels[k, Q]
            w = levels[k, WIDTH]
            begins = w - nb - 1
            for e in range(spans[unit, k, 0], spans[unit, k, 1]):
                low_at = levels[k, D_AT] + e * q * q
                b_at = levels[k, B_AT] + e * q * w + begins
                start = ptr[levels[k, PTR_AT] + e]
                met = ptr[levels[k, PTR_AT] + e + 1] - start
                s_at = levels[k, S_AT] + start * q
                size = 0
                for c in range(nb):
                    places[size] = c
                    size += 1
                for c in range(met):
                    at = start + c
                    for a in range(k + 1, level + 1):
                        at = up[levels[a - 1, IDX_AT] + at]
                    places[size] = nb + at - first
                    size += 1
                places[size] = r
                size += 1
                for i in range(q):
                    half_log_det += math.log(low[low_at + i * q + i])
                    for c in range(nb):
                        values[c] = y_b[b_at + i * w + c]
                    for c in range(met):
                        values[nb + c] = y_s[s_at + c * q + i]
                    values[size - 1] = y_b[b_at + i * w + nb]
                    for c in range(size):
                        for f in range(c + 1):
                            j_mat[places[c], places[f]] -= values[c] * values[f]
        square = j_mat[r, r]
        for i in range(r):
            t = j_mat[r, i]
            square -= t * mean[i]
            for j in range(r):
                t -= (j_mat[i, j] if j <= i else j_mat[j, i]) * mean[j]
            slope[i] = t
            square -= t * mean[i]
        half_factor(cov, r, half)
        for i in range(r):
            t = 0.0
            for j in range(i, r):
                t += half[j, i] * slope[j]
            turned_slope[i] = t
            for j in range(r):  # work = J half
                t = 0.0
                for e in range(j, r):
                    t += (j_mat[i, e] if e <= i else j_mat[e, i]) * half[e, j]
                work[i, j] = t
        for i in range(r):
            for j in range(i + 1):
                t = 0.0
                for e in range(i, r):
                    t += half[e, i] * work[e, j]
                inner[i, j] = t
        base = constant[unit] - count[unit] * log_sigma - half_log_det - 0.5 * square
        log_det, quadratic = turned(inner, -1.0, turned_slope, r, work, solved)
        left[unit, node] = base + log_det - 0.5 * quadratic
        log_det, quadratic = turned(inner, 1.0, turned_slope, r, work, solved)
        inside[unit, node] = base - log_det + 0.5 * quadratic


@kernel(
    "void(int64[::1], float64[:,::1], float64[:,::1], int64[:,::1], float64[::1], float64[::1], int64[::1], "
    "int64[::1], float64[::1])"
)
def add_products(pointer, dense, sparse, entry, y, weight, met, at_product, out):
    """By unit the weighted cross-products of [dense, the root's entries that it meets, y]; see `leave_groups`."""
    nb = dense.shape[1]
    size = nb + sparse.shape[1] + 1
    values, places = np.empty(size), np.empty(size, np.int64)
    for unit in range(pointer.size - 1):
        r1 = nb + met[unit] + 1
        at = at_product[unit]
        for i in range(pointer[unit], pointer[unit + 1]):
            for c in range(nb):
                values[c] = dense[i, c]
                places[c] = c
            for c in range(sparse.shape[1]):
                values[nb + c] = sparse[i, c]
                places[nb + c] = nb + entry[i, c]
            values[size - 1] = y[i]
            places[size - 1] = r1 - 1
            for c in range(size):
                value = values[c] * weight[i]
                for f in range(size):
                    out[at + places[c] * r1 + places[f]] += value * values[f]
