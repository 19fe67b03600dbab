r"""Kernels over groups: cross-products by group, elimination from the leaves up, moments from the root down.

Notation, for one theta. The latent coefficients are ordered: chain level 0 (the leaf), 1, ..., K - 1, then the
effects of the root's factors (R of them), then the p coefficients. With ``A = [Z X y]' D [Z X y] / sigma^2`` and
group effects ``u_g = Lambda z_g``, a group g of a chain level has the block

.. math:: M_g = \Lambda' D_g \Lambda + I = L L', \qquad Y = L^{-1} \Lambda' [B_g \; S_g],

where ``B_g`` are its cross-products with what is dense for every group (its ancestors' effects, X, y) and ``S_g``
those with the root's effects that it meets, a sparse list. Eliminating g takes ``Y' Y`` from everything later.
Later blocks are kept in the raw scale of u; each is whitened by its own Lambda only when its turn comes, so that
``M`` stays finite and well conditioned as an sd goes to 0.

Arrays are flat; the table ``levels`` says where each level's part starts (columns `Q` ... `LAM`).
"""

from __future__ import annotations

import math

import numpy as np

from partialpool.algebra.jit import helper, kernel

# Columns of the table `levels`, one row a chain level.
Q = 0  # effects of a group
GROUPS = 1
WIDTH = 2  # columns of the dense border: ancestors' effects, p, 1
D_AT = 3  # start in D (own blocks, groups x q x q)
B_AT = 4  # start in B (borders, groups x q x width)
S_AT = 5  # start in S (sparse part, entries x q)
PTR_AT = 6  # start in ptr (groups + 1)
IDX_AT = 7  # start in idx and up (entries)
UP_AT = 8  # start in parent (groups)
LAM_AT = 9  # start of the level's Lambda in lam
U_AT = 10  # start of the level's effects in the vector of all group effects

# Columns of the table `root_blocks`, one row a factor of the root.
ROOT_START = 0
ROOT_GROUPS = 1
ROOT_Q = 2
ROOT_LAM = 3
ROOT_U = 4  # start of the factor's effects in the vector of all group effects


@kernel(
    "void(int64[::1], float64[:,::1], float64[::1], int64[::1], float64[::1], int64[::1], float64[::1], float64[::1], "
    "int64, float64[::1])"
)
def add_cross_products(codes, columns, y, left, left_centre, right, right_centre, weight, stride, out):
    """Add weight_i (column left[a] - its centre)_i (column right[b] - its centre)_i at codes[i] stride + a w + b.

    Column number `columns.shape[1]` stands for y; w is the number of columns of `right`.
    """
    n, m = columns.shape
    q, w = left.size, right.size
    row_left = np.empty(q)
    row_right = np.empty(w)
    for i in range(n):
        for a in range(q):
            row_left[a] = weight[i] * ((y[i] if left[a] == m else columns[i, left[a]]) - left_centre[a])
        for b in range(w):
            row_right[b] = (y[i] if right[b] == m else columns[i, right[b]]) - right_centre[b]
        at = codes[i] * stride
        for a in range(q):
            for b in range(w):
                out[at] += row_left[a] * row_right[b]
                at += 1


@helper
def cholesky_small(a, n):
    """Cholesky factor of the leading n x n block in place (lower); returns half the log-determinant, NaN if not PD."""
    half_log_det = 0.0
    for j in range(n):
        s = a[j, j]
        for k in range(j):
            s -= a[j, k] * a[j, k]
        if not s > 0.0:
            return math.nan
        d = math.sqrt(s)
        half_log_det += math.log(d)
        a[j, j] = d
        for i in range(j + 1, n):
            t = a[i, j]
            for k in range(j):
                t -= a[i, k] * a[j, k]
            a[i, j] = t / d
    return half_log_det


