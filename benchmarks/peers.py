"""The same models by other packages, each in its own process; what is not installed says so.

bambi and NumPyro may live in an environment of their own: name its interpreter in PARTIALPOOL_PEERS.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import glmm_peers
from benchmarks.data import find, gauss1m, insteval
from benchmarks.process import CaseFailed, run_case

LME4 = """
options(warn = -1)
if (!requireNamespace("lme4", quietly = TRUE)) {{ cat("ABSENT"); quit() }}
suppressPackageStartupMessages(library(lme4))
data <- read.csv({path}, colClasses = {classes})
seconds <- c()
for (i in 1:{runs}) seconds <- c(seconds, system.time(fit <- lmer({formula}, data, REML = FALSE))[["elapsed"]])
blas <- basename(extSoftVersion()[["BLAS"]])
cat(sprintf('{{"seconds": [%s], "loglik": %.6f, "version": "%s", "blas": "%s"}}', paste(seconds, collapse = ","),
    as.numeric(logLik(fit)), as.character(packageVersion("lme4")), blas))
"""

STATSMODELS = """
import json, time
try:
    import statsmodels, statsmodels.formula.api as smf, pandas, warnings
except ImportError:
    print("ABSENT"); raise SystemExit
warnings.simplefilter("ignore")
data = pandas.read_csv({path})
seconds = []
for _ in range({runs}):
    start = time.perf_counter()
    fit = smf.mixedlm("Reaction ~ Days", data, groups="Subject", re_formula="~Days").fit(reml=False)
    seconds.append(time.perf_counter() - start)
print(json.dumps(dict(seconds=seconds, loglik=float(fit.llf), version=statsmodels.__version__)))
"""

BAMBI = """
import json, time
if __name__ == "__main__":
    try:
        import bambi, pandas, arviz
    except ImportError:
        print("ABSENT"); raise SystemExit
    data = pandas.read_csv({path}, dtype=dict(Subject=str))
    start = time.perf_counter()
    model = bambi.Model("Reaction ~ Days + (Days | Subject)", data)
    options = dict(draws=1000, tune=1000, chains=4, cores=2, random_seed=1)
    try:
        fit = model.fit(**options, progressbar=False)
    except TypeError:
        fit = model.fit(**options)
    seconds = time.perf_counter() - start
    try:
        import arviz_stats
        ess = float(min(arviz_stats.summary(fit, round_to="none")["ess_bulk"]))
    except Exception:
        ess = None
    print(json.dumps(dict(seconds=[seconds], version=bambi.__version__, ess=ess)))
"""

NUMPYRO = """
import json, os, time
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
try:
    import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, pandas
    from numpyro.infer import MCMC, NUTS
except ImportError:
    print("ABSENT"); raise SystemExit
data = pandas.read_csv({path})
subject = jnp.asarray(data["Subject"].astype("category").cat.codes.values)
days, reaction = jnp.asarray(data["Days"].values), jnp.asarray(data["Reaction"].values)
def model():
    intercept = numpyro.sample("Intercept", dist.Normal(298.5, 140.8))
    slope = numpyro.sample("Days", dist.Normal(0, 48.9))
    sd = numpyro.sample("sd", dist.HalfNormal(jnp.array([140.8, 48.9])))
    factor = numpyro.sample("L", dist.LKJCholesky(2, 1.0))
    with numpyro.plate("groups", 18):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    u = z @ (sd[:, None] * factor).T
    sigma = numpyro.sample("sigma", dist.HalfNormal(140.8))
    numpyro.sample("y", dist.Normal(intercept + u[subject, 0] + (slope + u[subject, 1]) * days, sigma), obs=reaction)
