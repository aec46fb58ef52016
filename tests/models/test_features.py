"""diffusers' own features with a plan: each gives what it gives without us, to the bit where we are dense.

The reference of a sparse run is the oracle: the stock pipeline with the feature, its SDPA replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, mixed_plan, oracle, spread, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern, SparsePlan, SparseVDiTError, UnsupportedError  # noqa: E402

pytestmark = pytest.mark.models

NAMES = ["cogvideox", "hunyuan_video", "wan"]
TOLERANCE = 2e-5


def check(small: tiny.Tiny, tolerance: float = TOLERANCE) -> None:
    """Stock bits under a full plan, oracle numbers under a sparse one, stock bits again after remove."""
    stock = small.run()
    with sparse_vdit.applied(small.pipe, uniform_plan(small, Pattern.full())):
        assert torch.equal(small.run(), stock)
    plan = mixed_plan(small)
    with oracle(small.pipe, plan) as calls:
        expected = small.run()
    with sparse_vdit.applied(small.pipe, plan):
        assert apart(small.run(), expected) < tolerance
        assert sparse_vdit.explain(small.pipe).sparse_calls == calls[0] > 0
    assert torch.equal(small.run(), stock)


def add_lora(transformer: Any, targets: list[str]) -> None:
    from peft import LoraConfig

    torch.manual_seed(5)
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))


@pytest.mark.parametrize("name", NAMES)
def test_lora(name: str) -> None:
    pytest.importorskip("peft")
    small = tiny.FAMILIES[name]()
    plain = small.run()
    plan = mixed_plan(small)
    sparse_vdit.apply(small.pipe, plan)
    add_lora(small.pipe.transformer, ["to_q", "to_k", "to_v", "to_out.0"])
    with_lora = small.run()
    sparse_vdit.remove(small.pipe)
    assert apart(small.run(), plain) > 1e-3
    check(small)
    with oracle(small.pipe, plan):
        assert apart(with_lora, small.run()) < TOLERANCE


def test_fused_projections_of_wan() -> None:
    small = tiny.wan()
    plan = mixed_plan(small)
    sparse_vdit.apply(small.pipe, plan)
    sparse = small.run()
    small.pipe.transformer.fuse_qkv_projections()
    assert apart(small.run(), sparse) < TOLERANCE
    sparse_vdit.remove(small.pipe)
    check(small)
    small.pipe.transformer.unfuse_qkv_projections()
    check(small)


def test_fused_projections_of_cogvideox_need_a_second_apply() -> None:
    small = tiny.cogvideox()
    transformer = small.pipe.transformer
    dense, plan = small.run(), mixed_plan(small)
    stock = [block.attn1.processor for block in transformer.transformer_blocks]
    sparse_vdit.apply(small.pipe, plan)
    sparse = small.run()

    transformer.fuse_qkv_projections()
    with pytest.raises(
        SparseVDiTError, match=r"layer 0 is FusedCogVideoXAttnProcessor2_0 since apply.*call apply"
    ):
        small.run()
    sparse_vdit.apply(small.pipe, plan)
    assert apart(small.run(), sparse) < TOLERANCE
    fused = transformer.transformer_blocks[0].attn1.processor

    transformer.unfuse_qkv_projections()  # brings back what was there before: ours, unfused
    assert transformer.transformer_blocks[0].attn1.processor is not fused
    assert torch.equal(small.run(), sparse)

    transformer.fuse_qkv_projections()
    sparse_vdit.apply(small.pipe, plan)
    sparse_vdit.remove(small.pipe)
    assert (
        type(transformer.transformer_blocks[0].attn1.processor).__name__ == "FusedCogVideoXAttnProcessor2_0"
    )
    transformer.unfuse_qkv_projections()
    assert [block.attn1.processor for block in transformer.transformer_blocks] == stock
    assert torch.equal(small.run(), dense)


def test_fusing_is_nothing_to_hunyuan_video() -> None:
    """Its attention class knows no fused projections: diffusers' own call changes nothing, ours stay."""
    small = tiny.hunyuan_video()
    plan = mixed_plan(small)
    sparse_vdit.apply(small.pipe, plan)
    sparse = small.run()
    small.pipe.transformer.fuse_qkv_projections()
    assert torch.equal(small.run(), sparse)
    sparse_vdit.remove(small.pipe)
    check(small)


def test_lora_after_unfusing_cogvideox() -> None:
    """Unfusing leaves a stale to_qkv and `fused_projections`: going by them would miss a LoRA."""
    pytest.importorskip("peft")
    small = tiny.cogvideox()
    small.pipe.transformer.fuse_qkv_projections()
    small.pipe.transformer.unfuse_qkv_projections()
    add_lora(small.pipe.transformer, ["to_q", "to_k", "to_v"])
    check(small)


@pytest.mark.parametrize("name", NAMES)
def test_layerwise_casting(name: str) -> None:
    small = tiny.FAMILIES[name]()
    small.pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    check(small)


