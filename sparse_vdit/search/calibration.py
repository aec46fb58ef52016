"""Measures a machine: times of small layers, from which the constants of `hardware.py` follow by least squares.

Each layer is a set of block masks that stresses one piece: few or many key blocks, in one run or scattered, with
means, in another order, skipped. What a layer should cost is linear in the constants, so the matrix of the fit is
made by the cost model itself (`_C.cost_layers` with one constant 1 and the others 0): there is no second copy of the
equation. Layers take turns, round after round; what is fitted are medians over rounds, a round's own speed taken
out. All workers run: what they share, they share here too. Layers of random heads, which the fit does not see,
take their turns too and are the check.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparse_vdit import _C
from sparse_vdit.attention import attention
from sparse_vdit.pattern import Geometry, Order
from sparse_vdit.plan import LayerPlan
from sparse_vdit.search.cost import price_layer
from sparse_vdit.search.hardware import TIMES, Hardware

HEADS = 2  # at least
CHECKS = 8
ITEMS_PER_WORKER = 16  # at least, so that the last ones do not matter
MAX_HEADS = 16
LEAST_ROUNDS = 3
#: A query block is computed or zeroed, and packed in any case: one of the three constants is not to be told from
#: the other two, and zeros are the least of them.
FITTED = tuple(name for name in TIMES if name != "zero_us")
OUTLIER = 0.02  # relative error from which on a layer counts by its distance, not by the square (Huber)
ROBUST_ROUNDS = 4
CACHE_TOKENS = [4096 * 2 ** (n / 2) for n in range(15)]  # tokens x heads: 4,096 to half a million


@dataclass(frozen=True)
class Sample:
    """A layer to measure, and the arrays it runs on."""

    name: str
    layer: LayerPlan
    run: Callable[[], object]


def calibrate(
    *,
    dtype: str = "float32",
    head_dim: int = 64,
    block_q: int = 64,
    block_k: int = 64,
    seconds: float = 30.0,
    seed: int = 0,
    progress: bool = True,
) -> Hardware:
    """Measures the constants of this machine for one dtype, head size and pair of block sizes.

    Args:
        dtype: "float32", "float16" or "bfloat16" (which needs torch).
        head_dim, block_q, block_k: of the calls to come.
        seconds: what it may take; less than 10 gives rough constants.
        seed: of the masks and of the data.
        progress: a progress bar on stderr.

    Returns:
        The constants, with the errors of the check.
    """
    if not seconds > 0:
        raise ValueError(f"calibrate: seconds is {seconds}, expected more than 0")
    start = known_constants(dtype, head_dim, block_q, block_k)
    rng = np.random.default_rng(seed)
    fit, check = samples(start, rng), mixed_samples(start, rng)
    with tqdm(total=100, desc="calibrate", unit="%", disable=not progress, leave=False) as bar:
        ms = measure([*fit, *check], seconds, start.workers, bar)
    found = fitted(start, [sample.layer for sample in fit], ms[: len(fit)])
    errors = np.abs([predict(found, s.layer) / t - 1 for s, t in zip(check, ms[len(fit) :], strict=True)])
    return dataclasses.replace(found, median_error=float(np.median(errors)), worst_error=float(errors.max()))


def known_constants(dtype: str, head_dim: int, block_q: int, block_k: int) -> Hardware:
    """What is known of this machine's engine without measuring; all times are 0."""
    known = _C.hardware_engine(dtype, head_dim)
    engine = _C.attention_engine(dtype, head_dim)
    return Hardware(engine, dtype, head_dim, block_q, block_k, tuple(known.tolist()))


# ---- layers ----


