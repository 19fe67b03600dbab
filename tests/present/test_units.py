from __future__ import annotations

import io
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle, StepPatch
from scipy import stats

import partialpool as pp
from fake_pooled import fake_pooled, simulated
from partialpool.present.pit import pit_bounds
from partialpool.present.profile import (
    at_least,
    at_most,
    below_or_at,
    control_limits,
    expected_shares,
    moved,
    population_nodes,
)
from partialpool.present.transforms import pit_heights, smooth_components, verdict
from partialpool.present.units import UnitPlots, log_ticks, names_of

FAMILIES = ("normal", "binomial", "poisson")
KINDS = ("shrinkage", "caterpillar", "forest", "funnel", "population", "pit")


def drawn(figure: Figure) -> bytes:
    """The figure as a PNG; a warning while drawing is an error."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def points(axes: Any) -> list[np.ndarray]:
    return [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]


def note(figure: Any) -> str:
    return "" if figure._supxlabel is None else figure._supxlabel.get_text()


def curves(axes: Any, label: str) -> np.ndarray:
    return next(np.asarray(line.get_xydata()) for line in axes.lines if line.get_label() == label)


@pytest.fixture(scope="module")
def schools() -> SimpleNamespace:
    y, se = [28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]
    return fake_pooled("normal", y, se, (8.0, 5.0), names=np.array(list("ABCDEFGH")), label="gain")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 8, 200])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_plot_is_drawn_and_nothing_leaves_the_figure(family: str, count: int, kind: str) -> None:
    figure = getattr(UnitPlots(simulated(family, count, long=True)), kind)()
    assert drawn(figure).startswith(b"\x89PNG")
    width, height = figure.get_size_inches() * figure.dpi
    labels = [figure._suptitle, *([figure._supxlabel] if note(figure) else [])]
    for axes in figure.axes:
        labels += axes.texts
        labels += [axes.xaxis.label, axes.yaxis.label, *axes.get_legend().get_texts()]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            labels += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for text in (label for label in labels if label.get_text()):
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text.get_text()


def test_called_itself_it_draws_the_shrinkage(schools: Any) -> None:
    raw, pooled = points(UnitPlots(schools)().axes[0])
    assert raw[:, 0] == pytest.approx(np.sort(schools.units.y))
    order = np.argsort(schools.units.y, kind="stable")
    assert pooled[:, 0] == pytest.approx(schools.posterior.moments()[0][order])


def test_shrinkage_has_lines_intervals_the_mean_and_complete_pooling(schools: Any) -> None:
    figure = UnitPlots(schools).shrinkage()
    axes = figure.axes[0]
    thin, thick = (c for c in axes.collections if isinstance(c, LineCollection))
    order = np.argsort(schools.units.y, kind="stable")
    assert np.array([segment[:, 0] for segment in thin.get_segments()]) == pytest.approx(
        schools.posterior.quantiles(np.array([0.05, 0.95]), order).T
    )
    assert [segment[0, 0] for segment in thick.get_segments()] == pytest.approx(np.sort(schools.units.y))
    places = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    assert places == {"population mean": 8.0, "complete pooling": schools.units.complete_pooling}
    assert axes.get_xlabel() == "gain" and axes.get_ylabel() == "unit (se)"
    assert axes.get_yticklabels()[0].get_text() == "C (16)"
    assert note(figure) == ""


def test_sixty_of_many_are_shown_and_it_is_said() -> None:
    pooled = simulated("binomial", 5000)
    figure = UnitPlots(pooled).shrinkage()
    raw = points(figure.axes[0])[0]
    assert len(raw) == 60
    assert raw[0, 0] == pooled.units.raw.min() and raw[-1, 0] == pooled.units.raw.max()
    assert note(figure) == "60 of 5,000 units, evenly spaced by rank."
    assert figure.axes[0].get_xlabel() == "deaths per trial"


def test_units_without_trials_are_left_out_of_what_needs_their_data() -> None:
    pooled = fake_pooled("binomial", [3, 0, 5, 9], [20, 0, 30, 40], (2.0, 8.0), names=np.array(list("ABCD")))
    pooled.units.raw = np.array([0.15, np.nan, 5 / 30, 9 / 40])
    for kind in ("shrinkage", "forest", "funnel", "population", "pit"):
        figure = getattr(UnitPlots(pooled), kind)()
        assert "1 unit is left out: no trials." in note(figure), kind
        assert drawn(figure)
    labels = [text.get_text() for text in UnitPlots(pooled).shrinkage().axes[0].get_yticklabels()]
    assert labels == ["A (20)", "C (30)", "D (40)"]
    assert len(points(UnitPlots(pooled).caterpillar().axes[0])[0]) == 4
    pooled.units.raw = np.full(4, np.nan)
    with pytest.raises(pp.ModelError, match="nothing to draw"):
        UnitPlots(pooled).funnel()


def test_the_caterpillar_colours_units_whose_interval_excludes_the_mean() -> None:
    pooled = simulated("poisson", 40)
    low, high = pooled.posterior.quantiles(np.array([0.05, 0.95]))
    beyond = (low > pooled.population.mean) | (high < pooled.population.mean)
    axes = UnitPlots(pooled).caterpillar().axes[0]
    inside, outside = points(axes)
    assert len(outside) == beyond.sum() > 0 and len(inside) == (~beyond).sum()
    assert sorted(outside[:, 0]) == pytest.approx(sorted(pooled.posterior.moments()[0][beyond]))
    heights = np.concatenate([inside, outside])
    assert (np.diff(heights[np.argsort(heights[:, 1]), 0]) >= 0).all()


def test_many_units_are_a_ribbon_with_named_extremes() -> None:
    pooled = simulated("normal", 10_000)
    figure = UnitPlots(pooled).caterpillar()
    axes = figure.axes[0]
    assert "800 of 10,000 units, evenly spaced by rank." in note(figure)
    assert sum(len(c.get_segments()) for c in axes.collections) == 800
    order = np.argsort(pooled.posterior.moments()[0])
    extremes = [*order[:5], *order[-5:]]
    assert sorted(text.get_text() for text in axes.texts) == sorted(f"Unit {unit}" for unit in extremes)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 10
    # An annotation's box holds its line too; the labels themselves stand a line of text apart.
    for side in ("left", "right"):
        heights = np.sort([text.get_position()[1] for text in axes.texts if text.get_ha() == side])
        pixels = axes.transData.transform(np.column_stack([np.zeros(5), heights]))[:, 1]
        assert (np.diff(pixels) >= 8 * figure.dpi / 72).all()


def test_names_are_cut_where_they_do_not_differ() -> None:
    units = SimpleNamespace(names=np.array(["St Mary's hospital, ward 1", "St Mary's hospital, ward 2", "Guy's"]))
    short = names_of(units, np.arange(3), 15)
    assert len(set(short)) == 3 and max(map(len, short)) == 15 and short[0].endswith("1") and short[2] == "Guy's"
    assert names_of(units, np.array([0, 2]), 15) == ["St Mary's hosp…", "Guy's"]


# The funnel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [0.025, 0.001])
@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_counts_are_outside_the_limits_exactly_where_their_tail_is_small(family: str, tail: float) -> None:
    size = np.array([1.0, 5, 20, 100, 1234])
    place = 0.13
    low, high = control_limits(family, np.array([place]), np.ones(1), size, tail)
    for n, below, above in zip(size, low, high, strict=True):
        y = np.arange(0, n + 1 if family == "binomial" else 400)
        law = stats.binom(int(n), place) if family == "binomial" else stats.poisson(n * place)
        assert ((y / n < below) == (law.cdf(y) < tail)).all()
        assert ((y / n > above) == (law.sf(y - 1) < tail)).all()


def test_tails_of_counts_are_scipys() -> None:
    y, n = np.arange(-1, 14.0), np.full(15, 12.0)
    assert at_most("binomial", y, n, 0.3) == pytest.approx(stats.binom(12, 0.3).cdf(y), abs=1e-14)
    assert at_least("binomial", y, n, 0.3) == pytest.approx(stats.binom(12, 0.3).sf(y - 1), abs=1e-14)
    assert at_most("poisson", y, n, 0.3) == pytest.approx(stats.poisson(3.6).cdf(y), abs=1e-14)
    assert at_least("poisson", y, n, 0.3) == pytest.approx(stats.poisson(3.6).sf(y - 1), abs=1e-14)


def test_normal_limits_are_the_targets_and_the_wider_population() -> None:
    pooled = simulated("normal", 50)
    size = np.array([5.0, 10.0])
    low, high = control_limits("normal", np.array([3.0]), np.ones(1), size, 0.025)
    assert high - 3 == pytest.approx(1.959964 * size) and 3 - low == pytest.approx(1.959964 * size)
    for tail in (0.025, 0.001):
        low, high = control_limits("normal", *population_nodes(pooled), size, tail)
        law = stats.norm(8, np.hypot(6, size))
        assert low == pytest.approx(law.ppf(tail), abs=0.02) and high == pytest.approx(law.isf(tail), abs=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_populations_nodes_give_its_marginal(family: str) -> None:
    """Against scipy's beta-binomial, negative binomial and normal."""
    pooled = simulated(family, 60)
    y, size = pooled.units.y, pooled.units.size
    exact = [pooled.population.marginal(one).cdf(value) for value, one in zip(y, size, strict=True)]
    assert below_or_at(family, y, size, *population_nodes(pooled)) == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_dashed_limits_hold_the_units_of_the_population(family: str) -> None:
    pooled = simulated(family, 400)
    figure = UnitPlots(pooled).funnel()
    axes = figure.axes[0]
    size = pooled.units.size
    low, high = control_limits(family, *population_nodes(pooled), size, 0.025)
    outside = ((pooled.units.raw < low) | (pooled.units.raw > high)).mean()
    assert 0.01 < outside < 0.09
    found = re.search(r"limits: ([\d,]+) of 400 units; of the dashed ones too: ([\d,]+)", note(figure))
    solid, both = (int(count.replace(",", "")) for count in found.groups())
    exact = [control_limits(family, np.array([pooled.units.complete_pooling]), np.ones(1), size, 0.001)]
    exact.append(control_limits(family, *population_nodes(pooled), size, 0.001))
    outside = [(pooled.units.raw < low) | (pooled.units.raw > high) for low, high in exact]
    assert solid == outside[0].sum() >= 2
    assert abs(both - (outside[0] & outside[1]).sum()) <= 2  # limits between the grid of sizes are interpolated
    assert both <= 5  # binomial(400, 0.002), 99.9%
    wide = curves(axes, "99.8% with the population's spread")
    narrow = curves(axes, "99.8% limits")
    assert (wide[-1, 1] < narrow[-1, 1]) and len(wide) == len(narrow)


