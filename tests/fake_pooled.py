"""A stand-in for `Pooled` with a known conjugate population: what the plots read of it, by scipy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

KINDS = {"normal": "normal", "binomial": "beta", "poisson": "gamma"}


class FakePosterior:
    def __init__(self, laws: Any) -> None:
        self.laws = laws
        self.node_weights = np.ones(1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        law = self.laws(slice(None))
        return law.mean(), law.std()

    def quantiles(self, probabilities: np.ndarray, units: np.ndarray | None = None) -> np.ndarray:
        return self.laws(slice(None) if units is None else units).ppf(np.asarray(probabilities)[:, None])


class FakeMarginal:
    def __init__(self, law: Any) -> None:
        self.law, self.cdf, self.mean, self.variance = law, law.cdf, float(law.mean()), float(law.var())

    def log_density(self, y: np.ndarray) -> np.ndarray:
        return self.law.logpmf(y) if hasattr(self.law.dist, "pmf") else self.law.logpdf(y)


def fake_pooled(
    family: str, y: Any, size: Any, law: Any, *, names: Any = None, label: str = "", atom: float = 0.0
) -> SimpleNamespace:
    """Units with data under a fixed population: (mean, sd), Beta(a, b) or Gamma(shape, rate) in `law`."""
    y, size = np.asarray(y, dtype=float), np.asarray(size, dtype=float)
    first, second = law
    if family == "normal":
        weight = second**2 / (second**2 + size**2)
        middle, sd = first + weight * (y - first), np.sqrt(weight) * size
        population, raw = stats.norm(first, second), y
        posterior = FakePosterior(lambda rows: stats.norm(middle[rows], sd[rows]))
        marginal = lambda one: FakeMarginal(stats.norm(first, np.hypot(one, second)))  # noqa: E731
        complete = float(np.average(y, weights=size**-2.0))
    elif family == "binomial":
        population, raw = stats.beta(first, second), y / np.where(size > 0, size, np.nan)
        posterior = FakePosterior(lambda rows: stats.beta((first + y)[rows], (second + size - y)[rows]))
        marginal = lambda one: FakeMarginal(stats.betabinom(int(one), first, second))  # noqa: E731
        complete = float(y.sum() / size.sum())
    else:
        population, raw = stats.gamma(first, scale=1 / second), y / size
        posterior = FakePosterior(lambda rows: stats.gamma((first + y)[rows], scale=1 / (second + size)[rows]))
        marginal = lambda one: FakeMarginal(stats.nbinom(first, second / (second + one)))  # noqa: E731
        complete = float(y.sum() / size.sum())

    def raw_interval(probability: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        tails = [(1 - probability) / 2, (1 + probability) / 2]
        if family == "normal":
            low, high = (y + stats.norm.ppf(tail) * size for tail in tails)
        elif family == "binomial":
            low, high = (stats.beta.ppf(tail, y + 0.5, size - y + 0.5) for tail in tails)
        else:
            low, high = (stats.gamma.ppf(tail, y + 0.5) / size for tail in tails)
        return low, high

    units = SimpleNamespace(
        family=family, y=y, size=size, n=len(y), raw=raw, names=np.arange(len(y)) if names is None else names,
        named=names is not None, label=label, X=None, complete_pooling=complete, raw_interval=raw_interval,
    )  # fmt: skip

    def summary() -> pd.DataFrame:
        mean, sd = float(population.mean()), float(population.std()) / np.sqrt(len(y))
        row = {"mean": mean, "sd": sd, "q05": mean - 1.645 * sd, "q50": mean, "q95": mean + 1.645 * sd}
        return pd.DataFrame([row], index=pd.Index(["mean"], name="parameter"))

    whole = SimpleNamespace(
        kind=KINDS[family], mean=float(population.mean()), sd=float(population.std()),
        cdf=lambda x: (1 - atom) * population.cdf(x) + atom * (np.asarray(x) >= population.mean()),
        density=lambda x: (1 - atom) * population.pdf(x),
        atoms=(np.array([population.mean()]), np.array([atom])) if atom else (np.empty(0), np.empty(0)),
        quantile=population.ppf, marginal=marginal,
        prediction_interval=lambda p=0.9: population.interval(p),
        summary=summary,
    )  # fmt: skip
    return SimpleNamespace(units=units, posterior=posterior, population=whole, family=family, method="fixed", seed=1)


def simulated(family: str, count: int, *, seed: int = 1, long: bool = False) -> SimpleNamespace:
    """Units drawn from the population that they are shown with."""
    rng = np.random.default_rng(seed)
    names = [f"St Mary's General Hospital and Infirmary, ward {j}" if long else f"Unit {j}" for j in range(count)]
    if family == "normal":
        size = rng.uniform(5, 18, count)
        y = rng.normal(rng.normal(8, 6, count), size)
        return fake_pooled(family, y, size, (8.0, 6.0), names=np.array(names), label="score")
    if family == "binomial":
        size = np.round(np.exp(rng.normal(5, 1.2, count))) + 1
        y = rng.binomial(size.astype(int), rng.beta(8, 92, count))
        return fake_pooled(family, y, size, (8.0, 92.0), names=np.array(names), label="deaths")
    size = np.exp(rng.normal(2, 1, count))
    y = rng.poisson(size * rng.gamma(7, 1 / 6, count))
    return fake_pooled(family, y, size, (7.0, 6.0), names=np.array(names), label="readmissions")
