"""The record of a step: it comes back, and a malformed one is refused in one sentence, whatever its checksum."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from sparse_vdit import Geometry, Pattern
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search.candidates import Candidates
from sparse_vdit.search.step import Step

GEOMETRY = Geometry(frames=2, height=4, width=4, block_q=16, block_k=16)
MODELS = {"transformer": ModelIdentity("WanTransformer3DModel", layers=2, heads=3, head_dim=16)}
CANDIDATES = Candidates(GEOMETRY, (Pattern.skip(), Pattern.full()), mass_stripes=(1,))
ABOUT = {"step": 4, "bin": 1, "probes": {"transformer": 1}}


def record() -> bytes:
    step = Step(4, 1, MODELS, CANDIDATES, follows=True)
    sums = step.sums["transformer"]
    for number, key in enumerate(("plain", "curve", "energy", "calls")):
        sums[key] += number + 1
    sums["plain"][0, 0, 0], sums["plain"][0, 0, 1] = np.inf, np.nan  # an output that overflowed
    step.stripes["transformer"][:] = 1
    step.choice["transformer"][:] = 1
    step.power["transformer"] = (np.ones((2, 3), np.float32), 1)
    return step.to_bytes()


def read(data: bytes) -> Step:
    return Step.from_bytes(data, MODELS, CANDIDATES, 2)


def changed(about: Any = ABOUT, **tensors: Any) -> bytes:
    """The record with other tensors (None: without them) and another header."""
    found = load(record()) | {f"transformer/{name}": array for name, array in tensors.items()}
    kept = {name: array for name, array in found.items() if array is not None}
    return bytes(save(kept, {"about": about if isinstance(about, str) else json.dumps(about)}))


def test_it_comes_back() -> None:
    step = read(record())
    assert step.to_bytes() == record()
    assert read(changed()).to_bytes() == record()


CELLS = (2, 3)
MALFORMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "cannot be read"),
    "no safetensors": (lambda: b"\xff" * 40, "cannot be read"),
    "a header that is a list": (lambda: (2).to_bytes(8, "little") + b"[]", "cannot be read"),
    "a deep header": (lambda: changed("[" * 100_000), "cannot be read"),
    "about a list": (lambda: changed([1]), "cannot be read"),
    "no step": (lambda: changed({"bin": 1, "probes": {}}), "cannot be read"),
    "no probes": (lambda: changed({"step": 4, "bin": 1}), "cannot be read"),
    "probes a list": (lambda: changed(ABOUT | {"probes": [1]}), "cannot be read"),
    "a step of text": (lambda: changed(ABOUT | {"step": "4"}), "cannot be read"),
    "an endless step": (lambda: changed('{"step": Infinity, "bin": 1, "probes": {}}'), "cannot be read"),
    "a negative step": (lambda: changed(ABOUT | {"step": -1}), "cannot be read"),
    "another bin": (lambda: changed(ABOUT | {"bin": 2}), "is of bin 2, expected 0..1"),
    "power without probes": (lambda: changed(ABOUT | {"probes": {}}), "power is without its probes"),
    "probes without power": (lambda: changed(power=None), "is without 'transformer/power'"),
    "probes of a stranger": (lambda: changed(ABOUT | {"probes": {"x": 1}}), "is without 'x/plain'"),
    **{
        f"no {name}": (lambda name=name: changed(**{name: None}), f"is without 'transformer/{name}'")
        for name in ("plain", "curve", "energy", "calls", "stripes")
    },
    "doubles": (lambda: changed(energy=np.ones(CELLS)), "energy is float64, expected float32"),
    "short calls": (lambda: changed(calls=np.ones(2, np.int32)), "calls is int32, expected int64"),
    "a choice of floats": (lambda: changed(choice=np.ones(CELLS, "f4")), "choice is float32, expected int32"),
    "probes as a tensor": (lambda: changed(probes=np.array(1)), "probes has shape"),
    "negative sums": (lambda: changed(energy=-np.ones(CELLS, "f4")), "energy holds a number outside 0..inf"),
    "negative calls": (lambda: changed(calls=np.full(2, -1)), "calls holds a number outside"),
    "no such choice": (
        lambda: changed(choice=np.full(CELLS, 2, "i4")),
        "choice holds a number outside -1..1",
    ),
    "no such block": (
        lambda: changed(stripes=np.full((*CELLS, 1), 99, "i4")),
        "stripes holds a number outside -1..",
    ),
    "another shape": (
        lambda: changed(energy=np.ones((3, 3), "f4")),
        "energy has shape (3, 3), expected (2, 3)",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_records_are_one_sentence(what: str) -> None:
    make, sentence = MALFORMED[what]
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        read(make())
    assert str(error.value).startswith("journal: ")
    assert "\n" not in str(error.value)
