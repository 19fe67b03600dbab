"""Does `pp.calibrate` catch a sampler whose sd is 10% too small, and leave the right one alone?

The toy: y_i ~ N(mu, s_i^2), s = 0.5, 1, 2, 1.5, mu ~ N(0, 1), whose posterior is normal and known. The right sampler
draws from it, the wrong one from the same normal with 0.9 times its sd; partialpool's own fits of the toy and of a
hierarchical model (sd and sigma unknown, 8 groups) are checked beside them. How often the verdict is right, over sets
of replicates, is found from places drawn directly: of the wrong sampler they are Phi(z / 0.9), z standard normal.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

#: Fixed before the first run.
SEED, REPLICATES, SETS = 20261121, 2000, 400
SPOILED, DRAWS = 0.9, 1000
SE = np.array([0.5, 1.0, 2.0, 1.5])


def toy() -> Any:
    import partialpool as pp

    data = {"y": np.arange(4.0), "s": SE}
    return pp.Model.from_formula("y | se(s) ~ 1", data, priors={"Intercept": pp.Normal(0, 1)})


def hierarchical() -> Any:
    import partialpool as pp

    g = [f"g{k}" for k in np.repeat(np.arange(8), [2, 3, 3, 4, 5, 6, 6, 7])]
    priors = {"Intercept": pp.Normal(0, 1), "sd(g)": pp.HalfNormal(1), "sigma": pp.HalfNormal(1)}
    return pp.Model.from_formula("y ~ 1 + (1 | g)", {"y": np.arange(36.0), "g": g}, priors=priors)


def sampler(factor: float) -> Any:
    """A function for `fit=`: the toy's posterior, its sd multiplied."""

    def draw(model: Any, seed: int) -> dict[str, np.ndarray]:
        precision = 1 + (SE**-2.0).sum()
        mean = (model.design.y / SE**2).sum() / precision
        return {"Intercept": mean + factor * precision**-0.5 * np.random.default_rng(seed).standard_normal(DRAWS)}

    return draw


def run(replicates: int = REPLICATES, seed: int = SEED, sets: int = SETS, **_: Any) -> Outcome:
    import partialpool as pp

    out = Outcome("calibrate catches a wrong sampler", True, data={"seed": seed, "replicates": replicates})
    out.lines.append(
        f"{replicates:,} replicates, seed {seed}. `wrong` draws with an sd 10% too small and has to be caught; the "
        "others must not be."
    )
    cases = (
        ("right sampler", toy(), {"fit": sampler(1.0)}, True),
        ("wrong sampler", toy(), {"fit": sampler(SPOILED)}, False),
        ("partialpool, toy", toy(), {}, True),
        ("partialpool, 8 groups", hierarchical(), {}, True),
    )
    rows, pictures = [], {}
    for name, model, options, right in cases:
        began = time.perf_counter()
        found = pp.calibrate(model, replicates, seed=seed, progress=False, **options)
        seconds = time.perf_counter() - began
        worst = found.table["p"].idxmin()
        line = found.table.loc[worst]
        rows.append([
            name, str(len(found.table)), str(line["verdict"]), f"{line['p']:.2g}", f"{line['cover90']:.3f}",
            f"{line['spread']:.3f}", f"{seconds:.0f} s",
        ])  # fmt: skip
        out.data[name] = {"p": float(line["p"]), "verdict": str(line["verdict"]), "seconds": seconds}
        pictures[name] = found
        caught = not found.calibrated
        if caught == right:
            out.fail(f"{name}: {'caught' if caught else 'not caught'} (adjusted p {line['p']:.2g})")
    head = ["sampler", "quantities", "verdict of the worst", "p", "90% interval holds", "spread", "time"]
    out.lines += ["", *table(head, rows)]
    shares = {name: _caught(factor, replicates, sets, seed) for name, factor in (("right", 1.0), ("wrong", SPOILED))}
    out.data["shares"] = shares
    out.lines.append(
        f"Over {sets} sets of {replicates:,} places drawn directly: caught (p < 0.01) {shares['wrong']:.1%} of the "
        f"wrong sampler's and {shares['right']:.1%} of the right one's."
    )
    if shares["wrong"] < 0.99:
        out.fail(f"the wrong sampler is caught in {shares['wrong']:.1%} of sets only")
    if shares["right"] > 0.01 + 3 * np.sqrt(0.01 * 0.99 / sets):
        out.fail(f"the right sampler is caught in {shares['right']:.1%} of sets")
    out.draw = lambda folder: pictures["wrong sampler"].plot().savefig(folder / "criticism_calibration.png", dpi=120)
    return out


def _caught(factor: float, replicates: int, sets: int, seed: int) -> float:
    from scipy.special import ndtr

    from partialpool.criticism.calibration import OFF, quantity_p

    rng = np.random.default_rng([seed, 1])
    return float(np.mean([quantity_p(ndtr(rng.standard_normal(replicates) / factor)) < OFF for _ in range(sets)]))
