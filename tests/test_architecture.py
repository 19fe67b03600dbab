"""The rules of docs/architecture.md that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import partialpool.errors

SOURCE = Path(partialpool.errors.__file__).resolve().parent

# In the order of import: a module imports from its own room and from rooms above it.
ROOMS = (
    "_version",
    "errors",
    "algebra",
    "spec",
    "design",
    "model",
    "inference",
    "present",
    "posterior",
    "pooling",
    "levels",
    "criticism",
    "report",
    "datasets",
    "cli",
)
# The doors: their functions may import from later rooms. The root is the public face and is above no one.
DOORS = {"model.py", "posterior/posterior.py", "__init__.py", "__main__.py"}
FACES = {"__init__.py", "__main__.py"}
HEAVY = ("numba", "pandas", "formulaic", "scipy", "arviz", "arviz_base", "matplotlib", "nutpie", "duckdb", "pyarrow")
LONGEST = 600

MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def room_of(relative: str) -> str:
    return relative.split("/", maxsplit=1)[0].removesuffix(".py")


def imports_of(relative: str) -> Iterator[tuple[str, int, bool, bool]]:
    """(module imported, line, inside a function, for type checkers only) of each import of partialpool's own."""
    tree = ast.parse((SOURCE / relative).read_text(encoding="utf-8"))
    package = ["partialpool", *relative.split("/")[:-1]]

    def visit(node: ast.AST, inside: bool, typing_only: bool) -> Iterator[tuple[str, int, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, inside, typing_only
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                stem = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield f"{stem}.{alias.name}", child.lineno, inside, typing_only
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from visit(child, inside or function, typing_only or checking)

    for name, line, inside, typing_only in visit(tree, False, False):
        if name.split(".")[0] == "partialpool":
            yield name, line, inside, typing_only


def upward_imports(relative: str) -> list[str]:
    """Each import of `relative` that its place in the order of rooms forbids, in words."""
    if relative in FACES:
        return []
    own = ROOMS.index(room_of(relative))
    wrong = []
    for name, line, inside, typing_only in imports_of(relative):
        parts = name.split(".")
        room = parts[1] if len(parts) > 1 else ""
        if room not in ROOMS:
            # `from partialpool import load`: the public face imports everything, so it is above no room.
            if not (inside and relative in DOORS | {"cli.py"}):
                wrong.append(f"{relative}:{line} imports {name} from the package's face")
        elif ROOMS.index(room) > own and not typing_only and not (inside and relative in DOORS):
            wrong.append(f"{relative}:{line} ({room_of(relative)}) imports {name} from a later room")
    return wrong


def test_every_module_lives_in_a_room() -> None:
    strays = [m for m in MODULES if m not in FACES and room_of(m) not in ROOMS]
    assert not strays, f"not in the plan of the house: {strays}"


def test_imports_go_one_way() -> None:
    wrong = [line for module in MODULES if module not in FACES for line in upward_imports(module)]
    assert not wrong, "\n".join(wrong)


def test_the_check_of_imports_sees_an_upward_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "bad.py").write_text(
        "from ..posterior import posterior\ndef f():\n    from partialpool.model import Model\n"
    )
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    assert len(upward_imports("spec/bad.py")) == 2


def test_no_file_is_too_long() -> None:
    lengths = {module: len((SOURCE / module).read_text(encoding="utf-8").splitlines()) for module in MODULES}
    long = {module: n for module, n in lengths.items() if n > LONGEST}
    assert not long, f"longer than {LONGEST} lines: {long}"


def test_no_public_function_bears_the_name_of_a_top_level_module() -> None:
    taken = {room_of(module) for module in MODULES} - {"__init__", "__main__"}
    clashes = []
    for module in MODULES:
        tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in taken:
                clashes.append(f"{module}:{node.lineno} {node.name}")
    assert not clashes, clashes


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, partialpool\nprint(*[name for name in {HEAVY!r} if name in sys.modules])\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_numba_is_imported_through_one_door() -> None:
    offenders = []
    for module in MODULES:
        if module in ("algebra/jit.py", "algebra/object_cache.py"):
            continue
        for node in ast.walk(ast.parse((SOURCE / module).read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] in ("numba", "llvmlite") for name in names):
                offenders.append(f"{module}:{node.lineno}")  # type: ignore[attr-defined]
    assert not offenders, f"kernels are compiled by algebra/jit.py only: {offenders}"
