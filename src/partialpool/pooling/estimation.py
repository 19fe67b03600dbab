"""The methods: full Bayes by quadrature, empirical Bayes, and populations that are known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.mixture import mixture_summary
from partialpool.errors import InferenceError, ModelError
from partialpool.inference.importance import weighted_moments
from partialpool.inference.optimum import Status
from partialpool.pooling.conjugate import BetaModel, GammaModel
from partialpool.pooling.grid import GridPosterior
from partialpool.pooling.hyperpriors import HyperPriors, moment_orders
from partialpool.pooling.lattice import (
    QUICK,
    THOROUGH,
    USUAL,
    Lattice,
    Peak,
    curvature_at,
    explore,
    find_mode,
    peak_of,
    polished,
)
from partialpool.pooling.linked import LinkModel
from partialpool.pooling.models import PopulationModel
from partialpool.pooling.normal import NormalGridModel, NormalModel
from partialpool.pooling.population import ParameterRow, Population, typical_variance
from partialpool.pooling.posteriors import BetaPosterior, GammaPosterior, NormalPosterior, UnitPosterior
from partialpool.pooling.sampling import Sampled, sample
from partialpool.pooling.shapes import (
    FAMILIES,
    STUDENT,
    UNIFORM,
    BetaShape,
    Components,
    ComponentShape,
    GammaShape,
    NormalShape,
    Shape,
    to_natural,
)
from partialpool.pooling.units import Units
from partialpool.pooling.weights import fit_weights
from partialpool.spec.distributions import (
    Beta,
    Cauchy,
    Distribution,
    Exponential,
    Flat,
    Gamma,
    Normal,
    StudentT,
    Uniform,
)

Array = NDArray[np.float64]

LEVELS = np.array([0.05, 0.5, 0.95])
#: More hyperparameters than this are sampled; up to this they have a lattice.
MOST_ON_LATTICE = 3
#: Where the evaluations of a lattice of 10 nodes a dimension pass over fewer numbers than this, it is made finer.
CHEAP = 2_000_000
#: A lattice is not made finer where its evaluations would pass over more numbers than this (some seconds).
MOST_WORK = 400_000_000
#: The search for the peak starts from that of so many units, evenly spaced, where there are many more.
SAMPLED_UNITS = 10_000
#: Light nodes, of so much mass together, are left out of the units' posterior.
DROPPED, DROPPED_LARGE, LARGE = (1e-7, 1e-6, 1e-4, 1e-4), 1e-5, 20_000
#: Negative second derivatives of the log likelihood below this are none.
FLAT_CURVATURE = 1e-4
#: Another peak this far below the highest, on the log scale, weighs nothing.
FAR_BELOW = 15.0
#: Units x nodes beyond which components of link-scale populations that weigh little are dropped.
MANY_NODES = 200_000
#: A maximum this close to that of an sd of 0 is at 0.
AT_ZERO = 1e-9


@dataclass(frozen=True)
class PoolAccuracy:
    """How the posterior was obtained and how good it is; printed as sentences.

    Attributes
    ----------
    method, reason : what was done, and why.
    error : the measured error: of the quadrature over the hyperparameters (in posterior sds, by the coarser half of its
        nodes), the gap of an optimum (per unit), or 1 / sqrt(effective sample size) where they were sampled; 0 where
        all is exact.
    nodes, evaluations : of the hyperparameters, and of the likelihood.
    trusted : whether every check passed. notes : what the user should know. seconds : wall time.
    """

    method: str
    reason: str
    error: float
    nodes: int = 1
    evaluations: int = 0
    trusted: bool = True
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def __repr__(self) -> str:
        lines = [f"Obtained by: {self.reason}", f"Measured error: {self.error:.1g}"]
        lines.append(f"Work: {self.evaluations:,} evaluations of the likelihood, {self.seconds:.2f} s")
        lines += [f"Note: {note}" for note in self.notes]
        lines.append(
            "Verdict: " + ("every check passed." if self.trusted else "do not rely on it before reading the notes.")
        )
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found.

    nodes : (K, d), of the hyperparameters in the model's coordinates; None where there is no model.
    null : the value of theta that counts as no effect, on the natural scale, or None.
    """

    posterior: UnitPosterior
    population: Population
    log_marginal_likelihood: float
    accuracy: PoolAccuracy
    model: PopulationModel | None = None
    nodes: Array | None = None
    explored: Lattice | Sampled | None = None
    null: float | None = None


