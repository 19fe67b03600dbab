"""Fresh processes: the cases that are measured in one, and whole programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.data import ROOT


class CaseFailed(RuntimeError):
    """A case did not finish; the message is the end of what it printed."""


def environment(**extra: str) -> dict[str, str]:
    """The environment of a measured process: this checkout importable, no screen."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    out = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "MPLBACKEND": "Agg"}
    return {**out, **extra}


def run_case(name: str, *, timeout: float = 1800, python: str = sys.executable, env: dict[str, str] | None = None,
             **arguments: Any) -> dict[str, Any]:  # fmt: skip
    """Run a case of `cases` in a fresh process and read its answer."""
    command = [python, "-m", "benchmarks.cases", name, json.dumps(arguments)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=ROOT, env=env or environment(), timeout=timeout
        )
    except subprocess.TimeoutExpired as late:
        raise CaseFailed(f"{name} did not finish in {timeout:,.0f} s") from late
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CaseFailed(f"{name}: {lines[-1]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@dataclass(frozen=True)
class Program:
    """A program that ran: wall time from the interpreter's start to its end, processor time, standard error."""

    seconds: float
    cpu: float
    said: str


def run_program(code: str, *, python: str = sys.executable, timeout: float = 900, **extra: str) -> Program:
    """Run a program given as text in a fresh process."""
    start, cpu = time.perf_counter(), _children_cpu()
    try:
        done = subprocess.run(
            [python, "-c", code],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(**extra),
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as late:
        raise CaseFailed(f"did not finish in {timeout:,.0f} s") from late
    seconds, cpu = time.perf_counter() - start, _children_cpu() - cpu
    if done.returncode:
        raise CaseFailed((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return Program(seconds, cpu, done.stderr)


def _children_cpu() -> float:
    """Processor time of all processes started here that have ended."""
    times = os.times()
    return times.children_user + times.children_system