@helper
def eliminate_range(
    levels, parent, ptr, idx, up, d, b, s, d_work, b_work, s_work, lam, inv_var, ranges, keep, y_b, y_s, low,
    n_root, pair_at, root, root_x, xx, p1,
):
    """Eliminate the chain's groups of `ranges` (one row a level), in order; returns the half log-determinant.

    d, b, s: cross-products (not divided by the variance); d_work, b_work, s_work: those of the levels above the leaf,
    already divided, updated here. root (flat: dense n_root x n_root, or the values of a sparse pattern), root_x
    (n_root x p1), xx (p1 x p1) are updated. pair_at: positions in `root` of each pair of a group's entries
    (sparse), or of length 0 (dense). With `keep`, L and Y are written to low, y_b, y_s.
    """
    n_levels = levels.shape[0]
    total = 0.0
    q_max, w_max, m_max = 1, 1, 1
    for k in range(n_levels):
        q_max = max(q_max, levels[k, Q])
        w_max = max(w_max, levels[k, WIDTH])
        for g in range(ranges[k, 0], ranges[k, 1]):
            at = levels[k, PTR_AT] + g
            m_max = max(m_max, ptr[at + 1] - ptr[at])
    m_mat = np.empty((q_max, q_max))
    half = np.empty((q_max, q_max))
    yb = np.empty((q_max, w_max))
    ys = np.empty((m_max, q_max))
    pos = np.empty(m_max, np.int64)
    dense = pair_at.size == 0
    d0 = levels[1, D_AT] if n_levels > 1 else 0
    b0 = levels[1, B_AT] if n_levels > 1 else 0
    s0 = levels[1, S_AT] if n_levels > 1 else 0
    pair = 0
    for k in range(n_levels):
        q = levels[k, Q]
        w = levels[k, WIDTH]
        lam_at = levels[k, LAM_AT]
        scale = inv_var if k == 0 else 1.0
        dv = d if k == 0 else d_work
        bv = b if k == 0 else b_work
        sv = s if k == 0 else s_work
        for g in range(ranges[k, 0], ranges[k, 1]):
            d_at = levels[k, D_AT] + g * q * q - (d0 if k > 0 else 0)
            b_at = levels[k, B_AT] + g * q * w - (b0 if k > 0 else 0)
            first = ptr[levels[k, PTR_AT] + g]
            m = ptr[levels[k, PTR_AT] + g + 1] - first
            s_at = levels[k, S_AT] + first * q - (s0 if k > 0 else 0)
            # M = Lambda' D Lambda + I
            for i in range(q):
                for j in range(q):
                    t = 0.0
                    for r in range(j, q):
                        t += dv[d_at + i * q + r] * lam[lam_at + r * q + j]
                    half[i, j] = t * scale
            for i in range(q):
                for j in range(i + 1):
                    t = 1.0 if i == j else 0.0
                    for r in range(i, q):
                        t += lam[lam_at + r * q + i] * half[r, j]
                    m_mat[i, j] = t
            total += cholesky_small(m_mat, q)
            # Y = L^-1 Lambda' [B S]
            for i in range(q):
                for c in range(w):
                    t = 0.0
                    for r in range(i, q):
                        t += lam[lam_at + r * q + i] * bv[b_at + r * w + c]
                    t *= scale
                    for r in range(i):
                        t -= m_mat[i, r] * yb[r, c]
                    yb[i, c] = t / m_mat[i, i]
            for e in range(m):
                for i in range(q):
                    t = 0.0
                    for r in range(i, q):
                        t += lam[lam_at + r * q + i] * sv[s_at + e * q + r]
                    t *= scale
                    for r in range(i):
                        t -= m_mat[i, r] * ys[e, r]
                    ys[e, i] = t / m_mat[i, i]
            if keep:
                at = levels[k, D_AT] + g * q * q
                for i in range(q):
                    for j in range(i + 1):
                        low[at + i * q + j] = m_mat[i, j]
                at = levels[k, B_AT] + g * q * w
                for i in range(q):
                    for c in range(w):
                        y_b[at + i * w + c] = yb[i, c]
                at = levels[k, S_AT] + first * q
                for e in range(m):
                    for i in range(q):
                        y_s[at + e * q + i] = ys[e, i]
            # take Y'Y from the ancestors
            h = g
            start = 0
            for e in range(m):
                pos[e] = first + e
            for a in range(k + 1, n_levels):
                h = parent[levels[a - 1, UP_AT] + h]
                for e in range(m):
                    pos[e] = up[levels[a - 1, IDX_AT] + pos[e]]
                qa = levels[a, Q]
                wa = levels[a, WIDTH]
                at = levels[a, D_AT] - d0 + h * qa * qa
                for i in range(qa):
                    for j in range(qa):
                        t = 0.0
                        for r in range(q):
                            t += yb[r, start + i] * yb[r, start + j]
                        d_work[at + i * qa + j] -= t
                at = levels[a, B_AT] - b0 + h * qa * wa
                for i in range(qa):
                    for c in range(wa):
                        t = 0.0
                        for r in range(q):
                            t += yb[r, start + i] * yb[r, start + qa + c]
                        b_work[at + i * wa + c] -= t
                at = levels[a, S_AT] - s0
                for e in range(m):
                    for i in range(qa):
                        t = 0.0
                        for r in range(q):
                            t += yb[r, start + i] * ys[e, r]
                        s_work[at + pos[e] * qa + i] -= t
                start += qa
            # and from the root
            for i in range(p1):
                for j in range(i + 1):
                    t = 0.0
                    for r in range(q):
                        t += yb[r, start + i] * yb[r, start + j]
                    xx[i * p1 + j] -= t
            idx_at = levels[k, IDX_AT] + first
            for e in range(m):
                row = idx[idx_at + e]
                for c in range(p1):
                    t = 0.0
                    for r in range(q):
                        t += ys[e, r] * yb[r, start + c]
                    root_x[row * p1 + c] -= t
                if dense:
                    row_at = row * n_root
                    if q == 1:
                        ye = ys[e, 0]
                        for f in range(e + 1):
                            root[row_at + idx[idx_at + f]] -= ye * ys[f, 0]
                    else:
                        for f in range(e + 1):
                            t = 0.0
                            for r in range(q):
                                t += ys[e, r] * ys[f, r]
                            root[row_at + idx[idx_at + f]] -= t
                else:
                    for f in range(e + 1):
                        t = 0.0
                        for r in range(q):
                            t += ys[e, r] * ys[f, r]
                        root[pair_at[pair]] -= t
                        pair += 1
    return total