def model_of(
    units: Units, kind: str, priors: HyperPriors, threads: int, likelihood_alone: bool = False
) -> PopulationModel:
    """The marginal likelihood of a population's hyperparameters; alone, for empirical Bayes."""
    if kind == "normal" and units.family == "normal":
        names = ("mean",) if units.X is None else units.x_names
        free = "mean" not in priors.known
        if free and (likelihood_alone or all(isinstance(priors[name], Normal | Flat) for name in names)):
            return NormalModel(units, priors, threads, likelihood_alone)
        return NormalGridModel(units, priors, threads)
    if kind == "beta":
        return BetaModel(units, priors, threads, likelihood_alone)
    if kind == "gamma":
        return GammaModel(units, priors, threads, likelihood_alone)
    return LinkModel(units, priors, kind, threads, likelihood_alone)


class _Counted:
    """A log density that counts its evaluations."""

    def __init__(self, function: Callable[[Array], Array]) -> None:
        self.function = function
        self.count = 0

    def __call__(self, x: Array) -> Array:
        self.count += len(x)
        return self.function(x)


def estimate_bayes(units: Units, kind: str, priors: HyperPriors, threads: int, seed: int) -> Found:
    """Full Bayes: the hyperparameters integrated over a lattice (over weighted samples where there are more than 3)."""
    begin = time.perf_counter()
    model = model_of(units, kind, priors, threads)
    density = _Counted(model.log_density)
    notes = list(units.notes)
    explored: Lattice | Sampled
    if model.d <= MOST_ON_LATTICE:
        explored = _on_lattice(model, density)
        how, told, trusted = "quadrature over", "of a lattice", explored.error < 0.02
    else:
        explored = sample(density, model.start, model.spread, seed)
        how, told = "importance sampling of", f", Pareto k {explored.pareto_k:.2f}"
        trusted = explored.pareto_k < 0.7 and explored.error < 0.05
    reason = f"{how} {_told(model)}: {len(explored.nodes):,} nodes {told}".replace(" ,", ",")
    if not trusted:
        notes.append("The quadrature over the hyperparameters did not settle; give the sd a prior with a scale.")
    mass = DROPPED[min(model.d, len(DROPPED)) - 1] if units.n < LARGE else DROPPED_LARGE
    if isinstance(model, LinkModel) and units.n * len(explored.nodes) > MANY_NODES:
        mass = max(mass, DROPPED[-1])
    x, weights = explored.significant(mass)
    row = _mean_row(units)
    shape = model.shape(x, weights, row)
    quantile_of = _Quantiles(model, explored)
    rows = _bayes_rows(quantile_of, kind, priors)
    population = Population(
        kind, units.family, rows, shape, _i2_bayes(units, kind, explored, model), units.X is not None, quantile_of
    )
    value = explored.log_normaliser if priors.proper else math.nan
    accuracy = PoolAccuracy(
        "bayes", reason, explored.error, len(explored.nodes), density.count, trusted, tuple(notes),
        time.perf_counter() - begin,
    )  # fmt: skip
    posterior = model.posterior(x, weights)
    return Found(posterior, population, value, accuracy, model, x, explored, _null(units, kind, priors))


def _on_lattice(model: PopulationModel, density: Callable[[Array], Array]) -> Lattice:
    """The posterior of the hyperparameters on a lattice as fine as it costs, grown from every peak that matters."""
    care = QUICK
    if model.units.n < LARGE and model.cost * 10**model.d < CHEAP:
        care = THOROUGH if model.d <= 2 else USUAL
    peaks = [_peak(model, density), *(peak_of(density, start, model.spread) for start in model.other_starts)]
    peaks.sort(key=lambda found: -found.value)
    others = [found.point for found in peaks[1:] if found.value > peaks[0].value - FAR_BELOW]
    budget = MOST_WORK // max(1, model.cost)
    try:
        return explore(density, peaks[0], care=care, budget=budget, others=others)
    except InferenceError:  # narrow peaks far apart fill a fine lattice: a coarser one may hold them
        return explore(density, peaks[0], care=QUICK, budget=budget, others=others)


