"""Simulation-based calibration of a model, its priors and the computation behind its fits: `pp.calibrate`.

Parameters are drawn from the prior, data from them, and the model is fitted to the data; over many replicates the place
of each true value in its posterior is uniform where model, priors and computation belong together, and the intervals
hold what they say. `calibration_replicate` has how a place is found, `rank_bands` what uniform means.

*Left out.* A replicate whose data cannot be fitted (a count that overflows) is left out, and told. What is left stays
uniform: whether a fit fails depends on the data alone, and given the data the truth is a draw from the posterior.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from partialpool.criticism.calibration import Calibration
from partialpool.criticism.calibration_file import ReplicateFile
from partialpool.criticism.calibration_replicate import LOG_LIKELIHOOD, Fit, Plan, Replicate, followed_effects, run
from partialpool.errors import ModelError, PriorError, did_you_mean
from partialpool.inference.progress import Progress
from partialpool.model import Model
from partialpool.posterior.posterior import Posterior
from partialpool.present.tables import listed
from partialpool.spec.distributions import Distribution

#: Fewest replicates of which anything can be said.
FEWEST = 20
#: Draws of each fit where the user does not say: group effects are ranked among them.
DRAWS = 1000
#: Options of `model.fit` that calibrate hands on.
OPTIONS = ("method", "draws", "ess", "parameterization")


def calibrate(
    model: Model,
    replicates: int = 200,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: bool | None = None,
    path: str | Path | None = None,
    fit: Fit | None = None,
    **options: Any,
) -> Calibration:
    """Simulation-based calibration: whether posteriors of this model hold the truth as often as they say.

    Parameters
    ----------
    model : Model
        With proper priors. Its rows, groups and predictors are kept, its response plays no part.
    replicates : int
        Truths drawn from the prior, each with its data and fit; at least 20.
    seed : int
        Of everything random. No result depends on the number of threads.
    threads : int, optional
        Fits at a time; all cores by default.
    progress : bool, optional
        Whether to show a bar once the work has lasted two seconds; by default on a terminal. An interrupt (Ctrl-C)
        keeps the replicates that were finished.
    path : str or Path, optional
        A file to which finished replicates are written. Called again with the same model, seed and options,
        those in the file are not computed again. A function `fit` whose own code or numbers have changed is taken
        for another one; what it calls is not looked at, so begin a new file when that has changed.
    fit : callable, optional
        A function of one argument, the model with a simulated response (``model.design.y``), that returns draws by
        parameter: ``{"sigma": array, ...}`` or a data frame, of shape (draws,) if they are independent, else
        (chains, draws), which are thinned. It may return some of the parameters, effects of the smallest and the
        largest group (``"Subject[308,Days]"``) and "log likelihood"; or a fit of partialpool. Where it takes an
        argument `seed` it is given one.
    **options
        method, draws, ess, parameterization, as of :func:`partialpool.fit`.

    Returns
    -------
    Calibration
        With `.table`, `.coverage`, `.places`, `.plot()` and `.plot(kind="recovery")`.

    Raises
    ------
    PriorError
        Where a prior is flat: it names which, and what to write.
    ModelError
        Where an option is impossible, rows have weights, or no replicate could be fitted.
    StorageError
        Where the file is of another model, seed or options.

    Examples
    --------
    >>> import numpy as np, partialpool as pp
    >>> priors = {"Intercept": pp.Normal(0, 1), "sigma": pp.HalfNormal(1)}
    >>> model = pp.Model.from_formula("y ~ 1", {"y": np.arange(5.0)}, priors=priors)
    >>> found = calibrate(model, 40, threads=1, method="marginal")
    >>> found.table["verdict"].tolist()
    ['calibrated', 'calibrated', 'calibrated']
    """
    plan, wanted, cores = _plan(model, replicates, seed, threads, fit, options)
    with nullcontext() if path is None else ReplicateFile(path, plan) as file:
        found = _replicates(plan, wanted, cores, progress, file)
    failed = [one for one in found if one.failure]
    if len(failed) == len(found):
        raise ModelError(f"None of {len(found)} replicates could be fitted; the first: {failed[0].failure}")
    answer = Calibration(plan, wanted, tuple(found))
    if not answer.quantities:
        raise ModelError("No quantity was returned by fit= for every data set, so that there is nothing to check.")
    return answer


# -- what was asked ---------------------------------------------------------------------------------------------------


def _plan(
    model: Any, replicates: Any, seed: Any, threads: Any, fit: Any, options: Mapping[str, Any]
) -> tuple[Plan, int, int]:
    if isinstance(model, Posterior):
        model = model.model
    if not isinstance(model, Model):
        raise ModelError(
            f"calibrate() takes a model, pp.Model.from_formula(formula, data, priors=...), not {type(model).__name__}."
        )
    wanted = _whole("replicates", replicates, FEWEST)
    start = _whole("seed", seed, 0)
    cores = os.cpu_count() or 1 if threads is None else _whole("threads", threads, 1)
    if fit is not None and not callable(fit):
        raise ModelError(
            "fit= takes a function of a model that returns draws; leave it out for partialpool's own fits."
        )
    for name in options:
        if name not in OPTIONS:
            raise ModelError(f"calibrate() has no option {name!r}. {did_you_mean(name, OPTIONS)}")
    if fit is not None and options:
        raise ModelError(f"With fit= the options of the fit are the function's own; leave out {listed(list(options))}.")
    _check_rows(model)
    check_priors(model)
    effects = followed_effects(model)
    names = (*model.parameter_names, *(effect.name for effect in effects), LOG_LIKELIHOOD)
    given = {} if fit is not None else {"draws": DRAWS, **options}
    return Plan(model, names, effects, fit, given, start), wanted, cores


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ModelError(f"{name} = {value!r} is not possible; give a whole number of at least {least}.")
    return int(value)


def _check_rows(model: Model) -> None:
    design = model.design
    if len(design.y) != design.n_rows:
        raise ModelError("calibrate() needs the rows of the data, and this fit was saved without them (data=False).")
    if design.weights is not None:
        raise ModelError(
            "A row with weights() counts several times, and data cannot be drawn for it; write such rows out, or use "
            "precision() if the weights are precisions."
        )


def check_priors(model: Model) -> None:
    """Refuse priors from which nothing can be drawn.

    Raises
    ------
    PriorError
    """
    flat = [name for name, prior in model.priors.items() if not prior.proper]
    if not flat:
        return
    # what the default would be, without data having a say in the words: it is proper for every parameter
    proper = {slot.name: slot.default for slot in model.priors.slots}
    mend = ", ".join(f"{name!r}: pp.{_short(proper[name])}" for name in flat if name in proper)
    several = len(flat) > 1
    raise PriorError(
        f"The prior{'s' * several} of {listed([repr(name) for name in flat])} {'are' if several else 'is'} flat, and "
        f"no truth can be drawn from {'them' if several else 'it'}. Say what is plausible, such as priors={{{mend}}}."
    )


def _short(prior: Distribution) -> str:
    """A prior to be typed, with numbers of two digits."""
    numbers = ", ".join(f"{float(f'{value:.2g}'):.12g}" for value in prior.parameters.values())
    return f"{type(prior).__name__}({numbers})"


# -- the work ---------------------------------------------------------------------------------------------------------


def _replicates(
    plan: Plan, wanted: int, cores: int, progress: bool | None, file: ReplicateFile | None
) -> list[Replicate]:
    """The replicates in order; fewer where the user interrupts."""
    found = {} if file is None else {number: one for number, one in file.found.items() if number < wanted}
    missing = [number for number in range(wanted) if number not in found]
    try:
        with Progress(progress) as bar, closing(_run(plan, missing, cores)) as running:
            for one in running:
                if one is not None:
                    found[one.number] = one
                    if file is not None:
                        file.add(one)
                bar.update(len(found) / wanted, f"replicates, {len(found):,} of {wanted:,}")
    except KeyboardInterrupt:
        if not any(not one.failure for one in found.values()):
            raise
    return [found[number] for number in sorted(found)]


def _run(plan: Plan, numbers: Sequence[int], cores: int) -> Generator[Replicate | None, None, None]:
    """Replicates as they finish, None where none did for a while; nothing new is begun once this is closed."""
    if not numbers:
        return
    stop = threading.Event()

    def one(number: int) -> Replicate | None:
        return None if stop.is_set() else run(plan, number)

    # the first one alone: kernels are compiled once, and a function that fails is told before others begin
    first, *others = numbers
    yield run(plan, first)
    if cores == 1:
        yield from (run(plan, number) for number in others)
        return
    with ThreadPoolExecutor(min(cores, len(numbers))) as pool:
        running: set[Future[Replicate | None]] = {pool.submit(one, number) for number in others}
        try:
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                if not done:
                    yield None
        finally:
            stop.set()
            for future in running:
                future.cancel()
