"""Patterns with names: lists from which the search or `SparsePlan.uniform` makes a plan.

Widths follow from a density. `svg` uses the published rule of Sparse VideoGen; `paper` takes, of each
family, the width whose measured density (what is really computed) is nearest to the one asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sparse_vdit.geometry import checked_tile, integer, triple
from sparse_vdit.pattern import Geometry, Order, Pattern
from sparse_vdit.plan.layer import MAX_HEADS, LayerPlan


def densities(geometry: Geometry, patterns: Sequence[Pattern]) -> list[float]:
    """The density of each pattern, as computed."""
    found: list[float] = []
    for start in range(0, len(patterns), MAX_HEADS):
        layer = LayerPlan(geometry, patterns[start : start + MAX_HEADS])
        found += [layer.density(head) for head in range(layer.heads)]
    return found


def checked_density(who: str, density: float) -> float:
    """A density inside (0, 1], or a sentence."""
    if isinstance(density, bool) or not isinstance(density, (int, float)):
        raise TypeError(f"{who}: density is {type(density).__name__}, expected a number")
    if not 0 < density <= 1:
        raise ValueError(f"{who}: density is {density}, expected more than 0 and at most 1")
    return float(density)


def _check_geometry(who: str, geometry: Geometry) -> None:
    if not isinstance(geometry, Geometry):
        raise TypeError(f"{who}: geometry is {type(geometry).__name__}, expected a Geometry")


def svg(geometry: Geometry, density: float) -> list[Pattern]:
    """Sparse VideoGen's two heads: a spatial band and the same band in token_major order.

    With C other tokens of N: s = density - 2C/N, w = N (1 - sqrt(1 - s)) tokens; keys closer than
    block_k * floor(w / block_k) are kept (the rule of its CogVideoX and HunyuanVideo paths, whose block is
    128).

    Raises:
        ValueError: the other tokens alone use up the density.
    """
    _check_geometry("svg", geometry)
    tokens = geometry.tokens
    band = checked_density("svg", density) - 2 * (geometry.prefix + geometry.suffix) / tokens
    if band <= 0:
        raise ValueError(
            f"svg: density is {density}, expected more than {density - band:.4f} (the other tokens alone)"
        )
    width = tokens * (1 - math.sqrt(1 - band))
    half_width = max(0, geometry.block_k * int(width // geometry.block_k) - 1)
    return [Pattern.diagonal(half_width=half_width), Pattern.multi_diagonal(half_width=half_width)]


def paper(geometry: Geometry, density: float) -> list[Pattern]:
    """The five modes of Sparse-vDiT, one width each: full, skip, diagonal, multi-diagonal, vertical stripe.

    The stripe's key blocks are evenly spread, since the paper does not say how it chooses them.
    """
    _check_geometry("paper", geometry)
    checked_density("paper", density)
    return [
        Pattern.full(),
        Pattern.skip(),
        fitted_band(geometry, density, Pattern.diagonal),
        fitted_band(geometry, density, Pattern.multi_diagonal),
        fitted_stripe(geometry, density),
    ]


def sliding_tiles(geometry: Geometry, tile: Sequence[int], window: Sequence[int]) -> list[Pattern]:
    """Sliding tile attention, not clamped at the edges: boxes at most window // 2 away on each axis.

    Args:
        geometry: the token layout.
        tile: sides (t, h, w) of a box in tokens.
        window: boxes across (t, h, w), the own one included, as that paper counts: 3 looks at one box on
            each side.
    """
    _check_geometry("sliding_tiles", geometry)
    window = triple("sliding_tiles", "window", window, "three counts (t, h, w)")
    time, rows, columns = (
        (integer("sliding_tiles", "an entry of window", n, 1) // 2 + 1, 0, None) for n in window
    )
    pattern = Pattern.periodic_tiles(tile=tile, time=time, rows=rows, columns=columns)
    return [_checked(geometry, pattern)]


def radial(geometry: Geometry, tile: Sequence[int], width: int) -> list[Pattern]:
    """Radial attention: the farther two frames of boxes are apart, the narrower the band.

    A union over the distance d of time=(1, d, None), space=(max(1, width >> floor(log2(max(d, 1)))), 0,
    None).
    """
    _check_geometry("radial", geometry)
    integer("radial", "width", width, 1)
    tile = checked_tile("radial", tile)
    distances = range(-(-geometry.frames // tile[0]))
    if len(distances) > 64:
        raise ValueError(
            f"radial: there are {len(distances)} frames of boxes, expected at most 64 (longer tiles)"
        )
    parts = [
        Pattern.periodic_tiles(
            tile=tile, time=(1, d, None), space=(max(1, width >> (max(d, 1).bit_length() - 1)), 0, None)
        )
        for d in distances
    ]
    return [_checked(geometry, Pattern.union(*parts))]


def _checked(geometry: Geometry, pattern: Pattern) -> Pattern:
    LayerPlan(geometry, [pattern])
    return pattern


def fitted_band(geometry: Geometry, density: float, make: Callable[..., Pattern]) -> Pattern:
    """The band of whole blocks (minus one token) whose density is nearest to the one asked for."""

    def banded(blocks: int) -> Pattern:
        return make(half_width=max(0, blocks * geometry.block_k - 1))

    return nearest_density(geometry, density, banded, -(-geometry.video_tokens // geometry.block_k))


def spread_blocks(geometry: Geometry, count: int) -> tuple[int, ...]:
    """`count` key blocks at even distances."""
    blocks = geometry.key_blocks
    return tuple(sorted({(2 * i + 1) * blocks // (2 * count) for i in range(count)}))


def fitted_stripe(geometry: Geometry, density: float, order: Order | None = None) -> Pattern:
    """Evenly spread key blocks, as many as bring the density nearest to the one asked for."""

    def striped(count: int) -> Pattern:
        blocks = spread_blocks(geometry, count) if count else ()
        return Pattern.vertical_stripe(key_blocks=blocks, order=order or Order.frame_major())

    return nearest_density(geometry, density, striped, geometry.key_blocks)


def nearest_density(geometry: Geometry, density: float, make: Callable[[int], Pattern], high: int) -> Pattern:
    """Of make(0) .. make(high), whose densities rise, the nearest to `density`, by bisection."""
    known: dict[int, float] = {}

    def measured(size: int) -> float:
        if size not in known:
            known[size] = LayerPlan(geometry, [make(size)]).density()
        return known[size]

    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if measured(middle) <= density:
            low = middle
        else:
            high = middle
    return make(min((low, high), key=lambda size: (abs(measured(size) - density), size)))
