"""The token rules of the patterns as plain masks: what every list, kernel and report is tested against.

Written from the definitions alone, token pair by token pair, for small geometries; nothing here reads a visit
list or calls the package. Geometry, Order and Pattern objects are only asked for their attributes.

    keep(i, j)   may query token i attend to key token j
    cover        a block pair (a, b) is visited when keep holds for at least one token pair in it
    remainder    each key block that a query block does not visit is one pseudo key: the means of its keys and
                 values, logit scale * q_i . mean(k) + log(n) + beta
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def tokens(geometry: Any) -> int:
    return int(geometry.prefix + geometry.frames * geometry.height * geometry.width + geometry.suffix)


def coordinates(geometry: Any) -> tuple[Ints, Ints, Ints]:
    """Frame, row and column of every video index, each [V]."""
    f, r, c = np.meshgrid(
        np.arange(geometry.frames), np.arange(geometry.height), np.arange(geometry.width), indexing="ij"
    )
    return f.ravel(), r.ravel(), c.ravel()


def boxes(geometry: Any, tile: tuple[int, int, int]) -> tuple[Ints, Ints, Ints]:
    """Box numbers (f // t, r // h, c // w) of every video index, each [V]."""
    f, r, c = coordinates(geometry)
    return f // tile[0], r // tile[1], c // tile[2]


def positions(geometry: Any, order: Any) -> Ints:
    """Position of every video index among the video tokens in an order, [V]."""
    f, r, c = coordinates(geometry)
    if order.kind == "frame_major":
        return (f * geometry.height + r) * geometry.width + c
    if order.kind == "token_major":
        return (r * geometry.width + c) * geometry.frames + f
    if order.kind == "tiles":
        bt, br, bc = boxes(geometry, order.tile)
        by_position = np.lexsort((c, r, f, bc, br, bt))  # the last key is the first to compare
        out = np.empty(len(f), np.int64)
        out[by_position] = np.arange(len(f))
        return out
    raise ValueError(f"masks: order is {order.kind!r}")


def places(geometry: Any, order: Any) -> Ints:
    """Place of every sequence index, [N]: only video tokens move."""
    out = np.arange(tokens(geometry))
    video = slice(geometry.prefix, tokens(geometry) - geometry.suffix)
    out[video] = geometry.prefix + positions(geometry, order)
    return out


def near(difference: Ints, window: tuple[int, int, int | None]) -> Bools:
    width, offset, period = window

    def distance(y: Ints) -> Ints:
        if period is None:
            return np.abs(y)
        m = np.mod(y, period)
        return np.minimum(m, period - m)

    return np.minimum(distance(difference - offset), distance(difference + offset)) < width


def _apart(values: Ints) -> Ints:
    """values_j - values_i, [V, V]."""
    return values[None, :] - values[:, None]


def _band(geometry: Any, pattern: Any) -> Bools:
    return np.abs(_apart(positions(geometry, pattern.order))) <= pattern.half_width


def _stripes(geometry: Any, pattern: Any) -> Bools:
    key_block = (geometry.prefix + positions(geometry, pattern.order)) // geometry.block_k
    listed = np.isin(key_block, list(pattern.key_blocks))
    return np.broadcast_to(listed[None, :], (len(listed), len(listed)))


def _periodic(geometry: Any, pattern: Any) -> Bools:
    bt, br, bc = boxes(geometry, pattern.order.tile)
    kept = near(_apart(bt), pattern.time)
    if pattern.space is not None:
        boxes_per_row = -(-geometry.width // pattern.order.tile[2])
        return kept & near(_apart(br * boxes_per_row + bc), pattern.space)
    return kept & near(_apart(br), pattern.rows) & near(_apart(bc), pattern.columns)


def keep_video(geometry: Any, pattern: Any) -> Bools:
    """The rule of the pattern for two video tokens, by video index, [V, V]."""
    n = geometry.frames * geometry.height * geometry.width
    if pattern.kind == "full":
        return np.ones((n, n), bool)
    if pattern.kind in ("diagonal", "multi_diagonal"):
        return _band(geometry, pattern)
    if pattern.kind == "vertical_stripe":
        return _stripes(geometry, pattern)
    if pattern.kind == "periodic_tiles":
        return _periodic(geometry, pattern)
    if pattern.kind == "union":
        return np.any([keep_video(geometry, part) for part in pattern.parts], axis=0)
    raise ValueError(f"masks: no rule for {pattern.kind!r}")


def keep(geometry: Any, pattern: Any) -> Bools:
    """May query i attend to key j, by sequence index, [N, N]."""
    n = tokens(geometry)
    if pattern.kind == "skip":
        return np.zeros((n, n), bool)
    out = np.ones((n, n), bool)  # whenever i or j is not a video token
    video = slice(geometry.prefix, n - geometry.suffix)
    kept = np.array(keep_video(geometry, pattern))
    np.fill_diagonal(kept, True)
    frame, _, _ = coordinates(geometry)
    kept |= (frame < pattern.sink_frames)[None, :]
    out[video, video] = kept
    return out


def cover_of(mask: Bools, place: Ints, block_q: int, block_k: int) -> Bools:
    """Block pairs that hold at least one kept token pair, [nq, nk]; `mask` by sequence index."""
    n = len(place)
    by_place = np.empty((n, n), bool)
    by_place[place[:, None], place[None, :]] = mask
    rows = np.logical_or.reduceat(by_place, np.arange(0, n, block_q), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, n, block_k), axis=1)


def block_cover(geometry: Any, pattern: Any) -> Bools:
    """The block mask of a pattern, in its own order, [nq, nk]."""
    place = places(geometry, pattern.order)
    return cover_of(keep(geometry, pattern), place, geometry.block_q, geometry.block_k)


def token_mask(geometry: Any, block_mask: Bools, place: Ints, kv_len: int | None = None) -> Bools:
    """What a head really computes, by sequence index, [N, N]: whole blocks, keys before kv_len."""
    out = block_mask[place[:, None] // geometry.block_q, place[None, :] // geometry.block_k]
    if kv_len is not None:
        out = out & (np.arange(len(place)) < kv_len)[None, :]
    return out


def density(geometry: Any, block_mask: Bools) -> float:
    """Token pairs of the visited blocks over N^2, each block by its real size."""
    n = tokens(geometry)
    queries = np.minimum(geometry.block_q, n - np.arange(block_mask.shape[0]) * geometry.block_q)
    keys = np.minimum(geometry.block_k, n - np.arange(block_mask.shape[1]) * geometry.block_k)
    return float((queries[:, None] * keys[None, :] * block_mask).sum() / n**2)


def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    geometry: Any,
    block_mask: Bools,
    place: Ints,
    scale: float,
    kv_len: int | None = None,
    beta: float | None = None,
) -> tuple[Floats, Floats]:
    """One head in double precision, the remainder included when beta is a number.

    Args:
        q, k, v: [N, D], by sequence index.
        block_mask: [nq, nk], in the head's order; place: [N], place of each sequence index.
        kv_len: keys with sequence index >= kv_len take no part, not in block means either.

    Returns:
        out [N, D] and the natural logarithm of the softmax sum [N]; zeros and -inf where nothing takes part.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    taking_part = np.arange(len(place)) < (len(place) if kv_len is None else kv_len)
    mask = token_mask(geometry, block_mask, place, kv_len)
    keys, values, bias = k, v, np.zeros(len(place))
    if beta is not None:
        for b in range(block_mask.shape[1]):
            inside = taking_part & (place // geometry.block_k == b)
            n_b = int(inside.sum())
            if n_b == 0:
                continue
            keys = np.vstack([keys, k[inside].mean(axis=0)])
            values = np.vstack([values, v[inside].mean(axis=0)])
            bias = np.append(bias, np.log(n_b) + beta)
            unvisited = ~block_mask[place // geometry.block_q, b]
            mask = np.hstack([mask, unvisited[:, None]])
    return _softmax_times(q, keys, values, mask, bias, scale)


def _softmax_times(
    q: Floats, k: Floats, v: Floats, mask: Bools, bias: Floats, scale: float
) -> tuple[Floats, Floats]:
    used = mask.any(axis=0)  # what nobody attends to may hold NaN
    k, v, mask, bias = k[used], v[used], mask[:, used], bias[used]
    out = np.zeros((len(q), v.shape[1]))
    lse = np.full(len(q), -np.inf)
    some = mask.any(axis=1)
    if not some.any():
        return out, lse
    logits = np.where(mask[some], scale * (q[some] @ k.T) + bias, -np.inf)
    top = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(axis=1, keepdims=True)
    out[some] = weights @ v / total
    lse[some] = (top + np.log(total))[:, 0]
    return out, lse
