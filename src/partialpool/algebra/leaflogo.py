r"""The density of a whole group of a factor of the root given the other rows, its own effects integrated out.

A unit (a group of a factor f of the root) leaves with all its rows. The effects that have no other rows leave with it:
those of f for this group, and those of factors of the root whose groups lie inside it. They are ``e = Lambda t``, t
standard normal. Given the hyperparameters and the rest of the root,

.. math:: p(y_U \mid y_{-U}) = \int \phi(t) \prod_g \frac{p(y_g \mid t)}{p(y_{g \setminus U})} dt,

over the groups g of the leaf that have rows in the unit: those which have none cancel. Where g lies inside the unit,
the denominator is 1 and the numerator is integrated by a rule made anew at every t (`algebra.leaf`). Where it does not
(crossed factors), the nodes v_k of the whole group at the place of the posterior's node serve all t,

.. math:: p(y_g \mid t) \approx \sum_k \omega_k \exp\{h_{g \setminus U}(v_k) + \sum_{i \in U \cap g} w_i
          \log f_i(v_k, t) + x_k' x_k / 2\},

as long as the rows that stay leave the effects a mean and a variance for which the rule is good (`algebra.leafloo`);
else the rule is made anew at every t there too. The outer integral is one of the same kind: Newton's method in t (the
gradient by Fisher's identity, the Hessian by Louis', as in `algebra.leaf`), then nodes around the mode.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from partialpool.algebra.jit import helper, kernel
from partialpool.algebra.leaf import LeafFunctions, cholesky, leaf_functions, solve_both, solve_transposed
from partialpool.algebra.leafloo import (
    log_determinant,
    log_sum,
    place_nodes,
    row_values_of,
    within_limits,
)

#: Steps of Newton's method over a unit's effects, and the predicted gain at which it stops: only to place nodes.
MOST_STEPS, ENOUGH = 40, 3e-3
#: How the rows of one group of the leaf are integrated: by nodes that serve every t, or by a rule made anew.
SHARED, ANEW = 0, 1


@helper
def row_base(row, x, at, x_part, inside, root, offset, constant):
    """The linear predictors of a row without the leaf's effects and, where `inside` marks them, without the unit's."""
    e0, e1 = offset[row], constant
    for s in range(x.shape[1]):
        if inside[s] != 0:
            continue
        value = x[row, s] * root[at[row, s]]
        if x_part[s] == 0:
            e0 += value
        else:
            e1 += value
    return e0, e1


@helper
def row_columns(row, z, z_part, lam, slope0, slope1):
    """The row's columns of the leaf's standardised effects in both linear predictors."""
    q = z.shape[1]
    for j in range(q):
        slope0[j] = 0.0
        slope1[j] = 0.0
    for k in range(q):
        value = z[row, k]
        for j in range(k + 1):
            if z_part[k] == 0:
                slope0[j] += value * lam[k, j]
            else:
                slope1[j] += value * lam[k, j]


@helper
def moments_good(logs, nodes, q, far, total):
    """Whether the rule may be used for the density whose log values at its nodes are `logs` (log sum: `total`)."""
    if not math.isfinite(total):
        return False
    for j in range(q):
        first, second = 0.0, 0.0
        for m in range(nodes.shape[0]):
            p = math.exp(logs[m] - total)
            first += p * nodes[m, j]
            second += p * nodes[m, j] * nodes[m, j]
        if not within_limits(far, first, second - first * first):
            return False
    return True


@helper
def unit_columns(rows, count, x, x_part, inside, local, factor, c0, c1):
    """c0, c1 (count, D): the rows' columns of the unit's standardised effects t, e = factor t."""
    size = factor.shape[0]
    for i in range(count):
        for j in range(size):
            c0[i, j] = 0.0
            c1[i, j] = 0.0
        for s in range(x.shape[1]):
            if inside[s] == 0:
                continue
            value, here = x[rows[i], s], local[rows[i], s]
            for j in range(here + 1):
                if x_part[s] == 0:
                    c0[i, j] += value * factor[here, j]
                else:
                    c1[i, j] += value * factor[here, j]


@helper
def fill_factor(lams, widths, begin, end, block_kind, block_at, factor):
    """factor (D, D): block diagonal, of the Lambda (kind, w, w) of each of the unit's groups."""
    size = factor.shape[0]
    for i in range(size):
        for j in range(size):
            factor[i, j] = 0.0
    for b in range(begin, end):
        kind, start = block_kind[b], block_at[b]
        for i in range(widths[kind]):
            for j in range(i + 1):
                factor[start + i, start + j] = lams[kind, i, j]


