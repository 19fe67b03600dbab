"""One table of models, data and reference results, run through everything that applies."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import partialpool as pp

DATA = Path(__file__).parent / "data"
#: Columns that are factors in R; read as text here.
FACTORS = (
    "service", "recipe", "temperature", "d", "dept", "Subject", "school", "batch", "cask", "plate", "sample", "Batch",
    "replicate", "minrty", "sx", "county",
)  # fmt: skip


@cache
def read(name: str) -> pd.DataFrame:
    """One of the data sets of tests/data, factors as text."""
    frame = pd.read_csv(DATA / name)
    for column in FACTORS:
        if column in frame:
            frame[column] = frame[column].astype(str)
    if "sector" in frame:  # R's order: the contrasts of the reference fit
        frame["sector"] = pd.Categorical(frame["sector"], ["Public", "Catholic"])
    return frame


@cache
def lme4_fits() -> dict[str, Any]:
    """The Gaussian fits of lme4 that the references hold, by name."""
    return json.loads((DATA / "lme4.json").read_text())["fits"]


def lme4_model(fit: dict[str, Any]) -> pp.Model:
    """Our model of an lme4 fit."""
    formula = fit["formula"]
    if fit["model"] == "cake":
        formula = formula.replace("temperature", "C(temperature, contr.poly)")
    return pp.Model.from_formula(formula, read(fit["data"]))


def lme4_parameters(fit: dict[str, Any], model: pp.Model) -> dict[str, float]:
    """lme4's estimates under our names."""
    values = dict(zip(_in_our_order(fit, model), fit["fixef"].values(), strict=True))
    for row in fit["varcomp"]:
        group = row["grp"].split(".")[0]
        group = ":".join(reversed(group.split(":"))) if group == "cask:batch" else group
        first = str(row["var1"]).replace("(Intercept)", "Intercept")
        if group == "Residual":
            values["sigma"] = row["sdcor"]
        elif row["var2"] is None:
            values[f"sd({first}|{group})"] = row["sdcor"]
        else:
            values[f"cor({first},{row['var2']}|{group})"] = row["sdcor"]
    return values


def _in_our_order(fit: dict[str, Any], model: pp.Model) -> list[str]:
    """Our coefficient for each of lme4's: the same columns in the same order, interactions perhaps swapped."""
    ours = list(model.design.x_names)
    assert len(ours) == len(fit["fixef"])
    return ours


@dataclass(frozen=True)
class Case:
    """A model of a data set, with priors; small enough for every engine."""

    formula: str
    data: str
    priors: dict[str, Any] = field(default_factory=dict)

    @cache  # noqa: B019  # the cases live as long as the tests
    def model(self) -> pp.Model:
        frame = read(self.data) if self.data.endswith(".csv") else SYNTHETIC[self.data]()
        return pp.Model.from_formula(self.formula, frame, priors=self.priors)

    def __hash__(self) -> int:
        return hash((self.formula, self.data))


@cache
def three_levels() -> pd.DataFrame:
    """Unbalanced: towns of schools of classes."""
    rng = np.random.default_rng(3)
    n_class = 60
    school = np.sort(rng.integers(0, 20, n_class))
    town = np.sort(rng.integers(0, 6, 20))
    rows = rng.integers(1, 9, n_class)
    classes = np.repeat(np.arange(n_class), rows)
    x = rng.normal(size=classes.size)
    y = (
        2 + 0.5 * x + rng.normal(0, 1, 6)[town[school[classes]]] + rng.normal(0, 0.7, 20)[school[classes]]
        + rng.normal(0, 0.5, n_class)[classes] + rng.normal(0, 0.8, classes.size)
    )  # fmt: skip
    return pd.DataFrame(
        {
            "y": y,
            "x": x,
            "cl": classes,
            "school": school[classes],
            "town": town[school[classes]],
            "w": 1 + classes % 3,
            "s": 0.3 + 0.1 * (classes % 4),
        }
    )


SYNTHETIC = {"three levels": three_levels}

CASES = {
    "correlated slopes": Case("Reaction ~ Days + (Days | Subject)", "sleepstudy.csv"),
    "uncorrelated slopes": Case("Reaction ~ Days + (Days || Subject)", "sleepstudy.csv"),
    "nested": Case("strength ~ 1 + (1 | batch/cask)", "Pastes.csv"),
    "crossed": Case("diameter ~ 1 + (1 | plate) + (1 | sample)", "Penicillin.csv"),
    "sd at zero": Case("Yield ~ 1 + (1 | Batch)", "Dyestuff2.csv"),
    "known errors": Case(
        "y | se(sigma) ~ 1 + (1 | school)", "eight_schools.csv",
        {"Intercept": pp.Normal(0, 5), "sd(school)": pp.HalfCauchy(5)},
    ),
    "known errors and sigma": Case("y | se(s, sigma=True) ~ x + (1 | school)", "three levels"),
    "t prior": Case("Reaction ~ Days + (1 | Subject)", "sleepstudy.csv", {"Days": pp.StudentT(3, 0, 5)}),
    "flat prior": Case(
        "Reaction ~ Days + (1 | Subject)", "sleepstudy.csv", {"Intercept": pp.Flat(), "beta": pp.Flat()}
    ),
    "raw intercept": Case("Reaction ~ Days + (1 | Subject)", "sleepstudy.csv", {"Intercept": pp.Normal(200, 20)}),
    "three levels": Case("y ~ x + (1 | town) + (1 | school) + (x | cl)", "three levels"),
    "weights": Case("y | weights(w) ~ x + (1 | school/cl)", "three levels"),
    "precision": Case("y | precision(w) ~ x + offset(x) + (1 | school)", "three levels"),
    "no groups": Case("Reaction ~ Days", "sleepstudy.csv"),
}  # fmt: skip
