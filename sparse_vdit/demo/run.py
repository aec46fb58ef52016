"""The main job on the embedded model: choose a plan, make videos dense and sparse, compare, write it down.

    watch a dense video, time the machine ─► choose ─► videos: dense, sparse, controls ─► held-out loss
    ─► files, page, report.json

Nothing is written before everything is measured, and every file is whole or not there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..attention import attention
from ..errors import SparseVDiTError
from ..info import build_info
from ..models import applied, explain
from ..plan import SparsePlan
from ..report import page, video
from ..report.compare import Run, compare
from ..report.files import write_json
from ..search.cost import StepEstimate
from . import scenes, story
from .calibrate import BINS, CLOCK_SECONDS, Calibration, Stock, calibrate, choose_plan
from .controls import controls
from .pipeline import MODEL, attention_share, check_weights, generate, geometry, load, velocity_losses
from .prompt import describe, encode
from .results import Results, numbers

log = logging.getLogger(__name__)

PROMPTS = (
    "red disc moving right, fast on plain navy ground",
    "cyan disc moving up, fast on plain black ground",
    "green triangle moving left, fast on graded white ground",
    "yellow ring moving down, fast on plain brown ground",
    "blue square moving left, fast on plain white ground",
)
FIRST_SEED = 100
FIRST_CLIP = 500  # of the held-out scenes
LOSS_SEED = 9000
LOWEST_LEVEL = 60  # timestep of the least noisy held-out clip
SECONDS = 270.0  # all of it should take
LEAST_SEEDS = 2
PACKAGES = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "av": "av",
    "PIL": "pillow",
    "diffusers": "diffusers",
}


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        out: Folder for the results.
        model: Folder of the checkpoint.
        seeds: Videos, at most; a slow machine makes fewer, never below two.
        steps: Denoising steps.
        block: Tokens of a block.
        density: Mean density of the plan.
        clips: Held-out clips.
        progress: Show progress bars.
        speedup: Of a step, dense warm-up included, as predicted; instead of the density.
    """

    out: Path
    model: Path = MODEL
    seeds: int = 3
    steps: int = 12
    block: int = 64
    density: float = 0.25
    clips: int = 12
    progress: bool = True
    speedup: float | None = None


class Progress:
    """A bar that counts transformer calls over all stages; plain lines where nobody watches."""

    def __init__(self, calls: int, shown: bool) -> None:
        from tqdm import tqdm

        self.lines = shown and not sys.stderr.isatty()
        form = "{desc:<28} {bar} {n_fmt}/{total_fmt} calls, {elapsed} < {remaining}"
        self.bar = tqdm(total=calls, disable=not shown or self.lines, bar_format=form, leave=False)

    def stage(self, name: str) -> None:
        """Names what comes next."""
        self.bar.set_description_str(name)
        if self.lines:
            log.info("demo: %s", name)

    def step(self) -> None:
        """Counts a call."""
        self.bar.update()

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


@contextmanager
def _progress(calls: int, shown: bool) -> Iterator[Progress]:
    progress = Progress(calls, shown)
    try:
        yield progress
    finally:
        progress.close()


def seed_count(settings: Settings, step_seconds: float) -> tuple[int, str | None]:
    """Returns how many seeds fit into `SECONDS`, and a sentence if they are fewer than asked for."""
    sparse = 0.55  # of a dense step, with warm-up; a first guess, the measurement follows
    watched = settings.steps * 1.1 + 3 * (len(BINS) - 1)  # with probes, and a gradient in every noise bin
    once = watched + settings.clips * (1 + 4 * sparse)
    each = settings.steps * (1 + 4 * sparse)
    fit = int(((SECONDS - 2 * CLOCK_SECONDS) / step_seconds - once) / each)
    count = max(min(settings.seeds, LEAST_SEEDS), min(settings.seeds, fit))
    if count == settings.seeds:
        return count, None
    return count, (
        f"{count} videos instead of {settings.seeds}: a dense step takes {step_seconds:.1f} s here, and the "
        f"whole comparison should end within about {SECONDS / 60:.1f} minutes."
    )


def check(settings: Settings) -> None:
    """Finds out before the work what would stop it at the end.

    Raises:
        SparseVDiTError: A package is missing.
        OSError: The folder cannot be written to.
    """
    for name, package in PACKAGES.items():
        if importlib.util.find_spec(name) is None:
            raise SparseVDiTError(
                f"demo: {package} is not installed, expected pip install 'sparse-vdit[demo]'"
            )
    settings.out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=settings.out):
        pass


def run(settings: Settings) -> dict[str, Any]:
    """Runs the comparison and writes its files.

    Args:
        settings: What to run.

    Returns:
        The content of report.json.

    Raises:
        SparseVDiTError: No call reached the sparse kernel, or a package is missing.
        OSError: The folder cannot be written to.
    """
    begin = time.perf_counter()
    check(settings)
    pipe = load(settings.model)
    stock = Stock(*attention_share(pipe))
    if settings.speedup is not None:  # beyond the ceiling: said at once
        StepEstimate(1 - stock.share, stock.share, stock.share).budget_ms(settings.speedup)
    seeds, fewer = seed_count(settings, stock.seconds)
    if fewer:
        log.info("demo: %s", fewer)
    calls = settings.steps * (1 + 5 * seeds) + 5 * settings.clips
    with _progress(calls, settings.progress) as progress:
        measured = _measure(pipe, settings, seeds, stock, progress)
    clock = measured["calibration"].cost.hardware
    doubts = [f"Predicted times are doubtful: {clock.doubt}"] if clock.is_doubtful else []
    notes = [*([fewer] if fewer else []), *doubts, *story.standing_notes(settings.steps)]
    took = time.perf_counter() - begin
    results = Results(**measured, facts=_facts(pipe, settings, took), notes=notes)
    return _write(results, settings.out)


