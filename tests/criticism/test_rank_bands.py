"""Simultaneous bands: against simulation, against brute force, against Kolmogorov's one place."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, kstest

from partialpool.criticism import rank_bands


@pytest.mark.parametrize("size", [7, 60, 400])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_uniform_numbers_stay_inside_as_often_as_the_level_says(size: int, level: float) -> None:
    band = rank_bands.simultaneous_band(size, level)
    rng = np.random.default_rng(1)
    sets = 4000
    inside = 0
    for _ in range(sets):
        share = rank_bands.counts_at(rng.random(size), band.places) / size
        inside += bool(((share >= band.low - 1e-12) & (share <= band.high + 1e-12)).all())
    error = np.sqrt(level * (1 - level) / sets)
    # counts are whole numbers: the level is reached, and for few numbers exceeded
    assert inside / sets > level - 4 * error
    if size >= 60:
        assert inside / sets < level + 4 * error + 0.02


def test_the_probability_is_that_of_counting_every_outcome() -> None:
    """Five numbers in four cells: every way to fall, weighted by the multinomial probabilities."""
    size = 3
    places = rank_bands.places_for(size)
    extremes = rank_bands._extremes(size, places)
    cells = list(product(range(len(places) + 1), repeat=size))
    for gamma in (0.01, 0.1, 0.3, 0.6):
        inside = 0
        for cell in cells:
            counts = [sum(own <= place for own in cell) for place in range(len(places))]
            inside += all(extremes[i, c] > gamma for i, c in enumerate(counts))
        assert rank_bands.inside_probability(extremes, gamma) == pytest.approx(inside / len(cells), abs=1e-12)


def test_extremes_are_binomial_tails() -> None:
    places = rank_bands.places_for(40)
    extremes = rank_bands._extremes(40, places)
    low = binom.cdf(np.arange(41), 40, places[4])
    high = binom.sf(np.arange(41) - 1, 40, places[4])
    np.testing.assert_allclose(extremes[4], np.minimum(1, 2 * np.minimum(low, high)), rtol=1e-9)


def test_the_p_value_is_uniform_or_conservative_and_agrees_with_the_band() -> None:
    rng = np.random.default_rng(2)
    band = rank_bands.simultaneous_band(80, 0.95)
    p = []
    for _ in range(400):
        values = rng.random(80)
        p.append(rank_bands.p_value(values))
        share = rank_bands.counts_at(values, band.places) / 80
        outside = bool(((share < band.low - 1e-12) | (share > band.high + 1e-12)).any())
        assert outside == (p[-1] <= 0.05 + 1e-9)
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert kstest(p, "uniform", alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("power", [0.8, 1.25])
def test_what_is_not_uniform_is_told(power: float) -> None:
    values = ((np.arange(1000) + 0.5) / 1000) ** power
    assert rank_bands.p_value(values) < 1e-4


def test_ends_of_the_interval_and_ties() -> None:
    assert rank_bands.p_value(np.zeros(30)) < 1e-12
    assert rank_bands.p_value(np.ones(30)) < 1e-12
    assert rank_bands.p_value(np.full(30, 0.5)) < 1e-6


def test_many_numbers_take_little_time_and_no_digits_are_lost() -> None:
    band = rank_bands.simultaneous_band(10_000, 0.95)
    middle = band.places.size // 2
    sd = np.sqrt(0.25 / 10_000)
    assert 2.5 * sd < band.high[middle] - band.places[middle] < 3.6 * sd
