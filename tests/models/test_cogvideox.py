"""CogVideoX's variants: without rotary embedding (2B), autocast, FasterCache's halved batches."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, mixed_plan, oracle, spread, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402

pytestmark = pytest.mark.models


def test_without_rotary_embedding() -> None:
    small = tiny.cogvideox(use_rotary_positional_embeddings=False)
    stock, plan = small.run(), mixed_plan(small)
    with sparse_vdit.applied(small.pipe, uniform_plan(small, Pattern.full())):
        assert torch.equal(small.run(), stock)
    with oracle(small.pipe, plan):
        expected = small.run()
    with sparse_vdit.applied(small.pipe, plan):
        assert apart(small.run(), expected) < 2e-5


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video", "wan"])
def test_autocast(name: str) -> None:
    """SDPA gets bfloat16 under autocast, whatever the layer norms return; so does the kernel."""
    small = tiny.FAMILIES[name]()
    plan = mixed_plan(small)
    with torch.autocast("cpu", torch.bfloat16):
        stock = small.run()
        with oracle(small.pipe, plan):
            expected = small.run()
        with sparse_vdit.applied(small.pipe, uniform_plan(small, Pattern.full())):
            assert torch.equal(small.run(), stock)
        with sparse_vdit.applied(small.pipe, plan):
            ours = small.run()
            assert sparse_vdit.explain(small.pipe).sparse_calls > 0
    assert apart(ours, expected) < 0.05
    assert spread(stock, expected) > 2 * spread(ours, expected)


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video"])
def test_faster_cache(name: str) -> None:
    """It may halve the batch inside the transformer and skips attention on some steps."""
    small = tiny.FAMILIES[name]()
    small.steps = 6
    transformer = small.pipe.transformer

    def enable() -> None:
        transformer.enable_cache(
            diffusers.FasterCacheConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, 950),
                spatial_attention_block_identifiers=("transformer_blocks",),
                unconditional_batch_skip_range=2,
                unconditional_batch_timestep_skip_range=(-1, 1001),
                attention_weight_callback=lambda module: 0.3,
                is_guidance_distilled=name == "hunyuan_video",
                tensor_format="BFCHW" if name == "cogvideox" else "BCFHW",
                current_timestep_callback=lambda: small.pipe.current_timestep,
            )
        )

    enable()
    stock = small.run()
    transformer.disable_cache()
    for plan in (uniform_plan(small, Pattern.full()), mixed_plan(small)):
        sparse_vdit.apply(small.pipe, plan)
        enable()
        ours = small.run()
        found = sparse_vdit.explain(small.pipe)
        transformer.disable_cache()
        sparse_vdit.remove(small.pipe)
        assert 0 < found.sparse_calls + sum(found.dense_calls.values()) < small.steps * plan.model.layers
        assert torch.equal(ours, stock) == (found.sparse_calls == 0)
