"""Kernels that draw group effects given the hyperparameters and the coefficients, from the root down.

Given all later coefficients c a group's effects are ``z_g ~ N(L^{-T} (Y_y - Y c), (L L')^{-1})`` (see `descent`), so
that one draw solves ``L' z = Y_y - Y c + e`` with e standard normal, level by level.
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
    factor_small_root,
    load_work,
    whiten_root,
)
from partialpool.algebra.descent import solve_low_transposed
from partialpool.algebra.jit import helper, kernel


@helper
def colour_root(root_blocks, lam, root_u, u):
    """root_u := Lambda root_u by blocks, and its copy in the vector of all effects."""
    for t in range(root_blocks.shape[0]):
        start = root_blocks[t, ROOT_START]
        q = root_blocks[t, ROOT_Q]
        lam_at = root_blocks[t, ROOT_LAM]
        for g in range(root_blocks[t, ROOT_GROUPS]):
            first = start + g * q
            for i in range(q - 1, -1, -1):
                value = 0.0
                for r in range(i + 1):
                    value += lam[lam_at + i * q + r] * root_u[first + r]
                root_u[first + i] = value
            for i in range(q):
                u[root_blocks[t, ROOT_U] + g * q + i] = root_u[first + i]


@helper
def draw_levels(levels, parent, ptr, idx, up, lam, y_b, y_s, low, root_u, beta, p, normals, u):
    """One draw of all chain levels given the root's effects and the coefficients (raw scale), from the top down."""
    n_levels = levels.shape[0]
    q_max = 1
    for k in range(n_levels):
        q_max = max(q_max, levels[k, Q])
    z = np.empty(q_max)
    for k in range(n_levels - 1, -1, -1):
        q = levels[k, Q]
        w = levels[k, WIDTH]
        lam_at = levels[k, LAM_AT]
        for g in range(levels[k, GROUPS]):
            low_at = levels[k, D_AT] + g * q * q
            b_at = levels[k, B_AT] + g * q * w
            first = ptr[levels[k, PTR_AT] + g]
            m = ptr[levels[k, PTR_AT] + g + 1] - first
            s_at = levels[k, S_AT] + first * q
            u_at = levels[k, U_AT] + g * q
            for i in range(q):
                row = b_at + i * w
                t = y_b[row + w - 1] + normals[u_at + i]
                h = g
                start = 0
                for a in range(k + 1, n_levels):
                    h = parent[levels[a - 1, UP_AT] + h]
                    at = levels[a, U_AT] + h * levels[a, Q]
                    for c in range(levels[a, Q]):
                        t -= y_b[row + start + c] * u[at + c]
                    start += levels[a, Q]
                for c in range(p):
                    t -= y_b[row + start + c] * beta[c]
                for e in range(m):
                    t -= y_s[s_at + e * q + i] * root_u[idx[levels[k, IDX_AT] + first + e]]
                z[i] = t
            solve_low_transposed(low, low_at, q, z)
            for i in range(q):
                t = 0.0
                for r in range(i + 1):
                    t += lam[lam_at + i * q + r] * z[r]
                u[u_at + i] = t


@kernel(
    f"void({SIGNATURE_STRUCTURE}, float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "int64, float64[::1], float64[::1])"
)
def draw_chain(levels, parent, ptr, idx, up, lam, y_b, y_s, low, root_u, beta, p, normals, u):
    """`draw_levels` as a kernel of its own."""
    draw_levels(levels, parent, ptr, idx, up, lam, y_b, y_s, low, root_u, beta, p, normals, u)


@kernel(
    f"void({SIGNATURE_STRUCTURE}, float64[::1], float64[::1], float64[::1], int64[:,::1], int64[::1], float64[::1], "
    "float64[::1], float64[::1], int64[:,::1], float64[:,::1], float64[::1], float64[:,::1], float64[:,::1], "
    "float64[:,::1])"
)
def draw_batch(
    levels, parent, ptr, idx, up, d, b, s, ranges, root_at, root_v, gx, gxx, root_blocks,
    lams, inv_vars, betas, normals, u,
):
    """Draws of all group effects given theta and the coefficients (raw scale), a row of `u` a draw."""
    p = betas.shape[1]
    p1 = p + 1
    n_root = gx.size // p1
    n_levels = levels.shape[0]
    d_work = np.empty(d.size - levels[1, D_AT] if n_levels > 1 else 0)
    b_work = np.empty(b.size - levels[1, B_AT] if n_levels > 1 else 0)
    s_work = np.empty(s.size - levels[1, S_AT] if n_levels > 1 else 0)
    low, y_b, y_s = np.empty(d.size), np.empty(b.size), np.empty(s.size)
    root = np.empty(n_root * n_root)
    root_x = np.empty(n_root * p1)
    root_u = np.empty(n_root)
    xx = np.empty(p1 * p1)
    no_pairs = np.empty(0, np.int64)
    for node in range(lams.shape[0]):
        lam = lams[node]
        beta = betas[node]
        load_work(
            levels, d, b, s, inv_vars[node], d_work, b_work, s_work, root_at, root_v, root, gx, root_x, gxx, xx
        )
        eliminate_range(
            levels, parent, ptr, idx, up, d, b, s, d_work, b_work, s_work, lam, inv_vars[node], ranges, True,
            y_b, y_s, low, n_root, no_pairs, root, root_x, xx, p1,
        )
        whiten_root(root, root_x, root_blocks, lam, n_root, p1)
        factor_small_root(root, root_x, xx, n_root, p1)
        for t in range(root_blocks.shape[0]):  # first the standard normals, in root order
            start = root_blocks[t, ROOT_START]
            for i in range(root_blocks[t, ROOT_GROUPS] * root_blocks[t, ROOT_Q]):
                root_u[start + i] = normals[node, root_blocks[t, ROOT_U] + i]
        for i in range(n_root - 1, -1, -1):
            t = root_x[i * p1 + p] + root_u[i]
            for c in range(p):
                t -= root_x[i * p1 + c] * beta[c]
            for r in range(i + 1, n_root):
                t -= root[r * n_root + i] * root_u[r]
            root_u[i] = t / root[i * n_root + i]
        colour_root(root_blocks, lam, root_u, u[node])
        draw_levels(levels, parent, ptr, idx, up, lam, y_b, y_s, low, root_u, beta, p, normals[node], u[node])


@kernel("void(int64[:,::1], float64[::1], float64[::1], float64[::1])")
def colour_root_effects(root_blocks, lam, root_u, u):
    """`colour_root` as a kernel of its own."""
    colour_root(root_blocks, lam, root_u, u)
