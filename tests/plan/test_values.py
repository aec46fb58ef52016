"""Values go there and back: integers, JSON, limits; and Python's limits are those of C."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_vdit import _C, Geometry, Order, Pattern

small = st.integers(1, 6)
ORDERS = st.one_of(
    st.just(Order.frame_major()),
    st.just(Order.token_major()),
    st.builds(Order.tiles, small, small, small),
)
WINDOWS = st.tuples(small, st.integers(0, 5), st.none() | small)
BETAS = st.none() | st.floats(-10, 10)


def stripes(order, most=4):
    return st.lists(st.integers(0, most), unique=True).map(
        lambda blocks: Pattern.vertical_stripe(key_blocks=sorted(blocks), order=order)
    )


def boxes(order):
    if order.tile is None:
        return st.nothing()
    one = st.builds(lambda t, s: Pattern.periodic_tiles(tile=order.tile, time=t, space=s), WINDOWS, WINDOWS)
    two = st.builds(
        lambda t, r, c: Pattern.periodic_tiles(tile=order.tile, time=t, rows=r, columns=c),
        WINDOWS,
        WINDOWS,
        WINDOWS,
    )
    return one | two


def bands(order):
    make = {"frame_major": Pattern.diagonal, "token_major": Pattern.multi_diagonal}.get(order.kind)
    return st.nothing() if make is None else st.integers(0, 300).map(lambda w: make(half_width=w))


def parts(order):
    return stripes(order) | boxes(order) | bands(order)


def dressed(pattern):
    sinks = st.just(0) if pattern.order.kind == "token_major" else st.integers(0, 2)
    return st.builds(
        lambda n, beta: Pattern(**{**vars(pattern), "sink_frames": n, "remainder": beta}), sinks, BETAS
    )


UNIONS = ORDERS.flatmap(lambda order: st.lists(parts(order), min_size=1, max_size=4)).map(
    lambda p: Pattern.union(*p)
)
PLAIN = st.one_of(st.just(Pattern.full()), st.just(Pattern.skip()))
PATTERNS = PLAIN | ORDERS.flatmap(parts).flatmap(dressed) | UNIONS.flatmap(dressed)
GEOMETRIES = st.builds(
    Geometry,
    st.integers(2, 5), small, small, st.integers(0, 40), st.integers(0, 40),
    st.sampled_from([16, 32]), st.sampled_from([16, 48]),
)  # fmt: skip


@given(PATTERNS)
def test_patterns_go_there_and_back(pattern):
    wire = pattern.to_ints()
    assert wire.dtype == np.int64
    assert wire.ndim == 1
    assert Pattern.from_ints(wire, pattern.remainder) == pattern
    assert Pattern.from_json(pattern.to_json()) == pattern
    assert hash(Pattern.from_json(pattern.to_json())) == hash(pattern)
    assert pattern.without_remainder().with_remainder(pattern.remainder) == pattern
    assert pattern.name.startswith(pattern.kind)


@given(GEOMETRIES)
def test_geometries_go_there_and_back(geometry):
    assert Geometry.from_ints(geometry.to_ints()) == geometry
    assert Geometry.from_json(geometry.to_json()) == geometry
    _C.geometry_check(geometry.to_ints())


@given(ORDERS)
def test_orders_go_there_and_back(order):
    assert Order.from_ints(order.to_ints()) == order
    assert Order.from_json(order.to_json()) == order


def fits(pattern, geometry):
    """What only a geometry can say."""
    blocks = [block for part in (pattern, *pattern.parts) for block in part.key_blocks or ()]
    return pattern.sink_frames <= geometry.frames and all(block < geometry.key_blocks for block in blocks)


def c_accepts(geometry, wire):
    try:
        _C.pattern_check(geometry.to_ints(), wire)
    except ValueError as error:
        return "expected" not in str(error)
    return True


@given(GEOMETRIES, PATTERNS)
@settings(max_examples=300)
def test_c_accepts_what_python_accepts_within_the_geometry(geometry, pattern):
    assert c_accepts(geometry, pattern.to_ints()) == fits(pattern, geometry)


@given(st.data(), GEOMETRIES, PATTERNS)
@settings(max_examples=400)
def test_python_and_c_refuse_the_same_integers(data, geometry, pattern):
    wire = pattern.to_ints()
    place = data.draw(st.integers(0, len(wire) - 1))
    wire[place] += data.draw(st.integers(-3, 3))
    try:
        back = Pattern.from_ints(wire)
    except ValueError:
        assert not c_accepts(geometry, wire)
        return
    assert (back.to_ints() == wire).all()
    assert c_accepts(geometry, wire) == fits(back, geometry)


BAD = [
    (lambda: Geometry(0, 1, 1), ValueError, "geometry: frames is 0, expected at least 1"),
    (lambda: Geometry(1, 1, 1, prefix=-1), ValueError, "prefix is -1"),
    (
        lambda: Geometry(1, 1, 1, block_q=24),
        ValueError,
        "block_q is 24, expected a multiple of 16 in 16..1024",
    ),
    (lambda: Geometry(1, 1, 1, block_k=2048), ValueError, "block_k is 2048"),
    (lambda: Geometry(2048, 1024, 1024), ValueError, "expected fewer than 2\\^31"),
    (lambda: Geometry(1.5, 1, 1), TypeError, "geometry: frames is float, expected an integer"),
    (lambda: Geometry(True, 1, 1), TypeError, "frames is bool"),
    (lambda: Geometry(128, 2048, 2048, block_k=16), ValueError, "key blocks"),
    (lambda: Order.tiles(0, 1, 1), ValueError, "a side of tile is 0"),
    (lambda: Order("rows"), ValueError, "order: kind is 'rows'"),
    (lambda: Order("tiles"), ValueError, "order: tile is None"),
    (
        lambda: Pattern.diagonal(half_width=-1),
        ValueError,
        "diagonal: half_width is -1, expected 0..2147483647",
    ),
    (lambda: Pattern.diagonal(half_width=2**31), ValueError, "half_width is 2147483648"),
    (lambda: Pattern.diagonal(half_width=2.0), TypeError, "half_width is float, expected an integer"),
    (
        lambda: Pattern.diagonal(half_width=1, remainder=float("nan")),
        ValueError,
        "remainder is nan, expected a finite",
    ),
    (lambda: Pattern.diagonal(half_width=1, remainder=10**400), ValueError, "remainder is inf"),
    (lambda: Pattern.diagonal(half_width=1, remainder="1"), TypeError, "remainder is str"),
    (lambda: Pattern.diagonal(half_width=1, sink_frames=-1), ValueError, "sink_frames is -1"),
    (
        lambda: Pattern.vertical_stripe(key_blocks=[2, 1]),
        ValueError,
        "holds 2 before 1, expected sorted and unique",
    ),
    (lambda: Pattern.vertical_stripe(key_blocks=[1, 1]), ValueError, "expected sorted and unique"),
    (lambda: Pattern.vertical_stripe(key_blocks=[-1]), ValueError, "a key block is -1"),
    (lambda: Pattern.vertical_stripe(key_blocks=3), TypeError, "key_blocks is int"),
    (
        lambda: Pattern.vertical_stripe(key_blocks=[0], order=Order.token_major(), sink_frames=1),
        ValueError,
        "a frame lies in every key block there, so the cover would be dense",
    ),
    (
        lambda: Pattern.periodic_tiles(tile=(1, 1), time=(1, 0, None), space=(1, 0, None)),
        ValueError,
        "tile has 2",
    ),
    (
        lambda: Pattern.periodic_tiles(tile=(1, 1, 1), time=(1, 0, None)),
        ValueError,
        "expected windows for time and space",
    ),
    (
        lambda: Pattern.periodic_tiles(tile=(1, 1, 1), time=(0, 0, None), space=(1, 0, None)),
        ValueError,
        "the width of time is 0",
    ),
    (
        lambda: Pattern.periodic_tiles(tile=(1, 1, 1), time=(1, 0, 0), space=(1, 0, None)),
        ValueError,
        "the period of time is 0",
    ),
    (lambda: Pattern.union(), ValueError, "union: there are 0 parts, expected 1..64"),
    (
        lambda: Pattern.union(*[Pattern.diagonal(half_width=n) for n in range(65)]),
        ValueError,
        "there are 65 parts",
    ),
    (lambda: Pattern.union(Pattern.full()), ValueError, "part 0 is full"),
    (lambda: Pattern.union(Pattern.union(Pattern.diagonal(half_width=1))), ValueError, "part 0 is union"),
    (lambda: Pattern.union(3), TypeError, "part 0 is int"),
    (
        lambda: Pattern.union(Pattern.diagonal(half_width=1, sink_frames=1)),
        ValueError,
        "expected them on the union",
    ),
    (
        lambda: Pattern.union(Pattern.diagonal(half_width=1, remainder=0.0)),
        ValueError,
        "expected them on the union",
    ),
    (
        lambda: Pattern.union(Pattern.diagonal(half_width=1), Pattern.multi_diagonal(half_width=1)),
        ValueError,
        "part 1 is in token_major order, expected frame_major like part 0",
    ),
    (
        lambda: Pattern.multi_diagonal(half_width=1, sink_frames=1),
        ValueError,
        "multi_diagonal: sink_frames is 1 in token_major order, expected 0: a frame lies in every key block there",
    ),
    (lambda: Pattern.full().with_remainder(0.0), ValueError, "full: it has sink_frames or a remainder"),
    (lambda: Pattern.skip().with_remainder(0.0), ValueError, "skip: it has sink_frames or a remainder"),
]


@pytest.mark.parametrize(("make", "error", "sentence"), BAD)
def test_refusals_are_sentences(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_values_are_frozen_and_hashable():
    pattern = Pattern.diagonal(half_width=5)
    with pytest.raises(AttributeError):
        pattern.half_width = 6
    assert len({pattern, Pattern.diagonal(half_width=np.int64(5)), Geometry(1, 2, 3), Geometry(1, 2, 3)}) == 2


def test_a_picture_shows_what_is_visited():
    geometry = Geometry(8, 8, 8, block_q=16, block_k=16)
    dense = Pattern.full().picture(geometry, size=64)
    band = Pattern.diagonal(half_width=15).picture(geometry, size=64)
    assert dense.shape == band.shape == (64, 64)
    assert dense.dtype == np.uint8
    assert (dense == 255).all()
    assert (np.diag(band) == 255).all()
    assert band[0, -1] == 0
    across = Pattern.multi_diagonal(half_width=15).picture(geometry, size=512)
    own = Pattern.multi_diagonal(half_width=15).picture(geometry, size=512, in_sequence_order=False)
    assert across[0, 64] == 255, "the same place in the next frame is near in token_major order"
    assert own[0, 64] == 0
