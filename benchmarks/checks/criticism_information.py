"""Information criteria of eight schools against quadrature by hand, plain PSIS-LOO against ArviZ's own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from benchmarks.checks import Outcome, table
from benchmarks.data import read

SEED = 20261121
#: What p_D must be, and what is allowed; what is allowed of WAIC by hand and of ArviZ's numbers.
P_D = {"complete": 1.0, "partial": 2.81, "none": 8.0}
WITHIN, BY_HAND, EQUAL = 0.2, 0.05, 1e-8


def schools() -> dict[str, Any]:
    """Complete, partial and no pooling with flat means and tau flat on [0, 40]."""
    import partialpool as pp

    data = read("eight_schools")
    options: dict[str, Any] = {"seed": SEED, "progress": False}
    flat = {"Intercept": pp.Flat()}
    return {
        "complete": pp.fit("y | se(sigma) ~ 1", data, priors=flat, **options),
        "partial": pp.fit(
            "y | se(sigma) ~ 1 + (1 | school)", data, priors=flat | {"sd(school)": pp.Uniform(0, 40)}, **options
        ),
        "none": pp.fit("y | se(sigma) ~ 0 + school", data, priors={"beta": pp.Flat()}, **options),
    }


def by_quadrature(pooling: str) -> dict[str, float]:
    """The definitions: tau on a fine grid; given tau the schools' effects are normal: Gauss-Hermite."""
    data = read("eight_schools")
    y, s = data["y"].to_numpy(dtype=float), data["sigma"].to_numpy(dtype=float)
    if pooling == "partial":
        tau = (np.arange(20_000) + 0.5) / 500
        precision = 1 / (s**2 + tau[:, None] ** 2)
        v = 1 / precision.sum(axis=1)
        m = (precision * y).sum(axis=1) * v
        logs = 0.5 * np.log(v) + 0.5 * np.log(precision).sum(axis=1)
        logs -= 0.5 * ((y - m[:, None]) ** 2 * precision).sum(axis=1)
        weight = np.exp(logs - logs.max())
        weight /= weight.sum()
        b = s**2 * precision  # shrinkage
        mean, variance = (1 - b) * y + b * m[:, None], (1 - b) * s**2 + b**2 * v[:, None]
    else:
        weight = np.ones(1)
        pooled = float((y / s**2).sum() / (1 / s**2).sum())
        complete = pooling == "complete"
        mean = np.full((1, 8), pooled) if complete else y[None, :]
        variance = np.full((1, 8), 1 / (1 / s**2).sum()) if complete else s[None, :] ** 2
    x, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    total, first, second = np.zeros(8), np.zeros(8), np.zeros(8)
    for place, share in zip(x, w, strict=True):
        log_p = -0.5 * np.log(2 * np.pi * s**2) - 0.5 * ((y - mean - place * np.sqrt(variance)) / s) ** 2
        total += share * (weight @ np.exp(log_p))
        first += share * (weight @ log_p)
        second += share * (weight @ log_p**2)
    lppd = np.log(total)
    spread = second - first**2
    at_means = -0.5 * np.log(2 * np.pi * s**2) - 0.5 * ((y - weight @ mean) / s) ** 2
    return {
        "p_D": float(2 * (at_means - first).sum()), "lppd": float(lppd.sum()),
        "p_waic1": float(2 * (lppd - first).sum()), "p_waic2": float(spread.sum()),
        "waic": float(-2 * (lppd - spread).sum()),
    }  # fmt: skip


def run(**_: Any) -> Outcome:
    out = Outcome("information criteria and plain PSIS-LOO", True)
    _schools(out)
    _plain(out)
    return out


def _schools(out: Outcome) -> None:
    from partialpool.criticism.dic import dic
    from partialpool.criticism.waic import waic

    rows = []
    for pooling, fit in schools().items():
        found = {"p_D": float(dic(fit).table.loc["conditional", "p_D"])}
        own = waic(fit).table.loc["conditional"]
        found |= {name: float(own[name]) for name in ("lppd", "p_waic1", "p_waic2", "waic")}
        expected = by_quadrature(pooling)
        if abs(found["p_D"] - P_D[pooling]) > WITHIN:
            out.fail(f"{pooling} pooling: p_D is {found['p_D']:.3f}, and should be {P_D[pooling]}")
        for name, value in expected.items():
            if abs(found[name] - value) > BY_HAND:
                out.fail(f"{pooling} pooling: {name} is {found[name]:.4f}, by quadrature {value:.4f}")
        rows.append([pooling, *(f"{found[name]:.3f} ({value:.3f})" for name, value in expected.items())])
        out.data[pooling] = {"found": found, "by_quadrature": expected}
    out.lines += [
        "Eight schools, flat means, tau flat on [0, 40], conditional on the effects; in brackets by quadrature of the "
        f"definitions. Allowed: {BY_HAND}; p_D within {WITHIN} of 1, 2.81 and 8.", "",
        *table(["pooling", "p_D", "lppd", "p_WAIC1", "p_WAIC2", "WAIC"], rows),
    ]  # fmt: skip


def _plain(out: Outcome) -> None:
    import arviz_stats

    import partialpool as pp
    from partialpool.criticism.plain_loo import plain_loo

    cases = {
        "eight_schools": ("y | se(sigma) ~ 1 + (1 | school)", {}),
        "sleepstudy": ("Reaction ~ Days + (Days | Subject)", {}),
        "sleepstudy, chains": ("Reaction ~ Days + (Days | Subject)", {"method": "nuts", "ess": 400}),
        "cbpp": ("incidence | trials(size) ~ period + (1 | herd)", {"family": "binomial"}),
        "radon": ("log_radon ~ floor + (1 | county)", {}),
    }
    rows = []
    for name, (formula, more) in cases.items():
        fit = pp.fit(formula, read(name.partition(",")[0]), seed=SEED, progress=False, **more)
        own = plain_loo(fit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a high Pareto k
            theirs = arviz_stats.loo(fit.to_arviz(), pointwise=True)
        apart = float(np.abs(own.elpd - theirs.elpd_i.to_numpy()).max())
        in_k = float(np.abs(own.pareto_k - theirs.pareto_k.to_numpy()).max())
        total = abs(own.total - float(theirs.elpd))
        if max(apart, in_k, total) > EQUAL:
            out.fail(f"{name}: plain PSIS-LOO is {max(apart, in_k, total):.1e} from ArviZ's")
        rows.append(
            [name, f"{own.total:.3f}", f"{total:.0e}", f"{apart:.0e}", f"{in_k:.0e}", f"{own.pareto_k.max():.2f}"]
        )
        out.data[f"plain {name}"] = {"elpd": own.total, "apart": apart}
    head = ["data", "elpd", "total apart", "rows apart", "k apart", "largest k"]
    out.lines += [f"Plain PSIS-LOO beside ArviZ {arviz_stats.__version__}; allowed: {EQUAL:g}.", "", *table(head, rows)]