def test_group_offload() -> None:
    small = tiny.wan()
    plan = mixed_plan(small)
    with oracle(small.pipe, plan):
        expected = small.run()
    sparse_vdit.apply(small.pipe, plan)
    options = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    try:
        small.pipe.transformer.enable_group_offload(**options, offload_type="leaf_level")
    except AttributeError:
        pytest.skip(f"diffusers {diffusers.__version__} has no group offload without an accelerator")
    assert apart(small.run(), expected) < TOLERANCE


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_pyramid_attention_broadcast(name: str, ours_first: bool) -> None:
    """Attention is skipped on some steps; steps are not counted by calls, so the later ones stay right."""
    small = tiny.FAMILIES[name]()
    small.steps = 5
    module = small.pipe.transformer

    def enable() -> None:
        module.enable_cache(
            diffusers.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(100, 950),
                spatial_attention_block_identifiers=("transformer_blocks", "blocks"),
                current_timestep_callback=lambda: small.pipe.current_timestep,
            )
        )

    both_orders(small, enable, ours_first)
    assert sparse_vdit.explain(small.pipe).notes == (
        "transformer: no plan is applied; every call is the host's own.",
    )


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_first_block_cache(name: str, ours_first: bool) -> None:
    small = tiny.FAMILIES[name]()
    small.steps = 5

    def enable() -> None:
        small.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.9))

    both_orders(small, enable, ours_first)


def both_orders(small: tiny.Tiny, enable: Callable[[], None], ours_first: bool) -> None:
    """A cache gives stock bits with a full plan and the oracle's numbers with a sparse one; it skips as much."""
    enable()
    stock = small.run()
    small.pipe.transformer.disable_cache()
    ours, full = cached(small, enable, uniform_plan(small, Pattern.full()), ours_first)
    assert torch.equal(ours, stock)
    assert full.sparse_calls == 0

    plan = mixed_plan(small, bins=(0.0, 0.75, 0.95, 1.0))
    enable()
    with oracle(small.pipe, plan) as calls:
        expected = small.run()
    small.pipe.transformer.disable_cache()
    ours, sparse = cached(small, enable, plan, ours_first)
    assert apart(ours, expected) < TOLERANCE
    assert apart(stock, expected) > 100 * TOLERANCE
    assert sparse.sparse_calls == calls.total()
    assert min(calls[2], calls[0]) > 0, (
        "the first and the last bin attend; the cache may skip all of the middle one"
    )

    forwards = small.steps * (2 if small.name == "wan" else 1)
    for taken in (calls.total(), sum(full.dense_calls.values())):
        assert 0 < taken < forwards * plan.model.layers  # the cache did skip


def cached(small: tiny.Tiny, enable: Callable[[], None], plan: SparsePlan, ours_first: bool) -> Any:
    """A run under a plan and a cache, and what `explain` says of it; both are off again after it."""
    for step in (lambda: sparse_vdit.apply(small.pipe, plan), enable)[:: 1 if ours_first else -1]:
        step()
    out, found = small.run(), sparse_vdit.explain(small.pipe)
    sparse_vdit.remove(small.pipe)
    small.pipe.transformer.disable_cache()
    return out, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str, dtype: Any) -> None:
    small = tiny.FAMILIES[name]()
    small.pipe.transformer.to(dtype)
    for key, value in small.inputs.items():
        if isinstance(value, torch.Tensor) and "mask" not in key:
            small.inputs[key] = value.to(dtype)
    plan = mixed_plan(small)
    with oracle(small.pipe, plan):
        expected = small.run()
    with sparse_vdit.applied(small.pipe, plan):
        ours = small.run()
        kernels = {layer.kernel for layer in sparse_vdit.explain(small.pipe).layers}
    assert ours.dtype == expected.dtype
    assert apart(ours, expected) < 0.05
    assert spread(small.run(), expected) > 2 * spread(ours, expected)
    assert len(kernels) == 1


def test_inputs_that_require_grad_are_refused() -> None:
    small = tiny.wan()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    latents = torch.randn(1, 16, 3, 8, 8)
    call = {"timestep": torch.tensor([500]), "encoder_hidden_states": small.inputs["prompt_embeds"]}
    with pytest.raises(UnsupportedError, match="requires grad"):
        small.pipe.transformer(latents, **call)
    with torch.inference_mode():
        small.pipe.transformer(latents, **call)
    sparse_vdit.apply(small.pipe, uniform_plan(small, Pattern.full()))
    small.pipe.transformer(latents, **call).sample.sum().backward()  # the host's own attention has a backward


def test_skipped_attention_scores_are_refused() -> None:
    layer_skip = pytest.importorskip("diffusers.hooks.layer_skip")
    small = tiny.wan()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    mode = layer_skip.AttentionScoreSkipFunctionMode()
    with pytest.raises(UnsupportedError, match="AttentionScoreSkipFunctionMode"), mode:
        small.run()


@pytest.mark.parametrize("name", NAMES)
def test_registered_with_diffusers(name: str) -> None:
    """Layer-skipping guiders look a processor's class up in diffusers' own table."""
    from diffusers.hooks._helpers import AttentionProcessorRegistry

    small = tiny.FAMILIES[name]()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    for path, processor in small.pipe.transformer.attn_processors.items():
        if type(processor).__name__.startswith("Sparse"):
            skip = AttentionProcessorRegistry.get(type(processor)).skip_processor_output_fn
            video, text = torch.zeros(1), torch.ones(1)
            expected: Any = video if name == "wan" else (video, text)
            assert skip(None, video, text) == expected, path
