"""Which steps of a generation are measured: read from the pipeline's scheduler once it has its timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

TRAIN_TIMESTEPS = 1000  # where a scheduler does not say


@dataclass(frozen=True)
class Schedule:
    """Noise levels of all steps, in their order."""

    levels: tuple[float, ...]

    def steps_of(self, bins: Sequence[float], bin_: int) -> list[int]:
        """The steps whose noise level lies in a bin."""
        edges = np.searchsorted(np.asarray(bins), np.asarray(self.levels), side="right") - 1
        return [step for step, found in enumerate(np.minimum(edges, len(bins) - 2)) if found == bin_]

    def listened(self, bins: Sequence[float], listen: int | None) -> frozenset[int]:
        """The measured steps: in every bin at most `listen`, evenly spread."""
        return _listened(self, tuple(bins), listen)

    def middle(self, bins: Sequence[float], bin_: int, listen: int | None) -> int | None:
        """The middle one of the measured steps of a bin."""
        heard = self.listened(bins, listen)
        inside = [step for step in self.steps_of(bins, bin_) if step in heard]
        return inside[len(inside) // 2] if inside else None

    def felt(self, bins: Sequence[float], count: int, listen: int | None) -> list[int]:
        """At most `count` of the bins that hold measured steps: the lowest, the highest, evenly spread between."""
        held = [bin_ for bin_ in range(len(bins) - 1) if self.middle(bins, bin_, listen) is not None]
        if count == 1:
            return held[len(held) // 2 :][:1]
        return sorted({held[round(place)] for place in np.linspace(0, len(held) - 1, min(count, len(held)))})


@lru_cache(maxsize=8)
def _listened(schedule: Schedule, bins: tuple[float, ...], listen: int | None) -> frozenset[int]:
    found: set[int] = set()
    for bin_ in range(len(bins) - 1):
        steps = schedule.steps_of(bins, bin_)
        count = len(steps) if listen is None else min(listen, len(steps))
        found |= {steps[(2 * i + 1) * len(steps) // (2 * count)] for i in range(count)}
    return frozenset(found)


def schedule_of(pipe: Any) -> Schedule | None:
    """The schedule of a pipeline that has begun to generate; None where there is no scheduler to ask."""
    scheduler = getattr(pipe, "scheduler", None)
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or not len(timesteps):
        return None
    train = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or TRAIN_TIMESTEPS
    return Schedule(tuple(float(value) / float(train) for value in timesteps.tolist()))
