import copy
import json
import math
import pickle

import numpy as np
import pytest
from scipy import stats

from partialpool.errors import PriorError
from partialpool.spec.distributions import DISTRIBUTIONS
from partialpool.spec.priors import (
    LKJ,
    Beta,
    Cauchy,
    Exponential,
    Flat,
    Gamma,
    HalfCauchy,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    Normal,
    PriorTable,
    Slot,
    StudentT,
    Uniform,
    distribution_from_json,
    distribution_to_json,
    parse_distribution,
    resolve_priors,
)

# (ours, scipy's, points inside of the support)
TABLE = [
    (Normal(1.5, 2.0), stats.norm(1.5, 2.0), [-40.0, -1.0, 1.5, 9.0]),
    (StudentT(3, -1.0, 2.5), stats.t(3, -1.0, 2.5), [-90.0, -1.0, 0.2, 1e6]),
    (StudentT(0.7, 0.0, 1e-3), stats.t(0.7, 0.0, 1e-3), [-2.0, 0.0, 1e-4]),
    (Cauchy(0.5, 3.0), stats.cauchy(0.5, 3.0), [-100.0, 0.5, 2.0]),
    (HalfNormal(3.0), stats.halfnorm(scale=3.0), [0.0, 0.1, 8.0]),
    (HalfStudentT(3, 2.5), stats.foldnorm, [0.0, 0.3, 70.0]),
    (HalfCauchy(5.0), stats.halfcauchy(scale=5.0), [0.0, 0.3, 700.0]),
    (Exponential(0.4), stats.expon(scale=2.5), [0.0, 0.7, 30.0]),
    (Gamma(2.5, 0.3), stats.gamma(2.5, scale=1 / 0.3), [1e-9, 0.7, 30.0]),
    (Gamma(0.5, 2.0), stats.gamma(0.5, scale=0.5), [1e-9, 0.7, 30.0]),
    (Gamma(1.0, 2.0), stats.gamma(1.0, scale=0.5), [0.0, 0.7, 30.0]),
    (InverseGamma(3.0, 2.0), stats.invgamma(3.0, scale=2.0), [0.01, 0.7, 30.0]),
    (Uniform(-2.0, 3.0), stats.uniform(-2.0, 5.0), [-2.0, 0.0, 3.0]),
    (Beta(2.0, 5.0), stats.beta(2.0, 5.0), [1e-6, 0.3, 0.999]),
    (Beta(1.0, 0.5), stats.beta(1.0, 0.5), [0.0, 0.3, 0.999]),
]
IDS = [str(row[0]) for row in TABLE]


def _reference(ours, theirs):
    """Log density and cdf of scipy, which has no half-t: twice the t."""
    if isinstance(ours, HalfStudentT):
        whole = stats.t(ours.nu, 0, ours.sigma)
        return lambda x: whole.logpdf(x) + math.log(2), lambda x: 2 * whole.cdf(x) - 1
    return theirs.logpdf, theirs.cdf


@pytest.mark.parametrize(("ours", "theirs", "points"), TABLE, ids=IDS)
def test_log_density_equals_scipy(ours, theirs, points):
    logpdf, _ = _reference(ours, theirs)
    grid = np.array([points, points])
    np.testing.assert_allclose(ours.log_density(grid), logpdf(grid), rtol=1e-12, atol=1e-13)
    assert ours.log_density(grid).shape == grid.shape
    assert ours.log_density(points[1]).shape == ()


@pytest.mark.parametrize(("ours", "theirs", "points"), TABLE, ids=IDS)
def test_outside_of_the_support(ours, theirs, points):
    low, high = ours.support
    for outside in [low - 1.0] * math.isfinite(low) + [high + 1.0] * math.isfinite(high):
        assert ours.log_density(outside) == -np.inf
        assert ours.score(outside) == 0.0
    assert np.isnan(ours.log_density(np.nan))


