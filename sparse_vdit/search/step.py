"""What one denoising step adds: its sums, as the record of a journal and as part of a prompt's sums.

Inside a step everything is float64, added in the order of the calls; `to_bytes` rounds it once to float32, and
only what came out of `from_bytes` is added to a prompt. So a record read back counts exactly as it did when new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import integer, shown
from sparse_vdit.plan.file import canonical
from sparse_vdit.plan.identity import ModelIdentity

from .candidates import Candidates
from .head_errors import DTYPES, array_shapes
from .probe import ProbeResult

Doubles = NDArray[np.float64]
MAX_NUMBER = 2**31 - 1  # of a step, a bin, calls of a layer


def seed_of(*numbers: int) -> int:
    """A seed in 0..2^63 - 1 that depends on all of the numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Step:
    """Sums of one step over its calls (guidance branches, samples of a batch), by transformer.

    Attributes:
        number, bin: the step, and the bin of its noise level.
        sums: name -> plain, curve, energy, calls of all layers.
        stripes: name -> int32 [layers, heads, M], -1 where the layer did not attend.
        choice: name -> int32 [layers, heads], what was handed on; empty when the dense output was.
        power: name -> (mean square gradients float32 [layers, heads], directions).
    """

    def __init__(
        self,
        number: int,
        bin_: int,
        models: Mapping[str, ModelIdentity],
        candidates: Candidates,
        *,
        follows: bool = False,
    ) -> None:
        self.number, self.bin, self._models = number, bin_, models
        self.sums: dict[str, dict[str, Any]] = {}
        self.stripes: dict[str, NDArray[np.int32]] = {}
        self.choice: dict[str, NDArray[np.int32]] = {}
        self.power: dict[str, tuple[NDArray[np.float32], int]] = {}
        for name, model in models.items():
            shapes = array_shapes(model, candidates, 1)
            self.sums[name] = {
                key: np.zeros(shapes[key][1:], np.int64 if key == "calls" else np.float64)
                for key in ("plain", "curve", "energy", "calls")
            }
            self.stripes[name] = np.full(shapes["stripes"][1:], -1, dtype=np.int32)
            if follows:
                self.choice[name] = np.full((model.layers, model.heads), -1, dtype=np.int32)

    def add(self, name: str, layer: int, samples: int, result: ProbeResult) -> None:
        """One call of a layer."""
        sums = self.sums[name]
        for key in ("plain", "curve", "energy"):
            sums[key][layer] += getattr(result, key)
        sums["calls"][layer] += samples

    def choice_of(self, name: str, layer: int) -> NDArray[np.int32] | None:
        """What an earlier branch of this step decided for a layer."""
        found = self.choice[name][layer]
        return None if (found < 0).any() else found

    def set_choice(self, name: str, layer: int, choice: NDArray[np.int32]) -> None:
        """Keeps a layer's decision for the other branches and for the journal."""
        self.choice[name][layer] = choice

    def to_bytes(self) -> bytes:
        """The record: safetensors with the transformers that attended."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {}
        probes: dict[str, int] = {}
        for name, sums in self.sums.items():
            if not sums["calls"].any():
                continue
            with np.errstate(over="ignore"):
                tensors |= {f"{name}/{key}": array.astype(DTYPES[key]) for key, array in sums.items()}
            tensors[f"{name}/stripes"] = self.stripes[name]
            if name in self.choice:
                tensors[f"{name}/choice"] = self.choice[name]
            if name in self.power:
                tensors[f"{name}/power"], probes[name] = self.power[name]
        about = {"step": self.number, "bin": self.bin, "probes": probes}
        return bytes(save(tensors, {"about": canonical(about).decode("ascii")}))

    @classmethod
    def from_bytes(
        cls, data: bytes, models: Mapping[str, ModelIdentity], candidates: Candidates, bins: int
    ) -> Step:
        """The inverse of `to_bytes`; a record of other names, shapes, types or values is refused in one sentence."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
            tensors = load(data)
            number, bin_ = (integer("journal", name, about[name], 0, MAX_NUMBER) for name in ("step", "bin"))
            probes = {str(n): integer("journal", "probes", p, 1, 1024) for n, p in about["probes"].items()}
            step = cls(number, bin_, models, candidates)
        except (
            SafetensorError,
            AttributeError,
            IndexError,
            KeyError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(
                f"journal: a record cannot be read ({str(error)[:80]}), expected a step"
            ) from None
        if not 0 <= step.bin < bins:
            raise ValueError(f"journal: a record is of bin {step.bin}, expected 0..{bins - 1}")
        for name in sorted({key.partition("/")[0] for key in tensors} | probes.keys()):
            needed = ("plain", "curve", "energy", "calls", "stripes", *(["power"] if name in probes else []))
            for what in needed:
                if f"{name}/{what}" not in tensors:
                    raise ValueError(f"journal: a record is without {shown(f'{name}/{what}')}, expected it")
        for key, array in tensors.items():
            name, _, what = key.partition("/")
            step._set(name, what, array, probes, candidates)
        step.choice = {name: array for name, array in step.choice.items() if f"{name}/choice" in tensors}
        return step

    def _set(
        self, name: str, what: str, array: NDArray[Any], probes: Mapping[str, int], candidates: Candidates
    ) -> None:
        model = self._models.get(name)
        shapes = {} if model is None else array_shapes(model, candidates, 1)
        shapes.pop("probes", None)
        wanted = shapes.get("energy" if what == "choice" else what, (1, -1))[1:]
        if array.shape != wanted:
            raise ValueError(f"journal: {name}/{what} has shape {array.shape}, expected {wanted}")
        dtype = np.dtype(DTYPES.get("stripes" if what == "choice" else what, np.void))
        if array.dtype != dtype:
            raise ValueError(f"journal: {name}/{what} is {array.dtype}, expected {dtype}")
        if what == "power" and name not in probes:
            raise ValueError(f"journal: {name}/power is without its probes, expected a number of them")
        low, high = _range(what, candidates)
        if ((array < low) | (array > high)).any():
            raise ValueError(f"journal: {name}/{what} holds a number outside {low}..{high}, expected none")
        if what in ("stripes", "choice"):
            getattr(self, what)[name] = array
        elif what == "power":
            self.power[name] = (array, probes[name])
        else:
            self.sums[name][what] = array


def _range(what: str, candidates: Candidates) -> tuple[float, float]:
    """Least and greatest number of an array; sums of squares may be infinite, and NaN where an output was."""
    if what == "stripes":
        return -1, candidates.geometry.key_blocks - 1
    if what == "choice":
        return -1, len(candidates.patterns) - 1
    return 0, MAX_NUMBER if what == "calls" else np.inf


class StepSums:
    """The sums of a prompt's steps, by transformer, in float64."""

    def __init__(self, models: Mapping[str, ModelIdentity], candidates: Candidates, bins: int) -> None:
        shapes = {name: array_shapes(model, candidates, bins) for name, model in models.items()}
        self.totals: dict[str, dict[str, Doubles]] = {
            name: {key: np.zeros(found[key]) for key in ("plain", "curve", "energy")}
            for name, found in shapes.items()
        }
        self.calls = {name: np.zeros(found["calls"], np.int64) for name, found in shapes.items()}
        self.power = {name: np.zeros(found["power"]) for name, found in shapes.items()}
        self.probes = {name: np.zeros(found["probes"], np.int64) for name, found in shapes.items()}

    def add(self, step: Step) -> None:
        """Adds a step that came out of its record."""
        for name, sums in step.sums.items():
            for key, total in self.totals[name].items():
                total[step.bin] += sums[key]
            self.calls[name][step.bin] += sums["calls"]
        for name, (power, probes) in step.power.items():
            self.power[name][step.bin] += power.astype(np.float64) * probes
            self.probes[name][step.bin] += probes

    def rounded(self, name: str) -> dict[str, Any]:
        """The arrays of `HeadErrors`, stripes apart."""
        with np.errstate(over="ignore"):
            arrays: dict[str, Any] = {
                key: total.astype(np.float32) for key, total in self.totals[name].items()
            }
        probes = self.probes[name]
        mean = self.power[name] / np.maximum(probes, 1)[:, None, None]
        power = mean.astype(np.float32) if probes.any() else None
        return arrays | {"calls": self.calls[name], "power": power, "probes": probes}
