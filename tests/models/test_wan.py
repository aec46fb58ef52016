"""Wan's variants: image keys in cross-attention, timesteps per token, two experts on one clock."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, mixed_plan, oracle, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402

pytestmark = pytest.mark.models


def test_image_keys_of_cross_attention_are_untouched() -> None:
    """Wan 2.1 image-to-video: text and image keys, split at a length that the model hard-codes."""
    small = tiny.wan(image_dim=24, added_kv_proj_dim=128, in_channels=20)
    transformer = small.pipe.transformer
    cross = [block.attn2.processor for block in transformer.blocks]
    call = {
        "hidden_states": torch.randn(1, 20, 3, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 512, 32),
        "encoder_hidden_states_image": torch.randn(1, 7, 24),
        "return_dict": False,
    }
    plan = mixed_plan(small)
    with torch.no_grad():
        stock = transformer(**call)[0]
        with oracle(small.pipe, plan) as calls:
            expected = transformer(**call)[0]
        assert calls[0] == 3
        with sparse_vdit.applied(transformer, uniform_plan(small, Pattern.full())):
            assert torch.equal(transformer(**call)[0], stock)
        with sparse_vdit.applied(transformer, plan):
            assert all(block.attn2.processor is p for block, p in zip(transformer.blocks, cross, strict=True))
            assert apart(transformer(**call)[0], expected) < 2e-5


def test_timesteps_per_token() -> None:
    """Wan 2.2 TI2V hands a timestep to every token."""
    small = tiny.wan()
    pipe = small.pipe
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    small.pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=pipe.transformer,
        transformer_2=None,
        scheduler=scheduler,
        expand_timesteps=True,
    )
    small.pipe.set_progress_bar_config(disable=True)
    shapes: list[Any] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["timestep"].dim()), with_kwargs=True
    )
    plan = mixed_plan(small, dense_above=0.95)
    sparse_vdit.apply(small.pipe, plan)
    small.run(num_inference_steps=3)
    assert set(shapes) == {2}
    found = sparse_vdit.explain(small.pipe)
    assert found.dense_calls == {"dense warm-up": 3 * 2}
    assert found.sparse_calls == 3 * 2 * 2


def test_two_experts_share_a_clock() -> None:
    """Warm-up by noise level spans both experts, and steps are numbered through."""
    small = tiny.wan(2)
    seen: dict[int, set[int]] = {}
    owners = {id(small.pipe.transformer): 1, id(small.pipe.transformer_2): 2}
    running: list[int] = []
    for module in (small.pipe.transformer, small.pipe.transformer_2):
        module.register_forward_pre_hook(lambda module, args: running.append(owners[id(module)]))

    def note(step: int, *rest: Any) -> None:
        seen.setdefault(running[-1], set()).add(step)

    with sparse_vdit.observe(small.pipe, note):
        small.run()
    assert seen[1] | seen[2] == {0, 1, 2, 3}
    assert not seen[1] & seen[2]
    assert max(seen[1]) < min(seen[2])

    level = float(small.pipe.scheduler.timesteps[2]) / 1000
    sparse_vdit.apply(small.pipe, mixed_plan(small, dense_above=level))
    small.run()
    found = sparse_vdit.explain(small.pipe)
    assert found.dense_calls == {"dense warm-up": 2 * 2 * 3}
    assert found.sparse_calls == 2 * 2 * 3
