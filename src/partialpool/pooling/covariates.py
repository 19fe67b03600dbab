"""Covariates of units -> their matrix X with a first column of ones, through the encoding of the design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.checks import check_columns, moments
from partialpool.design.encoding import Encoding, Piece, learn
from partialpool.design.frame import check_finite, missing_values, read_frame
from partialpool.errors import DataError, FormulaError, ModelError
from partialpool.spec.formula import parse_formula, quote_name, variables_of

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


def covariate_text(covariates: Any, data: Any) -> str | None:
    """The right-hand side that covariates given by name make, the intercept written out; None where they are data."""
    if covariates is None:
        return None
    if isinstance(covariates, Sequence) and covariates and all(isinstance(name, str) for name in covariates):
        if data is None:
            raise ModelError("Covariates given by name are columns of data=...; give the data, or the columns.")
        text = covariates if isinstance(covariates, str) else " + ".join(quote_name(name) for name in covariates)
        terms = parse_formula(f"y ~ {text.strip().removeprefix('~')}")
        if terms.all_groups or terms.offsets or terms.predictors:
            raise FormulaError(
                f"The covariates {text!r} hold more than predictors; for group terms and offsets use pp.fit."
            )
        if terms.common.split(" ")[0] == "0":
            raise FormulaError(f"The covariates {text!r} leave out the intercept, which is the population's mean.")
        return terms.common if variables_of(terms.common) else None
    return None


def predictor_frame(
    covariates: Any, text: str | None, table: pd.DataFrame | None, known: Encoding | None
) -> pd.DataFrame | None:
    """The columns (n rows) that the covariates are made of, or None without covariates."""
    if text is not None:
        assert table is not None  # names without data were refused
        return table[list(variables_of(text))]
    if covariates is None or isinstance(covariates, str):
        return None
    columns = None if known is None else variables_of(piece_of(known).text)
    return covariate_frame(covariates, columns, new=known is not None)


def covariate_frame(covariates: Any, columns: Sequence[str] | None, *, new: bool) -> pd.DataFrame:
    """Covariates as a frame; columns of an array are called x1, x2 and so on."""
    import pandas as pd

    if isinstance(covariates, pd.Series):
        covariates = covariates.to_frame("x1" if covariates.name is None else str(covariates.name))
    elif not hasattr(covariates, "columns") and not isinstance(covariates, Mapping) and np.ndim(covariates) in (1, 2):
        array = np.asarray(covariates)
        array = array[:, None] if array.ndim == 1 else array
        covariates = pd.DataFrame({f"x{j + 1}": array[:, j] for j in range(array.shape[1])})
    if isinstance(covariates, pd.DataFrame):
        covariates = covariates.rename(columns=str)
    if columns is None:
        columns = [str(name) for name in (covariates if isinstance(covariates, Mapping) else _column_names(covariates))]
    return read_frame(covariates, list(columns), new=new)


def _column_names(covariates: Any) -> Sequence[Any]:
    import narwhals as nw

    try:
        names: Sequence[Any] = nw.from_native(covariates).collect_schema().names()
    except TypeError:
        raise DataError(
            f"Covariates of type {type(covariates).__qualname__} cannot be read; give a formula's right side with "
            "data=..., a data frame, a dict of columns or an array with one row for every unit."
        ) from None
    return names


def encoded(
    frame: pd.DataFrame, names: NDArray[Any], text: str | None, known: Encoding | None
) -> tuple[Array, Encoding]:
    """X of complete rows, and how it was made: learned from them, or as `known`.

    Parameters
    ----------
    frame : predictors. names : (n,) the units' names, which stand in for row numbers in messages.
    text : the right-hand side; all columns add up where it is None.
    """
    import pandas as pd

    frame = frame.set_axis(pd.Index(names), axis=0)
    if known is not None:
        learned = piece_of(known).text
        if text is not None and text != learned:
            raise ModelError(f"The covariates are {text!r}, but those of the pooled units {learned!r}; give the same.")
        return known.encode(frame, [learned]), known
    text = text or " + ".join(["1", *(quote_name(str(name)) for name in frame.columns)])
    encoding, V = learn(frame, [text])
    for column, name in enumerate(encoding.names):
        check_finite(V[:, column], name, frame.index)
    piece = encoding.pieces[text]
    check_columns(V, moments(V), piece.columns, piece.names, "the covariates")
    return np.ascontiguousarray(V[:, piece.columns]), encoding


def encoded_new(covariates: Any, known: Encoding) -> Array:
    """X of new units in an encoding that was learned; missing values are refused."""
    text = piece_of(known).text
    frame = covariate_frame(covariates, variables_of(text), new=True)
    for name in frame.columns:
        gaps = missing_values(frame[name])
        if gaps is not None:
            raise DataError(f"The covariate {name!r} is missing in {int(gaps.sum())} of the new units; fill it in.")
    return known.encode(frame, [text])


def piece_of(encoding: Encoding) -> Piece:
    """The one right-hand side that covariates have."""
    return next(iter(encoding.pieces.values()))
