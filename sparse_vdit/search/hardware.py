"""What a machine takes for the pieces of an attention call, and the file `hardware.json` that keeps it.

`Hardware` holds the constants of one engine, dtype, head size and pair of block sizes (their meaning:
`csrc/search/hardware.h`); `Machine` holds all that were measured on one computer. How they are measured:
`calibration.py`; what they are for: `cost.py`.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.geometry import Json, integer, shown
from sparse_vdit.plan.file import layout, parse, write_atomic

SCHEMA_VERSION = 1
FILE_NAME = "hardware.json"
BUSY = 0.05  # median error of a calibration's own check; a quiet machine stays below 2 %
MAX_BYTES = 2**20
MAX_ENTRIES = 256
MAX_TEXT = 256
DTYPES = ("float32", "float16", "bfloat16")
NAMES: tuple[str, ...] = _C.hardware_names()
#: Known of an engine without measuring; the rest are cache_tokens and times in microseconds.
STRUCTURAL = ("workers", "tall_rows", "low_rows", "chunk_keys")
TIMES = tuple(name for name in NAMES if name.endswith("_us"))


class HardwareError(ValueError):
    """A hardware.json that cannot be read, is not legal, or lacks what is asked for; one sentence."""


def file_of(path: str | os.PathLike[str]) -> Path:
    """A `hardware.json` as given, or that of a folder."""
    return Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)


@dataclass(frozen=True)
class Hardware:
    """Constants of one engine for one dtype, head size and pair of block sizes.

    Args:
        engine: name of the block operations, as `build_info()` gives it: "avx2 f32".
        dtype: "float32", "float16" or "bfloat16".
        head_dim, block_q, block_k: what they were measured for.
        constants: by name, in the order of `NAMES`; times in microseconds of one worker.
        median_error, worst_error: of the calibration's own check, predicted against measured; NaN = not checked.

    Raises:
        HardwareError: `hardware: full_us is -1, expected a finite number, not negative`.
    """

    engine: str
    dtype: str
    head_dim: int
    block_q: int
    block_k: int
    constants: tuple[float, ...]
    median_error: float = math.nan
    worst_error: float = math.nan

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise HardwareError(
                f"hardware: dtype is {shown(self.dtype)}, expected one of {', '.join(DTYPES)}"
            )
        if len(self.constants) != len(NAMES):
            raise HardwareError(f"hardware: there are {len(self.constants)} constants, expected {len(NAMES)}")
        for name, value in zip(NAMES, self.constants, strict=True):
            if not (math.isfinite(value) and value >= 0):
                raise HardwareError(f"hardware: {name} is {value:g}, expected a finite number, not negative")
            if name in STRUCTURAL and value != int(value):
                raise HardwareError(f"hardware: {name} is {value:g}, expected a whole number")
        if not 1 <= self["workers"] <= 65536:
            raise HardwareError(f"hardware: workers is {self['workers']:g}, expected 1..65536")

    @property
    def array(self) -> NDArray[np.float64]:
        """float64 [n], as `_C.cost_layers` takes it."""
        return np.array(self.constants, dtype=np.float64)

    @property
    def workers(self) -> int:
        """Threads or multiprocessors that share a call."""
        return int(self["workers"])

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells entries of one machine apart: dtype, head_dim, block_q, block_k."""
        return (self.dtype, self.head_dim, self.block_q, self.block_k)

    def __getitem__(self, name: str) -> float:
        return self.constants[NAMES.index(name)]

    def replaced(self, **constants: float) -> Hardware:
        """The same with some constants changed, by name."""
        known = dict(zip(NAMES, self.constants, strict=True))
        unknown = sorted(set(constants) - set(known))
        if unknown:
            raise HardwareError(
                f"hardware: there is no constant {unknown[0]!r}, expected one of {', '.join(NAMES)}"
            )
        values = tuple(float(value) for value in (known | constants).values())
        return dataclasses.replace(self, constants=values)

    def to_json(self) -> Json:
        """One entry of the file."""
        entry: Json = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        entry["constants"] = dict(zip(NAMES, self.constants, strict=True))
        for name in ("median_error", "worst_error"):
            entry[name] = None if math.isnan(entry[name]) else entry[name]
        return entry

    @property
    def is_doubtful(self) -> bool:
        """Whether the calibration's own check was off by more than `BUSY`."""
        return self.median_error > BUSY

    @property
    def doubt(self) -> str:
        """That, in a sentence."""
        return (
            f"the clock's own check is off by {self.median_error:.0%} (median), expected less than {BUSY:.0%}: is the "
            "machine busy?"
        )

    @classmethod
    def from_json(cls, value: Any) -> Hardware:
        """The inverse of `to_json`; every field is checked."""
        entry = _fields("entry", value, [f.name for f in dataclasses.fields(cls)])
        constants = _fields("constants", entry["constants"], NAMES)
        errors = {
            n: math.nan if entry[n] is None else _number(n, entry[n]) for n in ("median_error", "worst_error")
        }
        return cls(
            engine=_text("engine", entry["engine"]),
            dtype=_text("dtype", entry["dtype"]),
            head_dim=_whole("head_dim", entry["head_dim"], 8, 1024),
            block_q=_whole("block_q", entry["block_q"], 16, 1024),
            block_k=_whole("block_k", entry["block_k"], 16, 1024),
            constants=tuple(_number(name, constants[name]) for name in NAMES),
            **errors,
        )


