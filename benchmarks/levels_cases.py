"""What is measured of levels inside a fresh process: cases that `benchmarks.cases` runs. It imports nothing heavy."""

from __future__ import annotations

from typing import Any

ROWS = 1_000_000
LEVELS = ["pupil", "class", "school", "district", "task"]
NESTINGS = {
    ("pupil", "class"), ("pupil", "school"), ("pupil", "district"), ("class", "school"), ("class", "district"),
    ("school", "district"),
}  # fmt: skip


def million_rows(text: bool, rows: int = ROWS) -> dict[str, Any]:
    """Ids of pupils in classes in schools in districts, shuffled, crossed with 20 tasks; whole numbers or text."""
    import numpy as np

    rng = np.random.default_rng(20261121)
    pupil = rng.permutation(np.arange(rows) // 20)
    shuffled = [rng.permutation(rows // 20), rng.permutation(rows // 500 + 1), rng.permutation(rows // 4000 + 1)]
    ids = {
        "pupil": shuffled[0][pupil], "class": shuffled[1][pupil // 25], "school": shuffled[2][pupil // 200],
        "district": pupil // 2000, "task": rng.integers(20, size=rows),
    }  # fmt: skip
    if not text:
        return ids
    return {name: np.char.add(f"{name}-", values.astype(str)).astype(object) for name, values in ids.items()}


def hierarchy_million(text: bool = False, rows: int = ROWS) -> dict[str, Any]:
    """The first and the second call in a process, data frame in memory; and whether the order found is the true one."""
    import pandas

    import partialpool as pp
    from benchmarks.cases import peak_gb, timed

    frame = pandas.DataFrame(million_rows(text, rows))
    frame = pandas.DataFrame({name: frame[name].to_numpy(dtype=object) for name in frame}) if text else frame
    before = peak_gb()
    first, _ = timed(lambda: pp.hierarchy(frame, LEVELS))
    second, found = timed(lambda: pp.hierarchy(frame, LEVELS))
    showing, _ = timed(lambda: repr(found))
    telling, _ = timed(lambda: repr(found.estimability()))
    table = found.table
    nested = {(row.finer, row.coarser) for row in table.itertuples() if row.relation == "nested in"}
    crossed = {(row.finer, row.coarser) for row in table.itertuples() if row.relation.startswith("crossed")}
    exact = nested == NESTINGS and len(crossed) == len(table) - len(NESTINGS)
    return {
        "first": first, "seconds": second, "show_seconds": showing, "estimability_seconds": telling,
        "recovered": exact, "peak_gb": peak_gb(), "before_gb": before, "groups": found.levels["groups"].to_dict(),
    }  # fmt: skip


def hierarchies(replicates: int = 100) -> dict[str, Any]:
    """Simulated hierarchies of known order: the share that is recovered, broken rows named exactly included."""
    import numpy as np

    import partialpool as pp

    hits = dict.fromkeys(("re-used ids", "re-used ids, declared", "crossed", "partly nested"), 0)
    for seed in range(replicates):
        rng = np.random.default_rng([20261121, seed])
        schools = int(rng.integers(2, 30))
        classes = rng.integers(2, 7, schools)
        school = np.repeat(np.repeat(np.arange(schools), classes), 20)
        label = np.repeat(np.concatenate([np.arange(count) for count in classes]), 20)
        data = {"school": school, "class": label}
        coded = pp.hierarchy(data, ["class", "school"])
        warned = any("(1 | school/class)" in line or "school:class" in line for line in coded.sentences)
        hits["re-used ids"] += coded.table["relation"].tolist() == ["crossed as coded"] and warned
        declared = pp.hierarchy(data, ["class", "school"], nested={"class": "school"})
        true = declared.levels.loc["class", "groups"] == classes.sum()
        hits["re-used ids, declared"] += true and declared.table["relation"].tolist() == ["nested in"]
        subject, item = np.divmod(rng.permutation(600), 20)
        cells = pp.hierarchy({"subject": subject, "item": item}, ["subject", "item"])
        hits["crossed"] += cells.table["relation"].tolist() == ["crossed"]
        unique = np.repeat(np.arange(classes.sum()), 20)
        broken = np.sort(rng.choice(len(school), max(1, round(0.005 * len(school))), replace=False))
        wrong = school.copy()
        wrong[broken] = (school[broken] + 1 + rng.integers(0, schools - 1, len(broken))) % schools
        found = pp.hierarchy({"school": wrong, "class": unique}, ["class", "school"])
        named = np.array_equal(np.sort(found.broken.index.to_numpy()), broken)
        hits["partly nested"] += found.table["relation"].tolist() == ["partly nested"] and named
    return {"share": {name: float(count / replicates) for name, count in hits.items()}}


def emergence() -> dict[str, Any]:
    """The sum of masses, a product, and 20 dimensions with three interacting pairs at each of ten points."""
    import numpy as np

    import partialpool as pp

    rng = np.random.default_rng(20261121)
    masses = np.asarray(pp.interactions(lambda x: float(x.sum()), at=rng.uniform(1, 5, 20)))
    product = np.asarray(pp.interactions(lambda x: x[0] * x[1], at=[1.3, -0.7]))
    wanted = {(0, 7), (3, 11), (12, 19)}

    def whole(x: Any) -> float:
        own = np.sin(x) + 0.1 * np.exp(0.3 * x) + x**2
        return float(own.sum() + x[0] * x[7] + 0.5 * np.sin(x[3] * x[11]) + np.exp(0.2 * x[12] * x[19]))

    exact = 0
    for _ in range(10):
        table = pp.interactions(whole, at=rng.normal(size=20), names=[str(k) for k in range(20)]).table
        pairs = table[table["verdict"] == "interacts"]
        found = {tuple(sorted((int(a), int(b)))) for a, b in zip(pairs["first"], pairs["second"], strict=True)}
        exact += found == wanted
    off = ~np.eye(20, dtype=bool)
    return {"masses": float(np.abs(masses[off]).max()), "product": float(abs(product[0, 1] - 1)), "exact": exact / 10}


def within_between(path: str) -> dict[str, Any]:
    """Hsb82 by within() and between() and by the columns that its authors computed: the largest difference."""
    import partialpool as pp

    own = pp.fit("mAch ~ within(ses|school) + between(ses|school) + (1 + within(ses|school) | school)", path, seed=1)
    theirs = pp.fit("mAch ~ cses + meanses + (1 + cses | school)", path, seed=1)
    columns = ["mean", "sd", "q05", "q50", "q95"]
    one, other = (fit.summary()[columns].to_numpy() for fit in (own, theirs))
    return {"difference": float((abs(one - other) / other[:, 1:2]).max())}


CASES = {case.__name__: case for case in (hierarchy_million, hierarchies, emergence, within_between)}