@pytest.mark.parametrize(("ours", "theirs", "points"), TABLE, ids=IDS)
def test_score_is_the_derivative(ours, theirs, points):
    low, high = ours.support
    for x in points:
        step = 1e-5 * min(max(abs(x), 1e-3), 0.1 * (high - x) if x < high < math.inf else math.inf)
        if low < x - step and x + step < high and x > 1e-5 * (low == 0.0):
            numeric = (ours.log_density(x + step) - ours.log_density(x - step)) / (2 * step)
            np.testing.assert_allclose(ours.score(x), numeric, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("ours", "theirs", "points"), TABLE, ids=IDS)
def test_draws_follow_the_density(ours, theirs, points):
    _, cdf = _reference(ours, theirs)
    draws = ours.sample(np.random.default_rng(7), (200, 50))
    assert draws.shape == (200, 50)
    assert stats.kstest(draws.ravel(), cdf).pvalue > 1e-3
    assert np.all(np.isfinite(ours.log_density(draws)))
    again = ours.sample(np.random.default_rng(7), (200, 50))
    np.testing.assert_array_equal(draws, again)
    assert np.asarray(ours.sample(np.random.default_rng(1))).shape == ()


def test_extreme_arguments_stay_finite_and_silent(recwarn):
    for ours in (StudentT(3, 0, 1), Cauchy(0, 1), HalfStudentT(3, 1), HalfCauchy(1)):
        assert np.isfinite(ours.log_density(1e300))
        assert np.isfinite(ours.score(1e300))
    assert InverseGamma(2, 1).log_density(0.0) == -np.inf
    assert InverseGamma(2, 1).log_density(1e-320) == -np.inf
    assert Gamma(2, 1).log_density(0.0) == -np.inf
    np.testing.assert_allclose(StudentT(1e12, 0, 1).log_density(1.3), Normal(0, 1).log_density(1.3), rtol=1e-9)
    assert not recwarn.list


def test_flat_is_improper_and_cannot_be_drawn():
    np.testing.assert_array_equal(Flat().log_density([-1e9, 0.0, 3.0]), 0.0)
    np.testing.assert_array_equal(Flat().score([1.0, 2.0]), 0.0)
    with pytest.raises(PriorError, match="improper"):
        Flat().sample(np.random.default_rng(0), 3)


# ---- LKJ


