"""Eight estimates with known standard errors (a meta-analysis). Run it with ``python examples/eight_schools.py``."""

import partialpool as pp

fit = pp.fit(
    "y | se(sigma) ~ 1 + (1 | school)",
    pp.datasets.load("eight_schools"),
    priors={"Intercept": pp.Normal(0, 5), "sd(school)": pp.HalfCauchy(5)},
    seed=1,
)
print(fit)
print(fit.groups("school", kind="coefficient").round(2).to_string(index=False))

# The best school: its raw estimate is 28 points, but how sure is it that it beats the one with the lowest?
effects = fit.group_draws("school", ["A", "C"])[:, :, 0]
print(f"\nP(school A's effect is larger than school C's) = {(effects[:, 0] > effects[:, 1]).mean():.2f}")
