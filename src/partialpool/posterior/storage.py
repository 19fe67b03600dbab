"""A fit in one file: a zip of a manifest (JSON) and arrays (.npy), no pickle.

With its rows, what follows from them is computed again after loading (columns, cross-products). Without them the
cross-products are kept, so that everything works but what needs the rows.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.structure import CrossProducts, Elimination, Structure
from partialpool.design.design import Design
from partialpool.errors import ModelError, StorageError
from partialpool.inference.base import Accuracy, Result, Settings
from partialpool.inference.gaussian import Statistics, statistics
from partialpool.model import Coefficients, Model
from partialpool.posterior.components import row_averages
from partialpool.spec.families import resolve_family
from partialpool.spec.priors import PriorTable

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior
    from partialpool.spec.families import Family

Arrays = dict[str, NDArray[Any]]

KIND = "partialpool fit"
#: Goes up when a file of this version could not be read by the last one.
FORMAT = 2
#: That of fits with a Gaussian response, which earlier versions read.
GAUSSIAN_FORMAT = 1
MANIFEST = "manifest.json"
#: deflate's level: higher ones save little on floating-point numbers, and cost much.
LEVEL = 4

#: What the statistics of a model are made of.
CLASSES: dict[str, type] = {cls.__name__: cls for cls in (Statistics, CrossProducts, Structure, Elimination)}
OPTIONAL_ARRAYS = ("effects", "root", "draws_root")
RESULT_ARRAYS = ("theta", "log_weights", "beta_mean", "beta_sd", "draws_theta", "draws_beta")


# -- writing ----------------------------------------------------------------------------------------------------------


def save(fit: Posterior, path: str | Path, *, data: bool = True) -> None:
    """`Posterior.save`.

    Raises
    ------
    StorageError
        Where the file cannot be written.
    ModelError
        Where `data` is asked for and the fit has no rows.
    """
    model = fit.model
    if data and len(model.design.y) != model.design.n_rows:
        raise ModelError("This fit was itself saved without its rows; save it with data=False.")
    target = Path(path).expanduser()
    if target.is_dir():
        raise StorageError(f"{str(target)!r} is a folder; give the name of a file in it, such as 'fit.pp'.")
    if not target.parent.is_dir():
        raise StorageError(f"There is no folder {str(target.parent)!r}; make it first.")
    manifest, arrays = _to_parts(fit, data)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            _write(temporary, manifest, arrays)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{str(target)!r} cannot be written: {error.strerror or error}.") from error


def _write(path: Path, manifest: dict[str, Any], arrays: Arrays) -> None:
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        archive.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False))
        for name, values in arrays.items():
            with archive.open(_member(name), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    """The same bytes for the same fit: no date of writing."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = zipfile.ZIP_DEFLATED
    info._compresslevel = LEVEL  # type: ignore[attr-defined]
    return info


def _to_parts(fit: Posterior, data: bool) -> tuple[dict[str, Any], Arrays]:
    model, result = fit.model, fit.result
    design = model.design.to_state(rows=data)
    arrays: Arrays = {f"design/{name}": values for name, values in design["arrays"].items()}
    for name in RESULT_ARRAYS:
        arrays[f"result/{name}"] = getattr(result, name)
    for name in OPTIONAL_ARRAYS:
        if getattr(result, name) is not None:
            arrays[f"result/{name}"] = getattr(result, name)
    arrays["model/column_means"] = model.column_means
    for name, values in row_averages(model).items():
        arrays[f"averages/{name}"] = values
    kept = None if data or not model.exact else encode(statistics(model), "statistics", arrays)
    manifest = {
        "kind": KIND, "format": GAUSSIAN_FORMAT if model.exact else FORMAT, "data": data,
        "family": model.family.name, "link": model.family.link, "design": design["json"],
        "priors": model.priors.to_json(), "coefficients": asdict(model.coefficients),
        "result": _result_to_json(result, arrays), "statistics": kept,
    }  # fmt: skip
    return manifest, arrays


