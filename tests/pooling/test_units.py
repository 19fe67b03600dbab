import time

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy import integrate, stats

from partialpool.errors import DataError, FormulaError, ModelError
from partialpool.pooling.units import merged, read_units

TABLE = {
    "hospital": ["A", "B", "C", "D", "E"],
    "events": [1, 0, 4, 2, 9],
    "trials": [10, 3, 4, 20, 30],
    "size": [1.0, 2.0, 4.0, 7.0, 3.0],
    "region": ["n", "s", "n", "s", "s"],
}


@pytest.mark.parametrize("kind", ["dict", "pandas", "polars", "pyarrow", "csv"])
def test_every_kind_of_frame_gives_the_same_units(kind, tmp_path):
    frame = pd.DataFrame(TABLE)
    frame.to_csv(tmp_path / "data.csv", index=False)
    data = {
        "dict": TABLE,
        "pandas": frame,
        "polars": pl.DataFrame(TABLE),
        "pyarrow": pa.table(TABLE),
        "csv": tmp_path / "data.csv",
    }[kind]
    units = read_units("events", trials="trials", units="hospital", covariates="log(size) + region", data=data)
    assert units.family == "binomial"
    assert units.label == "events"
    assert units.names.tolist() == TABLE["hospital"]
    assert units.x_names == ("Intercept", "log(size)", "region[s]")
    np.testing.assert_array_equal(units.y, TABLE["events"])
    np.testing.assert_array_equal(units.size, TABLE["trials"])
    np.testing.assert_allclose(units.X[:, 1], np.log(TABLE["size"]), rtol=1e-15)
    np.testing.assert_array_equal(units.X[:, [0, 2]], [[1, 0], [1, 1], [1, 0], [1, 1], [1, 1]])


@pytest.mark.parametrize(
    "make",
    [list, np.array, pd.Series, pl.Series, pa.array, lambda v: pd.Series(v, dtype="Int64"), lambda v: np.array([v]).T],
)
def test_every_kind_of_column(make):
    units = read_units(make([1, 0, 4]), exposure=make([2, 3, 4]))
    np.testing.assert_array_equal(units.y, [1.0, 0.0, 4.0])
    np.testing.assert_array_equal(units.size, [2.0, 3.0, 4.0])
    assert units.y.dtype == np.float64
    assert not units.named


def test_scalars_stand_for_all_units():
    assert read_units([1.0, 2.0], se=0.5).size.tolist() == [0.5, 0.5]
    assert read_units("events", trials=50, data=TABLE).size.tolist() == [50.0] * 5
    alone = read_units(9, trials=30)
    assert (alone.n, alone.raw.tolist()) == (1, [0.3])
    assert read_units([True, False], trials=1).y.tolist() == [1.0, 0.0]


def test_units_do_not_share_memory_with_the_arrays_given():
    y = np.array([1.0, 2.0])
    units = read_units(y, se=1.0)
    y[0] = 99.0
    assert units.y[0] == 1.0


