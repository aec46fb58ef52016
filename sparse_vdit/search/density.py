"""The budget rule asked in density: the plan of least error among those that the clock's prices lead to.

Prices are milliseconds as everywhere in `select.py`; the time budget is moved until the plan's mean density is the one
asked for. So two plans of the same density may be compared, and the plan is still one that time would have chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_vdit.plan.sparse import SparsePlan

from .cost import CostModel
from .decisions import Decisions, Options
from .head_errors import HeadErrors

HALVINGS = 24


def at_density(
    errors: HeadErrors | Mapping[str, HeadErrors],
    cost: CostModel | Mapping[str, CostModel],
    density: float,
    *,
    dense_ms: float | None = None,
    levels: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    dense_above: float | None = None,
    weights: Any = None,
    remainder: str = "fitted",
    provenance: Mapping[str, Any] | None = None,
) -> SparsePlan:
    """The budget rule's plan whose mean density over bins, layers and heads is at most `density`.

    Args:
        errors, cost: as in `select`.
        density: more than 0, at most 1.
        dense_ms, levels, dense_above, weights, remainder: as in `select`.
        provenance: more to note down.

    Raises:
        ValueError: the sentence names the sparsest plan there is.
    """
    if not (math.isfinite(density) and 0 < density <= 1):
        raise ValueError(f"select: density is {density}, expected more than 0 and at most 1")
    decisions = Decisions(
        errors,
        cost,
        levels=levels,
        dense_above=dense_above,
        weights=weights,
        remainder=remainder,
    )
    options, found = _largest(decisions, density)
    predicted = {
        "attention_ms": decisions.play(options, dense_ms)[1],
        "dense_attention_ms": decisions.dense_attention_ms(dense_ms),
        "mean_error": decisions.mean_error(options),
    }
    note = {
        "made_by": "search.at_density",
        "asked": {"density": float(density), "remainder": remainder, "found": {"price": found["multiplier"]}},
        "weights": next(iter(decisions.parts.values())).measure,
        "predicted": {name: float(f"{value:.6g}") for name, value in predicted.items()},
    }
    return decisions.plan(options, note | dict(provenance or {}))


def _largest(decisions: Decisions, density: float) -> tuple[Options, dict[str, float]]:
    """What the largest time budget gives whose plan is no denser, by halving: density rises with it, nearly."""
    low = decisions.by_budget(math.inf, "error")[1]["time_ms"]
    high = decisions.by_budget(math.inf, "time")[1]["time_ms"]
    best = decisions.by_budget(low, "time")
    sparsest = decisions.plan(best[0]).density()
    if sparsest > density + 1e-9:
        raise ValueError(
            f"select: density is {density:g}, expected at least {sparsest:.4f} with these candidates"
        )
    made = decisions.by_budget(high, "time")
    if decisions.plan(made[0]).density() <= density + 1e-9:
        return made
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        made = decisions.by_budget(middle, "time")
        if decisions.plan(made[0]).density() <= density + 1e-9:
            low, best = middle, made
        else:
            high = middle
    return best
