r"""One pass over the rows of a model whose response is not Gaussian: the leaf's effects integrated group by group.

Given the root r (coefficients and the effects of the other factors) and the hyperparameters, the groups of the leaf are
independent. For one group, with standardised effects v, ``u = Lambda v``,

.. math:: h(v) = \sum_i w_i \log f(y_i \mid \eta_i(r, v)) - \tfrac12 v'v, \qquad
          \log p(y_g \mid r, \theta) = \log \int (2\pi)^{-q/2} e^{h(v)} dv,

by adaptive Gauss-Hermite quadrature (`algebra.quadrature`) around the mode. With pi the weights of the nodes, Fisher's
identity gives the gradient ``E_pi[s(v)]``, s the gradient of the rows' log density, and Louis' identity the Hessian
``E_pi[s'] + Cov_pi(s)`` in r. With one node (Laplace) the effects are normal around the mode: the covariance of s is
then ``B H^{-1} B'``, B its derivative in v, which is the Schur complement of the joint Hessian.

A family is two functions of a row; `leaf_functions` builds the pass around them, one compilation a family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from partialpool.algebra.jit import helper

#: What a pass computes, each with all that stands before it.
VALUE, GRADIENT, HESSIAN, MOMENTS = 0, 1, 2, 3
#: How the search for a group's mode ended.
FOUND, NO_STEP, TOO_LONG = 0, 1, 2
MOST_STEPS = 80


class LeafFunctions(NamedTuple):
    """The pass over a range of groups, the searches for one group's mode, and h; compiled into what calls them."""

    leaf_pass: Callable[..., Any]
    find_mode: Callable[..., Any]
    find_highest: Callable[..., Any]
    log_integrand: Callable[..., Any]


@helper
def cholesky(h, low, q):
    """Factor h (q, q) into low, raising the diagonal until it is positive definite."""
    ridge = 0.0
    while True:
        good = True
        for j in range(q):
            total = h[j, j] + ridge
            for k in range(j):
                total -= low[j, k] * low[j, k]
            if not total > 1e-12:
                good = False
                break
            low[j, j] = math.sqrt(total)
            for i in range(j + 1, q):
                cross = h[i, j]
                for k in range(j):
                    cross -= low[i, k] * low[j, k]
                low[i, j] = cross / low[j, j]
        if good or not ridge < 1e12:
            return good
        ridge = max(2.0 * ridge, 0.5)


@helper
def solve_both(low, g, step, q):
    """step = (L L')^-1 g; returns g' step."""
    decrement = 0.0
    for i in range(q):
        total = g[i]
        for k in range(i):
            total -= low[i, k] * step[k]
        step[i] = total / low[i, i]
        decrement += step[i] * step[i]
    for i in range(q - 1, -1, -1):
        total = step[i]
        for k in range(i + 1, q):
            total -= low[k, i] * step[k]
        step[i] = total / low[i, i]
    return decrement


@helper
def solve_transposed(low, x, out, q):
    """out = L'^-1 x."""
    for i in range(q - 1, -1, -1):
        total = x[i]
        for k in range(i + 1, q):
            total -= low[k, i] * out[k]
        out[i] = total / low[i, i]


@helper
def scaled_columns(first, count, z, z_part, lam, b0, b1):
    """b0, b1 (rows, q): the columns of v in both linear predictors, ``z Lambda``."""
    q = z.shape[1]
    for i in range(count):
        for j in range(q):
            b0[i, j] = 0.0
            b1[i, j] = 0.0
        for k in range(q):
            value = z[first + i, k]
            if z_part[k] == 0:
                for j in range(k + 1):
                    b0[i, j] += value * lam[k, j]
            else:
                for j in range(k + 1):
                    b1[i, j] += value * lam[k, j]


@helper
def root_predictors(first, count, x, at, x_part, root, offset, constant, base0, base1):
    """The linear predictors of a group's rows without its own effects."""
    slots = x.shape[1]
    for i in range(count):
        e0 = offset[first + i]
        e1 = constant
        for s in range(slots):
            value = x[first + i, s] * root[at[first + i, s]]
            if x_part[s] == 0:
                e0 += value
            else:
                e1 += value
        base0[i] = e0
        base1[i] = e1


