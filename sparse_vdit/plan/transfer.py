"""From one geometry to another: the same rule for more frames or larger ones.

A band keeps its reach in rows or in seconds, a stripe its place in the picture, tiles their boxes. The
result is a
proposal: its quality is unknown until it is measured. Block sizes and betas are kept. Used by
`SparsePlan.for_geometry`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.pattern import Geometry, Pattern, Window
from sparse_vdit.plan.file import PlanError

if TYPE_CHECKING:
    from sparse_vdit.plan.sparse import SparsePlan
    from sparse_vdit.plan.transformer import TransformerPlan


def transfer_pattern(pattern: Pattern, old: Geometry, new: Geometry) -> Pattern:
    """The pattern that means in `new` what `pattern` means in `old`; block sizes are the same."""
    if pattern.kind == "union":
        return replace(pattern, parts=tuple(transfer_pattern(part, old, new) for part in pattern.parts))
    if pattern.half_width is not None:
        axis = "frame_tokens" if pattern.kind == "diagonal" else "frames"
        width = scaled_width(pattern.half_width, getattr(old, axis), getattr(new, axis), new.block_k)
        return replace(pattern, half_width=width)
    if pattern.key_blocks is not None:
        return replace(pattern, key_blocks=transfer_blocks(pattern, old, new))
    if pattern.space is not None and pattern.tile is not None:
        side = pattern.tile[2]
        return replace(
            pattern, space=_scaled_window(pattern.space, -(-old.width // side), -(-new.width // side))
        )
    return pattern


def scaled_width(half_width: int, old: int, new: int, block: int) -> int:
    """half_width * new / old, rounded up to a whole block minus one (so at least block - 1)."""
    exact = -(-half_width * new // old)
    return min(-(-(exact + 1) // block) * block - 1, 2**31 - 1)


def _scaled_window(window: Window, old: int, new: int) -> Window:
    width, offset, period = window
    offset = offset // old * new if offset % old == 0 else offset
    period = period // old * new if period is not None and period % old == 0 else period
    return (width, offset, period)


def transfer_blocks(pattern: Pattern, old: Geometry, new: Geometry) -> tuple[int, ...]:
    """Key blocks of `new` of which at least half of the tokens map to a kept block of `old`."""
    order = pattern.order.to_ints()
    old_places = np.asarray(_C.places(old.to_ints(), order))
    kept = np.zeros(old.key_blocks, dtype=bool)
    kept[list(pattern.key_blocks or ())] = True
    nearest = nearest_tokens(old, new)
    hits = (nearest >= 0) & kept[old_places[np.maximum(nearest, 0)] // old.block_k]
    block = np.asarray(_C.places(new.to_ints(), order)) // new.block_k
    size = np.bincount(block, minlength=new.key_blocks)
    found = np.bincount(block, weights=hits, minlength=new.key_blocks)
    return tuple(int(number) for number in np.flatnonzero(2 * found >= size))


def nearest_tokens(old: Geometry, new: Geometry) -> NDArray[np.int64]:
    """For each sequence index of `new` the one of `old` at the nearest relative place, or -1."""
    f = nearest(old.frames, new.frames)
    r = nearest(old.height, new.height)
    c = nearest(old.width, new.width)
    video = old.prefix + (f[:, None, None] * old.height + r[:, None]) * old.width + c
    suffix = nearest(old.suffix, new.suffix)
    after = np.where(suffix < 0, -1, old.prefix + old.video_tokens + suffix)
    return np.concatenate([nearest(old.prefix, new.prefix), video.reshape(-1), after])


def nearest(old: int, new: int) -> NDArray[np.int64]:
    """Of `old` equal cells the one that holds the middle of each of `new` equal cells."""
    if old == 0:
        return np.full(new, -1, dtype=np.int64)
    return ((2 * np.arange(new, dtype=np.int64) + 1) * old) // max(2 * new, 1)


def transfer_part(part: TransformerPlan, geometry: Geometry) -> TransformerPlan:
    """Every pattern of one transformer's plan carried over; heads, layers, bins and betas as they are."""
    from sparse_vdit.plan.transformer import TransformerPlan

    if not isinstance(geometry, Geometry):
        raise TypeError(f"for_geometry: geometry is {type(geometry).__name__}, expected a Geometry")
    if not part.patterns:
        raise PlanError("plan: it holds block masks, expected patterns: controls are not carried over")
    old = part.geometry
    new = replace(geometry, block_q=old.block_q, block_k=old.block_k)
    moved = [transfer_pattern(pattern, old, new) for pattern in part.patterns]
    distinct = list(dict.fromkeys(moved))
    number = np.array([distinct.index(pattern) for pattern in moved], dtype=np.int32)
    return TransformerPlan(
        part.model, new, distinct, number[part.choice], part.betas, part.bins, part.dense_above
    )


def transfer_plan(plan: SparsePlan, geometry: Geometry) -> SparsePlan:
    """`transfer_part` for all transformers, with the densities before and after in the provenance."""
    from sparse_vdit.plan.sparse import SparsePlan

    made = {name: transfer_part(part, geometry) for name, part in plan.transformers.items()}
    result = SparsePlan(made)
    note = {
        "from_geometry": plan.geometry.to_json(),
        "from_sha256": plan.hash,
        "density_before": round(plan.density(), 6),
        "density_after": round(result.density(), 6),
        "status": "a proposal until verified",
    }
    return SparsePlan(made, plan.provenance | {"for_geometry": note})