def test_the_names_of_units_outside_are_written() -> None:
    y, n = np.array([10.0, 11, 9, 60, 12, 8]), np.array([100.0, 110, 95, 200, 120, 90])
    pooled = fake_pooled("binomial", y, n, (200.0, 1800.0), names=np.array(list("ABCDEF")))
    figure = UnitPlots(pooled).funnel(target=0.1)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["D"]
    assert "1 of 6 units; of the dashed ones too: 1" in note(figure)
    assert "around the target, 0.1" in note(figure)
    assert axes.get_xlabel() == "trials" and axes.get_ylabel() == "events per trial"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "outside both" in labels and "outside 99.8%" not in labels


def test_a_target_moves_the_limits_and_must_be_possible(schools: Any) -> None:
    for target, most in ((0.0, 1e-9), (20.0, 1e-9)):
        axes = UnitPlots(schools).funnel(target).axes[0]
        assert curves(axes, "95% limits")[:, 1].mean() < target + most
        assert axes.lines[0].get_ydata()[0] == target
    for family, target in (("binomial", 1.2), ("binomial", 0.0), ("poisson", -1.0), ("normal", np.inf)):
        with pytest.raises(pp.ModelError, match="cannot be a unit's value"):
            UnitPlots(simulated(family, 8)).funnel(target)


