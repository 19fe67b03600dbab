"""Fits that the tests of this folder share; none is changed by a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from partialpool.inference.base import Accuracy, Result, Settings
from partialpool.model import Model
from partialpool.posterior.fitting import fit_model
from partialpool.posterior.posterior import Posterior
from partialpool.spec.distributions import Flat

DATA = Path(__file__).resolve().parents[1] / "data"


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(DATA / f"{name}.csv")


@pytest.fixture(scope="session")
def sleepstudy() -> pd.DataFrame:
    return read("sleepstudy")


@pytest.fixture(scope="session")
def slopes(sleepstudy: pd.DataFrame) -> Posterior:
    """Correlated slopes: one factor, two terms."""
    model = Model.from_formula("Reaction ~ Days + (Days | Subject)", sleepstudy)
    return fit_model(model, seed=1, threads=2)


@pytest.fixture(scope="session")
def nested() -> Posterior:
    """A chain of two factors."""
    return fit_model(Model.from_formula("strength ~ 1 + (1 | batch/cask)", read("Pastes")), seed=2, threads=1)


@pytest.fixture(scope="session")
def crossed() -> Posterior:
    """A leaf and a root."""
    model = Model.from_formula("diameter ~ 1 + (1 | plate) + (1 | sample)", read("Penicillin"))
    return fit_model(model, seed=3, threads=1)


@pytest.fixture(scope="session")
def schools() -> Posterior:
    """Known standard errors, no sigma."""
    data = read("eight_schools").rename(columns={"sigma": "error"})
    return fit_model(Model.from_formula("y | se(error) ~ 1 + (1 | school)", data), seed=4, threads=1)


class Balanced:
    """One-way normal data of J groups of n rows with a flat prior of the mean, and what theory says at given nodes."""

    groups, rows = 5, 4

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        effect = rng.normal(0, 2, self.groups)
        y = 10 + np.repeat(effect, self.rows) + rng.normal(0, 1, self.groups * self.rows)
        self.data = pd.DataFrame({"y": y, "g": np.repeat(list("abcde"), self.rows)})
        self.means = y.reshape(self.groups, self.rows).mean(axis=1)
        self.sd = np.exp(rng.normal(np.log(2), 0.4, 30))
        self.sigma = np.exp(rng.normal(0, 0.2, 30))
        self.weights = rng.dirichlet(np.ones(30))
        self.shrinkage = self.sigma**2 / (self.sigma**2 + self.rows * self.sd**2)
        self.mean_variance = (self.sd**2 + self.sigma**2 / self.rows) / self.groups
        shift = self.means - self.means.mean()
        own = 1 - self.shrinkage
        self.effect_mean = own[:, None] * shift
        self.effect_sd = np.sqrt(self.sd**2 * self.shrinkage + own**2 * self.mean_variance)
        self.coefficient_mean = self.means.mean() + self.effect_mean
        self.coefficient_sd = np.sqrt(self.sd**2 * self.shrinkage + self.shrinkage**2 * self.mean_variance)

    def fit(self, draws: int = 20_000) -> Posterior:
        model = Model.from_formula("y ~ 1 + (1 | g)", self.data, priors={"Intercept": Flat()})
        rng = np.random.default_rng(8)
        picked = rng.choice(30, draws, p=self.weights)
        theta = np.log(np.column_stack([self.sd, self.sigma]))
        centre, spread = np.full((30, 1), self.means.mean()), np.sqrt(self.mean_variance)[:, None]
        result = Result(
            theta, np.log(self.weights), centre, spread, theta[picked],
            centre[picked] + spread[picked] * rng.normal(size=(draws, 1)), float("nan"),
            Accuracy("marginal", "made by hand", True, {}), Settings(draws=draws, seed=5),
        )  # fmt: skip
        return Posterior(model, result)


@pytest.fixture(scope="session")
def balanced() -> Balanced:
    return Balanced()


@pytest.fixture(scope="session")
def balanced_fit(balanced: Balanced) -> Posterior:
    return balanced.fit()
