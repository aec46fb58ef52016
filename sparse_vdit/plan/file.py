"""The bytes of `plan.json`: hostile input, canonical JSON and its hash, writing that is never half done.

A plan file is untrusted. It is at most 16 MiB (by stat and by reading), strict UTF-8, JSON of bounded depth
and number of values without duplicate keys, NaN or Infinity, and carries a SHA-256 over its own canonical
form. What the fields mean is the business of `document.py`; no path in the file is ever followed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vdit.geometry import Json, shown

FORMAT_VERSION = 1
FILE_NAME = "plan.json"
MAX_BYTES = 16 * 2**20
MAX_DEPTH = 16
MAX_VALUES = 4 * 2**20  # two values per cell of choice and betas (transformer.MAX_CELLS), patterns, slack
MAX_DIGITS = 20
MAX_PROVENANCE_BYTES = 2**18


class PlanError(ValueError):
    """A plan that cannot be read, is not legal, or does not fit; one sentence."""


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole of a regular file of at most 16 MiB.

    Raises:
        FileNotFoundError: there is no such file.
        PlanError: it is no regular file, or it is larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"plan: there is no file {os.fspath(path)!r}, expected a {FILE_NAME}"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise PlanError(f"plan: {os.fspath(path)!r} is not a regular file, expected a {FILE_NAME}")
        data = b"" if about.st_size > MAX_BYTES else file.read(MAX_BYTES + 1)
        size = max(about.st_size, len(data))
        if size > MAX_BYTES:
            raise PlanError(f"plan: the file has {size} bytes, expected at most {MAX_BYTES}")
    return data


def parse(data: bytes) -> Json:
    """Bytes to a JSON object, refusing whatever Python's reader is lenient about.

    Raises:
        PlanError: one sentence.
    """
    if len(data) > MAX_BYTES:
        raise PlanError(f"plan: the file has {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise PlanError(f"plan: byte {error.start} is not UTF-8, expected UTF-8 text") from None
    _scan(data)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short_integer,
        )
    except json.JSONDecodeError as error:
        raise PlanError(
            f"plan: {error.msg} at line {error.lineno} column {error.colno}, expected a JSON object"
        ) from None
    except RecursionError:
        raise PlanError(f"plan: it is nested too deeply, expected at most {MAX_DEPTH} levels") from None
    if isinstance(value, dict):
        return value
    raise PlanError("plan: the file holds no object, expected a JSON object")


def _scan(data: bytes) -> None:
    """Refuses depth and number of values before anything is allocated for them."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    letters = np.frombuffer(plain, dtype=np.uint8)
    outside = np.logical_not(np.bitwise_and(np.cumsum(letters == ord('"'), dtype=np.uint32), 1))
    opening = ((letters == ord("[")) | (letters == ord("{"))) & outside
    closing = ((letters == ord("]")) | (letters == ord("}"))) & outside
    depth = np.cumsum(opening.astype(np.int8) - closing.astype(np.int8), dtype=np.int32)
    deepest = int(depth.max(initial=0))
    if deepest > MAX_DEPTH:
        raise PlanError(f"plan: it is nested {deepest} levels deep, expected at most {MAX_DEPTH}")
    values = int(np.count_nonzero(opening)) + int(np.count_nonzero((letters == ord(",")) & outside))
    if values > MAX_VALUES:
        raise PlanError(f"plan: it holds {values} values, expected at most {MAX_VALUES}")


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found: Json = {}
    for name, value in pairs:
        if name in found:
            raise PlanError(f"plan: the key {shown(name)} appears twice, expected it once")
        found[name] = value
    return found


def _no_constant(text: str) -> Any:
    raise PlanError(f"plan: a number is {text}, expected a finite one")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise PlanError(f"plan: a number is {text[:32]}, expected a finite one")
    return value


def _short_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise PlanError(f"plan: a number has {len(text)} digits, expected at most {MAX_DIGITS}")
    return int(text)


def canonical(document: Json) -> bytes:
    """One spelling for one value: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(document: Json) -> str:
    """SHA-256 over the canonical form without the field `sha256`."""
    return hashlib.sha256(canonical({k: v for k, v in document.items() if k != "sha256"})).hexdigest()


def check_digest(document: Json) -> None:
    """Refuses a document whose `sha256` is not its own."""
    stated, real = document.get("sha256"), digest(document)
    if stated != real:
        raise PlanError(
            f"plan: sha256 is {shown(stated)}, expected {real!r}: the file was changed or damaged"
        )


def check_version(document: Json) -> None:
    """Refuses formats that this package does not know."""
    version = document.get("format_version")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise PlanError(f"plan: format_version is {shown(version)}, expected {FORMAT_VERSION}")


def checked_provenance(value: Any) -> Json:
    """A copy of a free JSON object of at most 256 KiB, depth 8, with string keys and finite numbers."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PlanError(f"plan: provenance is {type(value).__name__}, expected an object")
    plain = _plain(value, 8)
    size = len(canonical(plain))
    if size > MAX_PROVENANCE_BYTES:
        raise PlanError(f"plan: provenance has {size} bytes, expected at most {MAX_PROVENANCE_BYTES}")
    return dict(plain)


def _plain(value: Any, depth: int) -> Any:
    if depth < 0:
        raise PlanError("plan: provenance is nested too deeply, expected at most 8 levels")
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise PlanError(f"plan: provenance has the key {shown(name)}, expected a string")
        return {name: _plain(entry, depth - 1) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, depth - 1) for entry in value]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if isinstance(value, int) and abs(value) >= 10 ** (MAX_DIGITS - 1):
        raise PlanError(
            f"plan: provenance holds a number of too many digits, expected at most {MAX_DIGITS - 1}"
        )
    if (
        value is None
        or isinstance(value, (bool, int, str))
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    raise PlanError(f"plan: provenance holds {type(value).__name__} {shown(value)}, expected JSON values")


def layout(document: Json) -> bytes:
    """The text that is written: one line per top-level field, one per pattern, layer and provenance entry."""
    return (_spread(document, 2 if len(canonical(document)) < 2**20 else 1) + "\n").encode("ascii")


def _spread(value: Any, levels: int, indent: str = "") -> str:
    if not isinstance(value, (dict, list)) or not value or levels == 0:
        return json.dumps(value, allow_nan=False)
    deeper = indent + " "
    if isinstance(value, list):
        entries = [deeper + _spread(entry, levels - 1, deeper) for entry in value]
        return "[\n" + ",\n".join(entries) + "\n" + indent + "]"
    entries = [
        f"{deeper}{json.dumps(name)}: {_spread(entry, levels - 1, deeper)}" for name, entry in value.items()
    ]
    return "{\n" + ",\n".join(entries) + "\n" + indent + "}"


def write_atomic(folder: str | os.PathLike[str], name: str, data: bytes) -> Path:
    """Writes `folder/name` so that a reader sees the old file or the new one, whatever interrupts the writer.

    A unique temporary file in the same folder (never through a link), fsync, rename, fsync of the folder. A
    link at `folder/name` is replaced, not followed.
    """
    if len(data) > MAX_BYTES:
        raise PlanError(f"plan: it would have {len(data)} bytes, expected at most {MAX_BYTES}")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise PlanError(f"plan: {os.fspath(path)!r} is a file, expected a folder")
    path.mkdir(parents=True, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        replace_file(directory, name, data)
    finally:
        os.close(directory)
    return path / name


def replace_file(directory: int, name: str, data: bytes) -> None:
    """Writes a whole file into an open folder under a temporary name, then renames it."""
    temporary = f".{name}.{os.getpid()}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)
