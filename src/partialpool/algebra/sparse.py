"""Sparse Cholesky factors of one fixed pattern, factorised again and again with new values.

`analyse` looks at the pattern once: it chooses an order that keeps the factor sparse, and groups neighbouring columns
of the factor L of P A P' = L L' that share their rows into panels. A panel of w columns is stored as one dense matrix
of its rows by its w columns, row after row, so that its trailing rows are one contiguous block and the products of the
factorisation are dense matrix products. `SymbolicCholesky` then factorises, solves, and gives the log-determinant and
the entries of the inverse on the pattern of L.

References
----------
T. A. Davis (2006), Direct Methods for Sparse Linear Systems, SIAM: elimination trees, symbolic factorisation.
J. R. Gilbert, E. G. Ng, B. W. Peyton (1994), SIAM J. Matrix Anal. Appl. 15, 1075-1091: counts of the columns.
C. Ashcraft, R. Grimes (1989), ACM Trans. Math. Softw. 15, 291-309: relaxed supernodes.
E. G. Ng, B. W. Peyton (1993), SIAM J. Sci. Comput. 14, 1034-1056: left-looking by supernodes.
A. M. Erisman, W. F. Tinney (1975), Comm. ACM 18, 177-179: the inverse on the pattern of the factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from partialpool.algebra.jit import helper, kernel

if TYPE_CHECKING:
    import scipy.sparse

__all__ = ["SymbolicCholesky", "analyse", "predicted_costs"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_PANEL_WIDTH = 48  # of the widest panel: wider supernodes are cut, which keeps the dense triangles in the cache
_BLAS_FROM = 2048  # multiplications from which a product goes to BLAS
_REASSOCIATE = ("contract", "reassoc")  # lets the compiler add a sum up in vectors; infinities and NaN keep their sense

_LAYOUT = "int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1]"


# --------------------------------------------------------------------------------------------------------------------
# The pattern: elimination tree, counts, panels
# --------------------------------------------------------------------------------------------------------------------


@kernel("int64[::1](int64[::1], int64[::1])")
def _elimination_tree(pointers: Any, indices: Any) -> Any:
    """Parent of each column: the first row below the diagonal of L (-1 for a root); Liu's algorithm."""
    n = pointers.shape[0] - 1
    parent = np.full(n, -1, np.int64)
    ancestor = np.full(n, -1, np.int64)
    for i in range(n):
        for p in range(pointers[i], pointers[i + 1]):
            k = indices[p]
            while k != -1 and k < i:
                above = ancestor[k]
                ancestor[k] = i  # shortens later climbs
                if above == -1:
                    parent[k] = i
                k = above
    return parent


@kernel("int64[::1](int64[::1], int64[::1])")
def _postorder(parent: Any, priority: Any) -> Any:
    """The columns so that each subtree is contiguous; of the children of a column, the last in `priority` come last."""
    n = parent.shape[0]
    first_child = np.full(n, -1, np.int64)
    sibling = np.full(n, -1, np.int64)
    order = np.empty(n, np.int64)
    stack = np.empty(n, np.int64)
    for q in range(n - 1, -1, -1):
        j = priority[q]
        if parent[j] != -1:
            sibling[j] = first_child[parent[j]]
            first_child[parent[j]] = j
    done = 0
    for root in range(n):
        if parent[root] != -1:
            continue
        stack[0] = root
        top = 0
        while top >= 0:
            j = stack[top]
            child = first_child[j]
            if child == -1:
                order[done] = j
                done += 1
                top -= 1
            else:
                first_child[j] = sibling[child]
                top += 1
                stack[top] = child
    return order


@kernel("int64[::1](int64[::1], int64[::1], int64[::1], int64[::1])")
def _column_counts(pointers: Any, indices: Any, parent: Any, order: Any) -> Any:
    """Entries of each column of L, diagonal included, without forming L.

    Row i of L is a subtree of the elimination tree. Its leaves each add one path; where two paths meet, at the least
    common ancestor of neighbouring leaves, one is taken off again. Sums over subtrees of these differences are counts.
    """
    n = parent.shape[0]
    first = np.full(n, -1, np.int64)  # the earliest descendant, as a place in the order
    latest = np.full(n, -1, np.int64)  # for a row: the largest `first` among the leaves seen
    leaf = np.full(n, -1, np.int64)  # for a row: the leaf seen last
    count = np.zeros(n, np.int64)
    for place in range(n):
        j = order[place]
        if first[j] == -1:
            count[j] = 1
        while j != -1 and first[j] == -1:
            first[j] = place
            j = parent[j]
    union = np.arange(n)
    for place in range(n):
        j = order[place]
        if parent[j] != -1:
            count[parent[j]] -= 1
        for p in range(pointers[j], pointers[j + 1]):
            i = indices[p]
            if i <= j or first[j] <= latest[i]:
                continue
            latest[i] = first[j]
            count[j] += 1
            meeting = leaf[i]
            if meeting != -1:
                start = meeting
                while union[meeting] != meeting:
                    meeting = union[meeting]
                while start != meeting:
                    following = union[start]
                    union[start] = meeting
                    start = following
                count[meeting] -= 1
            leaf[i] = j
        if parent[j] != -1:
            union[j] = parent[j]
    for place in range(n):
        j = order[place]
        if parent[j] != -1:
            count[parent[j]] += count[j]
    return count


