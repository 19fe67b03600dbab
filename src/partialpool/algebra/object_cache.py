"""The cache of compiled kernels on disk: one file a kernel and signature, linked straight from its object code.

`algebra/jit.py` decides what is compiled and under which key; here is what depends on numba's inner workings, in one
place: taking the object code out of a compilation, and putting it back into a process without loading numba's
registries. Where a later numba has moved something that is used here, nothing is found in the cache and kernels are
compiled in memory: slow, said on stderr, and right.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import pickle
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_FORMAT = 4  # of the files; raise it when `_Payload` or the options of compilation change their meaning
_KEPT_VERSIONS = 8  # files kept for one kernel, so that an edited kernel does not fill the disk
_INTERNALS_MOVED = (AttributeError, ImportError, TypeError)


class _Payload(NamedTuple):
    """What the cache keeps of one compiled signature."""

    object_code: bytes
    wrapper: str  # symbol of the entry point that takes Python objects
    environments: tuple[tuple[str, tuple[Any, ...]], ...]  # symbol and constants, the kernel's own first
    signature: Any
    external: tuple[str, ...]  # symbols that the process has to provide
    reload_init: tuple[Any, ...]


class Overload(NamedTuple):
    """The part of numba's CompileResult that its dispatcher looks at."""

    signature: Any
    entry_point: Any
    objectmode: bool = False


@functools.cache
def machine_key() -> str:
    """A hash of what all kernels of this process share: versions, processor, settings of numba."""
    import llvmlite
    import llvmlite.binding as llvm
    import numba
    from numba.core import codegen, config

    parts = [
        _FORMAT,
        numba.__version__,
        llvmlite.__version__,
        sys.version,
        sys.implementation.cache_tag,
        llvm.get_process_triple(),
        config.CPU_NAME or llvm.get_host_cpu_name(),
        codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES,
        *(str(getattr(config, name, None)) for name in _SETTINGS),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_SETTINGS = (
    "OPT",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "USING_SVML",
    "LLVM_REFPRUNE_PASS",
)


@contextlib.contextmanager
def optimised_as_a_whole(name: str) -> Iterator[None]:
    """Within this context, LLVM's optimiser works on the library called `name` only.

    numba optimises the library of each helper and then, with all of them linked in, that of the kernel. Without the
    first of these, kernels compile in two thirds of the time and run 1.5 to 2.8 times as fast (measured on those of
    `algebra/blocks.py`, two cores, numba 0.68). Needs numba's compiler lock.
    """
    from numba.core.registry import cpu_target

    cpu_target.target_context.refresh()  # what this compiles for numba itself is not ours to change
    codegen = cpu_target.target_context.codegen()
    original = getattr(codegen, "_library_class", None)
    if original is None:
        yield
        return

    class Library(original):  # type: ignore[misc, valid-type]
        def _optimize_final_module(self) -> None:
            if self.name == name:
                super()._optimize_final_module()

    codegen._library_class = Library
    try:
        yield
    finally:
        codegen._library_class = original


def save(path: Path, compiled: Any, stem: str) -> None:
    """Keep one compiled signature at `path`, if it can be kept, and drop the oldest of those that begin by `stem`."""
    try:
        if compiled.library.has_dynamic_globals or compiled.lifted:  # addresses of this process are baked in
            return
        content = _serialised(compiled)
    except _INTERNALS_MOVED:
        return
    # Under a passing name first, so that no other process ever reads half a file.
    passing = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        passing.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(passing, path)
        versions = sorted(path.parent.glob(f"{stem}*.kernel"), key=lambda file: file.stat().st_mtime)
        for old in versions[:-_KEPT_VERSIONS]:
            old.unlink()
    except OSError:  # a full disk, a folder that is read only, a file held by another process on Windows
        with contextlib.suppress(OSError):
            passing.unlink(missing_ok=True)


def _serialised(compiled: Any) -> bytes:
    from numba.core.serialize import dumps

    module = compiled.library._final_module
    external = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    external += [g.name for g in module.global_variables if g.is_declaration]
    environments = {compiled.target_context.get_env_name(compiled.fndesc): compiled.environment}
    for environment in compiled._find_referenced_environments():
        environments.setdefault(environment.env_name, environment)
    payload = _Payload(
        object_code=compiled.library._get_compiled_object(),
        wrapper=compiled.fndesc.llvm_cpython_wrapper_name,
        environments=tuple((name, tuple(environment.consts)) for name, environment in environments.items()),
        signature=compiled.signature,
        external=tuple(external),
        reload_init=tuple(compiled.reload_init),
    )
    content: bytes = dumps(tuple(payload))
    return content


def load(path: Path, function: Callable[..., Any]) -> Overload | None:
    """One cached signature, linked and ready; None where there is none, or none that can be trusted."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    digest, content = raw[:32], raw[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    try:
        _prepare_runtime()
        payload = _Payload(*pickle.loads(content))
        return _link(payload, function) if _all_known(payload.external) else None
    except _INTERNALS_MOVED:
        return None


@functools.cache
def _prepare_runtime() -> None:
    """Offer the functions of numba's runtime to the linker, without loading its registries or compiling anything."""
    import llvmlite.binding as llvm
    from numba.core.registry import cpu_target
    from numba.core.runtime import _nrt_python

    _ = cpu_target.target_context  # its making registers numba's helpers and the mathematical functions
    for name, address in _nrt_python.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else "NRT_" + name, address)


def _all_known(names: tuple[str, ...]) -> bool:
    """Whether the process provides all symbols: LLVM would end the process over one that it does not find."""
    import llvmlite.binding as llvm

    if all(llvm.address_of_symbol(name) for name in names):
        return True
    from numba.core.registry import cpu_target

    cpu_target.target_context.refresh()  # the registries add a few rare symbols
    return all(llvm.address_of_symbol(name) for name in names)


def _link(payload: _Payload, function: Callable[..., Any]) -> Overload:
    """Link object code in an engine of its own, where its helpers cannot meet another kernel's of the same name."""
    import llvmlite.binding as llvm
    from numba import _dynfunc
    from numba.core.environment import Environment

    engine = _new_engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(payload.object_code))
    engine.finalize_object()
    for initialise in payload.reload_init:
        initialise()
    environments = []
    for name, constants in payload.environments:
        # numba's own loading imports the module of every function that was inlined, scipy.linalg among them; machine
        # code without object mode uses the constants only.
        environment = Environment({})
        environment.env_name = name
        environment.consts.extend(constants)
        ctypes.c_void_p.from_address(engine.get_global_value_address(name)).value = id(environment)
        environments.append(environment)
    entry = _dynfunc.make_function(
        sys.modules.get(function.__module__, sys),
        function.__name__,
        function.__doc__ or "",
        engine.get_function_address(payload.wrapper),
        environments[0],
        (engine, *environments),
    )
    return Overload(payload.signature, entry)


def _new_engine() -> Any:
    import llvmlite.binding as llvm
    from numba.core import config

    module = llvm.parse_assembly("")
    module.triple = llvm.get_process_triple()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(**_machine_options())
    return llvm.create_mcjit_compiler(module, machine, use_lmm=config.USE_LLVMLITE_MEMORY_MANAGER)


@functools.cache
def _machine_options() -> dict[str, Any]:
    """numba's own options of the target machine, which decide how an object is laid out in memory."""
    from numba.core.registry import cpu_target

    options: dict[str, Any] = {"opt": 0}
    codegen = cpu_target.target_context.codegen()
    options["features"] = codegen._tm_features
    codegen._customize_tm_options(options)
    return options
