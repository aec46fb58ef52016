"""Inputs and expectations of the attention tests: a layer on random arrays against the masks of the definitions.

`expect` gives the reference in float64 (kit.masks) and the plain formula in the tested dtype, whose error sets the
tolerance (kit.compare); both know the remainder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kit import compare, masks
from sparse_vdit import Geometry, LayerPlan, Pattern, attention

DTYPES = ("float32", "float16", "bfloat16")


def numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def inputs(
    rng: np.random.Generator,
    geometry: Geometry,
    heads: int,
    head_dim: int = 64,
    batch: int = 1,
    dtype: str = "float32",
    gain: float = 1.0,
) -> tuple[Any, Any, Any]:
    """Random q, k, v [B, H, N, D]; `gain` widens the logits."""
    shape = (batch, heads, masks.tokens(geometry), head_dim)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    return tuple(x.astype(numpy_dtype(dtype)) for x in (gain * q, gain * k, v))


@dataclass(frozen=True)
class Expected:
    out: np.ndarray[Any, Any]  # float64 [B, H, N, D]
    lse: np.ndarray[Any, Any]  # float64 [B, H, N]
    naive: np.ndarray[Any, Any]  # float32 [B, H, N, D]


def _plain_head(
    q: Any,
    k: Any,
    v: Any,
    geometry: Geometry,
    block_mask: Any,
    place: Any,
    kv_len: int,
    beta: float | None,
    dtype: str,
) -> Any:
    """The plain formula in the tested dtype; pseudo keys carry a bias as one more component."""
    q, k, v = (compare.to_float64(x).astype(np.float32) for x in (q, k, v))
    scale = np.float32(q.shape[1] ** -0.5)
    mask = masks.token_mask(geometry, block_mask, place, kv_len)
    taking_part = np.arange(len(place)) < kv_len
    keys, values, bias = [k], [v], [np.zeros(len(k), np.float32)]
    for b in range(block_mask.shape[1] if beta is not None else 0):
        inside = taking_part & (place // geometry.block_k == b)
        if not inside.any():
            continue
        keys.append(k[inside].mean(axis=0, keepdims=True))
        values.append(v[inside].mean(axis=0, keepdims=True))
        bias.append(np.array([np.log(inside.sum()) + beta], np.float32))
        mask = np.hstack([mask, ~block_mask[place // geometry.block_q, b][:, None]])
    k, v, b = np.vstack(keys), np.vstack(values), np.concatenate(bias)
    used = mask.any(axis=0)
    q1 = np.hstack([q * scale, np.ones((len(q), 1), np.float32)])
    k1 = np.hstack([k, b[:, None]])
    mask, k1, v = mask[:, used], k1[used], v[used]
    logits = np.where(mask, q1 @ k1.T, np.float32(-np.inf))
    top = logits.max(axis=1, keepdims=True, initial=-1e30)
    weights = compare.round_to(np.exp(logits - top), dtype)
    total = weights.sum(axis=1, keepdims=True)
    return compare.round_to(weights @ v / np.where(total > 0, total, 1), dtype)


def expect(
    q: Any, k: Any, v: Any, geometry: Geometry, patterns: list[Pattern], kv_len: list[int] | None = None
) -> Expected:
    n_batch, _, n, head_dim = q.shape
    out, lse = np.zeros(q.shape), np.zeros(q.shape[:3])
    naive = np.zeros(q.shape, np.float32)
    dtype = compare.dtype_name(q)
    for h, pattern in enumerate(patterns):
        plain = pattern.without_remainder()
        block_mask = masks.block_cover(geometry, plain)
        if pattern.kind == "skip":
            block_mask = np.zeros_like(block_mask)
        place = masks.places(geometry, pattern.order)
        for b in range(n_batch):
            limit = n if kv_len is None else kv_len[b]
            head = [compare.to_float64(x[b, h]) for x in (q, k, v)]
            out[b, h], lse[b, h] = masks.attention(
                *head, geometry, block_mask, place, head_dim**-0.5, limit, pattern.remainder
            )
            rounded = (x[b, h] for x in (q, k, v))
            naive[b, h] = _plain_head(*rounded, geometry, block_mask, place, limit, pattern.remainder, dtype)
    return Expected(out, lse, naive)


def check(
    rng: np.random.Generator,
    geometry: Geometry,
    patterns: list[Pattern],
    dtype: str = "float32",
    kv_len: list[int] | None = None,
    **options: Any,
) -> Any:
    """Runs a layer and compares output and log-sum-exp; returns the output."""
    q, k, v = inputs(rng, geometry, len(patterns), dtype=dtype, batch=len(kv_len) if kv_len else 1, **options)
    layer = LayerPlan(geometry, patterns)
    out, lse = attention(
        q, k, v, layer=layer, kv_len=None if kv_len is None else np.array(kv_len), return_lse=True
    )
    expected = expect(q, k, v, geometry, patterns, kv_len)
    compare.assert_close_to_reference(out, expected.out, expected.naive, dtype)
    compare.assert_lse_close(lse, expected.lse)
    return out
