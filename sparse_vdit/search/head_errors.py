"""What every candidate costs every head in accuracy: sums over sampled query rows, per noise bin and layer.

    plain[b, l, h, c]    = sum |out_c - out_full|^2               without a remainder
    curve[b, l, h, c, i] = the same with the bias BETAS[i]         (probe.py)
    energy[b, l, h]      = sum |out_full|^2

Sums over rows, samples of a batch, guidance branches, steps and prompts, so that recordings merge by adding.
Errors do not depend on what is chosen later (unless the recorder followed its own choices): any budget is
answered from them. File: `errors_file.py`; made by `recorder.py`; read by `select.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.geometry import Json, integer, shown
from sparse_vdit.plan.file import checked_provenance
from sparse_vdit.plan.identity import ModelIdentity
from sparse_vdit.plan.transformer import checked_bins

from .candidates import Candidates
from .probe import BETAS, fit_beta

MEASURES = ("relative", "projected")
WEIGHTS = ("relative", "mse", "sensitivity")
MAX_ROWS = 2**20
MAX_BYTES = 2**32  # of all arrays of one transformer

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def array_shapes(model: ModelIdentity, candidates: Candidates, bins: int) -> dict[str, tuple[int, ...]]:
    """Shape of every array, power included."""
    cells = (bins, model.layers, model.heads)
    return {
        "plain": (*cells, candidates.count),
        "curve": (*cells, candidates.count, len(BETAS)),
        "energy": cells,
        "calls": cells[:2],
        "stripes": (*cells, candidates.stripe_blocks),
        "power": cells,
        "probes": cells[:1],
    }


DTYPES: dict[str, Any] = {
    "plain": np.float32,
    "curve": np.float32,
    "energy": np.float32,
    "calls": np.int64,
    "stripes": np.int32,
    "power": np.float32,
    "probes": np.int64,
}


@dataclass(frozen=True, eq=False)
class HeadErrors:
    """Errors of all candidates on all heads of one transformer.

    Args:
        model: what was measured.
        candidates: of which the errors are.
        bins: edges of noise level, rising from 0 to 1.
        measure: "relative": of the head's output; "projected": after its slice of the output projection.
        rows: query rows per call.
        seed: of the sampled rows.
        plain, curve, energy: float32 sums as above.
        calls: int64 [bins, layers], samples that were added (each of a batch counts).
        stripes: int32 [bins, layers, heads, M], key blocks by falling attention mass, -1 where never measured.
        power: float32 [bins, layers, heads], mean square of the model output's gradient at the head's output
            (`sensitivity.py`), or None.
        probes: int64 [bins], random directions behind `power`; 0 where none was measured.
        provenance: how it was recorded; `samples` lists the prompts.
    """

    model: ModelIdentity
    candidates: Candidates
    bins: tuple[float, ...]
    measure: str
    rows: int
    seed: int
    plain: Floats
    curve: Floats
    energy: Floats
    calls: NDArray[np.int64]
    stripes: NDArray[np.int32]
    power: Floats | None = None
    probes: NDArray[np.int64] | None = None
    provenance: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "bins", checked_bins(self.bins))
        if self.measure not in MEASURES:
            raise ValueError(
                f"errors: measure is {shown(self.measure)}, expected one of {', '.join(MEASURES)}"
            )
        put(self, "rows", integer("errors", "rows", self.rows, 1, MAX_ROWS))
        put(self, "seed", integer("errors", "seed", self.seed, 0))
        put(self, "provenance", checked_provenance(self.provenance))
        if self.probes is None:
            put(self, "probes", np.full(len(self.bins) - 1, self.power is not None, dtype=np.int64))
        shapes = array_shapes(self.model, self.candidates, len(self.bins) - 1)
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is None and name == "power":
                continue
            put(self, name, _checked(name, array, shape))
        for name in ("energy", "power"):
            array = getattr(self, name)
            if array is not None and not (np.isfinite(array).all() and (array >= 0).all()):
                raise ValueError(f"errors: {name} holds a negative or infinite number, expected finite ones")
        for name in ("plain", "curve"):
            if (getattr(self, name) < 0).any():
                raise ValueError(f"errors: {name} holds a negative number, expected sums of squares")
        for name in ("calls", "probes"):
            if (getattr(self, name) < 0).any():
                raise ValueError(f"errors: {name} holds a negative number, expected counts")
        if (self.stripes >= self.candidates.geometry.key_blocks).any() or (self.stripes < -1).any():
            raise ValueError(
                f"errors: stripes holds block {self.stripes.max(initial=0)}, "
                f"expected -1..{self.candidates.geometry.key_blocks - 1}"
            )

    @classmethod
    def empty(
        cls, model: ModelIdentity, candidates: Candidates, bins: Sequence[float], **about: Any
    ) -> HeadErrors:
        """Nothing measured yet: zeros. `about` holds measure, rows, seed, provenance."""
        shapes = array_shapes(model, candidates, len(bins) - 1)
        arrays: dict[str, Any] = {name: np.zeros(shape, DTYPES[name]) for name, shape in shapes.items()}
        arrays["stripes"] -= 1
        return cls(model, candidates, tuple(bins), **about, **(arrays | {"power": None}))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bins, layers, heads)."""
        return (len(self.bins) - 1, self.model.layers, self.model.heads)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, without an absent power."""
        found = {name: getattr(self, name) for name in DTYPES}
        return {name: array for name, array in found.items() if array is not None}

    def merge(self, other: HeadErrors) -> HeadErrors:
        """The sums of two recordings of the same model, candidates and bins.

        Raises:
            ValueError: naming what differs, or mass stripes of other blocks (record with `stripes=` of the
                first file).
        """
        return total([self, other])

    def without_empty_bins(self) -> HeadErrors:
        """Bins in which nothing was measured are joined to the next lower one (the lowest to the next)."""
        measured = [bool(row.any()) for row in self.calls]
        if all(measured) or not any(measured):
            return self
        lows = [low for low, wanted in zip(self.bins[:-1], measured, strict=True) if wanted]
        return self.rebinned((0.0, *lows[1:], 1.0))

    def rebinned(self, bins: Sequence[float]) -> HeadErrors:
        """Wider bins, exactly: sums add. Mass stripes that differ between joined bins become NaN (not allowed).

        Args:
            bins: edges, each one of `self.bins`.
        """
        edges = checked_bins(bins)
        strange = [edge for edge in edges if edge not in self.bins]
        if strange:
            raise ValueError(
                f"errors: {strange[0]} is no edge of the recorded bins, expected some of {self.bins}"
            )
        groups = [
            [n for n, low in enumerate(self.bins[:-1]) if edges[new] <= low < edges[new + 1]]
            for new in range(len(edges) - 1)
        ]
        parts = [_joined(self, group) for group in groups]
        arrays: dict[str, Any] = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        return replace(self, bins=edges, **arrays)

    def options(self) -> tuple[Floats, Floats]:
        """Relative squared errors and biases of every option.

        Returns:
            float32 [bins, layers, heads, 2 * count] twice: option 2c is candidate c plain (bias NaN), option
            2c + 1 the same with the bias of least error. An error is NaN where the option is not allowed: a
            remainder of full or skip, an output that is not finite.
        """
        self.require_calls()
        fitted, betas = fit_beta(self.plain, self.curve)
        pair = np.stack([self.plain, np.where(self.candidates.takes_remainder, fitted, np.nan)], axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = pair.reshape(*self.shape, -1) / self.energy[..., None].astype(np.float64)
        silent = (self.energy == 0)[..., None] & np.isfinite(pair.reshape(*self.shape, -1))
        errors = np.where(silent, 0.0, errors)  # a head whose output is zero is right with any candidate
        errors[~np.isfinite(errors)] = np.nan
        bias = np.full(pair.shape, np.nan)
        bias[..., 1] = np.where(self.candidates.takes_remainder, betas, np.nan)
        return errors.astype(np.float32), bias.reshape(errors.shape).astype(np.float32)

    def mean_square(self) -> Doubles:
        """Mean square error of each element of the output without remainder, float64 [.., count]: the paper's MSE.

        Raises:
            ValueError: the errors are projected ones.
        """
        self.require_calls()
        if self.measure != MEASURES[0]:
            raise ValueError(
                f"errors: these are {self.measure}, expected relative ones: the paper's error is of the heads' outputs"
            )
        elements = self.calls[..., None, None] * float(self.rows * self.model.head_dim)
        return np.asarray(self.plain / elements)

    @property
    def default_weights(self) -> str:
        """What errors are weighed by unless it is said: "sensitivity" where it was recorded, else "relative"."""
        recorded = self.power is not None and bool(np.asarray(self.probes).any())
        return "sensitivity" if recorded and self.measure == MEASURES[0] else "relative"

    def weights(self, measure: str = "relative") -> Doubles:
        """How much a relative error of each head counts, float64 [bins, layers, heads], mean 1 in every bin.

        Args:
            measure: "relative": all alike; "mse": by the energy of the head's output; "sensitivity": by that
                times how much the model's output feels it (`power`).
        """
        self.require_calls()
        if measure not in WEIGHTS:
            raise ValueError(f"errors: measure is {shown(measure)}, expected one of {', '.join(WEIGHTS)}")
        if measure == "relative":
            return np.ones(self.shape)
        felt = self.energy.astype(np.float64) / self.calls[..., None]
        if measure == "sensitivity":
            if self.measure != MEASURES[0]:
                raise ValueError(
                    f"errors: these are {self.measure}, expected relative ones (of the heads' outputs, where "
                    "sensitivity is measured); weigh them by relative or mse"
                )
            felt = felt * self._felt()
        return np.asarray(felt / np.maximum(felt.mean(axis=(1, 2), keepdims=True), 1e-300))

    def _felt(self) -> Doubles:
        """`power` in every bin: where none was measured, its logarithm lies between the neighbours' by noise level."""
        measured = np.flatnonzero(np.asarray(self.probes))
        if self.power is None or not len(measured):
            raise ValueError("errors: no bin has a sensitivity, expected a recording with power=1 or more")
        levels = (np.asarray(self.bins[:-1]) + np.asarray(self.bins[1:])) / 2
        known = np.log(np.maximum(self.power[measured].astype(np.float64), np.finfo(np.float32).tiny))
        flat = known.reshape(len(measured), -1).T
        between = np.stack([np.interp(levels, levels[measured], head) for head in flat], axis=-1)
        found: Doubles = np.exp(between).reshape(self.shape)
        found[measured] = self.power[measured]
        return found

    def require_calls(self) -> None:
        """Refuses a recording in which some layer was never measured in some bin."""
        missing = np.argwhere(self.calls == 0)
        if len(missing):
            bin_, layer = (int(number) for number in missing[0])
            raise ValueError(
                f"errors: bin {bin_} (noise {self.bins[bin_]:g}..{self.bins[bin_ + 1]:g}), layer {layer} was never "
                "measured, expected at least one step of every bin"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes `errors.safetensors` with this one transformer; a reader sees the old file or the new one."""
        from .errors_file import save

        return save(path, {"transformer": self})

    @classmethod
    def load(cls, path: str | os.PathLike[str], transformer: str | None = None) -> HeadErrors:
        """Reads one transformer of a file.

        Args:
            path: an `errors.safetensors`.
            transformer: its name, needed where the file holds two (Wan 2.2).
        """
        from .errors_file import load

        found = load(path)
        if transformer is None and len(found) == 1:
            return next(iter(found.values()))
        if transformer not in found:
            raise ValueError(
                f"errors: transformer is {shown(transformer)}, expected one of {', '.join(found)}"
            )
        return found[transformer]


def total(parts: Iterable[HeadErrors]) -> HeadErrors:
    """The sums of recordings, added in float64 in the order given and rounded once; one at a time is in memory."""
    sums: _Sums | None = None
    for part in parts:
        if sums is None:
            sums = _Sums(part)
        else:
            sums.add(part)
    if sums is None:
        raise ValueError("errors: there is nothing to merge, expected at least one recording")
    return sums.rounded()


class _Sums:
    """Running sums over recordings of one kind."""

    def __init__(self, first: HeadErrors) -> None:
        self.first, self.stripes = first, first.stripes
        self.arrays = {name: getattr(first, name).astype(np.float64) for name in ("plain", "curve", "energy")}
        self.calls, self.probes = first.calls.copy(), np.array(first.probes)
        self.power = _weighted(first)
        self.samples = list(first.provenance.get("samples", []))

    def add(self, other: HeadErrors) -> None:
        """One more.

        Raises:
            ValueError: it is of another kind, or of other mass stripes.
        """
        _refuse_others(self.first, other)
        self.stripes = _merged_stripes(self.stripes, other.stripes)
        for name, array in self.arrays.items():
            array += getattr(other, name)
        self.calls += other.calls
        self.probes += np.asarray(other.probes)
        power = _weighted(other)
        if power is not None:
            self.power = power if self.power is None else self.power + power
        self.samples += other.provenance.get("samples", [])

    def rounded(self) -> HeadErrors:
        """The recording that they make."""
        power = None
        if self.power is not None:
            power = (self.power / np.maximum(self.probes, 1)[:, None, None]).astype(np.float32)
        return replace(
            self.first,
            **{name: array.astype(np.float32) for name, array in self.arrays.items()},
            calls=self.calls,
            stripes=self.stripes,
            power=power,
            probes=self.probes,
            provenance=self.first.provenance | ({"samples": self.samples} if self.samples else {}),
        )


def _weighted(part: HeadErrors) -> Doubles | None:
    """Sums of squared gradients: power is their mean."""
    if part.power is None:
        return None
    return np.asarray(part.power.astype(np.float64) * np.asarray(part.probes)[:, None, None])


def _refuse_others(first: HeadErrors, other: HeadErrors) -> None:
    difference = first.model.difference(other.model)
    if difference:
        raise ValueError(f"errors: these are of another model: {difference}")
    if first.candidates.geometry != other.candidates.geometry:
        raise ValueError(
            f"errors: geometry is {other.candidates.geometry}, expected {first.candidates.geometry}"
        )
    if first.candidates != other.candidates:
        raise ValueError("errors: these are of other candidates, expected the same list")
    for name in ("bins", "measure", "rows"):
        if getattr(first, name) != getattr(other, name):
            raise ValueError(f"errors: {name} is {getattr(other, name)}, expected {getattr(first, name)}")


def _merged_stripes(first: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.int32]:
    differ = np.argwhere(((first != other) & (first >= 0) & (other >= 0)).any(axis=-1))
    if len(differ):
        bin_, layer, head = (int(number) for number in differ[0])
        raise ValueError(
            f"errors: the mass stripes of bin {bin_}, layer {layer}, head {head} are other blocks, "
            "expected a recording with stripes= of the first one"
        )
    return np.where(first >= 0, first, other)


def _joined(errors: HeadErrors, group: Sequence[int]) -> dict[str, Any]:
    """The arrays of one wider bin."""
    arrays = errors.arrays()
    found: dict[str, Any] = {
        name: arrays[name][list(group)].sum(axis=0, dtype=np.float64).astype(np.float32)
        for name in ("plain", "curve", "energy")
    }
    found["calls"] = errors.calls[list(group)].sum(axis=0)
    measured = [number for number in group if errors.calls[number].any()]
    stripes = errors.stripes[measured or list(group[:1])]
    same = (stripes == stripes[0]).all(axis=(0, -1))
    found["stripes"] = np.where(same[..., None], stripes[0], -1)
    first_stripe = len(errors.candidates.patterns)
    for name in ("plain", "curve"):
        found[name][~same, first_stripe:] = np.nan
    probes = np.asarray(errors.probes)[list(group)]
    found["probes"] = probes.sum()
    if errors.power is not None:
        weighted = errors.power[list(group)].astype(np.float64) * probes[:, None, None]
        found["power"] = (weighted.sum(axis=0) / max(int(probes.sum()), 1)).astype(np.float32)
    return found


def _checked(name: str, array: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype != DTYPES[name]:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"errors: {name} is {got}, expected {np.dtype(DTYPES[name])}")
    if array.shape != shape:
        raise ValueError(f"errors: {name}.shape is {array.shape}, expected {shape}")
    found = np.ascontiguousarray(array)
    if found is array and array.flags.writeable:
        found = array.view()
    found.flags.writeable = False
    return found
