"""From clips to rows, intervals and goals: numbers alone, no model.

A row's PSNR is the mean over clips of each clip's PSNR (of the pooled squared error of the whole video). Intervals
are percentiles of the mean over resampled clips; all rows are resampled alike (paired), so that differences between
two rules have narrower intervals than the rules themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RULES = (
    "svg", "sliding_tiles", "radial", "paper", "budget", "budget_beta0", "budget_fitted", "random", "uniform",
    "permuted", "oracle", "untrained",
)  # fmt: skip
TARGETS = (1.3, 1.6, 2.0)
KEYS = (
    "rule", "target_speedup", "speedup", "density", "psnr_db", "psnr_low", "psnr_high", "ssim", "heldout_loss",
)  # fmt: skip
RESAMPLES = 10_000
OVER_OTHERS_DB = {1.3: 2.0, 1.6: 4.0, 2.0: 4.0}  # budget_fitted over the better of paper and svg
OVER_UNIFORM_DB = 1.0
SEARCH_COST = 1.1  # dense generations per calibration prompt
SPEED_SLACK = 0.05  # of the target: "equal measured time"

Row = dict[str, Any]


def resamples(clips: int) -> NDArray[np.int64]:
    """The clips of every resample, int64 [RESAMPLES, clips]; the same for every row."""
    return np.random.default_rng(0).integers(0, clips, (RESAMPLES, clips))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean over resampled clips."""
    means = np.asarray(values, float)[resamples(len(values))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def make_row(
    rule: str,
    target: float,
    density: float,
    clips: Sequence[Mapping[str, float]],
    losses: Sequence[float],
    steps: int,
) -> Row:
    """One row.

    Args:
        rule, target, density: as in the row.
        clips: psnr_db, ssim, seconds (of all transformer calls) and stock_s (of one stock call beside them).
        losses: held-out loss of each clip of its own.
        steps: transformer calls of a video.
    """
    psnr = [clip["psnr_db"] for clip in clips]
    finite = all(math.isfinite(value) for value in psnr)
    low, high = interval(psnr) if finite else (None, None)
    speeds = [steps * clip["stock_s"] / clip["seconds"] for clip in clips]
    return {
        "rule": rule,
        "target_speedup": target,
        "speedup": float(np.median(speeds)),
        "density": density,
        "psnr_db": float(np.mean(psnr)) if finite else None,
        "psnr_low": low,
        "psnr_high": high,
        "ssim": float(np.mean([clip["ssim"] for clip in clips])),
        "heldout_loss": float(np.mean(losses)),
        "psnr_clips": [value if math.isfinite(value) else None for value in psnr],
        "ssim_clips": [clip["ssim"] for clip in clips],
        "speedup_clips": speeds,
        "loss_clips": list(losses),
    }


@dataclass(frozen=True)
class Goal:
    """One goal of the project and what was measured.

    Attributes:
        name: what is asked for.
        value: what was measured; None: not measured.
        wanted: the least (or, for a cost, the most) that holds.
        low, high: 95 % paired interval of a difference.
        holds: None where it was not measured.
    """

    name: str
    value: float | None
    wanted: float
    low: float | None = None
    high: float | None = None
    holds: bool | None = None

    def __str__(self) -> str:
        said = {True: "holds ", False: "MISSED", None: "  ?   "}[self.holds]
        if self.value is None:
            return f"{said}  {self.name}: not measured (wanted {self.wanted:+.2f})"
        spread = "" if self.low is None else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{said}  {self.name}: {self.value:+.2f}{spread}, wanted {self.wanted:+.2f}"


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What the project wants of `budget_fitted`, of the controls and of the search, each with the finding."""
    table = {(row["rule"], row["target_speedup"]): row for row in rows}
    found: list[Goal] = []
    for target in sorted({row["target_speedup"] for row in rows}):
        ours = table.get(("budget_fitted", target))
        others = [table.get((rule, target)) for rule in ("paper", "svg")]
        best = None if None in others else max(others, key=lambda row: _psnr(row))
        wanted = OVER_OTHERS_DB.get(target, OVER_OTHERS_DB[2.0])
        named = (
            "the better of paper and svg" if best is None else f"{best['rule']}, the better of paper and svg"
        )
        found.append(_over(f"{target}x: budget_fitted over {named}, dB", ours, best, wanted))
        uniform = table.get(("uniform", target))
        found.append(_over(f"{target}x: budget_fitted over uniform, dB", ours, uniform, OVER_UNIFORM_DB))
        for rule in ("random", "permuted"):
            name = f"{target}x: told apart from {rule}, dB at the low end"
            found.append(_apart(name, ours, table.get((rule, target))))
    off = [abs(row["speedup"] / row["target_speedup"] - 1) for row in rows]
    worst = max(off, default=math.inf)
    found.append(
        Goal("measured speed-ups off their targets, at most", worst, SPEED_SLACK, holds=worst <= SPEED_SLACK)
    )
    cost = next((row["search_cost"] for row in rows if row.get("search_cost") is not None), None)
    holds = None if cost is None else cost <= SEARCH_COST
    found.append(Goal("search cost, dense generations per prompt, at most", cost, SEARCH_COST, holds=holds))
    return found


def _psnr(row: Row | None) -> float:
    value = None if row is None else row["psnr_db"]
    return math.inf if value is None else float(value)


def _difference(ours: Row | None, other: Row | None) -> list[float] | None:
    if ours is None or other is None:
        return None
    pairs = list(zip(ours["psnr_clips"], other["psnr_clips"], strict=True))
    if any(None in pair for pair in pairs):
        return None
    return [a - b for a, b in pairs]


def _over(name: str, ours: Row | None, other: Row | None, wanted: float) -> Goal:
    gains = _difference(ours, other)
    if gains is None:
        return Goal(name, None, wanted)
    value = float(np.mean(gains))
    return Goal(name, value, wanted, *interval(gains), holds=value >= wanted)


def _apart(name: str, ours: Row | None, other: Row | None) -> Goal:
    gains = _difference(ours, other)
    if gains is None:
        return Goal(name, None, 0.0)
    low, high = interval(gains)
    return Goal(name, low, 0.0, low, high, holds=low > 0)


# ---- for people ----


def header() -> str:
    """The table's first line."""
    return (
        f"{'rule':14} {'target':>6} {'speedup':>7} {'density':>7} {'PSNR dB':>8} {'95 %':>16} {'SSIM':>6} "
        f"{'held-out loss':>13}"
    )


def line(row: Row) -> str:
    """One row of the table."""
    psnr, spread = "equal", ""
    if row["psnr_db"] is not None:
        psnr, spread = f"{row['psnr_db']:.2f}", f"{row['psnr_low']:.2f} .. {row['psnr_high']:.2f}"
    return (
        f"{row['rule']:14} {row['target_speedup']:>6.2f} {row['speedup']:>7.3f} {row['density']:>7.3f} {psnr:>8} "
        f"{spread:>16} {row['ssim']:>6.3f} {row['heldout_loss']:>13.5f}"
    )
