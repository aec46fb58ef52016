"""The embedded model inside the stock diffusers pipeline, and one timed generation with it.

The model works on pixels: there is no VAE, the pipeline's "latents" are the frames themselves in -1..1.
Prompts become embeddings by `prompt.encode`, so neither tokenizer nor text encoder is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from ..pattern import Geometry
from ..report.compare import Run
from .prompt import TOKENS, encode

MODEL = Path(__file__).parent / "model"
FRAMES, SIDE = 16, 64  # of a clip, in frames and pixels
SCHEDULER: dict[str, Any] = {  # as in training
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def load(folder: Path = MODEL) -> Any:
    """Loads a checkpoint into the stock `CogVideoXPipeline`.

    Args:
        folder: Holds config.json and weights.safetensors.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The weights do not fit the configuration, or are others than the folder's SHA256 states.
    """
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    for name in ("config.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"demo: {folder} holds no {name}, expected a model folder")
    check_weights(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    transformer = CogVideoXTransformer3DModel.from_config(config)
    weights = {name: tensor.float() for name, tensor in load_file(folder / "weights.safetensors").items()}
    missing, strange = transformer.load_state_dict(weights, strict=False)
    if missing or strange:
        name, what = (missing[0], "lack") if missing else (strange[0], "hold an unknown")
        raise ValueError(f"demo: the weights in {folder} {what} {name}, expected those of its config.json")
    transformer.eval().requires_grad_(False)
    pipe = CogVideoXPipeline(None, None, None, transformer, CogVideoXDDIMScheduler(**SCHEDULER))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_weights(folder: Path) -> str:
    """Returns the SHA-256 of a folder's weights; refuses others than its file SHA256 states, if it has one."""
    found = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    stated = folder / "SHA256"
    if stated.is_file():
        with stated.open("rb") as file:
            wanted = file.read(64).decode("ascii", "replace")
        if wanted != found:
            raise ValueError(
                f"demo: the weights in {folder} have the SHA-256 {found[:16]}..., expected {wanted[:16]}... as its "
                "file SHA256 states"
            )
    return found


def geometry(pipe: Any, block: int) -> Geometry:
    """Returns the token layout of the pipeline's clips with square blocks."""
    patch = pipe.transformer.config.patch_size
    return Geometry(FRAMES, SIDE // patch, SIDE // patch, prefix=TOKENS, block_q=block, block_k=block)


def noise_levels(pipe: Any, steps: int) -> tuple[float, ...]:
    """Returns the noise level of every step."""
    pipe.scheduler.set_timesteps(steps)
    return tuple(float(t) / pipe.scheduler.config.num_train_timesteps for t in pipe.scheduler.timesteps)


@contextlib.contextmanager
def timed(transformer: torch.nn.Module) -> Iterator[list[float]]:
    """Yields a list that receives the seconds of every call of the transformer, its other hooks included."""
    seconds: list[float] = []
    start = [0.0]

    def before(*_: Any) -> None:
        start[0] = time.perf_counter()

    def after(*_: Any) -> None:
        seconds.append(time.perf_counter() - start[0])

    hooks = [
        transformer.register_forward_pre_hook(before, prepend=True),
        transformer.register_forward_hook(after),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def noise(seed: int) -> torch.Tensor:
    """Returns the noise that a video begins with, float32 [1, F, 3, H, W]."""
    return torch.randn(1, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def generate(
    pipe: Any, prompt: str, seed: int, steps: int, on_step: Callable[[], object] | None = None
) -> Run:
    """Generates a video with whatever attention the pipeline has now; no guidance.

    Args:
        pipe: From `load`.
        prompt: A sentence that `prompt.parse` reads.
        seed: Seed of the noise.
        steps: Denoising steps.
        on_step: Called after every step.
    """

    def after_step(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step()
        return tensors

    factor = pipe.vae_scale_factor_spatial
    with timed(pipe.transformer) as seconds:
        frames = pipe(
            prompt_embeds=encode(prompt)[None],
            latents=noise(seed),
            height=SIDE * factor,
            width=SIDE * factor,
            num_frames=(FRAMES - 1) * pipe.vae_scale_factor_temporal + 1,
            num_inference_steps=steps,
            guidance_scale=1.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=after_step,
        ).frames
    video = ((frames[0].float() + 1) / 2).clamp(0, 1).numpy()
    return Run(video, tuple(seconds), noise_levels(pipe, steps))


class AttentionClock(TorchFunctionMode):
    """Sums the seconds of `scaled_dot_product_attention` while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function, timed if it is the dense attention."""
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        start = time.perf_counter()
        out = function(*args, **(kwargs or {}))
        self.seconds += time.perf_counter() - start
        return out


def rotary(pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the position tables that the pipeline hands to the transformer for a clip."""
    factor = pipe.vae_scale_factor_spatial
    tables: tuple[torch.Tensor, torch.Tensor] = pipe._prepare_rotary_positional_embeddings(
        SIDE * factor, SIDE * factor, FRAMES, torch.device("cpu")
    )
    return tables


@torch.no_grad()
def attention_share(pipe: Any, repeats: int = 3) -> tuple[float, float]:
    """Measures the stock step.

    Args:
        pipe: With stock attention.
        repeats: Timed calls; one more goes before them unmeasured.

    Returns:
        (seconds of a step, share of it spent in attention), of the fastest call.
    """
    tables, words = rotary(pipe), encode("red disc moving right, slow")[None]
    best = (float("inf"), 0.0)
    for call in range(repeats + 1):
        with timed(pipe.transformer) as seconds, AttentionClock() as clock:
            pipe.transformer(
                noise(call), words, torch.tensor([500]), image_rotary_emb=tables, return_dict=False
            )
        if call:
            best = min(best, (seconds[0], clock.seconds / seconds[0]))
    return best


@torch.no_grad()
def velocity_losses(
    pipe: Any, clips: list[tuple[torch.Tensor, torch.Tensor]], levels: list[int], seed: int,
    on_clip: Callable[[], object] | None = None,
) -> list[float]:  # fmt: skip
    """Returns the v-prediction loss of every clip, each at its timestep and with its own fixed noise.

    Args:
        pipe: From `load`, with any attention.
        clips: (frames [16, 3, 64, 64] in -1..1, embedded prompt [8, 64]).
        levels: A timestep in 0..999 for every clip.
        seed: Seed of the noise.
        on_clip: Called after every clip.
    """
    tables = rotary(pipe)
    keep = pipe.scheduler.alphas_cumprod.float()
    losses = []
    for number, ((frames, words), level) in enumerate(zip(clips, levels, strict=True)):
        signal, sigma = keep[level].sqrt(), (1 - keep[level]).sqrt()
        random = noise(seed + number)
        noisy, target = signal * frames[None] + sigma * random, signal * random - sigma * frames[None]
        guess = pipe.transformer(
            noisy, words[None], torch.tensor([level]), image_rotary_emb=tables, return_dict=False
        )
        losses.append(float((guess[0] - target).square().mean()))
        if on_clip is not None:
            on_clip()
    return losses
