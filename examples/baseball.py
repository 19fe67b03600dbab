"""Eighteen batters: averages that are pooled predict the rest of the season. ``python examples/baseball.py``."""

import partialpool as pp

data = pp.datasets.load("bball1970")
pooled = pp.pool("Hits", trials="AB", units="Player", data=data)
print(pooled)

rest = (data["RemainingHits"] / data["RemainingAB"]).to_numpy()
table = pooled.table
print("\nSquared error against the rest of the season:")
print(f"  raw averages     {((table['raw'] - rest) ** 2).sum():.4f}")
print(f"  pooled averages  {((table['mean'] - rest) ** 2).sum():.4f}")

print("\nWho is best? Ranks with their 90% intervals, and the probability to be among the best three:")
best = pooled.rank(top=3)[["unit", "expected_rank", "rank_q05", "rank_q95", "p_top"]].head(5)
print(best.round(2).to_string(index=False))

pooled.plot.shrinkage().savefig("shrinkage.png")
print("\nWritten: shrinkage.png")
