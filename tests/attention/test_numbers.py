"""Hard numbers: large logits, NaN where nothing may look, values that encode their position, the log-sum-exp."""

from __future__ import annotations

import numpy as np
import pytest
from kit import attend, compare, masks

from sparse_vdit import _C, Geometry, LayerPlan, Order, Pattern, attention

pytestmark = pytest.mark.isa

GEOMETRY = Geometry(frames=4, height=5, width=9, prefix=6, suffix=13, block_q=32, block_k=16)
HEADS = [
    Pattern.full(),
    Pattern.diagonal(half_width=12),
    Pattern.multi_diagonal(half_width=2, remainder=0.5),
    Pattern.vertical_stripe(key_blocks=[2, 5], order=Order.tiles(2, 2, 3)),
]


@pytest.mark.parametrize("dtype", attend.DTYPES)
@pytest.mark.parametrize("size", [20.0, 80.0])
def test_large_logits(rng: np.random.Generator, size: float, dtype: str) -> None:
    gain = (size / 3.0) ** 0.5  # standard normal logits times gain^2 reach about 3 gain^2
    attend.check(rng, GEOMETRY, HEADS, dtype=dtype, gain=gain)


def test_logits_at_both_ends(rng: np.random.Generator) -> None:
    """Every query has logits of exactly -80 and +80; the small ones must not disturb the large ones."""
    q, k, v = attend.inputs(rng, GEOMETRY, len(HEADS))
    q[...] = 1.0
    k[...] = 10.0 * np.sign(k[..., :1])
    out = attention(q, k, v, layer=LayerPlan(GEOMETRY, HEADS))
    expected = attend.expect(q, k, v, GEOMETRY, HEADS)
    compare.assert_close_to_reference(out, expected.out, expected.naive)


def test_rising_logits(rng: np.random.Generator) -> None:
    """Each key beats all before it, so the running maximum moves all the time."""
    geometry = Geometry(frames=1, height=1, width=1500, block_q=128, block_k=16)
    q, k, v = attend.inputs(rng, geometry, 1, head_dim=16)
    q[...] = 1.0 + 0.1 * q
    k[...] = 0.1 * k + np.linspace(-10.0, 10.0, 1500, dtype=np.float32)[:, None]
    out, lse = attention(q, k, v, layer=LayerPlan(geometry, [Pattern.full()]), return_lse=True)
    ref, ref_lse = _C.attention_reference(q, k, v, None, None, 0.25)
    naive = compare.naive_attention(q, k, v, np.bool_(True), 0.25, "float32")
    compare.assert_close_to_reference(out, ref, naive)
    compare.assert_lse_close(lse, ref_lse)


def test_sums_of_a_hundred_thousand_keys(rng: np.random.Generator) -> None:
    """Running sums over many chunks stay as good as the plain formula: one query block over a whole long video."""
    geometry = Geometry(frames=25, height=50, width=80, suffix=7, block_q=16, block_k=1024)
    block_mask = np.zeros((geometry.query_blocks, geometry.key_blocks), bool)
    block_mask[0] = True
    q, k, v = attend.inputs(rng, geometry, 1, head_dim=16)
    v += 1.0  # a mean of one: errors of the sums show
    layer = LayerPlan.from_block_masks(geometry, [block_mask])
    out, lse = attention(q, k, v, layer=layer, return_lse=True)
    logits = q[0, 0, :16].astype(np.float64) @ k[0, 0].T.astype(np.float64) / 4
    weights = np.exp(logits)
    ref = weights @ v[0, 0] / weights.sum(axis=1, keepdims=True)
    assert np.abs(out[0, 0, :16] - ref).max() < 2e-5
    assert np.abs(lse[0, 0, :16] - np.log(weights.sum(axis=1))).max() < 2e-6
    assert (out[0, 0, 16:] == 0).all()


