"""Cutting rows, or whole groups, into folds; what refits to the other folds are asked for.

Shared by the questions that leave parts of the data out (`held_out`, and K-fold comparison in `criticism`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import NewRows
from partialpool.design.subset import rows_as_new
from partialpool.errors import ModelError
from partialpool.model import Model

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Draws of a refit where they are cheap (a Gaussian response) and where each runs over the rows, and its effective
#: sample size: enough for predictions.
DRAWS, FEWER_DRAWS, ESS = 2000, 1000, 500


def checked_folds(folds: Any, n_rows: int) -> int:
    """The number of folds, a whole number from 2 to the number of rows."""
    whole = isinstance(folds, int | np.integer) and not isinstance(folds, bool)
    if not whole or not 2 <= folds <= n_rows:
        raise ModelError(f"folds = {folds!r} is not possible; give a whole number from 2 to the {n_rows:,} rows.")
    return int(folds)


def checked_seed(seed: Any) -> int:
    """A seed, a whole number of at least 0."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ModelError(f"seed = {seed!r} is not possible; give a whole number of at least 0, or leave it out.")
    return int(seed)


def checked_threads(threads: Any) -> int:
    """How many refits run at a time."""
    if not isinstance(threads, int | np.integer) or isinstance(threads, bool) or threads <= 0:
        raise ModelError(f"threads = {threads!r} is not possible; give a whole number above 0, or leave it out.")
    return int(threads)


def spread_over_groups(codes: NDArray[Any], folds: int, rng: np.random.Generator) -> Ints:
    """The fold of each row: the rows of each group are dealt out in turn, so that folds share them evenly.

    Examples
    --------
    >>> fold = spread_over_groups(np.array([0, 0, 0, 1, 1, 1]), 3, np.random.default_rng(1))
    >>> sorted(fold[:3].tolist()), sorted(fold[3:].tolist())
    ([0, 1, 2], [0, 1, 2])
    """
    order = np.lexsort((rng.random(len(codes)), rng.permutation(int(codes.max()) + 1)[codes]))
    fold = np.empty(len(codes), dtype=np.int64)
    fold[order] = np.arange(len(codes)) % folds
    return fold


def whole_groups(codes: NDArray[Any], name: str, folds: int, rng: np.random.Generator) -> Ints:
    """The fold of each row where the rows of a group stay together.

    Raises
    ------
    ModelError
        If there are fewer than 3 groups: how groups differ could not be learned from those that are left.

    Examples
    --------
    >>> whole_groups(np.array([0, 0, 1, 1, 2, 3]), "g", 2, np.random.default_rng(1)).tolist()
    [0, 0, 1, 1, 0, 1]
    """
    count = int(codes.max()) + 1
    if count < 3:
        raise ModelError(
            f"Whole groups of {name!r} cannot be held out: it has {count}, and how groups differ cannot be "
            "learned from the one that would be left. Hold out rows instead."
        )
    order = rng.permutation(count)
    return np.asarray((order % min(folds, count, max(2, count - 2)))[codes], dtype=np.int64)


def split(model: Model, rows: Ints) -> tuple[Model, NewRows]:
    """The model of all rows but these, and these as new rows of it."""
    kept = np.ones(model.design.n_rows, dtype=bool)
    kept[rows] = False
    part = model.take_rows(np.flatnonzero(kept))
    return part, rows_as_new(model.design, part.design, rows)


def refit_options(model: Model, seed: int) -> dict[str, Any]:
    """Options of the fit of a part: one thread, since many are fitted at once."""
    draws = DRAWS if model.exact else FEWER_DRAWS
    return {"draws": draws, "ess": ESS, "seed": seed, "threads": 1, "progress": False}
