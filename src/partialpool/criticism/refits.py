"""Refits without a unit: what is done where importance weights cannot be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.bridge import Bridged, bridge
from partialpool.criticism.nodes import Nodes, nodes_of_refit
from partialpool.errors import PartialPoolError
from partialpool.inference.progress import Progress
from partialpool.posterior.fitting import fit_model

if TYPE_CHECKING:
    from partialpool.criticism.left_out import Conditional
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Stream of random numbers of the refits.
REFITS = 31
#: Refits at most; the units whose values are worst known come first.
MOST_REFITS = 1000
#: Effective sample size asked of the first refit, of the largest, and how many there are at most until the error is
#: small enough.
FIRST_SIZE, LARGEST_SIZE, TRIES = 1000.0, 64_000.0, 3
#: Nodes of a refit that are used, for its effective sample size.
NODES_FOR_SIZE = 4


@dataclass(eq=False)
class Refits:
    """By unit, log p(y_unit | y_rest) and how well it is known; whether the user stopped before the last."""

    found: dict[int, Bridged] = field(default_factory=dict)
    interrupted: bool = False


def refit_units(
    fit: Posterior,
    conditional: Conditional,
    nodes: Nodes,
    wanted: Mapping[int, Array],
    errors: Array,
    most_error: float,
    cores: int,
    bar: Progress,
) -> Refits:
    """Leave units out one by one, `cores` at a time.

    Parameters
    ----------
    fit : Posterior
    conditional : Conditional
        Of the fit's model.
    nodes : Nodes
        Of the fit, K of them.
    wanted : by unit, its log densities (K,) at these nodes.
    errors : (units,) how well all units are known without refits: the worst come first.
    most_error : float
        The Monte Carlo error that is good enough.
    cores : int
    bar : Progress
    """
    out = Refits()
    if not wanted:
        return out
    order = sorted(wanted, key=lambda unit: (-errors[unit], unit))[:MOST_REFITS]
    pool = ThreadPoolExecutor(min(cores, len(order)))
    running: dict[Future[Bridged], int] = {
        pool.submit(_one, fit, conditional, nodes, unit, wanted[unit], most_error): unit for unit in order
    }
    try:
        for done, future in enumerate(as_completed(running)):
            bar.update(done / len(order), f"refits, each without one unit ({len(order)})")
            error = future.exception()
            if error is None:
                out.found[running[future]] = future.result()
            elif not isinstance(error, PartialPoolError | np.linalg.LinAlgError):
                raise error
    except KeyboardInterrupt:
        out.interrupted = True
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return out


def better_known(fit: Posterior, size: float, cores: int) -> Posterior:
    """The same model's posterior with another effective sample size."""
    seed = int(np.random.SeedSequence(fit.seed, spawn_key=(REFITS,)).generate_state(1)[0])
    return fit_model(fit.model, draws=1000, ess=size, seed=seed, threads=cores, progress=False)


def _one(
    fit: Posterior, conditional: Conditional, nodes: Nodes, unit: int, at_nodes: Array, most_error: float
) -> Bridged:
    """log p(y_unit | y_rest) from a fit to the rest and the fit of everything; a better one where the first is poor."""
    kept = np.ones(fit.model.design.n_rows, dtype=bool)
    kept[conditional.rows_of(unit)] = False
    part = fit.model.take_rows(np.flatnonzero(kept))
    seed = int(np.random.SeedSequence(fit.seed, spawn_key=(REFITS, unit)).generate_state(1)[0])
    size = FIRST_SIZE
    for _ in range(TRIES):
        refit = fit_model(part, draws=4000, ess=size, seed=seed, threads=1, progress=False)
        without = nodes_of_refit(fit.model, refit, int(NODES_FOR_SIZE * size))
        logs = np.ascontiguousarray(conditional.log_densities(without, np.array([unit]))[0][:, 0])
        found = bridge(nodes, at_nodes, without, logs)
        if found.error <= most_error or size >= LARGEST_SIZE:
            break
        size = min(LARGEST_SIZE, size * min(16.0, max(2.0, 1.6 * (found.error / most_error) ** 2)))
    return found
