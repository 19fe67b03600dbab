"""Simulation-based calibration: right and wrong samplers, files that are resumed, what is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr

import partialpool as pp
from partialpool.criticism import calibration_replicate as replicate
from partialpool.criticism.calibrate import calibrate
from partialpool.criticism.calibration import OFF, Calibration, contraction, quantity_p
from partialpool.criticism.calibration_words import told_sds
from partialpool.errors import InferenceError, ModelError, PriorError, StorageError
from partialpool.inference.prior import Simulation, simulate

matplotlib.use("Agg")

SE = np.array([0.5, 1.0, 2.0, 1.5])


def toy() -> pp.Model:
    """y ~ N(mu, se^2), mu ~ N(0, 1): the posterior is known."""
    return pp.Model.from_formula("y | se(s) ~ 1", {"y": np.arange(4.0), "s": SE}, priors={"Intercept": pp.Normal(0, 1)})


def sampler(factor: float, shift: float = 0.0, draws: int = 400) -> Any:
    """Draws from the toy's posterior, its sd multiplied and its mean moved by so many sds."""

    def draw(model: pp.Model, seed: int) -> dict[str, np.ndarray]:
        precision = 1 + (SE**-2.0).sum()
        mean, sd = (model.design.y / SE**2).sum() / precision, precision**-0.5
        z = np.random.default_rng(seed).standard_normal(draws)
        return {"Intercept": mean + sd * (shift + factor * z)}

    return draw


def groups() -> pp.Model:
    g = [f"g{k}" for k in np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])]
    x = np.random.default_rng(3).normal(size=len(g))
    priors = {"Intercept": pp.Normal(0, 1), "x": pp.Normal(0, 1), "sd(g)": pp.HalfNormal(1), "sigma": pp.HalfNormal(1)}
    return pp.Model.from_formula("y ~ x + (1 | g)", {"y": x, "x": x, "g": g}, priors=priors)


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate(groups(), 60, threads=2, progress=False)


# -- right and wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "shift", "verdict"),
    [(1.0, 0.0, "calibrated"), (0.9, 0.0, "too narrow"), (1.15, 0.0, "too wide"), (1.0, 0.2, "too high"),
     (1.0, -0.2, "too low")],
)  # fmt: skip
def test_a_wrong_sampler_is_caught_and_the_right_one_is_not(factor: float, shift: float, verdict: str) -> None:
    answer = calibrate(toy(), 1000, seed=1, threads=1, progress=False, fit=sampler(factor, shift))
    assert answer.table.loc["Intercept", "verdict"] == verdict
    assert answer.calibrated == (verdict == "calibrated")
    assert ("Not calibrated" in repr(answer)) == (verdict != "calibrated")


def test_own_fits_are_calibrated(found: Calibration) -> None:
    assert found.calibrated and found.replicates == 60
    names = ["Intercept", "x", "sd(Intercept|g)", "sigma", "g[g0]", "g[g5]", "log likelihood"]
    assert list(found.quantities) == names
    assert found.places.to_numpy().min() >= 0 and found.places.to_numpy().max() <= 1
    assert (found.table["spread"] - 1).abs().max() < 0.5
    # one row and six rows of a group
    assert found.table.loc["g[g0]", "contraction"] < found.table.loc["g[g5]", "contraction"]


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(4)
    p = np.array([quantity_p(rng.random(200)) for _ in range(300)])
    assert np.mean(p < 0.05) < 0.09 and np.mean(p < 0.01) < 0.03


@pytest.mark.parametrize("count", [120, 600])
def test_the_errors_that_are_told_are_those_that_are_caught(count: int) -> None:
    """Nine times in ten, by places drawn directly: those of an sd that is a share of the right one."""
    rng = np.random.default_rng(5)
    for share in told_sds(count, 7):
        caught = [quantity_p(ndtr(rng.standard_normal(count) / share)) * 7 < OFF for _ in range(100)]
        assert 0.8 < np.mean(caught) < 0.98  # normal scores are cut at 3.3, the distribution function adds a little


