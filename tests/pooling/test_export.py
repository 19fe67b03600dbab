"""The ArviZ tree: its groups and dimensions, and that its draws are of the posterior."""

import numpy as np
import pytest
from scipy import stats

import partialpool as pp
from partialpool.errors import ModelError

Y, SE = np.array([2.8, -0.7, 1.4, 0.2, 4.1, -3.9]), np.array([1.0, 0.4, 0.7, 0.8, 1.2, 0.9])
EVENTS, TRIALS = np.array([1, 3, 9, 0, 2, 17]), np.array([10, 10, 12, 9, 9, 20])
COUNTS, EXPOSURE = np.array([4, 0, 31, 2, 7, 3]), np.array([3.0, 2.5, 4.0, 2.5, 1.0, 2.0])
DATA = {
    "normal": (Y, {"se": SE}),
    "binomial": (EVENTS, {"trials": TRIALS}),
    "poisson": (COUNTS, {"exposure": EXPOSURE}),
}
NAMES = {"normal": ("estimate", ["mean", "sd"]), "binomial": ("events", ["mean", "sd", "alpha", "beta"]),
         "poisson": ("counts", ["mean", "sd", "shape", "rate"])}  # fmt: skip


@pytest.mark.parametrize("family", DATA)
def test_groups_and_dimensions(family):
    values, size = DATA[family]
    pooled = pp.pool(values, **size, units=list("abcdef"))
    tree = pooled.to_arviz(500)
    assert set(tree.children) == {"posterior", "posterior_predictive", "log_likelihood", "observed_data"}
    name, hyper = NAMES[family]
    posterior = tree["posterior"].to_dataset()
    assert set(posterior.data_vars) == {"theta", *hyper}
    assert posterior["theta"].dims == ("chain", "draw", "unit")
    assert posterior["theta"].shape == (1, 500, 6)
    assert posterior["unit"].values.tolist() == list("abcdef")
    for parameter in hyper:
        assert posterior[parameter].dims == ("chain", "draw")
    assert tree["posterior_predictive"][name].shape == (1, 500, 6)
    np.testing.assert_array_equal(tree["observed_data"][name].values, values)
    assert posterior.attrs["inference_library"] == "partialpool"
    theta = posterior["theta"].values[0]
    law = {
        "normal": lambda: stats.norm.logpdf(Y, theta, SE),
        "binomial": lambda: stats.binom.logpmf(EVENTS, TRIALS, theta),
        "poisson": lambda: stats.poisson.logpmf(COUNTS, EXPOSURE * theta),
    }[family]()
    np.testing.assert_allclose(tree["log_likelihood"][name].values[0], law, rtol=1e-9, atol=1e-9)
    again = pooled.to_arviz(500)
    np.testing.assert_array_equal(again["posterior"]["theta"].values, posterior["theta"].values)


@pytest.mark.parametrize("family", DATA)
def test_draws_are_of_the_posterior(family):
    values, size = DATA[family]
    pooled = pp.pool(values, **size)
    n = 20_000
    tree = pooled.to_arviz(n)
    table, summary = pooled.table, pooled.summary()
    theta = tree["posterior"]["theta"].values[0]
    assert (np.abs(theta.mean(axis=0) - table["mean"]) < 4.5 * table["sd"] / np.sqrt(n)).all()
    for name in NAMES[family][1]:
        draws = tree["posterior"][name].values.ravel()
        below = [(draws < summary.loc[name, column]).mean() for column in ("q05", "q50", "q95")]
        # within a cell of the lattice draws are spread evenly: its steps of less than 0.8 sd blur little
        np.testing.assert_allclose(below, [0.05, 0.5, 0.95], atol=4.5 * 0.5 / np.sqrt(n) + 0.005)
    replicated = tree["posterior_predictive"][NAMES[family][0]].values[0]
    scale = SE if family == "normal" else TRIALS if family == "binomial" else EXPOSURE
    mean = table["mean"] if family == "normal" else table["mean"] * scale
    assert (np.abs(replicated.mean(axis=0) - mean) < 4.5 * replicated.std(axis=0) / np.sqrt(n)).all()


def test_theta_and_the_parameters_belong_together():
    # where the sd is large theta spreads, and where the mean is high so are the units
    pooled = pp.pool(np.array([0.1, -0.2, 0.4, 0.0, -0.3, 0.2]), se=1.0)
    posterior = pooled.to_arviz(20_000)["posterior"]
    spread = posterior["theta"].values[0].std(axis=1)
    assert np.corrcoef(spread, posterior["sd"].values[0])[0, 1] > 0.5
    assert np.corrcoef(posterior["theta"].values[0].mean(axis=1), posterior["mean"].values[0])[0, 1] > 0.3


@pytest.mark.parametrize(
    "options",
    [
        {"population": pp.Normal(0, 2)},
        {"method": "empirical_bayes"},
        {"population": "npmle"},
        {"population": "scale_mixture"},
        {"covariates": {"x": [0.0, 1, 2, 3, 5, 4], "w": [1.0, 0, 0, 1, 1, 0]}},
    ],
)
def test_every_method_has_a_tree(options):
    pooled = pp.pool(Y, se=SE, **options)
    tree = pooled.to_arviz(300)
    posterior = tree["posterior"].to_dataset()
    assert np.isfinite(posterior["theta"].values).all()
    for name in pooled.population.rows:
        assert name in posterior, name
        assert np.isfinite(posterior[name].values).all()


def test_arviz_reads_it():
    import arviz_stats

    tree = pp.pool(EVENTS, trials=TRIALS).to_arviz(1000)
    loo = arviz_stats.loo(tree)
    assert np.isfinite(loo.elpd)
    assert np.isfinite(arviz_stats.ess(tree)["theta"].values).all()


@pytest.mark.parametrize("n", [0, -3, 2.5, True])
def test_impossible_numbers_of_draws(n):
    with pytest.raises(ModelError, match="n_draws"):
        pp.pool(Y, se=SE).to_arviz(n)


def test_too_many_units():
    rng = np.random.default_rng(0)
    pooled = pp.pool(rng.normal(size=500_000), se=1.0, population=pp.Normal(0, 1))
    with pytest.raises(ModelError, match="too many"):
        pooled.to_arviz()
