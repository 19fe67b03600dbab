"""The checks that take minutes; each module has `run(...) -> Outcome`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """What a check found: whether it passed, what was done, a table in markdown, and sentences on what failed."""

    name: str
    passed: bool
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    skipped: bool = False
    #: Draws the figures into a folder; called once the results are written.
    draw: Callable[[Path], None] | None = None

    def fail(self, sentence: str) -> None:
        self.passed = False
        self.failures.append(sentence)


def skipped(name: str, why: str) -> Outcome:
    """A check that could not be run here."""
    return Outcome(name, True, [why], skipped=True)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]