def test_contraction_is_the_share_of_the_prior_variance_that_data_remove() -> None:
    answer = calibrate(toy(), 100, threads=1, progress=False)
    precision = (SE**-2.0).sum()
    assert answer.table.loc["Intercept", "contraction"] == pytest.approx(precision / (1 + precision), abs=0.04)
    # an effect whose prior is a mixture of wide and narrow ones: u = sd z, one row with a variance of 1/4
    rng = np.random.default_rng(7)
    sd = np.abs(rng.normal(size=200_000))
    y = sd * rng.normal(size=sd.size) + 0.5 * rng.normal(size=sd.size)
    kept = sd**2 / (sd**2 + 0.25)
    expected = 1 - np.mean(0.25 * kept) / np.mean(sd**2)
    assert contraction(kept * y, 0.5 * np.sqrt(kept)) == pytest.approx(expected, abs=0.01)


def test_a_group_effect_of_few_rows_is_not_said_to_be_its_prior(found: Calibration) -> None:
    """Of three rows and more the data say a lot, whatever the spread of true values in the middle."""
    assert found.table.loc["g[g5]", "contraction"] > 0.5
    assert found.table["contraction"].dropna().between(0, 1).all()


def test_places_are_posterior_probabilities() -> None:
    """Of the toy in closed form; of sigma by counting draws."""
    fit = toy().with_response(np.array([1.0, 0.0, 2.0, -1.0])).fit(seed=1, threads=1)
    precision = 1 + (SE**-2.0).sum()
    mean = (fit.model.design.y / SE**2).sum() / precision
    from scipy.stats import norm

    at = 0.3
    expected = norm.cdf((at - mean) * precision**0.5)
    assert replicate.parameter_places(fit, np.array([at]))[0] == pytest.approx(expected, abs=1e-9)
    other = groups().with_response(np.random.default_rng(1).normal(size=21)).fit(seed=1, threads=1, draws=20_000)
    values = other.summary()["q50"].to_numpy()
    places = replicate.parameter_places(other, values)
    counted = np.array(
        [(other.draws(name) < value).mean() for name, value in zip(other.parameters, values, strict=True)]
    )
    np.testing.assert_allclose(places, 0.5, atol=0.02)
    np.testing.assert_allclose(counted, places, atol=0.02)


