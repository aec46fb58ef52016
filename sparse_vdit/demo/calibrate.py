"""One observed dense video: what every head costs with every candidate, and a plan chosen from that.

A recorder listens to the stock attention at the steps, the noisiest one among them, and measures the output error of
all candidates. How much a head's error matters is measured too: by the gradient of the model's output with respect to
the head's output. The prompt and the seed are none of those that are judged later.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..choose import ErrorTable, gradient_power, ladder
from ..models import observe
from ..pattern import Geometry
from ..plan import SparsePlan
from .pipeline import generate, noise_levels

PROMPT = "magenta ring moving up, slow and cyan square moving left, fast on graded brown ground"
SEED = 7001
BINS = (0.0, 0.3, 0.6, 1.0)  # edges of noise level
WARM_UP = 0.2  # share of the steps that stay dense, rounded down
ROWS = 64  # query rows per head and call
LISTENED = 12  # steps that are measured, at most
PROBES = 1  # random directions of the output, per noise bin
DENSITIES = (0.06, 0.1, 0.14, 0.2, 0.28, 0.4)  # of the ladder


@dataclass
class Calibration:
    """What was heard.

    Attributes:
        table: Errors of all candidates.
        noise: Noise levels that were measured.
        weights: How much a relative error of a head matters, [bins, layers, heads], mean 1 in every bin.
        kept_noise: Noise level of `kept`.
        kept: Layer to (q, k, v) [1, H, N, D] at one step, for pictures and kernel times.
    """

    table: ErrorTable
    noise: list[float] = field(default_factory=list)
    weights: np.ndarray = field(default_factory=lambda: np.ones((1, 1, 1)))
    kept_noise: float = 0.0
    kept: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def dense_steps(steps: int) -> int:
    """Returns how many of the first steps stay dense."""
    return int(WARM_UP * steps)


def dense_above(levels: tuple[float, ...]) -> float:
    """Returns the noise level above which a plan stays dense, halfway between two steps."""
    first = dense_steps(len(levels))
    if first == 0:
        return 1.0
    return 0.5 * (levels[first - 1] + levels[first])


def listened_steps(steps: int) -> tuple[int, ...]:
    """Returns the steps that are measured: the first one and others evenly spread over the sparse ones."""
    sparse = range(dense_steps(steps), steps)
    count = min(LISTENED - 1, len(sparse))
    spread = {sparse[round(i * (len(sparse) - 1) / max(count - 1, 1))] for i in range(count)}
    return tuple(sorted({0} | spread))


def calibrate(
    pipe: Any, geometry: Geometry, steps: int, on_step: Callable[[], object] | None = None
) -> Calibration:
    """Generates the calibration video with stock attention and listens.

    Args:
        pipe: From `pipeline.load`, without a plan.
        geometry: Token layout and blocks of the plans to come.
        steps: Denoising steps.
        on_step: Called after every step.
    """
    heard = listened_steps(steps)
    levels = noise_levels(pipe, steps)
    edges = bin_edges(levels, heard)
    table = ErrorTable(pipe.transformer, geometry, ladder(geometry, DENSITIES), edges, rows=ROWS, seed=SEED)
    found = Calibration(table, [levels[step] for step in heard])
    middle = heard[len(heard) // 2]
    found.kept_noise = levels[middle]
    chosen = _one_per_bin(edges, levels, heard)
    states: dict[int, Mapping[str, Any]] = {}

    def recorder(
        step: int, noise: float, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dense: Any
    ) -> None:
        if step in heard:
            table.add(noise, layer, q, k, v)
        if step == middle:
            found.kept[layer] = (q.clone(), k.clone(), v.clone())

    def keep_state(_: Any, __: Any, arguments: Mapping[str, Any]) -> None:
        states[len(states)] = dict(arguments)

    hook = pipe.transformer.register_forward_pre_hook(keep_state, with_kwargs=True)
    try:
        with observe(pipe, recorder):
            generate(pipe, PROMPT, SEED, steps, on_step)
    finally:
        hook.remove()
    power = np.stack([_output_power(pipe, states[step]) for step in chosen])
    found.weights = table.absolute_weights(power)
    return found


def _one_per_bin(edges: tuple[float, ...], levels: tuple[float, ...], heard: tuple[int, ...]) -> list[int]:
    """Returns for every bin the middle one of the steps measured in it; dense steps only where there is no other."""
    found = []
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        last = number == len(edges) - 2
        inside = [step for step in heard if low <= levels[step] and (levels[step] < high or last)]
        sparse = [step for step in inside if step >= dense_steps(len(levels))] or inside
        found.append(sparse[len(sparse) // 2])
    return found


def _output_power(pipe: Any, arguments: Mapping[str, Any]) -> np.ndarray:
    """Returns the mean square of the output's gradient at each head's output, [layers, heads]."""
    transformer = pipe.transformer
    projections = [block.attn1.to_out[0] for block in transformer.transformer_blocks]
    again = {**arguments, "return_dict": False}
    heads = transformer.config.num_attention_heads
    return gradient_power(projections, heads, lambda: transformer(**again)[0], probes=PROBES, seed=SEED)


def bin_edges(levels: tuple[float, ...], heard: tuple[int, ...]) -> tuple[float, ...]:
    """Returns the edges of `BINS` between which something was measured."""
    measured = [levels[step] for step in heard]
    edges = [BINS[0]]
    for edge in BINS[1:]:
        if edge == BINS[-1] or any(edges[-1] <= level < edge for level in measured):
            edges.append(edge)
    if len(edges) > 2 and not any(edges[-2] <= level for level in measured):
        del edges[-2]
    return tuple(edges)


def choose_plan(
    calibration: Calibration, density: float, levels: tuple[float, ...], about: dict[str, Any]
) -> SparsePlan:
    """Returns the plan of least measured error whose mean density is at most `density`.

    Args:
        calibration: What was heard.
        density: Budget for the mean over noise bins, layers and heads.
        levels: Noise level of every step.
        about: What to note in the plan's provenance.
    """
    return calibration.table.select(
        mean_density=density,
        weights=calibration.weights,
        dense_above=dense_above(levels),
        provenance={"prompt": PROMPT, "noise_seed": SEED, "noise_levels": calibration.noise} | about,
    )
