from __future__ import annotations

from typing import Any

import pytest

import partialpool as pp


@pytest.fixture(scope="session")
def sleep_fit() -> Any:
    return pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1, draws=1000)


@pytest.fixture(scope="session")
def radon_fit() -> Any:
    return pp.fit("log_radon ~ floor + (1 + floor | county)", pp.datasets.load("radon"), seed=1, draws=1000)


@pytest.fixture(scope="session")
def crossed_fit() -> Any:
    return pp.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", pp.datasets.load("Penicillin"), seed=1, draws=1000)


@pytest.fixture(scope="session")
def schools_fit() -> Any:
    priors = {"Intercept": "normal(0, 5)", "sd": "half_cauchy(5)"}
    data = pp.datasets.load("eight_schools")
    return pp.fit("y | se(sigma) ~ 1 + (1 | school)", data, priors=priors, seed=1, draws=1000)
