"""The one door through which every numerical kernel is compiled, cached and loaded.

A kernel is a plain Python function with declared argument types::

    @helper
    def squared(x: float) -> float:
        return x * x


    @kernel("float64(float64[::1])")
    def sum_of_squares(values):
        total = 0.0
        for i in range(values.shape[0]):
            total += squared(values[i])
        return total

`kernel` compiles eagerly for the declared types and for no others, at the first call; `helper` marks a function that
is only ever compiled into the kernels that call it. Neither imports numba before a kernel is called.

Why not numba's own cache: it keys a kernel by its own file, so that the callers of an edited helper are left stale; it
confuses variants that differ in options or in a closed-over function; and loading through it costs a refresh of all of
numba's registries (0.2-0.35 s once) and 2.5 ms a kernel. Here the key is a hash of everything the kernel's machine code
depends on (the bytecode, options and constants of the kernel and of every helper it reaches; the versions of numba,
llvmlite and Python; the processor), and a cached kernel is linked straight from its object code into an engine of its
own, without the registries.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import importlib
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, overload

from partialpool.algebra.object_cache import Overload, load, machine_key, optimised_as_a_whole, save

__all__ = ["announce_to", "cache_folder", "compiled_count", "helper", "kernel", "silent", "warm_up"]

Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.RLock()
_declared: list[_Kernel] = []
_compiled = 0
_announced = False


class _Options(NamedTuple):
    """What a function is compiled with; part of its key."""

    fastmath: tuple[str, ...] | bool
    variant: str
    inline: bool = False

    def for_numba(self) -> dict[str, Any]:
        fastmath = set(self.fastmath) if isinstance(self.fastmath, tuple) else self.fastmath
        options = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": fastmath}
        return {**options, "forceinline": True} if self.inline else options


# --------------------------------------------------------------------------------------------------------------------
# The two decorators
# --------------------------------------------------------------------------------------------------------------------


class _Compilable:
    """A Python function that numba compiles into its callers."""

    def __init__(self, function: Callable[..., Any], options: _Options) -> None:
        self.py_func = function
        self.options = options
        self._inner: Any = None
        for name in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))
        self.__wrapped__ = function

    @property
    def _numba_type_(self) -> Any:
        """How numba sees this object where a kernel calls it: a function to compile along with the kernel."""
        with _lock:
            if self._inner is None:
                self._inner = _new_dispatcher(self)
            return self._inner._numba_type_


class _Helper(_Compilable):
    """See `helper`. Called from Python it runs as Python, which is slow and meant for tests."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.py_func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<helper {self.py_func.__module__}.{self.py_func.__qualname__}>"


