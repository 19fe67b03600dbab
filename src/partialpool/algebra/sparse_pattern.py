"""Kernels on the pattern of a sparse matrix: elimination tree, counts, panels. See `sparse`."""

from __future__ import annotations

from typing import Any

import numpy as np

from partialpool.algebra.jit import helper, kernel

_LAYOUT = "int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1]"


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
