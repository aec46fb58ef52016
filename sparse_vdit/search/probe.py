"""Errors of all candidates of a call on a sample of query rows, and the bias that serves each best.

The arithmetic is `_C.probe` (csrc/search/probe.h); here are the sampling of rows, the measure behind the
output projection, and the fit of a bias to a curve of few nodes. Next: `recorder.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.geometry import Geometry

from .candidates import Candidates

ROWS = 64  # query rows per call that the search samples unless asked for more
# Nodes of a curve, close where lowest points are sharp. Measured over 4,000 heads x candidates of the embedded model:
# 5 % of the best biases lie below -2, 7 % above 4 (there the range up to 8 lowers the error by 9 % on average).
BETAS = np.array([-3, -2.25, *np.arange(-1.5, 3.75, 0.5), 4.25, 5, 6, 7, 8])
BETAS.flags.writeable = False
NEIGHBOURS = (
    7  # nodes of the polynomial around a lowest node: errors within 1 % of the best, values within 3 %
)
FINE = 1 / 32  # step of the grid on which the lowest point is sought, before a parabola through three points
CHUNK = 1 << 16  # curves at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeResult:
    """Sums over the sampled rows and the batch.

    Args:
        plain: float64 [H, C], squared distance from full attention without remainder.
        curve: float64 [H, C, K], the same with the bias `BETAS[i]`; equal to `plain` for full and skip.
        energy: float64 [H], squares of full attention's output.
        mass: float64 [H, key blocks], mean attention weight of each key block in frame_major order.
    """

    plain: Floats
    curve: Floats
    energy: Floats
    mass: Floats


def sample_rows(geometry: Geometry, n: int, seed: int | Sequence[int]) -> NDArray[np.int32]:
    """Distinct sequence indices of query rows, ascending: min(n, N) of them.

    Other tokens have their share of the rows (one at least), evenly spread. Of the video tokens every frame,
    row and column has its share: along each axis one row is drawn out of each of equally many stretches.

    Args:
        geometry: the token layout.
        n: rows wanted, >= 1.
        seed: one or several integers >= 0; the same seed gives the same rows.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"probe: rows is {type(n).__name__}, expected an integer")
    if n < 1:
        raise ValueError(f"probe: rows is {n}, expected at least 1")
    tokens, video = geometry.tokens, geometry.video_tokens
    if n >= tokens:
        return np.arange(tokens, dtype=np.int32)
    rng = np.random.default_rng(seed)
    others = tokens - video
    n_others = min(others, max(min(1, others, n - 1), round(n * others / tokens), n - video))
    apart = _one_per_stretch(rng, n_others, others)
    apart = np.where(apart < geometry.prefix, apart, apart + video)
    inside = geometry.prefix + _sample_video(rng, geometry, n - n_others)
    return np.sort(np.concatenate([apart, inside])).astype(np.int32)


def _one_per_stretch(rng: np.random.Generator, n: int, total: int) -> NDArray[np.int64]:
    """One index out of each of n <= total stretches of 0..total - 1: distinct, ascending."""
    bounds = np.arange(n + 1) * total // max(n, 1)
    return bounds[:-1] + (rng.random(n) * np.diff(bounds)).astype(np.int64)


def _sample_video(rng: np.random.Generator, geometry: Geometry, n: int) -> NDArray[np.int64]:
    """n distinct video indices; where the draw repeats itself, tokens that it left out."""

    def axis(side: int) -> NDArray[np.int64]:
        drawn = rng.permutation((np.arange(n) + rng.random(n)) * side / max(n, 1)).astype(np.int64)
        return np.minimum(drawn, side - 1)

    frame, row, column = axis(geometry.frames), axis(geometry.height), axis(geometry.width)
    found = np.unique((frame * geometry.height + row) * geometry.width + column)
    left = np.setdiff1d(np.arange(geometry.video_tokens), found, assume_unique=True)
    return np.concatenate([found, rng.choice(left, n - len(found), replace=False)])


