import numpy as np
import pytest

from partialpool.errors import InferenceError
from partialpool.inference.diagnostics import ess_bulk, ess_tail, rhat


def _chains(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape)
    if kind == "independent":
        return noise
    if kind == "heavy":
        return rng.standard_cauchy(shape)
    if kind == "ties":
        return rng.poisson(2.0, shape).astype(float)
    if kind == "apart":
        return noise + np.arange(shape[0])[:, None]
    rho = {"slow": 0.97, "antithetic": -0.8}[kind]
    chains = noise.copy()
    for t in range(1, shape[1]):
        chains[:, t] = rho * chains[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return chains


@pytest.mark.parametrize("kind", ["independent", "heavy", "ties", "apart", "slow", "antithetic"])
@pytest.mark.parametrize("shape", [(4, 1000), (2, 501), (3, 10), (4, 4), (4, 5), (4, 7), (2, 24)])
def test_equal_to_arviz(kind, shape):
    arviz = pytest.importorskip("arviz_stats.base").array_stats
    for seed in range(5):
        chains = _chains(kind, shape, seed)
        with np.errstate(all="ignore"):
            expected = (
                arviz.rhat(chains),
                arviz.ess(chains, method="bulk"),
                arviz.ess(chains, method="tail", prob=(0.05, 0.95)),
            )
        found = rhat(chains), ess_bulk(chains), ess_tail(chains)
        np.testing.assert_allclose(np.array(found), np.array(expected, dtype=float), rtol=1e-8)


def test_one_chain():
    arviz = pytest.importorskip("arviz_stats.base").array_stats
    chain = _chains("slow", (1, 800))
    np.testing.assert_allclose(ess_bulk(chain), arviz.ess(chain, method="bulk"), rtol=1e-8)
    assert 1 < rhat(chain) < 1.5
    trend = chain + np.linspace(0, 50, 800)
    assert rhat(trend) > 1.5


def test_trailing_dimensions():
    draws = np.moveaxis(np.array([_chains("independent", (4, 200), seed) for seed in range(6)]), 0, -1)
    draws = draws.reshape(4, 200, 2, 3)
    for statistic in (rhat, ess_bulk, ess_tail):
        whole = statistic(draws)
        assert whole.shape == (2, 3)
        assert whole[1, 2] == statistic(draws[:, :, 1, 2])


def test_what_cannot_be_diagnosed():
    constant = np.ones((4, 100))
    assert np.isnan(rhat(constant))
    assert ess_bulk(constant) == 400
    broken = _chains("independent", (4, 100))
    broken[2, 3] = np.nan
    assert np.isnan([rhat(broken), ess_bulk(broken), ess_tail(broken)]).all()
    assert np.isnan(ess_bulk(np.ones((4, 3))))
    with pytest.raises(InferenceError, match="shape"):
        rhat(np.ones(10))
