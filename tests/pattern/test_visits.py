"""Visit lists against the covers of `kit.masks`: rows, codes, pooled tiles, items, pairs, refusals."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit import draws, masks, visit_lists

from sparse_vdit import _C, Geometry, Order, Pattern


def made(geometry: Geometry, patterns: list[Pattern], remainder: bool) -> tuple[np.ndarray, np.ndarray]:
    flags = np.full(len(patterns), remainder)
    return _C.visits(geometry.to_ints(), [p.to_ints() for p in patterns], flags)


PLAIN = Geometry(3, 4, 5, 7, 9, 16, 16)


@settings(max_examples=2000)
@given(draws.cases())
@example((Geometry(1, 1, 1), Pattern.diagonal(half_width=0)))
@example((Geometry(1, 1, 1, 0, 0, 16, 16), Pattern.vertical_stripe(key_blocks=[])))
@example((PLAIN, Pattern.full()))
@example((PLAIN, Pattern.skip()))
@example((PLAIN, Pattern.vertical_stripe(key_blocks=[0, 4], order=Order.token_major())))
@example((PLAIN, Pattern.periodic_tiles(tile=(2, 3, 2), time=(1, 1, None), space=(2, 1, 3), sink_frames=1)))
def test_visited_blocks_are_the_cover_of_the_rule(case: tuple[Geometry, Pattern]) -> None:
    geometry, pattern = case
    cover = masks.block_cover(geometry, pattern)
    rows, codes = made(geometry, [pattern], False)
    assert np.array_equal(_C.block_mask(geometry.to_ints(), rows[0], codes), cover), pattern.name
    read = visit_lists.read_rows(rows[0], codes, geometry)
    assert np.array_equal(visit_lists.mask_of(read, geometry), cover), pattern.name
    assert not any(row.pooled for row in read)
    pairs = _C.visited_pairs(geometry.to_ints(), rows[0], codes)
    assert pairs / geometry.tokens**2 == pytest.approx(masks.density(geometry, cover), rel=1e-12)


def is_one_run(blocks: list[int]) -> bool:
    return blocks == list(range(blocks[0], blocks[-1] + 1)) if blocks else False


@settings(max_examples=300)
@given(draws.cases())
def test_one_run_needs_no_codes(case: tuple[Geometry, Pattern]) -> None:
    geometry, pattern = case
    rows, codes = made(geometry, [pattern], False)
    for words, row in zip(rows[0], visit_lists.read_rows(rows[0], codes, geometry)):
        assert (words[1] == 0) == (is_one_run(row.visited) or not row.visited)


@settings(max_examples=1000)
@given(draws.cases())
def test_pooled_bits_are_the_blocks_that_are_not_visited(case: tuple[Geometry, Pattern]) -> None:
    geometry, pattern = case
    cover = masks.block_cover(geometry, pattern)
    rows, codes = made(geometry, [pattern], True)
    read = visit_lists.read_rows(rows[0], codes, geometry)
    assert np.array_equal(visit_lists.mask_of(read, geometry), cover)
    assert np.array_equal(_C.block_mask(geometry.to_ints(), rows[0], codes), cover)
    for a, row in enumerate(read):
        unvisited = np.flatnonzero(~cover[a]).tolist()
        assert row.pooled == ([] if pattern.kind in ("full", "skip") else unvisited)


@settings(max_examples=300)
@given(st.data())
def test_patterns_share_one_pool(data: st.DataObject) -> None:
    geometry = data.draw(draws.geometries())
    patterns = data.draw(st.lists(draws.patterns(geometry), min_size=1, max_size=5))
    flags = np.array(data.draw(st.lists(st.booleans(), min_size=len(patterns), max_size=len(patterns))))
    rows, codes = _C.visits(geometry.to_ints(), [p.to_ints() for p in patterns], flags)
    for i, pattern in enumerate(patterns):
        alone_rows, alone_codes = made(geometry, [pattern], bool(flags[i]))
        alone = visit_lists.read_rows(alone_rows[0], alone_codes, geometry)
        assert visit_lists.read_rows(rows[i], codes, geometry) == alone


def test_lists_are_the_same_every_time() -> None:
    geometry = Geometry(5, 6, 8, 7, 20, 32, 16)
    patterns = [
        Pattern.periodic_tiles(tile=(2, 2, 3), time=(1, 1, 2), rows=(1, 0, None), columns=(1, 1, None)),
        Pattern.union(Pattern.diagonal(half_width=9), Pattern.vertical_stripe(key_blocks=[2, 5])),
    ]
    first = made(geometry, patterns, True)
    for _ in range(3):
        again = made(geometry, patterns, True)
        assert np.array_equal(first[0], again[0])
        assert np.array_equal(first[1], again[1])


@st.composite
def block_masks(draw: st.DrawFn) -> tuple[Geometry, np.ndarray]:
    geometry = draw(draws.geometries())
    shape = (geometry.query_blocks, geometry.key_blocks)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return geometry, rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))


@settings(max_examples=400)
@given(block_masks(), st.booleans())
def test_block_masks_come_back_as_they_stand(case: tuple[Geometry, np.ndarray], remainder: bool) -> None:
    geometry, mask = case
    rows, codes = _C.visits_from_masks(geometry.to_ints(), [mask], np.array([remainder]))
    read = visit_lists.read_rows(rows[0], codes, geometry)
    assert np.array_equal(visit_lists.mask_of(read, geometry), mask)
    assert np.array_equal(_C.block_mask(geometry.to_ints(), rows[0], codes), mask)
    for a, row in enumerate(read):
        assert row.pooled == (np.flatnonzero(~mask[a]).tolist() if remainder else [])


def expected_items(
    geometry: Geometry, rows: np.ndarray, codes: np.ndarray, choice: np.ndarray, remainder: np.ndarray
) -> list[tuple[int, int, int, list[int], list[int]]]:
    """(minus length, head, query block, visited, pooled): longest first, ties by head and query block."""
    out = []
    for head, pattern in enumerate(choice):
        for qb, row in enumerate(visit_lists.read_rows(rows[pattern], codes, geometry)):
            pooled = row.pooled if remainder[head] else []
            length = len(row.visited) + (row.tiles if remainder[head] else 0)
            if length:
                out.append((-length, head, qb, row.visited, pooled))
    return sorted(out)


@settings(max_examples=300)
@given(st.data())
def test_items_are_the_rows_of_the_chosen_patterns_longest_first(data: st.DataObject) -> None:
    geometry = data.draw(draws.geometries())
    patterns = data.draw(st.lists(draws.patterns(geometry), min_size=1, max_size=4))
    heads = data.draw(st.integers(0, 6))
    choice = np.array([data.draw(st.integers(0, len(patterns) - 1)) for _ in range(heads)], np.int32)
    remainder = np.array([data.draw(st.booleans()) for _ in range(heads)], bool)
    rows, codes = made(geometry, patterns, True)
    items = _C.items(geometry.to_ints(), rows, choice, remainder)
    expected = expected_items(geometry, rows, codes, choice, remainder)
    assert len(items) == len(expected)
    for (head_kind, qb, first, n), (_, head, want_qb, visited, pooled) in zip(items.tolist(), expected):
        assert (head_kind & 0xFFFFFF, qb) == (head, want_qb)
        if head_kind >> 24 == 1:
            assert list(range(first, first + n)) == visited
            assert not pooled
        else:
            assert head_kind >> 24 == 0
            words = codes[first : first + n]
            n_pooled = n if len(words) == 0 else sum_of_pooled_words(words, geometry)
            row = visit_lists.read_row(
                np.array([0, n - n_pooled, n_pooled, len(visited)], np.uint32), words, geometry
            )
            assert row.visited == visited
            assert row.pooled == pooled


def sum_of_pooled_words(words: np.ndarray, geometry: Geometry) -> int:
    """Words from the first pooled tile on; counts behind run codes are stepped over."""
    at = 0
    while at < len(words) and int(words[at]) >> 24 & 0xF == 0:
        at += 2 if int(words[at]) >> 28 & 7 else 1
    return len(words) - at


def test_full_heads_are_ranges_and_skipped_heads_have_no_items() -> None:
    rows, codes = made(PLAIN, [Pattern.full(), Pattern.skip()], True)
    assert len(codes) == 0
    items = _C.items(PLAIN.to_ints(), rows, np.array([1, 0], np.int32), np.array([True, True]))
    n = PLAIN.key_blocks
    assert items.tolist() == [[1 | 1 << 24, qb, 0, n] for qb in range(PLAIN.query_blocks)]


def test_an_empty_row_with_a_remainder_still_has_an_item() -> None:
    mask = np.zeros((PLAIN.query_blocks, PLAIN.key_blocks), bool)
    rows, _codes = _C.visits_from_masks(PLAIN.to_ints(), [mask], np.array([True]))
    heads = np.zeros(1, np.int32)
    with_it = _C.items(PLAIN.to_ints(), rows, heads, np.array([True]))
    assert with_it[:, 1].tolist() == list(range(PLAIN.query_blocks))
    assert len(_C.items(PLAIN.to_ints(), rows, heads, np.array([False]))) == 0


@settings(max_examples=1000)
@given(draws.cases(), st.data())
def test_damaged_lists_are_refused_or_read_as_they_stand(
    case: tuple[Geometry, Pattern], data: st.DataObject
) -> None:
    """Whatever a word is changed to, the reader stays inside its arrays and never invents a block."""
    geometry, pattern = case
    rows, codes = (array.copy() for array in made(geometry, [pattern], data.draw(st.booleans())))
    target = rows.reshape(-1) if len(codes) == 0 or data.draw(st.booleans()) else codes
    at = data.draw(st.integers(0, len(target) - 1))
    old = int(target[at])
    target[at] = data.draw(
        st.one_of(
            st.integers(0, 2**32 - 1), st.sampled_from([0, 2**32 - 1, old ^ 1 << 31, old + 1 & 0xFFFFFFFF])
        )
    )
    mask = None
    with contextlib.suppress(ValueError):
        mask = _C.block_mask(geometry.to_ints(), rows[0], codes)
    if mask is not None:
        assert np.array_equal(mask, visit_lists_lenient(rows[0], codes, geometry))


def visit_lists_lenient(rows: np.ndarray, codes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Reads visits only; for lists that need not be canonical."""
    mask = np.zeros((geometry.query_blocks, geometry.key_blocks), bool)
    for a, (first, n_words, _, n_blocks) in enumerate(rows.tolist()):
        if n_words == 0:
            mask[a, first : first + n_blocks] = n_blocks > 0
        at = first
        while at < first + n_words:
            number, is_run = int(codes[at]) & 0xFFFFFF, int(codes[at]) >> 28 & 7
            mask[a, number : number + (int(codes[at + 1]) if is_run else 1)] = True
            at += 2 if is_run else 1
    return mask