def _peak(model: PopulationModel, density: Callable[[Array], Array]) -> Peak:
    """The peak of the posterior of the hyperparameters; by way of a sample of the units where there are many."""
    units = model.units
    if units.n < 4 * SAMPLED_UNITS:
        return peak_of(density, model.start, model.spread)
    rows = np.linspace(0, units.n - 1, SAMPLED_UNITS).round().astype(np.int64)
    X = None if units.X is None else units.X[rows]
    some = replace(units, y=units.y[rows], size=units.size[rows], names=units.names[rows], X=X)
    small = model_of(some, model.kind, model.priors, model.threads, likelihood_alone=model.likelihood_alone)
    first = peak_of(small.log_likelihood, small.start, small.spread)
    scaled = Peak(first.point, first.value, first.curvature * (units.n / SAMPLED_UNITS), first.spread)
    return polished(density, scaled) or peak_of(density, first.point, model.spread)


def _told(model: PopulationModel) -> str:
    if isinstance(model, NormalModel) and type(model) is NormalModel:
        return "the sd between units (the mean integrated out in closed form)"
    return f"the {model.d} hyperparameters"


def _mean_row(units: Units) -> Array:
    return np.ones(1) if units.X is None else np.asarray(units.X.mean(axis=0))


def _bayes_rows(posterior: _Quantiles, kind: str, priors: HyperPriors) -> dict[str, ParameterRow]:
    """The posterior of every parameter; moments that do not exist are infinite."""
    weights = posterior.explored.weights
    orders = moment_orders(posterior.model.units, kind, priors)
    names, means, sds = posterior.coefficients
    moments = {}
    for i, name in enumerate(names):
        mean, sd = weighted_moments(means[:, i], weights)
        moments[name] = (float(mean), math.hypot(float(sd), math.sqrt(float(weights @ sds[:, i] ** 2))))
    rows = {}
    for name, values in posterior.parameters.items():
        if np.ptp(values) == 0:
            rows[name] = ParameterRow(*[float(values[0]), 0.0, *[float(values[0])] * 3])
            continue
        mean, sd = weighted_moments(np.where(np.isfinite(values), values, 0.0), weights)
        moments[name] = (float(mean), float(sd))
    for name, found in moments.items():
        rows[name] = _row(name, *found, posterior(name, LEVELS), orders)
    return {name: rows[name] for name in [*names, *posterior.parameters]}


class _Quantiles:
    """Quantiles of the hyperparameters by name, over the nodes of a posterior."""

    def __init__(self, model: PopulationModel, explored: Lattice | Sampled) -> None:
        self.model, self.explored = model, explored

    @cached_property
    def coefficients(self) -> tuple[tuple[str, ...], Array, Array]:
        """Those integrated out: names, means and sds at the nodes. They cost a pass over all units."""
        return self.model.coefficients_given(self.explored.nodes)

    @cached_property
    def parameters(self) -> dict[str, Array]:
        """The others at the nodes."""
        return self.model.parameters(self.explored.nodes)

    def __call__(self, name: str, probabilities: Array) -> Array:
        names, means, sds = self.coefficients
        if name in names:
            at = names.index(name)
            return mixture_summary(self.explored.weights, means[:, [at]], sds[:, [at]], probabilities)[2][:, 0]
        positive = bool((self.parameters[name] > 0).all())
        found = self.explored.quantiles(_ParameterOf(self.model, name, positive), probabilities)
        return np.exp(found) if positive else found


class _ParameterOf:
    """A parameter as a function of the nodes, its log where it is positive: alpha spans hundreds of powers of ten."""

    def __init__(self, model: PopulationModel, name: str, logs: bool) -> None:
        self.model, self.name, self.logs = model, name, logs

    def __call__(self, x: Array) -> Array:
        values = self.model.parameters(x)[self.name]
        return np.log(np.clip(values, 1e-300, 1e300)) if self.logs else values


def _row(name: str, mean: float, sd: float, quantiles: Array, orders: dict[str, float]) -> ParameterRow:
    """`orders`: the moments of a parameter exist below this order."""
    order = orders.get(name, math.inf)
    q05, q50, q95 = (float(value) for value in quantiles)
    return ParameterRow(mean if order > 1 else math.inf, sd if order > 2 else math.inf, q05, q50, q95)