@dataclass(frozen=True)
class Machine:
    """All that was measured on one computer: the content of `hardware.json`."""

    device: str
    isa: str
    threads: int
    versions: dict[str, str]
    date: str
    entries: tuple[Hardware, ...] = field(default=())

    @classmethod
    def here(cls, entries: Sequence[Hardware] = ()) -> Machine:
        """This computer, now."""
        info = _C.build_info()
        return cls(
            device=device_name(),
            isa=info["isa"],
            threads=info["threads"],
            versions={
                "sparse_vdit": info["version"],
                "compiler": info["compiler"],
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            entries=tuple(entries),
        )

    def difference(self, other: Machine) -> str | None:
        """What makes these constants those of another machine, or None.

        Returns:
            "device is 'A', expected 'B'" or the like, of the first field that differs.
        """
        for name in ("device", "isa", "threads"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} is {getattr(self, name)!r}, expected {getattr(other, name)!r}"
        return None

    def find(self, dtype: str, head_dim: int, block_q: int, block_k: int) -> Hardware:
        """The constants for a call.

        Raises:
            HardwareError: `hardware: there are no constants for float32, head_dim 128, blocks 64 x 64, expected
                one of ...; sparse-vdit calibrate measures them`.
        """
        for entry in self.entries:
            if entry.key == (dtype, head_dim, block_q, block_k):
                return entry
        known = "; ".join(_named(entry.key) for entry in self.entries) or "none yet"
        raise HardwareError(
            f"hardware: there are no constants for {_named((dtype, head_dim, block_q, block_k))}, expected one of: "
            f"{known} (sparse-vdit calibrate measures them)"
        )

    def with_entries(self, entries: Sequence[Hardware]) -> Machine:
        """Entries of the same dtype, head size and blocks are replaced, others kept."""
        new = {entry.key: entry for entry in (*self.entries, *entries)}
        return dataclasses.replace(self, entries=tuple(new.values()))

    def to_json(self) -> Json:
        """The document of the file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "device": self.device,
            "isa": self.isa,
            "threads": self.threads,
            "versions": dict(self.versions),
            "date": self.date,
            "entries": [entry.to_json() for entry in self.entries],
        }

    @classmethod
    def from_json(cls, value: Any) -> Machine:
        """The inverse of `to_json`; every field is checked, unknown ones are refused."""
        if not isinstance(value, dict):
            raise HardwareError(f"hardware: the file holds {type(value).__name__}, expected an object")
        version = value.get("schema_version")
        if isinstance(version, bool) or version != SCHEMA_VERSION:
            raise HardwareError(f"hardware: schema_version is {shown(version)}, expected {SCHEMA_VERSION}")
        fields = _fields("file", value, ["schema_version", *(f.name for f in dataclasses.fields(cls))])
        versions, entries = fields["versions"], fields["entries"]
        if not isinstance(versions, dict) or len(versions) > 32:
            raise HardwareError("hardware: versions is no object of at most 32 names, expected one")
        if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
            raise HardwareError(f"hardware: entries is no list of at most {MAX_ENTRIES}, expected one")
        found = tuple(Hardware.from_json(entry) for entry in entries)
        if len({entry.key for entry in found}) != len(found):
            raise HardwareError("hardware: two entries are for the same call, expected distinct ones")
        return cls(
            device=_text("device", fields["device"]),
            isa=_text("isa", fields["isa"]),
            threads=_whole("threads", fields["threads"], 1, 65536),
            versions={_text("a version", name): _text(name, text) for name, text in versions.items()},
            date=_text("date", fields["date"]),
            entries=found,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file: the old one or the new one, never a half."""
        target = file_of(path)
        return write_atomic(target.parent, target.name, layout(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Machine:
        """Reads `hardware.json`, or the folder that holds it.

        Raises:
            FileNotFoundError: there is no such file.
            HardwareError: the file is not legal; one sentence.
        """
        target = file_of(path)
        try:
            with target.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"hardware: there is no file {os.fspath(path)!r}, expected a {FILE_NAME} (sparse-vdit calibrate)"
            ) from None
        if len(data) > MAX_BYTES:
            raise HardwareError(f"hardware: the file has more than {MAX_BYTES} bytes, expected at most that")
        try:
            document = parse(data)
        except ValueError as error:
            raise HardwareError(str(error).replace("plan:", "hardware:", 1)) from None
        return cls.from_json(document)


def device_name() -> str:
    """The CPU's own name for itself."""
    cpus = Path("/proc/cpuinfo")
    for line in cpus.read_text(errors="replace").splitlines() if cpus.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()[:MAX_TEXT]
    return (platform.processor() or platform.machine() or "unknown")[:MAX_TEXT]


def _named(key: tuple[str, int, int, int]) -> str:
    return f"{key[0]}, head_dim {key[1]}, blocks {key[2]} x {key[3]}"


def _fields(what: str, value: Any, names: Sequence[str]) -> Json:
    if not isinstance(value, dict):
        raise HardwareError(f"hardware: {what} is {type(value).__name__}, expected an object")
    for name in names:
        if name not in value:
            raise HardwareError(f"hardware: {what} lacks {name!r}, expected it")
    extra = sorted(set(value) - set(names))
    if extra:
        raise HardwareError(f"hardware: {what} has the field {shown(extra[0])}, expected no such field")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise HardwareError(f"hardware: {name} is {type(value).__name__}, expected a number")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    try:
        return integer("hardware", name, value, low, high)
    except (TypeError, ValueError) as error:
        raise HardwareError(str(error)) from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise HardwareError(f"hardware: {name} is {shown(value)}, expected a text of 1..{MAX_TEXT} letters")
    return value