def test_names_come_from_a_pandas_index_that_means_something():
    values = pd.Series([1, 2, 3], index=pd.Index([7, 8, 9], name="shop"))
    assert read_units(values, trials=5).names.tolist() == [7, 8, 9]
    assert read_units(pd.Series([1, 2], index=["x", "y"]), trials=5).names.tolist() == ["x", "y"]
    assert read_units(pd.Series([1, 2], index=[3, 9]), trials=5).named
    assert not read_units(pd.Series([1, 2]), trials=5).named
    assert not read_units(pd.Series([1, 2], index=[4, 4]), trials=5).named
    framed = read_units("events", trials="trials", data=pd.DataFrame(TABLE).set_index("hospital"))
    assert framed.names.tolist() == TABLE["hospital"]
    two = pd.Series([1, 2], index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    assert read_units(two, trials=5).names.tolist() == ["a:1", "b:2"]
    with pytest.raises(DataError, match="different pandas indexes"):
        read_units(pd.Series([1, 2], index=["x", "y"]), trials=pd.Series([5, 5], index=["y", "x"]))


def test_missing_values_are_dropped_and_counted():
    units = read_units([1, None, 3, 2], trials=[5, 6, None, 4], units=list("ABCD"))
    assert units.names.tolist() == ["A", "D"]
    assert units.notes == ("2 units were dropped for missing values (events 1, trials 1).",)
    numbered = read_units([1.0, np.nan, 2.0], se=[1.0, np.nan, 2.0])
    assert numbered.names.tolist() == [0, 1]
    assert "numbered 0 to 1" in numbered.notes[0]
    covariates = {"x": [1.0, None, 3.0, 4.0, 7.0], "g": ["a", "b", "a", None, "b"]}
    both = read_units(np.arange(5.0), se=1, units=list("ABCDE"), covariates=covariates)
    assert both.names.tolist() == ["A", "C", "E"]
    assert both.notes == ("2 units were dropped for missing values (x 1, g 1).",)
    with pytest.raises(DataError, match="standard error of unit 'C' is missing"):
        read_units([1, 2, 3], se=[1.0, 1.0, np.nan], units=list("ABC"))
    with pytest.raises(DataError, match="none is left"):
        read_units([None, None], se=1.0)


def test_units_without_trials_stay():
    units = read_units([0, 1], trials=[0, 3], units=["A", "B"])
    assert np.isnan(units.raw[0])
    assert units.notes[0].startswith("Unit 'A' has no trials")
    low, high = units.raw_interval()
    assert (low[0], high[0]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"values": [1, 2], "trials": [1, 1]}, r"more events than trials in unit 1 \(counted from 0\)"),
        ({"values": [1.0], "se": 0.0}, "is not positive"),
        ({"values": [1.0], "se": -1.0}, "is not positive"),
        ({"values": [1.0, 2], "se": [1, np.inf], "units": ["A", "B"]}, "se is infinite for unit 'B'"),
        ({"values": [np.inf], "se": 1}, "infinite"),
        ({"values": [-1], "exposure": 1}, "negative"),
        ({"values": [1.5], "exposure": 1}, "not a whole number.*se="),
        ({"values": [1], "trials": 2.5}, "trials is not a whole number"),
        ({"values": [1], "exposure": 0}, "exposure is not positive"),
        ({"values": [], "se": 1}, "empty"),
        ({"values": ["a", "b"], "se": 1}, "not numeric: it holds 'a'"),
        ({"values": pd.Series(pd.to_datetime(["2020-01-01"])), "se": 1}, "not numeric"),
        ({"values": [1, 2], "se": [1, 2, 3]}, "estimate has 2 values and se 3"),
        ({"values": [1, 2], "se": 1, "units": ["A"]}, "1 names for 2 values"),
        ({"values": np.ones((2, 2)), "se": 1}, "shape"),
        ({"values": [1, 2], "se": 1, "covariates": {"x": [1, 2, 3]}}, "3 rows"),
        ({"values": [1, 2, 3], "se": 1, "covariates": {"x": [2, 2, 2]}}, "does not vary"),
        ({"values": [1, 2, 3, 4], "se": 1, "covariates": [[1, 2], [2, 4], [3, 6], [5, 10]]}, "Collinear"),
        ({"values": "event", "trials": "trials", "data": TABLE}, "An argument names 'event'.*Did you mean 'events'"),
    ],
)
def test_bad_data(call, message):
    with pytest.raises(DataError, match=message):
        read_units(call.pop("values"), **call)


def test_more_than_five_are_counted():
    with pytest.raises(DataError, match="units 0, 1, 2, 3, 4 and 3 more"):
        read_units(np.ones(8), se=0.0)


def test_bad_arguments():
    with pytest.raises(ModelError, match=r"none of them is given: give estimates with se=.*trials=.*exposure="):
        read_units([1, 2])
    with pytest.raises(ModelError, match="se and trials are given"):
        read_units([1, 2], se=1, trials=2)
    with pytest.raises(ModelError, match="no data"):
        read_units("events", trials=3)
    with pytest.raises(ModelError, match="columns of data"):
        read_units([1, 2], trials=3, covariates="x")
    with pytest.raises(FormulaError, match="leave out the intercept"):
        read_units("events", trials="trials", covariates="0 + size", data=TABLE)
    with pytest.raises(FormulaError, match=r"pp\.fit"):
        read_units("events", trials="trials", covariates="size + (1 | region)", data=TABLE)


def test_duplicate_units_come_with_the_line_that_adds_them_up():
    data = pd.DataFrame({"ward": ["a", "b", "a", "c", "b"], "falls": [1, 2, 3, 4, 5], "days": [10, 20, 30, 40, 50.0]})
    with pytest.raises(DataError) as caught:
        read_units("falls", exposure="days", units="ward", data=data)
    message = str(caught.value)
    assert "'a', 'b'" in message
    line = message[message.index("data = ") :].rstrip(".")
    names = {"data": data}
    exec(line, names)
    summed = read_units("falls", exposure="days", units="ward", data=names["data"])
    assert summed.y.tolist() == [4.0, 7.0, 4.0]
    assert summed.size.tolist() == [40.0, 70.0, 40.0]
    with pytest.raises(DataError, match=r"precision-weighted.*falls \| se\(days\) ~ 1 \+ \(1 \| ward\)"):
        read_units("falls", se="days", units="ward", data=data)
    with pytest.raises(DataError, match="5 more"):
        read_units(np.ones(20), se=1, units=np.repeat(np.arange(10), 2)[::-1])