SIGNATURE_STRUCTURE = "int64[:,::1], int64[::1], int64[::1], int64[::1], int64[::1]"


@kernel(
    f"float64({SIGNATURE_STRUCTURE}, float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "float64[::1], float64[::1], float64, int64[:,::1], boolean, float64[::1], float64[::1], float64[::1], "
    "int64, int64[::1], float64[::1], float64[::1], float64[::1], int64)"
)
def eliminate(
    levels, parent, ptr, idx, up, d, b, s, d_work, b_work, s_work, lam, inv_var, ranges, keep, y_b, y_s, low,
    n_root, pair_at, root, root_x, xx, p1,
):
    """`eliminate_range` as a kernel of its own, for one theta."""
    return eliminate_range(
        levels, parent, ptr, idx, up, d, b, s, d_work, b_work, s_work, lam, inv_var, ranges, keep, y_b, y_s, low,
        n_root, pair_at, root, root_x, xx, p1,
    )


@helper
def whiten_root(root, root_x, root_blocks, lam, n_root, p1):
    """root := Lambda' root Lambda + I (lower triangle of a dense root, in place), root_x := Lambda' root_x.

    The strict upper triangle is not read; the diagonal blocks are completed from their lower half first.
    """
    for t in range(root_blocks.shape[0]):
        start = root_blocks[t, ROOT_START]
        q = root_blocks[t, ROOT_Q]
        lam_at = root_blocks[t, ROOT_LAM]
        for g in range(root_blocks[t, ROOT_GROUPS]):
            first = start + g * q
            if q == 1:
                value = lam[lam_at]
                for c in range(first + 1):
                    root[first * n_root + c] *= value
                for r in range(first, n_root):
                    root[r * n_root + first] *= value
                for c in range(p1):
                    root_x[first * p1 + c] *= value
                continue
            for i in range(q):
                for j in range(i):
                    root[(first + j) * n_root + first + i] = root[(first + i) * n_root + first + j]
            # rows of this group, all columns up to and including its own block; in order, as Lambda is lower triangular
            for c in range(first + q):
                for i in range(q):
                    value = 0.0
                    for r in range(i, q):
                        value += lam[lam_at + r * q + i] * root[(first + r) * n_root + c]
                    root[(first + i) * n_root + c] = value
            for c in range(p1):
                for i in range(q):
                    value = 0.0
                    for r in range(i, q):
                        value += lam[lam_at + r * q + i] * root_x[(first + r) * p1 + c]
                    root_x[(first + i) * p1 + c] = value
            # columns of this group, its own rows and all later ones
            for r in range(first, n_root):
                for j in range(q):
                    value = 0.0
                    for c in range(j, q):
                        value += root[r * n_root + first + c] * lam[lam_at + c * q + j]
                    root[r * n_root + first + j] = value
    for i in range(n_root):
        root[i * n_root + i] += 1.0


