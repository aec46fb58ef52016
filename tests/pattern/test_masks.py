"""The oracle itself, against facts that follow from the definitions and need no second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import draws, masks

from sparse_vdit import Geometry, Order, Pattern

GEOMETRY = Geometry(2, 3, 5, 3, 6, 16, 16)  # 39 tokens, 3 blocks


@pytest.fixture
def qkv(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(rng.standard_normal((GEOMETRY.tokens, 8)) for _ in range(3))  # type: ignore[return-value]


def dense(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    weights = np.exp(scale * q @ k.T)
    return weights @ v / weights.sum(1, keepdims=True), np.log(weights.sum(1))


def test_the_rules_written_out() -> None:
    """1 x 2 x 3 video tokens between one other token on each side."""
    geometry = Geometry(1, 2, 3, 1, 1, 16, 16)
    kept = masks.keep(geometry, Pattern.diagonal(half_width=1))
    assert kept.astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 0, 0, 1],
        [1, 0, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    assert not masks.keep(geometry, Pattern.skip()).any()
    columns = Pattern.periodic_tiles(tile=(1, 1, 1), time=(1, 0, None), rows=(2, 0, None), columns=(1, 1, 3))
    assert masks.keep_video(geometry, columns)[0].astype(int).tolist() == [0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("window", "near"),
    [
        ((1, 0, None), {0}),
        ((2, 0, None), {-1, 0, 1}),
        ((1, 2, None), {-2, 2}),
        ((1, 1, 4), {-7, -5, -3, -1, 1, 3, 5, 7}),
        ((4, 0, 4), set(range(-7, 8))),
        ((1, 9, 4), {-7, -5, -3, -1, 1, 3, 5, 7}),
        ((3, 1, None), {-3, -2, -1, 0, 1, 2, 3}),
    ],
)
def test_windows_written_out(window: tuple[int, int, int | None], near: set[int]) -> None:
    y = np.arange(-7, 8)
    assert set(y[masks.near(y, window)].tolist()) == near


@settings(max_examples=200)
@given(draws.geometries(), st.integers(0, 60))
def test_multi_diagonals_are_evenly_spaced_in_frame_major_order(geometry: Geometry, half_width: int) -> None:
    """In token_major order |x_i - x_j| = |(s_i - s_j) F + f_i - f_j|, s the place in the picture."""
    frame, row, column = masks.coordinates(geometry)
    place = row * geometry.width + column
    apart = np.abs(np.subtract.outer(place, place) * geometry.frames + np.subtract.outer(frame, frame))
    kept = masks.keep_video(geometry, Pattern.multi_diagonal(half_width=half_width))
    assert np.array_equal(kept, apart <= half_width)


@settings(max_examples=200)
@given(draws.cases())
def test_covers_hold_the_rule_and_every_token_itself(case: tuple[Geometry, Pattern]) -> None:
    geometry, pattern = case
    place = masks.places(geometry, pattern.order)
    computed = masks.token_mask(geometry, masks.block_cover(geometry, pattern), place)
    assert not (masks.keep(geometry, pattern) & ~computed).any()
    assert computed.diagonal().all() or pattern.kind == "skip"


def test_full_cover_is_dense_attention_with_or_without_remainder(qkv: tuple[np.ndarray, ...]) -> None:
    q, k, v = qkv
    place = masks.places(GEOMETRY, Order.token_major())
    for beta in (None, 0.0, 3.0):
        out, lse = masks.attention(q, k, v, GEOMETRY, np.ones((3, 3), bool), place, 0.3, beta=beta)
        want_out, want_lse = dense(q, k, v, 0.3)
        np.testing.assert_allclose(out, want_out, rtol=1e-12)
        np.testing.assert_allclose(lse, want_lse, rtol=1e-12)


@pytest.mark.parametrize("kv_len", [None, 34, 35])
def test_remainder_without_bias_is_exact_when_the_keys_of_a_block_are_equal(
    qkv: tuple[np.ndarray, ...], kv_len: int | None
) -> None:
    q, k, v = qkv
    place = masks.places(GEOMETRY, Order.tiles(1, 2, 2))
    k = k[place // 16]  # one key per block
    blocks = np.eye(3, dtype=bool)
    out, lse = masks.attention(q, k, v, GEOMETRY, blocks, place, 0.4, kv_len, beta=0.0)
    want_out, want_lse = dense(q, k[:kv_len], v[:kv_len], 0.4)
    np.testing.assert_allclose(out, want_out, rtol=1e-11)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-11)


def test_nothing_visited_gives_zeros_or_the_means_alone(qkv: tuple[np.ndarray, ...]) -> None:
    q, k, v = qkv
    place, nothing = np.arange(GEOMETRY.tokens), np.zeros((3, 3), bool)
    out, lse = masks.attention(q, k, v, GEOMETRY, nothing, place, 0.4)
    assert not out.any()
    assert np.isneginf(lse).all()
    out, lse = masks.attention(0 * q, k, v, GEOMETRY, nothing, place, 0.4, beta=1.5)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(0), out.shape), rtol=1e-12)
    np.testing.assert_allclose(lse, np.log(GEOMETRY.tokens) + 1.5, rtol=1e-12)


def test_nan_in_keys_that_nobody_attends_to_stays_out(qkv: tuple[np.ndarray, ...]) -> None:
    q, k, v = (x.copy() for x in qkv)
    k[36:], v[36:] = np.nan, np.inf
    out, lse = masks.attention(q, k, v, GEOMETRY, np.ones((3, 3), bool), np.arange(39), 0.4, kv_len=36)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()