@pytest.mark.parametrize("eta", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_lkj_correlations_are_beta(eta, dim):
    matrices = LKJ(eta).sample(np.random.default_rng(3), 4000, dim=dim)
    assert matrices.shape == (4000, dim, dim)
    assert np.linalg.eigvalsh(matrices).min() > 0
    alpha = eta + dim / 2 - 1  # marginal of each correlation, Lewandowski et al.
    marginal = stats.beta(alpha, alpha, loc=-1, scale=2)
    for i, j in [(0, 1), (dim - 2, dim - 1), (0, dim - 1)]:
        assert stats.kstest(matrices[:, i, j], marginal.cdf).pvalue > 1e-4
    assert np.all(np.isfinite(LKJ(eta).log_density(matrices)))


def test_lkj_density_is_normalised():
    rho = np.linspace(-1, 1, 20_003)[1:-1]
    matrices = np.stack([np.stack([np.ones_like(rho), rho], -1), np.stack([rho, np.ones_like(rho)], -1)], -2)
    assert np.trapezoid(np.exp(LKJ(2.5).log_density(matrices)), rho) == pytest.approx(1.0, abs=1e-6)
    # Three dimensions: the share of the cube [-1, 1]^3 that is positive definite, times the uniform density.
    assert math.exp(LKJ(1).log_normalizer(3)) == pytest.approx(math.pi**2 / 2, rel=1e-12)
    rng = np.random.default_rng(5)
    a, b, c = rng.uniform(-1, 1, (3, 200_000))
    cube = np.zeros((200_000, 3, 3)) + np.eye(3)
    for (i, j), value in zip([(0, 1), (0, 2), (1, 2)], (a, b, c), strict=True):
        cube[:, i, j] = cube[:, j, i] = value
    assert 8 * np.exp(LKJ(4).log_density(cube)).mean() == pytest.approx(1.0, abs=0.02)


def test_lkj_score_is_the_derivative_and_support_is_checked():
    matrix = LKJ(1).sample(np.random.default_rng(2), dim=3)
    score = LKJ(2.5).score(matrix)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        up, down = matrix.copy(), matrix.copy()
        for shifted, step in ((up, 1e-6), (down, -1e-6)):
            shifted[i, j] += step
            shifted[j, i] += step
        numeric = (LKJ(2.5).log_density(up) - LKJ(2.5).log_density(down)) / 2e-6
        assert score[i, j] == pytest.approx(numeric, rel=1e-5, abs=1e-7)
    impossible = np.array([[1, -0.9, -0.9], [-0.9, 1, -0.9], [-0.9, -0.9, 1]])
    assert LKJ(2).log_density(impossible) == -np.inf
    two_negative = np.array([[1, 5.0, 0, 0], [5.0, 1, 0, 0], [0, 0, 1, 5.0], [0, 0, 5.0, 1]])
    assert LKJ(2).log_density(two_negative) == -np.inf
    with pytest.raises(PriorError, match="square"):
        LKJ(2).log_density([0.1, 0.2])


# ---- parameters, text, JSON


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Normal(0, 0), "sigma must be greater than 0"),
        (lambda: Normal(math.nan, 1), "mu must be finite"),
        (lambda: Normal("a", 1), "mu must be a number"),
        (lambda: Normal(True, 1), "mu must be a number"),
        (lambda: Normal(0, math.inf), "sigma must be finite"),
        (lambda: StudentT(-1, 0, 1), "nu must be greater"),
        (lambda: Uniform(2, 2), "low must be less than high"),
        (lambda: LKJ(0), "eta must be greater"),
        (lambda: Exponential(-2), "rate must be greater"),
        (lambda: Beta(0, 1), "a must be greater"),
        (lambda: InverseGamma(1, 0), "scale must be greater"),
    ],
)
def test_impossible_parameters(make, words):
    with pytest.raises(PriorError, match=words):
        make()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Normal(0, 5)", Normal(0, 5)),
        (" normal( mu = -1.5, sigma=2e1 ) ", Normal(-1.5, 20)),
        ("student_t(3, 0, 2.5)", StudentT(3, 0, 2.5)),
        ("half_normal(1)", HalfNormal(1)),
        ("HalfNormal(1)", HalfNormal(1)),
        ("half_student_t(3, +2)", HalfStudentT(3, 2)),
        ("inv_gamma(2, 1)", InverseGamma(2, 1)),
        ("pp.LKJ(2)", LKJ(2)),
        ("lkj_corr(2)", LKJ(2)),
        ("flat", Flat()),
        ("Flat()", Flat()),
    ],
)
def test_text_is_read(text, expected):
    assert parse_distribution(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Normal(0, 5", "cannot be read"),
        ("", "cannot be read"),
        ("Norml(0, 5)", "Did you mean 'Normal'"),
        ("Normal(0)", r"takes \(mu, sigma\), and it was given \(0\)"),
        ("Normal(0, 1, 2)", r"takes \(mu, sigma\)"),
        ("Normal(0, sd=1)", r"takes \(mu, sigma\)"),
        ("Normal(0, -1)", "sigma must be greater"),
        ("Normal(0, __import__('os').getpid())", "plain numbers"),
        ("Normal(0, True)", "plain numbers"),
        ("Normal(**{'mu': 1})", "cannot be read"),
        ("(lambda: 1)()", "cannot be read"),
        ("Normal(0, 1) + 1", "cannot be read"),
        ("Normal(0, 1" + "0" * 400 + ")", "too large"),
    ],
)
def test_unreadable_text(text, words):
    with pytest.raises(PriorError, match=words):
        parse_distribution(text)