@kernel("void(float64[::1], float64[::1], int64[:,::1], float64[::1], int64, int64)")
def whiten_dense_root(root, root_x, root_blocks, lam, n_root, p1):
    """`whiten_root` as a kernel of its own."""
    whiten_root(root, root_x, root_blocks, lam, n_root, p1)


@helper
def factor_coefficients(xx, scale, proper, p, coefficient_low, mean):
    """The last block: p coefficients beta = scale * b with b ~ N(0, I), or flat where proper is 0.

    xx: (p + 1)^2 cross-products (lower triangle) with everything else eliminated. Fills coefficient_low (p x p, the
    Cholesky factor of the precision of b) and mean (of b). Returns (half log-determinant, |L^-1 c|^2).
    """
    p1 = p + 1
    half_log_det = 0.0
    low = np.empty((max(p, 1), max(p, 1)))
    for i in range(p):
        for j in range(i + 1):
            low[i, j] = scale[i] * scale[j] * xx[i * p1 + j]
        low[i, i] += proper[i]
    half_log_det = cholesky_small(low, p)
    square = 0.0
    for i in range(p):
        t = scale[i] * xx[p * p1 + i]
        for j in range(i):
            t -= low[i, j] * mean[j]
        mean[i] = t / low[i, i]
        square += mean[i] * mean[i]
    for i in range(p - 1, -1, -1):
        t = mean[i]
        for j in range(i + 1, p):
            t -= low[j, i] * mean[j]
        mean[i] = t / low[i, i]
    for i in range(p):
        for j in range(p):
            coefficient_low[i * p + j] = low[i, j] if j <= i else 0.0
    return half_log_det, square


@kernel("UniTuple(float64, 2)(float64[::1], float64[::1], float64[::1], int64, float64[::1], float64[::1])")
def finish_coefficients(xx, scale, proper, p, coefficient_low, mean):
    """`factor_coefficients` as a kernel of its own."""
    return factor_coefficients(xx, scale, proper, p, coefficient_low, mean)


@helper
def factor_small_root(root, root_x, xx, n_root, p1):
    """Cholesky of a whitened dense root in place, W = L^-1 root_x in place, xx -= W'W; half log-determinant."""
    half_log_det = 0.0
    for j in range(n_root):
        s = root[j * n_root + j]
        for k in range(j):
            s -= root[j * n_root + k] * root[j * n_root + k]
        if not s > 0.0:
            return math.nan
        diagonal = math.sqrt(s)
        half_log_det += math.log(diagonal)
        root[j * n_root + j] = diagonal
        for i in range(j + 1, n_root):
            t = root[i * n_root + j]
            for k in range(j):
                t -= root[i * n_root + k] * root[j * n_root + k]
            root[i * n_root + j] = t / diagonal
    for i in range(n_root):
        for c in range(p1):
            t = root_x[i * p1 + c]
            for r in range(i):
                t -= root[i * n_root + r] * root_x[r * p1 + c]
            root_x[i * p1 + c] = t / root[i * n_root + i]
    for i in range(p1):
        for j in range(i + 1):
            t = 0.0
            for r in range(n_root):
                t += root_x[r * p1 + i] * root_x[r * p1 + j]
            xx[i * p1 + j] -= t
    return half_log_det


