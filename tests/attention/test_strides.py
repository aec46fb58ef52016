"""Layouts without copies: [B, N, H, D], slices, steps, reversed and repeated axes; inputs stay as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kit import attend

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, attention

pytestmark = pytest.mark.isa

GEOMETRY = Geometry(frames=3, height=5, width=7, prefix=4, suffix=6, block_q=32, block_k=16)
PATTERNS = [
    Pattern.diagonal(half_width=9, remainder=0.5),
    Pattern.multi_diagonal(half_width=1),
    Pattern.vertical_stripe(key_blocks=[3], order=Order.tiles(2, 2, 2)),
    Pattern.full(),
]
LAYER = LayerPlan(GEOMETRY, PATTERNS)


def same(views: tuple[Any, Any, Any]) -> None:
    before = [x.copy() for x in views]
    expected = attention(*(np.ascontiguousarray(x) for x in views), layer=LAYER)
    got = attention(*views, layer=LAYER)
    assert (got.view(np.uint8) == expected.view(np.uint8)).all()
    assert all(
        (x.view(np.uint8) == y.view(np.uint8)).all() for x, y in zip(map(np.ascontiguousarray, views), before)
    )


@pytest.mark.parametrize("dtype", attend.DTYPES)
def test_heads_inside(rng: np.random.Generator, dtype: str) -> None:
    """[B, N, H, D] memory."""
    q, k, v = attend.inputs(rng, GEOMETRY, 4, batch=2, dtype=dtype)
    same(tuple(np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)))


def test_packed_qkv(rng: np.random.Generator) -> None:
    """One [B, N, 3, H, D] buffer, as a fused projection leaves it."""
    shape = (2, GEOMETRY.tokens, 3, 4, 32)
    packed = rng.standard_normal(shape).astype(np.float32)
    same(tuple(packed[:, :, i].swapaxes(1, 2) for i in range(3)))


def test_slices_and_steps(rng: np.random.Generator) -> None:
    wide = rng.standard_normal((2, 9, 2 * GEOMETRY.tokens + 1, 80)).astype(np.float32)
    q, k, v = (
        wide[:, 1:5, 1::2, 8:40],
        wide[:, 2::2, : GEOMETRY.tokens, 5:37],
        wide[:, 4:8, ::-2, 3:35][:, :, :-1],
    )
    same((q[:, :4, : GEOMETRY.tokens], k[:, :4], v[:, :4, : GEOMETRY.tokens]))


def test_repeated_axes(rng: np.random.Generator) -> None:
    """One key head for all query heads, one sample for the whole batch: strides of 0."""
    q, k, v = attend.inputs(rng, GEOMETRY, 4, batch=3)
    same((q, np.broadcast_to(k[:, :1], k.shape), np.broadcast_to(v[:1], v.shape)))


def test_read_only_and_shared_inputs(rng: np.random.Generator) -> None:
    q, _, _ = attend.inputs(rng, GEOMETRY, 4)
    q.flags.writeable = False
    same((q, q, q))


def test_no_samples() -> None:
    q = np.ones((0, 4, GEOMETRY.tokens, 32), np.float32)
    out, lse = attention(q, q, q, layer=LAYER, return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == q.shape[:3]