def _i2_bayes(units: Units, kind: str, explored: Lattice | Sampled, model: PopulationModel) -> ParameterRow | None:
    if units.family != "normal" or kind != "normal":
        return None
    typical = typical_variance(units.size)

    def share(x: Array) -> Array:
        tau2 = model.sd_of(x[:, model.sd_at]) ** 2
        return np.asarray(tau2 / (tau2 + typical))

    mean, sd = weighted_moments(share(explored.nodes), explored.weights)
    q05, q50, q95 = (float(value) for value in explored.quantiles(share, LEVELS))
    return ParameterRow(float(mean), float(sd), q05, q50, q95)


def _null(units: Units, kind: str, priors: HyperPriors) -> float | None:
    """What counts as no effect; None where the population learns it, or where nothing does."""
    if kind == "point_normal":
        return float(to_natural(units.family, priors.known["mean"])) if "mean" in priors.known else None
    return 0.0 if units.family == "normal" else None


# ---- empirical Bayes ------------------------------------------------------------------------------------------------


def estimate_empirical(units: Units, kind: str, priors: HyperPriors, threads: int) -> Found:
    """Empirical Bayes: the hyperparameters at their maximum marginal likelihood."""
    begin = time.perf_counter()
    model = model_of(units, kind, priors, threads, likelihood_alone=True)
    density = _Counted(model.log_likelihood)
    found = find_mode(density, model.start, model.spread)
    point, value = found.point, found.value
    notes = list(units.notes)
    at = model.sd_at
    assert at is not None
    zero, zero_value = _at_zero(model, density, point)
    if zero_value >= value - AT_ZERO * max(1.0, abs(value)):
        point, value = zero, zero_value
        notes.append(
            "The likelihood is highest where units do not differ at all (sd = 0): every unit takes the population's "
            "estimate. That is the most likely value, not the only plausible one; method='bayes' averages over them."
        )
    elif found.status is Status.LIMIT:
        raise InferenceError("The search for the population's parameters did not settle; use method='bayes'.")
    if units.family != "normal" and units.complete_pooling in (0.0, 1.0 if units.family == "binomial" else 0.0):
        notes.append(
            f"No unit has {'an event' if units.complete_pooling == 0 else 'a failure'}: the most likely population is "
            "at the end of the scale, without any uncertainty; method='bayes' says what is plausible."
        )
    walds = _walds(model, point, bool(np.isneginf(point[at])))
    rows = {name: ParameterRow(w.value, w.sd, w.quantile(0.05), w.value, w.quantile(0.95)) for name, w in walds.items()}
    x, weights = point[None, :], np.ones(1)
    population = Population(
        kind, units.family, rows, model.shape(x, weights, _mean_row(units)), _i2_empirical(units, kind, rows),
        units.X is not None, lambda name, levels: np.array([walds[name].quantile(float(p)) for p in levels]),
    )  # fmt: skip
    slope = 0.0 if np.isneginf(point[at]) else float(np.abs(found.gradient * model.spread).max())
    accuracy = PoolAccuracy(
        "empirical_bayes", f"maximum marginal likelihood over {_told(model)}", slope / units.n, 1, density.count,
        found.status is not Status.STALLED or slope < 1e-3, tuple(notes), time.perf_counter() - begin,
    )  # fmt: skip
    return Found(model.posterior(x, weights), population, value, accuracy, model, x, None, _null(units, kind, priors))


def _at_zero(model: PopulationModel, density: Callable[[Array], Array], point: Array) -> tuple[Array, float]:
    """The maximum where units do not differ."""
    at = model.sd_at
    assert at is not None
    others = np.delete(np.arange(model.d), at)

    def full(rest: Array) -> Array:
        x = np.empty((len(rest), model.d))
        x[:, others] = rest
        x[:, at] = -np.inf
        return x

    if isinstance(model, LinkModel) and model.kind in ("student_t", "point_normal"):
        others_free = others[others < model.free]  # nu and the share of nulls mean nothing there
        start = point.copy()
        if not others_free.size:
            start[at] = -np.inf
            return start, float(density(start[None, :])[0])
    if not others.size:
        x = full(np.empty((1, 0)))
        return x[0], float(density(x)[0])
    found = find_mode(lambda rest: density(full(rest)), point[others], model.spread[others])
    return full(found.point[None, :])[0], found.value


