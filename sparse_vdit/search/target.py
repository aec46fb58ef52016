"""The fastest plan of a wanted quality: a few real generations tell how the predicted error maps to PSNR.

Errors of heads do not add, so a quality cannot be asked of `select` itself. But PSNR falls nearly linearly with the
logarithm of the predicted error (10 dB per decade if they did add), so a guarded secant in that logarithm needs few
generations, each the price of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sparse_vdit.plan.sparse import SparsePlan

START = 0.01  # a mean relative error to begin with
DECIBELS_PER_DECADE = 10.0
LEAST, MOST = 1e-9, 10.0  # of errors that are tried; skipping everything has 1
MOST_DECADES = 2.0  # of one move
PERFECT_DB = 30.0  # above the target: what an infinite PSNR counts as


@dataclass(frozen=True)
class Trial:
    """One generation: the error allowed, the plan of least time within it, and the PSNR it gave against dense."""

    max_error: float
    plan: SparsePlan
    psnr_db: float


def reach_psnr(
    make: Callable[[float], SparsePlan],
    measure: Callable[[SparsePlan], float],
    target_db: float,
    *,
    start: float = START,
    tries: int = 6,
    close_db: float = 0.3,
) -> tuple[SparsePlan, list[Trial]]:
    """The plan of largest allowed error whose measured PSNR is at least the target.

    Args:
        make: the plan of least time with at most this mean error, e.g.
            `lambda error: select(errors, cost, max_error=error, levels=levels)`.
        measure: generates with a plan and compares with dense: PSNR in dB, infinite if equal.
        target_db: wanted.
        start: the error to try first.
        tries: most generations.
        close_db: a PSNR this little above the target is near enough.

    Returns:
        The plan, and all trials in their order.

    Raises:
        ValueError: no trial reached the target: the sentence says what was reached; or PSNR is not a number.
    """
    if not math.isfinite(target_db):
        raise ValueError(f"target: the PSNR asked for is {target_db} dB, expected a finite number")
    if tries < 1 or not LEAST <= start <= MOST:
        raise ValueError(
            f"target: tries is {tries} and start {start:g}, expected at least 1 and {LEAST:g}..{MOST:g}"
        )
    trials: list[Trial] = []
    error = start
    for _ in range(tries):
        plan = make(error)
        psnr = float(measure(plan))
        if math.isnan(psnr):
            raise ValueError("target: the measured PSNR is not a number, expected decibels")
        trials.append(Trial(error, plan, psnr))
        if target_db <= psnr <= target_db + close_db:
            break
        after = _next_error(trials, target_db, close_db)
        if after is None:
            break
        error = after
    good = [trial for trial in trials if trial.psnr_db >= target_db]
    if not good:
        best = max(trials, key=lambda trial: trial.psnr_db)
        raise ValueError(
            f"target: {len(trials)} generations reached at most {best.psnr_db:.2f} dB (at an error of "
            f"{best.max_error:.2g}), expected {target_db:g} dB; try more, or start at a smaller error"
        )
    return max(good, key=lambda trial: trial.max_error).plan, trials


def _next_error(trials: list[Trial], target_db: float, close_db: float) -> float | None:
    """Where the secant through the nearest trials on both sides, else the slope so far, meets the target.

    Nothing if the two sides have met, or the end of the range was tried.
    """
    aim = target_db + close_db / 2
    points = [(math.log10(trial.max_error), min(trial.psnr_db, target_db + PERFECT_DB)) for trial in trials]
    above = max((point for point in points if point[1] >= target_db), default=None)
    below = min((point for point in points if point[1] < target_db), default=None)
    if above is not None and below is not None:
        if below[0] - above[0] < 1e-3:
            return None
        part = (above[1] - aim) / (above[1] - below[1])
        return float(10 ** (above[0] + min(max(part, 0.1), 0.9) * (below[0] - above[0])))
    at, psnr = points[-1]
    move = (psnr - aim) / _slope(points)
    found = 10 ** (at + min(max(move, -MOST_DECADES), MOST_DECADES))
    found = min(max(found, LEAST), MOST)
    return None if any(math.isclose(found, trial.max_error) for trial in trials) else float(found)


def _slope(points: list[tuple[float, float]]) -> float:
    """Decibels per decade of the last two points, kept within a factor of 4; 10 with one point."""
    if len(points) < 2 or points[-1][0] == points[-2][0]:
        return DECIBELS_PER_DECADE
    (before, high), (after, low) = points[-2:]
    found = (high - low) / (after - before)
    return min(max(found, DECIBELS_PER_DECADE / 4), 4 * DECIBELS_PER_DECADE)
