r"""Kernels from the root down: conditional moments of the group effects, and draws of them.

With L, Y of `blocks.eliminate_range` kept and ``X = L^{-T} Y``, a group's effects given all later coefficients c are

.. math:: z_g | c \sim N(L^{-T} Y_y - X c,\; M_g^{-1}), \qquad u_g = \Lambda z_g,

so that moments follow from those of c, level by level:
:math:`Cov(z_g, c) = -X\,Cov(c, c)` and :math:`Var(z_g) = M_g^{-1} + X\,Cov(c, c)\,X'`.
Only covariances of effects that share a group further down are ever formed.
"""

from __future__ import annotations

import numpy as np

from partialpool.algebra.blocks import (
    B_AT,
    D_AT,
    GROUPS,
    IDX_AT,
    LAM_AT,
    PTR_AT,
    ROOT_GROUPS,
    ROOT_LAM,
    ROOT_Q,
    ROOT_START,
    ROOT_U,
    S_AT,
    SIGNATURE_STRUCTURE,
    U_AT,
    UP_AT,
    WIDTH,
    Q,
    eliminate_range,
    factor_coefficients,
    factor_small_root,
    load_work,
    whiten_root,
)
from partialpool.algebra.jit import helper, kernel


@helper
def solve_low_transposed(low, at, q, vector):
    """vector := L^{-T} vector for the q x q factor that starts at low[at]."""
    for i in range(q - 1, -1, -1):
        t = vector[i]
        for r in range(i + 1, q):
            t -= low[at + r * q + i] * vector[r]
        vector[i] = t / low[at + i * q + i]