@dataclass(frozen=True)
class _Wald:
    """An estimate, its standard error, and an interval formed on a scale where it is more nearly normal."""

    value: float
    sd: float
    centre: float
    se: float
    back: Callable[[float], float]

    def quantile(self, probability: float) -> float:
        """nan where it is known to no better than a factor of e: the curvature says nothing of the ends then."""
        if not self.se < 1 and self.back is not _plain:
            return math.nan
        return float(self.back(self.centre + NormalDist().inv_cdf(probability) * self.se))


def _plain(value: float) -> float:
    return value


def _walds(model: PopulationModel, point: Array, singular: bool) -> dict[str, _Wald]:
    """Estimates, with standard errors from the curvature at the maximum."""
    x = point[None, :]
    names, means, sds = model.coefficients_given(x)
    out = {
        name: _Wald(float(m), float(s), float(m), float(s), _plain)
        for name, m, s in zip(names, means[0], sds[0], strict=True)
    }
    values = {name: float(value[0]) for name, value in model.parameters(x).items()}
    if singular:
        return {**out, **{name: _Wald(value, math.nan, value, math.nan, _plain) for name, value in values.items()}}
    units = model.spread
    curvature = curvature_at(model.log_likelihood, point, units, (1e-3, 1e-2))
    # a coordinate of which the likelihood says nothing (nu towards the normal) has no standard error
    told = np.diag(curvature) > FLAT_CURVATURE
    covariance = np.zeros_like(curvature)
    eigenvalues, vectors = np.linalg.eigh(curvature[np.ix_(told, told)])
    certain = bool((eigenvalues > 0).all())
    covariance[np.ix_(told, told)] = (vectors / eigenvalues) @ vectors.T if certain else np.nan
    covariance = covariance * np.outer(units, units)
    steps = 1e-4 * np.diag(units)
    ups, downs = model.parameters(point + steps), model.parameters(point - steps)
    for name, value in values.items():
        slope = (ups[name] - downs[name]) / (2e-4 * units)
        variance = float(slope @ covariance @ slope) if certain and not slope[~told].any() else math.nan
        sd = math.sqrt(variance)
        share = name == "null_share" or (name == "mean" and model.kind == "beta")
        if not math.isfinite(sd):
            out[name] = _Wald(value, math.nan, value, math.nan, _plain)
        elif share and 0 < value < 1:
            out[name] = _Wald(value, sd, math.log(value / (1 - value)), sd / (value * (1 - value)), _expit)
        elif value > 0 and not share and name not in ("mean", *model.units.x_names):
            out[name] = _Wald(value, sd, math.log(value), sd / value, math.exp)
        else:
            out[name] = _Wald(value, sd, value, sd, _plain)
    return out


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _i2_empirical(units: Units, kind: str, rows: dict[str, ParameterRow]) -> ParameterRow | None:
    if units.family != "normal" or kind != "normal":
        return None
    typical = typical_variance(units.size)
    row = rows["sd"]
    share = [value**2 / (value**2 + typical) for value in (row.mean, row.q05, row.q50, row.q95)]
    return ParameterRow(share[0], math.nan, share[1], share[2], share[3])


# ---- populations that are known, or of estimated weights -----------------------------------------------------------


