"""What `pp.simulate_pooling` says of complete, no and partial pooling, and whether it does what `pp.fit` does.

Known variances: partial pooling is never above either extreme (exact errors, confirmed by simulation). Estimated ones:
below no pooling at every tau and within 5% of the better extreme from tau = 5 standard errors on, asked of designs of
5 groups with 10 rows or more and of 8 or more groups with 5 rows or more; what smaller designs do is told. The
posterior by quadrature is compared with `pp.fit`, and the power of `plan` with fits of simulated experiments.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table

#: Fixed before the first run.
SEED = 20261125
REPLICATES = 4000
GROUPS, ROWS = (3, 5, 8, 10, 30), (2, 5, 10, 50)
#: tau in standard errors of a group's own mean.
MULTIPLES = np.array([0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 12, 20])
#: From where on, and how near the better extreme.
LARGE, NEAR = 5.0, 1.05
FITS, EXPERIMENTS = 20, 200


def asked(groups: int, rows: int) -> bool:
    """The designs that must do without any tau at which no pooling would be better."""
    return (groups >= 5 and rows >= 10) or (groups >= 8 and rows >= 5)


def run(replicates: int = REPLICATES, seed: int = SEED, **_: Any) -> Outcome:
    out = Outcome("pooling in simulated studies", True, data={"seed": seed, "replicates": replicates})
    _known(out, replicates, seed)
    _estimated(out, replicates, seed)
    _fits(out, seed)
    _power(out, seed)
    return out


def _known(out: Outcome, replicates: int, seed: int) -> None:
    """Never above either extreme."""
    import partialpool as pp

    worst, apart = 0.0, 0.0
    for sizes in ([2, 3, 5, 8, 20, 60], [10] * 3, [10] * 30, [1, 1, 1, 50, 50]):
        study = pp.simulate_pooling(
            sizes=sizes, tau=[*MULTIPLES / math.sqrt(10)], variances="known", replicates=replicates, seed=seed
        )  # fmt: skip
        worst = max(worst, float(study.designs["over_better"].max()))
        own = study.table
        apart = max(apart, float((np.abs(own["simulated"] - own["mse"]) / own["simulated_error"]).max()))
    out.lines.append(
        f"Variances known, 4 designs (balanced and not), 15 values of tau: partial pooling's mean squared error is at "
        f"most {worst:.12f} times the better extreme's; simulated averages lie within {apart:.1f} standard errors of "
        "the exact ones (180 comparisons)."
    )
    out.data["known"] = {"worst": worst, "apart": apart}
    if worst > 1 + 1e-9 or apart > 5:
        out.fail("with known variances partial pooling is above an extreme, or the simulation disagrees")


def _estimated(out: Outcome, replicates: int, seed: int) -> None:
    """Below no pooling, near the better extreme, and where complete pooling wins."""
    import partialpool as pp

    rows, found = [], []
    for groups in GROUPS:
        for n in ROWS:
            study = pp.simulate_pooling(
                groups, n, MULTIPLES / math.sqrt(n), replicates=replicates, seed=seed, progress=False
            )  # fmt: skip
            frame, crossing = study.designs, study.crossings.iloc[0]
            ratio = frame["partial"] / frame["none"]
            at = int(ratio.idxmax())
            error = float(study.table.query("pooling == 'partial'")["mse_error"].iloc[at] / frame["none"][at])
            large = float(frame.loc[frame["tau_over_se"] >= LARGE - 1e-9, "over_better"].max())
            rows.append([
                f"{groups} of {n}", "yes" if asked(groups, n) else "no", f"{ratio[at]:.4f} ± {error:.4f}",
                f"{frame['tau_over_se'][at]:g}", f"{large:.4f}", f"{crossing['tau_over_se']:.3f} ± "
                f"{crossing['tau_error'] * math.sqrt(n):.3f}", f"{crossing['cost']:.3f}", f"{crossing['ratio']:.2f}",
                f"{frame['coverage'].min():.3f} to {frame['coverage'].max():.3f}",
            ])  # fmt: skip
            found.append({"groups": groups, "rows": n, "worst": float(ratio[at]), "error": error, "large": large,
                          "crossing": float(crossing["tau_over_se"]), "cost": float(crossing["cost"])})  # fmt: skip
            if asked(groups, n) and ratio[at] - 2 * error >= 1:
                out.fail(f"{groups} groups of {n}: {ratio[at]:.4f} ± {error:.4f} of no pooling's error")
            if asked(groups, n) and large > NEAR:
                out.fail(f"{groups} groups of {n}: {large:.4f} of the better extreme's error at a large tau")
    out.data["estimated"] = found
    head = ["groups of rows", "asked", "most, of no pooling's error", "at tau / se", "most, of the better extreme's, "
            "from 5 se on", "complete pooling better below tau / se", "cost there, of no pooling's error",
            "times complete pooling's", "90% intervals hold"]  # fmt: skip
    out.lines += [
        "",
        f"Variances estimated, {replicates:,} data sets for each design and tau (15 values from 0 to 20 standard "
        "errors of a group's mean):",
        "",
        *table(head, rows),
    ]


def _fits(out: Outcome, seed: int) -> None:
    """The posterior by quadrature against `pp.fit`."""
    import pandas as pd

    import partialpool as pp
    from partialpool.algebra import studies
    from partialpool.levels.study_exact import StudyDesign
    from partialpool.levels.study_simulation import posteriors

    far_mean, far_sd = [], []
    for k in range(FITS):
        rng = np.random.default_rng([seed, k])
        groups = (3, 5, 8, 30)[k % 4]
        sizes = rng.integers(2, 20, groups) if k % 2 else np.full(groups, (2, 10)[k % 3 == 0])
        ids = np.repeat(np.arange(groups), sizes)
        tau = (0.0, 0.2, 1.0, 5.0, 0.5)[k % 5]
        y = 10 + tau * rng.standard_normal(groups)[ids] + rng.standard_normal(ids.size)
        means = np.bincount(ids, y) / sizes
        within = np.array([((y - means[ids]) ** 2).sum()])
        design = StudyDesign(sizes.astype(float))
        found, estimates = posteriors(design, means[None], means[None], within)
        fit = pp.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": ids}), seed=1, ess=4000)
        own = fit.groups("g", kind="coefficient")
        sd = math.sqrt(found[0, studies.VARIANCE])
        far_mean.append(float(np.abs(estimates[0] - own["mean"]).max()) / sd)
        far_sd.append(abs(float((own["sd"] ** 2).mean()) / sd**2 - 1))
    out.lines.append(
        f"The posterior by quadrature and `pp.fit` on {FITS} simulated data sets (3 to 30 groups, equal and unequal): "
        f"group means within {max(far_mean):.5f} posterior sds (median {np.median(far_mean):.6f}), mean variances "
        f"within {max(far_sd):.2%} (median {np.median(far_sd):.3%}); the largest is the fit's own Monte Carlo error, "
        "for 3 groups of 2 with heavy tails."
    )
    out.data["fits"] = {"mean": max(far_mean), "variance": max(far_sd)}
    if max(far_mean) > 0.03 or max(far_sd) > 0.06 or np.median(far_mean) > 1e-3 or np.median(far_sd) > 2e-3:
        out.fail("the posterior by quadrature is not that of pp.fit")


def _power(out: Outcome, seed: int) -> None:
    """The power of a plan against the 95% intervals of fits."""
    import pandas as pd

    import partialpool as pp

    groups, n, tau, effect = 20, 6, 0.5, {"group": 0.75, "row": 0.5}
    study = pp.simulate_pooling(groups, n, tau, replicates=100)
    for by in ("group", "row"):
        predicted = float(study.plan(power=0.8, effect=effect[by], by=by).table["power"].iloc[0])
        seen = 0
        for k in range(EXPERIMENTS):
            rng = np.random.default_rng([seed, 7, k])
            ids = np.repeat(np.arange(groups), n)
            arm = ids % 2 if by == "group" else np.tile(np.arange(n) % 2, groups)
            y = effect[by] * arm + tau * rng.standard_normal(groups)[ids] + rng.standard_normal(ids.size)
            fit = pp.fit("y ~ arm + (1 | g)", pd.DataFrame({"y": y, "g": ids, "arm": arm.astype(float)}), seed=1)
            low, high = np.quantile(fit.draws("arm"), [0.025, 0.975])
            seen += bool(low > 0 or high < 0)
        share = seen / EXPERIMENTS
        error = math.sqrt(predicted * (1 - predicted) / EXPERIMENTS)
        out.lines.append(
            f"Treated by {by}: a plan's power is {predicted:.3f}; the 95% interval of `pp.fit` leaves out zero in "
            f"{share:.3f} of {EXPERIMENTS} simulated experiments (standard error {error:.3f})."
        )
        out.data[f"power by {by}"] = {"predicted": predicted, "seen": share}
        if abs(share - predicted) > 3.5 * error + 0.02:
            out.fail(f"the power by {by} is not what fits of simulated experiments have")
