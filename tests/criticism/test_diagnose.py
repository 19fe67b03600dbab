"""Diagnosis of fits: numbers against other routes, planted weak spots told, healthy fits left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

import partialpool as pp
from partialpool.criticism import computation, weak_spots, weak_terms
from partialpool.criticism.diagnose import Diagnosis, diagnose
from partialpool.errors import ModelError

matplotlib.use("Agg")

RNG = np.random.default_rng(20261121)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Whatever other tests run, each draws the same data."""
    RNG.bit_generator.state = START


def fitted(name: str, **options: Any) -> pp.Posterior:
    entry = pp.datasets.describe(name)
    return pp.fit(
        entry.formula, pp.datasets.load(name), family=entry.family or "gaussian", seed=1, threads=1, **options
    )


@pytest.fixture(scope="module")
def chains() -> pp.Posterior:
    data = pp.datasets.load("sleepstudy")
    return pp.fit("Reaction ~ Days + (1 | Subject)", data, method="nuts", seed=1, threads=1, ess=400)


def told(found: Diagnosis) -> set[str]:
    """The checks that are not well."""
    return set(found.table.index[found.table["verdict"] != "ok"])


# -- healthy and weak fits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sleepstudy", set()), ("cbpp", set()), ("Penicillin", set()), ("cake", set()), ("Dyestuff", set()),
     ("Pastes", {"sd at 0"}), ("Dyestuff2", {"sd at 0"}), ("eight_schools", {"sd at 0"}), ("bball1970", {"sd at 0"}),
     ("radon", {"sd at 0"})],
)  # fmt: skip
def test_data_sets_are_told_what_is_there_and_no_more(name: str, expected: set[str]) -> None:
    found = diagnose(fitted(name))
    assert told(found) == expected, repr(found)
    assert found.verdict == ("trust with care" if expected else "trust")
    assert ("Trust it:" in repr(found)) == (not expected)


def test_the_sd_told_is_the_one_that_may_be_zero() -> None:
    table = diagnose(fitted("Pastes")).table
    assert table.loc["sd at 0", "where"] == "sd(Intercept|batch)"
    assert "without (1 | batch)" in table.loc["sd at 0", "mend"]
    table = diagnose(fitted("radon")).table
    assert "(1 | county) in place of (1 + floor | county)" in table.loc["sd at 0", "mend"]


def test_few_groups_unless_the_user_said_what_is_plausible() -> None:
    data = {"y": RNG.normal(size=30) + np.repeat([0.0, 2.0, 4.0], 10), "g": list("a" * 10 + "b" * 10 + "c" * 10)}
    found = diagnose(pp.fit("y ~ 1 + (1 | g)", data, seed=1, threads=1))
    assert "few groups" in told(found) and "3 groups" in found.table.loc["few groups", "evidence"]
    mend = found.table.loc["few groups", "mend"]
    priors = eval(mend.split("priors=")[1].split(";")[0], {"pp": pp})
    again = diagnose(pp.fit("y ~ 1 + (1 | g)", data, priors=priors, seed=1, threads=1))
    assert "few groups" not in told(again)


def test_few_groups_asks_for_the_priors_that_were_not_given() -> None:
    data = {"y": RNG.normal(size=30), "x": RNG.normal(size=30), "g": list("abc") * 10}
    priors = {"sd(Intercept|g)": pp.HalfNormal(1)}
    line = diagnose(pp.fit("y ~ x + (x | g)", data, priors=priors, seed=1, threads=1)).table.loc["few groups"]
    assert "'sd(x|g)'" in line["mend"] and "'sd(Intercept|g)'" not in line["mend"]