@pytest.mark.parametrize("name", ["sleepstudy", "eight_schools", "Pastes", "cbpp"])
def test_log_likelihoods_are_those_that_arviz_gets(name: str) -> None:
    entry = pp.datasets.describe(name)
    fit = pp.fit(entry.formula, pp.datasets.load(name), family=entry.family or "gaussian", seed=1, threads=1, draws=100)
    ours = replicate._log_likelihoods(fit, np.arange(100))
    theirs = fit.to_arviz()["log_likelihood"].to_dataset()
    theirs = next(iter(theirs.data_vars.values())).to_numpy()[0].sum(axis=1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_the_truth_is_what_the_data_were_drawn_from() -> None:
    model = groups()
    drawn = simulate(model, seed=5)
    plan = replicate.Plan(model, (), replicate.followed_effects(model), None, {}, 0)
    truth = replicate.truths(plan, model.with_response(drawn.y), drawn)
    exact = Simulation(drawn.theta, drawn.gamma, drawn.effects, drawn.y)
    assert truth["sigma"] == pytest.approx(float(np.exp(exact.theta[-1])))
    codes = model.design.factors[0].codes
    effects = drawn.effects[model.row_blocks.structure.effects_of(0)][:, 0]
    eta = truth["Intercept"] + truth["x"] * model.design.data["x"].to_numpy() + effects[codes]
    z = (drawn.y - eta) / truth["sigma"]
    assert truth["log likelihood"] == pytest.approx(-0.5 * (z @ z) - 21 * np.log(truth["sigma"] * np.sqrt(2 * np.pi)))
    assert truth["g[g5]"] == effects[5]


# -- seeds, files, interruptions --------------------------------------------------------------------------------------


def test_the_seed_decides_and_threads_do_not(found: Calibration) -> None:
    again = calibrate(groups(), 20, threads=1, progress=False)
    assert (again.places.to_numpy() == found.places.to_numpy()[:20]).all()
    other = calibrate(groups(), 20, seed=1, threads=1, progress=False)
    assert (again.places.to_numpy() != other.places.to_numpy()).all()


def interrupted(after: int) -> Any:
    """The right sampler until it is interrupted; the same function to a file, whenever that is."""
    right, left = sampler(1.0), [after]

    def draw(model: pp.Model, seed: int) -> dict[str, np.ndarray]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        answer: dict[str, np.ndarray] = right(model, seed)
        return answer

    return draw


def test_an_interrupt_keeps_what_was_finished_and_the_file_resumes(tmp_path: Path) -> None:
    path = tmp_path / "replicates.jsonl"
    part = calibrate(toy(), 60, threads=1, progress=False, path=path, fit=interrupted(31))
    assert part.replicates == 31 and "Interrupted: 31 of 60" in repr(part)
    text = path.read_bytes()
    path.write_bytes(text[:-40])  # as an interruption in the middle of a line leaves it
    whole = calibrate(toy(), 60, threads=1, progress=False, path=path, fit=interrupted(30))
    assert whole.replicates == 60
    plain = calibrate(toy(), 60, threads=1, progress=False, fit=sampler(1.0))
    assert (plain.places.to_numpy() == whole.places.to_numpy()).all()
    assert path.read_bytes().startswith(text[:-40])
    # all of it is read, none is computed
    again = calibrate(toy(), 60, threads=1, progress=False, path=path, fit=interrupted(0))
    assert (again.places.to_numpy() == whole.places.to_numpy()).all()
    assert calibrate(toy(), 25, threads=1, progress=False, path=path, fit=interrupted(0)).replicates == 25


def test_an_interrupt_before_anything_is_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(toy(), 30, threads=1, progress=False, fit=interrupted(0))
    with pytest.raises(KeyboardInterrupt):
        calibrate(toy(), 30, threads=2, progress=False, fit=interrupted(0))
    assert all(not thread.name.startswith("ThreadPool") for thread in threading.enumerate() if thread.is_alive())


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "replicates.jsonl"
    calibrate(toy(), 20, threads=1, progress=False, path=path, fit=sampler(1.0))
    before = path.read_bytes()
    with pytest.raises(StorageError, match="another seed"):
        calibrate(toy(), 20, seed=2, threads=1, progress=False, path=path, fit=sampler(1.0))
    with pytest.raises(StorageError, match=r"another formula.*other quantities"):
        calibrate(groups(), 20, threads=1, progress=False, path=path)
    other = pp.Model.from_formula(
        "y | se(s) ~ 1", {"y": np.arange(4.0), "s": SE}, priors={"Intercept": pp.Normal(0, 2)}
    )
    with pytest.raises(StorageError, match="other priors"):
        calibrate(other, 20, threads=1, progress=False, path=path, fit=sampler(1.0))
    data = pp.Model.from_formula(
        "y | se(s) ~ 1", {"y": np.arange(4.0), "s": 2 * SE}, priors={"Intercept": pp.Normal(0, 1)}
    )
    with pytest.raises(StorageError, match="other data"):
        calibrate(data, 20, threads=1, progress=False, path=path, fit=sampler(1.0))
    assert path.read_bytes() == before
    # a sampler that was mended since: its old replicates are not mixed with new ones
    with pytest.raises(StorageError, match="another fit= function"):
        calibrate(toy(), 20, threads=1, progress=False, path=path, fit=sampler(1.1))
    assert path.read_bytes() == before
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    with pytest.raises(StorageError, match="nothing was overwritten"):
        calibrate(toy(), 20, threads=1, progress=False, path=thesis)
    assert thesis.read_text() == "years of work"
    with pytest.raises(StorageError, match="is a folder"):
        calibrate(toy(), 20, threads=1, path=tmp_path)
    with pytest.raises(StorageError, match="no folder"):
        calibrate(toy(), 20, threads=1, path=tmp_path / "no" / "file")


def test_a_file_cut_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "replicates.jsonl"
    calibrate(toy(), 20, threads=1, progress=False, path=path, fit=sampler(1.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    calibrate(toy(), 20, threads=1, progress=False, path=path, fit=sampler(1.0))
    assert path.read_bytes() == whole
    assert json.loads(whole.splitlines()[0])["kind"] == "partialpool calibration"


# -- what users write -------------------------------------------------------------------------------------------------


def test_chains_are_thinned_to_independent_draws() -> None:
    rng = np.random.default_rng(6)
    chains = np.empty((4, 1000))
    chains[:, 0] = rng.normal(size=4)
    for t in range(1, 1000):
        chains[:, t] = 0.9 * chains[:, t - 1] + np.sqrt(1 - 0.81) * rng.normal(size=4)
    kept = replicate.independent("mu", chains)
    assert 120 < kept.size < 400  # 4,000 draws worth about 4,000 / 19 independent ones
    assert replicate.independent("mu", chains[0]).size == 1000


def test_what_a_function_may_return() -> None:
    def frame(model: pp.Model) -> pd.DataFrame:
        return pd.DataFrame(sampler(1.0)(model, 1))

    assert calibrate(toy(), 20, threads=1, progress=False, fit=frame).quantities == ("Intercept",)
    own = calibrate(toy(), 20, threads=1, progress=False, fit=lambda model: model.fit(seed=1, threads=1))
    assert own.quantities == ("Intercept", "log likelihood")


def test_a_function_may_fit_a_smaller_model_but_no_other_parameters() -> None:
    x = np.random.default_rng(3).normal(size=21)

    def other(formula: str) -> Any:
        return lambda model: pp.fit(formula, {"y": model.design.y, "x": x, "z": x**2}, seed=1, threads=1)

    answer = calibrate(groups(), 20, threads=1, progress=False, fit=other("y ~ x"))
    assert answer.quantities == ("Intercept", "x", "sigma")
    with pytest.raises(ModelError, match="returned 'z', which is not among what is checked"):
        calibrate(groups(), 20, threads=1, progress=False, fit=other("y ~ z"))


def test_the_response_has_no_part_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "replicates.jsonl"
    calibrate(toy(), 20, threads=1, progress=False, path=path)
    data = {"y": 50 - np.arange(4.0), "s": SE}
    other = pp.Model.from_formula("y | se(s) ~ 1", data, priors={"Intercept": pp.Normal(0, 1)})
    before = path.read_bytes()
    assert calibrate(other, 20, threads=1, progress=False, path=path).replicates == 20
    assert path.read_bytes() == before


def test_what_is_returned_for_some_data_sets_only_is_told() -> None:
    calls = [0]

    def uneven(model: pp.Model) -> dict[str, np.ndarray]:
        calls[0] += 1
        draws = np.random.default_rng(calls[0]).normal(size=100)
        return dict.fromkeys(("Intercept", "x") if calls[0] % 2 else ("Intercept",), draws)

    def alternating(model: pp.Model) -> dict[str, np.ndarray]:
        calls[0] += 1
        return {("Intercept", "x")[calls[0] % 2]: np.random.default_rng(calls[0]).normal(size=100)}

    answer = calibrate(groups(), 20, threads=1, progress=False, fit=uneven)
    assert answer.quantities == ("Intercept",)
    assert "Left out, since not every replicate has them: 'x'." in repr(answer)
    with pytest.raises(ModelError, match="No quantity was returned"):
        calibrate(groups(), 20, threads=1, progress=False, fit=alternating)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda model: 1 / 0, r"failed in replicate 0: ZeroDivisionError: division by zero"),
        (lambda model: [1, 2, 3], "must return a fit of partialpool, or draws"),
        (lambda model: {"mu": np.zeros(100)}, "'mu', which is not among what is checked. There are: 'Intercept'"),
        (lambda model: {"Intercept": np.zeros(3)}, r"shape \(3,\)"),
        (lambda model: {"Intercept": np.full(100, np.nan)}, "not all finite"),
        (lambda model: {"Intercept": ["a"] * 100}, "not numbers"),
    ],
)
def test_a_function_that_fails_is_told(function: Any, message: str) -> None:
    for threads in (1, 2):
        with pytest.raises(ModelError, match=message):
            calibrate(toy(), 20, threads=threads, progress=False, fit=function)


