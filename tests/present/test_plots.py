from __future__ import annotations

import io
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

import partialpool as pp
from partialpool.present import canvas
from partialpool.present.density import prior_density, support_of


def drawn(figure: Figure) -> bytes:
    """The figure as a PNG; a warning while drawing (of a glyph, of a layout that collapsed) is an error."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(buffer, format="png")
    assert isinstance(figure, Figure)
    return buffer.getvalue()


def points(axes: Any) -> list[np.ndarray]:
    return [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]


KINDS = ("shrinkage", "forest", "density", "fitted")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sleep_fit", "radon_fit", "crossed_fit", "schools_fit"])
def test_every_plot_of_every_model_is_drawn(request: pytest.FixtureRequest, name: str, kind: str) -> None:
    figure = getattr(request.getfixturevalue(name).plot, kind)()
    assert drawn(figure).startswith(b"\x89PNG")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_arrows_go_from_no_pooling_to_the_pooled_coefficients(sleep_fit: Any) -> None:
    axes = sleep_fit.plot.shrinkage().axes[0]
    groups = sleep_fit.groups("Subject", kind="coefficient")
    expected = {column: groups.pivot(index="group", columns="term", values=column) for column in ("no_pooling", "mean")}
    for cloud, column in zip(points(axes)[1:], ("no_pooling", "mean"), strict=True):
        wanted = expected[column][["Intercept", "Days"]].to_numpy(float)
        assert np.allclose(np.sort(cloud, axis=0), np.sort(wanted, axis=0))
    assert axes.get_xlabel() == "Intercept (Reaction)"
    assert "Days" in axes.get_ylabel()


def test_the_ellipses_hold_their_share_of_the_population(sleep_fit: Any) -> None:
    mean = sleep_fit.summary()["mean"]
    sds = mean[["sd(Intercept|Subject)", "sd(Days|Subject)"]].to_numpy()
    r = mean["cor(Intercept,Days|Subject)"]
    covariance = np.outer(sds, sds) * [[1, r], [r, 1]]
    people = np.random.default_rng(1).multivariate_normal(mean[["Intercept", "Days"]], covariance, size=20_000)
    ellipses = sleep_fit.plot.shrinkage().axes[0].patches
    shares = [
        ellipse.get_path().contains_points(ellipse.get_patch_transform().inverted().transform(people)).mean()
        for ellipse in ellipses
    ]
    assert shares == pytest.approx([0.5, 0.9], abs=0.02)


def test_labels_do_not_collide(sleep_fit: Any) -> None:
    figure = sleep_fit.plot.shrinkage()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) >= 17
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_one_term_has_a_line_a_group_and_the_population(schools_fit: Any) -> None:
    axes = schools_fit.plot.shrinkage(term="Intercept").axes[0]
    raw, pooled = points(axes)
    assert sorted(raw[:, 0]) == pytest.approx(sorted(pp.datasets.load("eight_schools")["y"]))
    assert (np.ptp(pooled[:, 0]) < np.ptp(raw[:, 0])) and len(pooled) == 8
    population = schools_fit.summary().loc["Intercept", "mean"]
    assert population in [line.get_xdata()[0] for line in axes.lines]
    assert any(isinstance(c, LineCollection) for c in axes.collections)


def test_many_groups_are_cut_to_sixty_and_it_is_said(radon_fit: Any) -> None:
    figure = radon_fit.plot.forest("county")
    assert [len(points(axes)[0]) for axes in figure.axes] == [60, 60]
    assert "30 lowest and highest of 85" in figure._supxlabel.get_text()
    alone = radon_fit.plot.shrinkage("county", term="Intercept")
    assert len(points(alone.axes[0])[0]) <= 60
    assert "left out" in alone._supxlabel.get_text()


def test_the_forest_of_parameters_has_every_parameter_once(sleep_fit: Any) -> None:
    figure = sleep_fit.plot.forest()
    shown = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert sorted(shown) == sorted(sleep_fit.summary().index)


def test_densities_integrate_to_one_and_know_their_support(sleep_fit: Any) -> None:
    for name in sleep_fit.summary().index:
        low, high = support_of(name)
        places, heights = canvas.density(sleep_fit.draws(name), (low, high))
        assert np.trapezoid(heights, places) == pytest.approx(1, abs=0.01)
        assert low <= places[0] and places[-1] <= high


def test_a_density_at_a_bound_is_not_pulled_down() -> None:
    draws = np.abs(np.random.default_rng(1).normal(size=20_000))
    places, heights = canvas.density(draws, (0.0, np.inf))
    assert heights[0] == pytest.approx(0.798, rel=0.08)
    assert places[0] == 0.0


def test_the_grey_lines_are_the_priors(sleep_fit: Any) -> None:
    """Against draws from the prior, which are made another way."""
    prior = sleep_fit.model.sample_prior(draws=40_000, seed=1)
    for name in sleep_fit.summary().index:
        draws = prior[name].to_numpy()
        places = np.linspace(*np.quantile(draws, [0.02, 0.98]), 2001)
        height = prior_density(sleep_fit.model, name, places)
        assert height is not None
        assert np.trapezoid(height, places) == pytest.approx(0.96, abs=0.01), name
        middle = places <= np.median(draws)
        assert np.trapezoid(height[middle], places[middle]) == pytest.approx(0.48, abs=0.012), name


def test_flat_priors_and_single_names(schools_fit: Any) -> None:
    fit = pp.fit("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"), priors={"Intercept": "flat()"}, seed=1)
    figure = fit.plot.density("Intercept")
    assert len(figure.axes) == 1 and len(figure.axes[0].lines) == 2  # the density and its mean: no prior to draw
    assert len(schools_fit.plot.density("Intercept").axes[0].lines) == 3


def test_fitted_panels_show_each_persons_rows(sleep_fit: Any) -> None:
    figure = sleep_fit.plot.fitted()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 18
    by_title = {axes.get_title(): axes for axes in panels}
    data = pp.datasets.load("sleepstudy")
    own = data[data["Subject"] == "335"]
    assert np.allclose(points(by_title["335"])[0], own[["Days", "Reaction"]].to_numpy(float))


def test_twenty_four_panels_at_most(radon_fit: Any) -> None:
    figure = radon_fit.plot.fitted()
    assert sum(axes.get_visible() for axes in figure.axes) == 24
    assert "24 of 85 groups" in figure.legends[0].get_title().get_text()


def test_the_users_axes_are_used(sleep_fit: Any, crossed_fit: Any) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert sleep_fit.plot.shrinkage(ax=left) is figure
    assert crossed_fit.plot.forest("plate", ax=right) is figure
    assert left.get_xlabel() and right.get_xlabel()
    own = Figure().subplots()
    sleep_fit.plot.fitted(ax=own)
    assert own.get_ylabel() == "Observed Reaction"
    with pytest.raises(pp.ModelError, match="2 panels"):
        sleep_fit.plot.forest("Subject", ax=left)
    with pytest.raises(pp.ModelError, match="not both"):
        crossed_fit.plot.forest("plate", ax=right, figsize=(3, 3))


def test_figsize_is_honoured(sleep_fit: Any) -> None:
    for kind in KINDS:
        assert tuple(getattr(sleep_fit.plot, kind)(figsize=(9, 8)).get_size_inches()) == (9, 8)


def test_wrong_names_offer_the_nearest(sleep_fit: Any) -> None:
    with pytest.raises(pp.ModelError, match="Did you mean 'Subject'"):
        sleep_fit.plot.shrinkage("subjects")
    with pytest.raises(pp.ModelError, match="Did you mean 'Days'"):
        sleep_fit.plot.shrinkage(term="days")
    with pytest.raises(pp.ModelError, match="Did you mean 'sigma'"):
        sleep_fit.plot.density("sigm")
    with pytest.raises(pp.ModelError, match="at least one"):
        sleep_fit.plot.density([])
    with pytest.raises(pp.ModelError, match="no grouping factor"):
        pp.fit("Reaction ~ Days", pp.datasets.load("sleepstudy"), seed=1).plot.shrinkage()


def test_nothing_global_is_touched() -> None:
    code = (
        "import io, matplotlib, sys, warnings\n"
        "before, filters = dict(matplotlib.rcParams), list(warnings.filters)\n"
        "import partialpool as pp\n"
        "fit = pp.fit('Reaction ~ Days + (Days | Subject)', pp.datasets.load('sleepstudy'), seed=1, draws=200)\n"
        "for kind in ('shrinkage', 'forest', 'density', 'fitted'):\n"
        "    getattr(fit.plot, kind)().savefig(io.BytesIO(), format='png')\n"
        "print('matplotlib.pyplot' in sys.modules, dict(matplotlib.rcParams) == before,\n"
        "      all(entry in warnings.filters for entry in filters))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True", "True"]