def leaf_functions(log_density: Any, derivatives: Any, vector: tuple[Any, Any] | None = None) -> LeafFunctions:
    """The pass over the leaf's groups for one family.

    Parameters
    ----------
    log_density, derivatives : helper
        Of one row; see `spec.families.base`.
    vector : two helpers, optional
        The same in a form that loops over nodes turn into vector instructions; see `spec.families.vector`.
    """
    node_value, node_derivatives = vector or (log_density, derivatives)

    @helper
    def log_integrand(first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v):
        """h(v) of one group."""
        total = 0.0
        for i in range(count):
            e0 = base0[i]
            for j in range(q):
                e0 += b0[i, j] * v[j]
            e1 = base1[i]
            if second:
                for j in range(q):
                    e1 += b1[i, j] * v[j]
            total += weight[first + i] * log_density(e0, e1, e2, y[first + i], trials[first + i])
        for j in range(q):
            total -= 0.5 * v[j] * v[j]
        return total

    @helper(inline=True)
    def add_values(n_nodes, w, eta0, constant, e2, own_y, own_trials, logs):
        """Add one row's log density at every node: a loop of its own, so that the compiler sees no more than that."""
        for m in range(n_nodes):
            logs[m] += w * node_value(eta0[m], constant, e2, own_y, own_trials)

    @helper
    def find_mode(
        first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v, hessian, low, gradient, step, old,
        tolerance,
    ):  # fmt: skip
        """Newton's method from v, which ends at the mode; low is the factor of the negative Hessian there.

        Stops where the predicted gain is below `tolerance`; a coarse one (above 1e-6) takes the last step without
        looking back, which is enough to place nodes. Steps that lower h are halved. Returns h and a status.
        """
        best = -math.inf
        halvings = 0
        for j in range(q):
            old[j] = v[j]
        for _ in range(MOST_STEPS):
            total = 0.0
            for j in range(q):
                gradient[j] = -v[j]
                total -= 0.5 * v[j] * v[j]
                for k in range(j + 1):
                    hessian[j, k] = 1.0 if j == k else 0.0
            for i in range(count):
                e0 = base0[i]
                for j in range(q):
                    e0 += b0[i, j] * v[j]
                e1 = base1[i]
                if second:
                    for j in range(q):
                        e1 += b1[i, j] * v[j]
                value, g0, g1, _g2, h00, h01, h11 = derivatives(e0, e1, e2, y[first + i], trials[first + i])
                w = weight[first + i]
                total += w * value
                if not second:
                    for j in range(q):
                        gradient[j] += w * g0 * b0[i, j]
                        for k in range(j + 1):
                            hessian[j, k] -= w * h00 * b0[i, j] * b0[i, k]
                else:
                    for j in range(q):
                        gradient[j] += w * (g0 * b0[i, j] + g1 * b1[i, j])
                        for k in range(j + 1):
                            hessian[j, k] -= w * (
                                h00 * b0[i, j] * b0[i, k]
                                + h01 * (b0[i, j] * b1[i, k] + b1[i, j] * b0[i, k])
                                + h11 * b1[i, j] * b1[i, k]
                            )
            if not total >= best - 1e-10 * (1.0 + abs(best)) or not math.isfinite(total):
                halvings += 1
                if halvings > 50:
                    for j in range(q):
                        v[j] = old[j]
                    return best, NO_STEP
                for j in range(q):
                    v[j] = 0.5 * (v[j] + old[j])
                continue
            best = total
            for j in range(q):
                old[j] = v[j]
            if not cholesky(hessian, low, q):
                return best, NO_STEP
            decrement = solve_both(low, gradient, step, q)
            if decrement < 2.0 * tolerance:
                if tolerance > 1e-6:
                    for j in range(q):
                        v[j] += step[j]
                return best, FOUND
            for j in range(q):
                v[j] += step[j]
        return best, TOO_LONG

    @helper
    def find_highest(
        first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v, hessian, low, gradient, step, old,
        tolerance, starts, best_v, best_low,
    ):  # fmt: skip
        """The highest of the modes found from v and from each of `starts` (m, q); v and low are left there."""
        peak, ended = find_mode(
            first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v, hessian, low, gradient, step, old,
            tolerance,
        )  # fmt: skip
        for other in range(starts.shape[0]):
            for j in range(q):
                best_v[j] = v[j]
                v[j] = starts[other, j]
                for k in range(j + 1):
                    best_low[j, k] = low[j, k]
            again, ended_again = find_mode(
                first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v, hessian, low, gradient, step,
                old, tolerance,
            )  # fmt: skip
            if again > peak + 1e-9 * abs(peak):
                peak, ended = again, ended_again
            else:
                for j in range(q):
                    v[j] = best_v[j]
                    for k in range(j + 1):
                        low[j, k] = best_low[j, k]
        return ended

    @helper(inline=True)
    def leaf_pass(
        begin, end, want, root, lam, constant, e2, y, trials, weight, offset, x, at, x_part, z, z_part, pointer,
        touched_pointer, local, touched, nodes, shifted, start, starts, tolerance,
        in_root, in_constant, moments_zz, hess, group_value, mode, mean, covariance, status,
    ):  # fmt: skip
        """log p(y | root, Lambda) of the groups begin..end, and what `want` asks for.

        in_root (R,), in_constant (2,), moments_zz (q, q) = sum of E[v v'], hess (R, R) lower triangle: added to.
        group_value (G,), mode, mean (G, q), covariance (G, q, q): written where they have rows (they may be empty).
        `starts` (m, q): other starting points of the search, for families that are not log-concave.
        """
        q = z.shape[1]
        slots = x.shape[1]
        n_nodes = nodes.shape[0]
        most, widest = 1, 1
        for g in range(begin, end):
            most = max(most, pointer[g + 1] - pointer[g])
            if want == HESSIAN:
                widest = max(widest, touched_pointer[g + 1] - touched_pointer[g])
        second = False
        for k in range(q):
            if z_part[k] != 0:
                second = True
        base0, base1 = np.empty(most), np.empty(most)
        b0, b1 = np.empty((most, q)), np.empty((most, q))
        v, best_v, gradient, step, old = np.empty(q), np.empty(q), np.empty(q), np.empty(q), np.empty(q)
        hessian, low, best_low = np.empty((q, q)), np.empty((q, q)), np.empty((q, q))
        logs, points = np.empty(n_nodes), np.empty((q, n_nodes))
        eta0, eta1 = np.empty(n_nodes), np.empty(n_nodes)
        deep = most if want in (GRADIENT, HESSIAN) else 1
        s0, s1, s2 = np.empty((deep, n_nodes)), np.empty((deep, n_nodes)), np.zeros(n_nodes)
        curved = most if want == HESSIAN else 1
        c00, c01, c11 = np.empty((curved, n_nodes)), np.empty((curved, n_nodes)), np.empty((curved, n_nodes))
        vectors = max(n_nodes, q) if want == HESSIAN else 1
        own = np.empty((widest, widest))
        spread = np.empty((vectors, widest))
        average = np.empty(widest)
        first_moment, second_moment = np.empty(q), np.empty((q, q))
        result = 0.0
        for g in range(begin, end):
            first = pointer[g]
            count = pointer[g + 1] - first
            root_predictors(first, count, x, at, x_part, root, offset, constant, base0, base1)
            scaled_columns(first, count, z, z_part, lam, b0, b1)
            if q > 0:
                for j in range(q):
                    v[j] = start[g, j]
                ended = find_highest(
                    first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v, hessian, low, gradient,
                    step, old, tolerance, starts, best_v, best_low,
                )  # fmt: skip
                if status.size > 0:
                    status[g] = ended
                if mode.shape[0] > 0:
                    for j in range(q):
                        mode[g, j] = v[j]
            # the nodes: the loops over them are the inner ones, which the compiler turns into vector instructions
            for m in range(n_nodes):
                solve_transposed(low, nodes[m], step, q)
                square = 0.0
                for j in range(q):
                    points[j, m] = v[j] + step[j]
                    square += points[j, m] * points[j, m]
                logs[m] = shifted[m] - 0.5 * square
                s2[m] = 0.0
                eta1[m] = 0.0
            for i in range(count):
                w = weight[first + i]
                own_y, own_trials = y[first + i], trials[first + i]
                plain0, plain1 = base0[i], base1[i]
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
                if want in (VALUE, MOMENTS):
                    if second:
                        for m in range(n_nodes):
                            logs[m] += w * node_value(eta0[m], eta1[m], e2, own_y, own_trials)
                    else:
                        add_values(n_nodes, w, eta0, plain1, e2, own_y, own_trials, logs)
                elif want == GRADIENT and not second:
                    for m in range(n_nodes):
                        value, g0, g1, g2, h00, h01, h11 = node_derivatives(eta0[m], plain1, e2, own_y, own_trials)
                        logs[m] += w * value
                        s0[i, m] = w * g0
                        s1[i, m] = w * g1
                        s2[m] += w * g2
                else:
                    for m in range(n_nodes):
                        e1 = eta1[m] if second else plain1
                        value, g0, g1, g2, h00, h01, h11 = node_derivatives(eta0[m], e1, e2, own_y, own_trials)
                        logs[m] += w * value
                        s0[i, m] = w * g0
                        s1[i, m] = w * g1
                        s2[m] += w * g2
                        if want == HESSIAN:
                            c00[i, m] = w * h00
                            c01[i, m] = w * h01
                            c11[i, m] = w * h11
            largest = -math.inf
            for m in range(n_nodes):
                if logs[m] > largest:
                    largest = logs[m]
            if not math.isfinite(largest):
                result += -math.inf
                if group_value.size > 0:
                    group_value[g] = -math.inf
                continue
            total = 0.0
            for m in range(n_nodes):
                logs[m] = math.exp(logs[m] - largest)
                total += logs[m]
            own_value = largest + math.log(total)
            for m in range(n_nodes):
                logs[m] /= total  # from here on: the weights pi
            for j in range(q):
                own_value -= math.log(low[j, j])
            result += own_value
            if group_value.size > 0:
                group_value[g] = own_value
            if want == VALUE:
                continue
            # moments of v
            for j in range(q):
                total = 0.0
                for m in range(n_nodes):
                    total += logs[m] * points[j, m]
                first_moment[j] = total
            for j in range(q):
                for k in range(j + 1):
                    total = 0.0
                    for m in range(n_nodes):
                        total += logs[m] * (points[j, m] - first_moment[j]) * (points[k, m] - first_moment[k])
                    second_moment[j, k] = total
            if n_nodes == 1:  # Laplace: the inverse of the Hessian
                for k in range(q):
                    for j in range(q):
                        gradient[j] = 1.0 if j == k else 0.0
                    solve_both(low, gradient, step, q)
                    for j in range(k, q):
                        second_moment[j, k] = step[j]
            if want == MOMENTS:
                for j in range(q):
                    mean[g, j] = first_moment[j]
                    for k in range(j + 1):
                        covariance[g, j, k] = second_moment[j, k]
                        covariance[g, k, j] = second_moment[j, k]
                continue
            for j in range(q):
                for k in range(j + 1):
                    both = second_moment[j, k] + first_moment[j] * first_moment[k]
                    moments_zz[j, k] += both
                    if k != j:
                        moments_zz[k, j] += both
            # the gradient
            for i in range(count):
                t0 = 0.0
                t1 = 0.0
                for m in range(n_nodes):
                    t0 += logs[m] * s0[i, m]
                    t1 += logs[m] * s1[i, m]
                in_constant[0] += t1
                for s in range(slots):
                    pull = t0 if x_part[s] == 0 else t1
                    in_root[at[first + i, s]] += pull * x[first + i, s]
            for m in range(n_nodes):
                in_constant[1] += logs[m] * s2[m]
            if want != HESSIAN:
                continue
            # the Hessian, in the columns that this group touches
            width = touched_pointer[g + 1] - touched_pointer[g]
            for a in range(width):
                average[a] = 0.0
                for b in range(a + 1):
                    own[a, b] = 0.0
            for i in range(count):
                d00 = 0.0
                d01 = 0.0
                d11 = 0.0
                for m in range(n_nodes):
                    d00 += logs[m] * c00[i, m]
                    d01 += logs[m] * c01[i, m]
                    d11 += logs[m] * c11[i, m]
                for s in range(slots):
                    here = local[first + i, s]
                    for r in range(slots):
                        there = local[first + i, r]
                        if there > here:
                            continue
                        mixed = x_part[s] + x_part[r]
                        curve = d00 if mixed == 0 else (d01 if mixed == 1 else d11)
                        own[here, there] += curve * x[first + i, s] * x[first + i, r]
            rank = 0
            if n_nodes == 1:
                for j in range(q):
                    for a in range(width):
                        spread[j, a] = 0.0
                    for i in range(count):
                        along0 = c00[i, 0] * b0[i, j] + c01[i, 0] * b1[i, j]
                        along1 = c01[i, 0] * b0[i, j] + c11[i, 0] * b1[i, j]
                        for s in range(slots):
                            pull = along0 if x_part[s] == 0 else along1
                            spread[j, local[first + i, s]] += pull * x[first + i, s]
                for a in range(width):
                    for j in range(q):
                        total = spread[j, a]
                        for k in range(j):
                            total -= low[j, k] * spread[k, a]
                        spread[j, a] = total / low[j, j]
                rank = q
            else:
                for m in range(n_nodes):
                    if logs[m] < 1e-14:
                        continue
                    for a in range(width):
                        spread[rank, a] = 0.0
                    for i in range(count):
                        for s in range(slots):
                            pull = s0[i, m] if x_part[s] == 0 else s1[i, m]
                            spread[rank, local[first + i, s]] += pull * x[first + i, s]
                    logs[rank] = logs[m]
                    rank += 1
                for a in range(width):
                    for m in range(rank):
                        average[a] += logs[m] * spread[m, a]
                for m in range(rank):
                    root_weight = math.sqrt(logs[m])
                    for a in range(width):
                        spread[m, a] = root_weight * (spread[m, a] - average[a])
            for m in range(rank):
                for a in range(width):
                    scale = spread[m, a]
                    if scale != 0.0:
                        for b in range(a + 1):
                            own[a, b] += scale * spread[m, b]
            base = touched_pointer[g]
            for a in range(width):
                row = touched[base + a]
                for b in range(a + 1):
                    hess[row, touched[base + b]] += own[a, b]
        return result

    return LeafFunctions(leaf_pass, find_mode, find_highest, log_integrand)
