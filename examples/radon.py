"""Radon in the counties of Minnesota: small groups borrow, large ones do not. ``python examples/radon.py``."""

import partialpool as pp

data = pp.datasets.load("radon")
fit = pp.fit("log_radon ~ floor + log_uranium + (1 | county)", data, seed=1)
print(fit)

counties = fit.groups("county").set_index("group")
print("\nThe share of a county's estimate that comes from the population, by how many houses it has:")
for county in ("STLOUIS", "ANOKA", "AITKIN", "MURRAY"):
    row = counties.loc[county]
    print(f"  {county:8} {row['n']:4.0f} houses  {row['shrinkage']:.0%}")

print("\nWith and without the county's uranium as a predictor, counties differ by:")
without = pp.fit("log_radon ~ floor + (1 | county)", data, seed=1)
for name, one in (("with", fit), ("without", without)):
    draws = one.draws("sd(Intercept|county)")
    print(f"  {name:8} sd {draws.mean():.2f}")