def test_what_to_write_in_place_of_collinear_predictors() -> None:
    """The mend mends: what the second adds to the first, and nothing that cannot be typed."""
    n = 60
    x, groups = RNG.normal(size=n), np.repeat(list("abc"), n // 3)
    data = {"y": x + RNG.normal(size=n), "x": x, "z": 2 * x + 0.05 * RNG.normal(size=n)}
    line = diagnose(pp.fit("y ~ x + z", data, seed=1, threads=1)).table.loc["collinear predictors"]
    better = line["mend"].split("adds: ")[1]
    assert better.startswith("I(z - ") and better.endswith("* x)")
    assert diagnose(pp.fit(f"y ~ x + {better}", data, seed=1, threads=1)).verdict == "trust"
    other = groups.copy()
    other[[0, 25, 50]] = list("bca")
    data = {"y": RNG.normal(size=n), "c": groups, "d": other}
    assert "I(" not in diagnose(pp.fit("y ~ c + d", data, seed=1, threads=1)).table.loc["collinear predictors", "mend"]


def test_collinear_predictors_are_named_and_products_are_not() -> None:
    n = 80
    x, w = RNG.normal(size=n), RNG.normal(size=n)
    data = {"y": x + RNG.normal(size=n), "x": x, "z": x + 0.05 * RNG.normal(size=n), "w": w}
    found = diagnose(pp.fit("y ~ x + z + w", data, seed=1, threads=1))
    assert told(found) == {"collinear predictors"}
    line = found.table.loc["collinear predictors"]
    assert "x" in line["where"] and "z" in line["where"] and "w" not in line["where"]
    far = {**data, "x": x + 50}
    assert "collinear predictors" not in told(diagnose(pp.fit("y ~ x * w + I(x^2)", far, seed=1, threads=1)))


def test_separation_and_what_the_engines_remark() -> None:
    x = RNG.normal(size=40)
    data = {"y": (x > 0).astype(int), "x": x, "g": [f"g{k}" for k in np.repeat(np.arange(8), 5)]}
    found = diagnose(pp.fit("y ~ x + (1 | g)", data, family="bernoulli", seed=1, threads=1))
    assert "separation" in told(found) and found.table.loc["separation", "where"] == "x"
    assert "priors={'x': pp.Normal" in repr(found)
    counts = {"y": RNG.negative_binomial(1, 0.1, 200), "g": [f"g{k}" for k in np.repeat(np.arange(10), 20)]}
    found = diagnose(pp.fit("y ~ 1 + (1 | g)", counts, family="poisson", seed=1, threads=1))
    assert "overdispersion" in told(found) and "negative_binomial" in repr(found)


def test_a_correlation_at_one_says_how_to_centre() -> None:
    g, x = np.repeat(np.arange(12), 6), np.tile(np.arange(6.0), 12) + 50
    u = RNG.normal(size=12)
    data = {"y": 3 + 0.5 * x + 0.5 * u[g] * (x - 45) + RNG.normal(size=72), "x": x, "g": [f"g{k}" for k in g]}
    found = diagnose(pp.fit("y ~ x + (x | g)", data, seed=1, threads=1))
    assert "correlation at 1" in told(found)
    assert "I(x - 5" in found.table.loc["correlation at 1", "mend"]
    assert "(1 + x || g)" in found.table.loc["correlation at 1", "mend"]


def test_a_parameter_that_its_prior_decides() -> None:
    found = diagnose(pp.fit("y ~ 1", {"y": RNG.normal(size=60)}, family="student_t", seed=1, threads=1))
    assert told(found) == {"prior decides"} and found.table.loc["prior decides", "where"] == "nu"
    data = {"y": RNG.normal(size=40), "x": RNG.normal(size=40)}
    priors = {"x": pp.Normal(0, 0.01)}
    found = diagnose(pp.fit("y ~ x", data, priors=priors, seed=1, threads=1))
    assert "prior decides" in told(found) and "the prior you gave" in repr(found)


def test_terms_that_rows_cannot_tell() -> None:
    g = np.repeat(np.arange(20), 2)
    x = np.where(np.arange(40) % 2, RNG.normal(size=40), 0.0)
    x[6:] = np.repeat(RNG.normal(size=17), 2)  # varies within the first three groups alone
    data = {"y": RNG.normal(size=40), "x": x, "g": [f"g{k}" for k in g], "w": RNG.normal(size=40)}
    found = diagnose(pp.fit("y ~ x + (1 | g) + (0 + w | g)", data, seed=1, threads=1))
    assert found.table.loc["more effects than rows", "evidence"] == "0 of 40 rows left for sigma"
    few = {"y": RNG.normal(size=40), "z": np.repeat(RNG.normal(size=10), 4), "h": [f"h{k // 4}" for k in range(40)]}
    line = diagnose(pp.fit("y ~ z + (z | h)", few, seed=1, threads=1)).table.loc["rows in groups"]
    assert line["evidence"] == "0 of 10 groups tell both effects" and line["mend"] == "(1 | h) in place of (z | h)"
    found = diagnose(pp.fit("y ~ x + (x | g)", data, family="student_t", seed=1, threads=1))
    assert "3 of 20 groups" in found.table.loc["rows in groups", "evidence"]


# -- numbers by another route -----------------------------------------------------------------------------------------


def test_group_ranks_are_those_of_numpy() -> None:
    codes = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 2])
    columns = np.column_stack([np.ones(17), RNG.integers(0, 2, 17) * 1e4, RNG.normal(size=17) * 1e-3])
    columns[codes == 4, 1] = 1e4
    expected = [np.linalg.matrix_rank(columns[codes == g] / np.abs(columns).max(axis=0)) for g in range(6)]
    assert weak_terms.group_ranks(columns, codes, 6).tolist() == expected