def test_moves_are_on_the_link_scale() -> None:
    places = np.array([0.1, 0.5])
    assert moved("normal", places, 1.0) == pytest.approx([1.1, 1.5])
    assert moved("poisson", places, np.log(2)) == pytest.approx([0.2, 1.0])
    assert moved("binomial", places, np.log(9)) == pytest.approx([0.5, 0.9])


# The forest -----------------------------------------------------------------------------------------------------------


def test_the_forest_has_squares_by_weight_the_diamond_and_the_prediction(schools: Any) -> None:
    figure = UnitPlots(schools).forest(0.8)
    axes = figure.axes[0]
    clouds = [c for c in axes.collections if isinstance(c, PathCollection)]
    squares = next(c for c in clouds if len(c.get_sizes()) == 8)
    assert np.asarray(squares.get_offsets())[:, 0] == pytest.approx(schools.units.y)
    weight = 1 / (schools.units.size**2 + 25)
    assert squares.get_sizes() - 6 == pytest.approx(90 * weight / weight.max())
    diamond = next(patch for patch in axes.patches if isinstance(patch, Polygon))
    low, high = 8 + 5 / np.sqrt(8) * stats.norm.ppf([0.1, 0.9])
    assert diamond.get_xy()[:, 0].min() == pytest.approx(low, abs=1e-3)
    assert diamond.get_xy()[:, 0].max() == pytest.approx(high, abs=1e-3)
    bar = next(patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert [bar.get_x(), bar.get_x() + bar.get_width()] == pytest.approx(stats.norm(8, 5).interval(0.8))
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == [*"ABCDEFGH", "Mean", "New study"]
    assert axes.texts[0].get_text() == "28 [9, 47]" and axes.texts[-2].get_text() == "8 [6, 10]"
    assert figure._suptitle.get_text() == "Estimates and 80% intervals"


def test_log_ratios_are_drawn_as_ratios() -> None:
    y, se = np.log([0.5, 0.8, 1.1]), np.array([0.2, 0.3, 0.1])
    for label, ratios in (("log risk ratio", True), ("log_or", True), ("lnRR", True), ("logical", False), ("", False)):
        pooled = fake_pooled("normal", y, se, (np.log(0.8), 0.2), label=label)
        assert (UnitPlots(pooled).forest().axes[0].get_xscale() == "log") is ratios, label
    axes = UnitPlots(pooled).forest(exponentiate=True).axes[0]
    assert axes.get_xlabel() == "ratio" and axes.texts[0].get_text().startswith("0.50 [")
    assert all(float(text.get_text()) > 0 for text in axes.get_xticklabels())
    assert 1.0 in [line.get_xdata()[0] for line in axes.lines]
    with pytest.raises(pp.ModelError, match="logarithms of ratios"):
        UnitPlots(simulated("binomial", 8)).forest(exponentiate=True)
    with pytest.raises(pp.ModelError, match="between 0 and 1"):
        UnitPlots(simulated("binomial", 8)).forest(95)


def test_an_interval_too_wide_ends_in_an_arrow() -> None:
    y, se = np.array([0.1, 0.2, 0.15, 0.3]), np.array([0.1, 0.1, 0.1, 50.0])
    axes = UnitPlots(fake_pooled("normal", y, se, (0.2, 0.1))).forest().axes[0]
    low, high = axes.get_xlim()
    assert high - low < 2
    assert sum(len(cloud) == 1 for cloud in points(axes)) >= 2  # an arrow to each side
    assert axes.texts[3].get_text() == "0.30 [-97.70, 98.30]"


def test_log_ticks_are_round_and_few() -> None:
    assert log_ticks(0.5, 1.8) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    for low, high in ((1e-9, 1e9), (0.9, 1.1), (3, 400), (1e4, 3e6)):
        ticks = log_ticks(low, high)
        assert 2 <= len(ticks) <= 9 and min(ticks) >= low and max(ticks) <= high


# The population and its check -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_population_is_drawn_with_histogram_expectation_and_rug(family: str) -> None:
    pooled = simulated(family, 300)
    axes = UnitPlots(pooled).population().axes[0]
    bars, expected = (patch for patch in axes.patches if isinstance(patch, StepPatch))
    heights, edges, _ = bars.get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(1)
    assert (expected.get_data()[0] * np.diff(edges)).sum() == pytest.approx(1, abs=0.03)
    line = curves(axes, "population")
    assert line[:, 1] == pytest.approx(pooled.population.density(line[:, 0]))
    rug = next(c for c in axes.collections if isinstance(c, LineCollection))
    assert sorted(s[0, 0] for s in rug.get_segments()) == pytest.approx(sorted(pooled.posterior.moments()[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expected_histogram_is_that_of_many_simulated_units(family: str) -> None:
    pooled = simulated(family, 50)
    size = np.repeat(pooled.units.size, 4000)
    rng = np.random.default_rng(5)
    if family == "normal":
        raw = rng.normal(rng.normal(8, 6, size.size), size)
        edges = np.linspace(-30, 50, 17)
    elif family == "binomial":
        raw = rng.binomial(size.astype(int), rng.beta(8, 92, size.size)) / size
        edges = np.linspace(0, 0.3, 17)
    else:
        raw = rng.poisson(size * rng.gamma(7, 1 / 6, size.size)) / size
        edges = np.linspace(0, 4, 17)
    shares = np.histogram(raw, edges)[0] / raw.size
    assert expected_shares(pooled, edges) == pytest.approx(shares, abs=0.005)


def test_point_masses_are_stems_with_their_share() -> None:
    pooled = simulated("normal", 300)
    with_atom = fake_pooled("normal", pooled.units.y, pooled.units.size, (8.0, 6.0), atom=0.25)
    axes = UnitPlots(with_atom).population().axes[0]
    assert [text.get_text() for text in axes.texts] == ["25%"]
    assert points(axes)[0][0, 0] == pytest.approx(8)
    with_atom.population.atoms = (np.array([-3.0, 8.0]), np.array([0.4, 0.6]))
    axes = UnitPlots(with_atom).population().axes[0]
    (stems,) = points(axes)
    assert stems[:, 0] == pytest.approx([-3, 8]) and stems[0, 1] / stems[1, 1] == pytest.approx(2 / 3)
    assert "population" not in [line.get_label() for line in axes.lines]  # nothing is continuous


def test_a_density_without_a_top_is_cut_off() -> None:
    rng = np.random.default_rng(1)
    n = np.full(100, 5.0)
    pooled = fake_pooled("binomial", rng.binomial(5, rng.beta(0.2, 0.4, 100)), n, (0.2, 0.4))
    figure = UnitPlots(pooled).population()
    assert "cut off at the top" in note(figure) and drawn(figure)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_knows_the_right_population_from_a_wrong_one(family: str) -> None:
    pooled = simulated(family, 600, seed=4)
    figure = UnitPlots(pooled).pit()
    assert note(figure).startswith("Compatible")
    bars = next(patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch))
    heights = bars.get_data()[0]
    assert heights.mean() == pytest.approx(1) and len(heights) == 20
    band = next(p for p in figure.axes[0].patches if isinstance(p, Rectangle))
    counts = stats.binom(600, 1 / 20).ppf([0.05, 0.95])
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx(list(counts * 20 / 600))
    for law, word in {
        "normal": (((8.0, 0.5), "more"), ((8.0, 30.0), "less"), ((1.0, 6.0), "higher")),
        "binomial": (((80.0, 920.0), "more"), ((1.0, 11.5), "less"), ((5.0, 95.0), "higher")),
        "poisson": (((70.0, 60.0), "more"), ((1.0, 6 / 7), "less"), ((7.0, 11.0), "higher")),
    }[family]:
        wrong = fake_pooled(family, pooled.units.y, pooled.units.size, law)
        text = note(UnitPlots(wrong).pit())
        assert text.startswith("Not uniform (p < 0.01)") and f" {word} than" in text, (law, text)


def test_the_histogram_is_nonrandomised() -> None:
    below, at = np.array([0.0, 0.3, 0.5]), np.array([0.4, 0.9, 0.5])
    heights = pit_heights(below, at, np.array([0.0, 0.5, 1.0]))
    assert heights == pytest.approx([(1 + 1 / 3) / 1.5, (2 / 3 + 1) / 1.5])
    pooled = simulated("binomial", 20)
    low, high = pit_bounds(pooled, np.arange(20))
    law = [stats.betabinom(int(n), 8, 92) for n in pooled.units.size]
    assert high == pytest.approx([own.cdf(y) for own, y in zip(law, pooled.units.y, strict=True)], abs=2e-4)
    assert low == pytest.approx([own.cdf(y - 1) for own, y in zip(law, pooled.units.y, strict=True)], abs=2e-4)


@pytest.mark.parametrize("count", [8, 50])
def test_the_verdict_errs_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(1000):
        values = rng.uniform(size=count)
        wrong += verdict(values, values).startswith("Not")
    assert 28 <= wrong <= 74  # binomial(1000, 0.05), 99.9%


def test_smooth_components_are_standard_normal_where_uniform_and_smaller_for_counts() -> None:
    rng = np.random.default_rng(3)
    uniform = np.array([smooth_components(values, values) for values in rng.uniform(size=(4000, 30))])
    assert np.cov(uniform.T) == pytest.approx(np.eye(4), abs=0.08)
    assert uniform.mean(axis=0) == pytest.approx(0, abs=0.06)
    law = stats.poisson(1.5)
    y = law.rvs((4000, 30), random_state=rng)
    counts = np.array([smooth_components(law.cdf(row - 1), law.cdf(row)) for row in y])
    assert counts.mean(axis=0) == pytest.approx(0, abs=0.06)
    assert (counts.var(axis=0) < 1).all() and counts[:, 0].var() > 0.7


def test_covariates_move_the_population_of_each_unit() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=500)
    size = rng.uniform(1, 3, 500)
    y = rng.normal(2 + 6 * x + rng.normal(0, 1, 500), size)
    pooled = fake_pooled("normal", y, size, (2 + 6 * x.mean(), 1.0))
    assert note(UnitPlots(pooled).pit()).startswith("Not uniform")
    pooled.units.X, pooled.units.x_names = np.column_stack([np.ones(500), x]), ("Intercept", "x")
    table = pd.DataFrame({"mean": [2.0, 6.0]}, index=["Intercept", "x"])
    pooled.population.summary = lambda: table
    assert note(UnitPlots(pooled).pit()).startswith("Compatible")
    assert "not adjusted for the covariates" in note(UnitPlots(pooled).funnel())
    assert "at the mean of the covariates" in note(UnitPlots(pooled).population())
    assert drawn(UnitPlots(pooled).forest())  # the mean has no interval, and is a mark


# All ------------------------------------------------------------------------------------------------------------------


def test_the_users_axes_are_used(schools: Any) -> None:
    for kind in KINDS:
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert getattr(UnitPlots(schools), kind)(ax=right) is figure
        assert right.get_xlabel() and not left.get_xlabel()
        assert figure._suptitle is None and note(figure) == ""
        with pytest.raises(pp.ModelError, match="not both"):
            getattr(UnitPlots(schools), kind)(ax=left, figsize=(3, 3))
        assert tuple(getattr(UnitPlots(schools), kind)(figsize=(9, 8)).get_size_inches()) == (9, 8)


def test_an_infinite_population_mean_is_replaced_and_said(schools: Any) -> None:
    heavy = SimpleNamespace(**{**vars(schools), "population": SimpleNamespace(**vars(schools.population))})
    heavy.population.mean = heavy.population.sd = np.inf
    for kind in KINDS:
        assert drawn(getattr(UnitPlots(heavy), kind)())
    labels = [line.get_label() for line in UnitPlots(heavy).caterpillar().axes[0].lines]
    assert "complete pooling (the population mean is infinite)" in labels


@pytest.mark.parametrize("family", ["normal", "binomial"])
def test_a_million_units_are_quick(family: str) -> None:
    pooled = simulated(family, 8)
    many = 1_000_000
    rng = np.random.default_rng(1)
    size = rng.uniform(5, 18, many) if family == "normal" else rng.integers(1, 2000, many).astype(float)
    y = rng.normal(8, 15, many) if family == "normal" else rng.binomial(size.astype(int), 0.08).astype(float)
    pooled = fake_pooled(family, y, size, (8.0, 6.0) if family == "normal" else (8.0, 92.0))
    mean = pooled.posterior.moments()
    pooled.posterior.moments = lambda: mean
    for kind in KINDS:
        if kind == "forest":
            continue  # its time is that of the units' own intervals, all of them
        start = time.perf_counter()
        figure = getattr(UnitPlots(pooled), kind)()
        assert time.perf_counter() - start < 8, kind
        assert "1,000,000" in note(figure), kind


def test_nothing_global_is_touched() -> None:
    code = (
        "import io, matplotlib, sys, warnings\n"
        "before, filters = dict(matplotlib.rcParams), list(warnings.filters)\n"
        "from fake_pooled import simulated\n"
        "from partialpool.present.units import UnitPlots\n"
        f"for kind in {KINDS!r}:\n"
        "    getattr(UnitPlots(simulated('normal', 20)), kind)().savefig(io.BytesIO(), format='png')\n"
        "print('matplotlib.pyplot' in sys.modules, dict(matplotlib.rcParams) == before,\n"
        "      all(entry in warnings.filters for entry in filters))\n"
    )
    folder = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r})\n" + code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["False", "True", "True"]
