"""The seven patterns against the masks of the definitions: dtypes, orders, ragged sizes, other tokens, remainder."""

from __future__ import annotations

import numpy as np
import pytest
from kit import attend

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, attention

pytestmark = pytest.mark.isa

# Video of 4 x 6 x 8 = 192 tokens: a multiple of the block of 32, with other tokens one more, one less, before, after.
GEOMETRIES = {
    "whole": Geometry(frames=4, height=6, width=8, block_q=32, block_k=32),
    "one_more": Geometry(frames=4, height=6, width=8, suffix=1, block_q=32, block_k=32),
    "one_less": Geometry(frames=1, height=1, width=191, block_q=32, block_k=32),
    "smaller_than_a_block": Geometry(frames=2, height=3, width=3, block_q=32, block_k=64),
    "text_before": Geometry(frames=4, height=6, width=8, prefix=19, block_q=48, block_k=16),
    "text_after": Geometry(frames=4, height=6, width=8, suffix=21, block_q=16, block_k=48),
    "text_around": Geometry(frames=5, height=5, width=7, prefix=7, suffix=10, block_q=64, block_k=32),
}


def patterns_of(name: str, remainder: float | None) -> list[Pattern]:
    """Heads of one family: each order it may have, sinks where it takes them."""
    r = {"remainder": remainder}
    bands = [Pattern.diagonal(half_width=20), Pattern.multi_diagonal(half_width=2)]
    return {
        "full": [Pattern.full()],
        "skip": [Pattern.skip(), Pattern.full()],
        "diagonal": [
            Pattern.diagonal(half_width=w, sink_frames=s, **r) for w, s in ((0, 0), (20, 0), (9, 1))
        ],
        "multi_diagonal": [Pattern.multi_diagonal(half_width=w, **r) for w in (0, 3, 30)],
        "vertical_stripe": [
            Pattern.vertical_stripe(key_blocks=[], **r),
            Pattern.vertical_stripe(key_blocks=[0], order=Order.token_major(), **r),
            Pattern.vertical_stripe(key_blocks=[0], order=Order.tiles(2, 3, 3), sink_frames=1, **r),
        ],
        "periodic_tiles": [
            Pattern.periodic_tiles(tile=(2, 3, 4), time=(1, 0, None), space=(1, 0, 2), **r),
            Pattern.periodic_tiles(
                tile=(1, 2, 3), time=(2, 0, None), rows=(1, 0, None), columns=(1, 1, 2), **r
            ),
            Pattern.periodic_tiles(tile=(3, 9, 9), time=(1, 1, None), space=(1, 0, None), sink_frames=1, **r),
        ],
        "union": [
            Pattern.union(bands[0], Pattern.vertical_stripe(key_blocks=[0]), **r),
            Pattern.union(bands[1], Pattern.vertical_stripe(key_blocks=[0], order=Order.token_major()), **r),
        ],
    }[name]


NAMES = ("full", "skip", "diagonal", "multi_diagonal", "vertical_stripe", "periodic_tiles", "union")
TAKING_REMAINDER = NAMES[2:]


@pytest.mark.parametrize("where", GEOMETRIES)
@pytest.mark.parametrize("name", NAMES)
def test_float32(rng: np.random.Generator, name: str, where: str) -> None:
    attend.check(rng, GEOMETRIES[where], patterns_of(name, None))


@pytest.mark.parametrize("where", GEOMETRIES)
@pytest.mark.parametrize("name", TAKING_REMAINDER)
def test_float32_remainder(rng: np.random.Generator, name: str, where: str) -> None:
    attend.check(rng, GEOMETRIES[where], patterns_of(name, 0.75))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("remainder", [None, -1.5])
@pytest.mark.parametrize("name", TAKING_REMAINDER)
def test_short_floats(rng: np.random.Generator, name: str, remainder: float | None, dtype: str) -> None:
    attend.check(rng, GEOMETRIES["text_around"], patterns_of(name, remainder), dtype=dtype)


@pytest.mark.parametrize("dtype", attend.DTYPES)
@pytest.mark.parametrize("name", TAKING_REMAINDER)
def test_key_limit(rng: np.random.Generator, name: str, dtype: str) -> None:
    """kv_len cuts the tail of each sample by its own length, and the means of blocks with it."""
    geometry = GEOMETRIES["text_after"]
    patterns = patterns_of(name, 0.5) + patterns_of(name, None)
    video = geometry.tokens - geometry.suffix
    attend.check(rng, geometry, patterns, dtype=dtype, kv_len=[video, geometry.tokens, video + 5])


@pytest.mark.parametrize("head_dim", [8, 24, 72, 128, 200, 256])
@pytest.mark.parametrize("dtype", attend.DTYPES)
def test_head_dims(rng: np.random.Generator, head_dim: int, dtype: str) -> None:
    patterns = patterns_of("diagonal", 0.0) + patterns_of("multi_diagonal", None)
    attend.check(rng, GEOMETRIES["text_around"], patterns, dtype=dtype, head_dim=head_dim)


def test_mixed_heads_and_batch(rng: np.random.Generator) -> None:
    """All families in one call; no head sees another's order or list."""
    patterns = [p for name in NAMES for p in patterns_of(name, 0.3)]
    geometry = GEOMETRIES["text_around"]
    attend.check(rng, geometry, patterns, kv_len=[geometry.tokens] * 2)


@pytest.mark.parametrize("name", TAKING_REMAINDER)
def test_full_cover_with_remainder_is_full(rng: np.random.Generator, name: str) -> None:
    """Nothing is unvisited, so nothing is pooled: the same bits as full attention in the same order."""
    geometry = GEOMETRIES["text_around"]
    wide = {
        "diagonal": Pattern.diagonal(half_width=500, remainder=2.0),
        "multi_diagonal": Pattern.multi_diagonal(half_width=500, remainder=2.0),
        "vertical_stripe": Pattern.vertical_stripe(key_blocks=range(geometry.key_blocks), remainder=2.0),
        "periodic_tiles": Pattern.periodic_tiles(
            tile=(1, 2, 2), time=(9, 0, None), space=(99, 0, None), remainder=2.0
        ),
        "union": Pattern.union(
            Pattern.diagonal(half_width=500), Pattern.diagonal(half_width=3), remainder=2.0
        ),
    }[name]
    q, k, v = attend.inputs(rng, geometry, 1)
    out = attention(q, k, v, layer=LayerPlan(geometry, [wide]))
    plain = attention(q, k, v, layer=LayerPlan(geometry, [wide.without_remainder()]))
    full = attention(q, k, v, layer=LayerPlan(geometry, [Pattern.full()]))
    assert (out == plain).all()
    assert np.abs(out - full).max() < 2e-6


def test_skipped_heads(rng: np.random.Generator) -> None:
    geometry = GEOMETRIES["text_around"]
    q, k, v = attend.inputs(rng, geometry, 2)
    out, lse = attention(q, k, v, layer=LayerPlan(geometry, [Pattern.skip()] * 2), return_lse=True)
    assert (out == 0).all()
    assert not np.signbit(out).any()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("video", range(1, 52, 5))
def test_every_tail(rng: np.random.Generator, video: int) -> None:
    """Lengths around the panels of 16 keys and the strips of query rows."""
    geometry = Geometry(frames=1, height=1, width=video, block_q=16, block_k=16)
    patterns = [
        Pattern.full(),
        Pattern.diagonal(half_width=3, remainder=0.1),
        Pattern.multi_diagonal(half_width=1),
    ]
    attend.check(rng, geometry, patterns)