@helper
def standardised(root, places, factor, t):
    """t (D,) with e = factor t, held within 6 sds: a place for Newton's method to begin."""
    for i in range(t.size):
        total = root[places[i]]
        for j in range(i):
            total -= factor[i, j] * t[j]
        t[i] = 0.0
        if factor[i, i] > 0.0:
            t[i] = min(max(total / factor[i, i], -6.0), 6.0)


_ROWS = (
    "float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1], int32[:,::1], int64[::1],"
    " float64[:,::1], int64[::1], int64[::1]"
)
_RULE = "float64[:,::1], float64[::1], float64[:,::1], float64[:,::1], float64, float64[::1]"
_NODES = "float64[:,::1], float64[:,:,::1], float64[:,::1]"
_UNITS = (
    "int64[::1], int64[::1], int64[:,::1], int64[::1], int64[::1], int64[::1], int64[:,::1], int64[::1],"
    " float64[:,:,:,::1], int64[::1]"
)


@cache
def unit_kernel(name: str, log_density: Any, derivatives: Any, vector: tuple[Any, Any] | None = None) -> Any:
    """The kernel of one family that leaves out whole groups of a factor of the root.

    Parameters
    ----------
    name : of the family and its link, for the files of the cache.
    log_density, derivatives : helpers of one row; see `spec.families.base`. vector : see `leaf_functions`.
    """
    functions: LeafFunctions = leaf_functions(log_density, derivatives, vector)
    find_highest = functions.find_highest
    row_values = row_values_of(vector[0] if vector else log_density)

    @helper
    def search(
        first, count, y, trials, weight, base0, base1, e2, b0, b1, second, q, v, low, starts, tolerance, s
    ):  # fmt: skip
        """The mode of the leaf's effects given rows first .. first + count of the assembled ones; s: room to work."""
        find_highest(
            0, count, y[first:], trials[first:], weight[first:], base0[first:], base1[first:], e2, b0[first:],
            b1[first:], second, q, v, s[0:q], low, s[q], s[q + 1], s[q + 2], tolerance, starts, s[q + 3],
            s[q + 4 : 2 * q + 4],
        )  # fmt: skip

    @helper(inline=True)
    def add_rows(
        begin, end, y, trials, weight, base0, base1, e2, b0, b1, second, q, points, eta0, eta1, own, logs
    ):  # fmt: skip
        """logs (M,) += the weighted log densities of the assembled rows begin .. end."""
        for i in range(begin, end):
            row_values(
                i, y, trials, weight, base0, base1, e2, b0, b1, second, q, points, eta0, eta1, own, 0
            )  # fmt: skip
            for m in range(logs.size):
                logs[m] += own[0, m]

    @helper
    def add_slopes(
        begin, end, total, y, trials, weight, base0, base1, e2, b0, b1, q, points, logs, c0, c1, gradient, hessian,
        score, average,
    ):  # fmt: skip
        """Add the gradient in t and the negative Hessian of one group's log integral; logs and their log sum."""
        size = gradient.size
        for j in range(size):
            average[j] = 0.0
        for m in range(logs.size):
            share = math.exp(logs[m] - total)
            if share < 1e-14:
                continue
            for j in range(size):
                score[j] = 0.0
            for i in range(begin, end):
                e0, e1 = base0[i], base1[i]
                for j in range(q):
                    e0 += b0[i, j] * points[j, m]
                    e1 += b1[i, j] * points[j, m]
                _, g0, g1, _, h00, h01, h11 = derivatives(e0, e1, e2, y[i], trials[i])
                w = weight[i]
                for j in range(size):
                    if c0[i, j] == 0.0 and c1[i, j] == 0.0:
                        continue
                    score[j] += w * (g0 * c0[i, j] + g1 * c1[i, j])
                    for k in range(j + 1):
                        hessian[j, k] -= (share * w) * (
                            h00 * c0[i, j] * c0[i, k]
                            + h01 * (c0[i, j] * c1[i, k] + c1[i, j] * c0[i, k])
                            + h11 * c1[i, j] * c1[i, k]
                        )
            for j in range(size):
                gradient[j] += share * score[j]
                average[j] += share * score[j]
                for k in range(j + 1):
                    hessian[j, k] -= share * score[j] * score[k]
        for j in range(size):
            for k in range(j + 1):
                hessian[j, k] += average[j] * average[k]

    @kernel(
        f"void(int64[::1], {_UNITS}, {_NODES}, {_ROWS}, {_RULE}, float64[:,::1], float64[::1], float64[:,::1],"
        " int64[::1])",
        variant=name,
    )
    def leave_units_out(
        units, unit_pointer, unit_rows, places, block_pointer, block_kind, block_at, local, inside, lams, widths,
        root, lam, constants, y, trials, weight, offset, x, at, x_part, z, z_part, pointer,
        nodes, shifted, start, starts, tolerance, far, outer, outer_shifted, out, counts,
    ):  # fmt: skip
        """out[place, k] = log p(y_unit | the other rows, node k), without the family's constants.

        units (W,): those wanted, all with D effects. Of every unit: rows unit_rows[unit_pointer[u] : unit_pointer[u +
        1]] in the leaf's order, growing; places (units, D) of its effects in the root; blocks (`fill_factor`).
        local (n, S): by row and column of the root, which of its unit's effects; inside (S,): whether it is one.
        lams (K, kinds, w, w), widths (kinds,). outer (T, D), outer_shifted (T,): the rule over the unit's effects.
        counts (2,): groups of the leaf by shared nodes, and by a rule made anew.
        """
        q, n_nodes, size, n_outer = z.shape[1], nodes.shape[0], places.shape[1], outer.shape[0]
        groups = pointer.size - 1
        most_rows, most = 1, 1
        for place in range(units.size):
            u = units[place]
            most_rows = max(most_rows, unit_pointer[u + 1] - unit_pointer[u])
        needed = np.zeros(groups, dtype=np.int64)  # 1: has rows in a wanted unit and rows elsewhere
        group_of = np.empty(y.size, dtype=np.int64)
        for g in range(groups):
            for i in range(pointer[g], pointer[g + 1]):
                group_of[i] = g
        most_runs = 1
        for place in range(units.size):
            u = units[place]
            a, runs = unit_pointer[u], 0
            while a < unit_pointer[u + 1]:
                g = group_of[unit_rows[a]]
                b = a
                while b < unit_pointer[u + 1] and group_of[unit_rows[b]] == g:
                    b += 1
                most = max(most, pointer[g + 1] - pointer[g])
                if b - a < pointer[g + 1] - pointer[g]:
                    needed[g] = 1
                runs += 1
                a = b
            most_runs = max(most_runs, runs)
        n_needed = 0
        for g in range(groups):
            if needed[g] == 1:
                needed[g] = n_needed
                n_needed += 1
            else:
                needed[g] = -1
        second = False
        for k in range(q):
            if z_part[k] != 0:
                second = True
        # the whole groups at the posterior's node
        kept_points = np.empty((n_needed, q, n_nodes))
        kept_logs = np.empty((n_needed, n_nodes))
        kept_half = np.empty(n_needed)
        # one unit: its rows' predictors, the runs of its rows that belong to one group of the leaf
        all_rows = most_rows + most_runs * most if n_needed > 0 else most_rows
        own_y, own_trials, own_weight = np.empty(all_rows), np.empty(all_rows), np.empty(all_rows)
        base0, base1 = np.empty(all_rows), np.empty(all_rows)
        moved0, moved1 = np.empty(all_rows), np.empty(all_rows)
        b0, b1 = np.empty((all_rows, q)), np.empty((all_rows, q))
        c0, c1 = np.zeros((all_rows, size)), np.zeros((all_rows, size))
        row_of = np.empty(all_rows, dtype=np.int64)
        run_from, run_own, run_to = (
            np.empty(most_runs, np.int64),
            np.empty(most_runs, np.int64),
            np.empty(most_runs, np.int64),
        )
        run_group, run_kind = np.empty(most_runs, np.int64), np.empty(most_runs, np.int64)
        run_rest, run_v = np.empty(most_runs), np.empty((most_runs, q))
        run_logs = np.empty((most_runs if n_needed > 0 else 1, n_nodes))
        none_inside = np.zeros(x.shape[1], dtype=np.int64)
        # room to work
        v, low, work = np.empty(q), np.empty((q, q)), np.empty((2 * q + 4, max(q, 1)))
        points, logs = np.empty((q, n_nodes)), np.empty(n_nodes)
        eta0, eta1, own = np.empty(n_nodes), np.empty(n_nodes), np.empty((1, n_nodes))
        work0 = np.empty(n_nodes)
        factor, t, best_t, step = np.empty((size, size)), np.empty(size), np.empty(size), np.empty(size)
        gradient, hessian, outer_low = np.empty(size), np.empty((size, size)), np.empty((size, size))
        score, average, values = np.empty(size), np.empty(size), np.empty(n_outer)
        for k in range(root.shape[0]):
            e2 = constants[k, 1]
            for g in range(groups):
                kept = needed[g]
                if kept < 0:
                    continue
                first, count = pointer[g], pointer[g + 1] - pointer[g]
                for i in range(count):
                    row = first + i
                    own_y[i], own_trials[i], own_weight[i] = y[row], trials[row], weight[row]
                    base0[i], base1[i] = row_base(row, x, at, x_part, none_inside, root[k], offset, constants[k, 0])
                    row_columns(row, z, z_part, lam[k], b0[i], b1[i])
                for j in range(q):
                    v[j] = start[g, j]
                search(
                    0, count, own_y, own_trials, own_weight, base0, base1, e2, b0, b1, second, q, v, low, starts,
                    tolerance, work,
                )  # fmt: skip
                place_nodes(nodes, shifted, v, low, q, step, kept_points[kept], kept_logs[kept])
                kept_half[kept] = log_determinant(low, q)
                add_rows(
                    0, count, own_y, own_trials, own_weight, base0, base1, e2, b0, b1, second, q, kept_points[kept],
                    eta0, eta1, own, kept_logs[kept],
                )  # fmt: skip
            for place in range(units.size):
                u = units[place]
                fill_factor(lams[k], widths, block_pointer[u], block_pointer[u + 1], block_kind, block_at, factor)
                standardised(root[k], places[u], factor, t)
                # the rows of each run: those of the group that stay, then those of the unit
                runs, filled, a = 0, 0, unit_pointer[u]
                while a < unit_pointer[u + 1]:
                    g = group_of[unit_rows[a]]
                    b = a
                    while b < unit_pointer[u + 1] and group_of[unit_rows[b]] == g:
                        b += 1
                    run_from[runs], run_group[runs] = filled, g
                    if b - a < pointer[g + 1] - pointer[g]:
                        here = a
                        for row in range(pointer[g], pointer[g + 1]):
                            if here < b and unit_rows[here] == row:
                                here += 1
                                continue
                            row_of[filled] = row
                            base0[filled], base1[filled] = row_base(
                                row, x, at, x_part, none_inside, root[k], offset, constants[k, 0]
                            )
                            filled += 1
                    run_own[runs] = filled
                    for here in range(a, b):
                        row_of[filled] = unit_rows[here]
                        base0[filled], base1[filled] = row_base(
                            unit_rows[here], x, at, x_part, inside, root[k], offset, constants[k, 0]
                        )
                        filled += 1
                    run_to[runs] = filled
                    unit_columns(
                        row_of[run_own[runs] :], filled - run_own[runs], x, x_part, inside, local, factor,
                        c0[run_own[runs] :], c1[run_own[runs] :],
                    )  # fmt: skip
                    runs += 1
                    a = b
                for i in range(filled):
                    row = row_of[i]
                    own_y[i], own_trials[i], own_weight[i] = y[row], trials[row], weight[row]
                    row_columns(row, z, z_part, lam[k], b0[i], b1[i])
                    moved0[i], moved1[i] = base0[i], base1[i]
                # what each group is without the unit
                for r in range(runs):
                    g = run_group[r]
                    for j in range(q):
                        run_v[r, j] = start[g, j]
                    run_kind[r], run_rest[r] = ANEW, 0.0
                    if run_own[r] == run_from[r]:
                        counts[1] += 1
                        continue
                    kept = needed[g]
                    for i in range(run_own[r], run_to[r]):  # at the node's own place of the unit's effects
                        e0, e1 = row_base(row_of[i], x, at, x_part, none_inside, root[k], offset, constants[k, 0])
                        moved0[i], moved1[i] = e0, e1
                    for m in range(n_nodes):
                        logs[m] = 0.0
                    add_rows(
                        run_own[r], run_to[r], own_y, own_trials, own_weight, moved0, moved1, e2, b0, b1, second, q,
                        kept_points[kept], eta0, eta1, own, logs,
                    )  # fmt: skip
                    for m in range(n_nodes):
                        run_logs[r, m] = kept_logs[kept, m] - logs[m]
                    total = log_sum(run_logs[r], work0)
                    if moments_good(run_logs[r], nodes, q, far, total):
                        run_kind[r], run_rest[r] = SHARED, total - kept_half[kept]
                        counts[0] += 1
                        continue
                    counts[1] += 1
                    for j in range(q):
                        v[j] = run_v[r, j]
                    search(
                        run_from[r], run_own[r] - run_from[r], own_y, own_trials, own_weight, base0, base1, e2, b0, b1,
                        second, q, v, low, starts, tolerance, work,
                    )  # fmt: skip
                    place_nodes(nodes, shifted, v, low, q, step, points, logs)
                    add_rows(
                        run_from[r], run_own[r], own_y, own_trials, own_weight, base0, base1, e2, b0, b1, second, q,
                        points, eta0, eta1, own, logs,
                    )  # fmt: skip
                    run_rest[r] = log_sum(logs, work0) - log_determinant(low, q)
                # Newton's method, then the rule: evaluations -steps .. -1, then 0 .. n_outer - 1
                best = -math.inf
                searching, halvings, steps, evaluation = True, 0, 0, 0
                for j in range(size):
                    best_t[j] = t[j]
                while searching or evaluation < n_outer:
                    if not searching:
                        solve_transposed(outer_low, outer[evaluation], step, size)
                        for j in range(size):
                            t[j] = best_t[j] + step[j]
                    value = 0.0
                    for j in range(size):
                        value -= 0.5 * t[j] * t[j]
                        gradient[j] = -t[j]
                        for i in range(j + 1):
                            hessian[j, i] = 1.0 if i == j else 0.0
                    for r in range(runs):
                        for i in range(run_own[r], run_to[r]):
                            moved0[i], moved1[i] = base0[i], base1[i]
                            for j in range(size):
                                moved0[i] += c0[i, j] * t[j]
                                moved1[i] += c1[i, j] * t[j]
                        if run_kind[r] == SHARED:
                            kept = needed[run_group[r]]
                            half = kept_half[kept]
                            for m in range(n_nodes):
                                logs[m] = run_logs[r, m]
                            add_rows(
                                run_own[r], run_to[r], own_y, own_trials, own_weight, moved0, moved1, e2, b0, b1,
                                second, q, kept_points[kept], eta0, eta1, own, logs,
                            )  # fmt: skip
                            for j in range(q):
                                for m in range(n_nodes):
                                    points[j, m] = kept_points[kept, j, m]
                        else:
                            search(
                                run_from[r], run_to[r] - run_from[r], own_y, own_trials, own_weight, moved0, moved1,
                                e2, b0, b1, second, q, run_v[r], low, starts, tolerance, work,
                            )  # fmt: skip
                            place_nodes(nodes, shifted, run_v[r], low, q, step, points, logs)
                            add_rows(
                                run_from[r], run_to[r], own_y, own_trials, own_weight, moved0, moved1, e2, b0, b1,
                                second, q, points, eta0, eta1, own, logs,
                            )  # fmt: skip
                            half = log_determinant(low, q)
                        total = log_sum(logs, work0)
                        value += total - half - run_rest[r]
                        if searching and math.isfinite(total):
                            add_slopes(
                                run_own[r], run_to[r], total, own_y, own_trials, own_weight, moved0, moved1, e2, b0,
                                b1, q, points, logs, c0, c1, gradient, hessian, score, average,
                            )  # fmt: skip
                    if not searching:
                        values[evaluation] = value + outer_shifted[evaluation]
                        evaluation += 1
                        continue
                    steps += 1
                    if not (math.isfinite(value) and value >= best - 1e-6 * (1.0 + abs(best))) and halvings < 30:
                        if best == -math.inf:  # the beginning is impossible: nearer to the prior's centre
                            for j in range(size):
                                best_t[j] *= 0.5
                                t[j] = best_t[j]
                        else:
                            for j in range(size):
                                t[j] = 0.5 * (t[j] + best_t[j])
                        halvings += 1
                        continue
                    best = value
                    for j in range(size):
                        best_t[j] = t[j]
                    cholesky(hessian, outer_low, size)
                    decrement = solve_both(outer_low, gradient, step, size)
                    if decrement < 2.0 * ENOUGH or steps >= MOST_STEPS or halvings >= 30:
                        searching = False
                        if halvings < 30:
                            for j in range(size):
                                best_t[j] += step[j]
                    for j in range(size):
                        t[j] = best_t[j] + step[j]
                out[place, k] = log_sum(values, values) - log_determinant(outer_low, size)

    return leave_units_out