@helper
def descend_levels(
    levels, parent, ptr, idx, up, lam, y_b, y_s, low, n_root, pair_at,
    root_cov, root_beta_cov, beta_cov, root_mean, beta_mean, p,
    cov_d, cov_b, cov_s, zz, u_mean, u_var,
):
    """Moments of all chain levels, top down.

    root_cov (layout of the root's factor), root_beta_cov (n_root x p), beta_cov (p x p), root_mean, beta_mean: in the
    raw scale. cov_d, cov_b, cov_s: work for the levels above the leaf. Adds the sum over groups of E[z z'] to zz
    (layout of lam); writes u_mean and u_var unless they have length 0.
    """
    n_levels = levels.shape[0]
    q_max, w_max, m_max = 1, 1, 1
    for k in range(n_levels):
        q_max = max(q_max, levels[k, Q])
        w_max = max(w_max, levels[k, WIDTH])
        for g in range(levels[k, GROUPS]):
            at = levels[k, PTR_AT] + g
            m_max = max(m_max, ptr[at + 1] - ptr[at])
    d0 = levels[1, D_AT] if n_levels > 1 else 0
    b0 = levels[1, B_AT] if n_levels > 1 else 0
    s0 = levels[1, S_AT] if n_levels > 1 else 0
    dense = pair_at.size == 0
    pair = pair_at.size
    want_groups = u_mean.size > 0
    xb = np.empty((q_max, w_max))
    xs = np.empty((m_max, q_max))
    wb = np.empty((q_max, w_max))
    ws = np.empty((m_max, q_max))
    cbb = np.empty((w_max, w_max))
    cbs = np.empty((m_max, w_max))
    c_mean = np.empty(w_max)
    column = np.empty(q_max)
    z_mean = np.empty(q_max)
    variance = np.empty((q_max, q_max))
    half = np.empty((q_max, q_max))
    pos = np.empty(m_max, np.int64)
    means = u_mean
    if not want_groups and n_levels > 1:
        last = n_levels - 1
        means = np.empty(levels[last, U_AT] + levels[last, GROUPS] * levels[last, Q])
    for k in range(n_levels - 1, -1, -1):
        q = levels[k, Q]
        w = levels[k, WIDTH]
        nb = w - 1
        lam_at = levels[k, LAM_AT]
        for g in range(levels[k, GROUPS] - 1, -1, -1):
            low_at = levels[k, D_AT] + g * q * q
            b_at = levels[k, B_AT] + g * q * w
            first = ptr[levels[k, PTR_AT] + g]
            m = ptr[levels[k, PTR_AT] + g + 1] - first
            s_at = levels[k, S_AT] + first * q
            idx_at = levels[k, IDX_AT] + first
            pair -= m * (m + 1) // 2
            # X = L^-T Y
            for c in range(nb):
                for i in range(q):
                    column[i] = y_b[b_at + i * w + c]
                solve_low_transposed(low, low_at, q, column)
                for i in range(q):
                    xb[i, c] = column[i]
            for i in range(q):
                z_mean[i] = y_b[b_at + i * w + nb]
            solve_low_transposed(low, low_at, q, z_mean)
            for e in range(m):
                for i in range(q):
                    column[i] = y_s[s_at + e * q + i]
                solve_low_transposed(low, low_at, q, column)
                for i in range(q):
                    xs[e, i] = column[i]
            # covariance and mean of the later coefficients that this group meets
            h = g
            start = 0
            for e in range(m):
                pos[e] = first + e
            for a in range(k + 1, n_levels):
                h = parent[levels[a - 1, UP_AT] + h]
                qa = levels[a, Q]
                rest = levels[a, WIDTH] - 1
                at = levels[a, D_AT] - d0 + h * qa * qa
                for i in range(qa):
                    for j in range(qa):
                        cbb[start + i, start + j] = cov_d[at + i * qa + j]
                    c_mean[start + i] = means[levels[a, U_AT] + h * qa + i]
                at = levels[a, B_AT] - b0 + h * qa * levels[a, WIDTH]
                for i in range(qa):
                    for c in range(rest):
                        value = cov_b[at + i * levels[a, WIDTH] + c]
                        cbb[start + i, start + qa + c] = value
                        cbb[start + qa + c, start + i] = value
                at = levels[a, S_AT] - s0
                for e in range(m):
                    pos[e] = up[levels[a - 1, IDX_AT] + pos[e]]
                    for i in range(qa):
                        cbs[e, start + i] = cov_s[at + pos[e] * qa + i]
                start += qa
            for i in range(p):
                for j in range(p):
                    cbb[start + i, start + j] = beta_cov[i * p + j]
                c_mean[start + i] = beta_mean[i]
            for e in range(m):
                row = idx[idx_at + e]
                for c in range(p):
                    cbs[e, start + c] = root_beta_cov[row * p + c]
            # W = X Cov(c, c)
            for i in range(q):
                for c in range(nb):
                    t = 0.0
                    for r in range(nb):
                        t += xb[i, r] * cbb[r, c]
                    for e in range(m):
                        t += xs[e, i] * cbs[e, c]
                    wb[i, c] = t
                for e in range(m):
                    t = 0.0
                    for c in range(nb):
                        t += xb[i, c] * cbs[e, c]
                    ws[e, i] = t
            inner = pair
            for e in range(m):
                row = idx[idx_at + e]
                for f in range(e + 1):
                    if dense:
                        value = root_cov[row * n_root + idx[idx_at + f]]
                    else:
                        value = root_cov[pair_at[inner]]
                        inner += 1
                    for i in range(q):
                        ws[e, i] += xs[f, i] * value
                        if f != e:
                            ws[f, i] += xs[e, i] * value
            # mean and variance of z
            for i in range(q):
                t = z_mean[i]
                for c in range(nb):
                    t -= xb[i, c] * c_mean[c]
                for e in range(m):
                    t -= xs[e, i] * root_mean[idx[idx_at + e]]
                z_mean[i] = t
            for j in range(q):
                for i in range(q):
                    column[i] = 0.0
                column[j] = 1.0
                for i in range(j, q):  # L^-1 e_j
                    t = column[i]
                    for r in range(j, i):
                        t -= low[low_at + i * q + r] * column[r]
                    column[i] = t / low[low_at + i * q + i]
                solve_low_transposed(low, low_at, q, column)
                for i in range(q):
                    t = column[i]
                    for c in range(nb):
                        t += wb[i, c] * xb[j, c]
                    for e in range(m):
                        t += ws[e, i] * xs[e, j]
                    variance[i, j] = t
            for i in range(q):
                for j in range(q):
                    zz[lam_at + i * q + j] += variance[i, j] + z_mean[i] * z_mean[j]
            if k == 0 and not want_groups:
                continue
            # u = Lambda z
            for i in range(q):
                t = 0.0
                for r in range(i + 1):
                    t += lam[lam_at + i * q + r] * z_mean[r]
                means[levels[k, U_AT] + g * q + i] = t
                for j in range(q):
                    t = 0.0
                    for r in range(i + 1):
                        t += lam[lam_at + i * q + r] * variance[r, j]
                    half[i, j] = t
            if want_groups:
                for i in range(q):
                    t = 0.0
                    for r in range(i + 1):
                        t += half[i, r] * lam[lam_at + i * q + r]
                    u_var[levels[k, U_AT] + g * q + i] = t
            if k > 0:
                at = levels[k, D_AT] - d0 + g * q * q
                for i in range(q):
                    for j in range(q):
                        t = 0.0
                        for r in range(j + 1):
                            t += half[i, r] * lam[lam_at + j * q + r]
                        cov_d[at + i * q + j] = t
                at = levels[k, B_AT] - b0 + g * q * w
                for i in range(q):
                    for c in range(nb):
                        t = 0.0
                        for r in range(i + 1):
                            t -= lam[lam_at + i * q + r] * wb[r, c]
                        cov_b[at + i * w + c] = t
                at = levels[k, S_AT] - s0 + first * q
                for e in range(m):
                    for i in range(q):
                        t = 0.0
                        for r in range(i + 1):
                            t -= lam[lam_at + i * q + r] * ws[e, r]
                        cov_s[at + e * q + i] = t


