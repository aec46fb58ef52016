"""A plan for a wanted PSNR: bisection over the attention time, each try judged by a few real generations.

Errors of heads do not add, so that no measured error says what PSNR a plan will have; but a slower plan of the same
search is nearly always nearer. Dense videos are made once. Next: `transfer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparse_vdit.plan import SparsePlan
from sparse_vdit.report.compare import Run
from sparse_vdit.report.metrics import psnr
from sparse_vdit.search import Sample

from .judge import run_sparse
from .source import Source

TRIES = 6
CLOSE_DB = 0.5  # above the target: near enough

PlanAt = Callable[[float], SparsePlan]
Judge = Callable[[SparsePlan], float]


@dataclass(frozen=True)
class Try:
    """One plan of a bisection: its attention time as asked for, and its PSNR (inf: equal to dense)."""

    attention_ms: float
    psnr_db: float


def to_psnr(
    target_db: float,
    judge: Judge,
    plan_at: PlanAt,
    ends: tuple[float, float],
    *,
    tries: int = TRIES,
    tell: Callable[[str], object] | None = None,
) -> tuple[SparsePlan, list[Try]]:
    """The fastest plan tried whose PSNR is at least `target_db`.

    Args:
        target_db: wanted.
        judge: PSNR of a plan, e.g. `mean_psnr(source, samples)`.
        plan_at: the plan for an attention time of a step in ms, e.g. by `search.select`.
        ends: the least and the most time that `plan_at` takes.
        tries: plans judged, at most.
        tell: told about every try.

    Raises:
        ValueError: no plan tried is near enough; the sentence says what was reached.
    """
    if not (math.isfinite(target_db) and target_db > 0):
        raise ValueError(f"verify: target_psnr is {target_db}, expected a finite number above 0")
    if not 0 < ends[0] <= ends[1] or tries < 1:
        raise ValueError(
            f"verify: the ends are {ends} and the tries {tries}, expected times that rise, 1 try"
        )
    low, high = ends
    best: SparsePlan | None = None
    made: list[Try] = []
    known: dict[str, float] = {}
    for _ in range(tries):
        middle = math.sqrt(low * high)
        plan = plan_at(middle)
        if plan.hash in known:
            break
        found = known[plan.hash] = judge(plan)
        made.append(Try(middle, found))
        if tell is not None:
            tell(f"attention {middle:.4g} ms a step: {found:.2f} dB, target {target_db:g} dB")
        if found >= target_db:
            best, high = plan, middle
            if found < target_db + CLOSE_DB:
                break
        else:
            low = middle
    if best is None:
        top = max(made, key=lambda one: one.psnr_db)
        raise ValueError(
            f"verify: the {len(made)} plans tried reach {top.psnr_db:.2f} dB at most (attention "
            f"{top.attention_ms:.4g} ms "
            f"a step of {ends[1]:.4g} dense), expected {target_db:g} dB; ask for less, or for more tries"
        )
    return best, made


def mean_psnr(source: Source, samples: Sequence[Sample]) -> Judge:
    """A judge: mean PSNR of a plan's videos against dense ones, which are made once.

    The mean is over squared errors, so that one equal video does not make it infinite.
    """
    if not samples:
        raise ValueError("verify: there are no samples, expected at least one")
    dense: dict[Sample, Run] = {}

    def judge(plan: SparsePlan) -> float:
        errors = []
        for sample in samples:
            if sample not in dense:
                dense[sample] = source.run(sample)
            found = psnr(dense[sample].video, run_sparse(source, plan, sample).video)
            errors.append(10 ** (-found / 10))
        mean = float(np.mean(errors))
        return math.inf if mean == 0 else -10 * math.log10(mean)

    return judge