start = time.perf_counter()
mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False)
mcmc.run(jax.random.PRNGKey(1))
mcmc.get_samples()["Days"].block_until_ready()
seconds = time.perf_counter() - start
draws = mcmc.get_samples(group_by_chain=True)
names = ("Intercept", "Days", "sd", "sigma")
ess = min(float(numpyro.diagnostics.effective_sample_size(draws[name]).min()) for name in names)
print(json.dumps(dict(seconds=[seconds], version=numpyro.__version__, ess=ess)))
"""


@dataclass(frozen=True)
class Peer:
    """What a peer took: seconds of each run of the fit alone, and of the whole process; None where not installed."""

    model: str
    tool: str
    seconds: list[float] | None
    process: float | None = None
    peak_gb: float | None = None
    note: str = ""


def run_peers(models: tuple[str, ...], runs: int) -> list[Peer]:
    """lme4 on each model; statsmodels, bambi and NumPyro on sleepstudy, the last two on VerbAgg and grouseticks too."""
    out = [peer for model in models if model not in glmm_peers.MODELS for peer in _lme4(model, runs)]
    if "sleepstudy" in models:
        out += [_python(tool, code, runs) for tool, code in
                (("statsmodels", STATSMODELS), ("bambi", BAMBI), ("NumPyro", NUMPYRO))]  # fmt: skip
    for model in models:
        if model in glmm_peers.MODELS:
            out += _glmm(model, runs)
    return out


def _glmm(model: str, runs: int) -> list[Peer]:
    """glmer, bambi and NumPyro on a response that is not Gaussian."""
    formula, r_family, family, factors = glmm_peers.MODELS[model]
    path = find(f"{model}.csv")
    if path is None:
        return [Peer(model, tool, None, note="the data is absent") for tool in ("lme4", "bambi", "NumPyro")]
    quoted = json.dumps(str(path))
    classes = "c(" + ", ".join(f'{name} = "factor"' for name in factors) + ")"
    draws = "4 x (1,000 + 1,000) draws"
    out = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "fit.R"
        script.write_text(
            glmm_peers.GLMER.format(path=quoted, classes=classes, runs=min(runs, 3), formula=formula, family=r_family)
        )
        tool = "lme4 (glmer), point estimate"
        absent = shutil.which("Rscript") is None
        out.append(
            Peer(model, tool, None, note="R is not installed")
            if absent
            else _peer(model, tool, ["Rscript", str(script)])
        )
        python = os.environ.get("PARTIALPOOL_PEERS") or sys.executable
        for name, code in (("bambi", glmm_peers.BAMBI), ("NumPyro", glmm_peers.NUMPYRO)):
            peer = Path(folder) / f"{name.lower()}_peer.py"
            peer.write_text(code.format(path=quoted, factors=factors, formula=formula, family=family, model=model))
            out.append(_peer(model, f"{name}, {draws}", [python, str(peer)]))
    return out


def _lme4(model: str, runs: int) -> list[Peer]:
    tool = "lme4, point estimate"
    if shutil.which("Rscript") is None:
        return [Peer(model, tool, None, note="R is not installed")]
    formula, classes = {
        "sleepstudy": ("Reaction ~ Days + (Days | Subject)", 'c(Subject = "factor")'),
        "InstEval": (
            "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)",
            'c(s = "factor", d = "factor", service = "factor", dept = "factor")',
        ),
        "gauss1m": ("y ~ x + (1 + x | g)", 'c(g = "factor")'),
    }[model]
    with tempfile.TemporaryDirectory() as folder:
        if model == "gauss1m":
            path: Path | None = Path(folder) / "gauss1m.csv"
            _write(gauss1m(), path)
        else:
            path = insteval() if model == "InstEval" else find("sleepstudy.csv")
        if path is None:
            return [Peer(model, tool, None, note="the data is absent")]
        script = Path(folder) / "fit.R"
        few = runs if model == "sleepstudy" else min(runs, 2)
        script.write_text(LME4.format(path=json.dumps(str(path)), classes=classes, runs=few, formula=formula))
        return [_peer(model, tool, ["Rscript", str(script)])]


def _write(columns: dict[str, Any], path: Path | None) -> None:
    import pandas

    pandas.DataFrame(columns).to_csv(path, index=False)


def _python(tool: str, code: str, runs: int) -> Peer:
    own = os.environ.get("PARTIALPOOL_PEERS") or sys.executable
    python = sys.executable if tool == "statsmodels" else own
    path = find("sleepstudy.csv")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "peer.py"
        script.write_text(code.format(path=repr(str(path)), runs=runs))
        kind = "point estimate" if tool == "statsmodels" else "4 x (1,000 + 1,000) draws"
        return _peer("sleepstudy", f"{tool}, {kind}", [python, str(script)])


def _peer(model: str, tool: str, command: list[str]) -> Peer:
    try:
        ran = run_case("child", command=command, timeout=1200)
    except CaseFailed as failure:
        return Peer(model, tool, None, note=str(failure))
    last = (ran["output"].strip().splitlines() or [""])[-1]
    if last.strip() == "ABSENT":
        return Peer(model, tool, None, note="not installed")
    if ran["code"] or not last.startswith("{"):
        return Peer(model, tool, None, note="failed: " + (ran["error"].strip().splitlines() or ["no output"])[-1][:200])
    said = json.loads(last)
    notes = [f"version {said['version']}"]
    if "blas" in said:
        notes.append("OpenBLAS" if "openblas" in said["blas"].lower() else "reference BLAS")
    if said.get("ess"):
        notes.append(f"smallest bulk ESS {said['ess']:,.0f}")
    if "divergences" in said:
        notes.append(f"{said['divergences']} divergences")
    return Peer(model, tool, said["seconds"], ran["process_seconds"], ran["peak_gb"], ", ".join(notes))
