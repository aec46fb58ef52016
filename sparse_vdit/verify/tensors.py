"""Small safetensors files of this room: arrays with one JSON object in the header, read as untrusted.

Bounded in size, regular and not a link, header checked before the library sees it. Users: `heads.py`, `clips.py`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sparse_vdit.geometry import Json, closed, shown
from sparse_vdit.plan.file import PlanError, canonical, parse
from sparse_vdit.search.errors_file import write_file

MAX_FILE = 128 * 2**20
MAX_HEADER = 2**20

Arrays = dict[str, NDArray[Any]]


def save_arrays(path: Path, form: str, about: Json, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Writes the file, the old one or the new one.

    Args:
        path: where.
        form: name and version, "sparse_vdit.heads 1".
        about: one JSON object.
        arrays: by name.
    """
    from safetensors.numpy import save

    data = bytes(save(dict(arrays), {form.split()[0]: form.split()[1] + canonical(about).decode("ascii")}))
    if len(data) > MAX_FILE:
        raise ValueError(f"verify: {path.name} would have {len(data)} bytes, expected at most {MAX_FILE}")
    return write_file(path, data)


def load_arrays(path: Path, form: str, fields: Sequence[str]) -> tuple[Json, Arrays] | None:
    """The object and the arrays; None if there is no such file.

    Raises:
        ValueError: `heads: heads.safetensors cannot be read (...), expected one written by this package; remove it`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = _read(path)
        if data is None:
            return None
        return _about(data, form, fields), load(data)
    except (OSError, SafetensorError, PlanError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"verify: {path.name} cannot be read ({str(error)[:100]}), expected one written by this package; remove it"
        ) from None


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE:
            raise ValueError(f"no regular file of at most {MAX_FILE} bytes")
        return file.read(MAX_FILE)


def _about(data: bytes, form: str, fields: Sequence[str]) -> Json:
    name, version = form.split()
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"its header has {length} bytes")
    metadata = parse(data[8 : 8 + length]).get("__metadata__")
    text = metadata.get(name) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"its header has no {name}")
    stated, brace, rest = text.partition("{")
    if stated != version:
        raise ValueError(f"its version is {shown(stated)}")
    return closed(name, parse((brace + rest).encode()), fields)
