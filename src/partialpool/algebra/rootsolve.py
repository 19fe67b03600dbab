"""Many roots at once: from Cholesky factors of their precisions to points of their normal approximations."""

from __future__ import annotations

import math

from partialpool.algebra.jit import kernel


@kernel("void(float64[:,:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[::1])")
def solve_roots(low, pull, x, out, logs):
    """out = L'^-1 (L^-1 pull + x) and logs = log |L|, for low (K, R, R), pull, x, out (K, R), logs (K,)."""
    count, size = pull.shape
    for k in range(count):
        own = low[k]
        total = 0.0
        for i in range(size):
            value = pull[k, i]
            for j in range(i):
                value -= own[i, j] * out[k, j]
            out[k, i] = value / own[i, i]
            total += math.log(own[i, i])
        logs[k] = total
        for i in range(size):
            out[k, i] += x[k, i]
        for i in range(size - 1, -1, -1):
            value = out[k, i] / own[i, i]
            out[k, i] = value
            for j in range(i):
                out[k, j] -= own[i, j] * value
