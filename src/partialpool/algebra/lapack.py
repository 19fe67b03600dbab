"""LAPACK and BLAS on row-major lower triangles, called so that the interpreter's lock is released.

A row-major lower triangle is a column-major upper one; every routine below is called in that sense. The routines
are SciPy's own (``scipy.linalg.cython_lapack``), reached through their C entry points.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_limit_lock = threading.Lock()
_limit_holders = 0
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread a BLAS call while Python threads share the cores; the last of concurrent users restores it."""
    global _limit, _limit_holders
    from threadpoolctl import threadpool_limits

    with _limit_lock:
        if not _limit_holders:
            _limit = threadpool_limits(1, user_api="blas")
        _limit_holders += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_holders -= 1
            if not _limit_holders:
                _limit.restore_original_limits()


@cache
def _routine(module: str, name: str, n_arguments: int) -> Any:
    import importlib

    capsule = importlib.import_module(f"scipy.linalg.{module}").__pyx_capi__[name]
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer_of(capsule, name_of(capsule))
    return ctypes.CFUNCTYPE(None, *([ctypes.c_void_p] * n_arguments))(address)


def _integer(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _letter(value: bytes) -> Any:
    return ctypes.byref(ctypes.c_char(value))


def cholesky_in_place(a: Array) -> bool:
    """The Cholesky factor of the lower triangle of `a` (n, n), in place; False where it is not positive definite."""
    n = a.shape[0]
    info = ctypes.c_int(0)
    _routine("cython_lapack", "dpotrf", 5)(
        _letter(b"U"), _integer(n), a.ctypes.data, _integer(a.shape[1]), ctypes.byref(info)
    )
    return info.value == 0


def inverse_from_factor_in_place(low: Array) -> None:
    """The lower triangle of ``(L L')^-1`` in place of L."""
    n = low.shape[0]
    info = ctypes.c_int(0)
    _routine("cython_lapack", "dpotri", 5)(
        _letter(b"U"), _integer(n), low.ctypes.data, _integer(low.shape[1]), ctypes.byref(info)
    )


def solve_triangular_in_place(low: Array, right: Array, *, transposed: bool = False) -> None:
    """``L^-1 right`` (or ``L^-T right``) in place of `right` (n, k)."""
    n, k = right.shape
    if not k or not n:
        return
    one = ctypes.byref(ctypes.c_double(1.0))
    _routine("cython_blas", "dtrsm", 11)(
        _letter(b"R"), _letter(b"U"), _letter(b"T" if transposed else b"N"), _letter(b"N"),
        _integer(k), _integer(n), one, low.ctypes.data, _integer(low.shape[1]), right.ctypes.data, _integer(k),
    )  # fmt: skip
