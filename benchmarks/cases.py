"""What is measured, as data: geometries, patterns of a wanted density, shapes of real models."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from sparse_vdit import Geometry, LayerPlan, Pattern

# 8,192 tokens without other tokens; a box of 2 x 8 x 8 is one block of 128.
QUICK = Geometry(frames=8, height=32, width=32)
# CogVideoX1.5 at 81 frames of 768 x 1360: the size of the visit-list bar.
LONG = Geometry(frames=33, height=45, width=80, suffix=256)
GROWTH_TOKENS = (4096, 8192, 16384, 32768, 65536)
GROWTH_HALF_WIDTH = 511  # the same band at every length

FAMILIES = ("diagonal", "multi_diagonal", "vertical_stripe", "periodic_tiles")
DENSITIES = (0.25, 0.10)


def density(geometry: Geometry, pattern: Pattern) -> float:
    return LayerPlan(geometry, [pattern]).density()


def _nearest(geometry: Geometry, wanted: float, candidates: list[Pattern]) -> Pattern:
    return min(candidates, key=lambda pattern: abs(density(geometry, pattern) - wanted))


def _bands(geometry: Geometry, make: Callable[..., Pattern]) -> list[Pattern]:
    return [make(half_width=n * geometry.block_k - 1) for n in range(1, geometry.key_blocks // 2)]


def _stripes(geometry: Geometry) -> list[Pattern]:
    n = geometry.key_blocks
    return [
        Pattern.vertical_stripe(key_blocks=sorted({i * n // count for i in range(count)}))
        for count in range(1, n)
    ]


def _tiles(geometry: Geometry) -> list[Pattern]:
    widths = itertools.product(range(1, 5), range(1, 5), range(1, 5))
    return [
        Pattern.periodic_tiles(tile=(2, 8, 8), time=(t, 0, None), rows=(r, 0, None), columns=(c, 0, None))
        for t, r, c in widths
    ]


def pattern_of(geometry: Geometry, family: str, wanted: float) -> Pattern:
    """The pattern of a family whose cover is nearest to the wanted density."""
    candidates = {
        "diagonal": lambda: _bands(geometry, Pattern.diagonal),
        "multi_diagonal": lambda: _bands(geometry, Pattern.multi_diagonal),
        "vertical_stripe": lambda: _stripes(geometry),
        "periodic_tiles": lambda: _tiles(geometry),
    }[family]()
    return _nearest(geometry, wanted, candidates)


def visit_list_patterns() -> list[Pattern]:
    """24 distinct patterns of mean density at most .35 at 119,056 tokens: 8 + 6 + 4 + 4 + 2."""
    frame, n = LONG.height * LONG.width, LONG.key_blocks
    diagonal = [Pattern.diagonal(half_width=frame * k, sink_frames=k % 2) for k in range(1, 9)]
    multi = [Pattern.multi_diagonal(half_width=LONG.frames * 20 * k) for k in range(1, 7)]
    stripe = [Pattern.vertical_stripe(key_blocks=range(k, n, 4 * k)) for k in range(1, 5)]
    tiles = [
        Pattern.periodic_tiles(tile=(3, 8, 8), time=(k, 0, None), space=(10 * k, 0, None))
        for k in range(1, 5)
    ]
    unions = [Pattern.union(Pattern.diagonal(half_width=frame * k), stripe[k]) for k in (1, 2)]
    return diagonal + multi + stripe + tiles + unions
