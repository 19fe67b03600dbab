"""Every family with every link, against scipy.stats, finite differences and simulation."""

from __future__ import annotations

import functools
import math
import pickle
import warnings

import numpy as np
import pytest
from scipy import stats

import partialpool as pp
from partialpool.algebra.jit import kernel
from partialpool.errors import ModelError
from partialpool.spec.families import FAMILIES, Gaussian, Poisson, resolve_family

TABLE = [family(link=link) for family in FAMILIES.values() for link in family.links]
TRIALS = 12.0
every_family = pytest.mark.parametrize("family", TABLE, ids=str)


@functools.cache
def evaluator(family):
    """A kernel that writes the log density and the seven derivatives of many points."""
    log_density, derivatives = family.log_density, family.derivatives

    @kernel(
        "void(float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1])",
        variant=f"{family.name}-{family.link}",
    )
    def table(e0, e1, e2, y, t, out):
        for i in range(e0.size):
            out[i, 0] = log_density(e0[i], e1[i], e2[i], y[i], t[i])
            seven = derivatives(e0[i], e1[i], e2[i], y[i], t[i])
            for k in range(7):
                out[i, k + 1] = seven[k]

    return table


def evaluate(family, e0, e1, e2, y, t):
    arrays = [np.array(np.broadcast_to(v, y.shape), dtype=np.float64, order="C") for v in (e0, e1, e2, y, t)]
    out = np.empty((y.size, 8))
    evaluator(family)(*arrays, out)
    return out[:, 0], out[:, 1:].T


def bounded_mean(family):
    return family.link in ("identity", "inverse") and len(family.links) > 1


@functools.cache
def points(family, n=1500):
    """Predictors over a wide range, each with a response that the family draws there or near."""
    rng = np.random.default_rng(20240611)
    e0 = rng.uniform(-3.0, 3.0, n)
    if bounded_mean(family):
        e0 = np.exp(0.6 * e0)
    elif family.link == "cloglog":
        e0 -= 1.0
    e1 = rng.uniform(-1.5, 3.0, n)
    e2 = rng.uniform(0.0, 4.0, n)
    t = np.full(n, TRIALS)
    where = e0[rng.permutation(n)] if family.links[0] != "identity" else e0
    y = family.simulate(rng, where, np.maximum(e1, 0.0), e2, t)
    if not family.discrete and family.links[0] != "identity":
        y = np.clip(y, 1e-4, 1 - 1e-4) if family.name == "beta" else np.clip(y, 1e-3, 1e3)
    return e0, e1, e2, y, t


def scipy_log_density(family, y, e0, e1, e2, t):
    mu = family.mean(e0, e1, e2)
    a = np.exp(e1)
    name = family.name
    if name == "gaussian":
        return stats.norm.logpdf(y, e0, a)
    if name == "student_t":
        return stats.t.logpdf(y, np.exp(e2), e0, a)
    if name == "lognormal":
        return stats.lognorm.logpdf(y, a, scale=np.exp(e0))
    return {
        "bernoulli": lambda: stats.bernoulli.logpmf(y, mu),
        "binomial": lambda: stats.binom.logpmf(y, t, mu),
        "beta_binomial": lambda: stats.betabinom.logpmf(y, t, mu * a, (1 - mu) * a),
        "poisson": lambda: stats.poisson.logpmf(y, mu),
        "negative_binomial": lambda: stats.nbinom.logpmf(y, a, a / (a + mu)),
        "negative_binomial1": lambda: stats.nbinom.logpmf(y, mu * a, a / (1 + a)),
        "geometric": lambda: stats.geom.logpmf(y + 1, 1 / (1 + mu)),
        "gamma": lambda: stats.gamma.logpdf(y, a, scale=mu / a),
        "inverse_gaussian": lambda: stats.invgauss.logpdf(y, mu / a, scale=a),
        "exponential": lambda: stats.expon.logpdf(y, scale=mu),
        "weibull": lambda: stats.weibull_min.logpdf(y, a, scale=mu / np.vectorize(math.gamma)(1 + 1 / a)),
        "beta": lambda: stats.beta.logpdf(y, mu * a, (1 - mu) * a),
    }[name]()


# ---- the density -------------------------------------------------------------------------------------------------


