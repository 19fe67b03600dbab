"""Chains of the no-U-turn sampler, through nutpie: what the whitened and the reference engine share.

Hoffman and Gelman (2014), The No-U-Turn Sampler, Journal of Machine Learning Research 15, 1593-1623. nutpie adapts the
mass matrix from gradients as well as draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.lapack import one_blas_thread
from partialpool.errors import InferenceError
from partialpool.inference.base import MAX_RHAT, Accuracy, Result, Settings
from partialpool.inference.diagnostics import ess_bulk, ess_tail, rhat
from partialpool.inference.progress import Progress

Array = NDArray[np.float64]
#: Value and gradient (d,) of a log density at a position (d,).
Density = Callable[[Array], tuple[float, Array]]

CHAINS = 4
#: R-hat above which chains are not trusted (Vehtari et al., 2021).
#: Bytes that the positions of all chains may take.
MEMORY = 1_500_000_000
#: Draws kept of an interrupted run, a chain, below which nothing can be said.
_FEWEST = 50
_MOST_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws after tuning.

    positions : (chains, draws, d). diverging : (chains, draws). depth, energy : (chains, draws) of the trees.
    evaluations : gradients computed, tuning included. interrupted : whether a keyboard interrupt ended the run.
    """

    positions: Array
    diverging: NDArray[np.bool_]
    depth: NDArray[np.int64]
    energy: Array
    evaluations: int
    interrupted: bool = False

    @property
    def draws(self) -> int:
        """Draws a chain."""
        return int(self.positions.shape[1])

    @property
    def divergences(self) -> int:
        """How many draws diverged, in all chains."""
        return int(self.diverging.sum())

    def stacked(self) -> Array:
        """Positions one chain after another, (chains * draws, d)."""
        chains, draws, size = self.positions.shape
        return self.positions.reshape(chains * draws, size)

    def then(self, later: Chains) -> Chains:
        """Each chain followed by that of a later run."""
        return Chains(
            np.concatenate([self.positions, later.positions], axis=1),
            np.concatenate([self.diverging, later.diverging], axis=1),
            np.concatenate([self.depth, later.depth], axis=1),
            np.concatenate([self.energy, later.energy], axis=1),
            self.evaluations + later.evaluations,
            later.interrupted,
        )


@dataclass(frozen=True)
class Plan:
    """How to sample.

    first : draws a chain of the first run. limit : draws a chain in all. ess : effective sample size, bulk and tail,
    at which to stop. tune : tuning steps of each run. target_accept : of the step size.
    """

    first: int
    limit: int
    ess: float
    tune: int
    seed: int
    cores: int
    progress: bool | None
    target_accept: float = 0.8
    max_depth: int = 10


@dataclass(frozen=True, eq=False)
class Grown:
    """Chains, and the diagnostics of the quantities asked for: (q,) bulk and tail ESS and R-hat."""

    chains: Chains
    bulk: Array
    tail: Array
    rhat: Array

    @property
    def ess(self) -> Array:
        """The smaller of bulk and tail ESS, (q,)."""
        return np.minimum(self.bulk, self.tail)


