"""The one family of exceptions of partialpool.

Every message says what is wrong, where (column, row, group), and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PartialPoolError(Exception):
    """Base class of every error that partialpool raises for a user's mistake."""


class FormulaError(PartialPoolError, ValueError):
    """The formula cannot be read."""


class DataError(PartialPoolError, ValueError):
    """The data do not fit what the formula asks of them."""


class PriorError(PartialPoolError, ValueError):
    """A prior has impossible parameters, or is set on a name that does not exist."""


class ModelError(PartialPoolError, ValueError):
    """The model, or an argument of a method, asks for something that cannot be done."""


class InferenceError(PartialPoolError, RuntimeError):
    """The computation could not produce an answer that can be trusted."""


class StorageError(PartialPoolError, OSError):
    """A saved fit cannot be read or written."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A sentence that offers the nearest of `candidates`, or lists them where none is near.

    Examples
    --------
    >>> did_you_mean("Dayz", ["Days", "Subject"])
    "Did you mean 'Days'?"
    """
    pool = [str(candidate) for candidate in candidates]
    folded = {candidate.casefold(): candidate for candidate in pool}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    if near:
        return f"Did you mean {folded[near[0]]!r}?"
    if not pool:
        return "There are none to choose from."
    shown = ", ".join(repr(candidate) for candidate in pool[:12])
    more = f", and {len(pool) - 12} more" if len(pool) > 12 else ""
    return f"There are: {shown}{more}."
