"""The one door of kernels: what is compiled, what is kept, and when it is compiled again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from partialpool.algebra import jit

HELPERS = """
from partialpool.algebra.jit import helper

FACTOR = 2.0

@helper
def scaled(x):
    return FACTOR * x
"""

KERNELS = """
import numpy as np
from partialpool.algebra.jit import kernel
from small import helpers
from small.helpers import scaled

@kernel("float64(float64[::1])")
def total(values):
    result = 0.0
    for i in range(values.shape[0]):
        result += scaled(values[i])
    return result

@kernel("float64(float64[::1])", "float64(int64[::1])")
def twice(values):
    return 2.0 * values.sum()

@kernel("Tuple((float64[::1], float64))(float64[::1])")
def through_a_kernel(values):
    copy = values + 1.0
    return copy, total(copy) + helpers.scaled(1.0)

@kernel("float64[::1,:](float64[:,::1])")
def solved(a):
    if a.shape[0] != a.shape[1]:
        raise ValueError("a must be square")
    return np.linalg.inv(a)
"""

USE = """
import sys
from partialpool.algebra import jit
import small.kernels as k
assert "numba" not in sys.modules, "declaring a kernel imports numba"
import numpy as np
values = np.arange(4.0)
print(k.total(values), k.twice(values), k.twice(np.arange(4)), k.through_a_kernel(values)[1], jit.compiled_count())
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package of kernels in a folder of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "kernels.py").write_text(KERNELS)
    return folder


