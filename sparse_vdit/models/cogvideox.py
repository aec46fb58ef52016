"""CogVideoX 1.0 and 1.5: joint attention of [text | video], one projection for both, no mask.

The stock processors never ask diffusers' dispatcher: dense is F.scaled_dot_product_attention, as upstream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb

from .attend import SparseProcessor, attend, site_of
from .families import Family, Layout, register_with_diffusers, skip_to_both


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False)
    return out.transpose(1, 2)


class SparseCogVideoXAttnProcessor(SparseProcessor):
    """Mirrors diffusers' CogVideoXAttnProcessor2_0 (0.36 to 0.42.1), with q, k, v as [B, N, H, D]."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if attention_mask is not None:
            raise ValueError(f"attention: mask is {list(attention_mask.shape)}, expected None in CogVideoX")
        text_length = encoder_hidden_states.size(1)
        hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)

        query, key, value = (
            tensor.unflatten(2, (attn.heads, -1)) for tensor in self._project(attn, hidden_states)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if image_rotary_emb is not None:
            for tensor in (query, key):
                tensor[:, text_length:] = apply_rotary_emb(
                    tensor[:, text_length:], image_rotary_emb, sequence_dim=1
                )

        hidden_states = attend(site_of(attn), query, key, value, _dense).flatten(2, 3)
        hidden_states = attn.to_out[0](hidden_states)
        hidden_states = attn.to_out[1](hidden_states)
        encoder_hidden_states, hidden_states = hidden_states.split(
            [text_length, hidden_states.size(1) - text_length], dim=1
        )
        return hidden_states, encoder_hidden_states

    def _project(self, attn: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)


class SparseFusedCogVideoXAttnProcessor(SparseCogVideoXAttnProcessor):
    """Mirrors diffusers' FusedCogVideoXAttnProcessor2_0: one projection makes q, k and v."""

    def _project(self, attn: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Not by attn.fused_projections: unfusing leaves it, and a stale to_qkv, behind.
        return attn.to_qkv(hidden_states).chunk(3, dim=-1)  # type: ignore[no-any-return]


def _modules(transformer: Any) -> list[Any]:
    return [block.attn1 for block in transformer.transformer_blocks]


def _layout(transformer: Any, arguments: Mapping[str, Any]) -> Layout:
    _, frames, _, height, width = arguments["hidden_states"].shape
    config = transformer.config
    p, p_t = config.patch_size, config.patch_size_t or 1
    return Layout(frames // p_t, height // p, width // p, arguments["encoder_hidden_states"].shape[1], 0)


register_with_diffusers(SparseCogVideoXAttnProcessor, skip_to_both)
register_with_diffusers(SparseFusedCogVideoXAttnProcessor, skip_to_both)
FAMILY = Family(
    name="CogVideoX",
    processors={
        CogVideoXAttnProcessor2_0: SparseCogVideoXAttnProcessor,
        FusedCogVideoXAttnProcessor2_0: SparseFusedCogVideoXAttnProcessor,
    },
    modules=_modules,
    layout=_layout,
)
