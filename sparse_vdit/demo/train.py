"""Trains the embedded model: `python sparse_vdit/demo/train.py --out DIR --minutes 60 --data DATA`.

A share of the clips (`--drawn`, half by default) are drawn scenes, the rest comes from `clips`. The grid grows with
time, the rate is constant and then falls on a cosine, everything goes by wall clock. A killed run goes on at its last
checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sparse_vdit.demo import clips, scenes
from sparse_vdit.demo.prompt import encode

CONFIG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "num_layers": 12,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 4,
    "sample_width": 32,
    "sample_height": 32,
    "sample_frames": 61,
    "time_embed_dim": 128,
    "text_embed_dim": 64,
    "max_text_seq_length": 8,
    "use_rotary_positional_embeddings": True,
}
SCHEDULER: dict[str, Any] = {
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
FRAMES, PATCH, TIMESTEPS = 16, 4, 1000
GATE_BIAS = 0.3
PLANTED = ("frame", "tube", "local", "free")
PLANTED_NORM = 7.0
TEXT_QUERY, TEXT_SHIFT = 3.0, 16.0
NULL_SHARE = 0.1
WARM_UP_STEPS, LOG_STEPS = 20, 20
LAST_RATE = 0.02


def build(start: str, config: dict[str, Any] | None = None) -> Any:
    """Builds the untrained model.

    Args:
        start: "default", or "planted" for heads whose first shape is given by their q/k biases.
        config: Arguments of `CogVideoXTransformer3DModel`; the embedded model's when None.
    """
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(**(config or CONFIG))
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
            gates = norm.linear.bias.data.chunk(6)  # shift, scale, gate of the video, then of the text
            gates[2].fill_(GATE_BIAS)
            gates[5].fill_(GATE_BIAS)
    if start == "planted":
        plant(model)
    count = model.config.num_layers * model.config.num_attention_heads
    turn_to_text(
        model, range(PLANTED.index("free"), count, len(PLANTED)) if start == "planted" else range(count)
    )
    return model


def plant(model: Any) -> None:
    """Gives the heads, counted through all layers, the shapes of `PLANTED` by positional q/k biases."""
    axes = {"frame": (0,), "tube": (16, 40), "local": (0, 16, 40)}  # first RoPE dimension of t, h, w
    width = model.config.attention_head_dim
    for layer, block in enumerate(model.transformer_blocks):
        for head in range(model.config.num_attention_heads):
            kind = PLANTED[(layer * model.config.num_attention_heads + head) % len(PLANTED)]
            unit = torch.zeros(width)
            for axis in axes.get(kind, ()):
                unit[axis : axis + 4] = torch.tensor([1.0, -1.0, 1.0, -1.0])
            if kind != "free":
                for linear in (block.attn1.to_q, block.attn1.to_k):
                    linear.bias.data[head * width : (head + 1) * width] = PLANTED_NORM * unit / unit.norm()


def turn_to_text(model: Any, heads: Sequence[int]) -> None:
    """Makes heads, counted through all layers, look at the text from the first step on.

    Eight text tokens among thousands get so little attention that the prompt is learned late. The query bias
    and the text's shift before the keys meet on the slowest RoPE pairs, which hardly turn.
    """
    width, count = model.config.attention_head_dim, model.config.num_attention_heads
    unit = torch.zeros(width)
    unit[[14, 15, 38, 39, 62, 63]] = torch.tensor([1.0, -1.0] * 3) / 6**0.5  # slowest pair of t, h, w
    for layer, block in enumerate(model.transformer_blocks):
        shift = torch.zeros(block.attn1.to_k.weight.shape[1])
        for head in range(count):
            rows = slice(head * width, (head + 1) * width)
            if layer * count + head in heads:
                block.attn1.to_q.bias.data[rows] += TEXT_QUERY * unit
                pull = block.attn1.to_k.weight.data[rows].T @ unit
                shift += pull / pull.norm()
        if shift.any():
            block.norm1.linear.bias.data.chunk(6)[3].copy_(TEXT_SHIFT * shift / shift.norm())


def rope(grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cos and sin, [16 * grid * grid, 64], as the pipeline makes them.

    CogVideoX stretches the positions of `sample_width` over the grid at hand. So a place in the frame means
    the same on every grid, and what was learned on a small one (where bodies are) holds on the next.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    side = CONFIG["sample_width"] // PATCH
    return get_3d_rotary_pos_embed(CONFIG["attention_head_dim"], ((0, 0), (side, side)), (grid, grid), FRAMES)


def noise_levels() -> torch.Tensor:
    """Returns `alphas_cumprod` of the scheduler, float32 [1000]; 0 at the last step."""
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(**SCHEDULER).alphas_cumprod.float()


def velocity_loss(
    model: torch.nn.Module,
    batch: tuple[torch.Tensor, ...],
    tables: tuple[torch.Tensor, ...],
    levels: torch.Tensor,
) -> torch.Tensor:
    """Returns the v-prediction loss per clip, [B].

    Args:
        model: The transformer.
        batch: Clips [B, 16, 3, H, W], prompts [B, 8, 64], noise like the clips, timesteps [B].
        tables: cos and sin of the grid.
        levels: The scheduler's `alphas_cumprod`.
    """
    clean, words, noise, steps = batch
    signal_ = levels[steps].sqrt().view(-1, 1, 1, 1, 1)
    sigma = (1 - levels[steps]).sqrt().view(-1, 1, 1, 1, 1)
    noisy = signal_ * clean + sigma * noise
    target = signal_ * noise - sigma * clean
    guess = model(noisy, words, steps, image_rotary_emb=tables, return_dict=False)[0]
    return (guess - target).square().mean(dim=(1, 2, 3, 4))


class Muon:
    """Momentum made orthogonal by Newton-Schulz steps in float32; matrices of one shape go through together.

    Args:
        matrices: The 2-D parameters.
        rate: Learning rate.
        momentum: Share of the past in the momentum (Nesterov).
        decay: Weight decay per rate.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], rate: float, momentum: float = 0.95, decay: float = 0.1
    ) -> None:
        self.matrices, self.rate, self.momentum, self.decay = matrices, rate, momentum, decay
        self.past = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, scale: float, pool: ThreadPoolExecutor) -> None:
        """Takes one step at `scale` times the rate, from the parameters' `.grad`."""
        shapes: dict[torch.Size, list[int]] = {}
        for place, matrix in enumerate(self.matrices):
            shapes.setdefault(matrix.shape, []).append(place)
        groups = [places[i : i + 12] for places in shapes.values() for i in range(0, len(places), 12)]
        list(pool.map(lambda group: self._turn(group, self.rate * scale), groups))

    @torch.no_grad()
    def _turn(self, places: list[int], rate: float) -> None:
        nudges = []
        for place in places:
            grad = self.matrices[place].grad
            if grad is None:
                raise ValueError(f"train: matrix {place} has no gradient, expected one")
            self.past[place].lerp_(grad, 1 - self.momentum)
            nudges.append(grad.lerp(self.past[place], self.momentum))
        rows, columns = nudges[0].shape
        updates = _orthogonal(torch.stack(nudges)) * max(1.0, rows / columns) ** 0.5
        for place, update in zip(places, updates, strict=True):
            self.matrices[place].mul_(1 - rate * self.decay).sub_(update, alpha=rate)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the momentum by number."""
        return {str(place): past for place, past in enumerate(self.past)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        for place, past in enumerate(self.past):
            past.copy_(state[str(place)])


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Brings all singular values of [n, rows, columns] near 1: five quintic Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def split_parameters(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[dict[str, Any]]]:
    """Returns Muon's matrices (attention and feed-forward) and AdamW's groups with their rate multiples."""
    matrices, fast, rest = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and (".attn1." in name or ".ff." in name):
            matrices.append(parameter)
        elif ".norm_q." in name or ".norm_k." in name or name.endswith(("to_q.bias", "to_k.bias")):
            fast.append(parameter)
        else:
            rest.append(parameter)
    return matrices, [{"params": rest, "multiple": 1.0}, {"params": fast, "multiple": 3.0}]


@dataclass
class Schedule:
    """What to train at a share of the time: grids with their shares, and the rate.

    Attributes:
        stages: Pairs (tokens per side, share of the time).
        constant: Share of the time at the full rate.
    """

    stages: list[tuple[int, float]]
    constant: float

    def grid(self, progress: float) -> int:
        """Returns the tokens per side at a progress in 0..1."""
        total = sum(share for _, share in self.stages)
        for grid, share in self.stages:
            progress -= share / total
            if progress < 0:
                return grid
        return self.stages[-1][0]

    def rate(self, progress: float) -> float:
        """Returns the multiple of the rate at a progress in 0..1."""
        if progress < self.constant:
            return 1.0
        share = min(1.0, (progress - self.constant) / max(1e-9, 1 - self.constant))
        return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))


class Batches:
    """Endless numbered clips: drawn scenes and rich clips, each with its prompt.

    Args:
        library: Films and photos.
        seed: Seed of the run.
        drawn: Share of drawn scenes.
        tilt: 1 spreads the timesteps evenly, more prefers the noisy ones.
    """

    def __init__(self, library: clips.Library, seed: int, drawn: float, tilt: float) -> None:
        self.library, self.seed, self.drawn, self.tilt = library, seed, drawn, tilt

    def clip(self, index: int, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns clip `index` [16, 3, H, W] for a grid, and its prompt [8, 64]."""
        rng = np.random.default_rng([4, self.seed, index])
        size = grid * PATCH
        if rng.random() < self.drawn:
            pixels, prompt = scenes.train_scene(self.seed, index, size)
            clip = torch.from_numpy(pixels)
        else:
            pixels, prompt = clips.train_clip(self.library, self.seed, index)
            clip = torch.from_numpy(pixels)
            if size != clip.shape[-1]:
                clip = F.interpolate(clip, size=size, mode="bilinear", antialias=True, align_corners=False)
        return clip, encode(None if rng.random() < NULL_SHARE else prompt)

    def batch(
        self, first: int, count: int, grid: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns clips, prompts, noise and timesteps (spread evenly over the batch)."""
        pairs = [self.clip(index, grid) for index in range(first, first + count)]
        clean, words = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
        noise = torch.randn(clean.shape, generator=random)
        spread = (torch.randperm(count, generator=random) + torch.rand(count, generator=random)) / count
        steps = (1 - spread**self.tilt) * TIMESTEPS  # more of the noisy steps, where only the prompt helps
        return clean, words, noise, steps.long().clamp_max(TIMESTEPS - 1)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path that takes the place of `path` when all went well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        Path(name).unlink(missing_ok=True)


class Trainer:
    """Model, average, optimisers and counters, with their checkpoint.

    Args:
        options: The parsed command line.
        batches: Where clips come from.
    """

    def __init__(self, options: argparse.Namespace, batches: Batches) -> None:
        torch.manual_seed(options.seed)
        self.options, self.batches = options, batches
        self.device = torch.device(options.device)
        self.model = build(options.start).to(self.device).train()
        if options.init:
            self.model.load_state_dict({k: v.float() for k, v in load_file(options.init).items()})
        matrices, groups = split_parameters(self.model)
        self.muon = Muon(matrices, options.rate)
        self.adam = torch.optim.AdamW(groups, lr=options.adam_rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.parameters = list(self.model.parameters())
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.counters: dict[str, Any] = {
            "step": 0,
            "clips": {},
            "seen": 0,
            "wall": 0.0,
            "cpu": 0.0,
            "start": options.start,
            "plan": "",
            "began": 0.0,
        }
        self.levels = noise_levels().to(self.device)
        self.tables = {
            grid: tuple(t.to(self.device) for t in rope(grid)) for grid, _ in options.schedule.stages
        }
        self.pool = ThreadPoolExecutor(options.threads)
        self.maker = ThreadPoolExecutor(1)

    def save(self) -> None:
        """Writes the checkpoint; the old one stands until the new one is whole."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"muon.{k}": v for k, v in self.muon.state_dict().items()}
        for number, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        with _replacing(self.options.out / "state.safetensors") as path:
            save_file(tensors, path, metadata={"counters": json.dumps(self.counters)})

    def load(self) -> bool:
        """Goes on from the checkpoint of the out folder, if there is one."""
        path = self.options.out / "state.safetensors"
        if not path.exists():
            return False
        try:
            self._restore(path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            said = f"{path} cannot be read ({' '.join(str(error).split())[:150]})"
            raise SystemExit(f"train.py: {said}, expected a checkpoint of this model") from None
        return True

    def _restore(self, path: Path) -> None:
        tensors = load_file(path, device=str(self.device))
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.average = {k[8:]: v.clone() for k, v in tensors.items() if k.startswith("average.")}
        self.muon.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("muon.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = value.clone()
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        self.counters = read_counters(path)

    def step(self, progress: float) -> tuple[float, int]:
        """Takes one optimiser step; returns the mean loss and the grid."""
        grid = self.options.schedule.grid(progress)
        count = max(self.options.batch[grid], self.options.threads)
        batch = self._next_batch(count, grid)
        pieces = count if self.device.type == "cpu" else 1  # clips one by one: a slow thread holds up nobody
        shards = [tuple(part[i::pieces].to(self.device) for part in batch) for i in range(pieces)]
        results = list(self.pool.map(lambda shard: self._gradient(shard, grid, count), shards))
        for place, parameter in enumerate(self.parameters):
            parts = [part for _, grads in results if (part := grads[place]) is not None]
            parameter.grad = sum(parts[1:], parts[0]) if parts else None
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        scale = self.options.schedule.rate(progress) * min(1.0, (self.counters["step"] + 1) / WARM_UP_STEPS)
        self.muon.step(scale, self.pool)
        for group in self.adam.param_groups:
            group["lr"] = self.options.adam_rate * scale * group["multiple"]
        self.adam.step()
        self._follow()
        self.counters["step"] += 1
        self.counters["seen"] += count
        self.counters["clips"][str(grid)] = self.counters["clips"].get(str(grid), 0) + count
        return sum(loss for loss, _ in results), grid

    def _next_batch(self, count: int, grid: int) -> tuple[torch.Tensor, ...]:
        return self.batches.batch(self.counters["seen"], count, grid)

    def _gradient(
        self, shard: tuple[torch.Tensor, ...], grid: int, count: int
    ) -> tuple[float, tuple[torch.Tensor | None, ...]]:
        loss = velocity_loss(self.model, shard, self.tables[grid], self.levels).sum() / count
        return loss.item(), torch.autograd.grad(loss, self.parameters, allow_unused=True)

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.options.average, (1 + self.counters["step"]) / (10 + self.counters["step"]))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)


def read_counters(path: Path) -> dict[str, Any]:
    """Reads the counters out of a checkpoint."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["counters"])


def export(out: Path, target: Path) -> None:
    """Writes the averaged weights of a run as bfloat16 safetensors, with SHA256, config.json and the loss curve.

    Args:
        out: The run's folder.
        target: Folder to write to; made if missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    tensors = load_file(out / "state.safetensors")
    weights = {
        k[8:]: v.to(torch.bfloat16).contiguous() for k, v in tensors.items() if k.startswith("average.")
    }
    with _replacing(target / "weights.safetensors") as path:
        save_file(weights, path, metadata={"format": "pt"})
    digest = hashlib.sha256((target / "weights.safetensors").read_bytes()).hexdigest()
    with _replacing(target / "SHA256") as path:
        path.write_text(f"{digest}  weights.safetensors\n", encoding="ascii")
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        config = json.loads(CogVideoXTransformer3DModel(**CONFIG).to_json_string())
    with _replacing(target / "config.json") as path:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with _replacing(target / "loss.jsonl") as path:
        path.write_bytes((out / "loss.jsonl").read_bytes())


def _progress(options: argparse.Namespace, counters: dict[str, Any]) -> float:
    """Returns the share of the schedule's time that is over."""
    if options.deadline:
        return (time.time() - counters["began"]) / max(1.0, options.end - counters["began"])
    return (counters["wall"] - counters["began_wall"]) / (60 * options.minutes)


def train(trainer: Trainer) -> None:
    """Trains until the time is spent or a signal asks to stop; saves on the way and at the end."""
    options, counters = trainer.options, trainer.counters
    plan = json.dumps([options.schedule.stages, options.schedule.constant, options.deadline, options.minutes])
    if counters["plan"] != plan:
        counters.update(plan=plan, began=time.time(), began_wall=counters["wall"])
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop.append(received))
    saved = wall = time.time()
    cpu = time.process_time()
    losses: list[float] = []
    with open(options.out / "loss.jsonl", "a", encoding="utf-8") as log:
        while not stop and (progress := _progress(options, counters)) < 1:
            loss, grid = trainer.step(progress)
            counters["wall"] += time.time() - wall
            counters["cpu"] += time.process_time() - cpu
            wall, cpu = time.time(), time.process_time()
            if not math.isfinite(loss):
                step = counters["step"]
                raise SystemExit(
                    f"train.py: loss {loss} at step {step}; {options.out} holds the last checkpoint"
                )
            losses.append(loss)
            if counters["step"] % LOG_STEPS == 0:
                _report(log, trainer, progress, grid, sum(losses) / len(losses))
                losses.clear()
            if wall - saved > options.save_every:
                trainer.save()
                saved = wall
    trainer.save()
    if stop:
        raise SystemExit(128 + stop[0])