@pytest.mark.parametrize("ours", [*(row[0] for row in TABLE), LKJ(2), Flat()], ids=str)
def test_json_and_text_round_trip(ours):
    assert distribution_from_json(json.loads(json.dumps(distribution_to_json(ours)))) == ours
    assert parse_distribution(str(ours)) == ours
    assert pickle.loads(pickle.dumps(ours)) == ours == copy.deepcopy(ours)
    assert hash(ours) == hash(copy.deepcopy(ours))
    with pytest.raises(AttributeError):
        ours.sigma = 3.0


def test_json_of_something_else():
    with pytest.raises(PriorError, match="Did you mean 'Normal'"):
        distribution_from_json({"distribution": "Norma", "parameters": {}})
    with pytest.raises(PriorError, match="takes"):
        distribution_from_json({"distribution": "Normal", "parameters": {"mean": 0}})
    assert set(DISTRIBUTIONS) >= {"Normal", "LKJ", "Flat"}


# ---- priors by name

SLOTS = (
    Slot("Intercept", "intercept", ("Intercept",), Normal(298.5, 140.8), "2.5 sd(y)"),
    Slot("Days", "coefficient", (), Normal(0, 48), "2.5 sd(y)/sd(x)"),
    Slot("service[1]", "coefficient", (), Normal(0, 90)),
    Slot("sd(Intercept|Subject)", "sd", ("sd(Subject)", "sd"), HalfStudentT(3, 140)),
    Slot("sd(Days|Subject)", "sd", ("sd(Subject)", "sd"), HalfStudentT(3, 48)),
    Slot("cor(Subject)", "cor", ("cor",), LKJ(1)),
    Slot("sigma", "sigma", (), HalfStudentT(3, 140)),
)


def test_defaults():
    table = resolve_priors(None, SLOTS)
    assert list(table) == [slot.name for slot in SLOTS]
    assert len(table) == 7
    assert table["Days"] == Normal(0, 48)
    assert table.source("Days") == "default"
    assert table.matched_key("Days") is None
    assert table.slots == SLOTS
    assert resolve_priors({}, SLOTS) == table


def test_most_specific_key_wins():
    priors = {
        "sd": HalfNormal(9),
        "sd(Subject)": HalfNormal(1),
        "sd( Days | Subject )": "HalfCauchy(5)",
        "beta": Normal(0, 1),
        "Days": "Normal(10, 2)",
    }
    with pytest.raises(PriorError, match="'sd' would not be used"):
        resolve_priors(priors, SLOTS)
    del priors["sd"]
    table = resolve_priors(priors, SLOTS)
    assert table["sd(Intercept|Subject)"] == HalfNormal(1)
    assert table["sd(Days|Subject)"] == HalfCauchy(5)
    assert table["Days"] == Normal(10, 2)
    assert table["service[1]"] == Normal(0, 1)
    assert table["Intercept"] == Normal(298.5, 140.8)  # beta is not the intercept
    assert table.matched_key("service[1]") == "beta"
    assert table.source("service[1]") == "you"
    assert table.note("service[1]") == "through 'beta'"


def test_intercepts():
    written = resolve_priors({"Intercept": Normal(0, 5)}, SLOTS)
    assert written.matched_key("Intercept") == "Intercept"
    assert written.note("Intercept") == "as written in the formula"
    centered = resolve_priors({"Intercept(centered)": Normal(0, 5)}, SLOTS)
    assert centered["Intercept"] == Normal(0, 5)
    assert centered.matched_key("Intercept") == "Intercept(centered)"
    with pytest.raises(PriorError, match="keep one"):
        resolve_priors({"Intercept": Normal(0, 5), "Intercept(centered)": Normal(0, 5)}, SLOTS)
    with pytest.raises(PriorError, match="No parameter"):
        resolve_priors({"Intercept": Normal(0, 5)}, SLOTS[1:])