def test_raw_intervals_and_complete_pooling():
    normal = read_units([1.0, 3.0], se=[1.0, 2.0])
    low, high = normal.raw_interval(0.95)
    np.testing.assert_allclose(high - normal.y, stats.norm.ppf(0.975) * normal.size, rtol=1e-14)
    np.testing.assert_allclose(normal.y - low, stats.norm.ppf(0.975) * normal.size, rtol=1e-14)
    assert normal.complete_pooling == pytest.approx((1.0 + 3.0 / 4) / 1.25, rel=1e-15)
    binomial = read_units([0, 3, 10], trials=[10, 10, 10])
    low, high = binomial.raw_interval(0.9)
    np.testing.assert_allclose(low, [0.0, stats.beta(3.5, 7.5).ppf(0.05), stats.beta(10.5, 0.5).ppf(0.05)], rtol=1e-10)
    np.testing.assert_allclose(high, [stats.beta(0.5, 10.5).ppf(0.95), stats.beta(3.5, 7.5).ppf(0.95), 1], rtol=1e-10)
    poisson = read_units([0, 6, 48], exposure=[2.0, 4.0, 40.0])
    low, high = poisson.raw_interval(0.8)
    np.testing.assert_allclose(low[1:], stats.gamma([6.5, 48.5]).ppf(0.1) / [4, 40], rtol=1e-10)
    np.testing.assert_allclose(high, stats.gamma([0.5, 6.5, 48.5]).ppf(0.9) / [2, 4, 40], rtol=1e-10)
    assert low[0] == 0.0
    assert poisson.complete_pooling == 54 / 46
    with pytest.raises(ModelError, match="between 0 and 1"):
        poisson.raw_interval(90)


def test_position_finds_units_by_name():
    units = read_units([1, 2, 3], se=1, units=["Ann", "Bob", "Cy"])
    assert units.position("Cy") == 2
    with pytest.raises(DataError, match="Did you mean 'Bob'"):
        units.position("Bobb")
    numbered = read_units([1, 2, 3], se=1, units=[10, 20, 30])
    assert numbered.position(20) == numbered.position("20") == 1
    with pytest.raises(DataError, match="There is no unit 99 among the 9999 units"):
        read_units(np.zeros(9999), se=1, units=np.arange(9999) + 1000).position(99)


def test_covariates_of_every_kind_and_their_replay():
    X = np.array([[1.0, 5.0], [2.0, 1.0], [4.0, 0.0], [5.0, 2.0]])
    given = [X, X.tolist(), pd.DataFrame(X, columns=["x1", "x2"]), {"x1": X[:, 0], "x2": X[:, 1]}]
    for covariates in [*given, pl.DataFrame({"x1": X[:, 0], "x2": X[:, 1]})]:
        units = read_units([1, 2, 3, 4], se=1, covariates=covariates)
        assert units.x_names == ("Intercept", "x1", "x2")
        np.testing.assert_array_equal(units.X, np.column_stack([np.ones(4), X]))
    one = read_units([1, 2, 3], se=1, covariates=pd.Series([1.0, 2, 5], name="income"))
    assert one.x_names == ("Intercept", "income")
    learned = read_units("events", trials="trials", covariates="center(size) + region", data=TABLE)
    np.testing.assert_allclose(learned.encode({"size": [3.4], "region": ["s"]}), [[1.0, 0.0, 1.0]], atol=1e-12)
    again = read_units([1], trials=[2], units=["Z"], covariates={"size": [4.4], "region": ["n"]}, like=learned)
    np.testing.assert_allclose(again.X, [[1.0, 1.0, 0.0]], atol=1e-12)
    with pytest.raises(DataError, match="not one of the known categories"):
        learned.encode({"size": [3.4], "region": ["west"]})
    with pytest.raises(DataError, match="missing in 1"):
        learned.encode({"size": [None], "region": ["n"]})
    with pytest.raises(DataError, match=r"'log\(size\)' is infinite in row B"):
        read_units([1, 2, 3], se=1, units=list("ABC"), covariates="log(size)", data={"size": [1.0, 0.0, 2.0]})
    with pytest.raises(ModelError, match="without covariates"):
        read_units([1, 2], se=1).encode(X)