def _report(log: TextIO, trainer: Trainer, progress: float, grid: int, loss: float) -> None:
    counters = trainer.counters
    row = {"step": counters["step"], "clips": counters["seen"], "grid": grid, "loss": round(loss, 5)}
    row["rate"] = round(trainer.options.schedule.rate(progress), 4)
    row |= {"wall": round(counters["wall"], 1), "cpu": round(counters["cpu"], 1)}
    print(json.dumps(row), file=log, flush=True)
    told = f"step {row['step']}  clips {row['clips']}  grid {grid}  loss {loss:.4f}"
    print(f"{100 * progress:5.1f} %  {told}", file=sys.stderr, flush=True)


def _stages(text: str) -> list[tuple[int, float]]:
    return [(int(grid), float(share)) for grid, share in (part.split(":") for part in text.split(","))]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of checkpoint and loss curve; goes on if there is one"
    )
    parser.add_argument("--start", choices=("default", "planted"), default="default")
    parser.add_argument("--data", type=Path, help="folder with the unpacked packages named in clips.py")
    parser.add_argument("--deadline", help="HH:MM, the schedule ends then (UTC)")
    parser.add_argument("--minutes", type=float, default=60.0, help="without a deadline: minutes of training")
    parser.add_argument("--threads", type=int, default=1, help="clips computed at the same time")
    parser.add_argument(
        "--stages",
        type=_stages,
        default=_stages("4:.2,8:.35,12:.2,16:.25"),
        help="tokens per side : share of the time",
    )
    parser.add_argument("--constant", type=float, default=0.5, help="share of the time at the full rate")
    parser.add_argument(
        "--batch",
        type=_stages,
        default=_stages("4:8,8:4,12:2,16:2"),
        help="tokens per side : clips in a step",
    )
    parser.add_argument("--rate", type=float, default=0.02, help="Muon's rate")
    parser.add_argument("--adam-rate", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.99, help="decay of the averaged weights")
    parser.add_argument("--drawn", type=float, default=0.5, help="share of drawn scenes")
    parser.add_argument("--tilt", type=float, default=2.0, help="1: timesteps spread evenly; more: noisier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--init", type=Path, help="exported weights to begin with")
    parser.add_argument("--export", type=Path, help="write the averaged weights of --out here and end")
    options = parser.parse_args(arguments)
    options.schedule = Schedule(options.stages, options.constant)
    options.batch = {grid: int(count) for grid, count in options.batch}
    if options.deadline:
        now = datetime.datetime.now(datetime.UTC)
        hour, minute = map(int, options.deadline.split(":"))
        end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        options.end = (end if end > now else end + datetime.timedelta(days=1)).timestamp()
    return options


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    options = _options(arguments)
    if options.export and (options.out / "state.safetensors").exists():
        export(options.out, options.export)
        return
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    options.out.mkdir(parents=True, exist_ok=True)
    library = clips.load(options.data)
    if not library.films:
        print("train.py: no films found; training on drawn scenes and still textures", file=sys.stderr)
    clips.write_manifest(library, options.out / "clips.json")
    trainer = Trainer(options, Batches(library, options.seed, options.drawn, options.tilt))
    if trainer.load():
        print(f"train.py: goes on at step {trainer.counters['step']}", file=sys.stderr)
    train(trainer)
    if options.export:
        export(options.out, options.export)


if __name__ == "__main__":
    main()
