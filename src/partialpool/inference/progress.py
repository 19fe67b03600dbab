"""A progress line for work that takes more than two seconds; nothing is shown for less."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PATIENCE = 2.0


class Progress:
    """Shows a bar on standard error once the work has lasted two seconds.

    Parameters
    ----------
    wanted : bool or None
        False never shows it; True and None show it after two seconds (None: only on a terminal).
    """

    def __init__(self, wanted: bool | None = None) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._start = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, share: float | None, text: str) -> None:
        """Say that `share` (0 to 1; None where it cannot be known) of the step described by `text` is done."""
        if not self._wanted or time.perf_counter() - self._start < PATIENCE:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(text, total=None)
        self._bar.update(self._task, total=None if share is None else 1.0, completed=share or 0.0, description=text)
