"""Kernels on the values of a sparse Cholesky factor: factorise, solve, invert on the pattern. See `sparse`."""

from __future__ import annotations

from typing import Any

import numpy as np

from partialpool.algebra.jit import helper, kernel

_PANEL_WIDTH = 48  # of the widest panel: wider supernodes are cut, which keeps the dense triangles in the cache
_BLAS_FROM = 2048  # multiplications from which a product goes to BLAS
_REASSOCIATE = ("contract", "reassoc")  # lets the compiler add a sum up in vectors; infinities and NaN keep their sense

_LAYOUT = "int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1]"


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
