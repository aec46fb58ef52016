"""Why a head has the pattern it has: its options on their front of time and error, and the rule that chose.

One price of time holds for the whole plan (csrc/search/select.h). A head goes on along its hull, from fast to exact,
as long as a step lowers the plan's error by more than the price of the time it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sparse_vdit.geometry import integer
from sparse_vdit.plan import SparsePlan
from sparse_vdit.search import HeadErrors
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.decisions import sparsity
from sparse_vdit.search.front import Option, front
from sparse_vdit.search.front import why as why_of_head
from sparse_vdit.search.part import asked_of

from .request import request_of
from .transfer import chosen_options

SHOWN_LOSSES = 6
MARK = "this "


def why(
    errors: Mapping[str, HeadErrors],
    cost: Mapping[str, CostModel],
    plan: SparsePlan,
    layer: int,
    head: int,
    *,
    bin_: int | None = None,
    transformer: str | None = None,
    every: bool = False,
) -> str:
    """The options of one head and why it has its own, as text.

    Args:
        errors: the recording, by transformer.
        cost: prices, by transformer.
        plan: chosen from it.
        layer, head: which.
        bin_: noise bin; None: all of them.
        transformer: needed where there are two.
        every: all options, not just those that a budget may choose.

    Raises:
        ValueError: the plan is of other candidates, or there is no such layer, head, bin or transformer.
    """
    name = plan.names[0] if transformer is None and len(plan.names) == 1 else transformer
    if name is None or name not in plan.transformers or name not in errors:
        raise ValueError(f"explain: transformer is {transformer!r}, expected one of {', '.join(plan.names)}")
    part = plan.for_transformer(name)
    bins, layers, heads = part.shape
    integer("explain", "layer", layer, 0, layers - 1)
    integer("explain", "head", head, 0, heads - 1)
    if bin_ is not None:
        integer("explain", "bin", bin_, 0, bins - 1)
    request = request_of(plan)
    found = request.binned({name: errors[name]})[name]
    chosen = chosen_options(found, part)
    lines = []
    for number in range(bins) if bin_ is None else [bin_]:
        options = front(
            found,
            cost[name],
            number,
            layer,
            head,
            weights=request.weights,
            remainder=request.remainder,
            **request.allowed,
        )
        mine = int(chosen[number, layer, head])
        lines.append(
            f"{name}, noise level {part.bins[number]:g}..{part.bins[number + 1]:g}, layer {layer}, head {head}: "
            f"{part.pattern(number, layer, head).name}"
        )
        lines += _table(options, mine, every)
        if request.dense_above is not None and part.bins[number] >= part.dense_above:
            lines.append(
                f"  Steps above noise level {part.dense_above:g} are dense: this choice is never used."
            )
        elif request.objective == "paper":
            lines += _paper(found, plan, number, layer, head)
        else:
            lines.append("  " + why_of_head(options, mine, _price(plan)))
    return "\n".join(lines)


def _price(plan: SparsePlan) -> float | None:
    """The price of time that the plan was found at: mean error per ms."""
    asked = plan.provenance.get("asked")
    found = asked.get("found") if isinstance(asked, dict) else None
    price = found.get("price") if isinstance(found, dict) else None
    good = isinstance(price, (int, float)) and not isinstance(price, bool) and math.isfinite(price)
    return float(price) if good and price is not None else None


def _table(options: Sequence[Option], mine: int, every: bool) -> list[str]:
    lines = [f"  {'':5}{'time ms':>9} {'error':>10} {'density':>8} {'worth per ms':>13}  option"]
    for option in options:
        if not (every or option.is_on_hull or option.number == mine):
            continue
        mark = MARK if option.number == mine else " " * len(MARK)
        error = "not allowed" if math.isnan(option.error) else f"{option.error:.3g}"
        worth = f"{option.price:.3g}" if option.is_on_hull and option.price > 0 else ""
        note = (
            ""
            if option.is_on_hull or math.isnan(option.error)
            else "  (above the hull)"
            if option.is_worthwhile
            else "  (no cheaper than full)"
        )
        lines.append(
            f"  {mark}{option.time_ms:9.3f} {error:>10} {option.density:8.3f} {worth:>13}  {option}{note}"
        )
    hull = sum(option.is_on_hull for option in options)
    dear = sum(not option.is_worthwhile and not math.isnan(option.error) for option in options)
    lines.append(
        f"  {len(options)} options: {hull} on the hull, which a budget may choose; {dear} cost no less than full. "
        "Worth: how much the plan's mean error falls per ms when the head takes the next one."
    )
    return lines


def _paper(errors: HeadErrors, plan: SparsePlan, bin_: int, layer: int, head: int) -> list[str]:
    """L = MSE + lambda (1 - S) of the paper's modes, and the threshold."""
    asked = plan.provenance.get("asked")
    found = asked.get("found", {}) if isinstance(asked, dict) else {}
    penalty, threshold = float(found.get("penalty", 0.5)), float(found.get("threshold", math.inf))
    candidates, request = errors.candidates, request_of(plan)
    losses = errors.mean_square()[bin_, layer, head] + penalty * (1 - sparsity(candidates))
    losses[~asked_of(candidates, request.among, request.kinds)] = np.nan
    losses[candidates.full] = np.nan
    rows = [n for n in np.argsort(losses)[:SHOWN_LOSSES].tolist() if np.isfinite(losses[n])]
    listed = ", ".join(f"{candidates.name(n)} {losses[n]:.4g}" for n in rows)
    return [
        f"  L = MSE + {penalty:g} (1 - S), least first: {listed}.",
        f"  The least one of the modes wins if it is at most {threshold:g}, else full.",
    ]
