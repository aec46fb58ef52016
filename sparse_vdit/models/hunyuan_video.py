"""HunyuanVideo: joint attention of [video | text], dual-stream blocks first, then single-stream ones.

The text is padded and a prefix mask says how far it goes: the sparse kernel gets its length as kv_len, the
dense path the mask itself. The text refiner is another attention and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from .attend import SparseProcessor, attend, site_of
from .families import Family, Layout, register_with_diffusers, skip_to_both


class SparseHunyuanVideoAttnProcessor(SparseProcessor):
    """Mirrors diffusers' HunyuanVideoAttnProcessor2_0 (0.36 to 0.42.1)."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if encoder_hidden_states is None:
            raise ValueError("attention: encoder_hidden_states is None, expected the text of HunyuanVideo")
        text_length = encoder_hidden_states.shape[1]
        if attn.add_q_proj is None:
            query, key, value = _single_stream(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        else:
            query, key, value = _dual_stream(attn, hidden_states, encoder_hidden_states, image_rotary_emb)

        site = site_of(attn)
        kv_len = None
        if attention_mask is not None and site.needs_kv_len:
            kv_len = site.session.kv_len(attention_mask, query.shape[1])
        dense = self.host_attention(attention_mask)
        hidden_states = attend(site, query, key, value, dense, kv_len).flatten(2, 3).to(query.dtype)

        hidden_states, text = hidden_states[:, :-text_length], hidden_states[:, -text_length:]
        if getattr(attn, "to_out", None) is not None:
            hidden_states = attn.to_out[0](hidden_states)
            hidden_states = attn.to_out[1](hidden_states)
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return hidden_states, text


def _heads(attn: Any, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.unflatten(2, (attn.heads, -1)) for tensor in tensors]


def _normalise(query: torch.Tensor, key: torch.Tensor, norm_q: Any, norm_k: Any) -> list[torch.Tensor]:
    return [
        norm_q(query) if norm_q is not None else query,
        norm_k(key) if norm_k is not None else key,
    ]


def _single_stream(
    attn: Any, hidden_states: torch.Tensor, text: torch.Tensor, rotary: Any
) -> list[torch.Tensor]:
    joint = torch.cat([hidden_states, text], dim=1)
    query, key, value = _heads(attn, attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
    query, key = _normalise(query, key, attn.norm_q, attn.norm_k)
    if rotary is not None:
        video = -text.shape[1]
        query, key = (
            torch.cat([apply_rotary_emb(tensor[:, :video], rotary, sequence_dim=1), tensor[:, video:]], dim=1)
            for tensor in (query, key)
        )
    return [query, key, value]


def _dual_stream(
    attn: Any, hidden_states: torch.Tensor, text: torch.Tensor, rotary: Any
) -> list[torch.Tensor]:
    query, key, value = _heads(
        attn, attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    )
    query, key = _normalise(query, key, attn.norm_q, attn.norm_k)
    if rotary is not None:
        query, key = (apply_rotary_emb(tensor, rotary, sequence_dim=1) for tensor in (query, key))
    text_query, text_key, text_value = _heads(
        attn, attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)
    )
    text_query, text_key = _normalise(text_query, text_key, attn.norm_added_q, attn.norm_added_k)
    return [
        torch.cat([query, text_query], dim=1),
        torch.cat([key, text_key], dim=1),
        torch.cat([value, text_value], dim=1),
    ]


def _modules(transformer: Any) -> list[Any]:
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    return [block.attn for block in blocks]


def _layout(transformer: Any, arguments: Mapping[str, Any]) -> Layout:
    _, _, frames, height, width = arguments["hidden_states"].shape
    p, p_t = transformer.config.patch_size, transformer.config.patch_size_t
    return Layout(frames // p_t, height // p, width // p, 0, arguments["encoder_hidden_states"].shape[1])


register_with_diffusers(SparseHunyuanVideoAttnProcessor, skip_to_both)
FAMILY = Family(
    name="HunyuanVideo",
    processors={HunyuanVideoAttnProcessor2_0: SparseHunyuanVideoAttnProcessor},
    modules=_modules,
    layout=_layout,
    untouched="the text refiner",
)
