"""Prices in milliseconds: of a candidate for one head, of a layer, of a plan, of a whole denoising step.

The equation is in `csrc/search/cost.h`, the constants come from `hardware.py`. A price is additive over heads but for
the last items of a layer, which the workers do not end at the same time; `layer_ms` plays that schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.geometry import Geometry, integer
from sparse_vdit.pattern import Pattern
from sparse_vdit.plan import LayerPlan, TransformerPlan, VisitPool
from sparse_vdit.presets import spread_blocks
from sparse_vdit.search.hardware import Hardware, HardwareError

if TYPE_CHECKING:
    from sparse_vdit.search.candidates import Candidates

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class BreakEven:
    """From where on a sparse head is worth it.

    Attributes:
        dense_ms: a full head.
        least_ms: the cheapest candidate that computes anything.
        density: of the densest pattern that is cheaper than a full head; 0 if none is.
        dearer: names of candidates that cost at least a full head, alone or (with " + remainder") with means.
    """

    dense_ms: float
    least_ms: float
    density: float
    dearer: tuple[str, ...]

    def __str__(self) -> str:
        best = self.dense_ms / self.least_ms
        tail = f"; {len(self.dearer)} candidates cost no less than full" if self.dearer else ""
        return (
            f"a full head takes {self.dense_ms:.3g} ms, the cheapest sparse one {self.least_ms:.3g} ms ({best:.3g}x); "
            f"sparse is cheaper up to density {self.density:.2f}{tail}"
        )


@dataclass(frozen=True)
class StepEstimate:
    """A denoising step before it is run: attention now, attention under a plan, and the rest.

    Attributes:
        rest_ms: what no plan changes, measured once.
        dense_ms: attention of a dense step.
        plan_ms: attention under the plan, mean over the steps, predicted.
    """

    rest_ms: float
    dense_ms: float
    plan_ms: float

    @property
    def share(self) -> float:
        """Attention's part of a dense step."""
        return self.dense_ms / (self.dense_ms + self.rest_ms)

    @property
    def ceiling(self) -> float:
        """Speedup if attention took no time (Amdahl); infinite without a rest."""
        return (self.dense_ms + self.rest_ms) / self.rest_ms if self.rest_ms > 0 else np.inf

    @property
    def speedup(self) -> float:
        """Dense step over this plan's."""
        return (self.dense_ms + self.rest_ms) / (self.plan_ms + self.rest_ms)

    def budget_ms(self, speedup: float) -> float:
        """What attention may take per step for a speedup of the whole step.

        Raises:
            ValueError: `cost: speedup is 3, expected less than 2.63: attention is 62 % of the step`.
        """
        budget = (self.dense_ms + self.rest_ms) / speedup - self.rest_ms if speedup > 0 else -1.0
        if budget > 0:
            return budget
        raise ValueError(
            f"cost: speedup is {speedup:g}, expected more than 0 and less than {self.ceiling:.3g}: attention is "
            f"{100 * self.share:.0f} % of the step"
        )

    def __str__(self) -> str:
        return (
            f"attention is {100 * self.share:.0f} % of your step; ceiling {self.ceiling:.1f}x; "
            f"this plan {self.speedup:.1f}x"
        )


