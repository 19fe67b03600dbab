"""What was measured, as a table: `results/latest.md` and `results/latest.json`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.peers import Peer

#: A load, before a part starts, above which the machine was not quiet.
BUSY = 0.5
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Row:
    """One line of the table: what is asked (None: nothing), what the runs gave, and whether the median meets it."""

    name: str
    asked: str
    unit: str
    runs: list[float]
    limit: float | None = None
    note: str = ""
    part: str = ""

    @property
    def met(self) -> bool | None:
        if not self.runs:
            return None if self.limit is None else False
        return None if self.limit is None else statistics.median(self.runs) <= self.limit

    @property
    def measured(self) -> str:
        return spread(self.runs, self.unit)


def spread(runs: list[float], unit: str) -> str:
    """Median, and the smallest and largest where there are several."""
    if not runs:
        return "not measured"
    middle = f"{_figure(statistics.median(runs))} {unit}".rstrip()
    if len(runs) == 1:
        return middle
    return f"{middle} ({_figure(min(runs))} to {_figure(max(runs))}; {len(runs)} runs)"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


@dataclass
class Report:
    """All that the benchmark found; parts that are not measured anew are kept from earlier runs."""

    rows: list[Row] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    growth: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    #: By part: when it was measured, and the machine's load before (0 on a quiet one).
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def kept(cls, parts: list[str], folder: Path = RESULTS) -> Report:
        """The report of earlier runs on this machine, without the parts that will be measured anew."""
        file = folder / "latest.json"
        if not file.is_file():
            return cls()
        found = json.loads(file.read_text())
        if found.get("machine") != machine():
            return cls()
        report = cls(details=found["details"])
        for row in found["rows"]:
            row.pop("met")
            if row["part"] not in parts:
                report.rows.append(Row(**row))
        if "growth" not in parts:
            report.growth, report.slopes = found["growth"], found["slopes"]
        if "peers" not in parts:
            report.peers = [Peer(**peer) for peer in found["peers"]]
        report.measured = {part: when for part, when in found["measured"].items() if part not in parts}
        return report

    def measure(self, part: str, work: Callable[[Report, bool], None], quick: bool, order: list[str]) -> None:
        """Run a part, and mark its rows as its own."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self.measured[part] = {"on": datetime.date.today().isoformat(), "load": load}
        before = len(self.rows)
        work(self, quick)
        self.rows[before:] = [replace(row, part=part) for row in self.rows[before:]]
        self.rows.sort(key=lambda row: order.index(row.part))

    def write(self, folder: Path = RESULTS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "latest.md").write_text(self.as_text())
        found = {
            "machine": machine(), "measured": self.measured,
            "rows": [{**asdict(row), "met": row.met} for row in self.rows],
            "peers": [asdict(peer) for peer in self.peers], "growth": self.growth, "slopes": self.slopes,
            "details": self.details,
        }  # fmt: skip
        (folder / "latest.json").write_text(json.dumps(found, indent=1) + "\n")

    def as_text(self) -> str:
        about = machine()
        days = ", ".join(sorted({when["on"] for when in self.measured.values()}))
        lines = ["# Measured speeds", "", f"{about['sentence']} Measured on {days}."]
        busy = {part: when["load"] for part, when in self.measured.items() if (when["load"] or 0) > BUSY}
        if busy:
            told = ", ".join(f"{part} {load:.1f}" for part, load in busy.items())
            lines += ["", f"The machine was busy with other work; its load before each part: {told}."]
        lines += ["", "Median of the runs, and the smallest and largest. GB are 10^9 bytes.", ""]
        lines += ["| what | asked | measured | met |", "| --- | --- | --- | --- |"]
        for row in self.rows:
            met = {True: "yes", False: "**no**", None: ""}[row.met]
            note = f". {row.note}" if row.note else ""
            lines.append(f"| {row.name} | {row.asked} | {row.measured}{note} | {met} |")
        if self.growth:
            lines += ["", "## Cost as work grows", "", *_growth_table(self.growth, self.slopes)]
        if self.peers:
            lines += ["", "## Peers, in the same run", "", *_peer_table(self.peers)]
        return "\n".join(lines) + "\n"


def _growth_table(growth: dict[str, list[dict[str, Any]]], slopes: dict[str, float]) -> list[str]:
    lines = ["| series | rows | groups | seconds | peak memory, GB |", "| --- | --- | --- | --- | --- |"]
    for series, points in growth.items():
        for point in points:
            took = _figure(point["seconds"]) if "seconds" in point else point["failed"]
            memory = _figure(point["peak_gb"]) if "peak_gb" in point else ""
            lines.append(f"| {series} | {point['rows']:,} | {point['groups']:,} | {took} | {memory} |")
    return [*lines, "", *(f"Slope of log {name}: {value:.2f}." for name, value in slopes.items())]


def _peer_table(peers: list[Peer]) -> list[str]:
    lines = ["| model | tool | fit, s | process, s | peak memory, GB | |", "| --- | --- | --- | --- | --- | --- |"]
    for peer in peers:
        fit = spread(peer.seconds, "") if peer.seconds else ""
        process = _figure(peer.process) if peer.process else ""
        memory = _figure(peer.peak_gb) if peer.peak_gb else ""
        lines.append(f"| {peer.model} | {peer.tool} | {fit} | {process} | {memory} | {peer.note} |")
    return lines


def machine() -> dict[str, Any]:
    """The machine in neutral words: no names, no paths."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        memory = None
    versions = {}
    for name in ("partialpool", "numpy", "scipy", "numba", "pandas", "formulaic", "nutpie"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.machine()}"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    size = f", {memory} GiB of memory" if memory else ""
    sentence = f"{cores} cores{size}, {system}, Python {platform.python_version()}, {packages}."
    return {
        "cores": cores, "memory_gib": memory, "system": system, "python": platform.python_version(),
        "versions": versions, "sentence": sentence,
    }  # fmt: skip