def sample_until(
    make_density: Callable[[], Density],
    dimension: int,
    initial: Callable[[np.random.Generator], Array],
    quantities: Callable[[Array], Array],
    plan: Plan,
) -> Grown:
    """Run four chains, and run them on until every quantity has the effective sample size asked for.

    Parameters
    ----------
    make_density : callable
        Makes the log density; called once a chain, so that each has its own workspace.
    dimension : int
    initial : callable
        A starting position (d,) from a random generator.
    quantities : callable
        The (chains, draws, q) quantities whose effective sample size counts, from positions (chains, draws, d).
    plan : Plan

    Notes
    -----
    nutpie cannot resume a chain: a later run starts anew, with its own tuning, and is put behind the earlier one.
    """
    if dimension == 0:
        return _nothing_to_sample(plan, quantities)
    limit = max(_FEWEST, min(plan.limit, MEMORY // (8 * CHAINS * dimension)))
    chains = run_chains(make_density, dimension, initial, replace(plan, first=min(plan.first, limit)), plan.seed)
    for number in range(1, _MOST_ROUNDS):
        grown = _diagnosed(chains, quantities)
        worst = float(grown.ess.min()) if grown.ess.size else math.inf
        if not worst < plan.ess or chains.interrupted or chains.draws >= limit:
            break
        more = math.ceil(chains.draws * (1.1 * plan.ess / worst - 1))
        more = min(max(more, 200), limit - chains.draws)
        seed = int(np.random.SeedSequence([plan.seed, number]).generate_state(1)[0])
        chains = chains.then(run_chains(make_density, dimension, initial, replace(plan, first=more), seed))
    else:
        grown = _diagnosed(chains, quantities)
    return grown


def _diagnosed(chains: Chains, quantities: Callable[[Array], Array]) -> Grown:
    values = quantities(chains.positions)
    return Grown(chains, ess_bulk(values), ess_tail(values), rhat(values))


def _nothing_to_sample(plan: Plan, quantities: Callable[[Array], Array]) -> Grown:
    shape = (CHAINS, plan.first)
    empty = np.empty((*shape, 0))
    chains = Chains(empty, np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64), np.zeros(shape), 0)
    return _diagnosed(chains, quantities)


def run_chains(
    make_density: Callable[[], Density],
    dimension: int,
    initial: Callable[[np.random.Generator], Array],
    plan: Plan,
    seed: int,
) -> Chains:
    """Four chains of ``plan.first`` draws after ``plan.tune`` tuning steps, the same to the bit for a seed.

    Raises
    ------
    InferenceError
        Where the sampler could not start.
    """
    import nutpie

    counted = _Counted(make_density)
    with one_blas_thread():
        from nutpie.compiled_pyfunc import from_pyfunc

        compiled = from_pyfunc(
            dimension,
            counted.make,
            lambda _seed1, _seed2, _chain: lambda position: {"position": position},
            [np.dtype("float64")],
            [(dimension,)],
            ["position"],
            make_initial_point_fn=lambda own: initial(np.random.default_rng(own)),
        )
        try:
            sampler = nutpie.sample(
                compiled, draws=plan.first, tune=plan.tune, chains=CHAINS, cores=max(1, min(CHAINS, plan.cores)),
                seed=seed, progress_bar=False, return_raw_trace=True, blocking=False,
                target_accept=plan.target_accept, maxdepth=plan.max_depth,
            )  # fmt: skip
            raw, interrupted = _wait(sampler, plan, counted)
        except RuntimeError as error:
            raise InferenceError(f"NUTS could not run: {error}. Check the scale of the data and the priors.") from error
    draws, statistics = raw.get_arrow_trace()
    return _read(draws, statistics, dimension, interrupted)


class _Counted:
    """Makes log densities that count their evaluations, for the progress line."""

    def __init__(self, make_density: Callable[[], Density]) -> None:
        self._make_density = make_density
        self.evaluations = 0

    def make(self) -> Density:
        """A log density with its own workspace."""
        density = self._make_density()

        def counting(position: Array) -> tuple[float, Array]:
            self.evaluations += 1
            return density(position)

        return counting


def _wait(sampler: Any, plan: Plan, counted: _Counted) -> tuple[Any, bool]:
    """The raw trace, and whether an interrupt cut it short."""
    try:
        with Progress(plan.progress) as progress:
            while True:
                try:
                    return sampler.wait(timeout=0.5), False
                except TimeoutError:
                    steps = f"{CHAINS} chains of {plan.tune:,} + {plan.first:,} steps"
                    progress.update(None, f"NUTS, {steps}: {counted.evaluations:,} evaluations")
    except KeyboardInterrupt:
        return sampler.abort(), True


def _read(draws: list[Any], statistics: list[Any], dimension: int, interrupted: bool) -> Chains:
    """Arrays of equal length from nutpie's Arrow batches, tuning left out."""
    positions, diverging, depth, energy = [], [], [], []
    evaluations = 0
    for batch, statistic in zip(draws, statistics, strict=True):
        kept = ~_column(statistic, "tuning").astype(bool)
        evaluations += int(_column(statistic, "n_steps").sum())
        own = _column(batch, "position").reshape(-1, dimension)
        positions.append(own[kept])
        diverging.append(_column(statistic, "diverging").astype(bool)[kept])
        depth.append(_column(statistic, "depth").astype(np.int64)[kept])
        energy.append(_column(statistic, "energy").astype(float)[kept])
    if interrupted:  # chains wait for each other's core: those that had not begun are left out
        started = [index for index, own in enumerate(positions) if len(own) >= _FEWEST]
        if len(started) < 2:
            raise KeyboardInterrupt
        positions, diverging, depth, energy = (
            [arrays[index] for index in started] for arrays in (positions, diverging, depth, energy)
        )
    length = min(len(own) for own in positions)
    return Chains(
        np.stack([own[:length] for own in positions]),
        np.stack([own[:length] for own in diverging]),
        np.stack([own[:length] for own in depth]),
        np.stack([own[:length] for own in energy]),
        evaluations,
        interrupted,
    )


def _column(batch: Any, name: str) -> NDArray[Any]:
    import pyarrow

    values = pyarrow.array(batch.column(name))
    if hasattr(values, "flatten") and pyarrow.types.is_nested(values.type):
        values = values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False))


