"""The data that is measured on: where it is found, and how the synthetic sets are made.

Folders are searched in this order: the one that the environment variable PARTIALPOOL_DATA names, `../shared/data` and
`../shared/reference` beside the checkout, and `tests/data`. InstEval, too large for the repository, is exported
from R's lme4 where no folder has it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: Columns that were factors in R: they are read as strings.
IDS = {
    "cake": ("replicate", "recipe", "temperature"),
    "cbpp": ("herd", "period"),
    "Dyestuff": ("Batch",),
    "Dyestuff2": ("Batch",),
    "eight_schools": ("school",),
    "epil": ("subject", "trt"),
    "grouseticks": ("INDEX", "BROOD", "YEAR", "LOCATION"),
    "Hsb82": ("school", "minrty", "sx", "sector"),
    "InstEval": ("s", "d", "studage", "lectage", "service", "dept"),
    "Pastes": ("batch", "cask", "sample"),
    "Penicillin": ("plate", "sample"),
    "radon": ("county",),
    "sleepstudy": ("Subject",),
    "toenail": ("patientID", "outcome", "treatment"),
    "VerbAgg": ("Gender", "item", "resp", "id", "btype", "situ", "mode", "r2"),
}


def folders() -> list[Path]:
    chosen = os.environ.get("PARTIALPOOL_DATA")
    out = [Path(chosen)] if chosen else []
    shared = ROOT.parent / "shared"
    return [*out, shared / "data", shared / "reference", ROOT / "tests" / "data"]


def find(file: str) -> Path | None:
    """The path of a file in the first folder that has it, or None."""
    return next((folder / file for folder in folders() if (folder / file).is_file()), None)


def read(name: str) -> Any:
    """A data set as a pandas data frame, its factors as strings."""
    import pandas

    path = insteval() if name == "InstEval" else find(f"{name}.csv")
    if path is None:
        raise FileNotFoundError(f"{name}.csv is in none of the data folders; name one in PARTIALPOOL_DATA.")
    return pandas.read_csv(path, dtype=dict.fromkeys(IDS[name], str))


def binary_insteval() -> Any:
    """InstEval with the best two marks of five as success."""
    data = read("InstEval")
    return data.assign(good=(data["y"] >= 4).astype(int))


def reference(file: str) -> Any:
    """A JSON file of reference values, or None where it is absent."""
    path = find(file)
    return None if path is None else json.loads(path.read_text())


def insteval() -> Path | None:
    """InstEval.csv: found, or exported from lme4 into `benchmarks/results`; None without either."""
    found = find("InstEval.csv")
    if found is not None:
        return found
    own = ROOT / "benchmarks" / "results" / "InstEval.csv"
    if own.is_file():
        return own
    own.parent.mkdir(parents=True, exist_ok=True)
    export = "write.csv(lme4::InstEval, commandArgs(TRUE)[1], row.names=FALSE)"
    try:
        subprocess.run(["Rscript", "-e", export, str(own)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return own if own.is_file() else None


def gauss1m() -> dict[str, Any]:
    """1,000,000 rows, 100,000 groups, `y ~ x + (1 + x | g)`: the set that lme4 and glmmTMB were measured on."""
    return correlated_slopes(1_000_000, 100_000, 20240501)


def bernoulli200k() -> dict[str, Any]:
    """200,000 rows, 20,000 groups, `y ~ x + (1 | g)`: the set that glmer and glmmTMB were measured on."""
    import numpy as np

    rng = np.random.default_rng(20240502)
    rows, groups = 200_000, 20_000
    g = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, rows - groups)]))
    x, u = rng.standard_normal(rows), rng.standard_normal(groups)
    y = (rng.random(rows) < 1 / (1 + np.exp(-(-0.5 + 0.8 * x + u[g])))).astype(int)
    return {"g": g, "x": x, "y": y}


def poisson2m() -> dict[str, Any]:
    """2,000,000 rows, 200,000 groups, counts with `y ~ x + (1 + x | g)`: coefficients 0.5 and 0.3, sds 0.5 and 0.3,
    correlation 0.3."""
    import numpy as np

    rng = np.random.default_rng(20240503)
    rows, groups = 2_000_000, 200_000
    g = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, rows - groups)]))
    x, z = rng.standard_normal(rows), rng.standard_normal((groups, 2))
    slopes = 0.3 * (0.3 * z[:, 0] + np.sqrt(1 - 0.3**2) * z[:, 1])
    return {"g": g, "x": x, "y": rng.poisson(np.exp(0.5 + 0.5 * z[g, 0] + (0.3 + slopes[g]) * x))}


def correlated_slopes(rows: int, groups: int, seed: int) -> dict[str, Any]:
    """Columns g, x, y: every group has at least one row, the rest at random; coefficients 1 and .5, sds 1 and .5,
    correlation .3, residual sd 1."""
    import numpy as np

    rng = np.random.default_rng(seed)
    g = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, rows - groups)]))
    x = rng.standard_normal(rows)
    z = rng.standard_normal((groups, 2))
    intercepts = z[:, 0]
    slopes = 0.5 * (0.3 * z[:, 0] + np.sqrt(1 - 0.3**2) * z[:, 1])
    y = 1.0 + 0.5 * x + intercepts[g] + slopes[g] * x + rng.standard_normal(rows)
    return {"g": g, "x": x, "y": y}


#: Responses that are not Gaussian: formula, family, and the data's name or what makes it.
GLMMS: dict[str, tuple[str, str, str | Callable[[], Any]]] = {
    "cbpp": ("incidence | trials(size) ~ period + (1 | herd)", "binomial", "cbpp"),
    "VerbAgg": ("r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)", "bernoulli", "VerbAgg"),
    "grouseticks": (
        "TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "poisson", "grouseticks",
    ),
    "binary InstEval": ("good ~ service + (1 | s) + (1 | d)", "bernoulli", binary_insteval),
    "bernoulli200k": ("y ~ x + (1 | g)", "bernoulli", bernoulli200k),
    "poisson2m": ("y ~ x + (1 + x | g)", "poisson", poisson2m),
}  # fmt: skip


def glmm_data(model: str) -> tuple[str, str, Any]:
    """Formula, family and data frame."""
    import pandas

    formula, family, data = GLMMS[model]
    return formula, family, read(data) if isinstance(data, str) else pandas.DataFrame(data())