def samples(hardware: Hardware, rng: np.random.Generator) -> list[Sample]:
    """What the fit sees: every constant is large in some of them."""
    geometry = _geometry(hardware)
    tiny = dataclasses.replace(geometry, frames=1, height=hardware.block_q, width=1, prefix=0)
    make = _Maker(hardware, geometry, rng)
    n = geometry.key_blocks
    counts = sorted({c for c in (1, 2, 4, 8, n // 6, n // 4, n // 2, n - 1) if 1 <= c <= n})
    token, tiles = Order.token_major(), Order.tiles(2, 8, 8)
    found = [make.sample("dense", make.runs(n))]
    found += [make.sample(f"run of {c}", make.runs(c)) for c in counts]
    found += [make.sample(f"{c} scattered", make.scattered(c)) for c in counts]
    found += [make.sample(f"{c} scattered, means", make.scattered(c), remainder=True) for c in counts[::2]]
    found += [make.sample("means alone", make.scattered(0), remainder=True)]
    found += [make.sample(f"run of {c}, means", make.runs(c), remainder=True) for c in counts[1::3]]
    for name, order in (("token_major", token), ("tiles", tiles)):
        found += [make.sample(f"run of {c}, {name}", make.runs(c), order=order) for c in counts[:3]]
    found += [make.sample("last block", make.last()), make.sample("mostly skipped", make.runs(1, every=8))]
    found += [make.sample(f"{h} heads", make.runs(1), heads=h) for h in (1, 4, 8, 12)]
    small = _Maker(hardware, tiny, rng)
    return [*found, small.sample("one block", small.runs(1), heads=1)]


def mixed_samples(hardware: Hardware, rng: np.random.Generator, count: int = CHECKS) -> list[Sample]:
    """Layers of random heads, which the fit does not see."""
    geometry = _geometry(hardware)
    make = _Maker(hardware, geometry, rng)
    orders = [Order.frame_major(), Order.token_major(), Order.tiles(2, 8, 8)]
    found = []
    for number in range(count):
        masks, remainders, used = [], [], []
        for _ in range(make.heads):
            c = int(rng.integers(1, geometry.key_blocks + 1) ** 1.5 / geometry.key_blocks**0.5) + 1
            masks.append(make.runs(c) if rng.random() < 0.5 else make.scattered(c))
            remainders.append(0.0 if rng.random() < 0.5 else None)
            used.append(orders[int(rng.integers(3))])
        found.append(make.of_masks(f"mixed {number}", masks, used, remainders))
    return found


def _geometry(hardware: Hardware) -> Geometry:
    return Geometry(16, 16, 16, prefix=8, block_q=hardware.block_q, block_k=hardware.block_k)


class _Maker:
    """Random masks over one geometry, and the arrays that all layers share."""

    def __init__(self, hardware: Hardware, geometry: Geometry, rng: np.random.Generator) -> None:
        self.hardware, self.geometry, self.rng = hardware, geometry, rng
        self.shape = (geometry.query_blocks, geometry.key_blocks)
        self.arrays: dict[int, list[Any]] = {}
        wanted = -(-ITEMS_PER_WORKER * hardware.workers // geometry.query_blocks)
        self.heads = min(max(wanted, HEADS), MAX_HEADS)

    def runs(self, count: int, every: int = 1) -> NDArray[np.bool_]:
        """One run of key blocks for every `every`-th query block."""
        mask = np.zeros(self.shape, dtype=bool)
        for row in mask[::every]:
            first = self.rng.integers(0, self.shape[1] - min(count, self.shape[1]) + 1)
            row[first : first + count] = True
        return mask

    def scattered(self, count: int) -> NDArray[np.bool_]:
        """Key blocks anywhere."""
        mask = np.zeros(self.shape, dtype=bool)
        for row in mask:
            row[self.rng.permutation(self.shape[1])[:count]] = True
        return mask

    def last(self) -> NDArray[np.bool_]:
        """The last key block, which is short."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[:, -1] = True
        return mask

    def sample(
        self,
        name: str,
        mask: NDArray[np.bool_],
        remainder: bool = False,
        order: Order | None = None,
        heads: int | None = None,
    ) -> Sample:
        """All heads alike."""
        heads = heads or self.heads
        orders = [order or Order.frame_major()] * heads
        return self.of_masks(name, [mask] * heads, orders, [0.0 if remainder else None] * heads)

    def of_masks(
        self,
        name: str,
        masks: Sequence[NDArray[np.bool_]],
        orders: Sequence[Order],
        betas: Sequence[float | None],
    ) -> Sample:
        layer = LayerPlan.from_block_masks(self.geometry, masks, orders, betas)
        layer.items()
        return Sample(name, layer, partial(self._run, layer))

    def _run(self, layer: LayerPlan) -> None:
        """One call; the arrays are made with the first one that needs them."""
        if layer.heads not in self.arrays:
            self.arrays[layer.heads] = random_arrays(
                self.hardware, self.geometry.tokens, layer.heads, self.rng
            )
        q, k, v = self.arrays[layer.heads]
        attention(q, k, v, layer=layer)


def random_arrays(hardware: Hardware, tokens: int, heads: int, rng: np.random.Generator) -> list[Any]:
    """q, k, v [1, H, N, D] as transposed views, the layout in which models hand them over."""
    shape = (1, tokens, heads, hardware.head_dim)
    plain = [rng.standard_normal(shape, dtype=np.float32) for _ in range(3)]
    if hardware.dtype != "bfloat16":
        return [array.astype(hardware.dtype).transpose(0, 2, 1, 3) for array in plain]
    import torch

    return [torch.from_numpy(array).to(torch.bfloat16).transpose(1, 2) for array in plain]


# ---- times ----


def measure(samples: Sequence[Sample], seconds: float, threads: int, bar: Any = None) -> NDArray[np.float64]:
    """Milliseconds of each layer, medians over rounds; the layers take turns.

    On one thread its own seconds count, so that other programs do not.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    before = _C.build_info()["threads"]
    _C.set_threads(threads)
    gc.disable()
    try:
        for sample in samples:
            sample.run()
        times = _rounds(samples, seconds, clock, bar)
    finally:
        gc.enable()
        _restore_threads(before)
    return robust_times(times)


def _restore_threads(before: int) -> None:
    """Back to the automatic count where that is what it was."""
    _C.set_threads(0)
    if _C.build_info()["threads"] != before:
        _C.set_threads(before)


def _rounds(
    samples: Sequence[Sample], seconds: float, clock: Callable[[], float], bar: Any
) -> NDArray[np.float64]:
    rounds: list[list[float]] = []
    start = now = time.perf_counter()
    longest, shown = 0.0, 0
    while len(rounds) < LEAST_ROUNDS or now - start + longest < seconds:
        rounds.append([_once_ms(sample.run, clock) for sample in samples])
        longest, now = max(longest, time.perf_counter() - now), time.perf_counter()
        if bar is not None:
            done = min(bar.total, round(bar.total * (now - start) / seconds))
            bar.update(done - shown)
            shown = done
    return np.array(rounds)


def _once_ms(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return (clock() - start) * 1e3


def robust_times(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians over rounds [R, n] -> [n] after each round's own speed, common to all layers, is taken out."""
    middle = np.median(times, axis=0)
    speed = np.median(times / middle, axis=1, keepdims=True)
    result: NDArray[np.float64] = np.median(times / speed, axis=0) * np.median(speed)
    return result


# ---- constants ----


def predict(hardware: Hardware, layer: LayerPlan) -> float:
    """Milliseconds of one call."""
    return price_layer(hardware, layer)[0]


def fitted(hardware: Hardware, layers: Sequence[LayerPlan], ms: NDArray[np.float64]) -> Hardware:
    """The times that explain the milliseconds best, in relative error, measured with the workers of `hardware`.

    A layer that fits badly (disturbed, or beyond the equation) does not bend the others.

    The size of the cache is the one number that they do not depend on linearly: it is tried out.
    """
    nothing = hardware.replaced(**dict.fromkeys(TIMES, 0.0))
    fixed = {name: _column(nothing, name, layers) / ms for name in FITTED if name != "far_us"}
    found = []
    for cache_tokens in (0.0, *CACHE_TOKENS):
        there = nothing.replaced(cache_tokens=cache_tokens)
        columns = fixed | {"far_us": _column(there, "far_us", layers) / ms}
        values, loss = robust_fit(np.stack([columns[name] for name in FITTED], axis=1))
        found.append((loss, there.replaced(**dict(zip(FITTED, values.tolist(), strict=True)))))
    return min(found, key=lambda fit: fit[0])[1]


def _column(nothing: Hardware, name: str, layers: Sequence[LayerPlan]) -> NDArray[np.float64]:
    """Milliseconds of each layer if one constant is 1 and all others are 0."""
    unit = nothing.replaced(**{name: 1.0})
    return np.array([predict(unit, layer) for layer in layers])


def robust_fit(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """x >= 0 for which matrix x is about 1 everywhere, by Huber's loss, and that loss."""
    weights = np.ones(len(matrix))
    for _ in range(ROBUST_ROUNDS):
        values = least_squares(matrix * weights[:, None], weights)
        errors = np.abs(matrix @ values - 1.0)
        weights = np.sqrt(OUTLIER / np.maximum(errors, OUTLIER))
    loss = np.where(errors < OUTLIER, errors**2, OUTLIER * (2 * errors - OUTLIER))
    return values, float(loss.sum())


def least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """x >= 0 with the least |matrix x - target|: Lawson and Hanson's active sets; unused columns give 0."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    a = matrix / scale
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], dtype=bool)
    for _ in range(10 * a.shape[1]):
        gain = a.T @ (target - a @ x)
        gain[free] = -np.inf
        if gain.max(initial=-np.inf) <= 1e-12:
            break
        free[int(np.argmax(gain))] = True
        while True:
            wanted = np.zeros_like(x)
            wanted[free] = np.linalg.lstsq(a[:, free], target, rcond=None)[0]
            below = free & (wanted <= 0)
            if not below.any():
                break
            step = np.min(x[below] / np.maximum(x[below] - wanted[below], 1e-300))
            x = x + step * (wanted - x)
            free &= x > 1e-15
            x[~free] = 0.0
        x = wanted
    result: NDArray[np.float64] = x / scale
    return result