@helper
def load_work(levels, d, b, s, inv_var, d_work, b_work, s_work, root_at, root_v, root, gx, root_x, gxx, xx):
    """Fill the working arrays with cross-products divided by the variance."""
    if levels.shape[0] > 1:
        at = levels[1, D_AT]
        for i in range(d_work.size):
            d_work[i] = d[at + i] * inv_var
        at = levels[1, B_AT]
        for i in range(b_work.size):
            b_work[i] = b[at + i] * inv_var
        at = levels[1, S_AT]
        for i in range(s_work.size):
            s_work[i] = s[at + i] * inv_var
    for i in range(root.size):
        root[i] = 0.0
    for i in range(root_at.size):
        root[root_at[i]] += root_v[i] * inv_var
    for i in range(gx.size):
        root_x[i] = gx[i] * inv_var
    for i in range(gxx.size):
        xx[i] = gxx[i] * inv_var


@kernel(
    "void(int64[:,::1], float64[::1], float64[::1], float64[::1], float64, float64[::1], float64[::1], float64[::1], "
    "int64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1])"
)
def load(levels, d, b, s, inv_var, d_work, b_work, s_work, root_at, root_v, root, gx, root_x, gxx, xx):
    """`load_work` as a kernel of its own."""
    load_work(levels, d, b, s, inv_var, d_work, b_work, s_work, root_at, root_v, root, gx, root_x, gxx, xx)


@kernel(
    f"void({SIGNATURE_STRUCTURE}, float64[::1], float64[::1], float64[::1], int64[:,::1], int64[::1], float64[::1], "
    "float64[::1], float64[::1], int64[:,::1], float64[:,::1], float64[::1], float64[:,::1], float64[::1], boolean, "
    "float64[:,::1], float64[:,::1], float64[:,::1])"
)
def evaluate_batch(
    levels, parent, ptr, idx, up, d, b, s, ranges, root_at, root_v,
    gx, gxx, root_blocks, lams, inv_vars, scales, proper, profile,
    pieces, means, lows,
):
    """Many theta in one call, for a root narrow enough to be factorised here.

    lams (nodes, .), inv_vars (nodes), scales (nodes, p). Writes pieces (nodes, 2): half
    log-determinant (without that of the coefficients where `profile`) and the quadratic form; means (nodes, p) of
    b; lows (nodes, p p).
    """
    p = scales.shape[1]
    p1 = p + 1
    n_root = gx.size // p1
    n_levels = levels.shape[0]
    d_work = np.empty(d.size - levels[1, D_AT] if n_levels > 1 else 0)
    b_work = np.empty(b.size - levels[1, B_AT] if n_levels > 1 else 0)
    s_work = np.empty(s.size - levels[1, S_AT] if n_levels > 1 else 0)
    root = np.empty(n_root * n_root)
    root_x = np.empty(n_root * p1)
    xx = np.empty(p1 * p1)
    none = np.empty(0)
    no_pairs = np.empty(0, np.int64)
    for node in range(lams.shape[0]):
        lam = lams[node]
        load_work(
            levels, d, b, s, inv_vars[node], d_work, b_work, s_work, root_at, root_v, root, gx, root_x, gxx, xx
        )
        half_log_det = eliminate_range(
            levels, parent, ptr, idx, up, d, b, s, d_work, b_work, s_work, lam, inv_vars[node], ranges, False,
            none, none, none, n_root, no_pairs, root, root_x, xx, p1,
        )
        whiten_root(root, root_x, root_blocks, lam, n_root, p1)
        half_log_det += factor_small_root(root, root_x, xx, n_root, p1)
        last, square = factor_coefficients(xx, scales[node], proper, p, lows[node], means[node])
        pieces[node, 0] = half_log_det if profile else half_log_det + last
        pieces[node, 1] = xx[p * p1 + p] - square
