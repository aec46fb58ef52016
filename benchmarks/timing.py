"""How a number is made: variants take turns, round after round, and what is reported are medians over rounds.

A machine drifts (clocks, neighbours); a ratio of two times of the same round does not. So every ratio is the median
of the rounds' own ratios, never a ratio of medians taken at different times.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sparse_vdit import _C

PEAK_SECONDS = 0.02  # of the multiply-add loop per round


@dataclass
class Rounds:
    """Milliseconds of every variant and GFLOP/s of the multiply-add loop, round by round."""

    ms: dict[str, list[float]] = field(default_factory=dict)
    peak_gflops: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        return float(np.median(self.ms[name]))

    def percentile(self, name: str, percent: float) -> float:
        return float(np.percentile(self.ms[name], percent))

    def ratio(self, above: str, below: str) -> float:
        """Median over rounds of above / below."""
        return float(np.median(np.array(self.ms[above]) / np.array(self.ms[below])))

    def share_of_peak(self, name: str, flop: float) -> float:
        """Median over rounds of the variant's rate over the same round's peak."""
        rates = flop / np.array(self.ms[name]) * 1e-6
        return float(np.median(rates / np.array(self.peak_gflops)))


def once_ms(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return (clock() - start) * 1e3


def interleave(
    variants: Mapping[str, Callable[[], object]],
    budget_s: float,
    dtype: str = "float32",
    least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Runs all variants once unmeasured, then in turns until the budget is spent, `least` rounds in any case."""
    for run in variants.values():
        run()
    rounds = Rounds({name: [] for name in variants})
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + budget_s
        longest = 0.0
        while len(rounds.peak_gflops) < least or time.perf_counter() + longest < end:
            start = time.perf_counter()
            rounds.peak_gflops.append(_C.fma_peak(dtype=dtype, seconds=PEAK_SECONDS))
            for name, run in variants.items():
                rounds.ms[name].append(once_ms(run, clock))
            longest = max(longest, time.perf_counter() - start)
    finally:
        gc.enable()
    return rounds