def test_inflation_factors_are_those_of_regressions() -> None:
    x = RNG.normal(size=(200, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.3], [0.0, 0.0, 1.0]])
    found = weak_terms.inflation_factors({name: x[:, [k]] for k, name in enumerate("abc")})
    for k, name in enumerate("abc"):
        others = np.column_stack([np.ones(200), np.delete(x, k, axis=1)])
        rest = x[:, k] - others @ np.linalg.lstsq(others, x[:, k], rcond=None)[0]
        assert found[name] == pytest.approx(x[:, k].var() / rest.var(), rel=1e-9)


def test_the_density_at_zero_is_a_likelihood_ratio() -> None:
    """Of a normal likelihood cut at 0, over many sets of draws as many as diagnose() takes."""
    from scipy.stats import halfnorm

    rng = np.random.default_rng(1)
    for shift in (0.0, 1.0, 1.645, 2.0):
        draws = rng.normal(shift, 1, 120_000)
        found = [weak_spots.density_at_zero(own) for own in np.array_split(draws[draws > 0], 15)[:8]]
        assert np.mean(found) == pytest.approx(np.exp(-0.5 * shift**2), abs=0.06 if not shift else 0.04)
    normal = rng.normal(size=(2, 20_000))
    for width, share in ((0.5**0.5, 0.83), (0.5, 0.68)):  # of normal distributions, from where they cross
        assert weak_spots.overlap(normal[0], width * normal[1]) == pytest.approx(share, abs=0.015)
    assert weak_spots.overlap(halfnorm.rvs(size=20_000, random_state=1), halfnorm.rvs(size=5000, random_state=2)) > 0.95


def test_chain_numbers_are_those_of_arviz_stats(chains: pp.Posterior) -> None:
    arviz_stats = pytest.importorskip("arviz_stats")
    found = diagnose(chains)
    assert told(found) == set()
    posterior = chains.result
    names = chains.parameters
    hyper = chains.model.hyperparameters.public(posterior.theta)
    values = np.concatenate([posterior.beta_mean, hyper], axis=1).reshape(posterior.chains, -1, len(names))
    from arviz_stats.base import array_stats

    rhats = [float(array_stats.rhat(values[:, :, k])) for k in range(len(names))]
    assert found.table.loc["R-hat", "evidence"].startswith(f"{max(rhats):.3f}")
    tails = [float(array_stats.ess(values[:, :, k], method="tail", prob=(0.05, 0.95))) for k in range(len(names))]
    assert found.table.loc["tail ESS", "evidence"].startswith(f"{min(tails):,.0f}")
    assert arviz_stats is not None


def test_tail_sizes_of_weighted_nodes_by_repetition() -> None:
    """The spread of P(sigma <= q05) over many seeds is what the tail size promises, or better."""
    shares, sizes = [], []
    data = pp.datasets.load("Dyestuff")
    first = pp.fit("Yield ~ 1 + (1 | Batch)", data, seed=0, threads=1, ess=400, draws=100)
    at = first.summary()["q05"].to_numpy()[2]
    for seed in range(40):
        fit = pp.fit("Yield ~ 1 + (1 | Batch)", data, seed=seed, threads=1, ess=400, draws=100)
        weights = np.exp(fit.result.log_weights)
        shares.append(float(weights @ (fit.model.hyperparameters.public(fit.result.theta)[:, 1] <= at)))
        sizes.append(computation.tail_sizes(fit)[2])
    assert np.std(shares) < 1.3 * np.sqrt(0.05 * 0.95 / np.median(sizes))


