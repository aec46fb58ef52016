"""A stock pipeline whose SDPA is the oracle: the truth that a pipeline under a sparse plan must meet.

`mixed_plan` makes a plan with another pattern in every layer and head; `oracle(plan)` replaces
F.scaled_dot_product_attention for the calls that attend over the whole sequence, layer after layer in the
model's order, by `masks.attention`, which knows the token rules and no visit list.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kit import masks
from kit.tiny import Tiny
from sparse_vdit import Geometry, Order, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity, TransformerPlan


def geometry_of(tiny: Tiny, block: int = 16) -> Geometry:
    """The geometry of a tiny pipeline's runs."""
    return Geometry(**tiny.layout, block_q=block, block_k=block)


def layer_patterns() -> list[list[Pattern]]:
    """Two heads each: every family, orders other than frame_major, sinks, skip and full among them."""
    tile = {"tile": (2, 4, 4), "time": (1, 0, None)}
    return [
        [Pattern.diagonal(half_width=20, sink_frames=1), Pattern.multi_diagonal(half_width=12)],
        [Pattern.vertical_stripe(key_blocks=[0, 2]), Pattern.periodic_tiles(**tile, space=(1, 1, 2))],
        [
            Pattern.union(
                Pattern.multi_diagonal(half_width=4),
                Pattern.vertical_stripe(key_blocks=[1], order=Order.token_major()),
            ),
            Pattern.skip(),
        ],
        [Pattern.full(), Pattern.diagonal(half_width=0)],
    ]


def mixed_plan(
    tiny: Tiny, *, remainder: float | None = None, dense_above: float = 1.0, pipe: Any = None
) -> SparsePlan:
    """A plan that differs by layer and head, for one transformer of a tiny pipeline."""
    model = ModelIdentity.from_transformer((pipe or tiny.pipe).transformer)
    rows = layer_patterns()[: model.layers]
    patterns = list(dict.fromkeys(pattern for row in rows for pattern in row))
    choice = np.array([[[patterns.index(pattern) for pattern in row] for row in rows]])
    betas = None
    if remainder is not None:
        betas = np.array([[[remainder if p.takes_remainder else np.nan for p in row] for row in rows]])
    return SparsePlan(
        TransformerPlan(model, geometry_of(tiny), patterns, choice, betas, dense_above=dense_above)
    )


def uniform_plan(tiny: Tiny, pattern: Pattern, **options: Any) -> SparsePlan:
    """One pattern everywhere."""
    return SparsePlan.uniform(tiny.pipe.transformer, geometry_of(tiny), pattern, **options)


@contextmanager
def oracle(plan: SparsePlan) -> Iterator[list[int]]:
    """Inside, whole-sequence attention is the oracle's; yields a list of one number, the calls it took."""
    part = plan.sole
    geometry, layers = part.geometry, part.model.layers
    heads = [_masks_of(part, layer) for layer in range(layers)]
    stock = F.scaled_dot_product_attention
    calls = [0]

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not query.shape[2] == key.shape[2] == geometry.tokens:
            return stock(query, key, value, attn_mask, *args, **kwargs)
        layer = calls[0] % layers
        calls[0] += 1
        out = torch.empty_like(query)
        for b in range(query.shape[0]):
            kv_len = None if attn_mask is None else int(attn_mask[b].sum())
            for h, (block_mask, place, beta) in enumerate(heads[layer]):
                rows = [tensor[b, h].double().numpy() for tensor in (query, key, value)]
                scale = query.shape[-1] ** -0.5
                found, _ = masks.attention(*rows, geometry, block_mask, place, scale, kv_len, beta)
                out[b, h] = torch.from_numpy(found).to(out.dtype)
        return out

    F.scaled_dot_product_attention = attention
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = stock


def _masks_of(part: TransformerPlan, layer: int) -> list[tuple[Any, Any, float | None]]:
    found = []
    for head in range(part.model.heads):
        pattern = part.pattern(0, layer, head)
        block_mask = masks.block_cover(part.geometry, pattern)
        found.append((block_mask, masks.places(part.geometry, pattern.order), pattern.remainder))
    return found


def spread(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of the difference."""
    return float((a.double() - b.double()).square().mean().sqrt())


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
