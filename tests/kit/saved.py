"""A whole tiny pipeline on disk: tokenizer, text encoder, transformer, VAE, scheduler, all random, nothing downloaded.

As `CogVideoXPipeline.from_pretrained` finds it, so that what takes a model folder is tested on one: prompts are
sentences and frames are decoded. And a `hardware.json` of made-up constants, so that nothing has to be measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kit import tiny
from sparse_vdit.search.hardware import NAMES, Hardware, Machine

WORDS = ["blue", "square", "a", "cat", "dog"]
TEXT_TOKENS = 8
SETTINGS = {**tiny.SMALL, "guidance_scale": 6.0, "max_sequence_length": TEXT_TOKENS}
#: A key block costs, everything else hardly: a dense layer of 56 tokens takes 4.9 ms, and sparse pays.
CONSTANTS = {
    "workers": 1, "tall_rows": 6, "low_rows": 4, "chunk_keys": 512, "full_us": 75, "item_us": 1, "pooled_us": 0.5,
}  # fmt: skip


def cogvideox(layers: int = 2) -> Any:
    """The pipeline: 48 video tokens and 8 of text at 64 x 64 pixels and 9 frames."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(5)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), temporal_compression_ratio=4,
    )  # fmt: skip
    stock = tiny.cogvideox(layers=layers, max_text_seq_length=TEXT_TOKENS).pipe
    pipe = CogVideoXPipeline(tokenizer, encoder.eval(), vae.eval(), stock.transformer, stock.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(folder: Path, layers: int = 2) -> Path:
    """Writes the pipeline; returns the folder."""
    cogvideox(layers).save_pretrained(folder)
    return folder


def hardware(path: Path, *, head_dim: int = 64, block: int = 16, dtype: str = "float32") -> Path:
    """Writes made-up constants of this machine; returns the file."""
    constants = tuple(float(CONSTANTS.get(name, 0)) for name in NAMES)
    entry = Hardware("made up", dtype, head_dim, block, block, constants)
    return Machine.here([entry]).save(path)
