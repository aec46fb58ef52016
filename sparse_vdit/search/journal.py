"""An append-only journal: what was measured survives a kill at any moment, but for the record in flight.

    8 bytes magic | record | record | ...      record = length u64 | crc32 u32 of length and data | data

The first record is a JSON object that says which search it belongs to. Every append is one write and one
fsync. Opening keeps all whole records and cuts off a torn one behind them; it locks the file for this
process. What records mean is the business of `recorder.py`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from sparse_vdit.geometry import Json, shown
from sparse_vdit.plan.file import canonical

log = logging.getLogger(__name__)

MAGIC = b"SVJRNL01"
HEAD = struct.Struct("<QI")
MAX_RECORD = 2**32


class Journal:
    """One journal file, open for appending.

    Args:
        path: made if it is not there; its folder must exist.
        identity: the first record of a new journal; that of an old one must agree.

    Raises:
        ValueError: the file is no journal, or one of another search: `journal: bins is [0, 1], expected
            [0, 0.5, 1]: ...`; another process has it open.

    Attributes:
        kept: whole records found when it was opened, the identity not counted.
        cut: bytes of a torn record that were cut off.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Json) -> None:
        self.path = Path(path)
        self.kept = self.cut = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o644)
        try:
            self._lock()
            self._end, found = self._scan()
            if found is None:
                self._begin(identity)
            else:
                _compare(self.path, json.loads(found), json.loads(canonical(identity)))
        except BaseException:
            self.close()
            raise

    def records(self) -> Iterator[bytes]:
        """The whole records in the order of their appending, the identity not among them."""
        offset = len(MAGIC)
        for number in range(1 + self.kept):
            data = self._read(offset)
            assert data is not None, "the journal changed while it was locked"
            offset += HEAD.size + len(data)
            if number:
                yield data

    def append(self, data: bytes) -> None:
        """Adds a record; when this returns, it is on the disk.

        Raises:
            OSError: the disk is full or fails; the journal ends behind the record before.
        """
        if len(data) > MAX_RECORD:
            raise ValueError(f"journal: a record has {len(data)} bytes, expected at most {MAX_RECORD}")
        length = struct.pack("<Q", len(data))
        whole = memoryview(HEAD.pack(len(data), zlib.crc32(data, zlib.crc32(length))) + data)
        written = 0
        try:
            while written < len(whole):
                written += os.pwrite(self._descriptor, whole[written:], self._end + written)
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(whole)
        self.kept += 1

    def close(self) -> None:
        """Gives up the file and its lock; twice is once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Deletes the file: what it held is kept elsewhere by now."""
        self.path.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"journal: {str(self.path)!r} is in use by another process, expected one search at a time"
            ) from None

    def _scan(self) -> tuple[int, bytes | None]:
        """End of the last whole record and the identity; cuts off what is torn."""
        size = os.fstat(self._descriptor).st_size
        start = os.pread(self._descriptor, len(MAGIC), 0)
        if start != MAGIC[: len(start)]:
            raise ValueError(
                f"journal: {str(self.path)!r} begins with {start!r}, expected a journal or no file"
            )
        offset, records, identity = len(MAGIC), 0, None
        while (data := self._read(offset)) is not None:
            identity = data if identity is None else identity
            offset, records = offset + HEAD.size + len(data), records + 1
        if identity is None:  # killed before its first record was whole
            return len(MAGIC), None
        self.kept, self.cut = records - 1, size - offset
        if self.cut:
            log.warning("%s: kept %d records, cut off %d bytes of a torn one", self.path, self.kept, self.cut)
            os.ftruncate(self._descriptor, offset)
            os.fsync(self._descriptor)
        return offset, identity

    def _read(self, offset: int) -> bytes | None:
        """The record at an offset, or None where none is whole."""
        head = os.pread(self._descriptor, HEAD.size, offset)
        if len(head) < HEAD.size:
            return None
        length, stated = HEAD.unpack(head)
        if length > min(MAX_RECORD, os.fstat(self._descriptor).st_size - offset - HEAD.size):
            return None
        data = _read_exactly(self._descriptor, length, offset + HEAD.size)
        return data if zlib.crc32(data, zlib.crc32(head[:8])) == stated else None

    def _begin(self, identity: Json) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, MAGIC, 0)
        self._end = len(MAGIC)
        self.append(canonical(identity))
        self.kept = 0
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _compare(path: Path, found: Json, wanted: Json) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"journal: {name} is {shown(found.get(name))} in {path.name}, expected {shown(wanted.get(name))}: "
                "it belongs to another search; give another output file, or remove it"
            )