@kernel("int64[::1](int64[::1], int64[::1])")
def _supernodes(parent: Any, counts: Any) -> Any:
    """First columns of runs of columns stored together (postordered columns); ends with n.

    Columns of equal pattern are merged, then a run with its parent where that stores few zeros.
    """
    n = parent.shape[0]
    start = np.empty(n + 1, np.int64)
    exact = np.empty(n, np.int64)  # true entries of each run
    height = np.empty(n, np.int64)  # rows of each run's first column, as stored
    runs = 0
    for j in range(n):
        if j > 0 and parent[j - 1] == j and counts[j - 1] == counts[j] + 1:
            exact[runs - 1] += counts[j]
            continue
        # A run that is complete may swallow the runs before it that hang on it.
        runs = _merge_last(start, exact, height, runs, parent, j)
        start[runs] = j
        exact[runs] = counts[j]
        height[runs] = counts[j]
        runs += 1
    runs = _merge_last(start, exact, height, runs, parent, n)
    start[runs] = n
    return start[: runs + 1].copy()


@helper
def _merge_last(start: Any, exact: Any, height: Any, runs: int, parent: Any, end: int) -> int:
    """Merge the last run, which ends at `end`, with those before it while few zeros are stored."""
    while runs > 1:
        child, run = start[runs - 2], start[runs - 1]
        if parent[run - 1] == -1 or parent[run - 1] >= end:
            break
        width = end - child
        rows = run - child + height[runs - 1]
        stored = width * rows - width * (width - 1) // 2
        zeros = stored - exact[runs - 2] - exact[runs - 1]
        share = 0.6 if width <= 6 else (0.3 if width <= 16 else (0.12 if width <= 48 else 0.05))
        if zeros > share * stored:
            break
        exact[runs - 2] += exact[runs - 1]
        height[runs - 2] = rows
        runs -= 1
    return runs