@pytest.mark.parametrize(
    ("priors", "words"),
    [
        ({"Dayz": Normal(0, 1)}, "Did you mean 'Days'"),
        ({"sd(Subjct)": HalfNormal(1)}, r"Did you mean 'sd\(Subject\)'"),
        ({"sd(Subject)": Normal(0, 5)}, r"reaches below zero; write HalfNormal\(5\)\.$"),
        ({"sigma": StudentT(3, 0, 2)}, r"write HalfStudentT\(3, 2\)\.$"),
        ({"sigma": Cauchy(0, 2)}, r"write HalfCauchy\(2\)\.$"),
        ({"sigma": Normal(3, 2)}, r"write HalfNormal\(2\), which starts at zero"),
        ({"sigma": Uniform(-1, 4)}, r"write Uniform\(0, 4\)\.$"),
        ({"sigma": LKJ(2)}, "prior of correlations"),
        ({"Days": LKJ(2)}, r"write Normal\(0, 1\)"),
        ({"Days": HalfNormal(2)}, r"write Normal\(0, 2\)\.$"),
        ({"beta": HalfCauchy(2)}, r"write Cauchy\(0, 2\)\.$"),
        ({"Days": Gamma(2, 2)}, "may be negative"),
        (
            {"Days": Uniform(0, 1)},
            r"Uniform\(0, 1\) of the coefficient 'Days' cannot be integrated.*Use Normal, StudentT",
        ),
        ({"Intercept": Uniform(-3, 3)}, r"coefficient 'Intercept' cannot be integrated"),
        ({"beta": Beta(2, 2)}, r"Beta\(2, 2\) of the coefficient 'Days'"),
        ({"cor(Intercept,Days|Subject)": LKJ(2)}, r"whole correlation matrix.*set 'cor\(Subject\)'"),
        ({"cor(Subject)": Flat()}, r"write LKJ\(1\)"),
        ({"cor(Subject)": Uniform(-1, 1)}, r"write LKJ\(2\)"),
        ({"Days": 5}, "must be a distribution"),
        ({"Days": Normal}, "the class Normal"),
        ({"Days": "Norml(0, 1)"}, "Prior on 'Days'.*Did you mean 'Normal'"),
        ({3: Normal(0, 1)}, "names of priors are text"),
        ({"sd(Subject)": HalfNormal(1), "sd( Subject)": HalfNormal(1)}, "keep one"),
        ([("Days", Normal(0, 1))], "must be a dict"),
    ],
)
def test_refusals(priors, words):
    with pytest.raises(PriorError, match=words):
        resolve_priors(priors, SLOTS)


@pytest.mark.parametrize("prior", [Normal(1, 3), StudentT(3, 0, 1), Cauchy(0, 1), Flat()], ids=str)
def test_accepted_on_a_coefficient(prior):
    assert resolve_priors({"Days": prior}, SLOTS)["Days"] == prior


def test_a_pair_names_the_correlation_of_two_effects():
    pair = Slot("cor(Subject)", "cor", ("cor(Intercept,Days|Subject)", "cor(Subject)", "cor"), LKJ(1))
    table = resolve_priors({"cor(Intercept, Days | Subject)": LKJ(2)}, [*SLOTS[:5], pair])
    assert table["cor(Subject)"] == LKJ(2)
    assert table.note("cor(Subject)") == "through 'cor(Intercept,Days|Subject)'"
    with pytest.raises(PriorError, match="whole correlation matrix"):
        resolve_priors({"cor(Intercept,Dayz|Subject)": LKJ(2)}, [pair])
    with pytest.raises(PriorError, match="No parameter"):
        resolve_priors({"cor(Intercept,Days|Subjekt)": LKJ(2)}, [pair])


@pytest.mark.parametrize(
    "prior",
    [Flat(), Uniform(0, 9), Exponential(1), Gamma(2, 1), InverseGamma(2, 1), Beta(2, 2), HalfStudentT(3, 1)],
    ids=str,
)
def test_accepted_on_a_standard_deviation(prior):
    assert resolve_priors({"sigma": prior}, SLOTS)["sigma"] == prior


