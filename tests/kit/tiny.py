"""Small random real pipelines of diffusers: no download, no tokenizer, half a second a run on one core.

Each function returns a `Tiny`: the pipeline, the arguments of a run (embeddings given), and the token layout
of its latent video. Untrained weights show that the numbers agree, never that a pattern is any good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

#: Pixel size of a run -> latent tokens at patch 2 and VAE factors 4 and 8.
SMALL = {"height": 64, "width": 64, "num_frames": 9}  # 3 x 4 x 4 tokens
LARGE = {"height": 128, "width": 128, "num_frames": 17}  # 5 x 8 x 8 tokens
TEXT_TOKENS = 16


@dataclass
class Tiny:
    """One pipeline and how to run it.

    Attributes:
        name: Family.
        pipe: The diffusers pipeline.
        inputs: Embeddings and guidance; `run` adds size, steps and a fresh seed.
        layout: frames, height, width, prefix, suffix of the small size.
    """

    name: str
    pipe: Any
    inputs: dict[str, Any]
    layout: dict[str, int]
    size: dict[str, int] = field(default_factory=lambda: dict(SMALL))
    steps: int = 2

    def run(self, pipe: Any = None, seed: int = 0, **changes: Any) -> torch.Tensor:
        """Latents of one run."""
        arguments = {
            **self.inputs,
            **self.size,
            "num_inference_steps": self.steps,
            "output_type": "latent",
            "generator": torch.Generator("cpu").manual_seed(seed),
            **changes,
        }
        return (pipe or self.pipe)(**arguments).frames


def cogvideox(flavour: str = "1.0", layers: int = 3, size: dict[str, int] = SMALL, **config: Any) -> Tiny:
    """CogVideoX 1.0 or 1.5 with rotary embedding; classifier-free guidance in one batch of two."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    torch.manual_seed(11)
    newer = {"patch_size_t": 2, "patch_bias": False, "sample_width": 16, "sample_height": 16}
    transformer = CogVideoXTransformer3DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "time_embed_dim": 8,
            "text_embed_dim": 32,
            "num_layers": layers,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": TEXT_TOKENS,
            "use_rotary_positional_embeddings": True,
            **(newer if flavour == "1.5" else {}),
            **config,
        }
    ).eval()
    pipe = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(timestep_spacing="trailing"),
    )
    video = _video_tokens(size)
    if flavour == "1.5":
        video["frames"] = -(-video["frames"] // 2)
    inputs = {
        "prompt_embeds": torch.randn(1, TEXT_TOKENS, 32),
        "negative_prompt_embeds": torch.randn(1, TEXT_TOKENS, 32),
        "guidance_scale": 6.0,
    }
    return _tiny("cogvideox", pipe, inputs, {**video, "prefix": TEXT_TOKENS, "suffix": 0}, size)


def hunyuan_video(batch: int = 1, size: dict[str, int] = SMALL, **config: Any) -> Tiny:
    """HunyuanVideo, two dual-stream and two single-stream blocks; 10 valid text tokens (then 16, then 13)."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )

    torch.manual_seed(12)
    transformer = HunyuanVideoTransformer3DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": 2,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (16, 24, 24),
            **config,
        }
    ).eval()
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    mask = torch.zeros(batch, TEXT_TOKENS)
    for sample, valid in zip(range(batch), (10, 16, 13)):
        mask[sample, :valid] = 1
    inputs = {
        "prompt_embeds": torch.randn(batch, TEXT_TOKENS, 16),
        "pooled_prompt_embeds": torch.randn(batch, 8),
        "prompt_attention_mask": mask,
    }
    return _tiny(
        "hunyuan_video", pipe, inputs, {**_video_tokens(size), "prefix": 0, "suffix": TEXT_TOKENS}, size
    )


def wan(experts: int = 1, layers: int = 3, size: dict[str, int] = SMALL, **config: Any) -> Tiny:
    """Wan 2.1 (one transformer) or 2.2 (two experts, four steps: two each); guidance by two calls a step."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    torch.manual_seed(13)
    two = experts == 2
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=_wan_transformer(layers, config),
        transformer_2=_wan_transformer(layers, config) if two else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        **({"boundary_ratio": 0.875} if two else {}),
    )
    inputs = {
        "prompt_embeds": torch.randn(1, TEXT_TOKENS, 32),
        "negative_prompt_embeds": torch.randn(1, TEXT_TOKENS, 32),
        "guidance_scale": 5.0,
    }
    tiny = _tiny("wan", pipe, inputs, {**_video_tokens(size), "prefix": 0, "suffix": 0}, size)
    tiny.steps = 4 if two else 2
    return tiny


def _wan_transformer(layers: int, config: dict[str, Any]) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        **{
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "patch_size": (1, 2, 2),
            "text_dim": 32,
            "freq_dim": 256,
            "ffn_dim": 128,
            "num_layers": layers,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 32,
            **config,
        }
    ).eval()


def _video_tokens(size: dict[str, int]) -> dict[str, int]:
    return {
        "frames": (size["num_frames"] - 1) // 4 + 1,
        "height": size["height"] // 16,
        "width": size["width"] // 16,
    }


def _tiny(name: str, pipe: Any, inputs: dict[str, Any], layout: dict[str, int], size: dict[str, int]) -> Tiny:
    pipe.set_progress_bar_config(disable=True)
    return Tiny(name, pipe, inputs, layout, dict(size))


#: All families at the small size, by name.
FAMILIES = {
    "cogvideox": cogvideox,
    "cogvideox1.5": lambda **options: cogvideox("1.5", **options),
    "hunyuan_video": hunyuan_video,
    "wan": wan,
    "wan2.2": lambda **options: wan(2, **options),
}