def test_items_refuse_a_choice_that_is_not_there() -> None:
    rows, _ = made(PLAIN, [Pattern.full()], False)
    with pytest.raises(ValueError, match=r"^items: choice\[1\] is 1, expected 0..0$"):
        _C.items(PLAIN.to_ints(), rows, np.array([0, 1], np.int32), np.zeros(2, bool))


def real_plan(geometry: Geometry) -> list[Pattern]:
    """8 diagonal, 6 multi-diagonal, 4 stripe, 4 periodic tiles, 2 unions of mean density below .35."""
    v = geometry.video_tokens
    out = [Pattern.diagonal(half_width=v * i // 36, sink_frames=i % 3) for i in range(1, 9)]
    out += [Pattern.multi_diagonal(half_width=v * i // 28) for i in range(1, 7)]
    out += [Pattern.vertical_stripe(key_blocks=range(i, 900, 3 + i), sink_frames=i) for i in range(4)]
    out += [
        Pattern.periodic_tiles(tile=tile, time=(2, 0, None), rows=(2, 0, None), columns=(3, 0, None))
        for tile in [(3, 5, 8), (6, 8, 8), (2, 4, 4)]
    ]
    out.append(Pattern.periodic_tiles(tile=(1, 3, 4), time=(2, 3, 7), rows=(2, 1, 4), columns=(2, 0, 5)))
    out.append(
        Pattern.union(Pattern.diagonal(half_width=4000), Pattern.vertical_stripe(key_blocks=range(0, 900, 7)))
    )
    slabs = [
        Pattern.periodic_tiles(tile=(3, 5, 8), time=(1, d, None), space=(16 >> d // 2, 0, None))
        for d in range(6)
    ]
    return [*out, Pattern.union(*slabs, sink_frames=1)]


@pytest.mark.parametrize("remainder", [False, True])
def test_24_patterns_at_119056_tokens_are_small(remainder: bool) -> None:
    geometry = Geometry(33, 45, 80, suffix=256)
    patterns = real_plan(geometry)
    assert len({tuple(p.to_ints().tolist()) for p in patterns}) == 24
    rows, codes = made(geometry, patterns, remainder)
    shares = [_C.visited_pairs(geometry.to_ints(), r, codes) / geometry.tokens**2 for r in rows]
    assert np.mean(shares) < 0.35
    assert rows.nbytes + codes.nbytes < 40e6


def test_200_patterns_at_119056_tokens_fit() -> None:
    """A whole plan's distinct patterns, pooled tiles included."""
    geometry = Geometry(33, 45, 80, suffix=256)
    v, tiles = geometry.video_tokens, Order.tiles(3, 5, 8)
    patterns = [Pattern.diagonal(half_width=v * i // 200, sink_frames=i % 3) for i in range(1, 71)]
    patterns += [Pattern.multi_diagonal(half_width=v * i // 150) for i in range(1, 51)]
    patterns += [
        Pattern.vertical_stripe(key_blocks=range(i, 900, 2 + i % 9), order=tiles, sink_frames=i % 4)
        for i in range(40)
    ]
    patterns += [
        Pattern.periodic_tiles(
            tile=(1 + i % 3, 1 + i % 4, 2 + i % 5), time=(1, 1, 5), rows=(1, i % 3, 3 + i), columns=(1, 1, 4)
        )
        for i in range(40)
    ]
    assert len(set(patterns)) == 200
    rows, codes = made(geometry, patterns, True)
    assert rows.nbytes + codes.nbytes < 256e6


def test_tiles_of_one_token_need_no_square_memory() -> None:
    geometry = Geometry(33, 45, 80, suffix=256)
    pattern = Pattern.periodic_tiles(
        tile=(1, 1, 1), time=(3, 0, None), rows=(4, 0, None), columns=(5, 0, None)
    )
    rows, codes = made(geometry, [pattern], True)
    assert rows.nbytes + codes.nbytes < 8e6
    assert _C.visited_pairs(geometry.to_ints(), rows[0], codes) < geometry.tokens**2