class CostModel:
    """Prices for one geometry on one machine.

    Args:
        hardware: constants measured for the dtype, head size and blocks of the calls.
        candidates: of the search; a bare `Geometry` prices layers and plans only.
        heads: of a layer.
        batch: samples per call (both branches of guidance, as the pipeline batches them).

    Raises:
        HardwareError: `cost: the constants are for blocks 128 x 128, expected 64 x 64 (= the geometry)`.

    Example:
        >>> model = CostModel(hardware, candidates, heads=30)
        >>> model.option_ms()[: 2]  # of a head with the first candidate: plain, with remainder
    """

    def __init__(
        self, hardware: Hardware, candidates: Candidates | Geometry, *, heads: int, batch: int = 1
    ) -> None:
        self.hardware = hardware
        self.candidates = None if isinstance(candidates, Geometry) else candidates
        self.geometry = candidates if isinstance(candidates, Geometry) else candidates.geometry
        self.heads = integer("cost", "heads", heads, 1, 256)
        self.batch = integer("cost", "batch", batch, 1, 65535)
        found = (hardware.block_q, hardware.block_k)
        wanted = (self.geometry.block_q, self.geometry.block_k)
        if found != wanted:
            raise HardwareError(
                f"cost: the constants are for blocks {found[0]} x {found[1]}, expected {wanted[0]} x {wanted[1]} "
                "(= the geometry)"
            )

    # ---- one head ----

    def option_ms(self) -> Doubles:
        """Milliseconds of one head with each option, float64 [2 * candidates.count].

        Option 2c is candidate c alone, 2c + 1 with its remainder: a head's additive share of a layer on all
        workers. A mass stripe is priced as as many evenly spread blocks. full and skip take no remainder: both
        options cost the same.
        """
        return self._option_ms.copy()

    @cached_property
    def _option_ms(self) -> Doubles:
        return self._heads_ms(self._pool).ravel()

    @cached_property
    def _pool(self) -> VisitPool:
        """The visits of all candidates; a mass stripe's are those of as many evenly spread blocks."""
        if self.candidates is None:
            raise ValueError("cost: there are no candidates, expected some to price")
        if not self.candidates.mass_stripes:
            return self.candidates.pool
        stripes = [
            Pattern.vertical_stripe(key_blocks=spread_blocks(self.geometry, count))
            for count in self.candidates.mass_stripes
        ]
        patterns = [*self.candidates.patterns, *stripes]
        pooled = [pattern.takes_remainder for pattern in patterns]
        return VisitPool.of_patterns(self.geometry, patterns, pooled)

    def _heads_ms(self, pool: VisitPool) -> Doubles:
        rows, codes = pool.visits
        orders = np.array(pool.order_rows, dtype=np.int32)
        ints = self.geometry.to_ints()
        return _C.cost_heads(self.hardware.array, ints, rows, codes, orders, self.batch, self.heads)

    @cached_property
    def dense_head_ms(self) -> float:
        """A full head's share of a layer of full heads."""
        pool = VisitPool.of_patterns(self.geometry, [Pattern.full()], [False])
        return float(self._heads_ms(pool)[0, 0])

    def worthwhile(self) -> NDArray[np.bool_]:
        """bool [2 * candidates.count]: options cheaper than a full head, and full itself: the break-even guard."""
        found: NDArray[np.bool_] = self.option_ms() < self.dense_head_ms
        if self.candidates is not None:
            found[2 * self.candidates.full] = True
        return found

    def break_even(self) -> BreakEven:
        """Where sparse stops to pay, in numbers."""
        prices, worth, candidates = self.option_ms(), self.worthwhile(), self.candidates
        real = [n for n in range(candidates.count) if candidates.takes_remainder[n]] if candidates else []
        if candidates is None or not real:
            raise ValueError("cost: the candidates are all full or skip, expected others for break_even")
        dearer = [
            candidates.name(n) + tail
            for n in real
            for option, tail in ((2 * n, ""), (2 * n + 1, " + remainder"))
            if not worth[option]
        ]
        density = max((float(candidates.density[n]) for n in real if worth[2 * n]), default=0.0)
        least = min(float(prices[2 * n]) for n in real)
        return BreakEven(self.dense_head_ms, least, density, tuple(dearer))

    # ---- layers and plans ----

    def layer_ms(self, layer: LayerPlan) -> float:
        """Milliseconds of one call of a layer, the schedule over the workers played out."""
        self._check_geometry(layer.geometry)
        return price_layer(self.hardware, layer, self.batch)[0]

    def choice_ms(self, choice: NDArray[np.int32], remainder: NDArray[np.bool_]) -> float:
        """The same for candidates by number, int32 [H], and bool [H] with a remainder."""
        rows, codes = self._pool.visits
        orders = np.array(self._pool.order_rows, dtype=np.int32)
        ints = self.geometry.to_ints()
        found = _C.cost_layers(
            self.hardware.array, ints, rows, codes, choice[None], remainder[None], orders, self.batch
        )
        return float(found[0][0])

    @cached_property
    def dense_layer_ms(self) -> float:
        """One call with all heads full, by our own kernel."""
        return self.layer_ms(LayerPlan(self.geometry, [Pattern.full()] * self.heads))

    def plan_ms(
        self, plan: TransformerPlan, levels: Sequence[float], *, dense_layer_ms: float | None = None
    ) -> float:
        """Attention per step under a plan: milliseconds of all its layers, mean over the steps.

        Args:
            plan: of one transformer.
            levels: noise level of each step; those above the plan's `dense_above` are dense.
            dense_layer_ms: a dense layer as measured in the pipeline, which runs its own backend there; default
                the price of our kernel. It also stands for layers whose heads are all full.
        """
        self._check_geometry(plan.geometry)
        if not len(levels):
            raise ValueError("cost: there are no noise levels, expected one per step")
        dense = self.dense_layer_ms if dense_layer_ms is None else dense_layer_ms
        bins = [plan.bin_of(level) for level in levels]
        layers = range(plan.model.layers)
        prices = {
            bin_: sum(self._plan_layer_ms(plan.layer(bin_, layer), dense) for layer in layers)
            for bin_ in {found for found in bins if found is not None}
        }
        warm_up = dense * plan.model.layers
        return float(np.mean([warm_up if bin_ is None else prices[bin_] for bin_ in bins]))

    def _plan_layer_ms(self, layer: LayerPlan, dense_ms: float) -> float:
        is_full = layer.patterns and all(pattern.kind == "full" for pattern in layer.patterns)
        return dense_ms if is_full else self.layer_ms(layer)

    def step(
        self,
        plan: TransformerPlan,
        levels: Sequence[float],
        *,
        rest_ms: float,
        dense_ms: float | None = None,
    ) -> StepEstimate:
        """The whole step: what the plan leaves of it, before anything is run.

        Args:
            plan, levels: as in `plan_ms`.
            rest_ms: the step without attention, measured once (`StepTimer`).
            dense_ms: attention of a dense step, measured with it; default predicted.
        """
        layers = plan.model.layers
        dense = self.dense_layer_ms * layers if dense_ms is None else dense_ms
        planned = self.plan_ms(plan, levels, dense_layer_ms=dense / layers)
        return StepEstimate(rest_ms=float(rest_ms), dense_ms=float(dense), plan_ms=planned)

    def _check_geometry(self, geometry: Geometry) -> None:
        if geometry != self.geometry:
            raise ValueError(
                f"cost: the geometry is {geometry.to_ints()}, expected {self.geometry.to_ints()} (= the model's)"
            )