class _Kernel(_Compilable):
    """See `kernel`. The first call replaces `entry` by numba's dispatcher, which holds the declared types only."""

    def __init__(self, function: Callable[..., Any], signatures: tuple[str, ...], options: _Options) -> None:
        super().__init__(function, options)
        self.signatures = signatures
        self.entry: Callable[..., Any] = self._prepare_and_call
        _declared.append(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.entry(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<kernel {self.name} {' '.join(self.signatures)}>"

    @property
    def name(self) -> str:
        return f"{self.py_func.__module__}.{self.py_func.__qualname__}"

    @property
    def ready(self) -> bool:
        return self.entry != self._prepare_and_call

    def prepare(self) -> None:
        """Load the kernel from the cache, or compile it, unless that has been done."""
        with _lock:
            if not self.ready:
                self.entry = self.py_func if _jit_disabled() else _build(self)

    def _prepare_and_call(self, *args: Any, **kwargs: Any) -> Any:
        self.prepare()
        return self.entry(*args, **kwargs)


def kernel(
    *signatures: str, fastmath: bool | Iterable[str] = False, variant: str = ""
) -> Callable[[Function], Function]:
    """Declare a kernel: a function compiled once for the given types and kept in the user's cache.

    It is compiled (or loaded) at its first call, releases the interpreter lock while it runs, divides by zero as numpy
    does, and checks no bounds. A call with other types raises TypeError. A kernel may call helpers and other kernels
    of any module; what they become is part of its own machine code.

    Parameters
    ----------
    *signatures : str
        numba signatures with the type of the result, such as ``"float64(float64[::1], int64)"``.
    fastmath : bool or iterable of str
        Freedoms given to the compiler, such as ``{"contract", "reassoc"}``. None by default.
    variant : str
        A name for this variant of a kernel made by a factory function. What the function closes over is part of the
        key by itself; the name makes the files of the cache readable.

    Raises
    ------
    TypeError
        If no signature is given, or one is not a string.

    Examples
    --------
    >>> from partialpool.algebra.jit import kernel
    >>> @kernel("float64(float64[::1])")
    ... def total(values):
    ...     result = 0.0
    ...     for i in range(values.shape[0]):
    ...         result += values[i]
    ...     return result
    >>> import numpy as np
    >>> float(total(np.arange(4.0)))
    6.0
    """
    if not signatures or not all(isinstance(signature, str) for signature in signatures):
        raise TypeError('kernel needs its types: write @kernel("float64(float64[::1])")')
    options = _Options(_as_key(fastmath), variant)

    def declare(function: Function) -> Function:
        return cast(Function, _Kernel(function, signatures, options))

    return declare


@overload
def helper(function: Function, /) -> Function: ...
@overload
def helper(*, fastmath: bool | Iterable[str] = False, inline: bool = False) -> Callable[[Function], Function]: ...
def helper(function: Any = None, /, *, fastmath: bool | Iterable[str] = False, inline: bool = False) -> Any:
    """Declare a function that kernels call and that is compiled into them, never alone.

    It has no types of its own: it takes those of each caller. It may be defined in any module.

    Parameters
    ----------
    fastmath : bool or iterable of str
        As for `kernel`; the caller's own freedoms do not reach into a helper.
    inline : bool
        Always merge it into its callers. A loop around a call cannot become vector instructions; the compiler merges
        small helpers by itself, large ones only so.

    Examples
    --------
    >>> from partialpool.algebra.jit import helper
    >>> @helper
    ... def squared(x):
    ...     return x * x
    >>> squared(3.0)
    9.0
    """
    options = _Options(_as_key(fastmath), "", inline)
    if function is not None:
        return _Helper(function, options)
    return lambda python_function: _Helper(python_function, options)


def _as_key(fastmath: bool | Iterable[str]) -> tuple[str, ...] | bool:
    return fastmath if isinstance(fastmath, bool) else tuple(sorted(fastmath))


# --------------------------------------------------------------------------------------------------------------------
# What users and tests ask
# --------------------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder that keeps compiled kernels: ``$PARTIALPOOL_CACHE``, or partialpool's place in the user's cache.

    Examples
    --------
    >>> from partialpool.algebra.jit import cache_folder
    >>> cache_folder().is_absolute()
    True
    """
    chosen = os.environ.get("PARTIALPOOL_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
        return base.absolute() / "partialpool" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "partialpool"
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(xdg) if xdg and os.path.isabs(xdg) else Path.home() / ".cache"
    return base.absolute() / "partialpool"


def compiled_count() -> int:
    """How many kernel signatures this process compiled, rather than loaded from the cache.

    Examples
    --------
    >>> from partialpool.algebra.jit import compiled_count
    >>> compiled_count() >= 0
    True
    """
    return _compiled


def warm_up(modules: Iterable[str] | None = None) -> int:
    """Load every declared kernel, compiling those that the cache does not hold; return how many were compiled.

    Parameters
    ----------
    modules : iterable of str, optional
        Names of modules to import first, so that their kernels are declared. By default the modules of partialpool
        that declare kernels.

    Examples
    --------
    >>> from partialpool.algebra.jit import warm_up
    >>> warm_up(modules=[]) >= 0
    True
    """
    for name in _declaring_modules() if modules is None else modules:
        importlib.import_module(name)
    before = compiled_count()
    for declared in list(_declared):
        declared.prepare()
    return compiled_count() - before


def _declaring_modules() -> list[str]:
    """The modules of partialpool whose text declares a kernel."""
    package = Path(__file__).resolve().parent.parent
    names = []
    for path in sorted(package.rglob("*.py")):
        if path.name != "jit.py" and "@kernel(" in path.read_text(encoding="utf-8"):
            parts = (package.name, *path.relative_to(package).with_suffix("").parts)
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


def _to_stderr(line: str) -> None:
    if sys.stderr is not None:  # as under pythonw
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


_announce: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar(
    "partialpool_announce", default=_to_stderr
)


@contextlib.contextmanager
def announce_to(hook: Callable[[str], None] | None) -> Iterator[None]:
    """Within this context, send the line that says that kernels are being compiled to `hook` (None: to nobody).

    Examples
    --------
    >>> from partialpool.algebra.jit import announce_to
    >>> lines = []
    >>> with announce_to(lines.append):
    ...     pass
    """
    token = _announce.set(hook)
    try:
        yield
    finally:
        _announce.reset(token)


def silent() -> contextlib.AbstractContextManager[None]:
    """Within this context, kernels are compiled without a word.

    Examples
    --------
    >>> from partialpool.algebra.jit import silent
    >>> with silent():
    ...     pass
    """
    return announce_to(None)


def _say_that_compilation_starts(folder: Path | None) -> None:
    """One line per process, and only where something is compiled."""
    global _announced
    hook = _announce.get()
    if _announced or hook is None:
        return
    _announced = True
    where = f"they are kept in {folder.parent}" if folder else "no cache folder is writable, so they are not kept"
    hook(f"partialpool: compiling numerical kernels, once (some 10 to 20 s); {where}")


# --------------------------------------------------------------------------------------------------------------------
# The key: everything that the machine code depends on
# --------------------------------------------------------------------------------------------------------------------


def _describe(function: Any, seen: set[int], parts: list[str]) -> None:
    """Append to `parts` what `function` compiles to: its bytecode, constants, and the same of all that it reaches."""
    if isinstance(function, _Compilable):
        parts.append(repr(function.options))
        function = function.py_func
    if id(function) in seen:
        parts.append("again " + function.__qualname__)
        return
    seen.add(id(function))
    parts.append(f"{function.__module__}.{function.__qualname__}{function.__defaults__!r}")
    _describe_code(function.__code__, function.__globals__, seen, parts)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        parts.append("closure " + name)
        _describe_value(cell.cell_contents, seen, parts)


def _describe_code(code: types.CodeType, names: dict[str, Any], seen: set[int], parts: list[str]) -> None:
    parts += [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _describe_code(constant, names, seen, parts)
        else:
            parts.append(repr(constant))
    for name in code.co_names:
        value = names.get(name)
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] not in _FOREIGN:
            # A module of ours, as in `blocks.helper(x)`: what is taken from it counts.
            for attribute in code.co_names:
                if hasattr(value, attribute):
                    parts.append(f"{value.__name__}.{attribute}")
                    _describe_value(getattr(value, attribute), seen, parts)
        elif name in names:
            parts.append("global " + name)
            _describe_value(value, seen, parts)


_FOREIGN = frozenset({"numpy", "math", "cmath", "numba", "scipy", "builtins", "operator"})


def _describe_value(value: Any, seen: set[int], parts: list[str]) -> None:
    if isinstance(value, (_Compilable, types.FunctionType)):
        _describe(value, seen, parts)
    elif isinstance(value, tuple):
        for element in value:
            _describe_value(element, seen, parts)
    elif hasattr(value, "tobytes") and hasattr(value, "dtype"):
        parts.append(f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}")
    elif isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        parts.append(repr(value))
    else:  # modules, types, functions of numpy: known by their names
        parts.append(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}")


def _file_name(kernel_: _Kernel, signature: str) -> str:
    parts = [signature]
    _describe(kernel_, set(), parts)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return f"{_file_stem(kernel_, signature)}{digest}.kernel"


def _file_stem(kernel_: _Kernel, signature: str) -> str:
    """The part of the file's name that stays when the kernel is edited."""
    variant = f"-{kernel_.options.variant}" if kernel_.options.variant else ""
    readable = "".join(c if c.isalnum() or c in "._-" else "_" for c in kernel_.name + variant)[-80:]
    types_ = hashlib.sha256(f"{kernel_.name}{variant}{signature}".encode()).hexdigest()[:8]
    return f"{readable}-{types_}-"


def _writable_folder() -> Path | None:
    """The folder of this machine's kernels, made if need be; None where nothing can be written nor read."""
    try:
        folder = cache_folder() / f"kernels-{machine_key()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, AttributeError):  # not writable; no home is known; numba's internals have moved
        return None
    return folder


# --------------------------------------------------------------------------------------------------------------------
# Building one kernel: load it, or compile it and keep it
# --------------------------------------------------------------------------------------------------------------------


def _jit_disabled() -> bool:
    loaded = sys.modules.get("numba")
    if loaded is not None and hasattr(loaded, "config"):
        return bool(loaded.config.DISABLE_JIT)
    return os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def _new_dispatcher(function: _Compilable) -> Any:
    import numba

    return numba.njit(**function.options.for_numba())(function.py_func)


def _build(kernel_: _Kernel) -> Callable[..., Any]:
    """A dispatcher of numba's that holds the declared signatures of a kernel and is closed to others."""
    from numba.core.compiler_lock import global_compiler_lock

    folder = _writable_folder()
    dispatcher = _new_dispatcher(kernel_)
    with global_compiler_lock:
        for signature in kernel_.signatures:
            path = folder / _file_name(kernel_, signature) if folder else None
            loaded = load(path, kernel_.py_func) if path else None
            dispatcher.add_overload(loaded or _compile(kernel_, signature, path))
    dispatcher.disable_compile()
    return cast(Callable[..., Any], dispatcher)


def _compile(kernel_: _Kernel, signature: str, path: Path | None) -> Overload:
    """Compile one declared signature and keep it in the cache."""
    global _compiled
    from numba.core import sigutils

    _say_that_compilation_starts(path.parent if path else None)
    try:
        arguments, _ = sigutils.normalize_signature(signature)
    except Exception as error:  # numba evaluates the text: anything may be raised
        raise TypeError(f"the types of kernel {kernel_.name} cannot be read: {signature!r} ({error})") from error
    compiler = _new_dispatcher(kernel_)
    with optimised_as_a_whole(kernel_.py_func.__qualname__):
        compiler.compile(signature)
    _compiled += 1
    compiled = compiler.overloads[tuple(arguments)]
    if path is not None:
        save(path, compiled, _file_stem(kernel_, signature))
    return Overload(compiled.signature, compiled.entry_point)