LIKELIHOOD = {
    "normal": lambda theta, y, size: stats.norm(theta, size).logpdf(y),
    "binomial": lambda theta, y, size: stats.binom(size, theta).logpmf(y),
    "poisson": lambda theta, y, size: stats.poisson(theta * size).logpmf(y),
}


@pytest.mark.parametrize(
    ("family", "size", "population"),
    [
        ("normal", "se", stats.norm(0.3, 1.2)),
        ("binomial", "trials", stats.beta(2, 5)),
        ("poisson", "exposure", stats.gamma(2)),
    ],
)
def test_merged_data_tell_the_same_up_to_the_constant(family, size, population):
    """log p(both data sets | population) = log p(merged | population) + constant, by integration."""
    old = read_units([3, 0, 5], **{size: [4, 2, 9]}, units=["a", "b", "c"])
    new = read_units([2, 7, 1], **{size: [5, 8, 3]}, units=["c", "d", "a"])
    together, constant = merged(old, new)
    assert together.names.tolist() == ["a", "b", "c", "d"]
    assert together.named

    def log_marginal(data):
        def value(theta):
            return np.exp(sum(LIKELIHOOD[family](theta, y, n) for y, n in data)) * population.pdf(theta)

        low, high = population.support()
        return np.log(integrate.quad(value, max(low, -12), min(high, 30), epsabs=0, epsrel=1e-11, limit=500)[0])

    data = {name: [] for name in together.names}
    for units in (old, new):
        for name, y, n in zip(units.names, units.y, units.size, strict=True):
            data[name].append((y, n))
    both = sum(log_marginal(rows) for rows in data.values())
    one = sum(log_marginal([row]) for row in zip(together.y, together.size, strict=True))
    assert both == pytest.approx(one + constant, abs=1e-9)
    assert old.y.tolist() == [3.0, 0.0, 5.0]  # what was given stays


def test_merging_units_without_names_and_with_covariates():
    plain = read_units([1, 2, 3], trials=[4, 5, 6])
    together, _ = merged(plain, read_units([1, 0, 1], trials=[2, 2, 2]))
    assert together.y.tolist() == [2.0, 2.0, 4.0]
    assert not together.named
    by_number, _ = merged(plain, read_units([1], trials=[2], units=[2]))
    assert by_number.y.tolist() == [1.0, 2.0, 4.0]
    with pytest.raises(DataError, match="do not say which units"):
        merged(plain, read_units([1], trials=[2]))
    with pytest.raises(DataError, match="binomial and the new data poisson"):
        merged(plain, read_units([1], exposure=[2]))
    mixed, _ = merged(plain, read_units([1], trials=[2], units=["extra"]))
    assert mixed.names.tolist() == [0, 1, 2, "extra"]

    old = read_units([1, 2, 3], trials=9, units=list("abc"), covariates={"x": [1.0, 2.0, 4.0]})
    assert merged(old, read_units([1], trials=[2], units=["b"]))[0].X is old.X
    with pytest.raises(DataError, match=r"New units \('d'\) need the covariates that the others have: x"):
        merged(old, read_units([1], trials=[2], units=["d"]))
    grown, _ = merged(old, read_units([1, 1], trials=2, units=["d", "a"], covariates={"x": [7.0, 1.0]}, like=old))
    np.testing.assert_array_equal(grown.X[:, 1], [1.0, 2.0, 4.0, 7.0])
    with pytest.raises(DataError, match="covariates of unit 'a' differ"):
        merged(old, read_units([1], trials=2, units=["a"], covariates={"x": [7.0]}, like=old))
    with pytest.raises(DataError, match="have none"):
        merged(plain, read_units([1, 2, 3], trials=9, covariates={"x": [1.0, 2.0, 4.0]}))


def test_a_million_units_are_read_at_once():
    rng = np.random.default_rng(5)
    trials = rng.integers(1, 100, 1_000_000)
    data = pd.DataFrame({"events": rng.binomial(trials, 0.2), "trials": trials, "shop": np.arange(1_000_000)})
    read_units("events", trials="trials", units="shop", data=data)
    started = time.perf_counter()
    read_units("events", trials="trials", units="shop", data=data)
    assert time.perf_counter() - started < 0.3  # about 0.02 s alone; the machine may be shared