def price_layer(hardware: Hardware, layer: LayerPlan, batch: int = 1) -> tuple[float, Doubles]:
    """Milliseconds of one call of a layer, and the additive share of each head, float64 [H]."""
    orders = np.full(len(layer.rows), -1, dtype=np.int32)
    orders[layer.choice] = layer.head_table[:, 0]
    remainder = np.array([beta is not None for beta in layer.remainders], dtype=bool)
    ints = layer.geometry.to_ints()
    ms, head_ms = _C.cost_layers(
        hardware.array, ints, layer.rows, layer.codes, layer.choice[None], remainder[None], orders, batch
    )
    return float(ms[0]), head_ms[0]


@dataclass
class StepTimer:
    """A recorder for `sparse_vdit.observe` that measures what a dense step takes: attention, and the rest.

    A step lasts from its first attention call to the first one of the next step, so one generation of a few steps
    is enough; the first step, which warms up, and the last, whose end is not seen, do not count.

    Example:
        >>> timer = StepTimer()
        >>> with sparse_vdit.observe(pipe, timer):
        ...     pipe(prompt, num_inference_steps=4)
        >>> model.step(plan, levels, rest_ms=timer.rest_ms, dense_ms=timer.dense_ms)
    """

    clock: Callable[[], float] = time.perf_counter
    _starts: dict[int, float] = field(default_factory=dict)
    _attention: dict[int, float] = field(default_factory=dict)

    def __call__(self, step: int, noise_level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        """Runs the host's attention and notes how long it took."""
        start = self.clock()
        self._starts.setdefault(step, start)
        out = dense()
        self._attention[step] = self._attention.get(step, 0.0) + self.clock() - start
        return out

    def _steps(self) -> list[int]:
        steps = sorted(self._starts)
        if len(steps) < 3:
            raise ValueError(f"cost: {len(steps)} steps were timed, expected at least 3")
        return steps

    @property
    def dense_ms(self) -> float:
        """Attention of a step, median."""
        return float(np.median([self._attention[step] for step in self._steps()[1:-1]])) * 1e3

    @property
    def step_ms(self) -> float:
        """A whole step, median."""
        starts = [self._starts[step] for step in self._steps()[1:]]
        return float(np.median(np.diff(starts))) * 1e3

    @property
    def rest_ms(self) -> float:
        """A step without its attention."""
        return max(self.step_ms - self.dense_ms, 0.0)