def test_energy_fractions() -> None:
    rng = np.random.default_rng(1)
    independent = rng.normal(size=(3, 5000))
    np.testing.assert_allclose(computation.energy_fractions(independent), 2.0, atol=0.1)
    slow = np.cumsum(rng.normal(size=(1, 5000)), axis=1)
    assert computation.energy_fractions(slow)[0] < 0.05


# -- computations gone wrong ------------------------------------------------------------------------------------------


def spoiled(fit: pp.Posterior, statistics: dict[str, Any] | None = None, **changes: Any) -> pp.Posterior:
    accuracy = replace(fit.accuracy, **changes)
    result = replace(fit.result, accuracy=accuracy, statistics={**fit.result.statistics, **(statistics or {})})
    return pp.Posterior(fit.model, result)


def test_chains_that_went_wrong(chains: pp.Posterior) -> None:
    result = chains.result
    theta = result.theta.copy()
    theta[: len(theta) // 4] += 3.0
    stuck = diagnose(pp.Posterior(chains.model, replace(result, theta=theta)))
    assert stuck.verdict == "do not rely on it" and "Do not rely on it: R-hat" in repr(stuck)
    energy = np.cumsum(np.random.default_rng(1).normal(size=result.statistics["energy"].shape), axis=1)
    slow = diagnose(spoiled(chains, {"energy": energy, "depth": np.full(energy.shape, 10)}))
    assert {"E-BFMI", "tree depth"} <= told(slow)
    for count, verdict in ((3, "care"), (300, "fail")):
        found = diagnose(spoiled(chains, divergences=count, trusted=False, notes=(f"{count} draws diverged.",)))
        assert found.table.loc["divergences", "verdict"] == verdict
        assert told(found) == {"divergences"} and repr(found).count("diverged") == 1  # told once


def test_mends_suit_the_engine(chains: pp.Posterior) -> None:
    """Whoever asked for NUTS is sent to 'auto'; where 'auto' ended in sampling, there is nothing else to turn to."""
    theta = chains.result.theta.copy()
    theta[: len(theta) // 4] += 3.0
    energy = np.cumsum(np.random.default_rng(1).normal(size=chains.result.statistics["energy"].shape), axis=1)
    for engine, sent in (("nuts", True), ("whitened", False)):
        fit = spoiled(chains, {"energy": energy}, engine=engine, divergences=300)
        mends = diagnose(pp.Posterior(fit.model, replace(fit.result, theta=theta))).table["mend"]
        checks = mends[["R-hat", "bulk ESS", "tail ESS", "divergences", "E-BFMI"]]
        assert checks.str.contains("method='auto'").tolist() == [sent] * 5
    short = replace(chains.result, settings=replace(chains.result.settings, ess=50), theta=theta)
    mend = diagnose(pp.Posterior(chains.model, short)).table.loc["bulk ESS", "mend"]
    assert "ess=400" in mend  # twice 50 would still be called too few


def test_errors_that_engines_report() -> None:
    fit = fitted("cbpp")
    table = diagnose(spoiled(fit, quadrature_error=0.1, surrogate_error=0.5, pareto_k=0.9)).table
    assert table.loc[["quadrature gap", "interpolation", "Pareto k"], "verdict"].tolist() == ["care", "fail", "fail"]
    stopped = diagnose(spoiled(fit, trusted=False, notes=("The run was interrupted; what it had is kept.",)))
    assert told(stopped) == {"interrupted"} and stopped.table.loc["interrupted", "about"] == "computation"
    assert "the computation is not quite good (interrupted)." in repr(stopped)
    doubt = diagnose(spoiled(fit, trusted=False, notes=("Fewer draws than asked for.",)))
    assert told(doubt) == {"the engine's own doubt"} and "Fewer draws than asked for." in repr(doubt)
    steps = tuple(step.replace("converged", "stopped at its limit of iterations") for step in fit.accuracy.steps)
    assert "search for the mode" in told(diagnose(spoiled(fit, steps=steps)))


def test_chains_over_what_is_not_integrated_out() -> None:
    """The whitened engine: chains, and a quadrature within."""
    data = {"y": [3, 4, 2, 9, 7, 8, 1, 0, 2, 5, 4, 6], "g": list("aaabbbcccddd")}
    priors = {"Intercept": pp.Normal(1, 1), "sd(g)": pp.Gamma(4, 4)}
    options: dict[str, Any] = {"priors": priors, "method": "whitened", "seed": 1, "threads": 1, "ess": 40}
    whitened = pp.fit("y ~ 1 + (1 | g)", data, family="poisson", **options)
    assert {"R-hat", "E-BFMI", "quadrature gap"} <= set(diagnose(whitened).table.index)


# -- odd fits ---------------------------------------------------------------------------------------------------------


def test_fits_of_little() -> None:
    data = {"y": RNG.normal(size=12), "s": np.ones(12), "x": RNG.normal(size=12)}
    for formula, priors in (
        ("y | se(s) ~ 1", None), ("y | se(s) ~ 0 + x", {"x": pp.Flat()}), ("y ~ 1", {"Intercept": pp.Flat()}),
        ("y ~ x", {"x": pp.Flat(), "sigma": pp.Flat()}), ("y | se(s, sigma=True) ~ x", None),
    ):  # fmt: skip
        found = diagnose(pp.fit(formula, data, priors=priors, seed=1, threads=1))
        assert found.verdict == "trust", (formula, found)
    with pytest.raises(ModelError, match="no hyperparameters"):
        diagnose(pp.fit("y | se(s) ~ 1", data, seed=1, threads=1)).plot()


def test_formulas_of_other_parameters() -> None:
    n = 120
    g, x = np.repeat(np.arange(12), 10), RNG.normal(size=n)
    data = {"y": x + RNG.normal(size=12)[g] + np.exp(0.3 * x) * RNG.normal(size=n), "x": x, "g": [f"g{k}" for k in g]}
    found = diagnose(pp.fit(pp.formula("y ~ x + (1 | g)", sigma="~ x"), data, seed=1, threads=1))
    assert found.verdict == "trust", found
    data = {"y": RNG.normal(size=n) + RNG.normal(size=12)[g], "g": data["g"]}
    found = diagnose(pp.fit(pp.formula("y ~ 1 + (1 | g)", sigma="~ 1 + (1 | g)"), data, seed=1, threads=1))
    line = found.table.loc["sd at 0"]
    assert line["where"] == "sd(sigma.Intercept|g)"
    assert "without (1 | g) in the formula of sigma" in line["mend"]


@pytest.mark.parametrize("name", ["sleepstudy", "cbpp"])
def test_a_fit_without_its_rows_says_what_was_not_checked(name: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.pp"
    fit = fitted(name)
    fit.save(path, data=False)
    found = diagnose(pp.load(path))
    last = {"sleepstudy": "rows in groups.", "cbpp": "collinear predictors, rows in groups and searches in groups."}
    assert repr(found).endswith(f"Saved without rows; not checked: {last[name]}")
    assert "collinear predictors" not in found.table.index
    fit.save(tmp_path / "whole.pp")
    assert repr(diagnose(pp.load(tmp_path / "whole.pp"))) == repr(diagnose(fit))


def test_what_is_shown(tmp_path: Path) -> None:
    found = diagnose(fitted("eight_schools"))
    lines = repr(found).splitlines()
    assert lines[0].startswith("Diagnosis of") and lines[2].startswith("Trust it with care")
    assert list(found.table.columns) == ["about", "where", "verdict", "evidence", "mend"]
    assert found.table["verdict"].iloc[0] == "care" and (found.table["mend"] != "").sum() == 1
    assert "<table" in found._repr_html_()
    found.plot().savefig(tmp_path / "diagnosis.png", dpi=40)
    flat = fitted("Dyestuff", priors={"sd(Batch)": pp.Flat()})
    diagnose(flat).plot().savefig(tmp_path / "flat.png", dpi=40)
