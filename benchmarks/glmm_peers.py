"""The programs of peers for responses that are not Gaussian: VerbAgg and grouseticks, as in `data.GLMMS`."""

from __future__ import annotations

#: By model: formula in R and bambi, family in R and bambi, columns that are factors.
MODELS = {
    "VerbAgg": (
        "r2 ~ Anger + Gender + btype + situ + (1|id) + (1|item)", "binomial", "bernoulli",
        ("r2", "Gender", "btype", "situ", "id", "item"),
    ),
    "grouseticks": (
        "TICKS ~ YEAR + cHEIGHT + (1|BROOD) + (1|INDEX) + (1|LOCATION)", "poisson", "poisson",
        ("YEAR", "BROOD", "INDEX", "LOCATION"),
    ),
}  # fmt: skip

GLMER = """
options(warn = -1)
if (!requireNamespace("lme4", quietly = TRUE)) {{ cat("ABSENT"); quit() }}
suppressPackageStartupMessages(library(lme4))
data <- read.csv({path}, colClasses = {classes})
seconds <- c()
for (i in 1:{runs}) seconds <- c(seconds, system.time(fit <- glmer({formula}, data, family = {family}))[["elapsed"]])
blas <- basename(extSoftVersion()[["BLAS"]])
cat(sprintf('{{"seconds": [%s], "loglik": %.6f, "version": "%s", "blas": "%s"}}', paste(seconds, collapse = ","),
    as.numeric(logLik(fit)), as.character(packageVersion("lme4")), blas))
"""

BAMBI = """
import json, time
if __name__ == "__main__":
    try:
        import bambi, pandas, arviz
    except ImportError:
        print("ABSENT"); raise SystemExit
    data = pandas.read_csv({path}, dtype=dict.fromkeys({factors!r}, str))
    start = time.perf_counter()
    model = bambi.Model({formula!r}, data, family={family!r})
    options = dict(draws=1000, tune=1000, chains=4, cores=2, random_seed=1)
    try:
        fit = model.fit(**options, progressbar=False)
    except TypeError:
        fit = model.fit(**options)
    seconds = time.perf_counter() - start
    posterior = fit.posterior if hasattr(fit, "posterior") else fit["posterior"]
    small = [name for name in posterior.data_vars if posterior[name].size <= 4 * 1000 * 8]
    try:
        import arviz_stats
        ess = float(min(arviz_stats.summary(fit, var_names=small, round_to="none")["ess_bulk"]))
    except Exception:
        ess = None
    stats = fit.sample_stats if hasattr(fit, "sample_stats") else fit["sample_stats"]
    diverged = int(stats["diverging"].sum())
    print(json.dumps(dict(seconds=[seconds], version=bambi.__version__, ess=ess, divergences=diverged)))
"""

NUMPYRO = """
import json, os, time
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
try:
    import jax, jax.numpy as jnp, numpy, numpyro, numpyro.distributions as dist, pandas
    from numpyro.infer import MCMC, NUTS
except ImportError:
    print("ABSENT"); raise SystemExit
data = pandas.read_csv({path}, dtype=dict.fromkeys({factors!r}, str))
if {model!r} == "VerbAgg":
    groups, y, centre = ("id", "item"), (data["r2"] == "Y").values.astype(int), 0.0
    x = pandas.get_dummies(data[["Anger", "Gender", "btype", "situ"]], drop_first=True)
else:
    groups, y = ("BROOD", "INDEX", "LOCATION"), data["TICKS"].values
    x, centre = pandas.get_dummies(data[["YEAR", "cHEIGHT"]], drop_first=True), float(numpy.log(y.mean()))
x = x.astype(float).values
scale = jnp.asarray(2.5 / x.std(axis=0))
x = jnp.asarray(x - x.mean(axis=0))
codes = [jnp.asarray(data[name].astype("category").cat.codes.values) for name in groups]
sizes = [int(data[name].nunique()) for name in groups]
def model():
    eta = numpyro.sample("Intercept", dist.Normal(centre, 2.5))
    eta = eta + x @ numpyro.sample("beta", dist.Normal(0.0, scale).to_event(1))
    for name, code, size in zip(groups, codes, sizes):
        sd = numpyro.sample("sd_" + name, dist.HalfNormal(2.5))
        with numpyro.plate("plate_" + name, size):
            z = numpyro.sample("z_" + name, dist.Normal(0.0, 1.0))
        eta = eta + sd * z[code]
    kind = dist.BernoulliLogits if {model!r} == "VerbAgg" else lambda eta: dist.Poisson(jnp.exp(eta))
    numpyro.sample("y", kind(eta), obs=jnp.asarray(y))
start = time.perf_counter()
mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=1000, num_chains=4, chain_method="parallel", progress_bar=False)
mcmc.run(jax.random.PRNGKey(1))
mcmc.get_samples()["Intercept"].block_until_ready()
seconds = time.perf_counter() - start
draws = mcmc.get_samples(group_by_chain=True)
names = ("Intercept", "beta", *("sd_" + name for name in groups))
ess = min(float(numpyro.diagnostics.effective_sample_size(numpy.asarray(draws[name])).min()) for name in names)
diverged = int(mcmc.get_extra_fields()["diverging"].sum())
print(json.dumps(dict(seconds=[seconds], version=numpyro.__version__, ess=ess, divergences=diverged)))
"""
