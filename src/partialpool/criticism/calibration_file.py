"""Finished replicates of a calibration in a file: one line of JSON each, written as they finish, read when resumed.

The first line says what they are of. A line that an interruption cut short is dropped; replicates are reproducible, so
that whatever is missing is computed again, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, TracebackType
from typing import IO, Any

import numpy as np

from partialpool._version import __version__
from partialpool.criticism.calibration_replicate import COLUMNS, Plan, Replicate
from partialpool.errors import StorageError

KIND, FORMAT = "partialpool calibration", 1
#: What must be the same for a file to be resumed, and what it is called.
PARTS = {
    "formula": "another formula", "family": "another family", "priors": "other priors", "data": "other data",
    "seed": "another seed", "options": "other options", "function": "another fit= function",
    "quantities": "other quantities", "version": "another version of partialpool",
}  # fmt: skip


class ReplicateFile:
    """A file of replicates, open for more; as a context manager it is closed in the end.

    Parameters
    ----------
    path : str or Path
    plan : what the replicates are of.

    Raises
    ------
    StorageError
        Where the file is another one, or cannot be written.
    """

    def __init__(self, path: str | Path, plan: Plan) -> None:
        self.path = Path(path)
        self._plan = plan
        self.found: dict[int, Replicate] = {}
        self._stream: IO[str] = self._opened()

    def _opened(self) -> IO[str]:
        if self.path.is_dir():
            raise StorageError(f"{str(self.path)!r} is a folder; give path= a file in it.")
        if not self.path.parent.is_dir():
            raise StorageError(f"There is no folder {str(self.path.parent)!r} to write {self.path.name!r} in.")
        head = header(self._plan)
        try:
            text = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise StorageError(f"{str(self.path)!r} cannot be read: {error.strerror or error}.") from error
        kept = self._read(text, head) if text else 0
        try:
            stream = self.path.open("r+" if text else "w", encoding="utf-8", newline="\n")
            stream.truncate(kept)
            stream.seek(kept)
        except OSError as error:
            raise StorageError(f"{str(self.path)!r} cannot be written: {error.strerror or error}.") from error
        if not kept:
            _write(stream, head)
        return stream

    def _read(self, text: bytes, head: Mapping[str, Any]) -> int:
        """Read what is there; returns how many bytes of it are whole lines."""
        end = text.find(b"\n") + 1
        try:
            stored = json.loads(text[:end] or text)
        except ValueError:
            stored = None
        if not isinstance(stored, dict) or stored.get("kind") != KIND:
            if not end and json.dumps(dict(head)).encode().startswith(text):
                return 0  # interrupted while the first line was written
            raise StorageError(
                f"{str(self.path)!r} is not a file of replicates; give path= a new name, nothing was overwritten."
            )
        if stored.get("format") != FORMAT:
            raise StorageError(
                f"{str(self.path)!r} was written by a later version of partialpool; update, or rename it."
            )
        other = [words for part, words in PARTS.items() if stored.get(part) != head[part]]
        if other:
            raise StorageError(
                f"{str(self.path)!r} holds replicates of {' and '.join(other)}; give path= a new name, or the same "
                "model, seed and options as before."
            )
        while (after := text.find(b"\n", end)) >= 0:
            one = self._parsed(text[end:after])
            if one is None:
                break
            self.found[one.number] = one
            end = after + 1
        return end

    def _parsed(self, line: bytes) -> Replicate | None:
        try:
            own = json.loads(line)
            values = np.array(own["values"], dtype=float).reshape(-1, COLUMNS)
            if len(values) != len(self._plan.names):
                return None
            return Replicate(
                int(own["replicate"]), values, str(own["failure"]), str(own["engine"]), bool(own["trusted"])
            )
        except (ValueError, KeyError, TypeError):
            return None

    def add(self, one: Replicate) -> None:
        """Write a replicate; it is on the disk when this returns."""
        _write(self._stream, {
            "replicate": one.number, "values": one.values.tolist(), "failure": one.failure, "engine": one.engine,
            "trusted": one.trusted,
        })  # fmt: skip

    def __enter__(self) -> ReplicateFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def _write(stream: IO[str], content: Mapping[str, Any]) -> None:
    try:
        stream.write(json.dumps(dict(content)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    except OSError as error:
        raise StorageError(f"The replicates could not be written: {error.strerror or error}.") from error


def code_of(function: Any) -> str:
    """A function's name and a digest of its own code and of the plain numbers and texts that it keeps."""
    digest = hashlib.sha256()
    _feed(digest, function, set())
    return f"{getattr(function, '__qualname__', type(function).__qualname__)} {digest.hexdigest()[:16]}"


def _feed(digest: Any, part: Any, seen: set[int]) -> None:
    """Functions, their constants, defaults and what they enclose; a function that encloses itself comes once."""
    if isinstance(part, FunctionType):
        if id(part) in seen:
            return
        seen.add(id(part))
    if isinstance(part, CodeType):
        digest.update(part.co_code + " ".join(part.co_names).encode())
        _feed(digest, part.co_consts, seen)
    elif isinstance(part, partial):
        _feed(digest, (part.func, part.args, tuple(part.keywords.values())), seen)
    elif isinstance(part, FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or () if cell != CellType()]
        _feed(digest, (part.__code__, part.__defaults__ or (), tuple(cells)), seen)
    elif isinstance(part, tuple):
        for own in part:
            _feed(digest, own, seen)
    elif part is None or isinstance(part, bool | int | float | complex | str | bytes):
        digest.update(repr(part).encode() + b",")
    elif callable(part):
        _feed(digest, getattr(part, "__func__", None) or getattr(type(part).__call__, "__code__", None), seen)


def header(plan: Plan) -> dict[str, Any]:
    """What the replicates of a plan are of; the response of the data plays no part."""
    model, function = plan.model, plan.fit
    design = model.design
    digest = hashlib.sha256()
    arrays: list[Any] = [design.V, design.trials, design.weights, design.se, design.precision, design.offset]
    arrays += [part for factor in design.factors for part in (factor.codes, factor.labels.astype(str))]
    for array in arrays:
        digest.update(b"-" if array is None else repr((array.dtype.str, array.shape)).encode())
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    priors = {name: [type(prior).__name__, prior.parameters] for name, prior in model.priors.items()}
    return {
        "kind": KIND, "format": FORMAT, "formula": design.terms.formula,
        "family": [model.family.name, model.family.link], "priors": priors,
        "data": digest.hexdigest(), "seed": plan.seed, "options": {key: repr(own) for key, own in plan.options.items()},
        "function": None if function is None else code_of(function),
        "quantities": list(plan.names), "version": __version__,
    }  # fmt: skip
