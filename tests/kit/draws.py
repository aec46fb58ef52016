"""Hypothesis strategies for small geometries and every family of patterns, edges included."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from sparse_vdit import Geometry, Order, Pattern

BLOCKS = st.sampled_from([16, 16, 16, 32, 48, 64, 1024])
OTHERS = st.sampled_from([0, 0, 1, 5, 16, 17, 40])
HUGE = 2**31 - 1
TILES = st.tuples(*[st.sampled_from([1, 1, 2, 3, 4, 5, HUGE])] * 3)


# Longest frames, heights and widths: compact ones, and one axis much longer than the others.
SHAPES = st.sampled_from([(7, 7, 9), (7, 7, 9), (3, 3, 50), (3, 50, 3), (60, 2, 3)])


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    frames, height, width = draw(SHAPES)
    return Geometry(
        frames=draw(st.integers(1, frames)),
        height=draw(st.integers(1, height)),
        width=draw(st.integers(1, width)),
        prefix=draw(OTHERS),
        suffix=draw(OTHERS),
        block_q=draw(BLOCKS),
        block_k=draw(BLOCKS),
    )


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int, int | None]:
    width = draw(st.sampled_from([1, 1, 1, 2, 3, 5, HUGE]))
    offset = draw(st.sampled_from([0, 0, 0, 1, 2, 3, 7, 50, HUGE]))
    period = draw(st.sampled_from([None, None, 1, 2, 3, 4, 5, 6, 9, 13, HUGE]))
    return width, offset, period


def half_widths(geometry: Geometry) -> st.SearchStrategy[int]:
    return st.one_of(
        st.integers(0, 40), st.integers(0, geometry.video_tokens + 2), st.sampled_from([0, 15, 16, HUGE])
    )


@st.composite
def stripes(draw: st.DrawFn, geometry: Geometry) -> list[int]:
    return sorted(draw(st.sets(st.integers(0, geometry.key_blocks - 1), max_size=8)))


@st.composite
def orders(draw: st.DrawFn) -> Order:
    kind = draw(st.sampled_from(["frame_major", "token_major", "tiles"]))
    return Order(kind, draw(TILES) if kind == "tiles" else None)


@st.composite
def periodic(draw: st.DrawFn, tile: tuple[int, int, int], **options: Any) -> Pattern:
    time = draw(windows())
    if draw(st.booleans()):
        return Pattern.periodic_tiles(tile=tile, time=time, space=draw(windows()), **options)
    return Pattern.periodic_tiles(
        tile=tile, time=time, rows=draw(windows()), columns=draw(windows()), **options
    )


@st.composite
def parts(draw: st.DrawFn, geometry: Geometry, order: Order) -> Pattern:
    kinds = {"frame_major": "diagonal", "token_major": "multi_diagonal", "tiles": "periodic_tiles"}
    kind = draw(st.sampled_from([kinds[order.kind], kinds[order.kind], "vertical_stripe"]))
    if kind == "vertical_stripe":
        return Pattern.vertical_stripe(key_blocks=draw(stripes(geometry)), order=order)
    if kind == "diagonal":
        return Pattern.diagonal(half_width=draw(half_widths(geometry)))
    if kind == "multi_diagonal":
        return Pattern.multi_diagonal(half_width=draw(half_widths(geometry)))
    assert order.tile is not None
    return draw(periodic(order.tile))


@st.composite
def patterns(draw: st.DrawFn, geometry: Geometry) -> Pattern:
    kind = draw(
        st.sampled_from(
            ["diagonal", "multi_diagonal", "vertical_stripe"]
            + ["periodic_tiles"] * 5
            + ["union"] * 3
            + (["full", "skip"] if draw(st.integers(0, 9)) == 0 else [])
        )
    )
    sinks = draw(st.sampled_from([0, 0, 1, 2, geometry.frames]))
    sinks = min(sinks, geometry.frames)
    if kind in ("full", "skip"):
        return Pattern(kind)
    if kind == "diagonal":
        return Pattern.diagonal(half_width=draw(half_widths(geometry)), sink_frames=sinks)
    if kind == "multi_diagonal":
        return Pattern.multi_diagonal(half_width=draw(half_widths(geometry)))
    if kind == "periodic_tiles":
        return draw(periodic(draw(TILES), sink_frames=sinks))
    order = draw(orders())
    sinks = 0 if order.kind == "token_major" else sinks
    if kind == "vertical_stripe":
        return Pattern.vertical_stripe(key_blocks=draw(stripes(geometry)), order=order, sink_frames=sinks)
    chosen = draw(st.lists(parts(geometry, order), min_size=1, max_size=4))
    return Pattern.union(*chosen, sink_frames=sinks)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Geometry, Pattern]:
    geometry = draw(geometries())
    return geometry, draw(patterns(geometry))
