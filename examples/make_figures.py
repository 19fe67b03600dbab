"""Draw the figures of the README and of the guides into docs/figures. ``python examples/make_figures.py``."""

from pathlib import Path

import partialpool as pp

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"


def main() -> None:
    """Fit the sleep study and the eight schools, and draw them."""
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
    }
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=110)
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