def _measure(pipe: Any, settings: Settings, seeds: int, stock: Stock, progress: Progress) -> dict[str, Any]:
    layout = geometry(pipe, settings.block)
    calibration = calibrate(pipe, layout, settings.steps, stock, progress.step, progress.stage)
    progress.stage("choosing a plan")
    start = time.perf_counter()
    plan = choose_plan(calibration, settings.density, settings.speedup, {"model": str(settings.model.name)})
    estimate = calibration.estimate(plan)
    calibration.seconds["choice"] = time.perf_counter() - start
    ratios = kernel_ratios(plan, calibration)
    others = controls(calibration, plan)
    plans = {"sparse": lambda seed: plan, **others}
    counted = [0]

    def way(name: str) -> Any:
        def make(seed: int) -> Run:
            progress.stage(f"video {seed - FIRST_SEED + 1} of {seeds}: {name}")
            prompt = PROMPTS[(seed - FIRST_SEED) % len(PROMPTS)]
            if name == "dense":
                return generate(pipe, prompt, seed, settings.steps, progress.step)
            with applied(pipe, plans[name](seed)):
                made = generate(pipe, prompt, seed, settings.steps, progress.step)
                calls = explain(pipe).sparse_calls
            if not calls:
                raise SparseVDiTError(
                    f"demo: the {name} video made 0 calls of the sparse kernel, expected some"
                )
            counted[0] += calls if name == "sparse" else 0
            return made

        return make

    chosen = [FIRST_SEED + i for i in range(seeds)]
    ways = compare({name: way(name) for name in ("dense", *plans)}, chosen)
    return {
        "ways": ways,
        "seeds": chosen,
        "prompts": [PROMPTS[i % len(PROMPTS)] for i in range(seeds)],
        "densities": {name: plans[name](FIRST_SEED).density() for name in plans},
        "losses": _losses(pipe, settings, plans, plan.dense_above, progress),
        "plan": plan,
        "calibration": calibration,
        "estimate": estimate,
        "kernel_ratio": ratios,
        "sparse_calls": counted[0],
    }


def _losses(
    pipe: Any, settings: Settings, plans: dict[str, Any], dense_above: float, progress: Progress
) -> dict[str, list[float]]:
    """Held-out loss per clip of dense and all plans, at timesteps spread over where the plans are sparse."""
    clips = []
    for number in range(settings.clips):
        frames, prompt = scenes.held_out(FIRST_CLIP + number)
        clips.append((torch.from_numpy(frames), encode(describe(prompt))))
    top = int(dense_above * 1000) - 1
    levels = [int(t) for t in np.linspace(LOWEST_LEVEL, top, settings.clips).round()]
    found = {}
    for name in ("dense", *plans):
        progress.stage(f"held-out loss: {name}")
        with applied(pipe, plans[name](FIRST_SEED)) if name != "dense" else nullcontext():
            found[name] = velocity_losses(pipe, clips, levels, LOSS_SEED, progress.step)
    return found


def kernel_ratios(plan: SparsePlan, calibration: Calibration, repeats: int = 2) -> list[float]:
    """Measures sparse over dense seconds of all layers' attention, by noise bin, on the kept tensors."""
    bins = len(plan.bins) - 1
    seconds = np.full((1 + bins, len(calibration.kept)), np.inf)  # the dense kernel first
    for _ in range(repeats):
        for layer, (q, k, v) in calibration.kept.items():
            sheets = [plan.layer(number, layer) for number in range(bins)]
            dense = partial(F.scaled_dot_product_attention, q, k, v)
            ways = [dense, *(partial(attention, q, k, v, layer=sheet) for sheet in sheets)]
            for way, call in enumerate(ways):
                start = time.perf_counter()
                call()
                seconds[way, layer] = min(seconds[way, layer], time.perf_counter() - start)
    return [float(ratio) for ratio in seconds[1:].sum(1) / seconds[0].sum()]


def _facts(pipe: Any, settings: Settings, took: float) -> dict[str, Any]:
    built = build_info()
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "instruction set": built["isa"],
        "sparse_vdit": metadata.version("sparse-vdit") if _installed() else built.get("version", ""),
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
        "python": platform.python_version(),
        "steps": settings.steps,
        "block": settings.block,
        "held-out clips": settings.clips,
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "tokens": geometry(pipe, settings.block).tokens,
        "weights": check_weights(settings.model),
        "seconds in all": round(took, 1),
    }


def _installed() -> bool:
    try:
        metadata.version("sparse-vdit")
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def _write(results: Results, out: Path) -> dict[str, Any]:
    """Writes videos, plan and page, and report.json last."""
    found = numbers(results)
    built = story.build_page(results)
    for number, seed in enumerate(results.seeds):
        dense, sparse = (results.ways[name].runs[number].video for name in ("dense", "sparse"))
        for name, way in results.ways.items():
            video.write(out / "videos" / f"{seed}-{name}.mp4", way.runs[number].video)
        pair = video.side_by_side([dense, sparse, video.difference(dense, sparse, story.GAIN)])
        video.write(out / "videos" / f"{seed}-compare.gif", pair)
    for section, name in zip(built.sections, story.SECTIONS, strict=True):
        if section.figure is not None:
            section.figure.save(out / "figures" / f"{name}.png")
    results.plan.save_pretrained(out)
    page.write(out / "report.html", built)
    write_json(out / "report.json", found)
    return found