@kernel("Tuple((int64[::1], int64[::1]))(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def _supernode_rows(pointers: Any, indices: Any, start: Any, parent: Any, counts: Any) -> Any:
    """Rows of each supernode, its own columns first, sorted: those of A and those of its children."""
    n = parent.shape[0]
    runs = start.shape[0] - 1
    owner = np.empty(n, np.int64)
    for s in range(runs):
        owner[start[s] : start[s + 1]] = s
    first_child = np.full(runs, -1, np.int64)
    sibling = np.full(runs, -1, np.int64)
    begin = np.zeros(runs + 1, np.int64)
    seen = np.full(n, -1, np.int64)
    rows = np.empty(max(n, counts.max() * 4), np.int64)
    end = 0
    for s in range(runs):
        begin[s] = end
        if end + n > rows.shape[0]:
            longer = np.empty(2 * rows.shape[0] + n, np.int64)
            longer[:end] = rows[:end]
            rows = longer
        for j in range(start[s], start[s + 1]):
            seen[j] = s
            rows[end] = j
            end += 1
        below = end
        for j in range(start[s], start[s + 1]):
            for p in range(pointers[j], pointers[j + 1]):
                i = indices[p]
                if i > j and seen[i] != s:
                    seen[i] = s
                    rows[end] = i
                    end += 1
        child = first_child[s]
        while child != -1:
            for p in range(begin[child] + start[child + 1] - start[child], begin[child + 1]):
                i = rows[p]
                if seen[i] != s:
                    seen[i] = s
                    rows[end] = i
                    end += 1
            child = sibling[child]
        rows[below:end].sort()
        begin[s + 1] = end
        if end > below:
            above = owner[rows[below]]
            sibling[s] = first_child[above]
            first_child[above] = s
    return begin, rows[:end].copy()


@kernel("Tuple((int64[::1], int64[::1], int64[::1], int64[::1], int64[::1]))(int64[::1], int64[::1], int64)")
def _panels(start: Any, begin: Any, width: int) -> Any:
    """Cut supernodes into panels: first columns, begin and end in `rows`, offsets into the values, owner of columns."""
    runs = start.shape[0] - 1
    n = start[runs]
    total = 0
    for s in range(runs):
        total += (start[s + 1] - start[s] + width - 1) // width
    first = np.empty(total + 1, np.int64)
    lower = np.empty(total, np.int64)
    upper = np.empty(total, np.int64)
    offset = np.empty(total + 1, np.int64)
    owner = np.empty(n, np.int64)
    panel = 0
    size = 0
    for s in range(runs):
        columns = start[s + 1] - start[s]
        pieces = (columns + width - 1) // width
        for piece in range(pieces):
            left = columns * piece // pieces
            right = columns * (piece + 1) // pieces
            first[panel] = start[s] + left
            lower[panel] = begin[s] + left
            upper[panel] = begin[s + 1]
            offset[panel] = size
            owner[start[s] + left : start[s] + right] = panel
            size += (right - left) * (upper[panel] - lower[panel])
            panel += 1
    first[total] = n
    offset[total] = size
    return first, lower, upper, offset, owner


@kernel(f"int64[::1]({_LAYOUT}, int64[::1], int64[::1])")
def _find(first: Any, begin: Any, end: Any, rows: Any, offset: Any, owner: Any, i: Any, j: Any) -> Any:
    """Place of the entries (i, j) of the permuted matrix among the values of L; -1 where L holds none."""
    found = np.full(i.shape[0], -1, np.int64)
    for q in range(i.shape[0]):
        row, column = max(i[q], j[q]), min(i[q], j[q])
        s = owner[column]
        low, high = begin[s], end[s] - 1
        while low < high:
            middle = (low + high) // 2
            if rows[middle] < row:
                low = middle + 1
            else:
                high = middle
        if rows[low] == row:
            found[q] = offset[s] + (low - begin[s]) * (first[s + 1] - first[s]) + column - first[s]
    return found


# --------------------------------------------------------------------------------------------------------------------
# The values
# --------------------------------------------------------------------------------------------------------------------


@helper(fastmath=_REASSOCIATE)
def _dot(values: Any, left: int, right: int, length: int) -> float:
    total = 0.0
    for k in range(length):
        total += values[left + k] * values[right + k]
    return total


@helper(fastmath=_REASSOCIATE)
def _subtract_four_dots(values: Any, place: int, width: int, right: int, length: int) -> None:
    """Take from column `length` of four rows their products with the row at `right`: it is loaded once for all."""
    second, third, fourth = place + width, place + 2 * width, place + 3 * width
    a = b = c = d = 0.0
    for k in range(length):
        x = values[right + k]
        a += values[place + k] * x
        b += values[second + k] * x
        c += values[third + k] * x
        d += values[fourth + k] * x
    pivot = values[right + length]
    values[place + length] = (values[place + length] - a) / pivot
    values[second + length] = (values[second + length] - b) / pivot
    values[third + length] = (values[third + length] - c) / pivot
    values[fourth + length] = (values[fourth + length] - d) / pivot


@helper
def _factor_panel(values: Any, start: int, height: int, width: int) -> int:
    """Factorise a panel whose updates are in; return the column whose pivot is not positive, or -1."""
    for r in range(width):
        row = start + r * width
        for c in range(r):
            right = start + c * width
            values[row + c] = (values[row + c] - _dot(values, row, right, c)) / values[right + c]
        pivot = values[row + r] - _dot(values, row, row, r)
        if not (0.0 < pivot < np.inf):  # also where it is NaN
            return r
        values[row + r] = np.sqrt(pivot)
    r = width
    while r + 4 <= height:
        row = start + r * width
        for c in range(width):
            _subtract_four_dots(values, row, width, start + c * width, c)
        r += 4
    while r < height:
        row = start + r * width
        for c in range(width):
            right = start + c * width
            values[row + c] = (values[row + c] - _dot(values, row, right, c)) / values[right + c]
        r += 1
    return -1


@helper(fastmath=_REASSOCIATE)
def _update_panel(values: Any, rows: Any, place: Any, target: Any, source: Any, at: Any, size: Any, work: Any) -> None:
    """Take from a panel the product of the rows of an earlier one.

    target = (offset, width, first column), source = (offset, width), at = begin of the source's rows in `rows`,
    size = (rows, of which in the target's columns); `place` gives the row of the target for a row of the matrix.
    """
    start, width, column = target
    other, inner = source
    height, hits = size
    if height * hits * inner >= _BLAS_FROM and inner >= 4:
        left = values[other : other + height * inner].reshape((height, inner))
        product = work[: height * hits].reshape((height, hits))
        np.dot(left, left[:hits].T, product)
        for r in range(height):
            row = start + place[rows[at + r]] * width - column
            for c in range(min(r + 1, hits)):
                values[row + rows[at + c]] -= product[r, c]
        return
    for r in range(height):
        row = start + place[rows[at + r]] * width - column
        left_row = other + r * inner
        for c in range(min(r + 1, hits)):
            right_row = other + c * inner
            total = 0.0
            for k in range(inner):
                total += values[left_row + k] * values[right_row + k]
            values[row + rows[at + c]] -= total


@kernel(f"int64(float64[::1], {_LAYOUT})")
def _factor(values: Any, first: Any, begin: Any, end: Any, rows: Any, offset: Any, owner: Any) -> Any:
    """A becomes L in place, panel by panel (left-looking); 0, or one more than the column that fails."""
    panels = begin.shape[0]
    head = np.full(panels, -1, np.int64)  # lists of the earlier panels whose next update is due at a panel
    following = np.full(panels, -1, np.int64)
    reached = np.zeros(panels, np.int64)
    place = np.zeros(owner.shape[0], np.int64)
    tallest = 0
    widest = 0
    for s in range(panels):
        tallest = max(tallest, end[s] - begin[s])
        widest = max(widest, first[s + 1] - first[s])
    work = np.empty(tallest * widest)
    for s in range(panels):
        width = first[s + 1] - first[s]
        height = end[s] - begin[s]
        for r in range(height):
            place[rows[begin[s] + r]] = r
        d = head[s]
        while d != -1:
            next_d = following[d]
            at = reached[d]
            stop = at
            while stop < end[d] and rows[stop] < first[s + 1]:
                stop += 1
            inner = first[d + 1] - first[d]
            source = offset[d] + (at - begin[d]) * inner
            target = (offset[s], width, first[s])
            _update_panel(values, rows, place, target, (source, inner), at, (end[d] - at, stop - at), work)
            if stop < end[d]:
                reached[d] = stop
                due = owner[rows[stop]]
                following[d] = head[due]
                head[due] = d
            d = next_d
        failed = _factor_panel(values, offset[s], height, width)
        if failed >= 0:
            return first[s] + failed + 1
        if height > width:
            reached[s] = begin[s] + width
            due = owner[rows[reached[s]]]
            following[s] = head[due]
            head[due] = s
    return 0


@kernel(f"float64(float64[::1], {_LAYOUT})")
def _log_determinant(values: Any, first: Any, begin: Any, end: Any, rows: Any, offset: Any, owner: Any) -> Any:
    total = 0.0
    for s in range(begin.shape[0]):
        width = first[s + 1] - first[s]
        for c in range(width):
            total += np.log(values[offset[s] + c * width + c])
    return 2.0 * total


@kernel(f"none(float64[::1], {_LAYOUT}, float64[:, ::1])", fastmath=_REASSOCIATE)
def _solve_lower(values: Any, first: Any, begin: Any, end: Any, rows: Any, offset: Any, owner: Any, x: Any) -> None:
    """x becomes the solution of L x = b, in place."""
    sides = x.shape[1]
    work = np.empty(0)
    for s in range(begin.shape[0]):
        width = first[s + 1] - first[s]
        height = end[s] - begin[s]
        f = first[s]
        for c in range(width):
            row = offset[s] + c * width
            for k in range(c):
                for q in range(sides):
                    x[f + c, q] -= values[row + k] * x[f + k, q]
            for q in range(sides):
                x[f + c, q] /= values[row + c]
        if (height - width) * width * sides >= _BLAS_FROM and sides >= 4:
            below = height - width
            if work.shape[0] < below * sides:
                work = np.empty(below * sides)
            panel = values[offset[s] + width * width : offset[s] + height * width].reshape((below, width))
            product = work[: below * sides].reshape((below, sides))
            np.dot(panel, x[f : f + width], product)
            for r in range(below):
                i = rows[begin[s] + width + r]
                for q in range(sides):
                    x[i, q] -= product[r, q]
            continue
        for r in range(width, height):
            row = offset[s] + r * width
            i = rows[begin[s] + r]
            if sides == 1:
                total = 0.0
                for k in range(width):
                    total += values[row + k] * x[f + k, 0]
                x[i, 0] -= total
            else:
                for k in range(width):
                    for q in range(sides):
                        x[i, q] -= values[row + k] * x[f + k, q]


@kernel(f"none(float64[::1], {_LAYOUT}, float64[:, ::1])", fastmath=_REASSOCIATE)
def _solve_upper(values: Any, first: Any, begin: Any, end: Any, rows: Any, offset: Any, owner: Any, x: Any) -> None:
    """x becomes the solution of L' x = b, in place."""
    sides = x.shape[1]
    work = np.empty(0)
    answer = np.empty(_PANEL_WIDTH * sides)
    for s in range(begin.shape[0] - 1, -1, -1):
        width = first[s + 1] - first[s]
        height = end[s] - begin[s]
        f = first[s]
        if (height - width) * width * sides >= _BLAS_FROM and sides >= 4:
            below = height - width
            if work.shape[0] < below * sides:
                work = np.empty(below * sides)
            known = work[: below * sides].reshape((below, sides))
            for r in range(below):
                known[r] = x[rows[begin[s] + width + r]]
            panel = values[offset[s] + width * width : offset[s] + height * width].reshape((below, width))
            product = answer[: width * sides].reshape((width, sides))
            np.dot(panel.T, known, product)
            for c in range(width):
                for q in range(sides):
                    x[f + c, q] -= product[c, q]
        else:
            for r in range(width, height):
                row = offset[s] + r * width
                i = rows[begin[s] + r]
                if sides == 1:
                    value = x[i, 0]
                    for k in range(width):
                        x[f + k, 0] -= values[row + k] * value
                else:
                    for k in range(width):
                        for q in range(sides):
                            x[f + k, q] -= values[row + k] * x[i, q]
        for c in range(width - 1, -1, -1):
            row = offset[s] + c * width
            for q in range(sides):
                x[f + c, q] /= values[row + c]
            for k in range(c):
                for q in range(sides):
                    x[f + k, q] -= values[row + k] * x[f + c, q]


# --------------------------------------------------------------------------------------------------------------------
# The inverse on the pattern
# --------------------------------------------------------------------------------------------------------------------


@helper(fastmath=_REASSOCIATE)
def _multiply_known(
    inverse: Any, first: Any, begin: Any, end: Any, rows: Any, offset: Any, owner: Any,
    at: int, below: int, width: int, y: Any, out: Any, place: Any, known: Any, work: Any,
) -> None:  # fmt: skip
    """out = Z y, where Z is the known inverse on the rows `rows[at : at + below]`, one owner of columns at a time."""
    out[: below * width] = 0.0
    left = 0
    while left < below:
        t = owner[rows[at + left]]
        right = left + 1
        while right < below and rows[at + right] < first[t + 1]:
            right += 1
        pitch = first[t + 1] - first[t]
        at_t = begin[t]
        for r in range(left, below):  # rows of this panel that are rows of panel t: both are sorted
            while rows[at_t] != rows[at + r]:
                at_t += 1
            place[r] = offset[t] + (at_t - begin[t]) * pitch - first[t]
        columns = right - left
        height = below - left
        if height * columns * width >= _BLAS_FROM and width >= 4 and columns >= 4:
            for r in range(height):
                for c in range(columns):
                    i, j = (r, c) if r >= c else (c, r)
                    known[r * columns + c] = inverse[place[left + i] + rows[at + left + j]]
            z = known[: height * columns].reshape((height, columns))
            product = work[: height * width].reshape((height, width))
            np.dot(z, y[left * width : right * width].reshape((columns, width)), product)
            for k in range(height * width):
                out[left * width + k] += work[k]
            if height > columns:
                product = work[: columns * width].reshape((columns, width))
                np.dot(z[columns:].T, y[right * width : below * width].reshape((height - columns, width)), product)
                for k in range(columns * width):
                    out[left * width + k] += work[k]
        else:
            for r in range(left, below):
                for c in range(left, min(r + 1, right)):
                    z_rc = inverse[place[r] + rows[at + c]]
                    for k in range(width):
                        out[r * width + k] += z_rc * y[c * width + k]
                    if c < r:
                        for k in range(width):
                            out[c * width + k] += z_rc * y[r * width + k]
        left = right


@helper(fastmath=_REASSOCIATE)
def _invert_triangle(values: Any, start: int, width: int, result: Any) -> None:
    """result = (L_J L_J')^-1 on and below the diagonal, through the inverse of the triangle L_J of a panel."""
    triangle = np.zeros((width, width))
    for r in range(width):
        for k in range(r):
            factor = values[start + r * width + k]
            for c in range(k + 1):
                triangle[r, c] -= factor * triangle[k, c]
        pivot = 1.0 / values[start + r * width + r]
        triangle[r, r] = 1.0
        for c in range(r + 1):
            triangle[r, c] *= pivot
    result[: width * width] = 0.0
    for k in range(width):
        for r in range(k + 1):
            factor = triangle[k, r]
            for c in range(r + 1):
                result[r * width + c] += factor * triangle[k, c]


@helper(fastmath=_REASSOCIATE)
def _columns_times_inverse(values: Any, start: int, width: int, below: int, y: Any) -> None:
    """y = L_B L_J^-1, row by row, for the triangle L_J and the rows L_B below it."""
    for r in range(below):
        row = r * width
        source = start + (width + r) * width
        for k in range(width):
            y[row + k] = values[source + k]
        for j in range(width - 1, -1, -1):
            triangle_row = start + j * width
            y[row + j] /= values[triangle_row + j]
            solved = y[row + j]
            for k in range(j):
                y[row + k] -= solved * values[triangle_row + k]


@kernel(f"float64[::1](float64[::1], {_LAYOUT})", fastmath=_REASSOCIATE)
def _selected_inverse(values: Any, first: Any, begin: Any, end: Any, rows: Any, offset: Any, owner: Any) -> Any:
    """Z = A^-1 on the pattern of L, from the last panel to the first.

    With the triangle L_J of a panel, the rows L_B below it and Y = L_B L_J^-1,
    Z_BJ = -Z_BB Y and Z_JJ = (L_J L_J')^-1 + Y' Z_BB Y.
    """
    inverse = np.zeros(values.shape[0])
    tallest = 0
    widest = 0
    for s in range(begin.shape[0]):
        tallest = max(tallest, end[s] - begin[s])
        widest = max(widest, first[s + 1] - first[s])
    y = np.empty(tallest * widest)
    out = np.empty(tallest * widest)
    known = np.empty(tallest * widest)
    work = np.empty(tallest * widest)
    place = np.empty(tallest, np.int64)
    corner = np.empty(widest * widest)
    for s in range(begin.shape[0] - 1, -1, -1):
        width = first[s + 1] - first[s]
        below = end[s] - begin[s] - width
        start = offset[s]
        _columns_times_inverse(values, start, width, below, y)
        _multiply_known(
            inverse, first, begin, end, rows, offset, owner,
            begin[s] + width, below, width, y, out, place, known, work,
        )  # fmt: skip
        _invert_triangle(values, start, width, corner)
        if below * width * width >= _BLAS_FROM and width >= 4:
            product = work[: width * width].reshape((width, width))
            tall = y[: below * width].reshape((below, width))
            np.dot(tall.T, out[: below * width].reshape((below, width)), product)
            for k in range(width * width):
                corner[k] += work[k]
        else:
            for r in range(below):
                for i in range(width):
                    for j in range(i + 1):
                        corner[i * width + j] += y[r * width + i] * out[r * width + j]
        for i in range(width):
            for j in range(i + 1):
                inverse[start + i * width + j] = corner[i * width + j]
        for k in range(below * width):
            inverse[start + width * width + k] = -out[k]
    return inverse


# --------------------------------------------------------------------------------------------------------------------
# The order
# --------------------------------------------------------------------------------------------------------------------


def _pattern(rows: npt.ArrayLike, cols: npt.ArrayLike, n: int) -> scipy.sparse.csc_array[Any]:
    """The symmetric pattern with its diagonal, as ones, from entries of either triangle."""
    from scipy import sparse

    i = np.asarray(rows, dtype=np.int64).ravel()
    j = np.asarray(cols, dtype=np.int64).ravel()
    if i.shape != j.shape:
        raise ValueError(f"rows and cols must be equally long, got {i.size} and {j.size}")
    if n < 1 or (i.size and (min(i.min(), j.min()) < 0 or max(i.max(), j.max()) >= n)):
        raise ValueError(f"rows and cols must lie in 0..n-1 with n >= 1, got n = {n}")
    diagonal = np.arange(n, dtype=np.int64)
    i, j = np.concatenate([i, j, diagonal]), np.concatenate([j, i, diagonal])
    pattern: scipy.sparse.csc_array[Any] = sparse.coo_array((np.ones(i.size), (i, j)), shape=(n, n)).tocsc()
    pattern.data[:] = 1.0
    return pattern


@dataclass(frozen=True, eq=False)
class _Ordered:
    """A postordered permutation with the tree and the counts that it leads to."""

    order: Integers  # order[k] is the original index in place k
    parent: Integers
    counts: Integers
    pointers: Integers  # the permuted pattern, both triangles
    indices: Integers


def _permuted(pattern: scipy.sparse.csc_array[Any], order: Integers) -> tuple[Integers, Integers]:
    moved = pattern[order][:, order].tocsc()
    return moved.indptr.astype(np.int64), moved.indices.astype(np.int64)


def _evaluate(pattern: scipy.sparse.csc_array[Any], order: Integers) -> _Ordered:
    """Tree and counts of an order, after it has been postordered (which keeps the fill)."""
    n = order.size
    pointers, indices = _permuted(pattern, order)
    parent = _elimination_tree(pointers, indices)
    counts = _column_counts(pointers, indices, parent, _postorder(parent, np.arange(n)))
    # The child with the longest column comes right before its parent: the two can share a panel.
    post = _postorder(parent, np.argsort(counts, kind="stable"))
    place = np.empty(n + 1, np.int64)
    place[post] = np.arange(n)
    place[-1] = -1  # the parent of a root stays -1
    order = np.ascontiguousarray(order[post])
    return _Ordered(order, place[parent[post]], counts[post], *_permuted(pattern, order))


def _minimum_degree(pattern: scipy.sparse.csc_array[Any]) -> Integers:
    """SuperLU's multiple minimum degree, through an incomplete factorisation that drops everything, so is cheap."""
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import spilu

    n = pattern.shape[0]
    degree = np.diff(pattern.indptr)
    # Rows met by nearly all others slow minimum degree down and belong last anyway (Amestoy, Davis, Duff 1996).
    dense = degree > max(16.0, 10.0 * np.sqrt(n))
    kept = np.flatnonzero(~dense)
    order = np.arange(kept.size)
    if kept.size > 1:
        part = pattern[kept][:, kept]
        dominant = csc_array(diags_array(np.diff(part.tocsc().indptr) + 1.0) - part)
        factors = spilu(
            dominant,
            drop_tol=1.0,
            fill_factor=1.0,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        order = np.argsort(factors.perm_c)
    last = np.flatnonzero(dense)
    return np.concatenate([kept[order], last[np.argsort(degree[last], kind="stable")]]).astype(np.int64)


def _best_order(pattern: scipy.sparse.csc_array[Any]) -> _Ordered:
    """Of minimum degree, the reverse Cuthill-McKee order and the given one, that with the least fill."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = pattern.shape[0]
    given = np.arange(n, dtype=np.int64)
    if pattern.nnz > 0.25 * float(n) ** 2:  # no order saves much, and minimum degree would take seconds
        return _evaluate(pattern, given)
    narrow = reverse_cuthill_mckee(pattern.tocsr(), symmetric_mode=True)
    candidates = [_minimum_degree(pattern), narrow.astype(np.int64), given]
    return min((_evaluate(pattern, order) for order in candidates), key=lambda ordered: int(ordered.counts.sum()))


def _flops(counts: Integers) -> float:
    return float(np.sum(counts.astype(np.float64) ** 2))


def predicted_costs(rows: npt.ArrayLike, cols: npt.ArrayLike, n: int) -> tuple[float, float]:
    """Floating-point operations of a sparse and of a dense Cholesky factorisation.

    Dense operations run several times faster than those on short columns: prefer the sparse factor where its count is
    well below the dense one.

    Parameters
    ----------
    rows, cols : array of int
        Entries of one triangle of the matrix (duplicates, and the diagonal, may be there or not).
    n : int
        Size of the matrix.

    Returns
    -------
    tuple of float
        (sparse, dense): the sum of squares of the lengths of the columns of the factor, and n^3 / 3.

    Examples
    --------
    >>> predicted_costs([1, 2, 3], [0, 1, 2], 4)
    (13.0, 21.333333333333332)
    """
    return _flops(_best_order(_pattern(rows, cols, n)).counts), n**3 / 3.0


# --------------------------------------------------------------------------------------------------------------------
# The public object
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SymbolicCholesky:
    """What is known of P A P' = L L' from the pattern of A alone; made by `analyse`.

    Values of A, of L and of the inverse live in arrays (size,) of one layout: panel s holds columns
    first[s]..first[s+1]-1 of L as a dense matrix, row after row, of the rows rows[begin[s]:end[s]] (its own columns
    first), from offset[s] on. What lies above the diagonal within a panel is never read.

    Attributes
    ----------
    n : int
        Size of the matrix.
    perm : array of int64, shape (n,)
        perm[k] is the original index in place k.
    inverse_perm : array of int64, shape (n,)
        The place of each original index.
    parent : array of int64, shape (n,)
        The elimination tree of the permuted matrix: parent of each column, -1 for a root.
    counts : array of int64, shape (n,)
        Entries of each column of L, diagonal included.
    first, begin, end, rows, offset, owner : arrays of int64
        The panels; `owner` is the panel of each column.
    """

    n: int
    perm: Integers
    inverse_perm: Integers
    parent: Integers
    counts: Integers
    first: Integers
    begin: Integers
    end: Integers
    rows: Integers
    offset: Integers
    owner: Integers

    @property
    def size(self) -> int:
        """Length of an array of values: the fill and some zeros that make panels dense."""
        return int(self.offset[-1])

    @property
    def fill(self) -> int:
        """Entries of L, the diagonal included."""
        return int(self.counts.sum())

    @property
    def flops(self) -> float:
        """Floating-point operations of one factorisation."""
        return _flops(self.counts)

    @property
    def layout(self) -> tuple[Integers, Integers, Integers, Integers, Integers, Integers]:
        """The arrays that the kernels take after the values."""
        return self.first, self.begin, self.end, self.rows, self.offset, self.owner

    def positions(self, i: npt.ArrayLike, j: npt.ArrayLike) -> Integers:
        """Where the entries (i, j) of A, of L and of the inverse live among the values.

        Parameters
        ----------
        i, j : array of int
            Original indices, in either order.

        Returns
        -------
        array of int64
            One place for each pair.

        Raises
        ------
        ValueError
            If a pair is outside the pattern of L.
        """
        row = np.asarray(i, dtype=np.int64)
        column = np.asarray(j, dtype=np.int64)
        row, column = np.broadcast_arrays(row, column)
        shape = row.shape
        if row.size and (min(row.min(), column.min()) < 0 or max(row.max(), column.max()) >= self.n):
            raise ValueError(f"positions needs indices in 0..{self.n - 1}")
        places = _find(*self.layout, self.inverse_perm[row.ravel()], self.inverse_perm[column.ravel()])
        if places.size and places.min() < 0:
            wrong = int(np.argmin(places))
            raise ValueError(
                f"the entry ({row.ravel()[wrong]}, {column.ravel()[wrong]}) is outside the pattern that was analysed"
            )
        return np.asarray(places.reshape(shape), dtype=np.int64)

    def assemble(self, positions: Integers, entries: npt.ArrayLike) -> Floats:
        """Values of A from entries at `positions` (each entry of one triangle once; those at one place add up)."""
        weights = np.asarray(entries, dtype=np.float64).ravel()
        values = np.bincount(positions.ravel(), weights=weights, minlength=self.size)
        return np.asarray(values, dtype=np.float64)

    def factor(self, values: Floats) -> int:
        """Turn the values of A into those of L, in place.

        Parameters
        ----------
        values : array of float64, shape (size,)
            The lower triangle of A; overwritten.

        Returns
        -------
        int
            0, or where A is not positive definite (or not finite) one more than the place in `perm` of the column
            whose pivot fails: its original index is ``perm[status - 1]``. The values are then of no use.
        """
        return int(_factor(self._checked(values), *self.layout))

    def log_determinant(self, values: Floats) -> float:
        """log det A, from the values of L."""
        return float(_log_determinant(self._checked(values), *self.layout))

    def permute(self, x: npt.ArrayLike) -> Floats:
        """P x: a copy of the rows of x in the order of L, always of shape (n, k)."""
        original = np.asarray(x, dtype=np.float64)
        return np.ascontiguousarray(original.reshape(self.n, -1)[self.perm])

    def unpermute(self, x: Floats) -> Floats:
        """P' x: the rows of x (n, k) back in the original order."""
        return np.ascontiguousarray(x[self.inverse_perm])

    def solve_lower(self, values: Floats, x: Floats) -> None:
        """Solve L x = b in place for b (n, k) in permuted order."""
        _solve_lower(self._checked(values), *self.layout, self._checked_sides(x))

    def solve_upper(self, values: Floats, x: Floats) -> None:
        """Solve L' x = b in place for b (n, k) in permuted order."""
        _solve_upper(self._checked(values), *self.layout, self._checked_sides(x))

    def solve(self, values: Floats, b: npt.ArrayLike) -> Floats:
        """A^-1 b for b (n,) or (n, k) in the original order, from the values of L."""
        x = self.permute(b)
        self.solve_lower(values, x)
        self.solve_upper(values, x)
        return self.unpermute(x).reshape(np.shape(b))

    def selected_inverse(self, values: Floats) -> Floats:
        """Entries of A^-1 on the pattern of L, in the layout of the values, from the values of L."""
        return np.asarray(_selected_inverse(self._checked(values), *self.layout))

    def to_dense(self, values: Floats) -> Floats:
        """The lower triangle that the values hold, as a dense (n, n) matrix in permuted order; for tests and looks."""
        dense = np.zeros((self.n, self.n))
        for s in range(self.begin.size):
            left, right = self.first[s], self.first[s + 1]
            panel = values[self.offset[s] : self.offset[s + 1]].reshape(-1, right - left)
            dense[self.rows[self.begin[s] : self.end[s]], left:right] = panel
        return np.tril(dense)

    def _checked(self, values: Floats) -> Floats:
        """Kernels check no bounds."""
        if values.shape != (self.size,):
            raise ValueError(f"values must have shape ({self.size},), got {values.shape}")
        return values

    def _checked_sides(self, x: Floats) -> Floats:
        if x.ndim != 2 or x.shape[0] != self.n:
            raise ValueError(f"the right-hand sides must have shape ({self.n}, k), got {x.shape}")
        return x


def analyse(rows: npt.ArrayLike, cols: npt.ArrayLike, n: int) -> SymbolicCholesky:
    """Choose an order for a sparse symmetric matrix and lay out its Cholesky factor.

    Parameters
    ----------
    rows, cols : array of int
        Where the matrix may differ from zero: entries of one triangle (duplicates, entries of the other triangle, and
        the diagonal, may be there or not).
    n : int
        Size of the matrix.

    Returns
    -------
    SymbolicCholesky

    Raises
    ------
    ValueError
        If `rows` and `cols` differ in length or leave 0..n-1.

    Examples
    --------
    >>> import numpy as np
    >>> rows, cols = np.array([0, 1, 2, 1, 2]), np.array([0, 1, 2, 0, 1])
    >>> symbolic = analyse(rows, cols, 3)
    >>> values = symbolic.assemble(symbolic.positions(rows, cols), [2.0, 2.0, 2.0, -1.0, -1.0])
    >>> symbolic.factor(values)
    0
    >>> round(float(np.exp(symbolic.log_determinant(values))), 12)
    4.0
    >>> symbolic.solve(values, [1.0, 0.0, 1.0]).round(12).tolist()
    [1.0, 1.0, 1.0]
    """
    ordered = _best_order(_pattern(rows, cols, n))
    start = _supernodes(ordered.parent, ordered.counts)
    bounds, row_list = _supernode_rows(ordered.pointers, ordered.indices, start, ordered.parent, ordered.counts)
    first, begin, end, offset, owner = _panels(start, bounds, _PANEL_WIDTH)
    inverse_perm = np.empty(n, np.int64)
    inverse_perm[ordered.order] = np.arange(n)
    return SymbolicCholesky(
        n=n,
        perm=ordered.order,
        inverse_perm=inverse_perm,
        parent=ordered.parent,
        counts=ordered.counts,
        first=first,
        begin=begin,
        end=end,
        rows=row_list,
        offset=offset,
        owner=owner,
    )