@pytest.mark.parametrize("dtype", attend.DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_poison_where_nothing_looks(rng: np.random.Generator, bad: float, dtype: str) -> None:
    """Keys and values that no query visits, and those at or beyond kv_len, may hold anything: not one bit changes."""
    block_mask = np.ones((GEOMETRY.query_blocks, GEOMETRY.key_blocks), bool)
    block_mask[:, [1, 4, 7]] = False
    orders = [Order.frame_major(), Order.token_major(), Order.tiles(2, 2, 2)]
    layer = LayerPlan.from_block_masks(GEOMETRY, [block_mask] * 3, orders=orders)
    q, k, v = attend.inputs(rng, GEOMETRY, 3, dtype=dtype)
    limit = GEOMETRY.tokens - 5
    clean = attention(q, k, v, layer=layer, kv_len=limit)
    for h, order in enumerate(orders):
        unread = ~block_mask[0, masks.places(GEOMETRY, order) // GEOMETRY.block_k]
        unread |= np.arange(GEOMETRY.tokens) >= limit
        k[0, h, unread] = bad
        v[0, h, unread] = bad
    poisoned = attention(q, k, v, layer=layer, kv_len=limit)
    assert np.isfinite(poisoned.astype(np.float32)).all()
    assert (poisoned.view(np.uint8) == clean.view(np.uint8)).all()


def test_poison_reaches_the_remainder(rng: np.random.Generator) -> None:
    """A NaN in a block that only the remainder reads spoils exactly the queries whose pseudo keys hold its mean."""
    pattern = Pattern.diagonal(half_width=0, remainder=0.0)
    q, k, v = attend.inputs(rng, GEOMETRY, 1)
    token = GEOMETRY.prefix + 100
    v[0, 0, token] = np.nan
    out = attention(q, k, v, layer=LayerPlan(GEOMETRY, [pattern]))
    assert np.isnan(out).all()  # visited by some, pooled for the others
    limited = LayerPlan(GEOMETRY, [pattern.without_remainder()])
    visits = limited.block_mask(0)[np.arange(GEOMETRY.tokens) // GEOMETRY.block_q, token // GEOMETRY.block_k]
    out = attention(q, k, v, layer=limited)
    is_nan = np.isnan(out[0, 0])
    assert (is_nan.all(axis=1) == visits).all()
    assert (is_nan.any(axis=1) == visits).all()


def test_position_coded_values(rng: np.random.Generator) -> None:
    """With equal keys the output is the mean of the visited values: token numbers in base 251, so that a block
    visited twice, left out or swapped cannot give the same answer."""
    patterns = [p.without_remainder() for p in HEADS]
    q, k, v = attend.inputs(rng, GEOMETRY, len(patterns), head_dim=8)
    k[...] = 1.0
    n = np.arange(GEOMETRY.tokens)
    v[...] = 0
    v[..., 0], v[..., 1] = n % 251, n**2 % 251
    out = attention(q, k, v, layer=LayerPlan(GEOMETRY, patterns))
    for h, pattern in enumerate(patterns):
        mask = masks.token_mask(
            GEOMETRY, masks.block_cover(GEOMETRY, pattern), masks.places(GEOMETRY, pattern.order)
        )
        means = mask @ v[0, h].astype(np.float64) / mask.sum(axis=1, keepdims=True)
        assert np.abs(out[0, h] - means).max() < 1e-3, pattern


def test_equal_blocks_make_the_remainder_exact(rng: np.random.Generator) -> None:
    """beta = 0 is exact when the keys of a block are equal and its values average out."""
    pattern = Pattern.diagonal(half_width=0, remainder=0.0)
    q, k, v = attend.inputs(rng, GEOMETRY, 1)
    block = np.arange(GEOMETRY.tokens) // GEOMETRY.block_k
    k[0, 0] = rng.standard_normal((GEOMETRY.key_blocks, k.shape[-1])).astype(np.float32)[block]
    out, lse = attention(q, k, v, layer=LayerPlan(GEOMETRY, [pattern]), return_lse=True)
    full, full_lse = attention(q, k, v, layer=LayerPlan(GEOMETRY, [Pattern.full()]), return_lse=True)
    assert np.abs(out - full).max() < 5e-6
    assert np.abs(lse - full_lse).max() < 5e-6


def test_one_key_gives_its_value_exactly(rng: np.random.Generator) -> None:
    geometry = Geometry(frames=1, height=1, width=1, block_q=16, block_k=16)
    q, k, v = attend.inputs(rng, geometry, 1)
    out, lse = attention(q, k, v, layer=LayerPlan(geometry, [Pattern.full()]), return_lse=True)
    assert (out == v).all()
    assert abs(lse[0, 0, 0] - float(q[0, 0, 0] @ k[0, 0, 0]) / 8) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_results_are_rounded_to_even(rng: np.random.Generator, dtype: str) -> None:
    """With equal keys, 8 values x and 8 of the next number above, the result lies exactly halfway: ties go to even.
    The largest number stays, infinity and NaN stay what they are."""
    geometry = Geometry(frames=1, height=1, width=16, block_q=16, block_k=16)
    q, k, v = attend.inputs(rng, geometry, 1, dtype=dtype)
    k[...] = 0
    largest, infinity, nan = (0x7BFF, 0x7C00, 0x7E00) if dtype == "float16" else (0x7F7F, 0x7F80, 0x7FC0)
    least = 0x0400 if dtype == "float16" else 0x1000  # normal, and sums of 16 stay in float32's range
    bits = rng.integers(least, largest - (0 if dtype == "float16" else 0x800), 64, dtype=np.uint16)
    v.view(np.uint16)[0, 0, :8], v.view(np.uint16)[0, 0, 8:] = bits, bits + 1
    for column, one in enumerate((infinity, nan, largest if dtype == "float16" else 0x7800)):
        v.view(np.uint16)[0, 0, :, column] = one
    out = attention(q, k, v, layer=LayerPlan(geometry, [Pattern.full()])).view(np.uint16)[0, 0]
    assert (out[:, 3:] == (bits + (bits & 1))[3:]).all()
    assert (out[:, 2] == v.view(np.uint16)[0, 0, 0, 2]).all()
    assert (out[:, 0] == infinity).all()
    assert np.isnan(out[:, 1].view(v.dtype).astype(np.float32)).all()


@pytest.mark.parametrize("scale", [0.0, -0.2, 1.0])
@pytest.mark.parametrize("dtype", attend.DTYPES)
def test_scales(rng: np.random.Generator, scale: float, dtype: str) -> None:
    q, k, v = attend.inputs(rng, GEOMETRY, 1, dtype=dtype, head_dim=16)
    out, lse = attention(q, k, v, layer=LayerPlan(GEOMETRY, [Pattern.full()]), scale=scale, return_lse=True)
    ref, ref_lse = _C.attention_reference(q, k, v, None, None, scale)
    naive = compare.naive_attention(q, k, v, np.bool_(True), scale, dtype)
    compare.assert_close_to_reference(out, ref, naive, dtype)
    compare.assert_lse_close(lse, ref_lse)


def test_outputs_are_written_whole(rng: np.random.Generator) -> None:
    """Freed memory full of NaN does not shine through: two calls in different surroundings give the same bits."""
    layer = LayerPlan(GEOMETRY, [*HEADS, Pattern.skip()])
    q, k, v = attend.inputs(rng, GEOMETRY, 5)
    first = attention(q, k, v, layer=layer)
    waste = [np.full(size, np.nan, np.float32) for size in (1000, 100_000, 3_000_000)]
    del waste
    assert (attention(q, k, v, layer=layer) == first).all()
