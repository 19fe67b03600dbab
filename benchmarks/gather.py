"""Several runs of a case, and what is said of them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.process import CaseFailed


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gather(work: Callable[[], Any], times: int) -> tuple[list[Any], str]:
    """Answers of several runs, and the reason where one failed."""
    out = []
    for _ in range(times):
        try:
            out.append(work())
        except CaseFailed as failure:
            say(f"  failed: {failure}")
            return out, f"failed: {failure}"
    return out, ""


def cpu_note(seconds: list[float]) -> str:
    """Processor time, which other work on the machine does not lengthen as it does wall time."""
    return f"processor time {statistics.median(seconds):.2f} s" if seconds else ""
