"""Orders: the maps of the C core against positions sorted from the definition, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import draws, masks

from sparse_vdit import _C, Geometry, Order


@settings(max_examples=800)
@given(draws.geometries(), draws.orders())
def test_places_are_the_definition_and_tokens_their_inverse(geometry: Geometry, order: Order) -> None:
    places = _C.places(geometry.to_ints(), order.to_ints())
    tokens = _C.tokens(geometry.to_ints(), order.to_ints())
    assert places.dtype == np.int64
    assert tokens.dtype == np.int32
    assert np.array_equal(places, masks.places(geometry, order))
    assert np.array_equal(places[tokens], np.arange(geometry.tokens))


@settings(max_examples=300)
@given(draws.geometries(), draws.orders())
def test_other_tokens_keep_their_places(geometry: Geometry, order: Order) -> None:
    places = _C.places(geometry.to_ints(), order.to_ints())
    start, end = geometry.prefix, geometry.prefix + geometry.video_tokens
    assert places[:start].tolist() == list(range(start))
    assert places[end:].tolist() == list(range(end, geometry.tokens))
    assert sorted(places[start:end].tolist()) == list(range(start, end))


def test_positions_written_out() -> None:
    """2 x 2 x 3 tokens by hand."""
    geometry = Geometry(2, 2, 3, prefix=1)
    by_token = _C.tokens(geometry.to_ints(), Order.token_major().to_ints())
    assert by_token.tolist() == [0, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11, 6, 12]
    by_tile = _C.tokens(geometry.to_ints(), Order.tiles(1, 2, 2).to_ints())
    assert by_tile.tolist() == [0, 1, 2, 4, 5, 3, 6, 7, 8, 10, 11, 9, 12]


def test_one_box_is_frame_major() -> None:
    geometry = Geometry(3, 4, 5, 2, 3)
    places = _C.places(geometry.to_ints(), (2, 2**63 - 1, 2**63 - 1, 2**63 - 1))
    assert places.tolist() == list(range(geometry.tokens))


@pytest.mark.parametrize(
    ("ints", "sentence"),
    [
        (
            (3, 0, 0, 0),
            r"order kind is 3, expected 0 \(frame_major\), 1 \(token_major\) or 2 \(tiles\)$",
        ),
        ((-1, 0, 0, 0), r"order kind is -1"),
        ((2, 0, 1, 1), r"tile\[0\] is 0, expected 1 or more$"),
        ((2, 1, 1, -(2**63)), r"tile\[2\] is -9223372036854775808"),
        ((0, 1, 0, 0), r"tile\[0\] is 1 without order tiles, expected 0$"),
        ((1, 0, 0, 7), r"tile\[2\] is 7 without order tiles"),
    ],
)
def test_refusals(ints: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _C.places((3, 4, 5, 0, 0, 16, 16), ints)


@settings(max_examples=300)
@given(st.tuples(*[st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-1, 3))] * 4))
def test_any_integers_give_a_permutation_or_a_sentence(ints: tuple[int, ...]) -> None:
    geometry = (3, 4, 5, 2, 1, 16, 16)
    try:
        places = _C.places(geometry, ints)
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017
    else:
        assert sorted(places.tolist()) == list(range(63))
