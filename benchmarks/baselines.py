"""What ours is compared with: torch's scaled_dot_product_attention and compiled FlexAttention, on the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sparse_vdit import LayerPlan

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tensors(dtype: str, heads: int, tokens: int, head_dim: int) -> tuple[Any, Any, Any]:
    """Random q, k, v [1, H, N, D]; zeros would run faster than real data."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, heads, tokens, head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(TORCH_DTYPES[dtype]) for _ in range(3))
    return q, k, v


def sdpa(q: Any, k: Any, v: Any) -> Callable[[], Any]:
    @torch.no_grad()
    def run() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return run


def flex(q: Any, k: Any, v: Any, layer: LayerPlan) -> Callable[[], Any]:
    """Compiled FlexAttention with the layer's own block mask (that of head 0, in its own order: q, k, v are random)."""
    geometry = layer.geometry
    visited = torch.from_numpy(np.ascontiguousarray(layer.block_mask(0)))
    block_q, block_k = geometry.block_q, geometry.block_k
    mask = create_block_mask(
        lambda b, h, i, j: visited[i // block_q, j // block_k],
        None,
        None,
        geometry.tokens,
        geometry.tokens,
        device="cpu",
        BLOCK_SIZE=(block_q, block_k),
    )
    compiled = torch.compile(flex_attention, dynamic=False)

    @torch.no_grad()
    def run() -> Any:
        return compiled(q, k, v, block_mask=mask)

    return run