def test_table_prints():
    table = resolve_priors({"Days": Normal(0, 1)}, SLOTS)
    lines = repr(table).splitlines()
    assert len(lines) == 8
    assert lines[0].split() == ["parameter", "prior", "source", "note"]
    words = ["default", "you", *["default"] * 5]
    assert len({line.index(word) for line, word in zip(lines[1:], words, strict=True)}) == 1
    assert "<td style='text-align:left'>sd(Days|Subject)</td>" in table._repr_html_()
    frame = table.to_frame()
    assert list(frame.columns) == ["prior", "source", "note"]
    assert frame.loc["Days", "prior"] == "Normal(0, 1)"
    hostile = PriorTable.from_json(resolve_priors(None, [Slot("<b>", "coefficient", (), Normal(0, 1))]).to_json())
    assert "<b>" not in hostile._repr_html_()
    assert repr(resolve_priors(None, [])) == "parameter  prior  source  note"


def test_table_is_an_immutable_mapping_and_round_trips():
    table = resolve_priors({"Intercept(centered)": Normal(1, 2), "sd(Subject)": "Exponential(1)"}, SLOTS)
    assert "Days" in table
    assert "nothing" not in table
    assert table.get("nothing") is None
    with pytest.raises(PriorError, match="Did you mean 'Days'"):
        table["Dais"]
    with pytest.raises(TypeError):
        table["Days"] = Normal(0, 1)
    again = PriorTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert repr(again) == repr(table)
    assert again.slots == table.slots
    assert again.matched_key("Intercept") == "Intercept(centered)"
    assert copy.deepcopy(table) == table == pickle.loads(pickle.dumps(table))


def test_slot_of_an_unknown_kind():
    with pytest.raises(PriorError, match="none of"):
        Slot("x", "slope", (), Normal(0, 1))


OWN = (
    Slot("sigma.Intercept", "intercept", (), Normal(0, 2.5), "", "sigma."),
    Slot("sigma.x", "coefficient", (), Normal(0, 1), "", "sigma."),
    Slot("nu", "family", (), Gamma(2, 0.1)),
)


def test_keys_of_a_parameter_with_a_formula():
    table = resolve_priors({"beta": Normal(0, 7), "sigma.beta": "Normal(0, 3)"}, [*SLOTS[:3], *OWN])
    assert table["Days"] == Normal(0, 7)
    assert table["sigma.x"] == Normal(0, 3)
    assert table.matched_key("sigma.x") == "sigma.beta"
    assert table["sigma.Intercept"] == Normal(0, 2.5)
    written = resolve_priors({"sigma.Intercept": Normal(1, 1)}, [*SLOTS, *OWN])
    assert written.matched_key("sigma.Intercept") == "sigma.Intercept"
    assert written.note("sigma.Intercept") == "as written in the formula"
    assert written.matched_key("Intercept") is None
    centered = resolve_priors({"sigma.Intercept(centered)": Normal(1, 1)}, [*SLOTS, *OWN])
    assert centered.note("sigma.Intercept") == "at the mean of the predictors"
    assert PriorTable.from_json(json.loads(json.dumps(centered.to_json()))) == centered
    with pytest.raises(PriorError, match=r"'sigma.Intercept' and 'sigma.Intercept\(centered\)', which are one"):
        resolve_priors({"sigma.Intercept": Normal(0, 1), "sigma.Intercept(centered)": Normal(0, 1)}, OWN)


def test_a_table_of_an_older_file_is_read():
    rows = resolve_priors(None, SLOTS).to_json()
    for row in rows:
        del row["prefix"]
    assert PriorTable.from_json(rows).slots == SLOTS


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (Normal(0, 5), r"'nu' is a positive parameter of the family.*write HalfNormal\(5\)"),
        (Flat(), r"A flat prior on 'nu' has no proper posterior.*the default, Gamma\(2, 0.1\)"),
        (LKJ(2), r"write HalfNormal\(1\)"),
    ],
)
def test_a_parameter_of_a_family_is_positive_and_proper(prior, words):
    with pytest.raises(PriorError, match=words):
        resolve_priors({"nu": prior}, OWN)
    assert resolve_priors({"nu": Uniform(1, 60)}, OWN)["nu"] == Uniform(1, 60)
