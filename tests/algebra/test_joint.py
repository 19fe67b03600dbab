"""The kernels of the joint density: the way between centred and non-centred, and one pair of kernels a family."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from partialpool.algebra.joint import family_kernels, squared_scale
from partialpool.spec.families import Bernoulli, Poisson
from partialpool.spec.families.vector import VECTOR


def test_squared_scale_at_its_ends() -> None:
    assert squared_scale(math.inf, 1.0, 7.0) == 1.0  # centred
    assert squared_scale(0.0, 1.0, 25.0) == pytest.approx(0.04)  # non-centred: the variance itself
    assert squared_scale(3.0, 2.0, 2.0) == 1.0  # at the reference


@pytest.mark.parametrize("information", [0.2, 3.0, 40.0])
def test_e_hardly_moves_with_the_sd(information: float) -> None:
    """If the rows say N(m, 1 / lambda) of u, e keeps mean and variance whatever the prior's precision."""
    m, reference = 0.8, 2.0
    origin = information * m / (information + reference)
    for precision in (0.05, 2.0, 300.0):
        square = squared_scale(information, reference, precision)
        mean, variance = information * m / (information + precision), 1 / (information + precision)
        assert origin + (mean - square * origin) / math.sqrt(square) == pytest.approx(origin)
        assert variance / square == pytest.approx(1 / (information + reference))


def test_kernels_are_made_once_a_family() -> None:
    kernels = []
    for family in (Bernoulli(), Bernoulli(), Poisson()):
        name = f"{family.name}_{family.link}"
        vector = VECTOR[family.name, family.link]
        kernels.append(family_kernels(name, family.log_density, family.derivatives, vector))
    assert kernels[0] is kernels[1] and kernels[0] is not kernels[2]


@pytest.mark.parametrize("key", VECTOR)
def test_vector_forms_agree_with_the_families(key: tuple[str, str]) -> None:
    from partialpool.spec.families import resolve_family

    family = resolve_family(key[0])
    assert family.link == key[1]
    value, derivatives = VECTOR[key]
    for eta in np.linspace(-35, 35, 41):
        for y, trials in ((0.0, 1.0), (1.0, 1.0), (3.0, 9.0)):
            args = (float(eta), 0.0, 0.0, y, trials)
            if key[0] == "bernoulli" and trials > 1:
                continue
            assert value(*args) == pytest.approx(family.log_density(*args), rel=1e-11, abs=1e-13)
            own, exact = derivatives(*args), family.derivatives(*args)
            assert own[0] == value(*args)
            # the tail of a probability's complement is below the last digit of 1
            np.testing.assert_allclose(own, exact, rtol=1e-11, atol=1e-13)


def test_vector_forms_are_densities() -> None:
    """Slopes by differences, and a Poisson whose probabilities add up to 1."""
    value, _ = VECTOR["poisson", "log"]
    total = sum(math.exp(value(1.2, 0.0, 0.0, float(y), 1.0) - math.lgamma(y + 1)) for y in range(60))
    assert total == pytest.approx(1.0, rel=1e-12)
    value, derivatives = VECTOR["bernoulli", "logit"]
    area, _ = quad(lambda eta: derivatives(eta, 0.0, 0.0, 1.0, 1.0)[1], -3.0, 2.0)
    assert area == pytest.approx(value(2.0, 0.0, 0.0, 1.0, 1.0) - value(-3.0, 0.0, 0.0, 1.0, 1.0), rel=1e-9)
