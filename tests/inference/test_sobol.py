import numpy as np
import pytest
from scipy import special, stats
from scipy.stats import qmc

from partialpool.errors import InferenceError
from partialpool.inference.sobol import (
    MAX_DIMENSIONS,
    Sobol,
    normal_quantile,
    sobol,
    student4_log_density,
    student4_quantile,
)


@pytest.mark.parametrize("dimensions", [1, 2, 7, 20, MAX_DIMENSIONS])
def test_plain_sequence_equals_scipy(dimensions):
    theirs = qmc.Sobol(dimensions, scramble=False).random_base2(11)
    np.testing.assert_array_equal(sobol(2048, dimensions, None), theirs)
    np.testing.assert_array_equal(sobol(700, dimensions, None, start=333), theirs[333:1033])


@pytest.mark.parametrize("seed", [None, 4])
def test_continuing_is_the_same_sequence(seed):
    def rng():
        return None if seed is None else np.random.default_rng(seed)

    whole = sobol(3000, 5, rng())
    sequence = Sobol(5, rng())
    parts = [sequence.next(n) for n in (1, 2, 0, 61, 64, 128, 1000, 1744)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert sequence.position == 3000
    np.testing.assert_array_equal(sobol(17, 5, rng(), start=2983), whole[2983:])
    np.testing.assert_array_equal(sobol(1, 5, rng(), start=64), whole[64:65])


def test_far_into_the_sequence_equals_scipy():
    theirs = qmc.Sobol(3, scramble=False).fast_forward(1_234_567).random(100)
    np.testing.assert_array_equal(sobol(100, 3, None, start=1_234_567), theirs)


def test_scrambled_points_are_balanced_and_inside():
    points = sobol(1024, 6, np.random.default_rng(11))
    assert points.min() > 0
    assert points.max() < 1
    for column in points.T:  # one point in each of 1,024 cells
        assert np.array_equal(np.sort(np.floor(column * 1024)), np.arange(1024))
    cells = np.floor(points[:, :2] * 32).astype(int)  # dimensions 1 and 2 are a (0, m, 2)-net
    assert len(np.unique(cells[:, 0] * 32 + cells[:, 1])) == 1024


def test_scrambles_differ_and_are_uniform():
    first = np.array([sobol(3, 2, np.random.default_rng(seed)) for seed in range(2000)])
    for index in range(3):
        for column in range(2):
            assert stats.kstest(first[:, index, column], "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first[:, 1, 0], first[:, 1, 1])[0, 1]) < 0.08


def test_integrates_better_than_random_points():
    def error(points):
        return abs(np.mean(np.prod(1 + 0.5 * (points - 0.5), axis=1)) - 1)

    ours = np.mean([error(sobol(4096, 6, np.random.default_rng(seed))) for seed in range(10)])
    random = np.mean([error(np.random.default_rng(seed).random((4096, 6))) for seed in range(10)])
    assert ours < random / 30


def test_refusals():
    for dimensions in (0, MAX_DIMENSIONS + 1):
        with pytest.raises(InferenceError, match="1 to 32 dimensions"):
            Sobol(dimensions, None)
    with pytest.raises(InferenceError, match="2\\^32"):
        sobol(2, 1, None, start=2**32 - 1)
    assert sobol(1, 1, None, start=2**32 - 1).shape == (1, 1)
    assert sobol(0, 3, None).shape == (0, 3)


TAILS = 10.0 ** -np.arange(1, 308, dtype=float)
PROBABILITIES = np.concatenate(
    [TAILS, np.linspace(0, 1, 20_001)[1:-1], 1 - TAILS[:15], 0.5 + TAILS[:17], 0.5 - TAILS[:17], [0.075, 0.925, 5e-324]]
)


def test_normal_quantile_equals_scipy():
    p = PROBABILITIES[PROBABILITIES != 0.5]
    np.testing.assert_allclose(normal_quantile(p), special.ndtri(p), rtol=1e-14, atol=0)
    assert normal_quantile(0.5) == 0
    edges = normal_quantile([0.0, 1.0, np.nan, -1.0, 2.0])
    np.testing.assert_array_equal(edges, [-np.inf, np.inf, np.nan, np.nan, np.nan])
    assert normal_quantile(np.full((2, 3), 0.3)).shape == (2, 3)
    assert normal_quantile(0.3).shape == ()
    p = np.full(3, 0.3)
    normal_quantile(p)
    np.testing.assert_array_equal(p, 0.3)


def test_student4_quantile_inverts_the_distribution():
    p = PROBABILITIES[(PROBABILITIES > 1e-280) & (PROBABILITIES < 1)]
    x = student4_quantile(p)
    outer = np.abs(p - 0.5) > 0.05  # the tails through the incomplete beta function, the centre in closed form
    tail = np.minimum(p, 1 - p)[outer]
    np.testing.assert_allclose(0.5 * special.betainc(2, 0.5, 4 / (4 + x[outer] ** 2)), tail, rtol=3e-14)
    sine = 0.5 * x[~outer] / np.sqrt(1 + x[~outer] ** 2 / 4)
    np.testing.assert_allclose(0.75 * sine * (1 - sine**2 / 3), (p - 0.5)[~outer], rtol=1e-13, atol=0)
    assert np.array_equal(np.sign(x), np.sign(p - 0.5))
    checked = outer & (p > 1e-10)  # scipy's own quantile loses digits near the median and far out
    np.testing.assert_allclose(x[checked], stats.t.ppf(p[checked], 4), rtol=1e-9)
    near = 0.5 + np.array([1e-3, 1e-6, 1e-9, 1e-12])
    np.testing.assert_allclose(student4_quantile(near), (near - 0.5) / 0.375, rtol=1e-5)
    np.testing.assert_array_equal(student4_quantile([0.0, 0.5, 1.0]), [-np.inf, 0.0, np.inf])
    assert np.isnan(student4_quantile(-0.1))


def test_student4_log_density_equals_scipy():
    x = np.concatenate([np.linspace(-30, 30, 101), [1e8, -1e60]])
    np.testing.assert_allclose(student4_log_density(x), stats.t.logpdf(x, 4), rtol=1e-13)
    assert np.isfinite(student4_log_density(1e300))
    np.testing.assert_allclose(student4_log_density(1e200), np.log(12.0) - 5 * np.log(1e200), rtol=1e-13)
