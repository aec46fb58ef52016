"""hardware.json: there and back, every refusal a sentence, never half written."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from sparse_vdit.search.hardware import MAX_BYTES, NAMES, Hardware, HardwareError, Machine, device_name


def entry(head_dim: int = 64, **changed: Any) -> Hardware:
    constants = tuple(float(i + 1) for i in range(len(NAMES)))
    return dataclasses.replace(
        Hardware("avx2 f32", "float32", head_dim, 64, 32, constants, 0.01, 0.05), **changed
    )


def machine() -> Machine:
    return Machine.here([entry(), entry(128, median_error=math.nan, worst_error=math.nan)])


def test_a_clock_that_was_off_says_so() -> None:
    made = entry(median_error=0.12)
    assert made.is_doubtful
    assert made.doubt == (
        "the clock's own check is off by 12% (median), expected less than 5%: is the machine busy?"
    )
    assert not entry(median_error=0.02).is_doubtful
    assert not entry(median_error=math.nan).is_doubtful


def test_there_and_back(tmp_path: Path) -> None:
    made = machine()
    assert made.device == device_name()
    written = made.save(tmp_path / "deep" / "hardware.json")
    read = Machine.load(written)
    assert Machine.load(tmp_path / "deep") == read
    assert read.find("float32", 64, 64, 32) == entry()
    again = read.find("float32", 128, 64, 32)
    assert math.isnan(again.median_error)
    assert again.constants == entry().constants
    assert read.to_json() == made.to_json() == json.loads(written.read_text())
    assert read.difference(made) is None


def test_find_says_what_there_is() -> None:
    with pytest.raises(HardwareError) as caught:
        machine().find("float32", 96, 64, 64)
    assert str(caught.value) == (
        "hardware: there are no constants for float32, head_dim 96, blocks 64 x 64, expected one of: float32, "
        "head_dim 64, blocks 64 x 32; float32, head_dim 128, blocks 64 x 32 (sparse-vdit calibrate measures them)"
    )
    with pytest.raises(HardwareError, match="none yet"):
        Machine.here().find("float32", 64, 64, 64)


def test_new_entries_replace_old_ones() -> None:
    new = entry(worst_error=0.5)
    found = machine().with_entries([new, entry(32)])
    assert [e.head_dim for e in found.entries] == [64, 128, 32]
    assert found.find("float32", 64, 64, 32) is new


def test_other_machines_are_told_apart() -> None:
    here = machine()
    other = dataclasses.replace(here, threads=here.threads + 1)
    assert here.difference(other) == f"threads is {here.threads}, expected {here.threads + 1}"
    assert dataclasses.replace(here, device="A").difference(dataclasses.replace(here, device="B")) == (
        "device is 'A', expected 'B'"
    )


def changed(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    inner: Any = document
    for step in path[:-1]:
        inner = inner[step]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return document


FIRST = ("entries", 0)
REFUSED: list[tuple[tuple[Any, ...], Any, str]] = [
    (("schema_version",), 2, "schema_version is 2, expected 1"),
    (("schema_version",), True, "schema_version is True, expected 1"),
    (("schema_version",), KeyError, "schema_version is None, expected 1"),
    (("device",), KeyError, "file lacks 'device', expected it"),
    (("device",), "a\nb", "device is 'a\\nb', expected a text"),
    (("device",), "x" * 300, "expected a text of 1..256 letters"),
    (("color",), 1, "file has the field 'color', expected no such field"),
    (("threads",), 0, "threads is 0, expected 1..65536"),
    (("threads",), 1.5, "threads is float, expected an integer"),
    (("versions",), [], "versions is no object"),
    (("versions", "numpy"), 2, "numpy is 2, expected a text"),
    (("entries",), {}, "entries is no list"),
    (("entries",), [1], "entry is int, expected an object"),
    ((*FIRST, "head_dim"), 128, "two entries are for the same call, expected distinct ones"),
    ((*FIRST, "head_dim"), 4, "head_dim is 4, expected 8..1024"),
    ((*FIRST, "dtype"), "float64", "dtype is 'float64', expected one of float32, float16, bfloat16"),
    ((*FIRST, "block_q"), "64", "block_q is str, expected an integer"),
    ((*FIRST, "median_error"), "low", "median_error is str, expected a number"),
    ((*FIRST, "constants", "full_us"), -1.0, "full_us is -1, expected a finite number, not negative"),
    ((*FIRST, "constants", "full_us"), None, "full_us is NoneType, expected a number"),
    ((*FIRST, "constants", "full_us"), KeyError, "constants lacks 'full_us', expected it"),
    ((*FIRST, "constants", "warp_us"), 1.0, "constants has the field 'warp_us', expected no such field"),
    ((*FIRST, "constants", "workers"), 1.5, "workers is 1.5, expected a whole number"),
    ((*FIRST, "constants", "workers"), 0, "workers is 0, expected 1..65536"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), REFUSED, ids=[case[2][:40] for case in REFUSED])
def test_refusals(path: tuple[Any, ...], value: Any, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "hardware.json"
    file.write_text(json.dumps(changed(machine().to_json(), path, value)))
    with pytest.raises(HardwareError) as caught:
        Machine.load(file)
    assert str(caught.value).startswith("hardware: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "expected a JSON object"),
        (b"[]", "the file holds no object"),
        (b'{"schema_version": 1, "schema_version": 1}', "appears twice"),
        (b'{"schema_version": NaN}', "expected a finite one"),
        (b"\xff{}", "is not UTF-8"),
        (b"[" * 100, "nested 100 levels deep"),
        (b" " * (MAX_BYTES + 1), f"the file has more than {MAX_BYTES} bytes"),
    ],
)
def test_hostile_bytes(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "hardware.json").write_bytes(data)
    with pytest.raises(HardwareError) as caught:
        Machine.load(tmp_path)
    assert str(caught.value).startswith("hardware: ")
    assert sentence in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    file = machine().save(tmp_path / "hardware.json")
    data = file.read_bytes()
    for end in range(0, len(data.rstrip()) - 1, 97):
        file.write_bytes(data[:end])
        with pytest.raises(HardwareError):
            Machine.load(file)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a hardware\.json \(sparse-vdit calibrate\)"):
        Machine.load(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = machine().save(tmp_path / "hardware.json")
    before = file.read_bytes()

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Machine.here().save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hardware.json"]


def test_constants_by_name() -> None:
    found = entry().replaced(full_us=7.0, workers=3)
    assert found["full_us"] == 7.0
    assert found.workers == 3
    assert found.array.tolist() == list(found.constants)
    assert entry()["workers"] == 1
    with pytest.raises(HardwareError, match="there is no constant 'warp_us', expected one of workers"):
        entry().replaced(warp_us=1.0)
    with pytest.raises(HardwareError, match=f"there are 3 constants, expected {len(NAMES)}"):
        entry(constants=(1.0, 2.0, 3.0))
    for value in (math.nan, math.inf):
        with pytest.raises(HardwareError, match="full_us is"):
            entry().replaced(full_us=value)
