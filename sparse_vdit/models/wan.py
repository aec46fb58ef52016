"""Wan 2.1 and 2.2: self-attention of the video; cross-attention, image keys included, is never touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, _get_qkv_projections

from .attend import SparseProcessor, attend, site_of
from .families import Family, Layout, register_with_diffusers, skip_to_video


class SparseWanAttnProcessor(SparseProcessor):
    """Mirrors the self-attention of diffusers' WanAttnProcessor (0.36 to 0.42.1)."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            got = "encoder_hidden_states" if encoder_hidden_states is not None else "attention_mask"
            raise ValueError(f"attention: {got} is given, expected None in Wan's self-attention")
        query, key, value = _get_qkv_projections(attn, hidden_states, None)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (query, key, value))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)

        dense = self.host_attention()
        hidden_states = attend(site_of(attn), query, key, value, dense).flatten(2, 3).type_as(query)
        hidden_states = attn.to_out[0](hidden_states)
        return attn.to_out[1](hidden_states)  # type: ignore[no-any-return]


def _rotate(tensor: torch.Tensor, freqs_cos: torch.Tensor, freqs_sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of interleaved pairs; cos and sin are [1, N, 1, D]."""
    x1, x2 = tensor.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = freqs_cos[..., 0::2], freqs_sin[..., 1::2]
    out = torch.empty_like(tensor)
    out[..., 0::2] = x1 * cos - x2 * sin
    out[..., 1::2] = x1 * sin + x2 * cos
    return out.type_as(tensor)


def _modules(transformer: Any) -> list[Any]:
    return [block.attn1 for block in transformer.blocks]


def _layout(transformer: Any, arguments: Mapping[str, Any]) -> Layout:
    _, _, frames, height, width = arguments["hidden_states"].shape
    p_t, p_h, p_w = transformer.config.patch_size
    return Layout(frames // p_t, height // p_h, width // p_w, 0, 0)


register_with_diffusers(SparseWanAttnProcessor, skip_to_video)
FAMILY = Family(
    name="Wan",
    processors={WanAttnProcessor: SparseWanAttnProcessor},
    modules=_modules,
    layout=_layout,
    untouched="cross-attention, image keys included",
)
