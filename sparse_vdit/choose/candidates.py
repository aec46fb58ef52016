"""Candidates for choosing: every family at a few densities, as measured on the geometry itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparse_vdit.pattern import Geometry, Order, Pattern
from sparse_vdit.presets import checked_density, fitted_band, fitted_stripe, nearest_density, spread_blocks
from sparse_vdit.presets import densities as measured_densities

DENSITIES = (0.08, 0.12, 0.18, 0.26)


def ladder(
    geometry: Geometry,
    densities: Sequence[float] = DENSITIES,
    *,
    tile: Sequence[int] | None = None,
    mass: NDArray[np.float64] | None = None,
) -> list[Pattern]:
    """Distinct candidates, sparse first: bands, stripes, boxes and unions at each density, and skip and full.

    Args:
        geometry: the token layout.
        densities: densities to aim at; each family takes the width nearest to it.
        tile: box sides (t, h, w), default about `block_k` tokens.
        mass: attention mass of key blocks [nk] or [n, nk] (`ErrorTable.mass`); adds the blocks of most mass.
    """
    found = [Pattern.skip(), Pattern.diagonal(half_width=0)]
    sides = tuple(tile) if tile is not None else box(geometry)
    boxes = _boxes(geometry, sides)
    for density in densities:
        checked_density("ladder", density)
        found += _family(geometry, density)
        if boxes:
            found.append(min(boxes, key=lambda entry: (abs(entry[1] - density), entry[2]))[0])
        if mass is not None:
            found += [top_stripe(geometry, row, density) for row in np.atleast_2d(mass)]
    found.append(Pattern.full())
    distinct = list(dict.fromkeys(found))
    measured = dict(zip(distinct, measured_densities(geometry, distinct), strict=True))
    worth = [p for p in distinct if measured[p] <= 0.9 or p.kind == "full"]
    return sorted(worth, key=lambda pattern: measured[pattern])


def _family(geometry: Geometry, density: float) -> list[Pattern]:
    return [
        fitted_band(geometry, density, Pattern.diagonal),
        fitted_band(geometry, density, Pattern.multi_diagonal),
        fitted_stripe(geometry, density),
        *_striped(geometry, density, fitted_band(geometry, density / 2, Pattern.diagonal)),
        *_striped(geometry, density, fitted_band(geometry, density / 2, Pattern.multi_diagonal)),
    ]


def _striped(geometry: Geometry, density: float, band: Pattern) -> list[Pattern]:
    """A band with evenly spread key blocks, as many as fill it up to the density; nothing if that is none."""

    def joined(count: int) -> Pattern:
        blocks = spread_blocks(geometry, count) if count else ()
        return Pattern.union(band, Pattern.vertical_stripe(key_blocks=blocks, order=band.order))

    found = nearest_density(geometry, density, joined, geometry.key_blocks)
    return [found] if found.parts[1].key_blocks else []


def box(geometry: Geometry) -> tuple[int, int, int]:
    """Sides of a box of at most `block_k` tokens: the axis with most boxes is doubled while that fits."""
    sides, axes = [1, 1, 1], (geometry.frames, geometry.height, geometry.width)
    while 2 * math.prod(sides) <= geometry.block_k:
        counts = [-(-axis // side) for axis, side in zip(axes, sides, strict=True)]
        if max(counts) == 1:
            break
        sides[2 - counts[::-1].index(max(counts))] *= 2
    return (sides[0], sides[1], sides[2])


def _boxes(geometry: Geometry, tile: Sequence[int]) -> list[tuple[Pattern, float, float]]:
    """Boxes near in time and space with their density and how unlike their reach in time and in space is."""
    counts = [
        -(-axis // side)
        for axis, side in zip((geometry.frames, geometry.height, geometry.width), tile, strict=True)
    ]
    space = max(counts[1:])
    pairs = [(t, s) for t in _widths(counts[0]) for s in _widths(space)]
    patterns = [
        Pattern.periodic_tiles(tile=tile, time=(t, 0, None), rows=(s, 0, None), columns=(s, 0, None))
        for t, s in pairs
    ]
    unlike = [abs(math.log(t / counts[0]) - math.log(s / space)) for t, s in pairs]
    return list(zip(patterns, measured_densities(geometry, patterns), unlike, strict=True))


def _widths(boxes: int) -> list[int]:
    """1 .. boxes, thinned out to at most a dozen."""
    return sorted(
        {max(1, round(boxes ** (i / 11))) for i in range(12)} if boxes > 12 else range(1, boxes + 1)
    )


def top_stripe(geometry: Geometry, mass: NDArray[np.float64], density: float) -> Pattern:
    """The key blocks of most attention mass, as many as the density asks for."""
    count = max(1, round(density * geometry.key_blocks))
    blocks = np.sort(np.argsort(-np.asarray(mass), kind="stable")[:count])
    return Pattern.vertical_stripe(key_blocks=blocks.tolist(), order=Order.frame_major())
