"""The bisection for a PSNR against made-up relations between predicted error and PSNR."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sparse_vdit.search.target import reach_psnr


def run(psnr_of: Any, target: float, **more: Any) -> tuple[float, list[float]]:
    """The error chosen and all errors tried; plans stand for their own allowed error."""
    plan, trials = reach_psnr(lambda error: error, psnr_of, target, **more)  # type: ignore[arg-type, return-value]
    assert [trial.plan for trial in trials] == [trial.max_error for trial in trials]
    return plan, [trial.max_error for trial in trials]  # type: ignore[return-value]


@pytest.mark.parametrize("slope", [4.0, 7.0, 10.0, 14.0])
@pytest.mark.parametrize("target", [18.0, 25.0, 40.0])
def test_few_generations_reach_any_straight_relation(slope: float, target: float) -> None:
    def psnr_of(error: float) -> float:
        return 5 - slope * math.log10(error)

    found, tried = run(psnr_of, target, tries=8)
    assert target <= psnr_of(found) <= target + 0.6
    assert len(tried) <= 8
    assert found == max(error for error in tried if psnr_of(error) >= target)


def test_bent_and_noisy_relations_stay_on_the_safe_side() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        bend, noise = rng.uniform(0, 2), rng.uniform(0, 0.5, 64)

        def psnr_of(error: float, bend: float = bend, noise: Any = noise) -> float:
            x = -math.log10(error)
            return 8 + 6 * x + bend * x * x + float(noise[int(abs(x) * 7) % 64])

        found, tried = run(psnr_of, 27.0, tries=10)
        assert psnr_of(found) >= 27.0
        assert all(psnr_of(error) < 27.0 for error in tried if error > found)


def test_the_first_hit_ends_it_and_a_dense_plan_counts_as_perfect() -> None:
    assert run(lambda error: 30.1, 30.0) == (0.01, [0.01])
    found, tried = run(lambda error: math.inf if error < 0.1 else 20.0, 30.0)
    assert found < 0.1
    assert len(tried) == 6


def test_everything_good_ends_at_the_largest_error() -> None:
    found, tried = run(lambda error: 99.0, 30.0, tries=20)
    assert found == 10.0
    assert len(tried) < 6


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"3 generations reached at most 12\.00 dB .*, expected 30 dB"):
        run(lambda error: 12.0, 30.0, tries=3)
    with pytest.raises(ValueError, match="the measured PSNR is not a number"):
        run(lambda error: math.nan, 30.0)
    with pytest.raises(ValueError, match="the PSNR asked for is inf dB"):
        run(lambda error: 1.0, math.inf)
    with pytest.raises(ValueError, match="tries is 0"):
        run(lambda error: 1.0, 30.0, tries=0)
