"""The wire format of patterns: what the C core takes, what it refuses and with which sentence."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import draws

from sparse_vdit import _C, Geometry, Order, Pattern

GEOMETRY = Geometry(3, 4, 5, 7, 9, 16, 16)  # 76 tokens, 5 key blocks
FRAME, TOKEN, TILES = (0, 0, 0, 0), (1, 0, 0, 0), (2, 1, 2, 2)


def wire(
    kind: int, order: tuple[int, ...] = FRAME, sinks: int = 0, payload: tuple[int, ...] = ()
) -> tuple[int, ...]:
    return (kind, *order, sinks, len(payload), *payload)


def check(ints: tuple[int, ...], geometry: Geometry = GEOMETRY) -> None:
    _C.pattern_check(geometry.to_ints(), np.array(ints, np.int64), "plan")


@settings(max_examples=400)
@given(draws.cases())
def test_every_pattern_goes_there_and_back(case: tuple[Geometry, Pattern]) -> None:
    geometry, pattern = case
    ints = pattern.to_ints()
    _C.pattern_check(geometry.to_ints(), ints)
    assert Pattern.from_ints(ints) == pattern


BAND, STRIPES = wire(2, payload=(3,)), wire(4, payload=(1, 3))
WINDOW = (1, 0, 0)


@pytest.mark.parametrize(
    ("ints", "sentence"),
    [
        ((), r"0 integers, expected 7 or more"),
        (wire(0)[:6], r"6 integers, expected 7 or more"),
        (wire(7), r"kind is 7, expected 0\.\.6"),
        (wire(-1), r"kind is -1, "),
        ((2, *FRAME, 0, 2, 5), r"n_payload is 2, expected 1 \(what follows the header\)"),
        ((2, *FRAME, 0, -(2**63), 5), r"n_payload is -9223372036854775808, expected 1 "),
        (wire(0, payload=(1,)), r"full has 1 parameters, expected none"),
        (wire(1, payload=(1,)), r"skip has 1 parameters, expected none"),
        (wire(0, TOKEN), r"the order of full is token_major, expected frame_major"),
        (wire(2, TOKEN, payload=(1,)), r"the order of diagonal is token_major, expected frame_major"),
        (
            wire(3, FRAME, payload=(1,)),
            r"the order of multi_diagonal is frame_major, expected token_major",
        ),
        (
            wire(5, FRAME, payload=(0, *WINDOW * 2)),
            r"the order of periodic_tiles is frame_major, expected tiles",
        ),
        (wire(2, (5, 0, 0, 0), payload=(1,)), r"order kind is 5, "),
        (wire(5, (2, 0, 1, 1), payload=(0, *WINDOW * 2)), r"tile\[0\] is 0, expected 1 or more"),
        (wire(2), r"diagonal has 0 parameters, expected 1 \(half_width\)"),
        (wire(2, payload=(-1,)), r"half_width is -1, expected 0\.\.2147483647"),
        (wire(2, payload=(2**31,)), r"half_width is 2147483648, expected 0\.\.2147483647"),
        (wire(2, sinks=4, payload=(1,)), r"sink_frames is 4, expected 0\.\.3 \(= frames\)"),
        (wire(2, sinks=-1, payload=(1,)), r"sink_frames is -1, expected 0\.\.3"),
        (
            wire(3, TOKEN, 1, (1,)),
            r"sink_frames is 1 in token_major order, expected 0: there a frame ",
        ),
        (wire(4, TOKEN, 1, (1,)), r"sink_frames is 1 in token_major order, expected 0"),
        (wire(0, sinks=1), r"sink_frames of full is 1, expected 0"),
        (wire(1, sinks=1), r"sink_frames of skip is 1, expected 0"),
        (wire(4, payload=(5,)), r"key_blocks\[0\] is 5, expected 0\.\.4"),
        (wire(4, payload=(0, -1)), r"key_blocks\[1\] is -1, expected 0\.\.4"),
        (wire(4, payload=(1, 1)), r"key_blocks\[1\] is 1 after 1, expected sorted and unique"),
        (wire(4, payload=(3, 2)), r"key_blocks\[1\] is 2 after 3, expected sorted and unique"),
        (wire(5, TILES), r"form is -1, expected 0 \(time, space\) or 1 \(time, rows, columns\)"),
        (wire(5, TILES, payload=(2, *WINDOW * 3)), r"form is 2, "),
        (
            wire(5, TILES, payload=(0, *WINDOW * 3)),
            r"periodic_tiles of form 0 has 10 parameters, expected 7",
        ),
        (
            wire(5, TILES, payload=(1, *WINDOW * 2)),
            r"periodic_tiles of form 1 has 7 parameters, expected 10",
        ),
        (wire(5, TILES, payload=(0, 0, 0, 0, *WINDOW)), r"time width is 0, expected 1 or more"),
        (wire(5, TILES, payload=(0, *WINDOW, 1, -1, 0)), r"space offset is -1, expected 0 or more"),
        (
            wire(5, TILES, payload=(1, *WINDOW * 2, 1, 0, -2)),
            r"columns period is -2, expected 0 or more",
        ),
        (wire(6), r"union of 0 parts, expected 1\.\.64"),
        (wire(6, payload=BAND * 65), r"union of more than 64 parts, expected 1\.\.64"),
        (
            wire(6, payload=(*BAND, *wire(6, payload=BAND))),
            r"part 1: kind is union, expected diagonal",
        ),
        (wire(6, payload=wire(0)), r"part 0: kind is full, expected diagonal, "),
        (wire(6, payload=wire(1)), r"part 0: kind is skip, expected diagonal, "),
        (wire(6, payload=wire(9)), r"part 0: kind is 9, expected 0\.\.6"),
        (
            wire(6, payload=wire(2, sinks=1, payload=(1,))),
            r"part 0: sink_frames is 1, expected 0: the ",
        ),
        (
            wire(6, payload=(*BAND, *wire(3, TOKEN, payload=(1,)))),
            r"part 1: its order differs ",
        ),
        (wire(6, TOKEN, payload=BAND), r"part 0: its order differs "),
        (
            wire(6, TOKEN, 1, wire(3, TOKEN, payload=(1,))),
            r"sink_frames is 1 in token_major order, expected 0",
        ),
        (wire(6, payload=(*BAND, 2, 0, 0)), r"part 1: 3 integers are left for it, expected 7 or more"),
        (wire(6, payload=(2, *FRAME, 0, 9, 1)), r"part 0: n_payload is 9, expected 0\.\.1"),
        (
            wire(6, payload=(2, *FRAME, 0, 2**63 - 1, 1)),
            r"part 0: n_payload is 9223372036854775807, expected 0\.\.1",
        ),
        (wire(6, payload=(2, *FRAME, 0, -1, 1)), r"part 0: n_payload is -1, expected 0\.\.1"),
        (wire(6, payload=wire(4, payload=(7,))), r"part 0: key_blocks\[0\] is 7, expected 0\.\.4"),
    ],
)
def test_refusals_say_who_got_and_expected(ints: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match="^plan: " + sentence):
        check(ints)


@pytest.mark.parametrize(
    "ints",
    [
        wire(2, payload=(2**31 - 1,)),
        wire(2, sinks=3, payload=(0,)),
        wire(4, TILES, 3),
        wire(4, payload=(0, 1, 2, 3, 4)),
        wire(5, (2, 2**63 - 1, 2**63 - 1, 2**63 - 1), payload=(1, *(2**63 - 1,) * 9)),
        wire(6, payload=BAND * 64),
        wire(6, TILES, 2, (*wire(4, TILES, payload=(1,)), *wire(5, TILES, payload=(0, *WINDOW * 2)))),
    ],
)
def test_the_limits_themselves_are_legal(ints: tuple[int, ...]) -> None:
    check(ints)
    rows, codes = _C.visits(GEOMETRY.to_ints(), [np.array(ints, np.int64)], np.array([True]))
    assert _C.block_mask(GEOMETRY.to_ints(), rows[0], codes).shape == (5, 5)


def test_a_refused_pattern_leaves_nothing_behind() -> None:
    before = _C.scratch_live()
    patterns = [np.array(BAND, np.int64), np.array(wire(4, payload=(9,)), np.int64)]
    with pytest.raises(ValueError, match="key_blocks"):
        _C.visits(GEOMETRY.to_ints(), patterns, np.zeros(2, bool))
    assert _C.scratch_live() == before


HOSTILE = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-1, 12), st.sampled_from([2**31 - 1, 2**31, 2**40, 2**62])
)


@settings(max_examples=1000)
@given(st.data())
def test_any_integers_give_a_list_or_a_sentence(data: st.DataObject) -> None:
    """Legal patterns with up to three integers changed, cut or added: never a crash, never a silent guess."""
    geometry = data.draw(draws.geometries())
    ints = data.draw(draws.patterns(geometry)).to_ints().tolist()
    for _ in range(data.draw(st.integers(0, 3))):
        ints[data.draw(st.integers(0, len(ints) - 1))] = data.draw(HOSTILE)
    ints = ints[: len(ints) - data.draw(st.sampled_from([0, 0, 0, 1, 5]))]
    with contextlib.suppress(ValueError):
        rows, codes = _C.visits(geometry.to_ints(), [np.array(ints, np.int64)], np.array([True]))
        mask = _C.block_mask(geometry.to_ints(), rows[0], codes)
        itself = [mask[p // geometry.block_q, p // geometry.block_k] for p in range(geometry.tokens)]
        assert all(itself) or ints[0] == 1


def test_a_stripe_without_key_blocks_counts_as_the_own_block() -> None:
    tiles = Order.tiles(2, 2, 2)
    assert Pattern.vertical_stripe(key_blocks=[], order=tiles).family == "diagonal"
    assert Pattern.vertical_stripe(key_blocks=[1], order=tiles).family == "vertical_stripe"
    assert Pattern.vertical_stripe(key_blocks=[], sink_frames=1).family == "vertical_stripe"
    assert Pattern.union(Pattern.diagonal(half_width=1)).family == "union"