@pytest.fixture
def start(tmp_path: Path, package: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that uses the small package, with a cache folder of its own."""
    source = Path(jit.__file__).resolve().parents[2]

    def popen(code: str = USE, **environment: str) -> subprocess.Popen[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "PARTIALPOOL_"))}
        settings = {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(source)]),
            "PARTIALPOOL_CACHE": str(tmp_path / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",  # an edit within a second would not be seen by Python itself
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


def finish(process: subprocess.Popen[str]) -> tuple[list[float], str]:
    """The numbers that a process printed, and what it said on stderr."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return [float(word) for word in out.split()], err


EXPECTED = [12.0, 12.0, 12.0, 22.0]
SIGNATURES = 4  # total, twice for two types, through_a_kernel


def test_a_second_process_compiles_nothing(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    first, said = finish(start())
    assert first == [*EXPECTED, SIGNATURES]
    assert said.count("partialpool: compiling") == 1
    assert str(tmp_path / "cache") in said
    second, said = finish(start())
    assert second == [*EXPECTED, 0]
    assert said == ""


def test_an_edited_helper_is_compiled_again(start: Callable[..., subprocess.Popen[str]], package: Path) -> None:
    finish(start())
    (package / "helpers.py").write_text(HELPERS.replace("FACTOR * x", "FACTOR * x + 1.0"))
    numbers, _ = finish(start())
    # `twice` reaches no helper and is loaded; `total` and its caller are not.
    assert numbers == [16.0, 12.0, 12.0, 27.0, 2]


def test_an_edited_constant_is_compiled_again(start: Callable[..., subprocess.Popen[str]], package: Path) -> None:
    finish(start())
    (package / "helpers.py").write_text(HELPERS.replace("2.0", "3.0"))
    numbers, _ = finish(start())
    assert numbers == [18.0, 12.0, 12.0, 33.0, 2]


def test_an_edited_option_is_compiled_again(start: Callable[..., subprocess.Popen[str]], package: Path) -> None:
    finish(start())
    edited = KERNELS.replace('"float64(int64[::1])"', '"float64(int64[::1])", fastmath={"reassoc", "contract"}')
    (package / "kernels.py").write_text(edited)
    assert finish(start())[0] == [*EXPECTED, 2]


def test_a_folder_that_cannot_be_written(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    numbers, said = finish(start(PARTIALPOOL_CACHE=str(tmp_path / "file" / "cache")))
    assert numbers == [*EXPECTED, SIGNATURES]
    assert "not kept" in said


def test_two_processes_at_once(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    running = [start(), start()]
    for process in running:
        assert finish(process)[0][:4] == EXPECTED
    assert finish(start())[0] == [*EXPECTED, 0]
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_damaged_file_is_replaced(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    finish(start())
    files = sorted((tmp_path / "cache").rglob("*.kernel"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[1].write_bytes(b"")
    assert finish(start())[0] == [*EXPECTED, 2]
    assert finish(start())[0] == [*EXPECTED, 0]


def test_numba_disabled(start: Callable[..., subprocess.Popen[str]]) -> None:
    code = USE + '\nassert "numba" not in sys.modules'
    assert finish(start(code, NUMBA_DISABLE_JIT="1"))[0] == [*EXPECTED, 0]


def test_lapack_and_exceptions_survive_the_cache(start: Callable[..., subprocess.Popen[str]]) -> None:
    code = """
    import numpy as np, small.kernels as k
    from partialpool.algebra import jit
    inverse = k.solved(np.array([[2.0, 0.0], [1.0, 4.0]]))
    assert np.allclose(inverse, [[0.5, 0.0], [-0.125, 0.25]]), inverse
    try:
        k.solved(np.ones((2, 3)))
    except ValueError as error:
        assert str(error) == "a must be square"
    else:
        raise AssertionError("no error")
    print(jit.compiled_count())
    """
    assert finish(start(code))[0] == [1]
    assert finish(start(code))[0] == [0]


def test_loading_a_kernel_needs_no_registries_of_numba(start: Callable[..., subprocess.Popen[str]]) -> None:
    finish(start())
    # numba.np.linalg comes with the registries, whose import takes longer than that of numba itself.
    code = USE + '\nassert "numba.np.linalg" not in sys.modules and "scipy.linalg" not in sys.modules'
    assert finish(start(code))[0] == [*EXPECTED, 0]


def test_warm_up_compiles_every_declared_kernel(start: Callable[..., subprocess.Popen[str]]) -> None:
    code = 'from partialpool.algebra import jit\nprint(jit.warm_up(["small.kernels"]), jit.warm_up(["small.kernels"]))'
    assert finish(start(code))[0] == [SIGNATURES + 1, 0]
    assert finish(start(code))[0] == [0, 0]


def test_kernels_of_a_factory_do_not_mix(start: Callable[..., subprocess.Popen[str]]) -> None:
    code = """
    import sys
    from partialpool.algebra import jit

    def made(k):
        @jit.helper
        def power(x):
            return x ** k

        @jit.kernel("float64(float64)", variant=f"power{k}")
        def family(x):
            return power(x)

        return family

    print(*[made(int(k))(3.0) for k in sys.argv[1:] or "23"], jit.compiled_count())
    """
    assert finish(start(code))[0] == [9.0, 27.0, 2]
    assert finish(start(code))[0] == [9.0, 27.0, 0]


def test_kernels_run_in_threads_at_once(start: Callable[..., subprocess.Popen[str]]) -> None:
    code = """
    import numpy as np, small.kernels as k
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        print(*pool.map(lambda i: k.total(np.full(3, float(i))), range(8)))
    """
    assert finish(start(code))[0] == [6.0 * i for i in range(8)]


@jit.kernel("float64(float64[::1], int64)")
def shifted_sum(values: np.ndarray, shift: int) -> float:
    """The sum of values, each shifted."""
    result = 0.0
    for i in range(values.shape[0]):
        result += values[i] / shift
    return result


def test_calls_and_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARTIALPOOL_CACHE", str(tmp_path))
    with jit.silent():
        assert shifted_sum(np.ones(3), 1) == 3.0
    assert shifted_sum(np.ones(3), shift=1) == 3.0
    assert shifted_sum(np.ones(3), 0) == np.inf  # as numpy divides
    for wrong in (np.ones(6)[::2], np.ones(3, dtype=np.float32), np.ones((3, 1))):
        with pytest.raises(TypeError, match="argument type"):
            shifted_sum(wrong, 1)
    assert shifted_sum.__name__ == "shifted_sum"
    assert shifted_sum.__doc__ == "The sum of values, each shifted."


def test_a_kernel_without_types_is_refused() -> None:
    with pytest.raises(TypeError, match="needs its types"):
        jit.kernel()
    with pytest.raises(TypeError, match="needs its types"):
        jit.kernel(len)  # type: ignore[arg-type]


def test_a_wrong_signature_says_which_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARTIALPOOL_CACHE", str(tmp_path))

    @jit.kernel("float64(float64")
    def mistyped(x: float) -> float:
        return x

    with jit.silent(), pytest.raises(TypeError, match=r"mistyped.*float64\(float64"):
        mistyped(1.0)
    jit._declared.remove(mistyped)  # type: ignore[arg-type]


def test_the_line_about_compiling_can_be_sent_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARTIALPOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "_announced", False)
    lines: list[str] = []

    @jit.kernel("int64(int64)")
    def doubled(x: int) -> int:
        return 2 * x

    with jit.announce_to(lines.append):
        assert doubled(4) == 8
    assert len(lines) == 1
    assert str(tmp_path) in lines[0]


def test_old_versions_of_a_kernel_are_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARTIALPOOL_CACHE", str(tmp_path))
    with jit.silent():
        for step in range(10):

            @jit.kernel("int64(int64)")
            def stepped(x: int) -> int:
                return x + step  # noqa: B023

            assert stepped(4) == 4 + step
    assert len(list(tmp_path.rglob("*.kernel"))) <= 8


@pytest.mark.parametrize(
    ("platform", "environment", "tail"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, ("x", "cache", "partialpool")),
        ("linux", {"XDG_CACHE_HOME": "relative"}, (".cache", "partialpool")),
        ("linux", {}, (".cache", "partialpool")),
        ("darwin", {}, ("Library", "Caches", "partialpool")),
        ("win32", {}, ("AppData", "Local", "partialpool", "cache")),
        ("linux", {"PARTIALPOOL_CACHE": "~/mine"}, ("mine",)),
    ],
)
def test_the_folder_of_each_platform(
    platform: str, environment: dict[str, str], tail: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PARTIALPOOL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jit.sys, "platform", platform)
    assert jit.cache_folder().parts[-len(tail) :] == tail
