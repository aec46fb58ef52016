"""The model side of `quality.py`: the embedded model in the stock pipeline, what was recorded on it, and every
rule's plan for a given attention time. Everything that takes long is kept in one folder and made once."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_vdit import Geometry, SparsePlan, observe, remove
from sparse_vdit.demo import scenes
from sparse_vdit.demo.pipeline import (
    MODEL,
    attention_share,
    check_weights,
    generate,
    geometry,
    load,
    noise,
    noise_levels,
    rotary,
    timed,
    velocity_losses,
)
from sparse_vdit.demo.prompt import describe, encode
from sparse_vdit.models import applied
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.report.compare import Run
from sparse_vdit.search import HeadErrors, Recorder, Sample, ladder, models_of, record, rules
from sparse_vdit.search.calibration import calibrate
from sparse_vdit.search.candidates import Candidates
from sparse_vdit.search.controls import permute, random_masks
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.decisions import Decisions
from sparse_vdit.search.errors_file import write_file
from sparse_vdit.search.hardware import Hardware, Machine
from sparse_vdit.search.select import select

JUDGED, CALIBRATION, LOSS = 600, 700, 500  # first numbers of held-out scenes
FIRST_SEED = {"judged": 1000, "calibration": 5000}
LOSS_SEED = 9000
LOWEST_LEVEL = 60  # timestep of the least noisy held-out clip
FIT = -1  # the clip on which plans are fitted: the first calibration prompt
EVERY = 7  # query rows between two that a map looks at; odd, so that every column of the frame has its turn
REMAINDERS = {"budget": "none", "budget_beta0": "zero", "budget_fitted": "fitted"}
OF_THE_PLAN = ("random", "permuted", "untrained")  # made from the plan of budget_fitted


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        rules, targets: rows.
        clips: judged videos (each its own prompt and seed).
        steps: denoising steps.
        warm_ups: numbers of dense first steps that every rule may choose from, for each target.
        prompts: calibration prompts.
        loss_clips: held-out clips.
        bins: equal intervals of noise level, in which every head has its own pattern.
        block: tokens of a block.
        calibrate_s: seconds for the cost model.
        weights: how errors of heads are weighed: relative, mse or sensitivity.
        model: folder of the checkpoint.
    """

    rules: tuple[str, ...]
    targets: tuple[float, ...]
    clips: int = 8
    steps: int = 10
    warm_ups: tuple[tuple[int, ...], ...] = ((1, 2), (1, 2), (0, 1))
    prompts: int = 8
    loss_clips: int = 8
    bins: int = 5
    block: int = 64
    calibrate_s: float = 40.0
    weights: str = "sensitivity"
    model: Path = MODEL

    @property
    def most_warm_up(self) -> int:
        """Dense first steps at most."""
        return max(max(row) for row in self.warm_ups)