def known_population(units: Units, population: Distribution, threads: int) -> Found:
    """Units under a population that is given."""
    begin = time.perf_counter()
    one = np.ones(1)
    posterior: UnitPosterior
    shape: Shape
    kind = "known"
    if units.family == "normal" and isinstance(population, Normal):
        means, tau2 = np.array([[population.mu]]), np.array([population.sigma**2])
        shape = NormalShape(one, means[0], np.sqrt(tau2))
        posterior = NormalPosterior(
            units.y, units.size**2, None, tau2, means, np.zeros((1, 1, 1)), one, threads=threads
        )
        kind = "normal"
    elif units.family == "binomial" and (found := _as_beta(population)) is not None:
        eta, log_size = np.array([math.log(found.a / found.b)]), np.array([math.log(found.a + found.b)])
        shape = BetaShape(one, eta, log_size)
        posterior = BetaPosterior(units.y, units.size, eta[:, None], log_size, one, threads=threads)
        kind = "beta"
    elif units.family == "poisson" and (rate := _as_gamma(population)) is not None:
        log_mean, log_shape = np.array([math.log(rate.shape / rate.rate)]), np.array([math.log(rate.shape)])
        shape = GammaShape(one, log_mean, log_shape)
        posterior = GammaPosterior(units.y, units.size, log_mean[:, None], log_shape, one, threads=threads)
        kind = "gamma"
    elif units.family == "normal" and isinstance(population, StudentT | Cauchy | Uniform):
        c = _as_component(population)
        shape = ComponentShape("normal", one, c)
        posterior = GridPosterior(
            FAMILIES.index("normal"), units.y, units.size, one, c.node, c.weight, c.kind, c.location, c.spread, c.nu,
            None, threads=threads,
        )  # fmt: skip
    else:
        fitting = {
            "normal": "pp.Normal, pp.StudentT, pp.Cauchy or pp.Uniform",
            "binomial": "pp.Beta (pp.Uniform(0, 1) is pp.Beta(1, 1))",
            "poisson": "pp.Gamma or pp.Exponential",
        }[units.family]
        raise ModelError(f"{population} cannot be the known population of these units; {fitting} can.")
    value = float(shape.log_marginal(units.y, units.size).sum())
    rows = {name: ParameterRow(v, 0.0, v, v, v) for name, v in population.parameters.items()}
    i2 = None
    if kind == "normal":
        share = population.parameters["sigma"] ** 2
        share = share / (share + typical_variance(units.size)) if units.n > 1 else share / (share + units.size[0] ** 2)
        i2 = ParameterRow(share, 0.0, share, share, share)
    accuracy = PoolAccuracy(
        "fixed", f"the population {population} is known: each unit's posterior follows by itself", 0.0, 1, 1, True,
        units.notes, time.perf_counter() - begin,
    )  # fmt: skip
    null = 0.0 if units.family == "normal" else None
    return Found(posterior, Population(kind, units.family, rows, shape, i2), value, accuracy, null=null)


def _as_beta(population: Distribution) -> Beta | None:
    if isinstance(population, Uniform) and population.support == (0.0, 1.0):
        return Beta(1, 1)
    return population if isinstance(population, Beta) else None


def _as_gamma(population: Distribution) -> Gamma | None:
    if isinstance(population, Exponential):
        return Gamma(1, population.rate)
    return population if isinstance(population, Gamma) else None


def _as_component(population: StudentT | Cauchy | Uniform) -> Components:
    if isinstance(population, Uniform):
        half = (population.high - population.low) / 2
        kind, location, spread, nu = UNIFORM, population.low + half, half, 1.0
    else:
        nu = population.nu if isinstance(population, StudentT) else 1.0
        kind, location, spread = STUDENT, population.mu, population.sigma
    return Components(
        np.zeros(1, dtype=np.int64),
        np.ones(1),
        np.array([kind]),
        np.array([location]),
        np.array([spread]),
        np.array([nu]),
    )


def weighted_population(units: Units, kind: str, mode: float | None, threads: int) -> Found:
    """Populations whose weights maximise the marginal likelihood."""
    begin = time.perf_counter()
    fit = fit_weights(units, kind, mode, threads)
    rows = {name: ParameterRow(value, q50=value) for name, value in fit.parameters.items()}
    notes = (*units.notes, *([fit.note] if fit.note else ()))
    accuracy = PoolAccuracy(
        "empirical_bayes", f"maximum marginal likelihood of the weights of {fit.components} components",
        max(fit.gap, 0.0), 1, 1, fit.gap < 1e-4, notes, time.perf_counter() - begin,
    )  # fmt: skip
    null: float | None = None
    if kind != "npmle":
        known = units.family == "normal" or mode is not None
        null = float(to_natural(units.family, fit.parameters["mean"])) if known else None
    elif units.family == "normal":
        null = 0.0
    population = Population(kind, units.family, rows, fit.shape)
    return Found(fit.posterior, population, fit.log_likelihood, accuracy, null=null)