def output_factors(weight: Any, heads: int) -> NDArray[np.float32]:
    """L [H, D, D] with L^T L = W_h^T W_h for each head's slice W_h of an output projection.

    Args:
        weight: [features, H * D], as a linear layer holds it.
        heads: H.
    """
    found = np.asarray(_numpy(weight), dtype=np.float64)
    features, columns = found.shape
    slices = found.reshape(features, heads, columns // heads).transpose(1, 0, 2)
    if features < columns // heads:
        slices = np.pad(slices, ((0, 0), (0, columns // heads - features), (0, 0)))
    return np.asarray(np.linalg.qr(slices, mode="r"), dtype=np.float32)


def probe(
    candidates: Candidates,
    q: Any,
    k: Any,
    v: Any,
    rows: NDArray[np.int32],
    *,
    scale: float | None = None,
    kv_len: NDArray[np.int64] | None = None,
    stripes: NDArray[np.int32] | None = None,
    projection: NDArray[Any] | None = None,
) -> ProbeResult:
    """Measures all candidates on the given query rows of one attention call.

    Args:
        candidates: what to measure; without `stripes` the mass stripes are left out.
        q, k, v: [B, H, N, D] arrays or tensors on the CPU: float32, float16 or bfloat16.
        rows: int32 [R], sequence indices (`sample_rows`).
        scale: factor of the logits, default 1 / sqrt(D).
        kv_len: int64 [B], keys at or beyond it take no part.
        stripes: int32 [H, M], key blocks by falling mass.
        projection: float [H, D, D] (`output_factors`): errors and energy are those of L out.

    Raises:
        ValueError, TypeError, UnsupportedError: one sentence that opens with `probe`.
    """
    pool = candidates.pool
    visit_rows, codes = pool.visits
    q, k, v = _numpy(q), _numpy(k), _numpy(v)
    if projection is not None:
        v = project_values(v, projection)
    counts = candidates.mass_stripes if stripes is not None else ()
    found = _C.probe(
        q,
        k,
        v,
        np.ascontiguousarray(rows, dtype=np.int32),
        candidates.geometry.to_ints(),
        1.0 / math.sqrt(max(int(q.shape[-1]), 1)) if scale is None else float(scale),
        visit_rows,
        codes,
        candidates.orders,
        pool.tokens,
        None if kv_len is None else np.ascontiguousarray(kv_len, dtype=np.int64),
        BETAS,
        None if stripes is None else np.ascontiguousarray(stripes, dtype=np.int32),
        np.array(counts, dtype=np.int32),
    )
    return ProbeResult(*found)


def project_values(v: NDArray[Any], projection: NDArray[Any]) -> NDArray[np.float32]:
    """v L^T [B, H, N, D]: attention is linear in the values, so that its output is L out."""
    factors = np.asarray(projection, dtype=np.float32)
    expected = (v.shape[1], v.shape[3], v.shape[3]) if v.ndim == 4 else None
    if factors.shape != expected:
        raise ValueError(f"probe: projection has shape {factors.shape}, expected {expected} (heads, D, D)")
    projected: NDArray[np.float32] = np.matmul(np.asarray(v, dtype=np.float32), factors.transpose(0, 2, 1))
    return projected


def fit_beta(plain: NDArray[Any], curve: NDArray[Any]) -> tuple[Floats, Floats]:
    """The lowest point of each curve over the range of `BETAS`.

    Args:
        plain: [...]: the error of a curve without finite points, with the bias 0.
        curve: [..., K] over `BETAS`.

    Returns:
        Error and bias, float64 [...].
    """
    flat = np.asarray(curve).reshape(-1, len(BETAS))
    errors = np.array(plain, dtype=np.float64).reshape(-1)
    betas = np.zeros(len(flat))
    for start in range(0, len(flat), CHUNK):
        nodes = flat[start : start + CHUNK].astype(np.float64)
        lowest = np.argmin(nodes, axis=1)
        lowest[~np.isfinite(nodes).all(axis=1)] = -1
        for node, part in enumerate(_PARTS):
            chosen = np.flatnonzero(lowest == node)
            error, beta = part.lowest(nodes[chosen])
            errors[start + chosen], betas[start + chosen] = error, beta
    shape = np.asarray(curve).shape[:-1]
    return errors.reshape(shape), betas.reshape(shape)


class _Part:
    """The curve between the neighbours of a node, as a polynomial through the nodes about it."""

    def __init__(self, node: int) -> None:
        first = min(max(node - NEIGHBOURS // 2, 0), len(BETAS) - NEIGHBOURS)
        self.window = slice(first, first + NEIGHBOURS)
        low, high = BETAS[max(node - 1, 0)], BETAS[min(node + 1, len(BETAS) - 1)]
        self.betas = np.linspace(low, high, round((high - low) / FINE) + 1)
        self.weights = _polynomial(BETAS[self.window], self.betas)  # [points, NEIGHBOURS]

    def lowest(self, nodes: Floats) -> tuple[Floats, Floats]:
        """Error and bias of curves [n, K] whose lowest node this is."""
        fine = nodes[:, self.window] @ self.weights.T
        middle = np.clip(np.argmin(fine, axis=1), 1, len(self.betas) - 2)
        before, at, after = (
            np.take_along_axis(fine, (middle + i)[:, None], axis=1)[:, 0] for i in (-1, 0, 1)
        )
        bend, slope = before - 2 * at + after, (after - before) / 2
        steps = np.divide(-slope, bend, out=-np.sign(slope), where=bend > np.abs(slope))
        error = at + slope * steps + bend / 2 * steps**2
        return np.maximum(error, 0.0), self.betas[middle] + steps * (self.betas[1] - self.betas[0])


def _polynomial(nodes: Floats, at: Floats) -> Floats:
    """[len(at), len(nodes)]: values of the polynomial through the nodes, as weights of their values (Lagrange)."""
    apart = nodes[:, None] - nodes
    np.fill_diagonal(apart, 1.0)
    factors = (at[:, None, None] - nodes) / apart  # [at, weight of, node]
    factors[:, np.arange(len(nodes)), np.arange(len(nodes))] = 1.0
    weights: Floats = factors.prod(axis=2)
    return weights


_PARTS = tuple(_Part(node) for node in range(len(BETAS)))


def _numpy(array: Any) -> NDArray[Any]:
    """A view of an array or tensor; bfloat16 tensors, which NumPy does not know, as float32."""
    if not hasattr(array, "detach"):
        return np.asarray(array)
    tensor = array.detach()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    found: NDArray[Any] = tensor.numpy()
    return found