@kernel(
    f"void({SIGNATURE_STRUCTURE}, float64[::1], float64[::1], float64[::1], float64[::1], int64, int64[::1], "
    "float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], int64, "
    "float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1])"
)
def descend(
    levels, parent, ptr, idx, up, lam, y_b, y_s, low, n_root, pair_at,
    root_cov, root_beta_cov, beta_cov, root_mean, beta_mean, p,
    cov_d, cov_b, cov_s, zz, u_mean, u_var,
):
    """`descend_levels` as a kernel of its own, for one theta."""
    descend_levels(
        levels, parent, ptr, idx, up, lam, y_b, y_s, low, n_root, pair_at,
        root_cov, root_beta_cov, beta_cov, root_mean, beta_mean, p,
        cov_d, cov_b, cov_s, zz, u_mean, u_var,
    )


@helper
def coefficient_covariance(coefficient_low, scale, p, beta_cov):
    """beta_cov := scale (L L')^-1 scale."""
    inverse = np.zeros((max(p, 1), max(p, 1)))
    for j in range(p):
        for i in range(j, p):
            t = 1.0 if i == j else 0.0
            for r in range(j, i):
                t -= coefficient_low[i * p + r] * inverse[r, j]
            inverse[i, j] = t / coefficient_low[i * p + i]
    for i in range(p):
        for j in range(p):
            t = 0.0
            for r in range(max(i, j), p):
                t += inverse[r, i] * inverse[r, j]
            beta_cov[i * p + j] = t * scale[i] * scale[j]


@helper
def small_root_moments(
    root, root_x, root_blocks, lam, n_root, p, beta_cov, beta_mean, root_cov, root_beta_cov, root_mean, zz, u_mean,
    u_var,
):
    """Moments of the effects of a dense root that was factorised by `factor_small_root`.

    root holds L, root_x holds W = L^-1 [root_x]. Fills root_cov (raw scale, lower triangle), root_beta_cov, root_mean;
    adds to zz.
    """
    p1 = p + 1
    u = np.empty((n_root, p1))
    for c in range(p1):
        for i in range(n_root - 1, -1, -1):
            t = root_x[i * p1 + c]
            for r in range(i + 1, n_root):
                t -= root[r * n_root + i] * u[r, c]
            u[i, c] = t / root[i * n_root + i]
    inverse = np.zeros((n_root, n_root))
    for j in range(n_root):
        for i in range(j, n_root):
            t = 1.0 if i == j else 0.0
            for r in range(j, i):
                t -= root[i * n_root + r] * inverse[r, j]
            inverse[i, j] = t / root[i * n_root + i]
    z_mean = np.empty(n_root)
    for i in range(n_root):
        t = u[i, p]
        for c in range(p):
            t -= u[i, c] * beta_mean[c]
        z_mean[i] = t
        for c in range(p):
            t = 0.0
            for r in range(p):
                t -= u[i, r] * beta_cov[r * p + c]
            root_beta_cov[i * p + c] = t
    for i in range(n_root):
        for j in range(i + 1):
            t = 0.0
            for r in range(i, n_root):
                t += inverse[r, i] * inverse[r, j]
            for c in range(p):
                t -= root_beta_cov[i * p + c] * u[j, c]
            root_cov[i * n_root + j] = t
    raw_root_moments(
        root_blocks, lam, n_root, p, root_cov, root_beta_cov, z_mean, root_mean, zz, u_mean, u_var
    )


