"""Models and estimates of lme4's glmer, and log densities written out by hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaln

import partialpool as pp

Array = NDArray[np.float64]
DATA = Path(__file__).parent / "data"
#: Columns that are factors in R.
FACTORS = ("herd", "period", "patientID", "subject", "BROOD", "INDEX", "LOCATION", "YEAR")

FORMULAS = {
    "cbpp": ("incidence | trials(size) ~ period + (1 | herd)", "binomial"),
    "toenail": ("moderate ~ treatment * time + (1 | patientID)", "bernoulli"),
    "epil_pois": ("y ~ lbase * trt + lage + V4 + (1 | subject)", "poisson"),
    "grouseticks": ("TICKS ~ YEAR + HEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "poisson"),
    "grouseticks_c": ("TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "poisson"),
}


@cache
def read(name: str) -> pd.DataFrame:
    """A data set of tests/data, factors as in the fits of glmer."""
    frame = pd.read_csv(DATA / f"{name}.csv")
    if name == "epil":
        frame["trt"] = pd.Categorical(frame["trt"], ["placebo", "progabide"])
    else:
        for column in {"period", "YEAR"} & set(frame):
            frame[column] = frame[column].astype(str)
    if name == "toenail":
        frame["moderate"] = (frame["outcome"] == "moderate or severe").astype(int)
        frame["treatment"] = pd.Categorical(frame["treatment"], ["itraconazole", "terbinafine"])
    for column in set(FACTORS) & set(frame) - {"period"}:
        frame[column] = frame[column].astype(str)
    return frame


@cache
def references() -> dict[str, Any]:
    return json.loads((DATA / "glmer.json").read_text())["fits"]


@cache
def exact_values() -> dict[str, float]:
    cases = json.loads((DATA / "glmm_loglik.json").read_text())["cases"]
    return {name: case["log_likelihood"] for name, case in cases.items()}


@cache
def model(name: str) -> pp.Model:
    """Our model of a fit of glmer."""
    formula, family = FORMULAS[name]
    return pp.Model.from_formula(formula, read(name.split("_", maxsplit=1)[0]), family=family)


def estimates(name: str) -> dict[str, float]:
    """glmer's estimates under our names; the fixed effects come in the same order."""
    fit = references()[name]
    own = model(fit["model"])
    values = dict(zip(own.design.x_names, fit["fixef"].values(), strict=True))
    for row in fit["varcomp"]:
        values[f"sd(Intercept|{row['grp']})"] = row["sdcor"]
    return values


def standard_errors(name: str) -> Array:
    return np.array(list(references()[name]["se"].values()))


# --------------------------------------------------------------------------------------------------------------------
# Written out by hand: full log densities of a row
# --------------------------------------------------------------------------------------------------------------------


def log_rows(family: str, y: Any, eta0: Any, eta1: Any = 0.0, trials: Any = 1.0) -> Any:
    """Log density of responses, eta1 the log of the family's own parameter."""
    if family in ("bernoulli", "binomial"):
        constant = gammaln(trials + 1) - gammaln(y + 1) - gammaln(trials - y + 1)
        return constant + y * eta0 - trials * np.logaddexp(0, eta0)
    if family == "poisson":
        return y * eta0 - np.exp(eta0) - gammaln(y + 1)
    if family == "negative_binomial":
        phi = np.exp(eta1)
        share = np.log(phi) - np.logaddexp(np.log(phi), eta0)  # log(phi / (phi + mu))
        rest = eta0 - np.logaddexp(np.log(phi), eta0)
        return gammaln(y + phi) - gammaln(phi) - gammaln(y + 1) + phi * share + y * rest
    if family == "gaussian":
        return -0.5 * np.log(2 * np.pi) - eta1 - 0.5 * ((y - eta0) / np.exp(eta1)) ** 2
    raise AssertionError(family)


def log_sum(logs: Array, axis: Any = None) -> Any:
    """log of the sum of exponentials."""
    top = logs.max(axis=axis, keepdims=True)
    return np.log(np.exp(logs - top).sum(axis=axis)) + top.squeeze(axis)
