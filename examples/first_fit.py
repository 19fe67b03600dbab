"""A first fit: eighteen people, ten days of little sleep. Run it with ``python examples/first_fit.py``."""

import partialpool as pp

data = pp.datasets.load("sleepstudy")
fit = pp.fit("Reaction ~ Days + (Days | Subject)", data, seed=1)
print(fit)
print(f"\nP(a day costs more than 5 ms) = {fit.probability('Days > 5'):.3f}")

print("\nThree people, each pulled towards the population:")
print(fit.groups("Subject", kind="coefficient").query("group in ['308', '309', '335']").round(2).to_string(index=False))

new = {"Subject": ["308", "someone new"], "Days": [10, 10]}
print("\nTheir next test on day 10, and that of a person not seen before:")
print(fit.predict(new, kind="response", new_groups="population").to_frame().round(0))

fit.plot.shrinkage().savefig("shrinkage.png")
fit.save("sleep.pp")
print("\nWritten: shrinkage.png, sleep.pp")