def _result_to_json(result: Result, arrays: Arrays) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    for name, value in result.statistics.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            arrays[f"result/statistics/{name}"] = value
            extra[name] = {"array": f"result/statistics/{name}"}
        elif isinstance(value, np.generic):
            extra[name] = {"value": value.item()}
        elif value is None or isinstance(value, bool | int | float | str):
            extra[name] = {"value": value}
    return {
        "chains": result.chains, "log_marginal_likelihood": float(result.log_marginal_likelihood),
        "accuracy": _plain(asdict(result.accuracy)), "settings": _plain(asdict(result.settings)), "statistics": extra,
        "effects": result.effects is not None, "quadrature_nodes": int(result.quadrature_nodes),
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """Numpy's numbers as Python's, throughout."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def encode(value: Any, name: str, arrays: Arrays) -> Any:
    """Nested dataclasses of `CLASSES`, tuples and arrays as JSON; the arrays go to `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if is_dataclass(value) and type(value).__name__ in CLASSES:
        content = {
            part.name: encode(getattr(value, part.name), f"{name}/{part.name}", arrays) for part in fields(value)
        }
        return {"class": type(value).__name__, "fields": content}
    if isinstance(value, tuple):
        return {"tuple": [encode(item, f"{name}/{position}", arrays) for position, item in enumerate(value)]}
    if isinstance(value, np.generic):
        return {"value": value.item()}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    return {"skipped": type(value).__name__}


# -- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Posterior:
    """Read a fit that ``fit.save`` wrote.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    StorageError
        Where the file is missing, damaged, of another kind, or of a later version.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> fit.save("fit.pp")
    >>> load("fit.pp").summary().equals(fit.summary())
    True
    """
    source = Path(path).expanduser()
    if source.is_dir():
        raise StorageError(f"{str(source)!r} is a folder, not a fit.")
    if not source.exists():
        raise StorageError(f"There is no file {str(source)!r}.")
    try:
        with zipfile.ZipFile(source) as archive:
            manifest = _manifest(archive, source)
            return _from_parts(manifest, _arrays(archive))
    except StorageError:
        raise
    except PermissionError as error:
        raise StorageError(f"{str(source)!r} cannot be read: {error.strerror}.") from error
    except Exception as error:  # whatever a damaged file makes of the readers
        known = _starts_as_zip(source)
        what = "is damaged or incomplete" if known else "is not a fit that partialpool saved"
        raise StorageError(f"{str(source)!r} {what}; save the fit again, or take another copy.") from error


def _starts_as_zip(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(2) == b"PK"
    except OSError:
        return False


def _manifest(archive: zipfile.ZipFile, source: Path) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise StorageError(f"{str(source)!r} is not a fit that partialpool saved.")
    manifest = json.loads(archive.read(MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise StorageError(f"{str(source)!r} is not a fit that partialpool saved.")
    version = manifest.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise StorageError(
            f"{str(source)!r} was saved by a later version of partialpool (format {version}; this one reads up to "
            f"{FORMAT}); upgrade partialpool to read it."
        )
    return manifest


def _arrays(archive: zipfile.ZipFile) -> Arrays:
    arrays: Arrays = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            # read() checks the member's sum, which reading a part of a stream would not
            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(
                io.BytesIO(archive.read(name)), allow_pickle=False
            )
    return arrays


def _from_parts(manifest: dict[str, Any], arrays: Arrays) -> Posterior:
    from partialpool.posterior.posterior import Posterior

    own = {name.removeprefix("design/"): values for name, values in arrays.items() if name.startswith("design/")}
    design = Design.from_state({"json": manifest["design"], "arrays": own})
    model = Model(design, PriorTable.from_json(manifest["priors"]), _family(manifest))
    known = manifest["coefficients"]
    listed: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    model.__dict__["column_means"] = arrays["model/column_means"]
    model.__dict__["coefficients"] = Coefficients(**listed)
    averages = {
        name.removeprefix("averages/"): values for name, values in arrays.items() if name.startswith("averages/")
    }
    model.__dict__["_row_averages"] = averages
    if not manifest["data"] and model.exact:
        kept = decode(manifest["statistics"], arrays)
        model.__dict__["_statistics"] = kept
        model.__dict__["row_blocks"] = NoRows(kept.cross.structure)
    return Posterior(model, _result_from_json(manifest["result"], arrays))


def _family(manifest: dict[str, Any]) -> Family:
    family = resolve_family(manifest["family"])
    link = manifest.get("link", family.link)  # older files have no such key
    return family if link == family.link else replace(family, link=link)


def _result_from_json(content: dict[str, Any], arrays: Arrays) -> Result:
    accuracy = dict(content["accuracy"])
    for name in ("steps", "notes"):
        accuracy[name] = tuple(accuracy[name])
    extra = {
        name: arrays[entry["array"]] if "array" in entry else entry["value"]
        for name, entry in content["statistics"].items()
    }
    given: dict[str, Any] = {name: arrays[f"result/{name}"] for name in RESULT_ARRAYS}
    given |= {name: arrays.get(f"result/{name}") for name in OPTIONAL_ARRAYS}
    return Result(
        **given,
        log_marginal_likelihood=content["log_marginal_likelihood"],
        accuracy=Accuracy(**_known(Accuracy, accuracy)),
        settings=Settings(**_known(Settings, content["settings"])),
        chains=content["chains"],
        quadrature_nodes=content.get("quadrature_nodes", 0),
        statistics=extra,
    )


def _known(cls: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Only what the class has: a later version of the same format may have written more."""
    names = {part.name for part in fields(cls)}
    return {name: value for name, value in content.items() if name in names}


def decode(content: dict[str, Any], arrays: Arrays) -> Any:
    """The inverse of `encode`."""
    if "array" in content:
        return arrays[content["array"]]
    if "tuple" in content:
        return tuple(decode(item, arrays) for item in content["tuple"])
    if "class" in content:
        cls = CLASSES[content["class"]]
        given = content["fields"]
        values = {}
        for part in fields(cls):
            optional = part.default is not MISSING or part.default_factory is not MISSING
            if part.name in given and "skipped" not in given[part.name]:
                values[part.name] = decode(given[part.name], arrays)
            elif not optional:
                raise StorageError(f"The file lacks {part.name!r} of its {content['class']}.")
        return cls(**values)
    return content["value"]


@dataclass(frozen=True, eq=False)
class NoRows:
    """Stands for the rows of a fit that was saved without them: it knows their structure, and says what is missing."""

    structure: Structure

    def cross_products(self, y: Any, weight: Any) -> CrossProducts:
        """Refuse."""
        raise ModelError("This needs the rows of the data, and the fit was saved without them (data=False).")