@every_family
def test_log_density_is_that_of_scipy(family):
    e0, e1, e2, y, t = points(family)
    value, seven = evaluate(family, e0, e1, e2, y, t)
    expected = scipy_log_density(family, y, e0, e1, e2, t)
    np.testing.assert_allclose(value + family.constant(y, t), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(seven[0], value, rtol=1e-12, atol=1e-12)
    rows = family.log_density_rows(y, e0, e1, e2, t)
    np.testing.assert_allclose(rows, value + family.constant(y, t), rtol=1e-11, atol=1e-11)


@every_family
def test_kernels_and_python_agree(family):
    e0, e1, e2, y, t = (v[:40] for v in points(family))
    value, seven = evaluate(family, e0, e1, e2, y, t)
    for i in range(40):
        arguments = [float(v[i]) for v in (e0, e1, e2, y, t)]
        python = family.derivatives(*arguments)
        assert all(type(v) is float for v in python)
        assert python == pytest.approx(seven[:, i], rel=1e-11, abs=1e-11)
        assert family.log_density(*arguments) == pytest.approx(value[i], rel=1e-11, abs=1e-11)


@every_family
def test_derivatives_against_differences(family):
    predictors = list(points(family)[:3])
    y, t = points(family)[3:]
    _, exact = evaluate(family, *predictors, y, t)

    def difference(column, which):
        """Richardson's extrapolation, and the scale of its rounding error."""
        step = 1e-3 * (np.abs(predictors[which]) if which == 0 and bounded_mean(family) else 1.0)
        slopes = []
        for times in (1.0, 2.0, 4.0):
            values = []
            for sign in (1.0, -1.0):
                moved = list(predictors)
                moved[which] = moved[which] + sign * times * step
                values.append(evaluate(family, *moved, y, t)[1][column])
            slopes.append((values[0] - values[1]) / (2.0 * times * step))
        once = [(4.0 * slopes[k] - slopes[k + 1]) / 3.0 for k in (0, 1)]
        size = np.abs(values[0]) + np.abs(values[1])
        return (16.0 * once[0] - once[1]) / 15.0, 1e-12 * size / step

    for column, which, target in ((0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 0, 4), (1, 1, 5), (2, 1, 6)):
        if which > len(family.parameters):
            assert not exact[target].any()
            continue
        expected, noise = difference(column, which)
        excess = np.abs(exact[target] - expected) - noise - 1e-7 * np.abs(expected) - 1e-8
        worst = int(np.argmax(excess))
        assert excess[worst] <= 0.0, (target, exact[target][worst], expected[worst], [p[worst] for p in predictors])


@every_family
def test_the_flag_of_concavity_is_honest(family):
    e0, e1, e2, y, t = points(family)
    _, seven = evaluate(family, e0, e1, e2, y, t)
    tolerance = 1e-10 * (1.0 + np.abs(seven[4]))
    assert family.log_concave == bool((seven[4] <= tolerance).all())
    assert (family.information is None) <= family.log_concave


@every_family
def test_nothing_overflows_into_nan(family):
    ends = np.array([-1e4, -800.0, -40.0, 0.0, 40.0, 800.0, 1e4])
    if family.discrete:
        responses = np.array([0.0, 1.0] if family.name == "bernoulli" else [0.0, 1.0, 5.0, TRIALS])
    else:
        responses = np.array([0.001, 0.3, 0.999])
    e0, e1, e2, y = (v.ravel() for v in np.meshgrid(ends, ends, np.array([-800.0, 1.0, 800.0]), responses))
    value, seven = evaluate(family, e0, e1, e2, y, np.full(y.size, TRIALS))
    with np.errstate(all="ignore"):
        assert not np.isnan(value).any()
        assert not np.isnan(seven).any()
    assert (value < np.inf).all()
    moderate = (np.abs(e0) <= 40.0) & (np.abs(e1) <= 40.0) & (np.abs(e2) < 2.0) & (value > -np.inf)
    assert np.isfinite(seven[:, moderate]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = family.log_density_rows(y, e0, e1, e2, np.full(y.size, TRIALS))
        family.mean(e0, e1, e2)
        family.variance(e0, e1, e2)
    assert not np.isnan(rows).any()


# ---- moments, simulation, information ---------------------------------------------------------------------------


def places(family):
    grid = [0.4, 1.0, 2.5] if bounded_mean(family) else [-1.5, 0.0, 0.8]
    # A beta variable of low precision is 1 to the last digit now and then, which cuts its moments off.
    return [(e0, e1, 2.2) for e0 in grid for e1 in ((1.8, 3.0) if family.name == "beta" else (0.0, 1.2))]


@every_family
def test_simulation_has_the_mean_and_the_variance(family):
    rng = np.random.default_rng(77)
    n = 40_000
    for e0, e1, e2 in places(family):
        if family.name == "lognormal":
            e1 -= 1.2  # with sd 3.3, the variance of 40,000 draws says nothing
        y = family.simulate(rng, np.full(n, e0), e1, e2, TRIALS if family.takes_trials else None)
        assert y.shape == (n,)
        assert y.dtype == np.float64
        assert family.check(y, np.full(n, TRIALS)) is None
        trials = TRIALS if family.takes_trials else 1.0
        mean = float(family.mean(e0, e1, e2)) * trials
        variance = float(family.variance(e0, e1, e2, TRIALS if family.takes_trials else None))
        assert abs(y.mean() - mean) < 5.0 * math.sqrt(variance / n)
        squares = (y - mean) ** 2
        assert abs(squares.mean() - variance) <= 6.0 * squares.std() / math.sqrt(n) + 1e-12


@every_family
def test_information_is_the_expected_curvature(family):
    if family.information is None:
        return
    rng = np.random.default_rng(5)
    for e0, e1, e2 in places(family):
        if family.discrete:
            y = np.arange(TRIALS + 1.0) if family.takes_trials else np.arange(4000.0)
            t = np.full(y.size, TRIALS)
            weights = np.exp(family.log_density_rows(y, e0, e1, e2, t))
            assert weights.sum() == pytest.approx(1.0, abs=1e-9)
            tolerance = 1e-6
        else:
            y = family.simulate(rng, np.full(100_000, e0), e1, e2)
            weights, tolerance = np.full(y.size, 1e-5), 0.0
            t = np.ones(y.size)
        curvature = -evaluate(family, e0, e1, e2, y, t)[1][4]
        expected = float(weights @ curvature)
        error = 5.0 * curvature.std() / math.sqrt(y.size) if not family.discrete else 0.0
        found = family.information(e0, e1, e2, TRIALS)
        assert found >= 0.0
        assert abs(found - expected) <= error + max(tolerance, 1e-9) * abs(expected)


def test_information_of_large_counts_is_close():
    """Beyond the sums of `information` it is an approximation, good enough for a Newton weight."""
    for name, e0, e1, t in (
        ("negative_binomial1", 6.0, 1.0, 1.0),
        ("negative_binomial1", 5.0, -1.0, 1.0),
        ("negative_binomial1", 4.0, 3.0, 1.0),
        ("beta_binomial", 0.5, 0.0, 400.0),
        ("beta_binomial", -1.0, 3.0, 400.0),
        ("beta_binomial", -1.0, 8.0, 400.0),
    ):
        family = resolve_family(name)
        y = np.arange(t + 1.0 if t > 1.0 else 9000.0)
        weights = np.exp(family.log_density_rows(y, e0, e1, 0.0, np.full(y.size, t)))
        curvature = -evaluate(family, e0, e1, 0.0, y, t)[1][4]
        assert family.information(e0, e1, 0.0, t) == pytest.approx(float(weights @ curvature), rel=0.1)


# ---- limits and tails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("general", "special", "e1", "e2"),
    [
        ("negative_binomial", "poisson", math.log(1e12), 0.0),
        ("negative_binomial1", "poisson", math.log(1e12), 0.0),
        ("beta_binomial", "binomial", math.log(1e10), 0.0),
        ("student_t", "gaussian", 0.3, math.log(1e8)),
        ("negative_binomial", "geometric", 0.0, 0.0),
        ("gamma", "exponential", 0.0, 0.0),
        ("weibull", "exponential", 0.0, 0.0),
    ],
)
def test_limits(general, special, e1, e2):
    general, special = resolve_family(general), resolve_family(special)
    e0 = np.linspace(-2.0, 4.0, 61)
    y = special.simulate(np.random.default_rng(3), e0, e1, 0.0, TRIALS)
    found, one = evaluate(general, e0, e1, e2, y, TRIALS)
    expected, other = evaluate(special, e0, e1, 0.0, y, TRIALS)
    found, expected = found + general.constant(y, TRIALS * (y >= 0)), expected + special.constant(y, TRIALS * (y >= 0))
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(one[[1, 4]], other[[1, 4]], rtol=2e-7, atol=2e-7)
    rows = general.log_density_rows(y, e0, e1, e2, TRIALS * np.ones(y.size))
    np.testing.assert_allclose(rows, found, rtol=1e-9, atol=1e-9)


def test_bernoulli_far_out():
    logit = resolve_family("bernoulli")
    assert logit.derivatives(800.0, 0.0, 0.0, 0.0, 1.0)[:2] == (-800.0, -1.0)
    assert logit.derivatives(-800.0, 0.0, 0.0, 1.0, 1.0)[:2] == (-800.0, 1.0)
    assert logit.derivatives(800.0, 0.0, 0.0, 1.0, 1.0)[:2] == (0.0, 0.0)
    assert logit.log_density(40.0, 0.0, 0.0, 1.0, 1.0) == pytest.approx(-math.exp(-40.0), rel=1e-14)
    probit = pp.families.Bernoulli(link="probit")
    assert probit.log_density(-40.0, 0.0, 0.0, 1.0, 1.0) == pytest.approx(-804.608442013754, rel=1e-14)
    cloglog = pp.families.Bernoulli(link="cloglog")
    assert cloglog.derivatives(-800.0, 0.0, 0.0, 1.0, 1.0)[:2] == (-800.0, 1.0)
    assert cloglog.derivatives(4.0, 0.0, 0.0, 0.0, 1.0)[0] == -math.exp(4.0)


def test_poisson_far_out():
    assert Poisson().derivatives(-800.0, 0.0, 0.0, 2.0, 1.0) == (-1600.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert all(math.isfinite(v) for v in Poisson().derivatives(800.0, 0.0, 0.0, 2.0, 1.0))


@pytest.mark.parametrize("family", [f for f in TABLE if bounded_mean(f)], ids=str)
def test_an_impossible_mean_has_no_density(family):
    for e0 in (0.0, -1.0):
        assert family.log_density(e0, 0.0, 0.0, 1.0, 1.0) == -math.inf
        assert family.derivatives(e0, 0.0, 0.0, 1.0, 1.0) == (-math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        assert family.log_density_rows([1.0], [e0])[0] == -np.inf
        with pytest.raises(ModelError, match=r"impossible mean: the linear predictor is .* at row 1"):
            family.simulate(np.random.default_rng(0), [1.0, e0])


# ---- what design asks -------------------------------------------------------------------------------------------

BAD = {
    "gaussian": [math.nan, math.inf],
    "student_t": [math.nan, -math.inf],
    "bernoulli": [0.5, 2.0, -1.0, math.nan],
    "binomial": [-1.0, 1.5, math.nan, 13.0],
    "beta_binomial": [-1.0, 1.5, math.nan, 13.0],
    "beta": [0.0, 1.0, 1.5, math.nan],
    **dict.fromkeys(("poisson", "negative_binomial", "negative_binomial1", "geometric"), (-1.0, 0.5, math.nan)),
    **dict.fromkeys(("gamma", "inverse_gaussian", "lognormal", "exponential", "weibull"), (0.0, -1.0, math.nan)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_responses_are_named(name):
    family = resolve_family(name)
    good = 0.5 if name == "beta" else 1.0
    for bad in BAD[name]:
        mask, sentence = family.check([good, bad, good], [TRIALS] * 3)
        assert mask.tolist() == [False, True, False]
        assert sentence
    assert family.check([good, good], [TRIALS] * 2) is None


def test_bad_trials_are_named():
    family = resolve_family("binomial")
    mask, sentence = family.check([1.0, 1.0], [2.0, 2.5])
    assert (mask.tolist(), sentence) == ([False, True], "trials are whole numbers of at least 0")
    mask, sentence = family.check([1.0, 3.0])
    assert mask.tolist() == [False, True]
    assert "trials(n)" in sentence
    assert "more events than trials" in family.check([1.0, 3.0], [2.0, 2.0])[1]


@every_family
def test_one_family_one_set_of_helpers(family):
    again = type(family)(link=family.link.upper())
    assert again == family
    assert hash(again) == hash(family)
    assert pickle.loads(pickle.dumps(family)) == family
    assert again.log_density is family.log_density
    assert again.derivatives is family.derivatives
    assert again.information is family.information
    assert len(family.parameters) <= 2
    assert set(family.modelled) == set(family.parameters[:1])
    binary = family.name in ("bernoulli", "binomial", "beta_binomial")
    assert (family.latent_variance is not None) == binary
    assert str(family) == f"{family.name} ({family.link} link)"


def test_families_are_found_by_name():
    assert str(resolve_family("gaussian")) == "gaussian (identity link)"
    assert Gaussian().name == "gaussian"
    for alias, name in (
        ("normal", "gaussian"), ("negbinomial", "negative_binomial"), ("NB", "negative_binomial"),
        ("nb2", "negative_binomial"), ("neg_binomial_2", "negative_binomial"), ("nb1", "negative_binomial1"),
        ("student", "student_t"), ("t", "student_t"), ("StudentT", "student_t"), ("Gamma", "gamma"),
        ("Binomial", "binomial"), ("beta-binomial", "beta_binomial"), ("inverse.gaussian", "inverse_gaussian"),
        ("LogNormal", "lognormal"), ("weibull", "weibull"),
    ):  # fmt: skip
        assert resolve_family(alias).name == name
    chosen = pp.families.Gamma(link="inverse")
    assert resolve_family(chosen) is chosen
    with pytest.raises(ModelError, match="Did you mean 'poisson'"):
        resolve_family("poison")
    with pytest.raises(ModelError, match=r"no link 'probt'.*Did you mean 'probit'"):
        pp.families.Bernoulli(link="probt")


def test_latent_variances():
    assert pp.families.Bernoulli().latent_variance == pytest.approx(math.pi**2 / 3)
    assert pp.families.Binomial(link="probit").latent_variance == 1.0
    assert pp.families.Bernoulli(link="cloglog").latent_variance == pytest.approx(math.pi**2 / 6)
