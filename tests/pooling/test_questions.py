"""Ranks, comparisons, decisions, discoveries and predictions against scipy, on posteriors that are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy import stats

import partialpool as pp
from partialpool.errors import DataError, ModelError
from partialpool.pooling.comparing import compare, exceeds
from partialpool.pooling.decisions import decide
from partialpool.pooling.discoveries import discoveries, significance
from partialpool.pooling.marginals import dense_quantiles, posterior_points, probability_grid, unit_points
from partialpool.pooling.prediction import predict
from partialpool.pooling.ranking import rank
from partialpool.pooling.units import Units


@dataclass
class Posterior:
    """theta_j ~ point (share of the mass) at 0, else N(mean + shift of the node, sd); the truth by scipy."""

    mean: np.ndarray
    sd: np.ndarray
    point: np.ndarray
    shifts: np.ndarray = field(default_factory=lambda: np.zeros(1))
    threads: int = 2

    def __post_init__(self):
        self.n_units = self.mean.size
        self.node_weights = np.full(self.shifts.size, 1 / self.shifts.size)

    def _of(self, units):
        piece = slice(None) if units is None else units
        return self.mean[piece], self.sd[piece], self.point[piece]

    def moments(self):
        centre = self.mean + self.shifts.mean()
        mean = (1 - self.point) * centre
        return mean, np.sqrt((1 - self.point) * (self.sd**2 + self.shifts.var() + centre**2) - mean**2)

    def cdf(self, x, units=None):
        mean, sd, point = self._of(units)
        below = np.mean([stats.norm.cdf(x, mean + s, sd) for s in self.shifts], axis=0)
        return point * (np.asarray(x) >= 0) + (1 - point) * below

    def atom(self, x, units=None):
        return self._of(units)[2] * (x == 0)

    def quantiles(self, probabilities, units=None):
        mean, sd, point = self._of(units)
        out = np.empty((len(probabilities), mean.size))
        at_zero = self.cdf(0.0, units)
        for row, p in enumerate(probabilities):
            if self.shifts.size == 1:
                with np.errstate(divide="ignore", invalid="ignore"):
                    below = p < at_zero - point
                    share = np.where(below, p, p - point) / (1 - point)
                    value = stats.norm.ppf(np.clip(share, 0, 1), mean + self.shifts[0], sd)
                out[row] = np.where((p >= at_zero - point) & (p <= at_zero) & (point > 0), 0.0, value)
            else:
                low, high = mean - 50 * sd - 50, mean + 50 * sd + 50
                for _ in range(80):
                    middle = (low + high) / 2
                    up = self.cdf(middle, units) >= p
                    low, high = np.where(up, low, middle), np.where(up, middle, high)
                out[row] = high
        return out

    def draws(self, nodes, rng, units=None):
        mean, sd, point = self._of(units)
        values = mean + self.shifts[nodes][:, None] + sd * rng.standard_normal((nodes.size, mean.size))
        return np.where(rng.random(values.shape) < point, 0.0, values)


class Population:
    kind = "normal"

    def __init__(self, point):
        self.atoms = (np.zeros(1), np.array([point])) if point > 0 else (np.empty(0), np.empty(0))


class FakePooled:
    method = "bayes"

    def __init__(self, mean, sd, point=0.0, shifts=(0.0,), family="normal", size=None, names=None, null=0.0, seed=3):
        mean = np.asarray(mean, float)
        count = mean.size
        self.posterior = Posterior(
            mean,
            np.broadcast_to(sd, (count,)).astype(float),
            np.broadcast_to(point, (count,)).astype(float),
            np.array(shifts),
        )
        self.population = Population(float(np.max(point)))
        size = np.ones(count) if size is None else np.broadcast_to(size, (count,)).astype(float)
        labels = np.arange(count) if names is None else np.array(names)
        self.units = Units(
            family=family,
            y=mean * (1 if family == "normal" else size),
            size=size,
            names=labels,
            named=names is not None,
        )
        self.family, self.null, self.seed = family, null, seed

    def node_draws(self, n, rng):
        weights = self.posterior.node_weights
        return np.searchsorted(np.cumsum(weights), (np.arange(n) + rng.random()) / n).clip(0, weights.size - 1)


rng = np.random.default_rng(11)
MEANS = rng.normal(size=12).round(3)
SDS = rng.uniform(0.2, 0.9, 12)


# ------------------------------------------------------------------------------------------------------ quadrature


def test_levels_integrate_smooth_functions_and_jumps():
    p, w = probability_grid(64)
    z = stats.norm.ppf(p)
    assert w.sum() == pytest.approx(1, abs=1e-14)
    assert w @ z**2 == pytest.approx(1, abs=5e-5)
    for cut in np.linspace(-2, 2, 41):
        assert abs(w @ (z > cut) - stats.norm.sf(cut)) < 0.94 / 64 + 1e-9


def test_quantiles_between_knots():
    pooled = pp.pool([1, 4, 30, 0], trials=[10, 9, 40, 25])
    assert pooled.posterior.node_weights.size >= 20
    p = probability_grid(300)[0]
    rows = np.arange(4)
    found, exact = dense_quantiles(pooled, p, rows), pooled.posterior.quantiles(p, rows)
    assert np.abs(found - exact).max() < 1e-3 * pooled.table["sd"].min()


def test_points_of_many_posteriors_weigh_their_masses():
    pooled = FakePooled(MEANS, SDS, point=np.linspace(0, 0.9, 12))
    values, weights = unit_points(pooled, 32, np.arange(12))
    assert weights.sum(axis=0) == pytest.approx(1)
    missed = probability_grid(32)[0][0]  # a side of the mass that holds less than the first level may have no value
    assert missed < 4e-5
    assert (weights * (values == 0)).sum(axis=0) == pytest.approx(np.linspace(0, 0.9, 12), abs=missed)
    above = exceeds(pooled, 0.0).to_numpy()
    assert (weights * (values > 0)).sum(axis=0) == pytest.approx(above, abs=missed)


def test_points_of_a_posterior_with_a_mass_at_zero():
    pooled = FakePooled([0.7], 0.5, point=0.4)
    values, weights = posterior_points(pooled, 0, 64)
    assert weights[values == 0].sum() == pytest.approx(0.4, abs=1e-12)
    assert weights @ values == pytest.approx(0.6 * 0.7, abs=1e-5)
    values, weights = posterior_points(pooled, 0, 512)
    assert weights @ values == pytest.approx(0.6 * 0.7, abs=1e-7)
    values, weights = posterior_points(pooled, 0, 64)
    assert weights @ values**2 == pytest.approx(0.6 * (0.25 + 0.49), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- ranks


def expected_ranks(mean, sd):
    """1 + the sum over the others of P(the other is above)."""
    above = stats.norm.sf(0, mean[None, :] - mean[:, None], np.hypot(sd[None, :], sd[:, None]))
    np.fill_diagonal(above, 0)
    return 1 + above.sum(axis=1)


def test_expected_ranks_are_one_plus_the_expected_number_above():
    table = rank(FakePooled(MEANS, SDS), top=3)
    truth = expected_ranks(MEANS, SDS)
    found = table.set_index("unit").loc[np.arange(12)]
    z = (found["expected_rank"] - truth) / found["expected_rank_mcse"]
    assert np.abs(z).max() < 4
    assert found["expected_rank_mcse"].max() < 0.05
    assert found["p_top"].sum() == pytest.approx(3, abs=1e-9)
    assert table["expected_rank"].is_monotonic_increasing
    assert table.columns.tolist() == [
        "unit", "mean", "expected_rank", "expected_rank_mcse", "rank_q05", "rank_q95", "p_top", "league",
    ]  # fmt: skip
    assert table.attrs["top"] == 3


def test_probability_of_the_top_of_two_units_is_exact_to_monte_carlo():
    table = rank(FakePooled([0.0, 1.0], [0.6, 0.8]), top=1).set_index("unit")
    truth = stats.norm.cdf(1 / np.hypot(0.6, 0.8))
    assert table.loc[1, "p_top"] == pytest.approx(truth, abs=4 * np.sqrt(truth * (1 - truth) / 4000))


def test_the_lowest_may_be_best():
    high, low = rank(FakePooled(MEANS, SDS)), rank(FakePooled(-MEANS, SDS), best="low")
    assert high["unit"].tolist() == low["unit"].tolist()


def test_units_at_the_point_mass_share_their_rank():
    table = rank(FakePooled(np.zeros(5), 1.0, point=1.0), top=2)
    assert (table["expected_rank"] == 3).all() and (table["rank_q05"] == 3).all()
    assert table["p_top"].to_numpy() == pytest.approx(0.4)
    assert (table["league"] == 1).all()


def test_ranks_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("partialpool.pooling.ranking.BLOCK", 1200)
    one, three = FakePooled(MEANS, SDS), FakePooled(MEANS, SDS)
    one.posterior.threads, three.posterior.threads = 1, 3
    assert rank(one).equals(rank(three))


def test_leagues_begin_where_their_predecessors_first_unit_wins():
    # five pairs: units of a pair cannot be told apart, pairs can
    mean = np.repeat([8.0, 6.0, 4.0, 2.0, 0.0], 2) + np.tile([0.1, 0.0], 5)
    table = rank(FakePooled(mean, 0.3))
    assert table["league"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    chain = rank(FakePooled(np.arange(10) * -0.3, 0.5))
    # unit 4 is the first that unit 0 beats with 95%: 1.2 / (0.5 sqrt 2) = 1.70
    assert chain["league"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("best", ["high", "low"])
@pytest.mark.parametrize("point", [0.0, 0.5])
def test_ranks_from_marginals_agree_with_joint_draws(monkeypatch, point, best):
    """The way of more than 10,000 units, forced on 3,000, against 3,000 joint draws."""
    count = 3000
    own = np.random.default_rng(5)
    mean, sd = own.normal(size=count), own.uniform(0.05, 1.0, count)
    mean[:3] = [6, 5.5, -6]
    mass = np.where(own.random(count) < 0.5, point, 0.0)
    mass[:3] = 0.0
    pooled = FakePooled(mean, sd, point=mass)
    monkeypatch.setattr("partialpool.pooling.ranking.MANY_UNITS", 1000)
    by_curve = rank(pooled, top=300, best=best).set_index("unit").sort_index()
    by_draws = rank(pooled, top=300, best=best, n_draws=3000).set_index("unit").sort_index()
    z = (by_curve["expected_rank"] - by_draws["expected_rank"]) / np.hypot(by_draws["expected_rank_mcse"], 1.5)
    assert np.abs(z).max() < 5
    assert np.abs(by_curve["p_top"] - by_draws["p_top"]).max() < 0.05
    assert by_curve["p_top"].sum() == pytest.approx(300, rel=0.01)
    width = np.maximum(by_draws["rank_q95"] - by_draws["rank_q05"], 20)
    assert np.quantile(np.abs(by_curve["rank_q05"] - by_draws["rank_q05"]) / width, 0.99) < 0.1
    assert np.quantile(np.abs(by_curve["rank_q95"] - by_draws["rank_q95"]) / width, 0.99) < 0.1
    first = 0 if best == "high" else 2
    assert by_curve.loc[first, "expected_rank"] < 1.6
    assert abs(by_curve["league"].max() - by_draws["league"].max()) <= 0.25 * by_draws["league"].max()


@pytest.mark.parametrize("arguments", [{"top": 13}, {"top": 0}, {"top": 2.5}, {"best": "highest"}, {"n_draws": 1}])
def test_rank_refuses(arguments):
    with pytest.raises(ModelError, match=next(iter(arguments))):
        rank(FakePooled(MEANS, SDS), **arguments)


# --------------------------------------------------------------------------------------------- thresholds and pairs


def test_exceeds_is_the_tail_of_the_posterior():
    pooled = FakePooled(MEANS, SDS, point=0.3, names=list("abcdefghijkl"))
    above, below = exceeds(pooled, 0.0), exceeds(pooled, 0.0, below=True)
    assert above.to_numpy() == pytest.approx(0.7 * stats.norm.sf(0, MEANS, SDS), abs=1e-14)
    assert (above + below).to_numpy() == pytest.approx(0.7, abs=1e-14)  # the mass at 0 is in neither
    assert above.name == "probability" and above.index.name == "unit" and above.index[2] == "c"
    each = exceeds(pooled, MEANS)
    assert each.to_numpy() == pytest.approx(0.7 * 0.5 + 0.3 * (MEANS < 0), abs=1e-14)
    shuffled = each.sample(frac=1.0, random_state=1)
    thresholds = shuffled.copy()
    thresholds[:] = MEANS[[list("abcdefghijkl").index(u) for u in shuffled.index]]
    assert exceeds(pooled, thresholds).equals(each)


def test_exceeds_refuses():
    pooled = FakePooled(MEANS, SDS, names=list("abcdefghijkl"))
    with pytest.raises(ModelError, match="each of the 12 units"):
        exceeds(pooled, [1.0, 2.0])
    with pytest.raises(ModelError, match="NaN"):
        exceeds(pooled, np.nan)
    with pytest.raises(ModelError, match="no value for 11 of the units"):
        import pandas

        exceeds(pooled, pandas.Series([1.0], index=["a"]))


def test_a_pair_without_shared_uncertainty_is_exact():
    found = compare(FakePooled(MEANS, SDS), 1, 4)
    sd = np.hypot(SDS[1], SDS[4])
    assert found.mean == pytest.approx(MEANS[1] - MEANS[4], abs=1e-14)
    assert found.sd == pytest.approx(sd, abs=1e-14)
    assert found.probability == pytest.approx(stats.norm.sf(0, MEANS[1] - MEANS[4], sd), abs=1e-5)
    assert found.mcse == 0 and found.ratio is None
    assert found.q95 - found.q05 == pytest.approx(2 * 1.6449 * sd, rel=0.02)


def test_a_pair_with_shared_uncertainty_is_compared_jointly():
    """The shift of the nodes is common to both, so that it cancels in the difference."""
    pooled = FakePooled([0.3, 0.0], [0.2, 0.3], shifts=np.linspace(-2, 2, 9))
    found = compare(pooled, 0, 1)
    truth = stats.norm.sf(0, 0.3, np.hypot(0.2, 0.3))
    assert 0 < found.mcse < 0.0025
    assert found.probability == pytest.approx(truth, abs=4 * found.mcse)
    assert found.sd == pytest.approx(np.hypot(0.2, 0.3), rel=0.03)
    assert "higher with probability 0.7" in repr(found) or "higher with probability 0.8" in repr(found)
    assert compare(pooled, 0, 1) == found


def test_control_variates_reduce_the_noise():
    pooled = FakePooled([0.3, 0.0], [0.2, 0.3], shifts=(-0.05, 0.05))
    found = compare(pooled, 0, 1)
    plain = np.sqrt(found.probability * (1 - found.probability) / found.n_draws)
    assert found.mcse < 0.75 * plain
    errors = []
    for seed in range(12):
        pooled.seed = seed
        errors.append((compare(pooled, 0, 1).probability - stats.norm.sf(0, 0.3, np.hypot(0.2, 0.3))) / found.mcse)
    assert 0.4 < np.sqrt(np.mean(np.square(errors))) < 1.7


@pytest.mark.parametrize("shifts", [(0.0,), (-0.1, 0.1)])
def test_equal_units_at_the_point_mass(shifts):
    pooled = FakePooled([0.4, -0.2, 1.0], 0.5, point=np.array([0.6, 0.5, 0.0]), shifts=shifts)
    found = compare(pooled, 0, 1)
    assert found.probability_equal == pytest.approx(0.3, abs=0.006)
    reverse = compare(pooled, 1, 0)
    assert found.probability + reverse.probability + found.probability_equal == pytest.approx(1, abs=0.01)
    assert compare(pooled, 0, 2).probability_equal == 0


def test_a_unit_against_all_others():
    pooled = FakePooled(MEANS, SDS)
    table = compare(pooled, 3)
    assert table["unit"].tolist() == [u for u in range(12) if u != 3]
    others = table["unit"].to_numpy()
    truth = stats.norm.sf(0, MEANS[3] - MEANS[others], np.hypot(SDS[3], SDS[others]))
    assert table["probability"].to_numpy() == pytest.approx(truth, abs=1e-5)
    assert table["sd"].to_numpy() == pytest.approx(np.hypot(SDS[3], SDS[others]), abs=1e-12)
    assert table["q05"].to_numpy() == pytest.approx(table["mean"] - 1.6449 * table["sd"], abs=0.05)
    shared = compare(FakePooled(MEANS, SDS, shifts=(-3.0, 3.0)), 3)
    assert shared["probability"].to_numpy() == pytest.approx(truth, abs=0.01)


def test_ratios_of_rates():
    found = compare(FakePooled([4.0, 2.0], [0.1, 0.1], family="poisson"), 0, 1)
    assert found.ratio[1] == pytest.approx(2.0, abs=0.01)
    assert "Ratio 2" in repr(found) and "rate of 0" in repr(found)


def test_compare_refuses():
    pooled = FakePooled(MEANS, SDS, names=["Lakeview", *"bcdefghijkl"])
    with pytest.raises(DataError, match="Lakeview"):
        compare(pooled, "Lakevew", "b")
    with pytest.raises(ModelError, match="same unit"):
        compare(pooled, "b", "b")
    with pytest.raises(ModelError, match="only one unit"):
        compare(FakePooled([1.0], [1.0]), 0)


# ------------------------------------------------------------------------------------------------------- decisions


def test_losses_by_name_are_known_in_closed_form():
    pooled = FakePooled(MEANS, SDS)
    squared, absolute = decide(pooled), decide(pooled, "absolute")
    assert squared["expected_loss"].to_numpy() == pytest.approx(SDS**2)
    assert absolute["action"].to_numpy() == pytest.approx(MEANS, abs=1e-12)
    assert absolute["expected_loss"].to_numpy() == pytest.approx(SDS * np.sqrt(2 / np.pi), rel=2e-4)
    uneven = decide(pooled, {"over": 1, "under": 3})
    z = stats.norm.ppf(0.75)
    assert uneven["action"].to_numpy() == pytest.approx(MEANS + z * SDS, abs=1e-12)
    assert uneven["expected_loss"].to_numpy() == pytest.approx(4 * stats.norm.pdf(z) * SDS, rel=2e-4)


def test_a_function_chooses_between_actions():
    def cost(action, theta):
        wrong = theta <= 0.5 if action == "treat" else theta > 0.5
        return np.where(wrong, 1.0 if action == "treat" else 4.0, 0.0)

    pooled = FakePooled(MEANS, SDS)
    table = decide(pooled, cost, actions=["wait", "treat"])
    above = stats.norm.sf(0.5, MEANS, SDS)
    assert table["loss[wait]"].to_numpy() == pytest.approx(4 * above, abs=4 * 0.94 / 400)
    assert table["loss[treat]"].to_numpy() == pytest.approx(1 - above, abs=0.94 / 400)
    assert (table["action"] == np.where(above > 0.2, "treat", "wait")).all()
    assert (table["expected_loss"] == table[["loss[wait]", "loss[treat]"]].min(axis=1)).all()


def test_a_smooth_loss_is_exact():
    table = decide(FakePooled(MEANS, SDS), lambda action, theta: (theta - action) ** 2, actions=[0.0, 1.0])
    assert table["loss[1.0]"].to_numpy() == pytest.approx(SDS**2 + (MEANS - 1) ** 2, rel=1e-5)
    assert table["action"].dtype == float


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"loss": "zero-one"}, "There is no loss 'zero-one'"),
        ({"loss": {"over": 1}}, "There is no loss"),
        ({"loss": {"over": 1, "under": -1}}, "'under' must be a positive number"),
        ({"loss": "squared", "actions": [1]}, "goes with a loss that is a function"),
        ({"loss": lambda a, t: t}, "needs actions="),
        ({"loss": lambda a, t: t, "actions": []}, "empty"),
        ({"loss": lambda a, t: t[0], "actions": [1]}, "one number for each theta"),
        ({"loss": lambda a, t: t * np.nan, "actions": [1]}, "NaN"),
        ({"loss": lambda a, t: "much", "actions": [1]}, "must return numbers"),
        ({"loss": lambda a, t: t, "actions": [1], "points": 1}, "points"),
    ],
)
def test_decide_refuses(arguments, message):
    with pytest.raises(ModelError, match=message):
        decide(FakePooled(MEANS, SDS), **arguments)


# ----------------------------------------------------------------------------------------------------- discoveries


def test_rates_and_their_running_mean():
    point = np.array([0.9, 0.02, 0.4, 0.001, 0.1])
    mean = np.array([0.1, 2.0, 1.0, -4.0, 2.0])
    pooled = FakePooled(mean, 0.5, point=point)
    table = significance(pooled)
    assert table["lfdr"].to_numpy() == pytest.approx(point, abs=1e-15)
    below = (1 - point) * stats.norm.cdf(0, mean, 0.5)
    assert table["lfsr"].to_numpy() == pytest.approx(np.minimum(point + below, 1 - below), abs=1e-14)
    assert (table["lfsr"] >= table["lfdr"]).all()
    assert table.loc[4, "q_value"] == pytest.approx((0.001 + 0.02 + 0.1) / 3)
    assert table.attrs == {"null": 0.0, "by": "lfdr"}
    found = discoveries(pooled, fdr=0.05)
    assert found["unit"].tolist() == [3, 1, 4]
    assert found.columns.tolist() == ["unit", "raw", "mean", "q05", "q95", "lfdr", "lfsr", "q_value"]
    assert found.attrs["expected_false"] == pytest.approx(0.121)
    by_sign = discoveries(pooled, fdr=0.05, by="lfsr")
    assert by_sign.attrs["by"] == "lfsr" and by_sign["q_value"].max() <= 0.05


def test_without_a_point_mass_signs_are_counted():
    pooled = FakePooled(MEANS, SDS, null=None)
    table = significance(pooled, null=0.2)
    assert table["lfdr"].isna().all()  # nothing is said of nulls where there are none
    below = stats.norm.cdf(0.2, MEANS, SDS)
    lfsr = np.sort(np.minimum(below, 1 - below))
    assert np.sort(table["q_value"]) == pytest.approx(np.cumsum(lfsr) / np.arange(1, 13))


def test_the_false_discovery_proportion_is_what_was_asked_for():
    own = np.random.default_rng(2)
    shares, power = [], []
    for _ in range(20):
        null = own.random(5000) < 0.8
        theta = np.where(null, 0.0, own.normal(scale=3, size=5000))
        y = theta + own.normal(size=5000)
        bayes = 0.8 * stats.norm.pdf(y) / (0.8 * stats.norm.pdf(y) + 0.2 * stats.norm.pdf(y, scale=np.sqrt(10)))
        found = discoveries(FakePooled(0.9 * y, np.sqrt(0.9), point=bayes), fdr=0.05)
        units = found["unit"].to_numpy()
        shares.append(null[units].mean())
        power.append(units.size)
    assert np.mean(shares) == pytest.approx(0.05, abs=4 * np.std(shares) / np.sqrt(20))
    assert min(power) > 300


def test_nothing_may_be_found():
    found = discoveries(FakePooled(np.zeros(5), 1.0, point=0.9))
    assert len(found) == 0 and "q05" in found.columns and found.attrs["expected_false"] == 0


def test_discoveries_refuse():
    pooled = FakePooled(MEANS, SDS, family="binomial", null=None, size=10)
    with pytest.raises(ModelError, match="null="):
        discoveries(pooled)
    for wrong in (0, 1, -0.1, "5%", True):
        with pytest.raises(ModelError, match="fdr must lie between 0 and 1"):
            discoveries(FakePooled(MEANS, SDS), fdr=wrong)
    with pytest.raises(ModelError, match="no point mass at 0"):
        significance(FakePooled(MEANS, SDS), by="lfdr")
    with pytest.raises(ModelError, match='"auto", "lfdr" or "lfsr"'):
        significance(FakePooled(MEANS, SDS), by="bh")


# ----------------------------------------------------------------------------------------------------- predictions


def test_the_next_estimate_is_normal():
    table = predict(FakePooled(MEANS, SDS, size=0.7))
    spread = np.hypot(SDS, 0.7)
    assert table["sd"].to_numpy() == pytest.approx(spread)
    assert table["q95"].to_numpy() == pytest.approx(MEANS + stats.norm.ppf(0.95) * spread, abs=2e-4)
    assert predict(FakePooled(MEANS, SDS), [4, 2], se=[0.1, 2.0])["sd"].to_numpy() == pytest.approx(
        np.hypot(SDS[[4, 2]], [0.1, 2.0])
    )


@pytest.mark.parametrize("trials", [1, 7, 400])
def test_the_next_events_are_binomial_over_the_posterior(trials):
    mean, sd = np.array([0.3, 0.5, 0.92]), np.array([0.05, 0.08, 0.01])
    table = predict(FakePooled(mean, sd, family="binomial", size=50), trials=trials)
    own = np.random.default_rng(1)
    theta = own.normal(mean, sd, (400_000, 3)).clip(0, 1)
    y = own.binomial(trials, theta)
    assert table["mean"].to_numpy() == pytest.approx(trials * mean)
    assert table["sd"].to_numpy() == pytest.approx(y.std(axis=0), rel=0.01)
    for name, p in (("q05", 0.05), ("q95", 0.95)):
        at = table[name].to_numpy()
        assert ((y <= at).mean(axis=0) > p - 0.003).all() and ((y <= at - 1).mean(axis=0) < p + 0.003).all()


def test_the_next_count_is_poisson_over_the_posterior():
    table = predict(FakePooled([3.0, 40.0], [0.4, 1.0], family="poisson", size=2), exposure=[0.5, 10])
    own = np.random.default_rng(1)
    y = own.poisson(np.array([0.5, 10]) * own.normal([3.0, 40.0], [0.4, 1.0], (400_000, 2)))
    assert table["sd"].to_numpy() == pytest.approx(y.std(axis=0), rel=0.01)
    for name, p in (("q05", 0.05), ("q95", 0.95)):
        at = table[name].to_numpy()
        assert ((y <= at).mean(axis=0) > p - 0.003).all() and ((y <= at - 1).mean(axis=0) < p + 0.003).all()


def test_predict_refuses():
    pooled = FakePooled([0.3, 0.4], 0.05, family="binomial", size=50)
    with pytest.raises(ModelError, match="se= does not go with the binomial family"):
        predict(pooled, se=1.0)
    with pytest.raises(ModelError, match=r"whole number of at least 1; it is 2\.5"):
        predict(pooled, trials=2.5)
    with pytest.raises(ModelError, match="each of the 2 units"):
        predict(pooled, trials=[1, 2, 3])
    with pytest.raises(ModelError, match="say how much data is to come with trials="):
        predict(pooled, "new")
    with pytest.raises(DataError, match="no unit 7"):
        predict(pooled, 7)
    with pytest.raises(ModelError, match="No units were asked for"):
        predict(pooled, [])


def test_one_of_very_many_against_all_others(monkeypatch):
    monkeypatch.setattr("partialpool.pooling.marginals.MANY_UNITS", 5)
    monkeypatch.setattr("partialpool.pooling.comparing.MANY_UNITS", 5)
    table = compare(FakePooled(MEANS + 10, SDS, family="poisson", size=2), 3)
    others = table["unit"].to_numpy()
    sd = np.hypot(SDS[3], SDS[others])
    assert table["probability"].to_numpy() == pytest.approx(stats.norm.sf(0, MEANS[3] - MEANS[others], sd), abs=2e-3)
    assert table["sd"].to_numpy() == pytest.approx(sd)
    assert table["q05"].to_numpy() == pytest.approx(MEANS[3] - MEANS[others] - 1.6449 * sd, abs=0.03)
    assert table["q95"].to_numpy() == pytest.approx(MEANS[3] - MEANS[others] + 1.6449 * sd, abs=0.03)
    own = np.random.default_rng(3)
    ratio = own.normal(MEANS[3] + 10, SDS[3], 200_000)[:, None] / own.normal(
        MEANS[others] + 10, SDS[others], (200_000, 11)
    )
    for name, q in (("ratio_q05", 0.05), ("ratio_q50", 0.5), ("ratio_q95", 0.95)):
        assert table[name].to_numpy() == pytest.approx(np.quantile(ratio, q, axis=0), abs=0.006)


# -------------------------------------------------------------------------------------------- through the front door


def test_fixed_conjugate_populations_against_scipy():
    pooled = pp.pool([7, 2, 30], trials=[10, 20, 40], population=pp.Beta(2, 8))
    posterior = stats.beta([9, 4, 32], [11, 26, 18])
    assert pooled.exceeds(0.3).to_numpy() == pytest.approx(posterior.sf(0.3), abs=1e-12)
    table = pooled.predict(trials=[20, 1, 300])
    truth = stats.betabinom([20, 1, 300], [9, 4, 32], [11, 26, 18])
    assert table["mean"].to_numpy() == pytest.approx(truth.mean())
    assert table["sd"].to_numpy() == pytest.approx(truth.std())
    assert table["q05"].tolist() == truth.ppf(0.05).tolist() and table["q95"].tolist() == truth.ppf(0.95).tolist()
    new = pooled.predict("new", trials=20)
    unseen = stats.betabinom(20, 2, 8)
    assert new.loc[0, ["unit", "q05", "q95"]].tolist() == ["new", unseen.ppf(0.05), unseen.ppf(0.95)]
    assert new.loc[0, "sd"] == pytest.approx(unseen.std())
    absolute = pooled.decide("absolute")
    assert absolute["action"].to_numpy() == pytest.approx(posterior.median(), abs=1e-6)
    x = (np.arange(200_000) + 0.5) / 200_000
    for unit in range(3):
        loss = np.mean(np.abs(x - posterior.median()[unit]) * stats.beta(*[a[unit] for a in posterior.args]).pdf(x))
        assert absolute.loc[unit, "expected_loss"] == pytest.approx(loss, rel=3e-4)


def test_counts_to_come_are_negative_binomial():
    pooled = pp.pool([6, 2, 48], exposure=[4, 4, 40], population=pp.Gamma(7, rate=6))
    table = pooled.predict(exposure=5)
    shape, rate = np.array([13, 9, 55]), np.array([10, 10, 46])
    truth = stats.nbinom(shape, rate / (rate + 5))
    assert table["mean"].to_numpy() == pytest.approx(truth.mean())
    assert table["sd"].to_numpy() == pytest.approx(truth.std())
    assert table["q05"].tolist() == truth.ppf(0.05).tolist() and table["q95"].tolist() == truth.ppf(0.95).tolist()


def test_two_fixed_beta_posteriors_are_compared_exactly():
    against = pp.pool([7, 2], trials=[10, 20], population=pp.Beta(2, 8)).compare(0, 1)
    x = (np.arange(400_000) + 0.5) / 400_000
    truth = np.mean(stats.beta(9, 11).pdf(x) * stats.beta(4, 26).cdf(x))
    assert against.mcse == 0 and against.probability == pytest.approx(truth, abs=1e-5)


def test_full_bayes_ranks_and_pairs_against_plain_joint_draws():
    schools = pp.pool([28, 8, -3, 7, -1, 1, 18, 12], se=[15, 10, 16, 11, 9, 11, 10, 18], units=list("ABCDEFGH"), seed=4)
    theta = schools.draws(200_000)
    ranks = 8 - theta.argsort(axis=1).argsort(axis=1)
    table = schools.rank(top=2).set_index("unit").loc[list("ABCDEFGH")]
    z = (table["expected_rank"] - ranks.mean(axis=0)) / np.hypot(table["expected_rank_mcse"], 2.3 / np.sqrt(200_000))
    assert np.abs(z).max() < 4
    assert table["p_top"].to_numpy() == pytest.approx((ranks <= 2).mean(axis=0), abs=4 * 0.5 / np.sqrt(4000))
    pair = schools.compare("A", "C")
    truth = np.mean(theta[:, 0] > theta[:, 2])
    assert pair.probability == pytest.approx(truth, abs=4 * np.hypot(pair.mcse, 0.5 / np.sqrt(200_000)))
    assert pair.sd == pytest.approx((theta[:, 0] - theta[:, 2]).std(), rel=0.02)
    assert pair == schools.compare("A", "C")
    assert table.equals(schools.rank(top=2).set_index("unit").loc[list("ABCDEFGH")])


def test_where_units_do_not_differ_they_share_everything():
    """Empirical Bayes of the eight schools puts tau at 0: no unit may win by rounding."""
    schools = pp.pool(
        [28, 8, -3, 7, -1, 1, 18, 12], se=[15, 10, 16, 11, 9, 11, 10, 18], method="empirical_bayes"
    )  # fmt: skip
    assert (schools.rank()["expected_rank"] == 4.5).all()
    pair = schools.compare(0, 1)
    assert (pair.mean, pair.probability, pair.probability_equal) == (0, 0, 1)


def test_point_and_normal_by_hand():
    own = np.random.default_rng(8)
    theta = np.where(own.random(400) < 0.7, 0.0, own.normal(scale=3.0, size=400))
    y = theta + own.normal(size=400)
    pooled = pp.pool(y, se=1.0, population="point_normal", method="empirical_bayes")
    rows = pooled.summary()["mean"]
    share, sd = rows["null_share"], rows["sd"]
    null = share * stats.norm.pdf(y)
    other = (1 - share) * stats.norm.pdf(y, scale=np.hypot(1, sd))
    table = pooled.significance()
    assert table["lfdr"].to_numpy() == pytest.approx(null / (null + other), abs=1e-8)
    keep = sd**2 / (1 + sd**2)
    below = other / (null + other) * stats.norm.cdf(0, keep * y, np.sqrt(keep))
    lfdr = null / (null + other)
    assert table["lfsr"].to_numpy() == pytest.approx(np.minimum(lfdr + below, 1 - below), abs=1e-8)
    found = pooled.discoveries(fdr=0.05)
    assert set(found["unit"]) == set(table.loc[table["q_value"] <= 0.05, "unit"])
    ordered = np.sort(lfdr)
    assert len(found) == int(np.sum(np.cumsum(ordered) / np.arange(1, 401) <= 0.05))
    cost = pooled.decide(lambda action, t: np.where(t == 0, action == "act", 3.0 * (action == "wait")), ["wait", "act"])
    assert (cost["loss[act]"] - lfdr).abs().max() < 1e-6
    assert set(pooled.exceeds(0) + pooled.exceeds(0, below=True) + table["lfdr"].to_numpy() - 1 < 1e-9) == {True}
