"""Figures of the measurements for the docs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT

FIGURES = ROOT / "docs" / "figures"


def slope(points: list[dict[str, Any]], size: str, value: str) -> float:
    """Least-squares slope of log value on log size."""
    pairs = [(math.log(point[size]), math.log(point[value])) for point in points if value in point]
    if len(pairs) < 2:
        return math.nan
    middle = sum(x for x, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs)
    across = sum((x - middle[0]) ** 2 for x, _ in pairs)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in pairs) / across


def draw_growth(growth: dict[str, list[dict[str, Any]]], path: Path = FIGURES / "scaling.png") -> None:
    """Seconds and memory of the growing fits, on logarithmic scales, beside a line of proportional growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    sizes = [point["rows"] for points in growth.values() for point in points if "seconds" in point]
    for axis, value, label in zip(axes, ("seconds", "peak_gb"), ("seconds", "peak memory, GB"), strict=True):
        ends = []
        for (series, points), marker, shade in zip(growth.items(), "os", ("#1f5a8a", "#c4622d"), strict=False):
            done = [point for point in points if value in point]
            x, y = [point["rows"] for point in done], [point[value] for point in done]
            axis.plot(x, y, marker=marker, color=shade, label=series)
            if done:
                ends.append(y[-1])
        if ends and sizes:
            largest = max(sizes)
            line = [min(sizes), largest]
            axis.plot(
                line, [max(ends) * size / largest for size in line], "--", color="grey", lw=1, label="proportional"
            )
        if value == "peak_gb":
            axis.axhline(16, color="grey", lw=0.8, ls=":", label="16 GB")
        axis.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        smallest = [point[value] for points in growth.values() for point in points if value in point]
        axis.set_ylim(bottom=0.6 * min(smallest, default=0.1))
        axis.grid(True, which="major", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    figure.suptitle("y ~ x + (1 + x | g): the full posterior, from a data frame in memory", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
