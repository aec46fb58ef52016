"""One observed dense video and a clock: what every head costs with every candidate, in error and in milliseconds.

The recorder of the search listens to the stock attention: errors of all candidates on sampled query rows, and how much
the model's output feels each head (gradients of random directions of it). The prompt and the seed are none of those
that are judged later. Then the machine is timed for a few seconds. The plan follows from both by the budget rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..attention import attention
from ..models import observe
from ..pattern import Geometry, Pattern
from ..plan import LayerPlan, SparsePlan
from ..search import HeadErrors, Recorder, ladder
from ..search.calibration import calibrate as time_machine
from ..search.cost import CostModel, StepEstimate
from ..search.density import at_density
from ..search.hardware import Hardware
from ..search.schedule import Schedule
from ..search.select import select
from .pipeline import generate, noise_levels

PROMPT = "magenta ring moving up, slow and cyan square moving left, fast on graded brown ground"
SEED = 7001
BINS = (0.0, 0.3, 0.6, 1.0)  # edges of noise level
WARM_UP = 0.2  # share of the steps that stay dense, rounded down
ROWS = 64  # query rows per head and call
LISTENED = 4  # steps that are measured in a bin, at most
PROBES = 1  # random directions of the output, per noise bin
CLOCK_SECONDS = 4.0  # of the machine's calibration, if that is enough for three rounds of it

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Stock:
    """A step of the stock pipeline, measured alone.

    Attributes:
        seconds: The whole step.
        share: Part of it spent in attention.
    """

    seconds: float
    share: float


@dataclass(frozen=True)
class Calibration:
    """What was measured before a plan could be chosen.

    Attributes:
        errors: Errors of all candidates, by noise bin, layer and head.
        cost: Their prices, in milliseconds of the clock.
        attention_ms: Attention of a stock step by the same clock: the price of our full kernel, over how much
            faster or slower it is than the host's. So it does not matter whether the machine was busier while the
            stock step was measured than while the clock was.
        stock: A step of the stock pipeline.
        levels: Noise level of every step.
        kept_noise: Noise level of `kept`.
        kept: Layer to (q, k, v) [1, H, N, D] at one step, for pictures and kernel times.
        seconds: What the search took: "video" with all that happened in it, of that "probes"; "clock"; "choice".
    """

    errors: HeadErrors
    cost: CostModel
    attention_ms: float
    stock: Stock
    levels: tuple[float, ...]
    kept_noise: float
    kept: dict[int, Tensors]
    seconds: dict[str, float]

    @property
    def rest_ms(self) -> float:
        """A stock step without attention, by the clock."""
        return self.attention_ms * (1 - self.stock.share) / self.stock.share

    def estimate(self, plan: SparsePlan) -> StepEstimate:
        """Returns what the prices say of a step under a plan, mean over all steps."""
        return self.cost.step(plan.sole, self.levels, rest_ms=self.rest_ms, dense_ms=self.attention_ms)


def dense_steps(steps: int) -> int:
    """Returns how many of the first steps stay dense."""
    return int(WARM_UP * steps)


def dense_above(levels: tuple[float, ...]) -> float:
    """Returns the noise level above which a plan stays dense, halfway between two steps."""
    first = dense_steps(len(levels))
    if first == 0:
        return 1.0
    return 0.5 * (levels[first - 1] + levels[first])


def calibrate(
    pipe: Any,
    geometry: Geometry,
    steps: int,
    stock: Stock,
    on_step: Callable[[], object],
    on_stage: Callable[[str], object],
) -> Calibration:
    """Generates the calibration video with stock attention, listens, and times the machine.

    Args:
        pipe: From `pipeline.load`, without a plan.
        geometry: Token layout and blocks of the plans to come.
        steps: Denoising steps.
        stock: A step of the stock pipeline.
        on_step: Called after every step.
        on_stage: Told what comes next.
    """
    levels, seconds = noise_levels(pipe, steps), {"probes": 0.0}
    on_stage("watching a dense video")
    with _counted(seconds, "video"):
        ear = _Ear(pipe, geometry, levels, seconds)
        ear.listen(lambda: generate(pipe, PROMPT, SEED, steps, on_step))
    on_stage("timing the machine")
    with _counted(seconds, "clock"):
        errors = ear.errors(levels)
        hardware = clock(geometry, errors.model.head_dim)
        cost = CostModel(hardware, errors.candidates, heads=errors.model.heads)
        dense_ms = errors.model.layers * cost.dense_layer_ms / dense_ratio(geometry, ear.kept)
    return Calibration(errors, cost, dense_ms, stock, levels, levels[ear.middle], ear.kept, seconds)


def clock(geometry: Geometry, head_dim: int) -> Hardware:
    """Measures what the pieces of an attention call take on this machine."""
    return time_machine(
        head_dim=head_dim,
        block_q=geometry.block_q,
        block_k=geometry.block_k,
        seconds=CLOCK_SECONDS,
        progress=False,
    )


def dense_ratio(geometry: Geometry, kept: Mapping[int, Tensors], layers: int = 3, repeats: int = 3) -> float:
    """Measures seconds of our full kernel over those of the host's attention, in turns on some layers' tensors."""
    some = sorted(kept)[:: max(1, len(kept) // layers)][:layers]
    best = np.full((2, len(some)), np.inf)
    for _ in range(repeats):
        for number, layer in enumerate(some):
            q, k, v = kept[layer]
            full = LayerPlan(geometry, [Pattern.full()] * q.shape[1])
            ways: list[Callable[..., object]] = [
                partial(attention, layer=full),
                F.scaled_dot_product_attention,
            ]
            for way, call in enumerate(ways):
                start = time.perf_counter()
                call(q, k, v)
                best[way, number] = min(best[way, number], time.perf_counter() - start)
    ours, theirs = best.sum(axis=1)
    return float(ours / theirs)


@contextmanager
def _counted(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


class _Ear:
    """The recorder of the search, which also keeps the tensors of the middle one of its steps."""

    def __init__(
        self, pipe: Any, geometry: Geometry, levels: tuple[float, ...], seconds: dict[str, float]
    ) -> None:
        heard = sorted(Schedule(levels).listened(BINS, LISTENED))
        self.pipe, self.seconds = pipe, seconds
        self.middle = heard[len(heard) // 2]
        self.kept: dict[int, Tensors] = {}
        self.recorder = Recorder(
            pipe.transformer, ladder(geometry), BINS, rows=ROWS, seed=SEED, listen=LISTENED, power=PROBES
        )

    def listen(self, run: Callable[[], object]) -> None:
        """Runs one generation."""
        with observe(self.pipe, self), self.recorder.watching(self.pipe), self.recorder.prompt(0):
            run()

    def __call__(self, step: int, noise: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        """What `observe` calls."""
        if step == self.middle and layer not in self.kept:
            self.kept[layer] = (q.clone(), k.clone(), v.clone())
        if torch.is_grad_enabled():  # the recorder runs the step again for its gradients
            return self.recorder(step, noise, layer, q, k, v, dense)
        with _counted(self.seconds, "probes"):
            return self.recorder(step, noise, layer, q, k, v, dense)

    def errors(self, levels: tuple[float, ...]) -> HeadErrors:
        """What was heard, bins without a step joined to others."""
        heard = sorted(Schedule(levels).listened(BINS, LISTENED))
        about = {
            "made_by": "demo",
            "samples": [{"prompt": PROMPT, "seed": SEED}],
            "noise_levels": [round(levels[step], 6) for step in heard],
        }
        return self.recorder.errors(about)["transformer"].without_empty_bins()


def choose_plan(
    calibration: Calibration, density: float, speedup: float | None, about: dict[str, Any]
) -> SparsePlan:
    """Returns the plan of least measured error at a mean density, or at a speed-up of the whole step.

    Args:
        calibration: What was measured.
        density: Budget for the mean over noise bins, layers and heads; without a speed-up.
        speedup: Of all steps, the dense ones at the start included, by the calibrated clock.
        about: What to note in the plan's provenance.
    """
    errors, cost, levels = calibration.errors, calibration.cost, calibration.levels
    note = {"prompt": PROMPT, "noise_seed": SEED, "noise_levels": errors.provenance["noise_levels"]} | about
    above = dense_above(levels)
    if speedup is None:
        return at_density(
            errors, cost, density,
            dense_ms=calibration.attention_ms, levels=levels, dense_above=above, provenance=note,
        )  # fmt: skip
    return select(
        errors, cost, speedup=speedup, rest_ms=calibration.rest_ms,
        dense_ms=calibration.attention_ms, levels=levels, dense_above=above, provenance=note,
    )  # fmt: skip
