"""Several ways to make the same videos: same seeds, timed in turn, measured against the first way.

The ways take turns in being first, so that a machine that warms up or slows down favours none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import Fidelity, measure


@dataclass(frozen=True)
class Run:
    """One video and the time it took.

    Attributes:
        video: float32 [F, 3, H, W] in 0..1.
        seconds: Seconds of every transformer call.
        noise: Noise level of every call, 0..1.
    """

    video: np.ndarray
    seconds: tuple[float, ...]
    noise: tuple[float, ...]


@dataclass(frozen=True)
class Way:
    """All runs of one way.

    Attributes:
        runs: One per seed.
        fidelity: Distances from the reference way's video, one per seed; empty for the reference itself.
    """

    runs: tuple[Run, ...]
    fidelity: tuple[Fidelity, ...]

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds of all transformer calls."""
        return float(np.mean([second for run in self.runs for second in run.seconds]))

    @property
    def seconds_by_step(self) -> list[float]:
        """Mean seconds of each step over the seeds."""
        return [float(second) for second in np.mean([run.seconds for run in self.runs], axis=0)]

    def mean(self, name: str) -> float | None:
        """Mean of a field of `Fidelity` over the seeds; None if not measured or not finite."""
        values = [getattr(fidelity, name) for fidelity in self.fidelity]
        if not values or any(value is None for value in values):
            return None
        mean = float(np.mean(values))
        return mean if math.isfinite(mean) else None


def compare(ways: Mapping[str, Callable[[int], Run]], seeds: Sequence[int]) -> dict[str, Way]:
    """Runs every way on every seed.

    Args:
        ways: Name to a callable that makes the run of a seed; the first is the reference.
        seeds: Two or more seeds make an honest mean.

    Returns:
        A `Way` per name, in the order given.

    Raises:
        ValueError: There is no way or no seed.
    """
    names = list(ways)
    if not names or not seeds:
        raise ValueError(
            f"compare: there are {len(names)} ways and {len(seeds)} seeds, expected at least one each"
        )
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number, seed in enumerate(seeds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(ways[name](seed))
    reference = runs[names[0]]
    found = {}
    for name in names:
        pairs = zip(reference, runs[name], strict=True)
        fidelity = () if name == names[0] else tuple(measure(one.video, other.video) for one, other in pairs)
        found[name] = Way(tuple(runs[name]), fidelity)
    return found