def distinct_prompts(first: int, count: int, taken: set[str]) -> list[str]:
    """Sentences of held-out scenes from number `first` on; none twice, none of those taken."""
    found: list[str] = []
    while len(found) < count:
        sentence = describe(scenes.held_out(first)[1])
        if sentence not in taken:
            found.append(sentence)
            taken.add(sentence)
        first += 1
    return found


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Writes a .npy file whole or not at all, whatever interrupts the run."""
    data = io.BytesIO()
    np.save(data, array)
    write_file(path, data.getvalue())


class MapRecorder:
    """Sums attention mass per pair of blocks, by bin of noise level, on every `EVERY`-th query row."""

    def __init__(self, model: ModelIdentity, layout: Geometry, bins: Sequence[float]) -> None:
        self.bins, self.geometry = np.asarray(bins), layout
        shape = (len(bins) - 1, model.layers, model.heads, layout.query_blocks, layout.key_blocks)
        self.maps = np.zeros(shape, np.float32)
        self.calls = np.zeros(shape[:2], np.int64)

    def __call__(self, step: int, level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> None:
        """One call of attention; the dense output stands."""
        bin_ = min(int(np.searchsorted(self.bins, level, side="right")) - 1, len(self.bins) - 2)
        self.maps[bin_, layer] += block_map(q, k, self.geometry)
        self.calls[bin_, layer] += 1

    def mean(self) -> NDArray[np.float16]:
        """float16 [bins, layers, heads, nq, nk]; bins without a call are zero."""
        return (self.maps / np.maximum(self.calls, 1)[:, :, None, None, None]).astype(np.float16)


@torch.no_grad()
def block_map(q: torch.Tensor, k: torch.Tensor, layout: Geometry, every: int = EVERY) -> NDArray[np.float32]:
    """Mean attention mass of each key block for each query block, [H, nq, nk]; q, k [B, H, N, D].

    Every `every`-th query row is looked at, and the first one of each block; the batch is averaged.
    """
    batch, heads, tokens, width = q.shape
    rows = torch.cat([torch.arange(0, tokens, every), torch.arange(0, tokens, layout.block_q)]).unique()
    blocks = rows // layout.block_q
    pad = layout.key_blocks * layout.block_k - tokens
    found = torch.zeros(heads, layout.query_blocks, layout.key_blocks)
    count = torch.zeros(layout.query_blocks).index_add_(0, blocks, torch.ones(len(rows)))
    for head in range(heads):
        for sample in range(batch):
            logits = (q[sample, head, rows].float() @ k[sample, head].float().T) * width**-0.5
            mass = torch.nn.functional.pad(torch.softmax(logits, dim=-1), (0, pad))
            by_block = mass.reshape(len(rows), layout.key_blocks, layout.block_k).sum(-1)
            found[head].index_add_(0, blocks, by_block)
    return (found / count[None, :, None] / batch).numpy()


class Lab:
    """The pipeline, its recordings and plans.

    Args:
        settings: what is run.
        folder: where errors, maps, constants and dense videos are kept.
        progress: whether the search shows its own bar.
    """

    def __init__(self, settings: Settings, folder: Path, progress: bool = False) -> None:
        self.settings, self.folder, self.progress = settings, folder, progress
        self.pipe = load(settings.model)
        self.model = models_of(self.pipe)["transformer"]
        self.geometry = geometry(self.pipe, settings.block)
        self.levels = noise_levels(self.pipe, settings.steps)
        taken: set[str] = set()
        self.calibration = distinct_prompts(CALIBRATION, settings.prompts, taken)
        self.judged = distinct_prompts(JUDGED, settings.clips, taken)
        self._decisions: dict[Any, Decisions] = {}
        self._plans: dict[Any, SparsePlan] = {}

    # ---- the machine ----

    def stock(self) -> tuple[float, float]:
        """Milliseconds of a stock step's transformer, and of the attention in it."""
        seconds, share = attention_share(self.pipe)
        return seconds * 1e3, seconds * share * 1e3

    @cached_property
    def hardware(self) -> Hardware:
        """Constants of the cost model, measured once."""
        path, block = self.folder / "hardware.json", self.settings.block
        if not path.exists():
            found = calibrate(
                head_dim=self.model.head_dim, block_q=block, block_k=block, seconds=self.settings.calibrate_s,
                progress=self.progress,
            )  # fmt: skip
            Machine.here([found]).save(path)
        return Machine.load(path).find("float32", self.model.head_dim, block, block)

    def cost(self, candidates: Candidates) -> CostModel:
        """Prices of candidates."""
        return CostModel(self.hardware, candidates, heads=self.model.heads)

    # ---- the search ----

    @cached_property
    def candidates(self) -> Candidates:
        """Ours."""
        return ladder(self.geometry)

    @cached_property
    def known(self) -> rules.Baselines:
        """Those of the other rules."""
        return rules.baselines(self.geometry)

    def search(self) -> float | None:
        """Records our candidates; seconds, or None if that had begun before.

        The gradients that weigh the heads come from the first prompt alone.
        """
        started = any(self.folder.glob("errors-*"))
        begin = time.perf_counter()
        _ = self.errors
        return None if started else time.perf_counter() - begin

    @cached_property
    def errors(self) -> HeadErrors:
        """Of our candidates."""
        edges = tuple(n / self.settings.bins for n in range(self.settings.bins + 1))
        return self._recorded("ours", self.candidates, edges, listen=1, power=1, power_prompts=1)

    @cached_property
    def other_errors(self) -> HeadErrors:
        """Of the other rules' candidates, on the same prompts."""
        return self._recorded("others", self.known.candidates, self.errors.bins, listen=1)

    def _recorded(
        self, name: str, candidates: Candidates, bins: Sequence[float], **options: Any
    ) -> HeadErrors:
        samples = [Sample(prompt, FIRST_SEED["calibration"] + n) for n, prompt in enumerate(self.calibration)]
        recorder = Recorder(models_of(self.pipe), candidates, bins, **options)

        def run(pipe: Any, sample: Sample) -> object:
            return generate(pipe, sample.prompt, sample.seed, self.settings.steps)

        found = record(
            self.pipe, samples, self.folder / f"errors-{name}.safetensors", recorder=recorder, observe=observe,
            settings={"num_inference_steps": self.settings.steps}, generate=run, progress=self.progress,
        )  # fmt: skip
        return found["transformer"]

    # ---- videos ----

    def clip(self, number: int) -> tuple[str, int]:
        """Prompt and seed of a judged clip, or of the one for fitting."""
        if number == FIT:
            return self.calibration[0], FIRST_SEED["calibration"]
        return self.judged[number], FIRST_SEED["judged"] + number

    def dense(self, number: int) -> NDArray[np.float32]:
        """The dense video of a clip, made once, with its attention maps."""
        video, maps = self.folder / f"dense-{number}.npy", self.folder / f"maps-{number}.npy"
        if not (video.exists() and maps.exists()):
            remove(self.pipe)
            recorder = MapRecorder(self.model, self.geometry, self.errors.bins)
            with observe(self.pipe, recorder):
                made = generate(self.pipe, *self.clip(number), self.settings.steps)
            save_array(maps, recorder.mean())
            save_array(video, made.video)
        return np.load(video)

    def maps(self, number: int) -> NDArray[Any]:
        """Attention maps of a clip's dense video."""
        self.dense(number)
        return np.load(self.folder / f"maps-{number}.npy").astype(np.float32)

    def dense_untrained(self, number: int) -> NDArray[np.float32]:
        """The same clip by the untrained model."""
        path = self.folder / f"untrained-{number}.npy"
        if not path.exists():
            remove(self.untrained)
            save_array(path, generate(self.untrained, *self.clip(number), self.settings.steps).video)
        return np.load(path)

    def generate(self, rule: str, plan: SparsePlan, number: int) -> Run:
        """A clip under a plan."""
        pipe = self.untrained if rule == "untrained" else self.pipe
        with applied(pipe, plan):
            return generate(pipe, *self.clip(number), self.settings.steps)

    @torch.no_grad()
    def stock_seconds(self) -> float:
        """One stock call of the transformer."""
        remove(self.pipe)
        tables, words = rotary(self.pipe), encode(self.judged[0])[None]
        with timed(self.pipe.transformer) as seconds:
            self.pipe.transformer(
                noise(0), words, torch.tensor([500]), image_rotary_emb=tables, return_dict=False
            )
        return seconds[0]

    @cached_property
    def untrained(self) -> Any:
        """The same pipeline with weights as they are before training."""
        torch.manual_seed(0)
        transformer = type(self.pipe.transformer).from_config(self.pipe.transformer.config)
        transformer.eval().requires_grad_(False)
        made = type(self.pipe)(None, None, None, transformer, self.pipe.scheduler)
        made.set_progress_bar_config(disable=True)
        return made

    # ---- held-out loss ----

    @cached_property
    def loss_clips(self) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
        """(frames, embedded prompt, timestep): timesteps below every warm-up."""
        count = self.settings.loss_clips
        top = int(self.dense_above(self.settings.most_warm_up) * 1000) - 1
        levels = np.linspace(LOWEST_LEVEL, top, count).round().astype(int)
        clips = [scenes.held_out(LOSS + number) for number in range(count)]
        return [
            (torch.from_numpy(frames), encode(describe(prompt)), int(level))
            for (frames, prompt), level in zip(clips, levels, strict=True)
        ]

    def losses(self, rule: str, plan_of: Callable[[int], SparsePlan] | None) -> list[float]:
        """Training loss of every held-out clip, dense or under the plan of its number."""
        pipe, found = self.untrained if rule == "untrained" else self.pipe, []
        remove(pipe)
        for number, (frames, words, level) in enumerate(self.loss_clips):
            with applied(pipe, plan_of(number)) if plan_of else nullcontext():
                found += velocity_losses(pipe, [(frames, words)], [level], LOSS_SEED + number)
        return found

    def loss_map(self, number: int) -> NDArray[Any]:
        """Attention map of a held-out clip, [1, layers, heads, nq, nk]."""
        path = self.folder / f"maps-loss-{number}.npy"
        if not path.exists():
            remove(self.pipe)
            frames, words, level = self.loss_clips[number]
            recorder = MapRecorder(self.model, self.geometry, (0.0, 1.0))
            with observe(self.pipe.transformer, recorder):
                velocity_losses(self.pipe, [(frames, words)], [level], LOSS_SEED + number)
            save_array(path, recorder.mean())
        return np.load(path).astype(np.float32)

    # ---- plans ----

    def dense_above(self, warm_up: int) -> float:
        """The noise level between the last dense and the first sparse step."""
        return 1.0 if warm_up == 0 else 0.5 * (self.levels[warm_up - 1] + self.levels[warm_up])

    def plan(self, rule: str, time_ms: float, dense_ms: float, warm_up: int, number: int = FIT) -> SparsePlan:
        """A rule's plan for an attention time per step.

        Args:
            rule: one of `quality_rows.RULES`.
            time_ms: attention of a step, mean over the steps, warm-up included.
            dense_ms: attention of a stock step.
            warm_up: dense first steps.
            number: of the clip; random and permuted draw by it, the oracle looks at its map.
        """
        if rule in OF_THE_PLAN:
            chosen = self.plan("budget_fitted", time_ms, dense_ms, warm_up)
            seed = number + 1
            if rule == "untrained":
                return chosen
            return random_masks(chosen, seed) if rule == "random" else permute(chosen, seed)
        if rule == "oracle":
            share = self.oracle_share(time_ms, dense_ms, warm_up)
            return self._oracle(self.maps(number), share, self.errors.bins, self.dense_above(warm_up))
        key = (rule, time_ms, dense_ms, warm_up)
        if key not in self._plans:
            self._plans[key] = self._made(rule, time_ms, dense_ms, warm_up)
        return self._plans[key]

    def loss_plan(self, rule: str, time_ms: float, dense_ms: float, warm_up: int, number: int) -> SparsePlan:
        """The same for a held-out clip."""
        if rule != "oracle":
            return self.plan(rule, time_ms, dense_ms, warm_up, number)
        share = self.oracle_share(time_ms, dense_ms, warm_up)
        return self._oracle(self.loss_map(number), share, (0.0, 1.0), 1.0)

    def _oracle(self, maps: NDArray[Any], share: float, bins: Sequence[float], above: float) -> SparsePlan:
        return rules.oracle(maps, share, self.model, self.geometry, bins=bins, dense_above=above)

    def oracle_share(self, time_ms: float, dense_ms: float, warm_up: int) -> float:
        """The share of key blocks at which the oracle takes this time."""
        sparse = self.settings.steps - warm_up
        layer_ms = (time_ms * self.settings.steps - dense_ms * warm_up) / sparse / self.model.layers
        maps = self.maps(FIT)
        return rules.oracle_share(maps[0, self.model.layers // 2], layer_ms, self.geometry, self.hardware)

    def _made(self, rule: str, time_ms: float, dense_ms: float, warm_up: int) -> SparsePlan:
        if rule in REMAINDERS:
            return select(
                self.errors, self.cost(self.candidates), time_ms=time_ms, dense_ms=dense_ms, levels=self.levels,
                dense_above=self.dense_above(warm_up) if warm_up else None, weights=self.settings.weights,
                remainder=REMAINDERS[rule],
            )  # fmt: skip
        if rule == "uniform":
            return rules.best_uniform(self._decided("fitted", warm_up), time_ms, dense_ms)
        decisions = self._decided("none", warm_up)
        return getattr(rules, rule)(decisions, self.known, time_ms, dense_ms)

    def _decided(self, remainder: str, warm_up: int) -> Decisions:
        """Ours with the fitted remainder, the other rules' candidates without; both under our weights."""
        key = (remainder, warm_up)
        if key not in self._decisions:
            errors = self.errors if remainder == "fitted" else self.other_errors
            self._decisions[key] = Decisions(
                errors, self.cost(errors.candidates), levels=self.levels, remainder=remainder,
                dense_above=self.dense_above(warm_up), weights=self.errors.weights(self.settings.weights),
            )  # fmt: skip
        return self._decisions[key]

    def density(self, plan: SparsePlan) -> float:
        """Share of token pairs computed, mean over the steps of a video; dense steps count whole."""
        by_bin = plan.sole.densities().mean(axis=(1, 2))
        bins = [plan.bin_of(level) for level in self.levels]
        return float(np.mean([1.0 if bin_ is None else by_bin[bin_] for bin_ in bins]))

    @property
    def weights_sha256(self) -> str:
        """Of the model's weights."""
        return check_weights(self.settings.model)


__all__ = [
    "FIT",
    "OF_THE_PLAN",
    "Lab",
    "MapRecorder",
    "Settings",
    "block_map",
    "distinct_prompts",
    "save_array",
]
