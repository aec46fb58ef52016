"""The journal: whatever moment it was cut at, all whole records before it come back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from sparse_vdit.search import journal as module
from sparse_vdit.search.journal import HEAD, MAGIC, Journal

IDENTITY = {"search": "abc", "bins": [0, 0.5, 1]}


def filled(path: Path, records: list[bytes]) -> bytes:
    with Journal(path, IDENTITY) as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes()


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    records = [b"", b"one", bytes(range(256)) * 1000, b"x"]
    filled(path, records[:2])
    with Journal(path, IDENTITY) as journal:
        assert journal.kept == 2
        assert list(journal.records()) == records[:2]
        for record in records[2:]:
            journal.append(record)
        assert list(journal.records()) == records
        assert journal.cut == 0
    with Journal(path, IDENTITY) as journal:
        assert list(journal.records()) == records
        journal.remove()
    assert not path.exists()


def test_cut_anywhere(tmp_path: Path) -> None:
    """Every prefix of a journal opens with its whole records and takes new ones behind them."""
    records = [b"first", b"", b"the third one"]
    whole = filled(tmp_path / "whole.journal", records)
    ends = [len(whole)]
    for record in reversed(records):
        ends.insert(0, ends[0] - HEAD.size - len(record))
    path = tmp_path / "cut.journal"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends[1:])
        with Journal(path, IDENTITY) as journal:
            assert journal.kept == kept, length
            assert list(journal.records()) == records[:kept]
            journal.append(b"new")
            assert list(journal.records()) == [*records[:kept], b"new"]
        with Journal(path, IDENTITY) as journal:
            assert list(journal.records()) == [*records[:kept], b"new"]
        path.unlink()


def test_damage_ends_the_journal_there(tmp_path: Path) -> None:
    """Any changed byte of a record, its head included, costs that record and those behind it, no more."""
    records = [b"first record", b"second record"]
    path = tmp_path / "a.journal"
    whole = filled(path, records)
    second = len(whole) - HEAD.size - len(records[1])
    for place in range(second, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        with Journal(path, IDENTITY) as journal:
            assert list(journal.records()) == records[:1], place
            assert journal.cut == len(whole) - second
        assert path.read_bytes() == whole[:second]


def test_random_tails_are_cut(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.journal"
    whole = filled(path, [b"one", b"two"])
    for _ in range(40):
        path.write_bytes(whole + rng.bytes(int(rng.integers(1, 64))))
        with Journal(path, IDENTITY) as journal:
            assert list(journal.records()) == [b"one", b"two"]


def test_a_promise_of_a_huge_record_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    whole = filled(path, [b"one"])
    path.write_bytes(whole + HEAD.pack(2**62, 0) + b"abc")
    with Journal(path, IDENTITY) as journal:
        assert list(journal.records()) == [b"one"]


def test_strangers_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(b"a letter to my aunt")
    with pytest.raises(
        ValueError, match=r"journal: .*a.journal' begins with b'a letter', expected a journal"
    ):
        Journal(path, IDENTITY)
    assert path.read_bytes() == b"a letter to my aunt"
    path.unlink()
    whole = filled(path, [b"one"])
    with pytest.raises(
        ValueError,
        match=r"journal: bins is \[0, 0.5, 1\] in a.journal, expected \[0, 1\]: it belongs to another",
    ):
        Journal(path, IDENTITY | {"bins": [0, 1]})
    with pytest.raises(ValueError, match=r"journal: note is None in a.journal, expected 'x'"):
        Journal(path, IDENTITY | {"note": "x"})
    assert path.read_bytes() == whole
    link = tmp_path / "link.journal"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        Journal(link, IDENTITY)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with (
        Journal(path, IDENTITY),
        pytest.raises(ValueError, match="is in use by another process, expected one search at a time"),
    ):
        Journal(path, IDENTITY)
    Journal(path, IDENTITY).close()


def test_a_full_disk_loses_only_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.journal"
    real = os.pwrite
    calls = []

    def full(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(len(data))
        if len(calls) % 2 == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2], offset)

    with Journal(path, IDENTITY) as journal:
        journal.append(b"one")
        monkeypatch.setattr(module.os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append(b"lost" * 100)
        monkeypatch.undo()
        journal.append(b"two")
        assert list(journal.records()) == [b"one", b"two"]
    with Journal(path, IDENTITY) as journal:
        assert (list(journal.records()), journal.cut) == ([b"one", b"two"], 0)


def test_every_append_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    write, sync = os.pwrite, os.fsync

    def written(*arguments: object) -> int:
        events.append("write")
        return write(*arguments)  # type: ignore[arg-type]

    def synced(descriptor: int) -> None:
        events.append("sync")
        sync(descriptor)

    with Journal(tmp_path / "a.journal", IDENTITY) as journal:
        monkeypatch.setattr(module.os, "pwrite", written)
        monkeypatch.setattr(module.os, "fsync", synced)
        journal.append(b"one")
        journal.append(b"two")
    assert events == ["write", "sync", "write", "sync"]
    assert (tmp_path / "a.journal").read_bytes().startswith(MAGIC)
