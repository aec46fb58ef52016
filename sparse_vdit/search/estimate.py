"""What a search will need, said beforehand: memory, disk, and the time of the measuring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sparse_vdit.info import build_info
from sparse_vdit.plan.identity import ModelIdentity

from .candidates import Candidates
from .head_errors import DTYPES, array_shapes
from .probe import probe, sample_rows


@dataclass(frozen=True)
class Estimate:
    """What the measuring adds to the generations themselves.

    Attributes:
        options: candidates per head, each counted with and without a remainder.
        calls: attention calls that are measured (samples, over layers, steps, prompts).
        memory_bytes: arrays of the recorder; what gradients need is the model's and not counted.
        journal_bytes: of one prompt, deleted when it is done.
        file_bytes: of the finished errors file; as much again per prompt until the end.
        seconds: of all the probing, from one timed trial, and of the gradients, where a step's time was given.
        gradient_steps: steps of the model that the gradients of `power` are worth.
    """

    options: int
    calls: int
    memory_bytes: int
    journal_bytes: int
    file_bytes: int
    seconds: float
    gradient_steps: int = 0

    def __str__(self) -> str:
        gradients = f" (gradients: {self.gradient_steps} steps of the model)" if self.gradient_steps else ""
        return (
            f"{self.options} options per head, {self.calls} measured calls: about {_duration(self.seconds)}{gradients} "
            f"besides the generations, {_size(self.memory_bytes)} of memory, {_size(self.file_bytes)} per prompt "
            f"and for the result on disk, {_size(self.journal_bytes)} of journal"
        )


def estimated(
    models: Mapping[str, ModelIdentity],
    candidates: Candidates,
    bins: int,
    rows: int,
    steps: int,
    prompts: int,
    branches: int,
    gradients: int = 0,
    step_seconds: float = 0.0,
) -> Estimate:
    """As described at `Estimate`.

    Args:
        models, candidates, bins, rows, prompts, branches: as the recorder has them.
        steps: the measured ones of one generation.
        gradients: steps of the model that all gradients are worth.
        step_seconds: of a dense step of the model; 0: not known, gradients then add no seconds.
    """
    file_bytes = sum(_bytes(model, candidates, bins) for model in models.values())
    step_bytes = max(_bytes(model, candidates, 1) for model in models.values())
    layers = max(model.layers for model in models.values())
    calls = layers * steps * prompts * branches
    first = next(iter(models.values()))
    return Estimate(
        options=int(candidates.count + candidates.takes_remainder.sum()),
        calls=calls,
        memory_bytes=7 * file_bytes + 3 * step_bytes,
        journal_bytes=steps * step_bytes,
        file_bytes=file_bytes,
        seconds=calls * _seconds_per_call(first, candidates, rows) + gradients * step_seconds,
        gradient_steps=gradients,
    )


def _bytes(model: ModelIdentity, candidates: Candidates, bins: int) -> int:
    shapes = array_shapes(model, candidates, bins)
    return sum(int(np.prod(shape)) * np.dtype(DTYPES[name]).itemsize for name, shape in shapes.items())


def _seconds_per_call(model: ModelIdentity, candidates: Candidates, rows: int) -> float:
    """One probe of a few heads over random numbers, scaled to all heads."""
    heads = min(model.heads, max(1, int(build_info()["threads"])))
    shape = (1, heads, candidates.geometry.tokens, model.head_dim)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    sampled = sample_rows(candidates.geometry, rows, 0)
    stripes = np.tile(np.arange(candidates.stripe_blocks, dtype=np.int32), (heads, 1))
    start = time.perf_counter()
    probe(
        candidates, q, k, v, sampled, scale=model.head_dim**-0.5, kv_len=None,
        stripes=stripes if candidates.stripe_blocks else None,
    )  # fmt: skip
    return (time.perf_counter() - start) * model.heads / heads


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