def thinned(total: int, wanted: int) -> NDArray[np.int64]:
    """Positions of `wanted` draws, evenly spread over `total` (repeated where there are fewer)."""
    return np.floor((np.arange(wanted) + 0.5) * total / wanted).astype(np.int64)


def verdict(grown: Grown, names: list[str], wanted: float) -> tuple[bool, list[str]]:
    """Whether the chains can be trusted, and what the user should know, each with its cure."""
    notes = []
    rhats = np.where(np.isnan(grown.rhat), np.inf, grown.rhat)
    trusted = True
    if rhats.size and float(rhats.max()) > MAX_RHAT:
        worst = int(rhats.argmax())
        trusted = False
        notes.append(
            f"R-hat of {names[worst]} is {rhats[worst]:.3f}, above {MAX_RHAT}: the chains do not agree. Run longer "
            "(a larger ess=), give a tighter prior, or use method='auto'."
        )
    if grown.chains.divergences:
        trusted = False
        notes.append(
            f"{grown.chains.divergences} of {grown.chains.diverging.size} draws diverged: the sampler could not enter "
            "part of the posterior, often near an sd of 0. Use method='auto', which integrates the group effects out, "
            "or a prior that keeps the sd from 0."
        )
    if grown.ess.size and not float(grown.ess.min()) >= wanted:
        worst = int(np.nanargmin(grown.ess)) if np.isfinite(grown.ess).any() else 0
        notes.append(
            f"The effective sample size of {names[worst]} is {grown.ess[worst]:,.0f}, below the {wanted:,.0f} asked "
            f"for, after {grown.chains.draws:,} draws a chain; use method='auto', or ask for less."
        )
    if grown.chains.interrupted:
        trusted = False
        notes.append("The run was interrupted; what it had is kept. Run it again for the whole.")
    return trusted, notes


def whole_model_result(
    grown: Grown,
    settings: Settings,
    began: float,
    *,
    names: Sequence[str],
    checked: NDArray[np.int64],
    theta: Array,
    beta: Array,
    effects: Callable[[NDArray[np.int64]], Array],
    n_effects: int,
    steps: Sequence[str],
    parameterization: dict[str, str],
) -> Result:
    """What a reference engine found.

    Parameters
    ----------
    names : of the parameters; `checked` are the effects whose chains were diagnosed behind them, of `n_effects`.
    theta, beta : (K, d) and (K, p) of all draws. effects : those of the draws kept, at their positions.
    """
    chains, count, n_parameters = grown.chains, len(theta), len(names)
    kept = thinned(count, settings.draws)
    trusted, notes = verdict(grown, [*names, *(f"group effect {position}" for position in checked)], settings.ess)
    told = list(steps)
    if checked.size:
        worst = f"{np.max(grown.rhat[n_parameters:]):.3f}"
        told.append(f"group effects checked: {checked.size:,} of {n_effects:,}, R-hat at most {worst}")
    accuracy = Accuracy(
        engine="nuts",
        reason="",  # fit() fills in that of `select_engine`
        trusted=trusted,
        ess=dict(zip(names, grown.ess[:n_parameters].tolist(), strict=True)),
        nodes=count,
        evaluations=chains.evaluations,
        rhat=dict(zip(names, grown.rhat[:n_parameters].tolist(), strict=True)),
        divergences=chains.divergences,
        steps=tuple(told),
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
        parameterization=parameterization,
    )
    return Result(
        theta=theta,
        log_weights=np.full(count, -math.log(count)),
        beta_mean=beta,
        beta_sd=np.zeros_like(beta),
        draws_theta=theta[kept],
        draws_beta=beta[kept],
        log_marginal_likelihood=math.nan,
        accuracy=accuracy,
        settings=settings,
        chains=chains.positions.shape[0],
        effects=effects(kept),
        statistics={"depth": chains.depth, "energy": chains.energy, "diverging": chains.diverging},
    )
