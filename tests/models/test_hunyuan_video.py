"""HunyuanVideo's padded text: unequal lengths in a batch, true guidance, the mask read once a forward."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import tiny  # noqa: E402
from kit.stock import apart, mixed_plan, oracle, uniform_plan  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Pattern  # noqa: E402
from sparse_vdit.models.session import Session  # noqa: E402

pytestmark = pytest.mark.models


@pytest.mark.parametrize("remainder", [None, 0.25])
def test_batch_with_unequal_text_lengths(remainder: float | None) -> None:
    small = tiny.hunyuan_video(batch=3)
    plan = mixed_plan(small, remainder=remainder)
    with oracle(small.pipe, plan):
        expected = small.run()
    with sparse_vdit.applied(small.pipe, plan):
        ours = small.run()
    assert apart(ours, expected) < 2e-5

    # Padded text is nobody's key: its content does not matter, and each sample has its own length.
    changed = {key: value.clone() for key, value in small.inputs.items()}
    changed["prompt_attention_mask"][1, 12:] = 0
    with sparse_vdit.applied(small.pipe, plan):
        other = small.run(**changed)
    assert apart(other[0], ours[0]) < 1e-6
    assert apart(other[1], ours[1]) > 1e-4


def test_true_guidance() -> None:
    small = tiny.hunyuan_video()
    small.inputs |= {
        "true_cfg_scale": 3.0,
        "negative_prompt_embeds": torch.randn(1, 16, 16),
        "negative_pooled_prompt_embeds": torch.randn(1, 8),
        "negative_prompt_attention_mask": torch.cat([torch.ones(1, 4), torch.zeros(1, 12)], 1),
    }
    plan = mixed_plan(small)
    with oracle(small.pipe, plan) as calls:
        expected = small.run()
    with sparse_vdit.applied(small.pipe, plan):
        ours = small.run()
    assert calls[0] == 2 * 2 * 4
    assert apart(ours, expected) < 2e-5


def test_mask_is_summed_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny.hunyuan_video()
    sums: list[Any] = []
    stock = torch.Tensor.sum

    def counting(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if tensor.dtype == torch.bool and tensor.dim() == 4:
            sums.append(tensor)
        return stock(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "sum", counting)
    sparse_vdit.apply(small.pipe, uniform_plan(small, Pattern.diagonal(half_width=0)))
    small.run()
    assert len(sums) == small.steps


def test_a_mask_with_a_hole_is_refused() -> None:
    small = tiny.hunyuan_video()
    sparse_vdit.apply(small.pipe, mixed_plan(small))
    session: Session = small.pipe.transformer._sparse_vdit_session
    mask = torch.ones(1, 1, 1, 64, dtype=torch.bool)
    assert session.kv_len(mask, 64).tolist() == [64]
    with pytest.raises(ValueError, match=r"mask is \[1, 1, 1, 64\] torch.bool, expected \[B, 1, 1, 60\]"):
        session.kv_len(mask.clone(), 60)
    mask = mask.clone()
    mask[..., 50] = False
    with pytest.raises(ValueError, match="mask has a hole"):
        session.kv_len(mask, 64)


def test_image_to_video_by_token_replace() -> None:
    """The first frame's tokens are modulated apart; attention and layout stay."""
    small = tiny.hunyuan_video(image_condition_type="token_replace")
    transformer = small.pipe.transformer
    call = {
        "hidden_states": torch.randn(1, 4, 3, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": small.inputs["prompt_embeds"],
        "encoder_attention_mask": small.inputs["prompt_attention_mask"],
        "pooled_projections": small.inputs["pooled_prompt_embeds"],
        "guidance": torch.tensor([6000.0]),
        "return_dict": False,
    }
    plan = mixed_plan(small)
    with torch.no_grad():
        stock = transformer(**call)[0]
        with oracle(small.pipe, plan):
            expected = transformer(**call)[0]
        with sparse_vdit.applied(transformer, uniform_plan(small, Pattern.full())):
            assert torch.equal(transformer(**call)[0], stock)
        with sparse_vdit.applied(transformer, plan):
            assert apart(transformer(**call)[0], expected) < 2e-5
