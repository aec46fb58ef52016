"""The exact output of every candidate on sampled query rows, from one pass over the logits.

For a row i and an order, let per key block b:  N_b = sum_j e^{l_ij} v_j,  D_b = sum_j e^{l_ij},  and for
the block's mean key and value the pseudo key  P_b = n_b e^{scale q_i k_b} v_b,  E_b = n_b e^{scale q_i
k_b}.  A candidate that visits the set S of blocks gives, with t = e^beta (t = 0: plain),

    out = (sum_S N_b + t sum_notS P_b) / (sum_S D_b + t sum_notS E_b)

so its squared distance from full attention is a quotient of quadratics in t: three numbers per row and
candidate hold the errors of all biases. Next: `table.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.geometry import FRAME_MAJOR
from sparse_vdit.pattern import Geometry, Order, Pattern
from sparse_vdit.plan.layer import MAX_HEADS, LayerPlan

BETA_STEP = 0.125
GEMM_ONE_THREAD = (
    2**18
)  # m n k up to which OpenBLAS keeps to the calling thread: heads run side by side instead
BETAS = np.arange(-4.0, 4.0 + BETA_STEP / 2, BETA_STEP)  # fitted biases were found in -2..3

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _OrderGroup:
    """Candidates of one order: their block masks, and where tokens lie in that order."""

    numbers: NDArray[np.int64]  # [C] of all candidates
    masks: NDArray[np.bool_]  # [C, nq, nk]
    places: NDArray[np.int64]  # [N]
    tokens: NDArray[np.int64]  # [N]


class CandidateRows:
    """The candidates of a geometry, ready to be measured on sampled rows.

    Args:
        geometry: the token layout.
        candidates: patterns without remainder.
    """

    def __init__(self, geometry: Geometry, candidates: Sequence[Pattern]) -> None:
        self.geometry = geometry
        self.candidates = tuple(candidates)
        self.density = np.zeros(len(self.candidates))
        groups: dict[Order, list[int]] = {FRAME_MAJOR: []}
        for number, pattern in enumerate(self.candidates):
            groups.setdefault(pattern.order, []).append(number)
        self.groups = [self._group(*entry) for entry in groups.items()]

    def _group(self, order: Order, numbers: list[int]) -> _OrderGroup:
        masks = []
        for start in range(0, len(numbers), MAX_HEADS):
            layer = LayerPlan(self.geometry, [self.candidates[n] for n in numbers[start : start + MAX_HEADS]])
            masks += [layer.block_mask(head) for head in range(layer.heads)]
            self.density[numbers[start : start + layer.heads]] = [
                layer.density(h) for h in range(layer.heads)
            ]
        places = np.asarray(_C.places(self.geometry.to_ints(), order.to_ints()), dtype=np.int64)
        shape = (len(numbers), self.geometry.query_blocks, self.geometry.key_blocks)
        found = np.array(masks, dtype=bool).reshape(shape)
        return _OrderGroup(np.array(numbers, dtype=np.int64), found, places, np.argsort(places))

    def sample(self, rows: int | None, seed: Sequence[int]) -> NDArray[np.int64]:
        """One random token out of each of `rows` equal stretches of the sequence; None: all tokens."""
        tokens = self.geometry.tokens
        if rows is None or rows >= tokens:
            return np.arange(tokens)
        jitter = np.random.default_rng(list(seed)).random(rows)
        return np.minimum(((np.arange(rows) + jitter) * tokens / rows).astype(np.int64), tokens - 1)

    def measure(
        self, q: Floats, k: Floats, v: Floats, rows: NDArray[np.int64], scale: float
    ) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        """One head's errors.

        Args:
            q, k, v: float32 [N, D].
            rows: sequence indices of the sampled queries [R].
            scale: factor of the logits.

        Returns:
            Sums over rows of squared errors [candidates, 1 + betas] (first: plain), the sum of squares of
            full attention's output, and the attention mass of each key block in frame_major order [nk].
        """
        picked = q[rows] * np.float32(scale)
        errors = np.zeros((len(self.candidates), 1 + len(BETAS)))
        energy, mass = 0.0, np.zeros(self.geometry.key_blocks)
        for group in self.groups:
            keys, values = self._blocks(k[group.tokens]), self._blocks(v[group.tokens])
            blocks = group.places[rows] // self.geometry.block_q
            step = max(1, GEMM_ONE_THREAD // (self.geometry.block_k * keys.shape[2]))
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                found, squares, shares = self._chunk(picked[part], keys, values, group.masks, blocks[part])
                errors[group.numbers] += found
                if group.places is self.groups[0].places:
                    energy, mass = energy + squares, mass + shares
        errors[[number for number, pattern in enumerate(self.candidates) if pattern.kind == "skip"]] = energy
        return errors, energy, mass / len(rows)

    def _blocks(self, tokens: Floats) -> Floats:
        """[N, D] to [nk, block_k, D], the short last block filled with zeros."""
        size, blocks = self.geometry.block_k, self.geometry.key_blocks
        padded = np.zeros((blocks * size, tokens.shape[1]), dtype=np.float32)
        padded[: len(tokens)] = tokens
        return padded.reshape(blocks, size, -1)

    def _chunk(
        self, q: Floats, keys: Floats, values: Floats, masks: NDArray[np.bool_], blocks: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        """Errors [C, 1 + betas], squares of the full output and mass [nk] of a few rows q [r, D], summed."""
        last = self.geometry.tokens - self.geometry.block_k * (self.geometry.key_blocks - 1)
        counts = np.full(self.geometry.key_blocks, self.geometry.block_k, dtype=np.float32)
        counts[-1] = last
        logits = np.matmul(q, keys.transpose(0, 2, 1))  # [nk, r, block_k]
        pooled = (logits.sum(axis=2) / counts[:, None]).T  # logits of the mean keys [r, nk]
        logits[-1, :, last:] = -np.inf
        top = logits.max(axis=(0, 2))
        weights = np.exp(logits - top[:, None], out=logits)
        numerator = np.matmul(weights, values).transpose(1, 0, 2)  # [r, nk, D]
        denominator = weights.sum(axis=2).T  # [r, nk]
        total = denominator.sum(axis=1, keepdims=True)
        full = numerator.sum(axis=1) / total
        pseudo = np.exp(pooled - top[:, None]) * counts
        visited = np.ascontiguousarray(masks[:, blocks].transpose(1, 0, 2), dtype=np.float32)  # [r, C, nk]
        unseen = (1 - visited) * pseudo[:, None]
        d_visited = np.matmul(visited, denominator[..., None])[..., 0]
        d_unseen = unseen.sum(axis=2)
        a = np.matmul(visited, numerator) - full[:, None] * d_visited[..., None]
        c = np.matmul(unseen, values.sum(axis=1) / counts[:, None]) - full[:, None] * d_unseen[..., None]
        found = _errors(a, c, d_visited.astype(np.float64), d_unseen.astype(np.float64))
        return found, float(np.square(full, dtype=np.float64).sum()), (denominator / total).sum(axis=0)


def _errors(
    a: Floats, c: Floats, d_visited: NDArray[np.float64], d_pseudo: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sums over rows of |a + t c|^2 / (d_visited + t d_pseudo)^2 for t = 0 and t = e^BETAS, [C, 1 + betas].

    A row whose visited weights all underflow has no finite plain output; its error is infinite.
    """
    aa = np.einsum("rcd,rcd->rc", a, a).astype(np.float64)
    ac = np.einsum("rcd,rcd->rc", a, c).astype(np.float64)
    cc = np.einsum("rcd,rcd->rc", c, c).astype(np.float64)
    found = np.empty((a.shape[1], 1 + len(BETAS)))
    for index, t in enumerate((0.0, *np.exp(BETAS))):
        below = np.square(d_visited + t * d_pseudo)
        above = np.maximum(aa + 2 * t * ac + t * t * cc, 0.0)
        found[:, index] = np.divide(above, below, out=np.full_like(below, np.inf), where=below > 0).sum(
            axis=0
        )
    return found


def best_beta(curve: NDArray[np.float64]) -> tuple[float, float]:
    """Bias and error at the lowest point of a curve over BETAS, refined by a parabola."""
    low = int(np.argmin(curve))
    beta, error = float(BETAS[low]), float(curve[low])
    if 0 < low < len(curve) - 1 and np.isfinite(curve[low - 1 : low + 2]).all():
        before, after = curve[low - 1] - error, curve[low + 1] - error
        bend = before + after
        if bend > 0:
            shift = 0.5 * (before - after) / bend
            beta, error = beta + shift * BETA_STEP, error - 0.25 * (before - after) * shift
    return round(beta, 3), max(error, 0.0)


def float32(array: Any) -> Floats:
    """A NumPy array or a torch tensor as float32."""
    if hasattr(array, "detach"):
        array = array.detach().float().cpu().numpy()
    return np.asarray(array, dtype=np.float32)
