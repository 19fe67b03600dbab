"""Draw the figures of the README and of the guides into docs/figures. ``python examples/make_figures.py``."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import partialpool as pp

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"


def pooling() -> dict[str, Figure]:
    """The figures of the guide to pooling, from the code that it shows."""
    batters = pp.pool("Hits", trials="AB", units="Player", data=pp.datasets.load("bball1970"))
    rats = pp.pool("y", trials="K", data=pp.datasets.load("tumors"), priors="bda")
    rng = np.random.default_rng(3)
    cases = np.round(np.exp(rng.normal(4.6, 1.0, 60))).astype(int).clip(8)
    deaths = rng.binomial(cases, rng.beta(8, 72, 60))
    hospitals = pp.pool(deaths, trials=cases, units=[f"H{k:02d}" for k in range(1, 61)])
    bcg = pp.datasets.load("bcg")
    bcg["study"] = bcg["author"] + " " + bcg["year"].astype(str)
    ratios = pp.effect_sizes(
        "risk ratio",
        events_treatment="tpos",
        nonevents_treatment="tneg",
        events_control="cpos",
        nonevents_control="cneg",
        units="study",
        data=bcg,
    )
    trials = pp.pool("estimate", se="se", units="unit", data=ratios)
    return {
        "pool-baseball": batters.plot.shrinkage(),
        "pool-rats": rats.plot.population(),
        "pool-hospitals": hospitals.plot.funnel(),
        "pool-bcg": trials.plot.forest(exponentiate=True),
    }


def main() -> None:
    """Fit the sleep study and the eight schools, pool units, and draw all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sleep = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    schools = pp.fit(
        "y | se(sigma) ~ 1 + (1 | school)",
        pp.datasets.load("eight_schools"),
        priors={"Intercept": pp.Normal(0, 5), "sd(school)": pp.HalfCauchy(5)},
        seed=1,
    )
    figures = {
        "sleep-shrinkage": sleep.plot.shrinkage(),
        "sleep-fitted": sleep.plot.fitted(),
        "sleep-forest": sleep.plot.forest("Subject"),
        "sleep-density": sleep.plot.density(),
        "schools-shrinkage": schools.plot.shrinkage(),
        "schools-density": schools.plot.density(),
        **pooling(),
    }
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=110)
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
