"""`errors.safetensors`: head errors of a pipeline's transformers, with their provenance in the header.

Tensors are named `transformer/plain` and so on; the header's `about` is one strict JSON object. Untrusted:
the header is bounded and checked, and the sizes that it promises are compared with those that model, bins and
candidates ask for, before anything is allocated. A SHA-256 over the tensors tells a damaged file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import Json, closed, shown
from sparse_vdit.plan.file import PlanError, canonical, parse, replace_file
from sparse_vdit.plan.identity import ModelIdentity
from sparse_vdit.plan.transformer import MAX_CELLS, checked_bins, checked_name

from .candidates import Candidates
from .head_errors import DTYPES, MAX_BYTES, HeadErrors, array_shapes
from .probe import BETAS

FORMAT = "sparse_vdit.errors"
FORMAT_VERSION = "1"
FILE_NAME = "errors.safetensors"
MAX_HEADER = 16 * 2**20
MAX_TRANSFORMERS = 4
ABOUT = (
    "package_version",
    "betas",
    "candidates",
    "measure",
    "rows",
    "seed",
    "transformers",
    "provenance",
    "sha256",
)
TYPE_NAMES = {np.float32: "F32", np.int64: "I64", np.int32: "I32"}


@dataclass(frozen=True)
class _Part:
    model: ModelIdentity
    candidates: Candidates
    bins: tuple[float, ...]


def save(path: str | os.PathLike[str], errors: Mapping[str, HeadErrors]) -> Path:
    """Writes the errors of one or more transformers that share candidates; each has its own bins.

    A unique temporary file in the same folder, fsync, rename, fsync of the folder: whatever interrupts it, a
    reader sees the old file or the new one. The same errors give the same bytes.
    """
    return write_file(path, to_bytes(errors))


def write_file(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes a whole file at once, as `save` promises."""
    where = Path(path)
    where.parent.mkdir(parents=True, exist_ok=True)
    directory = os.open(where.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        replace_file(directory, where.name, data)
    finally:
        os.close(directory)
    return where


def to_bytes(errors: Mapping[str, HeadErrors]) -> bytes:
    """The bytes of the file."""
    from safetensors.numpy import save as serialized

    if not 1 <= len(errors) <= MAX_TRANSFORMERS:
        raise ValueError(f"errors: there are {len(errors)} transformers, expected 1..{MAX_TRANSFORMERS}")
    first = next(iter(errors.values()))
    for name, part in errors.items():
        checked_name(name)
        for field in ("candidates", "measure", "rows", "seed"):
            if getattr(part, field) != getattr(first, field):
                raise ValueError(f"errors: {field} of {name} is not that of the others, expected one for all")
    tensors = {
        f"{name}/{key}": array
        for name, part in sorted(errors.items())
        for key, array in part.arrays().items()
    }
    about = {
        "package_version": _package_version(),
        "betas": [float(beta) for beta in BETAS],
        "candidates": first.candidates.to_json(),
        "measure": first.measure,
        "rows": first.rows,
        "seed": first.seed,
        "transformers": {
            name: {"model": part.model.to_json(), "bins": list(part.bins)} for name, part in errors.items()
        },
        "provenance": first.provenance,
        "sha256": _digest(tensors),
    }
    text = canonical(about)
    if len(text) > MAX_HEADER // 2:
        raise ValueError(f"errors: the header has {len(text)} bytes, expected at most {MAX_HEADER // 2}")
    # One metadata entry: the library writes several in an order that changes from run to run.
    return bytes(serialized(tensors, {FORMAT: FORMAT_VERSION + text.decode("ascii")}))


def load(path: str | os.PathLike[str]) -> dict[str, HeadErrors]:
    """Reads a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one sentence: not such a file, of another version, truncated, damaged, sizes that do not fit.
    """
    from safetensors import SafetensorError, safe_open

    _check_outside(path)
    try:
        with safe_open(os.fspath(path), "np") as file:
            about = _about(file.metadata() or {})
            shapes = {
                key: (file.get_slice(key).get_dtype(), file.get_slice(key).get_shape())
                for key in list(file.keys())
            }
            parts = _expected(about, shapes)
            tensors = {key: file.get_tensor(key) for key in shapes}
    except SafetensorError as error:
        raise ValueError(
            f"errors: {os.fspath(path)!r} is no whole safetensors file ({str(error)[:80]}), expected a {FILE_NAME}"
        ) from None
    except PlanError as error:
        raise ValueError(f"errors: {str(error).removeprefix('plan: ')}") from None
    if _digest(tensors) != about["sha256"]:
        raise ValueError(
            "errors: sha256 is not that of the tensors, expected it: the file was changed or damaged"
        )
    return {name: _made(name, about, part, tensors) for name, part in parts.items()}


def _check_outside(path: str | os.PathLike[str]) -> None:
    """A regular file with a header of bounded size, before any library looks at it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"errors: there is no file {os.fspath(path)!r}, expected a {FILE_NAME}"
        ) from None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"errors: {os.fspath(path)!r} is not a regular file, expected a {FILE_NAME}")
        header = int.from_bytes(os.pread(descriptor, 8, 0), "little") if about.st_size >= 8 else 0
    finally:
        os.close(descriptor)
    if not 2 <= header <= about.st_size - 8:
        raise ValueError(
            f"errors: the file has {about.st_size} bytes and promises a header of {header}, "
            f"expected a {FILE_NAME}: it is truncated or something else"
        )
    if header > MAX_HEADER:
        raise ValueError(f"errors: the header has {header} bytes, expected at most {MAX_HEADER}")


def _about(metadata: Mapping[str, str]) -> Json:
    text = metadata.get(FORMAT)
    if text is None:
        raise ValueError(f"errors: the header has no {FORMAT}, expected a {FILE_NAME} of this package")
    stated, brace, rest = text.partition("{")
    if stated != FORMAT_VERSION:
        raise ValueError(f"errors: the format version is {shown(stated)}, expected {FORMAT_VERSION!r}")
    about = closed("errors", parse((brace + rest).encode()), ABOUT)
    if about["betas"] != [float(beta) for beta in BETAS]:
        raise ValueError(f"errors: betas is {shown(about['betas'])}, expected the nodes of this version")
    return about


def _expected(about: Json, found: Mapping[str, tuple[str, list[int]]]) -> dict[str, _Part]:
    """Model, candidates and bins by transformer, once the tensors are exactly those that they ask for."""
    listed = about["transformers"]
    if not isinstance(listed, dict) or not 1 <= len(listed) <= MAX_TRANSFORMERS:
        raise ValueError(f"errors: transformers is {shown(listed)}, expected 1..{MAX_TRANSFORMERS} by name")
    candidates = Candidates.from_json(about["candidates"], "errors.candidates")
    parts: dict[str, _Part] = {}
    wanted: dict[str, tuple[str, list[int]]] = {}
    for name, value in listed.items():
        fields = closed(f"errors.{checked_name(name)}", value, ("model", "bins"))
        if not isinstance(fields["bins"], list):
            raise ValueError(f"errors.{name}: bins is {shown(fields['bins'])}, expected a list")
        model = ModelIdentity.from_json(fields["model"], f"errors.{name}.model")
        parts[name] = _Part(model, candidates, checked_bins(fields["bins"]))
        wanted |= _tensors(name, parts[name], f"{name}/power" in found)
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"errors: tensor {shown(key)} is {_shown_tensor(found, key)}, expected {_shown_tensor(wanted, key)}"
            )
    return parts


def _tensors(name: str, part: _Part, power: bool) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor of a transformer, of bounded size."""
    bins = len(part.bins) - 1
    cells = bins * part.model.layers * part.model.heads
    size = 4 * cells * (part.candidates.count * (1 + len(BETAS)) + part.candidates.stripe_blocks + 2)
    if cells > MAX_CELLS or size > MAX_BYTES:
        raise ValueError(
            f"errors: {name} would have {cells} cells and {size} bytes, expected at most {MAX_CELLS} and {MAX_BYTES}"
        )
    shapes = array_shapes(part.model, part.candidates, bins)
    return {
        f"{name}/{key}": (TYPE_NAMES[DTYPES[key]], list(shape))
        for key, shape in shapes.items()
        if power or key != "power"
    }


def _shown_tensor(tensors: Mapping[str, tuple[str, list[int]]], key: str) -> str:
    if key not in tensors:
        return "missing" if key else "nothing"
    dtype, shape = tensors[key]
    return f"{dtype} {shape}"


def _made(name: str, about: Json, part: _Part, tensors: Mapping[str, NDArray[Any]]) -> HeadErrors:
    arrays: dict[str, Any] = {key: tensors.get(f"{name}/{key}") for key in DTYPES}
    return HeadErrors(
        part.model,
        part.candidates,
        part.bins,
        about["measure"],
        about["rows"],
        about["seed"],
        **arrays,
        provenance=about["provenance"],
    )


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for key in sorted(tensors):
        found.update(key.encode())
        found.update(np.ascontiguousarray(tensors[key]).data)
    return found.hexdigest()


def _package_version() -> str:
    try:
        return version("sparse-vdit")
    except PackageNotFoundError:
        return "unknown"
