"""Predicted against measured: random mixed plans, priced before they run.

The layers of the calibration and the plans take turns in the same rounds, so that a machine which changes its clock
changes both; the constants are fitted to the calibration's layers alone. `--hardware FILE` takes the constants from
a file instead, measured at another time: then the errors hold what the clock did since.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, attention
from sparse_vdit.search import calibration
from sparse_vdit.search.cost import CostModel
from sparse_vdit.search.hardware import Hardware, Machine

PLANS = 20  # per geometry
#: The demo's geometry with its 2 heads, and a larger one.
CASES = (
    (Geometry(16, 16, 16, prefix=8, block_q=64, block_k=64), 2),
    (Geometry(8, 32, 32, block_q=64, block_k=64), 4),
)
HEAD_DIM = 64
COST_KEYS = [
    "bench", "device", "isa", "threads", "dtype", "head_dim", "tokens", "heads", "plan", "density", "predicted_ms",
    "measured_ms", "error", "constants", "commit",
]  # fmt: skip

Row = dict[str, Any]


def random_pattern(geometry: Geometry, rng: np.random.Generator) -> Pattern:
    """Any family, any density, with a remainder or without."""
    n, block = geometry.key_blocks, geometry.block_k
    blocks = max(1, round(n * float(rng.uniform(0.15, 0.95)) ** 2))
    width = blocks * block // 2
    stripe = sorted(int(b) for b in rng.permutation(n)[: max(1, blocks // 2)])
    tiles = Order.tiles(2, 8, 8)
    near = int(rng.integers(1, 4))
    families = {
        "diagonal": lambda: Pattern.diagonal(half_width=width),
        "sinks": lambda: Pattern.diagonal(half_width=width, sink_frames=1),
        "multi_diagonal": lambda: Pattern.multi_diagonal(half_width=width),
        "vertical_stripe": lambda: Pattern.vertical_stripe(key_blocks=stripe),
        "stripe_in_tiles": lambda: Pattern.vertical_stripe(key_blocks=stripe, order=tiles),
        "diagonal_stripe": lambda: Pattern.union(
            Pattern.diagonal(half_width=width // 2), Pattern.vertical_stripe(key_blocks=stripe)
        ),
        "multi_stripe": lambda: Pattern.union(
            Pattern.multi_diagonal(half_width=width // 2),
            Pattern.vertical_stripe(key_blocks=stripe, order=Order.token_major()),
        ),
        "tiles": lambda: Pattern.periodic_tiles(
            tile=(2, 8, 8), time=(near, 0, None), rows=(2, 0, None), columns=(near, 0, None)
        ),
        "periodic_tiles": lambda: Pattern.periodic_tiles(
            tile=(2, 4, 8), time=(1, 0, near + 1), space=(near, 0, 4)
        ),
        "full": Pattern.full,
        "skip": Pattern.skip,
    }
    rare = {"full": 0.5, "skip": 0.5}
    weights = np.array([rare.get(name, 1.0) for name in families])
    pattern = families[str(rng.choice(list(families), p=weights / weights.sum()))]()
    if pattern.takes_remainder and rng.random() < 0.5:
        pattern = pattern.with_remainder(float(rng.uniform(-2, 3)))
    return pattern


def random_plans(
    hardware: Hardware, geometry: Geometry, heads: int, rng: np.random.Generator
) -> list[calibration.Sample]:
    """Layers of random heads over the same random numbers; a layer that is all skip would say nothing."""
    q, k, v = calibration.random_arrays(hardware, geometry.tokens, heads, rng)
    found: list[calibration.Sample] = []
    while len(found) < PLANS:
        patterns = [random_pattern(geometry, rng) for _ in range(heads)]
        layer = LayerPlan(geometry, patterns)
        if layer.density() == 0:
            continue
        name = ", ".join(p.kind + ("" if p.remainder is None else "+") for p in patterns)
        layer.items()
        found.append(calibration.Sample(name, layer, partial(attention, q, k, v, layer=layer)))
    return found


def cost_rows(options: Any, common: Row) -> Iterator[Row]:
    """A row per plan."""
    dtype, seconds = "float32", options.seconds or (15.0 if options.quick else 60.0)
    block_q, block_k = CASES[0][0].block_q, CASES[0][0].block_k
    known = calibration.known_constants(dtype, HEAD_DIM, block_q, block_k)
    rng = np.random.default_rng(7)
    fit = [] if options.hardware else calibration.samples(known, rng)
    plans = [random_plans(known, geometry, heads, rng) for geometry, heads in CASES]
    everything = fit + [sample for group in plans for sample in group]
    ms = calibration.measure(everything, seconds, options.threads)
    if options.hardware:
        hardware = Machine.load(options.hardware).find(dtype, HEAD_DIM, block_q, block_k)
    else:
        layers = [sample.layer for sample in fit]
        hardware = calibration.fitted(known.replaced(workers=options.threads), layers, ms[: len(fit)])
    times = iter(ms[len(fit) :])
    for (geometry, heads), group in zip(CASES, plans, strict=True):
        model = CostModel(hardware, geometry, heads=heads)
        for sample in group:
            predicted, measured = model.layer_ms(sample.layer), float(next(times))
            yield common | {
                "bench": "cost",
                "dtype": dtype,
                "head_dim": HEAD_DIM,
                "tokens": geometry.tokens,
                "heads": heads,
                "plan": sample.name,
                "density": sample.layer.density(),
                "predicted_ms": predicted,
                "measured_ms": measured,
                "error": predicted / measured - 1,
                "constants": "file" if options.hardware else "same rounds",
            }


def summary(rows: list[Row]) -> str:
    """Median and worst error, by geometry and of all; what all plans share is the clock's doing."""
    lines = []
    for tokens in [*sorted({row["tokens"] for row in rows}), None]:
        errors = [abs(row["error"]) for row in rows if tokens in (row["tokens"], None)]
        what = "all" if tokens is None else f"{tokens} tokens"
        lines.append(
            f"{what:>12}: {len(errors)} plans, median error {100 * np.median(errors):.1f} % (goal 5), worst "
            f"{100 * max(errors):.1f} % (goal 12)"
        )
    ratios = np.array([1 + row["error"] for row in rows])
    common = float(np.median(ratios))
    apart = np.abs(ratios / common - 1)
    lines.append(
        f"shared by all plans {100 * (common - 1):+.1f} %; without it median {100 * np.median(apart):.1f} %, worst "
        f"{100 * apart.max():.1f} %"
    )
    return "\n".join(lines)


def line(row: Row) -> str:
    """One plan."""
    return (
        f"{row['tokens']:>6} x {row['heads']}  {row['density']:.3f}  {row['measured_ms']:>8.2f} ms  predicted "
        f"{row['predicted_ms']:>8.2f}  {100 * row['error']:>+6.1f} %  {row['plan']}"
    )