def test_flat_priors_are_named_with_what_to_write() -> None:
    data = {"y": np.arange(6.0), "x": np.arange(6.0) ** 2, "g": list("aabbcc")}
    model = pp.Model.from_formula("y ~ x + (1 | g)", data, priors={"x": pp.Flat(), "sd(g)": pp.Flat()})
    with pytest.raises(
        PriorError, match=r"'x' and 'sd\(Intercept\|g\)' are flat.*priors=\{'x': pp.Normal\(0, "
    ) as told:
        calibrate(model)
    code = str(told.value).split("such as ")[1].rstrip(".")
    priors = eval(code.removeprefix("priors="), {"pp": pp})
    assert pp.Model.from_formula("y ~ x + (1 | g)", data, priors=priors).sample_prior(5, seed=1).shape == (5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicates": 5}, "at least 20"),
        ({"replicates": 2.5}, "whole number"),
        ({"seed": -1}, "seed = -1"),
        ({"threads": 0}, "threads = 0"),
        ({"fit": 3}, "takes a function"),
        ({"drws": 100}, "Did you mean 'draws'"),
        ({"fit": sampler(1.0), "draws": 100}, "leave out draws"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        calibrate(toy(), **options)


def test_what_is_no_model_and_rows_with_weights() -> None:
    with pytest.raises(ModelError, match="takes a model"):
        calibrate("y ~ x")  # type: ignore[arg-type]
    weighted = pp.Model.from_formula("y | weights(w) ~ 1", {"y": np.arange(4.0), "w": np.ones(4)})
    with pytest.raises(ModelError, match="counts several times"):
        calibrate(weighted)


def test_replicates_without_a_fit_are_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = replicate.fit_model

    def failing(model: pp.Model, **options: Any) -> Any:
        if model.design.y[0] < 0:  # a property of the data
            raise InferenceError("The density is not finite.")
        return real(model, **options)

    monkeypatch.setattr(replicate, "fit_model", failing)
    answer = calibrate(toy(), 40, threads=1, progress=False)
    assert 5 < len(answer.failures) < 35 and answer.replicates == 40 - len(answer.failures)
    assert "gave no fit and are left out" in repr(answer) and "not finite" in repr(answer)
    monkeypatch.setattr(replicate, "fit_model", lambda model, **options: failing(toy().with_response(-SE)))
    with pytest.raises(ModelError, match="None of 20 replicates could be fitted; the first: The density"):
        calibrate(toy(), 20, threads=1, progress=False)


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_the_table_and_the_coverage(found: Calibration) -> None:
    table, coverage = found.table, found.coverage
    assert list(table.columns) == ["verdict", "p", "cover50", "cover80", "cover90", "cover95", "bias", "spread",
                                   "contraction"]  # fmt: skip
    own = coverage.loc[("sigma", 0.9)]
    assert own["coverage"] == table.loc["sigma", "cover90"]
    assert own["se"] == pytest.approx(np.sqrt(0.09 / 60))
    # a place between 0.05 and 0.95 is a truth within the 90% interval
    inside = found.places["sigma"].between(0.05, 0.95).mean()
    assert own["coverage"] == inside
    assert "<table" in found._repr_html_()
    assert found.shown["cover90"].str.fullmatch(r"[01]\.\d\d").all()  # no more digits than 60 replicates have


def test_plots(found: Calibration, tmp_path: Path) -> None:
    for kind in ("ranks", "recovery"):
        found.plot(kind).savefig(tmp_path / f"{kind}.png", dpi=40)  # type: ignore[arg-type]
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert found.plot(names=["sigma"], ax=ax) is ax.figure
    with pytest.raises(ModelError, match="panels"):
        found.plot(ax=ax)
    with pytest.raises(ModelError, match="Did you mean 'sigma'"):
        found.plot(names="sigm")
    with pytest.raises(ModelError, match="recovery"):
        found.plot("recover")  # type: ignore[arg-type]