@helper
def raw_root_moments(root_blocks, lam, n_root, p, root_cov, root_beta_cov, z_mean, root_mean, zz, u_mean, u_var):
    """Collect E[z z'] by factor, then bring covariances (lower triangle) and means to the raw scale in place."""
    for t in range(root_blocks.shape[0]):
        start = root_blocks[t, ROOT_START]
        q = root_blocks[t, ROOT_Q]
        lam_at = root_blocks[t, ROOT_LAM]
        u_at = root_blocks[t, ROOT_U]
        for g in range(root_blocks[t, ROOT_GROUPS]):
            first = start + g * q
            for i in range(q):
                for j in range(i):  # the diagonal block is needed whole
                    root_cov[(first + j) * n_root + first + i] = root_cov[(first + i) * n_root + first + j]
            for i in range(q):
                for j in range(q):
                    zz[lam_at + i * q + j] += (
                        root_cov[(first + i) * n_root + first + j] + z_mean[first + i] * z_mean[first + j]
                    )
            for i in range(q - 1, -1, -1):
                row = (first + i) * n_root
                diagonal = lam[lam_at + i * q + i]
                for c in range(first + q):
                    root_cov[row + c] *= diagonal
                for r in range(i):
                    value = lam[lam_at + i * q + r]
                    other = (first + r) * n_root
                    for c in range(first + q):
                        root_cov[row + c] += value * root_cov[other + c]
                for c in range(p):
                    value = 0.0
                    for r in range(i + 1):
                        value += lam[lam_at + i * q + r] * root_beta_cov[(first + r) * p + c]
                    root_beta_cov[(first + i) * p + c] = value
                value = 0.0
                for r in range(i + 1):
                    value += lam[lam_at + i * q + r] * z_mean[first + r]
                root_mean[first + i] = value
    # the columns, row by row since that is how they lie in memory
    for row in range(n_root):
        for t in range(root_blocks.shape[0]):
            start = root_blocks[t, ROOT_START]
            q = root_blocks[t, ROOT_Q]
            lam_at = root_blocks[t, ROOT_LAM]
            for g in range(root_blocks[t, ROOT_GROUPS]):
                first = start + g * q
                if first > row:
                    break
                at = row * n_root + first
                for i in range(q - 1, -1, -1):
                    value = 0.0
                    for r in range(i + 1):
                        value += root_cov[at + r] * lam[lam_at + i * q + r]
                    root_cov[at + i] = value
    for t in range(root_blocks.shape[0]):
        start = root_blocks[t, ROOT_START]
        size = root_blocks[t, ROOT_Q] * root_blocks[t, ROOT_GROUPS]
        u_at = root_blocks[t, ROOT_U]
        if u_mean.size > 0:
            for i in range(size):
                u_mean[u_at + i] = root_mean[start + i]
                u_var[u_at + i] = root_cov[(start + i) * n_root + start + i]


@helper
def lower_root_covariance(root_cov, solved, root_beta_cov, n_root, p):
    """root_cov -= root_beta_cov solved[:, :p]' on the lower triangle: what the coefficients' spread adds."""
    p1 = p + 1
    for i in range(n_root):
        for c in range(p):
            value = root_beta_cov[i * p + c]
            for j in range(i + 1):
                root_cov[i * n_root + j] -= value * solved[j * p1 + c]


