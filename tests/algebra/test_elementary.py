"""exp and log1p without branches, against the library's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from partialpool.algebra.elementary import FAR, decay, exponential, log1p_share


def test_decay() -> None:
    for x in np.concatenate([np.linspace(0, FAR, 801), np.logspace(-12, -1, 40)]):
        assert decay(x) == pytest.approx(math.exp(-x), rel=1e-12, abs=0)


@pytest.mark.parametrize("x", [FAR + 1e-9, 41.0, 700.0, 1e8])
def test_decay_far_out(x: float) -> None:
    """Below the last digit of 1, whatever it is, and no NaN."""
    assert 0 < decay(x) < 1e-17
    assert 1.0 + decay(x) == 1.0


def test_exponential() -> None:
    for x in np.concatenate([np.linspace(-700, 700, 1401), np.logspace(-12, 0, 40), -np.logspace(-12, 0, 40)]):
        assert exponential(x) == pytest.approx(math.exp(x), rel=1e-12, abs=0)


@pytest.mark.parametrize("x", [-1e300, -701.0, 701.0, 1e300])
def test_exponential_is_clamped(x: float) -> None:
    assert exponential(x) == pytest.approx(math.exp(math.copysign(700, x)), rel=1e-11, abs=0)


def test_log1p_share() -> None:
    for a in np.concatenate([np.linspace(0, 1, 801), np.logspace(-16, -1, 60)]):
        assert log1p_share(a) == pytest.approx(math.log1p(a), rel=1e-14, abs=0)
