"""A design as plain JSON and numpy arrays, and back: no pickle, and replayable without its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.context import Contexts, GroupMeans
from partialpool.design.design import Design, GroupDesign, GroupFactor
from partialpool.design.encoding import Encoding, Piece, Source, fill_plain, rebuild_specs
from partialpool.design.expressions import bare_column
from partialpool.design.factors import Labels, Levels, join_labels, texts
from partialpool.errors import StorageError
from partialpool.spec.context import context_columns
from partialpool.spec.predictors import formula

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
ROW_VECTORS = ("y", "offset", "se", "weights", "precision", "trials")


def design_to_state(design: Design, *, rows: bool) -> dict[str, Any]:
    """``{"json": JSON-able dict, "arrays": dict of numpy arrays}``; see :meth:`Design.to_state`."""
    arrays: dict[str, NDArray[Any]] = {}
    content: dict[str, Any] = {
        "version": VERSION,
        "formula": design.terms.main,
        "predictors": {name: part.formula for name, part in design.terms.predictors.items()},
        "encoding": _encoding_to_json(design.encoding),
        "x_columns": design.x_columns.tolist(),
        "x_names": list(design.x_names),
        "x_predictor": design.x_predictor.tolist(),
        "success": design.success,
        "failure": design.failure,
        "groups": [
            [group.text, group.factor, group.columns.tolist(), list(group.names), group.correlated, group.predictor]
            for group in design.groups
        ],
        "factors": [[factor.name, list(factor.variables)] for factor in design.factors],
        "levels": [[level.name, level.integer] for level in design.levels.values()],
        "n_rows": design.n_rows,
        "n_dropped": design.n_dropped,
        "dropped_by": design.dropped_by,
        "columns": [str(name) for name in design.data.columns],
        "present": [name for name in ROW_VECTORS if getattr(design, name) is not None],
        "rows": None,
    }
    for position, level in enumerate(design.levels.values()):
        arrays[f"levels.{position}"] = _labels_to_array(level.labels, level.integer)
    contexts = design.encoding.contexts
    if contexts.columns:
        content["contexts"] = {
            "ids": [[level.name, level.integer] for level in contexts.ids.values()],
            "means": [[found.expression, list(found.variables)] for found in contexts.means],
        }
    for position, level in enumerate(contexts.ids.values()):
        arrays[f"contexts.ids.{position}"] = _labels_to_array(level.labels, level.integer)
    for position, found in enumerate(contexts.means):
        arrays[f"contexts.members.{position}"], arrays[f"contexts.means.{position}"] = found.members, found.means
    for position, factor in enumerate(design.factors):
        arrays[f"sizes.{position}"] = factor.sizes
        if len(factor.variables) > 1:
            arrays[f"members.{position}"] = factor.members
    if rows:
        content["rows"] = _rows_to_state(design, arrays)
    return {"json": content, "arrays": arrays}


def design_from_state(state: Mapping[str, Any]) -> Design:
    """The design that :func:`design_to_state` wrote."""
    content, arrays = state["json"], state["arrays"]
    if content["version"] > VERSION:
        raise StorageError(
            f"The design was written by a later version of partialpool (layout {content['version']}, this one reads "
            f"{VERSION}); upgrade partialpool."
        )
    terms = formula(content["formula"], **content.get("predictors", {}))  # older files have no such key
    encoding = replace(_encoding_from_json(content["encoding"]), contexts=_contexts_from_state(content, arrays))
    levels = {
        name: Levels(name, _labels_from_array(arrays[f"levels.{position}"]), integer)
        for position, (name, integer) in enumerate(content["levels"])
    }
    rows = content["rows"]
    factors = tuple(
        _factor(name, tuple(variables), position, levels, arrays, rows is not None)
        for position, (name, variables) in enumerate(content["factors"])
    )
    kept = arrays["rows"] if rows and rows["dropped"] else np.arange(content["n_rows"] if rows else 0, dtype=np.int64)
    data = _data(rows, arrays, factors, levels, kept) if rows else _no_data(content["columns"])
    coded = content.get("success") is not None
    vectors: dict[str, Any] = {name: _vector(name, content, arrays, data, terms, coded) for name in ROW_VECTORS}
    return Design(
        terms=terms,
        V=_matrix(encoding, arrays, data) if rows else np.empty((0, len(encoding.names))),
        v_names=encoding.names,
        x_columns=np.array(content["x_columns"], dtype=np.int64),
        x_names=tuple(content["x_names"]),
        groups=tuple(
            GroupDesign(text, factor, np.array(columns, dtype=np.int64), tuple(names), correlated, *predictor)
            for text, factor, columns, names, correlated, *predictor in content["groups"]
        ),
        factors=factors,
        se_sigma=terms.response.se_sigma,
        n_rows=content["n_rows"],
        n_dropped=content["n_dropped"],
        rows=kept,
        dropped_by=dict(content["dropped_by"]),
        data=data,
        encoding=encoding,
        levels=levels,
        success=content.get("success"),
        failure=content.get("failure"),
        x_predictor=np.array(content.get("x_predictor", []), dtype=np.int64),
        **vectors,
    )


# ---- what was learned ---------------------------------------------------------------------------------------------


def _encoding_to_json(encoding: Encoding) -> dict[str, Any]:
    return {
        "names": list(encoding.names),
        "pieces": [
            {
                "text": piece.text,
                "columns": piece.columns.tolist(),
                "names": list(piece.names),
                "sources": None if piece.sources is None else [[made.column, made.category] for made in piece.sources],
            }
            for piece in encoding.pieces.values()
        ],
        "categories": {name: list(values) for name, values in encoding.categories.items()},
        "template": dict(encoding.template),
        "specs": {text: _spec_to_json(spec) for text, spec in encoding.specs.items()},
    }


def _encoding_from_json(content: Mapping[str, Any]) -> Encoding:
    pieces = {}
    for piece in content["pieces"]:
        sources = piece["sources"]
        made = None if sources is None else tuple(Source(column, category) for column, category in sources)
        columns = np.array(piece["columns"], dtype=np.int64)
        pieces[piece["text"]] = Piece(piece["text"], columns, tuple(piece["names"]), made)
    categories = {name: tuple(values) for name, values in content["categories"].items()}
    learned = {
        text: {
            "transforms": _from_plain(spec["transforms"]),
            "encoders": {name: (kind, _from_plain(state)) for name, (kind, state) in spec["encoders"].items()},
        }
        for text, spec in content["specs"].items()
    }
    specs = rebuild_specs(learned, content["template"], categories)
    return Encoding(tuple(content["names"]), pieces, categories, specs, dict(content["template"]))


def _contexts_from_state(content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Contexts:
    kept = content.get("contexts")
    if kept is None:
        return Contexts()
    ids = {
        name: Levels(name, _labels_from_array(arrays[f"contexts.ids.{position}"]), integer)
        for position, (name, integer) in enumerate(kept["ids"])
    }
    means = tuple(
        GroupMeans(
            expression, tuple(variables), arrays[f"contexts.members.{position}"], arrays[f"contexts.means.{position}"]
        )
        for position, (expression, variables) in enumerate(kept["means"])
    )
    columns = context_columns([piece["text"] for piece in content["encoding"]["pieces"]])
    return Contexts(columns, ids, means)


def _spec_to_json(spec: Any) -> dict[str, Any]:
    encoders = {}
    for name, (kind, state) in spec.encoder_state.items():
        kept = {"categories": list(state["categories"])} if "categories" in state else {}
        encoders[name] = [kind.value, _to_plain(kept)]
    return {"transforms": _to_plain(spec.transform_state), "encoders": encoders}


def _to_plain(value: Any) -> Any:
    """Nested dicts, arrays and numpy numbers in JSON; what JSON lacks is tagged."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic):
        return _to_plain(value.item())
    if isinstance(value, int | float):
        return value
    if isinstance(value, np.ndarray):
        return {"array": _to_plain(value.tolist()), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {"items": [[_to_plain(key), _to_plain(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if hasattr(value, "to_numpy"):
        return _to_plain(value.to_numpy())
    return str(value)


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_plain(item) for item in value]
    if isinstance(value, dict) and "array" in value:
        return np.array(value["array"], dtype=np.dtype(value["dtype"])).reshape(value["shape"])
    if isinstance(value, dict):
        return {key: _from_plain(item) for key, item in value["items"]}
    return value


# ---- groups -------------------------------------------------------------------------------------------------------


def _labels_to_array(labels: Labels, integer: bool) -> NDArray[Any]:
    return labels.astype(np.int64) if integer and len(labels) else labels.astype(np.str_)


def _labels_from_array(values: NDArray[Any]) -> Labels:
    return texts(values)


def _factor(
    name: str,
    variables: tuple[str, ...],
    position: int,
    levels: Mapping[str, Levels],
    arrays: Mapping[str, NDArray[Any]],
    rows: bool,
) -> GroupFactor:
    codes = arrays[f"codes.{position}"] if rows else np.empty(0, dtype=np.int32)
    if len(variables) == 1:
        return GroupFactor(name, variables, levels[name].labels, codes, sizes=arrays[f"sizes.{position}"])
    members = arrays[f"members.{position}"]
    labels = join_labels([levels[part].labels[members[:, k]] for k, part in enumerate(variables)])
    return GroupFactor(name, variables, labels, codes, members, arrays[f"sizes.{position}"])


# ---- rows ---------------------------------------------------------------------------------------------------------


def _rows_to_state(design: Design, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    for position, factor in enumerate(design.factors):
        arrays[f"codes.{position}"] = factor.codes
    if design.n_dropped:
        arrays["rows"] = design.rows
    computed = _computed_columns(design.encoding)
    if computed:
        arrays["V"] = np.ascontiguousarray(design.V[:, computed])
    for name in ROW_VECTORS:
        values = getattr(design, name)
        if values is not None and _stored_in(name, design.terms, design.success is not None) is None:
            arrays[name] = values
    columns = [
        _column_to_state(design.data[name], position, design, arrays)
        for position, name in enumerate(design.data.columns)
    ]
    index = _index_to_state(design.data.index, design.rows, arrays)
    return {"dropped": bool(design.n_dropped), "columns": columns, "index": index}


def _computed_columns(encoding: Encoding) -> list[int]:
    """Columns of V that formulaic made: all others follow from the data."""
    plain = {int(c) for piece in encoding.pieces.values() if piece.sources is not None for c in piece.columns}
    return [column for column in range(len(encoding.names)) if column not in plain]


def _stored_in(name: str, terms: Any, coded: bool) -> str | None:
    """The data's column that holds a row vector as it is; `coded`: the response was made of two categories."""
    if name == "y" and coded:
        return None
    if name == "offset":
        return bare_column(terms.offsets[0]) if len(terms.offsets) == 1 else None
    expression = terms.response.expression if name == "y" else getattr(terms.response, name)
    return None if expression is None else bare_column(expression)


def _vector(
    name: str,
    content: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    data: pd.DataFrame,
    terms: Any,
    coded: bool,
) -> NDArray[np.float64] | None:
    if name not in content["present"]:
        return None
    if not content["rows"]:
        return np.empty(0)
    column = _stored_in(name, terms, coded)
    return arrays[name] if column is None else np.ascontiguousarray(data[column].to_numpy(), dtype=np.float64)


def _matrix(encoding: Encoding, arrays: Mapping[str, NDArray[Any]], data: pd.DataFrame) -> NDArray[np.float64]:
    out = fill_plain(encoding, data)
    computed = _computed_columns(encoding)
    if computed:
        out[:, computed] = arrays["V"]
    return out


def _column_to_state(
    column: pd.Series[Any], position: int, design: Design, arrays: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    import pandas as pd

    name, dtype, key = str(column.name), column.dtype, f"data.{position}"
    entry: dict[str, Any] = {"name": name, "dtype": str(dtype)}
    if isinstance(dtype, pd.CategoricalDtype):
        arrays[key] = np.asarray(column.cat.codes)
        categories = column.cat.categories
        return entry | {
            "kind": "category",
            "ordered": bool(dtype.ordered),
            "categories": _to_plain(categories.tolist()),
            "categories_dtype": str(categories.dtype),
        }
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        if dtype.kind in "iu" and name in design.levels:
            return entry | {"kind": "ids"}
        arrays[key] = column.to_numpy()
        return entry | {"kind": "values"}
    if isinstance(dtype, np.dtype) and dtype.kind in "mM":
        arrays[key] = column.to_numpy().astype(np.int64)
        return entry | {"kind": "time"}
    if pd.api.types.is_numeric_dtype(dtype) and not isinstance(dtype, np.dtype):
        arrays[key] = column.to_numpy(dtype=getattr(dtype, "numpy_dtype", np.float64))
        return entry | {"kind": "values"}
    codes, uniques = pd.factorize(column)
    arrays[key] = codes.astype(np.int32)
    return entry | {"kind": "text", "categories": [_to_plain(value) for value in uniques.tolist()]}


def _data(
    rows: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    factors: Sequence[GroupFactor],
    levels: Mapping[str, Levels],
    kept: NDArray[np.int64],
) -> pd.DataFrame:
    import pandas as pd

    columns = {}
    for position, entry in enumerate(rows["columns"]):
        values = arrays.get(f"data.{position}")
        columns[entry["name"]] = _column_from_state(entry, values, factors, levels)
    frame = pd.DataFrame(columns)
    frame.index = _index_from_state(rows["index"], arrays, kept)
    return frame


def _column_from_state(
    entry: Mapping[str, Any], values: Any, factors: Sequence[GroupFactor], levels: Mapping[str, Levels]
) -> Any:
    import pandas as pd

    kind, dtype = entry["kind"], entry["dtype"]
    if kind == "category":
        categories = pd.Index(entry["categories"], dtype=entry["categories_dtype"])
        return pd.Categorical.from_codes(values, categories=categories, ordered=entry["ordered"])
    if kind == "ids":
        numbers = levels[entry["name"]].labels.astype(np.int64)
        return numbers[_codes_of(entry["name"], factors)].astype(dtype)
    if kind == "time":
        return values.astype(dtype)
    if kind == "text":
        found = np.empty(len(entry["categories"]), dtype=object)
        found[:] = entry["categories"]
        return pd.Series(found[values], dtype=dtype)
    return values if str(values.dtype) == dtype else pd.array(values, dtype=dtype)


def _codes_of(name: str, factors: Sequence[GroupFactor]) -> NDArray[np.int32]:
    factor = min((factor for factor in factors if name in factor.variables), key=lambda found: len(found.variables))
    codes: NDArray[np.int32] = factor.members[factor.codes, factor.variables.index(name)]
    return codes


def _index_to_state(index: pd.Index[Any], kept: NDArray[np.int64], arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    import pandas as pd

    if not isinstance(index, pd.MultiIndex) and pd.api.types.is_integer_dtype(index.dtype):
        if np.array_equal(index.to_numpy(), kept):
            return {"kind": "rows", "name": _to_plain(index.name)}
        arrays["index"] = index.to_numpy(dtype=np.int64)
        return {"kind": "values", "name": _to_plain(index.name)}
    arrays["index"] = texts(index).astype(np.str_)
    return {"kind": "text", "name": _to_plain(index.name)}


def _index_from_state(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], kept: NDArray[np.int64]) -> Any:
    import pandas as pd

    if entry["kind"] == "rows":
        whole = len(kept) == 0 or int(kept[-1]) == len(kept) - 1
        return pd.RangeIndex(len(kept), name=entry["name"]) if whole else pd.Index(kept, name=entry["name"])
    if entry["kind"] == "text":
        return pd.Index(arrays["index"].tolist(), name=entry["name"])
    return pd.Index(arrays["index"], name=entry["name"])


def _no_data(columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({name: np.empty(0) for name in columns})