@kernel(
    "void(int64[:,::1], float64[::1], int64, int64, float64[::1], float64[::1], float64[::1], float64[::1], "
    "float64[::1], float64[::1], float64[::1], float64[::1])"
)
def dense_root_moments(
    root_blocks, lam, n_root, p, root_cov, solved, root_beta_cov, z_mean, root_mean, zz, u_mean, u_var
):
    """`lower_root_covariance` and `raw_root_moments` as a kernel of their own."""
    lower_root_covariance(root_cov, solved, root_beta_cov, n_root, p)
    raw_root_moments(
        root_blocks, lam, n_root, p, root_cov, root_beta_cov, z_mean, root_mean, zz, u_mean, u_var
    )


@kernel(
    f"void({SIGNATURE_STRUCTURE}, float64[::1], float64[::1], float64[::1], int64[:,::1], int64[::1], float64[::1], "
    "float64[::1], float64[::1], int64[:,::1], float64[:,::1], float64[::1], float64[:,::1], float64[::1], boolean, "
    "float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1])"
)
def moments_batch(
    levels, parent, ptr, idx, up, d, b, s, ranges, root_at, root_v, gx, gxx, root_blocks,
    lams, inv_vars, scales, proper, profile, pieces, means, lows, zz, u_mean, u_var,
):
    """`blocks.evaluate_batch` and the moments of all group effects, for many theta.

    Besides the arrays of `evaluate_batch` fills zz (nodes, layout of lam) with the sums over groups of E[z z' | y],
    and, unless they have no columns, u_mean and u_var (nodes, effects). With `profile` the coefficients are held at
    their conditional mean (their covariance counts as 0).
    """
    p = scales.shape[1]
    p1 = p + 1
    n_root = gx.size // p1
    n_levels = levels.shape[0]
    n_d = d.size - levels[1, D_AT] if n_levels > 1 else 0
    n_b = b.size - levels[1, B_AT] if n_levels > 1 else 0
    n_s = s.size - levels[1, S_AT] if n_levels > 1 else 0
    d_work, b_work, s_work = np.empty(n_d), np.empty(n_b), np.empty(n_s)
    cov_d, cov_b, cov_s = np.empty(n_d), np.empty(n_b), np.empty(n_s)
    low, y_b, y_s = np.empty(d.size), np.empty(b.size), np.empty(s.size)
    root, root_cov = np.empty(n_root * n_root), np.empty(n_root * n_root)
    root_x = np.empty(n_root * p1)
    root_beta_cov = np.empty(n_root * p)
    root_mean = np.empty(n_root)
    xx = np.empty(p1 * p1)
    beta_cov, beta_mean = np.zeros(p * p), np.empty(p)
    no_pairs = np.empty(0, np.int64)
    for node in range(lams.shape[0]):
        lam = lams[node]
        load_work(
            levels, d, b, s, inv_vars[node], d_work, b_work, s_work, root_at, root_v, root, gx, root_x, gxx, xx
        )
        half_log_det = eliminate_range(
            levels, parent, ptr, idx, up, d, b, s, d_work, b_work, s_work, lam, inv_vars[node], ranges, True,
            y_b, y_s, low, n_root, no_pairs, root, root_x, xx, p1,
        )
        whiten_root(root, root_x, root_blocks, lam, n_root, p1)
        half_log_det += factor_small_root(root, root_x, xx, n_root, p1)
        last, square = factor_coefficients(xx, scales[node], proper, p, lows[node], means[node])
        pieces[node, 0] = half_log_det if profile else half_log_det + last
        pieces[node, 1] = xx[p * p1 + p] - square
        for i in range(p):
            beta_mean[i] = scales[node, i] * means[node, i]
        if not profile:
            coefficient_covariance(lows[node], scales[node], p, beta_cov)
        for i in range(zz.shape[1]):
            zz[node, i] = 0.0
        small_root_moments(
            root, root_x, root_blocks, lam, n_root, p, beta_cov, beta_mean, root_cov, root_beta_cov, root_mean,
            zz[node], u_mean[node], u_var[node],
        )
        descend_levels(
            levels, parent, ptr, idx, up, lam, y_b, y_s, low, n_root, no_pairs,
            root_cov, root_beta_cov, beta_cov, root_mean, beta_mean, p,
            cov_d, cov_b, cov_s, zz[node], u_mean[node], u_var[node],
        )
