"""Numerical kernels: numba and LAPACK, no statistics."""
